"""One visual language for all drawings of the course, drawn by code: boxes, vectors, matrices, arrows.

A drawing is shown as an image that follows a light or a dark page. Blue stands for what attention or a part reads
(queries, probabilities that rise), orange for what is marked, green for keys and sums, purple for values. Numbers above
zero have blue cells, below zero orange ones.
"""

from __future__ import annotations

from typing import NamedTuple

from gptcourse.drawings.svg import BLUE, GREEN, ORANGE, PURPLE
from gptcourse.images import MONO, SANS, escape, image

__all__ = ["BLUE", "GREEN", "ORANGE", "PURPLE", "Box", "Diagram"]

CELL_WIDTH, CELL_HEIGHT = 44, 26


class Box(NamedTuple):
    """A rectangle of a drawing, and the middles of its sides, from which arrows leave and at which they arrive."""

    x: float
    y: float
    width: float
    height: float

    @property
    def left(self) -> tuple[float, float]:
        """The middle of the left side."""
        return self.x, self.y + self.height / 2

    @property
    def right(self) -> tuple[float, float]:
        """The middle of the right side."""
        return self.x + self.width, self.y + self.height / 2

    @property
    def top(self) -> tuple[float, float]:
        """The middle of the upper side."""
        return self.x + self.width / 2, self.y

    @property
    def bottom(self) -> tuple[float, float]:
        """The middle of the lower side."""
        return self.x + self.width / 2, self.y + self.height


