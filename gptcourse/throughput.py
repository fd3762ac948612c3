"""How fast a model trains at each batch size, and the largest batch that fits, found without losing the process.

A GPU says when its memory is out, and goes on. A CPU does not: the system kills the process, or the whole kernel of a
notebook. So there the next batch is predicted before it is tried. Of what a step takes, the weights, gradients and
moments stay the same and the activations grow with the batch: twice the batch takes at most twice the memory.
"""

from __future__ import annotations

import ctypes
import gc
import re
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch

from gptcourse.training import History, Trainer

USABLE = 0.8  # of the free memory: others use some, and memory is cut into pieces
TIMED = 3  # steps that are timed for each batch size, after one that is not
PAUSE = 0.001  # seconds between two looks at the memory


class Throughput(NamedTuple):
    """What one batch size has shown: sequences per second (median step), and the bytes that its steps added at most."""

    batch_size: int
    per_second: float
    memory: int


def available_memory(cgroup: str | Path = "/sys/fs/cgroup") -> int:
    """Return the bytes of memory that this process can still take: the machine's, or a container's if that is less."""
    import psutil  # ipykernel needs it, so it is there

    free = psutil.virtual_memory().available
    for limit, used, stat in [
        ("memory.max", "memory.current", "memory.stat"),  # control groups version 2, then 1
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ]:
        with suppress(OSError, ValueError):  # no such file, or "max": no limit
            limit, used, stat = ((Path(cgroup) / name).read_text() for name in (limit, used, stat))
            cached = re.search(r"^inactive_file (\d+)", stat, re.MULTILINE)  # files read: given back when needed
            free = min(free, int(limit) - int(used) + (int(cached[1]) if cached else 0))
    return max(free, 0)


def measure_throughput(new_trainer: Callable[[int], Trainer], batch_sizes: Iterable[int]) -> Iterator[Throughput]:
    """Make a few steps at each of the growing batch sizes, and give what they show, until one does not fit.

    `new_trainer(batch_size)` returns a Trainer of a copy of the model. Memory is that of the process, watched from
    another thread, or of an Nvidia GPU. Raises MemoryError if not even the first fits, and KeyboardInterrupt.
    """
    start, last = _trimmed_memory(), None
    for size in batch_sizes:
        last, before = _tried(new_trainer, size, start, last), last
        if last is None and before is None:
            raise MemoryError(f"A batch of {size} does not fit into memory: take a smaller model or shorter sequences.")
        if last is None:
            return
        yield last


def _tried(new_trainer, size: int, start: int, last: Throughput | None) -> Throughput | None:
    """Return what a batch size shows, or None if there is no memory for it."""
    torch.cuda.empty_cache()
    try:
        trainer = new_trainer(size)
        if last and trainer.device.type != "cuda" and not _is_safe(start, last, size):
            return None
        with _peak(trainer.device, start) as peak:
            seconds = _step_seconds(trainer)
        return Throughput(size, size / seconds, peak())
    except RuntimeError as error:
        if "out of memory" not in str(error) and "allocate memory" not in str(error):
            raise
        return None


def _is_safe(start: int, last: Throughput, size: int) -> bool:
    """Return whether the memory predicted for a batch size is there."""
    predicted = last.memory * size / last.batch_size
    held = _process_memory() - start  # what the process has not given back yet is used again
    return predicted - max(held, 0) <= USABLE * available_memory()


def _step_seconds(trainer: Trainer) -> float:
    """Return the median time of a few steps that change nothing, as their rate is 0."""
    if trainer.config.steps <= TIMED:
        raise ValueError(f"To time a batch takes {TIMED + 1} steps: give the Trainer a config with so many or more.")
    trainer.schedule, ends = (lambda step: 0.0), []

    def after_step(history: History) -> bool:
        ends.append(time.perf_counter())
        return len(ends) > TIMED

    if trainer.run(after_step, progress=False).stopped == "interrupted":
        raise KeyboardInterrupt
    return statistics.median(end - begin for begin, end in pairwise(ends))


def _process_memory() -> int:
    import psutil

    return psutil.Process().memory_info().rss


def _trimmed_memory() -> int:
    """Return the memory of the process after giving back what it holds for later, which would hide what steps take."""
    gc.collect()
    with suppress(AttributeError, OSError, TypeError):  # only the C library of Linux has it
        ctypes.CDLL(None).malloc_trim(0)
    return _process_memory()


@contextmanager
def _peak(device: torch.device, start: int) -> Iterator[Callable[[], int]]:
    """Give a function that returns the most bytes taken meanwhile: by the process above `start`, or on a GPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_allocated(device)
        return
    seen, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(PAUSE):
            seen[0] = max(seen[0], _process_memory() - start)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: seen[0]
    finally:
        ended.set()
        thread.join()
