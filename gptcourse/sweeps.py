"""Many runs, to compare settings: `sweep` makes every run of a grid, `search` lets Optuna choose the runs.

A setting is a field of GPTConfig or TrainingConfig. An axis is a setting with the values to try; or settings that move
together under a name of your own, with dicts as values: `{"shape": [{"n_layer": 2}, {"n_layer": 4, "n_embd": 48}]}`.
`derive` computes settings from others: it takes a combination as one flat dict and returns the dict to use, such as
`lambda s: s | {"steps": 4096 // s["batch_size"]}`, equal tokens at every batch size.

Sources: Akiba et al. (2019), "Optuna"; Bergstra et al. (2011), "Algorithms for Hyper-Parameter Optimization" (TPE);
Golovin et al. (2017), "Google Vizier", section 3.2.2 (median stopping); Watanabe et al. (2023), "PED-ANOVA".
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from itertools import count, islice, product
from pathlib import Path
from queue import SimpleQueue
from subprocess import PIPE
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from gptcourse.checks import COUNT, SEED, is_list
from gptcourse.config import GPTConfig, TrainingConfig
from gptcourse.data import check_tokens, fingerprint
from gptcourse.distributed import choose_device
from gptcourse.files import append_line, expand, read_lines, reserve
from gptcourse.model import GPT
from gptcourse.studies import distributions, open_study, quiet_optuna
from gptcourse.training import DivergedError, History, ctrl_c, train

if TYPE_CHECKING:
    import optuna

FORMAT = 2  # of the file of results
CURVE_POINTS = 100  # training losses kept of each run, evenly spaced
LOOKS = 10  # evaluations of a trial, evenly spaced; after each but the first and the last it may be pruned
CRASHED = {"outcome": "crashed", "loss": math.nan, "tokens": 0, "seconds": 0.0, "curve": [], "evaluations": []}
TAKEN = {*CRASHED, "reason", "parameters", "model", "training", "seed"}  # the other columns of a table
SAMPLED = 100  # combinations of a space that are checked before a search begins
# Of Optuna's, with options: the constant liar keeps away from what is being tried just now.
SAMPLERS = {"tpe": ("TPESampler", {"constant_liar": True}), "random": ("RandomSampler", {})}
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

    Up to `processes` (None: the available cores) train at once on `device`, one thread each. A run that crashes or is
    killed costs that run alone; one that diverges is a result. The seed decides initial weights, batches and dropout.

    Each run is appended to the file `results` when it ends. Runs that are there already are not made again, unless they
    crashed; a file may hold several sweeps over the same text. Ctrl-C stops the sweep and returns what has finished.

    Raises ValueError before any run begins, also when the file is in use.
    """
    runs = _grid_runs(model_config, training_config, grid, seeds, derive)
    data = _checked_data(runs, tokens, validation_tokens)
    file = None if results is None else expand(results)
    header = {"format": FORMAT, "data": {name: fingerprint(ids) for name, ids in data.items()}}
    with nullcontext() if file is None else reserve(file):
        done = {} if file is None else _read_results(file, header)
        todo = {run[:2]: run for run in runs if run[:2] not in done}
        jobs = ((run, {}, partial(_keep, done, file, header, run)) for run in todo.values())
        _make(jobs, len(todo), data, processes, device, progress)
    rows = [_row(run, done[run[:2]]) for run in runs if run[:2] in done]
    return SweepTable(tuple(grid), rows, len(runs) - len(rows))


