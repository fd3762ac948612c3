"""`tune`: the tuning playbook as one call, from the largest batch that fits to a decision that holds.

It measures, brackets the learning rate, searches, widens what ended at its edge, and confirms with fresh seeds on data
that no choice was made on. Every run is kept in Optuna's journal and never made twice; as each decision is a function
of the runs before it, calling `tune` again *is* going on.

The rate is bracketed by a ladder of short runs, each with its own decay, and not by a range test: there the loss at a
rate depends on all lower rates, and falls along a plateau ten times wide, on which seeds choose at random. The ladder
measures what is asked for, the loss at the end of a run; a short run likes a higher rate than a long one, which is why
the search goes as far below the best rung as above.

The points of the search are Sobol's, scrambled (torch's engine: Optuna's QMCSampler needs SciPy, and draws choices at
random). Source: Godbole et al. (2023), "Deep Learning Tuning Playbook" (scientific, nuisance and fixed settings; search
before exploitation; boundaries; when to adopt).
"""

from __future__ import annotations

import copy
import inspect
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.quasirandom import SobolEngine

from gptcourse.config import BELOW_ONE, NUMBERS, SHARE, TrainingConfig
from gptcourse.decision import DecisionRecord, Settings, shorter
from gptcourse.distributed import choose_device
from gptcourse.parts import NAMES, digest, kind_of
from gptcourse.sweeps import distributions, open_study, quiet_optuna
from gptcourse.throughput import TIMED, Throughput, measure_throughput
from gptcourse.training import DivergedError, Trainer, forward
from gptcourse.views import unwrap

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import FloatDistribution

