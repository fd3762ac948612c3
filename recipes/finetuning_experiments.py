"""Record the experiments of notebook 08: python recipes/finetuning_experiments.py [PART …]

PART is one or more of PARTS below (default: all). One that is complete becomes a JSON file in
gptcourse/assets/finetuning, and the card there tells what those files hold.

Every way of fine-tuning the bundled model gets equally many steps. Its rate is chosen with one seed on the validation
phrasings, on a ladder that grows until the best rate has a worse one on either side. Then it runs with three seeds that
chose nothing, and is judged on the test phrasings, and on the validation phrasings, too, as another hand wrote them.
Each of the three answers messages of its own: what they get right together is of three times as many messages.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache, partial

import torch
from judging import N_JUDGED, best, bracketed, copied, falling_to_zero, judged, part, share
from real_finetuning import controls, real
from runner import Work, completed, constants, fill, run, tables
from shop_baselines import LONGEST_REPLY, baselines

from gptcourse.corpora import shakespeare, support
from gptcourse.finetuning import (
    add_lora,
    encode_dialogues,
    finetune,
    freeze_all_but_last,
    generate_replies,
    reinit_embeddings,
    text_examples,
)
from gptcourse.model import GPT
from gptcourse.pretrained import load_pretrained
from gptcourse.training import DivergedError, History, TrainingConfig, evaluate
from gptcourse.views import set_dropout

STEPS, BATCH_SIZE, WARMUP_STEPS, N_EVALUATIONS = 800, 4, 40, 4
LONG, LONG_STEPS = "all weights, longer", 3200  # with the rate of "all weights"
N_TRAIN, N_VALIDATION = 12_000, 48  # dialogues
N_PLAYS = 5_000  # characters of the held-out plays
REPLAY_SHARE, REPLAY_LENGTH = 0.5, 64  # pieces of the plays for each dialogue, and their tokens
TRIAL_SEED, SEEDS = 10, (0, 1, 2)
(WAYS,) = tables("finetuning", "WAYS")
TARGETS = {"attention": ("c_attn",), "all linear": ("c_attn", "c_proj", "c_fc")}


@cache
def plays_tokens() -> torch.Tensor:
    """Return the plays as the bundled model reads them."""
    return torch.tensor(load_pretrained("shakespeare-5m")[1].encode(shakespeare().train))


def held_out_plays(tokenizer) -> torch.Tensor:
    """Return a piece of the plays that no model has read."""
    return torch.tensor(tokenizer.encode(shakespeare().validation[:N_PLAYS]))


def new_tokens(vocab_size: int) -> list[int]:
    """Return the tokens that the plays lack: those of the chat format, digits, words of the shop."""
    return (torch.bincount(plays_tokens(), minlength=vocab_size) == 0).nonzero()[:, 0].tolist()


def prepared(way: str, base: GPT, new: list[int]) -> GPT:
    """Return the model as the way begins: frozen or not, with fresh embeddings for the tokens that the plays lack.

    Without dropout: in so few steps hardly a dialogue is seen twice.
    """
    if way == "from scratch":
        return GPT(replace(base.config, dropout=0.0))
    model = copy.deepcopy(base)
    set_dropout(model, 0.0)
    reinit_embeddings(model, new)
    if way.startswith("the last 2 blocks"):
        freeze_all_but_last(model, 2)
    if way.startswith("LoRA"):
        _, rank, targets, *_ = way.split(", ")
        add_lora(model, rank=int(rank.removeprefix("rank ")), targets=TARGETS[targets])
    if way in ("the embeddings", "the new embeddings"):
        model.requires_grad_(False)
    if way.endswith("embeddings"):
        model.wte.weight.requires_grad_(True)
    if way.endswith("new embeddings"):
        model.wte.weight.register_hook(partial(only_rows, rows=new))
    return model


def opened(way: str, seed: int) -> tuple[GPT, GPT, object]:
    """Return the model as the way begins, the bundled model that it was made from, and the tokenizer."""
    torch.manual_seed(seed)
    base, tokenizer = load_pretrained("shakespeare-5m")
    return prepared(way, base, new_tokens(base.config.vocab_size)), base, tokenizer


def only_rows(gradient: torch.Tensor, rows: list[int]) -> torch.Tensor:
    """Return a gradient that is zero outside these rows: with no weight decay, the others stay."""
    kept = torch.zeros_like(gradient)
    kept[rows] = gradient[rows]
    return kept


def n_trained(way: str, model: GPT, new: list[int]) -> int:
    """Return the number of weights that change."""
    total = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    frozen = (model.config.vocab_size - len(new)) * model.config.n_embd
    return total - frozen if way.endswith("new embeddings") else total


def config_of(rate: float, seed: int, steps: int) -> TrainingConfig:
    """Return the settings of a run."""
    return falling_to_zero(steps, BATCH_SIZE, rate, seed, WARMUP_STEPS, N_EVALUATIONS)


@cache
def dialogue_examples() -> list:
    """Return the training dialogues as examples."""
    return encode_dialogues(load_pretrained("shakespeare-5m")[1], support(N_TRAIN))


def examples_of(way: str) -> list:
    """Return what the way learns from: dialogues, and with replay pieces of the plays."""
    if way.endswith("replay"):
        return dialogue_examples() + text_examples(plays_tokens(), round(REPLAY_SHARE * N_TRAIN), REPLAY_LENGTH)
    return dialogue_examples()


def tuned(way: str, rate: float, seed: int, steps: int, look=None) -> tuple[dict, GPT, object]:
    """Fine-tune once; return the row of a trial, the model and the tokenizer.

    `look(model, history)` is called after each step.
    """
    model, base, tokenizer = opened(way, seed)
    trained = n_trained(way, model, new_tokens(base.config.vocab_size))
    row = {"way": way, "rate": rate, "seed": seed, "steps": steps, "trained": trained}
    validation = encode_dialogues(tokenizer, support(N_VALIDATION, split="validation"))
    options = {"validation": validation, "progress": False, "callback": look and partial(look, model)}
    try:
        history = completed(finetune(model, examples_of(way), config_of(rate, seed, steps), **options))
    except DivergedError:
        return row | {"validation_loss": None}, model, tokenizer
    return row | {"validation_loss": min(history.eval_loss)}, model, tokenizer


def trial(way: str, rate: float, seed: int, steps: int) -> dict:
    """Fine-tune once, to choose a rate: the test phrasings are not looked at."""
    return tuned(way, rate, seed, steps)[0]


def run_once(way: str, rate: float, seed: int, steps: int) -> dict:
    """Fine-tune once; return what was measured, on the way and at the end."""
    plays, path = held_out_plays(load_pretrained("shakespeare-5m")[1]), []

    def look(model: GPT, history: History) -> None:
        if len(history.eval_step) > len(path):
            path.append([history.eval_step[-1], history.eval_loss[-1], evaluate(model, plays)])

    row, model, tokenizer = tuned(way, rate, seed, steps, look)
    row |= {"path": path, "plays_after": evaluate(model, plays)}
    return row | {split: judged_on(split, seed, model, tokenizer) for split in N_JUDGED}


def judged_on(split: str, seed: int, model: GPT, tokenizer) -> dict:
    """Return what a model's replies to the messages of a split are worth that are those of its seed."""
    n = N_JUDGED[split] // len(SEEDS)
    dialogues = support((seed + 1) * n, split=split)[seed * n :]
    replies = generate_replies(model, tokenizer, [d.message for d in dialogues], max_new_tokens=LONGEST_REPLY)
    return judged(dialogues, replies, split, model, tokenizer)


