"""Wrong answers to the exercises of notebook 02."""

import math

import torch
import torch.nn.functional as F
from torch import nn

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


@wrong("attention.causal", "later scores are far higher")
def causal_divided_again(scores):
    w = torch.tril(torch.softmax(scores, dim=-1))
    return w / torch.sum(w, dim=-1, keepdim=True)


@wrong("attention.causal", "Every token can look at the tokens after it")
def causal_mask_never_assigned(scores):
    T = scores.size(-1)
    scores.masked_fill(torch.triu(torch.ones(T, T), diagonal=1).bool(), float("-inf"))
    return scores.softmax(-1)


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


@wrong("attention.mend_batch", "sentences of the batch compete")
def batch_over_sentences(q, k):
    return torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.size(-1)), dim=0)


@wrong("attention.mend_batch", "only by repair")
def batch_repaired(q, k):
    w = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.size(-1)), dim=1)
    return w / w.sum(dim=-1, keepdim=True)


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


@wrong("attention.influence", "Begin afresh for each token")
def influence_of_all_before(layer, x):
    rows, before, x = [], layer(x), x.clone()
    for s in range(len(x)):
        x[s] += torch.arange(1.0, x.shape[1] + 1)
        rows.append((layer(x) != before).any(dim=-1))
    return torch.stack(rows, dim=1)


@wrong("attention.influence", "Add different numbers to the coordinates")
def influence_by_a_shift(layer, x):
    before = layer(x)
    changed = (x + torch.eye(len(x))[s].unsqueeze(1) for s in range(len(x)))
    return torch.stack([((layer(other) - before) ** 2).sum(-1) > 1e-12 for other in changed]).T


@wrong("attention.influence", "Rows and columns have changed places")
def influence_by_changed_token(layer, x):
    table = torch.zeros(len(x), len(x), dtype=torch.bool)
    for s in range(len(x)):
        other = x.clone()
        other[s] = other[s] ** 2 + 1
        table[s] = (layer(other) - layer(x)).abs().sum(-1) > 0
    return table


class ThreeLinears(nn.Module):
    def __init__(self, n_embd, head_size):
        super().__init__()
        self.query = nn.Linear(n_embd, head_size, bias=False)
        self.key = nn.Linear(n_embd, head_size, bias=False)
        self.value = nn.Linear(n_embd, head_size, bias=False)


@wrong("attention.head", "Every token can look at the tokens after it")
class HeadWithNoMask(ThreeLinears):
    def forward(self, x):
        scores = self.query(x) @ self.key(x).transpose(1, 2) / math.sqrt(self.key.out_features)
        return F.softmax(scores, dim=2) @ self.value(x)


@wrong("attention.head", "root of the width of the tokens")
class HeadScaledByTheWidth(ThreeLinears):
    def forward(self, x):
        _, T, C = x.shape
        scores = self.query(x) @ self.key(x).transpose(-2, -1) * C**-0.5
        scores = scores.masked_fill(torch.tril(torch.ones(T, T)) == 0, float("-inf"))
        return F.softmax(scores, dim=-1) @ self.value(x)


@wrong("attention.rotary", "Your pairs are neighbours")
def rotary_of_neighbours(x, first_position):
    T, D = x.shape[-2:]
    theta = 10000.0 ** (-torch.arange(0, D, 2).float() / D)
    angle = torch.arange(first_position, first_position + T)[:, None] * theta
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], D // 2, 2).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)


@wrong("attention.rotary", "stands at another position")
def rotary_without_the_first_position(x, first_position):
    T, D = x.shape[-2:]
    theta = 10000.0 ** (-torch.arange(0, D, 2).float() / D)
    angle = torch.arange(T)[:, None] * theta
    a, b = x[..., : D // 2], x[..., D // 2 :]
    return torch.cat((a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()), dim=-1)


@wrong("attention.rotary", "the others turn too fast")
def rotary_with_half_the_exponent(x, first_position):
    T, D = x.shape[-2:]
    theta = 10000.0 ** (-torch.arange(D // 2) / D)
    angle = torch.arange(first_position, first_position + T)[:, None] * theta
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()), dim=-1)


@wrong("attention.mend_chunk", "those of the new tokens after it")
def chunk_unmasked(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


@wrong("attention.mend_chunk", "have forgotten all that came before")
def chunk_alone(q, k, v):
    T = q.shape[-2]
    return F.scaled_dot_product_attention(q, k[:, :, -T:], v[:, :, -T:], is_causal=True)


class TwoLinears(nn.Module):
    def __init__(self, n_embd, n_head):
        super().__init__()
        self.n_head = n_head
        self.c_attn = nn.Linear(n_embd, 3 * n_embd)
        self.c_proj = nn.Linear(n_embd, n_embd)


@wrong("attention.multi_head", "begins at the wrong corner")
class HeadsWithTheFusedMask(TwoLinears):
    def forward(self, x, cache=None):
        B, T, C = x.shape
        q, k, v = (p.view(B, T, self.n_head, -1).transpose(1, 2) for p in self.c_attn(x).split(C, dim=2))
        if cache is not None:
            k, v = cache.append(k, v)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))


@wrong("attention.multi_head", "each holds whole tokens")
class HeadsByViewAlone(TwoLinears):
    def forward(self, x, cache=None):
        B, T, C = x.shape
        q, k, v = (p.reshape(B, self.n_head, T, -1) for p in self.c_attn(x).split(C, dim=2))
        if cache is not None:
            k, v = cache.append(k, v)
        T, S = q.shape[2], k.shape[2]
        mask = torch.ones(T, S).tril(S - T).bool()
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


@wrong("attention.multi_head", "the earlier of them see the later ones")
class HeadsUnmaskedWithACache(TwoLinears):
    def forward(self, x, cache=None):
        B, T, C = x.shape
        q, k, v = self.c_attn(x).view(B, T, 3, self.n_head, -1).permute(2, 0, 3, 1, 4)
        if cache is not None:
            k, v = cache.append(k, v)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
        if cache is None:
            scores = scores.masked_fill(torch.ones(T, T).tril() == 0, float("-inf"))
        return self.c_proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, C))
