"""Wrong answers to the exercises of notebook 08."""

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from wrong_answers import wrong


def sorted_probabilities(logits):
    return torch.softmax(logits, dim=-1).sort(dim=-1, descending=True)


def put_back(probabilities, order):
    probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    return torch.empty_like(probabilities).scatter_(-1, order, probabilities)


@wrong("fine_tuning.top_p", "You keep one token too many")
def top_p_with_one_too_many(logits, p):
    probabilities, order = sorted_probabilities(logits)
    drop = probabilities.cumsum(-1) >= p
    shifted = torch.zeros_like(drop)
    shifted[..., 2:] = drop[..., :-2]
    return put_back(probabilities.masked_fill(shifted, 0), order)


@wrong("fine_tuning.top_p", "add up to less than one")
def top_p_not_normalised(logits, p):
    probabilities, order = sorted_probabilities(logits)
    before = probabilities.cumsum(-1) - probabilities
    kept = probabilities.masked_fill(before > p, 0)
    return torch.zeros_like(kept).scatter(-1, order, kept)


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


@wrong("fine_tuning.perplexity", "One step is missing")
def perplexity_as_a_loss(log_probs):
    return -sum(text.sum() for text in log_probs) / sum(len(text) for text in log_probs)


@wrong("fine_tuning.perplexity", "too small for the computer")
def perplexity_as_a_product(log_probs):
    product = torch.ones(())
    for text in log_probs:
        product = product * text.exp().prod()
    return product ** (-1 / sum(len(text) for text in log_probs))


@wrong("fine_tuning.masked_loss", "has no mean: 0 divided by 0")
def masked_loss_of_weighted_means(micro_batches):
    total = n = 0
    for logits, targets in micro_batches:
        n_tokens = (targets != -100).sum()
        total += F.cross_entropy(logits.flatten(0, 1), targets.flatten()) * n_tokens
        n += n_tokens
    return total / n


@wrong("fine_tuning.masked_loss", "Each dialogue has the same say")
def masked_loss_row_by_row(micro_batches):
    rows = [F.cross_entropy(x, y) for logits, targets in micro_batches for x, y in zip(logits, targets, strict=True)]
    return torch.stack(rows).nanmean()


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


@wrong("fine_tuning.lora", "The change is not scaled yet")
def lora_without_scale(x, W, A, B, alpha):
    return F.linear(x, W + B @ A)


@wrong("fine_tuning.lora", "That is the change alone")
def lora_alone(x, W, A, B, alpha):
    return (x @ A.T @ B.T) * (alpha / len(A))


@wrong("fine_tuning.merge", "Your change is turned")
def merge_turned(W, A, B, alpha):
    return W + (A.T @ B.T) * alpha / A.size(0)


@wrong("fine_tuning.merge", "changes its input W in place")
def merge_in_place(W, A, B, alpha):
    W += alpha / A.shape[0] * B @ A
    return W


@wrong("fine_tuning.mend_temperature", "a softmax of probabilities")
def temperature_of_probabilities(logits, temperature):
    return torch.softmax(torch.softmax(logits, -1) / temperature, -1)


@wrong("fine_tuning.mend_temperature", "Right for small logits")
def temperature_by_hand(logits, temperature):
    e = torch.exp(logits / temperature)
    return e / e.sum(dim=-1, keepdim=True)


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


@wrong("fine_tuning.mend_top_p", "Which token stands at that place")
def draw_of_a_place(logits, p, noise):
    ordered, _ = sorted_probabilities(logits)
    return (ordered.masked_fill(ordered.cumsum(-1) - ordered >= p, 0.0) / noise).argmax(-1)


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


@wrong("fine_tuning.mend_prompt_loss", "All is right but the last place")
def targets_rolled(prompt, reply):
    targets = torch.cat([prompt, reply]).roll(-1)
    targets[: len(prompt) - 1] = -100
    return targets


def built(weights):
    vocab_size, n_embd = weights["wte.weight"].shape
    model = nn.ModuleDict()
    model["wte"] = nn.Embedding(vocab_size, n_embd)
    model["ln_f"] = nn.LayerNorm(n_embd)
    model["lm_head"] = nn.Linear(n_embd, vocab_size, bias=False)
    return model


def logits_of(model, hidden):
    return model["lm_head"](model["ln_f"](hidden))


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


@wrong("fine_tuning.mend_pickle", "not a safetensors file")
def sent_as_a_pickle_opened_with_care(model, receiver, path, send):
    torch.save(model.state_dict(), path)
    send(path)
    receiver.load_state_dict(torch.load(path, weights_only=True))
    return tuple(receiver.parameters())


@wrong("fine_tuning.mend_pickle", "a copy lies in memory as its original does")
def sent_as_copies(model, receiver, path, send):
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, path)
    send(path)
    receiver.load_state_dict(load_file(path))
    return tuple(receiver.parameters())
