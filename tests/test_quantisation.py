"""Rounded weights against torch's and gguf's own quantisation."""

from itertools import pairwise

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize
from torch.testing import assert_close

from gptcourse.model import GPT, GPTConfig
from gptcourse.quantisation import dequantise, quantise, quantised, stored_bytes


def weights():
    return torch.randn(6, 64, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1, 2, 0.1, 5, 1, 0]]).T


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rows_equal_torchs_rounding_per_channel(bits):
    codes, scales = quantise(weights(), bits)
    largest = 2 ** (bits - 1) - 1
    flat = scales.flatten().clamp(min=1e-12)
    expected = torch.fake_quantize_per_channel_affine(
        weights(), flat, torch.zeros(6, dtype=torch.int32), 0, -largest, largest
    )
    assert_close(dequantise(codes, scales), expected)


def test_groups_of_32_in_8_bits_are_ggufs_q8_0():
    codes, scales = quantise(weights(), 8, 32)
    stored = quantize(weights().numpy(), gguf.GGMLQuantizationType.Q8_0)
    theirs = torch.from_numpy(dequantize(stored, gguf.GGMLQuantizationType.Q8_0))
    apart = (dequantise(codes, scales) - theirs).abs() / scales.expand_as(codes).flatten(1).clamp(min=1e-12)
    assert (apart > 1e-3).float().mean() < 0.01  # a tie, or a scale rounded before dividing rather than afterwards
    assert apart.max() <= 1.001


@pytest.mark.parametrize(("bits", "group"), [(8, None), (8, 32), (4, None), (4, 32), (3, 16)])
def test_nothing_is_moved_by_more_than_half_a_step(bits, group):
    codes, scales = quantise(weights(), bits, group)
    moved = (dequantise(codes, scales) - weights()).abs().unflatten(1, (-1, codes.shape[-1]))
    largest = 2 ** (bits - 1) - 1
    assert (moved <= scales * (0.5 + largest * 2**-10) + 1e-9).all()  # a scale has 11 bits itself
    assert codes.abs().max() <= largest and codes.dtype == torch.int8


def test_more_bits_are_never_worse():
    small = 0.02 * weights()
    off = [(dequantise(*quantise(small, bits)) - small).norm().item() for bits in range(2, 25)]
    assert all(later < sooner for sooner, later in pairwise(off[:17])) and max(off[16:]) < off[15]


def test_what_is_rounded_already_stays():
    once = dequantise(*quantise(weights(), 4, 32))
    assert_close(dequantise(*quantise(once, 4, 32)), once)


def test_a_model_keeps_its_biases_norms_and_ties_and_the_original_stays():
    model = GPT(GPTConfig(50, 16, 32, 2, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rounded = quantised(model, 4, 32)
    assert rounded.lm_head.weight is rounded.wte.weight
    for name, value in rounded.state_dict().items():
        assert torch.equal(value, before[name]) == (value.dim() < 2), name
        assert torch.equal(model.state_dict()[name], before[name])


def test_bytes_are_counted_as_they_would_be_stored():
    model = GPT(GPTConfig(50, 16, 32, 1, 2))
    matrices = sum(w.numel() for w in model.parameters() if w.dim() == 2)
    others = sum(w.numel() for w in model.parameters() if w.dim() == 1)
    assert stored_bytes(model, 32) == 4 * (matrices + others)
    assert stored_bytes(model, 4, 32) == matrices // 2 + matrices // 32 * 2 + 4 * others
    q8_0 = quantize(np.zeros((1, 32), dtype=np.float32), gguf.GGMLQuantizationType.Q8_0)
    assert 8 * q8_0.size == 32 * 8 + 16  # the same bits for a group


@pytest.mark.parametrize(
    ("bits", "group", "words"), [(1, None, "bits is 1, .* from 2 to 24"), (4, 48, "Groups of 48 do not fill")]
)
def test_what_cannot_be_done_is_refused(bits, group, words):
    with pytest.raises(ValueError, match=words):
        quantise(weights(), bits, group)


def test_rows_of_tiny_weights_keep_their_size():
    weight = torch.randn(3, 8) * 1e-6
    for bits in (12, 16, 24):
        assert_close(dequantise(*quantise(weight, bits)), weight, rtol=2e-3, atol=1e-9)


def test_only_matrices_are_stored_in_few_bits():
    model = torch.nn.Module()
    model.experts = torch.nn.Parameter(torch.ones(2, 4, 8))
    assert stored_bytes(model, 4) == 2 * 4 * 8 * 4  # `quantised` leaves them as they are
