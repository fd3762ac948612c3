"""The drawings of a notebook: every text within the picture, every number in the words for who cannot see it."""

import re
from html import unescape

import pytest

from gptcourse.drawings import gpt_block as drawings

LETTER = 0.62  # width of a letter of the widest font, in sizes
DRAWN = {
    "stream": (
        drawings.stream([4.0, 6.1, 9.2], [("attention", 3.2), ("MLP", 5.0)]),
        ["length 4.0", "adds a vector of length 3.2"],
    ),
    "norm": (drawings.norm([1, 2, 6], [-2, -1, 3], [-0.93, -0.46, 1.39], [0, 1, 2]), ["-0.93, -0.46, 1.39"]),
    "mlp": (drawings.mlp([0.5, -1], [0.1] * 8, [0.2] * 8, [0.3, 0.4]), ["0.50, -1.00", "0.30, 0.40"]),
    "block": (drawings.block(), ["norm and attention add to the stream"]),
    "tied": (drawings.tied("king", {"the": -1.2, "king": 3.1}), ["the -1.2, king 3.1"]),
    "whole": (drawings.whole(4, 128, 50_257, 1_024), ["width 128, 4 blocks"]),
    "sizes": (drawings.sizes({"tables": 10, "MLP": 30}, "a GPT"), ["tables 10, MLP 30; 40 in all"]),
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
