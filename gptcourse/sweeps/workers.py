"""Processes that train one run after another, one thread each; a process that dies costs the run it was in, no more.

A worker is a Python process that calls `main`. It talks with its parent in lines of JSON, over stdin and stdout, and
reads the token ids from a file. So nothing is pickled, a script needs no `if __name__ == "__main__"`, and Windows works
like Linux. A worker lives for many runs, because importing torch takes longer than many a small run. When its parent
is gone, even killed, its stdin ends and it exits at once: no orphans. (`ProcessPoolExecutor` gives up all its runs when
the system kills one process, as it does when memory runs out; `multiprocessing.Pool` waits for that run for ever.)
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from gptcourse.files import fsync as _flush
from gptcourse.model import GPT, GPTConfig
from gptcourse.training import DivergedError, History, TrainingConfig, train

COMMAND = "import sys; from gptcourse.sweeps.workers import main; main(*sys.argv[1:])"
CURVE_POINTS = 100  # of a run's training losses that many are kept, evenly spaced


def available_cores(cgroup: str | Path = "/sys/fs/cgroup") -> int:
    """Return how many cores this process may use: those it is bound to, or fewer where a container's quota says so.

    binder/start counts the same way, in shell, before any Python runs.
    """
    bound = getattr(os, "sched_getaffinity", None)  # only Linux has it
    cores = len(bound(0)) if bound else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no such file: no container. "max period": no limit
        quota, period = map(int, (Path(cgroup) / "cpu.max").read_text().split())
        return min(cores, math.ceil(quota / period))
    with contextlib.suppress(OSError, ValueError):  # control groups of version 1; -1 is no limit
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        quota, period = (int((Path(cgroup) / "cpu" / name).read_text()) for name in names)
        return min(cores, math.ceil(quota / period)) if quota > 0 else cores
    return cores


# ---- The parent's side


class Workers:
    """Up to `processes` workers (None: one for each available core) for runs on the same tokens; use it in a `with`.

    They start when there is work for them, and none of them outlives the `with`. Raises ValueError.
    """

    def __init__(self, tokens, validation_tokens, processes: int | None = None, device: str = "cpu"):
        processes = available_cores() if processes is None else processes
        if not isinstance(processes, int) or processes < 1:
            raise ValueError(f"processes is {processes!r}, but it must be a whole number of 1 or more, or None.")
        self.folder = tempfile.TemporaryDirectory(prefix="gptcourse-", ignore_cleanup_errors=True)
        for name, ids in (("tokens", tokens), ("validation_tokens", validation_tokens)):
            np.save(Path(self.folder.name) / f"{name}.npy", ids)
        self.all = [_Worker(Path(self.folder.name), device) for _ in range(processes)]
        self.idle: queue.LifoQueue[_Worker] = queue.LifoQueue()  # the last used first: those not needed never start
        for worker in self.all:
            self.idle.put(worker)
        self.threads = ThreadPoolExecutor(processes)  # each thread only waits for what its worker says

    def __enter__(self) -> Workers:
        return self

    def submit(self, model: GPTConfig, config: TrainingConfig, look=None, keep=None) -> Future:
        """Return the future result of one run, which begins when a worker is free; its first weights follow its seed.

        `look(step, loss)` is called with each evaluation but the last and returns whether to go on; `keep(result)` at
        the end: it returns the directory to save the model in, or None. Both are called in a thread. The result is a
        dict: `outcome` is "finished", "pruned" (by look), "diverged" or "crashed", which has only a `reason`
        besides. The others have `loss` (the last validation loss, None when it diverged), `tokens` (trained on),
        `seconds`, `curve` and `evaluations`, (step, loss) pairs; of the curve CURVE_POINTS are kept.
        """
        return self.threads.submit(self._train, {"model": asdict(model), "training": asdict(config)}, look, keep)

    def _train(self, run: dict, look, keep) -> dict:
        worker = self.idle.get()
        try:
            return worker.train(run, look or (lambda step, loss: True), keep or (lambda result: None))
        finally:
            self.idle.put(worker)

    def __exit__(self, *_) -> None:
        self.threads.shutdown(wait=False, cancel_futures=True)
        for worker in self.all:
            worker.kill()
        self.threads.shutdown()
        for worker in self.all:
            worker.bury()
        self.folder.cleanup()


class _Worker:
    """One worker process, started when it is needed and again after it died."""

    def __init__(self, folder: Path, device: str):
        self.folder, self.device = folder, device
        self.process: subprocess.Popen | None = None
        self.closed, self.lock = False, threading.Lock()

    def train(self, run: dict, look, keep) -> dict:
        """Let the process make one run, and return its result; `look` is asked at each evaluation."""
        try:
            self._start()
            self._say(run)
            while "evaluation" in (said := self._hear()):
                self._say({"go_on": bool(look(*said["evaluation"]))})
            if said["outcome"] == "crashed":
                return said
            directory = keep(said)
            self._say({"directory": None if directory is None else str(directory)})
            return said if directory is None else self._hear()
        except EOFError:
            return {"outcome": "crashed", "reason": self.bury()}

    def _start(self) -> None:
        with self.lock:
            if self.closed:
                raise EOFError
            if self.process is not None:
                return
            path = os.pathsep.join(place or os.getcwd() for place in sys.path)  # there as here
            threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
            self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the process is buried
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", COMMAND, self.folder, self.device],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                env=os.environ | threads | {"PYTHONPATH": path},
            )

    def _say(self, message: dict) -> None:
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
        except OSError as fault:  # nobody reads any more
            raise EOFError from fault

    def _hear(self) -> dict:
        line = self.process.stdout.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        return json.loads(line)

    def kill(self) -> None:
        """Kill the process; no other is started."""
        with self.lock:
            self.closed = True
            if self.process is not None:
                self.process.kill()

    def bury(self) -> str:
        """Return in words how the process died, and forget it, so that the next run starts another."""
        if self.process is None:
            return "its process was never started"
        process, self.process = self.process, None
        process.kill()  # should it only have closed its stdout
        process.wait()
        self.errors.seek(0)
        last_words = self.errors.read().decode(errors="replace").strip().splitlines()[-1:]
        for file in (process.stdin, process.stdout, self.errors):
            with contextlib.suppress(OSError):  # stdin may hold what nobody read
                file.close()
        if process.returncode < 0:
            return f"its process was killed by {signal.Signals(-process.returncode).name}: often, memory ran out"
        return ": ".join([f"its process ended with code {process.returncode}", *last_words])


# ---- The worker's side


def main(folder: str, device: str) -> None:
    """Train what stdin asks for, until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all its processes: the parent decides
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not come between our lines

    def say(message: dict) -> None:
        out.write(json.dumps(message).encode() + b"\n")
        out.flush()

    heard: queue.SimpleQueue[dict] = queue.SimpleQueue()
    threading.Thread(target=_serve, args=(Path(folder), device, heard.get, say), daemon=True).start()
    for line in sys.stdin.buffer:
        heard.put(json.loads(line))
    os._exit(0)  # in the middle of a step, too


