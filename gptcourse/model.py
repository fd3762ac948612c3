"""A GPT from end to end: the block, the whole model, GPT-3's sizes, and the road to and from transformers.

Sources: Radford et al. (2019), GPT-2, section 2.3 (pre-norm blocks, scaled initialisation); Brown et al. (2020),
GPT-3, section 2.1 and table 2.1; Press and Wolf (2017) (tied read-out); Yang et al. (2022), "Tensor Programs V",
table 8 (muP). Parameter and field names are those of transformers' GPT-2, so that moving weights is a loop.

Shapes: B sequences in a batch, T tokens each, C = n_embd numbers per token, V = vocab_size.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gptcourse.attention import CausalSelfAttention, KeyValueCache

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

# transformers stores these four matrices of each block as (in, out); torch's Linear as (out, in).
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
CHOICES = {
    "activation_function": ("gelu_new", "relu2"),
    "position_embedding": ("learned", "rotary"),
    "norm": ("layernorm", "rmsnorm"),
}


class GPT3Row(NamedTuple):
    """One line of table 2.1 in Brown et al. (2020), as printed; batch_size in tokens."""

    n_params: str
    n_layers: int
    d_model: int
    n_heads: int
    d_head: int
    batch_size: int
    learning_rate: float


GPT3_TABLE = {
    "125M": GPT3Row("125M", 12, 768, 12, 64, 500_000, 6.0e-4),
    "350M": GPT3Row("350M", 24, 1024, 16, 64, 500_000, 3.0e-4),
    "760M": GPT3Row("760M", 24, 1536, 16, 96, 500_000, 2.5e-4),
    "1.3B": GPT3Row("1.3B", 24, 2048, 24, 128, 1_000_000, 2.0e-4),
    "2.7B": GPT3Row("2.7B", 32, 2560, 32, 80, 1_000_000, 1.6e-4),
    "6.7B": GPT3Row("6.7B", 32, 4096, 32, 128, 2_000_000, 1.2e-4),
    "13B": GPT3Row("13.0B", 40, 5140, 40, 128, 2_000_000, 1.0e-4),
    "175B": GPT3Row("175.0B", 96, 12288, 96, 128, 3_200_000, 0.6e-4),
}


def require_number(settings: Any, name: str, kind: type, fits: Callable[[Any], bool], wanted: str) -> None:
    """Check the number in the field `name` of a frozen dataclass, and make a NumPy one Python's own.

    JSON and torch's seeds take no NumPy numbers. kind is Integral or Real; fits says whether the value is in range.
    Raises ValueError, with what is `wanted`, if the field holds anything else.
    """
    value = getattr(settings, name)
    if isinstance(value, bool) or not isinstance(value, kind) or not fits(value):
        raise ValueError(f"{name} is {value!r}, but it must be {wanted}.")
    if not isinstance(value, int | float):
        object.__setattr__(settings, name, int(value) if isinstance(value, Integral) else float(value))


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a model. The defaults are GPT-2's and GPT-3's choices, without dropout.

    Args:
        vocab_size: how many different tokens there are.
        n_positions: the longest sequence (the context, or window), in tokens.
        n_embd: the width: numbers per token. n_layer: blocks. n_head: attention heads, n_embd / n_head wide each.
        dropout: the share of numbers set to zero in training, after embeddings, attention and MLP.
        activation_function: "gelu_new" (GPT-2) or "relu2" (squared ReLU; So et al., 2021).
        position_embedding: "learned" (a vector for each position) or "rotary" (Su et al., 2021).
        norm: "layernorm" or "rmsnorm" (Zhang and Sennrich, 2019). qk_norm: normalise queries and keys.
        mup_base_width: the n_embd at which the learning rate was tuned: muP, see `optimizers.mup_groups`. None: the
            standard parametrisation. It needs an untied read-out, and heads of one size at every width: muP divides
            attention's scores by D instead of √D, which then differs by a constant only.

    Raises ValueError, with one sentence, for a shape that makes no sense.
    """

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    dropout: float = 0.0
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    position_embedding: str = "learned"
    norm: str = "layernorm"
    qk_norm: bool = False
    mup_base_width: int | None = None

    def __post_init__(self):
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
            require_number(self, name, Integral, lambda value: value >= 1, "a whole number of 1 or more")
        if self.n_embd % self.n_head:
            raise ValueError(
                f"n_embd {self.n_embd} does not divide among n_head {self.n_head}: make it a multiple of n_head."
            )
        require_number(self, "dropout", Real, lambda value: 0 <= value < 1, "a number of at least 0 and less than 1")
        for name in ("layer_norm_epsilon", "initializer_range"):
            require_number(self, name, Real, lambda value: 0 < value < math.inf, "a finite number greater than 0")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}, but it must be one of {', '.join(allowed)}.")
        if self.position_embedding == "rotary" and self.head_size % 2:
            raise ValueError(
                f"Rotary positions turn pairs, but a head has {self.head_size} numbers: make n_embd / n_head even."
            )
        if self.mup_base_width is not None:
            self._check_mup()

    def _check_mup(self) -> None:
        require_number(
            self, "mup_base_width", Integral, lambda value: value >= 1, "None or a whole number of 1 or more"
        )
        if self.mup_base_width % self.head_size:
            raise ValueError(
                f"mup_base_width {self.mup_base_width} is no multiple of the head size {self.head_size}: heads stay as "
                "wide as at the base width, so let n_head grow with n_embd."
            )
        if self.tie_word_embeddings:
            raise ValueError(
                "muP scales the read-out alone: give a model with mup_base_width tie_word_embeddings=False."
            )

    @property
    def head_size(self) -> int:
        """Numbers per head, D = n_embd / n_head."""
        return self.n_embd // self.n_head

    @property
    def width_multiplier(self) -> float:
        """How many times as wide as muP's base model this one is; 1 in the standard parametrisation."""
        return self.n_embd / (self.mup_base_width or self.n_embd)

    @property
    def parameters_by_part(self) -> dict[str, int]:
        """How many numbers training changes in embeddings (read-out included), attention, MLP and norms: exact."""
        width = self.n_embd
        norm = width if self.norm == "rmsnorm" else 2 * width
        attention = (3 * width + 1 * width) * (width + 1)  # c_attn and c_proj, with biases
        mlp = 4 * width * (width + 1) + width * (4 * width + 1)
        embeddings = self.vocab_size * width * (1 if self.tie_word_embeddings else 2)
        positions = self.n_positions * width if self.position_embedding == "learned" else 0
        return {
            "embeddings": embeddings + positions,
            "attention": self.n_layer * attention,
            "MLP": self.n_layer * mlp,
            "norms": (2 * self.n_layer + 1) * norm,
        }

    @property
    def num_parameters(self) -> int:
        """How many numbers training changes: exact, from the shape alone."""
        return sum(self.parameters_by_part.values())

    @property
    def is_gpt2_shaped(self) -> bool:
        """Whether transformers' GPT2LMHeadModel gives these weights, as they are, the same meaning."""
        ours = (self.activation_function, self.position_embedding, self.norm, self.qk_norm, self.mup_base_width)
        return ours == ("gelu_new", "learned", "layernorm", False, None)

    @classmethod
    def gpt3(cls, name: str) -> GPTConfig:
        """Return one of GPT-3's eight shapes, "125M" to "175B": context 2,048 and GPT-2's 50,257 tokens.

        Two lines of table 2.1 do not divide as printed: "1.3B" has 24 heads of 128 for a width of 2,048 (it takes 16
        heads), and "13B" a width of 5,140 for 40 heads of 128 (it takes 5,120). Here the heads stay d_head wide.
        GPT3_TABLE keeps the printed values.
        """
        if name not in GPT3_TABLE:
            raise ValueError(f"GPT-3 has no size {name!r}: choose one of {', '.join(GPT3_TABLE)}.")
        row = GPT3_TABLE[name]
        n_head = row.d_model // row.d_head
        return cls(
            vocab_size=50257,
            n_positions=2048,
            n_embd=n_head * row.d_head,
            n_layer=row.n_layers,
            n_head=n_head,
        )


