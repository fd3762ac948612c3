"""The figures hold the numbers they were given, say what they are, and need no display."""

import io
import os
import subprocess
import sys
import warnings

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from gptcourse import plots

WEIGHTS = np.tril(np.ones((3, 3))) / np.arange(1, 4)[:, None]
BANDS = ([1e-2, 1e-4, 1.0, 1e-3], [2.0, 3.0, np.inf, 2.4], [1.9, 2.9, 2.1, 2.3], [2.1, 3.2, np.inf, 2.6])
NAMED = (["deep", "wide"], [2.0, 2.2], [1.9, 2.1], [2.2, 2.3])
LOSSES = [1.0, 3.0, np.inf]
TRIALS = {"rate": ([0.1, 1.0, 10.0], LOSSES), "kind": (["adamw", "muon", "adamw"], LOSSES)}
FIGURES = {
    "lines": lambda: plots.lines([1, 2], {"a": [3, 4]}, title="t", x_label="size (numbers)", y_label="time (s)"),
    "loss_curves": lambda: plots.loss_curves([1, 2], [3.0, 2.0], [2], [2.5], floor=(1.0, "floor")),
    "sweep_bands": lambda: plots.sweep_bands(BANDS, title="t", x_label="learning rate", levels={"4-gram": 1.0}),
    "isolation": lambda: plots.isolation(TRIALS, (2.0, "defaults"), log_x=["rate"], title="t"),
    "sweep_bands of names": lambda: plots.sweep_bands(NAMED, title="t", x_label="shape"),
    "importance_bars": lambda: plots.importance_bars({"learning_rate": 0.8, "batch_size": 0.2}),
    "token_bars": lambda: plots.token_bars(["a", " b"], [0.7, 0.3], [1.0, 0.0]),
    "heat_map": lambda: plots.heat_map(WEIGHTS, ["a", "b", "c"]),
    "histograms": lambda: plots.histograms({"a": [0, 1, 1], "b": [2, 3]}, title="t", x_label="score"),
    "points": lambda: plots.points([[0, 1], [2, 3]], ["a", "b"], title="t"),
}


@pytest.fixture(params=FIGURES)
def figure(request):
    return FIGURES[request.param]()


def test_several_bands_have_a_colour_each_and_levels_are_lines_with_their_names():
    axes = plots.sweep_bands({"16": BANDS, "64": BANDS}, title="t", x_label="rate", levels={"4-gram": 1.8}).axes[0]
    first, second = (container.lines[0].get_color() for container in axes.containers)
    assert first != second and {text.get_text() for text in axes.get_legend().get_texts()} >= {"16", "64"}
    assert any(line.get_ydata()[0] == 1.8 for line in axes.lines if line.get_linestyle() == ":")
    assert "4-gram" in [text.get_text() for text in axes.texts]


def test_a_figure_names_itself_and_its_axes_and_can_be_saved(figure, tmp_path):
    assert isinstance(figure, Figure)
    panel = figure.axes[0]
    assert panel.get_title(loc="left") and panel.get_xlabel()
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 3000


def test_a_figure_is_closed_so_that_a_notebook_shows_it_once(figure):
    assert not plt.fignum_exists(figure.number)


def test_drawing_leaves_the_readers_settings_alone():
    before = matplotlib.rcParams.copy()
    plots.loss_curves([1, 2], [3.0, 2.0])
    assert matplotlib.rcParams == before


def test_curves_keep_their_values_and_names():
    figure = plots.loss_curves([1, 2, 3], [3.0, 2.0, 1.5], [3], [1.7], floor=(1.25, "floor"))
    training, validation, floor = figure.axes[0].get_lines()
    assert training.get_xydata().tolist() == [[1, 3.0], [2, 2.0], [3, 1.5]]
    assert validation.get_xydata().tolist() == [[3, 1.7]]
    assert set(floor.get_ydata()) == {1.25}
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["training", "validation", "floor"]


def test_without_validation_there_is_no_curve_for_it():
    assert len(plots.loss_curves([1, 2], [3.0, 2.0]).axes[0].get_lines()) == 1


def test_log_axes_are_logarithmic():
    figure = plots.lines([1, 10], {"a": [1, 100]}, title="t", x_label="x", y_label="y", log_x=True, log_y=True)
    assert (figure.axes[0].get_xscale(), figure.axes[0].get_yscale()) == ("log", "log")


