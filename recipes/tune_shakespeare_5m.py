"""Try settings for shakespeare-5m on a small copy of it: python recipes/tune_shakespeare_5m.py [--processes N]

Each trial trains a model of 1.1 million parameters on a tenth of the plays, with one setting changed from the trial
"start". The results go, one line each, into recipes/shakespeare_5m_trials.jsonl, which the model's card repeats:
started again, the recipe skips the trials that stand there.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cache

import numpy as np
import runner
import torch
from runner import Work, completed, run, tables
from shakespeare_5m import SHAPE, TRIALS, encode_corpus

from gptcourse.config import TrainingConfig
from gptcourse.data import Batches, text_batches
from gptcourse.model import GPT
from gptcourse.training import Trainer, evaluate

N_TOKENS, N_VALIDATION = 180_000, 20_000
SMALL = replace(SHAPE, n_embd=128, n_layer=4, n_head=4)
START, CHANGES = tables("tune_shakespeare_5m", "START", "CHANGES")
corpus = cache(encode_corpus)


def shuffled_batches(tokens: torch.Tensor, config: TrainingConfig, sequence_length: int) -> Batches:
    """Return batches like `text_batches`, but cut so that every epoch reads each window once, in a new order."""
    n_windows = (len(tokens) - 1) // sequence_length

    def batches(step: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        windows = []
        for number in range(step * config.batch_size, (step + 1) * config.batch_size):
            epoch, place = divmod(number, n_windows)
            windows.append(np.random.default_rng((config.seed, epoch)).permutation(n_windows)[place])
        places = torch.tensor(windows)[:, None] * sequence_length + torch.arange(sequence_length)  # (B, T)
        return [(tokens[places], tokens[places + 1])]

    return batches


def trial(name: str) -> dict:
    """Train one small model with changes made to START, and return what was measured."""
    _, tokens, validation = corpus(runner.ASSETS / "shakespeare-5m")
    settings = START | CHANGES[name]
    epochs, dropout, order = settings.pop("epochs"), settings.pop("dropout"), settings.pop("order", "random")
    steps = round(epochs * N_TOKENS / settings["batch_size"] / SMALL.n_positions)
    if share := settings.pop("decay", None):
        settings["decay_steps"] = round(share * steps)
    torch.manual_seed(settings.get("seed", 0))
    model = GPT(replace(SMALL, dropout=dropout))
    config = TrainingConfig(steps, warmup_steps=steps // 20, **settings)
    began = time.perf_counter()
    text = tokens[:N_TOKENS], config, SMALL.n_positions
    batches = shuffled_batches(*text) if order == "epochs" else text_batches(*text, n_processes=1)
    history = completed(Trainer(model, batches, config, device="cpu").run(progress=False))
    return {
        "trial": name,
        "changes": CHANGES[name],
        "steps": steps,
        "train_loss": round(sum(history.loss[-50:]) / 50, 4),
        "held_out_loss": round(evaluate(model, validation[:N_VALIDATION]), 4),
        "seconds": round(time.perf_counter() - began),
    }


def trials(work: Work) -> None:
    """Run the trials that are not on record yet."""
    for result in work.pieces([(trial, name) for name in CHANGES], record=TRIALS):
        print(result)


if __name__ == "__main__":
    run("shakespeare-5m", {"trials": trials})
