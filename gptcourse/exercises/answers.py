"""Let later cells, and later notebooks, call what the learner wrote: `mine("attention.causal")`.

A right answer is kept twice: the function or class itself while the kernel runs, and its source in a small file beside
the progress. The source is run again only in the learner's own kernel, as a cell would be, and must pass its check.
"""

from __future__ import annotations

import ast
import inspect
import json
import math
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

from gptcourse.exercises.records import progress_file, under_new_names
from gptcourse.files import write_file

# What a cell of these notebooks has imported: enough to run a function away from its notebook.
COMMON = {"math": math, "np": np, "torch": torch, "nn": nn, "F": F, "Tensor": Tensor}
COMMON |= {"Counter": Counter, "defaultdict": defaultdict, "pairwise": pairwise}
_right: dict[str, Callable] = {}  # the right answers of this kernel, by exercise


def answers_file() -> Path:
    """Return the path of the file of right answers. Raises OSError if the user has no home directory."""
    return progress_file().with_name("answers.json")


def keep_answer(name: str, answer: Callable) -> None:
    """Keep a right answer, and its source where it has one and the file can be written."""
    _right[name] = answer
    try:
        source = _class_source(answer) if inspect.isclass(answer) else textwrap.dedent(inspect.getsource(answer))
        kept = kept_sources() | {name: {"calls": answer.__name__, "source": source}}
        write_file(answers_file(), json.dumps(kept, indent=1))
    except (
        OSError,
        TypeError,
        AttributeError,
        StopIteration,
    ):  # typed into a plain Python, a lambda in a list, a full disk
        return


def _class_source(answer: type) -> str:
    """Return the source of a class. One that a cell defines has no file that inspect can find, but its methods have."""
    method = next(value for value in vars(answer).values() if inspect.isfunction(value))
    lines, _ = inspect.findsource(method)
    found = (node for node in ast.walk(ast.parse("".join(lines))) if isinstance(node, ast.ClassDef))
    cell = next(node for node in found if node.name == answer.__name__)
    return textwrap.dedent("".join(lines[cell.lineno - 1 : cell.end_lineno]))


def kept_sources() -> dict[str, dict[str, str]]:
    """Return what the file holds, {exercise: {"calls": the function's name, "source": ...}}; nothing if damaged."""
    try:
        kept = under_new_names(json.loads(answers_file().read_bytes()))
        return {
            name: entry for name, entry in kept.items() if all(isinstance(entry[k], str) for k in ("calls", "source"))
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def forget_answers() -> None:
    """Forget the answers of this kernel, and delete the file. Raises OSError if it cannot be deleted."""
    _right.clear()
    answers_file().unlink(missing_ok=True)


def answer_in_this_kernel(name: str) -> Callable | None:
    """Return the right answer that was given in this kernel, None if none was."""
    return _right.get(name)


def run_source(name: str, kept: dict[str, dict[str, str]]) -> Any:
    """Run the kept source of an exercise, after those that it calls, and return what it defines.

    Whatever the source raises is raised. Raises KeyError if none is kept.
    """
    return _define(name, kept, dict(COMMON), set())


def _define(name, kept, namespace, begun):
    begun.add(name)
    tree = ast.parse(kept[name]["source"])
    called = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for other, entry in kept.items():
        if entry["calls"] in called and other not in begun:
            _define(other, kept, namespace, begun)
    exec(compile(tree, f"<your answer to {name}>", "exec"), namespace)
    return namespace[kept[name]["calls"]]
