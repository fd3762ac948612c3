"""Record the experiments of notebook 10 on small GPTs: python recipes/scaling_experiments.py [EXPERIMENT …]

EXPERIMENT is law or shape (default: both). One that is complete becomes a JSON file in gptcourse/assets/scaling, with a
card. The speedrun has a recipe of its own.

All models read Shakespeare's plays as characters. Rates are chosen on one part of the held-out plays with a seed of
their own; losses are compared on another.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from plays import MODEL, NANOGPT, VOCAB_SIZE, Plays, by_rate, within_tokens
from runner import Work, completed, fill, finite, grouped, ranked, rounded, run, tables
from torch import Tensor

from gptcourse.model import GPT, GPTConfig
from gptcourse.ngrams import NGrams
from gptcourse.scaling import bootstrap_laws, fit_scaling_law, flops_per_token, ruler
from gptcourse.training import TrainingConfig, train
from gptcourse.tuning import t_interval

COMMON, SIZES, LARGER, SECOND, SHAPES = tables("scaling", "COMMON", "SIZES", "LARGER", "SECOND", "SHAPES")
PLAYS = Plays(n_choose=20_000, n_compare=40_000)
grid = PLAYS.grid
SEEDS, TRIAL_SEED = (0, 1, 2), 10
HEAD_SIZE = 16
SIZE_RATES, FURTHER_RATES = (2e-3, 4e-3, 8e-3, 16e-3), (32e-3, 64e-3)
LARGER_RATES, SECOND_RATES = (1e-3, 2e-3, 4e-3), (2e-3, 4e-3, 8e-3)
TRIAL_SEEDS = (10, 11, 12)  # where one seed does not decide
BUDGETS = tuple(2**power for power in range(17, 23))  # tokens
TRIAL_BUDGET, LARGER_BUDGET, SECOND_BUDGET = 2**19, 4_700_000, 2**20
SHAPE_RATES = (2e-3, 4e-3, 8e-3, 16e-3, 32e-3)
SHAPE_BUDGET, SHAPE_TRIAL_BUDGET = 2**20, 2**18


def shape_of(n_layer: int, n_embd: int) -> dict[str, int]:
    """Return the fields of a shape, with heads of about HEAD_SIZE numbers."""
    return {"n_layer": n_layer, "n_embd": n_embd, "n_head": n_embd // HEAD_SIZE}


def costs(shape: tuple[int, int]) -> dict:
    """Return what a shape costs: its parameters, and floating-point operations per token."""
    config = replace(MODEL, **shape_of(*shape))
    return {"parameters": config.num_parameters, "flops_per_token": flops_per_token(config)}


def chosen_rates(work: Work, name: str, shapes: dict, rates: tuple, tokens: int) -> tuple[list[dict], dict]:
    """Return the trials of some shapes at some rates, and the best rate of each shape."""
    axes = {"shape": {name: shape_of(*shape) for name, shape in shapes.items()}, "rate": by_rate(rates)}
    options = {"common": COMMON | {"tokens": tokens}, "seeds": (TRIAL_SEED,)}
    trials = grid(work, f"{name}_trials", MODEL, NANOGPT, axes, "choose", **options)
    best = {shape: ranked(found)[0] for shape, found in grouped(trials, "shape").items()}
    return trials, {shape: row["rate"] for shape, row in best.items()}


def beyond_the_edge(work: Work, rates: dict) -> tuple[list[dict], dict]:
    """Try further rates for the sizes whose rate is the largest tried; return the trials, and the rates they prefer."""
    edge = {name: SIZES[name] for name, rate in rates.items() if rate == SIZE_RATES[-1]}
    if not edge:
        return [], {}
    tried, best = chosen_rates(work, "scaling_law", edge, (SIZE_RATES[-1], *FURTHER_RATES), TRIAL_BUDGET)
    preferred = {name: rate for name, rate in best.items() if rate > SIZE_RATES[-1]}
    return [row for row in tried if row["rate"] in FURTHER_RATES], preferred


def told_apart(work: Work, name: str, rate: float) -> tuple[list[dict], bool]:
    """Return the trials of a size at its further rate and at the edge's, and whether three seeds tell them apart."""
    axes = {"shape": {name: shape_of(*SIZES[name])}, "rate": by_rate((SIZE_RATES[-1], rate))}
    options = {"common": COMMON | {"tokens": TRIAL_BUDGET}, "seeds": TRIAL_SEEDS}
    trials = grid(work, "scaling_law_trials", MODEL, NANOGPT, axes, "choose", **options)
    edge, further = ([finite(row["loss"]) for row in rows] for rows in grouped(trials, "rate").values())
    gains = [before - after for before, after in zip(edge, further, strict=True)]
    new = [row for row in trials if row["seed"] != TRIAL_SEED]
    return new, all(map(math.isfinite, gains)) and t_interval(gains)[0] > 0


