"""Many runs, to compare settings: `sweep` makes every run of a grid, `search` lets Optuna choose the runs.

A setting is a field of GPTConfig or TrainingConfig. An axis is a setting with the values to try; or settings that move
together under a name of your own, with dicts as values: `{"shape": [{"n_layer": 2}, {"n_layer": 4, "n_embd": 48}]}`.
`derive` computes settings from others: it takes a combination as one flat dict and returns the dict to use, such as
`lambda s: s | {"steps": 4096 // s["batch_size"]}`, equal tokens at every batch size.

Sources: Akiba et al. (2019), "Optuna"; Bergstra et al. (2011), "Algorithms for Hyper-Parameter Optimization" (TPE);
Watanabe et al. (2023), "PED-ANOVA".
"""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from gptcourse.config import GPTConfig, TrainingConfig
from gptcourse.data import check_tokens, fingerprint
from gptcourse.distributed import choose_device
from gptcourse.files import append_line, read_lines, reserve
from gptcourse.model import GPT
from gptcourse.training import DivergedError, History, ctrl_c, train

if TYPE_CHECKING:
    import optuna

FORMAT = 1  # of the file of results
CURVE_POINTS = 100  # training losses kept of each run, evenly spaced
LOOKS = 10  # evaluations of a trial, evenly spaced; after each but the last it may be pruned
SAMPLED = 100  # combinations of a space that are checked before a search begins
Derive = Callable[[dict[str, Any]], dict[str, Any]]


def available_cores(cgroup: str | Path = "/sys/fs/cgroup") -> int:
    """Return the number of cores this process may use: its affinity, or a container's quota if that is less.

    binder/start counts the same way, in shell, before any Python runs.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # only Linux has it
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    for names in ["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]:  # control groups version 2, 1
        with suppress(OSError, ValueError):  # no such file, or "max": no limit; in version 1 that is -1
            quota, period = map(int, " ".join((Path(cgroup) / name).read_text() for name in names).split())
            return min(cores, math.ceil(quota / period)) if quota > 0 else cores
    return cores


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

    Up to `processes` (None: the available cores) train at once on `device`, one thread each. A run that crashes or is
    killed costs that run alone; one that diverges is a result. The seed decides initial weights, batches and dropout.

    With `results`, each run is appended to that file (a line of JSON) when it ends, and runs that are there already,
    with equal settings, are not made again, unless they crashed. One file may hold several sweeps over the same text.
    Ctrl-C stops the sweep and returns what has finished.

    Raises ValueError before any run begins, also when the file is in use.
    """
    runs = _grid_runs(model_config, training_config, grid, seeds, derive)
    data = _checked_data(runs, tokens, validation_tokens)
    with ExitStack() as stack:
        done = _Results(results, data, stack)
        todo = {run[:2]: (run, partial(done.add, run), None) for run in runs if run[:2] not in done}
        _make(iter(todo.values()), len(todo), data, processes, device, progress)
    rows = [_row(run, done[run[:2]]) for run in runs if run[:2] in done]
    return SweepTable(tuple(grid), rows, len(runs) - len(rows))


