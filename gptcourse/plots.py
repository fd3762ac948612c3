"""Figures that stand still: arrays in, a matplotlib ``Figure`` out.

A figure is closed before it is returned, so a notebook shows it once, as the value of its cell; nothing here calls
``plt.show`` or needs a display. Colours are Okabe and Ito's, which most colour-blind readers can tell apart. A notebook
shows a figure with the ink and ground of its light or dark page; in a file it has a white ground, whatever style the
reader has set. A title says in words what the figure shows.
"""

import re
from contextlib import contextmanager
from functools import cache
from io import StringIO
from itertools import cycle

import numpy as np

from gptcourse import images
from gptcourse.images import visible

# Lines differ in lightness, too; `svg.INKS` are for letters, all of which must be about as dark, or as light.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLE = {
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "figure.dpi": 96,
}
GREY, GROUND = "#555555", "ground"
MONO = "DejaVu Sans Mono"
# For the letters that DejaVu lacks: those that are installed are used, on Linux, macOS and Windows.
FALLBACKS = {"Noto Sans CJK SC", "WenQuanYi Zen Hei", "Hiragino Sans GB", "Microsoft YaHei"}
FALLBACKS |= {"Noto Emoji", "Segoe UI Emoji"}


@cache
def _fonts():
    """Return the names of the fonts to use and the set of all code points that one of them draws."""
    from matplotlib import font_manager, ft2font

    names = ["DejaVu Sans", MONO, *sorted(FALLBACKS.intersection(font_manager.fontManager.get_font_names()))]
    return names, set().union(*(ft2font.FT2Font(font_manager.findfont(name)).get_charmap() for name in names))


def _drawable(text):
    """Return ``text`` with the code in place of each character that no installed font draws."""
    return "".join(c if c.isspace() or ord(c) in _fonts()[1] else f"\\x{ord(c):02x}" for c in str(text))


def _token_text(tokens):
    """Return tokens' texts and the style to write them in: what is blank is seen, and no dollar begins mathematics."""
    return [_drawable(visible(token)).replace("$", r"\$") for token in tokens], {"family": [MONO, *_fonts()[0]]}


@cache
def _figure_class():
    """Return the class of our figures: matplotlib's own is imported when the first is drawn."""
    from matplotlib.figure import Figure

    class CourseFigure(Figure):
        """A figure that a notebook shows as an image in the colours of its page."""

        def _ipython_display_(self):
            from IPython.display import display

            words = _words(self)
            display({"text/html": images.image(_as_svg(self), words), "text/plain": words}, raw=True)

    return CourseFigure


def _as_svg(figure):
    """Return a figure as SVG without a ground, its black ink that of the page; the same each time it is drawn."""
    import matplotlib.pyplot as plt

    file, grounds = StringIO(), figure.findobj(lambda artist: artist.get_gid() == GROUND)
    options = {"transparent": True, "bbox_inches": "tight", "metadata": {"Date": None, "Creator": None}}
    with plt.rc_context({"svg.hashsalt": "gptcourse", "svg.fonttype": "none"}):
        for ground in grounds:
            ground.set_visible(False)
        figure.savefig(file, format="svg", **options)
        for ground in grounds:
            ground.set_visible(True)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace("<svg", '<svg fill="currentColor"', 1)
    svg = svg.replace("#000000", "currentColor").replace(GREY, "currentColor")
    families = {"": images.SANS, " Mono": images.MONO}  # the page's own letters: as paths they take four times the room
    return re.sub(r"font-family: 'DejaVu Sans( Mono)?'[^;\"]*", lambda f: f"font-family: {families[f[1] or '']}", svg)


def _words(figure):
    """Say what a figure shows, for who cannot see it: its titles, its axes and the names of its curves."""
    heading = [figure.get_suptitle()] if figure.get_suptitle() else []
    for axes in filter(lambda axes: axes.get_visible(), figure.axes):
        named = [axes.get_title(loc="left"), axes.get_xlabel(), axes.get_ylabel()]
        key = axes.get_legend()
        heading += [*filter(None, named), *([text.get_text() for text in key.get_texts()] if key else [])]
    return ". ".join(dict.fromkeys(heading))


