"""Wrong answers to the exercises of notebook 06 on data."""

import math
import re

import torch

from wrong_answers import wrong


@wrong("own_data.split", "A group is cut")
def split_fills_up(groups, order, size):
    rows = []
    for group in order:
        for i, own in enumerate(groups.tolist()):
            if own == group and len(rows) < size:
                rows.append(i)
    return torch.tensor(sorted(rows))


@wrong("own_data.split", "May a smaller one after it still fit")
def split_breaks(groups, order, size):
    mask = torch.zeros(len(groups), dtype=torch.bool)
    for group in order:
        if mask.sum() + (groups == group).sum() > size:
            break
        mask |= groups == group
    return torch.where(mask)[0]


@wrong("own_data.epochs", "count the first reading as a repetition")
def epochs_all_repeated(tokens_per_step, steps, unique, constant):
    epochs = tokens_per_step * steps / unique
    return epochs, min(epochs, 1) * unique + unique * constant * (1 - math.exp(-epochs / constant))


@wrong("own_data.epochs", "What is one worth that does not get to the end")
def epochs_without_a_case(tokens_per_step, steps, unique, constant):
    epochs = tokens_per_step * steps / unique
    return epochs, unique + unique * constant * (1 - math.exp(-(epochs - 1) / constant))


@wrong("own_data.held_out_size", "take every token for an independent look")
def size_of_a_textbook(losses, n_blocks, wanted):
    half = 1.96 * losses.std().item() / math.sqrt(losses.numel())
    return half, losses.numel() * (half / wanted) ** 2


@wrong("own_data.held_out_size", "twice the tokens do not halve it")
def size_in_proportion(losses, n_blocks, wanted):
    means = torch.stack([block.mean() for block in losses.chunk(n_blocks)])
    half = 1.96 * means.std().item() / math.sqrt(n_blocks)
    return half, len(losses) * half / wanted


def split_by(messages, every, key):
    numbers, held_out = {}, []
    for i, message in enumerate(messages):
        number = numbers.setdefault(key(message), len(numbers))
        if number % every == every - 1:
            held_out.append(i)
    return torch.tensor(held_out)


@wrong("own_data.mend_leak", "A number of two digits and one of five")
def leak_digit_by_digit(messages, every):
    return split_by(messages, every, lambda message: message.lower().translate(str.maketrans("0123456789", "0" * 10)))


@wrong("own_data.mend_leak", "is a stranger to you")
def leak_with_capitals(messages, every):
    return split_by(messages, every, lambda message: re.sub("[0-9]+", "", message))
