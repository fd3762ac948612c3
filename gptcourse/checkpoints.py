"""Checkpoints that are whole or not there at all, so that a run can be killed at any moment and resumed.

A checkpoint is a folder `step-00000100` with the trainable parameters (`model.safetensors`), the optimizer's state
(`optimizer.safetensors`), and `state.json`, which holds settings, history and the SHA-256 of every file. That of a GPT
has a `config.json` too, so that `GPT.load` opens it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed import ReduceOp

from gptcourse import distributed
from gptcourse.files import lock, write_directory

KEPT = 2  # should the newest be damaged, there is one before it


class CheckpointError(ValueError):
    """Raised when checkpoints cannot be used for this run, or would be overwritten by it."""


class Checkpoints:
    """The checkpoints of one run in one directory, which only one run may use at a time.

    `settings` says what a run must share to resume from them; `config` is written as config.json.
    """

    def __init__(self, directory, settings: dict, config: dict | None = None):
        self.directory = Path(directory).expanduser()
        self.settings = json.loads(json.dumps(settings))  # as they will be read back
        self.config, self.saved_step = config, None

    def lock(self):
        """Take the lock of the directory and return it, a context. Raises CheckpointError if another run has it."""
        try:
            return lock(self.directory / ".lock", self.directory)
        except ValueError as error:
            raise CheckpointError(str(error)) from error

    def folders(self) -> list[Path]:
        """Return the folders of the checkpoints, oldest first."""
        return sorted(self.directory.glob("step-" + 8 * "[0-9]"))

    def _folder(self, step: int) -> Path:
        return self.directory / f"step-{step:08d}"

    def try_out(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        """Write the files of a checkpoint and remove them: what cannot be saved is found out before the first step."""
        trial = self.directory / "trial"
        try:
            write_directory(trial, lambda folder: self._write(folder, 0, {}, tensors))
        except Exception as error:  # safetensors and the file system have many
            raise CheckpointError(f"A checkpoint cannot be written to {self.directory}: {error}.") from error
        finally:
            for left in (trial, trial.with_name("trial.unfinished")):
                shutil.rmtree(left, ignore_errors=True)

    def save(self, step: int, history: dict, tensors: dict[str, dict[str, Tensor]]) -> None:
        """Write the checkpoint of `step` and remove those it makes useless; warn where the disk takes no more."""
        if step == self.saved_step:
            return
        folder = self._folder(step)
        try:
            write_directory(folder, lambda unfinished: self._write(unfinished, step, history, tensors))
        except Exception as error:
            shutil.rmtree(folder.with_name(f"{folder.name}.unfinished"), ignore_errors=True)
            warnings.warn(
                f"The checkpoint of step {step} could not be written ({error}): make room in {self.directory}. "
                "Training goes on, and older checkpoints are kept.",
                stacklevel=2,
            )
            return
        self.saved_step = step
        self._prune(folder)

    def _write(self, folder: Path, step: int, history: dict, tensors: dict[str, dict[str, Tensor]]) -> None:
        for name, content in tensors.items():
            save_file({key: tensor.contiguous() for key, tensor in content.items()}, folder / f"{name}.safetensors")
        if self.config is not None:
            (folder / "config.json").write_text(json.dumps(self.config, indent=2) + "\n", encoding="utf-8")
        state = {"step": step, "settings": self.settings, "history": history}
        state["sha256"] = {path.name: _sha256(path.read_bytes()) for path in sorted(folder.iterdir())}
        state["state_sha256"] = _sha256(_canonical(state))
        (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")

    def _prune(self, newest: Path) -> None:
        """Remove all but the last two checkpoints, and any that claims to be newer than the newest."""
        folders = self.folders()
        end = folders.index(newest) + 1
        for folder in folders[: max(end - KEPT, 0)] + folders[end:]:
            shutil.rmtree(folder)

    def refuse_any(self) -> int:
        """Return 0; raise CheckpointError if there are checkpoints: a new run must not mix with an old one."""
        if folders := self.folders():
            raise CheckpointError(
                f"{folders[-1]} is already there: pass resume=True to go on from it, or choose another checkpoint_dir."
            )
        return 0

    def newest(self) -> dict | None:
        """Return the state of the newest whole checkpoint, None if there are no checkpoints at all.

        A damaged checkpoint is named in a warning and the one before it taken. Raises CheckpointError when all are
        damaged, or when the newest whole one belongs to a run with other settings.
        """
        folders = self.folders()
        for folder in reversed(folders):
            try:
                state = _verified(folder)
            except (OSError, ValueError, KeyError) as error:
                warnings.warn(f"Checkpoint {folder} is damaged ({error}): the one before is used.", stacklevel=4)
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

    def resumed(self, step: int) -> None:
        """Note that the checkpoint of `step` is the newest, and remove what a killed run has left."""
        self.saved_step = step
        if distributed.rank() == 0:
            self._prune(self._folder(step))

    def load(self, step: int, name: str) -> dict[str, Tensor]:
        """Return the tensors of one file of a checkpoint; none if it has no such file."""
        path = self._folder(step) / f"{name}.safetensors"
        return load_file(path) if path.exists() else {}


@contextmanager
def checkpointing(trainer, directory, resume: bool, data: dict) -> Iterator[Callable[[], None]]:
    """Give the function that saves a Trainer's state in `directory`; on resuming, first take over the newest one.

    With several processes all of them resume from the same step, or all raise CheckpointError; process 0 writes.
    """
    if directory is None:
        if resume:
            raise CheckpointError("resume=True needs the checkpoint_dir to resume from.")
        yield lambda: None
        return
    config = getattr(trainer.model, "config", None)
    described = asdict(config) | {"model_type": "gptcourse"} if is_dataclass(config) else None
    checkpoints, is_first = Checkpoints(directory, _settings(trainer, data), described), distributed.rank() == 0
    with ExitStack() as stack:

        def prepare() -> int:
            if is_first:
                stack.enter_context(checkpoints.lock())
                checkpoints.try_out(_tensors(trainer))
            return _take_over(trainer, checkpoints) if resume else checkpoints.refuse_any()

        step = _on_all_processes(prepare, trainer.device)
        lowest, highest = (distributed.all_reduce(step, trainer.device, op) for op in (ReduceOp.MIN, ReduceOp.MAX))
        if lowest != highest:
            raise CheckpointError(
                f"One process found the checkpoint of step {lowest:.0f} in {directory}, another that of step "
                f"{highest:.0f} (0: none): all processes must see the same checkpoint_dir."
            )

        def save() -> None:
            if is_first:
                history = asdict(trainer.history)
                if history["stopped"] != "early stopping":  # whoever interrupts a run may resume it
                    history["stopped"] = None
                checkpoints.save(len(trainer.history.step), history, _tensors(trainer))
            distributed.barrier()

        yield save


def _on_all_processes(work: Callable[[], int], device: torch.device) -> int:
    """Return what `work` returns; raise CheckpointError in all processes if it raises it in one."""
    error, step = None, 0
    try:
        step = work()
    except CheckpointError as fault:
        error = fault
    if distributed.all_reduce(error is not None, device) > 0:
        raise error or CheckpointError("Another process cannot use its checkpoints and says why: all of them stop.")
    return step


def _settings(trainer, data: dict) -> dict:
    """Return what two runs must share for one to resume the other."""
    free = ("steps", "save_steps")  # the first is looked at by _take_over, the second changes no result
    settings = {name: value for name, value in asdict(trainer.config).items() if name not in free} | data
    if is_dataclass(trainer.model.config):
        settings |= {f"the model's {name}": value for name, value in asdict(trainer.model.config).items()}
    frozen = (parameter for parameter in trainer.model.parameters() if not parameter.requires_grad)
    settings["the number of trainable parameters"] = sum(p.numel() for p in trainer.trainable.values())
    settings["the sha256 of the frozen parameters"] = weights_sha256(frozen)
    return settings | {"the number of processes": distributed.world_size()}


def _tensors(trainer) -> dict[str, dict[str, Tensor]]:
    """Return a Trainer's tensors by file; of the optimizer, "<index of the parameter>.<name>"."""
    states = trainer.optimizer.state_dict()["state"]
    moments = {f"{index}.{key}": value for index, state in states.items() for key, value in state.items()}
    files = {"model": {name: parameter.detach() for name, parameter in trainer.trainable.items()}, "optimizer": moments}
    return files | ({"best": trainer.best} if trainer.best else {})


