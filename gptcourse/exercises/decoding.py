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


class TopP(Exercise, name="decoding.top_p", minutes=10):
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


class RepetitionPenalty(Exercise, name="decoding.repetition_penalty", minutes=10):
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


class MinP(Exercise, name="decoding.min_p", minutes=5):
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


class Perplexity(Exercise, name="decoding.perplexity", minutes=5):
    """Return the perplexity of all texts together, given the log-probability of each of their tokens."""

    hint = """Join the texts to a long one in your mind: what is the mean loss of its tokens, and among how many equal
        tokens would guessing have that loss?"""

    def inputs():
        return [texts(1, 3), texts(2, 9, 4), texts(1, 30), texts(*(40, 6) * 13, spread=2.0)]

    def reference(log_probs):
        return torch.cat(log_probs).mean().neg().exp().item()

    mean_perplexity = mistake("""That is the mean of the texts' perplexities: one strange text decides it. What should
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


class MendTemperature(Exercise, name="decoding.mend_temperature", minutes=5):
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


class MendTopP(Exercise, name="decoding.mend_top_p", minutes=10):
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


class Typical(Exercise, name="decoding.typical", minutes=15):
    """Keep the fewest tokens, those nearest to the expected surprise first, that hold at least p: a distribution."""

    hint = "Write down the surprise of each token, their mean by probability, and how far from it each token is."

    def inputs():
        of_many = torch.cat([tensor([0.3]), torch.linspace(0.015, 0.02, 40)]).log()
        return [(randn(12), 0.6), (2 * randn(3, 9), 0.3), (of_many, 0.5), (3 * randn(4, 7), 0.9)]

    def nearest(distance: Callable[[Tensor, Tensor], Tensor], base: float = torch.e, holds: Callable = torch.lt):
        """Return a filter that keeps tokens by a distance, of surprise and entropy, until they hold p."""

        def distribution(logits, p):
            probabilities = logits.softmax(-1)
            surprise = -probabilities.log() / torch.tensor(base).log()
            entropy = (probabilities * surprise).sum(-1, keepdim=True)
            order = distance(surprise, entropy).argsort(-1)
            ordered = probabilities.gather(-1, order)
            before = ordered.cumsum(-1) - ordered * (holds is torch.lt)
            kept = ordered.masked_fill(~(holds(before, p) | ~after_the_best(before)), 0.0)
            return torch.zeros_like(kept).scatter(-1, order, normalised(kept))

        return distribution

    reference = nearest(lambda surprise, entropy: (surprise - entropy).abs())
    likely_first = mistake("""That is top-p: you begin with the least surprising token. From where should the
        distance be counted?""")(nearest(lambda surprise, entropy: surprise))
    farthest = mistake("You begin with the farthest.")(nearest(lambda surprise, entropy: -(surprise - entropy).abs()))
    largest_even = mistake("""You measure from the surprise of an even choice among all. The entropy weighs each
        surprise by its probability.""")(nearest(lambda s, _: (s - torch.tensor(s.shape[-1]).log()).abs()))
    plain_mean = mistake("""You measure from the plain mean of the surprises. How often does each
        occur?""")(nearest(lambda surprise, _: (surprise - surprise.mean(-1, keepdim=True)).abs()))
    too_early = mistake("""You stop one token too early: what you keep holds less
        than p.""")(nearest(lambda surprise, entropy: (surprise - entropy).abs(), holds=torch.le))
    not_normalised = mistake("""The right tokens are left, but their probabilities add up to
        less than one.""")(lambda logits, p: logits.softmax(-1) * (Typical.reference(logits, p) > 0))


class AllowedTokens(Exercise, name="decoding.allowed_tokens", minutes=10):
    """Return for each token whether it may come next: True or False; token 0, the end, only after a whole answer."""

    hint = "For each token: join it to what is written. Does any answer begin like that?"

    def inputs():
        answers = ["order 12", "order 17", "orders", "none", "no"]
        pieces = ["", "o", "r", "or", "order", " 1", " ", "1", "2", "7", "s", "no", "n", "e", "ne", "12", "order 12x"]
        cases = [(answers, written, pieces) for written in ("", "o", "order", "order ", "order 1", "no", "orders", "n")]
        return [*cases, (["no", "so"], "", ["", "n", "s", "o", "so", "order"]), (["a b"], "a", ["", " ", " b", "b"])]

    def allowed(fits: Callable[[str, str, str], bool], ends: Callable = lambda answers, written: written in answers):
        """Return what lists the tokens that fit (answer, written, piece) for some answer."""

        def mask(answers, written, pieces):
            some = [any(fits(answer, written, piece) for answer in answers) for piece in pieces[1:]]
            return tensor([ends(answers, written), *some])

        return mask

    reference = allowed(lambda answer, written, piece: answer.startswith(written + piece))
    anywhere = mistake("""A token that stands somewhere in an answer is not yet one that may come
        now.""")(allowed(lambda answer, written, piece: piece in answer))
    rest = mistake("""You look for the joined text anywhere in an answer. Where must it
        stand?""")(allowed(lambda answer, written, piece: written + piece in answer))
    forgets = mistake("You forget what is written already.")(allowed(lambda a, written, piece: a.startswith(piece)))
    too_long = mistake("""A token that goes on after the end of an answer gets through: you look at its first sign
        alone.""")(allowed(lambda answer, written, piece: answer.startswith(written + piece[:1])))
    always_ends = mistake("""The end is allowed before the answer is
        whole.""")(allowed(lambda a, written, piece: a.startswith(written + piece), lambda *_: True))
    never_ends = mistake("""After a whole answer the text may end, and yours never
        may.""")(allowed(lambda a, written, piece: a.startswith(written + piece), lambda *_: False))

    @mistake("""One answer is the beginning of another, and after it both may come: the end, or more.""")
    def ends_at_once(answers, written, pieces):
        mask = AllowedTokens.reference(answers, written, pieces)
        return mask if written not in answers else torch.arange(len(pieces)) == 0


class AcceptOrResample(Exercise, name="decoding.accept_or_resample", minutes=10):
    """Return the token of a draft's proposal if it is accepted, else another, so that the result follows p."""

    hint = "Say p gives a token twice what q gives it, and another half. How often is each proposed?"

    def inputs():
        rows = [normalised(torch.rand(5) ** 2) for _ in range(60)]
        noise = [torch.empty(5).exponential_() for _ in range(30)]
        return [(rows[i], rows[-1 - i], i % 5, torch.rand(()).item(), noise[i]) for i in range(30)]

    def rule(keeps: Callable, rest: Callable = lambda p, q: (p - q).clamp(min=0)) -> Callable:
        """Return a rule that keeps a token by (p, q, u) of it, else draws from the rest."""

        def token_of(p, q, token, u, noise):
            return token if keeps(p[token], q[token], u) else (rest(p, q) / noise).argmax().item()

        return token_of

    reference = rule(lambda p, q, u: u < p / q)
    from_p = mistake("""Refused tokens are drawn anew from p. Then what q proposes too often comes too often still: of
        what has q given too little?""")(rule(lambda p, q, u: u < p / q, lambda p, q: p))
    from_q = mistake("""You draw what replaces a refused token from the draft
        again.""")(rule(lambda p, q, u: u < p / q, lambda p, q: q))
    other_rest = mistake("""You draw from what q gives too much. Of what is there too
        little?""")(rule(lambda p, q, u: u < p / q, lambda p, q: (q - p).clamp(min=0)))
    distance = mistake("A difference below zero is no lack.")(
        rule(lambda p, q, u: u < p / q, lambda p, q: (p - q).abs())
    )
    upside_down = mistake("Upside down: you keep what q likes and p does not.")(rule(lambda p, q, u: u < q / p))
    as_likely = mistake("""You keep a token with its probability under p. A draft that is right should never be
        refused.""")(rule(lambda p, q, u: u < p))
    no_dice = mistake("""No dice: a token that q proposes a little too often is refused
        always.""")(rule(lambda p, q, u: q <= p))
    best_left = mistake("""You take the token with the largest lack each time. It should be
        drawn.""")(lambda p, q, i, u, noise: AcceptOrResample.reference(p, q, i, u, torch.ones(5)))
    always = mistake("You accept everything, and write what the draft writes.")(rule(lambda p, q, u: True))


class DraftLength(Exercise, name="decoding.draft_length", minutes=10):
    """Return how many tokens a draft should propose (0 to 16) for the most tokens in a given time."""

    hint = "For one number of proposals: how many tokens does a round give, and how long does it take?"

    def inputs():
        return [(0.57, 0.05), (0.8, 0.1), (0.3, 0.4), (0.9, 0.01), (0.6, 0.6), (0.39, 0.35), (0.95, 0.3), (0.5, 0.2)]

    def best(tokens: Callable = lambda a, n: (1 - a ** (n + 1)) / (1 - a), time: Callable = lambda c, n: n * c + 1):
        """Return what chooses the number with the most tokens for its time."""
        return lambda rate, cost: max(range(17), key=lambda n: tokens(rate, n) / time(cost, n))

    reference = best()
    free_draft = mistake("""A draft that costs nothing should propose without end. Yours does cost.""")(
        best(time=lambda c, n: 1)
    )
    all_kept = mistake("""You count as if every proposal were looked at. The first refusal throws away the
        rest.""")(best(lambda a, n: 1 + a * n))
    without_the_last = mistake("""The large model's own token, after the last accepted one, is missing: a round gives
        at least one.""")(best(lambda a, n: (1 - a ** (n + 1)) / (1 - a) - 1))
    no_target = mistake("The pass of the large model takes time, too.")(best(time=lambda c, n: (n + 1) * c))


class CacheBytes(Exercise, name="decoding.kv_cache_bytes", minutes=5):
    """Return the bytes that the keys and values of all texts take in the cache."""

    hint = "How many numbers does one head keep for one token? Then: how many heads, layers, tokens, texts?"

    def inputs():
        return [(6, 4, 64, 256, 1, 4), (96, 96, 128, 2048, 16, 2), (2, 3, 5, 7, 11, 1)]

    def reference(n_layer, n_head, head_size, n_tokens, n_texts, bytes_each):
        return 2 * n_layer * n_head * head_size * n_tokens * n_texts * bytes_each

    keys_only = mistake("Half of it: a token leaves a key and a value.")(lambda *n: CacheBytes.reference(*n) // 2)
    queries_too = mistake("""A query is needed once, and not kept: what is?""")(
        lambda *n: 3 * CacheBytes.reference(*n) // 2
    )
    one_layer = mistake("Each layer has keys and values of its own.")(lambda *n: CacheBytes.reference(1, *n[1:]))
    one_text = mistake("Each text of the batch needs its own.")(lambda *n: CacheBytes.reference(*n[:4], 1, n[5]))
    one_head = mistake("Each head keeps its own.")(lambda n, _, *more: CacheBytes.reference(n, 1, *more))
    in_numbers = mistake("That is how many numbers. How long is one?")(lambda *n: CacheBytes.reference(*n[:5], 1))
    square = mistake("""A cache keeps tokens, not pairs of tokens: it grows in a straight
        line.""")(lambda *n: CacheBytes.reference(*n) * n[3])


class ChooseBits(Exercise, name="decoding.choose_bits", minutes=15):
    """Return the place of the smallest format that surely costs no more than the limit, or of the largest format."""

    hint = """For each format, take the differences passage by passage: their mean, and how sure it is. Which end of the
        interval must stay below the limit?"""

    def inputs():
        def case(costs, noise, limit, n=40):
            plain, sizes = 3 + 0.5 * randn(n), [10 * 2**i for i in range(len(costs))]
            rounding = [noise * (x - x.mean()) for x in randn(len(costs), n)]
            pairs = [(size, plain + cost + x) for size, cost, x in zip(sizes, costs, rounding, strict=True)]
            return plain, [pairs[i] for i in torch.randperm(len(pairs)).tolist()], limit

        cases = [case((0.3, 0.06, 0.01, 0.0), 0.02, 0.04), case((0.3, 0.06, 0.01, 0.0), 0.02, 0.09)]
        cases += [case((0.5, 0.049, 0.0), 0.05, 0.05), case((0.9, 0.5, 0.4), 0.02, 0.05)]
        cases += [case((0.9, 0.042, 0.0), 0.02, 0.04)]
        return [*cases, case((0.9, 0.038, 0.0), 0.02, 0.04), case((0.02, 0.01, 0.0), 0.001, 0.4)]

    def smallest(bound: Callable[[Tensor, Tensor], Tensor], among: Callable = min) -> Callable:
        """Return what chooses the smallest size with a bound (losses, plain losses) below the limit."""

        def place(plain, formats, limit):
            sizes = [size for size, _ in formats]
            good = [size for size, losses in formats if bound(losses, plain) <= limit]
            return sizes.index(among(good) if good else max(sizes))

        return place

    def upper(differences: Tensor) -> Tensor:
        return differences.mean() + 1.96 * differences.std() / len(differences) ** 0.5

    reference = smallest(lambda losses, plain: ChooseBits.upper(losses - plain))
    by_the_mean = mistake("""You look at the mean alone. Could it be above the limit on other
        passages?""")(smallest(lambda losses, plain: (losses - plain).mean()))
    unpaired = mistake("""You compare two means with the spread of the passages in each. The same passages were read by
        both: what is left when you subtract first?""")(smallest(
        lambda a, b: a.mean() - b.mean() + 1.96 * ((a.var() + b.var()) / len(a)).sqrt()
    ))  # fmt: skip
    lower_end = mistake("""You use the end of the interval that flatters. Which end says what it costs at
        worst?""")(smallest(lambda a, b: 2 * (a - b).mean() - ChooseBits.upper(a - b)))
    spread = mistake("""The spread of single passages is not that of their mean: more passages make the mean
        surer.""")(smallest(lambda a, b: (a - b).mean() + 1.96 * (a - b).std()))
    largest = mistake("Which of those that will do takes the least memory?")(smallest(
        lambda losses, plain: ChooseBits.upper(losses - plain), max
    ))  # fmt: skip
    no_limit = mistake("You take the smallest, whatever it costs.")(smallest(lambda losses, plain: tensor(-1e9)))
