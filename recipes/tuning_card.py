"""The numbers in the card of gptcourse/assets/tuning, computed from the files beside it; recipes/cards has its text."""

from __future__ import annotations

import math
import statistics

from runner import fill, finite, grouped, losses_by


def card(data: dict[str, dict]) -> str:
    """Return the card of the recorded experiments."""
    parts = ("recipe", "batch", "switches", "widths", "search", "third")
    functions = (comparison, best_rate, predicted_steps, rules, verdicts, best_key, power_of_two, best_at)
    return fill("tuning", parts, **{f.__name__: f for f in functions}, **data)


# ---- The recipe to beat


def compared_budget(data: dict) -> int:
    """Return the tokens of the tuned run to compare.

    It is the shortest whose median loss over the seeds is not above the recipe's median; the longest, if none got
    there.
    """
    goal = statistics.median(finite(run["loss"]) for run in data["recipe_runs"])
    runs = losses_by(data["tuned_runs"], "budget")
    return next((budget for budget in sorted(runs) if statistics.median(runs[budget]) <= goal), max(runs))


def comparison(data: dict) -> dict[str, float]:
    """Return what the tuned run saves: its steps, tokens and seconds to the recipe's final loss, as shares of it."""
    budget, recipe, tuned = compared_budget(data), data["recipe"], data["tuned"]
    steps = budget // (tuned["batch_size"] * data["model"]["n_positions"])
    share = steps / recipe["steps"]
    return {
        "budget": budget,
        "recipe_loss": statistics.median(finite(run["loss"]) for run in data["recipe_runs"]),
        "tuned_loss": statistics.median(losses_by(data["tuned_runs"], "budget")[budget]),
        "tuned_steps": steps,
        "steps": share,
        "tokens": share * tuned["batch_size"] / recipe["batch_size"],
        "seconds": share * data["seconds_per_step"]["ratio"],
    }


# ---- Batch size


def best_rate(runs: list[dict], size: int) -> tuple[float, list[float]]:
    """Return the best rate of a batch size, by the first seed, and the steps with all seeds."""
    mine = [run for run in runs if run["batch_size"] == size]
    reached = [run for run in mine if run["steps"] and run["seed"] == mine[0]["seed"]]
    rate = min(reached, key=lambda run: run["steps"])["rate"]
    return rate, [finite(run["steps"]) for run in mine if run["rate"] == rate]


def predicted_steps(data: dict, size: int) -> float:
    """Return the steps on the hyperbola whose bend is the measured noise scale and whose height fits best."""
    critical = statistics.median(n["tokens"] for n in data["noise"])
    length, heights = data["model"]["n_positions"], []
    for other in grouped(data["runs"], "batch_size"):
        heights.append(statistics.median(best_rate(data["runs"], other)[1]) / (1 + critical / (other * length)))
    return statistics.median(heights) * (1 + critical / (size * length))


def rules(data: dict) -> list[list[dict]]:
    """Return for each batch size the first seed's runs at the rates of both rules, where both were tried."""
    anchor_size, anchor_rate = data["anchor"]
    pairs = []
    for size, runs in grouped(data["runs"], "batch_size").items():
        rates = (anchor_rate * (size / anchor_size) ** power for power in (0.5, 1.0))
        first = [run for run in runs if run["seed"] == runs[0]["seed"]]
        found = [[run for run in first if math.isclose(run["rate"], rate, rel_tol=1e-3)] for rate in rates]
        if all(found) and size != anchor_size:
            pairs.append([runs[0] for runs in found])
    return pairs


# ---- The other experiments


def verdicts(runs: list[dict]) -> str:
    """Say for each rate which switches lie outside the range that the seeds of the full set span."""
    lines, groups, (base, *others) = [], losses_by(runs, "switch", "rate"), grouped(runs, "switch")
    for rate in grouped(runs, "rate"):
        found = {"worse with every seed": [], "better with every seed": [], "the ranges overlap": []}
        worse, better, same = found.values()
        full = groups[base, rate]
        for name in others:
            losses = groups[name, rate]
            (worse if min(losses) > max(full) else better if max(losses) < min(full) else same).append(name)
        said = "; ".join(f"{what}: {', '.join(names)}" for what, names in found.items() if names)
        lines.append(f"* At rate {rate:g}, against the full set: {said}.")
    return "\n".join(lines)


def best_key(losses: dict) -> float:
    """Return the key of the lowest median."""
    return min(losses, key=lambda key: statistics.median(losses[key]))


def power_of_two(rate: float) -> str:
    """Return a rate that is a power of two as "2⁻⁷"."""
    return "2" + str(round(math.log2(rate))).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def best_at(runs: list[dict], tokens: float) -> list[float | None]:
    """Return the lowest loss that each of some searches had found when it had spent so many tokens."""
    found = [[b for spent, b in zip(run["tokens"], run["best"], strict=True) if spent <= tokens] for run in runs]
    return [losses[-1] if losses else None for losses in found]
