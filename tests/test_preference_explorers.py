"""The sliders and the drawing of notebook 09: what they say, against the losses, and against what can be enumerated."""

import math
import re

import pytest
import torch
from pictures import assert_all_lies_within, assert_says, assert_texts_lie_apart

from gptcourse.drawings.preferences import group, ways
from gptcourse.explorers import PolicyMonitor, dpo_explorer, frontier_explorer, thinking_explorer
from gptcourse.explorers.preferences import BETAS, MEASURED
from gptcourse.preferences import PolicyHistory, dpo_loss, group_advantages, optimal_policy, price_and_worth

MESSAGES = [([0.0, 0.5, 1.0], [0.6, 0.3, 0.1]), ([0.0, 0.25, 0.75, 1.0], [0.2, 0.5, 0.25, 0.05])]
BUDGET = [
    {"seed": seed, "thoughts": n, "by_length": {"2": 0.2 + 0.3 * n, "4": 0.1 * n + 0.02 * seed}}
    for seed in (0, 1)
    for n in (0, 1, 2)
]


def text_of(explorer):
    return re.sub(r"<[^>]+>", " ", explorer.picture.value)


def dot_of(explorer):
    return tuple(map(float, re.search(r'<circle cx="([\d.]+)" cy="([\d.]+)"', explorer.picture.value).groups()))


@pytest.mark.parametrize(("beta", "chosen", "rejected"), [(0.1, 0.0, 0.0), (0.5, -2.0, -4.5), (5.0, -15.0, 15.0)])
def test_the_pair_shows_the_loss_and_its_slope(beta, chosen, rejected):
    explorer = dpo_explorer()
    explorer.move(beta=beta, chosen=chosen, rejected=rejected)
    lead = torch.tensor([chosen - rejected], requires_grad=True)
    loss = dpo_loss(lead, torch.zeros(1), torch.zeros(1), torch.zeros(1), beta)
    (slope,) = torch.autograd.grad(loss, lead)
    assert f"loss {loss.item():.3f}, pull {-slope.item():.4f}" in text_of(explorer)
    assert f"probability {math.exp(-loss.item()):.3f}" in text_of(explorer)
    assert f"{math.exp(chosen):.3g} times" in text_of(explorer)
    assert explorer.picture.value.count("<circle") == 2  # the farthest leads are in the frame, too


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0, 7.0])
def test_the_dot_is_the_best_policy_at_its_price(beta):
    explorer = frontier_explorer(MESSAGES)
    explorer.controls["beta"].value = beta
    best = price_and_worth(MESSAGES, lambda p, r: optimal_policy(p, r, beta))
    assert f"reward {best[1]:.3f} at {best[0]:.2f} nats" in text_of(explorer)
    torch.manual_seed(0)
    for size in (0.01, 0.1, 1.0):  # no other policy, near or far, has more of the reward less the price
        for _ in range(20):
            other = lambda p, r, size=size: (  # noqa: E731
                (optimal_policy(p, r, beta).log() + size * torch.randn(len(p), dtype=p.dtype)).softmax(-1)
            )
            kl, reward = price_and_worth(MESSAGES, other)
            assert reward - beta * kl <= best[1] - beta * best[0] + 1e-9


def test_a_stronger_pull_moves_the_dot_down_and_to_the_left():
    explorer, dots = frontier_explorer(MESSAGES), []
    for beta in BETAS[::5]:
        explorer.controls["beta"].value = beta
        dots.append(dot_of(explorer))
    assert dots == sorted(dots, key=lambda dot: (-dot[0], dot[1]))


def test_the_monitor_shows_the_last_of_everything_and_draws_every_rollout():
    monitor, measured = PolicyMonitor(), PolicyHistory()
    for i in range(3):
        for name in MEASURED:
            getattr(measured, name).append(0.25 * (i + 1))
        assert monitor(measured) is None  # True would stop the run
        assert f"rollout {i + 1}: reward {0.25 * (i + 1):.3g}" in monitor.picture.value
    curves = re.findall(r'points="([^"]+)"', monitor.picture.value)
    assert len(curves) == len(MEASURED) == 6 and all(len(points.split()) == 3 for points in curves)


def test_the_bars_hold_all_replies_before_and_after():
    explorer = frontier_explorer(MESSAGES)
    shares = [float(share) for share in re.findall(r">([\d.]+) %</text>", explorer.picture.value.split("<svg")[2])]
    before, after = shares[-20::2], shares[-19::2]
    assert sum(before) == pytest.approx(100, abs=0.3) and sum(after) == pytest.approx(100, abs=0.3)
    assert before[0] == pytest.approx(40.0, abs=0.1)  # (0.6 + 0.2) / 2 of the replies are worth nothing


@pytest.mark.parametrize("thoughts", [0, 1, 2])
def test_the_accuracy_after_some_thoughts_is_the_mean_of_the_seeds(thoughts):
    explorer = thinking_explorer(BUDGET)
    explorer.controls["thoughts"].value = thoughts
    assert f"2 digits {0.2 + 0.3 * thoughts:.0%}, 4 digits {0.1 * thoughts + 0.01:.0%}" in text_of(explorer)
    assert f"3528491762&gt;{'38'[:thoughts]}=?" in explorer.picture.value


def test_what_there_is_nothing_to_draw_of_is_refused():
    with pytest.raises(ValueError, match="one message at least"):
        frontier_explorer([])
    with pytest.raises(ValueError, match="one number of thoughts at least"):
        thinking_explorer([])


def test_the_drawing_of_a_group_says_every_number():
    rewards = [0.75, 0.0, 0.5, 0.0]
    advantages = group_advantages(torch.tensor([rewards]), scale=False)[0].tolist()
    drawing = group("Where is order 30217?", [f"reply {i}" for i in range(4)], rewards, advantages)
    assert_says(drawing, ["reply 0: reward 0.75, advantage +0.44", "reply 3: reward 0.00, advantage -0.31", "is 0.31"])
    assert_all_lies_within(drawing)


def test_the_drawing_of_the_ways_names_each_with_its_section():
    drawing = ways()
    assert_says(drawing, ["imitate (section 1)", "by DPO (4)", "by GRPO (5)", "best of n replies (3, 6)"])
    assert_texts_lie_apart(drawing, 15)
    assert_all_lies_within(drawing)
