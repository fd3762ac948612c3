"""The exercises of notebook 06: decisions on the data of a run, and two mistakes in the training of one's own."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, sqrt
from statistics import fmean, pstdev, stdev, variance

import torch
from torch import nn, randn

from gptcourse.clinic import HEALTHY, load_clinic
from gptcourse.exercises.exercise import Exercise, as_it_stands, mistake

NOTEBOOK = "06 · Tune your own model"
MARGIN = 0.3  # nats
# Each an illness, and whether it shows in the two curves, on fresh text and with the future cut off.
MASK = ("leaking mask", lambda t, v, fresh, without: without - v[-1] > MARGIN)
SPLIT = ("leaking split", lambda t, v, fresh, without: fresh - v[-1] > MARGIN)
RISE = ("overfitting", lambda t, v, fresh, without: v[-1] - min(v) > MARGIN)
GAP = ("padding in the loss", lambda t, v, fresh, without: v[-1] - t[-1] > MARGIN)


def first_of(*signs: tuple[str, Callable]) -> Callable:
    """Return the function that gives the first illness whose sign shows."""

    def diagnose(training, validation, fresh, without_future):
        found = training, validation, fresh, without_future
        return next((illness for illness, shows in signs if shows(*found)), HEALTHY)

    return diagnose


def recorded(illness: str) -> tuple[list[float], list[float], float, float]:
    """Return the curves of a patient, and the losses on fresh text and with the future cut off."""
    patient = load_clinic()[illness]
    end, foreseen = patient.numbers["validation"], patient.numbers["foreseen"]
    return patient["training_loss"], patient["validation_loss"], patient["fresh_loss"], end + foreseen


class Clinic(Exercise, name="tune_own.clinic", minutes=10):
    """Name the illness of a run, or say that it is healthy."""

    hint = """Which of the losses may be believed? Begin with what makes the others worthless: does the model see the
        answer, and does it know the text that it is measured on?"""

    def inputs():
        asked = (HEALTHY, MASK[0], RISE[0], GAP[0], SPLIT[0])
        return [recorded(illness) for illness in asked] + [
            ([4.3, 1.7, 1.1], [2.6, 1.8, 1.3], 1.4, 1.4),  # a gap, but a small one, on an easier text
            ([4.3, 1.2, 0.9], [2.6, 2.0, 1.9], 2.0, 1.9),  # padding in a good run
            ([4.3, 1.0, 0.2], [3.4, 2.1, 2.9], 3.0, 2.9),  # overfitting, though better than at its start
            ([4.3, 1.0, 0.2], [2.6, 1.1, 0.3], 0.3, 3.1),
            ([4.3, 1.0, 0.2], [2.6, 1.1, 0.3], 3.1, 0.4),
        ]

    reference = first_of(MASK, SPLIT, RISE, GAP)
    trusts_the_curves = mistake("""You call healthy what is too good to be true. What would a model have to know to get
        so far below every table of counts, and which of the four inputs would tell?""")(first_of(RISE, GAP))
    every_gap = mistake("""You call every gap between training and validation overfitting. What does the validation loss
        of an overfitting run do, and that of a run whose training loss merely counts something else does not?""")(
        first_of(MASK, SPLIT, (RISE[0], GAP[1]))
    )
    gap_first = mistake("""An overfitting run has two signs, a gap and a rise. Padding has one of them, and you ask for
        that one first.""")(first_of(MASK, SPLIT, GAP, RISE))
    from_the_start = mistake("""You compare the last validation loss with the first. Nearly every run ends better than
        it began: from where does the loss of an overfitting run rise?""")(
        first_of(MASK, SPLIT, (RISE[0], lambda t, v, fresh, without: v[-1] - v[0] > MARGIN), GAP)
    )
    against_training = mistake("""You hold what is measured on other text against the training loss. Which of the two
        curves is measured like it?""")(
        first_of(
            (MASK[0], lambda t, v, fresh, without: without - t[-1] > MARGIN),
            (SPLIT[0], lambda t, v, fresh, without: fresh - t[-1] > MARGIN),
            RISE,
            GAP,
        )
    )


def spent(batch: int, speed: float, steps: int, goal: str) -> float:
    """Return the seconds or the tokens of a run."""
    return batch * steps / (speed if goal == "time" else 1)


class WhichBatch(Exercise, name="tune_own.which_batch", minutes=6):
    """Return the batch, of those that fit, with which the run to the target takes the least time or fewest tokens."""

    hint = """How many tokens does each run read on its way to the target, and how many seconds does it need for them?
        Write both beside the table."""

    def inputs():
        def table(batches, speeds, steps):
            return {row[0]: (*row[1:], row[0] < batches[-1]) for row in zip(batches, speeds, steps, strict=True)}

        small = table((1024, 2048, 4096), (9000.0, 14_000.0, 19_000.0), (800, 420, 240))
        speeds = 2600.0, 4900.0, 7100.0, 7050.0, 7300.0, 7200.0
        cores = table((256, 512, 2048, 4096, 8192, 16_384), speeds, (6000, 2800, 900, 540, 545, 400))
        accelerator = table((4096, 65_536, 262_144, 1_048_576), (1.8e5, 6.4e5, 6.3e5, 7.1e5), (9000, 900, 420, 300))
        return [(measured, goal) for measured in (small, cores, accelerator) for goal in ("time", "tokens")]

    def least(cost: Callable[[int, float, int, str], float], memory: bool = True) -> Callable:
        """Return what chooses the batch of the least cost, of (batch, tokens per second, steps, goal)."""

        def batch(measured, goal):
            allowed = [size for size, (_, _, fits) in measured.items() if fits or not memory]
            return min(allowed, key=lambda size: cost(size, *measured[size][:2], goal))

        return batch

    reference = least(spent)
    largest = mistake("""You fill the memory. A full memory is no goal:
        what does the run cost with that batch?""")(least(lambda batch, speed, steps, goal: -batch))
    fewest_steps = mistake("""You count steps. How much does one of a large batch cost,
        and one of a small batch?""")(least(lambda batch, speed, steps, goal: steps))
    fastest = mistake("""Your machine is busiest, but a run that needs more tokens can end
        later all the same.""")(least(lambda batch, speed, steps, goal: -speed))
    too_large = mistake("One of those that you choose does not fit.")(least(spent, memory=False))
    always_time = mistake("You look at the time, whatever the goal is.")(least(lambda *row: spent(*row[:3], "time")))
    always_tokens = mistake("""You count tokens, whatever the goal is. Does the run with the fewest of them end first
        on this machine?""")(least(lambda *row: row[0] * row[2]))
    smallest = mistake("""The smallest batch does not always take the fewest tokens.
        What was measured?""")(least(lambda *row: spent(*row) if row[-1] == "time" else row[0]))
    without_the_batch = mistake("""For the time you divide steps by tokens per second. How many tokens has a
        step?""")(least(lambda *row: row[2] / row[1] if row[-1] == "time" else spent(*row)))


def gains(baseline: list[float], candidate: list[float]) -> list[float]:
    """Return how much lower the loss of each seed is with the candidate."""
    return [old - new for old, new in zip(baseline, candidate, strict=True)]


class Adopt(Exercise, name="tune_own.adopt", minutes=10):
    """Say whether to "adopt" the candidate, to "keep" the baseline, or to run "more seeds"."""

    hint = """Which two losses belong together? Write down the gain of each seed, then both ends of the interval of the
        mean gain: where does zero lie?"""

    def inputs():
        baseline = [2.10, 2.31, 1.98, 2.22, 2.05, 2.13, 2.27, 2.01]
        of_a_seed = [
            (2.776, [0.05, 0.06, 0.04, 0.05, 0.055]),  # seeds differ by more than the settings do
            (2.776, [-0.04, -0.06, -0.04, -0.06, -0.03]),
            (2.776, [0.03, -0.06, 0.02, -0.01, -0.015]),
            (4.303, [0.02, 0.09, 0.04]),
            (4.303, [0.028, 0.0495, 0.0725]),
            (2.365, [0.20, 0.25, 0.15, 0.28, -0.01, 0.22, 0.21, 0.16]),
        ]
        return [(baseline[: len(by)], gains(baseline[: len(by)], by), t) for t, by in of_a_seed]

    def within(half: Callable[[list, list, float], float], otherwise="more seeds", worse="keep") -> Callable:
        """Return the decision by an interval around the mean gain that reaches so far to both sides."""

        def decision(baseline, candidate, t):
            mean, width = fmean(gains(baseline, candidate)), half(baseline, candidate, t)
            return "adopt" if mean > width else worse if mean < -width else otherwise

        return decision

    def paired(b, c, t):
        return t * stdev(gains(b, c)) / sqrt(len(b))

    reference = within(paired)
    best_seeds = mistake("""You compare the best seed of each. Is it a merit of the settings that they were run with a
        lucky one?""")(lambda b, c, t: "adopt" if min(c) < min(b) else "keep")
    means = mistake("Two means always differ. By how much, if the settings are equally good?")(within(lambda *_: 0))
    unpaired = mistake("""You take the two lists for strangers. What have two runs with one seed in common, and what
        becomes of that in their difference?""")(within(lambda b, c, t: t * sqrt((variance(b) + variance(c)) / len(b))))
    normal = mistake("""1.96 is right for very many seeds. What is known of the spread
        from a few?""")(within(lambda b, c, t: 1.96 * Adopt.paired(b, c, 1)))
    single_run = mistake("""That is how far the gain of one seed lies from the mean. How does the mean become surer
        with their number?""")(within(lambda b, c, t: t * stdev(gains(b, c))))
    population = mistake("""Your spread is a little too small: the mean was taken of the same few gains. By what is
        their sum of squares divided?""")(within(lambda b, c, t: t * pstdev(gains(b, c)) / sqrt(len(b))))
    every_seed = mistake("""You ask that all seeds agree. Three fair coins agree in one of four throws; and of eight
        seeds one may be unlucky.""")(
        lambda b, c, t: "adopt" if min(gains(b, c)) > 0 else "keep" if max(gains(b, c)) < 0 else "more seeds"
    )
    turned_round = mistake("""The other way round: which of two losses is
        the better one?""")(lambda b, c, t: Adopt.reference(c, b, t))
    never_more = mistake("""Where the interval holds zero you decide all the same. What else could
        you do?""")(within(paired, otherwise="keep"))
    never_keep = mistake("You go on where the candidate is surely worse.")(within(paired, worse="more seeds"))


def to_decay(rate: float, weight_decay: float, steps: int) -> tuple:
    parts = nn.Embedding(3, 4), nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2, bias=False), nn.RMSNorm(2)
    model = nn.Sequential(*parts)
    for parameter in model.parameters():
        nn.init.normal_(parameter)  # norms that differ from 1
    return model, [randn(parameter.shape) for parameter in model.parameters()], rate, weight_decay, steps


class MendDecay(Exercise, name="tune_own.mend_decay", minutes=8):
    """Mend the training so that only matrices decay, and everything is still trained."""

    hint = "Each parameter belongs to exactly one group, and each group names its own decay."
    trains = ("model",)

    def inputs():
        return [to_decay(0.05, 0.5, 4), to_decay(0.02, 0.3, 2)]

    def adam_steps(matrices=1.0, others=0.0, is_matrix=lambda name, p: p.ndim >= 2, n_groups=2, kind=torch.optim.AdamW):
        """Return a training in two groups, each with so much of the decay (None: it says nothing of its decay)."""

        def trained(model, gradients, rate, weight_decay, steps):
            groups = []
            for which, share in ((True, matrices), (False, others)):
                groups.append({"params": [p for name, p in model.named_parameters() if is_matrix(name, p) is which]})
                if share is not None:
                    groups[-1]["weight_decay"] = share * weight_decay
            optimizer = kind(groups[:n_groups], lr=rate)
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter.grad = gradient.clone()
            for _ in range(steps):
                optimizer.step()
            return tuple(parameter.detach() for parameter in model.parameters())

        return trained

    reference = adam_steps()
    everything = as_it_stands("""The mistake is still there: with no gradient at all, the scale of the norm still goes
        down. Which parameters should decay, and how does the optimizer learn of it?""")(adam_steps(others=1.0))
    all_but_biases = mistake("""The scales of the norms still decay: their names end in weight, too. By what, other than
        a name, does a vector differ from a matrix?""")(adam_steps(is_matrix=lambda name, p: "bias" not in name))
    matrices_alone = mistake("Now biases and scales never move: no optimizer knows of them.")(adam_steps(n_groups=1))
    silent_others = mistake("""Biases and scales still decay, a little. What does this optimizer do with a group that
        says nothing of decay?""")(adam_steps(others=None))
    silent_matrices = mistake("""The matrices decay, but not by as much as was asked.
        Which decay does their group have?""")(adam_steps(matrices=None))
    adam = mistake("""The groups are right. But this optimizer adds the decay to the gradient, and then divides by the
        gradient's size: large weights no longer decay by more.""")(adam_steps(kind=torch.optim.Adam))


