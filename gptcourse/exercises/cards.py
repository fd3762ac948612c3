"""What `check` and `progress` show: a card in a notebook, and the same words as text elsewhere.

A hint that the words end with is folded in the card, so that a learner may think first. The solution is not in it: it
stands folded in the notebook, in the cell below the exercise.
"""

from __future__ import annotations

import sys

from gptcourse.drawings.svg import GREEN, ORANGE
from gptcourse.images import SANS, escape

LOOKS = {True: ("✓", GREEN), False: ("✗", ORANGE), None: ("○", "currentColor")}  # right, wrong, to do
UNTOUCHED = "The mistake is still there"  # so begin the hints for the notebook's own code
STUCK = "Still stuck? The solution is folded in the cell below."


def say(line: str, html: str = "") -> None:
    """Show the HTML in a notebook; elsewhere print the line, a question mark for what the stream cannot write."""
    if html and _in_a_notebook():
        from IPython.display import display

        display({"text/html": html, "text/plain": line}, raw=True)
        return
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # a Windows console in cp1252, say
    print(line.encode(encoding, "replace").decode(encoding))


def _in_a_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def card(right: bool | None, line: str, hint: str) -> str:
    """Return the HTML of a verdict: whether the answer is right (None: still to do), what is said, and the fold.

    Of the notebook's own mistake, unchanged, only that it is still there is said in the open: to find it is the task.
    """
    sign, color = LOOKS[right]
    verdict, _, said = line.replace(f" Hint: {hint}", "", 1).partition(". ")
    folded = [] if hint in said else [hint]
    if said.startswith(UNTOUCHED):
        said, folded = f"{UNTOUCHED}.", [said.removeprefix(f"{UNTOUCHED}: ")]
    fold = "".join(f"<p>{escape(text)}</p>" for text in (*folded, STUCK))
    fold = f"<details><summary>Show me more</summary>{fold}</details>" if verdict.startswith("Not yet") else ""
    style = f"max-width:680px;padding:2px 12px;font-family:{SANS};line-height:1.5;overflow-wrap:anywhere"
    return (
        f'<div style="{style};border-left:4px solid {color}">'
        f'<b><span style="color:{color}">{sign}</span> {escape(verdict.rstrip("."))}</b>'
        f'<div style="white-space:pre-wrap">{escape(said)}</div>{fold}</div>'
    )


def bar(n_done: int, n: int) -> str:
    """Return the HTML of a bar that shows how many of `n` are done."""
    width = 100 * n_done / max(n, 1)
    return (
        '<div style="width:160px;height:8px;border-radius:4px;background:rgba(128,128,128,0.3)">'
        f'<div style="width:{width:.0f}%;height:8px;border-radius:4px;background:{GREEN}"></div></div>'
    )
