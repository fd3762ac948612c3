"""The exercises of notebook 01: counting, the loss, the training loop and byte-pair encoding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial, reduce
from itertools import pairwise
from math import log, log2

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn, randint, randn

from gptcourse.exercises.exercise import Exercise, as_it_stands, mistake
from gptcourse.ngrams import NGrams

NOTEBOOK = "01 · A first language model"
NOT_AS_MANY = "The targets should be as many as the inputs: one answer for each question."
MIXED_UP = """Your rows and columns are mixed up: the vocabulary should be its own dimension, and a reshape does not
    move it there. What does one row of the logits hold?"""
IN_A_STRING = """In one string with spaces between the symbols, the end of a longer symbol looks like the left half of
    the pair. Compare whole symbols."""
TEXT = "the king loves the queen and the queen loves the king and there they sing of the thing that the king knows"


def guesses(*sizes: tuple) -> list[tuple[Tensor, Tensor]]:
    """Logits (B, T, V) with a spread, and tokens (B, T)."""
    return [((spread * randn(B, T, V)).requires_grad_(), randint(V, (B, T))) for B, T, V, spread in sizes]


def pairs_of(before: Tensor, after: Tensor, vocab_size: int) -> Tensor:
    return torch.bincount(before * vocab_size + after, minlength=vocab_size**2).view(vocab_size, vocab_size)


def surprises(train_ids, held_out_ids, vocab_size: int, n: int) -> np.ndarray:
    """Return minus the log-probability of each held-out token, by an n-gram table of the training text."""
    table = NGrams(train_ids, vocab_size, n)
    given = [table.next_token_distribution(held_out_ids[:i])[token] for i, token in enumerate(held_out_ids)]
    return -np.log(given)


def run(order: str, table: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterable) -> Tensor:
    """Train on each batch, doing "clear", "backward" and "step" in the order given; return the losses."""
    losses = []
    for ids, targets in batches:
        loss = F.cross_entropy(table(ids).mT, targets)
        actions = {"clear": optimizer.zero_grad, "backward": loss.backward, "step": optimizer.step}
        for word in order.split():
            actions[word]()
        losses.append(loss.detach())
    return torch.stack(losses)


def pair_counts(words: list[list[str]], times: list[int]) -> Counter:
    counts = Counter()
    for symbols, count in zip(words, times, strict=True):
        for pair in pairwise(symbols):
            counts[pair] += count
    return counts


def joined(symbols: list[str], pair: tuple[str, str], most: int | None = None) -> tuple[str, ...]:
    """Join the neighbours `pair` from left to right, `most` times at most."""
    done: list[str] = []
    place = merged = 0
    while place < len(symbols):
        joins = tuple(symbols[place : place + 2]) == pair and (most is None or merged < most)
        done.append("".join(symbols[place : place + 1 + joins]))
        place, merged = place + 1 + joins, merged + joins
    return tuple(done)


def joined_in_a_string(symbols: list[str], pair: tuple[str, str]) -> tuple[str, ...]:
    """Join the pair in one string with spaces, where the end of a longer symbol looks like its left half."""
    return tuple(" ".join(symbols).replace(" ".join(pair), "".join(pair)).split())


def learned(words: list[str], n_merges: int, join: Callable = joined) -> tuple[str, ...]:
    """Return the tokens that byte-pair encoding makes, in order."""
    known = Counter(words)
    parts, times, tokens = [tuple(word) for word in known], list(known.values()), []
    for _ in range(n_merges):
        pair = pair_counts(parts, times).most_common(1)[0][0]
        parts = [join(symbols, pair) for symbols in parts]
        tokens.append("".join(pair))
    return tuple(tokens)


def encoded(word: str, merges: Iterable[tuple[str, str]], join: Callable = joined) -> tuple[str, ...]:
    """Cut a word into characters, and apply the merges in the order given."""
    return reduce(join, merges, tuple(word))


def by_longest_match(word: str, merges: list[tuple[str, str]]) -> tuple[str, ...]:
    """Cut a word from left to right, each time behind the longest token that fits."""
    tokens, done = {"".join(pair) for pair in merges}, []
    while word:
        end = next(end for end in range(len(word), 0, -1) if word[:end] in tokens or end == 1)
        done.append(word[:end])
        word = word[end:]
    return tuple(done)


class FirstLoss(Exercise, name="first_model.first_loss", minutes=2):
    """Return the loss in nats of a model that gives every token the same probability."""

    hint = "Which probability does each token get, and what is the loss of a token with that probability?"

    def inputs():
        return [(50257,), (65,), (2,)]

    def reference(vocab_size):
        return log(vocab_size)

    in_bits = mistake("That is in bits. Nats use the natural logarithm.")(lambda V: log2(V))
    probability = mistake("That is the probability of each token. What loss does it give?")(lambda V: 1 / V)
    negative = mistake("The sign: a loss should be positive.")(lambda V: -log(V))
    averaged = mistake("You average over the vocabulary. Only the right token counts.")(lambda V: log(V) / V)


class CountPairs(Exercise, name="first_model.count_pairs", minutes=5):
    """Count in a table, row a and column b, how often token b follows token a."""

    hint = "Go through the text token by token. Which row and which column does each pair of neighbours belong to?"

    def inputs():
        return [(torch.tensor([0, 1, 2, 0, 3]), 4), (randint(5, (40,)), 5), (randint(3, (60,)), 7)]

    def reference(ids, vocab_size):
        return pairs_of(ids[:-1], ids[1:], vocab_size)

    transposed = mistake("""Rows and columns are exchanged: the row is the token that comes
        first.""")(lambda ids, V: pairs_of(ids[1:], ids[:-1], V))
    at_most_once = mistake("""Every pair that occurs has a 1, however often it occurs. When one place of a tensor is
        named several times in one addition, how often is it added to?""")(
        lambda ids, V: pairs_of(ids[:-1], ids[1:], V).clamp(max=1)
    )
    round_the_end = mistake("""One pair too many: the last token of the text is followed by nothing, and you let it be
        followed by the first.""")(lambda ids, V: pairs_of(ids, ids.roll(-1), V))
    every_second = mistake("""You count every second pair only. The pairs overlap: a token is the end of one and the
        beginning of the next.""")(lambda ids, V: pairs_of(ids[:-1:2], ids[1::2], V))
    over_one = mistake("You leave a token out between the two.")(lambda ids, V: pairs_of(ids[:-2], ids[2:], V))


class BigramProbabilities(Exercise, name="first_model.bigram_probabilities", minutes=5):
    """Turn counts into probabilities: each row adds up to one, and a row without a count is uniform."""

    hint = "Take one row by itself: how often did something follow this token, and which share has each column?"

    def inputs():
        return [
            (torch.tensor([[0, 2, 1], [3, 0, 0], [0, 0, 0]]),),
            (randint(9, (5, 5)),),
            (randint(2, (8, 8)) * torch.tensor([1, 1, 0, 1, 1, 1, 0, 1])[:, None],),
        ]

    def reference(counts):
        followers = counts.sum(1, keepdim=True)
        return torch.where(followers > 0, counts / followers.clamp(min=1), 1 / len(counts))

    @mistake("""Each column is divided by a sum that belongs to a row: without the dimension that was summed over,
        the sums line up with the columns.""")
    def sums_along_the_columns(counts):
        followers = counts.sum(1)
        return torch.where(followers > 0, counts / followers.clamp(min=1), 1 / len(counts))

    @mistake("""Your columns add up to one: that says which token came before. Which one comes next?""")
    def of_columns(counts):
        before = counts.sum(0, keepdim=True)
        return torch.where(before > 0, counts / before.clamp(min=1), 1 / len(counts))

    nothing_by_nothing = mistake("""A row without a count gives 0 / 0. What should a model say after a token that
        nothing ever followed?""")(lambda counts: counts / counts.sum(1, keepdim=True))
    zeros = mistake("""A row without a count stays all zero, and zeros are no distribution. What does a model say that
        knows nothing?""")(lambda counts: counts / counts.sum(1, keepdim=True).clamp(min=1))
    of_everything = mistake("""You divide by the number of all pairs. How likely is the next token, given that the first
        of the pair has been read?""")(lambda counts: counts / counts.sum())
    plus_one = mistake("""You add one to every count. That smooths, but here the plain shares are
        asked for.""")(lambda counts: (counts + 1) / (counts + 1).sum(1, keepdim=True))


class WittenBell(Exercise, name="first_model.witten_bell", minutes=8):
    """Mix the counts after one context with the probabilities of the shorter context, as Witten and Bell do."""

    hint = "How many tokens followed, of how many kinds? Then take one token of the vocabulary and put its numbers in."

    def inputs():
        return [
            (torch.tensor([0, 2, 1]), torch.tensor([0.5, 0.25, 0.25])),
            (torch.tensor([3, 0, 0, 0]), torch.tensor([0.1, 0.2, 0.3, 0.4])),
            (torch.zeros(5, dtype=torch.int64), randn(5).softmax(-1)),
            (randint(4, (12,)), randn(12).softmax(-1)),
        ]

    def reference(times, shorter):
        followers, kinds = times.sum(), (times > 0).sum()
        return shorter.clone() if followers == 0 else (times + kinds * shorter) / (followers + kinds)

    @mistake("""Your probabilities add up to more than one: what is added above the line has to be added below it,
        too.""")
    def too_much(times, shorter):
        followers, kinds = times.sum(), (times > 0).sum()
        return shorter.clone() if followers == 0 else (times + kinds * shorter) / followers

    nothing_by_nothing = mistake("""Right for every context that was seen. One that was never seen gives 0 / 0: what
        should stand in for it?""")(lambda t, s: (t + (t > 0).sum() * s) / (t.sum() + (t > 0).sum()))

    @mistake("""The shorter context only speaks for tokens that were never seen here, and the sum is not one. It should
        have its share in every token.""")
    def for_the_unseen(times, shorter):
        return torch.where(times > 0, times / times.sum().clamp(min=1), shorter)

    @mistake("""You count followers where the number of different ones is asked for: the same token twice is one
        kind.""")
    def all_are_kinds(times, shorter):
        return shorter.clone() if times.sum() == 0 else (times + times.sum() * shorter) / (2 * times.sum())

    alone = mistake("""The shorter context is not used: a token that was never seen here still has probability
        0.""")(lambda times, shorter: times / times.sum().clamp(min=1))

    @mistake("""Right for every context that was seen. One that was never seen knows nothing of its own, but you are
        given something that knows more than nothing.""")
    def all_alike_when_unseen(times, shorter):
        followers, kinds = times.sum(), (times > 0).sum()
        return torch.where(followers > 0, (times + kinds * shorter) / (followers + kinds), 1 / len(times))

    @mistake("""You borrow from the whole vocabulary, as if every token were one kind. How many kinds followed this
        context?""")
    def kinds_of_the_vocabulary(times, shorter):
        return (times + len(times) * shorter) / (times.sum() + len(times))


class NgramLoss(Exercise, name="first_model.ngram_loss", minutes=25):
    """Return the mean held-out loss in nats of an n-gram table with Witten and Bell's interpolation."""

    hint = """Take a text of two tokens. Which contexts are counted, and which asked, for each of them, from none at all
        to the longest, and which distribution is the very first, before anything is counted?"""

    def inputs():
        text = [randint(6, (120,)).tolist() for _ in range(2)]
        longer = (torch.arange(150) % 7 * randint(2, (150,))).tolist()
        return [
            ([0, 1, 2, 0, 1, 3], [0, 1, 1], 4, 2),
            ([0, 1, 1, 0, 1], [1, 0], 3, 1),
            (*text, 6, 2),
            (longer, longer[5:45], 8, 3),
        ]

    def reference(train_ids, held_out_ids, vocab_size, n):
        return NGrams(train_ids, vocab_size, n).losses(held_out_ids)[-1]

    in_bits = mistake("That is in bits. Nats use the natural logarithm.")(
        lambda train, held, V, n: surprises(train, held, V, n).mean().item() / log(2)
    )
    summed = mistake("That is the sum. The mean does not grow with the text.")(
        lambda train, held, V, n: surprises(train, held, V, n).sum().item()
    )
    on_the_training_text = mistake("""You measure on the text that was counted. Held-out text is
        asked for.""")(lambda train, held, V, n: surprises(train, train, V, n).mean().item())
    one_too_long = mistake("""Your pieces are one token too long: an n-gram is a token together with the n - 1 before
        it.""")(lambda train, held, V, n: surprises(train, held, V, n + 1).mean().item())
    one_too_short = mistake("""You stop one context too early: the longest has
        n - 1 tokens.""")(lambda train, held, V, n: surprises(train, held, V, max(n - 1, 1)).mean().item())
    from_the_middle = mistake("""You leave out the first tokens. They have fewer tokens before them, but they can be
        judged by shorter contexts.""")(lambda train, held, V, n: surprises(train, held, V, n)[n - 1 :].mean().item())


