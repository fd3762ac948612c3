"""Record the runs of notebook 04: python recipes/your_gpt.py [PART …]

The learner's GPT, trained for three minutes on two cores, next to the settings of nanoGPT's famous CPU recipe, and to
the tables that only count. Everything reads the same plays, character by character. The learning rate is chosen on the
last part of the training plays, which no run of that part has read, and all losses reported are those of the held-out
plays. The card gives the tables.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict

import torch
from plays import MODEL as SHAPE
from plays import NANOGPT, read_plays
from runner import Work, completed, constants, fill, run

from gptcourse.config import TrainingConfig
from gptcourse.model import GPT
from gptcourse.ngrams import NGrams
from gptcourse.training import evaluate, train

SETTINGS = TrainingConfig(steps=4000, batch_size=16, learning_rate=1e-2, warmup_steps=100)
RATES, RATE_STEPS = (1e-3, 3e-3, 1e-2, 3e-2), 1000
SEEDS = (0, 1, 2)
CHOSEN_ON = 200_000  # characters at the end of the training plays
EVERY, AVERAGED = 200, 50  # steps between two losses of a curve, and how many training losses each is the mean of
LONGEST = 7  # tokens in the longest piece that is counted


def train_one(settings: dict, seed: int, choosing: bool) -> dict:
    """Return the curves of one run, and its loss at the end: on the held-out plays, or on what a rate is chosen on."""
    _, tokens, held_out = read_plays()
    if choosing:
        tokens, held_out = tokens[:-CHOSEN_ON], tokens[-CHOSEN_ON:]
    config = TrainingConfig(**settings | {"seed": seed, "eval_steps": EVERY})
    torch.manual_seed(seed)
    model = GPT(SHAPE)
    history = completed(train(model, tokens, config, validation_tokens=held_out[:50_000], progress=False, device="cpu"))
    ends = range(EVERY, config.steps + 1, EVERY)
    return {
        "tokens": [end * config.batch_size * SHAPE.n_positions for end in ends],
        "training_loss": [round(statistics.mean(history.loss[end - AVERAGED : end]), 4) for end in ends],
        "held_out_loss": [round(loss, 4) for loss in history.eval_loss],  # of its first 50,000 characters
        "loss": round(evaluate(model, held_out), 4),
    }


def rates(work: Work) -> dict:
    """Try each rate for a quarter of the run."""
    settings = [asdict(SETTINGS) | {"learning_rate": rate, "steps": RATE_STEPS} for rate in RATES]
    runs = work.pieces([(train_one, one, 0, True) for one in settings])
    return {"runs": [{"learning_rate": rate, "loss": run["loss"]} for rate, run in zip(RATES, runs, strict=True)]}


def runs(work: Work) -> dict:
    """Train the learner's GPT, and nanoGPT's recipe, once for each seed."""
    tasks = [(train_one, asdict(settings), seed, False) for settings in (SETTINGS, NANOGPT) for seed in SEEDS]
    made = work.pieces(tasks)
    return {"yours": made[: len(SEEDS)], "nanogpt": made[len(SEEDS) :]}


def counting(work: Work) -> dict:
    """Count."""
    tokenizer, tokens, held_out = read_plays()
    return {"losses": [round(loss, 4) for loss in NGrams(tokens, tokenizer.vocab_size, LONGEST).losses(held_out)]}


def card(data: dict[str, dict]) -> str:
    """Return the card: what was trained on what, and the losses."""
    return fill("your-gpt", ("counting", "rates", "runs"), **data, **constants(globals()))


if __name__ == "__main__":
    run("your-gpt", {"counting": counting, "rates": rates, "runs": runs}, card)
