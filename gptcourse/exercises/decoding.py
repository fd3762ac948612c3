"""The exercises of notebook 07: from what a model says to a token, and the probability of whole texts."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, randint, randn, tensor

from gptcourse.exercises.exercise import Exercise, as_it_stands, mistake

NOTEBOOK = "07 · Decoding and generation"


def normalised(x: Tensor) -> Tensor:
    return x / x.sum(-1, keepdim=True)


def keeping(drops: Callable[[Tensor, Tensor, float], Tensor]) -> Callable:
    """Return a filter that drops tokens by their probabilities in order, what each holds with those before, and p."""

    def distribution(logits, p):
        ordered, order = logits.softmax(-1).sort(dim=-1, descending=True)
        kept = ordered.masked_fill(drops(ordered, ordered.cumsum(-1), p), 0.0)
        return torch.zeros_like(kept).scatter(-1, order, normalised(kept))

    return distribution


def after_the_best(held: Tensor) -> Tensor:
    return torch.arange(held.shape[-1]) > 0


top_p = keeping(lambda ordered, held, p: (held - ordered >= p) & after_the_best(held))
without_the_crossing = keeping(lambda ordered, held, p: held > p)
without_the_crossing_but_the_best = keeping(lambda ordered, held, p: (held > p) & after_the_best(held))


def in_order_of_size(logits: Tensor, p: float) -> Tensor:
    return top_p(logits, p).sort(dim=-1, descending=True).values


def rows_to_draw(n: int, vocab_size: int, spread: float, p: float) -> tuple[Tensor, float, Tensor]:
    """Rows at which the model is more or less sure, and exponential noise to draw a token from each."""
    return spread * randn(n, vocab_size), p, torch.empty(n, vocab_size).exponential_()


def texts(*lengths: int, spread: float = 1.0) -> tuple[list[Tensor]]:
    return ([-spread * randn(length).abs() for length in lengths],)


class TopP(Exercise, name="decoding.top_p"):
    """Keep the fewest best tokens that together hold at least p, and return a distribution over them."""

    hint = """Write down the probabilities of five tokens, the best one first, and add them up one by one. With which
        token do you have enough, and where does that token belong?"""

    def inputs():
        of_two = tensor([[0.1, 0.4], [0.6, 0.2]]).log()
        small = [(randn(12), 0.9), (tensor([0.5, 6.0, 1.0, 2.0, -1.0]), 0.5)]
        return [*small, (2 * randn(3, 10), 0.7), (randn(2, 6), 0.0), (of_two, 1.0)]

    reference = top_p
    crossing_dropped = mistake("""Where the best token alone holds more than p, nothing is left, and you divide 0 by 0.
        Is the token with which the sum reaches p needed or not?""")(without_the_crossing)
    too_early = mistake("You stop one token too early: it holds less than p.")(without_the_crossing_but_the_best)
    one_too_many = mistake("""You keep one token too many:
        did the others not hold p already?""")(keeping(lambda ordered, held, p: F.pad(held >= p, (2, 0))[..., :-2]))
    nothing_at_zero = mistake("""Very close. With p at 0 yours keeps nothing at all.
        Who should always stay?""")(keeping(lambda ordered, held, p: held - ordered >= p))
    not_normalised = mistake("""The right tokens are left, but their probabilities add up to
        less than one.""")(lambda logits, p: logits.softmax(-1) * (top_p(logits, p) > 0))
    ordered = mistake("Your probabilities stand in the order of their size. Whose are they?")(in_order_of_size)
    each_on_its_own = mistake("""You hold each token against p on its own.
        What together should reach p?""")(keeping(lambda ordered, held, p: ordered < p))
    min_p = mistake("""That is min-p: each token is held against the best one.
        Top-p looks at a sum.""")(keeping(lambda ordered, held, p: ordered < p * ordered[..., :1]))


class RepetitionPenalty(Exercise, name="decoding.repetition_penalty"):
    """Make the tokens that have occurred less likely, each of them once, whatever the sign of its logit."""

    hint = """Take a logit of 2 and one of -2, each of them seen twice, and a penalty of 1.5. What should become of
        each, and what of a token that was not seen?"""

    def inputs():
        return [
            (tensor([2.0, -1.0, 0.5, -3.0, 4.0]), tensor([0, 1, 0, 3]), 1.5),
            (3 * randn(20), randint(20, (12,)), 2.0),
            (randn(6), tensor([5, 5, 5, 2, 2]), 1.2),
        ]

    def penalised(change: Callable[[Tensor, float], Tensor]) -> Callable:
        """Return a penalty that changes the logits of the tokens seen in this way."""

        def new_logits(logits, previous_ids, penalty):
            seen = torch.zeros_like(logits, dtype=torch.bool).index_fill(0, previous_ids, True)
            return torch.where(seen, change(logits, penalty), logits)

        return new_logits

    reference = penalised(lambda x, penalty: torch.where(x < 0, x * penalty, x / penalty))
    all_divided = mistake("""A negative logit that you divide comes nearer to zero, so its token becomes more likely.
        What should be done to it instead?""")(penalised(lambda x, penalty: x / penalty))
    exchanged = mistake("""The other way round: now the model
        repeats itself more.""")(penalised(lambda x, penalty: torch.where(x < 0, x / penalty, x * penalty)))

    @mistake("A token that has occurred three times is penalised three times. Here once is enough.")
    def each_time(logits, previous_ids, penalty):
        for token in previous_ids:
            logits = RepetitionPenalty.reference(logits, token[None], penalty)
        return logits

    of_all = mistake("""All tokens are penalised, those that have
        never occurred included.""")(lambda x, previous_ids, penalty: torch.where(x < 0, x * penalty, x / penalty))
    of_probabilities = mistake("""These are probabilities, which no longer add up to one. The rule
        works on logits.""")(lambda x, ids, penalty: RepetitionPenalty.all_divided(x.softmax(-1), ids, penalty))


class MinP(Exercise, name="decoding.min_p"):
    """Keep the tokens at least p times as likely as the best one, and return a distribution over them."""

    hint = "Write down three probabilities. With which number is each compared, and what becomes of those too small?"

    def inputs():
        return [(randn(10), 0.3), (2 * randn(3, 8), 0.1), (tensor([[3.0, 3.0, 0.0], [5.0, 1.0, 4.9]]), 0.9)]

    def at_least(limit: Callable[[Tensor, float], Tensor | float]) -> Callable:
        """Return a filter that keeps the probabilities from this limit on."""
        return lambda logits, p: normalised((q := logits.softmax(-1)).masked_fill(q < limit(q, p), 0.0))

    reference = at_least(lambda q, p: p * q.amax(-1, keepdim=True))
    fixed = mistake("""You hold every token against the number itself, so a sure model and an unsure one are cut at the
        same height. To what is it a share?""")(at_least(lambda q, p: min(p, q.amax().item())))
    of_the_whole = mistake("""You compare with the best token of all rows together.
        Each row has its own.""")(at_least(lambda q, p: (p * q.amax()).clamp(max=q.amax(-1, keepdim=True))))
    of_the_mean = mistake("""You compare with the mean. Min-p compares with
        the best token.""")(at_least(lambda q, p: p * q.mean(-1, keepdim=True)))
    not_normalised = mistake("""The right tokens are left, but their probabilities add up to less than
        one.""")(lambda logits, p: logits.softmax(-1) * (MinP.reference(logits, p) > 0))
    of_logits = mistake("""You compare logits. A share of a logit means nothing: add 5 to all of them, and other tokens
        are left.""")(lambda x, p: normalised(x.softmax(-1) * ((x >= p * x.amax(-1, keepdim=True)) + 0.0)))


class Perplexity(Exercise, name="decoding.perplexity"):
    """Return the perplexity of all texts together, given the log-probability of each of their tokens."""

    hint = """Join the texts to a long one in your mind: what is the mean loss of its tokens, and among how many equal
        tokens would guessing have that loss?"""

    def inputs():
        return [texts(1, 3), texts(2, 9, 4), texts(1, 30), texts(*(40, 6) * 13, spread=2.0)]

    def reference(log_probs):
        return torch.cat(log_probs).mean().neg().exp().item()

    mean_perplexity = mistake("""That is the mean of the texts' perplexities: one strange text drowns all. What should
        be joined first?""")(lambda texts: torch.stack([text.mean().neg().exp() for text in texts]).mean().item())
    of_mean_losses = mistake("""Each text has the same say, however short it is. Over what should the
        mean be taken?""")(lambda texts: torch.stack([text.mean() for text in texts]).mean().neg().exp().item())
    product = mistake("""Right for short texts. A product of hundreds of probabilities is too small for the computer:
        why turn logarithms back?""")(lambda texts: torch.cat(texts).exp().prod().pow(-1 / sum(map(len, texts))).item())
    without_the_sign = mistake("""Yours lies below one. A perplexity says among how many tokens the model is as good as
        guessing.""")(lambda texts: torch.cat(texts).mean().exp().item())
    loss = mistake("That is the mean loss. One step is missing.")(lambda texts: torch.cat(texts).mean().neg().item())
    of_bits = mistake("""You raise 2 to a power, but these logarithms are natural ones. Of which number are they the
        powers?""")(lambda texts: 2 ** torch.cat(texts).mean().neg().item())
    of_the_sum = mistake("""Yours grows with the length of the texts.
        Is a long text harder for each of its tokens?""")(lambda texts: torch.cat(texts).sum().neg().exp().item())


class MendTemperature(Exercise, name="decoding.mend_temperature"):
    """Mend the temperature so that a low one sharpens the distribution and a high one flattens it."""

    hint = """At temperature 1 nothing should change, at 0.01 the best token should get almost everything, and at 2 the
        ratio of two probabilities should be the root of what it was."""

    def inputs():
        return [(2 * randn(8), 0.5), (2 * randn(3, 6), 1.7), (100 * randn(2, 7), 0.3), (randn(3), 1e30)]

    def reference(logits, temperature):
        return (logits / temperature).softmax(-1)

    divided_twice = as_it_stands("""The mistake is still there: every temperature gives the same distribution. You
        divide, and then you divide by the sum. What is left?""")(lambda x, T: normalised(x.softmax(-1) / T))
    subtracted = mistake("""You subtract the temperature from every logit, and a softmax does not notice what all of
        them share.""")(lambda x, T: (x - T).softmax(-1))
    of_probabilities = mistake("""Now the temperature does something, but all tokens are nearly even: a softmax of
        probabilities. Numbers of which kind is it made for?""")(lambda x, T: (x.softmax(-1) / T).softmax(-1))
    without_the_sum = mistake("Your numbers do not add up to one any more.")(lambda x, T: x.softmax(-1) / T)
    upside_down = mistake("The wrong way: a high temperature makes yours surer.")(lambda x, T: (x * T).softmax(-1))
    overflowing = mistake("""Right for small logits. The exponential of a large one is infinite. What may you subtract
        from all without changing any result?""")(lambda x, T: normalised((x / T).exp()))


class MendTopP(Exercise, name="decoding.mend_top_p"):
    """Mend the draw so that it chooses among the fewest best tokens that together hold at least p."""

    hint = "Print, for a row, which tokens are left and what they hold. Is it at least p, and would one fewer do?"

    def inputs():
        return [rows_to_draw(64, 8, 3.0, 0.6), rows_to_draw(128, 12, 1.5, 0.8), rows_to_draw(2, 3, 1.0, 0.7)]

    def drawn_from(distribution: Callable[[Tensor, float], Tensor]) -> Callable:
        return lambda logits, p, noise: (distribution(logits, p) / noise).argmax(-1)

    reference = drawn_from(top_p)
    crossing_dropped = as_it_stands("""The mistake is still there: where one token holds more than p, token 0 is drawn.
        How many tokens are left there?""")(drawn_from(lambda logits, p: without_the_crossing(logits, p).nan_to_num()))
    crossing_dropped_but_the_best = mistake("""The best token is always there now. At the other places the token with
        which the sum reaches p is still missing.""")(drawn_from(without_the_crossing_but_the_best))
    nothing_cut = mistake("Any token can be drawn: nothing is cut.")(drawn_from(lambda logits, p: logits.softmax(-1)))
    place = mistake("You count from the best token on. Which token stands at that place?")(drawn_from(in_order_of_size))

    @mistake("""A fair draw, but of the noise each number belongs to one token, and yours meets the tokens in the order
        of their size. Put the probabilities back in their places first.""")
    def noise_in_order(logits, p, noise):
        probabilities, order = top_p(logits, p).sort(dim=-1, descending=True)
        return order.gather(-1, (probabilities / noise).argmax(-1)[:, None])[:, 0]
