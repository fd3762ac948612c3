"""Preferences and rewards: each loss against its formula, gradients and optima against what can be enumerated."""

import copy
import itertools
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from gptcourse.config import GPTConfig, TrainingConfig
from gptcourse.data import IGNORED, pad
from gptcourse.generation import Sampling, generate
from gptcourse.model import GPT
from gptcourse.modern import ModernConfig, ModernGPT
from gptcourse.preferences import (
    GRPOConfig,
    PolicyHistory,
    Rollouts,
    best_of_n,
    clipped_share,
    dpo,
    dpo_loss,
    group_advantages,
    grpo,
    kl_loss,
    optimal_policy,
    policy_loss,
    reward_loss,
    reward_model,
    rewards_of,
    roll_out,
    token_log_probs,
    train_reward_model,
)
from gptcourse.training import Trainer

SHAPE = GPTConfig(vocab_size=5, n_positions=8, n_embd=16, n_layer=1, n_head=2)
PROMPT = [0, 1]
END = 4
QUIET = {"progress": False, "device": "cpu"}
THREE, TWO = GRPOConfig(max_completion_length=3), GRPOConfig(max_completion_length=2)


def tiny(seed=0, vocab_size=5):
    torch.manual_seed(seed)
    shape = GPTConfig(vocab_size, n_positions=8, n_embd=16, n_layer=1, n_head=2, initializer_range=0.3)
    return GPT(shape)


def example(reply, prompt=PROMPT):
    ids = [*prompt, *reply]
    return ids[:-1], [IGNORED] * (len(prompt) - 1) + list(reply)


def log_prob(model, reply, prompt=PROMPT):
    """Return ln p(reply | prompt), token by token."""
    total = torch.zeros(())
    for i, token in enumerate(reply):
        total = total + model(torch.tensor([[*prompt, *reply[:i]]])).logits[0, -1].log_softmax(-1)[token]
    return total


def all_replies(n_tokens, vocab_size=5):
    return list(itertools.product(range(vocab_size), repeat=n_tokens))


# ---- Losses


def test_token_log_probs_are_those_of_each_token_and_zero_elsewhere():
    model, replies = tiny(), [(2,), (3, 1, 4), (0, 0)]
    ids, targets = pad([example(reply) for reply in replies])
    found = token_log_probs(model, ids, targets)
    assert_close(found.sum(-1), torch.stack([log_prob(model, reply) for reply in replies]))
    assert (found[targets == IGNORED] == 0).all() and (found[targets != IGNORED] < 0).all()


def test_the_reward_loss_is_the_probability_of_bradley_and_terry():
    chosen, rejected = torch.randn(7), torch.randn(7)
    wins = chosen.exp() / (chosen.exp() + rejected.exp())
    assert_close(reward_loss(chosen, rejected), -wins.log().mean())


def test_the_dpo_loss_is_equation_7():
    chosen, rejected, ref_chosen, ref_rejected = torch.randn(4, 6)
    margins = 0.3 * ((chosen - ref_chosen) - (rejected - ref_rejected))
    expected = sum(math.log1p(math.exp(-margin)) for margin in margins.tolist()) / 6
    assert dpo_loss(chosen, rejected, ref_chosen, ref_rejected, 0.3).item() == pytest.approx(expected, rel=1e-5)
    assert dpo_loss(chosen, rejected, chosen, rejected, 0.3).item() == pytest.approx(math.log(2))  # nothing learned yet


