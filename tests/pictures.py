"""What the tests of the drawings share: where the texts and boxes of a drawing lie."""

import re
from base64 import b64decode
from html import unescape

LETTER = 0.62  # width of a letter of the widest font, in sizes
TEXT = re.compile(
    r'<text x="([-\d.]+)" y="([-\d.]+)" text-anchor="(\w+)" font-size="([\d.]+)"([^>]*)>(?:<[^>]*>)?([^<]*)</text>'
)


def texts(drawing):
    """Return (left, right, top, bottom, string) of each text; letters are taken for a little narrower than they are."""
    for x, y, anchor, size, style, string in TEXT.findall(drawing.svg()):
        x, y, size = float(x), float(y), float(size)
        width = len(string.replace("&quot;", " ")) * size * (0.58 if "font-family" in style else 0.5)
        left = x - {"start": 0, "middle": width / 2, "end": width}[anchor]
        yield left, left + width, y - 0.7 * size, y, string


def assert_texts_lie_apart(drawing, at_least):
    """Hold that the drawing has so many texts, all of them in the picture and none over another."""
    found = list(texts(drawing))
    assert len(found) >= at_least
    for left, right, top, bottom, string in found:
        assert left >= 0 and right <= drawing.width and top >= 0 and bottom <= drawing.height, string
    for i, (left, right, top, bottom, string) in enumerate(found):
        for other in found[i + 1 :]:
            apart = right <= other[0] or other[1] <= left or bottom <= other[2] or other[3] <= top
            assert apart, (string, other[-1])


def assert_says(drawing, parts):
    """Hold that the words for who cannot see the drawing contain these parts, and the SVG these words."""
    assert all(part in drawing.description for part in parts), drawing.description
    assert drawing.description in unescape(drawing.svg()) and "nan" not in drawing.svg()


def assert_all_lies_within(drawing):
    """Hold that every text, its letters taken for wide ones, and every box lies within the picture."""
    labels = r'<text x="([-\d.]+)" y="([-\d.]+)" text-anchor="(\w+)" font-size="(\d+)"[^>]*>([^<]*)<'
    for x, y, anchor, size, string in re.findall(labels, drawing.svg()):
        wide = LETTER * int(size) * len(unescape(string))
        left = float(x) - {"start": 0, "middle": wide / 2, "end": wide}[anchor]
        assert left >= -2 and left + wide <= drawing.width + 2, string
        assert int(size) * 0.7 <= float(y) <= drawing.height, string
    boxes = re.findall(r'<rect x="([-\d.]+)" y="([-\d.]+)" width="([-\d.]+)" height="([-\d.]+)"', drawing.svg())
    for x, y, width, height in [map(float, box) for box in boxes]:
        assert x >= 0 and y >= 0 and x + width <= drawing.width and y + height <= drawing.height


def svg_of(html):
    """Return the SVG in the HTML of an image."""
    (data,) = re.findall(r'src="data:image/svg\+xml;base64,([^"]*)"', html)
    return b64decode(data).decode()
