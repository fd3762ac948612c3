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
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import nn

from gptcourse.config import TrainingConfig
from gptcourse.decision import Settings
from gptcourse.distributed import choose_device
from gptcourse.parts import NAMES, digest, kind_of
from gptcourse.training import DivergedError, Trainer, forward
from gptcourse.views import unwrap

FROM_SCRATCH = {"learning_rate": 1e-3, "batch_size": 16}  # for a factory: the rate of torch's AdamW and of nanoGPT
FINE_TUNING = {"learning_rate": 5e-5, "batch_size": 8}  # for a module: transformers' TrainingArguments
DERIVED = ("warmup_ratio", "beta2_half_life")  # a share of the steps; tokens, or examples
NOT_SETTINGS = {
    "steps",
    "warmup_steps",
    "decay_steps",
    "eval_steps",
    "save_steps",
    "gradient_accumulation_steps",
    "seed",
}
TRAINING = {field.name for field in fields(TrainingConfig)} - NOT_SETTINGS | {*DERIVED}


class Subject:
    """What is tuned: makes its models and trainers from settings, and says how good a model is on a part."""

    def __init__(self, model_or_factory, data, objective, space: Settings, defaults: Settings, seed: int, device):
        fine_tuning = isinstance(model_or_factory, nn.Module)
        self.make = (lambda seed: copy.deepcopy(unwrap(model_or_factory))) if fine_tuning else model_or_factory
        self.defaults = (FINE_TUNING if fine_tuning else FROM_SCRATCH) | dict(defaults)
        self.device, self.seed, self.bf16, self.largest = choose_device(device), seed, False, 2**62
        self.own = self._own_names([*space, *defaults])
        apart = isinstance(data, Mapping)
        if apart and set(data) != set(NAMES):
            raise ValueError(f"The parts of data are {', '.join(map(repr, NAMES))}, not {', '.join(map(repr, data))}.")
        model = self.model({}, seed)
        self.kind = kind_of(data["train"] if apart else data)(model, self.defaults.get("sequence_length"))
        parts = [data[name] for name in NAMES] if apart else self.kind.split(data)
        self.parts = {name: self.kind.check(part, name) for name, part in zip(NAMES, parts, strict=True)}
        self.objective = objective or self.kind.loss
        self._check_loss(model)
        self.identity = {
            "data": {name: digest(part) for name, part in self.parts.items()},
            "model": digest(tuple(model.parameters())),
            "objective": getattr(self.objective, "__qualname__", repr(type(self.objective))),
            "defaults": {name: repr(value) for name, value in self.defaults.items()},
            "seed": seed,
        }

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
        n_parts = math.ceil(given["batch_size"] / self.largest)
        given |= {"batch_size": given["batch_size"] // n_parts, "gradient_accumulation_steps": n_parts}
        per_step = given["batch_size"] * n_parts * self.kind.per_row
        steps = max(int(amount // per_step), 1)
        if "warmup_ratio" in settings:
            given["warmup_steps"] = min(round(settings["warmup_ratio"] * steps), steps - 1)
        if "beta2_half_life" in settings:
            given["adam_beta2"] = 0.5 ** (per_step / settings["beta2_half_life"])
        return TrainingConfig(**{"bf16": self.bf16} | given, steps=steps, seed=seed)

    def trainer(self, settings: Settings, seed: int, amount: float) -> Trainer:
        """Return a trainer of a new model."""
        config = self.config(settings, seed, amount)
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
