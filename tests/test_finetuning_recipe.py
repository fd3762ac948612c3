"""The recipe of notebook 08's comparison on tiny settings: what each method lets learn, started again, and its card."""

import json
from collections import Counter
from importlib.resources import files

import finetuning_experiments as recipe
import pytest
import runner
import torch

from gptcourse.corpora import support
from gptcourse.pretrained import load_pretrained

TRIAL = {"method", "rate", "seed", "steps", "learning", "evaluations", "validation_loss"}


def test_each_method_lets_learn_what_its_name_says():
    base, _ = load_pretrained("shakespeare-5m")
    unseen, ids = [5, 9], torch.arange(20)[None]
    table = base.wte.weight.detach().clone()
    for method in recipe.RATES:
        model = recipe.prepared(method, base, unseen)
        learns = {name for name, weight in model.named_parameters() if weight.requires_grad}
        blocks = {name.split(".")[1] for name in learns if name.startswith("h.")}
        assert blocks == ({"4", "5"} if "last 2" in method else set("012345"))
        assert ("wte.weight" in learns) == (method not in ("the last 2 blocks", "LoRA of rank 8"))
        assert all("lora_" in name for name in learns - {"wte.weight"}) == method.startswith("LoRA")
        assert torch.equal(model.train()(ids).logits, model.eval()(ids).logits)  # no dropout
        kept = torch.equal(model.wte.weight[10:], table[10:])
        assert kept != (method == "from scratch") and not torch.equal(model.wte.weight[5], table[5])
    assert torch.equal(base.wte.weight, table)


def test_replay_adds_half_as_many_pieces_of_the_plays(monkeypatch):
    _, tokenizer = load_pretrained("shakespeare-5m")
    monkeypatch.setattr(recipe, "N_TRAIN", 8)
    monkeypatch.setattr(recipe, "plays_tokens", lambda: torch.arange(500) % 50)
    plain = recipe.examples_of("all weights", tokenizer)
    mixed = recipe.examples_of("all weights, with replay", tokenizer)
    assert mixed[:8] == plain and len(mixed) == 12 and all(-100 not in targets for _, targets in mixed[8:])


@pytest.mark.parametrize("method", ["all weights", "from scratch"])
def test_a_run_measures_what_it_says(plays, monkeypatch, method):
    monkeypatch.setattr(recipe, "N_TRAIN", 12)
    monkeypatch.setattr(recipe, "N_JUDGED", 4)
    run = recipe.run_once(method, 1e-3, 0, 8)
    assert [step for step, _ in run["evaluations"]] == list(range(1, 9))
    assert run["validation_loss"] == min(loss for _, loss in run["evaluations"])
    assert run["plays_before"] == pytest.approx(3.58, abs=0.01)
    assert (run["plays_after"] > 6) == (method == "from scratch")
    assert run["learning"] == 5_328_896
    for split in ("test", "validation"):
        assert run[split]["floor"] < run[split]["loss"] < 9 and 0 <= run[split]["intents"] <= 1
    assert run["test"]["floor"] != run["validation"]["floor"]


def test_a_trial_does_not_look_at_the_test_phrasings(plays, monkeypatch):
    asked = []
    monkeypatch.setattr(recipe, "support", lambda n, split="train": asked.append(split) or support(n, split=split))
    monkeypatch.setattr(recipe, "N_TRAIN", 12)
    trial = recipe.trial("all weights", 1e-3, 0, 2)
    assert set(asked) == {"train", "validation"} and set(trial) == TRIAL


def faked(made, rates):
    """Return stand-ins for a trial, whose loss says what is to be chosen, and for a run, which chooses nothing."""

    def trial(method, rate, seed, steps):
        made.append(("trial", method, rate, seed, steps))
        good = steps == 1600 if steps != 800 else rate == (max if "last" in method else min)(rates[method])
        settings = {"method": method, "rate": rate, "seed": seed, "steps": steps, "learning": 7}
        return settings | {"validation_loss": 1.0 if good else 2.0, "evaluations": [[1, 1.0]]}

    def run_once(method, rate, seed, steps):
        record = trial(method, rate, seed, steps)
        made[-1] = ("run", *made[-1][1:])
        judged = {"loss": 0.25 + seed, "floor": 0.125, "intents": 0.5, "slots": 0.75}
        return record | {"plays_before": 0.5, "plays_after": 0.5, "test": judged, "validation": judged | {"loss": 9.0}}

    return {"trial": trial, "run_once": run_once}


def make(folder):
    options = ["--processes", "1", "--work", str(folder / "work")]
    runner.run("finetuning", {"methods": recipe.methods}, recipe.card, options)
    asset = folder / "finetuning"
    return (asset / "methods.json").read_text(), (asset / "README.md").read_text(encoding="utf-8")


def test_started_again_no_run_is_made_twice_and_rate_and_length_were_chosen_on_validation(monkeypatch, tmp_path):
    made = []
    for name, fake in faked(made, recipe.RATES).items():
        monkeypatch.setattr(recipe, name, fake)
    monkeypatch.setattr(runner, "ASSETS", tmp_path)
    first = make(tmp_path)
    data, n_made = json.loads(first[0]), len(made)
    assert n_made == sum(map(len, recipe.RATES.values())) + len(recipe.LONG_STEPS) + 3 * len(recipe.RATES) + 3
    assert {task[3] for task in made if task[0] == "trial"} == {recipe.TRIAL_SEED}
    assert {task[3] for task in made if task[0] == "run"} == set(recipe.SEEDS)
    chosen = {run["method"]: run["rate"] for run in data["runs"]}
    assert chosen["all weights"] == chosen[recipe.LONG] == 6e-4 and chosen["the last 2 blocks"] == 4e-3
    assert {run["steps"] for run in data["runs"] if run["method"] == recipe.LONG} == {1600}
    assert "| all weights | 800 | 7 | 0.0006 | 1.250 (0.250–2.250) | 50% (50%–50%) | 75% (75%–75%) |" in first[1]
    assert "| all weights | 800 | 7 | 0.0006 | 9.000 (9.000–9.000) | 50% (50%–50%) | 75% (75%–75%) |" in first[1]
    assert make(tmp_path) == first and len(made) == n_made


def test_the_settings_end_at_a_rate_of_zero():
    config = recipe.config_of(1e-3, 0, 800)
    assert config.min_lr_ratio == 0 and config.eval_steps == 100 and config.warmup_steps == 20
    assert recipe.config_of(1e-3, 0, 4).warmup_steps == 2


def test_the_recorded_asset_is_what_this_recipe_makes():
    asset = files("gptcourse").joinpath("assets", "finetuning")
    data = json.loads(asset.joinpath("methods.json").read_text(encoding="utf-8"))
    assert Counter(run["method"] for run in data["runs"]) == dict.fromkeys([*recipe.RATES, recipe.LONG], 3)
    assert all(run[split]["floor"] < run[split]["loss"] for run in data["runs"] for split in ("test", "validation"))
    assert all(set(trial) == TRIAL for trial in data["trials"])
    tried = {trial["steps"]: trial["validation_loss"] for trial in data["trials"] if trial["method"] == recipe.LONG}
    assert {run["steps"] for run in data["runs"] if run["method"] == recipe.LONG} == {min(tried, key=tried.get)}
