"""Runs that are killed, interrupted or damaged, compared bit for bit with runs that never stopped."""

import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import gptcourse.files
from gptcourse.checkpoints import CheckpointError
from gptcourse.model import GPT, GPTConfig
from gptcourse.training import TrainingConfig, train

pytestmark = pytest.mark.usefixtures("one_thread")
TOKENS = torch.arange(400) ** 2 % 17
FILES = ("config.json", "model.safetensors", "optimizer.safetensors", "state.json")
STEPS = 9


def run(folder, model=None, tokens=TOKENS, validation_tokens=TOKENS[:50], callback=None, resume=True, **settings):
    """Train a tiny model with everything that could get out of step: dropout, accumulation, a schedule, evaluation."""
    torch.manual_seed(3)
    model = model or GPT(GPTConfig(17, 8, 16, 2, 2, dropout=0.2))
    given = {"steps": STEPS, "batch_size": 2, "learning_rate": 1e-2, "gradient_accumulation_steps": 2}
    config = TrainingConfig(**given | {"warmup_steps": 2, "eval_steps": 4, "save_steps": 3} | settings)
    options = {"checkpoint_dir": folder, "resume": resume, "callback": callback, "device": "cpu", "progress": False}
    return model, train(model, tokens, config, validation_tokens=validation_tokens, **options)


def content(folder, step=STEPS):
    """Return every byte of a checkpoint. Its digests make a difference anywhere a difference in state.json."""
    return {path.name: path.read_bytes() for path in (Path(folder) / f"step-{step:08d}").iterdir()}


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left.parameters(), right.parameters(), strict=True))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


# Killed


def block(pipe, message):
    pipe.send(message)
    time.sleep(600)


def child(folder, pipe, place, number):
    """Train in a process of its own; at the given place, for the number-th time, say so and wait to be killed."""
    torch.set_num_threads(1)
    n_calls = 0

    def count(*_):
        nonlocal n_calls
        n_calls += 1
        if n_calls == number:
            block(pipe, place)

    fsync, rmtree = gptcourse.files.fsync, shutil.rmtree

    def counted_fsync(path):
        if "trial" not in path.parts[-1] and "trial" not in path.parts[-2]:
            count()
        fsync(path)

    def half_rmtree(path, **options):
        if Path(path).name.startswith("step-") and Path(path).exists():
            (Path(path) / "model.safetensors").unlink()
            count()
        rmtree(path, **options)

    if place == "writing":
        gptcourse.files.fsync = counted_fsync
    if place == "removing":
        shutil.rmtree = half_rmtree
    run(folder, callback=count if place == "step" else None)
    pipe.send("end")


def start(folder, place="none", number=0, times=1):
    """Start the child, wait until it says where it is, kill it with SIGKILL, and return what it said."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["torch", "safetensors.torch", "pytest"])  # imported once, not by each child
    ours, theirs = context.Pipe()
    process = context.Process(target=child, args=(folder, theirs, place, number))
    process.start()
    assert ours.poll(120), "the child said nothing"
    said = ours.recv()
    process.kill()
    process.join()
    return said


def test_a_run_killed_at_every_step_ends_like_one_never_stopped(tmp_path, whole):
    for step in range(1, 4):  # the first checkpoint comes with step 3: until then each start begins anew
        assert start(tmp_path, "step", step) == "step"
    for number in (1, 2, 3, 1, 2):  # steps 4, 5, 6 after the checkpoint of step 3, then 7 and 8
        assert start(tmp_path, "step", number) == "step"
    assert start(tmp_path) == "end"
    assert content(tmp_path) == content(whole)


def test_a_run_killed_while_it_writes_ends_like_one_never_stopped(tmp_path, whole):
    for number in range(2, 8):  # before each fsync: four files, their folder, the folder of the renamed one
        assert start(tmp_path, "writing", number) == "writing"
        assert len(list(tmp_path.glob("step-????????"))) == (number == 7)
    for number in range(2, 8):  # the second checkpoint, next to a whole one
        assert start(tmp_path, "writing", number) == "writing"
    assert start(tmp_path, "removing", 1) == "removing"
    assert start(tmp_path) == "end"
    assert content(tmp_path) == content(whole)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [".lock", "step-00000006", "step-00000009"]


def test_a_mup_run_without_clipping_goes_on_bit_for_bit(tmp_path):
    def model():
        torch.manual_seed(3)
        return GPT(GPTConfig(17, 8, 16, 2, 2, dropout=0.2, tie_word_embeddings=False, mup_base_width=24))

    whole, history = run(tmp_path / "whole", model(), max_grad_norm=math.inf)
    run(tmp_path / "parts", model(), callback=lambda h: h.step[-1] == 4, max_grad_norm=math.inf)
    resumed, after = run(tmp_path / "parts", model(), max_grad_norm=math.inf)
    assert same(whole, resumed) and after == history
    assert content(tmp_path / "whole") == content(tmp_path / "parts")
    assert GPT.load(tmp_path / "parts" / "step-00000009").config == whole.config


# Interrupted

SCRIPT = """
import signal, sys, time
sys.path.insert(0, sys.argv[2])
from test_checkpoints import run
import torch
torch.set_num_threads(1)

