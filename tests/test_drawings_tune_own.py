"""The drawings of notebook 06: every text within the picture, every number in the words for who cannot see it."""

import pytest
from pictures import assert_all_lies_within, assert_says

from gptcourse.drawings import tune_own as drawings

DRAWN = {
    "procedure": (drawings.procedure(), ["7 confirm (fresh seeds, fresh part), 8 record", "From 5 back to 4"]),
    "trunk": (
        drawings.trunk((100, 200), 0.25),
        ["a cool-down from step 100 to 125", "a cool-down from step 200 to 250"],
    ),
}


@pytest.mark.parametrize("name", DRAWN)
def test_every_number_stands_in_the_words(name):
    assert_says(*DRAWN[name])


@pytest.mark.parametrize("name", DRAWN)
def test_every_text_and_box_lies_within_the_picture(name):
    assert_all_lies_within(DRAWN[name][0])