def test_advantages_are_zero_in_a_group_of_equals_and_of_mean_zero_in_others():
    rewards = torch.tensor([[1.0, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]])
    for scale in (True, False):
        found = group_advantages(rewards, scale)
        assert (found[[0, 2]] == 0).all()
        assert_close(found.sum(-1), torch.zeros(3))
    assert_close(group_advantages(rewards, scale=False)[1], torch.tensor([0.75, -0.25, -0.25, -0.25]))
    assert_close(group_advantages(rewards)[1], torch.tensor([1.5, -0.5, -0.5, -0.5]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo"])
def test_the_policy_loss_is_that_of_its_loops(loss_type):
    torch.manual_seed(0)
    log_probs, old, advantages = torch.randn(3, 4), torch.randn(3, 4), torch.randn(3)
    lengths = [1, 4, 2]
    mask = torch.arange(4) < torch.tensor(lengths)[:, None]
    total = 0.0
    for row, length in enumerate(lengths):
        for t in range(length):
            ratio, advantage = math.exp(log_probs[row, t] - old[row, t]), advantages[row].item()
            surrogate = min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
            total -= surrogate / (length if loss_type == "grpo" else 9) / 3
    given = log_probs, old, advantages, mask
    assert policy_loss(*given, 0.2, loss_type, 9).item() == pytest.approx(total, rel=1e-5)
    wider = [F.pad(rows, (0, 3)) for rows in (log_probs, old, mask)]  # filled up beside a longer text
    loss = policy_loss(wider[0], wider[1], advantages, wider[2], 0.2, loss_type, 9)
    assert loss.item() == pytest.approx(total, rel=1e-5)


def test_a_token_that_has_moved_far_enough_has_no_gradient():
    old = torch.zeros(1, 4)
    log_probs = torch.tensor([[0.5, -0.5, 0.1, -0.1]], requires_grad=True)
    mask = torch.ones(1, 4, dtype=torch.bool)
    (wanted,) = torch.autograd.grad(policy_loss(log_probs, old, torch.tensor([1.0]), mask), log_probs)
    assert (wanted == 0).tolist() == [[True, False, False, False]]  # already likelier by more than ε
    (unwanted,) = torch.autograd.grad(policy_loss(log_probs, old, torch.tensor([-1.0]), mask), log_probs)
    assert (unwanted == 0).tolist() == [[False, True, False, False]]
    for advantage, gradient in ((1.0, wanted), (-1.0, unwanted)):
        share = clipped_share(log_probs, old, torch.tensor([advantage]), mask)
        assert share == (gradient == 0).float().mean().item()
    assert clipped_share(log_probs, old, torch.tensor([1.0]), mask & (torch.arange(4) > 0)) == 0


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="penalty is 'kl', but it must be one of loss, reward"):
        GRPOConfig(penalty="kl")
    with pytest.raises(ValueError, match="num_generations is 0, but it must be a whole number of 1 or more"):
        GRPOConfig(num_generations=0)
    with pytest.raises(ValueError, match="loss_type is 'gpro', but it must be one of grpo, dr_grpo"):
        GRPOConfig(loss_type="gpro")


def test_the_estimate_of_the_kl_is_right_on_average_and_never_negative():
    torch.manual_seed(0)
    policy, reference = torch.randn(2, 6).log_softmax(-1)
    each = torch.stack(
        [kl_loss(p[None, None], r[None, None], torch.ones(1, 1)) for p, r in zip(policy, reference, strict=True)]
    )
    assert (each >= 0).all()
    assert_close((policy.exp() * each).sum(), (policy.exp() * (policy - reference)).sum())
    assert kl_loss(policy[None], policy[None], torch.ones(1, 6)).item() == 0


def test_the_gradient_of_the_policy_loss_is_on_average_that_of_the_expected_reward():
    model, replies = tiny(vocab_size=3), all_replies(2, 3)
    torch.manual_seed(1)
    rewards, baseline = torch.randn(len(replies)), 0.4
    ids, targets = pad([example(reply) for reply in replies])
    log_probs = token_log_probs(model, ids, targets)
    p = log_probs.sum(-1).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-5)
    wanted = torch.autograd.grad((p * rewards).sum(), model.parameters(), retain_graph=True)
    # Each reply counts as often as it is drawn; a baseline changes the variance alone. 9 replies.
    weights = p.detach() * (rewards - baseline) * len(replies)
    average = {"loss_type": "dr_grpo", "max_length": 1}
    loss = policy_loss(log_probs, log_probs.detach(), weights, targets != IGNORED, **average)
    found = torch.autograd.grad(loss, model.parameters())
    for ours, exact in zip(found, wanted, strict=True):
        assert_close(-ours, exact, atol=1e-5, rtol=1e-4)


def test_a_mean_over_each_reply_gives_a_token_of_a_long_one_less_weight():
    log_probs = torch.zeros(2, 4, requires_grad=True)
    mask = torch.arange(4) < torch.tensor([[1], [4]])
    of = {}
    for loss_type in ("grpo", "dr_grpo"):
        loss = policy_loss(log_probs, log_probs.detach(), torch.ones(2), mask, loss_type=loss_type)
        (of[loss_type],) = torch.autograd.grad(loss, log_probs)
    assert of["grpo"][0, 0] == 4 * of["grpo"][1, 0]
    assert of["dr_grpo"][0, 0] == of["dr_grpo"][1, 0]


# ---- What is best


def worth(policy, reference, rewards, beta):
    return ((policy * rewards).sum() - beta * (policy * (policy / reference).log()).sum()).item()


