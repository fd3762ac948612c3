"""The learning rate of each step and each weight, and which weights decay.

Sources: "Language Models are Few-Shot Learners" (Brown et al. 2020, appendix B: linear warm-up, cosine down to
a tenth, weight decay 0.1); "Decoupled Weight Decay Regularization" (Loshchilov and Hutter 2019, AdamW);
"MiniCPM" (Hu et al. 2024, section 4: warm-up, stable, decay); "Tensor Programs V" (Yang et al. 2022, muP).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from gptcourse.model import GPT
    from gptcourse.training import TrainingConfig

SCHEDULES = ("cosine", "linear", "constant", "warmup_stable_decay")


def learning_rate_at(step: int, config: TrainingConfig) -> float:
    """Return the learning rate of one step, counted from 0.

    The rate climbs in a straight line for `warmup_steps` steps, so that step `warmup_steps` is the first with
    the full rate and no step is wasted on a rate of zero. Then it falls to `min_lr_ratio * learning_rate` and
    stays there. "cosine" and "linear" fall over `decay_steps` (None: until the end of the run);
    "warmup_stable_decay" keeps the full rate, then falls in a straight line over the last `decay_steps` (None:
    the last tenth). GPT-3 falls along a cosine to 10 % (Brown et al. 2020, appendix B).
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

    A matrix is any parameter with two or more dimensions. The embeddings decay as well: with tied embeddings
    the token table *is* the read-out matrix, and one rule for all shapes is easier to remember. Biases and the
    gains of the norms have one dimension and do not decay. Frozen parameters are left out.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trainable if parameter.ndim >= 2]
    others = [parameter for parameter in trainable if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def mup_groups(model: GPT, weight_decay: float) -> list[dict]:
    """Return AdamW's groups under muP, which is to keep the best learning rate of the base width at every width.

    AdamW changes each entry of a matrix by about the rate, at any width. In a sum over more inputs these changes add
    up to more, so a wider matrix moves its output further. muP undoes that (Yang et al. 2022, table 8). Let m be
    n_embd / mup_base_width: 1 at the base width, where nothing changes. Hidden matrices, the only ones that grow on
    both sides, learn at rate / m; GPT starts them with a variance of 1 / m and divides the logits by m. All else
    (embeddings, read-out, biases, gains) keeps its rate and its start. Table 3 divides the rate and the start of the
    read-out instead of the logits: the same training with two exceptions more.

    `train` multiplies the rate of each step by a group's `lr_factor`. AdamW takes the share rate · weight_decay of a
    matrix away in each step. The share must not fall with the width, or the best rate moves after all (Wang and
    Aitchison 2024, "How to set AdamW's weight decay ..."), so hidden matrices decay with m · weight_decay.

    Raises ValueError for a model without mup_base_width.
    """
    if model.config.mup_base_width is None:
        raise ValueError("This model has no base width: give its GPTConfig a mup_base_width, or use decay_groups.")
    multiplier = model.config.width_multiplier
    hidden = {parameter: None for parameter in model.h.parameters() if parameter.requires_grad and parameter.ndim >= 2}
    groups = [{"params": list(hidden), "weight_decay": multiplier * weight_decay, "lr_factor": 1 / multiplier}]
    for group in decay_groups(model, weight_decay):
        rest = [parameter for parameter in group["params"] if parameter not in hidden]
        groups.append(group | {"params": rest, "lr_factor": 1.0})
    return [group for group in groups if group["params"]]
