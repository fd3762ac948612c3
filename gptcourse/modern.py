"""A current language model: GPT-3's model, and each change made to it since behind one field of its config.

The names of the config's fields and of all parameters are those of transformers' Llama, Qwen3 and Qwen3-MoE, so that
their weights are taken over by name. With the defaults of `ModernConfig` the model has the shape of Llama; `gpt3_like`
gives the config from which the changes start.

Sources: Touvron et al. (2023), LLaMA, section 2.2; Zhang and Sennrich (2019), RMSNorm; Su et al. (2021), RoFormer; Chen
et al. (2023), arXiv:2306.15595 (positions interpolated); Shazeer (2020), arXiv:2002.05202 (SwiGLU); Ainslie et al.
(2023), arXiv:2305.13245 (grouped queries); Henry et al. (2020) (query/key norm); Beltagy et al. (2020) and Jiang et al.
(2023), Mistral 7B (sliding window); Fedus et al. (2022), Switch Transformers, section 2.2 (load balance); DeepSeek-AI
(2024), DeepSeek-V3, section 2.2 (multi-token prediction).

Shapes: B sequences, T tokens, S keys, C = hidden_size, H heads for queries, G for keys and values, D = head size, E
experts, V = vocab_size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptcourse.attention import KeyValueCache, causal_mask, rotary
from gptcourse.config import check_settings
from gptcourse.data import IGNORED, alone_with_random
from gptcourse.model import GPTOutput, look_up

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class ModernConfig:
    """The shape of a model, by the names of transformers' Llama, Qwen3 and DeepSeek-V3 where they have one.

    Args:
        intermediate_size: numbers in the middle of the MLP (of each expert's).
        num_key_value_heads: heads that keys and values have; None: as many as queries.
        head_dim: numbers per head; None: hidden_size / num_attention_heads.
        norm: "rmsnorm", or GPT-3's "layernorm". rms_norm_eps: added to what it divides by.
        hidden_act: "silu" is SwiGLU, with a gate; "gelu_new" is GPT-3's MLP, without one.
        position_embedding: "rotary", or GPT-3's "learned". rope_theta: its base. rope_factor: divides all positions.
        bias: whether linear maps have one. qk_norm: normalise queries and keys, each head by itself, with a scale.
        sliding_window: tokens that a token sees, itself included; None: all before it.
        num_experts: 0 for one MLP. num_experts_per_tok: that a token goes through. router_aux_loss_coef: weight of the
            loss that keeps experts equally busy; it counts in training only.
        num_nextn_predict_layers: 1 predicts the token after the next one as well. mtp_coef: the weight of its loss,
            which counts in training only.

    Raises ValueError, with one sentence, for a shape that makes no sense.
    """

    vocab_size: int
    max_position_embeddings: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    norm: str = "rmsnorm"
    rms_norm_eps: float = 1e-5
    hidden_act: str = "silu"
    position_embedding: str = "rotary"
    rope_theta: float = 10_000.0
    rope_factor: float = 1.0
    bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    num_experts: int = 0
    num_experts_per_tok: int = 2
    router_aux_loss_coef: float = 0.01
    num_nextn_predict_layers: int = 0
    mtp_coef: float = 0.3
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02

    def __post_init__(self):
        check_settings(self)
        heads, groups = self.num_attention_heads, self.num_key_value_heads or self.num_attention_heads
        object.__setattr__(self, "num_key_value_heads", groups)
        if self.head_dim is None and self.hidden_size % heads:
            raise ValueError(f"hidden_size {self.hidden_size} does not divide among {heads} heads: give head_dim.")
        object.__setattr__(self, "head_dim", self.head_dim or self.hidden_size // heads)
        if heads % groups:
            raise ValueError(f"{heads} heads do not divide among num_key_value_heads = {groups}: take a divisor.")
        if self.position_embedding == "rotary" and self.head_dim % 2:
            raise ValueError(f"For rotary positions the head size must be even, and it is {self.head_dim}.")
        if self.num_experts and self.num_experts_per_tok > self.num_experts:
            raise ValueError(f"A token cannot go through {self.num_experts_per_tok} of {self.num_experts} experts.")

    def cache_bytes(self, n_tokens: int, bytes_per_number: int = 2) -> int:
        """Return the memory of the keys and values of `n_tokens` tokens; with a sliding window, of its tokens alone."""
        kept = min(n_tokens, self.sliding_window or n_tokens)
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * kept * bytes_per_number


def gpt3_like(vocab_size: int, n_positions: int, n_embd: int, n_layer: int, n_head: int) -> ModernConfig:
    """Return the config of a model with GPT-3's choices: what `GPTConfig` of the same sizes describes."""
    old = {"norm": "layernorm", "hidden_act": "gelu_new", "position_embedding": "learned"}
    old |= {"bias": True, "tie_word_embeddings": True}
    return ModernConfig(vocab_size, n_positions, n_embd, n_layer, n_head, 4 * n_embd, **old)


def build_norm(config: ModernConfig, size: int) -> nn.Module:
    """Return the normalisation that the config asks for, over the last dimension."""
    kind = nn.RMSNorm if config.norm == "rmsnorm" else nn.LayerNorm
    return kind(size, eps=config.rms_norm_eps)


class Attention(nn.Module):
    """Attention in which H / G query heads share one head of keys and values."""

    def __init__(self, config: ModernConfig):
        super().__init__()
        self.config = config
        queries, others = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=config.bias)
        self.k_proj = nn.Linear(config.hidden_size, others, bias=config.bias)
        self.v_proj = nn.Linear(config.hidden_size, others, bias=config.bias)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=config.bias)
        if config.qk_norm:
            self.q_norm, self.k_norm = (build_norm(config, config.head_dim) for _ in range(2))

    def forward(self, x: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Map (B, T, C) to (B, T, C); with a cache, x follows the tokens that are in it, and is added to them."""
        seen = cache.length if cache is not None else 0
        q, k, v = (self._heads(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj))  # (B, H or G, T, D)
        if self.config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.config.position_embedding == "rotary":
            q, k = (rotary(part, seen, self.config.rope_theta, self.config.rope_factor) for part in (q, k))
        if cache is not None:
            k, v = cache.append(k, v)  # (B, G, S, D)
        mask = causal_mask(q.shape[-2], k.shape[-2], device=x.device, window=self.config.sliding_window)
        attended = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)  # (B, H, T, D)
        return self.o_proj(attended.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)


class MLP(nn.Module):
    """SwiGLU: the product of a gate and a linear map, and back. Without a gate: GPT-3's MLP."""

    def __init__(self, config: ModernConfig):
        super().__init__()
        size, middle = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(size, middle, bias=config.bias) if config.hidden_act == "silu" else None
        self.up_proj = nn.Linear(size, middle, bias=config.bias)
        self.down_proj = nn.Linear(middle, size, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, C) to (…, C)."""
        if self.gate_proj is None:
            return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class MixtureOfExperts(nn.Module):
    """Several MLPs of which each token goes through the few that a router chooses for it.

    The weights of the chosen ones are made to sum to 1. `balance` is the load-balancing loss of the last forward pass:
    1 if all experts are equally busy. With one expert a token it is up to E, if one gets everything (Fedus et al. 2022,
    equation 4); with k a share is at most 1/k, so it is up to E/k. (transformers' number is k times this one.)
    """

    def __init__(self, config: ModernConfig):
        super().__init__()
        self.n_chosen = config.num_experts_per_tok
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = nn.ModuleList(MLP(config) for _ in range(config.num_experts))

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "balance"}  # for copies: it has a graph

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        tokens = x.flatten(0, 1)  # (B · T, C)
        probabilities = self.gate(tokens).softmax(-1, dtype=torch.float32)  # (B · T, E); in bfloat16 too coarse
        weights, chosen = probabilities.topk(self.n_chosen)
        weights = weights / weights.sum(-1, keepdim=True)
        output = torch.zeros_like(tokens)
        for e, expert in enumerate(self.experts):
            rows, place = (chosen == e).nonzero(as_tuple=True)  # the tokens that go through this expert
            weighted = weights[rows, place, None] * expert(tokens[rows])
            output.index_add_(0, rows, weighted.to(output.dtype))
        load = F.one_hot(chosen, len(self.experts)).float().mean((0, 1))  # (E,): the share of all choices
        self.balance = len(self.experts) * load @ probabilities.mean(0)
        return output.view_as(x)


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)), as in GPT-2."""

    def __init__(self, config: ModernConfig):
        super().__init__()
        self.input_layernorm = build_norm(config, config.hidden_size)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = build_norm(config, config.hidden_size)
        self.mlp = MixtureOfExperts(config) if config.num_experts else MLP(config)

    def forward(self, x: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Return the residual stream (B, T, C) after this block."""
        x = x + self.self_attn(self.input_layernorm(x), cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class NextToken(nn.Module):
    """Predict one token further: a block over the last states and the embeddings of the tokens that followed them."""

    def __init__(self, config: ModernConfig):
        super().__init__()
        self.hnorm, self.enorm, self.norm = (build_norm(config, config.hidden_size) for _ in range(3))
        self.eh_proj = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.block = Block(config)

    def forward(self, states: Tensor, embedded: Tensor) -> Tensor:
        """Map states (B, T, C), and the embeddings (B, T, C) of the tokens after them, to states (B, T, C)."""
        joined = torch.cat((self.enorm(embedded), self.hnorm(states)), dim=-1)
        return self.norm(self.block(self.eh_proj(joined)))


class ModernGPT(nn.Module):
    """A decoder-only transformer as they are built today: token ids in, a score for every possible next token out."""

    @alone_with_random
    def __init__(self, config: ModernConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.position_embedding == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = build_norm(config, config.hidden_size)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.next = NextToken(config) if config.num_nextn_predict_layers else None
        self.apply(self._initialise)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        for name in ("o_proj", "down_proj"):  # what enters the residual stream, as GPT-2 does it
            if hasattr(module, name):
                std = self.config.initializer_range / (2 * self.config.num_hidden_layers) ** 0.5
                nn.init.normal_(getattr(module, name).weight, std=std)

    def new_cache(self, batch_size: int = 1, length: int | None = None) -> list[KeyValueCache]:
        """Return an empty cache for each layer, as `GPT` does: G heads, not H."""
        config, weight = self.config, self.embed_tokens.weight
        longest = min(length or config.max_position_embeddings, config.max_position_embeddings)
        shape = (batch_size, config.num_key_value_heads, longest, config.head_dim)
        return [KeyValueCache(*shape, device=weight.device, dtype=weight.dtype) for _ in self.layers]

    def forward(
        self, ids: Tensor, targets: Tensor | None = None, cache: list[KeyValueCache] | None = None
    ) -> GPTOutput:
        """Return logits (B, T, V) for ids (B, T), and with targets (B, T) the loss, as `GPT` does.

        In training the loss counts what the config adds to it: the balance of the experts, the token after the next.
        Raises ValueError for more tokens than max_position_embeddings, and ids outside the vocabulary (on a CPU).
        """
        seen = cache[0].length if cache else 0
        x = self._embed(ids, seen)  # (B, T, C)
        for layer, block in enumerate(self.layers):
            x = block(x, cache[layer] if cache else None)
        logits = self.lm_head(self.norm(x))
        if targets is None:
            return GPTOutput(logits)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return GPTOutput(logits, loss + self._added(x, ids, targets) if self.training else loss)

    def _embed(self, ids: Tensor, seen: int) -> Tensor:
        end = seen + ids.shape[1]
        if end > self.config.max_position_embeddings:
            raise ValueError(f"{end} tokens do not fit into {self.config.max_position_embeddings}: pass the last ones.")
        x = look_up(self.embed_tokens, ids)
        return x + self.embed_positions.weight[seen:end] if self.config.position_embedding == "learned" else x

    def _added(self, x: Tensor, ids: Tensor, targets: Tensor) -> Tensor | float:
        """Return what is added to the loss in training: see `ModernConfig`."""
        added = 0.0
        if self.config.num_experts:
            balance = torch.stack([block.mlp.balance for block in self.layers]).mean()
            added = added + self.config.router_aux_loss_coef * balance
        if self.next is not None and (targets[:, 1:] != IGNORED).any():
            logits = self.lm_head(self.next(x[:, :-1], self.embed_tokens(ids[:, 1:])))  # with what x was to predict
            added = added + self.config.mtp_coef * F.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten())
        return added

    @classmethod
    def from_transformers(cls, model: PreTrainedModel) -> ModernGPT:
        """Return a model with the weights, and so the logits, of a Llama, Mistral, Qwen3, Mixtral or Qwen3-MoE.

        The two share the memory of the weights, so that a large model need not fit twice: training one trains both.
        Raises ValueError for another kind of model, and for a setting that is not built here.
        """
        with torch.device("meta"):  # no memory
            ours = cls(modern_config(model.config.to_dict()))
        state = {name.removeprefix("model."): weight for name, weight in model.state_dict().items()}
        for name in [name for name in state if name.endswith("experts.gate_up_proj")]:  # all experts in one tensor
            prefix = name.removesuffix("gate_up_proj")
            for e, (both, down) in enumerate(zip(state.pop(name), state.pop(f"{prefix}down_proj"), strict=True)):
                parts = dict(zip(("gate", "up", "down"), (*both.chunk(2), down), strict=True))
                state |= {f"{prefix}{e}.{part}_proj.weight": weight for part, weight in parts.items()}
        ours.load_state_dict(state, assign=True)
        if ours.config.tie_word_embeddings:
            ours.lm_head.weight = ours.embed_tokens.weight
        return ours.train(model.training)


KINDS = ("llama", "mistral", "qwen3", "mixtral", "qwen3_moe")


def modern_config(fields: dict) -> ModernConfig:
    """Return the config of a model from the fields of its config.json, as published or as transformers 5 writes them.

    Raises ValueError as `ModernGPT.from_transformers` does.
    """
    kind, rope = fields.get("model_type"), fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    stretched = rope.get("rope_type", rope.get("type", "default"))
    if kind not in KINDS:
        raise ValueError(f"This is a {kind} model, and these can be opened: {', '.join(KINDS)}.")
    if fields.get("hidden_act", "silu") != "silu" or fields.get("attention_bias") or fields.get("mlp_bias"):
        raise ValueError("Only a SwiGLU without biases is built here; this model has something else.")
    if stretched not in ("default", "linear"):
        raise ValueError(f"Its positions are stretched by '{stretched}', which is not built here.")
    if kind == "qwen3_moe" and (fields.get("mlp_only_layers") or fields.get("decoder_sparse_step", 1) != 1):
        raise ValueError("Some of its layers have experts and some have none, which is not built here.")
    if kind == "qwen3_moe" and not fields.get("norm_topk_prob"):
        raise ValueError("The weights of its chosen experts do not sum to 1 (norm_topk_prob), as they do here.")
    if len({*_layer_types(fields)}) > 1:
        raise ValueError("Some of its layers have a sliding window and some have none, which is not built here.")
    names = ModernConfig.__dataclass_fields__
    known = {name: value for name, value in fields.items() if name in names and value is not None}
    known |= {"rope_theta": rope.get("rope_theta") or fields.get("rope_theta", 10_000.0)}
    known |= {"rope_factor": rope.get("factor", 1.0)}
    known |= {"qk_norm": kind.startswith("qwen3")}
    if kind in ("mixtral", "qwen3_moe"):
        known |= {"num_experts": fields.get("num_local_experts") or fields["num_experts"]}
        known |= {"intermediate_size": fields.get("moe_intermediate_size") or fields["intermediate_size"]}
    if "full_attention" in _layer_types(fields):
        known.pop("sliding_window", None)
    return ModernConfig(**known)


def _layer_types(fields: dict) -> list[str]:
    """Return "sliding_attention" or "full_attention" for each layer; Qwen's slide from max_window_layers on."""
    if fields.get("layer_types"):
        return fields["layer_types"]
    slides, n_layers = fields.get("use_sliding_window", True), fields["num_hidden_layers"]
    first = fields.get("max_window_layers", 0) if slides and fields.get("sliding_window") else n_layers
    return ["sliding_attention" if layer >= first else "full_attention" for layer in range(n_layers)]


def num_parameters(config: ModernConfig, active: bool = False) -> int:
    """Return the number of parameters; with `active`, only of those that one token meets: of its experts, not all."""
    with torch.device("meta"):
        model = ModernGPT(replace(config, num_hidden_layers=1))  # the other blocks are like the first
    block = model.layers[0]
    total = _count(model) + (config.num_hidden_layers - 1) * _count(block)
    if not active or not config.num_experts:
        return total
    n_blocks = config.num_hidden_layers + config.num_nextn_predict_layers
    n_idle = config.num_experts - config.num_experts_per_tok
    return total - n_blocks * n_idle * _count(block.mlp.experts[0])


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
