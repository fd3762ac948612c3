"""Wrong answers to the exercises of notebook 01."""

import itertools
import math
from collections import Counter

import torch
import torch.nn.functional as F

from gptcourse.ngrams import NGrams
from wrong_answers import wrong


@wrong("first_model.count_pairs", "how often is it added to")
def pairs_by_indexing(ids, vocab_size):
    counts = torch.zeros(vocab_size, vocab_size, dtype=torch.int64)
    counts[ids[:-1], ids[1:]] += 1
    return counts


@wrong("first_model.count_pairs", "Rows and columns are exchanged")
def pairs_transposed(ids, vocab_size):
    counts = torch.zeros(vocab_size, vocab_size, dtype=torch.int64)
    for before, after in zip(ids[:-1].tolist(), ids[1:].tolist(), strict=True):
        counts[after, before] += 1
    return counts


@wrong("first_model.bigram_probabilities", "divided by a sum that belongs to a row")
def probabilities_without_keepdim(counts):
    shares = counts / counts.sum(dim=1)
    shares[:, counts.sum(dim=1) == 0] = 1 / len(counts)
    rows = counts.sum(dim=1) == 0
    return (
        torch.where(counts.sum(dim=1) > 0, shares, torch.full_like(shares, 1 / len(counts))) if rows.any() else shares
    )


@wrong("first_model.bigram_probabilities", "gives 0 / 0")
def probabilities_with_nan(counts):
    return counts / counts.sum(dim=1)[:, None]


@wrong("first_model.witten_bell", "add up to more than one")
def witten_bell_without_its_denominator(times, shorter):
    if times.sum() == 0:
        return shorter
    return times / times.sum() + (times > 0).sum() / times.sum() * shorter


@wrong("first_model.witten_bell", "gives 0 / 0")
def witten_bell_of_nothing(times, shorter):
    n, kinds = times.sum(), times.bool().sum()
    weight = kinds / (n + kinds)
    return (1 - weight) * times / n + weight * shorter


@wrong("first_model.witten_bell", "knows more than nothing")
def witten_bell_uniform_for_the_unknown(times, shorter):
    seen, kinds = times.sum(), (times > 0).sum()
    return (times + kinds * shorter) / (seen + kinds) if seen else torch.ones(len(times)) / len(times)


def python_losses(train_ids, held_out_ids, vocab_size, n, first=0):
    """Return the loss of each held-out token by an interpolated table made of Python dicts."""
    tables = [{} for _ in range(n)]
    for end in range(1, len(train_ids) + 1):
        for order in range(min(n, end)):
            context = tuple(train_ids[end - 1 - order : end - 1])
            tables[order].setdefault(context, Counter())[train_ids[end - 1]] += 1
    losses = []
    for place, token in enumerate(held_out_ids):
        p = 1 / vocab_size
        for order in range(first, min(n, place + 1)):
            seen = tables[order].get(tuple(held_out_ids[place - order : place]))
            if seen:
                p = (seen[token] + len(seen) * p) / (sum(seen.values()) + len(seen))
        losses.append(-math.log(p))
    return losses


def right_ngram_loss(train_ids, held_out_ids, vocab_size, n):
    losses = python_losses(train_ids, held_out_ids, vocab_size, n)
    return sum(losses) / len(losses)


@wrong("first_model.ngram_loss", "That is the sum")
def ngram_loss_summed(train_ids, held_out_ids, vocab_size, n):
    return sum(python_losses(train_ids, held_out_ids, vocab_size, n))


@wrong("first_model.ngram_loss", "one token too long")
def ngram_loss_one_too_long(train_ids, held_out_ids, vocab_size, n):
    return right_ngram_loss(train_ids, held_out_ids, vocab_size, n + 1)


@wrong("first_model.ngram_loss", "the very first")
def ngram_loss_without_unigrams(train_ids, held_out_ids, vocab_size, n):
    losses = python_losses(train_ids, held_out_ids, vocab_size, n + 1, first=1)
    return sum(losses) / len(losses)


@wrong("first_model.ngram_loss", "on the text that was counted")
def ngram_loss_of_the_training_text(train_ids, held_out_ids, vocab_size, n):
    return NGrams(train_ids, vocab_size, n).losses(train_ids)[n - 1]


