"""The decision record that `tune` returns: what was tried and adopted, why, what it cost, and what was not tried."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from gptcourse.config import TrainingConfig
from gptcourse.files import expand, write_file

BINS = 4  # of a continuous axis, in each of which the best loss is shown
Settings = dict[str, Any]


@dataclass
class DecisionRecord:
    """A record of one tuning; print it, or let a notebook show it, to read it; `save` writes it.

    `settings` are the adopted ones, with `config` as the TrainingConfig to train with. A trial is a dict of its
    `phase`, `settings` (what differs from `defaults`), `seed`, `loss` (inf: it diverged), `outcome`, `tokens` or
    examples, and `seconds`. `axes` maps each axis to its `role`, the `range` that was searched, and whether it was
    `widened`. `confirmed` holds the losses of both arms, seed by seed, with the `gain`: mean, and interval.
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
        pairs = [*zip(*self.isolation()[axis], strict=True)]
        pairs.sort(key=lambda pair: (isinstance(pair[0], str), pair[0] or 0))
        size = math.ceil(len(pairs) / BINS)
        if self.axes[axis]["continuous"]:
            parts = [pairs[i : i + size] for i in range(0, len(pairs), size)]
        else:
            parts = [[*group] for _, group in groupby(pairs, key=lambda pair: pair[0])]
        ends = [list(dict.fromkeys(shorter(part[i][0]) for i in (0, -1))) for part in parts]
        return {" to ".join(end): min(loss for _, loss in part) for end, part in zip(ends, parts, strict=True)}

    def figure(self):
        """Draw the isolation plots: a panel for each axis, a point for each trial, the defaults as a line."""
        from gptcourse import plots

        before = [trial["loss"] for trial in self.trials if trial["phase"] == "defaults"]
        log_x = [name for name, axis in self.axes.items() if axis["log"]]
        return plots.isolation(self.isolation(), (before[0], "defaults") if before else None, log_x=log_x)

    def to_json(self) -> str:
        """Return the record as JSON; a loss that is not finite is null."""
        record = {name: value for name, value in vars(self).items() if name != "config"}
        record |= {"config": self.config and asdict(self.config), "cost": self.cost}
        record["best_by"] = {name: self.best_by(name) for name in self.axes if self.searched()}
        return json.dumps(_finite(record), indent=1)

    def save(self, directory: str | Path) -> None:
        """Write decision.md and decision.json, and isolation.png if there is anything to draw."""
        folder = expand(directory)
        write_file(folder / "decision.md", str(self))
        write_file(folder / "decision.json", self.to_json() + "\n")
        if self.searched():
            self.figure().savefig(folder / "isolation.png")

    def _repr_markdown_(self) -> str:
        return "##" + str(self).replace("\n#", "\n###")  # below the headings of a notebook

    def __str__(self) -> str:
        parts = [self._decision(), self._searched(), self._confirmed(), self._measured()]
        end = ["## Not tried", *(f"* {line}" for line in self.not_tried), ""]
        return "\n".join([line for part in parts for line in part] + end)

    def _decision(self) -> list[str]:
        shown = ", ".join(f"{name} = {shorter(value)}" for name, value in self.settings.items())
        cost = self.cost
        return [
            f"# {'Adopted' if self.adopted else 'The defaults are kept' if self.finished else 'Not finished'}",
            f"{self.reason} Settings: {shown}.",
            f"Cost: {cost['runs']} runs, {cost[self.unit]:,} {self.unit}, {cost['minutes']:.1f} minutes.",
            *(f"* {note}" for note in self.notes),
            "",
        ]

    def _searched(self) -> list[str]:
        lines = ["## What was tried", "| axis | role | searched | best loss for each part of it |", "|---|---|---|---|"]
        for name, axis in self.axes.items():
            best = "; ".join(f"{part}: {shorter(loss)}" for part, loss in self.best_by(name).items())
            widened = f", widened {axis['widened']} times" if axis["widened"] else ""
            lines.append(f"| {name} | {axis['role']} | {axis['range']}{widened} | {best} |")
        lines += ["", "All runs, on the part to choose on (* on the part to confirm on):", ""]
        lines += ["| run | seed | settings | loss |", "|---|---|---|---|"]
        for trial in self.trials:
            shown = ", ".join(f"{name} = {shorter(value)}" for name, value in trial["settings"].items()) or "defaults"
            star = "*" if trial["phase"] == "confirm" else ""
            lines.append(f"| {trial['phase']}{star} | {trial['seed']} | {shown} | {shorter(trial['loss'])} |")
        return [*lines, ""]

    def _confirmed(self) -> list[str]:
        if not self.confirmed:
            return []
        rows = zip(*(self.confirmed[name] for name in ("seeds", "defaults", "winner")), strict=True)
        low, high = self.confirmed["interval"]
        return [
            "## Confirmed on data that no choice was made on",
            "| seed | defaults | winner |",
            "|---|---|---|",
            *(f"| {' | '.join(map(shorter, row))} |" for row in rows),
            "",
            f"Gain {shorter(self.confirmed['gain'])}, 95 % interval {shorter(low)} to {shorter(high)} (paired t over "
            "seeds: it holds for other seeds, not for other data).",
            "",
        ]

    def _measured(self) -> list[str]:
        if not self.measured:
            return []
        rows = [
            f"| {b} | {shorter(speed)} | {memory / 2**20:,.0f} |" for b, speed, memory in self.measured["throughput"]
        ]
        head = ["## Measured", f"| batch size | {self.unit} per second | memory (MiB) |", "|---|---|---|"]
        gain = self.measured["bf16_gain"]
        return [*head, *rows, "", *([f"bfloat16 is {gain:.2f} times as fast as float32.", ""] if gain else [])]


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
