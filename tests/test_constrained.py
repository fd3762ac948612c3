"""Constrained decoding against an existing library, llguidance, and against all texts of a finite language."""

import re

import numpy as np
import pytest
import torch
from llguidance import LLMatcher, LLTokenizer

from gptcourse.constrained import followers, only_matching
from gptcourse.generation import Sampling, generate
from gptcourse.model import GPT, GPTConfig
from gptcourse.tokenizers import BPETokenizer, CharTokenizer, token_bytes

TEXT = 'Order 48213 is late. Order 90771, too! {"intent": "late_parcel", "order": "12345"} yes no naïve ' * 3
SCHEMA = {"type": "object", "required": ["intent", "order"], "additionalProperties": False}
SCHEMA["properties"] = {"intent": {"enum": ["late", "refund"]}, "order": {"type": "string", "pattern": "^[0-9]{5}$"}}
AS_A_PATTERN = r'\{"intent": "(late|refund)", "order": "[0-9]{5}"\}'
PATTERNS = ["[0-9]{5}", "(yes|no)( too!)?", "(ab)*c?", r"Order [1-9][0-9]* is (late|here)\.", "[a-z]{2,4} .*!"]


@pytest.fixture(scope="module")
def tokenizer():
    return BPETokenizer.train(TEXT, 300)


def walks(allowed, tokenizer, end, n=20, longest=30):
    """Yield texts on the way to a match, with the tokens allowed there, and tell which token is taken."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(n):
        new = []
        while len(new) < longest and (not new or new[-1] != end):
            tokens = allowed(tokenizer.decode(new))
            yield new, set(tokens)
            new.append(tokens[torch.randint(len(tokens), (), generator=generator).item()])


@pytest.mark.parametrize("pattern", [*PATTERNS, AS_A_PATTERN])
def test_the_same_tokens_are_allowed_as_by_llguidance(pattern, tokenizer, tmp_path):
    """Where only one text can follow, the library allows the one token by which the tokenizer would begin it."""
    tokenizer.save(tmp_path)
    end, pieces = tokenizer.token_id("<|end|>"), token_bytes(tokenizer)
    library = LLTokenizer((tmp_path / "tokenizer.json").read_text(), eos_token=end)
    broken = {i for i, piece in enumerate(pieces) if piece.decode(errors="ignore").encode() != piece}
    grammar = LLMatcher.grammar_from_regex(pattern)
    if pattern == AS_A_PATTERN:
        spaces = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        grammar = LLMatcher.grammar_from_json_schema(SCHEMA, spaces)
    compared = 0
    for new, tokens in walks(followers(pattern, tokenizer, end), tokenizer, end):
        matcher = LLMatcher(library, grammar)
        if not all(matcher.try_consume_tokens([token]) for token in new):
            continue  # spelled in other tokens than the library's, where the text was forced
        theirs = {i for i, allowed in enumerate(matcher.compute_logit_bias()) if allowed} - broken
        assert theirs == tokens or (len(theirs) == 1 and theirs < tokens)
        compared += theirs == tokens
    assert compared >= 20


def test_every_beginning_of_a_finite_language_and_nothing_else(tokenizer):
    texts = {first + second for first in ("yes", "no", "late") for second in ("", " too", " Order 1", "!")}
    end, pieces = tokenizer.token_id("<|end|>"), token_bytes(tokenizer)
    for new, tokens in walks(followers("|".join(texts), tokenizer, end), tokenizer, end):
        written = tokenizer.decode(new)
        rest = [text.removeprefix(written).encode() for text in texts if text.startswith(written)]
        begins = {i for i, piece in enumerate(pieces) if piece and any(text.startswith(piece) for text in rest)}
        assert tokens == begins | ({end} if written in texts else set())


def tiny(vocab_size):
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size, 64, 16, 1, 2, initializer_range=0.5)).eval()


def test_a_batch_of_unequal_prompts_writes_matches_alone_and_ends_them(tokenizer):
    end, model = tokenizer.token_id("<|end|>"), tiny(tokenizer.vocab_size)
    prompts = [tokenizer.encode(text) for text in ("Order ", "Order 90771, too! Order ", "yes ")]
    rule = only_matching("[0-9]{5}", tokenizer, list(map(len, prompts)), end)
    for seed in range(5):
        rows = generate(model, prompts, 12, Sampling(seed=seed), end, logits_processor=rule)
        for row, prompt in zip(rows, prompts, strict=True):
            assert re.fullmatch("[0-9]{5}<\\|end\\|>", tokenizer.decode(row[len(prompt) :]))


def test_one_rule_serves_several_calls_and_transformers_tokenizers(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path)
    theirs, end, model = AutoTokenizer.from_pretrained(tmp_path), tokenizer.token_id("<|end|>"), tiny(300)
    prompt = tokenizer.encode("Order ")
    ours, other = (only_matching("[0-9]{3}( too)?", one, len(prompt), end) for one in (tokenizer, theirs))
    texts = [generate(model, prompt, 9, Sampling(seed=1), end, logits_processor=rule) for rule in (ours, other, ours)]
    assert texts[0] == texts[1] == texts[2]


def test_typed_reserved_tokens_are_written_letter_by_letter(tokenizer):
    allowed = followers("<\\|end\\|>", tokenizer, 2)
    assert 2 not in allowed("") and 2 not in allowed("<|end|") and allowed("<|end|>") == [2]


@pytest.mark.parametrize(
    ("pattern", "says"), [("[0-9", "is no regular expression"), ("é+", "No token of this vocabulary can continue ''")]
)
def test_a_pattern_that_cannot_be_written_is_refused_at_once(pattern, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        only_matching(pattern, CharTokenizer("abc0123456789."), 3, 0)


def test_a_dead_end_on_the_way_is_named():
    with pytest.raises(ValueError, match="can continue 'ab' to a match"):
        followers("abX", CharTokenizer("ab."), 2)("ab")


def test_an_end_token_that_is_a_letter_elsewhere_ends_whole_matches_alone():
    tokenizer = CharTokenizer("ab\n")
    end, model = tokenizer.encode("\n")[0], GPT(GPTConfig(3, n_positions=16, n_embd=8, n_layer=1, n_head=1))
    for seed in range(5):
        rule = only_matching(r"a\s*b", tokenizer, 1, end)
        ids = generate(model, tokenizer.encode("b"), 5, Sampling(seed=seed), end, logits_processor=rule)
        assert tokenizer.decode(ids) == "bab\n"


def test_a_text_that_ends_at_its_limit_leaves_the_others_of_its_batch_alone():
    tokenizer = CharTokenizer("!abc\n")  # token 0 of a sorted alphabet is one that the pattern forbids
    torch.manual_seed(0)
    model = GPT(GPTConfig(tokenizer.vocab_size, 32, 8, 1, 2))
    prompts, end = [[1, 2], [1] * 10], tokenizer.encode("\n")[0]
    rule = only_matching("[a-c]+", tokenizer, np.array([2, 10]), end)
    rows = generate(model, prompts, 3, Sampling(seed=0), end, logits_processor=rule)
    for row, prompt in zip(rows, prompts, strict=True):
        assert re.fullmatch("[a-c]+", tokenizer.decode(row[len(prompt) :]).removesuffix("\n"))
    one = only_matching("[a-c]+", tokenizer, np.int64(2), end)
    assert generate(model, [1, 2], 3, Sampling(seed=0), end, logits_processor=one)