@quiet_optuna()
def search(
    model_config: GPTConfig,
    training_config: TrainingConfig,
    space: Mapping[str, Any],
    *,
    tokens,
    validation_tokens,
    n_trials: int,
    storage: str | Path | None = None,
    sampler: str = "tpe",
    prune: bool = True,
    derive: Derive | None = None,
    seed: int = 0,
    processes: int | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> SearchResult:
    """Search the settings with the lowest validation loss until the study has `n_trials` trials, and return it.

    `space` maps axes to Optuna's distributions or lists of choices. `sampler` is "tpe" or "random": trial n is drawn
    from (seed, n) and the trials that have ended. With `prune`, a run is stopped when at one of LOOKS evaluations it is
    worse than the median of the others there: so let all runs train on equally many tokens. `storage` is a path for
    Optuna's journal file. Each trial is appended when it ends; after Ctrl-C or a kill, the same call goes on.

    Raises ValueError before any run begins, also when the study was begun with other arguments, or the file is in use.
    """
    n_trials, seed = COUNT("n_trials", n_trials), SEED("seed", seed)
    if sampler not in SAMPLERS:
        raise ValueError(f'sampler is {sampler!r}, but it must be "tpe" or "random"; sweep makes a whole grid.')
    searched = _Space((model_config, training_config), space, derive, prune)
    data = _checked_data(searched.samples(), tokens, validation_tokens)
    identity = searched.identity | {name: fingerprint(ids) for name, ids in data.items()}
    with open_study(storage, "search", identity) as study:
        for trial in study.trials:
            if trial.user_attrs.get("run", now := _settings(searched.run(trial.params))) != now:
                raise ValueError(f"The search in {storage} was begun with another derive: choose another storage.")
        jobs, n_left = _trials(study, searched, sampler, seed), max(n_trials - len(study.trials), 0)
        _make(islice(jobs, n_left), n_left, data, processes, device, progress)
    rows = [_row(searched.run(trial.params), trial.user_attrs["result"]) for trial in study.trials]
    return SearchResult(tuple(space), rows, max(n_trials - len(rows), 0), study)


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
    if taken := values.keys() & TAKEN:
        raise ValueError(f"An axis cannot be called {min(taken)!r}: a row of the table has a {min(taken)} of its own.")
    try:
        model, config = (
            replace(base, **{name: value for name, value in settings.items() if kinds[name] is type(base)})
            for base in (model, config)
        )
        if (length := config.sequence_length or 1) > model.n_positions:
            raise ValueError(f"sequence_length {length} is longer than n_positions {model.n_positions}.")
    except ValueError as error:
        raise ValueError(f"The combination {label(settings)} makes no run: {error}") from error
    return Run(model, config, {name: label(value) for name, value in values.items()} | {"seed": config.seed})


def _grid_runs(model: GPTConfig, config: TrainingConfig, grid, seeds, derive: Derive | None) -> list[Run]:
    """Return a run for every combination and seed, the seeds of a combination together."""
    for name, values in grid.items():
        if not is_list(values) or not len(values):
            raise ValueError(f"The grid's {name!r} must be a list of the values to try, not {values!r}.")
    if not is_list(seeds) or not len(seeds):
        raise ValueError(f"seeds must be a list of at least one whole number, such as range(3), not {seeds!r}.")
    seeded = [replace(config, seed=seed) for seed in seeds]
    combinations = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    return [configured(model, config, values, derive) for values in combinations for config in seeded]


def _checked_data(runs: Sequence[Run], tokens, validation_tokens) -> dict[str, torch.Tensor]:
    """Return both as int64 tensors (n,). Raises ValueError if they do not fit one of the runs."""
    vocab_size = min(run.model.vocab_size for run in runs)
    longest = max(run.training.sequence_length or run.model.n_positions for run in runs)
    tokens = check_tokens(tokens, vocab_size, longest + 1, "training tokens")
    return {"tokens": tokens, "validation_tokens": check_tokens(validation_tokens, vocab_size, 2, "validation tokens")}


# ---- The file of a sweep


def _read_results(file: Path, header: dict) -> dict[tuple[GPTConfig, TrainingConfig], dict]:
    """Return the results in a file by the settings of their runs, without those of crashed runs. Raises ValueError."""
    kind, results = "result of a sweep by this version", {}
    for number, line in enumerate(read_lines(file, '{"format": ', kind), start=1):
        try:
            settings = GPTConfig(**line["model"]), TrainingConfig(**line["training"])
            result, crashed = line["result"], line["result"]["outcome"] == "crashed"
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"Line {number} of {file} is no {kind}: choose another file.") from error
        if not header.items() <= line.items():
            raise ValueError(f"Line {number} of {file} belongs to a sweep over other tokens: choose another file.")
        if not crashed:
            results[settings] = result
    return results


