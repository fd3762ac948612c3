"""What a model's shape costs: parameters, memory and arithmetic, with GPT-3's eight sizes for scale."""

import math
from functools import partial

import ipywidgets as widgets

from gptcourse.explorers import svg
from gptcourse.model import GPT3_TABLE, GPTConfig
from gptcourse.scaling import flops_per_token, training_memory

VOCAB_SIZE = 50257  # GPT-2's and GPT-3's
GPT3 = {name: GPTConfig.gpt3(name) for name in GPT3_TABLE}
GPT3_PARAMETERS = {name: config.num_parameters for name, config in GPT3.items()}
GPT3_FLOPS = {name: flops_per_token(config) for name, config in GPT3.items()}
OPTIONS = {
    "width": [32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 2560, 3072, 4096, 5120, 6144, 8192, 12288],
    "layers": [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40, 48, 64, 96],
    "heads": [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40, 64, 96],
    "context": [64, 128, 256, 512, 1024, 2048, 4096, 8192],
    "batch": [1, 2, 4, 8, 16, 32, 64],
}
MACHINES = {"8 GB laptop": 8e9, "16 GB T4": 16e9, "80 GB H100": 80e9, "eight H100": 640e9}
YOURS = "yours"
COLORS = (svg.BLUE, svg.ORANGE, svg.GREEN, svg.PURPLE)
METRIC = (" k", " M", " G", " T", " P")


def size_explorer(width=1024, layers=24, heads=16, context=2048):
    """Return sliders for a GPT's shape, with its parameters, training memory and FLOPs per token.

    A menu sets the sliders to one of GPT-3's sizes (Brown et al. 2020, table 2.1). A shape that cannot be built is
    answered with the reason. Memory is for training in float32 with AdamW, on a batch of that many full windows.
    """
    start = {"width": width, "layers": layers, "heads": heads, "context": context, "batch": 1}
    style, layout = {"description_width": "80px"}, {"width": "330px"}
    controls = {
        name: widgets.SelectionSlider(
            options=options, value=start[name], description=name, style=style, layout=widgets.Layout(**layout)
        )
        for name, options in OPTIONS.items()
    }
    controls["preset"] = widgets.Dropdown(
        options=[YOURS, *GPT3_TABLE],
        value=YOURS,
        description="GPT-3 size",
        style=style,
        layout=widgets.Layout(**layout),
    )
    grid = widgets.GridBox(
        [controls[name] for name in ("preset", "batch", "width", "layers", "heads", "context")],
        layout=widgets.Layout(grid_template_columns="repeat(auto-fit, 340px)"),
    )
    picture = widgets.HTML()
    box = widgets.VBox([grid, picture])
    box.controls, box.picture = controls, picture
    _connect(controls, picture)
    return box


def _connect(controls, picture):
    """Let every slider redraw the picture, and the menu move the sliders."""
    presets = {name: _slider_values(config) for name, config in GPT3.items()}
    moving = False  # the menu moves four sliders; the picture waits for the last

    def draw(_change=None):
        if not moving:
            shape = {name: controls[name].value for name in ("width", "layers", "heads", "context")}
            controls["preset"].value = next((name for name, preset in presets.items() if preset == shape), YOURS)
            picture.value = _picture(**shape, batch=controls["batch"].value)

    def move_sliders(change):
        """Set the sliders to the size that was chosen, and draw once."""
        nonlocal moving
        moving = True
        for name, value in presets.get(change["new"], {}).items():
            controls[name].value = value
        moving = False
        draw()

    for name in OPTIONS:
        controls[name].observe(draw, "value")
    draw()
    controls["preset"].observe(move_sliders, "value")


def _slider_values(config):
    return {
        "width": config.n_embd,
        "layers": config.n_layer,
        "heads": config.n_head,
        "context": config.n_positions,
    }


def _picture(width, layers, heads, context, batch):
    try:
        config = GPTConfig(vocab_size=VOCAB_SIZE, n_positions=context, n_embd=width, n_layer=layers, n_head=heads)
    except ValueError as reason:
        return svg.paragraph(f"This model cannot be built. {reason}")
    memory, flops = training_memory(config, batch), flops_per_token(config)
    total = sum(memory.values())
    metric = partial(svg.short, names=METRIC)
    numbers = (
        f"{config.num_parameters:,} parameters  ·  {metric(total)}B of memory to train with a batch of {batch}  ·  "
        f"{metric(flops)}FLOP to train on a token"
    )
    parts = [
        _ruler(8, "parameters", config.num_parameters, 6, 12, GPT3_PARAMETERS, svg.short),
        _shares(104, config.parameters_by_part),
        _ruler(150, "training memory", total, 7, 14, MACHINES, lambda power: f"{metric(power)}B"),
        _shares(246, memory),
        _ruler(292, "training FLOPs per token", flops, 7, 13, GPT3_FLOPS, metric),
    ]
    return svg.paragraph(numbers) + svg.picture(parts, 378, numbers)


def _ruler(top, name, value, low, high, marks, label):
    """Draw a logarithmic ruler from 10^low to 10^high, with ``marks`` above it and ``value`` as a dot."""
    left, right, y = 24, svg.WIDTH - 24, top + 60

    def place(number):
        return left + (right - left) * min(max((math.log10(number) - low) / (high - low), 0.0), 1.0)

    parts = [svg.text(left, top + 14, name, size=13, bold=True), svg.line(left, y, right, y, opacity=0.6)]
    for power in range(low, high + 1):
        x = place(10**power)
        parts += [
            svg.line(x, y, x, y + 4, opacity=0.6),
            svg.text(x, y + 17, label(10**power), anchor="middle", size=11, opacity=0.75),
        ]
    for n, (mark, number) in enumerate(marks.items()):
        x, up = place(number), 10 + 14 * (n % 2)  # neighbours at different heights, so that no two names touch
        parts += [
            svg.line(x, y - up, x, y, color=svg.BLUE, opacity=0.8, width=1.2),
            svg.text(x, y - up - 4, mark, anchor="middle", size=11),
        ]
    return "".join([*parts, svg.point(place(value), y)])


def _shares(top, parts):
    """Draw one bar divided as ``parts`` (a dict from name to amount) are, with a key below."""
    drawn, x, whole = [], 24.0, svg.WIDTH - 48
    total = sum(parts.values())
    for n, (color, (name, amount)) in enumerate(zip(COLORS, parts.items(), strict=True)):
        share = amount / total
        drawn += [
            svg.rect(x, top, share * whole - 1, 12, color),
            svg.rect(24 + 162 * n, top + 20, 9, 9, color),
            svg.text(37 + 162 * n, top + 29, f"{name} {100 * share:.0f} %", size=12),
        ]
        x += share * whole
    return "".join(drawn)
