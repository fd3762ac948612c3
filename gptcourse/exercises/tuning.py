"""The exercises of notebook 03: a learning rate and a batch size, and how to compare runs fairly.

Each mistake is a formula that people really use. Its hint says what goes wrong, or asks the question that helps,
and leaves the mending to the learner.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from math import cos, inf, pi, sin, sqrt
from statistics import fmean, median

import torch
import torch.nn.functional as F
from torch import Tensor, nn, randint, randn, tensor

from gptcourse.exercises import Exercise, Mistake
from gptcourse.optimizers import decay_groups, learning_rate_at
from gptcourse.training import TrainingConfig
from gptcourse.tuning import BatchTradeOff, RangeTest, noise_scale_estimates

NOTEBOOK = "03 · Learning rate and batch size"
EARLY_FALL = "The warm-up ends below the peak: your fall begins while the rate still climbs. Where is it to begin?"
NO_WARMUP = "The warm-up is missing: the first steps should be small and grow in a straight line."
ABOVE_PEAK = "Where the fall begins, your rate is above the peak. From which height to which should the wave lead?"
STILL_NOISY = (
    "You divide by a squared length as it was measured. It still holds noise, even that of the big batches: "
    "which estimate is free of it?"
)
COUNTS_PADDING = "Places with target -100 hold no token and have no loss, but you count them. Who should be counted?"
LAST_PART = "Only the last part is left in the gradient. Where is it cleared, and how often should that happen?"
ONE_LUCKY_LOSS = "A single lucky batch decides, because you look at the raw losses. What should forgive such a spike?"
LOOKS_AHEAD = (
    "Each median should look back, and yours holds losses that were measured later. "
    "Check at the start: the first median can hold one loss only, and there are as many medians as losses."
)
STEEPEST = "That is where the loss falls fastest, another rule that people use. Here the lowest place is asked for."
GAINS_DECAY = (
    "The gains of the norms still decay: their names end in weight, too. "
    "By what, other than a name, does a vector differ from a matrix?"
)
STILL_ON_TEST = "The test set still has a say in which run is chosen. It should be opened once, after the choice."
CUT_DIVISION = "Your division drops what is left over. Look for the operator that keeps fractions."


def schedule_like(
    step: int,
    peak: float,
    warmup_steps: int,
    steps: int,
    climb: Callable = lambda step, warmup: (step + 1) / (warmup + 1),
    progress: Callable = lambda step, warmup, steps: min((step - warmup) / (steps - warmup), 1.0),
    height: Callable = lambda x: 0.1 + 0.9 * (1 + cos(pi * x)) / 2,
) -> float:
    """Warm-up and decay for a given climb, measure of progress and height of the wave."""
    if step < warmup_steps:
        return peak * climb(step, warmup_steps)
    return peak * height(progress(step, warmup_steps, steps))


def published_schedule(step: int, peak: float, warmup_steps: int, steps: int) -> float:
    return learning_rate_at(step, TrainingConfig(steps, 1, peak, warmup_steps=warmup_steps))


class NormedLayers(nn.Sequential):
    """A token table, two kinds of norms and two linear layers: matrices and vectors of every sort a GPT has."""

    def __init__(self) -> None:
        super().__init__(nn.Embedding(7, 4), nn.LayerNorm(4), nn.Linear(4, 6), nn.RMSNorm(6), nn.Linear(6, 7, False))


def decay_by(decays: Callable[[str, nn.Module, Tensor], bool]) -> Callable[[nn.Module, float], Tensor]:
    """Return what gives the decay of each parameter, for a given way to tell which of them decay."""

    def decay_of_each(model: nn.Module, weight_decay: float) -> Tensor:
        found = [decays(name, part, p) for part in model.children() for name, p in part.named_parameters()]
        return weight_decay * tensor(found).float()

    return decay_of_each


def published_decay(model: nn.Module, weight_decay: float) -> Tensor:
    decays = {id(p): group["weight_decay"] for group in decay_groups(model, weight_decay) for p in group["params"]}
    return tensor([decays[id(parameter)] for parameter in model.parameters()])


def range_test_curve(n: int, edge: int, slope: float) -> tuple[list[float], list[float]]:
    """Rates and losses that fall down to a valley and climb out of it, with a lucky and an unlucky batch."""
    losses = [4 - slope * min(i, edge) + 0.1 * max(i - edge, 0) + 0.08 * sin(i * i) for i in range(n)]
    losses[edge - 1] += 3.0
    losses[edge + 6] -= 1.0
    return [1e-4 * 1.17**i for i in range(n)], losses


def of_the_last(losses: list[float], window: int, middle: Callable = median) -> list[float]:
    return [middle(losses[max(i - window + 1, 0) : i + 1]) for i in range(len(losses))]


def centred(losses: list[float], window: int) -> list[float]:
    return [median(losses[max(i - window // 2, 0) : i + window // 2 + 1]) for i in range(len(losses))]


def of_the_next(losses: list[float], window: int) -> list[float]:
    return [median(losses[i : i + window]) for i in range(len(losses) - window + 1)]


def raw(losses: list[float], window: int) -> list[float]:
    return losses


def read_off(
    rates: list[float], losses: list[float], window: int, smooth: Callable = of_the_last, back: int = 1, share=0.5
) -> float:
    """The rate `back` places before the lowest smoothed loss, times `share`."""
    smoothed = smooth(losses, window)
    return share * rates[max(smoothed.index(min(smoothed)) - back, 0)]


def at_the_steepest(rates: list[float], losses: list[float], window: int, after: int) -> float:
    smoothed = of_the_last(losses, window)
    falls = [later - earlier for earlier, later in pairwise(smoothed)]
    return rates[falls.index(min(falls)) + after]


def published_reading(rates: list[float], losses: list[float], window: int) -> float:
    return RangeTest(rates, losses, of_the_last(losses, window), broke=True).suggestion


def measured_norms(n_batches: int, small: int, big: int, noise: float) -> tuple[Tensor, Tensor, int, int]:
    """Squared lengths of gradients with 30 entries of size 1 and this much noise in each sequence's gradient."""
    gradients = 1 + noise * randn(n_batches, big // small, small, 30, dtype=torch.float64)
    of_parts = gradients.mean(2)  # (n_batches, big // small, 30)
    return of_parts.square().sum(-1).mean(1), of_parts.mean(1).square().sum(-1), small, big


def noise_by(ratio: Callable) -> Callable[[Tensor, Tensor, int, int], float]:
    """Return what gives a noise scale, for a given way to join what was measured and both estimates."""

    def noise_scale(small_norms_squared: Tensor, big_norms_squared: Tensor, small: int, big: int) -> float:
        s, b = small_norms_squared.mean().item(), big_norms_squared.mean().item()
        return ratio(s, b, small, big, *noise_scale_estimates(s, b, small, big))

    return noise_scale


published_noise_scale = noise_by(lambda s, b, small, big, norm_squared, trace: trace / norm_squared)


def mean_of_ratios(s: Tensor, b: Tensor, small: int, big: int) -> float:
    norm_squared, trace = noise_scale_estimates(s, b, small, big)  # a pair for each batch
    return (trace / norm_squared).mean().item()


def micro_batches(*sizes: int, padding: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Parts with so many places; in each, the last `padding` targets are -100: no token stands there."""
    parts = [(randn(size, 6), randint(5, (size,))) for size in sizes]
    return [(x, y.masked_fill(torch.arange(len(y)) >= len(y) - padding, -100)) for x, y in parts]


def gradient_of_all(model: nn.Linear, micro_batches: list) -> Tensor:
    """The gradient of the mean loss of all tokens, with all parts joined to one batch."""
    x, y = (torch.cat(parts) for parts in zip(*micro_batches, strict=True))
    return torch.autograd.grad(F.cross_entropy(model(x), y), model.weight)[0]


def n_tokens(y: Tensor) -> int:
    return (y >= 0).sum().item()


def weighted(weight: Callable[[Tensor, list[Tensor]], float]) -> Callable[[nn.Linear, list], Tensor]:
    """Return what adds up gradients, each part's sum of losses times `weight`, given its and all parts' targets."""

    def gradient(model: nn.Linear, micro_batches: list) -> Tensor:
        targets = [y for _, y in micro_batches]
        sums = [F.cross_entropy(model(x), y, reduction="sum") for x, y in micro_batches]
        total = sum(weight(y, targets) * loss for y, loss in zip(targets, sums, strict=True))
        return torch.autograd.grad(total, model.weight)[0]

    return gradient


def trade_off(batch: int, min_steps: float, min_tokens: float) -> tuple[float, float]:
    run = BatchTradeOff(min_steps, min_tokens / min_steps)
    return run.steps(batch), run.tokens(batch)


def rates_of_torch(model: nn.Module, batches: list, epochs: int, peak: float) -> Tensor:
    """The rates of torch's own scheduler, moved once a step.

    It also builds the first optimizer: torch then imports for seconds, which would count as the time of an answer.
    """
    steps = epochs * len(batches)
    optimizer = torch.optim.SGD(model.parameters(), lr=peak)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=0.1 * peak)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return tensor(rates)


def at_progress(progress: Callable[[Tensor, int, int], Tensor]) -> Callable:
    """Return what gives the rates of all steps on a cosine down to a tenth, for a given measure of progress."""

    def rates(model: nn.Module, batches: list, epochs: int, peak: float) -> Tensor:
        done = progress(torch.arange(epochs * len(batches)), len(batches), epochs)
        return peak * (0.1 + 0.9 * (1 + torch.cos(pi * done)) / 2)

    return rates


def to_decay() -> tuple[nn.Module, list[Tensor], float, float, int]:
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2, bias=False))
    return model, [randn(parameter.shape) for parameter in model.parameters()], 0.05, 0.5, 4


def adam_steps(groups: Callable[[nn.Module, float], list[dict]], kind: type = torch.optim.AdamW) -> Callable:
    """Return what takes steps with given gradients and gives the parameters, for given groups."""

    def updated(model: nn.Module, gradients: list[Tensor], rate: float, weight_decay: float, steps: int) -> tuple:
        """Return the weights after some steps with the same gradients."""
        optimizer = kind(groups(model, weight_decay), lr=rate)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient
        for _ in range(steps):
            optimizer.step()
        return tuple(parameter.detach() for parameter in model.parameters())

    return updated


def in_two_groups(model: nn.Module, matrices: dict, others: dict) -> list[dict]:
    """Groups with these settings; an empty one leaves them to the optimizer."""
    of_matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    of_others = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    return [{"params": of_matrices} | matrices, {"params": of_others} | others]


def all_but_biases(model: nn.Module, weight_decay: float) -> list[dict]:
    named = dict(model.named_parameters())
    weights = [parameter for name, parameter in named.items() if not name.endswith("bias")]
    biases = [parameter for name, parameter in named.items() if name.endswith("bias")]
    return [{"params": weights, "weight_decay": weight_decay}, {"params": biases, "weight_decay": 0.0}]


def line_in_parts(n_parts: int, size: int) -> tuple[nn.Linear, list[tuple[Tensor, Tensor]], float]:
    return nn.Linear(3, 1, bias=False), [(randn(size, 3), randn(size, 1)) for _ in range(n_parts)], 0.1


def one_step(model: nn.Linear, micro_batches: list, rate: float) -> Tensor:
    """The weight after a step of plain gradient descent on all parts joined to one batch."""
    x, y = (torch.cat(parts) for parts in zip(*micro_batches, strict=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    F.mse_loss(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()
    return model.weight.detach()


def many_steps(model: nn.Linear, micro_batches: list, rate: float) -> Tensor:
    return [one_step(model, [part], rate) for part in micro_batches][-1]


def two_curves(small_steps: int, small_batch: int, big_steps: int, big_batch: int) -> tuple:
    """Losses of two runs, the i-th after i + 1 steps; both still fall at the end."""
    curves = [3 - torch.linspace(0, 1, steps) + 0.01 * randn(steps) for steps in (small_steps, big_steps)]
    return curves[0], small_batch, curves[1], big_batch


def shorter_budget(a: Tensor, a_batch: int, b: Tensor, b_batch: int) -> int:
    return min(len(a) * a_batch, len(b) * b_batch)


def at_budget(a: Tensor, a_batch: int, b: Tensor, b_batch: int, tokens: int, before: int = 1) -> tuple[float, float]:
    """The loss of each run after so many tokens; with `before=0` one step later."""
    return a[tokens // a_batch - before].item(), b[tokens // b_batch - before].item()


def at_equal_tokens(small_losses: Tensor, small_batch: int, big_losses: Tensor, big_batch: int) -> tuple[float, float]:
    run = small_losses, small_batch, big_losses, big_batch
    return at_budget(*run, shorter_budget(*run))


def lowest_on_the_way(a: Tensor, a_batch: int, b: Tensor, b_batch: int) -> tuple[float, float]:
    tokens = shorter_budget(a, a_batch, b, b_batch)
    return a[: tokens // a_batch].min().item(), b[: tokens // b_batch].min().item()


def seeds_of_rates() -> list[tuple[Tensor, Tensor]]:
    """Final losses of five seeds a rate: a steady rate, the best one with an unlucky seed, one that often breaks."""
    steady, best = [2.04, 2.10, 2.12, 2.11, 2.13], [2.05, 2.02, 2.90, 1.98, 2.01]
    breaks = [1.80, 1.78, inf, inf, inf]
    slow = [2.50, 2.49, 2.52, 2.51, 2.48]
    rates = tensor([1e-3, 2e-3, 4e-3, 8e-3])
    return [(rates, tensor([slow, steady, best, breaks])), (2 * rates, tensor([steady, breaks, best, slow]) + 0.3)]


def by_median(rates: Tensor, losses: Tensor) -> tuple[float, float]:
    return winner(rates, losses.median(1).values)


def winner(rates: Tensor, scores: Tensor, reported: Tensor | None = None) -> tuple[float, float]:
    """The rate with the lowest score, and its entry in what is reported: the score unless something else is given."""
    best = scores.argmin()
    return rates[best].item(), (scores if reported is None else reported)[best].item()


def mean_of_the_finite(losses: Tensor) -> Tensor:
    return torch.where(losses.isfinite(), losses, torch.nan).nanmean(1)


def chosen(losses: Tensor, reported: Tensor) -> tuple[int, float]:
    best = losses.argmin().item()
    return best, reported[best].item()


def changes_by_width(exponent: float, n_widths: int = 4) -> tuple[Tensor, Tensor]:
    """Return widths, each twice the one before, and changes that grow as a power of them, with some noise."""
    widths = 32.0 * 2.0 ** torch.arange(n_widths)
    return widths, 0.1 * widths**exponent * torch.exp(0.1 * randn(n_widths))


def slope(x: Tensor, y: Tensor) -> float:
    """Return the slope of the straight line nearest to the points, by least squares."""
    return (((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()).item()


EXERCISES = (
    Exercise(
        name="tuning.schedule",
        asks="Return the learning rate of a step: a straight warm-up, then half a cosine down to a tenth of the peak.",
        inputs=lambda: [
            *((step, 6e-4, 10, 100) for step in (0, 4, 9, 10, 30, 55, 99, 100, 130)),
            *((step, 0.5, 0, 8) for step in (0, 3, 7)),
        ],
        reference=published_schedule,
        hint=(
            "Draw it first: where does the rate stand at step 0, at the end of the warm-up, halfway through the "
            "fall and after the last step?"
        ),
        mistakes=(
            Mistake(
                partial(schedule_like, climb=lambda step, warmup: step / warmup),
                "Your first step has a rate of 0: a gradient is computed and thrown away. "
                "Into how many equal parts should the climb be cut?",
            ),
            Mistake(
                partial(schedule_like, climb=lambda step, warmup: (step + 1) / warmup),
                "Very close: you reach the full rate one step too early. The last step of the warm-up is still below.",
            ),
            Mistake(
                partial(schedule_like, progress=lambda step, warmup, steps: min(step / steps, 1.0)),
                EARLY_FALL,
            ),
            Mistake(
                lambda step, peak, warmup, steps: (
                    min((step + 1) / (warmup + 1), 1.0) * schedule_like(step, peak, 0, steps)
                ),
                EARLY_FALL,
            ),
            Mistake(
                partial(schedule_like, progress=lambda step, warmup, steps: min((step - warmup) / steps, 1.0)),
                "Your fall takes too long: at the end of the run the rate is still above its floor. "
                "How many steps are left for it after the warm-up?",
            ),
            Mistake(lambda step, peak, warmup, steps: schedule_like(step, peak, 0, steps), NO_WARMUP),
            Mistake(partial(schedule_like, climb=lambda step, warmup: 1.0), NO_WARMUP),
            Mistake(
                partial(schedule_like, height=lambda x: (1 + cos(pi * x)) / 2),
                "Your rate falls to 0. GPT-3 goes on learning at a small share of the peak.",
            ),
            Mistake(
                partial(schedule_like, height=lambda x: max(0.1, (1 + cos(pi * x)) / 2)),
                "Your wave is aimed at 0 and cut off at the floor, so the rate lies on the floor well before the end. "
                "It should get there just as the run ends.",
            ),
            Mistake(partial(schedule_like, height=lambda x: 0.1 + (1 + cos(pi * x)) / 2), ABOVE_PEAK),
            Mistake(partial(schedule_like, height=lambda x: 0.1 + 0.9 * (1 + cos(pi * x))), ABOVE_PEAK),
            Mistake(
                partial(schedule_like, height=lambda x: 0.1 + 0.9 * cos(pi * x)),
                "Your rate becomes negative: a cosine goes down to minus one. How can it be made to end at zero?",
            ),
            Mistake(
                partial(schedule_like, height=lambda x: 0.1 + 0.9 * cos(pi * x / 2)),
                "Yours is a quarter of a wave: it falls fastest at the very end. Half a wave runs out flat.",
            ),
            Mistake(
                partial(schedule_like, height=lambda x: 0.1 + 0.9 * (1 + cos(2 * pi * x)) / 2),
                "Yours is a whole wave: in the second half of the fall the rate climbs back to the peak.",
            ),
            Mistake(
                partial(schedule_like, height=lambda x: 0.1 + 0.9 * (1 + cos(x)) / 2),
                "Your cosine hardly falls. Angles are in radians: how large is the angle of half a wave?",
            ),
            Mistake(
                partial(schedule_like, progress=lambda step, warmup, steps: (step - warmup) / (steps - warmup)),
                "After the last step your cosine turns round and climbs. The rate should stay on the floor.",
            ),
            Mistake(
                partial(schedule_like, height=lambda x: 1 - 0.9 * x),
                "You fall in a straight line. That works as well, but a cosine was asked for.",
            ),
            Mistake(partial(schedule_like, height=lambda x: 1.0), "After the warm-up your rate stays at the peak."),
        ),
    ),
    Exercise(
        name="tuning.decay_groups",
        asks="Return the weight decay of every parameter, in the order in which the model lists them.",
        inputs=lambda: [
            (NormedLayers(), 0.1),
            (nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.RMSNorm(3), nn.Embedding(2, 3)), 0.5),
        ],
        reference=published_decay,
        hint="Print the name and the shape of every parameter, and mark those that are matrices.",
        mistakes=(
            Mistake(
                decay_by(lambda name, part, p: True),
                "Everything decays. Is it any use to pull the gain of a norm towards zero?",
            ),
            Mistake(decay_by(lambda name, part, p: not name.endswith("bias")), GAINS_DECAY),
            Mistake(
                decay_by(lambda name, part, p: not isinstance(part, nn.LayerNorm) and not name.endswith("bias")),
                "One kind of norm is spared, and another is not. A list of kinds is never complete: "
                "what do all their gains have in common?",
            ),
            Mistake(
                decay_by(lambda name, part, p: isinstance(part, nn.Linear) and name == "weight"),
                "The token table is left out. Some do that; here it decays, as it may be the read-out as well.",
            ),
            Mistake(
                decay_by(lambda name, part, p: isinstance(part, nn.Linear)),
                "You choose by the kind of layer, so that biases decay and the token table does not.",
            ),
            Mistake(
                decay_by(lambda name, part, p: not isinstance(part, nn.LayerNorm | nn.RMSNorm)),
                "The norms are spared. The biases of the other layers still decay.",
            ),
            Mistake(decay_by(lambda name, part, p: p.ndim < 2), "The other way round: yours spares the matrices."),
            Mistake(decay_by(lambda name, part, p: False), "Nothing decays at all."),
        ),
    ),
    Exercise(
        name="tuning.range_test",
        asks="Return the rate that a range test suggests: half the rate that led to the lowest smoothed loss.",
        inputs=lambda: [(*range_test_curve(60, 42, 0.05), 5), (*range_test_curve(40, 26, 0.07), 3)],
        reference=published_reading,
        hint=(
            "Do it in three moves: smooth the losses, find the place of the lowest, and go from there to a rate. "
            "Check each on a list of five losses."
        ),
        mistakes=(
            *(
                Mistake(partial(read_off, smooth=raw, back=back, share=share), ONE_LUCKY_LOSS)
                for back in (0, 1)
                for share in (1.0, 0.5)
            ),
            Mistake(
                partial(read_off, back=0),
                "Very close: a loss is measured before the update at the rate beside it. "
                "So which rate made the lowest loss?",
            ),
            Mistake(
                partial(read_off, share=1.0),
                "That is the edge itself, the largest rate that still helped. A safe rate keeps some distance.",
            ),
            Mistake(
                partial(read_off, back=0, share=1.0),
                "That is the rate beside the lowest loss, where training has already begun to break. "
                "Which rate made that loss, and how far should one stay away from it?",
            ),
            *(
                Mistake(
                    partial(read_off, back=back, share=0.1),
                    "A tenth is a rule that others use, for curves read by eye. How far away does this one stay?",
                )
                for back in (0, 1)
            ),
            *(
                Mistake(partial(read_off, smooth=smooth, back=back), LOOKS_AHEAD)
                for smooth in (centred, of_the_next)
                for back in (0, 1)
            ),
            Mistake(
                partial(read_off, smooth=partial(of_the_last, middle=fmean)),
                "You smooth with a mean, and one lucky or unlucky batch drags it along. What is hardly moved by one?",
            ),
            *(Mistake(partial(at_the_steepest, after=after), STEEPEST) for after in (0, 1)),
            *(
                Mistake(
                    lambda rates, losses, window, share=share: share * rates[-1],
                    "The last rate is where the test gave up: the loss had already been climbing for a while.",
                )
                for share in (1.0, 0.5)
            ),
            *(
                Mistake(
                    lambda rates, losses, window, smooth=smooth: min(smooth(losses, window)),
                    "That is a loss. Which rate led to it?",
                )
                for smooth in (of_the_last, raw)
            ),
        ),
    ),
    Exercise(
        name="tuning.noise_scale",
        asks="Return the noise scale from squared lengths of gradients of two batch sizes.",
        inputs=lambda: [measured_norms(4, 2, 16, 3.0), measured_norms(3, 4, 32, 5.0)],
        reference=published_noise_scale,
        hint="Put the means into the two equations first, then solve them, and divide at the very end.",
        mistakes=(
            Mistake(
                lambda s, b, small, big: published_noise_scale(s, b, big, small),
                "Your noise scale is negative. Which of the two squared lengths belongs to which size, "
                "and which of them holds more noise?",
            ),
            Mistake(
                noise_by(lambda s, b, small, big, norm_squared, trace: s / b),
                "You divide one measured length by the other, and both hold signal and noise. "
                "Solve for each of the two first.",
            ),
            Mistake(noise_by(lambda s, b, small, big, norm_squared, trace: (s - b) / b), STILL_NOISY),
            Mistake(noise_by(lambda s, b, small, big, norm_squared, trace: trace / b), STILL_NOISY),
            Mistake(
                noise_by(lambda s, b, small, big, norm_squared, trace: (s - b) / norm_squared),
                "The difference of the two lengths is only the noise that the larger batch averages away. "
                "How is it related to the noise of a single sequence?",
            ),
            Mistake(
                noise_by(lambda s, b, small, big, norm_squared, trace: (s - b) * (big - small) / norm_squared),
                "Noise does not shrink in a straight line with the size of the batch. "
                "Write down how much of it is in each of the two, and subtract.",
            ),
            Mistake(
                mean_of_ratios,
                "You divide batch by batch and then take the mean of the ratios, so a batch whose gradient looks "
                "tiny by chance has the most say. Which comes first?",
            ),
            Mistake(
                noise_by(lambda s, b, small, big, norm_squared, trace: sqrt(trace / norm_squared)),
                "That is the ratio of two lengths. The noise scale is that of their squares, and counts sequences.",
            ),
            Mistake(
                noise_by(lambda s, b, small, big, norm_squared, trace: norm_squared / trace),
                "Upside down: more noise should ask for a larger batch.",
            ),
            Mistake(
                noise_by(lambda s, b, small, big, norm_squared, trace: trace / ((big * s - small * b) / (big - small))),
                "Your estimate of the squared gradient is larger than both measured lengths, though noise only adds "
                "to a length. Which of the two should weigh more?",
            ),
            Mistake(
                noise_by(lambda s, b, small, big, norm_squared, trace: trace),
                "That is the noise of one sequence. To what is it compared?",
            ),
            Mistake(
                noise_by(lambda s, b, small, big, norm_squared, trace: norm_squared),
                "That is the squared length of the gradient without its noise. The noise itself is missing.",
            ),
        ),
    ),
    Exercise(
        name="tuning.accumulate",
        asks="Return the gradient of the mean loss of all tokens, computed micro-batch by micro-batch.",
        inputs=lambda: [
            (nn.Linear(6, 5, bias=False), micro_batches(2, 9, 4)),
            (nn.Linear(6, 5, bias=False), micro_batches(7, 3, 3, 12, padding=2)),
        ],
        reference=gradient_of_all,
        hint="Join all micro-batches to one and compute its gradient: how much does one token weigh in it?",
        mistakes=(
            Mistake(
                weighted(lambda y, targets: 1 / n_tokens(y) / len(targets)),
                "Each micro-batch has the same say, however few tokens it holds. In one big batch, what has?",
            ),
            Mistake(
                weighted(lambda y, targets: 1 / n_tokens(y)),
                "You add up means, so the gradient grows with the number of micro-batches, and a short one has "
                "as much say as a long one.",
            ),
            Mistake(
                weighted(lambda y, targets: 1.0),
                "That is the gradient of the sum. It grows with the number of tokens; that of the mean does not.",
            ),
            Mistake(
                weighted(lambda y, targets: 1 / len(targets)),
                "The sum of all losses is divided by the number of micro-batches. How many losses were added up?",
            ),
            Mistake(weighted(lambda y, targets: 1 / sum(map(len, targets))), COUNTS_PADDING),
            Mistake(weighted(lambda y, targets: len(y) / n_tokens(y) / sum(map(len, targets))), COUNTS_PADDING),
            Mistake(lambda model, micro_batches: gradient_of_all(model, micro_batches[-1:]), LAST_PART),
            Mistake(
                weighted(lambda y, targets: (y is targets[-1]) / sum(map(n_tokens, targets))),
                LAST_PART,
            ),
            *(
                Mistake(
                    weighted(lambda y, targets, which=which: 1 / n_tokens(targets[which]) / len(targets)),
                    "You take all micro-batches to have as many tokens as one of them.",
                )
                for which in (0, -1)
            ),
        ),
    ),
    Exercise(
        name="tuning.trade_off",
        asks="Return the steps and the tokens that a run takes to the loss at this batch size.",
        inputs=lambda: [(4096, 500.0, 1e6), (512, 500.0, 1e6), (100_000, 1200.0, 6e6)],
        reference=trade_off,
        hint="Tokens are steps times batch: put that into the equation of the hyperbola and solve it for the steps.",
        mistakes=(
            Mistake(
                lambda batch, min_steps, min_tokens: (min_tokens / batch, min_tokens),
                "That is what tiny batches would do: every token counts in full. What else limits the steps?",
            ),
            Mistake(
                lambda batch, min_steps, min_tokens: (min_steps, min_steps * batch),
                "That is what endless batches would do: never fewer steps. What do the smaller ones pay?",
            ),
            Mistake(
                lambda batch, min_steps, min_tokens: (
                    max(min_steps, min_tokens / batch),
                    max(min_tokens, min_steps * batch),
                ),
                "You join the two limits with a corner. A hyperbola comes near to both and touches neither.",
            ),
            Mistake(
                lambda batch, min_steps, min_tokens: (min_tokens / batch, min_steps * batch),
                "Each of yours can fall below its minimum. What became of the two ones in the equation?",
            ),
            Mistake(
                lambda batch, min_steps, min_tokens: (
                    min_steps * (1 + min_steps / min_tokens / batch),
                    min_tokens * (1 + batch * min_tokens / min_steps),
                ),
                "Your critical batch is upside down: it is counted in tokens for each step.",
            ),
            Mistake(
                lambda batch, min_steps, min_tokens: (
                    min_steps * (1 + batch * min_steps / min_tokens),
                    min_tokens * (1 + min_tokens / min_steps / batch),
                ),
                "With a larger batch yours takes more steps and fewer tokens. Which way should each go?",
            ),
            Mistake(
                lambda *inputs: trade_off(*inputs)[::-1], "Both are right. Which of the two should come first, though?"
            ),
            Mistake(
                lambda batch, min_steps, min_tokens: (trade_off(batch, min_steps, min_tokens)[0], min_tokens),
                "The steps are right. Do your tokens agree with them and the batch?",
            ),
            Mistake(
                lambda batch, min_steps, min_tokens: (min_steps, trade_off(batch, min_steps, min_tokens)[1]),
                "The tokens are right. Do your steps agree with them and the batch?",
            ),
        ),
    ),
    Exercise(
        name="tuning.batch_rate",
        asks="Return the learning rate for a new batch size under the linear rule and under the square-root rule.",
        inputs=lambda: [(3e-4, 32, 512), (0.01, 64, 16), (1e-3, 48, 72)],
        reference=lambda rate, batch, new_batch: (rate * new_batch / batch, rate * sqrt(new_batch / batch)),
        hint="By which factor does the batch grow, and by which factor should the rate grow under each of the rules?",
        mistakes=(
            Mistake(
                lambda rate, batch, new_batch: (rate * batch / new_batch, rate * sqrt(batch / new_batch)),
                "A larger batch has a gradient with less noise. Should its steps be shorter or longer?",
            ),
            Mistake(
                lambda rate, batch, new_batch: (rate * sqrt(new_batch / batch), rate * new_batch / batch),
                "Both are right, in the other order: the linear rule comes first.",
            ),
            Mistake(
                lambda rate, batch, new_batch: (rate * new_batch / batch,) * 2,
                "The linear rule is right. The other one should follow the noise's length, which shrinks more slowly.",
            ),
            Mistake(
                lambda rate, batch, new_batch: (rate * sqrt(new_batch / batch),) * 2,
                "The square-root rule is right. The linear one should change the rate by more.",
            ),
            Mistake(
                lambda rate, batch, new_batch: (rate * new_batch / batch, sqrt(rate * new_batch / batch)),
                "Your root reaches too far: at an unchanged batch the rate should stay as it is.",
            ),
            Mistake(
                lambda rate, batch, new_batch: (rate * new_batch / batch, rate * (new_batch / batch) ** 2),
                "You take the square where the root was asked for.",
            ),
            Mistake(
                lambda rate, batch, new_batch: (rate * (new_batch // batch), rate * sqrt(new_batch // batch)),
                CUT_DIVISION,
            ),
            Mistake(
                lambda rate, batch, new_batch: (rate * new_batch, rate * sqrt(new_batch)),
                "What counts is not how large the new batch is, but how much larger than the old one.",
            ),
            Mistake(
                lambda rate, batch, new_batch: (rate, rate),
                "The rate stays as it was. The old one was found for another batch size.",
            ),
        ),
    ),
    Exercise(
        name="tuning.rate_at_width",
        asks="Return the rates of a wider model under muP with Adam, and the multiplier of its read-out.",
        inputs=lambda: [(0.01, 64, 256), (0.003, 128, 64), (0.02, 128, 320)],
        reference=lambda rate, base_width, width: (rate * base_width / width, rate, rate, base_width / width),
        hint=(
            "For each kind, ask: does a wider model add up over more of these numbers? "
            "Only where it does something has to shrink."
        ),
        mistakes=(
            Mistake(
                lambda rate, base, width: (rate * base / width,) * 3 + (base / width,),
                "You scale the rate of everything. Which of the parameters stand in a sum that grows with the width?",
            ),
            Mistake(
                lambda rate, base, width: (rate * sqrt(base / width), rate, rate, base / width),
                "You scale the hidden matrices by a root. Changes that all push the same way do not add up "
                "like noise: how fast does their sum grow?",
            ),
            Mistake(
                lambda rate, base, width: (rate * base / width, rate * base / width, rate, base / width),
                "The embeddings: a token picks one row and adds it to nothing. Does that change with the width?",
            ),
            Mistake(
                lambda rate, base, width: (rate * base / width, rate, rate * base / width, base / width),
                "Biases and gains: each acts on a single number. Does that change with the width?",
            ),
            Mistake(
                lambda rate, base, width: (rate * width / base, rate, rate, base / width),
                "Your hidden matrices take longer steps in a wider model, though each of their outputs already "
                "adds up over more inputs.",
            ),
            Mistake(
                lambda rate, base, width: (rate * width / base, rate, rate, width / base),
                "Both go the wrong way: a sum over more inputs grows by itself. Should it be helped or held back?",
            ),
            Mistake(
                lambda rate, base, width: (rate * base / width, rate, rate, width / base),
                "The rates are right. The logits are sums over the width: should they be helped or held back?",
            ),
            Mistake(
                lambda rate, base, width: (rate * base / width, rate, rate, sqrt(base / width)),
                "The rates are right. Once they have learned, the logits do not add up like noise: no root here.",
            ),
            Mistake(
                lambda rate, base, width: (rate * base / width, rate, rate, 1.0),
                "The rates are right. The logits are sums over the width as well. What keeps them the same?",
            ),
            Mistake(
                lambda rate, base, width: (rate, rate, rate, 1.0),
                "That is the usual way, and under it the best rate moves as the model gets wider.",
            ),
            Mistake(
                lambda rate, base, width: (rate, rate, rate, base / width),
                "The read-out is held back, but the matrices inside the blocks add up over more inputs, too.",
            ),
            Mistake(
                lambda rate, base, width: (rate, rate * width / base, rate * width / base, base / width),
                "These are the rules for plain gradient descent. Adam divides every gradient by its own size, "
                "so other things are left to scale.",
            ),
            Mistake(
                lambda rate, base, width: (rate * (base / width) ** 2, rate, rate, base / width),
                "Your hidden matrices slow down with the square of the width. How many sides does the sum run over?",
            ),
            Mistake(lambda rate, base, width: (rate * (base // width), rate, rate, float(base // width)), CUT_DIVISION),
        ),
    ),
    Exercise(
        name="tuning.growth",
        asks="Return the power of the width with which the changes grow.",
        inputs=lambda: [
            changes_by_width(1.0),
            changes_by_width(0.0, 5),
            changes_by_width(-0.5),
            changes_by_width(0.75),
        ],
        reference=lambda widths, changes: slope(widths.log(), changes.log()),
        hint="A power law is a straight line once both axes are logarithmic. What is its slope, with all points heard?",
        mistakes=(
            Mistake(
                lambda widths, changes: slope(widths, changes),
                "That slope depends on the units: it would be another one for changes ten times as large. "
                "On which axes is a power law a straight line?",
            ),
            Mistake(
                lambda widths, changes: slope(widths, changes.log()),
                "Only the changes are on a logarithmic axis: that fits an exponential, not a power of the width.",
            ),
            Mistake(
                lambda widths, changes: slope(widths.log(), changes),
                "Only the widths are on a logarithmic axis. The changes of a power law need one as well.",
            ),
            Mistake(
                lambda widths, changes: ((changes[-1] / changes[0]).log() / (widths[-1] / widths[0]).log()).item(),
                "You join the first point and the last and pass over those between: chance in two measurements "
                "decides. Let all points have a say.",
            ),
            Mistake(
                lambda widths, changes: (changes[-1] / changes[0]).item(),
                "That is how many times larger the change became over the whole range, not the power of the width.",
            ),
            Mistake(
                lambda widths, changes: slope(changes.log(), widths.log()),
                "The axes are swapped: the width is what you choose, the change is what you measure.",
            ),
            Mistake(
                lambda widths, changes: ((widths.log() * changes.log()).sum() / widths.log().square().sum()).item(),
                "Your line is forced through the origin. A power law may have any factor in front.",
            ),
            Mistake(
                lambda widths, changes: -slope(widths.log(), changes.log()),
                "The sign: changes that grow with the width should give a number above zero.",
            ),
        ),
    ),
    Exercise(
        name="tuning.mend_schedule",
        asks="Mend the training so that the rate falls along one cosine, a little with every step.",
        inputs=lambda: [
            (nn.Linear(3, 1), [(randn(4, 3), randn(4, 1)) for _ in range(6)], 4, 0.5),
            (nn.Linear(3, 1), [(randn(4, 3), randn(4, 1)) for _ in range(5)], 3, 0.2),
        ],
        reference=rates_of_torch,
        hint=(
            "Note the rate of every step, the first one included: it should start at the peak and come down "
            "almost to a tenth, and no two steps should share one."
        ),
        mistakes=(
            Mistake(
                at_progress(lambda step, n, epochs: step // n / (epochs * n)),
                "The mistake is still there: at the end of the run the rate has hardly moved. "
                "How many moves does the scheduler expect, and how many does it get?",
                untouched=True,
            ),
            Mistake(
                at_progress(lambda step, n, epochs: step // n / epochs),
                "Now the rate falls all the way, but in stairs: it stands still for a whole epoch. "
                "With a single epoch, the usual case for language models, it would never fall.",
            ),
            Mistake(
                at_progress(lambda step, n, epochs: step / epochs),
                "Your rate swings up and down: the scheduler was told of fewer moves than it gets.",
            ),
            Mistake(
                at_progress(lambda step, n, epochs: step / n),
                "Your rate comes down in one epoch and climbs again in the next. How long is the whole run, in steps?",
            ),
            Mistake(
                at_progress(lambda step, n, epochs: (step + step // n) / (epochs * n)),
                "Very close: at the end of each epoch the scheduler moves once more than it should.",
            ),
            Mistake(
                at_progress(lambda step, n, epochs: (step + 1) / (epochs * n)),
                "Very close, but the first rate that you note is not the peak. Does the scheduler move too early, "
                "or do you read the rate too late?",
            ),
            Mistake(
                lambda model, batches, epochs, peak: torch.full((epochs * len(batches),), peak),
                "Now nothing moves the scheduler, and the rate stays at the peak.",
            ),
        ),
    ),
    Exercise(
        name="tuning.mend_decay",
        asks="Mend the training so that only matrices decay, and everything is still trained.",
        inputs=lambda: [to_decay(), to_decay()],
        reference=adam_steps(decay_groups),
        hint="Each parameter belongs to exactly one group, and each group names its own decay.",
        mistakes=(
            Mistake(
                adam_steps(lambda model, weight_decay: [{"params": model.parameters(), "weight_decay": weight_decay}]),
                "The mistake is still there: with no gradient at all, the gain of the norm still goes down. "
                "Which parameters should be pulled towards zero, and how does the optimizer learn of it?",
                untouched=True,
            ),
            Mistake(adam_steps(all_but_biases), GAINS_DECAY),
            Mistake(
                adam_steps(lambda model, weight_decay: in_two_groups(model, {"weight_decay": weight_decay}, {})[:1]),
                "Now biases and gains never move: no optimizer knows of them.",
            ),
            Mistake(
                adam_steps(lambda model, weight_decay: in_two_groups(model, {"weight_decay": weight_decay}, {})),
                "Biases and gains still decay, a little. What does this optimizer do with a group "
                "that says nothing of decay?",
            ),
            Mistake(
                adam_steps(lambda model, weight_decay: in_two_groups(model, {}, {"weight_decay": 0.0})),
                "The matrices decay, but not by as much as was asked. Which decay does their group have?",
            ),
            Mistake(
                adam_steps(lambda model, weight_decay: [{"params": model.parameters(), "weight_decay": 0.0}]),
                "Now nothing decays, the matrices included.",
            ),
            Mistake(
                adam_steps(
                    lambda model, weight_decay: in_two_groups(
                        model, {"weight_decay": 0.0}, {"weight_decay": weight_decay}
                    )
                ),
                "The groups are there, and their decays are exchanged.",
            ),
            Mistake(
                adam_steps(decay_groups, torch.optim.Adam),
                "The groups are right. But this optimizer adds the decay to the gradient, and then divides by the "
                "gradient's size: large weights no longer decay by more.",
            ),
        ),
    ),
    Exercise(
        name="tuning.mend_accumulation",
        asks="Mend the step so that many equal micro-batches move the weight just as one big batch would.",
        inputs=lambda: [line_in_parts(4, 8), line_in_parts(3, 5)],
        reference=one_step,
        hint="Write down the gradient of the big batch, and that which your loop has added up. What lies between them?",
        mistakes=(
            Mistake(
                lambda model, micro_batches, rate: one_step(model, micro_batches, rate * len(micro_batches) ** 2),
                "The mistake is still there: cut in four, the batch moves the weight sixteen times as far. "
                "The number of micro-batches enters twice. Where?",
                untouched=True,
            ),
            Mistake(
                lambda model, micro_batches, rate: one_step(model, micro_batches, rate * len(micro_batches)),
                "Half is mended: the step still grows with the number of micro-batches. "
                "It is the same batch as before, so what should be the same?",
            ),
            Mistake(
                lambda model, micro_batches, rate: one_step(model, micro_batches, rate / len(micro_batches)),
                "Now the step is too short: the number of micro-batches is divided out twice.",
            ),
            Mistake(
                lambda model, micro_batches, rate: one_step(model, micro_batches, rate * sqrt(len(micro_batches))),
                "A rule with a root is for a batch that grows. Did this one grow, or was it only cut?",
            ),
            Mistake(
                many_steps,
                "You take a step after every micro-batch: that trains on small batches. "
                "When is the big batch complete?",
            ),
            *(
                Mistake(
                    lambda model, micro_batches, rate, factor=factor: one_step(
                        model, micro_batches[-1:], rate * factor(len(micro_batches))
                    ),
                    LAST_PART,
                )
                for factor in (lambda n: 1, lambda n: n, lambda n: 1 / n)
            ),
        ),
    ),
    Exercise(
        name="tuning.mend_budget",
        asks="Mend the comparison so that both runs have seen the same number of tokens.",
        inputs=lambda: [two_curves(80, 16, 40, 64), two_curves(200, 8, 30, 32)],
        reference=at_equal_tokens,
        hint=(
            "How many tokens has each run seen at its end? "
            "After how many of its own steps had each seen the smaller of the two numbers?"
        ),
        mistakes=(
            Mistake(
                lambda a, a_batch, b, b_batch: (
                    a[min(len(a), len(b)) - 1].item(),
                    b[min(len(a), len(b)) - 1].item(),
                ),
                "The mistake is still there: after the same number of steps one of the runs has computed far more "
                "than the other. In what should a fair budget be counted?",
                untouched=True,
            ),
            Mistake(
                lambda a, a_batch, b, b_batch: (a[-1].item(), b[-1].item()),
                "Each run is read at its own end, where one has seen more tokens than the other.",
            ),
            Mistake(
                lambda a, a_batch, b, b_batch: at_budget(
                    a, a_batch, b, b_batch, shorter_budget(a, a_batch, b, b_batch), before=0
                ),
                "Very close: you look one step too late. After how many steps was the first loss measured?",
            ),
            Mistake(
                lambda a, a_batch, b, b_batch: at_budget(
                    a, a_batch, b, b_batch, max(len(a) * a_batch, len(b) * b_batch)
                ),
                "One of the runs never saw so many tokens. Up to where can both be compared?",
            ),
            Mistake(
                lowest_on_the_way,
                "You take the luckiest loss on the way. Both should be read at the same place: where the budget ends.",
            ),
        ),
    ),
    Exercise(
        name="tuning.mend_seeds",
        asks="Mend the choice of a rate so that the median over the seeds decides and is reported.",
        inputs=seeds_of_rates,
        reference=by_median,
        hint="First one number for every rate, over its seeds; then the rate that has the lowest.",
        mistakes=(
            Mistake(
                lambda rates, losses: winner(rates, losses.min(1).values),
                "The mistake is still there: one lucky seed makes a rate the winner, even where most runs broke. "
                "What would you get if you trained once more?",
                untouched=True,
            ),
            Mistake(
                lambda rates, losses: winner(rates, losses[:, 0]),
                "You look at one seed only, and take its luck for the merit of a rate.",
            ),
            Mistake(
                lambda rates, losses: winner(rates, losses.mean(1)),
                "A mean is dragged along by a single unlucky run. What was asked for is hardly moved by one.",
            ),
            Mistake(
                lambda rates, losses: winner(rates, mean_of_the_finite(losses)),
                "You leave out the runs that broke, and so the rate that breaks most often looks best.",
            ),
            Mistake(
                lambda rates, losses: winner(rates, losses.quantile(0.5, dim=1)),
                "For the rate that breaks, your median is not a number but the difference of two infinities, and "
                "the search for the lowest stops there. Is there a median that takes the middle one as it is?",
            ),
            Mistake(
                lambda rates, losses: winner(rates, losses.max(1).values),
                "You look at the worst seed. That is careful, but the luck of a single run decides again.",
            ),
            *(
                Mistake(
                    lambda rates, losses, report=report: winner(rates, losses.median(1).values, report(losses)),
                    "The rate is right. What you report of it is not what it was chosen by.",
                )
                for report in (lambda losses: losses.min(1).values, lambda losses: losses.mean(1))
            ),
        ),
    ),
    Exercise(
        name="tuning.mend_choice",
        asks="Mend the report so that the test loss is that of a run which was chosen without it.",
        inputs=lambda: [(2 + 0.1 * randn(n), 2 + 0.1 * randn(n)) for n in (8, 12, 20)],
        reference=lambda validation_losses, test_losses: chosen(validation_losses, test_losses),
        hint="Two questions: which run would you keep, and what does it do on text that had no part in keeping it?",
        mistakes=(
            Mistake(
                lambda validation, test: chosen(test, test),
                "The mistake is still there: the lowest of many test losses is low by luck as well. "
                "What else was measured that could choose?",
                untouched=True,
            ),
            Mistake(lambda validation, test: chosen(test, validation), STILL_ON_TEST),
            Mistake(lambda validation, test: chosen(validation + test, test), STILL_ON_TEST),
            Mistake(
                lambda validation, test: chosen(validation, validation),
                "The run is right. But its validation loss is low partly because it was chosen for it: "
                "what should be reported?",
            ),
            Mistake(
                lambda validation, test: (validation.argmin().item(), test.min().item()),
                "The run is right. The test loss that you report belongs to another one.",
            ),
            Mistake(
                lambda validation, test: (validation.argmin().item(), test.mean().item()),
                "The run is right. You report the mean of all the runs, those that were thrown away included.",
            ),
            Mistake(
                lambda validation, test: chosen(-validation, test), "That is the worst run: a loss should be small."
            ),
        ),
    ),
)
