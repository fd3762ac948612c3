"""How far from a straight line an activation function is, for inputs of a given spread."""

import torch
from torch.nn import functional as F

from gptcourse.explorers import svg
from gptcourse.explorers.explorer import Explorer, buttons, choice
from gptcourse.interpretability import gelu
from gptcourse.model import squared_relu

ACTIVATIONS = {"ReLU": F.relu, "GELU (GPT-2, GPT-3)": gelu, "squared ReLU": squared_relu}
SPREADS = [0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0]


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
        "bend": buttons(list(ACTIVATIONS), "GELU (GPT-2, GPT-3)", "170px"),
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
        x_label="input, up to three standard deviations",
        y_label="output",
        description=numbers,
    )
