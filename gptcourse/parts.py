"""Data in three parts: to train on, to choose settings by, and to confirm the choice on, once.

`tune` knows three kinds of data: a text, (n,) token ids; the examples of `finetuning`; and rows, a pair of tensors
(inputs, targets), for a model of your own whose forward(inputs, targets) gives an output with `.loss`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from gptcourse.config import TrainingConfig
from gptcourse.data import (
    Batches,
    batch_size_at,
    check_examples,
    check_tokens,
    counted_rng,
    example_batches,
    text_batches,
)
from gptcourse.finetuning import reply_loss
from gptcourse.hf import raw
from gptcourse.training import check_length, evaluate, mean_loss
from gptcourse.views import context_window, vocab_size_of

# That `tune` holds out for a part: to evaluate must cost less than to train.
MOST = {"tokens": 32_768, "examples": 1_024}


class Parts(NamedTuple):
    """The same thing of each of the three parts."""

    train: Any
    choose: Any
    confirm: Any


NAMES = Parts._fields


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


def deal_equal(contents: Iterable[Hashable]) -> Parts:
    """Return the row numbers of each part, a tenth of the rows or MOST held out for each; equal rows are in one part.

    Raises ValueError for fewer than ten different contents.
    """
    numbers: dict[Hashable, int] = {}
    groups = np.array([numbers.setdefault(content, len(numbers)) for content in contents])
    if len(numbers) < 10:
        raise ValueError(f"The data has {len(numbers)} different examples: to be split it must have 10 or more.")
    second_smallest = sorted(np.bincount(groups))[1]
    return deal(groups, max(min(len(groups) // 10, MOST["examples"]), second_smallest))


class Kind(NamedTuple):
    """What `tune` does with a kind of data: how it is counted, checked, split, trained on and measured."""

    unit: str  # "tokens" or "examples"
    per_row: int  # how many of them are in one row of a batch
    check: Callable[[Any, str], Any]  # (part, its name) -> the part as it is used; raises ValueError
    split: Callable[[Any], Parts]
    batches: Callable[[Any, TrainingConfig], Batches]  # what a Trainer reads
    loss: Callable[[nn.Module, Any], float]  # the mean loss in nats per target


def kind_of(data: Any, model: nn.Module, sequence_length: int | None = None) -> Kind:
    """Return the kind of data that one part, or all in one, is. Raises ValueError."""
    rows = isinstance(data, list | tuple) and len(data) == 2 and all(isinstance(x, Tensor | np.ndarray) for x in data)
    first = data[0] if isinstance(data, list | tuple | Tensor | np.ndarray) and len(data) else None
    if rows:
        return Kind("examples", 1, check_rows, split_rows, row_batches, row_loss)
    if isinstance(first, int | np.integer) or (isinstance(data, Tensor | np.ndarray) and data.ndim == 1):
        length = check_length(model, sequence_length)
        return Kind(
            unit="tokens",
            per_row=length,
            check=lambda part, name: check_tokens(part, vocab_size_of(model), length + 1, f"{name} tokens"),
            split=split_text,
            batches=lambda part, config: text_batches(part, config, length, 1),
            loss=lambda model, part: evaluate(model, part, sequence_length=length),
        )
    if isinstance(data, list | tuple) and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in data):
        return Kind(
            unit="examples",
            per_row=1,
            check=lambda part, name: check_examples(part, vocab_size_of(model), context_window(model)),
            split=lambda pairs: Parts(*([pairs[i] for i in p] for p in deal_equal(tuple(ids) for ids, _ in pairs))),
            batches=lambda part, config: example_batches(part, config, 1),
            loss=reply_loss,
        )
    raise ValueError(
        "data must be token ids (n,), examples as encode_dialogues makes them, or a pair of tensors (inputs, targets); "
        f"or a dict of three such parts, {', '.join(map(repr, NAMES))}."
    )


def split_text(tokens) -> Parts:
    """Return a text in three pieces; each of the last two is a tenth of it, or MOST tokens."""
    size = min(len(tokens) // 10, MOST["tokens"])
    first, second = len(tokens) - 2 * size, len(tokens) - size
    return Parts(tokens[:first], tokens[first:second], tokens[second:])


def check_rows(part, name: str) -> tuple[Tensor, Tensor]:
    """Return (inputs, targets) as tensors. Raises ValueError unless they have one length of 1 or more."""
    inputs, targets = map(torch.as_tensor, part)
    if not inputs.ndim or not targets.ndim or not 0 < len(inputs) == len(targets):
        raise ValueError(f"The {name} part must have a row of targets for each of one or more rows of inputs.")
    return inputs, targets


def split_rows(data) -> Parts:
    """Return (inputs, targets) in three parts, those with equal inputs in one."""
    inputs, targets = check_rows(data, "whole")
    dealt = deal_equal(row.numpy().tobytes() for row in inputs.cpu())
    return Parts(*((inputs[rows], targets[rows]) for rows in dealt))


def row_batches(part: tuple[Tensor, Tensor], config: TrainingConfig) -> Batches:
    """Return the function from a step to the micro-batches (inputs, targets), drawn from rows."""

    def batches(step: int) -> list[tuple[Tensor, Tensor]]:
        size = config.gradient_accumulation_steps, batch_size_at(step, config)
        drawn = torch.from_numpy(counted_rng(config.seed, step).integers(len(part[0]), size=size))
        return [(part[0][rows], part[1][rows]) for rows in drawn]

    return batches


def row_loss(model: nn.Module, part: tuple[Tensor, Tensor]) -> float:
    """Return the mean loss per target of rows."""
    return mean_loss(model, zip(*(tensor.split(64) for tensor in part), strict=True))


def digest(part: Any) -> str:
    """Return a short identification of a tensor, a tuple of tensors, or a list."""
    tensors = (part,) if isinstance(part, Tensor) else part if isinstance(part, tuple) else ()
    sha = hashlib.sha256(b"" if tensors else repr(part).encode())
    for tensor in tensors:
        sha.update(raw(tensor))
    return sha.hexdigest()[:16]
