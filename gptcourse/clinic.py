"""A clinic of sick training runs: recorded patients, what can be asked of them, and by what an illness shows.

`recipes/clinic.py` has trained every patient; the card beside the asset says with which fault. An experiment costs the
tokens that the model reads for it; what stands in the log of the run costs none.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

CLINIC = Path(str(files("gptcourse") / "assets" / "clinic"))
HEALTHY = "healthy"
RESUMED = 800  # the step after which every run was stopped, and resumed from its checkpoint


@dataclass(frozen=True)
class Patient:
    """A recorded run: `illness` is its diagnosis, `found` what was recorded, by name; losses in nats per character."""

    illness: str
    found: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.found[name]

    @property
    def loss(self) -> float:
        """The last validation loss."""
        return self["validation_loss"][-1]

    @property
    def peak_rate(self) -> float:
        """The highest learning rate of the run."""
        return max(self["rate"])

    @property
    def best_rate(self) -> float:
        """What its range test suggests."""
        return self["range_test"]["suggestion"]

    def update(self, step: int) -> dict[str, float]:
        """Return the size of the update of a recorded step, and the share of weights that it moved."""
        return next(update for update in self["updates"] if update["step"] == step)

    def median(self, name: str, begin: float, end: float) -> float:
        """Return the median of a curve between two shares of the run."""
        curve = self[name]
        return statistics.median(curve[int(begin * len(curve)) : int(end * len(curve))])


# ---- What can be asked of a patient


class Experiment(NamedTuple):
    """Something to find out: its name, its price in tokens, and the answer in a sentence."""

    name: str
    price: int
    answer: Callable[[Patient], str]


def _curves(patient: Patient) -> str:
    lowest = min(patient["validation_loss"])
    training = patient["training_loss"][-1]
    return f"training ends at {training:.2f}, validation at {patient.loss:.2f}; its lowest is {lowest:.2f}."


def _rate(patient: Patient) -> str:
    rates, middle = patient["rate"], len(patient["rate"]) // 2
    return (
        f"it begins with {rates[0]:.1e}, its highest is {patient.peak_rate:.1e}, before the resume it is "
        f"{rates[middle - 1]:.1e}, after it {rates[middle]:.1e}, at the end {rates[-1]:.1e}."
    )


def _gradient(patient: Patient) -> str:
    early, late = patient.median("gradient_norm", 0.1, 0.25), patient.median("gradient_norm", 0.75, 1)
    return f"its median is {early:.2f} in the first quarter, after the warm-up, and {late:.2f} in the last."


def _highest(patient: Patient) -> str:
    highest = patient["highest_loss"]
    return f"the highest loss of a single step in the last half is {max(highest[len(highest) // 2 :]):.2f}."


def _example(patient: Patient) -> str:
    shown = patient["example"]
    return f"the worst batch after the warm-up was that of step {shown['step']}, with a loss of {shown['loss']:.2f}."


def _updates(patient: Patient) -> str:
    before, after, last = (patient.update(step) for step in (RESUMED, RESUMED + 1, 2 * RESUMED))
    return (
        f"the last step before the resume changed a weight by {before['size']:.1e} (root mean square), the first "
        f"after it by {after['size']:.1e}; the last step of all moved {last['moved']:.0%} of the weights."
    )


def _future(patient: Patient) -> str:
    with_it, without = patient["future"]
    return (
        f"the 33rd character costs {with_it:.2f} nats in its whole window, {without:.2f} when what follows is cut off."
    )


def _fresh(patient: Patient) -> str:
    return f"{patient['fresh_loss']:.2f} nats on 20,000 characters of other plays; {patient.loss:.2f} in validation."


def _dead(patient: Patient) -> str:
    return (
        f"never above 0 on 20,000 characters: {' and '.join(f'{share:.0%}' for share in patient['dead'])} (by layer)."
    )


def _ends(patient: Patient) -> str:
    first, last = patient["ends"]
    return f"the model of the end has {first:.2f} on the run's first 20 batches and {last:.2f} on its last 20."


def _range_test(patient: Patient) -> str:
    return f"it suggests {patient.best_rate:.1e}; the run's highest rate is {patient.peak_rate:.1e}."


def _one_batch(patient: Patient) -> str:
    return f"after 200 steps on the same batch, its loss is {patient['one_batch'][-1]:.2f}."


def _slower(patient: Patient) -> str:
    slower, own = patient["slower"]["validation_loss"], patient["validation_loss"]
    return f"{slower[-1]:.2f} after a quarter of the run; with its own rate {own[len(slower) - 1]:.2f}."


def _other_seed(patient: Patient) -> str:
    other, own = patient["other_seed"]["validation_loss"], patient["validation_loss"]
    return f"{other[-1]:.2f} after a quarter of the run; with the first seed {own[len(other) - 1]:.2f}."


EXPERIMENTS = {
    "curves": Experiment("the curves", 0, _curves),
    "rate": Experiment("log: learning rate", 0, _rate),
    "gradient_norm": Experiment("log: gradient norm", 0, _gradient),
    "highest_loss": Experiment("log: highest single losses", 0, _highest),
    "example": Experiment("print the worst batch", 512, _example),
    "updates": Experiment("weights before and after a step", 1_536, _updates),
    "future": Experiment("cut off the future", 5_952, _future),
    "sample": Experiment("let it write", 7_680, lambda _: "see what it writes."),
    "fresh_loss": Experiment("measure on fresh text", 20_000, _fresh),
    "dead": Experiment("count dead units", 20_000, _dead),
    "ends": Experiment("its first and last batches", 20_480, _ends),
    "range_test": Experiment("range test", 102_400, _range_test),
    "one_batch": Experiment("learn one batch by heart", 102_400, _one_batch),
    "slower": Experiment("rate / 4, a quarter of the run", 204_800, _slower),
    "other_seed": Experiment("another seed, a quarter of the run", 204_800, _other_seed),
}


# ---- How an illness shows


class Sign(NamedTuple):
    """By what an illness shows: an experiment, a number that it gives, from where to where it is sick, and words."""

    experiment: str
    measure: Callable[[Patient], float]
    low: float
    high: float
    says: str

    def shows(self, patient: Patient) -> bool:
        """Whether a patient has this sign."""
        return self.low <= self.measure(patient) <= self.high


INF = math.inf
SIGNS = {
    "rate too high": Sign(
        "range_test", lambda p: p.peak_rate / p.best_rate, 4, INF,
        "With a rate that is too high, the range test breaks far below the rate of the run.",
    ),
    "rate too low": Sign(
        "range_test", lambda p: p.peak_rate / p.best_rate, 0, 0.1,
        "With a rate that is too low, the range test goes on falling at rates far above that of the run.",
    ),
    "no warm-up": Sign(
        "rate", lambda p: p["rate"][0] / p.peak_rate, 0.9, 1,
        "Without a warm-up, the run begins with its highest rate, on moments that are an average of hardly anything.",
    ),
    "overfitting": Sign(
        "curves", lambda p: p.loss - min(p["validation_loss"]), 0.1, INF,
        "When a model overfits, the validation loss turns and rises, while the training loss goes on falling.",
    ),
    "low precision": Sign(
        "updates", lambda p: p.update(2 * RESUMED)["moved"], 0, 0.5,
        "When weights are kept in too few bits, updates are rounded away: most weights do not move any more.",
    ),
    "unshuffled data": Sign(
        "ends", lambda p: abs(p["ends"][0] - p["ends"][1]), 0.15, INF,
        "When data come in an order, the model of the end does worse on what came first than on what came last.",
    ),
    "leaking mask": Sign(
        "future", lambda p: p["future"][1] - p["future"][0], 0.3, INF,
        "With a leaking mask, the loss rises as soon as the future is cut off: the model has read the answer.",
    ),
    "leaking split": Sign(
        "fresh_loss", lambda p: p["fresh_loss"] - p.loss, 0.3, INF,
        "With a leaking split, the model does well on the validation text alone, and badly on any fresh one.",
    ),
    "bad batches": Sign(
        "highest_loss", lambda p: max(p["highest_loss"][len(p["highest_loss"]) // 2 :]) - p.loss, 1, INF,
        "Bad batches show as single steps with a loss that no step around them has, again and again.",
    ),
    "dead units": Sign(
        "dead", lambda p: max(p["dead"]), 0.8, 1,
        "Dead units are never above 0, whatever the text: no gradient goes through them, and they stay as they are.",
    ),
    "padding in the loss": Sign(
        "example", lambda p: p["example"]["blank"], 0.1, 1,
        "When padding counts, many targets are padding: they are easily learned, and make the training loss small.",
    ),
    "unshifted targets": Sign(
        "example", lambda p: p["example"]["same"], 0.9, 1,
        "With unshifted targets each target is the very character that stands in its input: there is nothing to guess.",
    ),
    "stale schedule": Sign(
        "rate", lambda p: max(p["rate"][len(p["rate"]) // 2 :]) / p["rate"][len(p["rate"]) // 2 - 1], 1.2, INF,
        "With a stale schedule the rate after the resume does not go on where it was before it.",
    ),
    "lost optimizer state": Sign(
        "updates", lambda p: p.update(RESUMED + 1)["size"] / p.update(RESUMED)["size"], 1.5, INF,
        "When the optimizer's state is lost, the first update after the resume is far larger, at the same rate.",
    ),
    "gradients not cleared": Sign(
        "gradient_norm", lambda p: p.median("gradient_norm", 0.75, 1), 5, INF,
        "When gradients are not cleared, each step adds to those before: the norm grows, or rests far above its start.",
    ),
}  # fmt: skip


def verdict(patient: Patient, diagnosis: str, bought: Collection[str]) -> str:
    """Return whether a diagnosis is right; if not, what that illness would look like, and where to look.

    What an experiment says is told only if it was bought.
    """
    sign = SIGNS.get(patient.illness)
    if diagnosis == patient.illness:
        return "Right: healthy. It has none of the signs." if sign is None else f"Right: {diagnosis}. {sign.says}"
    if diagnosis == HEALTHY:
        return f"Not healthy. One experiment that shows it: {EXPERIMENTS[sign.experiment].name}."
    guessed = SIGNS[diagnosis]
    experiment = EXPERIMENTS[guessed.experiment]
    if guessed.experiment not in bought:
        return f"Not {diagnosis}. {guessed.says} Ask for it: {experiment.name}, {experiment.price:,} tokens."
    if guessed.shows(patient):
        return f"Not {diagnosis}, though its sign is there: here it follows from something else. {guessed.says}"
    return f"Not {diagnosis}. {guessed.says} Here, {experiment.answer(patient)}"


@cache
def load_clinic(directory: str | Path = CLINIC) -> dict[str, Patient]:
    """Read the patients that the course ships, by their illness. Raises ValueError for a damaged folder."""
    try:
        runs, made, compared = (
            json.loads((Path(directory) / f"{part}.json").read_text(encoding="utf-8"))
            for part in ("patients", "experiments", "comparisons")
        )
        shared = {name: runs[name] for name in ("tokens", "validation_tokens")} | {"cure": compared["healthy"][0]}
        cures = {name: {"cure": losses} for name, losses in compared["cures"].items()}
        return {
            name: Patient(name, shared | cures.get(name, {}) | found | made[name])
            for name, found in runs["patients"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{directory} holds no whole clinic ({error}): give a folder that has one.") from error
