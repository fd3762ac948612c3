"""What each decoding knob does: the next token's probabilities before and after, and the text that follows."""

import math
from itertools import groupby

import ipywidgets as widgets
import torch

from gptcourse.explorers import svg
from gptcourse.explorers.text_panel import PROSE, Writer, grid, pieces, prompt_box, sampling_of, sliders
from gptcourse.generation import (
    Sampling,
    context_window,
    exponential_noise,
    first_kept,
    next_token_distribution,
    sample,
)
from gptcourse.model import in_mode

ROWS, ALTERNATIVES = 12, 5
LEGEND = (0.5, 0.1, 0.01, 0.001)


def decoding_explorer(model, tokenizer, prompt, max_new_tokens=40):
    """Return the decoding microscope: sliders, the next token's probabilities, and a whole continuation.

    ``model`` is ours or a transformers model; ``tokenizer`` has ``encode`` and ``decode``. The logits are computed
    once for a prompt. The bars follow a slider at once; the continuation, which takes many forward passes, follows
    when the slider has stood still. Its tokens are coloured by the probability that the model gave them, and the
    slider ``token`` shows what else might have stood there. The draws are fixed by the seed, so what moves is the
    slider's doing. Call ``.wait()`` on the returned ``VBox`` for a continuation that is under way.
    """
    return DecodingExplorer(model, tokenizer, prompt, max_new_tokens)


