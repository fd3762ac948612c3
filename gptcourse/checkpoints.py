"""Checkpoints that are whole or not there at all, so that a run can be killed at any moment and resumed.

A checkpoint is a folder `step-00000100` with what training changes (`model.safetensors`), the optimizer's state
(`optimizer.safetensors`), and `state.json`, which holds settings, history and the SHA-256 of every file. That of a GPT
has a `config.json` too, so that `GPT.load` opens it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed import ReduceOp

from gptcourse import distributed
from gptcourse.files import expand, lock, write_directory

KEPT = 2  # should the newest be damaged, there is one before it
# May change on resuming: saving changes no result, and the rates of all steps made are compared.
FREE = ("save_steps", "steps", "lr_scheduler_type", "decay_steps", "min_lr_ratio")


class CheckpointError(ValueError):
    """Raised when checkpoints cannot be used for this run, or would be overwritten by it."""


@contextmanager
def checkpointing(trainer, directory, resume, data: dict) -> Iterator[Callable[[], None]]:
    """Give the function that saves a Trainer's state in `directory`; on resuming, first take over the newest one.

    With several processes all of them resume from the same step, or all raise CheckpointError; process 0 writes.
    """
    if directory is None:
        if resume:
            raise CheckpointError("resume needs a checkpoint_dir, to resume from and to write to.")
        yield lambda: None
        return
    checkpoints = Checkpoints(trainer, directory, data)
    with ExitStack() as stack:

        def prepare() -> int:
            if distributed.rank() == 0:
                checkpoints.reserve(stack)
            return checkpoints.start(resume)

        _same_on_all_processes(prepare, trainer.device, directory)
        yield checkpoints.save


def _same_on_all_processes(prepare: Callable[[], int], device: torch.device, directory) -> None:
    """Call `prepare`, which returns a step; raise CheckpointError in all processes if one raises it or steps differ."""
    error, step = None, 0
    try:
        step = prepare()
    except CheckpointError as fault:
        error = fault
    if distributed.all_reduce(error is not None, device) > 0:
        raise error or CheckpointError("Another process cannot use its checkpoints and says why: all of them stop.")
    lowest, highest = (distributed.all_reduce(step, device, op) for op in (ReduceOp.MIN, ReduceOp.MAX))
    if lowest != highest:
        raise CheckpointError(
            f"One process found the checkpoint of step {lowest:.0f} in {directory}, another that of step "
            f"{highest:.0f} (0: none): all processes must see the same checkpoint_dir."
        )


class Checkpoints:
    """The checkpoints of one Trainer in one directory, which only one run may use at a time."""

    def __init__(self, trainer, directory, data: dict):
        self.trainer, self.directory, self.saved_step = trainer, expand(directory), None
        config = getattr(trainer.model, "config", None)
        self.shape = asdict(config) if is_dataclass(config) else None
        self.settings = json.loads(json.dumps(self._settings(data)))  # as they will be read back

    def _settings(self, data: dict) -> dict:
        """Return what two runs must share for one to resume the other."""
        trainer, digest = self.trainer, hashlib.sha256()
        for parameter in trainer.model.parameters():
            if not parameter.requires_grad:
                digest.update(parameter.detach().cpu().flatten().contiguous().view(torch.uint8).numpy())
        settings = {name: value for name, value in asdict(trainer.config).items() if name not in FREE}
        return (
            settings
            | data
            | {f"the model's {name}": value for name, value in (self.shape or {}).items()}
            | {
                "the number of trainable parameters": sum(p.numel() for p in trainer.trainable.values()),
                "the sha256 of the frozen parameters": digest.hexdigest()[:16],
                "the number of processes": distributed.world_size(),
            }
        )

    # ---- Writing

    def reserve(self, stack: ExitStack) -> None:
        """Lock the directory until `stack` closes; write a checkpoint and remove it. Raises CheckpointError.

        What cannot be saved is found out before the first step.
        """
        trial = self.directory / "trial"
        try:
            stack.enter_context(lock(self.directory / ".lock", self.directory))
            write_directory(trial, self._write)
            shutil.rmtree(trial)
        except Exception as error:  # safetensors and the file system have many
            said = str(error).rstrip(".")
            raise CheckpointError(f"No checkpoint can be written to {self.directory}: {said}.") from error

    def save(self) -> None:
        """Write the newest step's checkpoint, remove those it makes useless; warn where the disk takes no more."""
        step = len(self.trainer.history.step)
        if distributed.rank() == 0 and step != self.saved_step:
            folder = self.directory / f"step-{step:08d}"
            try:
                write_directory(folder, self._write)
                self._keep(folder)
            except Exception as error:
                warnings.warn(
                    f"The checkpoint of step {step} could not be written ({error}): make room in {self.directory}. "
                    "Training goes on, and older checkpoints are kept.",
                    stacklevel=2,
                )
        distributed.barrier()

    def _write(self, folder: Path) -> None:
        states = self.trainer.optimizer.state_dict()["state"]
        moments = {f"{index}.{key}": value for index, state in states.items() for key, value in state.items()}
        files = {"model": self.trainer.state(), "optimizer": moments, "best": self.trainer.best}
        for name, tensors in files.items():
            if tensors or name != "best":
                save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / f"{name}.safetensors")
        if self.shape is not None:
            text = json.dumps(self.shape | {"model_type": "gptcourse"}, indent=2)
            (folder / "config.json").write_text(text + "\n", encoding="utf-8")
        history = asdict(self.trainer.history)
        state = {"step": len(history["step"]), "settings": self.settings, "history": history}
        state["sha256"] = {path.name: _sha256(path.read_bytes()) for path in sorted(folder.iterdir())}
        state["state_sha256"] = _sha256(json.dumps(state).encode())
        (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")

    def _folders(self, other: Path | None = None) -> list[Path]:
        """Return the folders of the checkpoints, oldest first, in this directory or another."""
        return sorted((other or self.directory).glob("step-" + 8 * "[0-9]"))

    def _keep(self, newest: Path) -> None:
        """Remove all but the last two checkpoints, and any that claims to be newer than the newest."""
        self.saved_step = len(self.trainer.history.step)
        folders = self._folders()
        end = folders.index(newest) + 1
        for folder in folders[: max(end - KEPT, 0)] + folders[end:]:
            shutil.rmtree(folder)

    # ---- Reading

    def start(self, resume) -> int:
        """Put the newest whole checkpoint into the Trainer; return its step, 0 if there are no checkpoints at all.

        Where there are none, they are looked for in the directory `resume`, if it is one.

        A damaged checkpoint is named in a warning and the one before it taken. Raises CheckpointError when all are
        damaged, when the newest whole one belongs to another run, or when there are any and `resume` is not asked for.
        """
        folders = self._folders()
        if folders and not resume:
            raise CheckpointError(
                f"{folders[-1]} is already there: pass resume=True to go on from it, or choose another checkpoint_dir."
            )
        if not folders and resume and resume is not True:
            folders = self._folders(expand(resume))
            if not folders:
                raise CheckpointError(f"There is no checkpoint in {resume}, where this run is to begin.")
        for folder in reversed(folders):
            try:
                state = _verified(folder)
            except Exception as error:  # a damaged file can hold anything
                warnings.warn(f"Checkpoint {folder} is damaged ({error}): the one before is used.", stacklevel=2)
                continue
            self._compare(folder, state)
            self._take_over(folder, state["history"])
            if distributed.rank() == 0 and folder.parent == self.directory:
                self._keep(folder)
            return state["step"]
        if folders:
            raise CheckpointError(f"No checkpoint in {folders[0].parent} is whole: delete the folder to begin again.")
        return 0

    def _compare(self, folder: Path, state: dict) -> None:
        """Raise CheckpointError if a checkpoint's settings, or the rates of its steps, are not those of this run."""
        saved, made = state["settings"], state["history"]["learning_rate"]
        names = sorted({*saved, *self.settings})
        pairs = [(name, saved.get(name), self.settings.get(name)) for name in names]
        if others := [f"{name} was {old!r} and is now {new!r}" for name, old, new in pairs if old != new]:
            raise CheckpointError(
                f"{folder} belongs to another run ({', '.join(others)}): "
                "resume with the same settings, or train into another checkpoint_dir."
            )
        steps = self.trainer.config.steps
        if made != [self.trainer.schedule(step) for step in range(min(len(made), steps))]:
            raise CheckpointError(
                f"A run of steps={steps} would not have made its first {len(made)} steps at the same "
                "learning rates: resume with the old schedule and steps, or train into another checkpoint_dir."
            )

    def _take_over(self, folder: Path, history: dict) -> None:
        """Put a checkpoint's weights, moments and history into the Trainer."""
        trainer, ours, moments = self.trainer, self.trainer.state(), {}
        saved = self._load(folder, "model")
        if {name: tensor.shape for name, tensor in saved.items()} != {name: t.shape for name, t in ours.items()}:
            raise CheckpointError(f"{folder} holds other parameters than this model trains: take the same model.")
        for name, tensor in ours.items():
            tensor.copy_(saved[name])
        for name, tensor in self._load(folder, "optimizer").items():
            index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = tensor
        trainer.optimizer.load_state_dict(trainer.optimizer.state_dict() | {"state": moments})
        trainer.best = self._load(folder, "best")
        vars(trainer.history).update(history)

    def _load(self, folder: Path, name: str) -> dict[str, Tensor]:
        """Return the tensors of one file, none if there is no such file; copies, as the file is deleted later."""
        path = folder / f"{name}.safetensors"
        tensors = load_file(path) if path.exists() else {}
        return {key: tensor.to(self.trainer.device, copy=True) for key, tensor in tensors.items()}


def _verified(folder: Path) -> dict:
    """Return the state of a checkpoint after comparing every byte of it; raise ValueError if one differs."""
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    if state.pop("state_sha256") != _sha256(json.dumps(state).encode()):
        raise ValueError("state.json was altered")
    for name, expected in state["sha256"].items():
        if _sha256((folder / name).read_bytes()) != expected:
            raise ValueError(f"{name} was truncated or altered")
    return state


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
