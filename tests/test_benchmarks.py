"""The benchmarks, with the smallest sizes: that they run and say what they mean. Nothing here is about time."""

import json
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook

from benchmarks import __main__ as command
from benchmarks import generation, growth, loss, notebooks, peers, results, startup, timing, training
from gptcourse.model import GPT, GPTConfig
from gptcourse.training import TrainingConfig

ROOT = Path(__file__).resolve().parents[1]
TINY = GPTConfig(11, n_positions=8, n_embd=8, n_layer=2, n_head=2)
ONCE = timing.Options(quick=True)
RUN = {
    "date": "2026-01-02",
    "processor": "P",
    "cores": 2,
    "threads": 2,
    "others": 0.0,
    "versions": {"Python": "3"},
    "how": "Once.",
    "minutes": 1,
}
CLONE = """
from dataclasses import dataclass
import torch
from torch import nn

@dataclass
class GPTConfig:
    block_size: int = 1
    vocab_size: int = 1
    n_layer: int = 1
    n_head: int = 1
    n_embd: int = 1
    dropout: float = 0.5
    bias: bool = True

class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        print("number of parameters")
        self.config, self.weight = config, nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, idx, targets=None):
        return self.weight.expand(*idx.shape, -1), -self.weight.log_softmax(0)[targets].mean()
"""


# ---- README and what is kept


def test_what_other_processes_took_stands_beside_the_numbers():
    assert results.line("site", "as installed", RUN).endswith("2026-01-02: `python -m benchmarks site`.")
    busy = results.line("site", "as installed", RUN | {"others": 0.5})
    assert "2026-01-02, while other processes took 50% of the processors: " in busy
    assert 0 <= results.machine()["others"] <= 1


def test_the_readme_is_what_the_json_files_give():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert results.written(text) == text
    assert sorted(match[2] for match in results.MARKERS.finditer(text)) == sorted(command.PARTS)
    assert results.TITLES.keys() == set(command.PARTS)
    assert {path.stem for path in results.FOLDER.glob("*.json")} <= set(command.PARTS)


def test_tables_replace_only_what_is_between_their_markers(tmp_path):
    part = "before\n<!-- measured by python -m benchmarks {} -->\nold\n<!-- end of measured -->\nafter\n"
    text = part.format("site") + part.format("loss")
    results.keep("site", "as installed", RUN | {"tables": {"": [{"name": "x", "ms": 3.14159}]}}, tmp_path)
    once = results.written(text, tmp_path)
    assert once.count("before") == once.count("after") == 2 and "old" not in once
    assert "| x    | 3.14 |" in once and "Once. Measured as installed on P, 2 cores, Python 3, 2026-01-02" in once
    assert results.written(once, tmp_path) == once


def test_a_run_replaces_only_the_run_of_its_own_way(tmp_path):
    for way, ms in (("as installed", 1), ("with one thread", 2), ("as installed", 3)):
        results.keep("site", way, RUN | {"tables": {"": [{"ms": ms}]}}, tmp_path)
    kept = json.loads((tmp_path / "site.json").read_text(encoding="utf-8"))
    assert [run["tables"][""][0]["ms"] for run in kept.values()] == [3, 2]
    shown = results.content("site", kept)
    assert shown.index("| 3  |") < shown.index("<details><summary>With one thread</summary>") < shown.index("| 2  |")


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [
        (None, 3, "–"),
        (True, 3, "yes"),
        ("word", 3, "word"),
        (0, 3, "0"),
        (4219.4, 3, "4,219"),
        (57.26, 3, "57.3"),
        (1.8709, 4, "1.871"),
        (0.08711, 3, "0.087"),
        ({"median": 2.0, "low": 1.0, "high": 4.0}, 3, "2 (1–4)"),
        ({"median": 2.0, "low": 2.0, "high": 2.0}, 3, "2"),
    ],
)
def test_numbers_are_shown_with_few_digits_and_their_spread(value, digits, shown):
    assert results.cell(value, digits) == shown


def test_rounds_take_turns_and_ratios_are_taken_within_a_round():
    now, called = iter(range(100)), []
    jobs = {name: lambda name=name: called.append(name) for name in "ab"}
    seconds = timing.in_turns(jobs, 2, lambda: next(now))
    assert called == ["a", "b"] * 3 and seconds == {"a": [1, 1], "b": [1, 1]}
    assert timing.ratio([2, 9, 8], [1, 3, 2], 100) == {"median": 300, "low": 200, "high": 400}
    assert timing.rate(6, [1, 2, 3]) == {"median": 3, "low": 2, "high": 6}


# ---- the command


def test_all_parts_run_as_installed_first_then_those_that_threads_matter_to(monkeypatch, capsys):
    started = []

    def run(line, env):
        started.append((line[3], line[-1], env.get("OMP_NUM_THREADS"), line[4:-2]))
        return type("Done", (), {"returncode": line[3] == "site"})

    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # of whoever calls: a learner has none
    monkeypatch.setattr(command.subprocess, "run", run)
    assert command.main(["--quick", "--nanogpt", "clone"]) == 1
    ways = [(part, command.INSTALLED, None) for part in command.PARTS]
    ways += [(part, command.ONE_THREAD, "1") for part in command.PARTS if part in command.BOTH_WAYS]
    assert [one[:3] for one in started] == ways
    assert all(one[3] == ["--quick", "--nanogpt", "clone"] for one in started)
    assert "Failed, with their old numbers kept: site, as installed" in capsys.readouterr().out


