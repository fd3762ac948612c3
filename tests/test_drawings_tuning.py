"""The drawing of notebook 05: every text within the picture, every question in the words for who cannot see it."""

from pictures import assert_all_lies_within, assert_says

from gptcourse.drawings import tuning as drawings


def test_the_tree_says_every_question_and_what_it_asks_for():
    drawing = drawings.decision_tree()
    assert_says(drawing, [question for question, *_ in drawings.QUESTIONS] + [drawings.LAST[0]])
    assert_all_lies_within(drawing)
