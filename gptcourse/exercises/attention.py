"""The exercises of notebook 01: attention.

Each mistake is a formula that people really use. Its hint says what goes wrong, or asks the question that helps,
and leaves the mending to the learner.
"""

from __future__ import annotations

from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, randn

from gptcourse.attention import KeyValueCache, attention, causal_mask
from gptcourse.exercises import Exercise, Mistake

NOTEBOOK = "01 · Attention"
WRONG_AXIS = (
    "Your numbers add up to one along the wrong direction. Each query shares out one unit of attention: "
    "which dimension runs over the keys, however many dimensions stand in front?"
)
NO_SCALE = (
    "The products are right, but their spread grows with the head size D, and the softmax saturates. "
    "Something that grows with D should bring the spread back to one."
)
OVERSCALED = (
    "You divide by too much: a sum of D independent products has variance D, so what is its standard deviation?"
)
SEES_FUTURE = "Every token can look at the tokens after it. Who may look at whom?"
LATE_MASK = (
    "The future gets no weight, but the rows no longer add up to one: some of the attention is lost. "
    "Among whom was it shared out?"
)
NOT_HIDDEN = (
    "A score of zero is an ordinary score: its exponential is one, so the future still gets weight. "
    "Which score has an exponential of exactly zero?"
)


def masked(scores: Tensor, may_look: Tensor, fill: float = -torch.inf, dim: int = -1) -> Tensor:
    return scores.masked_fill(~may_look, fill).softmax(dim)


def triangle(scores: Tensor) -> Tensor:
    return causal_mask(scores.shape[-1])


