"""The card of gptcourse/assets/tuning: every table in it is computed from the JSON files beside it."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

HEAD = """# tuning

The experiments of notebook 03 that take longer than a notebook may: real runs of this package, recorded by
`python recipes/tuning_experiments.py`, which goes on where it was stopped. All models are small GPTs that read
Shakespeare's plays (`gptcourse.corpora.shakespeare`) as characters, in windows of 64; all losses are in nats per
character, on held-out plays. Settings were chosen on the first 20,000 characters of Macbeth (the batch sizes and the
searches: on the first 8,000); the recipe and the tuned run are compared on the last 40,000 of Twelfth Night. Medians
are over the seeds, with the lowest and the highest in brackets: a difference within those brackets means nothing.
Nothing here is about large models: it shows how to find out, not what to choose.
"""
TITLES = {
    "recipe": "The recipe to beat",
    "batch": "Batch size: steps against tokens",
    "switches": "GPT-3's choices, switched off one at a time",
    "widths": "A wider model: the standard parametrisation and muP",
    "search": "Search at equal budget",
    "third": "The third dial: structure and loss",
}


def card(asset: Path) -> str:
    """Return the card in Markdown. An experiment whose file is not there is said to be missing."""
    return assembled(asset, HEAD, TITLES, SECTIONS)


def assembled(asset: Path, head: str, titles: dict[str, str], sections: dict[str, Callable[[dict], str]]) -> str:
    """Return a card: its head, then the section of each experiment, written from the experiment's file."""
    parts = [head]
    for name, title in titles.items():
        path = asset / f"{name}.json"
        text = "Not recorded." if not path.exists() else sections[name](json.loads(path.read_text(encoding="utf-8")))
        parts.append(f"## {title}\n\n{text}\n")
    return "\n".join(parts)


# ---- Words and tables


def table(head: Sequence[str], rows: Iterable[Sequence]) -> str:
    """Return a Markdown table: the first column to the left, the others to the right."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def spread(losses: Iterable[float | None], form: str = ".3f") -> str:
    """Return "median (lowest–highest)"; None is a run that diverged, or did not arrive."""
    values = sorted(math.inf if loss is None else loss for loss in losses)
    low, middle, high = (
        "none" if value == math.inf else format(value, form)
        for value in (values[0], statistics.median(values), values[-1])
    )
    return f"{middle} ({low}–{high})" if len(values) > 1 else middle


def grouped(rows: Iterable[dict], *axes: str) -> dict[tuple, list[float | None]]:
    """Return the losses of all seeds for each combination of the axes, in their order."""
    groups: dict[tuple, list] = {}
    for row in rows:
        groups.setdefault(tuple(row[axis] for axis in axes), []).append(row["loss"])
    return groups


def median(values: Iterable[float | None]) -> float:
    """Return the median, where None counts as infinitely bad."""
    return statistics.median(math.inf if value is None else value for value in values)


# ---- The sections


def compared_budget(data: dict) -> int:
    """Return the tokens of the tuned run to compare.

    It is the shortest whose median loss over the seeds is not above the recipe's median; the longest, if none got
    there.
    """
    goal = median(row["loss"] for row in data["recipe_runs"])
    runs = grouped(data["tuned_runs"], "budget")
    budgets = sorted(budget for (budget,) in runs)
    return next((budget for budget in budgets if median(runs[budget,]) <= goal), budgets[-1])


def comparison(data: dict) -> dict[str, float]:
    """Return what the tuned run saves: its steps, tokens and seconds to the recipe's final loss, as shares of it."""
    goal = median(row["loss"] for row in data["recipe_runs"])
    budget, runs = compared_budget(data), grouped(data["tuned_runs"], "budget")
    recipe, tuned, length = data["recipe"], data["tuned"], data["model"]["n_positions"]
    steps = budget // (tuned["batch_size"] * length)
    share = steps / recipe["steps"]
    return {
        "budget": budget,
        "recipe_loss": goal,
        "tuned_loss": median(runs[budget,]),
        "tuned_steps": steps,
        "steps": share,
        "tokens": share * tuned["batch_size"] / recipe["batch_size"],
        "seconds": share * data["seconds_per_step"]["ratio"],
    }


