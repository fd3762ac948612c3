"""What helps to choose a rate and a batch, against closed forms, full Hessians and gradients one by one."""

import copy
import math
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from gptcourse import optimizers, training
from gptcourse.model import GPT, GPT3_TABLE, GPTConfig
from gptcourse.optimizers import mup_groups
from gptcourse.training import DivergedError, TrainingConfig, get_batch
from gptcourse.tuning import (
    BatchTradeOff,
    adam_preconditioner,
    beta2_of,
    coordinate_check,
    for_batch_size,
    for_depth,
    for_horizon,
    gpt3_batch_size,
    gpt3_learning_rate,
    gradient_noise_scale,
    half_life_of,
    lr_range_test,
    noise_scale_estimates,
    sharpness,
    stability_limit,
    timescale,
    transfer,
)

VOCAB, LENGTH = 17, 8
TOKENS = torch.from_numpy(np.random.default_rng(1).integers(0, VOCAB, 300))
SIZES = {"125M": 125e6, "350M": 350e6, "760M": 760e6, "1.3B": 1.3e9, "2.7B": 2.7e9, "6.7B": 6.7e9, "13B": 13e9}
SIZES |= {"175B": 175e9}


def new_model(**settings):
    torch.manual_seed(3)
    return GPT(GPTConfig(VOCAB, LENGTH, 16, 2, 2, **settings))


def state(model):
    """Return all that measuring must leave alone: weights, gradients, and the mode of each part."""
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    return weights, [p.grad for p in model.parameters()], [module.training for module in model.modules()]


def assert_untouched(model, before):
    weights, gradients, modes = state(model)
    assert all(torch.equal(a, b) for a, b in zip(weights, before[0], strict=True))
    assert all(a is b for a, b in zip(gradients, before[1], strict=True))
    assert modes == before[2]


# Experience


@pytest.mark.parametrize("name", GPT3_TABLE)
def test_at_gpt3s_own_sizes_the_table_comes_out(name):
    assert gpt3_learning_rate(SIZES[name]) == pytest.approx(GPT3_TABLE[name].learning_rate, rel=1e-12)
    assert gpt3_batch_size(SIZES[name]) == pytest.approx(GPT3_TABLE[name].batch_size, rel=1e-12)


def test_halfway_on_the_log_scale_lies_the_geometric_mean():
    assert gpt3_learning_rate(math.sqrt(125e6 * 350e6)) == pytest.approx(math.sqrt(6e-4 * 3e-4), rel=1e-12)
    assert gpt3_batch_size(math.sqrt(760e6 * 1.3e9)) == pytest.approx(math.sqrt(0.5e6 * 1e6), rel=1e-12)
    assert gpt3_batch_size(5e8) == pytest.approx(0.5e6)


@pytest.mark.parametrize("end", ["125M", "175B"])
def test_beyond_the_table_the_slope_is_that_of_the_whole_table(end):
    factor = 1 / 50 if end == "125M" else 50
    ratio = math.log(0.6e-4 / 6e-4) / math.log(175e9 / 125e6)  # -0.318
    assert gpt3_learning_rate(SIZES[end] * factor) == pytest.approx(
        GPT3_TABLE[end].learning_rate * factor**ratio, rel=1e-9
    )
    ratio = math.log(3.2e6 / 0.5e6) / math.log(175e9 / 125e6)  # 0.256
    assert gpt3_batch_size(SIZES[end] * factor) == pytest.approx(GPT3_TABLE[end].batch_size * factor**ratio, rel=1e-9)


@pytest.mark.parametrize("size", [0, -1e6, math.nan, math.inf])
def test_a_size_that_is_no_size_is_refused(size):
    for function in (gpt3_learning_rate, gpt3_batch_size):
        with pytest.raises(ValueError, match=r"^n_parameters is .*must be .*\.$"):
            function(size)


# Rules that transfer

SMALL_RUN = TrainingConfig(
    100, 8, 1e-2, warmup_steps=10, decay_steps=20, batch_ramp_steps=6, eval_steps=25, weight_decay=0.2
)


def test_nanochats_rules_come_out_of_transfer():
    large = transfer(SMALL_RUN, tokens=64.0)
    batch = large.batch_size / 8
    assert large.batch_size == round(8 * 64**0.383) and large.steps == round(6400 / batch)
    assert large.learning_rate == pytest.approx(1e-2 * batch**0.5)  # rate ∝ √B
    assert large.weight_decay == pytest.approx(0.2 * batch**0.5 / 64)  # λ · √(B / B_ref) · D_ref / D
    assert large.adam_beta2 == pytest.approx(0.95**batch)
    assert [large.decay_steps, large.eval_steps] == pytest.approx([0.2 * large.steps, 0.25 * large.steps], abs=1)


def test_other_batches_and_horizons_keep_the_steps_of_warm_up_up_to_half_of_the_run():
    assert for_batch_size(SMALL_RUN, 16).warmup_steps == for_batch_size(SMALL_RUN, 2).warmup_steps == 10
    assert (for_batch_size(SMALL_RUN, 80).steps, for_batch_size(SMALL_RUN, 80).warmup_steps) == (10, 5)
    assert transfer(SMALL_RUN, tokens=64.0).warmup_steps == for_horizon(SMALL_RUN, 3).warmup_steps == 10


