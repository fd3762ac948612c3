"""The learning rate of each step, and which weights decay.

Sources: "Language Models are Few-Shot Learners" (Brown et al. 2020, appendix B: linear warm-up, cosine down to
a tenth, weight decay 0.1); "Decoupled Weight Decay Regularization" (Loshchilov and Hutter 2019, AdamW);
"MiniCPM" (Hu et al. 2024, section 4: warm-up, stable, decay).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
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
