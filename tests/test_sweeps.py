"""Sweeps and search: equal to `train`, stopped, killed and gone on with; and what is refused before they begin."""

import itertools
import json
import math
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import psutil
import pytest
import torch
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from gptcourse import sweeps
from gptcourse.files import reserve, signed
from gptcourse.model import GPT, GPTConfig
from gptcourse.sweeps import CURVE_POINTS, LOOKS, Run, SweepTable, available_cores, configured, label, search, sweep
from gptcourse.training import DivergedError, History, TrainingConfig, train

pytestmark = pytest.mark.usefixtures("one_thread")
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


@pytest.fixture
def no_process(monkeypatch):
    """Let nothing start a worker."""
    monkeypatch.setattr(sweeps, "_worker", lambda *_: pytest.fail("a worker was started"))


def workers_here(monkeypatch, exit_code=None):
    """Make runs in this process, as starting one takes longer than what is tested; return the list of those begun."""
    begun = []

    def worker(*_):
        begun.append(SimpleNamespace(poll=lambda: exit_code))
        return nullcontext(begun[-1])

    def ask(_, run, limits):
        line = json.dumps([asdict(run.model), asdict(run.training), limits])
        return sweeps._result(*json.loads(line), BOTH, "cpu")

    monkeypatch.setattr(sweeps, "_worker", worker)
    monkeypatch.setattr(sweeps, "_ask", ask)
    return begun


def arithmetic(run, data, device, limits):
    """In place of training: the loss is the distance of the learning rate from 1, in powers of ten."""
    config, loss, history = run.training, abs(math.log10(run.training.learning_rate)), History()
    for step in range(1, config.steps + 1):
        history.step.append(step)
        if config.eval_steps and step % config.eval_steps == 0:
            history.eval_step.append(step)
            history.eval_loss.append(loss)
        if step < config.steps and loss > limits.get(len(history.eval_loss), math.inf):
            history.stopped = "callback"
            break
    evaluations = list(map(list, zip(history.eval_step, history.eval_loss, strict=True)))
    outcome = "pruned" if history.stopped else "finished"
    return {"outcome": outcome, "loss": loss, "tokens": 10, "seconds": 0.0, "curve": [], "evaluations": evaluations}


@pytest.fixture
def in_this_process(monkeypatch):
    """Make runs here: arithmetic ones."""
    workers_here(monkeypatch)
    monkeypatch.setattr(sweeps, "_train", arithmetic)


def trained(model_config, config):
    """Return the history of the same run made in this process, or None if it diverges."""
    torch.manual_seed(config.seed)
    try:
        return train(GPT(model_config), TOKENS, config, validation_tokens=VALIDATION, device="cpu", progress=False)
    except DivergedError:
        return None


def wait_until(condition):
    """Wait until the condition holds; fail after two minutes."""
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def workers_of(process):
    """Return the worker processes of a process."""
    return [child for child in process.children() if "gptcourse.sweeps" in child.cmdline()]


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
        shape = next(shape for shape in SHAPES if label(shape) == row["shape"])
        config = replace(TRAINING, learning_rate=row["learning_rate"], seed=row["seed"])
        assert (row["model"], row["training"]) == (replace(MODEL, **shape), config)
        history = trained(row["model"], row["training"])
        assert row["loss"] == history.eval_loss[-1]
        assert row["curve"] == list(map(list, zip(history.step, history.loss, strict=True)))
        assert row["evaluations"] == list(map(list, zip(history.eval_step, history.eval_loss, strict=True)))
        assert (row["tokens"], row["parameters"]) == (6 * 2 * 8, row["model"].num_parameters)


def test_a_growing_batch_counts_as_many_tokens_as_it_reads(monkeypatch):
    workers_here(monkeypatch)
    rows = sweep(MODEL, TRAINING, {"batch_ramp_steps": [0, 3]}, **BOTH, **QUIET).rows
    histories = [trained(row["model"], row["training"]) for row in rows]
    assert [row["tokens"] for row in rows] == [history.tokens[-1] for history in histories] == [96, 8 * (1 + 1 + 2 + 6)]


