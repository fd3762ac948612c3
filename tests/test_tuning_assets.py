"""The recorded experiments of notebook 05: well-formed, told truly by their card, and made again in part."""

import json
import math
import re
import statistics
from importlib.resources import files
from pathlib import Path

import pytest
import torch
import tuning_experiments

from gptcourse.corpora import shakespeare
from gptcourse.model import GPT, GPTConfig
from gptcourse.tokenizers import CharTokenizer
from gptcourse.training import TrainingConfig, evaluate, train
from gptcourse.tuning import BatchTradeOff

FOLDER = Path(str(files("gptcourse") / "assets" / "tuning"))
CARD = (FOLDER / "README.md").read_text(encoding="utf-8")
DATA = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))}
NUMBER = re.compile(r"\d[\d,]*\.?\d*")


def section(title):
    return CARD.split(f"## {title}\n")[1].split("\n## ")[0]


def card_rows(title):
    """Return {first cell: the other cells} of all tables in a section; numbers as floats, "a (b–c)" as three."""
    rows = {}
    for line in section(title).splitlines():
        if line.startswith("| "):
            first, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            rows[first] = [[float(n.replace(",", "")) for n in NUMBER.findall(cell)] for cell in cells]
    return rows


def band(losses):
    return [statistics.median(losses), min(losses), max(losses)]


def losses_of(rows, **chosen):
    found = [row["loss"] for row in rows if all(row[name] == value for name, value in chosen.items())]
    return [math.inf if loss is None else loss for loss in found]


def same(cell, wanted):
    """Compare a cell of the card, three decimals, with computed values."""
    return cell == pytest.approx([x for x in wanted if x < math.inf], abs=6e-4)


def test_the_files_are_small_and_complete():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 300_000
    assert DATA.keys() == tuning_experiments.PARTS.keys() and "Not recorded." not in CARD


def test_every_file_is_strict_json_and_every_run_has_its_seed():
    for path in FOLDER.glob("*.json"):
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(name))
        runs = [row for rows in data.values() if isinstance(rows, list) for row in rows if isinstance(row, dict)]
        assert runs and all("seed" in run for run in runs if "step" not in run)


def test_the_recipe_is_nanogpts_and_the_tuned_run_reaches_its_loss_with_other_seeds_and_text():
    data = DATA["recipe"]
    recipe, tuned, model = data["recipe"], data["tuned"], data["model"]
    assert (model["n_layer"], model["n_head"], model["n_embd"], model["n_positions"]) == (4, 4, 128, 64)
    names = "steps", "batch_size", "learning_rate", "min_lr_ratio"
    assert [recipe[name] for name in names] == [2000, 12, 1e-3, 0.1]
    assert (recipe["warmup_steps"], recipe["adam_beta2"], recipe["weight_decay"]) == (100, 0.99, 0.1)
    assert not {row["seed"] for row in data["trials"]} & {row["seed"] for row in data["recipe_runs"]}
    rows = card_rows("The recipe to beat")
    goal = losses_of(data["recipe_runs"])
    assert same(rows["the recipe"][2], band(goal))
    budgets = {row["budget"] for row in data["tuned_runs"]}
    arrived = [b for b in budgets if statistics.median(losses_of(data["tuned_runs"], budget=b)) <= band(goal)[0]]
    assert arrived, "no tuned run got to the recipe's loss: the card and the notebook must say so"
    assert tuned["steps"] == min(arrived) // (64 * tuned["batch_size"])
    share = tuned["steps"] / recipe["steps"]
    shares = [share, share * tuned["batch_size"] / 12, share * data["seconds_per_step"]["ratio"]]
    assert [rows[name][0][0] for name in ("steps", "tokens", "seconds")] == pytest.approx(shares, abs=0.006)


def test_the_hyperbola_is_the_one_that_fits_the_recorded_steps():
    data = DATA["batch"]
    rows, medians = card_rows("Batch size: steps against tokens"), {}
    for size in {run["batch_size"] for run in data["runs"]}:
        mine = [run for run in data["runs"] if run["batch_size"] == size]
        first = min((run for run in mine if run["seed"] == 0 and run["steps"]), key=lambda run: run["steps"])
        steps = [run["steps"] or math.inf for run in mine if run["rate"] == first["rate"]]
        medians[64 * size] = statistics.median(steps)
        assert len(steps) == 3 and rows[str(size)] is not None
    assert len(medians) >= 6
    fit = BatchTradeOff.fit(list(medians), list(medians.values()))
    assert data["fit"]["min_steps"] == pytest.approx(fit.min_steps, abs=0.1)
    assert data["fit"]["critical_batch"] == pytest.approx(fit.critical_batch, abs=0.1)


