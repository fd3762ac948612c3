"""The exercises of notebook 11: numbers that can be compared, how sure they are, and what a filter must see."""

from __future__ import annotations

from collections.abc import Callable
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


def f1(right: Tensor, true: Tensor, said: Tensor) -> Tensor:
    """Return the F1 of each label; 0 / 0 where there is none of it."""
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

    per_token = mistake("""Those are bits for each token. A tokenizer with longer tokens would look
        worse for nothing.""")(lambda losses, n_bytes: losses.mean().item() / log(2))
    nats = mistake("The loss is in nats. How many bits is one?")(lambda losses, n_bytes: losses.sum().item() / n_bytes)
    multiplied = mistake("""A nat is more than a bit, so there must be more
        bits than nats.""")(lambda losses, n_bytes: losses.sum().item() * log(2) / n_bytes)
    perplexity = mistake("""That is the perplexity, which counts tokens:
        it cannot be compared between tokenizers.""")(lambda losses, n_bytes: losses.mean().exp().item())
    of_everything = mistake("""That is what the whole text costs.
        It grows with the length of the text.""")(lambda losses, n_bytes: losses.sum().item() / log(2))
    of_the_mean = mistake("""A mean over tokens, over bytes:
        take the sum of the losses first.""")(lambda losses, n_bytes: losses.mean().item() / log(2) / n_bytes)


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

    different_drawings = mistake("""The two models are judged on different drawings. Then what is hard for both does not
        cancel out.""")(lambda a, b, draws: interval(a[draws].mean(-1) - b[draws.flip(0)].mean(-1)))
    turned = mistake("""The other way round:
        above 0 should mean that the first model is better.""")(lambda a, b, draws: interval((b - a)[draws].mean(-1)))
    nine_tenths = mistake("""That interval holds nine tenths of the drawings.
        95 % leaves less outside at each end.""")(lambda a, b, draws: interval((a - b)[draws].mean(-1), 0.05, 0.95))
    single_differences = mistake("""Those are quantiles of single differences.
        How far does their mean vary?""")(lambda a, b, draws: interval((a - b)[draws].flatten()))
    over_drawings = mistake("""You take the mean over the drawings and
        not within each.""")(lambda a, b, draws: interval((a - b)[draws].mean(0)))
    extremes = mistake("""The extremes grow with the
        number of drawings.""")(lambda a, b, draws: interval((a - b)[draws].mean(-1), 0, 1))


