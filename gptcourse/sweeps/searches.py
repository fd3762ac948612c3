"""Search: Optuna proposes the settings, workers train them, and what does badly is pruned early.

A space maps names to Optuna's distributions or to lists of choices. Names, choices that are dicts and `derive` mean
what they mean in a grid. A trial that diverges counts as infinitely bad. With pruning, a run is stopped when, at one of
LOOKS evenly spaced evaluations, it is worse than the median of the finished ones was there: so let all runs train on
equally many tokens.

Only the process that calls `search` talks with Optuna; its workers only train. The study lives in a file or a database,
and any number of such processes, on any number of machines, may call `search` on the same one at the same time.
Optuna's own heartbeat works for databases only, and only within its own loop. So there is one here for every storage:
each call counts up a number in the study. Who sees that this number stands still for GRACE seconds of their own clock
gives up that call's trials. Clocks of different machines are never compared.

Sources: Akiba et al. (2019), "Optuna"; Bergstra et al. (2011), "Algorithms for Hyper-Parameter Optimization" (TPE);
Bergstra and Bengio (2012), "Random Search for Hyper-Parameter Optimization"; Watanabe et al. (2023), "PED-ANOVA".
"""

from __future__ import annotations

import contextlib
import itertools
import math
import shutil
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gptcourse import training
from gptcourse.model import GPT, GPTConfig
from gptcourse.sweeps.grids import Derive, Run, SweepTable, checked_tokens, configured, label, table_row
from gptcourse.sweeps.workers import Workers
from gptcourse.training import TrainingConfig

if TYPE_CHECKING:
    import optuna

LOOKS = 10  # how often a run is looked at, and perhaps pruned, evenly spaced
BEAT, GRACE = 5.0, 60.0  # seconds
SAMPLED = 100  # combinations of a space that are checked before the search begins


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
    checkpoints: str | Path | None = None,
    processes: int | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> SearchResult:
    """Search the settings with the lowest validation loss until the study has `n_trials` trials, and return it.

    `storage` is a path (Optuna's journal file, also on a shared file system), a database's URL, or None (this
    process's memory). Ctrl-C stops the search. The next call on the same storage goes on, and repeats what a killed one
    has left. `sampler` is "tpe", "random" or one of Optuna's; with the first two, trial n is drawn from (seed, n) and
    the trials before it. `checkpoints` is a folder for the best model so far, and none but that.

    Raises ValueError, also when the study was begun with another space, other tokens or other settings.
    """
    optuna = _optuna()
    _check(optuna, n_trials, sampler)
    with _quiet(optuna):
        searched = _Space(optuna, model_config, training_config, space, derive, prune)
        tokens, validation_tokens = checked_tokens(searched.samples(), tokens, validation_tokens)
        study = _open(optuna, storage, study_name, searched.described(tokens, validation_tokens))
        result = SearchResult(study, searched, None if checkpoints is None else Path(checkpoints))
        result.refuse_other_models()
        with Workers(tokens, validation_tokens, processes, device) as workers:
            _Search(optuna, result, workers, sampler, seed).until(n_trials, progress)
    return result


def _check(optuna, n_trials, sampler) -> None:
    if isinstance(n_trials, bool) or not isinstance(n_trials, int) or n_trials < 1:
        raise ValueError(f"n_trials is {n_trials!r}, but it must be a whole number of 1 or more.")
    if sampler not in ("tpe", "random") and not isinstance(sampler, optuna.samplers.BaseSampler):
        raise ValueError(f'sampler is {sampler!r}, but it must be "tpe", "random" or one of Optuna\'s samplers.')
    if isinstance(sampler, optuna.samplers.GridSampler | optuna.samplers.BruteForceSampler):
        raise ValueError("A grid needs no search: give it to sweep, which makes all of its runs.")


def _optuna():
    try:
        import optuna
    except ImportError as fault:
        raise ImportError('search needs Optuna: run pip install "gptcourse[tune]" first.') from fault
    return optuna


