"""Wrong answers to the exercises of notebook 07."""

import torch

from wrong_answers import wrong


def sorted_probabilities(logits):
    return torch.softmax(logits, dim=-1).sort(dim=-1, descending=True)


def put_back(probabilities, order):
    probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    return torch.empty_like(probabilities).scatter_(-1, order, probabilities)


@wrong("decoding.min_p", "To what is it a share")
def min_p_as_a_height(logits, min_p):
    p = torch.softmax(logits, -1)
    p = torch.where(p >= min(min_p, p.max().item()), p, torch.zeros_like(p))
    return p / p.sum(-1, keepdim=True)


@wrong("decoding.min_p", "add up to less than one")
def min_p_without_the_sum(logits, min_p):
    p = logits.softmax(-1)
    p[p < min_p * p.max(-1, keepdim=True).values] = 0
    return p


@wrong("decoding.top_p", "You keep one token too many")
def top_p_with_one_too_many(logits, p):
    probabilities, order = sorted_probabilities(logits)
    drop = probabilities.cumsum(-1) >= p
    shifted = torch.zeros_like(drop)
    shifted[..., 2:] = drop[..., :-2]
    return put_back(probabilities.masked_fill(shifted, 0), order)


@wrong("decoding.top_p", "add up to less than one")
def top_p_not_normalised(logits, p):
    probabilities, order = sorted_probabilities(logits)
    before = probabilities.cumsum(-1) - probabilities
    kept = probabilities.masked_fill(before > p, 0)
    return torch.zeros_like(kept).scatter(-1, order, kept)


@wrong("decoding.repetition_penalty", "now the model repeats itself more")
def penalty_with_signs_exchanged(logits, previous_ids, penalty):
    new = logits.clone()
    for token in set(previous_ids.tolist()):
        new[token] = new[token] * penalty if new[token] > 0 else new[token] / penalty
    return new


@wrong("decoding.repetition_penalty", "penalised three times")
def penalty_for_each_time(logits, previous_ids, penalty):
    new = logits.clone()
    for token in previous_ids:
        new[token] = new[token] / penalty if new[token] > 0 else new[token] * penalty
    return new


@wrong("decoding.perplexity", "One step is missing")
def perplexity_as_a_loss(log_probs):
    return -sum(text.sum() for text in log_probs) / sum(len(text) for text in log_probs)


@wrong("decoding.perplexity", "too small for the computer")
def perplexity_as_a_product(log_probs):
    product = torch.ones(())
    for text in log_probs:
        product = product * text.exp().prod()
    return product ** (-1 / sum(len(text) for text in log_probs))


@wrong("decoding.mend_temperature", "a softmax of probabilities")
def temperature_of_probabilities(logits, temperature):
    return torch.softmax(torch.softmax(logits, -1) / temperature, -1)


@wrong("decoding.mend_temperature", "Right for small logits")
def temperature_by_hand(logits, temperature):
    e = torch.exp(logits / temperature)
    return e / e.sum(dim=-1, keepdim=True)


def drawn_from(logits, noise, drop_of):
    ordered, order = sorted_probabilities(logits)
    kept = ordered.masked_fill(drop_of(ordered.cumsum(-1)), 0.0)
    return (torch.zeros_like(logits).scatter(-1, order, kept) / noise).argmax(-1)


@wrong("decoding.mend_top_p", "The best token is always there now")
def draw_with_the_best_saved(logits, p, noise):
    def drop_of(held):
        drop = held > p
        drop[:, 0] = False
        return drop

    return drawn_from(logits, noise, drop_of)


@wrong("decoding.mend_top_p", "Which token stands at that place")
def draw_of_a_place(logits, p, noise):
    ordered, _ = sorted_probabilities(logits)
    return (ordered.masked_fill(ordered.cumsum(-1) - ordered >= p, 0.0) / noise).argmax(-1)
