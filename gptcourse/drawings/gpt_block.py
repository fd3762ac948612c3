"""The drawings of notebook 03: the residual stream, a norm, an MLP, the block, one table used twice, the whole GPT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from gptcourse.drawings.diagram import BLUE, GREEN, ORANGE, PURPLE, Box, Diagram


def stream(lengths: Sequence[float], added: Sequence[tuple[str, float]]) -> Diagram:
    """Draw the residual stream as a line that parts add to: its length after each part, and what each part added."""
    said = "; ".join(f"{name} adds a vector of length {size:.1f}" for name, size in added)
    drawing = Diagram(680, 150, f"The stream has length {lengths[0]:.1f}. {said}. At the end it has {lengths[-1]:.1f}.")
    step = 640 / (len(added) + 1)
    drawing.arrow((10, 110), (670, 110), width=2.5)
    drawing.text(14, 134, f"embeddings: {lengths[0]:.1f}", anchor="start", size=12)
    for i, (name, size) in enumerate(added):
        x = 10 + step * (i + 1)
        color = BLUE if "attention" in name else ORANGE
        box = drawing.box(x - 46, 26, 92, 40, name, note=f"adds {size:.1f}", color=color)
        plus = drawing.plus(x, 110)
        drawing.arrow(box.bottom, plus.top, color=color)
        drawing.line((x - step / 2.2, 110), (x - step / 2.2, 46), color=color, opacity=0.6)
        drawing.arrow((x - step / 2.2, 46), box.left, color=color)
        drawing.text(x + 14, 134, f"{lengths[i + 1]:.1f}", anchor="start", size=12)
    return drawing


def norm(x: Sequence[float], centred: Sequence[float], normed: Sequence[float], result: Sequence[float]) -> Diagram:
    """Draw layer norm on the numbers of one token: minus the mean, divided by the spread, times weight plus bias."""
    rows = {"x": x, "minus the mean": centred, "divided by the spread": normed, "times weight, plus bias": result}
    said = "; ".join(f"{name}: {', '.join(f'{value:.2f}' for value in row)}" for name, row in rows.items())
    drawing = Diagram(680, 44 * len(rows) + 8, f"Layer norm of one token. {said}.")
    for i, (name, row) in enumerate(rows.items()):
        box = drawing.vector(230, 8 + 44 * i, list(row), label=name, digits=2)
        if i:
            drawing.arrow((box.x + 22, box.y - 17), (box.x + 22, box.y))
    return drawing


def mlp(x: Sequence[float], hidden: Sequence[float], active: Sequence[float], out: Sequence[float]) -> Diagram:
    """Draw one token's way through an MLP: to more numbers, through the curve, and back."""
    said = "; ".join(
        f"{name} {', '.join(f'{v:.2f}' for v in row)}"
        for name, row in {"in": x, "hidden": hidden, "after GELU": active, "out": out}.items()
    )
    drawing = Diagram(680, 214, f"An MLP on one token. {said}.")
    first = drawing.vector(120, 10, list(x), label="x", digits=2)
    second = drawing.vector(120, 66, list(hidden), label="c_fc(x)", digits=2)
    third = drawing.vector(120, 122, list(active), label="GELU", digits=2, color=GREEN)
    last = drawing.vector(120, 178, list(out), label="c_proj", digits=2)
    for upper, lower in pairwise((first, second, third, last)):
        drawing.arrow((142, upper.y + 26), (142, lower.y))
    drawing.text(160, 55, "every number sees all numbers of x", anchor="start", size=11, faint=True)
    drawing.text(160, 111, "each number on its own: the only bend", anchor="start", size=11, faint=True)
    return drawing


def block() -> Diagram:
    """Draw one block: two parts that read a normalised copy and add to the stream."""
    drawing = Diagram(
        680, 170, "A block: norm and attention add to the stream, then norm and MLP add to it; the stream passes by."
    )
    drawing.arrow((10, 140), (670, 140), width=2.5)
    drawing.text(14, 162, "x (B, T, C)", anchor="start", size=12, mono=True)
    drawing.text(666, 162, "x (B, T, C)", anchor="end", size=12, mono=True)
    for left, name, note, color in (
        (90, "attn", "between tokens", BLUE),
        (380, "mlp", "each token alone", ORANGE),
    ):
        norm_box = drawing.box(left + 10, 26, 76, 42, "ln_1" if name == "attn" else "ln_2", note="a copy")
        part = drawing.box(left + 112, 26, 104, 42, name, note=note, color=color)
        drawing.line((left, 140), (left, 47), opacity=0.7)
        drawing.arrow((left, 47), norm_box.left)
        drawing.arrow(norm_box.right, part.left)
        plus = drawing.plus(left + 240, 140)
        drawing.line(part.right, (left + 240, 47), color=color)
        drawing.arrow((left + 240, 47), plus.top, color=color)
    return drawing