def test_the_rows_are_the_grid_times_the_seeds_and_a_crash_costs_its_run_alone(swept):
    rows = swept[0].rows
    expected = list(itertools.product(GRID["learning_rate"], map(label, GRID["shape"]), (0, 3)))
    assert [(row["learning_rate"], row["shape"], row["seed"]) for row in rows] == expected and swept[0].missing == 0
    for row in rows:
        if row["shape"] == f"n_embd={IMPOSSIBLE}":
            assert row["outcome"] == "crashed" and math.isnan(row["loss"]) and "RuntimeError: " in row["reason"]
        elif row["learning_rate"] == 1e6:
            assert row["outcome"] == "diverged" and row["loss"] == math.inf
            assert trained(row["model"], row["training"]) is None
        else:
            assert row["outcome"] == "finished"


def test_medians_and_bands_are_those_over_the_seeds_and_the_best_has_the_lowest_median(swept):
    table, best = swept[0], swept[0].best()
    medians = []
    for shape in SHAPES:
        part = table.where(shape=shape)
        bands = part.median("learning_rate")
        assert bands.values == GRID["learning_rate"]
        for at, rate in enumerate(bands.values):
            losses = [row["loss"] for row in part.rows if row["learning_rate"] == rate]
            assert (bands.median[at], bands.low[at], bands.high[at]) == (statistics.median(losses), *sorted(losses))
        medians += bands.median
    assert best["loss"] == min(medians)
    assert best["training"] == replace(TRAINING, learning_rate=best["learning_rate"], seed=0)


def test_a_table_refuses_what_it_cannot_answer(swept):
    table = swept[0]
    with pytest.raises(ValueError, match=r"shape varies as well as learning_rate: .*where\(shape=…\)"):
        table.median("learning_rate")
    with pytest.raises(ValueError, match="no axis 'batch_size': its axes are learning_rate, shape"):
        table.median("batch_size")
    with pytest.raises(ValueError, match=r"No run has learning_rate = 3: there are 0.001, 0.01, "):
        table.where(learning_rate=3)
    with pytest.raises(ValueError, match=r"there is no best one \(RuntimeError: "):
        table.where(shape={"n_embd": IMPOSSIBLE}).best()


def test_the_table_can_be_read_as_text(swept):
    lines = str(swept[0]).splitlines()
    assert repr(swept[0]) == str(swept[0])  # so that a notebook shows it
    assert lines[0].split() == ["learning_rate", "shape", "seed", "outcome", "loss", "parameters", "tokens", "seconds"]
    assert len(lines) == 1 + 18 + 6 and lines[-1].startswith("Crashed: RuntimeError")
    assert str(SweepTable(("shape",), swept[0].rows[:1], missing=2)).endswith(
        "Not made yet: 2. Call it again to go on."
    )


def test_a_long_curve_is_thinned_with_its_ends_kept():
    config = replace(TRAINING, steps=2 * CURVE_POINTS + 7, batch_size=1, eval_steps=0)
    curve, history = sweeps._train(Run(MODEL, config, {}), BOTH, "cpu", {})["curve"], trained(MODEL, config)
    steps = [step for step, _ in curve]
    assert len(steps) == CURVE_POINTS and (steps[0], steps[-1]) == (1, config.steps)
    assert set(np.diff(steps)) == {2, 3}
    assert all(history.loss[step - 1] == loss for step, loss in curve)


# ---- Stopped, killed, and gone on with


def resigned(line, **changes):
    """Return a line of a file of results with changes, as a version that writes such lines signs it."""
    entry = json.loads(line) | changes
    return json.dumps(signed({name: value for name, value in entry.items() if name != "sha256"})).encode() + b"\n"


def test_what_is_there_is_not_made_again_but_a_half_written_line_and_a_crashed_run_are(
    swept, tmp_path, no_process, monkeypatch
):
    grid, options = {"learning_rate": GRID["learning_rate"], "shape": SHAPES}, {**BOTH, **QUIET, "seeds": (0, 3)}
    whole = [
        line
        for line in swept[1].read_bytes().splitlines(keepends=True)
        if json.loads(line)["result"]["outcome"] != "crashed"
    ]
    path = tmp_path / "results.jsonl"
    path.write_bytes(b"".join(whole))
    again = sweep(MODEL, TRAINING, grid, **options, results=path)
    assert again.rows == [row for row in swept[0].rows if row["outcome"] != "crashed"]
    assert path.read_bytes() == b"".join(whole)
    crashed = resigned(whole[0], result={"outcome": "crashed", "reason": "no memory"})
    workers_here(monkeypatch)
    for n_written in (1, 14, len(whole[-1]) - 1):
        path.write_bytes(crashed + b"".join(whole[1:-1]) + whole[-1][:n_written])
        table = sweep(MODEL, TRAINING, grid, **options, results=path)
        assert [row["loss"] for row in table.rows] == [row["loss"] for row in again.rows]
        lines = path.read_bytes().splitlines(keepends=True)
        assert lines[:-2] == [crashed, *whole[1:-1]]
        assert [json.loads(line)["training"] for line in lines[-2:]] == [
            json.loads(whole[at])["training"] for at in (0, -1)
        ]