def test_no_policy_is_worth_more_than_the_optimal_one():
    torch.manual_seed(0)
    reference, rewards, beta = torch.randn(6).softmax(-1), torch.rand(6), 0.3
    best = optimal_policy(reference, rewards, beta)
    assert best.sum().item() == pytest.approx(1)
    # What it is worth is β · ln Z, and it is worth more than a hundred others, near and far.
    assert worth(best, reference, rewards, beta) == pytest.approx(
        beta * math.log((reference * (rewards / beta).exp()).sum()), abs=1e-6
    )
    for scale in (0.1, 1.0):
        others = (best.log() + scale * torch.randn(50, 6)).softmax(-1)
        assert max(worth(other, reference, rewards, beta) for other in others) < worth(best, reference, rewards, beta)


def test_replies_of_one_reward_can_be_put_together():
    reference, rewards = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0.0, 1.0, 1.0, 0.5])
    together = torch.tensor([0.1, 0.5, 0.4]), torch.tensor([0.0, 1.0, 0.5])
    for policy in (partial(optimal_policy, beta=0.2), partial(best_of_n, n=3)):
        p, levels = policy(reference, rewards), policy(*together)
        assert_close(torch.stack([p[0], p[1] + p[2], p[3]]), levels)
        assert worth(p, reference, rewards, 1.0) == pytest.approx(worth(levels, *together, 1.0), abs=1e-6)


def test_best_of_n_is_what_all_draws_give_and_keeps_within_its_bound():
    reference, rewards, n = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0.0, 1.0, 1.0, 0.5]), 3
    taken = torch.zeros(4)
    for draws in itertools.product(range(4), repeat=n):
        best = [i for i in draws if rewards[i] == rewards[list(draws)].max()]
        for i in best:
            taken[i] += reference[list(draws)].prod() / len(best)
    found = best_of_n(reference, rewards, n)
    assert_close(found, taken)
    assert best_of_n(torch.tensor([0.0, 0.5, 0.5]), torch.tensor([1.0, 2.0, 3.0]), 2).tolist() == [0, 0.25, 0.75]
    assert 0 < (found * (found / reference).log()).sum() <= math.log(n) - (n - 1) / n


# ---- From pairs


def test_a_reward_model_begins_at_zero_and_learns_what_was_chosen():
    base = tiny()
    before = copy.deepcopy(base.state_dict())
    model = reward_model(base)
    good, bad = [(2, reply, END) for reply in range(4)], [(3, reply, END) for reply in range(4)]
    ids, targets = pad([example(reply) for reply in good + bad])
    assert (rewards_of(model, ids, targets) == 0).all()
    pairs = [(example(a), example(b)) for a in good[:3] for b in bad[:3]]
    train_reward_model(model, pairs, TrainingConfig(40, 8, 1e-2), **QUIET)
    rewards = rewards_of(model, ids, targets)
    assert rewards[:4].min() > rewards[4:].max() + 1  # the last of each was held out
    assert all(torch.equal(base.state_dict()[name], tensor) for name, tensor in before.items())


def test_a_reward_is_read_at_the_last_target_whatever_is_padded():
    model = reward_model(tiny())
    torch.nn.init.normal_(model.lm_head.weight)
    long, short = example((2, 3, 1, END)), example((2, END))
    together = rewards_of(model, *pad([long, short]))
    assert_close(together, torch.cat([rewards_of(model, *pad([one])) for one in (long, short)]))


def test_dpo_ends_where_its_optimum_is():
    """With two replies, of which one is chosen with probability q, β · ln(ratio of odds) ends at the logit of q."""
    model, beta, q = tiny(), 0.5, 0.8
    first, second = (2, END), (3, END)
    reference = log_prob(model, first) - log_prob(model, second)
    pairs = [(example(first), example(second))] * 4 + [(example(second), example(first))]
    config = TrainingConfig(400, 50, 5e-3, weight_decay=0.0, warmup_steps=10, min_lr_ratio=0.0)
    history = dpo(model, pairs, config, beta=beta, **QUIET)
    margin = beta * (log_prob(model, first) - log_prob(model, second) - reference)
    assert history.loss[0] == pytest.approx(math.log(2), abs=1e-5)
    assert margin.item() == pytest.approx(math.log(q / (1 - q)), abs=0.1)


