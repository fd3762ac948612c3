"""What `tune` tunes: a model, or a function that makes one, with its data and objective, as runs from plain settings.

Settings are a dict: fields of TrainingConfig, where `batch_size` is the whole batch of a step; `warmup_ratio`, the
share of the steps that warm up; `beta2_half_life`, the tokens or examples after which AdamW's average of squared
gradients has forgotten half; and settings of the function that makes the model. Source of the half-life, which fits
every batch size where β₂ does not: Marek et al. (2025), "Small Batch Size Training for Language Models".
"""

from __future__ import annotations

import copy
import inspect
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import nn

from gptcourse.checks import COUNT, POSITIVE, SHARE, plain
from gptcourse.config import TrainingConfig
from gptcourse.data import global_random
from gptcourse.decision import Settings
from gptcourse.distributed import choose_device
from gptcourse.parts import NAMES, digest, kind_of
from gptcourse.throughput import Throughput, measure_throughput
from gptcourse.training import DivergedError, Trainer, forward
from gptcourse.views import unwrap

FROM_SCRATCH = {"learning_rate": 1e-3, "batch_size": 16}  # for a factory: the rate of torch's AdamW and of nanoGPT
FINE_TUNING = {"learning_rate": 5e-5, "batch_size": 8}  # for a module: transformers' TrainingArguments
DERIVED = ("warmup_ratio", "beta2_half_life")  # a share of the steps; tokens, or examples
# Numbers of steps are no settings, as another batch size changes what they mean; but for those of Muon.
IN_STEPS = {field.name for field in fields(TrainingConfig) if field.name.endswith("steps")} - {"ns_steps"}
TRAINING = {field.name for field in fields(TrainingConfig)} - IN_STEPS - {"seed"} | {*DERIVED}


