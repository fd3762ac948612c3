"""Talk with a model, and write with it: two panels with live decoding sliders."""

from dataclasses import replace

import ipywidgets as widgets

from gptcourse.explorers import svg
from gptcourse.explorers.decoding import prose
from gptcourse.explorers.text_panel import Writer, grid, prompt_box, sampling_of, sliders
from gptcourse.finetuning import chat_prompt, eos_id
from gptcourse.generation import Sampling, context_window

SHOWN = 12  # exchanges; older ones scroll out of the panel, so that it does not grow without end
BUBBLE = (
    "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.5;width:fit-content;max-width:80%;"
    "padding:6px 12px;margin:6px 0;border-radius:12px;"
)
ASKED, ANSWERED = "background:rgba(128,128,128,0.18);margin-left:auto", "background:rgba(10,123,191,0.16)"


def chat_panel(model, tokenizer, message, sampling=Sampling(temperature=0), remember=0, max_new_tokens=100):
    """Return a box to type messages in, the replies of ``model`` as they are written, and decoding sliders.

    ``message`` is the first message, ``sampling`` where the sliders begin. When a slider has moved, the last message
    is answered again with the same seed. The model is shown the last ``remember`` exchanges; 0 suits a model that
    has learned from single messages. What is typed is shown as text. Call ``.wait()`` for a reply that is under way.
    """
    return ChatPanel(model, tokenizer, message, sampling, remember, max_new_tokens)


class ChatPanel(Writer):
    """The widget that ``chat_panel`` returns; ``.exchanges`` lists each [message, reply]."""

    def __init__(self, model, tokenizer, message, sampling, remember, max_new_tokens):
        self.remember, self.exchanges = remember, []
        self.controls, self.picture = sliders(sampling), widgets.HTML()
        self.message = widgets.Text(
            placeholder="your message; send it with the Enter key",
            continuous_update=False,  # read at the Enter key
            layout=widgets.Layout(width="520px", max_width="75%"),
        )
        self.clear = widgets.Button(description="start again", layout=widgets.Layout(width="110px"))
        typing = widgets.HBox([self.message, self.clear])
        super().__init__(model, tokenizer, max_new_tokens, [self.picture, typing, grid(self.controls)])
        self.message.observe(self._sent, "value")
        self.clear.on_click(self._cleared)
        for control in self.controls.values():
            control.observe(self._moved, "value")
        self.exchanges.append([message, ""])
        self.write(self.turn)

    def _sent(self, change):
        if not change["new"].strip():  # the box has been emptied
            return
        self.stop_writing()
        self.exchanges.append([change["new"], ""])
        self.message.value = ""
        self._show()
        self.write_later(seconds=0)

    def _cleared(self, _button):
        self.stop_writing()
        self.exchanges.clear()
        self._show()

    def _moved(self, _change):
        if self.exchanges:
            self.write_later()

    def _compose(self, turn):
        """Answer the last message, the earlier ones in view as far as they are remembered and fit."""
        exchange = self.exchanges[-1]
        end = eos_id(self.tokenizer)

        def show(new):
            exchange[1] = self.tokenizer.decode([token for token in new if token != end])
            self._show()

        new = self.written(turn, self._prompt(), sampling_of(self.controls), show, end)
        if new is not None:
            show(new)

    def _prompt(self):
        *earlier, (message, _) = self.exchanges
        earlier = earlier[len(earlier) - min(self.remember, len(earlier)) :]
        room = context_window(self.model) - self.max_new_tokens
        while earlier and len(chat_prompt(self.tokenizer, message, earlier)) > room:
            earlier = earlier[1:]  # the oldest is forgotten first
        return self.fitting(chat_prompt(self.tokenizer, message, earlier))

    def _fail(self, reason):
        self.exchanges[-1][1] = f"[{reason}]"
        self._show()

    def _show(self):
        bubbles = [
            f'<div style="{BUBBLE}{look}">{svg.escape(text or "…")}</div>'
            for exchange in self.exchanges[-SHOWN:]
            for look, text in zip((ASKED, ANSWERED), exchange, strict=True)
        ]
        self.picture.value = f'<div style="max-width:680px">{"".join(bubbles)}</div>'


def writing_panel(model, tokenizer, text, sampling=Sampling(temperature=0.8, top_p=0.95), max_new_tokens=40):
    """Return a text, three continuations of it side by side, and decoding sliders: choose one, and write on.

    The text can be changed by hand, too, and *back* takes the last choice away. Call ``.wait()`` for continuations
    that are under way.
    """
    return WritingPanel(model, tokenizer, text, sampling, max_new_tokens)


class WritingPanel(Writer):
    """The widget that ``writing_panel`` returns; ``.text`` holds the text, ``.choices`` the three buttons."""

    def __init__(self, model, tokenizer, text, sampling, max_new_tokens):
        self.text, hint = prompt_box(text, "text so far", rows=8)
        self.controls, self.earlier = sliders(sampling), []
        self.continuations, self.pictures = ["", "", ""], [widgets.HTML() for _ in range(3)]
        self.choices = [widgets.Button(description=f"go on with {letter}") for letter in "ABC"]
        self.back = widgets.Button(description="back", disabled=True)
        columns = [
            widgets.VBox(pair, layout=widgets.Layout(width="230px"))
            for pair in zip(self.choices, self.pictures, strict=True)
        ]
        side_by_side = widgets.HBox(columns, layout=widgets.Layout(flex_flow="row wrap"))
        children = [self.text, hint, self.back, side_by_side, grid(self.controls)]
        super().__init__(model, tokenizer, max_new_tokens, children)
        for control in (self.text, *self.controls.values()):
            control.observe(self.write_later, "value")
        for choice in self.choices:
            choice.on_click(self._chosen)
        self.back.on_click(self._go_back)
        self.write(self.turn)

    def _chosen(self, button):
        self.earlier.append(self.text.value)
        self.back.disabled = False
        self.text.value += self.continuations[self.choices.index(button)]

    def _go_back(self, _button):
        self.text.value = self.earlier.pop()
        self.back.disabled = not self.earlier

    def _compose(self, turn):
        """Write three continuations, one after the other, each with a seed of its own."""
        ids, sampling = self._end_of_text(), sampling_of(self.controls)
        self.continuations = ["", "", ""]
        for number in range(3):

            def show(new, number=number):
                self.continuations[number] = self.tokenizer.decode(new)
                self.pictures[number].value = prose("", self.continuations[number])

            new = self.written(turn, ids, seeded(sampling, number), show)
            if new is None:
                return
            show(new)

    def _end_of_text(self):
        """Return the last tokens of the text, as many as leave room for what is to be written."""
        room = max(context_window(self.model) - self.max_new_tokens, 1)
        ids = list(self.tokenizer.encode(self.text.value))
        if not ids:
            raise ValueError("There is no text to go on with: type at least one character.")
        return ids[-room:]

    def _fail(self, reason):
        for picture in self.pictures:
            picture.value = ""
        self.pictures[0].value = svg.paragraph(reason)


def seeded(sampling, number):
    """Return the setting for continuation 0, 1 or 2: no two of them share a seed, nor do those of the next seed."""
    return replace(sampling, seed=3 * sampling.seed + number)
