"""The recorded runs are whole and can be made again, and their explorer shows the run under the sliders."""

import itertools
import math
import re
import time
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from gptcourse.explorers import atlas as module
from gptcourse.explorers import atlas_explorer
from gptcourse.explorers.atlas import power_of_two
from gptcourse.pretrained import PretrainedError
from gptcourse.recordings import (
    BASE_WIDTH,
    POINTS,
    TOKENS,
    Atlas,
    binned,
    configs_of,
    load_atlas,
    save_atlas,
    settings_of,
    train_point,
)
from gptcourse.training import DivergedError, History

FOLDER = Path(str(files("gptcourse") / "assets" / "atlas"))
AXES = {
    "batch": (16, 32),
    "width": (16, 32),
    "parametrisation": ("standard", "muP"),
    "schedule": ("cosine", "constant"),
    "warmup": (0.0, 0.1),
    "rate": (2.0**-8, 2.0**-6, 2.0**-4),
    "seed": (0, 1),
}
POINT = {"batch": 32, "width": 16, "parametrisation": "muP", "schedule": "cosine", "warmup": 0.1, "rate": 2.0**-6}


@pytest.fixture(scope="module")
def recorded():
    return load_atlas()


@pytest.fixture
def small():
    """An atlas whose numbers are made up: each run ends a little worse than the one before, the last one diverged."""
    shape = [len(values) for values in AXES.values()]
    held_out = np.linspace(2.5, 4.0, math.prod(shape)).reshape(shape)
    curves = held_out[..., None] + np.linspace(1, 0, POINTS)
    held_out[-1, -1, -1, -1, -1, -1] = math.inf
    curves[-1, -1, -1, -1, -1, -1, :, 20:] = math.nan
    return Atlas(AXES, curves, held_out, 76)


@pytest.fixture
def explorer(small):
    return atlas_explorer(small)


# ---- What is recorded


def test_at_least_two_thousand_runs_are_there_in_two_megabytes(recorded):
    assert recorded.n_runs >= 2_000
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 2_000_000
    shape = tuple(len(values) for values in recorded.axes.values())
    assert recorded.held_out.shape == shape and recorded.curves.shape == (*shape, POINTS)
    assert list(recorded.axes) == list(AXES) and len(recorded.axes["seed"]) >= 2
    distinct = np.delete(recorded.curves, 0, axis=2).reshape(-1, POINTS), recorded.curves[:, 1:, 0].reshape(-1, POINTS)
    assert len(np.unique(np.concatenate(distinct), axis=0)) == recorded.n_runs  # no run stands for another


def test_every_curve_is_finite_unless_its_run_is_marked_as_diverged(recorded):
    broken = ~np.isfinite(recorded.curves).all(-1)
    assert_array_equal(broken, np.isinf(recorded.held_out))
    assert not np.isnan(recorded.held_out).any()


def test_every_run_begins_knowing_nothing_and_the_best_learn(recorded):
    assert_allclose(recorded.curves[..., 0].min(-1).max(), math.log(recorded.vocab_size), atol=0.3)
    for width in recorded.axes["width"]:
        assert recorded.best(width=width)[1] < math.log(recorded.vocab_size) - 1


def test_at_the_base_width_both_parametrisations_are_one_run(recorded):
    at = {"width": BASE_WIDTH}
    standard, mup = (recorded.index(at | {"parametrisation": name}) for name in ("standard", "muP"))
    assert_array_equal(recorded.curves[standard], recorded.curves[mup])
    wider = recorded.held_out[recorded.index({"width": recorded.axes["width"][-1]})]
    assert (wider[:, 0] != wider[:, 1]).mean() > 0.9  # and at other widths they are not


def test_the_card_says_what_is_there(recorded):
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"{recorded.n_runs:,} short training runs" in card and f"{TOKENS:,} tokens" in card
    for width, kind in itertools.product(recorded.axes["width"], recorded.axes["parametrisation"]):
        point, loss = recorded.best(width=width, parametrisation=kind)
        assert re.search(
            rf"\| {width} \| {kind} \| 2\^{math.log2(point['rate']):.0f} \| {point['batch']} .*{loss:.3f}", card
        )


