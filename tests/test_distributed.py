"""Two processes make the run of one with twice the batch; a killed worker's run goes on, to the same end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gptcourse import distributed
from gptcourse.finetuning import finetune
from gptcourse.model import GPT, GPTConfig
from gptcourse.training import TrainingConfig, train

ROOT = Path(__file__).parents[1]
SCRIPT = """
import json, os, sys
import torch
from gptcourse import distributed
from gptcourse.finetuning import finetune
from gptcourse.model import GPT, GPTConfig
from gptcourse.training import TrainingConfig, train

what, folder, killed_at = sys.argv[1], sys.argv[2], int(sys.argv[3])
distributed.init()
torch.manual_seed(distributed.rank())  # process 0 decides with which weights all begin
model = GPT(GPTConfig(50, n_positions=16, n_embd=16, n_layer=2, n_head=2, dropout=0.1))
settings = json.loads(os.environ["SETTINGS"])

def look(history):
    if distributed.rank() == 1 and len(history.step) == killed_at:
        os.kill(os.getpid(), 9)
    return distributed.rank() == 1 and len(history.step) == settings.get("stop_at")

options = {"progress": True, "device": "cpu", "callback": look}
if "save_steps" in settings["config"]:
    place = settings["places"][distributed.rank()]
    options |= {"checkpoint_dir": place, "resume": os.path.exists(folder + "/checkpoints")}
config = TrainingConfig(**settings["config"])
if what == "train":
    tokens = torch.arange(2_000) ** 2 % 49
    history = train(model, tokens, config, validation_tokens=tokens[:300], **options)
else:
    examples = [([i] * n, [-100] * (n - i % 3 - 1) + [1] * (i % 3 + 1)) for i, n in enumerate([5, 9, 4, 12, 7, 3, 8])]
    history = finetune(model, examples, config, validation=examples, **options)
model.save(f"{folder}/model-{distributed.rank()}")
open(f"{folder}/history-{distributed.rank()}.json", "w").write(json.dumps(vars(history)))
"""
CONFIG = {"steps": 12, "batch_size": 3, "learning_rate": 1e-2, "eval_steps": 4, "batch_ramp_steps": 5}


def launched(folder, what="train", n=2, killed_at=0, stop_at=None, fails=False, elsewhere=None, **config):
    """Run the script in n processes; return each process's weights and history, and what they printed."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(n)]
    command += ["--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    places = [str(folder / "checkpoints"), str(elsewhere or folder / "checkpoints")]
    settings = json.dumps({"config": CONFIG | config, "stop_at": stop_at, "places": places})
    environment = os.environ | {"SETTINGS": settings, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command += [str(script), what, str(folder), str(killed_at)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    if fails:
        assert done.returncode != 0
        return done.stderr
    if killed_at:
        assert done.returncode != 0 and "exitcode: -9" in done.stderr.replace("exitcode  :", "exitcode:")
        return done.stderr
    assert done.returncode == 0, done.stderr
    weights = [load_file(folder / f"model-{rank}" / "model.safetensors") for rank in range(n)]
    histories = [json.loads((folder / f"history-{rank}.json").read_text()) for rank in range(n)]
    return weights, histories, done.stderr


def alone(what="train", **config):
    """Make in this process the run that two processes should make."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(50, n_positions=16, n_embd=16, n_layer=2, n_head=2, dropout=0.1))
    options = {"progress": False, "device": "cpu"}
    config = TrainingConfig(**CONFIG, gradient_accumulation_steps=2, **config)
    if what == "train":
        tokens = torch.arange(2_000) ** 2 % 49
        return model, train(model, tokens, config, validation_tokens=tokens[:300], **options)
    examples = [([i] * n, [-100] * (n - i % 3 - 1) + [1] * (i % 3 + 1)) for i, n in enumerate([5, 9, 4, 12, 7, 3, 8])]
    return model, finetune(model, examples, config, validation=examples, **options)


@pytest.mark.parametrize("what", ["train", "finetune"])
def test_two_processes_make_the_run_of_one_with_twice_the_batch(tmp_path, what):
    weights, histories, shown = launched(tmp_path, what)
    model, history = alone(what)
    model.save(tmp_path / "alone")
    expected = load_file(tmp_path / "alone" / "model.safetensors")
    assert histories[0] == histories[1]
    assert histories[0]["tokens"] == history.tokens
    assert histories[0]["loss"] == pytest.approx(history.loss, abs=1e-6)
    assert histories[0]["grad_norm"] == pytest.approx(history.grad_norm, abs=1e-5)
    assert histories[0]["eval_loss"] == pytest.approx(history.eval_loss, abs=1e-6)
    for name, tensor in expected.items():
        assert torch.equal(weights[0][name], weights[1][name])
        assert (weights[0][name] - tensor).abs().max() < 1e-6
    assert shown.count("12/12") >= 1 and len({line for line in shown.split("\r") if "12/12" in line}) <= 2


def test_a_run_whose_worker_was_killed_goes_on_and_ends_bit_for_bit_the_same(tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    whole, histories, _ = launched(tmp_path / "whole", save_steps=3)
    launched(tmp_path / "killed", killed_at=8, save_steps=3)
    killed, again, shown = launched(tmp_path / "killed", save_steps=3)
    assert " 6/12 [00:00<?" in shown  # from the checkpoint of step 6
    for name, tensor in whole[0].items():
        assert torch.equal(killed[0][name], tensor) and torch.equal(killed[1][name], tensor)
    assert again[0]["loss"] == histories[0]["loss"]


def test_a_callback_of_any_process_stops_all(tmp_path):
    _, histories, _ = launched(tmp_path, stop_at=5)
    assert [len(history["step"]) for history in histories] == [5, 5]
    assert {history["stopped"] for history in histories} == {"callback"}


def test_one_process_is_left_alone(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")  # as some platforms do, without the rest of a launch
    distributed.init("cpu")
    distributed.barrier()
    assert (distributed.world_size(), distributed.rank()) == (1, 0)
    model, cpu = torch.nn.Linear(2, 2), torch.device("cpu")
    assert distributed.wrap(model, cpu) is model
    assert distributed.all_reduce(True, cpu) == 1 and distributed.all_reduce(2.5, cpu) == 2.5
    with pytest.raises(ValueError, match=r'^strategy is .fsdp., but it must be "ddp" .*\.$'):
        distributed.wrap(model, cpu, strategy="fsdp")


def test_a_process_that_finds_no_checkpoint_stops_all_with_one_sentence(tmp_path):
    launched(tmp_path, save_steps=3)
    errors = launched(tmp_path, save_steps=3, fails=True, elsewhere=tmp_path / "elsewhere")
    assert errors.count("One process found the checkpoint of step 0 in ") == 2
    assert errors.count("another that of step 12 (0: none): all processes must see the same checkpoint_dir.") == 2
