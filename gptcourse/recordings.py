"""Runs that were recorded for the course: the atlas of thousands of short runs, and the time machine's checkpoints.

`recipes/atlas.py` and `recipes/time_machine.py` make them. A point of the atlas has a value for each axis but the seed:
`{"batch": 8, "width": 64, "parametrisation": "muP", "schedule": "cosine", "warmup": 0.1, "rate": 2**-6}`.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch

from gptcourse.corpora import shakespeare
from gptcourse.data import global_random
from gptcourse.model import GPT, GPTConfig
from gptcourse.tokenizers import CharTokenizer, load_tokenizer
from gptcourse.training import History, TrainingConfig, train

ASSETS = Path(str(files("gptcourse") / "assets"))
BASE_WIDTH = 16  # under muP a run of this width is the standard one, bit for bit
HEAD_SIZE = 16
CONTEXT = 64
TOKENS = 24_576  # each run reads so many, whatever its batch
HELD_OUT_TOKENS = 4_097  # the beginning of the held-out plays: 4,096 predictions
# What reading a file that is missing or damaged raises.
DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RecursionError, BadZipFile)
POINTS = 48  # of a curve, each the mean loss over as many tokens

Point = dict[str, Any]


def settings_of(point: Point) -> dict[str, Any]:
    """Return the fields of GPTConfig and TrainingConfig that a point stands for; `steps` follows from the batch."""
    steps = TOKENS // (point["batch"] * CONTEXT)
    is_mup = point["parametrisation"] == "muP" and point["width"] != BASE_WIDTH
    return {
        "n_embd": point["width"],
        "n_head": point["width"] // HEAD_SIZE,
        "mup_base_width": BASE_WIDTH if is_mup else None,
        "steps": steps,
        "batch_size": point["batch"],
        "learning_rate": point["rate"],
        "lr_scheduler_type": point["schedule"],
        "warmup_steps": math.ceil(point["warmup"] * steps),
    }


def configs_of(point: Point, vocab_size: int, seed: int) -> tuple[GPTConfig, TrainingConfig]:
    """Return the model and the training of one run of the atlas."""
    settings = settings_of(point)
    shape = {name: settings.pop(name) for name in ("n_embd", "n_head", "mup_base_width")}
    model = GPTConfig(vocab_size, CONTEXT, n_layer=2, tie_word_embeddings=False, **shape)
    return model, TrainingConfig(**settings, seed=seed)


def binned(losses, steps: int) -> np.ndarray:
    """Return the losses of a run as POINTS means over equally many tokens; NaN from where it broke off.

    A step that reads more tokens than a point stands for fills several points.
    """
    whole = np.full(steps, np.nan)
    whole[: len(losses)] = losses
    return whole.repeat(max(1, POINTS // steps)).reshape(POINTS, -1).mean(1)


class Run(NamedTuple):
    """What is recorded of a point: tokens (n,), for each of S seeds the losses (S, n), and the last held-out loss (S,).

    A loss counts for the middle of the tokens that it was measured on. Where a run diverged, its losses are NaN from
    there on, and its held-out loss is inf.
    """

    tokens: np.ndarray
    curves: np.ndarray
    held_out: np.ndarray


@dataclass(frozen=True)
class Atlas:
    """All runs: `curves` (one dimension for each axis, the seed last, then POINTS) and `held_out` (without POINTS).

    `axes` maps the name of each axis to its values, in the order of the dimensions.
    """

    axes: dict[str, tuple]
    curves: np.ndarray
    held_out: np.ndarray
    vocab_size: int

    @property
    def n_runs(self) -> int:
        """Number of runs made: those of the base width count for both parametrisations."""
        share = 1 - (BASE_WIDTH in self.axes["width"]) / (2 * len(self.axes["width"]))
        return round(self.held_out.size * (share if len(self.axes["parametrisation"]) == 2 else 1))

    def index(self, point: Point) -> tuple[int | slice, ...]:
        """Return the index of a point, or of all points with the values that are given. Raises ValueError."""
        for name, value in point.items():
            if value not in self.axes.get(name, ()):
                known = ", ".join(f"{axis} {values}" for axis, values in self.axes.items())
                raise ValueError(f"The atlas has no run with {name} = {value!r}: there are {known}.")
        return tuple(values.index(point[axis]) if axis in point else slice(None) for axis, values in self.axes.items())

    def run(self, point: Point) -> Run:
        """Return what is recorded of a point, for all seeds. Raises ValueError for a point that is not there."""
        index, n_points = self.index(point), min(POINTS, settings_of(point)["steps"])
        tokens = (np.arange(n_points) + 0.5) * TOKENS / n_points
        return Run(tokens, self.curves[index][:, :: POINTS // n_points], self.held_out[index])

    def losses(self, **fixed) -> np.ndarray:
        """Return the held-out loss, its mean over the seeds, of all points with the given values. Raises ValueError.

        The result has one dimension for each axis that is not fixed, in the order of `axes`.
        """
        return self.held_out[self.index(fixed)].mean(-1)

    def best(self, **fixed) -> tuple[Point, float]:
        """Return the point with the lowest mean held-out loss among those with the given values, and that loss."""
        losses, axes = self.losses(**fixed), {name: values for name, values in self.axes.items() if name != "seed"}
        where = iter(np.unravel_index(np.argmin(losses), losses.shape))
        point = {name: fixed[name] if name in fixed else values[next(where)] for name, values in axes.items()}
        return point, float(losses.min())

    def rank(self, point: Point) -> tuple[int, int]:
        """Return the rank of a point among all points of its width, 1 for the best, and their number."""
        # At the base width both parametrisations are the same runs.
        names = ("width", "parametrisation") if point["width"] == BASE_WIDTH else ("width",)
        losses = self.losses(**{name: point[name] for name in names})
        return 1 + int((losses < self.losses(**point)).sum()), losses.size


def load_atlas(directory: str | Path = ASSETS / "atlas") -> Atlas:
    """Read the atlas that the course ships, or another that `recipes/atlas.py` has written. Raises ValueError."""
    try:
        with np.load(Path(directory) / "atlas.npz") as arrays:  # allow_pickle is off, as it is by default
            about = json.loads(str(arrays["about"]))
            curves, held_out = arrays["curves"].astype(np.float32), arrays["held_out"]
        axes = {name: tuple(values) for name, values in about["axes"].items()}
        return Atlas(axes, curves, held_out, about["vocab_size"])
    except DAMAGED as error:
        raise ValueError(f"{directory} holds no whole atlas ({error}): give a folder that has one.") from error


def save_atlas(atlas: Atlas, directory: Path) -> None:
    """Write atlas.npz: the curves in half precision, which is finer than the noise of a batch."""
    directory.mkdir(parents=True, exist_ok=True)
    about = np.array(json.dumps({"axes": atlas.axes, "vocab_size": atlas.vocab_size}))
    curves, held_out = atlas.curves.astype(np.float16), atlas.held_out.astype(np.float32)
    np.savez_compressed(directory / "atlas.npz", curves=curves, held_out=held_out, about=about)


@functools.cache
def atlas_tokens() -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return the ids that the runs of the atlas train on, those they are measured on, and the vocabulary's size.

    Raises PretrainedError if the plays cannot be fetched.
    """
    plays = shakespeare()
    tokenizer = CharTokenizer(plays.train + plays.validation)
    held_out = tokenizer.encode(plays.validation[:HELD_OUT_TOKENS])
    return torch.tensor(tokenizer.encode(plays.train)), torch.tensor(held_out), tokenizer.vocab_size


