"""Two processes make the run of one with twice the batch, with either strategy, and take over from each other."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from gptcourse import distributed
from gptcourse.checkpoints import CheckpointError
from gptcourse.finetuning import finetune
from gptcourse.model import GPT, GPTConfig
from gptcourse.training import Trainer, TrainingConfig, evaluate, train
from gptcourse.views import is_sharded

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
TOKENS = torch.arange(2_000) ** 2 % 49
EXAMPLES = [([i] * n, [-100] * (n - i % 3 - 1) + [1] * (i % 3 + 1)) for i, n in enumerate([5, 9, 4, 12, 7, 3, 8])]
SHAPE = {"vocab_size": 51, "n_positions": 16, "n_embd": 18, "n_layer": 2, "n_head": 3, "dropout": 0.1}  # 51 is odd
CONFIG = {"steps": 9, "batch_size": 2, "learning_rate": 1e-2, "eval_steps": 3, "batch_ramp_steps": 4, "warmup_steps": 3}
MICRO_BATCHES = 4  # a step's, shared by all processes


def config(**changed):
    """Return the settings of one run; those of all processes together are always the same."""
    parts = {"gradient_accumulation_steps": MICRO_BATCHES // distributed.world_size()}
    return TrainingConfig(**CONFIG | parts | changed)


def make(what="train", strategy="ddp", seed=0, settings=None, callback=None, dtypes=None, **options):
    """Train a new model in this process, or in all that a launcher has started; return it with its history.

    What a matrix product of its first block gives is added to the set `dtypes`.
    """
    torch.manual_seed(seed)
    model = GPT(GPTConfig(**SHAPE))
    if dtypes is not None:
        model.h[0].mlp.c_fc.register_forward_hook(lambda _, __, output: dtypes.add(str(output.dtype)))
    if what == "finetune":
        options |= {"validation": EXAMPLES}
        return model, finetune(model, EXAMPLES, config(), device="cpu", callback=callback, **options)
    options |= {"validation_tokens": TOKENS[:300], "strategy": strategy, "device": "cpu", "progress": False}
    return model, train(model, TOKENS, config(**settings or {}), callback=callback, **options)


class Messages(TorchDispatchMode):
    """Counts what processes send each other, by PyTorch's own names."""

    def __init__(self):
        super().__init__()
        self.counts = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace in ("c10d", "_c10d_functional"):
            name = func.name().partition("::")[2]
            self.counts[name] = self.counts.get(name, 0) + 1
        return func(*args, **kwargs or {})


def run_case(folder, name, places=None, stop=0, kill=0, count=False, **case):
    """Make one run in a launched process and write down what came of it."""
    number, found, messages, dtypes = distributed.rank(), {}, Messages(), set()

    def look(history):
        found.setdefault("first step", history.step[-1])
        if number == 1 and len(history.step) == kill:
            os.kill(os.getpid(), 9)
        return number == 1 and len(history.step) == stop

    if places:
        case["checkpoint_dir"] = places[number % len(places)]
    try:
        with messages if count else nullcontext():
            model, history = make(seed=number, callback=look, dtypes=dtypes, **case)  # all begin as process 0
        state = distributed.full_state(model) if is_sharded(model) else model.state_dict()
        save_file({key: tensor.clone() for key, tensor in state.items()}, folder / f"{name}-{number}.safetensors")
        found |= {"history": vars(history), "evaluated": evaluate(model, TOKENS[:300]), "messages": messages.counts}
        found["dtypes"] = sorted(dtypes)
        found["held"] = sum(distributed.local(parameter).numel() for parameter in model.parameters())
    except CheckpointError as error:
        found["error"] = str(error)
    (folder / f"{name}-{number}.json").write_text(json.dumps(found))