def _recipe(data: dict) -> str:
    recipe, tuned, found = data["recipe"], data["tuned"], comparison(data)
    before, after = data["model"] | recipe, data["tuned_model"] | tuned
    different = [name for name in before if before[name] != after[name] and name not in ("eval_steps", "steps")]
    runs = [["the recipe", f"{recipe['steps']:,}", f"{row['tokens']:,}"] for row in data["recipe_runs"][:1]]
    runs[0].append(spread(row["loss"] for row in data["recipe_runs"]))
    for (budget,), losses in grouped(data["tuned_runs"], "budget").items():
        steps = budget // (tuned["batch_size"] * data["model"]["n_positions"])
        tokens = steps * tuned["batch_size"] * data["model"]["n_positions"]
        runs.append(["tuned", f"{steps:,}", f"{tokens:,}", spread(losses)])
    shares = [[name, f"{found[name]:.2f}"] for name in ("steps", "tokens", "seconds")]
    trials = [_trials(data[name]) for name in ("trials", "long_trials")]
    return f"""nanoGPT's CPU recipe ({data["model"]["n_layer"]} layers, {data["model"]["n_head"]} heads,
{data["model"]["n_embd"]} wide, context {data["model"]["n_positions"]}, no dropout), and the same model tuned. Our model
has biases, nanoGPT's has none. Seeds {_names(row["seed"] for row in data["recipe_runs"])}.

{table(["run", "steps", "tokens", "held-out loss"], runs)}

The shortest tuned run that gets to the recipe's median loss ({found["tuned_loss"]:.3f} against
{found["recipe_loss"]:.3f}) takes these shares of the recipe's cost. The seconds are processor time of the steps alone,
both kinds measured in turns in one process:

{table(["", "tuned / recipe"], shares)}

What differs, except for the number of steps:

{table(["setting", "recipe", "tuned"], [[f"`{name}`", before[name], after[name]] for name in different])}

It was chosen by trials with one seed, {data["trials"][0]["seed"]}, and other held-out text. First short ones of
{data["trials"][1]["tokens"]:,} tokens each, in which one thing was changed from "start":

{trials[0]}

Then a few on {data["long_trials"][0]["tokens"]:,} tokens each:

{trials[1]}"""


def _trials(rows: list[dict]) -> str:
    ranked = sorted(rows, key=lambda row: _finite(row["loss"]))
    return table(["trial", "held-out loss"], [[row["trial"], spread([row["loss"]])] for row in ranked])


def _names(values: Iterable) -> str:
    return ", ".join(map(str, values))


def _batch(data: dict) -> str:
    length, fit = data["model"]["n_positions"], data["fit"]
    sizes = dict.fromkeys(run["batch_size"] for run in data["runs"])
    rows = []
    for size in sizes:
        rate, steps = best_rate(data, size)
        middle = statistics.median(steps)
        hyperbola = fit["min_steps"] * (1 + fit["critical_batch"] / (size * length))
        predicted = predicted_steps(data, size)
        tokens = f"{middle * size * length:,.0f}"
        rows.append([size, f"{rate:.2g}", spread(steps, ".0f"), tokens, f"{hyperbola:,.0f}", f"{predicted:,.0f}"])
    noise = [
        [n["step"], f"{n['sequences']:.0f} ± {n['standard_error']:.0f}", f"{n['tokens']:,.0f}"] for n in data["noise"]
    ]
    head = ["batch, sequences", "best rate", "steps", "tokens", "fitted", "predicted by the noise"]
    return f"""Steps of AdamW at a constant rate to a held-out loss of {data["target"]}
({data["model"]["n_layer"]} layers, {data["model"]["n_embd"]} wide), each batch size with the best of the rates that
were tried for it. That rate was chosen with seed 0 alone, whose steps are therefore a little lucky.

{table(head, rows)}

"Fitted" is the hyperbola of McCandlish et al. (2018), equation 2.11, with the fewest steps {fit["min_steps"]:,.0f} and
the critical batch {fit["critical_batch"]:,.0f} tokens ({fit["critical_batch"] / length:.0f} sequences). "Predicted"
takes the critical batch from the noise scale (the median below) and only the height from the measured steps.

The noise scale along the run with {data["anchor"][0]} sequences:

{table(["after step", "sequences", "tokens"], noise)}

Two rules carry the rate {data["anchor"][1]} from {data["anchor"][0]} sequences to other batch sizes (seed 0):

{table(["batch, sequences", "√ rule: rate", "steps", "linear rule: rate", "steps"], _rules(data))}"""


