"""The drawings of notebook 07: what each rule keeps, and why masking is not conditioning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from gptcourse.drawings.diagram import BLUE, GREEN, ORANGE, Diagram


def kept_ranks(probabilities: Sequence[float], kept: Mapping[str, Sequence[int]]) -> Diagram:
    """Draw the probabilities in falling order, on logarithmic axes, and below them the ranks (from 1) of each rule."""
    n, left, right, top, low = len(probabilities), 170, 660, 34, 144
    place = lambda rank: left + (right - left) * math.log(rank) / math.log(n)  # noqa: E731 - a ruler
    height = lambda p: low - (low - top) * max(0.0, 1 + math.log10(max(p, 1e-6)) / 6)  # noqa: E731
    said = "; ".join(
        f"{name} keeps {len(ranks)}, from rank {min(ranks)} to {max(ranks)}" for name, ranks in kept.items()
    )
    drawing = Diagram(680, low + 46 + 26 * len(kept), f"Tokens in the order of their probability. {said}.")
    points = [(place(rank), height(p)) for rank, p in enumerate(probabilities, start=1)]
    for start, end in pairwise(points):
        drawing.line(start, end, color=BLUE, opacity=0.9, width=1.8)
    drawing.text(left - 10, 14, "probability", anchor="end", faint=True)
    for p in (1.0, 1e-3, 1e-6):
        drawing.text(left - 10, height(p) + 4, f"{p:g}", anchor="end", size=11, faint=True)
    for rank in [10**power for power in range(int(math.log10(n)) + 1)]:
        drawing.line((place(rank), top), (place(rank), low + 26 * len(kept) + 14), opacity=0.15)
        drawing.text(place(rank), low + 26 * len(kept) + 30, f"{rank:,}", size=11, faint=True)
    drawing.text(left - 10, low + 26 * len(kept) + 30, "rank", anchor="end", size=11, faint=True)
    for row, (name, ranks) in enumerate(kept.items()):
        y = low + 18 + 26 * row
        drawing.text(left - 10, y + 4, name, anchor="end", mono=True)
        drawing.line((place(min(ranks)), y), (place(max(ranks)) + 2, y), color=GREEN, width=7, opacity=0.75)
        drawing.text(place(max(ranks)) + 9, y + 4, f"{len(ranks):,}", anchor="start", size=12)
    return drawing


def masked_choice(
    texts: Sequence[str], first: Sequence[float], rest: Sequence[float], masked: Sequence[float], exact: Sequence[float]
) -> Diagram:
    """Draw texts: how likely each begins and goes on, what masking makes of it, and what is exact."""
    percent = lambda p: f"{p:.1%}" if p >= 1e-3 else f"{p:.0e}"  # noqa: E731 - a format
    said = "; ".join(
        f"{text}: begins with {percent(a)}, goes on with {percent(b)}, masked {percent(m)}, exact {percent(e)}"
        for text, a, b, m, e in zip(texts, first, rest, masked, exact, strict=True)
    )
    drawing = Diagram(680, 50 + 54 * len(texts), f"What a mask makes of a model's choice. {said}.")
    for x, name in ((250, "the beginning"), (396, "all ways on"), (520, "masked"), (620, "exact")):
        drawing.text(x, 20, name, bold=True, size=12)
    for row, numbers in enumerate(zip(texts, first, rest, masked, exact, strict=True)):
        y, (text, a, b, m, e) = 36 + 54 * row, numbers
        drawing.text(160, y + 23, repr(text), anchor="end", mono=True)
        begins = drawing.box(200, y, 100, 36, percent(a), color=BLUE, mono=True)
        follows = drawing.box(346, y, 100, 36, percent(b), color=BLUE, mono=True)
        drawing.arrow((166, y + 18), begins.left)
        drawing.arrow(begins.right, follows.left)
        drawing.text(520, y + 23, percent(m), color=ORANGE, mono=True, bold=True)
        drawing.text(620, y + 23, percent(e), color=GREEN, mono=True, bold=True)
    return drawing
