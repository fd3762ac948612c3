"""The recipe of notebook 04's comparison on tiny settings: what each method lets learn, started again, and its card."""

import json
from collections import Counter
from importlib.resources import files

import pytest
import torch
from torch import nn

from gptcourse.pretrained import load_pretrained


@pytest.fixture
def recipe(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend("recipes")
    import finetuning_experiments

    monkeypatch.setattr(finetuning_experiments, "WORK", tmp_path / "work")
    monkeypatch.setattr(finetuning_experiments, "ASSET", tmp_path / "asset")
    (tmp_path / "work").mkdir()
    return finetuning_experiments


def test_each_method_lets_learn_what_its_name_says(recipe):
    base, _ = load_pretrained("shakespeare-5m")
    unseen = [5, 9]
    table = base.wte.weight.detach().clone()
    for method in recipe.RATES:
        model = recipe.prepared(method, base, unseen)
        learns = {name for name, weight in model.named_parameters() if weight.requires_grad}
        blocks = {name.split(".")[1] for name in learns if name.startswith("h.")}
        assert blocks == ({"4", "5"} if "last 2" in method else set("012345"))
        assert ("wte.weight" in learns) == (method not in ("the last 2 blocks", "LoRA of rank 8"))
        assert all("lora_" in name for name in learns - {"wte.weight"}) == method.startswith("LoRA")
        assert all(module.p == 0 for module in model.modules() if isinstance(module, nn.Dropout))
        kept = torch.equal(model.wte.weight[10:], table[10:])
        assert kept != (method == "from scratch") and not torch.equal(model.wte.weight[5], table[5])
    assert torch.equal(base.wte.weight, table)


def test_replay_adds_half_as_many_pieces_of_the_plays(recipe):
    _, tokenizer = load_pretrained("shakespeare-5m")
    plays = torch.arange(500) % 50
    plain = recipe.examples_of("all weights", tokenizer, plays, 8)
    mixed = recipe.examples_of("all weights, with replay", tokenizer, plays, 8)
    assert mixed[:8] == plain and len(mixed) == 12 and all(-100 not in targets for _, targets in mixed[8:])


@pytest.mark.parametrize("method", ["all weights", "from scratch"])
def test_a_run_measures_what_it_says(recipe, plays, method):
    run = recipe.run(method, 1e-3, 0, 8, n_train=12, n_test=4)
    assert [step for step, _ in run["evaluations"]] == list(range(1, 9))
    assert run["validation_loss"] == min(loss for _, loss in run["evaluations"])
    assert run["floor"] < run["test_loss"] < 9 and run["plays_before"] == pytest.approx(3.58, abs=0.01)
    assert (run["plays_after"] > 6) == (method == "from scratch")
    assert run["learning"] == 5_328_896 and 0 <= run["intents"] <= 1


def test_started_again_no_run_is_made_twice_and_the_rate_was_chosen_on_validation(recipe, monkeypatch):
    made = []

    def fake(method, rate, seed, steps):
        made.append((method, rate, seed, steps))
        good = rate == min(recipe.RATES.get(method, (rate,))) and "last" not in method
        numbers = dict.fromkeys(("plays_before", "plays_after", "intents", "slots", "floor"), 0.5)
        loss = 1.0 if good else 2.0 if "last" not in method else 1 / rate
        settings = {"method": method, "rate": rate, "seed": seed, "steps": steps, "learning": 7}
        return settings | numbers | {"validation_loss": loss, "test_loss": 0.25 + seed, "evaluations": [[1, loss]]}

    class Pool:
        def __init__(self, *_, **__):
            self.map = map

        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda *_: None  # noqa: E731

    monkeypatch.setattr(recipe, "run", fake)
    monkeypatch.setattr(recipe, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr("sys.argv", ["recipe"])
    recipe.main()
    first = (recipe.ASSET / "methods.json").read_text(), (recipe.ASSET / "README.md").read_text()
    data, n_made = json.loads(first[0]), len(made)
    assert n_made == sum(map(len, recipe.RATES.values())) + 3 * len(recipe.RATES) + 3
    chosen = {run["method"]: run["rate"] for run in data["runs"]}
    assert chosen["all weights"] == chosen[recipe.LONG] == 6e-4 and chosen["the last 2 blocks"] == 4e-3
    assert {run["steps"] for run in data["runs"] if run["method"] == recipe.LONG} == {recipe.LONG_STEPS}
    assert "| all weights | 800 | 7 | 0.0006 | 1.250 (0.250–2.250) | 50 % (50 %–50 %) |" in first[1]
    recipe.main()
    assert len(made) == n_made
    assert first == ((recipe.ASSET / "methods.json").read_text(), (recipe.ASSET / "README.md").read_text())


def test_the_settings_end_at_a_rate_of_zero(recipe):
    config = recipe.config_of(1e-3, 0, 800)
    assert config.min_lr_ratio == 0 and config.eval_steps == 100 and config.warmup_steps == 20
    assert recipe.config_of(1e-3, 0, 4).warmup_steps == 2


def test_the_recorded_asset_is_what_this_recipe_writes(recipe):
    asset = files("gptcourse").joinpath("assets", "finetuning")
    data = json.loads(asset.joinpath("methods.json").read_text(encoding="utf-8"))
    assert recipe.card(data) == asset.joinpath("README.md").read_text(encoding="utf-8")
    assert Counter(run["method"] for run in data["runs"]) == dict.fromkeys([*recipe.RATES, recipe.LONG], 3)
    assert all(run["floor"] < run["test_loss"] for run in data["runs"])
