"""The chart that grows through the course: the held-out loss of every model of one text, side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping

from gptcourse.drawings.diagram import BLUE, GREEN, ORANGE, Box, Diagram

COUNTED = "counting"
ROW, LEFT, RIGHT = 25, 250, 110
BITS_PER_NAT = 1 / math.log(2)  # per byte, too, as each character is one


def ladder(losses: Mapping[str, tuple[float, str]], new: set[str]) -> Diagram:
    """Draw losses as bars, the best below, with a line at the best of those that only count.

    Args:
        losses: {name: (nats per character, kind)}; the kind "counting" is grey, every other blue.
        new: the names that this notebook has added: their bars are outlined in orange.
    """
    rows = sorted(losses.items(), key=lambda row: -row[1][0])
    width, top = 680, 44
    said = ", ".join(f"{name} {nats:.3f}" for name, (nats, _) in rows)
    drawing = Diagram(width, top + ROW * len(rows) + 34, f"Held-out loss in nats per character: {said}.")
    scale = (width - LEFT - RIGHT) / (max((nats for nats, _ in losses.values()), default=1.0) or 1.0)
    drawing.text(LEFT, 16, "held-out loss, nats per character (bits per byte)", anchor="start", bold=True)
    for i, (name, (nats, kind)) in enumerate(rows):
        y, color = top + ROW * i, "currentColor" if kind == COUNTED else BLUE
        bar = Box(LEFT, y, nats * scale, ROW - 7)
        drawing.rectangle(bar, color, fill=0.22 if kind == COUNTED else 0.6, outline=0.3, round=2)
        if name in new:
            drawing.rectangle(bar, ORANGE, outline=1, round=2)
        drawing.text(LEFT - 8, y + 14, name, anchor="end", bold=name in new)
        drawing.text(width - 10, y + 14, f"{nats:.3f} ({nats * BITS_PER_NAT:.2f})", anchor="end", size=12)
    counted = [nats for nats, kind in losses.values() if kind == COUNTED]
    if counted:
        x = LEFT + min(counted) * scale
        bottom = top + ROW * len(rows)
        drawing.line((x, top - 8), (x, bottom + 4), color=GREEN, opacity=1, width=1.5, dashed=True)
        drawing.text(x, bottom + 20, f"best table of characters: {min(counted):.3f}", color=GREEN, size=12, bold=True)
    return drawing
