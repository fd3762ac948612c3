"""Wrong answers to the exercises of notebook 03."""

import math
import statistics

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from wrong_answers import wrong


@wrong("tuning.schedule", "Your first step has a rate of 0")
def schedule_with_an_idle_first_step(step, peak, warmup_steps, steps):
    if step < warmup_steps:
        return peak * step / warmup_steps
    ratio = min(1, (step - warmup_steps) / (steps - warmup_steps))
    low = 0.1 * peak
    return low + 0.5 * (1 + math.cos(math.pi * ratio)) * (peak - low)


@wrong("tuning.schedule", "one step too early")
def schedule_with_a_hasty_warmup(step, peak, warmup_steps, steps):
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    ratio = min(1, (step - warmup_steps) / (steps - warmup_steps))
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * ratio)))


@wrong("tuning.schedule", "your fall begins while the rate still climbs")
def schedule_that_falls_from_step_zero(step, peak, warmup_steps, steps):
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    ratio = min(1, step / steps)
    return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * ratio)))


@wrong("tuning.schedule", "your fall begins while the rate still climbs")
def schedule_as_a_product(step, peak, warmup_steps, steps):
    warm = min(1.0, (step + 1) / (warmup_steps + 1))
    ratio = min(1, step / steps)
    return peak * warm * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * ratio)))


@wrong("tuning.schedule", "Your fall takes too long")
def schedule_over_the_wrong_span(step, peak, warmup_steps, steps):
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    ratio = min(1, (step - warmup_steps) / steps)
    return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * ratio)))


@wrong("tuning.schedule", "The warm-up is missing")
def schedule_without_warmup(step, peak, warmup_steps, steps):
    ratio = min(1, step / steps)
    return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * ratio)))


@wrong("tuning.schedule", "Your rate falls to 0")
def schedule_to_zero(step, peak, warmup_steps, steps):
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    ratio = min(1, (step - warmup_steps) / (steps - warmup_steps))
    return peak * 0.5 * (1 + math.cos(math.pi * ratio))


@wrong("tuning.schedule", "cut off at the floor")
def schedule_cut_off(step, peak, warmup_steps, steps):
    return max(schedule_to_zero(step, peak, warmup_steps, steps), 0.1 * peak if step >= warmup_steps else 0)


@wrong("tuning.schedule", "your rate is above the peak")
def schedule_above_the_peak(step, peak, warmup_steps, steps):
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    ratio = min(1, (step - warmup_steps) / (steps - warmup_steps))
    return 0.1 * peak + 0.5 * (1 + math.cos(math.pi * ratio)) * peak


@wrong("tuning.schedule", "becomes negative")
def schedule_below_zero(step, peak, warmup_steps, steps):
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    ratio = min(1, (step - warmup_steps) / (steps - warmup_steps))
    return 0.1 * peak + (peak - 0.1 * peak) * math.cos(math.pi * ratio)


@wrong("tuning.schedule", "a whole wave")
def schedule_of_a_whole_period(step, peak, warmup_steps, steps):
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    ratio = min(1, (step - warmup_steps) / (steps - warmup_steps))
    return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(2 * math.pi * ratio)))


@wrong("tuning.schedule", "a quarter of a wave")
def schedule_of_a_quarter_period(step, peak, warmup_steps, steps):
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    ratio = min(1, (step - warmup_steps) / (steps - warmup_steps))
    return peak * (0.1 + 0.9 * math.cos(math.pi / 2 * ratio))


@wrong("tuning.schedule", "Angles are in radians")
def schedule_without_pi(step, peak, warmup_steps, steps):
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    ratio = min(1, (step - warmup_steps) / (steps - warmup_steps))
    return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(ratio)))


@wrong("tuning.schedule", "turns round and climbs")
def schedule_without_an_end(step, peak, warmup_steps, steps):
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    ratio = (step - warmup_steps) / (steps - warmup_steps)
    return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * ratio)))


def decays(model, weight_decay, does):
    return torch.tensor([weight_decay if does(name, p) else 0.0 for name, p in model.named_parameters()])


