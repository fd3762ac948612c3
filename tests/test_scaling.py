"""Costs from the shape alone, against what torch really computes and keeps."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from gptcourse.model import GPT, GPTConfig
from gptcourse.scaling import (
    CHINCHILLA,
    CHINCHILLA_REFIT,
    SHARDED,
    ScalingLaw,
    bootstrap_laws,
    device_memory,
    extend,
    fit_scaling_law,
    flops_per_token,
    interval_score,
    peak_memory,
    ruler,
    training_memory,
)

SHAPES = [
    GPTConfig(vocab_size=512, n_positions=128, n_embd=128, n_layer=4, n_head=4),
    GPTConfig(vocab_size=76, n_positions=64, n_embd=96, n_layer=3, n_head=4),
]


@pytest.mark.parametrize("config", SHAPES, ids=lambda config: f"{config.n_layer}x{config.n_embd}")
def test_a_third_of_the_flops_is_what_torch_counts_forward(config):
    ids = torch.zeros(2, config.n_positions, dtype=torch.long)
    # Of the attention kernels, torch counts only the plain one on a CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        GPT(config)(ids)
    assert_close(float(counter.get_total_flops()), ids.numel() * flops_per_token(config) / 3, rtol=1e-6, atol=0)


@pytest.mark.parametrize("config", SHAPES, ids=lambda config: f"{config.n_layer}x{config.n_embd}")
def test_activations_are_what_autograd_keeps_for_the_backward_pass(config):
    model, ids = GPT(config), torch.zeros(2, config.n_positions, dtype=torch.long)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}  # the tensors themselves, so that no memory is used twice

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(ids, targets=ids)
    saved = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    logits_and_gradient = 2 * output.logits.untyped_storage().nbytes()
    assert_close(
        float(saved + logits_and_gradient), float(training_memory(config, 2)["activations"]), rtol=0.02, atol=0
    )


def test_weights_gradients_and_averages_are_what_training_holds():
    model = GPT(SHAPES[0])
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.zeros(1, 8, dtype=torch.long)
    model(ids, targets=ids).loss.backward()
    optimizer.step()
    memory = training_memory(SHAPES[0])
    assert sum(p.nbytes for p in model.parameters()) == memory["weights"]
    assert sum(p.grad.nbytes for p in model.parameters()) == memory["gradients"]
    averages = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert sum(average.nbytes for average in averages) == memory["optimizer"]


# ---- What a larger model buys

TRUTH = ScalingLaw(E=1.7, A=40.0, alpha=0.35, B=90.0, beta=0.4)
SIZES = [2e4, 6e4, 2e5, 6e5, 2e6]
TOKENS = [1e5, 4e5, 1.6e6, 6.4e6]


def runs(noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    pairs = [(n, d) for n in SIZES for d in TOKENS]
    return [*zip(*pairs, strict=True), [TRUTH.loss(n, d) * math.exp(noise * rng.normal()) for n, d in pairs]]


def test_the_law_behind_exact_runs_is_found_again():
    law = fit_scaling_law(*runs())
    for name in ("E", "A", "alpha", "B", "beta"):
        assert getattr(law, name) == pytest.approx(getattr(TRUTH, name), rel=0.02)
    assert law.loss(1e8, 1e9) == pytest.approx(TRUTH.loss(1e8, 1e9), rel=1e-3)


def test_one_run_that_diverged_hardly_moves_the_law():
    n, d, losses = runs()
    losses[7] *= 3
    assert fit_scaling_law(n, d, losses).loss(1e7, 2e7) == pytest.approx(TRUTH.loss(1e7, 2e7), rel=0.01)


def test_noisy_runs_predict_a_larger_one_within_their_own_uncertainty():
    n, d, losses = runs(noise=0.005)
    predicted = [law.loss(1e7, 2.5e7) for law in bootstrap_laws(n, d, losses, n=8)]
    truth = TRUTH.loss(1e7, 2.5e7)
    assert fit_scaling_law(n, d, losses).loss(1e7, 2.5e7) == pytest.approx(truth, rel=0.05)
    assert min(predicted) - 0.05 < truth < max(predicted) + 0.05 and max(predicted) - min(predicted) > 1e-3
    assert predicted == [law.loss(1e7, 2.5e7) for law in bootstrap_laws(n, d, losses, n=8)]


@pytest.mark.parametrize("flops", [1e12, 1e16, 1e20])
def test_the_optimal_size_has_the_lowest_loss_of_its_budget(flops):
    n, d = TRUTH.compute_optimal(flops)
    assert 6 * n * d == pytest.approx(flops)
    others = [TRUTH.loss(n * factor, d / factor) for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2.0)]
    assert all(TRUTH.loss(n, d) < other for other in others)


def test_the_published_law_of_chinchilla_gives_its_published_loss():
    chinchilla = ScalingLaw(E=1.69, A=406.4, alpha=0.34, B=410.7, beta=0.28)  # equation 10
    assert chinchilla.loss(70e9, 1.4e12) == pytest.approx(1.94, abs=0.01)


BAD = [
    ([1e5, 2e5] * 2, [1e6, 2e6] * 2, [3.0] * 4),  # four runs for five numbers
    ([1e5] * 5, [1e6, 2e6, 3e6, 4e6, 5e6], [3.0] * 5),  # one size
    ([1e5, 2e5, 3e5] * 2, [1e6] * 3 + [2e6] * 3, [3.0] * 6),  # two lengths
    ([1e5, 2e5, 3e5, 4e5, 5e5], [1e6] * 5, [3.0] * 5),
    ([1e5] * 4, [1e6] * 5, [3.0] * 5),
    *([*runs()[:2], [wrong, *runs()[2][1:]]] for wrong in (0.0, -1.0, math.nan, math.inf)),
    *([[wrong, *SIZES[:-1]], *runs()[1:]] for wrong in (0.0, math.nan)),
]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("fit", [fit_scaling_law, bootstrap_laws])
def test_runs_that_fix_no_law_are_refused(fit, bad):
    with pytest.raises(ValueError, match=r"^(The law has five numbers|Two sizes|There are|The parameters)[^\n]*\.$"):
        fit(*bad)


@pytest.mark.parametrize("number", [0, -1.0, math.nan, math.inf, "many"])
def test_impossible_numbers_have_no_loss_no_optimum_and_no_memory(number):
    refusals = [lambda: TRUTH.loss(number, 1e6), lambda: TRUTH.loss(1e6, number), lambda: TRUTH.compute_optimal(number)]
    refusals += [lambda: training_memory(SHAPES[0], number), lambda: bootstrap_laws(*runs(), n=number)]
    for refusal in refusals:
        with pytest.raises(ValueError, match=r"^\w+ is \S+, but it must be a (finite|whole) number [^\n]*\.$"):
            refusal()


@pytest.mark.parametrize("name", ["E", "A", "alpha", "B", "beta"])
@pytest.mark.parametrize("number", [math.nan, math.inf, "one"])
def test_a_law_of_impossible_numbers_is_refused(name, number):
    with pytest.raises(ValueError, match=rf"^{name} is \S+, but it must be a finite number\.$"):
        replace(TRUTH, **{name: number})


@pytest.mark.parametrize("name", ["A", "alpha", "B", "beta"])
@pytest.mark.parametrize("number", [0.0, -1.0])
def test_a_law_in_which_size_or_text_does_not_help_has_no_optimum(name, number):
    with pytest.raises(ValueError, match=r"^The A, alpha, B and beta must be [^\n]*\.$"):
        replace(TRUTH, **{name: number}).compute_optimal(1e12)


@pytest.mark.parametrize("number", [1.5, "two"])
def test_counts_that_are_not_whole_are_refused(number):
    for refusal in (lambda: training_memory(SHAPES[0], number), lambda: bootstrap_laws(*runs(), n=number)):
        with pytest.raises(ValueError, match=r"^\w+ is \S+, but it must be a whole number of 1 or more\.$"):
            refusal()


# ---- Several devices


def measured_peak(config, batch_size, gradient_checkpointing):
    """Return the most bytes that a training step holds, as torch's own tracker counts its tensors."""
    from torch.distributed._tools.mem_tracker import MemTracker

    model, ids = GPT(config), torch.zeros(batch_size, config.n_positions, dtype=torch.long)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step():
        model.zero_grad()
        model(ids, ids).loss.backward()
        optimizer.step()

    step()  # makes the averages
    tracker = MemTracker()
    tracker.track_external(model, optimizer)
    with tracker:
        step()
    (device,) = tracker.get_tracker_snapshot("peak").values()
    return device["Total"]


