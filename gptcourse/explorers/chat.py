"""Talk with a model: a panel with live decoding sliders."""

import ipywidgets as widgets

from gptcourse.checks import COUNT_OR_ZERO
from gptcourse.drawings import svg
from gptcourse.explorers.text_panel import Writer, sampling_of, sliders
from gptcourse.finetuning import chat_prompt, eos_id
from gptcourse.generation import Sampling
from gptcourse.views import context_window

SHOWN = 12  # exchanges; older ones are left out, so that the panel does not grow without end
# A box in which the conversation scrolls. Turned round, it stands at its end whenever something is added.
ROLL = "display:flex;flex-direction:column-reverse;max-width:680px;max-height:380px;overflow-y:auto"
BUBBLE = (
    "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.5;width:fit-content;max-width:80%;"
    "padding:6px 12px;margin:6px 0;border-radius:12px;"
)
ASKED, ANSWERED = "background:rgba(128,128,128,0.18);margin-left:auto", "background:rgba(10,123,191,0.16)"


class Reason(str):
    """Why there is no reply: shown in its place, and not remembered."""


class ChatPanel(Writer):
    """Decoding sliders, the replies of ``model`` as they are written, and a box to type messages in.

    ``message`` is the first message, ``sampling`` where the sliders begin. When a slider has moved, the last message
    is answered again with the same seed. The model is shown the last ``remember`` exchanges; 0 suits a model that
    has learned from single messages. What is typed is shown as text. ``.exchanges`` lists each [message, reply]; call
    ``.wait()`` for a reply that is under way.
    """

    def __init__(self, model, tokenizer, message, sampling=Sampling(temperature=0), remember=0, max_new_tokens=100):
        self.remember, self.exchanges = COUNT_OR_ZERO("remember", remember), [[message, ""]]
        self.message = widgets.Text(
            description="message",
            placeholder="send it with the Enter key",
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
            if not exchange[1]:
                self.fail("an empty reply")

    def prompt_ids(self):
        """Return what the model is shown: the last message, and before it as many exchanges as are remembered."""
        *earlier, (message, _) = self.exchanges
        earlier = [exchange for exchange in earlier if exchange[1] and not isinstance(exchange[1], Reason)]
        earlier = earlier[len(earlier) - min(self.remember, len(earlier)) :]
        room = context_window(self.model) - self.max_new_tokens
        while earlier and len(chat_prompt(self.tokenizer, message, earlier)) > room:
            earlier = earlier[1:]  # the oldest is forgotten first
        return self.fitting(chat_prompt(self.tokenizer, message, earlier))

    def fail(self, reason):
        """Show it in the place of the reply."""
        self.exchanges[-1][1] = Reason(f"[{reason}]")
        self.draw()

    def draw_picture(self, **_values):
        """Show the last exchanges."""
        bubbles = [
            f'<div style="{BUBBLE}{look}">{svg.escape(text or "…")}</div>'
            for exchange in self.exchanges[-SHOWN:]
            for look, text in zip((ASKED, ANSWERED), exchange, strict=True)
        ]
        inside = f"<div>{''.join(bubbles)}</div>"
        return f'<div role="log" aria-label="the conversation" tabindex="0" style="{ROLL}">{inside}</div>'