class Shift(Exercise, name="first_model.shift", minutes=2):
    """Cut pieces of tokens into inputs and targets: each target is the token that follows."""

    hint = "For a piece 1 2 3 4 the model reads 1 2 3, and what should it answer at each place?"

    def inputs():
        return [(torch.tensor([[1, 2, 3, 4]]),), (torch.arange(12).view(2, 6),), (randint(65, (4, 9)),)]

    def reference(tokens):
        return tokens[:, :-1], tokens[:, 1:]

    shortened_only = mistake("""At each place the answer is what the model has just read:
        it would learn to copy.""")(lambda tokens: (tokens[:, :-1], tokens[:, :-1]))
    backwards = mistake("""Your model reads a token and answers with the one before it.
        Time runs the other way.""")(lambda tokens: (tokens[:, 1:], tokens[:, :-1]))
    rolled = mistake("""Your last target is the first token of the window, come round from the front. A window of T + 1
        tokens holds T questions, not T + 1.""")(lambda tokens: (tokens, tokens.roll(-1, dims=1)))
    along_the_batch = mistake("""You cut along the batch:
        whole texts are dropped. Which dimension is time?""")(lambda tokens: (tokens[:-1], tokens[1:]))
    last_token_alone = mistake(NOT_AS_MANY)(lambda tokens: (tokens[:, :-1], tokens[:, -1]))
    all_inputs = mistake(NOT_AS_MANY)(lambda tokens: (tokens, tokens[:, 1:]))