def law_runs(work: Work, rates: dict, pairs: list[tuple], seeds: tuple[int, ...]) -> list[dict]:
    """Return the runs of pairs (shape, tokens), each with the rate of its shape: sizes in order, then tokens."""
    shapes = SIZES | LARGER | SECOND
    pairs = sorted(pairs, key=lambda pair: -pair[1] * costs(shapes[pair[0]])["parameters"])  # the longest first
    settings = {
        f"{name}, {tokens}": shape_of(*shapes[name]) | {"learning_rate": rates[name], "tokens": tokens}
        for name, tokens in pairs
    }
    runs = grid(work, "scaling_law", MODEL, NANOGPT, {"run": settings}, "compare", common=COMMON, seeds=seeds)
    for row in runs:
        row["shape"] = row.pop("run").partition(",")[0]
        row |= costs(shapes[row["shape"]])
    return sorted(runs, key=lambda row: (row["parameters"], row["tokens"]))


def law(work: Work) -> dict:
    """Train five sizes on six budgets each, and two larger models that the fit is to predict."""
    trials, rates = chosen_rates(work, "scaling_law", SIZES, SIZE_RATES, TRIAL_BUDGET)
    for shapes, tried in ((LARGER, LARGER_RATES), (SECOND, SECOND_RATES)):
        made, best = chosen_rates(work, "scaling_law", shapes, tried, BUDGETS[1])
        trials, rates = trials + made, rates | best
    further, preferred = beyond_the_edge(work, {name: rates[name] for name in SIZES})
    doubtful = {}  # rates beyond the first grid that one seed prefers, and three do not
    for name, rate in preferred.items():
        again, adopted = told_apart(work, name, rate)
        further += again
        (rates if adopted else doubtful)[name] = rate
    pairs = [(name, tokens) for name in SIZES for tokens in BUDGETS]
    data = {"settings": COMMON, "rates": rates, "trials": trials + further}
    data["runs"] = law_runs(work, rates, pairs, SEEDS[:1])
    for key, shapes, tokens in (("larger", LARGER, LARGER_BUDGET), ("second", SECOND, SECOND_BUDGET)):
        (data[key],) = law_runs(work, rates, [(name, tokens) for name in shapes], SEEDS[:1])
    data["repeats"] = law_runs(work, rates, [(name, TRIAL_BUDGET) for name in SIZES], SEEDS[1:])
    data["doubtful"] = law_runs(work, doubtful, [p for p in pairs if p[0] in doubtful], SEEDS[:1]) if doubtful else []
    return data | {"rolling": rolling(data["runs"]), "lines": [best_table(n) for n in (*BUDGETS, len(PLAYS.train))]}


def best_table(tokens: int, held_out: Tensor = PLAYS.compare, longest: int = 7) -> dict:
    """Return the best table of n-grams that is counted on so many tokens of the plays, and its loss."""
    losses = NGrams(PLAYS.train[:tokens].numpy(), VOCAB_SIZE, longest).losses(held_out.numpy())
    return {"tokens": tokens, "n": losses.index(min(losses)) + 1, "loss": rounded(min(losses))}


