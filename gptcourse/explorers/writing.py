"""Write with a model: go on with a text, rewrite a marked place of it, or vary that place, with live sliders."""

from dataclasses import replace

import ipywidgets as widgets

from gptcourse.drawings import svg
from gptcourse.explorers.explorer import buttons, text_box, wide
from gptcourse.explorers.text_panel import Writer, prose, sampling_of, sliders
from gptcourse.generation import Sampling
from gptcourse.rewriting import alternatives, fit, split_marked, variations
from gptcourse.views import context_window

GO_ON, REWRITE = "go on", "rewrite"
NEARNESS = {"vary a little": 6.0, "vary much": 4.0}  # added to the logit of the old token
HINT = "Type your own, then click outside the box. To rewrite or to vary, put {curly braces} around a place."


class WritingPanel(Writer):
    """A text, three proposals for it side by side, and decoding sliders: choose one, and write on.

    *Go on* continues the text. *Rewrite* proposes other words for the place in curly braces, those first that make
    what follows likely; *vary* draws them anew, near the old ones. The text can be changed by hand, too, and *back*
    takes the last choice away. ``.choices`` are the three buttons, ``.proposals`` the texts; call ``.wait()`` for
    proposals that are under way.
    """

    def __init__(self, model, tokenizer, text, sampling=Sampling(temperature=0.8, top_p=0.95), max_new_tokens=40):
        self.proposals, self.notes, self.remark, self.earlier = ["", "", ""], ["", "", ""], "", []
        self.asked = None  # the mode and the text that the proposals are for
        self.choices = [widgets.Button(description=f"take {letter}") for letter in "ABC"]
        self.back = widgets.Button(description="back", disabled=True)
        for choice in self.choices:
            choice.on_click(self._chosen)
        self.back.on_click(self._go_back)
        controls = {
            "mode": wide(buttons("mode", [GO_ON, REWRITE, *NEARNESS])),
            "text": text_box("text so far", text, rows=8),
            **sliders(sampling),
        }
        below = [widgets.HBox([*self.choices, self.back])]
        super().__init__(model, tokenizer, max_new_tokens, controls, hint=HINT, below=below)

    def _chosen(self, button):
        text, proposal = self.controls["text"].value, self.proposals[self.choices.index(button)]
        if not proposal or self.asked != (self.controls["mode"].value, text):  # made for another text
            return
        self.earlier.append(text)
        self.back.disabled = False
        if self.controls["mode"].value == GO_ON:
            self.controls["text"].value += proposal
        else:
            marked = split_marked(text)
            self.controls["text"].value = f"{marked.before}{{{proposal}}}{marked.after}"

    def _go_back(self, _button):
        if self.earlier:  # a second click may come before the first has switched the button off
            self.controls["text"].value = self.earlier.pop()
        self.back.disabled = not self.earlier

    def compose(self, turn):
        """Make three proposals."""
        self.notes, self.remark, self.proposals = ["", "", ""], "", ["", "", ""]
        self.asked = self.controls["mode"].value, self.controls["text"].value
        ways = {GO_ON: self._go_on, REWRITE: self._rewrite}
        ways.get(self.values["mode"], self._vary)(turn, sampling_of(self.values))

    def _rewrite(self, turn, sampling):
        marked = split_marked(self.values["text"])
        found = alternatives(self.model, self.tokenizer, marked, sampling=sampling)[:3]
        old = fit(self.model, self.tokenizer, marked)
        if turn == self.turn:
            self.notes = [f"{one.fit:.2f} nats a token after it; {one.share:.0%}" for one in found]
            self.remark = f"After the old text the tokens that follow have {old:.2f} nats each."
            self._show([one.text for one in found])

    def _vary(self, turn, sampling):
        nearness = NEARNESS[self.values["mode"]]
        found = variations(self.model, self.tokenizer, split_marked(self.values["text"]), nearness, 3, sampling)
        if turn == self.turn:
            self._show(found)

    def _show(self, proposals):
        missing = [""] * (3 - len(proposals))
        self.proposals, self.notes = proposals + missing, self.notes + missing
        self.draw()

    def _go_on(self, turn, sampling):
        """Write three continuations, one after the other, each with a seed of its own."""
        ids = self._end_of_text()
        for number in range(3):

            def show(new, number=number):
                self.proposals[number] = self.tokenizer.decode(new)
                self.draw()

            new = self.written(turn, ids, seeded(sampling, number), show)
            if new is None:
                return
            show(new)

    def _end_of_text(self):
        """Return the last tokens of the text, as many as leave room for what is to be written."""
        room = max(context_window(self.model) - self.max_new_tokens, 1)
        ids = list(self.tokenizer.encode(self.controls["text"].value.translate({ord("{"): None, ord("}"): None})))
        if not ids:
            raise ValueError("There is no text to go on with: type at least one character.")
        return ids[-room:]

    def draw_picture(self, **_values):
        """Show the proposals side by side."""
        columns = [
            f'<div style="flex:1 1 200px;min-width:0"><b>{letter}</b>{prose("", text)}'
            f'<div style="font-size:12px;opacity:0.75">{note}</div></div>'
            for letter, text, note in zip("ABC", self.proposals, self.notes, strict=False)
        ]
        return svg.side_by_side(*columns) + (svg.paragraph(self.remark) if self.remark else "")


def seeded(sampling, number):
    """Return the setting for continuation 0, 1 or 2: no two of them share a seed, nor do those of the next seed."""
    return replace(sampling, seed=3 * sampling.seed + number)