@contextlib.contextmanager
def _quiet(optuna):
    """Keep Optuna from logging every trial: the progress bar shows them."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _open(optuna, storage, study_name: str, described: dict) -> optuna.Study:
    """Return the study, new or with its trials so far. Raises ValueError if it is another search."""
    if storage is not None and "://" not in str(storage):
        Path(storage).parent.mkdir(parents=True, exist_ok=True)
        journal = optuna.storages.journal
        lock = journal.JournalFileOpenLock(str(storage))  # the other kind needs symbolic links, and Windows has none
        storage = journal.JournalStorage(journal.JournalFileBackend(str(storage), lock))
    pruner = optuna.pruners.MedianPruner(n_warmup_steps=2)  # the first look says little: rates are still warming up
    study = optuna.create_study(storage=storage, study_name=study_name, pruner=pruner, load_if_exists=True)
    before = study.user_attrs.get("search")
    if before is None:
        study.set_user_attr("search", described)
    elif others := [name for name in described if described[name] != before.get(name)]:
        raise ValueError(
            f"The study {study_name!r} was begun with another {' and another '.join(others)}: "
            "choose another study_name, or another storage."
        )
    return study


class _Space:
    """What is searched: Optuna's distribution for each axis, and the way from Optuna's parameters to a run."""

    def __init__(self, optuna, model: GPTConfig, config: TrainingConfig, space, derive: Derive | None, prune: bool):
        self.optuna, self.model, self.config, self.derive, self.prune = optuna, model, config, derive, prune
        self.distributions: dict[str, optuna.distributions.BaseDistribution] = {}
        self.choices: dict[str, dict] = {}
        for name, wanted in space.items():
            if isinstance(wanted, list | tuple) and wanted:
                self.choices[name] = {label(value): value for value in wanted}  # Optuna stores no dicts
                wanted = optuna.distributions.CategoricalDistribution(list(self.choices[name]))
            if not isinstance(wanted, optuna.distributions.BaseDistribution):
                raise ValueError(
                    f"The space's {name!r} must be a list of choices or one of Optuna's distributions, such as "
                    f"optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True), not {wanted!r}."
                )
            self.distributions[name] = wanted

    def draw(self, trial: optuna.Trial) -> None:
        """Let the study's sampler draw a value for each axis; they are then in `trial.params`."""
        for name, d in self.distributions.items():
            if isinstance(d, self.optuna.distributions.CategoricalDistribution):
                trial.suggest_categorical(name, d.choices)
            else:
                is_whole = isinstance(d, self.optuna.distributions.IntDistribution)
                suggest = trial.suggest_int if is_whole else trial.suggest_float
                suggest(name, d.low, d.high, step=d.step, log=d.log)

    def run(self, params: Mapping[str, Any]) -> Run:
        """Return the run of Optuna's parameters. Raises ValueError for a combination that makes none."""
        values = {name: self.choices.get(name, {}).get(params[name], params[name]) for name in self.distributions}
        run = configured(self.model, self.config, values, self.derive)
        if self.prune:
            run = replace(run, training=replace(run.training, eval_steps=math.ceil(run.training.steps / LOOKS)))
        return replace(run, axes=run.axes | {"seed": run.training.seed})

    def samples(self) -> list[Run]:
        """Return random runs out of the space: mistakes are found before anything is trained. Raises ValueError."""
        study = self.optuna.create_study(sampler=self.optuna.samplers.RandomSampler(seed=0))
        trials = [study.ask(self.distributions) for _ in range(SAMPLED)]
        return [self.run(trial.params) for trial in trials]

    def described(self, tokens, validation_tokens) -> dict[str, Any]:
        """Return what two calls must share to work on one study."""
        to_json = self.optuna.distributions.distribution_to_json
        return {
            "space": {name: to_json(distribution) for name, distribution in self.distributions.items()},
            "model_config": asdict(self.model),
            "training_config": asdict(self.config),
            "tokens": training.fingerprint(tokens),
            "validation_tokens": training.fingerprint(validation_tokens),
            "prune": self.prune,
        }


