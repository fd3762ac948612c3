"""Where the course is run: kernels that are interrupted, indexes that fail, other machines, other platforms."""

import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import venv
from contextlib import contextmanager
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from jupyter_client.manager import KernelManager, start_new_kernel
from test_pretrained import TEXTS, left_in_cache, refusal, write_wheel
from torch._subclasses.fake_tensor import FakeTensorMode

from gptcourse.distributed import choose_device
from gptcourse.model import GPT, GPTConfig
from gptcourse.wheels import fetch_wheel
from tools import badges

ROOT = Path(__file__).resolve().parents[1]
FIRST_NOTEBOOK = ROOT / "notebooks" / "00_start_here.ipynb"
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="as on Linux")


def environment(**more):
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | more


# ---- Kernels that are interrupted

SETUP = """
import itertools, torch
from gptcourse.exercises import check
from gptcourse.generation import Sampling, generate, stream
from gptcourse.model import GPT, GPTConfig
from gptcourse.sweeps import sweep
from gptcourse.training import TrainingConfig, train
from gptcourse.tuning import Budget, tune
from optuna.distributions import FloatDistribution

torch.manual_seed(0)
model, history = GPT(GPTConfig(17, 8, 16, 1, 2)), None
tokens, quiet = torch.arange(400) ** 2 % 17, {"device": "cpu", "progress": False}
space = {"learning_rate": FloatDistribution(1e-3, 0.1, log=True)}

def slowly(q, k):
    for _ in itertools.count():
        q @ k.mT
"""
LONG_CELLS = {
    "training": "history = train(model, tokens, TrainingConfig(10**8, 2, 1e-3), **quiet)",
    "training with a bar": "history = train(model, tokens, TrainingConfig(10**8, 2, 1e-3), device='cpu')",
    "writing": "while True: generate(model, [1, 2, 3], 500, Sampling(seed=0))",
    "streaming": "for _ in itertools.count(): list(stream(model, [1, 2, 3], 500, Sampling(seed=0)))",
    "checking": "while True: check('attention.scores', slowly)",
    "sweeping": "sweep(model.config, TrainingConfig(10**8, 2, 1e-3), {'n_head': [1, 2]}, tokens=tokens, "
    "validation_tokens=tokens, progress=False)",
    "tuning": "tune(model, tokens.repeat(5), Budget(minutes=30), space=space, **quiet)",
}
AFTER = """
assert all(parameter.isfinite().all() for parameter in model.parameters())
assert history is None or history.stopped == "interrupted" and len(history.loss) == len(history.step)
again = train(model, tokens, TrainingConfig(2, 2, 1e-3), **quiet)
assert again.step == [1, 2] and len(generate(model, [1, 2, 3], 5)) == 8
history = None
"""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """A kernel in which a model is ready: (manager, client)."""
    folder = tmp_path_factory.mktemp("kernel")
    manager, client = start_new_kernel(startup_timeout=300, env=environment(), cwd=str(folder))
    assert client.execute_interactive(SETUP, timeout=300)["content"]["status"] == "ok"
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def interrupted(kernel, cell, seconds):
    """Run a long cell, interrupt it some seconds after it has begun, and return the kernel's reply.

    After half a minute it is interrupted again, as a person would: Python itself drops a Ctrl-C that falls into a
    callback of its garbage collection, such as those of an import.
    """
    (manager, client), ended = kernel, threading.Event()

    def press():
        wait = seconds
        while not ended.wait(wait):
            manager.interrupt_kernel()
            wait = 30

    def on_output(message):
        if message["msg_type"] == "stream" and "begun" in message["content"]["text"]:
            threading.Thread(target=press, daemon=True).start()

    try:
        return client.execute_interactive(f"print('begun', flush=True)\n{cell}", output_hook=on_output, timeout=300)
    finally:
        ended.set()


MOMENTS = [("training", 0), ("writing", 1)]
MANY = [pytest.param(cell, seed, marks=pytest.mark.long) for seed in range(2, 5) for cell in LONG_CELLS]


