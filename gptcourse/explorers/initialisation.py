"""How the residual stream grows through an untrained GPT: a formula for it, and sliders for what it depends on.

The formula is a mean-field one: averages over random weights, in the manner of Poole et al. (2016), "Exponential
expressivity in deep neural networks through transient chaos". Its subject is the initialisation of Radford et al.
(2019), GPT-2, section 2.3.
"""

import math

import ipywidgets as widgets
import numpy as np
import torch
from torch.nn import functional as F

from gptcourse.explorers import svg
from gptcourse.explorers.live import live_picture

BLOCKS = [2, 4, 6, 12, 24, 48, 96]
WIDTHS = [64, 128, 256, 512, 768, 1024]
STDS = [0.005, 0.01, 0.02, 0.04]
ALIKE, RULE = "all matrices alike", "GPT-2's rule"
TERMS = 24  # of the power series below; what is left out is less than a part in a thousand


def hermite_squares(function, spread):
    """Return how much of E[function(h)²] each degree of polynomial carries, for h normal with this spread: (TERMS,).

    Entry 0 is the square of the mean and entry 1 the variance that a straight line explains. If h and h' have the
    correlation ρ, then E[function(h) · function(h')] is the sum of entry k times ρ to the power k (Mehler's formula).
    `function` maps a float64 tensor to one of the same shape.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    values = function(torch.from_numpy(spread * nodes)).numpy()
    polynomials = np.polynomial.hermite_e.hermevander(nodes, TERMS - 1)  # (nodes, TERMS)
    means = (weights * values / weights.sum()) @ polynomials
    return means**2 / np.array([math.factorial(k) for k in range(TERMS)], dtype=float)


def gelu(x):
    """Return the GELU of GPT-2 and GPT-3."""
    return F.gelu(x, approximate="tanh")


def expected_spread(n_layer, width, std, scaled, tokens=32):
    """Return the expected standard deviation of an untrained GPT's residual stream: n_layer + 1 numbers.

    The first is that of the embeddings, whose tokens are all different. Matrices and embeddings are drawn with
    standard deviation `std`, biases are 0, and with `scaled` those that write into the stream are smaller by
    1/√(2 · n_layer). Attention is taken to be even over the tokens so far, as it nearly is while width · std² is small.
    """
    writer = std / math.sqrt(2 * n_layer) if scaled else std
    read = width * std**2  # the variance of what a matrix makes of a normalised stream
    bend = hermite_squares(gelu, math.sqrt(read))
    same = np.mean(1 / np.arange(1, tokens + 1))  # an average over t tokens keeps 1/t of their variance
    other = 2 * (1 - same) / (tokens - 1)  # and shares 1/t of it with the average at any earlier place
    variance, shared = 2 * std**2, 0.0  # of one number of the stream, and its covariance with that of another token
    spreads = [math.sqrt(variance)]
    for _ in range(n_layer):
        alike = shared / variance
        variance += width * writer**2 * read * (same + (1 - same) * alike)
        shared += width * writer**2 * read * (other + (1 - other) * alike)
        alike = shared / variance
        variance += 4 * width * writer**2 * bend.sum()
        shared += 4 * width * writer**2 * (bend * alike ** np.arange(TERMS)).sum()
        spreads.append(math.sqrt(variance))
    return spreads


def initialisation_explorer():
    """Return sliders for depth, width and standard deviation, with the growth of an untrained model's stream.

    Two curves: all matrices alike, and GPT-2's rule, which makes those that write into the stream smaller. Both are
    `expected_spread`, which the course's tests hold against models that are really built.
    """
    controls = {
        "blocks": widgets.SelectionSlider(options=BLOCKS, value=48, description="blocks"),
        "width": widgets.SelectionSlider(options=WIDTHS, value=128, description="model width"),
        "std": widgets.SelectionSlider(options=STDS, value=0.02, description="deviation"),
    }

    def picture():
        """Return the drawing for where the controls stand."""
        blocks, width, std = (controls[name].value for name in controls)
        growth = {}
        for name in (ALIKE, RULE):
            spreads = expected_spread(blocks, width, std, scaled=name == RULE)
            growth[name] = [spread / spreads[0] for spread in spreads]
        numbers = (
            f"{blocks} blocks  ·  the stream at the end, in sizes of the embeddings: {growth[ALIKE][-1]:.1f} with all "
            f"matrices at {std:g}, {growth[RULE][-1]:.1f} with writers at {std / math.sqrt(2 * blocks):.2g}"
        )
        return svg.paragraph(numbers) + _growth(growth, numbers)

    return live_picture(controls, picture)


def _growth(growth, description):
    """Draw the curves over a range that never moves, so that a slider's doing can be seen."""
    depth = list(range(len(growth[ALIKE])))
    return svg.line_chart(
        {name: (depth, [math.log10(times) for times in curve]) for name, curve in growth.items()},
        x_label="blocks passed",
        y_label="size of the stream (embeddings = 1)",
        x_range=(0, BLOCKS[-1]),
        x_ticks={n: n for n in range(0, BLOCKS[-1] + 1, 12)},
        y_range=(0, 3),
        y_ticks={n: f"{10**n:,}" for n in range(4)},
        dot=(depth[-1], math.log10(growth[RULE][-1])),
        height=270,
        description=description,
    )
