"""The exercises of notebook 12: the parts of a current block, and what a config says about a model's size."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, randn, tensor

from gptcourse.attention import rotary
from gptcourse.exercises.exercise import Exercise, as_it_stands, mistake

NOTEBOOK = "12 · From GPT-3 to today's models"
LLAMA_3_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": False,
}
SMOLLM2_135M = dict(zip(LLAMA_3_8B, (49152, 576, 1536, 30, 9, 3, 64, True), strict=True))
MISTRAL_NEMO_12B = dict(zip(LLAMA_3_8B, (131072, 5120, 14336, 40, 32, 8, 128, False), strict=True))


def gated(gate_by: Callable, up_by: Callable, x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return F.linear(gate_by(F.linear(x, gate)) * up_by(F.linear(x, up)), down)


def same(x: Tensor) -> Tensor:
    return x


def only_the_best(logits: Tensor, k: int) -> Tensor:
    """Return the logits with minus infinity in the place of all but the k largest of each row."""
    best = logits.topk(k).indices
    return logits.masked_fill(torch.ones_like(logits, dtype=torch.bool).scatter(-1, best, False), -torch.inf)


def shares(chosen: Tensor, n_experts: int) -> Tensor:
    """Return which share of all choices each expert has, (E,)."""
    return F.one_hot(chosen, n_experts).float().mean((0, 1))


def llama_parameters(fields: dict, *, matrices=3, norms=2, last_norm=1, head=None, kv=None, size=None, middle=None):
    """Count the parameters of a Llama; the options are what a mistake may change."""
    C, L, heads = (fields[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    size = fields["head_dim"] if size is None else C // heads
    kv = fields["num_key_value_heads"] if kv is None else heads
    attention = C * size * (2 * heads + 2 * kv)
    mlp = matrices * C * (fields["intermediate_size"] if middle is None else 4 * C)
    tables = 1 + (not fields["tie_word_embeddings"] if head is None else head)
    return tables * fields["vocab_size"] * C + L * (attention + mlp + norms * C) + last_norm * C


def scores_with_cache(place_q: int | None, place_k: int | None, keys: Tensor, key: Tensor, query: Tensor) -> Tensor:
    """Score a new token; each place is counted from the number of keys in the cache, None is place 0."""
    q, k = (
        rotary(part, 0 if place is None else len(keys) + place) for part, place in ((query, place_q), (key, place_k))
    )
    return (torch.cat((keys, k)) @ q[0]) / sqrt(keys.shape[-1])


def mixed(weigh: Callable, x: Tensor, weights: Tensor, matrices: Tensor) -> Tensor:
    """Return the sum over the experts of weigh(weights) times what each makes of x."""
    return torch.einsum("te,tc,ecd->td", weigh(weights), x, matrices)


class RMSNorm(Exercise, name="modern.rms_norm", minutes=5):
    """Divide each token's vector by the root of the mean of its squares (plus eps), then multiply by weight."""

    hint = (
        "Take one vector of three numbers: its squares, their mean, the mean plus eps, the root of that. Then divide."
    )

    def inputs():
        return [
            (tensor([[1.0, 2.0, 4.0]]), torch.ones(3), 0.1),
            (randn(2, 3, 8) + 1, randn(8), 1e-5),
            (0.05 * randn(2, 8, 8), randn(8), 1e-3),
            (torch.zeros(2, 4), randn(4), 1e-5),
        ]

    def divided_by(spread: Callable[[Tensor, float], Tensor]) -> Callable:
        return lambda x, weight, eps: x / spread(x, eps) * weight

    def reference(x, weight, eps):
        return F.rms_norm(x, weight.shape, weight, eps)

    layer_norm = mistake("""You take the mean of the vector away first: that is layer norm. Which step does RMSNorm
        leave out?""")(lambda x, weight, eps: F.layer_norm(x, weight.shape, weight, None, eps))
    summed = mistake("""You divide by the length of the vector. The root is of the mean of the squares, not of their
        sum: how large are the numbers of a long vector otherwise?""")(
        divided_by(lambda x, eps: (x.square().sum(-1, True) + eps).sqrt())
    )
    eps_outside = mistake("Very close: where does eps stand, inside the root or outside?")(
        divided_by(lambda x, eps: x.square().mean(-1, True).sqrt() + eps)
    )
    without_eps = mistake("A vector of zeros is divided by 0. What is eps for?")(
        divided_by(lambda x, eps: x.square().mean(-1, True).sqrt())
    )
    by_the_square = mistake("You divide by the mean of the squares. What is missing before the division?")(
        divided_by(lambda x, eps: x.square().mean(-1, True) + eps)
    )
    over_everything = mistake("Each token is normalised on its own: over which dimension is the mean?")(
        divided_by(lambda x, eps: (x.square().mean() + eps).sqrt())
    )
    alone = mistake("Normalised; now the weight.")(lambda x, weight, eps: F.rms_norm(x, weight.shape, eps=eps))


