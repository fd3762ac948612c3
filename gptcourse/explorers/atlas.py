"""The atlas: thousands of short recorded runs, one for every place of the sliders.

`recipes/atlas.py` has made them. Nothing here computes a curve, except the button that trains one run again.

A point is a dict with a value for each axis but the seed: `{"batch": 8, "width": 64, "parametrisation": "muP",
"schedule": "cosine", "warmup": 0.1, "rate": 2**-6}`. `settings_of` says what run that is.
"""

from __future__ import annotations

import functools
import json
import math
import threading
import time
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import ipywidgets as widgets
import numpy as np
import torch

from gptcourse.corpora import shakespeare
from gptcourse.explorers import svg
from gptcourse.model import GPT, GPTConfig
from gptcourse.pretrained import PretrainedError
from gptcourse.tokenizers import CharTokenizer
from gptcourse.training import DivergedError, History, TrainingConfig, train

BASE_WIDTH = 16  # under muP a run of this width is the standard one, bit for bit
HEAD_SIZE = 16
CONTEXT = 64
TOKENS = 24_576  # each run reads so many, whatever its batch
HELD_OUT_TOKENS = 4_097  # the beginning of the held-out plays: 4,096 predictions
POINTS = 48  # of a curve, each the mean loss over as many tokens
PARAMETRISATIONS = ("standard", "muP")
LABELS = {"batch": "batch size", "warmup": "warm-up", "rate": "learning rate"}
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
GREY = "#8a8a8a"
HEIGHT = 300

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
    whole = np.full(max(steps, POINTS), np.nan)
    losses = np.repeat(np.asarray(losses, dtype=float), max(1, POINTS // steps))
    whole[: len(losses)] = losses
    return whole.reshape(POINTS, -1).mean(1)


class Run(NamedTuple):
    """What is recorded of a point: tokens (n,), for each seed the loss there (S, n) and the last held-out loss (S,).

    A loss counts for the middle of the tokens that it was measured on. A run that diverged has NaN in its curve from
    there on, and inf as its held-out loss.
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
        """How many runs were made: those of the base width count for both parametrisations."""
        share = 1 - (BASE_WIDTH in self.axes["width"]) / (2 * len(self.axes["width"]))
        return round(self.held_out.size * (share if len(self.axes["parametrisation"]) == 2 else 1))

    def _place(self, point: Point) -> tuple[int | slice, ...]:
        """Return the index of a point, or of all points that have the values that are given."""
        for name, value in point.items():
            if value not in self.axes.get(name, ()):
                known = ", ".join(f"{axis} {values}" for axis, values in self.axes.items())
                raise ValueError(f"The atlas has no run with {name} = {value!r}: there are {known}.")
        return tuple(values.index(point[axis]) if axis in point else slice(None) for axis, values in self.axes.items())

    def run(self, point: Point) -> Run:
        """Return what is recorded of a point, for all seeds. Raises ValueError for a point that is not there."""
        place, n_points = self._place(point), min(POINTS, settings_of(point)["steps"])
        tokens = (np.arange(n_points) + 0.5) * TOKENS / n_points
        return Run(tokens, self.curves[place][:, :: POINTS // n_points], self.held_out[place])

    def losses(self, **fixed) -> np.ndarray:
        """Return the held-out loss, its mean over the seeds, of every point that has the given values.

        The result has one dimension for each axis that is not fixed, in the order of `axes`. Raises ValueError.
        """
        return self.held_out[self._place(fixed)].mean(-1)

    def best(self, **fixed) -> tuple[Point, float]:
        """Return the point with the lowest mean held-out loss among those with the given values, and that loss."""
        losses = self.losses(**fixed)
        free = [name for name in self.axes if name not in fixed and name != "seed"]
        where = np.unravel_index(np.argmin(losses), losses.shape)
        found = {name: self.axes[name][n] for name, n in zip(free, where, strict=True)}
        return {name: (fixed | found)[name] for name in self.axes if name != "seed"}, float(losses[where])

    def rank(self, point: Point) -> tuple[int, int]:
        """Return the place of a point among all points of its width, 1 for the best, and how many these are."""
        fixed = {"width": point["width"]}
        if point["width"] == BASE_WIDTH:  # both parametrisations are the same runs
            fixed["parametrisation"] = point["parametrisation"]
        losses = self.losses(**fixed)
        return 1 + int((losses < self.losses(**point)).sum()), losses.size


def load_atlas(directory: str | Path | None = None) -> Atlas:
    """Read the atlas that the course ships, or one that `recipes/atlas.py` has written elsewhere."""
    directory = Path(str(files("gptcourse") / "assets" / "atlas")) if directory is None else Path(directory)
    with np.load(directory / "atlas.npz") as arrays:  # allow_pickle is off, as it is by default
        about = json.loads(str(arrays["about"]))
        curves, held_out = arrays["curves"].astype(np.float32), arrays["held_out"]
    axes = {name: tuple(values) for name, values in about["axes"].items()}
    return Atlas(axes, curves, held_out, about["vocab_size"])


def save_atlas(atlas: Atlas, directory: Path) -> None:
    """Write atlas.npz: the curves in half precision, which is finer than the noise of a batch."""
    directory.mkdir(parents=True, exist_ok=True)
    about = json.dumps({"axes": atlas.axes, "vocab_size": atlas.vocab_size})
    np.savez_compressed(
        directory / "atlas.npz",
        curves=atlas.curves.astype(np.float16),
        held_out=atlas.held_out.astype(np.float32),
        about=np.array(about),
    )


@functools.cache
def atlas_tokens() -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return the text that the runs learn from and the piece they are measured on, as ids, and the vocabulary's size.

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
    with torch.random.fork_rng(devices=[]):  # the reader's own random numbers stay as they are
        torch.manual_seed(seed)
        model = GPT(shape)
    options = {"validation_tokens": held_out, "callback": callback, "device": "cpu", "progress": False}
    return train(model, tokens, config, **options)


# ---- The explorer


def power_of_two(rate: float) -> str:
    """Return a rate as readers compare it and as they type it: 2⁻⁷ = 0.0078."""
    return f"{_power(rate)} = {rate:.2g}"


def _power(rate: float) -> str:
    return f"2{str(round(math.log2(rate))).translate(SUPERSCRIPTS)}"


def atlas_explorer(atlas: Atlas | None = None) -> widgets.VBox:
    """Return sliders for every axis of the atlas, with the recorded run under them and a button that trains it again.

    Left: the training loss of the chosen point, a thin line for each seed, before the best of its width in grey.
    Right: how the held-out loss at the end depends on the learning rate, all else as the sliders say. The button
    trains the point with the first seed, on this machine, and draws it on top; while it trains, the same button stops
    it. `.training` is the thread in which the last live run was made, None before the first.
    """
    return _AtlasExplorer(load_atlas() if atlas is None else atlas)


class _AtlasExplorer(widgets.VBox):
    """The sliders, the picture and the button; what is live is kept between two pictures."""

    seconds_between_pictures = 0.1

    def __init__(self, atlas: Atlas):
        self.atlas = atlas
        start, _ = atlas.best(width=atlas.axes["width"][-1], parametrisation=atlas.axes["parametrisation"][0])
        self.controls = {name: _slider(name, atlas.axes[name], start[name]) for name in _slider_order(atlas)}
        self.picture, self.button, self.message = widgets.HTML(), widgets.Button(), widgets.HTML()
        self.button.layout.width = "200px"
        self.training: threading.Thread | None = None
        self.live: _Live | None = None
        grid = widgets.GridBox(
            list(self.controls.values()), layout=widgets.Layout(grid_template_columns="repeat(auto-fit, 340px)")
        )
        super().__init__([grid, self.picture, widgets.HBox([self.button, self.message])])
        for control in self.controls.values():
            control.observe(self.draw, "value")
        self.button.on_click(self._press)
        self._rest()
        self.draw()

    @property
    def point(self) -> Point:
        """The point under the sliders."""
        return {name: self.controls[name].value for name in self.atlas.axes if name != "seed"}

    def draw(self, _change=None) -> None:
        """Show the chosen point, with the live run if it is of this point."""
        point = self.point
        live = self.live if self.live is not None and self.live.point == point else None
        self.picture.value = _picture(self.atlas, point, live)

    def _press(self, _button) -> None:
        """Start a live run, or stop the one that is under way."""
        if self.training is not None and self.training.is_alive():
            self.live.stopped = True
            return
        self.live = _Live(self.point)
        self.button.description, self.button.icon = "Stop", "stop"
        self.message.value = ""
        # In a thread of its own the kernel stays free, so that the sliders and the stop arrive while it trains.
        self.training = threading.Thread(target=self._train, daemon=True)
        self.training.start()

    def _train(self) -> None:
        seed, live, drawn = self.atlas.axes["seed"][0], self.live, -math.inf

        def look(history: History) -> bool:
            """Draw the run so far, now and then, and say whether it is to stop."""
            nonlocal drawn
            live.losses, now = list(history.loss), time.monotonic()
            if now - drawn >= self.seconds_between_pictures:
                drawn = now
                self.draw()
            return live.stopped

        try:
            history = train_point(live.point, seed, look)
            end = "stopped" if history.stopped else f"held-out loss {history.eval_loss[-1]:.4f}"
            self.message.value = svg.paragraph(f"Trained here, seed {seed}: {end}")
        except (DivergedError, PretrainedError) as fault:
            self.message.value = svg.paragraph(str(fault))
        finally:
            self._rest()
        self.draw()

    def _rest(self) -> None:
        self.button.description, self.button.icon = "Train this run now", "play"


@dataclass
class _Live:
    """A run that is made now, or was the last to be."""

    point: Point
    losses: list[float] | tuple = ()
    stopped: bool = False


def _slider_order(atlas: Atlas) -> list[str]:
    first = ["rate", "batch", "warmup", "schedule", "width", "parametrisation"]
    return [name for name in first if name in atlas.axes]


def _slider(name: str, values: tuple, value) -> widgets.SelectionSlider:
    label = {"rate": _power, "warmup": "{:.0%}".format}.get(name, str)  # there is room for few letters
    return widgets.SelectionSlider(
        options=[(label(one), one) for one in values],
        value=value,
        description=LABELS.get(name, name),
        style={"description_width": "105px"},
        layout=widgets.Layout(width="330px"),
    )


def _picture(atlas: Atlas, point: Point, live: _Live | None) -> str:
    run, (best, best_loss), (rank, of) = atlas.run(point), atlas.best(width=point["width"]), atlas.rank(point)
    loss = float(run.held_out.mean())
    ends = f" (seeds {run.held_out.min():.3f} to {run.held_out.max():.3f})" if math.isfinite(loss) else ""
    numbers = f"held-out loss {loss:.3f}{ends}" if math.isfinite(loss) else "this run diverged"
    settings = settings_of(point)
    chosen = (
        f"rate {power_of_two(point['rate'])}, {settings['steps']} steps, {settings['warmup_steps']} of them warm-up"
    )
    place = f"place {rank} of {of} at width {point['width']}; the best has {best_loss:.3f} with {_words(best)}"
    said = f"{chosen}  ·  {numbers}  ·  {place}"
    parts = _curve_parts(atlas, point, run, atlas.run(best), live) + _valley_parts(atlas, point, loss)
    return svg.paragraph(said) + svg.picture(parts, HEIGHT, said)


def _words(point: Point) -> str:
    warmup = f"warm-up {point['warmup']:.0%}" if point["warmup"] else "no warm-up"
    where = f"{point['schedule']}, {warmup}, {point['parametrisation']}"
    return f"rate {_power(point['rate'])}, batch {point['batch']}, {where}"


def _curve_parts(atlas: Atlas, point: Point, run: Run, best: Run, live: _Live | None) -> list[str]:
    """Draw the loss against the tokens: grey the best, blue the chosen, orange the live run."""
    nothing = math.log(atlas.vocab_size)
    frame = svg.Frame(44, 420, 26, HEIGHT - 40, (0, TOKENS), (math.floor(5 * _lowest(atlas)) / 5 - 0.2, nothing + 0.4))
    parts = svg.axes(frame, {tick: svg.short(tick) for tick in svg.ticks(0, TOKENS, 5)})
    y = frame.place(0, nothing)[1]
    parts += [
        svg.line(frame.left, y, frame.right, y, color=svg.GREEN, opacity=1, width=1.5, dashed=True),
        svg.text(frame.right, y - 5, f"every character equally likely: ln {atlas.vocab_size}", anchor="end", size=11),
        svg.text(frame.left - 36, 14, "training loss (nats per token)", size=12, opacity=0.85),
        svg.text(frame.right, HEIGHT - 6, "tokens read", anchor="end", size=12, opacity=0.85),
        _key(frame, live),
    ]
    parts += [_path(frame, best.tokens, best.curves.mean(0), GREY, 3.5, 0.55)]
    parts += [_path(frame, run.tokens, curve, svg.BLUE, 1.4) for curve in run.curves]
    if live is not None and len(live.losses):
        curve = binned(live.losses, settings_of(point)["steps"])[:: POINTS // len(run.tokens)]
        parts.append(_path(frame, run.tokens, curve, svg.ORANGE, 2.2))
    return parts


def _key(frame: svg.Frame, live: _Live | None) -> str:
    names = {"trained here": svg.ORANGE} if live is not None else {}
    names |= {"best of this width": GREY, "this run, each seed": svg.BLUE}
    return "".join(
        svg.text(frame.right, frame.top + 54 + 15 * n, name, anchor="end", color=color, size=11, bold=True)
        for n, (name, color) in enumerate(names.items())
    )


def _valley_parts(atlas: Atlas, point: Point, loss: float) -> list[str]:
    """Draw the held-out loss against the rate, all else as chosen: grey the best of the width at each rate."""
    rates = np.log2(atlas.axes["rate"])
    room = 0.4
    frame = svg.Frame(470, svg.WIDTH - 8, 26, HEIGHT - 40, (rates[0] - room, rates[-1] + room), _valley_range(atlas))
    labels = {rate: _power(2.0**rate) for rate in rates[:: 1 + len(rates) // 6]}
    others = {name: value for name, value in point.items() if name != "rate"}
    valley = atlas.held_out[atlas._place(others)]  # (R, S)
    envelope = [atlas.best(width=point["width"], rate=rate)[1] for rate in atlas.axes["rate"]]
    parts = svg.axes(frame, labels)
    parts += [
        svg.text(frame.left - 36, 14, "held-out loss at the end", size=12, opacity=0.85),
        svg.text(frame.right, HEIGHT - 6, "learning rate", anchor="end", size=12, opacity=0.85),
        _path(frame, rates, envelope, GREY, 3.5, 0.55),
        *(_path(frame, rates, losses, svg.BLUE, 1.4) for losses in valley.T),
        svg.point(*frame.place(math.log2(point["rate"]), min(loss, frame.y_range[1]))),
    ]
    return parts


def _path(frame: svg.Frame, xs, ys, color: str, width: float, opacity: float = 1.0) -> str:
    """Return a curve; where it is not finite it goes along the top edge: the cliff."""
    ys = np.where(np.isfinite(ys), ys, frame.y_range[1])
    places = " ".join("{:.1f},{:.1f}".format(*frame.place(x, y)) for x, y in zip(xs, ys, strict=True))
    style = f'stroke="{color}" stroke-width="{width}" stroke-opacity="{opacity}" stroke-linejoin="round"'
    return f'<polyline points="{places}" fill="none" {style}/>'


def _lowest(atlas: Atlas) -> float:
    return float(atlas.held_out.min())


def _valley_range(atlas: Atlas) -> tuple[float, float]:
    return _lowest(atlas) - 0.1, math.log(atlas.vocab_size) + 0.2
