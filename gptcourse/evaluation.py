"""How good is a model? Perplexity, labels chosen by likelihood with and without examples, and what it writes.

All functions take our GPT and the causal language models of transformers.

Sources: Jelinek et al. (1977), "Perplexity"; Brown et al. (2020), GPT-3, section 2.4 (likelihood of labels, few-shot
prompts); Li et al. (2016), "A Diversity-Promoting Objective Function for Neural Conversation Models" (distinct-n);
Holtzman et al. (2020), "The Curious Case of Neural Text Degeneration" (loops); Efron (1979), "Bootstrap Methods"; Guo
et al. (2017), "On Calibration of Modern Neural Networks", section 2; Manning, Raghavan and Schütze (2008),
"Introduction to Information Retrieval", section 13.2 (naive Bayes); Mitchell et al. (2019), "Model Cards for Model
Reporting".
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gptcourse.finetuning import IGNORED, pad
from gptcourse.generation import context_window
from gptcourse.model import GPT, in_mode
from gptcourse.support import Dialogue, parse_reply

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NORMALISATIONS = ("token", "none", "prior")


# ---- The likelihood of a text


@torch.inference_mode()
def log_likelihoods(
    model: GPT | PreTrainedModel, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], batch_size: int = 16
) -> list[Tensor]:
    """Return, for each (context, continuation) of token ids, the log-probability of each token of the continuation.

    In nats, (len(continuation),) each. A context that several pairs share is read once. Raises ValueError for an empty
    context or continuation, and for a pair longer than the model's window.
    """
    window = context_window(model)
    for context, continuation in pairs:
        if not len(context) or not len(continuation):
            raise ValueError("A context and a continuation need at least one token each: begin a text with a newline.")
        if len(context) + len(continuation) > window + 1:
            raise ValueError(
                f"Context and continuation have {len(context) + len(continuation)} tokens, but this model takes "
                f"{window}: shorten the context, or give fewer examples."
            )
    with_context: dict[tuple, list[int]] = {}
    for i, (context, _) in enumerate(pairs):
        with_context.setdefault(tuple(context), []).append(i)
    alone = [i for shared in with_context.values() for i in shared if len(shared) == 1]
    alone.sort(key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))  # little padding
    found: dict[int, Tensor] = {}
    with in_mode(model, training=False):
        for begin in range(0, len(alone), batch_size):
            batch = alone[begin : begin + batch_size]
            found |= zip(batch, _rows(model, [pairs[i] for i in batch]), strict=True)
        for context, shared in with_context.items():
            if len(shared) > 1:
                found |= zip(shared, _rows_after(model, context, [pairs[i][1] for i in shared]), strict=True)
    return [found[i] for i in range(len(pairs))]


def _rows_after(model, context, continuations):
    """Return the log-probabilities of several continuations of one context, which is read once and kept in a cache."""
    rows, new = len(continuations), torch.tensor([context], device=model.device)
    ids, targets = (part.to(model.device) for part in pad([(list(c), list(c)) for c in continuations]))
    if hasattr(model, "new_cache"):
        cache = model.new_cache()
        first = model(new, cache=cache).logits[:, -1:]
        options = {"cache": [layer.repeated(rows) for layer in cache]}
    else:
        output = model(new, use_cache=True)
        first, options = output.logits[:, -1:], {"past_key_values": output.past_key_values}
        options["past_key_values"].batch_repeat_interleave(rows)
    logits = first.expand(rows, -1, -1)  # (rows, 1, V)
    if ids.shape[1] > 1:
        logits = torch.cat([logits, model(ids[:, :-1], **options).logits], dim=1)  # (rows, T, V)
    losses = F.cross_entropy(logits.float().mT, targets, reduction="none")
    return [-row[target != IGNORED].cpu() for row, target in zip(losses, targets, strict=True)]


def _rows(model, pairs):
    """Return the log-probabilities of the continuations of one batch."""
    examples = []
    for context, continuation in pairs:
        ids = [*context, *continuation]
        examples.append((ids[:-1], [IGNORED] * (len(context) - 1) + list(continuation)))
    ids, targets = (part.to(model.device) for part in pad(examples))  # (B, T) each
    losses = F.cross_entropy(model(ids).logits.float().mT, targets, reduction="none")  # (B, T)
    return [-row[target != IGNORED].cpu() for row, target in zip(losses, targets, strict=True)]


def perplexity(model: GPT | PreTrainedModel, tokens: Sequence[int] | Tensor, context: int = 1) -> float:
    """Return exp of the mean loss per token, over all tokens but the first (Jelinek et al. 1977).

    A text longer than the model's window is read in windows, each of which begins `context` tokens before the first
    one that it predicts. The more there are, the fewer tokens are predicted from nearly nothing: slower, and lower; 1
    is what `training.evaluate` does. Raises ValueError for fewer than two tokens and a context that does not fit.
    """
    tokens, window = [int(token) for token in tokens], context_window(model)
    if len(tokens) < 2:
        raise ValueError(f"Perplexity is about tokens that follow others, but there are {len(tokens)}: give 2 or more.")
    if not 1 <= context <= window:
        raise ValueError(f"context is {context}, but this model takes {window} tokens: choose 1 to {window}.")
    pairs, end = [], 1
    while end < len(tokens):
        begin = max(0, end - context)
        stop = min(begin + window + 1, len(tokens))
        pairs.append((tokens[begin:end], tokens[end:stop]))
        end = stop
    return math.exp(-torch.cat(log_likelihoods(model, pairs)).double().mean().item())


def bits_per_byte(nats_per_token: float, n_tokens: int, n_bytes: int) -> float:
    """Return a loss in bits per byte of text, in which models with different tokenizers can be compared."""
    return nats_per_token * n_tokens / (math.log(2) * n_bytes)


def overlap(text: str, seen: str, n: int = 13) -> float:
    """Return the share of the text's runs of n words that also stand in `seen`: a sign of contamination.

    Capitals and punctuation make no difference; GPT-3's authors looked for runs of 13 words (Brown et al. 2020,
    appendix C). A text shorter than n words has none: 0.
    """
    runs, known = (_runs(re.findall(r"\w+", one.lower()), n) for one in (text, seen))
    known = set(known)
    return _share([run in known for run in runs]) if runs else 0.0


def _runs(words, n):
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


# ---- Labels


class Classification(NamedTuple):
    """The label chosen for each prompt, and the scores (prompts, labels) by which it was chosen, in nats."""

    labels: list[str]
    scores: Tensor


def classify(
    model: GPT | PreTrainedModel,
    tokenizer,
    prompts: Sequence[str],
    labels: Sequence[str],
    normalise: str = "token",
    prior_prompt: str = "Answer:",
) -> Classification:
    """Choose for each prompt the label that the model finds most likely to follow it (Brown et al. 2020, section 2.4).

    A label's score is its log-probability: "token" divides by the number of its tokens, "none" does not, and "prior"
    takes away what the label has after `prior_prompt`, so that labels which are likely anywhere gain nothing. Prompts
    and labels are joined as they stand: mind the space between. Raises ValueError for fewer than two labels, labels
    that are equal, and what `log_likelihoods` refuses.
    """
    if normalise not in NORMALISATIONS:
        raise ValueError(f"normalise must be one of {NORMALISATIONS}, not {normalise!r}.")
    if len(set(labels)) < max(len(labels), 2):
        raise ValueError(f"Give two or more different labels to choose from, not {list(labels)}.")
    scores = _label_scores(model, tokenizer, prompts, labels, normalise == "token")
    if normalise == "prior":
        scores = scores - _label_scores(model, tokenizer, [prior_prompt], labels, False)
    return Classification([labels[i] for i in scores.argmax(-1).tolist()], scores)


def _label_scores(model, tokenizer, prompts, labels, per_token):
    contexts = [tokenizer.encode(prompt) for prompt in prompts]
    continuations = [_plain(tokenizer, label) for label in labels]
    pairs = [(context, continuation) for context in contexts for continuation in continuations]
    rows = log_likelihoods(model, pairs)
    scores = torch.stack([row.mean() if per_token else row.sum() for row in rows])
    return scores.view(len(prompts), len(labels))


def _plain(tokenizer, text):
    """Encode the rest of a text: without the tokens that some tokenizers put at its beginning."""
    if hasattr(tokenizer, "token_id") or not hasattr(tokenizer, "all_special_ids"):
        return tokenizer.encode(text)
    return tokenizer.encode(text, add_special_tokens=False)


def few_shot(
    model: GPT | PreTrainedModel,
    tokenizer,
    examples: Sequence[tuple[str, str]],
    texts: Sequence[str],
    labels: Sequence[str],
    k: int,
    template: str = "{text}\n{label}",
    seed: int = 0,
    normalise: str = "token",
) -> Classification:
    """Classify texts with k labelled examples in the prompt, and no step of training: GPT-3's few-shot learning.

    For each text, k of the `examples` (text, label) are drawn anew and written one after the other with the template,
    parted by an empty line (Brown et al. 2020, section 2.4); k = 0 is zero-shot. Raises ValueError for a template
    without {text} before a final {label}, for more examples than there are, and what `classify` refuses.
    """
    if not template.endswith("{label}") or "{text}" not in template:
        raise ValueError(f"The template must hold {{text}} and end with {{label}}, but it is {template!r}.")
    if not 0 <= k <= len(examples):
        raise ValueError(f"k is {k}, but there are {len(examples)} examples: choose 0 to {len(examples)}.")
    ask, prompts = template.removesuffix("{label}"), []
    for i, text in enumerate(texts):
        chosen = np.random.default_rng((seed, i)).choice(len(examples), k, replace=False) if k else []
        shown = [template.format(text=examples[j][0], label=examples[j][1]) for j in chosen]
        prompts.append("\n\n".join([*shown, ask.format(text=text)]))
    return classify(model, tokenizer, prompts, labels, normalise)


def naive_bayes(examples: Sequence[tuple[str, str]], texts: Sequence[str]) -> list[str]:
    """Label texts by their words alone, in any order: the baseline that a language model should beat.

    The label with the highest of `word_scores`. Raises ValueError if there are no examples.
    """
    labels, scores = word_scores(examples, texts)
    return [labels[i] for i in scores.argmax(1)]


def word_scores(examples: Sequence[tuple[str, str]], texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Return the labels of the examples (text, label), and the score of each text for each of them, (texts, labels).

    Naive Bayes with one added to each count (Manning et al. 2008, section 13.2): a label's score is the logarithm of
    its share of the examples, and of the share that each word of the text has of its words. Words that no example has
    are left out. Raises ValueError if there are no examples.
    """
    if not examples:
        raise ValueError("Without examples no words are known: give some pairs (text, label).")
    counts: dict[str, Counter] = {}
    for text, label in examples:
        counts.setdefault(label, Counter()).update(_words(text))
    labels, vocabulary = list(counts), sorted(set().union(*counts.values()))
    table = np.array([[counts[label][word] for word in vocabulary] for label in labels]) + 1.0
    share = np.log(table / table.sum(1, keepdims=True))  # (labels, words)
    priors = np.log([sum(label == other for _, other in examples) / len(examples) for label in labels])
    place = {word: i for i, word in enumerate(vocabulary)}
    known = [[place[word] for word in _words(text) if word in place] for text in texts]
    return labels, np.array([priors + share[:, row].sum(1) for row in known])


