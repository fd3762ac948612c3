"""What the tests share: folders of their own, so that nobody's downloads and progress are touched."""

import os
import signal
import tempfile

import pytest

# Before torch is imported, and inherited by every kernel and process that the tests start. The models here are so small
# that a second thread saves nothing, and on a busy machine two threads spend their time waiting for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["GPTCOURSE_REVEAL"] = "1"  # the notebooks' predictions compute their proofs when they are run

import torch

from gptcourse.corpora import shakespeare


def pytest_configure(config):
    """Let GPTCOURSE_PROGRESS name a folder of this session: no fixture, because the cells that nbval runs have none."""
    progress = tempfile.TemporaryDirectory()
    config.add_cleanup(progress.cleanup)
    os.environ["GPTCOURSE_PROGRESS"] = progress.name
    # Whoever starts the tests may have Ctrl-C ignored (as shells do for background jobs) or blocked, and all their
    # children inherit it; tests press it, and would wait for ever.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory, worker_id):
    """Let GPTCOURSE_CACHE name a folder of this session, unless a shared one was asked for."""
    root = tmp_path_factory.getbasetemp()
    root = root if worker_id == "master" else root.parent  # what one worker downloads serves the others
    with pytest.MonkeyPatch.context() as patch:
        if "GPTCOURSE_CACHE" not in os.environ:
            patch.setenv("GPTCOURSE_CACHE", str(root / "cache"))
        yield


@pytest.fixture(scope="module")
def one_thread():
    """Count threads as child processes do: bits are promised for one number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def plays(cache):
    """Shakespeare's plays, downloaded once a session."""
    return shakespeare()
