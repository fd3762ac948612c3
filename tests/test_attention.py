"""Attention against torch's fused kernel, transformers' GPT-2 and arithmetic done by hand."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel

from gptcourse.attention import CausalSelfAttention, KeyValueCache, attention, causal_mask, rotary
from gptcourse.model import GPTConfig


def config(**changes):
    return GPTConfig(**{"vocab_size": 11, "n_positions": 16, "n_embd": 24, "n_layer": 1, "n_head": 3} | changes)


def random_qkv(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(3)]


def test_causal_mask_shows_each_token_itself_and_the_past():
    assert causal_mask(3).tolist() == [[True, False, False], [True, True, False], [True, True, True]]


def test_causal_mask_with_more_keys_gives_the_last_rows_of_the_square_one():
    assert torch.equal(causal_mask(2, 5), causal_mask(5)[3:])


def test_causal_mask_window_keeps_the_most_recent_keys():
    assert causal_mask(4, window=2).int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]


@pytest.mark.parametrize(("arguments", "words"), [((3, 2), "at least 3 keys"), ((3, 3, 0), "at least see itself")])
def test_causal_mask_refuses_what_makes_no_sense(arguments, words):
    with pytest.raises(ValueError, match=words):
        causal_mask(*arguments)


def test_attention_of_two_tokens_by_hand():
    q = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    k = torch.tensor([[1.0, 1.0], [0.0, 3.0]])
    v = torch.tensor([[10.0], [20.0]])
    output, weights = attention(q, k, v, causal_mask(2))
    first, second = math.exp(2 / math.sqrt(2)), math.exp(6 / math.sqrt(2))
    expected = torch.tensor([[1.0, 0.0], [first / (first + second), second / (first + second)]])
    assert_close(weights, expected)
    assert_close(output, expected @ v)


@pytest.mark.parametrize("mask", [None, causal_mask(7), causal_mask(7, window=3)], ids=["all", "causal", "banded"])
def test_attention_equals_the_fused_kernel_in_values_and_gradients(mask):
    ours, theirs = random_qkv(2, 3, 7, 8), random_qkv(2, 3, 7, 8)
    output, weights = attention(*ours, mask)
    fused = F.scaled_dot_product_attention(*theirs, attn_mask=mask)
    assert_close(output, fused)
    assert_close(weights.sum(-1), torch.ones(2, 3, 7, dtype=torch.float64))
    direction = torch.randn(fused.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    output.backward(direction)
    fused.backward(direction)
    for mine, other in zip(ours, theirs, strict=True):
        assert_close(mine.grad, other.grad)


def test_attention_names_mismatched_shapes_and_wrong_masks():
    q, k, v = (tensor.detach() for tensor in random_qkv(5, 4))
    with pytest.raises(ValueError, match="4 numbers and a key 3"):
        attention(q, k[:, :3], v)
    with pytest.raises(ValueError, match="5 keys and 4 values"):
        attention(q, k, v[:4])
    with pytest.raises(ValueError, match="boolean"):
        attention(q, k, v, torch.ones(5, 5))


@pytest.mark.parametrize(
    "shape", [{"n_embd": 24, "n_head": 3}, {"n_embd": 35, "n_head": 7}, {"n_embd": 8, "n_head": 1}]
)
def test_module_equals_transformers_in_values_weights_and_gradients(shape):
    torch.manual_seed(0)
    ours = CausalSelfAttention(config(**shape))
    names = {"vocab_size": 11, "n_positions": 16, "n_layer": 1, "attn_implementation": "eager"}
    off = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "bos_token_id": None, "eos_token_id": None}
    theirs = GPT2LMHeadModel(GPT2Config(**names, **shape, **off)).transformer.h[0].attn
    with torch.no_grad():
        for layer in ("c_attn", "c_proj"):
            getattr(theirs, layer).weight.copy_(getattr(ours, layer).weight.t())
            getattr(theirs, layer).bias.copy_(getattr(ours, layer).bias)
    x, y = (torch.randn(2, 9, shape["n_embd"], generator=torch.Generator().manual_seed(3)) for _ in range(2))
    x.requires_grad_(), y.requires_grad_()
    output, weights = ours(x, output_attentions=True)
    minus_infinity = torch.zeros(9, 9).masked_fill(~causal_mask(9), torch.finfo(torch.float32).min)
    other_output, other_weights = theirs(y, attention_mask=minus_infinity[None, None], output_attentions=True)[:2]
    assert_close(output, other_output)
    assert_close(weights, other_weights)
    output.square().sum().backward(), other_output.square().sum().backward()
    assert_close(x.grad, y.grad)
    assert_close(ours.c_attn.weight.grad, theirs.c_attn.weight.grad.t())
    assert_close(ours.c_proj.bias.grad, theirs.c_proj.bias.grad)


def test_asking_for_the_weights_does_not_change_the_output():
    module = CausalSelfAttention(config(dropout=0.5))
    x = torch.randn(2, 5, 24)
    torch.manual_seed(1)
    without, nothing = module(x)
    torch.manual_seed(1)
    with_weights, weights = module(x, output_attentions=True)
    assert nothing is None and weights.shape == (2, 3, 5, 5)
    assert torch.equal(without, with_weights)


@pytest.mark.parametrize("pieces", [(8,), (1,) * 8, (5, 1, 1, 1), (3, 4, 1)])
@pytest.mark.parametrize("options", [{}, {"position_embedding": "rotary"}, {"qk_norm": True}], ids=str)
def test_the_cache_gives_what_the_whole_sequence_gives(pieces, options):
    torch.manual_seed(0)
    module = CausalSelfAttention(config(**options))
    x = torch.randn(2, 8, 24)
    whole, weights = module(x, output_attentions=True)
    cache = KeyValueCache(2, 3, 16, 8)
    parts = [module(piece, cache, output_attentions=True) for piece in x.split(pieces, dim=1)]
    assert cache.length == 8
    assert_close(torch.cat([output for output, _ in parts], dim=1), whole)
    assert_close(parts[-1][1], weights[:, :, -pieces[-1] :])


def test_a_full_cache_says_so_and_keeps_what_it_has():
    cache = KeyValueCache(1, 1, 4, 2)
    k = torch.randn(1, 1, 3, 2)
    cache.append(k, k)
    with pytest.raises(ValueError, match="room for 4 tokens, not 6"):
        cache.append(k, k)
    assert cache.length == 3 and torch.equal(cache.keys[:, :, :3], k)


def test_rotary_is_a_rotation_in_the_complex_plane():
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    a, b = x.chunk(2, dim=-1)
    angle = torch.arange(3, 8)[:, None] * 10_000.0 ** (-torch.arange(3) / 3)
    turned = torch.complex(a, b) * torch.polar(torch.ones_like(angle), angle)
    assert_close(rotary(x, first_position=3), torch.cat((turned.real, turned.imag), dim=-1), rtol=1e-5, atol=1e-6)


def test_rotary_products_depend_only_on_the_distance():
    q, k = torch.randn(1, 8), torch.randn(1, 8)
    near = rotary(q, 7) @ rotary(k, 4).T
    far = rotary(q, 103) @ rotary(k, 100).T
    assert_close(near, far, rtol=1e-4, atol=1e-4)


def test_a_cache_for_another_number_of_texts_is_refused():
    with pytest.raises(ValueError, match=r"^The cache is for 3 texts, not 1: start a new one for them\.$"):
        KeyValueCache(3, 1, 4, 2).append(*torch.zeros(2, 1, 1, 1, 2))
