"""Record the experiments of notebook 05 on small GPTs: python recipes/scaling_experiments.py [EXPERIMENT …]

EXPERIMENT is one or more of law, shape and speedrun (default: all, in this order); `--processes 1` leaves the other
cores alone. Every run is kept in recipes/work/tuning (which git ignores) when it ends: started again, the recipe goes
on where it stopped. An experiment that is complete becomes a JSON file in gptcourse/assets/scaling, with a card.

The text and its parts are those of recipes/tuning_experiments.py: Shakespeare's plays as characters. Rates are chosen
on one part of the held-out plays with a seed of their own; losses are compared on another.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path

import scaling_card
from tuning_experiments import (
    MODEL,
    RECIPE,
    SEEDS,
    START,
    TRIAL_SEED,
    Text,
    kept,
    read_text,
    record,
    record_all,
    step_ratios,
    within_tokens,
)

from gptcourse.scaling import flops_per_token
from gptcourse.sweeps import configured

ASSET = Path(__file__).parents[1] / "gptcourse" / "assets" / "scaling"
TUNING = ASSET.with_name("tuning")
RUN = replace(RECIPE, eval_steps=0)
COMMON = START | {"initializer_range": 0.05}  # the tuned run of notebook 03, but for its rate
HEAD_SIZE = 16

# The law: five sizes × six budgets, each size with a rate chosen at one budget; and the run that the law is to predict.
SIZES = {"2 × 16": (2, 16), "2 × 32": (2, 32), "3 × 48": (3, 48), "3 × 64": (3, 64), "4 × 96": (4, 96)}
LARGER = {"6 × 192": (6, 192)}
SIZE_RATES = (2e-3, 4e-3, 8e-3, 16e-3)
LARGER_RATES = (1e-3, 2e-3, 4e-3)
BUDGETS = tuple(2**power for power in range(17, 23))  # tokens
TRIAL_BUDGET, LARGER_BUDGET = 2**19, 4_700_000

# Width against depth: about 460,000 parameters each.
SHAPES = {
    "1 × 192": (1, 192),
    "2 × 136": (2, 136),
    "4 × 96": (4, 96),
    "8 × 68": (8, 68),
    "16 × 48": (16, 48),
}
SHAPE_RATES = (2e-3, 4e-3, 8e-3)
SHAPE_BUDGET, SHAPE_TRIAL_BUDGET = 2**20, 2**18


def shape_of(n_layer: int, n_embd: int) -> dict[str, int]:
    """Return the fields of a shape, with heads of about HEAD_SIZE numbers."""
    return {"n_layer": n_layer, "n_embd": n_embd, "n_head": n_embd // HEAD_SIZE}


def axis_of(shapes: dict[str, tuple[int, int]]) -> dict[str, dict]:
    """Return the axis of a sweep over shapes."""
    return {name: shape_of(*shape) for name, shape in shapes.items()}


def chosen_rates(text: Text, name: str, shapes: dict, rates: tuple, tokens: int, processes: int | None) -> dict:
    """Return the trials of some shapes at some rates, and the best rate of each shape."""
    axes = {
        "shape": axis_of(shapes),
        "rate": {rate: COMMON | {"learning_rate": rate, "tokens": tokens} for rate in rates},
    }
    options = {"held_out": text.choose, "seeds": (TRIAL_SEED,), "derive": within_tokens, "processes": processes}
    trials = record(text, f"{name}_trials", MODEL, RUN, axes, **options)
    best = {}
    for shape in shapes:
        finished = [row for row in trials if row["shape"] == shape and row["loss"]]
        best[shape] = min(finished, key=lambda row: row["loss"])["rate"]
    return {"trials": trials, "rates": best}


def costs(shape: tuple[int, int]) -> dict:
    """Return what a shape costs: its parameters, and floating-point operations per token."""
    config = replace(MODEL, **shape_of(*shape))
    return {"parameters": config.num_parameters, "flops_per_token": flops_per_token(config)}


# ---- Loss against parameters and tokens


def law(text: Text, processes: int | None) -> dict:
    """Train five sizes on six budgets each, and a larger model that the fit is to predict."""
    small = chosen_rates(text, "scaling_law", SIZES, SIZE_RATES, TRIAL_BUDGET, processes)
    large = chosen_rates(text, "scaling_law", LARGER, LARGER_RATES, BUDGETS[1], processes)
    rates = small["rates"] | large["rates"]
    pairs = [(name, tokens) for name in SIZES for tokens in BUDGETS] + [(name, LARGER_BUDGET) for name in LARGER]
    pairs.sort(key=lambda pair: -pair[1] * costs((SIZES | LARGER)[pair[0]])["parameters"])  # the longest first
    axes = {
        "run": {
            f"{name}, {tokens}": COMMON
            | shape_of(*(SIZES | LARGER)[name])
            | {"learning_rate": rates[name], "tokens": tokens}
            for name, tokens in pairs
        }
    }
    options = {"held_out": text.compare, "seeds": SEEDS[:1], "derive": within_tokens, "processes": processes}
    rows = record(text, "scaling_law", MODEL, RUN, axes, **options)
    for row in rows:
        row["shape"] = row.pop("run").partition(",")[0]
        row |= costs((SIZES | LARGER)[row["shape"]])
    runs = sorted((row for row in rows if row["shape"] in SIZES), key=lambda row: (row["parameters"], row["tokens"]))
    (larger,) = (row for row in rows if row["shape"] in LARGER)
    return {
        "settings": COMMON,
        "rates": rates,
        "trials": small["trials"] + large["trials"],
        "runs": runs,
        "larger": larger,
    }


# ---- Width against depth


def shape(text: Text, processes: int | None) -> dict:
    """Train five shapes of equally many parameters, each with its own rate, and time their steps."""
    found = chosen_rates(text, "scaling_shape", SHAPES, SHAPE_RATES, SHAPE_TRIAL_BUDGET, processes)
    axes = {
        "shape": {
            name: COMMON | fields | {"learning_rate": found["rates"][name], "tokens": SHAPE_BUDGET}
            for name, fields in axis_of(SHAPES).items()
        }
    }
    options = {"held_out": text.compare, "derive": within_tokens, "processes": processes}
    runs = record(text, "scaling_shape", MODEL, RUN, axes, **options)
    for row in runs:
        row |= costs(SHAPES[row["shape"]])
    stages = [{"name": name, "settings": COMMON | fields} for name, fields in axis_of(SHAPES).items()]
    seconds = kept("scaling_shape_seconds", lambda: seconds_per_step(text, stages))
    return {"settings": COMMON, "rates": found["rates"], "trials": found["trials"], "runs": runs, "seconds": seconds}


# ---- The speedrun

# nanoGPT's CPU recipe; then one idea after the other, on top of those before it. Of the variants of an idea the one
# is kept that does best on equally many tokens, with one seed, on the text for choosing.
BEGIN = {"batch_size": 12, "learning_rate": 1e-3, "lr_scheduler_type": "cosine", "min_lr_ratio": 0.1, "warmup": 0.05}
RECIPE_NAME = "nanoGPT's recipe"
IDEAS = {
    "a higher rate": [{"learning_rate": rate} for rate in (2e-3, 4e-3, 8e-3)],
    "a smaller batch": [
        {"batch_size": 8, "learning_rate": 3.3e-3},
        {"batch_size": 8, "learning_rate": 4e-3},
        {"batch_size": 6, "learning_rate": 2.8e-3},
    ],
    "straight down to zero": [{"lr_scheduler_type": "linear", "min_lr_ratio": 0.0, "warmup": w} for w in (0.05, 0.1)],
    "rotary positions": [{"position_embedding": "rotary", "learning_rate": rate} for rate in (4e-3, 8e-3)],
    "query/key norm": [{"qk_norm": True, "learning_rate": rate} for rate in (4e-3, 8e-3)],
    "squared ReLU": [{"activation_function": "relu2", "learning_rate": rate} for rate in (4e-3, 8e-3)],
    "Muon": [
        {"optim": "muon", "initializer_range": 0.02, "learning_rate": 8e-3} | changes
        for changes in (
            {},
            {"weight_decay": 0.3},
            {"weight_decay": 0.3, "norm": "rmsnorm"},
            {"weight_decay": 0.3, "norm": "rmsnorm", "adam_beta1": 0.8},
            {"weight_decay": 0.3, "norm": "rmsnorm", "adam_beta1": 0.8, "initializer_range": 0.05},
        )
    ],
    "three Newton-Schulz steps": [{"ns_steps": 3}],
}
IDEA_TOKENS = 2**18
RUNG = 2**-0.25  # from one budget to the next shorter one that is tried
HALF_RUNGS = ("Muon", "three Newton-Schulz steps")  # ideas whose runs are so short that half a rung less is tried, too


def speedrun(text: Text, processes: int | None) -> dict:
    """Find for each idea the fewest tokens with which the median of three seeds reaches the recipe's loss."""
    settings, stages = dict(BEGIN), [recipe_stage()]
    goal, trials = stages[0]["median"], []
    for name, variants in IDEAS.items():
        axes = {"variant": {i: settings | variant | {"tokens": IDEA_TOKENS} for i, variant in enumerate(variants)}}
        options = {"held_out": text.choose, "seeds": (TRIAL_SEED,), "derive": within_tokens, "processes": processes}
        tried = record(text, "scaling_speedrun_trials", MODEL, RUN, axes, **options)
        trials += [{"idea": name, "changes": variants[row["variant"]], "loss": row["loss"]} for row in tried]
        settings = settings | variants[min(tried, key=lambda row: row["loss"] or float("inf"))["variant"]]
        stages.append(shortest(text, name, settings, stages[-1]["budget"], goal, processes))
    ratios = kept("scaling_speedrun_seconds", lambda: seconds_per_step(text, stages))
    for stage in stages:
        stage["seconds_per_step"] = ratios[stage["name"]]
    return {"goal": goal, "trials": trials, "trial_tokens": IDEA_TOKENS, "stages": stages}


