"""What the benchmarks share: turns in which every job meets the same machine, medians, and how far the rounds spread.

With one thread the clock counts the processor's time, which hardly changes when others use the machine as well; with
more it is the clock on the wall, as the processor's time would be the sum over the threads.
"""

import os
import statistics
import time
from dataclasses import dataclass

import torch
from tqdm import tqdm

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
KERNELS = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")  # set on some machines; a learner has none


@dataclass(frozen=True)
class Options:
    """What was asked for: `rounds` (None: what the part finds enough), a clone of nanoGPT, or everything tiny."""

    rounds: int | None = None
    nanogpt: str | None = None
    quick: bool = False

    def take(self, rounds):
        """Return how many rounds to make where `rounds` are enough."""
        return 1 if self.quick else self.rounds or rounds


def as_installed():
    """Return this process's variables without those that choose threads and kernels."""
    return {name: value for name, value in os.environ.items() if name not in THREADS + KERNELS}


def in_turns(jobs, rounds, clock=None):
    """Return the seconds of each job in each round, after one round that warms the caches."""
    clock = clock or (time.process_time if torch.get_num_threads() == 1 else time.perf_counter)
    seconds = {name: [] for name in jobs}
    with tqdm(total=(rounds + 1) * len(jobs), leave=False) as bar:
        for _ in range(rounds + 1):
            for name, job in jobs.items():
                bar.set_description(name if isinstance(name, str) else ", ".join(map(str, name)))
                start = clock()
                job()
                seconds[name].append(clock() - start)
                bar.update()
    return {name: values[1:] for name, values in seconds.items()}


def medians(n, what="rounds in turns"):
    """Return the sentence that says what a table's numbers are."""
    return f"Medians of {n} {what}, in brackets the lowest and the highest."


def spread(values):
    """Return the median of the values, the lowest and the highest, with four digits."""
    three = {"median": statistics.median(values), "low": min(values), "high": max(values)}
    return {name: float(f"{value:.4g}") for name, value in three.items()}


def rate(work, seconds):
    """Return the rates of the rounds: so much work in the seconds of one job."""
    return spread([work / one for one in seconds])


def ratio(above, below, times=1):
    """Return one job's seconds over another's, round by round; `times=100` for per cent."""
    return spread([times * a / b for a, b in zip(above, below, strict=True)])
