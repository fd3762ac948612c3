"""Wrong answers to the exercises of notebook 11."""

import math
import re

import numpy as np
import torch

from wrong_answers import wrong


@wrong("evaluation.bits_per_byte", "Those are bits for each token")
def bits_per_token(losses, n_bytes):
    return sum(losses.tolist()) / len(losses) / math.log(2)


@wrong("evaluation.bits_per_byte", "there must be more bits than nats")
def bits_multiplied(losses, n_bytes):
    return float(losses.sum() / n_bytes * torch.log(torch.tensor(2.0)))


def scores(truth, predicted, n_labels):
    for label in range(n_labels):
        tp = ((truth == label) & (predicted == label)).sum().item()
        yield tp, (truth == label).sum().item(), (predicted == label).sum().item()


@wrong("evaluation.macro_f1", "That is the mean precision")
def f1_as_precision(truth, predicted, n_labels):
    return sum(tp / said if said else 0.0 for tp, _, said in scores(truth, predicted, n_labels)) / n_labels


@wrong("evaluation.macro_f1", "You weigh the labels")
def f1_weighted(truth, predicted, n_labels):
    found = [
        (2 * tp / (true + said) if true + said else 0.0, true) for tp, true, said in scores(truth, predicted, n_labels)
    ]
    return sum(f * true for f, true in found) / len(truth)


@wrong("evaluation.paired", "The other way round")
def paired_turned(a, b, draws):
    means = b[draws].mean(1) - a[draws].mean(1)
    return tuple(np.quantile(means.numpy(), [0.025, 0.975]).tolist())


@wrong("evaluation.paired", "The extremes grow")
def paired_extremes(a, b, draws):
    means = (a - b)[draws].mean(1)
    return means.min().item(), means.max().item()


@wrong("evaluation.exposure", "You rank from the wrong end")
def exposure_turned(canary, others):
    ordered = sorted([*others.tolist(), canary])
    return math.log2(len(ordered)) - math.log2(ordered.index(canary) + 1)


@wrong("evaluation.exposure", "The canary is a candidate as well")
def exposure_without_itself(canary, others):
    rank = (others > canary).sum().item() + 1
    return math.log2(len(others)) - math.log2(rank)


@wrong("evaluation.mend_accuracy", "each of its examples counts for more")
def accuracy_of_batches(batches):
    return float(np.mean([(p == t).float().mean().item() for p, t in batches]))


@wrong("evaluation.mend_accuracy", "the last batch alone")
def accuracy_of_the_last(batches):
    for predicted, true in batches:
        accuracy = (predicted == true).float().mean().item()
    return accuracy


@wrong("evaluation.mend_choice", "still has half a vote")
def choice_by_both(validation, test):
    best = int(np.argmax(np.array(validation) + np.array(test)))
    return best, test[best]


@wrong("evaluation.mend_choice", "the larger the better")
def choice_of_the_worst(validation, test):
    worst = int(np.argmin(validation))
    return worst, test[worst]


@wrong("evaluation.mend_filter", "nothing may be written any more")
def filter_whole_text(text, pieces, phrase):
    return torch.tensor([re.search(phrase, text + piece, re.IGNORECASE) is None for piece in pieces])


@wrong("evaluation.mend_filter", "true means that the piece may be written")
def filter_turned(text, pieces, phrase):
    start = len(text)
    return torch.tensor([any(m.end() > start for m in re.finditer(phrase, text + p, re.IGNORECASE)) for p in pieces])
