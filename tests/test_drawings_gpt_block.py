"""The drawings of notebook 03: they hold the numbers that they are given, in the picture and in words."""

import pytest
import torch
from pictures import assert_texts_lie_apart, texts

from gptcourse.drawings import gpt_block as drawings
from gptcourse.model import GPT, GPTConfig

X, ATTENDED, COMPUTED = (1.0, 2.0, 6.0), (0.5, -1.25, 0.0), (0.25, 0.75, -2.0)
CONFIG = GPTConfig(2_048, 256, 256, 6, 8)

DRAWN = {
    "residual": drawings.residual(X, ATTENDED, COMPUTED),
    "norm": drawings.norm({"x": X, "minus the mean": (-2.0, -1.0, 3.0), "divided": (-0.93, -0.46, 1.39)}),
    "norm_places": drawings.norm_places(),
    "mlp": drawings.mlp((1.0, 0.0), (1.0, 0.0), (1.0, 0.0), (1.0,)),
    "tying": drawings.tying("king", X, {"the": 0.25, "king": 3.5, "loves": -1.25}),
    "names": drawings.names([("transformer.h.0.attn.c_attn.weight", (256, 768), "h.0.attn.c_attn.weight", (768, 256))]),
    "block": drawings.block(256, 8),
    "whole": drawings.whole(CONFIG),
}


@pytest.mark.parametrize("name", DRAWN)
def test_texts_stay_in_the_picture_and_apart(name):
    assert_texts_lie_apart(DRAWN[name], at_least=5)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("residual", [*X, *ATTENDED, *COMPUTED, 1.75, 1.5, 4.0]),
        ("norm", [*X, -0.93]),
        ("mlp", [1.0]),
        ("tying", [0.25, 3.5, -1.25]),
    ],
)
def test_numbers_stand_in_the_picture_and_in_its_words(name, numbers):
    for number in numbers:
        assert f"{number:.2f}" in DRAWN[name].description
        assert f">{number:.2f}<".replace("-", "−") in DRAWN[name].svg()


def test_the_parameters_in_the_whole_drawing_are_all_of_them():
    counted = [string for *_, string in texts(DRAWN["whole"]) if string.replace(",", "").isdigit()]
    with torch.device("meta"):
        model = GPT(CONFIG)
    assert sum(int(n.replace(",", "")) for n in counted) == sum(p.numel() for p in model.parameters())
