"""Faults: runs that are killed, disks that are full or cannot be written, clocks that go backwards. Nothing is lost."""

import errno
import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from gptcourse import sweeps
from gptcourse.decision import DecisionRecord
from gptcourse.exercises import answers, check, exercises
from gptcourse.exercises.export import write_program
from gptcourse.exercises.losses import LossBoard
from gptcourse.exercises.records import read_records, remember
from gptcourse.model import GPT
from gptcourse.tokenizers import CharTokenizer, load_tokenizer, token_bytes
from gptcourse.training import evaluate, train
from tests import lives
from tests.lives import another_model, new_model

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(os.name == "nt", reason="Windows has no fork and no mount"),
]
MANY = pytest.param(50, marks=pytest.mark.long)


# ---- Killed


@pytest.fixture(scope="module")
def live():
    """The function that lets work be done in a process of its own, which may be killed."""
    with lives.nursery() as ask:
        yield ask


@pytest.mark.parametrize("n", [3, MANY])
@pytest.mark.parametrize("kind", [run.__name__ for run in lives.RUNS])
def test_a_run_killed_at_random_moments_and_resumed_ends_as_one_never_stopped(kind, n, live, tmp_path):
    whole, cut = live(kind, tmp_path / "whole"), tmp_path / "cut"
    assert whole["made"] is not None
    for share in np.random.default_rng(n).random(n):
        life = live(kind, cut, moment=share * whole["seconds"])
        if life["made"] is not None:  # it came to its end before: the next life begins anew
            assert life["made"] == whole["made"]
            shutil.rmtree(cut)
    assert live(kind, cut)["made"] == whole["made"]


@pytest.mark.parametrize("kind", ["saving", "saving_a_bpe"])
def test_a_model_saved_over_another_is_one_of_the_two_or_refused_wherever_the_process_is_killed(live, kind, tmp_path):
    old, new = (new_model(), CharTokenizer("abcdefghijklmnopq")), another_model(kind)
    found = []
    for event in range(1, 200):
        folder = tmp_path / str(event)
        old[0].save(folder, old[1])
        made = live(kind, folder, event=event)["made"]
        try:
            model = GPT.load(folder)
        except ValueError as error:
            assert "holds no config.json" in str(error)
            found.append("none")
        else:
            found.append("old" if old[0].wte.weight.equal(model.wte.weight) else "new")
            one, tokenizer = {"old": old, "new": new}[found[-1]]
            assert (
                all(torch.equal(a, b) for a, b in zip(model.parameters(), one.parameters(), strict=True))
                or kind == "saving_a_bpe"
            )
            assert token_bytes(load_tokenizer(folder)) == token_bytes(tokenizer)
        if made or found[-1] == "new":  # what follows tidies up
            break
        old[0].save(folder)  # whoever saves again finds nothing in the way, and leaves nothing of the killed one
        assert not list(folder.glob(".*"))
    assert set(found) == {"old", "new", "none"} and found == sorted(found, key=["old", "none", "new"].index)


def test_a_folder_in_the_way_of_a_file_is_named_and_nothing_is_lost(tmp_path):
    new_model().save(tmp_path, CharTokenizer("abcdefghijklmnopq"))
    (tmp_path / "model.safetensors").rename(tmp_path / "kept")
    (tmp_path / "model.safetensors").mkdir()
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ValueError, match="cannot be written"):
        new_model(4).save(tmp_path, CharTokenizer("ABCDEFGHIJKLMNOPQ"))
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert load_tokenizer(tmp_path).characters == CharTokenizer("abcdefghijklmnopq").characters


def test_a_save_that_fails_half_way_leaves_all_as_it_was(tmp_path, monkeypatch):
    new_model().save(tmp_path)
    before, replace = {path.name: path.read_bytes() for path in tmp_path.iterdir()}, Path.replace

    def refused(path, target):
        if path.parent.name == "new" and path.name == "config.json":  # the last of the new files
            raise OSError(errno.EIO, "Input/output error")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(ValueError, match="cannot be written"):
        new_model(4, seed=4).save(tmp_path, CharTokenizer("abcdefghijklmnopq"))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_two_saves_into_one_folder_take_no_turns(tmp_path, monkeypatch):
    model = new_model(2)
    model.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def at_once(tensors, path):
        with pytest.raises(ValueError, match="is in use by another run"):
            new_model(4).save(tmp_path)
        raise RuntimeError

    monkeypatch.setattr("gptcourse.hf.save_tensors", at_once)
    with pytest.raises(RuntimeError):
        model.save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# ---- Disks that are full, or cannot be written


