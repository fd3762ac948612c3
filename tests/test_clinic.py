"""The clinic: every illness is there and shows by its sign, experiments tell what was recorded, tokens are paid."""

import json
import re
import statistics
from importlib.resources import files
from pathlib import Path
from xml.etree import ElementTree

import clinic as recipe
import pytest

from gptcourse.clinic import EXPERIMENTS, HEALTHY, SIGNS, load_clinic, verdict
from gptcourse.drawings import svg
from gptcourse.explorers import clinic_explorer

FOLDER = Path(str(files("gptcourse") / "assets" / "clinic"))
CARD = (FOLDER / "README.md").read_text(encoding="utf-8")
PATIENTS = load_clinic()
SEEDS = json.loads((FOLDER / "seeds.json").read_text(encoding="utf-8"))
COMPARED = json.loads((FOLDER / "comparisons.json").read_text(encoding="utf-8"))
# Signs that other patients have as well: a rate that is far too high kills units, and the weights in bfloat16 are those
# of a run with a low rate, at which they cost most.
FOLLOWS = {"dead units": {"rate too high"}, "rate too low": {"low precision"}}


def section(title):
    return CARD.split(f"## {title}\n")[1].split("\n## ")[0]


def card_rows(title):
    """Return the cells of the rows of all tables in a section, by the first cell."""
    rows = {}
    for line in section(title).splitlines():
        if line.startswith("| "):
            first, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            rows.setdefault(first, []).extend(cells)
    return rows


# ---- The asset


def test_the_asset_is_small_whole_and_strict_json():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 350_000
    for path in FOLDER.glob("*.json"):
        json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)  # NaN, Infinity
    assert PATIENTS.keys() == recipe.FAULTS.keys() == SIGNS.keys() | {HEALTHY}
    assert len(PATIENTS) >= 13 and "Not recorded." not in CARD


def test_the_healthy_run_passes_the_4_gram_line_with_every_seed():
    lines = PATIENTS[HEALTHY]["lines"]
    assert len(COMPARED["healthy"]) == 3 and all(losses[-1] < lines[3] for losses in COMPARED["healthy"])


@pytest.mark.parametrize("illness", recipe.FAULTS)
def test_the_beginning_of_each_run_is_made_again(illness):
    recorded, config = PATIENTS[illness], recipe.Patient(recipe.FAULTS[illness])
    trainer = config.trainer(validates=False)
    history = trainer.run(lambda history: history.step[-1] == recipe.EACH, progress=False)
    assert statistics.fmean(history.loss) == pytest.approx(recorded["training_loss"][0], abs=0.02)
    assert statistics.fmean(history.grad_norm) == pytest.approx(recorded["gradient_norm"][0], rel=0.05)
    assert history.learning_rate[-1] == pytest.approx(recorded["rate"][0], rel=0.01)


def test_a_resume_loses_what_it_is_said_to_lose(monkeypatch):
    monkeypatch.setattr(recipe, "HALF", 10)
    monkeypatch.setattr(recipe, "SETTINGS", recipe.replace(recipe.SETTINGS, steps=20, warmup_steps=4, eval_steps=10))
    monkeypatch.setattr(recipe, "HELD_OUT", 4_000)
    whole, weights, schedule = (
        recipe.record(recipe.FAULTS[name], 0) for name in (HEALTHY, "lost optimizer state", "stale schedule")
    )
    assert whole["updates"][0] == weights["updates"][0] == schedule["updates"][0]  # step 10
    assert weights["updates"][1]["size"] > 1.2 * whole["updates"][1]["size"] > schedule["updates"][1]["size"]  # step 11


# ---- The signs


@pytest.mark.parametrize("illness", SIGNS)
def test_each_illness_differs_from_the_healthy_run_by_its_sign(illness):
    assert PATIENTS[illness].has_sign(illness) and not PATIENTS[HEALTHY].has_sign(illness)
    others = {name for name, patient in PATIENTS.items() if patient.has_sign(illness)} - {illness}
    assert others == FOLLOWS.get(illness, set())


def test_the_signs_together_tell_all_illnesses_apart():
    shown = {name: frozenset(filter(patient.has_sign, SIGNS)) for name, patient in PATIENTS.items()}
    assert len(set(shown.values())) == len(shown)


@pytest.mark.parametrize("illness", SEEDS)
def test_each_sign_shows_with_every_seed_and_in_no_healthy_run(illness):
    sign, made = SIGNS[illness], SEEDS[illness]
    assert len(made["sick"]) == len(made[HEALTHY]) == 3
    assert all(sign.low <= number <= sign.high for number in made["sick"])
    assert not any(sign.low <= number <= sign.high for number in made[HEALTHY])
    assert made["sick"][0] == pytest.approx(PATIENTS[illness].numbers[sign.number], rel=1e-3)


@pytest.mark.parametrize("illness", COMPARED["cures"])
def test_a_cure_helps(illness):
    assert COMPARED["cures"][illness][-1] < PATIENTS[illness].numbers["validation"] - 0.1


# ---- The experiments


