"""How good is a model? Perplexity, labels chosen by likelihood with and without examples, and what it writes.

All functions take our GPT and the causal language models of transformers, and leave them as they are.

Sources beyond those named below: Holtzman et al. (2020), "Neural Text Degeneration" (loops); Manning et al. (2008),
"Introduction to Information Retrieval"; Mitchell et al. (2019), "Model Cards for Model Reporting".
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from numbers import Real
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptcourse.checks import (
    COUNT,
    COUNT_OR_ZERO,
    LABELS,
    POSITIVE_OR_ZERO,
    SEED,
    SHARE,
    TEXT,
    TEXTS,
    Choice,
    ListOf,
    Number,
    Shape,
    between,
    check_lengths,
    check_numbers,
    checked,
    shown,
    text_pairs,
)
from gptcourse.data import IGNORED, check_tokens, fill_template, pad
from gptcourse.support import Dialogue, parse_reply
from gptcourse.tokenizers import encode_text
from gptcourse.views import context_window, device_of, eval_view, new_cache, vocab_size_of

NORMALISATIONS = ("token", "none", "prior")
PRIOR_PROMPT = "Answer:"  # before which nothing has been said
WORD = re.compile(r"[\w']+")
AT_ONCE = 256  # windows of a long text that are prepared at once
LEVEL = Number(Real, lambda x: 0 <= x <= 0.9999, "a number from 0 to 0.9999")


# ---- The likelihood of a text


@checked(batch_size=COUNT)
@torch.inference_mode()
def log_likelihoods(model: nn.Module, pairs: Sequence[tuple[Sequence[int], ...]], batch_size=16) -> list[Tensor]:
    """Return, for each (context, continuation) of token ids, the log-probability of each token of the continuation.

    In nats, (len(continuation),) each. A context that several pairs share is read once for each batch. Raises
    ValueError for an empty context or continuation, a pair longer than the window, ids outside the vocabulary, and a
    model that gives NaN.
    """
    pairs = [tuple(tuple(part.tolist() if isinstance(part, Tensor) else part) for part in pair) for pair in pairs]
    _check_pairs(model, pairs)
    groups: dict[tuple, list[int]] = {}
    for i, (context, _) in enumerate(pairs):
        groups.setdefault(context, []).append(i)
    alone = sorted((group[0] for group in groups.values() if len(group) == 1), key=lambda i: sum(map(len, pairs[i])))
    shared = [(_logits_after, group) for group in groups.values() if len(group) > 1]
    parts = [(read, rows, range(0, len(rows), batch_size)) for read, rows in [(_logits, alone), *shared]]
    batches = [(read, rows[begin : begin + batch_size]) for read, rows, begins in parts for begin in begins]
    view, found = eval_view(model), {}
    for read, batch in batches:
        logits, targets = read(view, [pairs[i] for i in batch])
        losses = F.cross_entropy(logits.float().mT, targets, reduction="none")  # (B, T)
        found |= {i: -row[target != IGNORED].cpu() for i, row, target in zip(batch, losses, targets, strict=True)}
    if any(row.isnan().any() for row in found.values()):
        raise ValueError("The model gives NaN instead of probabilities: its training diverged, or its file is damaged.")
    return [found[i] for i in range(len(pairs))]


def _check_pairs(model, pairs):
    window, vocab_size = context_window(model), vocab_size_of(model)
    for context, continuation in pairs:
        if not context or not continuation:
            raise ValueError("A context and a continuation need at least one token each: begin a text with a newline.")
        if (n := len(context + continuation)) > window + 1:
            advice = "shorten the context, or give fewer examples"
            raise ValueError(f"Context and continuation have {n} tokens, but this model takes {window}: {advice}.")
        check_tokens(context + continuation, vocab_size, 2, "tokens")


def _logits(model, pairs):
    """Return logits (B, T, V) and targets (B, T) of one batch."""
    examples = [((*a, *b)[:-1], (IGNORED,) * (len(a) - 1) + b) for a, b in pairs]
    ids, targets = (part.to(device_of(model)) for part in pad(examples))
    return model(ids).logits, targets


def _logits_after(model, pairs):
    """Return the same for several continuations of one context, which is read once and kept in a cache."""
    ids, targets = (part.to(device_of(model)) for part in pad([(b, b) for _, b in pairs]))
    context = torch.tensor([pairs[0][0]], device=ids.device)
    if hasattr(model, "new_cache"):
        cache = new_cache(model, 1, context.shape[1] + ids.shape[1])
        first = model(context, cache=cache).logits[:, -1:]
        options = {"cache": [layer.repeated(len(pairs)) for layer in cache]}
    else:
        output = model(context, use_cache=True)
        first, options = output.logits[:, -1:], {"past_key_values": output.past_key_values}
        options["past_key_values"].batch_repeat_interleave(len(pairs))
    logits = first.expand(len(pairs), -1, -1)  # (B, 1, V)
    if ids.shape[1] > 1:
        logits = torch.cat([logits, model(ids[:, :-1], **options).logits], dim=1)
    return logits, targets


def perplexity(model: nn.Module, tokens: Sequence[int] | Tensor, context: int = 1) -> float:
    """Return exp of the mean loss per token, over all tokens but the first (Jelinek et al. 1977).

    A text longer than the model's window is read in windows; each begins `context` tokens before the first that it
    predicts. A larger context costs time and gives a lower value; 1 is what `training.evaluate` does. Raises
    ValueError for tokens that the model does not know, fewer than two, and a context that does not fit.
    """
    window = context_window(model)
    tokens = check_tokens(tokens, vocab_size_of(model), 2, "tokens").tolist()
    context = between(1, window)("context", context)
    ends = [1, *range(window + 1, len(tokens), window + 1 - context)]  # of what each window is given
    begins = [max(0, end - context) for end in ends]
    places, total = list(zip(begins, ends, strict=True)), 0.0
    for some in (places[i : i + AT_ONCE] for i in range(0, len(places), AT_ONCE)):
        pairs = [(tokens[i:end], tokens[end : i + window + 1]) for i, end in some]
        total -= torch.cat(log_likelihoods(model, pairs)).double().sum().item()
    return math.exp(total / (len(tokens) - 1))


@checked(nats_per_token=POSITIVE_OR_ZERO, n_tokens=COUNT_OR_ZERO, n_bytes=COUNT)
def bits_per_byte(nats_per_token: float, n_tokens: int, n_bytes: int) -> float:
    """Return a loss in bits per byte of text, in which models with different tokenizers can be compared."""
    return nats_per_token * n_tokens / (math.log(2) * n_bytes)


@checked(text=TEXT, seen=TEXT, n=COUNT)
def overlap(text: str, seen: str, n: int = 13) -> float:
    """Return the share of the text's runs of n words that `seen` holds too, 0 if it has none: contamination.

    Capitals and punctuation make no difference; GPT-3 used runs of 13 words (Brown et al. 2020, appendix C).
    """
    runs, known = (_runs(re.findall(r"\w+", one.lower()), n) for one in (text, seen))
    known = set(known)
    return sum(run in known for run in runs) / max(len(runs), 1)


@checked(texts=TEXTS, n=COUNT)
def distinct_n(texts: Sequence[str], n: int) -> float:
    """Return the share of distinct runs among all runs of n words (Li et al. 2016); 1 if there are none."""
    runs = [run for text in texts for run in _runs(text.split(), n)]
    return len(set(runs)) / len(runs) if runs else 1.0


@checked(texts=TEXTS, n=COUNT)
def unique_n(texts: Sequence[str], n: int) -> list[float]:
    """Return, for each text, the share of its runs of n words that stand only once in all the texts; 1 if it has none.

    The pooled share of `distinct_n` belongs to no single text; these do, so two sets of texts can be compared in pairs.
    """
    runs = [_runs(text.split(), n) for text in texts]
    seen = Counter(run for text in runs for run in text)
    return [sum(seen[run] == 1 for run in text) / len(text) if text else 1.0 for text in runs]


def _runs(words, n):
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


# ---- Labels


class Classification(NamedTuple):
    """The label chosen for each prompt, and the scores (prompts, labels) by which it was chosen, in nats."""

    labels: list[str]
    scores: Tensor


@checked(prompts=TEXTS, labels=TEXTS, normalise=Choice(NORMALISATIONS))
def classify(
    model: nn.Module, tokenizer, prompts: Sequence[str], labels: Sequence[str], normalise: str = "token"
) -> Classification:
    """Choose for each prompt the label that the model finds most likely to follow it (Brown et al. 2020, section 2.4).

    A label's score is its log-probability: "token" divides by its number of tokens, "none" does not, "prior" subtracts
    its log-probability after PRIOR_PROMPT. Prompts and labels are joined as they stand: mind the space between.
    Raises ValueError for no prompts, fewer than two labels, equal ones, and what `log_likelihoods` refuses.
    """
    check_lengths(prompts=prompts)
    if len(set(labels)) < max(len(labels), 2):
        raise ValueError(f"Give two or more different labels to choose from, not {list(labels)}.")
    with_prior = [*prompts, PRIOR_PROMPT] if normalise == "prior" else prompts
    contexts = [tuple(encode_text(tokenizer, prompt)) for prompt in with_prior]
    continuations = [encode_text(tokenizer, label, start=False) for label in labels]
    rows = log_likelihoods(model, [(context, label) for context in contexts for label in continuations])
    scores = torch.stack([row.mean() if normalise == "token" else row.sum() for row in rows]).view(-1, len(labels))
    if normalise == "prior":
        scores = scores[:-1] - scores[-1]
    return Classification([labels[i] for i in scores.argmax(-1).tolist()], scores)


@checked(examples=text_pairs, texts=TEXTS)
def few_shot(
    model: nn.Module,
    tokenizer,
    examples: Sequence[tuple[str, str]],
    texts: Sequence[str],
    labels: Sequence[str],
    k: int,
    template: str = "{text}\n{label}",
    seed: int = 0,
    normalise: str = "token",
) -> Classification:
    """Classify texts with k labelled examples in the prompt, without training (Brown et al. 2020, section 2.4).

    For each text, k of the `examples` (text, label) are drawn anew and written one after the other with the template,
    separated by a blank line; k = 0 is zero-shot. Raises ValueError for a template without {text} before a final
    {label}, for more examples than there are, and what `classify` refuses.
    """
    k, prompts = between(0, len(examples))("k", k), []
    for i, text in enumerate(texts):
        chosen = np.random.default_rng((seed, i)).choice(len(examples), k, replace=False) if k else []
        shown = [fill_template(template, examples[j][0]) + examples[j][1] for j in chosen]
        prompts.append("\n\n".join([*shown, fill_template(template, text)]))
    return classify(model, tokenizer, prompts, labels, normalise)


def naive_bayes(examples: Sequence[tuple[str, str]], texts: Sequence[str]) -> list[str]:
    """Label texts by the highest of `word_scores`: the baseline that a language model should beat."""
    labels, scores = word_scores(examples, texts)
    return [labels[i] for i in scores.argmax(1)]


@checked(examples=text_pairs, texts=TEXTS)
def word_scores(examples: Sequence[tuple[str, str]], texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Return the labels of the examples (text, label), and the log-score of each text for each label, (texts, labels).

    Multinomial naive Bayes with one added to each count (Manning et al. 2008, section 13.2); words that no example has
    are left out. Raises ValueError if there are no examples.
    """
    if not len(examples):
        raise ValueError("Without examples no words are known: give some pairs (text, label).")
    times = Counter(label for _, label in examples)
    labels, words = list(times), [WORD.findall(text.lower()) for text, _ in examples]
    place = {word: i for i, word in enumerate(sorted(set().union(*words)))}
    table = np.ones((len(labels), len(place)))
    for row, (_, label) in zip(words, examples, strict=True):
        np.add.at(table[labels.index(label)], [place[word] for word in row], 1)
    share = np.log(table / table.sum(1, keepdims=True))  # (labels, words)
    priors = np.log([times[label] / len(examples) for label in labels])
    known = [[place[word] for word in WORD.findall(text.lower()) if word in place] for text in texts]
    return labels, np.array([priors + share[:, row].sum(1) for row in known]).reshape(len(known), len(labels))


