"""The drawings of notebook 03: the residual stream, the norm, the MLP, the block, the whole GPT.

Every function takes tensors or nested lists, so that the numbers are the notebook's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from gptcourse.config import GPTConfig
from gptcourse.drawings.diagram import BLUE, GREEN, ORANGE, PURPLE, Box, Diagram


def _list(numbers) -> list[float]:
    return np.asarray(numbers, dtype=float).tolist()


def _said(numbers) -> str:
    return ", ".join(f"{value:.2f}" for value in np.asarray(numbers, dtype=float).ravel())


def residual(embedding, attended, computed) -> Diagram:
    """Draw how one block adds twice to one token's vector, which has three numbers."""
    embedding, attended, computed = map(np.asarray, (embedding, attended, computed))
    middle, end = embedding + attended, embedding + attended + computed
    said = f"attention adds ({_said(attended)}), which gives ({_said(middle)}); the MLP adds ({_said(computed)})"
    drawing = Diagram(700, 220, f"The stream comes in as ({_said(embedding)}); {said}, which gives ({_said(end)}).")
    drawing.text(350, 18, "the residual stream of one token", bold=True)
    vectors = [drawing.vector(x, 40, _list(v), digits=2) for x, v in ((8, embedding), (284, middle), (560, end))]
    parts = (("attention", attended, 210, BLUE), ("MLP", computed, 486, PURPLE))
    for i, (name, added, x, color) in enumerate(parts):
        plus = drawing.plus(x, 53)
        drawing.arrow(vectors[i].right, plus.left)
        drawing.arrow(plus.right, vectors[i + 1].left)
        part = drawing.box(x - 66, 160, 132, 40, name, color=color, note="reads norm(stream)")
        read = vectors[i].x + 40
        drawing.line((read, 66), (read, 180), dashed=True)
        drawing.arrow((read, 180), part.left, color=color)
        vector = drawing.vector(x - 66, 108, _list(added), digits=2)
        drawing.arrow(part.top, vector.bottom, color=color)
        drawing.arrow(vector.top, plus.bottom, color=GREEN)
    return drawing


def norm(steps: dict[str, Sequence[float]]) -> Diagram:
    """Draw the steps of layer norm, {what is done: the numbers after it}, one below the other."""
    said = "; ".join(f"{name}: {_said(numbers)}" for name, numbers in steps.items())
    drawing = Diagram(560, 20 + 46 * len(steps), f"Layer norm of one token, step by step. {said}.")
    previous = None
    for i, (name, numbers) in enumerate(steps.items()):
        vector = drawing.vector(300, 14 + 46 * i, _list(numbers), digits=2)
        drawing.text(286, vector.y + 18, name, anchor="end")
        if previous is not None:
            drawing.arrow(previous.bottom, vector.top, color=BLUE)
        previous = vector
    return drawing


def norm_places() -> Diagram:
    """Draw the two places of the norm: after the addition (2017), before each part (GPT-2)."""
    drawing = Diagram(
        680,
        215,
        "Norm after: the stream itself passes through the norm behind each addition. Norm before: only the copy that "
        "a part reads is normalised, and the stream runs past it.",
    )
    for x, title, before in ((20, "norm after (2017): the stream is normalised", False), (360, "", True)):
        drawing.text(x + 150, 22, title or "norm before (GPT-2): the copy is normalised", bold=True, size=12)
        y, parts = 120, ((x + 80, "norm"), (x + 170, "attention")) if before else ((x + 80, "attention"),)
        drawing.text(x + 4, 64, "stream", anchor="start", size=12)
        plus = drawing.plus(x + 200 if not before else x + 262, 80)
        drawing.arrow((x + 4, 80), plus.left, color=GREEN, width=2.5)
        boxes = [drawing.box(at, y, 76, 36, name, color=ORANGE if name == "norm" else BLUE) for at, name in parts]
        drawing.line((x + 40, 80), (x + 40, y + 18))
        drawing.arrow((x + 40, y + 18), boxes[0].left)
        for left, right in pairwise(boxes):
            drawing.arrow(left.right, right.left)
        drawing.line(boxes[-1].right, (plus.x + 11, y + 18))
        drawing.arrow((plus.x + 11, y + 18), plus.bottom)
        if not before:
            over = drawing.box(x + 228, 62, 52, 36, "norm", color=ORANGE)
            drawing.arrow(plus.right, over.left, color=GREEN, width=2.5)
            drawing.arrow(over.right, (x + 310, 80), color=GREEN, width=2.5)
        else:
            drawing.arrow(plus.right, (x + 312, 80), color=GREEN, width=2.5)
    drawing.text(170, 200, "x ← norm(x + part(x))", mono=True)
    drawing.text(510, 200, "x ← x + part(norm(x))", mono=True)
    return drawing


