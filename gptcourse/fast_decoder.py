"""Read one token of one text, fast: the forward pass of `model.py` in NumPy, with all done beforehand that can be.

With a cache, a new token multiplies every matrix with a single vector, and the arithmetic is next to nothing. Time goes
into fetching the matrices from memory, and into starting many small operations. Here both cost less: see
`python -m benchmarks generation`. NumPy starts an operation sooner than torch, and on one thread: several would wait
for one another, and for torch's, longer than they work. The matrices are stored (in, out), as transformers' GPT-2 has
them, so that a product goes through its matrix in the order in which it lies in memory. And what is the same for every
token moves into a copy of the weights:

* LayerNorm's gain and bias, and attention's 1 / √D, become part of the matrix and the bias that follow;
* LayerNorm takes away the mean of the residual stream. Here, what is added to the stream has no mean to begin with; all
  that is left of the norm is to divide by the root mean square (Ashkboos et al., 2024, SliceGPT, arXiv:2401.15024,
  section 3.2).

Shapes: C = n_embd numbers per token, H heads of D numbers, S tokens so far, V = vocab_size.
"""

from __future__ import annotations

import math
import threading

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor, nn

from gptcourse.attention import CausalSelfAttention, KeyValueCache
from gptcourse.model import GPT, MLP, Block, GPTOutput

BLAS = ThreadpoolController().select(user_api="blas")  # NumPy's
ONE_AT_A_TIME = threading.Lock()  # BLAS's number of threads is the process's: a second reader would restore the first's
# What the decoder computes is what these parts compute; a model with any other is left to torch.
PARTS = (
    GPT,
    Block,
    CausalSelfAttention,
    MLP,
    nn.Dropout,
    nn.ModuleList,
    nn.Embedding,
    nn.LayerNorm,
    nn.Linear,
    nn.GELU,
)


def can_decode(model: nn.Module) -> bool:
    """Say whether a Decoder gives this model's logits: a GPT-2-shaped GPT in float32 on a CPU, as it was built.

    A model with LoRA beside its matrices, with hooks, or with a part that somebody put in may compute something else.
    """
    if type(model) is not GPT or not model.config.is_gpt2_shaped:
        return False
    weights = list(model.parameters())
    return (
        all(_is_plain(part) for part in model.modules())
        and sum(weight.numel() for weight in weights) == model.config.num_parameters
        and all(weight.dtype == torch.float32 and weight.device.type == "cpu" for weight in weights)
    )


def _is_plain(part):
    changed = part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part)
    return type(part) in PARTS and not changed and getattr(part, "approximate", "tanh") == "tanh"


class Decoder:
    """A GPT whose single tokens are read by NumPy, from a copy of the weights, and everything else by the model."""

    def __init__(self, model: GPT):
        self.model = model
        self.config, self.device, self.new_cache, self.forward = model.config, model.device, model.new_cache, self
        self.blocks, self.cache, self.arrays = None, None, []

    def __call__(self, ids: Tensor, cache: list[KeyValueCache] | None = None, logits_to_keep: int = 0) -> GPTOutput:
        """Return what the model returns, its logits (B, T, V) and what it adds to the cache."""
        if cache is None or ids.shape != (1, 1) or cache[0].length == self.config.n_positions:
            return self.model(ids, cache=cache, logits_to_keep=logits_to_keep)
        if self.blocks is None:  # only now, as the copy takes a moment
            self._copy_weights()
        if cache is not self.cache:  # as arrays that share its memory, (H, n_positions, D)
            self.cache = cache
            self.arrays = [(layer.keys[0].numpy(), layer.values[0].numpy()) for layer in cache]
        # As in torch, what overflows ends as infinity or 0.
        with ONE_AT_A_TIME, BLAS.limit(limits=1), np.errstate(all="ignore"):
            logits = self._read(int(ids), cache[0].length)
        for layer in cache:
            layer.length += 1
        return GPTOutput(torch.from_numpy(logits)[None, None])

    @torch.no_grad()
    def _copy_weights(self):
        self.tokens, self.positions = self.model.wte.weight.numpy(), self.model.wpe.weight.numpy()  # (V, C), (.., C)
        self.blocks = [_Block(block) for block in self.model.h]
        self.lm_head = _after_norm(self.model.ln_f, self.model.lm_head)

    def _read(self, token, position):
        """Return the logits (V,) after one more token."""
        x = self.tokens[token] + self.positions[position]  # (C,)
        x -= x.mean()
        for block, (keys, values) in zip(self.blocks, self.arrays, strict=True):
            block(x, keys, values, position)
        return self.lm_head(x)


class _Block:
    def __init__(self, block):
        self.heads = (3, block.attn.n_head, block.attn.head_size)
        self.c_attn = _after_norm(block.ln_1, block.attn.c_attn)
        for part in (self.c_attn.weight, self.c_attn.bias):  # the first third makes the queries
            part[..., : len(self.c_attn.weight)] /= math.sqrt(block.attn.head_size)
        self.attn_proj = _into_stream(block.attn.c_proj)
        self.c_fc = _after_norm(block.ln_2, block.mlp.c_fc)
        self.mlp_proj = _into_stream(block.mlp.c_proj)

    def __call__(self, x, keys, values, position):
        """Add to the residual stream x (C,), in place, what the block adds to it."""
        q, keys[:, position], values[:, position] = self.c_attn(x).reshape(self.heads)  # each (H, D)
        seen = slice(position + 1)
        scores = keys[:, seen] @ q[:, :, None]  # (H, S, 1)
        scores -= scores.max(1, keepdims=True)
        weights = np.exp(scores, out=scores)
        output = weights.transpose(0, 2, 1) @ values[:, seen]  # (H, 1, D)
        output /= weights.sum(1, keepdims=True)
        x += self.attn_proj(output.reshape(-1))
        x += self.mlp_proj(_gelu(self.c_fc(x)))


class _Linear:
    """y = x W + b, for a vector; with an eps, for x divided by its root mean square."""

    def __init__(self, weight: Tensor, bias: Tensor, eps: float | None = None):
        self.weight, self.bias, self.eps = weight.numpy(), bias.numpy(), eps

    def __call__(self, x):
        if self.eps is not None:
            x = x * (1 / math.sqrt(x.dot(x) / x.size + self.eps))
        y = x.dot(self.weight)  # starts sooner than @
        y += self.bias
        return y


def _after_norm(norm, linear):
    """Return LayerNorm and the linear map after it as one, for a stream whose mean is zero."""
    weight = linear.weight.t().contiguous()  # (in, out)
    bias = norm.bias @ weight
    if linear.bias is not None:
        bias += linear.bias
    return _Linear(weight.mul_(norm.weight[:, None]), bias, norm.eps)


def _into_stream(linear):
    """Return a linear map, less the mean of what it puts out."""
    weight = linear.weight.t().contiguous()  # (in, out)
    return _Linear(weight.sub_(weight.mean(1, keepdim=True)), linear.bias - linear.bias.mean())


def _gelu(x):
    """The approximation with tanh, by way of exp: 1 + tanh(z) = 2 / (1 + exp(-2 z))."""
    y = x * x
    y *= -2 * math.sqrt(2 / math.pi) * 0.044715
    y -= 2 * math.sqrt(2 / math.pi)
    y *= x
    np.exp(y, out=y)
    y += 1
    return np.divide(x, y, out=y)