BROKEN = {"full": errno.ENOSPC, "read-only": errno.EROFS}


class Disk:
    """A small disk of its own, which can be filled up or made read-only, and be made good again."""

    def __init__(self, folder):
        self.folder, self.filler = folder, folder / "filler"

    def fill(self, leave=0):
        """Fill it up, but for `leave` pages of 4096 bytes."""
        with self.filler.open("wb", buffering=0) as file:
            while True:
                try:
                    file.write(bytes(4096))
                except OSError:
                    break
        os.truncate(self.filler, self.filler.stat().st_size - 4096 * leave)

    def remount(self, option):
        subprocess.run(["mount", "-o", f"remount,{option}", self.folder], check=True)

    def break_it(self, way):
        self.fill() if way == "full" else self.remount("ro")

    def mend(self):
        self.remount("rw")
        self.filler.unlink(missing_ok=True)


@pytest.fixture
def disk(tmp_path):
    """A Disk of two megabytes in memory, which only root may make."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no small disk can be made here: that takes root's rights")
    yield Disk(folder)
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def runs_here(monkeypatch):
    """Let sweeps and searches make their runs in this process."""
    for name in ("_worker", "_ask"):
        monkeypatch.setattr(sweeps, name, getattr(sweeps, name))
    lives.runs_here()


def one_sentence(error, place, way):
    """Hold that the error names the place, and says in one sentence what is wrong there and what to do."""
    said = str(error)
    assert str(place) in said and os.strerror(BROKEN[way]) in said
    assert "\n" not in said and said.endswith(".") and "Traceback" not in said
    assert "choose another" in said or "make room" in said


def contents(folder):
    """Return all files below a folder with their bytes, but for what fills the disk and for locks, which are empty."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "filler"]
    return {path: path.read_bytes() for path in paths if not path.name.endswith(".lock")}


WRITERS = {
    "model": lambda folder, text: new_model(len(text)).save(folder, CharTokenizer(text)),
    "tokenizer": lambda folder, text: CharTokenizer(text).save(folder),
    "record": lambda folder, text: DecisionRecord("tokens", {}, text, settings={}).save(folder),
    "program": lambda folder, text: write_program(folder.with_suffix(".py")),
}


@pytest.mark.parametrize("way", BROKEN)
@pytest.mark.parametrize("what", WRITERS)
def test_what_cannot_be_written_is_one_sentence_and_what_was_there_stays(what, way, disk):
    write, folder = WRITERS[what], disk.folder / what
    write(folder, "ab")
    before = contents(disk.folder)
    disk.break_it(way)
    with pytest.raises(ValueError) as caught:
        write(folder, "abcd")
    one_sentence(caught.value, folder, way)
    assert contents(disk.folder) == before
    disk.mend()
    write(folder, "abcd")
    assert contents(disk.folder).keys() == before.keys()


def test_a_model_saved_with_little_room_left_is_there_as_a_whole_or_not_at_all(disk):
    folder, outcomes = disk.folder / "model", []
    for leave in range(0, 40, 3):
        WRITERS["model"](folder, "ab")
        before = contents(folder)
        disk.fill(leave)
        try:
            WRITERS["model"](folder, "abcd")
        except ValueError as error:
            one_sentence(error, folder, "full")
            assert contents(folder) == before
        outcomes.append((GPT.load(folder).config.n_head, len(load_tokenizer(folder).characters)))
        disk.mend()
    assert outcomes[0] == (2, 2) and outcomes[-1] == (4, 4) and {*outcomes} == {(2, 2), (4, 4)}


@pytest.mark.parametrize("way", BROKEN)
@pytest.mark.parametrize("kind", ["training", "sweeping", "searching", "tuning"])
def test_a_run_that_cannot_be_kept_is_told_so_before_it_begins_or_with_its_first_result(kind, way, disk, runs_here):
    disk.break_it(way)
    with pytest.raises(ValueError) as caught:
        lives.KINDS[kind](disk.folder)
    said = str(caught.value)
    assert os.strerror(BROKEN[way]) in said and "\n" not in said and said.endswith(".")