class Loss(Exercise, name="first_model.loss", minutes=6):
    """Return the mean of minus the log-probability of the right tokens, from logits."""

    hint = "At each place one number counts: the log-probability of the right token. All places count the same."

    def inputs():
        return guesses((1, 1, 3, 1), (2, 3, 5, 1), (3, 4, 6, 200))

    def reference(logits, targets):
        return F.cross_entropy(logits.mT, targets)

    through_probabilities = mistake("""Right for small logits. With large ones a probability becomes exactly 0, and its
        logarithm minus infinity. Is there a way to the log-probability that never goes
        through the probability?""")(lambda x, y: -x.softmax(-1).gather(-1, y[..., None]).log().mean())
    of_probabilities = mistake("""The function that you feed takes logits, and you give it probabilities: the softmax
        happens twice.""")(lambda x, y: F.cross_entropy(x.softmax(-1).mT, y))
    summed = mistake("""That is the sum over all places.
        The mean does not grow with the batch.""")(lambda x, y: F.cross_entropy(x.mT, y, reduction="sum"))
    negative = mistake("The sign: a loss should be positive.")(lambda x, y: -F.cross_entropy(x.mT, y))
    per_text = mistake("""You divide by the number of texts. Every place in every text has a loss
        of its own.""")(lambda x, y: F.cross_entropy(x.mT, y, reduction="sum") / len(y))
    in_bits = mistake("That is the loss in bits. Nats are asked for.")(lambda x, y: F.cross_entropy(x.mT, y) / log(2))
    of_each_place = mistake("""These are the losses of all places, and they are right.
        One number was asked for.""")(lambda x, y: F.cross_entropy(x.mT, y, reduction="none"))
    reshaped = mistake(MIXED_UP)(lambda x, y: F.cross_entropy(x.reshape(len(x), x.shape[2], x.shape[1]), y))
    as_they_are = mistake(MIXED_UP)(lambda x, y: F.cross_entropy(x, y))
    over_time = mistake("""Your probabilities add up to one along the wrong dimension: the tokens of the vocabulary
        compete.""")(lambda x, y: -x.log_softmax(1).gather(-1, y[..., None]).mean())


