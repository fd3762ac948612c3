"""The drawing of notebook 09: from a prompt to a group of replies, their rewards, and their advantages."""

from __future__ import annotations

from collections.abc import Sequence

from gptcourse.drawings.diagram import BLUE, GREEN, ORANGE, PURPLE, Diagram


def group(prompt: str, replies: Sequence[str], rewards: Sequence[float], advantages: Sequence[float]) -> Diagram:
    """Draw one prompt, the replies that were drawn to it, the reward of each, and its advantage over the group."""
    said = "; ".join(
        f"{reply}: reward {reward:.2f}, advantage {advantage:+.2f}"
        for reply, reward, advantage in zip(replies, rewards, advantages, strict=True)
    )
    mean = sum(rewards) / len(rewards)
    height = 62 + 46 * len(replies)
    drawing = Diagram(680, height, f"A group of replies to: {prompt}. {said}. The mean reward is {mean:.2f}.")
    for x, name in ((86, "prompt"), (340, "replies, drawn"), (538, "reward"), (628, "advantage")):
        drawing.text(x, 18, name, bold=True, size=12)
    asks = drawing.box(6, 12 + 23 * len(replies) - 6, 160, 36, prompt, color=BLUE)
    for i, (reply, reward, advantage) in enumerate(zip(replies, rewards, advantages, strict=True)):
        y = 30 + 46 * i
        box = drawing.box(216, y, 270, 34, reply, color=PURPLE, mono=True)
        drawing.arrow(asks.right, box.left)
        drawing.text(538, y + 22, f"{reward:.2f}", mono=True)
        color = GREEN if advantage > 0 else ORANGE if advantage < 0 else "currentColor"
        drawing.text(628, y + 22, f"{advantage:+.2f}".replace("-", "−"), color=color, mono=True, bold=True)
    drawing.text(538, height - 10, f"mean {mean:.2f}", size=12, faint=True)
    drawing.text(340, height - 10, "likelier where the advantage is above 0", size=12, faint=True)
    return drawing


def ways() -> Diagram:
    """Draw the ways of notebook 09 from a model that imitates to a better policy, with the sections that go them."""
    drawing = Diagram(
        680,
        196,
        "From written replies a model learns to imitate (section 1). Its replies are compared in pairs (3) or rewarded "
        "by a program (2). Pairs train a reward model (3), or the policy itself by DPO (4). A reward, of the program "
        "or of the reward model, picks the best of n replies (3, 6), or trains the policy by GRPO (5).",
    )
    imitates = drawing.box(6, 74, 136, 46, "it imitates", color=BLUE, note="written replies · 1")
    pairs = drawing.box(186, 20, 136, 46, "pairs", color=PURPLE, note="which is better? · 3")
    program = drawing.box(186, 128, 136, 46, "a program", color=PURPLE, note="computes a reward · 2")
    judge = drawing.box(366, 56, 136, 46, "reward model", color=PURPLE, note="learns a reward · 3")
    dpo = drawing.box(546, 20, 128, 46, "DPO", color=GREEN, note="from pairs · 4")
    best = drawing.box(546, 82, 128, 46, "best of n", color=GREEN, note="no training · 3, 6")
    grpo = drawing.box(546, 144, 128, 46, "GRPO", color=GREEN, note="from rewards · 5")
    for start, end in ((imitates, pairs), (imitates, program), (pairs, judge), (judge, best), (judge, grpo)):
        drawing.arrow(start.right, end.left)
    drawing.arrow((322, 36), dpo.left)
    drawing.arrow((322, 158), grpo.left)
    drawing.arrow(program.right, best.left)
    drawing.text(610, 12, "a better policy", size=12, faint=True)
    return drawing
