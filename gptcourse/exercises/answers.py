"""Let later cells, and later notebooks, call what the learner wrote: `mine("attention.causal")`.

A right answer is kept twice: the function or class itself while the kernel runs, and its source in a small file beside
the progress. The source is run again only in the learner's own kernel, as a cell would be, and must pass its check.
"""

from __future__ import annotations

import ast
import inspect
import json
import math
import symtable
import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptcourse.exercises.records import progress_file, read_entries
from gptcourse.files import write_file

# What a cell of these notebooks has imported: enough to run a function away from its notebook.
COMMON = {"math": math, "np": np, "torch": torch, "nn": nn, "F": F, "Tensor": Tensor}
COMMON |= {"Counter": Counter, "defaultdict": defaultdict, "pairwise": pairwise}
right: dict[str, Callable] = {}  # the right answers of this kernel, by exercise


def answers_file() -> Path:
    """Return the path of the file of right answers. Raises OSError if the user has no home directory."""
    return progress_file().with_name("answers.json")


def keep_answer(name: str, answer: Callable, references: dict[Any, str]) -> None:
    """Keep a right answer, and its source where it has one and the file can be written.

    references: {solution of the course: exercise}; an answer may use those, and other right answers, as its parts.
    """
    right[name] = answer
    whose = {id(part): exercise for part, exercise in references.items()}
    whose |= {id(part): exercise for exercise, part in right.items()}
    try:
        source = "\n".join(_with_parts(answer, whose, set()))
        if not answer.__name__.isidentifier():
            raise TypeError("a lambda has no name to call it by")
        kept = _read_sources() | {name: {"calls": answer.__name__, "source": source}}
        write_file(answers_file(), json.dumps(kept, indent=1))
    # A plain Python, a lambda, a full disk.
    except (OSError, TypeError, AttributeError, StopIteration, SyntaxError, ValueError):
        return


def _with_parts(answer: Callable, whose: dict[int, str], begun: set[str]) -> list[str]:
    """Return the source of a function or class, after that of what it uses from its own cells."""
    if inspect.isclass(answer):
        method = next(value for value in vars(answer).values() if inspect.isfunction(value))
        around, source = method.__globals__, _class_source(answer, method)
    else:
        around = inspect.unwrap(answer).__globals__  # of a decorated answer, too: @torch.no_grad() is common
        source = textwrap.dedent(inspect.getsource(answer))
    begun.add(answer.__name__)
    parts = []
    for name in sorted(_globals_of(symtable.symtable(source, answer.__name__, "exec")) & around.keys()):
        if name not in begun and name not in COMMON:
            begun.add(name)
            parts += _part(name, around[name], answer, whose, begun)
    return [*parts, source]


def _globals_of(table: symtable.SymbolTable) -> set[str]:
    """Return the names that a program takes from its module: no parameters, and no variables of a function."""
    own = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global()}
    return own.union(*map(_globals_of, table.get_children()))


def _part(name: str, value: Any, answer: Callable, whose: dict[int, str], begun: set[str]) -> list[str]:
    """Return the lines that define one name which an answer uses: another answer, a helper, an import, a number."""
    if exercise := whose.get(id(value)):
        return [f'{name} = mine("{exercise}")']
    if inspect.ismodule(value):
        return [f"import {value.__name__} as {name}"]
    if inspect.isfunction(value) or inspect.isclass(value):
        if value.__module__ == answer.__module__:
            return _with_parts(value, whose, begun)
        return [f"from {value.__module__} import {value.__name__} as {name}"]
    if isinstance(value, float) and not math.isfinite(value):
        return [f'{name} = float("{value}")']
    if isinstance(value, bool | int | float | str):
        return [f"{name} = {value!r}"]
    for module in (math, torch, F, np):  # what is written in C: from math import sqrt
        if (own := getattr(value, "__name__", "")) and getattr(module, own, None) is value:
            return [f"from {module.__name__} import {own} as {name}"]
    return []


def _class_source(answer: type, method: Callable) -> str:
    """Return the source of a class. One that a cell defines has no file that inspect can find, but its methods have."""
    lines, _ = inspect.findsource(method)
    found = (node for node in ast.walk(ast.parse("".join(lines))) if isinstance(node, ast.ClassDef))
    place = method.__code__.co_firstlineno
    cell = next(node for node in found if node.name == answer.__name__ and node.lineno <= place <= node.end_lineno)
    begin = min([cell.lineno, *(one.lineno for one in cell.decorator_list)])
    return textwrap.dedent("".join(lines[begin - 1 : cell.end_lineno]))


def kept_sources() -> dict[str, dict[str, str]]:
    """Return what can be read of the file, {exercise: {"calls": the function's name, "source": ...}}."""
    try:
        return _read_sources()
    except OSError:
        return {}


def _read_sources() -> dict[str, dict[str, str]]:
    return read_entries(answers_file(), lambda entry: {part: "" + entry[part] for part in ("calls", "source")})


def forget_answers() -> None:
    """Forget the answers of this kernel, and delete the file. Raises OSError if it cannot be deleted."""
    right.clear()
    answers_file().unlink(missing_ok=True)


def run_source(name: str, kept: dict[str, dict[str, str]], mine: Callable) -> Any:
    """Run the kept source of an exercise and return what it defines.

    mine: what gives the source other answers, by exercise. Whatever the source raises is raised. Raises KeyError if
    none is kept.
    """
    namespace = COMMON | {"mine": mine}
    exec(compile(kept[name]["source"], f"<your answer to {name}>", "exec"), namespace)
    return namespace[kept[name]["calls"]]
