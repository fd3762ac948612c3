"""Data in three parts: to train on, to choose settings by, and to confirm the choice on, once.

Three kinds of data are known to `tune`: a text, (n,) token ids; the examples of `finetuning`; and a pair of tensors
(inputs, targets) with one row for each example, for a model of your own whose forward(inputs, targets) gives an output
with `.loss`. A kind counts its data in a `unit`, tokens of a text and else examples, of which a row has `per_row`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from gptcourse.config import TrainingConfig
from gptcourse.data import (
    IGNORED,
    Batches,
    batch_size_at,
    check_examples,
    check_tokens,
    counted_rng,
    example_batches,
    text_batches,
)
from gptcourse.finetuning import reply_loss
from gptcourse.training import check_length, evaluate, forward
from gptcourse.views import context_window, device_of, eval_view, vocab_size_of

MOST = {
    "tokens": 32_768,
    "examples": 1_024,
}  # that `tune` holds out for a part: to evaluate must not cost more than runs


class Parts(NamedTuple):
    """The same thing of each of the three parts."""

    train: Any
    choose: Any
    confirm: Any


def deal(groups: np.ndarray, size: int, seed: int = 0) -> Parts:
    """Return the row numbers of each part: groups at random, each to a held-out part where it is taken whole, or train.

    `groups` (n,) numbers each row's group, from 0. A held-out part takes `size` rows at most. None is empty if two
    groups are no larger, and 2 · size < n.
    """
    members = np.split(np.argsort(groups, kind="stable"), np.cumsum(np.bincount(groups))[:-1])
    parts = Parts([], [], [])
    for i in np.random.default_rng(seed).permutation(len(members)):
        takes = [part for part in parts[1:] if len(part) + len(members[i]) <= size]
        min(takes, key=len, default=parts.train).extend(members[i].tolist())
    return Parts(*map(sorted, parts))


def split_rows(contents: Iterable[Hashable]) -> Parts:
    """Return the row numbers of each part, a tenth of the rows or MOST held out for each; equal rows are in one part.

    Raises ValueError for fewer than ten different contents.
    """
    numbers: dict[Hashable, int] = {}
    groups = np.array([numbers.setdefault(content, len(numbers)) for content in contents])
    if len(numbers) < 10:
        raise ValueError(f"The data has {len(numbers)} different examples: to be split it must have 10 or more.")
    second_smallest = sorted(np.bincount(groups))[1]
    return deal(groups, max(min(len(groups) // 10, MOST["examples"]), second_smallest))


class Text:
    """A text in token ids (n,), cut into sequences at random places; it is split into three pieces in its order."""

    unit = "tokens"

    def __init__(self, model: nn.Module, sequence_length: int | None):
        self.model, self.per_row = model, check_length(model, sequence_length)

    def check(self, part, name: str) -> Tensor:
        """Return a part as an int64 tensor. Raises ValueError."""
        return check_tokens(part, vocab_size_of(self.model), self.per_row + 1, f"{name} tokens")

    def split(self, tokens) -> Parts:
        """Return the text in three pieces; each of the last two is a tenth of it, or MOST tokens."""
        size = min(len(tokens) // 10, MOST[self.unit])
        first, second = len(tokens) - 2 * size, len(tokens) - size
        return Parts(tokens[:first], tokens[first:second], tokens[second:])

    def batches(self, part: Tensor, config: TrainingConfig) -> Batches:
        """Return what a Trainer reads."""
        return text_batches(part, config, self.per_row, 1)

    def loss(self, model: nn.Module, part: Tensor) -> float:
        """Return the mean loss in nats per token."""
        return evaluate(model, part, sequence_length=self.per_row)


class Examples:
    """Examples as lists (ids, targets); those with equal ids lie in the same part."""

    unit, per_row = "examples", 1

    def __init__(self, model: nn.Module, sequence_length: int | None):
        self.model = model

    def check(self, part, name: str) -> list:
        """Return a part as a list. Raises ValueError."""
        return check_examples(part, vocab_size_of(self.model), context_window(self.model))

    def split(self, examples) -> Parts:
        """Return the examples in three parts, see `split_rows`."""
        return Parts(*([examples[i] for i in rows] for rows in split_rows(tuple(ids) for ids, _ in examples)))

    def batches(self, part: list, config: TrainingConfig) -> Batches:
        """Return what a Trainer reads."""
        return example_batches(part, config, 1)

    def loss(self, model: nn.Module, part: list) -> float:
        """Return the mean loss in nats per target."""
        return reply_loss(model, part)


class Rows(Examples):
    """Tensors (inputs, targets) with a row for each example; those with equal inputs lie in the same part."""

    def check(self, part, name: str) -> tuple[Tensor, Tensor]:
        """Return a part as two tensors. Raises ValueError."""
        inputs, targets = map(torch.as_tensor, part)
        if not inputs.ndim or not targets.ndim or not 0 < len(inputs) == len(targets):
            raise ValueError(f"The {name} part must have a row of targets for each of one or more rows of inputs.")
        return inputs, targets

    def split(self, data) -> Parts:
        """Return the rows in three parts, see `split_rows`."""
        inputs, targets = self.check(data, "whole")
        parts = split_rows(row.numpy().tobytes() for row in inputs.cpu())
        return Parts(*((inputs[rows], targets[rows]) for rows in parts))

    def batches(self, part: tuple[Tensor, Tensor], config: TrainingConfig) -> Batches:
        """Return what a Trainer reads."""

        def batches(step: int) -> list[tuple[Tensor, Tensor]]:
            size = config.gradient_accumulation_steps, batch_size_at(step, config)
            drawn = torch.from_numpy(counted_rng(config.seed, step).integers(len(part[0]), size=size))
            return [(part[0][rows], part[1][rows]) for rows in drawn]

        return batches

    @torch.inference_mode()
    def loss(self, model: nn.Module, part: tuple[Tensor, Tensor], batch_size: int = 64) -> float:
        """Return the mean loss per target."""
        view, device, total, count = eval_view(model), device_of(model), 0.0, 0
        for inputs, targets in zip(*(tensor.to(device).split(batch_size) for tensor in part), strict=True):
            n = int((targets != IGNORED).sum())
            total, count = total + forward(view, inputs, targets).loss.item() * n, count + n
        return total / count


def kind_of(data: Any) -> type[Text] | type[Examples]:
    """Return the kind of data that one part, or all in one, is. Raises ValueError."""
    if isinstance(data, Tensor | np.ndarray) and data.ndim == 1:
        return Text
    if isinstance(data, list | tuple) and len(data):
        if len(data) == 2 and all(isinstance(part, Tensor | np.ndarray) for part in data):
            return Rows
        if isinstance(data[0], int | np.integer):
            return Text
        if all(isinstance(example, list | tuple) and len(example) == 2 for example in data):
            return Examples
    raise ValueError(
        "data must be token ids (n,), examples as encode_dialogues makes them, or a pair of tensors (inputs, targets); "
        f"or a dict of three such parts, {', '.join(map(repr, Parts._fields))}."
    )


def digest(part: Any) -> str:
    """Return a short identification of a tensor, a tuple of tensors, or a list."""
    tensors = (part,) if isinstance(part, Tensor) else part if isinstance(part, tuple) else ()
    sha = hashlib.sha256(b"" if tensors else repr(part).encode())
    for tensor in tensors:
        sha.update(tensor.detach().cpu().flatten().contiguous().view(torch.uint8).numpy())
    return sha.hexdigest()[:16]
