"""Who may look at whom through a stack of masks, and how rotary positions turn queries and keys.

Sources: Child et al. (2019), "Generating Long Sequences with Sparse Transformers"; Brown et al. (2020), GPT-3, section
2.1 (dense and banded layers in turn); Su et al. (2021), RoFormer, section 3.2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gptcourse.attention import causal_mask, rotary
from gptcourse.explorers import svg
from gptcourse.explorers.explorer import Explorer, buttons, slider

TOKENS = 24  # in the picture of the masks
PATTERNS = ("all banded", "banded and dense in turn")
HEAD_SIZE = 16  # eight pairs, so eight dials
PLACES = 60


def reach(masks: list[Tensor]) -> list[Tensor]:
    """Return, from the last layer down to the input, from where news can still come to the last token.

    `masks` are the (T, T) masks of a stack, the first layer first; each of the len(masks) + 1 answers is (T,) of bools.
    """
    seen = [torch.arange(len(masks[0])) == len(masks[0]) - 1]
    for mask in reversed(masks):
        seen.append(mask[seen[-1]].any(0))
    return seen


def window_explorer():
    """Return sliders for a band's width and the number of layers, with the mask and how far news travels through it."""
    controls = {
        "window": slider("window", 4, 1, TOKENS),
        "layers": slider("layers", 3, 1, 6),
        "pattern": buttons(PATTERNS, width="190px"),
    }
    return Explorer(controls, _window)


def _window(window, layers, pattern):
    band, dense = causal_mask(TOKENS, window=window), causal_mask(TOKENS)
    masks = [dense if pattern == PATTERNS[1] and n % 2 else band for n in range(layers)]
    steps = reach(masks)
    scored, all_pairs = sum(int(mask.sum()) for mask in masks), layers * int(dense.sum())
    numbers = (
        f"the last token can be influenced by {int(steps[-1].sum())} of {TOKENS} tokens, itself included  ·  "
        f"{scored} of {all_pairs} pairs scored ({scored / all_pairs:.0%})"
    )
    return svg.paragraph(numbers) + svg.side_by_side(_mask(band, numbers), _steps(steps, masks, band))


def rotary_explorer():
    """Return sliders for the places of a query and a key, with the hands that rotary positions turn, and the score.

    Both vectors are the same before they are turned, and their score is divided by its value at distance 0.
    """
    controls = {
        "query": slider("place of the query", 7, 0, PLACES),
        "key": slider("place of the key", 4, 0, PLACES),
        "both": slider("move both by", 0, 0, 200),
    }
    arrow = torch.ones(1, HEAD_SIZE)
    turned = rotary(arrow.expand(PLACES + 1, -1))
    scores = (turned @ turned[0] / HEAD_SIZE).tolist()  # by distance

    def picture(query, key, both):
        """Draw the hands and the score by distance."""
        query, key = query + both, key + both
        q, k = (rotary(arrow, first_position=place)[0] for place in (query, key))
        score, distance = float(q @ k) / HEAD_SIZE, query - key
        numbers = f"query at place {query}, key at place {key}  ·  distance {distance}  ·  score {score:.3f}"
        chart = svg.line_chart(
            {"score": (list(range(PLACES + 1)), scores)},
            x_label="distance between query and key, in tokens",
            y_label="score",
            dot=(abs(distance), score),
            height=200,
            description="Score of two equal vectors by their distance.",
        )
        return svg.paragraph(numbers) + _dials(q, k, numbers) + chart

    return Explorer(controls, picture)


def _mask(mask, description):
    side, left, top = 10, 4, 22
    end = side * TOKENS
    parts = [svg.text(left, 14, "the mask of a banded layer", size=12, bold=True)]
    parts += [svg.rect(left, top, end, end, "currentColor", 0.06), *svg.cells(mask.tolist(), left, top, side)]
    parts.append(svg.text(left, top + end + 15, "row: who looks, column: who may be seen", size=11, opacity=0.75))
    return svg.picture(parts, top + end + 22, description, width=end + 2 * left)


def _steps(steps, masks, band):
    """Draw one row of tokens after every layer and one for the input: blue where news to the last token comes from."""
    side, left, top, step = 10, 132, 22, 34
    parts = [svg.text(0, 14, "where news for the last token comes from", size=12, bold=True)]
    names = [f"after layer {n + 1}" + ("" if mask is band else " (dense)") for n, mask in enumerate(masks)]
    for row, (seen, name) in enumerate(zip(steps, [*reversed(names), "the input"], strict=True)):
        y = top + step * row
        parts.append(svg.text(left - 8, y + 9, name, anchor="end", size=11))
        parts.append(svg.rect(left, y, side * TOKENS, side, "currentColor", 0.06))
        parts += svg.cells([seen.tolist()], left, y, side)
    return svg.picture(parts, top + step * len(masks) + 16, "Tokens that reach the last one", left + side * TOKENS + 4)


def _dials(query, key, description):
    """Draw each pair of numbers as the hands of a clock: the query's blue, the key's orange."""
    pairs, step, radius, middle = HEAD_SIZE // 2, svg.WIDTH / (HEAD_SIZE // 2), 32, 48
    parts = []
    for n in range(pairs):
        x = step * (n + 0.5)
        parts.append(
            f'<circle cx="{x:.1f}" cy="{middle}" r="{radius}" fill="none" stroke="currentColor" stroke-opacity="0.3"/>'
        )
        for vector, color, length in ((key, svg.ORANGE, radius - 3), (query, svg.BLUE, radius - 9)):
            angle = math.atan2(vector[n + pairs], vector[n])
            end = x + length * math.cos(angle), middle - length * math.sin(angle)
            parts.append(svg.line(x, middle, *end, color=color, opacity=1, width=3))
        parts.append(svg.text(x, middle + radius + 16, f"pair {n}", anchor="middle", size=11, opacity=0.75))
    parts.append(svg.text(4, 10, "query", color=svg.BLUE, size=11, bold=True))
    parts.append(svg.text(48, 10, "key", color=svg.ORANGE, size=11, bold=True))
    return svg.picture(parts, middle + radius + 24, description)
