"""How much a bend bends what reaches it: the functions between the two matrices of an MLP."""

import ipywidgets as widgets
import torch
from torch.nn import functional as F

from gptcourse.explorers import svg
from gptcourse.explorers.initialisation import gelu
from gptcourse.explorers.live import live_picture
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
        "bend": widgets.ToggleButtons(options=list(ACTIVATIONS), value="GELU (GPT-2, GPT-3)"),
        "spread": widgets.SelectionSlider(options=SPREADS, value=1.0, description="spread of inputs"),
    }
    controls["bend"].style.button_width = "170px"

    def picture():
        """Return the drawing for where the controls stand."""
        name, spread = controls["bend"].value, controls["spread"].value
        share, slope, height = straight_line(ACTIVATIONS[name], spread)
        x = torch.linspace(-3 * spread, 3 * spread, 121, dtype=torch.float64)
        numbers = (
            f"{name}, inputs of standard deviation {spread:g}  ·  "
            f"a straight line explains {svg.percent(share)} of the output's variance"
        )
        nearest = (height + slope * x).tolist()
        chart = svg.line_chart(
            {name: (x.tolist(), ACTIVATIONS[name](x).tolist()), "nearest line": (x.tolist(), nearest)},
            x_label="input, up to three standard deviations",
            y_label="output",
            description=numbers,
        )
        return svg.paragraph(numbers) + chart

    return live_picture(controls, picture)
