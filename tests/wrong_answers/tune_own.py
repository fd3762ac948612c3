"""Wrong answers to the exercises of notebook 06."""

import numpy as np
import torch
import torch.nn.functional as F

from wrong_answers import wrong


@wrong("tune_own.clinic", "too good to be true")
def diagnosed_by_the_curves_alone(training, validation, fresh, without_future):
    best = min(validation)
    if validation[-1] > best + 0.3:
        return "overfitting"
    if training[-1] < validation[-1] - 0.3:
        return "padding in the loss"
    return "healthy"


@wrong("tune_own.clinic", "every gap between training and validation")
def diagnosed_by_the_gap(training, validation, fresh, without_future):
    end = validation[-1]
    if without_future > end + 0.3:
        return "leaking mask"
    if fresh > end + 0.3:
        return "leaking split"
    return "overfitting" if end - training[-1] > 0.3 else "healthy"


def seconds(batch, row):
    speed, steps, _ = row
    return batch * steps / speed


@wrong("tune_own.which_batch", "does not fit")
def batch_that_does_not_fit(measured, goal):
    tokens = {batch: batch * row[1] for batch, row in measured.items()}
    return min(tokens, key=tokens.get) if goal == "tokens" else min(measured, key=lambda b: seconds(b, measured[b]))


@wrong("tune_own.which_batch", "You fill the memory")
def batch_that_fills_the_memory(measured, goal):
    return max(batch for batch, row in measured.items() if row[2])


@wrong("tune_own.adopt", "strangers")
def adopted_by_two_separate_spreads(baseline, candidate, t):
    gain = np.mean(baseline) - np.mean(candidate)
    half = t * np.sqrt((np.var(baseline, ddof=1) + np.var(candidate, ddof=1)) / len(baseline))
    if abs(gain) <= half:
        return "more seeds"
    return "adopt" if gain > 0 else "keep"


@wrong("tune_own.adopt", "By what is")
def adopted_by_the_spread_of_numpy(baseline, candidate, t):
    gains = np.array(baseline) - np.array(candidate)
    half = t * gains.std() / np.sqrt(len(gains))
    if gains.mean() - half > 0:
        return "adopt"
    return "keep" if gains.mean() + half < 0 else "more seeds"


def update(model, gradients, optimizer, steps):
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient.clone()
    for _ in range(steps):
        optimizer.step()
    return tuple(model.parameters())


def split_by_shape(model):
    parameters = list(model.parameters())
    return [p for p in parameters if p.dim() > 1], [p for p in parameters if p.dim() == 1]


@wrong("tune_own.mend_decay", "no optimizer knows of them")
def decay_mend_that_trains_matrices_only(model, gradients, rate, weight_decay, steps):
    matrices, _ = split_by_shape(model)
    return update(model, gradients, torch.optim.AdamW(matrices, lr=rate, weight_decay=weight_decay), steps)


@wrong("tune_own.mend_decay", "not by as much as was asked")
def decay_mend_with_a_silent_group_of_matrices(model, gradients, rate, weight_decay, steps):
    matrices, others = split_by_shape(model)
    groups = [{"params": matrices}, {"params": others, "weight_decay": 0}]
    return update(model, gradients, torch.optim.AdamW(groups, lr=rate), steps)


def accumulated(model, micro_batches, rate, divide_by=1, clear_each=False):
    model.zero_grad()
    for x, y in micro_batches:
        if clear_each:
            model.zero_grad()
        (F.mse_loss(model(x), y) / divide_by).backward()
    with torch.no_grad():
        model.weight -= rate * model.weight.grad
    return model.weight


@wrong("tune_own.axis", "do two seeds differ")
def axis_by_any_difference(best, spread):
    if best.index(min(best)) in (0, len(best) - 1):
        return "widen"
    return "keep"


@wrong("tune_own.axis", "two ends")
def axis_with_one_end(best, spread):
    if max(best) - min(best) <= spread:
        return "fix"
    return "widen" if best[-1] <= min(best[:-1]) else "keep"
