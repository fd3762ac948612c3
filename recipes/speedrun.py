"""Record the speedrun of notebook 10: python recipes/speedrun.py

A small GPT reads Shakespeare's plays as characters until its held-out loss is that of the best count table. The first
row is nanoGPT's CPU recipe, made longer. Then one change after the other is tried in the same way: its rate is chosen,
two lengths are found that the goal lies between, and three seeds are trained for each. How many tokens a seed needs is
read off between the two, on a straight line over the logarithm of the tokens.

A change is kept if the three seeds tell its gain in time from none. That is decided on one part of the held-out plays,
with the goal that counting sets there; what is reported is of another part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from plays import within_tokens
from runner import Work, completed, fill, finite, ranked, rounded, run, tables
from scaling_experiments import PLAYS, best_table, configs, step_ratios

from gptcourse.model import GPT
from gptcourse.training import DivergedError, evaluate, train
from gptcourse.tuning import t_interval

BEGIN, IDEAS, LOWER = tables("speedrun", "BEGIN", "IDEAS", "LOWER")
PARTS_OF_TEXT = ("choose", "compare")
RECIPE_NAME, FIRST_RUNG, HIGHER = "nanoGPT's recipe", 45, 4  # HIGHER: rungs above the first at which one gives up
SEEDS, FRESH_SEEDS, TRIAL_SEED, TRIAL_TOKENS = (0, 1, 2), (3, 4, 5), 10, 2**19
ROUNDS, STEPS = 15, 12  # in which steps are timed in turns


def tokens_of(rung: int) -> int:
    """Return the length of a run: each rung has √2 times the tokens of the one below."""
    return round(2 ** (rung / 2))


def goals() -> dict[str, float]:
    """Return the loss of the best table of n-grams, counted on all the plays, on each part of the held-out text."""
    return {part: best_table(len(PLAYS.train), getattr(PLAYS, part))["loss"] for part in PARTS_OF_TEXT}


def trained(settings: Mapping[str, Any], tokens: int, seed: int) -> dict[str, float | None]:
    """Train one model; return its losses on the parts of the held-out text, None if it diverged."""
    shape, config = configs({**settings, "tokens": tokens})
    torch.manual_seed(seed)
    model = GPT(shape)
    try:
        completed(train(model, PLAYS.train, replace(config, seed=seed), progress=False))
    except DivergedError:
        return dict.fromkeys(PARTS_OF_TEXT)
    return {part: rounded(evaluate(model, getattr(PLAYS, part))) for part in PARTS_OF_TEXT}


def best_rate(work: Work, settings: dict) -> tuple[float, list[dict]]:
    """Return the rate with the lowest loss in short runs, which has a worse one on either side, and the trials."""
    rates, tried = [settings["learning_rate"] * factor for factor in (0.5, 1, 2)], {}
    while True:
        new = [rate for rate in rates if rate not in tried]
        tasks = [(trained, settings | {"learning_rate": rate}, TRIAL_TOKENS, TRIAL_SEED) for rate in new]
        tried |= zip(new, work.pieces(tasks), strict=True)
        trials = [{"rate": rate, "loss": tried[rate]["choose"]} for rate in sorted(tried)]
        best = ranked(trials)[0]["rate"]
        if best not in (min(tried), max(tried)):
            return best, trials
        rates = [best / 2, best * 2]


def arrival(work: Work, settings: dict, goal: dict[str, float], rung: int, seeds=SEEDS) -> dict:
    """Return two lengths that the goal lies between, the losses there, and the tokens with which it is reached.

    The lengths are looked for from `rung` on with the first seed.
    """
    highest = rung + HIGHER

    def missed(*rungs: int) -> bool:
        runs = work.pieces((trained, settings, tokens_of(rung), seeds[0]) for rung in rungs)
        return finite(runs[0]["choose"]) > goal["choose"]

    missed(rung, rung - 1)  # both at once: most often the goal lies there

    while rung < highest and missed(rung):
        rung += 1
    while not missed(rung - 1):
        rung -= 1
    budgets = tokens_of(rung - 1), tokens_of(rung)
    runs = work.pieces((trained, settings, budget, seed) for budget in budgets for seed in seeds)
    pairs = runs[: len(seeds)], runs[len(seeds) :]
    by_part = {part: [[run[part] for run in some] for some in pairs] for part in PARTS_OF_TEXT}
    needed = {
        part: [crossing(*budgets, *pair, goal[part]) for pair in zip(*both, strict=True)]
        for part, both in by_part.items()
    }
    return {"rung": rung, "budgets": budgets, "losses": by_part, "tokens": needed}


def crossing(less: int, more: int, loss_of_less: float | None, loss_of_more: float | None, goal: float) -> float:
    """Return the tokens with which a line through two runs reaches the goal; infinite if the longer run is no better.

    The line may reach it a little outside of the two.
    """
    falls = finite(loss_of_less) - finite(loss_of_more)
    if not 0 < falls < math.inf:
        return math.inf
    return round(less * (more / less) ** ((loss_of_less - goal) / falls))


def time_ratios(work: Work, runs: dict[str, dict]) -> dict[str, float]:
    """Return how many times as long a token takes with each settings as with the first: not each step has as many."""
    runs = {name: settings | {"tokens": TRIAL_TOKENS} for name, settings in runs.items()}
    steps = [within_tokens(settings)["steps"] for settings in runs.values()]
    ratios = work.piece(step_ratios, runs, ROUNDS, STEPS)
    return {name: rounded(ratios[name] * n / steps[0]) for name, n in zip(runs, steps, strict=True)}


def gain(before: list[float], after: list[float], ratio: float) -> tuple[float, float, float]:
    """Return how much of the time is saved, as ln(before / after) of each seed: the mean, and a 95 % interval."""
    saved = [math.log(old) - math.log(new * ratio) for old, new in zip(before, after, strict=True)]
    return sum(saved) / len(saved), *t_interval(saved)


def changed(settings: dict, change: Mapping[str, Any]) -> dict:
    """Return settings with a change made; "half" is half of what it was."""
    return settings | {key: settings[key] // 2 if value == "half" else value for key, value in change.items()}


def row(work: Work, kept: dict, name: str, change: dict, goal: dict[str, float]) -> dict:
    """Try one change on top of what was kept, and say whether it is kept, too."""
    before = kept["settings"]
    settings = changed(before, change)
    rate, trials = best_rate(work, settings)
    settings |= {"learning_rate": rate}
    found = arrival(work, settings, goal, kept["rung"] - LOWER.get(name, 0))
    ratio = time_ratios(work, {"before": before, "after": settings})["after"]
    gains = {part: gain(kept["tokens"][part], found["tokens"][part], ratio) for part in PARTS_OF_TEXT}
    told = {"kept": gains["choose"][1] > 0, "gain": rounded(gains["compare"]), "gain_choose": rounded(gains["choose"])}
    return {"name": name, "change": change, "trials": trials, "settings": settings, "ratio": ratio} | found | told


def speedrun(work: Work) -> dict:
    """Try all ideas in their order; train the last that was kept with fresh seeds, and time all that were kept."""
    goal = goals()
    rows = [{"name": RECIPE_NAME, "settings": BEGIN, "kept": True} | arrival(work, BEGIN, goal, FIRST_RUNG)]
    kept = rows[0]
    for name, change in IDEAS.items():
        rows.append(row(work, kept, name, change, goal))
        kept = rows[-1] if rows[-1]["kept"] else kept
    confirmed = arrival(work, kept["settings"], goal, kept["rung"], FRESH_SEEDS)
    seconds = time_ratios(work, {row["name"]: row["settings"] for row in rows if row["kept"]})
    return {"goal": goal, "rows": rows, "confirmed": confirmed, "seconds_per_token": seconds}


def card(data: dict[str, dict]) -> str:
    """Return the card of the recorded speedrun."""
    return fill("speedrun", tuple(PARTS), trial_tokens=TRIAL_TOKENS, saved=saved, **data)


def saved(gain: list[float]) -> str:
    """Write the share of the time that a change saves, with its interval: less than none if it takes longer."""
    middle, low, high = (100 * (1 - math.exp(-value)) for value in gain)
    return f"{middle:.0f} ({low:.0f} to {high:.0f})"


PARTS = {"speedrun": speedrun}


if __name__ == "__main__":
    run("speedrun", PARTS, card)
