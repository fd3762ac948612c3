"""The drawing of notebook 05: which experiment comes next."""

from __future__ import annotations

from itertools import pairwise

from gptcourse.drawings.diagram import BLUE, GREEN, ORANGE, Diagram

# A question, the answer that asks for work, and the work in two lines.
QUESTIONS = (
    ("Is a good rate known?", "no", "range test, three seeds;", "begin where the plateau begins"),
    ("Is the warm-up long enough?", "no", "100 steps to begin with;", "more if a seed breaks"),
    ("Is the best rate inside the grid?", "no", "go on beyond that end", "of the grid"),
    ("Still above the 3-gram table?", "yes", "rate, warm-up, number of steps;", "then notebook 06, the clinic"),
    ("Do ranges of neighbours overlap?", "yes", "take the cheaper or safer one,", "or run more seeds"),
    ("Must the batch change?", "yes", "try the root for the rate;", "smaller before accumulation"),
    ("Is the real run wider or longer?", "yes", "keep the steps of warm-up; muP;", "the rate again at full length"),
    ("Is there budget left?", "yes", "search what is not varied yet:", "first weights, β₂, decay"),
)
LAST = ("Fresh seeds, fresh text, the baseline beside it", "then write down what was decided, and why")


def decision_tree() -> Diagram:
    """Draw the questions of a tuning session from top to bottom, and what each asks for."""
    said = " ".join(f"{question} If {answer}: {' '.join(work)}." for question, answer, *work in QUESTIONS)
    height = 60 * len(QUESTIONS) + 56
    drawing = Diagram(680, height, f"Questions, from top to bottom. {said} At the end: {', '.join(LAST)}.")
    boxes = [drawing.box(6, 6 + 60 * i, 300, 38, question, color=BLUE) for i, (question, *_) in enumerate(QUESTIONS)]
    boxes.append(drawing.box(6, height - 50, 420, 44, LAST[0], note=LAST[1], color=GREEN))
    for (_, answer, first, second), box in zip(QUESTIONS, boxes, strict=False):
        work = drawing.box(392, box.y, 282, 38, color=ORANGE)
        drawing.text(402, box.y + 16, first, anchor="start")
        drawing.text(402, box.y + 32, second, anchor="start")
        drawing.arrow(box.right, work.left, label=answer)
    for (_, answer, *_), (above, below) in zip(QUESTIONS, pairwise(boxes), strict=True):
        middle = above.bottom[0]
        drawing.arrow(above.bottom, (middle, below.y))
        drawing.text(middle + 10, above.y + 53, "no" if answer == "yes" else "yes", anchor="start", size=12, faint=True)
    return drawing
