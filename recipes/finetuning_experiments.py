"""Record the experiments of notebook 08 on the shipped model: python recipes/finetuning_experiments.py

Every way of fine-tuning gets equally many steps. Its rate is chosen with one seed on the validation phrasings, and so
is the length of a longer run. Then it runs with three seeds that chose nothing, and is judged on the test phrasings,
and on the validation phrasings, too, as another hand wrote them. The result is gptcourse/assets/finetuning.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import torch
from runner import Work, completed, constants, fill, grouped, run

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
)
from gptcourse.model import GPT
from gptcourse.pretrained import load_pretrained
from gptcourse.training import TrainingConfig, evaluate
from gptcourse.views import set_dropout

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


@cache
def plays_tokens() -> torch.Tensor:
    """Return the plays as the bundled model reads them."""
    return torch.tensor(load_pretrained("shakespeare-5m")[1].encode(shakespeare().train))


def opened(method: str, seed: int) -> tuple[GPT, GPT, object]:
    """Return the model as the method begins, the bundled model that it was made from, and the tokenizer."""
    plays = plays_tokens()
    torch.manual_seed(seed)
    base, tokenizer = load_pretrained("shakespeare-5m")
    unseen = (torch.bincount(plays, minlength=base.config.vocab_size) == 0).nonzero()[:, 0].tolist()
    return prepared(method, base, unseen), base, tokenizer


def prepared(method: str, base: GPT, unseen: list[int]) -> GPT:
    """Return the model as the method begins: frozen or not, with new embeddings for the tokens that the plays lack.

    Without dropout: in so few steps hardly a dialogue is seen twice.
    """
    if method == "from scratch":
        return GPT(replace(base.config, dropout=0.0))
    model = copy.deepcopy(base)
    set_dropout(model, 0.0)
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


def examples_of(method: str, tokenizer) -> list:
    """Return what the method learns from: dialogues, and with replay pieces of the plays."""
    examples = encode_dialogues(tokenizer, support(N_TRAIN))
    if method.endswith("replay"):
        examples += text_examples(plays_tokens(), round(REPLAY_SHARE * N_TRAIN), REPLAY_LENGTH)
    return examples


def tuned(method: str, rate: float, seed: int, steps: int) -> tuple[dict, GPT, GPT, object]:
    """Fine-tune once; return what the validation phrasings say, the model, the bundled one, and the tokenizer."""
    model, base, tokenizer = opened(method, seed)
    validation = encode_dialogues(tokenizer, support(N_VALIDATION, split="validation"))
    config = config_of(rate, seed, steps)
    examples = examples_of(method, tokenizer)
    history = completed(finetune(model, examples, config, validation=validation, progress=False))
    record = {
        "method": method,
        "rate": rate,
        "seed": seed,
        "steps": steps,
        "learning": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "evaluations": list(map(list, zip(history.eval_step, history.eval_loss, strict=True))),
        "validation_loss": min(history.eval_loss),
    }
    return record, model, base, tokenizer


def trial(method: str, rate: float, seed: int, steps: int) -> dict:
    """Fine-tune once, to choose a rate or a length: the test phrasings are not looked at."""
    return tuned(method, rate, seed, steps)[0]


def run_once(method: str, rate: float, seed: int, steps: int) -> dict:
    """Fine-tune once; return what was measured, losses in nats per token."""
    record, model, base, tokenizer = tuned(method, rate, seed, steps)
    held_out = torch.tensor(tokenizer.encode(shakespeare().validation[:N_PLAYS]))
    plays = {"plays_before": evaluate(base, held_out), "plays_after": evaluate(model, held_out)}
    return record | plays | {split: judged(model, tokenizer, split) for split in ("test", "validation")}


def judged(model: GPT, tokenizer, split: str) -> dict:
    """Return what a model's replies to the messages of a split are worth."""
    dialogues = support(N_JUDGED, split=split)
    examples = encode_dialogues(tokenizer, dialogues)
    report = reply_report(dialogues, generate_replies(model, tokenizer, [dialogue.message for dialogue in dialogues]))
    floor = -sum(dialogue.log_prob for dialogue in dialogues) / count_targets(examples)
    return {"loss": reply_loss(model, examples), "floor": floor} | report._asdict()


def methods(work: Work) -> dict:
    """Choose a rate for each method and a length for the longer run, then make the runs with the three seeds."""
    trials = work.pieces((trial, name, rate, TRIAL_SEED, STEPS) for name, rates in RATES.items() for rate in rates)
    rates = {name: best(rows)["rate"] for name, rows in grouped(trials, "method").items()}
    longer = work.pieces((trial, LONG, rates["all weights"], TRIAL_SEED, steps) for steps in LONG_STEPS)
    settings = [(name, rate, STEPS) for name, rate in rates.items()]
    settings.append((LONG, rates["all weights"], best(longer)["steps"]))
    runs = work.pieces((run_once, name, rate, seed, steps) for name, rate, steps in settings for seed in SEEDS)
    return {"trials": trials + longer, "runs": runs}


def best(trials: Sequence[dict]) -> dict:
    """Return the trial with the lowest loss on the validation phrasings."""
    return min(trials, key=lambda trial: trial["validation_loss"])


def card(data: dict[str, dict]) -> str:
    """Return the card of the recorded runs."""
    return fill("finetuning", **constants(globals()), **data["methods"])


if __name__ == "__main__":
    run("finetuning", {"methods": methods}, card)
