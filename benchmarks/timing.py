"""What the benchmarks share: turns in which every job meets the same machine, and a line that says what was measured.

With one thread the clock counts the processor's time, which hardly changes when others use the machine as well; with
more it is the clock on the wall, as the processor's time would be the sum over the threads.
"""

import os
import platform
import statistics
import time

import torch


def setting():
    """Return one line: how many threads, what else the machine did, and the versions."""
    threads = torch.get_num_threads()
    how = "one thread" if os.environ.get("OMP_NUM_THREADS") == "1" else "as installed, no variable set"
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    versions = f"PyTorch {torch.__version__}, Python {platform.python_version()}"
    return f"== {how}: {threads} of torch's threads, {os.cpu_count()} cores, {load}; {versions}"


def measure(jobs, rounds):
    """Return the seconds of each job in each round, after one round that warms the caches."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds = {name: [] for name in jobs}
    for _ in range(rounds + 1):
        for name, job in jobs.items():
            start = clock()
            job()
            seconds[name].append(clock() - start)
    return {name: values[1:] for name, values in seconds.items()}


def ratio(above, below):
    """Return the median over the rounds of one job's seconds over another's."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def rate(work, seconds):
    """Return the median rate: so much work in the seconds of one job."""
    return work / statistics.median(seconds)
