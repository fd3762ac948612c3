"""Exercises that check themselves: `check("attention.causal", my_function)` says how it went.

An answer is tried on a few inputs and compared with a reference. A known mistake is recognised by its numbers: the
mistaken function runs on the same inputs, so its hint helps however the learner wrote it. `progress()` shows what is
solved so far.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import inspect
import io
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from gptcourse.exercises import answers
from gptcourse.exercises.cards import card, say
from gptcourse.exercises.comparison import compare, kind_of, shorten, show, size
from gptcourse.exercises.exercise import Exercise, Mistake, as_it_stands, mistake
from gptcourse.exercises.losses import LossBoard
from gptcourse.exercises.records import RENAMED, Progress, Record, progress_file, read_records, remember
from gptcourse.exercises.surroundings import own_modes, own_surroundings, restore_functions
from gptcourse.exercises.time_limit import TooSlow, within

__all__ = [
    "Exercise",
    "LossBoard",
    "Mistake",
    "as_it_stands",
    "check",
    "exercises",
    "forget_progress",
    "mine",
    "mistake",
    "progress",
]

TIME_LIMIT = 5.0  # seconds, for all inputs of an exercise together


class Muffler(io.TextIOBase):
    """Take the place of a stream and keep only whether anything was written."""

    used = False

    def write(self, text: str) -> int:
        self.used = True
        return len(text)


def exercises() -> dict[str, type[Exercise]]:
    """Return every exercise by its name, in the order of the notebooks."""
    return {exercise.name: exercise for module in _modules() for exercise in _exercises_of(module)}


def _modules() -> tuple[ModuleType, ...]:
    """Return the modules of exercises in the order of the notebooks."""
    from gptcourse.exercises import (
        attention,
        decoding,
        evaluation,
        fine_tuning,
        first_model,
        gpt_block,
        modern,
        own_data,
        preferences,
        scaling,
        start,
        training,
        tune_own,
        tuning,
    )

    learning = start, first_model, attention, gpt_block, training, tuning, own_data, tune_own
    return *learning, decoding, fine_tuning, preferences, scaling, evaluation, modern


def _exercises_of(module: ModuleType) -> list[type[Exercise]]:
    return [e for e in vars(module).values() if inspect.isclass(e) and issubclass(e, Exercise) and e is not Exercise]


def progress() -> Progress:
    """Return how far this user has come: a bar for each notebook, what is next, and the minutes that are left.

    An exercise that stands as it came is not counted as a try, and after the first right answer nothing is. It is read
    from a small file, in the folder GPTCOURSE_PROGRESS if that is set; `forget_progress()` deletes it.
    """
    records, problem = read_records()
    parts: dict[str, dict[str, Record]] = {}
    for module in _modules():  # a notebook may have several
        own = {e.name: records.get(e.name, Record()) for e in _exercises_of(module)}
        parts.setdefault(module.NOTEBOOK, {}).update(own)
    return Progress(parts, problem, {name: exercise.minutes for name, exercise in exercises().items()})


def check(name: str, answer: Any) -> bool:
    """Try an answer, a function or a class, on the exercise called `name`, say how it went and return if it is right.

    Nothing that the answer does is raised; only interrupting the kernel goes through. What was tried is remembered for
    `progress`.

    Raises ValueError if there is no such exercise.
    """
    exercise = _named(name)
    name = exercise.name
    right, line = _try(exercise, answer)
    not_kept = "" if right is None else remember(name, right)
    if right and not_kept:  # before that there is little to lose
        line += f" ({not_kept})"
    if right:
        answers.keep_answer(exercise.name, answer, {known.reference: known.name for known in exercises().values()})
    line = " ".join(line.split())
    say(line, card(right, line, exercise.hint))
    return bool(right)


def forget_progress() -> None:
    """Forget every try, every solved exercise and every answer: delete the files.

    Raises OSError if they cannot be deleted, or if there is no place for them.
    """
    progress_file().unlink(missing_ok=True)
    answers.forget_answers()


def mine(name: str) -> Callable:
    """Return your right answer to an exercise, of this notebook or an earlier one, so that a cell can call it.

    Until there is one it is the course's own solution, and a line says so. An answer from an earlier notebook is run
    again from its source and must pass its check. Raises ValueError if there is no such exercise.
    """
    exercise = _named(name)
    name = exercise.name
    if name in answers.right:
        return answers.right[name]
    kept = answers.kept_sources()
    if name in kept:
        try:
            answer = answers.run_source(name, kept, mine)
            if _try(exercise, answer)[0]:
                answers.right[name] = answer
                return answer
        except Exception:  # it needs something that only its own notebook has
            pass
        say(f"Your answer to {name} does not run in this notebook: the course's solution stands in for it.")
    else:
        say(f"{name} is not solved yet: the course's solution stands in for yours.")
    return exercise.reference


def _named(name: str) -> type[Exercise]:
    """Return the exercise of that name, today's or an earlier one. Raises ValueError, with the nearest, for no such."""
    known = exercises()
    name = RENAMED.get(name, name)
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.4) or known
        raise ValueError(f'There is no exercise "{name}". Did you mean one of these: {", ".join(near)}?')
    return known[name]


