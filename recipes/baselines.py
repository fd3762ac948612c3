"""What a language model has to beat: the same held-out plays, predicted by counting and by a compressor.

    python recipes/baselines.py

Prints three baselines for the tokens and the text that shakespeare-5m is measured on: token frequencies, an
interpolated modified Kneser-Ney 5-gram (Chen and Goodman, 1999, "An Empirical Study of Smoothing Techniques for
Language Modeling", sections 2.7 and 3) and xz. The model's card repeats the table.
"""

from __future__ import annotations

import lzma
from pathlib import Path

import numpy as np

from gptcourse.corpora import shakespeare
from gptcourse.evaluation import bits_per_byte
from gptcourse.ngrams import look_up
from gptcourse.tokenizers import BPETokenizer

FALLBACK = np.array([0.0, 0.5, 1.0, 1.5])  # discounts for a text too small to estimate them from
XZ = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 2**26}]  # sees all of the plays at once


def discounts(counts: np.ndarray) -> np.ndarray:
    """Return what is taken off an n-gram counted 0, 1, 2, and 3 or more times (Chen and Goodman, equation 26)."""
    n1, n2, n3, n4 = (np.count_nonzero(counts == k) for k in (1, 2, 3, 4))
    if 0 in (n1, n2, n3, n4):
        return FALLBACK
    y = n1 / (n1 + 2 * n2)
    found = np.array([0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    return found if (found >= 0).all() and (found <= np.arange(4)).all() else FALLBACK


class KneserNey:
    """An n-gram model of token ids below `vocab_size`; an n-gram is kept as one number in base `vocab_size`.

    The longest n-grams are counted as they occur. A shorter one counts how many different tokens stand before it.
    """

    def __init__(self, tokens: np.ndarray, vocab_size: int, order: int = 5) -> None:
        if vocab_size**order >= 2**63:
            raise ValueError(f"{order}-grams of {vocab_size} tokens do not fit into 63 bits; take a smaller order.")
        self.vocab_size, self.tables = vocab_size, []
        grams, counts = np.unique(self.grams(tokens, order), return_counts=True)
        for length in range(order, 0, -1):
            self.tables.insert(0, self._table(grams, counts))
            grams, counts = np.unique(grams % vocab_size ** (length - 1), return_counts=True)

    def grams(self, tokens: np.ndarray, length: int) -> np.ndarray:
        """Return the number of each n-gram of `length` tokens, in the order of the text."""
        n = len(tokens) - length + 1
        return sum(tokens[i : i + n].astype(np.int64) * self.vocab_size ** (length - 1 - i) for i in range(length))

    def _table(self, grams: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return sorted n-grams with their discounted counts, and contexts with totals and the weight passed on."""
        taken = discounts(counts)[np.minimum(counts, 3)]
        contexts, where = np.unique(grams // self.vocab_size, return_inverse=True)
        return grams, counts - taken, contexts, np.bincount(where, counts), np.bincount(where, taken)

    def probabilities(self, tokens: np.ndarray) -> np.ndarray:
        """Return the probability of each token but the first, given those before it (as many as the order allows)."""
        p = np.full(len(tokens), 1 / self.vocab_size)
        for length, (grams, kept, contexts, totals, passed) in enumerate(self.tables, start=1):
            asked = self.grams(tokens, length)  # of the tokens from number length - 1 on
            total, weight = (look_up(contexts, values, asked // self.vocab_size) for values in (totals, passed))
            here = (look_up(grams, kept, asked) + weight * p[length - 1 :]) / np.maximum(total, 1)
            p[length - 1 :] = np.where(total > 0, here, p[length - 1 :])
        return p[1:]


def xz_bytes(known: str, text: str) -> int:
    """Return how many bytes xz needs for `text` after `known`."""
    sizes = [len(lzma.compress(t.encode(), lzma.FORMAT_RAW, filters=XZ)) for t in (known, known + text)]
    return sizes[1] - sizes[0]


def measure(tokenizer: BPETokenizer) -> dict[str, tuple[float | None, float]]:
    """Return, for each baseline, nats per token (None for xz, which knows no tokens) and bits per byte."""
    plays = shakespeare()
    train, held_out = (np.array(tokenizer.encode(text)) for text in (plays.train, plays.validation))
    n_bytes = len(plays.validation.encode())
    counts = np.bincount(train, minlength=tokenizer.vocab_size) + 1  # one more for each: nothing is impossible
    found = {
        "token frequencies (unigram)": -np.log(counts / counts.sum())[held_out[1:]],
        "5-gram, modified Kneser-Ney": -np.log(KneserNey(train, tokenizer.vocab_size).probabilities(held_out)),
    }
    table = {name: (nats.mean(), bits_per_byte(nats.mean(), len(held_out), n_bytes)) for name, nats in found.items()}
    return table | {"xz -9e, after the training text": (None, 8 * xz_bytes(plays.train, plays.validation) / n_bytes)}


def as_rows(table: dict[str, tuple[float | None, float]]) -> list[str]:
    """Return the rows of a Markdown table."""
    return [
        f"| {name} | {'' if nats is None else f'{nats:.3f}'} | {bits:.3f} |" for name, (nats, bits) in table.items()
    ]


if __name__ == "__main__":
    asset = Path(__file__).parents[1] / "gptcourse" / "assets" / "shakespeare-5m"
    print("\n".join(as_rows(measure(BPETokenizer.load(asset)))))
