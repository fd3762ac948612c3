"""How far from a straight line an activation function is, and how activations grow through an untrained GPT.

Source: Poole et al. (2016), "Exponential expressivity in deep neural networks through transient chaos" (mean-field
theory).
"""

import math
from functools import partial

import numpy as np
import torch
from numpy.polynomial import Polynomial
from numpy.polynomial.hermite_e import hermegauss, hermevander
from torch.nn import functional as F

from gptcourse.drawings import svg
from gptcourse.explorers.explorer import Explorer, buttons, choice, wide
from gptcourse.model import squared_relu

gelu = partial(F.gelu, approximate="tanh")  # of GPT-2 and GPT-3
ACTIVATIONS = {"ReLU": F.relu, "GELU (GPT-2, GPT-3)": gelu, "squared ReLU": squared_relu}
SPREADS = [0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0]
BLOCKS = [2, 4, 6, 12, 24, 48, 96]
WIDTHS = [64, 128, 256, 512, 768, 1024]
STDS = [0.005, 0.01, 0.02, 0.04]
ALIKE, RULE = "all matrices alike", "GPT-2's rule"
NODES = 24  # of the quadrature in `mean_product`: right to a part in 100,000 for gelu and spreads up to 1.28
NODE, WEIGHT = hermegauss(NODES)
# Hermite polynomials (NODES, NODES), of which a normal number's have the mean square 1; times the share of each node.
HERMITE = hermevander(NODE, NODES - 1) / [math.sqrt(math.factorial(n)) for n in range(NODES)]
HERMITE *= (WEIGHT / WEIGHT.sum())[:, None]


def straight_line(function, spread):
    """Return (share, slope, height) of the straight line nearest to `function`, for normal inputs of this spread.

    share: how much of the output's variance the line explains. A network of nothing but lines is one matrix.
    """
    inputs = torch.linspace(-8, 8, 4_001, dtype=torch.float64)  # in standard deviations
    weights = torch.exp(-(inputs**2) / 2)
    weights /= weights.sum()
    outputs = function(spread * inputs)
    mean = float(weights @ outputs)
    rise = float(weights @ (inputs * outputs))  # for each standard deviation of the input
    return rise**2 / float(weights @ (outputs - mean) ** 2), rise / spread, mean


def bend_explorer():
    """Return sliders for the function and for the spread of its inputs, with the straight line that comes nearest."""
    controls = {
        "bend": wide(buttons("function", list(ACTIVATIONS), "GELU (GPT-2, GPT-3)")),
        "spread": choice("spread of inputs", SPREADS, 1.0),
    }
    return Explorer(controls, _picture)


def _picture(bend, spread):
    share, slope, height = straight_line(ACTIVATIONS[bend], spread)
    x = torch.linspace(-3 * spread, 3 * spread, 121, dtype=torch.float64)
    numbers = (
        f"{bend}, inputs of standard deviation {spread:g}  ·  "
        f"a straight line explains {svg.percent(share)} of the output's variance"
    )
    curves = {bend: ACTIVATIONS[bend](x), "nearest line": height + slope * x}
    return svg.paragraph(numbers) + svg.line_chart(
        {name: (x.tolist(), y.tolist()) for name, y in curves.items()},
        labels=("input, up to three standard deviations", "output"),
    )


def mean_product(function, spread: float) -> Polynomial:
    """Return the mean of function(h) · function(h'), for h and h' normal with mean 0 and this spread.

    It is a polynomial in their correlation, with the squared Hermite coefficients of the function: Mehler's formula
    (Poole et al. 2016 have the integral). `function` maps a float64 tensor to one of the same shape.
    """
    outputs = function(spread * torch.from_numpy(NODE)).numpy()
    return Polynomial((outputs @ HERMITE) ** 2)


def expected_spread(n_layer: int, width: int, std: float, scaled: bool, tokens: int = 32) -> list[float]:
    """Return the expected standard deviation of an untrained GPT's residual stream: n_layer + 1 numbers.

    The mean-field theory of the initialisation of GPT-2 (Radford et al., 2019, section 2.3). The first number is that
    of the embeddings, whose tokens are all different. Matrices and embeddings are drawn with standard deviation `std`,
    biases are 0, and with `scaled` those that write into the stream are smaller by 1/√(2 · n_layer). Attention is taken
    to be uniform over the tokens so far, as it nearly is while width · std² is small.
    """
    writer = std / math.sqrt(2 * n_layer) if scaled else std
    read = width * std**2  # the variance of what a matrix makes of a normalised stream
    product = mean_product(gelu, math.sqrt(read))
    same = np.mean(1 / np.arange(1, tokens + 1))  # an average over t tokens keeps 1/t of their variance
    other = 2 * (1 - same) / (tokens - 1)  # and shares 1/t of it with the average at any earlier place
    variance, shared = 2 * std**2, 0.0  # of one number of the stream, and its covariance with that of another token
    spreads = [math.sqrt(variance)]
    for _ in range(n_layer):
        alike = shared / variance
        variance += width * writer**2 * read * (same + (1 - same) * alike)
        shared += width * writer**2 * read * (other + (1 - other) * alike)
        alike = shared / variance
        variance += 4 * width * writer**2 * product(1)
        shared += 4 * width * writer**2 * product(alike)
        spreads.append(math.sqrt(variance))
    return spreads


def initialisation_explorer():
    """Return sliders for depth, width and standard deviation, with the growth of an untrained model's stream.

    Two curves: all matrices alike, and GPT-2's rule, which makes those that write into the stream smaller.
    """
    controls = {
        "blocks": choice("blocks", BLOCKS, 48),
        "width": choice("model width", WIDTHS, 128),
        "std": choice("deviation", STDS, 0.02),
    }
    return Explorer(controls, _growth)


def _growth(blocks, width, std):
    """Draw the curves over a range that never moves, so that a slider's doing can be seen."""
    growth = {}
    for name in (ALIKE, RULE):
        spreads = expected_spread(blocks, width, std, scaled=name == RULE)
        growth[name] = [spread / spreads[0] for spread in spreads]
    numbers = (
        f"{blocks} blocks  ·  the stream at the end, in sizes of the embeddings: {growth[ALIKE][-1]:.1f} with all "
        f"matrices at {std:g}, {growth[RULE][-1]:.1f} with writers at {std / math.sqrt(2 * blocks):.2g}"
    )
    depth = list(range(blocks + 1))
    return svg.paragraph(numbers) + svg.line_chart(
        {name: (depth, [math.log10(times) for times in curve]) for name, curve in growth.items()},
        labels=("blocks passed", "size of the stream (embeddings = 1)"),
        x_range=(0, BLOCKS[-1]),
        x_ticks={n: n for n in range(0, BLOCKS[-1] + 1, 12)},
        y_range=(0, 3),
        y_ticks={n: f"{10**n:,}" for n in range(4)},
        dot=(blocks, math.log10(growth[RULE][-1])),
        height=270,
    )
