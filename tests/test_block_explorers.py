"""The sliders of notebook 02: their numbers against models that are built, and their pictures as strings."""

import math
import re
from xml.etree import ElementTree

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gptcourse.drawings import svg
from gptcourse.explorers import bend_explorer, bpe_explorer, initialisation_explorer
from gptcourse.explorers.activations import (
    ACTIVATIONS,
    ALIKE,
    BLOCKS,
    RULE,
    STDS,
    WIDTHS,
    expected_spread,
    gelu,
    mean_product,
    straight_line,
)
from gptcourse.explorers.bpe import LONGEST
from gptcourse.model import GPT, GPTConfig
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
    grounds = set(re.findall(r'<span style="background:([^;]*);', explorer.picture.value))
    assert grounds == {f"color-mix(in srgb,{color} 27%,transparent)" for color in svg.COLORS}


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


# ---- The mean-field theory of the initialisation


def measured_spread(n_layer, width, std, scaled):
    """Build an untrained model and return the standard deviation of its stream after each block."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(97, 32, width, n_layer, n_head=width // 32, initializer_range=std))
    if not scaled:
        for block in model.h:
            for writer in (block.attn.c_proj, block.mlp.c_proj):
                nn.init.normal_(writer.weight, std=std)
    with torch.inference_mode():
        x = model.wte(torch.randint(97, (4, 32))) + model.wpe.weight
        spreads = [x.std().item()]
        for block in model.h:
            x = block(x)[0]
            spreads.append(x.std().item())
    return spreads


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("n_layer, width, std", [(48, 128, 0.02), (6, 512, 0.02), (6, 256, 0.04), (24, 64, 0.01)])
def test_the_formula_gives_the_stream_of_a_model_that_is_built(n_layer, width, std, scaled):
    expected, measured = (f(n_layer, width, std, scaled) for f in (expected_spread, measured_spread))
    assert expected == pytest.approx(measured, rel=0.15)  # one draw of the weights strays by that much


def test_the_formula_holds_roughly_at_the_ends_of_the_sliders_too():
    for scaled in (False, True):
        expected, measured = (f(2, 1024, 0.04, scaled) for f in (expected_spread, measured_spread))
        assert expected == pytest.approx(measured, rel=0.2)


def test_with_the_rule_the_end_is_the_same_at_every_depth_but_not_at_every_width():
    def growth(n_layer, width, scaled):
        spreads = expected_spread(n_layer, width, 0.02, scaled)
        return spreads[-1] / spreads[0]

    assert growth(96, 256, scaled=True) == pytest.approx(growth(6, 256, scaled=True), rel=0.05)
    assert growth(96, 256, scaled=False) > 3 * growth(6, 256, scaled=False)
    assert growth(24, 1024, scaled=True) > 5 * growth(24, 64, scaled=True)


@pytest.mark.parametrize("correlation", [0.0, 0.6, 1.0])
def test_the_mean_product_is_that_of_drawn_inputs(correlation):
    generator = torch.Generator().manual_seed(0)
    z, other = torch.randn(2, 400_000, generator=generator, dtype=torch.float64)
    partner = correlation * z + math.sqrt(1 - correlation**2) * other
    drawn = (gelu(0.8 * z) * gelu(0.8 * partner)).mean().item()
    assert mean_product(gelu, 0.8)(correlation) == pytest.approx(drawn, rel=0.02)
