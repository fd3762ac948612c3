"""The n-gram baseline in the card of the bundled model, against counting with dictionaries and what must sum to one."""

from collections import Counter

import numpy as np
import pytest
from numpy.testing import assert_allclose

from recipes.baselines import FALLBACK, KneserNey, discounts, xz_bytes

V = 7
TEXT = np.random.default_rng(0).choice(V, size=400, p=[0.3, 0.25, 0.2, 0.1, 0.08, 0.05, 0.02])


def probability(word, context, tables):
    """Interpolate as Chen and Goodman (1999) write it, with dictionaries and loops; `context` is a tuple."""
    shorter = probability(word, context[1:], tables) if context else 1 / V
    counts = tables[len(context) + 1]
    following = {w: counts[*context, w] for w in range(V) if counts[*context, w]}
    if not following:
        return shorter
    taken = discounts(np.array(list(counts.values())))
    passed = sum(taken[min(count, 3)] for count in following.values())
    count = following.get(word, 0)
    return (count - taken[min(count, 3)] + passed * shorter) / sum(following.values())


def dictionaries(tokens, order):
    """Return {length: how often each n-gram counts}: as it occurs, or by the different tokens seen before it."""
    tables = {order: Counter(tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1))}
    for length in range(order - 1, 0, -1):
        tables[length] = Counter(gram[1:] for gram in tables[length + 1])
    return tables


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_kneser_ney_equals_counting_with_dictionaries(order):
    tables = dictionaries(TEXT.tolist(), order)
    new = np.random.default_rng(1).integers(0, V, size=60)  # another distribution: many contexts are unknown
    want = [probability(new[i], tuple(new[max(0, i - order + 1) : i].tolist()), tables) for i in range(1, len(new))]
    assert_allclose(KneserNey(TEXT, V, order).probabilities(new), want, rtol=1e-12)


def test_probabilities_after_any_context_sum_to_one():
    model = KneserNey(TEXT, V, order=3)
    for context in ([0, 1], [6, 6], [5, 6], [3, 2]):
        total = sum(model.probabilities(np.array([*context, word]))[-1] for word in range(V))
        assert_allclose(total, 1, rtol=1e-12)


def test_discounts_are_those_of_the_formula():
    counts = np.array([1] * 8 + [2] * 4 + [3] * 2 + [4])
    y = 8 / (8 + 2 * 4)
    assert_allclose(discounts(counts), [0, 1 - 2 * y * 4 / 8, 2 - 3 * y * 2 / 4, 3 - 4 * y * 1 / 2])


def test_text_too_small_for_the_formula_gets_fixed_discounts():
    assert discounts(np.array([1, 1, 2, 5])) is FALLBACK


def test_n_grams_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="smaller order"):
        KneserNey(TEXT, 50_257, order=5)


def test_xz_gains_from_what_it_has_seen():
    text = "".join(np.random.default_rng(2).choice(list("abcdefgh"), size=3000))
    assert xz_bytes(text, text) < 100 < 900 < xz_bytes("", text)
