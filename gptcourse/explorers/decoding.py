"""What each decoding knob does: the next token's probabilities before and after, and the text that follows."""

import math
from itertools import groupby

import ipywidgets as widgets
import torch

from gptcourse.checks import COUNT
from gptcourse.drawings import svg
from gptcourse.explorers.explorer import slider, text_box
from gptcourse.explorers.text_panel import HINT, SLIDERS, Writer, pieces, prose, sampling_of, sliders
from gptcourse.generation import Sampling, exponential_noise, first_kept, next_token_distribution, sample
from gptcourse.views import context_window, eval_view, only_last

ROWS, ALTERNATIVES = 12, 5
LEGEND = (0.5, 0.1, 0.01, 0.001)
HEADINGS = ("the model", "now")


class DecodingExplorer(Writer):
    """The decoding microscope: sliders, the next token's probabilities, and a whole continuation.

    ``model`` is ours or a transformers model; ``tokenizer`` has ``encode`` and ``decode``. The logits are computed
    once for a prompt. The bars follow a slider at once; the continuation, which takes many forward passes, follows
    when the slider has stood still. Its tokens are coloured by the probability that the model gave them, and the
    slider ``token`` shows what else might have stood there. The draws are fixed by the seed, so what moves is the
    slider's doing. Call ``.wait()`` for a continuation that is under way.
    """

    def __init__(self, model, tokenizer, prompt, max_new_tokens=40):
        self.continuation, self.alternatives = widgets.HTML(), widgets.HTML()
        self.ids, self.read, self.new = None, None, []
        token = slider("token (0: none)", 0, 0, COUNT("max_new_tokens", max_new_tokens))
        controls = {"prompt": text_box("prompt", prompt, rows=2), **sliders(), "token": token}
        below = [self.continuation, self.alternatives]
        super().__init__(model, tokenizer, max_new_tokens, controls, hint=HINT, below=below)

    def moved(self, control):
        """Let the slider ``token`` look at the text that is there; all others change the bars at once, and the text."""
        if control is self.controls["token"]:
            self._show_alternatives()
            return
        self.stop_writing()
        self.draw()
        self.write_later()

    def draw_picture(self, prompt, **values):
        """Draw the probabilities before the sliders' work and after it."""
        if self.read != prompt:
            self._read(prompt)
        sampling, before = sampling_of(values), self.logits.softmax(-1)[0]
        # What the rules that cut choose from: the distribution that they have not cut yet.
        uncut = Sampling(temperature=sampling.temperature, repetition_penalty=sampling.repetition_penalty)
        offered = next_token_distribution(self.logits, uncut, self.ids)[0]
        after = next_token_distribution(self.logits, sampling, self.ids)[0]
        kept = after > 0
        for name in ("top_k", "top_p", "min_p", "top_n_sigma", "typical_p", "seed"):
            self.controls[name].disabled = sampling.temperature == 0  # nothing is drawn then
        numbers = (
            f"{int(kept.sum()):,} of {len(after):,} tokens kept, with {svg.percent(offered[kept].sum().item())} of the "
            f"probability  ·  entropy {_entropy(before):.2f} → {_entropy(after):.2f} bits  ·  ◀ the token drawn"
        )
        return svg.paragraph(numbers) + self._bars(before, after, kept, sampling.seed, numbers)

    @torch.inference_mode()
    def _read(self, prompt):
        """Compute the next token's logits, once for all positions of the sliders."""
        self.ids, self.read, self.new = None, None, []
        self.continuation.value = self.alternatives.value = ""
        self.ids = torch.tensor([self.encoded(prompt)], device=self.model.device)
        view = eval_view(self.model)
        self.logits = self.rule(self.ids, view(self.ids, **only_last(view, 1)).logits[:, -1].float())
        self.read = prompt

    def _bars(self, before, after, kept, seed, numbers):
        top = before.topk(min(ROWS, int(before.count_nonzero()))).indices
        rows = [self._row(i, before, after) for i in top.tolist()]
        if len(before) > len(top):
            shares = [max(p.sum().item() - p[top].sum().item(), 0.0) for p in (before, after)]
            shares[1] = shares[1] if kept.sum() > kept[top].sum() else 0.0
            others = len(before) - len(top)
            rows.append((f"{others:,} other{'s' * (others > 1)}", *shares))
        # The draw that starts the continuation: generation's own noise for this seed, held against the bars.
        noise = exponential_noise(after.shape, torch.Generator().manual_seed(seed))
        drawn = (top.cpu() == sample(after.cpu(), noise)).nonzero()
        count = int(kept[top].sum())
        ordered = bool(kept[top][:count].all()) and count == int(kept.sum()) < len(before)
        return svg.bars(
            rows,
            description=f"Next-token probabilities. {numbers}",
            headings=HEADINGS,
            cut_after=count if ordered else None,
            chosen=int(drawn[0]) if len(drawn) else len(top),
        )

    def _row(self, token, before, after):
        return svg.visible(self.tokenizer.decode([token]))[:16], before[token].item(), after[token].item()

    def compose(self, turn):
        """Write the continuation, then colour each token by the probability that the model gave it."""
        if self.ids is None:  # the picture says why
            return
        sampling, ids, prompt = sampling_of(self.values), self.ids[0].tolist(), self.read

        def show(new):
            self.continuation.value = prose(prompt, self.tokenizer.decode(new))

        new = self.written(turn, ids, sampling, show)
        if new is None:
            return
        logits = self.rule(self.ids, logits_before(self.model, ids + new, len(new)))
        if turn == self.turn:
            self.new, self.new_logits, self.new_sampling = new, logits, sampling
            probabilities = logits.softmax(-1)[range(len(new)), new].tolist()
            self.continuation.value = coloured(prompt, pieces(self.tokenizer, new), probabilities)
            self._show_alternatives()

    def fail(self, reason):
        """Show it in the place of the text."""
        self.continuation.value = prose(self.read, f"[{reason}]")

    def _show_alternatives(self):
        """Show what might have stood at the place of one token of the continuation."""
        place = self.controls["token"].value - 1
        if not 0 <= place < len(self.new):
            self.alternatives.value = ""
            return
        token, text = self.new[place], self.ids[0].tolist() + self.new[:place]
        before = self.new_logits[place].softmax(-1)
        after = next_token_distribution(self.new_logits[place], self.new_sampling, text)
        rank = int((before > before[token]).sum())
        best = before.topk(min(ALTERNATIVES, int(before.count_nonzero()))).indices.tolist()
        rows = best if token in best else [*best, token]
        numbers = (
            f"Token {place + 1} of {len(self.new)}: {svg.visible(self.tokenizer.decode([token]))}, number {rank + 1} "
            f"in the model's order, with {svg.percent(before[token].item())}"
        )
        drawn = [self._row(i, before, after) for i in rows]
        bars = svg.bars(drawn, description=numbers, headings=HEADINGS, chosen=rows.index(token))
        self.alternatives.value = svg.paragraph(numbers) + bars