@pytest.mark.parametrize("change", [{"tokens": 10.0}, {"depth": 4.0}, {"tokens": 0.1, "depth": 0.5}])
def test_every_rule_keeps_the_timescale_of_weight_decay(change):
    assert timescale(transfer(SMALL_RUN, **change)) == pytest.approx(timescale(SMALL_RUN), rel=0.02)
    assert timescale(for_batch_size(SMALL_RUN, 2)) == pytest.approx(timescale(SMALL_RUN)) == 5.0
    assert timescale(replace(SMALL_RUN, weight_decay=0)) == math.inf


def test_weights_are_an_average_over_the_timescale():
    weight, target = torch.nn.Parameter(torch.zeros(1)), 1.0
    steps = round(timescale(SMALL_RUN) * SMALL_RUN.steps)
    optimizer = torch.optim.AdamW([weight], lr=1e-2, weight_decay=0.2)
    for _ in range(steps):  # a gradient that always says the same: the weight goes to -1 / weight_decay
        weight.grad = torch.full_like(weight, target)
        optimizer.step()
    assert weight.item() == pytest.approx((math.exp(-1) - 1) / 0.2, rel=0.01)


def test_a_run_transferred_to_itself_stays_as_it_is():
    for same in transfer(SMALL_RUN), for_horizon(SMALL_RUN, 1), for_batch_size(SMALL_RUN, 8), for_depth(SMALL_RUN, 1):
        assert same.adam_beta2 == pytest.approx(0.95) and replace(same, adam_beta2=0.95) == SMALL_RUN


def test_a_deeper_model_takes_the_rate_over_the_root():
    deep = for_depth(SMALL_RUN, 4)
    assert (deep.learning_rate, deep.weight_decay) == (5e-3, 0.4)
    assert replace(deep, learning_rate=1e-2, weight_decay=0.2) == SMALL_RUN


def test_beta2_has_its_half_life_in_tokens():
    assert beta2_of(1000, 1000) == 0.5 and beta2_of(1000, 250) ** 4 == pytest.approx(0.5)
    assert half_life_of(0.95, 512) == pytest.approx(512 * 13.5134, rel=1e-5)
    for batch in (1, 512, 65_536):
        assert beta2_of(half_life_of(0.95, 512), batch) == pytest.approx(0.95 ** (batch / 512))


def test_short_runs_keep_a_step_of_what_they_had():
    short = for_horizon(SMALL_RUN, 0.1)
    assert (short.steps, short.warmup_steps, short.decay_steps, short.batch_ramp_steps) == (10, 5, 2, 1)
    assert for_horizon(replace(SMALL_RUN, warmup_steps=0, decay_steps=None), 0.1).warmup_steps == 0


@pytest.mark.parametrize("size", [0, -1, math.inf, math.nan])
def test_sizes_that_are_none_are_refused(size):
    for rule in (
        lambda: transfer(SMALL_RUN, tokens=size),
        lambda: for_batch_size(SMALL_RUN, size),
        lambda: for_depth(SMALL_RUN, size),
        lambda: beta2_of(size, 1),
        lambda: half_life_of(0.9, size),
    ):
        with pytest.raises(ValueError, match=r"must be a (finite|whole) number (greater than 0|of 1 or more)\.$"):
            rule()
    with pytest.raises(ValueError, match=r"^beta2 is 1"):
        half_life_of(1.0, 8)


# The range test


class Scripted(torch.nn.Module):
    """The reader's own model, whose loss in step n is `script[n]`, whatever the rate; it has one weight."""

    def __init__(self, script):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.config = SimpleNamespace(vocab_size=VOCAB, n_positions=LENGTH)
        self.script = iter(script)

    def __deepcopy__(self, memo):
        return Scripted(self.script)  # an iterator cannot be copied

    def forward(self, ids, targets):
        return SimpleNamespace(loss=next(self.script) + 0 * self.weight)


def range_test(model, steps=20, batch_size=4, **options):
    settings = {name: options.pop(name) for name in list(options) if name in TrainingConfig.__dataclass_fields__}
    config = TrainingConfig(steps, batch_size, settings.pop("learning_rate", 1.0), **settings)
    return lr_range_test(model, TOKENS, config, **{"progress": False, "device": "cpu"} | options)


def test_the_rate_grows_by_one_factor_from_lowest_to_highest():
    test = range_test(Scripted([1.0] * 9), 9, lowest=1e-6, highest=1e2)
    assert test.rates == pytest.approx([1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0], rel=1e-12)
    assert test.losses == test.smoothed == [1.0] * 9


def test_a_loss_that_never_breaks_is_said_to_never_break():
    test = range_test(Scripted(5.0 - 0.1 * n for n in range(20)), lowest=1e-3, highest=0.5)
    assert (test.broke, test.interrupted, test.edge, test.suggestion) == (False, False, None, None)
    assert len(test.losses) == 20
    assert "never broke" in str(test)
    assert "5.0e-01: raise `highest`" in str(test)


def test_the_break_is_the_first_median_a_tenth_above_the_lowest_and_the_edge_the_last_rate_before_that():
    # Windows of 3. The medians: 5, 4.5, 4, 3, 2, 2, 2, 2.1, 2.19, 2.21, which is the first above 2.2.
    losses = [5, 4, 3, 2, 2, 2.1, 1, 2.19, 2.21, 2.3, 2.4, 2.5]
    test = range_test(Scripted(losses), 12, lowest=1e-11, highest=1.0)
    assert test.smoothed == pytest.approx([5, 4.5, 4, 3, 2, 2, 2, 2.1, 2.19, 2.21])
    assert (test.broke, test.losses) == (True, pytest.approx(losses[:10]))
    assert test.edge == pytest.approx(1e-8)  # the fifth loss is measured after the update at the fourth rate
    assert test.plateau == pytest.approx((1e-8, 1e-6))  # the next median, 2.1, is 5 % above the lowest
    assert test.suggestion == pytest.approx(1e-8)
    assert str(test) == "The loss was lowest from 1.0e-08 to 1.0e-06 and broke at a rate of 1.0e-02: try 1.0e-08."


