"""What all panels that write share: decoding sliders, and a text written anew once they have stood still."""

import threading
import time
from collections.abc import Callable

import ipywidgets as widgets

from gptcourse.drawings import svg
from gptcourse.explorers.explorer import Explorer, slider
from gptcourse.generation import Sampling, only_tokens_of, stream
from gptcourse.views import context_window, unwrap

SLIDERS = {  # name: (least, most, step, description)
    "temperature": (0.0, 3.0, 0.05, "temperature"),
    "top_k": (0, 100, 1, "top-k (0: off)"),
    "top_p": (0.05, 1.0, 0.01, "top-p (1: off)"),
    "min_p": (0.0, 0.5, 0.01, "min-p (0: off)"),
    "top_n_sigma": (0.0, 5.0, 0.1, "top-nσ (0: off)"),
    "typical_p": (0.05, 1.0, 0.01, "typical (1: off)"),
    "repetition_penalty": (1.0, 2.0, 0.05, "repetition penalty"),
    "seed": (0, 99, 1, "seed"),
}
PROSE = (
    "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.55;max-width:680px;padding:8px 0 4px 12px;"
    f"border-left:3px solid {svg.BLUE};font-family:{svg.MONO}"
)
REDRAW = 0.1  # seconds between two pictures of a text that is being written
HINT = "Type your own, then click outside the box: the model reads it."


class Writer(Explorer):
    """A panel that writes with a model, in a thread of its own, and starts anew when something has been moved.

    A subclass draws in ``draw_picture(**values)``, writes in ``compose(turn)``, giving up once ``turn`` is over, and
    shows an error in ``fail(reason)``. ``.wait()`` returns when nothing is being written. The model is read through a
    view, so that another thread may train it meanwhile.
    """

    seconds_to_stand_still = 0.25

    def __init__(self, model, tokenizer, max_new_tokens: int, controls, **layout):
        self.model, self.tokenizer, self.max_new_tokens = unwrap(model), tokenizer, max_new_tokens
        self.rule = only_tokens_of(tokenizer)
        self.turn, self.timer, self.writing = 0, None, threading.Lock()
        super().__init__(controls, self.draw_picture, **layout)
        self.write(self.turn)

    def moved(self, control):
        """Write when nothing has moved for a moment; until then the old text stands."""
        self.write_later()

    def wait(self):
        """Return when nothing is being written."""
        if self.timer is not None:
            self.timer.join()

    def stop_writing(self):
        """Give up what is being written."""
        self.turn += 1  # the thread sees that its turn is over
        if self.timer is not None:
            self.timer.cancel()

    def write_later(self, seconds: float | None = None):
        """Write anew when nothing has moved for a moment."""
        self.stop_writing()
        seconds = self.seconds_to_stand_still if seconds is None else seconds
        self.timer = threading.Timer(seconds, self.write, [self.turn])
        self.timer.daemon = True
        self.timer.start()

    def write(self, turn: int):
        """Write; an error is shown, for raised in a thread it would be printed where no learner looks."""
        try:
            with self.writing:  # one that cannot be given up half way ends first
                if turn == self.turn:
                    self.compose(turn)
        except Exception as error:
            if turn == self.turn:
                self.fail(str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}")

    def fail(self, reason: str):
        """Show why nothing was written."""
        self.picture.value = svg.paragraph(reason)

    def encoded(self, text: str) -> list[int]:
        """Return the ids of a prompt. Raises ValueError if the model cannot read it."""
        ids = list(self.tokenizer.encode(text))
        if not ids:
            raise ValueError("The prompt is empty: type at least one character.")
        return self.fitting(ids)

    def fitting(self, ids: list[int]) -> list[int]:
        """Return the ids. Raises ValueError if they are more than the model reads at once."""
        limit = context_window(self.model)
        if len(ids) > limit:
            raise ValueError(f"The prompt has {len(ids)} tokens and the model reads {limit} at once: shorten it.")
        return ids

    def written(self, turn: int, ids: list[int], sampling: Sampling, show: Callable, eos_token_id=None):
        """Return the new tokens, or None if the turn is over; now and then show(the new tokens so far)."""
        new, shown = [], time.monotonic()
        for token in stream(self.model, ids, self.max_new_tokens, sampling, eos_token_id, True, self.rule):
            if turn != self.turn:
                return None
            new.append(int(token))
            if time.monotonic() - shown > REDRAW:
                show(new)
                shown = time.monotonic()
        return new if turn == self.turn else None


def sliders(start: Sampling = Sampling(), prefix="") -> dict[str, widgets.Widget]:
    """Return a slider for each setting of Sampling, standing at the settings of ``start``; a seed of None is 0."""
    values = {name: getattr(start, name) for name in SLIDERS} | {"seed": start.seed or 0}
    return {
        name: slider(prefix + description, values[name], least, most, step)
        for name, (least, most, step, description) in SLIDERS.items()
    }


def sampling_of(values: dict, prefix="") -> Sampling:
    """Return the ``Sampling`` that the values of sliders stand for."""
    return Sampling(**{name: values[prefix + name] for name in SLIDERS if name != "seed"}, seed=values["seed"])


def pieces(tokenizer, new: list[int]) -> list[str]:
    """Return what each token adds to the text; of a letter that takes several tokens the last one adds it."""
    shown, added = "", []
    for end in range(1, len(new) + 1):
        text = tokenizer.decode(new[:end])
        unfinished = text.endswith("\ufffd") and end < len(new)  # the bytes of a letter are not all there
        added.append("" if unfinished else text[len(shown) :])
        shown = shown if unfinished else text
    return added


def prose(prompt: str, continuation: str, after: str = "") -> str:
    """Return the prompt, pale, and the continuation, as escaped HTML that keeps its line breaks; after is HTML."""
    return (
        f'<div style="{PROSE}"><span style="opacity:{svg.PALE}">{svg.escape(prompt)}</span>'
        f"<span>{svg.escape(continuation)}</span>{after}</div>"
    )