@wrong("tuning.decay_groups", "Everything decays")
def decay_of_all(model, weight_decay):
    return torch.full((len(list(model.parameters())),), weight_decay)


@wrong("tuning.decay_groups", "names end in weight")
def decay_of_weights(model, weight_decay):
    return decays(model, weight_decay, lambda name, p: "weight" in name)


@wrong("tuning.decay_groups", "names end in weight")
def decay_by_a_list_of_names(model, weight_decay):
    spared = ["bias", "LayerNorm.weight", "ln_1.weight", "ln_2.weight"]
    return decays(model, weight_decay, lambda name, p: not any(part in name for part in spared))


@wrong("tuning.decay_groups", "A list of kinds is never complete")
def decay_by_kind_of_norm(model, weight_decay):
    of_norms = {id(p) for m in model.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()}
    return decays(model, weight_decay, lambda name, p: id(p) not in of_norms and not name.endswith(".bias"))


@wrong("tuning.decay_groups", "The token table is left out")
def decay_of_linear_weights(model, weight_decay):
    linear = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    return decays(model, weight_decay, lambda name, p: id(p) in linear)


@wrong("tuning.decay_groups", "The biases of the other layers still decay")
def decay_of_all_but_norms(model, weight_decay):
    norms = (nn.LayerNorm, nn.RMSNorm)
    of_norms = {id(p) for m in model.modules() if isinstance(m, norms) for p in m.parameters()}
    return decays(model, weight_decay, lambda name, p: id(p) not in of_norms)


@wrong("tuning.decay_groups", "The other way round")
def decay_exchanged(model, weight_decay):
    return decays(model, weight_decay, lambda name, p: p.dim() == 1)


@wrong("tuning.decay_groups", "it should return a tensor, and it returns something of type list")
def decay_as_groups(model, weight_decay):
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


@wrong("tuning.range_test", "A single lucky batch decides")
def range_test_of_raw_losses(rates, losses, window):
    return rates[int(np.argmin(losses))]


@wrong("tuning.range_test", "A single lucky batch decides")
def range_test_of_raw_losses_halved(rates, losses, window):
    return rates[losses.index(min(losses)) - 1] / 2


def medians(losses, window):
    return [statistics.median(losses[max(0, i + 1 - window) : i + 1]) for i in range(len(losses))]


@wrong("tuning.range_test", "which rate made the lowest loss")
def range_test_off_by_one(rates, losses, window):
    return rates[int(np.argmin(medians(losses, window)))] / 2


@wrong("tuning.range_test", "That is the edge itself")
def range_test_at_the_edge(rates, losses, window):
    return rates[int(np.argmin(medians(losses, window))) - 1]


@wrong("tuning.range_test", "training has already begun to break")
def range_test_at_the_minimum(rates, losses, window):
    return rates[int(np.argmin(medians(losses, window)))]


@wrong("tuning.range_test", "A tenth is a rule that others use")
def range_test_a_tenth_of_the_minimum(rates, losses, window):
    return rates[int(np.argmin(medians(losses, window)))] / 10


@wrong("tuning.range_test", "Each median should look back")
def range_test_with_a_centred_window(rates, losses, window):
    half = window // 2
    smoothed = [statistics.median(losses[max(0, i - half) : i + half + 1]) for i in range(len(losses))]
    return rates[int(np.argmin(smoothed)) - 1] / 2


@wrong("tuning.range_test", "as many medians as losses")
def range_test_with_a_shorter_list(rates, losses, window):
    smoothed = np.median(np.lib.stride_tricks.sliding_window_view(losses, window), axis=1)
    return rates[int(smoothed.argmin()) - 1] / 2


@wrong("tuning.range_test", "You smooth with a mean")
def range_test_with_means(rates, losses, window):
    smoothed = [np.mean(losses[max(0, i + 1 - window) : i + 1]) for i in range(len(losses))]
    return rates[int(np.argmin(smoothed)) - 1] / 2