@pytest.mark.parametrize("gradient_checkpointing", [False, True], ids=["", "checkpointed"])
@pytest.mark.parametrize(
    ("config", "batch_size"),
    [
        (SHAPES[0], 8),
        (SHAPES[0], 1),
        (SHAPES[1], 12),
        (GPTConfig(vocab_size=512, n_positions=128, n_embd=256, n_layer=6, n_head=8), 1),  # weights rule
        (GPTConfig(vocab_size=5000, n_positions=64, n_embd=64, n_layer=2, n_head=2), 8),  # logits rule
    ],
    ids=lambda value: f"{value.n_layer}x{value.n_embd}" if isinstance(value, GPTConfig) else str(value),
)
def test_the_peak_is_predicted_within_a_tenth(config, batch_size, gradient_checkpointing):
    predicted = peak_memory(config, batch_size, gradient_checkpointing)
    measured = measured_peak(config, batch_size, gradient_checkpointing)
    assert measured == pytest.approx(predicted, rel=0.1)


def test_zero_divides_what_its_paper_says():
    config = GPTConfig(vocab_size=50257, n_positions=1024, n_embd=3072, n_layer=66, n_head=24)  # about 7.5 B
    gigabytes = {}
    for strategy in SHARDED:
        parts = device_memory(config, 1, 64, strategy)
        states = sum(parts[name] for name in ("weights", "gradients", "optimizer"))
        gigabytes[strategy] = states / config.num_parameters * 7.5
    # Rajbhandari et al. (2020), figure 1: a model of 7.5 billion on 64 devices.
    expected = {"DDP": 120, "ZeRO-1": 31.4, "ZeRO-2": 16.6, "FSDP": 1.9, "tensor parallel": 1.9}
    assert gigabytes == pytest.approx(expected, rel=0.02)


