"""A marked place written anew, against the exact posterior of a model small enough to count everything."""

import itertools
import math

import pytest
import torch

from gptcourse.evaluation import log_likelihoods
from gptcourse.generation import Sampling
from gptcourse.model import GPT, GPTConfig
from gptcourse.rewriting import Marked, alternatives, drawn_to, fit, split_marked, variations
from gptcourse.tokenizers import CharTokenizer

TOKENIZER = CharTokenizer("abc")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    model = GPT(GPTConfig(3, n_positions=12, n_embd=16, n_layer=1, n_head=2)).eval()
    with torch.no_grad():
        model.wte.weight.mul_(8)  # as it starts, a model finds every token equally likely; this one has an opinion
    return model


def log_p(model, context, text):
    return log_likelihoods(model, [(TOKENIZER.encode(context), TOKENIZER.encode(text))])[0].sum().item()


def test_shares_are_those_of_bayes_rule(model):
    """All gaps of one, two and three letters, their lengths equally likely."""
    gaps = ["".join(letters) for n in (1, 2, 3) for letters in itertools.product("abc", repeat=n)]
    weights = {gap: math.exp(log_p(model, "ab", gap) + log_p(model, "ab" + gap, "cab")) for gap in gaps}
    exact = {gap: weight / sum(weights.values()) for gap, weight in weights.items()}
    found = alternatives(model, TOKENIZER, Marked("ab", "cc", "cab"), n=3_000, sampling=Sampling(seed=0))
    assert sum(one.share for one in found) == pytest.approx(1)
    assert [one.share for one in found] == sorted((one.share for one in found), reverse=True)
    assert {one.text for one in found} <= exact.keys()
    for one in found:
        assert one.share == pytest.approx(exact[one.text], abs=0.02)
        assert one.fit == pytest.approx(log_p(model, "ab" + one.text, "cab") / 3, abs=1e-5)
    prior = {gap: math.exp(log_p(model, "ab", gap)) / 3 for gap in gaps}
    assert max(abs(prior[gap] - exact[gap]) for gap in gaps) > 0.05  # what follows does change the choice


def test_the_line_of_the_old_text_is_its_own_fit(model):
    assert fit(model, TOKENIZER, Marked("ab", "cc", "cab")) == pytest.approx(log_p(model, "abcc", "cab") / 3, abs=1e-5)


def test_variations_go_from_free_draws_to_the_old_text(model):
    marked, sampling = Marked("ab", "ccba", "c"), Sampling(seed=3)
    free = variations(model, TOKENIZER, marked, 0.0, n=2_000, sampling=sampling)
    assert sum(text[0] == "c" for text in free) / 2_000 == pytest.approx(math.exp(log_p(model, "ab", "c")), abs=0.04)
    assert set(variations(model, TOKENIZER, marked, 60.0, sampling=sampling)) == {"ccba"}
    kept = [
        sum(
            a == b
            for text in variations(model, TOKENIZER, marked, near, 500, sampling)
            for a, b in zip(text, "ccba", strict=True)
        )
        for near in (0.0, 1.0, 3.0)
    ]
    assert kept == sorted(kept) and kept[0] < kept[2]


def test_nearness_raises_one_logit_in_each_row_and_leaves_what_it_was_given():
    logits = torch.zeros(2, 3)
    raised = drawn_to([2, 0], 5, 1.5)(torch.zeros(2, 6, dtype=torch.int64), logits)
    assert raised.tolist() == [[1.5, 0, 0]] * 2 and not logits.any()


@pytest.mark.parametrize(
    "text",
    ["no mark", "{at the beginning} of it", "  {after spaces alone}", "two {marks} in {one} text", "an {open one"],
)
def test_a_text_that_is_not_marked_once_is_refused(text):
    with pytest.raises(ValueError, match="Mark one place"):
        split_marked(text)


def test_what_cannot_be_judged_or_does_not_fit_is_refused(model):
    assert split_marked("a {b}") == ("a", " b", "") and split_marked("a{ b} c\n") == ("a", " b", " c\n")
    with pytest.raises(ValueError, match="Nothing follows"):
        alternatives(model, TOKENIZER, Marked("ab", "cc", ""))
    with pytest.raises(ValueError, match="too many for this model: mark less"):
        variations(model, TOKENIZER, Marked("ab", "c" * 12, "a"), 1.0)


def test_a_long_text_is_read_from_its_end(model):
    long, short = (Marked("b" * n + "ab", "cc", "cab") for n in (40, 4))
    assert fit(model, TOKENIZER, long) == pytest.approx(fit(model, TOKENIZER, Marked("b" * 5 + "ab", "cc", "cab")))
    first = alternatives(model, TOKENIZER, short, sampling=Sampling(seed=1))
    assert first == alternatives(model, TOKENIZER, long, sampling=Sampling(seed=1))


def test_a_word_is_not_made_longer_where_a_new_one_was_marked():
    tokenizer = CharTokenizer("ab ")
    torch.manual_seed(0)
    model = GPT(GPTConfig(3, n_positions=16, n_embd=8, n_layer=1, n_head=1)).eval()
    for text in ("ab {a} b", "ab{a} b"):
        found = alternatives(model, tokenizer, split_marked(text), sampling=Sampling(seed=0))
        assert {one.text[0] == " " for one in found} == {split_marked(text).span[0] == " "}
