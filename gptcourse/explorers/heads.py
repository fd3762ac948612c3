"""What each attention head looks at, and what the loss does without it.

Sources: Elhage et al. (2021), "A Mathematical Framework for Transformer Circuits" (previous-token heads and induction
heads); Olsson et al. (2022), "In-context Learning and Induction Heads" (the score on repeated random tokens); Xiao et
al. (2023), "Efficient Streaming Language Models with Attention Sinks" (the first token); Michel et al. (2019), "Are
Sixteen Heads Really Better than One?" (switching one head off).

Shapes: L layers, H heads, B pieces of text, T tokens in each.
"""

from __future__ import annotations

from contextlib import contextmanager
from itertools import product
from typing import NamedTuple

import ipywidgets as widgets
import torch
from torch import Tensor
from torch.nn import functional as F

from gptcourse.attention import attention, causal_mask
from gptcourse.explorers import svg
from gptcourse.generation import context_window
from gptcourse.model import GPT, GPTConfig, in_mode

PIECE = 128  # tokens read at once: a table of weights grows with the square of it
LONGEST_SAMPLE = 512  # tokens of held-out text that the explorer reads
SHOWN = 24  # tokens in the explorer's picture: more would be too small to read
FIRST_FEW = 4  # these queries have few keys, so each of them looks at the first token a good deal
REPEATED = 50  # tokens in the longest random sequence
COPIES = 4  # random sequences of each length
SHARP = 30.0  # in a handmade head: large enough for a softmax that gives everything to one key
VIEWS = ("heat map", "lines")
TITLES = ("looks at the previous token", "looks at the first token", "induction")


class HeadScores(NamedTuple):
    """Three numbers between 0 and 1 for every head, each a Tensor (L, H)."""

    previous_token: Tensor
    first_token: Tensor
    induction: Tensor


def attention_patterns(model, ids) -> Tensor:
    """Return how much every token looks at every token, in every head: (L, H, T, T), rows are queries.

    `model` is a GPT of this course or transformers' GPT2LMHeadModel, and `ids` one row of at least two token ids.

    Raises ValueError for a model of another shape, and for ids that it cannot read.
    """
    return _patterns(model, _checked(model, ids, context_window(model))[None])[:, 0]


def previous_token_score(weights: Tensor) -> Tensor:
    """Return the mean weight that a token gives to the one just before it: weights (..., T, T) -> (...)."""
    return weights.diagonal(offset=-1, dim1=-2, dim2=-1).mean(-1)


def first_token_score(weights: Tensor) -> Tensor:
    """Return the mean weight on the first token, for the queries after the first few: weights (..., T, T) -> (...)."""
    return weights[..., min(FIRST_FEW, weights.shape[-2] - 1) :, 0].mean(-1)


def induction_scores(model, seed: int = 0) -> Tensor:
    """Return how much each head looks at what followed the last time: (L, H).

    The text is one random token, then a sequence of random tokens (no two the same), then the same sequence again. The
    score is the mean weight that a token of the second copy gives to the token *after* its first occurrence (Elhage et
    al., 2021; Olsson et al., 2022). The sequences have four lengths, so that a head which always looks equally far back
    does not pass for one that finds the place. Raises ValueError when the context or the vocabulary is too small.
    """
    generator = torch.Generator().manual_seed(seed)
    means = []
    for n in _lengths(model):
        draws = [torch.randperm(model.config.vocab_size, generator=generator)[: n + 1] for _ in range(COPIES)]
        once = torch.stack(draws)  # (B, 1 + n)
        weights = _patterns(model, torch.cat((once, once[:, 1:]), dim=1).to(model.device))  # (L, B, H, 2n + 1, 2n + 1)
        means.append(_second_look(weights).mean(1))
    return torch.stack(means).mean(0)


def even_scores(model, n_tokens: int) -> HeadScores:
    """Return the three scores, as tensors (), of a head that looks at everything alike: what a score is worth.

    `n_tokens` is the length of the pieces of text on which the first two are measured.
    """
    text = _even(n_tokens)
    repeated = torch.stack([_second_look(_even(2 * n + 1)) for n in _lengths(model)])
    return HeadScores(previous_token_score(text), first_token_score(text), repeated.mean())