def launched(folder, cases, n=2, killed=False):
    """Make the runs, one after the other, in n processes; return what each process found, by case, and what they said.

    Its worker is this file.
    """
    (folder / "cases.json").write_text(json.dumps(cases))
    done = torchrun(n, __file__, folder)
    assert (done.returncode != 0) == killed, done.stderr
    return {} if killed else {case["name"]: read(folder, case["name"], n) for case in cases}, done.stderr


def torchrun(n, *arguments):
    """Start n processes on this machine, as `torchrun --nproc-per-node n` does."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(n)]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)


def read(folder, name, n):
    """Return what the n processes found in one case, and their weights."""
    found = [json.loads((folder / f"{name}-{number}.json").read_text()) for number in range(n)]
    for number, one in enumerate(found):
        weights = folder / f"{name}-{number}.safetensors"
        one["weights"] = load_file(weights) if weights.exists() else {}
    return found


def assert_same_run(found, what="train", loss=1e-6, weights=2e-6, **options):
    """Compare what all processes found with the run that this process makes alone."""
    model, history = make(what, **options)
    for one in found:
        assert one["history"]["tokens"] == history.tokens and one["history"]["learning_rate"] == history.learning_rate
        assert one["history"]["loss"] == pytest.approx(history.loss, abs=loss)
        assert one["history"]["eval_loss"] == pytest.approx(history.eval_loss, abs=loss)
        assert one["history"]["grad_norm"] == pytest.approx(history.grad_norm, abs=10 * loss)
        assert one["history"] == found[0]["history"]  # to the last bit
    names, expected = found[0]["weights"].keys(), model.state_dict()
    assert names == expected.keys()
    for name in names:
        difference = (found[0]["weights"][name] - expected[name]).abs()
        if name.endswith("c_attn.bias"):  # that of the keys changes no output: Adam makes steps of its rounding errors
            difference[18:36] = 0
        assert difference.max() < weights, name
        assert all(torch.equal(one["weights"][name], found[0]["weights"][name]) for one in found if one["weights"])


# ---- The same run


BOTH = [{}, {"strategy": "fsdp"}]
OPTIONS = {
    "plain": {},
    "bf16": {"settings": {"bf16": True}},
    "recomputed": {"settings": {"gradient_checkpointing": True}},
    "muon": {"settings": {"optim": "muon"}},
}
CASES = {f"{name}, {way.get('strategy', 'ddp')}": way | options for name, options in OPTIONS.items() for way in BOTH}
CASES |= {"finetune": {"what": "finetune"}, "stopped": {"stop": 5}, "no shared disk": {"strategy": "fsdp"}}
CASES["muon, fsdp"] = CASES["muon, fsdp"] | {"count": True}
COUNTED = {f"{n} parts, {s}": {"strategy": s, "settings": {"gradient_accumulation_steps": n}, "count": True}
           for n in (1, 3) for s in ("ddp", "fsdp")}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What two processes found in all cases, one after the other."""
    folder = tmp_path_factory.mktemp("runs")
    places = {"no shared disk": {"places": [str(folder / "here"), str(folder / "there")]}}
    cases = [{"name": name} | case | places.get(name, {}) for name, case in (CASES | COUNTED).items()]
    return launched(folder, cases)


@pytest.mark.parametrize("name", ["plain, ddp", "plain, fsdp", "recomputed, ddp", "recomputed, fsdp", "finetune"])
def test_two_processes_make_the_run_of_one_with_twice_the_parts(name, runs):
    assert_same_run(runs[0][name], CASES[name].get("what", "train"))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_muon_run_is_that_of_one_process_although_no_process_holds_a_whole_matrix(strategy, runs):
    assert_same_run(runs[0][f"muon, {strategy}"], settings={"optim": "muon"}, weights=1e-5)