def scaled(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.mT / sqrt(q.shape[-1])


def causal_weights(q: Tensor, k: Tensor) -> Tensor:
    return attention(q, k, k, causal_mask(q.shape[-2]))[1]


def softmax_by_hand(scores: Tensor, keepdim: bool) -> Tensor:
    return scores.exp() / scores.exp().sum(-1, keepdim=keepdim)


def add_table(x: Tensor, table: Tensor, start: int) -> Tensor:
    return x + F.embedding(torch.arange(start, start + x.shape[1]), table)


def heads_first(x: Tensor, n_head: int) -> Tensor:
    return torch.stack(x.chunk(n_head, dim=-1), dim=1)  # (B, H, T, D)


def cut(x: Tensor, n_head: int) -> Tensor:
    return x.reshape(x.shape[0], x.shape[1], n_head, -1)  # (B, T, H, D)


def remember(past_keys: Tensor, past_values: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    B, H, S, D = past_keys.shape
    memory = KeyValueCache(B, H, S + 1, D)
    memory.append(past_keys, past_values)
    return memory.append(k, v)


def decode(q, k, v, past_keys, past_values, sees=slice(None)) -> tuple[Tensor, Tensor, Tensor]:
    """One decoding step in which the query looks only at the keys in the slice `sees`."""
    keys, values = remember(past_keys, past_values, k, v)
    return attention(q, keys[:, :, sees], values[:, :, sees])[0], keys, values


def many_heads(q: Tensor, k: Tensor, v: Tensor, n_head: int, is_causal: bool = True) -> Tensor:
    q, k, v = (heads_first(x, n_head) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=is_causal)  # (B, H, T, D)


def cut_by_memory(q: Tensor, k: Tensor, v: Tensor, n_head: int) -> Tensor:
    q, k, v = (x.reshape(x.shape[0], n_head, x.shape[1], -1) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, H, T, D)


EXERCISES = (
    Exercise(
        name="attention.scores",
        asks="Return the dot product of each query with each key, scaled for the size of a head.",
        inputs=lambda: [(randn(3, 4), randn(5, 4)), (randn(2, 2, 3, 8), randn(2, 2, 6, 8))],
        reference=lambda q, k: torch.einsum("...td,...sd->...ts", q, k) / sqrt(q.shape[-1]),
        hint="The number in row t and column s should come from query t and key s alone, and from D.",
        mistakes=(
            Mistake(lambda q, k: q @ k.mT, NO_SCALE),
            Mistake(lambda q, k: q @ k.mT / q.shape[-1], OVERSCALED),
            Mistake(lambda q, k: q @ k.mT * sqrt(q.shape[-1]), "That makes the spread wider still: the other way."),
            Mistake(
                lambda q, k: scaled(q, k).softmax(-1), "These are weights already. The scores come before the softmax."
            ),
            Mistake(
                lambda q, k: q @ k.mT / sqrt(q.shape[1]),
                "That scale is right for a single sentence only. With a batch and heads in front, "
                "which dimension holds the size of a head?",
            ),
            *(
                Mistake(
                    formula,
                    "As they stand the two matrices do not fit: a row of queries has to meet a row of keys. "
                    "Which of them has to be turned, and which two of its dimensions?",
                )
                for formula in (
                    lambda q, k: q @ k,
                    lambda q, k: q @ k / sqrt(q.shape[-1]),
                    lambda q, k: q @ k.permute(*reversed(range(k.ndim))) / sqrt(q.shape[-1]),
                    lambda q, k: q @ k.transpose(0, 1) / sqrt(q.shape[-1]),
                    lambda q, k: q @ k.transpose(1, 2) / sqrt(q.shape[-1]),
                )
            ),
        ),
    ),
    Exercise(
        name="attention.weights",
        asks="Turn each query's scores into positive weights over the keys that add up to one.",
        inputs=lambda: [
            (randn(3, 5),),
            (randn(2, 4, 4),),
            (randn(2, 2, 3, 3) + torch.tensor([[1000.0], [0.0], [-1000.0]]),),
        ],
        reference=lambda scores: scores.softmax(-1),
        hint="Within a row, the ratio of two weights is the exponential of the difference of their scores.",
        mistakes=(
            *(Mistake(lambda scores, dim=dim: scores.softmax(dim), WRONG_AXIS) for dim in (0, 1, -2)),
            Mistake(
                lambda scores: scores.flatten().softmax(0).view(scores.shape),
                "All your weights together add up to one. Each query has one unit of its own to share out.",
            ),
            Mistake(
                lambda scores: softmax_by_hand(scores, keepdim=True),
                "Right for small scores, but the exponential of 1,000 is infinite and gives NaN. "
                "What may you take away from every score of a row without changing any ratio?",
            ),
            Mistake(
                lambda scores: softmax_by_hand(scores - scores.max(), keepdim=True),
                "You take one number away from all rows together. Next to a row of very large scores, "
                "a row of small ones becomes all zeros and then NaN: each row needs a number of its own.",
            ),
            *(
                Mistake(
                    formula,
                    "The sums stand in the wrong place: a sum over the keys loses a dimension, "
                    "and then it lines up with columns instead of rows.",
                )
                for formula in (
                    lambda scores: softmax_by_hand(scores, keepdim=False),
                    lambda scores: softmax_by_hand(scores - scores.amax(-1, keepdim=True), keepdim=False),
                )
            ),
            Mistake(
                lambda scores: scores / scores.sum(-1, keepdim=True),
                "Scores may be negative, so shares of their sum may be negative, too. What makes any number positive?",
            ),
            Mistake(lambda scores: scores.exp(), "Positive they are, but the rows do not add up to one yet."),
        ),
    ),
    Exercise(
        name="attention.causal",
        asks="Return the softmax of each row of scores, with no weight on any key after the query.",
        inputs=lambda: [(randn(4, 4),), (randn(2, 2, 5, 5),), (randn(3, 3) - 20_000,)],
        reference=lambda scores: masked(scores, triangle(scores)),
        hint="Row t should be the softmax of its first t + 1 scores (t counts from 0), and zero after them.",
        mistakes=(
            Mistake(lambda scores: scores.softmax(-1), SEES_FUTURE),
            Mistake(lambda scores: scores.softmax(-1) * triangle(scores), LATE_MASK),
            Mistake(lambda scores: masked(scores, triangle(scores), fill=0.0), NOT_HIDDEN),
            Mistake(
                lambda scores: masked(scores, triangle(scores).tril(-1)),
                "Your tokens may not look at themselves, so the first has nobody at all to look at and gives NaN.",
            ),
            Mistake(
                lambda scores: masked(scores, triangle(scores).mT),
                "Your mask is the wrong way round: tokens see the future and not the past.",
            ),
            Mistake(
                lambda scores: masked(scores, ~triangle(scores)),
                "You hide exactly those keys that should be seen. Does True mean hide or show where you use the mask?",
            ),
            *(
                Mistake(
                    lambda scores, fill=fill: masked(scores, triangle(scores), fill),
                    "Your hiding number is large, but a score may be lower still (here about -20,000), "
                    "and then the future wins. Which number is below every score?",
                )
                for fill in (-1e3, -1e4)
            ),
            *(
                Mistake(lambda scores, dim=dim: masked(scores, triangle(scores), dim=dim), WRONG_AXIS)
                for dim in (0, -2)
            ),
        ),
    ),
    Exercise(
        name="attention.output",
        asks="Return the whole of one causal attention head: scores, mask, softmax, weighted sum of the values.",
        inputs=lambda: [
            (randn(4, 6), randn(4, 6), randn(4, 3)),
            (randn(2, 2, 5, 8), randn(2, 2, 5, 8), randn(2, 2, 5, 8)),
        ],
        reference=lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        hint=(
            "The first output should be exactly the first value. Check the pieces one by one, on the first two tokens."
        ),
        mistakes=(
            Mistake(lambda q, k, v: attention(q, k, v)[0], SEES_FUTURE),
            Mistake(lambda q, k, v: causal_weights(q * sqrt(q.shape[-1]), k) @ v, NO_SCALE),
            Mistake(lambda q, k, v: (attention(q, k, v)[1] * causal_mask(q.shape[-2])) @ v, LATE_MASK),
            Mistake(lambda q, k, v: masked(scaled(q, k), causal_mask(q.shape[-2]), fill=0.0) @ v, NOT_HIDDEN),
            Mistake(lambda q, k, v: masked(scaled(q, k), causal_mask(q.shape[-2]), dim=-2) @ v, WRONG_AXIS),
            Mistake(
                lambda q, k, v: causal_weights(q, k),
                "These are the weights, and they are right. The output is what they make of the values.",
            ),
            Mistake(
                lambda q, k, v: causal_weights(q, k) @ k,
                "You mix the keys. Keys say where to look; what is read there is something else.",
            ),
            Mistake(
                lambda q, k, v: causal_weights(q, k).mT @ v,
                "The weights are turned: row t of the weights belongs to query t and should give output t.",
            ),
        ),
    ),
    Exercise(
        name="attention.positions",
        asks="Add to each token's vector the row of the table that belongs to its position.",
        inputs=lambda: [
            (randn(2, 3, 4), randn(8, 4), 0),
            (randn(2, 3, 4), randn(8, 4), 4),
            (randn(1, 1, 4), randn(8, 4), 6),
        ],
        reference=lambda x, table, start: add_table(x, table, start),
        hint="Token t of every sentence in the batch gets the row of position start + t, added.",
        mistakes=(
            Mistake(
                lambda x, table, start: add_table(x, table, 0),
                "Right when the tokens are the first of the text. With earlier tokens in a cache, "
                "your new token believes that it stands at position 0.",
            ),
            Mistake(
                lambda x, table, start: x + table[start],
                "Every token gets the same row, so the order is still unknown. Only the first one stands at start.",
            ),
            Mistake(
                lambda x, table, start: x + table[-x.shape[1] :],
                "You take the last rows of the table, wherever the tokens stand.",
            ),
            Mistake(
                lambda x, table, start: x + table,
                "The table has a row for every position there is, and you have fewer tokens. Which rows are theirs?",
            ),
            Mistake(
                lambda x, table, start: add_table(x, table, start + 1),
                "Positions count from 0 here, and yours are one too high.",
            ),
            Mistake(
                lambda x, table, start: x * F.embedding(torch.arange(start, start + x.shape[1]), table),
                "You multiply. GPT puts the position into the stream in a gentler way.",
            ),
        ),
    ),
    Exercise(
        name="attention.heads",
        asks="Split each token's vector into heads and bring the heads in front of the time.",
        inputs=lambda: [(randn(2, 3, 8), 2), (randn(1, 6, 12), 3)],
        reference=heads_first,
        hint="Head h of token t holds the numbers h * D up to (h + 1) * D of that token's vector, and no others.",
        mistakes=(
            Mistake(
                lambda x, n_head: x.reshape(x.shape[0], n_head, x.shape[1], -1),
                "The shape is right, the contents are not: the numbers keep their order in memory, "
                "so your first head holds whole tokens instead of a part of every token.",
            ),
            Mistake(
                lambda x, n_head: cut(x, n_head),
                "Each vector is cut well. Now time stands before the heads: two dimensions should change places.",
            ),
            Mistake(
                lambda x, n_head: x.reshape(x.shape[0], x.shape[1], -1, n_head).permute(0, 3, 1, 2),
                "Your heads take turns: every n-th number goes to the same head. "
                "A head should hold neighbouring numbers, so which size comes first when a vector is cut?",
            ),
            Mistake(
                lambda x, n_head: torch.stack(x.split(n_head, dim=-1), dim=1),
                "You cut into pieces of n_head numbers; it should be n_head pieces.",
            ),
            Mistake(
                lambda x, n_head: heads_first(x, n_head).mT,
                "Nearly: within each head the time and the numbers of the head have changed places.",
            ),
            Mistake(
                lambda x, n_head: x.chunk(n_head, dim=-1),
                "The pieces are right, but loose. They should be one tensor with a dimension for the heads.",
            ),
        ),
    ),
    Exercise(
        name="attention.merge",
        asks="Put the heads of each token next to each other again: the way back from the split.",
        inputs=lambda: [(randn(2, 2, 3, 4),), (randn(1, 3, 6, 4),)],
        reference=lambda x: torch.cat(x.unbind(1), dim=-1),
        hint="Token t should get all that head 0 says about it, then all that head 1 says, and so on.",
        mistakes=(
            Mistake(
                lambda x: x.reshape(x.shape[0], x.shape[2], -1),
                "The shape is right, the contents are not: the numbers keep their order in memory, "
                "so different tokens end up in one vector. First bring each token's heads together.",
            ),
            Mistake(
                lambda x: x.transpose(1, 2).view(x.shape[0], x.shape[2], -1),
                "The order of your steps is right. But a turned tensor no longer lies in memory in reading order, and "
                "what you use to join insists on that; it has a sister that copies when needed.",
            ),
            Mistake(
                lambda x: x.transpose(1, 2),
                "The heads of a token now stand together. What is left is to make one vector of them.",
            ),
            Mistake(
                lambda x: x.permute(0, 2, 3, 1).reshape(x.shape[0], x.shape[2], -1),
                "The heads' numbers alternate in your vectors. All of head 0 should come first.",
            ),
            *(
                Mistake(formula, "You blend the heads into one. Each should keep its own place in the vector.")
                for formula in (lambda x: x.mean(1), lambda x: x.sum(1))
            ),
            Mistake(
                lambda x: x.flatten(2), "You have joined the time with the heads' numbers. Time should stay apart."
            ),
        ),
    ),
    Exercise(
        name="attention.cache",
        asks="Append the new key and value to the memory, and let the new query look at all of it.",
        inputs=lambda: [
            (*(randn(2, 3, 1, 4) for _ in range(3)), randn(2, 3, 5, 4), randn(2, 3, 5, 4)),
            (*(randn(2, 3, 1, 4) for _ in range(3)), randn(2, 3, 0, 4), randn(2, 3, 0, 4)),
        ],
        reference=lambda q, k, v, past_keys, past_values: decode(q, k, v, past_keys, past_values),
        hint="With an empty memory the output should be the new value itself; compare with the full computation.",
        mistakes=(
            Mistake(
                lambda q, k, v, past_keys, past_values: decode(q, k, v, past_keys, past_values, slice(0, -1)),
                "The new token looks at the past only. May a token look at itself, too?",
            ),
            Mistake(
                lambda q, k, v, past_keys, past_values: decode(q, k, v, past_keys, past_values, slice(-1, None)),
                "The new token sees nobody but itself: the memory is kept and never read.",
            ),
            Mistake(
                lambda q, k, v, past_keys, past_values: decode(q, k, v, past_keys, past_values, slice(0, 1)),
                "Your query sees only the very first key. A triangle mask that starts in the upper left corner takes "
                "this query for the first token, and it is the last. Does it need a mask at all?",
            ),
            Mistake(
                lambda q, k, v, past_keys, past_values: decode(q * sqrt(q.shape[-1]), k, v, past_keys, past_values),
                NO_SCALE,
            ),
            Mistake(
                lambda q, k, v, past_keys, past_values: (
                    decode(q, k, v, past_keys, past_values)[0],
                    torch.cat((k, past_keys), -2),
                    torch.cat((v, past_values), -2),
                ),
                "The new key and value stand in front of the old ones. In what order were the tokens read?",
            ),
            Mistake(
                lambda q, k, v, past_keys, past_values: decode(q, k, v, past_keys, past_values)[0],
                "The output is right. But the next step needs the longer keys and values: return them as well.",
            ),
            Mistake(
                lambda q, k, v, past_keys, past_values: (
                    decode(q, k, v, past_keys, past_values)[0],
                    past_keys,
                    past_values,
                ),
                "The output is right, but you hand back the old memory, so the next step will have "
                "forgotten this token.",
            ),
            *(
                Mistake(
                    lambda q, k, v, past_keys, past_values, dim=dim: torch.cat((past_keys, k), dim),
                    "You join along the wrong dimension. Which dimension of the memory grows when a token arrives?",
                )
                for dim in (1, -1)
            ),
        ),
    ),
    Exercise(
        name="attention.mend_focus",
        asks="Mend the head so that a key that matches well can get nearly all the weight.",
        inputs=lambda: [(2 * randn(3, 16), 2 * randn(5, 16)), (randn(2, 4, 8), randn(2, 6, 8))],
        reference=lambda q, k: attention(q, k, k)[1],
        hint=(
            "For random queries and keys the scores should have a spread of about one, and yet a key that "
            "matches ten times better than the others should get nearly all the weight."
        ),
        mistakes=(
            *(
                Mistake(
                    formula,
                    "The mistake is still there: no weight can be more than about seven times another, however well "
                    "its key matches. What keeps the scores in so narrow a range?",
                    untouched=untouched,
                )
                for formula, untouched in (
                    (lambda q, k: (q @ k.mT).tanh().softmax(-1), True),
                    (lambda q, k: scaled(q, k).tanh().softmax(-1), False),
                    (lambda q, k: ((q @ k.mT).tanh() / sqrt(q.shape[-1])).softmax(-1), False),
                )
            ),
            Mistake(lambda q, k: (q @ k.mT).softmax(-1), NO_SCALE),
            Mistake(lambda q, k: (q @ k.mT / q.shape[-1]).softmax(-1), OVERSCALED),
        ),
    ),
    Exercise(
        name="attention.mend_batch",
        asks="Mend the weights so that each query's weights add up to one, in a batch, too.",
        inputs=lambda: [(randn(2, 4, 8), randn(2, 4, 8)), (randn(3, 2, 8), randn(3, 5, 8))],
        reference=lambda q, k: attention(q, k, k)[1],
        hint="Sentence b of the batch should get the weights it would get alone.",
        mistakes=(
            Mistake(
                lambda q, k: scaled(q, k).softmax(1),
                "The mistake is still there: add up one query's weights, and the sum is not one. "
                "What does add up to one instead, now that a batch stands in front?",
                untouched=True,
            ),
            Mistake(
                lambda q, k: scaled(q, k).softmax(0),
                "Now the sentences of the batch compete with each other. Who should?",
            ),
            Mistake(
                lambda q, k: scaled(q, k).flatten(1).softmax(-1).view(scaled(q, k).shape),
                "Now all weights of a sentence together add up to one. Each query has one unit of its own.",
            ),
            Mistake(
                lambda q, k: scaled(q, k).softmax(1) / scaled(q, k).softmax(1).sum(-1, keepdim=True),
                "The rows add up to one now, but only by repair: "
                "the first sharing still ran in the wrong direction, and the ratios are off.",
            ),
        ),
    ),
    Exercise(
        name="attention.mend_rows",
        asks="Mend the weights so that the future gets none and every row still adds up to one.",
        inputs=lambda: [(randn(4, 4),), (randn(2, 2, 5, 5),)],
        reference=lambda scores: masked(scores, triangle(scores)),
        hint="Row t should be the softmax of its first t + 1 scores (t counts from 0), and zero after them.",
        mistakes=(
            Mistake(
                lambda scores: scores.softmax(-1) * triangle(scores),
                "The mistake is still there: the future gets no weight, and yet most rows add up to less than one. "
                "Who got the rest?",
                untouched=True,
            ),
            Mistake(lambda scores: masked(scores, triangle(scores), fill=0.0), NOT_HIDDEN),
            Mistake(
                lambda scores: scores.softmax(-1).masked_fill(~triangle(scores), -torch.inf),
                "Minus infinity is a good score for the future and a strange weight: you fill it in one step too late.",
            ),
            Mistake(
                lambda scores: masked(scores, ~triangle(scores)),
                "You hide exactly those keys that should be seen. Does True mean hide or show where you use the mask?",
            ),
            Mistake(
                lambda scores: (scores.softmax(-1) * triangle(scores)).softmax(-1),
                "Two sharings in a row: the second gives weight back to the future, since a weight of "
                "zero is not hidden.",
            ),
        ),
    ),
    Exercise(
        name="attention.mend_leak",
        asks="Mend the heads so that no output depends on a later token.",
        inputs=lambda: [(*(randn(2, 6, 8) for _ in range(3)), 2), (*(randn(1, 5, 12) for _ in range(3)), 3)],
        reference=lambda q, k, v, n_head: many_heads(q, k, v, n_head).transpose(1, 2).flatten(2),
        hint=(
            "Each head should do causal attention on its own slice of every token's vector; then the slices are joined."
        ),
        mistakes=(
            Mistake(
                lambda q, k, v, n_head: cut_by_memory(q, k, v, n_head).transpose(1, 2).flatten(2),
                "The mistake is still there: change a token, and outputs before it change, though each head has its "
                "mask. Print what one head is given: which numbers of which tokens are they?",
                untouched=True,
            ),
            Mistake(
                lambda q, k, v, n_head: cut_by_memory(q, k, v, n_head).reshape(q.shape),
                "Nothing leaks now, but each head still holds only a stretch of the sentence, "
                "and tokens in different stretches never meet. Look at how the vectors are cut.",
            ),
            Mistake(
                lambda q, k, v, n_head: many_heads(q, k, v, n_head).reshape(q.shape),
                "The heads are cut well now, but joined in the order of memory: "
                "different tokens end up in one vector. Go back the way you came.",
            ),
            Mistake(lambda q, k, v, n_head: many_heads(q, k, v, n_head, False).transpose(1, 2).flatten(2), SEES_FUTURE),
            *(
                Mistake(
                    formula,
                    "With time in front, attention runs over the heads of one token instead of over the tokens. "
                    "Two dimensions should change places before it and after it.",
                )
                for formula in (
                    lambda q, k, v, n_head: F.scaled_dot_product_attention(
                        *(cut(x, n_head) for x in (q, k, v)), is_causal=True
                    ).flatten(2),
                    lambda q, k, v, n_head: (
                        F.scaled_dot_product_attention(*(cut(x, n_head) for x in (q, k, v)), is_causal=True)
                        .transpose(1, 2)
                        .reshape(q.shape)
                    ),
                )
            ),
        ),
    ),
)