def test_the_window_is_a_twentieth_of_the_steps_so_that_a_spike_is_forgiven():
    losses = [3.0] * 30 + [9.0] * 2 + [3.0] * 68
    assert not range_test(Scripted(losses), 100).broke  # two of five
    losses[32] = 9.0
    test = range_test(Scripted(losses), 100)
    assert test.broke
    assert len(test.losses) == 33  # three of five


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_the_test_at_the_rate_before_it(bad):
    test = range_test(Scripted([5, 4, 3, 2, bad, 1, 1, 1, 1, 1, 1]), 11, lowest=1e-10, highest=1.0)
    assert (test.broke, test.losses) == (True, [5, 4, 3, 2])
    assert test.rates == pytest.approx([1e-10, 1e-9, 1e-8, 1e-7])
    assert test.edge == test.suggestion == pytest.approx(1e-8)  # after the next one, 1e-7, came the bad loss
    assert "broke at a rate of 1.0e-07" in str(test)


def test_a_model_that_is_broken_from_the_start_has_no_edge():
    with pytest.raises(DivergedError, match="loss of step 1 is nan"):
        range_test(Scripted([math.nan]))


def test_it_is_the_training_of_train_with_growing_rates():
    model, reference = new_model(), new_model()
    test = range_test(model, 8, lowest=1e-4, highest=3e-2, seed=5, weight_decay=0.5, max_grad_norm=0.4)
    matrices, vectors = ([p for p in reference.parameters() if (p.ndim < 2) == flag] for flag in (False, True))
    groups = [{"params": matrices, "weight_decay": 0.5}, {"params": vectors, "weight_decay": 0.0}]
    optimizer, losses = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8), []
    for step in range(8):
        ids, targets = get_batch(TOKENS, 4, LENGTH, 5, step)
        losses.append(torch.nn.functional.cross_entropy(reference(ids).logits.flatten(0, 1), targets.flatten()))
        optimizer.zero_grad()
        losses[-1].backward()
        assert torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.4) > 0.4  # clipping is at work
        for group in optimizer.param_groups:
            group["lr"] = 1e-4 * 300 ** (step / 7)
        optimizer.step()
    assert test.losses == pytest.approx([loss.item() for loss in losses], rel=1e-5)


def test_rate_and_schedule_of_the_settings_are_left_out():
    plain = range_test(new_model())
    schedule = {"warmup_steps": 5, "lr_scheduler_type": "warmup_stable_decay", "decay_steps": 3}
    assert range_test(new_model(), learning_rate=7.0, **schedule) == plain


def test_a_gpt_breaks_at_a_high_rate_and_not_below():
    test = range_test(new_model(), 60, lowest=1e-3, highest=1e4)
    assert test.broke
    assert test.edge < test.rates[-1] < 1e4
    assert test.smoothed[-1] > 1.1 * min(test.smoothed)
    assert not range_test(new_model(), 60, lowest=1e-5, highest=test.suggestion).broke


def test_the_range_test_works_on_a_copy():
    model = new_model(dropout=0.2).eval()
    model.h[0].train()
    before, generator, seen = state(model), torch.get_rng_state(), []
    test = range_test(model, 5, highest=1e-2, callback=lambda *both: seen.append((*both, both[0].h[1].training)))
    assert_untouched(model, before)
    assert torch.equal(torch.get_rng_state(), generator)
    copies, optimizers, in_training = zip(*seen, strict=True)
    assert in_training == (True,) * 5
    assert {id(copy) for copy in copies} == {id(copies[0])} != {id(model)}
    assert {group["lr"] for group in optimizers[0].param_groups} == {test.rates[-1]}


def test_ctrl_c_keeps_what_was_measured():
    calls = []

    def press(model, optimizer):
        calls.append(optimizer.param_groups[0]["lr"])
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)

    model, previous = new_model(), signal.getsignal(signal.SIGINT)
    test = range_test(model, callback=press)
    assert signal.getsignal(signal.SIGINT) is previous
    assert (test.interrupted, test.broke, len(test.losses), test.edge) == (True, False, 4, None)
    assert test.rates == calls
    assert test.losses == range_test(new_model()).losses[:4]
    assert "Interrupted" in str(test)


@pytest.mark.parametrize("wrong", [{"lowest": 0}, {"lowest": 20}, {"highest": math.inf}])
def test_rates_that_do_not_grow_are_refused(wrong):
    with pytest.raises(ValueError, match=r"The rate must grow.*\.$"):
        range_test(new_model(), **wrong)


def test_what_train_refuses_is_refused_here_too():
    with pytest.raises(ValueError, match="sequence_length is 9"):
        range_test(new_model(), sequence_length=9)


def test_the_range_test_shows_the_bar_of_training(capsys):
    test = range_test(new_model(), 5, progress=True)
    shown = capsys.readouterr().err
    assert "5/5" in shown and f"loss {test.losses[-1]:.3f}" in shown
    range_test(new_model(), 5)
    assert capsys.readouterr() == ("", "")


