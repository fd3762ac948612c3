"""Build the page without a kernel: python tools/site.py [--data]

Writes what the course has recorded into site/public/data, as scripts that a page may load from a folder, and calls
npm, which writes the page into site/dist. With --data, no npm.

Weights are stored in 8 bits, one scale for each row (gptcourse.quantisation); what that costs in loss is measured here
and shown on the page.
"""

import argparse
import base64
import json
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save

from gptcourse.corpora import shakespeare
from gptcourse.model import GPT
from gptcourse.pretrained import load_pretrained
from gptcourse.quantisation import quantise, quantised
from gptcourse.recordings import recorded, time_machine
from gptcourse.training import evaluate

SITE = Path(__file__).resolve().parents[1] / "site"
BITS = 8
PROMPT = "ROMEO:\nWhat is your name"
N_HELD_OUT = 20_000  # characters of the held-out plays, to measure what 8 bits cost


def packed(model: GPT) -> dict:
    """Return the config and the weights, base64 of a safetensors file whose matrices are int8 with a scale a row."""
    state = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    tensors = {}
    for name, weight in state.items():
        tensors[name] = weight.contiguous()
        if weight.dim() == 2:
            codes, scales = quantise(weight, BITS)
            tensors |= {name: codes.flatten(1), f"{name}.scale": scales.flatten()}
    return {"config": asdict(model.config), "weights": text(save(tensors))}


def text(data: bytes) -> str:
    """Return bytes as base64."""
    return base64.b64encode(data).decode("ascii")


def first(model: GPT, tokenizer) -> dict:
    """Return what the first slider needs before the model has come: the logits (T, V) after a prompt, in 8 bits."""
    with torch.inference_mode():
        logits = quantised(model, BITS)(torch.tensor([tokenizer.encode(PROMPT)])).logits[0]
    vocab, merges = tokenizer.vocabulary
    numbers = text(logits.numpy().astype("<f4").tobytes())
    return {"prompt": PROMPT, "tokenizer": {"vocab": vocab, "merges": merges}, "logits": numbers}


def losses(model: GPT, tokenizer) -> dict:
    """Return the loss on a piece of the held-out plays as the file says it, and in 8 bits, in nats per token."""
    tokens = torch.tensor(tokenizer.encode(shakespeare().validation[:N_HELD_OUT]))
    return {"as_stored": evaluate(model, tokens), "in_8_bits": evaluate(quantised(model, BITS), tokens)}


def run_through_time() -> dict:
    """Return the recorded run of the time machine: its checkpoints, and what was measured at each."""
    run = time_machine()
    checkpoints = [run.records[step] | {"model": packed(run.model(step))} for step in run.steps]
    return {"characters": "".join(run.tokenizer.characters), "checkpoints": checkpoints}


def tuning() -> dict:
    """Return the recorded runs of notebook 05: rates and batch sizes, their curves, and the n-gram lines."""
    return {name: recorded("tuning", name) for name in ("rates", "batches", "lines")}


def write_data(folder: Path) -> None:
    """Write every data file of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load_pretrained("shakespeare-5m")
    data = {
        "first": first(model, tokenizer),
        "shakespeare-5m": packed(model) | {"losses": losses(model, tokenizer)},
        "time-machine": run_through_time(),
        "tuning": tuning(),
    }
    for name, value in data.items():
        value = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
        (folder / f"{name}.js").write_text(f"gptcourseData({json.dumps(name)},{value});\n", encoding="ascii")


def main() -> None:
    """Write the data; then let npm build the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", action="store_true", help="write site/public/data alone")
    options = parser.parse_args()
    write_data(SITE / "public" / "data")
    if options.data:
        return
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit("npm is missing: install Node.js 20 or newer, and run this again.")
    for command in ("ci", ["run", "build"]):
        subprocess.run([npm, *([command] if isinstance(command, str) else command)], cwd=SITE, check=True)


if __name__ == "__main__":
    main()
