"""What was recorded for notebooks 10 and 11: complete, as the cards say, and as the notebooks tell it."""

import math
import statistics

import evaluation_experiments as evaluation
import pytest
import scaling_experiments as scaling
import speedrun

from gptcourse.recordings import recorded


def test_no_run_is_missing():
    law, shape = (recorded("scaling", name) for name in scaling.PARTS)
    assert len(law["runs"]) == len(scaling.SIZES) * len(scaling.BUDGETS) == 30
    assert len(shape["runs"]) == len(scaling.SHAPES) * 3
    assert sum(map(len, recorded("evaluation", "experiments").values())) == len(list(evaluation.tasks()))


@pytest.fixture(scope="module")
def predicted():
    """What the card says of the larger run and of the second."""
    return scaling.prediction(recorded("scaling", "law"))["rows"]


def test_law_and_ruler_lie_where_the_notebook_says(predicted):
    data, (larger, _) = recorded("scaling", "law"), predicted
    loss = data["larger"]["loss"]
    assert 0.04 < larger["law"] - loss < 0.06
    assert abs(larger["ruler"] - loss) < 0.01
    assert loss < larger["low"]  # outside the interval
    assert len(data["rolling"]) == 6
    law_error, ruler_error = (
        statistics.mean(abs(run[name] - run["loss"]) for run in data["rolling"]) for name in ("law", "ruler")
    )
    assert law_error < ruler_error - 0.02
    assert sum(abs(run["law"] - run["loss"]) < abs(run["ruler"] - run["loss"]) for run in data["rolling"]) == 3


def test_law_and_ruler_cannot_be_told_apart_at_a_length_that_was_measured(predicted):
    loss, (_, second) = recorded("scaling", "law")["second"]["loss"], predicted
    assert 0 < second["ruler"] - loss < 0.01  # from runs of that length, and not back from longer ones
    assert 0 < second["law"] - loss < 0.01


@pytest.mark.parametrize("part", ["law", "shape"])
def test_nothing_takes_the_lowest_or_highest_rate_that_was_tried(part):
    data = recorded("scaling", part)
    for name, rate in data["rates"].items():
        tried = {trial["rate"] for trial in data["trials"] if trial["shape"] == name}
        assert min(tried) < rate < max(tried), name


def test_models_beat_counting_where_the_notebook_says():
    data = recorded("scaling", "law")
    line = {line["tokens"]: line["loss"] for line in data["lines"]}
    better = {(run["shape"], run["tokens"]) for run in data["runs"] if run["loss"] < line[run["tokens"]]}
    assert {tokens for _, tokens in better} == {2**20, 2**21, 2**22}
    assert {shape for shape, tokens in better if tokens == 2**22} == {"3 × 48", "3 × 64", "4 × 96"}
    assert max(line) > 4_700_000 and line[max(line)] == recorded("speedrun", "speedrun")["goal"]["compare"]


def test_each_row_of_the_speedrun_is_treated_alike():
    data = recorded("speedrun", "speedrun")
    goal, (first, *others) = data["goal"]["choose"], data["rows"]
    assert [row["name"] for row in data["rows"]] == [speedrun.RECIPE_NAME, *speedrun.IDEAS]
    for row in data["rows"]:
        less, more = row["losses"]["choose"]
        assert len(less) == len(more) == 3 and less[0] > goal >= more[0]
    for row in others:
        rates = [trial["rate"] for trial in row["trials"]]
        assert min(rates) < row["settings"]["learning_rate"] < max(rates)
        assert row["kept"] == (row["gain_choose"][1] > 0)
    assert first["kept"] and first["settings"] == speedrun.BEGIN


def test_the_speedruns_last_row_arrives_with_fresh_seeds_too():
    data = recorded("speedrun", "speedrun")
    last = [row for row in data["rows"] if row["kept"]][-1]
    needed, fresh = (statistics.median(one["tokens"]["compare"]) for one in (last, data["confirmed"]))
    assert abs(math.log(fresh / needed)) < 0.15
