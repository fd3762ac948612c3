"""What several devices must hold, and what a budget of arithmetic is best spent on.

Sources: Rajbhandari et al. (2020), ZeRO, section 3; Hoffmann et al. (2022), Chinchilla, section 3.3.
"""

import math
from functools import partial

import ipywidgets as widgets

from gptcourse.explorers import svg
from gptcourse.explorers.live import live_picture
from gptcourse.explorers.size import COLORS, GPT3, METRIC
from gptcourse.scaling import SHARDED, device_memory

DEVICE = 80e9  # bytes of a large GPU
DEVICES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
BATCHES = [1, 2, 4, 8, 16, 32]
SPAN = 3.0  # powers of ten to each side of the best size that the picture of a law shows


def device_explorer():
    """Return sliders for one of GPT-3's sizes on several devices, with what each device must hold.

    In mixed precision with AdamW, at GPT-3's context of 2,048 tokens; the line is a device of 80 GB.
    """
    controls = {
        "size": widgets.SelectionSlider(options=list(GPT3), value="6.7B", description="GPT-3 size"),
        "strategy": widgets.ToggleButtons(options=list(SHARDED), value="FSDP"),
        "devices": widgets.SelectionSlider(options=DEVICES, value=8, description="devices"),
        "batch": widgets.SelectionSlider(options=BATCHES, value=1, description="sequences"),
        "checkpointing": widgets.Checkbox(value=False, description="activation checkpointing"),
    }
    controls["strategy"].style.button_width = "118px"

    def picture():
        """Return the drawing for where the controls stand."""
        n_devices, strategy = controls["devices"].value, controls["strategy"].value
        memory = device_memory(
            GPT3[controls["size"].value], controls["batch"].value, n_devices, strategy, controls["checkpointing"].value
        )
        total = sum(memory.values())
        words = "fits" if total <= DEVICE else f"is {total / DEVICE:.1f} times too much"
        numbers = (
            f"{controls['size'].value} on {n_devices} device{'s' * (n_devices > 1)} with {strategy}: "
            f"{svg.short(total, METRIC)}B on each, which {words}"
        )
        return svg.paragraph(numbers) + svg.picture(_stack(memory), 118, numbers)

    return live_picture(controls, picture)


def _stack(memory):
    """Draw what a device must hold as one bar, with a line at the memory that it has."""
    left, right, top = 24.0, svg.WIDTH - 24.0, 34.0
    largest = max(sum(memory.values()), 1.25 * DEVICE)
    scale, x, parts = (right - left) / largest, left, []
    for n, (color, (name, size)) in enumerate(zip(COLORS, memory.items(), strict=True)):
        parts += [
            svg.rect(x, top, size * scale, 26, color),
            svg.rect(left + 162 * n, top + 52, 9, 9, color),
            svg.text(left + 13 + 162 * n, top + 61, f"{name} {svg.short(size, METRIC)}B", size=12),
        ]
        x += size * scale
    edge = left + DEVICE * scale
    parts.append(svg.line(edge, top - 8, edge, top + 36, opacity=1, width=2, dashed=True))
    return [*parts, svg.text(edge, top - 13, "80 GB", anchor="middle", size=12, bold=True)]


def law_explorer(laws, powers=(12, 26)):
    """Return a slider for a budget of FLOPs, with the loss of every size that it could be spent on.

    `laws` maps names to ScalingLaws; a budget C trains N parameters on C / (6 N) tokens. `powers` are the lowest and
    the highest power of ten of the budget.
    """
    controls = {
        "law": widgets.ToggleButtons(options=list(laws)),
        "power": widgets.FloatSlider(
            sum(powers) / 2, min=powers[0], max=powers[1], step=0.25, description="log₁₀ FLOPs"
        ),
    }

    def picture():
        """Return the drawing for where the controls stand."""
        law, flops = laws[controls["law"].value], 10 ** controls["power"].value
        n_parameters, n_tokens = law.compute_optimal(flops)
        best, count = math.log10(n_parameters), partial(svg.short, names=("k", "M", "B", "T"))
        powers_of_n = [best + SPAN * (i / 40 - 1) for i in range(81)]
        losses = [law.loss(10**power, flops / 6 / 10**power) for power in powers_of_n]
        lowest = law.loss(n_parameters, n_tokens)
        numbers = (
            f"best: {count(n_parameters)} parameters on {count(n_tokens)} tokens "
            f"({n_tokens / n_parameters:.3g} a parameter), loss {lowest:.3f}; the law's floor is {law.E:.3f}"
        )
        shown = [power for power in range(-3, 30) if powers_of_n[0] <= power <= powers_of_n[-1]]
        chart = svg.line_chart(
            {"loss at this budget": (powers_of_n, losses)},
            x_label="parameters",
            y_label="loss",
            description=numbers,
            dot=(best, lowest),
            floor=(law.E, "floor"),
            x_ticks={power: count(10.0**power) for power in shown},
            y_range=(law.E, max(lowest + 0.5, 1.4 * lowest - 0.4 * law.E)),
        )
        return svg.paragraph(numbers) + chart

    return live_picture(controls, picture)
