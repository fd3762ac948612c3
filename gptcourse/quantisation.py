"""Weights in few bits: each row, or each group of a row, becomes small whole numbers and one scale.

Round to nearest, scaled by the largest magnitude (absmax): Dettmers et al. (2022), LLM.int8(), arXiv:2208.07339,
section 2; groups of 32 as in llama.cpp's format Q8_0. Here values are rounded and stay float32: such a model computes
what a quantised one computes, and takes as much memory and time as before.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from gptcourse.checks import COUNT, Shape, between, checked


@checked(weight=Shape("rows columns"), bits=between(2, 24), group=COUNT)
def quantise(weight: Tensor, bits: int, group: int | None = None) -> tuple[Tensor, Tensor]:
    """Return whole numbers (rows, groups, group) and scales (rows, groups, 1): their product is near the weights.

    weight (rows, columns); group=None takes each row as one group. Numbers go from -(2^(bits - 1) - 1) to the same
    above zero. Raises ValueError if groups do not fill a row, or unless there are 2 to 24 bits, those of float32.
    """
    group = weight.shape[1] if group is None else group
    if weight.shape[1] % group:
        raise ValueError(f"Groups of {group} do not fill rows of {weight.shape[1]}: give a divisor.")
    parts, largest = weight.unflatten(1, (-1, group)), 2 ** (bits - 1) - 1
    scales = parts.abs().amax(-1, keepdim=True) / largest
    scales = scales.half().float() if bits <= 8 else scales  # half precision has no numbers so small as those of more
    codes = (parts / scales.where(scales > 0, 1.0)).round().clamp(-largest, largest)
    return codes.to(torch.int8 if bits <= 8 else torch.int32), scales


@checked(codes=Shape("rows groups group", "real"), scales=Shape("rows groups 1"))
def dequantise(codes: Tensor, scales: Tensor) -> Tensor:
    """Return the weights (rows, columns) that codes and scales stand for."""
    return (codes * scales).flatten(1)


def quantised(model: nn.Module, bits: int, group: int | None = None) -> nn.Module:
    """Return a copy of a model whose matrices hold only values that `bits` can say; biases and norms stay."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for weight in (w for w in model.parameters() if w.dim() == 2):  # those that are shared come once
            weight.copy_(dequantise(*quantise(weight, bits, group)))
    return model


def stored_bytes(model: nn.Module, bits: int, group: int | None = None) -> int:
    """Return the bytes that a model's weights take: matrices in `bits` and their scales, the rest in float32."""
    total, scale_bits = 0, 16 if bits <= 8 else 32 if bits < 16 else 0  # half precision, single, none at all
    for weight in model.parameters():  # those that are shared count once
        scales = 0 if weight.dim() != 2 else weight.numel() // (group or weight.shape[1])
        total += weight.numel() * (bits if weight.dim() == 2 else 32) + scales * scale_bits
    return total // 8
