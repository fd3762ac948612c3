"""Read one token of one text, fast: the forward pass of `model.py` without its modules. Optional to read.

With a cache, a new token multiplies every matrix with a single vector. Time goes into fetching the matrices from
memory, and into starting many small operations. `model.py` starts far more of them than the arithmetic needs: a module
is called for each part, every vector is treated as a batch of sequences, dropout is asked for and does nothing. Here
the same functions of torch are called directly, on vectors; the weights are the model's own, not copies. What that
gains is printed by `python -m benchmarks generation`.

Shapes: C = n_embd numbers per token, H heads of D numbers, S tokens so far, V = vocab_size.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptcourse.attention import CausalSelfAttention, KeyValueCache
from gptcourse.model import GPT, MLP, Block, GPTOutput

# What the decoder computes is what these parts compute; a model with any other is read by its own forward pass.
PARTS = {
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
}


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
    """A GPT whose single tokens are read without its modules, and everything else by the model itself."""

    def __init__(self, model: GPT):
        self.model = model
        self.config, self.device, self.new_cache, self.forward = model.config, model.device, model.new_cache, self
        self.tokens, self.positions = model.wte.weight, model.wpe.weight  # (V, C), (n_positions, C)
        self.blocks = [(_attention(block.ln_1, block.attn), _mlp(block.ln_2, block.mlp)) for block in model.h]
        self.ln_f, self.lm_head = _norm(model.ln_f), partial(torch.mv, model.lm_head.weight)

    def __call__(self, ids: Tensor, cache: list[KeyValueCache] | None = None, logits_to_keep: int = 0) -> GPTOutput:
        """Return what the model returns, its logits (B, T, V) and what it adds to the cache."""
        if cache is None or ids.shape != (1, 1) or cache[0].length == self.config.n_positions:
            return self.model(ids, cache=cache, logits_to_keep=logits_to_keep)
        x = self.tokens[ids.item()] + self.positions[cache[0].length]  # (C,)
        for (attention, mlp), layer in zip(self.blocks, cache, strict=True):
            x = x + attention(x, layer)
            x = x + mlp(x)
        return GPTOutput(self.lm_head(self.ln_f(x))[None, None])


# Each of these looks its weights up once and returns a function of a vector: to look one up in a module takes as long
# as to add two vectors.


def _norm(norm):
    return partial(
        torch.layer_norm, normalized_shape=norm.normalized_shape, weight=norm.weight, bias=norm.bias, eps=norm.eps
    )


def _linear(linear):
    return partial(torch.addmv, linear.bias, linear.weight)  # bias + weight x; starts sooner than F.linear


def _attention(ln_1, attn):
    norm, c_attn, c_proj = _norm(ln_1), _linear(attn.c_attn), _linear(attn.c_proj)
    heads = (3, 1, attn.n_head, 1, attn.head_size)

    def attention(x, layer):
        q, k, v = c_attn(norm(x)).view(heads).unbind()  # each (1, H, 1, D)
        return c_proj(F.scaled_dot_product_attention(q, *layer.append(k, v)).view(-1))

    return attention


def _mlp(ln_2, mlp):
    norm, c_fc, c_proj, gelu = _norm(ln_2), _linear(mlp.c_fc), _linear(mlp.c_proj), partial(F.gelu, approximate="tanh")
    return lambda x: c_proj(gelu(c_fc(norm(x))))
