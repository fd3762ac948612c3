"""Wrong answers to the exercises of notebook 06."""

import math
import re

import numpy as np
import torch

from wrong_answers import wrong


@wrong("evaluation.bits_per_byte", "Those are bits for each token")
def bits_per_token(losses, n_bytes):
    return sum(losses.tolist()) / len(losses) / math.log(2)


@wrong("evaluation.bits_per_byte", "How many bits is a nat")
def nats_per_byte(losses, n_bytes):
    return float(losses.sum() / n_bytes)


@wrong("evaluation.bits_per_byte", "there must be more bits than nats")
def bits_multiplied(losses, n_bytes):
    return float(losses.sum() / n_bytes * torch.log(torch.tensor(2.0)))


@wrong("evaluation.bits_per_byte", "That is the perplexity")
def bits_as_perplexity(losses, n_bytes):
    return math.exp(float(losses.mean()))


@wrong("evaluation.bits_per_byte", "what the whole text costs")
def bits_of_everything(losses, n_bytes):
    return float(losses.sum()) / math.log(2)


@wrong("evaluation.bits_per_byte", "take the sum of the losses first")
def bits_from_mean(losses, n_bytes):
    return float(losses.mean() / n_bytes / math.log(2))


def scores(truth, predicted, n_labels):
    for label in range(n_labels):
        tp = ((truth == label) & (predicted == label)).sum().item()
        yield tp, (truth == label).sum().item(), (predicted == label).sum().item()


@wrong("evaluation.macro_f1", "That is the accuracy")
def f1_as_accuracy(truth, predicted, n_labels):
    return (truth == predicted).float().mean().item()


@wrong("evaluation.macro_f1", "That is the mean recall")
def f1_as_recall(truth, predicted, n_labels):
    return sum(tp / true if true else 0.0 for tp, true, _ in scores(truth, predicted, n_labels)) / n_labels


@wrong("evaluation.macro_f1", "That is the mean precision")
def f1_as_precision(truth, predicted, n_labels):
    return sum(tp / said if said else 0.0 for tp, _, said in scores(truth, predicted, n_labels)) / n_labels


@wrong("evaluation.macro_f1", "You weigh the labels")
def f1_weighted(truth, predicted, n_labels):
    found = [
        (2 * tp / (true + said) if true + said else 0.0, true) for tp, true, said in scores(truth, predicted, n_labels)
    ]
    return sum(f * true for f, true in found) / len(truth)


@wrong("evaluation.macro_f1", "You take the means first")
def f1_of_means(truth, predicted, n_labels):
    p, r = f1_as_precision(truth, predicted, n_labels), f1_as_recall(truth, predicted, n_labels)
    return 2 * p * r / (p + r)


@wrong("evaluation.macro_f1", "gives 0 divided by 0")
def f1_with_nan(truth, predicted, n_labels):
    counts = torch.tensor(list(scores(truth, predicted, n_labels)), dtype=torch.float64)
    return (2 * counts[:, 0] / (counts[:, 1] + counts[:, 2])).mean().item()


@wrong("evaluation.macro_f1", "You leave out the labels that never occur")
def f1_without_absent(truth, predicted, n_labels):
    found = [2 * tp / (true + said) for tp, true, said in scores(truth, predicted, n_labels) if true + said]
    return sum(found) / len(found)


@wrong("evaluation.paired", "judged on different drawings")
def paired_apart(a, b, draws):
    means = a[draws].mean(1) - b[torch.flip(draws, [0])].mean(1)
    return tuple(np.quantile(means.numpy(), [0.025, 0.975]).tolist())


@wrong("evaluation.paired", "The other way round")
def paired_turned(a, b, draws):
    means = b[draws].mean(1) - a[draws].mean(1)
    return tuple(np.quantile(means.numpy(), [0.025, 0.975]).tolist())


@wrong("evaluation.paired", "nine tenths of the drawings")
def paired_ninety(a, b, draws):
    means = a[draws].mean(1) - b[draws].mean(1)
    return tuple(np.quantile(means.numpy(), [0.05, 0.95]).tolist())


