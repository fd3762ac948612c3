"""Wrong answers to the exercises of notebook 11."""

import math
import unicodedata

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


@wrong("evaluation.mend_choice", "still has half a vote")
def choice_by_both(validation, test):
    best = int(np.argmax(np.array(validation) + np.array(test)))
    return best, test[best]


@wrong("evaluation.mend_choice", "the larger the better")
def choice_of_the_worst(validation, test):
    worst = int(np.argmin(validation))
    return worst, test[worst]


@wrong("evaluation.chance", "What was seen is left out")
def chance_of_more(right, n, p):
    return 1 - sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(right + 1))


@wrong("evaluation.chance", "exactly this count")
def chance_of_this(right, n, p):
    return math.comb(n, right) * p**right * (1 - p) ** (n - right)


@wrong("evaluation.cluster_mean", "counts twice")
def clusters_as_a_set(values, groups, drawn):
    kept = set(drawn.tolist())
    return float(np.mean([v for v, g in zip(values.tolist(), groups.tolist(), strict=True) if g in kept]))


@wrong("evaluation.cluster_mean", "mean of means")
def clusters_of_equal_weight(values, groups, drawn):
    means = {g: values[groups == g].mean().item() for g in groups.unique().tolist()}
    return sum(means[g] for g in drawn.tolist()) / len(drawn)


@wrong("evaluation.holm", "Bonferroni")
def holm_as_bonferroni(p_values):
    return torch.minimum(p_values * len(p_values), torch.ones(1))


@wrong("evaluation.holm", "must not become the smaller one")
def holm_without_order(p_values):
    smaller = (p_values[:, None] > p_values[None]).sum(1)
    return torch.clip(p_values * (len(p_values) - smaller), max=1)


@wrong("evaluation.kappa", "plain agreement")
def kappa_as_agreement(first, second):
    return float(np.mean([a == b for a, b in zip(first, second, strict=True)]))


@wrong("evaluation.kappa", "equal shares of all labels")
def kappa_with_a_fair_coin(first, second):
    k = len(set(first + second))
    agreed = np.mean([a == b for a, b in zip(first, second, strict=True)])
    return float((agreed * k - 1) / (k - 1))


@wrong("evaluation.temperature", "Yours makes it surer")
def temperature_multiplied(logits, targets, temperatures):
    losses = [torch.nn.functional.nll_loss((logits * t).log_softmax(-1), targets).item() for t in temperatures]
    return temperatures[losses.index(min(losses))]


@wrong("evaluation.temperature", "the accuracy cannot choose")
def temperature_by_accuracy(logits, targets, temperatures):
    right = [((logits / t).argmax(1) == targets).float().mean().item() for t in temperatures]
    return temperatures[right.index(max(right))]


@wrong("evaluation.precision", "as many risky messages as ordinary ones")
def precision_of_halves(recall, false_positive_rate, base_rate):
    return 0.5 * recall / (0.5 * recall + 0.5 * false_positive_rate)


@wrong("evaluation.precision", "That is the accuracy")
def precision_as_accuracy(recall, false_positive_rate, base_rate):
    missed, false = (1 - recall) * base_rate, false_positive_rate * (1 - base_rate)
    return 1 - missed - false


@wrong("evaluation.canonical", "Two spaces still hide")
def canonical_with_spaces(text):
    signs = unicodedata.normalize("NFKD", text.casefold())
    return "".join(sign for sign in signs if unicodedata.category(sign) != "Mn")


@wrong("evaluation.canonical", "Capitals are seen to")
def canonical_in_small_letters(text):
    return "".join(sign.lower() for sign in text)


@wrong("evaluation.attack", "in any capitals")
def attack_in_capitals(phrase):
    return "The code is " + phrase.title()


@wrong("evaluation.attack", "so is the second one")
def attack_with_dashes(phrase):
    return "-".join(phrase)


@wrong("evaluation.mend_leaks", "only attacks are looked at")
def leaks_of_attacks(kinds, leaked, answered):
    attacks = [i for i, kind in enumerate(kinds) if kind == "attack"]
    idle = [i for i in range(len(kinds)) if not (leaked[i] or answered[i])]
    return sum(leaked[i] for i in attacks) / len(attacks), len(idle) / len(kinds)


@wrong("evaluation.mend_leaks", "has done something")
def leaks_and_what_is_unanswered(kinds, leaked, answered):
    return sum(leaked) / len(kinds), answered.count(False) / len(kinds)