def search(
    model_config: GPTConfig,
    training_config: TrainingConfig,
    space: Mapping[str, Any],
    *,
    tokens,
    validation_tokens,
    n_trials: int,
    storage: str | Path | None = None,
    study_name: str = "search",
    sampler: str | optuna.samplers.BaseSampler = "tpe",
    prune: bool = True,
    derive: Derive | None = None,
    seed: int = 0,
    processes: int | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> SearchResult:
    """Search the settings with the lowest validation loss until the study has `n_trials` trials, and return it.

    `space` maps axes to Optuna's distributions or lists of choices. `sampler` is "tpe", "random" or one of Optuna's;
    with the first two, trial n is drawn from (seed, n) and the trials that have ended. With `prune`, a run is stopped
    when, at one of LOOKS evenly spaced evaluations, it is worse than the median of those that had finished when it
    began: so let all runs train on equally many tokens. `storage` is a path for Optuna's journal file, or None (in
    memory). Each trial is appended when it ends; after Ctrl-C or a kill, the same call goes on.

    Raises ValueError before any run begins, also when the study was begun with other arguments, or the file is in use.
    """
    with ExitStack() as stack:
        _check_search(stack, n_trials, sampler)
        searched = _Space((model_config, training_config), space, derive, prune)
        data = _checked_data(searched.samples(), tokens, validation_tokens)
        study = _open(storage, study_name, searched, data, stack)
        n_left = n_trials - len(_ended(study))
        _make(_jobs(study, searched, n_left, sampler, seed), n_left, data, processes, device, progress)
    rows = [_row(searched.run(trial.params), trial.user_attrs["result"]) for trial in _ended(study)]
    return SearchResult(tuple(space), rows, study=study)


# ---- From axes to runs


class Run(NamedTuple):
    """One run to make: its settings, and for each axis the value as it is shown."""

    model: GPTConfig
    training: TrainingConfig
    axes: dict[str, Any]


def label(value) -> Any:
    """Return how a value of an axis is shown: itself, or for a dict "name=value, name=value"."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={part}" for name, part in value.items())
    value = value.item() if isinstance(value, np.generic) else value
    return value if value is None or isinstance(value, str | int | float) else str(value)


def configured(
    model: GPTConfig, config: TrainingConfig, values: Mapping[str, Any], derive: Derive | None = None
) -> Run:
    """Return the run with one value for each axis. Raises ValueError for an unknown setting or a bad combination."""
    settings: dict[str, Any] = {}
    for name, value in values.items():
        part = value if isinstance(value, Mapping) else {name: value}
        if twice := settings.keys() & part.keys():
            raise ValueError(f"Two axes set {min(twice)!r}: let one of them set it.")
        settings |= part
    settings = settings if derive is None else derive(dict(settings))
    if not isinstance(settings, Mapping):
        raise ValueError(f"derive must return the dict of settings to use, but it returned {settings!r}.")
    kinds = {field.name: kind for kind in (GPTConfig, TrainingConfig) for field in fields(kind) if field.name != "seed"}
    for name in settings.keys() - kinds.keys():
        hint = "seeds are given as seeds=" if name == "seed" else f"there are {', '.join(sorted(kinds))}"
        raise ValueError(f"{name!r} is no setting that can be tried: {hint}.")
    try:
        model, config = (
            replace(base, **{name: value for name, value in settings.items() if kinds[name] is type(base)})
            for base in (model, config)
        )
        if (length := config.sequence_length or 1) > model.n_positions:
            raise ValueError(f"sequence_length {length} is longer than n_positions {model.n_positions}.")
    except ValueError as error:
        raise ValueError(f"The combination {label(settings)} makes no run: {error}") from error
    return Run(model, config, {name: label(value) for name, value in values.items()})


def _grid_runs(model: GPTConfig, config: TrainingConfig, grid, seeds, derive: Derive | None) -> list[Run]:
    """Return a run for every combination and seed, the seeds of a combination together."""
    for name, values in grid.items():
        if isinstance(values, str | Mapping) or not isinstance(values, Iterable) or not list(values):
            raise ValueError(f"The grid's {name!r} must be a list of the values to try, not {values!r}.")
    if isinstance(seeds, int) or not len(seeds):
        raise ValueError(f"seeds must be a list of at least one whole number, such as range(3), not {seeds!r}.")
    combinations = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    runs = [configured(model, config, values, derive) for values in combinations]
    return [Run(m, replace(t, seed=seed), axes | {"seed": seed}) for m, t, axes in runs for seed in seeds]


def _checked_data(runs: Sequence[Run], tokens, validation_tokens) -> dict[str, torch.Tensor]:
    """Return both as int64 tensors (n,). Raises ValueError if they do not fit one of the runs."""
    vocab_size = min(run.model.vocab_size for run in runs)
    longest = max(run.training.sequence_length or run.model.n_positions for run in runs)
    tokens = check_tokens(tokens, vocab_size, longest + 1, "training tokens")
    validation_tokens = check_tokens(validation_tokens, vocab_size, 2, "validation tokens")
    return {"tokens": tokens, "validation_tokens": validation_tokens}


class _Results(dict):
    """The results of a sweep by model and training config, and the file that keeps them, if there is one."""

    def __init__(self, path: str | Path | None, data: dict, stack: ExitStack):
        self.path, kind = None if path is None else Path(path).expanduser(), "result of a sweep by this version"
        self.common = {"format": FORMAT, "data": {name: fingerprint(ids) for name, ids in data.items()}}
        if path is None:
            return
        stack.enter_context(reserve(self.path))
        for number, line in enumerate(read_lines(self.path, '{"format": ', kind), start=1):
            try:
                key = GPTConfig(**line["model"]), TrainingConfig(**line["training"])
                is_ours, has_crashed = self.common.items() <= line.items(), line["outcome"] == "crashed"
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"Line {number} of {path} is no {kind}: choose another file.") from error
            if not is_ours:
                raise ValueError(f"Line {number} of {path} belongs to a sweep over other tokens: choose another file.")
            if not has_crashed:
                self[key] = line

    def add(self, run: Run, result: dict) -> None:
        """Add the result of a run, and have it on the disk before anything else happens."""
        self[run[:2]] = result
        if self.path is not None:
            settings = {"model": asdict(run.model), "training": asdict(run.training)}
            append_line(self.path, json.dumps(self.common | settings | result))


# ---- Processes


def _make(jobs: Iterator[tuple], n_jobs: int, data: dict, processes: int | None, device: str, progress: bool) -> None:
    """Make the runs of `jobs`, each asked for when a process is free; Ctrl-C ends it early. Raises ValueError.

    A job is a run, what takes its result, and a study of trials that have ended, whose pruner may stop it, or None.
    Each process is a pool of its own: a pool of several gives up all their runs when the system kills one, as it does
    when memory runs out. Each lives for many runs: importing torch takes longer than many a small run.
    """
    from tqdm.auto import tqdm

    processes = available_cores() if processes is None else processes
    if not isinstance(processes, int) or processes < 1:
        raise ValueError(f"processes is {processes!r}, but it must be a whole number of 1 or more, or None.")
    device, context, idle, running = str(choose_device(device)), _Context(), [], {}
    bar = tqdm(total=n_jobs, unit="run", disable=not progress or n_jobs < 1)
    with ctrl_c() as pressed, bar, TemporaryDirectory(prefix="gptcourse-") as folder:
        for name, ids in data.items():
            np.save(Path(folder) / f"{name}.npy", ids)
        try:
            while not pressed.is_set():
                while len(running) < processes and (job := next(jobs, None)) is not None:
                    run, keep, study = job
                    pool, future = _submit(idle, context, run, folder, device, study)
                    running[future] = pool, keep
                if not running:
                    return
                for future in wait(running, timeout=0.1, return_when=FIRST_COMPLETED).done:
                    pool, keep = running.pop(future)
                    idle.append(pool)
                    keep(_result(future))
                    bar.update()
        finally:
            for process in context.started:
                process.kill()  # in the middle of a run, too
            for pool in (*idle, *(pool for pool, _ in running.values())):
                pool.shutdown()


def _submit(idle: list[ProcessPoolExecutor], context: _Context, *work) -> tuple[ProcessPoolExecutor, Future]:
    """Give a run to an idle process, or else a new one; return its pool and the future result."""
    pool = idle.pop() if idle else ProcessPoolExecutor(1, context, _begin)
    try:
        return pool, pool.submit(_run, *work)
    except BrokenProcessPool:  # its process was killed, in its last run or since
        return _submit(idle, context, *work)


class _Context(SpawnContext):
    """Starts processes, and knows which."""

    def __init__(self):
        self.started: list[SpawnProcess] = []

    def Process(self, *args, **options) -> SpawnProcess:
        self.started.append(_Process(*args, **options))
        return self.started[-1]


class _Process(SpawnProcess):
    """A process that does not run the caller's script, as spawn would, and hears no Ctrl-C: its parent decides."""

    def start(self) -> None:
        main, set_mask = sys.modules["__main__"], getattr(signal, "pthread_sigmask", lambda *_: ())  # not on Windows
        before = set_mask(signal.SIG_BLOCK, [signal.SIGINT])
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            super().start()
        finally:
            sys.modules["__main__"] = main
            set_mask(signal.SIG_SETMASK, before)


def _result(future: Future) -> dict[str, Any]:
    """Return what a run has given, or why it crashed."""
    if (error := future.exception()) is None:
        return future.result()
    killed = "its process was killed: often, memory ran out"
    reason = killed if isinstance(error, BrokenProcessPool) else f"{type(error).__name__}: {error}"
    return {"outcome": "crashed", "reason": reason}


def _begin() -> None:
    """Prepare a process for its runs."""
    from tqdm.auto import tqdm

    def end_with_parent() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)  # in the middle of a run, too

    threading.Thread(target=end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for Windows
    tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system, left over when the process is killed
    torch.set_num_threads(1)
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])  # the first imports much, which is no run's own time


