"""The exercises of notebook 03: a learning rate and a batch size, and how to compare runs fairly.

A hint says what goes wrong, or asks the question that helps, and leaves the mending to the learner.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from math import cos, inf, log, pi, sqrt
from statistics import fmean, median

import torch
import torch.nn.functional as F
from torch import Tensor, nn, randint, randn, tensor

from gptcourse.exercises.exercise import Exercise, as_it_stands, mistake

NOTEBOOK = "03 · Learning rate and batch size"
EARLY_FALL = "The warm-up ends below the peak: your fall begins while the rate still climbs. Where is it to begin?"
NO_WARMUP = "The warm-up is missing: the first steps should be small and grow in a straight line."
ABOVE_PEAK = "Where the fall begins, your rate is above the peak. From which height to which should the wave lead?"
STILL_NOISY = """You divide by a squared length as it was measured. It still holds noise, even that of the big batches:
    which estimate is free of it?"""
COUNTS_PADDING = "Places with target -100 hold no token and have no loss, but you count them. Who should be counted?"
LAST_PART = "Only the last part is left in the gradient. Where is it cleared, and how often should that happen?"
EQUAL_PARTS = "You take all micro-batches to have as many tokens as one of them."
ONE_LUCKY_LOSS = (
    """A single lucky batch decides, because you look at the raw losses. What should forgive such a spike?"""
)
LOOKS_AHEAD = """Each median should look back, and yours holds losses that were measured later. Check at the start: the
    first median can hold one loss only, and there are as many medians as losses."""
A_TENTH = "A tenth is a rule that others use, for curves read by eye. How far away does this one stay?"
STEEPEST = "That is where the loss falls fastest, another rule that people use. Here the lowest place is asked for."
GAVE_UP = "The last rate is where the test gave up: the loss had already been climbing for a while."
GAINS_DECAY = """The gains of the norms still decay: their names end in weight, too. By what, other than a name, does a
    vector differ from a matrix?"""
STILL_ON_TEST = "The test set still has a say in which run is chosen. It should be opened once, after the choice."
CUT_DIVISION = "Your division drops what is left over. Look for the operator that keeps fractions."
OTHER_REPORT = "The rate is right. What you report of it is not what it was chosen by."


def half_wave(x: float) -> float:
    """Return what leads from 1 to 0 along half a cosine."""
    return (1 + cos(pi * x)) / 2


def after_warmup(step, peak, warmup, steps, height: Callable[[float], float]) -> float:
    """Return the right warm-up, and after it a share of the peak, given the progress of the fall from 0 to 1."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return peak * height(min((step - warmup) / (steps - warmup), 1.0))


def share_of_peak(x: float) -> float:
    return 0.1 + 0.9 * half_wave(x)


def decays(model: nn.Module, weight_decay: float, does: Callable[[str, nn.Module, Tensor], bool]) -> Tensor:
    """Return the decay of each parameter, given its name, the layer that holds it and itself."""
    found = [does(name, part, p) for part in model.modules() for name, p in part.named_parameters(recurse=False)]
    return weight_decay * tensor(found).float()


def range_test(seed: int, n: int, edge: int, window: int) -> tuple[list[float], list[float], int]:
    """Rates and losses that fall down to a valley and climb out of it, with lucky and unlucky batches."""
    draw = random.Random(seed)
    losses = [4 - 0.06 * min(i, edge) + 0.1 * max(i - edge, 0) + draw.gauss(0, 0.12) for i in range(n)]
    losses[edge - 1] += 3.0
    losses[edge + 6] -= 1.1
    factor = draw.uniform(1.1, 1.3)
    return [1e-4 * factor**i for i in range(n)], losses, window


def looking_back(losses: list[float], window: int, middle: Callable = median) -> list[float]:
    return [middle(losses[max(i - window + 1, 0) : i + 1]) for i in range(len(losses))]