class MendSure(Exercise, name="first_model.mend_sure", minutes=4):
    """Mend the loss so that a model that is sure and right gets almost zero."""

    hint = "Read in torch's documentation what the loss function expects as its first input."

    def inputs():
        return guesses((2, 3, 5, 1), (3, 4, 6, 20))

    def reference(logits, targets):
        return F.cross_entropy(logits.mT, targets)

    of_probabilities = as_it_stands("""The mistake is still there: however sure and right a model is, its loss stays far
        above zero. What does the loss function do with its first input before it looks
        at the targets?""")(lambda x, y: F.cross_entropy(x.softmax(-1).mT, y))
    without_logarithm = mistake("""Now no logarithm is taken anywhere, and the loss is negative. What does this loss
        function expect?""")(lambda x, y: F.nll_loss(x.softmax(-1).mT, y))
    without_softmax = mistake("""Now there is no softmax anywhere:
        this loss function expects log-probabilities.""")(lambda x, y: F.nll_loss(x.mT, y))
    of_sigmoids = mistake("""A sigmoid squeezes the logits just as the softmax did. Does anything have to be squeezed
        here?""")(lambda x, y: F.cross_entropy(x.sigmoid().mT, y))


class MendParrot(Exercise, name="first_model.mend_parrot", minutes=4):
    """Mend the loss so that each guess is held against the token that comes next."""

    hint = "The guess made at place t belongs to the token at place t + 1 of the same text."

    def inputs():
        return guesses((2, 5, 7, 1), (3, 4, 9, 3))

    def reference(logits, tokens):
        return F.cross_entropy(logits[:, :-1].mT, tokens[:, 1:])

    not_shifted = as_it_stands("""The mistake is still there: a model that answers with the very token it has just read
        gets the best loss. What does the loss hold each guess against?""")(lambda x, y: F.cross_entropy(x.mT, y))
    backwards = mistake("""Shifted, but the wrong way:
        each guess is held against the token before.""")(lambda x, y: F.cross_entropy(x[:, 1:].mT, y[:, :-1]))
    rolled = mistake("""Your last guess is held against the first token of the same text. Nobody knows its answer: leave
        it out.""")(lambda x, y: F.cross_entropy(x.mT, y.roll(-1, 1)))
    across_texts = mistake("""You shift after joining the texts, so the last guess of one meets the first token of the
        next. Shift each text on its own.""")(lambda x, y: F.cross_entropy(x.flatten(0, 1)[:-1], y.flatten()[1:]))
    along_the_batch = mistake("""You shift along the batch:
        guesses about one text meet the tokens of another.""")(lambda x, y: F.cross_entropy(x[:-1].mT, y[1:]))


