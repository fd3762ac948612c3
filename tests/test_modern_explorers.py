"""The sliders of notebook 12: what they say, against the functions behind them."""

import re
from dataclasses import replace

import pytest
import torch

from gptcourse.explorers import memory_explorer, router_explorer
from gptcourse.explorers.modern import FIELDS, balancing_bias, parameters_by_part, routed
from gptcourse.modern import ModernConfig, num_parameters

LLAMA = ModernConfig(128256, 8192, 4096, 32, 32, 14336, num_key_value_heads=8)
OTHER = ModernConfig(1000, 512, 64, 3, 6, 32, num_key_value_heads=2, head_dim=24, qk_norm=True, num_experts=4)
TOKENS = [f"t{n}" for n in range(12)]


def text_of(explorer):
    return re.sub(r"<[^>]+>", " ", explorer.picture.value)


def some_scores(n_experts=4):
    return torch.randn(len(TOKENS), n_experts, generator=torch.Generator().manual_seed(1)) + torch.arange(n_experts)


@pytest.mark.parametrize(("model", "n_layers", "n_heads", "size"), [(LLAMA, 5, 16, 64), (OTHER, 1, 2, 8)])
def test_parameters_of_another_shape_are_counted_without_building_it(model, n_layers, n_heads, size):
    other = replace(model, num_hidden_layers=n_layers, num_attention_heads=n_heads, head_dim=size)
    assert sum(parameters_by_part(model, other).values()) == num_parameters(other)
    assert sum(parameters_by_part(model, model).values()) == num_parameters(model)


def test_the_memory_is_that_of_the_weights_and_of_the_cache():
    explorer = memory_explorer({"Llama": LLAMA})
    assert "8.03B parameters, 16.1 GB of weights" in text_of(explorer)
    assert "131 kB a token, 8.59 GB for 8 × 8,192 tokens" in text_of(explorer)
    explorer.move(tokens=131072, texts=16, weights=0.5, cached=1.0)
    assert f"{8030261248 / 2e9:.3g} GB of weights" in text_of(explorer)
    assert f"{16 * LLAMA.cache_bytes(131072, 1) / 1e9:.3g} GB for 16 × 131,072" in text_of(explorer)
    widths = [float(width) for width in re.findall(r'width="([\d.]+)" height="26.0"', explorer.picture.value)]
    assert widths[3] / sum(widths[:3]) == pytest.approx(16 * LLAMA.cache_bytes(131072, 1) / (8030261248 / 2), rel=0.01)


def test_a_window_keeps_its_own_tokens_only():
    explorer = memory_explorer({"with a window": replace(LLAMA, sliding_window=4096)})
    explorer.move(tokens=131072, texts=1)
    assert f"{LLAMA.cache_bytes(4096) / 1e6:.3g} MB for 1 × 131,072 tokens" in text_of(explorer)


def test_the_menu_sets_the_sliders_and_a_shape_that_cannot_be_is_said():
    explorer = memory_explorer({"Llama": LLAMA, "other": OTHER})
    explorer.controls["model"].value = "other"
    assert {name: explorer.controls[name].value for name in FIELDS} == {
        name: getattr(OTHER, field) for name, field in FIELDS.items()
    }
    assert f"{num_parameters(OTHER) / 1e3:.3g}k parameters" in text_of(explorer)
    explorer.controls["key heads"].value = 4
    assert "This model cannot be built. 6 heads do not divide" in text_of(explorer)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_weights_of_a_token_are_those_of_its_best_experts(k):
    weights, share = routed(some_scores(), k)
    torch.testing.assert_close(weights.sum(-1), torch.ones(len(TOKENS)))
    assert (weights > 0).sum(-1).tolist() == [k] * len(TOKENS)
    assert torch.equal(weights.argmax(-1), some_scores().argmax(-1))
    assert share.tolist() == pytest.approx(((weights > 0).float().mean(0) / k).tolist())


def test_a_bias_moves_the_choice_and_not_the_weights_of_a_choice():
    scores = some_scores()
    bias = balancing_bias(scores, 1, 100)
    assert routed(scores, 1)[1].max() > 0.7 and routed(scores, 1, bias)[1].max() < 0.5
    assert torch.equal(balancing_bias(scores, 1, 0), torch.zeros(4))
    weights, _ = routed(scores, 4, bias)
    torch.testing.assert_close(weights, scores.softmax(-1))


def test_the_router_says_who_is_busy():
    explorer = router_explorer(TOKENS, some_scores())
    explorer.controls["k"].value = 1
    busiest = routed(some_scores(), 1)[1].max().item()
    assert f"has {busiest:.0%} of all choices" in text_of(explorer)
    explorer.controls["steps"].value = 100
    assert f"has {routed(some_scores(), 1, balancing_bias(some_scores(), 1, 100))[1].max():.0%}" in text_of(explorer)
    before = explorer.picture.value
    explorer.controls["noise_size"].value = 2.0
    moved = explorer.picture.value
    explorer.controls["noise_size"].value = 0.0
    assert explorer.picture.value == before != moved
    explorer.controls["k"].value = 4
    assert "has 25% of all choices, 0 have none" in text_of(explorer)


def test_what_there_is_nothing_to_draw_of_is_refused():
    with pytest.raises(ValueError, match="one model at least"):
        memory_explorer({})
    with pytest.raises(ValueError, match="12 tokens and scores for 3"):
        router_explorer(TOKENS, torch.zeros(3, 4))
