"""What a model of a config keeps in memory, its weights beside its cache; and which experts a router sends tokens to.

Sources: Ainslie et al. (2023), arXiv:2305.13245 (grouped queries); Fedus et al. (2022), Switch Transformers, section
2.2; DeepSeek-AI (2024), DeepSeek-V3, section 2.1.2 (a bias that balances the load).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial

import torch
from torch import Tensor

from gptcourse.drawings import svg
from gptcourse.explorers.explorer import Explorer, buttons, choice, slider, wide
from gptcourse.modern import ModernConfig, num_parameters

BYTES = partial(svg.short, names=(" kB", " MB", " GB", " TB", " PB"))
FIELDS = {
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "key heads": "num_key_value_heads",
    "head size": "head_dim",
}
OPTIONS = {
    "layers": [1, 2, 4, 8, 12, 16, 24, 28, 32, 36, 48, 64, 80, 96],
    "heads": [1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128],
    "key heads": [1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128],
    "head size": [32, 64, 80, 96, 128, 256],
}
TOKENS = [2**n for n in range(9, 18)]  # 512 … 131,072
BATCHES = [1, 2, 4, 8, 16, 32, 64, 128, 256]
STORAGE = [("16 bits", 2.0), ("8 bits", 1.0), ("4 bits", 0.5)]
MACHINES = {"16 GB": 16e9, "80 GB": 80e9}
STEP = 0.05  # of a bias, in units of the scores


def memory_explorer(configs: Mapping[str, ModernConfig]):
    """Return a row of models and sliders for their shape, with the memory of the weights and of the cache.

    Choosing a model sets the sliders to its config. Width, MLP, vocabulary, experts and sliding window stay those of
    the model that was chosen. Raises ValueError without a model.
    """
    if not configs:
        raise ValueError("memory_explorer needs the config of one model at least.")
    first = next(iter(configs.values()))
    controls = {name: choice(name, options, getattr(first, FIELDS[name])) for name, options in OPTIONS.items()}
    controls |= {"tokens": choice("tokens", TOKENS, 8192), "texts": choice("texts at once", BATCHES, 8)}
    controls |= {"weights": choice("weights in", STORAGE, 2.0), "cached": choice("cache in", STORAGE, 2.0)}
    models = wide(buttons("model", list(configs)))
    return MemoryExplorer({"model": models, **controls}, partial(_memory, configs), configs)


class MemoryExplorer(Explorer):
    """The widget that ``memory_explorer`` returns."""

    def __init__(self, controls, picture, configs):
        self.configs = configs
        super().__init__(controls, picture)

    def moved(self, control):
        """Let the choice of a model move the sliders."""
        if control is self.controls["model"]:
            config = self.configs[control.value]
            shape = {name: getattr(config, field) for name, field in FIELDS.items()}
            self.moving = True
            for name, value in shape.items():  # a model may have what no option has
                self.controls[name].options = sorted({*OPTIONS[name], value})
            self.move(**shape)
        else:
            self.draw()


def _memory(configs, model, tokens, texts, weights, cached, **shape):
    try:
        config = replace(configs[model], **{FIELDS[name]: value for name, value in shape.items()})
    except ValueError as reason:
        raise ValueError(f"This model cannot be built. {reason}") from None
    parts = parameters_by_part(configs[model], config)
    stored, kept = sum(parts.values()) * weights, texts * config.cache_bytes(tokens, 1) * cached
    per_token = config.cache_bytes(1, 1) * cached
    numbers = (
        f"{svg.short(sum(parts.values()))} parameters, {BYTES(stored)} of weights  ·  cache: {BYTES(per_token)} a "
        f"token, {BYTES(kept)} for {texts} × {tokens:,} tokens  ·  {BYTES(stored + kept)} together"
    )
    scale = (svg.WIDTH - 48) / max(stored + kept, 1.1 * MACHINES["16 GB"])
    amounts = {name: part * weights for name, part in parts.items()} | {"cache": kept}
    drawn = svg.divided_bar({f"{name} {BYTES(size)}": size for name, size in amounts.items()}, 34, scale, 26)
    for label, size in MACHINES.items():
        if (x := 24 + size * scale) < svg.WIDTH:
            drawn.append(svg.line(x, 26, x, 64, opacity=1, width=2, dashed=True))
            drawn.append(svg.text(x, 21, label, anchor="middle", size=12, bold=True))
    return svg.paragraph(numbers) + svg.picture(drawn, 92, numbers)


def parameters_by_part(model: ModernConfig, config: ModernConfig) -> dict[str, int]:
    """Return the parameters of `config`, a `model` of other heads and layers: counted without building it."""
    outside, block = _parts(model)
    n_layers, attention = config.num_hidden_layers, _attention(config)
    return {"tables": outside, "attention": n_layers * attention, "MLPs": n_layers * (block - _attention(model))}


@cache
def _parts(config):
    """Return the parameters outside the blocks and those of one block."""
    one, two = (num_parameters(replace(config, num_hidden_layers=n)) for n in (1, 2))
    return 2 * one - two, two - one


def _attention(config):
    matrices = 2 * config.hidden_size * (config.num_attention_heads + config.num_key_value_heads)
    return config.head_dim * (matrices + 2 * config.qk_norm)


def routed(scores: Tensor, k: int, bias: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
    """Return each token's weights of all experts, (T, E), and each expert's share of the choices, (E,).

    The k experts with the highest score plus bias are chosen, and weighted by softmax over their scores alone.
    """
    chosen = (scores + bias).topk(k).indices
    mask = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, chosen, True)
    return scores.masked_fill(~mask, -torch.inf).softmax(-1), mask.float().mean(0) / k


def balancing_bias(scores: Tensor, k: int, steps: int) -> Tensor:
    """Return a bias for each expert, after steps that lower it where too many tokens go and raise it elsewhere."""
    bias = torch.zeros(scores.shape[-1])
    for _ in range(steps):
        bias -= STEP * (routed(scores, k, bias)[1] - 1 / len(bias)).sign()
    return bias


def router_explorer(tokens: Sequence[str], scores: Tensor):
    """Return sliders for a router: how many experts a token gets, noise, temperature, and a bias that balances.

    `tokens` are the texts of T tokens and `scores` (T, E) what a router gives them. The noise is drawn once, so that
    what moves is the slider's doing. Raises ValueError if the two do not fit.
    """
    if len(tokens) != len(scores):
        raise ValueError(f"There are {len(tokens)} tokens and scores for {len(scores)}.")
    noise = torch.randn(scores.shape, generator=torch.Generator().manual_seed(0))
    controls = {
        "k": slider("experts a token", min(2, scores.shape[1]), 1, scores.shape[1]),
        "temperature": slider("temperature", 1.0, 0.1, 4.0, 0.1),
        "noise_size": slider("noise", 0.0, 0.0, 3.0, 0.1),
        "steps": slider("steps of the bias", 0, 0, 100, 5),
    }
    return Explorer(controls, partial(_router, [svg.visible(token) for token in tokens], scores, noise))


def _router(tokens, scores, noise, k, temperature, noise_size, steps):
    scores = scores / temperature + noise_size * noise
    weights, share = routed(scores, k, balancing_bias(scores, k, steps))
    even = routed(scores, k)[1]
    n, balance = scores.shape[1], (scores.shape[1] * share @ scores.softmax(-1).mean(0)).item()
    numbers = (
        f"the busiest of {n} experts has {share.max():.0%} of all choices, {int((share == 0).sum())} have none; even "
        f"would be {1 / n:.1%}  ·  load-balancing loss {balance:.3f}"
    )
    names = [f"expert {e + 1}" for e in range(n)]
    title = "the weight of each expert, for each token"
    where = svg.heat_map(weights.T.tolist(), names, tokens, title=title, description=numbers)
    rows = list(zip(names, even.tolist(), share.tolist(), strict=True))
    bars = svg.bars(rows, headings=("without bias", "now"), left=80, description="Share of the choices of each expert")
    return svg.paragraph(numbers) + where + svg.paragraph("Each expert's share of all choices:") + bars
