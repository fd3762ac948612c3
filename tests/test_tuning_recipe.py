"""The recipe of notebook 05's experiments on tiny settings: every experiment, started again, and its card."""

from dataclasses import replace

import plays
import pytest
import runner
import torch
import tuning_experiments as recipe

from gptcourse.training import evaluate, train

SMALL = replace(recipe.MODEL, n_positions=4, n_embd=8, n_layer=1, n_head=1)
SETTINGS = {
    "MODEL": SMALL,
    "CONFIG": replace(recipe.CONFIG, steps=4, warmup_steps=1),
    "COMMON": recipe.COMMON | {"tokens": 512},
    "TOKENS": 512,
    "SHORT_TOKENS": 256,
    "DECAYS": (0.1,),
    "DEPTH_RATES": {1: (4e-3,), 2: (4e-3,)},
    "LARGER": 32,
    "RULE_RATES": (8e-3,),
    "RATES": {"4": [4e-3], "16": [4e-3, 8e-3]},
    "BATCHES": {"256": {"8": [4e-3]}, "512": {"4": [4e-3, 8e-3]}},
    "STANDARD_DEVIATIONS": (0.02, 0.1),
    "WIDTHS": (8, 16),
    "HEAD_SIZE": 8,
    "WIDTH_TOKENS": 256,
    "BASE_RATES": (4e-3, 8e-3),
    "BASE_DEVIATIONS": (0.02, 0.3),
    "WIDE_RATES": {"standard": (4e-3,), "muP": (4e-3,)},
    "NOISE_STEPS": (2, 4),
    "COOL_DOWN": 2,
    "RAMP_TO": 5,
    "RAMP_STEPS": 5,
    "RAMP_RATES": (4e-3, 8e-3),
    "SEARCH_TRIALS": 5,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The folder of an asset, made in seconds with tiny settings; the text is made of numbers."""
    ids = (torch.rand(4_000, generator=torch.Generator().manual_seed(0)) ** 4 * 76).long()
    folder = tmp_path_factory.mktemp("tuning")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "ASSETS", folder)
        patch.setattr(plays, "MODEL", SMALL)
        patch.setattr(plays, "read_plays", lambda: (None, ids, ids.flip(0)))
        for name, value in (SETTINGS | {"PLAYS": plays.Plays(600, 600)}).items():
            patch.setattr(recipe, name, value)
        make(folder)
        yield folder


def make(folder, *parts):
    runner.run("tuning", recipe.PARTS, recipe.card, [*parts, "--processes", "1", "--work", str(folder / "work")])


def test_started_again_the_recipe_makes_no_run_twice_and_writes_the_same(tiny, monkeypatch):
    before = runner.recorded(tiny / "tuning")
    kept = {path.name: path.read_bytes() for path in (tiny / "work").glob("*.jsonl")}
    monkeypatch.setattr(recipe, "train", lambda *_, **__: pytest.fail("a run was made again"))
    make(tiny)
    assert runner.recorded(tiny / "tuning") == before and before.keys() == recipe.PARTS.keys()
    assert kept == {path.name: path.read_bytes() for path in (tiny / "work").glob("*.jsonl")}


def test_an_experiment_that_was_not_run_is_said_to_be_missing(tiny):
    card = recipe.card({})
    assert card.count("Not recorded.") == len(recipe.PARTS) == card.count("\n## ")
    assert "Not recorded." not in (tiny / "tuning" / "README.md").read_text(encoding="utf-8")


def test_an_unknown_experiment_is_refused(tiny, capsys):
    with pytest.raises(SystemExit):
        make(tiny, "batch")
    assert "no part 'batch': choose out of lines, rates" in capsys.readouterr().err


def test_shares_of_a_run_become_steps():
    tokens = 100 * 10 * plays.MODEL.n_positions
    settings = {"tokens": tokens, "batch_size": 10, "warmup": 0.1, "adam_beta2": 0.9}
    assert plays.within_tokens(settings) == {"batch_size": 10, "adam_beta2": 0.9, "steps": 100, "warmup_steps": 10}


def test_grids_share_the_runs_that_they_have_in_common(tiny):
    data = runner.recorded(tiny / "tuning")
    usual = [row["loss"] for row in data["rates"]["runs"] if (row["batch_size"], row["rate"]) == (16, 8e-3)]
    assert usual == [row["loss"] for row in data["switches"]["runs"] if row["switch"] == "all"]
    assert usual == [row["loss"] for row in data["initialisation"]["runs"] if row["deviation"] == 0.02]
    lines = (tiny / "work" / "runs.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(set(lines))


def test_the_wide_model_gets_the_first_weights_that_were_best_in_the_narrow_one(tiny):
    data = runner.recorded(tiny / "tuning")["widths"]
    best, _ = recipe.lowest(data["base"], "deviation", "rate")
    assert {row["deviation"] for row in data["wide"] if row["parametrisation"] == "muP"} == {0.02, best}
    by_hand = replace(SMALL, n_embd=16, n_head=2, tie_word_embeddings=False, mup_base_width=8, initializer_range=0.02)
    config = replace(recipe.CONFIG, learning_rate=4e-3, warmup_steps=0)
    torch.manual_seed(0)
    model = recipe.GPT(by_hand)
    train(model, recipe.PLAYS.train, replace(config, steps=4), progress=False, device="cpu")
    row = next(r for r in data["wide"] if (r["parametrisation"], r["deviation"], r["seed"]) == ("muP", 0.02, 0))
    assert row["loss"] == pytest.approx(evaluate(model, recipe.PLAYS.choose), abs=1e-4)


def test_the_noise_scale_is_the_same_under_both_schedules_until_their_rates_part(tiny):
    found = {
        (r["schedule"], r["seed"], r["step"]): r["sequences"] for r in runner.recorded(tiny / "tuning")["noise"]["runs"]
    }
    assert len(found) == 2 * len(recipe.SEEDS) * 2
    assert all(found["constant", seed, 4] != found["cosine", seed, 4] for seed in recipe.SEEDS)


def test_the_noise_scale_is_measured_where_a_constant_rate_begins_to_fall_and_after(tiny):
    data = runner.recorded(tiny / "tuning")
    constant = {(r["seed"], r["step"]): r["loss"] for r in data["noise"]["runs"] if r["schedule"] == "constant"}
    runs = {(row["seed"], row["step"]): row["loss"] for row in data["cool_down"]["runs"]}
    assert {step for _, step in runs} == {2, 4}
    assert all(runs[seed, 2] == constant[seed, 2] and runs[seed, 4] != constant[seed, 4] for seed in recipe.SEEDS)


def test_a_growing_batch_reads_as_much_in_as_many_steps_as_one_that_stays(tiny):
    data = runner.recorded(tiny / "tuning")["ramp"]
    tokens = {batch: {run["tokens"] for run in rows} for batch, rows in runner.grouped(data["runs"], "batch").items()}
    assert data["mean"] == 3 and tokens == {"grows": {15 * 4}, "stays": {15 * 4}}


def test_what_a_search_chose_is_trained_again_with_seeds_and_on_text_that_chose_nothing(tiny):
    data = runner.recorded(tiny / "tuning")["search"]
    best = min(data["trials"], key=lambda trial: trial["loss"])
    assert data["chosen"] == {name: best[name] for name in recipe.SPACE}
    assert [row["seed"] for row in data["fresh"]] == list(recipe.FRESH_SEEDS) and not set(recipe.FRESH_SEEDS) & set(
        recipe.SEEDS
    )
    assert all(row["choose"] != row["compare"] for row in data["fresh"])


def test_the_lowest_median_wins_and_a_run_that_diverged_counts_as_infinite():
    losses = {"a": (1.0, 1.0, None), "b": (2.0, 1.5, None), "c": (1.1, 1.2, 1.3), "d": (None, None, 0.9)}
    rows = [{"x": x, "loss": loss, "outcome": "?"} for x, found in losses.items() for loss in found]
    assert recipe.lowest(rows, "x") == "a"
    assert recipe.lowest([row for row in rows if row["x"] in "cd"], "x") == "c"


def test_what_the_experiments_chose_is_compared_with_nanogpts_settings(tiny):
    data = runner.recorded(tiny / "tuning")["answer"]
    assert data["settings"]["nanoGPT's"] == {"batch_size": 12, "learning_rate": 1e-3, "adam_beta2": 0.99}
    rates = [row for row in runner.recorded(tiny / "tuning")["rates"]["runs"] if row["batch_size"] == 16]
    assert data["settings"]["by experiment"]["learning_rate"] == recipe.lowest(rates, "rate")
    assert len(data["fresh"]) == 9 and all(row["choose"] != row["compare"] for row in data["fresh"])


def test_beta2_is_carried_to_a_small_batch_by_its_half_life(tiny):
    data = runner.recorded(tiny / "tuning")["half_life"]
    assert data["batch_size"] == 4 and data["rate"] == pytest.approx(recipe.CONFIG.learning_rate / 2)
    assert sorted({row["beta2"] for row in data["runs"]}) == pytest.approx([0.95, 0.95**0.25])
