"""The exercises of notebook 02: attention."""

from __future__ import annotations

from functools import partial
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, inf, nn, randn

from gptcourse.attention import KeyValueCache, causal_mask, rotary
from gptcourse.exercises.exercise import Exercise, as_it_stands, mistake, with_weights

NOTEBOOK = "02 · Attention"
WRONG_AXIS = """Your numbers add up to one along the wrong direction. Each query shares out one unit of attention: which
    dimension runs over the keys, however many dimensions stand in front?"""
NO_SCALE = """The products are right, but their spread grows with the head size D, and the softmax saturates. Something
    that grows with D should bring the spread back to one."""
OVERSCALED = "You divide by too much: a sum of D independent products has variance D; its standard deviation?"
SEES_FUTURE = "Every token can look at the tokens after it. Who may look at whom?"
LATE_MASK = "The future gets no weight, but the rows add up to less than one. Among whom was it shared out?"
NOT_HIDDEN = """A score of zero is an ordinary score: its exponential is one, so the future still gets weight. Which
    score has an exponential of exactly zero?"""
HIDES_THE_SEEN = "You hide exactly those keys that should be seen. Does True mean hide or show where you use the mask?"
NOT_FITTING = """As they stand the two matrices do not fit: a row of queries has to meet a row of keys. Which of them
    has to be transposed, and in which two dimensions?"""
LATER_IN_SIGHT = """Right without a cache, and for one new token at a time. But when several are new, the earlier of
    them see the later ones."""
NO_PROJECTION = """The heads stand side by side, and there you stop: one more linear layer lets what they found
    mix."""

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


def shifted(x: Tensor, rows: Tensor) -> list[Tensor]:
    """Return x with something added to the tokens that each row of 0 and 1 marks, not the same to all coordinates."""
    return [x + row[:, None] * torch.linspace(1, 2, x.shape[1]) for row in rows]


def moved(layer, x: Tensor, changed: list[Tensor]) -> Tensor:
    """Return which outputs of a layer are others for the changed tokens: (T, number of changes)."""
    return torch.stack([((layer(other) - layer(x)).abs() > 1e-6).any(-1) for other in changed], 1)


def grown(memory: Tensor, new: Tensor) -> Tensor:
    return torch.cat((memory, new), -2)


class Weights(Exercise, name="attention.weights", minutes=8):
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
    overflowing = mistake("""Right for small scores, but the exponential of 1,000 is infinite, hence NaN. What may you
        take away from every score of a row without changing any ratio?""")(lambda scores: shared(scores.exp()))
    less_the_largest_of_all = mistake("""You take one number away from all rows together. Next to a row of very large
        scores, a row of small ones becomes all zeros and then NaN:
        each row needs a number of its own.""")(lambda scores: shared((scores - scores.max()).exp()))
    lost_dimension = mistake("""The sums stand in the wrong place: a sum over the keys loses a dimension, and then it
        lines up with columns instead of rows.""")(lambda scores: scores.exp() / scores.exp().sum(-1))
    shares = mistake("""Scores may be negative, so shares of their sum may be negative, too. What makes any number
        positive?""")(lambda scores: shared(scores))


class Scores(Exercise, name="attention.scores", minutes=4):
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


class MendBatch(Exercise, name="attention.mend_batch", minutes=5):
    """Mend the weights so that each query's weights add up to one, in a batch, too."""

    hint = "Sentence b of the batch should get the weights it would get alone, and each row of them adds up to one."

    def inputs():
        return [(randn(1, 2, 2), randn(1, 3, 2)), (randn(2, 4, 8), randn(2, 4, 8)), (randn(3, 2, 8), randn(3, 5, 8))]

    def reference(q, k):
        return scaled(q, k).softmax(-1)

    over_queries = as_it_stands("""The mistake is still there: add up one query's weights, and the sum is not one. What
        does add up to one instead, now that a batch stands in front?""")(lambda q, k: scaled(q, k).softmax(1))
    over_sentences = mistake("""Now the sentences of the batch compete.
        Who should?""")(lambda q, k: scaled(q, k).softmax(0))
    repaired = mistake("""The rows add up to one now, but only by repair: the first sharing still ran in the wrong
        direction, and the ratios are off.""")(lambda q, k: shared(scaled(q, k).softmax(1)))