def _run(*work) -> dict[str, Any]:
    """Train outside the main thread, where `train` does not listen to Ctrl-C."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_train, *work).result()


def _train(run: Run, folder: str, device: str, study: optuna.Study | None) -> dict[str, Any]:
    """Train one model on the tokens in the folder, and return its result.

    `outcome` is "finished", "diverged" or, by the study's pruner, "pruned"; `loss` the last validation loss, None if it
    diverged; `tokens` counts those trained on; `curve` and `evaluations` hold [step, loss].
    """
    config, length = run.training, run.training.sequence_length or run.model.n_positions
    tokens, validation_tokens = (np.load(Path(folder) / f"{name}.npy") for name in ("tokens", "validation_tokens"))
    torch.manual_seed(config.seed)
    model, begin = GPT(run.model), time.perf_counter()
    options = {"validation_tokens": validation_tokens, "device": device, "progress": False}
    try:
        history = train(model, tokens, config, callback=study and partial(_is_pruned, study, config), **options)
        outcome, loss = "pruned" if history.stopped else "finished", history.eval_loss[-1]
    except DivergedError as error:
        outcome, loss, history = "diverged", None, error.history
    n_steps, curve = len(history.step), list(zip(history.step, history.loss, strict=True))
    kept = np.linspace(0, n_steps - 1, min(n_steps, CURVE_POINTS)).round().astype(int)
    return {
        "outcome": outcome,
        "loss": loss,
        "tokens": n_steps * config.batch_size * config.gradient_accumulation_steps * length,
        "seconds": time.perf_counter() - begin,
        "curve": [list(curve[place]) for place in kept],
        "evaluations": [list(pair) for pair in zip(history.eval_step, history.eval_loss, strict=True)],
    }


def _is_pruned(study: optuna.Study, config: TrainingConfig, history: History) -> bool:
    """Return whether a run ends here, as the study's pruner says after each evaluation but the last."""
    from optuna.trial import TrialState, create_trial

    if history.step[-1] == config.steps or history.step[-1] not in history.eval_step[-1:]:
        return False
    looks = dict(enumerate(history.eval_loss, start=1))
    return study.pruner.prune(study, create_trial(state=TrialState.RUNNING, intermediate_values=looks))


