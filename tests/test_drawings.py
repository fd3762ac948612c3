"""The drawings of notebooks 04 to 06: all within the picture, every number in the words for who cannot see it."""

import pytest
from pictures import assert_all_lies_within, assert_says

from gptcourse.drawings import training as drawings
from gptcourse.drawings import tune_own, tuning

DRAWN = {
    "loop": (drawings.loop(), ["zero_grad (forget old ones), then forward"]),
    "adam": (
        drawings.adam([0.5, -0.1], [0.05, 0.035], [0.0125, 0.012375]),
        ["gradient 0.50, -0.10", "m corrected 0.500, 0.184", "root of v corrected 0.500, 0.356", "1.00, 0.52"],
    ),
    "clipping": (drawings.clipping(3.25, 1.0), ["length 3.25 is shortened to 1.00"]),
    "short": (drawings.clipping(0.5, 1.0), ["length 0.50"]),
    "killed_run": (drawings.killed_run(20, [5, 10, 15], 12), ["killed after step 12, goes on from step 10"]),
    "induction": (drawings.induction(list("abcabc"), 3), ["the second 'a' looks at 'b'"]),
    "sick_runs": (
        drawings.sick_runs({"A": [4.3, 2.4], "B": [4.3, 9.0]}, 6, (2.5, "pairs")),
        ["A: from 4.30 to 2.40", "pairs: 2.50"],
    ),
    "decision_tree": (tuning.decision_tree(), [question for question, *_ in tuning.QUESTIONS] + [tuning.LAST[0]]),
    "procedure": (tune_own.procedure(), ["7 confirm (fresh seeds, fresh part), 8 record", "From 5 back to 4"]),
    "trunk": (
        tune_own.trunk((100, 200), 0.25),
        ["a cool-down from step 100 to 125", "a cool-down from step 200 to 250"],
    ),
}


@pytest.mark.parametrize("name", DRAWN)
def test_every_number_stands_in_the_words(name):
    assert_says(*DRAWN[name])


@pytest.mark.parametrize("name", DRAWN)
def test_every_text_and_box_lies_within_the_picture(name):
    assert_all_lies_within(DRAWN[name][0])
