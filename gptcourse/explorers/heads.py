"""What each attention head looks at in a sentence, and the loss without it: see `gptcourse.interpretability`."""

from functools import lru_cache, partial

import ipywidgets as widgets

from gptcourse.drawings import svg
from gptcourse.explorers.explorer import Explorer, buttons, slider, text_box
from gptcourse.interpretability import (
    PIECE,
    HeadScores,
    ablate_head,
    attention_patterns,
    even_scores,
    first_token_score,
    head_scores,
    induction_scores,
    previous_token_score,
    text_loss,
)
from gptcourse.views import context_window, unwrap

LONGEST_SAMPLE = 512  # tokens of held-out text that are read
SHOWN = 24  # tokens in the picture: more would be too small to read
VIEWS = ("heat map", "lines")
TITLES = ("looks at the previous token", "looks at the first token", "induction")


def attention_explorer(model, tokenizer, text, held_out=None):
    """Return sliders for layer and head, with what that head looks at in a sentence that the reader types.

    `model` is a GPT of this course or transformers' GPT2LMHeadModel; `tokenizer` has `encode` and `decode`. The weights
    of all heads are computed once for a sentence, so a slider only draws. `held_out` is a text the model has not been
    trained on: its first 512 tokens are what scores and losses are measured on; without it, the sentence is. Raises
    ValueError for a model of another shape.
    """
    reading = Reading(model, tokenizer, held_out)
    n_layer, n_head = reading.induction.shape
    controls = {
        "text": text_box("sentence", text),
        "layer": slider("layer", 0, 0, n_layer - 1),
        "head": slider("head", 0, 0, n_head - 1),
        "view": buttons("show", VIEWS),
        "off": widgets.Checkbox(False, description="turn this head off"),
    }
    hint = "Type your own, then press Enter. In the pictures ␣ is a space and ↵ a line break."
    return Explorer(controls, reading.picture, hint=hint)


class Reading:
    """What a model makes of the held-out text and of the sentence typed last; losses and weights are computed once."""

    def __init__(self, model, tokenizer, held_out):
        self.model, self.tokenizer = unwrap(model), tokenizer
        self.induction = induction_scores(model)
        self.sample, self.window = None, context_window(self.model)
        if held_out is not None:
            self.sample = tuple(tokenizer.encode(held_out))[:LONGEST_SAMPLE]
            self.scores = head_scores(model, self.sample)
        self.weights, self.loss = lru_cache(1)(self.weights), lru_cache(1_000)(self.loss)
        self.even_scores = lru_cache(1)(partial(even_scores, self.model))

    def weights(self, ids):
        """Return the attention weights (L, H, T, T) of a sentence."""
        return attention_patterns(self.model, ids).cpu()

    def loss(self, ids, off):
        """Return the loss on a text, with the head `off`, (layer, head) or None, switched off."""
        return text_loss(ablate_head(self.model, *off) if off else self.model, ids)

    def picture(self, text, layer, head, view, off):
        """Draw the scores of all heads and the weights of one."""
        typed = tuple(self.tokenizer.encode(text))
        if len(typed) < 2:
            raise ValueError("There is nothing to look back at: type a sentence of at least two tokens.")
        ids = typed[: min(SHOWN, self.window)]
        weights, labels = self.weights(ids), [token_label(self.tokenizer.decode([i])) for i in ids]
        if self.sample is None:
            scores = HeadScores(previous_token_score(weights), first_token_score(weights), self.induction)
        else:
            scores = self.scores
        even = self.even_scores(min(PIECE, self.window, len(self.sample or ids)))
        measured_on = "this sentence" if self.sample is None else "held-out text"
        return (
            svg.cut_note(len(ids), len(typed), "tokens")
            + svg.paragraph(self._losses(ids, layer, head, off))
            + svg.side_by_side(
                _score_tables(scores, even, layer, head, measured_on),
                draw_pattern(weights[layer, head].tolist(), labels, layer, head, view == VIEWS[1], off),
            )
        )

    def _losses(self, ids, layer, head, off):
        """Return what the losses are and, with the head switched off, what they become."""
        before = {"this sentence": self.loss(ids, None)}
        before |= {"held-out text": self.loss(self.sample, None)} if self.sample else {}
        if not off:
            return "Loss (nats per token), all heads on: " + "  ·  ".join(
                f"{n} {loss:.3f}" for n, loss in before.items()
            )
        after = [self.loss(text, (layer, head)) for text in (ids, self.sample) if text]
        changes = [
            f"{name} {was:.3f} → {now:.3f} ({now - was:+.3f})".replace("(-", "(−")
            for (name, was), now in zip(before.items(), after, strict=True)
        ]
        return f"Loss (nats per token), layer {layer}, head {head} off: " + "  ·  ".join(changes)


