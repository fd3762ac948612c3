"""Learn from preferences and from rewards: a reward model, DPO, and policy gradients from REINFORCE to GRPO.

Sources: Bradley and Terry (1952), "Rank Analysis of Incomplete Block Designs"; Ouyang et al. (2022), InstructGPT,
equation 1; Rafailov et al. (2023), DPO, equation 7; Williams (1992), REINFORCE; Schulman et al. (2017), PPO, equation
7; Shao et al. (2024), DeepSeekMath, section 4.1 (GRPO); Liu et al. (2025), arXiv:2503.20783, section 3 (Dr. GRPO).

Shapes: B texts of T tokens; targets are IGNORED outside the replies. Rows of pairs alternate: chosen, rejected, chosen,
and so on. Rewards of P prompts with G replies each are (P, G), and their texts B = P · G rows, prompt after prompt.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Real
from statistics import fmean
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptcourse.checks import COUNT, FLAG, POSITIVE, POSITIVE_OR_ZERO, Number, Shape, checked
from gptcourse.config import RULES, TrainingConfig, check_settings
from gptcourse.data import IGNORED, Example, batch_size_at, check_examples, counted_rng, fingerprint_examples, pad
from gptcourse.files import digest
from gptcourse.generation import Sampling, check_prompts, generate
from gptcourse.hf import sha256_of
from gptcourse.model import GPT
from gptcourse.training import History, Objective, Trainer, choose_device, forward
from gptcourse.views import context_window, device_of, eval_view, is_transformers, unwrap, vocab_size_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Pair: TypeAlias = tuple[Example, Example]  # the chosen text, and the rejected one
Reward: TypeAlias = Callable[[int, list[int]], float]  # of the number of a prompt, and the ids of a reply to it


# ---- Losses

CLIPPED = {"log_probs": Shape("B T"), "old": Shape("B T"), "advantages": Shape("B")}
CLIPPED["epsilon"] = Number(Real, lambda x: 0 <= x <= 1000, "a number from 0 to 1000")  # half precision holds it too
REFERENCE = "the model before the first step"  # as a checkpoint names it
AVERAGE = {"loss_type": RULES["loss_type"], "max_length": COUNT}


def token_log_probs(model: nn.Module, ids: Tensor, targets: Tensor) -> Tensor:
    """Return the log-probability of each target (B, T), in nats, and 0 where it is IGNORED."""
    logits = forward(model, ids, targets).logits.float()  # (B, T, V)
    return -F.cross_entropy(logits.mT, targets, reduction="none", ignore_index=IGNORED)


@checked(chosen=Shape("..."), rejected=Shape("..."))
def reward_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Return the mean of -ln σ(chosen - rejected) of rewards (B,): Bradley–Terry (Ouyang et al. 2022, equation 1)."""
    return -F.logsigmoid(chosen - rejected).mean()


