"""Sweeps: every combination of some settings, each with several seeds, one single-threaded process per core.

A setting is any field of GPTConfig or TrainingConfig: the learning rate, the batch size, the shape, the loss. A grid
maps its name to the values to try: that is an axis. Fields that must move together are one axis with a name of your
own, whose values are dicts: `{"shape": [{"n_layer": 2, "n_embd": 64}, {"n_layer": 4, "n_embd": 48}]}`. And `derive`
computes settings out of others: it is given a combination as one flat dict and returns the dict to use, such as
`lambda s: s | {"steps": 4096 // s["batch_size"]}`, equal tokens at every batch size.

Chance moves the loss as well as the settings do; so each combination is judged by the median over its seeds, and shown
with the band they span.
"""

from __future__ import annotations

import html
import itertools
import json
import math
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from gptcourse import training
from gptcourse.model import GPTConfig
from gptcourse.sweeps.workers import Workers
from gptcourse.training import TrainingConfig

FORMAT = 1  # of the file of results
Derive = Callable[[dict[str, Any]], dict[str, Any]]


def sweep(
    model_config: GPTConfig,
    training_config: TrainingConfig,
    grid: Mapping[str, Sequence],
    *,
    tokens,
    validation_tokens,
    seeds: Sequence[int] = (0,),
    derive: Derive | None = None,
    results: str | Path | None = None,
    processes: int | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> SweepTable:
    """Train a model for every combination of the grid's values and every seed, and return a table of the results.

    Up to `processes` (None: the available cores) train at once on `device`, one thread each. A run that crashes, or is
    killed, costs that run alone; one that diverges is a result. The seed decides first weights, batches and dropout.

    With `results`, each run is written to that file (JSON, a line a run) when it ends, and the runs that are there
    already, with equal settings and tokens, are not made again; those that crashed are. One file may hold several
    sweeps over the same text. Ctrl-C stops the sweep and returns what has finished.

    Raises ValueError before any run begins: all settings are checked first.
    """
    runs = _grid_runs(model_config, training_config, grid, seeds, derive)
    tokens, validation_tokens = checked_tokens(runs, tokens, validation_tokens)
    done = _Results(results, tokens, validation_tokens)
    todo = {run.key: run for run in runs if run.key not in done.by_run}
    with Workers(tokens, validation_tokens, processes, device) as workers:
        _make(workers, list(todo.values()), done.add, progress)
    rows = [table_row(run, done.by_run[run.key]) for run in runs if run.key in done.by_run]
    return SweepTable(tuple(grid), rows, len(runs) - len(rows))


def _make(workers: Workers, runs: list[Run], keep, progress: bool) -> None:
    """Make the runs and call `keep(run, result)` as each ends; Ctrl-C ends it early."""
    from tqdm.auto import tqdm

    pending = {workers.submit(run.model, run.training): run for run in runs}
    with training.ctrl_c() as pressed, tqdm(total=len(runs), unit="run", disable=not (progress and runs)) as bar:
        while pending and not pressed.is_set():
            for future in wait(pending, timeout=0.1, return_when=FIRST_COMPLETED).done:
                keep(pending.pop(future), future.result())
                bar.update()


# ---- From a grid to runs


@dataclass(frozen=True)
class Run:
    """One run to make: its settings, and for each axis the value as it is shown."""

    model: GPTConfig
    training: TrainingConfig
    axes: dict[str, Any]

    @property
    def key(self) -> tuple[GPTConfig, TrainingConfig]:
        """What makes two runs the same."""
        return self.model, self.training


def label(value) -> Any:
    """Return how a value of an axis is shown: itself, or for a dict "name=value, name=value"."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={part}" for name, part in value.items())
    value = value.item() if isinstance(value, np.generic) else value
    return value if value is None or isinstance(value, str | int | float) else str(value)


def configured(
    model: GPTConfig, config: TrainingConfig, values: Mapping[str, Any], derive: Derive | None = None
) -> Run:
    """Return the run with one value for each axis. Raises ValueError for what is no field and for a bad combination."""
    settings: dict[str, Any] = {}
    for name, value in values.items():
        part = value if isinstance(value, Mapping) else {name: value}
        if twice := settings.keys() & part.keys():
            raise ValueError(f"Two axes set {min(twice)!r}: let one of them set it.")
        settings |= part
    settings = settings if derive is None else derive(dict(settings))
    if not isinstance(settings, Mapping):
        raise ValueError(f"derive must return the dict of settings to use, but it returned {settings!r}.")
    of_model, of_training = ([field.name for field in fields(kind)] for kind in (GPTConfig, TrainingConfig))
    for name in settings:
        if name not in of_model + of_training or name == "seed":
            known = ", ".join(sorted({*of_model, *of_training} - {"seed"}))
            hint = "seeds are given as seeds=" if name == "seed" else f"there are {known}"
            raise ValueError(f"{name!r} is no setting that can be tried: {hint}.")
    try:
        model = replace(model, **{name: settings[name] for name in of_model if name in settings})
        config = replace(config, **{name: settings[name] for name in of_training if name in settings})
        if (config.sequence_length or 1) > model.n_positions:
            raise ValueError(
                f"sequence_length {config.sequence_length} is longer than n_positions {model.n_positions}."
            )
    except ValueError as fault:
        raise ValueError(f"The combination {label(settings)} makes no run: {fault}") from fault
    return Run(model, config, {name: label(value) for name, value in values.items()})


def _grid_runs(model: GPTConfig, config: TrainingConfig, grid, seeds, derive: Derive | None) -> list[Run]:
    """Return a run for every combination and seed, the seeds of a combination together."""
    for name, values in grid.items():
        if isinstance(values, str | Mapping) or not isinstance(values, Iterable) or not list(values):
            raise ValueError(f"The grid's {name!r} must be a list of the values to try, not {values!r}.")
    if isinstance(seeds, int) or not len(seeds):
        raise ValueError(f"seeds must be a list of at least one whole number, such as range(3), not {seeds!r}.")
    runs = []
    for values in itertools.product(*grid.values()):
        run = configured(model, config, dict(zip(grid, values, strict=True)), derive)
        for seed in seeds:
            runs.append(replace(run, training=replace(run.training, seed=seed), axes=run.axes | {"seed": seed}))
    return runs


def checked_tokens(runs: Sequence[Run], tokens, validation_tokens) -> tuple[Tensor, Tensor]:
    """Return both as int64 tensors (n,). Raises ValueError if they do not fit one of the runs."""
    vocab_size = min(run.model.vocab_size for run in runs)
    longest = max(run.training.sequence_length or run.model.n_positions for run in runs)
    tokens = training.check_tokens(tokens, vocab_size, longest + 1, "training tokens")
    return tokens, training.check_tokens(validation_tokens, vocab_size, 2, "validation tokens")


# ---- The file of results


class _Results:
    """The results by run, and the file that keeps them, if there is one."""

    def __init__(self, path: str | Path | None, tokens: Tensor, validation_tokens: Tensor):
        self.path = None if path is None else Path(path)
        both = {"tokens": tokens, "validation_tokens": validation_tokens}
        self.data = {name: training.fingerprint(ids) for name, ids in both.items()}
        self.by_run: dict[tuple[GPTConfig, TrainingConfig], dict] = {}
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._read()

    def _read(self) -> None:
        """Take what need not be made again, and cut off a last line whose writer was killed. Raises ValueError."""
        with self.path.open("a+b") as file:  # to append: a file that cannot be written is found out now
            file.seek(0)
            *lines, rest = file.read().split(b"\n")
            for number, line in enumerate(lines, start=1):
                self._take(line, f"Line {number} of {self.path}")
            begin = b'{"format": '
            if rest[: len(begin)] != begin[: len(rest)]:
                raise ValueError(f"The last line of {self.path} is no result of a sweep: choose another file.")
            file.truncate(sum(len(line) + 1 for line in lines))

    def _take(self, line: bytes, name: str) -> None:
        try:
            result = json.loads(line)
            key = GPTConfig(**result["model"]), TrainingConfig(**result["training"])
            is_ours = result["format"] == FORMAT and result["data"] == self.data
            has_crashed = result["outcome"] == "crashed"
        except (ValueError, TypeError, KeyError) as fault:
            raise ValueError(f"{name} is no result of a sweep by this version: choose another file.") from fault
        if not is_ours:
            raise ValueError(f"{name} belongs to a sweep over other tokens: choose another file.")
        if not has_crashed:
            self.by_run[key] = result

    def add(self, run: Run, result: dict) -> None:
        """Take one more result, and have it on the disk, in one piece, before anything else happens."""
        self.by_run[run.key] = result
        if self.path is not None:
            settings = {"model": asdict(run.model), "training": asdict(run.training)}
            line = json.dumps({"format": FORMAT, "data": self.data} | settings | result)
            with self.path.open("ab", buffering=0) as file:
                file.write(line.encode() + b"\n")
                os.fsync(file.fileno())


# ---- The table


class Bands(NamedTuple):
    """The values of one axis, and for each the median, the lowest and the highest loss over the seeds."""

    values: list
    median: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True, repr=False)
class SweepTable:
    """What a sweep found, one row a run; print it, or let a notebook show it.

    A row is a dict: the value of each of `axes`, `seed`, `outcome` ("finished", "diverged", in a search "pruned", or
    "crashed" with a `reason`), `loss` (the last validation loss in nats per token; inf if diverged, nan if crashed),
    `parameters`, `tokens` (trained on), `seconds`, the training `curve` and the `evaluations` as lists of
    (step, loss), and the `model` and `training` configs. `missing` runs were not made, because the sweep was stopped.
    """

    axes: tuple[str, ...]
    rows: list[dict[str, Any]]
    missing: int = 0

    def where(self, **chosen) -> SweepTable:
        """Return the part of the table in which each named axis has the given value. Raises ValueError."""
        for name, value in chosen.items():
            there = self._values(name)
            if label(value) not in there:
                raise ValueError(f"No run has {name} = {label(value)!r}: there are {', '.join(map(repr, there))}.")
        wanted = [row for row in self.rows if all(row[name] == label(value) for name, value in chosen.items())]
        return replace(self, rows=wanted)

    def median(self, by: str) -> Bands:
        """Return the median and the range of the loss over the seeds, for each value of one axis.

        Raises ValueError while another axis varies too: a median over different settings would hide their effect.
        """
        self._values(by)
        for name in self.axes:
            if name != by and len(self._values(name)) > 1:
                raise ValueError(f"{name} varies as well as {by}: choose one of its values with where({name}=…).")
        groups = self._groups(by)
        middle, low, high = (
            [measure(row["loss"] for row in group) for group in groups.values()]
            for measure in (statistics.median, min, max)
        )
        return Bands([value for (value,) in groups], middle, low, high)

    def best(self) -> dict[str, Any]:
        """Return the combination with the lowest median loss over its seeds: its axes, `loss`, `model`, `training`.

        `training` has the first seed. Raises ValueError if no run has finished.
        """
        groups = self._groups(*self.axes).values()
        medians = [statistics.median(row["loss"] for row in group) for group in groups]
        if not medians or min(medians) == math.inf:
            reasons = [f" ({row['reason']})" for row in self.rows if row["outcome"] == "crashed"] or [""]
            raise ValueError(f"No combination has a finite median loss: there is no best one{reasons[0]}.")
        loss, (first, *_) = min(zip(medians, groups, strict=True), key=lambda pair: pair[0])
        return {name: first[name] for name in (*self.axes, "model", "training")} | {"loss": loss}

    def _values(self, axis: str) -> list:
        if axis not in self.axes:
            raise ValueError(f"This sweep has no axis {axis!r}: its axes are {', '.join(self.axes)}.")
        return list(dict.fromkeys(row[axis] for row in self.rows))

    def _groups(self, *axes: str) -> dict[tuple, list[dict]]:
        groups: dict[tuple, list[dict]] = {}
        for row in self.rows:
            if row["outcome"] in ("finished", "diverged"):
                groups.setdefault(tuple(row[name] for name in axes), []).append(row)
        return groups

    def _cells(self) -> list[list[str]]:
        forms = {"loss": ".4f", "parameters": ",", "tokens": ",", "seconds": ".1f"}
        columns = [*self.axes, "seed", "outcome", *forms]

        def shown(name: str, value) -> str:
            return format(value, forms.get(name, ".4g" if isinstance(value, float) else ""))

        return [columns, *([shown(name, row[name]) for name in columns] for row in self.rows)]

    def _notes(self) -> list[str]:
        crashed = [f"Crashed: {row['reason']}." for row in self.rows if row["outcome"] == "crashed"]
        return crashed + [f"Not made yet: {self.missing}. Call sweep again to go on."] * (self.missing > 0)

    def __repr__(self) -> str:  # what a notebook keeps as text: never the curves
        cells = self._cells()
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
        return "\n".join(lines + self._notes())

    def _repr_html_(self) -> str:
        head, *rows = [[html.escape(cell) for cell in row] for row in self._cells()]
        body = [f"<tr><th>{'</th><th>'.join(head)}</th></tr>"] + [
            f"<tr><td>{'</td><td>'.join(r)}</td></tr>" for r in rows
        ]
        return f"<table>{''.join(body)}</table>" + "".join(f"<p>{html.escape(note)}</p>" for note in self._notes())


def table_row(run: Run, result: dict) -> dict[str, Any]:
    """Return the row of a SweepTable for a run and what its worker said."""
    measured = {name: result.get(name, 0) for name in ("tokens", "seconds")}
    lists = {name: result.get(name, []) for name in ("curve", "evaluations")}
    loss = {"crashed": math.nan, "diverged": math.inf}.get(result["outcome"], result.get("loss"))
    row = {"outcome": result["outcome"], "loss": loss, "reason": result.get("reason")}
    row |= {"parameters": run.model.num_parameters} | measured | lists
    return run.axes | row | {"model": run.model, "training": run.training}
