"""Schedules against their closed forms and against transformers'; which weights decay; what muP scales."""

import math

import pytest
import torch

from gptcourse.model import GPT, GPTConfig
from gptcourse.optimizers import (
    Muon,
    build_optimizer,
    decay_groups,
    learning_rate_at,
    muon_groups,
    mup_groups,
    newton_schulz,
)
from gptcourse.training import TrainingConfig, get_batch, train

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


# muP

TOKENS = torch.arange(300) ** 2 % 11


def new_model(width, base, head_size=8):
    torch.manual_seed(5)
    return GPT(GPTConfig(11, 8, width, 2, width // head_size, tie_word_embeddings=False, mup_base_width=base))


@pytest.mark.parametrize(("width", "multiplier"), [(8, 0.5), (16, 1.0), (48, 3.0)])
def test_every_weight_is_in_one_mup_group_with_its_own_rate_and_decay(width, multiplier):
    model = new_model(width, base=16)
    found = {}
    for group in mup_groups(model, 0.3):
        for parameter in group["params"]:
            assert id(parameter) not in found
            found[id(parameter)] = (group["lr_factor"], group["weight_decay"])
    hidden = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    for name, parameter in model.named_parameters():
        factor = 1 / multiplier if name.endswith(hidden) else 1.0
        decay = 0.3 / factor if parameter.ndim == 2 else 0.0
        assert found.pop(id(parameter)) == pytest.approx((factor, decay), rel=1e-12), name
    assert not found


def test_frozen_weights_are_in_no_mup_group():
    model = new_model(16, base=8)
    model.h.requires_grad_(False)
    model.wte.requires_grad_(False)
    grouped = {id(parameter) for group in mup_groups(model, 0.1) for parameter in group["params"]}
    assert grouped == {id(p) for p in (model.wpe.weight, model.ln_f.weight, model.ln_f.bias, model.lm_head.weight)}


def test_a_model_without_a_base_width_has_no_mup_groups():
    with pytest.raises(ValueError, match=r"no base width.*mup_base_width.*\.$"):
        mup_groups(new_model(16, base=None), 0.1)


def test_training_at_the_base_width_is_the_standard_run_bit_for_bit():
    standard, mup = new_model(24, base=None), new_model(24, base=24)
    config = TrainingConfig(6, 4, 1e-2, warmup_steps=2, gradient_accumulation_steps=2)
    histories = [train(model, TOKENS, config, device="cpu", progress=False) for model in (standard, mup)]
    assert histories[0] == histories[1]
    assert all(torch.equal(a, b) for a, b in zip(standard.parameters(), mup.parameters(), strict=True))


def by_table_3(width, base, steps, rate, weight_decay):
    """Train as table 3 of Yang et al. (2022) has it: no factor on the logits, the read-out started and taught less."""
    model, m = new_model(width, None).double(), width / base
    model.load_state_dict(new_model(width, base).state_dict())
    model.lm_head.weight.data /= m
    scaled = [p for p in model.h.parameters() if p.ndim == 2] + [model.lm_head.weight]
    tables = [model.wte.weight, model.wpe.weight]
    groups = [{"params": scaled, "lr": rate / m, "weight_decay": weight_decay * m}]
    groups += [{"params": tables, "lr": rate, "weight_decay": weight_decay}]
    groups += [{"params": [p for p in model.parameters() if p.ndim == 1], "lr": rate, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-16)
    losses = []
    for step in range(steps):
        loss = model(*get_batch(TOKENS, 4, 8, 0, step)).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses, model(TOKENS[None, :8]).logits


@pytest.mark.parametrize(("width", "base"), [(24, 8), (16, 24)])
def test_training_is_that_of_table_3_in_another_form(width, base):
    model = new_model(width, base).double()
    settings = {"lr_scheduler_type": "constant", "weight_decay": 0.5, "max_grad_norm": math.inf, "adam_epsilon": 1e-16}
    history = train(model, TOKENS, TrainingConfig(10, 4, 1e-2, **settings), device="cpu", progress=False)
    losses, logits = by_table_3(width, base, 10, 1e-2, 0.5)
    assert losses[-1] < 0.95 * losses[0]
    assert history.loss == pytest.approx(losses, rel=1e-6)
    torch.testing.assert_close(model(TOKENS[None, :8]).logits, logits, rtol=1e-4, atol=1e-6)


# ---- Muon


@pytest.mark.parametrize("shape", [(12, 12), (8, 30), (30, 8)])
def test_an_orthogonalized_matrix_keeps_its_directions_and_makes_them_equally_strong(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 7
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    found = newton_schulz(matrix)
    strengths = u.T @ found @ vh.T  # diagonal, if the directions are the same
    assert (strengths - strengths.diag().diag()).abs().max() < 1e-3
    assert strengths.diag().min() > 0.6 and strengths.diag().max() < 1.3 < s.max() / s.min()
    assert torch.allclose(newton_schulz(1000 * matrix), found, atol=1e-4)
    assert torch.equal(newton_schulz(torch.zeros(shape)), torch.zeros(shape))


def tiny(**settings):
    torch.manual_seed(0)
    return GPT(GPTConfig(40, n_positions=16, n_embd=16, n_layer=2, n_head=2, **settings))


def gradient(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("ns_steps", [3, 5])
def test_muon_equals_torchs_within_bfloat16(ns_steps):
    ours, theirs = tiny(), tiny()
    hidden = [parameter for parameter in ours.h.parameters() if parameter.ndim >= 2]
    reference = [parameter for parameter in theirs.h.parameters() if parameter.ndim >= 2]
    options = {"momentum": 0.95, "nesterov": True, "ns_steps": ns_steps, "adjust_lr_fn": "match_rms_adamw"}
    torchs = torch.optim.Muon(reference, lr=1e-2, weight_decay=0.1, **options)
    muon = Muon([{"params": hidden, "weight_decay": 0.1, "momentum": 0.95, "ns_steps": ns_steps, "parts": 1}], lr=1e-2)
    start = [parameter.detach().clone() for parameter in hidden]
    for step in range(5):
        gradient(ours, step)
        gradient(theirs, step)
        muon.step()
        torchs.step()
    for mine, torchs_own, before in zip(hidden, reference, start, strict=True):
        moved = (torchs_own - before).norm()
        assert (mine - torchs_own).norm() < 0.02 * moved and moved > 0.05


def test_what_is_no_matrix_of_a_block_learns_by_adamw_exactly():
    ours, theirs = tiny(), tiny()
    muon = build_optimizer(ours, TrainingConfig(1, 1, 1e-2, optim="muon"))
    adamw = build_optimizer(theirs, TrainingConfig(1, 1, 1e-2))
    assert isinstance(muon, Muon) and not isinstance(adamw, Muon)
    for step in range(3):
        gradient(ours, step)
        gradient(theirs, step)
        muon.step()
        adamw.step()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other) != (name.startswith("h.") and mine.ndim >= 2), name


def test_every_weight_is_in_one_group_of_muons_and_frozen_ones_in_none():
    model = tiny()
    model.h[0].requires_grad_(False)
    groups = muon_groups(model, 0.1)
    grouped = [parameter for group in groups for parameter in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in model.parameters() if p.requires_grad}
    assert len(grouped) == len({id(p) for p in grouped})
    assert [group.get("parts") for group in groups] == [3, 1, None, None]
    assert groups[0]["params"] == [model.h[1].attn.c_attn.weight]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.1, 0.1, 0.0]


def test_queries_keys_and_values_learn_as_three_matrices_of_their_own():
    fused, weight = tiny(), torch.randn(48, 16, generator=torch.Generator().manual_seed(2))
    fused.h[0].attn.c_attn.weight.data.copy_(weight)
    muon = build_optimizer(fused, TrainingConfig(1, 1, 1e-2, optim="muon"))
    apart = [torch.nn.Parameter(part.clone()) for part in weight.chunk(3)]
    settings = {"weight_decay": 0.1, "momentum": 0.9, "ns_steps": 5, "parts": 1}
    reference = Muon([{"params": apart, **settings}], lr=1e-2)
    for step in range(3):
        gradient(fused, step)
        for parameter, part in zip(apart, fused.h[0].attn.c_attn.weight.grad.chunk(3), strict=True):
            parameter.grad = part.clone()
        muon.step()
        reference.step()
    assert torch.equal(fused.h[0].attn.c_attn.weight, torch.cat(apart))
    assert not torch.allclose(fused.h[0].attn.c_attn.weight, weight, atol=1e-2)


def test_under_mup_muon_divides_rate_by_the_root_of_the_width():
    standard, mup = tiny(), tiny(mup_base_width=16, tie_word_embeddings=False)
    wide = tiny(mup_base_width=8, tie_word_embeddings=False)
    for model, root in (standard, 1), (mup, 1), (wide, math.sqrt(2)):
        for group in muon_groups(model, 0.1)[:2]:
            assert (group["lr_factor"], group["weight_decay"]) == pytest.approx((1 / root, 0.1 * root))


def test_training_with_muon_learns_and_goes_on_where_it_stopped(tmp_path):
    tokens = torch.arange(2_000) % 7 + (torch.arange(2_000) // 5) % 11
    settings = {"learning_rate": 1e-2, "optim": "muon", "lr_scheduler_type": "constant"}
    whole, stopped = tiny(), tiny()
    history = train(whole, tokens, TrainingConfig(40, 4, **settings), progress=False, device="cpu")
    assert history.loss[-1] < 0.6 * history.loss[0]
    for steps in (15, 40):
        config = TrainingConfig(steps, 4, **settings)
        train(stopped, tokens, config, checkpoint_dir=tmp_path, resume=steps > 15, progress=False, device="cpu")
        stopped = stopped if steps == 40 else tiny()
    for mine, other in zip(whole.parameters(), stopped.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_muon_refuses_models_that_are_not_ours():
    config = TrainingConfig(1, 1, 1e-2, optim="muon")
    for model in (torch.nn.Linear(2, 2), tiny().to_transformers()):
        with pytest.raises(ValueError, match=r'^optim "muon" takes a GPT of this course: choose "adamw"'):
            build_optimizer(model, config)
    with pytest.raises(ValueError, match=r"^optim is .* must be one of"):
        TrainingConfig(1, 1, 1e-2, optim="sgd")


def test_muon_leaves_weights_without_a_gradient_alone():
    model = GPT(GPTConfig(40, n_positions=16, n_embd=16, n_layer=2, n_head=2))
    optimizer = build_optimizer(model, TrainingConfig(2, 2, 1e-3, optim="muon"))
    before = model.h[1].mlp.c_fc.weight.detach().clone()
    model.h[0].mlp.c_fc.weight.grad = torch.ones_like(before)
    optimizer.step()
    assert torch.equal(model.h[1].mlp.c_fc.weight, before) and not torch.equal(model.h[0].mlp.c_fc.weight, before)
