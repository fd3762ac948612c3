"""The drawings of notebook 02: they hold the numbers that they are given, in the picture and in words."""

import re

import pytest
import torch
from pictures import assert_texts_lie_apart

from gptcourse.drawings import attention as drawings

WORDS, VOCABULARY = ["the", "king", "loves", "the", "queen"], ["the", "king", "loves", "queen"]
TABLE = torch.tensor([[0.1, 0.0, 0.9], [1.2, 0.3, 0.1], [0.2, 1.4, 0.0], [1.1, 0.5, -0.2]])
IDS = torch.tensor([0, 1, 2, 0, 3])
X = TABLE[IDS]
Q, K, V = X.flip(1) * 2, X * 3 - 1, X.roll(1, 1)
SCORES = Q @ K.T
FUTURE = torch.ones(5, 5, dtype=torch.bool).triu(1)
WEIGHTS = SCORES.masked_fill(FUTURE, -torch.inf).softmax(-1)
HEADS = torch.stack([(Q[4, h] * K[:, h]).softmax(0) for h in range(3)])  # (H, S)
MATRICES = [torch.eye(3), 2 * torch.eye(3), torch.ones(3, 3)]

DRAWN = {
    "lookup": drawings.lookup(WORDS, IDS, VOCABULARY, TABLE),
    "one_query": drawings.one_query(WORDS, 4, Q[4], K, V, SCORES[4], WEIGHTS[4]),
    "all_queries": drawings.all_queries(WORDS, Q, K, V, SCORES, WEIGHTS),
    "projections": drawings.projections("queen", X[4], MATRICES, [X[4] @ matrix for matrix in MATRICES]),
    "mask": drawings.mask(WORDS, SCORES, WEIGHTS),
    "positions": drawings.positions(WORDS, X, K / 10),
    "heads": drawings.heads(WORDS, 4, Q, K, V, HEADS, (HEADS * V.T).sum(1)),
    "cutting": drawings.cutting(WORDS, Q, 3),
    "cache": drawings.cache(WORDS, Q[4], K, V, WEIGHTS[4]),
    "one_layer": drawings.one_layer("king", 64, 8, 76),
}
OUTPUT = WEIGHTS[4] @ V


@pytest.mark.parametrize("name", DRAWN)
def test_texts_stay_in_the_picture_and_apart(name):
    assert_texts_lie_apart(DRAWN[name], at_least=6)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("lookup", [*TABLE[3].tolist()]),
        ("one_query", [*SCORES[4].tolist(), *WEIGHTS[4].tolist(), *OUTPUT.tolist()]),
        ("all_queries", [*SCORES.flatten().tolist(), *OUTPUT.tolist()]),
        ("projections", [*(X[4] @ MATRICES[1]).tolist()]),
        ("mask", [*WEIGHTS[~FUTURE].tolist()]),
        ("positions", [*(X + K / 10)[2].tolist()]),
        ("heads", [*HEADS.flatten().tolist()]),
        ("cache", [*WEIGHTS[4].tolist(), *OUTPUT.tolist()]),
    ],
)
def test_numbers_stand_in_the_picture_and_in_its_words(name, numbers):
    drawing = DRAWN[name]
    digits = 1 if name in ("lookup", "projections", "positions") else 2
    for number in numbers:
        written = f"{number:.{digits}f}"
        assert written in drawing.description
        assert f">{written.replace('-', '−')}<" in drawing.svg()


def test_the_future_is_crossed_out_and_not_written():
    drawing = drawings.mask(WORDS, SCORES.masked_fill(FUTURE, 77.0), WEIGHTS)
    assert "77" not in drawing.svg() and drawing.svg().count("<line") == 2 * int(FUTURE.sum())


def test_the_order_of_memory_gives_the_first_head_whole_tokens():
    colors = re.findall(r'<rect [^>]*fill="(light-dark[^"]+)"', drawings.cutting(WORDS, torch.ones(5, 3), 3).svg())
    cells = [color for i, color in enumerate(colors) if color != colors[i - 1]]
    assert cells[:3] == [drawings.BLUE, drawings.GREEN, drawings.PURPLE]  # token by token in the right way
    assert cells[-7:-3] == [drawings.PURPLE, drawings.BLUE, drawings.GREEN, drawings.PURPLE]  # then three stretches