def test_only_tensor_parallelism_divides_activations():
    config = SHAPES[0]
    whole = device_memory(config, 4, 1, "DDP")["activations"]
    assert whole == training_memory(config, 4, gradient_checkpointing=True)["activations"] / 2
    for strategy in SHARDED:
        found = device_memory(config, 4, 8, strategy)["activations"]
        assert found == (whole / 8 if strategy == "tensor parallel" else whole)
    assert device_memory(config, 4, 8, gradient_checkpointing=False)["activations"] > whole


@pytest.mark.parametrize(
    ("settings", "words"), [({"strategy": "DPP"}, "one of DDP"), ({"n_devices": 0}, "n_devices is 0")]
)
def test_a_device_that_is_none_and_an_unknown_strategy_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        device_memory(SHAPES[0], 1, **settings)


@pytest.mark.parametrize("n_devices", [0, 1.5, float("nan"), float("inf"), "two"])
def test_an_impossible_number_of_devices_is_refused(n_devices):
    with pytest.raises(ValueError, match=r"^n_devices is \S+, but it must be a whole number of 1 or more\.$"):
        device_memory(GPTConfig.gpt3("125M"), 1, n_devices)


def test_published_constants_say_what_is_told_of_them():
    """The refit's twenty tokens per parameter; Gopher's budget, of which Chinchilla made 70 billion parameters."""
    for power in (18, 22, 26):
        n, d = CHINCHILLA_REFIT.compute_optimal(10.0**power)
        assert 15 < d / n < 30
    n, d = CHINCHILLA.compute_optimal(6 * 174.6e9 * 300e9)
    assert (n / 1e9, d / n) == pytest.approx((24.5, 87), rel=0.01)
    assert CHINCHILLA.compute_optimal(5.76e23)[0] == pytest.approx(32e9, rel=0.03)


def test_a_ruler_is_exact_where_both_slopes_are_straight():
    def power_law(n, d):
        return 30 * n**-0.1 * d**-0.07

    known = [(n, d, power_law(n, d)) for n in (1e4, 5e4, 2e5) for d in (1e5, 1e6, 3e6)]
    assert ruler(known, 3e6, 2e7) == pytest.approx(power_law(3e6, 2e7))
    assert extend(1e5, 3.0, 1e6, 3.0, 1e9) == 3.0
    # Only the last slopes count, and the shorter runs of the smaller size do not.
    changed = [(n, d, loss + (n < 5e4 or (n < 2e5 and d < 3e6))) for n, d, loss in known]
    assert ruler(changed, 3e6, 2e7) == pytest.approx(power_law(3e6, 2e7))


@pytest.mark.parametrize("known", [[], [(1e4, 1e5, 2.0), (2e4, 1e5, 1.9)], [(1e4, 1e5, 2.0), (1e4, 2e5, 1.9)]])
def test_a_ruler_without_two_slopes_is_refused(known):
    with pytest.raises(ValueError, match="the largest size at two lengths"):
        ruler(known, 1e6, 1e6)


def test_the_best_interval_ends_at_the_quantiles():
    values = np.random.default_rng(0).normal(size=4_000)

    def mean_score(width):
        return np.mean([interval_score(-width, width, value) for value in values])

    best = min((0.8, 1.2, 1.645, 2.1, 2.6), key=mean_score)
    assert best == 1.645  # nine in ten of a normal distribution
    assert interval_score(1.0, 1.5, 1.25) == 0.5
    assert interval_score(1.0, 1.5, 1.6, level=0.8) == pytest.approx(0.5 + 10 * 0.1)
    assert interval_score(1.0, 1.5, 0.9, level=0.8) == pytest.approx(0.5 + 10 * 0.1)


@pytest.mark.parametrize("interval", [(2.0, 1.0, 1.5, 0.9), (1.0, 2.0, 1.5, 1.0), (1.0, math.nan, 1.5, 0.9)])
def test_an_interval_that_is_none_is_refused(interval):
    with pytest.raises(ValueError, match=r"interval goes|it must be a (finite )?number"):
        interval_score(*interval)