# ---- The table


class Bands(NamedTuple):
    """The values of one axis, and for each the median, the lowest and the highest loss over the seeds."""

    values: list
    median: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True, repr=False)
class SweepTable:
    """The results, one row a run; print it to read them.

    A row is a dict: the value of each of `axes`, `seed`, `outcome` ("finished", "diverged", in a search "pruned", or
    "crashed" with a `reason`), `loss` (the last validation loss in nats per token; inf if diverged, nan if crashed),
    `parameters`, `tokens` (trained on), `seconds`, the training `curve` and the `evaluations` as lists of
    [step, loss], and the `model` and `training` configs. `missing` runs were not made: the sweep was stopped.
    """

    axes: tuple[str, ...]
    rows: list[dict[str, Any]]
    missing: int = 0

    def where(self, **chosen) -> SweepTable:
        """Return the rows in which each named axis has the given value. Raises ValueError."""
        for name, value in chosen.items():
            if label(value) not in (there := self._values(name)):
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
        losses = {value: [row["loss"] for row in rows] for (value,), rows in self._groups(by).items()}
        return Bands(list(losses), *(list(map(f, losses.values())) for f in (statistics.median, min, max)))

    def best(self) -> dict[str, Any]:
        """Return the combination with the lowest median loss over its seeds: its axes, `loss`, `model`, `training`.

        `training` has the first seed. Raises ValueError if no run has finished.
        """
        groups = [(statistics.median(row["loss"] for row in rows), rows) for rows in self._groups(*self.axes).values()]
        loss, (first, *_) = min(groups, key=lambda group: group[0], default=(math.inf, [{}]))
        if loss == math.inf:
            reasons = [f" ({row['reason']})" for row in self.rows if row["outcome"] == "crashed"] or [""]
            raise ValueError(f"No combination has a finite median loss: there is no best one{reasons[0]}.")
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

    def __repr__(self) -> str:
        forms = {"loss": ".4f", "parameters": ",", "tokens": ",", "seconds": ".1f"}
        columns = [*self.axes, "seed", "outcome", *forms]
        cells = [columns]
        for row in self.rows:
            shown = ((row[name], forms.get(name, ".4g" if isinstance(row[name], float) else "")) for name in columns)
            cells.append([format(*pair) for pair in shown])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
        lines += [f"Crashed: {row['reason']}." for row in self.rows if row["outcome"] == "crashed"]
        return "\n".join(lines + [f"Not made yet: {self.missing}. Call sweep again to go on."] * (self.missing > 0))