class SwiGLU(Exercise, name="modern.swiglu", minutes=5):
    """Return what a SwiGLU makes of x: the gate, through SiLU, times a second linear map, and back through a third."""

    hint = "Take one number in the middle: it is a product of two. Which of the two goes through SiLU?"

    def inputs():
        first = tensor([[1.0, -2.0]]), tensor([[1.0, 0.5], [2.0, 1.0], [-1.0, 0.0]]), torch.eye(3)[:, :2] + 1
        return [
            (*first, torch.eye(2, 3)),
            *((randn(2, 4, C), *randn(2, n, C), randn(C, n)) for C, n in ((3, 8), (6, 5))),
        ]

    def reference(x, gate, up, down):
        return gated(F.silu, same, x, gate, up, down)

    bilinear = mistake("""Nothing bends: your gate is a linear map. Then a product of two linear maps goes on. Where
        does SiLU stand?""")(partial(gated, same, same))
    exchanged = mistake("The two are exchanged: you bend the other map, and leave the gate as it is.")(
        partial(gated, same, F.silu)
    )
    sigmoid = mistake("""Your gate is a sigmoid, as in the first gated linear units. SiLU is x times its
        sigmoid.""")(partial(gated, torch.sigmoid, same))
    gelu = mistake("That is the sister with a GELU in the gate. Swish, also called SiLU, is asked for.")(
        partial(gated, F.gelu, same)
    )
    added = mistake("You add the two maps. A gate multiplies.")(
        lambda x, gate, up, down: F.linear(F.silu(F.linear(x, gate)) + F.linear(x, up), down)
    )
    after = mistake("You bend the product. Only one of its two factors goes through SiLU.")(
        lambda x, gate, up, down: F.linear(F.silu(F.linear(x, gate) * F.linear(x, up)), down)
    )
    one_map = mistake("You never use the second map: that is the plain MLP, with SiLU.")(
        lambda x, gate, up, down: F.linear(F.silu(F.linear(x, gate)), down)
    )


