"""The drawings of notebook 01: every text within the picture, every number in the words for who cannot see it."""

import math

import pytest
from pictures import assert_all_lies_within, assert_says

from gptcourse.drawings import first_model as drawings

WORDS = ["the", "king", "loves", "queen"]
COUNTS = [[0, 1, 0, 1], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
SHARES = [[0, 0.5, 0, 0.5], [0, 0, 1, 0], [1, 0, 0, 0], [0.25] * 4]
ROUNDS = [("letters", [list("then"), list("she")]), ("h + e", [["t", "he", "n"], ["s", "he"]])]
STEPS = {f"{i} step": f"note -{i}" for i in range(1, 7)}

DRAWN = {
    "text_to_ids": (drawings.text_to_ids("a <b\n", [5, 0, 9, 7, 1]), ["a 5", "␣ 0", "< 9", "⏎ 1"]),
    "next_token": (drawings.next_token("the king", ["s", "\n"], [0.5, 0.125], 0.375), ["s 0.500", "others 0.375"]),
    "surprise": (drawings.surprise([("coin", 0.5), ("sure", 0.95)]), ["coin p = 0.5, loss 0.693", "loss 0.051"]),
    "bigram_table": (drawings.bigram_table(WORDS, COUNTS, SHARES), ["king 1 (0.50)", "after queen: the 0 (0.25)"]),
    "interpolation": (
        drawings.interpolation(WORDS, SHARES[0], SHARES[3], 0.5, [0.125, 0.375, 0.125, 0.375]),
        ["king: 0.50 × 0.500 + 0.50 × 0.250 = 0.375"],
    ),
    "one_weight": (
        drawings.one_weight(0.0, -0.5, 1.0, lambda w: math.log(1 + math.exp(-w))),
        ["0.693", "slope -0.500", "gives 0.313"],
    ),
    "training_example": (drawings.training_example(WORDS[:2], WORDS[1:3], [1.386, 0.5]), ["the then king 1.39"]),
    "loop": (drawings.loop(STEPS), ["1 step: note -1", "6 step: note -6"]),
    "merges": (drawings.merges(ROUNDS), ["letters: t|h|e|n s|h|e", "h + e: t|he|n s|he"]),
    "never_seen": (drawings.never_seen([0.0, 0.25], [1, 76]), ["2-grams 25.0%"]),
}


@pytest.mark.parametrize("name", DRAWN)
def test_every_number_stands_in_the_words(name):
    assert_says(*DRAWN[name])


@pytest.mark.parametrize("name", DRAWN)
def test_every_text_and_part_lies_within_the_picture(name):
    assert_all_lies_within(DRAWN[name][0])


def test_what_a_round_makes_is_marked_in_that_round_alone():
    svg = drawings.merges(ROUNDS).svg()
    assert svg.count(f'fill="{drawings.ORANGE}"') == 2  # he, in two words


def test_every_drawing_is_tested():
    public = {
        name for name, thing in vars(drawings).items() if callable(thing) and thing.__module__ == drawings.__name__
    }
    assert {name for name in public if not name.startswith("_")} == set(DRAWN)