@contextmanager
def in_mode(model: nn.Module, training: bool):
    """Put any model into training or evaluation mode, and each of its parts back into its own afterwards."""
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, was_training in before:
            module.training = was_training


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside the wrappers of torch.compile and DistributedDataParallel."""
    while isinstance(inner := getattr(model, "_orig_mod", None) or getattr(model, "module", None), nn.Module):
        model = inner
    return model


def eval_view(model: nn.Module) -> nn.Module:
    """Return a view of any model in evaluation mode: new module objects around the same parameters and buffers.

    Reading through a view leaves the model as it is: another thread may be training it, with dropout. A hook that is
    registered on the view is on the view alone. The way of torch.nn.parallel.replicate, without its copies.
    """
    views: dict[nn.Module, nn.Module] = {}

    def view_of(module: nn.Module) -> nn.Module:
        if module not in views:
            views[module] = view = module.__new__(type(module))
            view.__dict__ = module.__dict__ | {"training": False}
            for name in ("_parameters", "_buffers", "_forward_hooks", "_forward_pre_hooks"):
                view.__dict__[name] = module.__dict__[name].copy()
            view._modules = {name: child and view_of(child) for name, child in module._modules.items()}
        return views[module]

    return view_of(unwrap(model))


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
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        return F.dropout(self.c_proj(self.activation(self.c_fc(x))), self.dropout, self.training)


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

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        if config.position_embedding == "learned":
            self.wpe = nn.Embedding(config.n_positions, config.n_embd)
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
        self.gradient_checkpointing = False

    def gradient_checkpointing_enable(self) -> None:
        """Keep in training only what enters each block, and compute the rest again in the backward pass.

        Memory for a third more arithmetic: Chen et al. (2016), "Training Deep Nets with Sublinear Memory Cost",
        section 4. The method has the name that transformers' models give it.
        """
        self.gradient_checkpointing = True

    @property
    def _hidden_std(self) -> float:
        """The spread of a hidden matrix at the start: under muP its variance falls as 1 / width."""
        return self.config.initializer_range / math.sqrt(self.config.width_multiplier)

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            is_hidden = isinstance(module, nn.Linear) and module is not self.lm_head
            nn.init.normal_(module.weight, std=self._hidden_std if is_hidden else self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.wte.weight.device

    def new_cache(self, batch_size: int = 1) -> list[KeyValueCache]:
        """Return an empty cache for each layer, for `batch_size` sequences of up to n_positions tokens."""
        config, weight = self.config, self.wte.weight
        shape = (batch_size, config.n_head, config.n_positions, config.head_size)
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

        Raises ValueError if ids is not two-dimensional, does not fit into n_positions or (on a CPU) holds a number
        that is no token, or if logits_to_keep is negative or comes together with targets.
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
        logits = self.lm_head(x / self.config.width_multiplier)  # muP scales the logits; their input is less work
        loss = None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return GPTOutput(logits, loss, tuple(attentions) if output_attentions else None)

    @property
    def _recomputes(self) -> bool:
        return self.gradient_checkpointing and self.training and torch.is_grad_enabled()

    def _embed(self, ids: Tensor, seen: int) -> Tensor:
        """Look up the vectors (B, T, C) of ids (B, T) that follow `seen` earlier tokens."""
        if ids.dim() != 2:
            raise ValueError(f"ids must have the shape (batch, time), not {tuple(ids.shape)}: try ids[None].")
        end = seen + ids.shape[1]
        if end > self.config.n_positions:
            raise ValueError(
                f"{end} tokens do not fit into n_positions = {self.config.n_positions}: pass only the last ones."
            )
        try:
            x = self.wte(ids)
        except IndexError as fault:  # asked for afterwards, as looking at all ids first would cost every step
            raise ValueError(
                f"ids go from {ids.min()} to {ids.max()}, but this model knows 0 to {self.config.vocab_size - 1}: use "
                "the tokenizer that it was made with."
            ) from fault
        if self.config.position_embedding == "learned":
            x = x + self.wpe.weight[seen:end]
        return F.dropout(x, self.config.dropout, self.training)

    @classmethod
    def from_transformers(cls, hf: GPT2LMHeadModel) -> GPT:
        """Return a GPT with the weights of a transformers GPT-2: the same logits.

        transformers keeps three dropout rates and GPT-2 gives them one value; here it is `resid_pdrop`.

        Raises ValueError, naming the setting, for a model that computes something else than GPT-2 does.
        """
        model = cls(_config_from_gpt2(hf.config.to_dict()))
        model.load_state_dict(_from_gpt2_names(hf.state_dict()))
        return model.to(device=hf.device, dtype=hf.dtype).train(hf.training)

    def to_transformers(self) -> GPT2LMHeadModel:
        """Return a transformers GPT2LMHeadModel with these weights: the same logits.

        The factor that muP gives the logits becomes part of the read-out matrix.

        Raises ValueError for a model with rotary positions, RMSNorm, squared ReLU or query/key norm.
        """
        config = replace(self.config, mup_base_width=None)
        if not config.is_gpt2_shaped:
            raise ValueError(
                "transformers' GPT-2 has learned positions, LayerNorm, gelu_new and no query/key norm, and this model "
                "has not: keep it as a gptcourse model with save and load."
            )
        from transformers import GPT2Config, GPT2LMHeadModel

        state = self._plain_state()
        state["lm_head.weight"] = state["lm_head.weight"] / self.config.width_multiplier
        hf = GPT2LMHeadModel(GPT2Config(**_gpt2_config(config)))
        hf.load_state_dict(_to_gpt2_names(state))
        return hf.to(device=self.device, dtype=self.wte.weight.dtype).train(self.training)

    def save(self, directory: str | Path, tokenizer=None) -> None:
        """Write config.json and model.safetensors, and the tokenizer's own files if one is given.

        A GPT-2-shaped model is written as transformers writes it, so that AutoModelForCausalLM opens it too. One with
        muP is not: transformers would leave the factor of its logits out, and trained on it must keep its weights.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.contiguous() for name, tensor in self._plain_state().items()}
        if self.config.tie_word_embeddings:
            del state["lm_head.weight"]  # the same matrix as wte.weight: stored once
        if self.config.is_gpt2_shaped:
            state = _to_gpt2_names(state)
            config = _gpt2_config(self.config) | {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
        else:
            config = asdict(self.config) | {"model_type": "gptcourse"}
        save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
        text = json.dumps(config | {"dtype": "float32"}, indent=2, sort_keys=True)
        (directory / "config.json").write_text(text + "\n", encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save(directory)

    @classmethod
    def load(cls, directory: str | Path) -> GPT:
        """Read a model that `save`, or transformers' save_pretrained of a GPT-2, has written; in float32, for use.

        The model is in evaluation mode (no dropout), as from_pretrained gives it. Half-precision files are widened.

        Raises ValueError if a file is missing or the model is of another kind.
        """
        directory = Path(directory)
        for name in ("config.json", "model.safetensors"):
            if not (directory / name).is_file():
                raise ValueError(f"{directory} holds no {name}: give a directory that GPT.save has written.")
        settings = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        state = load_file(directory / "model.safetensors")
        if settings.get("model_type") == "gpt2":
            config, state = _config_from_gpt2(settings), _from_gpt2_names(state)
        elif settings.get("model_type") == "gptcourse":
            config = GPTConfig(**{f.name: settings[f.name] for f in fields(GPTConfig) if f.name in settings})
        else:
            raise ValueError(f"{directory} holds a {settings.get('model_type')!r} model: use load_pretrained for it.")
        model = cls(config)
        if config.tie_word_embeddings:
            state["lm_head.weight"] = state["wte.weight"]
        model.load_state_dict(state)
        return model.eval()

    def restore(self, directory: str | Path) -> None:
        """Take over the weights that `save` has written from a model of this shape."""
        with torch.random.fork_rng(devices=[]):  # a GPT is born random: keep the caller's random numbers out of it
            self.load_state_dict(type(self).load(directory).state_dict())

    def _plain_state(self) -> dict[str, Tensor]:
        """Return the weights by name. Raises ValueError where LoRA has put layers in that no file format knows."""
        state = self.state_dict()
        if any(name.endswith("lora_A") for name in state):
            raise ValueError("This model has LoRA layers: call merge_lora(model) first, which keeps its logits.")
        return state


def _gpt2_config(config: GPTConfig) -> dict:
    """Return a GPTConfig's fields under the names of transformers' GPT2Config."""
    shared = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "activation_function")
    shared += ("layer_norm_epsilon", "initializer_range", "tie_word_embeddings")
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout)
    # No token of our tokenizers has GPT-2's default number for begin and end of text.
    return {name: getattr(config, name) for name in shared} | dropout | {"bos_token_id": None, "eos_token_id": None}


