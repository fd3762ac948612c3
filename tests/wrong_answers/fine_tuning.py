"""Wrong answers to the exercises of notebook 08."""

import math

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from wrong_answers import wrong


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


@wrong("fine_tuning.lora_parameters", "Your count misses a map")
def lora_parameters_by_a_dict(n_layer, n_embd, rank, targets):
    maps = {"c_attn": (1, 3), "c_proj": (1, 1), "c_fc": (1, 4)}
    return n_layer * sum(rank * n_embd * sum(maps[name]) for name in targets)


@wrong("fine_tuning.lora_parameters", "You take every map for a square one")
def lora_parameters_of_squares(n_layer, n_embd, rank, targets):
    return sum(2 * n_embd * rank * {"c_proj": 2}.get(name, 1) for name in targets) * n_layer


@wrong("fine_tuning.next_rate", "may lie at the edge")
def next_rate_is_the_best(trials):
    ordered = sorted((loss, rate) for rate, loss in trials if loss is not None)
    return ordered[0][1] if ordered else trials[0][0]


@wrong("fine_tuning.next_rate", "take the first and the last of the list")
def next_rate_by_place(trials):
    i = min(range(len(trials)), key=lambda i: trials[i][1] or 99)
    return trials[i][0] * {len(trials) - 1: 2, 0: 0.5}.get(i, 1)


@wrong("fine_tuning.messages_needed", "two models for strangers")
def messages_of_two_tests(p, q, differ):
    return math.ceil(3.8416 * (p - p**2 + q - q**2) / (p - q) ** 2)


@wrong("fine_tuning.messages_needed", "One message too few")
def messages_without_the_last(p, q, differ):
    return int(1.96**2 * (differ / (p - q) ** 2 - 1))


@wrong("fine_tuning.blind_pairs", "who stood left")
def pairs_still_blind(left, votes):
    a, b = (int((votes == side).sum()) for side in (0, 1))
    return a, b, min(1.0, 2 * sum(math.comb(a + b, k) for k in range(max(a, b), a + b + 1)) / 2 ** (a + b))


@wrong("fine_tuning.blind_pairs", "looks at one side only")
def pairs_one_sided(left, votes):
    after = sum(v == (0 if side else 1) for side, v in zip(left.tolist(), votes.tolist(), strict=True))
    n = int((votes < 2).sum())
    return after, n - after, sum(math.comb(n, k) for k in range(max(after, n - after), n + 1)) * 0.5**n


@wrong("fine_tuning.packed_mask", "sees the future")
def packed_mask_of_blocks(lengths, total):
    blocks = [torch.ones(n, n, dtype=torch.bool) for n in lengths + [1] * (total - sum(lengths))]
    return torch.block_diag(*blocks).bool()


@wrong("fine_tuning.packed_mask", "as one more dialogue")
def packed_mask_with_one_filling(lengths, total):
    mask, start = torch.zeros(total, total, dtype=torch.bool), 0
    for end in [*torch.tensor(lengths).cumsum(0).tolist(), total]:
        mask[start:end, start:end] = True
        start = end
    return mask.tril()


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
