"""The exercises of notebook 01: attention."""

from __future__ import annotations

from functools import partial
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, inf, randn

from gptcourse.exercises.exercise import Exercise, as_it_stands, mistake

NOTEBOOK = "01 · Attention"
WRONG_AXIS = """Your numbers add up to one along the wrong direction. Each query shares out one unit of attention: which
    dimension runs over the keys, however many dimensions stand in front?"""
NO_SCALE = """The products are right, but their spread grows with the head size D, and the softmax saturates. Something
    that grows with D should bring the spread back to one."""
OVERSCALED = "You divide by too much: a sum of D independent products has variance D. And its standard deviation?"
SEES_FUTURE = "Every token can look at the tokens after it. Who may look at whom?"
LATE_MASK = "The future gets no weight, but the rows add up to less than one. Among whom was it shared out?"
NOT_HIDDEN = """A score of zero is an ordinary score: its exponential is one, so the future still gets weight. Which
    score has an exponential of exactly zero?"""
HIDES_THE_SEEN = "You hide exactly those keys that should be seen. Does True mean hide or show where you use the mask?"
NOT_FITTING = """As they stand the two matrices do not fit: a row of queries has to meet a row of keys. Which of them
    has to be turned, and which two of its dimensions?"""
TANH = """The mistake is still there: no weight can be more than about seven times another, however well its key
    matches. What keeps the scores in so narrow a range?"""

attend = F.scaled_dot_product_attention
attend_causally = partial(attend, is_causal=True)


