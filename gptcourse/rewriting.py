"""Write a marked place of a text anew: alternatives that suit what follows, and variations that stay near.

A language model writes from left to right. What follows a gap it cannot read, but it can say how likely that is after
each candidate. By Bayes' rule p(gap | before, after) is in proportion to p(gap | before) p(after | before, gap). So
candidates are drawn from the first factor and weighed by the second: importance sampling (Rubin 1988, SIR).
"""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor

from gptcourse.evaluation import log_likelihoods
from gptcourse.generation import LogitsProcessor, Sampling, generate
from gptcourse.model import GPT
from gptcourse.tokenizers import BPETokenizer, CharTokenizer
from gptcourse.views import context_window

FOLLOWING = 20  # tokens of what follows by which a candidate is judged


class Marked(NamedTuple):
    """A text in three parts, the middle one to be written anew."""

    before: str
    span: str
    after: str


class Alternative(NamedTuple):
    """A text for the gap: the mean log-probability of a token that follows it, in nats, and its share of the weight."""

    text: str
    fit: float
    share: float


def split_marked(text: str) -> Marked:
    """Return the parts of a text in which one place is marked with curly braces. Raises ValueError for any other.

    Spaces before the mark go to the marked place: in the tokenizers of GPT-2's kind a word begins with its space.
    """
    found = re.fullmatch(r"([^{}]*[^{} ])( *)\{([^{}]+)\}([^{}]*)", text)
    if found is None:
        raise ValueError("Mark one place, not at the very beginning, with curly braces: the {old} king is dead.")
    before, spaces, span, after = found.groups()
    return Marked(before, spaces + span, after)


def alternatives(
    model: GPT,
    tokenizer: BPETokenizer | CharTokenizer,
    marked: Marked,
    n: int = 48,
    sampling: Sampling = Sampling(),
) -> list[Alternative]:
    """Return different texts for the marked place, the one with the largest share first.

    `n` texts are drawn after what stands before, each one token longer than the old one has; they, and they without
    their last one and two tokens, are the candidates, if they begin with a space where the old text does. Shares are
    those of p(after | before, candidate), which sum to 1.
    Raises ValueError if nothing follows.
    """
    before, span, after = map(tokenizer.encode, marked)
    if not after:
        raise ValueError("Nothing follows the marked place, so nothing can judge what fits there: go on, or vary it.")
    after = after[:FOLLOWING]
    before = _fitting(model, before, len(span) + 1 + len(after))
    rows = generate(model, [before] * n, len(span) + 1, sampling)
    drawn = [tuple(row[len(before) :]) for row in rows]
    drawn = [new for new in drawn if _begins_a_word(tokenizer.decode(new)) == _begins_a_word(marked.span)] or drawn
    times = Counter(new[:end] for new in drawn for end in range(max(1, len(span) - 1), len(span) + 2))
    found = log_likelihoods(model, [((*before, *new), after) for new in times])
    shares = (torch.stack([log_p.sum() for log_p in found]) + torch.tensor([*times.values()]).log()).softmax(0)
    texts: dict[str, Alternative] = {}
    for new, log_p, share in zip(times, found, shares.tolist(), strict=True):
        text = tokenizer.decode(new)  # several tokens' ways to write one text are one alternative
        known = texts.get(text, Alternative(text, log_p.mean().item(), 0.0))
        texts[text] = known._replace(share=known.share + share)
    return sorted(texts.values(), key=lambda one: -one.share)


def fit(model: GPT, tokenizer: BPETokenizer | CharTokenizer, marked: Marked) -> float:
    """Return how well the old text suits what follows: the line to compare alternatives with, in nats per token."""
    before, span, after = map(tokenizer.encode, marked)
    after = after[:FOLLOWING]
    before = _fitting(model, before, len(span) + len(after))
    return log_likelihoods(model, [(before + span, after)])[0].mean().item()


def variations(
    model: GPT,
    tokenizer: BPETokenizer | CharTokenizer,
    marked: Marked,
    nearness: float,
    n: int = 3,
    sampling: Sampling = Sampling(),
) -> list[str]:
    """Return `n` texts for the marked place, drawn with `nearness` added to the logit of the old text's token.

    0 draws as if there were no old text; each unit multiplies the odds of the old token, at its place, by e.
    """
    before, span, _ = map(tokenizer.encode, marked)
    before = _fitting(model, before, len(span))
    rows = generate(model, [before] * n, len(span), sampling, logits_processor=drawn_to(span, len(before), nearness))
    return [tokenizer.decode(row[len(before) :]) for row in rows]


def drawn_to(ids: list[int], start: int, nearness: float) -> LogitsProcessor:
    """Return a logits processor that adds `nearness` to the logit of ids[i] at the place start + i."""

    def raise_old(seen: Tensor, logits: Tensor) -> Tensor:
        """Return the logits (B, V) after ids (B, T), that of one token raised."""
        raised = logits.clone()
        raised[:, ids[seen.shape[1] - start]] += nearness
        return raised

    return raise_old


def _begins_a_word(text: str) -> bool:
    return text[:1].isspace()


def _fitting(model, before: list[int], new: int) -> list[int]:
    """Return the end of `before` that leaves room for new tokens. Raises ValueError if there is none."""
    room = context_window(model) - new
    if room < 1:
        raise ValueError(f"The marked place and what follows have {new} tokens, too many for this model: mark less.")
    return before[-room:]
