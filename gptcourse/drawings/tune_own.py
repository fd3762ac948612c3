"""The drawings of notebook 06: the tuning procedure, and a trunk with its cool-downs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from gptcourse.drawings.diagram import BLUE, GREEN, ORANGE, PURPLE, Diagram

STEPS = (
    ("1 data", "report, leaks, lines", PURPLE),
    ("2 measure", "speed, memory", "currentColor"),
    ("3 bracket", "the learning rate", BLUE),
    ("4 search", "quasi-random", BLUE),
    ("5 boundary?", "widen, go on", BLUE),
    ("6 once more", "the best, another seed", BLUE),
    ("7 confirm", "fresh seeds, fresh part", GREEN),
    ("8 record", "adopt, or keep", ORANGE),
)


def procedure() -> Diagram:
    """Draw the eight steps from a file to a decision."""
    said = ", ".join(f"{name} ({note})" for name, note, _ in STEPS)
    drawing = Diagram(680, 214, f"From a file to a decision: {said}. From 5 back to 4 while the best is at an end.")
    boxes = []
    for i, (name, note, color) in enumerate(STEPS):
        column, row = (i, 0) if i < 4 else (7 - i, 1)
        boxes.append(drawing.box(6 + 174 * column, 10 + 96 * row, 146, 48, name, note=note, color=color))
    for left, right in pairwise(boxes[:4]):
        drawing.arrow(left.right, right.left)
    (x, down), (_, up) = boxes[3].bottom, boxes[4].top
    drawing.arrow((x - 30, down), (x - 30, up))
    drawing.arrow((x + 30, up), (x + 30, down), dashed=True)
    for right, left in pairwise(boxes[4:]):
        drawing.arrow(right.left, left.right)
    for x, color, words in (
        (6, BLUE, "reads the part to choose on"),
        (250, GREEN, "reads the part to confirm on, once"),
    ):
        drawing.text(x, 200, "●", anchor="start", size=12, color=color)
        drawing.text(x + 16, 200, words, anchor="start", size=12, faint=True)
    return drawing


def trunk(steps: Sequence[int], share: float) -> Diagram:
    """Draw the rate of one trunk and of the cool-downs that leave it after some steps, each `share` as long."""
    ends = [step + round(share * step) for step in steps]
    said = "; ".join(f"a cool-down from step {step} to {end}" for step, end in zip(steps, ends, strict=True))
    drawing = Diagram(680, 176, f"The learning rate of a trunk that stays constant; {said}.")
    left, high, low, unit = 60, 36, 136, 580 / max(ends)
    drawing.line((left, low), (left + 600, low))
    drawing.text(left - 8, high + 5, "rate", anchor="end", size=12, faint=True)
    drawing.text(left - 8, low + 5, "0", anchor="end", size=12, faint=True)
    drawing.line((left, low), (left + 24, high), color=BLUE, width=2.5, opacity=1)
    drawing.line((left + 24, high), (left + unit * max(ends), high), color=BLUE, width=2.5, opacity=1)
    drawing.text(left + 120, high - 12, "the trunk, trained once", size=12)
    for step, end in zip(steps, ends, strict=True):
        drawing.line((left + unit * step, high), (left + unit * end, low), color=GREEN, width=2.5, opacity=1)
        drawing.text(left + unit * step, low + 18, str(step), size=12, mono=True)
        drawing.text(left + unit * end, low + 18, str(end), size=12, mono=True)
    drawing.text(left + 300, low + 36, "steps; each cool-down is a model to keep", size=12, faint=True)
    return drawing