def scaled(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.mT / sqrt(q.shape[-1])


def shared(x: Tensor) -> Tensor:
    return x / x.sum(-1, keepdim=True)


def past(x: Tensor) -> Tensor:
    """True where a query may look, for scores (..., T, T)."""
    return torch.ones(x.shape[-1], x.shape[-1], dtype=torch.bool).tril()


def causal(scores: Tensor) -> Tensor:
    return scores.masked_fill(~past(scores), -inf).softmax(-1)


def split(x: Tensor, n_head: int) -> Tensor:
    return x.unflatten(-1, (n_head, -1)).transpose(1, 2)  # (B, H, T, D)


def cut_by_memory(x: Tensor, n_head: int) -> Tensor:
    return x.reshape(x.shape[0], n_head, x.shape[1], -1)  # (B, H, T, D), with each head's numbers from whole tokens


def join(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)  # (B, T, C)


def grown(memory: Tensor, new: Tensor) -> Tensor:
    return torch.cat((memory, new), -2)


class Weights(Exercise, name="attention.weights"):
    """Turn each query's scores into positive weights over the keys that add up to one."""

    hint = "Within a row, the ratio of two weights is the exponential of the difference of their scores, however large."

    def inputs():
        extreme = torch.tensor([[1000.0], [0.0], [-1000.0]])
        return [(randn(2, 3),), (randn(3, 5),), (randn(2, 4, 4),), (randn(2, 2, 3, 3) + extreme,)]

    def reference(scores):
        return scores.softmax(-1)

    over_the_first = mistake(WRONG_AXIS)(lambda scores: scores.softmax(0))
    over_the_second = mistake(WRONG_AXIS)(lambda scores: scores.softmax(1))
    over_queries = mistake(WRONG_AXIS)(lambda scores: scores.softmax(-2))
    over_everything = mistake("""All your weights together add up to one. Each query has one unit of its own to share
        out.""")(lambda scores: scores.flatten().softmax(0).view(scores.shape))
    overflowing = mistake("""Right for small scores, but the exponential of 1,000 is infinite and gives NaN. What may
        you take away from every score of a row without changing any ratio?""")(lambda scores: shared(scores.exp()))
    less_the_largest_of_all = mistake("""You take one number away from all rows. Next to a row of large scores, a row of
        small ones becomes all zeros and then NaN.""")(lambda scores: shared((scores - scores.max()).exp()))
    lost_dimension = mistake("""The sums stand in the wrong place: a sum over the keys loses a dimension, and then it
        lines up with columns instead of rows.""")(lambda scores: scores.exp() / scores.exp().sum(-1))
    shares = mistake("""Scores may be negative, so shares of their sum may be negative, too. What makes any number
        positive?""")(lambda scores: shared(scores))


class Scores(Exercise, name="attention.scores"):
    """Return the dot product of each query with each key, scaled for the size of a head."""

    hint = "Row t, column s comes from query t, key s and D alone: for a D of 100 it is a tenth of their product."

    def inputs():
        return [(randn(1, 2), randn(2, 2)), (randn(3, 4), randn(5, 4)), (randn(2, 2, 3, 8), randn(2, 2, 6, 8))]

    def reference(q, k):
        return torch.einsum("...td,...sd->...ts", q, k) / sqrt(q.shape[-1])

    unscaled = mistake(NO_SCALE)(lambda q, k: q @ k.mT)
    divided_by_the_size = mistake(OVERSCALED)(lambda q, k: q @ k.mT / q.shape[-1])
    multiplied = mistake("That makes the spread wider still: the other way.")(lambda q, k: q @ k.mT * sqrt(q.shape[-1]))
    softmaxed = mistake("These are weights already. Scores come before softmax.")(lambda q, k: scaled(q, k).softmax(-1))
    scaled_by_the_second = mistake("""That scale is right for a single sentence only. With a batch and heads in front,
        which dimension holds the size of a head?""")(lambda q, k: q @ k.mT / sqrt(q.shape[1]))
    not_turned = mistake(NOT_FITTING)(lambda q, k: q @ k / sqrt(q.shape[-1]))
    all_turned = mistake(NOT_FITTING)(lambda q, k: q @ k.permute(*reversed(range(k.ndim))) / sqrt(q.shape[-1]))


class MendFocus(Exercise, name="attention.mend_focus"):
    """Mend the head so that a key that matches well can get nearly all the weight."""

    hint = "The scores are those of the sections before, and nothing should happen to them between scale and softmax."

    def inputs():
        flat = [(2 * randn(1, 2), 2 * randn(3, 2)), (2 * randn(3, 16), 2 * randn(5, 16))]
        return [*flat, (randn(2, 4, 8), randn(2, 6, 8))]

    def reference(q, k):
        return scaled(q, k).softmax(-1)

    squeezed = as_it_stands(TANH)(lambda q, k: (q @ k.mT).tanh().softmax(-1))
    scaled_and_squeezed = mistake(TANH)(lambda q, k: scaled(q, k).tanh().softmax(-1))
    unscaled = mistake(NO_SCALE)(lambda q, k: (q @ k.mT).softmax(-1))
    divided_by_the_size = mistake(OVERSCALED)(lambda q, k: (q @ k.mT / q.shape[-1]).softmax(-1))


class MendBatch(Exercise, name="attention.mend_batch"):
    """Mend the weights so that each query's weights add up to one, in a batch, too."""

    hint = "Sentence b of the batch should get the weights it would get alone, and each row of them adds up to one."

    def inputs():
        return [(randn(1, 2, 2), randn(1, 3, 2)), (randn(2, 4, 8), randn(2, 4, 8)), (randn(3, 2, 8), randn(3, 5, 8))]

    reference = MendFocus.reference
    over_queries = as_it_stands("""The mistake is still there: add up one query's weights, and the sum is not one. What
        does add up to one instead, now that a batch stands in front?""")(lambda q, k: scaled(q, k).softmax(1))
    by_text = mistake("Now the sentences of the batch compete. Who should?")(lambda q, k: scaled(q, k).softmax(0))
    repaired = mistake("""The rows add up to one now, but only by repair: the first sharing still ran in the wrong
        direction, and the ratios are off.""")(lambda q, k: shared(scaled(q, k).softmax(1)))


class Causal(Exercise, name="attention.causal"):
    """Return the softmax of each row of scores, with no weight on any key after the query."""

    hint = "Row t should be the softmax of its first t + 1 scores and zero after them, also where all are very low."

    def inputs():
        return [(randn(2, 2),), (randn(4, 4),), (randn(2, 2, 5, 5),), (randn(3, 3) - 20_000,)]

    reference = causal
    unmasked = mistake(SEES_FUTURE)(lambda scores: scores.softmax(-1))
    masked_late = mistake(LATE_MASK)(lambda scores: scores.softmax(-1) * past(scores))
    by_hand = mistake("""Almost right. But the exponential of a very low score is 0, and 0 / 0 is NaN: something has to
        be taken away from the scores before.""")(lambda scores: shared(scores.exp() * past(scores)))
    zeroed = mistake(NOT_HIDDEN)(lambda scores: (scores * past(scores)).softmax(-1))
    without_itself = mistake("""Your tokens may not look at themselves, so the first has nobody at all to look at and
        gives NaN.""")(lambda scores: scores.masked_fill(~past(scores).tril(-1), -inf).softmax(-1))
    past_hidden = mistake("""Your mask is the wrong way round: tokens see the future and
        not the past.""")(lambda scores: scores.masked_fill(~past(scores).mT, -inf).softmax(-1))
    inverted = mistake(HIDES_THE_SEEN)(lambda scores: scores.masked_fill(past(scores), -inf).softmax(-1))
    with_a_thousand = mistake("""Your number is large, but a score may be lower still (about -20,000): the future wins.
        Which number is below every score?""")(lambda scores: scores.masked_fill(~past(scores), -1e3).softmax(-1))


class MendRows(Exercise, name="attention.mend_rows"):
    """Mend the weights so that the future gets none and every row still adds up to one."""

    hint = "Row t should be the softmax of its first t + 1 scores (t counts from 0), and zero after them."

    def inputs():
        return Causal.inputs()[:3]

    reference = Causal.reference
    masked_late = as_it_stands("""The mistake is still there: the future gets no weight, and yet most rows add up to
        less than one. Who got the rest?""")(lambda scores: scores.softmax(-1) * past(scores))
    zeroed = mistake(NOT_HIDDEN)(lambda scores: (scores * past(scores)).softmax(-1))
    filled_late = mistake("""Minus infinity is a good score for the future and a strange weight: you fill it in one step
        too late.""")(lambda scores: scores.softmax(-1).masked_fill(~past(scores), -inf))
    inverted = mistake(HIDES_THE_SEEN)(lambda scores: scores.masked_fill(past(scores), -inf).softmax(-1))
    shared_out_twice = mistake("""Two sharings in a row: the second gives weight back to the future, since a weight of
        zero is not hidden.""")(lambda scores: (scores.softmax(-1) * past(scores)).softmax(-1))


class Output(Exercise, name="attention.output"):
    """Return the whole of one causal attention head: scores, mask, softmax, weighted sum of the values."""

    hint = "The first output should be exactly the first value. Check the pieces one by one, on the first two tokens."

    def inputs():
        batch = [randn(2, 2, 5, 8) for _ in "qkv"]
        return [(randn(2, 2), randn(2, 2), randn(2, 1)), (randn(4, 6), randn(4, 6), randn(4, 3)), tuple(batch)]

    def reference(q, k, v):
        return attend_causally(q, k, v)

    unmasked = mistake(SEES_FUTURE)(attend)
    unscaled = mistake(NO_SCALE)(lambda q, k, v: causal(q @ k.mT) @ v)
    masked_late = mistake(LATE_MASK)(lambda q, k, v: scaled(q, k).softmax(-1).tril() @ v)
    weights = mistake("These are the weights. What do they make of the values?")(lambda q, k, v: causal(scaled(q, k)))
    of_keys = mistake("""You mix the keys. Keys say where to look;
        what is read there is something else.""")(lambda q, k, v: causal(scaled(q, k)) @ k)
    turned = mistake("The weights are turned: row t should give output t.")(lambda q, k, v: causal(scaled(q, k)).mT @ v)


class Positions(Exercise, name="attention.positions"):
    """Add to each token's vector the row of the table that belongs to its position."""

    hint = "Token t of every sentence in the batch gets the row of position start + t, added."

    def inputs():
        sizes = ((2, 3, 4, 8, 0), (2, 3, 4, 9, 4), (1, 1, 4, 8, 6), (2, 2, 1, 4, 1))
        return [(randn(B, T, C), randn(n_positions, C), start) for B, T, C, n_positions, start in sizes]

    def reference(x, table, start):
        return x + F.embedding(torch.arange(start, start + x.shape[1]), table)

    from_zero = mistake("""Right when the tokens are the first of the text. With earlier tokens in a cache, your new
        token believes that it stands at position 0.""")(lambda x, table, start: x + table[: x.shape[1]])
    same = mistake("All get the same row. Only the first stands at start.")(lambda x, table, start: x + table[start])
    whole_table = mistake("""The table has a row for every position there is, and you have fewer tokens. Which rows are
        theirs?""")(lambda x, table, start: x + table)
    from_one = mistake("""Positions count from 0 here, and yours are
        one too high.""")(lambda x, table, start: x + table[start + 1 : start + 1 + x.shape[1]])
    multiplied = mistake("""You multiply. GPT puts the position into the stream in
        a gentler way.""")(lambda x, table, start: x * table[start : start + x.shape[1]])


class Heads(Exercise, name="attention.heads"):
    """Split each token's vector into heads and bring the heads in front of the time."""

    hint = "Head h of token t holds the numbers h * D up to (h + 1) * D of that token's vector, and no others."

    def inputs():
        return [(randn(1, 2, 4), 2), (randn(2, 3, 8), 2), (randn(1, 6, 12), 3)]

    reference = split
    viewed = mistake("""The shape is right, the contents are not: the numbers keep their order in memory, so your first
        head holds whole tokens instead of a part of every token.""")(cut_by_memory)
    not_brought_forward = mistake("""Each vector is cut well. Now time stands before the heads: two dimensions should
        change places.""")(lambda x, n_head: x.unflatten(-1, (n_head, -1)))
    interleaved = mistake("""Your heads take turns: every n-th number goes to the same head. Which size comes first when
        a vector is cut into neighbours?""")(lambda x, n_head: x.unflatten(-1, (-1, n_head)).permute(0, 3, 1, 2))
    wrong_pieces = mistake("""You cut into pieces of n_head numbers;
        it should be n_head pieces.""")(lambda x, n_head: x.unflatten(-1, (-1, n_head)).transpose(1, 2))
    time_last = mistake("Nearly: within each head time stands last.")(lambda x, n_head: split(x, n_head).mT)
    loose = mistake("The pieces are right, but loose. Make them one tensor.")(lambda x, n_head: x.chunk(n_head, dim=-1))


class Merge(Exercise, name="attention.merge"):
    """Put the heads of each token next to each other again: the way back from the split."""

    hint = "Token t should get all that head 0 says about it, then all that head 1 says, and so on."

    def inputs():
        return [(randn(1, 2, 2, 2),), (randn(2, 2, 3, 4),), (randn(1, 3, 6, 4),)]

    reference = join
    reshaped = mistake("""The shape is right, but the numbers keep their order in memory, so different tokens end up in
        one vector. What has to meet first?""")(lambda x: x.reshape(x.shape[0], x.shape[2], -1))
    viewed = mistake("""The steps are right. But a turned tensor no longer lies in memory in reading order, as what you
        use insists; its sister copies.""")(lambda x: x.transpose(1, 2).view(x.shape[0], x.shape[2], -1))
    unfinished = mistake("The heads of a token stand together. What joins them?")(lambda x: x.transpose(1, 2))
    alternating = mistake("""The heads' numbers alternate in your vectors.
        All of head 0 should come first.""")(lambda x: x.permute(0, 2, 3, 1).flatten(2))
    averaged = mistake("You blend the heads into one. Each should keep a place in the vector.")(lambda x: x.mean(1))


class MendLeak(Exercise, name="attention.mend_leak"):
    """Mend the heads so that no output depends on a later token."""

    hint = "Each head should do causal attention on its own slice of every token's vector; then the slices are joined."

    def inputs():
        return [(*(randn(B, T, C) for _ in "qkv"), n) for B, T, C, n in ((1, 2, 2, 2), (2, 6, 8, 2), (1, 5, 12, 3))]

    def with_cut(cut, rejoin, attend=attend_causally):
        """Return attention in heads that are cut and joined again in this way."""
        return lambda q, k, v, n_head: rejoin(attend(*(cut(x, n_head) for x in (q, k, v)))).view(q.shape)

    reference = with_cut(split, join)
    wrongly_cut = as_it_stands("""The mistake is still there: change a token, and outputs before it change, though each
        head has its mask. Which numbers of which tokens is one head given?""")(with_cut(cut_by_memory, join))
    wrongly_cut_and_joined = mistake("""Nothing leaks now, but each head holds a stretch of the sentence, and tokens in
        different stretches never meet. How are vectors cut?""")(with_cut(cut_by_memory, Tensor.contiguous))
    wrongly_joined = mistake("""The heads are cut well now, but joined in the order of memory: different tokens end up
        in one vector. Go back the way you came.""")(with_cut(split, Tensor.contiguous))
    unmasked = mistake(SEES_FUTURE)(with_cut(split, join, attend))
    over_heads = mistake("""With time in front, attention runs over the heads of one token. Two dimensions should change
        places, before and after.""")(with_cut(lambda x, n_head: x.unflatten(2, (n_head, -1)), Tensor.contiguous))


class Cache(Exercise, name="attention.cache"):
    """Append the new key and value to the memory, and let the new query look at all of it."""

    hint = "Do causal attention over the whole text: the output is its last row, the memory all its keys and values."

    def inputs():
        lengths = ((2, 3, 5, 4), (2, 3, 0, 4), (1, 1, 2, 2))
        return [(*(randn(B, H, 1, D) for _ in "qkv"), randn(B, H, S, D), randn(B, H, S, D)) for B, H, S, D in lengths]

    def with_output(output):
        """Return a step that grows the memory as it should, and reads the whole of it in this way."""

        def step(q, k, v, past_keys, past_values):
            keys, values = grown(past_keys, k), grown(past_values, v)
            return output(q, keys, values), keys, values

        return step

    reference = with_output(attend)
    without_itself = mistake("""The new token looks at the past only. May a token look
        at itself, too?""")(with_output(lambda q, K, V: scaled(q, K[:, :, :-1]).softmax(-1) @ V[:, :, :-1]))
    never_read = mistake("""The new token sees nobody but itself:
        the memory is kept and never read.""")(with_output(lambda q, K, V: V[:, :, -1:]))
    with_a_triangle = mistake("""Your query sees only the very first key: a triangle mask takes it for the first token,
        and it is the last. Does it need a mask at all?""")(with_output(lambda q, K, V: V[:, :, :1]))
    unscaled = mistake(NO_SCALE)(with_output(lambda q, K, V: (q @ K.mT).softmax(-1) @ V))
    in_front = mistake("""The new key and value stand in front of the old ones. In what order were
        the tokens read?""")(lambda q, k, v, K, V: (attend(q, grown(k, K), grown(v, V)), grown(k, K), grown(v, V)))
    output_alone = mistake("""The output is right. But the next step needs the longer keys and values: return them as
        well.""")(lambda q, k, v, K, V: attend(q, grown(K, k), grown(V, v)))
    old_memory = mistake("""The output is right, but you hand back the old memory, so the next step will have forgotten
        this token.""")(lambda q, k, v, K, V: (attend(q, grown(K, k), grown(V, v)), K, V))
    joined_along_heads = mistake("""You join along the wrong dimension. Which dimension of the memory grows when a token
        arrives?""")(lambda q, k, v, K, V: torch.cat((K, k), 1))