class Train(Exercise, name="first_model.train", minutes=10):
    """Train a table of logits: one step of the optimizer for each batch, and one loss."""

    hint = "Follow the first batch by hand: logits, loss, gradients, step. What has to be cleared, and when?"
    trains = ("table", "optimizer")

    def inputs():
        cases = []
        for V, rate, sizes in (
            (4, 0.5, [(2, 3)] * 3),
            (6, 0.1, [(4, 8)] * 6),
            (5, 1.0, [(3, 5), (1, 7), (2, 2), (6, 4)]),
        ):
            table = nn.Embedding(V, V)
            batches = [(randint(V, size), randint(V, size)) for size in sizes]
            cases.append((table, torch.optim.SGD(table.parameters(), lr=rate), batches))
        return cases

    reference = partial(run, "clear backward step")
    never_cleared = mistake("""Your steps follow more than the loss at hand: what earlier batches left in the gradients
        is still there.""")(partial(run, "backward step"))
    without_backward = mistake("""Nothing is learned from one batch to the next: the table never changes. Does the
        optimizer take its step, and what does it find in the table at that moment?""")(partial(run, "clear step"))
    step_first = mistake("""Each step follows the gradients of the batch before. In which order should the three
        happen?""")(partial(run, "step clear backward"))

    @mistake("One loss came back: that of the last batch. Keep the loss of every one.")
    def the_last_alone(table, optimizer, batches):
        return run("clear backward step", table, optimizer, batches)[-1]