@wrong("tuning.range_test", "where the loss falls fastest")
def range_test_at_the_steepest(rates, losses, window):
    return rates[int(np.diff(medians(losses, window)).argmin())]


@wrong("tuning.range_test", "where the test gave up")
def range_test_at_the_end(rates, losses, window):
    return rates[-1] / 2


@wrong("tuning.noise_scale", "Your noise scale is negative")
def noise_with_sizes_exchanged(small_norms_squared, big_norms_squared, small, big):
    s, b = small_norms_squared.mean(), big_norms_squared.mean()
    return ((s - b) / (1 / big - 1 / small)) / ((small * b - big * s) / (small - big))


@wrong("tuning.noise_scale", "both hold signal and noise")
def noise_as_a_ratio_of_lengths(small_norms_squared, big_norms_squared, small, big):
    return small_norms_squared.mean() / big_norms_squared.mean()


@wrong("tuning.noise_scale", "You divide by a squared length as it was measured")
def noise_over_the_big_batch(small_norms_squared, big_norms_squared, small, big):
    s, b = small_norms_squared.mean(), big_norms_squared.mean()
    return (s - b) / (1 / small - 1 / big) / b


@wrong("tuning.noise_scale", "the noise that the larger batch averages away")
def noise_without_the_sizes(small_norms_squared, big_norms_squared, small, big):
    s, b = small_norms_squared.mean(), big_norms_squared.mean()
    return (s - b) / ((big * b - small * s) / (big - small))


@wrong("tuning.noise_scale", "in a straight line with the size of the batch")
def noise_times_the_difference(small_norms_squared, big_norms_squared, small, big):
    s, b = small_norms_squared.mean(), big_norms_squared.mean()
    return (s - b) * (big - small) / ((big * b - small * s) / (big - small))


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


@wrong("tuning.noise_scale", "Upside down")
def noise_upside_down(small_norms_squared, big_norms_squared, small, big):
    s, b = small_norms_squared.mean(), big_norms_squared.mean()
    return ((big * b - small * s) / (big - small)) / ((s - b) / (1 / small - 1 / big))


def gradient(model):
    return model.weight.grad


@wrong("tuning.accumulate", "Each micro-batch has the same say")
def accumulate_means(model, micro_batches):
    model.zero_grad()
    for x, y in micro_batches:
        (F.cross_entropy(model(x), y) / len(micro_batches)).backward()
    return gradient(model)


@wrong("tuning.accumulate", "You add up means")
def accumulate_means_undivided(model, micro_batches):
    model.zero_grad()
    for x, y in micro_batches:
        F.cross_entropy(model(x), y).backward()
    return gradient(model)


@wrong("tuning.accumulate", "the gradient of the sum")
def accumulate_sums(model, micro_batches):
    model.zero_grad()
    for x, y in micro_batches:
        F.cross_entropy(model(x), y, reduction="sum").backward()
    return gradient(model)


@wrong("tuning.accumulate", "How many losses were added up")
def accumulate_sums_over_batches(model, micro_batches):
    model.zero_grad()
    for x, y in micro_batches:
        (F.cross_entropy(model(x), y, reduction="sum") / len(micro_batches)).backward()
    return gradient(model)


@wrong("tuning.accumulate", "hold no token and have no loss")
def accumulate_with_padding(model, micro_batches):
    model.zero_grad()
    count = sum(y.numel() for _, y in micro_batches)
    for x, y in micro_batches:
        (F.cross_entropy(model(x), y, reduction="sum") / count).backward()
    return gradient(model)


@wrong("tuning.accumulate", "hold no token and have no loss")
def accumulate_means_by_length(model, micro_batches):
    model.zero_grad()
    count = sum(len(y) for _, y in micro_batches)
    for x, y in micro_batches:
        (F.cross_entropy(model(x), y) * len(y) / count).backward()
    return gradient(model)


@wrong("tuning.accumulate", "Only the last part is left")
def accumulate_and_forget(model, micro_batches):
    count = sum((y != -100).sum() for _, y in micro_batches)
    for x, y in micro_batches:
        model.zero_grad()
        (F.cross_entropy(model(x), y, reduction="sum") / count).backward()
    return gradient(model)


