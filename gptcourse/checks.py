"""What a person can type wrong: numbers, choices, texts, lists and tensors, each refused with one sentence.

A *rule* is called with the name of an argument, its value, and the sizes that other arguments have given to letters of
shapes; it returns the value, a number as a plain one, or raises ValueError. `checked` applies rules to a function.
"""

from __future__ import annotations

import functools
import inspect
import math
import reprlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from numbers import Integral, Real
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

Rule: TypeAlias = Callable[[str, Any, dict], Any]
KINDS = {"finite": np.isfinite, "whole": lambda array: array == np.floor(array), "positive": lambda array: array > 0}


def shown(value: Any) -> str:
    """Return a value as a sentence can hold it: in one short line, and a tensor or array by its type and shape."""
    if isinstance(value, Tensor | np.ndarray):
        return f"{type(value).__name__} {(*value.shape,)} of {str(value.dtype).removeprefix('torch.')}"
    try:
        return " ".join(reprlib.repr(value).split())
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return "a number of thousands of digits"


# ---- Rules


class Number(NamedTuple):
    """The rule for a number: kind is Integral, for which 2.0 counts as 2, or Real; `wanted` says what fits.

    It gives a plain int or float, as JSON and torch's seeds take no NumPy numbers.
    """

    kind: type
    fits: Callable[[Any], bool]
    wanted: str

    def __call__(self, name: str, value: Any, _: dict | None = None) -> int | float:
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        if is_number and self.fits(value) and (self.kind is Real or value % 1 == 0):
            with suppress(OverflowError):  # of a whole number that no float can hold
                return float(value) if self.kind is Real else int(value)
        raise ValueError(f"{name} is {shown(value)}, but it must be {self.wanted}.")


