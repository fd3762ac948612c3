"""Remember which exercises are solved: one small JSON file for each user, and a table of it.

The file is a convenience. Whatever is wrong with it, `check` works. Of a damaged file a copy is kept, and what can be
read of it is used; one that cannot be read or written, or that a newer version of the course wrote, is left as it is,
and nothing is remembered.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import date
from html import escape
from pathlib import Path
from typing import Any

import platformdirs

from gptcourse.files import write_file

FORMAT = 1  # of the file; a higher number comes from a newer version of the course
DAMAGED = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)  # what a file may raise
MOVED = (  # (from, to, exercises), in the order of the versions
    ("gpt_block", "first_model", ("shift", "loss", "first_loss", "mend_sure", "mend_parrot")),
    ("gpt_block", "training", ("mend_swing", "mend_twice", "mend_percent")),
    ("fine_tuning", "decoding", ("top_p", "repetition_penalty", "perplexity", "mend_temperature", "mend_top_p")),
    ("tuning", "tune_own", ("mend_decay",)),
)
# {name in an earlier version: name now}: what was solved under the earlier one is still known.
RENAMED = {f"{old}.{name}": f"{new}.{name}" for old, new, names in MOVED for name in names}


@dataclass(frozen=True)
class Record:
    """What is known of one exercise: the tries up to the first right answer, and the day of that answer."""

    tries: int = 0
    solved: str | None = None  # 2026-01-31, say


@dataclass(frozen=True)
class Progress:
    """The records of some notebooks' exercises; a notebook shows them as a table, anything else as text."""

    parts: dict[str, dict[str, Record]]  # {title of the notebook: {exercise: record}}
    note: str = ""

    def __repr__(self) -> str:
        width = max((len(name) for records in self.parts.values() for name in records), default=0)
        lines = []
        for title, records in self.parts.items():
            lines.append(f"{title}: {_solved(records)}")
            lines += [f"  {name:{width}}  {_state(r):17}  tries: {r.tries}" for name, r in records.items()]
        return "\n".join(lines + [self.note] * bool(self.note))

    def _repr_html_(self) -> str:
        """Each notebook is one line, with its exercises in a fold."""
        folds = []
        for title, records in self.parts.items():
            rows = ((name, _state(record), f"tries: {record.tries}") for name, record in records.items())
            cells = ("".join(f'<td style="text-align:left">{escape(text)}</td>' for text in row) for row in rows)
            table = "\n".join(f"<tr>{row}</tr>" for row in cells)
            folds.append(f"<details><summary>{escape(title)}: {_solved(records)}</summary>")
            folds.append(f"<table>\n{table}\n</table></details>")
        return "\n".join(folds) + f"<p>{escape(self.note)}</p>" * bool(self.note)


def _solved(records: dict[str, Record]) -> str:
    return f"{sum(record.solved is not None for record in records.values())} of {len(records)} solved"


def _state(record: Record) -> str:
    return f"solved {record.solved}" if record.solved else "tried" if record.tries else "to do"


def progress_file() -> Path:
    """Return the path of the file: in the folder GPTCOURSE_PROGRESS if that is set, else among the user's own data.

    Not in the folder of the downloads, GPTCOURSE_CACHE: a class may share that one.

    Raises OSError if the user has no home directory.
    """
    chosen = os.environ.get("GPTCOURSE_PROGRESS")
    try:
        folder = chosen or platformdirs.user_data_dir("gptcourse", appauthor=False)
        return Path(folder, "progress.json").expanduser()
    except RuntimeError as error:  # pathlib's and platformdirs'
        kept = chosen or "your progress"
        raise OSError(
            f"there is no home directory for {kept}: set GPTCOURSE_PROGRESS to the path of a folder"
        ) from error


def read_records() -> tuple[dict[str, Record], str]:
    """Return the records by exercise, and a sentence that says why they cannot be used ("" if they can)."""
    try:
        return read_entries(progress_file(), _record, _exercises), ""
    except OSError as error:
        return {}, _not_kept(error)


def read_entries(path: Path, read: Callable[[Any], Any], find: Callable[[Any], Any] = dict) -> dict[str, Any]:
    """Return what `read` makes of each entry of a JSON file, of which `find` gives the dict of them; {} for no file.

    Where one or all are damaged, a copy of the file is kept, which the next one written would replace, and a warning
    names it. Raises OSError if the file cannot be read, or the copy not be written.
    """
    found, kept = {}, {"": None}  # which nothing can read
    with suppress(*DAMAGED):
        kept = under_new_names(find(json.loads(path.read_bytes()))) if path.exists() else {}
    for name, entry in kept.items():
        with suppress(*DAMAGED):
            found[name] = read(entry)
    if len(found) < len(kept):
        copy = shutil.copyfile(path, path.with_name(f"{path.name}.damaged"))
        warnings.warn(f"{path} is damaged: what can be read of it is used, and {copy} is a copy of it.", stacklevel=2)
    return found


def _exercises(data: Any) -> Any:
    """Return the entries of the file of progress. Raises OSError if it is of a newer version."""
    if type(data["version"]) is int and data["version"] > FORMAT:
        raise OSError(f"a newer version of this course wrote {progress_file()}, so bring the course up to date")
    return data["exercises"] if data["version"] == FORMAT else None


def under_new_names(entries: dict[str, Any]) -> dict[str, Any]:
    """Return the entries by the exercises' names of today; one under its new name goes before one under an old name."""
    return {RENAMED.get(name, name): entry for name, entry in entries.items()} | {
        name: entry for name, entry in entries.items() if name not in RENAMED
    }


def _record(entry: Any) -> Record:
    """Return the Record that `entry` of the file describes. Raises one of DAMAGED if it describes none."""
    record = Record(**entry)
    if record.solved is not None:
        date.fromisoformat(record.solved)
    if type(record.tries) is not int or record.tries < 1:
        raise ValueError
    return record


def _not_kept(reason: Exception | str) -> str:
    return f"Your progress cannot be kept: {' '.join(str(reason).split())}."


def remember(name: str, right: bool) -> str:
    """Count one more try of the exercise `name`, up to the first right answer.

    Return a sentence that says why it could not be kept, "" if it was. Of two kernels that write at the same moment
    the later one wins; the file is whole at any time.
    """
    records, problem = read_records()
    known = records.get(name, Record())
    if problem or known.solved:
        return problem
    records[name] = Record(known.tries + 1, date.today().isoformat() if right else None)
    entries = {exercise: asdict(record) for exercise, record in records.items()}
    try:
        write_file(progress_file(), json.dumps({"version": FORMAT, "exercises": entries}, indent=1))
    except OSError as error:
        return _not_kept(error)
    return ""