def _keep(done: dict, file: Path | None, header: dict, run: Run, result: dict) -> None:
    """Add the result of a run, and have it on the disk before anything else happens."""
    done[run[:2]] = result
    if file is not None:
        line = {"model": asdict(run.model), "training": asdict(run.training), "result": result}
        append_line(file, header | line)


# ---- Processes


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


def _make(jobs: Iterator[tuple], n_jobs: int, data: dict, processes: int | None, device: str, progress: bool) -> None:
    """Make the runs of `jobs`, each asked for when a process is free; Ctrl-C ends it early. Raises ValueError.

    A job is a run, its limits (see `_limits`) and the function that takes its result. Processes live for many runs:
    importing torch takes longer than many a small run.
    """
    from tqdm.auto import tqdm

    processes = available_cores() if processes is None else COUNT("processes", processes)
    device, idle, running = str(choose_device(device)), [], {}
    bar, threads = tqdm(total=n_jobs, unit="run", disable=not progress or n_jobs < 1), ThreadPoolExecutor(processes)
    # What is entered last ends first: the processes end before the threads that wait for them.
    with TemporaryDirectory() as folder, threads, ctrl_c() as pressed, bar, ExitStack() as workers:
        for name, ids in data.items():
            np.save(Path(folder) / name, ids.numpy())
        while not pressed.is_set():
            for run, limits, keep in islice(jobs, processes - len(running)):
                idle = [worker for worker in idle if worker.poll() is None]  # without those that were killed
                worker = idle.pop() if idle else workers.enter_context(_worker(folder, device))
                running[threads.submit(_ask, worker, run, limits)] = worker, keep
            if not running:
                return
            for future in wait(running, timeout=0.1, return_when=FIRST_COMPLETED).done:
                worker, keep = running.pop(future)
                idle.append(worker)
                try:
                    keep(future.result())
                except OSError as error:
                    advice = "make room, then call it again to go on after the runs that were"
                    raise ValueError(f"A run could not be written ({error.strerror}): {advice}.") from error
                bar.update()


@contextmanager
def _worker(folder: str, device: str) -> Iterator[subprocess.Popen]:
    """Give a process in which `work` makes runs, and end it, in the middle of a run too. It hears no Ctrl-C."""
    group = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)  # of Windows
    options = {"env": os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, "text": True, "creationflags": group}
    command = [sys.executable, "-P", "-m", __name__, folder, device]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, start_new_session=True, **options) as process:
        try:
            yield process
        finally:
            process.kill()
            with suppress(OSError):
                process.stdin.close()  # what a killed process has not read is of no use


def _ask(worker: subprocess.Popen, run: Run, limits: Mapping[int, float]) -> dict[str, Any]:
    """Return the result of a run, made by the worker: a line of JSON in, and one out."""
    try:
        print(json.dumps([asdict(run.model), asdict(run.training), limits]), file=worker.stdin, flush=True)
        return json.loads(worker.stdout.readline())
    except (OSError, ValueError):  # nothing comes out
        worker.kill()
        worker.wait()  # its output ends a moment before it does: until then it would pass for idle
        return CRASHED | {"reason": "its process was killed: often, memory ran out"}


def work(folder: str, device: str) -> None:
    """Make a run for each line on standard input; end when there is no parent to write one, in the middle of a run too.

    `folder` holds the tokens.
    """
    from tqdm.auto import tqdm

    lines, out, sys.stdout = SimpleQueue(), sys.stdout, sys.stderr  # what else is printed is no result

    def listen() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(1)

    threading.Thread(target=listen, daemon=True).start()
    tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system, left over when the process ends
    torch.set_num_threads(1)
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])  # the first imports much, which is no run's own time
    data = {path.stem: np.load(path) for path in Path(folder).iterdir()}
    while True:
        print(json.dumps(_result(*json.loads(lines.get()), data, device)), file=out, flush=True)


