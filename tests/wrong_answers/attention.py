"""Wrong answers to the exercises of notebook 01."""

import math

import torch
import torch.nn.functional as F

from wrong_answers import wrong


@wrong("attention.scores", "spread grows with the head size")
def scores_without_scale(q, k):
    return torch.matmul(q, k.transpose(-1, -2))


@wrong("attention.scores", "You divide by too much")
def scores_divided_by_size(q, k):
    d_k = k.size(-1)
    return q @ k.transpose(-2, -1) / d_k


@wrong("attention.scores", "the two matrices do not fit")
def scores_key_not_turned(q, k):
    return q @ k / math.sqrt(k.size(-1))


@wrong("attention.scores", "the two matrices do not fit")
def scores_all_dimensions_turned(q, k):
    return (q @ k.permute(*reversed(range(k.ndim)))) / math.sqrt(q.shape[-1])


@wrong("attention.scores", "right for a single sentence only")
def scores_scaled_by_dimension_one(q, k):
    return torch.matmul(q, k.transpose(-2, -1)) * q.shape[1] ** -0.5


@wrong("attention.scores", "wider still")
def scores_multiplied(q, k):
    return q @ k.transpose(-2, -1) * (q.shape[-1] ** 0.5)


@wrong("attention.scores", "weights already")
def scores_with_softmax(q, k):
    return F.softmax(q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5, dim=-1)


@wrong("attention.weights", "along the wrong direction")
def weights_over_dimension_zero(scores):
    return torch.exp(scores - scores.max(0, keepdim=True).values) / torch.exp(
        scores - scores.max(0, keepdim=True).values
    ).sum(0, keepdim=True)


@wrong("attention.weights", "along the wrong direction")
def weights_over_queries(scores):
    return scores.transpose(-1, -2).softmax(dim=-1).transpose(-1, -2)


@wrong("attention.weights", "along the wrong direction")
def weights_over_dimension_one(scores):
    return F.softmax(scores, dim=1)


@wrong("attention.weights", "exponential of 1,000 is infinite")
def weights_that_overflow(scores):
    e = torch.exp(scores)
    return e / torch.sum(e, dim=-1, keepdim=True)


@wrong("attention.weights", "a number of its own")
def weights_minus_the_largest_of_all(scores):
    e = (scores - scores.max()).exp()
    return e / e.sum(dim=-1, keepdim=True)


@wrong("attention.weights", "a sum over the keys loses a dimension")
def weights_without_keepdim(scores):
    e = torch.exp(scores - torch.max(scores, dim=-1, keepdim=True)[0])
    return e / e.sum(-1)


@wrong("attention.weights", "shares of their sum may be negative")
def weights_as_shares(scores):
    return scores / scores.sum(dim=-1, keepdim=True)


@wrong("attention.weights", "one unit of its own")
def weights_over_everything(scores):
    e = torch.exp(scores - scores.max())
    return e / e.sum()


@wrong("attention.causal", "Among whom was it shared out")
def causal_mask_after_softmax(scores):
    return torch.tril(torch.softmax(scores, dim=-1))


@wrong("attention.causal", "still gets weight")
def causal_zero_scores(scores):
    return torch.softmax(torch.tril(scores), dim=-1)


@wrong("attention.causal", "nobody at all to look at")
def causal_without_itself(scores):
    mask = torch.triu(torch.ones_like(scores), diagonal=0).bool()
    return scores.masked_fill(mask, float("-inf")).softmax(-1)


@wrong("attention.causal", "wrong way round")
def causal_past_hidden(scores):
    mask = torch.tril(torch.ones_like(scores), diagonal=-1).bool()
    return scores.masked_fill(mask, float("-inf")).softmax(-1)


@wrong("attention.causal", "a score may be lower still")
def causal_number_too_small(scores):
    T = scores.size(-1)
    mask = torch.tril(torch.ones(T, T))
    return torch.where(mask == 1, scores, torch.tensor(-1e4)).softmax(-1)


@wrong("attention.causal", "Does True mean hide or show")
def causal_mask_the_other_meaning(scores):
    T = scores.size(-1)
    return scores.masked_fill(torch.tril(torch.ones(T, T)) == 1, float("-inf")).softmax(-1)


@wrong("attention.causal", "Every token can look at the tokens after it")
def causal_mask_never_assigned(scores):
    T = scores.size(-1)
    scores.masked_fill(torch.triu(torch.ones(T, T), diagonal=1).bool(), float("-inf"))
    return scores.softmax(-1)


@wrong("attention.causal", "changes its input scores in place")
def causal_in_place(scores):
    T = scores.size(-1)
    return scores.masked_fill_(torch.triu(torch.ones(T, T), diagonal=1).bool(), float("-inf")).softmax(-1)