def plain(value: Any) -> Any:
    """Return a number of NumPy's as one of Python's, which JSON takes, and anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


COUNT = Number(Integral, lambda x: 1 <= x < 2**63, "a whole number of 1 or more")  # what does not fit no library counts
COUNT_OR_ZERO = Number(Integral, lambda x: 0 <= x < 2**63, "a whole number of 0 or more")
SEED = Number(Integral, lambda x: 0 <= x < 2**64, "a whole number from 0 to 2**64 - 1")
FINITE = Number(Real, lambda x: -math.inf < x < math.inf, "a finite number")
POSITIVE = Number(Real, lambda x: 0 < x < math.inf, "a finite number greater than 0")
POSITIVE_OR_ZERO = Number(Real, lambda x: 0 <= x < math.inf, "a finite number of 0 or more")
BELOW_ONE = Number(Real, lambda x: 0 <= x < 1, "a number of at least 0 and less than 1")
INSIDE = Number(Real, lambda x: 0 < x < 1, "a number between 0 and 1")
SHARE = Number(Real, lambda x: 0 <= x <= 1, "a number from 0 to 1")


def between(low: int, high: int) -> Number:
    """Return the rule for a whole number from low to high."""
    return Number(Integral, lambda x: low <= x <= high, f"a whole number from {low} to {high}")


class Choice(NamedTuple):
    """The rule for one of a few texts, or of True and False."""

    options: Sequence

    def __call__(self, name: str, value: Any, _: dict | None = None) -> Any:
        if type(value) not in (str, bool) or value not in self.options:
            raise ValueError(f"{name} is {shown(value)}, but it must be one of {', '.join(map(str, self.options))}.")
        return value


class An(NamedTuple):
    """The rule for an object of one class, such as a config; `what` is a better name for it, if there is one."""

    kind: type
    what: str = ""

    def __call__(self, name: str, value: Any, _: dict | None = None) -> Any:
        if not isinstance(value, self.kind):
            raise ValueError(f"{name} is {shown(value)}, but it must be a {self.what or self.kind.__name__}.")
        return value


def is_list(value: Any) -> bool:
    """Return whether a value has entries in an order: a list, tuple, array or tensor."""
    has_length = hasattr(value, "__len__") and getattr(value, "ndim", 1) > 0
    return has_length and not isinstance(value, str | bytes | dict | set)


class ListOf(NamedTuple):
    """The rule for a list, tuple or array with entries of a kind, called `what`, and not fewer than `least`."""

    kind: Any
    what: str
    least: int = 0

    def __call__(self, name: str, value: Any, _: dict | None = None) -> Sequence:
        if not is_list(value) or len(value) < self.least or not all(isinstance(entry, self.kind) for entry in value):
            least = f" with {self.least} or more entries" if self.least else ""
            raise ValueError(f"{name} is {shown(value)}, but it must be a list of {self.what}{least}.")
        return value


TEXT, FLAG = An(str, "text"), Choice((True, False))
TEXTS, LABELS = ListOf(str, "texts"), ListOf(str | Real | np.bool_, "labels, texts or numbers")


def text_pairs(name: str, value: Any, _: dict | None = None) -> Sequence:
    """Apply the rule for a list of pairs of texts; it may be empty."""
    for row in value if is_list(value) else [None]:
        if not isinstance(row, tuple | list) or len(row) != 2 or not all(isinstance(part, str) for part in row):
            raise ValueError(f"{name} is {shown(value)}, but it must be a list of pairs of texts: [(text, label), …].")
    return value


DTYPES = {
    "floating-point": torch.is_floating_point,
    "whole": lambda tensor: not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool),
    "real": lambda tensor: not tensor.is_complex(),
    "boolean": lambda tensor: tensor.dtype == torch.bool,
}


class Shape(NamedTuple):
    """The rule for a tensor that is not empty: the letters of its sizes, such as "B T" or "... V", and its numbers.

    A letter is one size in all arguments; 1 is 1, and "..." are any sizes. It costs no time on a device: what the
    numbers are is not looked at.
    """

    letters: str
    numbers: str = "floating-point"

    def __call__(self, name: str, value: Any, sizes: dict) -> Tensor:
        if isinstance(value, Tensor) and DTYPES[self.numbers](value) and value.numel() and self._fits(value, sizes):
            return value
        known = [f"{letter} = {sizes[letter]}" for letter in self.letters.split() if letter in sizes and letter != "1"]
        shape = ", ".join([f"({', '.join(self.letters.split())})", *known])
        raise ValueError(
            f"{name} is {shown(value)}, but it must be a Tensor {shape} of {self.numbers} values, not empty."
        )

    def _fits(self, value, sizes):
        letters, found = self.letters.split(), [*value.shape]
        rest = len(found) - len(letters) + 1
        if letters[0] == "..." and rest >= 0:
            found[:rest] = [tuple(found[:rest])]
        own = dict(zip(letters, found, strict=False))
        fits = len(found) == len(letters) and all(sizes.get(letter, size) == size for letter, size in own.items())
        sizes.update(own if fits else {})
        return fits


def checked(**rules: Rule) -> Callable[[Callable], Callable]:
    """Return a decorator that applies a rule to each of these arguments; None stays where it is the default.

    Where the function cannot divide, or numbers become too large for a float, that is a ValueError as well.
    """

    def decorate(function: Callable) -> Callable:
        """Return the function with its rules; what its parameters are is looked at once, here."""
        parameters = inspect.signature(function).parameters
        rules_of = {name: rule for name, rule in rules.items() if parameters[name].default is not None}
        rules_of |= {name: _or_none(rule) for name, rule in rules.items() if parameters[name].default is None}
        names = [name for name, parameter in parameters.items() if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
        rest = [name for name, parameter in parameters.items() if parameter.kind is parameter.VAR_POSITIONAL] or [""]

        @functools.wraps(function)
        def call(*given, **named):
            """Apply the rules to what was given, by place or by name, and call the function."""
            sizes = {"1": 1}
            pairs = zip([*names, *rest * (len(given) - len(names))], given, strict=False)
            given = [rules_of[name](name, value, sizes) if name in rules_of else value for name, value in pairs]
            named |= {name: rules_of[name](name, value, sizes) for name, value in named.items() if name in rules_of}
            try:
                return function(*given, **named)
            except ArithmeticError as error:
                says = "cannot compute with numbers that are so large or so small: give others"
                raise ValueError(f"{function.__name__} {says}.") from error

        return call

    return decorate


def _or_none(rule: Rule) -> Rule:
    return lambda name, value, sizes: None if value is None else rule(name, value, sizes)


# ---- Lists


def as_array(values: Any) -> np.ndarray:
    """Return a list, a number, an array or a tensor as an array; what makes none is an object, of shape ()."""
    try:
        return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
    except (TypeError, ValueError):  # rows of several lengths; a type that NumPy has not
        return np.array(None)


def check_numbers(name: str, values, low=-math.inf, high=math.inf, kind: str = "finite") -> np.ndarray:
    """Return numbers, or one, as a float64 array (n,). Raises ValueError for none and for what is no number in range.

    All must be finite, and `kind` can demand "positive" ones, or "whole" ones, which 64 bits can hold.
    """
    low, high = (max(low, -(2**63)), min(high, 2**63 - 1024)) if kind == "whole" else (low, high)  # the last float
    try:
        array = np.atleast_1d(as_array(values))
        array = array.astype(object if array.dtype.kind in "SUc" else float)  # texts, "5" too, have no isfinite
        right = np.isfinite(array) & (low <= array) & (array <= high) & KINDS[kind](array)
        wrong = array[~right] if len(array) and array.ndim == 1 else [shown(values) if len(array) else "none"]
    except (TypeError, ValueError, OverflowError):
        wrong = [shown(values)]
    if len(wrong):
        raise ValueError(f"The {name} must be {kind} numbers from {low:g} to {high:g}, but there is {wrong[0]}.")
    return array


def check_lengths(**parts: Sequence) -> None:
    """Raise ValueError unless these are lists of one length, and not empty."""
    for name, part in parts.items():
        if not is_list(part):
            raise ValueError(f"The {name} must be a list, with one for each example, not {shown(part)}.")
    if len(sizes := {len(part) for part in parts.values()}) > 1 or 0 in sizes:
        counts = " and ".join(f"{len(part)} {name}" for name, part in parts.items())
        raise ValueError(f"There are {counts}: give one for each.")