# ---- How good, and how sure one can be of it


class ClassificationReport(NamedTuple):
    """Predicted labels against true ones. `confusion` (labels, labels): rows are the truth, columns the predictions."""

    accuracy: float
    macro_f1: float
    confusion: np.ndarray


@checked(truth=LABELS, predicted=LABELS, labels=LABELS)
def classification_report(truth: Sequence, predicted: Sequence, labels: Sequence) -> ClassificationReport:
    """Return accuracy, the confusion matrix and macro-F1: the mean over labels of 2 TP / (2 TP + FP + FN), or 0.

    Raises ValueError for lengths that differ, for none, and for a label that `labels` does not list once.
    """
    check_lengths(**{"true labels": truth, "predicted ones": predicted})
    labels, place = list(labels), {label: i for i, label in enumerate(labels)}
    if wrong := {label for label in (*truth, *predicted, *labels) if labels.count(label) != 1}:
        wrong = shown(sorted(wrong, key=shown))
        raise ValueError(f"{wrong} are not among the labels {shown(labels)} once: list every label once.")
    confusion = np.zeros((len(place), len(place)), dtype=int)
    np.add.at(confusion, ([place[label] for label in truth], [place[label] for label in predicted]), 1)
    right = confusion.diagonal()
    f1 = 2 * right / np.maximum(confusion.sum(0) + confusion.sum(1), 1)
    return ClassificationReport(right.sum() / len(truth), f1.mean().item(), confusion)