class ShareKeys(Exercise, name="modern.share_keys", minutes=10):
    """Give each of H query heads its head of keys: G heads (B, G, S, D) become H, neighbours sharing one."""

    hint = "Write down six query heads and two heads of keys: which one does each of the six use?"

    def inputs():
        return [
            (torch.arange(4.0).view(1, 2, 2, 1), 4),
            (randn(2, 3, 4, 5), 6),
            (randn(1, 2, 3, 4), 6),
            (randn(1, 2, 2, 2), 2),
        ]

    def reference(k, n_heads):
        return k.repeat_interleave(n_heads // k.shape[1], dim=1)

    in_turn = mistake("""The shapes are right, and the order is not: your query heads take the heads of keys in turn, as
        in 0, 1, 0, 1. Neighbours should share one. Weights that were trained one way give nonsense the other way.""")(
        lambda k, n_heads: k.repeat(1, n_heads // k.shape[1], 1, 1)
    )
    one_for_all = mistake("All your query heads share the first head of keys: that is multi-query attention.")(
        lambda k, n_heads: k[:, :1].expand(-1, n_heads, -1, -1)
    )
    tokens_repeated = mistake("You repeat along the tokens: the heads are another dimension.")(
        lambda k, n_heads: k.repeat_interleave(n_heads // k.shape[1], dim=2)
    )
    too_often = mistake("You have too many heads now: how many query heads share one head of keys?")(
        lambda k, n_heads: k.repeat_interleave(n_heads, dim=1)
    )


class Route(Exercise, name="modern.route", minutes=10):
    """Return the weight of each expert for each token: softmax over the k best, and 0 for all others."""

    hint = "Take one row of four scores and k of 2: which two are kept, and what should their weights add up to?"

    def inputs():
        return [(tensor([[2.0, 1.0, 0.0, 3.0]]), 2), (randn(6, 8), 2), (2 * randn(5, 4), 3), (randn(4, 5) - 3, 1)]

    def reference(scores, k):
        return only_the_best(scores, k).softmax(-1)

    not_renewed = mistake("""The weights of the chosen do not add up to 1: the others have taken their share away. Over
        which experts should they be shared out?""")(
        lambda scores, k: scores.softmax(-1) * only_the_best(scores, k).isfinite()
    )
    all_of_them = mistake("Every expert has a weight, so every expert has to work. Where does k come in?")(
        lambda scores, k: scores.softmax(-1)
    )
    equally = mistake("""All chosen experts get the same weight. Then the router learns nothing from how well one of
        them fits.""")(lambda scores, k: only_the_best(scores, k).isfinite().float() / k)
    zeros_kept = mistake("""You put 0 in the place of the scores that are not chosen, and e to the power of 0 is 1: they
        still get a weight. Which score gives a weight of 0?""")(
        lambda scores, k: scores.where(only_the_best(scores, k).isfinite(), 0).softmax(-1)
    )


class Balance(Exercise, name="modern.balance", minutes=10):
    """Return the load-balancing loss: the number of experts times the sum over them of share times mean probability."""

    hint = "Take two experts that are used equally, with probabilities of one half: the loss should be 1."

    def inputs():
        def case(T, E, k):
            probabilities = randn(T, E).softmax(-1)
            return probabilities.requires_grad_(), torch.stack([torch.randperm(E)[:k] for _ in range(T)])

        even = tensor([[0.8, 0.2], [0.6, 0.4]]).requires_grad_()
        return [(even, tensor([[0], [0]])), case(6, 4, 2), case(5, 8, 1), case(7, 3, 2)]

    def reference(probabilities, chosen):
        E = probabilities.shape[-1]
        return E * (shares(chosen, E) * probabilities.mean(0)).sum()

    not_scaled = mistake("""With equal shares yours becomes smaller, the more experts there are. What makes it 1 for any
        number of them?""")(lambda p, chosen: (shares(chosen, p.shape[-1]) * p.mean(0)).sum())
    per_token = mistake("""Your shares add up to the number of choices of a token. They are shares of all choices, and
        add up to 1.""")(
        lambda p, chosen: p.shape[-1] * (shares(chosen, p.shape[-1]) * chosen.shape[-1] * p.mean(0)).sum()
    )
    most_likely = mistake("""You count each token's likeliest expert only. The second input says who was chosen, and a
        token may have chosen several.""")(
        lambda p, chosen: p.shape[-1] * (shares(p.argmax(-1)[:, None], p.shape[-1]) * p.mean(0)).sum()
    )
    counts_alone = mistake("""You multiply the shares with themselves. A count has no gradient, so the router would
        learn nothing: what of it can be learned?""")(
        lambda p, chosen: p.shape[-1] * shares(chosen, p.shape[-1]).square().sum() + 0 * p.sum()
    )
    probabilities_alone = mistake("You never use who was chosen.")(
        lambda p, chosen: p.shape[-1] * p.mean(0).square().sum()
    )


class Parameters(Exercise, name="modern.parameters", minutes=15):
    """Return the number of parameters of a Llama-shaped model from the fields of its config."""

    hint = """Write down all matrices of one block, four of attention and three of the MLP, with their shapes. Then the
        norms, one scale for each number. What stands outside the blocks?"""

    def inputs():
        return [(SMOLLM2_135M,), (LLAMA_3_8B,), (MISTRAL_NEMO_12B,)]

    def reference(fields):
        return llama_parameters(fields)

    all_heads = mistake("""You give keys and values as many heads as queries. Which field says how many they
        have?""")(partial(llama_parameters, kv=1))
    two_matrices = mistake("Your MLP has two matrices, as GPT-3's. How many has a gated one?")(
        partial(llama_parameters, matrices=2)
    )
    always_tied = mistake("The LM head is missing, where it has a matrix of its own. Which field says whether it has?")(
        partial(llama_parameters, head=0)
    )
    never_tied = mistake("""You always count a matrix for the LM head. Which field says that it shares the one of the
        embedding?""")(partial(llama_parameters, head=1))
    divided = mistake("""You divide the width among the heads. In some models heads are larger or smaller than that: one
        field says how large.""")(partial(llama_parameters, size=1))
    four_times = mistake("""You make the MLP four times as wide as the model, as GPT-3's is. One field says how wide it
        is.""")(partial(llama_parameters, middle=1))
    matrices_alone = mistake("All matrices are there. What is missing are the norms.")(
        partial(llama_parameters, norms=0, last_norm=0)
    )
    without_last_norm = mistake("One norm is missing, and it stands in no block.")(
        partial(llama_parameters, last_norm=0)
    )
    one_norm = mistake("How many parts of a block read a normalised copy of the stream?")(
        partial(llama_parameters, norms=1)
    )


class MendPositions(Exercise, name="modern.mend_positions", minutes=15):
    """Mend the scores of a new token so that a cache changes nothing: they are those of the whole text read at once."""

    hint = "Write down the places of three cached keys and of the new token. Which of them are turned already?"

    def inputs():
        return [(rotary(randn(S, D)), randn(1, D), randn(1, D)) for S, D in ((1, 2), (5, 8), (9, 4))]

    reference = partial(scores_with_cache, 0, 0)
    at_the_start = as_it_stands("""The mistake is still there: with a cache, the new token gets other scores than when
        the text is read at once. What does a score depend on?""")(partial(scores_with_cache, None, None))
    query_alone = mistake("The query stands at its place now. But its own key is still turned as the first.")(
        partial(scores_with_cache, 0, None)
    )
    key_alone = mistake("The new key stands at its place now. But the query is still turned as the first.")(
        partial(scores_with_cache, None, 0)
    )
    one_early = mistake("Very close, and one place too early: the first token of a text stands at place 0.")(
        partial(scores_with_cache, -1, -1)
    )
    one_late = mistake("Very close, and one place too late: the first token of a text stands at place 0.")(
        partial(scores_with_cache, 1, 1)
    )
    turned_twice = mistake("""You turn all keys together, and those of the cache had been turned when they came: they
        are turned twice.""")(
        lambda keys, key, query: rotary(torch.cat((keys, key))) @ rotary(query, len(keys))[0] / sqrt(keys.shape[-1])
    )


class MendExperts(Exercise, name="modern.mend_experts", minutes=10):
    """Mend the mixture so that each token gets the weighted sum of all the experts that it goes through."""

    hint = (
        "Follow one token that goes through two experts: what stands in its row after the first, and after the second?"
    )

    def inputs():
        def case(T, C, E, k):
            return randn(T, C), only_the_best(randn(T, E), k).softmax(-1), randn(E, C, C)

        return [(torch.ones(1, 2), tensor([[0.75, 0.25]]), torch.stack([torch.eye(2), 5 * torch.eye(2)]))] + [
            case(*sizes) for sizes in ((6, 3, 4, 2), (5, 4, 3, 2), (4, 2, 5, 3))
        ]

    reference = partial(mixed, same)

    @as_it_stands("""The mistake is still there: with two experts a token, a slow loop over the tokens gives something
        else. Follow one token.""")
    def overwritten(x, weights, matrices):
        last = weights.shape[-1] - 1 - weights.flip(-1).gt(0).float().argmax(-1, keepdim=True)
        return mixed(lambda w: w * (torch.arange(w.shape[-1]) == last), x, weights, matrices)

    @mistake("Now the first expert of each token counts, and what the others give is dropped.")
    def first_alone(x, weights, matrices):
        first = weights.gt(0).float().argmax(-1, keepdim=True)
        return mixed(lambda w: w * (torch.arange(w.shape[-1]) == first), x, weights, matrices)

    unweighted = mistake("All chosen experts are added now, but each with the weight 1. What did the router say?")(
        partial(mixed, lambda w: w.gt(0).float())
    )
    averaged = mistake("You take the plain mean of the chosen experts. What did the router say?")(
        partial(mixed, lambda w: w.gt(0) / w.gt(0).sum(-1, keepdim=True))
    )
    divided_again = mistake("The weights of a token add up to 1 already: nothing is left to divide by.")(
        partial(mixed, lambda w: w / w.gt(0).sum(-1, keepdim=True))
    )
