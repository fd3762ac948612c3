"""Wrong answers to the exercises of notebook 05."""

import math

import torch

from wrong_answers import wrong

DAY = 24 * 60 * 60


@wrong("scaling.flops", "That is the forward pass")
def flops_forward_only(n_layer, n_embd, vocab_size, n_positions, n_tokens):
    per_block = 2 * (4 * n_embd * n_embd + 8 * n_embd * n_embd) + 2 * 2 * n_positions * n_embd
    return float(n_tokens * (n_layer * per_block + 2 * vocab_size * n_embd))


@wrong("scaling.flops", "the backward pass alone")
def flops_backward_only(n_layer, n_embd, vocab_size, n_positions, n_tokens):
    forward = flops_forward_only(n_layer, n_embd, vocab_size, n_positions, n_tokens)
    return 2 * forward


@wrong("scaling.flops", "attention also multiplies what is no weight")
def flops_six_n(n_layer, n_embd, vocab_size, n_positions, n_tokens):
    n = n_layer * 12 * n_embd**2 + vocab_size * n_embd
    return 6.0 * n * n_tokens


@wrong("scaling.flops", "Attention's own products have a backward pass")
def flops_attention_forward_only(n_layer, n_embd, vocab_size, n_positions, n_tokens):
    attention = 4 * n_layer * n_positions * n_embd * n_tokens
    return flops_six_n(n_layer, n_embd, vocab_size, n_positions, n_tokens) + attention


@wrong("scaling.flops", "Is it one product over the window")
def flops_one_product(n_layer, n_embd, vocab_size, n_positions, n_tokens):
    attention = 6 * n_layer * n_positions * n_embd * n_tokens
    return flops_six_n(n_layer, n_embd, vocab_size, n_positions, n_tokens) + attention


@wrong("scaling.flops", "What turns the last vector into a score")
def flops_without_readout(n_layer, n_embd, vocab_size, n_positions, n_tokens):
    return float(n_tokens * n_layer * (72 * n_embd**2 + 12 * n_embd * n_positions))


@wrong("scaling.flops", "The token table is counted twice")
def flops_with_lookup(n_layer, n_embd, vocab_size, n_positions, n_tokens):
    return (
        flops_without_readout(n_layer, n_embd, vocab_size, n_positions, n_tokens)
        + 12.0 * vocab_size * n_embd * n_tokens
    )


@wrong("scaling.flops", "That is the cost of one token")
def flops_of_one_token(n_layer, n_embd, vocab_size, n_positions, n_tokens):
    return float(n_layer * (72 * n_embd**2 + 12 * n_embd * n_positions) + 6 * vocab_size * n_embd)


@wrong("scaling.days", "No device ever works at its peak")
def days_at_peak(n_parameters, n_tokens, n_devices, peak_flops, utilisation):
    return 6 * n_parameters * n_tokens / (peak_flops * n_devices) / DAY


@wrong("scaling.days", "faster when the devices are used less")
def days_turned(n_parameters, n_tokens, n_devices, peak_flops, utilisation):
    return utilisation * 6 * n_parameters * n_tokens / (peak_flops * n_devices) / DAY


@wrong("scaling.days", "are the forward pass alone")
def days_forward(n_parameters, n_tokens, n_devices, peak_flops, utilisation):
    return 2 * n_parameters * n_tokens / (peak_flops * n_devices * utilisation) / DAY


@wrong("scaling.days", "takes part in more than one operation")
def days_one_operation(n_parameters, n_tokens, n_devices, peak_flops, utilisation):
    return n_parameters * n_tokens / (peak_flops * n_devices * utilisation) / DAY


@wrong("scaling.days", "That is seconds")
def days_in_seconds(n_parameters, n_tokens, n_devices, peak_flops, utilisation):
    return 6 * n_parameters * n_tokens / (peak_flops * n_devices * utilisation)


@wrong("scaling.days", "That is hours")
def days_in_hours(n_parameters, n_tokens, n_devices, peak_flops, utilisation):
    return 6 * n_parameters * n_tokens / (peak_flops * n_devices * utilisation) / 3600


@wrong("scaling.days", "one device working alone")
def days_of_one_device(n_parameters, n_tokens, n_devices, peak_flops, utilisation):
    return 6 * n_parameters * n_tokens / (peak_flops * utilisation) / DAY


@wrong("scaling.state_bytes", "You divide everything")
def states_all_divided(n_parameters, n_devices, strategy):
    return 16 * n_parameters / n_devices


@wrong("scaling.state_bytes", "You divide nothing")
def states_all_whole(n_parameters, n_devices, strategy):
    return 16.0 * n_parameters


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


