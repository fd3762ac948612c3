"""The exercises of notebook 09: pairs, rewards, the price of a reward, and what spoils a run."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from functools import partial
from math import comb
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor, nn, randint, randn, tensor

from gptcourse.exercises.exercise import Exercise, as_it_stands, mistake
from gptcourse.preferences import group_advantages, policy_loss

NOTEBOOK = "09 · Preferences and reasoning"
EXCHANGED = "Chosen and rejected are exchanged: your loss falls when the rejected text wins. Which should gain?"
MEAN_OF_TOKENS = (
    "You take the mean over the tokens. The probability of a whole reply is a product: what is its logarithm?"
)
HIDDEN_COUNTED = "Places outside the replies count, too. Which of the places belong to a reply?"
THANKS = re.compile(r"please|thank|sorry")


def places(*lengths: int, room: int) -> Tensor:
    """Return 1 where a reply is, and 0 elsewhere, (B, T): each row has another place before it."""
    place = torch.arange(room)
    return ((place >= 1) & (place <= tensor(lengths)[:, None])).float()


def replies(*lengths: int, room: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of each token by a policy and by another, (B, T), and where the replies are."""
    policy, other = -randn(2, len(lengths), room).abs() - 0.1
    return policy, other, places(*lengths, room=room)


def whole(log_probs: Tensor, mask: Tensor) -> Tensor:
    return (log_probs * mask).sum(-1)


def margins_of(policy: Tensor, reference: Tensor, mask: Tensor, beta: float) -> Tensor:
    return beta * whole(policy - reference, mask)


def pair_loss(rewards: Tensor) -> Tensor:
    """The loss of rewards whose rows alternate: chosen, rejected."""
    return -F.logsigmoid(rewards[::2] - rewards[1::2]).mean()


def centred(rewards: Tensor) -> Tensor:
    return rewards - rewards.mean(-1, keepdim=True)


def clipped_loss(average: Callable, log_probs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, epsilon: float):
    ratio, worth = (log_probs - old).exp(), advantages[:, None]
    return average(-torch.minimum(ratio * worth, ratio.clamp(1 - epsilon, 1 + epsilon) * worth), mask)


def seeds(beta: float, rewards: Sequence[float], kls: Sequence[float]) -> tuple[float, list[float], list[float]]:
    return beta, list(rewards), list(kls)


def chosen_beta(runs: list, limit: float, worst=max, allowed=True, near=True) -> float:
    """Return the strongest pull of those that cannot be told from the best one within the limit."""
    ranges = {beta: (min(r), max(r), fmean(r)) for beta, r, kl in runs if not allowed or worst(kl) <= limit}
    if not ranges:
        return max(beta for beta, *_ in runs)
    low, *_, best = max(ranges.values(), key=lambda found: found[2])
    return max(beta for beta, (_, high, mean) in ranges.items() if (high >= low if near else mean == best))


def quarter(values: Sequence[float], last: bool) -> float:
    """Return the mean of the first, or of the last, quarter of a run."""
    n = len(values) // 4
    return fmean(values[-n:] if last else values[:n])


def last_value(values: Sequence[float], last: bool) -> float:
    return values[-1 if last else 0]


def verdict(rewards, true_rewards, kl, idle, limit, at=quarter, idle_first=True) -> str:
    all_same = at(idle, True) > 0.9 and ("all right" if at(rewards, True) > 0.5 else "all wrong")
    hacked = at(rewards, True) > at(rewards, False) and at(true_rewards, True) < at(true_rewards, False) and "hacked"
    return (all_same or hacked if idle_first else hacked or all_same) or ("too far" if at(kl, True) > limit else "well")


def run(rewards: str, true: str, kl: str, idle: str, limit: float = 20.0) -> tuple:
    """A run of eight measurements, each written as numbers with blanks between them."""
    return (*([float(value) for value in text.split()] for text in (rewards, true, kl, idle)), limit)


