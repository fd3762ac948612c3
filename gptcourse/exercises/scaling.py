"""The exercises of notebook 10: what a model costs, what a budget buys, several processes as one, and Muon's step."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, randn, tensor

from gptcourse.collectives import Member, in_threads
from gptcourse.exercises.exercise import Exercise, as_it_stands, mistake
from gptcourse.optimizers import NEWTON_SCHULZ, newton_schulz
from gptcourse.scaling import ScalingLaw

NOTEBOOK = "10 · Scaling up"
LEFT_OUT = "Your numbers are those of one process alone. What have the others, and who tells it?"


def operations(L: int, C: int, V: int, T: int, tokens: int, *, per_weight=6, readout=1, attention=12) -> float:
    """Operations of a training, with the factors that a mistake may change."""
    return float(tokens * (per_weight * (12 * L * C**2 + readout * V * C) + attention * L * C * T))


def utilisation(tokens, n, devices, peak, recomputed, *, per_weight=6, hardware=8) -> tuple[float, float]:
    """Model and hardware utilisation, with the operations for a weight and a token that each counts."""
    share = n * tokens / (devices * peak)
    return share * per_weight, share * (hardware if recomputed else per_weight)


def extended(x0: float, y0: float, x1: float, y1: float, x: float, *, ahead=math.log, up=math.log, back=math.exp):
    """Continue the straight line through two points on axes of any kind."""
    slope = (up(y1) - up(y0)) / (ahead(x1) - ahead(x0))
    return back(up(y1) + slope * (ahead(x) - ahead(x1)))


def as_it_is(value: float) -> float:
    return value


def scored(low: float, high: float, value: float, level: float, *, tail=2.0, near=0.0, below=1.0, above=1.0) -> float:
    outside = below * max(low - value, 0.0) + above * max(value - high, 0.0)
    return high - low + tail / (1 - level) * outside + near * abs(value - (low + high) / 2)


def ringed(values: Tensor, group: Member, *, add=torch.add, rounds: int = 2) -> Tensor:
    """A ring's all-reduce: blocks are added on their way round, and in the second round handed on."""
    rank, n = group.rank, group.size
    blocks = list(values.chunk(n))
    for step in range(n - 1):
        group.send(blocks[(rank - step) % n])
        blocks[(rank - step - 1) % n] = add(blocks[(rank - step - 1) % n], group.receive())
    for step in range((n - 1) * (rounds - 1)):
        group.send(blocks[(rank + 1 - step) % n])
        blocks[(rank - step) % n] = group.receive()
    return torch.cat(blocks)


def own_rows(whole: Tensor, group: Member) -> Tensor:
    return whole.chunk(group.size)[group.rank]


def zero(weights, gradient, moment, rate, group: Member, *, mean=True, keep=0.9, join=True) -> tuple[Tensor, Tensor]:
    """A step of ZeRO-1 with momentum."""
    moment = keep * moment + group.reduce_scatter(gradient) / (group.size if mean else 1)
    own = own_rows(weights, group) - rate * moment
    if join:
        return group.all_gather(own), moment
    parts = list(weights.chunk(group.size))
    parts[group.rank] = own
    return torch.cat(parts), moment


def split_mlp(x, w_in, b_in, w_out, b_out, group: Member, *, biases=1, bent=True, joined=True) -> Tensor:
    """An MLP of which each process has its columns of the first matrix and its rows of the second."""
    columns, own_bias = w_in.chunk(group.size, dim=1)[group.rank], own_rows(b_in, group)
    hidden = x @ columns + own_bias
    out = (F.gelu(hidden) if bent else hidden) @ own_rows(w_out, group)
    if biases > 1:
        return group.all_reduce(out + b_out)
    return (group.all_reduce(out) if joined else out) + b_out


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


class Flops(Exercise, name="scaling.flops", minutes=10):
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


class ComputeOptimal(Exercise, name="scaling.compute_optimal", minutes=15):
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


