"""The decision records that notebook 06 shows: whole, and their decision follows from their own numbers."""

import json
from importlib.resources import files

import pytest

from gptcourse.tuning import t_interval

FOLDER = files("gptcourse") / "assets" / "tune"


@pytest.mark.parametrize("name", ["gpt", "classifier", "lora"])
def test_a_recorded_decision_follows_from_its_fresh_seeds(name):
    record = json.loads((FOLDER / name / "decision.json").read_text(encoding="utf-8"))
    found = record["confirmed"]
    chosen_by = {trial["seed"] for trial in record["trials"] if trial["phase"] != "confirm"}
    assert record["finished"] and len(found["seeds"]) >= 3 and not chosen_by & set(found["seeds"])
    gains = [old - new for old, new in zip(found["defaults"], found["winner"], strict=True)]
    assert found["gain"] == pytest.approx(sum(gains) / len(gains))
    assert found["interval"] == pytest.approx(t_interval(gains), rel=1e-3)
    assert record["adopted"] == (found["interval"][0] > 0)
    searched = [trial for trial in record["trials"] if trial["phase"] == "search"]
    assert all(record["axes"].keys() <= trial["settings"].keys() for trial in searched)
    assert f"**{name}**" in (FOLDER / "README.md").read_text(encoding="utf-8")