def token_label(token, longest=9):
    """Return a token with its spaces drawn, cut where it is too long for the picture."""
    shown = svg.visible(token)
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def draw_pattern(weights, labels, layer, head, as_lines=False, off=False, room=336):
    """Draw the weights (T, T) of one head as a table in so much room or as lines, pale if the head is off."""
    title = f"layer {layer}, head {head}" + (", off: its output is zero" if off else "")
    opacity = 0.25 if off else 1
    if as_lines:
        return _lines(weights, labels, title, opacity)
    return svg.heat_map(
        weights,
        labels,
        labels,
        title=title,
        subtitle="row looks at column",
        side=min(22, room / len(labels)),
        opacity=opacity,
        description=f"Attention weights of {title}, as a table",
    )


def _lines(weights, labels, title, opacity):
    """Draw the keys on the left, the queries on the right, and a line for each weight, the stronger the larger."""
    step, top, left, right, width = min(19, 370 / len(labels)), 56, 80, 350, 430
    parts = [
        svg.text(0, 14, title, size=12, bold=True),
        svg.text(left - 10, 38, "looked at (key)", anchor="end", size=11, opacity=0.75),
        svg.text(right + 10, 38, "looking (query)", size=11, opacity=0.75),
    ]
    places = [top + step * n + 8 for n in range(len(labels))]
    for y, label in zip(places, labels, strict=True):
        parts.append(svg.text(left - 10, y + 4, label, anchor="end", size=12, mono=True))
        parts.append(svg.text(right + 10, y + 4, label, size=12, mono=True))
    lines = [
        ((svg.BLUE, weight), f"M{left} {key}L{right} {query}")
        for query, row in zip(places, weights, strict=True)
        for key, weight in zip(places, row, strict=True)
    ]
    style = 'fill="none" stroke="{}" stroke-width="2.5" stroke-opacity="{:g}"'
    parts += [f'<g opacity="{opacity}">', *svg.by_shade(lines, style), "</g>"]
    return svg.picture(parts, top + step * len(labels) + 4, f"Attention weights of {title}, as lines", width)


def _score_tables(scores, even, layer, head, measured_on):
    """Draw the three scores of all heads, a table each; a ring marks the strongest, a frame the head of the sliders."""
    n_layer, n_head = scores.induction.shape
    side, left, top, parts = min(20.0, 178 / n_head, max(9, 92 / n_layer)), 20, 0.0, []
    best = [divmod(int(values.argmax()), n_head) for values in scores]
    for title, values, alike, (row, column) in zip(TITLES, scores, even, best, strict=True):
        strongest = f"strongest {values[row, column]:.2f}: layer {row}, head {column}"
        parts += [
            svg.text(0, top + 14, title, size=12, bold=True),
            svg.text(0, top + 29, f"this head {values[layer, head]:.2f}", size=11, color=svg.ORANGE, bold=True),
            svg.text(100, top + 29, f"all alike: {alike:.2f}", size=11, opacity=0.8),
            svg.text(0, top + 43, strongest, size=11, opacity=0.8),
        ]
        top += 60
        parts += [
            svg.rect(left, top, side * n_head, side * n_layer, "currentColor", 0.06),
            *_numbers(left, top, side, n_head, n_layer),
            *svg.cells(values.tolist(), left, top, side),
            f'<circle cx="{left + side * (column + 0.5):.1f}" cy="{top + side * (row + 0.5):.1f}" '
            f'r="{side * 0.36:.1f}" fill="none" stroke="{svg.ORANGE}" stroke-width="2"/>',
            f'<rect x="{left + side * head:.1f}" y="{top + side * layer:.1f}" width="{side:.1f}" '
            f'height="{side:.1f}" fill="none" stroke="{svg.ORANGE}" stroke-width="2.5"/>',
        ]
        top += side * n_layer + 8
    key = ("row: layer, column: head", "○ strongest  ·  □ this head")
    key += (f"the first two on {measured_on},", "induction on repeated tokens")
    parts += [svg.text(0, top + 10 + 13 * n, line, size=10, opacity=0.75) for n, line in enumerate(key)]
    names = [f"{title}: layer {n}, head {h} is strongest" for title, (n, h) in zip(TITLES, best, strict=True)]
    return svg.picture(parts, top + 54, f"Scores of {n_layer} layers of {n_head} heads; {'; '.join(names)}", 205)


def _numbers(x, top, side, n_head, n_layer):
    """Return the numbers of the heads above a table and of the layers beside it, as many as there is room for."""
    apart, style = 1 if side >= 13 else 2 if side >= 7 else 4, {"size": 10, "opacity": 0.75}
    heads, layers = range(0, n_head, apart), range(0, n_layer, apart)
    above = [svg.text(x + side * (h + 0.5), top - 4, h, anchor="middle", **style) for h in heads]
    return above + [svg.text(x - 5, top + side * (n + 0.5) + 3.5, n, anchor="end", **style) for n in layers]