def test_under_mup_the_range_test_moves_each_group_by_its_factor():
    model, seen = new_model(tie_word_embeddings=False, mup_base_width=8), []
    test = range_test(model, 5, highest=1e-2, callback=lambda _, o: seen.append([g["lr"] for g in o.param_groups]))
    assert seen == [pytest.approx([rate / 2, rate, rate]) for rate in test.rates]


# Whether the rate fits every width

KINDS = {"embeddings", "attention", "MLP", "logits"}


def changes(kind=GPT, base=16, widths=(16, 128), rate=1e-3, init=0.02, **settings):
    def make_model(width):
        torch.manual_seed(3)
        shape = GPTConfig(VOCAB, LENGTH, width, 2, width // 8, initializer_range=init, tie_word_embeddings=False)
        return kind(replace(shape, mup_base_width=base))

    config = TrainingConfig(4, 8, rate, lr_scheduler_type="constant", **settings)
    return coordinate_check(make_model, widths, TOKENS, config, device="cpu", progress=False)


def growth(found):
    """Return by which factor the change in the widest model is greater than in the narrowest, for each kind."""
    narrow, *_, wide = found.values()
    return {kind: wide[kind] / narrow[kind] for kind in narrow}


def test_under_mup_no_change_grows_or_shrinks_with_the_width():
    found = growth(changes())
    assert set(found) == KINDS
    assert all(0.5 < factor < 2 for factor in found.values()), found


def test_in_the_standard_parametrisation_all_but_the_embeddings_change_more_in_a_wider_model():
    found = growth(changes(base=None))
    assert 0.5 < found.pop("embeddings") < 2
    assert all(factor > 5 for factor in found.values()), found


def test_under_mup_muons_steps_change_as_much_at_every_width(monkeypatch):
    settings = {"optim": "muon", "rate": 3e-2, "init": 0.1, "widths": (16, 256)}  # steps that are seen in one layer
    found = growth(changes(**settings))
    assert all(0.7 < found[kind] < 1.4 for kind in KINDS), found
    groups = optimizers.muon_groups
    monkeypatch.setattr(optimizers, "muon_groups", lambda *args: [g | {"lr_factor": 1.0} for g in groups(*args)])
    assert growth(changes(**settings))["MLP"] > 1.7


def test_a_read_out_that_is_not_scaled_is_caught():
    class Wrong(GPT):
        def forward(self, ids, targets=None, **options):
            logits = super().forward(ids, **options).logits * self.config.width_multiplier
            loss = (
                None if targets is None else torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
            )
            return SimpleNamespace(logits=logits, loss=loss)

    found = growth(changes(Wrong))
    assert found["logits"] > 3, found


def test_embeddings_that_learn_at_the_scaled_rate_are_caught(monkeypatch):
    def wrong(model, weight_decay):
        return [{"params": list(model.parameters()), "lr_factor": 1 / model.config.width_multiplier}]

    monkeypatch.setattr(optimizers, "mup_groups", wrong)
    found = growth(changes())
    assert found["embeddings"] < 0.2, found


def test_hidden_matrices_that_learn_at_the_full_rate_are_caught(monkeypatch):
    monkeypatch.setattr(optimizers, "mup_groups", lambda model, decay: [{"params": list(model.parameters())}])
    found = growth(changes())
    assert min(found["attention"], found["MLP"]) > 2.5, found


def test_a_change_is_the_mean_over_the_batch_that_would_come_next():
    found = changes(widths=(16, 24), base=None)
    assert list(found) == [16, 24]
    torch.manual_seed(3)
    model = GPT(GPTConfig(VOCAB, LENGTH, 16, 2, 2, tie_word_embeddings=False))
    ids = get_batch(TOKENS, 8, LENGTH, 0, 4)[0]

    def parts():
        with torch.no_grad():
            x = model.wte(ids) + model.wpe.weight
            after_attention = [x + model.h[0].attn(model.h[0].ln_1(x))[0]]
            after_mlp = [after_attention[0] + model.h[0].mlp(model.h[0].ln_2(after_attention[0]))]
            attended = model.h[1].attn(model.h[1].ln_1(after_mlp[0]))[0]
            first, mapped = after_attention[0] - x, after_mlp[0] - after_attention[0]
            second = model.h[1].mlp(model.h[1].ln_2(after_mlp[0] + attended))
            return [x, torch.stack((first, attended)), torch.stack((mapped, second)), model(ids).logits]

    before = parts()
    training.train(
        model, TOKENS, TrainingConfig(4, 8, 1e-3, lr_scheduler_type="constant"), device="cpu", progress=False
    )
    expected = [(a - b).abs().mean().item() for a, b in zip(before, parts(), strict=True)]
    assert list(found[16].values()) == pytest.approx(expected, rel=1e-3)
    assert list(found[16]) == ["embeddings", "attention", "MLP", "logits"]


def test_the_coordinate_check_stops_at_ctrl_c_and_keeps_the_finished_widths():
    class Pressing(GPT):
        def forward(self, *inputs, **options):
            if self.training and self.config.n_embd == 24:
                signal.raise_signal(signal.SIGINT)
                self.eval()  # once only
            return super().forward(*inputs, **options)

    assert list(changes(Pressing, base=None, widths=(16, 24, 32))) == [16]


# The curvature


class Quadratic(torch.nn.Module):
    """loss = ½ (w − c)ᵀ A (w − c): the Hessian is A wherever w stands. The weights come in two parts."""

    def __init__(self, hessian):
        super().__init__()
        self.hessian = torch.as_tensor(hessian, dtype=torch.float64)
        size = len(self.hessian)
        self.first = torch.nn.Parameter(torch.linspace(1, 2, size // 2, dtype=torch.float64))
        self.second = torch.nn.Parameter(torch.linspace(-1, 3, size - size // 2, dtype=torch.float64)[None])
        self.frozen = torch.nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, ids, targets):
        w = torch.cat([self.first, self.second.flatten()]) - 0.5
        return SimpleNamespace(loss=0.5 * w @ self.hessian @ w)


def symmetric(eigenvalues, seed=0):
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(eigenvalues),) * 2))[0]
    return basis @ np.diag(eigenvalues) @ basis.T


NOTHING = (None, None)  # a quadratic looks at no tokens
SPECTRA = {
    "positive": [0.1, 0.5, 1.0, 2.0, 7.0],
    "negative end longer": [-9.0, -1.0, 0.5, 3.0, 2.0],
    "both ends equal": [-3.0, -1.0, 0.0, 1.0, 3.0],
    "nearly equal ends": [-3.01, -2.9, 0.0, 2.9, 3.0],
    "all negative": [-5.0, -4.0, -3.0, -2.0, -1.0],
    "two largest": [1.0, 4.0, 4.0, 2.0, -4.0],
    "one weight": [2.5],
    "one weight, downwards": [-2.5],
    "no curvature": [0.0, 0.0],
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("matrix", [np.diag, symmetric], ids=["diagonal", "full"])
def test_the_sharpness_of_a_quadratic_is_its_largest_eigenvalue(matrix, name):
    found = sharpness(Quadratic(matrix(SPECTRA[name])), *NOTHING, tolerance=1e-7)
    assert found == pytest.approx(max(SPECTRA[name]), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("tolerance", [0.2, 0.01])
def test_the_tolerance_bounds_the_distance_to_an_eigenvalue(seed, tolerance):
    noise = np.random.default_rng(seed).normal(size=(120, 120))
    eigenvalues = np.linalg.eigvalsh(noise + noise.T)
    found = sharpness(Quadratic(noise + noise.T), *NOTHING, tolerance=tolerance)
    assert found <= eigenvalues[-1] * (1 + 1e-9)  # no vector sees more curvature than there is
    assert np.abs(eigenvalues - found).min() <= tolerance * found
    if tolerance == 0.01:  # so strict that it is the largest one
        assert found == pytest.approx(eigenvalues[-1], rel=tolerance)


def test_preconditioning_gives_the_eigenvalues_of_p_inverse_h():
    hessian, scale = symmetric([-9.0, 0.5, 1.0, 2.0, 6.0], seed=4), np.array([0.1, 3.0, 1.0, 0.5, 20.0])
    expected = np.linalg.eigvals(np.diag(1 / scale) @ hessian).real.max()
    parts = [torch.from_numpy(scale[:2]), torch.from_numpy(scale[2:])[None]]
    assert sharpness(Quadratic(hessian), *NOTHING, parts, tolerance=1e-7) == pytest.approx(expected, rel=1e-6)
    assert sharpness(Quadratic(hessian), *NOTHING, tolerance=1e-7) == pytest.approx(6.0, rel=1e-6)


def full_hessian(model, ids, targets):
    """Return every second derivative, (n, n), by differentiating each entry of the gradient in turn."""
    with sdpa_kernel(SDPBackend.MATH):
        loss = model(ids, targets).loss
    parameters = list(model.parameters())
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, create_graph=True)])
    rows = [torch.autograd.grad(entry, parameters, retain_graph=True) for entry in gradient]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


