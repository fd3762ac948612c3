"""The drawings of a notebook: every text within the picture, every number in the words for who cannot see it."""

import re
from html import unescape

import pytest

from gptcourse.drawings import training as drawings

LETTER = 0.62  # width of a letter of the widest font, in sizes
DRAWN = {
    "loop": (drawings.loop(), ["zero_grad (forget old ones), then forward"]),
    "adam": (
        drawings.adam([0.5, -0.1], [0.05, 0.03], [0.01, 0.02], [1.0, 0.4]),
        ["gradient 0.50, -0.10", "1.00, 0.40"],
    ),
    "clipping": (drawings.clipping(3.25, 1.0), ["length 3.25 is shortened to 1.00"]),
    "short": (drawings.clipping(0.5, 1.0), ["length 0.50"]),
    "killed_run": (drawings.killed_run(20, [5, 10, 15], 12), ["killed after step 12, goes on from step 10"]),
    "induction": (drawings.induction(list("abcabc"), 3), ["the second 'a' looks at 'b'"]),
    "sick_runs": (drawings.sick_runs({"A": [4.3, 2.4], "B": [4.3, 9.0]}, 6), ["A: from 4.30 to 2.40"]),
}


@pytest.mark.parametrize("name", DRAWN)
def test_every_number_stands_in_the_words(name):
    drawing, said = DRAWN[name]
    assert all(part in drawing.description for part in said), drawing.description
    assert drawing.description in unescape(drawing.svg()) and "nan" not in drawing.svg()


@pytest.mark.parametrize("name", DRAWN)
def test_every_text_and_box_lies_within_the_picture(name):
    drawing, _ = DRAWN[name]
    texts = r'<text x="([-\d.]+)" y="([-\d.]+)" text-anchor="(\w+)" font-size="(\d+)"[^>]*>([^<]*)<'
    for x, y, anchor, size, string in re.findall(texts, drawing.svg()):
        wide = LETTER * int(size) * len(unescape(string))
        left = float(x) - {"start": 0, "middle": wide / 2, "end": wide}[anchor]
        assert left >= -2 and left + wide <= drawing.width + 2, string
        assert int(size) * 0.7 <= float(y) <= drawing.height, string
    boxes = re.findall(r'<rect x="([-\d.]+)" y="([-\d.]+)" width="([-\d.]+)" height="([-\d.]+)"', drawing.svg())
    for x, y, width, height in [map(float, box) for box in boxes]:
        assert x >= 0 and y >= 0 and x + width <= drawing.width and y + height <= drawing.height