class Ruler(Exercise, name="scaling.ruler", minutes=5):
    """Return the loss at x, on the straight line through two points on two logarithmic axes."""

    hint = "The slope is a difference of logarithms over a difference of logarithms. Start from the second point."

    def inputs():
        return [(1e5, 2.0, 4e5, 1.8, 1.6e6), (10.0, 3.0, 20.0, 2.5, 50.0), (2e6, 1.7, 4e6, 1.6, 4.7e6)]

    def reference(x0, loss0, x1, loss1, x):
        return extended(x0, loss0, x1, loss1, x)

    straight = mistake("""That is a line on plain axes: twice as much text would cost the same loss wherever you stand.
        Which axes did the question name?""")(partial(extended, ahead=as_it_is, up=as_it_is, back=as_it_is))
    half_logarithmic = mistake("""One of your axes is logarithmic, x alone: soon that line falls below
        zero.""")(partial(extended, up=as_it_is, back=as_it_is))
    other_half = mistake("Only your loss is taken as a logarithm.")(partial(extended, ahead=as_it_is))
    from_the_first = mistake("""Your slope is right, but you go the new distance from the first
        point.""")(lambda x0, y0, x1, y1, x: y0 * (x / x1) ** (math.log(y1 / y0) / math.log(x1 / x0)))
    the_logarithm = mistake("That is the logarithm of the loss.")(partial(extended, back=as_it_is))


class IntervalScore(Exercise, name="scaling.interval_score", minutes=10):
    """Return the score of an interval: its width, and 2 / (1 - level) for each unit by which it missed the value."""

    hint = "Write down the width. Then ask by how much the value lies below, or above; one of the two is always zero."

    def inputs():
        hits = [(1.5, 1.6, 1.55, 0.9), (0.0, 2.0, 2.0, 0.5)]
        return [*hits, (1.5, 1.6, 1.64, 0.9), (1.5, 1.6, 1.42, 0.8), (1.0, 1.0, 1.25, 0.5)]

    def reference(low, high, value, level):
        return scored(low, high, value, level)

    width = mistake("""That is the width alone. An interval of no width would always win.
        What must a miss cost?""")(partial(scored, tail=0.0))
    only_above = mistake("A value below the interval is missed, too.")(partial(scored, below=0.0))
    only_below = mistake("A value above the interval is missed, too.")(partial(scored, above=0.0))
    one = mistake("""Each unit of a miss costs half of what it should: the probability outside is shared by two
        sides.""")(partial(scored, tail=1.0))
    flat = mistake("""A miss costs the same with you, whatever the level: who claims more certainty should pay
        more.""")(lambda low, high, value, level: scored(low, high, value, 0.0))
    by_level = mistake("""The level stands where the probability outside should stand: the surer the interval, the
        cheaper is your miss.""")(lambda low, high, value, level: scored(low, high, value, 1 - level))
    middle = mistake("""You measure from the middle. Inside the interval all values are alike.""")(
        partial(scored, near=1.0)
    )


class Utilisation(Exercise, name="scaling.utilisation", minutes=10):
    """Return (MFU, HFU): the shares of the peak that the model needs, and that the devices really compute."""

    hint = """Multiply: tokens in a second, parameters, and operations for a weight and a token. Recomputing makes one
        forward pass more; of the two shares only one counts it."""

    def inputs():
        return [(1e3, 1e9, 1, 1e14, True), (150.0, 175e9, 2, 312e12, True), (4e6, 2e8, 16, 1e15, False)]

    def reference(tokens_per_second, n_parameters, n_devices, peak_flops, recomputed):
        return utilisation(tokens_per_second, n_parameters, n_devices, peak_flops, recomputed)

    exchanged = mistake("""Exchanged. Which of the two does not care how the work is
        done?""")(lambda *given: utilisation(*given)[::-1])
    both = mistake("""You count the recomputing as the model's need, too. A wasteful program would look
        good.""")(lambda *given: (utilisation(*given)[1],) * 2)
    neither = mistake("""The devices compute one forward pass more than the model needs, where activations are
        recomputed.""")(partial(utilisation, hardware=6))
    twice = mistake("""Recomputing repeats the forward pass alone, two of the six
        operations.""")(partial(utilisation, hardware=12))
    forward = mistake("That is the forward pass alone: two operations for a weight and a token, of six.")(
        partial(utilisation, per_weight=2, hardware=4)
    )
    one_device = mistake("That is the share of one device's peak. How many are there?")(
        lambda tokens, n, devices, peak, again: utilisation(tokens, n, 1, peak, again)
    )