class Causal(Exercise, name="attention.causal", minutes=8):
    """Return the softmax of each row of scores, with no weight on any key after the query."""

    hint = "Row t should be the softmax of its first t + 1 scores and zero after them, also where all are very low."

    def inputs():
        high_future = randn(3, 3) + 200 * torch.arange(3.0)
        return [(randn(2, 2),), (randn(4, 4),), (randn(2, 2, 5, 5),), (randn(3, 3) - 20_000,), (high_future,)]

    def reference(scores):
        return causal(scores)

    unmasked = mistake(SEES_FUTURE)(lambda scores: scores.softmax(-1))
    masked_late = mistake(LATE_MASK)(lambda scores: scores.softmax(-1) * past(scores))
    by_hand = mistake("""Almost right. But the exponential of a very low score is 0, and 0 / 0 is NaN: something has to
        be taken away from the scores before.""")(lambda scores: shared(scores.exp() * past(scores)))
    repaired = mistake("""Right for most scores. But where later scores are far higher, they get the whole softmax; 0 is
        left to share out again, and 0 / 0 is NaN.""")(lambda scores: shared(scores.softmax(-1) * past(scores)))
    zeroed = mistake(NOT_HIDDEN)(lambda scores: (scores * past(scores)).softmax(-1))
    without_itself = mistake("""Your tokens may not look at themselves, so the first has nobody at all to look at and
        gives NaN.""")(lambda scores: scores.masked_fill(~past(scores).tril(-1), -inf).softmax(-1))
    past_hidden = mistake("""Your mask is the wrong way round: tokens see the future and
        not the past.""")(lambda scores: scores.masked_fill(~past(scores).mT, -inf).softmax(-1))
    inverted = mistake(HIDES_THE_SEEN)(lambda scores: scores.masked_fill(past(scores), -inf).softmax(-1))
    with_a_thousand = mistake("""Your number is large, but a score may be lower still (about -20,000): the future wins.
        Which number is below every score?""")(lambda scores: scores.masked_fill(~past(scores), -1e3).softmax(-1))


class Heads(Exercise, name="attention.heads", minutes=7):
    """Split each token's vector into heads and bring the heads in front of the tokens."""

    hint = "Head h of token t holds the numbers h * D up to (h + 1) * D of that token's vector, and no others."

    def inputs():
        return [(randn(1, 2, 4), 2), (randn(2, 3, 8), 2), (randn(1, 6, 12), 3)]

    def reference(x, n_head):
        return split(x, n_head)

    viewed = mistake("""The shape is right, the contents are not: the numbers keep their order in memory, so your first
        head holds whole tokens instead of a part of every token.""")(cut_by_memory)
    not_brought_forward = mistake("""Each vector is cut well. Now time stands before the heads: two dimensions should
        change places.""")(lambda x, n_head: x.unflatten(-1, (n_head, -1)))
    interleaved = mistake("""Your heads take turns: every n-th number goes to the same head. Which size comes first when
        a vector is cut into neighbours?""")(lambda x, n_head: x.unflatten(-1, (-1, n_head)).permute(0, 3, 1, 2))
    wrong_pieces = mistake("""You cut into pieces of n_head numbers;
        it should be n_head pieces.""")(lambda x, n_head: x.unflatten(-1, (-1, n_head)).transpose(1, 2))
    time_last = mistake("""Nearly: within each head the time and the numbers of the head
        have changed places.""")(lambda x, n_head: split(x, n_head).mT)
    loose = mistake("""The pieces are right, but loose.
        They should be one tensor with a dimension for the heads.""")(lambda x, n_head: x.chunk(n_head, dim=-1))


class Merge(Exercise, name="attention.merge", minutes=5):
    """Put the heads of each token next to each other again: the way back from the split."""

    hint = "Token t should get all that head 0 says about it, then all that head 1 says, and so on."

    def inputs():
        return [(randn(1, 2, 2, 2),), (randn(2, 2, 3, 4),), (randn(1, 3, 6, 4),)]

    def reference(x):
        return join(x)

    reshaped = mistake("""The shape is right, the contents are not: the numbers keep their order in memory, so different
        tokens end up in one vector. What has to come together
        first?""")(lambda x: x.reshape(x.shape[0], x.shape[2], -1))
    viewed = mistake("""The steps are right. But a transposed tensor no longer lies in memory in reading order, and what
        joins here insists on that; it has a sister that
        copies.""")(lambda x: x.transpose(1, 2).view(x.shape[0], x.shape[2], -1))
    unfinished = mistake("""The heads of a token now stand together.
        What makes them one vector?""")(lambda x: x.transpose(1, 2))
    alternating = mistake("""The heads' numbers alternate in your vectors.
        All of head 0 should come first.""")(lambda x: x.permute(0, 2, 3, 1).flatten(2))
    averaged = mistake("You blend the heads into one. Each should keep a place in the vector.")(lambda x: x.mean(1))


