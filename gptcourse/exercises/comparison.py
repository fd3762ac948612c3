"""Compare what an answer gives with what it should give, and say the difference in words."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

NAN = "NaN (not a number, often 0 / 0 or infinity minus infinity)"
SHOWN = 8  # tensors and lists of so many numbers are written out


def compare(got: Any, want: Any) -> tuple[str | None, str | None]:
    """Say how the numbers of `got` differ from those of `want`, and how its type does; None where they do not.

    Whole numbers are compared exactly, others up to rounding.
    """
    if isinstance(got, BaseException) or isinstance(want, BaseException):
        same = type(got) is type(want) and str(got) == str(want)
        return None if same else f"it stops with {shorten(got)}", None
    if isinstance(want, tuple):
        return _compare_parts(got, want)
    if isinstance(want, str):
        return None if got == want else f"it gives {got!r:.60} instead of {want!r}", None
    return _compare_tensors(got, want) if isinstance(want, Tensor) else _compare_numbers(got, want)


def _compare_parts(got: Any, want: tuple) -> tuple[str | None, str | None]:
    if not isinstance(got, tuple | list) or len(got) != len(want):
        return f"it should return {len(want)} things, and it returns {kind_of(got)}", None
    found: list[str | None] = [None, None]
    for place, parts in enumerate(zip(got, want, strict=True), start=1):
        for which, text in enumerate(compare(*parts)):
            if text and not found[which]:
                found[which] = f"in number {place} of what it returns, {text}"
    return found[0], found[1]


def _compare_numbers(got: Any, want: float) -> tuple[str | None, str | None]:
    whole = isinstance(want, int)
    kind = f"it should return {'a whole number (int)' if whole else 'a number'}, and it returns {kind_of(got)}"
    may_be_rounded = isinstance(got, Tensor)  # to float32
    if isinstance(got, Tensor | np.ndarray | np.generic) and math.prod(got.shape) == 1:
        got = got.item()
    if isinstance(got, bool) or not isinstance(got, numbers.Complex):
        return kind, None
    right_kind = isinstance(got, numbers.Integral if whole else numbers.Real)
    if isinstance(got, complex) and got.imag:
        return kind, None
    if _same(got.real, want, may_be_rounded):
        return None, None if right_kind else kind
    return f"it gives {_number(got.real)} instead of {_number(want)}", None


def _same(got: float, want: float, may_be_rounded: bool) -> bool:
    """Say whether two numbers agree; whole ones exactly, where no float32 can have rounded them."""
    if isinstance(want, int) or (not may_be_rounded and _whole(got) and _whole(want)):
        return got == want
    close = math.isclose(got, want, rel_tol=1e-5, abs_tol=1e-12)
    return got == want or close or (math.isnan(got) and math.isnan(want))


def _whole(value: float) -> bool:
    return math.isfinite(value) and value == int(value) and abs(value) < 2**53


def _compare_tensors(got: Any, want: Tensor) -> tuple[str | None, str | None]:
    kind = None if isinstance(got, Tensor) else f"it should return a tensor, and it returns {kind_of(got)}"
    if isinstance(got, tuple):
        return kind, None
    if kind:
        try:
            got = torch.as_tensor(np.asarray(got))
        except (TypeError, ValueError, RuntimeError):
            return kind, None
    elif got.dtype != want.dtype:
        kind = f"the dtype of what it returns is {got.dtype}, and it should be {want.dtype}"
    if got.shape != want.shape:
        shapes = f"the shape of what it returns is {tuple(got.shape)}, and it should be {tuple(want.shape)}"
        if got.numel() != 1 or want.numel() != 1:
            return shapes, None
        got, kind = got.reshape(want.shape), kind or shapes
    if got.is_complex():
        return kind, None
    return _first_difference(got.detach(), want.detach()), kind


def _first_difference(got: Tensor, want: Tensor) -> str | None:
    rounded = {"rtol": 1e-4, "atol": 1e-5, "equal_nan": True} if want.is_floating_point() else {"rtol": 0, "atol": 0}
    got, want = got.cpu().double(), want.cpu().double()
    far = ~torch.isclose(got, want, **rounded)
    if not far.any():
        return None
    if 1 < want.numel() <= SHOWN and not got.isnan().any():
        return f"it gives {_numbers(got)} instead of {_numbers(want)}"
    at = tuple(far.nonzero()[0].tolist())
    where = f"at position {at} " if at else ""
    return f"{where}it gives {_number(got[at].item())} instead of {_number(want[at].item())}"


def _number(value: float) -> str:
    return NAN if math.isnan(value) else str(value) if isinstance(value, int) else f"{value:.9g}"


def _numbers(values: Any) -> str:
    """Write out a small tensor or list, rounded."""
    if isinstance(values, Tensor):
        values = values.tolist()
    if isinstance(values, Sequence) and not isinstance(values, str):
        return f"[{', '.join(map(_numbers, values))}]"
    return f"{values:.4g}" if isinstance(values, float) else repr(values)


def size(value: Any) -> int:
    """Return how much there is to read in an input."""
    if isinstance(value, Tensor):
        return value.numel()
    if isinstance(value, nn.Module):
        return sum(p.numel() for p in value.parameters())
    if isinstance(value, dict):
        value = tuple(value.values())
    return sum(map(size, value)) if isinstance(value, list | tuple) else 1


def show(value: Any) -> str:
    """Write an input: its numbers if there are few, else its shape."""
    if isinstance(value, int | str | float) and not isinstance(value, bool):
        return f"= {value:g}" if isinstance(value, float) else f"= {value!r}"[:80]
    if isinstance(value, Tensor):
        return f"= {_numbers(value.detach())}" if value.numel() <= SHOWN else f"of shape {tuple(value.shape)}"
    if isinstance(value, list | tuple) and size(value) <= SHOWN:
        return f"= {_numbers(value)}"
    return "as given"


def kind_of(thing: Any) -> str:
    """Name the type of an answer."""
    if isinstance(thing, list):
        return f"a list of {len(thing)}"
    return f"{len(thing)} things" if isinstance(thing, tuple) else f"something of type {type(thing).__name__}"


def shorten(error: BaseException) -> str:
    """Write an exception in one short line."""
    text = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": .")
    return text if len(text) <= 160 else f"{text[:160]}..."