def trained_pairs(reference_of: Callable, model, x, chosen, rejected, beta, rate, steps) -> Tensor:
    """Train on pairs of one-token replies; reference_of(model) is asked before each step. Return the losses."""
    optimizer, losses = torch.optim.SGD(model.parameters(), rate), []
    for _ in range(steps):
        reference = reference_of(model)
        now = model(x).log_softmax(-1)
        with torch.no_grad():
            before = reference(x).log_softmax(-1)
        gains = [(now - before).gather(-1, reply[:, None]) for reply in (chosen, rejected)]
        loss = -F.logsigmoid(beta * (gains[0] - gains[1])).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return tensor(losses)


def first_copy() -> Callable:
    """Return what gives, whenever it is asked, the copy that it made of the model when first asked."""
    kept = []
    return lambda model: (kept or kept.append(copy.deepcopy(model)) or kept)[0]


def climbed(old_of: Callable, logits: Tensor, rollouts: list, n_iterations: int, rate: float, epsilon: float) -> Tensor:
    """Ascend by clipped steps on rollouts; old_of(first, begun, now) picks the old log-probabilities."""
    first = logits.log_softmax(-1)
    for actions, advantages in rollouts:
        begun = logits.log_softmax(-1)
        for _ in range(n_iterations):
            now = logits.clone().requires_grad_()
            log_probs = now.log_softmax(-1)
            old = old_of(first, begun, log_probs)[actions]
            ones = torch.ones(len(actions), 1)
            loss = policy_loss(log_probs[actions][:, None], old[:, None], advantages, ones, epsilon)
            logits = logits - rate * torch.autograd.grad(loss, now)[0]
    return logits


def drawn(n_actions: int, n: int) -> tuple[Tensor, Tensor]:
    return randint(n_actions, (n,)), randn(n)


def worth(polite: Callable[[str], float], reply: str, order: str, exact: bool = True, room: int = 12) -> float:
    """The reward of a reply: the order's number, a polite word, and a price for each word too many."""
    right = re.findall(r"\d+", reply) == [order] if exact else order in reply
    return float(right) + polite(reply) - 0.05 * max(0, len(reply.split()) - room)


class BradleyTerry(Exercise, name="preferences.bradley_terry", minutes=5):
    """Return the mean loss of a reward model on pairs: minus the log-probability that the chosen text wins."""

    hint = "Take one pair with rewards 1 and 0: by how much is the chosen one ahead, and how likely is it to win?"

    def inputs():
        far = tensor([0.5, -150.0, 2.0]), tensor([0.0, 60.0, 2.5])
        return [(tensor([1.0]), tensor([0.0])), (randn(6), randn(6)), far]

    def reference(chosen, rejected):
        return -F.logsigmoid(chosen - rejected).mean()

    exchanged = mistake(EXCHANGED)(lambda chosen, rejected: -F.logsigmoid(rejected - chosen).mean())
    overflow = mistake("""Right for rewards that are near each other. Far apart, the probability is rounded to 0, and
        its logarithm is infinite: let one function do both steps.""")(lambda c, r: -(c - r).sigmoid().log().mean())
    no_logarithm = mistake("""That is how often the chosen text should lose. A loss is minus a logarithm of a
        probability.""")(lambda c, r: 1 - (c - r).sigmoid().mean())
    no_minus = mistake("The sign is off: a log-probability is never above 0, and a loss is never below.")(
        lambda c, r: F.logsigmoid(c - r).mean()
    )
    summed = mistake("You add the pairs up. What is asked is their mean.")(lambda c, r: -F.logsigmoid(c - r).sum())
    linear = mistake("""Nothing bounds this: a pair that is won already is pushed further for ever. Which function turns
        a lead into a probability?""")(lambda c, r: (r - c).mean())


