"""The sliders for masks and rotary positions: their numbers against closed forms, their pictures as strings."""

import math
import re
from xml.etree import ElementTree

import pytest
import torch

from gptcourse.attention import causal_mask
from gptcourse.drawings import svg
from gptcourse.explorers import rotary_explorer, window_explorer
from gptcourse.explorers.attention import HEAD_SIZE, PATTERNS, TOKENS, reach


def drawings(explorer):
    return [ElementTree.fromstring(found) for found in re.findall(r"<svg.*?</svg>", explorer.picture.value, re.DOTALL)]


def n_blue(picture):
    return sum(path.get("d").count("M") for path in picture.iter("path") if path.get("fill") == svg.BLUE)


@pytest.mark.parametrize("window, layers", [(1, 3), (4, 1), (4, 3), (7, 2), (16, 4)])
def test_news_travels_a_window_less_one_in_every_banded_layer(window, layers):
    steps = reach([causal_mask(16, window=window)] * layers)
    assert [int(seen.sum()) for seen in steps] == [min(16, 1 + n * (window - 1)) for n in range(layers + 1)]
    assert all(seen[-1] for seen in steps)  # never farther than this, and never nothing


def test_reach_is_what_a_product_of_the_masks_says():
    masks = [causal_mask(9, window=2), causal_mask(9, window=5), causal_mask(9, window=3)]
    first, second, third = (mask.float() for mask in masks)
    assert torch.equal(reach(masks)[-1], (third @ second @ first)[-1] > 0)
    assert torch.equal(reach(masks)[1], masks[2][-1])  # the last layer's mask comes first


@pytest.mark.parametrize("window, layers", [(1, 1), (4, 3), (TOKENS, 6)])
def test_the_window_explorer_says_how_far_and_how_many_pairs(window, layers):
    explorer = window_explorer()
    explorer.controls["window"].value, explorer.controls["layers"].value = window, layers
    mask, steps = drawings(explorer)
    pairs = sum(min(n, window) for n in range(1, TOKENS + 1))
    reached = [min(TOKENS, 1 + n * (window - 1)) for n in range(layers + 1)]
    assert n_blue(mask) == pairs and n_blue(steps) == sum(reached)
    assert f"by {reached[-1]} of {TOKENS} tokens" in explorer.picture.value
    assert f"{layers * pairs} of {layers * TOKENS * (TOKENS + 1) // 2} pairs" in explorer.picture.value


def test_one_dense_layer_brings_everything_within_reach():
    explorer = window_explorer()
    explorer.controls["window"].value, explorer.controls["layers"].value = 2, 2
    assert f"by 3 of {TOKENS} tokens" in explorer.picture.value
    explorer.controls["pattern"].value = PATTERNS[1]
    assert f"by {TOKENS} of {TOKENS} tokens" in explorer.picture.value
    assert "layer 2 (dense)" in explorer.picture.value and "layer 1 (dense)" not in explorer.picture.value


def score(explorer):
    return float(re.search(r"score (-?[\d.]+)", explorer.picture.value)[1])


def test_the_score_depends_on_the_distance_alone():
    explorer = rotary_explorer()
    before = score(explorer)
    explorer.controls["both"].value = 150
    assert "query at place 157, key at place 154" in explorer.picture.value
    assert score(explorer) == before
    explorer.controls["key"].value = 5
    assert score(explorer) != before


@pytest.mark.parametrize("query, key", [(0, 0), (9, 4), (3, 60), (60, 0)])
def test_the_score_is_the_mean_cosine_of_the_angles(query, key):
    explorer = rotary_explorer()
    explorer.controls["query"].value, explorer.controls["key"].value = query, key
    speeds = [10_000 ** (-2 * i / HEAD_SIZE) for i in range(HEAD_SIZE // 2)]
    assert score(explorer) == pytest.approx(sum(math.cos((query - key) * s) for s in speeds) / len(speeds), abs=6e-4)


def test_a_hand_turns_by_its_own_speed():
    explorer = rotary_explorer()

    def angles():
        lines = [line for line in drawings(explorer)[0].iter("line") if line.get("stroke") == svg.BLUE]
        ends = [[float(line.get(name)) for name in ("x1", "y1", "x2", "y2")] for line in lines]
        return torch.tensor([math.atan2(y1 - y2, x2 - x1) for x1, y1, x2, y2 in ends])

    explorer.controls["query"].value = 0
    start = angles()
    explorer.controls["query"].value = 2
    speeds = torch.tensor([10_000 ** (-2 * i / HEAD_SIZE) for i in range(HEAD_SIZE // 2)])
    torch.testing.assert_close(angles() - start, 2 * speeds, atol=0.01, rtol=0)
