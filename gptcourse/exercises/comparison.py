"""Compare what an answer gives with what it should give, and say the difference in words."""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from torch import Tensor

NAN = "NaN (not a number, often 0 / 0 or infinity minus infinity)"


def difference(got: Any, want: Any) -> str | None:
    """Say in what way `got` is not `want`; None if they are the same, rounding aside."""
    if isinstance(got, BaseException) or isinstance(want, BaseException):
        same = type(got) is type(want) and str(got) == str(want)
        return None if same else f"it stops with {shorten(got)}"
    if isinstance(want, tuple):
        if not isinstance(got, tuple | list) or len(got) != len(want):
            return f"it should return {len(want)} things, and it returns {kind_of(got)}"
        found = ((i, difference(g, w)) for i, (g, w) in enumerate(zip(got, want, strict=True), start=1))
        return next((f"in number {i} of what it returns, {text}" for i, text in found if text), None)
    return _tensor_difference(got, want) if isinstance(want, Tensor) else _number_difference(got, want)


def _number_difference(got: Any, want: float) -> str | None:
    if isinstance(got, Tensor) and got.numel() == 1:
        got = got.item()
    kind, name = (numbers.Integral, "a whole number (int)") if isinstance(want, int) else (numbers.Real, "a number")
    if isinstance(got, bool) or not isinstance(got, kind):
        return f"it should return {name}, and it returns {kind_of(got)}"
    close = got == want or math.isclose(got, want, rel_tol=1e-5 * (kind is numbers.Real))
    same_nan = math.isnan(got) and math.isnan(want)
    return None if close or same_nan else f"it gives {NAN if math.isnan(got) else f'{got:.9g}'} instead of {want:.9g}"


def _tensor_difference(got: Any, want: Tensor) -> str | None:
    if not isinstance(got, Tensor):
        return f"it should return a tensor, and it returns {kind_of(got)}"
    if got.shape != want.shape:
        return f"the shape of what it returns is {tuple(got.shape)}, and it should be {tuple(want.shape)}"
    if got.dtype != want.dtype:
        return f"the dtype of what it returns is {got.dtype}, and it should be {want.dtype}"
    got, want = got.detach().to(want.device), want.detach()
    far = ~torch.isclose(got, want, rtol=1e-4, atol=1e-5, equal_nan=True)
    if not far.any():
        return None
    at = tuple(far.nonzero()[0].tolist())
    where = f"at position {at} " if at else ""
    if got[at].isnan():
        return f"{where}it gives {NAN} instead of {want[at]:.6g}"
    return f"{where}it gives {got[at]:.6g} instead of {want[at]:.6g}"


def kind_of(thing: Any) -> str:
    return f"{len(thing)} things" if isinstance(thing, tuple) else f"something of type {type(thing).__name__}"


def show(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"of shape {tuple(value.shape)}"
    return f"= {value:g}" if isinstance(value, float) else f"= {value}" if isinstance(value, int) else "as given"


def shorten(error: BaseException) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": .")
    return text if len(text) <= 160 else f"{text[:160]}..."
