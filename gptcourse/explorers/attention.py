"""Why attention divides by √d, who may look at whom through a stack of masks, and how rotary positions turn vectors.

Sources: Vaswani et al. (2017), "Attention Is All You Need", section 3.2.1; Child et al. (2019), "Generating Long
Sequences with Sparse Transformers"; Brown et al. (2020), GPT-3, section 2.1 (dense and banded layers in turn); Su et
al. (2021), RoFormer, section 3.2.
"""

import math

import torch
from torch import Tensor

from gptcourse.attention import causal_mask, rotary
from gptcourse.drawings import svg
from gptcourse.explorers.explorer import Explorer, buttons, choice, slider, wide

KEYS, QUERIES = 8, 256
HEAD_SIZES = [2**n for n in range(11)]  # 1 … 1,024; GPT-3's heads have 64 to 128 numbers
SCALES = {"1": 0.0, "1/√d": -0.5, "1/d": -1.0}  # the power of d that the scores are multiplied by
TOKENS = 24  # in the picture of the masks
PATTERNS = ("all banded", "banded and dense in turn")
HEAD_SIZE = 16  # eight pairs, so eight dials
PLACES = 60


def gradient_size(weights):
    """Return the Frobenius norm of softmax's Jacobian diag(w) − w wᵀ, for ``weights`` (…, keys)."""
    squares = weights.square().sum(-1)
    return (squares - 2 * weights.pow(3).sum(-1) + squares.square()).clamp(min=0).sqrt()


def random_scores(seed=0):
    """Return q·k for standard normal vectors: (head sizes, queries, keys); a longer head extends the shorter one."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(QUERIES, 1, HEAD_SIZES[-1], generator=generator)
    k = torch.randn(QUERIES, KEYS, HEAD_SIZES[-1], generator=generator)
    sums = (q * k).cumsum(-1)  # (queries, keys, dimensions)
    return sums[..., [d - 1 for d in HEAD_SIZES]].permute(2, 0, 1)


def attention_scale_explorer():
    """Return sliders for head size, scale and temperature, with the attention weights and their gradient.

    The vectors are random (standard normal, seed 0), as they are when training starts: "Attention Is All You Need",
    section 3.2.1, footnote 4. One query's eight weights are drawn, and the mean gradient of 256 queries.
    """
    scores = random_scores()
    controls = {
        "d": choice("head size d", HEAD_SIZES, 64),
        "scale": buttons("scale by", list(SCALES)),
        "temperature": slider("temperature", 1.0, 0.1, 4.0, 0.1),
    }
    return Explorer(controls, lambda **values: _scale(scores, **values))


def _scale(scores, d, scale, temperature):
    now = HEAD_SIZES.index(d)
    sizes = torch.tensor(HEAD_SIZES, dtype=torch.float32)
    factors = torch.stack([sizes**power for power in SCALES.values()]) / temperature  # (scales, head sizes)
    gradients = gradient_size((scores * factors[:, :, None, None]).softmax(-1)).mean(-1)  # (scales, head sizes)
    curves = dict(zip(SCALES, gradients.tolist(), strict=True))
    scaled = scores[now] * d ** SCALES[scale] / temperature  # (queries, keys)
    reference, weights = (scores[now, 0] * d**-0.5).softmax(-1), scaled[0].softmax(-1)
    numbers = (
        f"variance of the scores {scaled.var().item():.3g}  ·  largest weight {svg.percent(weights.max().item())}  ·  "
        f"mean gradient {curves[scale][now]:.3f}"
    )
    names = [f"key {n + 1}" for n in range(KEYS)]
    bars = svg.bars(
        list(zip(names, reference.tolist(), weights.tolist(), strict=True)),
        headings=("with 1/√d", "now"),
        left=60,
        width=400,
        description=f"Attention weights of eight keys. {numbers}",
    )
    gradients = _gradients(curves, d, curves[scale][now])
    return svg.paragraph(numbers) + svg.side_by_side(bars, _jacobian(weights)) + gradients


def _jacobian(weights):
    return svg.heat_map(
        (torch.diag(weights) - weights.outer(weights)).tolist(),
        [f"w{n + 1}" for n in range(KEYS)],
        [f"s{n + 1}" for n in range(KEYS)],
        largest=0.25,
        digits=2,
        title="gradient ∂w/∂s",
        description="Gradient of each weight with respect to each score; empty when saturated.",
    )


def _gradients(curves, d, now):
    places = [math.log2(size) for size in HEAD_SIZES]
    return svg.line_chart(
        {f"scale {name}": (places, curve) for name, curve in curves.items()},
        labels=("head size d", "mean size of the gradient"),
        x_ticks=dict(zip(places, HEAD_SIZES, strict=True)),
        dot=(math.log2(d), now),
        y_range=(0.0, 0.4),
        height=210,
    )


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
        "pattern": wide(buttons("layers are", PATTERNS)),
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
            labels=("distance between query and key, in tokens", "score"),
            dot=(abs(distance), score),
            height=200,
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