@torch.inference_mode()
def logits_before(model, ids, n_new):
    """Return the logits (n_new, V) from which the last ``n_new`` tokens of ``ids`` were drawn by ``generate``.

    A text that outgrew the window was read from different beginnings: one forward pass for each of them.
    """
    rows, window, view = [], context_window(model), eval_view(model)
    places = range(len(ids) - n_new, len(ids))
    for start, group in groupby(places, key=lambda place: first_kept(place, window)):
        group = list(group)
        read = torch.tensor([ids[start : group[-1]]], device=model.device)
        rows.append(view(read, **only_last(view, len(group))).logits[0, -len(group) :].float().cpu())
    return torch.cat(rows)


def _entropy(probabilities):
    """Return the entropy in bits."""
    p = probabilities[probabilities > 0].double()
    return abs(-(p * p.log2()).sum().item())


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


class SettingsComparison(Writer):
    """Two columns of sliders, and what each setting writes with the same seed.

    Both settings draw with the same noise. So the two texts are equal for as long as both distributions choose the
    same tokens; where they part, one of the sliders did it, and not the dice. The sliders are named as in ``first
    temperature``. Raises ValueError for two seeds.
    """

    def __init__(self, model, tokenizer, prompt, first=Sampling(), second=Sampling(temperature=0.7), max_new_tokens=40):
        if None not in (first.seed, second.seed) and first.seed != second.seed:
            raise ValueError(f"Both settings draw with one seed, but they ask for {first.seed} and {second.seed}.")
        self.texts = None  # of both settings, as tokens
        sides = {"first": sliders(first, "1: "), "second": sliders(second, "2: ")}
        controls = {"prompt": text_box("prompt", prompt, rows=2)}
        controls |= {f"{side} {name}": sides[side][name] for name in SLIDERS if name != "seed" for side in sides}
        seed = first.seed if second.seed is None else second.seed
        controls["seed"] = sliders(Sampling(seed=seed))["seed"]
        super().__init__(model, tokenizer, max_new_tokens, controls, hint=HINT)

    def compose(self, turn):
        """Write both texts."""
        self.read, values = self.controls["prompt"].value, self.values
        ids = self.encoded(self.read)
        texts = [
            self.written(turn, ids, sampling_of(values, f"{side} "), lambda _: None) for side in ("first", "second")
        ]
        if None not in texts:
            self.texts = texts
            self.draw()

    def draw_picture(self, **_values):
        """Show both texts, and where they part."""
        if self.texts is None:
            return ""
        first, second = self.texts
        n_same = next((i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b), len(first))
        what = "part" if n_same < len(first) else "end"
        columns = []
        for new in self.texts:
            parts = pieces(self.tokenizer, new)
            same, other = "".join(parts[:n_same]), "".join(parts[n_same:])
            mark = f'<span style="background:rgba(217,115,13,0.2)">{svg.escape(other)}</span>'
            columns.append(f'<div style="width:{svg.HALF}px">{prose(self.read, same, mark)}</div>')
        said = svg.paragraph(f"Both write the same {n_same} tokens; then they {what}.")
        return said + svg.side_by_side(*columns)
