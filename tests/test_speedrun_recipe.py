"""The speedrun's recipe, with runs that a formula makes: what is kept, and how a time is read off."""

import math

import plays
import pytest
import runner
import speedrun as recipe

from gptcourse.model import GPT

GOAL = {"choose": 2.0, "compare": 2.1}
BEST_RATE = 8e-3
SAVES = {"rotary": 1.5, "muon": 3.0, "relu2": 1.2}  # how many times fewer tokens are enough
IDEAS = {
    "its rate tuned": {},
    "Muon": {"optim": "muon"},
    "rotary positions": {"position_embedding": "rotary"},
    "query/key norm": {"qk_norm": True},
    "squared ReLU": {"activation_function": "relu2"},
    "windows of 128 characters": {"n_positions": 128, "batch_size": "half"},
    "half the batch": {"batch_size": "half"},
}
TOKENS = 4e6  # with which the recipe at its best rate arrives


def formula(settings, tokens, seed):
    """Return losses that fall by 0.1 for each doubling of the tokens, and reach both goals together."""
    saved = math.prod(factor for name, factor in SAVES.items() if name in settings.values())
    loss = 0.1 * math.log2(TOKENS / tokens / saved) + 0.05 * math.log2(settings["learning_rate"] / BEST_RATE) ** 2
    loss += 0.001 * (seed % 3)
    only_compare = 0.5 if settings.get("qk_norm") else 0  # helps there, and harms on the other text
    return {"choose": GOAL["choose"] + loss + only_compare, "compare": GOAL["compare"] + loss - only_compare}


def ratios(runs, rounds, steps):
    """A step with squared ReLU takes twice as long as one without."""
    seconds = {name: 2.0 if "relu2" in settings.values() else 1.0 for name, settings in runs.items()}
    first = next(iter(seconds.values()))
    return {name: value / first for name, value in seconds.items()}


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "ASSETS", tmp_path)
    monkeypatch.setattr(recipe, "trained", formula)
    monkeypatch.setattr(recipe, "step_ratios", ratios)
    monkeypatch.setattr(recipe, "goals", lambda: GOAL)
    monkeypatch.setattr(recipe, "IDEAS", IDEAS)
    return runner.Work(tmp_path / "work", tmp_path / "speedrun", processes=1)


def test_tokens_are_read_off_on_a_line_over_their_logarithm():
    assert recipe.crossing(1000, 4000, 2.2, 1.8, 2.0) == 2000
    assert recipe.crossing(1000, 2000, 2.0, 1.8, 2.1) == 707  # a little outside
    assert recipe.crossing(1000, 2000, 1.9, 1.9, 2.0) == recipe.crossing(1000, 2000, None, 1.9, 2.0) == math.inf
    assert recipe.crossing(1000, 2000, 2.1, None, 2.0) == math.inf


def test_a_rate_is_looked_for_until_it_has_a_worse_one_on_either_side(work):
    rate, trials = recipe.best_rate(work, recipe.BEGIN)
    assert rate == BEST_RATE and [trial["rate"] for trial in trials] == [5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 16e-3]


@pytest.mark.parametrize("guess", [41, 43, 44, 46])
def test_two_lengths_are_found_that_the_goal_lies_between_wherever_the_search_begins(work, guess):
    settings = recipe.BEGIN | {"learning_rate": BEST_RATE}
    found = recipe.arrival(work, settings, GOAL, guess)
    assert found == recipe.arrival(work, settings, GOAL, 44)
    less, more = found["losses"]["choose"]
    assert less[0] > GOAL["choose"] >= more[0] and len(less) == len(more) == 3
    assert found["tokens"]["choose"] == pytest.approx([TOKENS * 2 ** (0.01 * seed) for seed in range(3)], rel=1e-4)


def test_who_does_not_arrive_within_four_rungs_is_read_off_further_on(work):
    found = recipe.arrival(work, recipe.BEGIN | {"learning_rate": BEST_RATE}, GOAL, 36)
    assert found["rung"] == 40 and found["tokens"]["choose"][0] == pytest.approx(TOKENS, rel=1e-4)


def test_a_change_is_kept_if_it_saves_time_on_the_text_for_choosing(work):
    data = recipe.speedrun(work)
    rows = {row["name"]: row for row in data["rows"]}
    assert list(rows) == [recipe.RECIPE_NAME, *IDEAS]
    kept = [name for name, row in rows.items() if row["kept"]]
    # query/key norm helps on the other text alone, squared ReLU saves tokens and no time, and the rest does nothing.
    assert kept == [recipe.RECIPE_NAME, "its rate tuned", "Muon", "rotary positions"]
    assert rows["Muon"]["gain"] == pytest.approx([math.log(3)] * 3, abs=1e-3)
    assert rows["squared ReLU"]["gain"][0] == pytest.approx(math.log(1.2 / 2), abs=1e-3)
    assert rows["half the batch"]["settings"]["batch_size"] == recipe.BEGIN["batch_size"] // 2
    assert rows["half the batch"]["gain"][0] == pytest.approx(-math.log(2), abs=1e-3)  # a step takes as long
    assert rows["windows of 128 characters"]["gain"][0] == pytest.approx(0, abs=1e-3)
    assert data["confirmed"]["tokens"]["compare"][0] == pytest.approx(TOKENS / 4.5, rel=1e-3)
    assert set(data["seconds_per_token"]) == set(kept)


@pytest.mark.parametrize("ideas", [recipe.IDEAS, IDEAS], ids=["recorded", "tested"])
def test_every_change_can_be_built(ideas):
    settings = dict(recipe.BEGIN)
    for change in ideas.values():
        settings = recipe.changed(settings, change)
        model, config = recipe.configs(settings | {"tokens": recipe.TRIAL_TOKENS})
        GPT(model)
        assert config.steps * config.batch_size * model.n_positions == pytest.approx(recipe.TRIAL_TOKENS, rel=1e-2)
    assert config.optim == "muon"


def test_the_card_tells_every_row(work, tmp_path):
    runner.run("speedrun", recipe.PARTS, recipe.card, ["--processes", "1", "--work", str(tmp_path / "work")])
    card = (tmp_path / "speedrun" / "README.md").read_text(encoding="utf-8")
    assert "| Muon | 0.008 | 1,342,6" in card and "67 (67 to 67) | yes |" in card
    assert card.count("| no |") == len(IDEAS) - 3


def test_a_run_gives_its_losses_on_both_texts(monkeypatch):
    monkeypatch.setattr(recipe, "PLAYS", plays.Plays(200, 300))
    settings = recipe.BEGIN | {"n_layer": 1, "n_embd": 8, "n_head": 1, "n_positions": 16}
    losses = recipe.trained(settings, 2000, 0)
    assert 3 < losses["choose"] < 5 and 3 < losses["compare"] < 5 and losses["choose"] != losses["compare"]
    assert losses == recipe.trained(settings, 2000, 0) != recipe.trained(settings, 2000, 1)
    assert recipe.trained(settings | {"learning_rate": 1e30}, 2000, 0) == {"choose": None, "compare": None}
