"""The sliders of the learning rate's schedule: their curves against the schedule that `train` follows."""

import re
from xml.etree import ElementTree

import pytest

from gptcourse.explorers import schedule_explorer
from gptcourse.explorers.schedule import PEAKS, STEPS, schedule
from gptcourse.optimizers import SCHEDULES, learning_rate_at
from gptcourse.training import TrainingConfig


def curves(explorer):
    """Return the heights of both curves, the chosen one first, as shares of the tallest."""
    drawing = ElementTree.fromstring(re.search(r"<svg.*?</svg>", explorer.picture.value, re.DOTALL)[0])
    found = {}
    for line in drawing.iter("polyline"):
        found[line.get("stroke")] = [float(point.split(",")[1]) for point in line.get("points").split()]
    bottom, top = 210.0, 26.0  # of the chart's frame, which ends 5 % above the peak
    shares = [[(bottom - y) / (bottom - top) * 1.05 for y in heights] for heights in found.values()]
    return shares[::-1]  # drawn from the last to the first


@pytest.mark.parametrize("kind", SCHEDULES)
def test_every_kind_is_what_training_does(kind):
    config = TrainingConfig(STEPS, 1, 4e-3, lr_scheduler_type=kind, warmup_steps=40, decay_steps=60, min_lr_ratio=0.2)
    expected = [learning_rate_at(step, config) for step in range(STEPS)]
    assert schedule(4e-3, kind, warmup=20, decay=30, end=20) == expected
    explorer = schedule_explorer()
    settings = {"kind": kind, "peak": 4e-3, "warmup": 20, "decay": 30, "end": 20}
    for name, value in settings.items():
        explorer.controls[name].value = value
    yours, gpt3 = curves(explorer)
    assert yours == pytest.approx([rate / 4e-3 for rate in expected], abs=1e-3)
    assert gpt3 == pytest.approx([rate / 4e-3 for rate in schedule(4e-3)], abs=1e-3)
    assert f"first step {expected[0]:.2g}  ·  last step {expected[-1]:.2g}" in explorer.picture.value


@pytest.mark.parametrize("kind", SCHEDULES)
def test_every_position_of_the_sliders_is_a_schedule(kind):
    for warmup in (0, 50):
        for decay in (5, 100):
            for end in (0, 100):
                rates = schedule(PEAKS[-1], kind, warmup, decay, end)
                assert len(rates) == STEPS and max(rates) == pytest.approx(PEAKS[-1])


def test_the_mean_says_how_much_of_the_peak_a_step_has():
    explorer = schedule_explorer()
    explorer.controls["kind"].value = "constant"
    explorer.controls["warmup"].value = 0
    assert "on average 100% of the peak" in explorer.picture.value
    explorer.controls["warmup"].value = 50
    assert "on average 75% of the peak" in explorer.picture.value
