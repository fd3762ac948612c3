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


def surprises(logits):
    log_p = logits.log_softmax(-1)
    return log_p.exp(), -log_p


def until(p, probabilities, order):
    ordered = probabilities.gather(-1, order)
    before = torch.cat([torch.zeros_like(ordered[..., :1]), ordered.cumsum(-1)[..., :-1]], -1)
    return put_back(torch.where(before < p, ordered, 0.0), order)


@wrong("decoding.typical", "From where should the distance be counted")
def typical_by_size(logits, p):
    probabilities, surprise = surprises(logits)
    return until(p, probabilities, surprise.sort(-1).indices)


@wrong("decoding.typical", "How often does each occur")
def typical_around_a_plain_mean(logits, p):
    probabilities, surprise = surprises(logits)
    return until(p, probabilities, (surprise - surprise.mean(-1, keepdim=True)).abs().sort(-1).indices)


@wrong("decoding.allowed_tokens", "Where must it stand")
def tokens_found_anywhere(answers, written, pieces):
    found = [written in answers] + [any((written + piece) in answer for answer in answers) for piece in pieces[1:]]
    return torch.tensor(found)


@wrong("decoding.allowed_tokens", "The end is allowed before the answer is whole")
def tokens_with_the_empty_one(answers, written, pieces):
    return torch.tensor([any(answer.find(written + piece) == 0 for answer in answers) for piece in pieces])


@wrong("decoding.accept_or_resample", "of what has q given too little")
def accept_or_draw_again(p, q, token, u, noise):
    if u <= min(1, float(p[token] / q[token])):
        return token
    return int(torch.argmax(p / noise))


@wrong("decoding.accept_or_resample", "No dice")
def accept_when_p_is_larger(p, q, token, u, noise):
    if p[token] >= q[token]:
        return token
    lack = p - q
    lack[lack < 0] = 0
    return int((lack / noise).argmax())


@wrong("decoding.draft_length", "The first refusal throws away the rest")
def draft_as_if_all_were_looked_at(rate, cost):
    speeds = [(1 + rate * n) / (1 + cost * n) for n in range(17)]
    return speeds.index(max(speeds))


@wrong("decoding.draft_length", "a round gives at least one")
def draft_without_the_models_token(rate, cost):
    speeds = [sum(rate**i for i in range(1, n + 1)) / (1 + cost * n) for n in range(17)]
    return speeds.index(max(speeds))


@wrong("decoding.kv_cache_bytes", "a token leaves a key and a value")
def cache_of_keys(n_layer, n_head, head_size, n_tokens, n_texts, bytes_each):
    return n_layer * n_head * head_size * n_tokens * n_texts * bytes_each


@wrong("decoding.kv_cache_bytes", "it grows in a straight line")
def cache_of_pairs(n_layer, n_head, head_size, n_tokens, n_texts, bytes_each):
    return 2 * n_layer * n_head * head_size * n_tokens**2 * n_texts * bytes_each


@wrong("decoding.choose_bits", "Could it be above the limit on other passages")
def smallest_by_its_mean(plain, formats, limit):
    order = sorted(range(len(formats)), key=lambda i: formats[i][0])
    return next((i for i in order if (formats[i][1].mean() - plain.mean()) < limit), order[-1])


@wrong("decoding.choose_bits", "whatever it costs")
def smallest_of_all(plain, formats, limit):
    return min(range(len(formats)), key=lambda i: formats[i][0])
