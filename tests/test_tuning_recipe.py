"""The recipe of notebook 05's experiments on tiny settings: every experiment, started again, and its card."""

import math
from concurrent.futures import Future
from dataclasses import replace

import pytest
import runner
import torch
import tuning_card
import tuning_experiments as recipe

from gptcourse import sweeps
from gptcourse.training import History, train
from gptcourse.tuning import BatchTradeOff


class InThisProcess:
    """In place of ProcessPoolExecutor: starting a process takes longer than a tiny run."""

    made = 0

    def __init__(self, *_):
        pass

    def submit(self, work, *given):
        InThisProcess.made += 1
        future = Future()
        future.set_result(work(*given))
        return future

    def shutdown(self):
        pass


TRUTH = BatchTradeOff(min_steps=90, critical_batch=16)
steps_to_target = recipe.steps_to_target


def hyperbolic(size, rate, seed, limit):
    """In place of training: steps on a hyperbola at the rate of the square-root rule, and more at any other."""
    best = 1e-2 * math.sqrt(size / 4) * (2 if size == 8 else 1)
    steps = round(TRUTH.steps(4 * size) * (1 + abs(math.log2(rate / best))))
    steps = steps if steps <= limit else None
    return {"batch_size": size, "rate": rate, "seed": seed, "steps": steps, "limit": limit}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The folder of an asset, made in seconds with tiny settings; the text is made of numbers."""
    ids = (torch.rand(4_000, generator=torch.Generator().manual_seed(0)) ** 4 * 76).long()
    small = replace(recipe.SMALL, n_positions=4, n_embd=8, n_layer=1, n_head=1)
    settings = {
        "MODEL": small,
        "SMALL": small,
        "RECIPE": replace(recipe.RECIPE, steps=4, batch_size=2, warmup_steps=1, eval_steps=2),
        "TRIAL_TOKENS": 128,
        "LONG_TRIAL_TOKENS": 192,
        "TUNED_TOKENS": (64, 128),
        "CHOICES": replace(recipe.CHOICES, steps=3, batch_size=2, warmup_steps=1),
        "BATCHES": (2, 4, 8),
        "ANCHOR": (4, 1e-2),
        "TARGET": 3.9,
        "WATCH_TOKENS": 4,
        "steps_to_target": hyperbolic,
        "NOISE": {"small": 8, "big": 256, "n_batches": 4},
        "SEARCH_TOKENS": 320,
        "SEARCH_RUNS": 6,
        "GRID": {"learning_rate": (1e-3, 1e-2, 1e-1), "batch_size": (2, 4), "warmup": (0.0,)},
        "WIDTHS": (8, 16),
        "HEAD_SIZE": 4,
        "WIDTH_RATES": (2**-6, 2**-3),
        "WIDTH_STEPS": 10,
        "SHAPES": {"narrow": {"n_embd": 4}, "wide": {"n_embd": 8}},
        "SHAPE_RATES": (1e-2, 1e-1),
        "read_text": lambda: recipe.Text(ids, ids[:600], ids[-600:]),
    }
    folder = tmp_path_factory.mktemp("tuning")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeps, "ProcessPoolExecutor", InThisProcess)
        patch.setattr(runner, "ASSETS", folder)
        for name, value in settings.items():
            patch.setattr(recipe, name, value)
        make(folder)
        yield folder


def make(folder, *parts):
    runner.run("tuning", recipe.PARTS, tuning_card.card, [*parts, "--processes", "1", "--work", str(folder / "work")])


def test_started_again_the_recipe_makes_no_run_twice_and_writes_the_same(tiny, monkeypatch):
    before, made = runner.recorded(tiny / "tuning"), InThisProcess.made
    monkeypatch.setattr(recipe, "train", lambda *_, **__: pytest.fail("a run was made again"))
    make(tiny)
    assert runner.recorded(tiny / "tuning") == before and InThisProcess.made == made
    assert before.keys() == recipe.PARTS.keys()


def test_an_experiment_that_was_not_run_is_said_to_be_missing(tiny):
    card = tuning_card.card({})
    assert card.count("Not recorded.") == len(recipe.PARTS) == card.count("\n## ")
    assert "Not recorded." not in (tiny / "tuning" / "README.md").read_text(encoding="utf-8")


def test_an_unknown_experiment_is_refused(tiny, capsys):
    with pytest.raises(SystemExit):
        make(tiny, "batches")
    assert "no part 'batches': choose out of recipe, batch" in capsys.readouterr().err


def test_shares_of_a_run_become_steps():
    tokens = 100 * 10 * recipe.SMALL.n_positions
    settings = {"tokens": tokens, "batch_size": 10, "warmup": 0.1, "decay": 0.5, "adam_beta2": 0.9}
    wanted = {"batch_size": 10, "adam_beta2": 0.9, "steps": 100, "warmup_steps": 10, "decay_steps": 50}
    assert recipe.within_tokens(settings) == wanted


def test_the_steps_to_a_loss_are_those_of_the_same_run_made_by_hand(tiny):
    text = recipe.read_text()
    run = steps_to_target(4, 1e-2, seed=1, limit=200)
    torch.manual_seed(1)
    config = replace(recipe.CHOICES, steps=run["steps"] + 1, batch_size=4, learning_rate=1e-2, seed=1)
    config = replace(config, lr_scheduler_type="constant", warmup_steps=20, eval_steps=1)
    model = recipe.GPT(recipe.SMALL)
    history = train(model, text.train, config, validation_tokens=text.watched, progress=False)
    medians = [sorted(history.eval_loss[i : i + 3])[1] for i in range(len(history.eval_loss) - 2)]
    assert medians[-1] <= recipe.TARGET < min(medians[:-1])


def test_a_run_that_does_not_arrive_or_diverges_has_no_steps(tiny):
    assert steps_to_target(4, 1e-5, seed=0, limit=5)["steps"] is None
    assert steps_to_target(4, 1e25, seed=0, limit=60)["steps"] is None


def test_a_loss_is_reached_when_two_of_the_last_three_are_there():
    at, above = recipe.TARGET, recipe.TARGET + 0.1
    reached = {(above, at, at): True, (at, above, at): True, (at, above, above): False, (at, at): False}
    for losses, wanted in reached.items():
        assert recipe.has_reached(History(eval_loss=list(losses))) is wanted


def test_every_batch_size_gets_its_own_rate_and_the_hyperbola_is_found_again(tiny):
    data = runner.recorded(tiny / "tuning")["batch"]
    for size, factor in {2: 1, 4: 1, 8: 2}.items():
        best, steps = tuning_card.best_rate(data["runs"], size)
        assert math.isclose(best, factor * 1e-2 * math.sqrt(size / 4), rel_tol=1e-3)
        tried = [run["rate"] for run in data["runs"] if run["batch_size"] == size]
        assert min(tried) < best < max(tried) and len(steps) == len(recipe.SEEDS)
    assert math.isclose(data["fit"]["min_steps"], TRUTH.min_steps, rel_tol=0.03)
    assert math.isclose(data["fit"]["critical_batch"], TRUTH.critical_batch, rel_tol=0.05)


def test_the_prediction_of_the_noise_scale_is_a_hyperbola_with_that_bend():
    truth = BatchTradeOff(min_steps=50, critical_batch=640)
    runs = [{"batch_size": b, "rate": 1, "seed": 0, "steps": truth.steps(64 * b), "limit": 999} for b in (2, 8, 32)]
    data = {"model": {"n_positions": 64}, "runs": runs, "noise": [{"tokens": 640}]}
    assert math.isclose(tuning_card.predicted_steps(data, 8), truth.steps(512))


def test_a_search_is_cut_where_its_budget_ends():
    run = recipe.within_budget("random", 0, [10, 20, 30], [math.inf, 2.5, 2.0], budget=25)
    assert run["tokens"] == [10, 20] and run["best"] == [None, 2.5]
    assert tuning_card.best_at([run], 15) == [None] and tuning_card.best_at([run], 25) == [2.5]


def test_each_width_has_both_parametrisations_but_the_base_which_has_one(tiny):
    data = runner.recorded(tiny / "tuning")["widths"]
    models = {(run["width"], run["parametrisation"]) for run in data["runs"]}
    assert models == {(8, "standard"), (16, "standard"), (16, "muP")}
    assert len(data["runs"]) == len(models) * len(recipe.WIDTH_RATES) * len(recipe.SEEDS)
    at = {(r["width"], r["parametrisation"], r["rate"], r["seed"]): r["loss"] for r in data["runs"]}
    assert at[16, "standard", 2**-3, 0] != at[16, "muP", 2**-3, 0]
    assert tuning_card.power_of_two(2**-13) == "2⁻¹³"


def test_pruned_runs_leave_tokens_for_more(tiny):
    data = runner.recorded(tiny / "tuning")["search"]
    for run in data["runs"]:
        assert run["tokens"][-1] <= data["budget"]
        assert run["method"] == "tpe" or len(run["tokens"]) == recipe.SEARCH_RUNS


def test_the_shortest_tuned_run_that_gets_there_is_the_one_compared():
    data = {
        "model": {"n_positions": 64},
        "recipe": {"steps": 2000, "batch_size": 12},
        "tuned": {"batch_size": 6},
        "recipe_runs": [{"loss": loss} for loss in (1.9, 2.0, 2.3)],
        "tuned_runs": [{"budget": 64 * 6 * n, "loss": x} for n, x in ((400, 2.1), (500, 1.99), (600, 1.8))],
        "seconds_per_step": {"ratio": 0.5},
    }
    found = tuning_card.comparison(data)
    assert (found["tuned_steps"], found["recipe_loss"], found["tuned_loss"]) == (500, 2.0, 1.99)
    assert [found[name] for name in ("steps", "tokens", "seconds")] == [0.25, 0.125, 0.125]


def test_a_switch_counts_only_where_the_seeds_do_not_overlap():
    losses = {"all": (2.0, 2.1, 2.2), "a": (2.2, 2.4, 2.3), "b": (2.3, None, 2.4), "c": (1.9, 1.9, 1.9)}
    said = tuning_card.verdicts([{"switch": s, "rate": 1, "loss": x} for s, found in losses.items() for x in found])
    assert "worse with every seed: b; better with every seed: c; the ranges overlap: a." in said