def reached(text: Text, name: str, settings: dict, budget: int, processes: int | None) -> dict:
    """Return a stage: its settings, and the three runs at one budget."""
    axes = {"budget": {budget: settings | {"tokens": budget}}}
    options = {"held_out": text.compare, "derive": within_tokens, "processes": processes}
    runs = record(text, "scaling_speedrun", MODEL, RUN, axes, **options)
    losses = [row["loss"] if row["loss"] is not None else float("inf") for row in runs]
    steps = budget // (settings["batch_size"] * MODEL.n_positions)
    stage = {"name": name, "settings": settings, "budget": budget, "steps": steps, "losses": losses}
    return stage | {"median": statistics.median(losses)}


def recipe_stage() -> dict:
    """Return the first stage: the three runs of the recipe that notebook 03's recipe has recorded on the same text."""
    runs = json.loads((TUNING / "recipe.json").read_text(encoding="utf-8"))["recipe_runs"]
    losses = [run["loss"] for run in runs]
    stage = {"name": RECIPE_NAME, "settings": BEGIN, "budget": runs[0]["tokens"], "steps": RECIPE.steps}
    return stage | {"losses": losses, "median": statistics.median(losses)}


def shortest(text: Text, name: str, settings: dict, tokens: int, goal: float, processes: int | None) -> dict:
    """Return the shortest budget that reaches the goal, looked for rung by rung from one below `tokens`."""
    stage = None
    while (lower := reached(text, name, settings, round(tokens * RUNG), processes))["median"] <= goal:
        stage, tokens = lower, lower["budget"]
    while stage is None:  # one rung less was too little: the idea helps by less than that, or not at all
        higher = reached(text, name, settings, tokens, processes)
        stage, tokens = (higher if higher["median"] <= goal else None), round(tokens / RUNG)
    if name in HALF_RUNGS:
        lower = reached(text, name, settings, round(stage["budget"] * RUNG**0.5), processes)
        stage = lower if lower["median"] <= goal else stage
    return stage


def seconds_per_step(text: Text, stages: list[dict]) -> dict[str, float]:
    """Return how many times as long a step of each stage takes as one of the first."""
    runs = {}
    for stage in stages:
        run = configured(MODEL, RUN, {"stage": stage["settings"] | {"tokens": IDEA_TOKENS}}, within_tokens)
        runs[stage["name"]] = run.model, run.training
    return step_ratios(text, runs, rounds=7, steps=12)


EXPERIMENTS = {"law": law, "shape": shape, "speedrun": speedrun}


def main() -> None:
    """Make the runs of notebook 05 that are not there yet, and write the asset and its card."""
    record_all("Record the experiments of notebook 05.", EXPERIMENTS, read_text, ASSET, scaling_card.card)


if __name__ == "__main__":
    main()
