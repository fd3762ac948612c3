"""The clinic: look at a sick run, pay for experiments in tokens, and name the illness."""

from __future__ import annotations

import math
import random

import ipywidgets as widgets

from gptcourse.clinic import EXPERIMENTS, HEALTHY, SIGNS, Patient, load_clinic, verdict
from gptcourse.drawings import svg
from gptcourse.explorers.explorer import Explorer, slider

CURVES, UNDECIDED = "curves", ""
TOP = 4.6  # nats: a little above what a model that knows nothing has
SIZE = {"width": svg.HALF, "height": 300}


class ClinicExplorer(Explorer):
    """A slider for the patient, a list of experiments to pay for, and a list of illnesses to choose the diagnosis from.

    Left, the losses between the lines of the count tables, with the cured run when the diagnosis is right; right, the
    experiment chosen last; below, the answers to all that was paid for. `.bought` is {patient: experiments}.
    """

    def __init__(self, patients: dict[str, Patient] | None = None):
        found = patients or load_clinic()
        self.patients = random.Random(0).sample(list(found.values()), len(found))  # an order that tells nothing
        self.bought: dict[int, list[str]] = {}
        experiments = [(f"{e.name} ({svg.short(e.price)} tokens)", key) for key, e in EXPERIMENTS.items()]
        illnesses = [(name, name) for name in sorted([HEALTHY, *SIGNS])]
        controls = {
            "patient": slider("patient", 1, 1, len(self.patients)),
            "experiment": _list("experiment", experiments),
            "diagnosis": _list("diagnosis", [("name the illness", UNDECIDED), *illnesses]),
        }
        super().__init__(controls, self._picture, hint="To choose an experiment is to pay for it, once a patient.")

    def moved(self, control: widgets.Widget) -> None:
        """Come to a new patient without an experiment or a diagnosis; else draw."""
        if control is self.controls["patient"]:
            self.move(experiment=CURVES, diagnosis=UNDECIDED)
        else:
            self.draw()

    def _picture(self, patient: int, experiment: str, diagnosis: str) -> str:
        case, bought = self.patients[patient - 1], self.bought.setdefault(patient, [CURVES])
        if experiment not in bought:
            bought.append(experiment)
        spent = sum(EXPERIMENTS[key].price for key in bought)
        charts = [_losses(case, is_cured=diagnosis == case.illness)]
        if experiment in CHARTS:
            charts.append(svg.line_chart(**CHARTS[experiment](case), **SIZE))
        answers = "\n".join(f"{EXPERIMENTS[key].name}: {case.answer(key)}" for key in bought)
        return (
            svg.paragraph(f"Patient {patient}, resumed after 409,600 tokens  ·  spent on experiments: {spent:,} tokens")
            + svg.side_by_side(*charts)
            + svg.paragraph(TEXTS[experiment](case) if experiment in TEXTS else "", mono=True)
            + svg.paragraph(answers)
            + svg.paragraph(verdict(case, diagnosis, bought) if diagnosis else "", opacity=1)
        )


def _list(name: str, options: list[tuple[str, str]]) -> widgets.Dropdown:
    control = widgets.Dropdown(options=options, description=name)
    control.style.description_width, control.layout.width, control.layout.max_width = "80px", "98%", "345px"
    return control


def _losses(case: Patient, is_cured: bool) -> str:
    """Draw the losses of a run between the lines of its count tables, up to the best one."""
    tokens, lines = case["tokens"], case["lines"]
    losses = case["training_loss"] + case["validation_loss"]
    return svg.line_chart(
        {
            "validation": (case["validation_tokens"], case["validation_loss"]),
            "training": (tokens, case["training_loss"]),
        },
        pale={"cured": (case["validation_tokens"], case["cure"])} if is_cured else None,
        labels=("tokens read", "loss"),
        levels=_levels(case),
        y_range=(math.floor(2 * min(lines + losses)) / 2, max(TOP, *losses)),
        **_run(case),
        **SIZE,
    )


def _levels(case: Patient) -> list[tuple[float, str]]:
    """Return the lines of the count tables of the patient's text, up to the best one."""
    lines = case["lines"]
    return [(lines[n], f"{n + 1}-gram") for n in range(1, 1 + lines.index(min(lines)))]


def _beside_the_tables(case: Patient, top: float = 6) -> dict:
    """Return the axis of losses up to `top`, with the lines of the count tables."""
    return {"levels": _levels(case), "y_range": (0, top)}


def _run(case: Patient) -> dict:
    """Return the axis of the tokens of a whole run."""
    end = case["tokens"][-1]
    return {"x_range": (0, end), "x_ticks": {n: svg.short(n) for n in range(0, end, 200_000)}}


def _log(name: str, label: str):
    """Return the chart of something in the log."""
    return lambda case: {"series": {"": (case["tokens"], case[name])}, "labels": ("tokens read", label)} | _run(case)


def _quarter(name: str, label: str):
    """Return the chart of a quarter of the run, made again otherwise."""

    def chart(case: Patient) -> dict:
        curve = case[name]["training_loss"]
        series = {label: (case["tokens"][: len(curve)], curve)}
        own = {"as it was": (case["tokens"][: len(curve)], case["training_loss"][: len(curve)])}
        return {"series": series, "pale": own, "labels": ("tokens read", "loss"), **_beside_the_tables(case)}

    return chart


def _range_test(case: Patient) -> dict:
    """Return the chart of a range test, with the highest rate of the run as a dot."""
    rates = [math.log10(rate) for rate in case["range_test"]["rates"]]
    own, losses = math.log10(case.numbers["peak_rate"]), case["range_test"]["losses"]
    nearest = min(range(len(rates)), key=lambda i: abs(rates[i] - own))
    return {
        "series": {"": (rates, losses)},
        "labels": ("learning rate (dot: the run's)", "loss"),
        "dot": (own, losses[nearest]),
        "x_range": (-5, 0),
        "x_ticks": {power: f"1e{power}" for power in range(-5, 1)},
        **_beside_the_tables(case),
    }


def _one_batch(case: Patient) -> dict:
    series = {"": (range(1, 2 * len(case["one_batch"]), 2), case["one_batch"])}
    return {"series": series, "labels": ("step on one batch", "loss"), **_beside_the_tables(case)}


CHARTS = {
    "rate": _log("rate", "learning rate"),
    "gradient_norm": _log("gradient_norm", "gradient norm"),
    "highest_loss": lambda case: _log("highest_loss", "highest loss of 8 steps")(case) | _beside_the_tables(case, 8),
    "range_test": _range_test,
    "one_batch": _one_batch,
    "slower": _quarter("slower", "rate / 4"),
    "other_seed": _quarter("other_seed", "another seed"),
}
TEXTS = {
    "example": lambda case: "\n".join(f"{part:8}{svg.visible(case['example'][part])}" for part in ("ids", "targets")),
    "sample": lambda case: case["sample"],
}
