"""Measure what *Run All* costs: seconds and peak memory of each notebook, on two cores and on one. Linux only.

    python -m benchmarks notebooks            print the table and write it into README.md
    python -m benchmarks notebooks --print    print it only

The notebooks on disk stay as they are. Downloads are not counted: run the notebooks once before.
"""

import argparse
import os
import platform
import re
import sys
from pathlib import Path

import nbformat
import torch

from tools import notebooks

ROOT = Path(__file__).resolve().parents[1]
CORES = (2, 1)
MARKERS = ("<!-- measured by benchmarks/notebooks.py -->", "<!-- end of measured -->")


def processor():
    """Return the processor's name as Linux gives it."""
    match = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return match[1] if match else platform.machine()


def measure(path, cores):
    """Return what one run of the notebook at `path` takes on `cores` cores, as after `taskset -c 0` for one."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:cores])  # the kernel inherits it, and with it its number of threads
    try:
        return notebooks.execute(nbformat.read(path, as_version=4), path.parent)
    finally:
        os.sched_setaffinity(0, allowed)


def table(rows):
    """Return the measurements as Markdown; `rows` maps a notebook's name to one Measured for each of CORES."""
    lines = ["| | two cores | one core |", "|---|---|---|"]
    for name, measured in rows.items():
        cells = (f"{m.seconds:.0f} s, {m.peak_memory / 1e9:.2f} GB" for m in measured)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    versions = f"Python {platform.python_version()}, PyTorch {torch.__version__}"
    lines += ["", f"Measured by `python -m benchmarks notebooks` on {processor()}, {versions}."]
    return "\n".join(lines)


def replace_between_markers(text, content):
    """Return `text` with `content` between the two MARKERS."""
    before, rest = text.split(MARKERS[0])
    after = rest.split(MARKERS[1])[1]
    return f"{before}{MARKERS[0]}\n\n{content}\n\n{MARKERS[1]}{after}"


def main():
    """Measure every notebook and show the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--print", action="store_true", help="leave README.md as it is")
    only_print = parser.parse_args().print
    if len(os.sched_getaffinity(0)) < max(CORES):
        sys.exit(f"This measures on {max(CORES)} cores, and only {len(os.sched_getaffinity(0))} may be used here.")
    content = table({p.stem: [measure(p, cores) for cores in CORES] for p in notebooks.all_notebooks()})
    print(content)
    if not only_print:
        readme = ROOT / "README.md"
        text = replace_between_markers(readme.read_text(encoding="utf-8"), content)
        readme.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