RUNS = 32  # full runs that a budget is divided into, unless it says how long a run is
FROM_SCRATCH = {"learning_rate": 1e-3, "batch_size": 16}  # for a factory: the rate of torch's AdamW and of nanoGPT
FINE_TUNING = {"learning_rate": 5e-5, "batch_size": 8}  # for a module: transformers' TrainingArguments
DERIVED = ("warmup_ratio", "beta2_half_life")  # a share of the steps; tokens, or examples
SPACE = ("learning_rate", "batch_size", "weight_decay", *DERIVED)  # the axes that have a default range
NOT_SETTINGS = {"steps", "seed", "gradient_accumulation_steps", "eval_steps", "save_steps", "decay_steps"}
TRAINING = {field.name for field in fields(TrainingConfig)} - NOT_SETTINGS | {*DERIVED}
MIN_STEPS = 32  # of a run: a batch that leaves fewer is of no use
LADDER, RUNG_SEEDS, MOST_RUNGS = 1 / 8, 2, 11  # length of a rung in full runs; seeds; a rung is √10 above the last
AGAIN = 3  # trials that are run once more before the best is taken
EDGE, NEAR = 0.2, 1 / 3  # the best trial lies in this part at the end of an axis, the best three in that on average
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
        given = [amount for amount in (self.minutes, self.tokens, self.examples) if amount is not None]
        if len(given) != 1 or not 0 < given[0] < math.inf:
            raise ValueError("A budget is a number above 0 of minutes, of tokens or of examples: give one of them.")
        if self.run is not None and not 0 < self.run < given[0]:
            raise ValueError(f"A run of {self.run} does not fit into a budget of {given[0]}.")

    @property
    def total(self) -> float:
        """The budget, with minutes in seconds."""
        return self.minutes * 60 if self.minutes else self.tokens or self.examples

    @property
    def full_run(self) -> float:
        """The length of a full run, in the same unit."""
        return self.total / RUNS if self.run is None else self.run * (60 if self.minutes else 1)


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
        data: a text in token ids (n,), examples of `finetune`, or tensors (inputs, targets): split as `parts` says, or
            given as a dict of the parts "train", "choose" and "confirm".
        objective: objective(model, part) -> float, lower is better. None: the mean loss.
        space: Optuna's distribution or a list of choices for each axis; None in its place: the default one. An axis is
            a field of TrainingConfig, "warmup_ratio" (a share of the steps), "beta2_half_life" (tokens or examples
            after which AdamW's second moment has forgotten half) or a setting of the factory. `batch_size` is the whole
            batch: more than fits is accumulated.
        scientific: the axes that the question is about. All others of the space are nuisance settings, which are tuned
            so that they do not decide, and what is not in the space is fixed.
        defaults: the settings to beat, of the same names. None: FROM_SCRATCH or FINE_TUNING.
        seeds: fresh seeds that confirm, 3 or more.
        storage: a file that keeps every finished run; after Ctrl-C or a kill the same call goes on.

    The winner is adopted only if the 95 % interval of its gain over the defaults lies above 0. With a budget in tokens
    or examples, one seed and one machine, the decision is the same every time, except where bfloat16 is about as fast.
    Raises ValueError before any run begins.
    """
    space = dict.fromkeys(SPACE) if space is None else dict(space)
    with quiet_optuna():
        subject = _Subject(model_or_factory, data, objective, space, defaults or {}, seed, device)
        lab = _Lab(subject, budget, space, scientific, seeds)
        with open_study(storage, "tuning", lab.identity) as study, lab.begun(study, progress):
            try:
                lab.follow()
            except KeyboardInterrupt:
                on = f"They are kept in {storage}: the same call goes on" if storage else "With storage= it could go on"
                lab.record.reason = f"Interrupted after {len(lab.record.trials)} runs. {on}."
                lab.say(lab.record.reason)
    return lab.record


class _Subject:
    """What is tuned: makes its models and trainers from settings, and says how good a model is on a part."""

    def __init__(self, model_or_factory, data, objective, space: Settings, defaults: Settings, seed: int, device):
        fine_tuning = isinstance(model_or_factory, nn.Module)
        self.make = (lambda seed: copy.deepcopy(unwrap(model_or_factory))) if fine_tuning else model_or_factory
        self.defaults = (FINE_TUNING if fine_tuning else FROM_SCRATCH) | dict(defaults)
        self.device, self.seed, self.bf16, self.largest = choose_device(device), seed, False, math.inf
        self.own = self._own_names([*space, *defaults])
        apart = isinstance(data, Mapping)
        if apart and set(data) != set(NAMES):
            raise ValueError(f"The parts of data are {', '.join(map(repr, NAMES))}, not {', '.join(map(repr, data))}.")
        model = self.model({}, seed)
        self.kind = kind_of(data["train"] if apart else data)(model, self.defaults.get("sequence_length"))
        parts = [data[name] for name in NAMES] if apart else self.kind.split(data)
        self.parts = {name: self.kind.check(part, name) for name, part in zip(NAMES, parts, strict=True)}
        self.objective = objective or self.kind.loss
        self.n_parameters = sum(parameter.numel() for parameter in model.parameters())
        self._check_loss(model)

    def _own_names(self, names: Sequence[str]) -> set[str]:
        """Return the settings of the factory. Raises ValueError for names that nobody knows."""
        own = list(inspect.signature(self.make).parameters.values())[1:]
        if any(parameter.kind == parameter.VAR_KEYWORD for parameter in own):
            return {*names} - TRAINING
        own = {parameter.name for parameter in own}
        for name in {*names} - TRAINING - own:
            raise ValueError(
                f"{name!r} is no setting that can be tuned: there are {', '.join(sorted(TRAINING | own))}."
            )
        return own

    def _check_loss(self, model: nn.Module) -> None:
        """Raise ValueError if the model gives no finite loss on the training part."""
        inputs, targets = self.kind.batches(self.parts["train"], TrainingConfig(1, 1, 1.0))(0)[0]
        with torch.no_grad():
            output = forward(model.to(self.device), inputs.to(self.device), targets.to(self.device))
        if not isinstance(getattr(output, "loss", None), torch.Tensor):
            raise ValueError("The model's forward(inputs, targets) must return an object with the mean loss as .loss.")
        if not math.isfinite(output.loss.item()):
            raise ValueError(f"The loss before any training is {output.loss.item()}: look at the data and the model.")

    def model(self, settings: Settings, seed: int) -> nn.Module:
        """Return a new model, the same for the same seed, and leave the caller's random numbers as they are."""
        own = {name: value for name, value in (self.defaults | settings).items() if name in self.own}
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model = self.make(seed, **own)
        if not isinstance(model, nn.Module):
            raise ValueError(f"make(seed) must return a model, an nn.Module, not {model!r}.")
        return model

    def config(self, settings: Settings, seed: int, amount: float) -> TrainingConfig:
        """Return the settings of a run over so many tokens or examples. Raises ValueError."""
        settings = self.defaults | settings
        given = {name: value for name, value in settings.items() if name in TRAINING and name not in DERIVED}
        n_parts = math.ceil(given["batch_size"] / self.largest) if self.largest < math.inf else 1
        given |= {"batch_size": given["batch_size"] // n_parts, "gradient_accumulation_steps": n_parts}
        per_step = given["batch_size"] * n_parts * self.kind.per_row
        steps = max(int(amount // per_step), 1)
        if "warmup_ratio" in settings:
            given["warmup_steps"] = min(round(settings["warmup_ratio"] * steps), steps - 1)
        if "beta2_half_life" in settings:
            given["adam_beta2"] = 0.5 ** (per_step / settings["beta2_half_life"])
        return TrainingConfig(**{"bf16": self.bf16} | given, steps=steps, seed=seed)

    def trainer(self, settings: Settings, seed: int, amount: float, bf16: bool | None = None) -> Trainer:
        """Return a trainer of a new model."""
        config = self.config(settings, seed, amount)
        config = config if bf16 is None else replace(config, bf16=bf16)
        batches = self.kind.batches(self.parts["train"], config)
        return Trainer(self.model(settings, seed), batches, config, device=self.device)

    def score(self, model: nn.Module, part: str) -> float:
        """Return the objective on a part; what is no number counts as infinite."""
        with torch.no_grad():
            loss = float(self.objective(model.eval(), self.parts[part]))
        return math.inf if math.isnan(loss) else loss

    def train(self, settings: Settings, seed: int, amount: float, part: str) -> dict[str, Any]:
        """Make a run and return its result; one that diverges, or whose settings make no model, is a result too."""
        begin, loss, trained = time.perf_counter(), math.inf, 0
        try:
            trainer = self.trainer(settings, seed, amount)
            if trainer.run(progress=False).stopped == "interrupted":
                raise KeyboardInterrupt
            trained, loss = trainer.config.steps, self.score(trainer.model, part)
            outcome = "diverged" if loss == math.inf else "finished"
        except DivergedError as error:
            outcome, trained = "diverged", len(error.history.step)
        except (ValueError, torch.OutOfMemoryError) as error:
            if not settings.keys() & self.own:  # all else was checked before
                raise
            return {"loss": math.inf, "outcome": f"impossible: {error}", "amount": 0, "seconds": 0.0}
        config = trainer.config
        per_step = config.batch_size * config.gradient_accumulation_steps * self.kind.per_row
        amounts = {"amount": trained * per_step, "seconds": time.perf_counter() - begin}
        return {"loss": loss, "outcome": outcome} | amounts


class _Lab:
    """Follows the procedure on a subject: asks for runs, remembers them in a study, and writes the record."""

    def __init__(self, subject: _Subject, budget: Budget, space: Settings, scientific: Sequence[str], seeds: int):
        self.subject, self.budget, self.space, self.scientific = subject, budget, space, tuple(scientific)
        self.seeds, self.spent, self.made = seeds, 0.0, {}
        self._check()
        self.record = DecisionRecord(subject.kind.unit, subject.defaults, "Not begun.", settings=subject.defaults)

    def _check(self) -> None:
        """Raise ValueError for what would fail later."""
        if isinstance(self.seeds, bool) or not isinstance(self.seeds, int) or self.seeds < 3:
            raise ValueError(f"seeds is {self.seeds!r}, but an interval needs a whole number of 3 or more.")
        if others := {*self.scientific} - self.space.keys():
            raise ValueError(f"{min(others)!r} is called scientific, but it is no axis of the space.")
        unit = self.subject.kind.unit
        if not self.budget.minutes and not getattr(self.budget, unit):
            raise ValueError(f"This data is counted in {unit}: give Budget({unit}=…) or Budget(minutes=…).")
        least = self.n_reserved + 10
        if self.budget.total < least * self.budget.full_run:
            raise ValueError(f"The budget must be {least} full runs or more: raise it, or make its `run` shorter.")
        if missing := {name for name, axis in self.space.items() if axis is None} - {*SPACE}:
            raise ValueError(f"There is no default range for {min(missing)!r}: give a distribution or a list.")
        given = distributions({name: axis for name, axis in self.space.items() if axis is not None})
        for u in (0.0, 1.0):
            self.subject.config({name: value_at(axis, u) for name, axis in given.items()}, 0, 1e9)

    @property
    def n_reserved(self) -> int:
        """Full runs that are kept for after the search: its best once more, and both arms for each fresh seed."""
        return AGAIN + 1 + 2 * self.seeds

    @property
    def identity(self) -> Settings:
        """What two tunings must share for one to go on with the other, as JSON."""
        subject = self.subject
        identity = {
            "data": {name: digest(part) for name, part in subject.parts.items()},
            "budget": vars(self.budget),
            "space": {name: repr(axis) for name, axis in self.space.items()},
            "defaults": {name: repr(value) for name, value in subject.defaults.items()},
            "model": f"{subject.n_parameters} parameters",
            "seeds": [subject.seed, self.seeds],
        }
        return json.loads(json.dumps(identity))

    @contextmanager
    def begun(self, study: optuna.Study, progress: bool) -> Iterator[None]:
        """Take what the study holds, and show the budget that is spent meanwhile."""
        from tqdm.auto import tqdm

        self.study = study
        self.made = {trial.user_attrs["run"]: trial.user_attrs["result"] for trial in study.trials}
        total = self.budget.total if self.budget.minutes is None else round(self.budget.total)
        unit = "s" if self.budget.minutes else f" {self.record.unit}"
        with tqdm(total=total, unit=unit, unit_scale=True, disable=not progress, dynamic_ncols=True) as self.bar:
            yield

    def say(self, line: str) -> None:
        """Show a line above the bar."""
        if not self.bar.disable:
            self.bar.write(line)

    def follow(self) -> None:
        """Follow the procedure, step by step."""
        self.measure()
        self.settle_space()
        self.run("defaults", {}, self.subject.seed)
        self.search()
        winner = self.best_again()
        self.confirm(winner)
        self.record.finished = True
        self.say(self.record.reason)

    def amount(self, batch_size: int) -> float:
        """Return the tokens or examples of a full run: with a budget in minutes, those that its time suffices for."""
        if self.budget.minutes is None:
            return self.budget.full_run
        sizes, speeds, _ = zip(*self.record.measured["throughput"], strict=True)
        speed = np.interp(math.log(batch_size), np.log(sizes), speeds)
        return float(speed * (self.budget.full_run - self.record.measured["evaluation_seconds"]))

    def run(self, phase: str, settings: Settings, seed: int, share: float = 1.0, axes: Settings | None = None) -> float:
        """Return the loss of a run, made now or before."""
        part = "confirm" if phase == "confirm" else "choose"
        key, batch = json.dumps([phase, settings, seed, share]), (self.subject.defaults | settings)["batch_size"]
        if key not in self.made:
            self.made[key] = result = self.subject.train(settings, seed, share * self.amount(batch), part)
            self._keep(key, settings, result, axes or {})
        result = self.made[key]
        self.record.trials.append({"phase": phase, "settings": settings, "seed": seed} | result)
        self._spend(result)
        shown = ", ".join(f"{name} {shorter(value)}" for name, value in settings.items()) or "the defaults"
        self.say(f"  {phase}, seed {seed}: {shown}: {shorter(result['loss'])} ({result['outcome']})")
        return result["loss"]

    def _keep(self, run: str, settings: Settings, result: dict, axes: Settings) -> None:
        """Add a run to the study, with its parameters if it was drawn from axes."""
        from optuna.trial import create_trial

        drawn = {"params": settings, "distributions": axes} if axes else {}
        self.study.add_trial(create_trial(value=result["loss"], user_attrs={"run": run, "result": result}, **drawn))

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
            self.study.set_user_attr("measured", json.loads(json.dumps(self._measured())))
        measured, subject = self.study.user_attrs["measured"], self.subject
        self.record.measured = measured
        subject.bf16, subject.largest = measured["bf16"], measured["largest"] or math.inf
        self._spend(measured)
        for line in measured["said"]:
            self.say(line)

    def _measured(self) -> dict[str, Any]:
        subject, begin, rows = self.subject, time.perf_counter(), []
        per_row, batch = subject.kind.per_row, subject.defaults["batch_size"]

        def trainer(size: int, bf16: bool | None = None) -> Trainer:
            return subject.trainer({"batch_size": size}, subject.seed, 10_000 * size * per_row, bf16)

        for row in measure_throughput(trainer, (2**power for power in count())):
            rows.append((row.batch_size, row.per_second * per_row, row.memory))
            if not self._leaves_steps(2 * row.batch_size, row):
                enough = True
                break
        else:
            enough = False
        near = min(rows, key=lambda row: abs(math.log(row[0] / batch)))
        gain = 0.0 if "bf16" in subject.defaults else self._bf16_gain(trainer, near)
        evaluated = time.perf_counter()
        subject.score(subject.model({}, subject.seed).to(subject.device), "choose")
        ended = time.perf_counter()
        fastest, last = max(rows, key=lambda row: row[1]), rows[-1][0]
        unit = self.record.unit
        return {
            "throughput": rows,
            "largest": None if enough else last,
            "bf16": gain > FASTER,
            "evaluation_seconds": ended - evaluated,
            "seconds": ended - begin,
            "amount": sum((TIMED + 1) * size * per_row for size, *_ in rows),
            "said": [
                f"Fastest: {fastest[1]:,.0f} {unit} per second, with a batch of {fastest[0]} on {subject.device}.",
                f"A batch of {last} fits; a larger one {'leaves too few steps' if enough else 'would not'}.",
                f"bfloat16 is {gain:.2f} times as fast: {'taken' if gain > FASTER else 'not taken'}.",
            ],
        }

    def _leaves_steps(self, size: int, last: Throughput) -> bool:
        """Return whether a run with this batch size, half of which was the last measured, has MIN_STEPS steps."""
        if self.budget.minutes is None:
            return self.budget.full_run >= MIN_STEPS * size * self.subject.kind.per_row
        return self.budget.full_run >= MIN_STEPS * size / last.per_second

    def _bf16_gain(self, trainer: Callable[[int, bool], Trainer], row: tuple) -> float:
        """Return how many times as fast as in a measured row bfloat16 is; 0 where the device does not have it."""
        try:
            (found,) = measure_throughput(lambda size: trainer(size, True), [row[0]])
        except (RuntimeError, MemoryError, DivergedError):
            return 0.0
        return found.per_second * self.subject.kind.per_row / row[1]

    def settle_space(self) -> None:
        """Give each axis that has none its default range; that of the rate is bracketed."""
        batch = self.subject.defaults["batch_size"]
        run, steps = self.amount(batch), self.amount(batch) / (batch * self.subject.kind.per_row)
        largest = min(self.subject.largest, self.record.measured["throughput"][-1][0])
        default = {
            "batch_size": lambda: (
                [b for b in (batch // 4, batch // 2, batch, 2 * batch) if 1 <= b <= largest] or [batch]
            ),
            "weight_decay": lambda: FloatDistribution(0.01, 1.0, log=True),
            "warmup_ratio": lambda: FloatDistribution(0.0, 0.2),
            "beta2_half_life": lambda: FloatDistribution(max(run / 64, 2 * run / steps), run / 2, log=True),
            "learning_rate": self.bracket,
        }
        from optuna.distributions import FloatDistribution

        wanted = {name: default[name]() if axis is None else axis for name, axis in self.space.items()}
        self.axes = distributions(wanted)
        self.box = dict(self.axes)
        for name in self.axes:
            role = "scientific" if name in self.scientific else "nuisance"
            self.record.axes[name] = {"role": role, "range": "", "widened": 0}
            self.record.axes[name]["continuous"] = not hasattr(self.axes[name], "choices")
            self._note_range(name)

    def _note_range(self, name: str) -> None:
        axis = self.axes[name]
        choices = getattr(axis, "choices", None)
        shown = ", ".join(map(str, choices)) if choices else f"{axis.low:.3g} to {axis.high:.3g}"
        self.record.axes[name]["range"] = shown
        self.say(f"Axis {name}: {shown}")

    def bracket(self) -> FloatDistribution:
        """Climb a ladder of short runs to the best learning rate, and return the range from √10 below it to above."""
        from optuna.distributions import FloatDistribution

        subject, losses, rungs = self.subject, {}, [-1, 0, 1]
        batch = subject.defaults["batch_size"]
        share = min(1.0, max(LADDER, MIN_STEPS / 2 * batch * subject.kind.per_row / self.amount(batch)))
        rate = {rung: _rounded(subject.defaults["learning_rate"] * 10 ** (rung / 2)) for rung in range(-20, 21)}
        while rungs:
            for rung in rungs:
                seeds = range(subject.seed, subject.seed + RUNG_SEEDS)
                losses[rung] = statistics.fmean(
                    self.run("bracket", {"learning_rate": rate[rung]}, seed, share) for seed in seeds
                )
            best = min(sorted(losses), key=losses.get)
            rungs = [r for r in (best - 1, best + 1) if r not in losses] if len(losses) < MOST_RUNGS else []
        self.say(f"The best rate of short runs is about {rate[best]:.2g}.")
        return FloatDistribution(_rounded(rate[best] / math.sqrt(10)), _rounded(rate[best] * math.sqrt(10)), log=True)

    def search(self) -> None:
        """Draw trials while the budget lasts, the first in the middle; widen an axis whose best is at its end."""
        points = SobolEngine(len(self.axes), scramble=True, seed=self.subject.seed).draw(
            MOST_TRIALS, dtype=torch.float64
        )
        points[0], seen = 0.5, []
        look = max(2 * self.n_affordable() // 3, 4)
        for number, point in enumerate(points.tolist(), start=1):
            if self.n_affordable() < 1:
                break
            settings = {name: value_at(axis, u) for (name, axis), u in zip(self.box.items(), point, strict=True)}
            if settings not in seen:  # a space of few choices is exhausted some time
                self.run("search", settings, self.subject.seed, axes=self.box)
                seen.append(settings)
            if number >= look:
                look = number + max(look // 4, 2)
                self.widen()

    def widen(self) -> None:
        """Let the next trials be drawn beyond the axis whose end the best ones are nearest to; else from everywhere."""
        self.box, strips = dict(self.axes), []
        best = [trial["settings"] for trial in self.record.searched()[:3] if trial["loss"] < math.inf]
        for name, axis in self.axes.items():
            if hasattr(axis, "choices") or len(best) < 3:
                continue
            for up in (False, True):
                places = [abs(up - place_of(axis, settings[name])) for settings in best]  # 0: at this end
                strip, mean = beyond(name, axis, up), statistics.fmean(places)
                if places[0] <= EDGE and mean <= NEAR and strip is not None:
                    strips.append((mean, name, "upper" if up else "lower", strip))
        if strips:
            _, name, end, strip = min(strips, key=lambda found: found[0])
            axis, self.box[name] = self.axes[name], strip
            low, high = min(axis.low, strip.low), max(axis.high, strip.high)
            self.axes[name] = type(axis)(low, high, log=axis.log)
            self.record.axes[name]["widened"] += 1
            self.say(f"The best trials lie at the {end} end of {name}: it is widened.")
            self._note_range(name)

    def best_again(self) -> Settings:
        """Return the best of the defaults and the trials, after one more seed for the best few of them."""
        found, seed = self.record.searched()[:AGAIN], self.subject.seed + 1
        first = next(trial for trial in self.record.trials if trial["phase"] == "defaults")
        means = [(trial["loss"] + self.run("again", trial["settings"], seed)) / 2 for trial in (first, *found)]
        return (first, *found)[means.index(min(means))]["settings"]

    def confirm(self, winner: Settings) -> None:
        """Compare the winner with the defaults on fresh seeds and data, and decide."""
        record = self.record
        record.not_tried = self._not_tried()
        if not winner:
            record.reason = "On the part to choose on, no trial was better than the defaults over two seeds."
        else:
            seeds = range(self.subject.seed + 2, self.subject.seed + 2 + self.seeds)
            arms = {"defaults": {}, "winner": winner}
            pairs = [[self.run("confirm", settings, seed) for settings in arms.values()] for seed in seeds]
            record.confirmed = {"seeds": [*seeds]} | dict(zip(arms, map(list, zip(*pairs, strict=True)), strict=True))
            record.adopted, record.reason = self._decide()
        if record.adopted:
            record.settings = self.subject.defaults | winner
        batch = record.settings["batch_size"]
        record.config = self.subject.config(record.settings, self.subject.seed, self.amount(batch))

    def _decide(self) -> tuple[bool, str]:
        """Return whether to adopt the winner, and why."""
        confirmed = self.record.confirmed
        losses = confirmed["defaults"], confirmed["winner"]
        if not all(map(math.isfinite, confirmed["winner"])):
            confirmed |= {"gain": -math.inf, "interval": (-math.inf, -math.inf)}
            return False, "The winner diverged with a fresh seed."
        if not all(map(math.isfinite, confirmed["defaults"])):
            confirmed |= {"gain": math.inf, "interval": (math.inf, math.inf)}
            return True, "The defaults diverged with a fresh seed, the winner with none."
        gains = [default - won for default, won in zip(*losses, strict=True)]
        low, high = t_interval(gains)
        confirmed |= {"gain": statistics.fmean(gains), "interval": (low, high)}
        shown = (
            f"its gain on fresh seeds and data is {shorter(confirmed['gain'])}, 95 % interval {low:.4g} to {high:.4g}"
        )
        if low > 0:
            return True, f"The winner is adopted: {shown}."
        return False, f"The winner is not adopted, as the interval does not exclude that there is no gain: {shown}."

    def _not_tried(self) -> list[str]:
        """Return what this tuning says nothing about."""
        base = self.subject.config({}, self.subject.seed, 1e9)
        derived = {"warmup_ratio": "warmup_steps", "beta2_half_life": "adam_beta2"}
        tuned = self.axes.keys() | {derived[name] for name in derived.keys() & self.axes.keys()}
        fixed = sorted(TRAINING - {*DERIVED, "bf16"} - tuned)
        own = sorted(self.subject.own - self.axes.keys())
        return [
            "Fixed settings: " + ", ".join(f"{name} = {getattr(base, name)}" for name in fixed) + ".",
            *([f"Settings of the model that stayed as they are: {', '.join(own)}."] if own else []),
            "Another length of a run: the best rate, decay and half-life move with it.",
            "Other data, and stopping early.",
        ]


# ---- Axes


def value_at(axis: Any, u: float) -> Any:
    """Return the value at the place u, from 0 to 1, of one of Optuna's distributions."""
    if hasattr(axis, "choices"):
        return axis.choices[min(int(u * len(axis.choices)), len(axis.choices) - 1)]
    low, high = (math.log(axis.low), math.log(axis.high)) if axis.log else (axis.low, axis.high)
    value = low + u * (high - low)
    value = math.exp(value) if axis.log else value
    if isinstance(axis.low, int) or axis.step:
        step = axis.step or 1
        value = axis.low + step * round((value - axis.low) / step)
    value = min(max(value if isinstance(value, int) else _rounded(value), axis.low), axis.high)
    return value


def _around(batch: int) -> tuple[int, ...]:
    return batch // 4, batch // 2, batch, 2 * batch


def place_of(axis: Any, value: float) -> float:
    """Return the place of a value, from 0 to 1."""
    low, high, value = (math.log(x) if axis.log else x for x in (axis.low, axis.high, value))
    return (value - low) / (high - low) if high > low else 0.5


def beyond(name: str, axis: Any, up: bool) -> Any:
    """Return the strip beyond an axis, half as wide as it is; None where the setting has no values there."""
    low, high = (math.log(axis.low), math.log(axis.high)) if axis.log else (axis.low, axis.high)
    edge = high + (high - low) / 2 if up else low - (high - low) / 2
    edge = _rounded(math.exp(edge)) if axis.log else edge
    most = 1.0 if name == "warmup_ratio" or NUMBERS.get(name) in (SHARE, BELOW_ONE) else math.inf
    edge = min(edge, most - 0.001) if up else max(edge, min(axis.low, 0.0))
    edge = round(edge) if isinstance(axis.low, int) else edge
    ends = (axis.high, edge) if up else (edge, axis.low)
    return type(axis)(*ends, log=axis.log) if ends[0] < ends[1] else None


def _rounded(value: float) -> float:
    """Return a number with three digits, as a record shows it."""
    return float(f"{value:.3g}")


def t_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return Student's interval for the mean of independent values: mean ± t s / √n. Raises ValueError for one value.

    With t = √ν tan θ Student's density becomes cos^(ν - 1) θ, whose sum is the distribution.
    """
    if len(values) < 2:
        raise ValueError("An interval needs two values or more.")
    theta = np.linspace(-math.pi / 2, math.pi / 2, 1_000_001)
    mass = np.cumsum(np.cos(theta) ** (len(values) - 2))
    t = math.sqrt(len(values) - 1) * math.tan(theta[np.searchsorted(mass, (1 + level) / 2 * mass[-1])])
    mean, half = statistics.fmean(values), t * statistics.stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half