@checked(n=COUNT, level=LEVEL)
def wilson_interval(right: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Return the interval of a share of which `right` out of `n` independent examples speak (Wilson 1927).

    Unlike the bootstrap's it has a width where all are right, or none. Raises ValueError for counts that cannot be.
    """
    right = between(0, n)("right", right)
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle, half = right + z**2 / 2, z * math.sqrt(right * (n - right) / n + z**2 / 4)
    low, high = (middle - half) / (n + z**2), (middle + half) / (n + z**2)
    return max(low, 0.0), min(high, 1.0)


@checked(n=COUNT, level=LEVEL)
def exact_interval(right: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Return the exact interval of a share: `right` out of `n` independent examples (Clopper and Pearson 1934).

    The low end is the share with which so many or more would be right in (1 - level) / 2 of all tests, the high end
    that for so few or fewer. It holds the truth at least as often as it says, also where all are right, or none.
    Raises ValueError for counts that cannot be.
    """
    right = between(0, n)("right", right)
    tail = (1 - level) / 2
    low = _share_with(lambda p: _at_most(right - 1, n, p) > 1 - tail) if right else 0.0
    return low, _share_with(lambda p: _at_most(right, n, p) > tail) if right < n else 1.0


def _at_most(k, n, p):
    """Return the probability of k or fewer out of n, each with probability p, strictly between 0 and 1."""
    i = torch.arange(k + 1, dtype=torch.float64)
    chosen = math.lgamma(n + 1) - torch.lgamma(i + 1) - torch.lgamma(n - i + 1)
    return (chosen + i * math.log(p) + (n - i) * math.log1p(-p)).exp().sum().item()


def _share_with(is_below):
    """Return where `is_below`, true for small shares, becomes false."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return (low + high) / 2


@checked(groups=LABELS)
def share_interval(right: Sequence[bool], groups: Sequence | None = None, level: float = 0.95) -> tuple[float, float]:
    """Return an interval of the share of right ones: exact or, where examples come in groups, by drawing groups.

    Where all are right, or none, drawing says nothing: then each group counts as one example of the exact interval.
    Raises ValueError for what is neither right nor wrong, and what `bootstrap_interval` refuses.
    """
    check_lengths(answers=right)
    right = check_numbers("answers", right, 0, 1, kind="whole")
    if groups is None:
        return exact_interval(int(right.sum()), len(right), level)
    check_lengths(answers=right, groups=groups)
    if len(set(right)) == 1:
        n = len(set(groups))
        return exact_interval(int(right[0]) * n, n, level)
    return bootstrap_interval(right, level, groups=groups)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for being several (Holm 1979): each times how many are left, and never falling.

    If those up to 0.05 are called real, the chance that any of them is not stays below 5 %. Raises ValueError for
    numbers that are no probabilities.
    """
    p, adjusted = check_numbers("p-values", p_values, 0, 1), {}
    for left, i in zip(range(len(p), 0, -1), np.argsort(p, kind="stable").tolist(), strict=True):
        adjusted[i] = max([min(1.0, left * p[i].item()), *adjusted.values()])
    return [adjusted[i] for i in range(len(p))]


@checked()
def examples_needed(first: float, second: float, power: float = 0.8, level: float = 0.95) -> int:
    """Return how many examples *each* of two models needs, so that their difference is seen with probability `power`.

    For shares of right answers on two separate tests, by the normal approximation (Fleiss et al. 2003, section 4.2,
    without correction). Raises ValueError for equal shares, and numbers that are no shares.
    """
    a, b = check_numbers("shares", [first, second], 0, 1).tolist()
    power, level = check_numbers("power and level", [power, level], 0.5, 0.9999).tolist()
    if a == b:
        raise ValueError(f"Both shares are {a:g}: no number of examples shows a difference that is not there.")
    z_level, z_power = NormalDist().inv_cdf((1 + level) / 2), NormalDist().inv_cdf(power)
    middle, each = 2 * (a + b) / 2 * (1 - (a + b) / 2), a * (1 - a) + b * (1 - b)
    return math.ceil(((z_level * math.sqrt(middle) + z_power * math.sqrt(each)) / (a - b)) ** 2)


@checked(first=LABELS, second=LABELS)
def kappa(first: Sequence, second: Sequence) -> float:
    """Return Cohen's kappa (1960) of two judges of the same examples: agreement beyond that of their habits alone.

    1 where they always agree, 0 where no more often than by chance. Raises ValueError for lengths that differ, for
    none, and where both say one same thing throughout, so that chance alone would agree.
    """
    check_lengths(**{"first judgements": first, "second ones": second})
    first, second, n = list(first), list(second), len(first)
    agreed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    chance = sum(first.count(label) * second.count(label) for label in set(first)) / n**2
    if chance == 1:
        raise ValueError(f"Both judges say {shown(first[0])} of everything: their agreement shows nothing.")
    return (agreed - chance) / (1 - chance)


@checked(level=SHARE, n=COUNT, seed=SEED, groups=LABELS)
def bootstrap_interval(
    values: Sequence[float], level=0.95, n=10_000, seed=0, groups: Sequence | None = None
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean of `values`, one for each example (Efron 1979).

    To compare two models on the same examples, give the differences of their values: what makes an example hard for
    both cancels out. Examples of one group, such as messages in the same words, are drawn together: `groups` holds a
    label for each (the cluster bootstrap). Raises ValueError for fewer than two values, or groups.
    """
    check_lengths(values=values, **({} if groups is None else {"groups": groups}))
    what, labels = ("examples", range(len(values))) if groups is None else ("groups", groups)
    number = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    if len(number) < 2:
        raise ValueError(f"An interval needs the values of two or more {what}, not {len(number)}.")
    values, rows = check_numbers("values", values, -1e300, 1e300), [number[label] for label in labels]
    sums, sizes, rng = np.bincount(rows, weights=values), np.bincount(rows), np.random.default_rng(seed)
    draws = (rng.integers(len(sums), size=len(sums)) for _ in range(n))
    means = [sums[drawn].sum() / sizes[drawn].sum() for drawn in draws]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return low.item(), high.item()


@checked(n_bins=COUNT)
def calibration_error(confidence: Sequence[float], correct: Sequence[bool], n_bins: int = 10) -> float:
    """Return the expected calibration error: the mean gap between confidence and accuracy (Guo et al. 2017, section 2).

    Bins of equal width in confidence, weighted by their sizes. Raises ValueError for lengths that differ, for none, and
    for confidences that are no probabilities.
    """
    check_lengths(confidences=confidence, answers=correct)
    confidence = check_numbers("confidences (take the softmax of scores)", confidence, 0, 1)
    correct = check_numbers("answers", correct, 0, 1)
    bins = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    return sum(abs((confidence - correct)[bins == i].sum()) for i in set(bins)).item() / len(correct)


@checked(logits=Shape("n V"), targets=Shape("n", "whole"))
def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """Return the temperature at which logits (n, V) give targets (n,) the lowest mean loss (Guo et al. 2017, 4.2).

    Fit it on validation data and judge it on others. No prediction changes, only how sure it is. The loss is convex in
    1 / temperature, so its slope is bisected, from 0.05 to 20. Raises ValueError for targets of another length.
    """
    rows, targets = logits.detach().cpu().double(), targets.cpu()  # Apple's GPUs have no float64
    if not rows.isfinite().all() or targets.min() < 0 or targets.max() >= rows.shape[1]:
        raise ValueError(f"Logits must be finite, and targets whole numbers from 0 to {rows.shape[1] - 1}.")
    right = rows.gather(1, targets[:, None])[:, 0]
    low, high = 1 / 20, 20.0
    for _ in range(40):
        inverse = math.sqrt(low * high)
        slope = (((inverse * rows).softmax(-1) * rows).sum(-1) - right).mean()  # d loss / d inverse
        low, high = (inverse, high) if slope < 0 else (low, inverse)
    return 1 / math.sqrt(low * high)


class Measurement(NamedTuple):
    """What was measured, its value for each example, the condition under which, and the group of each example."""

    name: str
    values: Sequence[float]
    condition: str
    groups: Sequence | None = None


@checked(
    **dict.fromkeys(("name", "description", "intended_use", "not_intended", "training_data"), TEXT),
    conditions=TEXTS,
    measurements=ListOf(list | tuple, "measurements"),
    limits=TEXTS,
)
def model_card(
    name: str,
    *,
    description: str,
    intended_use: str,
    not_intended: str,
    training_data: str,
    conditions: Sequence[str],
    measurements: Sequence[Measurement],
    limits: Sequence[str],
) -> str:
    """Write a model card in Markdown, in the order of Mitchell et al. (2019).

    The card gives the mean of each measurement, and an interval: that of `share_interval` for values of 0 and 1, else
    `bootstrap_interval`, over groups where there are some. `conditions` are all under which the model was measured,
    the bad ones too. Raises ValueError if a part is empty, and for a condition that no measurement shows.
    """
    if empty := [part for part, content in locals().items() if len(content) == 0]:
        raise ValueError(f"The card has nothing under {', '.join(empty)}: say it, or say that it is not known.")
    if not all(len(row) in (3, 4) and isinstance(row[0], str) and isinstance(row[2], str) for row in measurements):
        raise ValueError("A measurement is (name, values, condition) or (name, values, condition, groups).")
    rows = [Measurement(*row) for row in measurements]
    if hidden := [condition for condition in conditions if condition not in {row.condition for row in rows}]:
        raise ValueError(
            f"The card leaves out what was measured: {', '.join(hidden)}. Show it, above all if it is bad."
        )
    table = ["| measured | condition | value | 95 % interval | examples | groups |", f"| --- | --- |{' ---: |' * 4}"]
    for measure, values, condition, groups in rows:
        values = check_numbers("values", values, -1e300, 1e300).tolist()
        interval = share_interval if {*values} <= {0, 1} else bootstrap_interval
        low, high = interval(values, groups=groups)
        counts = f"{len(values)} | {len(values if groups is None else {*groups})}"
        table.append(f"| {measure} | {condition} | {np.mean(values):.3g} | {low:.3g} to {high:.3g} | {counts} |")
    parts = [f"# {name}", description, "## Intended use", intended_use, f"**Not for:** {not_intended}"]
    parts += ["## Training data", training_data, "## Measured", "\n".join(table)]
    return "\n\n".join([*parts, "## Limits", "\n".join(f"* {limit}" for limit in limits)]) + "\n"


# ---- Replies, judged by the grammar


class ReplyReport(NamedTuple):
    """Shares from 0 to 1: of the replies (intents, allowed, loops), of the messages' values, of pairs of words."""

    intents: float  # the reply answers what was asked
    slots: float  # the customer's order number, name, … stands in the reply, exact
    allowed: float  # the grammar can give this very reply to the message
    loops: float  # the reply says the same four words twice
    distinct_2: float  # of all pairs of neighbouring words


@checked(dialogues=ListOf(Dialogue, "dialogues"), replies=TEXTS)
def reply_report(dialogues: Sequence[Dialogue], replies: Sequence[str]) -> ReplyReport:
    """Judge a model's replies to the messages of dialogues. Raises ValueError for lengths that differ, and for none."""
    check_lengths(dialogues=dialogues, replies=replies)
    pairs = list(zip(dialogues, replies, strict=True))
    readings = [(d, parse_reply(reply) or (None, {})) for d, reply in pairs]
    slots = [(reply, value) for d, reply in pairs for value in d.slots.values()]
    copied = [re.search(rf"(?<!\w){re.escape(value)}(?!\w)", reply) is not None for reply, value in slots]
    return ReplyReport(
        intents=sum(intent == d.intent for d, (intent, _) in readings) / len(pairs),
        slots=sum(copied) / len(copied) if copied else 1.0,
        allowed=sum(reading == (d.intent, d.slots) for d, reading in readings) / len(pairs),
        loops=sum(distinct_n([reply], 4) < 1 for reply in replies) / len(pairs),
        distinct_2=distinct_n(replies, 2),
    )
