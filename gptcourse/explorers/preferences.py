"""The loss of DPO under beta, the monitor of a policy, the limit of reward at a KL, and answers after some thinking.

Sources: Rafailov et al. (2023), DPO, equation 7; Ouyang et al. (2022), InstructGPT, equation 2.
"""

import math
from itertools import accumulate
from statistics import fmean

import ipywidgets as widgets
import torch

from gptcourse.drawings import svg
from gptcourse.explorers.explorer import Explorer, choice, slider
from gptcourse.explorers.monitor import POINTS
from gptcourse.explorers.panel import Panel
from gptcourse.preferences import best_of_n, optimal_policy, price_and_worth

BETAS = [round(base * 10.0**power, 4) for power in (-2, -1, 0) for base in (1, 1.5, 2, 3, 4, 5, 7)]
LEADS = [-50.0 + i for i in range(101)]  # nats, more than both sliders can make
N_BINS = 10
MEASURED = {
    "reward": "reward",
    "kl": "KL, nats per reply",
    "length": "tokens per reply",
    "entropy": "entropy, nats per token",
    "idle": "share of idle groups",
    "clipped": "share of clipped tokens",
}
DIGITS = (3, 5, 2, 8, 4, 9, 1, 7, 6, 2)


def dpo_explorer():
    """Return sliders for one pair: its loss, and how hard the loss pulls, as chosen and rejected become likelier."""
    controls = {
        "beta": choice("β", BETAS, 0.1),
        "chosen": slider("chosen, nats", -2.0, -15, 15, 0.5),
        "rejected": slider("rejected, nats", -6.0, -15, 15, 0.5),
    }
    hint = "chosen, rejected: by how much each reply has become likelier than under the reference, ln π/π_ref"
    return Explorer(controls, _pair, hint=hint)


def _pair(beta, chosen, rejected):
    lead = chosen - rejected
    loss, pull = _softplus(-beta * lead), beta * _sigmoid(-beta * lead)
    numbers = (
        f"lead {lead:+.1f} nats, implicit rewards {beta * chosen:+.2f} and {beta * rejected:+.2f}: the chosen reply "
        f"wins with probability {_sigmoid(beta * lead):.3f}, loss {loss:.3f}, pull {pull:.4f}; the chosen reply is "
        f"{math.exp(chosen):.3g} times as likely as at the start"
    )
    losses = {"": (LEADS, [_softplus(-beta * x) for x in LEADS])}
    pulls = {"": (LEADS, [beta * _sigmoid(-beta * x) for x in LEADS])}
    size = {"x_range": (LEADS[0], LEADS[-1]), "width": svg.HALF, "height": 220}
    left = svg.line_chart(losses, labels=("lead, nats", "loss"), dot=(lead, loss), **size)
    right = svg.line_chart(pulls, labels=("lead, nats", "pull on the lead"), dot=(lead, pull), **size)
    return svg.paragraph(numbers) + svg.side_by_side(left, right)


def _sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _softplus(x):
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


class PolicyMonitor(Panel):
    """Draw what a run of `grpo` measures while it runs: display it, then pass it as ``grpo(…, callback=monitor)``."""

    def __init__(self):
        self.picture = widgets.HTML()
        super().__init__([self.picture], [self.picture])

    def __call__(self, measured):
        """Draw the curves of a `PolicyHistory` as they are now; a run is never stopped."""
        drawn = [(getattr(measured, name), label) for name, label in MEASURED.items()]
        charts = [_small(values, label) for values, label in drawn]
        numbers = ", ".join(f"{label} {values[-1]:.3g}" for values, label in drawn)
        self.picture.value = svg.paragraph(f"rollout {len(measured.reward)}: {numbers}") + svg.side_by_side(*charts)