class MacroF1(Exercise, name="evaluation.macro_f1"):
    """Return the plain mean over all labels of their F1, where a label that never occurs has an F1 of 0."""

    hint = "For one label: twice its right answers, over how often it is true plus how often it is said."

    def inputs():
        return [
            (tensor([0, 0, 0, 0, 0, 1, 1, 2]), tensor([0, 0, 0, 0, 1, 1, 0, 0]), 3),
            (randint(4, (50,)), randint(4, (50,)), 4),
            (tensor([0, 1, 1, 3]), tensor([0, 1, 3, 3]), 5),
        ]

    def of_counts(score: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable:
        """Return the mean of a score, given how often each label is answered rightly, is true and is said."""
        return lambda truth, predicted, n_labels: score(*counts(truth, predicted, n_labels)).mean().item()

    def reference(truth, predicted, n_labels):
        return classification_report(truth.tolist(), predicted.tolist(), range(n_labels)).macro_f1

    accuracy = mistake("""That is the accuracy. Who always says the most frequent label gets
        a good one.""")(lambda truth, predicted, n_labels: (truth == predicted).float().mean().item())
    recall = mistake("""That is the mean recall. A label that is said far too often should
        cost something, too.""")(of_counts(lambda right, true, said: right / true.clamp(min=1)))
    precision = mistake("""That is the mean precision. A label that is hardly ever said should
        cost something, too.""")(of_counts(lambda right, true, said: right / said.clamp(min=1)))
    weighted = mistake("""You weigh the labels by how frequent they are. Here each label counts the
        same.""")(of_counts(lambda right, true, said: (f1(right, true, said).nan_to_num() * true).sum() / true.sum()))

    @mistake("You take the means first and the F1 of them afterwards. The order matters.")
    def of_means(truth, predicted, n_labels):
        p, r = (part(truth, predicted, n_labels) for part in (MacroF1.precision, MacroF1.recall))
        return 2 * p * r / (p + r)

    with_nan = mistake("A label that is neither there nor said gives 0 divided by 0. It should count 0.")(of_counts(f1))
    without_absent = mistake("""You leave out the labels that never occur.
        Over how many labels is the mean?""")(of_counts(lambda *found: f1(*found).nanmean()))


class MendAccuracy(Exercise, name="evaluation.mend_accuracy"):
    """Return the share of right answers over all examples."""

    hint = "How many answers are right in all, and of how many?"

    def inputs():
        return [batches_of(8, 8, 3), batches_of(16, 1), batches_of(5)]

    def reference(batches):
        return sum(right_in(batches)) / sum(sizes_of(batches))

    over_batches = as_it_stands("""The mistake is still there: right answers over batches. Can an accuracy be larger
        than 1?""")(lambda batches: sum(right_in(batches)) / len(batches))
    of_batches = mistake("""Now it lies below 1. But the last is smaller: each of its examples counts for more.""")(
        lambda batches: sum(r / n for r, n in zip(right_in(batches), sizes_of(batches), strict=True)) / len(batches)
    )
    equal_batches = mistake("""That takes all batches for as large as the first. The last one
        is often smaller.""")(lambda batches: sum(right_in(batches)) / (len(batches) * sizes_of(batches)[0]))
    percentage = mistake("""That is a percentage.
        Return a share between 0 and 1.""")(lambda batches: 100 * sum(right_in(batches)) / sum(sizes_of(batches)))
    of_last = mistake("That is the last batch alone.")(lambda batches: right_in(batches)[-1] / sizes_of(batches)[-1])


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

    on_test = as_it_stands("""The mistake is still there: the test set has chosen, so its score is the best of several
        lucky draws. What is the validation set for?""")(lambda validation, test: (place_of_best(test), max(test)))
    reporting_validation = mistake("""The right choice. But the score that has chosen flatters it: which one has had no
        say?""")(lambda validation, test: (place_of_best(validation), max(validation)))

    @mistake("The test set still has half a vote.")
    def on_both(validation, test):
        best = place_of_best([v + t for v, t in zip(validation, test, strict=True)])
        return best, test[best]

    reporting_the_best = mistake("""You report the best test score, which belongs
        to another setting.""")(lambda validation, test: (place_of_best(validation), max(test)))
    worst = mistake("These are accuracies: the larger the better.")(lambda v, t: (v.index(min(v)), t[v.index(min(v))]))


class Exposure(Exercise, name="evaluation.exposure"):
    """Return the exposure of the canary in bits."""

    hint = "Line up all candidates, the canary among them, the likeliest first. At which place does it stand?"

    def inputs():
        tied = tensor([-5.0, -1.0, -9.0])
        return [(-3.0, randn(255) - 4), (-9.5, -10 * rand(63)), (1.0, -rand(15)), (-5.0, tied)]

    reference = exposure
    nats = mistake("""Those are nats. How many times could the
        candidates be halved?""")(lambda x, others: log((len(others) + 1) / rank_of(x, others)))
    from_the_wrong_end = mistake("""You rank from the wrong end: a canary that is known best gets an
        exposure of 0.""")(lambda x, others: log2((len(others) + 1) / rank_of(-x, -others)))
    uncounted = mistake("The canary is a candidate as well.")(lambda x, others: log2(len(others) / rank_of(x, others)))
    ties_before = mistake("""A candidate that is just as likely
        is not likelier.""")(lambda x, others: log2((len(others) + 1) / (1 + int((others >= x).sum()))))
    of_the_rank = mistake("""That is the logarithm of the rank alone:
        it falls as the canary becomes better known.""")(lambda x, others: log2(rank_of(x, others)))
    without_logarithm = mistake("""That is how many times better than chance it is.
        Exposure is its logarithm.""")(lambda x, others: (len(others) + 1) / rank_of(x, others))


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

    def for_each(allows: Callable[[str, str, str], bool]) -> Callable:
        return lambda text, pieces, phrase: tensor([allows(text, piece, phrase) for piece in pieces])

    reference = for_each(lambda text, piece, phrase: not ends_in_piece(text, piece, phrase))
    piece_alone = as_it_stands("""The mistake is still there: each piece is looked at alone. Where does a phrase hide
        that is cut?""")(for_each(lambda text, piece, phrase: phrase not in piece))
    whole_text = mistake("""Once the phrase stands in the text, nothing may be written any more. Which part of it must
        the new piece hold?""")(for_each(lambda text, piece, phrase: phrase.lower() not in (text + piece).lower()))
    capitals_matter = mistake("""Two things are left: other capitals, and a phrase that stands in the text already and
        comes again.""")(for_each(lambda text, piece, phrase: phrase in text or phrase not in text + piece))
    piece_alone_in_small_letters = mistake("""Capitals are seen to. But each piece is still
        looked at alone.""")(for_each(lambda text, piece, phrase: phrase.lower() not in piece.lower()))
    turned = mistake("The other way round: true means that the piece may be written.")(for_each(ends_in_piece))
