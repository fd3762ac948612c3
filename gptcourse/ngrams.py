"""Language models that only count: the lines that a neural network has to beat.

An n-gram model says: the next token is as likely as it was, in the training text, after the same n - 1 tokens. What was
never seen gets its share from shorter contexts by Witten and Bell's interpolation (Witten and Bell 1991, "The
zero-frequency problem", method C; Chen and Goodman 1998, "An Empirical Study of Smoothing Techniques for Language
Modeling", "Witten-Bell Smoothing").

Shapes: T tokens, V = vocab_size.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gptcourse.checks import COUNT, as_array, checked


class Counts(NamedTuple):
    """What was counted for one n. Each piece of n tokens, and each context of n - 1, is one number in base V."""

    pieces: np.ndarray  # those that occur, in ascending order
    times: np.ndarray  # how often each does
    contexts: np.ndarray  # their first n - 1 tokens, in ascending order
    followers: np.ndarray  # how many tokens follow each context
    kinds: np.ndarray  # how many different ones do


class NGrams:
    """Count all pieces of 1 to n tokens of a text.

    Args:
        ids: the training text, a sequence of T token ids from 0 to vocab_size - 1.
        n: the length of the longest piece; an n-gram model looks n - 1 tokens back.

    Raises ValueError if the text is shorter than n, if ids lie outside the vocabulary, or if vocab_size ** n does not
    fit into 63 bits.
    """

    @checked(vocab_size=COUNT, n=COUNT)
    def __init__(self, ids, vocab_size: int, n: int):
        if n > 63 or vocab_size**n >= 2**63:
            raise ValueError(f"n is {n}, but {vocab_size} ** n must be below 2 ** 63.")
        self.vocab_size, self.n = vocab_size, n
        ids = self._checked(ids)
        if len(ids) < n:
            raise ValueError(f"The text has {len(ids)} tokens, too few for pieces of {n}.")
        self.counts = [self._count(ids, order) for order in range(1, n + 1)]

    def _checked(self, ids) -> np.ndarray:
        ids = as_array(ids)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise ValueError("A text is a sequence of token ids, whole numbers in one row.")
        if ids.size and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            raise ValueError(
                f"ids go from {ids.min()} to {ids.max()}, but the vocabulary is 0 to {self.vocab_size - 1}."
            )
        return ids.astype(np.int64)

    def _pieces(self, ids: np.ndarray, order: int) -> np.ndarray:
        """Return all pieces of `order` tokens, (T - order + 1,), each as one number in base V."""
        pieces = np.zeros(len(ids) - order + 1, dtype=np.int64)
        for place in range(order):
            pieces = pieces * self.vocab_size + ids[place : place + len(pieces)]
        return pieces

    def _count(self, ids: np.ndarray, order: int) -> Counts:
        pieces, times = np.unique(self._pieces(ids, order), return_counts=True)
        contexts, first, kinds = np.unique(pieces // self.vocab_size, return_index=True, return_counts=True)
        return Counts(pieces, times, contexts, np.add.reduceat(times, first), kinds)

    def _interpolate(self, counts: Counts, pieces: np.ndarray, shorter: np.ndarray) -> np.ndarray:
        """Return the probability of each piece's last token, given those before; `shorter` is that of one token less.

        A context that was followed `followers` times, by `kinds` different tokens, spends kinds / (followers + kinds)
        of its probability on what the shorter context says.
        """
        times = look_up(counts.pieces, counts.times, pieces)
        followers, kinds = (
            look_up(counts.contexts, values, pieces // self.vocab_size) for values in (counts.followers, counts.kinds)
        )
        seen = followers > 0
        return np.where(seen, (times + kinds * shorter) / np.where(seen, followers + kinds, 1), shorter)

    def losses(self, ids) -> list[float]:
        """Return the mean loss on a held-out text, in nats per token, of the 1-gram to the n-gram model."""
        return self.token_losses(ids).mean(1).tolist()

    def token_losses(self, ids) -> np.ndarray:
        """Return the loss of each token of a held-out text, in nats, under the 1-gram to the n-gram model: (n, T).

        The first tokens of the text, with fewer tokens before them, are judged by shorter pieces. Raises ValueError for
        an empty text or ids outside the vocabulary.
        """
        ids = self._checked(ids)
        if not ids.size:
            raise ValueError("The held-out text is empty: there is nothing to measure a loss on.")
        probabilities, losses = np.full(len(ids), 1 / self.vocab_size), []  # before any count: all tokens alike
        for order, counts in enumerate(self.counts, start=1):
            if len(ids) >= order:
                ends = probabilities[order - 1 :]
                ends[:] = self._interpolate(counts, self._pieces(ids, order), ends)
            losses.append(-np.log(probabilities))
        return np.array(losses)

    def next_token_distribution(self, context) -> np.ndarray:
        """Return the n-gram model's probabilities (V,) of the token after `context`, of which the end counts."""
        context, every = self._checked(context), np.arange(self.vocab_size)
        probabilities = np.full(self.vocab_size, 1 / self.vocab_size)
        for order, counts in enumerate(self.counts[: len(context) + 1], start=1):
            recent = context[len(context) - order + 1 :]
            prefix = self._pieces(recent, order - 1)[0] if order > 1 else 0
            probabilities = self._interpolate(counts, prefix * self.vocab_size + every, probabilities)
        return probabilities


def look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the value of each wanted key, 0 where there is none; keys are in ascending order."""
    places = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)