class Subject:
    """What is tuned: makes its models and trainers from settings, and says how good a model is on a part."""

    def __init__(self, model_or_factory, data, objective, space: Settings, defaults: Settings, seed: int, device):
        fine_tuning = isinstance(model_or_factory, nn.Module)
        self.make = (lambda seed: copy.deepcopy(unwrap(model_or_factory))) if fine_tuning else model_or_factory
        given = {name: plain(value) for name, value in dict(defaults).items()}
        self.defaults = (FINE_TUNING if fine_tuning else FROM_SCRATCH) | given
        self.device, self.seed, self.bf16, self.largest = choose_device(device), seed, False, 2**62
        self.own = self._own_names([*space, *defaults])
        model = self.model({}, seed)
        self._take(data, model)
        self.objective = objective or self.kind.loss
        self._check_loss(model)
        self.identity = {
            "data": {name: digest(part) for name, part in self.parts.items()},
            "model": digest(tuple(model.parameters())),
            "objective": _name_of(objective),
            "defaults": {name: repr(value) for name, value in self.defaults.items()},
            "seed": seed,
        }

    def _own_names(self, names: Sequence[str]) -> set[str]:
        """Return the settings of the factory. Raises ValueError for names that nobody knows."""
        own = list(inspect.signature(self.make).parameters.values())[1:]
        if any(parameter.kind == parameter.VAR_KEYWORD for parameter in own):
            return {*names} - TRAINING
        own = {parameter.name for parameter in own}
        if others := {*names} - TRAINING - own:
            known = ", ".join(sorted(TRAINING | own))
            raise ValueError(f"{min(others)!r} is no setting that can be tuned: there are {known}.")
        return own

    def _take(self, data: Any, model: nn.Module) -> None:
        """Take the data in its three parts. Raises ValueError."""
        apart = isinstance(data, Mapping)
        if apart and {*data} != {*NAMES}:
            raise ValueError(f"The parts of data are {', '.join(map(repr, NAMES))}, not {', '.join(map(repr, data))}.")
        self.kind = kind_of(data["train"] if apart else data, model, self.defaults.get("sequence_length"))
        parts = [data[name] for name in NAMES] if apart else self.kind.split(data)
        self.parts = {name: self.kind.check(part, name) for name, part in zip(NAMES, parts, strict=True)}

    def _check_loss(self, model: nn.Module) -> None:
        """Raise ValueError if the model gives no finite loss on the training part."""
        inputs, targets = self.kind.batches(self.parts["train"], TrainingConfig(1, 1, 1.0))(0)[0]
        with torch.no_grad():
            output = forward(model.to(self.device).eval(), inputs.to(self.device), targets.to(self.device))
        if not isinstance(getattr(output, "loss", None), torch.Tensor):
            raise ValueError("The model's forward(inputs, targets) must return an object with the mean loss as .loss.")
        if not math.isfinite(output.loss.item()):
            raise ValueError(f"The loss before any training is {output.loss.item()}: look at the data and the model.")

    def model(self, settings: Settings, seed: int) -> nn.Module:
        """Return a new model, the same for the same seed, and leave the caller's random numbers as they are."""
        own = {name: value for name, value in (self.defaults | settings).items() if name in self.own}
        with global_random, torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model = self.make(seed, **own)
        if not isinstance(model, nn.Module):
            raise ValueError(f"make(seed) must return a model, an nn.Module, not {model!r}.")
        return model

    def config(self, settings: Settings, seed: int, amount: float) -> TrainingConfig:
        """Return the settings of a run over so many tokens or examples. Raises ValueError."""
        settings = self.defaults | settings
        given = {name: value for name, value in settings.items() if name in TRAINING and name not in DERIVED}
        given["batch_size"] = COUNT("batch_size", given["batch_size"])
        n_parts = math.ceil(given["batch_size"] / self.largest)
        given |= {"batch_size": given["batch_size"] // n_parts, "gradient_accumulation_steps": n_parts}
        per_step = given["batch_size"] * n_parts * self.kind.per_row
        steps = max(int(amount // per_step), 1)
        if "warmup_ratio" in settings:
            given["warmup_steps"] = min(round(SHARE("warmup_ratio", settings["warmup_ratio"]) * steps), steps - 1)
        if "beta2_half_life" in settings:
            given["adam_beta2"] = 0.5 ** (per_step / POSITIVE("beta2_half_life", settings["beta2_half_life"]))
        return TrainingConfig(**{"bf16": self.bf16} | given, steps=steps, seed=seed)

    def trainer(self, settings: Settings, seed: int, amount: float = 1e9) -> Trainer:
        """Return a trainer of a new model."""
        config = self.config(settings, seed, amount)
        batches = self.kind.batches(self.parts["train"], config)
        return Trainer(self.model(settings, seed), batches, config, device=self.device)

    def throughput(self, batch_sizes: Iterable[int]) -> Iterator[Throughput]:
        """Measure how many tokens or examples a second are trained on at each batch size, until one does not fit."""
        for row in measure_throughput(lambda size: self.trainer({"batch_size": size}, self.seed), batch_sizes):
            yield row._replace(per_second=row.per_second * self.kind.per_row)

    def bf16_gain(self, row: Throughput) -> float:
        """Return how many times as fast as in a measured row bfloat16 is on a GPU that has it; elsewhere 0.

        A CPU is not asked: it seldom is faster, and if it is busy the answer is another one each time.
        """
        if self.device.type != "cuda" or not torch.cuda.is_bf16_supported() or "bf16" in self.defaults:
            return 0.0
        self.bf16 = True
        return next(self.throughput([row.batch_size])).per_second / row.per_second

    def score(self, model: nn.Module, part: str) -> float:
        """Return the objective on a part; what is no number counts as infinite."""
        with torch.no_grad():
            loss = float(self.objective(model.eval(), self.parts[part]))
        return math.inf if math.isnan(loss) else loss

    def train(self, settings: Settings, seed: int, amount: float, part: str) -> dict[str, Any]:
        """Make a run and return its result; one that diverges, or whose settings make no model, is a result too."""
        begin, loss = time.perf_counter(), math.inf
        try:
            trainer = self.trainer(settings, seed, amount)
            if trainer.run(progress=False).stopped == "interrupted":
                raise KeyboardInterrupt
            loss = self.score(trainer.model, part)
            outcome = "diverged" if loss == math.inf else "finished"
        except DivergedError:
            outcome = "diverged"
        except (ValueError, torch.OutOfMemoryError) as error:
            if not settings.keys() & self.own:  # all else was checked before
                raise
            return {"loss": math.inf, "outcome": f"impossible: {error}", "amount": 0, "seconds": 0.0}
        config, steps = trainer.config, len(trainer.history.step)
        trained = steps * config.batch_size * config.gradient_accumulation_steps * self.kind.per_row
        return {"loss": loss, "outcome": outcome, "amount": trained, "seconds": time.perf_counter() - begin}


def _name_of(objective) -> str:
    """Return what an objective is known by: its name, and what its code does, as all lambdas have one name."""
    code = getattr(objective, "__code__", None)
    kept = code and (code.co_code, code.co_names, [c for c in code.co_consts if not hasattr(c, "co_code")])
    return f"{getattr(objective, '__qualname__', repr(type(objective)))} {digest([kept])}"