def step_three(history):
    if history.step[-1] == 3:
        pressed, handle = [], signal.getsignal(signal.SIGINT)

        def tell(*arguments):
            handle(*arguments)
            pressed.append(True)
            print("pressed", flush=True)

        signal.signal(signal.SIGINT, tell)
        print("step 3", flush=True)
        while twice or not pressed:
            time.sleep(0.01)

twice = False
model, history = run(sys.argv[1], callback=step_three, save_steps=0)
print(history.stopped, history.step, flush=True)
twice = True
try:
    run(sys.argv[1] + "/other", callback=step_three)
except KeyboardInterrupt:
    print("at once", signal.getsignal(signal.SIGINT) is signal.default_int_handler, flush=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send SIGINT to one process")
def test_ctrl_c_in_a_real_process_stops_saves_and_can_be_resumed(tmp_path, whole):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(Path(__file__).parent)]
    root = str(Path(gptcourse.files.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout.readline() == "step 3\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "pressed\n"
        assert process.stdout.readline() == "interrupted [1, 2, 3]\n"
        assert process.stdout.readline() == "step 3\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "pressed\n"  # two signals at the same moment would arrive as one
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "at once True\n"
        assert process.wait(60) == 0
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000003"]
    assert run(tmp_path)[1].stopped is None
    assert content(tmp_path) == content(whole)


# Resumed in the same process


def test_a_run_stopped_anywhere_and_resumed_has_the_weights_and_history_of_the_whole(tmp_path):
    model, history = run(None, resume=False)
    for stop in range(1, STEPS):
        folder = tmp_path / str(stop)
        run(folder, callback=lambda history, stop=stop: history.step[-1] == stop)
        resumed, after = run(folder)
        assert same(model, resumed)
        assert after == history


def test_a_finished_run_is_read_back(whole):
    model, history = run(None, resume=False)
    again, after = run(whole)
    assert same(model, again)
    assert after == history


def test_only_the_last_two_checkpoints_are_kept_and_they_hold_what_is_promised(whole):
    assert [path.name for path in sorted(whole.iterdir())] == [".lock", "step-00000006", "step-00000009"]
    assert tuple(sorted(content(whole))) == FILES
    model, _ = run(None, resume=False)
    assert same(GPT.load(whole / "step-00000009"), model)


def test_no_resume_at_all_is_a_new_run(tmp_path, whole):
    run(tmp_path, resume=None)
    assert content(tmp_path) == content(whole)


def test_without_save_steps_only_the_end_is_saved(tmp_path):
    run(tmp_path, save_steps=0)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [".lock", "step-00000009"]


def test_other_shapes_than_gpt2_are_resumed_too(tmp_path):
    def rotary():
        torch.manual_seed(5)
        shape = {"position_embedding": "rotary", "norm": "rmsnorm", "tie_word_embeddings": False}
        return GPT(GPTConfig(17, 8, 16, 2, 2, **shape))

    model, history = run(None, rotary(), resume=False)
    run(tmp_path, rotary(), callback=lambda history: history.step[-1] == 5)
    resumed, after = run(tmp_path, rotary())
    assert same(model, resumed)
    assert after == history


def test_more_steps_may_be_added_while_the_rate_has_not_begun_to_fall(tmp_path):
    schedule = {"lr_scheduler_type": "warmup_stable_decay", "decay_steps": 3, "eval_steps": 3}
    model, history = run(None, resume=False, steps=15, **schedule)
    run(tmp_path, **schedule, callback=lambda history: history.step[-1] == 6)
    resumed, after = run(tmp_path, steps=15, **schedule)
    assert same(model, resumed)
    assert after == history


def test_cool_downs_from_one_trunk_are_the_runs_made_in_one_go(tmp_path):
    cooling = {"lr_scheduler_type": "warmup_stable_decay", "decay_steps": 3, "min_lr_ratio": 0.0}
    for steps in (6, 12):
        run(tmp_path / "trunk", lr_scheduler_type="constant", steps=steps)
        trunk = content(tmp_path / "trunk", steps)
        branch = {"folder": tmp_path / f"cool-{steps}", "resume": tmp_path / "trunk", "steps": steps + 3, **cooling}
        run(**branch, callback=lambda history: history.step[-1] % 3 == 1)  # stopped, it goes on from its own checkpoint
        cooled, history = run(**branch)
        whole, expected = run(None, resume=False, steps=steps + 3, **cooling)
        assert same(cooled, whole) and history.loss == expected.loss and history.learning_rate == expected.learning_rate
        assert content(tmp_path / "trunk", steps) == trunk


def test_a_branch_that_has_no_trunk_or_begins_where_the_rate_had_fallen_is_refused(tmp_path, whole):
    with pytest.raises(CheckpointError, match=r"^There is no checkpoint in .*nowhere, where this run is to begin\.$"):
        run(tmp_path / "branch", resume=tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"first 9 steps .*learning rates: resume with the old schedule"):
        run(tmp_path / "branch", resume=whole, lr_scheduler_type="constant")


# Damaged


def damage(path, how):
    data = path.read_bytes()
    if how == "removed":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "truncated":
        path.write_bytes(data[:-1])
    else:  # one bit, at a share of the length
        place = int(how * (len(data) - 1))
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])


