"""The sliders of notebook 10: what they say, against the functions behind them."""

import re
from itertools import pairwise

import pytest

from gptcourse.explorers import device_explorer, law_explorer
from gptcourse.model import GPTConfig
from gptcourse.scaling import SHARDED, ScalingLaw, device_memory

CHINCHILLA = ScalingLaw(E=1.69, A=406.4, alpha=0.34, B=410.7, beta=0.28)
OTHER = ScalingLaw(E=1.0, A=20.0, alpha=0.4, B=50.0, beta=0.4)


def text_of(explorer):
    return re.sub(r"<[^>]+>", " ", explorer.picture.value)


@pytest.mark.parametrize("strategy", SHARDED)
def test_every_setting_shows_what_a_device_must_hold(strategy):
    explorer = device_explorer()
    controls = explorer.controls
    for name, value in {"size": "13B", "strategy": strategy, "devices": 64, "batch": 2, "checkpointing": True}.items():
        controls[name].value = value
    memory = device_memory(GPTConfig.gpt3("13B"), 2, 64, strategy, True)
    total = sum(memory.values())
    assert f"13B on 64 devices with {strategy}: {total / 1e9:.3g} GB" in text_of(explorer)
    assert ("which fits" in text_of(explorer)) == (total <= 80e9)
    widths = [float(w) for w in re.findall(r'width="([\d.]+)" height="26.0"', explorer.picture.value)]
    assert widths == pytest.approx([size / max(total, 100e9) * 632 for size in memory.values()], abs=0.1)


def test_the_law_shows_the_best_size_of_the_budget():
    explorer = law_explorer({"Chinchilla": CHINCHILLA, "other": OTHER})
    explorer.controls["power"].value = 20.0
    for name, law in {"Chinchilla": CHINCHILLA, "other": OTHER}.items():
        explorer.controls["law"].value = name
        n, d = law.compute_optimal(1e20)
        assert f"({d / n:.3g} a parameter), loss {law.loss(n, d):.3f}" in text_of(explorer)
        assert f"floor is {law.E:.3f}" in text_of(explorer)


def test_the_dot_stands_at_the_lowest_point_of_the_curve():
    explorer = law_explorer({"Chinchilla": CHINCHILLA})
    points = [
        tuple(map(float, p.split(","))) for p in re.search(r'points="([^"]+)"', explorer.picture.value)[1].split()
    ]
    x, y = map(float, re.search(r'<circle cx="([\d.]+)" cy="([\d.]+)"', explorer.picture.value).groups())
    lowest = max(points, key=lambda point: point[1])  # SVG counts downwards
    assert (x, y) == pytest.approx(lowest, abs=0.1)


def test_what_is_above_the_picture_is_left_out_and_no_false_plateau_is_drawn():
    explorer = law_explorer({"Chinchilla": CHINCHILLA}, powers=(10, 24))
    for power in (10.0, 17.0, 24.0):
        explorer.controls["power"].value = power
        (curve,) = re.findall(r'points="([^"]+)"', explorer.picture.value)
        heights = [float(point.split(",")[1]) for point in curve.split()]
        lowest = heights.index(max(heights))
        assert 10 < len(heights) <= 81
        down, up = heights[: lowest + 1], heights[lowest:]
        assert all(a < b for a, b in pairwise(down)) and all(a > b for a, b in pairwise(up))


@pytest.mark.parametrize("powers", [(26, 12), (12, 12)])
def test_a_range_that_is_none_is_refused(powers):
    with pytest.raises(ValueError, match="a lowest power of ten below the highest"):
        law_explorer({"Chinchilla": CHINCHILLA}, powers=powers)
