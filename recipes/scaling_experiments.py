"""Record the experiments of notebook 10 on small GPTs: python recipes/scaling_experiments.py [EXPERIMENT …]

EXPERIMENT is one or more of law, shape and speedrun (default: all, in this order). One that is complete becomes a JSON
file in gptcourse/assets/scaling, with a card.

All models read Shakespeare's plays as characters. Rates are chosen on one part of the held-out plays with a seed of
their own; losses are compared on another.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from plays import MODEL, NANOGPT, Plays, by_rate, within_tokens
from runner import Work, completed, fill, finite, grouped, ranked, run, tables

from gptcourse.model import GPT, GPTConfig
from gptcourse.scaling import bootstrap_laws, fit_scaling_law, flops_per_token
from gptcourse.training import TrainingConfig, train

COMMON, SIZES, LARGER, SHAPES = tables("scaling", "COMMON", "SIZES", "LARGER", "SHAPES")
BEGIN, IDEAS = tables("scaling", "BEGIN", "IDEAS")
PLAYS = Plays(n_choose=20_000, n_compare=40_000)
grid = PLAYS.grid
SEEDS, TRIAL_SEED = (0, 1, 2), 10
HEAD_SIZE = 16
SIZE_RATES = (2e-3, 4e-3, 8e-3, 16e-3)
LARGER_RATES = (1e-3, 2e-3, 4e-3)
BUDGETS = tuple(2**power for power in range(17, 23))  # tokens
TRIAL_BUDGET, LARGER_BUDGET = 2**19, 4_700_000
SHAPE_RATES = (2e-3, 4e-3, 8e-3)
SHAPE_BUDGET, SHAPE_TRIAL_BUDGET = 2**20, 2**18

RECIPE_NAME, RECIPE_TOKENS = "nanoGPT's recipe", NANOGPT.steps * NANOGPT.batch_size * MODEL.n_positions
IDEA_TOKENS = 2**18
RUNG = 2**-0.25  # from one budget to the next shorter one that is tried
HALF_RUNGS = ("Muon", "three Newton-Schulz steps")  # ideas whose runs are so short that half a rung less is tried, too


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


def law(work: Work) -> dict:
    """Train five sizes on six budgets each, and a larger model that the fit is to predict."""
    trials, rates = chosen_rates(work, "scaling_law", SIZES, SIZE_RATES, TRIAL_BUDGET)
    larger_trials, larger_rates = chosen_rates(work, "scaling_law", LARGER, LARGER_RATES, BUDGETS[1])
    trials, rates, shapes = trials + larger_trials, rates | larger_rates, SIZES | LARGER
    pairs = [(name, tokens) for name in SIZES for tokens in BUDGETS] + [(name, LARGER_BUDGET) for name in LARGER]
    pairs.sort(key=lambda pair: -pair[1] * costs(shapes[pair[0]])["parameters"])  # the longest first
    settings = {
        f"{name}, {tokens}": shape_of(*shapes[name]) | {"learning_rate": rates[name], "tokens": tokens}
        for name, tokens in pairs
    }
    runs = grid(work, "scaling_law", MODEL, NANOGPT, {"run": settings}, "compare", common=COMMON, seeds=SEEDS[:1])
    for row in runs:
        row["shape"] = row.pop("run").partition(",")[0]
        row |= costs(shapes[row["shape"]])
    (larger,) = (row for row in runs if row["shape"] in LARGER)
    runs = sorted((row for row in runs if row is not larger), key=lambda row: (row["parameters"], row["tokens"]))
    return {"settings": COMMON, "rates": rates, "trials": trials, "runs": runs, "larger": larger}


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


# ---- The speedrun


def speedrun(work: Work) -> dict:
    """Find for each idea the fewest tokens with which the median of three seeds reaches the recipe's loss."""
    settings, trials = dict(BEGIN), []
    stages = [reached(work, RECIPE_NAME, BEGIN, RECIPE_TOKENS)]
    goal = stages[0]["median"]
    options = {"common": {"tokens": IDEA_TOKENS}, "seeds": (TRIAL_SEED,)}
    for name, variants in IDEAS.items():
        axes = {"variant": {i: settings | variant for i, variant in enumerate(variants)}}
        tried = grid(work, "scaling_speedrun_trials", MODEL, NANOGPT, axes, "choose", **options)
        trials += [{"idea": name, "changes": variants[row["variant"]], "loss": row["loss"]} for row in tried]
        settings = settings | variants[ranked(tried)[0]["variant"]]
        stages.append(shortest(work, name, settings, stages[-1]["budget"], goal))
    timed = {stage["name"]: stage["settings"] | {"tokens": IDEA_TOKENS} for stage in stages}
    ratios = work.piece(step_ratios, timed, 7, 12)
    for stage in stages:
        stage["seconds_per_step"] = ratios[stage["name"]]
    return {"goal": goal, "trials": trials, "trial_tokens": IDEA_TOKENS, "stages": stages}


def stage_of(name: str, settings: dict, budget: int, steps: int, runs: list[dict]) -> dict:
    """Return a stage: its settings, and the losses of its runs at one budget."""
    losses = [finite(run["loss"]) for run in runs]
    stage = {"name": name, "settings": settings, "budget": budget, "steps": steps, "losses": losses}
    return stage | {"median": statistics.median(losses)}


def reached(work: Work, name: str, settings: dict, budget: int) -> dict:
    """Make the three runs of a stage at one budget."""
    runs = grid(
        work, "scaling_speedrun", MODEL, NANOGPT, {"budget": {budget: settings | {"tokens": budget}}}, "compare"
    )
    return stage_of(name, settings, budget, budget // (settings["batch_size"] * MODEL.n_positions), runs)


def shortest(work: Work, name: str, settings: dict, tokens: int, goal: float) -> dict:
    """Return the shortest budget that reaches the goal, looked for rung by rung from one below `tokens`."""
    stage = None
    while (lower := reached(work, name, settings, round(tokens * RUNG)))["median"] <= goal:
        stage, tokens = lower, lower["budget"]
    while stage is None:  # one rung less was too little: the idea helps by less than that, or not at all
        higher = reached(work, name, settings, tokens)
        stage, tokens = (higher if higher["median"] <= goal else None), round(tokens / RUNG)
    if name in HALF_RUNGS:
        lower = reached(work, name, settings, round(stage["budget"] * RUNG**0.5))
        stage = lower if lower["median"] <= goal else stage
    return stage


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
    """Return the law that fits the runs, and what it and laws of runs drawn again say about the larger run."""
    larger, finished = data["larger"], [run for run in data["runs"] if run["loss"] is not None]
    columns = [[run[name] for run in finished] for name in ("parameters", "tokens", "loss")]
    law = fit_scaling_law(*columns)
    losses = [one.loss(larger["parameters"], larger["tokens"]) for one in (law, *bootstrap_laws(*columns))]
    return {"law": law, "loss": losses[0], "low": min(losses[1:]), "high": max(losses[1:])}


PARTS = {"law": law, "shape": shape, "speedrun": speedrun}


if __name__ == "__main__":
    run("scaling", PARTS, card)
