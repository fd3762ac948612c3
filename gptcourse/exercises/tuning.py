"""The exercises of notebook 05: a learning rate and a batch size, and how to compare runs fairly."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from itertools import compress, pairwise
from math import cos, inf, pi, sqrt
from statistics import fmean, median

import torch
import torch.nn.functional as F
from torch import Tensor, nn, randint, randn, tensor

from gptcourse.exercises.exercise import Exercise, as_it_stands, mistake

NOTEBOOK = "05 · Learning rate and batch size"
EARLY_FALL = "The warm-up ends below the peak: your fall begins while the rate still climbs. Where is it to begin?"
COUNTS_PADDING = "Places with target -100 hold no token and have no loss, but you count them. Who should be counted?"
LAST_PART = "Only the last part is left in the gradient. Where is it cleared, and how often should that happen?"
ONE_LUCKY_LOSS = "A single lucky batch decides, because you look at the raw losses. What should forgive such a spike?"
LOOKS_AHEAD = """Each median should look back, and yours holds losses that were measured later. Check at the start: the
    first median can hold one loss only, and there are as many medians as losses."""


def half_wave(x: float) -> float:
    """Return what leads from 1 to 0 along half a cosine."""
    return (1 + cos(pi * x)) / 2


def share_of_peak(x: float) -> float:
    return 0.1 + 0.9 * half_wave(x)


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


raw = partial(looking_back, middle=lambda losses: losses[-1])


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


def torch_rates(model, batches, epochs, peak, *, told_of="run", at_step=1, at_epoch=0, late=False) -> Tensor:
    """Return the rates of torch's cosine, moved so many times after each step and each epoch."""
    moves = {"run": epochs * len(batches), "epochs": epochs, "one epoch": len(batches)}[told_of]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, moves, eta_min=0.1 * peak)
    rates = []
    for step in range(epochs * len(batches)):
        before = optimizer.param_groups[0]["lr"]
        optimizer.step()
        for _ in range(at_step + at_epoch * ((step + 1) % len(batches) == 0)):
            scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"] if late else before)
    return tensor(rates)


