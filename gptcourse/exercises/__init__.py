"""Exercises that check themselves: `check("attention.causal", my_function)` says in one line how it went.

An exercise knows what is asked, inputs to try, a reference taken from the package or from torch, and the mistakes
people really make. A known mistake is recognised by its numbers: the mistaken formula is computed on the same inputs
and compared with the answer, so it gets a hint of its own, however the learner wrote it. `progress()` shows what is
solved so far.
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
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from gptcourse.exercises.comparison import difference, kind_of, shorten, show
from gptcourse.exercises.records import Progress, Record, forget_progress, read_records, remember
from gptcourse.exercises.time_limit import TooSlow, within

__all__ = ["Exercise", "Mistake", "check", "exercises", "forget_progress", "progress"]

TIME_LIMIT = 5.0  # seconds, for all inputs of an exercise together


@dataclass(frozen=True)
class Mistake:
    """A formula that people use by mistake, and the hint that helps without giving the answer away."""

    formula: Callable
    hint: str
    untouched: bool = False  # what the notebook's own code does before anybody mends it: not a try


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
    return {exercise.name: exercise for module in _modules() for exercise in module.EXERCISES}


def _modules() -> tuple[ModuleType, ...]:
    """Return the modules of exercises in the order of the notebooks."""
    from gptcourse.exercises import attention, evaluation, fine_tuning, gpt_block, scaling, start, tuning

    return start, attention, gpt_block, tuning, fine_tuning, scaling, evaluation


def progress() -> Progress:
    """Return a table of all exercises: which of them this user has solved, and after how many tries.

    An exercise that stands as it came is not counted as a try, and after the first right answer nothing is. It is read
    from a small file, in the folder GPTCOURSE_PROGRESS if that is set; `forget_progress()` deletes it.
    """
    records, problem = read_records()
    parts = {m.NOTEBOOK: {e.name: records.get(e.name, Record()) for e in m.EXERCISES} for m in _modules()}
    return Progress(parts, problem)


def check(name: str, answer: Any) -> bool:
    """Try the function `answer` on the exercise called `name`, print one line and return whether it is right.

    Nothing that the answer does is raised; only interrupting the kernel goes through. What was tried is remembered for
    `progress`.

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
    if muffler.used:
        line += " (What your function prints is left out here; call it yourself to see it.)"
    not_kept = "" if right is None else remember(name, right)
    if right and not_kept:  # before that there is little to lose
        line += f" ({not_kept})"
    print(" ".join(line.split()))
    return bool(right)


def _judge(exercise: Exercise, answer: Any) -> tuple[bool | None, str]:
    """Return whether the answer is right (None if it stands as it came), and the line to print."""
    to_do, not_yet = f"To do: {exercise.name}. {exercise.asks}", f"Not yet: {exercise.name}."
    if answer is None or answer is ...:
        return None, to_do
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
        return None, to_do
    if any(g is None or g is ... for g in got):
        return None, f"{to_do} (Your function returns nothing yet: does it end with a return?)"
    wrong = next((i for i, (g, w) in enumerate(zip(got, want, strict=True)) if difference(g, w)), None)
    if wrong is not None:
        for mistake in exercise.mistakes:
            mistaken, _ = _outcomes(mistake.formula, fresh)
            if not any(map(difference, got, mistaken)):
                return None if mistake.untouched else False, f"{not_yet} {mistake.hint}"
    for case, untouched in zip(used, fresh, strict=True):
        for parameter, now, before in zip(parameters, case, untouched, strict=True):
            if _changed(now, before):
                keep = "Whoever calls it still needs what was there: work on something new."
                return False, f"{not_yet} Your function changes its input {parameter} in place. {keep}"
    if wrong is None:
        return True, f"Right: {exercise.name}."
    given = ", ".join(f"{p} {show(value)}" for p, value in zip(parameters, fresh[wrong], strict=True))
    return False, f"{not_yet} For {given}: {difference(got[wrong], want[wrong])}. Hint: {exercise.hint}"


def _changed(now: Any, before: Any) -> bool:
    """Say whether a tensor, or a list with tensors in it, is no longer what it was; modules may be trained."""
    if isinstance(before, Tensor):
        return now.dtype != before.dtype or not torch.equal(now, before)
    if isinstance(before, list | tuple):
        return len(now) != len(before) or any(map(_changed, now, before))
    return False


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