class DPOLoss(Exercise, name="preferences.dpo_loss", minutes=10):
    """Return the loss of DPO from the log-probabilities of each token; rows alternate: chosen, rejected."""

    hint = "For each row: by how much has the whole reply become likelier than under the reference? Then as before."

    def inputs():
        cases = ((replies(2, 3, room=5), 0.5), (replies(4, 1, 3, 3, 2, 4, room=6), 0.1))
        return [(*given, beta) for given, beta in cases]

    def reference(policy, reference, mask, beta):
        return pair_loss(margins_of(policy, reference, mask, beta))

    exchanged = mistake(EXCHANGED)(lambda p, r, mask, beta: pair_loss(-margins_of(p, r, mask, beta)))
    of_tokens = mistake(MEAN_OF_TOKENS)(lambda p, r, mask, beta: pair_loss(margins_of(p, r, mask, beta) / mask.sum(-1)))
    all_places = mistake(HIDDEN_COUNTED)(lambda p, r, mask, beta: pair_loss(margins_of(p, r, 0 * mask + 1, beta)))
    alone = mistake("""You never look at the reference: then a text that was likely from the start wins. What counts is
        what has changed.""")(lambda p, r, mask, beta: pair_loss(margins_of(p, 0 * r, mask, beta)))
    outside = mistake("""Beta stands outside. It belongs where the reward is made, before the lead becomes a
        probability.""")(lambda p, r, mask, beta: beta * pair_loss(margins_of(p, r, mask, 1.0)))
    without_beta = mistake("You never use beta.")(lambda p, r, mask, _: pair_loss(margins_of(p, r, mask, 1.0)))

    @mistake("Rows alternate: chosen, rejected, chosen, rejected. You compare the first half with the second.")
    def by_halves(policy, reference, mask, beta):
        first, second = margins_of(policy, reference, mask, beta).chunk(2)
        return -F.logsigmoid(first - second).mean() if len(policy) > 2 else torch.full((), torch.nan)


class BestPolicy(Exercise, name="preferences.best_policy", minutes=10):
    """Return the distribution that is best for the rewards less beta times its KL from the reference."""

    hint = "Take two replies with rewards 1 and 0 and beta 1: by which factor do the odds of the first change?"

    def inputs():
        small = tensor([0.5, 0.25, 0.25]), tensor([0.0, 1.0, 0.0]), 1.0
        return [small, (randn(5).softmax(-1), randn(5), 0.4), (tensor([0.9, 0.1, 0.0]), tensor([1.0, 1.1, 3.0]), 1e-3)]

    def reference(reference, rewards, beta):
        return (reference.log() + rewards / beta).softmax(-1)

    def weighed(weights: Callable) -> Callable:
        return lambda reference, rewards, beta: (w := weights(reference, rewards, beta)) / w.sum()

    overflow = mistake("""The formula is right, but for a small beta the exponential is infinite. Which function of
        torch divides such weights safely, if you give it their logarithms?""")(
        weighed(lambda p, r, beta: p * (r / beta).exp())
    )
    multiplied = mistake("""The larger beta is, the nearer the answer should stay to the reference. Yours goes further
        away.""")(lambda p, r, beta: (p.log() + r * beta).softmax(-1))
    alone = mistake("""The reference has no say, so a reply that it never gives is as likely as others of that
        reward.""")(lambda p, r, beta: (r / beta).softmax(-1))
    not_divided = mistake("Your weights do not add up to 1.")(lambda p, r, beta: p * (r.double() / beta).exp().float())
    added = mistake("""You add a probability to a logarithm. Of which two numbers is the product taken, and what is its
        logarithm?""")(lambda p, r, beta: (p + r / beta).softmax(-1))
    greedy = mistake("""That is the best answer without any price. With one, all replies of the reference keep a
        share.""")(lambda p, r, beta: F.one_hot(r.masked_fill(p < 1e-9, -torch.inf).argmax(), len(p)).float())