@torch.no_grad()
def _take_over(trainer, checkpoints: Checkpoints) -> int:
    """Put the newest checkpoint's weights, moments and history into a Trainer; return its step, 0 if there is none."""
    if (state := checkpoints.newest()) is None:
        return 0
    made, step = state["history"]["learning_rate"], state["step"]
    if made != [trainer.schedule(i) for i in range(min(len(made), trainer.config.steps))]:
        raise CheckpointError(
            f"A run of steps={trainer.config.steps} would not have made its first {len(made)} steps at the same "
            "learning rates: resume with the old number of steps, or train into another checkpoint_dir."
        )
    model, optimizer, best = (checkpoints.load(step, name) for name in ("model", "optimizer", "best"))
    if model.keys() != trainer.trainable.keys():
        raise CheckpointError(f"The checkpoint of step {step} holds other parameters than this model trains.")
    for name, parameter in trainer.trainable.items():
        parameter.copy_(model[name])
    states: dict[int, dict] = {}
    for name, tensor in optimizer.items():
        index, key = name.split(".")
        states.setdefault(int(index), {})[key] = tensor.clone()  # releases the file, which is deleted later
    groups = trainer.optimizer.state_dict()["param_groups"]
    trainer.optimizer.load_state_dict({"state": states, "param_groups": groups})
    trainer.best = {name: tensor.clone().to(trainer.device) for name, tensor in best.items()}
    vars(trainer.history).update(state["history"])
    checkpoints.resumed(step)
    return step


def weights_sha256(weights: Iterable[Tensor]) -> str:
    """Return a short SHA-256 of tensors, in order."""
    digest = hashlib.sha256()
    for weight in weights:
        digest.update(weight.detach().cpu().flatten().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


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
