"""What each decoding knob does: the next token's probabilities before and after, and the text that follows."""

import threading

import ipywidgets as widgets
import torch

from gptcourse.explorers import svg
from gptcourse.generation import Sampling, context_window, draw, exponential_noise, next_token_distribution, stream
from gptcourse.model import in_mode

ROWS = 12
SLIDERS = {  # name: (least, most, step, off, description)
    "temperature": (0.0, 3.0, 0.05, 1.0, "temperature"),
    "top_k": (0, 100, 1, 0, "top-k (0: off)"),
    "top_p": (0.05, 1.0, 0.01, 1.0, "top-p (1: off)"),
    "min_p": (0.0, 0.5, 0.01, 0.0, "min-p (0: off)"),
    "repetition_penalty": (1.0, 2.0, 0.05, 1.0, "repetition penalty"),
    "seed": (0, 99, 1, 0, "seed"),
}


def decoding_explorer(model, tokenizer, prompt, max_new_tokens=40):
    """Return sliders for temperature, top-k, top-p, min-p, repetition penalty and seed.

    ``model`` is ours or a transformers model; ``tokenizer`` has ``encode`` and ``decode``. The logits are computed
    once for a prompt. The bars follow a slider at once; the continuation, which takes many forward passes, follows
    when the slider has stood still. The draw is fixed by the seed, so what moves is the slider's doing. Call
    ``.wait()`` on the returned ``VBox`` for a continuation that is under way.
    """
    return DecodingExplorer(model, tokenizer, prompt, max_new_tokens)


class DecodingExplorer(widgets.VBox):
    """The widget that ``decoding_explorer`` returns."""

    seconds_to_stand_still = 0.25

    def __init__(self, model, tokenizer, prompt, max_new_tokens):
        self.model, self.tokenizer, self.max_new_tokens = model, tokenizer, max_new_tokens
        self.prompt = widgets.Textarea(
            prompt,
            description="prompt",
            rows=2,
            continuous_update=False,  # read when the cursor leaves the box, for each reading is a forward pass
            style={"description_width": "125px"},
            layout=widgets.Layout(width="680px", max_width="98%"),
        )
        self.controls = {name: _slider(*settings) for name, settings in SLIDERS.items()}
        self.picture, self.continuation = widgets.HTML(), widgets.HTML()
        self.turn, self.timer, self.ids = 0, None, None
        grid = widgets.GridBox(
            list(self.controls.values()), layout=widgets.Layout(grid_template_columns="repeat(auto-fit, 340px)")
        )
        hint = widgets.HTML(
            '<div style="padding-left:135px;font-size:12px;opacity:0.7;line-height:1.4">'
            "Type your own, then click outside the box: the model reads it.</div>"
        )
        super().__init__([self.prompt, hint, grid, self.picture, self.continuation])
        self.prompt.observe(self._new_prompt, "value")
        for control in self.controls.values():
            control.observe(self._moved, "value")
        self._new_prompt()

    @property
    def sampling(self):
        """The ``Sampling`` that the sliders stand for."""
        # A first key press may send 1.0000000000000002.
        return Sampling(**{name: round(control.value, 4) for name, control in self.controls.items()})

    def wait(self):
        """Return when no continuation is under way."""
        if self.timer is not None:
            self.timer.join()

    def _new_prompt(self, _change=None):
        """Compute the next token's logits, once for all positions of the sliders."""
        self._stop_writing()
        limit = context_window(self.model)
        try:
            ids = list(self.tokenizer.encode(self.prompt.value))
            if not ids:
                raise ValueError("The prompt is empty: type at least one character.")
            if len(ids) > limit:
                raise ValueError(f"The prompt has {len(ids)} tokens and the model reads {limit} at once: shorten it.")
        except ValueError as reason:  # nothing typed, or a character that the tokenizer does not know
            self.ids = None
            self.picture.value, self.continuation.value = svg.paragraph(reason), ""
            return
        self.ids = torch.tensor([ids], device=self.model.device)
        with in_mode(self.model, training=False), torch.inference_mode():
            self.logits = self.model(self.ids).logits[:, -1].float()
        self._draw()
        self._write(self.turn)

    def _moved(self, _change):
        if self.ids is None:
            return
        self._stop_writing()
        self._draw()
        self.timer = threading.Timer(self.seconds_to_stand_still, self._write, [self.turn])
        self.timer.daemon = True
        self.timer.start()

    def _stop_writing(self):
        self.turn += 1  # a continuation under way sees that its turn is over
        if self.timer is not None:
            self.timer.cancel()

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
        rows = [(svg.visible(self.tokenizer.decode([i]))[:16], before[i].item(), after[i].item()) for i in top.tolist()]
        if len(before) > len(top):
            shares = [max(p.sum().item() - p[top].sum().item(), 0.0) for p in (before, after)]
            shares[1] = shares[1] if kept.sum() > kept[top].sum() else 0.0
            others = len(before) - len(top)
            rows.append((f"{others:,} other{'s' * (others > 1)}", *shares))
        # The draw that starts the continuation: generation's own noise for this seed, held against the bars.
        noise = exponential_noise(after.shape, torch.Generator().manual_seed(self.sampling.seed))
        drawn = (top.cpu() == draw(after.cpu(), noise)).nonzero()
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

    def _write(self, turn):
        """Show the continuation; give up as soon as a slider moves again."""
        sampling, text = self.sampling, ""
        try:
            new = []
            for token in stream(self.model, self.ids, self.max_new_tokens, sampling):
                if turn != self.turn:
                    return
                new.append(int(token))
            text = self.tokenizer.decode(new)
        except Exception as error:  # raised in a thread, it would be printed where no learner looks
            text = f"[{type(error).__name__}: {error}]"
        if turn == self.turn:
            self.continuation.value = prose(self.prompt.value, text)


def _slider(least, most, step, value, description):
    kind = widgets.IntSlider if isinstance(step, int) else widgets.FloatSlider
    return kind(
        value,
        min=least,
        max=most,
        step=step,
        description=description,
        style={"description_width": "125px"},
        layout=widgets.Layout(width="335px"),
    )


def _entropy(probabilities):
    """Return the entropy in bits."""
    p = probabilities[probabilities > 0].double()
    return abs(-(p * p.log2()).sum().item())


def prose(prompt, continuation):
    """Return the prompt, pale, and the continuation, as escaped HTML that keeps its line breaks."""
    style = "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.55;max-width:680px;padding:8px 0 4px 12px"
    return (
        f'<div style="{style};border-left:3px solid {svg.BLUE};font-family:{svg.MONO}">'
        f'<span style="opacity:0.6">{svg.escape(prompt)}</span><span>{svg.escape(continuation)}</span></div>'
    )