def rolling(runs: list[dict]) -> list[dict]:
    """Predict each run from those that are smaller and shorter, by the law and a ruler, if they can fix a law."""
    found = []
    for target in runs:
        known = [r for r in runs if r["parameters"] < target["parameters"] and r["tokens"] < target["tokens"]]
        if len({r["parameters"] for r in known}) < 3 or len({r["tokens"] for r in known}) < 3:
            continue
        place = target["parameters"], target["tokens"]
        guesses = {
            "law": fit_scaling_law(*columns(known)).loss(*place),
            "ruler": ruler(list(zip(*columns(known), strict=True)), *place),
        }
        kept = {key: target[key] for key in ("shape", "tokens", "loss")}
        found.append(kept | {"n_runs": len(known)} | {name: rounded(value) for name, value in guesses.items()})
    return found


def columns(runs: list[dict]) -> list[list]:
    """Return the parameters, tokens and losses of the runs that did not diverge."""
    return [[run[name] for run in runs if run["loss"] is not None] for name in ("parameters", "tokens", "loss")]


def shape(work: Work) -> dict:
    """Train five shapes of equally many parameters, each with its own rate, and time their steps."""
    trials, rates = chosen_rates(work, "scaling_shape", SHAPES, SHAPE_RATES, SHAPE_TRIAL_BUDGET)
    settings = {name: COMMON | shape_of(*shape) | {"tokens": SHAPE_BUDGET} for name, shape in SHAPES.items()}
    axes = {"shape": {name: fields | {"learning_rate": rates[name]} for name, fields in settings.items()}}
    runs = grid(work, "scaling_shape", MODEL, NANOGPT, axes, "compare")
    for row in runs:
        row |= costs(SHAPES[row["shape"]])
    seconds = work.piece(step_ratios, settings, 7, 12)
    return {"settings": COMMON, "rates": rates, "trials": trials, "runs": runs, "seconds": seconds}


# ---- The time of a step


def configs(settings: Mapping[str, Any]) -> tuple[GPTConfig, TrainingConfig]:
    """Return nanoGPT's model and training with these settings."""
    settings = within_tokens(settings)
    changes = [{f.name: settings[f.name] for f in fields(one) if f.name in settings} for one in (MODEL, NANOGPT)]
    return replace(MODEL, **changes[0]), replace(NANOGPT, **changes[1])


def step_ratios(runs: dict[str, dict], rounds: int, steps: int) -> dict[str, float]:
    """Return how many times as long a step takes with each settings as with the first: in turns, the median."""
    seconds = {name: [] for name in runs}
    made = {name: configs(settings) for name, settings in runs.items()}
    models = {name: GPT(shape) for name, (shape, _) in made.items()}
    for _, (name, (_, config)) in itertools.product(range(rounds), made.items()):
        short = replace(config, steps=steps, warmup_steps=0, decay_steps=None)
        begin = time.process_time()
        completed(train(models[name], PLAYS.train, short, progress=False))
        seconds[name].append(time.process_time() - begin)
    first = next(iter(seconds.values()))
    ratios = {name: [a / b for a, b in zip(values, first, strict=True)] for name, values in seconds.items()}
    return {name: round(statistics.median(values), 3) for name, values in ratios.items()}


# ---- The card


def card(data: dict[str, dict]) -> str:
    """Return the card of the recorded experiments."""
    return fill("scaling", tuple(PARTS), prediction=prediction, **data)


def prediction(data: dict) -> dict:
    """Return the law that fits the runs, and what it, laws of runs drawn again, and a ruler say about larger runs."""
    known = columns(data["runs"])
    law, again, rows = fit_scaling_law(*known), bootstrap_laws(*known), []
    for target in (data["larger"], data["second"]):
        place = target["parameters"], target["tokens"]
        losses = sorted(one.loss(*place) for one in again)
        no_longer = columns([run for run in data["runs"] if run["tokens"] <= target["tokens"]])  # it need not go back
        guesses = {"law": law.loss(*place), "ruler": ruler(list(zip(*no_longer, strict=True)), *place)}
        rows.append({"run": target, "low": losses[0], "high": losses[-1]} | guesses)
    return {"law": law, "rows": rows}


PARTS = {"law": law, "shape": shape}


if __name__ == "__main__":
    run("scaling", PARTS, card)