@pytest.mark.skipif(os.name == "nt", reason="Windows interrupts kernels by another way")
@pytest.mark.parametrize(("cell", "seed"), [*MOMENTS, *MANY])
def test_a_kernel_interrupted_in_a_long_cell_lives_and_keeps_the_model(cell, seed, kernel):
    reply = interrupted(kernel, LONG_CELLS[cell], np.random.default_rng(seed).random())["content"]
    assert reply["status"] == "ok" or reply["ename"] == "KeyboardInterrupt", reply
    after = kernel[1].execute_interactive(AFTER, timeout=300)["content"]
    assert after["status"] == "ok", after


# ---- Downloads that fail


class Index(http.server.BaseHTTPRequestHandler):
    """A package index with one wheel, which misbehaves as `server.way` says."""

    def do_GET(self):
        way, wheel = self.server.way, self.server.wheel
        if way == "a hotel's login page":
            self.answer(b"<html><body>Welcome! Please log in.</body></html>")
        elif way in ("403", "500"):
            self.send_error(int(way))
        elif way == "a redirection without end":
            self.send_response(302)
            self.send_header("Location", self.path)
            self.end_headers()
        elif not self.path.endswith(".whl"):
            self.answer(f'<a href="/{wheel.name}">{wheel.name}</a>'.encode())
        else:
            self.send_wheel(wheel.read_bytes(), way)

    def answer(self, content, length=None):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(length or len(content)))
        self.end_headers()
        self.wfile.write(content)

    def send_wheel(self, content, way):
        half = len(content) // 2
        if way == "altered":
            self.answer(content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :])
        elif way == "cut off":
            self.answer(content[:half], len(content))
        elif way == "stalled":
            self.answer(content[:half], len(content))
            self.server.ended.wait(60)
        else:  # slow: a few bytes at a time
            self.answer(b"", len(content))
            for i in range(0, len(content), 100):
                self.wfile.write(content[i : i + 100])
                time.sleep(0.01)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """A server of a package index on this machine, and the description of its wheel."""
    folder = tmp_path_factory.mktemp("index")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index)
    server.daemon_threads, server.ended = True, threading.Event()
    server.described = write_wheel(folder, TEXTS)
    (server.wheel,) = folder.iterdir()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.ended.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def only_this_index(index, tmp_path, monkeypatch):
    """Let pip know nothing but the index, and the cache be empty."""
    for name in [name for name in os.environ if name.startswith("PIP_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    settings = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": f"http://127.0.0.1:{index.server_address[1]}/simple"}
    settings |= {"PIP_RETRIES": "0", "PIP_TIMEOUT": "2", "PIP_NO_CACHE_DIR": "1", "NO_PROXY": "*"}
    for name, value in (settings | {"GPTCOURSE_CACHE": str(tmp_path / "cache")}).items():
        monkeypatch.setenv(name, value)
    return index


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("cut off", "connection|sha256"),
        ("stalled", "connection"),
        ("altered", "sha256"),
        ("403", "connection"),
        pytest.param("500", "connection", marks=pytest.mark.long),
        ("a hotel's login page", "connection"),
        pytest.param("a redirection without end", "connection", marks=pytest.mark.long),
    ],
)
def test_a_download_that_fails_is_one_sentence_and_nothing_half_finished_is_seen(way, words, only_this_index):
    only_this_index.way = way
    sentence = refusal(fetch_wheel, only_this_index.described)
    assert sentence.startswith("tinytext==1.0 could not be downloaded; ") and re.search(words, sentence)
    assert sentence.endswith("meanwhile shakespeare-5m needs no download.") and "Traceback" not in sentence
    assert left_in_cache() == []


def test_a_slow_download_is_waited_for(only_this_index):
    only_this_index.way = "slow"
    folder = fetch_wheel(only_this_index.described)
    assert sorted(path.name for path in folder.iterdir()) == ["one.md", "two.md"]


# ---- The same everywhere

