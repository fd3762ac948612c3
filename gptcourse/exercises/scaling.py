"""The exercises of notebook 05: what a model costs, what a budget buys, Muon's step, and several processes as one.

Each mistake is a formula that people really use. Its hint says what goes wrong, or asks the question that helps,
and leaves the mending to the learner.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, randn, tensor

from gptcourse.exercises import Exercise, Mistake
from gptcourse.optimizers import NEWTON_SCHULZ, newton_schulz
from gptcourse.scaling import ScalingLaw

NOTEBOOK = "05 · Scaling up"
SECONDS_PER_DAY = 86_400


# ---- What a run costs


def flops(
    n_layer: int,
    n_embd: int,
    vocab_size: int,
    n_positions: int,
    n_tokens: int,
    per_weight: int = 6,
    readout: float = 1.0,
    attention: float = 12.0,
) -> float:
    """Operations of a training, with the factors that a mistake may change."""
    weights = 12 * n_layer * n_embd**2 + readout * vocab_size * n_embd
    return float(n_tokens * (per_weight * weights + attention * n_layer * n_embd * n_positions))


def counted(**changes) -> Callable[..., float]:
    """Return what counts with other factors than the right ones; the parameters keep their names."""
    return lambda n_layer, n_embd, vocab_size, n_positions, n_tokens: flops(
        n_layer, n_embd, vocab_size, n_positions, n_tokens, **changes
    )


def days(n_parameters: float, n_tokens: float, n_devices: int, peak_flops: float, utilisation: float) -> float:
    return 6 * n_parameters * n_tokens / (n_devices * peak_flops * utilisation) / SECONDS_PER_DAY


def states(parts: dict[str, tuple[float, float]]) -> Callable[[float, int, str], float]:
    """Return what counts bytes for given (whole, divided) bytes per parameter of each strategy."""

    def state_bytes(n_parameters: float, n_devices: int, strategy: str) -> float:
        """Return the bytes on each device."""
        whole, divided = parts[strategy]
        return float(n_parameters * (whole + divided / n_devices))

    return state_bytes


ZERO = {"DDP": (16, 0), "ZeRO-1": (4, 12), "ZeRO-2": (2, 14), "FSDP": (0, 16)}


# ---- What a budget buys


def best_split(E: float, A: float, alpha: float, B: float, beta: float, flops: float) -> tuple[float, float]:
    return ScalingLaw(E, A, alpha, B, beta).compute_optimal(flops)


def split_by(size: Callable[..., float], per_token: float = 6.0) -> Callable[..., tuple[float, float]]:
    """Return what gives a size by some formula and spends what is left on tokens."""

    def split(E: float, A: float, alpha: float, B: float, beta: float, flops: float) -> tuple[float, float]:
        """Return parameters and tokens."""
        n_parameters = size(A, alpha, B, beta, flops / per_token)
        return n_parameters, flops / per_token / n_parameters

    return split


def optimum(A: float, alpha: float, B: float, beta: float, product: float) -> float:
    return (alpha * A / (beta * B)) ** (1 / (alpha + beta)) * product ** (beta / (alpha + beta))


# ---- Muon


def iterated(
    start: Callable[[Tensor], Tensor] = lambda matrix: matrix / matrix.norm(), steps: int = 5
) -> Callable[[Tensor], Tensor]:
    """Return a Newton-Schulz iteration from another start, or of another length."""

    def orthogonal(matrix: Tensor) -> Tensor:
        """Return the matrix after the iteration."""
        a, b, c = NEWTON_SCHULZ
        x = start(matrix)
        for _ in range(steps):
            gram = x @ x.mT
            x = a * x + (b * gram + c * gram @ gram) @ x
        return x

    return orthogonal


def by_svd(matrix: Tensor) -> Tensor:
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vh


# ---- Several processes


def places(seed: int, step: int, count: int) -> Tensor:
    """Places in a text, as many as are asked for: the first n of a longer row are the row of n."""
    generator = torch.Generator().manual_seed(1_000_003 * seed + step)
    return torch.stack([torch.randint(1_000_000, (), generator=generator) for _ in range(count)])


def own_block(draw: Callable, seed: int, step: int, rank: int, n_processes: int, batch_size: int) -> Tensor:
    return draw(seed, step, n_processes * batch_size)[rank * batch_size : (rank + 1) * batch_size]


def of_all(weigh: Callable[[Tensor], Tensor]) -> Callable[[list[int]], Tensor]:
    """Return what gives each process a weight, by a rule on the tensor of their counts."""
    return lambda counts: weigh(tensor(counts, dtype=torch.float32))


EXERCISES = (
    Exercise(
        name="scaling.flops",
        asks="Return how many floating-point operations the training takes, forward and backward.",
        inputs=lambda: [(2, 64, 76, 64, 1_000), (12, 768, 50_257, 1_024, 300), (1, 8, 10, 16, 1)],
        reference=counted(),
        hint=(
            "Count one token. How many weights does it meet, what does each of them cost forward and backward, and "
            "what do the two products of attention cost besides?"
        ),
        mistakes=(
            Mistake(
                counted(per_weight=2, attention=4.0),
                "That is the forward pass. What does the backward pass compute for each weight, and how many times?",
            ),
            Mistake(
                counted(per_weight=4, attention=8.0),
                "That is the backward pass alone. Something has to run before it.",
            ),
            Mistake(
                counted(attention=0.0),
                "All weights are counted. But attention also multiplies what is no weight: queries with keys, and "
                "weights of attention with values.",
            ),
            Mistake(
                counted(attention=4.0),
                "Attention's own products have a backward pass, too.",
            ),
            Mistake(
                counted(attention=6.0),
                "Close. Is it one product over the window, or two?",
            ),
            Mistake(
                counted(readout=0.0),
                "The blocks are counted. What turns the last vector into a score for each token?",
            ),
            Mistake(
                counted(readout=2.0),
                "The token table is counted twice. A look-up multiplies nothing; only the read-out does.",
            ),
            Mistake(
                lambda *shape_and_tokens: flops(*shape_and_tokens) / shape_and_tokens[-1],
                "That is the cost of one token. How many are there?",
            ),
        ),
    ),
    Exercise(
        name="scaling.days",
        asks="Return how many days the training takes.",
        inputs=lambda: [
            (175e9, 300e9, 1_024, 312e12, 0.3),
            (1e9, 20e9, 8, 1e15, 0.4),
            (5e6, 1e9, 1, 1e11, 0.7),
        ],
        reference=days,
        hint="Write the units down: operations in all, operations a second that really happen, seconds in a day.",
        mistakes=(
            Mistake(
                lambda n, d, devices, peak, utilisation: days(n, d, devices, peak, 1.0),
                "No device ever works at its peak all the time. Which of the inputs says how much of it it does?",
            ),
            Mistake(
                lambda n, d, devices, peak, utilisation: days(n, d, devices, peak, 1 / utilisation),
                "Yours gets faster when the devices are used less.",
            ),
            Mistake(
                lambda *run: 1 / 3 * days(*run),
                "Two operations for each parameter and token are the forward pass alone.",
            ),
            Mistake(
                lambda *run: 1 / 6 * days(*run),
                "Each parameter takes part in more than one operation for each token. In how many?",
            ),
            Mistake(
                lambda *run: SECONDS_PER_DAY * days(*run),
                "That is seconds.",
            ),
            Mistake(
                lambda *run: 24 * days(*run),
                "That is hours.",
            ),
            Mistake(
                lambda n, d, devices, peak, utilisation: days(n, d, 1, peak, utilisation),
                "That is one device working alone.",
            ),
        ),
    ),
    Exercise(
        name="scaling.state_bytes",
        asks="Return the bytes that weights, gradients and optimizer take on each device.",
        inputs=lambda: [(7.5e9, 64, name) for name in ZERO] + [(1e6, 1, "ZeRO-1"), (3e6, 4, "ZeRO-2")],
        reference=states(ZERO),
        hint="Per parameter: 2 bytes of weight, 2 of gradient, 12 of the optimizer. Which of the three is divided?",
        mistakes=(
            Mistake(
                states(dict.fromkeys(ZERO, (0, 16))),
                "You divide everything, whatever the strategy. With DDP each device keeps the whole model.",
            ),
            Mistake(
                states(dict.fromkeys(ZERO, (16, 0))),
                "You divide nothing. What does each strategy divide among the devices?",
            ),
            Mistake(
                states({"DDP": (12, 0), "ZeRO-1": (4, 8), "ZeRO-2": (2, 10), "FSDP": (0, 12)}),
                "AdamW's two averages are 8 bytes. What is the third thing that the optimizer keeps in float32?",
            ),
            Mistake(
                states({"DDP": (16, 0), "ZeRO-1": (8, 8), "ZeRO-2": (4, 12), "FSDP": (0, 16)}),
                "The sum is right, but the float32 copy of the weights is divided together with the averages.",
            ),
            Mistake(
                states({"DDP": (16, 0), "ZeRO-1": (14, 2), "ZeRO-2": (2, 14), "FSDP": (0, 16)}),
                "ZeRO's first stage divides the largest of the three. Which is that?",
            ),
            Mistake(
                states({"DDP": (16, 0), "ZeRO-1": (4, 12), "ZeRO-2": (4, 12), "FSDP": (0, 16)}),
                "The second stage divides one thing more than the first. Which?",
            ),
            Mistake(
                states({"DDP": (16, 0), "ZeRO-1": (4, 12), "ZeRO-2": (2, 14), "FSDP": (14, 2)}),
                "FSDP divides the weights as well, besides what the second stage divides.",
            ),
        ),
    ),
    Exercise(
        name="scaling.compute_optimal",
        asks="Return the parameters and the tokens with the lowest loss among all that cost 6 · N · D = flops.",
        inputs=lambda: [
            (1.69, 406.4, 0.34, 410.7, 0.28, 1e20),
            (0.8, 20.0, 0.5, 60.0, 0.4, 1e13),
            (1.0, 7.0, 0.3, 7.0, 0.3, 6e10),
        ],
        reference=best_split,
        hint=(
            "Put the budget over (6 N) in the place of D, and look for the N at which the loss no longer changes. Or "
            "search: try many N, evenly on a logarithmic axis, and then again around the best."
        ),
        mistakes=(
            Mistake(
                split_by(lambda A, alpha, B, beta, product: product**0.5),
                "You share the budget evenly, whatever the law says. Does its best split not depend on its exponents?",
            ),
            Mistake(
                split_by(optimum, per_token=1.0),
                "The cost is 6 · N · D. Yours spends six times the budget.",
            ),
            Mistake(
                split_by(optimum, per_token=2.0),
                "The cost is 6 · N · D: yours counts the forward pass alone.",
            ),
            Mistake(
                split_by(lambda A, alpha, B, beta, product: optimum(A, alpha, B, beta, product**2) ** 0.5),
                "Look at the constant again: for budgets that grow, yours goes the right way from the wrong place.",
            ),
            Mistake(
                split_by(
                    lambda A, alpha, B, beta, product: (
                        (alpha * A / (beta * B)) ** (1 / (alpha + beta)) * product ** (alpha / (alpha + beta))
                    )
                ),
                "The exponents are exchanged. Where text teaches slowly, at a small beta, which should grow more?",
            ),
            Mistake(
                lambda E, A, alpha, B, beta, flops: best_split(E, A, alpha, B, beta, flops)[::-1],
                "The right two numbers, in the wrong order.",
            ),
            Mistake(
                split_by(
                    lambda A, alpha, B, beta, product: (
                        (A / B) ** (1 / (alpha + beta)) * product ** (beta / (alpha + beta))
                    )
                ),
                "There both terms are equally large. The loss is lowest where both *change* equally fast.",
            ),
        ),
    ),
    Exercise(
        name="scaling.orthogonalise",
        asks="Return the matrix after its division by its norm and five Newton-Schulz steps.",
        inputs=lambda: [
            (randn(4, 6),),
            (100 * randn(5, 5),),
            (0.01 * randn(3, 12),),
            (tensor([[0.6, 0.2, 0.1, 0.1]]),),
        ],
        reference=lambda matrix: newton_schulz(matrix),
        hint="Divide by the norm once, before the loop. Then five times: x ← a x + (b g + c g g) x, where g is x xᵀ.",
        mistakes=(
            Mistake(
                iterated(start=lambda matrix: matrix),
                "Without a division at the start, singular values above about 1.7 grow without end.",
            ),
            Mistake(
                iterated(start=lambda matrix: matrix / matrix.abs().max()),
                "You divide by the largest entry. A matrix of small entries may still stretch a vector by far more "
                "than 1: which norm bounds that?",
            ),
            Mistake(
                iterated(start=lambda matrix: matrix / matrix.norm(dim=-1, keepdim=True)),
                "You divide each row by its own length. That changes directions: divide by one number.",
            ),
            Mistake(iterated(steps=1), "That is one step. The small singular values need more of them."),
            Mistake(
                by_svd,
                "That is U Vᵀ exactly, and slow. The five steps come near it: write those.",
            ),
            Mistake(
                torch.sign,
                "The sign of each entry is what Adam nearly does. Here the matrix is taken as a whole.",
            ),
        ),
    ),
    Exercise(
        name="scaling.mend_shards",
        asks="Let process `rank` take its own block of the one big batch that all processes share.",
        inputs=lambda: [
            (places, 0, 7, 0, 2, 3),
            (places, 0, 7, 1, 2, 3),
            (places, 5, 0, 3, 4, 2),
            (places, 1, 2, 0, 1, 4),
        ],
        reference=own_block,
        hint="Draw the whole batch of all processes in every one of them. Which rows of it belong to this one?",
        mistakes=(
            Mistake(
                lambda draw, seed, step, rank, n, size: draw(seed, step, size),
                "The mistake is still there: all processes learn from the same rows. How many different rows does a "
                "step of four processes see?",
                untouched=True,
            ),
            Mistake(
                lambda draw, seed, step, rank, n, size: draw(seed + rank, step, size),
                "Now they differ. But process 1 of the run with seed 0 reads what process 0 of the run with seed 1 "
                "reads, and no single process could make the same run.",
            ),
            Mistake(
                lambda draw, seed, step, rank, n, size: draw(seed, step + rank, size),
                "Process 1 reads in this step what process 0 reads in the next one.",
            ),
            Mistake(
                lambda draw, seed, step, rank, n, size: draw(seed, step, n * size)[rank::n],
                "Together that is the right batch. But a process should take rows that stand next to each other.",
            ),
            Mistake(
                lambda draw, seed, step, rank, n, size: draw(seed, step, n * size),
                "Each process now takes the whole big batch: n times the work, and nothing gained.",
            ),
        ),
    ),
    Exercise(
        name="scaling.mend_weights",
        asks="Return the number by which each process multiplies its mean loss before DDP averages the gradients.",
        inputs=lambda: [([10, 30],), ([7, 7, 7],), ([1, 0, 5, 2],), ([4],)],
        reference=of_all(lambda counts: counts * len(counts) / counts.sum()),
        hint=(
            "The loss of all tokens is the sum of all losses over the number of all tokens. Write it with the means "
            "and the counts of the processes, and remember that DDP divides by the number of processes."
        ),
        mistakes=(
            Mistake(
                of_all(torch.ones_like),
                "The mistake is still there: every process has the same say, however few reply tokens it holds.",
                untouched=True,
            ),
            Mistake(
                of_all(lambda counts: counts / counts.sum()),
                "The shares are right, but DDP divides by the number of processes once more.",
            ),
            Mistake(
                of_all(lambda counts: counts),
                "These are sums of losses. The gradient would grow with the number of tokens.",
            ),
            Mistake(
                of_all(lambda counts: counts / counts.max()),
                "The shares are right among themselves. To what should the weights add up?",
            ),
            Mistake(
                of_all(lambda counts: counts.sum() / (counts * len(counts))),
                "The other way round: a process with few tokens now has the most to say.",
            ),
        ),
    ),
)
