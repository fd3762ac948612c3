"""The exercises of notebook 11: numbers that can be compared, how sure they are, and what a filter must see."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from math import comb, log, log2

import torch
import torch.nn.functional as F
from torch import Tensor, rand, randint, randn, tensor

from gptcourse.evaluation import classification_report, holm, kappa
from gptcourse.exercises.exercise import Exercise, as_it_stands, mistake
from gptcourse.safety import canonical, exposure, leaks

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


def place_of_best(scores: list[float]) -> int:
    return scores.index(max(scores))


def binomial(counts: Sequence[int], n: int, p: float) -> float:
    """Return the probability that one of these counts of n comes up, each with probability p."""
    return sum(comb(n, i) * p**i * (1 - p) ** (n - i) for i in counts)


def agreement(first: list, second: list) -> float:
    return sum(a == b for a, b in zip(first, second, strict=True)) / len(first)


def mean_loss(logits: Tensor, targets: Tensor) -> float:
    return F.cross_entropy(logits, targets).item()


def shares(*lists: list[bool]) -> tuple[float, ...]:
    return tuple(sum(one) / len(one) for one in lists)


def nothing(leaked: list[bool], answered: list[bool]) -> list[bool]:
    return [not a and not b for a, b in zip(leaked, answered, strict=True)]


class BitsPerByte(Exercise, name="evaluation.bits_per_byte", minutes=5):
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


class Paired(Exercise, name="evaluation.paired", minutes=10):
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


class Chance(Exercise, name="evaluation.chance", minutes=5):
    """Return the probability that so many answers of n, or more, are right by chance."""

    hint = "Each count has its own probability. Which counts are at least as good as the one that was seen?"

    def inputs():
        return [(7, 64, 1 / 16), (2, 3, 0.5), (4, 5, 0.2), (8, 10, 0.7)]

    def reference(right, n, p):
        return binomial(range(right, n + 1), n, p)

    more = mistake("""What was seen is left out. A result as good as this one
        counts, too.""")(lambda right, n, p: binomial(range(right + 1, n + 1), n, p))
    exactly = mistake("""That is the chance of exactly this count. In a large test every single
        count is unlikely.""")(lambda right, n, p: binomial([right], n, p))
    fewer = mistake("""The other tail: so many or fewer. Which results would speak
        for the model as much?""")(lambda right, n, p: binomial(range(right + 1), n, p))
    one_order = mistake("""In how many ways can the right answers be spread over
        the test?""")(lambda right, n, p: sum(p**i * (1 - p) ** (n - i) for i in range(right, n + 1)))


class ClusterMean(Exercise, name="evaluation.cluster_mean", minutes=10):
    """Return the mean over all values of the groups that were drawn, each as often as it was drawn."""

    hint = "Write down all values of the first group drawn, then all of the second, and so on. What is their mean?"

    def inputs():
        return [
            (rand(8), tensor([0, 0, 0, 1, 1, 2, 2, 2]), tensor([1, 1, 2])),
            (rand(6), tensor([0, 1, 1, 1, 1, 2]), tensor([2, 0, 2])),
            (tensor([1.0, 0.0, 0.0, 1.0]), tensor([0, 1, 1, 1]), tensor([0, 1])),
        ]

    def reference(values, groups, drawn):
        return torch.cat([values[groups == group] for group in drawn.tolist()]).mean().item()

    once = mistake("""A group that is drawn twice counts twice: you drew with
        replacement.""")(lambda values, groups, drawn: values[torch.isin(groups, drawn)].mean().item())
    of_means = mistake("""That is a mean of means: each value of a small group counts for more than
        one of a large group.""")(
        lambda values, groups, drawn: tensor([values[groups == g].mean() for g in drawn.tolist()]).mean().item()
    )
    examples = mistake("""You took the numbers drawn for those of examples. They are numbers
        of groups.""")(lambda values, groups, drawn: values[drawn].mean().item())
    everything = mistake("That is the mean of the test as it is.")(lambda values, groups, drawn: values.mean().item())


class Holm(Exercise, name="evaluation.holm", minutes=15):
    """Return the p-values adjusted for being several, in the order in which they came."""

    hint = "Begin with the smallest: how many are left? Then the next, and no adjusted value below the one before."

    def inputs():
        return [
            (tensor([0.01, 0.04, 0.03, 0.5]),),
            (tensor([0.6, 0.02, 0.05, 0.021]),),
            (tensor([0.7, 0.6, 0.001]),),
        ]

    def steps(p_values: Tensor, cap: float = 1.0, running: bool = True) -> Tensor:
        ordered, order = p_values.sort()
        found = (ordered * torch.arange(len(ordered), 0, -1)).clamp(max=cap)
        return torch.empty_like(found).scatter(0, order, found.cummax(0).values if running else found)

    def reference(p_values):
        return tensor(holm(p_values.tolist()))

    bonferroni = mistake("""That is Bonferroni's rule: every one times how many there are. Holm is milder with all but
        the smallest.""")(lambda p_values: (len(p_values) * p_values).clamp(max=1))
    falling = mistake("""A larger p-value must not become the smaller one. What does the next one inherit from those
        before it?""")(lambda p_values: Holm.steps(p_values, running=False))
    above_one = mistake("A probability above 1 cannot be.")(lambda p_values: Holm.steps(p_values, cap=99.0))
    in_order = mistake("""The right numbers, but sorted. Whose is
        which?""")(lambda p_values: Holm.steps(p_values).sort().values)


class Temperature(Exercise, name="evaluation.temperature", minutes=10):
    """Return that of the temperatures at which the logits give the targets the lowest mean loss."""

    hint = (
        "Divide, take the softmax, and look up how likely the right answers are: which temperature is punished least?"
    )

    def inputs():
        cases = []
        for true, tried in ((0.5, [2.0, 0.25, 4.0, 0.5]), (2.0, [1.0, 0.5, 2.0, 8.0]), (3.0, [0.33, 9.0, 3.0, 1.0])):
            logits = 3 * randn(400, 5)
            cases.append((logits, torch.multinomial((logits / true).softmax(-1), 1)[:, 0], tried))
        return cases

    def chosen(score: Callable[[Tensor, Tensor, float], float]) -> Callable:
        return lambda logits, targets, temperatures: min(temperatures, key=lambda t: score(logits, targets, t))

    reference = chosen(lambda logits, targets, t: mean_loss(logits / t, targets))
    multiplied = mistake("""A high temperature should make the model less sure. Yours makes it
        surer.""")(chosen(lambda logits, targets, t: mean_loss(logits * t, targets)))
    worst = mistake("You took the largest loss.")(chosen(lambda logits, targets, t: -mean_loss(logits / t, targets)))
    accuracy = mistake("""No temperature changes which answer is the likeliest, so the accuracy cannot
        choose.""")(chosen(lambda logits, targets, t: -((logits / t).argmax(-1) == targets).sum().item()))
    surest = mistake("You took the one at which the model is surest. Is it right to be?")(
        chosen(lambda logits, targets, t: -(logits / t).softmax(-1).amax(-1).mean().item())
    )


class MacroF1(Exercise, name="evaluation.macro_f1", minutes=10):
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


class MendChoice(Exercise, name="evaluation.mend_choice", minutes=5):
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


class Kappa(Exercise, name="evaluation.kappa", minutes=10):
    """Return Cohen's kappa of two judges: how far they agree beyond chance."""

    hint = "If each judge drew from its own habits, blindly, how often would both say the same?"

    def inputs():
        return [
            (list("AABBA"), list("ABBBA")),
            (list("AAAAAAAB"), list("AAAAAABA")),
            (["yes", "no", "perhaps", "no"], ["no", "no", "perhaps", "yes"]),
        ]

    def chance(first: list, second: list) -> float:
        return sum(first.count(x) * second.count(x) for x in {*first}) / len(first) ** 2

    reference = kappa
    raw = mistake("""That is the plain agreement. Two judges who both say A nearly always agree nearly
        always.""")(agreement)

    @mistake("You take chance for equal shares of all labels. These judges have habits of their own.")
    def equal_shares(first, second):
        chance = 1 / len({*first, *second})
        return (agreement(first, second) - chance) / (1 - chance)

    not_divided = mistake("""Two who always agree should get 1. What is the most that
        could be gained over chance?""")(lambda first, second: agreement(first, second) - Kappa.chance(first, second))

    @mistake("Those are the habits of the first judge alone. Chance needs both.")
    def one_judge(first, second):
        chance = Kappa.chance(first, first)
        return (agreement(first, second) - chance) / (1 - chance)


