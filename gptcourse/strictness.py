"""Make rules of decoding equally strict, so that their texts can be compared; and count the words that nobody wrote.

Source: Schaeffer et al. (2025), arXiv:2506.13681, on how rules are to be compared.

Shapes: N places in a text, V = vocab_size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from gptcourse.generation import Sampling, next_token_distribution

# The strict end of each rule, and its loose end.
ENDS = {
    "temperature": (0.1, 2.0),
    "top_k": (1, 300),
    "top_p": (0.1, 1.0),
    "min_p": (0.3, 1e-4),
    "top_n_sigma": (0.2, 5.0),
    "typical_p": (0.1, 1.0),
}
WORD = re.compile(r"[a-z']+")
WHOLE_WORD = re.compile(r"(?<=[^a-z'])[a-z']+(?=[^a-z'])")  # neither at the beginning of a text nor at its end


def mean_entropy(logits: Tensor, sampling: Sampling) -> float:
    """Return the mean entropy, in bits, of what is drawn from after the model's logits (N, V)."""
    return torch.special.entr(next_token_distribution(logits, sampling)).sum(-1).mean().item() / math.log(2)


def as_strict_as(entropy: float, logits: Tensor, rule: str, **others) -> Sampling:
    """Return the `Sampling` with one of ENDS set so that the mean entropy over the logits (N, V) is `entropy`, in bits.

    `others` are its other settings. The value is found by bisection, in 12 halvings of the range from end to end.
    Raises ValueError for a rule that is not there, and for an entropy that its ends do not enclose.
    """
    if rule not in ENDS:
        raise ValueError(f"There is no rule {rule!r}: choose one of {', '.join(ENDS)}.")
    strict, loose = ENDS[rule]
    least, most = (mean_entropy(logits, Sampling(**{rule: end}, **others)) for end in (strict, loose))
    if not least <= entropy <= most:
        raise ValueError(
            f"With {rule} the mean entropy goes from {least:.2f} to {most:.2f} bits, not to {entropy:.2f}."
        )
    for _ in range(12):
        value = (strict + loose) / 2
        value = round(value) if rule == "top_k" else value
        looser = mean_entropy(logits, Sampling(**{rule: value}, **others)) < entropy
        strict, loose = (value, loose) if looser else (strict, value)
    return Sampling(**{rule: value}, **others)


def words_of(text: str) -> set[str]:
    """Return the different words of a text, in lower case."""
    return set(WORD.findall(text.lower()))


def invented(text: str, known: Iterable[str]) -> list[str]:
    """Return the words of a text that are not in `known`, in lower case.

    The text may have been cut inside its first and its last word, so these are left out.
    """
    known = known if isinstance(known, set | frozenset) else {*known}
    return [word for word in WHOLE_WORD.findall(text.lower()) if word not in known]


def invented_shares(texts: Sequence[str], known: Iterable[str]) -> list[float]:
    """Return for each text the share of its words that are not in `known`; 0 for one that has none."""
    known = {*known}
    return [len(invented(text, known)) / max(len(WHOLE_WORD.findall(text.lower())), 1) for text in texts]
