"""Draw small pictures as SVG strings: bars, a heat map, a line chart, a divided bar.

A slider that writes such a string into one ``widgets.HTML`` shows a new picture in about 40 ms; a redrawn
matplotlib figure takes about 200 ms. Lines and letters use ``currentColor``, and colours ``light-dark()``, so the
pictures follow a light or a dark page. The colours are close to Okabe and Ito's, which most colour-blind readers can
tell apart. Every label is escaped: what a learner types is shown as text, never read as HTML.
"""

import math
from dataclasses import dataclass
from itertools import groupby

from gptcourse.images import MONO, SANS, escape
from gptcourse.images import visible as visible

# For a light and for a dark page, each with a contrast of 4.5 or more, so letters may have them, too.
INKS = (("#0a6fae", "#4aa3df"), ("#b35900", "#f08c3a"), ("#007a59", "#2bb890"), ("#9c4d85", "#d08bbf"))
BLUE, ORANGE, GREEN, PURPLE = COLORS = tuple(f"light-dark({light},{dark})" for light, dark in INKS)
GROUND = "light-dark(#fff,#111)"
PALE = 0.62  # the least opacity of letters that are to be read
WIDTH = 680  # units of the drawing; on screen a picture shrinks to fit, and never grows past this many pixels
HALF = 328  # two such pictures stand side by side


def text(x, y, string, *, anchor="start", color="currentColor", size=13, opacity=1.0, mono=False, bold=False):
    """Return one SVG line of text; ``string`` is escaped."""
    weight = ' font-weight="600"' if bold else ""
    font = f' font-family="{MONO}"' if mono else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}" font-size="{size}" '
        f'fill-opacity="{opacity:g}"{weight}{font}>{escape(string)}</text>'
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


