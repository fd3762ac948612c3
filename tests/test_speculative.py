"""Speculative decoding against plain sampling: one token exactly, texts in distribution, greedy token for token."""

import itertools
from unittest import mock

import pytest
import torch
from torch.testing import assert_close

from gptcourse import speculative
from gptcourse.generation import Sampling, generate, next_token_distribution
from gptcourse.model import GPT, GPTConfig
from gptcourse.ngrams import NGrams
from gptcourse.speculative import accept_or_resample, speculate

VOCAB, LENGTH, TEXTS = 3, 3, 1000


def tiny(seed, **changes):
    torch.manual_seed(seed)
    settings = {"vocab_size": VOCAB, "n_positions": 32, "n_embd": 8, "n_layer": 1, "n_head": 2} | changes
    return GPT(GPTConfig(**settings, initializer_range=0.7)).eval()


def drafts():
    ids = torch.randint(VOCAB, (300,), generator=torch.Generator().manual_seed(3))
    return {"a GPT": tiny(5), "the model itself": tiny(1), "bigrams": NGrams(ids, VOCAB, 2)}


def test_one_token_follows_p_exactly_whatever_is_proposed():
    p, q = torch.tensor([0.5, 0.3, 0.2, 0.0]), torch.tensor([0.1, 0.6, 0.0, 0.3])
    found = torch.zeros(4, dtype=torch.float64)
    grid = (torch.arange(2000) + 0.5) / 2000  # stands for u
    for token in range(4):
        kept = sum(accept_or_resample(p, q, token, u, torch.ones(4))[1] for u in grid.tolist()) / 2000
        found[token] += q[token] * kept
        rest = (p - q).clamp(min=0)
        found += q[token] * (1 - kept) * rest / rest.sum()
    assert_close(found, p.double(), atol=1e-3, rtol=0)
    assert_close(torch.minimum(p, q).sum(), torch.tensor(0.4))  # of theorem 3.5


def chi_squared_of_texts(draft, sampling, accept=accept_or_resample):
    """Return chi-squared of all texts of LENGTH tokens, under plain sampling's exact probabilities, and its freedom."""
    model, prompt = tiny(1), [0, 2]
    expected, counts = {}, {}
    for text in itertools.product(range(VOCAB), repeat=LENGTH):
        probability, ids = 1.0, list(prompt)
        for token in text:
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, -1]
            probability *= next_token_distribution(logits, sampling, ids)[token].item()
            ids.append(token)
        expected[text] = TEXTS * probability
    with mock.patch.object(speculative, "accept_or_resample", accept):
        for seed in range(TEXTS):
            seeded = Sampling(sampling.temperature, top_p=sampling.top_p, seed=seed)
            text = tuple(speculate(model, draft, prompt, LENGTH, 2, seeded).ids[2:])
            counts[text] = counts.get(text, 0) + 1
    assert all(expected[text] > 0 for text in counts)
    possible = {text: n for text, n in expected.items() if n > 0}
    return sum((counts.get(text, 0) - n) ** 2 / n for text, n in possible.items()), len(possible) - 1


@pytest.mark.parametrize(
    ("draft", "sampling"), [("a GPT", Sampling()), ("bigrams", Sampling(temperature=0.7, top_p=0.8))]
)
def test_texts_are_distributed_as_plain_sampling_draws_them(draft, sampling):
    value, freedom = chi_squared_of_texts(drafts()[draft], sampling)
    assert value < freedom + 3.5 * (2 * freedom) ** 0.5


def from_p_again(p, q, token, u, noise):
    """The mistake that looks right: what is refused is drawn anew from p itself."""
    kept = u * q[token] < p[token]
    return (token if kept else (p / noise).argmax().item()), bool(kept)


def test_the_same_test_finds_a_wrong_rule():
    value, freedom = chi_squared_of_texts(drafts()["a GPT"], Sampling(), from_p_again)
    assert value > freedom + 8 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("draft", drafts())
@pytest.mark.parametrize("n_draft", [1, 4])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_is_generates_text_token_for_token(draft, n_draft, penalty):
    greedy = Sampling(temperature=0, repetition_penalty=penalty)
    found = speculate(tiny(1), drafts()[draft], [0, 2], 25, n_draft, greedy)
    assert found.ids == generate(tiny(1), [0, 2], 25, greedy)
    assert found.passes + found.accepted == 25


def test_a_perfect_draft_is_always_accepted_and_saves_passes():
    found = speculate(tiny(1), tiny(1), [0, 2], 25, 4, Sampling(seed=0))
    assert (found.accepted, found.tested, found.passes) == (20, 20, 5)
    assert found.overlap == pytest.approx(1.0)


def test_accepted_tokens_are_as_many_as_the_overlap_says():
    runs = [speculate(tiny(1), tiny(5), [0, 2], 25, 3, Sampling(seed=seed)) for seed in range(60)]
    tested = sum(run.tested for run in runs)
    rate, overlap = sum(run.accepted for run in runs) / tested, sum(run.overlap * run.tested for run in runs) / tested
    assert abs(rate - overlap) < 4 * (0.25 / tested) ** 0.5


def test_it_ends_with_the_end_token():
    ids = speculate(tiny(1), tiny(5), [0, 2], 25, 4, Sampling(seed=0), eos_token_id=1).ids
    assert ids.index(1) == len(ids) - 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"max_new_tokens": 31}, "do not fit into a window of 32"),
        ({"draft": NGrams([0, 1, 2, 3], 4, 1)}, "need one tokenizer"),
        ({"n_draft": 0}, "n_draft is 0, but it must be a whole number of 1 or more"),
        ({"sampling": 0.8}, "sampling is 0.8, but it must be a Sampling"),
        ({"ids": []}, "at least one token"),
        ({"ids": [[0], [2]]}, "2 prompts: give one"),
        ({"max_new_tokens": -3}, "whole number of 0 or more"),
    ],
)
def test_what_cannot_be_done_is_refused(change, says):
    with pytest.raises(ValueError, match=says):
        speculate(**{"model": tiny(1), "draft": tiny(5), "ids": [0, 2], "max_new_tokens": 5} | change)


def test_a_prompt_may_be_a_tensor_as_for_generate():
    as_list, as_tensor = (
        speculate(tiny(1), tiny(5), ids, 5, sampling=Sampling(seed=0)).ids for ids in ([0, 2], torch.tensor([0, 2]))
    )
    assert as_list == as_tensor


def test_without_a_seed_it_follows_torchs_global_generator():
    texts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        texts.append(speculate(tiny(1), tiny(5), [0, 2], 25, n_draft=2.0).ids)
    assert texts[0] == texts[1]