@wrong("scaling.state_bytes", "first stage divides the largest")
def states_gradients_first(n_parameters, n_devices, strategy):
    divided = {"DDP": 0, "ZeRO-1": 2, "ZeRO-2": 14, "FSDP": 16}[strategy]
    return n_parameters * (16 - divided + divided / n_devices)


@wrong("scaling.state_bytes", "divides one thing more than the first")
def states_second_like_first(n_parameters, n_devices, strategy):
    divided = {"DDP": 0, "ZeRO-1": 12, "ZeRO-2": 12, "FSDP": 16}[strategy]
    return n_parameters * (16 - divided + divided / n_devices)


@wrong("scaling.state_bytes", "FSDP divides the weights as well")
def states_fsdp_weights_only(n_parameters, n_devices, strategy):
    divided = {"DDP": 0, "ZeRO-1": 12, "ZeRO-2": 14, "FSDP": 2}[strategy]
    return n_parameters * (16 - divided + divided / n_devices)


@wrong("scaling.compute_optimal", "You share the budget evenly")
def optimal_even(E, A, alpha, B, beta, flops):
    n = math.sqrt(flops / 6)
    return n, n


def searched(E, A, alpha, B, beta, product):
    low, high = 0.0, math.log(product)
    for _ in range(200):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        losses = [A * math.exp(-alpha * x) + B * (product / math.exp(x)) ** -beta for x in (left, right)]
        low, high = (low, right) if losses[0] < losses[1] else (left, high)
    return math.exp(low), product / math.exp(low)


@wrong("scaling.compute_optimal", "Yours spends six times the budget")
def optimal_without_six(E, A, alpha, B, beta, flops):
    return searched(E, A, alpha, B, beta, flops)


@wrong("scaling.compute_optimal", "counts the forward pass alone")
def optimal_forward(E, A, alpha, B, beta, flops):
    return searched(E, A, alpha, B, beta, flops / 2)


@wrong("scaling.compute_optimal", "The exponents are exchanged")
def optimal_exchanged(E, A, alpha, B, beta, flops):
    n = (alpha * A / beta / B) ** (1 / (alpha + beta)) * (flops / 6) ** (alpha / (alpha + beta))
    return n, flops / 6 / n


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


@wrong("scaling.orthogonalise", "grow without end")
def orthogonalise_without_norm(matrix):
    return newton_schulz(matrix)


@wrong("scaling.orthogonalise", "You divide by the largest entry")
def orthogonalise_by_largest(matrix):
    return newton_schulz(matrix / matrix.abs().max())


@wrong("scaling.orthogonalise", "You divide each row by its own length")
def orthogonalise_by_rows(matrix):
    return newton_schulz(torch.nn.functional.normalize(matrix, dim=1))


@wrong("scaling.orthogonalise", "That is one step")
def orthogonalise_once(matrix):
    return newton_schulz(matrix / torch.linalg.norm(matrix), steps=1)


@wrong("scaling.orthogonalise", "That is U Vᵀ exactly")
def orthogonalise_by_svd(matrix):
    u, _, v = torch.svd(matrix)
    return u @ v.T


@wrong("scaling.orthogonalise", "The sign of each entry")
def orthogonalise_by_sign(matrix):
    return matrix / matrix.abs()


@wrong("scaling.mend_shards", "But process 1 of the run with seed 0")
def shards_by_seed(draw, seed, step, rank, n_processes, batch_size):
    return draw(seed + rank, step, batch_size)


@wrong("scaling.mend_shards", "what process 0 reads in the next one")
def shards_by_step(draw, seed, step, rank, n_processes, batch_size):
    return draw(seed, step + rank, batch_size)


@wrong("scaling.mend_shards", "rows that stand next to each other")
def shards_in_turns(draw, seed, step, rank, n_processes, batch_size):
    return draw(seed, step, batch_size * n_processes).view(batch_size, n_processes)[:, rank]


@wrong("scaling.mend_shards", "takes the whole big batch")
def shards_whole(draw, seed, step, rank, n_processes, batch_size):
    return draw(seed, step, batch_size * n_processes)


@wrong("scaling.mend_weights", "DDP divides by the number of processes once more")
def weights_as_shares(counts):
    return torch.tensor([count / sum(counts) for count in counts])


@wrong("scaling.mend_weights", "These are sums of losses")
def weights_as_counts(counts):
    return torch.tensor(counts).float()


@wrong("scaling.mend_weights", "To what should the weights add up")
def weights_by_largest(counts):
    return torch.tensor(counts) / max(counts)


@wrong("scaling.mend_weights", "The other way round")
def weights_turned(counts):
    mean = sum(counts) / len(counts)
    return mean / torch.tensor(counts)