def ranges(axes):
    """Return the ends of the bars from the lowest to the highest loss."""
    return [segment.tolist() for bars in axes.collections for segment in bars.get_segments()]


def test_a_sweep_is_drawn_in_the_order_of_its_values_with_crosses_where_runs_diverged():
    axes = plots.sweep_bands(BANDS, title="t", x_label="learning rate").axes[0]
    line, *_, crosses = axes.get_lines()
    assert line.get_xdata().tolist() == [1e-4, 1e-3, 1e-2, 1.0]
    assert (crosses.get_xdata().tolist(), crosses.get_marker(), crosses.get_label()) == ([1.0], "x", "diverged")
    np.testing.assert_equal(line.get_ydata(), [3.0, 2.4, 2.0, np.nan])
    assert ranges(axes)[:3] == [[[1e-4, 2.9], [1e-4, 3.2]], [[1e-3, 2.3], [1e-3, 2.6]], [[1e-2, 1.9], [1e-2, 2.1]]]
    assert axes.get_xscale() == "log"


@pytest.mark.parametrize("values", [[1, 2, 9], [0, 1, 100], [-1, 1, 100]])
def test_a_sweep_over_close_or_unsigned_values_has_a_linear_axis(values):
    axes = plots.sweep_bands((values, [3.0] * 3, [2.0] * 3, [4.0] * 3), title="t", x_label="x").axes[0]
    assert axes.get_xscale() == "linear"


def test_a_sweep_over_names_puts_them_side_by_side_with_their_ranges():
    axes = plots.sweep_bands(NAMED, title="t", x_label="shape").axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["deep", "wide"]
    np.testing.assert_allclose(ranges(axes), [[[0, 1.9], [0, 2.2]], [[1, 2.1], [1, 2.3]]])
    assert axes.get_lines()[0].get_linestyle() == "None" and axes.get_legend() is None


def test_each_setting_has_a_panel_with_a_dot_for_each_trial_and_a_cross_for_what_diverged():
    rate, kind = plots.isolation(TRIALS, (2.0, "defaults"), log_x=["rate"]).axes
    assert (rate.get_xscale(), kind.get_xscale()) == ("log", "linear")
    dots, cross, line = rate.lines
    assert dots.get_xydata().tolist() == [[0.1, 1.0], [1.0, 3.0]] and cross.get_xdata().tolist() == [10.0]
    assert set(line.get_ydata()) == {2.0} and "dashed: defaults" in rate.get_title(loc="left")
    assert [label.get_text() for label in kind.get_xticklabels()] == ["adamw", "muon"]


def test_importances_are_bars_with_their_share_the_first_on_top():
    axes = plots.importance_bars({"learning_rate": 0.75, "batch_size": 0.25}).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0.75, 0.25]
    assert [text.get_text() for text in axes.texts] == ["75%", "25%"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["learning_rate", "batch_size"]
    low, high = axes.get_ylim()
    assert low > high


def test_what_was_measured_is_dotted_in_the_colour_of_its_curve():
    curves = {"a": [1, 2], "b": ([0, 4], [3, 4])}
    axes = plots.lines([0, 1], curves, dots={"b": ([0, 2, 4], [3, 3.4, 4])}, title="t", x_label="x", y_label="y").axes[
        0
    ]
    a, b, dots = axes.lines
    assert dots.get_color() == b.get_color() != a.get_color()
    assert dots.get_xydata().tolist() == [[0, 3], [2, 3.4], [4, 4]] and dots.get_linestyle() == "None"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]


def test_bars_are_as_long_as_the_probabilities_and_blanks_are_seen():
    figure = plots.token_bars([" b", "\n", "$x$"], [0.5, 0.3, 0.2], [0.9, 0.1, 0.0])
    assert [bar.get_width() for bar in figure.axes[0].patches] == [0.5, 0.3, 0.2, 0.9, 0.1, 0.0]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["␣b", "↵", r"\$x\$"]
    low, high = figure.axes[0].get_ylim()
    assert low > high  # the first token is on top


def test_heat_map_shows_the_weights_with_queries_down_and_keys_across():
    figure = plots.heat_map(WEIGHTS[:2], ["q1", "q2"], ["k1", "k2", "k3"])
    assert figure.axes[0].images[0].get_array().tolist() == WEIGHTS[:2].tolist()
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["q1", "q2"]
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["k1", "k2", "k3"]


