"""Sweeps and search with real worker processes: equal to `train`, stopped, gone on with, crashed, killed."""

import itertools
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import optuna
import psutil
import pytest
import torch
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState

from gptcourse.model import GPT, GPTConfig
from gptcourse.sweeps import available_cores, grids, search, searches, sweep, workers
from gptcourse.sweeps.grids import SweepTable
from gptcourse.sweeps.workers import CURVE_POINTS, Workers
from gptcourse.training import DivergedError, TrainingConfig, evaluate, train

ROOT = Path(__file__).resolve().parents[1]
TOKENS = torch.arange(400) ** 2 % 17
VALIDATION = TOKENS[:50]
MODEL = GPTConfig(17, 8, 16, 1, 2, dropout=0.1)
TRAINING = TrainingConfig(6, 2, 1e-2, eval_steps=2)
BOTH = {"tokens": TOKENS, "validation_tokens": VALIDATION}
QUIET = {"processes": 1, "progress": False}
SHAPES = [{"n_layer": 1, "n_embd": 16}, {"n_layer": 2, "n_embd": 8, "n_head": 1}]
IMPOSSIBLE = 2**44  # numbers per token: a petabyte of weights, which no machine gives
unix_only = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Count threads as the workers do: bits are promised for one number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_process(monkeypatch):
    """Let nothing start a worker."""
    monkeypatch.setattr(workers.subprocess, "Popen", lambda *_, **__: pytest.fail("a worker was started"))


def trained(model_config, config):
    """Return a model and its history, or None if it diverges, trained in this process."""
    torch.manual_seed(config.seed)
    model = GPT(model_config)
    try:
        return model, train(model, TOKENS, config, validation_tokens=VALIDATION, device="cpu", progress=False)
    except DivergedError:
        return None


def wait_until(condition):
    """Wait until the condition holds; fail after two minutes."""
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


# ---- A sweep

GRID = {"learning_rate": [1e-3, 1e-2, 1e6], "shape": [*SHAPES, {"n_embd": IMPOSSIBLE}]}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """The table of a sweep in which runs finish, diverge and crash, and the file of its results."""
    path = tmp_path_factory.mktemp("sweep") / "new folder" / "results.jsonl"
    return sweep(MODEL, TRAINING, GRID, **BOTH, seeds=(0, 3), results=path, **QUIET), path


def test_a_run_of_a_sweep_equals_the_same_train_call_bit_for_bit(swept):
    finished = [row for row in swept[0].rows if row["outcome"] == "finished"]
    assert len(finished) == 8
    for row in finished:
        shape = next(shape for shape in SHAPES if grids.label(shape) == row["shape"])
        config = replace(TRAINING, learning_rate=row["learning_rate"], seed=row["seed"])
        assert (row["model"], row["training"]) == (replace(MODEL, **shape), config)
        history = trained(row["model"], row["training"])[1]
        assert row["loss"] == history.eval_loss[-1]
        assert row["curve"] == list(map(list, zip(history.step, history.loss, strict=True)))
        assert row["evaluations"] == list(map(list, zip(history.eval_step, history.eval_loss, strict=True)))
        assert (row["tokens"], row["parameters"]) == (6 * 2 * 8, row["model"].num_parameters)


def test_the_rows_are_the_grid_times_the_seeds_in_order(swept):
    shapes = [grids.label(shape) for shape in GRID["shape"]]
    expected = list(itertools.product(GRID["learning_rate"], shapes, (0, 3)))
    assert [(row["learning_rate"], row["shape"], row["seed"]) for row in swept[0].rows] == expected
    assert swept[0].missing == 0


def test_a_run_that_diverges_is_a_result_and_one_that_crashes_costs_itself_alone(swept):
    for row in swept[0].rows:
        if row["shape"] == f"n_embd={IMPOSSIBLE}":
            assert row["outcome"] == "crashed" and math.isnan(row["loss"]) and "RuntimeError: " in row["reason"]
        elif row["learning_rate"] == 1e6:
            assert row["outcome"] == "diverged" and row["loss"] == math.inf
            assert trained(row["model"], row["training"]) is None
        else:
            assert row["outcome"] == "finished"