@wrong("tuning.accumulate", "as many tokens as one of them")
def accumulate_equal_parts(model, micro_batches):
    model.zero_grad()
    count = (micro_batches[0][1] != -100).sum() * len(micro_batches)
    for x, y in micro_batches:
        (F.cross_entropy(model(x), y, reduction="sum") / count).backward()
    return gradient(model)


@wrong("tuning.trade_off", "what tiny batches would do")
def trade_off_of_tiny_batches(batch, min_steps, min_tokens):
    return min_tokens / batch, min_tokens


@wrong("tuning.trade_off", "what endless batches would do")
def trade_off_of_endless_batches(batch, min_steps, min_tokens):
    return min_steps, min_steps * batch


@wrong("tuning.trade_off", "You join the two limits with a corner")
def trade_off_with_a_corner(batch, min_steps, min_tokens):
    steps = max(min_steps, min_tokens / batch)
    return steps, steps * batch


@wrong("tuning.trade_off", "What became of the two ones")
def trade_off_without_ones(batch, min_steps, min_tokens):
    critical = min_tokens / min_steps
    return min_steps * critical / batch, min_tokens * batch / critical


@wrong("tuning.trade_off", "upside down")
def trade_off_upside_down(batch, min_steps, min_tokens):
    critical = min_steps / min_tokens
    return min_steps * (1 + critical / batch), min_tokens * (1 + batch / critical)


@wrong("tuning.trade_off", "yours takes more steps and fewer tokens")
def trade_off_exchanged(batch, min_steps, min_tokens):
    critical = min_tokens / min_steps
    return min_steps * (1 + batch / critical), min_tokens * (1 + critical / batch)


@wrong("tuning.trade_off", "The steps are right")
def trade_off_with_the_fewest_tokens(batch, min_steps, min_tokens):
    return min_steps + min_tokens / batch, min_tokens


@wrong("tuning.batch_rate", "shorter or longer")
def batch_rate_the_wrong_way(rate, batch, new_batch):
    k = batch / new_batch
    return rate * k, rate * math.sqrt(k)


@wrong("tuning.batch_rate", "in the other order")
def batch_rate_exchanged(rate, batch, new_batch):
    k = new_batch / batch
    return rate * k**0.5, rate * k


@wrong("tuning.batch_rate", "Your root reaches too far")
def batch_rate_with_a_long_root(rate, batch, new_batch):
    return rate * new_batch / batch, math.sqrt(rate * new_batch / batch)


@wrong("tuning.batch_rate", "You take the square")
def batch_rate_squared(rate, batch, new_batch):
    k = new_batch / batch
    return rate * k, rate * k * k


@wrong("tuning.batch_rate", "the operator that keeps fractions")
def batch_rate_in_whole_numbers(rate, batch, new_batch):
    k = new_batch // batch
    return rate * k, rate * math.sqrt(k)


@wrong("tuning.batch_rate", "how much larger than the old one")
def batch_rate_by_the_new_batch(rate, batch, new_batch):
    return rate * new_batch, rate * math.sqrt(new_batch)


@wrong("tuning.rate_at_width", "You scale the rate of everything")
def width_scales_everything(rate, base_width, width):
    m = width / base_width
    return rate / m, rate / m, rate / m, 1 / m


@wrong("tuning.rate_at_width", "by a root")
def width_under_a_root(rate, base_width, width):
    m = width / base_width
    return rate / math.sqrt(m), rate, rate, 1 / m


@wrong("tuning.rate_at_width", "a token picks one row")
def width_scales_embeddings(rate, base_width, width):
    m = width / base_width
    return rate / m, rate / m, rate, 1 / m


@wrong("tuning.rate_at_width", "take longer steps in a wider model")
def width_the_wrong_way(rate, base_width, width):
    m = width / base_width
    return rate * m, rate, rate, 1 / m


