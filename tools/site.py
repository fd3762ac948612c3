"""Build the page without a kernel: python tools/site.py [--data | --pages]

Writes what the course has recorded into site/public/data, as scripts that a page may load from a folder, and calls
npm, which writes the page into site/dist. With --data, no npm; with --pages, Sphinx makes pages of the notebooks, too,
in site/dist/notebooks (pip install -e ".[pages]").

Weights are stored in 8 bits, one scale for each row (gptcourse.quantisation); what that costs in loss is measured here
and shown on the page.
"""

import argparse
import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
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
NODE = (20, 19)  # the oldest Node.js that Vite runs on
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
    """Return what the first slider needs before the model has come: the logits (V) after a prompt, in 8 bits."""
    with torch.inference_mode():
        logits = quantised(model, BITS)(torch.tensor([tokenizer.encode(PROMPT)])).logits[0, -1]
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


def sizes() -> dict[str, int]:
    """Return the bytes of the page that was built, without notebooks, and of what its first slider needs."""
    files = {path: path.stat().st_size for path in (SITE / "dist").rglob("*") if path.is_file()}
    files = {path: size for path, size in files.items() if "notebooks" not in path.parts}
    first = (size for path, size in files.items() if path.parent.name != "data" or path.name == "first.js")
    return {"all": sum(files.values()), "first": sum(first)}


def node_is_new_enough() -> bool:
    """Say whether npm is there, with a Node.js that Vite runs on."""
    if shutil.which("npm") is None or (node := shutil.which("node")) is None:
        return False
    version = subprocess.run([node, "--version"], capture_output=True, text=True).stdout
    return tuple(map(int, re.findall(r"\d+", version)[:2])) >= NODE


def call(*command, cwd: Path = SITE, **environment: str) -> None:
    """Run a program in a folder; SystemExit with one sentence if it fails."""
    done = subprocess.run([shutil.which(command[0]), *command[1:]], cwd=cwd, env=os.environ | environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} has failed: what it says stands above.")


def without_pictures_from_elsewhere(notebook: str) -> str:
    """Return a notebook whose badges are plain links: a page asks nothing of another address."""
    return re.sub(r"!\[(Open in \w+)\]\(https://[^)]*\)", r"\1", notebook)


def write_pages(folder: Path) -> None:
    """Make pages of the notebooks, with the outputs that are committed."""
    with tempfile.TemporaryDirectory() as sources:
        shutil.copy(SITE / "pages" / "index.md", sources)
        for path in (SITE.parent / "notebooks").glob("*.ipynb"):
            text = without_pictures_from_elsewhere(path.read_text(encoding="utf-8"))
            (Path(sources) / path.name).write_text(text, encoding="utf-8")
        call(sys.executable, "-m", "sphinx", "-q", "-W", "-c", SITE / "pages", "-b", "html", sources, folder)
    shutil.rmtree(folder / ".doctrees")


def main() -> None:
    """Write the data; then let npm build the page, and Sphinx those of the notebooks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--data", action="store_true", help="write site/public/data alone")
    what.add_argument("--pages", action="store_true", help="make pages of the notebooks, too")
    options = parser.parse_args()
    write_data(SITE / "public" / "data")
    if options.data:
        return
    if not node_is_new_enough():
        raise SystemExit("Building the page needs npm and Node.js 20.19 or newer: install them, and run this again.")
    call("npm", "ci", "--no-audit", "--no-fund")
    call("npm", "run", "build", **({"NOTEBOOKS": "notebooks/NAME.html"} if options.pages else {}))
    if options.pages:
        write_pages(SITE / "dist" / "notebooks")


if __name__ == "__main__":
    main()