class MendLeak(Exercise, name="attention.mend_leak", minutes=10):
    """Mend the heads so that no output depends on a later token."""

    hint = "Each head should do causal attention on its own slice of every token's vector; then the slices are joined."

    def inputs():
        return [(*(randn(B, T, C) for _ in "qkv"), n) for B, T, C, n in ((1, 2, 2, 2), (2, 6, 8, 2), (1, 5, 12, 3))]

    def with_cut(cut, rejoin, attend=attend_causally):
        """Return attention in heads that are cut and joined again in this way."""
        return lambda q, k, v, n_head: rejoin(attend(*(cut(x, n_head) for x in (q, k, v)))).view(q.shape)

    def reference(q, k, v, n_head):
        return join(attend_causally(*(split(x, n_head) for x in (q, k, v))))

    wrongly_cut = as_it_stands("""The mistake is still there: change a token, and outputs before it change, though each
        head has its mask. Which numbers of which tokens is one head given?""")(with_cut(cut_by_memory, join))
    wrongly_cut_and_joined = mistake("""Nothing leaks now, but each head holds only a stretch of the sentence, and
        tokens in different stretches never meet. How are the
        vectors cut?""")(with_cut(cut_by_memory, Tensor.contiguous))
    wrongly_joined = mistake("""The heads are cut well now, but joined in the order of memory: different tokens end up
        in one vector. Go back the way you came.""")(with_cut(split, Tensor.contiguous))
    unmasked = mistake(SEES_FUTURE)(with_cut(split, join, attend))
    over_heads = mistake("""With time in front, attention runs over the heads of one token. Two dimensions should change
        places, before and after.""")(with_cut(lambda x, n_head: x.unflatten(2, (n_head, -1)), Tensor.contiguous))


class Cache(Exercise, name="attention.cache", minutes=8):
    """Append the new key and value to the memory, and let the new query look at all of it."""

    hint = "Do causal attention over the whole text: the output is its last row, the memory all its keys and values."

    def inputs():
        lengths = ((2, 3, 5, 4), (2, 3, 0, 4), (1, 1, 2, 2))
        return [(*(randn(B, H, 1, D) for _ in "qkv"), randn(B, H, S, D), randn(B, H, S, D)) for B, H, S, D in lengths]

    def with_output(output):
        """Return a step that grows the memory as it should and reads it in this way; K, V hold the new token, too."""

        def step(q, k, v, past_keys, past_values):
            keys, values = grown(past_keys, k), grown(past_values, v)
            return output(q, keys, values), keys, values

        return step

    def reference(q, k, v, past_keys, past_values):
        keys, values = grown(past_keys, k), grown(past_values, v)
        return attend(q, keys, values), keys, values

    without_itself = mistake("""The new token looks at the past only. May a token look
        at itself, too?""")(with_output(lambda q, K, V: scaled(q, K[:, :, :-1]).softmax(-1) @ V[:, :, :-1]))
    never_read = mistake("""The new token sees nobody but itself:
        the memory is kept and never read.""")(with_output(lambda q, K, V: V[:, :, -1:]))
    with_a_triangle = mistake("""Your query sees only the very first key: a triangle mask takes it for the first token,
        and it is the last. Does it need a mask at all?""")(with_output(lambda q, K, V: V[:, :, :1]))
    unscaled = mistake(NO_SCALE)(with_output(lambda q, K, V: (q @ K.mT).softmax(-1) @ V))

    @mistake("The new key and value stand in front of the old ones. In what order were the tokens read?")
    def in_front(q, k, v, past_keys, past_values):
        keys, values = grown(k, past_keys), grown(v, past_values)
        return attend(q, keys, values), keys, values

    @mistake("The output is right. But the next step needs the longer keys and values: return them as well.")
    def output_alone(q, k, v, past_keys, past_values):
        return attend(q, grown(past_keys, k), grown(past_values, v))

    @mistake("The output is right, but you hand back the old memory, so the next step will have forgotten this token.")
    def old_memory(q, k, v, past_keys, past_values):
        return attend(q, grown(past_keys, k), grown(past_values, v)), past_keys, past_values

    @mistake("You join along the wrong dimension. Which dimension of the memory grows when a token arrives?")
    def joined_along_heads(q, k, v, past_keys, past_values):
        return torch.cat((past_keys, k), 1)


