"""What stands twice: near duplicates among rows, and pieces of a text that occur before, both by hashes.

Sources: Lee et al. (2022), "Deduplicating Training Data Makes Language Models Better", sections 4.1 (repeated pieces)
and 4.2 (near duplicates); Broder (1997), "On the resemblance and containment of documents" (MinHash).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from gptcourse.checks import TEXT, TEXTS, checked

SHINGLE, ALIKE, N_BANDS, N_MINIMA = 5, 0.7, 12, 3  # near duplicates: characters, Jaccard similarity, MinHash's sizes
REPEATED = 50  # characters of a piece that hardly stands twice by chance
POWERS = np.uint64(0x9E3779B97F4A7C15) ** np.arange(REPEATED, dtype=np.uint64)  # the weights of a hash's numbers


@checked(texts=TEXTS)
def near_duplicates(texts: Sequence[str]) -> np.ndarray:
    """Return the number of each text's group (n,): near duplicates, and theirs in turn, are in one.

    Near: the same but for case, punctuation and the digits of numbers, or a Jaccard similarity of the sets of all
    pieces of 5 characters of about 0.7, estimated from 36 minima (MinHash). Of texts filled into a template with other
    words it finds those that share most of their letters, and no others.
    """
    numbers: dict[str, int] = {}
    kinds = np.array([numbers.setdefault(normal(text), len(numbers)) for text in texts], dtype=int)
    minima, groups = _minima(list(numbers)), np.arange(len(numbers))
    pairs = []
    for band in np.split(minima, N_BANDS, axis=1):
        _, first, inverse = np.unique(band @ POWERS[:N_MINIMA], return_index=True, return_inverse=True)
        pairs.append(np.stack([groups, first[inverse]])[:, first[inverse] != groups])  # a text, and the first like it
    rows, firsts = np.concatenate(pairs, axis=1)
    near = (minima[rows] == minima[firsts]).mean(1) >= ALIKE
    rows, firsts = rows[near], firsts[near]
    while (groups[rows] != groups[firsts]).any():  # the lowest number spreads along the pairs
        lower = np.minimum(groups[rows], groups[firsts])
        np.minimum.at(groups, rows, lower)
        np.minimum.at(groups, firsts, lower)
    return np.unique(groups[kinds], return_inverse=True)[1]


@checked(text=TEXT)
def normal(text: str) -> str:
    """Return a text without case and punctuation, each number as 0."""
    return re.sub(r"[\W_]+", " ", re.sub(r"\d+", "0", text.casefold())).strip()


def _piece_hashes(text: str, length: int) -> np.ndarray:
    """Return a hash of each piece of `length` characters: (len(text) - length + 1,)."""
    hashes = np.zeros(max(len(text) - length + 1, 0), dtype=np.uint64)
    if len(hashes):
        points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
        hashes = sliding_window_view(points, length) @ POWERS[:length]  # modulo 2^64
    hashes ^= hashes >> np.uint64(32)
    hashes *= np.uint64(0xD6E8FEB86659FD93)
    return hashes ^ (hashes >> np.uint64(32))


def _minima(texts: Sequence[str]) -> np.ndarray:
    """Return the least hashes of each text's pieces under 36 hash functions: (n, 36)."""
    padded = [text.ljust(SHINGLE) for text in texts]
    owner = np.repeat(np.arange(len(padded)), [len(text) for text in padded])  # of each character
    within = owner[: 1 - SHINGLE] == owner[SHINGLE - 1 :]  # pieces that do not reach into the next text
    hashes = _piece_hashes("".join(padded), SHINGLE)[within]
    starts = np.flatnonzero(np.diff(owner[: 1 - SHINGLE][within], prepend=-1))
    factors = np.random.default_rng(0).integers(2**63, size=N_BANDS * N_MINIMA, dtype=np.uint64) | np.uint64(1)
    return np.stack([np.minimum.reduceat(hashes * factor, starts) for factor in factors], axis=1)


@checked(train=TEXT, held_out=TEXT)
def repeated_pieces(train: str, *held_out: str) -> list[float]:
    """Return which share of each text's characters lies in a piece of 50 that stands before, in the training text.

    For the training text itself, before means earlier in it. Case, punctuation and the digits of numbers do not count.
    """
    texts = [normal(text) for text in (train, *held_out)]
    ends, hashes = np.cumsum([len(text) for text in texts]), _piece_hashes("".join(texts), REPEATED)
    _, first, piece = np.unique(hashes, return_index=True, return_inverse=True)
    before = np.zeros(ends[-1] + REPEATED, dtype=np.int32)
    before[REPEATED : REPEATED + len(hashes)] = first[piece] < np.minimum(np.arange(len(hashes)), ends[0])
    seen = np.cumsum(before)
    repeated = seen[REPEATED:] > seen[:-REPEATED]  # a character is, if one of the pieces that hold it is
    return [float(part.mean()) if len(part) else 0.0 for part in np.split(repeated, ends[:-1])]
