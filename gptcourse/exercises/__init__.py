"""Exercises that check themselves: `check("attention.causal", my_function)` says in one line how it went.

An exercise knows what is asked, inputs to try, a reference taken from the package or from torch, and the mistakes
people really make. A known mistake is recognised by its numbers: the mistaken formula is computed on the same inputs
and compared with the answer, so it gets a hint of its own, however the learner wrote it.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import inspect
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from gptcourse.exercises.comparison import difference, kind_of, shorten, show
from gptcourse.exercises.time_limit import TooSlow, within

TIME_LIMIT = 5.0  # seconds, for all inputs of an exercise together


@dataclass(frozen=True)
class Mistake:
    """A formula that people use by mistake, and the hint that helps without giving the answer away."""

    formula: Callable
    hint: str


@dataclass(frozen=True)
class Exercise:
    """One exercise: what it asks in a sentence, and what is needed to judge an answer."""

    name: str
    asks: str
    inputs: Callable[[], list[tuple]]
    reference: Callable
    hint: str  # for wrong answers that no known mistake explains
    mistakes: tuple[Mistake, ...]


class Muffler(io.TextIOBase):
    """Take the place of a stream and keep only whether anything was written."""

    used = False

    def write(self, text: str) -> int:
        self.used = True
        return len(text)


@cache
def exercises() -> dict[str, Exercise]:
    """Return every exercise by its name; the first part of the name is the module that holds it."""
    from gptcourse.exercises import attention, gpt_block, start

    return {exercise.name: exercise for module in (start, attention, gpt_block) for exercise in module.EXERCISES}


def check(name: str, answer: Any) -> bool:
    """Try the function `answer` on the exercise called `name`, print one line and return whether it is right.

    Nothing that the answer does is raised; only interrupting the kernel goes through.

    Raises ValueError if there is no such exercise.
    """
    known = exercises()
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.4) or known
        raise ValueError(f'There is no exercise "{name}". Did you mean one of these: {", ".join(near)}?')
    muffler = Muffler()
    quiet = contextlib.redirect_stdout(muffler), contextlib.redirect_stderr(Muffler())
    with quiet[0], quiet[1], torch.random.fork_rng(devices=[]):
        try:
            right, line = _judge(known[name], answer)
        except TooSlow:
            slow = f"there was no answer after {TIME_LIMIT:g} seconds. Is there a loop that never ends?"
            right, line = False, f"Not yet: {name}. The inputs are small, but {slow}"
        except Exception as error:  # an answer so odd that it cannot even be compared
            right, line = False, f"Not yet: {name}. What it returns cannot be compared: {shorten(error)}"
    aside = " (What your function prints is left out here; call it yourself to see it.)" if muffler.used else ""
    print(" ".join((line + aside).split()))
    return right


def _judge(exercise: Exercise, answer: Any) -> tuple[bool, str]:
    """Return whether the answer is right, and the line to print."""
    to_do, not_yet = f"To do: {exercise.name}. {exercise.asks}", f"Not yet: {exercise.name}."
    if answer is None or answer is ...:
        return False, to_do
    if not callable(answer):
        return False, f"{not_yet} Pass the function itself, by its name and without brackets, not {kind_of(answer)}."
    parameters = list(inspect.signature(exercise.reference).parameters)
    if not _accepts(answer, len(parameters)):
        return False, f"{not_yet} Your function should take {len(parameters)} inputs: {', '.join(parameters)}."
    torch.default_generator.manual_seed(0)
    fresh = exercise.inputs()
    want, _ = _outcomes(exercise.reference, fresh)
    got, used = within(TIME_LIMIT, lambda: _outcomes(answer, fresh))
    if any(isinstance(g, NotImplementedError) and " not implemented for " not in str(g) for g in got):
        return False, to_do
    if any(g is None or g is ... for g in got):
        return False, f"{to_do} (Your function returns nothing yet: does it end with a return?)"
    wrong = next((i for i, (g, w) in enumerate(zip(got, want, strict=True)) if difference(g, w)), None)
    if wrong is not None:
        for mistake in exercise.mistakes:
            mistaken, _ = _outcomes(mistake.formula, fresh)
            if not any(map(difference, got, mistaken)):
                return False, f"{not_yet} {mistake.hint}"
    for case, untouched in zip(used, fresh, strict=True):
        for parameter, now, before in zip(parameters, case, untouched, strict=True):
            if isinstance(before, Tensor) and not torch.equal(now, before):
                keep = "Whoever calls it still needs that tensor: work on a new one."
                return False, f"{not_yet} Your function changes its input {parameter} in place. {keep}"
    if wrong is None:
        return True, f"Right: {exercise.name}."
    given = ", ".join(f"{p} {show(value)}" for p, value in zip(parameters, fresh[wrong], strict=True))
    return False, f"{not_yet} For {given}: {difference(got[wrong], want[wrong])}. Hint: {exercise.hint}"


def _accepts(function: Callable, count: int) -> bool:
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # some built-in functions do not tell their parameters
        return True
    return True


def _outcomes(function: Callable, inputs: list[tuple]) -> tuple[list, list[tuple]]:
    """Return what `function` gives for copies of the inputs (or the exception it raises), and how it leaves them.

    Copies, because inputs drawn anew could differ: an answer that was left behind as too slow still runs in its thread.
    """
    cases, results = copy.deepcopy(inputs), []
    for case in cases:
        torch.default_generator.manual_seed(1)  # the same dropout for an answer and for a mistaken formula
        try:
            results.append(function(*case))
        except (KeyboardInterrupt, TooSlow):
            raise
        except BaseException as error:  # SystemExit, say
            results.append(error)
    return results, cases
