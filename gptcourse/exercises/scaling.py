"""The exercises of notebook 10: what a model costs, what a budget buys, Muon's step, and several processes as one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, randn, tensor

from gptcourse.exercises.exercise import Exercise, as_it_stands, mistake
from gptcourse.optimizers import NEWTON_SCHULZ, newton_schulz
from gptcourse.scaling import ScalingLaw

NOTEBOOK = "10 · Scaling up"
SECONDS_PER_DAY = 86_400


def operations(L: int, C: int, V: int, T: int, tokens: int, *, per_weight=6, readout=1, attention=12) -> float:
    """Operations of a training, with the factors that a mistake may change."""
    return float(tokens * (per_weight * (12 * L * C**2 + readout * V * C) + attention * L * C * T))


def days(n: float, d: float, devices: int, peak: float, utilisation: float, *, per_weight: int = 6) -> float:
    return per_weight * n * d / (devices * peak * utilisation) / SECONDS_PER_DAY


def state_bytes(n: float, devices: int, strategy: str, *, divided=(0, 12, 14, 16), whole: int = 16) -> float:
    """Return the bytes on each device, given how many of each parameter's bytes each strategy divides."""
    shared = divided[("DDP", "ZeRO-1", "ZeRO-2", "FSDP").index(strategy)]
    return n * (whole - shared + shared / devices)


