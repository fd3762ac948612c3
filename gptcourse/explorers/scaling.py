"""What several devices must hold, and what a budget of arithmetic is best spent on.

Sources: Rajbhandari et al. (2020), ZeRO, section 3; Hoffmann et al. (2022), Chinchilla, section 3.3.
"""

import math
from functools import partial

import ipywidgets as widgets

from gptcourse.explorers import svg
from gptcourse.explorers.explorer import Explorer, buttons, choice, slider
from gptcourse.explorers.size import GPT3, METRIC
from gptcourse.scaling import SHARDED, device_memory

DEVICE = 80e9  # bytes of a large GPU
DEVICES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
BATCHES = [1, 2, 4, 8, 16, 32]
SPAN = 2.0  # powers of ten to each side of the best size that the picture of a law shows
COUNT = partial(svg.short, names=("k", "M", "B", "T"))


def device_explorer():
    """Return sliders for one of GPT-3's sizes on several devices, with what each device must hold.

    In mixed precision with AdamW, at GPT-3's context of 2,048 tokens; the line is a device of 80 GB.
    """
    controls = {
        "size": choice("GPT-3 size", list(GPT3), "6.7B"),
        "strategy": buttons(list(SHARDED), "FSDP", "118px"),
        "devices": choice("devices", DEVICES, 8),
        "batch": choice("sequences", BATCHES, 1),
        "checkpointing": widgets.Checkbox(value=False, description="activation checkpointing"),
    }
    return Explorer(controls, _devices)


def _devices(size, strategy, devices, batch, checkpointing):
    memory = device_memory(GPT3[size], batch, devices, strategy, checkpointing)
    total = sum(memory.values())
    words = "fits" if total <= DEVICE else f"is {total / DEVICE:.1f} times too much"
    numbers = (
        f"{size} on {devices} device{'s' * (devices > 1)} with {strategy}: {METRIC(total)}B on each, which {words}"
    )
    scale = (svg.WIDTH - 48) / max(total, 1.25 * DEVICE)
    edge = 24 + DEVICE * scale
    parts = svg.divided_bar({f"{name} {METRIC(part)}B": part for name, part in memory.items()}, 34, scale, 26)
    parts.append(svg.line(edge, 26, edge, 70, opacity=1, width=2, dashed=True))
    parts.append(svg.text(edge, 21, "80 GB", anchor="middle", size=12, bold=True))
    return svg.paragraph(numbers) + svg.picture(parts, 92, numbers)


def law_explorer(laws, powers=(12, 26)):
    """Return a slider for a budget of FLOPs, with the loss of every size that it could be spent on.

    `laws` maps names to ScalingLaws; a budget C trains N parameters on C / (6 N) tokens. `powers` are the lowest and
    the highest power of ten of the budget; ValueError where they are not in this order.
    """
    low, high = powers
    if not low < high or not laws:
        raise ValueError(f"law_explorer needs a law, and a lowest power of ten below the highest, not {powers}.")
    controls = {
        "law": buttons(list(laws)),
        "power": slider("log₁₀ FLOPs", (low + high) / 2, low, high, 0.25),
    }
    return Explorer(controls, lambda law, power: _law(laws[law], 10.0**power))


def _law(law, flops):
    n_parameters, n_tokens = law.compute_optimal(flops)
    best, lowest = math.log10(n_parameters), law.loss(n_parameters, n_tokens)
    powers_of_n = [best + SPAN * (i / 40 - 1) for i in range(81)]
    numbers = (
        f"best: {COUNT(n_parameters)} parameters on {COUNT(n_tokens)} tokens "
        f"({n_tokens / n_parameters:.3g} a parameter), loss {lowest:.3f}; the law's floor is {law.E:.3f}"
    )
    shown = [power for power in range(-3, 30) if powers_of_n[0] <= power <= powers_of_n[-1]]
    return svg.paragraph(numbers) + svg.line_chart(
        {"loss at this budget": (powers_of_n, [law.loss(10**power, flops / 6 / 10**power) for power in powers_of_n])},
        x_label="parameters",
        y_label="loss",
        description=numbers,
        dot=(best, lowest),
        floor=(law.E, "floor"),
        x_range=(powers_of_n[0], powers_of_n[-1]),
        x_ticks={power: COUNT(10.0**power) for power in shown},
        y_range=(law.E, max(lowest + 0.5, 1.4 * lowest - 0.4 * law.E)),
    )
