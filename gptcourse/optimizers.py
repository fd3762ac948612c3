"""The learning rate of each step and each weight, which weights decay, and Muon beside AdamW.

Sources: "Language Models are Few-Shot Learners" (Brown et al. 2020, appendix B: linear warm-up, cosine down to
a tenth, weight decay 0.1); "Decoupled Weight Decay Regularization" (Loshchilov and Hutter 2019, AdamW);
"MiniCPM" (Hu et al. 2024, section 4: warm-up, stable, decay); "Tensor Programs V" (Yang et al. 2022, muP);
"Muon: An optimizer for hidden layers in neural networks" (Jordan et al. 2024); "Muon is Scalable for LLM Training" (Liu
et al. 2025, section 2.2); "A Spectral Condition for Feature Learning" (Yang et al. 2023).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gptcourse.checks import COUNT_OR_ZERO, An, Shape, checked
from gptcourse.config import SCHEDULES, TrainingConfig  # noqa: F401 - the notebooks look for SCHEDULES here
from gptcourse.distributed import own_part, whole
from gptcourse.model import GPT

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan et al.: brings singular values into about 0.7 to 1.2, and fast


@checked(step=COUNT_OR_ZERO, config=An(TrainingConfig))
def learning_rate_at(step: int, config: TrainingConfig) -> float:
    """Return the learning rate of one step, counted from 0.

    It climbs in a straight line for `warmup_steps` steps, the step after which is the first with the full rate, then
    falls to `min_lr_ratio * learning_rate` and stays there: "cosine" and "linear" over `decay_steps` (None: until the
    end), "warmup_stable_decay" in a straight line over the last `decay_steps` (None: the last tenth). GPT-3 falls along
    a cosine to 10 % (Brown et al. 2020, appendix B).
    """
    peak = config.learning_rate
    if step < config.warmup_steps:
        return peak * (step + 1) / (config.warmup_steps + 1)
    if config.lr_scheduler_type == "constant":
        return peak
    begin, length = _decay(config)
    progress = min(max((step - begin) / length, 0.0), 1.0)
    cosine = config.lr_scheduler_type == "cosine"
    height = (1 + math.cos(math.pi * progress)) / 2 if cosine else 1 - progress
    return peak * (config.min_lr_ratio + (1 - config.min_lr_ratio) * height)


def _decay(config: TrainingConfig) -> tuple[int, int]:
    """Return the step at which the decay begins, and how many steps it lasts."""
    if config.lr_scheduler_type == "warmup_stable_decay":
        length = config.decay_steps or max(config.steps // 10, 1)
        return config.steps - length, length
    return config.warmup_steps, config.decay_steps or config.steps - config.warmup_steps


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Return AdamW's two parameter groups: matrices, which decay, and all the others, which do not.

    A matrix is any parameter with two or more dimensions; the embeddings are, and with tied ones the token table *is*
    the LM head. Biases and norm scales have one dimension and do not decay. Frozen parameters are left out.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trainable if parameter.ndim >= 2]
    others = [parameter for parameter in trainable if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def mup_groups(model: GPT, weight_decay: float) -> list[dict]:
    """Return AdamW's parameter groups under muP, which keeps the best learning rate of the base width at every width.

    Let m = n_embd / mup_base_width. Hidden matrices have the rate divided by m and the weight decay multiplied by m;
    all other parameters have both unchanged (Yang et al. 2022, table 8: GPT also initialises hidden matrices with
    variance ∝ 1 / m and divides the logits by m). With the decay multiplied, rate · weight_decay, the share of a matrix
    that AdamW takes away per step, is the same at every width (Wang and Aitchison 2024, "How to set AdamW's weight
    decay as you scale model and dataset size"). `train` multiplies the rate of each step by a group's `lr_factor`.

    Raises ValueError for a model without mup_base_width.
    """
    if model.config.mup_base_width is None:
        raise ValueError("This model has no base width: give its GPTConfig a mup_base_width, or use decay_groups.")
    m = model.config.width_multiplier
    hidden = {"params": list(_hidden(model).values()), "weight_decay": m * weight_decay, "lr_factor": 1 / m}
    return [{"lr_factor": 1.0} | group for group in _and_others(model, weight_decay, hidden)]


def muon_groups(model: GPT, weight_decay: float, momentum: float = 0.95, ns_steps: int = 5) -> list[dict]:
    """Return Muon's groups: the matrices of the blocks learn by Muon, all else by AdamW (Jordan et al. 2024).

    `c_attn` is three matrices in one parameter, for queries, keys and values: each is orthogonalised by itself, as
    Jordan et al. advise. The token and position tables are matrices too, but each of their rows is a vector of its own.

    Under muP, m being n_embd / mup_base_width, the rate is divided by √m and the weight decay multiplied by √m: of two
    steps with equally large entries, one with all directions equally strong changes the outputs by ∝ √m, and one with a
    few strong directions, as AdamW's, by ∝ m (Yang et al. 2023, condition 1).
    """
    root, hidden = math.sqrt(model.config.width_multiplier), _hidden(model)
    muon = {"weight_decay": root * weight_decay, "lr_factor": 1 / root, "momentum": momentum, "ns_steps": ns_steps}
    fused = {name: parameter for name, parameter in hidden.items() if name.endswith("c_attn.weight")}
    whole = [parameter for name, parameter in hidden.items() if name not in fused]
    groups = [{"params": list(fused.values()), "parts": 3} | muon, {"params": whole, "parts": 1} | muon]
    return _and_others(model, weight_decay, *groups)


def _hidden(model: GPT) -> dict[str, nn.Parameter]:
    """Return the trainable matrices of the blocks, by name."""
    return {name: p for name, p in model.h.named_parameters() if p.requires_grad and p.ndim >= 2}


def _and_others(model: GPT, weight_decay: float, *groups: dict) -> list[dict]:
    """Return the groups, and after them `decay_groups` of the parameters in none of them; no empty ones."""
    taken = {parameter for group in groups for parameter in group["params"]}
    for group in decay_groups(model, weight_decay):
        groups += (group | {"params": [parameter for parameter in group["params"] if parameter not in taken]},)
    return [group for group in groups if group["params"]]


@checked(matrix=Shape("m n"), steps=COUNT_OR_ZERO)
def newton_schulz(matrix: Tensor, steps: int = 5) -> Tensor:
    """Return U Vᵀ of the matrix U S Vᵀ, roughly: every direction in which it changes something is as strong as any.

    A Newton-Schulz iteration, which multiplies and adds only: x ← a x + b (x xᵀ) x + c (x xᵀ)² x. It works on the
    singular values alone, and brings all that are not tiny near 1 (Jordan et al. 2024).
    """
    a, b, c = NEWTON_SCHULZ
    x = matrix / matrix.norm().clamp(min=1e-7)  # now no singular value is above 1
    x = x.mT if matrix.shape[0] > matrix.shape[1] else x  # the smaller x xᵀ costs less
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if matrix.shape[0] > matrix.shape[1] else x


class Muon(torch.optim.AdamW):
    """AdamW, but the groups with a `momentum` take orthogonalised steps (Jordan et al. 2024).

    AdamW looks at each weight by itself. Muon looks at a matrix as a map: it averages the gradients (Nesterov's
    momentum) and makes all directions of the average equally strong, also the rare ones. A step is scaled to the size
    that AdamW's steps have, so that both take the same rate (Liu et al. 2025, section 2.2). With strategy "fsdp" the
    averages are divided among the processes, but each gathers one whole matrix after the other and computes its update.
    """

    @torch.no_grad()
    def step(self):
        """Change the weights."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if "momentum" not in group]
        try:
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            if "momentum" in group:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._step_of(parameter, group)

    def _step_of(self, parameter, group):
        state, gradient, momentum = self.state[parameter], parameter.grad, group["momentum"]
        if not state:
            state["step"], state["momentum_buffer"] = torch.zeros(()), torch.zeros_like(parameter)
        state["step"] += 1  # AdamW looks for it when a state is loaded
        average = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        # Rows that lie in several processes are gathered: they cannot be made orthogonal without the others.
        parts = whole(gradient.lerp(average, momentum)).chunk(group["parts"])
        update = own_part(torch.cat([newton_schulz(part, group["ns_steps"]) for part in parts]), parameter)
        size = 0.2 * math.sqrt(max(parts[0].shape))  # an orthogonal matrix has entries of about 1 / √(longer side)
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * size)


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """Return the optimizer of a run. Raises ValueError for Muon on a model that has no blocks."""
    has_mup = getattr(getattr(model, "config", None), "mup_base_width", None) is not None
    if config.optim == "muon" and not hasattr(model, "h"):
        raise ValueError('optim "muon" takes a GPT of this course: choose "adamw" for other models.')
    if config.optim == "muon":
        kind, groups = Muon, muon_groups(model, config.weight_decay, config.adam_beta1, config.ns_steps)
    else:
        kind, groups = torch.optim.AdamW, (mup_groups if has_mup else decay_groups)(model, config.weight_decay)
    # Fused: one pass over the weights in place of ten, five times as fast on a CPU.
    betas = (config.adam_beta1, config.adam_beta2)
    return kind(groups, lr=config.learning_rate, betas=betas, eps=config.adam_epsilon, fused=True)
