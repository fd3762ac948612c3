"""What all panels that write share: decoding sliders, and a text written anew once they have stood still."""

import threading
import time
from collections.abc import Callable

import ipywidgets as widgets

from gptcourse.explorers import svg
from gptcourse.generation import Sampling, context_window, stream

SLIDERS = {  # name: (least, most, step, off, description)
    "temperature": (0.0, 3.0, 0.05, 1.0, "temperature"),
    "top_k": (0, 100, 1, 0, "top-k (0: off)"),
    "top_p": (0.05, 1.0, 0.01, 1.0, "top-p (1: off)"),
    "min_p": (0.0, 0.5, 0.01, 0.0, "min-p (0: off)"),
    "repetition_penalty": (1.0, 2.0, 0.05, 1.0, "repetition penalty"),
    "seed": (0, 99, 1, 0, "seed"),
}
PROSE = (
    "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.55;max-width:680px;padding:8px 0 4px 12px;"
    f"border-left:3px solid {svg.BLUE};font-family:{svg.MONO}"
)
REDRAW = 0.1  # seconds between two pictures of a text that is being written


class Writer(widgets.VBox):
    """A panel that writes with a model, in a thread of its own, and starts anew when something has been moved.

    A subclass writes in ``_compose(turn)``, giving up once ``turn`` is over, and shows an error in ``_fail(reason)``.
    ``.wait()`` returns when nothing is being written.
    """

    seconds_to_stand_still = 0.25

    def __init__(self, model, tokenizer, max_new_tokens: int, children):
        self.model, self.tokenizer, self.max_new_tokens = model, tokenizer, max_new_tokens
        self.turn, self.timer = 0, None
        super().__init__(children)

    def wait(self):
        """Return when nothing is being written."""
        if self.timer is not None:
            self.timer.join()

    def stop_writing(self):
        """Give up what is being written."""
        self.turn += 1  # the thread sees that its turn is over
        if self.timer is not None:
            self.timer.cancel()

    def write_later(self, _change=None, *, seconds: float | None = None):
        """Write anew when nothing has moved for a moment."""
        self.stop_writing()
        seconds = self.seconds_to_stand_still if seconds is None else seconds
        self.timer = threading.Timer(seconds, self.write, [self.turn])
        self.timer.daemon = True
        self.timer.start()

    def write(self, turn):
        """Write; an error is shown, for raised in a thread it would be printed where no learner looks."""
        try:
            self._compose(turn)
        except Exception as error:
            if turn == self.turn:
                self._fail(str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}")

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
        for token in stream(self.model, ids, self.max_new_tokens, sampling, eos_token_id):
            if turn != self.turn:
                return None
            new.append(int(token))
            if time.monotonic() - shown > REDRAW:
                show(new)
                shown = time.monotonic()
        return new if turn == self.turn else None


def sliders(start: Sampling = Sampling(), without=(), width="335px") -> dict[str, widgets.Widget]:
    """Return a slider for each setting of Sampling but those in ``without``, standing at the settings of ``start``."""
    return {
        name: _slider(*settings[:3], settings[3] if name == "seed" else getattr(start, name), settings[4], width)
        for name, settings in SLIDERS.items()
        if name not in without
    }


def _slider(least, most, step, value, description, width):
    kind = widgets.IntSlider if isinstance(step, int) else widgets.FloatSlider
    return kind(
        value,
        min=least,
        max=most,
        step=step,
        description=description,
        style={"description_width": "125px"},
        layout=widgets.Layout(width=width),
    )


def sampling_of(controls: dict[str, widgets.Widget]) -> Sampling:
    """Return the ``Sampling`` that sliders stand for."""
    # A first key press may send 1.0000000000000002.
    return Sampling(**{name: round(control.value, 4) for name, control in controls.items()})


def grid(controls: dict[str, widgets.Widget], column="340px") -> widgets.GridBox:
    """Return sliders in as many columns as there is room for."""
    columns = f"repeat(auto-fit, {column})"
    return widgets.GridBox(list(controls.values()), layout=widgets.Layout(grid_template_columns=columns))


def prompt_box(text: str, description="prompt", rows=2) -> tuple[widgets.Textarea, widgets.HTML]:
    """Return a box to type in, and the line that says when it is read."""
    box = widgets.Textarea(
        text,
        description=description,
        rows=rows,
        continuous_update=False,  # read when the cursor leaves the box, for each reading is a forward pass
        style={"description_width": "125px"},
        layout=widgets.Layout(width="680px", max_width="98%"),
    )
    hint = widgets.HTML(
        '<div style="padding-left:135px;font-size:12px;opacity:0.7;line-height:1.4">'
        "Type your own, then click outside the box: the model reads it.</div>"
    )
    return box, hint


def pieces(tokenizer, new: list[int]) -> list[str]:
    """Return what each token adds to the text; of a letter that takes several tokens the last one adds it."""
    shown, added = "", []
    for end in range(1, len(new) + 1):
        text = tokenizer.decode(new[:end])
        unfinished = text.endswith("\ufffd") and end < len(new)  # the bytes of a letter are not all there
        added.append("" if unfinished else text[len(shown) :])
        shown = shown if unfinished else text
    return added