class RingAllReduce(Exercise, name="scaling.ring_all_reduce", minutes=25):
    """Return the sum of all processes' vectors, in each of them, by sending blocks round the ring."""

    hint = """Follow one block. In the first round it visits all processes, and each adds its own; where is it complete?
        From there a second round hands it on. What is asked: the sum, with as few numbers sent as possible."""

    def inputs():
        return [(randn(n, n * k),) for n, k in ((2, 2), (3, 1), (4, 3))]

    def through(answer, parts):
        results, sent = in_threads(answer, [(part.clone(),) for part in parts])
        return torch.cat(results), sent

    def reference(values, group):
        return ringed(values, group)

    half = mistake("""After your round each block is complete in one process only, and the others hold halves of sums.
        Who hands the complete ones on?""")(partial(ringed, rounds=1))
    replaced = mistake("""A block that arrives takes the place of yours. In the first round both should
        count.""")(partial(ringed, add=lambda mine, arrived: arrived))
    mean = mistake("That is the mean. What is asked is the sum.")(lambda v, group: ringed(v, group) / group.size)
    alone = mistake(LEFT_OUT)(lambda values, group: values)

    @mistake("""The sums are right. But you send your whole vector on, n − 1 times; with blocks it is 2 (n − 1) / n
        times its length in all, whatever n is.""")
    def whole_vectors(values, group):
        total, travelling = values.clone(), values
        for _ in range(group.size - 1):
            group.send(travelling)
            travelling = group.receive()
            total = total + travelling
        return total


class Zero1(Exercise, name="scaling.zero_1", minutes=20):
    """Return all new weights, and this process's part of the new momentum, which no other process keeps."""

    hint = """Three steps: get your block of the mean gradient; update your block of momentum and of weights; get the
        blocks of the others. What is asked: as few numbers sent as with an all-reduce."""

    def inputs():
        cases = ((2, 2, 0.5), (4, 1, 0.1), (3, 2, 1.0))
        return [(randn(n * k), randn(n, n * k), randn(n, k), rate) for n, k, rate in cases]

    def through(answer, weights, gradients, moments, rate):
        given = zip(gradients.clone(), moments.clone(), strict=True)
        results, sent = in_threads(answer, [(weights.clone(), g, m, rate) for g, m in given])
        return torch.cat([new for new, _ in results]), torch.cat([moment for _, moment in results]), sent

    def reference(weights, gradient, moment, rate, group):
        return zero(weights, gradient, moment, rate, group)

    summed = mistake("""You take the sum of the gradients. The batch is the mean over all
        processes.""")(partial(zero, mean=False))
    forgetful = mistake("Your momentum forgets: nine tenths of the old one should stay.")(partial(zero, keep=0.0))
    own_only = mistake("""Each process has updated its own block of the weights, and holds old ones elsewhere. What is
        missing is a collective.""")(partial(zero, join=False))

    @mistake("""Right, and half again as many numbers sent as needed: you give every process the whole gradient, and it
        uses one block of it.""")
    def all_reduced(weights, gradient, moment, rate, group):
        moment = 0.9 * moment + own_rows(group.all_reduce(gradient), group) / group.size
        return group.all_gather(own_rows(weights, group) - rate * moment), moment

    @mistake(LEFT_OUT)
    def own_gradient(weights, gradient, moment, rate, group):
        moment = 0.9 * moment + own_rows(gradient, group)
        return group.all_gather(own_rows(weights, group) - rate * moment), moment


