"""A clinic of sick training runs: recorded patients, what can be asked of them, and by what an illness shows.

`recipes/clinic.py` has trained every patient; the card beside the asset says with which fault. An experiment costs the
tokens that the model reads for it; what stands in the log of the run costs none.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

from gptcourse.files import ASSETS, read_json
from gptcourse.images import visible

CLINIC = ASSETS / "clinic"
HEALTHY = "healthy"


class Experiment(NamedTuple):
    """What can be asked: its name, its price in tokens, and the answer, with the names of `Patient.numbers` in it."""

    name: str
    price: int
    says: str


class Sign(NamedTuple):
    """By what an illness shows: an experiment, one of its numbers, from where to where that is sick, and words."""

    experiment: str
    number: str
    low: float
    high: float
    says: str


EXPERIMENTS = {
    "curves": Experiment(
        "the curves", 0,
        "training ends at {training:.2f}, validation at {validation:.2f}; its lowest is {lowest:.2f}.",
    ),
    "rate": Experiment(
        "log: learning rate", 0,
        "first {first_rate:.1e}, highest {peak_rate:.1e}, before the resume {rate_before:.1e}, after it "
        "{rate_after:.1e}, in the end {last_rate:.1e}.",
    ),
    "gradient_norm": Experiment(
        "log: gradient norm", 0,
        "its median is {early_norm:.2f} in the first quarter, after the warm-up, and {late_norm:.2f} in the last.",
    ),
    "highest_loss": Experiment(
        "log: highest single losses", 0, "the highest loss of a single step in the last half is {highest:.2f}."
    ),
    "example": Experiment(
        "print an example and its targets", 512, "of the first batch: {ids}… is to become {targets}…"
    ),
    "updates": Experiment(
        "weights before and after a step", 1_536,
        "the last step before the resume changes a weight by {update_before:.1e} (root mean square), the first after "
        "it by {update_after:.1e}; the last step of all moves {moved:.0%} of the weights.",
    ),
    "future": Experiment(
        "cut off the future", 5_952,
        "the 33rd character costs {with_future:.2f} nats in its whole window, {without_future:.2f} when what follows "
        "is cut off.",
    ),
    "sample": Experiment("let it write", 7_680, "{sample}…"),
    "fresh_loss": Experiment(
        "measure on fresh text", 20_000,
        "{fresh:.2f} nats on 20,000 characters that nothing has read, {validation:.2f} in validation.",
    ),
    "dead": Experiment(
        "count dead units", 20_000, "{dead_first:.0%} and {dead_second:.0%} of a layer's units are never above 0."
    ),
    "ends": Experiment(
        "its first and last batches", 20_480,
        "the model of the end has {first_batches:.2f} on the first 20 batches of the run, {last_batches:.2f} on the "
        "last 20.",
    ),
    "range_test": Experiment(
        "range test", 102_400, "it suggests {suggested:.1e}; the run's highest rate is {peak_rate:.1e}."
    ),
    "one_batch": Experiment(
        "learn one batch by heart", 102_400, "after 200 steps on the same batch, its loss is {one_batch:.2f}."
    ),
    "slower": Experiment(
        "rate / 4, a quarter of the run", 204_800, "{slower:.2f} after a quarter; with its own rate, {quarter:.2f}."
    ),
    "other_seed": Experiment(
        "another seed, a quarter of the run", 204_800,
        "{other:.2f} after a quarter; with the first seed, {quarter:.2f}.",
    ),
}  # fmt: skip
SIGNS = {
    "rate too high": Sign(
        "range_test", "excess", 5, math.inf,
        "With a rate that is too high, the range test breaks far below the rate of the run.",
    ),
    "rate too low": Sign(
        "range_test", "excess", 0, 0.07,
        "With a rate that is too low, the range test goes on falling at rates far above that of the run.",
    ),
    "no warm-up": Sign(
        "rate", "start", 0.9, 1,
        "Without a warm-up, the run begins with its highest rate, on moments that are an average of hardly anything.",
    ),
    "overfitting": Sign(
        "curves", "rise", 0.1, math.inf,
        "When a model overfits, the validation loss turns and rises, while the training loss goes on falling.",
    ),
    "low precision": Sign(
        "updates", "moved", 0, 0.5,
        "When weights are kept in too few bits, updates are rounded away: most weights do not move any more.",
    ),
    "unshuffled data": Sign(
        "ends", "forgotten", 0.5, math.inf,
        "When data come in an order, the model of the end does worse on what came first than on what came last.",
    ),
    "leaking mask": Sign(
        "future", "foreseen", 0.3, math.inf,
        "With a leaking mask, the loss rises as soon as the future is cut off: the model has read the answer.",
    ),
    "leaking split": Sign(
        "fresh_loss", "known", 0.3, math.inf,
        "With a leaking split, the model does well on the validation text alone, and badly on any fresh one.",
    ),
    "bad batches": Sign(
        "highest_loss", "spike", 2, math.inf,
        "Bad batches show as single steps with a loss that no step around them has, again and again.",
    ),
    "dead units": Sign(
        "dead", "dead", 0.8, 1,
        "Dead units are never above 0, whatever the text: no gradient goes through them, and they stay as they are.",
    ),
    "padding in the loss": Sign(
        "example", "blank", 0.1, 1,
        "When padding counts, many targets are padding: they are easily learned, and make the training loss small.",
    ),
    "unshifted targets": Sign(
        "example", "same", 0.9, 1,
        "With unshifted targets each target is the very character that stands in its input: there is nothing to guess.",
    ),
    "stale schedule": Sign(
        "rate", "rate_jump", 1.2, math.inf,
        "With a stale schedule the rate after the resume does not go on where it was before it.",
    ),
    "lost optimizer state": Sign(
        "updates", "update_jump", 1.5, math.inf,
        "When the optimizer's state is lost, the first update after the resume is far larger, at the same rate.",
    ),
    "gradients not cleared": Sign(
        "gradient_norm", "late_norm", 5, math.inf,
        "When gradients are not cleared, each step adds to those before, and the norm grows far beyond a step's own.",
    ),
}  # fmt: skip


def numbers_of_a_run(found: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers that need no other run, out of what was recorded of one."""
    loss, (with_future, without_future), (first, last) = found["validation_loss"][-1], found["future"], found["ends"]
    return _of_the_log(found) | {
        "ids": visible(found["example"]["ids"][:24]),
        "targets": visible(found["example"]["targets"][:24]),
        "same": found["example"]["same"],
        "blank": found["example"]["blank"],
        "with_future": with_future,
        "without_future": without_future,
        "foreseen": without_future - with_future,
        "sample": " ".join(found["sample"].split())[:70],
        "fresh": found["fresh_loss"],
        "known": found["fresh_loss"] - loss,
        "dead_first": found["dead"][0],
        "dead_second": found["dead"][1],
        "dead": max(found["dead"]),
        "first_batches": first,
        "last_batches": last,
        "forgotten": first - last,
    }


