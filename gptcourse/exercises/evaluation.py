"""The exercises of notebook 06: numbers that can be compared, how sure they are, and what a filter must see.

Each mistake is a formula that people really use. Its hint says what goes wrong, or asks the question that helps,
and leaves the mending to the learner.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, rand, randint, randn, tensor

from gptcourse.evaluation import bits_per_byte, classification_report
from gptcourse.exercises import Exercise, Mistake
from gptcourse.safety import exposure

NOTEBOOK = "06 · Evaluation and safety"


# ---- Loss


def bits(losses: Tensor, n_bytes: int) -> float:
    return bits_per_byte(losses.mean().item(), len(losses), n_bytes)


# ---- Labels


def counts_of(truth: Tensor, predicted: Tensor, n_labels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Right answers, true ones and predicted ones of each label."""
    right = torch.bincount(truth[truth == predicted], minlength=n_labels)
    return right, torch.bincount(truth, minlength=n_labels), torch.bincount(predicted, minlength=n_labels)


def macro_f1(truth: Tensor, predicted: Tensor, n_labels: int) -> float:
    return classification_report(truth.tolist(), predicted.tolist(), range(n_labels)).macro_f1


def over_labels(score: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor, int], float]:
    """Return what scores from the counts of each label."""
    return lambda truth, predicted, n_labels: score(*counts_of(truth, predicted, n_labels)).item()


def f1(right: Tensor, true: Tensor, said: Tensor) -> Tensor:
    """The F1 of each label; 0 / 0 where there is none of it."""
    return 2 * right / (true + said)


def f1_of_means(right: Tensor, true: Tensor, said: Tensor) -> Tensor:
    precision, recall = (right / said.clamp(min=1)).mean(), (right / true.clamp(min=1)).mean()
    return 2 * precision * recall / (precision + recall)


# ---- How sure


def percentiles(values: Tensor, low: float = 0.025, high: float = 0.975) -> tuple[float, float]:
    return values.quantile(low).item(), values.quantile(high).item()


def paired(a: Tensor, b: Tensor, draws: Tensor) -> tuple[float, float]:
    return percentiles((a - b)[draws].mean(-1))


# ---- Memory


def ranked(
    rank: Callable[[float, Tensor], int], log: Callable[[float], float] = math.log2, more: int = 1
) -> Callable[[float, Tensor], float]:
    """Return an exposure by another rank, another logarithm, or another number of candidates."""
    return lambda canary, others: log(len(others) + more) - log(rank(canary, others))


def rank_of(canary: float, others: Tensor) -> int:
    return 1 + int((others > canary).sum())


# ---- Choices and counts that go wrong


def batches_of(*sizes: int) -> tuple[list[tuple[Tensor, Tensor]]]:
    """Batches (predicted, true) in which about every second label is right."""
    made = []
    for size in sizes:
        true = randint(4, (size,))
        made.append((torch.where(rand(size) < 0.5, true, randint(4, (size,))), true))
    return (made,)


def accuracy_by(tally: Callable[[list[int], list[int]], float]) -> Callable[[list], float]:
    """Return what computes from the right answers and the size of each batch."""
    return lambda batches: float(tally([int((p == t).sum()) for p, t in batches], [len(true) for _, true in batches]))


def reported(
    by: Callable[[list[float], list[float]], list[float]],
    of: Callable[[list[float], list[float]], list[float]] = lambda validation, test: test,
) -> Callable[[list[float], list[float]], tuple[int, float]]:
    """Return what chooses by some scores and reports out of some."""

    def choice(validation: list[float], test: list[float]) -> tuple[int, float]:
        """Return the setting and its score."""
        scores = by(validation, test)
        best = scores.index(max(scores))
        return best, of(validation, test)[best]

    return choice


# ---- A filter


def allowed(completes: Callable[[str, str, str], bool]) -> Callable[[str, list[str], str], Tensor]:
    """Return a filter that asks of each piece whether it completes the phrase after the text."""
    return lambda text, pieces, phrase: tensor([not completes(text, piece, phrase) for piece in pieces])


def ends_in_piece(text: str, piece: str, phrase: str) -> bool:
    """Whether the phrase ends within the new piece, wherever it begins."""
    whole, wanted = (text + piece).lower(), phrase.lower()
    place = whole.rfind(wanted)
    return place >= 0 and place + len(wanted) > len(text)


FILTER_INPUTS = (
    ("The code is swo", ["rd", "rdfish", "rdfi", "rdFISH!", "", " ok"], "swordfish"),
    ("I said swordfish before. ", ["And", "sword", "SWORDFISH", "fish"], "swordfish"),
    ("SWORDFIS", ["h", "H", "x", "hes are fish"], "swordfish"),
)