@pytest.mark.parametrize("rate", [2.0**-8, 2.0**-6])
def test_a_run_made_now_lies_on_the_recorded_one_far_closer_than_another_seed(recorded, plays, rate):
    point = POINT | {"rate": rate}
    run, history = recorded.run(point), train_point(point, seed=recorded.axes["seed"][0])
    curve = binned(history.loss, settings_of(point)["steps"])[:: POINTS // len(run.tokens)]
    distance, spread = np.abs(curve - run.curves[0]).mean(), np.abs(run.curves[1] - run.curves[0]).mean()
    assert distance < 0.2 * spread
    assert abs(history.eval_loss[-1] - run.held_out[0]) < 0.01


def best_power(atlas, batch, width, parametrisation):
    """The exponent of the best rate, by the mean loss over schedules, warm-ups and seeds."""
    losses = atlas.losses(batch=batch, width=width, parametrisation=parametrisation).mean((0, 1))
    return math.log2(atlas.axes["rate"][losses.argmin()])


@pytest.mark.parametrize("batch", [4, 8, 16])
def test_four_times_the_width_moves_the_best_rate_by_a_quarter_unless_mup_keeps_it(recorded, batch):
    base = best_power(recorded, batch, BASE_WIDTH, "standard")
    assert -3 <= best_power(recorded, batch, 64, "standard") - base <= -1  # measured: -2
    assert abs(best_power(recorded, batch, 64, "muP") - base) <= 1  # measured: 0


def test_the_rate_of_the_small_model_costs_a_wide_one_little_under_mup_only(recorded):
    place = recorded.losses(width=BASE_WIDTH, parametrisation="standard").argmin(-1)[..., None]

    def median_cost(parametrisation):
        losses = recorded.losses(width=64, parametrisation=parametrisation)
        return np.median(np.take_along_axis(losses, place, -1)[..., 0] - losses.min(-1))

    assert median_cost("muP") < 0.05 < 0.1 < median_cost("standard")


@pytest.mark.long
def test_runs_with_new_seeds_find_the_best_rates_where_the_atlas_has_them(recorded, plays):
    rates = [2.0**power for power in range(-9, -4)]
    point = POINT | {"batch": 8, "warmup": 0.0}

    def losses(width, parametrisation):
        points = [point | {"width": width, "parametrisation": parametrisation, "rate": rate} for rate in rates]
        return np.array([[train_point(one, seed).eval_loss[-1] for one in points] for seed in (11, 12)]).mean(0)

    base, standard, mup = (losses(*which) for which in ((BASE_WIDTH, "muP"), (64, "standard"), (64, "muP")))
    assert standard.argmin() <= base.argmin() - 1  # one step is a factor of two; the atlas has two
    assert abs(int(mup.argmin()) - int(base.argmin())) <= 1
    assert mup[base.argmin()] - mup.min() < 0.1 < standard[base.argmin()] - standard.min()


# ---- From points to runs


def test_equal_tokens_at_every_batch_and_warm_up_is_a_share_of_the_steps():
    for batch in (4, 8, 16, 32):
        settings = settings_of(POINT | {"batch": batch})
        assert settings["steps"] * batch * 64 == TOKENS
        assert settings["warmup_steps"] == math.ceil(settings["steps"] / 10)
    assert settings_of(POINT | {"warmup": 0.0})["warmup_steps"] == 0


def test_only_the_parametrisation_differs_and_not_at_the_base_width():
    wide = POINT | {"width": 64}
    (standard, training), (mup, same) = (configs_of(wide | {"parametrisation": p}, 76, 1) for p in ("standard", "muP"))
    assert (standard.mup_base_width, mup.mup_base_width) == (None, BASE_WIDTH)
    assert training == same and training.seed == 1
    assert not standard.tie_word_embeddings and standard.head_size == mup.head_size == 16
    assert configs_of(POINT, 76, 0) == configs_of(POINT | {"parametrisation": "standard"}, 76, 0)


@pytest.mark.parametrize("steps", [96, 48, 24, 12])
def test_a_curve_keeps_the_mean_loss_of_every_stretch_of_tokens(steps):
    losses = np.random.default_rng(0).random(steps)
    points = binned(losses, steps)
    assert points.shape == (POINTS,)
    assert_allclose(points.reshape(12, -1).mean(1), losses.reshape(12, -1).mean(1))
    broken = binned(losses[: steps // 2], steps)
    assert_array_equal(np.isnan(broken), np.arange(POINTS) >= POINTS // 2)


def test_best_rank_and_losses_agree_with_looking_at_every_point(small):
    points = [dict(zip(AXES, values, strict=False)) for values in itertools.product(*list(AXES.values())[:-1])]
    means = {tuple(point.values()): small.run(point).held_out.mean() for point in points}
    for width in AXES["width"]:
        of_width = [
            point for point in points if point["width"] == width and (width != 16 or point["parametrisation"] == "muP")
        ]
        for point in of_width[::5]:
            better = sum(means[tuple(other.values())] < means[tuple(point.values())] for other in of_width)
            assert small.rank(point) == (better + 1, len(of_width))
    best, loss = small.best(width=32, warmup=0.1)
    assert loss == min(mean for key, mean in means.items() if key[1] == 32 and key[4] == 0.1)
    assert means[tuple(best.values())] == loss and (best["width"], best["warmup"]) == (32, 0.1)


def test_a_saved_atlas_is_read_back_and_holds_no_pickle(small, tmp_path):
    save_atlas(small, tmp_path)
    again = load_atlas(tmp_path)
    assert again.axes == small.axes and again.vocab_size == 76
    assert_allclose(again.curves, small.curves, rtol=1e-3)
    assert_allclose(again.held_out, small.held_out, rtol=1e-6)
    with np.load(tmp_path / "atlas.npz", allow_pickle=False) as arrays:
        assert all(arrays[name].dtype != object for name in arrays)


def test_a_point_that_is_not_there_is_named(small):
    with pytest.raises(ValueError, match=r"no run with rate = 0\.3"):
        small.run(POINT | {"rate": 0.3})


# ---- The explorer


def test_rates_are_shown_as_powers_and_as_numbers():
    assert power_of_two(2.0**-7) == "2⁻⁷ = 0.0078"


def test_the_loss_and_the_place_of_the_chosen_run_are_shown(explorer, small):
    for name, value in POINT.items():
        explorer.controls[name].value = value
    assert f"held-out loss {small.run(POINT).held_out.mean():.3f}" in explorer.picture.value
    assert "rate 2⁻⁶ = 0.016, 12 steps, 2 of them warm-up" in explorer.picture.value
    rank, of = small.rank(POINT)
    assert f"place {rank} of {of} at width 16" in explorer.picture.value


def test_a_diverged_run_is_called_so_and_drawn_to_the_edge(explorer):
    for name, values in list(AXES.items())[:-1]:
        explorer.controls[name].value = values[-1]
    assert "this run diverged" in explorer.picture.value
    assert "nan" not in explorer.picture.value and "inf" not in explorer.picture.value


@pytest.fixture
def training(monkeypatch):
    """Let the button train nothing: the test says what a run does."""

    def use(run):
        monkeypatch.setattr(module, "train_point", run)

    return use


def steps_of(losses):
    def run(point, seed, callback):
        history = History()
        for loss in losses:
            history.loss.append(loss)
            if callback(history):
                history.stopped = "callback"
                return history
        history.eval_loss.append(losses[-1])
        return history

    return run


def test_the_button_trains_the_run_under_the_sliders_and_lays_it_on_the_recorded_one(explorer, plays):
    for name, value in POINT.items():
        explorer.controls[name].value = value
    before = explorer.picture.value.count("<polyline")
    explorer.button.click()
    explorer.training.join()
    assert explorer.picture.value.count("<polyline") == before + 1
    want = train_point(POINT, seed=0).eval_loss[-1]
    assert f"Trained here, seed 0: held-out loss {want:.4f}" in explorer.message.value
    assert explorer.button.description == "Train this run now"
    explorer.controls["rate"].value = 2.0**-4  # the live run was of another point
    assert explorer.picture.value.count("<polyline") == before
    explorer.controls["rate"].value = POINT["rate"]
    assert explorer.picture.value.count("<polyline") == before + 1


def test_the_same_button_stops_the_run(explorer, training):
    def endless(point, seed, callback):
        history = History(loss=[3.0])
        while not callback(history):
            time.sleep(0.01)
        history.stopped = "callback"
        return history

    training(endless)
    explorer.button.click()
    assert explorer.button.description == "Stop" and explorer.training.is_alive()
    explorer.button.click()
    explorer.training.join(timeout=10)
    assert not explorer.training.is_alive()
    assert "stopped" in explorer.message.value and explorer.button.description == "Train this run now"


def test_a_live_run_draws_ten_times_a_second_at_most(explorer, training, monkeypatch):
    clock, pictures = itertools.count(0, 0.03), []
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    training(steps_of(np.linspace(4, 3, 12).tolist()))
    explorer.picture.observe(pictures.append, "value")
    explorer.button.click()
    explorer.training.join()
    assert len(pictures) == 3 + 1  # after 0, 0.12 and 0.24 seconds, and the whole curve


@pytest.mark.parametrize("fault", [DivergedError("It broke.", History()), PretrainedError("No plays & no net.")])
def test_a_run_that_cannot_be_made_says_why_and_the_button_is_ready_again(explorer, training, fault):
    def fails(point, seed, callback):
        raise fault

    training(fails)
    explorer.button.click()
    explorer.training.join()
    assert str(fault).replace("&", "&amp;") in explorer.message.value
    assert explorer.button.description == "Train this run now"


def test_a_live_run_leaves_the_readers_random_numbers_alone(plays):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train_point(POINT, seed=0, callback=lambda history: True)
    assert torch.equal(torch.get_rng_state(), before)