class MostFrequentPair(Exercise, name="first_model.most_frequent_pair", minutes=5):
    """Return the pair of neighbouring symbols that occurs most often; each word counts as often as it occurs."""

    hint = "Write down every pair of neighbours of every word, with how often its word occurs, and add up."

    def inputs():
        return [
            ([["a", "b"], ["b", "c"]], [1, 2]),
            ([list("then"), list("then"), list("oh"), list("other")], [1, 3, 9, 2]),
            ([["th", "e"], ["th", "e", "re"], ["s", "he"], ["h", "e"]], [2, 3, 1, 4]),
            ([list("banana"), list("ran"), list("bat")], [1, 2, 4]),
            ([["a"], list("ab"), list("ac")], [5, 3, 1]),
        ]

    def reference(words, times):
        return pair_counts(words, times).most_common(1)[0][0]

    each_word_once = mistake("""Every different word counts once in your table. A frequent word should have more
        say.""")(lambda words, times: pair_counts(words, [1] * len(words)).most_common(1)[0][0])

    @mistake("Your pairs run from the end of one word into the next. Each word is cut by itself.")
    def across_words(words, times):
        text = [symbol for word, count in zip(words, times, strict=True) for symbol in word * count]
        return pair_counts([text], [1]).most_common(1)[0][0]

    rarest = mistake("That is the pair that occurs least often.")(
        lambda words, times: pair_counts(words, times).most_common()[-1][0]
    )
    turned = mistake("The two symbols are in the wrong order: the left one comes first.")(
        lambda words, times: pair_counts(words, times).most_common(1)[0][0][::-1]
    )


class Merge(Exercise, name="first_model.merge", minutes=8):
    """Join the pair wherever it stands in the list of symbols, from left to right; return a new list."""

    hint = "Walk from left to right. What do you write down, and how far do you go on, when the pair stands there?"

    def inputs():
        return [
            (list("the"), ("t", "h")),
            (list("banana"), ("a", "n")),
            (["a"] * 5, ("a", "a")),
            (["th", "e", "re", "th", "e"], ("th", "e")),
            (["e", "h", "he", "th", "e", "h", "e"], ("h", "e")),
        ]

    def reference(symbols, pair):
        return joined(symbols, pair)

    first_only = mistake("The first one is joined. The pair may stand in several places.")(partial(joined, most=1))

    @mistake("You write the joined pair and then its right half again: how far must you go on after a match?")
    def right_half_twice(symbols, pair):
        places = range(len(symbols))
        return tuple("".join(pair) if tuple(symbols[i : i + 2]) == pair else symbols[i] for i in places)

    @mistake("You join the two in the other order as well. First h, then e is not first e, then h.")
    def in_any_order(symbols, pair):
        done = []
        for symbol in symbols:
            if done and {done[-1], symbol} == set(pair):
                done[-1] += symbol
            else:
                done.append(symbol)
        return tuple(done)

    @mistake("""You join and cut again as one string, so the symbols that were joined before fall apart. Keep the list a
        list.""")
    def through_a_string(symbols, pair):
        return joined(list("".join(symbols)), pair)

    in_a_string = mistake(IN_A_STRING)(joined_in_a_string)

    @mistake("What is joined is joined again at once: a symbol made just now should wait for the next round.")
    def greedy(symbols, pair):
        done = []
        for symbol in symbols:
            if done and done[-1].endswith(pair[0]) and symbol == pair[1]:
                done[-1] += symbol
            else:
                done.append(symbol)
        return tuple(done)