def _words(text):
    return re.findall(r"[\w']+", text.lower())


# ---- How good, and how sure one can be of it


class ClassificationReport(NamedTuple):
    """Predicted labels against true ones. `confusion` (labels, labels): rows are the truth, columns the predictions."""

    accuracy: float
    macro_f1: float
    confusion: np.ndarray


def classification_report(
    truth: Sequence[str], predicted: Sequence[str], labels: Sequence[str]
) -> ClassificationReport:
    """Count right and wrong labels, over examples and not over batches.

    The F1 of a label is 2 TP / (2 TP + FP + FN), from its true positives, false positives and false negatives, and 0 if
    it is neither there nor predicted; macro-F1 is the plain mean over labels, so that rare ones count as much as
    frequent ones. Raises ValueError for numbers that differ, for none, and for a label that is not in `labels`.
    """
    if len(truth) != len(predicted) or not len(truth):
        raise ValueError(f"There are {len(truth)} true labels and {len(predicted)} predicted ones: give one for each.")
    place = {label: i for i, label in enumerate(labels)}
    if unknown := {*truth, *predicted} - place.keys():
        raise ValueError(f"{sorted(unknown)} are not among the labels {list(labels)}: list every label once.")
    confusion = np.zeros((len(place), len(place)), dtype=int)
    np.add.at(confusion, ([place[label] for label in truth], [place[label] for label in predicted]), 1)
    right = confusion.diagonal()
    f1 = 2 * right / np.maximum(confusion.sum(0) + confusion.sum(1), 1)
    return ClassificationReport(right.sum() / len(truth), f1.mean().item(), confusion)


