"""Wrong answers to the exercises of notebook 09."""

import copy
import math
import re

import torch
import torch.nn.functional as F

from wrong_answers import wrong


@wrong("preferences.bradley_terry", "Chosen and rejected are exchanged")
def lead_of_the_rejected(chosen, rejected):
    return F.softplus(chosen - rejected).mean()


@wrong("preferences.bradley_terry", "Right for rewards that are near each other")
def odds_by_hand(chosen, rejected):
    wins = torch.exp(chosen - rejected) / (1 + torch.exp(chosen - rejected))
    return -torch.log(wins).mean()


def lead(policy, reference, beta, over_tokens=torch.sum):
    gains = beta * over_tokens(policy - reference, -1)
    return -F.logsigmoid(gains[0::2] - gains[1::2]).mean()


@wrong("preferences.dpo_loss", "Places outside the replies count, too")
def dpo_of_all_places(policy, reference, mask, beta):
    return lead(policy, reference, beta)


@wrong("preferences.dpo_loss", "You never look at the reference")
def dpo_of_the_policy_alone(policy, reference, mask, beta):
    return lead(policy * mask, torch.zeros(1), beta)


@wrong("preferences.best_policy", "The reference has no say")
def softmax_of_the_rewards(reference, rewards, beta):
    return torch.softmax(rewards / beta, 0)


@wrong("preferences.best_policy", "for a small beta the exponential is infinite")
def tilted_by_hand(reference, rewards, beta):
    p = reference * torch.exp(rewards / beta)
    return p / p.sum()


@wrong("preferences.advantages", "you divide 0 by 0")
def standard_scores(rewards):
    return (rewards - rewards.mean(1)[:, None]) / rewards.std(1)[:, None]


@wrong("preferences.advantages", "You take the mean of all prompts")
def scores_in_the_batch(rewards):
    return (rewards - rewards.mean()) / (rewards.std() + 1e-4)


def surrogate(log_probs, old, advantages, epsilon):
    ratio = torch.exp(log_probs - old)
    a = advantages.unsqueeze(1)
    return torch.min(ratio * a, torch.clip(ratio, 1 - epsilon, 1 + epsilon) * a)


@wrong("preferences.clipped", "You take one mean over all tokens")
def clipped_over_all_tokens(log_probs, old, advantages, mask, epsilon):
    return -(surrogate(log_probs, old, advantages, epsilon) * mask).sum() / mask.sum()


@wrong("preferences.clipped", "The sign is off")
def clipped_gain(log_probs, old, advantages, mask, epsilon):
    per_reply = (surrogate(log_probs, old, advantages, epsilon) * mask).sum(1) / mask.sum(1)
    return per_reply.mean()


@wrong("preferences.kl_estimate", "it is often negative")
def log_ratio(policy, reference, mask):
    return ((policy - reference) * mask).sum() / len(mask)


@wrong("preferences.kl_estimate", "The ratio is turned over")
def ratio_turned(policy, reference, mask):
    log_ratio = policy - reference
    return ((torch.exp(log_ratio) - 1 - log_ratio) * mask).sum(1).mean()


@wrong("preferences.pass_at_k", "You put the measured share into the formula")
def independent_tries(n, c, k):
    fails = (n - c) / n
    return 1.0 - fails**k


@wrong("preferences.pass_at_k", "That is how likely none is right")
def product_of_fails(n, c, k):
    return math.prod((n - c - i) / (n - i) for i in range(k))


@wrong("preferences.choose_beta", "another, nearer to the reference, has a range that overlaps")
def beta_with_the_best_mean(runs, limit):
    allowed = [(sum(r) / len(r), beta) for beta, r, kl in runs if max(kl) <= limit]
    return max(allowed)[1] if allowed else max(beta for beta, _, _ in runs)


@wrong("preferences.choose_beta", "whatever its reward")
def largest_beta_within_the_limit(runs, limit):
    allowed = sorted(beta for beta, _, kl in runs if max(kl) <= limit)
    return allowed[-1] if allowed else sorted(beta for beta, _, _ in runs)[-1]


