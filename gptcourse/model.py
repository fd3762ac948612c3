"""A GPT from end to end: the MLP, the block, the whole model.

Sources: Radford et al. (2019), GPT-2, section 2.3 (pre-norm blocks, scaled initialisation); Press and Wolf (2017) (tied
LM head); Yang et al. (2022), "Tensor Programs V", table 8 (muP). Parameters have the names of transformers' GPT-2.

Shapes: B sequences in a batch, T tokens each, C = n_embd, V = vocab_size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gptcourse import hf
from gptcourse.attention import CausalSelfAttention, KeyValueCache
from gptcourse.config import GPT3_TABLE, GPTConfig
from gptcourse.data import alone_with_random
from gptcourse.tokenizers import TOKENIZER_FILES, save_tokenizer
from gptcourse.views import is_sharded, plain_name

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

__all__ = ["GPT", "GPT3_TABLE", "MLP", "Block", "GPTConfig", "GPTOutput", "build_norm", "squared_relu"]


def squared_relu(x: Tensor) -> Tensor:
    """Return max(0, x)², element by element (So et al., 2021, Primer)."""
    return F.relu(x).square()


def build_norm(config: GPTConfig) -> nn.Module:
    """Return the normalisation that the config asks for, over the last dimension (n_embd)."""
    kind = nn.RMSNorm if config.norm == "rmsnorm" else nn.LayerNorm
    return kind(config.n_embd, eps=config.layer_norm_epsilon)


class MLP(nn.Module):
    """Two linear maps, four times as wide in the middle, applied to each token alone."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)
        self.activation = squared_relu if config.activation_function == "relu2" else nn.GELU("tanh")
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        return self.dropout(self.c_proj(self.activation(self.c_fc(x))))


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)): the pre-norm block of GPT-2 (2019), section 2.3."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.ln_1 = build_norm(config)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = build_norm(config)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, cache: KeyValueCache | None = None, output_attentions: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Return the residual stream (B, T, C) after this block and, when asked, the weights (B, H, T, S)."""
        attended, weights = self.attn(self.ln_1(x), cache, output_attentions)
        x = x + attended
        return x + self.mlp(self.ln_2(x)), weights


class GPTOutput(NamedTuple):
    """What a forward pass gives: logits (B, T, V), the mean loss in nats, the weights of each layer (B, H, T, S)."""

    logits: Tensor
    loss: Tensor | None = None
    attentions: tuple[Tensor, ...] | None = None