@wrong("tuning.rate_at_width", "Both go the wrong way")
def width_upside_down(rate, base_width, width):
    m = base_width / width
    return rate / m, rate, rate, 1 / m


@wrong("tuning.rate_at_width", "What keeps them the same")
def width_without_the_readout(rate, base_width, width):
    return rate * base_width / width, rate, rate, 1.0


@wrong("tuning.rate_at_width", "That is the usual way")
def width_ignored(rate, base_width, width):
    return rate, rate, rate, 1.0


@wrong("tuning.rate_at_width", "the rules for plain gradient descent")
def width_for_sgd(rate, base_width, width):
    m = width / base_width
    return rate, rate * m, rate * m, 1 / m


@wrong("tuning.rate_at_width", "the operator that keeps fractions")
def width_in_whole_numbers(rate, base_width, width):
    return rate * (base_width // width), rate, rate, base_width // width


@wrong("tuning.growth", "depends on the units")
def growth_on_plain_axes(widths, changes):
    return np.polyfit(widths.numpy(), changes.numpy(), 1)[0]


@wrong("tuning.growth", "an exponential")
def growth_of_an_exponential(widths, changes):
    return np.polyfit(widths.numpy(), changes.log().numpy(), 1)[0]


@wrong("tuning.growth", "pass over those between")
def growth_from_two_points(widths, changes):
    return math.log(changes[-1] / changes[0]) / math.log(widths[-1] / widths[0])


@wrong("tuning.growth", "how many times larger")
def growth_as_a_ratio(widths, changes):
    return changes[-1].item() / changes[0].item()


@wrong("tuning.growth", "axes are swapped")
def growth_with_swapped_axes(widths, changes):
    return np.polyfit(changes.log().numpy(), widths.log().numpy(), 1)[0]


@wrong("tuning.growth", "through the origin")
def growth_through_the_origin(widths, changes):
    x, y = widths.log(), changes.log()
    return (x @ y / (x @ x)).item()


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


@wrong("tuning.mend_schedule", "The mistake is still there")
def schedule_mend_as_it_stands(model, batches, epochs, peak):
    return run_with_scheduler(model, batches, epochs, peak, t_max=epochs * len(batches), at_epoch=1)


@wrong("tuning.mend_schedule", "in stairs")
def schedule_mend_by_epochs(model, batches, epochs, peak):
    return run_with_scheduler(model, batches, epochs, peak, t_max=epochs, at_epoch=1)


@wrong("tuning.mend_schedule", "swings up and down")
def schedule_mend_with_too_few_moves(model, batches, epochs, peak):
    return run_with_scheduler(model, batches, epochs, peak, t_max=epochs, at_step=1)


@wrong("tuning.mend_schedule", "How long is the whole run")
def schedule_mend_for_one_epoch(model, batches, epochs, peak):
    return run_with_scheduler(model, batches, epochs, peak, t_max=len(batches), at_step=1)


@wrong("tuning.mend_schedule", "moves once more than it should")
def schedule_mend_twice(model, batches, epochs, peak):
    return run_with_scheduler(model, batches, epochs, peak, t_max=epochs * len(batches), at_step=1, at_epoch=1)


@wrong("tuning.mend_schedule", "do you read the rate too late")
def schedule_mend_noted_late(model, batches, epochs, peak):
    return run_with_scheduler(model, batches, epochs, peak, t_max=epochs * len(batches), at_step=1, note_late=True)


@wrong("tuning.mend_schedule", "nothing moves the scheduler")
def schedule_mend_without_moves(model, batches, epochs, peak):
    return run_with_scheduler(model, batches, epochs, peak, t_max=epochs * len(batches))


def update(model, gradients, optimizer, steps):
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient.clone()
    for _ in range(steps):
        optimizer.step()
    return tuple(model.parameters())


def split_by_shape(model):
    parameters = list(model.parameters())
    return [p for p in parameters if p.dim() > 1], [p for p in parameters if p.dim() == 1]


@wrong("tuning.mend_decay", "The mistake is still there")
def decay_mend_as_it_stands(model, gradients, rate, weight_decay, steps):
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=weight_decay)
    return update(model, gradients, optimizer, steps)