class Diagram:
    """A drawing of `width` by `height` units; `description` says in words what it shows, for who cannot see it."""

    def __init__(self, width: float, height: float, description: str):
        self.width, self.height, self.description = width, height, description
        self.parts: list[str] = []

    def text(
        self, x, y, string, *, anchor="middle", size=13, color="currentColor", mono=False, bold=False, faint=False
    ):
        """Write one line, its baseline at y."""
        style = f'text-anchor="{anchor}" font-size="{size}" fill="{color}"'
        style += f' font-family="{MONO}"' if mono else ""
        style += ' font-weight="600"' if bold else ""
        style += ' fill-opacity="0.7"' if faint else ""
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(string)}</text>')

    def rectangle(self, box: Box, color="currentColor", *, fill=0.0, outline=0.35, round=5, dashed=False):
        """Draw a rectangle; fill and outline are opacities."""
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        self.parts.append(
            f'<rect x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" rx="{round}" '
            f'fill="{color}" fill-opacity="{fill:g}" stroke="{color}" stroke-opacity="{outline:g}"{dash}/>'
        )

    def box(self, x, y, width, height, label="", *, color="currentColor", note="", mono=False) -> Box:
        """Draw a part that computes something: a rounded box with its name, and a note below it in small letters."""
        box = Box(x, y, width, height)
        self.rectangle(box, color, fill=0.10, outline=0.8)
        middle = y + height / 2
        self.text(x + width / 2, middle + (-2 if note else 4.5), label, bold=not mono, mono=mono)
        if note:
            self.text(x + width / 2, middle + 13, note, size=11, faint=True)
        return box

    def token(self, x, y, label, *, width=64, color="currentColor") -> Box:
        """Draw a token as a tile with its text."""
        box = Box(x, y, width, CELL_HEIGHT)
        self.rectangle(box, color, fill=0.14, outline=0.6, round=4)
        self.text(x + width / 2, y + CELL_HEIGHT / 2 + 4.5, label, mono=True)
        return box

    def matrix(
        self, x, y, rows, *, row_labels=(), column_labels=(), digits=1, color=None, largest=None, title="", hidden=None
    ) -> Box:
        """Draw numbers, one or several rows of them, as cells: the fuller the colour, the larger the number.

        `color=None` is blue above zero and orange below. A cell for which `hidden(i, j)` is true is crossed out, a
        number None is an empty cell. Labels stand at the left and above.
        """
        numbers = [abs(value) for row in rows for value in row if value is not None]
        largest = largest or max(numbers, default=1.0) or 1.0
        box = Box(x, y, CELL_WIDTH * len(rows[0]), CELL_HEIGHT * len(rows))
        for i, row in enumerate(rows):
            for j, value in enumerate(row):
                cell = Box(x + CELL_WIDTH * j, y + CELL_HEIGHT * i, CELL_WIDTH, CELL_HEIGHT)
                self._cell(cell, value, digits, color, largest, hidden is not None and hidden(i, j))
        self.rectangle(box, outline=0.45, round=2)
        for i, label in enumerate(row_labels):
            self.text(x - 8, y + CELL_HEIGHT * (i + 0.5) + 4.5, label, anchor="end", mono=True)
        for j, label in enumerate(column_labels):
            self.text(x + CELL_WIDTH * (j + 0.5), y - 7, label, mono=True)
        if title:
            self.text(x + box.width / 2, y - (25 if column_labels else 9), title, bold=True, size=12)
        return box

    def _cell(self, cell, value, digits, color, largest, hidden):
        if hidden or value is None:
            self.rectangle(cell, fill=0.03, outline=0.2, round=0)
            if hidden:
                self.line((cell.x + 6, cell.y + 5), (cell.x + cell.width - 6, cell.y + cell.height - 5), opacity=0.35)
            return
        ink = color or (BLUE if value >= 0 else ORANGE)
        self.rectangle(cell, ink, fill=0.42 * min(abs(value) / largest, 1), outline=0.25, round=0)
        number = f"{value:.{digits}f}".replace("-", "−")
        self.text(cell.x + cell.width / 2, cell.y + cell.height / 2 + 4.5, number, size=12, mono=True)

    def vector(self, x, y, numbers, *, label="", **style) -> Box:
        """Draw one row of numbers, with its label at the left."""
        return self.matrix(x, y, [numbers], row_labels=[label] if label else (), **style)

    def line(self, start, end, *, color="currentColor", opacity=0.6, width=1.3, dashed=False):
        """Draw a straight line between two points."""
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        self.parts.append(
            f'<line x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}" stroke="{color}" '
            f'stroke-opacity="{opacity:g}" stroke-width="{width:g}"{dash}/>'
        )

    def arrow(self, start, end, *, color="currentColor", label="", width=1.5, bend=0.0, dashed=False):
        """Draw an arrow between two points; `bend` moves its middle sideways, and `label` stands beside the middle."""
        (x1, y1), (x2, y2) = start, end
        length = max(((x2 - x1) ** 2 + (y2 - y1) ** 2) ** 0.5, 1e-6)
        across = (-(y2 - y1) / length, (x2 - x1) / length)
        middle = ((x1 + x2) / 2 + bend * across[0], (y1 + y2) / 2 + bend * across[1])
        along = ((x2 - middle[0]), (y2 - middle[1]))
        size = max((along[0] ** 2 + along[1] ** 2) ** 0.5, 1e-6)
        ux, uy = along[0] / size, along[1] / size
        head = f"{x2:.1f},{y2:.1f} {x2 - 8 * ux - 4 * uy:.1f},{y2 - 8 * uy + 4 * ux:.1f} "
        head += f"{x2 - 8 * ux + 4 * uy:.1f},{y2 - 8 * uy - 4 * ux:.1f}"
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        self.parts.append(
            f'<path d="M{x1:.1f} {y1:.1f}Q{middle[0]:.1f} {middle[1]:.1f} {x2 - 6 * ux:.1f} {y2 - 6 * uy:.1f}" '
            f'fill="none" stroke="{color}" stroke-opacity="0.8" stroke-width="{width:g}"{dash}/>'
            f'<polygon points="{head}" fill="{color}" fill-opacity="0.8"/>'
        )
        if label:
            self.text(middle[0] + 5, middle[1] - 4, label, anchor="start", size=11, faint=True)

    def plus(self, x, y, *, color=GREEN) -> Box:
        """Draw the circle in which two vectors are added; x and y are its middle."""
        self.parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="11" fill="{color}" fill-opacity="0.15" stroke="{color}"/>'
        )
        self.text(x, y + 5.5, "+", size=17, bold=True)
        return Box(x - 11, y - 11, 22, 22)

    def svg(self) -> str:
        """Return the drawing as one SVG."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width:g}" viewBox="0 0 {self.width:g} '
            f'{self.height:g}" role="img" aria-label="{escape(self.description)}" font-family="{SANS}" '
            f'style="display:block;max-width:100%;height:auto"><title>{escape(self.description)}</title>'
            f"{''.join(self.parts)}</svg>"
        )

    def _repr_mimebundle_(self, **_):
        return {"text/html": image(self.svg(), self.description), "text/plain": self.description}
