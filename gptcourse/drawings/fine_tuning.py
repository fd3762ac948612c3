"""The drawings of notebook 08: a training example, batches, a packed row's mask, and which weights a way trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gptcourse.drawings.diagram import BLUE, GREEN, ORANGE, PURPLE, Box, Diagram

WIDTH, ROW = 680, 84


def training_example(tokens: Sequence[str], targets: Sequence[str | None]) -> Diagram:
    """Draw the tokens of a dialogue, and below each the target that is learned there, or a dash where none is."""
    written = list(zip(tokens, [target or "" for target in targets], strict=True))
    widths = [max(34, 8.6 * max(map(len, pair)) + 12) for pair in written]
    places, x, row = [], 66.0, 0
    for width in widths:
        if x + width > WIDTH - 6:
            x, row = 66.0, row + 1
        places.append((x, 8 + ROW * row))
        x += width + 5
    said = ", ".join(f"{token} → {target or 'nothing'}" for token, target in written)
    drawing = Diagram(WIDTH, 8 + ROW * (row + 1), f"What is learned at each token: {said}.")
    for line in range(row + 1):
        drawing.text(58, 26 + ROW * line, "read", anchor="end", size=12, faint=True)
        drawing.text(58, 70 + ROW * line, "learned", anchor="end", size=12, faint=True)
    for (x, y), width, (token, target) in zip(places, widths, written, strict=True):
        color = ORANGE if token.startswith("<|") else "currentColor"
        tile = drawing.token(x, y, token, width=width, color=color)
        if not target:
            drawing.text(x + width / 2, y + 62, "–", faint=True)
        else:
            drawing.arrow(tile.bottom, (x + width / 2, y + 43), color=GREEN)
            drawing.text(x + width / 2, y + 62, target, mono=True, color=GREEN)
    return drawing


def low_rank(n_out: int, n_in: int, rank: int) -> Diagram:
    """Draw a frozen matrix and the two thin ones beside it, with how many numbers each holds."""
    whole, update = n_out * n_in, rank * (n_out + n_in)
    said = f"W, {n_out} × {n_in}, {whole:,} numbers, is frozen; B, {n_out} × {rank}, and A, {rank} × {n_in}, "
    drawing = Diagram(WIDTH, 228, said + f"hold {update:,} numbers, {update / whole:.1%} of them.")
    high, wide = 132.0, 132.0 * n_in / n_out
    thin = max(10.0, high * rank / n_out)
    scale = min(1.0, 200 / wide)
    high, wide, thin = high * scale, wide * scale, thin * scale
    frozen = drawing.box(60, 40, wide, high, "W")
    drawing.text(*_above(frozen), "frozen", size=12, faint=True)
    plus = drawing.plus(60 + wide + 40, 40 + high / 2)
    up = drawing.box(plus.x + 60, 40, thin, high, "", color=PURPLE)
    drawing.text(*_above(up), "B", bold=True, color=PURPLE)
    down = drawing.box(up.x + thin + 26, 40, wide, thin, "", color=BLUE)
    drawing.text(*_above(down), "A", bold=True, color=BLUE)
    for box, text in ((frozen, f"{n_out} × {n_in}"), (up, f"{n_out} × {rank}"), (down, f"{rank} × {n_in}")):
        drawing.text(box.bottom[0], box.bottom[1] + 20, text, size=12, mono=True)
    drawing.text(down.x, down.bottom[1] + 62, "× alpha / rank", anchor="start", faint=True)
    numbers = f"{whole:,} numbers frozen, {update:,} trained: {update / whole:.1%}"
    drawing.text(60, 218, numbers, anchor="start", size=12, faint=True)
    return drawing


def _above(box: Box) -> tuple[float, float]:
    return box.top[0], box.top[1] - 10


def packed_mask(lengths: Sequence[int]) -> Diagram:
    """Draw which earlier places each place of a packed row may look at, if it may see its own dialogue alone.

    lengths: tokens of each dialogue. What causal attention allows too, in dialogues before it, is orange.
    """
    n, cell = sum(lengths), 17
    owner = [number for number, length in enumerate(lengths) for _ in range(length)]
    own = sum(length * (length + 1) // 2 for length in lengths)
    others = n * (n + 1) // 2 - own
    said = (
        f"{len(lengths)} dialogues of {', '.join(map(str, lengths))} tokens in one row: {own} pairs of places within "
    )
    drawing = Diagram(
        WIDTH, n * cell + 36, said + f"a dialogue, and {others} across, which causal attention allows too."
    )
    for i in range(n):
        for j in range(i + 1):
            same = owner[i] == owner[j]
            place = Box(140 + cell * j, 12 + cell * i, cell, cell)
            drawing.rectangle(place, BLUE if same else ORANGE, fill=0.5 if same else 0.28, outline=0.3, round=1)
    drawing.text(130, 12 + cell * n / 2, "looking", anchor="end", size=12, faint=True)
    drawing.text(140 + cell * n / 2, n * cell + 30, "looked at", size=12, faint=True)
    x = 160 + cell * n
    drawing.text(x, 40, f"■ own dialogue: {own}", anchor="start", color=BLUE)
    drawing.text(x, 64, f"■ those before it: {others}", anchor="start", color=ORANGE)
    return drawing


def batch_rows(kinds: Mapping[str, Sequence[Sequence[Sequence[tuple[int, int]]]]]) -> Diagram:
    """Draw batches as rectangles: what is read, what is learned, and what is computed for nothing.

    kinds: name -> batches of rows of dialogues, each with its (read alone, learned) numbers of tokens.
    """
    longest = max(sum(map(sum, row)) for batches in kinds.values() for batch in batches for row in batch)
    scale, height, y, said = (WIDTH - 20) / longest, 11, 12, []
    n_rows = sum(len(batch) for batches in kinds.values() for batch in batches)
    n_batches = sum(map(len, kinds.values()))
    drawing = Diagram(WIDTH, n_rows * height + 8 * n_batches + 34 * len(kinds) + 30, "")
    for name, batches in kinds.items():
        filling = 0
        drawing.text(10, y + 12, name, anchor="start", size=13)
        y += 22
        for batch in batches:
            width = max(sum(map(sum, row)) for row in batch)
            for row in batch:
                x = 0
                for read, learned in row:
                    _tiles(drawing, x * scale, y, height, ((read, BLUE), (learned, GREEN)), scale)
                    x += read + learned
                _tiles(drawing, x * scale, y, height, ((width - x, "currentColor"),), scale)
                filling += width - x
                y += height
            y += 8
        said.append(f"{name}: {filling} places are filling")
        y += 12
    drawing.text(10, y + 10, "■ message: read", anchor="start", color=BLUE, size=12)
    drawing.text(150, y + 10, "■ reply: learned", anchor="start", color=GREEN, size=12)
    drawing.text(290, y + 10, "■ filling: computed for nothing", anchor="start", faint=True, size=12)
    drawing.description = "; ".join(said) + "."
    return drawing


def _tiles(drawing, x, y, height, parts, scale):
    """Draw parts (places, colour) side by side from x on."""
    for places, color in parts:
        fill = 0.22 if color == "currentColor" else 0.6
        if places:
            drawing.rectangle(Box(10 + x, y, places * scale - 1, height - 2), color, fill=fill, outline=0.2, round=1)
        x += places * scale


def trained_parts(parts: Sequence[str], ways: Mapping[str, str]) -> Diagram:
    """Draw which parts of a model each way trains.

    ways: name -> one letter for each part, T for trained, L for frozen with an update of low rank beside it, else "-".
    """
    kinds = {"T": ("trained", GREEN), "L": ("frozen, LoRA beside it", PURPLE), "-": ("frozen", "currentColor")}
    left, width, height = 250.0, (WIDTH - 256) / len(parts), 26
    said = [
        f"{way}: " + ", ".join(f"{p} {kinds[k][0]}" for p, k in zip(parts, ks, strict=True)) for way, ks in ways.items()
    ]
    drawing = Diagram(WIDTH, 34 + height * len(ways) + 34, "; ".join(said) + ".")
    for i, part in enumerate(parts):
        drawing.text(left + width * (i + 0.5), 20, part, size=12)
    for j, (way, letters) in enumerate(ways.items()):
        y = 32 + height * j
        drawing.text(left - 10, y + 16, way, anchor="end", size=12)
        for i, letter in enumerate(letters):
            color, fill = kinds[letter][1], 0.05 if letter == "-" else 0.5
            drawing.rectangle(Box(left + width * i, y, width - 3, height - 4), color, fill=fill, outline=0.4, round=3)
    for (text, color), x in zip(kinds.values(), (left, left + 100, left + 290), strict=True):
        drawing.text(x, 52 + height * len(ways), f"■ {text}", anchor="start", color=color, size=12)
    return drawing