class Influence(Exercise, name="attention.influence", minutes=12):
    """Find out, by changing one token at a time, which outputs of a layer depend on which tokens."""

    hint = "Row t, column s is True where output t moves when token s alone is changed and all others stay as they are."

    def inputs():
        mix = randn(4, 4)
        causal_layer = lambda x: attend_causally(x @ mix, x, x)  # noqa: E731
        everything = lambda x: attend(x, x @ mix, x)  # noqa: E731
        backwards = lambda x: causal_layer(x.flip(-2)).flip(-2)  # noqa: E731
        last_two = lambda x: attend(x, x, x, causal_mask(x.shape[-2], window=2))  # noqa: E731
        normed = lambda x: causal_layer(F.layer_norm(x, x.shape[-1:]))  # noqa: E731
        layers = (causal_layer, everything, backwards, last_two, torch.tanh, normed)
        return [(layer, randn(T, 4)) for T, layer in enumerate(layers, start=2)]

    def reference(layer, x):
        return moved(layer, x, shifted(x, torch.eye(len(x))))

    @mistake("Add different numbers to the coordinates of a token: a layer norm takes away what is added to all alike.")
    def alike(layer, x):
        return moved(layer, x, [x + row[:, None] for row in torch.eye(len(x))])

    @mistake("Rows and columns have changed places: row t should tell on whom output t depends.")
    def turned(layer, x):
        return Influence.reference(layer, x).mT

    @mistake("Your changes pile up: token 0 is still changed when you change token 1. Begin afresh for each token.")
    def piled_up(layer, x):
        return moved(layer, x, shifted(x, torch.ones(len(x), len(x)).tril()))

    @mistake("You compare every changed output with its own token's row alone. Look at the other outputs, too.")
    def itself_alone(layer, x):
        return Influence.reference(layer, x) & torch.eye(len(x), dtype=torch.bool)

    @mistake("You say where the outputs stay the same; asked is where they move.")
    def negated(layer, x):
        return ~Influence.reference(layer, x)

    @mistake("You find the numbers that move; asked is one answer for each pair of tokens, not for each number.")
    def each_number(layer, x):
        return torch.stack([layer(other) != layer(x) for other in shifted(x, torch.eye(len(x)))], 1)


class CausalHead(nn.Module):
    """One head of causal attention: (B, T, C) -> (B, T, D)."""

    def __init__(self, n_embd, head_size):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(n_embd, head_size, bias=False) for _ in range(3))

    def forward(self, x):
        return self.mix(self.query(x), self.key(x), self.value(x))

    def mix(self, q, k, v):
        return attend_causally(q, k, v)


class Head(Exercise, name="attention.head", minutes=15):
    """Write a whole head of causal attention as a module: from (B, T, C) to (B, T, D)."""

    hint = "The first output should be exactly the first value. Check the pieces one by one, on the first two tokens."

    def inputs():
        sizes = ((1, 2, 2, 2), (2, 5, 6, 3), (3, 4, 4, 8))
        names = ("query.weight", "key.weight", "value.weight")
        return [({name: randn(D, C) for name in names}, randn(B, T, C)) for B, T, C, D in sizes]

    def through(answer, weights, x):
        head_size, n_embd = weights["query.weight"].shape
        return with_weights(answer(n_embd, head_size), weights)(x)

    reference = CausalHead

    @mistake(SEES_FUTURE)
    class Unmasked(CausalHead):
        mix = staticmethod(attend)

    @mistake(NO_SCALE)
    class Unscaled(CausalHead):
        def mix(self, q, k, v):
            return causal(q @ k.mT) @ v

    @mistake("You divide by the root of the width of the tokens; which vectors are multiplied, and how long are they?")
    class ScaledByTheWidth(CausalHead):
        def forward(self, x):
            return causal(self.query(x) @ self.key(x).mT / sqrt(x.shape[-1])) @ self.value(x)

    @mistake(OVERSCALED)
    class Overscaled(CausalHead):
        def mix(self, q, k, v):
            return causal(q @ k.mT / q.shape[-1]) @ v

    @mistake(LATE_MASK)
    class MaskedLate(CausalHead):
        def mix(self, q, k, v):
            return scaled(q, k).softmax(-1).tril() @ v

    @mistake(WRONG_AXIS)
    class OverQueries(CausalHead):
        def mix(self, q, k, v):
            return scaled(q, k).masked_fill(~past(k @ k.mT), -inf).softmax(1) @ v

    @mistake("These are the weights, and they are right. The output is what they make of the values.")
    class Weights(CausalHead):
        def mix(self, q, k, v):
            return causal(scaled(q, k))

    @mistake("Keys ask and queries are found: in your scores the two have changed roles.")
    class Exchanged(CausalHead):
        def mix(self, q, k, v):
            return attend_causally(k, q, v)

    @mistake("You mix the keys. Keys say where to look; what is read there is something else.")
    class OfKeys(CausalHead):
        def mix(self, q, k, v):
            return attend_causally(q, k, k)


