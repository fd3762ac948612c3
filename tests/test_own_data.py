"""A file of one's own: every kind of it, every fault in it, how it is divided, and what the report says of it."""

import csv
import json
import math
import random
import re
from itertools import chain

import numpy as np
import pytest

from gptcourse.corpora import support
from gptcourse.data import IGNORED
from gptcourse.duplicates import near_duplicates, normal, repeated_pieces
from gptcourse.finetuning import finetune
from gptcourse.model import GPT, GPTConfig
from gptcourse.ngrams import NGrams
from gptcourse.own_data import Conversation, Parts, own_data
from gptcourse.tokenizers import BPETokenizer, CharTokenizer
from gptcourse.training import TrainingConfig

PROSE = "".join(f"{i}. The {a} sees a {b} by the {c}.\n" for i, (a, b, c) in enumerate(
    (random.Random(i).sample(["king", "queen", "fool", "river", "garden", "old tower", "ship", "letter"], 3))
    for i in range(200)
))  # fmt: skip
WORDS = [f"{a}{b}{c}" for a in "bdfghklm" for b in "aeiou" for c in ("rst", "lmp", "nd", "sk", "v")]


def sentence(i, n=8):
    """Return words that hardly another sentence has."""
    return " ".join(random.Random(i).sample(WORDS, n))


ASKED = [(f"{sentence(i)}?", f"{sentence(1000 + i)}.") for i in range(40)]


def jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def chat(*turns, system=None):
    roles = [*["system"] * (system is not None), *["user", "assistant"] * len(turns)]
    contents = [*[system] * (system is not None), *turns]
    return {"messages": [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]}


@pytest.fixture
def save(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture
def bpe():
    return BPETokenizer.train([" ".join(WORDS)], 300)


# ---- Every kind of file


def test_a_text_is_cut_into_three_at_the_ends_of_lines(save):
    data = own_data(save("prose.txt", PROSE))
    assert (data.name, data.kind, repr(data)) == ("prose.txt", "text", "OwnData(name='prose.txt', kind='text')")
    assert data.train + data.choose + data.confirm == PROSE
    assert data.train.endswith("\n") and data.choose.endswith("\n")
    assert abs(len(data.choose) - len(PROSE) / 10) < 100 and abs(len(data.confirm) - len(PROSE) / 10) < 100
    assert data.alphabet == "".join(sorted(set(PROSE)))


def test_the_parts_of_a_text_without_lines_have_exactly_the_sizes_asked_for(save):
    data = own_data(save("prose.md", PROSE.replace("\n", " ")[:5000]), held_out=0.15)
    assert [len(part) for part in data.parts] == [3500, 750, 750]


@pytest.mark.parametrize(
    "names",
    [("prompt", "response"), ("prompt", "completion"), ("instruction", "output"), ("Question ", "ANSWER")],
)
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "txt"])
def test_pairs_are_read_from_every_kind_of_table(save, tmp_path, names, suffix):
    if suffix in ("jsonl", "txt"):  # JSON Lines are known by their contents, too
        path = save(f"rows.{suffix}", "\n" + jsonl({"id": 1, names[0]: q, names[1]: a} for q, a in ASKED))
    else:
        path = tmp_path / f"rows.{suffix}"
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter="," if suffix == "csv" else "\t").writerows([names, *ASKED])
    data = own_data(path)
    assert data.kind == "dialogues"
    rows = [*data.train, *data.choose, *data.confirm]
    assert sorted(rows) == sorted(Conversation(((q, a),)) for q, a in ASKED)
    assert [len(part) for part in data.parts] == [32, 4, 4]


def test_an_input_may_be_a_number(save):
    rows = [{"instruction": q, "input": i, "output": a} for i, (q, a) in enumerate(ASKED)]
    data = own_data(save("numbers.jsonl", jsonl(rows)))
    messages = {row.pairs[0][0] for part in data.parts for row in part}
    assert messages == {f"{q}\n\n{i}" for i, (q, _) in enumerate(ASKED)}