def test_heads_share_one_colour_scale():
    figure = plots.heat_map(np.stack([WEIGHTS, WEIGHTS / 2, WEIGHTS, WEIGHTS, WEIGHTS]), ["a", "b", "c"])
    panels = [panel for panel in figure.axes if panel.images]
    assert [panel.get_title(loc="left") for panel in panels] == [f"head {n}" for n in range(5)]
    assert {panel.images[0].get_clim() for panel in panels} == {(0.0, 1.0)}


def test_histograms_share_their_bins_and_integrate_to_one():
    figure = plots.histograms({"a": np.arange(10), "b": np.arange(5, 30)}, title="t", x_label="x", bins=6)
    outlines = [patch.get_xy() for patch in figure.axes[0].patches]
    assert len(outlines) == 2
    assert set(outlines[0][:, 0]) == set(outlines[1][:, 0])
    for outline in outlines:
        x, y = outline[:, 0], outline[:, 1]
        assert abs(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1])) / 2 == pytest.approx(1)  # the shoelace formula


def test_colours_differ_in_lightness_for_those_who_see_none():
    def lightness(color):
        return float(np.dot(matplotlib.colors.to_rgb(color), [0.2126, 0.7152, 0.0722]))

    first = [lightness(color) for color in plots.COLORS[:3]]
    assert min(abs(a - b) for n, a in enumerate(first) for b in first[:n]) > 0.02


def test_figures_need_no_display_and_importing_plots_no_matplotlib():
    code = (
        "import sys; from gptcourse import plots; assert 'matplotlib' not in sys.modules;"
        "plots.loss_curves([1, 2], [2.0, 1.0]).savefig(sys.argv[1], format='png')"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "MPLBACKEND")}
    subprocess.run([sys.executable, "-c", code, os.devnull], env=environment, check=True, capture_output=True)


def pixels(figure):
    """Return the figure as it is written to a file, (height, width, 3)."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    buffer.seek(0)
    return plt.imread(buffer)[..., :3]


@pytest.mark.parametrize("style", ["dark_background", {"text.usetex": True}, {"figure.facecolor": "black"}, "ggplot"])
@pytest.mark.parametrize("name", ["loss_curves", "token_bars", "heat_map"])
def test_the_readers_own_style_changes_no_pixel(name, style):
    plain = pixels(FIGURES[name]())
    with plt.style.context(style):  # also while the figure is shown and saved
        np.testing.assert_array_equal(pixels(FIGURES[name]()), plain)


def test_letters_that_no_font_draws_are_marked_by_their_code_without_a_warning():
    strange = "\U0003fffd"  # no font has it
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = [
            plots.token_bars([strange, "a\x00b", "é"], [0.5, 0.3, 0.2], title=f"After {strange}"),
            plots.heat_map(np.eye(2), [strange, "a"]),
            plots.lines([1, 2], {strange: [1, 2], "b": [2, 1]}, title="t", x_label=strange, y_label="y"),
            plots.importance_bars({strange: 1.0}),
            plots.sweep_bands(([strange], [1.0], [1.0], [1.0]), title="t", x_label="x"),
            plots.points([[0, 1]], [strange], title="t"),
        ]
        for figure in figures:
            pixels(figure)
            shown = [text.get_text() for text in figure.findobj(plt.Text)]
            assert any(r"\x3fffd" in text for text in shown) and not any(strange in text for text in shown)
    assert [label.get_text() for label in figures[0].axes[0].get_yticklabels()] == [r"\x3fffd", r"a\x00b", "é"]


@pytest.mark.parametrize("text", ["你好，世界", "🙂🚀", "नमस्ते", "שלום", "\ud83d"])
def test_every_script_is_drawn_or_marked_without_a_warning(text):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels(plots.token_bars(list(text), [0.1] * len(text), title=text))
        pixels(plots.loss_curves([1, 2], [2.0, 1.0], floor=(1.0, text)))


def test_all_bands_are_drawn_and_a_value_with_a_run_that_diverged_is_crossed():
    band = ([1, 2], [1.0, 1.0], [0.5, 0.5], [2.0, np.inf])
    axes = plots.sweep_bands(dict.fromkeys("abcdefghi", band), title="t", x_label="x").axes[0]
    assert len(axes.containers) == 9
    crosses = [line for line in axes.lines if line.get_label() == "diverged"]
    assert len(crosses) == 9 and all(line.get_xdata().tolist() == [2] for line in crosses)
