"""Record the experiments of notebook 04 on the shipped model: python recipes/finetuning_experiments.py

Every way of fine-tuning gets equally many steps. Its rate is chosen with one seed on the validation phrasings, and so
is the length of a longer run. Then it runs with three seeds that chose nothing, and is judged on the test phrasings,
and on the validation phrasings, too, as another hand wrote them. Every run is kept in recipes/work/finetuning (which
git ignores) when it ends: started again, the recipe goes on where it stopped. The result is
gptcourse/assets/finetuning/methods.json, with a card.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import keeping
import torch
from tuning_card import spread, table

from gptcourse.corpora import shakespeare, support
from gptcourse.evaluation import reply_report
from gptcourse.finetuning import (
    add_lora,
    count_targets,
    encode_dialogues,
    finetune,
    freeze_all_but_last,
    generate_replies,
    reinit_embeddings,
    reply_loss,
    text_examples,
    without_dropout,
)
from gptcourse.model import GPT
from gptcourse.pretrained import load_pretrained
from gptcourse.training import TrainingConfig, evaluate

ASSET = Path(__file__).parents[1] / "gptcourse" / "assets" / "finetuning"
WORK = Path(__file__).parent / "work" / "finetuning"
STEPS, BATCH_SIZE, WARMUP_STEPS, N_EVALUATIONS = 800, 4, 20, 8
N_TRAIN, N_VALIDATION, N_JUDGED, N_PLAYS = 12_000, 64, 200, 20_000  # dialogues; characters of the held-out plays
REPLAY_SHARE, REPLAY_LENGTH = 0.5, 64  # pieces of the plays for each dialogue, and their tokens
TRIAL_SEED, SEEDS = 10, (0, 1, 2)
RATES = {  # tried for each method
    "all weights": (6e-4, 1e-3),
    "all weights, with replay": (6e-4, 1e-3),
    "LoRA of rank 8": (4e-3, 8e-3),
    "LoRA of rank 8, and the embeddings": (2e-3, 4e-3),
    "the last 2 blocks": (2e-3, 4e-3),
    "from scratch": (2e-3, 3e-3),
}
LONG = "all weights, longer"  # with the rate of "all weights"
LONG_STEPS = (1600, 3200)  # tried


def prepared(method: str, model: GPT, unseen: list[int]) -> GPT:
    """Return the model as the method begins: what learns is set, and the tokens that the plays lack are renewed.

    Without dropout: in so few steps hardly a dialogue is seen twice.
    """
    model = without_dropout(model if method != "from scratch" else GPT(model.config))
    if method != "from scratch":
        reinit_embeddings(model, unseen)
    if method == "the last 2 blocks":
        freeze_all_but_last(model, 2)
    if method.startswith("LoRA"):
        add_lora(model, rank=8, targets=("c_attn", "c_proj", "c_fc"))
        model.wte.weight.requires_grad_(method.endswith("embeddings"))
    return model


def config_of(rate: float, seed: int, steps: int) -> TrainingConfig:
    """Return the settings of a run: a warm-up, then straight down to zero."""
    return TrainingConfig(
        steps=steps,
        batch_size=BATCH_SIZE,
        learning_rate=rate,
        seed=seed,
        warmup_steps=min(WARMUP_STEPS, steps // 2),
        lr_scheduler_type="linear",
        min_lr_ratio=0.0,
        eval_steps=max(1, steps // N_EVALUATIONS),
    )


def examples_of(method: str, tokenizer, plays: torch.Tensor, n: int) -> list:
    """Return what the method learns from: n dialogues, and with replay pieces of the plays."""
    examples = encode_dialogues(tokenizer, support(n))
    if method.endswith("replay"):
        examples += text_examples(plays, round(REPLAY_SHARE * n), REPLAY_LENGTH)
    return examples


def tuned(method: str, rate: float, seed: int, steps: int, n_train: int = N_TRAIN) -> tuple[dict, GPT]:
    """Fine-tune once; return the settings with what the validation phrasings say of them, and the model."""
    torch.manual_seed(seed)
    base, tokenizer = load_pretrained("shakespeare-5m")
    plays = torch.tensor(tokenizer.encode(shakespeare().train))
    model = prepared(method, base, unseen_tokens(plays, base.config.vocab_size))
    history = finetune(
        model,
        examples_of(method, tokenizer, plays, n_train),
        config_of(rate, seed, steps),
        validation=encode_dialogues(tokenizer, support(N_VALIDATION, split="validation")),
        progress=False,
    )
    return {
        "method": method,
        "rate": rate,
        "seed": seed,
        "steps": steps,
        "learning": sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        "evaluations": list(map(list, zip(history.eval_step, history.eval_loss, strict=True))),
        "validation_loss": min(history.eval_loss),
    }, model


def trial(method: str, rate: float, seed: int, steps: int) -> dict:
    """Fine-tune once, to choose a rate or a length: the test phrasings are not looked at."""
    return tuned(method, rate, seed, steps)[0]


def run(method: str, rate: float, seed: int, steps: int, n_train: int = N_TRAIN, n_judged: int = N_JUDGED) -> dict:
    """Fine-tune once; return what was measured, losses in nats per token."""
    record, model = tuned(method, rate, seed, steps, n_train)
    base, tokenizer = load_pretrained("shakespeare-5m")
    held_out = torch.tensor(tokenizer.encode(held_out_plays()))
    plays = {"plays_before": evaluate(base, held_out), "plays_after": evaluate(model, held_out)}
    return record | plays | {split: judged(model, tokenizer, split, n_judged) for split in ("test", "validation")}


def judged(model: GPT, tokenizer, split: str, n: int) -> dict:
    """Return what a model's replies to n messages of a split are worth."""
    dialogues = support(n, split=split)
    examples = encode_dialogues(tokenizer, dialogues)
    report = reply_report(dialogues, generate_replies(model, tokenizer, [dialogue.message for dialogue in dialogues]))
    floor = -sum(dialogue.log_prob for dialogue in dialogues) / count_targets(examples)
    return {"loss": reply_loss(model, examples), "floor": floor} | report._asdict()