def head_scores(model, ids, seed: int = 0) -> HeadScores:
    """Return the previous-token, first-token and induction score of every head.

    The first two are measured on the text `ids` (read in pieces of up to 128 tokens), the third on repeated random
    tokens: see `induction_scores`. Raises ValueError as `attention_patterns` does.
    """
    return _scores(_patterns(model, _pieces(model, ids)), induction_scores(model, seed))


@contextmanager
def ablate_head(model, layer: int, head: int):
    """Switch one head off inside a `with`: what it hands on is zero, everything else stays.

    Its slice of the joined heads is set to zero before `c_proj`, by a hook that is gone afterwards, also after an
    exception. Heads are counted from 0; several can be off at once. Raises ValueError for a head that is not there.
    """
    blocks, n_head = _blocks(model), model.config.n_head
    if not (0 <= layer < len(blocks) and 0 <= head < n_head):
        raise ValueError(
            f"There is no head {head} in layer {layer}: layers go from 0 to {len(blocks) - 1}, heads to {n_head - 1}."
        )
    size = model.config.n_embd // n_head
    its_place = slice(head * size, (head + 1) * size)

    def silence(_module, inputs):
        joined = inputs[0].clone()  # (B, T, C): the heads side by side
        joined[..., its_place] = 0
        return (joined,)

    hook = blocks[layer].attn.c_proj.register_forward_pre_hook(silence)
    try:
        yield model
    finally:
        hook.remove()


def text_loss(model, ids) -> float:
    """Return the mean loss on the text `ids` in nats per token, read in pieces of up to 128 tokens.

    Every token but the first of its piece is predicted; what is left over after the last whole piece is not read.
    """
    return _loss(model, _pieces(model, ids))


def head_ablation(model, ids) -> Tensor:
    """Return the loss on the text `ids` with one head switched off, for every head in turn: (L, H), nats per token."""
    pieces, n_head = _pieces(model, ids), model.config.n_head
    losses = torch.empty(len(_blocks(model)), n_head)
    for layer, head in product(range(len(losses)), range(n_head)):
        with ablate_head(model, layer, head):
            losses[layer, head] = _loss(model, pieces)
    return losses


def handmade_model(vocab_size: int = 64) -> GPT:
    """Return a GPT of two layers whose heads are known, because every weight is written here and none is trained.

    Layer 0: head 0 looks at the previous token and notes which it was, head 1 looks at the first token and says
    nothing. Layer 1: head 0 is an induction head (it looks for a token that noted what stands here now, and predicts
    that token again), head 1 looks at everything alike. The two-step circuit is that of Elhage et al. (2021), section
    "Induction heads". The width has three parts: where a token stands, which it is, which stood before it.
    """
    n_positions = 2 * vocab_size
    model = GPT(GPTConfig(vocab_size, n_positions, n_embd=4 * vocab_size, n_layer=2, n_head=2))
    place, token, before = range(n_positions), range(n_positions, 3 * vocab_size), range(3 * vocab_size, 4 * vocab_size)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if ".ln_" in f".{name}" and name.endswith("weight") else 0.0)
        model.wpe.weight[place, place] = 1.0
        model.wte.weight[range(vocab_size), token] = 1.0
        first, second = (block.attn for block in model.h)
        _connect(first, 0, query=place, key=place[:-1], key_shift=1, value=token, output=before)
        first.c_attn.bias[_rows(first, "query", 1)[0]] = SHARP  # head 1 always asks for number 0,
        first.c_attn.weight[_rows(first, "key", 1)[0], 0] = SHARP  # which the first place has
        _connect(second, 0, query=token, key=before, key_shift=0, value=token, output=token)
        second.c_proj.weight.mul_(4.0)  # louder than the token that stands here, which is still in the stream
    return model.eval()


def attention_explorer(model, tokenizer, text, held_out=None):
    """Return sliders for layer and head, with what that head looks at in a sentence that the reader types.

    `model` is a GPT of this course or transformers' GPT2LMHeadModel; `tokenizer` has `encode` and `decode`. The weights
    of all heads are computed once for a sentence, so a slider only draws. `held_out` is a text the model has not been
    trained on: its first 512 tokens are what scores and losses are measured on; without it, the sentence is.
    """
    return AttentionExplorer(model, tokenizer, text, held_out)


