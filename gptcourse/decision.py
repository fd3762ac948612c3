"""The decision record that `tune` returns: what was tried and adopted, why, what it cost, and what was not tried."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gptcourse.config import TrainingConfig
from gptcourse.files import expand, write_file, writing

BINS = 4  # of a continuous axis, in each of which the best loss is shown
Settings = dict[str, Any]


@dataclass
class DecisionRecord:
    """A record of one tuning; print it, or let a notebook show it, to read it; `save` writes it.

    `settings` are the adopted ones, with `config` as the TrainingConfig to train with. A trial is a dict of its
    `phase`, `settings` (what differs from `defaults`), `seed`, `loss` (inf: it diverged), `outcome`, `tokens` or
    examples, and `seconds`. `axes` maps each axis to its `role`, the `range` that was searched, and how often it
    was `widened`. `confirmed` holds the losses of both arms, seed by seed, with the `gain`: mean, and interval.
    """

    unit: str
    defaults: Settings
    reason: str
    adopted: bool = False
    finished: bool = False
    settings: Settings = field(default_factory=dict)
    config: TrainingConfig | None = None
    axes: dict[str, Settings] = field(default_factory=dict)
    measured: Settings = field(default_factory=dict)
    trials: list[Settings] = field(default_factory=list)
    confirmed: Settings = field(default_factory=dict)
    not_tried: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def cost(self) -> dict[str, float]:
        """What the tuning has cost, the measuring included."""
        made = [*self.trials, self.measured] if self.measured else self.trials
        minutes = sum(trial["seconds"] for trial in made) / 60
        return {"runs": len(self.trials), self.unit: sum(trial["amount"] for trial in made), "minutes": minutes}

    def searched(self) -> list[Settings]:
        """Return the trials of the search, the best first."""
        return sorted((trial for trial in self.trials if trial["phase"] == "search"), key=lambda trial: trial["loss"])

    def isolation(self) -> dict[str, tuple[list, list[float]]]:
        """Return the data of the isolation plots: for each axis the values tried, and the loss of each trial."""
        trials = self.searched()
        return {name: ([t["settings"][name] for t in trials], [t["loss"] for t in trials]) for name in self.axes}

    def best_by(self, axis: str) -> dict[str, float]:
        """Return the lowest loss for each value of an axis, all other axes free; of a continuous axis for each part."""
        values, losses = self.isolation()[axis]
        different = sorted(set(values), key=lambda value: (isinstance(value, str), value or 0))
        size = math.ceil(len(different) / BINS) if self.axes[axis]["continuous"] else 1
        parts = [different[i : i + size] for i in range(0, len(different), size or 1)]
        shown = [" to ".join(dict.fromkeys(map(shorter, (part[0], part[-1])))) for part in parts]
        best = [min(loss for value, loss in zip(values, losses, strict=True) if value in part) for part in parts]
        return dict(zip(shown, best, strict=True))

    def figure(self):
        """Draw the isolation plots: a panel for each axis, a point for each trial, the defaults as a line."""
        from gptcourse import plots

        before = [(trial["loss"], "defaults") for trial in self.trials if trial["phase"] == "defaults"]
        log_x = [name for name, axis in self.axes.items() if axis["log"]]
        return plots.isolation(self.isolation(), next(iter(before), None), log_x=log_x)

    def to_json(self) -> str:
        """Return the record as JSON; a loss that is not finite is null."""
        best = {name: self.best_by(name) for name in self.axes}
        made = {"config": self.config and asdict(self.config), "cost": self.cost, "best_by": best}
        return json.dumps(_finite(vars(self) | made), indent=1, default=str)  # str: of a setting that is an object

    def save(self, directory: str | Path) -> None:
        """Write decision.md and decision.json, and isolation.png if there is anything to draw. Raises ValueError."""
        folder, picture = expand(directory), io.BytesIO()
        files = {"decision.md": str(self), "decision.json": self.to_json() + "\n"}
        if self.searched():
            self.figure().savefig(picture, format="png")
            files["isolation.png"] = picture.getvalue()
        with writing(folder):
            for name, content in files.items():
                write_file(folder / name, content)
            if not self.searched():  # that of another record
                (folder / "isolation.png").unlink(missing_ok=True)

    def _repr_markdown_(self) -> str:
        return "##" + str(self).replace("\n#", "\n###")  # below the headings of a notebook

    def __str__(self) -> str:
        return "\n\n".join(self._paragraphs()) + "\n"

    def _paragraphs(self) -> Iterator[str]:
        cost, measured, confirmed = self.cost, self.measured, self.confirmed
        yield f"# {'Adopted' if self.adopted else 'The defaults are kept' if self.finished else 'Not finished'}"
        yield f"{self.reason} Settings: {listed(self.settings, ' = ')}."
        yield f"Cost: {cost['runs']} runs, {cost[self.unit]:,} {self.unit}, {cost['minutes']:.1f} minutes."
        yield from (f"* {note}" for note in self.notes)
        yield "## What was tried"
        axes = [
            (name, axis["role"], axis["range"], axis["widened"], listed(self.best_by(name), ": ", "; "))
            for name, axis in self.axes.items()
        ]
        yield _table(("axis", "role", "searched", "times widened", "best loss for each part of it"), axes)
        yield "All runs: those called confirm on the part to confirm on, the others on the part to choose on."
        runs = [(t["phase"], t["seed"], listed(t["settings"], " = ") or "defaults", t["loss"]) for t in self.trials]
        yield _table(("run", "seed", "settings", "loss"), runs)
        if confirmed:
            yield "## Confirmed on data that no choice was made on"
            seeds = zip(*(confirmed[name] for name in ("seeds", "defaults", "winner")), strict=True)
            yield _table(("seed", "defaults", "winner"), seeds)
            gain, low, high = map(shorter, (confirmed["gain"], *confirmed["interval"]))
            held = "it holds for other seeds, not for other data"
            yield f"Gain {gain}, 95 % interval {low} to {high} (paired t over seeds: {held})."
        if measured:
            yield "## Measured"
            speeds = [(size, speed, f"{memory / 2**20:,.0f}") for size, speed, memory in measured["throughput"]]
            yield _table(("batch size", f"{self.unit} per second", "memory (MiB)"), speeds)
            if measured["bf16_gain"]:
                yield f"bfloat16 is {measured['bf16_gain']:.2f} times as fast as float32."
        yield "## Not tried"
        yield "\n".join(f"* {line}" for line in self.not_tried)


def _table(columns: Iterable[str], rows: Iterable[Iterable]) -> str:
    head, *body = (f"| {' | '.join(map(shorter, row))} |" for row in (columns, *rows))
    return "\n".join([head, "|---" * head.count(" | ") + "|---|", *body])


def listed(values: Settings, sign: str, between: str = ", ") -> str:
    """Return settings as a record shows them, with a sign between name and value."""
    return between.join(f"{name}{sign}{shorter(value)}" for name, value in values.items())


def shorter(value: Any) -> str:
    """Return a value as a record shows it: with four digits, or as a whole number from a thousand on."""
    if isinstance(value, float) and 1000 <= abs(value) < math.inf:
        return f"{value:.0f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _finite(value: Any) -> Any:
    """Return a value for JSON, which knows no infinity."""
    if isinstance(value, dict):
        return {str(name): _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
