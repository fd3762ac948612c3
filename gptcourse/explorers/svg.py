"""Draw small pictures as SVG strings: bars, a heat map, a line chart, a scale.

A slider that writes such a string into one ``widgets.HTML`` shows a new picture in about 40 ms; a redrawn
matplotlib figure takes about 200 ms. Lines and letters use ``currentColor``, so the pictures follow a light or a
dark theme. The colours are close to Okabe and Ito's, which most colour-blind readers can tell apart. Every label is
escaped: what a learner types is shown as text, never read as HTML.
"""

import math
from dataclasses import dataclass
from html import escape

BLUE, ORANGE, GREEN, PURPLE = "#0a7bbf", "#d9730d", "#009e73", "#b3609a"
SANS = "var(--jp-ui-font-family, system-ui, -apple-system, 'Segoe UI', sans-serif)"
MONO = "var(--jp-code-font-family, ui-monospace, Menlo, Consolas, monospace)"
WIDTH = 680  # units of the drawing; on screen a picture shrinks to fit, and never grows past this many pixels


def visible(token):
    """Return ``token`` with its spaces and line breaks drawn as signs, so that a token can be seen whole."""
    signs = str(token).translate({ord(" "): "␣", ord("\n"): "↵", ord("\t"): "⇥", ord("\r"): "␍"})
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in signs) or "∅"


def text(x, y, string, *, anchor="start", color="currentColor", size=13, opacity=1.0, mono=False, bold=False):
    """Return one SVG line of text; ``string`` is escaped."""
    weight = ' font-weight="600"' if bold else ""
    font = f' font-family="{MONO}"' if mono else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}" font-size="{size}" '
        f'fill-opacity="{opacity:g}"{weight}{font}>{escape(str(string))}</text>'
    )


def rect(x, y, width, height, color, opacity=1.0):
    """Return one SVG rectangle."""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:.1f}" rx="1.5" '
        f'fill="{color}" fill-opacity="{opacity:.3g}"/>'
    )


def line(x1, y1, x2, y2, *, color="currentColor", opacity=0.25, width=1.0, dashed=False):
    """Return one straight SVG line."""
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" '
        f'stroke-opacity="{opacity:g}" stroke-width="{width:g}"{dash}/>'
    )


def picture(parts, height, description, width=WIDTH):
    """Return a whole SVG made of ``parts``; ``description`` is what a screen reader says."""
    return (
        f'<svg viewBox="0 0 {width} {height:.0f}" role="img" aria-label="{escape(description)}" '
        f'font-family="{SANS}" style="display:block;width:100%;max-width:{width}px;height:auto">{"".join(parts)}</svg>'
    )


def paragraph(string, *, opacity=0.85, mono=False):
    """Return ``string`` as one escaped HTML paragraph that wraps and keeps its line breaks."""
    font = f"font-family:{MONO};" if mono else ""
    return (
        f'<div style="white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.5;opacity:{opacity:g};{font}">'
        f"{escape(str(string))}</div>"
    )


def percent(p):
    """Return a probability as readers like it: 12.3 %, 0.04 %, < 0.01 %, 0 %."""
    if p <= 0:
        return "0 %"
    return "< 0.01 %" if p < 1e-4 else f"{100 * p:.2f} %" if p < 0.01 else f"{100 * p:.1f} %"


