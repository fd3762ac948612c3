"""Why attention divides by √d: watch a softmax saturate, and its gradient vanish with it."""

import math

import torch

from gptcourse.explorers import svg
from gptcourse.explorers.explorer import Explorer, buttons, choice, slider

KEYS, QUERIES = 8, 256
HEAD_SIZES = [2**n for n in range(11)]  # 1 … 1,024; GPT-3's heads have 64 to 128 numbers
SCALES = {"1": 0.0, "1/√d": -0.5, "1/d": -1.0}  # the power of d that the scores are multiplied by


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
        "scale": buttons(list(SCALES), width="84px", description="scale by"),
        "temperature": slider("temperature", 1.0, 0.1, 4.0, 0.1),
    }
    return Explorer(controls, lambda **values: _picture(scores, **values))


def _picture(scores, d, scale, temperature):
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
    drawn = svg.side_by_side(_weights(reference, weights, numbers), _jacobian(weights))
    return svg.paragraph(numbers) + drawn + _gradients(curves, d, curves[scale][now])


def _weights(reference, weights, numbers):
    names = [f"key {n + 1}" for n in range(KEYS)]
    return svg.bars(
        list(zip(names, reference.tolist(), weights.tolist(), strict=True)),
        headings=("with 1/√d", "now"),
        left=60,
        width=420,
        description=f"Attention weights of eight keys. {numbers}",
    )


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
        x_label="head size d",
        x_ticks=dict(zip(places, HEAD_SIZES, strict=True)),
        y_label="mean size of the gradient",
        dot=(math.log2(d), now),
        y_range=(0.0, 0.4),
        height=210,
        description="Mean gradient against head size for three scales.",
    )