@checked(**dict.fromkeys(("chosen", "rejected", "ref_chosen", "ref_rejected"), Shape("...")), beta=POSITIVE_OR_ZERO)
def dpo_loss(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    """Return the loss of DPO, from log-probabilities (B,) of whole replies (Rafailov et al. 2023, equation 7).

    It is `reward_loss` with β · ln(policy / reference) for the reward: that is what the policy is optimal for.
    """
    return reward_loss(beta * (chosen - ref_chosen), beta * (rejected - ref_rejected))


@checked(rewards=Shape("P G"), scale=FLAG)
def group_advantages(rewards: Tensor, scale: bool = True) -> Tensor:
    """Return each reward less the mean of its group, over the group's standard deviation, for (P, G).

    A group in which all rewards are equal has advantages of 0, and teaches nothing. Without `scale` nothing is divided:
    a division gives prompts that are nearly always, or nearly never, answered right more weight (Liu et al. 2025).
    """
    if scale and rewards.shape[1] == 1:
        raise ValueError("A group of one reward has no standard deviation: draw two or more replies to each prompt.")
    centred = rewards - rewards.mean(-1, keepdim=True)
    return centred / (rewards.std(-1, keepdim=True) + 1e-4) if scale else centred


@checked(**CLIPPED, mask=Shape("B T", "real"), **AVERAGE)
def policy_loss(
    log_probs: Tensor,
    old: Tensor,
    advantages: Tensor,
    mask: Tensor,
    epsilon: float = 0.2,
    loss_type: str = "grpo",
    max_length: int = 64,
) -> Tensor:
    """Return the clipped policy-gradient loss (Schulman et al. 2017, equation 7; Shao et al. 2024, equation 3).

    log_probs and old (B, T) are of the policy and of the one that wrote; advantages (B,); mask (B, T) is True where a
    reply is. "grpo" takes the mean over each reply, so that in a long one a token weighs less; "dr_grpo" takes the sum,
    over max_length for all: the most tokens that a reply may have (Liu et al. 2025).
    """
    ratio = (log_probs - old).exp()
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
    losses = -torch.minimum(ratio * advantages[:, None], clipped * advantages[:, None])
    return _averaged(losses, mask, loss_type, max_length)


@torch.no_grad()
@checked(**CLIPPED, mask=Shape("B T", "boolean"))
def clipped_share(log_probs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, epsilon: float = 0.2) -> float:
    """Return the share of the replies' tokens on which `policy_loss` no longer pulls: moved far enough already."""
    moved, wanted = (log_probs - old).exp() - 1, advantages[:, None].sign()
    return (((moved * wanted > epsilon) & mask).sum() / mask.sum()).item()


@checked(log_probs=Shape("B T"), reference=Shape("B T"), mask=Shape("B T", "real"), **AVERAGE)
def kl_loss(
    log_probs: Tensor, reference: Tensor, mask: Tensor, loss_type: str = "grpo", max_length: int = 64
) -> Tensor:
    """Return GRPO's estimate of KL(policy ‖ reference), never negative (Shao et al. 2024, equation 4).

    It measures that divergence, but on the policy's own replies its gradient is the one of KL(reference ‖ policy): the
    policy ends elsewhere than with a penalty in the reward (Tang and Munos 2025, arXiv:2506.09477).
    """
    difference = reference - log_probs
    return _averaged(difference.exp() - difference - 1, mask, loss_type, max_length)


def _averaged(losses: Tensor, mask: Tensor, loss_type: str, max_length: int) -> Tensor:
    lengths = mask.sum(-1) if loss_type == "grpo" else max_length  # a constant, as in TRL: T varies with the prompts
    return ((losses * mask).sum(-1) / lengths).mean()


# ---- What is best


@checked(reference=Shape("... N"), rewards=Shape("... N"), beta=POSITIVE)
def optimal_policy(reference: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """Return reference · exp(rewards / β), made to sum to 1, for probabilities and rewards (..., N).

    Of all policies it has the highest reward - β · KL(policy ‖ reference) (Rafailov et al. 2023, equation 4). N is the
    number of replies; or of levels of reward, the probabilities of all replies of a level added up, as their ratios to
    each other stay.
    """
    return (reference.log() + rewards / beta).softmax(-1)


@checked(reference=Shape("N"), rewards=Shape("N"), n=COUNT)
def best_of_n(reference: Tensor, rewards: Tensor, n: int) -> Tensor:
    """Return the probabilities (N,) of what is taken if the best of n draws is, a tie being broken by lot.

    Its KL from the reference is at most ln n - (n - 1) / n (Beirami et al. 2024, arXiv:2401.01879).
    """
    below = (reference * (rewards < rewards[:, None])).sum(-1)  # (N,)
    level = (reference * (rewards == rewards[:, None])).sum(-1)
    return ((below + level) ** n - below**n) * reference / level.clamp(min=torch.finfo(level.dtype).tiny)  # 0 / 0 is 0


def price_and_worth(
    messages: Sequence[tuple[Sequence[float], Sequence[float]]], policy_of: Callable[[Tensor, Tensor], Tensor]
) -> tuple[float, float]:
    """Return (KL from the reference in nats, expected reward) of another policy, each a mean over messages.

    `messages` are pairs (rewards, masses) of what a reference may reply: levels of reward, and the probability of each.
    policy_of(masses, rewards), both tensors (N,), returns the other policy's probabilities (N,).
    """
    kls, worths = [], []
    for rewards, masses in messages:
        rewards, masses = torch.tensor(rewards, dtype=torch.float64), torch.tensor(masses, dtype=torch.float64)
        p = policy_of(masses, rewards)
        kept = p > 0
        kls.append((p[kept] * (p[kept] / masses[kept]).log()).sum().item())
        worths.append((p * rewards).sum().item())
    return fmean(kls), fmean(worths)


# ---- From pairs


def reward_model(model: GPT | PreTrainedModel) -> nn.Module:
    """Return a copy of a model whose LM head gives one number, 0 at first: see `rewards_of`."""
    model = copy.deepcopy(unwrap(model))
    width = (model.get_output_embeddings() if is_transformers(model) else model.lm_head).in_features
    head = nn.Linear(width, 1, bias=False, device="meta").to_empty(device=device_of(model))  # not at random
    nn.init.zeros_(head.weight)
    if is_transformers(model):
        model.set_output_embeddings(head)
    else:
        model.lm_head = head
    return model.requires_grad_(True)


def rewards_of(model: nn.Module, ids: Tensor, targets: Tensor) -> Tensor:
    """Return a reward model's rewards (B,), read at the last target of each row."""
    places = torch.arange(ids.shape[1], device=ids.device)
    last = torch.where(targets == IGNORED, -1, places).amax(-1)  # (B,)
    return model(ids).logits[torch.arange(len(ids)), last, 0].float()


def train_reward_model(model: nn.Module, pairs: Sequence[Pair], config: TrainingConfig, **options) -> History:
    """Train a `reward_model` in place, to give chosen texts more than rejected ones; options as for `dpo`."""

    def loss(ids: Tensor, targets: Tensor) -> Tensor:
        rewards = rewards_of(model, ids, targets)
        return reward_loss(rewards[::2], rewards[1::2])

    return _train_on_pairs(model, loss, pairs, config, **options)


def dpo(
    model: GPT | PreTrainedModel,
    pairs: Sequence[Pair],
    config: TrainingConfig,
    *,
    beta: float = 0.1,
    device=None,
    **options,
) -> History:
    """Train `model` in place by DPO on pairs of examples; the reference is the model as it is now.

    Options are callback, checkpoint_dir, resume and progress, as of `train`; who resumes gives the model as it was at
    first, for it is the reference. Raises ValueError for pairs that do not fit the model, and for gradient
    accumulation, whose parts would be weighed by their tokens; CheckpointError for another reference or beta.
    """
    reference, given = _reference(model, device), {"beta": beta, REFERENCE: sha256_of(unwrap(model).state_dict())[:16]}

    def loss(ids: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            before = token_log_probs(reference, ids, targets).sum(-1)
        now = token_log_probs(model, ids, targets).sum(-1)
        return dpo_loss(now[::2], now[1::2], before[::2], before[1::2], beta)

    return _train_on_pairs(model, loss, pairs, config, device, given, **options)


def _reference(model, device):
    """Return a copy of a model as it is now, where the policy will be trained."""
    return eval_view(copy.deepcopy(unwrap(model)).to(choose_device(device)))


def _refuse_accumulation(config):
    if config.gradient_accumulation_steps > 1:
        raise ValueError("Preferences take gradient_accumulation_steps=1: choose a smaller batch_size.")


def _train_on_pairs(model, loss, pairs, config, device=None, given=None, **options):
    _refuse_accumulation(config)
    rows = (row for chosen, rejected in pairs for row in (chosen, rejected))
    rows = check_examples(rows, vocab_size_of(model), context_window(model))

    def batches(step: int) -> list[tuple[Tensor, Tensor]]:
        drawn = counted_rng(config.seed, step).integers(len(rows) // 2, size=batch_size_at(step, config))
        return [pad([row for i in drawn for row in rows[2 * i : 2 * i + 2]])]

    trainer = Trainer(Objective(model, loss), batches, config, device=device)
    return trainer.run(data={"the pairs": fingerprint_examples(rows)} | (given or {}), **options)


# ---- From rewards


@dataclass
class Rollouts:
    """Replies that a policy drew: G to each of P prompts, prompt after prompt, so that B = P · G.

    ids and targets (B, T); log_probs (B, T) of the policy when it drew them, 0 outside the replies; rewards (P, G).
    """

    ids: Tensor
    targets: Tensor
    log_probs: Tensor
    rewards: Tensor

    @property
    def mask(self) -> Tensor:
        """True where a token of a reply is the target, (B, T)."""
        return self.targets != IGNORED


@dataclass
class PolicyHistory(History):
    """A `History`, and what the rollouts of a run have measured, one entry each.

    `reward` and `length` (tokens) are means over all replies; `kl` is the mean of ln(policy / reference) of a reply, in
    nats, and `entropy` that of -ln(policy) of a token: what has been drawn estimates both. `idle` is the share of
    groups whose rewards are all equal, from which nothing can be learned, and `clipped` the `clipped_share` of the
    newest step with the rollout, 0 in its first.
    """

    reward: list[float] = field(default_factory=list)
    length: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    entropy: list[float] = field(default_factory=list)
    idle: list[float] = field(default_factory=list)
    clipped: list[float] = field(default_factory=list)

    def record_rollout(self, rollouts: Rollouts, ref_log_probs: Tensor) -> None:
        """Append what one rollout measures."""
        rewards = rollouts.rewards
        self.reward.append(rewards.mean().item())
        self.length.append(rollouts.mask.sum(-1).float().mean().item())
        self.kl.append((rollouts.log_probs - ref_log_probs).sum(-1).mean().item())
        self.entropy.append(-(rollouts.log_probs.sum() / rollouts.mask.sum()).item())
        self.idle.append((rewards == rewards[:, :1]).all(-1).float().mean().item())
        self.clipped.append(0.0)


@dataclass(frozen=True)
class GRPOConfig:
    """What `grpo` adds to TrainingConfig, by TRL's names where it has one; ValueError for a value out of range.

    num_generations: replies to each prompt, a *group*, of up to max_completion_length tokens.
    num_iterations: steps made with each rollout; epsilon clips the change of a token's probability in them.
    advantages: from rewards (P, G) to advantages (P, G). REINFORCE without a baseline is `lambda rewards: rewards`.
    beta: weight of the pull back to the model as it was at first. `penalty` says where it acts: in the "loss", as
    `kl_loss`, which is GRPO's way; or in the "reward", less β · ln(policy / reference) of the whole reply (Ouyang et
    al. 2022, equation 2), for which the best policy is reference · exp(reward / β), made to sum to 1.
    loss_type: see `policy_loss`.
    """

    num_generations: int = 8
    max_completion_length: int = 64
    num_iterations: int = 1
    epsilon: float = 0.2
    beta: float = 0.0
    penalty: str = "loss"
    loss_type: str = "grpo"
    advantages: Callable[[Tensor], Tensor] = group_advantages

    def __post_init__(self):
        check_settings(self)


@torch.no_grad()
def roll_out(
    model: GPT | PreTrainedModel,
    prompts: Sequence[list[int]],
    reward: Reward,
    rules: GRPOConfig,
    end=None,
    seed: int = 0,
) -> Rollouts:
    """Draw replies to prompts (token ids) from the model's own distribution, and have them rewarded.

    reward(i, ids) is given the number of the prompt, and the ids of a reply, with its `end` token if it has one.
    """
    group_size, length = rules.num_generations, rules.max_completion_length
    rows = [prompt for prompt in prompts for _ in range(group_size)]
    texts = generate(model, rows, length, Sampling(seed=seed), end)
    replies = [text[len(row) :] for text, row in zip(texts, rows, strict=True)]
    rewards = [float(reward(i // group_size, reply)) for i, reply in enumerate(replies)]
    targets = [[IGNORED] * (len(row) - 1) + reply for row, reply in zip(rows, replies, strict=True)]
    ids, targets = pad([(text[:-1], wanted) for text, wanted in zip(texts, targets, strict=True)])
    ids, targets = ids.to(device_of(model)), targets.to(device_of(model))
    log_probs = token_log_probs(eval_view(model), ids, targets)
    return Rollouts(ids, targets, log_probs, torch.tensor(rewards, device=ids.device).view(len(prompts), group_size))


def grpo(
    model: GPT | PreTrainedModel,
    prompts: Sequence[list[int]],
    reward: Reward,
    config: TrainingConfig,
    rules: GRPOConfig = GRPOConfig(),
    *,
    eos_token_id: int | None = None,
    callback: Callable[[PolicyHistory], bool | None] | None = None,
    checkpoint_dir=None,
    resume=False,
    device=None,
    progress: bool = True,
) -> PolicyHistory:
    """Train `model` in place to have its replies rewarded (Shao et al. 2024, algorithm 1); return what was measured.

    Each rollout draws `batch_size` of the prompts (token ids). reward(i, ids) is the worth of a reply to prompts[i].
    callback(history) is called after each step; True stops the run. Switch dropout off first (`set_dropout`), or the
    policy that learns is not the one that wrote. The other options are those of `train`; who resumes gives the model as
    it was at first, for it is the reference, and the same reward and advantages: no checkpoint compares functions.

    Raises ValueError if prompt and reply might not fit into the window, and as `generate` does for the prompts.
    """
    _refuse_accumulation(config)
    prompts = check_prompts(model, prompts, rules.max_completion_length, eos_token_id)
    longest, window = max(map(len, prompts)) + rules.max_completion_length, context_window(model)
    if longest > window:
        raise ValueError(f"Prompt and reply may have {longest} tokens, but this model takes {window}: give fewer.")
    eos_token_id = eos_token_id if eos_token_id is None else int(eos_token_id)
    reference = sha256_of(unwrap(model).state_dict())[:16]
    policy = _Policy(model, prompts, reward, config, rules, eos_token_id, device)
    trainer = Trainer(Objective(model, policy.loss), policy.batches, config, device=device)
    trainer.history, trainer.extra = policy.history, policy.kept
    given = {name: value for name, value in vars(rules).items() if name != "advantages"}
    given |= {"the prompts": digest([eos_token_id, *prompts])[:16], REFERENCE: reference}
    return trainer.run(callback, progress, checkpoint_dir, resume, given)


class _Policy:
    """Gives `Trainer` its batches, which are rollouts, and their loss."""

    def __init__(self, model, prompts, reward, config, rules, eos_token_id, device):
        self.model, self.reference, self.history = model, _reference(model, device), PolicyHistory()
        self.prompts, self.reward, self.config, self.rules, self.end = prompts, reward, config, rules, eos_token_id
        self.kept: dict[str, Tensor] = {}  # the newest rollout: a checkpoint may come before it has been used up
        self.rollouts = None

    def batches(self, step: int) -> list[tuple[Tensor, Tensor]]:
        """Return the batch of a step; every `num_iterations` steps it is drawn anew."""
        if step % self.rules.num_iterations == 0:
            self._take(self._draw(step))
            self.history.record_rollout(self.rollouts, self.before)
        elif self.rollouts is None:  # the run was resumed
            self._take(Rollouts(**self.kept))
        return [(self.rollouts.ids, self.rollouts.targets)]

    def _draw(self, step: int) -> Rollouts:
        rng = counted_rng(self.config.seed, step)
        drawn = rng.integers(len(self.prompts), size=batch_size_at(step, self.config)).tolist()
        prompts, seed = [self.prompts[i] for i in drawn], int(rng.integers(2**63))
        made = roll_out(self.model, prompts, lambda i, ids: self.reward(drawn[i], ids), self.rules, self.end, seed)
        if self.config.bf16:
            made.log_probs = self._log_probs(eval_view(self.model), made)
        return made

    @torch.no_grad()
    def _log_probs(self, model, rollouts: Rollouts) -> Tensor:
        """Return ln p of each token in the precision of the loss, so that the first step's ratios are 1."""
        with torch.autocast(rollouts.ids.device.type, torch.bfloat16, enabled=self.config.bf16):
            return token_log_probs(model, rollouts.ids, rollouts.targets)

    def _take(self, rollouts: Rollouts) -> None:
        rules, self.rollouts = self.rules, rollouts
        self.kept.update(vars(rollouts))
        self.before = self._log_probs(self.reference, rollouts)
        pull = rules.beta * (rollouts.log_probs - self.before).sum(-1).view_as(rollouts.rewards)
        self.advantages = rules.advantages(rollouts.rewards - pull * (rules.penalty == "reward")).flatten()

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of the model as it is now, on the newest rollouts."""
        rules, mask, log_probs = self.rules, self.rollouts.mask, token_log_probs(self.model, ids, targets)
        given, average = (self.advantages, mask, rules.epsilon), (rules.loss_type, rules.max_completion_length)
        wanted = policy_loss(log_probs, self.rollouts.log_probs, *given, *average)
        self.history.clipped[-1] = clipped_share(log_probs, self.rollouts.log_probs, *given)
        if rules.beta and rules.penalty == "loss":
            wanted = wanted + rules.beta * kl_loss(log_probs, self.before, mask, *average)
        return wanted