def test_medians_and_bands_are_those_over_the_seeds(swept):
    part = swept[0].where(shape=SHAPES[1])
    bands = part.median("learning_rate")
    assert bands.values == GRID["learning_rate"]
    for at, rate in enumerate(bands.values):
        losses = [row["loss"] for row in part.rows if row["learning_rate"] == rate]
        assert (bands.median[at], bands.low[at], bands.high[at]) == (statistics.median(losses), *sorted(losses))


def test_a_median_over_different_settings_is_refused(swept):
    with pytest.raises(ValueError, match=r"shape varies as well as learning_rate: .*where\(shape=…\)"):
        swept[0].median("learning_rate")
    with pytest.raises(ValueError, match="no axis 'batch_size': its axes are learning_rate, shape"):
        swept[0].median("batch_size")
    with pytest.raises(ValueError, match=r"No run has learning_rate = 3: there are 0.001, 0.01, "):
        swept[0].where(learning_rate=3)


def test_the_best_combination_has_the_lowest_median(swept):
    table, best = swept[0], swept[0].best()
    medians = []
    for shape in SHAPES:
        medians += table.where(shape=shape).median("learning_rate").median
    assert best["loss"] == min(medians)
    assert best["training"] == replace(TRAINING, learning_rate=best["learning_rate"], seed=0)
    with pytest.raises(ValueError, match=r"there is no best one \(RuntimeError: "):
        table.where(shape={"n_embd": IMPOSSIBLE}).best()


def test_the_table_can_be_read_as_text_and_in_a_notebook(swept):
    lines = str(swept[0]).splitlines()
    assert repr(swept[0]) == str(swept[0])  # a notebook keeps it as text
    assert lines[0].split() == ["learning_rate", "shape", "seed", "outcome", "loss", "parameters", "tokens", "seconds"]
    assert len(lines) == 1 + 18 + 6 and lines[-1].startswith("Crashed: RuntimeError")
    row = swept[0].rows[0] | {"shape": "<b>", "seconds": 1.0}
    page = SweepTable(("shape",), [row], missing=2)._repr_html_()
    assert "<td>&lt;b&gt;</td><td>0</td><td>finished</td>" in page and "<b>" not in page
    assert "Not made yet: 2." in page


# ---- Stopped and gone on with


def test_what_is_there_is_not_made_again(swept, no_process):
    table, path = swept
    before = path.read_bytes()
    grid = {"learning_rate": GRID["learning_rate"], "shape": SHAPES}
    again = sweep(MODEL, TRAINING, grid, **BOTH, seeds=(3,), results=path, **QUIET)
    assert again.rows == [row for row in table.rows if row["seed"] == 3 and row["outcome"] != "crashed"]
    assert path.read_bytes() == before