def bars(rows, *, description, headings, cut_after=None, cut_label="", chosen=None, left=150, width=WIDTH):
    """Draw pairs of probabilities as nested bars.

    ``rows`` are (label, before, after): before is the pale bar, after the narrow bright one. ``cut_after=n`` draws
    a dashed line under the n-th row, and ``chosen`` marks a row with an arrow. Rows whose after is 0 are faded.
    ``left`` is the room for labels.
    """
    right, top, step = width - 200, 30, 23
    height = top + step * len(rows) + 22
    largest = max((max(before, after) for _, before, after in rows), default=1.0)
    limit = next(limit for limit in (0.1, 0.25, 0.5, 1.0) if largest <= limit or limit == 1.0)
    scale = (right - left) / limit
    parts = [
        text(width - 112, 18, headings[0], anchor="end", opacity=0.7, size=12),
        text(width - 30, 18, headings[1], anchor="end", color=BLUE, size=12, bold=True),
    ]
    for fifth in range(6):
        share = limit * fifth / 5
        x = left + share * scale
        parts.append(line(x, top - 4, x, height - 18, opacity=0.15))
        parts.append(text(x, height - 4, f"{100 * share:g} %", anchor="middle", size=11, opacity=0.7))
    for row, (label, before, after) in enumerate(rows):
        y, ink = top + step * row, 1.0 if after > 0 else 0.45
        parts.append(text(left - 10, y + 15, label, anchor="end", mono=True, opacity=ink))
        parts.append(rect(left, y + 2, before * scale, step - 5, "currentColor", 0.18))
        parts.append(rect(left, y + 6, after * scale, step - 13, BLUE))
        parts.append(text(width - 112, y + 15, percent(before), anchor="end", size=12, opacity=0.7 * ink))
        parts.append(text(width - 30, y + 15, percent(after), anchor="end", size=12, bold=after > 0, opacity=ink))
        if row == chosen:
            parts.append(text(width - 14, y + 15, "◀", color=ORANGE, size=12))
    if cut_after is not None:
        y = top + step * cut_after - 0.5
        parts.append(line(4, y, width - 4, y, color=ORANGE, opacity=1, width=1.5, dashed=True))
        parts.append(text(right - 4, y + 13, cut_label, anchor="end", color=ORANGE, size=11))
    return picture(parts, height, description, width)