@pytest.mark.parametrize("n_steps", [1, 40])
@pytest.mark.parametrize("settings", [{}, {"position_embedding": "rotary", "norm": "rmsnorm", "qk_norm": True}])
def test_a_small_gpt_against_its_full_hessian(n_steps, settings):
    torch.manual_seed(0)
    model = GPT(GPTConfig(5, 4, 4, 1, 1, dropout=0.5, initializer_range=0.3, **settings)).double().eval()
    assert model.config.num_parameters < 300
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.8, 0.95))
    ids, targets = get_batch(TOKENS % 5, 6, 4, seed=1, step=0)
    for _ in range(n_steps):
        optimizer.zero_grad()
        model(ids, targets).loss.backward()
        optimizer.step()
    hessian = full_hessian(model, ids, targets)
    torch.testing.assert_close(hessian, hessian.T)
    scale = torch.cat([part.flatten() for part in adam_preconditioner(model, optimizer)])
    largest = torch.linalg.eigvalsh(hessian)[-1].item()
    largest_scaled = torch.linalg.eigvals(hessian / scale[:, None]).real.max().item()
    model.train()
    before, generator = state(model), torch.get_rng_state()
    assert sharpness(model, ids, targets, tolerance=1e-5) == pytest.approx(largest, rel=1e-5)
    assert stability_limit(model, ids, targets) == pytest.approx(2 / largest, rel=0.01)
    limit = stability_limit(model, ids, targets, optimizer, tolerance=1e-5)
    assert limit == pytest.approx((2 + 2 * 0.8) / (1 - 0.8) / largest_scaled, rel=1e-5)
    assert_untouched(model, before)
    assert torch.equal(torch.get_rng_state(), generator)


