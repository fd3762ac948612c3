"""Attention: how one token looks at the tokens before it.

Sources: Vaswani et al. (2017), "Attention Is All You Need", sections 3.2.1 to 3.2.3; Radford et al. (2019),
GPT-2; Brown et al. (2020), GPT-3, section 2.1 (the banded pattern); Su et al. (2021), RoFormer, section 3.2
(rotary positions).

Shapes: B sequences in a batch, H heads, T queries, S keys, D numbers per head, C = H * D numbers per token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptcourse.config import GPTConfig


def causal_mask(
    n_queries: int, n_keys: int | None = None, window: int | None = None, device: torch.device | None = None
) -> Tensor:
    """Return the (n_queries, n_keys) table of who may look at whom: True means "may look".

    A token sees itself and everything before it (Vaswani et al., 2017, section 3.2.3). With more keys than
    queries the queries are the *last* tokens, as they are when a cache holds the earlier ones. `window` keeps only
    the `window` most recent keys: the banded pattern of GPT-3 (Brown et al., 2020, section 2.1).

    Raises ValueError if there are fewer keys than queries, or if `window` is less than 1.
    """
    n_keys = n_queries if n_keys is None else n_keys
    if n_keys < n_queries:
        raise ValueError(f"{n_queries} queries need at least {n_queries} keys, but n_keys is {n_keys}.")
    if window is not None and window < 1:
        raise ValueError(f"window is {window}, but a token must at least see itself: use 1 or more.")
    query_position = torch.arange(n_keys - n_queries, n_keys, device=device)[:, None]  # (T, 1)
    key_position = torch.arange(n_keys, device=device)[None, :]  # (1, S)
    mask = key_position <= query_position  # (T, S)
    if window is not None:
        mask = mask & (key_position > query_position - window)
    return mask


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mix the values `v` by how well the queries `q` match the keys `k`: softmax(q kᵀ / √D) v.

    Vaswani et al. (2017), equation 1. Training uses torch's fused kernel, which gives the same numbers.

    Args:
        q: (..., T, D). k: (..., S, D). v: (..., S, Dv).
        mask: boolean, broadcastable to (..., T, S); True means "may look". Every query needs at least one True.

    Returns the output (..., T, Dv) and the weights (..., T, S), each row of which sums to one. Raises ValueError if
    shapes do not fit or the mask is not boolean.
    """
    if q.shape[-1] != k.shape[-1]:
        raise ValueError(f"A query has {q.shape[-1]} numbers and a key {k.shape[-1]}: they must be equal.")
    if k.shape[-2] != v.shape[-2]:
        raise ValueError(f"There are {k.shape[-2]} keys and {v.shape[-2]} values: each key needs its value.")
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (..., T, S)
    if mask is not None:
        if mask.dtype != torch.bool:
            raise ValueError(f"The mask must be boolean (True: may look), not {mask.dtype}: see causal_mask.")
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(dim=-1)  # (..., T, S)
    return weights @ v, weights