def train_point(point: Point, seed: int, callback=None) -> History:
    """Train one run of the atlas again, as it was recorded. Raises DivergedError and PretrainedError."""
    tokens, held_out, vocab_size = atlas_tokens()
    shape, config = configs_of(point, vocab_size, seed)
    with global_random, torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they are
        torch.manual_seed(seed)
        model = GPT(shape)
    return train(model, tokens, config, validation_tokens=held_out, callback=callback, device="cpu", progress=False)


class Recording:
    """The checkpoints of a recorded run: `records` (what was measured, by step), `steps`, `tokenizer` and `settings`.

    Step 0 is the model before training. The shapes and units of a record are those of the card, README.md, in the same
    folder. Raises ValueError for a damaged folder.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        try:
            run = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
            self.settings = run["settings"]
            self.records = {record["step"]: record for record in run["checkpoints"]}
        except DAMAGED as error:
            raise ValueError(f"{folder} holds no whole recording ({error}): give a folder that has one.") from error
        self.steps = list(self.records)
        self.tokenizer = load_tokenizer(self.folder)

    def model(self, step: int) -> GPT:
        """Open the model as it was after `step` steps. Raises ValueError for a step that was not kept."""
        if step not in self.records:
            raise ValueError(f"Step {step} was not kept: choose one of {', '.join(map(str, self.steps))}.")
        return GPT.load(self.folder / f"step-{step:05d}")

    def series(self, name: str) -> list:
        """Return one entry of the records for every step, such as series("held_out_loss")."""
        return [record[name] for record in self.records.values()]

    def best_head(self) -> tuple[int, int]:
        """Return (layer, head) of the head with the highest induction score at the last step."""
        scores = np.array(self.series("induction")[-1])
        return divmod(int(scores.argmax()), scores.shape[1])


@functools.cache
def time_machine() -> Recording:
    """Open the time machine's run, which comes with the course."""
    return Recording(ASSETS / "time-machine")
