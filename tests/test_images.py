"""What is drawn is shown as an image that survives an untrusted notebook and follows a light or a dark page."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib import colors
from pictures import svg_of

from gptcourse import plots
from gptcourse.drawings import svg
from gptcourse.drawings.diagram import Diagram
from gptcourse.images import image

MAP = np.tril(np.ones((3, 3)))
FIGURES = {
    "curves": lambda: plots.loss_curves([1, 2], [3.0, 2.0], [2], [2.5], floor=(1.0, "floor")),
    "levels": lambda: plots.lines([1, 2], {"a": [3, 4]}, title="t", x_label="x", y_label="y", levels={"4-gram": 3.5}),
    "heat map": lambda: plots.heat_map(MAP, ["a", "b", "c"]),
}


def shown(figure, monkeypatch):
    """Return what a notebook shows of a figure."""
    bundles = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: bundles.append(bundle))
    figure._ipython_display_()
    (bundle,) = bundles
    return bundle


@pytest.fixture(params=FIGURES)
def bundle(request, monkeypatch):
    return shown(FIGURES[request.param](), monkeypatch)


def test_an_image_holds_the_svg_whole_with_the_inks_of_both_schemes():
    drawn = svg.bars([("<b>", 0.5, 0.25)], description='say "now"', headings=("a", "b"))
    html = image(drawn, 'say "now"')
    assert re.fullmatch(
        r'<img alt="say &quot;now&quot;" style="[^"]*" src="data:image/svg\+xml;base64,[\w+/=]+">', html
    )
    inside = svg_of(html)
    assert ElementTree.fromstring(inside).tag == "{http://www.w3.org/2000/svg}svg"
    style = re.search("<style>.*?</style>", inside)[0]
    assert inside.replace(style, "").replace(' xmlns="http://www.w3.org/2000/svg"', "") == drawn
    light, dark = zip(*re.findall(r"light-dark\((#\w+),(#\w+)\)", style), strict=True)
    assert contrast(*light) >= 7 and contrast(*dark) >= 7


@pytest.mark.parametrize("inks", svg.INKS)
def test_letters_in_any_colour_can_be_read_on_a_light_and_on_a_dark_page(inks):
    light, dark = inks
    assert contrast(light, "#ffffff") >= 4.5 and contrast(dark, "#111111") >= 4.5  # WCAG 2.2, 1.4.3 (AA)


@pytest.mark.parametrize(("ink", "page"), [("#1f1f1f", "#ffffff"), ("#e0e0e0", "#111111")])
def test_pale_letters_can_be_read_too(ink, page):
    pairs = zip(colors.to_rgb(ink), colors.to_rgb(page), strict=True)
    assert contrast([ground + (full - ground) * svg.PALE for full, ground in pairs], page) >= 4.5


def contrast(ink, ground):
    """Return the contrast of two colours (WCAG 2.2, 1.4.3)."""
    light, dark = sorted((luminance(colors.to_rgb(color)) for color in (ink, ground)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(rgb):
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def test_a_drawing_is_an_image_and_its_words():
    drawing = Diagram(40, 30, "two words")
    drawing.text(20, 20, "king")
    bundle = drawing._repr_mimebundle_()
    assert bundle["text/plain"] == "two words" and ">king<" in svg_of(bundle["text/html"])


def test_a_figure_has_the_ink_of_its_page_and_no_ground(bundle):
    whole = svg_of(bundle["text/html"])
    ElementTree.fromstring(whole)
    drawn = whole.replace(re.search("<style>:root.*?</style>", whole)[0], "")
    assert "currentColor" in drawn
    assert not re.search(r"(#000000|#ffffff|#555555|white|black)", drawn)  # these would vanish on one of the two pages


def test_a_figure_says_in_words_what_it_shows(monkeypatch):
    words = "The loss falls as the model trains. step. loss (nats per token). training. validation. floor"
    bundle = shown(FIGURES["curves"](), monkeypatch)
    assert bundle["text/plain"] == words and f'alt="{words}"' in bundle["text/html"]


def test_the_same_figure_is_the_same_text_each_time():
    first, second = (plots._as_svg(FIGURES["heat map"]()) for _ in range(2))
    assert first == second


def test_a_figure_in_a_file_keeps_its_white_ground_after_it_was_shown(tmp_path):
    figure = FIGURES["curves"]()
    figure.savefig(tmp_path / "before.png")
    plots._as_svg(figure)
    figure.savefig(tmp_path / "after.png")
    assert (tmp_path / "before.png").read_bytes() == (tmp_path / "after.png").read_bytes()
