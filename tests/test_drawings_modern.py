"""The drawing of notebook 12."""

from pictures import assert_all_lies_within, assert_says, assert_texts_lie_apart

from gptcourse.drawings.modern import ROWS, two_blocks


def test_the_two_blocks_say_what_has_changed():
    drawing = two_blocks()
    assert_says(drawing, [f"{part}: {old}, now {new}" for part, old, new, _ in ROWS])
    assert_texts_lie_apart(drawing, 18)
    assert_all_lies_within(drawing)