SCRIPT = """
import sys
import torch
from gptcourse.model import GPTConfig
from gptcourse.sweeps import sweep
from gptcourse.training import TrainingConfig

print("the script is run")
tokens = torch.arange(400) ** 2 % 17
table = sweep(
    GPTConfig(17, 8, 16, 1, 2), TrainingConfig(2, 2, 1e-2), {"steps": [2, 10**8, 10**8 + 1]},
    tokens=tokens, validation_tokens=tokens[:50], results=sys.argv[1], processes=1, progress=False,
)
print([row["outcome"] for row in table.rows], table.missing)
"""


@unix_only
@pytest.mark.parametrize(("how", "n_finished"), [(signal.SIGINT, 0), (signal.SIGINT, 1), (signal.SIGKILL, 1)])
def test_stopped_or_killed_a_script_keeps_what_has_finished_and_leaves_no_process(tmp_path, how, n_finished):
    script, path = tmp_path / "no guard.py", tmp_path / "results.jsonl"
    script.write_text(SCRIPT, encoding="utf-8")
    # As in a terminal, Ctrl-C goes to the whole group: the worker must leave the decision to its parent.
    with subprocess.Popen(
        [sys.executable, script, path], env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        parent = psutil.Process(process.pid)
        wait_until(lambda: path.exists() and path.read_bytes().count(b"\n") == n_finished and workers_of(parent))
        workers = workers_of(parent)  # where none has finished, it is still importing torch
        assert len(workers) == 1
        os.killpg(process.pid, how) if how == signal.SIGINT else process.kill()
        said = process.communicate(timeout=120)[0]
    psutil.wait_procs(workers, timeout=120)
    assert not workers[0].is_running() and path.read_bytes().count(b"\n") == n_finished
    if how == signal.SIGINT:
        assert said == f"the script is run\n{['finished'] * n_finished} {3 - n_finished}\n" and process.returncode == 0


def test_a_worker_killed_in_the_middle_of_a_run_costs_that_run_alone():
    here = psutil.Process()

    def kill_the_first():
        wait_until(lambda: workers_of(here))
        (worker,) = workers_of(here)
        wait_until(lambda: worker.num_threads() > 1)  # it has begun
        worker.kill()

    killer = threading.Thread(target=kill_the_first)
    killer.start()
    table = sweep(MODEL, replace(TRAINING, eval_steps=0), {"steps": [10**8, 3, 4]}, **BOTH, **QUIET)
    killer.join()
    assert [row["outcome"] for row in table.rows] == ["crashed", "finished", "finished"]
    assert table.rows[0]["reason"] == "its process was killed: often, memory ran out" and not workers_of(here)


def test_a_worker_killed_while_idle_costs_no_run(monkeypatch):
    begun = workers_here(monkeypatch, exit_code=-9)
    table = sweep(MODEL, TRAINING, {"steps": [3, 4]}, **BOTH, **QUIET)
    assert [row["outcome"] for row in table.rows] == ["finished", "finished"] and len(begun) == 2


def test_a_worker_killed_before_it_reads_its_run_costs_that_run_alone(tmp_path):
    with sweeps._worker(str(tmp_path), "cpu") as worker:
        worker.kill()
        worker.wait()
        assert sweeps._ask(worker, Run(MODEL, TRAINING, {}), {})["outcome"] == "crashed"


def test_a_worker_that_gives_nothing_gets_no_second_run():
    command = [sys.executable, "-c", "import os, time; os.close(1); time.sleep(60)"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        assert sweeps._ask(worker, Run(MODEL, TRAINING, {}), {})["outcome"] == "crashed"
        assert worker.poll() is not None


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
        ({"learning_rate": [1e-3, -1]}, {}, "combination learning_rate=-1 makes no run: learning_rate "),
        ({"n_embd": [16, 17], "steps": [5]}, {}, "combination n_embd=17, steps=5 makes no run: n_embd 17 "),
        ({"warmup_steps": [0, 6]}, {}, "makes no run: warmup_steps"),
        ({"sequence_length": [9]}, {}, "sequence_length 9 is longer than n_positions 8"),
        ({"vocab_size": [17, 5]}, {}, "training tokens go from 0 to 16, but the model knows ids from 0 to 4"),
        ({"n_positions": [8, 500]}, {}, "training tokens are 400, but at least 501 are needed"),
        ({"steps": [5]}, {"seeds": ()}, "at least one whole number, such as range"),
        ({"steps": [5]}, {"seeds": 3}, r"such as range\(3\), not 3"),
        ({"steps": [5]}, {"seeds": (-1,)}, "seed is -1, but it must be a whole number"),
        ({"steps": [5]}, {"processes": 0}, "processes is 0, but"),
        ({"steps": [5]}, {"device": "gpu"}, "no device 'gpu'"),
        ({"steps": [5]}, {"validation_tokens": [0.5, 1.5]}, "validation tokens must be whole numbers"),
        ({"steps": [5]}, {"derive": lambda s: s.update(steps=6)}, "derive must return the dict .* returned None"),
        ({"tokens": [{"steps": 5}]}, {}, "An axis cannot be called 'tokens'"),
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

    run = configured(MODEL, TRAINING, {"batch_size": 3, "warm-up": 0.25}, derive)
    assert (run.training.batch_size, run.training.steps, run.training.warmup_steps) == (3, 8, 2)
    assert run.axes == {"batch_size": 3, "warm-up": 0.25, "seed": 0}


def into_file(kind, path):
    """Begin a sweep or a search of three runs that are kept in the file."""
    if kind == "results":
        return sweep(MODEL, TRAINING, {"learning_rate": [0.1, 1, 10]}, **BOTH, **QUIET, results=path)
    return searching(3, path)


@pytest.fixture
def database(tmp_path):
    """The bytes of an SQLite file."""
    with sqlite3.connect(tmp_path / "database") as connection:
        connection.execute("create table t (a)")
    connection.close()
    return (tmp_path / "database").read_bytes()


@pytest.mark.parametrize("kind", ["results", "journal"])
def test_a_file_of_another_kind_or_a_damaged_one_is_refused_in_one_sentence_and_left_alone(
    tmp_path, in_this_process, database, kind
):
    into_file(kind, tmp_path / "good")
    first, second, *rest = (tmp_path / "good").read_bytes().splitlines(keepends=True)
    damaged = [b"my notes", b"my notes\n", b'{"format"[::-1]', database, first + second[:-20] + b"\n" + b"".join(rest)]
    damaged += [first + b'["a list"]\n', first + b"\xff\xfe\n", first + b'{"op_code":4}\n', first + b'{"format": 1}\n']
    damaged.append(first + first[: first.index(b":") + 1] + b" " * (kind == "results") + b"[" * 100_000 + b"\n")
    for content in damaged:
        path = tmp_path / "bad"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"(?s)bad.* (is no|lines of it are lost)") as caught:
            into_file(kind, path)
        assert "\n" not in str(caught.value) and path.read_bytes() == content
    with pytest.raises(ValueError, match=r"cannot be written \(.*directory\): choose another file"):
        into_file(kind, tmp_path)


@pytest.mark.parametrize("change", [{"data": {"tokens": "others"}}, {"format": 0}])
def test_the_results_of_other_tokens_or_versions_are_refused(tmp_path, in_this_process, change):
    path = tmp_path / "results.jsonl"
    into_file("results", path)
    first, second, _ = path.read_bytes().splitlines()
    path.write_bytes(first + b"\n" + resigned(second, **change))
    with pytest.raises(ValueError, match=r"Line 2 of .* belongs to a sweep over other tokens"):
        into_file("results", path)


@pytest.mark.parametrize("kind", ["results", "journal"])
def test_a_second_call_on_a_file_in_use_is_told_before_it_starts(tmp_path, no_process, kind):
    with (
        reserve(tmp_path / "file"),
        pytest.raises(ValueError, match=r"file is in use by another run: wait until it has ended"),
    ):
        into_file(kind, tmp_path / "file")


CGROUPS = [  # test_repository.py holds binder/start to the same
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
    """A search of 16 trials in a journal file, and that file."""
    storage = tmp_path_factory.mktemp("search") / "new folder" / "study.journal"
    return searching(16, storage), storage


def test_the_best_trial_equals_the_same_train_call(found):
    best = found[0].best()
    assert best["loss"] == trained(best["model"], best["training"]).eval_loss[-1] == found[0].study.best_value
    assert best["loss"] == min(row["loss"] for row in found[0].rows if row["outcome"] == "finished")


def test_a_search_that_was_begun_with_another_derive_is_refused(found):
    with pytest.raises(ValueError, match="begun with another derive"):
        searching(16, found[1], derive=lambda settings: settings | {"steps": 48 // settings["batch_size"]})


def test_a_search_that_was_stopped_says_how_many_trials_are_missing(monkeypatch):
    monkeypatch.setattr(sweeps, "_make", lambda *_: None)
    assert searching(3, None).missing == 3


def test_the_tokens_of_all_trials_are_counted(found):
    rows = found[0].rows
    assert {"finished", "pruned", "diverged"} <= {row["outcome"] for row in rows} and len(rows) == 16
    for row in rows:
        assert row["training"].steps * row["training"].batch_size == 24
        full = 24 * 8
        assert row["tokens"] == full if row["outcome"] == "finished" else row["tokens"] < full
    assert found[0].tokens == sum(row["tokens"] for row in rows)


def test_a_trial_was_pruned_for_being_worse_than_the_median_at_the_same_place(found):
    trials = found[0].study.trials
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    for trial in pruned:
        place, best = trial.last_step, min(trial.intermediate_values.values())
        before = [t for t in trials[: trial.number] if t.state == TrialState.COMPLETE]
        assert best > statistics.median(t.intermediate_values[place] for t in before if place in t.intermediate_values)
    assert pruned and all(trial.last_step < LOOKS for trial in pruned)


def test_importances_are_shares_of_the_axes_and_need_a_few_finished_trials(found):
    shares = found[0].importances()
    assert shares.keys() == SPACE.keys() and sum(shares.values()) == pytest.approx(1)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    with pytest.raises(ValueError, match="four finished trials"):
        replace(found[0], rows=found[0].rows[:3]).importances()


def test_a_finished_search_is_read_without_training_and_shows_its_trials(found, no_process):
    again = searching(16, found[1])
    assert again.rows == found[0].rows
    assert str(again) == str(found[0]) and "pruned" in str(again)


@pytest.mark.parametrize(
    ("change", "others"),
    [
        ({"space": SPACE | {"batch_size": [2, 1, 4]}}, "another space:"),
        ({"tokens": TOKENS[1:], "prune": False}, "another prune and another tokens:"),
    ],
)
def test_a_study_of_another_search_is_refused(found, no_process, change, others):
    with pytest.raises(ValueError, match=f"was begun with {others}"):
        searching(17, found[1], **change)


@pytest.mark.parametrize(
    ("space", "options", "message"),
    [
        ({"learnign_rate": [1]}, {}, "'learnign_rate' is no setting"),
        ({"learning_rate": (1e-4, 1e-2)}, {"n_trials": 0}, "n_trials is 0"),
        ({"learning_rate": 1e-4}, {}, "must be a list of choices or one of Optuna's distributions, such as"),
        ({"learning_rate": FloatDistribution(-1, 1)}, {}, "makes no run: learning_rate "),
        ({"n_embd": IntDistribution(1, 16)}, {}, "makes no run: n_embd .* n_head 2"),
        ({"steps": [5]}, {"sampler": "grid"}, 'sampler is \'grid\', but it must be "tpe" or "random"; sweep makes a'),
        ({"steps": [5]}, {"storage": "sqlite:///study.db"}, "'sqlite:///study.db', but it must be the path of a file"),
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


def params(result):
    return [trial.params for trial in result.study.trials]


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_search_that_was_stopped_or_killed_goes_on_as_if_it_had_not_been(tmp_path, in_this_process, sampler):
    whole, path = searching(13, None, sampler=sampler, seed=5), tmp_path / "parts"
    for n_trials in (3, 12, 13):
        parts = searching(n_trials, path, sampler=sampler, seed=5)
        assert len(parts.rows) == n_trials
        if n_trials == 12:  # killed while it wrote the twelfth
            os.truncate(path, path.stat().st_size - 40)
    assert params(parts) == params(whole)
    assert [row["outcome"] for row in parts.rows] == [row["outcome"] for row in whole.rows]
    assert params(searching(1, None, sampler=sampler, seed=6))[0] != params(whole)[0]


def test_ctrl_c_ends_a_search_and_the_next_call_makes_its_trials(tmp_path, in_this_process, monkeypatch):
    def interrupted(*_):
        signal.raise_signal(signal.SIGINT)
        return nullcontext()

    with monkeypatch.context() as patch:
        patch.setattr(sweeps, "_worker", interrupted)
        patch.setattr(sweeps, "_ask", lambda *_: time.sleep(0.5))
        assert searching(5, tmp_path / "study").rows == []
    result = searching(5, tmp_path / "study", sampler="random")
    assert params(result) == params(searching(5, None, sampler="random"))


def test_a_trial_that_crashes_is_counted_and_the_others_go_on(in_this_process, monkeypatch):
    calls = itertools.count()

    def crash_first(*given):
        if next(calls) == 0:
            raise MemoryError("too large")
        return arithmetic(*given)

    monkeypatch.setattr(sweeps, "_train", crash_first)
    result = searching(3, None, sampler="random")
    assert result.rows[0]["outcome"] == "crashed" and len(result.rows) == 3
    assert result.rows[0]["reason"] == "MemoryError: too large" and result.study.trials[0].state == TrialState.FAIL


def test_tpe_comes_nearer_to_the_best_rate_than_chance_does(in_this_process):
    space = {"learning_rate": FloatDistribution(1e-6, 1e6, log=True)}
    medians = {}
    for sampler in ("tpe", "random"):
        options = {"sampler": sampler, "derive": None, "prune": False}
        results = [searching(40, None, space, seed=seed, **options) for seed in range(5)]
        medians[sampler] = statistics.median(result.best()["loss"] for result in results)
        assert {result.tokens for result in results} == {400}  # compared at equal budgets
    assert medians["tpe"] < medians["random"]


def test_runs_are_pruned_where_optunas_median_pruner_would():
    pruner = optuna.pruners.MedianPruner(n_warmup_steps=2)
    study, rng = optuna.create_study(), np.random.default_rng(0)
    for n_ended in range(9):
        limits = sweeps._limits(study)
        for _ in range(20):
            losses = rng.random(rng.integers(1, LOOKS)).tolist()
            values = dict(enumerate(losses, start=1))
            running = create_trial(state=TrialState.RUNNING, intermediate_values=values)
            assert bool(pruner.prune(study, running)) is (min(losses) > limits.get(len(losses), math.inf))
        assert bool(limits) is (n_ended >= 5)
        study.add_trial(create_trial(value=1.0, intermediate_values=values))


def test_a_rare_combination_that_makes_no_run_is_drawn_anew(in_this_process, monkeypatch):
    monkeypatch.setattr(sweeps, "SAMPLED", 1)
    result = searching(6, None, {"n_head": [3, 2]}, sampler="random", derive=None)
    assert [row["n_head"] for row in result.rows] == [2] * 6
    assert [trial.user_attrs["drawn"] for trial in result.study.trials] != list(range(6))


@pytest.mark.parametrize("call", [sweep, search])
def test_a_full_disk_ends_in_one_sentence_and_the_next_call_goes_on(tmp_path, monkeypatch, in_this_process, call):
    def full(*_):
        raise OSError(28, "No space left on device")

    runs = {"learning_rate": [1e-2]}
    options = (
        BOTH | QUIET | ({"results": tmp_path / "r"} if call is sweep else {"storage": tmp_path / "r", "n_trials": 1})
    )
    with (
        monkeypatch.context() as patch,
        pytest.raises(ValueError, match="could not be written"),
    ):
        patch.setattr(sweeps, "append_line" if call is sweep else "_tell", full)
        call(MODEL, TRAINING, runs, **options)
    assert [row["outcome"] for row in call(MODEL, TRAINING, runs, **options).rows] == ["finished"]


def test_a_file_that_cannot_be_opened_is_free_when_it_was_mended(tmp_path):
    (tmp_path / "results.jsonl").mkdir()
    with pytest.raises(ValueError, match="cannot be written") as caught:  # which keeps what was made in it alive
        reserve(tmp_path / "results.jsonl")
    (tmp_path / "results.jsonl").rmdir()
    with reserve(tmp_path / "results.jsonl"):
        assert "cannot be written" in str(caught.value)
