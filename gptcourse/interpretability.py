"""Look inside a GPT: what each attention head looks at, and the loss without it.

Sources: Elhage et al. (2021), "A Mathematical Framework for Transformer Circuits" (previous-token and induction heads);
Olsson et al. (2022), "In-context Learning and Induction Heads" (the score on repeated random tokens); Xiao et al.
(2023), "Efficient Streaming Language Models with Attention Sinks" (the first token); Michel et al. (2019), "Are Sixteen
Heads Really Better than One?" (ablation).

`model` is a GPT of this course or transformers' GPT2LMHeadModel, and is left as it is. Shapes: L layers, H heads, B
pieces of text, T tokens in each.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gptcourse.attention import attention, causal_mask
from gptcourse.data import check_tokens
from gptcourse.model import GPT
from gptcourse.training import mean_loss
from gptcourse.views import context_window, eval_view

PIECE, BATCH = 128, 16  # tokens in a piece, as attention weights grow with the square of it; pieces read at once
FIRST_FEW = 4  # these queries have few keys, so each of them looks at the first token a good deal
REPEATED, COPIES = 50, 4  # tokens in the longest random sequence, random sequences of each length


class HeadScores(NamedTuple):
    """Three scores between 0 and 1 for every head, each a Tensor (L, H)."""

    previous_token: Tensor
    first_token: Tensor
    induction: Tensor


def attention_patterns(model, ids) -> Tensor:
    """Return the attention weights of every head: (L, H, T, T), rows are queries.

    `ids` are at least two token ids. Raises ValueError for a model of another shape and for ids that it cannot read.
    """
    view = _view(model)
    ids = check_tokens(ids, view.config.vocab_size, 2, "ids")
    if len(ids) > (longest := context_window(view)):
        raise ValueError(f"These are {len(ids)} tokens and the model reads {longest} at once: give fewer.")
    return _patterns(view, ids[None])[:, 0]


def previous_token_score(weights: Tensor) -> Tensor:
    """Return the mean weight on the token just before: weights (..., T, T) -> (...)."""
    return weights.diagonal(offset=-1, dim1=-2, dim2=-1).mean(-1)


def first_token_score(weights: Tensor) -> Tensor:
    """Return the mean weight on the first token, over the queries after the first few: weights (..., T, T) -> (...)."""
    return weights[..., min(FIRST_FEW, weights.shape[-2] - 1) :, 0].mean(-1)


def induction_scores(model, seed: int = 0) -> Tensor:
    """Return the mean weight on what followed the last time, on repeated random tokens: (L, H).

    The text is one random token, then a sequence of different random tokens, twice. The score is the mean weight that a
    token of the second copy gives to the token *after* its first occurrence (Olsson et al. 2022). The sequences have
    four lengths, so that a head which always looks equally far back does not pass for one that finds the place. Raises
    ValueError when the context or the vocabulary is too small.
    """
    view, generator, means = _view(model), torch.Generator().manual_seed(seed), []
    for n in _lengths(view):
        draws = [torch.randperm(view.config.vocab_size, generator=generator)[: n + 1] for _ in range(COPIES)]
        once = torch.stack(draws)  # (B, 1 + n)
        means.append(_induction(_patterns(view, torch.cat((once, once[:, 1:]), dim=1))).mean(1))
    return torch.stack(means).mean(0)


def head_scores(model, ids, seed: int = 0) -> HeadScores:
    """Return the previous-token, first-token and induction score of every head.

    The first two are measured on the text `ids` (read in pieces of up to 128 tokens), the third by `induction_scores`.
    Raises ValueError as `attention_patterns` does.
    """
    view = _view(model)
    patterns = (_patterns(view, part) for part in _pieces(view, ids).split(BATCH))
    found = [(previous_token_score(weights), first_token_score(weights)) for weights in patterns]  # (L, B, H) each
    of_text = (torch.cat(scores, dim=1).mean(1) for scores in zip(*found, strict=True))
    return HeadScores(*of_text, induction_scores(view, seed))


def even_scores(model, n_tokens: int) -> HeadScores:
    """Return the three scores, as tensors (), of a head with uniform attention, on pieces of `n_tokens` tokens."""
    text = _uniform(n_tokens)
    repeated = torch.stack([_induction(_uniform(2 * n + 1)) for n in _lengths(_view(model))])
    return HeadScores(previous_token_score(text), first_token_score(text), repeated.mean())


def ablate_head(model, layer: int, head: int):
    """Return a view of the model, in evaluation mode, in which the output of one head is zero.

    The view shares the model's parameters; the model itself stays as it is. Nested calls switch several heads off.
    Heads are counted from 0. Raises ValueError for a head that is not there.
    """
    view = _view(model)
    blocks, n_head = _blocks(view), view.config.n_head
    if layer not in range(len(blocks)) or head not in range(n_head):
        raise ValueError(
            f"There is no head {head} in layer {layer}: layers go from 0 to {len(blocks) - 1}, heads to {n_head - 1}."
        )

    def silence(_module, inputs):
        joined = inputs[0].clone()  # (B, T, C): the heads side by side
        joined.unflatten(-1, (n_head, -1))[:, :, head] = 0
        return (joined,)

    blocks[layer].attn.c_proj.register_forward_pre_hook(silence)
    return view


def text_loss(model, ids) -> float:
    """Return the mean loss on the text `ids` in nats per token, read in pieces of up to 128 tokens.

    Every token but the first of its piece is predicted; what is left over after the last whole piece is not read.
    """
    view = _view(model)
    return mean_loss(view, ((part[:, :-1], part[:, 1:]) for part in _pieces(view, ids).split(BATCH)))


def head_ablation(model, ids) -> Tensor:
    """Return the loss on the text `ids` without each head in turn: (L, H), nats per token."""
    view = _view(model)
    layers, heads = range(len(_blocks(view))), range(view.config.n_head)
    return torch.tensor([[text_loss(ablate_head(view, layer, head), ids) for head in heads] for layer in layers])


def _view(model):
    """Return a view of a model whose blocks are those of GPT-2; ValueError for a model that is built otherwise."""
    view = eval_view(model)
    if isinstance(view, GPT):
        return view
    config = getattr(view, "config", None)
    if getattr(config, "model_type", None) != "gpt2" or not hasattr(view, "lm_head"):
        raise ValueError(
            f"{type(view).__name__} is not shaped like GPT-2: give a GPT of this course or a GPT2LMHeadModel."
        )
    if not config.scale_attn_weights or config.scale_attn_by_inverse_layer_idx:
        raise ValueError("This model does not divide its scores by √D as GPT-2 does: its weights would come out wrong.")
    return view


def _blocks(view):
    return view.h if isinstance(view, GPT) else view.transformer.h


def _pieces(view, ids):
    """Return the ids as (B, T) in whole pieces of up to PIECE tokens, the rest left out."""
    ids = check_tokens(ids, view.config.vocab_size, 2, "ids")
    size = min(PIECE, context_window(view), len(ids))
    return ids[: len(ids) // size * size].view(-1, size)


@torch.no_grad()
def _patterns(view, ids):
    """Return the weights (L, B, H, T, T) for ids (B, T)."""
    ids = ids.to(view.device)
    if isinstance(view, GPT):
        return torch.stack(view(ids, output_attentions=True).attentions).float()
    # The fused kernels of transformers give no weights: they are computed from its queries and keys.
    view, caught = eval_view(view), []
    for block in _blocks(view):
        block.attn.c_attn.register_forward_hook(lambda _module, _inputs, qkv: caught.append(qkv))
    view(ids, use_cache=False)
    qkv = torch.stack(caught).float().unflatten(-1, (3, view.config.n_head, -1))  # (L, B, T, 3, H, D)
    q, k, _ = qkv.permute(3, 0, 1, 4, 2, 5)  # (L, B, H, T, D) each
    return attention(q, k, k, causal_mask(ids.shape[1], device=ids.device))[1]


def _lengths(view):
    """Return the lengths of the random sequences that fit twice, with one token in front, into the model's context."""
    longest = min(REPEATED, (context_window(view) - 1) // 2, view.config.vocab_size - 1)
    if longest < 2:
        raise ValueError("Nothing can be repeated in so short a context: an induction score needs five positions.")
    return sorted({max(2, longest * eighths // 8) for eighths in (5, 6, 7, 8)})


def _induction(weights):
    """Return the mean weight, (...), on what followed the last time: (..., 2n + 1, 2n + 1) for a sequence of n."""
    n = weights.shape[-1] // 2
    # Token i of the sequence stands at 1 + i and again at 1 + n + i; what followed it stands at 2 + i.
    return weights[..., torch.arange(n) + 1 + n, torch.arange(n) + 2].mean(-1)


def _uniform(n):
    """Return the weights (n, n) of uniform causal attention."""
    table = causal_mask(n).float()
    return table / table.sum(-1, keepdim=True)
