"""Judge replies to the shop's messages, and count for each phrasing: what the parts of the fine-tuning recipe share."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache

from runner import finite

from gptcourse.config import TrainingConfig
from gptcourse.evaluation import WORD, bootstrap_interval, distinct_n, naive_bayes, reply_report, wilson_interval
from gptcourse.finetuning import count_targets, encode_dialogues, reply_loss
from gptcourse.support import Dialogue, default_grammar, parse, phrasing, request_of, support

N_JUDGED = {"test": 450, "validation": 300}  # dialogues
N_READ = 4_000  # training replies


@cache
def phrasings_of(split: str) -> list[str]:
    """Return the requests of a split, without greetings and with open slots, in the grammar's order."""
    return [
        request
        for templates in default_grammar().messages[split].values()
        for request in dict.fromkeys(request_of(template, templates) for template in templates)
    ]


def judged(
    dialogues: Sequence[Dialogue], replies: Sequence[str], split: str, model=None, tokenizer=None, n_loss=None
) -> dict:
    """Return how many replies are right, in all and for each phrasing; with a model its loss and the floor, too.

    The loss and the floor are those of the first `n_loss` dialogues (None: of all).
    """
    reports = [reply_report([d], [reply]) for d, reply in zip(dialogues, replies, strict=True)]
    counted = {request: [0, 0] for request in phrasings_of(split)}
    for d, report in zip(dialogues, reports, strict=True):
        pair = counted[phrasing(d, split)]
        pair[0], pair[1] = pair[0] + int(report.intents), pair[1] + 1
    values = [len(d.slots) for d in dialogues]
    copied = sum(round(report.slots * n) for report, n in zip(reports, values, strict=True))
    row = {"n": len(dialogues), "slots": [copied, sum(values)], "phrasings": list(counted.values())}
    for name in ("intents", "allowed", "loops"):
        row[name] = int(sum(getattr(report, name) for report in reports))
    if model is None:
        return row | {"loss": None, "floor": None}
    examples = encode_dialogues(tokenizer, dialogues[:n_loss])
    floor = -sum(d.log_prob for d in dialogues[:n_loss]) / count_targets(examples)
    return row | {"loss": reply_loss(model, examples), "floor": floor}


def n_read(dialogues: Sequence[Dialogue], replies: Sequence[str]) -> int:
    """Return from how many replies naive Bayes, which has read the training replies, tells what the message wanted.

    A reply in other words than the grammar's can be about the right thing: a milder judge than `reply_report`.
    """
    return _n_right(dialogues, naive_bayes([(d.reply, d.intent) for d in _training()], replies))


def n_read_beyond(dialogues: Sequence[Dialogue], replies: Sequence[str]) -> int:
    """Return what `n_read` does from those words of each reply that its message lacks: an echo has none.

    The judge has read the training replies in the same way.
    """
    known = [(beyond(d.message, d.reply), d.intent) for d in _training()]
    new = [beyond(d.message, reply) for d, reply in zip(dialogues, replies, strict=True)]
    return _n_right(dialogues, naive_bayes(known, new))


def beyond(message: str, reply: str) -> str:
    """Return the words of a reply that its message lacks."""
    given = set(WORD.findall(message.lower()))
    return " ".join(word for word in WORD.findall(reply.lower()) if word not in given)


def _n_right(dialogues, intents):
    return sum(found == d.intent for d, found in zip(dialogues, intents, strict=True))


@cache
def _training():
    return support(N_READ)


def share(reports: Sequence[dict]) -> str:
    """Return "right (Wilson's interval; the interval over phrasings)" of the intents of some reports together."""
    by_phrasing = zip(*(report["phrasings"] for report in reports), strict=True)
    pairs = [[sum(column) for column in zip(*counts, strict=True)] for counts in by_phrasing]
    right, n = (sum(column) for column in zip(*pairs, strict=True))
    groups = [i for i, (_, total) in enumerate(pairs) for _ in range(total)]
    values = [float(place < hits) for hits, total in pairs for place in range(total)]
    ends = (*wilson_interval(right, n), *bootstrap_interval(values, n=2000, groups=groups))
    a, b, c, d = (f"{100 * end:.0f}" for end in ends)
    return f"{right / n:.0%} ({a}–{b}; {c}–{d})"