@contextmanager
def _figure(title, x_label, y_label="", *, floor=None, levels=None, width=7.0, height=3.6, rows=1, columns=1):
    """Yield (figure, axes), or the axes of all panels, in the course's style; the figure is closed afterwards.

    ``floor``, (value, label), is a dashed line, and ``levels``, a dict from label to value, are dotted lines with their
    labels at the right. Where there is more than one label of a curve, a key tells them.
    """
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle
    from matplotlib.text import Text

    style = {**STYLE, "font.family": _fonts()[0], "axes.prop_cycle": plt.cycler(color=COLORS)}
    with plt.style.context(["default", style]):  # nothing of the reader's own style, such as white letters or LaTeX
        shape = {"figsize": (width, height), "squeeze": False, "FigureClass": _figure_class()}
        figure, grid = plt.subplots(rows, columns, **shape)
        # A ground that stays white where the reader's style has another for files.
        ground = Rectangle((0, 0), 1, 1, transform=figure.transFigure, color="white", zorder=-1, gid=GROUND)
        figure.add_artist(ground)
        axes = grid[0, 0]
        axes.set(title=title, xlabel=x_label, ylabel=y_label)
        try:
            yield figure, axes if rows * columns == 1 else grid.ravel()
            if floor is not None:
                axes.axhline(floor[0], color="black", linestyle="--", linewidth=1.2, label=floor[1])
            for label, value in (levels or {}).items():
                axes.axhline(value, color=GREY, linestyle=":", linewidth=1.2)
                at_the_right = {"xycoords": axes.get_yaxis_transform(), "va": "center", "fontsize": 8}
                axes.annotate(label, (1.01, value), annotation_clip=False, color=GREY, **at_the_right)
            if len(axes.get_legend_handles_labels()[1]) > 1:
                axes.legend()
            for text in figure.findobj(Text):
                text.set_text(_drawable(text.get_text()))
            figure.draw_without_rendering()  # the ticks are made now, in this style
        finally:
            plt.close(figure)


def lines(
    x, curves, *, title, x_label, y_label, log_x=False, log_y=False, marker=None, floor=None, levels=None, dots=None
):
    """Draw ``curves``, a dict from name to values, over ``x``.

    A value may also be a pair (x, y), for a curve with its own x. ``floor`` is (value, label): a dashed line; and
    ``levels`` a dict from labels to values: dotted ones, such as n-gram tables. ``dots`` maps names of curves to points
    (x, y), drawn in the curve's colour: what was measured, where the curve is a formula.
    """
    with _figure(title, x_label, y_label, floor=floor, levels=levels) as (figure, axes):
        for name, values in curves.items():
            own_x, y = values if isinstance(values, tuple) else (x, values)
            (drawn,) = axes.plot(np.asarray(own_x), np.asarray(y), label=name, marker=marker)
            if dots and name in dots:
                axes.plot(*dots[name], "o", color=drawn.get_color())
        axes.set(xscale="log" if log_x else "linear", yscale="log" if log_y else "linear")
    return figure


def loss_curves(steps, loss, eval_steps=(), eval_loss=(), *, floor=None, title="The loss falls as the model trains"):
    """Draw the training loss and, where there is one, the validation loss, in nats per token, over a floor as above."""
    curves = {"training": (steps, loss)} | ({"validation": (eval_steps, eval_loss)} if len(eval_loss) else {})
    return lines(None, curves, title=title, x_label="step", y_label="loss (nats per token)", floor=floor)


