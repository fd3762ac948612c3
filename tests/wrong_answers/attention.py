"""Wrong answers to the exercises of notebook 01."""

import math

import torch
import torch.nn.functional as F

from wrong_answers import wrong


@wrong("attention.scores", "You divide by too much")
def scores_divided_by_size(q, k):
    d_k = k.size(-1)
    return q @ k.transpose(-2, -1) / d_k


@wrong("attention.scores", "right for a single sentence only")
def scores_scaled_by_dimension_one(q, k):
    return torch.matmul(q, k.transpose(-2, -1)) * q.shape[1] ** -0.5


@wrong("attention.weights", "along the wrong direction")
def weights_over_dimension_zero(scores):
    return torch.exp(scores - scores.max(0, keepdim=True).values) / torch.exp(
        scores - scores.max(0, keepdim=True).values
    ).sum(0, keepdim=True)


@wrong("attention.weights", "a sum over the keys loses a dimension")
def weights_without_keepdim(scores):
    e = torch.exp(scores - torch.max(scores, dim=-1, keepdim=True)[0])
    return e / e.sum(-1)


@wrong("attention.causal", "a score may be lower still")
def causal_number_too_small(scores):
    T = scores.size(-1)
    mask = torch.tril(torch.ones(T, T))
    return torch.where(mask == 1, scores, torch.tensor(-1e4)).softmax(-1)


@wrong("attention.causal", "Every token can look at the tokens after it")
def causal_mask_never_assigned(scores):
    T = scores.size(-1)
    scores.masked_fill(torch.triu(torch.ones(T, T), diagonal=1).bool(), float("-inf"))
    return scores.softmax(-1)


@wrong("attention.output", "spread grows with the head size")
def output_without_scale(q, k, v):
    T = q.size(-2)
    mask = torch.tril(torch.ones(T, T)) == 0
    return (q @ k.transpose(-2, -1)).masked_fill(mask, float("-inf")).softmax(-1) @ v


@wrong("attention.output", "Among whom was it shared out")
def output_mask_after_softmax(q, k, v):
    w = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.size(-1)), dim=-1)
    return torch.tril(w) @ v


@wrong("attention.positions", "Which rows are theirs")
def positions_whole_table(x, table, start):
    return x + table.unsqueeze(0)


@wrong("attention.positions", "changes its input x in place")
def positions_in_place(x, table, start):
    x += table[start : start + x.size(1)]
    return x


@wrong("attention.heads", "your first head holds whole tokens")
def heads_by_view_alone(x, n_head):
    B, T, C = x.shape
    return x.view(B, n_head, T, C // n_head)


@wrong("attention.heads", "two dimensions should change places")
def heads_not_brought_forward(x, n_head):
    B, T, C = x.shape
    return x.view(B, T, n_head, C // n_head)


@wrong("attention.merge", "different tokens end up in one vector")
def merge_by_reshape_alone(x):
    B, H, T, D = x.shape
    return x.reshape(B, T, H * D)


@wrong("attention.merge", "numbers alternate")
def merge_interleaved(x):
    B, H, T, D = x.shape
    return torch.stack([x[:, h] for h in range(H)], dim=-1).reshape(B, T, D * H)


@wrong("attention.cache", "only the very first key")
def cache_with_square_mask(q, k, v, past_keys, past_values):
    keys, values = torch.cat((past_keys, k), dim=2), torch.cat((past_values, v), dim=2)
    return F.scaled_dot_product_attention(q, keys, values, is_causal=True), keys, values


@wrong("attention.cache", "spread grows with the head size")
def cache_without_scale(q, k, v, past_keys, past_values):
    keys, values = torch.cat((past_keys, k), dim=2), torch.cat((past_values, v), dim=2)
    return F.softmax(q @ keys.transpose(2, 3), dim=-1) @ values, keys, values


@wrong("attention.mend_focus", "so narrow a range")
def focus_scaled_and_squeezed(q, k):
    return torch.softmax(torch.tanh(q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))), dim=-1)


@wrong("attention.mend_focus", "You divide by too much")
def focus_divided_by_size(q, k):
    return torch.softmax(q @ k.transpose(-2, -1) / q.size(-1), dim=-1)


@wrong("attention.mend_batch", "sentences of the batch compete")
def batch_over_sentences(q, k):
    return torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.size(-1)), dim=0)


@wrong("attention.mend_batch", "only by repair")
def batch_repaired(q, k):
    w = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.size(-1)), dim=1)
    return w / w.sum(dim=-1, keepdim=True)


@wrong("attention.mend_rows", "one step too late")
def rows_filled_after_softmax(scores):
    w = scores.softmax(-1)
    return w.masked_fill(torch.triu(torch.ones_like(w), 1).bool(), float("-inf"))


@wrong("attention.mend_rows", "Does True mean hide or show")
def rows_with_mask_turned(scores):
    may_look = torch.ones_like(scores).tril().bool()
    return scores.masked_fill(may_look, float("-inf")).softmax(-1)


@wrong("attention.mend_leak", "joined in the order of memory")
def leak_on_the_way_back(q, k, v, n_head):
    B, T, C = q.shape
    q, k, v = (x.view(B, T, n_head, C // n_head).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).contiguous().view(B, T, C)


@wrong("attention.mend_leak", "runs over the heads of one token")
def leak_with_time_in_front(q, k, v, n_head):
    B, T, C = q.shape
    q, k, v = (x.view(B, T, n_head, C // n_head) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).reshape(B, T, C)