def mlp(x, hidden, activated, output) -> Diagram:
    """Draw one token's way through the MLP: more numbers, the activation function, fewer numbers."""
    rows = (("x", x), ("c_fc(x)", hidden), ("activation", activated), ("c_proj", output))
    said = "; ".join(f"{name}: {_said(numbers)}" for name, numbers in rows)
    width = max(len(_list(hidden)), 4) * 44
    drawing = Diagram(width + 300, 242, f"One token through the MLP. {said}.")
    previous = None
    for i, (name, numbers) in enumerate(rows):
        numbers = _list(numbers)
        vector = drawing.vector(150 + (width - 44 * len(numbers)) / 2, 16 + 64 * i, numbers, digits=2)
        drawing.text(136, vector.y + 18, name, anchor="end", mono=True)
        count = f"{len(numbers)} number{'s' * (len(numbers) > 1)}"
        drawing.text(width + 166, vector.y + 18, count, anchor="start", size=12, faint=True)
        if previous is not None:
            drawing.arrow(previous.bottom, vector.top, color=PURPLE)
        previous = vector
    return drawing


def tying(token: str, row, scores: dict[str, float]) -> Diagram:
    """Draw how one table reads and writes: a row goes in, and products with all rows come out as scores."""
    said = ", ".join(f"{name} {score:.2f}" for name, score in scores.items())
    drawing = Diagram(700, 160, f"The row of {token} ({_said(row)}, …) goes in; one score a row comes out: {said}.")
    drawing.text(205, 36, "read", bold=True)
    drawing.text(524, 36, "write", bold=True)
    tile = drawing.token(16, 80, token, width=88)
    table = drawing.box(150, 62, 110, 62, "wte", note="(V, C)", color=BLUE)
    blocks = drawing.box(318, 70, 120, 46, "blocks", note="and last norm")
    head = drawing.box(486, 62, 76, 62, "wte", note="the same", color=BLUE)
    drawing.arrow(tile.right, table.left)
    drawing.arrow(table.right, blocks.left)
    drawing.arrow(blocks.right, head.left)
    drawing.arrow(head.right, (588, head.right[1]))
    drawing.text(289, 150, f"row: {_said(row)}, …", size=12, mono=True)
    for i, (name, score) in enumerate(scores.items()):
        drawing.text(594, 73 + 24 * i, name, anchor="start", mono=True, size=12)
        drawing.text(696, 73 + 24 * i, f"{score:.2f}".replace("-", "−"), anchor="end", mono=True, size=12)
    return drawing


