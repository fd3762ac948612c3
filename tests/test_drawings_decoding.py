"""The drawings of notebook 07: their words hold their numbers, and nothing lies outside."""

import re

from gptcourse.drawings import decoding


def inside(drawing):
    numbers = [float(x) for x in re.findall(r'\bx[12]?="([\d.-]+)"', drawing.svg())]
    return all(0 <= x <= drawing.width for x in numbers)


def test_the_ranks_that_each_rule_keeps():
    probabilities = [2.0**-i for i in range(1, 60)]
    drawing = decoding.kept_ranks(probabilities, {"top-k 3": [1, 2, 3], "typical 0.5": [4, 5, 6, 7]})
    assert "top-k 3 keeps 3, from rank 1 to 3" in drawing.description
    assert "typical 0.5 keeps 4, from rank 4 to 7" in drawing.description
    assert inside(drawing) and drawing.svg().count("stroke-width") >= 59


def test_the_mask_and_the_truth():
    drawing = decoding.masked_choice([" the egg", " a man"], [0.1, 0.05], [1e-5, 0.03], [0.66, 0.34], [0.0008, 0.9992])
    for number in ("10.0%", "1e-05", "66.0%", "99.9%"):
        assert number in drawing.description and number in drawing.svg()
    assert inside(drawing)