def heat_map(weights, rows, columns, *, description, largest=None, title=""):
    """Draw a matrix as coloured cells: blue above 0, orange below, nothing at 0.

    ``weights`` is a nested sequence (len(rows), len(columns)); ``largest`` is the size drawn in full colour.
    """
    side, left, top = max(20, min(30, 400 // max(len(rows), 1))), 64, 44
    largest = largest or max((abs(w) for row in weights for w in row), default=1.0) or 1.0
    width, height = left + side * len(columns) + 6, top + side * len(rows) + 6
    parts = [text(left, 14, title, size=12, bold=True)]
    parts += [
        text(left + side * (j + 0.5), top - 8, c, anchor="middle", size=11, mono=True) for j, c in enumerate(columns)
    ]
    parts.append(rect(left, top, side * len(columns), side * len(rows), "currentColor", 0.05))
    for i, (label, row) in enumerate(zip(rows, weights, strict=True)):
        parts.append(text(left - 8, top + side * (i + 0.5) + 4, label, anchor="end", size=11, mono=True))
        for j, weight in enumerate(row):
            if abs(weight) < 0.005:
                continue  # too pale to be seen, and its number would be 0.00
            x, y, share = left + side * j, top + side * i, min(abs(weight) / largest, 1.0)
            number = f"{weight:.2f}".replace("0.", ".").replace("-", "−")
            ink = "#fff" if share > 0.55 else "currentColor"
            parts.append(rect(x + 0.5, y + 0.5, side - 1, side - 1, BLUE if weight > 0 else ORANGE, share))
            parts.append(text(x + side / 2, y + side / 2 + 4, number, anchor="middle", size=10, color=ink))
    return picture(parts, height, description, width)


def ticks(low, high, count=5):
    """Return round numbers between ``low`` and ``high``, about ``count`` of them."""
    rough = (high - low) / count or 1.0
    base = 10.0 ** math.floor(math.log10(rough))
    step = next(base * m for m in (1, 2, 5, 10) if base * m >= rough * 0.999)
    return [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def short(number, names=("k", "M", "B", "T")):
    """Return a number with the letter that a reader knows for thousands, millions, …: 125000000 is 125M."""
    for power, name in reversed(list(enumerate(names, 1))):
        if abs(number) >= 1000**power:
            return f"{float(f'{number / 1000**power:.3g}'):g}{name}"
    return f"{number:.3g}"


@dataclass(frozen=True)
class Frame:
    """A rectangle of the page and the numbers that its edges stand for."""

    left: float
    right: float
    top: float
    bottom: float
    x_range: tuple
    y_range: tuple

    def place(self, x, y):
        """Return where (x, y) is drawn; what lies above or below the frame is drawn on its edge."""
        (x_low, x_high), (y_low, y_high) = self.x_range, self.y_range
        up = (min(max(y, y_low), y_high) - y_low) / (y_high - y_low)
        along = (x - x_low) / (x_high - x_low)
        return self.left + (self.right - self.left) * along, self.bottom - (self.bottom - self.top) * up


def line_chart(
    series,
    *,
    x_label,
    y_label,
    description,
    floor=None,
    dot=None,
    x_range=None,
    y_range=None,
    x_ticks=None,
    y_ticks=None,
    pale=(),
    width=WIDTH,
    height=250,
):
    """Draw curves with axes.

    ``series`` maps a name to (xs, ys). ``floor`` is (value, label): a dashed line. ``dot`` is (x, y), the point of
    now. ``x_ticks`` and ``y_ticks`` map places on an axis to labels, where plain numbers will not do. ``pale`` holds
    curves (xs, ys) for comparison, drawn thin and without names. Values that are not finite are left out.
    """
    curves = {name: _finite(xs, ys) for name, (xs, ys) in series.items()}
    behind = [_finite(xs, ys) for xs, ys in pale]
    points = [point for curve in [*curves.values(), *behind] for point in curve]
    heights = [y for _, y in points] + ([floor[0]] if floor else [])
    x_range = x_range or _limits([x for x, _ in points])
    frame = Frame(58, width - 14, 26, height - 40, x_range, y_range or _limits(heights, margin=0.05))
    x_ticks = x_ticks or {tick: short(tick) for tick in ticks(*x_range, 7)}
    parts = axes(frame, x_ticks, y_ticks)
    parts.append(text((frame.left + frame.right) / 2, height - 6, x_label, anchor="middle", size=12, opacity=0.85))
    parts.append(text(frame.left - 50, 14, y_label, size=12, opacity=0.85))
    parts += [_curve(frame, curve, "currentColor", "1", 0.3) for curve in behind]
    parts += _curves(frame, curves)
    if floor:
        parts += _floor(frame, *floor)
    if dot:
        parts.append(point(*frame.place(*dot)))
    return picture(parts, height, description, width)


def _floor(frame, value, label):
    """Return a dashed line across the frame, with its label above its right end."""
    y = frame.place(0, value)[1]
    return [
        line(frame.left, y, frame.right, y, color=GREEN, opacity=1, width=1.5, dashed=True),
        text(frame.right, y - 5, label, anchor="end", color=GREEN, size=11),
    ]


def point(x, y):
    """Return the orange dot that stands for now."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{ORANGE}" stroke="#fff" stroke-width="1.5"/>'


def axes(frame, x_ticks, y_ticks=None):
    """Return the level lines, their numbers, and the line at the bottom with its labels."""
    y_ticks = y_ticks or {tick: f"{tick:g}" for tick in ticks(*frame.y_range)}
    parts = [line(frame.left, frame.bottom, frame.right, frame.bottom, opacity=0.6)]
    for tick, label in y_ticks.items():
        y = frame.place(0, tick)[1]
        parts.append(line(frame.left, y, frame.right, y, opacity=0.15))
        parts.append(text(frame.left - 8, y + 4, label, anchor="end", size=11, opacity=0.75))
    for tick, label in x_ticks.items():
        x = frame.place(tick, 0)[0]
        parts.append(text(x, frame.bottom + 17, label, anchor="middle", size=11, opacity=0.75))
    return parts


def _curves(frame, curves):
    """Return the curves and, at the top right, their names in their colours."""
    parts, right = [], frame.right
    for color, (name, curve) in reversed(list(zip((BLUE, ORANGE, GREEN, PURPLE), curves.items(), strict=False))):
        parts.append(_curve(frame, curve, color, "2"))
        parts.append(text(right, 14, name, anchor="end", color=color, size=12, bold=True))
        right -= 8 * len(name) + 18
    return parts


def _curve(frame, curve, color, width, opacity=1.0):
    path = " ".join("{:.1f},{:.1f}".format(*frame.place(x, y)) for x, y in curve)
    style = f'fill="none" stroke="{color}" stroke-width="{width}" stroke-opacity="{opacity:g}" stroke-linejoin="round"'
    return f'<polyline points="{path}" {style}/>'


def _finite(xs, ys):
    return [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(x) and math.isfinite(y)]


def _limits(values, margin=0.0):
    """Return the smallest and largest value, apart by something even when all are equal or there are none."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = margin * (high - low)
    return (low - room, high + room) if high > low else (low - 0.5, high + 0.5)