def _of_the_log(found: dict[str, Any]) -> dict[str, float]:
    rate, norm, validation = found["rate"], found["gradient_norm"], found["validation_loss"]
    half, quarter, highest = len(rate) // 2, len(norm) // 4, max(found["highest_loss"][len(rate) // 2 :])
    size = {update["step"]: update["size"] for update in found["updates"]}
    before = statistics.median_low(step for step in size if step + 1 in size)  # the resume, in the middle
    return {
        "training": found["training_loss"][-1],
        "validation": validation[-1],
        "lowest": min(validation),
        "rise": validation[-1] - min(validation),
        "first_rate": rate[0],
        "peak_rate": max(rate),
        "start": rate[0] / max(rate),
        "rate_before": rate[half - 1],
        "rate_after": rate[half],
        "last_rate": rate[-1],
        "rate_jump": max(rate[half:]) / rate[half - 1],
        "early_norm": statistics.median(norm[quarter // 2 : quarter]),
        "late_norm": statistics.median(norm[-quarter:]),
        "highest": highest,
        "spike": highest - validation[-1],
        "update_before": size[before],
        "update_after": size[before + 1],
        "update_jump": size[before + 1] / size[before],
        "moved": found["updates"][-1]["moved"],
    }


@dataclass(frozen=True)
class Patient:
    """A recorded run: `illness` is its diagnosis, `found` what was recorded, by name; losses in nats per character."""

    illness: str
    found: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.found[name]

    @cached_property
    def numbers(self) -> dict[str, Any]:
        """What the experiments give, by the names in their answers, and what the signs are read from."""
        slower, other = (self[name]["validation_loss"] for name in ("slower", "other_seed"))
        suggested = self["range_test"]["suggestion"] or self["range_test"]["rates"][-1]  # nothing broke
        return numbers_of_a_run(self.found) | {
            "suggested": suggested,
            "excess": max(self["rate"]) / suggested,
            "one_batch": self["one_batch"][-1],
            "slower": slower[-1],
            "other": other[-1],
            "quarter": self["validation_loss"][len(slower) - 1],
        }

    def answer(self, experiment: str) -> str:
        """Return the answer to an experiment, in a sentence."""
        return EXPERIMENTS[experiment].says.format_map(self.numbers)

    def has_sign(self, illness: str) -> bool:
        """Whether the sign of an illness shows; it may do so beside another one, or follow from it."""
        sign = SIGNS[illness]
        return sign.low <= self.numbers[sign.number] <= sign.high


def verdict(patient: Patient, diagnosis: str, bought: Collection[str]) -> str:
    """Return whether a diagnosis is right; if not, how that illness would look. Only what was bought is told."""
    if diagnosis == patient.illness == HEALTHY:
        return "Right: healthy. It has none of the signs."
    if diagnosis == HEALTHY:
        return f"Not healthy. What shows it: {EXPERIMENTS[SIGNS[patient.illness].experiment].name}."
    sign = SIGNS[diagnosis]
    name, price, _ = EXPERIMENTS[sign.experiment]
    if diagnosis == patient.illness:
        return f"Right: {diagnosis}. {sign.says} The cheapest that shows it: {name}, {price:,} tokens."
    if sign.experiment not in bought:
        return f"Not “{diagnosis}”. {sign.says} Ask for it: {name}, {price:,} tokens."
    if patient.has_sign(diagnosis):
        return f"Not “{diagnosis}” alone: its sign is there, but something else comes before it. {sign.says}"
    return f"Not “{diagnosis}”. {sign.says} Here, {patient.answer(sign.experiment)}"


@cache
def load_clinic(directory: str | Path = CLINIC) -> dict[str, Patient]:
    """Read the patients that the course ships, by their illness. Raises ValueError for a damaged folder."""
    try:
        runs, made, again, compared = (
            read_json(Path(directory) / f"{part}.json") for part in ("patients", "experiments", "reruns", "comparisons")
        )
        shared = {name: runs[name] for name in ("tokens", "validation_tokens")} | {"cure": compared["healthy"][0]}
        cures = {name: {"cure": losses} for name, losses in compared["cures"].items()}
        return {
            name: Patient(name, shared | cures.get(name, {}) | found | made[name] | again[name])
            for name, found in runs["patients"].items()
        }
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{directory} holds no whole clinic ({error}): give a folder that has one.") from error