class KeyValueCache:
    """Keys and values of the tokens seen so far in one layer, so that they are computed once.

    The memory, (B, H, n_positions, D) for each, is set aside at the start and filled from the left. Whoever generates
    owns the cache and passes it to the model: the model itself remembers nothing.
    """

    def __init__(
        self,
        batch_size: int,
        n_head: int,
        n_positions: int,
        head_size: int,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ):
        self.keys = torch.zeros(batch_size, n_head, n_positions, head_size, device=device, dtype=dtype)
        self.values = torch.zeros_like(self.keys)
        self.length = 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values (B, H, T, D) of T new tokens; return those of all tokens so far, (B, H, S, D).

        Raises ValueError when the new tokens do not fit, or are of another number of texts.
        """
        end = self.length + k.shape[-2]
        if end > self.keys.shape[-2]:
            raise ValueError(
                f"The cache has room for {self.keys.shape[-2]} tokens, not {end}: start a new one with fewer tokens."
            )
        if len(k) != len(self.keys):  # else one text would be copied for all
            raise ValueError(f"The cache is for {len(self.keys)} texts, not {len(k)}: start a new one for them.")
        self.keys.narrow(2, self.length, k.shape[-2]).copy_(k)  # narrow takes less time than a slice
        self.values.narrow(2, self.length, k.shape[-2]).copy_(v)
        self.length = end
        return self.keys.narrow(2, 0, end), self.values.narrow(2, 0, end)

    def repeated(self, batch_size: int) -> KeyValueCache:
        """Return a cache in which each of `batch_size` sequences has seen what the one of this cache has."""
        _, n_head, n_positions, head_size = self.keys.shape
        new = KeyValueCache(batch_size, n_head, n_positions, head_size, self.keys.device, self.keys.dtype)
        new.append(*(part[:, :, : self.length].expand(batch_size, -1, -1, -1) for part in (self.keys, self.values)))
        return new


def rotary(x: Tensor, first_position: int = 0, base: float = 10_000.0, factor: float = 1.0) -> Tensor:
    """Turn the pairs of numbers in each query or key by angles that grow with its position.

    RoFormer (Su et al., 2021), section 3.2.2, with number i paired with number i + D/2, as in GPT-NeoX and in
    transformers' Llama; the paper pairs neighbours. The product of a turned query and a turned key depends only on how
    far apart the two tokens stand.

    Args:
        x: (..., T, D) with D even; the first of the T tokens stands at `first_position`.
        factor: divides all positions: a window that is so many times as long then has no new angles (Chen et al.,
            2023, arXiv:2306.15595, section 2.3).
    """
    n_tokens, size = x.shape[-2:]
    frequency = base ** (-torch.arange(0, size, 2, device=x.device) / size)  # (D/2,), radians per position
    position = torch.arange(first_position, first_position + n_tokens, device=x.device)
    angle = position[:, None] / factor * frequency  # (T, D/2)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which every token looks at itself and at earlier tokens.

    Vaswani et al. (2017), section 3.2.2. The module's parameters have the names that transformers' GPT-2 uses.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.n_head = config.n_head
        self.head_size = config.head_size
        self.rotary = config.position_embedding == "rotary"
        self.qk_norm = config.qk_norm
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)  # queries, keys and values in one product
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.attn_dropout, self.resid_dropout = nn.Dropout(config.dropout), nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, cache: KeyValueCache | None = None, output_attentions: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Return the output (B, T, C) and, when asked, the weights (B, H, T, S), else None.

        Args:
            x: (B, T, C).
            cache: keys and values of the tokens before x; those of x are added to it.
        """
        seen = cache.length if cache is not None else 0
        q, k, v = self._queries_keys_values(x, seen)
        if cache is not None:
            k, v = cache.append(k, v)  # (B, H, S, D)
        # One new query may look at everything; several new ones after cached ones need their own mask.
        mask = causal_mask(q.shape[-2], k.shape[-2], device=x.device) if seen and q.shape[-2] > 1 else None
        p = self.attn_dropout.p if self.training else 0.0
        output = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=p, is_causal=not seen)  # (B, H, T, D)
        output = self.c_proj(output.transpose(1, 2).flatten(2))  # (B, T, C): the heads side by side
        return self.resid_dropout(output), self._weights(q, k) if output_attentions else None

    def _queries_keys_values(self, x: Tensor, first_position: int) -> tuple[Tensor, Tensor, Tensor]:
        parts = self.c_attn(x).split(x.shape[-1], dim=-1)  # three times (B, T, C)
        q, k, v = (part.unflatten(-1, (self.n_head, self.head_size)).transpose(1, 2) for part in parts)  # (B, H, T, D)
        if self.rotary:
            q, k = rotary(q, first_position), rotary(k, first_position)
        if self.qk_norm:
            # Bounded scores keep the softmax from saturating (Henry et al., 2020), also when the learning rate is high
            # (Wortsman et al., 2023).
            q, k = F.rms_norm(q, (self.head_size,)), F.rms_norm(k, (self.head_size,))
        return q, k, v

    @staticmethod
    def _weights(q: Tensor, k: Tensor) -> Tensor:
        """Return the weights (B, H, T, S), without dropout: the fused kernel never makes them."""
        mask = causal_mask(q.shape[-2], k.shape[-2], device=q.device)
        return attention(q, k, k, mask)[1]