def _result(model: dict, training: dict, limits: dict[str, float], data: dict, device: str) -> dict[str, Any]:
    """Return the result of the run with these settings, also when it crashes."""
    try:
        run = Run(GPTConfig(**model), TrainingConfig(**training), {})
        return _train(run, data, device, {int(look): loss for look, loss in limits.items()})
    except Exception as error:
        return CRASHED | {"reason": f"{type(error).__name__}: {error}"}


def _train(run: Run, data: dict[str, np.ndarray], device: str, limits: Mapping[int, float]) -> dict[str, Any]:
    """Train one model and return its result; it is pruned when its lowest loss is above the limit for that many."""
    config, begin = run.training, time.perf_counter()

    def is_worse(history: History) -> bool:
        losses = history.eval_loss
        return history.step[-1] < config.steps and bool(losses) and min(losses) > limits.get(len(losses), math.inf)

    torch.manual_seed(config.seed)
    model = GPT(run.model)
    try:
        history = train(model, config=config, **data, callback=is_worse, device=device, progress=False)
        outcome, loss = "pruned" if history.stopped else "finished", history.eval_loss[-1]
    except DivergedError as error:
        outcome, loss, history = "diverged", math.inf, error.history
    n_steps = len(history.step)
    curve = list(zip(history.step, history.loss, strict=True))
    kept = np.linspace(0, n_steps - 1, min(n_steps, CURVE_POINTS)).round().astype(int)
    return {
        "outcome": outcome,
        "loss": loss,
        "tokens": history.tokens[-1] if n_steps else 0,
        "seconds": time.perf_counter() - begin,
        "curve": [list(curve[place]) for place in kept],
        "evaluations": [list(pair) for pair in zip(history.eval_step, history.eval_loss, strict=True)],
    }


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
        chosen = {name: label(value) for name, value in chosen.items()}
        for name, value in chosen.items():
            if value not in (there := self._values(name)):
                raise ValueError(f"No run has {name} = {value!r}: there are {', '.join(map(repr, there))}.")
        return replace(self, rows=[row for row in self.rows if chosen.items() <= row.items()])

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
        cells = [
            [format(row[c], forms.get(c, ".4g" if isinstance(row[c], float) else "")) for c in columns]
            for row in self.rows
        ]
        widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
        lines = ["  ".join(map(str.rjust, row, widths)) for row in (columns, *cells)]
        lines += [f"Crashed: {row['reason']}." for row in self.rows if row["outcome"] == "crashed"]
        return "\n".join(lines + [f"Not made yet: {self.missing}. Call it again to go on."] * (self.missing > 0))


def _row(run: Run, result: dict) -> dict[str, Any]:
    """Return the row of a table for a run and its result."""
    return run.axes | result | {"parameters": run.model.num_parameters, "model": run.model, "training": run.training}


@dataclass(frozen=True, repr=False)
class SearchResult(SweepTable):
    """The trials of a search, in the order in which they ended; `study` is Optuna's own, for its plots."""

    study: optuna.Study | None = None

    @property
    def tokens(self) -> int:
        """The tokens trained on in all trials together, pruned and diverged ones too: what the search has cost."""
        return sum(row["tokens"] for row in self.rows)

    def importances(self) -> dict[str, float]:
        """Return how much of the spread of the loss each axis explains, the largest first: PED-ANOVA, summing to 1.

        Pruned and diverged trials are not in it. Raises ValueError for fewer than four finished trials.
        """
        from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

        if sum(row["outcome"] == "finished" for row in self.rows) < 4:
            raise ValueError("Importances need four finished trials or more: search with a larger n_trials.")
        return get_param_importances(self.study, evaluator=PedAnovaImportanceEvaluator())


# ---- Search