def test_under_fsdp_muon_gathers_each_matrix_of_the_blocks_once_a_step_and_adamw_none(runs):
    messages = {name: runs[0][name][0]["messages"] for name in ("muon, fsdp", "1 parts, fsdp")}
    gathered = {name: counts.get("all_gather_into_tensor", 0) for name, counts in messages.items()}
    matrices = 4 * SHAPE["n_layer"]  # queries with keys and values, the heads' output, and the MLP's two
    assert gathered == {"muon, fsdp": CONFIG["steps"] * matrices, "1 parts, fsdp": 0}
    held = [[one["held"] for one in runs[0][name]] for name in ("muon, fsdp", "plain, fsdp")]
    assert held[0] == held[1]


def test_in_bfloat16_ddp_rounds_as_one_process_does_and_fsdp_a_little_more(runs):
    assert_same_run(runs[0]["bf16, ddp"], settings={"bf16": True}, loss=5e-4, weights=0.02)
    plain, low = (runs[0][f"{kind}, fsdp"][0] for kind in ("plain", "bf16"))
    for kind in ("loss", "eval_loss"):
        assert low["history"][kind] == pytest.approx(plain["history"][kind], abs=2e-3)
    assert plain["dtypes"] == ["torch.float32"] and low["dtypes"] == ["torch.bfloat16"]
    assert runs[0]["bf16, ddp"][0]["dtypes"] == ["torch.bfloat16", "torch.float32"]  # evaluation is in float32


def test_a_sharded_process_holds_its_part_alone(runs):
    size = GPTConfig(**SHAPE).num_parameters
    held = [one["held"] for one in runs[0]["plain, fsdp"]]
    assert sum(held) == size and max(held) < 0.52 * size  # 51 rows are divided into 26 and 25
    assert [one["held"] for one in runs[0]["plain, ddp"]] == [size, size]


def test_what_is_evaluated_after_training_is_the_model_as_it_is(runs):
    for name in ("plain, ddp", "plain, fsdp"):
        for one in runs[0][name]:
            assert one["evaluated"] == one["history"]["eval_loss"][-1]


@pytest.mark.parametrize(("strategy", "message"), [("ddp", "allreduce_"), ("fsdp", "_reduce_scatter_base_")])
def test_accumulating_gradients_sends_them_once_a_step(strategy, message, runs):
    counts = [runs[0][f"{n} parts, {strategy}"][0]["messages"][message] for n in (1, 3)]
    assert counts[0] == counts[1] >= CONFIG["steps"]


def test_process_0_alone_shows_progress(runs):
    assert len({line for line in runs[1].split("\r") if "9/9" in line}) <= 2  # of finetune, in which it is not off


def test_a_callback_of_any_process_stops_all(runs):
    assert [len(one["history"]["step"]) for one in runs[0]["stopped"]] == [5, 5]
    assert {one["history"]["stopped"] for one in runs[0]["stopped"]} == {"callback"}


def test_sharded_checkpoints_without_a_shared_disk_are_refused_in_every_process_before_the_first_step(runs):
    for one in runs[0]["no shared disk"]:
        assert "first step" not in one
        assert "process 0 does not see shard-00002" in one["error"] and one["error"].endswith("alone.")
        assert 'take a checkpoint_dir on a disk that all machines share, or strategy "ddp"' in one["error"]


@pytest.mark.long
def test_four_processes_make_the_run_of_one(tmp_path):
    names = ["plain, ddp", "plain, fsdp", "muon, fsdp"]
    runs, _ = launched(tmp_path, [{"name": name} | CASES[name] for name in names], n=4)
    for name in names:
        assert_same_run(runs[name], settings=CASES[name].get("settings"), weights=1e-5)


# ---- Killed, and resumed by as many processes or others

