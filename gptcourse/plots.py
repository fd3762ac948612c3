"""Figures that stand still: arrays in, a matplotlib ``Figure`` out.

A figure is closed before it is returned, so a notebook shows it once, as the value of its cell; nothing here calls
``plt.show`` or needs a display. Colours are Okabe and Ito's, which most colour-blind readers can tell apart, on a white
ground whatever style the reader has set. A title says in words what the figure shows.
"""

from contextlib import contextmanager
from functools import cache

import numpy as np

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
SANS, MONO = "DejaVu Sans", "DejaVu Sans Mono"
# For the letters that DejaVu lacks: those that are installed are used, on Linux, macOS and Windows.
FALLBACKS = {
    "Noto Sans CJK SC",
    "WenQuanYi Zen Hei",
    "Hiragino Sans GB",
    "Microsoft YaHei",
    "Noto Emoji",
    "Segoe UI Emoji",
}


@cache
def _fonts():
    """Return the names of the fonts to use and the set of all code points that one of them draws."""
    from matplotlib import font_manager, ft2font

    names = [SANS, MONO, *sorted(FALLBACKS.intersection(font_manager.fontManager.get_font_names()))]
    return names, set().union(*(ft2font.FT2Font(font_manager.findfont(name)).get_charmap() for name in names))


def visible(token):
    """Return ``token`` with its spaces, line breaks and control characters drawn, so that it can be seen whole."""
    signs = str(token).translate({ord(" "): "␣", ord("\n"): "↵", ord("\t"): "⇥", ord("\r"): "␍"})
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in signs) or "∅"


def _drawable(text):
    """Return ``text`` with the code in place of each character that no installed font draws."""
    return "".join(c if c.isspace() or ord(c) in _fonts()[1] else f"\\x{ord(c):02x}" for c in str(text))


def _token_ticks(axis, tokens):
    """Label an axis with tokens, in which no dollar sign is read as mathematics."""
    labels = [_drawable(visible(token)).replace("$", r"\$") for token in tokens]
    axis.set_ticks(range(len(labels)), labels, family=[MONO, *_fonts()[0]])


@contextmanager
def _figure(width=7.0, height=3.6, rows=1, columns=1):
    """Yield (figure, axes) in the course's style; the figure is closed when the drawing is done."""
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle
    from matplotlib.text import Text

    style = {**STYLE, "font.family": _fonts()[0], "axes.prop_cycle": plt.cycler(color=COLORS)}
    with plt.style.context(["default", style]):  # nothing of the reader's own style, such as white letters or LaTeX
        figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False)
        # A ground that stays white where the reader's style has another for files.
        figure.add_artist(Rectangle((0, 0), 1, 1, transform=figure.transFigure, color="white", zorder=-1))
        try:
            yield figure, axes if rows * columns > 1 else axes[0, 0]
            for text in figure.findobj(Text):
                text.set_text(_drawable(text.get_text()))
            figure.draw_without_rendering()  # the ticks are made now, in this style
        finally:
            plt.close(figure)


def _finish(axes, title, x_label, y_label, floor=None):
    """Label the axes, draw ``floor``, (value, label), as a dashed line, and the key if there is more than one curve."""
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    if floor is not None:
        axes.axhline(floor[0], color="black", linestyle="--", linewidth=1.2, label=floor[1])
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend()


def lines(x, curves, *, title, x_label, y_label, log_x=False, log_y=False, marker=None, floor=None, dots=None):
    """Draw ``curves``, a dict from name to values, over ``x``.

    A value may also be a pair (x, y), for a curve with its own x. ``floor`` is (value, label): a dashed line. ``dots``
    maps names of curves to points (x, y), drawn in the curve's colour: what was measured, where the curve is a formula.
    """
    with _figure() as (figure, axes):
        for name, values in curves.items():
            own_x, y = values if isinstance(values, tuple) else (x, values)
            (drawn,) = axes.plot(np.asarray(own_x), np.asarray(y), label=name, marker=marker)
            if dots and name in dots:
                axes.plot(*dots[name], "o", color=drawn.get_color())
        axes.set(xscale="log" if log_x else "linear", yscale="log" if log_y else "linear")
        _finish(axes, title, x_label, y_label, floor)
    return figure


def loss_curves(steps, loss, eval_steps=(), eval_loss=(), *, floor=None, title="The loss falls as the model trains"):
    """Draw the training loss and, where there is one, the validation loss, in nats per token, over a floor as above."""
    curves = {"training": (steps, loss)} | ({"validation": (eval_steps, eval_loss)} if len(eval_loss) else {})
    return lines(None, curves, title=title, x_label="step", y_label="loss (nats per token)", floor=floor)


def activation_by_depth(spreads, *, title="How large the residual stream is, by depth"):
    """Draw the standard deviation of the activations after each block; ``spreads`` maps a name to values by depth."""
    curves = {name: (range(len(values)), values) for name, values in spreads.items()}
    labels = {"x_label": "blocks passed", "y_label": "standard deviation"}
    return lines(None, curves, title=title, log_y=True, marker="o", **labels)


