"""The threshold's slider: hits and false positives as counted by hand, and bars for every text."""

import re

import pytest

from gptcourse.explorers import threshold_explorer

RISKY, ORDINARY = [3.0, 5.0, 5.5, 8.0], [-4.0, -1.0, 0.5, 2.0, 4.0]


@pytest.mark.parametrize("threshold", [-4.2, -3.0, 1.1, 3.5, 5.2, 8.1])
def test_hits_and_false_positives_are_counted(threshold):
    explorer = threshold_explorer(RISKY, ORDINARY)
    explorer.controls["threshold"].value = threshold
    threshold = explorer.controls["threshold"].value
    hits, false = (sum(score > threshold for score in scores) for scores in (RISKY, ORDINARY))
    text = re.sub("<[^>]+>", " ", explorer.picture.value)
    assert f"{hits} of 4 risky texts ({hits / 4:.0%}" in text
    assert f"{false} of 5 ordinary ones ({false / 5:.1%}" in text


def test_a_rare_risk_makes_most_alarms_false():
    explorer = threshold_explorer(RISKY, ORDINARY)
    explorer.controls["threshold"].value = 3.5  # stops 3 of 4 risky texts and 1 of 5 ordinary ones
    assert "of 10,000 messages 4,750 are stopped, and 3,750 of these are risky: precision 79%" in explorer.picture.value
    explorer.controls["base_rate"].value = 0.01
    assert "of 10,000 messages 2,055 are stopped, and 75 of these are risky: precision 4%" in explorer.picture.value
    explorer.controls["threshold"].value = explorer.controls["threshold"].max
    assert "0 are stopped, and 0 of these are risky" in explorer.picture.value
    assert "precision" not in explorer.picture.value


def test_both_ends_of_the_slider_stop_all_and_nothing():
    explorer = threshold_explorer(RISKY, ORDINARY)
    slider = explorer.controls["threshold"]
    slider.value = slider.min
    assert "4 of 4 risky" in explorer.picture.value and "5 of 5 ordinary" in explorer.picture.value
    slider.value = slider.max
    assert "0 of 4 risky" in explorer.picture.value and "0 of 5 ordinary" in explorer.picture.value
    assert explorer.picture.value.count("<rect") == 4 + 5  # no two share a bin here


@pytest.mark.parametrize("scores", [[], [1.0, float("nan")], [float("inf")]])
def test_scores_that_cannot_be_drawn_are_refused(scores):
    with pytest.raises(ValueError, match="finite score"):
        threshold_explorer(RISKY, scores)


def test_equal_scores_are_shown_too():
    assert "nan" not in threshold_explorer([2.0], [2.0]).picture.value


def test_the_precision_is_that_of_the_shares_and_not_of_rounded_numbers():
    explorer = threshold_explorer([1.0] * 38 + [9.0] * 2, [0.0] * 399 + [9.0])
    explorer.controls["threshold"].value = 5.0
    explorer.controls["base_rate"].value = 0.001
    precision = 0.001 * 0.05 / (0.001 * 0.05 + 0.999 / 400)  # 2 %, where none of 25 stopped ones would be 0 %
    assert f"precision {precision:.0%}" in explorer.picture.value and precision > 0.015
