"""How the cost of training grows with context, width, batch and processes: a step of ours, one change at a time.

The model they start from is that of nanoGPT's CPU recipe, with batches of 8. Several processes, started by torchrun,
share one step's 8 micro-batches; on one machine they share its cores, too, so what they save is what threads leave.
"""

import os
import subprocess
import sys
import time

import torch

from benchmarks.timing import as_installed, in_turns, medians, rate, spread
from gptcourse.model import GPT, GPTConfig
from gptcourse.training import TrainingConfig, train

STEPS, ROUNDS, LAUNCHES, MICRO_BATCHES = 5, 7, 3, 8
BASE = {"context": 64, "width": 128, "batch": 8}
VALUES = {"context": (32, 64, 128, 256, 512), "width": (64, 128, 256, 512), "batch": (1, 4, 8, 16, 64)}


def job(context, width, batch, steps=STEPS, **settings):
    """Return a job that trains a model of 4 layers."""
    model = GPT(GPTConfig(65, n_positions=context, n_embd=width, n_layer=4, n_head=4))
    tokens, config = torch.arange(10_000) % 65, TrainingConfig(steps, batch, 1e-3, **settings)
    return lambda: train(model, tokens, config, device="cpu", progress=False)


def one_change(values, rounds, steps=STEPS):
    """Return a row for each value: milliseconds a step, and tokens a second."""
    changes = [(name, value) for name, all_of_one in values.items() for value in all_of_one]
    seconds = in_turns({change: job(**BASE | dict([change]), steps=steps) for change in changes}, rounds)
    rows = []
    for name, value in changes:
        size, values = BASE | {name: value}, seconds[name, value]
        row = {"changed": name, "to": value, "ms a step": spread([1000 * one / steps for one in values])}
        rows.append(row | {"tokens/s": rate(steps * size["batch"] * size["context"], values)})
    return rows


def launched(n, steps):
    """Return the seconds of a run that n processes made together, as the first of them says."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(n), "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "localhost:0", "-m", "benchmarks.growth", str(steps)]
    done = subprocess.run(command, env=as_installed(), check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.split()[-1])


def processes(numbers, rounds, steps=STEPS):
    """Return a row for each number of processes."""
    launches = [[launched(n, steps) for n in numbers] for _ in range(rounds)]
    tokens = steps * MICRO_BATCHES * BASE["batch"] * BASE["context"]
    return [
        {"processes": n, "ms a step": spread([1000 * one / steps for one in values]), "tokens/s": rate(tokens, values)}
        for n, values in zip(numbers, zip(*launches, strict=True), strict=True)
    ]


def measure(options):
    """Return how it was measured, and the tables."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    values = {name: some[:1] for name, some in VALUES.items()} if options.quick else VALUES
    numbers = [n for n in (1, 2, 4, 8) if n <= max(cores, 2)]
    tables = {
        "": one_change(values, options.take(ROUNDS), 1 if options.quick else STEPS),
        "Processes that share a step": processes(numbers, options.take(LAUNCHES), 1 if options.quick else 4 * STEPS),
    }
    how = medians(options.take(ROUNDS), f"rounds in turns ({options.take(LAUNCHES)} launches of processes)")
    return f"4 layers; if not said otherwise context 64, width 128, batch 8. {how}", tables


if __name__ == "__main__":  # one of several processes
    run = job(**BASE, steps=int(sys.argv[1]), gradient_accumulation_steps=MICRO_BATCHES)
    run()
    start = time.perf_counter()
    run()
    if os.environ["RANK"] == "0":
        print(time.perf_counter() - start)
