"""What a model costs, from its shape alone, and what a larger one buys, from runs of smaller ones.

Sources: Kaplan et al. (2020), "Scaling Laws for Neural Language Models", section 2.1; Chowdhery et al. (2022), PaLM,
appendix B; Korthikanti et al. (2022), "Reducing Activation Recomputation in Large Transformer Models"; Rajbhandari et
al. (2020), "ZeRO"; Hoffmann et al. (2022), "Training Compute-Optimal Large Language Models", section 3.3, appendix D.3;
Besiroglu et al. (2024), "Chinchilla Scaling: A Replication Attempt"; Gneiting and Raftery (2007), "Strictly Proper
Scoring Rules, Prediction, and Estimation", equation 43.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
import torch
from torch.nn import functional as F

from gptcourse.checks import (
    COUNT,
    FINITE,
    FLAG,
    INSIDE,
    POSITIVE,
    SEED,
    An,
    Choice,
    ListOf,
    check_lengths,
    check_numbers,
    checked,
)
from gptcourse.config import GPTConfig

PARTS = ("weights", "gradients", "optimizer", "activations")  # of the memory that training holds
STARTS = [*itertools.product((0.0,), (2.0, 8.0), (0.3, 0.7), (2.0, 8.0), (0.3, 0.7))]  # of log E, log A, alpha, …
HUBER_DELTA = 1e-3  # in log loss: beyond it a run counts as an outlier (Hoffmann et al., appendix D.3)


@checked(config=An(GPTConfig))
def flops_per_token(config: GPTConfig) -> int:
    """Return the floating-point operations that training on one token takes, forward and backward.

    Six per weight that is multiplied (two forward, four backward), and 12 · n_layer · n_embd · n_positions for
    attention's two products over a full window (PaLM, appendix B). Look-ups, norms and softmax are not counted.
    """
    multiplied = config.n_layer * 12 * config.n_embd**2 + config.vocab_size * config.n_embd
    return 6 * multiplied + 12 * config.n_layer * config.n_embd * config.n_positions


@checked(config=An(GPTConfig), batch_size=COUNT, gradient_checkpointing=FLAG)
def training_memory(config: GPTConfig, batch_size: int = 1, gradient_checkpointing: bool = False) -> dict[str, int]:
    """Estimate the bytes that training in float32 with AdamW holds, by what they are for.

    Weights, gradients and AdamW's moments take 4, 4 and 8 bytes per parameter; activations, at the end of the forward
    pass, 4 bytes for each number of each token: 16 vectors of n_embd in each block and two outside (the fused attention
    kernel keeps no weights), three of vocab_size (logits, their log-softmax, their gradient). With
    `gradient_checkpointing` one vector per block, and the 16 of one block when the logits are gone (Korthikanti et al.
    2022, section 5). Raises ValueError.
    """
    blocks, logits = 16 * config.n_layer * config.n_embd, 3 * config.vocab_size
    if gradient_checkpointing:
        blocks, logits = config.n_layer * config.n_embd, max(logits, 16 * config.n_embd)
    parameters, per_token = config.num_parameters, blocks + 2 * config.n_embd + logits
    activations = 4 * batch_size * config.n_positions * per_token
    return dict(zip(PARTS, (4 * parameters, 4 * parameters, 8 * parameters, activations), strict=True))


@checked(config=An(GPTConfig))
def peak_memory(config: GPTConfig, batch_size: int = 1, gradient_checkpointing: bool = False) -> int:
    """Estimate the most bytes that a training step holds at one time, out of `training_memory`.

    The backward pass frees activations while it makes gradients; checkpointed, the last block meets all gradients.
    """
    memory = training_memory(config, batch_size, gradient_checkpointing)
    both = memory["gradients"], memory["activations"]
    return memory["weights"] + memory["optimizer"] + (sum(both) if gradient_checkpointing else max(both))


SHARDED = {  # what each way of training on several devices divides among them
    "DDP": (),
    "ZeRO-1": ("optimizer",),
    "ZeRO-2": ("optimizer", "gradients"),
    "FSDP": ("optimizer", "gradients", "weights"),
    "tensor parallel": PARTS,
}


@checked(config=An(GPTConfig), n_devices=COUNT, strategy=Choice(tuple(SHARDED)))
def device_memory(
    config: GPTConfig,
    batch_size: int = 1,
    n_devices: int = 1,
    strategy: str = "FSDP",
    gradient_checkpointing: bool = True,
) -> dict[str, float]:
    """Estimate the bytes on each of several devices in mixed precision, by what they are for.

    Per parameter 2 bytes for the weight in bfloat16, 2 for its gradient, 12 for AdamW's moments and the weight in
    float32 (Rajbhandari et al. 2020, section 3.1); activations in 2 bytes, for `batch_size` sequences on each device.
    Each strategy divides what SHARDED names; with tensor parallelism all devices work on the same sequences
    (Korthikanti et al., section 4.2.2). Buffers for messages come on top. Raises ValueError.
    """
    parameters = config.num_parameters
    activations = training_memory(config, batch_size, gradient_checkpointing)["activations"] / 2
    whole = zip(PARTS, (2 * parameters, 2 * parameters, 12 * parameters, activations), strict=True)
    return {name: size / n_devices if name in SHARDED[strategy] else size for name, size in whole}


# ---- What a larger model buys


@dataclass(frozen=True)
class ScalingLaw:
    """The loss, in nats per token, of a model of N parameters trained on D tokens: E + A / N^alpha + B / D^beta."""

    E: float
    A: float
    alpha: float
    B: float
    beta: float

    def __post_init__(self):
        for name, value in vars(self).items():
            object.__setattr__(self, name, FINITE(name, value))

    @checked(n_parameters=POSITIVE, n_tokens=POSITIVE)
    def loss(self, n_parameters: float, n_tokens: float) -> float:
        """Return the loss that the law predicts. Raises ValueError for numbers that are not above 0."""
        return self.E + self.A / n_parameters**self.alpha + self.B / n_tokens**self.beta

    @checked(flops=POSITIVE)
    def compute_optimal(self, flops: float) -> tuple[float, float]:
        """Return the parameters and tokens with the lowest loss for `flops` = 6 N D (Hoffmann et al., equation 4)."""
        check_numbers("A, alpha, B and beta", astuple(self)[1:], low=0, kind="positive")
        scale = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        n_parameters = scale * (flops / 6) ** (self.beta / (self.alpha + self.beta))
        return n_parameters, flops / 6 / n_parameters


# What Hoffmann et al. print (equation 10), rounded; and the same runs fitted again (Besiroglu et al., their fit).
CHINCHILLA = ScalingLaw(E=1.69, A=406.4, alpha=0.34, B=410.7, beta=0.28)
CHINCHILLA_REFIT = ScalingLaw(E=1.8172, A=482.01, alpha=0.3478, B=2085.43, beta=0.3658)


@checked()
def extend(x0: float, loss0: float, x1: float, loss1: float, x: float) -> float:
    """Return the loss at x on the line through two points on logarithmic axes. Raises ValueError."""
    x0, loss0, x1, loss1, x = check_numbers("points of the line", (x0, loss0, x1, loss1, x), 1e-150, 1e150).tolist()
    if x0 == x1:
        raise ValueError(f"Both points of the line stand at {x0:g}: it has no slope.")
    return loss1 * (x / x1) ** (math.log(loss1 / loss0) / math.log(x1 / x0))


@checked(runs=ListOf(list | tuple, "runs"))
def ruler(runs: Sequence[tuple[float, float, float]], n_parameters: float, n_tokens: float) -> float:
    """Return the loss that the last slopes among runs (parameters, tokens, loss) lead to: the line to beat for a law.

    From the longest run of the largest size, along the lines through the next smaller size and the next shorter run.
    Raises ValueError where there are not two sizes with that length, and two lengths of that size.
    """
    rows = [check_numbers("numbers of a run", run, low=0, kind="positive").tolist() for run in runs]
    if any(len(row) != 3 for row in rows):
        raise ValueError("A run is three numbers: its parameters, tokens and loss.")
    loss = {(n, d): value for n, d, value in rows}
    largest = max((n for n, _ in loss), default=0)
    longest, *shorter = sorted((d for n, d in loss if n == largest), reverse=True) or [0]
    smaller = max((n for n, d in loss if n < largest and d == longest), default=None)
    if smaller is None or not shorter:
        raise ValueError("A ruler needs the largest size at two lengths, and the next smaller size at the longer one.")
    top = loss[largest, longest]
    along_n = extend(smaller, loss[smaller, longest], largest, top, n_parameters)
    along_d = extend(shorter[0], loss[largest, shorter[0]], longest, top, n_tokens)
    return along_n * along_d / top


@checked(low=FINITE, high=FINITE, value=FINITE, level=INSIDE)
def interval_score(low: float, high: float, value: float, level: float = 0.9) -> float:
    """Return the score of an interval that is to hold a value with probability `level`: the lower, the better.

    Its width, and 2 / (1 - level) for each unit by which it missed (Gneiting and Raftery, equation 43): nobody gains by
    claiming more certainty, or less, than there is. Raises ValueError.
    """
    if low > high:
        raise ValueError(f"The interval goes from {low:g} to {high:g}: give the low end first.")
    return high - low + 2 / (1 - level) * (max(low - value, 0.0) + max(value - high, 0.0))


def _checked_runs(n_parameters, n_tokens, losses):
    """Return the runs as a tensor (3, n), if they can fix a law."""
    check_lengths(parameters=n_parameters, tokens=n_tokens, losses=losses)
    values = check_numbers("parameters, tokens and losses", [*n_parameters, *n_tokens, *losses], low=0, kind="positive")
    runs = torch.from_numpy(values).view(3, -1)
    if len(losses) < 5:
        raise ValueError(f"The law has five numbers, but there are {len(losses)} runs: give five or more.")
    if not _fix_a_law(runs):
        raise ValueError("Two sizes, or two numbers of tokens, fix no curve: give runs of three or more of each.")
    return runs


def _fix_a_law(runs):
    """Return whether there are three sizes and three lengths: E + A / N^alpha has three numbers along each."""
    return all(len(row.unique()) >= 3 for row in runs[:2])


def fit_scaling_law(n_parameters: Sequence[float], n_tokens: Sequence[float], losses: Sequence[float]) -> ScalingLaw:
    """Fit the law to runs as Chinchilla's third approach does: the Huber loss of the log loss, from many starts.

    Raises ValueError for fewer than five runs, fewer than three sizes or numbers of tokens, lengths that differ, and
    values that are not above 0.
    """
    return _best(_checked_runs(n_parameters, n_tokens, losses), STARTS)


def _best(runs, starts):
    """Return the law of the lowest objective that L-BFGS finds from any of the starts."""
    e, a, alpha, b, beta = min((_fit(*runs.log(), start) for start in starts), key=lambda fit: fit[0])[1]
    return ScalingLaw(math.exp(e), math.exp(a), alpha, math.exp(b), beta)


def _fit(log_n, log_d, log_loss, start):
    """Return the objective that L-BFGS reaches from a start, and where."""
    x = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([x], max_iter=200, line_search_fn="strong_wolfe", tolerance_change=1e-12)

    def objective():
        """Return the sum over the runs, with its gradient in x."""
        optimizer.zero_grad()
        e, a, alpha, b, beta = x
        terms = torch.stack([a - alpha * log_n, b - beta * log_d, e.expand_as(log_n)])
        # Huber grows with the size of delta: divided by it, the steps have a size that L-BFGS can work with.
        loss = F.huber_loss(terms.logsumexp(0), log_loss, delta=HUBER_DELTA, reduction="sum") / HUBER_DELTA
        loss.backward()
        return loss

    optimizer.step(objective)
    lowest = objective().item()
    return (lowest if math.isfinite(lowest) else math.inf), x.tolist()


@checked(n=COUNT, seed=SEED)
def bootstrap_laws(
    n_parameters: Sequence[float], n_tokens: Sequence[float], losses: Sequence[float], n: int = 20, seed: int = 0
) -> list[ScalingLaw]:
    """Return n laws, each fitted to runs drawn with replacement: their spread is that of the fit. Raises ValueError."""
    runs, rng, laws = _checked_runs(n_parameters, n_tokens, losses), np.random.default_rng(seed), []
    law = _best(runs, STARTS)
    start = (math.log(law.E), math.log(law.A), law.alpha, math.log(law.B), law.beta)
    while len(laws) < n:
        drawn = runs[:, rng.integers(runs.shape[1], size=runs.shape[1])]
        if _fix_a_law(drawn):
            laws.append(_best(drawn, [start]))
    return laws
