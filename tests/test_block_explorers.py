"""The sliders of notebook 02: their numbers against models that are built, and their pictures as strings."""

import math
import re
from xml.etree import ElementTree

import pytest
import torch
from torch.nn import functional as F

from gptcourse.drawings import svg
from gptcourse.explorers import bend_explorer, bpe_explorer, initialisation_explorer
from gptcourse.explorers.activations import ACTIVATIONS, ALIKE, BLOCKS, RULE, STDS, WIDTHS, straight_line
from gptcourse.explorers.bpe import LONGEST
from gptcourse.interpretability import expected_spread, gelu
from gptcourse.tokenizers import BPETokenizer

TEXT = "the cat and the other cat sat there; the hat that they had was that of another " * 4


def drawing(explorer):
    return ElementTree.fromstring(re.search(r"<svg.*?</svg>", explorer.picture.value, re.DOTALL)[0])


def texts(explorer):
    return ["".join(element.itertext()) for element in drawing(explorer).iter("text")]


def curves(explorer):
    """Return the points of each curve, in units of the drawing."""
    lines = [line.get("points").split() for line in drawing(explorer).iter("polyline")]
    return [[tuple(map(float, point.split(","))) for point in line] for line in lines]


# --- the initialisation


def test_the_initialisation_explorer_says_and_draws_what_the_formula_gives():
    explorer = initialisation_explorer()
    explorer.controls["blocks"].value, explorer.controls["width"].value = 12, 256
    growth = {name: expected_spread(12, 256, 0.02, name == RULE) for name in (ALIKE, RULE)}
    ends = [f"{spreads[-1] / spreads[0]:.1f}" for spreads in growth.values()]
    assert f"{ends[0]} with all matrices at 0.02, {ends[1]} with writers at 0.0041" in explorer.picture.value
    assert [len(curve) for curve in curves(explorer)] == [13, 13]
    assert {"1", "10", "100", "1,000", "96"} <= set(texts(explorer))


def test_no_setting_leaves_the_frame_of_the_initialisation_explorer():
    largest = expected_spread(BLOCKS[-1], WIDTHS[-1], STDS[-1], scaled=False)
    assert largest[-1] / largest[0] < 1_000
    explorer = initialisation_explorer()
    before = curves(explorer)
    explorer.controls["blocks"].value = 96
    after = curves(explorer)
    assert all(long[0] == short[0] for long, short in zip(after, before, strict=True))  # the axes stand still
    assert max(x for curve in after for x, _ in curve) == pytest.approx(svg.WIDTH - 14)


# --- the bends


def test_the_nearest_line_is_that_of_least_squares():
    x = torch.randn(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for function in ACTIVATIONS.values():
        share, slope, height = straight_line(function, 0.7)
        y = function(0.7 * x)
        design = torch.stack((0.7 * x, torch.ones_like(x)), dim=1)
        fitted = torch.linalg.lstsq(design, y[:, None]).solution[:, 0]
        assert (slope, height) == pytest.approx(tuple(fitted.tolist()), abs=0.01)
        assert share == pytest.approx(1 - ((y - design @ fitted).var() / y.var()).item(), abs=0.01)


def test_what_a_line_explains_of_relu_is_known_and_does_not_depend_on_the_spread():
    for spread in (0.05, 1.0, 10.0):
        share, slope, height = straight_line(F.relu, spread)
        assert share == pytest.approx(0.25 / (0.5 - 0.5 / math.pi), abs=1e-4)
        assert (slope, height / spread) == pytest.approx((0.5, 1 / math.sqrt(2 * math.pi)), abs=1e-4)


def test_gelu_is_nearly_a_line_for_small_inputs_and_nearly_relu_for_large_ones():
    shares = [straight_line(gelu, spread)[0] for spread in (0.05, 0.2, 0.5, 1.0)]
    assert shares == sorted(shares, reverse=True) and shares[0] > 0.99
    assert straight_line(gelu, 50.0)[0] == pytest.approx(straight_line(F.relu, 50.0)[0], abs=0.01)


def test_the_bend_explorer_says_the_share_and_draws_function_and_line():
    explorer = bend_explorer()
    explorer.controls["spread"].value = 0.2
    assert f"explains {svg.percent(straight_line(gelu, 0.2)[0])} of" in explorer.picture.value
    line, bend = (torch.tensor(curve) for curve in curves(explorer))
    middle = (line[0] + line[-1]) / 2
    assert len(line) == len(bend) == 121
    assert line[60].tolist() == pytest.approx(middle.tolist(), abs=0.2)
    assert abs((bend[60] - (bend[0] + bend[-1]) / 2)[1]) > 10  # units of the drawing
    assert "nearest line" in texts(explorer) and "GELU (GPT-2, GPT-3)" in texts(explorer)


# --- byte pairs


@pytest.fixture(scope="module")
def largest():
    return BPETokenizer.train(TEXT, 285)


def pieces(explorer):
    return re.findall(r"<span[^>]*>(.*?)</span>", explorer.picture.value)


def test_the_pieces_are_those_of_a_tokenizer_trained_with_that_vocabulary(largest):
    explorer = bpe_explorer(largest, "that other hat")
    for size in (259, 270, 285):
        explorer.controls["vocabulary"].value = size
        trained = BPETokenizer.train(TEXT, size)
        ids = trained.encode("that other hat")
        assert pieces(explorer) == [svg.visible(trained.decode([i])) for i in ids]
        assert f"{size} tokens in the vocabulary  ·  {len(ids)} pieces for 14 characters" in explorer.picture.value
    assert f"the newest token is “{svg.visible(trained.decode([284]))}”" in explorer.picture.value


def test_what_is_typed_is_shown_as_text_and_may_be_anything(largest):
    explorer = bpe_explorer(largest)
    explorer.controls["text"].value = "<script>alert('&amp;')</script>"
    assert "<script>" not in explorer.picture.value and "".join(pieces(explorer)).startswith("&lt;script&gt;")
    for typed in ("é", "😀", "\x00", " ", "<|end|>"):
        explorer.controls["text"].value = typed
        drawing(explorer)
        assert f"{len(typed)} characters" in explorer.picture.value
    explorer.controls["text"].value = ""
    assert "Type a sentence." in explorer.picture.value
    explorer.controls["text"].value = "half a character: \ud83d"
    assert "holds half of a character" in explorer.picture.value


def test_a_long_text_is_cut_and_says_so(largest):
    explorer = bpe_explorer(largest, "the " * 180)
    assert f"for {LONGEST} characters" in explorer.picture.value
    assert f"The first {LONGEST} of your 720 characters are read and shown." in explorer.picture.value
    explorer.controls["text"].value = "the"
    assert "The first" not in explorer.picture.value
