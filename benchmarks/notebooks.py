"""What *Run All* costs: seconds and peak memory of each notebook, on two cores and on one. Linux only.

The notebooks on disk stay as they are. Downloads are not counted: run the notebooks once before.
"""

import os

import nbformat
from tqdm import tqdm

from tools import notebooks

CORES = {"two cores": 2, "one core": 1}
HOW = "One run each; GB are the kernel's peak memory. 08 and 12 open the real model."


def run(path, cores):
    """Return what one run of the notebook at `path` takes on `cores` cores, as after `taskset -c 0` for one."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:cores])  # the kernel inherits it, and with it its number of threads
    try:
        return notebooks.execute(nbformat.read(path, as_version=4), path.parent)
    finally:
        os.sched_setaffinity(0, allowed)


def measure(options, paths=None):
    """Return how it was measured, and a row for each notebook."""
    if len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("This measures on two cores, and only one may be used here.")
    rows = []
    paths = paths or notebooks.all_notebooks()[: 1 if options.quick else None]
    for path in tqdm(paths, desc="notebooks", leave=False):
        row = {"notebook": path.stem}
        for name, cores in CORES.items():
            measured = run(path, cores)
            row |= {f"{name}, s": round(measured.seconds), f"{name}, GB": round(measured.peak_memory / 1e9, 2)}
        rows.append(row)
    return HOW, {"": rows}
