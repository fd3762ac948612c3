"""The recipe of notebook 10's experiments, with runs that a formula makes: what is chosen, and what is compared."""

import itertools
import json
import math
from dataclasses import replace

import plays
import pytest
import runner
import scaling_experiments as recipe

from gptcourse.scaling import ScalingLaw, fit_scaling_law

TRUTH = ScalingLaw(E=1.0, A=30.0, alpha=0.4, B=60.0, beta=0.35)
BEST_RATE = 4e-3
best_table, rolling = recipe.best_table, recipe.rolling


@pytest.fixture(autouse=True)
def assets(monkeypatch, tmp_path):
    """The folder of the assets; a formula takes the place of training."""
    monkeypatch.setattr(runner, "ASSETS", tmp_path)
    monkeypatch.setattr(recipe, "grid", grid)
    monkeypatch.setattr(recipe, "step_ratios", step_ratios)
    monkeypatch.setattr(recipe, "best_table", lambda tokens: {"tokens": tokens, "n": 5, "loss": 2.0})
    monkeypatch.setattr(recipe, "rolling", lambda runs: [])  # nine fits
    CALLS.clear()
    return tmp_path


@pytest.fixture
def work(tmp_path):
    return runner.Work(tmp_path / "work", tmp_path / "scaling", processes=1)


def step_ratios(runs, rounds, steps):
    return dict.fromkeys(runs, 0.5)


CALLS = []  # (name, held-out text, seeds, settings)


def grid(work, name, model, config, axes, held_out, *, common=None, seeds=(0, 1, 2)):
    """Give each run the loss that TRUTH says, a little more for each doubling of its rate away from BEST_RATE."""
    rows = []
    for values in itertools.product(*(axis.items() for axis in axes.values())):
        settings = dict(common or {}) | {key: value for _, fields in values for key, value in fields.items()}
        CALLS.append((name, held_out, tuple(seeds), settings))
        size = model.num_parameters if "n_embd" not in settings else shape_of(model, settings).num_parameters
        loss = TRUTH.loss(size, settings["tokens"])
        loss += 0.02 * abs(math.log2(settings.get("learning_rate", BEST_RATE) / BEST_RATE))
        for seed in seeds:
            names = {axis: key for axis, (key, _) in zip(axes, values, strict=True)}
            made = {"seed": seed, "outcome": "finished", "loss": loss + 1e-4 * (seed - 1)}
            rows.append(names | made | {"tokens": settings["tokens"]})
        plays.within_tokens(settings)  # raises where a setting is missing
    return rows


def shape_of(model, settings):
    return replace(model, **{name: settings[name] for name in ("n_layer", "n_embd", "n_head")})


def test_every_choice_is_made_on_one_text_and_every_comparison_on_the_other(work):
    for part in recipe.PARTS.values():
        part(work)
    for name, held_out, seeds, _ in CALLS:
        is_trial = name.endswith("_trials")
        assert held_out == ("choose" if is_trial else "compare")
        assert (seeds in ((10,), recipe.TRIAL_SEEDS)) == is_trial
    assert len({name for name, *_ in CALLS}) == 4  # a sweep's file holds runs of one text


def test_the_law_is_recorded_with_the_best_rate_of_each_size_and_the_larger_run_beside_it(work):
    data = recipe.law(work)
    assert set(data["rates"].values()) == {BEST_RATE}
    assert len(data["runs"]) == len(recipe.SIZES) * len(recipe.BUDGETS)
    for run in [*data["runs"], data["larger"]]:
        assert run["loss"] == pytest.approx(TRUTH.loss(run["parameters"], run["tokens"]), abs=1e-3)
    assert data["larger"]["parameters"] > 5 * max(run["parameters"] for run in data["runs"])
    assert len(data["repeats"]) == 2 * len(recipe.SIZES) and data["doubtful"] == []


@pytest.mark.parametrize(
    ("gains", "adopted"), [({10: 0.05, 11: 0.06, 12: 0.07}, True), ({10: 0.05, 11: -0.04, 12: 0.0}, False)]
)
def test_a_rate_beyond_the_grid_is_taken_only_if_three_seeds_tell_it_apart(work, monkeypatch, gains, adopted):
    """The best rate of the first grid is its largest, and twice that rate is better by a gain for each seed."""

    def at_the_edge(work, name, model, config, axes, held_out, **options):
        rows = grid(work, name, model, config, axes, held_out, **options)
        for row in rows:
            if "rate" in row:
                row["loss"] = 2.0 + 0.2 * abs(math.log2(row["rate"] / 16e-3))
                row["loss"] = 2.0 - gains[row["seed"]] if row["rate"] == 32e-3 else row["loss"]
        return rows

    monkeypatch.setattr(recipe, "grid", at_the_edge)
    data = recipe.law(work)
    assert {data["rates"][name] for name in recipe.SIZES} == ({32e-3} if adopted else {16e-3})
    assert len(data["doubtful"]) == (0 if adopted else len(recipe.SIZES) * len(recipe.BUDGETS))
    tried = [row for row in data["trials"] if row["shape"] == "2 × 16" and row["rate"] == 32e-3]
    assert sorted(row["seed"] for row in tried) == [10, 11, 12]


def test_each_run_with_three_smaller_sizes_and_three_shorter_lengths_is_predicted_from_those():
    runs = [
        {"shape": f"{n:g}", "parameters": n, "tokens": d, "loss": TRUTH.loss(n, d)}
        for n in (1e4, 2e4, 4e4, 2e5)
        for d in (1e5, 2e5, 4e5, 8e5)
    ]
    (row,) = rolling(runs)
    assert (row["shape"], row["tokens"], row["n_runs"]) == ("200000", 8e5, 9)
    known = [run for run in runs if run["parameters"] < 2e5 and run["tokens"] < 8e5]
    assert row["law"] == pytest.approx(fit_scaling_law(*recipe.columns(known)).loss(2e5, 8e5), abs=1e-3)
    assert row["ruler"] < row["loss"]  # a straight line on logarithmic axes falls below a curve that has a floor


def test_the_best_table_of_each_length_is_found():
    short, longer = (best_table(tokens, longest=4) for tokens in (4_000, 40_000))
    assert short["loss"] > longer["loss"] and short["n"] <= longer["n"]


def test_shapes_have_equally_many_parameters_and_heads_of_about_one_size():
    sizes = [recipe.costs(shape)["parameters"] for shape in recipe.SHAPES.values()]
    assert max(sizes) / min(sizes) < 1.04
    for shape in recipe.SHAPES.values():
        fields = recipe.shape_of(*shape)
        assert 16 <= fields["n_embd"] / fields["n_head"] <= 18 and fields["n_embd"] % fields["n_head"] == 0


def make(folder, *parts):
    options = ["--processes", "1", "--work", str(folder / "work")]
    runner.run("scaling", recipe.PARTS, recipe.card, [*parts, *options])
    return (folder / "scaling" / "README.md").read_text(encoding="utf-8")


def test_what_was_asked_for_is_written_and_the_card_says_what_is_missing(assets):
    card = make(assets, "law")
    assert {path.name for path in (assets / "scaling").iterdir()} == {"law.json", "README.md"}
    assert card.count("Not recorded.") == 1
    law = json.loads((assets / "scaling" / "law.json").read_text())
    assert f"| 6 × 192 | 2,696,448 | 4,700,000 | {law['larger']['loss']:.3f} |" in card
    assert "Not recorded." not in make(assets, "shape")
