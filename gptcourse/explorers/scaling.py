"""What a model's shape costs, what several devices hold and send, and a budget of arithmetic: a law, and a game.

Sources: Brown et al. (2020), GPT-3, table 2.1; Rajbhandari et al. (2020), ZeRO, section 3; Hoffmann et al. (2022),
Chinchilla, section 3.3; Huang et al. (2019), GPipe, section 2.3.
"""

import math
from functools import partial

import ipywidgets as widgets

from gptcourse.drawings import scaling, svg
from gptcourse.explorers.explorer import Explorer, buttons, choice, slider, wide
from gptcourse.model import GPT3_TABLE, GPTConfig
from gptcourse.scaling import SHARDED, device_memory, flops_per_token, interval_score, ruler, training_memory

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
DEVICE = 80e9  # bytes of a large GPU
DEVICES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
BATCHES = [1, 2, 4, 8, 16, 32]
SPAN = 2.0  # powers of ten to each side of the best size that the picture of a law shows


def size_explorer(width=1024, layers=24, heads=16, context=2048):
    """Return sliders for a GPT's shape, with its parameters, training memory and FLOPs per token.

    A row of buttons sets the sliders to one of GPT-3's sizes (Brown et al. 2020, table 2.1). A shape that cannot be
    built is answered with the reason. Memory is for training in float32 with AdamW, on a batch of so many full windows.
    """
    start = {"batch": 1, "width": width, "layers": layers, "heads": heads, "context": context}
    shape = {name: start[name] for name in FIELDS}
    preset = wide(buttons("GPT-3 size", [YOURS, *GPT3_TABLE], _preset(shape)))
    controls = {name: choice(name, options, start[name]) for name, options in OPTIONS.items()}
    return SizeExplorer({"preset": preset, **controls}, _size)


class SizeExplorer(Explorer):
    """The widget that ``size_explorer`` returns."""

    def moved(self, control):
        """Let the buttons move the sliders, or name the size that they have come to."""
        preset = self.controls["preset"]
        if control is preset:
            self.move(**GPT3_SLIDERS.get(preset.value, {}))
            return
        shape = {name: self.controls[name].value for name in FIELDS}
        self.move(preset=_preset(shape))


def _preset(shape):
    """Return the name of the GPT-3 size that has this shape."""
    return next((name for name, sliders in GPT3_SLIDERS.items() if sliders == shape), YOURS)


def _size(preset, batch, **shape):
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


def device_explorer():
    """Return sliders for one of GPT-3's sizes on several devices, with what each device must hold.

    In mixed precision with AdamW, at GPT-3's context of 2,048 tokens; the line is a device of 80 GB.
    """
    controls = {
        "size": wide(buttons("GPT-3 size", list(GPT3), "6.7B")),
        "strategy": wide(buttons("strategy", list(SHARDED), "FSDP")),
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
    parts.append(svg.line(edge, 26, edge, 64, opacity=1, width=2, dashed=True))
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
        "law": wide(buttons("law", list(laws))),
        "power": slider("log₁₀ FLOPs", (low + high) / 2, low, high, 0.25),
    }
    return Explorer(controls, lambda law, power: _law(laws[law], 10.0**power))


def _law(law, flops):
    n_parameters, n_tokens = law.compute_optimal(flops)
    best, lowest = math.log10(n_parameters), law.loss(n_parameters, n_tokens)
    powers_of_n = [best + SPAN * (i / 40 - 1) for i in range(81)]
    numbers = (
        f"best: {svg.short(n_parameters)} parameters on {svg.short(n_tokens)} tokens "
        f"({n_tokens / n_parameters:.3g} a parameter), loss {lowest:.3f}; the law's floor is {law.E:.3f}"
    )
    shown = [power for power in range(-3, 30) if powers_of_n[0] <= power <= powers_of_n[-1]]
    return svg.paragraph(numbers) + svg.line_chart(
        {"loss at this budget": (powers_of_n, [law.loss(10**power, flops / 6 / 10**power) for power in powers_of_n])},
        labels=("parameters", "loss"),
        dot=(best, lowest),
        floor=(law.E, "floor"),
        x_range=(powers_of_n[0], powers_of_n[-1]),
        x_ticks={power: svg.short(10.0**power) for power in shown},
        y_range=(law.E, max(lowest + 0.5, 1.4 * lowest - 0.4 * law.E)),
    )


