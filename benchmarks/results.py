"""What was measured, as JSON in benchmarks/results, and README's tables, which are written from nothing else.

A part gives tables, a dict from title to records. A record is one row, a dict from column to a text, a number, None
(could not be measured) or `timing.spread`. Each way in which a part has run keeps the tables of its newest run.
"""

import json
import os
import platform
import re
from datetime import date
from importlib.metadata import version
from pathlib import Path

import psutil
import torch

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "benchmarks" / "results"
QUIET = 0.1  # what others may take of the processors without a word
DIGITS = {"loss": 4}  # of columns, where three do not tell runs apart
MARKERS = re.compile(r"(<!-- measured by python -m benchmarks (\w+) -->\n).*?(<!-- end of measured -->)", re.DOTALL)

# What README says above the tables of a part; those of the notebooks stand below the list of them.
TITLES = {
    "notebooks": "",
    "training": """### Training

Tokens a second, next to nanoGPT's model in its loop and to transformers' GPT-2 in the same loop. The matmul rate is
what would be reached if a step were its matrix products and nothing else.""",
    "loss": """### Down to the loss of counting

Training on the plays until the held-out loss is that of the best table that only counts: nanoGPT's well-known recipe
for a CPU, made as long as that takes, and the last row of notebook 10's speedrun.""",
    "generation": """### Writing

Tokens a second of the bundled model, in float32, next to transformers' `generate` and nanoGPT's on the same weights.
transformers' GPT-2 stops at its window of 256 tokens (a dash).""",
    "growth": """### What grows with what

One change at a time.""",
    "startup": """### Starting

Seconds of a whole process.""",
    "sliders": """### Sliders

From a key press, or from the moves of a mouse that drags, to the new picture on the screen. The first row is a slider
that changes one word: what JupyterLab, the browser and this machine take by themselves.""",
    "site": """### The page in a browser""",
}


def processor():
    """Return the processor's name, as Linux gives it or as Python does."""
    path = Path("/proc/cpuinfo")
    match = re.search(r"model name\s*: (.+)", path.read_text(encoding="utf-8")) if path.exists() else None
    return match[1] if match else platform.processor() or platform.machine()


def machine():
    """Return what the numbers depend on besides the code."""
    return {
        "date": date.today().isoformat(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "others": round(psutil.cpu_percent(interval=1) / 100, 2),  # share of all processors that is in use already
        "versions": {
            "Python": platform.python_version(),
            "PyTorch": torch.__version__,
            "transformers": version("transformers"),
        },
    }


def keep(part, way, run, folder=FOLDER):
    """Store one run of a part beside those of its other ways."""
    path = Path(folder) / f"{part}.json"
    path.parent.mkdir(exist_ok=True)
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    text = json.dumps(kept | {way: run}, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8", newline="\n")


def number(value, digits=3):
    """Return a number with so many digits, two if it is below 1, and never fewer than those before the point."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}" if abs(value) >= 1 or value == 0 else f"{value:.2g}"


def cell(value, digits=3):
    """Return a value of a record as a table shows it: a median, and where rounds differ the lowest and the highest."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        return number(value, digits)
    median, low, high = (number(value[name], digits) for name in ("median", "low", "high"))
    return median if low == high else f"{median} ({low}–{high})"


def table(records):
    """Return records as a Markdown table whose columns stand in line in a terminal, too."""
    names = list(dict.fromkeys(name for record in records for name in record))
    rows = [names, *([cell(record.get(name), DIGITS.get(name, 3)) for name in names] for record in records)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [[text.ljust(width) for text, width in zip(row, widths, strict=True)] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in padded]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def line(part, way, run):
    """Return the sentences under the tables of a run: how it was measured, on what, when, by which command."""
    versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
    where = f"{run['processor']}, {run['cores']} cores, {versions}, {run['date']}"
    if run.get("others", 0) > QUIET:
        where += f", while other processes took {run['others']:.0%} of the processors"
    return f"{run['how']} Measured {way} on {where}: `python -m benchmarks {part}`."


def content(part, runs):
    """Return the Markdown for a part: what it is about, the tables of its first way, and those of others to unfold."""
    blocks = [TITLES[part]] if TITLES[part] else []
    for place, (way, run) in enumerate(runs.items()):
        titled = [f"{title}\n\n{table(rows)}".lstrip() for title, rows in run["tables"].items()]
        text = "\n\n".join([*titled, line(part, way, run)])
        blocks.append(f"<details><summary>{way.capitalize()}</summary>\n\n{text}\n\n</details>" if place else text)
    return "\n\n".join(blocks)


def written(text, folder=FOLDER):
    """Return README's text with what the JSON files give between its markers; a part without a file has nothing."""

    def between(match):
        path = Path(folder) / f"{match[2]}.json"
        inner = content(match[2], json.loads(path.read_text(encoding="utf-8"))) + "\n\n" if path.exists() else ""
        return f"{match[1]}\n{inner}{match[3]}"

    return MARKERS.sub(between, text)


def write_readme(path=ROOT / "README.md", folder=FOLDER):
    """Write README's tables anew."""
    path.write_text(written(path.read_text(encoding="utf-8"), folder), encoding="utf-8", newline="\n")