def held_out_plays() -> str:
    """Return the piece of the plays on which forgetting is measured."""
    return shakespeare().validation[:N_PLAYS]


def unseen_tokens(plays: torch.Tensor, vocab_size: int) -> list[int]:
    """Return the tokens that never occur in the plays."""
    return (torch.bincount(plays, minlength=vocab_size) == 0).nonzero()[:, 0].tolist()


def kept(task: tuple[str, str, float, int, int]) -> dict:
    """Return what "trial" or "run" returned the first time, from its file in the work directory."""
    torch.set_num_threads(1)
    name = "_".join(map(str, task)).replace(" ", "-")
    make = {"trial": trial, "run": run}[task[0]]
    return keeping.kept(WORK / f"{name}.json", lambda: make(*task[1:]))


def methods_table(runs: list[dict], split: str) -> str:
    """Return a Markdown table with a row for each method, judged on a split."""
    head = ["method", "steps", "weights that learn", "rate", "reply loss", "intent right", "slots copied"]
    rows = []
    for method in dict.fromkeys(row["method"] for row in runs):
        these = [row for row in runs if row["method"] == method]
        first = these[0]
        rows.append([method, str(first["steps"]), f"{first['learning']:,}", f"{first['rate']:g}"])
        for number in ("loss", "intents", "slots"):
            rows[-1].append(spread((row[split][number] for row in these), ".3f" if number == "loss" else ".0%"))
        rows[-1] += [f"{first['plays_before']:.3f}", spread([row["plays_after"] for row in these])]
    return table([*head, "plays, before", "after"], rows)


def card(data: dict) -> str:
    """Return the card of the recorded runs."""
    trials = "\n".join(
        f"* {row['method']}, rate {row['rate']:g}, {row['steps']:,} steps: {row['validation_loss']:.3f}"
        for row in data["trials"]
    )
    floors = {split: f"{data['runs'][0][split]['floor']:.3f}" for split in ("test", "validation")}
    return f"""# Ways of fine-tuning, compared

Made by `python recipes/finetuning_experiments.py` with `shakespeare-5m` and the support dialogues of this package.
Every step takes {BATCH_SIZE} examples: of {N_TRAIN:,} dialogues in the training phrasings, and for replay of half as
many pieces of the plays, too. The weights with the lowest loss on {N_VALIDATION} dialogues in the validation phrasings
are kept. All numbers below are of {N_JUDGED} dialogues, answered greedily; median of three seeds (lowest–highest).
Losses are in nats per token: of the replies, and of a piece of the plays that no model has read.

On the **test phrasings**, which chose nothing. No model can bring the reply loss below {floors["test"]}, the entropy of
the grammar's replies to these messages:

{methods_table(data["runs"], "test")}

On the **validation phrasings**, which were written by another hand and are not as close to the training phrasings
(floor {floors["validation"]}). They chose the rates, the length of the long run and the weights that were kept:

{methods_table(data["runs"], "validation")}

The rate of each method, and then the length of the longer run, were chosen with another seed, by the loss on the
validation phrasings:

{trials}

## Limits

A model of 5 million parameters and dialogues from one small grammar: the order of the methods may differ elsewhere.

No length above {max(LONG_STEPS):,} steps was tried; that one was, because an earlier version of this recipe had judged
it on the test phrasings. And what a model does on phrasings by another hand than the training's is the better guess of
what it would do on customers: read the second table.
"""


def main() -> None:
    """Choose a rate for each method, run it with the three seeds, and write the asset."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--processes", type=int, default=None, help="default: one for each core")
    processes = parser.parse_args().processes
    WORK.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        tasks = [("trial", name, rate, TRIAL_SEED, STEPS) for name, rates in RATES.items() for rate in rates]
        trials = list(pool.map(kept, tasks))
        best = {
            name: min((row for row in trials if row["method"] == name), key=lambda row: row["validation_loss"])["rate"]
            for name in RATES
        }
        rate = best["all weights"]
        longer = list(pool.map(kept, [("trial", LONG, rate, TRIAL_SEED, steps) for steps in LONG_STEPS]))
        steps = min(longer, key=lambda row: row["validation_loss"])["steps"]
        tasks = [("run", name, rate, seed, STEPS) for name, rate in best.items() for seed in SEEDS]
        tasks += [("run", LONG, rate, seed, steps) for seed in SEEDS]
        runs = list(pool.map(kept, tasks))
    trials += longer
    data = {"trials": trials, "runs": runs}
    ASSET.mkdir(exist_ok=True)
    (ASSET / "methods.json").write_text(json.dumps(data), encoding="utf-8")
    (ASSET / "README.md").write_text(card(data), encoding="utf-8")


if __name__ == "__main__":
    main()