def names(pairs: Sequence[tuple[str, tuple, str, tuple]]) -> Diagram:
    """Draw how names and shapes of a file's weights become those of a model: (name, shape, name, shape)."""
    said = "; ".join(f"{theirs} {a} becomes {ours} {b}" for theirs, a, ours, b in pairs)
    drawing = Diagram(760, 50 + 32 * len(pairs), f"Names and shapes in the file and in the model. {said}.")
    drawing.text(10, 20, "in the file", anchor="start", bold=True)
    drawing.text(450, 20, "in the model", anchor="start", bold=True)
    for i, (theirs, a, ours, b) in enumerate(pairs):
        y, turned = 52 + 32 * i, a != b
        color = ORANGE if turned else "currentColor"
        drawing.text(10, y, theirs, anchor="start", mono=True, size=12)
        drawing.text(385, y, a, anchor="end", mono=True, size=12, color=color)
        drawing.arrow((394, y - 4), (442, y - 4), color=color)
        drawing.text(450, y, ours, anchor="start", mono=True, size=12)
        drawing.text(750, y, b, anchor="end", mono=True, size=12, color=color)
    return drawing


def block(n_embd: int, n_head: int) -> Diagram:
    """Draw the block from top to bottom, with the name of each part in the code and the shapes between them."""
    drawing = Diagram(
        470,
        440,
        f"The block: x passes down; ln_1 and attn ({n_head} heads) read it and add to it; then ln_2 and mlp "
        f"({n_embd} to {4 * n_embd} numbers and back) do.",
    )
    drawing.text(110, 20, f"x (B, T, {n_embd})", mono=True)
    top = 30
    groups = (
        (("ln_1", "each token alone", ORANGE), ("attn", f"{n_head} heads, between tokens", BLUE)),
        (("ln_2", "each token alone", ORANGE), ("mlp", f"{n_embd} → {4 * n_embd} → {n_embd}", PURPLE)),
    )
    for parts in groups:
        plus = drawing.plus(110, top + 172)
        drawing.arrow((110, top), plus.top, color=GREEN, width=2.5)
        previous = None
        for i, (name, note, color) in enumerate(parts):
            part = drawing.box(210, top + 22 + 62 * i, 200, 44, name, note=note, color=color, mono=True)
            start = (110, part.left[1]) if previous is None else previous.bottom
            drawing.arrow(start, part.left if previous is None else part.top, color=color)
            previous = part
        drawing.line(previous.bottom, (310, top + 172))
        drawing.arrow((310, top + 172), plus.right, color=GREEN)
        top += 183
    drawing.arrow((110, top), (110, top + 34), color=GREEN, width=2.5)
    drawing.text(130, top + 30, f"x (B, T, {n_embd}), to the next block", anchor="start", mono=True, size=12)
    return drawing


def whole(config: GPTConfig) -> Diagram:
    """Draw the whole GPT from top to bottom, with the names, the shapes and the number of parameters of each part."""
    V, T, C = config.vocab_size, config.n_positions, config.n_embd
    in_block, last = 12 * C * C + 13 * C, config.n_layer - 1
    rows = (
        ("ids", "token ids (B, T)", None, "currentColor"),
        ("wte + wpe", f"{V:,} and {T:,} rows: (B, T, {C})", (V + T) * C, BLUE),
        ("h[0]", "ln_1, attn, ln_2, mlp", in_block, GREEN),
        (f"h[1] … h[{last}]", f"{last} more blocks, built alike", in_block * last, GREEN),
        ("ln_f", f"the last norm: (B, T, {C})", 2 * C, ORANGE),
        ("lm_head", f"the table wte again; logits (B, T, {V:,})", 0, BLUE),
    )
    said = "; ".join(f"{name}, {note}, {'no' if not n else f'{n:,}'} parameters" for name, note, n, _ in rows)
    drawing = Diagram(560, 20 + 62 * len(rows), f"The whole GPT, from top to bottom: {said}.")
    drawing.text(548, 16, "parameters", anchor="end", bold=True, size=12)
    previous: Box | None = None
    for i, (name, note, n, color) in enumerate(rows):
        part = drawing.box(60, 26 + 62 * i, 330, 44, name, note=note, color=color, mono=True)
        if previous is not None:
            drawing.arrow(previous.bottom, part.top)
        if n is not None:
            drawing.text(548, part.y + 27, f"{n:,}", anchor="end", mono=True)
        previous = part
    return drawing