def point(x, y):
    """Return the orange dot that stands for now."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{ORANGE}" stroke="{GROUND}" stroke-width="1.5"/>'


def picture(parts, height, description, width=WIDTH):
    """Return a whole SVG made of ``parts``; ``description`` is what a screen reader says."""
    return (
        f'<svg width="{width:.0f}" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'aria-label="{escape(description)}" font-family="{SANS}" '
        f'style="display:block;max-width:100%;height:auto">{"".join(parts)}</svg>'
    )


def side_by_side(*parts):
    """Return pieces of HTML beside one another at their own size; what does not fit goes below."""
    style = f"display:flex;flex-wrap:wrap;align-items:flex-start;gap:6px;max-width:{WIDTH}px"
    return f'<div style="{style}">{"".join(parts)}</div>'


def paragraph(string, *, opacity=0.85, mono=False):
    """Return ``string`` as one escaped HTML paragraph that wraps and keeps its line breaks; "" for an empty one."""
    font = f"font-family:{MONO};" if mono else ""
    style = f"white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.5;opacity:{opacity:g};{font}"
    return f'<div style="{style}">{escape(string)}</div>' if str(string) else ""


def cut_note(n_shown, n, what):
    """Return the paragraph that says how much of what was typed is shown; "" if that is all of it."""
    return paragraph(f"The first {n_shown} of your {n} {what} are read and shown." if n > n_shown else "")


def percent(p):
    """Return a probability as readers like it: 12.3 %, 0.04 %, < 0.01 %, 0 %."""
    if p <= 0:
        return "0 %"
    return "< 0.01 %" if p < 1e-4 else f"{100 * p:.2f} %" if p < 0.01 else f"{100 * p:.1f} %"


def short(number, names=("k", "M", "B", "T")):
    """Return a number with the letter that a reader knows for thousands, millions, …: 125000000 is 125M."""
    for power, name in reversed(list(enumerate(names, 1))):
        if abs(number) >= 1000**power:
            return f"{float(f'{number / 1000**power:.3g}'):g}{name}"
    return f"{number:.3g}"


def bars(rows, *, description, headings, cut_after=None, chosen=None, left=150, width=WIDTH):
    """Draw pairs of probabilities as nested bars.

    ``rows`` are (label, before, after): before is the pale bar, after the narrow bright one. ``cut_after=n`` draws
    a dashed line under the n-th row, and ``chosen`` marks a row with an arrow. Rows whose after is 0 are faded.
    ``left`` is the room for labels.
    """
    right, top, step = width - 190, 30, 20
    height = top + step * len(rows) + 22
    largest = max((max(before, after) for _, before, after in rows), default=1.0)
    limit = next(limit for limit in (0.1, 0.25, 0.5, 1.0) if largest <= limit or limit == 1.0)
    scale = (right - left) / limit
    parts = [
        text(width - 112, 18, headings[0], anchor="end", opacity=0.7, size=12),
        text(width - 30, 18, headings[1], anchor="end", color=BLUE, size=12, bold=True),
    ]
    n_ticks = 5 if right - left > 200 else 2
    for tick in range(n_ticks + 1):
        share = limit * tick / n_ticks
        x = left + share * scale
        parts.append(line(x, top - 4, x, height - 18, opacity=0.15))
        parts.append(text(x, height - 4, f"{100 * share:g} %", anchor="middle", size=11, opacity=0.7))
    for row, (label, before, after) in enumerate(rows):
        y, ink = top + step * row, 1.0 if after > 0 else PALE
        parts.append(text(left - 10, y + 14, label, anchor="end", mono=True, opacity=ink))
        parts.append(rect(left, y + 2, before * scale, step - 5, "currentColor", 0.18))
        parts.append(rect(left, y + 6, after * scale, step - 13, BLUE))
        parts.append(text(width - 112, y + 14, percent(before), anchor="end", size=12, opacity=max(0.7 * ink, PALE)))
        parts.append(text(width - 30, y + 14, percent(after), anchor="end", size=12, bold=after > 0, opacity=ink))
        if row == chosen:
            parts.append(text(width - 14, y + 14, "◀", color=ORANGE, size=12))
    if cut_after is not None:
        y = top + step * cut_after - 0.5
        parts.append(line(4, y, width - 4, y, color=ORANGE, opacity=1, width=1.5, dashed=True))
        parts.append(text(right - 4, y + 13, "cut below this line", anchor="end", color=ORANGE, size=11))
    return picture(parts, height, description, width)


def divided_bar(amounts, top, scale, height=12):
    """Draw one bar divided into ``amounts`` (a dict from label to amount), with a key below; `scale` units each."""
    parts, x = [], 24.0
    for n, (color, (label, amount)) in enumerate(zip(COLORS, amounts.items(), strict=True)):
        parts += [
            rect(x, top, amount * scale, height, color),
            rect(24 + 162 * n, top + height + 8, 9, 9, color),
            text(37 + 162 * n, top + height + 17, label, size=12),
        ]
        x += amount * scale
    return parts


def cells(rows, left, top, side, largest=1.0):
    """Return squares, blue above 0 and orange below, the fuller the nearer to ``largest``, for a nested sequence."""
    square = f"h{side - 1:.1f}v{side - 1:.1f}h-{side - 1:.1f}z"
    return by_shade(
        (
            (BLUE if w > 0 else ORANGE, abs(w) / largest),
            f"M{left + side * j + 0.5:.1f} {top + side * i + 0.5:.1f}{square}",
        )
        for i, row in enumerate(rows)
        for j, w in enumerate(row)
    )


def by_shade(marks, style='fill="{}" fill-opacity="{:g}"'):
    """Join the paths of ((colour, weight), path) that would look alike: a few elements are drawn sooner than many."""
    joined = {}
    for (color, weight), path in marks:
        shade = round(min(weight, 1.0) * 50) / 50
        if shade > 0:  # below 0.01 nothing would be seen
            joined[shade, color] = joined.get((shade, color), "") + path
    return [f'<path d="{path}" {style.format(color, shade)}/>' for (shade, color), path in sorted(joined.items())]


def heat_map(weights, rows, columns, *, description, title="", subtitle="", largest=1.0, digits=1, side=22, opacity=1):
    """Draw a matrix as coloured cells: blue above 0, orange below, nothing at 0.

    ``weights`` is a nested sequence (len(rows), len(columns)); ``largest`` is the size drawn in full colour, and what
    is not nearly 0 has its number in the cell, with so many ``digits``, where there is room for it.
    """
    left, top = 18 + 7 * max(map(len, rows)), 50 + 6 * max(map(len, columns))
    width, height = max(left + side * len(columns) + 50, 240), top + side * len(rows) + 8
    parts = [text(0, 14, title, size=12, bold=True), text(0, 30, subtitle, size=11, opacity=0.75)]
    for i, label in enumerate(rows):
        parts.append(text(left - 6, top + side * (i + 0.5) + 4, label, anchor="end", size=11, mono=True))
    for j, label in enumerate(columns):
        place = f"translate({left + side * (j + 0.5) + 3:.1f} {top - 6}) rotate(-60)"
        parts.append(f'<g transform="{place}">{text(0, 0, label, size=11, mono=True)}</g>')
    parts += [rect(left, top, side * len(columns), side * len(rows), "currentColor", 0.05), f'<g opacity="{opacity}">']
    parts += cells(weights, left, top, side, largest)
    for i, row in enumerate(weights):
        for j, weight in enumerate(row):
            if abs(weight) >= 10.0**-digits and side >= 14:
                number = f"{weight:.{digits}f}".replace("0.", ".").replace("-", "−")
                number = number.removesuffix(".0") if side < 17 else number
                ink = GROUND if abs(weight) > 0.55 * largest else "currentColor"
                x, y = left + side * (j + 0.5), top + side * (i + 0.5) + 3.5
                parts.append(text(x, y, number, anchor="middle", size=10, color=ink))
    return picture([*parts, "</g>"], height, description, width)


def ticks(low, high, count=5):
    """Return round numbers between ``low`` and ``high``, about ``count`` of them."""
    rough = (high - low) / count or 1.0
    base = 10.0 ** math.floor(math.log10(rough))
    step = next(base * m for m in (1, 2, 5, 10) if base * m >= rough * 0.999)
    return [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


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
        """Return where (x, y) is drawn."""
        (x_low, x_high), (y_low, y_high) = self.x_range, self.y_range
        along, up = (x - x_low) / (x_high - x_low), (y - y_low) / (y_high - y_low)
        return self.left + (self.right - self.left) * along, self.bottom - (self.bottom - self.top) * up

    def curve(self, xs, ys, color, width, opacity=1.0):
        """Return a curve; what is not finite, or above or below the frame, is left out."""
        low, high = self.y_range
        inside = groupby(zip(xs, ys, strict=True), lambda place: low <= place[1] <= high and math.isfinite(place[0]))
        style = f'fill="none" stroke="{color}" stroke-width="{width:g}" stroke-opacity="{opacity:g}"'
        return "".join(
            f'<polyline points="{" ".join("{:.1f},{:.1f}".format(*self.place(*place)) for place in part)}" {style}/>'
            for is_inside, part in inside
            if is_inside
        )


def line_chart(
    series,
    *,
    labels,
    floor=None,
    levels=(),
    dot=None,
    x_range=None,
    y_range=None,
    x_ticks=None,
    y_ticks=None,
    pale=None,
    width=WIDTH,
    height=250,
):
    """Draw curves with axes, ``labels`` the names of x and y.

    ``series`` maps a name to (xs, ys), or to (xs, ys, ys, …) for several curves of one colour; ``pale`` likewise, for
    comparison. ``floor`` is (value, label): a dashed line; ``levels`` are several such, labelled at the right. ``dot``
    is (x, y), the point of now. ``x_ticks`` and ``y_ticks`` map places on an axis to labels, where plain numbers will
    not do. Values that are not finite or outside ``y_range`` are left out.
    """
    x_label, y_label = labels
    drawn = [(name, curves, "currentColor", 0.35) for name, curves in (pale or {}).items()]
    drawn += [(*curve, color, 1.0) for curve, color in reversed(list(zip(series.items(), COLORS, strict=False)))]
    x_range = x_range or _limits([x for _, (xs, *_), *_ in drawn for x in xs])
    heights = [y for _, (_, *curves), *_ in drawn for ys in curves for y in ys]
    y_range = y_range or _limits(heights, floor, margin=0.05)
    crowded = sum(8 * len(name) + 18 for name, *_ in drawn) + 7 * len(y_label) > width - 20
    frame = Frame(58, width - (52 if levels else 14), 42 if crowded else 26, height - 40, x_range, y_range)
    parts = _axes(frame, x_ticks or {tick: short(tick) for tick in ticks(*x_range, width // 100)}, y_ticks)
    parts.append(text((frame.left + frame.right) / 2, height - 6, x_label, anchor="middle", size=12, opacity=0.85))
    parts.append(text(8, 14, y_label, size=12, opacity=0.85))
    parts += _curves(frame, drawn)
    parts += _floor(frame, *floor) if floor else []
    parts += _levels(frame, levels)
    parts += [point(*frame.place(*dot))] if dot else []
    return picture(parts, height, f"{y_label} by {x_label}: {', '.join(filter(None, series))}", width)


def _curves(frame, drawn):
    """Return the curves and, at the top right, their names in their colours."""
    parts, right = [], frame.right
    for name, (xs, *curves), color, opacity in drawn:
        parts += [frame.curve(xs, ys, color, 2 if len(curves) == 1 else 1.4, opacity) for ys in curves]
        ink = max(opacity, PALE)
        parts.append(text(right, frame.top - 12, name, anchor="end", color=color, opacity=ink, size=12, bold=True))
        right -= 8 * len(name) + 18 if name else 0
    return parts


def _floor(frame, value, label):
    """Return a dashed line across the frame, with its label above its right end."""
    y = frame.place(0, value)[1]
    return [_dashed(frame, y), text(frame.right, y - 5, label, anchor="end", color=GREEN, size=11)]


def _levels(frame, levels):
    """Return dashed lines across the frame, with their labels beside it, one below the other."""
    parts, below = [], 0.0
    for value, label in sorted(levels, reverse=True):
        y = frame.place(0, value)[1]
        below = max(y + 4, below + 11)
        parts += [_dashed(frame, y), text(frame.right + 4, below, label, color=GREEN, size=11)]
    return parts


def _dashed(frame, y):
    return line(frame.left, y, frame.right, y, color=GREEN, opacity=1, width=1.5, dashed=True)


def _axes(frame, x_ticks, y_ticks=None):
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


def _limits(values, floor=None, margin=0.0):
    """Return the smallest and largest finite value, apart by something even when all are equal or there are none."""
    values = [value for value in [*values, *(floor or ())[:1]] if math.isfinite(value)]
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = margin * (high - low)
    return (low - room, high + room) if high > low else (low - 0.5, high + 0.5)