def sweep_bands(bands, *, title, x_label, y_label="validation loss (nats per token)", floor=None):
    """Draw medians over seeds, each with the band from the lowest to the highest.

    ``bands`` is (values, median, low, high), or a dict from name to such; an infinite median is a cross at the top. The
    x axis is logarithmic when all values are positive and the largest is ten times the smallest or more; values that
    are not numbers stand side by side. ``floor`` is (value, label): a dashed line.
    """
    bands = bands if isinstance(bands, dict) else {"median and range": bands}
    values = list(dict.fromkeys(value for band in bands.values() for value in band[0]))
    named = not all(isinstance(value, int | float | np.number) for value in values)
    with _figure() as (figure, axes):
        for name, (own, *losses) in bands.items():
            x = np.array([values.index(value) for value in own] if named else own, dtype=float)
            order = np.argsort(x)
            _band(axes, name, x[order], *np.where(np.isfinite(losses), losses, np.nan)[:, order], named)
        if named:
            axes.set_xticks(range(len(values)), [_drawable(value) for value in values])
        elif min(values) > 0 and max(values) >= 10 * min(values):
            axes.set_xscale("log")
        _finish(axes, title, x_label, y_label, floor)
    return figure


def _band(axes, name, x, median, low, high, named):
    """Draw one band; a median of NaN is a run that diverged."""
    lost = np.isnan(median)
    (line,) = axes.plot(x, median, marker="o", linestyle="none" if named else "-", label=name)
    color = line.get_color()
    if lost.any():
        at_top = {"transform": axes.get_xaxis_transform(), "clip_on": False}
        axes.plot(x[lost], np.ones(lost.sum()), "x", color=color, label="diverged", **at_top)
    if named:
        axes.errorbar(x, median, (median - low, high - median), fmt="none", color=color, capsize=4)
    else:
        axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)


def importance_bars(
    importances, *, title="How much of the loss's spread each setting explains", x_label="importance (all together: 1)"
):
    """Draw shares as horizontal bars; ``importances`` maps names to shares, the first on top."""
    rows = np.arange(len(importances))
    with _figure(height=1.1 + 0.32 * len(rows)) as (figure, axes):
        bars = axes.barh(rows, list(importances.values()), 0.7)
        axes.bar_label(bars, [f"{share:.0%}" for share in importances.values()], padding=3)
        axes.set_yticks(rows, [_drawable(name) for name in importances])
        axes.set_xlim(0, 1.08)
        _rows_down(axes, title, x_label)
    return figure


def token_bars(tokens, before, after=None, *, labels=("before", "after"), title="The next token's probability"):
    """Draw next-token probabilities as horizontal bars, the first token on top; ``after`` adds a second bar to each."""
    rows, thick = np.arange(len(tokens)), 0.8 if after is None else 0.4
    with _figure(height=0.8 + 0.28 * len(rows)) as (figure, axes):
        axes.barh(rows - (0.4 - thick / 2), np.asarray(before), thick, label=labels[0], color="#9a9a9a")
        if after is not None:
            axes.barh(rows + 0.2, np.asarray(after), thick, label=labels[1], color=COLORS[0])
        _token_ticks(axes.yaxis, tokens)
        _rows_down(axes, title, "probability")
    return figure


def _rows_down(axes, title, x_label):
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    _finish(axes, title, x_label, "")


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
    weights, keys = np.asarray(weights, dtype=float), queries if keys is None else keys
    weights = weights[None] if weights.ndim == 2 else weights
    columns, several = min(len(weights), 4), len(weights) > 1
    rows = -(-len(weights) // columns)
    titles = titles or ([f"head {n}" for n in range(len(weights))] if several else [title])
    side = max(2.2, 0.3 * len(keys) + 1.0) if several else max(3.6, 0.36 * len(keys) + 1.6)
    with _figure(side * columns + 0.8, side * rows + 0.2, rows, columns) as (figure, axes):
        panels = np.atleast_1d(axes).ravel()
        for panel in panels[len(weights) :]:
            panel.set_visible(False)
        for number, (panel, matrix, name) in enumerate(zip(panels, weights, titles, strict=False)):
            image = panel.imshow(matrix, cmap="Blues", vmin=0, vmax=max(1.0, matrix.max()))
            _token_ticks(panel.xaxis, keys)
            _token_ticks(panel.yaxis, queries)
            panel.tick_params(axis="x", rotation=90)
            panel.grid(visible=False)
            _finish(panel, name, axis_labels[0], "" if number % columns else axis_labels[1])
        if several:
            figure.suptitle(title, fontweight="bold")
        figure.colorbar(image, ax=panels.tolist(), label=axis_labels[2], shrink=0.8)
    return figure


def histograms(samples, *, title, x_label, bins=60):
    """Draw one outlined histogram for each entry of ``samples``, a dict from name to values, on shared bins."""
    arrays = {name: np.asarray(values).ravel() for name, values in samples.items()}
    edges = np.histogram_bin_edges(np.concatenate(list(arrays.values())), bins)
    with _figure() as (figure, axes):
        for name, values in arrays.items():
            axes.hist(values, edges, density=True, histtype="stepfilled", alpha=0.45, label=name)
        _finish(axes, title, x_label, "density")
    return figure


def points(positions, labels, *, title, x_label="first component", y_label="second component"):
    """Draw points (n, 2) in the plane, each with its label beside it: embeddings as geometry."""
    with _figure(height=5.0) as (figure, axes):
        axes.scatter(*np.asarray(positions).T, s=18)
        for place, label in zip(np.asarray(positions), labels, strict=True):
            style = {"xytext": (4, 3), "textcoords": "offset points", "family": [MONO, *_fonts()[0]]}
            axes.annotate(visible(label).replace("$", r"\$"), place, **style)
        _finish(axes, title, x_label, y_label)
    return figure