class GPT(nn.Module):
    """A decoder-only transformer: token ids in, a score for every possible next token out."""

    @alone_with_random
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        if config.position_embedding == "learned":
            self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = build_norm(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.apply(self._initialise)
        for block in self.h:
            # 2 n_layer sums enter the residual stream: smaller terms keep its variance level (GPT-2, section 2.3).
            for projection in (block.attn.c_proj, block.mlp.c_proj):
                nn.init.normal_(projection.weight, std=self._hidden_std / math.sqrt(2 * config.n_layer))
        if config.tie_word_embeddings:
            self.lm_head.weight = self.wte.weight
        self.is_gradient_checkpointing = False

    def gradient_checkpointing_enable(self) -> None:
        """Store only the input of each block in training, and recompute the rest in the backward pass.

        Less memory for a third more arithmetic: Chen et al. (2016), "Training Deep Nets with Sublinear Memory Cost".
        """
        self.is_gradient_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        """Store all activations again."""
        self.is_gradient_checkpointing = False

    @property
    def _hidden_std(self) -> float:
        """Standard deviation of a hidden matrix at initialisation: under muP its variance falls as 1 / width."""
        return self.config.initializer_range / math.sqrt(self.config.width_multiplier)

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            is_hidden = isinstance(module, nn.Linear) and module is not self.lm_head
            nn.init.normal_(module.weight, std=self._hidden_std if is_hidden else self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.wte.weight.device

    def new_cache(self, batch_size: int = 1, length: int | None = None) -> list[KeyValueCache]:
        """Return an empty cache for each layer, for `batch_size` sequences of up to `length` tokens, or n_positions."""
        config, weight = self.config, self.wte.weight
        longest = min(length or config.n_positions, config.n_positions)
        shape = (batch_size, config.n_head, longest, config.head_size)
        return [KeyValueCache(*shape, device=weight.device, dtype=weight.dtype) for _ in range(config.n_layer)]

    def forward(
        self,
        ids: Tensor,
        targets: Tensor | None = None,
        cache: list[KeyValueCache] | None = None,
        output_attentions: bool = False,
        logits_to_keep: int = 0,
    ) -> GPTOutput:
        """Score every possible next token at every position.

        Args:
            ids: (B, T) token ids, int64.
            targets: (B, T): targets[:, t] is the token that follows ids[:, t]; -100 is left out of the loss.
            cache: from `new_cache`: ids are then only the tokens that follow those already in it.
            logits_to_keep: n computes the logits of the last n positions alone; 0 (transformers' default), of all.

        Returns:
            GPTOutput: logits (B, T, V), or (B, n, V); with targets the loss, the mean over all targets of
            -ln p(target), in nats; with output_attentions the weights of each layer, (B, H, T, S).

        Raises ValueError for ids of another shape, too many of them or (on a CPU) outside the vocabulary, and for a
        negative logits_to_keep or one together with targets.
        """
        if logits_to_keep < 0:
            raise ValueError(f"logits_to_keep is {logits_to_keep}, but it must be 0 (all positions) or more.")
        if logits_to_keep and targets is not None:
            raise ValueError("The loss needs the logits of all positions: leave out either targets or logits_to_keep.")
        x = self._embed(ids, cache[0].length if cache else 0)  # (B, T, C)
        attentions = []
        for layer, block in enumerate(self.h):
            run = partial(checkpoint, block, use_reentrant=False) if self._recomputes else block
            x, weights = run(x, cache[layer] if cache else None, output_attentions)
            attentions.append(weights)
        x = self.ln_f(x[:, -logits_to_keep:])  # (B, T, C) or (B, n, C), as -0 is the first position
        if self.config.mup_base_width is not None:
            x = x / self.config.width_multiplier  # muP scales the logits; their input is less work
        logits = self.lm_head(x)
        loss = None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return GPTOutput(logits, loss, tuple(attentions) if output_attentions else None)

    @property
    def _recomputes(self) -> bool:
        return self.is_gradient_checkpointing and self.training and torch.is_grad_enabled()

    def _embed(self, ids: Tensor, seen: int) -> Tensor:
        """Look up the vectors (B, T, C) of ids (B, T) that follow `seen` earlier tokens."""
        if ids.dim() != 2:
            raise ValueError(f"ids must have the shape (batch, time), not {tuple(ids.shape)}: try ids[None].")
        end = seen + ids.shape[1]
        if end > self.config.n_positions:
            raise ValueError(
                f"{end} tokens do not fit into n_positions = {self.config.n_positions}: pass only the last ones."
            )
        x = look_up(self.wte, ids)
        if self.config.position_embedding == "learned":
            x = x + self.wpe.weight[seen:end]
        return self.drop(x)

    @classmethod
    def from_transformers(cls, model: GPT2LMHeadModel) -> GPT:
        """Return a GPT with the weights, and so the logits, of a transformers GPT-2; dropout is its `resid_pdrop`.

        Raises ValueError, naming the setting, for a model that computes something else than GPT-2 does.
        """
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        config = replace(hf.config_from_gpt2(model.config.to_dict()), tie_word_embeddings=tied)
        ours = cls(config).to(device=model.device, dtype=model.dtype)
        ours.load_state_dict(hf.from_gpt2_names(model.state_dict()))
        return ours.train(model.training)

    @alone_with_random
    def to_transformers(self) -> GPT2LMHeadModel:
        """Return a transformers GPT2LMHeadModel with the same logits; muP's factor becomes part of the LM head.

        Raises ValueError for a model with rotary positions, RMSNorm, squared ReLU or query/key norm.
        """
        config, state = self._plain_state()
        if not replace(config, mup_base_width=None).is_gpt2_shaped:
            raise ValueError(
                "transformers' GPT-2 has learned positions, LayerNorm, gelu_new and no query/key norm, and this model "
                "has not: keep it as a gptcourse model with save and load."
            )
        from transformers import GPT2Config, GPT2LMHeadModel

        state["lm_head.weight"] = state["lm_head.weight"] / config.width_multiplier
        model = GPT2LMHeadModel(GPT2Config(**hf.gpt2_config(config)))
        model.load_state_dict(hf.to_gpt2_names(state))
        return model.to(device=self.device, dtype=self.wte.weight.dtype).train(self.training)

    def save(self, directory: str | Path, tokenizer=None) -> None:
        """Write config.json and model.safetensors, and the tokenizer's own files if one is given.

        AutoModelForCausalLM opens a GPT-2-shaped model too. Raises ValueError for a model that GPT(config) does not
        describe: with LoRA layers, or with modules replaced or added by hand; and where the files cannot be written,
        which leaves those that are there.
        """
        more = () if tokenizer is None else (partial(save_tokenizer, tokenizer), TOKENIZER_FILES)
        hf.write_model(Path(directory), *self._plain_state(), *more)

    @classmethod
    def load(cls, directory: str | Path) -> GPT:
        """Read a model that `save`, or transformers' save_pretrained of a GPT-2, has written: float32, evaluation mode.

        Raises ValueError if a file is missing or damaged, or the model is of another kind.
        """
        config, state = hf.read_model(Path(directory))
        with torch.device("meta"):  # no memory, and none of the caller's random numbers, for an initialisation
            model = cls(config)
        with hf.naming(directory):
            model.load_state_dict(state, assign=True)
        if config.tie_word_embeddings:
            model.lm_head.weight = model.wte.weight
        return model.requires_grad_(True).eval()

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False):
        """Take over weights by name, a compiled or DistributedDataParallel model's too. Raises ValueError.

        See torch.nn.Module.load_state_dict.
        """
        own = {plain_name(name): name for name in self.state_dict()}  # parts of this model may be compiled themselves
        given = {own.get(plain_name(name), name): value for name, value in state_dict.items()}
        head, table = (given.get(own.get(f"{name}.weight")) for name in ("lm_head", "wte"))
        tied = getattr(self.lm_head, "weight", None) is self.wte.weight  # a layer of LoRA has none
        if tied and None not in (head, table) and not torch.equal(head, table):
            raise ValueError("These weights have an LM head of their own, and this model's is tied to its embeddings.")
        try:
            return super().load_state_dict(given, strict, assign)
        except RuntimeError as error:
            said = " ".join(str(error).split())
            raise ValueError(f"These weights are not those of a model of this shape: {said[:300]}") from error

    def _plain_state(self) -> tuple[GPTConfig, dict[str, Tensor]]:
        """Return the config and weights that describe this model as it is. Raises ValueError if nothing does."""
        if is_sharded(self):
            raise ValueError("This model is sharded: load distributed.full_state(model) into a new one and save that.")
        state = {plain_name(name): tensor for name, tensor in self.state_dict().items()}
        if any(name.endswith("lora_A") for name in state):
            raise ValueError("This model has LoRA layers: call merge_lora(model) first, which keeps its logits.")
        config = replace(self.config, tie_word_embeddings=self.lm_head.weight is self.wte.weight)
        with torch.device("meta"):
            described = {name: tensor.shape for name, tensor in GPT(config).state_dict().items()}
        own = {name: tensor.shape for name, tensor in state.items()}
        if changed := {name for name, _ in own.items() ^ described.items()}:
            raise ValueError(
                f"GPT(config) has other weights than this model ({', '.join(sorted(changed))}): a model changed "
                "by hand cannot be saved like this; save model.state_dict() with safetensors."
            )
        return config, state


def look_up(table: nn.Embedding, ids: Tensor) -> Tensor:
    """Return the vectors (..., C) of ids (...). Raises ValueError for one outside the vocabulary (on a CPU)."""
    try:
        return table(ids)
    except IndexError as error:  # asked for afterwards, as looking at all ids first would cost every step
        raise ValueError(
            f"ids go from {ids.min()} to {ids.max()}, but this model knows 0 to {table.num_embeddings - 1}: use the "
            "tokenizer that it was made with."
        ) from error
