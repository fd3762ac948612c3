"""What the recipes on Shakespeare's plays share: the text in its parts, a model, and sweeps whose runs are kept."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from runner import STOPPED, Work, rounded
from torch import Tensor

from gptcourse.corpora import shakespeare
from gptcourse.model import GPTConfig
from gptcourse.sweeps import sweep
from gptcourse.tokenizers import CharTokenizer
from gptcourse.training import TrainingConfig

VOCAB_SIZE = 76  # the different characters of the plays
# "Your GPT" and its shape, which is that of nanoGPT's CPU recipe; and that recipe. Its model has no biases, ours has.
MODEL = GPTConfig(VOCAB_SIZE, n_positions=64, n_embd=128, n_layer=4, n_head=4)
NANOGPT = TrainingConfig(2000, 12, 1e-3, warmup_steps=100, adam_beta2=0.99)
# What of the recipe is a choice of its settings, whatever the length of a run.
NANOGPT_CHOICES = {name: getattr(NANOGPT, name) for name in ("batch_size", "learning_rate", "adam_beta2")}


@cache
def read_plays() -> tuple[CharTokenizer, Tensor, Tensor]:
    """Return the tokenizer, and the tokens of the plays to train on and of those held out."""
    plays = shakespeare()
    tokenizer = CharTokenizer(plays.train + plays.validation)
    return tokenizer, *(torch.tensor(tokenizer.encode(text)) for text in (plays.train, plays.validation))


@dataclass(frozen=True)
class Plays:
    """The plays as character ids: to train on, and as held-out text to choose settings on, and to compare on.

    `n_choose` characters are taken from the beginning of the held-out plays, `n_compare` from their end.
    """

    n_choose: int
    n_compare: int

    @property
    def train(self) -> Tensor:
        """The ids to train on."""
        return read_plays()[1]

    @property
    def choose(self) -> Tensor:
        """The held-out ids on which settings are chosen."""
        return read_plays()[2][: self.n_choose]

    @property
    def compare(self) -> Tensor:
        """The held-out ids on which nothing is chosen."""
        return read_plays()[2][-self.n_compare :]

    def grid(
        self,
        work: Work,
        name: str,
        model: GPTConfig,
        config: TrainingConfig,
        axes: Mapping[str, Mapping[Any, dict]],
        held_out: str = "choose",
        *,
        common: Mapping[str, Any] | None = None,
        seeds=(0, 1, 2),
        keep: tuple[str, ...] = (),
    ) -> list[dict]:
        """Sweep over axes, each a dict from the name of a value to its settings; return rows that JSON can hold.

        `held_out` names the part of the text that is measured, `common` are settings of all runs, and `keep` names
        columns of the sweep's table besides axes, seed, outcome, loss and tokens. Runs are kept in `name`.jsonl.
        """

        def settings_of(names: dict[str, Any]) -> dict[str, Any]:
            settings = dict(common or {})
            for axis, value in names.items():
                settings |= axes[axis][value]
            return within_tokens(settings)

        table = sweep(
            model,
            config,
            {axis: list(values) for axis, values in axes.items()},
            tokens=self.train,
            validation_tokens=getattr(self, held_out),
            seeds=seeds,
            derive=settings_of,
            results=work.folder / f"{name}.jsonl",
            processes=work.processes,
        )
        if table.missing or any(row["outcome"] == "crashed" for row in table.rows):
            raise SystemExit(f"{name}: {STOPPED}")
        return [kept_columns(row, axes, keep) for row in table.rows]


def within_tokens(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Turn "tokens" into steps, and "warmup" from a share of the steps into a number of them."""
    settings = dict(settings)
    if "tokens" in settings:
        per_step = settings["batch_size"] * settings.get("n_positions", MODEL.n_positions)
        settings["steps"] = settings.pop("tokens") // per_step
    if "warmup" in settings:
        settings["warmup_steps"] = round(settings.pop("warmup") * settings["steps"])
    return settings


def by_rate(rates: Iterable[float]) -> dict[float, dict]:
    """Return the axis of a grid over learning rates."""
    return {rate: {"learning_rate": rate} for rate in rates}


def kept_columns(row: dict, axes: Iterable[str], keep: Iterable[str]) -> dict:
    """Return the columns of a sweep's row that are recorded, as JSON can hold them."""
    loss = rounded(row["loss"]) if math.isfinite(row["loss"]) else None
    kept = {column: row[column] for column in (*axes, "seed", "outcome")} | {"loss": loss, "tokens": row["tokens"]}
    return kept | {column: rounded(row[column]) for column in keep}