def _config_from_gpt2(settings: dict) -> GPTConfig:
    """Return the GPTConfig of a transformers GPT2Config, given as a dict; ValueError for what GPT cannot do."""
    default = GPTConfig(1, 1, 1, 1, 1)
    expected = {
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
        "activation_function": "gelu_new",
        "model_type": "gpt2",
    }
    for name, value in expected.items():
        if settings.get(name, value) != value:
            raise ValueError(f"This model has {name} = {settings[name]!r}; GPT can only take GPT-2's {value!r}.")
    if settings.get("n_inner") not in (None, 4 * settings["n_embd"]):
        raise ValueError(f"This model has n_inner = {settings['n_inner']}; GPT's MLP is 4 n_embd wide.")
    shape = {name: settings[name] for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")}
    other = ("layer_norm_epsilon", "initializer_range", "tie_word_embeddings")
    kept = {name: settings.get(name, getattr(default, name)) for name in other}
    return replace(default, **shape, **kept, dropout=settings.get("resid_pdrop", 0.1))


def _to_gpt2_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename and transpose our parameters into transformers' GPT-2 layout."""
    renamed = {}
    for name, tensor in state.items():
        tensor = tensor.t().contiguous() if name.endswith(TRANSPOSED) else tensor
        renamed[name if name.startswith("lm_head") else f"transformer.{name}"] = tensor
    return renamed


def _from_gpt2_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename and transpose transformers' GPT-2 parameters into ours; leave out the masks that old files hold."""
    renamed = {}
    for name, tensor in state.items():
        if not name.endswith((".attn.bias", ".attn.masked_bias")):
            renamed[name.removeprefix("transformer.")] = tensor.t() if name.endswith(TRANSPOSED) else tensor
    return renamed