@wrong("tuning.mend_decay", "The mistake is still there")
def decay_mend_in_groups_that_name_nothing(model, gradients, rate, weight_decay, steps):
    groups = [{"params": part} for part in split_by_shape(model)]
    return update(model, gradients, torch.optim.AdamW(groups, lr=rate, weight_decay=weight_decay), steps)


@wrong("tuning.mend_decay", "names end in weight")
def decay_mend_of_biases_only(model, gradients, rate, weight_decay, steps):
    named = list(model.named_parameters())
    groups = [
        {"params": [p for name, p in named if "bias" not in name], "weight_decay": weight_decay},
        {"params": [p for name, p in named if "bias" in name], "weight_decay": 0.0},
    ]
    return update(model, gradients, torch.optim.AdamW(groups, lr=rate), steps)


@wrong("tuning.mend_decay", "no optimizer knows of them")
def decay_mend_that_trains_matrices_only(model, gradients, rate, weight_decay, steps):
    matrices, _ = split_by_shape(model)
    return update(model, gradients, torch.optim.AdamW(matrices, lr=rate, weight_decay=weight_decay), steps)


@wrong("tuning.mend_decay", "says nothing of decay")
def decay_mend_with_a_silent_group(model, gradients, rate, weight_decay, steps):
    matrices, others = split_by_shape(model)
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others}]
    return update(model, gradients, torch.optim.AdamW(groups, lr=rate), steps)


@wrong("tuning.mend_decay", "not by as much as was asked")
def decay_mend_with_a_silent_group_of_matrices(model, gradients, rate, weight_decay, steps):
    matrices, others = split_by_shape(model)
    groups = [{"params": matrices}, {"params": others, "weight_decay": 0}]
    return update(model, gradients, torch.optim.AdamW(groups, lr=rate), steps)


@wrong("tuning.mend_decay", "adds the decay to the gradient")
def decay_mend_with_adam(model, gradients, rate, weight_decay, steps):
    matrices, others = split_by_shape(model)
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return update(model, gradients, torch.optim.Adam(groups, lr=rate), steps)


def accumulated(model, micro_batches, rate, divide_by=1, clear_each=False):
    model.zero_grad()
    for x, y in micro_batches:
        if clear_each:
            model.zero_grad()
        (F.mse_loss(model(x), y) / divide_by).backward()
    with torch.no_grad():
        model.weight -= rate * model.weight.grad
    return model.weight


@wrong("tuning.mend_accumulation", "The mistake is still there")
def accumulation_mend_as_it_stands(model, micro_batches, rate):
    return accumulated(model, micro_batches, rate * len(micro_batches))


@wrong("tuning.mend_accumulation", "Half is mended")
def accumulation_mend_of_the_rate(model, micro_batches, rate):
    return accumulated(model, micro_batches, rate)


@wrong("tuning.mend_accumulation", "Half is mended")
def accumulation_mend_of_the_loss(model, micro_batches, rate):
    return accumulated(model, micro_batches, rate * len(micro_batches), divide_by=len(micro_batches))


@wrong("tuning.mend_accumulation", "divided out twice")
def accumulation_mend_of_both(model, micro_batches, rate):
    return accumulated(model, micro_batches, rate / len(micro_batches), divide_by=len(micro_batches))


@wrong("tuning.mend_accumulation", "Did this one grow")
def accumulation_mend_with_a_root(model, micro_batches, rate):
    return accumulated(model, micro_batches, rate * len(micro_batches) ** 0.5, divide_by=len(micro_batches))


@wrong("tuning.mend_accumulation", "a step after every micro-batch")
def accumulation_mend_with_many_steps(model, micro_batches, rate):
    for part in micro_batches:
        accumulated(model, [part], rate)
    return model.weight


@wrong("tuning.mend_accumulation", "Only the last part is left")
def accumulation_mend_that_forgets(model, micro_batches, rate):
    return accumulated(model, micro_batches, rate, clear_each=True)


