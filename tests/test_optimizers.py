"""Schedules against their closed forms and against transformers'; which weights decay."""

import math

import pytest
import torch

from gptcourse.model import GPT, GPTConfig
from gptcourse.optimizers import decay_groups, learning_rate_at
from gptcourse.training import TrainingConfig

STEPS, WARMUP, PEAK = 50, 8, 3e-3


def rates(schedule, steps=STEPS, **settings):
    config = TrainingConfig(steps, 1, PEAK, lr_scheduler_type=schedule, **settings)
    return [learning_rate_at(step, config) for step in range(steps)]


def transformers_rates(name, steps=STEPS, **settings):
    import transformers.optimization

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=PEAK)
    scheduler = getattr(transformers.optimization, name)(optimizer, **settings)
    return [PEAK * scheduler.lr_lambdas[0](step) for step in range(steps)]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "warmup_stable_decay"])
def test_warm_up_climbs_in_equal_steps_to_the_full_rate(schedule):
    climbing = rates(schedule, warmup_steps=WARMUP)[: WARMUP + 1]
    assert climbing == pytest.approx([PEAK * part / 9 for part in range(1, 10)])


def test_cosine_is_gpt3s_half_wave_down_to_a_tenth():
    falling = rates("cosine", steps=1001)
    assert falling[0] == pytest.approx(PEAK)
    assert falling[500] == pytest.approx(PEAK * (0.1 + 0.9 * (1 + math.cos(math.pi * 500 / 1001)) / 2))
    assert falling[1000] == pytest.approx(0.1 * PEAK, rel=1e-3)


def test_cosine_equals_transformers_after_the_warm_up():
    theirs = transformers_rates(
        "get_cosine_with_min_lr_schedule_with_warmup",
        num_warmup_steps=WARMUP,
        num_training_steps=STEPS,
        min_lr_rate=0.1,
    )
    assert rates("cosine", warmup_steps=WARMUP)[WARMUP:] == pytest.approx(theirs[WARMUP:])


def test_cosine_to_zero_equals_transformers_after_the_warm_up():
    theirs = transformers_rates("get_cosine_schedule_with_warmup", num_warmup_steps=WARMUP, num_training_steps=STEPS)
    assert rates("cosine", warmup_steps=WARMUP, min_lr_ratio=0)[WARMUP:] == pytest.approx(theirs[WARMUP:])


def test_linear_equals_transformers_after_the_warm_up():
    theirs = transformers_rates("get_linear_schedule_with_warmup", num_warmup_steps=WARMUP, num_training_steps=STEPS)
    assert rates("linear", warmup_steps=WARMUP, min_lr_ratio=0)[WARMUP:] == pytest.approx(theirs[WARMUP:])


def test_constant_equals_transformers_after_the_warm_up():
    theirs = transformers_rates("get_constant_schedule_with_warmup", num_warmup_steps=WARMUP)
    assert rates("constant", warmup_steps=WARMUP)[WARMUP:] == theirs[WARMUP:]


@pytest.mark.parametrize(("decay_steps", "length"), [(12, 12), (None, 5)])
def test_stable_decay_equals_transformers_after_the_warm_up(decay_steps, length):
    theirs = transformers_rates(
        "get_wsd_schedule",
        num_warmup_steps=WARMUP,
        num_decay_steps=length,
        num_training_steps=STEPS,
        decay_type="linear",
        min_lr_ratio=0.1,
    )
    ours = rates("warmup_stable_decay", warmup_steps=WARMUP, decay_steps=decay_steps)
    assert ours[WARMUP:] == pytest.approx(theirs[WARMUP:])


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_rate_stays_at_its_minimum_after_a_decay_that_ends_early(schedule):
    falling = rates(schedule, warmup_steps=10, decay_steps=20, min_lr_ratio=0.25)
    assert falling[20] == pytest.approx(PEAK * (0.25 + 0.75 / 2))  # half way, both shapes are at one half
    assert falling[30:] == pytest.approx([0.25 * PEAK] * 20)
    assert falling[29] > falling[30]


def test_a_warm_up_as_long_as_the_run_but_one_step_is_defined():
    assert rates("cosine", steps=3, warmup_steps=2) == pytest.approx([PEAK / 3, 2 * PEAK / 3, PEAK])


@pytest.mark.parametrize("tied", [True, False])
def test_all_matrices_decay_and_nothing_else(tied):
    model = GPT(GPTConfig(11, 8, 16, 2, 2, tie_word_embeddings=tied))
    decaying, resting = decay_groups(model, 0.3)
    assert (decaying["weight_decay"], resting["weight_decay"]) == (0.3, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    ends = ("bias", "ln_1.weight", "ln_2.weight", "ln_f.weight")
    assert sorted(names[id(p)] for p in resting["params"]) == sorted(n for n in names.values() if n.endswith(ends))
    assert sorted(names[id(p)] for p in decaying["params"]) == sorted(n for n in names.values() if not n.endswith(ends))
    assert any(p is model.wte.weight for p in decaying["params"])


def test_frozen_weights_are_in_no_group():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2, bias=False))
    model[0].requires_grad_(False)
    groups = decay_groups(model, 0.1)
    assert [[id(p) for p in group["params"]] for group in groups] == [[id(model[1].weight)]]
