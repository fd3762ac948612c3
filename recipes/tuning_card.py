"""The numbers in the card of gptcourse/assets/tuning, computed from the files beside it; recipes/cards has its text."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from runner import card_of_parts, finite, grouped, losses_by, rows, spread, table


def card(data: dict[str, dict]) -> str:
    """Return the card of the recorded experiments."""
    return card_of_parts("tuning", FIELDS, data)


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


def _recipe(data: dict) -> dict:
    recipe_runs, found = data["recipe_runs"], comparison(data)
    before, after = data["model"] | data["recipe"], data["tuned_model"] | data["tuned"]
    different = [name for name in before if before[name] != after[name] and name not in ("eval_steps", "steps")]
    length = data["tuned"]["batch_size"] * data["model"]["n_positions"]  # tokens of a step
    runs = [["the recipe", data["recipe"]["steps"], recipe_runs[0]["tokens"], [run["loss"] for run in recipe_runs]]]
    for budget, losses in losses_by(data["tuned_runs"], "budget").items():
        runs.append(["tuned", budget // length, budget // length * length, losses])
    return data | {
        "found": found,
        "seeds": ", ".join(str(run["seed"]) for run in recipe_runs),
        "runs": rows([name, f"{steps:,}", f"{n:,}", spread(losses)] for name, steps, n, losses in runs),
        "shares": rows([name, f"{found[name]:.2f}"] for name in ("steps", "tokens", "seconds")),
        "different": rows([f"`{name}`", before[name], after[name]] for name in different),
        "short": _trials(data["trials"]),
        "long": _trials(data["long_trials"]),
    }


def _trials(trials: list[dict]) -> str:
    ranked = sorted(trials, key=lambda trial: finite(trial["loss"]))
    return rows([trial["trial"], spread([trial["loss"]])] for trial in ranked)


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


def _batch(data: dict) -> dict:
    length, fit = data["model"]["n_positions"], data["fit"]
    sizes = []
    for size in grouped(data["runs"], "batch_size"):
        rate, steps = best_rate(data["runs"], size)
        fitted = fit["min_steps"] * (1 + fit["critical_batch"] / (size * length))
        tokens, predicted = statistics.median(steps) * size * length, predicted_steps(data, size)
        cells = [f"{number:,.0f}" for number in (tokens, fitted, predicted)]
        sizes.append([size, f"{rate:.2g}", spread(steps, ".0f"), *cells])
    return data | {
        "sizes": rows(sizes),
        "critical": fit["critical_batch"] / length,
        "scales": rows(
            [n["step"], f"{n['sequences']:.0f} ± {n['standard_error']:.0f}", f"{n['tokens']:,.0f}"]
            for n in data["noise"]
        ),
        "rules": rows(_rules(data)),
    }


def _rules(data: dict) -> list[list]:
    """Return a row for each batch size at which both rules' rates were tried."""
    anchor_size, anchor_rate = data["anchor"]
    lines = []
    for size, runs in grouped(data["runs"], "batch_size").items():
        cells = []
        for power in (0.5, 1.0):
            rate = anchor_rate * (size / anchor_size) ** power
            first = [run for run in runs if run["seed"] == runs[0]["seed"]]
            found = [run for run in first if math.isclose(run["rate"], rate, rel_tol=1e-3)]
            cells += [f"{rate:.2g}", _arrival(found[0])] if found else []
        if len(cells) == 4 and size != anchor_size:
            lines.append([size, *cells])
    return lines


def _arrival(run: dict) -> str:
    return f"{run['steps']:,}" if run["steps"] else f"more than {run['limit']:,}"


# ---- The other experiments


def _switches(data: dict) -> dict:
    groups = losses_by(data["runs"], "switch", "rate")
    names, rates = (list(dict.fromkeys(column)) for column in zip(*groups, strict=True))
    lines = [[name, *(spread(groups[name, rate]) for rate in rates)] for name in names]
    head = ["run", *(f"rate {rate:g}" for rate in rates)]
    return data | {"table": table(head, lines), "verdicts": verdicts(groups, rates)}


def verdicts(groups: dict, rates: Sequence[float]) -> str:
    """Say for each rate which switches lie outside the range that the seeds of the full set span."""
    lines = []
    base, *others = dict.fromkeys(name for name, _ in groups)
    for rate in rates:
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


def _widths(data: dict) -> dict:
    base, lines = data["base_width"], []
    models = grouped(data["runs"], "parametrisation", "width")
    carried = best_key(losses_by(models["standard", base], "rate"))
    for (parametrisation, width), runs in models.items():
        losses = losses_by(runs, "rate")
        best, name = best_key(losses), f"{width}, {'both' if width == base else parametrisation}"
        lines.append([name, power_of_two(best), spread(losses[best]), spread(losses[carried])])
    rates = [power_of_two(rate) for rate in losses]
    head_size = data["model"]["n_embd"] // data["model"]["n_head"]
    return data | {
        "rates": rates,
        "n_rates": len(rates),
        "last": rates[-1],
        "head_size": head_size,
        "rows": rows(lines),
    }


def power_of_two(rate: float) -> str:
    """Return a rate that is a power of two as "2⁻⁷"."""
    return "2" + str(round(math.log2(rate))).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _search(data: dict) -> dict:
    lines = []
    for method, runs in grouped(data["runs"], "method").items():
        shares = [spread(best_at(run, share * data["budget"]) for run in runs) for share in (0.25, 0.5, 1.0)]
        lines.append([method, ", ".join(str(len(run["tokens"])) for run in runs), *shares])
    axes = " × ".join(f"{len(values)} `{name}`" for name, values in data["grid"].items())
    return data | {"axes": axes, "rows": rows(lines)}


def best_at(run: dict, tokens: float) -> float | None:
    """Return the lowest loss that a search had found when it had spent so many tokens."""
    found = [loss for spent, loss in zip(run["tokens"], run["best"], strict=True) if spent <= tokens]
    return found[-1] if found else None


def _third(data: dict) -> dict:
    lines = []
    for shape, runs in grouped(data["shapes"], "shape").items():
        at = losses_by(runs, "rate")
        rate = best_key(at)
        lines.append([shape, f"{runs[0]['parameters']:,}", f"{rate:g}", spread(at[rate])])
    losses = rows([name, spread(found)] for name, found in losses_by(data["losses"], "objective").items())
    return data | {"n_rates": len(at), "shapes": rows(lines), "losses": losses}


FIELDS = {
    "recipe": _recipe,
    "batch": _batch,
    "switches": _switches,
    "widths": _widths,
    "search": _search,
    "third": _third,
}
