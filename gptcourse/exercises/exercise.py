"""What an exercise is: a class that says what is asked, with inputs to try, a reference and the mistakes people make.

class Scores(Exercise, name="attention.scores"):
    "Return the dot product of each query with each key."

    hint = "For a wrong answer that no known mistake explains."

    def inputs(): ...  # a list of argument tuples

    def reference(q, k): ...

    added = mistake("What helps whoever wrote this, without the formula.")(lambda q, k: q + k)

    @mistake("A hint says what goes wrong, or asks the question that helps, and leaves the mending to the learner.")
    def transposed(q, k): ...
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar


@dataclass(frozen=True)
class Mistake:
    """A wrong answer as a learner writes it. Whatever gives the same numbers gets its hint."""

    function: Callable
    hint: str
    untouched: bool = False  # the notebook's own code before anybody mends it: not a try

    def __call__(self, *inputs):
        """Return what the mistaken function gives."""
        return self.function(*inputs)


def mistake(hint: str, untouched: bool = False) -> Callable[[Callable], Mistake]:
    """Register the function that follows as a known mistake of an exercise."""
    return lambda function: Mistake(function, " ".join(hint.split()), untouched)


as_it_stands = partial(mistake, untouched=True)  # the mistake that the notebook shows: answering with it is no try


class Exercise:
    """An exercise; a subclass needs a docstring (what is asked), `hint`, `inputs`, `reference` and mistakes."""

    name: ClassVar[str]
    asks: ClassVar[str]
    hint: ClassVar[str]
    inputs: ClassVar[Callable[[], list[tuple]]]
    reference: ClassVar[Callable]
    mistakes: ClassVar[tuple[Mistake, ...]]
    trains: ClassVar[tuple[str, ...]] = ()  # parameters that an answer may change
    differentiates: ClassVar[tuple[str, ...]] = ()  # modules in which an answer may leave gradients

    def __init_subclass__(cls, name: str) -> None:
        cls.name, cls.asks, cls.hint = name, " ".join(cls.__doc__.split()), " ".join(cls.hint.split())
        cls.mistakes = tuple(value for value in vars(cls).values() if isinstance(value, Mistake))
