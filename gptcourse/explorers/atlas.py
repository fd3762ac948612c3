"""Sliders for every axis of the atlas of `gptcourse.recordings`, and a button that trains one run again."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass

import ipywidgets as widgets
import numpy as np

from gptcourse.drawings import svg
from gptcourse.explorers.explorer import Explorer, choice
from gptcourse.pretrained import PretrainedError
from gptcourse.recordings import POINTS, TOKENS, Atlas, Point, binned, load_atlas, settings_of, train_point
from gptcourse.training import DivergedError, History

ORDER = ("rate", "batch", "warmup", "schedule", "width", "parametrisation")
NAMES = {"rate": "learning rate", "batch": "batch size", "warmup": "warm-up"}
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def power_of_two(rate: float) -> str:
    """Return a rate as readers compare it and as they type it: 2⁻⁷ = 0.0078."""
    return f"{_power(rate)} = {rate:.2g}"


def _power(rate: float) -> str:
    return f"2{str(round(math.log2(rate))).translate(SUPERSCRIPTS)}"


@dataclass
class LiveRun:
    """A run that is made now, or was the last to be."""

    point: Point
    losses: list[float] | tuple = ()
    stopped: bool = False


class AtlasExplorer(Explorer):
    """Sliders for every axis of the atlas, with the recorded run under them and a button that trains it again.

    Left: the training loss of the chosen point, a thin line for each seed, before the best of its width in grey.
    Right: how the held-out loss at the end depends on the learning rate, all else as the sliders say. The button
    trains the point with the first seed, on this machine, and draws it on top; while it trains, the same button stops
    it. `.training` is the thread in which the last live run was made, None before the first.
    """

    seconds_between_pictures = 0.1

    def __init__(self, atlas: Atlas | None = None):
        self.atlas = atlas = atlas or load_atlas()
        self.button, self.message = widgets.Button(layout=widgets.Layout(width="200px")), widgets.HTML()
        self.training: threading.Thread | None = None
        self.live: LiveRun | None = None
        self.button.on_click(self._press)
        self._rest()
        start, _ = atlas.best(width=atlas.axes["width"][-1], parametrisation=atlas.axes["parametrisation"][0])
        label = {"rate": _power, "warmup": "{:.0%}".format}  # there is room for few letters
        controls = {
            axis: choice(NAMES.get(axis, axis), [(label.get(axis, str)(v), v) for v in atlas.axes[axis]], start[axis])
            for axis in ORDER
        }
        super().__init__(controls, self._picture, below=[widgets.HBox([self.button, self.message])])

    @property
    def point(self) -> Point:
        """The point under the sliders."""
        return {name: self.controls[name].value for name in self.atlas.axes if name != "seed"}

    def _press(self, _button) -> None:
        """Start a live run, or stop the one that is under way."""
        if self.training is not None and self.training.is_alive():
            self.live.stopped = True
            return
        self.live = LiveRun(self.point)
        self.button.description, self.button.icon, self.message.value = "Stop", "stop", ""
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

    def _picture(self, **_values) -> str:
        atlas, point = self.atlas, self.point
        run, (best, best_loss), (rank, of) = atlas.run(point), atlas.best(width=point["width"]), atlas.rank(point)
        loss, settings = float(run.held_out.mean()), settings_of(point)
        ends = f"held-out loss {loss:.3f} (seeds {run.held_out.min():.3f} to {run.held_out.max():.3f})"
        said = (
            f"rate {power_of_two(point['rate'])}, {settings['steps']} steps, {settings['warmup_steps']} of them warm-up"
            f"  ·  {ends if math.isfinite(loss) else 'this run diverged'}  ·  "
            f"place {rank} of {of} at width {point['width']}; the best has {best_loss:.3f} with {_words(best)}"
        )
        live = self.live if self.live is not None and self.live.point == point else None
        charts = _curves(atlas, run, atlas.run(best), live), _valley(atlas, point, loss)
        return svg.paragraph(said) + svg.side_by_side(*charts)


def _words(point: Point) -> str:
    warmup = f"warm-up {point['warmup']:.0%}" if point["warmup"] else "no warm-up"
    where = f"{point['schedule']}, {warmup}, {point['parametrisation']}"
    return f"rate {_power(point['rate'])}, batch {point['batch']}, {where}"


def _curves(atlas: Atlas, run, best, live: LiveRun | None) -> str:
    """Draw the loss against the tokens: pale the best of this width, blue the chosen, orange the live run."""
    nothing, top = math.log(atlas.vocab_size), math.log(atlas.vocab_size) + 0.4
    series = {"this run": (run.tokens, *_to_the_edge(run.curves, top))}
    if live is not None and len(live.losses):
        curve = binned(live.losses, settings_of(live.point)["steps"])[:: POINTS // len(run.tokens)]
        series["trained here"] = (run.tokens, _to_the_edge(curve, top) if live.stopped else curve)
    return svg.line_chart(
        series,
        pale={"best of this width": (best.tokens, _to_the_edge(best.curves.mean(0), top))},
        labels=("tokens read", "training loss"),
        x_range=(0, TOKENS),
        x_ticks={tick: svg.short(tick) for tick in range(0, TOKENS, 5_000)},
        y_range=(math.floor(5 * float(atlas.held_out.min())) / 5 - 0.2, top),
        floor=(nothing, f"every character equally likely: ln {atlas.vocab_size}"),
        width=svg.HALF,
        height=300,
    )


def _valley(atlas: Atlas, point: Point, loss: float) -> str:
    """Draw the held-out loss against the rate, all else as chosen, before the best of the width at each rate."""
    rates, top = np.log2(atlas.axes["rate"]), math.log(atlas.vocab_size) + 0.2
    valley = atlas.held_out[atlas.index({name: value for name, value in point.items() if name != "rate"})]  # (R, S)
    envelope = [atlas.best(width=point["width"], rate=rate)[1] for rate in atlas.axes["rate"]]
    return svg.line_chart(
        {"this run": (rates, *_to_the_edge(valley.T, top))},
        pale={"best of this width": (rates, _to_the_edge(envelope, top))},
        labels=("learning rate", "held-out loss at the end"),
        x_range=(rates[0] - 0.4, rates[-1] + 0.4),
        x_ticks={rate: _power(2.0**rate) for rate in rates[:: 1 + len(rates) // 6]},
        y_range=(float(atlas.held_out.min()) - 0.1, top),
        dot=(math.log2(point["rate"]), min(loss, top)),
        width=svg.HALF,
        height=300,
    )


def _to_the_edge(losses, top: float) -> np.ndarray:
    """Return losses in which what diverged goes along the top edge: the cliff."""
    return np.minimum(np.nan_to_num(losses, nan=top, posinf=top), top)
