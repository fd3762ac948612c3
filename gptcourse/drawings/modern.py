"""The drawing of notebook 12: GPT-3's block and a current one, part by part."""

from __future__ import annotations

from gptcourse.drawings.diagram import BLUE, GREEN, ORANGE, PURPLE, Diagram

ROWS = (  # what stands where, from the stream's entry upwards: part, in GPT-3, in a current model, its colour
    ("norm", "layer norm", "RMSNorm", ORANGE),
    ("attention", "H heads of keys", "fewer heads of keys", BLUE),
    ("MLP", "two maps, GELU", "SwiGLU, or experts", PURPLE),
)


def two_blocks() -> Diagram:
    """Draw a block of GPT-3 beside a block of today: the same stream, other parts."""
    said = "; ".join(f"{part}: {old}, now {new}" for part, old, new, _ in ROWS)
    drawing = Diagram(
        700,
        316,
        f"Two blocks. Both add attention and an MLP to a residual stream, each reading a normalised copy. {said}. "
        "Places: a learned vector is added to the embedding; now queries and keys are turned. Linear maps: with "
        "biases; now without.",
    )
    for x, title, column, places, maps in (
        (10, "GPT-3 (2020)", 1, "a vector for each place, added at the start", "all maps with biases"),
        (360, "a current model", 2, "queries and keys turned by their place", "no biases, queries and keys normed"),
    ):
        drawing.text(x + 165, 20, title, bold=True)
        stream = x + 40
        drawing.arrow((stream, 256), (stream, 34), color=GREEN, width=2.5)
        for bottom, part in ((250, ROWS[1]), (140, ROWS[2])):
            norm = drawing.box(x + 76, bottom - 40, 92, 36, ROWS[0][column], color=ORANGE)
            box = drawing.box(x + 190, bottom - 46, 140, 48, part[0], color=part[3], note=part[column])
            drawing.arrow((stream, norm.left[1]), norm.left)
            drawing.arrow(norm.right, box.left)
            plus = drawing.plus(stream, bottom - 84)
            drawing.line(box.top, (box.top[0], plus.y + 11))
            drawing.arrow((box.top[0], plus.y + 11), plus.right, color=GREEN)
        drawing.text(x + 10, 284, places, anchor="start", size=12)
        drawing.text(x + 10, 304, maps, anchor="start", size=12)
    return drawing