SAME = """
import json, torch
from gptcourse.generation import Sampling, generate
from gptcourse.model import GPT, GPTConfig
from gptcourse.pretrained import load_pretrained
from gptcourse.training import TrainingConfig, train

def made(threads):
    torch.set_num_threads(threads)
    model, tokenizer = load_pretrained("shakespeare-5m")
    text = tokenizer.decode(generate(model, tokenizer.encode("ROMEO:"), 12, Sampling(temperature=0.8, seed=7)))
    torch.manual_seed(0)
    model, tokens = GPT(GPTConfig(50, 64, 128, 2, 4, dropout=0.1)), torch.arange(2000) ** 2 % 47
    config = TrainingConfig(10, 4, 1e-3)
    history = train(model, tokens, config, validation_tokens=tokens[:200], device="cpu", progress=False)
    return [text, history.loss, history.eval_loss]

print(json.dumps([made(threads) for threads in (1, 2)]))
"""
THREADS_DIFFER = 1e-4  # nats per token after ten steps: threads add the same float32 numbers up in another order


def test_the_same_seed_gives_the_same_text_twice_and_threads_change_a_loss_by_less_than_a_ten_thousandth():
    """Two processes: same text, same losses to the last bit. One or two threads: same text, nearly the same losses."""
    command = [sys.executable, "-c", SAME]
    patient = environment(OMP_WAIT_POLICY="PASSIVE")  # on a busy machine threads would use it up by waiting
    done = [subprocess.run(command, env=patient, capture_output=True, text=True) for _ in range(2)]
    assert [process.returncode for process in done] == [0, 0], done[0].stderr
    first, second = (json.loads(process.stdout) for process in done)
    assert first == second
    (text, *one), (same_text, *two) = first
    assert text == same_text and text.startswith("ROMEO:")
    difference = np.abs(np.subtract(np.concatenate(one), np.concatenate(two))).max()
    print(f"One and two threads differ by up to {difference:.1e} nats.")
    assert difference < THREADS_DIFFER