class Exposure(Exercise, name="evaluation.exposure", minutes=5):
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


class Precision(Exercise, name="evaluation.precision", minutes=10):
    """Return the precision: of what is stopped, the share that should be."""

    hint = "Think of 1,000 messages: how many risky ones are stopped, and how many ordinary ones?"

    def inputs():
        return [(0.9, 0.05, 0.5), (0.9, 0.05, 0.01), (0.6, 0.2, 0.1), (1.0, 0.0, 0.3)]

    def reference(recall, false_positive_rate, base_rate):
        hits = recall * base_rate
        return hits / (hits + false_positive_rate * (1 - base_rate))

    half = mistake("""You take as many risky messages as ordinary ones. How frequent are
        they?""")(lambda recall, false_positive_rate, base_rate: recall / (recall + false_positive_rate))
    of_the_risky = mistake("""That is the recall again: of the risky ones, how many are stopped.
        Turn it round.""")(lambda recall, false_positive_rate, base_rate: recall)
    right = mistake("""That is the accuracy. With rare risks it is high where nothing is
        stopped.""")(lambda r, false, base: r * base + (1 - false) * (1 - base))
    stopped = mistake("That is how much is stopped in all.")(lambda r, false, base: r * base + false * (1 - base))


class Canonical(Exercise, name="evaluation.canonical", minutes=15):
    """Return the text in the form that a filter should read."""

    hint = "Four things: one form for compatible signs, small letters, no marks on letters, one space for many."

    def inputs():
        return [("Ｍy  CAFÉ",), ("a ﬁne\u00a0\n WORD",), ("ÀÉ straße",), ("plain text",)]

    def without_marks(text: str) -> str:
        return "".join(sign for sign in unicodedata.normalize("NFKD", text) if not unicodedata.combining(sign))

    reference = canonical
    lower = mistake("""Capitals are seen to. A letter with a mark, or a wide one, still gets
        through.""")(lambda text: text.lower())
    with_marks = mistake("""A letter with its mark is one sign in this form. In which form do they stand
        apart?""")(lambda text: " ".join(unicodedata.normalize("NFKC", text).casefold().split()))
    spaces = mistake("Two spaces still hide a phrase.")(lambda text: Canonical.without_marks(text).casefold())
    capitals = mistake("Capitals still hide a phrase.")(lambda text: " ".join(Canonical.without_marks(text).split()))
    joined = mistake("""Now no space is left. Words that only stand side by side would be taken for
        one.""")(lambda text: "".join(Canonical.without_marks(text).casefold().split()))