def ways(work: Work) -> dict:
    """Choose a rate for each way, then make the runs with the three seeds; one way after the other."""
    trials, runs = [], []
    for way, start in WAYS.items():
        if way == LONG:
            runs += seeds(work, LONG, runs[0]["rate"], LONG_STEPS)
            continue
        rows = bracketed(partial(tried, work, way), start)
        trials += rows
        runs += seeds(work, way, best(rows)["rate"], STEPS)
    settings = {"steps": STEPS, "batch_size": BATCH_SIZE, "long_steps": LONG_STEPS, "n_train": N_TRAIN}
    return settings | work.piece(untuned) | {"trials": trials, "runs": runs}


def tried(work: Work, way: str, rate: float) -> dict:
    """Return the trial of a way at a rate."""
    return work.piece(trial, way, rate, TRIAL_SEED, STEPS)


def seeds(work: Work, way: str, rate: float, steps: int) -> list[dict]:
    """Return the runs of a way with the seeds that chose nothing."""
    return work.pieces((run_once, way, rate, seed, steps) for seed in SEEDS)


def untuned() -> dict:
    """Return the loss of the bundled model on the plays, and how many tokens of the vocabulary they lack."""
    base, tokenizer = load_pretrained("shakespeare-5m")
    plays = held_out_plays(tokenizer)
    lacking = len(new_tokens(base.config.vocab_size))
    return {"plays_before": evaluate(base, plays), "n_plays_tokens": len(plays), "n_new_tokens": lacking}


PARTS = {"ways": ways, "baselines": baselines, "real": real, "controls": controls}


def card(data: dict[str, dict]) -> str:
    """Return the card of the recorded experiments."""
    return fill("finetuning", tuple(PARTS), share=share, copied=copied, part=part, **constants(globals()), **data)


if __name__ == "__main__":
    run("finetuning", PARTS, card)