def _try(exercise: type[Exercise], answer: Any) -> tuple[bool | None, str]:
    """Return whether the answer is right (None if it stands as it came), and a line that says so."""
    muffler = Muffler()
    with contextlib.redirect_stdout(muffler), contextlib.redirect_stderr(Muffler()), own_surroundings():
        try:
            right, line = _judge(exercise, answer)
        except TooSlow:
            slow = f"there was no answer after {TIME_LIMIT:g} seconds. Is there a loop that never ends?"
            right, line = False, f"Not yet: {exercise.name}. The inputs are small, but {slow}"
        except Exception as error:  # an answer so odd that it cannot even be compared
            right, line = False, f"Not yet: {exercise.name}. What it returns cannot be compared: {shorten(error)}"
    if muffler.used:
        line += " (What your function prints is left out here; call it yourself to see it.)"
    return right, line


def _judge(exercise: type[Exercise], answer: Any) -> tuple[bool | None, str]:
    """Return whether the answer is right (None if it stands as it came), and the line to print."""
    to_do, not_yet = f"To do: {exercise.name}. {exercise.asks}", f"Not yet: {exercise.name}."
    if answer is None or answer is ...:
        return None, to_do
    if not callable(answer):
        return False, f"{not_yet} Pass the function itself, by its name and without brackets, not {kind_of(answer)}."
    asked = list(inspect.signature(exercise.reference).parameters)
    if not _accepts(answer, len(asked)):
        whose = "The __init__ of your class" if inspect.isclass(exercise.reference) else "Your function"
        return False, f"{not_yet} {whose} should take {len(asked)} inputs: {', '.join(asked)}."
    with own_modes():
        torch.default_generator.manual_seed(0)
        fresh = exercise.inputs()
        want, _ = _outcomes(exercise.calling(exercise.reference), fresh)
    for failed in filter(lambda w: isinstance(w, BaseException), want):
        raise RuntimeError("the exercise itself is broken") from failed  # so that no exception is ever right
    got, used = within(TIME_LIMIT, lambda: _outcomes(exercise.calling(answer), fresh))
    restore_functions()  # before anything is compared
    if any(isinstance(g, NotImplementedError) and " not implemented for " not in str(g) for g in got):
        return None, to_do
    if any(g is None or g is ... for g in got):
        return None, f"{to_do} (Your function returns nothing yet: does it end with a return?)"
    untouched, problem = _problem(exercise, fresh, used, got, want)
    if problem is None:
        return True, f"Right: {exercise.name}."
    return None if untouched else False, f"{not_yet} {problem}"


