"""How fast models of one shape train: ours, nanoGPT's loop, transformers' GPT-2; and the products alone.

nanoGPT trains the model that its train.py builds: no biases, the exact GELU. "our arithmetic in nanoGPT's loop" has
what ours has: biases, GPT-2's GELU and a fused AdamW, which nanoGPT asks for on a GPU alone. transformers' model runs
in that loop, too, with the fused AdamW.

The matmul rate is what would be reached if a step were only the products of its matrices, forward and twice backward:
what is left to gain. Peak memory is what a process of its own has taken above what its libraries had, at most. No
dropout, float32, no compilation. Nobody evaluates during the run.
"""

import subprocess
import sys
import threading

import psutil
import torch
from torch import nn

from benchmarks.peers import NanoGPT, nano_loss, nanogpt, plain_loop, transformers_loss
from benchmarks.timing import in_turns, medians, rate, ratio
from gptcourse.model import GPT, GPTConfig
from gptcourse.training import TrainingConfig, train

STEPS, LEARNING_RATE, ROUNDS = 10, 1e-3, 9
OURS, NANO, SAME, THEIRS, MATMUL = (
    "gptcourse",
    "nano",
    "our arithmetic in nanoGPT's loop",
    "transformers",
    "matmul only",
)
SHAPES = {  # the model, and the sequences in a batch
    "0.8 M": (GPTConfig(65, n_positions=64, n_embd=128, n_layer=4, n_head=4), 12),  # nanoGPT's CPU recipe
    "5 M": (GPTConfig(2048, n_positions=256, n_embd=256, n_layer=6, n_head=4), 4),  # the bundled model
    "30 M": (GPTConfig(8192, n_positions=256, n_embd=512, n_layer=8, n_head=8), 4),
}


def products(shape, n_tokens, steps):
    """Return a job that does only the products of one step, again and again."""
    weights = [module.weight.detach() for module in GPT(shape).modules() if isinstance(module, nn.Linear)]
    inputs = {width: torch.randn(n_tokens, width) for weight in weights for width in weight.shape}

    @torch.no_grad()
    def job():
        for _ in range(steps):
            for weight in weights:  # (out, in)
                x, gradient = inputs[weight.shape[1]], inputs[weight.shape[0]]
                x @ weight.t(), gradient @ weight, gradient.t() @ x

    return job


def builders(shape, batch_size, nano_path, steps=STEPS):
    """Return functions that make, by name, a job that trains a model of this shape, or does the products alone."""
    torch.manual_seed(0)
    tokens = torch.randint(shape.vocab_size, (100_000,))
    config = TrainingConfig(steps, batch_size, LEARNING_RATE)

    def looped(loss_of, model, fused):
        return lambda: plain_loop(loss_of, model, tokens, shape.n_positions, config, fused)

    def ours():
        model = GPT(shape)
        return lambda: train(model, tokens, config, device="cpu", progress=False)

    return {
        OURS: ours,
        NANO: lambda: looped(nano_loss, nanogpt(nano_path, shape)[1], False),
        SAME: lambda: looped(nano_loss, NanoGPT(shape, bias=True, gelu="tanh"), True),
        THEIRS: lambda: looped(transformers_loss, GPT(shape).to_transformers().train(), True),
        MATMUL: lambda: products(shape, batch_size * shape.n_positions, steps),
    }


def peak_memory(build):
    """Return the MB that a job and what it builds have taken at most, above what the process had before."""
    process, ended = psutil.Process(), threading.Event()
    GPT(SHAPES["0.8 M"][0]).to_transformers()  # loads the libraries, for every row alike
    before, peak = process.memory_info().rss, 0

    def watch():
        nonlocal peak
        while not ended.wait(0.002):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        build()()
    finally:
        ended.set()
        watcher.join()
    return (max(peak, process.memory_info().rss) - before) / 1e6


def memory_of(size, name, nano_path):
    """Return `peak_memory` as a process of its own finds it."""
    command = [sys.executable, "-m", "benchmarks.training", size, name, nano_path or ""]
    return round(float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1]))


def measure_shape(size, shape, batch_size, options, steps=STEPS):
    """Return a row for each job of one size: tokens a second, shares of nanoGPT's rate and of the products', memory."""
    called = {NANO: nanogpt(options.nanogpt, shape)[0]}
    makers = builders(shape, batch_size, options.nanogpt, steps)
    seconds = in_turns({job: make() for job, make in makers.items()}, options.take(ROUNDS))
    rows = []
    for job, values in seconds.items():
        row = {"parameters": size, "trained by": called.get(job, job)}
        row["tokens/s"] = rate(steps * batch_size * shape.n_positions, values)
        row["times nanoGPT's"] = ratio(seconds[NANO], values)
        row["% of the matmul rate"] = ratio(seconds[MATMUL], values, 100)
        known = job != MATMUL and not options.quick
        rows.append(row | {"peak memory, MB": memory_of(size, job, options.nanogpt) if known else None})
    return rows


def measure(options):
    """Return how it was measured, and the table of all sizes."""
    sizes = list(SHAPES)[: 1 if options.quick else None]
    steps = 2 if options.quick else STEPS
    rows = [row for size in sizes for row in measure_shape(size, *SHAPES[size], options, steps)]
    return medians(options.take(ROUNDS), f"rounds of {steps} steps in turns"), {"": rows}


if __name__ == "__main__":
    size, job, path = sys.argv[1:]
    print(peak_memory(builders(*SHAPES[size], path or None)[job]))