def bootstrap_interval(
    values: Sequence[float], level: float = 0.95, n: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Return between which values the mean of `values` lies, at a level of confidence (Efron 1979, the percentile way).

    The values, one for each example, are drawn again with replacement, as many as there are, n times; the interval
    holds the middle of the n means. To compare two models on the same examples, give the differences of their values:
    what makes an example hard for both cancels out. Raises ValueError for fewer than two values.
    """
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        raise ValueError(f"An interval needs the values of two or more examples, not {len(values)}.")
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(n)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return low.item(), high.item()


def calibration_error(confidence: Sequence[float], correct: Sequence[bool], n_bins: int = 10) -> float:
    """Return how far confidence and accuracy lie apart, on average: 0 if of the 70 % sure answers 70 % are right.

    The answers are sorted into bins of equal width by their confidence; the gaps between the mean confidence and the
    accuracy of each are averaged by how many fall into it (Guo et al. 2017, section 2). Raises ValueError for numbers
    that differ, for none, and for confidences that are no probabilities.
    """
    confidence, correct = np.asarray(confidence, dtype=float), np.asarray(correct, dtype=float)
    if len(confidence) != len(correct) or not len(correct):
        raise ValueError(f"There are {len(confidence)} confidences and {len(correct)} answers: give one for each.")
    if confidence.min() < 0 or confidence.max() > 1:
        raise ValueError("A confidence is a probability, from 0 to 1: take the softmax of scores first.")
    bins = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    gaps = [abs((confidence - correct)[bins == i].sum()) for i in range(n_bins)]
    return sum(gaps).item() / len(correct)


class Measurement(NamedTuple):
    """A number for a model card: what was measured on how many examples of what, with an interval of confidence."""

    name: str
    value: float
    low: float
    high: float
    n: int
    data: str


def measured(name: str, values: Sequence[float], data: str) -> Measurement:
    """Return the mean of the values of single examples, with its 95 % bootstrap interval, as a Measurement.

    Raises ValueError like `bootstrap_interval`.
    """
    return Measurement(name, float(np.mean(values)), *bootstrap_interval(values), len(values), data)


def model_card(
    name: str,
    *,
    description: str,
    intended_use: str,
    not_intended: str,
    training_data: str,
    measurements: Sequence[Measurement],
    limits: Sequence[str],
) -> str:
    """Write a model card in Markdown, in the order of Mitchell et al. (2019): no number without its n and interval.

    Raises ValueError if a part is empty or nothing was measured: a card that leaves something out misleads.
    """
    parts = {
        "name": name,
        "description": description,
        "intended_use": intended_use,
        "not_intended": not_intended,
        "training_data": training_data,
        "measurements": measurements,
        "limits": limits,
    }
    if empty := [part for part, content in parts.items() if not content]:
        raise ValueError(f"The card has nothing under {', '.join(empty)}: say it, or say that it is not known.")
    head = "| measured | value | 95 % interval | examples | data |\n| --- | ---: | ---: | ---: | --- |\n"
    rows = "\n".join(
        f"| {m.name} | {m.value:.3g} | {m.low:.3g} to {m.high:.3g} | {m.n} | {m.data} |" for m in measurements
    )
    return (
        f"# {name}\n\n{description}\n\n## Intended use\n\n{intended_use}\n\n**Not for:** {not_intended}\n\n"
        f"## Training data\n\n{training_data}\n\n## Measured\n\n{head}{rows}\n\n## Limits\n\n"
        + "\n".join(f"* {limit}" for limit in limits)
        + "\n"
    )


# ---- Replies, judged by the grammar


class ReplyReport(NamedTuple):
    """Shares from 0 to 1 over many replies; `slots` counts the values in the messages, all else the replies.

    intents: the reply answers what was asked. slots: the customer's order number, name, … stands in the reply, exact.
    allowed: the grammar can give this very reply to the message. loops: the reply says the same four words twice.
    distinct_2: how many of all pairs of neighbouring words are different ones.
    """

    intents: float
    slots: float
    allowed: float
    loops: float
    distinct_2: float


def reply_report(dialogues: Sequence[Dialogue], replies: Sequence[str]) -> ReplyReport:
    """Judge a model's replies to the messages of dialogues from the course's grammar.

    Raises ValueError if their numbers differ, or there are none.
    """
    if len(dialogues) != len(replies) or not replies:
        raise ValueError(f"There are {len(dialogues)} dialogues and {len(replies)} replies: give one reply to each.")
    readings = [parse_reply(reply) or (None, {}) for reply in replies]
    intents = [intent == d.intent for d, (intent, _) in zip(dialogues, readings, strict=True)]
    allowed = [reading == (d.intent, d.slots) for d, reading in zip(dialogues, readings, strict=True)]
    copied = [_holds(reply, value) for d, reply in zip(dialogues, replies, strict=True) for value in d.slots.values()]
    looping = [distinct_n([reply], 4) < 1 for reply in replies]
    return ReplyReport(*map(_share, (intents, copied, allowed, looping)), distinct_n(replies, 2))


def _holds(text, value):
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text) is not None


def _share(judgements):
    return sum(judgements) / len(judgements) if judgements else 1.0


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Return how many of all runs of n words are different, a share (Li et al. 2016); 1 if there are none."""
    runs = [run for text in texts for run in _runs(text.split(), n)]
    return len(set(runs)) / len(runs) if runs else 1.0