EXERCISES = (
    Exercise(
        name="evaluation.bits_per_byte",
        asks="Return the loss of a text in bits for each of its bytes.",
        inputs=lambda: [(randn(40).abs(), 130), (3 * rand(7), 7), (tensor([math.log(2)] * 5), 20)],
        reference=bits,
        hint="How many bits does the whole text cost? Each token costs its loss, and a nat is 1 / ln 2 bits.",
        mistakes=(
            Mistake(
                lambda losses, n_bytes: losses.mean().item() / math.log(2),
                "Those are bits for each token. A tokenizer with longer tokens would look worse for nothing.",
            ),
            Mistake(
                lambda losses, n_bytes: losses.sum().item() / n_bytes,
                "The loss is in nats. How many bits is a nat?",
            ),
            Mistake(
                lambda losses, n_bytes: losses.sum().item() * math.log(2) / n_bytes,
                "A nat is more than a bit, so there must be more bits than nats.",
            ),
            Mistake(
                lambda losses, n_bytes: losses.mean().exp().item(),
                "That is the perplexity, which counts tokens: it cannot be compared between tokenizers.",
            ),
            Mistake(
                lambda losses, n_bytes: losses.sum().item() / math.log(2),
                "That is what the whole text costs. It grows with the length of the text.",
            ),
            Mistake(
                lambda losses, n_bytes: losses.mean().item() / math.log(2) / n_bytes,
                "A mean over tokens, over bytes: take the sum of the losses first.",
            ),
        ),
    ),
    Exercise(
        name="evaluation.macro_f1",
        asks="Return the plain mean over all labels of their F1, where a label that never occurs has an F1 of 0.",
        inputs=lambda: [
            (tensor([0, 0, 0, 0, 0, 1, 1, 2]), tensor([0, 0, 0, 0, 1, 1, 0, 0]), 3),
            (randint(4, (50,)), randint(4, (50,)), 4),
            (tensor([0, 1, 1, 3]), tensor([0, 1, 3, 3]), 5),
        ],
        reference=macro_f1,
        hint="For one label: twice its right answers, over how often it is true plus how often it is said.",
        mistakes=(
            Mistake(
                over_labels(lambda right, true, said: right.sum() / true.sum()),
                "That is the accuracy. Who always says the most frequent label gets a good one.",
            ),
            Mistake(
                over_labels(lambda right, true, said: (right / true.clamp(min=1)).mean()),
                "That is the mean recall. A label that is said far too often should cost something, too.",
            ),
            Mistake(
                over_labels(lambda right, true, said: (right / said.clamp(min=1)).mean()),
                "That is the mean precision. A label that is hardly ever said should cost something, too.",
            ),
            Mistake(
                over_labels(lambda right, true, said: (f1(right, true, said).nan_to_num() * true).sum() / true.sum()),
                "You weigh the labels by how frequent they are. Here each label counts the same.",
            ),
            Mistake(
                over_labels(f1_of_means),
                "You take the means first and the F1 of them afterwards. The order matters.",
            ),
            Mistake(
                over_labels(lambda right, true, said: f1(right, true, said).mean()),
                "A label that is neither there nor said gives 0 divided by 0. It should count 0.",
            ),
            Mistake(
                over_labels(lambda right, true, said: f1(right, true, said)[true + said > 0].mean()),
                "You leave out the labels that never occur. Over how many labels is the mean?",
            ),
        ),
    ),
    Exercise(
        name="evaluation.paired",
        asks="Return the 2.5 % and the 97.5 % quantile of the mean difference over all drawings.",
        inputs=lambda: [
            (rand(30), rand(30), randint(30, (200, 30))),
            (rand(12).round(), rand(12).round(), randint(12, (500, 12))),
        ],
        reference=paired,
        hint="Each row of draws is a new test set. Take the same examples for both models: what is their difference?",
        mistakes=(
            Mistake(
                lambda a, b, draws: percentiles(a[draws].mean(-1) - b[draws.flip(0)].mean(-1)),
                "The two models are judged on different drawings. Then what is hard for both does not cancel out.",
            ),
            Mistake(
                lambda a, b, draws: percentiles((b - a)[draws].mean(-1)),
                "The other way round: above 0 should mean that the first model is better.",
            ),
            Mistake(
                lambda a, b, draws: percentiles((a - b)[draws].mean(-1), 0.05, 0.95),
                "That interval holds nine tenths of the drawings. 95 % leaves less outside at each end.",
            ),
            Mistake(
                lambda a, b, draws: percentiles((a - b)[draws].flatten()),
                "Those are quantiles of single differences. How far does their mean vary?",
            ),
            Mistake(
                lambda a, b, draws: percentiles((a - b)[draws].mean(0)),
                "You take the mean over the drawings and not within each.",
            ),
            Mistake(
                lambda a, b, draws: ((a - b)[draws].mean(-1).min().item(), (a - b)[draws].mean(-1).max().item()),
                "The extremes grow with the number of drawings.",
            ),
        ),
    ),
    Exercise(
        name="evaluation.exposure",
        asks="Return the exposure of the canary in bits.",
        inputs=lambda: [
            (-3.0, randn(255) - 4),
            (-9.5, -10 * rand(63)),
            (1.0, -rand(15)),
            (-5.0, tensor([-5.0, -1.0, -9.0])),
        ],
        reference=exposure,
        hint="Line up all candidates, the canary among them, the likeliest first. At which place does it stand?",
        mistakes=(
            Mistake(
                ranked(rank_of, math.log),
                "Those are nats. How many times could the candidates be halved?",
            ),
            Mistake(
                ranked(lambda canary, others: 1 + int((others < canary).sum())),
                "You rank from the wrong end: a canary that is known best gets an exposure of 0.",
            ),
            Mistake(
                ranked(rank_of, more=0),
                "The canary is a candidate as well.",
            ),
            Mistake(
                ranked(lambda canary, others: 1 + int((others >= canary).sum())),
                "A candidate that is just as likely is not likelier.",
            ),
            Mistake(
                lambda canary, others: math.log2(rank_of(canary, others)),
                "That is the logarithm of the rank alone: it falls as the canary becomes better known.",
            ),
            Mistake(
                lambda canary, others: (len(others) + 1) / rank_of(canary, others),
                "That is how many times better than chance it is. Exposure is its logarithm.",
            ),
        ),
    ),
    Exercise(
        name="evaluation.mend_accuracy",
        asks="Return the share of right answers over all examples.",
        inputs=lambda: [batches_of(8, 8, 3), batches_of(16, 1), batches_of(5)],
        reference=accuracy_by(lambda right, sizes: sum(right) / sum(sizes)),
        hint="How many answers are right in all, and of how many?",
        mistakes=(
            Mistake(
                accuracy_by(lambda right, sizes: sum(right) / len(sizes)),
                "The mistake is still there: right answers over batches. Can an accuracy be larger than 1?",
                untouched=True,
            ),
            Mistake(
                accuracy_by(lambda right, sizes: sum(r / n for r, n in zip(right, sizes, strict=True)) / len(sizes)),
                "Now it lies below 1. But the last batch is smaller, and each of its examples counts for more.",
            ),
            Mistake(
                accuracy_by(lambda right, sizes: sum(right) / (len(sizes) * sizes[0])),
                "That takes all batches for as large as the first. The last one is often smaller.",
            ),
            Mistake(
                accuracy_by(lambda right, sizes: 100 * sum(right) / sum(sizes)),
                "That is a percentage. Return a share between 0 and 1.",
            ),
            Mistake(
                accuracy_by(lambda right, sizes: right[-1] / sizes[-1]),
                "That is the last batch alone.",
            ),
        ),
    ),
    Exercise(
        name="evaluation.mend_choice",
        asks="Return which setting to take, and the score that may be reported for it.",
        inputs=lambda: [
            ([0.71, 0.78, 0.75], [0.70, 0.72, 0.79]),
            ([0.6, 0.9, 0.8, 0.7], [0.9, 0.5, 0.8, 0.6]),
            ([0.5], [0.4]),
        ],
        reference=reported(lambda validation, test: validation),
        hint="One of the two lists may decide, and the other may be looked at once, after the decision.",
        mistakes=(
            Mistake(
                reported(lambda validation, test: test),
                "The mistake is still there: the test set has chosen, so its score is the best of several lucky draws. "
                "What is the validation set for?",
                untouched=True,
            ),
            Mistake(
                reported(lambda validation, test: validation, lambda validation, test: validation),
                "The right choice. But the score that has chosen flatters it: which one has had no say?",
            ),
            Mistake(
                reported(lambda validation, test: [v + t for v, t in zip(validation, test, strict=True)]),
                "The test set still has half a vote.",
            ),
            Mistake(
                lambda validation, test: (validation.index(max(validation)), max(test)),
                "You report the best test score, which belongs to another setting.",
            ),
            Mistake(
                reported(lambda validation, test: [-v for v in validation]),
                "These are accuracies: the larger the better.",
            ),
        ),
    ),
    Exercise(
        name="evaluation.mend_filter",
        asks="Say for each piece whether it may be written: not if it would complete the phrase.",
        inputs=lambda: [(text, list(pieces), phrase) for text, pieces, phrase in FILTER_INPUTS],
        reference=allowed(ends_in_piece),
        hint="Put the text and the piece together, all in small letters. Where would the phrase end?",
        mistakes=(
            Mistake(
                allowed(lambda text, piece, phrase: phrase in piece),
                "The mistake is still there: each piece is looked at alone. Where does a phrase hide that is cut?",
                untouched=True,
            ),
            Mistake(
                allowed(lambda text, piece, phrase: phrase.lower() in (text + piece).lower()),
                "Once the phrase stands in the text, for whatever reason, nothing may be written any more. "
                "Which part of the phrase must the new piece hold?",
            ),
            Mistake(
                allowed(lambda text, piece, phrase: phrase in text + piece and phrase not in text),
                "Two things are left: other capitals, and a phrase that stands in the text already and comes again.",
            ),
            Mistake(
                allowed(lambda text, piece, phrase: phrase.lower() in piece.lower()),
                "Capitals are seen to. But each piece is still looked at alone.",
            ),
            Mistake(
                lambda text, pieces, phrase: ~allowed(ends_in_piece)(text, pieces, phrase),
                "The other way round: true means that the piece may be written.",
            ),
        ),
    ),
)