def ends_of(values):
    n = max(1, len(values) // 4)
    return sum(values[:n]) / n, sum(values[-n:]) / n


@wrong("preferences.diagnose", "The questions have an order")
def hacked_before_idle(rewards, true_rewards, kl, idle, limit):
    (r0, r1), (t0, t1) = ends_of(rewards), ends_of(true_rewards)
    if r1 > r0 and t1 < t0:
        return "hacked"
    if ends_of(idle)[1] > 0.9:
        return "all right" if r1 > 0.5 else "all wrong"
    return "too far" if ends_of(kl)[1] > limit else "well"


@wrong("preferences.diagnose", "Idle groups can mean two things")
def idle_is_wrong(rewards, true_rewards, kl, idle, limit):
    (r0, r1), (t0, t1) = ends_of(rewards), ends_of(true_rewards)
    if ends_of(idle)[1] > 0.9:
        return "all wrong"
    if r1 > r0 and t1 < t0:
        return "hacked"
    return "too far" if ends_of(kl)[1] > limit else "well"


def token_log_probs(logits, ids):
    return torch.log_softmax(logits, -1).gather(2, ids[:, 1:].unsqueeze(2)).squeeze(2)


@wrong("preferences.mend_mask", "The first token of the reply is not counted")
def reply_from_its_second_token(logits, ids, starts, ends):
    found = token_log_probs(logits, ids)
    return torch.stack([row[s : e - 1].sum() for row, s, e in zip(found, starts, ends, strict=True)])


@wrong("preferences.mend_mask", "You take the mean over the tokens")
def reply_per_token(logits, ids, starts, ends):
    found = token_log_probs(logits, ids)
    return torch.stack([row[s - 1 : e - 1].mean() for row, s, e in zip(found, starts, ends, strict=True)])


@wrong("preferences.mend_pairs", "a pair of it is a coin")
def best_and_worst(rewards):
    order = rewards.sort(dim=1, stable=True).indices
    return torch.tensor([[i, row[-1], row[0]] for i, row in enumerate(order.tolist())])


@wrong("preferences.mend_pairs", "look at who is chosen")
def worst_and_best(rewards):
    rows = [(i, row.argmin().item(), row.argmax().item()) for i, row in enumerate(rewards) if row.min() < row.max()]
    return torch.tensor(rows)


def dpo_steps(model, reference_logits, x, chosen, rejected, beta, rate, steps):
    losses = []
    for _ in range(steps):
        gain = model(x).log_softmax(-1) - reference_logits(model).log_softmax(-1)
        rows = torch.arange(len(x))
        loss = -F.logsigmoid(beta * (gain[rows, chosen] - gain[rows, rejected])).mean()
        grads = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, grad in zip(model.parameters(), grads, strict=True):
                parameter -= rate * grad
        losses.append(loss.detach())
    return torch.stack(losses)


@wrong("preferences.mend_reference", "so the lead is 0 at every step")
def reference_of_this_step(model, x, chosen, rejected, beta, rate, steps):
    return dpo_steps(model, lambda m: copy.copy(m)(x).detach(), x, chosen, rejected, beta, rate, steps)


@wrong("preferences.mend_reference", "You have no reference now")
def reference_of_nothing(model, x, chosen, rejected, beta, rate, steps):
    flat = torch.zeros(len(x), model.out_features)
    return dpo_steps(model, lambda _: flat, x, chosen, rejected, beta, rate, steps)


def policy_steps(logits, rollouts, n_iterations, rate, epsilon, old_of):
    for actions, advantages in rollouts:
        begin = logits.detach().clone()
        for _ in range(n_iterations):
            now = logits.detach().requires_grad_(True)
            log_probs = torch.log_softmax(now, 0)
            ratio = torch.exp(log_probs - old_of(begin, log_probs))[actions]
            kept = torch.clamp(ratio, 1 - epsilon, 1 + epsilon)
            loss = -torch.minimum(ratio * advantages, kept * advantages).mean()
            loss.backward()
            logits = now.detach() - rate * now.grad
    return logits


@wrong("preferences.mend_stale", "nothing is ever clipped")
def old_of_this_step(logits, rollouts, n_iterations, rate, epsilon):
    return policy_steps(logits, rollouts, n_iterations, rate, epsilon, lambda _, now: now.detach())


@wrong("preferences.mend_stale", "The logits never move")
def old_with_a_gradient(logits, rollouts, n_iterations, rate, epsilon):
    return policy_steps(logits, rollouts, n_iterations, rate, epsilon, lambda _, now: now)


def advantages_after(rewards, price):
    paid = rewards - price
    return paid - paid.mean(1, keepdim=True)


@wrong("preferences.mend_penalty", "the same advantages come out")
def price_of_a_group(rewards, log_probs, reference, mask, beta):
    kl = ((log_probs - reference) * mask).sum(1).view(rewards.shape)
    return advantages_after(rewards, beta * kl.mean(1, keepdim=True))


@wrong("preferences.mend_penalty", "You take the mean over the tokens")
def price_of_a_token(rewards, log_probs, reference, mask, beta):
    kl = ((log_probs - reference) * mask).sum(1) / mask.sum(1)
    return advantages_after(rewards, beta * kl.view(rewards.shape))


def points(reply, order, polite):
    right = 1.0 if re.findall("[0-9]+", reply) == [order] else 0.0
    return right + polite - 0.05 * max(0, len(reply.split()) - 12)


@wrong("preferences.mend_reward", "A polite word at the beginning of a sentence has a capital letter")
def polite_in_small_letters(reply, order):
    return points(reply, order, 0.5 if any(word in reply for word in ("please", "thank", "sorry")) else 0.0)


@wrong("preferences.mend_reward", "Now being polite is worth nothing")
def without_politeness(reply, order):
    return points(reply, order, 0.0)
