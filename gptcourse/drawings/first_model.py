"""The drawings of notebook 01: text as ids, surprise, count tables, a gradient, one training example, merges."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gptcourse.drawings.diagram import BLUE, CELL_HEIGHT, CELL_WIDTH, GREEN, ORANGE, PURPLE, Box, Diagram

SHOWN = {"\n": "⏎", " ": "␣"}


def _seen(token: str) -> str:
    """Write a token so that spaces and line breaks can be seen."""
    return "".join(SHOWN.get(character, character) for character in token)


def _curve(drawing: Diagram, points: Sequence[tuple[float, float]], color: str = BLUE) -> None:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    drawing.parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')


def _bar(drawing: Diagram, x: float, y: float, width: float, color: str = BLUE) -> None:
    drawing.rectangle(Box(x, y, max(width, 0.5), 18), color, fill=0.55, outline=0.3, round=2)


def text_to_ids(tokens: Sequence[str], ids: Sequence[int]) -> Diagram:
    """Draw a text cut into tokens, with the id of each below it."""
    width, left = 26, 70
    said = ", ".join(f"{_seen(token)} {i}" for token, i in zip(tokens, ids, strict=True))
    drawing = Diagram(left + width * len(tokens) + 16, 124, f"Each token of the text and its id: {said}.")
    drawing.text(left - 10, 35, "text", anchor="end", bold=True)
    drawing.text(left - 10, 99, "ids", anchor="end", bold=True)
    for place, (token, i) in enumerate(zip(tokens, ids, strict=True)):
        tile = drawing.token(left + width * place + 1, 18, _seen(token), width=width - 2)
        drawing.arrow((tile.bottom[0], 47), (tile.bottom[0], 77), width=1)
        drawing.rectangle(Box(tile.x, 81, tile.width, CELL_HEIGHT), BLUE, fill=0.12, outline=0.4, round=2)
        drawing.text(tile.bottom[0], 98, i, size=11, mono=True)
    return drawing


def next_token(context: str, tokens: Sequence[str], probabilities: Sequence[float], rest: float) -> Diagram:
    """Draw what a language model does: a text goes in, a probability for every next token comes out.

    The likeliest tokens have a bar each; `rest` is the probability of all others together.
    """
    rows = [*((_seen(token), p) for token, p in zip(tokens, probabilities, strict=True)), ("others", rest)]
    said = ", ".join(f"{token} {p:.3f}" for token, p in rows)
    height = 24 * len(rows) + 40
    drawing = Diagram(680, height, f"After “{_seen(context)}” the model gives each next token a probability: {said}.")
    middle = height / 2
    drawing.text(90, middle - 24, "context", bold=True, size=12)
    drawing.text(90, middle + 5, _seen(context), mono=True, size=14)
    model = drawing.box(200, middle - 32, 130, 64, "language model", color=BLUE, note="reads the context only")
    drawing.arrow((178, middle), (model.x - 3, middle))
    drawing.arrow((model.right[0] + 2, middle), (396, middle))
    drawing.text(440, 18, "p(next token | context)", anchor="start", bold=True, size=12)
    largest = max(p for _, p in rows)
    for place, (token, p) in enumerate(rows):
        y = 30 + 24 * place
        drawing.text(436, y + 14, token, anchor="end", mono=token != "others", faint=token == "others")
        _bar(drawing, 444, y, 150 * p / largest, BLUE if token != "others" else "currentColor")
        drawing.text(452 + 150 * p / largest, y + 14, f"{p:.3f}", anchor="start", size=12, mono=True)
    return drawing


def surprise(points: Sequence[tuple[str, float]]) -> Diagram:
    """Draw minus ln p by the probability p of the right token, with named points on the curve."""
    left, right, top, bottom, most = 60, 650, 24, 258, 5.0

    def place(p: float) -> tuple[float, float]:
        return left + (right - left) * p, bottom - (bottom - top) * min(-math.log(p), most) / most

    said = ", ".join(f"{name} p = {p:g}, loss {-math.log(p):.3f}" for name, p in points)
    drawing = Diagram(680, 306, f"The loss −ln p falls from high to zero as p goes from 0 to 1: {said}.")
    drawing.line((left, bottom), (right, bottom))
    drawing.line((left, top), (left, bottom))
    for tick in (0, 1, 2, 3, 4, 5):
        drawing.text(left - 8, place(math.exp(-tick))[1] + 4, tick, anchor="end", size=11)
    for tick in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        drawing.text(left + (right - left) * tick, bottom + 17, f"{tick:g}", size=11)
    drawing.text((left + right) / 2, bottom + 38, "probability p that the model gave to the token that came", size=12)
    drawing.text(left + 6, top - 8, "loss −ln p, in nats", anchor="start", size=12)
    _curve(drawing, [place(math.exp(-most * (1 - i / 80))) for i in range(81)])
    for name, p in points:
        x, y = place(p)
        drawing.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{ORANGE}"/>')
        label = f"{name}: {-math.log(p):.3f}"
        last = p > 0.8  # there is no room at its right
        drawing.text(
            x + (4 if last else 10), y - (24 if last else 8), label, anchor="end" if last else "start", size=12
        )
    return drawing


def bigram_table(words: Sequence[str], counts, probabilities) -> Diagram:
    """Draw the counts (V, V) of all pairs of words, and beside them the shares of each row."""
    side = CELL_WIDTH * len(words)
    wide = CELL_WIDTH + 12
    said = "; ".join(
        f"after {word}: "
        + ", ".join(f"{other} {int(n)} ({p:.2f})" for other, n, p in zip(words, row, shares, strict=True))
        for word, row, shares in zip(words, counts, probabilities, strict=True)
    )
    drawing = Diagram(
        2 * side + 290, 76 + CELL_HEIGHT * len(words), f"Counts of pairs, and shares of each row. {said}."
    )
    rows = [[int(n) for n in row] for row in counts]
    labels = {"row_labels": words, "column_labels": words}
    left = drawing.matrix(70, 56, rows, digits=0, title="how often: column after row", **labels)
    x = 70 + side + wide + 90
    right = drawing.matrix(x, 56, [list(row) for row in probabilities], digits=2, title="p(column | row)", **labels)
    drawing.arrow((left.right[0] + 10, left.right[1] + 8), (right.x - 68, right.left[1] + 8), color=GREEN)
    drawing.text((left.right[0] + right.x - 60) / 2, left.right[1] - 8, "÷ sum", size=11)
    drawing.text((left.right[0] + right.x - 60) / 2, left.right[1] + 30, "of the row", size=11)
    return drawing


def interpolation(words: Sequence[str], counted, shorter, share: float, mixed) -> Diagram:
    """Draw how the shares after one context and those of the shorter context are mixed; `share` is borrowed."""
    said = ", ".join(
        f"{word}: {1 - share:.2f} × {c:.3f} + {share:.2f} × {s:.3f} = {m:.3f}"
        for word, c, s, m in zip(words, counted, shorter, mixed, strict=True)
    )
    drawing = Diagram(230 + CELL_WIDTH * len(words) * 1.0 + 60, 190, f"The mixture of two distributions: {said}.")
    rows = (
        ("after this context", counted, 1 - share),
        ("after the shorter one", shorter, share),
        ("together", mixed, None),
    )
    style = {"digits": 2, "largest": 1.0}
    for place, (name, numbers, weight) in enumerate(rows):
        y = 46 + 50 * place
        label = f"{name}, × {weight:.2f}" if weight is not None else name
        drawing.text(220, y + 17, label, anchor="end", size=12, bold=weight is None)
        columns = words if place == 0 else ()
        color = (BLUE, PURPLE, GREEN)[place]
        drawing.matrix(230, y, [[float(n) for n in numbers]], column_labels=columns, color=color, **style)
        if place < 2:
            drawing.text(230 + CELL_WIDTH * len(words) / 2, y + 42, "+" if place == 0 else "=", size=15, bold=True)
    return drawing


def one_weight(weight: float, slope: float, step: float, loss, low: float = -2.0, high: float = 3.0) -> Diagram:
    """Draw a loss by one weight, its slope at `weight`, and the step of the optimizer against the slope."""
    left, right, top, bottom = 60, 650, 30, 230
    most = loss(low)

    def place(w: float, value: float) -> tuple[float, float]:
        return left + (right - left) * (w - low) / (high - low), bottom - (bottom - top) * value / most

    new, at = weight + step, loss(weight)
    said = f"At w = {weight:g} it is {at:.3f} and its slope {slope:.3f}; a step of {step:+.3f} gives {loss(new):.3f}."
    drawing = Diagram(680, 284, f"The loss by one weight. {said}")
    drawing.line((left, bottom), (right, bottom))
    drawing.line((left, top), (left, bottom))
    for tick in range(math.ceil(low), math.floor(high) + 1):
        drawing.text(place(tick, 0)[0], bottom + 17, f"{tick}".replace("-", "−"), size=11)
    drawing.text((left + right) / 2, bottom + 38, "the weight w", size=12)
    drawing.text(left + 8, top - 8, "loss, in nats", anchor="start", size=12)
    _curve(drawing, [place(w, loss(w)) for w in [low + (high - low) * i / 80 for i in range(81)]])
    ends = [place(weight + d, at + slope * d) for d in (-0.9, 0.9)]
    drawing.line(*ends, color=ORANGE, opacity=1, width=2)
    drawing.text(
        ends[0][0] - 6, ends[0][1] + 18, f"slope {slope:.3f}".replace("-", "−"), anchor="end", size=12, color=ORANGE
    )
    drawing.arrow(place(weight, 0.06 * most), place(new, 0.06 * most), color=GREEN)
    start = place(weight, 0.06 * most)
    drawing.text(start[0] - 8, start[1] + 4, "one step, against the slope", anchor="end", size=12)
    for w in (weight, new):
        x, y = place(w, loss(w))
        drawing.line((x, y), (x, bottom), opacity=0.4, dashed=True)
        drawing.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{ORANGE}"/>')
        drawing.text(x + 8, y - 8, f"{loss(w):.3f}", anchor="start", size=12, mono=True)
    return drawing


def training_example(inputs: Sequence[str], targets: Sequence[str], losses: Sequence[float]) -> Diagram:
    """Draw one training example: each input, the target that follows it, and the loss of that place."""
    width, left = 64, 120
    said = ", ".join(
        f"{_seen(i)} then {_seen(t)} {loss:.2f}" for i, t, loss in zip(inputs, targets, losses, strict=True)
    )
    drawing = Diagram(
        left + width * len(inputs) + 20, 222, f"Inputs, targets and losses of one training example: {said}."
    )
    for y, name in ((37, "inputs"), (98, "model"), (161, "targets"), (201, "losses")):
        drawing.text(left - 14, y, name, anchor="end", bold=True)
    for place, (token, target, loss) in enumerate(zip(inputs, targets, losses, strict=True)):
        x = left + width * place
        tile = drawing.token(x + 5, 20, _seen(token), width=width - 10)
        part = drawing.box(x + 5, 78, width - 10, 30, "p", color=BLUE)
        answer = drawing.token(x + 5, 144, _seen(target), width=width - 10, color=ORANGE)
        drawing.arrow((tile.bottom[0], tile.bottom[1] + 2), (part.top[0], part.y - 2))
        drawing.arrow((answer.top[0], answer.y - 2), (part.bottom[0], part.bottom[1] + 3), color=ORANGE)
        if place:
            drawing.line((x - width + 58, 144), (x + 8, 48), color=ORANGE, opacity=0.35, dashed=True)
        drawing.text(tile.bottom[0], 201, f"{loss:.2f}", mono=True, size=12)
    return drawing


def loop(numbers: dict[str, str]) -> Diagram:
    """Draw the training loop: its steps in a ring, with a note for each: {step: note}."""
    said = "; then ".join(f"{name}: {note}" for name, note in numbers.items())
    drawing = Diagram(680, 214, f"The training loop, again and again: {said}; and from the start.")
    places = [(20, 20), (250, 20), (480, 20), (480, 134), (250, 134), (20, 134)]
    colors = (BLUE, BLUE, ORANGE, "currentColor", PURPLE, GREEN)
    boxes = [
        drawing.box(x, y, 180, 58, name, color=color, note=note.replace("-", "−"))
        for (x, y), color, (name, note) in zip(places, colors, numbers.items(), strict=True)
    ]
    for before, after in ((0, 1), (1, 2)):
        drawing.arrow((boxes[before].right[0] + 4, boxes[before].right[1]), (boxes[after].x - 4, boxes[after].left[1]))
    drawing.arrow((boxes[2].bottom[0], boxes[2].bottom[1] + 4), (boxes[3].top[0], boxes[3].y - 4))
    for before, after in ((3, 4), (4, 5)):
        drawing.arrow((boxes[before].x - 4, boxes[before].left[1]), (boxes[after].right[0] + 4, boxes[after].right[1]))
    drawing.arrow((boxes[5].top[0], boxes[5].y - 4), (boxes[0].bottom[0], boxes[0].bottom[1] + 4))
    return drawing


def merges(rounds: Sequence[tuple[str, Sequence[Sequence[str]]]]) -> Diagram:
    """Draw how words fall into tokens, round by round: [(what was merged, the words)]; what is new is orange."""
    letter, gap, left = 11, 3, 170
    widths = [sum(letter * len(token) + gap for token in word) + 20 for word in rounds[0][1]]
    said = "; ".join(f"{name}: " + " ".join("|".join(word) for word in words) for name, words in rounds)
    drawing = Diagram(left + sum(widths), 34 * len(rounds) + 14, f"Words and their tokens after each merge. {said}.")
    before: set[str] = set()
    for row, (name, words) in enumerate(rounds):
        y, tokens = 12 + 34 * row, {token for word in words for token in word}
        drawing.text(left - 16, y + 17, name, anchor="end", size=12, bold=row > 0)
        x = float(left)
        for word, wide in zip(words, widths, strict=True):
            end = x + wide
            for token in word:
                new = row > 0 and token not in before
                tile = Box(x, y, letter * len(token), 24)
                drawing.rectangle(tile, ORANGE if new else BLUE, fill=0.35 if new else 0.1, outline=0.5, round=3)
                drawing.text(x + tile.width / 2, y + 16.5, token, mono=True, size=12)
                x += tile.width + gap
            x = end
        before |= tokens
    return drawing


def never_seen(shares: Sequence[float], contexts: Sequence[float]) -> Diagram:
    """Draw for n = 1, 2, … the share of the held-out n-grams that the training text never holds.

    contexts: how many different contexts of n - 1 tokens are possible.
    """
    said = ", ".join(f"{n}-grams {share:.1%}" for n, share in enumerate(shares, start=1))
    drawing = Diagram(680, 40 + 27 * len(shares), f"Share of the held-out n-grams that were never seen: {said}.")
    drawing.text(120, 20, "held-out n-grams never seen in training", anchor="start", bold=True, size=12)
    drawing.text(664, 20, "possible contexts", anchor="end", bold=True, size=12)
    for n, (share, count) in enumerate(zip(shares, contexts, strict=True), start=1):
        y = 32 + 27 * (n - 1)
        drawing.text(108, y + 14, f"{n}-gram", anchor="end", mono=True)
        drawing.rectangle(Box(120, y, 330, 18), fill=0.05, outline=0.2, round=2)
        _bar(drawing, 120, y, 330 * share, ORANGE)
        drawing.text(458, y + 14, f"{share:.1%}", anchor="start", size=12, mono=True)
        drawing.text(664, y + 14, f"{count:,.0f}", anchor="end", size=12, mono=True)
    return drawing
