"""Remember which exercises are solved: one small JSON file for each user, and a summary of it.

The file is a convenience. Whatever is wrong with it, `check` works. Of a damaged file a copy is kept, and what can be
read of it is used; one that cannot be read or written, or that a newer version of the course wrote, is left as it is,
and nothing is remembered.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import platformdirs

from gptcourse.exercises.cards import bar
from gptcourse.files import write_file
from gptcourse.images import escape

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
    """The records of some notebooks' exercises; a notebook shows a bar for each, anything else the same as text."""

    parts: dict[str, dict[str, Record]]  # {title of the notebook: {exercise: record}}
    note: str = ""
    minutes: dict[str, int] = field(default_factory=dict)  # {exercise: how long it may take}

    def __repr__(self) -> str:
        width = max(map(len, self.parts), default=0)
        rows = [f"{title:{width}}  {solved} of {n}  {left}" for title, solved, n, left in self._rows()]
        return "\n".join([*rows, *filter(None, (self._next(), self.note))])

    def _repr_html_(self) -> str:
        rows = ((escape(title), bar(done, n), f"{done} of {n}", left) for title, done, n, left in self._rows())
        cells = ("".join(f'<td style="text-align:left">{cell}</td>' for cell in row) for row in rows)
        table = "\n".join(f"<tr>{row}</tr>" for row in cells)
        said = "".join(f"<p>{escape(line)}</p>" for line in filter(None, (self._next(), self.note)))
        return f"<table>\n{table}\n</table>{said}"

    def _rows(self) -> Iterator[tuple[str, int, int, str]]:
        """Yield for each notebook its title, the solved exercises, all of them, and the time that is left."""
        for title, records in self.parts.items():
            open_ones = [name for name, record in records.items() if not record.solved]
            left = sum(self.minutes.get(name, 0) for name in open_ones)
            yield title, len(records) - len(open_ones), len(records), f"{left} minutes left" if left else ""

    def _next(self) -> str:
        """Return the line that says which exercise comes next; "" when all are solved."""
        for title, records in self.parts.items():
            for name, record in records.items():
                if not record.solved:
                    return f"Next: {name}, in {title}."
        return ""


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