def test_prices_are_the_tokens_that_are_read():
    step, half = recipe.STEP, recipe.LENGTH // 2
    assert {key: experiment.price for key, experiment in EXPERIMENTS.items()} == {
        "curves": 0,
        "rate": 0,
        "gradient_norm": 0,
        "highest_loss": 0,
        "example": step,
        "updates": 3 * step,
        "future": 62 * (recipe.LENGTH + half),
        "sample": recipe.WRITTEN * recipe.LENGTH,
        "fresh_loss": recipe.HELD_OUT,
        "dead": recipe.HELD_OUT,
        "ends": 2 * recipe.ENDS * step,
        "range_test": recipe.TEST_STEPS * step,
        "one_batch": recipe.TEST_STEPS * step,
        "slower": recipe.SETTINGS.steps // 4 * step,
        "other_seed": recipe.SETTINGS.steps // 4 * step,
    }


@pytest.mark.parametrize("illness", recipe.FAULTS)
def test_answers_and_card_tell_what_was_recorded(illness):
    patient = PATIENTS[illness]
    answers = {key: patient.answer(key) for key in EXPERIMENTS}
    with_it, without = patient["future"]
    assert f"{with_it:.2f} nats" in answers["future"] and f"{without:.2f} when" in answers["future"]
    assert f"{patient['fresh_loss']:.2f} nats" in answers["fresh_loss"]
    assert f"{patient['one_batch'][-1]:.2f}" in answers["one_batch"]
    quarter = patient["validation_loss"][4]
    assert f"with its own rate, {quarter:.2f}" in answers["slower"]
    assert f"with the first seed, {quarter:.2f}" in answers["other_seed"]
    row = card_rows("The patients")[illness]
    assert row[1:4] == [
        f"{x:.3f}"
        for x in (patient["training_loss"][-1], patient.numbers["validation"], min(patient["validation_loss"]))
    ]
    assert row[7] == f"{without - with_it:.2f}" and row[8] == f"{patient['fresh_loss']:.3f}"


def test_a_folder_without_a_clinic_is_refused(tmp_path):
    with pytest.raises(ValueError, match="give a folder that has one"):
        load_clinic(tmp_path)


# ---- The verdict and the explorer


def test_a_wrong_diagnosis_tells_only_what_was_paid_for():
    patient = PATIENTS["leaking split"]
    untold = verdict(patient, "leaking mask", ["curves"])
    assert "5,952 tokens" in untold and not re.search(r"\d\.\d\d", untold)
    assert patient.answer("future") in verdict(patient, "leaking mask", ["curves", "future"])
    assert verdict(patient, "leaking split", []).startswith("Right: leaking split.")
    assert verdict(patient, HEALTHY, []).startswith("Not healthy.") and "fresh text" in verdict(patient, HEALTHY, [])
    assert verdict(PATIENTS[HEALTHY], HEALTHY, []).startswith("Right: healthy.")


@pytest.fixture(scope="module")
def explorer():
    return clinic_explorer()


def drawings(explorer):
    return [ElementTree.fromstring(found) for found in re.findall(r"<svg.*?</svg>", explorer.picture.value, re.DOTALL)]


def number_of(explorer, illness):
    return 1 + [patient.illness for patient in explorer.patients].index(illness)


def test_tokens_are_spent_once_for_each_patient_and_never_come_back(explorer):
    first, second = (number_of(explorer, name) for name in ("dead units", "bad batches"))
    explorer.controls["patient"].value = first
    for experiment, spent in (("dead", 20_000), ("range_test", 122_400), ("dead", 122_400), ("curves", 122_400)):
        explorer.controls["experiment"].value = experiment
        assert f"spent on experiments: {spent:,} tokens" in explorer.picture.value
    explorer.controls["patient"].value = second
    assert explorer.controls["experiment"].value == "curves" and explorer.controls["diagnosis"].value == ""
    assert "spent on experiments: 0 tokens" in explorer.picture.value
    explorer.controls["patient"].value = first
    assert "spent on experiments: 122,400 tokens" in explorer.picture.value


@pytest.mark.parametrize("illness", recipe.FAULTS)
def test_every_experiment_is_drawn_for_every_patient(explorer, illness):
    explorer.controls["patient"].value = number_of(explorer, illness)
    for experiment in EXPERIMENTS:
        explorer.controls["experiment"].value = experiment
        assert 1 <= len(drawings(explorer)) <= 2
        assert svg.escape(PATIENTS[illness].answer(experiment)) in explorer.picture.value
        assert not re.search(r'[="( ](nan|inf)[", )]', explorer.picture.value)


def test_the_curves_stand_between_the_lines_of_the_count_tables(explorer):
    explorer.controls["patient"].value = number_of(explorer, HEALTHY)
    labels = [text.text for text in drawings(explorer)[0].iter("text")]
    assert {"2-gram", "3-gram", "4-gram", "5-gram"} <= set(labels) and "tokens read" in labels
    dashed = [float(line.get("y1")) for line in drawings(explorer)[0].iter("line") if line.get("stroke-dasharray")]
    assert dashed == sorted(dashed)  # the longer the pieces, the lower


def test_a_right_diagnosis_shows_the_cured_run(explorer):
    explorer.controls["patient"].value = number_of(explorer, "no warm-up")
    assert "cured" not in explorer.picture.value
    explorer.controls["diagnosis"].value = "rate too low"
    assert "Not “rate too low”." in explorer.picture.value and "cured" not in explorer.picture.value
    explorer.controls["diagnosis"].value = "no warm-up"
    assert "Right: no warm-up." in explorer.picture.value and "cured" in explorer.picture.value
