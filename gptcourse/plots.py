"""Figures that stand still: arrays in, a matplotlib ``Figure`` out.

They know numbers, not models. A figure is closed before it is returned, so a notebook shows it once, as the value
of its cell; nothing here calls ``plt.show`` or needs a display. Colours are Okabe and Ito's, which most
colour-blind readers can tell apart, on a white ground, so that the figures can be read in a dark theme too. A title
says in words what the figure shows.
"""

from contextlib import contextmanager

import numpy as np

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLE = {
    "font.size": 10,
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


@contextmanager
def _figure(width=7.0, height=3.6, rows=1, columns=1):
    """Yield (figure, axes) in the course's style; the figure is closed when the drawing is done."""
    import matplotlib.pyplot as plt

    with plt.rc_context({**STYLE, "axes.prop_cycle": plt.cycler(color=COLORS)}):
        figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False)
        try:
            yield figure, axes if rows * columns > 1 else axes[0, 0]
        finally:
            plt.close(figure)


def _label(axes, title, x_label, y_label):
    axes.set(title=title, xlabel=x_label, ylabel=y_label)


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
        if floor is not None:
            axes.axhline(floor[0], color="black", linestyle="--", linewidth=1.2, label=floor[1])
        axes.set_xscale("log" if log_x else "linear")
        axes.set_yscale("log" if log_y else "linear")
        _label(axes, title, x_label, y_label)
        if len(curves) + (floor is not None) > 1:
            axes.legend()
    return figure


def loss_curves(steps, loss, eval_steps=(), eval_loss=(), *, floor=None, title="The loss falls as the model trains"):
    """Draw the training loss and, where there is one, the validation loss, in nats per token.

    ``floor`` is (value, label): the lowest loss any model can reach, or any other line to compare with.
    """
    curves = {"training": (steps, loss)}
    if len(eval_loss):
        curves["validation"] = (eval_steps, eval_loss)
    return lines(None, curves, title=title, x_label="step", y_label="loss (nats per token)", floor=floor)


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
            x = [values.index(value) for value in own] if named else np.asarray(own, dtype=float)
            order = np.argsort(x)
            median, low, high = np.where(np.isfinite(losses), losses, np.nan)[:, order]  # nan: not drawn
            x = np.asarray(x)[order]
            lost = np.isnan(median)
            (line,) = axes.plot(x, median, marker="o", linestyle="none" if named else "-", label=name)
            if lost.any():
                at_top = {"transform": axes.get_xaxis_transform(), "clip_on": False}
                axes.plot(x[lost], np.ones(lost.sum()), "x", color=line.get_color(), label="diverged", **at_top)
            if named:
                axes.errorbar(x, median, (median - low, high - median), fmt="none", color=line.get_color(), capsize=4)
            else:
                axes.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        if named:
            axes.set_xticks(range(len(values)), [str(value) for value in values])
        elif min(values) > 0 and max(values) >= 10 * min(values):
            axes.set_xscale("log")
        if floor is not None:
            axes.axhline(floor[0], color="black", linestyle="--", linewidth=1.2, label=floor[1])
        _label(axes, title, x_label, y_label)
        if len(axes.get_lines()) > 1:
            axes.legend()
    return figure


def importance_bars(
    importances,
    *,
    title="How much of the loss's spread each setting explains",
    x_label="importance (all together: 1)",
):
    """Draw shares as horizontal bars; ``importances`` maps names to shares, the first on top."""
    rows = np.arange(len(importances))
    with _figure(height=1.1 + 0.32 * len(importances)) as (figure, axes):
        bars = axes.barh(rows, list(importances.values()), 0.7)
        axes.bar_label(bars, [f"{share:.0%}" for share in importances.values()], padding=3)
        axes.set_yticks(rows, list(importances))
        axes.set_xlim(0, 1.08)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        _label(axes, title, x_label, "")
    return figure


def activation_by_depth(spreads, *, title="How large the residual stream is, by depth"):
    """Draw the standard deviation of the activations after each block; ``spreads`` maps a name to values by depth."""
    depth = range(max(len(values) for values in spreads.values()))
    curves = {name: (depth[: len(values)], values) for name, values in spreads.items()}
    return lines(
        None, curves, title=title, x_label="blocks passed", y_label="standard deviation", log_y=True, marker="o"
    )


def token_bars(tokens, before, after=None, *, labels=("before", "after"), title="The next token's probability"):
    """Draw next-token probabilities as horizontal bars, the first token on top; ``after`` adds a second bar to each."""
    rows = np.arange(len(tokens))
    with _figure(height=0.8 + 0.28 * len(tokens)) as (figure, axes):
        thick = 0.8 if after is None else 0.4
        axes.barh(rows - (0 if after is None else 0.2), np.asarray(before), thick, label=labels[0], color="#9a9a9a")
        if after is not None:
            axes.barh(rows + 0.2, np.asarray(after), thick, label=labels[1], color=COLORS[0])
            axes.legend(loc="lower right")
        axes.set_yticks(rows, [_visible(token) for token in tokens], family="monospace")
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        _label(axes, title, "probability", "")
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
    weights = np.asarray(weights, dtype=float)
    weights = weights[None] if weights.ndim == 2 else weights
    keys = queries if keys is None else keys
    columns = min(len(weights), 4)
    rows = -(-len(weights) // columns)
    side = max(2.2, 0.3 * len(keys) + 1.0) if len(weights) > 1 else max(3.6, 0.36 * len(keys) + 1.6)
    with _figure(side * columns + 0.8, side * rows + 0.2, rows, columns) as (figure, axes):
        panels = np.atleast_1d(axes).ravel()
        for panel in panels[len(weights) :]:
            panel.set_visible(False)
        for head, (panel, matrix) in enumerate(zip(panels, weights, strict=False)):
            image = panel.imshow(matrix, cmap="Blues", vmin=0, vmax=max(1.0, matrix.max()))
            panel.set_xticks(range(len(keys)), [_visible(key) for key in keys], rotation=90, family="monospace")
            panel.set_yticks(range(len(queries)), [_visible(query) for query in queries], family="monospace")
            panel.grid(visible=False)
            name = titles[head] if titles else title if len(weights) == 1 else f"head {head}"
            _label(panel, name, axis_labels[0], axis_labels[1] if head % columns == 0 else "")
        if len(weights) > 1:
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
        _label(axes, title, x_label, "density")
        axes.legend()
    return figure


def points(positions, labels, *, title, x_label="first component", y_label="second component"):
    """Draw points (n, 2) in the plane, each with its label beside it: embeddings as geometry."""
    positions = np.asarray(positions)
    with _figure(height=5.0) as (figure, axes):
        axes.scatter(positions[:, 0], positions[:, 1], s=18)
        for (x, y), label in zip(positions, labels, strict=True):
            axes.annotate(_visible(label), (x, y), xytext=(4, 3), textcoords="offset points", family="monospace")
        _label(axes, title, x_label, y_label)
    return figure


def _visible(token):
    """Return ``token`` with spaces and line breaks drawn, and no dollar sign read as mathematics."""
    return str(token).replace(" ", "␣").replace("\n", "↵").replace("$", r"\$") or "∅"