def sweep_bands(bands, *, title, x_label, y_label="validation loss (nats per token)", levels=None):
    """Draw medians over seeds, each with a bar from the lowest to the highest.

    ``bands`` is (values, median, low, high), or a dict of several by name; an infinite median is a cross at the top.
    The x axis is logarithmic when all values are positive and the largest is ten times the smallest or more; values
    that are not numbers stand side by side. ``levels`` as for `lines`.
    """
    named = bands if isinstance(bands, dict) else {"median and range": bands}
    everything = [value for values, *_ in named.values() for value in values]
    numbers = all(isinstance(value, int | float | np.number) for value in everything)
    with _figure(title, x_label, y_label, levels=levels) as (figure, axes):
        for color, (name, (values, *losses)) in zip(cycle(COLORS), named.items(), strict=False):
            order = np.argsort(values) if numbers else np.arange(len(values))
            x = np.array(values if numbers else [_drawable(value) for value in values])[order]
            median, low, high = np.where(np.isfinite(losses), losses, np.nan)[:, order]
            style = {"fmt": "o-" if numbers else "o", "capsize": 4, "label": name, "color": color}
            axes.errorbar(x, median, (median - low, np.where(np.isnan(high), 0, high - median)), **style)
            if (lost := np.isnan(high)).any():
                at_top = {"transform": axes.get_xaxis_transform(), "clip_on": False}
                axes.plot(x[lost], np.ones(lost.sum()), "x", color=color, label="diverged", **at_top)
        if numbers and min(everything) > 0 and max(everything) >= 10 * min(everything):
            axes.set_xscale("log")
            ticks = sorted(set(everything))
            axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
            axes.minorticks_off()
    return figure


