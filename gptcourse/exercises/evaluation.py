"""The exercises of notebook 11: numbers that can be compared, how sure they are, and what a filter must see.

A hint says what goes wrong, or asks the question that helps, and leaves the mending to the learner.
"""

from __future__ import annotations

from math import log, log2

import torch
from torch import Tensor, rand, randint, randn, tensor

from gptcourse.evaluation import classification_report
from gptcourse.exercises.exercise import Exercise, as_it_stands, mistake
from gptcourse.safety import exposure

NOTEBOOK = "11 · Evaluation and safety"


def counts(truth: Tensor, predicted: Tensor, n_labels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return how often each label is answered rightly, is true and is said."""
    right = torch.bincount(truth[truth == predicted], minlength=n_labels)
    return right, torch.bincount(truth, minlength=n_labels), torch.bincount(predicted, minlength=n_labels)


def f1(truth: Tensor, predicted: Tensor, n_labels: int) -> Tensor:
    """Return the F1 of each label; 0 / 0 where there is none of it."""
    right, true, said = counts(truth, predicted, n_labels)
    return 2 * right / (true + said)


def interval(values: Tensor, low: float = 0.025, high: float = 0.975) -> tuple[float, float]:
    return values.quantile(low).item(), values.quantile(high).item()


def rank_of(canary: float, others: Tensor) -> int:
    return 1 + int((others > canary).sum())


def batches_of(*sizes: int) -> tuple[list[tuple[Tensor, Tensor]]]:
    """Batches (predicted, true) in which about every second label is right."""
    made = []
    for size in sizes:
        true = randint(4, (size,))
        made.append((torch.where(rand(size) < 0.5, true, randint(4, (size,))), true))
    return (made,)


def right_in(batches: list[tuple[Tensor, Tensor]]) -> list[int]:
    return [int((predicted == true).sum()) for predicted, true in batches]


def sizes_of(batches: list[tuple[Tensor, Tensor]]) -> list[int]:
    return [len(true) for _, true in batches]


def place_of_best(scores: list[float]) -> int:
    return scores.index(max(scores))


def ends_in_piece(text: str, piece: str, phrase: str) -> bool:
    """Whether the phrase ends within the new piece, wherever it begins."""
    whole, wanted = (text + piece).lower(), phrase.lower()
    place = whole.rfind(wanted)
    return place >= 0 and place + len(wanted) > len(text)


class BitsPerByte(Exercise, name="evaluation.bits_per_byte"):
    """Return the loss of a text in bits for each of its bytes."""

    hint = "How many bits does the whole text cost? Each token costs its loss, and a nat is 1 / ln 2 bits."

    def inputs():
        return [(randn(40).abs(), 130), (3 * rand(7), 7), (tensor([log(2)] * 5), 20)]

    def reference(losses, n_bytes):
        return losses.sum().item() / log(2) / n_bytes

    @mistake("Those are bits for each token. A tokenizer with longer tokens would look worse for nothing.")
    def per_token(losses, n_bytes):
        return losses.mean().item() / log(2)

    @mistake("The loss is in nats. How many bits is a nat?")
    def nats(losses, n_bytes):
        return losses.sum().item() / n_bytes

    @mistake("A nat is more than a bit, so there must be more bits than nats.")
    def multiplied(losses, n_bytes):
        return losses.sum().item() * log(2) / n_bytes

    @mistake("That is the perplexity, which counts tokens: it cannot be compared between tokenizers.")
    def perplexity(losses, n_bytes):
        return losses.mean().exp().item()

    @mistake("That is what the whole text costs. It grows with the length of the text.")
    def of_everything(losses, n_bytes):
        return losses.sum().item() / log(2)

    @mistake("A mean over tokens, over bytes: take the sum of the losses first.")
    def of_the_mean(losses, n_bytes):
        return losses.mean().item() / log(2) / n_bytes


class Paired(Exercise, name="evaluation.paired"):
    """Return the 2.5 % and the 97.5 % quantile of the mean difference over all drawings."""

    hint = "Each row of draws is a new test set. Take the same examples for both models: what is their difference?"

    def inputs():
        return [
            (rand(30), rand(30), randint(30, (200, 30))),
            (rand(12).round(), rand(12).round(), randint(12, (500, 12))),
            (tensor([1.0, 0.0]), tensor([0.0, 0.5]), tensor([[0, 1], [1, 1], [0, 0]])),
        ]

    def reference(a, b, draws):
        return interval((a - b)[draws].mean(-1))

    @mistake("The two models are judged on different drawings. Then what is hard for both does not cancel out.")
    def different_drawings(a, b, draws):
        return interval(a[draws].mean(-1) - b[draws.flip(0)].mean(-1))

    @mistake("The other way round: above 0 should mean that the first model is better.")
    def turned(a, b, draws):
        return interval((b - a)[draws].mean(-1))

    @mistake("That interval holds nine tenths of the drawings. 95 % leaves less outside at each end.")
    def nine_tenths(a, b, draws):
        return interval((a - b)[draws].mean(-1), 0.05, 0.95)

    @mistake("Those are quantiles of single differences. How far does their mean vary?")
    def single_differences(a, b, draws):
        return interval((a - b)[draws].flatten())

    @mistake("You take the mean over the drawings and not within each.")
    def over_drawings(a, b, draws):
        return interval((a - b)[draws].mean(0))

    @mistake("The extremes grow with the number of drawings.")
    def extremes(a, b, draws):
        return interval((a - b)[draws].mean(-1), 0, 1)


class MacroF1(Exercise, name="evaluation.macro_f1"):
    """Return the plain mean over all labels of their F1, where a label that never occurs has an F1 of 0."""

    hint = "For one label: twice its right answers, over how often it is true plus how often it is said."

    def inputs():
        return [
            (tensor([0, 0, 0, 0, 0, 1, 1, 2]), tensor([0, 0, 0, 0, 1, 1, 0, 0]), 3),
            (randint(4, (50,)), randint(4, (50,)), 4),
            (tensor([0, 1, 1, 3]), tensor([0, 1, 3, 3]), 5),
        ]

    def reference(truth, predicted, n_labels):
        return classification_report(truth.tolist(), predicted.tolist(), range(n_labels)).macro_f1

    @mistake("That is the accuracy. Who always says the most frequent label gets a good one.")
    def accuracy(truth, predicted, n_labels):
        return (truth == predicted).float().mean().item()

    @mistake("That is the mean recall. A label that is said far too often should cost something, too.")
    def recall(truth, predicted, n_labels):
        right, true, _ = counts(truth, predicted, n_labels)
        return (right / true.clamp(min=1)).mean().item()

    @mistake("That is the mean precision. A label that is hardly ever said should cost something, too.")
    def precision(truth, predicted, n_labels):
        right, _, said = counts(truth, predicted, n_labels)
        return (right / said.clamp(min=1)).mean().item()

    @mistake("You weigh the labels by how frequent they are. Here each label counts the same.")
    def weighted(truth, predicted, n_labels):
        _, true, _ = counts(truth, predicted, n_labels)
        return ((f1(truth, predicted, n_labels).nan_to_num() * true).sum() / true.sum()).item()

    @mistake("You take the means first and the F1 of them afterwards. The order matters.")
    def of_means(truth, predicted, n_labels):
        p, r = (part(truth, predicted, n_labels) for part in (MacroF1.precision, MacroF1.recall))
        return 2 * p * r / (p + r)

    @mistake("A label that is neither there nor said gives 0 divided by 0. It should count 0.")
    def with_nan(truth, predicted, n_labels):
        return f1(truth, predicted, n_labels).mean().item()

    @mistake("You leave out the labels that never occur. Over how many labels is the mean?")
    def without_absent(truth, predicted, n_labels):
        return f1(truth, predicted, n_labels).nanmean().item()


class MendAccuracy(Exercise, name="evaluation.mend_accuracy"):
    """Return the share of right answers over all examples."""

    hint = "How many answers are right in all, and of how many?"

    def inputs():
        return [batches_of(8, 8, 3), batches_of(16, 1), batches_of(5)]

    def reference(batches):
        return sum(right_in(batches)) / sum(sizes_of(batches))

    @as_it_stands("The mistake is still there: right answers over batches. Can an accuracy be larger than 1?")
    def over_batches(batches):
        return sum(right_in(batches)) / len(batches)

    @mistake("Now it lies below 1. But the last batch is smaller, and each of its examples counts for more.")
    def of_batches(batches):
        return sum(r / n for r, n in zip(right_in(batches), sizes_of(batches), strict=True)) / len(batches)

    @mistake("That takes all batches for as large as the first. The last one is often smaller.")
    def equal_batches(batches):
        return sum(right_in(batches)) / (len(batches) * sizes_of(batches)[0])

    @mistake("That is a percentage. Return a share between 0 and 1.")
    def percentage(batches):
        return 100 * sum(right_in(batches)) / sum(sizes_of(batches))

    @mistake("That is the last batch alone.")
    def of_the_last(batches):
        return right_in(batches)[-1] / sizes_of(batches)[-1]


class MendChoice(Exercise, name="evaluation.mend_choice"):
    """Return which setting to take, and the score that may be reported for it."""

    hint = "One of the two lists may decide, and the other may be looked at once, after the decision."

    def inputs():
        return [
            ([0.71, 0.78, 0.75], [0.70, 0.72, 0.79]),
            ([0.6, 0.9, 0.8, 0.7], [0.9, 0.5, 0.8, 0.6]),
            ([0.4, 0.6, 0.3], [0.9, 0.7, 0.8]),
            ([0.5], [0.4]),
        ]

    def reference(validation, test):
        best = place_of_best(validation)
        return best, test[best]

    @as_it_stands("""The mistake is still there: the test set has chosen, so its score is the best of several lucky
        draws. What is the validation set for?""")
    def on_test(validation, test):
        return place_of_best(test), max(test)

    @mistake("The right choice. But the score that has chosen flatters it: which one has had no say?")
    def reporting_validation(validation, test):
        return place_of_best(validation), max(validation)

    @mistake("The test set still has half a vote.")
    def on_both(validation, test):
        best = place_of_best([v + t for v, t in zip(validation, test, strict=True)])
        return best, test[best]

    @mistake("You report the best test score, which belongs to another setting.")
    def reporting_the_best(validation, test):
        return place_of_best(validation), max(test)

    @mistake("These are accuracies: the larger the better.")
    def worst(validation, test):
        return validation.index(min(validation)), test[validation.index(min(validation))]


class Exposure(Exercise, name="evaluation.exposure"):
    """Return the exposure of the canary in bits."""

    hint = "Line up all candidates, the canary among them, the likeliest first. At which place does it stand?"

    def inputs():
        tied = tensor([-5.0, -1.0, -9.0])
        return [(-3.0, randn(255) - 4), (-9.5, -10 * rand(63)), (1.0, -rand(15)), (-5.0, tied)]

    def reference(canary, others):
        return exposure(canary, others)

    @mistake("Those are nats. How many times could the candidates be halved?")
    def nats(canary, others):
        return log((len(others) + 1) / rank_of(canary, others))

    @mistake("You rank from the wrong end: a canary that is known best gets an exposure of 0.")
    def from_the_wrong_end(canary, others):
        return log2((len(others) + 1) / rank_of(-canary, -others))

    @mistake("The canary is a candidate as well.")
    def without_the_canary(canary, others):
        return log2(len(others) / rank_of(canary, others))

    @mistake("A candidate that is just as likely is not likelier.")
    def ties_before(canary, others):
        return log2((len(others) + 1) / (1 + int((others >= canary).sum())))

    @mistake("That is the logarithm of the rank alone: it falls as the canary becomes better known.")
    def of_the_rank(canary, others):
        return log2(rank_of(canary, others))

    @mistake("That is how many times better than chance it is. Exposure is its logarithm.")
    def without_logarithm(canary, others):
        return (len(others) + 1) / rank_of(canary, others)


class MendFilter(Exercise, name="evaluation.mend_filter"):
    """Say for each piece whether it may be written: not if it would complete the phrase."""

    hint = "Put the text and the piece together, all in small letters. Where would the phrase end?"

    def inputs():
        return [
            ("The code is swo", ["rd", "rdfish", "rdfi", "rdFISH!", "", " ok"], "swordfish"),
            ("I said swordfish before. ", ["And", "sword", "SWORDFISH", "fish"], "swordfish"),
            ("SWORDFIS", ["h", "H", "x", "hes are fish"], "swordfish"),
            ("open ses", ["ame", "same", "sesame"], "sesame"),
        ]

    def reference(text, pieces, phrase):
        return tensor([not ends_in_piece(text, piece, phrase) for piece in pieces])

    @as_it_stands(
        """The mistake is still there: each piece is looked at alone. Where does a phrase hide that is cut?"""
    )
    def piece_alone(text, pieces, phrase):
        return tensor([phrase not in piece for piece in pieces])

    @mistake("""Once the phrase stands in the text, for whatever reason, nothing may be written any more. Which part of
        the phrase must the new piece hold?""")
    def whole_text(text, pieces, phrase):
        return tensor([phrase.lower() not in (text + piece).lower() for piece in pieces])

    @mistake("Two things are left: other capitals, and a phrase that stands in the text already and comes again.")
    def capitals_matter(text, pieces, phrase):
        return tensor([phrase in text or phrase not in text + piece for piece in pieces])

    @mistake("Capitals are seen to. But each piece is still looked at alone.")
    def piece_alone_in_small_letters(text, pieces, phrase):
        return tensor([phrase.lower() not in piece.lower() for piece in pieces])

    @mistake("The other way round: true means that the piece may be written.")
    def turned(text, pieces, phrase):
        return tensor([ends_in_piece(text, piece, phrase) for piece in pieces])