def distance_after(model, optimizer, n_steps=3000):
    for _ in range(n_steps):
        optimizer.zero_grad()
        model(*NOTHING).loss.backward()
        optimizer.step()
    return (torch.cat([model.first, model.second[0]]) - 0.5).norm().item()


def test_gradient_descent_is_stable_just_under_the_limit_and_not_just_above():
    model = Quadratic(symmetric([1.0, 2.0, 3.0, 8.0]))
    limit = stability_limit(model, *NOTHING, tolerance=1e-6)
    assert limit == pytest.approx(0.25, rel=1e-5)
    under, above = copy.deepcopy(model), copy.deepcopy(model)
    assert distance_after(under, torch.optim.SGD(under.parameters(), lr=0.99 * limit)) < 1e-6
    assert distance_after(above, torch.optim.SGD(above.parameters(), lr=1.01 * limit)) > 1e6


def frozen_adam(model, scales, rate, beta1, n_steps=3000):
    """Return how far Adam gets from the minimum when its preconditioner stands still."""
    parameters = [model.first, model.second]
    averages = [torch.zeros_like(p) for p in parameters]
    for _ in range(n_steps):
        gradients = torch.autograd.grad(model(*NOTHING).loss, parameters)
        for p, m, g, scale in zip(parameters, averages, gradients, scales, strict=True):
            m.mul_(beta1).add_((1 - beta1) * g)
            p.data -= rate * m / scale
    return (torch.cat([model.first, model.second[0]]) - 0.5).norm().item()


@pytest.mark.parametrize("beta1", [0.0, 0.5, 0.9])
def test_adam_is_stable_just_under_the_limit_and_not_just_above(beta1):
    model = Quadratic(symmetric([1.0, 2.0, 3.0, 8.0]))
    optimizer = torch.optim.AdamW([model.first, model.second], lr=1e-3, betas=(beta1, 0.95))
    distance_after(model, optimizer, 5)
    limit = stability_limit(model, *NOTHING, optimizer, tolerance=1e-6)
    scales = adam_preconditioner(model, optimizer)
    assert frozen_adam(copy.deepcopy(model), scales, 0.99 * limit, beta1) < 1e-6
    assert frozen_adam(copy.deepcopy(model), scales, 1.01 * limit, beta1) > 1e6


@pytest.mark.parametrize("fused", [False, True])
def test_the_preconditioner_is_what_adam_divides_by(fused):
    model = new_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0, betas=(0.8, 0.9), eps=1e-3, fused=fused)
    for step in range(4):
        optimizer.zero_grad()
        model(*get_batch(TOKENS, 4, LENGTH, 0, step)).loss.backward()
        before = [parameter.detach().clone() for parameter in model.parameters()]
        optimizer.step()
    for old, p, scale in zip(before, model.parameters(), adam_preconditioner(model, optimizer), strict=True):
        average = optimizer.state[p]["exp_avg"] / (1 - 0.8**4)
        torch.testing.assert_close(old - p, 0.01 * average / scale, rtol=1e-4, atol=1e-7)


def test_under_mup_the_preconditioner_holds_the_factor_of_each_group():
    model = new_model(tie_word_embeddings=False, mup_base_width=48)
    optimizer = torch.optim.AdamW(mup_groups(model, 0.0), lr=0.01, betas=(0.8, 0.9), eps=1e-3)
    for group in optimizer.param_groups:
        group["lr"] *= group["lr_factor"]
    assert {round(group["lr"], 9) for group in optimizer.param_groups} == {0.01, 0.03}
    model(*get_batch(TOKENS, 4, LENGTH, 0, 0)).loss.backward()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer.step()
    for old, p, scale in zip(before, model.parameters(), adam_preconditioner(model, optimizer), strict=True):
        torch.testing.assert_close(old - p, 0.01 * p.grad / scale, rtol=1e-4, atol=1e-7)


def test_the_optimizer_must_be_an_adam_that_has_made_a_step():
    model = Quadratic(np.eye(3))
    parameters = [model.first, model.second]
    stepped = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    distance_after(model, stepped, 2)
    groups = torch.optim.AdamW([{"params": model.first}, {"params": model.second, "lr": 0.5}], lr=0.1)
    distance_after(model, groups, 2)
    for optimizer in (stepped, torch.optim.AdamW(parameters), groups):
        with pytest.raises(ValueError, match=r"an Adam or AdamW with one rate for all, after its first step\.$"):
            stability_limit(model, *NOTHING, optimizer)


def test_where_nothing_curves_upwards_every_rate_is_stable():
    assert stability_limit(Quadratic(-np.eye(4)), *NOTHING) == math.inf


def test_a_loss_that_is_no_number_has_no_curvature():
    with pytest.raises(ValueError, match=r"The loss on this batch is nan.*\.$"):
        sharpness(Quadratic(np.full((2, 2), math.nan)), *NOTHING)


def test_an_eigenvalue_that_does_not_settle_is_said_so():
    with pytest.raises(ValueError, match=r"not settled after 200 products: raise the tolerance\.$"):
        sharpness(Quadratic(np.diag(np.linspace(0.9, 1.0, 3000))), *NOTHING, tolerance=0.0)


# The noise


