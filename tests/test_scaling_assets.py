"""What was recorded for notebooks 10 and 11: complete, as the cards say, and as the notebooks tell it."""

import json
import statistics
from importlib.resources import files

import evaluation_experiments as evaluation
import scaling_experiments as scaling

from gptcourse.scaling import bootstrap_laws, fit_scaling_law

ASSETS = files("gptcourse") / "assets"


def recorded(folder, name):
    return json.loads((ASSETS / folder / f"{name}.json").read_text(encoding="utf-8"))


def test_no_run_is_missing():
    law, shape, speedrun = (recorded("scaling", name) for name in scaling.PARTS)
    assert len(law["runs"]) == len(scaling.SIZES) * len(scaling.BUDGETS) == 30
    assert len(shape["runs"]) == len(scaling.SHAPES) * 3
    assert [stage["name"] for stage in speedrun["stages"]] == [scaling.RECIPE_NAME, *scaling.IDEAS]
    assert all(len(stage["losses"]) == 3 for stage in speedrun["stages"])
    assert sum(map(len, recorded("evaluation", "experiments").values())) == len(list(evaluation.tasks()))


def test_the_larger_run_lies_where_the_notebook_says():
    data = recorded("scaling", "law")
    columns = [[run[name] for run in data["runs"]] for name in ("parameters", "tokens", "loss")]
    larger = data["larger"]["parameters"], data["larger"]["tokens"]
    predicted, run = fit_scaling_law(*columns).loss(*larger), data["larger"]["loss"]
    assert 0.02 < predicted - run < 0.1  # the answer to the prediction
    assert run < min(law.loss(*larger) for law in bootstrap_laws(*columns))  # outside the interval
    assert predicted < min(columns[2])


def test_every_stage_of_the_speedrun_reaches_the_goal_and_the_last_in_a_quarter_of_the_time():
    data = recorded("scaling", "speedrun")
    first, *others = data["stages"]
    assert all(stage["median"] == statistics.median(stage["losses"]) <= data["goal"] for stage in others)
    share = others[-1]["steps"] / first["steps"] * others[-1]["seconds_per_step"]
    assert share <= 0.25