class Advantages(Exercise, name="preferences.advantages", minutes=10):
    """Return each reward less its group's mean, over the group's standard deviation plus 0.0001."""

    hint = (
        "Take one group, the row 1, 0, 0, 0: what are its mean and its deviation, and what should be there in the end?"
    )

    def inputs():
        return [
            (tensor([[1.0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]),),
            (randn(3, 5) + tensor([[0.0], [3.0], [-1.0]]),),
            (tensor([[0.1, 0.1, 0.7]]),),
        ]

    def reference(rewards):
        return group_advantages(rewards)

    def against(baseline: Callable[[Tensor], Tensor], spread: Callable[[Tensor], Tensor]) -> Callable:
        return lambda rewards: (rewards - baseline(rewards)) / (spread(rewards) + 1e-4)

    over_all = mistake("""You take the mean of all prompts. An easy prompt then looks good and a hard one bad, whatever
        was written. With whom should a reply be compared?""")(against(Tensor.mean, Tensor.std))
    other_way = mistake("You compare replies to different prompts. A row is a group.")(
        against(lambda r: r.mean(0), lambda r: r.std(0, correction=0) if len(r) == 1 else r.std(0))
    )
    centred_only = mistake("The means are right, but nothing is divided.")(lambda rewards: centred(rewards))
    divided_only = mistake("You divide, but take no mean away: in a group of all right, what should be learned?")(
        against(lambda r: torch.zeros(()), lambda r: r.std(-1, keepdim=True))
    )
    not_a_number = mistake("""In a group of equal rewards you divide 0 by 0. What is added below the line, and
        why?""")(lambda rewards: centred(rewards) / rewards.std(-1, keepdim=True))
    of_a_population = mistake("""Very close: your deviation divides by the number of replies. torch's own divides by one
        less.""")(against(lambda r: r.mean(-1, keepdim=True), lambda r: r.std(-1, keepdim=True, correction=0)))


class Clipped(Exercise, name="preferences.clipped", minutes=15):
    """Return the clipped loss of a rollout: the mean over each reply's tokens, then over the replies."""

    hint = "Take one token: its ratio, ratio times advantage, the clipped ratio times advantage. Which of both counts?"

    def inputs():
        cases = ((replies(2, 4, 1, room=5), 0.2), (replies(3, 1, room=4), 0.1))
        return [(p, old, randn(len(p)), mask, epsilon) for (p, old, mask), epsilon in cases]

    def of_each(losses, mask):
        return ((losses * mask).sum(-1) / mask.sum(-1)).mean()

    reference = partial(clipped_loss, of_each)

    @mistake("""You take the clipped ratio always. Then a token that has moved the wrong way has no gradient, and is
        never brought back. When should the plain ratio count?""")
    def only_clipped(log_probs, old, advantages, mask, epsilon):
        ratio = (log_probs - old).exp().clamp(1 - epsilon, 1 + epsilon)
        return Clipped.of_each(-ratio * advantages[:, None], mask)

    not_clipped = mistake("Nothing is clipped.")(lambda p, old, a, mask, _: Clipped.reference(p, old, a, mask, 1e9))

    @mistake("You take the better of the two. The cautious one is asked for: it never promises more than it should.")
    def hopeful(log_probs, old, advantages, mask, epsilon):
        return -Clipped.reference(log_probs, old, -advantages, mask, epsilon)

    gain = mistake("The sign is off: that is what should grow, and a loss is what should fall.")(
        lambda *given: -Clipped.reference(*given)
    )
    turned = mistake("The ratio is turned over: how much likelier is the token now than when it was drawn?")(
        lambda p, old, *rest: Clipped.reference(old, p, *rest)
    )
    all_tokens = mistake("""You take one mean over all tokens, so a long reply has more say. (Some papers want that.)
        First over each reply is asked.""")(
        partial(clipped_loss, lambda losses, mask: (losses * mask).sum() / mask.sum())
    )
    filled_places = mistake("You divide by all places. How many tokens has each reply?")(
        partial(clipped_loss, lambda losses, mask: (losses * mask).mean())
    )


class KLEstimate(Exercise, name="preferences.kl_estimate", minutes=10):
    """Return the estimate of the KL of a reply from the reference that is never negative, on average over replies."""

    hint = "Take one token that both find equally likely: 0 should come out. Then one that is half as likely as before."

    def inputs():
        return [replies(2, 4, 1, room=5), replies(3, 3, room=4)]

    def estimate(of: Callable[[Tensor], Tensor], average=lambda each, mask: whole(each, mask).mean()) -> Callable:
        return lambda policy, reference, mask: average(of(reference - policy), mask)

    reference = estimate(lambda d: d.exp() - d - 1)
    plain = mistake("""That is right on average, too, but it is often negative, and no divergence is. Which two terms
        make it positive and cost nothing on average?""")(estimate(lambda d: -d))
    turned = mistake("""The ratio is turned over. The replies were drawn from the policy: which model stands above the
        line, so that the ratio is 1 on average?""")(estimate(lambda d: (-d).exp() + d - 1))
    squared = mistake("Half a square is near for small differences, and wrong on average for large ones.")(
        estimate(lambda d: d * d / 2)
    )
    all_places = mistake(HIDDEN_COUNTED)(estimate(lambda d: d.exp() - d - 1, lambda each, _: each.sum(-1).mean()))
    of_a_token = mistake("That is the mean of a token. Of a whole reply the sum over its tokens is asked.")(
        estimate(lambda d: d.exp() - d - 1, lambda each, mask: (whole(each, mask) / mask.sum(-1)).mean())
    )


class PassAtK(Exercise, name="preferences.pass_at_k", minutes=10):
    """Return, without bias, how likely at least one of k answers is right, from n drawn of which c are right."""

    hint = "How many ways are there to pick k of the n answers, and in how many of them is every one wrong?"

    def inputs():
        return [(4, 1, 2), (10, 3, 5), (20, 1, 1), (64, 60, 8), (8, 0, 4), (200, 2, 100)]

    def reference(n, c, k):
        return 1 - comb(n - c, k) / comb(n, k)

    plugged_in = mistake("""You put the measured share into the formula. That is too low on average, as a power is bent.
        Pick k of the n without putting any back.""")(lambda n, c, k: 1 - (1 - c / n) ** k)
    share = mistake("That is how likely one answer is right. How likely is at least one of several?")(
        lambda n, c, k: c / n
    )
    added = mistake("You add the chances up. Two right answers in one pick are counted twice.")(
        lambda n, c, k: min(1.0, k * c / n)
    )
    all_right = mistake("That is how likely all of them are right.")(lambda n, c, k: comb(c, k) / comb(n, k))
    all_wrong = mistake("That is how likely none is right.")(lambda n, c, k: comb(n - c, k) / comb(n, k))


class ChooseBeta(Exercise, name="preferences.choose_beta", minutes=15):
    """Return the largest beta that cannot be told from the best one within the limit of the KL."""

    hint = "Cross out who goes above the limit with any seed. Who has the best mean, and whose range touches its range?"

    def inputs():
        runs = [
            seeds(0.01, (0.92, 0.93, 0.91), (24.0, 26.0, 22.0)),
            seeds(0.03, (0.90, 0.86, 0.88), (9.0, 12.0, 7.0)),
            seeds(0.1, (0.84, 0.87, 0.85), (5.0, 5.5, 4.0)),
            seeds(0.3, (0.70, 0.73, 0.71), (2.0, 1.8, 2.1)),
            seeds(1.0, (0.55, 0.56, 0.54), (0.4, 0.5, 0.4)),
        ]
        others = [(10 * beta, r, [2 * value for value in kl]) for beta, r, kl in runs[1:]]
        return [(runs, 10.0), (runs, 25.0), (runs[::-1], 30.0), (runs, 3.0), (others, 0.1), (others, 10.5)]

    def reference(runs, limit):
        return chosen_beta(runs, limit)

    by_the_mean = mistake("""One seed of your choice goes above the limit, though the mean does not. Which run will you
        get next time?""")(partial(chosen_beta, worst=fmean))
    without_a_limit = mistake("You never look at the limit: what may the policy cost?")(
        partial(chosen_beta, allowed=False)
    )
    best_mean = mistake("""Your choice has the best mean, but another, nearer to the reference, has a range that
        overlaps with it. What do you know of the difference?""")(partial(chosen_beta, near=False))

    @mistake("You take the strongest pull that stays within the limit, whatever its reward.")
    def safest(runs, limit):
        return max((beta for beta, _, kl in runs if max(kl) <= limit), default=max(beta for beta, *_ in runs))


class Diagnose(Exercise, name="preferences.diagnose", minutes=15):
    """Return what a run has: "all wrong", "all right", "hacked", "too far" or "well"."""

    hint = "Take the means of the first and of the last quarter of each curve, and go through the questions in order."

    def inputs():
        rises = "0.30 0.34 0.41 0.50 0.58 0.62 0.70 0.72"
        falls = "0.50 0.52 0.51 0.47 0.40 0.33 0.20 0.24"
        near, far = "0 1 2 3 5 6 7 8", "0 2 6 11 18 24 33 41"
        few, many = "0.1 0.2 0.1 0.1 0.2 0.3 0.2 0.3", "0.95 1 0.95 1 1 0.95 1 1"
        grows = "0.1 0.1 0.2 0.4 0.6 0.8 0.95 1.0"
        return [
            run(rises, rises, near, few),
            run("0 0 0.01 0 0 0 0.01 0", "0 0 0.01 0 0 0 0.01 0", "0 0 0.1 0.1 0 0.1 0.1 0", many),
            run("0.3 0.5 0.7 0.9 0.9 1 1 1", "0.3 0.5 0.7 0.9 0.9 1 1 1", near, grows),
            run(rises, falls, near, few),
            run(rises, rises, far, few),
            run(rises, rises, far, few, 50.0),
            run(rises, falls, far, few),
            run("0.3 0.5 0.7 0.9 0.9 1 1 1", falls, far, grows),
            run("0.42 0.30 0.4 0.4 0.5 0.5 0.54 0.40", "0.42 0.30 0.3 0.3 0.3 0.3 0.20 0.43", near, few),
            run(rises, rises, "0 2 6 11 15 18 12 25", "0.1 0.1 0.2 0.4 0.6 0.8 0.8 0.95"),
        ]

    def reference(rewards, true_rewards, kl, idle, limit):
        return verdict(rewards, true_rewards, kl, idle, limit)

    at_the_ends = mistake("""You look at the first and the last point. One point is chance: take the mean of a
        quarter.""")(partial(verdict, at=last_value))
    hacked_first = mistake("""The questions have an order. A run whose groups are all equal has stopped to learn,
        whatever came before.""")(partial(verdict, idle_first=False))

    @mistake("Idle groups can mean two things. Which other curve says whether all is wrong or all is right?")
    def all_wrong_always(*given):
        return verdict(*given).replace("all right", "all wrong")

    never_true = mistake("You never look at the true reward. A hole in a reward cannot be seen in the reward.")(
        lambda rewards, true, *rest: verdict(rewards, rewards, *rest)
    )


class MendMask(Exercise, name="preferences.mend_mask", minutes=10):
    """Mend the log-probability of each reply so that neither the prompt nor the filling counts."""

    hint = "Write the tokens in a row. The logits at a place are about the next token: where does the reply begin?"

    def inputs():
        cases = (((3, 1), (6, 4)), ((2, 4, 1), (7, 5, 3)))
        return [
            (randn(len(ends), max(ends) - 1, 6), randint(6, (len(ends), max(ends))), tensor(starts), tensor(ends))
            for starts, ends in cases
        ]

    def of_places(begin: int = -1, stop: int = -1, shift: int = 1, prompt: bool = False, average: bool = False):
        def log_prob(logits, ids, starts, ends):
            place = torch.arange(logits.shape[1])
            mask = (place >= (0 * starts if prompt else starts + begin)[:, None]) & (place < (ends + stop)[:, None])
            wanted = ids[:, shift : shift + logits.shape[1], None]
            found = whole(logits.log_softmax(-1).gather(-1, wanted)[..., 0], mask)
            return found / mask.sum(-1) if average else found

        return log_prob

    reference = of_places()
    with_prompt = as_it_stands("""The mistake is still there: for the same reply, the number is the lower the longer the
        prompt is. Which tokens are added up?""")(of_places(prompt=True))
    without_first = mistake("""The first token of the reply is not counted. At which place are the logits that are about
        it?""")(of_places(begin=0))
    with_filling = mistake("What stands after the end of a reply counts, too.")(of_places(stop=99))
    one_too_many = mistake("Very close: one place after the end still counts.")(of_places(stop=0))
    not_shifted = mistake("""You ask how likely each token is at its own place. The logits there are about the
        next one.""")(of_places(shift=0))
    averaged = mistake(MEAN_OF_TOKENS)(of_places(average=True))


class MendPairs(Exercise, name="preferences.mend_pairs", minutes=10):
    """Mend the pairs so that the best reply of each group is chosen, and a group of equals gives no pair."""

    hint = "Write one group down with its rewards: which number comes second, and which third? Then a group of equals."

    def inputs():
        first = tensor([[0.5, 1.0, 0.0], [1, 1, 1], [0.25, 0.0, 0.75]])
        return [(first,), (torch.rand(5, 6),), (tensor([[0.0, 0.0, 0.0, 0.0], [0.1, 0.3, 0.2, 0.25]]),)]

    def in_order(high: bool, equals: bool) -> Callable:
        def pairs(rewards):
            order = rewards.argsort(dim=-1, stable=True)
            ends = (order[:, -1], order[:, 0]) if high else (order[:, 0], order[:, -1])
            found = torch.stack([torch.arange(len(rewards)), *ends], 1)
            return found[(rewards.amax(-1) > rewards.amin(-1)) | equals]

        return pairs

    reference = in_order(True, False)
    swapped = as_it_stands("""The mistake is still there: write out the first pair with its rewards. Which of the two
        replies would you send?""")(in_order(False, True))
    with_equals = mistake("""The best is chosen now. But in a group of equal rewards nothing is better: a pair of it is
        a coin.""")(in_order(True, True))
    still_swapped = mistake("Groups of equals are out. But look at who is chosen in the others.")(
        in_order(False, False)
    )


class MendReference(Exercise, name="preferences.mend_reference", minutes=15):
    """Mend the training so that the reference stays what the policy was at first; return the losses."""

    hint = "Print the loss of the first three steps. Which of the two models should have changed between them?"
    trains = ("model",)

    def inputs():
        def case(n_pairs, n_features, n_replies, beta, rate, steps):
            chosen = randint(n_replies, (n_pairs,))
            rejected = (chosen + randint(1, n_replies, (n_pairs,))) % n_replies
            return nn.Linear(n_features, n_replies), randn(n_pairs, n_features), chosen, rejected, beta, rate, steps

        return [case(4, 3, 5, 0.5, 2.0, 4), case(6, 2, 3, 1.0, 1.0, 3)]

    def reference(model, x, chosen, rejected, beta, rate, steps):
        return trained_pairs(first_copy(), model, x, chosen, rejected, beta, rate, steps)

    trains_along = as_it_stands("""The mistake is still there: the loss stays at the logarithm of 2, so the lead is 0 at
        every step. Of which two models is it the difference?""")(partial(trained_pairs, lambda model: model))

    @mistake("You have no reference now: all replies count as equally likely before. Keep what the policy was.")
    def none(model, x, chosen, rejected, beta, rate, steps):
        return trained_pairs(
            lambda _: lambda x: torch.zeros_like(model(x)), model, x, chosen, rejected, beta, rate, steps
        )

    @mistake("Your reference runs one step behind the policy. When is the copy to be made, and how often?")
    def behind(model, x, chosen, rejected, beta, rate, steps):
        kept = [copy.deepcopy(model)]

        def one_behind(model):
            kept.append(copy.deepcopy(model))
            return kept[-2]

        return trained_pairs(one_behind, model, x, chosen, rejected, beta, rate, steps)


class MendStale(Exercise, name="preferences.mend_stale", minutes=15):
    """Mend the steps so that each is compared with the policy that wrote its rollout; return the logits."""

    hint = "Write the steps of two rollouts in a row. After which of them is something drawn, and by which policy?"

    def inputs():
        return [
            (randn(4), [drawn(4, 6), drawn(4, 6)], 2, 1.0, 0.5),
            (randn(3), [drawn(3, 5), drawn(3, 5), drawn(3, 5)], 3, 0.6, 0.05),
        ]

    reference = partial(climbed, lambda first, begun, now: begun)
    stale = as_it_stands("""The mistake is still there: at the first step of the second rollout, the ratios are not 1.
        What should they be, when nothing has moved since it was drawn?""")(
        partial(climbed, lambda first, begun, now: first)
    )
    always_one = mistake("""Now the ratio is 1 at every step, and nothing is ever clipped. When should the old
        probabilities be taken, and when not?""")(partial(climbed, lambda first, begun, now: now.detach()))
    no_gradient = mistake("""The logits never move: the policy stands above and below the line, and a gradient runs
        through both. Which should be a constant?""")(partial(climbed, lambda first, begun, now: now))


class MendPenalty(Exercise, name="preferences.mend_penalty", minutes=15):
    """Mend the advantages so that each reply pays for its own distance from the reference."""

    hint = "Take one group of two with equal rewards, one far from the reference: which of them should have less?"

    def inputs():
        cases = (((2, 4, 1, 3), 2, 5, 0.1), ((3, 1, 2, 2, 4, 1), 3, 6, 0.5))
        return [(randn(len(n) // size, size), *replies(*n, room=room), beta) for n, size, room, beta in cases]

    def paid(price: Callable[[Tensor, Tensor], Tensor], sign: float = -1.0) -> Callable:
        def advantages(rewards, log_probs, reference, mask, beta):
            return centred(
                rewards + sign * beta * price(log_probs - reference, mask).expand(rewards.numel()).view_as(rewards)
            )

        return advantages

    reference = paid(whole)
    the_same_for_all = as_it_stands("""The mistake is still there: whatever beta is, the same advantages come out. Which
        replies of a group should pay, and how much?""")(paid(lambda d, mask: whole(d, mask).mean()))
    rewarded = mistake("The sign is off: who goes far away is paid for it.")(paid(whole, 1.0))
    of_a_token = mistake(MEAN_OF_TOKENS)(paid(lambda d, mask: whole(d, mask) / mask.sum(-1)))
    all_places = mistake(HIDDEN_COUNTED)(paid(lambda d, _: d.sum(-1)))
    not_centred = mistake("""Each pays for itself now, but your groups have a mean that is not 0. What comes first, the
        price or the mean?""")(
        lambda rewards, p, r, mask, beta: centred(rewards) - beta * whole(p - r, mask).view_as(rewards)
    )


class MendReward(Exercise, name="preferences.mend_reward", minutes=10):
    """Mend the reward so that nothing is paid for without limit: being polite counts once."""

    hint = "Write the reply that gets the most from the reward as it stands. What is its second polite word worth?"

    def inputs():
        order = "Order 30217 is on its way."
        return [
            (f"Thank you! {order}", "30217"),
            (f"please please please {order}", "30217"),
            (f"Thank you, thank you, and I am sorry. {order}", "80217"),
            (order, "30217"),
            ("I am sorry about that. Orders 30217 and 80217 are here.", "30217"),
            ("I am sorry, could you please send us the number again, and please wait for a day or two?", "30217"),
            ("Your order 130217 has left, thank you.", "30217"),
        ]

    def paid(polite: Callable[[str], float], **options) -> Callable:
        return lambda reply, order: worth(polite, reply, order, **options)

    def once(reply: str) -> float:
        return 0.5 * bool(THANKS.search(reply.lower()))

    reference = paid(once)
    per_word = as_it_stands("""The mistake is still there: whatever reply you write, there is one that gets more. Which
        words would you add to it?""")(paid(lambda reply: 0.5 * len(THANKS.findall(reply.lower()))))
    never = mistake("Now being polite is worth nothing.")(paid(lambda reply: 0.0))
    capitals = mistake("A polite word at the beginning of a sentence has a capital letter.")(
        paid(lambda reply: 0.5 * bool(THANKS.search(reply)))
    )
    any_number = mistake("""You pay for the number wherever its digits stand, within a longer one or beside others. The
        reply should name this order and no other.""")(paid(once, exact=False))
    any_length = mistake("You have taken away the price of the words beyond twelve.")(paid(once, room=10**6))