def test_dpo_resumes_exactly_and_refuses_what_it_cannot_weigh(tmp_path):
    pairs = [(example((2, END)), example((3, 1, END)))]
    whole, first, second, config = tiny(), tiny(), tiny(), TrainingConfig(8, 2, 1e-2)
    dpo(whole, pairs, config, **QUIET)
    stop = {"callback": lambda history: len(history.step) == 4, "checkpoint_dir": tmp_path}
    dpo(first, pairs, config, **stop, **QUIET)
    dpo(second, pairs, config, checkpoint_dir=tmp_path, resume=True, **QUIET)  # from the same beginning, as a script is
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))
    for other, options in ((second, {}), (tiny(), {"beta": 0.3})):  # a reference that has learned already
        with pytest.raises(ValueError, match=r"(the model before the first step|beta) was .* and is now"):
            dpo(other, pairs, config, checkpoint_dir=tmp_path, resume=True, **options, **QUIET)
    two = TrainingConfig(8, 2, 1e-2, gradient_accumulation_steps=2)
    for refused in (lambda: dpo(second, pairs, two, **QUIET), lambda: grpo(second, [PROMPT], len, two, TWO, **QUIET)):
        with pytest.raises(ValueError, match="gradient_accumulation_steps=1"):
            refused()
    with pytest.raises(ValueError, match="label_smoothing and z_loss at 0"):
        dpo(second, pairs, TrainingConfig(8, 2, 1e-2, label_smoothing=0.1), **QUIET)
    with pytest.raises(ValueError, match="something to learn"):
        dpo(second, [], config, **QUIET)


def run_of(trainer, *_, **__):
    """Stand in for Trainer.run: keep the trainer, and make no step."""
    TRAINERS.append(trainer)
    return trainer.history


TRAINERS = []


def test_the_reference_lies_where_the_policy_is_trained(monkeypatch):
    monkeypatch.setattr(Trainer, "run", run_of)
    options, config = {"progress": False, "device": "meta"}, TrainingConfig(1, 1, 1e-2)
    dpo(tiny(), [(example((2, END)), example((3, END)))], config, **options)
    grpo(tiny(), [PROMPT], lambda *_: 0.0, config, TWO, **options)
    of_pairs, of_rewards = TRAINERS[-2:]
    assert of_pairs.model.loss(*(part.to("meta") for part in of_pairs.batches(0)[0])).device.type == "meta"
    assert of_rewards.model.loss.__self__.reference.device.type == "meta"


def test_preferences_train_a_model_as_its_config_says(monkeypatch):
    """muP's rates, Muon and recomputed activations are those of the model inside."""
    torch.manual_seed(0)
    model = GPT(replace(SHAPE, mup_base_width=8, tie_word_embeddings=False))
    start, pairs = copy.deepcopy(model), [(example((2, END)), example((3, END)))]
    for optim, largest in (("adamw", 5e-3), ("muon", 1e-2)):
        config = TrainingConfig(1, 1, 1e-2, weight_decay=0.0, optim=optim, gradient_checkpointing=True)
        trained = copy.deepcopy(start)
        dpo(trained, pairs, config, **QUIET)
        moved = (trained.h[0].mlp.c_fc.weight - start.h[0].mlp.c_fc.weight).abs().max().item()
        assert 1e-4 < moved < largest * 1.01  # half the rate at twice the base width


def test_batches_grow_as_the_config_says():
    config, pairs = TrainingConfig(3, 8, 1e-2, batch_ramp_steps=2), [(example((2, END)), example((3, END)))]
    for history in (
        dpo(tiny(), pairs, config, **QUIET),
        grpo(tiny(), [PROMPT], lambda *_: 0.0, config, GRPOConfig(2, 1), **QUIET),
    ):
        first, second, third = (new - old for old, new in zip([0, *history.tokens], history.tokens, strict=False))
        assert first < second < third


# ---- From rewards