def test_an_input_stands_below_its_instruction(save):
    rows = [{"instruction": q, "input": "" if i else "this", "output": a} for i, (q, a) in enumerate(ASKED)]
    data = own_data(save("alpaca.jsonl", jsonl(rows)))
    messages = {row.pairs[0][0] for part in data.parts for row in part}
    assert messages == {f"{ASKED[0][0]}\n\nthis", *(q for q, _ in ASKED[1:])}


def test_messages_are_read_with_all_their_turns_and_a_system_message(save, bpe):
    rows = [chat(f"{q} 1", f"{a} 1", f"{q} 2", f"{a} 2", system="be kind") for q, a in ASKED]
    data = own_data(save("chat.jsonl", jsonl(rows)))
    row = data.train[0]
    assert row.system == "be kind" and [q[-1] + a[-1] for q, a in row.pairs] == ["11", "22"]
    (ids, _), (ids2, targets2) = row.examples(bpe)
    (q, a), (q2, a2) = row.pairs
    assert bpe.decode(ids) == f"<|user|>be kind\n\n{q}<|assistant|>{a}<|end|>"
    assert bpe.decode(ids2) == f"{bpe.decode(ids)}<|user|>{q2}<|assistant|>{a2}<|end|>"
    assert bpe.decode([t for t in targets2 if t != IGNORED]) == f"{a2}<|end|>"
    assert len(data.encode(bpe)["train"]) == 2 * len(data.train)


def test_texts_in_rows_are_held_out_as_whole_rows(save):
    data = own_data(save("texts.jsonl", jsonl({"text": f"{q}\n{a}"} for q, a in ASKED)))
    assert data.kind == "text" and len(data.rows.choose) == len(data.rows.confirm) == 4
    assert data.train == "\n\n".join(data.rows.train)
    assert sorted(chain(*data.rows)) == sorted(f"{q}\n{a}" for q, a in ASKED)


def test_what_is_encoded_is_what_training_takes(save, bpe):
    text = own_data(save("prose.txt", PROSE))
    tokenizer = CharTokenizer(text.alphabet)
    encoded = text.encode(tokenizer)
    assert tokenizer.decode(encoded["choose"].tolist()) == text.choose and str(encoded["train"].dtype) == "torch.int64"
    rows = own_data(save("rows.jsonl", jsonl({"prompt": q, "response": a} for q, a in ASKED)))
    lengths = sorted(len(ids) for ids, _ in rows.encode(bpe)["train"])
    assert [len(ids) for ids, _ in rows.encode(bpe, window=lengths[4])["train"]] == [
        len(ids) for ids, _ in rows.encode(bpe)["train"] if len(ids) <= lengths[4]
    ]
    model, config = GPT(GPTConfig(300, n_positions=128, n_embd=8, n_layer=1, n_head=1)), TrainingConfig(2, 2, 1e-3)
    ready = rows.encode(bpe, window=128)
    assert len(finetune(model, ready["train"], config, validation=ready["choose"], progress=False).loss) == 2
    with pytest.raises(ValueError, match="no chat format"):
        rows.report(tokenizer)


# ---- Every fault is one sentence


