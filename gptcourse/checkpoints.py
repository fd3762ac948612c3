"""Checkpoints that are whole or not there at all, so that a run can be killed at any moment and go on.

A checkpoint is a folder `step-00000100` with the model (`GPT.save`), `optimizer.safetensors` and `state.json`,
which holds settings, history and the SHA-256 of every file. It is written under another name, flushed to the
disk and renamed when it is finished: a rename happens completely or not at all (POSIX `rename`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from gptcourse import distributed

KEPT = 2  # should the newest be damaged, there is one before it


class CheckpointError(ValueError):
    """Raised when checkpoints cannot be used for this run, or would be overwritten by it."""


class Checkpoints:
    """The checkpoints of one run, in one folder. `settings` says what a run must share to go on from them."""

    def __init__(self, directory, model: torch.nn.Module, optimizer: torch.optim.Optimizer, settings: dict):
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.model, self.optimizer = model, optimizer
        self.settings = json.loads(json.dumps(settings))  # as they will be read back
        self.saved_step = None

    def folders(self) -> list[Path]:
        """Return the folders of the checkpoints, oldest first."""
        return sorted(self.directory.glob("step-" + 8 * "[0-9]"))

    def _folder(self, step: int) -> Path:
        return self.directory / f"step-{step:08d}"

    def save(self, step: int, history: dict) -> None:
        """Write the checkpoint of `step` and remove those it makes useless."""
        if step == self.saved_step:
            return
        folder, unfinished = self._folder(step), self.directory / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        self.model.save(unfinished)
        save_file(_moments(self.optimizer), unfinished / "optimizer.safetensors")
        files = sorted(unfinished.iterdir())
        state = {"step": step, "settings": self.settings, "history": history}
        state["sha256"] = {path.name: _sha256(path.read_bytes()) for path in files}
        state["state_sha256"] = _sha256(_canonical(state))
        (unfinished / "state.json").write_text(json.dumps(state), encoding="utf-8")
        for path in (*files, unfinished / "state.json", unfinished):
            _flush(path)
        if folder.exists():  # damaged, or of a step that was undone
            shutil.rmtree(folder)
        unfinished.rename(folder)
        _flush(self.directory)
        self.saved_step = step
        self._prune(folder)

    def _prune(self, newest: Path) -> None:
        """Remove all but the last two checkpoints, and any that claims to be newer than the newest."""
        folders = self.folders()
        end = folders.index(newest) + 1
        for folder in folders[: max(end - KEPT, 0)] + folders[end:]:
            shutil.rmtree(folder)

    def refuse_any(self) -> None:
        """Raise CheckpointError if there are checkpoints: a new run must not mix with an old one."""
        if folders := self.folders():
            raise CheckpointError(
                f"{folders[-1]} is already there: pass resume=True to go on from it, or choose another checkpoint_dir."
            )

    def newest(self) -> dict | None:
        """Return the state of the newest whole checkpoint, None if there are no checkpoints at all.

        A damaged checkpoint is named in a warning and the one before it taken. Raises CheckpointError when all are
        damaged, or when the newest whole one belongs to a run with other settings.
        """
        folders = self.folders()
        for folder in reversed(folders):
            try:
                state = _verified(folder)
            except (OSError, ValueError, KeyError) as fault:
                warnings.warn(f"Checkpoint {folder} is damaged ({fault}): the one before is used.", stacklevel=4)
                continue
            self._compare(folder, state["settings"])
            return state
        if folders:
            raise CheckpointError(f"No checkpoint in {self.directory} is whole: delete the folder to begin again.")
        return None

    def _compare(self, folder: Path, saved: dict) -> None:
        names = sorted({*saved, *self.settings})
        pairs = [(name, saved.get(name), self.settings.get(name)) for name in names]
        others = [f"{name} was {old!r} and is now {new!r}" for name, old, new in pairs if old != new]
        if others:
            raise CheckpointError(
                f"{folder} belongs to another run ({', '.join(others)}): "
                "resume with the same settings, or train into another checkpoint_dir."
            )

    def restore(self, step: int) -> None:
        """Read the model's weights and the optimiser's state of one step, in place."""
        folder = self._folder(step)
        self.model.restore(folder)
        state: dict[int, dict] = {}
        for name, tensor in load_file(folder / "optimizer.safetensors").items():
            index, key = name.split(".")
            state.setdefault(int(index), {})[key] = tensor.clone()  # lets go of the file, which is deleted later
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.saved_step = step
        if distributed.rank() == 0:
            self._prune(folder)  # what a run that was killed while it removed has left


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the optimiser's state as one flat dictionary: "<index of the parameter>.<name>"."""
    states = optimizer.state_dict()["state"]
    return {f"{index}.{key}": value.contiguous() for index, state in states.items() for key, value in state.items()}


def _verified(folder: Path) -> dict:
    """Return the state of a checkpoint after comparing every byte of it; raise ValueError if one differs."""
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    if state.pop("state_sha256") != _sha256(_canonical(state)):
        raise ValueError("state.json was altered")
    for name, expected in state["sha256"].items():
        if _sha256((folder / name).read_bytes()) != expected:
            raise ValueError(f"{name} was truncated or altered")
    return state


def _canonical(state: dict) -> bytes:
    return json.dumps(state, sort_keys=True).encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _flush(path: Path) -> None:
    """Have a file or folder written to the disk now, so that a power cut cannot lose it."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
