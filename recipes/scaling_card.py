"""The card of gptcourse/assets/scaling: every table in it is computed from the JSON files beside it."""

from __future__ import annotations

from pathlib import Path

from tuning_card import assembled, grouped, spread, table

from gptcourse.scaling import bootstrap_laws, fit_scaling_law

HEAD = """# scaling

The experiments of notebook 05 that take longer than a notebook may: real runs of this package, recorded by
`python recipes/scaling_experiments.py`, which goes on where it was stopped. All models are small GPTs that read
Shakespeare's plays (`gptcourse.corpora.shakespeare`) as characters, in windows of 64; all losses are in nats per
character. Rates, and the variants of the speedrun, were chosen with seed 10 on the first 20,000 characters of Macbeth;
all losses below are of the last 40,000 of Twelfth Night. Nothing here is about large models: it shows how to find out.
"""
TITLES = {"law": "A small scaling law", "shape": "Wider or deeper", "speedrun": "The speedrun"}


def card(asset: Path) -> str:
    """Return the card in Markdown. An experiment whose file is not there is said to be missing."""
    return assembled(asset, HEAD, TITLES, SECTIONS)


def columns(runs: list[dict]) -> tuple[list, list, list]:
    """Return what the law is fitted to: parameters, tokens and losses of the runs that did not diverge."""
    finished = [run for run in runs if run["loss"] is not None]
    return tuple([run[name] for run in finished] for name in ("parameters", "tokens", "loss"))


def trials(rows: list[dict]) -> str:
    """Return the trials of the rates as a table."""
    rates = sorted({row["rate"] for row in rows})
    losses = {(row["shape"], row["rate"]): row["loss"] for row in rows}
    lines = []
    for shape in dict.fromkeys(row["shape"] for row in rows):
        found = [losses.get((shape, rate), "") for rate in rates]
        lines.append([shape, *("diverged" if loss is None else loss for loss in found)])
    return table(["loss at the rate", *(f"{rate:g}" for rate in rates)], lines)


def _law(data: dict) -> str:
    budgets = sorted({run["tokens"] for run in data["runs"]})
    losses = {(run["shape"], run["tokens"]): run["loss"] for run in data["runs"]}
    parameters = {run["shape"]: run["parameters"] for run in data["runs"]}
    rows = [[name, f"{n:,}", *(f"{losses[name, d]:.3f}" for d in budgets)] for name, n in parameters.items()]
    law, laws = fit_scaling_law(*columns(data["runs"])), bootstrap_laws(*columns(data["runs"]))
    larger = data["larger"]
    sure = sorted(law.loss(larger["parameters"], larger["tokens"]) for law in laws)
    return f"""One run for each size (layers × width) and number of tokens, seed 0, each size with its own rate:

{table(["shape", "parameters", *(f"{d:,}" for d in budgets)], rows)}

Fitted (Hoffmann et al. 2022, approach 3): loss = {law.E:.3f} + {law.A:.3g} / N^{law.alpha:.3f} + {law.B:.3g} /
D^{law.beta:.3f}. For {larger["shape"]}, {larger["parameters"]:,} parameters on {larger["tokens"]:,} tokens, the law
says {law.loss(larger["parameters"], larger["tokens"]):.3f}, laws fitted to runs drawn again {sure[0]:.3f} to
{sure[-1]:.3f}; the run gave {larger["loss"]:.3f}.

Rates were chosen on fewer tokens:

{trials(data["trials"])}"""


def _shape(data: dict) -> str:
    parameters = {run["shape"]: run["parameters"] for run in data["runs"]}
    rows = [
        [name, f"{parameters[name]:,}", f"{data['rates'][name]:g}", spread(losses), f"{data['seconds'][name]:.2f}"]
        for (name,), losses in grouped(data["runs"], "shape").items()
    ]
    head = ["layers × width", "parameters", "rate", "loss", "seconds a step (first = 1)"]
    return f"""Equally many parameters and {data["runs"][0]["tokens"]:,} tokens each; median of three seeds
(lowest–highest).

{table(head, rows)}

Rates were chosen on fewer tokens:

{trials(data["trials"])}"""


def seconds_of(stages: list[dict], i: int) -> float:
    """Return what share of the recipe's time a stage takes: its steps, and how long one of them is."""
    return stages[i]["steps"] / stages[0]["steps"] * stages[i]["seconds_per_step"]


def _speedrun(data: dict) -> str:
    stages = data["stages"]
    rows = [
        [
            stage["name"],
            f"{stage['steps']:,}",
            f"{stage['budget']:,}",
            spread(stage["losses"]),
            f"{stage['seconds_per_step']:.2f}",
            f"{seconds_of(stages, i):.3f}",
        ]
        for i, stage in enumerate(stages)
    ]
    head = ["idea, on top of those above", "steps", "tokens", "loss", "seconds a step", "time"]
    tried = [
        [row["idea"], ", ".join(f"`{name}` {value}" for name, value in row["changes"].items()), row["loss"]]
        for row in data["trials"]
    ]
    return f"""From nanoGPT's CPU recipe to the same loss, {data["goal"]:.3f}, in less time. Each row has the fewest
tokens, on a ladder with rungs a factor of 2^¼ apart (the last two ideas: half of that), with which the median of three
seeds (lowest–highest) is not above that. Seconds a step and time are processor time as shares of the recipe's, measured
in turns in one process.

{table(head, rows)}

The variants of each idea, tried on {data["trial_tokens"]:,} tokens with one seed:

{table(["idea", "variant", "loss"], tried)}"""


SECTIONS = {"law": _law, "shape": _shape, "speedrun": _speedrun}