class TensorParallel(Exercise, name="scaling.tensor_parallel", minutes=20):
    """Return the output of the MLP, of which each process computes with its part of the hidden vector alone."""

    hint = """GELU looks at each hidden number by itself. So which way can the first matrix be cut, and then the second?
        The outputs are then parts of a sum. What is asked: one collective, and not more numbers sent."""

    def inputs():
        def case(n, batch, width, hidden):
            return randn(batch, width), randn(width, hidden), randn(hidden), randn(hidden, width), randn(width), n

        return [case(2, 2, 3, 4), case(4, 4, 3, 8), case(3, 3, 2, 6)]

    def through(answer, x, w_in, b_in, w_out, b_out, n):
        given = [tuple(part.clone() for part in (x, w_in, b_in, w_out, b_out)) for _ in range(n)]
        results, sent = in_threads(answer, given)
        return torch.cat([result.flatten() for result in results]), sent

    def reference(x, w_in, b_in, w_out, b_out, group):
        return split_mlp(x, w_in, b_in, w_out, b_out, group)

    many_biases = mistake("""The last bias is in the sum once for each
        process.""")(partial(split_mlp, biases=2))
    straight = mistake("Where is GELU?")(partial(split_mlp, bent=False))
    alone = mistake(LEFT_OUT)(partial(split_mlp, joined=False))

    @mistake("""Right, but every process has computed all of it: nothing was divided, and nothing
        sent.""")
    def whole(x, w_in, b_in, w_out, b_out, group):
        return F.gelu(x @ w_in + b_in) @ w_out + b_out

    @mistake("""Right, and dear: you join the hidden vectors before the second matrix. They are longer than the output,
        and the second matrix is then undivided.""")
    def joined_hidden(x, w_in, b_in, w_out, b_out, group):
        hidden = F.gelu(x @ w_in.chunk(group.size, dim=1)[group.rank] + own_rows(b_in, group))
        return group.all_gather(hidden.T.contiguous()).T @ w_out + b_out

    @mistake("""You cut the first matrix by its rows. What each process then bends is a part of a sum, and GELU of parts
        does not add up.""")
    def by_rows(x, w_in, b_in, w_out, b_out, group):
        columns, rows = x.tensor_split(group.size, dim=1)[group.rank], w_in.tensor_split(group.size)[group.rank]
        return group.all_reduce(F.gelu(columns @ rows + b_in / group.size) @ w_out) + b_out


class Bubble(Exercise, name="scaling.bubble", minutes=10):
    """Return the share of the time in which a GPU of the pipeline has nothing to do."""

    hint = """Draw three GPUs and two portions, forward only: how many places has the table, and how many of them are
        empty? The backward pass has the same gaps, twice as long."""

    def inputs():
        return [(4, 4), (1, 5), (8, 32), (3, 2), (64, 1)]

    def reference(n_stages, n_portions):
        return (n_stages - 1) / (n_stages - 1 + n_portions)

    of_the_work = mistake("""That is the idle time over the time of work (Narayanan et al. 2021 give it so). What share
        is it of all the time?""")(lambda p, m: (p - 1) / m)
    one_more = mistake("The first GPU starts at once: how many steps later does the last one?")(
        lambda p, m: p / (p + m)
    )
    used = mistake("That is the share in which it works.")(lambda p, m: m / (p - 1 + m))
    no_portions = mistake("""That is with the batch in one portion. What do more of them
        change?""")(lambda p, m: (p - 1) / p)
    twice = mistake("""The backward pass has gaps as the forward pass has, but there is also twice the
        work.""")(lambda p, m: 2 * (p - 1) / (2 * (p - 1) + m))


class MendShards(Exercise, name="scaling.mend_shards", minutes=10):
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


class MendWeights(Exercise, name="scaling.mend_weights", minutes=10):
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


class StateBytes(Exercise, name="scaling.state_bytes", minutes=10):
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


class Orthogonalise(Exercise, name="scaling.orthogonalise", minutes=10):
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