def _row(run: Run, result: dict) -> dict[str, Any]:
    """Return the row of a table for a run and its result."""
    empty = {"outcome": "", "loss": None, "reason": None, "tokens": 0, "seconds": 0, "curve": [], "evaluations": []}
    row = run.axes | {name: result.get(name, value) for name, value in empty.items()}
    row["loss"] = {"crashed": math.nan, "diverged": math.inf}.get(row["outcome"], row["loss"])
    return row | {"parameters": run.model.num_parameters, "model": run.model, "training": run.training}


@dataclass(frozen=True, repr=False)
class SearchResult(SweepTable):
    """The trials of a search, in the order in which they ended; `study` is Optuna's own, for its plots."""

    study: optuna.Study | None = None

    @property
    def tokens(self) -> int:
        """The tokens trained on in all trials together, pruned and diverged ones too: what the search has cost."""
        return sum(row["tokens"] for row in self.rows)

    def best_so_far(self) -> tuple[list[int], list[float]]:
        """Return the tokens spent when each trial ended, and the lowest loss of a finished one up to then (or inf).

        Two searches are compared fairly at equal tokens, whatever number of trials they made of them.
        """
        losses = [row["loss"] if row["outcome"] == "finished" else math.inf for row in self.rows]
        return list(itertools.accumulate(row["tokens"] for row in self.rows)), list(itertools.accumulate(losses, min))

    def importances(self) -> dict[str, float]:
        """Return how much of the spread of the loss each axis explains, the largest first: PED-ANOVA, summing to 1.

        Pruned and diverged trials are not in it. Raises ValueError for fewer than four finished trials.
        """
        from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

        if sum(row["outcome"] == "finished" for row in self.rows) < 4:
            raise ValueError("Importances need four finished trials or more: search with a larger n_trials.")
        return get_param_importances(self.study, evaluator=PedAnovaImportanceEvaluator())


# ---- Search


def _check_search(stack: ExitStack, n_trials, sampler) -> None:
    """Import Optuna, without its messages as long as `stack` is open, and check what it is to do. Raises ValueError."""
    try:
        import optuna
    except ImportError as error:
        raise ImportError('search needs Optuna: run pip install "gptcourse[tune]" first.') from error
    stack.callback(optuna.logging.set_verbosity, optuna.logging.get_verbosity())
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # the progress bar shows the trials
    if isinstance(n_trials, bool) or not isinstance(n_trials, int) or n_trials < 1:
        raise ValueError(f"n_trials is {n_trials!r}, but it must be a whole number of 1 or more.")
    if sampler not in ("tpe", "random") and not isinstance(sampler, optuna.samplers.BaseSampler):
        raise ValueError(f'sampler is {sampler!r}, but it must be "tpe", "random" or one of Optuna\'s samplers.')
    if isinstance(sampler, optuna.samplers.GridSampler | optuna.samplers.BruteForceSampler):
        raise ValueError("A grid needs no search: give it to sweep, which makes all of its runs.")


class _Space:
    """The space of a search: Optuna's distribution for each axis, and the way from Optuna's parameters to a run."""

    def __init__(self, configs: tuple, space: Mapping[str, Any], derive: Derive | None, prune: bool):
        from optuna.distributions import BaseDistribution, CategoricalDistribution

        self.configs, self.derive, self.prune = configs, derive, prune
        lists = {name: wanted for name, wanted in space.items() if isinstance(wanted, list | tuple) and wanted}
        self.choices = {name: {label(value): value for value in values} for name, values in lists.items()}
        # Optuna stores no dicts, so it gets the labels.
        self.axes = dict(space) | {name: CategoricalDistribution(list(values)) for name, values in self.choices.items()}
        for name, wanted in self.axes.items():
            if not isinstance(wanted, BaseDistribution):
                raise ValueError(
                    f"The space's {name!r} must be a list of choices or one of Optuna's distributions, such as "
                    f"optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True), not {wanted!r}."
                )

    def run(self, params: Mapping[str, Any]) -> Run:
        """Return the run of Optuna's parameters. Raises ValueError for a combination that makes none."""
        values = {name: self.choices.get(name, {}).get(params[name], params[name]) for name in self.axes}
        model, config, axes = configured(*self.configs, values, self.derive)
        config = replace(config, eval_steps=math.ceil(config.steps / LOOKS)) if self.prune else config
        return Run(model, config, axes | {"seed": config.seed})

    def samples(self) -> list[Run]:
        """Return random runs: mistakes are found before anything is trained. Raises ValueError."""
        import optuna

        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        return [self.run(study.ask(self.axes).params) for _ in range(SAMPLED)]