def best_rate(data: dict, size: int) -> tuple[float, list[float]]:
    """Return the best rate of a batch size, by the first seed, and the steps with all seeds."""
    mine = [run for run in data["runs"] if run["batch_size"] == size]
    reached = [run for run in mine if run["steps"] and run["seed"] == mine[0]["seed"]]
    rate = min(reached, key=lambda run: run["steps"])["rate"]
    return rate, [run["steps"] or math.inf for run in mine if run["rate"] == rate]


def predicted_steps(data: dict, size: int) -> float:
    """Return the steps on the hyperbola whose bend is the measured noise scale and whose height fits best."""
    length = data["model"]["n_positions"]
    critical = statistics.median(n["tokens"] for n in data["noise"])
    heights = []
    for other in dict.fromkeys(run["batch_size"] for run in data["runs"]):
        heights.append(statistics.median(best_rate(data, other)[1]) / (1 + critical / (other * length)))
    return statistics.median(heights) * (1 + critical / (size * length))


def _rules(data: dict) -> list[list]:
    """Return a row for each batch size at which both rules' rates were tried."""
    anchor_size, anchor_rate = data["anchor"]
    rows = []
    for size in dict.fromkeys(run["batch_size"] for run in data["runs"]):
        mine = [run for run in data["runs"] if run["batch_size"] == size and run["seed"] == data["runs"][0]["seed"]]
        cells = []
        for power in (0.5, 1.0):
            rate = anchor_rate * (size / anchor_size) ** power
            found = [run for run in mine if math.isclose(run["rate"], rate, rel_tol=1e-3)]
            cells += [f"{rate:.2g}", arrival(found[0])] if found else []
        if len(cells) == 4 and size != anchor_size:
            rows.append([size, *cells])
    return rows


def arrival(run: dict) -> str:
    """Return how many steps a run took, or how many were not enough."""
    return f"{run['steps']:,}" if run["steps"] else f"more than {run['limit']:,}"


def _switches(data: dict) -> str:
    groups = grouped(data["runs"], "switch", "rate")
    rates = list(dict.fromkeys(rate for _, rate in groups))
    rows = [[name] + [spread(groups[name, rate]) for rate in rates] for name in dict.fromkeys(n for n, _ in groups)]
    choices = data["choices"]
    return f"""{choices["steps"]} steps of {choices["batch_size"]} sequences, {data["model"]["n_layer"]} layers,
{data["model"]["n_embd"]} wide: {choices["warmup_steps"]} steps of warm-up, cosine to {choices["min_lr_ratio"]:.0%},
β₂ = {choices["adam_beta2"]}, clipping at {choices["max_grad_norm"]:g}, weight decay {choices["weight_decay"]};
then each of them switched off alone. Held-out loss at the end:

{table(["run", *(f"rate {rate:g}" for rate in rates)], rows)}

{verdicts(groups, rates)}"""


def verdicts(groups: dict, rates: Sequence[float]) -> str:
    """Say for each rate which switches lie outside the range that the seeds of the full set span."""
    lines = []
    base, *others = dict.fromkeys(name for name, _ in groups)
    for rate in rates:
        worse, better, same = [], [], []
        reference = groups[base, rate]
        for name in others:
            low, high = min(map(_finite, groups[name, rate])), max(map(_finite, groups[name, rate]))
            is_worse, is_better = low > max(map(_finite, reference)), high < min(map(_finite, reference))
            (worse if is_worse else better if is_better else same).append(name)
        parts = [("worse with every seed", worse), ("better with every seed", better), ("the ranges overlap", same)]
        said = "; ".join(f"{what}: {_names(names)}" for what, names in parts if names)
        lines.append(f"* At rate {rate:g}, against the full set: {said}.")
    return "\n".join(lines)