PAIR = jsonl({"prompt": q, "response": a} for q, a in ASKED)
CHAT = jsonl(chat(q, a) for q, a in ASKED)
FAULTS = {
    "missing": ("no.txt", None, "No such file"),
    "empty": ("a.txt", "", "holds 0 characters, not 1,000 to 10,000,000: a model needs more text"),
    "short": ("a.txt", "a" * 999, "holds 999 characters"),
    "long": ("a.txt", "word " * 2_000_001, "holds 10,000,005 characters, not .*: take a part of it"),
    "binary": ("a.txt", PROSE.encode() + b"\0", "is not UTF-8 text .byte 0x00 at offset .*, line 201"),
    "encoding": ("a.csv", "prompt,response\nhé,ha\n".encode("latin-1"), "byte 0xe9 at offset 17, line 2"),
    "no rows": ("a.csv", "prompt,response" + "\n" * 1000, "holds 0 rows, but three parts need 3"),
    "one row": ("a.jsonl", jsonl([{"prompt": "p" * 999, "response": "r"}]), "holds 1 rows, but three parts need 3"),
    "two rows": ("a.jsonl", jsonl([{"prompt": "p" * 999, "response": "r"}] * 2), "holds 2 rows"),
    "columns": ("a.csv", "a,b\n" + "x,y\n" * 300, "line 2, has the columns a, b: name yours messages, text, or"),
    "separator": ("a.csv", "prompt;response\n" + "a;b\n" * 300, "line 2, has the columns prompt;response"),
    "array": ("a.json", json.dumps([{"prompt": q, "response": a} for q, a in ASKED]), "line 1, is not JSON Lines"),
    "no JSON": ("a.jsonl", PAIR + "{'prompt': 1}\n", "line 41, is not JSON Lines"),
    "no response": ("a.jsonl", PAIR + '{"prompt": "a"}\n', "line 41, has no column 'response'"),
    "null": ("a.jsonl", PAIR + '{"prompt": "a", "response": null}\n', "line 41, has no response .None.: write one"),
    "blank": ("a.jsonl", PAIR + '{"prompt": "a", "response": " "}\n', "line 41, has no response"),
    "fields": ("a.csv", "prompt,response\n" + "ab,cd\n" * 300 + "ab\n", "line 302, is no row of a table"),
    "half": ("a.jsonl", PAIR + '{"prompt": "a", "response": "\\ud83d"}\n', "line 41, .* holds half of a character"),
    "mixed": ("a.jsonl", CHAT + PAIR, "line 41, needs messages: a list"),
    "role": ("a.jsonl", CHAT + jsonl([{"messages": [{"role": "human", "content": "a"}]}]), "line 41, .* role 'human'"),
    "tool": ("a.jsonl", CHAT + jsonl([{"messages": [{"role": "tool", "content": "a"}]}]), "line 41, .* role 'tool'"),
    "system": ("a.jsonl", CHAT + jsonl([chat(system="a")]), "line 41, .*system alone"),
    "no reply": ("a.jsonl", CHAT + jsonl([{"messages": chat("a", "b", "c")["messages"][:3]}]), "41,.* a response"),
    "no turns": ("a.jsonl", CHAT + jsonl([{"messages": chat("a")["messages"] * 2}]), "line 41, .*must take turns"),
    "parts": ("a.jsonl", CHAT + jsonl([{"messages": [{"role": "user", "content": ["a"]}]}]), "line 41, needs messages"),
    "no message": ("a.jsonl", CHAT + jsonl([chat("a", " ")]), "line 41, has an empty message"),
    "alike": ("a.jsonl", jsonl({"prompt": f"order {i}?", "response": "r" * 20} for i in range(99)), "1 different rows"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_sentence_that_names_its_line(save, tmp_path, fault):
    name, content, words = FAULTS[fault]
    path = tmp_path / name if content is None else save(name, content)
    with pytest.raises(ValueError, match=rf"^[^\n]*{words}[^\n]*\.$") as caught:
        own_data(path)
    assert path.name in str(caught.value)


# ---- How it is divided


def with_copies(n_groups, copies):
    """Return rows of which every group says the same, with another number, in other letters."""
    ways = (str.upper, str.title, lambda text: f"{text}!!", lambda text: f"  {text}")
    return [
        {"prompt": ways[copy % 4](f"{sentence(group)} {'7' * (copy + 1)}"), "response": f"{group}"}
        for copy in range(copies)
        for group in range(n_groups)
    ]


@pytest.mark.parametrize("seed", range(3))
def test_no_group_of_duplicates_lies_in_two_parts(save, seed):
    data = own_data(save("copies.jsonl", jsonl(with_copies(30, 4))), held_out=0.2, seed=seed)
    sides = [{row.pairs[0][1] for row in part} for part in data.parts]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 30
    assert [len(part) for part in data.parts] == [72, 24, 24]
    assert [len(set(part)) for part in data.groups] == [18, 6, 6]


def test_another_seed_deals_other_rows(save):
    path = save("rows.jsonl", PAIR)
    assert own_data(path).choose == own_data(path).choose != own_data(path, seed=1).choose


@pytest.mark.parametrize("held_out", [0, 0.024, 0.5, 1, -1, math.nan, "0.1", None])
def test_a_size_that_leaves_a_part_empty_is_refused_with_those_that_work(save, held_out):
    path = save("copies.jsonl", jsonl(with_copies(30, 4)))
    with pytest.raises(ValueError, match="each of the three parts needs 4: choose") as caught:
        own_data(path, held_out=held_out)
    for bound in re.findall(r"(0\.\d+)", str(caught.value).split("choose")[1]):
        data = own_data(path, held_out=float(bound))
        assert all(-0.5 <= float(bound) * 120 - len(part) < 4 and part for part in data.parts[1:]) and data.train


def test_a_size_too_small_for_a_text_is_refused_with_those_that_work(save):
    path = save("prose.txt", PROSE[:2000].replace("\n", " "))
    with pytest.raises(ValueError, match=r"of 2,000 characters each .* needs 100: choose 0\.05 to 0\.475\.$"):
        own_data(path, held_out=0.01)
    assert [len(part) for part in own_data(path, held_out=0.05).parts] == [1800, 100, 100]
    assert [len(part) for part in own_data(path, held_out=0.475).parts] == [100, 950, 950]


@pytest.mark.parametrize("sizes", [[1, 1, 8], [1, 2, 7], [3, 3, 3, 1], [1, 1, 1]])
def test_both_held_out_parts_get_rows_however_large_the_groups_are(save, tmp_path, sizes):
    rows = [{"prompt": sentence(group, 40), "response": "r" * 300} for group, n in enumerate(sizes) for _ in range(n)]
    least = sorted(sizes)[1]
    data = own_data(save("rows.jsonl", jsonl(rows)), held_out=least / len(rows))
    assert all(data.parts) and max(len(data.choose), len(data.confirm)) <= least
    widest = (len(rows) - least) // 2 / len(rows)
    assert all(all(own_data(tmp_path / "rows.jsonl", held_out=widest, seed=seed).parts) for seed in range(5))


def test_three_copies_of_two_rows_cannot_be_divided(save):
    rows = [{"prompt": sentence(group, 40), "response": "r"} for group in (0, 1, 2) for _ in range((1, 5, 4)[group])]
    with pytest.raises(ValueError, match="holds 10 rows, but three parts need 4 each"):
        own_data(save("rows.jsonl", jsonl(rows)))


# ---- What stands twice


def test_near_duplicates_are_those_of_a_comparison_of_all_pairs():
    texts = [d.message for d in support(120)]
    texts += [text.rsplit(" ", 1)[0] for text in texts[:30]]  # without its last word
    pieces = [{normal(text)[i : i + 5] for i in range(len(normal(text)) - 4)} for text in texts]
    alike = np.array([[len(a & b) / len(a | b) for a in pieces] for b in pieces])
    groups = near_duplicates(texts)
    together = groups[:, None] == groups
    assert together[alike >= 0.85].all() and (alike >= 0.85).sum() > 180
    reached = alike >= 0.5  # an estimate from 36 minima: the threshold is soft
    for _ in range(5):
        reached = reached @ reached
    assert not (together & ~reached).any()


def test_the_same_words_in_another_dress_are_near_duplicates_and_short_texts_are_not_lost():
    texts = ["Where is order 17?", "where is  ORDER 4711", "", "?!", "hi", "Hi.", "no", "Where was my parcel left?"]
    groups = near_duplicates(texts)
    assert groups[0] == groups[1] and groups[2] == groups[3] and groups[4] == groups[5]
    assert len(set(groups)) == 5


def test_repeated_pieces_are_those_found_by_hand():
    new = [sentence(i, 20) for i in range(4)]
    copied = new[1][:80]
    train = f"{new[0]} {new[1]} {copied.upper()} "
    shares = repeated_pieces(train, f"{new[2]} {copied} ", f"{new[3]} ")
    of_choose = len(copied) / (len(new[2]) + 1 + len(copied))
    assert shares[0] == pytest.approx(len(copied) / len(train), abs=0.02)
    assert shares[1] == pytest.approx(of_choose, abs=0.02) and shares[2] == 0
    assert repeated_pieces(new[0], f"{new[1]} {new[1]}") == [0, 0]  # what repeats itself alone is no leak
    assert repeated_pieces("short", "short") == [0, 0] and repeated_pieces("", "") == [0, 0]


def test_a_text_that_is_repeated_at_its_end_is_reported(save):
    prose = "".join(f"{sentence(i)}\n" for i in range(100))
    data = own_data(save("twice.txt", prose + prose[: len(prose) // 2]))
    report = data.report(CharTokenizer(data.alphabet))
    assert report.repeats.choose > 0.95 and report.repeats.confirm > 0.95 and report.repeats.within < 0.3
    assert any("of a held-out part stands in the training part" in warning for warning in report.warnings)


# ---- The report


def test_the_figures_of_a_text_are_right(save):
    text = PROSE + "Ωω Ж\n" * 10
    data = own_data(save("prose.txt", text))
    tokenizer = CharTokenizer(data.train)  # of the training part alone: Greek and Cyrillic stand at the end
    report = data.report(tokenizer, budget_tokens=len(data.train) * 3)
    letters = sum(character.isalpha() for character in text)
    assert report.characters == len(text) and report.epochs == pytest.approx(3)
    assert report.tokens == Parts(len(data.train), len(data.choose), len(data.confirm) - 30)
    assert np.median(report.lengths) == np.median([len(line) for line in text.split("\n")])
    assert report.unknown == {"Ω": 10, "ω": 10, "Ж": 10}
    assert report.scripts == pytest.approx({"Latin": 1 - 30 / letters, "Greek": 20 / letters, "Cyrillic": 10 / letters})
    ids = CharTokenizer("\0" + data.alphabet)
    tables = NGrams(ids.encode(data.train), ids.vocab_size, 6)
    assert report.counting.losses == pytest.approx(tables.losses(ids.encode(data.choose)))
    assert report.counting.to_beat == pytest.approx(min(report.counting.losses))
    assert any(warning.startswith("Some characters have no token") for warning in report.warnings)


def test_a_tokenizer_that_knows_no_character_is_refused(save):
    with pytest.raises(ValueError, match="no character that this tokenizer has a token for"):
        own_data(save("digits.txt", "0123" * 500)).report(CharTokenizer("abc"))


def test_the_figures_of_dialogues_are_right(save, bpe):
    rows = [{"prompt": q, "response": a} for q, a in ASKED]
    data = own_data(save("rows.jsonl", jsonl([*rows, *rows[:10]])), held_out=0.2)
    examples = data.encode(bpe)
    lengths = [len(ids) for part in examples.values() for ids, _ in part]
    window = max(lengths) - 1
    report = data.report(bpe, window, budget_tokens=10_000)
    assert report.tokens == Parts(*(sum(len(ids) for ids, _ in part) for part in examples.values()))
    assert sorted(report.lengths) == sorted(lengths) and report.too_long == sum(n > window for n in lengths)
    assert report.characters == sum(len(q) + len(a) for q, a in [*ASKED, *ASKED[:10]])
    train = [row.pairs for row in data.train]
    assert report.repeats.exact == len(train) - len(set(train)) > 0
    assert report.repeats.within == pytest.approx(report.repeats.exact / len(train))
    assert (report.repeats.choose, report.repeats.confirm) == (0, 0)
    assert report.repeats.row_by_row == pytest.approx(20 * (1 - 0.4) / 50)  # 10 pairs; 0.4 of the rows are held out
    targets = sum(target != IGNORED for _, row in examples["choose"] for target in row)
    learned = sum(len(row.pairs[0][1]) + 1 for row in data.choose)  # the reply and its end
    assert report.counting.to_beat == pytest.approx(min(report.counting.losses) * learned / targets)
    ids = CharTokenizer("\0" + data.alphabet)
    train, choose = ("".join(f"{q}\0{a}\0" for row in part for q, a in row.pairs) for part in data.parts[:2])
    of_reply = np.concatenate([[end] * (len(text) + 1) for row in data.choose for end, text in enumerate(row.pairs[0])])
    tables = NGrams(ids.encode(train), ids.vocab_size, 6)
    losses = tables.token_losses(ids.encode(choose))[:, of_reply == 1]
    assert report.counting.losses == pytest.approx(losses.mean(1))
    blocks = [block.mean() for block in np.array_split(losses[losses.mean(1).argmin()], 20)]
    width = 2.093 * np.std(blocks, ddof=1) / 20**0.5 * learned / targets
    assert report.counting.intervals[0] == pytest.approx(width)
    assert report.epochs == pytest.approx(10_000 / report.tokens.train)
    assert any(f"spend {4 * report.tokens.train:,} tokens" in warning for warning in report.warnings)
    assert any(f"are longer than {window} tokens" in warning for warning in report.warnings)


def test_a_held_out_loss_lies_in_its_interval(save):
    data = own_data(save("prose.txt", "".join(f"{sentence(i)}\n" for i in range(2000))), held_out=0.3)
    report = data.report(CharTokenizer(data.alphabet))
    ids = CharTokenizer("\0" + data.alphabet)
    tables = NGrams(ids.encode(data.train), ids.vocab_size, 6)
    other = min(tables.losses(ids.encode(data.confirm)))
    assert abs(other - report.counting.to_beat) < sum(report.counting.intervals) < 0.1


def test_the_report_is_a_page_to_read(save, bpe):
    text = str(own_data(save("rows.jsonl", PAIR)).report(bpe, 40, 1e6))
    assert [line.split("  ")[0] for line in text.split("\n") if line[0] != "!"] == [
        "file", "tokens", "held out", "interval", "examples", "repeated", "scripts", "no token", "to beat", "budget",
    ]  # fmt: skip
    assert "rows.jsonl, dialogues, " in text and "train " in text and "(32 rows)" in text
    assert "Latin 100.0% (of the letters; this does not tell the language)" in text
    assert "! The budget reads the training part" in text
    calm = str(own_data(save("rows.jsonl", PAIR)).report(bpe))
    assert "budget" not in calm and "! The" not in calm


def test_examples_beyond_the_window_are_not_made_at_all(save, bpe):
    data = own_data(save("chat.jsonl", jsonl(chat(f"{q} 1", f"{a} 1", f"{q} 2", f"{a} 2") for q, a in ASKED)))
    row = data.train[0]
    (first, _), (second, _) = row.examples(bpe)
    assert [ids for ids, _ in row.examples(bpe, len(second) - 1)] == [first]
    assert list(row.examples(bpe, len(first) - 1)) == []


def test_the_letters_of_system_messages_belong_to_the_file(save, bpe):
    data = own_data(save("chat.jsonl", jsonl(chat(q, a, system="Ω") for q, a in ASKED)))
    assert "Ω" in data.alphabet and any("Greek" in script for script in data.report(bpe).scripts)
