"""Any text there is, through tokenizers, the readers of files, the chat format and the pictures."""

import csv
import io
import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from gptcourse.corpora import labelled, text_file
from gptcourse.drawings import svg
from gptcourse.drawings.board import ladder
from gptcourse.drawings.diagram import Diagram
from gptcourse.explorers.text_panel import prose
from gptcourse.finetuning import chat_prompt, encode_dialogue
from gptcourse.own_data import own_data
from gptcourse.tokenizers import CHAT_TOKENS, BPETokenizer, CharTokenizer, encode_text, load_tokenizer

SPECIAL = [
    "\ud800",
    "\udfff",
    "\0",
    "\x1b",
    "\x85",
    "\u2028",
    "\u202e",
    "\ufeff",
    "\ufffe",
    "\ue000",
    "e\u0301",
    "👩‍👧",
]
SPECIAL += ["<|end|>", "</text>", "<script>", "]]>", "&amp;", '"', "'", ",", "\t", "\n", "\r", "\r\n", "\\u0000", " "]
TEXTS = st.lists(st.sampled_from(SPECIAL) | st.characters(), max_size=12).map("".join)
PLAIN = "The king was in his counting house, counting out his money. " * 20
BPE = BPETokenizer.train(PLAIN, 280)
any_text = settings(deadline=None, derandomize=True, max_examples=60)


def has_half(text):
    return re.search("[\ud800-\udfff]", text) is not None


def refused(call, *arguments):
    """Return the one sentence with which something is refused."""
    with pytest.raises(ValueError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    return str(caught.value)


@any_text
@given(TEXTS, TEXTS)
def test_a_tokenizer_made_of_any_text_gives_it_back_also_when_it_was_saved(text, other):
    if has_half(text) or not text:
        assert has_half(text) == ("half of a character" in refused(CharTokenizer, text))
        return
    for tokenizer in (CharTokenizer(text), BPETokenizer.train([text] * 3, 259)):
        with TemporaryDirectory() as folder:
            tokenizer.save(folder)
            saved = load_tokenizer(folder)
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert saved.encode(text) == tokenizer.encode(text)
    unknown = set(other) - set(text)
    if unknown:
        assert repr(next(filter(unknown.__contains__, other))) in refused(CharTokenizer(text).encode, other)


@any_text
@given(TEXTS)
def test_every_text_goes_through_bpe_unchanged_and_makes_no_reserved_token(text):
    if has_half(text):
        assert "half of a character" in refused(BPE.encode, text)
        return
    assert BPE.decode(BPE.encode(text)) == text and min(BPE.encode(text), default=3) >= len(CHAT_TOKENS)


@pytest.fixture(scope="module")
def hugging(tmp_path_factory):
    """Our tokenizer, opened by transformers."""
    folder = tmp_path_factory.mktemp("tokenizer")
    BPE.save(folder)
    return AutoTokenizer.from_pretrained(folder)


@any_text
@given(message=TEXTS, reply=TEXTS, earlier=TEXTS)
def test_a_dialogue_of_any_texts_is_framed_by_the_format_alone(hugging, message, reply, earlier):
    for tokenizer in (BPE, hugging):
        given = tokenizer, message, reply, [(earlier, earlier)]
        if has_half(message + reply + earlier):
            assert "half of a character" in refused(encode_dialogue, *given)
            continue
        ids, _ = encode_dialogue(*given)
        before = f"<|user|>{earlier}<|assistant|>{earlier}<|end|><|user|>{message}<|assistant|>"
        assert BPE.decode(ids) == f"{before}{reply}<|end|>" and sum(i < len(CHAT_TOKENS) for i in ids) == 6
        assert BPE.decode(chat_prompt(tokenizer, message, [(earlier, earlier)])) == before
        assert BPE.decode(encode_text(tokenizer, message)) == message


# ---- Files


def as_table(sign):
    def content(rows):
        file = io.StringIO(newline="")
        csv.writer(file, delimiter=sign, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(
            [("text", "label"), *rows]
        )
        return file.getvalue()

    return content


def as_json_lines(rows):
    return "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)


FORMATS = {"rows.csv": as_table(","), "rows.tsv": as_table("\t"), "rows.jsonl": as_json_lines}
OTHERS = [(f"{PLAIN[i : i + 9]} {i} " * 9, "other") for i in range(10)]


@any_text
@given(TEXTS, st.sampled_from(sorted(FORMATS)))
def test_the_text_of_a_row_comes_back_as_it_stood_or_its_line_is_named(text, name):
    rows = [*OTHERS, (text, "any"), ("the last", "other")]
    ends = text.replace("\r\n", "\n").replace("\r", "\n")  # a text's own lines are ended by newlines in a table
    with TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(FORMATS[name](rows).encode("utf-8", "surrogatepass"))
        if has_half(text) or "\0" in text or not text.strip():
            for read in (labelled, own_data):
                line = int(re.search(rf"{name}.* line (\d+)", refused(read, path))[1])
                assert 11 <= line <= 12 + ends.count("\n")
            return
        kept = text if name.endswith("jsonl") else ends
        assert labelled(path) == [*OTHERS, (kept, "any"), ("the last", "other")]
        found = own_data(path, held_out=0.2)
    assert sorted(row for part in found.rows for row in part) == sorted([*(q for q, _ in OTHERS), kept, "the last"])


@any_text
@given(TEXTS)
def test_a_file_of_any_text_is_read_whole_or_its_line_is_named(text):
    with TemporaryDirectory() as folder:
        path = Path(folder, "text.txt")
        path.write_bytes((PLAIN + text).encode("utf-8", "surrogatepass"))
        if has_half(text) or "\0" in text:
            assert re.search("text.txt is not UTF-8 text .byte 0x.. at offset .* line [0-9]", refused(text_file, path))
            return
        parts = text_file(path).train + text_file(path).validation
    assert parts == (PLAIN + text).replace("\r\n", "\n").replace("\r", "\n")


# ---- Pictures


def diagram(label):
    drawing = Diagram(200, 100, label)
    drawing.box(10, 10, 80, 30, label, note=label)
    drawing.matrix(10, 60, [[0.5]], row_labels=[label], title=label)
    return drawing.svg()


PICTURES = {
    "text": lambda label: svg.text(0, 0, label),
    "paragraph": svg.paragraph,
    "bars": lambda label: svg.bars([(label, 0.5, 0.25)], description=label, headings=(label, label)),
    "heat map": lambda label: svg.heat_map([[0.5]], [label], [label], description=label, title=label),
    "line chart": lambda label: svg.line_chart({label: ([0, 1], [0, 1])}, labels=(label, label), floor=(0.5, label)),
    "prose": lambda label: prose(label, label),
    "diagram": diagram,
    "board of losses": lambda label: ladder({label: (2.0, "counting")}, {label}).svg(),
}


@any_text
@given(TEXTS)
def test_a_picture_with_any_text_is_whole_shows_it_and_has_no_tag_of_it(text):
    shown = re.sub("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", f"x{text}")
    shown = shown.replace("\r\n", "\n").replace("\r", "\n")  # as every reader of XML does
    for name, draw in PICTURES.items():
        found, plain = (ElementTree.fromstring(draw(label).encode()) for label in (f"x{text}", "x"))
        assert [part.tag for part in found.iter()] == [part.tag for part in plain.iter()], name
        assert shown in "".join(found.itertext()), name
