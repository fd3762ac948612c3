"""examples/my_training.py as it stands: one process, two on one machine, two machines, and accelerate."""

import json
import os
import random
import runpy
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest
from test_distributed import ENVIRONMENT, ROOT, torchrun

from gptcourse import distributed, training
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


# ---- Two machines


@contextmanager
def agents(commands):
    """Give processes started with these commands, none of which outlives the test."""
    options = {"env": ENVIRONMENT, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    started = [subprocess.Popen(command, **options) for command in commands]
    try:
        yield started
    finally:
        for one in started:
            one.kill()


def two_machines(outs, text, *options, script=SCRIPT, addresses=("127.0.0.1", "127.0.0.2"), before=((), ())):
    """Run the script in one process on each of two machines; return what each has ended with, and what it said.

    An agent of torchrun stands for a machine. They meet at an address of the first, where no other server may listen,
    and are numbered in the order of their addresses. `before` is what their commands begin with.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    commands = []
    for number, (out, address, first) in enumerate(zip(outs, addresses, before, strict=True)):
        command = [*first, sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{addresses[0]}:{port}", "--local-addr", address]
        command += ["--rdzv-conf", f"is_host={number == 0}", str(script), str(text), str(out), *OPTIONS, *options]
        commands.append(command)
    with agents(commands) as started:
        said = [machine.communicate(timeout=600)[0] for machine in started]
    return [machine.returncode for machine in started], said


def last_sentence(said):
    """Return what the last CheckpointError says of those that a process has printed."""
    return said.rpartition("CheckpointError: ")[2].partition("\n")[0]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_machines_make_the_same_run_and_with_ddp_they_share_no_disk(strategy, text, alone, tmp_path):
    first, second = tmp_path / "first", tmp_path / ("second" if strategy == "ddp" else "first")
    ended, said = two_machines([first, second], text, "--strategy", strategy)
    assert ended == [0, 0], said
    assert_same_run(first, alone)
    assert second == first or not second.exists()


def test_sharded_over_two_machines_that_share_no_disk_it_ends_on_both_with_one_sentence(text, tmp_path):
    ended, said = two_machines([tmp_path / "first", tmp_path / "second"], text, "--strategy", "fsdp")
    assert ended == [1, 1]
    for one in said:
        assert "process 0 does not see shard-00002" in last_sentence(one)
        assert 'on a disk that all machines share, or strategy "ddp"' in last_sentence(one)
    assert not list(tmp_path.glob("*/checkpoints/[!.]*"))


@pytest.mark.long
def test_a_run_whose_checkpoints_lie_on_the_second_machine_ends_on_both_with_one_sentence(text, alone, tmp_path):
    shutil.copytree(alone, tmp_path / "second")
    ended, said = two_machines([tmp_path / "first", tmp_path / "second"], text)
    assert ended == [1, 1]
    for one in said:
        assert "Process 1 sees step-00000006 in its " in last_sentence(one)


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_when_a_machine_loses_its_power_the_other_ends_and_both_or_one_go_on(strategy, text, alone, tmp_path):
    first, second = tmp_path / "first", tmp_path / ("second" if strategy == "ddp" else "first")
    ended, said = two_machines([first, second], text, "--strategy", strategy, script=__file__)
    assert ended == [1, -signal.SIGKILL], said
    assert max((first / "checkpoints").glob("step-*")).name == "step-00000004"
    shutil.copytree(first, tmp_path / "copy")
    ended, said = two_machines([first, second], text, "--strategy", strategy)
    assert ended == [0, 0], said
    assert "4/6" in said[0] and "0/6" not in said[0]  # the progress bar begins at the checkpoint
    assert_same_run(first, alone)
    runpy.run_path(str(SCRIPT))["main"]([str(text), str(tmp_path / "copy"), *OPTIONS])
    assert_same_run(tmp_path / "copy", alone)


@pytest.fixture
def two_networks():
    """Two network namespaces joined by a cable: the beginnings of commands that run in them, and their addresses."""
    names, addresses = ("gptcourse-1", "gptcourse-2"), ("10.77.0.1", "10.77.0.2")
    commands = [f"ip netns add {name}" for name in names]
    commands.append(f"ip link add cable netns {names[0]} type veth peer name cable netns {names[1]}")
    for name, address in zip(names, addresses, strict=True):
        commands += [f"ip -n {name} address add {address}/24 dev cable", f"ip -n {name} link set cable up"]
        commands.append(f"ip -n {name} link set lo up")  # by which a machine reaches its own address
    try:
        for command in commands:
            subprocess.run(command.split(), check=True, capture_output=True)
        enter = [f"ip netns exec {name} env GLOO_SOCKET_IFNAME=cable".split() for name in names]
        yield {"before": enter, "addresses": addresses}
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("makes network namespaces: needs Linux, iproute2 and the rights of root")
    finally:
        for name in names if shutil.which("ip") else ():
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_machines_with_a_network_of_their_own_make_the_same_run(strategy, text, alone, tmp_path, two_networks):
    first, second = tmp_path / "first", tmp_path / ("second" if strategy == "ddp" else "first")
    ended, said = two_machines([first, second], text, "--strategy", strategy, **two_networks)
    assert ended == [0, 0], said
    assert_same_run(first, alone)


# ---- Another launcher, and what is refused


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


if __name__ == "__main__":  # as the script of machines of which the second loses its power in step 5, unsaved
    train = training.train

    def cut_off(history):
        if distributed.rank() == 1 and len(history.step) == 5:
            for process in (os.getppid(), os.getpid()):  # the agent, and its only process
                os.kill(process, signal.SIGKILL)

    training.train = lambda *args, **options: train(*args, callback=cut_off, **options)
    runpy.run_path(str(SCRIPT))["main"](sys.argv[1:])