def collective_explorer():
    """Return sliders for a collective on a ring: which one, of how many processes, after how many steps."""
    controls = {
        "collective": wide(buttons("collective", list(scaling.COLLECTIVES))),
        "processes": slider("processes", 4, 2, 8),
        "step": slider("steps done", 2, 0, 14),
    }
    return Explorer(controls, lambda collective, processes, step: _drawn(scaling.ring(collective, processes, step)))


def pipeline_explorer():
    """Return sliders for a pipeline: GPUs in a row, and portions of the batch, with the time in which a GPU is idle."""
    controls = {"stages": slider("GPUs", 4, 1, 8), "portions": slider("portions", 4, 1, 24)}
    return Explorer(controls, lambda stages, portions: _drawn(scaling.pipeline(stages, portions)))


def _drawn(diagram):
    return svg.picture(diagram.parts, diagram.height, diagram.description)


NOTHING = "nothing"


def forecast_explorer(runs, hidden, share=0.2, level=0.9):
    """Return a game: buy runs for a share of what a larger one costs, give an interval for its loss, and be scored.

    `runs` and `hidden` hold "shape", "parameters", "tokens", "flops_per_token" and "loss", as recorded. A slider for
    each size buys its runs, from the shortest to the one it names; at the end the hidden run is shown, the score, and
    where a ruler along the bought runs arrives.
    """
    shapes = list(dict.fromkeys(run["shape"] for run in runs))
    lengths = sorted({run["tokens"] for run in runs})
    options = [(NOTHING, 0), *((f"up to {svg.short(tokens)}", tokens) for tokens in lengths)]
    controls = {name: choice(name, options, 0) for name in shapes}
    controls |= {"low": slider("from", 1.4, 1.0, 2.0, 0.005), "high": slider("to", 1.6, 1.0, 2.0, 0.005)}
    controls["score"] = widgets.ToggleButton(value=False, description="Show the run, and my score")
    controls["score"].layout.width = "335px"
    budget = share * _cost(hidden)

    def picture(low, high, score, **bought):
        """Draw what was bought, the interval, and at the end the run."""
        kept = [run for run in runs if run["tokens"] <= bought[run["shape"]]]
        spent = sum(map(_cost, kept))
        if spent > budget:
            raise ValueError(f"That costs {METRIC(spent)}FLOP, and you have {METRIC(budget)}FLOP: buy less.")
        said = (
            f"Wanted: the loss of {hidden['shape']}, {svg.short(hidden['parameters'])} parameters, on "
            f"{svg.short(hidden['tokens'])} tokens. Spent: {METRIC(spent)}FLOP of {METRIC(budget)}FLOP."
        )
        for name in shapes:
            losses = ", ".join(f"{run['loss']:.3f}" for run in kept if run["shape"] == name)
            said += f"\n{name}: {losses}" if losses else ""
        said += "\n" + (
            _scored(kept, hidden, low, high, level) if score else f"Your {level:.0%} interval: move its ends."
        )
        return svg.paragraph(said) + _bought(kept, hidden, low, high, score)

    return Explorer(controls, picture)


def _cost(run):
    return run["flops_per_token"] * run["tokens"]


def _scored(kept, hidden, low, high, level):
    """Return what the run gave, the score of the interval, and what a ruler says."""
    value = hidden["loss"]
    words = (
        f"The run gave {value:.3f}. Your score: {interval_score(low, high, value, level):.3f} (the lower, the better). "
    )
    try:
        guess = ruler([(r["parameters"], r["tokens"], r["loss"]) for r in kept], hidden["parameters"], hidden["tokens"])
    except ValueError as reason:
        return f"{words}{reason}"
    return f"{words}A ruler along your runs says {guess:.3f}, {guess - value:+.3f} from the run."


def _bought(kept, hidden, low, high, score):
    """Draw the bought runs over their tokens, the interval as two lines, and the run if it is to be shown."""
    curves = {}
    for run in kept:
        xs, ys = curves.setdefault(run["shape"], ([], []))
        xs.append(math.log10(run["tokens"]))
        ys.append(run["loss"])
    names = list(curves)
    place = math.log10(hidden["tokens"])
    return svg.line_chart(
        {name: curves[name] for name in names[-len(svg.COLORS) :]},
        pale={name: curves[name] for name in names[: -len(svg.COLORS)]},
        labels=("tokens", "loss"),
        dot=(place, hidden["loss"]) if score else None,
        levels=[(low, "from"), (high, "to")],
        x_range=(5, place + 0.1),
        x_ticks={power: svg.short(10.0**power) for power in (5, 5.5, 6, 6.5)},
        y_range=(1.0, 2.8),
    )
