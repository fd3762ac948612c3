"""Models as files, and GPT-2's weights under the names and in the layout of transformers.

`config.json` and `model.safetensors` of a GPT-2-shaped model are those that transformers' save_pretrained writes.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gptcourse.config import GPTConfig
from gptcourse.files import expand

# transformers stores these four matrices of each block as (in, out); torch's Linear as (out, in).
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
SHAPE = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
OTHER = ("layer_norm_epsilon", "initializer_range", "tie_word_embeddings")


def write_model(directory: Path, config: GPTConfig, state: dict[str, Tensor]) -> None:
    """Write config.json and model.safetensors, as transformers does where the model is GPT-2-shaped.

    One with muP is not: transformers would leave the factor of its logits out, and trained on it must keep its weights.
    """
    directory = expand(directory)
    directory.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    if config.tie_word_embeddings:
        del state["lm_head.weight"]  # the same matrix as wte.weight: stored once
    if config.is_gpt2_shaped:
        state = to_gpt2_names(state)
        settings = gpt2_config(config) | {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
    else:
        settings = asdict(config) | {"model_type": "gptcourse"}
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    text = json.dumps(settings | {"dtype": "float32"}, indent=2, sort_keys=True)
    (directory / "config.json").write_text(text + "\n", encoding="utf-8")


def read_model(directory: Path) -> tuple[GPTConfig, dict[str, Tensor]]:
    """Return what `write_model`, or transformers' save_pretrained of a GPT-2, has written; weights in float32.

    Raises ValueError, in one sentence, if a file is missing or damaged, or the model is of another kind.
    """
    directory = expand(directory)
    for name in ("config.json", "model.safetensors"):
        if not os.path.isfile(directory / name):  # pathlib raises for a name too long
            raise ValueError(f"{directory} holds no {name}: give a directory that GPT.save has written.")
    try:
        settings = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        kind = settings.get("model_type")
        state = {n: t.to(torch.float32, copy=True) for n, t in load_file(directory / "model.safetensors").items()}
    except (SafetensorError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{directory} holds a damaged model ({error}): save or download it again.") from error
    if kind not in ("gpt2", "gptcourse"):
        raise ValueError(f"{directory} holds a {kind!r} model: use load_pretrained for it.")
    if kind == "gpt2":
        config, state = config_from_gpt2(settings), from_gpt2_names(state)
    else:
        config = config_from(settings, [field.name for field in fields(GPTConfig)])
    table = state.get("wte.weight", torch.empty(0))  # without one, load_state_dict will name what is missing
    head = state.setdefault("lm_head.weight", table)
    # transformers keeps saying "tied" of a model whose LM head was replaced.
    tied = config.tie_word_embeddings and torch.equal(head, table)
    return replace(config, tie_word_embeddings=tied), state


def config_from(settings: dict, names) -> GPTConfig:
    """Return the GPTConfig with these fields of `settings`. Raises ValueError if one of the five sizes is missing."""
    if missing := [name for name in SHAPE if name not in settings]:
        raise ValueError(f"The model's config.json does not say {', '.join(missing)}: save or download it again.")
    return GPTConfig(**{name: settings[name] for name in names if name in settings})


def gpt2_config(config: GPTConfig) -> dict:
    """Return a GPTConfig's fields under the names of transformers' GPT2Config."""
    same = {name: getattr(config, name) for name in (*SHAPE, *OTHER, "activation_function")}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout)
    # No token of our tokenizers has GPT-2's default number for begin and end of text.
    return same | dropout | {"bos_token_id": None, "eos_token_id": None}


def config_from_gpt2(settings: dict) -> GPTConfig:
    """Return the GPTConfig of a transformers GPT2Config, given as a dict; ValueError for what GPT cannot do."""
    expected = {
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
        "activation_function": "gelu_new",
        "model_type": "gpt2",
    }
    for name, value in expected.items():
        if settings.get(name, value) != value:
            raise ValueError(f"This model has {name} = {settings[name]!r}; GPT can only take GPT-2's {value!r}.")
    config = config_from(settings, (*SHAPE, *OTHER))
    if settings.get("n_inner") not in (None, 4 * config.n_embd):
        raise ValueError(f"This model has n_inner = {settings['n_inner']}; GPT's MLP is 4 n_embd wide.")
    return replace(config, dropout=settings.get("resid_pdrop", 0.1))


def to_gpt2_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename and transpose our parameters into transformers' GPT-2 layout."""
    renamed = {}
    for name, tensor in state.items():
        tensor = tensor.t().contiguous() if name.endswith(TRANSPOSED) else tensor
        renamed[name if name.startswith("lm_head") else f"transformer.{name}"] = tensor
    return renamed


def from_gpt2_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename and transpose transformers' GPT-2 parameters into ours; leave out the masks that old files hold."""
    renamed = {}
    for name, tensor in state.items():
        if not name.endswith((".attn.bias", ".attn.masked_bias")):
            tensor = tensor.t().contiguous() if name.endswith(TRANSPOSED) else tensor
            renamed[name.removeprefix("transformer.")] = tensor
    return renamed