def centred(losses: list[float], window: int) -> list[float]:
    return [median(losses[max(i - window // 2, 0) : i + window // 2 + 1]) for i in range(len(losses))]


def looking_ahead(losses: list[float], window: int) -> list[float]:
    return [median(losses[i : i + window]) for i in range(len(losses) - window + 1)]


def rate_at_lowest(rates: list[float], smoothed: list[float], back: int = 1) -> float:
    """Return the rate so many places before the lowest loss."""
    return rates[max(smoothed.index(min(smoothed)) - back, 0)]


def squared_lengths(n_batches: int, small: int, big: int, noise: float) -> tuple[Tensor, Tensor, int, int]:
    """Squared lengths of gradients with 30 entries of size 1 and this much noise in each sequence's gradient."""
    gradients = 1 + noise * randn(n_batches, big // small, small, 30, dtype=torch.float64)
    of_parts = gradients.mean(2)  # (n_batches, big // small, 30)
    return of_parts.square().sum(-1).mean(1), of_parts.mean(1).square().sum(-1), small, big


def estimates(s: Tensor, b: Tensor, small: int, big: int) -> tuple[Tensor, Tensor]:
    """Return the squared length of the gradient without noise, and the noise of a single sequence."""
    return (big * b - small * s) / (big - small), (s - b) / (1 / small - 1 / big)


def with_gradient(model: nn.Module) -> nn.Module:
    """Leave gradients behind, as an earlier step does."""
    for parameter in model.parameters():
        parameter.grad = randn(parameter.shape)
    return model


def micro_batches(*sizes: int, padding: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Parts with so many places; in each, the last `padding` targets are -100: no token stands there."""
    parts = [(randn(size, 6), randint(5, (size,))) for size in sizes]
    return [(x, y.masked_fill(torch.arange(len(y)) >= len(y) - padding, -100)) for x, y in parts]


def n_tokens(y: Tensor) -> int:
    return (y >= 0).sum().item()


def accumulated(model: nn.Linear, micro_batches: list, weights: list[float], clear: bool = True) -> Tensor:
    """Return the gradient of each part's sum of losses times its weight."""
    model.zero_grad()
    for (x, y), weight in zip(micro_batches, weights, strict=True):
        (weight * F.cross_entropy(model(x), y, reduction="sum")).backward()
    return model.weight.grad


def torch_rates(batches: list, epochs: int, peak: float, steps: int, at_step=1, at_epoch=0, late=False) -> Tensor:
    """Return the rates of torch's cosine, moved so many times after each step and each epoch."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=0.1 * peak)
    rates = []
    for step in range(epochs * len(batches)):
        before = optimizer.param_groups[0]["lr"]
        optimizer.step()
        for _ in range(at_step + at_epoch * ((step + 1) % len(batches) == 0)):
            scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"] if late else before)
    return tensor(rates)


def to_decay(rate: float, weight_decay: float, steps: int) -> tuple:
    model = nn.Sequential(
        nn.Embedding(3, 4), nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2, bias=False), nn.RMSNorm(2)
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter)  # norms that differ from 1
    return model, [randn(parameter.shape) for parameter in model.parameters()], rate, weight_decay, steps


def adam_steps(model, gradients, groups, rate, steps, kind=torch.optim.AdamW, **settings) -> tuple[Tensor, ...]:
    """Return the parameters after so many steps with the same gradients."""
    optimizer = kind(groups, lr=rate, **settings)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient.clone()
    for _ in range(steps):
        optimizer.step()
    return tuple(parameter.detach() for parameter in model.parameters())


def two_groups(model: nn.Module, matrices: dict, others: dict) -> list[dict]:
    """Groups with these settings; an empty one leaves them to the optimizer."""
    by_shape = [[p for p in model.parameters() if (p.ndim >= 2) is wanted] for wanted in (True, False)]
    return [{"params": params} | settings for params, settings in zip(by_shape, (matrices, others), strict=True)]


def in_parts(n_parts: int, size: int, rate: float) -> tuple[nn.Linear, list[tuple[Tensor, Tensor]], float]:
    model = with_gradient(nn.Linear(3, 1, bias=False))
    return model, [(randn(size, 3), randn(size, 1)) for _ in range(n_parts)], rate


def stepped(model: nn.Linear, micro_batches: list, rate: float) -> Tensor:
    """Return the weight after a step along the sum of the parts' gradients, times the rate.

    With an optimizer, as torch imports for seconds when the first is built: that is not to count as an answer's time.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    optimizer.zero_grad()
    for x, y in micro_batches:
        F.mse_loss(model(x), y).backward()
    optimizer.step()
    return model.weight.detach()


def two_curves(small_steps: int, small_batch: int, big_steps: int, big_batch: int) -> tuple:
    """Losses of two runs, the i-th after i + 1 steps; both still fall at the end."""
    curves = [3 - torch.linspace(0, 1, steps) + 0.01 * randn(steps) for steps in (small_steps, big_steps)]
    return curves[0], small_batch, curves[1], big_batch


def seeds_of_rates() -> list[tuple[Tensor, Tensor]]:
    """Final losses of five seeds a rate: a steady rate, the best one with an unlucky seed, one that often breaks."""
    steady, best = [2.04, 2.10, 2.12, 2.11, 2.13], [2.05, 2.02, 2.90, 1.98, 2.01]
    breaks = [1.80, 1.78, inf, inf, inf]
    slow = [2.50, 2.49, 2.52, 2.51, 2.48]
    rates = tensor([1e-3, 2e-3, 4e-3, 8e-3])
    return [(rates, tensor([slow, steady, best, breaks])), (2 * rates, tensor([steady, breaks, best, slow]) + 0.3)]


def winner(rates: Tensor, scores: Tensor, reported: Tensor | None = None) -> tuple[float, float]:
    """The rate with the lowest score, and its entry in what is reported: the score unless something else is given."""
    best = scores.argmin()
    return rates[best].item(), (scores if reported is None else reported)[best].item()


def chosen(losses: Tensor, reported: Tensor) -> tuple[int, float]:
    best = losses.argmin().item()
    return best, reported[best].item()


def changes_by_width(exponent: float, n_widths: int = 4, first: float = 32.0) -> tuple[Tensor, Tensor]:
    """Return widths, each twice the one before, and changes that grow as a power of them, with some noise."""
    widths = first * 2.0 ** torch.arange(n_widths)
    return widths, 0.1 * widths**exponent * torch.exp(0.1 * randn(n_widths))


def slope(x: Tensor, y: Tensor) -> float:
    """Return the slope of the straight line nearest to the points, by least squares."""
    return (((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()).item()


class Schedule(Exercise, name="tuning.schedule"):
    """Return the learning rate of a step: a straight warm-up, then half a cosine down to a tenth of the peak."""

    hint = """Draw it first: where does the rate stand at step 0, at the end of the warm-up, halfway through the fall
        and after the last step?"""

    def inputs():
        of_a_run = [(step, 6e-4, 10, 100) for step in (0, 4, 9, 10, 30, 55, 99, 100, 130)]
        return of_a_run + [(step, 0.5, 0, 8) for step in (0, 3, 7)] + [(step, 1.0, 2, 6) for step in (1, 2, 5)]

    def reference(step, peak, warmup_steps, steps):
        return after_warmup(step, peak, warmup_steps, steps, share_of_peak)

    @mistake("""Your first step has a rate of 0: a gradient is computed and thrown away. Into how many equal parts
        should the climb be cut?""")
    def idle_first_step(step, peak, warmup, steps):
        return peak * step / warmup if step < warmup else after_warmup(step, peak, warmup, steps, share_of_peak)

    @mistake("Very close: you reach the full rate one step too early. The last step of the warm-up is still below.")
    def hasty_warmup(step, peak, warmup, steps):
        return peak * (step + 1) / warmup if step < warmup else after_warmup(step, peak, warmup, steps, share_of_peak)

    @mistake(EARLY_FALL)
    def fall_from_step_zero(step, peak, warmup, steps):
        return after_warmup(step, peak, warmup, steps, lambda _: share_of_peak(min(step / steps, 1)))

    product = mistake(EARLY_FALL)(
        lambda step, peak, warmup, steps: peak * min((step + 1) / (warmup + 1), 1) * share_of_peak(min(step / steps, 1))
    )

    @mistake("""Your fall takes too long: at the end of the run the rate is still above its floor. How many steps are
        left for it after the warm-up?""")
    def long_fall(step, peak, warmup, steps):
        return after_warmup(step, peak, warmup, steps, lambda _: share_of_peak(min((step - warmup) / steps, 1)))

    without_warmup = mistake(NO_WARMUP)(lambda step, peak, warmup, steps: peak * share_of_peak(min(step / steps, 1)))
    to_zero = mistake("""Your rate falls to 0. GPT-3 goes on learning at a small share
        of the peak.""")(lambda step, peak, warmup, steps: after_warmup(step, peak, warmup, steps, half_wave))
    cut_off = mistake("""Your wave is aimed at 0 and cut off at the floor, so the rate lies on the floor well before the
        end. It should get there just as the run ends.""")(
        lambda step, peak, warmup, steps: after_warmup(step, peak, warmup, steps, lambda x: max(0.1, half_wave(x)))
    )
    floor_added = mistake(ABOVE_PEAK)(
        lambda step, peak, warmup, steps: after_warmup(step, peak, warmup, steps, lambda x: 0.1 + half_wave(x))
    )
    below_zero = mistake("""Your rate becomes negative: a cosine goes down to minus one. How can it be made to end at
        zero?""")(
        lambda step, peak, warmup, steps: after_warmup(step, peak, warmup, steps, lambda x: 0.1 + 0.9 * cos(pi * x))
    )
    quarter = mistake("""Yours is a quarter of a wave: it falls fastest at the very end. Half a wave runs out flat.""")(
        lambda step, peak, warmup, steps: after_warmup(step, peak, warmup, steps, lambda x: 0.1 + 0.9 * cos(pi * x / 2))
    )
    whole = mistake("""Yours is a whole wave: in the second half of the fall the rate climbs back to the peak.""")(
        lambda step, peak, warmup, steps: after_warmup(step, peak, warmup, steps, lambda x: share_of_peak(2 * x))
    )
    without_pi = mistake("""Your cosine hardly falls. Angles are in radians: how large is the angle of half a wave?""")(
        lambda step, peak, warmup, steps: after_warmup(step, peak, warmup, steps, lambda x: share_of_peak(x / pi))
    )

    @mistake("After the last step your cosine turns round and climbs. The rate should stay on the floor.")
    def without_an_end(step, peak, warmup, steps):
        x = (step - warmup) / (steps - warmup)
        return after_warmup(step, peak, warmup, steps, lambda _: share_of_peak(x))


class DecayGroups(Exercise, name="tuning.decay_groups"):
    """Return the weight decay of every parameter, in the order in which the model lists them."""

    hint = "Print the name and the shape of every parameter, and mark those that are matrices."

    def inputs():
        of_every_sort = nn.Sequential(
            nn.Embedding(7, 4), nn.LayerNorm(4), nn.Linear(4, 6), nn.RMSNorm(6), nn.Linear(6, 7, False)
        )
        named = {"wte": nn.Embedding(5, 2), "wpe": nn.Embedding(3, 2), "c_attn": nn.Linear(2, 6), "ln_f": nn.RMSNorm(2)}
        square = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.RMSNorm(3), nn.Embedding(2, 3))
        return [(of_every_sort, 0.1), (square, 0.5), (nn.ModuleDict(named), 0.2)]

    def reference(model, weight_decay):
        return tensor([weight_decay if p.ndim >= 2 else 0.0 for p in model.parameters()])

    everything = mistake("""Everything decays. Is it any use to pull the gain of a
        norm towards zero?""")(lambda model, weight_decay: decays(model, weight_decay, lambda name, part, p: True))
    all_but_biases = mistake(GAINS_DECAY)(
        lambda model, weight_decay: decays(model, weight_decay, lambda name, part, p: name != "bias")
    )

    @mistake("""One kind of norm is spared, and another is not. A list of kinds is never complete: what do all their
        gains have in common?""")
    def all_but_one_kind_of_norm(model, weight_decay):
        return decays(model, weight_decay, lambda name, part, p: not isinstance(part, nn.LayerNorm) and name != "bias")

    @mistake("The token table is left out. Some do that; here it decays, as it may be the read-out as well.")
    def linear_weights(model, weight_decay):
        return decays(model, weight_decay, lambda name, part, p: isinstance(part, nn.Linear) and name == "weight")

    @mistake("The norms are spared. The biases of the other layers still decay.")
    def all_but_norms(model, weight_decay):
        return decays(model, weight_decay, lambda name, part, p: not isinstance(part, nn.LayerNorm | nn.RMSNorm))

    exchanged = mistake("""The other way round: yours spares
        the matrices.""")(lambda model, weight_decay: decays(model, weight_decay, lambda name, part, p: p.ndim < 2))


class MendSchedule(Exercise, name="tuning.mend_schedule"):
    """Mend the training so that the rate falls along one cosine, a little with every step."""

    hint = """Note the rate of every step, the first one included. The scheduler draws the curve: of how many moves
        should it know, and when should it make each?"""
    trains = ("model",)

    def inputs():
        runs = ((6, 4, 0.5), (5, 3, 0.2), (4, 2, 0.1))
        return [
            (nn.Linear(3, 1), [(randn(4, 3), randn(4, 1)) for _ in range(n)], epochs, peak) for n, epochs, peak in runs
        ]

    def reference(model, batches, epochs, peak):
        return torch_rates(batches, epochs, peak, epochs * len(batches))

    @as_it_stands("""The mistake is still there: at the end of the run the rate has hardly moved. How many moves does
        the scheduler expect, and how many does it get?""")
    def moved_by_epochs(model, batches, epochs, peak):
        return torch_rates(batches, epochs, peak, epochs * len(batches), at_step=0, at_epoch=1)

    stairs = mistake("""Now the rate falls all the way, but in stairs: it stands still for a whole epoch. With a single
        epoch, the usual case for language models, it would never fall.""")(
        lambda model, batches, epochs, peak: torch_rates(batches, epochs, peak, epochs, at_step=0, at_epoch=1)
    )
    told_of_epochs = mistake("""Your rate swings up and down: the scheduler was told of fewer moves
        than it gets.""")(lambda model, batches, epochs, peak: torch_rates(batches, epochs, peak, epochs))
    told_of_one_epoch = mistake("""Your rate comes down in one epoch and climbs again in the next. How long is the whole
        run, in steps?""")(lambda model, batches, epochs, peak: torch_rates(batches, epochs, peak, len(batches)))
    moved_by_both = mistake("""Very close: at the end of each epoch the scheduler moves once more than it should.""")(
        lambda model, batches, epochs, peak: torch_rates(batches, epochs, peak, epochs * len(batches), at_epoch=1)
    )
    noted_late = mistake("""Very close, but the first rate that you note is not the peak. Does the scheduler move too
        early, or do you read the rate too late?""")(
        lambda model, batches, epochs, peak: torch_rates(batches, epochs, peak, epochs * len(batches), late=True)
    )
    never_moved = mistake("""Now nothing moves the scheduler, and the rate stays
        at the peak.""")(lambda model, batches, epochs, peak: torch.full((epochs * len(batches),), peak))


class MendDecay(Exercise, name="tuning.mend_decay"):
    """Mend the training so that only matrices decay, and everything is still trained."""

    hint = "Each parameter belongs to exactly one group, and each group names its own decay."
    trains = ("model",)

    def inputs():
        return [to_decay(0.05, 0.5, 4), to_decay(0.02, 0.3, 2)]

    def reference(model, gradients, rate, weight_decay, steps):
        groups = two_groups(model, {"weight_decay": weight_decay}, {"weight_decay": 0.0})
        return adam_steps(model, gradients, groups, rate, steps)

    @as_it_stands("""The mistake is still there: with no gradient at all, the gain of the norm still goes down. Which
        parameters should be pulled towards zero, and how does the optimizer learn of it?""")
    def everything(model, gradients, rate, weight_decay, steps):
        return adam_steps(model, gradients, model.parameters(), rate, steps, weight_decay=weight_decay)

    @mistake(GAINS_DECAY)
    def all_but_biases(model, gradients, rate, weight_decay, steps):
        named = dict(model.named_parameters())
        weights = {"params": [p for name, p in named.items() if "bias" not in name], "weight_decay": weight_decay}
        biases = {"params": [p for name, p in named.items() if "bias" in name], "weight_decay": 0.0}
        return adam_steps(model, gradients, [weights, biases], rate, steps)

    @mistake("Now biases and gains never move: no optimizer knows of them.")
    def matrices_alone(model, gradients, rate, weight_decay, steps):
        groups = two_groups(model, {"weight_decay": weight_decay}, {})[:1]
        return adam_steps(model, gradients, groups, rate, steps)

    @mistake("""Biases and gains still decay, a little. What does this optimizer do with a group that says nothing of
        decay?""")
    def silent_others(model, gradients, rate, weight_decay, steps):
        return adam_steps(model, gradients, two_groups(model, {"weight_decay": weight_decay}, {}), rate, steps)

    @mistake("The matrices decay, but not by as much as was asked. Which decay does their group have?")
    def silent_matrices(model, gradients, rate, weight_decay, steps):
        return adam_steps(model, gradients, two_groups(model, {}, {"weight_decay": 0.0}), rate, steps)

    @mistake("""The groups are right. But this optimizer adds the decay to the gradient, and then divides by the
        gradient's size: large weights no longer decay by more.""")
    def adam(model, gradients, rate, weight_decay, steps):
        groups = two_groups(model, {"weight_decay": weight_decay}, {"weight_decay": 0.0})
        return adam_steps(model, gradients, groups, rate, steps, torch.optim.Adam)


class RangeTest(Exercise, name="tuning.range_test"):
    """Return the rate that a range test suggests: half the rate that led to the lowest smoothed loss."""

    hint = """Do it in three moves: smooth the losses with the window that was given, find the place of the lowest, and
        go from there to a rate. Check each on a list of five losses."""

    def inputs():
        curves = ((44, 60, 42, 5), (35, 40, 26, 3), (612, 50, 30, 7), (1345, 30, 18, 4))
        return [range_test(*curve) for curve in curves]

    def reference(rates, losses, window):
        return rate_at_lowest(rates, looking_back(losses, window)) / 2

    beside_the_lowest_raw_loss = mistake(ONE_LUCKY_LOSS)(
        lambda rates, losses, window: rate_at_lowest(rates, losses, back=0)
    )
    half_before_the_lowest_raw_loss = mistake(ONE_LUCKY_LOSS)(
        lambda rates, losses, window: rate_at_lowest(rates, losses) / 2
    )
    off_by_one = mistake("""Very close: a loss is measured before the update at the rate beside it. So which rate made
        the
        lowest loss?""")(lambda rates, losses, window: rate_at_lowest(rates, looking_back(losses, window), back=0) / 2)
    edge = mistake("""That is the edge itself, the largest rate that still helped. A safe rate
        keeps some distance.""")(lambda rates, losses, window: rate_at_lowest(rates, looking_back(losses, window)))
    beside_the_lowest = mistake("""That is the rate beside the lowest loss, where training has already begun to break.
        Which rate made that loss, and how far should one stay
        away from it?""")(lambda rates, losses, window: rate_at_lowest(rates, looking_back(losses, window), back=0))
    tenth_beside_the_lowest = mistake(A_TENTH)(
        lambda rates, losses, window: rate_at_lowest(rates, looking_back(losses, window), back=0) / 10
    )
    centred_window = mistake(LOOKS_AHEAD)(
        lambda rates, losses, window: rate_at_lowest(rates, centred(losses, window)) / 2
    )
    shorter_list = mistake(LOOKS_AHEAD)(
        lambda rates, losses, window: rate_at_lowest(rates, looking_ahead(losses, window)) / 2
    )
    means = mistake("""You smooth with a mean, and one lucky or unlucky batch drags it along. What is hardly moved by
        one?""")(lambda rates, losses, window: rate_at_lowest(rates, looking_back(losses, window, fmean)) / 2)

    @mistake(STEEPEST)
    def steepest(rates, losses, window):
        falls = [later - earlier for earlier, later in pairwise(looking_back(losses, window))]
        return rates[falls.index(min(falls))]

    last = mistake(GAVE_UP)(lambda rates, losses, window: rates[-1])
    half_the_last = mistake(GAVE_UP)(lambda rates, losses, window: rates[-1] / 2)


class MendSeeds(Exercise, name="tuning.mend_seeds"):
    """Mend the choice of a rate so that the median over the seeds decides and is reported."""

    hint = "First one number for every rate, over its seeds; then the rate that has the lowest."

    def inputs():
        return seeds_of_rates()

    def reference(rates, losses):
        return winner(rates, losses.median(1).values)

    luckiest = as_it_stands("""The mistake is still there: one lucky seed makes a rate the winner, even where most runs
        broke. What would you get if you
        trained once more?""")(lambda rates, losses: winner(rates, losses.min(1).values))
    first_seed = mistake("""You look at one seed only, and take its luck for the merit
        of a rate.""")(lambda rates, losses: winner(rates, losses[:, 0]))
    mean = mistake("""A mean is dragged along by a single unlucky run. What was asked for is hardly
        moved by one.""")(lambda rates, losses: winner(rates, losses.mean(1)))
    mean_of_the_finite = mistake("""You leave out the runs that broke, and so the rate that breaks most often looks
        best.""")(lambda rates, losses: winner(rates, torch.where(losses.isfinite(), losses, torch.nan).nanmean(1)))
    quantile = mistake("""For the rate that breaks, your median is not a number but the difference of two infinities,
        and the search for the lowest stops there. Is there a median that takes the middle one
        as it is?""")(lambda rates, losses: winner(rates, losses.quantile(0.5, dim=1)))
    worst = mistake("""You look at the worst seed. That is careful, but the luck of a single
        run decides again.""")(lambda rates, losses: winner(rates, losses.max(1).values))
    reporting_the_luckiest = mistake(OTHER_REPORT)(
        lambda rates, losses: winner(rates, losses.median(1).values, losses.min(1).values)
    )


class MendChoice(Exercise, name="tuning.mend_choice"):
    """Mend the report so that the test loss is that of a run which was chosen without it."""

    hint = "Two questions: which run would you keep, and what does it do on text that had no part in keeping it?"

    def inputs():
        lower_on_test = tensor([2.0, 1.5, 1.8]), tensor([1.9, 1.4, 1.2])
        return [lower_on_test, *((2 + 0.1 * randn(n), 2 + 0.1 * randn(n)) for n in (3, 8, 12, 20))]

    def reference(validation_losses, test_losses):
        return chosen(validation_losses, test_losses)

    on_test = as_it_stands("""The mistake is still there: the lowest of many test losses is low by luck as well. What
        else was measured that could choose?""")(lambda validation, test: chosen(test, test))
    on_both = mistake(STILL_ON_TEST)(lambda validation, test: chosen(validation + test, test))
    reporting_validation = mistake("""The run is right. But its validation loss is low partly because it was chosen for
        it: what should be reported?""")(lambda validation, test: chosen(validation, validation))
    reporting_the_best = mistake("""The run is right. The test loss that you report belongs
        to another one.""")(lambda validation, test: (validation.argmin().item(), test.min().item()))
    worst = mistake("""That is the worst run: a loss
        should be small.""")(lambda validation, test: chosen(-validation, test))


class NoiseScale(Exercise, name="tuning.noise_scale"):
    """Return the noise scale from squared lengths of gradients of two batch sizes."""

    hint = "Put the means into the two equations first, then solve them, and divide at the very end."

    def inputs():
        measured = tensor([5.0, 7.0], dtype=torch.float64), tensor([3.0, 2.0], dtype=torch.float64), 1, 4
        return [measured, squared_lengths(4, 2, 16, 3.0), squared_lengths(3, 4, 32, 5.0)]

    def reference(small_norms_squared, big_norms_squared, small, big):
        squared, noise = estimates(small_norms_squared.mean(), big_norms_squared.mean(), small, big)
        return (noise / squared).item()

    @mistake("""Your noise scale is negative. Which of the two squared lengths belongs to which size, and which of them
        holds more noise?""")
    def sizes_exchanged(s, b, small, big):
        squared, noise = estimates(s.mean(), b.mean(), big, small)
        return (noise / squared).item()

    ratio_of_lengths = mistake("""You divide one measured length by the other, and both hold signal and noise. Solve for
        each of the two first.""")(lambda s, b, small, big: (s.mean() / b.mean()).item())
    noise_over_the_big = mistake(STILL_NOISY)(
        lambda s, b, small, big: (estimates(s.mean(), b.mean(), small, big)[1] / b.mean()).item()
    )
    without_the_sizes = mistake("""The difference of the two lengths is only the noise that the larger batch averages
        away. How is it related to the noise of a single sequence?""")(
        lambda s, b, small, big: ((s.mean() - b.mean()) / estimates(s.mean(), b.mean(), small, big)[0]).item()
    )

    @mistake("""Noise does not shrink in a straight line with the size of the batch. Write down how much of it is in
        each of the two, and subtract.""")
    def times_the_difference(s, b, small, big):
        return ((s.mean() - b.mean()) * (big - small) / estimates(s.mean(), b.mean(), small, big)[0]).item()

    @mistake("""You divide batch by batch and then take the mean of the ratios, so a batch whose gradient looks tiny by
        chance has the most say. Which comes first?""")
    def mean_of_ratios(s, b, small, big):
        squared, noise = estimates(s, b, small, big)
        return (noise / squared).mean().item()

    @mistake("That is the ratio of two lengths. The noise scale is that of their squares, and counts sequences.")
    def root(s, b, small, big):
        squared, noise = estimates(s.mean(), b.mean(), small, big)
        return (noise / squared).sqrt().item()

    @mistake("Upside down: more noise should ask for a larger batch.")
    def upside_down(s, b, small, big):
        squared, noise = estimates(s.mean(), b.mean(), small, big)
        return (squared / noise).item()


class Accumulate(Exercise, name="tuning.accumulate"):
    """Return the gradient of the mean loss of all tokens, computed micro-batch by micro-batch."""

    hint = """Join all micro-batches to one and compute its gradient: how much does one token weigh in it? (An earlier
        step may have left a gradient in the model.)"""
    differentiates = ("model",)

    def inputs():
        models = [with_gradient(nn.Linear(6, 5, bias=False)) for _ in range(2)]
        return list(zip(models, [micro_batches(2, 9, 4), micro_batches(7, 3, 3, 12, padding=2)], strict=True))

    def reference(model, micro_batches):
        n = sum(n_tokens(y) for _, y in micro_batches)
        return accumulated(model, micro_batches, [1 / n for _ in micro_batches])

    @mistake("Each micro-batch has the same say, however few tokens it holds. In one big batch, what has?")
    def mean_of_means(model, micro_batches):
        return accumulated(model, micro_batches, [1 / n_tokens(y) / len(micro_batches) for _, y in micro_batches])

    sum_of_means = mistake("""You add up means, so the gradient grows with the number of micro-batches, and a short one
        has as much say as a long one.""")(
        lambda model, micro_batches: accumulated(model, micro_batches, [1 / n_tokens(y) for _, y in micro_batches])
    )
    sum_of_sums = mistake("""That is the gradient of the sum. It grows with the number of tokens; that of the mean does
        not.""")(lambda model, micro_batches: accumulated(model, micro_batches, [1.0 for _ in micro_batches]))
    over_parts = mistake("""The sum of all losses is divided by the number of micro-batches. How many losses were added
        up?""")(
        lambda model, micro_batches: accumulated(model, micro_batches, [1 / len(micro_batches) for _ in micro_batches])
    )

    @mistake(COUNTS_PADDING)
    def over_places(model, micro_batches):
        n = sum(len(y) for _, y in micro_batches)
        return accumulated(model, micro_batches, [1 / n for _ in micro_batches])

    @mistake(COUNTS_PADDING)
    def means_by_length(model, micro_batches):
        n = sum(len(y) for _, y in micro_batches)
        return accumulated(model, micro_batches, [len(y) / n_tokens(y) / n for _, y in micro_batches])

    @mistake("What an earlier step left in the model is still in your gradient. When should it be cleared?")
    def never_cleared(model, micro_batches):
        before = model.weight.grad
        return before + Accumulate.reference(model, micro_batches)

    @mistake(LAST_PART)
    def last_part(model, micro_batches):
        return accumulated(model, micro_batches[-1:], [1 / sum(n_tokens(y) for _, y in micro_batches)])

    @mistake(EQUAL_PARTS)
    def all_like_the_first(model, micro_batches):
        n = n_tokens(micro_batches[0][1]) * len(micro_batches)
        return accumulated(model, micro_batches, [1 / n for _ in micro_batches])


class MendAccumulation(Exercise, name="tuning.mend_accumulation"):
    """Mend the step so that many equal micro-batches move the weight just as one big batch would."""

    hint = "Write down the gradient of the big batch, and that which your loop has added up. What lies between them?"
    trains = ("model",)

    def inputs():
        return [in_parts(4, 8, 0.1), in_parts(3, 5, 0.05)]

    def reference(model, micro_batches, rate):
        return stepped(model, micro_batches, rate / len(micro_batches))

    sum_times_parts = as_it_stands("""The mistake is still there: cut in four, the batch moves the weight sixteen times
        as far. The number of micro-batches enters
        twice. Where?""")(lambda model, micro_batches, rate: stepped(model, micro_batches, rate * len(micro_batches)))
    sum_of_parts = mistake("""Half is mended: the step still grows with the number of micro-batches. It is the same
        batch as before, so what should
        be the same?""")(lambda model, micro_batches, rate: stepped(model, micro_batches, rate))
    divided_twice = mistake("""Now the step is too short: the number of micro-batches is divided
        out twice.""")(lambda model, micro_batches, rate: stepped(model, micro_batches, rate / len(micro_batches) ** 2))
    root = mistake("""A rule with a root is for a batch that grows. Did this one grow, or was it
        only cut?""")(lambda model, micro_batches, rate: stepped(model, micro_batches, rate / sqrt(len(micro_batches))))
    many_steps = mistake("""You take a step after every micro-batch: that trains on small batches. When is the big batch
        complete?""")(lambda model, micro_batches, rate: [stepped(model, [part], rate) for part in micro_batches][-1])
    last_part = mistake(LAST_PART)(lambda model, micro_batches, rate: stepped(model, micro_batches[-1:], rate))


class TradeOff(Exercise, name="tuning.trade_off"):
    """Return the steps and the tokens that a run takes to the loss at this batch size."""

    hint = "Tokens are steps times batch: put that into the equation of the hyperbola and solve it for the steps."

    def inputs():
        return [(4096, 500.0, 1e6), (512, 500.0, 1e6), (100_000, 1200.0, 6e6), (2, 10.0, 30.0)]

    def reference(batch, min_steps, min_tokens):
        steps = min_steps + min_tokens / batch
        return steps, steps * batch

    tiny_batches = mistake("""That is what tiny batches would do: every token counts in full. What else limits the
        steps?""")(lambda batch, min_steps, min_tokens: (min_tokens / batch, min_tokens))
    endless_batches = mistake("""That is what endless batches would do: never fewer steps. What do the
        smaller ones pay?""")(lambda batch, min_steps, min_tokens: (min_steps, min_steps * batch))
    corner = mistake("""You join the two limits with a corner. A hyperbola comes near to both and touches neither.""")(
        lambda batch, min_steps, min_tokens: (max(min_steps, min_tokens / batch), max(min_tokens, min_steps * batch))
    )
    without_ones = mistake("""Each of yours can fall below its minimum. What became of the two ones
        in the equation?""")(lambda batch, min_steps, min_tokens: (min_tokens / batch, min_steps * batch))

    @mistake("Your critical batch is upside down: it is counted in tokens for each step.")
    def upside_down(batch, min_steps, min_tokens):
        critical = min_steps / min_tokens
        return min_steps * (1 + critical / batch), min_tokens * (1 + batch / critical)

    @mistake("With a larger batch yours takes more steps and fewer tokens. Which way should each go?")
    def wrong_way(batch, min_steps, min_tokens):
        critical = min_tokens / min_steps
        return min_steps * (1 + batch / critical), min_tokens * (1 + critical / batch)

    exchanged = mistake("""Both are right. Which of the two should come
        first, though?""")(lambda batch, min_steps, min_tokens: TradeOff.reference(batch, min_steps, min_tokens)[::-1])
    fewest_tokens = mistake("""The steps are right. Do your tokens agree with them
        and the batch?""")(lambda batch, min_steps, min_tokens: (min_steps + min_tokens / batch, min_tokens))


class BatchRate(Exercise, name="tuning.batch_rate"):
    """Return the learning rate for a new batch size under the linear rule and under the square-root rule."""

    hint = "By which factor does the batch grow, and by which factor should the rate grow under each of the rules?"

    def inputs():
        return [(3e-4, 32, 512), (0.01, 64, 16), (1e-3, 48, 72)]

    def reference(rate, batch, new_batch):
        return rate * new_batch / batch, rate * sqrt(new_batch / batch)

    wrong_way = mistake("""A larger batch has a gradient with less noise. Should its steps be shorter
        or longer?""")(lambda rate, batch, new_batch: (rate * batch / new_batch, rate * sqrt(batch / new_batch)))
    exchanged = mistake("""Both are right, in the other order: the linear
        rule comes first.""")(lambda rate, batch, new_batch: (rate * sqrt(new_batch / batch), rate * new_batch / batch))
    long_root = mistake("""Your root reaches too far: at an unchanged batch the rate should stay
        as it is.""")(lambda rate, batch, new_batch: (rate * new_batch / batch, sqrt(rate * new_batch / batch)))
    squared = mistake("""You take the square where the root
        was asked for.""")(lambda rate, batch, new_batch: (rate * new_batch / batch, rate * (new_batch / batch) ** 2))
    cut = mistake(CUT_DIVISION)(
        lambda rate, batch, new_batch: (rate * (new_batch // batch), rate * sqrt(new_batch // batch))
    )
    by_the_new_batch = mistake("""What counts is not how large the new batch is, but how much larger than
        the old one.""")(lambda rate, batch, new_batch: (rate * new_batch, rate * sqrt(new_batch)))


class MendBudget(Exercise, name="tuning.mend_budget"):
    """Mend the comparison so that both runs have seen the same number of tokens."""

    hint = """How many tokens has each run seen at its end? After how many of its own steps had each seen the smaller of
        the two numbers?"""

    def inputs():
        return [two_curves(80, 16, 40, 64), two_curves(200, 8, 30, 32), two_curves(6, 2, 2, 4)]

    def reference(small_losses, small_batch, big_losses, big_batch):
        tokens = min(len(small_losses) * small_batch, len(big_losses) * big_batch)
        return small_losses[tokens // small_batch - 1].item(), big_losses[tokens // big_batch - 1].item()

    @as_it_stands("""The mistake is still there: after the same number of steps one of the runs has computed far more
        than the other. In what should a fair budget be counted?""")
    def equal_steps(a, a_batch, b, b_batch):
        steps = min(len(a), len(b))
        return a[steps - 1].item(), b[steps - 1].item()

    own_ends = mistake("""Each run is read at its own end, where one has seen more tokens
        than the other.""")(lambda a, a_batch, b, b_batch: (a[-1].item(), b[-1].item()))

    @mistake("Very close: you look one step too late. After how many steps was the first loss measured?")
    def one_step_late(a, a_batch, b, b_batch):
        tokens = min(len(a) * a_batch, len(b) * b_batch)
        return a[tokens // a_batch].item(), b[tokens // b_batch].item()

    @mistake("One of the runs never saw so many tokens. Up to where can both be compared?")
    def longer_budget(a, a_batch, b, b_batch):
        tokens = max(len(a) * a_batch, len(b) * b_batch)
        return a[tokens // a_batch - 1].item(), b[tokens // b_batch - 1].item()

    @mistake("You take the luckiest loss on the way. Both should be read at the same place: where the budget ends.")
    def lowest_on_the_way(a, a_batch, b, b_batch):
        tokens = min(len(a) * a_batch, len(b) * b_batch)
        return a[: tokens // a_batch].min().item(), b[: tokens // b_batch].min().item()


class Growth(Exercise, name="tuning.growth"):
    """Return the power of the width with which the changes grow."""

    hint = "A power law is a straight line once both axes are logarithmic. What is its slope, with all points heard?"

    def inputs():
        curves = ((1.0, 4, 32.0), (0.0, 5, 32.0), (-0.5, 4, 16.0), (0.75, 4, 8.0), (1.0, 3, 4.0))
        return [changes_by_width(*curve) for curve in curves]

    def reference(widths, changes):
        return slope(widths.log(), changes.log())

    plain_axes = mistake("""That slope depends on the units: it would be another one for changes ten times as large. On
        which axes is a power law a straight line?""")(lambda widths, changes: slope(widths, changes))
    exponential = mistake("""Only the changes are on a logarithmic axis: that fits an exponential, not a power of the
        width.""")(lambda widths, changes: slope(widths, changes.log()))
    two_points = mistake("""You join the first point and the last and pass over those between: chance in two
        measurements decides. Let all points
        have a say.""")(lambda widths, changes: log(changes[-1] / changes[0]) / log(widths[-1] / widths[0]))
    ratio = mistake("""That is how many times larger the change became over the whole range, not the power
        of the width.""")(lambda widths, changes: (changes[-1] / changes[0]).item())
    axes_swapped = mistake("""The axes are swapped: the width is what you choose, the change is
        what you measure.""")(lambda widths, changes: slope(changes.log(), widths.log()))
    through_the_origin = mistake("""Your line is forced through the origin. A power law may have any factor in
        front.""")(lambda widths, changes: ((widths.log() * changes.log()).sum() / widths.log().square().sum()).item())


class RateAtWidth(Exercise, name="tuning.rate_at_width"):
    """Return the rates of a wider model under muP with Adam, and the multiplier of its read-out."""

    hint = """For each kind, ask: does a wider model add up over more of these numbers? Only where it does something has
        to shrink."""

    def inputs():
        return [(0.01, 64, 256), (0.003, 128, 64), (0.02, 128, 320)]

    def reference(rate, base_width, width):
        return rate * base_width / width, rate, rate, base_width / width

    everything = mistake("""You scale the rate of everything. Which of the parameters stand in a sum that grows with the
        width?""")(
        lambda rate, base, width: (rate * base / width, rate * base / width, rate * base / width, base / width)
    )
    root = mistake("""You scale the hidden matrices by a root. Changes that all push the same way do not add up like
        noise: how fast does
        their sum grow?""")(lambda rate, base, width: (rate * sqrt(base / width), rate, rate, base / width))
    embeddings_too = mistake("""The embeddings: a token picks one row and adds it to nothing. Does that change with the
        width?""")(lambda rate, base, width: (rate * base / width, rate * base / width, rate, base / width))
    longer_steps = mistake("""Your hidden matrices take longer steps in a wider model, though each of their outputs
        already adds up over more inputs.""")(lambda rate, base, width: (rate * width / base, rate, rate, base / width))
    wrong_way = mistake("""Both go the wrong way: a sum over more inputs grows by itself. Should it be helped or held
        back?""")(lambda rate, base, width: (rate * width / base, rate, rate, width / base))
    plain_readout = mistake("""The rates are right. The logits are sums over the width as well. What keeps them the
        same?""")(lambda rate, base, width: (rate * base / width, rate, rate, 1.0))
    unchanged = mistake("""That is the usual way, and under it the best rate moves as the
        model gets wider.""")(lambda rate, base, width: (rate, rate, rate, 1.0))
    of_sgd = mistake("""These are the rules for plain gradient descent. Adam divides every gradient by its own size, so
        other things are
        left to scale.""")(lambda rate, base, width: (rate, rate * width / base, rate * width / base, base / width))
    cut = mistake(CUT_DIVISION)(lambda rate, base, width: (rate * (base // width), rate, rate, float(base // width)))