@wrong("evaluation.paired", "quantiles of single differences")
def paired_single(a, b, draws):
    return tuple(np.quantile((a - b)[draws].numpy(), [0.025, 0.975]).tolist())


@wrong("evaluation.paired", "not within each")
def paired_wrong_axis(a, b, draws):
    return tuple(np.quantile((a - b)[draws].mean(0).numpy(), [0.025, 0.975]).tolist())


@wrong("evaluation.paired", "The extremes grow")
def paired_extremes(a, b, draws):
    means = (a - b)[draws].mean(1)
    return means.min().item(), means.max().item()


@wrong("evaluation.exposure", "Those are nats")
def exposure_in_nats(canary, others):
    rank = 1 + sum(other > canary for other in others.tolist())
    return math.log((len(others) + 1) / rank)


@wrong("evaluation.exposure", "You rank from the wrong end")
def exposure_turned(canary, others):
    ordered = sorted([*others.tolist(), canary])
    return math.log2(len(ordered)) - math.log2(ordered.index(canary) + 1)


@wrong("evaluation.exposure", "The canary is a candidate as well")
def exposure_without_itself(canary, others):
    rank = (others > canary).sum().item() + 1
    return math.log2(len(others)) - math.log2(rank)


@wrong("evaluation.exposure", "just as likely is not likelier")
def exposure_with_ties(canary, others):
    rank = (others >= canary).sum().item() + 1
    return math.log2(len(others) + 1) - math.log2(rank)


@wrong("evaluation.exposure", "the logarithm of the rank alone")
def exposure_as_rank(canary, others):
    return math.log2((others > canary).sum().item() + 1)


@wrong("evaluation.exposure", "Exposure is its logarithm")
def exposure_as_ratio(canary, others):
    return (len(others) + 1) / ((others > canary).sum().item() + 1)


@wrong("evaluation.mend_accuracy", "each of its examples counts for more")
def accuracy_of_batches(batches):
    return float(np.mean([(p == t).float().mean().item() for p, t in batches]))


@wrong("evaluation.mend_accuracy", "for as large as the first")
def accuracy_of_full_batches(batches):
    size = len(batches[0][0])
    return sum((p == t).sum().item() for p, t in batches) / size / len(batches)


@wrong("evaluation.mend_accuracy", "That is a percentage")
def accuracy_in_percent(batches):
    right = sum((p == t).sum().item() for p, t in batches)
    return 100.0 * right / sum(len(t) for _, t in batches)


@wrong("evaluation.mend_accuracy", "the last batch alone")
def accuracy_of_the_last(batches):
    for predicted, true in batches:
        accuracy = (predicted == true).float().mean().item()
    return accuracy


@wrong("evaluation.mend_choice", "which one has had no say")
def choice_reports_validation(validation, test):
    best = int(np.argmax(validation))
    return best, validation[best]


@wrong("evaluation.mend_choice", "still has half a vote")
def choice_by_both(validation, test):
    best = int(np.argmax(np.array(validation) + np.array(test)))
    return best, test[best]


@wrong("evaluation.mend_choice", "belongs to another setting")
def choice_reports_best(validation, test):
    return int(np.argmax(validation)), max(test)


@wrong("evaluation.mend_choice", "the larger the better")
def choice_of_the_worst(validation, test):
    worst = int(np.argmin(validation))
    return worst, test[worst]


@wrong("evaluation.mend_filter", "nothing may be written any more")
def filter_whole_text(text, pieces, phrase):
    return torch.tensor([re.search(phrase, text + piece, re.IGNORECASE) is None for piece in pieces])


@wrong("evaluation.mend_filter", "Two things are left")
def filter_new_only(text, pieces, phrase):
    return torch.tensor([phrase in text or phrase not in text + piece for piece in pieces])


@wrong("evaluation.mend_filter", "still looked at alone")
def filter_capitals(text, pieces, phrase):
    return torch.tensor([phrase.lower() not in piece.lower() for piece in pieces])


@wrong("evaluation.mend_filter", "true means that the piece may be written")
def filter_turned(text, pieces, phrase):
    start = len(text)
    return torch.tensor([any(m.end() > start for m in re.finditer(phrase, text + p, re.IGNORECASE)) for p in pieces])
