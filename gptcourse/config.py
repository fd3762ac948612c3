"""What describes a model and a training run: GPTConfig, GPT-3's table of sizes, TrainingConfig.

Sources: Brown et al. (2020), GPT-3, table 2.1 and appendix B; Yang et al. (2022), "Tensor Programs V" (muP).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from gptcourse.checks import BELOW_ONE, COUNT, COUNT_OR_ZERO, POSITIVE, POSITIVE_OR_ZERO, SEED, SHARE, Choice, between

SCHEDULES = ("cosine", "linear", "constant", "warmup_stable_decay")
CHOICES = {
    "activation_function": ("gelu_new", "relu2"),
    "hidden_act": ("silu", "gelu_new"),
    "position_embedding": ("learned", "rotary"),
    "norm": ("layernorm", "rmsnorm"),
    "lr_scheduler_type": SCHEDULES,
    "optim": ("adamw", "muon"),
    "tie_word_embeddings": (True, False),
    "qk_norm": (True, False),
    "bias": (True, False),
    "bf16": (True, False),
    "gradient_checkpointing": (True, False),
    "loss_type": ("grpo", "dr_grpo"),
    "penalty": ("loss", "reward"),
}
NUMBERS = {
    **dict.fromkeys(("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "mup_base_width"), COUNT),
    **dict.fromkeys(("steps", "batch_size", "gradient_accumulation_steps", "ns_steps"), COUNT),
    **dict.fromkeys(("num_generations", "max_completion_length", "num_iterations"), COUNT),
    **dict.fromkeys(("max_position_embeddings", "hidden_size", "num_hidden_layers", "intermediate_size"), COUNT),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "head_dim", "sliding_window"), COUNT),
    "num_experts": COUNT_OR_ZERO,
    "num_nextn_predict_layers": between(0, 1),
    "num_experts_per_tok": COUNT,
    **dict.fromkeys(("rms_norm_eps", "rope_theta", "rope_factor"), POSITIVE),
    **dict.fromkeys(("router_aux_loss_coef", "mtp_coef"), POSITIVE_OR_ZERO),
    **dict.fromkeys(("warmup_steps", "batch_ramp_steps", "eval_steps", "save_steps"), COUNT_OR_ZERO),
    **dict.fromkeys(("layer_norm_epsilon", "initializer_range", "learning_rate", "adam_epsilon"), POSITIVE),
    **dict.fromkeys(("weight_decay", "z_loss", "epsilon", "beta"), POSITIVE_OR_ZERO),
    **dict.fromkeys(("dropout", "adam_beta1", "adam_beta2", "label_smoothing"), BELOW_ONE),
    **dict.fromkeys(("sequence_length", "decay_steps"), COUNT),
    "seed": SEED,
    "min_lr_ratio": SHARE,
    "max_grad_norm": POSITIVE._replace(fits=lambda x: x > 0, wanted="a number greater than 0, or math.inf"),
    "temperature": POSITIVE_OR_ZERO,
    "top_k": COUNT_OR_ZERO._replace(wanted="a whole number of 0 (off) or more"),
    **dict.fromkeys(("top_p", "typical_p"), SHARE._replace(wanted="a number from 0 to 1 (off)")),
    "min_p": SHARE._replace(wanted="a number from 0 (off) to 1"),
    "top_n_sigma": POSITIVE_OR_ZERO._replace(wanted="a finite number of 0 (off) or more"),
    **dict.fromkeys(("repetition_penalty", "min_steps", "critical_batch"), POSITIVE),
}
RULES = NUMBERS | {name: Choice(options) for name, options in CHOICES.items()}


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


def check_settings(settings: Any) -> None:
    """Check all fields of a frozen dataclass by RULES, and store numbers as plain ones. Raises ValueError."""
    for name, value in vars(settings).items():
        if value is None and getattr(type(settings), name, "required") is None:
            continue  # None is the default
        if name in RULES:
            object.__setattr__(settings, name, RULES[name](name, value))


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a model. The defaults are GPT-2's and GPT-3's choices, without dropout.

    Args:
        vocab_size: number of tokens in the vocabulary.
        n_positions: maximum sequence length (the context window), in tokens.
        n_embd: width of the residual stream. n_layer: number of blocks. n_head: attention heads per block.
        dropout: probability of dropout after embeddings, attention and MLP.
        activation_function: "gelu_new" (GPT-2) or "relu2" (squared ReLU; So et al., 2021).
        position_embedding: "learned" (one vector per position) or "rotary" (Su et al., 2021).
        norm: "layernorm" or "rmsnorm" (Zhang and Sennrich, 2019). qk_norm: normalise queries and keys.
        mup_base_width: the n_embd at which the learning rate was tuned: muP, see `optimizers.mup_groups`. None: the
            standard parametrisation. It needs an untied LM head, and one head size at every width: muP divides
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
        check_settings(self)
        if self.n_embd % self.n_head:
            raise ValueError(
                f"n_embd {self.n_embd} does not divide among n_head {self.n_head}: make it a multiple of n_head."
            )
        if self.position_embedding == "rotary" and self.head_size % 2:
            raise ValueError(f"For rotary positions, make n_embd / n_head even: the head size is {self.head_size}.")
        if self.mup_base_width is not None and self.mup_base_width % self.head_size:
            raise ValueError(
                f"mup_base_width {self.mup_base_width} is no multiple of the head size {self.head_size}: the head size "
                "stays that of the base width, so let n_head grow with n_embd."
            )
        if self.mup_base_width is not None and self.tie_word_embeddings:
            raise ValueError("muP scales the LM head alone: with mup_base_width, set tie_word_embeddings=False.")

    @property
    def head_size(self) -> int:
        """Size of each head, D = n_embd / n_head."""
        return self.n_embd // self.n_head

    @property
    def width_multiplier(self) -> float:
        """n_embd / mup_base_width; 1 in the standard parametrisation."""
        return self.n_embd / (self.mup_base_width or self.n_embd)

    @property
    def parameters_by_part(self) -> dict[str, int]:
        """Number of trainable parameters in embeddings (an untied LM head included), attention, MLP and norms."""
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
        """Number of trainable parameters."""
        return sum(self.parameters_by_part.values())

    @property
    def is_gpt2_shaped(self) -> bool:
        """Whether transformers' GPT2LMHeadModel computes the same from the same weights."""
        ours = (self.activation_function, self.position_embedding, self.norm, self.qk_norm, self.mup_base_width)
        return ours == ("gelu_new", "learned", "layernorm", False, None)

    @classmethod
    def gpt3(cls, name: str) -> GPTConfig:
        """Return one of GPT-3's eight shapes, "125M" to "175B": context 2,048 and GPT-2's 50,257 tokens.

        Two lines of table 2.1 do not divide as printed: "1.3B" has 24 heads of 128 for a width of 2,048 (it takes 16
        heads), and "13B" a width of 5,140 for 40 heads of 128 (it takes 5,120). Here the heads stay d_head wide.
        """
        row = GPT3_TABLE[Choice(tuple(GPT3_TABLE))("name", name)]
        n_head = row.d_model // row.d_head
        return cls(50257, n_positions=2048, n_embd=n_head * row.d_head, n_layer=row.n_layers, n_head=n_head)


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a run; the defaults are GPT-3's where it has one (Brown et al. 2020, appendix B).

    `batch_size` is the number of sequences per forward pass; a step makes `gradient_accumulation_steps` of them. It
    grows to that over the first `batch_ramp_steps`, see `data.batch_size_at`. `sequence_length=None` means the model's
    `n_positions`. `eval_steps=0` evaluates, and `save_steps=0` saves, only at the end. `lr_scheduler_type`,
    `warmup_steps`, `decay_steps` and `min_lr_ratio` are explained at `learning_rate_at`, `label_smoothing` and `z_loss`
    at `objective`; `max_grad_norm=math.inf` switches clipping off. `optim` is "adamw" or "muon", see
    `optimizers.Muon`: `adam_beta1` is Muon's momentum too, `ns_steps` its Newton-Schulz steps. `bf16` multiplies
    matrices in bfloat16 (Micikevicius et al. 2018, "Mixed Precision Training"; Kalamkar et al. 2019); weights, moments
    and evaluation stay in float32. `gradient_checkpointing` stores only the input of each block for the backward pass,
    and computes the rest again (Chen et al. 2016): less memory, more arithmetic. Raises ValueError.
    """

    steps: int
    batch_size: int
    learning_rate: float
    seed: int = 0
    sequence_length: int | None = None
    gradient_accumulation_steps: int = 1
    batch_ramp_steps: int = 0
    lr_scheduler_type: str = "cosine"
    warmup_steps: int = 0
    decay_steps: int | None = None
    min_lr_ratio: float = 0.1
    weight_decay: float = 0.1
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    optim: str = "adamw"
    ns_steps: int = 5
    bf16: bool = False
    gradient_checkpointing: bool = False
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    eval_steps: int = 0
    save_steps: int = 0

    def __post_init__(self):
        check_settings(self)
        own = self.steps // 10 if self.lr_scheduler_type == "warmup_stable_decay" else 1  # see `learning_rate_at`
        if self.warmup_steps + (self.decay_steps or max(own, 1)) > self.steps:
            raise ValueError(f"warmup_steps and decay_steps do not fit into the {self.steps} steps of the run.")
        if self.batch_ramp_steps >= self.steps:
            raise ValueError(
                f"batch_ramp_steps is {self.batch_ramp_steps}: a run of {self.steps} steps has no full batch."
            )