class Rotary(Exercise, name="attention.rotary", minutes=20):
    """Turn each pair of numbers, i and i + D/2, by an angle that grows with the position of the token."""

    hint = "At position 0 nothing turns. At position 1 pair 0 turns by one radian, the others by less; lengths stay."

    def inputs():
        return [(randn(2, 2), 0), (randn(3, 4), 1), (randn(2, 3, 5, 8), 20)]

    def reference(x, first_position):
        return rotary(x, first_position)

    from_zero = mistake("""Right for tokens that begin the text. With earlier ones in a cache, the first of these stands
        at another position.""")(lambda x, first_position: rotary(x))
    backwards = mistake("""Your pairs turn the other way: the sign of one of the sines. (Scores would be the same, but
        everybody turns to the left.)""")(
        lambda x, first_position: rotary(x.roll(x.shape[-1] // 2, -1), first_position).roll(x.shape[-1] // 2, -1)
    )
    at_one_speed = mistake("""All your pairs turn at the same speed. The first turns fastest, and the last hardly at
        all.""")(lambda x, first_position: rotary(x, first_position, base=1.0))
    too_fast = mistake("Pair 0 is right, and the others turn too fast. Look at the exponent of the speed again.")(
        lambda x, first_position: rotary(x, first_position, base=100.0)
    )
    from_one = mistake("The first token of a text stands at position 0, and yours is turned already.")(
        lambda x, first_position: rotary(x, first_position + 1)
    )

    @mistake("Your pairs are neighbours, as in the paper. Here number i goes with the number half a head further on.")
    def neighbours(x, first_position):
        halves = torch.cat((x[..., ::2], x[..., 1::2]), -1)
        return torch.stack(rotary(halves, first_position).chunk(2, -1), -1).flatten(-2)


class MendChunk(Exercise, name="attention.mend_chunk", minutes=8):
    """Mend the attention of the last T tokens so that each sees all the S - T before them, and no later token."""

    hint = "Do causal attention over the whole text, all S tokens: asked for are the last T rows of its outputs."

    def inputs():
        sizes = ((1, 1, 2, 4, 2), (2, 2, 3, 7, 4), (1, 3, 1, 5, 2), (2, 1, 4, 4, 2))
        return [(randn(B, H, T, D), randn(B, H, S, D), randn(B, H, S, D)) for B, H, T, S, D in sizes]

    def reference(q, k, v):
        return attend(q, k, v, causal_mask(q.shape[-2], k.shape[-2]))

    from_the_corner = as_it_stands("""The mistake is still there: the first of the new tokens sees only the very first
        key. The triangle begins at the wrong corner of the table.""")(lambda q, k, v: attend_causally(q, k, v))
    unmasked = mistake("""Now each new token sees all keys, those of the new tokens after it,
        too.""")(lambda q, k, v: attend(q, k, v))
    the_new_alone = mistake("""Your new tokens see each other as they should, and have forgotten all that came
        before.""")(lambda q, k, v: attend_causally(q, *(x[..., -q.shape[-2] :, :] for x in (k, v))))
    one_short = mistake("The triangle is moved one step too far: nobody sees itself.")(
        lambda q, k, v: attend(q, k, v, causal_mask(q.shape[-2], k.shape[-2]).tril(k.shape[-2] - q.shape[-2] - 1))
    )


class MultiHeadAttention(nn.Module):
    """Causal attention in several heads: (B, T, C) -> (B, T, C). Parameters have transformers' names for GPT-2."""

    def __init__(self, n_embd, n_head):
        super().__init__()
        self.n_head = n_head
        self.c_attn, self.c_proj = nn.Linear(n_embd, 3 * n_embd), nn.Linear(n_embd, n_embd)

    def forward(self, x, cache=None):
        q, k, v = (self.cut(part) for part in self.c_attn(x).chunk(3, -1))
        if cache is not None:
            k, v = cache.append(k, v)
        return self.c_proj(self.rejoin(self.mix(q, k, v)))

    def cut(self, x):
        return split(x, self.n_head)

    def mix(self, q, k, v):
        return attend(q, k, v, causal_mask(q.shape[-2], k.shape[-2]))

    def rejoin(self, x):
        return join(x)


class MultiHead(Exercise, name="attention.multi_head", minutes=30):
    """Write multi-head attention as a module, causal and with an optional cache: from (B, T, C) to (B, T, C)."""

    hint = "Give it one head first: it should be your head with a linear layer after it. Then the cut, then the cache."

    def inputs():
        sizes = ((1, 2, 4, 2, [2]), (2, 5, 6, 3, [5]), (1, 6, 8, 2, [3, 1, 2]), (3, 4, 6, 1, [1, 1, 2]))

        def weights(C):
            shapes = {
                "c_attn.weight": (3 * C, C),
                "c_attn.bias": (3 * C,),
                "c_proj.weight": (C, C),
                "c_proj.bias": (C,),
            }
            return {name: randn(shape) / 2 for name, shape in shapes.items()}

        return [(n_head, weights(C), randn(B, T, C), pieces) for B, T, C, n_head, pieces in sizes]

    def through(answer, n_head, weights, x, pieces):
        """One piece is all tokens at once, without a cache; more are read one after the other, with one."""
        B, T, C = x.shape
        layer = with_weights(answer(C, n_head), weights)
        if len(pieces) == 1:
            return layer(x[:, : pieces[0]])
        cache = KeyValueCache(B, n_head, T, C // n_head)
        return torch.cat([layer(part, cache) for part in x.split(pieces, dim=1)], dim=1)

    reference = MultiHeadAttention

    @mistake(SEES_FUTURE)
    class Unmasked(MultiHeadAttention):
        def mix(self, q, k, v):
            return attend(q, k, v)

    @mistake("""Right without a cache. With one, the triangle of your mask begins at the wrong corner: the new tokens
        are the last ones, and all that is remembered lies before them.""")
    class FromTheCorner(MultiHeadAttention):
        def mix(self, q, k, v):
            return attend_causally(q, k, v)

    @mistake(LATER_IN_SIGHT)
    class UnmaskedWithCache(MultiHeadAttention):
        def forward(self, x, cache=None):
            self.is_causal = cache is None
            return super().forward(x, cache)

        def mix(self, q, k, v):
            return attend(q, k, v, is_causal=self.is_causal)

    @mistake(LATER_IN_SIGHT)
    class UnmaskedAfterTheFirst(MultiHeadAttention):
        def mix(self, q, k, v):
            return attend(q, k, v, is_causal=q.shape == k.shape)

    @mistake("Right without a cache. With one, the new tokens see no further back than themselves: who remembers?")
    class NeverRemembers(MultiHeadAttention):
        def forward(self, x, cache=None):
            return super().forward(x)

    @mistake("""The heads are cut in the order of memory: each holds whole tokens instead of a part of every
        token.""")
    class CutByMemory(MultiHeadAttention):
        def cut(self, x):
            return cut_by_memory(x, self.n_head)

    @mistake("The heads are cut well, but joined in the order of memory: different tokens end up in one vector.")
    class JoinedByMemory(MultiHeadAttention):
        def rejoin(self, x):
            return x.reshape(x.shape[0], x.shape[2], -1)

    @mistake(NO_PROJECTION)
    class Unprojected(MultiHeadAttention):
        def forward(self, x, cache=None):
            return torch.linalg.solve(self.c_proj.weight, (super().forward(x, cache) - self.c_proj.bias).mT).mT

    @mistake(NO_SCALE)
    class Unscaled(MultiHeadAttention):
        def mix(self, q, k, v):
            return super().mix(q * sqrt(q.shape[-1]), k, v)

    @mistake("You divide by the root of the width. How long are the vectors that are multiplied in one head?")
    class ScaledByTheWidth(MultiHeadAttention):
        def mix(self, q, k, v):
            return super().mix(q / sqrt(self.n_head), k, v)

    @mistake("The three parts are in another order: in GPT-2 queries come first, then keys, then values.")
    class KeysFirst(MultiHeadAttention):
        def mix(self, q, k, v):
            return super().mix(k, q, v) if q.shape == k.shape else super().mix(q, k, v)