class Regression(torch.nn.Module):
    """Linear regression with a table of inputs, one for each token, and of answers: ½ (w·x[id] − y[target])²."""

    def __init__(self, weight=None):
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.inputs = torch.randn(VOCAB, 3, dtype=torch.float64, generator=generator)
        self.answers = torch.randn(VOCAB, dtype=torch.float64, generator=generator)
        self.weight = torch.nn.Parameter(torch.tensor([0.8, -1.0, 0.6], dtype=torch.float64))
        self.config = SimpleNamespace(vocab_size=VOCAB, n_positions=1)

    def forward(self, ids, targets):
        errors = self.inputs[ids] @ self.weight - self.answers[targets]
        return SimpleNamespace(loss=errors.square().mean() / 2)

    def closed_form(self):
        """Return (|G|², tr Σ) over all places of TOKENS: each pair of a token and the next is equally likely."""
        x, y = self.inputs[TOKENS[:-1]].numpy(), self.answers[TOKENS[1:]].numpy()
        gradients = (x @ self.weight.detach().numpy() - y)[:, None] * x  # (299, 3)
        return (gradients.mean(0) ** 2).sum(), gradients.var(0).sum()


def test_two_exact_lengths_give_gradient_and_noise_back():
    norm_squared, trace = 0.3, 5.0
    lengths = [norm_squared + trace / size for size in (4, 32)]
    assert noise_scale_estimates(*lengths, 4, 32) == pytest.approx((norm_squared, trace), rel=1e-12)


def test_the_noise_scale_of_a_linear_regression_is_its_closed_form():
    model = Regression()
    norm_squared, trace = model.closed_form()
    found = gradient_noise_scale(model, TOKENS, small=2, big=16, n_batches=2000, progress=False)
    assert found.trace == pytest.approx(trace, rel=0.03)
    assert found.gradient_norm_squared == pytest.approx(norm_squared, rel=0.05)
    assert abs(found.sequences - trace / norm_squared) < 3 * found.standard_error
    assert found.standard_error < 0.05 * found.sequences
    assert found.tokens == found.sequences  # sequences of one token


def test_the_standard_error_is_the_spread_from_seed_to_seed():
    runs = [gradient_noise_scale(Regression(), TOKENS, big=16, n_batches=30, seed=s, progress=False) for s in range(60)]
    assert np.std([run.sequences for run in runs]) == pytest.approx(
        np.mean([run.standard_error for run in runs]), rel=0.3
    )


@pytest.mark.parametrize(("small", "big", "n_batches"), [(1, 6, 3), (2, 6, 4), (3, 6, 2)])
def test_a_small_gpt_against_its_gradients_one_by_one(small, big, n_batches):
    model, samples = new_model(dropout=0.3), []
    model.eval()
    for step in range(n_batches):
        ids, targets = get_batch(TOKENS, big, LENGTH, seed=4, step=step)
        for x, y in zip(ids, targets, strict=True):
            loss = torch.nn.functional.cross_entropy(model(x[None]).logits[0], y)
            parts = torch.autograd.grad(loss, list(model.parameters()))
            samples.append(torch.cat([part.flatten() for part in parts]).double().numpy())
    parts = np.array(samples).reshape(n_batches, big // small, small, -1).mean(2)
    traces = small * parts.var(1, ddof=1).sum(-1)  # a mean of `small` has 1/small of the covariance
    norms = (parts.mean(1) ** 2).sum(-1) - traces / big
    model.train()
    before, generator = state(model), torch.get_rng_state()
    options = {"small": small, "big": big, "n_batches": n_batches, "seed": 4, "progress": False}
    found = gradient_noise_scale(model, TOKENS, **options)
    assert found.trace == pytest.approx(traces.mean(), rel=1e-4)
    assert found.gradient_norm_squared == pytest.approx(norms.mean(), rel=1e-4)
    assert found.sequences == pytest.approx(traces.mean() / norms.mean(), rel=1e-4)  # not the mean of the ratios
    assert found.tokens == pytest.approx(found.sequences * LENGTH, rel=1e-12)
    left_out = [np.delete(traces, i).mean() / np.delete(norms, i).mean() for i in range(n_batches)]
    spread = sum((ratio - np.mean(left_out)) ** 2 for ratio in left_out)
    assert found.standard_error == pytest.approx(math.sqrt((n_batches - 1) / n_batches * spread), rel=1e-3)
    assert_untouched(model, before)
    assert torch.equal(torch.get_rng_state(), generator)


def test_samples_that_are_all_the_same_have_no_noise():
    found = gradient_noise_scale(new_model(), [3] * 30, n_batches=2, progress=False)
    assert found.sequences == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"big": 1}, "two batch sizes.*not 1 to 4"),
        ({"small": 1, "big": 1}, "two batch sizes.*not 1 to 1"),
        ({"small": 8, "big": 8}, "two batch sizes.*not 8 to 8"),
        ({"small": 3, "big": 8}, "two batch sizes.*not 8 to 3"),
        ({"small": 0}, "small is 0, but it must be a whole number of 1 or more"),
        ({"small": 2.5}, r"small is 2\.5, but it must be a whole number"),
        ({"n_batches": 1}, "n_batches is 1.*2 or more"),
        ({"tokens": TOKENS[:LENGTH]}, "tokens to measure on are 8, but at least 9"),
        ({"tokens": TOKENS + 1}, "tokens to measure on go from 1 to 17"),
    ],
)
def test_too_little_to_compare_is_one_clear_sentence(options, words):
    with pytest.raises(ValueError, match=rf"{words}[^.]*\.$"):
        gradient_noise_scale(new_model(), **{"tokens": TOKENS, "progress": False} | options)