def test_a_half_written_line_and_a_crashed_run_are_made_again(swept, tmp_path, monkeypatch):
    lines = swept[1].read_bytes().splitlines(keepends=True)
    whole = [line for line in lines if json.loads(line)["outcome"] != "crashed"]
    results = list(map(json.loads, whole))
    crashed = json.dumps(results[0] | {"outcome": "crashed", "reason": "no memory"}).encode() + b"\n"
    path = tmp_path / "results.jsonl"
    path.write_bytes(crashed + b"".join(whole[1:-1]) + whole[-1][:-20])
    made = []

    def make(workers, runs, keep, progress):
        for run in runs:
            made.append(settings_of(run))
            keep(run, {name: results[0 if len(made) == 1 else -1][name] for name in ("outcome", "loss")})

    def settings_of(run):
        return {"model": asdict(run.model), "training": asdict(run.training)}

    monkeypatch.setattr(grids, "_make", make)
    grid = {"learning_rate": GRID["learning_rate"], "shape": SHAPES}
    sweep(MODEL, TRAINING, grid, **BOTH, seeds=(0, 3), results=path, **QUIET)
    assert made == [{name: results[at][name] for name in ("model", "training")} for at in (0, -1)]
    after = path.read_bytes().splitlines(keepends=True)
    assert after[:-2] == [crashed, *whole[1:-1]]
    assert [json.loads(line)["model"] for line in after[-2:]] == [settings["model"] for settings in made]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: line | {"data": {"tokens": "others"}}, "Line 2 of .* belongs to a sweep over other tokens"),
        (lambda line: line | {"format": 0}, "Line 2 of .* other tokens"),
        (lambda line: line | {"training": {"steps": 3}}, "Line 2 of .* is no result of a sweep by this version"),
        (lambda line: ["a", "list"], "Line 2 of .* is no result"),
    ],
)
def test_the_file_of_another_sweep_is_refused_and_left_alone(swept, tmp_path, no_process, change, message):
    first, second = map(json.loads, swept[1].read_bytes().splitlines()[:2])
    path = tmp_path / "results.jsonl"
    content = "".join(json.dumps(line) + "\n" for line in (first, change(second))).encode()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        sweep(MODEL, TRAINING, GRID, **BOTH, results=path, **QUIET)
    assert path.read_bytes() == content


def test_a_file_that_is_no_sweeps_is_left_alone(tmp_path, no_process):
    for content in (b"my notes", b"my notes\n", b'{"format'[::-1]):
        path = tmp_path / "notes.txt"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is no result of a sweep"):
            sweep(MODEL, TRAINING, GRID, **BOTH, results=path, **QUIET)
        assert path.read_bytes() == content


CTRL_C = """
import sys
import torch
from gptcourse.model import GPTConfig
from gptcourse.sweeps import sweep
from gptcourse.training import TrainingConfig

tokens = torch.arange(400) ** 2 % 17
table = sweep(
    GPTConfig(17, 8, 16, 1, 2), TrainingConfig(2, 2, 1e-2), {"steps": [2, 10**8, 10**8 + 1]},
    tokens=tokens, validation_tokens=tokens[:50], results=sys.argv[1], processes=1, progress=False,
)
print([row["outcome"] for row in table.rows], table.missing)
"""