def copied(reports: Sequence[dict]) -> str:
    """Return "copied (Wilson's interval)" of the customers' values in some reports together."""
    return _shown(*(sum(column) for column in zip(*(report["slots"] for report in reports), strict=True)))


def part(rows: Sequence[dict], count: str) -> str:
    """Return "share (Wilson's interval)" of a count that rows hold beside their report, of all their messages."""
    return _shown(sum(row[count] for row in rows), sum(row["judged"]["n"] for row in rows))


def _shown(right, n):
    low, high = wilson_interval(right, n)
    return f"{right / n:.0%} ({100 * low:.0f}–{100 * high:.0f})"


# ---- Two replies to one message


def log_prob(message: str, reply: str) -> float | None:
    """Return log p(reply | message) under the grammar, or None if it never gives this reply."""
    try:
        return parse(message, reply).log_prob
    except ValueError:
        return None


def points(dialogue: Dialogue, reply: str) -> tuple[float, ...]:
    """Return four numbers from 0 to 1 for what a shop wants of any reply, without the grammar's sentences.

    The share of the customer's values that it repeats, exact; and one point each if it has no number that the customer
    did not give, says no four words twice, and ends with the end of a sentence.
    """
    numbers = set(re.findall(r"\d{3,}", reply)) - set(re.findall(r"\d{3,}", dialogue.message))
    return reply_report([dialogue], [reply]).slots, not numbers, distinct_n([reply], 4) == 1, ends(reply)


def ends(reply: str) -> bool:
    """Return whether a reply ends with the end of a sentence: one that was cut off seldom does."""
    return reply.rstrip().endswith((".", "!", "?"))


def compared(before: Sequence, after: Sequence) -> dict[str, int]:
    """Return how often each of two models has the higher value, None being the lowest, and how often neither."""
    ranks = [
        tuple(-float("inf") if value is None else value for value in pair) for pair in zip(before, after, strict=True)
    ]
    return {
        "after": sum(b < a for b, a in ranks),
        "before": sum(b > a for b, a in ranks),
        "tie": sum(b == a for b, a in ranks),
    }


# ---- Runs, and their rates


def falling_to_zero(
    steps: int, batch_size: int, rate: float, seed: int, warmup_steps: int, n_evaluations: int
) -> TrainingConfig:
    """Return the settings of a run: a warm-up, then straight down to zero.

    Without weight decay, so that a weight which gets no gradient stays.
    """
    return TrainingConfig(
        steps=steps,
        batch_size=batch_size,
        learning_rate=rate,
        seed=seed,
        warmup_steps=min(warmup_steps, steps // 2),
        lr_scheduler_type="linear",
        min_lr_ratio=0.0,
        weight_decay=0.0,
        eval_steps=max(1, steps // n_evaluations),
    )


def bracketed(attempt: Callable[[float], dict], start: float) -> list[dict]:
    """Return attempts at rates that differ by a factor of two, the lowest first; the best has a worse one on each side.

    `attempt(rate)` returns a row with "validation_loss", None if the run diverged.
    """
    rates = [start / 2, start, 2 * start]
    while True:
        rows = [attempt(rate) for rate in rates]
        place = rows.index(best(rows))
        if 0 < place < len(rates) - 1:
            return rows
        rates = [rates[0] / 2, *rates] if place == 0 else [*rates, 2 * rates[-1]]


def best(rows: Sequence[dict]) -> dict:
    """Return the row with the lowest loss on the validation phrasings."""
    return min(rows, key=lambda row: finite(row["validation_loss"]))