@wrong("attention.output", "Every token can look at the tokens after it")
def output_without_mask(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


@wrong("attention.output", "spread grows with the head size")
def output_without_scale(q, k, v):
    T = q.size(-2)
    mask = torch.tril(torch.ones(T, T)) == 0
    return (q @ k.transpose(-2, -1)).masked_fill(mask, float("-inf")).softmax(-1) @ v


@wrong("attention.output", "Among whom was it shared out")
def output_mask_after_softmax(q, k, v):
    w = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.size(-1)), dim=-1)
    return torch.tril(w) @ v


def causal_weights(q, k):
    T = q.size(-2)
    scores = q @ k.transpose(-2, -1) / q.size(-1) ** 0.5
    return scores.masked_fill(torch.triu(torch.ones(T, T), 1) == 1, float("-inf")).softmax(-1)


@wrong("attention.output", "These are the weights")
def output_weights_only(q, k, v):
    return causal_weights(q, k)


@wrong("attention.output", "You mix the keys")
def output_of_keys(q, k, v):
    return causal_weights(q, k) @ k


@wrong("attention.output", "The weights are turned")
def output_weights_turned(q, k, v):
    return causal_weights(q, k).transpose(-2, -1) @ v


@wrong("attention.positions", "believes that it stands at position 0")
def positions_without_start(x, table, start):
    return x + table[: x.size(1)]


@wrong("attention.positions", "Every token gets the same row")
def positions_all_the_same(x, table, start):
    return x + table[start]


@wrong("attention.positions", "Which rows are theirs")
def positions_whole_table(x, table, start):
    return x + table.unsqueeze(0)


@wrong("attention.positions", "yours are one too high")
def positions_from_one(x, table, start):
    return x + table[start + 1 : start + 1 + x.size(1)]


@wrong("attention.positions", "changes its input x in place")
def positions_in_place(x, table, start):
    x += table[start : start + x.size(1)]
    return x


@wrong("attention.positions", "You multiply")
def positions_multiplied(x, table, start):
    return x * table[start : start + x.size(1)]