class _Space:
    """The space of a search: Optuna's distribution for each axis, and the way from Optuna's parameters to a run."""

    def __init__(self, configs: tuple, space: Mapping[str, Any], derive: Derive | None, prune: bool):
        self.configs, self.derive, self.prune = configs, derive, prune
        lists = {name: wanted for name, wanted in space.items() if isinstance(wanted, list | tuple)}
        self.choices = {name: {label(value): value for value in values} for name, values in lists.items()}
        # Optuna stores no dicts, so it gets the labels.
        self.axes = distributions(dict(space) | {name: list(values) for name, values in self.choices.items()})

    @property
    def identity(self) -> dict[str, Any]:
        """What two searches must share for one to go on with the other."""
        from optuna.distributions import distribution_to_json

        named = dict(zip(("model_config", "training_config"), map(asdict, self.configs), strict=True))
        axes = {name: distribution_to_json(axis) for name, axis in self.axes.items()}
        return named | {"space": axes, "prune": self.prune, "format": FORMAT}

    def run(self, params: Mapping[str, Any]) -> Run:
        """Return the run of Optuna's parameters. Raises ValueError for a combination that makes none."""
        values = {name: self.choices.get(name, {}).get(params[name], params[name]) for name in self.axes}
        run = configured(*self.configs, values, self.derive)
        looks = {"eval_steps": math.ceil(run.training.steps / LOOKS)} if self.prune else {}
        return run._replace(training=replace(run.training, **looks))

    def samples(self) -> list[Run]:
        """Return random runs: mistakes are found before anything is trained. Raises ValueError."""
        import optuna

        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        return [self.run(study.ask(self.axes).params) for _ in range(SAMPLED)]


def _settings(run: Run) -> list[dict]:
    return [asdict(run.model), asdict(run.training)]


def _trials(study: optuna.Study, space: _Space, sampler: str, seed: int) -> Iterator[tuple]:
    """Draw trials without end. They run in memory; the study gets each in one piece when it has ended."""
    import optuna

    (kind, options), memory = SAMPLERS[sampler], optuna.create_study()
    memory.add_trials(study.trials)
    drawn = {trial.user_attrs["drawn"] for trial in study.trials}
    for number in (n for n in count() if n not in drawn):
        seeded = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
        memory.sampler = getattr(optuna.samplers, kind)(seed=seeded, **options)
        trial = memory.ask(space.axes)
        trial.set_user_attr("drawn", number)
        try:
            run = space.run(trial.params)
        except ValueError:  # rare, as none of many samples was like that: draw another
            memory.tell(trial, state=optuna.trial.TrialState.FAIL)
            continue
        trial.set_user_attr("run", _settings(run))
        yield run, _limits(study) if space.prune else {}, partial(_tell, study, memory, trial)


def _limits(study: optuna.Study) -> dict[int, float]:
    """Return the median loss of the study's runs after each number of evaluations: a worse run is pruned there.

    This is Optuna's MedianPruner(n_warmup_steps=2): not before five runs have ended, nor after the first evaluation,
    as rates are warming up.
    """
    from optuna.trial import TrialState

    ended = [trial.intermediate_values for trial in study.trials if trial.state == TrialState.COMPLETE]
    looks = sorted(set().union(*ended) - {1}) if len(ended) >= 5 else []
    return {look: statistics.median(losses[look] for losses in ended if look in losses) for look in looks}


def _tell(study: optuna.Study, memory: optuna.Study, trial: optuna.Trial, result: dict) -> None:
    """Add a trial that has ended to the study. One that diverged is infinitely bad."""
    from optuna.trial import TrialState

    for look, (_, loss) in enumerate(result["evaluations"], start=1):
        trial.report(loss, look)
    trial.set_user_attr("result", result)
    state = {"pruned": TrialState.PRUNED, "crashed": TrialState.FAIL}.get(result["outcome"], TrialState.COMPLETE)
    study.add_trial(memory.tell(trial, result["loss"] if state == TrialState.COMPLETE else None, state=state))


if __name__ == "__main__":
    work(*sys.argv[1:])