def test_a_part_keeps_its_numbers_unless_it_was_tiny(monkeypatch, capsys):
    kept = []
    monkeypatch.setattr(results, "keep", lambda part, way, run: kept.append((part, way, run["tables"])))
    monkeypatch.setattr(startup, "measure", lambda options: ("Once.", {"": [{"seconds": 1}]}))
    for quick in ([], ["--quick"]):
        command.main(["startup", *quick, "--here", "as installed"])
    assert kept == [("startup", "as installed", {"": [{"seconds": 1}]})]
    assert capsys.readouterr().out.count("| seconds |") == 2


# ---- the peers


def test_nanogpt_rebuilt_computes_what_ours_does_from_the_same_weights():
    torch.manual_seed(0)
    ours, ids = GPT(TINY), torch.randint(11, (2, 9))
    nano = peers.take_weights(peers.NanoGPT(TINY, bias=True, gelu="tanh"), ours)
    logits, loss = nano(ids[:, :-1], ids[:, 1:])
    wanted = ours(ids[:, :-1], ids[:, 1:])
    torch.testing.assert_close(logits, wanted.logits)
    torch.testing.assert_close(loss, wanted.loss)
    torch.testing.assert_close(nano(ids[:, :-1])[0], logits[:, -1:])
    assert nano.generate(ids[:, :2], 9).shape == (2, 11)  # past its window of 8


def test_nanogpt_comes_from_the_users_clone_where_there_is_one(tmp_path, capsys):
    (tmp_path / "model.py").write_text(CLONE, encoding="utf-8")
    name, model = peers.nanogpt(str(tmp_path), TINY)
    assert name == "nanoGPT" and (model.config.block_size, model.config.dropout, model.config.bias) == (8, 0.0, False)
    peers.plain_loop(peers.nano_loss, model, torch.full((99,), 3), 8, TrainingConfig(30, 2, 0.3))
    assert model.weight.argmax() == 3 and capsys.readouterr().out == ""
    assert peers.nanogpt(None, TINY)[0] == peers.REBUILT


# ---- the parts


def test_training_has_a_row_for_each_peer():
    rows = training.measure_shape("tiny", TINY, 2, ONCE, steps=1)
    assert [row["trained by"] for row in rows] == [
        training.OURS,
        peers.REBUILT,
        training.SAME,
        training.THEIRS,
        training.MATMUL,
    ]
    assert rows[1]["times nanoGPT's"]["median"] == 1 and rows[-1]["% of the matmul rate"]["median"] == 100
    assert all(row["tokens/s"]["low"] > 0 for row in rows)


def test_peak_memory_is_what_a_job_takes_above_the_libraries():
    held = []
    assert 190 < training.peak_memory(lambda: lambda: held.append(torch.ones(50_000_000))) < 400


def test_generation_goes_past_the_window_where_a_peer_cannot():
    torch.manual_seed(0)
    model, prompt = GPT(TINY).eval(), torch.tensor([[1, 2]])
    hf, nano = model.to_transformers(), peers.take_weights(peers.NanoGPT(TINY, bias=True), model)
    rows = generation.grid((model, hf, (peers.REBUILT, nano)), prompt, (3, 9), (1, 2), 1)
    assert [(row["tokens/s, batch"], row["new tokens"]) for row in rows] == [(1, 3), (1, 9), (2, 3), (2, 9)]
    assert [row["transformers"] is None for row in rows] == [False, True, False, True]
    ways, parts = generation.ways(model, hf, prompt, 3, 1)
    assert len(ways) == len(generation.WAYS) and sum(part["ms"] for part in parts) > 0


def test_nanogpts_recipe_and_the_speedruns_last_row_stand_beside_a_table():
    recipe, mine = loss.of_notebook_10()
    assert recipe["steps"] * recipe["batch_size"] * 64 > 3 * mine["steps"] * mine["batch_size"] * mine["n_positions"]
    recipe, mine = ({**one, "steps": 3, "warmup_steps": 1, "batch_size": 2, "n_positions": 8} for one in (recipe, mine))
    tokens = torch.arange(400) % 7
    table, nano, ours = loss.compare(None, (tokens, tokens[:130], 7), (0, 1), recipe, mine)
    assert table[""].startswith("counting") and (nano[""], ours[""]) == (peers.REBUILT, "gptcourse")
    assert nano["characters read"] == ours["characters read"] == 3 * 2 * 8
    assert nano["loss"]["median"] > 0 and ours["times as fast"]["median"] > 0


def test_growth_changes_one_thing_at_a_time():
    rows = growth.one_change({"context": (8,), "batch": (1, 2)}, 1, 1)
    assert [(row["changed"], row["to"]) for row in rows] == [("context", 8), ("batch", 1), ("batch", 2)]


def test_startup_runs_each_program_in_a_process_of_its_own():
    _, tables = startup.measure(ONCE, {"nothing": "pass"})
    assert tables[""][0]["a process that does"] == "nothing" and tables[""][0]["seconds"]["low"] > 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lends a process some of the cores")
def test_a_notebook_is_run_on_two_cores_and_on_one(tmp_path):
    cell = new_code_cell("import os\nopen('cores', 'a').write(str(len(os.sched_getaffinity(0))))", id="one")
    nbformat.write(new_notebook(cells=[cell]), tmp_path / "some.ipynb")
    assert notebooks.run(tmp_path / "some.ipynb", 1).seconds > 0
    assert (tmp_path / "cores").read_text() == "1"
