"""examples/my_training.py as it stands: one process, two on one machine, two machines, and accelerate."""

import json
import random
import runpy
import socket
import subprocess
import sys

import pytest
from test_distributed import ENVIRONMENT, ROOT, torchrun

from gptcourse.pretrained import load_pretrained

SCRIPT = ROOT / "examples" / "my_training.py"
OPTIONS = ["--steps", "6", "--batch-size", "8", "--micro-batch-size", "2", "--learning-rate", "1e-3"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A text of 15,000 characters."""
    path, draw = tmp_path_factory.mktemp("text") / "my_text.txt", random.Random(0)
    parts = ["the king ", "loves ", "the queen ", "and the fool.\n", "says: ", "no, my lord,\n"]
    path.write_text("".join(draw.choice(parts) for _ in range(1500)))
    return path


@pytest.fixture(scope="module")
def alone(text):
    """The folder of the run that one process makes, in this one."""
    runpy.run_path(str(SCRIPT))["main"]([str(text), str(text.parent / "alone"), *OPTIONS])
    return text.parent / "alone"


def history(folder):
    """Return what a run has measured, from its newest checkpoint."""
    newest = max((folder / "checkpoints").glob("step-*"))
    return json.loads((newest / "state.json").read_text())["history"]


def assert_same_run(folder, alone):
    """Compare a run with that of one process, and open the model that it saved."""
    found, expected = history(folder), history(alone)
    assert found["loss"] == pytest.approx(expected["loss"], abs=1e-5) and len(found["loss"]) == 6
    assert found["eval_loss"] == pytest.approx(expected["eval_loss"], abs=1e-5)
    (model, tokenizer), (same, _) = (load_pretrained(str(place / "model")) for place in (folder, alone))
    assert tokenizer.decode(tokenizer.encode("the king")) == "the king"
    assert max((a - b).abs().max() for a, b in zip(model.parameters(), same.parameters(), strict=True)) < 1e-3


def test_sharded_over_two_processes_it_is_the_same_run(text, alone, tmp_path):
    done = torchrun(2, SCRIPT, text, tmp_path / "out", *OPTIONS, "--strategy", "fsdp")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("per token, processes 2\n") == 1
    assert_same_run(tmp_path / "out", alone)


def test_two_machines_that_share_no_disk_make_the_same_run(text, alone, tmp_path):
    """Each agent of torchrun stands for a machine; they meet on a port of this one."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", str(SCRIPT), str(text)]
    options = {"env": ENVIRONMENT, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    outs = [tmp_path / name for name in ("first", "second")]
    machines = [subprocess.Popen([*command, str(out), *OPTIONS], **options) for out in outs]
    said = [machine.communicate(timeout=600)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    (written,) = [out for out in outs if (out / "model").exists()]  # that of process 0, whose machine is not known
    assert_same_run(written, alone)
    assert not any((out / "checkpoints").exists() for out in outs if out != written)


def test_accelerate_launches_it_too(text, alone, tmp_path):
    pytest.importorskip("accelerate")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command += [str(SCRIPT), str(text), str(tmp_path / "out"), *OPTIONS]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("per token, processes 2\n") == 1
    assert_same_run(tmp_path / "out", alone)


def test_a_batch_that_processes_cannot_share_is_refused_in_one_sentence(text, tmp_path, capsys):
    with pytest.raises(SystemExit):
        runpy.run_path(str(SCRIPT))["main"]([str(text), str(tmp_path), "--batch-size", "9"])
    assert "--batch-size is 9: make it a multiple of 8" in capsys.readouterr().err