@wrong("attention.heads", "your first head holds whole tokens")
def heads_by_view_alone(x, n_head):
    B, T, C = x.shape
    return x.view(B, n_head, T, C // n_head)


@wrong("attention.heads", "two dimensions should change places")
def heads_not_brought_forward(x, n_head):
    B, T, C = x.shape
    return x.view(B, T, n_head, C // n_head)


@wrong("attention.heads", "Your heads take turns")
def heads_interleaved(x, n_head):
    B, T, C = x.shape
    return x.view(B, T, C // n_head, n_head).permute(0, 3, 1, 2)


@wrong("attention.heads", "it should be n_head pieces")
def heads_of_the_wrong_size(x, n_head):
    return torch.stack(torch.split(x, n_head, dim=-1), dim=1)


@wrong("attention.heads", "but loose")
def heads_as_a_list(x, n_head):
    return list(torch.chunk(x, n_head, dim=-1))


@wrong("attention.heads", "have changed places")
def heads_with_time_last(x, n_head):
    B, T, C = x.shape
    return x.view(B, T, n_head, C // n_head).permute(0, 2, 3, 1)


@wrong("attention.merge", "different tokens end up in one vector")
def merge_by_reshape_alone(x):
    B, H, T, D = x.shape
    return x.reshape(B, T, H * D)


@wrong("attention.merge", "insists on that")
def merge_by_view(x):
    B, H, T, D = x.shape
    return x.transpose(1, 2).view(B, T, H * D)


@wrong("attention.merge", "What is left is to make one vector")
def merge_unfinished(x):
    return x.permute(0, 2, 1, 3)


@wrong("attention.merge", "You blend the heads")
def merge_by_mean(x):
    return torch.mean(x, dim=1)


@wrong("attention.merge", "numbers alternate")
def merge_interleaved(x):
    B, H, T, D = x.shape
    return torch.stack([x[:, h] for h in range(H)], dim=-1).reshape(B, T, D * H)


def attend(q, keys, values):
    return torch.softmax(q @ keys.transpose(-2, -1) / math.sqrt(q.size(-1)), dim=-1) @ values


@wrong("attention.cache", "looks at the past only")
def cache_without_the_new_token(q, k, v, past_keys, past_values):
    out = attend(q, past_keys, past_values)
    return out, torch.cat((past_keys, k), dim=2), torch.cat((past_values, v), dim=2)


@wrong("attention.cache", "sees nobody but itself")
def cache_never_read(q, k, v, past_keys, past_values):
    return attend(q, k, v), torch.cat((past_keys, k), dim=2), torch.cat((past_values, v), dim=2)


@wrong("attention.cache", "only the very first key")
def cache_with_square_mask(q, k, v, past_keys, past_values):
    keys, values = torch.cat((past_keys, k), dim=2), torch.cat((past_values, v), dim=2)
    return F.scaled_dot_product_attention(q, keys, values, is_causal=True), keys, values


@wrong("attention.cache", "in front of the old ones")
def cache_new_token_first(q, k, v, past_keys, past_values):
    keys, values = torch.cat((k, past_keys), dim=2), torch.cat((v, past_values), dim=2)
    return attend(q, keys, values), keys, values


@wrong("attention.cache", "along the wrong dimension")
def cache_joined_along_heads(q, k, v, past_keys, past_values):
    keys, values = torch.cat((past_keys, k), dim=1), torch.cat((past_values, v), dim=1)
    return attend(q, keys, values), keys, values


@wrong("attention.cache", "you hand back the old memory")
def cache_not_handed_on(q, k, v, past_keys, past_values):
    out = attend(q, torch.cat((past_keys, k), dim=2), torch.cat((past_values, v), dim=2))
    return out, past_keys, past_values


@wrong("attention.cache", "return them as well")
def cache_output_alone(q, k, v, past_keys, past_values):
    return attend(q, torch.cat((past_keys, k), dim=2), torch.cat((past_values, v), dim=2))


@wrong("attention.cache", "spread grows with the head size")
def cache_without_scale(q, k, v, past_keys, past_values):
    keys, values = torch.cat((past_keys, k), dim=2), torch.cat((past_values, v), dim=2)
    return F.softmax(q @ keys.transpose(2, 3), dim=-1) @ values, keys, values


@wrong("attention.mend_focus", "so narrow a range")
def focus_as_it_stands(q, k):
    return torch.softmax(torch.tanh(q @ k.transpose(-2, -1)), dim=-1)


@wrong("attention.mend_focus", "so narrow a range")
def focus_scaled_and_squeezed(q, k):
    return torch.softmax(torch.tanh(q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))), dim=-1)


@wrong("attention.mend_focus", "spread grows with the head size")
def focus_with_nothing_in_place(q, k):
    return torch.softmax(q @ k.transpose(-2, -1), dim=-1)


@wrong("attention.mend_focus", "You divide by too much")
def focus_divided_by_size(q, k):
    return torch.softmax(q @ k.transpose(-2, -1) / q.size(-1), dim=-1)


@wrong("attention.mend_batch", "The mistake is still there")
def batch_as_it_stands(q, k):
    return torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.size(-1)), dim=-2)


@wrong("attention.mend_batch", "sentences of the batch compete")
def batch_over_sentences(q, k):
    return torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.size(-1)), dim=0)


@wrong("attention.mend_batch", "only by repair")
def batch_repaired(q, k):
    w = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.size(-1)), dim=1)
    return w / w.sum(dim=-1, keepdim=True)


@wrong("attention.mend_rows", "The mistake is still there")
def rows_as_they_stand(scores):
    return scores.softmax(-1) * torch.tril(torch.ones_like(scores))


@wrong("attention.mend_rows", "still gets weight")
def rows_with_zero_scores(scores):
    return (scores * torch.tril(torch.ones_like(scores))).softmax(-1)


@wrong("attention.mend_rows", "one step too late")
def rows_filled_after_softmax(scores):
    w = scores.softmax(-1)
    return w.masked_fill(torch.triu(torch.ones_like(w), 1).bool(), float("-inf"))


@wrong("attention.mend_rows", "Does True mean hide or show")
def rows_with_mask_turned(scores):
    may_look = torch.ones_like(scores).tril().bool()
    return scores.masked_fill(may_look, float("-inf")).softmax(-1)


@wrong("attention.mend_rows", "Two sharings in a row")
def rows_shared_out_twice(scores):
    return torch.tril(scores.softmax(-1)).softmax(-1)


@wrong("attention.mend_leak", "The mistake is still there")
def leak_as_it_stands(q, k, v, n_head):
    B, T, C = q.shape
    q, k, v = (x.view(B, n_head, T, C // n_head) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, C)


@wrong("attention.mend_leak", "in different stretches never meet")
def leak_moved_to_the_way_back(q, k, v, n_head):
    B, T, C = q.shape
    q, k, v = (x.view(B, n_head, T, C // n_head) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).reshape(B, T, C)


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


@wrong("attention.mend_leak", "Every token can look at the tokens after it")
def leak_without_mask(q, k, v, n_head):
    B, T, C = q.shape
    q, k, v = (x.view(B, T, n_head, C // n_head).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, T, C)