KEPT = {"settings": {"save_steps": 3}, "resume": True}
# Who goes on, from what: both killed in step 8, and a run that one process left after step 4.
RESUMED = {
    "ddp": ("ddp", "ddp"),
    "fsdp": ("fsdp", "fsdp"),
    "ddp to fsdp": ("fsdp", "ddp"),
    "fsdp to ddp": ("ddp", "fsdp"),
    "one to ddp": ("ddp", "one"),
    "one to fsdp": ("fsdp", "one"),
}


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """The folder of RESUMED, and what two processes found in each."""
    folder = tmp_path_factory.mktemp("resumed")
    for strategy in ("ddp", "fsdp"):
        case = {"name": "killed", "strategy": strategy, "kill": 8, "places": [str(folder / f"from {strategy}")]}
        _, said = launched(folder, [case | KEPT], killed=True)
        assert "exitcode: -9" in said.replace("exitcode  :", "exitcode:")
    make(checkpoint_dir=folder / "from one", callback=lambda history: history.step[-1] == 4, **KEPT)
    cases = []
    for name, (strategy, source) in RESUMED.items():
        shutil.copytree(folder / f"from {source}", folder / name)
        places = [str(folder / name), str(folder / (name if strategy == "fsdp" else "elsewhere"))]
        cases.append({"name": name, "strategy": strategy, "places": places} | KEPT)
    cases.append({"name": "swapped machines", "places": [str(folder / "empty"), str(folder / "from one")]} | KEPT)
    return folder, launched(folder, cases)[0]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_run_whose_worker_was_killed_goes_on_and_ends_bit_for_bit_the_same(strategy, runs, resumed):
    whole, again = runs[0][f"plain, {strategy}"], resumed[1][strategy]
    assert [one["first step"] for one in again] == [7, 7]
    assert again[0]["history"] == whole[0]["history"]
    assert all(torch.equal(tensor, again[0]["weights"][name]) for name, tensor in whole[0]["weights"].items())


@pytest.mark.parametrize("name", ["ddp to fsdp", "fsdp to ddp", "one to ddp", "one to fsdp"])
def test_two_processes_take_over_from_one_and_from_the_other_strategy(name, resumed):
    assert [one["first step"] for one in resumed[1][name]] == 2 * [5 if name.startswith("one") else 7]
    assert_same_run(resumed[1][name])


def test_under_ddp_process_0_alone_needs_the_disk(resumed):
    assert not (resumed[0] / "elsewhere").exists()


