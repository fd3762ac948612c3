"""What an exercise is: a class that says what is asked, with inputs to try, a reference and the mistakes people make.

class Scores(Exercise, name="attention.scores", minutes=4):
    "Return the dot product of each query with each key."

    hint = "For a wrong answer that no known mistake explains."

    def inputs(): ...  # a list of argument tuples

    def reference(q, k): ...

    added = mistake("What helps whoever wrote this, without the formula.")(lambda q, k: q + k)

    @mistake("A hint says what goes wrong, or asks the question that helps, and leaves the mending to the learner.")
    def transposed(q, k): ...

Where a class is asked for, reference and mistakes are classes, and `through` says how one is built and called:

    def through(answer, n_head, weights, x):
        return with_weights(answer(x.shape[-1], n_head), weights)(x)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn


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
    minutes: ClassVar[int]  # that it may take, as the notebook says
    asks: ClassVar[str]
    hint: ClassVar[str]
    inputs: ClassVar[Callable[[], list[tuple]]]
    reference: ClassVar[Callable]
    through: ClassVar[Callable | None] = None  # (answer, *inputs) -> what is compared, where a class is asked for
    mistakes: ClassVar[tuple[Mistake, ...]]
    trains: ClassVar[tuple[str, ...]] = ()  # parameters that an answer may change
    differentiates: ClassVar[tuple[str, ...]] = ()  # modules in which an answer may leave gradients

    def __init_subclass__(cls, name: str, minutes: int) -> None:
        cls.name, cls.minutes = name, minutes
        cls.asks, cls.hint = " ".join(cls.__doc__.split()), " ".join(cls.hint.split())
        cls.mistakes = tuple(value for value in vars(cls).values() if isinstance(value, Mistake))

    @classmethod
    def calling(cls, answer: Callable) -> Callable:
        """Return the function of the inputs that gives what is compared: the answer, or its use in `through`."""
        return answer if cls.through is None else partial(cls.through, answer)


def with_weights(module: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """Copy weights into the parameters of a learner's module by their names, and return the module.

    Raises ValueError, in one sentence for the learner, if parameters of these names and shapes are not all there are.
    """
    named = sorted(module.named_parameters(remove_duplicate=False), key=lambda held: held[0] in weights)
    names = {parameter: name for name, parameter in named}  # of two names of a shared parameter, that in weights
    parameters = {name: parameter for parameter, name in names.items()}
    for name in sorted(weights.keys() | parameters.keys()):
        has, needs = (None if name not in held else tuple(held[name].shape) for held in (parameters, weights))
        if has != needs:
            wanted = f"be of shape {needs}" if needs else "not be there"
            raise ValueError(f"{name} should {wanted}, and {f'its shape is {has}' if has else 'it is missing'}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    return module
