"""`tune`: the tuning playbook as one call, from the largest batch that fits to a decision that holds.

It measures, brackets the learning rate, searches, widens what ended at its edge, and confirms with fresh seeds on data
that no choice was made on. Every run is kept in Optuna's journal and never made twice; as each decision is a function
of the runs before it, calling `tune` again *is* going on.

The rate is bracketed by a ladder of short runs, each with its own decay, and not by a range test. There the loss at a
rate depends on all lower rates before it, and its minimum lies on a plateau, where the seed decides: two seeds differed
by a factor of seven. The ladder measures what is asked for, the loss at the end of a run.

The points of the search are Sobol's, scrambled (torch's engine: Optuna's QMCSampler needs SciPy, and draws choices at
random). Source: Godbole et al. (2023), "Deep Learning Tuning Playbook" (scientific, nuisance and fixed settings; search
before exploitation; boundaries; when to adopt).
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.quasirandom import SobolEngine

from gptcourse.checks import BELOW_ONE, INSIDE, POSITIVE, SEED, SHARE, An, check_lengths, check_numbers, checked, plain
from gptcourse.config import NUMBERS
from gptcourse.decision import DecisionRecord, Settings, listed, shorter
from gptcourse.studies import distributions, open_study, quiet_optuna
from gptcourse.subject import DERIVED, TRAINING, Subject
from gptcourse.throughput import TIMED

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import FloatDistribution

RUNS = 32  # full runs that a budget is divided into, unless it says how long a run is
SPACE = ("learning_rate", "batch_size", "weight_decay", *DERIVED)  # the axes that have a default range
MIN_STEPS = 32  # of a run: a batch that leaves fewer is of no use
LADDER, LADDER_STEPS = 1 / 8, 64  # the length of a rung: a share of a full run, and steps that it has at least
MOST_RUNGS = 11
AGAIN = 3  # trials that are run once more before the best is taken
END = 1 / 3  # of an axis, where the best trials lie if it is too short
MOST_TRIALS = 512
FASTER = 1.1  # how much bfloat16 must gain


@dataclass(frozen=True)
class Budget:
    """What a whole tuning may cost: minutes, or tokens of a text, or examples of other data; one of the three.

    `run` is the length of a full run in the same unit (None: one of RUNS parts). With minutes all runs take the same
    time, so that a faster batch size trains on more; with tokens or examples all train on the same number. Raises
    ValueError.
    """

    minutes: float | None = None
    tokens: int | None = None
    examples: int | None = None
    run: float | None = None

    def __post_init__(self):
        given = {name: POSITIVE(name, amount) for name, amount in vars(self).items() if amount is not None}
        vars(self).update({name: plain(amount) for name, amount in vars(self).items()})
        run = given.pop("run", 0)
        if len(given) != 1:
            raise ValueError("A budget is a number of minutes, of tokens or of examples: give one of them.")
        if run >= (amount := min(given.values())):
            raise ValueError(f"A run of {run:g} does not fit into a budget of {amount:g}.")

    @property
    def total(self) -> float:
        """The budget, with minutes in seconds."""
        return self.minutes * 60 if self.minutes else self.tokens or self.examples

    @property
    def full_run(self) -> float:
        """The length of a full run, in the same unit."""
        return self.total / RUNS if self.run is None else self.run * (60 if self.minutes else 1)


@quiet_optuna()
def tune(
    model_or_factory: nn.Module | Callable[..., nn.Module],
    data: Any,
    budget: Budget,
    *,
    objective: Callable[[nn.Module, Any], float] | None = None,
    space: Mapping[str, Any] | None = None,
    scientific: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
    seeds: int = 3,
    storage: str | Path | None = None,
    seed: int = 0,
    device=None,
    progress: bool = True,
) -> DecisionRecord:
    """Tune the training of a model within a budget, and return the record of the decision.

    Args:
        model_or_factory: a model, of which each run trains a copy, or a function make(seed, **settings) of a new one.
        data: a text in token ids (n,), examples of `finetune` or tensors (inputs, targets), which are split as `parts`
            says; or a dict of the parts "train", "choose" and "confirm".
        objective: objective(model, part) -> float, lower is better. None: the mean loss.
        space: for each setting (see `subject`) Optuna's distribution, a list of choices, or None: the default range.
        scientific: the axes that the question is about; the others are nuisance settings, and all else is fixed.
        defaults: the settings to beat, where they differ from FROM_SCRATCH (of a function) or FINE_TUNING.
        seeds: fresh seeds that confirm. storage: a file of finished runs, with which the same call goes on.

    The winner is adopted only if the 95 % interval of its gain lies above 0. With a budget in tokens or examples, the
    same seed on the same machine decides the same. Ctrl-C returns what there is. Raises ValueError.
    """
    space = dict.fromkeys(SPACE) if space is None else dict(space)
    subject = Subject(model_or_factory, data, objective, space, defaults or {}, SEED("seed", seed), device)
    lab = _Lab(subject, budget, space, scientific, seeds)
    with open_study(storage, "tuning", lab.identity) as study:
        lab.follow(study, storage, progress)
    return lab.record


class _Lab:
    """Follows the procedure on a subject: asks for runs, remembers them in a study, and writes the record."""

    def __init__(self, subject: Subject, budget: Budget, space: Settings, scientific: Sequence[str], seeds: int):
        self.subject, self.budget, self.space, self.scientific, self.seeds = subject, budget, space, scientific, seeds
        self.unit, self.batch = subject.kind.unit, subject.defaults["batch_size"]
        self._check()
        self.spent, self.axes, self.box = 0.0, {}, {}  # the box is what the next trials are drawn from
        self.record = DecisionRecord(self.unit, subject.defaults, "Not begun.", settings=subject.defaults)
        shown = {name: repr(axis) for name, axis in space.items()}
        self.identity = subject.identity | {"budget": vars(budget), "space": shown, "seeds": seeds}

    def _check(self) -> None:
        """Raise ValueError for what would fail later."""
        An(Budget)("budget", self.budget)
        if isinstance(self.seeds, bool) or not isinstance(self.seeds, int) or self.seeds < 3:
            raise ValueError(f"seeds is {self.seeds!r}, but an interval needs a whole number of 3 or more.")
        if not self.space:
            raise ValueError("The space is empty: name one axis or more, or leave it out.")
        if others := {*self.scientific} - self.space.keys():
            raise ValueError(f"{min(others)!r} is called scientific, but it is no axis of the space.")
        if not self.budget.minutes and not getattr(self.budget, self.unit):
            raise ValueError(f"This data is counted in {self.unit}: give Budget({self.unit}=…) or Budget(minutes=…).")
        if self.budget.total < (least := self.n_reserved + 10) * self.budget.full_run:
            run = shorter(0.99 * self.budget.total / least / (60 if self.budget.minutes else 1))
            raise ValueError(f"The budget must be {least} full runs or more: give it a `run` of {run} or less.")
        if missing := {name for name, axis in self.space.items() if axis is None} - {*SPACE}:
            raise ValueError(f"There is no default range for {min(missing)!r}: give a distribution or a list.")
        given = distributions({name: axis for name, axis in self.space.items() if axis is not None})
        for name, axis in given.items():
            if not all(isinstance(choice, str | int | float | None) for choice in getattr(axis, "choices", ())):
                raise ValueError(f"The choices of {name!r} must be numbers, texts, True, False or None.")
        if "sequence_length" in given:
            raise ValueError("sequence_length is no axis, as losses at other lengths are others: give it in defaults.")
        for u in (0.0, 0.382, 1.0):  # between its ends a distribution may give other kinds of numbers
            self.subject.config({name: value_at(axis, u) for name, axis in given.items()}, 0, 1e9)
        for name in given.keys() - self.subject.own:
            for choice in getattr(given[name], "choices", ()):
                self.subject.trainer({name: choice}, self.subject.seed)

    @property
    def n_reserved(self) -> int:
        """Full runs that are kept for after the search: its best once more, and both arms for each fresh seed."""
        return AGAIN + 1 + 2 * self.seeds

    def follow(self, study: optuna.Study, storage: str | Path | None, progress: bool) -> None:
        """Follow the procedure until its end or Ctrl-C, from what the study holds, and show what is spent meanwhile."""
        from tqdm.auto import tqdm

        self.study = study
        self.made = {trial.user_attrs["run"]: trial.user_attrs["result"] for trial in study.trials}
        total, unit = (round(self.budget.total), "s") if self.budget.minutes else (self.budget.total, f" {self.unit}")
        with tqdm(total=total, unit=unit, unit_scale=True, disable=not progress, dynamic_ncols=True) as self.bar:
            try:
                self.measure()
                self.settle_space()
                self.run("defaults", {}, self.subject.seed)
                self.search()
                self.confirm(self.best_again())
                self.record.finished = True
            except KeyboardInterrupt:
                on = f"They are kept in {storage}: the same call goes on" if storage else "With storage= it could go on"
                self.record.reason = f"Interrupted after {len(self.record.trials)} runs. {on}."
            self.say(self.record.reason)

    def say(self, line: str) -> None:
        """Show a line above the bar."""
        if not self.bar.disable:
            self.bar.write(line)

    def amount(self, batch_size: int) -> float:
        """Return the tokens or examples of a full run: with a budget in minutes, those that its time suffices for."""
        if self.budget.minutes is None:
            return self.budget.full_run
        sizes, speeds, _ = zip(*self.record.measured["throughput"], strict=True)
        speed = np.interp(math.log(batch_size), np.log(sizes), speeds)
        return float(speed * (self.budget.full_run - self.record.measured["evaluation_seconds"]))

    def run(self, phase: str, settings: Settings, seed: int, share: float = 1.0) -> float:
        """Return the loss of a run, made now or before; it is kept in the study, what was drawn with its axes."""
        from optuna.trial import create_trial

        key = json.dumps([phase, settings, seed, share])
        if key not in self.made:
            amount = share * self.amount(settings.get("batch_size", self.batch))
            self.made[key] = self.subject.train(settings, seed, amount, "confirm" if phase == "confirm" else "choose")
            kept = {"value": self.made[key]["loss"], "user_attrs": {"run": key, "result": self.made[key]}}
            drawn = {"params": settings, "distributions": self.box} if phase == "search" else {}
            self.study.add_trial(create_trial(**kept, **drawn))
        result = self.made[key]
        self.record.trials.append({"phase": phase, "settings": settings, "seed": seed} | result)
        self._spend(result)
        shown = listed(settings, " ") or "the defaults"
        self.say(f"  {phase}, seed {seed}: {shown}: {shorter(result['loss'])} ({result['outcome']})")
        return result["loss"]

    def _spend(self, result: dict) -> None:
        cost = result["seconds" if self.budget.minutes else "amount"]
        self.spent += cost
        self.bar.update(cost)

    def n_affordable(self) -> int:
        """Return how many full runs can be made before those that are reserved."""
        full = [t["seconds"] for t in self.record.trials if t["phase"] in ("defaults", "search")]
        cost = max(self.budget.full_run, statistics.fmean(full) if full and self.budget.minutes else 0.0)
        return int((self.budget.total - self.spent) / cost) - self.n_reserved

    # ---- The steps

    def measure(self) -> None:
        """Measure speed and memory at each batch size, whether bfloat16 is faster, and what an evaluation takes."""
        if "measured" not in self.study.user_attrs:
            self.study.set_user_attr("measured", self._measured())
        self.record.measured = measured = self.study.user_attrs["measured"]
        self._spend(measured)
        subject, rows, evaluation = self.subject, measured["throughput"], measured["evaluation_seconds"]
        subject.bf16, subject.largest = measured["bf16_gain"] > FASTER, rows[-1][0]
        fastest = max(rows, key=lambda row: row[1])
        self.say(f"Fastest: {shorter(fastest[1])} {self.unit} per second, with a batch of {fastest[0]}.")
        self.say(f"A batch of {subject.largest} fits; a larger one does not, or leaves a run too few steps.")
        if self.budget.minutes and 2 * evaluation > self.budget.full_run:
            took = f"{evaluation:.1f} s, and a run {self.budget.full_run:.1f} s"
            raise ValueError(f"To evaluate takes {took}: make the part to choose on smaller, or the runs longer.")
        steps = subject.config({}, 0, self.amount(self.batch)).steps
        if steps < MIN_STEPS / 4:
            advice = "make it longer, or the batch smaller"
            raise ValueError(f"A run with the default batch size has {steps} steps: {advice}.")

    def _measured(self) -> dict[str, Any]:
        subject, begin, rows = self.subject, time.perf_counter(), []
        asked = distributions({"batch_size": self.space.get("batch_size") or [self.batch]})["batch_size"]
        largest = max(self.batch, value_at(asked, 1.0), *getattr(asked, "choices", ()))
        for row in subject.throughput(2**power for power in count()):
            rows.append(row)
            per_step = 2 * row.batch_size * subject.kind.per_row  # of the next batch size
            cost = per_step / row.per_second if self.budget.minutes else per_step
            if row.batch_size >= largest and self.budget.full_run < MIN_STEPS * cost:
                break
        evaluated = time.perf_counter()
        subject.score(subject.model({}, subject.seed).to(subject.device), "choose")
        return {
            "throughput": rows,
            "evaluation_seconds": time.perf_counter() - evaluated,
            "bf16_gain": subject.bf16_gain(min(rows, key=lambda row: abs(math.log(row.batch_size / self.batch)))),
            "seconds": time.perf_counter() - begin,
            "amount": sum((TIMED + 1) * row.batch_size * subject.kind.per_row for row in rows),
        }

    def settle_space(self) -> None:
        """Give each axis that has none its default range; that of the rate is bracketed."""
        from optuna.distributions import FloatDistribution

        run, step, batch = self.amount(self.batch), self.batch * self.subject.kind.per_row, self.batch
        fitting = [size for size in (batch // 4, batch // 2, batch, 2 * batch) if 1 <= size <= self.subject.largest]
        ranges = {
            "batch_size": lambda: fitting or [batch],
            "weight_decay": lambda: FloatDistribution(0.01, 1.0, log=True),
            "warmup_ratio": lambda: FloatDistribution(0.0, 0.2),
            "beta2_half_life": lambda: FloatDistribution(max(run / 64, 2 * step), run / 2, log=True),
            "learning_rate": lambda: self.bracket(min(1.0, max(LADDER, LADDER_STEPS * step / run))),
        }
        self.axes = distributions({name: ranges[name]() if axis is None else axis for name, axis in self.space.items()})
        self.box = dict(self.axes)
        for name, axis in self.axes.items():
            role, continuous = "scientific" if name in self.scientific else "nuisance", not hasattr(axis, "choices")
            shown = {"role": role, "continuous": continuous, "log": continuous and axis.log, "widened": 0}
            self.record.axes[name] = shown
            self._note_range(name)

    def _note_range(self, name: str) -> None:
        axis = self.axes[name]
        choices = ", ".join(map(str, getattr(axis, "choices", ())))
        self.record.axes[name]["range"] = shown = choices or f"{shorter(axis.low)} to {shorter(axis.high)}"
        self.say(f"Axis {name}: {shown}")

    def bracket(self, share: float) -> FloatDistribution:
        """Climb a ladder of runs of this share of a full one; return the range from √10 below the best rate to above.

        Each rung is √10 above the last.
        """
        from optuna.distributions import FloatDistribution

        losses, rungs, seed = {}, [-1, 0, 1], self.subject.seed
        seeds = range(seed, seed + (2 if share <= 0.5 else 1))
        settings = {"warmup_ratio": 0.1} if "warmup_ratio" in self.space else {}

        def rate(rung: int) -> float:
            return _rounded(self.subject.defaults["learning_rate"] * 10 ** (rung / 2))

        while rungs:
            for rung in rungs:
                tried = {"learning_rate": rate(rung)} | settings
                losses[rung] = statistics.fmean(self.run("bracket", tried, seed, share) for seed in seeds)
            best = min(sorted(losses), key=losses.get)
            rungs = [rung for rung in (best - 1, best + 1) if rung not in losses and len(losses) < MOST_RUNGS]
        self.say(f"The best rate of short runs is about {rate(best):.2g}.")
        return FloatDistribution(rate(best - 1), rate(best + 1), log=True)

    def search(self) -> None:
        """Draw trials while the budget lasts, the first in the middle; widen an axis whose best is at its end."""
        sobol = SobolEngine(len(self.axes), scramble=True, seed=self.subject.seed)
        points = sobol.draw(MOST_TRIALS, dtype=torch.float64)
        points[0], seen = 0.5, []
        look = max(2 * min(self.n_affordable(), MOST_TRIALS) // 3, 4)
        for number, point in enumerate(points.tolist(), start=1):
            if self.n_affordable() < 1:
                break
            settings = {name: value_at(axis, u) for (name, axis), u in zip(self.box.items(), point, strict=True)}
            if settings not in seen:  # a space of few choices is exhausted some time
                self.run("search", settings, self.subject.seed)
                seen.append(settings)
            if number >= look and self.n_affordable() >= 1:
                look = number + max(look // 4, 2)
                self.widen()
        if self.n_affordable() >= 1:
            self.record.notes.append(f"The search ended after {len(seen)} trials, with a part of its budget left.")

    def widen(self) -> None:
        """Let the next trials be drawn beyond the axis that is most clearly best at its end, if one is."""
        self.box, strips = dict(self.axes), []
        for name, axis in self.axes.items():
            for up in (False, True) if not hasattr(axis, "choices") else ():
                mean, strip = self._place_of_best(name, up), beyond(name, axis, up)
                if mean <= END and strip is not None:
                    strips.append((mean, name, "upper" if up else "lower", strip))
        if strips:
            _, name, end, strip = min(strips, key=lambda found: found[0])
            axis, self.box[name] = self.axes[name], strip
            low, high = min(axis.low, strip.low), max(axis.high, strip.high)
            self.axes[name] = type(axis)(low, high, log=axis.log, step=axis.step)
            self.record.axes[name]["widened"] += 1
            self.say(f"The best trials lie at the {end} end of {name}: it is widened.")
            self._note_range(name)

    def _place_of_best(self, name: str, up: bool) -> float:
        """Return how far from an end of an axis the best three trials lie on average, from 0 to 1.

        Infinitely far if the median loss in the third at that end is not lower than in the middle third.
        """
        trials = [trial for trial in self.record.searched() if trial["loss"] < math.inf]
        places = [abs(up - place_of(self.axes[name], trial["settings"][name])) for trial in trials]
        outer, middle = (
            [trial["loss"] for trial, place in zip(trials, places, strict=True) if low < place <= high]
            for low, high in ((-math.inf, END), (END, 2 * END))
        )
        if not outer or (middle and statistics.median(outer) >= statistics.median(middle)):
            return math.inf
        return statistics.fmean(places[:3])

    def best_again(self) -> Settings:
        """Return the best of the defaults and the trials, after one more seed for the best few of them."""
        first = next(trial for trial in self.record.trials if trial["phase"] == "defaults")
        found = [first, *self.record.searched()[:AGAIN]]
        means = [trial["loss"] + self.run("again", trial["settings"], self.subject.seed + 1) for trial in found]
        winner = found[means.index(min(means))]["settings"]
        for name, value in winner.items():
            if not isinstance(value, str | bool) and value in (value_at(self.axes[name], u) for u in (0.0, 1.0)):
                where = "lies at the end of what was searched: a better one may lie beyond"
                self.record.notes.append(f"The best {name}, {shorter(value)}, {where}.")
        return winner

    def confirm(self, winner: Settings) -> None:
        """Compare the winner with the defaults on fresh seeds and data, and decide."""
        record = self.record
        record.not_tried = self._not_tried()
        if winner:
            seeds = [self.subject.seed + 2 + number for number in range(self.seeds)]
            pairs = [[self.run("confirm", settings, seed) for settings in ({}, winner)] for seed in seeds]
            old, new = map(list, zip(*pairs, strict=True))
            gain, interval, why = _gain(old, new)
            record.confirmed = {"seeds": seeds, "defaults": old, "winner": new, "gain": gain, "interval": interval}
            record.adopted = interval[0] > 0
            record.reason = f"The winner is {'' if record.adopted else 'not '}adopted: {why}."
        else:
            why = "On the part to choose on, no trial was better than the defaults over two seeds."
            record.reason = why if record.searched() else "The budget left no trial to search with: give a larger one."
        if record.adopted:
            over = "adam_beta2" if "beta2_half_life" in winner else None  # the half-life says it
            record.settings = {name: value for name, value in (record.defaults | winner).items() if name != over}
        amount = self.amount(record.settings["batch_size"])
        record.config = self.subject.config(record.settings, self.subject.seed, amount)

    def _not_tried(self) -> list[str]:
        """Return what this tuning says nothing about."""
        base = vars(self.subject.config({}, self.subject.seed, 1e9)) | self.subject.defaults
        tuned = self.axes.keys() | ({"adam_beta2"} if "beta2_half_life" in self.axes else set())
        fixed = [f"{name} = {base[name]}" for name in sorted(TRAINING - {*DERIVED} - tuned)]
        own = sorted(self.subject.own - self.axes.keys())
        return [
            f"Fixed settings: {', '.join(fixed)}.",
            *([f"Settings of the model that stayed as they are: {', '.join(own)}."] if own else []),
            "Another length of a run: the best rate, decay and half-life move with it.",
            "Other data, and stopping early.",
        ]


# ---- Axes: each one of Optuna's distributions


def value_at(axis: Any, u: float) -> Any:
    """Return the value at the place u, from 0 to 1."""
    if hasattr(axis, "choices"):
        return axis.choices[min(int(u * len(axis.choices)), len(axis.choices) - 1)]
    to, back = _scale(axis)
    value = back(to(axis.low) + u * (to(axis.high) - to(axis.low)))
    value = axis.low + axis.step * round((value - axis.low) / axis.step) if axis.step else _rounded(value)
    return min(max(value, axis.low), axis.high)


def place_of(axis: Any, value: float) -> float:
    """Return the place of a value, from 0 to 1."""
    to, _ = _scale(axis)
    low, high = to(axis.low), to(axis.high)
    return (to(value) - low) / (high - low) if high > low else 0.5


def beyond(name: str, axis: Any, up: bool) -> Any:
    """Return the strip beyond an axis, half as wide as it is; None where the setting has no values there."""
    to, back = _scale(axis)
    half = (to(axis.high) - to(axis.low)) / 2
    edge = back(to(axis.high) + half) if up else back(to(axis.low) - half)
    most = 1.0 if name == "warmup_ratio" or NUMBERS.get(name) in (SHARE, BELOW_ONE) else math.inf
    least, start = 1 if isinstance(axis.low, int) else 0.0, axis.high if up else axis.low
    edge = min(edge, most - 0.001) if up else max(edge, min(axis.low, least))
    way = axis.step and axis.step * int(abs(edge - start) / axis.step + 1e-9)  # whole steps: it stays on the grid
    edge = _rounded(edge) if way is None else start + way if up else start - way
    low, high = (axis.high, edge) if up else (edge, axis.low)
    return type(axis)(low, high, log=axis.log, step=axis.step) if low < high else None


def _scale(axis: Any) -> tuple[Callable, Callable]:
    """Return the function to the scale on which an axis is even, and the one back."""
    return (math.log, math.exp) if axis.log else (float, float)


def _rounded(value: float) -> float:
    """Return a number with three digits, as a record shows it."""
    return float(f"{value:.3g}")


# ---- Whether there is a gain


def _gain(old: list[float], new: list[float]) -> tuple[float, tuple[float, float], str]:
    """Return by how much the new losses are lower, seed by seed: mean, interval, and both in words."""
    for losses, broken, gain in ((new, "it", -math.inf), (old, "the defaults", math.inf)):
        if not all(map(math.isfinite, losses)):
            return gain, (gain, gain), f"{broken} diverged with a fresh seed"
    gains = [before - after for before, after in zip(old, new, strict=True)]
    gain, (low, high) = statistics.fmean(gains), t_interval(gains)
    shown = f"its gain on fresh seeds and data is {shorter(gain)}, 95 % interval {low:.4g} to {high:.4g}"
    return gain, (low, high), shown if low > 0 else f"{shown}, which does not exclude that there is none"


@checked(level=INSIDE)
def t_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return Student's interval for the mean of independent values: mean ± t s / √n. Raises ValueError for one value.

    With t = √ν tan θ Student's density becomes cos^(ν - 1) θ, whose sum is the distribution.
    """
    check_lengths(values=values)
    values = check_numbers("values", values).tolist()
    if len(values) < 2:
        raise ValueError("An interval needs two values or more.")
    theta = np.linspace(-math.pi / 2, math.pi / 2, 1_000_001)
    mass = np.cumsum(np.cos(theta) ** (len(values) - 2))
    t = math.sqrt(len(values) - 1) * math.tan(theta[np.searchsorted(mass, (1 + level) / 2 * mass[-1])])
    mean, half = statistics.fmean(values), t * statistics.stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half
