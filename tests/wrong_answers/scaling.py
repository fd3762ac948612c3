"""Wrong answers to the exercises of notebook 10."""

import math

import torch

from wrong_answers import wrong


@wrong("scaling.flops", "That is the forward pass")
def flops_forward_only(n_layer, n_embd, vocab_size, n_positions, n_tokens):
    per_block = 2 * (4 * n_embd * n_embd + 8 * n_embd * n_embd) + 2 * 2 * n_positions * n_embd
    return float(n_tokens * (n_layer * per_block + 2 * vocab_size * n_embd))


@wrong("scaling.flops", "That is the cost of one token")
def flops_of_one_token(n_layer, n_embd, vocab_size, n_positions, n_tokens):
    return float(n_layer * (72 * n_embd**2 + 12 * n_embd * n_positions) + 6 * vocab_size * n_embd)


@wrong("scaling.ruler", "a line on plain axes")
def ruler_straight(x0, loss0, x1, loss1, x):
    return loss1 - (loss0 - loss1) / (x1 - x0) * (x - x1)


@wrong("scaling.ruler", "x alone")
def ruler_on_one_logarithmic_axis(x0, loss0, x1, loss1, x):
    per_doubling = (loss1 - loss0) / math.log2(x1 / x0)
    return loss1 + per_doubling * math.log2(x / x1)


@wrong("scaling.interval_score", "An interval of no width would always win")
def score_of_the_width(low, high, value, level):
    return high - low


@wrong("scaling.interval_score", "A value below the interval is missed")
def score_one_sided(low, high, value, level):
    return high - low + (2 * (value - high) / (1 - level) if value > high else 0.0)


@wrong("scaling.utilisation", "share of one device's peak")
def utilisation_of_one(tokens_per_second, n_parameters, n_devices, peak_flops, recomputed):
    model = 6 * n_parameters * tokens_per_second / peak_flops
    return model, model * (4 / 3 if recomputed else 1)


@wrong("scaling.utilisation", "one forward pass more than the model needs")
def utilisation_twice_the_same(tokens_per_second, n_parameters, n_devices, peak_flops, recomputed):
    share = tokens_per_second * 6 * n_parameters / (n_devices * peak_flops)
    return share, share


@wrong("scaling.ring_all_reduce", "whole vector on")
def ring_of_whole_vectors(values, group):
    seen = [values]
    for _ in range(group.size - 1):
        group.send(seen[-1])
        seen.append(group.receive())
    return sum(seen)


@wrong("scaling.ring_all_reduce", "complete in one process only")
def ring_of_one_round(values, group):
    n, k = group.size, len(values) // group.size
    values, place = values.clone(), group.rank
    for _ in range(n - 1):
        group.send(values[place * k : place * k + k])
        place = (place - 1) % n
        values[place * k : place * k + k] += group.receive()
    return values


@wrong("scaling.zero_1", "half again as many numbers")
def zero_with_the_whole_gradient(weights, gradient, moment, rate, group):
    begin, end = group.rank * len(moment), (group.rank + 1) * len(moment)
    mean = group.all_reduce(gradient) / group.size
    moment = 0.9 * moment + mean[begin:end]
    return group.all_gather(weights[begin:end] - rate * moment), moment


@wrong("scaling.zero_1", "sum of the gradients")
def zero_of_sums(weights, gradient, moment, rate, group):
    begin, end = group.rank * len(moment), (group.rank + 1) * len(moment)
    moment = moment * 0.9 + group.reduce_scatter(gradient)
    return group.all_gather(weights[begin:end] - rate * moment), moment


@wrong("scaling.tensor_parallel", "once for each process")
def mlp_with_many_biases(x, w_in, b_in, w_out, b_out, group):
    k = len(b_in) // group.size
    own = slice(group.rank * k, (group.rank + 1) * k)
    return group.all_reduce(torch.nn.functional.gelu(x @ w_in[:, own] + b_in[own]) @ w_out[own] + b_out)


@wrong("scaling.tensor_parallel", "nothing was divided")
def mlp_undivided(x, w_in, b_in, w_out, b_out, group):
    hidden = torch.nn.functional.gelu(torch.addmm(b_in, x, w_in))
    return torch.addmm(b_out, hidden, w_out)


@wrong("scaling.bubble", "idle time over the time of work")
def bubble_by_the_work(n_stages, n_portions):
    return n_stages / n_portions - 1 / n_portions


@wrong("scaling.bubble", "share in which it works")
def share_of_work(n_stages, n_portions):
    return n_portions / (n_stages + n_portions - 1)


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