def isolation(axes, floor=None, *, log_x=(), title="Each trial's loss, by each setting", y_label="loss"):
    """Draw a panel for each axis, with a dot for each trial; ``axes`` maps names to (values, losses).

    ``log_x`` names the axes that are logarithmic; a trial that diverged is a cross at the top. ``floor`` is (value,
    label): a dashed line in each panel.
    """
    columns = min(len(axes), 3)
    rows = -(-len(axes) // columns)
    sizes = {"width": 3.4 * columns, "height": 2.8 * rows, "rows": rows, "columns": columns}
    title += f" (dashed: {floor[1]})" if floor else ""
    with _figure(title, "", y_label, **sizes) as (figure, panels):
        for panel, (name, (values, losses)) in zip(np.atleast_1d(panels), axes.items(), strict=False):
            numbers = all(isinstance(value, int | float | np.number) for value in values)
            x, finite = np.array(values if numbers else [str(value) for value in values]), np.isfinite(losses)
            panel.plot(x[finite], np.array(losses)[finite], "o", color=COLORS[0])
            if not finite.all():
                at_top = {"transform": panel.get_xaxis_transform(), "clip_on": False}
                panel.plot(x[~finite], np.ones((~finite).sum()), "x", color=COLORS[1], **at_top)
            if floor is not None and np.isfinite(floor[0]):
                panel.axhline(floor[0], color="black", linestyle="--", linewidth=1.2)
            panel.set_xlabel(name)
            if name in log_x:
                panel.set_xscale("log")
                panel.xaxis.set_minor_formatter("")  # between the powers of ten the numbers would overlap
        for panel in np.atleast_1d(panels)[len(axes) :]:
            panel.set_visible(False)
    return figure


def importance_bars(
    importances, *, title="How much of the loss's spread each setting explains", x_label="importance (all together: 1)"
):
    """Draw shares as horizontal bars; ``importances`` maps names to shares, the first on top."""
    shares = list(importances.values())
    return _bars({"": shares}, map(_drawable, importances), {}, title, x_label, "{:.0%}")


def token_bars(tokens, before, after=None, *, labels=("before", "after"), title="The next token's probability"):
    """Draw next-token probabilities as horizontal bars, the first token on top; ``after`` adds a second bar to each."""
    series = {labels[0]: before} | ({} if after is None else {labels[1]: after})
    return _bars(series, *_token_text(tokens), title, "probability")


def _bars(series, names, font, title, x_label, value_format=None):
    """Draw horizontal bars, the first on top: one for each entry of ``series`` beside each of the names."""
    names, thick = list(names), 0.8 / len(series)
    rows, colors = np.arange(len(names)), ("#9a9a9a", COLORS[0]) if len(series) > 1 else COLORS
    with _figure(title, x_label, height=0.9 + 0.3 * len(rows)) as (figure, axes):
        for number, (label, values) in enumerate(series.items()):
            place = rows + thick * (number + 0.5) - 0.4
            bars = axes.barh(place, np.asarray(values), thick, label=label, color=colors[number])
            if value_format:
                axes.bar_label(bars, fmt=value_format, padding=3)
                axes.set_xlim(0, 1.08)
        axes.set_yticks(rows, names, **font)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
    return figure


def heat_map(
    weights,
    queries,
    keys=None,
    *,
    title="Attention weights",
    titles=None,
    axis_labels=("looked at (key)", "looking (query)", "attention weight"),
):
    """Draw attention weights (queries, keys), or several heads' (heads, queries, keys) side by side.

    ``queries`` and ``keys`` are the tokens' texts; without ``keys`` both are the same tokens. ``titles`` name the
    heads. ``axis_labels`` stand below, at the left and at the colours: other words for other matrices of shares.
    """
    from matplotlib.colors import LinearSegmentedColormap

    clear_to_blue = LinearSegmentedColormap.from_list("clear to blue", [f"{COLORS[0]}00", COLORS[0]])  # on any ground
    weights, keys = np.asarray(weights, dtype=float), queries if keys is None else keys
    weights = weights[None] if weights.ndim == 2 else weights
    columns, several = min(len(weights), 4), len(weights) > 1
    rows = -(-len(weights) // columns)
    titles = titles or ([f"head {n}" for n in range(len(weights))] if several else [title])
    side = max(2.2, 0.3 * len(keys) + 1.0) if several else max(3.6, 0.36 * len(keys) + 1.6)
    size = {"width": side * columns + 0.8, "height": side * rows + 0.2, "rows": rows, "columns": columns}
    (below, font), (left, _) = _token_text(keys), _token_text(queries)
    with _figure(titles[0], axis_labels[0], **size) as (figure, panels):
        panels = np.atleast_1d(panels)
        for number, (panel, matrix, name) in enumerate(zip(panels, weights, titles, strict=False)):
            shades = panel.imshow(matrix, cmap=clear_to_blue, vmin=0, vmax=max(1.0, matrix.max()))
            panel.set_xticks(range(len(below)), below, rotation=90 if max(map(len, below)) > 2 else 0, **font)
            panel.set_yticks(range(len(left)), left, **font)
            panel.set(title=name, xlabel=axis_labels[0], ylabel="" if number % columns else axis_labels[1])
            panel.grid(visible=False)
        for panel in panels[len(weights) :]:
            panel.set_visible(False)
        if several:
            figure.suptitle(title, fontweight="bold")
        figure.colorbar(shades, ax=panels.tolist(), label=axis_labels[2], shrink=0.8)
    return figure


def histograms(samples, *, title, x_label, bins=60):
    """Draw one outlined histogram for each entry of ``samples``, a dict from name to values, on shared bins."""
    arrays = {name: np.asarray(values).ravel() for name, values in samples.items()}
    edges = np.histogram_bin_edges(np.concatenate(list(arrays.values())), bins)
    with _figure(title, x_label, "density") as (figure, axes):
        for name, values in arrays.items():
            axes.hist(values, edges, density=True, histtype="stepfilled", alpha=0.45, label=name)
    return figure


def points(positions, labels, *, title, x_label="first component", y_label="second component"):
    """Draw points (n, 2) in the plane, each with its label beside it: embeddings as geometry."""
    positions, (texts, font) = np.asarray(positions), _token_text(labels)
    with _figure(title, x_label, y_label, height=5.0) as (figure, axes):
        axes.scatter(*positions.T, s=18)
        for place, text in zip(positions, texts, strict=True):
            axes.annotate(text, place, xytext=(4, 3), textcoords="offset points", **font)
    return figure
