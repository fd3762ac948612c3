"""Checkpoints that are whole or not there at all, so that a run can be killed at any moment and resumed.

A checkpoint is a folder `step-00000100` with what training changes (`model.safetensors`), the optimizer's state
(`optimizer.safetensors`), and `state.json`, which holds settings, history and the SHA-256 of every file. That of a GPT
has a `config.json` too, so that `GPT.load` opens it, unless the model is sharded. Process 0 alone writes and reads it,
and sends the others what it has read: they need no disk.

Of a sharded model ("fsdp") every process writes what it holds, to a file `shard-….safetensors` of its own. All must
therefore see one disk. Either kind is read by any number of processes with any strategy.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, is_dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from gptcourse import distributed, hf
from gptcourse.config import GPTConfig
from gptcourse.files import digest, expand, lock, read_json, write_directory
from gptcourse.views import is_sharded, is_transformers

KEPT = 2  # should the newest be damaged, there is one before it
# May change on resuming: saving and recomputing change no result, and the rates of all steps made are compared.
FREE = ("save_steps", "gradient_checkpointing", "steps", "lr_scheduler_type", "decay_steps", "min_lr_ratio")


class CheckpointError(ValueError):
    """Raised when checkpoints cannot be used for this run, or would be overwritten by it."""


@contextmanager
def checkpointing(trainer, directory, resume, data: dict) -> Iterator[Callable[[], None]]:
    """Give the function that saves a Trainer's state in `directory`; on resuming, first take over the newest one.

    All processes resume from the same step, or all raise CheckpointError with the same sentence.
    """
    if directory is None:
        if resume:
            raise CheckpointError("resume needs a checkpoint_dir, to resume from and to write to.")
        yield lambda: None
        return
    checkpoints = Checkpoints(trainer, directory, data)
    with ExitStack() as stack:
        checkpoints.reserve(stack)
        checkpoints.start(resume)
        yield checkpoints.save


class Checkpoints:
    """The checkpoints of one Trainer in one directory, which only one run may use at a time."""

    def __init__(self, trainer, directory, data: dict):
        self.trainer, self.directory, self.saved_step = trainer, expand(directory), None
        self.sharded = is_sharded(trainer.model)
        config = getattr(trainer.core, "config", None)
        # Configs of transformers are dataclasses too, with values that JSON does not know.
        self.shape = asdict(config) if is_dataclass(config) and not is_transformers(trainer.core) else {}
        # What is saved opens as a GPT only if it is one, and whole.
        whole = all(parameter.requires_grad for parameter in trainer.core.parameters())
        self.opens = isinstance(config, GPTConfig) and trainer.core is trainer.model and whole and not self.sharded
        self.settings = json.loads(json.dumps(self._settings(data), default=str))  # as they will be read back

    def together(self, action: Callable, everywhere: bool = True) -> list:
        """Return what `action` returns in each process; see `distributed.together`. Raises CheckpointError."""
        return distributed.together(action, CheckpointError, everywhere)

    def on_first(self, action: Callable):
        """Return in all processes what `action` returns in process 0. Raises CheckpointError."""
        return self.together(action, everywhere=False)[0]

    def _settings(self, data: dict) -> dict:
        """Return what two runs must share for one to resume the other."""
        trainer, frozen = self.trainer, hashlib.sha256()
        for parameter in trainer.model.parameters():
            if not parameter.requires_grad:
                frozen.update(hf.raw(distributed.whole(parameter.detach())))
        settings = {name: value for name, value in asdict(trainer.config).items() if name not in FREE}
        return (
            settings
            | data
            | {f"the model's {name}": value for name, value in self.shape.items()}
            | {
                "the number of trainable parameters": sum(p.numel() for p in trainer.trainable.values()),
                "the sha256 of the frozen parameters": frozen.hexdigest()[:16],
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
            self.on_first(partial(self._lock, stack))
            self._write(trial)
            self.on_first(partial(shutil.rmtree, trial))
        except CheckpointError as error:
            said = str(error).rstrip(".")
            raise CheckpointError(f"No checkpoint can be written to {self.directory}: {said}.") from error

    def _lock(self, stack: ExitStack) -> None:
        stack.enter_context(lock(self.directory / ".lock", self.directory))

    def save(self) -> None:
        """Write the newest step's checkpoint, remove those it makes useless; warn where the disk takes no more."""
        step = len(self.trainer.history.step)
        if step == self.saved_step:
            return
        folder = self.directory / f"step-{step:08d}"
        try:
            self._write(folder)
            self.on_first(partial(self._keep, folder))
            self.saved_step = step
        except CheckpointError as error:
            if distributed.rank() == 0:
                warnings.warn(
                    f"The checkpoint of step {step} could not be written ({error}): make room in {self.directory}. "
                    "Training goes on, and older checkpoints are kept.",
                    stacklevel=2,
                )

    def _write(self, folder: Path) -> None:
        """Write a checkpoint: its tensors by process 0, or by all of them their parts; all else by process 0."""
        parts, digests = self.directory / "parts", {}
        if self.sharded:
            self.on_first(partial(shutil.rmtree, parts, ignore_errors=True))
            tensors = {f"{kind}.{name}": t for kind, named in self._tensors().items() for name, t in named.items()}
            for own in self.together(partial(_write_parts, tensors, parts)):
                digests |= own
        try:
            self.on_first(partial(write_directory, folder, partial(self._fill, parts, digests)))
        finally:
            shutil.rmtree(parts, ignore_errors=True)

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        states = self.trainer.optimizer.state_dict()["state"]
        moments = {f"{index}.{key}": value for index, state in states.items() for key, value in state.items()}
        return {
            "model": self.trainer.state(),
            "optimizer": moments,
            "best": self.trainer.best,
            "extra": self.trainer.extra,
        }

    def _fill(self, parts: Path, digests: dict[str, str], folder: Path) -> None:
        """Fill the folder of a checkpoint, with the `parts` that all processes have written if there are any."""
        for name in digests:
            if not (parts / name).exists():
                raise CheckpointError(
                    f"process 0 does not see {name} of another process; take a checkpoint_dir on a disk "
                    'that all machines share, or strategy "ddp", which needs the disk of process 0 alone'
                )
            (parts / name).rename(folder / name)
        for kind, tensors in {} if digests else self._tensors().items():
            if tensors or kind in ("model", "optimizer"):
                hf.save_tensors(tensors, folder / f"{kind}.safetensors")
        if self.opens:
            text = json.dumps(self.shape | {"model_type": "gptcourse"}, indent=2)
            (folder / "config.json").write_text(text + "\n", encoding="utf-8")
        history = asdict(self.trainer.history)
        state = {"step": len(history["step"]), "settings": self.settings, "history": history}
        state["sha256"] = {path.name: digests.get(path.name) or _sha256(path) for path in sorted(folder.iterdir())}
        state["state_sha256"] = digest(state)
        (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")

    def _folders(self, other: Path | None = None) -> list[Path]:
        """Return the folders of the checkpoints, oldest first, in this directory or another."""
        return sorted((other or self.directory).glob("step-" + 8 * "[0-9]"))

    def _keep(self, newest: Path) -> bool:
        """Remove all but the last two checkpoints, and any that claims to be newer than the newest.

        Return whether the newest is one of this directory; if it is another run's, nothing is removed.
        """
        folders = self._folders()
        if newest not in folders:
            return False
        end = folders.index(newest) + 1
        for folder in folders[: max(end - KEPT, 0)] + folders[end:]:
            shutil.rmtree(folder)
        return True

    # ---- Reading

    def start(self, resume) -> None:
        """Put the newest whole checkpoint into the Trainer, if there are checkpoints.

        Where there are none, they are looked for in the directory `resume`, if it is one.

        A damaged checkpoint is named in a warning and the one before it taken. Raises CheckpointError when all are
        damaged, when the newest whole one belongs to another run, or when there are any and `resume` is not asked for.
        """
        newest = distributed.gather(max((folder.name for folder in self._folders()), default=""))
        if (seen := max(newest)) > newest[0]:
            raise CheckpointError(
                f"Process {newest.index(seen)} sees {seen} in its {self.directory}, but process 0, which reads for "
                "all, does not: copy it there, or give the machine that sees it --node-rank 0 (without --rdzv-backend)."
            )
        folders = self.on_first(partial(self._candidates, resume))
        for folder in reversed(folders):
            try:
                state = self.together(partial(_verified, folder, self.sharded), everywhere=self.sharded)[0]
            except CheckpointError as error:
                if distributed.rank() == 0:
                    warnings.warn(f"Checkpoint {folder} is damaged ({error}): the one before is used.", stacklevel=2)
                continue
            self.together(partial(self._compare, folder, state))
            self._take_over(folder, state["history"])
            if self.on_first(partial(self._keep, folder)):
                self.saved_step = state["step"]
            return
        if folders:
            raise CheckpointError(f"No checkpoint in {folders[0].parent} is whole: delete the folder to begin again.")

    def _candidates(self, resume) -> list[Path]:
        """Return the checkpoints to begin from, oldest first. Raises CheckpointError."""
        folders = self._folders()
        if folders and not resume:
            raise CheckpointError(
                f"{folders[-1]} is already there: pass resume=True to go on from it, or choose another checkpoint_dir."
            )
        if not folders and resume and resume is not True:
            folders = self._folders(expand(resume))
            if not folders:
                raise CheckpointError(f"There is no checkpoint in {resume}, where this run is to begin.")
        return folders

    def _compare(self, folder: Path, state: dict) -> None:
        """Raise CheckpointError if a checkpoint's settings, or the rates of its steps, are not those of this run."""
        saved, own, made = _shared(state["settings"]), _shared(self.settings), state["history"]["learning_rate"]
        names = sorted({*saved, *own})
        pairs = [(name, saved.get(name), own.get(name)) for name in names]
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
        trainer, ours = self.trainer, self.trainer.state()
        kinds = self.on_first(partial(_kinds, folder))
        shapes = {name.removeprefix("model."): shape for name, (shape, _) in kinds.items() if name.startswith("model.")}
        if shapes != {name: tensor.shape for name, tensor in ours.items()}:
            raise CheckpointError(f"{folder} holds other parameters than this model trains: take the same model.")
        parameters = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
        places = {name: _place(name, *kind, ours, parameters) for name, kind in kinds.items()}
        self._read(folder, kinds, places)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in places.items():
            kind, rest = name.split(".", 1)
            if kind == "optimizer":
                index, key = rest.split(".")
                moments.setdefault(int(index), {})[key] = tensor
            elif kind in ("best", "extra"):
                getattr(trainer, kind)[rest] = tensor
        trainer.optimizer.load_state_dict(trainer.optimizer.state_dict() | {"state": moments})
        vars(trainer.history).update(history)

    def _read(self, folder: Path, kinds: dict, places: dict[str, Tensor]) -> None:
        """Fill `places` with a checkpoint's tensors, or in each process with its parts of them."""
        if self.sharded and _has_parts(folder):  # each process reads what it needs
            self.together(partial(distributed.load_parts, places, folder, everywhere=True))
            return
        read: dict[str, Tensor] = {}
        self.on_first(lambda: read.update(_read_whole(folder, kinds)))
        for name, place in places.items():
            shape, dtype = kinds[name]
            tensor = torch.empty(shape, dtype=dtype, device=self.trainer.device)
            if distributed.rank() == 0:
                tensor.copy_(read[name])
            distributed.send_from_first([tensor])
            place.copy_(distributed.own_part(tensor, place))


def _place(name, shape, dtype, ours, parameters) -> Tensor:
    """Return the tensor to read into: the Trainer's own, or a new one that is divided like the weight it belongs to."""
    kind, rest = name.split(".", 1)
    if kind == "model":
        return ours[rest]
    if kind == "extra":  # it belongs to no weight
        return torch.zeros(shape, dtype=dtype, device=next(iter(ours.values())).device)
    like = ours[rest] if kind == "best" else parameters[int(rest.split(".")[0])].detach()
    same = like.shape == shape
    return torch.zeros_like(like, dtype=dtype) if same else torch.zeros(shape, dtype=dtype, device=like.device)


def _shared(settings: dict) -> dict:
    """Return settings in which it does not matter how many processes share the micro-batches of a step."""
    counts = "gradient_accumulation_steps", "the number of processes"
    rest = {name: value for name, value in settings.items() if name not in counts}
    return rest | {" times ".join(counts): math.prod(settings.get(name, 1) for name in counts)}


# ---- Files


def _write_parts(tensors: dict[str, Tensor], folder: Path) -> dict[str, str]:
    """Write what this process holds of sharded tensors; return the SHA-256 of its files by name."""
    distributed.save_parts(tensors, folder)
    return {path.name: _sha256(path) for path in folder.glob(f"shard-{distributed.rank() + 1:05d}-*")}


def _has_parts(folder: Path) -> bool:
    return any(folder.glob("shard-*"))


def _kinds(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Return shape and dtype of all tensors of a checkpoint."""
    if _has_parts(folder):
        return distributed.kinds_of_parts(folder)
    return {name: (tensor.shape, tensor.dtype) for name, tensor in _read_whole(folder, {}).items()}


def _read_whole(folder: Path, kinds: dict) -> dict[str, Tensor]:
    """Return all tensors of a checkpoint, whole, on the CPU."""
    if _has_parts(folder):
        tensors = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in kinds.items()}
        distributed.load_parts(tensors, folder, everywhere=False)
        return tensors
    files = {path.stem: load_file(path) for path in folder.glob("*.safetensors")}  # not read before they are used
    return {f"{kind}.{name}": tensor for kind, tensors in files.items() for name, tensor in tensors.items()}


def _verified(folder: Path, shares: bool) -> dict:
    """Return the state of a checkpoint after comparing every byte of it; raise ValueError if one differs.

    If it `shares` the work, each process compares its share of the files.
    """
    state = read_json(folder / "state.json")
    if not isinstance(state, dict) or state.pop("state_sha256", None) != digest(state):
        raise ValueError("state.json was altered")
    names = sorted(state["sha256"])
    for name in names[distributed.rank() :: distributed.world_size()] if shares else names:
        if _sha256(folder / name) != state["sha256"][name]:
            raise ValueError(f"{name} was truncated or altered")
    return state


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
