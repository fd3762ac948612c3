"""Models as files, and GPT-2's weights under the names and in the layout of transformers.

`config.json` and `model.safetensors` of a GPT-2-shaped model are those that transformers' save_pretrained writes, and
the latter's metadata hold the SHA-256 of the weights: in what comes without one, a changed number cannot be seen.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from gptcourse.config import GPTConfig
from gptcourse.files import expand, read_json, write_files

# transformers stores these four matrices of each block as (in, out); torch's Linear as (out, in).
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
SHAPE = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
OTHER = ("layer_norm_epsilon", "initializer_range", "tie_word_embeddings")
UNREAD = {"model_type", "dtype"}  # of a config.json of ours


class DamagedWeightsError(ValueError):
    """Raised for a safetensors file that is not as it was written."""


def raw(tensor: Tensor) -> np.ndarray:
    """Return the bytes of a tensor's numbers, uint8 (n,)."""
    return tensor.detach().cpu().flatten().contiguous().view(torch.uint8).numpy()


def sha256_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors: of their names, types and numbers."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} ".encode())
        found.update(raw(tensor))
    return found.hexdigest()


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file with the SHA-256 of its tensors; the same tensors give the same bytes. OSError."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        save_file(tensors, path, metadata={"format": "pt", "sha256": sha256_of(tensors)})
    except SafetensorError as error:
        raise OSError(str(error)) from error
    with path.open("r+b") as file:  # the library writes metadata in an order that chance decides
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        file.seek(8)
        file.write(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file, of whomever. Raises DamagedWeightsError, also for one that its SHA-256 does not fit."""
    try:
        tensors = load_file(path)
        with safe_open(path, framework="pt") as file:
            written = (file.metadata() or {}).get("sha256")
        if written is not None and written != sha256_of(tensors):
            raise ValueError("its weights were altered")
    except (OSError, ValueError, SafetensorError) as error:
        raise DamagedWeightsError(f"{path} is damaged ({error}): save or download it again.") from error
    return tensors


def write_model(
    directory: Path,
    config: GPTConfig,
    state: dict[str, Tensor],
    more: Callable[[Path], None] | None = None,
    instead_of: Iterable[str] = (),
) -> None:
    """Write config.json and model.safetensors, as transformers does where the model is GPT-2-shaped.

    `more(folder)` may write other files, `instead_of` those of some names: all are there in the end, or none. A model
    with muP is not GPT-2-shaped: transformers would leave the factor of its logits out, and trained on it must keep its
    weights. Raises ValueError.
    """
    if config.tie_word_embeddings:  # the same matrix as wte.weight: stored once
        state = {name: tensor for name, tensor in state.items() if name != "lm_head.weight"}
    if config.is_gpt2_shaped:
        state = to_gpt2_names(state)
        settings = gpt2_config(config) | {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
    else:
        settings = asdict(config) | {"model_type": "gptcourse"}
    text = json.dumps(settings | {"dtype": "float32"}, indent=2, sort_keys=True)

    def write(folder: Path) -> None:
        save_tensors(state, folder / "model.safetensors")
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")
        if more is not None:
            more(folder)

    write_files(expand(directory), write, instead_of)


def read_model(directory: Path) -> tuple[GPTConfig, dict[str, Tensor]]:
    """Return what `write_model`, or transformers' save_pretrained of a GPT-2, has written; weights in float32.

    Raises ValueError, in one sentence, if a file is missing or damaged, or the model is of another kind.
    """
    directory = expand(directory)
    for name in ("config.json", "model.safetensors"):
        if not os.path.isfile(directory / name):  # pathlib raises for a name too long
            raise ValueError(f"{directory} holds no {name}: give a directory that GPT.save has written.")
    settings = read_json(directory / "config.json")
    kind = settings.get("model_type") if isinstance(settings, dict) else None
    if kind not in ("gpt2", "gptcourse"):
        raise ValueError(f"{directory} holds a {kind!r} model: use load_pretrained for it.")
    state = load_tensors(directory / "model.safetensors")
    with naming(directory):
        config = config_from_gpt2(settings) if kind == "gpt2" else _config_of_ours(settings)
        state = from_gpt2_names(state) if kind == "gpt2" else state
        _check_shapes(config, state)
        if "lm_head.weight" not in state and not config.tie_word_embeddings:
            raise ValueError("its weights lack those of the LM head, which is not tied to the embeddings.")
    state = {name: tensor.to(torch.float32, copy=True) for name, tensor in state.items()}
    head = state.setdefault("lm_head.weight", state["wte.weight"])
    # transformers keeps saying "tied" of a model whose LM head was replaced.
    tied = config.tie_word_embeddings and torch.equal(head, state["wte.weight"])
    return replace(config, tie_word_embeddings=tied), state


@contextmanager
def naming(directory: Path) -> Iterator[None]:
    """Name the directory in what a ValueError says of the model in it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"The model in {directory} does not open: {error}") from error


def _config_of_ours(settings: dict) -> GPTConfig:
    names = [field.name for field in fields(GPTConfig)]
    if unknown := settings.keys() - {*names} - UNREAD:  # of a newer version, or damaged: its default would be wrong
        raise ValueError(f"Its config.json has a setting {min(unknown)!r}, which this version does not know.")
    return config_from(settings, names)


def _check_shapes(config: GPTConfig, state: dict[str, Tensor]) -> None:
    """Raise ValueError before a model is built with sizes that are not those of the weights, and might be enormous."""
    sizes = {"wte.weight": (config.vocab_size, config.n_embd), "wpe.weight": (config.n_positions, config.n_embd)}
    for name in sizes if config.position_embedding == "learned" else ["wte.weight"]:
        found = tuple(state[name].shape) if name in state else "nothing"
        if found != sizes[name]:
            raise ValueError(f"Its config.json says {sizes[name]} of {name}, and its weights say {found}.")
    if (n_layer := len({name.split(".")[1] for name in state if name.startswith("h.")})) != config.n_layer:
        raise ValueError(f"Its config.json says n_layer {config.n_layer}, and its weights have {n_layer} layers.")
    if integers := [name for name, tensor in state.items() if not tensor.is_floating_point()]:
        raise ValueError(f"Its weights {min(integers)} are {state[min(integers)].dtype}, and must be floating.")


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
    return {name if name.startswith("lm_head") else f"transformer.{name}": t for name, t in _turned(state).items()}


def from_gpt2_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename and transpose transformers' GPT-2 parameters into ours; leave out the masks that old files hold."""
    masks = ".attn.bias", ".attn.masked_bias"
    return {name.removeprefix("transformer."): t for name, t in _turned(state).items() if not name.endswith(masks)}


def _turned(state):
    """Return the tensors with all that one of the two stores as (in, out) transposed."""
    return {name: t.t().contiguous() if name.endswith(TRANSPOSED) else t for name, t in state.items()}
