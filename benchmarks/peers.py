"""The peers: nanoGPT, from the user's own clone or rebuilt here in our own words, and transformers' GPT-2.

Rebuilt, nanoGPT has its arithmetic and its settings: `F.scaled_dot_product_attention`, a tied LM head, by default no
biases and the exact GELU, as its train.py chooses; AdamW with decay for matrices alone, gradients clipped at 1, batches
drawn at random from one array. It writes without a cache.
"""

import contextlib
import importlib.util
import io
import math
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from gptcourse.optimizers import learning_rate_at

REBUILT = "nanoGPT, rebuilt"


class NanoBlock(nn.Module):
    """A block; names as in GPT-2."""

    def __init__(self, width, n_head, bias, gelu):
        super().__init__()
        self.n_head, self.gelu = n_head, gelu
        self.ln_1, self.ln_2 = (nn.LayerNorm(width, bias=bias) for _ in range(2))
        sizes = {"attn": {"c_attn": (1, 3), "c_proj": (1, 1)}, "mlp": {"c_fc": (1, 4), "c_proj": (4, 1)}}
        self.attn, self.mlp = (
            nn.ModuleDict({name: nn.Linear(width * a, width * b, bias=bias) for name, (a, b) in sizes[part].items()})
            for part in ("attn", "mlp")
        )

    def forward(self, x):
        """Map (B, T, C) to (B, T, C)."""
        n_rows, n_tokens, width = x.shape
        heads = (n_rows, n_tokens, self.n_head, width // self.n_head)
        q, k, v = (part.view(heads).transpose(1, 2) for part in self.attn.c_attn(self.ln_1(x)).split(width, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(x.shape)
        x = x + self.attn.c_proj(y)
        return x + self.mlp.c_proj(F.gelu(self.mlp.c_fc(self.ln_2(x)), approximate=self.gelu))


class NanoGPT(nn.Module):
    """nanoGPT's arithmetic, rebuilt; gelu: "tanh" as in GPT-2, or "none", the exact one."""

    def __init__(self, config, bias=False, gelu="none"):
        super().__init__()
        width, self.n_positions = config.n_embd, config.n_positions
        self.wte, self.wpe = nn.Embedding(config.vocab_size, width), nn.Embedding(config.n_positions, width)
        self.h = nn.ModuleList(NanoBlock(width, config.n_head, bias, gelu) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(width, bias=bias)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=0.02 / (math.sqrt(2 * config.n_layer) if "c_proj" in name else 1))
            elif name.endswith("bias"):
                nn.init.zeros_(weight)

    def forward(self, ids, targets=None):
        """Return logits and the mean loss in nats; without targets, the logits of the last place (B, 1, V) and None."""
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.h:
            x = block(x)
        logits = F.linear(self.ln_f(x if targets is not None else x[:, -1:]), self.wte.weight)
        return logits, None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    @torch.no_grad()
    def generate(self, ids, max_new_tokens, temperature=1.0):
        """Return ids (B, T) with new ones appended, each computed anew from the last window."""
        for _ in range(max_new_tokens):
            logits, _ = self(ids[:, -self.n_positions :])
            ids = torch.cat((ids, torch.multinomial(F.softmax(logits[:, -1] / temperature, dim=-1), 1)), dim=1)
        return ids


def nanogpt(path, config, bias=False):
    """Return what to call it and nanoGPT's model of this shape: that of the clone at `path`, None for the rebuilt."""
    if path is None:
        return REBUILT, NanoGPT(config, bias)
    spec = importlib.util.spec_from_file_location("nanogpt_model", Path(path) / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)  # the user's own clone, named by the user
    names = ("vocab_size", "n_layer", "n_head", "n_embd")
    shape = {name: getattr(config, name) for name in names} | {"block_size": config.n_positions}
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its size
        return "nanoGPT", module.GPT(module.GPTConfig(**shape, bias=bias, dropout=0.0))


def take_weights(model, ours):
    """Put the weights of a GPT into nanoGPT's model of the same shape, with biases."""
    weights = {name: weight for name, weight in ours.state_dict().items() if name != "lm_head.weight"}
    getattr(model, "transformer", model).load_state_dict(weights)
    return model


def nano_loss(model, ids, targets):
    """Return the mean loss of nanoGPT's model."""
    return model(ids, targets)[1]


def transformers_loss(model, ids, targets):
    """Return the mean loss of transformers' GPT-2."""
    return F.cross_entropy(model(ids, use_cache=False).logits.flatten(0, 1), targets.flatten())


def plain_loop(loss_of, model, tokens, length, config, fused=False):
    """Train as nanoGPT's loop does, with the settings of a TrainingConfig; a fused AdamW it asks for on a GPU alone."""
    matrices, vectors = ([w for w in model.parameters() if (w.dim() >= 2) == big] for big in (True, False))
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    betas = config.adam_beta1, config.adam_beta2
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=fused)
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, config)
        starts = torch.randint(len(tokens) - length, (config.batch_size,))
        ids = torch.stack([tokens[start : start + length] for start in starts])
        targets = torch.stack([tokens[start + 1 : start + 1 + length] for start in starts])
        loss_of(model, ids, targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
