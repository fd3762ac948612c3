"""Text to ids and back, for every text there is; transformers' tokenizers by the same functions."""

import hashlib
import random
import time
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import tokenizers as library
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from gptcourse.model import GPT, GPTConfig
from gptcourse.tokenizers import (
    CHAT_TOKENS,
    BPETokenizer,
    CharTokenizer,
    encode_text,
    load_tokenizer,
    save_tokenizer,
    token_bytes,
)

TEXT = "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer. " * 20
BPE = BPETokenizer.train(TEXT, 300)


def test_characters_get_their_place_in_the_sorted_alphabet():
    tokenizer = CharTokenizer("hello")
    assert tokenizer.vocab_size == 4
    assert tokenizer.encode("hole") == [1, 3, 2, 0]
    assert tokenizer.decode([1, 3, 2, 0]) == "hole"


def test_char_tokenizer_names_the_unknown_character_and_its_place():
    with pytest.raises(ValueError, match=r"'é' \(at position 3\)"):
        CharTokenizer("hello").encode("helé")


@pytest.mark.parametrize("text, words", [("", "text is empty"), ("a\ud83d", "Position 1 holds half of a character")])
def test_char_tokenizer_refuses_an_empty_text_and_half_a_character(text, words):
    with pytest.raises(ValueError, match=words):
        CharTokenizer(text)


@settings(deadline=None, derandomize=True)
@given(st.text(alphabet="<|>enduserasistant "))
def test_typed_text_never_becomes_a_reserved_token(text):
    assert not set(BPE.encode(text + "<|end|>" + text)) & set(range(len(CHAT_TOKENS)))


def test_reserved_tokens_have_their_own_ids_and_are_written_out():
    ids = [BPE.token_id(token) for token in CHAT_TOKENS]
    assert len(set(ids)) == 3
    assert BPE.decode([ids[0], *BPE.encode("Hi!"), ids[2]]) == "<|user|>Hi!<|end|>"
    with pytest.raises(ValueError, match=r"no token '<\|nobody\|>'"):
        BPE.token_id("<|nobody|>")


def test_bpe_learns_frequent_words_as_one_token():
    assert len(BPE.encode(" question")) < len(" question") / 2
    assert BPE.vocab_size == 300


@pytest.mark.parametrize("vocab_size", [259, 260, 283, 300])
def test_a_shortened_vocabulary_is_the_one_that_training_with_that_size_gives(vocab_size, tmp_path):
    files = [tmp_path / name for name in ("shortened", "trained")]
    BPE.shortened(vocab_size).save(files[0])
    BPETokenizer.train(TEXT, vocab_size).save(files[1])
    assert load_tokenizer(files[0]).vocab_size == vocab_size
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (files[0] / name).read_text() == (files[1] / name).read_text()
    assert BPE.vocab_size == 300  # and the long one is as it was


@pytest.mark.parametrize(("size", "words"), [(258, "take 259"), (301, "has only 300 tokens")])
def test_a_vocabulary_is_shortened_to_no_impossible_size(size, words):
    with pytest.raises(ValueError, match=words):
        BPE.shortened(size)


def test_what_is_no_text_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match=r"^text is None, but it must be a text\.$"):
        BPETokenizer.train("ab", 260).encode(None)


def test_half_a_surrogate_pair_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match="Position 1 holds half of a character"):
        BPE.encode("a\ud800")


@pytest.mark.parametrize(("text", "size", "words"), [(TEXT, 258, "take 259"), ("aa", 1000, "give only")])
def test_impossible_vocabulary_sizes_are_refused(text, size, words):
    with pytest.raises(ValueError, match=words):
        BPETokenizer.train(text, size)


@pytest.mark.parametrize("tokenizer", [BPE, CharTokenizer(TEXT)], ids=["bpe", "char"])
def test_unknown_ids_are_refused(tokenizer):
    for wrong in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match=f"no token {wrong}"):
            tokenizer.decode([0, wrong])


# Line endings, separators that some programs take for line ends, look-alikes composed and decomposed, the largest.
ODD = "\n\r\r\n\t\v\f\x1c\x85\u2028\u2029\xa0 \ufeff\0éé ſsKK\U0010ffff"