def _small(values, label):
    stride = -(-len(values) // POINTS)
    rollouts = list(range(1, len(values) + 1, stride))
    return svg.line_chart({"": (rollouts, values[::stride])}, labels=("rollout", label), width=220, height=150)


def frontier_explorer(messages):
    """Return a slider for beta, with the best policy at that price: its reward, its KL, and what it prefers.

    `messages` as for `price_and_worth`. Raises ValueError without one.
    """
    if not messages:
        raise ValueError("frontier_explorer needs the levels of reward of one message at least.")
    limit = {beta: price_and_worth(messages, lambda p, r, beta=beta: optimal_policy(p, r, beta)) for beta in BETAS}
    taken = [price_and_worth(messages, lambda p, r, n=n: best_of_n(p, r, n)) for n in (1, 2, 4, 8, 16, 32, 64)]
    curves = {"limit": zip(*sorted(limit.values()), strict=True), "best of n": zip(*taken, strict=True)}
    curves = {name: tuple(columns) for name, columns in curves.items()}
    before = _binned(messages, lambda p, r: p)

    def picture(beta):
        """Draw where the best policy stands, and how it shifts the replies among the levels of reward."""
        kl, reward = limit[beta]
        numbers = (
            f"β = {beta:g}: reward {reward:.3f} at {kl:.2f} nats, and no policy has more at this price "
            f"(the reference: {taken[0][1]:.3f} at 0)"
        )
        labels = ("KL from the reference, nats per reply", "reward")
        chart = svg.line_chart(curves, labels=labels, dot=(kl, reward))
        after = _binned(messages, lambda p, r: optimal_policy(p, r, beta))
        rows = [(f"{i / N_BINS:.1f}–{(i + 1) / N_BINS:.1f}", before[i], after[i]) for i in range(N_BINS)]
        shares = svg.bars(rows, description="replies by reward", headings=("reference", f"β = {beta:g}"))
        return svg.paragraph(numbers) + chart + svg.paragraph("Share of the replies, by their reward:") + shares

    return Explorer({"beta": choice("β", BETAS, 0.1)}, picture)


def _binned(messages, policy_of):
    """Return the share of a policy's replies in each bin of the reward, from 0 to 1, as a mean over messages."""
    shares = [0.0] * N_BINS
    for rewards, masses in messages:
        p, r = (torch.as_tensor(part, dtype=torch.float64) for part in (masses, rewards))
        for reward, share in zip(rewards, policy_of(p, r).tolist(), strict=True):
            shares[max(min(int(reward * N_BINS), N_BINS - 1), 0)] += share / len(messages)
    return shares


def thinking_explorer(budget):
    """Return a slider for the number of thinking tokens, with the accuracy by the length of the puzzle.

    `budget` holds a dict for each seed and number of thoughts: "seed", "thoughts", and "by_length" from the number of
    digits to the share of right sums. Raises ValueError if it is empty.
    """
    allowed = sorted({run["thoughts"] for run in budget})
    if not allowed:
        raise ValueError("thinking_explorer needs the accuracy for one number of thoughts at least.")

    def picture(thoughts):
        """Draw the accuracy of each seed at one budget, and of the largest budget behind it."""
        runs = [run["by_length"] for run in budget if run["thoughts"] == thoughts]
        most = [run["by_length"] for run in budget if run["thoughts"] == allowed[-1]]
        digits = sorted(map(int, runs[0]))
        said = ", ".join(f"{n} digits {fmean(run[str(n)] for run in runs):.0%}" for n in digits)
        shown = [total % 10 for total in accumulate(DIGITS)][:thoughts]
        example = f"{''.join(map(str, DIGITS))}>{''.join(map(str, shown))}=?"
        chart = svg.line_chart(
            {f"after {thoughts}": _by_digits(runs, digits)},
            labels=("digits of the puzzle", "share right"),
            pale={f"after {allowed[-1]}": _by_digits(most, digits)},
            floor=(0.1, "guessing"),
            y_range=(0.0, 1.02),
        )
        return svg.paragraph(f"{thoughts} thinking tokens: {said}") + svg.paragraph(example, mono=True) + chart

    return Explorer({"thoughts": choice("thinking tokens", allowed, allowed[len(allowed) // 2])}, picture)


def _by_digits(runs, digits):
    return digits, *([run[str(n)] for n in digits] for run in runs)