class _Search:
    """One call of `search` at work: it asks for trials, has them trained, and tells the study what came of them."""

    def __init__(self, optuna, result: SearchResult, workers: Workers, sampler, seed: int):
        self.optuna, self.result, self.study, self.workers = optuna, result, result.study, workers
        self.sampler, self.seed = sampler, seed
        if sampler not in ("tpe", "random"):
            self.study.sampler = sampler
        self.running: dict[Future, optuna.Trial] = {}
        self.name, self.beats, self.last_beat = uuid.uuid4().hex, itertools.count(), -math.inf
        self.seen: dict[Any, tuple[int | None, float]] = {}  # of the other calls: their number, and since when

    def until(self, n_trials: int, progress: bool) -> None:
        """Work until `n_trials` trials are finished, by this call or another, or until Ctrl-C."""
        from tqdm.auto import tqdm

        with training.ctrl_c() as pressed, tqdm(total=n_trials, unit="trial", disable=not progress) as bar:
            try:
                while not pressed.is_set():
                    self._beat()
                    n_finished = len(_finished(self.study))
                    if n_finished > bar.n:
                        bar.update(min(n_finished, n_trials) - bar.n)
                    n_running = len(self.study.get_trials(deepcopy=False, states=(self._state.RUNNING,)))
                    if n_finished >= n_trials and not n_running:
                        return
                    if n_finished + n_running < n_trials and len(self.running) < len(self.workers.all):
                        self._ask(n_trials)
                    elif self.running:
                        for future in wait(self.running, timeout=0.2, return_when=FIRST_COMPLETED).done:
                            self._tell(self.running.pop(future), future.result())
                    else:
                        bar.set_postfix_str(f"waiting for {n_running} of other calls")
                        pressed.wait(0.2)
            finally:
                for trial in self.running.values():
                    self._give_up(trial.number)

    @property
    def _state(self):
        return self.optuna.trial.TrialState

    def _ask(self, n_trials: int) -> None:
        """Begin a trial, unless another call was quicker to begin the last that is wanted."""
        trial = self.study.ask()
        trial.set_user_attr("caller", self.name)
        before = self.study.get_trials(deepcopy=False)[: trial.number]
        if sum("result" in t.user_attrs or t.state == self._state.RUNNING for t in before) >= n_trials:
            self._give_up(trial.number)
            return
        if self.sampler in ("tpe", "random"):
            self.study.sampler = self._sampler(trial.number)
        self.result.space.draw(trial)
        try:
            run = self.result.space.run(trial.params)
        except ValueError:  # rare, as none of many samples was like that: draw another
            self._give_up(trial.number)
            return
        look = partial(self._look, trial, run.training.eval_steps) if self.result.space.prune else None
        future = self.workers.submit(run.model, run.training, look, partial(self._keep, trial))
        self.running[future] = trial

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """Return what draws the trial of this number, the study's: so no two callers draw the same by chance."""
        seed = int(np.random.SeedSequence((self.seed, number)).generate_state(1)[0])
        if self.sampler == "random":
            return self.optuna.samplers.RandomSampler(seed=seed)
        return self.optuna.samplers.TPESampler(seed=seed, constant_liar=True)  # away from what is being tried just now

    def _look(self, trial: optuna.Trial, every: int, step: int, loss: float) -> bool:
        """Report a loss and return whether to go on."""
        try:
            trial.report(loss, step // every)
            return not trial.should_prune()
        except self.optuna.exceptions.UpdateFinishedTrialError:  # given up meanwhile
            return False

    def _keep(self, trial: optuna.Trial, result: dict) -> Path | None:
        """Return where to save the model, if it is the best so far; the study names it only after it is there."""
        if self.result.checkpoints is None or result["outcome"] != "finished":
            return None
        done = self.study.get_trials(deepcopy=False, states=(self._state.COMPLETE,))
        is_best = result["loss"] <= min((t.value for t in done), default=math.inf)
        return self.result.folder(trial.number) if is_best else None

    def _tell(self, trial: optuna.Trial, result: dict) -> None:
        kept = {name: value for name, value in result.items() if name not in ("curve", "evaluations")}
        with contextlib.suppress(self.optuna.exceptions.UpdateFinishedTrialError):  # given up meanwhile
            trial.set_user_attr("result", kept)
            self._finish(trial.number, kept)
        if self.result.checkpoints is not None:
            self._remove_models()

    def _finish(self, number: int, result: dict) -> None:
        states = {"pruned": self._state.PRUNED, "crashed": self._state.FAIL}
        if result["outcome"] in states:
            self.study.tell(number, state=states[result["outcome"]], skip_if_finished=True)
        else:
            value = math.inf if result["outcome"] == "diverged" else result["loss"]
            self.study.tell(number, value, skip_if_finished=True)

    def _give_up(self, number: int) -> None:
        """Let a trial fail whose run nobody makes any more; if only the last word was missing, say it."""
        result = self.study.get_trials(deepcopy=False)[number].user_attrs.get("result")
        with contextlib.suppress(self.optuna.exceptions.UpdateFinishedTrialError):  # just now somebody else did
            self._finish(number, result or {"outcome": "crashed"})

    def _remove_models(self) -> None:
        """Remove the models of all finished trials but the best."""
        trials = self.study.get_trials(deepcopy=False)
        best = min((t for t in trials if t.state == self._state.COMPLETE), key=lambda t: t.value, default=None)
        for number, folder in self.result.folders():
            if trials[number].state.is_finished() and (best is None or folder != self.result.folder(best.number)):
                shutil.rmtree(folder, ignore_errors=True)

    def _beat(self) -> None:
        """Show now and then that this call is alive, and give up the trials of those that have not for long."""
        now = time.monotonic()
        if now - self.last_beat < BEAT:
            return
        self.last_beat = now
        self.study.set_user_attr(f"beats of {self.name}", next(self.beats))
        beats = self.study.user_attrs
        for trial in self.study.get_trials(deepcopy=False, states=(self._state.RUNNING,)):
            caller = trial.user_attrs.get("caller", trial.number)  # killed before it could even say who it is
            beat = beats.get(f"beats of {caller}")
            if caller not in self.seen or self.seen[caller][0] != beat:
                self.seen[caller] = beat, now
            elif now - self.seen[caller][1] > GRACE and caller != self.name:
                self._give_up(trial.number)


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Return the trials that came to an end of their own, in that order."""
    trials = [t for t in study.get_trials(deepcopy=False) if t.state.is_finished() and "result" in t.user_attrs]
    return sorted(trials, key=lambda trial: trial.datetime_complete)


@dataclass(frozen=True, repr=False)
class SearchResult:
    """What a search has found so far; `study` is Optuna's own, for its plots. Print it to see the trials."""

    study: optuna.Study
    space: _Space
    checkpoints: Path | None

    @property
    def table(self) -> SweepTable:
        """The trials in the order in which they ended."""
        rows = [table_row(self.space.run(t.params), t.user_attrs["result"]) for t in _finished(self.study)]
        return SweepTable(tuple(self.space.distributions), rows)

    @property
    def tokens(self) -> int:
        """The tokens trained on in all trials together, the pruned and diverged ones too: what the search has cost."""
        return sum(row["tokens"] for row in self.table.rows)

    def best_so_far(self) -> tuple[list[int], list[float]]:
        """Return the tokens spent when each trial ended, and the lowest loss of a finished one up to then (or inf).

        Two searches are compared fairly at equal tokens, whatever number of trials they made of them.
        """
        rows = self.table.rows
        losses = [row["loss"] if row["outcome"] == "finished" else math.inf for row in rows]
        return list(itertools.accumulate(row["tokens"] for row in rows)), list(itertools.accumulate(losses, min))

    def best(self) -> dict[str, Any]:
        """Return the best trial: its axes, `loss`, `model` and `training`. Raises ValueError if none has finished."""
        return self.table.best()

    def best_model(self) -> GPT:
        """Open the model of the best trial. Raises ValueError if it was not kept."""
        self.best()
        number = self.study.best_trial.number
        if self.checkpoints is None or not self.folder(number).is_dir():
            raise ValueError(
                f"The model of the best trial, number {number}, was not kept in {self.checkpoints}: "
                "give `checkpoints` from the first call on, or train it again with the configs of best()."
            )
        return GPT.load(self.folder(number))

    def folder(self, number: int) -> Path:
        """Return where the model of a trial is, if it is the best."""
        return self.checkpoints / f"trial-{number:06d}"

    def folders(self) -> list[tuple[int, Path]]:
        """Return the number of the trial and the folder of each model that is there, finished or not."""
        found = [] if self.checkpoints is None else sorted(self.checkpoints.glob("trial-" + 6 * "[0-9]" + "*"))
        return [(int(folder.name[6:12]), folder) for folder in found]

    def refuse_other_models(self) -> None:
        """Raise ValueError if there are models of trials that this study has not begun: it would mix them up."""
        folders = self.folders()
        if folders and folders[-1][0] >= len(self.study.get_trials(deepcopy=False)):
            raise ValueError(f"{folders[-1][1]} belongs to another search: choose another folder for checkpoints.")

    def importances(self) -> dict[str, float]:
        """Return how much of the spread of the loss each axis explains, the largest first: PED-ANOVA, summing to 1.

        Pruned and diverged trials are not in it. Raises ValueError for fewer than four finished trials.
        """
        if sum(row["outcome"] == "finished" for row in self.table.rows) < 4:
            raise ValueError("Importances need four finished trials or more: search with a larger n_trials.")
        importance = _optuna().importance
        return importance.get_param_importances(self.study, evaluator=importance.PedAnovaImportanceEvaluator())

    def __repr__(self) -> str:
        return str(self.table)

    def _repr_html_(self) -> str:
        return self.table._repr_html_()