def _open(storage, name: str, space: _Space, data: dict, stack: ExitStack) -> optuna.Study:
    """Return the study, new or with its trials so far. Raises ValueError if it is another search's, or no journal."""
    import optuna

    if storage is not None:
        if "://" in str(storage):
            raise ValueError(f"storage is {storage!r}, but it must be the path of a file, or None.")
        path = Path(storage).expanduser()
        lock = stack.enter_context(reserve(path))
        read_lines(path, '{"op_code":', "line of Optuna's journal")
        try:
            storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path), lock))
        except Exception as error:
            raise ValueError(f"Optuna cannot read {path}, as lines of it are lost: choose another file.") from error
    study = optuna.create_study(storage=storage, study_name=name, load_if_exists=True)
    to_json, (model, config) = optuna.distributions.distribution_to_json, space.configs
    wanted = {"space": {axis: to_json(distribution) for axis, distribution in space.axes.items()}, "prune": space.prune}
    wanted |= {"model_config": asdict(model), "training_config": asdict(config)}
    wanted |= {key: fingerprint(ids) for key, ids in data.items()}
    before = study.user_attrs.get("search")
    if before is None:
        study.set_user_attr("search", wanted)
    elif others := [key for key in wanted if wanted[key] != before.get(key)]:
        raise ValueError(
            f"The study {name!r} was begun with another {' and another '.join(others)}: "
            "choose another study_name, or another storage."
        )
    return study


def _ended(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Return the trials that have ended, in that order."""
    return [trial for trial in study.get_trials(deepcopy=False) if "result" in trial.user_attrs]


def _jobs(study: optuna.Study, space: _Space, n_left: int, sampler, seed: int) -> Iterator[tuple]:
    """Draw `n_left` trials. They run in memory; the study gets each in one piece when it has ended."""
    from optuna import create_study, pruners, samplers, trial

    pruner = pruners.MedianPruner(n_warmup_steps=2)  # the first look is early: rates are warming up
    drawn = {ended.user_attrs.get("drawn", ended.number) for ended in _ended(study)}
    memory = create_study(sampler=None if isinstance(sampler, str) else sampler)
    memory.add_trials(_ended(study))
    while n_left > 0:
        number = min(set(range(len(drawn) + 1)) - drawn)
        drawn.add(number)
        seeded = {"seed": int(np.random.SeedSequence((seed, number)).generate_state(1)[0])}
        if sampler == "random":
            memory.sampler = samplers.RandomSampler(**seeded)
        elif sampler == "tpe":  # constant_liar: away from what is being tried just now
            memory.sampler = samplers.TPESampler(constant_liar=True, **seeded)
        asked = memory.ask(space.axes)
        try:
            run = space.run(asked.params)
        except ValueError:  # rare, as none of many samples was like that: draw another
            memory.tell(asked, state=trial.TrialState.FAIL)
            continue
        n_left -= 1
        asked.set_user_attr("drawn", number)
        others = create_study(pruner=pruner)
        others.add_trials(_ended(study))
        yield run, partial(_keep, study, memory, asked), others if space.prune else None


def _keep(study: optuna.Study, memory: optuna.Study, asked: optuna.Trial, result: dict) -> None:
    """Add a trial that has ended to the study. One that diverged is infinitely bad."""
    from optuna.trial import TrialState

    for look, (_, loss) in enumerate(result.get("evaluations", []), start=1):
        asked.report(loss, look)
    asked.set_user_attr("result", {k: v for k, v in result.items() if k not in ("curve", "evaluations")})
    state = {"pruned": TrialState.PRUNED, "crashed": TrialState.FAIL}.get(result["outcome"], TrialState.COMPLETE)
    loss = {"finished": result.get("loss"), "diverged": math.inf}.get(result["outcome"])
    study.add_trial(memory.tell(asked, loss, state=state))
