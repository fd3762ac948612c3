"""The learning rate over a run: warm-up, the way down, and where it ends, beside GPT-3's own schedule.

Source: Brown et al. (2020), GPT-3, appendix B; the formula is `optimizers.learning_rate_at`.
"""

from gptcourse.drawings import svg
from gptcourse.explorers.explorer import Explorer, buttons, choice, slider, wide
from gptcourse.optimizers import SCHEDULES, learning_rate_at
from gptcourse.training import TrainingConfig

STEPS = 200
PEAKS = [1e-4, 2e-4, 4e-4, 6e-4, 1e-3, 2e-3, 4e-3, 6e-3, 8e-3, 1e-2, 2e-2]


def schedule(peak, kind="cosine", warmup=0, decay=100, end=10):
    """Return the rate of each of STEPS steps; `warmup` and `decay` are shares of the run, `end` of the peak, in %.

    A decay longer than what the warm-up leaves is shortened to that. "constant" has none.
    """
    warmup_steps = STEPS * warmup // 100
    decay_steps = min(STEPS * decay // 100, STEPS - warmup_steps)
    shape = {"lr_scheduler_type": kind, "warmup_steps": warmup_steps, "decay_steps": decay_steps}
    config = TrainingConfig(STEPS, 1, peak, min_lr_ratio=end / 100, **shape)
    return [learning_rate_at(step, config) for step in range(STEPS)]


def schedule_explorer():
    """Return sliders for a schedule, with the rate of every step and how much of the peak a step has on average.

    The second curve is GPT-3's shape with the same peak: a cosine down to a tenth. Its warm-up, 375 million of 300
    billion tokens, is shorter than a step of this picture.
    """
    controls = {
        "kind": wide(buttons("schedule", [(kind.replace("_", ", "), kind) for kind in SCHEDULES])),
        "peak": choice("peak", [(f"{p:g}", p) for p in PEAKS], 6e-3),
        "warmup": slider("warm-up, %", 10, 0, 50, 5),
        "decay": slider("decay over, %", 100, 5, 100, 5),
        "end": slider("ends at, %", 10, 0, 100, 5),
    }
    return Explorer(controls, _picture)


def _picture(peak, **shape):
    rates, steps = schedule(peak, **shape), list(range(1, STEPS + 1))
    numbers = (
        f"first step {rates[0]:.2g}  ·  last step {rates[-1]:.2g}  ·  "
        f"on average {sum(rates) / len(rates) / peak:.0%} of the peak"
    )
    return svg.paragraph(numbers) + svg.line_chart(
        {"yours": (steps, rates), "GPT-3's shape": (steps, schedule(peak))},
        labels=("step", "learning rate"),
        y_range=(0.0, 1.05 * peak),
    )