class AttentionExplorer(widgets.VBox):
    """The widget that `attention_explorer` returns."""

    def __init__(self, model, tokenizer, text, held_out):
        self.model, self.tokenizer = model, tokenizer
        self.induction = induction_scores(model)
        self.sample, self.scores, self.losses = None, None, {}
        if held_out is not None:
            self.sample = _pieces(model, list(tokenizer.encode(held_out))[:LONGEST_SAMPLE])
            self.scores = _scores(_patterns(model, self.sample), self.induction)
            self.even = even_scores(model, self.sample.shape[1])
        self.sentence = None  # (1, T) token ids, or None where there is nothing to draw
        self.controls = _controls(text, len(_blocks(model)), model.config.n_head)
        self.picture = widgets.HTML()
        layer, head, view, off = (self.controls[name] for name in ("layer", "head", "view", "off"))
        name = widgets.HTML('<div style="width:65px;text-align:right;padding-right:4px">show</div>')
        rows = [layer, head, widgets.HBox([name, view]), off]
        grid = widgets.GridBox(rows, layout=widgets.Layout(grid_template_columns="repeat(auto-fit, 340px)"))
        hint = widgets.HTML(
            '<div style="padding-left:75px;font-size:12px;opacity:0.7;line-height:1.4">'
            "Type your own, then press Enter. In the pictures ␣ is a space and ↵ a line break.</div>"
        )
        super().__init__([self.controls["text"], hint, grid, self.picture])
        self.controls["text"].observe(self._new_text, "value")
        for name in ("layer", "head", "view", "off"):
            self.controls[name].observe(self._draw, "value")
        self._new_text()

    def _new_text(self, _change=None):
        """Compute the weights of all heads, once for all positions of the sliders."""
        try:
            ids = list(self.tokenizer.encode(self.controls["text"].value))
            if len(ids) < 2:
                raise ValueError("There is nothing to look back at: type a sentence of at least two tokens.")
            limit = min(SHOWN, context_window(self.model))
            self.sentence = _checked(self.model, ids[:limit], limit)[None]
        except ValueError as reason:  # nothing typed, or a character that the tokenizer does not know
            self.sentence, self.picture.value = None, svg.paragraph(reason)
            return
        self.labels = [token_label(self.tokenizer.decode([i])) for i in self.sentence[0].tolist()]
        cut = f"The first {limit} of your {len(ids)} tokens are read and shown." if len(ids) > limit else ""
        self.note = svg.paragraph(cut) if cut else ""
        weights = _patterns(self.model, self.sentence)
        self.weights = weights[:, 0].cpu()
        if self.sample is None:
            self.scores, self.even = _scores(weights, self.induction), even_scores(self.model, weights.shape[-1])
        self.losses = {key: loss for key, loss in self.losses.items() if key[0] == "held-out text"}
        self._draw()

    def _draw(self, _change=None):
        if self.sentence is None:
            return
        layer, head = self.controls["layer"].value, self.controls["head"].value
        draw = draw_pattern if self.controls["view"].value == VIEWS[0] else _lines
        title = f"layer {layer}, head {head}"
        # One string, and so one message to the page.
        self.picture.value = (
            self.note
            + svg.paragraph(self._loss_line(layer, head))
            + _score_tables(
                self.scores, self.even, layer, head, "this sentence" if self.sample is None else "held-out text"
            )
            + draw(self.weights[layer, head].tolist(), self.labels, title)
        )

    def _loss_line(self, layer, head):
        """Return what the loss is and, with the head switched off, what it becomes."""
        texts = {"this sentence": self.sentence, "held-out text": self.sample}
        before = {name: self._known_loss(name, ids, None) for name, ids in texts.items() if ids is not None}
        if not self.controls["off"].value:
            losses = [f"{name} {loss:.3f}" for name, loss in before.items()]
            return "Loss (nats per token), all heads on: " + "  ·  ".join(losses)
        after = {name: self._known_loss(name, texts[name], (layer, head)) for name in before}
        changes = [
            f"{name} {was:.3f} → {after[name]:.3f} ({_signed(after[name] - was)})" for name, was in before.items()
        ]
        return f"Loss (nats per token), layer {layer}, head {head} off: " + "  ·  ".join(changes)

    def _known_loss(self, name, ids, off):
        """Return the loss on `ids` with the head `off` switched off (None: none), computed once."""
        if (name, off) not in self.losses:
            if off is None:
                self.losses[name, off] = _loss(self.model, ids)
            else:
                with ablate_head(self.model, *off):
                    self.losses[name, off] = _loss(self.model, ids)
        return self.losses[name, off]