def pairs(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    return [(randn(size, 3), randn(size, 1)) for size in sizes]


def chosen(losses: Tensor, reported: Tensor) -> tuple[int, float]:
    best = losses.argmin().item()
    return best, reported[best].item()


class Schedule(Exercise, name="tuning.schedule", minutes=10):
    """Return the learning rate of a step: a straight warm-up, then half a cosine down to a tenth of the peak."""

    hint = """Draw it first: where does the rate stand at step 0, at the end of the warm-up, halfway through the fall
        and after the last step?"""

    def inputs():
        of_a_run = [(step, 6e-4, 10, 100) for step in (0, 4, 9, 10, 30, 55, 99, 100, 130)]
        return of_a_run + [(step, 0.5, 0, 8) for step in (0, 3, 7)] + [(step, 1.0, 2, 6) for step in (1, 2, 5)]

    def schedule(
        height: Callable[[float], float] = share_of_peak,
        progress: Callable = lambda step, warmup, steps: min((step - warmup) / (steps - warmup), 1.0),
        climb: Callable = lambda step, warmup: (step + 1) / (warmup + 1),
    ) -> Callable:
        """Return a schedule: `climb` during the warm-up, then the share of the peak at this progress of the fall."""

        def rate(step, peak, warmup_steps, steps):
            climbs = step < warmup_steps
            return peak * (climb(step, warmup_steps) if climbs else height(progress(step, warmup_steps, steps)))

        return rate

    reference = schedule()
    idle_first_step = mistake("""Your first step has a rate of 0: a gradient is computed and thrown away. Into how many
        equal parts should the climb be cut?""")(schedule(climb=lambda step, warmup: step / warmup))
    hasty_warmup = mistake("""Very close: you reach the full rate one step too early. The last step of the warm-up is
        still below.""")(schedule(climb=lambda step, warmup: (step + 1) / warmup))
    fall_from_step_zero = mistake(EARLY_FALL)(schedule(progress=lambda step, warmup, steps: min(step / steps, 1)))
    product = mistake(EARLY_FALL)(
        lambda i, peak, warmup, n: peak * min((i + 1) / (warmup + 1), 1) * share_of_peak(min(i / n, 1))
    )
    long_fall = mistake("""Your fall takes too long: at the end the rate is above its floor. How many steps are left
        after the warm-up?""")(schedule(progress=lambda step, warmup, steps: min((step - warmup) / steps, 1)))
    without_warmup = mistake("""The warm-up is missing: the first steps should be small and grow in
        a straight line.""")(lambda step, peak, warmup, steps: peak * share_of_peak(min(step / steps, 1)))
    to_zero = mistake("Your rate falls to 0. GPT-3 goes on learning at a small share of the peak.")(schedule(half_wave))
    cut_off = mistake("""Your wave is aimed at 0 and cut off at the floor, so the rate lies on the floor well before the
        end. It should get there just as the run ends.""")(schedule(lambda x: max(0.1, half_wave(x))))
    floor_added = mistake("Where the fall begins, your rate is above the peak.")(schedule(lambda x: 0.1 + half_wave(x)))
    below_zero = mistake("""Your rate becomes negative: a cosine goes down to minus one. How can it be made to end at
        zero?""")(schedule(lambda x: 0.1 + 0.9 * cos(pi * x)))
    quarter = mistake("""Yours is a quarter of a wave: it falls fastest at the very end.
        Half a wave runs out flat.""")(schedule(lambda x: 0.1 + 0.9 * cos(pi * x / 2)))
    whole = mistake("Yours is a whole wave: in the end the rate climbs back.")(schedule(lambda x: share_of_peak(2 * x)))
    without_pi = mistake("""Your cosine hardly falls.
        Angles are in radians: how large is the angle of half a wave?""")(schedule(lambda x: share_of_peak(x / pi)))
    without_an_end = mistake("""After the last step your cosine turns round and climbs. The rate should stay on the
        floor.""")(schedule(progress=lambda step, warmup, steps: (step - warmup) / (steps - warmup)))


class MendSchedule(Exercise, name="tuning.mend_schedule", minutes=5):
    """Mend the training so that the rate falls along one cosine, a little with every step."""

    hint = """Note the rate of every step, the first one included. The scheduler draws the curve: of how many moves
        should it know, and when should it make each?"""
    trains = ("model",)

    def inputs():
        runs = ((6, 4, 0.5), (5, 3, 0.2), (4, 2, 0.1))
        return [(nn.Linear(3, 1), pairs(*[4] * n), epochs, peak) for n, epochs, peak in runs]

    def reference(model, batches, epochs, peak):
        return torch_rates(model, batches, epochs, peak)

    moved_by_epochs = as_it_stands("""The mistake is still there: at the end of the run the rate has hardly moved. How
        many moves does the scheduler expect, and how many does it get?""")(partial(torch_rates, at_step=0, at_epoch=1))
    stairs = mistake("""Now the rate falls all the way, but in stairs: it stands still for a whole epoch. With a single
        epoch it would never fall.""")(partial(torch_rates, told_of="epochs", at_step=0, at_epoch=1))
    told_of_epochs = mistake("""Your rate swings up and down:
        the scheduler was told of fewer moves than it gets.""")(partial(torch_rates, told_of="epochs"))
    told_of_one_epoch = mistake("""Your rate comes down in one epoch and climbs again in the next. How long is the whole
        run, in steps?""")(partial(torch_rates, told_of="one epoch"))
    moved_by_both = mistake("Very close: after each epoch it moves once too often.")(partial(torch_rates, at_epoch=1))
    noted_late = mistake("""Very close, but the first rate that you note is not the peak. Does the scheduler move too
        early, or do you read the rate too late?""")(partial(torch_rates, late=True))
    unmoved = mistake("Nothing moves the scheduler, and the rate stays at the peak.")(partial(torch_rates, at_step=0))


class RangeTest(Exercise, name="tuning.range_test", minutes=8):
    """Return the rate that a range test suggests: the one that led to the beginning of the plateau."""

    hint = """Do it in three moves: smooth the losses with the window that was given, find the first place within 3 % of
        the lowest, and go from there to a rate. Check each on a list of five losses."""

    def inputs():
        curves = ((44, 60, 42, 5), (35, 40, 26, 3), (612, 50, 30, 7), (1345, 30, 18, 4))
        return [range_test(*curve) for curve in curves]

    def reading(smoothed_by=looking_back, limit=lambda lowest: 1.03 * lowest, place=min, back=1) -> Callable:
        """Return a reading of a range test: the rate so many places before one of those on the plateau."""

        def rate(rates, losses, window):
            smoothed = smoothed_by(losses, window)
            plateau = [i for i, loss in enumerate(smoothed) if loss <= limit(min(smoothed))]
            return rates[max(place(plateau) - back, 0)]

        return rate

    reference = reading()
    raw_losses = mistake(ONE_LUCKY_LOSS)(reading(raw))
    beside_a_raw_loss = mistake(ONE_LUCKY_LOSS)(reading(raw, back=0))
    off_by_one = mistake("""Very close: a loss is measured before the update at the rate beside it. So which rate made
        the first loss of the plateau?""")(reading(back=0))
    edge = mistake("""That is the edge, the rate that led to the lowest loss of all. On a plateau, luck says which loss
        that is: another seed has it elsewhere.""")(reading(limit=lambda lowest: lowest))
    half_the_edge = mistake("""Half the edge is a rule that others use. The edge moves from seed to seed by more than
        the place that was asked for.""")(lambda *given: RangeTest.edge(*given) / 2)
    end = mistake("""That is the end of the plateau, the last rate before the loss climbs.
        A safe one keeps away from there.""")(reading(place=max))
    in_nats = mistake("""You look 0.03 nats above the lowest loss. Three in a hundred of what
        was meant?""")(reading(limit=lambda lowest: lowest + 0.03))
    centred_window = mistake(LOOKS_AHEAD)(
        reading(lambda x, n: [median(x[max(i - n // 2, 0) : i + n // 2 + 1]) for i in range(len(x))])
    )
    shorter_list = mistake(LOOKS_AHEAD)(reading(lambda x, n: [median(x[i : i + n]) for i in range(len(x) - n + 1)]))
    means = mistake("""You smooth with a mean, and one lucky or unlucky batch drags it along. What is hardly moved by
        one?""")(reading(partial(looking_back, middle=fmean)))

    @mistake("That is where the loss falls fastest, another rule that people use. Where does it stop falling?")
    def steepest(rates, losses, window):
        falls = [later - earlier for earlier, later in pairwise(looking_back(losses, window))]
        return rates[falls.index(min(falls))]

    last = mistake("""The last rate is where the test gave up: the loss had already been climbing
        for a while.""")(lambda rates, losses, window: rates[-1])


class Widen(Exercise, name="tuning.widen", minutes=12):
    """Return the rates to run next, ascending: the next one beyond each end at which the best may lie, or none."""

    hint = """Sort the rates and write the median of each beside it. Where is the lowest? Does the rate at the end win,
        or does it share losses with a winner next to it?"""

    def inputs():
        fine = [2.20, 2.25, 2.22], [2.12, 2.21, 2.10], [2.04, 2.06, 2.60], [2.31, 2.29, 2.33], [1.95, inf, inf]
        high = [2.52, 2.47, 2.50], [2.29, 2.31, 2.30], [2.08, 2.11, 2.12], [1.99, 2.01, 1.98]
        flat = [2.17, 2.24, 2.20], [2.11, 2.14, 2.18], [2.13, 2.15, 2.16], [inf, 4.10, inf]
        lucky = [2.51, 2.48, 2.49], [2.21, 2.19, 2.23], [2.02, 2.00, 2.05], [1.78, inf, inf]
        widened = [2.11, 2.14, 2.12], [2.26, 2.31, 2.29], [2.90, 2.40, inf], [2.01, 2.03, 1.97]
        three = [2.09, 2.21, 2.19], [2.15, 2.14, 2.16], [2.17, 2.20, 2.15]
        grids = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3), (1e-3, 2e-3, 4e-3, 8e-3), *[(3e-4, 9e-4, 2.7e-3, 8.1e-3)] * 2
        grids += (1e-3, 2e-3, 4e-3, 5e-4), (1e-4, 5e-4, 2.5e-3)  # in the first, a rate below the others was added
        tables = zip(grids, (fine, high, flat, lucky, widened, three), strict=True)
        return [(dict(zip(rates, losses, strict=True)),) for rates, losses in tables]

    def shared(end: list[float], best: list[float]) -> bool:
        return median(end) < inf and min(end) <= max(best)

    def factor(grid: list[float]) -> tuple[float, float]:
        return grid[0] ** 2 / grid[1], grid[-1] ** 2 / grid[-2]

    def widened(score=median, tied=shared, beyond=factor, order=sorted, which=list) -> Callable:
        """Return what gives the rates beyond both ends of the grid, where the end is best or tied with it."""

        def rates(sweep):
            grid = order(sweep)
            best = min(grid, key=lambda rate: score(sweep[rate]))
            ends = (grid[0], grid[1]), (grid[-1], grid[-2])
            is_open = [best == end or (best == beside and tied(sweep[end], sweep[best])) for end, beside in ends]
            return tuple(compress(beyond(grid), which(is_open)))

        return rates

    reference = widened()
    never = mistake("""You never go on. The best loss of a grid is low only if the rates on both sides of it
        do worse.""")(lambda sweep: ())
    winner_alone = mistake("""Beside your winner stands an end with losses among its own. Would it win again with other
        seeds?""")(widened(tied=lambda end, best: False))
    lucky_end = mistake("""You go on beyond a rate at which most runs diverged, for the sake of its only good
        seed.""")(widened(tied=lambda end, best: min(end) <= max(best)))
    luckiest = mistake("One lucky seed makes your winner. What says more of a rate?")(widened(min))
    mean = mistake("A single unlucky seed drags your mean along. What is hardly moved by one?")(widened(fmean))
    both_sides = mistake("""You go on at both ends. On one side the losses have climbed already: what would another run
        there tell?""")(widened(which=lambda is_open: [any(is_open)] * 2))
    equal_steps = mistake("""You go on by a difference. The rates of the grid differ by a
        factor.""")(widened(beyond=lambda grid: (2 * grid[0] - grid[1], 2 * grid[-1] - grid[-2])))
    twice = mistake("""You go on by a factor of your own.
        Which one has this grid?""")(widened(beyond=lambda grid: (grid[0] / 2, grid[-1] * 2)))
    by_place = mistake("""You take the first and the last rate of the table for its ends.
        Was it filled in order?""")(widened(order=list))
    inside = mistake("""You go on inside the grid, between two rates that were run. Where is the loss that
        nobody knows?""")(widened(beyond=lambda grid: (sqrt(grid[0] * grid[1]), sqrt(grid[-1] * grid[-2]))))


class MendSeeds(Exercise, name="tuning.mend_seeds", minutes=5):
    """Mend the choice of a rate so that the median over the seeds decides and is reported."""

    hint = "First one number for every rate, over its seeds; then the rate that has the lowest."

    def inputs():
        steady, slow = [2.04, 2.10, 2.12, 2.11, 2.13], [2.50, 2.49, 2.52, 2.51, 2.48]
        best = [2.05, 2.02, 2.90, 1.98, 2.01]  # with an unlucky seed
        breaks = [1.80, 1.78, inf, inf, inf]
        rates, losses = tensor([1e-3, 2e-3, 4e-3, 8e-3]), tensor([slow, steady, best, breaks])
        return [(rates, losses), (2 * rates, losses[[1, 3, 2, 0]] + 0.3)]

    def by(score: Callable[[Tensor], Tensor], reported: Callable[[Tensor], Tensor] | None = None) -> Callable:
        """Return a choice of the rate with the lowest score of its losses, and its score or what else is reported."""

        def choice(rates, losses):
            best = score(losses).argmin()
            return rates[best].item(), (reported or score)(losses)[best].item()

        return choice

    reference = by(lambda x: x.median(1).values)
    luckiest = as_it_stands("""The mistake is still there: one lucky seed makes a rate the winner, even where most runs
        broke. What would another seed give?""")(by(lambda x: x.min(1).values))
    first_seed = mistake("You look at one seed only, and take its luck for the merit of a rate.")(by(lambda x: x[:, 0]))
    mean = mistake("""A mean is dragged along by a single unlucky run.
        What was asked for is hardly moved by one.""")(by(lambda x: x.mean(1)))
    mean_of_the_finite = mistake("""You leave out the runs that broke, and so the rate that breaks most often looks
        best.""")(by(lambda x: torch.where(x.isfinite(), x, torch.nan).nanmean(1)))
    quantile = mistake("""For the rate that breaks, your median is not a number but the difference of two infinities,
        and the search for the lowest stops there. Is there a median that takes the middle one
        as it is?""")(by(lambda x: x.quantile(0.5, dim=1)))
    worst = mistake("""You look at the worst seed.
        That is careful, but the luck of a single run decides again.""")(by(lambda x: x.max(1).values))
    reporting_the_luckiest = mistake("""The rate is right. What you report of it is not what it
        was chosen by.""")(by(lambda x: x.median(1).values, lambda x: x.min(1).values))


class MendChoice(Exercise, name="tuning.mend_choice", minutes=5):
    """Mend the report so that the test loss is that of a run which was chosen without it."""

    hint = "Two questions: which run would you keep, and what does it do on text that had no part in keeping it?"

    def inputs():
        lower_on_test = tensor([2.0, 1.5, 1.8]), tensor([1.9, 1.4, 1.2])
        return [lower_on_test, *((2 + 0.1 * randn(n), 2 + 0.1 * randn(n)) for n in (3, 8, 12, 20))]

    def reference(validation_losses, test_losses):
        return chosen(validation_losses, test_losses)

    on_test = as_it_stands("""The mistake is still there: the lowest of many test losses is low by luck as well. What
        else was measured that could choose?""")(lambda validation, test: chosen(test, test))
    on_both = mistake("""The test set still has a say in which run is chosen. It should be opened once, after the
        choice.""")(lambda validation, test: chosen(validation + test, test))
    reporting_validation = mistake("""The run is right. But its validation loss is low partly because it was chosen for
        it: what should be reported?""")(lambda validation, test: chosen(validation, validation))
    reporting_the_best = mistake("""The run is right. The test loss that you report belongs
        to another one.""")(lambda validation, test: (validation.argmin().item(), test.min().item()))
    worst = mistake("That is the worst run: a loss should be small.")(lambda valid, test: chosen(-valid, test))


class NoiseScale(Exercise, name="tuning.noise_scale", minutes=8):
    """Return the noise scale from squared lengths of gradients of two batch sizes."""

    hint = "Put the means into the two equations first, then solve them, and divide at the very end."

    def inputs():
        measured = tensor([5.0, 7.0], dtype=torch.float64), tensor([3.0, 2.0], dtype=torch.float64), 1, 4
        return [measured, squared_lengths(4, 2, 16, 3.0), squared_lengths(3, 4, 32, 5.0)]

    def solved(result: Callable[..., Tensor]) -> Callable:
        """Return what computes a result from both estimates and both mean lengths."""

        def noise_scale(small_norms_squared, big_norms_squared, small, big):
            s, b = small_norms_squared.mean(), big_norms_squared.mean()
            return result(*estimates(s, b, small, big), s, b).item()

        return noise_scale

    reference = solved(lambda squared, noise, s, b: noise / squared)
    sizes_exchanged = mistake("""Your noise scale is negative. Which of the two squared lengths belongs to which size,
        and which of them holds more noise?""")(lambda s, b, small, big: NoiseScale.reference(s, b, big, small))
    ratio_of_lengths = mistake("""You divide one measured length by the other, and both hold signal and noise. Solve for
        each of the two first.""")(solved(lambda squared, noise, s, b: s / b))
    noise_over_the_big = mistake("""You divide by a squared length as it was measured. It still holds noise, even that
        of the big batches: which estimate is free of it?""")(solved(lambda squared, noise, s, b: noise / b))
    without_the_sizes = mistake("""The difference of the lengths is only the noise that the larger batch averages away.
        How large is that of a single sequence?""")(solved(lambda squared, noise, s, b: (s - b) / squared))
    times_the_difference = mistake("""Noise does not shrink in a straight line with the batch. How much is in each of
        the two?""")(lambda *given: NoiseScale.without_the_sizes(*given) * (given[3] - given[2]))

    @mistake("""You divide batch by batch and then take the mean of the ratios, so a batch whose gradient looks tiny by
        chance has the most say. Which comes first?""")
    def mean_of_ratios(s, b, small, big):
        squared, noise = estimates(s, b, small, big)
        return (noise / squared).mean().item()

    root = mistake("""That is the ratio of two lengths. The noise scale is that of their squares,
        and counts sequences.""")(solved(lambda squared, noise, s, b: (noise / squared).sqrt()))
    upside_down = mistake("""Upside down: more noise should ask for
        a larger batch.""")(solved(lambda squared, noise, s, b: squared / noise))


class Accumulate(Exercise, name="tuning.accumulate", minutes=10):
    """Return the gradient of the mean loss of all tokens, computed micro-batch by micro-batch."""

    hint = """Join all micro-batches to one and compute its gradient: how much does one token weigh in it? (An earlier
        step may have left a gradient in the model.)"""
    differentiates = ("model",)

    def inputs():
        models = [with_gradient(nn.Linear(6, 5, bias=False)) for _ in range(2)]
        return list(zip(models, [micro_batches(2, 9, 4), micro_batches(7, 3, 3, 12, padding=2)], strict=True))

    def accumulated(weight: Callable[[Tensor, list[Tensor]], float]) -> Callable:
        """Return what sums the gradients of all losses, with a weight for each part, given its and all targets."""

        def gradient(model, micro_batches):
            model.zero_grad()
            for x, y in micro_batches:
                loss = F.cross_entropy(model(x), y, reduction="sum")
                (weight(y, [targets for _, targets in micro_batches]) * loss).backward()
            return model.weight.grad

        return gradient

    reference = accumulated(lambda y, ys: 1 / sum(map(n_tokens, ys)))
    mean_of_means = mistake("""Each micro-batch has the same say, however few tokens it holds. In one big batch, what
        has?""")(accumulated(lambda y, ys: 1 / n_tokens(y) / len(ys)))
    sum_of_means = mistake("""You add up means, so the gradient grows with the number of micro-batches, and a short one
        has as much say as a long one.""")(accumulated(lambda y, ys: 1 / n_tokens(y)))
    sum_of_sums = mistake("""That is the gradient of the sum. It grows with the number of tokens; that of the mean does
        not.""")(accumulated(lambda y, ys: 1))
    over_parts = mistake("""The sum of all losses is divided by the number of micro-batches. How many losses were added
        up?""")(accumulated(lambda y, ys: 1 / len(ys)))
    over_places = mistake(COUNTS_PADDING)(accumulated(lambda y, ys: 1 / sum(map(len, ys))))
    means_by_length = mistake(COUNTS_PADDING)(accumulated(lambda y, ys: len(y) / n_tokens(y) / sum(map(len, ys))))
    never_cleared = mistake("""What an earlier step left in the model is still in your gradient. When should it be
        cleared?""")(lambda model, parts: model.weight.grad + Accumulate.reference(model, parts))
    last_part = mistake(LAST_PART)(accumulated(lambda y, ys: (y is ys[-1]) / sum(map(n_tokens, ys))))
    all_like_the_first = mistake("""You take all micro-batches to have as many tokens as
        one of them.""")(accumulated(lambda y, ys: 1 / n_tokens(ys[0]) / len(ys)))


class MendBudget(Exercise, name="tuning.mend_budget", minutes=8):
    """Mend the comparison so that both runs have seen the same number of tokens."""

    hint = "How many tokens has each run seen at its end? After how many of its steps had each seen the smaller number?"

    def inputs():
        def curve(steps):  # still falls at its end
            return 3 - torch.linspace(0, 1, steps) + 0.01 * randn(steps)

        runs = [(80, 16, 40, 64), (200, 8, 30, 32), (6, 2, 2, 4)]  # steps and batch size of both
        return [(curve(n), batch, curve(n_big), big_batch) for n, batch, n_big, big_batch in runs]

    def at_budget(budget: Callable = min, read: Callable = lambda losses, steps: losses[steps - 1]) -> Callable:
        """Return what reads both runs after a number of tokens, chosen from the numbers at their ends."""

        def losses_at(small_losses, small_batch, big_losses, big_batch):
            tokens = budget(len(small_losses) * small_batch, len(big_losses) * big_batch)
            return read(small_losses, tokens // small_batch).item(), read(big_losses, tokens // big_batch).item()

        return losses_at

    reference = at_budget()
    equal_steps = as_it_stands("""The mistake is still there: after the same number of steps one of the runs has
        computed far more than the other. In what should a fair
        budget be counted?""")(lambda a, _a, b, _b: tuple(x[min(len(a), len(b)) - 1].item() for x in (a, b)))
    own_ends = mistake("""Each run is read at its own end, where one has seen more tokens
        than the other.""")(lambda a, a_batch, b, b_batch: (a[-1].item(), b[-1].item()))
    one_step_late = mistake("""Very close: you look one step too late.
        After how many steps was the first loss measured?""")(at_budget(read=lambda losses, steps: losses[steps]))
    longer_budget = mistake("One run never saw so many tokens. Up to where can both be compared?")(at_budget(max))
    lowest_on_the_way = mistake("""You take the luckiest loss on the way. Both should be read at the same place: where
        the budget ends.""")(at_budget(read=lambda losses, steps: losses[:steps].min()))


class RateAtWidth(Exercise, name="tuning.rate_at_width", minutes=6):
    """Return the rates of a wider model under muP with Adam, and the multiplier of its logits."""

    hint = "For each kind, ask: does a wider model add up over more of these? Only where it does, something shrinks."

    def inputs():
        return [(0.01, 64, 256), (0.003, 128, 64), (0.02, 128, 320)]

    def reference(rate, base_width, width):
        return rate * base_width / width, rate, rate, base_width / width

    everything = mistake("""You scale the rate of everything. Which of the parameters stand in a sum that grows with the
        width?""")(lambda rate, base, width: (*[rate * base / width] * 3, base / width))
    root = mistake("""You scale the hidden matrices by a root. Changes that push the same way do not add up like noise:
        how fast do they?""")(lambda rate, base, width: (rate * sqrt(base / width), rate, rate, base / width))
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
    of_sgd = mistake("""These are the rules for plain gradient descent. Adam divides every gradient by its own size:
        what is left?""")(lambda rate, base, width: (rate, rate * width / base, rate * width / base, base / width))
    cut = mistake("""Your division drops what is left over. Look for the operator that keeps
        fractions.""")(lambda rate, base, width: (rate * (base // width), rate, rate, float(base // width)))
