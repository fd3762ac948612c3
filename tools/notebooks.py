"""Execute the notebooks in order, each in a fresh kernel, and clean what is committed.

    python tools/notebooks.py                              all of them
    python tools/notebooks.py notebooks/02_attention.ipynb one
    python tools/notebooks.py --check                      run nothing, say which is not as a fresh run leaves it

Cleaning makes a second run change nothing: no widget state and no widget views (GitHub shows an empty page for the
first, a JupyterLab without its kernel shows errors for the second), no progress bars, no timings, not the version of
the Python that ran.
"""

import argparse
import contextlib
import copy
import os
import re
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
import psutil
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from gptcourse.explorers.panel import EMPTY, STILL, WIDGET_VIEW

ROOT = Path(__file__).resolve().parents[1]
LARGEST = 1_000_000  # bytes; GitHub shows larger notebooks slowly or not at all
PREDICTS = re.compile(r"^predict\(", re.MULTILINE)
PROGRESS = re.compile(r"\d+%\||\d+it \[|\d(it|s|tok)/(s|it)")  # tqdm's lines
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "name": "python", "pygments_lexer": "ipython3"},
}


@dataclass(frozen=True)
class Measured:
    """What one run of a notebook took: seconds, and the peak memory of its processes in bytes."""

    seconds: float
    peak_memory: int


def all_notebooks(root=ROOT):
    """Return the paths of the course's notebooks in the order they are read."""
    return sorted((root / "notebooks").glob("*.ipynb"))


def tree_memory(process, others):
    """Return the memory of the descendants of `process` in bytes, without the process ids in `others`.

    Pages that several processes share, such as PyTorch's own, count once where the system tells (Linux: PSS), as they
    do for the limit of a container; elsewhere each process counts whole.
    """
    total = 0
    for child in (child for child in process.children(recursive=True) if child.pid not in others):
        with contextlib.suppress(psutil.Error):  # it may end while we look
            memory = child.memory_full_info()
            total += getattr(memory, "pss", memory.rss)
    return total


@contextlib.contextmanager
def watch_memory(interval=0.25):
    """Yield a list of one number: the highest memory of our child processes so far, in bytes.

    A look takes about 10 ms of a core, so at 20 looks a second the measuring itself would slow the notebook down.
    """
    peak, done = [0], threading.Event()
    others = {child.pid for child in psutil.Process().children(recursive=True)}  # ours already, for something else

    def watch():
        while not done.wait(interval):
            peak[0] = max(peak[0], tree_memory(psutil.Process(), others))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def execute(notebook, directory, timeout=300):
    """Run every cell of `notebook` in a fresh kernel in `directory` and keep the outputs in it. Return what it took.

    Raises nbclient's CellExecutionError at the first cell that fails. `timeout` is seconds for one cell.
    """
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(directory)}},
    )
    start = time.perf_counter()
    # Nobody's own progress in the exercises belongs into what is committed, nor what is run here into theirs. Who reads
    # without a kernel finds the answers to the predictions in folds.
    with watch_memory() as peak, tempfile.TemporaryDirectory() as progress:
        client.execute(env=os.environ | {"GPTCOURSE_PROGRESS": progress, "GPTCOURSE_REVEAL": "1"})
    return Measured(time.perf_counter() - start, peak[0])


def clean_output(output):
    """Return `output` as it is committed, or None where nothing of it is."""
    data = output.get("data", {})
    if WIDGET_VIEW in data or data.get("text/html") == EMPTY:  # of a panel its still picture is kept
        return None
    if output.get("name") == "stderr":
        lines = output.text.replace("\r", "\n").split("\n")
        output.text = "\n".join(line for line in lines if not PROGRESS.search(line)).strip("\n")
        return output if output.text.strip() else None
    return output


def shows_panel(output):
    """Say whether `output` is the still picture of a panel."""
    return STILL[1:] in "".join(output.get("data", {}).get("text/html", ""))


def clean(notebook):
    """Drop from `notebook`, in place, all that a second run would change. Return it."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        metadata = {"tags": tags} if tags else {}
        if cell.cell_type == "code" and PREDICTS.search(cell.source):
            metadata["jupyter"] = {"source_hidden": True}  # the source holds the answer
        if cell.cell_type == "code":
            cell.outputs = [kept for output in cell.outputs if (kept := clean_output(output))]
            if PREDICTS.search(cell.source) or any(map(shows_panel, cell.outputs)):
                metadata["deletable"] = False  # to JupyterLab "d d" on a focused slider means: delete the cell
        cell.metadata = nbformat.from_dict(metadata)
    return notebook


def problems(path):
    """Return what keeps the notebook at `path` from being as one fresh run leaves it: a list of sentences."""
    notebook = nbformat.read(path, as_version=4)
    found = []
    if clean(copy.deepcopy(notebook)) != notebook:
        found.append("holds widget state or views, progress bars, timings or other metadata")
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("was not saved from one fresh run in order")
    outputs = [output for cell in code for output in cell.outputs]
    if any(output.output_type == "error" for output in outputs):
        found.append("holds an error")
    if any(output.get("name") == "stderr" for output in outputs):
        found.append("holds a warning (text on stderr)")
    if path.stat().st_size > LARGEST:
        found.append(f"is larger than {LARGEST / 1e6:.0f} MB")
    return found


def run(path, timeout):
    """Execute and clean the notebook at `path` and write it back; a failing one is left as it was. Return success."""
    notebook = nbformat.read(path, as_version=4)
    try:
        measured = execute(notebook, path.parent, timeout)
    except CellExecutionError as error:
        print(f"{path.name}: FAILED, left as it was\n{error}", flush=True)
        return False
    path.write_text(nbformat.writes(clean(notebook)) + "\n", encoding="utf-8", newline="\n")
    print(f"{path.name}: {measured.seconds:.1f} s, peak memory {measured.peak_memory / 1e6:.0f} MB", flush=True)
    return True


def check(path):
    """Print what is wrong with the notebook at `path` as committed. Return whether nothing is."""
    found = problems(path)
    for problem in found:
        print(f"{path.name}: {problem}; run python tools/notebooks.py {path}")
    return not found


def main(arguments=None):
    """Run or check the notebooks named in `arguments`, all without names. Return 0 when all went well."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("paths", nargs="*", type=Path, help="notebooks (default: all)")
    parser.add_argument("--check", action="store_true", help="run nothing, change nothing, say what is not clean")
    parser.add_argument("--timeout", type=int, default=300, help="seconds for one cell (default: %(default)s)")
    options = parser.parse_args(arguments)
    paths = options.paths or all_notebooks()
    results = [check(path) if options.check else run(path, options.timeout) for path in paths]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
