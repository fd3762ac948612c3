"""Lives that are cut short: each kind of long work, made in a process of its own and killed when a test says so.

`python -m tests.lives` imports all that they need once, reads a line of JSON for each life, and answers with one.
"""

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import optuna
import torch
from optuna.distributions import FloatDistribution

from gptcourse import sweeps
from gptcourse.data import IGNORED
from gptcourse.files import digest
from gptcourse.finetuning import finetune
from gptcourse.model import GPT, GPTConfig
from gptcourse.preferences import GRPOConfig, dpo, grpo, reward_model, train_reward_model
from gptcourse.sweeps import search, sweep
from gptcourse.tokenizers import BPETokenizer, CharTokenizer
from gptcourse.training import TrainingConfig, train
from gptcourse.tuning import Budget, tune
from gptcourse.views import set_dropout

ROOT = Path(__file__).resolve().parents[1]
SHAPE = GPTConfig(17, 8, 16, 2, 2, dropout=0.2)
TOKENS = torch.arange(400) ** 2 % 17
DATA = {"tokens": TOKENS, "validation_tokens": TOKENS[:50]}
QUIET = {"device": "cpu", "progress": False}
CONFIG = TrainingConfig(12, 2, 1e-2, warmup_steps=2, eval_steps=4, save_steps=2)
RATES = FloatDistribution(1e-3, 0.1, log=True)


def new_model(n_head=2, seed=3):
    torch.manual_seed(seed)
    return GPT(GPTConfig(17, 8, 16, 2, n_head, dropout=0.2))


def example(*reply):
    ids = [1, 2, 3, *reply]
    return ids[:-1], [IGNORED] * 2 + list(reply)


EXAMPLES = [example(i, i + 1) for i in range(9)]
PAIRS = [(example(4, i), example(5, i)) for i in range(9)]


def learned(model, history):
    """Return the last bit of what a run has learned and measured, as text."""
    weights = [parameter.detach().double().flatten().tolist() for parameter in model.parameters()]
    return digest([weights, asdict(history)])


def kept(folder):
    return {"checkpoint_dir": folder, "resume": True} | QUIET


def training(folder):
    model = new_model()
    return learned(model, train(model, **DATA, config=CONFIG, **kept(folder)))


def fine_tuning(folder):
    model = new_model()
    return learned(model, finetune(model, EXAMPLES, CONFIG, validation=EXAMPLES[:3], **kept(folder)))


def learning_from_pairs(folder):
    model = new_model()
    return learned(model, dpo(model, PAIRS, CONFIG, **kept(folder)))


def learning_a_reward(folder):
    model = reward_model(new_model())
    return learned(model, train_reward_model(model, PAIRS, CONFIG, **kept(folder)))


def learning_from_rewards(folder):
    model, rules = new_model(), GRPOConfig(3, 4, num_iterations=3)
    set_dropout(model, 0.0)
    return learned(
        model, grpo(model, [[1], [2, 3]], lambda i, reply: reply.count(5 + i), CONFIG, rules, **kept(folder))
    )


def runs_here():
    """Make the runs of a sweep in this process: to start another takes longer than what is tested."""
    sweeps._worker = lambda *_: nullcontext(SimpleNamespace(poll=lambda: None))
    sweeps._ask = lambda _, run, limits: sweeps._result(asdict(run.model), asdict(run.training), limits, DATA, "cpu")


def told(rows):
    """Return the rows of a table without what differs from run to run: the seconds."""
    return digest([{name: str(value) for name, value in row.items() if name != "seconds"} for row in rows])


def sweeping(folder, processes=1):
    grid, file = {"learning_rate": [1e-3, 1e-2, 0.1]}, folder / "results.jsonl"
    return told(
        sweep(SHAPE, CONFIG, grid, **DATA, seeds=(0, 1), results=file, processes=processes, progress=False).rows
    )


def searching(folder):
    options = {"n_trials": 8, "storage": folder / "search.jsonl", "processes": 1, "progress": False}
    return told(search(SHAPE, CONFIG, {"learning_rate": RATES}, **DATA, **options).rows)


def tuning(folder, objective=None):
    options = {"space": {"learning_rate": RATES}, "defaults": {"learning_rate": 1e-4, "batch_size": 2}}
    budget = Budget(tokens=22 * 160, run=160)  # 10 steps of 2 × 8 tokens, 22 times
    options |= QUIET | {"objective": objective, "storage": folder / "tuning.jsonl"}
    record = tune(lambda seed: new_model(seed=seed), TOKENS, budget, **options)
    return told([*record.trials, {"reason": record.reason, "settings": record.settings}])


def another_model(kind):
    """Return a model and a tokenizer to be saved over others: of the same config, or of another."""
    if kind == "saving_a_bpe":
        return GPT(GPTConfig(259, 8, 16, 2, 2)), BPETokenizer.train("a", 259)
    return new_model(seed=4), CharTokenizer("ABCDEFGHIJKLMNOPQ")


def saving(folder, kind="saving"):
    """Save another model over the one that is there."""
    model, tokenizer = another_model(kind)
    model.save(folder, tokenizer)
    return "saved"


def saving_a_bpe(folder):
    return saving(folder, "saving_a_bpe")


RUNS = [
    training,
    fine_tuning,
    learning_from_pairs,
    learning_a_reward,
    learning_from_rewards,
    sweeping,
    searching,
    tuning,
]
KINDS = {run.__name__: run for run in (*RUNS, saving, saving_a_bpe)}


# ---- Lives and deaths


def die_at(event):
    """Kill this process just before it changes what lies on the disk for the n-th time."""
    left, changes = event, {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}

    def count(name, arguments):
        nonlocal left
        left -= name in changes or (name == "open" and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR)))
        if left == 0:
            left = -1  # to kill is an event too
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def live(kind, folder, moment=None, event=None):
    """Do the work in a new process, killed after `moment` seconds or at an `event`; return what it made, and how long.

    What was killed has made None.
    """
    reading, writing = os.pipe()
    begin, child = time.monotonic(), os.fork()
    if not child:
        try:
            if event:
                die_at(event)
            os.write(writing, json.dumps(KINDS[kind](Path(folder))).encode())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writing)
    while not os.waitpid(child, os.WNOHANG)[0]:
        if moment is not None and time.monotonic() - begin > moment:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.001)
    seconds = time.monotonic() - begin
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    return {"made": json.loads(said) if said else None, "seconds": seconds}


def serve():
    """Live each life that is asked for on standard input."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    optuna.create_study()  # what it imports late is imported here, once
    runs_here()
    for line in sys.stdin:
        print(json.dumps(live(**json.loads(line))), flush=True)


@contextmanager
def nursery():
    """Give the function live(kind, folder, moment=None, event=None), which runs in another process."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-m", "tests.lives"], cwd=ROOT, env=environment, **pipes) as process:

        def ask(kind, folder, **when):
            print(json.dumps({"kind": kind, "folder": str(folder)} | when), file=process.stdin, flush=True)
            return json.loads(process.stdout.readline())

        yield ask
        process.stdin.close()


if __name__ == "__main__":
    serve()