@unix_only
def test_ctrl_c_keeps_what_has_finished_and_leaves_no_process(tmp_path):
    path = tmp_path / "results.jsonl"
    # As in a terminal, the signal goes to the whole group: the worker must leave the decision to its parent.
    with subprocess.Popen(
        [sys.executable, "-c", CTRL_C, path], env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        wait_until(lambda: path.exists() and b"\n" in path.read_bytes())  # the first run has ended, the second begun
        (worker,) = psutil.Process(process.pid).children()
        os.killpg(process.pid, signal.SIGINT)
        assert process.communicate(timeout=120)[0] == "['finished'] 2\n"
    assert process.returncode == 0 and not worker.is_running()
    assert path.read_bytes().count(b"\n") == 1


# ---- What cannot be right is said before anything begins


@pytest.mark.parametrize(
    ("grid", "options", "message"),
    [
        ({"learnign_rate": [1]}, {}, "'learnign_rate' is no setting that can be tried: there are .*learning_rate, "),
        ({"shape": [{"layers": 1}]}, {}, "'layers' is no setting.*n_layer"),
        ({"seed": [1, 2]}, {}, "'seed' is no setting that can be tried: seeds are given as seeds="),
        ({"n_layer": [1], "shape": SHAPES}, {}, "Two axes set 'n_layer'"),
        ({"learning_rate": 1e-3}, {}, "'learning_rate' must be a list of the values to try, not 0.001"),
        ({"lr_scheduler_type": "cosine"}, {}, "must be a list of the values to try, not 'cosine'"),
        ({"learning_rate": []}, {}, "must be a list of the values to try, not"),
        ({"learning_rate": [1e-3, -1]}, {}, "combination learning_rate=-1 makes no run: learning_rate must be"),
        ({"n_embd": [16, 17], "steps": [5]}, {}, "combination n_embd=17, steps=5 makes no run: n_embd 17 does not"),
        ({"warmup_steps": [0, 6]}, {}, "makes no run: warmup_steps"),
        ({"sequence_length": [9]}, {}, "sequence_length 9 is longer than n_positions 8"),
        ({"vocab_size": [17, 5]}, {}, "training tokens go from 0 to 16, but the model knows ids from 0 to 4"),
        ({"n_positions": [8, 500]}, {}, "training tokens are 400, but at least 501 are needed"),
        ({"steps": [5]}, {"seeds": ()}, "at least one whole number, such as range"),
        ({"steps": [5]}, {"seeds": 3}, r"such as range\(3\), not 3"),
        ({"steps": [5]}, {"seeds": (-1,)}, "seed must be a whole number, 0 or more"),
        ({"steps": [5]}, {"processes": 0}, "processes is 0, but"),
        ({"steps": [5]}, {"validation_tokens": [0.5, 1.5]}, "validation tokens must be whole numbers"),
        ({"steps": [5]}, {"derive": lambda s: s.update(steps=6)}, "derive must return the dict .* returned None"),
        ({"share": [0.1]}, {"derive": lambda s: s | {"steps": 5}}, "'share' is no setting"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_in_one_sentence(grid, options, message, no_process):
    with pytest.raises(ValueError, match=message) as caught:
        sweep(MODEL, TRAINING, grid, **BOTH | QUIET | options)
    assert "\n" not in str(caught.value)


def test_settings_can_be_derived_from_others_so_that_all_runs_cost_the_same():
    def derive(settings):
        steps = 24 // settings["batch_size"]
        return settings | {"steps": steps, "warmup_steps": round(settings.pop("warm-up") * steps)}

    run = grids.configured(MODEL, TRAINING, {"batch_size": 3, "warm-up": 0.25}, derive)
    assert (run.training.batch_size, run.training.steps, run.training.warmup_steps) == (3, 8, 2)
    assert run.axes == {"batch_size": 3, "warm-up": 0.25}


# ---- Workers


def test_workers_survive_runs_that_raise_or_are_killed_and_stop_and_save_when_told(tmp_path):
    with Workers(TOKENS, VALIDATION, 1) as team:

        def kill(*_):
            team.all[0].process.kill()
            team.all[0].process.wait()

        bad = team.submit(replace(MODEL, vocab_size=5), TRAINING).result()
        assert bad["outcome"] == "crashed" and bad["reason"].startswith("ValueError: The training tokens go from 0")
        first = team.all[0].process.pid
        killed = team.submit(MODEL, TRAINING, kill).result()
        assert killed["outcome"] == "crashed"
        assert os.name == "nt" or "killed by SIGKILL" in killed["reason"]
        pruned = team.submit(MODEL, TRAINING, lambda step, loss: step < 4).result()
        saved = team.submit(MODEL, TRAINING, None, lambda result: tmp_path / "model").result()
        second = team.all[0].process.pid
        unsaved = team.submit(MODEL, TRAINING, None, lambda result: tmp_path / "no" / "\0").result()
        assert unsaved["outcome"] == "crashed"
    model, history = trained(MODEL, TRAINING)
    assert (pruned["outcome"], pruned["loss"], pruned["tokens"]) == ("pruned", history.eval_loss[1], 4 * 2 * 8)
    assert (saved["outcome"], saved["loss"]) == ("finished", history.eval_loss[-1])
    assert all(map(torch.equal, GPT.load(tmp_path / "model").parameters(), model.parameters()))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert first != second and not psutil.pid_exists(first) and not psutil.pid_exists(second)


def test_a_worker_that_cannot_start_gives_its_last_words(monkeypatch):
    monkeypatch.setattr(workers, "COMMAND", "import nothing_of_this_name")
    with Workers(TOKENS, VALIDATION, 1) as team:
        result = team.submit(MODEL, TRAINING).result()
    assert result["reason"].startswith("its process ended with code 1: ModuleNotFoundError")


def test_a_long_curve_is_thinned_with_its_ends_kept():
    config = replace(TRAINING, steps=2 * CURVE_POINTS + 7, batch_size=1, eval_steps=0)
    settings = {"model": asdict(MODEL), "training": asdict(config)}
    result = workers._run(settings, TOKENS, VALIDATION, "cpu", None, None)[1]
    history = trained(MODEL, config)[1]
    steps = [step for step, _ in result["curve"]]
    assert len(steps) == CURVE_POINTS and (steps[0], steps[-1]) == (1, config.steps)
    assert set(np.diff(steps)) == {2, 3}
    assert all(history.loss[step - 1] == loss for step, loss in result["curve"])


CGROUPS = [
    ({"cpu.max": "100000 100000\n"}, 1),
    ({"cpu.max": "50000 100000\n"}, 1),
    ({"cpu.max": "max 100000\n"}, None),
    ({"cpu.max": "6400000 100000\n"}, None),
    ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
    ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
    ({}, None),
]


@pytest.mark.parametrize(("files", "expected"), CGROUPS)
def test_the_cores_counted_are_those_of_the_container(tmp_path, files, expected):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert available_cores(tmp_path) == (expected or bound)
    if sys.platform == "linux":  # binder/start must count the same
        environment = {k: v for k, v in os.environ.items() if not k.startswith("OMP_")} | {"CGROUP_ROOT": str(tmp_path)}
        command = [ROOT / "binder" / "start", "sh", "-c", "echo $OMP_NUM_THREADS"]
        counted = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        assert int(counted) == available_cores(tmp_path)


# ---- Search

SPACE = {
    "learning_rate": FloatDistribution(1e-3, 1e3, log=True),
    "batch_size": [1, 2],
    "shape": SHAPES,
    "adam_beta2": FloatDistribution(0.9, 0.99),
    "warmup_steps": IntDistribution(0, 3),
}
SEARCHED = replace(TRAINING, steps=12, eval_steps=0)


def equal_tokens(settings):
    return settings | {"steps": 24 // settings["batch_size"]}


def searching(n_trials, storage, space=SPACE, **options):
    options = {"derive": equal_tokens} | QUIET | BOTH | options
    return search(MODEL, SEARCHED, space, n_trials=n_trials, storage=storage, **options)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A search of 16 trials in a journal file, its storage, and its folder of models."""
    folder = tmp_path_factory.mktemp("search")
    storage, checkpoints = folder / "new folder" / "study.journal", folder / "models"
    return searching(16, storage, checkpoints=checkpoints), storage, checkpoints


def test_the_best_trial_equals_the_same_train_call_and_its_model_is_the_one_kept(found):
    result, _, checkpoints = found
    best = result.best()
    model, history = trained(best["model"], best["training"])
    assert best["loss"] == history.eval_loss[-1] == result.study.best_value
    assert best["loss"] == min(row["loss"] for row in result.table.rows if row["outcome"] == "finished")
    assert [path.name for path in checkpoints.iterdir()] == [f"trial-{result.study.best_trial.number:06d}"]
    kept = result.best_model()
    assert all(map(torch.equal, kept.parameters(), model.parameters()))
    assert evaluate(kept, VALIDATION, batch_size=best["training"].batch_size) == best["loss"]


def test_the_tokens_of_all_trials_are_counted_and_pruned_ones_cost_less(found):
    rows = found[0].table.rows
    assert {"finished", "pruned", "diverged"} <= {row["outcome"] for row in rows} and len(rows) == 16
    for row in rows:
        assert row["training"].steps * row["training"].batch_size == 24
        full = 24 * 8
        assert row["tokens"] == full if row["outcome"] == "finished" else row["tokens"] < full
    assert found[0].tokens == sum(row["tokens"] for row in rows)


def test_the_best_so_far_never_rises_and_ends_with_the_best_and_the_whole_budget(found):
    tokens, losses = found[0].best_so_far()
    assert len(tokens) == 16 and tokens[-1] == found[0].tokens and losses[-1] == found[0].best()["loss"]
    assert (np.diff(tokens) > 0).all()
    assert all(after <= before for before, after in itertools.pairwise(losses))


def test_a_trial_was_pruned_for_being_worse_than_the_median_at_the_same_place(found):
    trials = found[0].study.trials
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    for trial in pruned:
        place, best = trial.last_step, min(trial.intermediate_values.values())
        before = [t for t in trials[: trial.number] if t.state == TrialState.COMPLETE]
        assert best > statistics.median(t.intermediate_values[place] for t in before if place in t.intermediate_values)
    assert all(trial.last_step < searches.LOOKS for trial in pruned)


def test_importances_are_shares_of_the_axes_and_need_a_few_finished_trials(found):
    shares = found[0].importances()
    assert shares.keys() == SPACE.keys() and sum(shares.values()) == pytest.approx(1)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)


def test_a_finished_search_is_read_without_training_and_shows_its_trials(found, no_process):
    result, storage, checkpoints = found
    again = searching(16, storage, checkpoints=checkpoints)
    assert again.table.rows == result.table.rows
    assert str(again) == str(result) and "pruned" in str(result) and "<td>pruned</td>" in result._repr_html_()
    assert again.best_model().config == result.best()["model"]


@pytest.mark.parametrize(
    ("change", "others"),
    [
        ({"space": SPACE | {"batch_size": [2, 1, 4]}}, "another space:"),
        ({"tokens": TOKENS[1:], "prune": False}, "another tokens and another prune:"),
    ],
)
def test_a_study_of_another_search_is_refused(found, no_process, change, others):
    with pytest.raises(ValueError, match=f"was begun with {others}"):
        searching(17, found[1], **change)


def test_a_best_model_that_was_not_kept_is_named(found, no_process):
    with pytest.raises(ValueError, match=r"model of the best trial, number .* was not kept in None"):
        searching(16, found[1]).best_model()


def test_the_models_of_another_search_are_not_mixed_up(found, tmp_path, no_process):
    with pytest.raises(ValueError, match=r"trial-\d{6} belongs to another search: choose another folder"):
        searching(1, tmp_path / "new", checkpoints=found[2])


def test_a_worker_killed_in_the_middle_of_a_trial_costs_that_trial_alone(tmp_path, monkeypatch):
    look = searches._Search._look

    def kill_the_first(self, trial, *rest):
        if trial.number == 0:
            self.workers.all[0].process.kill()
        return look(self, trial, *rest)

    monkeypatch.setattr(searches._Search, "_look", kill_the_first)
    result = searching(2, tmp_path / "study", sampler="random")
    killed, other = result.table.rows
    assert (killed["outcome"], killed["tokens"]) == ("crashed", 0)
    assert os.name == "nt" or "killed by SIGKILL" in killed["reason"]
    assert other["outcome"] in ("finished", "diverged")
    assert [trial.state for trial in result.study.trials] == [TrialState.FAIL, TrialState.COMPLETE]


@pytest.mark.parametrize(
    ("space", "options", "message"),
    [
        ({"learnign_rate": [1]}, {}, "'learnign_rate' is no setting"),
        ({"learning_rate": (1e-4, 1e-2)}, {"n_trials": 0}, "n_trials is 0"),
        ({"learning_rate": 1e-4}, {}, "must be a list of choices or one of Optuna's distributions, such as"),
        ({"learning_rate": FloatDistribution(-1, 1)}, {}, "makes no run: learning_rate must be a number above 0"),
        ({"n_embd": IntDistribution(1, 16)}, {}, "makes no run: n_embd .* does not divide among n_head 2"),
        ({"steps": [5]}, {"sampler": optuna.samplers.GridSampler({"steps": [5]})}, "give it to sweep"),
        ({"steps": [5]}, {"sampler": "grid"}, 'sampler is \'grid\', but it must be "tpe", "random" or'),
    ],
)
def test_a_search_that_cannot_be_is_refused_in_one_sentence(space, options, message, no_process):
    with pytest.raises(ValueError, match=message) as caught:
        search(MODEL, SEARCHED, space, **{"n_trials": 1} | BOTH | QUIET | options)
    assert "\n" not in str(caught.value)


def test_without_optuna_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r'pip install "gptcourse\[tune\]"'):
        searching(1, None)


# Searches whose runs are arithmetic: what is tested is what the study is told, and by whom


class Arithmetic:
    """In place of Workers: the loss is the distance of the learning rate from 1, in powers of ten."""

    def __init__(self, tokens, validation_tokens, processes, device):
        self.all = [None] * processes

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, model, config, look, keep):
        loss, outcome = abs(math.log10(config.learning_rate)), "finished"
        for step in range(config.eval_steps or config.steps, config.steps, config.eval_steps or config.steps):
            if outcome == "finished" and look is not None and not look(step, loss):
                outcome = "pruned"
        result = {"outcome": outcome, "loss": loss, "tokens": 10, "seconds": 0.0}
        future = Future()
        future.set_result(result)
        return future


@pytest.fixture
def arithmetic(monkeypatch):
    monkeypatch.setattr(searches, "Workers", Arithmetic)


def params(result):
    return [trial.params for trial in result.study.trials]


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_search_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path, arithmetic, sampler):
    whole = searching(13, None, sampler=sampler, seed=5)
    for n_trials in (3, 12, 13):
        parts = searching(n_trials, tmp_path / "parts", sampler=sampler, seed=5)
        assert len(parts.study.trials) == n_trials
    assert params(parts) == params(whole)
    assert [row["outcome"] for row in parts.table.rows] == [row["outcome"] for row in whole.table.rows]
    assert params(searching(1, None, sampler=sampler, seed=6))[0] != params(whole)[0]


def test_tpe_comes_nearer_to_the_best_rate_than_chance_does(arithmetic):
    space = {"learning_rate": FloatDistribution(1e-6, 1e6, log=True)}
    losses = {
        sampler: [searching(40, None, space, sampler=sampler, seed=seed, derive=None, prune=False) for seed in range(5)]
        for sampler in ("tpe", "random")
    }
    medians = {name: statistics.median(r.best()["loss"] for r in results) for name, results in losses.items()}
    assert medians["tpe"] < medians["random"]
    assert {r.tokens for results in losses.values() for r in results} == {400}  # compared at equal budgets


def test_optunas_own_samplers_can_be_given(arithmetic):
    sampler = optuna.samplers.TPESampler(seed=0, multivariate=True, n_startup_trials=2)
    space = {name: SPACE[name] for name in ("learning_rate", "adam_beta2")}
    drawn = []
    sample = sampler.sample_relative
    sampler.sample_relative = lambda *given: drawn.append(sample(*given)) or drawn[-1]
    result = searching(6, None, space, sampler=sampler, derive=None)
    assert params(result)[2:] == drawn[2:] and len(drawn) == 6 and drawn[-1].keys() == space.keys()


def test_a_rare_combination_that_makes_no_run_is_drawn_anew(arithmetic, monkeypatch):
    monkeypatch.setattr(searches, "SAMPLED", 1)
    result = searching(6, None, {"n_head": [3, 2]}, sampler="random", derive=None)
    assert [row["n_head"] for row in result.table.rows] == [2] * 6
    others = [trial for trial in result.study.trials if trial.params["n_head"] == 3]
    assert others and {trial.state for trial in others} == {TrialState.FAIL}


def test_callers_share_a_study_without_a_trial_too_many_or_one_made_twice(tmp_path, arithmetic):
    storage, faults = tmp_path / "shared", []

    def call():
        try:
            searching(20, storage, sampler="random")
        except BaseException as fault:
            faults.append(fault)

    searching(1, storage, sampler="random")
    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not faults
    study = searching(20, storage).study
    counted = [trial for trial in study.trials if "result" in trial.user_attrs]
    assert len(counted) == 20 and len({trial.params["learning_rate"] for trial in counted}) == 20
    assert {trial.state for trial in study.trials} <= {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}


def test_ctrl_c_ends_a_search_and_gives_its_trials_up_at_once(tmp_path, monkeypatch):
    class Endless(Arithmetic):
        def submit(self, *_):
            signal.raise_signal(signal.SIGINT)
            return Future()

    monkeypatch.setattr(searches, "Workers", Endless)
    result = searching(5, tmp_path / "study")
    assert [trial.state for trial in result.study.trials] == [TrialState.FAIL] and not result.table.rows
    monkeypatch.setattr(searches, "Workers", Arithmetic)
    assert len(searching(5, tmp_path / "study").table.rows) == 5


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_a_trial_whose_caller_is_gone_is_given_up_and_its_last_word_is_said(tmp_path, arithmetic, monkeypatch, kind):
    monkeypatch.setattr(searches, "BEAT", 0.05)
    monkeypatch.setattr(searches, "GRACE", 0.3)
    storage = tmp_path / "study" if kind == "journal" else f"sqlite:///{tmp_path}/study.db"
    study = searching(1, storage, prune=False).study
    study.sampler = optuna.samplers.RandomSampler(seed=1)
    silent, done = study.ask(), study.ask(study.trials[0].distributions)
    done.set_user_attr("caller", "somebody who was killed before the very end")
    done.set_user_attr("result", {"outcome": "finished", "loss": 0.125, "tokens": 10, "seconds": 0.0})
    result = searching(4, storage, prune=False)
    states = [trial.state for trial in result.study.trials]
    assert states[silent.number] == TrialState.FAIL
    assert states[done.number] == TrialState.COMPLETE and result.study.trials[done.number].value == 0.125
    assert len(result.table.rows) == 4 and TrialState.RUNNING not in states


def test_a_call_that_others_gave_up_too_early_drops_that_trial_and_goes_on(tmp_path, monkeypatch):
    told = []

    class GivenUp(Arithmetic):
        def submit(self, model, config, look, keep):
            if not told:
                study = optuna.load_study(study_name="search", storage=f"sqlite:///{tmp_path}/study.db")
                study.tell(0, state=TrialState.FAIL)
            future = super().submit(model, config, look, keep)
            told.append(future.result()["outcome"])
            return future

    monkeypatch.setattr(searches, "Workers", GivenUp)
    result = searching(2, f"sqlite:///{tmp_path}/study.db")
    assert told[0] == "pruned"  # it was told to stop at the first look
    assert [trial.state for trial in result.study.trials] == [TrialState.FAIL] + 2 * [TrialState.COMPLETE]
    assert len(result.table.rows) == 2


KILLED = """
import sys
import time
from gptcourse.sweeps import searches
from test_sweeps import searching

def look(*_):
    print("in the middle", flush=True)
    time.sleep(600)

searches._Search._look = look
searching(3, sys.argv[1], sampler="random")
"""


def test_a_search_killed_in_the_middle_leaves_nothing_stuck(tmp_path, monkeypatch):
    storage, paths = tmp_path / "study", os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"PYTHONPATH": paths}
    with subprocess.Popen([sys.executable, "-c", KILLED, storage], env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline().strip() == b"in the middle"
        (worker,) = psutil.Process(process.pid).children()
        process.kill()
    psutil.wait_procs([worker], timeout=120)
    assert not worker.is_running()  # its parent could not even say goodbye
    monkeypatch.setattr(searches, "BEAT", 0.05)
    monkeypatch.setattr(searches, "GRACE", 0.3)
    monkeypatch.setattr(searches, "Workers", Arithmetic)
    result = searching(3, storage, sampler="random")
    assert result.study.trials[0].state == TrialState.FAIL
    assert len(result.table.rows) == 3 and TrialState.RUNNING not in {t.state for t in result.study.trials}