def test_the_medians_of_the_switches_are_those_of_the_runs():
    data = DATA["switches"]
    rows = card_rows("GPT-3's choices, switched off one at a time")
    rates = list(dict.fromkeys(run["rate"] for run in data["runs"]))
    for name in {run["switch"] for run in data["runs"]}:
        for rate, cell in zip(rates, rows[name], strict=True):
            losses = losses_of(data["runs"], switch=name, rate=rate)
            assert len(losses) == 3 and same(cell, band(losses))


def test_all_searches_had_the_same_budget_and_their_best_never_rises():
    data = DATA["search"]
    rows = card_rows("Search at equal budget")
    for method in ("grid", "random", "tpe"):
        mine = [run for run in data["runs"] if run["method"] == method]
        assert len(mine) == 3
        for run in mine:
            found = [math.inf if loss is None else loss for loss in run["best"]]
            assert found == sorted(found, reverse=True) and run["tokens"] == sorted(run["tokens"])
            assert 0.9 * data["budget"] <= run["tokens"][-1] <= data["budget"]
        assert same(rows[method][-1], band([run["best"][-1] for run in mine]))
        shares = [run["importances"] for run in mine if method != "grid"]
        assert all(sum(share.values()) == pytest.approx(1, abs=1e-3) for share in shares)


def test_the_best_rate_moves_with_the_width_without_mup_and_stays_with_it():
    data = DATA["widths"]
    rows = card_rows("A wider model: the standard parametrisation and muP")
    rates = sorted({row["rate"] for row in data["runs"]})
    assert len(rates) == 11 and rates[0] == 2**-13 and rates[-1] == 2**-3
    medians, base = {}, data["base_width"]
    for width, name in {(row["width"], row["parametrisation"]) for row in data["runs"]}:
        of_rate = {rate: losses_of(data["runs"], width=width, parametrisation=name, rate=rate) for rate in rates}
        assert all(len(losses) == 3 for losses in of_rate.values())
        medians[width, name] = {rate: statistics.median(losses) for rate, losses in of_rate.items()}
        best = min(rates, key=medians[width, name].get)
        assert same(rows[f"{width}, {'both' if width == base else name}"][1], band(of_rate[best]))
    widest = max(row["width"] for row in data["runs"])
    tuned, standard, mup = (medians[key] for key in ((base, "standard"), (widest, "standard"), (widest, "muP")))
    carried = min(rates, key=tuned.get)
    assert min(rates, key=standard.get) <= carried / 4
    assert standard[carried] > tuned[carried] > mup[carried]
    with_carried = losses_of(data["runs"], width=widest, parametrisation="muP", rate=carried)
    assert min(with_carried) < min(mup.values())  # the seeds cannot tell the carried rate from the best one


def test_the_shapes_have_nearly_equal_parameters_and_their_medians_are_those_of_the_runs():
    data = DATA["third"]
    rows = card_rows("The third dial: structure and loss")
    counts = {row["shape"]: row["parameters"] for row in data["shapes"]}
    assert max(counts.values()) < 1.1 * min(counts.values())
    for shape in counts:
        rates = {row["rate"] for row in data["shapes"]}
        best = min((band(losses_of(data["shapes"], shape=shape, rate=rate)) for rate in rates), key=lambda b: b[0])
        assert rows[shape][0] == [counts[shape]] and same(rows[shape][2], best)
    for name in {row["objective"] for row in data["losses"]}:
        assert same(rows[name][0], band(losses_of(data["losses"], objective=name)))


def test_a_recorded_run_made_again_lies_within_the_seeds_spread():
    data = DATA["switches"]
    losses = losses_of(data["runs"], switch="all of GPT-3's choices", rate=data["choices"]["learning_rate"])
    plays = shakespeare()
    encode = CharTokenizer(plays.train + plays.validation).encode
    tokens, held_out = torch.tensor(encode(plays.train)), torch.tensor(encode(plays.validation[:20_000]))
    torch.manual_seed(0)
    model = GPT(GPTConfig(**data["model"]))
    train(model, tokens, TrainingConfig(**data["choices"]), progress=False)
    low, high = min(losses), max(losses)
    assert low - (high - low) <= evaluate(model, held_out) <= high + (high - low)