def _rows(layer, role, head):
    """Return the rows of c_attn that make the query, key or value of one head."""
    start = ("query", "key", "value").index(role) * layer.c_proj.in_features + head * layer.head_size
    return range(start, start + layer.head_size)


def _connect(layer, head, query, key, key_shift, value, output):
    """Let a head look where number i of `query` meets number i - key_shift of `key`, and copy `value` to `output`."""
    rows = {role: _rows(layer, role, head) for role in ("query", "key", "value")}
    layer.c_attn.weight[rows["query"][: len(query)], query] = SHARP
    layer.c_attn.weight[rows["key"][key_shift : key_shift + len(key)], key] = SHARP
    layer.c_attn.weight[rows["value"][: len(value)], value] = 1.0
    columns = range(head * layer.head_size, head * layer.head_size + len(value))
    layer.c_proj.weight[output, columns] = 1.0


def _blocks(model):
    """Return the blocks, each with .attn.c_attn and .attn.c_proj; ValueError for a model that is built otherwise."""
    if isinstance(model, GPT):
        return model.h
    config = getattr(model, "config", None)
    if getattr(config, "model_type", None) != "gpt2" or not hasattr(model, "lm_head"):
        raise ValueError(
            f"{type(model).__name__} is not shaped like GPT-2: give a GPT of this course or a GPT2LMHeadModel."
        )
    if not config.scale_attn_weights or config.scale_attn_by_inverse_layer_idx:
        raise ValueError("This model does not divide its scores by √D as GPT-2 does: its weights would come out wrong.")
    return model.transformer.h


def _checked(model, ids, longest=None):
    """Return one row of at least two ids that the model can read, on its device; else ValueError."""
    _blocks(model)
    ids = torch.as_tensor(ids)
    if ids.dim() != 1 or len(ids) < 2:
        raise ValueError(f"Give one row of at least two token ids: these have the shape {tuple(ids.shape)}.")
    if longest is not None and len(ids) > longest:
        raise ValueError(f"These are {len(ids)} tokens and the model reads {longest} at once: give fewer.")
    if ids.is_floating_point() or ids.min() < 0 or ids.max() >= model.config.vocab_size:
        raise ValueError(
            f"The model knows the ids from 0 to {model.config.vocab_size - 1}: use the tokenizer it was made for."
        )
    return ids.long().to(model.device)


