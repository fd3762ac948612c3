"""How the residual stream grows through an untrained GPT: sliders for `interpretability.expected_spread`."""

import math

from gptcourse.explorers import svg
from gptcourse.explorers.explorer import Explorer, choice
from gptcourse.interpretability import expected_spread

BLOCKS = [2, 4, 6, 12, 24, 48, 96]
WIDTHS = [64, 128, 256, 512, 768, 1024]
STDS = [0.005, 0.01, 0.02, 0.04]
ALIKE, RULE = "all matrices alike", "GPT-2's rule"


def initialisation_explorer():
    """Return sliders for depth, width and standard deviation, with the growth of an untrained model's stream.

    Two curves: all matrices alike, and GPT-2's rule, which makes those that write into the stream smaller.
    """
    controls = {
        "blocks": choice("blocks", BLOCKS, 48),
        "width": choice("model width", WIDTHS, 128),
        "std": choice("deviation", STDS, 0.02),
    }
    return Explorer(controls, _picture)


def _picture(blocks, width, std):
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
        x_label="blocks passed",
        y_label="size of the stream (embeddings = 1)",
        x_range=(0, BLOCKS[-1]),
        x_ticks={n: n for n in range(0, BLOCKS[-1] + 1, 12)},
        y_range=(0, 3),
        y_ticks={n: f"{10**n:,}" for n in range(4)},
        dot=(blocks, math.log10(growth[RULE][-1])),
        height=270,
        description=numbers,
    )