@wrong("tuning.mend_budget", "The mistake is still there")
def budget_of_steps(small_losses, small_batch, big_losses, big_batch):
    steps = min(small_losses.numel(), big_losses.numel())
    return small_losses[steps - 1], big_losses[steps - 1]


@wrong("tuning.mend_budget", "read at its own end")
def budget_of_each(small_losses, small_batch, big_losses, big_batch):
    return small_losses[-1].item(), big_losses[-1].item()


@wrong("tuning.mend_budget", "one step too late")
def budget_off_by_one(small_losses, small_batch, big_losses, big_batch):
    tokens = min(small_losses.numel() * small_batch, big_losses.numel() * big_batch)
    return small_losses[tokens // small_batch], big_losses[tokens // big_batch]


@wrong("tuning.mend_budget", "never saw so many tokens")
def budget_of_the_longer_run(small_losses, small_batch, big_losses, big_batch):
    tokens = max(small_losses.numel() * small_batch, big_losses.numel() * big_batch)
    return small_losses[tokens // small_batch - 1], big_losses[tokens // big_batch - 1]


@wrong("tuning.mend_budget", "the luckiest loss on the way")
def budget_at_the_lowest(small_losses, small_batch, big_losses, big_batch):
    tokens = min(small_losses.numel() * small_batch, big_losses.numel() * big_batch)
    return min(small_losses[: tokens // small_batch]), min(big_losses[: tokens // big_batch])


@wrong("tuning.mend_seeds", "The mistake is still there")
def seeds_at_their_best(rates, losses):
    best = losses.amin(dim=1)
    return rates[best.argmin()], best.min()


@wrong("tuning.mend_seeds", "one seed only")
def seeds_of_which_one_counts(rates, losses):
    best = losses[:, 0].argmin()
    return rates[best].item(), losses[best, 0].item()


@wrong("tuning.mend_seeds", "dragged along by a single unlucky run")
def seeds_on_average(rates, losses):
    means = losses.mean(dim=1)
    return rates[means.argmin()].item(), means.min().item()


@wrong("tuning.mend_seeds", "the rate that breaks most often looks best")
def seeds_that_did_not_break(rates, losses):
    means = torch.stack([row[torch.isfinite(row)].mean() for row in losses])
    return rates[means.argmin()].item(), means.min().item()


@wrong("tuning.mend_seeds", "the difference of two infinities")
def seeds_by_quantile(rates, losses):
    middle = torch.quantile(losses, 0.5, dim=1)
    return rates[middle.argmin()].item(), middle[middle.argmin()].item()


@wrong("tuning.mend_seeds", "the worst seed")
def seeds_at_their_worst(rates, losses):
    worst = losses.amax(dim=1)
    return rates[worst.argmin()].item(), worst.min().item()


@wrong("tuning.mend_seeds", "not what it was chosen by")
def seeds_with_a_nicer_report(rates, losses):
    best = losses.median(dim=1).values.argmin()
    return rates[best].item(), losses[best].min().item()


@wrong("tuning.mend_choice", "The mistake is still there")
def choice_on_the_test_set(validation_losses, test_losses):
    return torch.argmin(test_losses).item(), torch.min(test_losses).item()


@wrong("tuning.mend_choice", "The test set still has a say")
def choice_on_both(validation_losses, test_losses):
    run = ((validation_losses + test_losses) / 2).argmin().item()
    return run, test_losses[run].item()


@wrong("tuning.mend_choice", "what should be reported")
def choice_reported_as_validated(validation_losses, test_losses):
    return validation_losses.argmin().item(), validation_losses.min().item()


@wrong("tuning.mend_choice", "belongs to another one")
def choice_with_another_test_loss(validation_losses, test_losses):
    return validation_losses.argmin().item(), test_losses.min().item()


@wrong("tuning.mend_choice", "the worst run")
def choice_of_the_worst(validation_losses, test_losses):
    run = validation_losses.argmax().item()
    return run, test_losses[run].item()
