"""Text to ids and back, for every text there is."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from gptcourse.tokenizers import CHAT_TOKENS, BPETokenizer, CharTokenizer, load_tokenizer

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


def test_char_tokenizer_refuses_an_empty_text():
    with pytest.raises(ValueError, match="empty"):
        CharTokenizer("")


@settings(deadline=None, derandomize=True)
@given(st.text())
def test_every_string_goes_through_bpe_unchanged(text):
    assert BPE.decode(BPE.encode(text)) == text


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


@pytest.mark.parametrize("tokenizer", [BPE, CharTokenizer(TEXT)], ids=["bpe", "char"])
def test_saved_tokenizers_come_back_equal(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert type(loaded) is type(tokenizer)
    assert loaded.encode(TEXT) == tokenizer.encode(TEXT)
    assert loaded.decode(loaded.encode(TEXT)) == TEXT


def test_auto_tokenizer_opens_saved_bpe_files(tmp_path):
    BPE.save(tmp_path)
    hf = AutoTokenizer.from_pretrained(tmp_path)
    text = "Whether 'tis nobler , or not .\n\nÉté 你好 🙂"
    assert hf.encode(text) == BPE.encode(text)
    assert hf.decode(BPE.encode(text)) == text
    assert hf.eos_token_id == BPE.token_id("<|end|>")


def test_loading_from_an_empty_directory_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match=r"no characters\.json"):
        load_tokenizer(tmp_path)