@wrong("first_model.train", "what earlier batches left")
def train_without_clearing(table, optimizer, batches):
    losses = []
    for ids, targets in batches:
        loss = F.cross_entropy(table(ids).flatten(0, 1), targets.flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@wrong("first_model.train", "Nothing is learned from one batch to the next")
def train_cleared_after_backward(table, optimizer, batches):
    losses = []
    for ids, targets in batches:
        loss = F.cross_entropy(table(ids).flatten(0, 1), targets.flatten())
        loss.backward()
        optimizer.zero_grad()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@wrong("first_model.most_frequent_pair", "Every different word counts once")
def pair_of_different_words(words, times):
    counts = Counter(pair for word in words for pair in itertools.pairwise(word))
    return max(counts, key=counts.get)


@wrong("first_model.most_frequent_pair", "occurs least often")
def rarest_pair(words, times):
    counts = Counter()
    for word, count in zip(words, times, strict=True):
        for pair in itertools.pairwise(word):
            counts[pair] += count
    return sorted(counts, key=lambda pair: -counts[pair])[-1]


@wrong("first_model.merge", "then its right half again")
def merge_without_skipping(symbols, pair):
    done = []
    for place, symbol in enumerate(symbols):
        here = place + 1 < len(symbols) and (symbol, symbols[place + 1]) == pair
        done.append(symbol + symbols[place + 1] if here else symbol)
    return done


@wrong("first_model.merge", "fall apart")
def merge_through_a_string(symbols, pair):
    done, letters = [], list("".join(symbols))
    while letters:
        size = 2 if tuple(letters[:2]) == pair else 1
        done.append("".join(letters[:size]))
        del letters[:size]
    return done


@wrong("first_model.merge", "the end of a longer symbol")
def merge_in_a_string_with_spaces(symbols, pair):
    left, right = pair
    return " ".join(symbols).replace(f"{left} {right}", left + right).split(" ")


@wrong("first_model.merge", "may stand in several places")
def merge_the_first(symbols, pair):
    for place in range(len(symbols) - 1):
        if (symbols[place], symbols[place + 1]) == pair:
            return [*symbols[:place], "".join(pair), *symbols[place + 2 :]]
    return list(symbols)


@wrong("first_model.merge", "in place")
def merge_in_place(symbols, pair):
    place = 0
    while place + 1 < len(symbols):
        if (symbols[place], symbols[place + 1]) == pair:
            symbols[place : place + 2] = ["".join(pair)]
        place += 1
    return symbols


def pairs_in(parts):
    counts = Counter()
    for symbols, times in parts:
        for pair in itertools.pairwise(symbols):
            counts[pair] += times
    return counts


def bpe_of(words, n_merges):
    parts = [(list(word), times) for word, times in words.items()]
    tokens = []
    for _ in range(n_merges):
        pair = pairs_in(parts).most_common(1)[0][0]
        tokens.append("".join(pair))
        for symbols, _ in parts:
            merge_in_place(symbols, pair)
    return tokens


@wrong("first_model.train_bpe", "yours counts once")
def bpe_of_different_words(words, n_merges):
    return bpe_of(dict.fromkeys(words, 1), n_merges)


@wrong("first_model.train_bpe", "You counted once, at the start")
def bpe_counted_once(words, n_merges):
    counts = Counter(pair for word in words for pair in itertools.pairwise(word))
    return ["".join(pair) for pair, _ in counts.most_common(n_merges)]


@wrong("first_model.train_bpe", "the end of a longer symbol")
def bpe_in_strings_with_spaces(words, n_merges):
    parts, tokens = [" ".join(word) for word in words], []
    for _ in range(n_merges):
        counts = Counter(pair for word in parts for pair in itertools.pairwise(word.split()))
        best = max(counts, key=counts.get)
        parts = [word.replace(" ".join(best), "".join(best)) for word in parts]
        tokens.append("".join(best))
    return tokens


@wrong("first_model.encode", "the longest token that fits")
def encode_by_the_longest_token(word, merges):
    tokens = sorted(("".join(pair) for pair in merges), key=len, reverse=True)
    symbols = []
    while word:
        token = next((token for token in tokens if word.startswith(token)), word[0])
        symbols.append(token)
        word = word.removeprefix(token)
    return symbols


@wrong("first_model.encode", "it is the merge that was learned first")
def encode_from_the_left(word, merges):
    symbols, place = list(word), 0
    while place < len(symbols) - 1:
        if (symbols[place], symbols[place + 1]) in merges:
            symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
            place = max(place - 1, 0)
        else:
            place += 1
    return symbols


@wrong("first_model.encode", "learned last")
def encode_from_the_newest(word, merges):
    symbols = list(word)
    for pair in reversed(merges):
        merge_in_place(symbols, pair)
    return symbols


@wrong("first_model.shift", "come round from the front")
def shift_by_rolling(tokens):
    return tokens, torch.roll(tokens, shifts=-1, dims=1)


@wrong("first_model.shift", "You cut along the batch")
def shift_texts(tokens):
    x = tokens[:-1]
    y = tokens[1:]
    return x, y


@wrong("first_model.loss", "logarithm minus infinity")
def loss_through_probabilities(logits, targets):
    p = torch.softmax(logits, dim=-1)
    return -torch.log(p.gather(2, targets.unsqueeze(2))).mean()


@wrong("first_model.loss", "the softmax happens twice")
def loss_of_probabilities(logits, targets):
    B, T, V = logits.shape
    return F.cross_entropy(torch.softmax(logits, dim=-1).view(B * T, V), targets.view(B * T))


@wrong("first_model.first_loss", "The sign")
def first_loss_below_zero(vocab_size):
    return math.log(1 / vocab_size)


@wrong("first_model.first_loss", "average over the vocabulary")
def first_loss_averaged_again(vocab_size):
    p = torch.full((vocab_size,), 1 / vocab_size)
    return -(p * p.log()).mean()


@wrong("first_model.mend_sure", "no logarithm is taken")
def sure_without_logarithm(logits, targets):
    return F.nll_loss(F.softmax(logits, -1).view(-1, logits.size(-1)), targets.view(-1))


@wrong("first_model.mend_sure", "A sigmoid squeezes")
def sure_with_sigmoid(logits, targets):
    return F.cross_entropy(torch.sigmoid(logits).flatten(0, 1), targets.flatten())


@wrong("first_model.mend_parrot", "Nobody knows its answer")
def parrot_rolled(logits, tokens):
    return F.cross_entropy(logits.flatten(0, 1), torch.roll(tokens, -1, dims=1).flatten())


@wrong("first_model.mend_parrot", "after joining the texts")
def parrot_shifted_across_texts(logits, tokens):
    logits, tokens = logits.reshape(-1, logits.size(-1)), tokens.reshape(-1)
    return F.cross_entropy(logits[:-1], tokens[1:])
