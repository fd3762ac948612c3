"""Talk with a model, and write with it: two panels with live decoding sliders."""

from dataclasses import replace

import ipywidgets as widgets

from gptcourse.drawings import svg
from gptcourse.explorers.explorer import text_box
from gptcourse.explorers.text_panel import HINT, Writer, prose, sampling_of, sliders
from gptcourse.finetuning import chat_prompt, eos_id
from gptcourse.generation import Sampling
from gptcourse.views import context_window

SHOWN = 12  # exchanges; older ones scroll out of the panel, so that it does not grow without end
BUBBLE = (
    "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.5;width:fit-content;max-width:80%;"
    "padding:6px 12px;margin:6px 0;border-radius:12px;"
)
ASKED, ANSWERED = "background:rgba(128,128,128,0.18);margin-left:auto", "background:rgba(10,123,191,0.16)"


class ChatPanel(Writer):
    """Decoding sliders, the replies of ``model`` as they are written, and a box to type messages in.

    ``message`` is the first message, ``sampling`` where the sliders begin. When a slider has moved, the last message
    is answered again with the same seed. The model is shown the last ``remember`` exchanges; 0 suits a model that
    has learned from single messages. What is typed is shown as text. ``.exchanges`` lists each [message, reply]; call
    ``.wait()`` for a reply that is under way.
    """

    def __init__(self, model, tokenizer, message, sampling=Sampling(temperature=0), remember=0, max_new_tokens=100):
        if remember < 0:
            raise ValueError(f"remember is {remember}, but a model remembers 0 exchanges or more.")
        self.remember, self.exchanges = remember, [[message, ""]]
        self.message = widgets.Text(
            placeholder="your message; send it with the Enter key",
            continuous_update=False,  # read at the Enter key
            layout=widgets.Layout(width="520px", max_width="75%"),
        )
        self.clear = widgets.Button(description="start again", layout=widgets.Layout(width="110px"))
        self.message.observe(self._sent, "value")
        self.clear.on_click(self._cleared)
        typing = widgets.HBox([self.message, self.clear])
        super().__init__(model, tokenizer, max_new_tokens, sliders(sampling), below=[typing])

    def _sent(self, change):
        if not change["new"].strip():  # the box has been emptied
            return
        self.stop_writing()
        self.exchanges.append([change["new"], ""])
        self.message.value = ""
        self.draw()
        self.write_later(seconds=0)

    def _cleared(self, _button):
        self.stop_writing()
        self.exchanges.clear()
        self.draw()

    def compose(self, turn):
        """Answer the last message, the earlier ones in view as far as they are remembered and fit."""
        if not self.exchanges:
            return
        exchange, end = self.exchanges[-1], eos_id(self.tokenizer)

        def show(new):
            exchange[1] = self.tokenizer.decode([token for token in new if token != end])
            self.draw()

        new = self.written(turn, self.prompt_ids(), sampling_of(self.values), show, end)
        if new is not None:
            show(new)

    def prompt_ids(self):
        """Return what the model is shown: the last message, and before it as many exchanges as are remembered."""
        *earlier, (message, _) = self.exchanges
        earlier = earlier[len(earlier) - min(self.remember, len(earlier)) :]
        room = context_window(self.model) - self.max_new_tokens
        while earlier and len(chat_prompt(self.tokenizer, message, earlier)) > room:
            earlier = earlier[1:]  # the oldest is forgotten first
        return self.fitting(chat_prompt(self.tokenizer, message, earlier))

    def fail(self, reason):
        """Show it in the place of the reply."""
        self.exchanges[-1][1] = f"[{reason}]"
        self.draw()

    def draw_picture(self, **_values):
        """Show the last exchanges."""
        bubbles = [
            f'<div style="{BUBBLE}{look}">{svg.escape(text or "…")}</div>'
            for exchange in self.exchanges[-SHOWN:]
            for look, text in zip((ASKED, ANSWERED), exchange, strict=True)
        ]
        return f'<div style="max-width:680px">{"".join(bubbles)}</div>'


class WritingPanel(Writer):
    """A text, three continuations of it side by side, and decoding sliders: choose one, and write on.

    The text can be changed by hand, too, and *back* takes the last choice away. ``.choices`` are the three buttons,
    ``.continuations`` the texts; call ``.wait()`` for continuations that are under way.
    """

    def __init__(self, model, tokenizer, text, sampling=Sampling(temperature=0.8, top_p=0.95), max_new_tokens=40):
        self.continuations, self.earlier = ["", "", ""], []
        self.choices = [widgets.Button(description=f"go on with {letter}") for letter in "ABC"]
        self.back = widgets.Button(description="back", disabled=True)
        for choice in self.choices:
            choice.on_click(self._chosen)
        self.back.on_click(self._go_back)
        controls = {"text": text_box("text so far", text, rows=8), **sliders(sampling)}
        below = [widgets.HBox([*self.choices, self.back])]
        super().__init__(model, tokenizer, max_new_tokens, controls, hint=HINT, below=below)

    def _chosen(self, button):
        self.earlier.append(self.controls["text"].value)
        self.back.disabled = False
        self.controls["text"].value += self.continuations[self.choices.index(button)]

    def _go_back(self, _button):
        self.controls["text"].value = self.earlier.pop()
        self.back.disabled = not self.earlier

    def compose(self, turn):
        """Write three continuations, one after the other, each with a seed of its own."""
        ids, sampling = self._end_of_text(), sampling_of(self.values)
        self.continuations = ["", "", ""]
        for number in range(3):

            def show(new, number=number):
                self.continuations[number] = self.tokenizer.decode(new)
                self.draw()

            new = self.written(turn, ids, seeded(sampling, number), show)
            if new is None:
                return
            show(new)

    def _end_of_text(self):
        """Return the last tokens of the text, as many as leave room for what is to be written."""
        room = max(context_window(self.model) - self.max_new_tokens, 1)
        ids = list(self.tokenizer.encode(self.controls["text"].value))
        if not ids:
            raise ValueError("There is no text to go on with: type at least one character.")
        return ids[-room:]

    def draw_picture(self, **_values):
        """Show the continuations side by side."""
        columns = [
            f'<div style="width:220px"><b>{letter}</b>{prose("", text)}</div>'
            for letter, text in zip("ABC", self.continuations, strict=True)
        ]
        return svg.side_by_side(*columns)


def seeded(sampling, number):
    """Return the setting for continuation 0, 1 or 2: no two of them share a seed, nor do those of the next seed."""
    return replace(sampling, seed=3 * sampling.seed + number)