def _problem(exercise, fresh, used, got, want) -> tuple[bool, str | None]:
    """Return whether the answer is the notebook's own code, and what is to be said against it (None if it is right)."""
    parameters = list(inspect.signature(exercise.calling(exercise.reference)).parameters)
    compared = [compare(g, w) for g, w in zip(got, want, strict=True)]
    wrong = [i for i, (numbers, _) in enumerate(compared) if numbers]
    if wrong:
        for known in exercise.mistakes:
            mistaken, _ = _outcomes(exercise.calling(known), fresh)
            if not any(compare(g, m)[0] for g, m in zip(got, mistaken, strict=True)):
                return known.untouched, known.hint
    if (changed := _changed_input(exercise, parameters, used, fresh)) is not None:
        return False, changed
    if wrong:
        smallest = min(wrong, key=lambda i: size(fresh[i]))
        given = ", ".join(f"{p} {show(value)}" for p, value in zip(parameters, fresh[smallest], strict=True))
        return False, f"For {given}: {compared[smallest][0]}. Hint: {exercise.hint}"
    if kinds := [kind for _, kind in compared if kind]:
        return False, f"The numbers are right, the type is not: {kinds[0]}."
    if any(isinstance(w, Tensor) and w.requires_grad and not g.requires_grad for g, w in zip(got, want, strict=True)):
        return False, (
            "The numbers are right, but no gradient can go back through them. What cuts it off: "
            "a no_grad, a detach, an item or another library?"
        )
    return False, None


def _changed_input(exercise, parameters, used, fresh) -> str | None:
    """Say which input was changed in place, of those that should stay as they are."""
    for case, untouched in zip(used, fresh, strict=True):
        for parameter, now, before in zip(parameters, case, untouched, strict=True):
            if parameter not in exercise.trains and _changed(now, before, parameter in exercise.differentiates):
                keep = "Whoever calls it still needs what was there: work on something new."
                if isinstance(before, nn.Module):
                    keep = "Leave its weights, its gradients and its mode (training or evaluation) as they were."
                return f"Your function changes its input {parameter} in place. {keep}"
    return None


def _changed(now: Any, before: Any, may_differentiate: bool = False) -> bool:
    """Say whether an input, or anything in it, is no longer what it was."""
    if type(now) is not type(before):
        return True
    if isinstance(before, Tensor):
        return now.dtype != before.dtype or not torch.equal(now, before)
    if isinstance(before, nn.Module):
        now, before = (_state(module, may_differentiate) for module in (now, before))
    elif isinstance(before, dict):
        now, before = list(now.items()), list(before.items())
    if isinstance(before, list | tuple):
        return len(now) != len(before) or any(map(_changed, now, before))
    return type(before) in (int, float, str, bool) and now != before


def _state(module: nn.Module, may_differentiate: bool) -> list:
    """Return the weights, the modes and the gradients of a module."""
    gradients = [] if may_differentiate else [parameter.grad for parameter in module.parameters()]
    return [dict(module.state_dict()), [part.training for part in module.modules()], gradients]


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
    results: list = []
    with own_modes():
        cases = _copies(inputs)
    for seed, case in enumerate(cases, start=1):
        with own_modes():
            torch.default_generator.manual_seed(seed)  # the same dropout for an answer and for a mistake
            try:
                results.append(function(*case))
            except (KeyboardInterrupt, TooSlow):
                raise
            except BaseException as error:  # SystemExit, say
                results.append(error)
    return results, cases


def _copies(inputs: list[tuple]) -> list[tuple]:
    """Copy inputs, the gradients of modules too: deepcopy leaves those behind."""
    copies = copy.deepcopy(inputs)
    for parameter, twin in zip(_parameters(inputs), _parameters(copies), strict=True):
        twin.grad = copy.deepcopy(parameter.grad)
    return copies


def _parameters(inputs: list[tuple]) -> list[Tensor]:
    return [p for case in inputs for value in case if isinstance(value, nn.Module) for p in value.parameters()]