@pytest.mark.parametrize("tokenizer", [BPE, CharTokenizer(TEXT + ODD)], ids=["bpe", "char"])
def test_saved_tokenizers_come_back_equal(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert type(loaded) is type(tokenizer) and loaded.vocab_size == tokenizer.vocab_size
    assert loaded.encode(TEXT + ODD) == tokenizer.encode(TEXT + ODD)
    assert loaded.decode(loaded.encode(TEXT + ODD)) == TEXT + ODD


def test_the_tokenizer_saved_last_is_the_one_that_is_read(tmp_path):
    for tokenizer in (CharTokenizer(TEXT), BPE, CharTokenizer(TEXT)):
        save_tokenizer(tokenizer, tmp_path)
        assert type(load_tokenizer(tmp_path)) is type(tokenizer)


@pytest.mark.parametrize("damage", [b"[]", b"3", b'{"version": "1.0"}', None])
@pytest.mark.parametrize("tokenizer", [BPE, CharTokenizer(TEXT)], ids=["bpe", "char"])
def test_a_damaged_or_missing_file_is_one_sentence(tokenizer, damage, tmp_path):
    tokenizer.save(tmp_path)
    path = tmp_path / ("tokenizer.json" if tokenizer is BPE else "characters.json")
    path.unlink() if damage is None else path.write_bytes(damage)
    with pytest.raises(ValueError, match=r"^[^\n]* is missing or damaged \([^\n]*\): save the tokenizer again\.$"):
        type(tokenizer).load(tmp_path)


ASSETS = Path(str(files("gptcourse") / "assets"))


@pytest.mark.parametrize("name", ["shakespeare-5m", "time-machine"])
def test_the_assets_tokenizers_are_written_as_they_are(name, tmp_path):
    load_tokenizer(ASSETS / name).save(tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (ASSETS / name / path.name).read_bytes()


def test_a_tokenizer_trained_on_the_plays_is_what_it_was_before_long_words_were_cut(plays, tmp_path):
    BPETokenizer.train(plays.train, 2048).save(tmp_path)
    found = hashlib.sha256((tmp_path / "tokenizer.json").read_bytes()).hexdigest()
    assert found == "3808dc088fa4c98c17d6a7de6f0072f9e50556a95a8c384968a6063c01f4849e"


def test_a_text_without_spaces_is_learned_from_in_seconds():
    characters, rng = [chr(0x4E00 + i) for i in range(3_000)], random.Random(0)
    text = "".join(rng.choices(characters, [1 / (i + 1) for i in range(3_000)], k=200_000))
    began = time.monotonic()
    tokenizer = BPETokenizer.train(text, 2_000)
    assert time.monotonic() - began < 60  # 396 s before; 1.4 s where this was written
    ids = tokenizer.encode(text)
    assert tokenizer.vocab_size == 2_000 and len(ids) < len(text) and tokenizer.decode(ids) == text


def test_a_long_text_is_learned_with_the_librarys_progress_bar(monkeypatch):
    asked, trainer = [], library.trainers.BpeTrainer
    monkeypatch.setattr(library.trainers, "BpeTrainer", lambda **k: asked.append(k["show_progress"]) or trainer(**k))
    monkeypatch.setattr("gptcourse.tokenizers.LONG_TEXT", len(TEXT))
    for texts in (TEXT, iter([TEXT, "!"])):
        BPETokenizer.train(texts, 300)
    assert asked == [False, True]


def test_auto_tokenizer_opens_saved_bpe_files(tmp_path):
    BPE.save(tmp_path)
    hf = AutoTokenizer.from_pretrained(tmp_path)
    text = "Whether 'tis nobler , or not .\n\nÉté 你好 🙂"
    assert hf.encode(text) == BPE.encode(text)
    assert hf.decode(BPE.encode(text)) == text
    assert hf.eos_token_id == BPE.token_id("<|end|>")


def test_transformers_stops_where_a_reply_ends_without_being_told(tmp_path):
    model = GPT(GPTConfig(BPE.vocab_size, n_positions=16, n_embd=8, n_layer=1, n_head=1))
    end = BPE.token_id("<|end|>")
    with torch.no_grad():
        model.ln_f.weight.zero_()
        model.ln_f.bias.copy_(model.wte.weight[end])
        model.wte.weight[end] *= 10  # now every place says <|end|>
    model.save(tmp_path, BPE)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([BPE.encode("To be")])
    assert theirs.generate(ids, max_new_tokens=5, do_sample=False)[0].tolist() == [*ids[0].tolist(), end]
    CharTokenizer("abc").save(tmp_path)
    assert not (tmp_path / "generation_config.json").exists()  # the end of another tokenizer is gone with it


def test_loading_from_an_empty_directory_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match=r"no characters\.json"):
        load_tokenizer(tmp_path)


# ---- transformers' tokenizers


def hugging(template="$A", **special):
    """Return a byte-level tokenizer of transformers with special tokens that it puts around a text."""
    inner = library.Tokenizer.from_str(BPE._tokenizer.to_str())
    inner.add_special_tokens(["<s>", "</s>", "<end_of_turn>"])
    inner.add_tokens(["<tool é>"])
    ids = [(token, inner.token_to_id(token)) for token in ("<s>", "</s>")]
    inner.post_processor = library.processors.TemplateProcessing(single=template, special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", **special)


@pytest.mark.parametrize("template", ["$A", "<s> $A", "<s> $A </s>", "$A </s>"])
@pytest.mark.parametrize("text", [TEXT, "", "a customer types </s> and <end_of_turn>"])
def test_a_text_is_encoded_in_one_way_as_a_whole_and_in_parts(template, text):
    tokenizer = hugging(template)
    start = [tokenizer.bos_token_id] if template.startswith("<s>") else []
    assert encode_text(tokenizer, text, start=False) == BPE.encode(text)  # typed special tokens are plain text
    assert encode_text(tokenizer, text) == start + BPE.encode(text)
    assert encode_text(BPE, text) == encode_text(BPE, text, start=False) == BPE.encode(text)


def test_the_bytes_of_added_tokens_are_those_that_they_write():
    tokenizer = hugging()
    pieces = token_bytes(tokenizer)
    assert pieces[tokenizer.convert_tokens_to_ids("<tool é>")] == "<tool é>".encode()
    assert pieces[tokenizer.eos_token_id] == b"" and len(pieces) == len(tokenizer)
    assert b"".join(pieces[i] for i in tokenizer.encode(TEXT + ODD)) == (TEXT + ODD).encode()


def test_a_tokenizer_of_transformers_is_saved_in_the_place_of_ours(tmp_path):
    CharTokenizer(TEXT).save(tmp_path)
    save_tokenizer(hugging("<s> $A"), tmp_path)
    opened = AutoTokenizer.from_pretrained(tmp_path)
    assert opened.encode(TEXT) == hugging("<s> $A").encode(TEXT) and not (tmp_path / "characters.json").exists()


def test_a_full_disk_leaves_the_tokenizer_that_was_there(tmp_path, monkeypatch):
    CharTokenizer("ab").save(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gptcourse.files.fsync", full)
    with pytest.raises(ValueError, match=r"^.* cannot be written \(No space left on device\): make room, .*\.$"):
        CharTokenizer("xyz").save(tmp_path)
    assert CharTokenizer.load(tmp_path).characters == ["a", "b"]


@pytest.mark.parametrize("size", [300.0, float("nan"), "300", None])
def test_a_vocabulary_size_that_is_no_whole_number_is_refused(size):
    with pytest.raises(ValueError, match="whole number"):
        BPETokenizer.train("ab" * 100, size)


def test_training_names_half_a_character_and_survives_a_huge_vocabulary():
    with pytest.raises(ValueError, match="half of a character"):
        BPETokenizer.train(["ab", "a\ud800"], 260)
    with pytest.raises(ValueError, match="give only"):  # the library aborted the process
        BPETokenizer.train("ab cd " * 100, 10**12)


@pytest.mark.parametrize("tokenizer", [BPE, CharTokenizer(TEXT)], ids=["bpe", "char"])
def test_ids_that_are_no_whole_numbers_are_refused_not_cut(tokenizer):
    for wrong in ([1.9], ["1"], [None], torch.tensor([1.0]), 1):
        with pytest.raises(ValueError, match=r"^Token ids must be a sequence of whole numbers \("):
            tokenizer.decode(wrong)
    assert tokenizer.decode(torch.tensor([3, 4])) == tokenizer.decode(np.array([3, 4])) == tokenizer.decode([3, 4])


def test_a_tilde_is_the_home_directory_and_a_path_that_cannot_be_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    save_tokenizer(BPE, "~/ours")
    save_tokenizer(hugging(), "~/theirs")
    assert (tmp_path / "ours" / "tokenizer.json").is_file() and (tmp_path / "theirs" / "tokenizer.json").is_file()
    assert load_tokenizer("~/ours").vocab_size == BPE.vocab_size
    with pytest.raises(ValueError, match=r"holds no characters\.json"):
        load_tokenizer("a" * 5000)
    for call in (load_tokenizer, BPE.save, BPETokenizer.load):
        with pytest.raises(ValueError, match=r"^~nosuchuser/a lies in no home directory"):
            call("~nosuchuser/a")
