"""Wrong answers to the exercises of notebook 10."""

import math

import torch

from wrong_answers import wrong

DAY = 24 * 60 * 60


@wrong("scaling.flops", "That is the forward pass")
def flops_forward_only(n_layer, n_embd, vocab_size, n_positions, n_tokens):
    per_block = 2 * (4 * n_embd * n_embd + 8 * n_embd * n_embd) + 2 * 2 * n_positions * n_embd
    return float(n_tokens * (n_layer * per_block + 2 * vocab_size * n_embd))


@wrong("scaling.flops", "That is the cost of one token")
def flops_of_one_token(n_layer, n_embd, vocab_size, n_positions, n_tokens):
    return float(n_layer * (72 * n_embd**2 + 12 * n_embd * n_positions) + 6 * vocab_size * n_embd)


@wrong("scaling.days", "No device ever works at its peak")
def days_at_peak(n_parameters, n_tokens, n_devices, peak_flops, utilisation):
    return 6 * n_parameters * n_tokens / (peak_flops * n_devices) / DAY


@wrong("scaling.days", "faster when the devices are used less")
def days_turned(n_parameters, n_tokens, n_devices, peak_flops, utilisation):
    return utilisation * 6 * n_parameters * n_tokens / (peak_flops * n_devices) / DAY


def divided_in_order(sizes, n_parameters, n_devices, strategy):
    divided = {"DDP": 0, "ZeRO-1": 1, "ZeRO-2": 2, "FSDP": 3}[strategy]
    names = ["optimizer", "gradients", "weights"][:divided]
    return float(sum(n_parameters * size / (n_devices if name in names else 1) for name, size in sizes.items()))


@wrong("scaling.state_bytes", "third thing that the optimizer keeps")
def states_without_master_weights(n_parameters, n_devices, strategy):
    return divided_in_order({"weights": 2, "gradients": 2, "optimizer": 8}, n_parameters, n_devices, strategy)


@wrong("scaling.state_bytes", "the float32 copy of the weights is divided together")
def states_in_float32(n_parameters, n_devices, strategy):
    return divided_in_order({"weights": 4, "gradients": 4, "optimizer": 8}, n_parameters, n_devices, strategy)


def searched(E, A, alpha, B, beta, product):
    low, high = 0.0, math.log(product)
    for _ in range(200):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        losses = [A * math.exp(-alpha * x) + B * (product / math.exp(x)) ** -beta for x in (left, right)]
        low, high = (low, right) if losses[0] < losses[1] else (left, high)
    return math.exp(low), product / math.exp(low)


@wrong("scaling.compute_optimal", "in the wrong order")
def optimal_turned(E, A, alpha, B, beta, flops):
    n, d = (float(f"{value:.9g}") for value in searched(E, A, alpha, B, beta, flops / 6))
    return d, n


@wrong("scaling.compute_optimal", "There both terms are equally large")
def optimal_equal_terms(E, A, alpha, B, beta, flops):
    low, high = 0.0, math.log(flops / 6)
    for _ in range(200):
        middle = (low + high) / 2
        too_small = A * math.exp(-alpha * middle) > B * (flops / 6 / math.exp(middle)) ** -beta
        low, high = (middle, high) if too_small else (low, middle)
    return math.exp(low), flops / 6 / math.exp(low)


def newton_schulz(x, steps=5, a=3.4445, b=-4.7750, c=2.0315):
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + b * gram @ x + c * gram @ gram @ x
    return x


@wrong("scaling.orthogonalise", "You divide each row by its own length")
def orthogonalise_by_rows(matrix):
    return newton_schulz(torch.nn.functional.normalize(matrix, dim=1))


@wrong("scaling.orthogonalise", "That is one step")
def orthogonalise_once(matrix):
    return newton_schulz(matrix / torch.linalg.norm(matrix), steps=1)


@wrong("scaling.mend_shards", "rows that stand next to each other")
def shards_in_turns(draw, seed, step, rank, n_processes, batch_size):
    return draw(seed, step, batch_size * n_processes).view(batch_size, n_processes)[:, rank]


@wrong("scaling.mend_shards", "takes the whole big batch")
def shards_whole(draw, seed, step, rank, n_processes, batch_size):
    return draw(seed, step, batch_size * n_processes)


@wrong("scaling.mend_weights", "DDP divides by the number of processes once more")
def weights_as_shares(counts):
    return torch.tensor([count / sum(counts) for count in counts])


@wrong("scaling.mend_weights", "The other way round")
def weights_turned(counts):
    mean = sum(counts) / len(counts)
    return mean / torch.tensor(counts)
