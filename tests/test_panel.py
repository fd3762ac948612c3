"""A panel leaves a still picture of itself in the notebook, and renews it when it has stood still."""

from html import unescape

import pytest
from ipywidgets import HTML
from pictures import svg_of
from test_modern_explorers import LLAMA, OTHER

from gptcourse.drawings import svg
from gptcourse.explorers import TrainingMonitor, memory_explorer, panel, predict, size_explorer
from gptcourse.explorers.explorer import Explorer, slider
from gptcourse.training import History, TrainingConfig


class Output:
    """What one output of a cell shows, as a front end keeps it."""

    def __init__(self, bundle):
        self.bundles = [bundle]

    def update(self, bundle, raw):
        self.bundles.append(bundle)

    @property
    def html(self):
        return self.bundles[-1]["text/html"]


@pytest.fixture
def outputs(monkeypatch):
    """Return the outputs of the cell, and let a panel count as standing still at once."""
    shown = []

    def display(bundle, raw, display_id=False):
        shown.append(Output(bundle))
        return shown[-1]

    monkeypatch.setattr(panel, "display", display)
    monkeypatch.setattr(panel, "QUIET", 0.05)
    return shown


def counting():
    """Return an explorer whose picture is a number, drawn and written."""
    return Explorer(
        {"n": slider("n", 1, 0, 9)},
        lambda n: svg.paragraph(f"<{n}>") + svg.picture([svg.text(9, 9, n)], 20, f'"{n}" drawn'),
        below=[HTML("below")],
    )


def test_a_panel_is_shown_with_a_still_picture_of_it(outputs):
    explorer = counting()
    explorer._ipython_display_()
    view, still = outputs
    assert view.bundles[0][panel.WIDGET_VIEW]["model_id"] == explorer.model_id
    assert "&lt;1&gt;" in still.html and "below" in still.html and panel.WAKE in still.html
    assert 'alt="&quot;1&quot; drawn"' in still.html and ">1</text>" in svg_of(still.html)
    assert "<svg" not in still.html  # which JupyterLab takes out of a notebook that it does not trust


def test_the_still_picture_follows_when_nothing_has_moved_for_a_moment(outputs):
    explorer = counting()
    explorer._ipython_display_()
    for n in (2, 3, 4):
        explorer.controls["n"].value = n
    still = outputs[1]
    assert len(still.bundles) == 1
    explorer._timer.join()
    assert len(still.bundles) == 2 and ">4</text>" in svg_of(still.html) and ">n 4</div>" in still.html


@pytest.mark.parametrize("make", [counting, size_explorer, lambda: memory_explorer({"Llama": LLAMA, "other": OTHER})])
def test_reset_puts_every_control_back(make):
    explorer = make()
    before = explorer.values, explorer.picture.value
    for control in explorer.controls.values():
        options = getattr(control, "options", None)
        control.value = control.max if options is None else control._options_values[-1]
    assert (explorer.values, explorer.picture.value) != before
    explorer.reset.click()
    assert (explorer.values, explorer.picture.value) == before


def test_a_panel_that_was_never_shown_keeps_nothing(outputs):
    explorer = counting()
    explorer.controls["n"].value = 5
    explorer.keep()
    assert outputs == [] and explorer._timer is None


def test_a_prediction_keeps_its_answer_and_before_the_guess_nothing(outputs):
    quiz = predict("Which?", ["this", "that"], "that", "It was <hidden>.")
    quiz._ipython_display_()
    still = outputs[-1]
    assert still.html == panel.EMPTY
    quiz.buttons[0].click()
    quiz._timer.join()
    assert "You guessed a; it is b." in unescape(still.html) and "It was &lt;hidden&gt;." in still.html


def test_the_last_picture_of_a_training_is_kept_at_once_without_its_speed(outputs):
    monitor = TrainingMonitor(TrainingConfig(steps=2, batch_size=1, learning_rate=1e-3))
    monitor._ipython_display_()
    history = History()
    for loss in (2.0, 1.0):
        history.record(loss, 1e-3, 1.0, 8)
        monitor(history)
    still = outputs[1].html
    assert "<polyline" in svg_of(still)
    assert "tokens/s" not in still and "Ready" not in still