def test_no_run_begins_anew_because_process_0_is_on_another_machine_now(resumed):
    for one in resumed[1]["swapped machines"]:
        assert one["error"].startswith("Process 1 sees step-00000004 in its ")
        assert one["error"].endswith("give the machine that sees it --node-rank 0 (without --rdzv-backend).")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_one_process_takes_over_from_two(strategy, resumed, tmp_path):
    shutil.copytree(resumed[0] / f"from {strategy}", tmp_path / "copy")
    steps = []
    model, history = make(
        checkpoint_dir=tmp_path / "copy", callback=lambda history: steps.append(history.step[-1]), **KEPT
    )
    whole, expected = make()
    assert steps == [7, 8, 9]
    assert history.loss == pytest.approx(expected.loss, abs=1e-6)
    assert evaluate(model, TOKENS) == pytest.approx(evaluate(whole, TOKENS), abs=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize(("first", "then"), [(2, 4), (4, 2)])
def test_four_processes_take_over_from_two_and_two_from_four(first, then, strategy, tmp_path):
    case = {"strategy": strategy, "places": [str(tmp_path / "kept")]} | KEPT
    launched(tmp_path, [case | {"name": "begun", "stop": 5}], n=first)
    found = launched(tmp_path, [case | {"name": "resumed"}], n=then)[0]["resumed"]
    assert [one["first step"] for one in found] == then * [6]
    assert_same_run(found, weights=1e-5)


def test_a_checkpoint_of_parts_is_safetensors_and_json_and_says_when_it_is_damaged(resumed, tmp_path):
    folder = shutil.copytree(resumed[0] / "fsdp", tmp_path / "copy")
    assert {path.suffix for path in (folder / "step-00000009").iterdir()} == {".safetensors", ".json"}  # no pickle
    part = folder / "step-00000009" / "shard-00002-model-00001-of-00001.safetensors"
    part.write_bytes(part.read_bytes()[:-1])
    steps = []
    with pytest.warns(UserWarning, match=r"step-00000009 is damaged .*shard-00002.* was truncated or altered"):
        make(checkpoint_dir=folder, callback=lambda history: steps.append(history.step[-1]), **KEPT)
    assert steps == [7, 8, 9]


def test_another_number_of_parts_a_step_is_another_run(resumed):
    settings = {"save_steps": 3, "gradient_accumulation_steps": 2}
    with pytest.raises(CheckpointError, match="gradient_accumulation_steps times the number of processes was 4 and is"):
        make(checkpoint_dir=resumed[0] / "fsdp", resume=True, settings=settings)


# ---- One process, and devices


def test_one_process_is_left_alone(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")  # as some platforms do, without the rest of a launch
    distributed.init("cpu")
    assert distributed.together(lambda: 3, ValueError) == distributed.gather(3) == [3]
    assert (distributed.world_size(), distributed.rank()) == (1, 0)
    model, cpu = torch.nn.Linear(2, 2), torch.device("cpu")
    assert distributed.wrap(model, cpu) is model is distributed.wrap(model, cpu, "fsdp")
    assert distributed.all_reduce(True, cpu) == 1 and distributed.all_reduce(2.5, cpu) == 2.5
    with pytest.raises(OSError, match=r"^.*[^\n]*$"):
        distributed.save_parts({"x": torch.ones(2)}, Path(__file__) / "folder")  # a file is no folder
    with pytest.raises(ValueError, match=r'^strategy is .zero., but it must be "ddp" .*\.$'):
        distributed.wrap(model, cpu, strategy="zero")


@pytest.mark.parametrize(("device", "backend"), [("cpu", "gloo"), ("cuda", "nccl")])
def test_the_device_in_use_decides_how_processes_talk(device, backend, monkeypatch):
    asked = []
    for name, value in zip(distributed.LAUNCHER, ("1", "1", "2", "localhost", "1"), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", asked.append)
    monkeypatch.setattr(
        distributed, "choose_device", lambda device: torch.device(device, 1 if device == "cuda" else None)
    )
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda kind, device_id: asked.append((kind, device_id))
    )
    distributed.init(device)
    own = torch.device("cuda", 1)
    assert asked == ([own, ("nccl", own)] if device == "cuda" else [("gloo", None)])


def test_a_model_that_recomputes_nothing_is_refused_in_one_sentence():
    model = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"^A Linear recomputes no activations: leave gradient_checkpointing off\.$"):
        Trainer(model, lambda step: [], TrainingConfig(1, 1, 1.0, gradient_checkpointing=True), device="cpu")


def test_recomputing_runs_each_block_twice_and_changes_no_bit():
    found = []
    for wanted in (False, True):
        passes = []
        torch.manual_seed(0)
        model = GPT(GPTConfig(**SHAPE))
        model.h[0].register_forward_pre_hook(lambda *_, passes=passes: passes.append(torch.is_grad_enabled()))
        train(model, TOKENS, config(gradient_checkpointing=wanted), device="cpu", progress=False)
        found.append((len(passes), model.state_dict()))
    assert found[1][0] == 2 * found[0][0] == 2 * MICRO_BATCHES * CONFIG["steps"]
    assert all(torch.equal(tensor, found[1][1][name]) for name, tensor in found[0][1].items())


if __name__ == "__main__":  # as a worker of `launched`
    cases, asked = json.loads((Path(sys.argv[1]) / "cases.json").read_text()), torch.cuda.is_available
    torch.cuda.is_available = lambda: True  # as on a machine with a GPU that is not used
    distributed.init("cpu")
    if torch.backends.cuda.is_built():  # such a PyTorch would ask the GPU that is not there itself
        torch.cuda.is_available = asked
    for case in cases:
        if "places" in case:  # torch.distributed.checkpoint looks for the GPU itself
            torch.cuda.is_available = asked
        run_case(Path(sys.argv[1]), **case)