@pytest.mark.parametrize("how", ["removed", "empty", "truncated", 0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(name, how, tmp_path, whole):
    folder = shutil.copytree(whole, tmp_path / "copy")
    damage(folder / "step-00000009" / name, how)
    made = []
    with pytest.warns(UserWarning, match=r"step-00000009 is damaged \(") as warned:
        run(folder, callback=lambda history: made.append(history.step[-1]))
    assert len(warned) == 1
    assert made == [7, 8, 9]
    assert content(folder) == content(whole)


def test_when_all_are_damaged_the_run_is_refused(tmp_path, whole):
    folder = shutil.copytree(whole, tmp_path / "copy")
    for path in folder.glob("*/model.safetensors"):
        damage(path, 0.5)
    model = GPT(GPTConfig(17, 8, 16, 2, 2, dropout=0.2))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.warns(UserWarning, match="is damaged"), pytest.raises(CheckpointError, match=r"No checkpoint .*\.$"):
        run(folder, model)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_damaged_newer_checkpoint_does_not_push_out_the_whole_ones(tmp_path, whole):
    folder = shutil.copytree(whole, tmp_path / "copy")
    damage(folder / "step-00000009" / "state.json", "truncated")
    with pytest.warns(UserWarning, match="is damaged"):
        run(folder, callback=lambda history: history.step[-1] == 7)
    assert [path.name for path in sorted(folder.iterdir())] == [".lock", "step-00000006", "step-00000007"]


# Two at once, a full disk, other kinds of number


def test_a_second_run_in_the_same_directory_is_told_before_it_starts(tmp_path):
    model = GPT(GPTConfig(17, 8, 16, 2, 2))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    tried = []

    def second(history):
        for resume in (True, False):
            with pytest.raises(CheckpointError, match=r"^.* is in use by another run: wait .*choose another\.$"):
                run(tmp_path, model, resume=resume, seed=1)
        tried.append(history.step[-1])

    run(tmp_path, callback=second, steps=3)
    assert tried == [1, 2, 3]
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert run(tmp_path, steps=3)[1].step == [1, 2, 3]  # the lock was released


def test_a_full_disk_is_said_and_costs_the_newest_checkpoint_alone(tmp_path, monkeypatch):
    from gptcourse import hf

    def full(tensors, path):
        Path(path).write_bytes(b"part of a file")
        raise OSError(28, "No space left on device")

    def fill(history):
        monkeypatch.setattr(hf, "save_tensors", full if history.step[-1] in (4, 5, 6) else save_tensors)

    save_tensors = hf.save_tensors
    with pytest.warns(
        UserWarning, match=r"checkpoint of step 6 could not be written \(.*No space left .*make room"
    ) as told:
        _, history = run(tmp_path, callback=lambda h: fill(h) or h.step[-1] == 6)
    assert len(told) == 2 and history.step[-1] == 6  # at its save_steps, and once more at the end
    assert [path.name for path in sorted(tmp_path.iterdir())] == [".lock", "step-00000003"]
    monkeypatch.undo()
    resumed, after = run(tmp_path)
    whole, history = run(None, resume=False)
    assert same(resumed, whole) and after == history


def test_float64_weights_are_resumed_bit_for_bit(tmp_path):
    def double():
        torch.manual_seed(5)
        return GPT(GPTConfig(17, 8, 16, 2, 2, dropout=0.2)).double()

    whole, history = run(None, double(), resume=False)
    run(tmp_path, double(), callback=lambda history: history.step[-1] == 5)
    resumed, after = run(tmp_path, double())
    assert same(whole, resumed) and after == history


# Refused


def other_model():
    return GPT(GPTConfig(17, 8, 16, 1, 2, dropout=0.2))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"learning_rate": 2e-2}, r"learning_rate was 0\.01 and is now 0\.02"),
        ({"label_smoothing": 0.1}, r"label_smoothing was 0\.0 and is now 0\.1"),
        ({"z_loss": 1e-4}, r"z_loss was 0\.0 and is now 0\.0001"),
        ({"seed": 1, "batch_size": 3}, "batch_size was 2 and is now 3, seed was 0 and is now 1"),
        ({"model": other_model()}, "the model's n_layer was 2 and is now 1"),
        ({"tokens": TOKENS.flip(0)}, "the training tokens was '400 ids"),
        ({"validation_tokens": None}, "the validation tokens was '50 ids.*is now None"),
        ({"steps": 20}, "steps=20 .*first 9 steps .*learning rates"),
        ({"steps": 5}, "steps=5 .*first 9 steps"),
    ],
)
def test_a_run_with_other_settings_is_refused_and_the_difference_named(options, words, whole):
    with pytest.raises(CheckpointError, match=words):
        run(whole, **options)


def test_checkpoints_are_not_overwritten_by_a_new_run(whole):
    before = content(whole)
    with pytest.raises(CheckpointError, match=r"step-00000009 is already there: pass resume=True"):
        run(whole, resume=False)
    assert content(whole) == before


def test_resuming_needs_a_folder():
    with pytest.raises(CheckpointError, match="checkpoint_dir"):
        run(None)


def test_nothing_is_pickled(whole):
    for step in (6, 9):
        for name, data in content(whole, step).items():
            if name.endswith(".json"):
                json.loads(data)
            else:  # safetensors: the length of a JSON header, then the header
                json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