def iterated(x: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz without the division at its start."""
    a, b, c = NEWTON_SCHULZ
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def places_in(length: int) -> Callable[[int, int, int], Tensor]:
    """Return what draws places in a text, as many as are asked for: the first n of a longer row are the row of n."""

    def draw(seed: int, step: int, count: int) -> Tensor:
        generator = torch.Generator().manual_seed(1_000_003 * seed + step)
        return torch.stack([torch.randint(length, (), generator=generator) for _ in range(count)])

    return draw


class Flops(Exercise, name="scaling.flops"):
    """Return how many floating-point operations the training takes, forward and backward."""

    hint = """Count one token. How many weights does it meet, what does each of them cost forward and backward, and what
        do the two products of attention cost besides?"""

    def inputs():
        return [(2, 64, 76, 64, 1_000), (12, 768, 50_257, 1_024, 300), (1, 8, 10, 16, 1)]

    def reference(n_layer, n_embd, vocab_size, n_positions, n_tokens):
        return operations(n_layer, n_embd, vocab_size, n_positions, n_tokens)

    forward_only = mistake("""That is the forward pass. What does the backward pass compute for each weight, and how
        many times?""")(partial(operations, per_weight=2, attention=4))
    backward_only = mistake("That is the backward pass alone.")(partial(operations, per_weight=4, attention=8))
    without_attention = mistake("""All weights are counted. But attention also multiplies what is no weight: queries
        with keys, and weights of attention with values.""")(partial(operations, attention=0))
    attention_forward = mistake("Attention's products have a backward pass, too.")(partial(operations, attention=4))
    half_of_attention = mistake("""Close: half of attention's own work is missing. Is it one product over the window, or
        two? (All of it counts, also what the mask hides.)""")(partial(operations, attention=6))
    without_readout = mistake("""The blocks are counted.
        What turns the last vector into a score for each token?""")(partial(operations, readout=0))
    with_lookup = mistake("""The token table is counted twice.
        A look-up multiplies nothing; only the read-out does.""")(partial(operations, readout=2))
    one = mistake("That is the cost of one token. How many are there?")(lambda L, C, V, T, n: operations(L, C, V, T, 1))


class ComputeOptimal(Exercise, name="scaling.compute_optimal"):
    """Return the parameters and the tokens with the lowest loss among all that cost 6 · N · D = flops."""

    hint = """Put the budget over (6 N) in the place of D, and look for the N at which the loss no longer changes. Or
        search: try many N, evenly on a logarithmic axis, and then again around the best."""

    def inputs():
        return [
            (1.69, 406.4, 0.34, 410.7, 0.28, 1e20),
            (0.8, 20.0, 0.5, 60.0, 0.4, 1e13),
            (1.0, 7.0, 0.3, 7.0, 0.3, 6e10),
            (1.5, 3.0, 0.5, 5.0, 0.4, 6e4),
        ]

    def split_by(
        scale: Callable = lambda A, alpha, B, beta: alpha * A / (beta * B),
        share: Callable = lambda alpha, beta: beta / (alpha + beta),
        cost: int = 6,
    ) -> Callable:
        """Return a split of the budget into parameters and tokens; by default equation 4 of Hoffmann et al. (2022)."""

        def split(E, A, alpha, B, beta, flops):
            n = scale(A, alpha, B, beta) ** (1 / (alpha + beta)) * (flops / cost) ** share(alpha, beta)
            return n, flops / cost / n

        return split

    def reference(E, A, alpha, B, beta, flops):
        return ScalingLaw(E, A, alpha, B, beta).compute_optimal(flops)

    even = mistake("""You share the budget evenly, whatever the law says. Does its best split not depend on its
        exponents?""")(split_by(scale=lambda *law: 1, share=lambda *law: 1 / 2))
    without_six = mistake("The cost is 6 · N · D. Yours spends six times the budget.")(split_by(cost=1))
    forward_only = mistake("The cost is 6 · N · D: yours counts the forward pass alone.")(split_by(cost=2))
    exponents_exchanged = mistake("""The exponents are exchanged. Where text teaches slowly, at a small beta, which
        should grow more?""")(split_by(share=lambda alpha, beta: alpha / (alpha + beta)))
    exchanged = mistake("The right numbers, in the wrong order.")(lambda *given: ComputeOptimal.reference(*given)[::-1])
    equal_terms = mistake("""There both terms are equally large.
        The loss is lowest where both *change* equally fast.""")(split_by(scale=lambda A, alpha, B, beta: A / B))


class Days(Exercise, name="scaling.days"):
    """Return how many days the training takes."""

    hint = "Write the units down: operations in all, operations a second that really happen, seconds in a day."

    def inputs():
        return [(175e9, 300e9, 1_024, 312e12, 0.3), (1e9, 20e9, 8, 1e15, 0.4), (5e6, 1e9, 1, 1e11, 0.7)]

    def reference(n_parameters, n_tokens, n_devices, peak_flops, utilisation):
        return days(n_parameters, n_tokens, n_devices, peak_flops, utilisation)

    at_peak = mistake("""No device ever works at its peak all the time. Which of the inputs says how much of
        it it does?""")(lambda n, d, devices, peak, _: days(n, d, devices, peak, 1))
    turned = mistake("""Yours gets faster when the devices
        are used less.""")(lambda n, d, devices, peak, used: days(n, d, devices, peak, 1 / used))
    forward_only = mistake("Two operations a parameter are the forward pass alone.")(partial(days, per_weight=2))
    one_operation = mistake("Each parameter takes part in more operations for each token.")(partial(days, per_weight=1))
    seconds = mistake("That is seconds.")(lambda *given: days(*given) * SECONDS_PER_DAY)
    hours = mistake("That is hours.")(lambda *given: days(*given) * 24)
    one_device = mistake("That is one device working alone.")(lambda n, d, _, peak, used: days(n, d, 1, peak, used))


class MendShards(Exercise, name="scaling.mend_shards"):
    """Let process `rank` take its own block of the one big batch that all processes share."""

    hint = "Draw the whole batch of all processes in every one of them. Which rows of it belong to this one?"

    def inputs():
        runs = ((0, 7, 0, 2, 3), (0, 7, 1, 2, 3), (5, 0, 3, 4, 2), (1, 2, 0, 1, 4))
        return [*((places_in(1_000_000), *run) for run in runs), (places_in(50), 2, 1, 1, 3, 2)]

    def reference(draw, seed, step, rank, n_processes, batch_size):
        return draw(seed, step, n_processes * batch_size)[rank * batch_size : (rank + 1) * batch_size]

    same_for_all = as_it_stands("""The mistake is still there: all processes learn from the same rows. How many
        different rows does a step see?""")(lambda draw, seed, step, rank, n, size: draw(seed, step, size))
    by_seed = mistake("""Now they differ. But process 1 of seed 0 reads what process 0 of seed 1 reads, and no single
        process could make the run.""")(lambda draw, seed, step, rank, n, size: draw(seed + rank, step, size))
    by_step = mistake("""Process 1 reads in this step what process 0 reads in
        the next one.""")(lambda draw, seed, step, rank, n, size: draw(seed, step + rank, size))
    moved = mistake("""Now they differ, by very little: each process reads the rows that another reads, moved by a
        character or two.""")(lambda draw, seed, step, rank, n, size: draw(seed, step, size) + rank)
    in_turns = mistake("""Together that is the right batch. But a process should take rows that stand next to each
        other.""")(lambda draw, seed, step, rank, n, size: draw(seed, step, n * size)[rank::n])
    whole = mistake("""Each process now takes the whole big batch:
        n times the work, and nothing gained.""")(lambda draw, seed, step, rank, n, size: draw(seed, step, n * size))


class MendWeights(Exercise, name="scaling.mend_weights"):
    """Return the number by which each process multiplies its mean loss before DDP averages the gradients."""

    hint = """The loss of all tokens is the sum of all losses over the number of all tokens. Write it with the means and
        the counts of the processes, and remember that DDP divides by the number of processes."""

    def inputs():
        return [([10, 30],), ([7, 7, 7],), ([1, 0, 5, 2],), ([4],)]

    def reference(counts):
        return tensor(counts, dtype=torch.float32) * len(counts) / sum(counts)

    same_for_all = as_it_stands("""The mistake is still there: every process has the same say, however few reply tokens
        it holds.""")(lambda counts: torch.ones(len(counts)))
    shares = mistake("""The shares are right, but DDP divides by the number of
        processes once more.""")(lambda counts: tensor(counts) / sum(counts))
    sums = mistake("""These are sums of losses.
        The gradient would grow with the number of tokens.""")(lambda counts: tensor(counts, dtype=torch.float32))
    of_the_largest = mistake("""The shares are right among themselves.
        To what should the weights add up?""")(lambda counts: tensor(counts) / max(counts))
    turned = mistake("""The other way round: a process with few tokens now has the
        most to say.""")(lambda counts: sum(counts) / (tensor(counts) * len(counts)))


class StateBytes(Exercise, name="scaling.state_bytes"):
    """Return the bytes that weights, gradients and optimizer take on each device."""

    hint = "Per parameter: 2 bytes of weight, 2 of gradient, 12 of the optimizer. Which of the three is divided?"

    def inputs():
        strategies = [(7.5e9, 64, name) for name in ("DDP", "ZeRO-1", "ZeRO-2", "FSDP")]
        return [*strategies, (1e6, 1, "ZeRO-1"), (3e6, 4, "ZeRO-2"), (1e3, 2, "FSDP")]

    def reference(n_parameters, n_devices, strategy):
        return state_bytes(n_parameters, n_devices, strategy)

    all_divided = mistake("""You divide everything, whatever the strategy.
        With DDP each device keeps the whole model.""")(lambda n, devices, strategy: n * 16 / devices)
    all_whole = mistake("You divide nothing. What does each strategy divide?")(lambda n, devices, strategy: n * 16)
    without_a_copy = mistake("""AdamW's two averages are 8 bytes. What is the third thing that the optimizer keeps in
        float32?""")(partial(state_bytes, divided=(0, 8, 10, 12), whole=12))
    copy_divided = mistake("""The sum is right, but the float32 copy of the weights is divided together with the
        averages.""")(partial(state_bytes, divided=(0, 8, 12, 16)))
    gradients_first = mistake("ZeRO's first stage divides the largest.")(partial(state_bytes, divided=(0, 2, 14, 16)))
    like_the_first = mistake("The second stage divides one thing more.")(partial(state_bytes, divided=(0, 12, 12, 16)))
    weights_alone = mistake("""FSDP divides the weights as well, besides what the
        second stage divides.""")(partial(state_bytes, divided=(0, 12, 14, 2)))


class Orthogonalise(Exercise, name="scaling.orthogonalise"):
    """Return the matrix after its division by its norm and five Newton-Schulz steps."""

    hint = """Compare after one step, with a matrix of one row: its only singular value should be the polynomial of 1,
        and it should be divided by its norm once, before the loop."""

    def inputs():
        rows = tensor([[0.6, 0.2, 0.1, 0.1]])
        return [(tensor([[3.0, 4.0]]),), (randn(4, 6),), (100 * randn(5, 5),), (0.01 * randn(3, 12),), (rows,)]

    def reference(matrix):
        return newton_schulz(matrix)

    not_divided = mistake("Without a division, singular values above about 1.7 grow without end.")(iterated)
    by_the_largest = mistake("""You divide by the largest entry. A matrix of small entries may still stretch a vector by
        far more than 1: which norm bounds that?""")(lambda matrix: iterated(matrix / matrix.abs().max()))
    by_rows = mistake("""You divide each row by its own length. That changes directions:
        divide by one number.""")(lambda matrix: iterated(matrix / matrix.norm(dim=-1, keepdim=True)))
    one_step = mistake("That is one step. Small singular values need more.")(lambda x: iterated(x / x.norm(), steps=1))

    @mistake("That is U Vᵀ exactly, and slow. The five steps come near it: write those.")
    def exactly(matrix):
        u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
        return u @ vh

    signs = mistake("Adam nearly does that. Here the matrix is taken as a whole.")(torch.sign)
