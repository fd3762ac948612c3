"""The drawings of notebook 04: a step of training, Adam's averages, clipping, a killed run, sick runs, a head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from gptcourse.drawings.diagram import BLUE, GREEN, ORANGE, PURPLE, Box, Diagram


def loop() -> Diagram:
    """Draw one step of training as a circle of five parts."""
    parts = [
        ("zero_grad", "forget old ones", "currentColor"),
        ("forward", "ids → logits → loss", BLUE),
        ("backward", "loss → gradients", ORANGE),
        ("clip", "not longer than 1", PURPLE),
        ("step", "gradients → weights", GREEN),
    ]
    said = ", then ".join(f"{name} ({note})" for name, note, _ in parts)
    drawing = Diagram(680, 132, f"One step of training: {said}; then the next batch.")
    boxes = [
        drawing.box(6 + 136 * i, 46, 118, 46, name, note=note, color=color)
        for i, (name, note, color) in enumerate(parts)
    ]
    for left, right in pairwise(boxes):
        drawing.arrow(left.right, right.left)
    start, end = boxes[-1].bottom, boxes[0].bottom
    drawing.line(start, (start[0], 118))
    drawing.line((start[0], 118), (end[0], 118))
    drawing.arrow((end[0], 118), end)
    drawing.text(340, 112, "the next batch", size=12, faint=True)
    drawing.text(boxes[1].top[0], 24, "batch: ids, targets", size=12, faint=True)
    drawing.arrow((boxes[1].top[0], 28), boxes[1].top)
    return drawing


def adam(gradients: Sequence[float], m: Sequence[float], v: Sequence[float]) -> Diagram:
    """Draw what AdamW computes for one weight over some steps, from its averages to the move, in learning rates."""
    steps = range(1, len(gradients) + 1)
    m_hat = [average / (1 - 0.9**t) for t, average in zip(steps, m, strict=True)]
    root = [(average / (1 - 0.95**t)) ** 0.5 for t, average in zip(steps, v, strict=True)]
    rows = (
        ("gradient", gradients, 2, None),
        ("average m", m, 3, BLUE),
        ("average of squares v", v, 3, PURPLE),
        ("m corrected", m_hat, 3, BLUE),
        ("root of v corrected", root, 3, PURPLE),
        ("move / learning rate", [top / below for top, below in zip(m_hat, root, strict=True)], 2, GREEN),
    )
    said = "; ".join(f"{name} {', '.join(f'{x:.{digits}f}' for x in values)}" for name, values, digits, _ in rows)
    drawing = Diagram(680, 38 + 36 * len(rows), f"One weight over {len(gradients)} steps: {said}.")
    drawing.text(188, 24, "step", anchor="end", faint=True)
    for t in steps:
        drawing.text(200 + 44 * (t - 0.5), 24, str(t), mono=True, faint=True)
    for i, (name, values, digits, color) in enumerate(rows):
        drawing.matrix(200, 36 + 36 * i, [list(values)], row_labels=[name], digits=digits, color=color)
    return drawing


def clipping(length: float, limit: float) -> Diagram:
    """Draw a gradient that is too long, and the same direction at the limit."""
    drawing = Diagram(680, 120, f"A gradient of length {length:.2f} is shortened to {limit:.2f}; its direction stays.")
    unit = 520 / max(length, limit)
    drawing.text(10, 34, "before", anchor="start", faint=True)
    drawing.arrow((90, 30), (90 + unit * length, 30), color=ORANGE, width=3)
    drawing.text(90 + unit * length, 22, f"{length:.2f}", anchor="end", bold=True)
    drawing.text(10, 84, "after", anchor="start", faint=True)
    drawing.arrow((90, 80), (90 + unit * min(length, limit), 80), color=GREEN, width=3)
    drawing.text(98 + unit * min(length, limit), 85, f"{min(length, limit):.2f}", anchor="start", bold=True)
    drawing.line((90 + unit * limit, 12), (90 + unit * limit, 100), dashed=True)
    drawing.text(90 + unit * limit, 114, f"limit {limit:g}", size=12, faint=True)
    return drawing


def killed_run(steps: int, saved: Sequence[int], killed: int) -> Diagram:
    """Draw a run that was killed after the step `killed`, and went on from its last checkpoint."""
    last = max(step for step in saved if step <= killed)
    description = f"A run of {steps} steps saved at {', '.join(map(str, saved))}, killed after step {killed}, "
    drawing = Diagram(680, 150, description + f"goes on from step {last}.")
    place = lambda step: 110 + 540 * step / steps  # noqa: E731 - a ruler, not a function of the module
    for y, name in ((42, "killed"), (108, "resumed")):
        drawing.text(10, y + 5, name, anchor="start", bold=True)
    drawing.line((place(0), 42), (place(killed), 42), width=3, color=BLUE, opacity=0.8)
    drawing.text(place(killed), 49, "✕", size=19, color=ORANGE, bold=True)
    drawing.text(place(killed), 26, f"step {killed}", size=12, faint=True)
    for step in saved:
        if step <= killed:
            drawing.rectangle(Box(place(step) - 6, 36, 12, 12), GREEN, fill=0.6, outline=1, round=2)
            drawing.text(place(step), 66, f"saved {step}", size=11, faint=True)
    drawing.arrow((place(last), 72), (place(last), 102), color=GREEN)
    drawing.line((place(0), 108), (place(last), 108), dashed=True, opacity=0.35)
    drawing.line((place(last), 108), (place(steps), 108), width=3, color=BLUE, opacity=0.8)
    drawing.text(place(steps), 98, f"step {steps}", anchor="end", size=12, faint=True)
    drawing.text((place(last) + place(steps)) / 2, 130, "the same batches, dropout and averages", size=12, faint=True)
    return drawing


def induction(tokens: Sequence[str], n: int) -> Diagram:
    """Draw n tokens and the same again: the first of the second copy looks at what followed it the first time."""
    width = min(54, 640 / len(tokens) - 6)
    seen = f"the second {tokens[n]!r} looks at {tokens[1]!r}, which followed the first {tokens[0]!r}"
    drawing = Diagram(680, 138, f"{' '.join(tokens)}: {seen}.")
    boxes = [
        drawing.token(10 + (width + 6) * i, 62, token, width=width, color=GREEN if i in (1, n + 1) else "currentColor")
        for i, token in enumerate(tokens)
    ]
    drawing.arrow(boxes[n].top, boxes[1].top, color=BLUE, width=2, bend=46)
    drawing.text((boxes[1].top[0] + boxes[n].top[0]) / 2, 22, "an induction head looks here", size=12, faint=True)
    drawing.arrow(boxes[n].bottom, boxes[n + 1].bottom, color=GREEN, width=2, bend=24)
    drawing.text(boxes[n + 1].bottom[0], 124, "so this is likely to come next", size=12, faint=True)
    return drawing


def sick_runs(curves: Mapping[str, Sequence[float]], highest: float, line: tuple[float, str]) -> Diagram:
    """Draw the loss curves of several runs side by side, from 0 to `highest`: up to four, each with its letter.

    line: a loss to compare with and its name, a dashed line through all of them.
    """
    said = "; ".join(f"{name}: from {values[0]:.2f} to {values[-1]:.2f}" for name, values in curves.items())
    drawing = Diagram(680, 194, f"Training losses of {len(curves)} runs. {said}. {line[1]}: {line[0]:.2f}.")
    width = 660 / len(curves) - 14
    for i, (name, values) in enumerate(curves.items()):
        frame = Box(12 + (width + 14) * i, 30, width, 120)
        drawing.rectangle(frame, outline=0.3, round=2)
        drawing.text(frame.x + width / 2, 20, name, bold=True)
        level = frame.y + 120 * (1 - line[0] / highest)
        drawing.line((frame.x, level), (frame.x + width, level), dashed=True, color=GREEN)
        points = [
            (frame.x + width * j / (len(values) - 1), frame.y + 120 * (1 - min(max(value, 0), highest) / highest))
            for j, value in enumerate(values)
        ]
        for start, end in pairwise(points):
            drawing.line(start, end, color=BLUE, opacity=0.9, width=1.6)
        drawing.text(frame.x + width / 2, 168, f"{values[0]:.2f} → {values[-1]:.2f}", size=12, faint=True)
    key = f"loss in nats per character, from 0 to {highest:g}, by step; dashed: {line[1]}, {line[0]:.2f}"
    drawing.text(12, 188, key, anchor="start", size=12, faint=True)
    return drawing