def _pieces(model, ids):
    """Return the ids as (B, T) in whole pieces of up to 128 tokens, the rest left out."""
    ids = _checked(model, ids)
    size = min(PIECE, context_window(model), len(ids))
    return ids[: len(ids) // size * size].view(-1, size)


def _patterns(model, ids):
    """Return the weights (L, B, H, T, T) for ids (B, T)."""
    blocks = _blocks(model)
    with in_mode(model, training=False), torch.no_grad():
        if isinstance(model, GPT):
            return torch.stack(model(ids, output_attentions=True).attentions).float()
        # The fused kernels of transformers give no weights either: they are made from its queries and keys.
        caught = []
        hooks = [
            b.attn.c_attn.register_forward_hook(lambda _module, _inputs, made: caught.append(made)) for b in blocks
        ]
        try:
            model(ids, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        qkv = torch.stack(caught).float().unflatten(-1, (3, model.config.n_head, -1))  # (L, B, T, 3, H, D)
        q, k, _ = qkv.permute(3, 0, 1, 4, 2, 5)  # (L, B, H, T, D) each
        return attention(q, k, k, causal_mask(ids.shape[1], device=ids.device))[1]


def _lengths(model):
    """Return the lengths of the random sequences that fit twice, with one token in front, into the model's context."""
    longest = min(REPEATED, (context_window(model) - 1) // 2, model.config.vocab_size - 1)
    if longest < 2:
        raise ValueError("Nothing can be repeated in so short a context: an induction score needs five positions.")
    return sorted({max(2, longest * eighths // 8) for eighths in (5, 6, 7, 8)})


def _second_look(weights):
    """Return the mean weight, (...), on what followed the last time: (..., 2n + 1, 2n + 1) for a sequence of n."""
    n = weights.shape[-1] // 2
    # Token i of the sequence stands at 1 + i and again at 1 + n + i; what followed it stands at 2 + i.
    return weights[..., torch.arange(n) + 1 + n, torch.arange(n) + 2].mean(-1)


def _even(n):
    """Return the weights (n, n) of a head that looks at everything alike."""
    table = causal_mask(n).float()
    return table / table.sum(-1, keepdim=True)


def _scores(weights, induction):
    """Return all three scores, two of them from the weights (L, B, H, T, T) of a text."""
    return HeadScores(*(score(weights).mean(1) for score in (previous_token_score, first_token_score)), induction)


def _loss(model, ids):
    """Return the mean loss over every token of ids (B, T) but the first of each row, in nats."""
    with in_mode(model, training=False), torch.inference_mode():
        logits = model(ids).logits[:, :-1].float()
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()


def _controls(text, n_layer, n_head):
    style = {"description_width": "65px"}
    wide = {"layout": widgets.Layout(width="335px"), "style": style}
    view = widgets.ToggleButtons(options=VIEWS, style={"button_width": "84px"}, layout=widgets.Layout(width="auto"))
    return {
        "text": widgets.Text(
            text,
            description="sentence",
            continuous_update=False,  # read at Enter, for each reading is a forward pass
            style=style,
            layout=widgets.Layout(width="680px", max_width="98%"),
        ),
        "layer": widgets.IntSlider(0, min=0, max=n_layer - 1, description="layer", **wide),
        "head": widgets.IntSlider(0, min=0, max=n_head - 1, description="head", **wide),
        "view": view,
        "off": widgets.Checkbox(False, description="turn this head off", indent=False),
    }


def token_label(token, longest=9):
    """Return a token with its spaces drawn, cut where it is too long for the picture."""
    shown = svg.visible(token)
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def _signed(number):
    return f"{number:+.3f}".replace("-", "−")


def _score_tables(scores, even, layer, head, measured_on):
    """Draw the three scores of all heads side by side; a ring marks the strongest, a frame the head of the sliders."""
    n_layer, n_head = scores.induction.shape
    side, left, top, step = min(20.0, 186 / n_head, 260 / n_layer), 22, 64, 230
    height = top + side * n_layer + 26
    parts = []
    for number, (title, values, alike) in enumerate(zip(TITLES, scores, even, strict=True)):
        x, best = left + step * number, divmod(int(values.argmax()), n_head)
        strongest = f"strongest {values[best]:.2f}: layer {best[0]}, head {best[1]}"
        parts += [
            svg.text(x, 14, title, size=12, bold=True),
            svg.text(x, 30, f"this head {values[layer, head]:.2f}", size=11, color=svg.ORANGE, bold=True),
            svg.text(x + 100, 30, f"all alike: {alike:.2f}", size=11, opacity=0.8),
            svg.text(x, 45, strongest, size=11, opacity=0.8),
            svg.rect(x, top, side * n_head, side * n_layer, "currentColor", 0.06),
        ]
        parts += _numbers(x, top, side, n_head, n_layer)
        parts += _cells(values.tolist(), x, top, side)
        parts.append(_ring(x + side * (best[1] + 0.5), top + side * (best[0] + 0.5), side * 0.36))
        parts.append(_frame(x + side * head, top + side * layer, side))
    key = f"○ strongest  ·  □ this head  ·  the first two on {measured_on}, induction on repeated random tokens"
    parts.append(svg.text(left, height - 8, f"row: layer, column: head  ·  {key}", size=10, opacity=0.75))
    return svg.picture(parts, height, f"Scores of {n_layer} layers of {n_head} heads; {_summary(scores)}")


def _summary(scores):
    best = [divmod(int(values.argmax()), values.shape[1]) for values in scores]
    return "; ".join(f"{title}: layer {n}, head {h} is strongest" for title, (n, h) in zip(TITLES, best, strict=True))


def _numbers(x, top, side, n_head, n_layer):
    """Return the numbers of the heads above a table and of the layers beside it, as many as there is room for."""
    apart = 1 if side >= 13 else 2 if side >= 7 else 4
    heads = [
        svg.text(x + side * (h + 0.5), top - 4, h, anchor="middle", size=10, opacity=0.75)
        for h in range(0, n_head, apart)
    ]
    return heads + [
        svg.text(x - 5, top + side * (n + 0.5) + 3.5, n, anchor="end", size=10, opacity=0.75)
        for n in range(0, n_layer, apart)
    ]


def _cells(rows, left, top, side):
    """Return blue squares, the fuller the larger the number between 0 and 1."""
    size = f"{side - 1:.1f}"
    squares = [
        (value, f"M{left + side * j + 0.5:.1f} {top + side * i + 0.5:.1f}h{size}v{size}h-{size}z")
        for i, row in enumerate(rows)
        for j, value in enumerate(row)
    ]
    return [f'<path d="{path}" fill="{svg.BLUE}" fill-opacity="{shade:g}"/>' for shade, path in _by_shade(squares)]


def _by_shade(marks):
    """Join the paths of (weight, path) that would look alike: a few elements are drawn sooner than hundreds."""
    joined = {}
    for weight, path in marks:
        shade = round(min(weight, 1.0) * 50) / 50
        if shade > 0:  # below 0.01 nothing would be seen
            joined[shade] = joined.get(shade, "") + path
    return sorted(joined.items())


def _ring(x, y, radius):
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="none" stroke="{svg.ORANGE}" stroke-width="2"/>'


def _frame(x, y, side):
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{side:.1f}" height="{side:.1f}" fill="none" '
        f'stroke="{svg.ORANGE}" stroke-width="2.5"/>'
    )


def draw_pattern(weights, labels, title, side=22, left=90):
    """Draw the table of weights (T, T), in cells of `side` units: row = who looks, column = who is looked at."""
    top = 44 + 6 * max(map(len, labels))
    width, height = left + side * len(labels) + 50, top + side * len(labels) + 8
    parts = [svg.text(0, 14, title, size=12, bold=True), svg.text(0, 30, "row looks at column", size=11, opacity=0.75)]
    parts.append(svg.rect(left, top, side * len(labels), side * len(labels), "currentColor", 0.05))
    parts += _cells(weights, left, top, side)
    for i, (label, row) in enumerate(zip(labels, weights, strict=True)):
        middle = side * (i + 0.5)
        parts.append(svg.text(left - 6, top + middle + 4, label, anchor="end", size=11, mono=True))
        column = svg.text(0, 0, label, size=11, mono=True)
        parts.append(f'<g transform="translate({left + middle + 3:.1f} {top - 6}) rotate(-60)">{column}</g>')
        parts += [_number(left + side * (j + 0.5), top + middle + 3.5, w) for j, w in enumerate(row) if w >= 0.1]
    return svg.picture(parts, height, f"Attention weights of {title}, as a table", max(width, 240))


def _number(x, y, weight):
    ink = "#fff" if weight > 0.55 else "currentColor"
    return svg.text(x, y, f"{weight:.1f}".removeprefix("0"), anchor="middle", size=10, color=ink)


def _lines(weights, labels, title):
    """Draw the keys on the left, the queries on the right, and a line for each weight, the stronger the larger."""
    step, top, left, right, width = 19, 56, 150, 430, 580
    height = top + step * len(labels) + 4
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
        (weight, f"M{left} {key}L{right} {query}")
        for query, row in zip(places, weights, strict=True)
        for key, weight in zip(places, row, strict=True)
    ]
    style = f'fill="none" stroke="{svg.BLUE}" stroke-width="2.5"'
    parts += [f'<path d="{path}" {style} stroke-opacity="{shade:g}"/>' for shade, path in _by_shade(lines)]
    return svg.picture(parts, height, f"Attention weights of {title}, as lines", width)