@pytest.mark.parametrize("kind", ["sweeping", "searching"])
def test_a_disk_that_fills_up_in_the_middle_costs_no_run_that_was_kept(kind, disk, runs_here, monkeypatch, tmp_path):
    calls, make = itertools.count(), sweeps._result

    def fill(*run):
        if next(calls) == 2:
            disk.fill()
        return make(*run)

    monkeypatch.setattr(sweeps, "_result", fill)
    with pytest.raises(ValueError, match=r"No space left on device.*make room"):
        lives.KINDS[kind](disk.folder)
    goes_on(kind, disk, tmp_path)


def test_a_tuning_whose_disk_fills_up_goes_on_to_the_same_record(disk, tmp_path):
    calls = itertools.count()

    def objective(model, part):
        if next(calls) == 4:
            disk.fill()
        return evaluate(model, part)

    with pytest.raises(ValueError, match=r"No space left on device.*make room.*the same call goes on"):
        lives.tuning(disk.folder, objective)
    goes_on("tuning", disk, tmp_path, objective)


def goes_on(kind, disk, tmp_path, *options):
    """Hold that on the mended disk the work goes on from what was kept, and ends as elsewhere."""
    (file,) = disk.folder.glob("*.jsonl")
    kept = file.read_bytes().rpartition(b"\n")[0]
    disk.mend()
    (tmp_path / "whole").mkdir()
    work = lives.KINDS[kind]
    assert work(disk.folder, *options) == work(tmp_path / "whole", *options)
    assert kept and file.read_bytes().startswith(kept)


def test_a_training_run_whose_disk_fills_up_keeps_its_older_checkpoint_and_ends_the_same(disk, tmp_path):
    folder = disk.folder / "run"

    def fill(history):
        if history.step[-1] == 5:
            disk.fill()
        return history.step[-1] == 7

    model = new_model()
    with pytest.warns(UserWarning, match=r"step 6 could not be written \(.*No space left.*older checkpoints are kept"):
        train(model, **lives.DATA, config=lives.CONFIG, callback=fill, **lives.kept(folder))
    assert sorted(path.name for path in folder.glob("step-*")) == ["step-00000002", "step-00000004"]
    assert GPT.load(folder / "step-00000004").config == model.config
    disk.mend()
    assert lives.training(folder) == lives.training(tmp_path / "whole")


@pytest.mark.parametrize("way", BROKEN)
def test_an_exercise_is_judged_though_nothing_can_be_kept_and_nothing_is_lost(way, disk, monkeypatch, capsys):
    monkeypatch.setenv("GPTCOURSE_PROGRESS", str(disk.folder))
    monkeypatch.setattr(answers, "right", {})
    solution = exercises()["attention.scores"].reference
    remember("start.greedy", True)
    LossBoard().add("bigrams", 2.0)
    before = contents(disk.folder)
    disk.break_it(way)
    assert check("attention.scores", solution)
    said = capsys.readouterr().out
    assert "Your progress cannot be kept" in said and os.strerror(BROKEN[way]) in said
    LossBoard().add("trigrams", 1.9)
    assert contents(disk.folder) == before and read_records()[0].keys() == {"start.greedy"}
    disk.mend()
    assert check("attention.scores", solution) and "cannot be kept" not in capsys.readouterr().out
    assert read_records()[0].keys() == {"start.greedy", "attention.scores"}
    assert json.loads((disk.folder / "losses.json").read_text()).keys() == {"bigrams"}


# ---- Clocks


def test_a_clock_that_goes_backwards_changes_nothing(monkeypatch, runs_here, tmp_path):
    def results(folder):
        folder.mkdir()
        shown = {"validation_tokens": lives.TOKENS[:50], "device": "cpu", "checkpoint_dir": folder, "progress": True}
        model = new_model()
        history = train(model, lives.TOKENS, lives.CONFIG, **shown)
        return lives.learned(model, history), lives.searching(folder), lives.tuning(folder)

    expected, hours = results(tmp_path / "before"), itertools.count()
    for module in ("time.time", "tqdm.std.time"):
        monkeypatch.setattr(module, lambda: 1.8e9 - 3600 * next(hours))
    assert results(tmp_path / "now") == expected and next(hours) > 0