class TrainBPE(Exercise, name="first_model.train_bpe", minutes=20):
    """Learn byte-pair encoding: return the new tokens in the order in which they are made."""

    hint = """Do the first round with a pencil: count all pairs, join the most frequent one in every word, and only then
        count again."""

    def inputs():
        ten = ["the", "the", "the", "king", "queen", "green", "her", "there", "there", "there"]
        banana, that = ["banana", "ban", "ban", "an"], ["tha"] * 5 + ["he"] * 4 + ["the", "on", "the"]
        return [(ten, 5), (TEXT.split(), 2), (banana, 2), (that, 4)]

    def reference(words, n_merges):
        return learned(words, n_merges)

    each_word_once = mistake("""A word that occurs three times should count three times; yours counts
        once.""")(lambda words, n: learned(list(dict.fromkeys(words)), n))

    @mistake(
        "You counted once, at the start, and took the most frequent pairs of letters. What a merge changes is missing."
    )
    def counted_once(words, n_merges):
        known = Counter(words)
        counts = pair_counts([list(word) for word in known], list(known.values()))
        return tuple("".join(pair) for pair, _ in counts.most_common(n_merges))

    across_words = mistake("""Your words are one long row of letters, and pairs reach from one word into the next. Each
        word is cut by itself.""")(lambda words, n: learned(["".join(words)], n))
    in_a_string = mistake(IN_A_STRING)(lambda words, n: learned(words, n, joined_in_a_string))
    one_too_many = mistake("You make one token too many.")(lambda words, n: learned(words, n + 1))
    the_last_alone = mistake("That is the last token alone. Keep all, in order.")(
        lambda words, n: learned(words, n)[-1]
    )


class Encode(Exercise, name="first_model.encode", minutes=8):
    """Cut a word into characters, and apply the learned merges in the order in which they were learned."""

    hint = "Write the word as single characters. Which merge has the first turn, and what does the next one find?"

    def inputs():
        ten = [("h", "e"), ("t", "he"), ("r", "e"), ("the", "re"), ("e", "n")]
        return [
            ("then", [("e", "n"), ("t", "h"), ("th", "e")]),
            ("thehe", [("h", "e"), ("t", "he"), ("t", "h")]),
            ("banana", [("a", "n"), ("n", "a"), ("an", "an"), ("b", "anan")]),
            ("atherenthe", ten),
            ("aaaaaab", [("a", "a"), ("a", "b"), ("aa", "aa")]),
        ]

    def reference(word, merges):
        return encoded(word, merges)

    longest_match = mistake("""You take the longest token that fits. Two tokens may want the same character: which of
        the two was learned first?""")(by_longest_match)
    newest_first = mistake("""You begin with the merge that was learned last. It joins symbols that do not exist before
        the earlier ones have made them.""")(lambda word, merges: encoded(word, merges[::-1]))
    first_place_alone = mistake("""Each merge is applied in one place. Its pair may stand in
        several.""")(lambda word, merges: encoded(word, merges, partial(joined, most=1)))
    letters_alone = mistake("""You join single characters alone. What a merge has made can be joined again by a later
        one.""")(lambda word, merges: encoded(word, [pair for pair in merges if len("".join(pair)) == 2]))
    in_a_string = mistake(IN_A_STRING)(lambda word, merges: encoded(word, merges, joined_in_a_string))

    @mistake("""You walk through the word and join whatever can be joined. Who comes first is not the character on the
        left: it is the merge that was learned first.""")
    def as_it_comes(word, merges):
        done = []
        for symbol in word:
            done.append(symbol)
            while tuple(done[-2:]) in merges:
                done[-2:] = ["".join(done[-2:])]
        return tuple(done)
