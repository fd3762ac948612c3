"""Wrong answers to the exercises of notebook 04."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn

from wrong_answers import wrong


def sorted_probabilities(logits):
    return torch.softmax(logits, dim=-1).sort(dim=-1, descending=True)


def put_back(probabilities, order):
    probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    return torch.empty_like(probabilities).scatter_(-1, order, probabilities)


@wrong("fine_tuning.top_p", "you divide 0 by 0")
def top_p_without_the_token_that_crosses(logits, p):
    probabilities, order = sorted_probabilities(logits)
    return put_back(probabilities * (probabilities.cumsum(-1) <= p), order)


@wrong("fine_tuning.top_p", "you stop one token too early")
def top_p_with_the_best_saved(logits, p):
    probabilities, order = sorted_probabilities(logits)
    keep = probabilities.cumsum(-1) <= p
    keep[..., 0] = True
    return put_back(probabilities * keep, order)


@wrong("fine_tuning.top_p", "You keep one token too many")
def top_p_with_one_too_many(logits, p):
    probabilities, order = sorted_probabilities(logits)
    drop = probabilities.cumsum(-1) >= p
    shifted = torch.zeros_like(drop)
    shifted[..., 2:] = drop[..., :-2]
    return put_back(probabilities.masked_fill(shifted, 0), order)


@wrong("fine_tuning.top_p", "With p at 0 yours keeps nothing")
def top_p_that_may_keep_nothing(logits, p):
    probabilities, order = sorted_probabilities(logits)
    return put_back(torch.where(probabilities.cumsum(-1) - probabilities < p, probabilities, 0), order)


@wrong("fine_tuning.top_p", "add up to less than one")
def top_p_not_normalised(logits, p):
    probabilities, order = sorted_probabilities(logits)
    before = probabilities.cumsum(-1) - probabilities
    kept = probabilities.masked_fill(before > p, 0)
    return torch.zeros_like(kept).scatter(-1, order, kept)


@wrong("fine_tuning.top_p", "To which token does each of them belong")
def top_p_left_in_order(logits, p):
    probabilities, _ = sorted_probabilities(logits)
    kept = probabilities.masked_fill(probabilities.cumsum(-1) - probabilities > p, 0)
    return kept / kept.sum(-1, keepdim=True)


@wrong("fine_tuning.top_p", "That is min-p")
def top_p_as_min_p(logits, p):
    probabilities = logits.softmax(-1)
    kept = probabilities * (probabilities >= p * probabilities.max(-1, keepdim=True).values)
    return kept / kept.sum(-1, keepdim=True)


@wrong("fine_tuning.top_p", "You hold each token against p on its own")
def top_p_token_by_token(logits, p):
    probabilities = logits.softmax(-1)
    kept = probabilities * (probabilities >= p)
    return kept / kept.sum(-1, keepdim=True)


@wrong("fine_tuning.repetition_penalty", "comes nearer to zero")
def penalty_that_divides_all(logits, previous_ids, penalty):
    new = logits.clone()
    new[previous_ids] = new[previous_ids] / penalty
    return new


@wrong("fine_tuning.repetition_penalty", "now the model repeats itself more")
def penalty_with_signs_exchanged(logits, previous_ids, penalty):
    new = logits.clone()
    for token in set(previous_ids.tolist()):
        new[token] = new[token] * penalty if new[token] > 0 else new[token] / penalty
    return new


@wrong("fine_tuning.repetition_penalty", "penalised three times")
def penalty_for_each_time(logits, previous_ids, penalty):
    new = logits.clone()
    for token in previous_ids:
        new[token] = new[token] / penalty if new[token] > 0 else new[token] * penalty
    return new


@wrong("fine_tuning.repetition_penalty", "those that have never occurred included")
def penalty_for_all(logits, previous_ids, penalty):
    return torch.where(logits > 0, logits / penalty, logits * penalty)


@wrong("fine_tuning.repetition_penalty", "The rule works on logits")
def penalty_on_probabilities(logits, previous_ids, penalty):
    p = torch.softmax(logits, -1)
    p[previous_ids] /= penalty
    return p


@wrong("fine_tuning.perplexity", "one strange short text can drown all others")
def perplexity_as_a_mean(log_probs):
    return sum(math.exp(-text.mean().item()) for text in log_probs) / len(log_probs)


@wrong("fine_tuning.perplexity", "Each text has the same say")
def perplexity_of_mean_losses(log_probs):
    return math.exp(sum(-text.mean().item() for text in log_probs) / len(log_probs))


@wrong("fine_tuning.perplexity", "One step is missing")
def perplexity_as_a_loss(log_probs):
    return -sum(text.sum() for text in log_probs) / sum(len(text) for text in log_probs)


@wrong("fine_tuning.perplexity", "Yours lies below one")
def perplexity_without_the_sign(log_probs):
    return math.exp(np.concatenate([text.numpy() for text in log_probs]).mean())


@wrong("fine_tuning.perplexity", "You raise 2 to a power")
def perplexity_of_bits(log_probs):
    return 2 ** float(-torch.cat(log_probs).mean())


@wrong("fine_tuning.perplexity", "too small for the computer")
def perplexity_as_a_product(log_probs):
    product = torch.ones(())
    for text in log_probs:
        product = product * text.exp().prod()
    return product ** (-1 / sum(len(text) for text in log_probs))


def summed(logits, targets):
    return F.cross_entropy(logits.transpose(1, 2), targets, reduction="sum")


@wrong("fine_tuning.masked_loss", "Each micro-batch has the same say")
def masked_loss_as_a_mean_of_means(micro_batches):
    losses = [F.cross_entropy(logits.flatten(0, 1), targets.flatten()) for logits, targets in micro_batches]
    return torch.stack(losses).mean()


@wrong("fine_tuning.masked_loss", "Each micro-batch has the same say")
def masked_loss_as_a_mean_of_those_with_replies(micro_batches):
    losses = [F.cross_entropy(logits.flatten(0, 1), targets.flatten()) for logits, targets in micro_batches]
    return torch.stack(losses).nanmean()


@wrong("fine_tuning.masked_loss", "has no mean: 0 divided by 0")
def masked_loss_of_weighted_means(micro_batches):
    total = n = 0
    for logits, targets in micro_batches:
        n_tokens = (targets != -100).sum()
        total += F.cross_entropy(logits.flatten(0, 1), targets.flatten()) * n_tokens
        n += n_tokens
    return total / n


@wrong("fine_tuning.masked_loss", "you count them below the line")
def masked_loss_over_all_places(micro_batches):
    return sum(summed(*part) for part in micro_batches) / sum(targets.numel() for _, targets in micro_batches)


@wrong("fine_tuning.masked_loss", "You divide by the number of micro-batches")
def masked_loss_over_parts(micro_batches):
    return sum(summed(*part) for part in micro_batches) / len(micro_batches)


@wrong("fine_tuning.masked_loss", "Each dialogue has the same say")
def masked_loss_row_by_row(micro_batches):
    rows = [F.cross_entropy(x, y) for logits, targets in micro_batches for x, y in zip(logits, targets, strict=True)]
    return torch.stack(rows).nanmean()


def counted(losses, patience, compare, reset=True):
    best, best_at, bad = losses[0], 0, 0
    for i in range(1, len(losses)):
        if compare(losses[i], best):
            best, best_at, bad = losses[i], i, 0 if reset else bad
        else:
            bad += 1
            if bad >= patience:
                return i, best_at
    return len(losses) - 1, best_at


@wrong("fine_tuning.stop_rule", "You look into a future")
def stop_rule_that_looks_ahead(losses, patience):
    return counted(losses, patience, lambda a, b: a < b)[0], int(np.argmin(losses))


@wrong("fine_tuning.stop_rule", "one evaluation too many")
def stop_rule_too_patient(losses, patience):
    best, bad = 0, 0
    for i in range(1, len(losses)):
        if losses[i] < losses[best]:
            best, bad = i, 0
        else:
            bad += 1
        if bad > patience:
            return i, best
    return len(losses) - 1, best


@wrong("fine_tuning.stop_rule", "Your patience is never renewed")
def stop_rule_that_never_forgives(losses, patience):
    return counted(losses, patience, lambda a, b: a < b, reset=False)


@wrong("fine_tuning.stop_rule", "You take an equal loss for a better one")
def stop_rule_with_ties(losses, patience):
    return counted(losses, patience, lambda a, b: a <= b)


@wrong("fine_tuning.stop_rule", "a small dip on the way up")
def stop_rule_of_rises(losses, patience):
    best = bad = 0
    for i in range(1, len(losses)):
        bad = 0 if losses[i] < losses[i - 1] else bad + 1
        if losses[i] < losses[best]:
            best = i
        if bad == patience:
            return i, best
    return len(losses) - 1, best


@wrong("fine_tuning.stop_rule", "Where is the best of a run that goes on to its end")
def stop_rule_that_counts_back(losses, patience):
    stop, _ = counted(losses, patience, lambda a, b: a < b)
    return stop, stop - patience


@wrong("fine_tuning.lora", "The change is not scaled yet")
def lora_without_scale(x, W, A, B, alpha):
    return F.linear(x, W + B @ A)


@wrong("fine_tuning.lora", "By what is alpha divided")
def lora_with_alpha_alone(x, W, A, B, alpha):
    return F.linear(x, W) + alpha * F.linear(F.linear(x, A), B)


@wrong("fine_tuning.lora", "By what is alpha divided")
def lora_with_the_wrong_rank(x, W, A, B, alpha):
    return F.linear(x, W) + alpha / A.shape[1] * F.linear(F.linear(x, A), B)


@wrong("fine_tuning.lora", "in this one there is no root")
def lora_with_a_root(x, W, A, B, alpha):
    return F.linear(x, W) + alpha / math.sqrt(A.shape[0]) * F.linear(F.linear(x, A), B)


@wrong("fine_tuning.lora", "That is the change alone")
def lora_alone(x, W, A, B, alpha):
    return (x @ A.T @ B.T) * (alpha / len(A))


@wrong("fine_tuning.lora", "You scale the frozen weight, too")
def lora_with_everything_scaled(x, W, A, B, alpha):
    return alpha / len(A) * F.linear(x, W + B @ A)


@wrong("fine_tuning.merge", "By what is alpha divided")
def merge_with_alpha_alone(W, A, B, alpha):
    return W + B @ A * alpha


@wrong("fine_tuning.merge", "You scale the frozen weight, too")
def merge_with_everything_scaled(W, A, B, alpha):
    return (W + B @ A) * alpha / A.size(0)


@wrong("fine_tuning.merge", "Your change is turned")
def merge_turned(W, A, B, alpha):
    return W + (A.T @ B.T) * alpha / A.size(0)


@wrong("fine_tuning.merge", "In which order should the two stand")
def merge_in_the_wrong_order(W, A, B, alpha):
    return W + alpha / A.shape[0] * torch.matmul(A, B)


@wrong("fine_tuning.merge", "changes its input W in place")
def merge_in_place(W, A, B, alpha):
    W += alpha / A.shape[0] * B @ A
    return W


@wrong("fine_tuning.mend_temperature", "a softmax of probabilities")
def temperature_of_probabilities(logits, temperature):
    return torch.softmax(torch.softmax(logits, -1) / temperature, -1)


@wrong("fine_tuning.mend_temperature", "The wrong way round")
def temperature_upside_down(logits, temperature):
    return torch.softmax(logits * temperature, -1)


@wrong("fine_tuning.mend_temperature", "Right for small logits")
def temperature_by_hand(logits, temperature):
    e = torch.exp(logits / temperature)
    return e / e.sum(dim=-1, keepdim=True)


@wrong("fine_tuning.mend_temperature", "do not add up to one any more")
def temperature_without_the_sum(logits, temperature):
    return logits.softmax(dim=-1) / temperature


def drawn_from(logits, noise, drop_of):
    ordered, order = sorted_probabilities(logits)
    kept = ordered.masked_fill(drop_of(ordered.cumsum(-1)), 0.0)
    return (torch.zeros_like(logits).scatter(-1, order, kept) / noise).argmax(-1)


@wrong("fine_tuning.mend_top_p", "The best token is always there now")
def draw_with_the_best_saved(logits, p, noise):
    def drop_of(held):
        drop = held > p
        drop[:, 0] = False
        return drop

    return drawn_from(logits, noise, drop_of)


@wrong("fine_tuning.mend_top_p", "The best token is always there now")
def draw_with_a_fallback(logits, p, noise):
    drawn = drawn_from(logits, noise, lambda held: held > p)
    probabilities = logits.softmax(-1)
    return torch.where(probabilities.max(-1).values > p, probabilities.argmax(-1), drawn)


@wrong("fine_tuning.mend_top_p", "nothing is cut")
def draw_from_all(logits, p, noise):
    return (logits.softmax(-1) / noise).argmax(-1)


@wrong("fine_tuning.mend_top_p", "Which token stands at that place")
def draw_of_a_place(logits, p, noise):
    ordered, _ = sorted_probabilities(logits)
    return (ordered.masked_fill(ordered.cumsum(-1) - ordered >= p, 0.0) / noise).argmax(-1)


@wrong("fine_tuning.mend_padding", "the end of each reply is left out")
def padding_by_the_token(logits, targets, lengths):
    end = logits.shape[-1] - 1
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=end)


@wrong("fine_tuning.mend_padding", "one filled place still counts")
def padding_off_by_one(logits, targets, lengths):
    mask = torch.arange(targets.shape[1])[None] <= lengths[:, None]
    return F.cross_entropy(logits[mask], targets[mask])


@wrong("fine_tuning.mend_padding", "still counted below the line")
def padding_still_counted(logits, targets, lengths):
    mask = torch.arange(targets.shape[1])[None] < lengths[:, None]
    return (F.cross_entropy(logits.mT, targets, reduction="none") * mask).mean()


@wrong("fine_tuning.mend_padding", "Each row has the same say")
def padding_row_by_row(logits, targets, lengths):
    rows = [F.cross_entropy(x[:n], y[:n]) for x, y, n in zip(logits, targets, lengths, strict=True)]
    return sum(rows) / len(rows)


@wrong("fine_tuning.mend_prompt_loss", "The first token of the reply is never learned")
def targets_without_the_first_token(prompt, reply):
    targets = torch.cat([prompt, reply, torch.tensor([-100])])[1:]
    targets[: len(prompt)] = -100
    return targets


@wrong("fine_tuning.mend_prompt_loss", "the target of its own place")
def targets_as_labels(prompt, reply):
    labels = torch.cat([prompt, reply])
    labels[: len(prompt)] = -100
    return labels


@wrong("fine_tuning.mend_prompt_loss", "All is right but the last place")
def targets_rolled(prompt, reply):
    targets = torch.cat([prompt, reply]).roll(-1)
    targets[: len(prompt) - 1] = -100
    return targets


@wrong("fine_tuning.mend_prompt_loss", "fewer targets than there are tokens")
def targets_too_short(prompt, reply):
    return torch.cat([torch.full((len(prompt) - 1,), -100), reply])


def built(weights):
    vocab_size, n_embd = weights["wte.weight"].shape
    model = nn.ModuleDict()
    model["wte"] = nn.Embedding(vocab_size, n_embd)
    model["ln_f"] = nn.LayerNorm(n_embd)
    model["lm_head"] = nn.Linear(n_embd, vocab_size, bias=False)
    return model


def logits_of(model, hidden):
    return model["lm_head"](model["ln_f"](hidden))


@wrong("fine_tuning.mend_new_head", "But the read-out is still random")
def head_counted_only(weights, hidden):
    model = built(weights)
    found = model.load_state_dict(weights, strict=False)
    return logits_of(model, hidden), len(found.missing_keys)


@wrong("fine_tuning.mend_new_head", "You count what the file holds too much")
def head_tied_only(weights, hidden):
    model = built(weights)
    found = model.load_state_dict(weights, strict=False)
    if "lm_head.weight" in found.missing_keys:
        model["lm_head"].weight = model["wte"].weight
    return logits_of(model, hidden), len(found.unexpected_keys)


@wrong("fine_tuning.mend_new_head", "is not missing any more")
def head_tied_and_counted(weights, hidden):
    model = built(weights)
    found = model.load_state_dict(weights, strict=False)
    if "lm_head.weight" in found.missing_keys:
        model["lm_head"].weight = model["wte"].weight
    return logits_of(model, hidden), len(found.missing_keys)


@wrong("fine_tuning.mend_new_head", "has a read-out of its own")
def head_always_tied(weights, hidden):
    model = built(weights)
    found = model.load_state_dict({**weights, "lm_head.weight": weights["wte.weight"]}, strict=False)
    return logits_of(model, hidden), len(found.missing_keys)


@wrong("fine_tuning.mend_new_head", "nothing is opened either")
def head_loaded_strictly(weights, hidden):
    model = built(weights)
    model.load_state_dict(weights)
    return logits_of(model, hidden), 0


@wrong("fine_tuning.mend_split", "in the order of the alphabet")
def split_in_alphabetical_order(dialogues, every):
    of_test = sorted({phrasing for phrasing, _ in dialogues})[every - 1 :: every]
    return torch.tensor([i for i, (phrasing, _) in enumerate(dialogues) if phrasing in of_test])


@wrong("fine_tuning.mend_split", "you begin with the very first")
def split_from_the_first(dialogues, every):
    numbers = {}
    for phrasing, _ in dialogues:
        numbers.setdefault(phrasing, len(numbers))
    return torch.tensor([i for i, (phrasing, _) in enumerate(dialogues) if numbers[phrasing] % every == 0])


@wrong("fine_tuning.mend_split", "Where are its sisters")
def split_of_first_ones(dialogues, every):
    first = {}
    for i, (phrasing, _) in enumerate(dialogues):
        first.setdefault(phrasing, i)
    return torch.tensor(list(first.values())[every - 1 :: every])


@wrong("fine_tuning.mend_split", "These are the numbers of the training dialogues")
def split_exchanged(dialogues, every):
    of_test = list(dict.fromkeys(phrasing for phrasing, _ in dialogues))[every - 1 :: every]
    return torch.tensor([i for i, (phrasing, _) in enumerate(dialogues) if phrasing not in of_test])


@wrong("fine_tuning.mend_split", "a phrasing of the test stands in the training part")
def split_by_text(dialogues, every):
    texts = list(dict.fromkeys(text for _, text in dialogues))
    of_test = texts[every - 1 :: every]
    return torch.tensor([i for i, (_, text) in enumerate(dialogues) if text in of_test])


@wrong("fine_tuning.mend_pickle", "not a safetensors file")
def sent_as_a_pickle_opened_with_care(model, receiver, path, send):
    torch.save(model.state_dict(), path)
    send(path)
    receiver.load_state_dict(torch.load(path, weights_only=True))
    return tuple(receiver.parameters())


@wrong("fine_tuning.mend_pickle", "one tensor may have two names")
def sent_as_it_lies(model, receiver, path, send):
    save_file(model.state_dict(), path)
    send(path)
    receiver.load_state_dict(load_file(path))
    return tuple(receiver.parameters())


@wrong("fine_tuning.mend_pickle", "a copy lies in memory as its original does")
def sent_as_copies(model, receiver, path, send):
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, path)
    send(path)
    receiver.load_state_dict(load_file(path))
    return tuple(receiver.parameters())


@wrong("fine_tuning.mend_pickle", "what was sent, and not what arrived")
def opened_before_it_was_sent(model, receiver, path, send):
    save_model(model, path)
    load_model(receiver, path)
    send(path)
    return tuple(receiver.parameters())


@wrong("fine_tuning.mend_pickle", "The receiver is as it was before")
def sent_and_never_opened(model, receiver, path, send):
    save_model(model, path)
    send(path)
    load_file(path)
    return tuple(receiver.parameters())