def tied(token: str, scores: Mapping[str, float]) -> Diagram:
    """Draw one table used twice: a row is looked up below, and all rows are compared with the stream above."""
    said = ", ".join(f"{name} {score:.1f}" for name, score in scores.items())
    drawing = Diagram(680, 180, f"The row of {token!r} enters the stream; at the end all rows are compared: {said}.")
    table = Box(20, 40, 150, 27 * len(scores))
    for i, name in enumerate(scores):
        row = Box(table.x, table.y + 27 * i, table.width, 26)
        drawing.rectangle(row, BLUE if name == token else "currentColor", fill=0.2 if name == token else 0.05, round=2)
        drawing.text(row.x + 75, row.y + 18, f"row of {name!r}", size=12, mono=True)
    drawing.text(95, 28, "wte.weight (V, C)", bold=True, size=12)
    blocks = drawing.box(280, 60, 110, 50, "blocks", note="and last norm")
    drawing.arrow((172, 66), blocks.left, color=BLUE, label="look up")
    drawing.arrow(blocks.right, (480, 85))
    drawing.text(486, 172, "compared with every row", size=11, faint=True)
    for i, (name, score) in enumerate(scores.items()):
        drawing.text(560, 46 + 27 * i, f"{name!r}", anchor="end", mono=True, size=12)
        drawing.text(572, 46 + 27 * i, f"{score:.1f}".replace("-", "−"), anchor="start", bold=name == token)
    return drawing


def whole(n_layer: int, n_embd: int, vocab_size: int, n_positions: int) -> Diagram:
    """Draw a whole GPT from ids to logits, with the names of its parts and the shapes between them."""
    drawing = Diagram(
        680,
        400,
        f"A GPT: ids, token and position vectors of width {n_embd}, {n_layer} blocks, last norm, LM head, logits.",
    )
    x, width = 250, 190
    ids = drawing.box(x, 352, width, 36, "ids", note="", mono=True)
    wte = drawing.box(x, 290, width, 40, "wte", note=f"{vocab_size:,} rows of {n_embd}", color=BLUE)
    wpe = drawing.box(40, 290, 150, 40, "wpe", note=f"{n_positions:,} rows of {n_embd}", color=PURPLE)
    plus = drawing.plus(x + width / 2, 262)
    boxes = [drawing.box(x, 200 - 44 * i, width, 36, name, color=ORANGE) for i, name in enumerate(("h[0]", "h[1]"))]
    drawing.text(x + width / 2, 146, f"⋮   {n_layer} blocks", bold=True)
    last = drawing.box(x, 94, width, 36, f"h[{n_layer - 1}]", color=ORANGE)
    ln_f = drawing.box(x, 50, width, 30, "ln_f")
    head = drawing.box(x, 6, width, 34, "lm_head", note="", color=BLUE)
    drawing.arrow(ids.top, wte.bottom)
    drawing.arrow(wte.top, plus.bottom)
    drawing.arrow(wpe.right, (plus.x, plus.y + 11))
    drawing.arrow(plus.top, boxes[0].bottom)
    drawing.arrow(boxes[0].top, boxes[1].bottom)
    drawing.arrow(last.top, ln_f.bottom)
    drawing.arrow(ln_f.top, head.bottom)
    for y, shape in ((374, "(B, T)"), (266, "(B, T, C)"), (116, "(B, T, C)"), (20, f"(B, T, {vocab_size:,})")):
        drawing.text(x + width + 16, y, shape, anchor="start", mono=True, faint=True)
    drawing.line((head.x + width, 33), (600, 33), color=BLUE, opacity=0.5, dashed=True)
    drawing.line((600, 33), (600, 310), color=BLUE, opacity=0.5, dashed=True)
    drawing.arrow((600, 310), wte.right, color=BLUE, dashed=True, label="")
    drawing.text(606, 180, "one table", anchor="start", size=12, color=BLUE)
    return drawing


def sizes(parts: Mapping[str, int], title: str) -> Diagram:
    """Draw the parameters of a model by part, as bars."""
    total = sum(parts.values())
    said = ", ".join(f"{name} {count:,}" for name, count in parts.items())
    drawing = Diagram(680, 34 + 30 * len(parts), f"{title}: {said}; {total:,} in all.")
    drawing.text(10, 18, f"{title}: {total:,} parameters", anchor="start", bold=True)
    for i, (name, count) in enumerate(parts.items()):
        y = 32 + 30 * i
        drawing.text(150, y + 15, name, anchor="end")
        drawing.rectangle(Box(160, y, 380 * count / total, 20), BLUE, fill=0.5, round=2)
        drawing.text(168 + 380 * count / total, y + 15, f"{count:,} ({count / total:.0%})", anchor="start", size=12)
    return drawing