class Attack(Exercise, name="evaluation.attack", minutes=10):
    """Return a text that a filter of small letters lets through, and a filter of canonical texts stops."""

    hint = "A person should still read the phrase in it. Which signs look like letters, and are others?"

    def inputs():
        return [("magnolia",), ("my lord",)]

    def through(answer, phrase):
        text = answer(phrase)
        found = [phrase.lower() in text.lower(), canonical(phrase) in canonical(text), leaks(text, phrase)]
        return tensor([len(phrase) * one for one in found])

    def reference(phrase):
        return "".join(chr(ord(sign) + 0xFEE0) if sign.isalpha() else sign for sign in phrase)

    plain = mistake("The filter of small letters finds that: it looks for the phrase in any capitals.")(str.upper)
    dotted = mistake("""The first filter is deceived, but so is the second one: it leaves signs between letters where
        they are.""")(".".join)
    other = mistake("""No filter finds it, and no reader either: the phrase is not there any
        more.""")(lambda phrase: phrase[::-1])


class MendLeaks(Exercise, name="evaluation.mend_leaks", minutes=10):
    """Return the share of all replies that leak, and the share that do nothing: neither leak nor answer."""

    hint = "Two questions to each reply, whatever the prompt was: did it leak, and if not, did it answer?"

    def inputs():
        kinds = ["attack"] * 3 + ["question"] * 3
        return [
            (kinds, [True, False, False, True, False, False], [False, False, False, True, True, False]),
            (kinds, [False, False, True, True, True, False], [False, True, False, False, True, False]),
            (["question", "attack"], [True, False], [False, False]),
        ]

    def reference(kinds, leaked, answered):
        return shares(leaked, nothing(leaked, answered))

    @as_it_stands("The mistake is still there: only attacks are looked at. Can nobody else be told the secret?")
    def of_attacks(kinds, leaked, answered):
        attacked = [leak for kind, leak in zip(kinds, leaked, strict=True) if kind == "attack"]
        return shares(attacked, nothing(leaked, answered))

    silent = mistake("""A reply that leaks and does not answer has done something, and
        nothing good.""")(lambda kinds, leaked, answered: shares(leaked, [not a for a in answered]))
    kept = mistake("""Not to leak is not yet to do nothing: some of those replies answer
        well.""")(lambda kinds, leaked, answered: shares(leaked, [not leak for leak in leaked]))
    counted = mistake("Those are counts. Shares can be compared between tests of different sizes.")(
        lambda kinds, leaked, answered: (sum(leaked), sum(nothing(leaked, answered)))
    )
