"""The recorded experiments of notebook 05: whole, above no line that they claim to pass, and made again in part."""

import json
from dataclasses import replace

import pytest
import runner
import torch
import tuning_experiments as recipe
from runner import finite, grouped, losses_by

from gptcourse.config import GPTConfig, TrainingConfig
from gptcourse.model import GPT
from gptcourse.ngrams import NGrams
from gptcourse.training import train

FOLDER = runner.ASSETS / "tuning"
DATA = runner.recorded(FOLDER)


def rows_of(data):
    """Return all lists of runs in an experiment."""
    return [rows for rows in data.values() if isinstance(rows, list) and rows and isinstance(rows[0], dict)]


def test_the_files_are_small_and_strict_json_and_none_is_missing():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 300_000
    assert DATA.keys() == recipe.PARTS.keys()
    assert "Not recorded." not in (FOLDER / "README.md").read_text(encoding="utf-8")
    for path in FOLDER.glob("*.json"):
        json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(name))


@pytest.mark.parametrize("part", [name for name in DATA if name not in ("lines", "answer", "search")])
def test_every_setting_was_run_with_three_seeds(part):
    for rows in rows_of(DATA[part]):
        measured = {"seed", "loss", "outcome", "tokens", "curve"}
        if part == "rules":
            measured.remove("tokens")  # there it is a setting
        if part in ("noise", "cool_down"):
            measured |= {"gradient_norm_squared", "trace", "sequences", "standard_error"}
        columns = [name for name in rows[0] if name not in measured]
        assert all(len({row["seed"] for row in group}) == len(group) == 3 for group in grouped(rows, *columns).values())


@pytest.mark.parametrize("part", ["choose", "compare"])
def test_the_lines_are_those_of_tables_counted_now(part):
    counts = NGrams(recipe.PLAYS.train, recipe.MODEL.vocab_size, recipe.LONGEST)
    assert DATA["lines"][part] == pytest.approx(list(counts.losses(getattr(recipe.PLAYS, part))), abs=1e-3)


def test_good_runs_pass_the_table_of_4_grams_with_every_seed():
    fourth = DATA["lines"]["choose"][3]
    best = min(losses_by(DATA["rates"]["runs"], "batch_size", "rate").values(), key=lambda losses: sorted(losses)[1])
    assert max(best) < fourth
    assert max(losses_by(DATA["switches"]["runs"], "switch")["all"]) < fourth


@pytest.mark.parametrize("size", [16, 64])
def test_no_winner_stands_at_the_edge_of_its_grid(size):
    runs = [row for row in DATA["rates"]["runs"] if row["batch_size"] == size]
    medians = {rate: sorted(map(finite, losses))[1] for rate, losses in losses_by(runs, "rate").items()}
    assert min(medians) < min(medians, key=medians.get) < max(medians)


def test_the_beginning_of_a_recorded_run_is_made_again():
    data = DATA["rates"]
    row = next(row for row in data["runs"] if (row["batch_size"], row["rate"], row["seed"]) == (16, 8e-3, 1))
    curve = {step: loss for step, loss in row["curve"] if step <= 100}
    torch.manual_seed(1)
    model, config = GPT(GPTConfig(**data["model"])), TrainingConfig(**data["config"])
    stop = max(curve)
    history = train(
        model, recipe.PLAYS.train, replace(config, seed=1), progress=False, callback=lambda h: len(h.step) >= stop
    )
    assert len(curve) >= 2
    for step, loss in curve.items():
        assert history.loss[step - 1] == pytest.approx(loss, abs=0.02)


def test_the_answer_is_given_with_seeds_that_chose_nothing():
    fresh = {row["seed"] for row in DATA["answer"]["fresh"]}
    assert fresh == set(recipe.FRESH_SEEDS) and not fresh & set(recipe.SEEDS)


def best_rate(rows, **chosen):
    """Return the rate with the lowest median, and that median."""
    rows = [row for row in rows if chosen.items() <= row.items()]
    medians = {rate: sorted(map(finite, losses))[1] for rate, losses in losses_by(rows, "rate").items()}
    rate = min(medians, key=medians.get)
    assert min(medians) < rate < max(medians), chosen
    return rate, medians[rate]


def test_mup_carries_the_rate_to_a_wider_model_and_only_with_the_tuned_first_weights():
    wide = DATA["widths"]["wide"]
    base = {d: best_rate(DATA["widths"]["base"], deviation=d) for d in recipe.BASE_DEVIATIONS[:-1]}
    tuned = min(base, key=lambda deviation: base[deviation][1])
    assert tuned == 0.18 and base[tuned][0] == 1.6e-2
    standard = {d: best_rate(wide, parametrisation="standard", deviation=d) for d in (0.02, 0.06, tuned)}
    assert {rate for rate, _ in standard.values()} == {base[tuned][0] / 4}
    rate, loss = best_rate(wide, parametrisation="muP", deviation=tuned)
    assert rate == base[tuned][0] and loss < min(loss for _, loss in standard.values())
    assert best_rate(wide, parametrisation="muP", deviation=0.02)[1] > standard[0.02][1] + 0.05
    assert standard[tuned][1] > loss + 0.2


def test_the_rules_for_decay_and_depth_move_the_settings_too_far():
    decay = {key: sorted(losses) for key, losses in losses_by(DATA["rules"]["decay"], "tokens", "decay").items()}
    for tokens in (recipe.SHORT_TOKENS, recipe.TOKENS):  # the same decays are good at both lengths
        assert decay[tokens, 0.1][0] < decay[tokens, 0.4][-1] and decay[tokens, 0.4][0] < decay[tokens, 0.1][-1]
        assert decay[tokens, 1.6][0] > decay[tokens, 0.4][-1] + 0.1
    rates = {n: best_rate(DATA["rules"]["depth"], n_layer=n)[0] for n in recipe.DEPTH_RATES}
    assert set(rates.values()) == {8e-3}
    deep = {
        rate: sorted(losses)
        for (n, rate), losses in losses_by(DATA["rules"]["depth"], "n_layer", "rate").items()
        if n == 8
    }
    assert deep[4e-3][0] > deep[8e-3][-1] and deep[1.6e-2][0] > deep[8e-3][-1] + 0.1


def test_the_winner_of_the_search_is_run_again_with_seeds_that_chose_nothing():
    found = DATA["search"]
    best = min(found["trials"], key=lambda trial: finite(trial["loss"]))
    assert len(found["trials"]) == recipe.SEARCH_TRIALS and found["chosen"].items() <= best.items()
    assert {row["seed"] for row in found["fresh"]} == set(recipe.FRESH_SEEDS)
