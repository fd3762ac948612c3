"""What a model's shape costs: parameters, memory and arithmetic, with GPT-3's eight sizes for scale."""

import math
from functools import partial

import ipywidgets as widgets

from gptcourse.explorers import svg
from gptcourse.explorers.explorer import Explorer, choice
from gptcourse.model import GPT3_TABLE, GPTConfig
from gptcourse.scaling import flops_per_token, training_memory

VOCAB_SIZE = 50257  # GPT-2's and GPT-3's
GPT3 = {name: GPTConfig.gpt3(name) for name in GPT3_TABLE}
GPT3_PARAMETERS = {name: config.num_parameters for name, config in GPT3.items()}
GPT3_FLOPS = {name: flops_per_token(config) for name, config in GPT3.items()}
FIELDS = {"width": "n_embd", "layers": "n_layer", "heads": "n_head", "context": "n_positions"}
GPT3_SLIDERS = {name: {key: getattr(c, field) for key, field in FIELDS.items()} for name, c in GPT3.items()}
OPTIONS = {
    "batch": [1, 2, 4, 8, 16, 32, 64],
    "width": [32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 2560, 3072, 4096, 5120, 6144, 8192, 12288],
    "layers": [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40, 48, 64, 96],
    "heads": [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40, 64, 96],
    "context": [64, 128, 256, 512, 1024, 2048, 4096, 8192],
}
MACHINES = {"8 GB laptop": 8e9, "16 GB T4": 16e9, "80 GB H100": 80e9, "eight H100": 640e9}
YOURS = "yours"
METRIC = partial(svg.short, names=(" k", " M", " G", " T", " P"))


def size_explorer(width=1024, layers=24, heads=16, context=2048):
    """Return sliders for a GPT's shape, with its parameters, training memory and FLOPs per token.

    A menu sets the sliders to one of GPT-3's sizes (Brown et al. 2020, table 2.1). A shape that cannot be built is
    answered with the reason. Memory is for training in float32 with AdamW, on a batch of that many full windows.
    """
    start = {"batch": 1, "width": width, "layers": layers, "heads": heads, "context": context}
    preset = widgets.Dropdown(options=[YOURS, *GPT3_TABLE], value=YOURS, description="GPT-3 size")
    preset.style.description_width, preset.layout.width = "125px", "335px"
    controls = {name: choice(name, options, start[name]) for name, options in OPTIONS.items()}
    return SizeExplorer({"preset": preset, **controls}, _picture)


class SizeExplorer(Explorer):
    """The widget that ``size_explorer`` returns."""

    def moved(self, control):
        """Let the menu move the sliders, or name the size that they have come to."""
        preset = self.controls["preset"]
        if control is preset:
            self.move(**GPT3_SLIDERS.get(preset.value, {}))
            return
        shape = {name: self.controls[name].value for name in FIELDS}
        self.move(preset=next((name for name, sliders in GPT3_SLIDERS.items() if sliders == shape), YOURS))


def _picture(preset, batch, **shape):
    try:
        config = GPTConfig(VOCAB_SIZE, **{FIELDS[name]: value for name, value in shape.items()})
    except ValueError as reason:
        raise ValueError(f"This model cannot be built. {reason}") from None
    memory, flops, parts = training_memory(config, batch), flops_per_token(config), config.parameters_by_part
    total = sum(memory.values())
    numbers = (
        f"{config.num_parameters:,} parameters  ·  {METRIC(total)}B of memory to train with a batch of {batch}  ·  "
        f"{METRIC(flops)}FLOP to train on a token"
    )
    drawn = [
        *_ruler(8, "parameters", config.num_parameters, 6, 12, GPT3_PARAMETERS, svg.short),
        *_shares(parts, 104),
        *_ruler(150, "training memory", total, 7, 14, MACHINES, lambda power: f"{METRIC(power)}B"),
        *_shares(memory, 246),
        *_ruler(292, "training FLOPs per token", flops, 7, 13, GPT3_FLOPS, METRIC),
    ]
    return svg.paragraph(numbers) + svg.picture(drawn, 378, numbers)


def _shares(parts, top):
    """Draw one bar divided as ``parts`` (a dict from name to amount) are, with a key below."""
    total = sum(parts.values())
    shares = {f"{name} {100 * amount / total:.0f} %": amount / total for name, amount in parts.items()}
    return svg.divided_bar(shares, top, svg.WIDTH - 48)


def _ruler(top, name, value, low, high, marks, label):
    """Draw a logarithmic ruler from 10^low to 10^high, or to ``value``, a dot on it, with ``marks`` above it."""
    left, right, y, power = 24, svg.WIDTH - 24, top + 60, math.log10(value)
    low, high = min(low, math.floor(power)), max(high, math.ceil(power))

    def place(number):
        return left + (right - left) * (math.log10(number) - low) / (high - low)

    parts = [svg.text(left, top + 14, name, size=13, bold=True), svg.line(left, y, right, y, opacity=0.6)]
    for power in range(low, high + 1):
        x = place(10**power)
        parts.append(svg.line(x, y, x, y + 4, opacity=0.6))
        parts.append(svg.text(x, y + 17, label(10**power), anchor="middle", size=11, opacity=0.75))
    for n, (mark, number) in enumerate(marks.items()):
        x, up = place(number), 10 + 14 * (n % 2)  # neighbours at different heights, so that no two names touch
        parts.append(svg.line(x, y - up, x, y, color=svg.BLUE, opacity=0.8, width=1.2))
        parts.append(svg.text(x, y - up - 4, mark, anchor="middle", size=11))
    return [*parts, svg.point(place(value), y)]