def _finite(loss: float | None) -> float:
    return math.inf if loss is None else loss


def _widths(data: dict) -> str:
    base, choices = data["base_width"], data["choices"]
    groups = grouped(data["runs"], "parametrisation", "width", "rate")
    rates = list(dict.fromkeys(row["rate"] for row in data["runs"]))
    rows, best = [], {}
    for parametrisation, width in dict.fromkeys((p, w) for p, w, _ in groups):
        medians = {rate: median(groups[parametrisation, width, rate]) for rate in rates}
        rate = best[parametrisation, width] = min(medians, key=medians.get)
        carried = groups[parametrisation, width, best["standard", base]]
        name = f"{width}, {'both' if width == base else parametrisation}"
        rows.append([name, power_of_two(rate), spread(groups[parametrisation, width, rate]), spread(carried)])
    head_size, layers = data["model"]["n_embd"] // data["model"]["n_head"], data["model"]["n_layer"]
    return f"""{choices["steps"]} steps of {choices["batch_size"]} sequences with GPT-3's choices, {layers} layers,
heads of {head_size} numbers, a read-out of its own, {len(rates)} rates from {power_of_two(rates[0])}
to {power_of_two(rates[-1])}. The last column is the loss at the rate that is best at width {base}, carried over as it
is:

{table(["width", "best rate", "held-out loss", "with the rate of the base width"], rows)}"""


def power_of_two(rate: float) -> str:
    """Return a rate that is a power of two as "2⁻⁷"."""
    return "2" + str(round(math.log2(rate))).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _search(data: dict) -> str:
    rows = []
    for method in dict.fromkeys(run["method"] for run in data["runs"]):
        mine = [run for run in data["runs"] if run["method"] == method]
        shares = [spread(best_at(run, share * data["budget"]) for run in mine) for share in (0.25, 0.5, 1.0)]
        rows.append([method, _names(len(run["tokens"]) for run in mine), *shares])
    grid = " × ".join(f"{len(values)} `{name}`" for name, values in data["grid"].items())
    return f"""Every method may train on {data["budget"]:,} tokens; a whole run takes {data["run_tokens"]:,}.
The grid is {grid}, all else as GPT-3, its runs in random order. Random search
and TPE draw rate, batch, warm-up, schedule, β₂ and weight decay; TPE's runs are pruned by the median rule. Its
first ten runs are random too, and with the same seed the very ones of random search: only then does it begin to learn.
The lowest held-out loss after a share of the tokens:

{table(["method", "runs begun, by seed", "a quarter", "half", "all"], rows)}"""


def best_at(run: dict, tokens: float) -> float | None:
    """Return the lowest loss that a search had found when it had spent so many tokens."""
    found = [loss for spent, loss in zip(run["tokens"], run["best"], strict=True) if spent <= tokens]
    return found[-1] if found else None


def _third(data: dict) -> str:
    shapes = []
    groups = grouped(data["shapes"], "shape", "rate")
    for shape in dict.fromkeys(row["shape"] for row in data["shapes"]):
        rate = min((r for s, r in groups if s == shape), key=lambda r: median(groups[shape, r]))
        parameters = next(row["parameters"] for row in data["shapes"] if row["shape"] == shape)
        shapes.append([shape, f"{parameters:,}", f"{rate:g}", spread(groups[shape, rate])])
    losses = [[name, spread(found)] for (name,), found in grouped(data["losses"], "objective").items()]
    choices = data["choices"]
    return f"""{choices["steps"]} steps of {choices["batch_size"]} sequences with GPT-3's choices. Structure at (nearly)
equal parameters, each shape with the best of {len({r for _, r in groups})} rates:

{table(["shape", "parameters", "best rate", "held-out loss"], shapes)}

The loss that is trained on, at rate {choices["learning_rate"]:g}; the held-out loss is the plain cross-entropy for all:

{table(["trained on", "held-out loss"], losses)}"""


SECTIONS: dict[str, Callable[[dict], str]] = {
    "recipe": _recipe,
    "batch": _batch,
    "switches": _switches,
    "widths": _widths,
    "search": _search,
    "third": _third,
}