class DecodingExplorer(Writer):
    """The widget that ``decoding_explorer`` returns."""

    def __init__(self, model, tokenizer, prompt, max_new_tokens):
        self.prompt, hint = prompt_box(prompt)
        self.knobs = sliders()
        self.picture, self.continuation, self.alternatives = widgets.HTML(), widgets.HTML(), widgets.HTML()
        token = widgets.IntSlider(
            0,
            min=0,
            max=max_new_tokens,
            description="token (0: none)",
            style={"description_width": "125px"},
            layout=widgets.Layout(width="680px", max_width="98%"),
        )
        self.controls = {**self.knobs, "token": token}
        self.ids, self.new = None, []
        children = [self.prompt, hint, grid(self.knobs), self.picture, self.continuation, token, self.alternatives]
        super().__init__(model, tokenizer, max_new_tokens, children)
        self.prompt.observe(self._new_prompt, "value")
        token.observe(self._show_alternatives, "value")
        for control in self.knobs.values():
            control.observe(self._moved, "value")
        self._new_prompt()

    @property
    def sampling(self):
        """The ``Sampling`` that the sliders stand for."""
        return sampling_of(self.knobs)

    def _new_prompt(self, _change=None):
        """Compute the next token's logits, once for all positions of the sliders."""
        self.stop_writing()
        try:
            ids = self.encoded(self.prompt.value)
        except ValueError as reason:  # nothing typed, too much, or a character that the tokenizer does not know
            self.ids, self.new = None, []
            self.picture.value, self.continuation.value = svg.paragraph(reason), ""
            self._show_alternatives()
            return
        self.ids = torch.tensor([ids], device=self.model.device)
        with in_mode(self.model, training=False), torch.inference_mode():
            self.logits = self.model(self.ids).logits[:, -1].float()
        self._draw()
        self.write(self.turn)

    def _moved(self, _change):
        if self.ids is not None:
            self._draw()
            self.write_later()

    def _draw(self):
        """Show the probabilities before the sliders' work and after it."""
        sampling = self.sampling
        before = self.logits.softmax(-1)[0]
        # What top-k, top-p and min-p choose from: the distribution that they have not cut yet.
        uncut = Sampling(temperature=sampling.temperature, repetition_penalty=sampling.repetition_penalty)
        offered = next_token_distribution(self.logits, uncut, self.ids)[0]
        after = next_token_distribution(self.logits, sampling, self.ids)[0]
        kept = after > 0
        numbers = (
            f"{int(kept.sum()):,} of {len(after):,} tokens kept, with {svg.percent(offered[kept].sum().item())} of the "
            f"probability  ·  entropy {_entropy(before):.2f} → {_entropy(after):.2f} bits  ·  ◀ the token drawn"
        )
        # One string, and so one message to the page.
        self.picture.value = svg.paragraph(numbers) + self._bars(before, after, kept, numbers)

    def _bars(self, before, after, kept, numbers):
        top = before.topk(min(ROWS, len(before))).indices
        rows = [self._row(i, before, after) for i in top.tolist()]
        if len(before) > len(top):
            shares = [max(p.sum().item() - p[top].sum().item(), 0.0) for p in (before, after)]
            shares[1] = shares[1] if kept.sum() > kept[top].sum() else 0.0
            others = len(before) - len(top)
            rows.append((f"{others:,} other{'s' * (others > 1)}", *shares))
        # The draw that starts the continuation: generation's own noise for this seed, held against the bars.
        noise = exponential_noise(after.shape, torch.Generator().manual_seed(self.sampling.seed))
        drawn = (top.cpu() == sample(after.cpu(), noise)).nonzero()
        chosen = int(drawn[0]) if len(drawn) else len(top)
        count = int(kept[top].sum())
        ordered = bool(kept[top][:count].all()) and count == int(kept.sum()) < len(before)
        return svg.bars(
            rows,
            description=f"Next-token probabilities. {numbers}",
            headings=("the model", "now"),
            cut_after=count if ordered else None,
            cut_label="cut below this line",
            chosen=chosen,
        )

    def _row(self, token, before, after):
        return svg.visible(self.tokenizer.decode([token]))[:16], before[token].item(), after[token].item()

    def _compose(self, turn):
        """Write the continuation, then colour each token by the probability that the model gave it."""
        sampling, ids, prompt = self.sampling, self.ids[0].tolist(), self.prompt.value

        def show(new):
            self.continuation.value = prose(prompt, self.tokenizer.decode(new))

        new = self.written(turn, ids, sampling, show)
        if new is None:
            return
        logits = logits_before(self.model, ids + new, len(new))
        if turn == self.turn:
            self.new, self.new_logits, self.new_sampling = new, logits, sampling
            probabilities = logits.softmax(-1)[range(len(new)), new].tolist()
            self.continuation.value = coloured(prompt, pieces(self.tokenizer, new), probabilities)
            self._show_alternatives()

    def _fail(self, reason):
        self.continuation.value = prose(self.prompt.value, f"[{reason}]")

    def _show_alternatives(self, _change=None):
        """Show what might have stood at the place of one token of the continuation."""
        place = self.controls["token"].value - 1
        if not 0 <= place < len(self.new):
            self.alternatives.value = ""
            return
        token, text = self.new[place], self.ids[0].tolist() + self.new[:place]
        before = self.new_logits[place].softmax(-1)
        after = next_token_distribution(self.new_logits[place], self.new_sampling, text)
        rank = int((before > before[token]).sum())
        best = before.topk(min(ALTERNATIVES, len(before))).indices.tolist()
        rows = best if token in best else [*best, token]
        name = svg.visible(self.tokenizer.decode([token]))
        numbers = (
            f"Token {place + 1} of {len(self.new)}: {name}, number {rank + 1} in the model's order, "
            f"with {svg.percent(before[token].item())}"
        )
        self.alternatives.value = svg.paragraph(numbers) + svg.bars(
            [self._row(i, before, after) for i in rows],
            description=numbers,
            headings=("the model", "now"),
            chosen=rows.index(token),
        )


@torch.inference_mode()
def logits_before(model, ids, n_new):
    """Return the logits (n_new, V) from which the last ``n_new`` tokens of ``ids`` were drawn by ``generate``.

    A text that outgrew the window was read from different beginnings: one forward pass for each of them.
    """
    rows, window = [], context_window(model)
    with in_mode(model, training=False):
        places = range(len(ids) - n_new, len(ids))
        for start, group in groupby(places, key=lambda place: first_kept(place, window)):
            group = list(group)
            read = torch.tensor([ids[start : group[-1]]], device=model.device)
            rows.append(model(read).logits[0, [place - 1 - start for place in group]].float().cpu())
    return torch.cat(rows)