def test_a_zero_gradient_has_no_noise_scale():
    model = Regression()
    model.inputs.zero_()
    with pytest.raises(ValueError, match=r"^Every gradient is zero.*\.$"):
        gradient_noise_scale(model, TOKENS, progress=False)


def test_a_gradient_that_drowns_in_its_noise_is_said_to():
    model = Regression()
    x, y = model.inputs[TOKENS[:-1]], model.answers[TOKENS[1:]]
    model.weight.data = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]  # the minimum: the mean gradient is zero
    assert model.closed_form()[0] < 1e-20
    outcomes = []
    for seed in range(10):
        try:
            outcomes.append(gradient_noise_scale(model, TOKENS, seed=seed, progress=False))
        except ValueError as refusal:
            assert "The noise hides the gradient (|G|² is estimated as -" in str(refusal)
            outcomes.append(None)
    assert None in outcomes  # an unbiased estimate of zero is negative as often as positive
    assert all(found.standard_error > found.sequences / 3 for found in outcomes if found)


def test_the_noise_scale_shows_a_bar(capsys):
    gradient_noise_scale(new_model(), TOKENS, n_batches=3)
    assert "3/3" in capsys.readouterr().err
    gradient_noise_scale(new_model(), TOKENS, n_batches=3, progress=False)
    assert capsys.readouterr() == ("", "")


# Steps and tokens by batch size


def test_steps_and_tokens_lie_on_the_hyperbola():
    curve = BatchTradeOff(min_steps=200, critical_batch=5_000)
    assert curve.min_tokens == 1_000_000
    assert (curve.steps(5_000), curve.tokens(5_000)) == (400, 2_000_000)
    for batch in (1, 640, 5_000, 1e6):
        assert curve.tokens(batch) == pytest.approx(batch * curve.steps(batch))
        assert (curve.steps(batch) / 200 - 1) * (curve.tokens(batch) / 1e6 - 1) == pytest.approx(1)


def test_the_fit_finds_the_hyperbola_that_the_steps_lie_on():
    batches = np.array([64, 256, 1024, 4096, 16384])
    for curve in (BatchTradeOff(150, 3_000), BatchTradeOff(2_000, 40)):
        fitted = BatchTradeOff.fit(batches, [curve.steps(batch) for batch in batches])
        assert fitted.min_steps == pytest.approx(curve.min_steps, rel=1e-9)
        assert fitted.critical_batch == pytest.approx(curve.critical_batch, rel=1e-9)


def test_no_other_hyperbola_is_nearer_in_ratio():
    batches = [64, 256, 1024, 4096]
    steps = [5_200, 1_300, 460, 190]

    def error(curve):
        return sum((curve.steps(batch) / measured - 1) ** 2 for batch, measured in zip(batches, steps, strict=True))

    best = BatchTradeOff.fit(batches, steps)
    for a in (0.99, 1, 1.01):
        for b in (0.99, 1, 1.01):
            other = BatchTradeOff(best.min_steps * a, best.critical_batch * b)
            assert error(other) > error(best) or (a, b) == (1, 1)


@pytest.mark.parametrize(
    ("batches", "steps", "words"),
    [
        ([64], [100], "two or more different"),
        ([64, 64], [100, 90], "two or more different"),
        ([64, 128], [100], "two or more different"),
        ([0, 128], [100, 80], "from 1e-06"),
        ([64, 128], [100, -1], "from 1e-06"),
        ([64, 128], [100, 120], "steps must fall and tokens grow"),
        ([64, 128], [100, 40], "steps must fall and tokens grow"),
    ],
)
def test_measurements_without_a_hyperbola_are_refused(batches, steps, words):
    with pytest.raises(ValueError, match=rf"{words}.*\.$"):
        BatchTradeOff.fit(batches, steps)


@pytest.mark.parametrize(
    "numbers", [(math.nan, 1, 4, 8), (1, math.inf, 4, 8), (1, 1, 4, 4), (1, 1, 0, 8), (-1, 1, 4, 8)]
)
def test_impossible_norms_give_no_noise_scale_and_impossible_steps_no_hyperbola(numbers):
    with pytest.raises(ValueError, match=r"^(small|big|small_norm|big_norm) is .*must be .*\.$"):
        noise_scale_estimates(*numbers)
    with pytest.raises(ValueError, match="The batches and steps must be finite"):
        BatchTradeOff.fit([1, 2], [math.inf, 2])


def test_the_noise_scale_of_a_transformers_model_is_that_of_ours():
    model = new_model().eval()
    theirs, options = model.to_transformers(), {"n_batches": 3, "progress": False}
    ours, of_theirs = (gradient_noise_scale(one, TOKENS, **options) for one in (model, theirs))
    assert ours.trace == pytest.approx(of_theirs.trace, rel=1e-3)


@pytest.mark.parametrize("settings", [{"warmup_steps": 100, "decay_steps": 900}, {"batch_ramp_steps": 999}])
def test_a_run_whose_parts_fill_it_stays_one_when_it_is_made_shorter(settings):
    config = TrainingConfig(1000, 8, 1e-3, **settings)
    for size in (16, 64, 4096):
        other = for_batch_size(config, size)  # which TrainingConfig refuses if the parts do not fit
        assert (other.decay_steps or 0) + other.warmup_steps <= other.steps