def next_of(best: list[float], spread: float, ends=(0, -1), first="fix") -> str:
    """Return what to do with an axis: see `Axis`. `ends` are the parts after which it is widened."""
    is_flat = max(best) - min(best) <= spread
    if first == "fix" and is_flat:
        return "fix"
    if min(best) in [best[end] for end in ends]:
        return "widen"
    return "fix" if is_flat else "keep"


class Axis(Exercise, name="tune_own.axis", minutes=8):
    """Say whether to "fix" an axis of the next search, to "widen" it, or to "keep" it as it is."""

    hint = """Two questions, in this order: does the axis matter within its range, by more than two seeds differ? And
        if it does, where is it best?"""

    def inputs():
        axes = [
            ([1.90, 1.80, 1.75, 1.82], 0.03),
            ([1.75, 1.80, 1.90, 1.95], 0.03),
            ([1.95, 1.90, 1.80, 1.75], 0.03),
            ([1.75, 1.77, 1.76, 1.77], 0.03),  # best at an end, and flat
            ([1.77, 1.75, 1.77, 1.76], 0.03),
            ([1.76, 1.75, inf], 0.03),  # a part in which all runs diverged
            ([inf, 1.90, 1.75], 0.03),
            ([1.75, 1.78], 0.0301),
            ([1.80, 1.82, 1.75, 1.752], 0.03),  # best inside, hardly better than the end
        ]
        return axes

    def reference(best, spread):
        return next_of(best, spread)

    without_spread = mistake("""Some losses always differ. By how much do two seeds differ, though nothing else
        does?""")(lambda best, spread: next_of(best, 0.0))
    end_first = mistake("""You widen an axis that makes no difference. What would the runs beyond its
        end tell?""")(lambda best, spread: next_of(best, spread, first="widen"))
    upper_end = mistake("An axis has two ends.")(lambda best, spread: next_of(best, spread, ends=(-1,)))
    lower_end = mistake("An axis has two ends, and here the best is at the upper one.")(
        lambda best, spread: next_of(best, spread, ends=(0,))
    )
    neighbours = mistake("""You look at the best part and one beside it. The axis may be level there and steep
        elsewhere: compare the best with the worst.""")(
        lambda best, spread: "fix" if sorted(best)[1] - min(best) <= spread else next_of(best, 0.0)
    )
    largest = mistake("These are losses: which part is the best one?")(
        lambda best, spread: next_of([-loss for loss in best], spread)
    )
    diverged_is_flat = mistake("""A part in which every run diverged is a result: there the axis
        matters.""")(lambda best, spread: next_of([loss for loss in best if loss < inf], spread))
