"""Why attention divides by √d: watch a softmax saturate, and its gradient vanish with it."""

import math

import ipywidgets as widgets
import torch

from gptcourse.explorers import svg

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
        "d": widgets.SelectionSlider(options=HEAD_SIZES, value=64, description="head size d"),
        "scale": widgets.ToggleButtons(options=list(SCALES), value="1"),
        "temperature": widgets.FloatSlider(value=1.0, min=0.1, max=4.0, step=0.1, description="temperature"),
    }
    for control in controls.values():
        control.style.description_width = "90px"
        control.layout.width = "440px"
    controls["scale"].style.button_width = "84px"
    controls["scale"].layout.width = "auto"
    picture = widgets.HTML()

    def draw(_change=None):
        picture.value = _picture(
            scores, controls["d"].value, controls["scale"].value, round(controls["temperature"].value, 2)
        )

    for control in controls.values():
        control.observe(draw, "value")
    draw()
    name = widgets.HTML('<div style="width:90px;text-align:right;padding-right:4px">scale by</div>')
    rows = [controls["d"], widgets.HBox([name, controls["scale"]]), controls["temperature"]]
    box = widgets.VBox([*rows, picture])
    box.controls, box.picture = controls, picture
    return box


def _picture(scores, d, scale, temperature):
    now = HEAD_SIZES.index(d)
    sizes = torch.tensor(HEAD_SIZES, dtype=torch.float32)
    factors = torch.stack([sizes**power for power in SCALES.values()]) / temperature  # (scales, head sizes)
    gradients = gradient_size((scores * factors[:, :, None, None]).softmax(-1)).mean(-1)  # (scales, head sizes)
    curves = dict(zip(SCALES, gradients, strict=True))
    scaled = scores[now] * d ** SCALES[scale] / temperature  # (queries, keys)
    reference, weights = (scores[now, 0] * d**-0.5).softmax(-1), scaled[0].softmax(-1)
    numbers = (
        f"variance of the scores {scaled.var().item():.3g}  ·  largest weight {svg.percent(weights.max().item())}  ·  "
        f"mean gradient {curves[scale][now]:.3f}"
    )
    return (
        f'{svg.paragraph(numbers)}<div style="display:flex;flex-wrap:wrap;gap:24px;align-items:flex-start">'
        f'<div style="flex:1 1 380px;max-width:470px">{_weights(reference, weights, numbers)}</div>'
        f'<div style="flex:1 1 240px;max-width:310px">{_jacobian(weights)}</div></div>'
        f"{_gradients(curves, d, curves[scale][now].item())}"
    )


def _weights(reference, weights, numbers):
    names = [f"key {n + 1}" for n in range(KEYS)]
    return svg.bars(
        list(zip(names, reference.tolist(), weights.tolist(), strict=True)),
        headings=("with 1/√d", "now"),
        left=70,
        width=470,
        description=f"Attention weights of eight keys. {numbers}",
    )


def _jacobian(weights):
    return svg.heat_map(
        (torch.diag(weights) - weights.outer(weights)).tolist(),
        [f"w{n + 1}" for n in range(KEYS)],
        [f"s{n + 1}" for n in range(KEYS)],
        largest=0.25,
        title="gradient ∂w/∂s",
        description="Gradient of each weight with respect to each score; empty when saturated.",
    )


def _gradients(curves, d, now):
    return svg.line_chart(
        {f"scale {name}": ([math.log2(size) for size in HEAD_SIZES], curve.tolist()) for name, curve in curves.items()},
        x_label="head size d",
        x_ticks={math.log2(size): size for size in HEAD_SIZES},
        y_label="mean size of the gradient",
        dot=(math.log2(d), now),
        y_range=(0.0, 0.4),
        height=210,
        description="Mean gradient against head size for three scales.",
    )
