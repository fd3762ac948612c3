"""Data in three parts: to train on, to choose settings on, and to confirm the choice on.

Three kinds of data are known: a text, (n,) token ids; the examples of `finetuning`; and a pair of tensors (inputs,
targets) with one row for each example, for a model of your own whose forward(inputs, targets) gives an output with
`.loss`. A kind says how much a row is, in tokens of a text and else in examples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gptcourse.config import TrainingConfig
from gptcourse.data import IGNORED, Batches, check_examples, check_tokens, counted_rng, example_batches, text_batches
from gptcourse.finetuning import reply_loss
from gptcourse.training import check_length, evaluate, forward
from gptcourse.views import context_window, device_of, eval_view, vocab_size_of

NAMES = ("train", "choose", "confirm")
SHARES = (0.8, 0.9)  # where the parts end
MOST = {
    "tokens": 32_768,
    "examples": 1_024,
}  # in each of the last two parts: evaluation must not cost more than training


class Text:
    """A text in token ids (n,), cut into sequences at random places; it is split into three pieces in its order."""

    unit = "tokens"

    def __init__(self, model: nn.Module, sequence_length: int | None):
        self.model, self.per_row = model, check_length(model, sequence_length)

    def check(self, part, name: str) -> Tensor:
        """Return a part as an int64 tensor. Raises ValueError."""
        return check_tokens(part, vocab_size_of(self.model), self.per_row + 1, f"{name} tokens")

    def split(self, tokens) -> list[Tensor]:
        """Return the first 80 %, and of each of the two tenths that follow at most MOST tokens."""
        first, second = (int(share * len(tokens)) for share in SHARES)
        most = MOST[self.unit]
        return [tokens[:first], tokens[first:second][:most], tokens[second:][:most]]

    def batches(self, part: Tensor, config: TrainingConfig) -> Batches:
        """Return what a Trainer reads."""
        return text_batches(part, config, self.per_row, 1)

    def loss(self, model: nn.Module, part: Tensor) -> float:
        """Return the mean loss in nats per token."""
        return evaluate(model, part, sequence_length=self.per_row)


class Examples:
    """Examples as lists (ids, targets), split by a hash of their ids: equal ones lie in the same part."""

    unit, per_row = "examples", 1

    def __init__(self, model: nn.Module, sequence_length: int | None):
        self.model = model

    def check(self, part, name: str) -> list:
        """Return a part as a list. Raises ValueError."""
        return check_examples(part, vocab_size_of(self.model), context_window(self.model))

    def split(self, examples) -> list[list]:
        """Return 80 %, and two tenths of at most MOST examples."""
        return [[examples[i] for i in rows] for rows in split_rows([bytes(str(ids), "ascii") for ids, _ in examples])]

    def batches(self, part: list, config: TrainingConfig) -> Batches:
        """Return what a Trainer reads."""
        return example_batches(part, config, 1)

    def loss(self, model: nn.Module, part: list) -> float:
        """Return the mean loss in nats per target."""
        return reply_loss(model, part)


class Rows:
    """Tensors (inputs, targets) with a row for each example, split by a hash of the inputs."""

    unit, per_row = "examples", 1

    def __init__(self, model: nn.Module, sequence_length: int | None):
        self.model = model

    def check(self, part, name: str) -> tuple[Tensor, Tensor]:
        """Return a part as two tensors. Raises ValueError."""
        inputs, targets = (torch.as_tensor(tensor) for tensor in part)
        if not inputs.ndim or not targets.ndim or not 0 < len(inputs) == len(targets):
            raise ValueError(f"The {name} part must have a row of targets for each of one or more rows of inputs.")
        return inputs, targets

    def split(self, data) -> list[tuple[Tensor, Tensor]]:
        """Return 80 % of the rows, and two tenths of at most MOST."""
        inputs, targets = (torch.as_tensor(tensor) for tensor in data)
        return [(inputs[rows], targets[rows]) for rows in split_rows([row.numpy().tobytes() for row in inputs.cpu()])]

    def batches(self, part: tuple[Tensor, Tensor], config: TrainingConfig) -> Batches:
        """Return what a Trainer reads."""
        size = config.gradient_accumulation_steps, config.batch_size

        def batches(step: int) -> list[tuple[Tensor, Tensor]]:
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


def kind_of(data: Any) -> type[Text] | type[Examples] | type[Rows]:
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
        f"or a dict of three such parts, {', '.join(map(repr, NAMES))}."
    )


def split_rows(contents: Sequence[bytes]) -> list[list[int]]:
    """Return the numbers of the rows of each part, chosen by a hash of their contents, so that no two parts share one.

    Raises ValueError for fewer than ten different contents.
    """
    hashes = [hashlib.sha256(content).hexdigest() for content in contents]
    different = sorted(set(hashes))
    if len(different) < 10:
        raise ValueError(f"The data has {len(different)} different examples: to be split it must have 10 or more.")
    first, second = (different[int(share * len(different))] for share in SHARES)
    parts = [
        [i for i, h in enumerate(hashes) if h < first],
        [i for i, h in enumerate(hashes) if first <= h < second],
        [i for i, h in enumerate(hashes) if h >= second],
    ]
    return [parts[0], *(part[: MOST["examples"]] for part in parts[1:])]


def digest(part: Any) -> str:
    """Return a short identification of a tensor, a tuple of tensors, or a list."""
    tensors = (part,) if isinstance(part, Tensor) else part if isinstance(part, tuple) else ()
    sha = hashlib.sha256(b"" if tensors else repr(part).encode())
    for tensor in tensors:
        sha.update(tensor.detach().cpu().flatten().contiguous().view(torch.uint8).numpy())
    return sha.hexdigest()[:16]
