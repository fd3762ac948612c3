"""Counting, held against the formula written out with dictionaries."""

import math
from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest
import torch

from gptcourse.ngrams import NGrams

TEXT = [0, 1, 2, 0, 1, 3, 0, 1, 2, 2, 3, 0, 0, 1, 2]


def witten_bell(text, vocab_size, context, token):
    """Witten-Bell smoothing as Chen and Goodman (1998) write it, by recursion."""
    if context is None:
        return 1 / vocab_size
    n, follow = len(context), defaultdict(Counter)
    for i in range(len(text) - n):
        follow[tuple(text[i : i + n])][text[i + n]] += 1
    shorter = witten_bell(text, vocab_size, context[1:] if n else None, token)
    seen = follow[tuple(context)]
    if not seen:
        return shorter
    return (seen[token] + len(seen) * shorter) / (seen.total() + len(seen))


def test_losses_and_distributions_are_those_of_the_formula():
    held_out, model = [2, 0, 1, 1, 3, 3, 2, 0], NGrams(TEXT, 5, 4)
    for n, loss in enumerate(model.losses(held_out), start=1):
        terms = [
            -math.log(witten_bell(TEXT, 5, held_out[max(0, i - n + 1) : i], held_out[i])) for i in range(len(held_out))
        ]
        assert loss == pytest.approx(sum(terms) / len(terms), rel=1e-12)
    for context in ([], [0], [4], [0, 1], [3, 0, 1], [2, 2, 2, 3, 0, 1]):
        probabilities = model.next_token_distribution(context)
        want = [witten_bell(TEXT, 5, context[-3:], token) for token in range(5)]
        np.testing.assert_allclose(probabilities, want, rtol=1e-12)
        assert probabilities.sum() == pytest.approx(1) and probabilities.min() > 0  # token 4 was never seen


def test_a_text_of_its_own_source_is_predicted_better_and_better_until_the_counts_are_too_few():
    generator = torch.Generator().manual_seed(0)
    table = torch.softmax(2 * torch.randn(4, 4, generator=generator), -1)  # a source that looks one token back
    text = [0]
    for _ in range(3_000):
        text.append(torch.multinomial(table[text[-1]], 1, generator=generator).item())
    train, held_out = text[:2_000], text[2_000:]
    losses = NGrams(train, 4, 6).losses(held_out)
    assert losses[1] == min(losses) and losses[5] > losses[1] + 0.01
    exact = -np.mean([math.log(table[a, b]) for a, b in pairwise(held_out)])
    assert losses[1] == pytest.approx(exact, abs=0.01)


def test_a_short_held_out_text_is_judged_by_what_there_is():
    model = NGrams(TEXT, 5, 4)
    assert model.losses([0]) == pytest.approx([-math.log((5 + 4 / 5) / (15 + 4))] * 4)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (([0, 1], 2, 0), "1 or more"),
        (([0, 1], 3, 40), "2 \\*\\* 63"),
        (([0, 1], 2, 3), "too few"),
        (([0, 2], 2, 1), "vocabulary is 0 to 1"),
        (([0.5, 1.0], 2, 1), "whole numbers"),
        (([[0, 1]], 2, 1), "one row"),
    ],
)
def test_impossible_texts_are_named(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        NGrams(*arguments)


def test_an_empty_held_out_text_is_named():
    with pytest.raises(ValueError, match="empty"):
        NGrams(TEXT, 5, 2).losses(np.array([], dtype=int))
