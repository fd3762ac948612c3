"""What a model costs, from its shape alone, and what a larger one buys, from runs of smaller ones.

Sources: Kaplan et al. (2020), "Scaling Laws for Neural Language Models", section 2.1; Chowdhery et al. (2022), PaLM,
appendix B; Korthikanti et al. (2022), "Reducing Activation Recomputation in Large Transformer Models", sections 4 and
5; Rajbhandari et al. (2020), "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", section 3;
Hoffmann et al. (2022), "Training Compute-Optimal Large Language Models" (Chinchilla), section 3.3 and appendix D.3.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from gptcourse.model import GPTConfig

HUBER_DELTA = 1e-3  # in log loss: beyond it a run counts as an outlier (Hoffmann et al., appendix D.3)


def flops_per_token(config: GPTConfig) -> int:
    """Return the floating-point operations that training on one token takes, forward and backward.

    Six per weight that is multiplied (two forward, four backward), and 12 · n_layer · n_embd · n_positions for
    attention's two products over a full window (PaLM, appendix B). Look-ups, norms and softmax are not counted.
    """
    multiplied = config.n_layer * 12 * config.n_embd**2 + config.vocab_size * config.n_embd
    return 6 * multiplied + 12 * config.n_layer * config.n_embd * config.n_positions


def training_memory(config: GPTConfig, batch_size: int = 1, gradient_checkpointing: bool = False) -> dict[str, int]:
    """Estimate the bytes that training in float32 with AdamW holds, by what they are for.

    Weights, gradients and AdamW's two averages: 4, 4 and 8 bytes per parameter. Activations, at the end of the forward
    pass: for each token 16 vectors of n_embd numbers in each block and two outside them wait for the backward pass (the
    fused attention kernel keeps no weights), and three of vocab_size: logits, their log-softmax and their gradient.
    With `gradient_checkpointing` one vector waits for each block, and the 16 of one block are there at a time, when the
    logits are gone (Korthikanti et al. 2022, section 5).
    """
    blocks, logits = 16 * config.n_layer * config.n_embd, 3 * config.vocab_size
    if gradient_checkpointing:
        blocks = config.n_layer * config.n_embd
        logits = max(logits, 16 * config.n_embd)
    parameters = config.num_parameters
    return {
        "weights": 4 * parameters,
        "gradients": 4 * parameters,
        "optimizer": 8 * parameters,
        "activations": 4 * batch_size * config.n_positions * (blocks + 2 * config.n_embd + logits),
    }


def peak_memory(config: GPTConfig, batch_size: int = 1, gradient_checkpointing: bool = False) -> int:
    """Estimate the most bytes that a training step holds at one time, out of `training_memory`.

    The backward pass lets activations go while it makes gradients, so the larger of the two counts. Checkpointed, the
    last block to be computed again meets nearly all gradients: there both count.
    """
    memory = training_memory(config, batch_size, gradient_checkpointing)
    both = memory["gradients"], memory["activations"]
    return memory["weights"] + memory["optimizer"] + (sum(both) if gradient_checkpointing else max(both))


SHARDED = {  # what each way of training on several devices divides among them
    "DDP": (),
    "ZeRO-1": ("optimizer",),
    "ZeRO-2": ("optimizer", "gradients"),
    "FSDP": ("optimizer", "gradients", "weights"),
    "tensor parallel": ("optimizer", "gradients", "weights", "activations"),
}


def device_memory(
    config: GPTConfig,
    batch_size: int = 1,
    n_devices: int = 1,
    strategy: str = "FSDP",
    gradient_checkpointing: bool = True,
) -> dict[str, float]:
    """Estimate the bytes on each of several devices in mixed precision, by what they are for.

    Per parameter 2 bytes for the weight in bfloat16, 2 for its gradient and 12 for AdamW: both averages and the weight
    itself in float32 (Rajbhandari et al. 2020, ZeRO, section 3.1). Activations have half the bytes of float32, and
    `batch_size` sequences are on each device. DDP keeps all of it on each of them; ZeRO and FSDP divide what SHARDED
    names. Tensor parallelism divides each matrix and, with sequence parallelism, the activations (Korthikanti et al.,
    section 4.2.2): there all devices work on the same sequences. Buffers for messages come on top.

    Raises ValueError for an unknown strategy and fewer than one device.
    """
    if strategy not in SHARDED:
        raise ValueError(f"strategy must be one of {', '.join(SHARDED)}, not {strategy!r}.")
    if n_devices < 1:
        raise ValueError(f"n_devices is {n_devices}, but a model needs one device or more.")
    parameters = config.num_parameters
    whole = {
        "weights": 2 * parameters,
        "gradients": 2 * parameters,
        "optimizer": 12 * parameters,
        "activations": training_memory(config, batch_size, gradient_checkpointing)["activations"] / 2,
    }
    return {name: size / n_devices if name in SHARDED[strategy] else size for name, size in whole.items()}


# ---- What a larger model buys


@dataclass(frozen=True)
class ScalingLaw:
    """The loss, in nats per token, of a model of N parameters trained on D tokens: E + A / N^alpha + B / D^beta.

    E is what no model gets rid of, the second term what the model is too small for, the third what it has not read.
    """

    E: float
    A: float
    alpha: float
    B: float
    beta: float

    def loss(self, n_parameters: float, n_tokens: float) -> float:
        """Return the loss that the law predicts."""
        return self.E + self.A / n_parameters**self.alpha + self.B / n_tokens**self.beta

    def compute_optimal(self, flops: float) -> tuple[float, float]:
        """Return the parameters and tokens with the lowest loss among all that cost `flops` = 6 · N · D.

        Where the derivatives of both terms along the budget cancel out (Hoffmann et al. 2022, equation 4).
        """
        scale = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        n_parameters = scale * (flops / 6) ** (self.beta / (self.alpha + self.beta))
        return n_parameters, flops / 6 / n_parameters


def fit_scaling_law(n_parameters: Sequence[float], n_tokens: Sequence[float], losses: Sequence[float]) -> ScalingLaw:
    """Fit the law to runs as Chinchilla's third approach does: the Huber loss of the log loss, from many starts.

    Raises ValueError for fewer than five runs, as the law has five numbers, and for values that are not above 0.
    """
    runs = torch.tensor([list(n_parameters), list(n_tokens), list(losses)], dtype=torch.float64)
    if runs.shape[1] < 5:
        raise ValueError(f"The law has five numbers, but there are {runs.shape[1]} runs: give five or more.")
    if not (runs > 0).all() or not runs.isfinite().all():
        raise ValueError("Parameters, tokens and losses must be finite and above 0.")
    starts = itertools.product((0.0,), (2.0, 8.0), (0.3, 0.7), (2.0, 8.0), (0.3, 0.7))
    return _best(runs, starts)


def _best(runs, starts):
    """Return the law with the lowest objective among those that L-BFGS finds from each start."""
    e, a, alpha, b, beta = min((_fit(*runs.log(), start) for start in starts), key=lambda fit: fit[0])[1]
    return ScalingLaw(math.exp(e), math.exp(a), alpha, math.exp(b), beta)


def _fit(log_n, log_d, log_loss, start):
    """Return the lowest objective that L-BFGS reaches from a start, and where: E, A and B as logarithms."""
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


def bootstrap_laws(
    n_parameters: Sequence[float], n_tokens: Sequence[float], losses: Sequence[float], n: int = 20, seed: int = 0
) -> list[ScalingLaw]:
    """Return n laws, each fitted to the runs drawn again with replacement: how far they differ is how sure the fit is.

    Raises ValueError like `fit_scaling_law`.
    """
    law = fit_scaling_law(n_parameters, n_tokens, losses)
    start = (math.log(law.E), math.log(law.A), law.alpha, math.log(law.B), law.beta)
    runs, rng = torch.tensor([n_parameters, n_tokens, losses], dtype=torch.float64), np.random.default_rng(seed)
    laws = []
    while len(laws) < n:
        drawn = runs[:, rng.integers(runs.shape[1], size=runs.shape[1])]
        if min(len(values.unique()) for values in drawn[:2]) > 1:  # of one size alone nothing follows about sizes
            laws.append(_best(drawn, [start]))
    return laws