def _entropy(probabilities):
    """Return the entropy in bits."""
    p = probabilities[probabilities > 0].double()
    return abs(-(p * p.log2()).sum().item())


def prose(prompt, continuation, after=""):
    """Return the prompt, pale, and the continuation, as escaped HTML that keeps its line breaks; after is HTML."""
    return (
        f'<div style="{PROSE}"><span style="opacity:0.6">{svg.escape(prompt)}</span>'
        f"<span>{svg.escape(continuation)}</span>{after}</div>"
    )


def coloured(prompt, tokens, probabilities):
    """Return the prompt and each token of the continuation, the deeper orange the less likely it was."""
    legend = " ".join(_span(f" {svg.percent(p)} ", p) for p in LEGEND)
    return prose(prompt, "", "".join(map(_span, tokens, probabilities))) + (
        f'<div style="padding:2px 0 4px 15px;font-size:12px;opacity:0.85">'
        f"the deeper the colour, the less likely the model thought the token: {legend}</div>"
    )


def _span(token, probability):
    depth = 0.65 * min(-math.log10(max(probability, 1e-4)) / 4, 1.0)  # all of it from 0.01 % down
    return (
        f'<span style="background:rgba(217,115,13,{depth:.2f})" title="{svg.percent(probability)}">'
        f"{svg.escape(token)}</span>"
    )


def compare_settings(model, tokenizer, prompt, first=Sampling(), second=Sampling(temperature=0.7), max_new_tokens=40):
    """Return two columns of sliders, and what each setting writes with the same seed.

    Both settings draw with the same noise. So the two texts are equal for as long as both distributions choose the
    same tokens; where they part, one of the sliders did it, and not the dice.
    """
    return SettingsComparison(model, tokenizer, prompt, first, second, max_new_tokens)


class SettingsComparison(Writer):
    """The widget that ``compare_settings`` returns; its sliders are named as in ``first temperature``."""

    def __init__(self, model, tokenizer, prompt, first, second, max_new_tokens):
        self.prompt, hint = prompt_box(prompt)
        seed = {"seed": sliders()["seed"]}
        self.sides = [sliders(start, without=("seed",)) for start in (first, second)]
        self.texts, self.picture = [widgets.HTML(), widgets.HTML()], widgets.HTML()
        self.controls = seed | {
            f"{side} {name}": control
            for side, controls in zip(("first", "second"), self.sides, strict=True)
            for name, control in controls.items()
        }
        columns = [
            widgets.VBox([*controls.values(), text], layout=widgets.Layout(width="345px"))
            for controls, text in zip(self.sides, self.texts, strict=True)
        ]
        both = widgets.HBox(columns, layout=widgets.Layout(flex_flow="row wrap"))
        super().__init__(model, tokenizer, max_new_tokens, [self.prompt, hint, seed["seed"], self.picture, both])
        for control in (self.prompt, *self.controls.values()):
            control.observe(self.write_later, "value")
        self.write(self.turn)

    @property
    def samplings(self):
        """The two ``Sampling`` that the sliders stand for."""
        return [sampling_of(side | {"seed": self.controls["seed"]}) for side in self.sides]

    def _compose(self, turn):
        """Write both texts, and show where they part."""
        prompt, ids = self.prompt.value, self.encoded(self.prompt.value)
        texts = [self.written(turn, ids, sampling, lambda new: None) for sampling in self.samplings]
        if None in texts:
            return
        n_same = next((i for i, (a, b) in enumerate(zip(*texts, strict=True)) if a != b), len(texts[0]))
        what = "part" if n_same < len(texts[0]) else "end"
        self.picture.value = svg.paragraph(f"Both write the same {n_same} tokens; then they {what}.")
        for html, new in zip(self.texts, texts, strict=True):
            parts = pieces(self.tokenizer, new)
            same, other = "".join(parts[:n_same]), "".join(parts[n_same:])
            mark = f'<span style="background:rgba(217,115,13,0.2)">{svg.escape(other)}</span>'
            html.value = prose(prompt, same, mark)

    def _fail(self, reason):
        self.picture.value = svg.paragraph(reason)
        for html in self.texts:
            html.value = ""
