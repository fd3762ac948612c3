"""The drawings of notebook 10: blocks on their way round a ring, portions in a pipeline, an MLP on two GPUs."""

from __future__ import annotations

from gptcourse.drawings.diagram import BLUE, GREEN, ORANGE, PURPLE, Box, Diagram

COLLECTIVES = ("all-reduce", "reduce-scatter", "all-gather")
SUMMED, HANDED = "reduce-scatter", "all-gather"


def ring_steps(collective: str, n: int) -> int:
    """Return how many messages each of n processes sends for a collective."""
    return (n - 1) * (2 if collective == "all-reduce" else 1)


def held_after(collective: str, n: int, step: int) -> tuple[list[list[set[int]]], list[int]]:
    """Return whose numbers are in each block of each process after so many steps, and the block that came last.

    A list for each process, in it a set for each block; -1 for the last block before the first step. The order is that
    of `gptcourse.collectives.Member`.
    """
    ranks = range(n)
    whole = [{r} if collective != HANDED else set(ranks) if r == b else set() for r in ranks for b in ranks]
    held, last = [whole[n * r : n * (r + 1)] for r in ranks], [-1] * n
    for done in range(min(step, ring_steps(collective, n))):
        adds = collective != HANDED and done < n - 1
        turn = done + 1 if adds else done - (n - 1) * (collective != HANDED)
        sent = [held[r][(r - turn) % n] for r in ranks]
        for r in ranks:
            place = (r - turn - 1) % n
            held[r][place] = sent[(r - 1) % n] | (held[r][place] if adds else set())
            last[r] = place
    return held, last


def ring(collective: str, n: int, step: int) -> Diagram:
    """Draw what n processes hold after some steps of a collective on a ring.

    Raises ValueError for another collective, and for a ring of fewer than two processes.
    """
    if collective not in COLLECTIVES or n < 2:
        raise ValueError(f"A ring of two or more makes one of {', '.join(COLLECTIVES)}, not {collective!r} with {n}.")
    steps = ring_steps(collective, n)
    step = min(step, steps)
    held, last = held_after(collective, n, step)
    complete = sum(block == set(range(n)) for row in held for block in row)
    said = f"{collective} of {n} processes after {step} of {steps} steps: {complete} of {n * n} blocks hold all"
    said += f" {n} processes' numbers; each process has sent {step / n:.2f} times its vector."
    drawing = Diagram(680, 56 + 30 * n, said)
    side = min(560 / n, 120)
    shown = f"{step} of {steps} steps: {complete} of {n * n} blocks complete, each has sent {step / n:.2f} vectors"
    drawing.text(8, 16, f"{collective}, {shown}", anchor="start", size=12)
    for r, row in enumerate(held):
        y = 32 + 30 * r
        drawing.text(8, y + 18, f"process {r}", anchor="start", size=12)
        for b, block in enumerate(row):
            cell = Box(92 + side * b, y, side - 4, 26)
            color = GREEN if len(block) == n else BLUE
            drawing.rectangle(cell, color, fill=0.5 * len(block) / n, outline=0.4, round=3)
            if b == last[r]:
                drawing.rectangle(cell, ORANGE, outline=1, round=3)
            label = "+".join(map(str, sorted(block))) if n <= 4 else f"{len(block)} of {n}"
            drawing.text(cell.x + cell.width / 2, y + 17, label if block else "", size=11, mono=True)
    legend = "a block: whose numbers it holds; green: all; orange: arrived in the last step"
    drawing.text(92, 50 + 30 * n, legend, anchor="start", size=11, faint=True)
    return drawing


def pipeline(n_stages: int, n_portions: int) -> Diagram:
    """Draw when each GPU of a pipeline works on which portion of the batch, forward and backward (GPipe's order).

    A backward pass takes twice as long as a forward pass. Raises ValueError for numbers below 1.
    """
    if min(n_stages, n_portions) < 1:
        raise ValueError(f"A pipeline has one GPU and one portion at least, not {n_stages} and {n_portions}.")
    each = n_stages - 1 + n_portions  # steps of one direction
    idle = (n_stages - 1) / each
    said = f"{n_stages} GPUs in a row, the batch in {n_portions}: each GPU is idle {idle:.0%} of the time"
    drawing, unit = Diagram(680, 56 + 28 * n_stages, said + "."), 590 / (3 * each)
    drawing.text(8, 16, said, anchor="start", size=12)
    for stage in range(n_stages):
        y = 30 + 28 * stage
        drawing.text(8, y + 17, f"GPU {stage}", anchor="start", size=12)
        drawing.rectangle(Box(78, y, 590, 24), outline=0.2, round=2)
        for portion in range(n_portions):
            forward, backward = stage + portion, each + 2 * (n_stages - 1 - stage + portion)
            for start, length, color in ((forward, 1, BLUE), (backward, 2, PURPLE)):
                box = Box(78 + unit * start, y, unit * length, 24)
                drawing.rectangle(box, color, fill=0.35, outline=0.6, round=2)
                if unit * length > 14:
                    drawing.text(box.x + box.width / 2, y + 16, portion + 1, size=11)
    legend = "time →   blue: forward, purple: backward (twice as long), empty: nothing to do"
    drawing.text(78, 46 + 28 * n_stages, legend, anchor="start", size=11, faint=True)
    return drawing


def split_mlp(width: int, hidden: int) -> Diagram:
    """Draw an MLP of which two GPUs hold one half each: the vector goes to both, and their outputs are added."""
    half = hidden // 2
    drawing = Diagram(
        680,
        176,
        f"An input of {width} numbers goes to two GPUs. Each multiplies by {half} of the {hidden} columns of the first "
        f"matrix, applies GELU, and multiplies by the {half} matching rows of the second; the two outputs are added.",
    )
    start, plus = drawing.box(6, 68, 70, 40, "x", note=f"{width}", color=BLUE), drawing.plus(566, 88)
    for i in range(2):
        y = 12 + 106 * i
        first = drawing.box(140, y, 132, 46, f"columns, half {i + 1}", note=f"{width} × {half}", color=PURPLE)
        bend = drawing.box(302, y, 66, 46, "GELU", note=f"{half}")
        second = drawing.box(398, y, 116, 46, f"rows, half {i + 1}", note=f"{half} × {width}", color=PURPLE)
        drawing.text(106, y + (10 if i == 0 else 46), f"GPU {i}", size=12, bold=True)
        drawing.arrow(start.right, first.left)
        drawing.arrow(first.right, bend.left)
        drawing.arrow(bend.right, second.left)
        drawing.arrow(second.right, plus.left)
    out = drawing.box(612, 68, 60, 40, "y", note=f"{width}", color=GREEN)
    drawing.arrow(plus.right, out.left)
    drawing.text(566, 126, "all-reduce", size=11, faint=True)
    return drawing
