"""Wrong answers to the exercises of notebook 05."""

import math
import statistics

import numpy as np
import torch
import torch.nn.functional as F

from wrong_answers import wrong


@wrong("tuning.schedule", "Your first step has a rate of 0")
def schedule_with_an_idle_first_step(step, peak, warmup_steps, steps):
    if step < warmup_steps:
        return peak * step / warmup_steps
    ratio = min(1, (step - warmup_steps) / (steps - warmup_steps))
    low = 0.1 * peak
    return low + 0.5 * (1 + math.cos(math.pi * ratio)) * (peak - low)


@wrong("tuning.schedule", "The warm-up is missing")
def schedule_without_warmup(step, peak, warmup_steps, steps):
    ratio = min(1, step / steps)
    return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * ratio)))


def beginning_of_the_plateau(rates, smoothed):
    near = np.array(smoothed) <= 1.03 * np.min(smoothed)
    return rates[int(np.argmax(near)) - 1]


@wrong("tuning.range_test", "Each median should look back")
def range_test_with_a_centred_window(rates, losses, window):
    half = window // 2
    smoothed = [statistics.median(losses[max(0, i - half) : i + half + 1]) for i in range(len(losses))]
    return beginning_of_the_plateau(rates, smoothed)


@wrong("tuning.range_test", "You smooth with a mean")
def range_test_with_means(rates, losses, window):
    return beginning_of_the_plateau(
        rates, [np.mean(losses[max(0, i + 1 - window) : i + 1]) for i in range(len(losses))]
    )


@wrong("tuning.range_test", "That is the edge")
def range_test_at_the_lowest(rates, losses, window):
    smoothed = [statistics.median(losses[max(0, i + 1 - window) : i + 1]) for i in range(len(losses))]
    return rates[int(np.argmin(smoothed)) - 1]


@wrong("tuning.widen", "for the sake of its only good")
def widen_beyond_a_lucky_end(sweep):
    rates, middle = sorted(sweep), {rate: np.median(losses) for rate, losses in sweep.items()}
    best, factor = min(middle, key=middle.get), rates[1] / rates[0]
    further = []
    if best == rates[0] or (best == rates[1] and min(sweep[rates[0]]) <= max(sweep[best])):
        further.append(rates[0] / factor)
    if best == rates[-1] or (best == rates[-2] and min(sweep[rates[-1]]) <= max(sweep[best])):
        further.append(rates[-1] * factor)
    return further


@wrong("tuning.widen", "Would it win again")
def widen_only_if_the_end_wins(sweep):
    best = min(sweep, key=lambda rate: statistics.median(sweep[rate]))
    rates = sorted(sweep)
    if best == rates[0]:
        return [best * rates[0] / rates[1]]
    return [best * rates[1] / rates[0]] if best == rates[-1] else []


@wrong("tuning.noise_scale", "Which comes first?")
def noise_as_a_mean_of_ratios(small_norms_squared, big_norms_squared, small, big):
    ratios = []
    for s, b in zip(small_norms_squared.tolist(), big_norms_squared.tolist(), strict=True):
        ratios.append((s - b) / (1 / small - 1 / big) / ((big * b - small * s) / (big - small)))
    return sum(ratios) / len(ratios)


@wrong("tuning.noise_scale", "the ratio of two lengths")
def noise_under_a_root(small_norms_squared, big_norms_squared, small, big):
    s, b = small_norms_squared.mean(), big_norms_squared.mean()
    return math.sqrt((s - b) / (1 / small - 1 / big) / ((big * b - small * s) / (big - small)))


def gradient(model):
    return model.weight.grad


@wrong("tuning.accumulate", "the gradient of the sum")
def accumulate_sums(model, micro_batches):
    model.zero_grad()
    for x, y in micro_batches:
        F.cross_entropy(model(x), y, reduction="sum").backward()
    return gradient(model)


@wrong("tuning.accumulate", "Only the last part is left")
def accumulate_and_forget(model, micro_batches):
    count = sum((y != -100).sum() for _, y in micro_batches)
    for x, y in micro_batches:
        model.zero_grad()
        (F.cross_entropy(model(x), y, reduction="sum") / count).backward()
    return gradient(model)


@wrong("tuning.rate_at_width", "You scale the rate of everything")
def width_scales_everything(rate, base_width, width):
    m = width / base_width
    return rate / m, rate / m, rate / m, 1 / m


@wrong("tuning.rate_at_width", "by a root")
def width_under_a_root(rate, base_width, width):
    m = width / base_width
    return rate / math.sqrt(m), rate, rate, 1 / m


def run_with_scheduler(model, batches, epochs, peak, *, t_max, at_step=0, at_epoch=0, note_late=False):
    """Train with torch's cosine and move it so many times after each step and after each epoch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=peak)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=t_max, eta_min=peak / 10)
    rates = []
    for _ in range(epochs):
        for x, y in batches:
            optimizer.zero_grad()
            F.mse_loss(model(x), y).backward()
            before = optimizer.param_groups[0]["lr"]
            optimizer.step()
            for _ in range(at_step):
                scheduler.step()
            rates.append(optimizer.param_groups[0]["lr"] if note_late else before)
        for _ in range(at_epoch):
            scheduler.step()
    return torch.tensor(rates)


@wrong("tuning.mend_schedule", "swings up and down")
def schedule_mend_with_too_few_moves(model, batches, epochs, peak):
    return run_with_scheduler(model, batches, epochs, peak, t_max=epochs, at_step=1)


@wrong("tuning.mend_schedule", "How long is the whole run")
def schedule_mend_for_one_epoch(model, batches, epochs, peak):
    return run_with_scheduler(model, batches, epochs, peak, t_max=len(batches), at_step=1)


@wrong("tuning.mend_budget", "read at its own end")
def budget_of_each(small_losses, small_batch, big_losses, big_batch):
    return small_losses[-1].item(), big_losses[-1].item()


@wrong("tuning.mend_budget", "the luckiest loss on the way")
def budget_at_the_lowest(small_losses, small_batch, big_losses, big_batch):
    tokens = min(small_losses.numel() * small_batch, big_losses.numel() * big_batch)
    return min(small_losses[: tokens // small_batch]), min(big_losses[: tokens // big_batch])


@wrong("tuning.mend_seeds", "the rate that breaks most often looks best")
def seeds_that_did_not_break(rates, losses):
    means = torch.stack([row[torch.isfinite(row)].mean() for row in losses])
    return rates[means.argmin()].item(), means.min().item()


@wrong("tuning.mend_seeds", "the difference of two infinities")
def seeds_by_quantile(rates, losses):
    middle = torch.quantile(losses, 0.5, dim=1)
    return rates[middle.argmin()].item(), middle[middle.argmin()].item()


@wrong("tuning.mend_choice", "The test set still has a say")
def choice_on_both(validation_losses, test_losses):
    run = ((validation_losses + test_losses) / 2).argmin().item()
    return run, test_losses[run].item()


@wrong("tuning.mend_choice", "the worst run")
def choice_of_the_worst(validation_losses, test_losses):
    run = validation_losses.argmax().item()
    return run, test_losses[run].item()