# ---- Devices that this machine has not


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda:0"), (True, False, "cuda:0"), (False, True, "mps"), (False, False, "cpu")],
)
def test_the_best_device_that_is_there_is_taken_and_another_if_it_is_asked_for(cuda, mps, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    with FakeTensorMode():  # takes tensors of any device for given
        assert choose_device() == torch.device(expected)
        assert choose_device("cpu") == torch.device("cpu")


def test_a_device_that_is_announced_but_does_not_work_is_said_with_what_to_give_instead(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    if torch.backends.mps.is_built():
        pytest.skip("it works here")
    with pytest.raises(ValueError, match=r"no device 'mps' here: give device=\"cpu\"\.$"):
        choose_device()


@pytest.mark.parametrize("shape", [{}, {"position_embedding": "rotary", "norm": "rmsnorm", "qk_norm": True}])
def test_all_that_a_model_makes_lies_on_its_own_device(shape):
    """The device "meta" stands for a GPU: it computes shapes alone, and takes no tensor of the CPU either."""
    with torch.device("meta"):
        model, ids = GPT(GPTConfig(17, 8, 16, 2, 2, dropout=0.1, **shape)), torch.zeros(2, 8, dtype=torch.long)
    output = model(ids, ids)
    output.loss.backward()
    assert {p.grad.device.type for p in model.parameters()} == {output.logits.device.type} == {"meta"}
    with pytest.raises(RuntimeError, match=r"same device|meta"):
        output.logits + torch.zeros(17)


# ---- Binder's and Colab's terms


def beside(folder):
    """Make an environment of its own in `folder` that also sees the packages installed here, and return its Python."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own, ours = (subprocess.check_output([p, "-c", where], text=True).strip() for p in (python, sys.executable))
    Path(own, "here.pth").write_text(ours + "\n")
    return python


def scratch_copy(folder):
    """Clone this checkout, as a platform would, with what is not committed yet; return the folder."""
    run(["git", "clone", "--quiet", "--no-hardlinks", ROOT, folder])
    for name in run(["git", "diff", "--name-only", "--diff-filter=d", "HEAD"], cwd=ROOT).split():
        shutil.copyfile(ROOT / name, folder / name)
    return folder


def run(command, **options):
    """Run a command and return what it said; fail with all of it if the command does."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@linux_only
@pytest.mark.full
def test_binders_image_is_built_and_its_notebooks_need_no_network_one_core_and_two_gigabytes(tmp_path):
    course, python = scratch_copy(tmp_path / "course"), beside(tmp_path / "image")
    (tmp_path / "cpu.max").write_text("100000 100000\n")  # one core, as a container's quota says it
    own = environment(PATH=f"{python.parent}:{os.environ['PATH']}", GPTCOURSE_CACHE=str(tmp_path / "cache"))
    del own["PYTHONPATH"]
    run([course / "binder" / "postBuild"], cwd=course, env=own)
    assert len(list((tmp_path / "cache").iterdir())) == 2
    offline = own | {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "HF_HUB_OFFLINE": "1"}
    command = ["taskset", "-c", min(os.sched_getaffinity(0)), course / "binder" / "start", python, "-c", RUN_ONE]
    said = run([*command, FIRST_NOTEBOOK.name], cwd=course, env=offline | {"CGROUP_ROOT": str(tmp_path)})
    threads, peak, package = json.loads(said.splitlines()[-1])
    assert threads == 1 and peak < 2e9 and Path(package).is_relative_to(course)


RUN_ONE = """
import json, sys
import nbformat, torch, gptcourse
from pathlib import Path
from tools import notebooks
path = Path("notebooks", sys.argv[1])
measured = notebooks.execute(nbformat.read(path, as_version=4), path.parent)
print(json.dumps([torch.get_num_threads(), measured.peak_memory, gptcourse.__file__]))
"""


# ---- Colab's terms


@linux_only
@pytest.mark.full
def test_on_colabs_versions_the_install_cell_runs_twice_and_every_explorer_moves(tmp_path):
    """Colab's widgets, kernel and shell. PyTorch is the one that is here: 2.11 would be a download of gigabytes."""
    python = beside(tmp_path / "colab")
    run([python, "-m", "pip", "install", "--quiet", "ipywidgets==7.7.1", "ipykernel==6.17.1", "ipython==7.34.0"])
    course = scratch_copy(tmp_path / "course")
    own = as_on_colab(python, course, tmp_path)
    (install,) = (c.source for c in nbformat.read(FIRST_NOTEBOOK, as_version=4).cells if c.id == "install")
    with colab_kernel(python, tmp_path, own) as client:
        for cell in (install, install, INSTALLED):
            reply = client.execute_interactive(cell, timeout=600)["content"]
            assert reply["status"] == "ok", reply
    tests = [f"tests/test_{name}.py" for name in ("explorers", "panel", "block_explorers", "modern_explorers")]
    said = run([python, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", *tests], cwd=course, env=own)
    assert " passed" in said and "failed" not in said


def as_on_colab(python, course, progress):
    """Return Colab's environment variables, and those by which git finds the course's address in a folder."""
    own = os.environ | {"COLAB_RELEASE_TAG": "release-colab", "COLAB_GPU": "", "COLAB_BACKEND_VERSION": "next"}
    own |= {"PATH": f"{python.parent}:{os.environ['PATH']}", "GPTCOURSE_PROGRESS": str(progress)}
    own |= {"GIT_CONFIG_KEY_0": f"url.file://{course}.insteadOf", "GIT_CONFIG_VALUE_0": badges.repository()}
    own.pop("PYTHONPATH", None)
    return own | {"GIT_CONFIG_COUNT": "1"}


INSTALLED = """
import IPython, ipykernel, ipywidgets, sys, gptcourse
assert (ipywidgets.__version__, ipykernel.__version__, IPython.__version__) == ("7.7.1", "6.17.1", "7.34.0")
assert gptcourse.__file__.startswith(sys.prefix), gptcourse.__file__
"""


@contextmanager
def colab_kernel(python, folder, own):
    """Give a client of a kernel that another Python runs."""
    manager = KernelManager()
    manager.kernel_spec.argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    manager.start_kernel(env=own, cwd=str(folder))
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=300)
        yield client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