def _serve(folder: Path, device: str, hear, say) -> None:
    try:
        torch.set_num_threads(1)
        tokens, validation_tokens = (np.load(folder / f"{name}.npy") for name in ("tokens", "validation_tokens"))
        torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])  # the first imports much, which is no run's own time
        while True:
            run = hear()
            try:
                model, result = _run(run, tokens, validation_tokens, device, hear, say)
                say(result)
                if (directory := hear()["directory"]) is not None:
                    _save(model, Path(directory))
                    say(result)
            except Exception as fault:
                say({"outcome": "crashed", "reason": f"{type(fault).__name__}: {fault}"})
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _run(run: dict, tokens, validation_tokens, device: str, hear, say) -> tuple[GPT, dict]:
    """Train one model as `run` says, reporting each evaluation but the last; return it with its result."""
    config = TrainingConfig(**run["training"])
    torch.manual_seed(config.seed)
    model = GPT(GPTConfig(**run["model"]))

    def look(history: History) -> bool:
        step = history.step[-1]
        if step == config.steps or step not in history.eval_step[-1:]:
            return False
        say({"evaluation": [step, history.eval_loss[-1]]})
        return not hear()["go_on"]

    begin, options = time.perf_counter(), {"callback": look, "device": device, "progress": False}
    try:
        history = train(model, tokens, config, validation_tokens=validation_tokens, **options)
        outcome, loss = "pruned" if history.stopped else "finished", history.eval_loss[-1]
    except DivergedError as fault:
        outcome, loss, history = "diverged", None, fault.history
    step_tokens = config.batch_size * config.gradient_accumulation_steps
    step_tokens *= config.sequence_length or model.config.n_positions
    n_steps = len(history.step)
    kept = sorted({round(place) for place in np.linspace(0, max(n_steps - 1, 0), min(n_steps, CURVE_POINTS))})
    return model, {
        "outcome": outcome,
        "loss": loss,
        "tokens": n_steps * step_tokens,
        "seconds": time.perf_counter() - begin,
        "curve": [(history.step[i], history.loss[i]) for i in kept],
        "evaluations": list(zip(history.eval_step, history.eval_loss, strict=True)),
    }


def _save(model: GPT, directory: Path) -> None:
    """Save the model so that `directory` is there completely or not at all."""
    unfinished = directory.with_name(directory.name + ".unfinished")
    model.save(unfinished)
    for path in (*unfinished.iterdir(), unfinished):
        _flush(path)
    shutil.rmtree(directory, ignore_errors=True)
    unfinished.rename(directory)
    _flush(directory.parent)