def test_rollouts_are_what_generate_writes_group_by_group():
    model, prompts = tiny(), [[0, 1], [2, 3, 1]]
    asked = []

    def reward(i, reply):
        asked.append((i, reply))
        return len(reply)

    made = roll_out(model, prompts, reward, GRPOConfig(3, 4), END, seed=7)
    rows = generate(model, [prompt for prompt in prompts for _ in range(3)], 4, Sampling(seed=7), END)
    replies = [row[len(prompts[i // 3]) :] for i, row in enumerate(rows)]
    assert asked == [(i // 3, reply) for i, reply in enumerate(replies)]
    assert made.rewards.tolist() == [[len(reply) for reply in replies[:3]], [len(reply) for reply in replies[3:]]]
    assert [row[mask].tolist() for row, mask in zip(made.targets, made.mask, strict=True)] == replies
    expected = [log_prob(model, reply, prompts[i // 3]) for i, reply in enumerate(replies)]
    assert_close(made.log_probs.sum(-1), torch.stack(expected).detach())


def test_what_a_rollout_measures():
    log_probs = torch.tensor([[-1.0, -2.0], [-3.0, 0.0]])
    targets = torch.tensor([[1, 2], [3, IGNORED]])
    history = PolicyHistory()
    history.record_rollout(
        Rollouts(targets, targets, log_probs, torch.tensor([[1.0, 1.0]])), torch.tensor([[-2.0, -2.0], [-3.5, 0.0]])
    )
    expected = PolicyHistory(reward=[1.0], length=[1.5], kl=[0.75], entropy=[2.0], idle=[1.0], clipped=[0.0])
    assert history == expected


def test_grpo_learns_what_is_rewarded_and_nothing_from_equal_rewards():
    config = TrainingConfig(40, 4, 1e-2, weight_decay=0.0)

    def of_twos(_, reply):
        return reply.count(2) / 3

    model = tiny()
    history = grpo(model, [PROMPT], of_twos, config, THREE, **QUIET)
    assert sum(history.reward[:3]) / 3 < 0.5 and sum(history.reward[-3:]) / 3 > 0.9
    model, before = tiny(), tiny()
    history = grpo(model, [PROMPT], lambda *_: 1.0, config, THREE, **QUIET)
    assert set(history.idle) == {1.0}
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))


def test_reinforce_without_a_baseline_moves_even_when_all_rewards_are_equal():
    model, before = tiny(), tiny()
    config = TrainingConfig(2, 4, 1e-2, weight_decay=0.0)
    grpo(model, [PROMPT], lambda *_: 1.0, config, replace(THREE, advantages=lambda rewards: rewards), **QUIET)
    assert not torch.equal(model.wte.weight, before.wte.weight)


def optimum(reference, reward, beta, penalty):
    """Return the policy that is best for the reward with a penalty of KL(policy ‖ reference), or of the reverse."""
    if penalty == "reward":
        return optimal_policy(reference, reward, beta)
    low, high = reward.max().item() - beta + 1e-9, reward.max().item() + 10.0
    for _ in range(100):  # the mean reward m of the policy β · reference / (β + m - reward), by bisection
        m = (low + high) / 2
        low, high = (m, high) if (beta * reference / (beta + m - reward)).sum() > 1 else (low, m)
    return beta * reference / (beta + m - reward)


@pytest.mark.parametrize("penalty", ["reward", "loss"])
def test_with_a_penalty_it_ends_at_the_optimum_of_that_penalty(penalty):
    beta, reward = 0.5, torch.tensor([0.0, 0.0, 1.0, 0.5, 0.0])
    model = tiny()
    reference = model(torch.tensor([PROMPT])).logits[0, -1].detach().softmax(-1)
    best = {kind: optimum(reference, reward, beta, kind) for kind in ("reward", "loss")}
    config = TrainingConfig(150, 1, 1e-2, weight_decay=0.0, min_lr_ratio=0.0)
    unscaled = partial(group_advantages, scale=False)
    rules = GRPOConfig(num_generations=256, max_completion_length=1, beta=beta, penalty=penalty, advantages=unscaled)
    history = grpo(model, [PROMPT], lambda _, reply: reward[reply[0]].item(), config, rules, **QUIET)
    found = model(torch.tensor([PROMPT])).logits[0, -1].detach().softmax(-1)
    assert (best["reward"] - best["loss"]).abs().max() > 0.1  # they differ
    assert_close(found, best[penalty], atol=0.05, rtol=0)
    kl = (found * (found / reference).log()).sum().item()
    assert history.kl[-1] == pytest.approx(kl, abs=0.1)


@pytest.mark.parametrize("stop", [4, 5])  # at the end of a rollout's steps, and in their midst
def test_grpo_resumes_exactly_and_refuses_what_is_another_run(tmp_path, stop):
    def run(**options):
        model, rules = tiny(), GRPOConfig(4, 3, num_iterations=2, beta=options.pop("beta", 0.1))
        config = TrainingConfig(8, 2, 1e-2, save_steps=1)
        history = grpo(model, [PROMPT, [2]], lambda i, r: float(len(r) + i), config, rules, **options, **QUIET)
        return history, model.state_dict()

    whole, weights = run()
    run(callback=lambda history: len(history.step) == stop, checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match=r"beta was 0\.1 and is now 0\.3"):
        run(beta=0.3, checkpoint_dir=tmp_path, resume=True)
    resumed, same = run(checkpoint_dir=tmp_path, resume=True)
    assert resumed == whole and len(resumed.reward) == 4 and len(resumed.loss) == 8
    assert all(torch.equal(a, b) for a, b in zip(weights.values(), same.values(), strict=True))


def test_grpo_is_a_function_of_its_seed_and_goes_over_a_rollout_several_times():
    ends = []
    for seed in (0, 0, 1):
        model = tiny()
        config = TrainingConfig(4, 2, 1e-2, seed=seed)
        history = grpo(model, [PROMPT, [2]], lambda i, r: r[0] == i, config, replace(TWO, num_iterations=2), **QUIET)
        assert len(history.reward) == 2
        ends.append(model.wte.weight.detach())
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


def test_something_is_clipped_after_the_first_step_with_a_rollout_alone():
    config = TrainingConfig(4, 4, 0.1, weight_decay=0.0)
    for n_iterations in (1, 2):
        rules = replace(THREE, num_iterations=n_iterations)
        history = grpo(tiny(), [PROMPT], lambda _, reply: reply.count(2), config, rules, **QUIET)
        assert len(history.clipped) == 4 // n_iterations
        assert (max(history.clipped) > 0) == (n_iterations == 2)


def test_replies_that_might_not_fit_are_refused_before_anything_is_drawn():
    for prompts, n, said in (([PROMPT], 7, "Prompt and reply may have"), ([], 2, "empty"), (["ab"], 2, "token id")):
        with pytest.raises(ValueError, match=said):
            grpo(
                tiny(),
                prompts,
                lambda *_: 0.0,
                TrainingConfig(1, 1, 1e-2),
                GRPOConfig(max_completion_length=n),
                **QUIET,
            )


def test_a_callback_stops_it():
    config = TrainingConfig(9, 1, 1e-2)
    history = grpo(tiny(), [PROMPT], lambda *_: 0.0, config, TWO, callback=lambda h: len(h.reward) == 3, **QUIET)
    assert len(history.reward) == 3


def test_a_model_of_transformers_learns_as_well():
    model = tiny().to_transformers()
    dpo(model, [(example((2, END)), example((3, END)))], TrainingConfig(3, 2, 1e-2), **QUIET)
    grpo(model, [PROMPT], lambda _, r: r[0] == 2, TrainingConfig(3, 2, 1e-2), TWO, **QUIET)
    rewards = train_reward_model(
        reward_model(model), [(example((2, END)), example((3, END)))], TrainingConfig(3, 2, 1e-2), **QUIET
    )
    assert rewards.loss[-1] < rewards.loss[0]


def test_three_replies_are_no_pair():
    with pytest.raises(ValueError, match="pair"):
        dpo(tiny(), [(example([1]), example([2]), example([3]))] * 2, TrainingConfig(2, 2, 1e-3), **QUIET)


def test_the_head_of_any_model_gives_the_reward():
    from transformers import BioGptConfig, BioGptForCausalLM

    shape = {"vocab_size": 9, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    theirs = BioGptForCausalLM(BioGptConfig(intermediate_size=16, max_position_embeddings=8, **shape)).eval()
    today = ModernGPT(ModernConfig(9, 8, 16, 1, 2, 16))
    for model in (theirs, today):
        judge = reward_model(model)
        assert rewards_of(judge, torch.tensor([[3, 4, 5]]), torch.tensor([[4, 5, 6]])).tolist() == [0.0]
        assert judge(torch.tensor([[3, 4, 5]])).logits.shape[-1] == 1


def test_in_bfloat16_the_first_step_with_a_rollout_compares_like_with_like():
    config = TrainingConfig(1, 4, 1e-3, seed=1, bf16=True)
    rules = GRPOConfig(num_generations=6, max_completion_length=3, beta=0.5)
    history = grpo(tiny(), [PROMPT], lambda _, ids: float(ids[0] == 2), config, rules, eos_token_id=END, **QUIET)
    assert abs(history.loss[0]) < 1e-6  # all ratios are 1, the KL is 0, and advantages have the mean 0
    assert history.kl == [0.0]


def test_an_end_token_of_numpys_is_one_of_ours():
    rules = {"rules": TWO, **QUIET}
    a, b = (
        grpo(tiny(), [PROMPT], lambda *_: 1.0, TrainingConfig(1, 2, 1e-3), eos_token_id=end, **rules)
        for end in (END, np.int64(END))
    )
    assert a == b
