"""Wrong answers to the exercises of notebook 12."""

import math

import torch
import torch.nn.functional as F

from gptcourse.attention import rotary
from wrong_answers import wrong


@wrong("modern.rms_norm", "that is layer norm")
def norm_of_the_centred(x, weight, eps):
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + eps) * weight


@wrong("modern.rms_norm", "The root is of the mean of the squares")
def unit_length(x, weight, eps):
    return weight * x / torch.sqrt(torch.linalg.vector_norm(x, dim=-1, keepdim=True) ** 2 + eps)


@wrong("modern.rms_norm", "inside the root or outside")
def eps_after_the_root(x, weight, eps):
    return weight * x / (torch.sqrt(torch.mean(x * x, -1, keepdim=True)) + eps)


@wrong("modern.swiglu", "The two are exchanged")
def gate_and_up_exchanged(x, gate, up, down):
    hidden = (x @ gate.T) * F.silu(x @ up.T)
    return hidden @ down.T


@wrong("modern.swiglu", "SiLU is x times its sigmoid")
def glu(x, gate, up, down):
    return (torch.sigmoid(x @ gate.T) * (x @ up.T)) @ down.T


@wrong("modern.share_keys", "the order is not")
def tiled(k, n_heads):
    return torch.cat([k] * (n_heads // k.size(1)), dim=1)


@wrong("modern.share_keys", "All your query heads share the first head of keys")
def multi_query(k, n_heads):
    return torch.stack([k[:, 0]] * n_heads, dim=1)


@wrong("modern.route", "do not add up to 1")
def top_probabilities(scores, k):
    p = torch.softmax(scores, -1)
    best, place = p.topk(k, -1)
    return torch.zeros_like(p).scatter(-1, place, best)


@wrong("modern.route", "All chosen experts get the same weight")
def votes(scores, k):
    place = scores.topk(k, -1).indices
    return torch.zeros_like(scores).scatter(-1, place, 1 / k)


@wrong("modern.route", "e to the power of 0 is 1")
def times_a_mask(scores, k):
    mask = torch.zeros_like(scores).scatter(-1, scores.topk(k, -1).indices, 1.0)
    return torch.softmax(scores * mask, -1)


@wrong("modern.balance", "With equal shares yours becomes smaller")
def product_of_shares(probabilities, chosen):
    counts = torch.bincount(chosen.flatten(), minlength=probabilities.shape[1])
    return (counts / counts.sum() * probabilities.mean(0)).sum()


@wrong("modern.balance", "They are shares of all choices")
def choices_of_each_token(probabilities, chosen):
    counts = torch.bincount(chosen.flatten(), minlength=probabilities.shape[1])
    return probabilities.shape[1] * (counts / len(chosen) * probabilities.mean(0)).sum()


@wrong("modern.parameters", "Your MLP has two matrices")
def plain_mlp(fields):
    C, head = fields["hidden_size"], fields["head_dim"]
    attention = 2 * C * head * (fields["num_attention_heads"] + fields["num_key_value_heads"])
    block = attention + 2 * C * fields["intermediate_size"] + 2 * C
    tables = 1 if fields["tie_word_embeddings"] else 2
    return tables * fields["vocab_size"] * C + fields["num_hidden_layers"] * block + C


@wrong("modern.parameters", "You divide the width among the heads")
def head_size_from_the_width(fields):
    C = fields["hidden_size"]
    kv = C * fields["num_key_value_heads"] // fields["num_attention_heads"]
    block = 2 * C * C + 2 * C * kv + 3 * C * fields["intermediate_size"] + 2 * C
    tables = 1 if fields["tie_word_embeddings"] else 2
    return tables * fields["vocab_size"] * C + fields["num_hidden_layers"] * block + C


@wrong("modern.mend_positions", "they are turned twice")
def all_turned_anew(keys, key, query):
    everything = rotary(torch.cat([keys, key]))
    q = rotary(query, first_position=len(keys))
    return (q @ everything.T)[0] / math.sqrt(keys.size(1))


@wrong("modern.mend_positions", "one place too early")
def last_place_of_the_cache(keys, key, query):
    place = len(keys) - 1
    q, k = rotary(query, place), rotary(key, place)
    return (q @ torch.cat([keys, k]).T).flatten() / math.sqrt(keys.size(1))


@wrong("modern.mend_experts", "each with the weight 1")
def chosen_added_up(x, weights, matrices):
    output = torch.zeros_like(x)
    for e, matrix in enumerate(matrices):
        rows = weights[:, e].nonzero()[:, 0]
        output[rows] += x[rows] @ matrix
    return output


@wrong("modern.mend_experts", "nothing is left to divide by")
def weighted_mean(x, weights, matrices):
    output = torch.zeros_like(x)
    for e, matrix in enumerate(matrices):
        rows = weights[:, e].nonzero()[:, 0]
        output[rows] += weights[rows, e, None] * (x[rows] @ matrix)
    return output / (weights > 0).sum(-1, keepdim=True)
