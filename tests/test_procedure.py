"""`tune`: what it adopts and refuses, on three kinds of models and data; killed and gone on with; what does not fit."""

import json
import math
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from torch import nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from gptcourse import procedure, subject, throughput
from gptcourse.data import text_batches
from gptcourse.finetuning import IGNORED, add_lora
from gptcourse.model import GPT, GPTConfig
from gptcourse.parts import deal_equal, kind_of, row_loss
from gptcourse.procedure import beyond, place_of, t_interval, value_at
from gptcourse.throughput import available_memory, measure_throughput
from gptcourse.training import Trainer, TrainingConfig, evaluate, train
from gptcourse.tuning import Budget, tune

SHAPE = GPTConfig(7, 8, 8, 1, 2)
TOKENS = torch.arange(2000) ** 2 % 7
QUIET = {"device": "cpu", "progress": False}
RATE = {"learning_rate": FloatDistribution(1e-3, 0.1, log=True)}
SLOW = {"learning_rate": 1e-4, "batch_size": 2}
SMALL = Budget(tokens=22 * 160, run=160)  # 10 steps of 2 × 8 tokens, 22 times


def make(seed):
    return GPT(SHAPE)


def tuned(budget=SMALL, model=make, data=TOKENS, **options):
    return tune(model, data, budget, **{"space": RATE, "defaults": SLOW} | QUIET | options)


def without_times(record):
    return [{name: value for name, value in trial.items() if name != "seconds"} for trial in record.trials]


class Head(nn.Module):
    """A classifier of two numbers."""

    def __init__(self, hidden=4):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, 2))

    def forward(self, inputs, targets):
        logits = self.layers(inputs)
        return SimpleNamespace(logits=logits, loss=F.cross_entropy(logits, targets))


def circle(n=400):
    inputs = torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
    return inputs, (inputs.square().sum(1) > 1).long()


# ---- The decision


def test_a_better_rate_is_adopted_and_the_record_says_how_to_get_it_again():
    record = tuned()
    assert record.finished and record.adopted and record.confirmed["interval"][0] > 0
    assert record.settings["learning_rate"] > 10 * SLOW["learning_rate"]
    rows = 160, 80  # 80 % and 10 % of the text, and the last 10 % to confirm on
    torch.manual_seed(record.confirmed["seeds"][0])
    model = GPT(SHAPE)
    config = TrainingConfig(**vars(record.config) | {"seed": record.confirmed["seeds"][0]})
    train(model, TOKENS[: 10 * rows[0]], config, **QUIET)
    assert evaluate(model, TOKENS[1800:], sequence_length=8) == pytest.approx(record.confirmed["winner"][0], abs=1e-6)


def test_choosing_and_confirming_share_no_seed_and_no_data():
    seen = []

    def objective(model, part):
        seen.append(part[0].item())
        return evaluate(model, part)

    data = {name: torch.roll(TOKENS, -i) for i, name in enumerate(("train", "choose", "confirm"))}
    record = tuned(data=data, objective=objective)
    firsts = {name: part[0].item() for name, part in data.items()}
    used = {"confirm" if phase == "confirm" else "choose" for phase in (t["phase"] for t in record.trials)}
    assert used == {"choose", "confirm"} and set(seen) == {firsts["choose"], firsts["confirm"]}
    seeds = {phase: {t["seed"] for t in record.trials if (t["phase"] == "confirm") == phase} for phase in (True, False)}
    assert len(seeds[True]) == 3 and not seeds[True] & seeds[False]


def test_what_wins_by_chance_is_not_adopted():
    rng = np.random.default_rng(1)
    record = tuned(objective=lambda model, part: rng.normal())
    low, high = record.confirmed["interval"]
    assert low < 0 < high and not record.adopted
    assert record.settings == record.defaults and "not adopted" in record.reason
    assert (record.config.learning_rate, record.config.batch_size) == (1e-4, 2)


def test_defaults_that_no_trial_beats_are_kept_without_confirming():
    good = {"learning_rate": 0.03, "batch_size": 2}
    record = tuned(defaults=good, space={"learning_rate": FloatDistribution(1e-7, 1e-6, log=True)})
    assert not record.adopted and not record.confirmed and record.finished
    assert not any(trial["phase"] == "confirm" for trial in record.trials)


@pytest.mark.parametrize("broken, adopted", [("winner", False), ("defaults", True)])
def test_an_arm_that_breaks_with_a_fresh_seed_loses(broken, adopted):
    data = {"train": TOKENS, "choose": TOKENS[:100], "confirm": TOKENS[:101]}
    calls = []

    def objective(model, part):
        calls.extend([0] * (len(part) == 101))
        arm = ("defaults", "winner")[(len(calls) - 1) % 2]
        return math.nan if len(part) == 101 and arm == broken else evaluate(model, part)

    record = tuned(data=data, objective=objective)
    assert record.adopted == adopted and "diverged" in record.reason
    assert json.loads(record.to_json())["confirmed"][broken] == [None] * 3


def test_a_run_that_diverges_is_a_result():
    record = tuned(space={"learning_rate": [1e-2, 1e30]})
    outcomes = {t["settings"]["learning_rate"]: t["outcome"] for t in record.searched()}
    assert outcomes == {1e-2: "finished", 1e30: "diverged"} and record.finished


def test_the_same_seed_makes_the_same_decision():
    first, second = (tuned(space=None, budget=Budget(tokens=32 * 160)) for _ in range(2))
    assert without_times(first) == without_times(second) and first.settings == second.settings
    assert first.axes.keys() == {"learning_rate", "batch_size", "weight_decay", "warmup_ratio", "beta2_half_life"}


# ---- Where it looks


def test_an_axis_whose_best_lies_at_its_end_is_widened():
    record = tuned(space={"learning_rate": FloatDistribution(1e-5, 1e-4, log=True)})
    axis = record.axes["learning_rate"]
    assert axis["widened"] >= 1 and max(record.isolation()["learning_rate"][0]) > 1e-4
    assert "widened" in str(record) and "1e-05 to 0.0" in axis["range"]


def test_the_bracket_climbs_to_a_rate_far_from_the_default(monkeypatch):
    monkeypatch.setattr(procedure, "LADDER_STEPS", 5)
    record = tuned(
        space={"learning_rate": None}, defaults=SLOW | {"learning_rate": 1e-6}, budget=Budget(tokens=40 * 160, run=160)
    )
    rungs = [t for t in record.trials if t["phase"] == "bracket"]
    assert max(t["settings"]["learning_rate"] for t in rungs) > 1e-2
    assert {t["seed"] for t in rungs} == {0, 1}
    assert 1e-3 < record.settings["learning_rate"] < 1


def test_places_and_values_are_inverse_and_axes_end_where_their_setting_does():
    log, whole = FloatDistribution(1e-4, 1e-1, log=True), IntDistribution(2, 6)
    for u in (0.0, 0.25, 0.5, 1.0):
        assert place_of(log, value_at(log, u)) == pytest.approx(u, abs=1e-3)
        assert place_of(whole, value_at(whole, u)) == pytest.approx(u) and isinstance(value_at(whole, u), int)
    assert [value_at(CategoricalDistribution(["a", "b"]), u) for u in (0.0, 0.4, 0.6, 1.0)] == ["a", "a", "b", "b"]
    assert beyond("weight_decay", FloatDistribution(0.0, 0.2), up=False) is None
    assert beyond("dropout", FloatDistribution(0.0, 0.9), up=True).high < 1
    strip = beyond("learning_rate", log, up=True)
    assert beyond("batch_size", IntDistribution(1, 64, log=True), up=False) is None
    assert beyond("batch_size", IntDistribution(4, 64), up=False).low == 1
    eights = beyond("batch_size", IntDistribution(9, 33, step=8), up=False)
    eighths = FloatDistribution(0, 20, step=0.125)
    assert (eights.low, eights.high, eights.step) == (1, 9, 8)
    assert all(value_at(eighths, u) % 0.125 == 0 for u in np.linspace(0, 1, 99))
    assert strip.low == 0.1 and strip.high == pytest.approx(0.1 * math.sqrt(1000), rel=0.01)


def test_a_budget_in_minutes_gives_every_run_the_same_time(monkeypatch):
    speeds = {1: 100.0, 16: 800.0}  # sequences per second
    rows = [throughput.Throughput(size, speed, 0) for size, speed in speeds.items()]
    monkeypatch.setattr(subject, "measure_throughput", lambda *_: iter(rows))
    budget = Budget(minutes=0.2)
    record = tuned(budget, space={"batch_size": [1, 16]})
    amounts = {t["settings"]["batch_size"]: t["amount"] for t in record.searched()}
    seconds = budget.full_run - record.measured["evaluation_seconds"]
    assert amounts == {size: int(seconds * speed / size) * size * 8 for size, speed in speeds.items()}
    with pytest.raises(ValueError, match="To evaluate takes"):
        tuned(Budget(minutes=0.0001))


def test_half_life_and_warm_up_are_turned_into_settings_of_the_run():
    slow = SLOW | {"adam_beta2": 0.5}
    record = tuned(space=RATE | {"beta2_half_life": [160.0], "warmup_ratio": [0.25]}, defaults=slow)
    assert record.adopted and "adam_beta2" not in record.settings
    assert record.config.adam_beta2 == pytest.approx(0.5**0.1)  # a step is 16 tokens, a tenth of the half-life
    assert (record.config.steps, record.config.warmup_steps) == (10, 2)


# ---- Any model


def test_lora_of_a_transformers_model_is_tuned_on_examples_with_its_rank_in_the_space():
    torch.manual_seed(0)
    base = GPT2LMHeadModel(GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2)).state_dict()

    def lora(seed, rank=2):
        model = GPT2LMHeadModel(GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2))
        model.load_state_dict(base)
        if rank > 8:
            raise ValueError("too high")
        add_lora(model, rank)
        return model

    rows = [[i % 11, (i * i + 1) % 11, (i + 3) % 11, i // 11 % 11] for i in range(120)]
    examples = [(row, [IGNORED, *row[2:], 0]) for row in rows]
    space = RATE | {"rank": [1, 2, 100]}
    record = tuned(Budget(examples=24 * 40, run=40), lora, examples, space=space, scientific=["rank"])
    outcomes = {t["settings"]["rank"]: t["outcome"] for t in record.searched()}
    assert outcomes[1] == outcomes[2] == "finished" and outcomes[100].startswith("impossible: too high")
    assert record.adopted and record.axes["rank"]["role"] == "scientific" and record.unit == "examples"


def test_a_module_is_copied_for_each_run_and_any_objective_decides():
    torch.manual_seed(0)
    head = Head()
    before = [parameter.clone() for parameter in head.parameters()]

    def mistakes(model, part):
        assert not model.training
        return (model(*part).logits.argmax(-1) != part[1]).float().mean()

    record = tuned(Budget(examples=22 * 640, run=640), head, circle(), objective=mistakes, defaults={"batch_size": 8})
    assert all(torch.equal(old, new) for old, new in zip(before, head.parameters(), strict=True))
    assert record.defaults["learning_rate"] == 5e-5
    assert record.adopted and max(record.confirmed["winner"]) < min(record.confirmed["defaults"])


def test_rows_have_the_mean_loss_over_all_of_their_targets():
    inputs, targets = circle(150)
    targets[::3] = IGNORED
    head = Head()
    assert row_loss(head, (inputs, targets)) == pytest.approx(head(inputs, targets).loss.item(), abs=1e-6)


def test_kinds_of_data_are_told_apart():
    examples = [([1, 2], [2, 3])] * 3
    kinds = [kind_of(data, make(0)) for data in (TOKENS, TOKENS.tolist(), examples, circle())]
    assert [(kind.unit, kind.per_row) for kind in kinds] == [("tokens", 8)] * 2 + [("examples", 1)] * 2
    assert kinds[3].loss == row_loss != kinds[2].loss


def test_no_two_parts_share_an_example():
    contents = [bytes([i % 40]) for i in range(400)]
    parts = [{contents[i] for i in rows} for rows in deal_equal(contents)]
    assert [len(part) for part in parts] == [32, 4, 4] and len(set.union(*parts)) == 40


# ---- Stopping and going on


@pytest.mark.parametrize("n_lines", [3, 12, 22])
def test_a_tuning_that_was_killed_goes_on_to_the_same_record(tmp_path, n_lines):
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    record = tuned(storage=whole)
    lines = whole.read_bytes().splitlines(keepends=True)
    cut.write_bytes(b"".join(lines[:n_lines]) + lines[n_lines][:20])
    again = tuned(storage=cut)
    assert without_times(again) == without_times(record)
    assert (again.reason, again.settings, again.axes) == (record.reason, record.settings, record.axes)


def test_nothing_is_trained_twice(tmp_path, monkeypatch):
    record = tuned(storage=tmp_path / "runs.jsonl")
    monkeypatch.setattr(Trainer, "run", lambda *_, **__: pytest.fail("a run was made again"))
    assert tuned(storage=tmp_path / "runs.jsonl").trials == record.trials


def test_ctrl_c_keeps_what_was_found_and_says_how_to_go_on(tmp_path, capsys):
    calls = []

    def objective(model, part):
        calls.append(part)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return evaluate(model, part)

    stopped = tuned(storage=tmp_path / "runs.jsonl", objective=objective)
    assert not stopped.finished and not stopped.adopted and len(stopped.trials) == 4  # the first call is measured
    assert "the same call goes on" in stopped.reason and "Not finished" in str(stopped)
    calls.extend([None] * 6)
    whole = tuned(storage=tmp_path / "runs.jsonl", objective=objective)
    assert whole.finished and without_times(whole)[:4] == without_times(stopped)


def test_ctrl_c_in_the_middle_of_a_run_ends_it_and_leaves_it_out(tmp_path):
    steps = []

    def press(*_):
        steps.append(0)
        if len(steps) == 77:
            signal.raise_signal(signal.SIGINT)

    def make_with_signal(seed):
        model = make(seed)
        model.register_forward_pre_hook(press)
        return model

    stopped = tuned(model=make_with_signal, storage=tmp_path / "runs.jsonl")
    assert "Interrupted" in stopped.reason and len(steps) < 90
    assert all(trial["outcome"] == "finished" and trial["amount"] == 160 for trial in stopped.trials)


def test_another_tuning_does_not_go_on_with_it(tmp_path):
    def make_another(seed):
        model = make(seed)
        nn.init.zeros_(model.wpe.weight)
        return model

    tuned(storage=tmp_path / "runs.jsonl")
    for part, options in {
        "defaults": {"defaults": SLOW | {"weight_decay": 0.0}},
        "model": {"model": make_another},
        "objective": {"objective": lambda model, part: evaluate(model, part)},
        "data": {"data": TOKENS.flip(0)},
    }.items():
        with pytest.raises(ValueError, match=f"begun with another {part}: choose"):
            tuned(storage=tmp_path / "runs.jsonl", **options)
    one, other = (lambda model, part: evaluate(model, part)), (lambda model, part: 100 + evaluate(model, part))
    tuned(storage=tmp_path / "more.jsonl", objective=one)
    with pytest.raises(ValueError, match="begun with another objective: choose"):
        tuned(storage=tmp_path / "more.jsonl", objective=other)


def test_a_budget_that_the_ladder_has_used_up_is_said():
    slow = {"batch_size": 4, "learning_rate": 1e-5}
    record = tuned(Budget(tokens=20 * 512, run=512), space={"learning_rate": None}, defaults=slow)
    assert "left no trial to search with" in record.reason


def test_the_record_is_written_as_markdown_json_and_a_figure(tmp_path):
    record = tuned()
    record.save(tmp_path / "decision")
    text, data = (
        (tmp_path / "decision" / "decision.md").read_text(),
        (tmp_path / "decision" / "decision.json").read_text(),
    )
    assert text.startswith("# Adopted") and record._repr_markdown_().startswith("### Adopted")  # below a section
    assert all(
        title in text for title in ("What was tried", "Confirmed", "Measured", "Not tried", "max_grad_norm = 1.0")
    )
    saved = json.loads(data)
    assert saved["cost"]["runs"] == len(record.trials) and saved["config"]["steps"] == 10
    assert min(saved["best_by"]["learning_rate"].values()) == record.searched()[0]["loss"]
    assert (tmp_path / "decision" / "isolation.png").stat().st_size > 1000


def test_progress_is_shown_as_it_goes(capsys):
    tuned(progress=True)
    shown = capsys.readouterr().out
    assert all(part in shown for part in ("Fastest:", "Axis learning_rate", "search, seed 0", "confirm, seed 2"))


# ---- What fits into memory


class Hungry(nn.Module):
    """A model that takes 8 MiB for each sequence."""

    def __init__(self, seen):
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.ones(1)), seen

    def forward(self, inputs, targets):
        self.seen.append(len(inputs))
        taken = torch.ones(len(inputs), 2**21) * self.weight
        return SimpleNamespace(loss=taken.mean())


def trainers(new_model):
    def new_trainer(size):
        config = TrainingConfig(100, size, 1.0)
        return Trainer(new_model(), text_batches(TOKENS, config, 8, 1), config, device="cpu")

    return new_trainer


def test_on_a_cpu_a_batch_that_would_not_fit_is_never_tried(monkeypatch):
    seen, limit = [], 400 * 2**20
    begin = throughput._trimmed_memory()
    monkeypatch.setattr(throughput, "available_memory", lambda: begin + limit - throughput._process_memory())
    found = list(measure_throughput(trainers(lambda: Hungry(seen)), [1, 2, 4, 8, 16, 32, 64, 128]))
    largest = found[-1].batch_size
    assert [row.batch_size for row in found] == [2**i for i in range(len(found))] and max(seen) == largest
    assert all(row.memory <= limit for row in found) and found[-1].memory >= largest * 8 * 2**20
    assert 4 <= largest <= 32


def test_a_gpu_that_is_out_of_memory_ends_the_measuring_and_other_errors_do_not_hide():
    def failing(error):
        def forward(self, inputs, targets):
            if len(inputs) > 4:
                raise error
            return SimpleNamespace(loss=self.weight.mean())

        return type("Failing", (Hungry,), {"forward": forward})([])

    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
    assert [r.batch_size for r in measure_throughput(trainers(lambda: failing(full)), [1, 2, 4, 8, 16])] == [1, 2, 4]
    with pytest.raises(MemoryError, match="A batch of 8 does not fit"):
        list(measure_throughput(trainers(lambda: failing(full)), [8, 16]))
    with pytest.raises(RuntimeError, match="shapes"):
        list(measure_throughput(trainers(lambda: failing(RuntimeError("shapes"))), [4, 8]))


def test_the_limit_of_a_container_counts(tmp_path):
    (tmp_path / "v1" / "memory").mkdir(parents=True)
    (tmp_path / "v2").mkdir()
    for folder, names in (
        ("v2", ("memory.max", "memory.current", "memory.stat")),
        ("v1", ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat")),
    ):
        for name, content in zip(names, ("5000", "3000", "anon 1\ninactive_file 500\n"), strict=True):
            (tmp_path / folder / name).write_text(content)
        assert available_memory(tmp_path / folder) == 2500
    (tmp_path / "v2" / "memory.max").write_text("max\n")
    assert available_memory(tmp_path / "v2") > 2500


def test_defaults_that_do_not_fit_are_accumulated(monkeypatch):
    def one_only(*_):
        yield throughput.Throughput(1, 100.0, 0)

    monkeypatch.setattr(subject, "measure_throughput", one_only)
    config = tuned().config
    assert (config.batch_size, config.gradient_accumulation_steps) == (1, 2)


# ---- Numbers and refusals


@pytest.mark.parametrize("n, quantile", [(2, 12.7062), (3, 4.3027), (5, 2.7764), (10, 2.2622), (31, 2.0423)])
def test_the_interval_is_students(n, quantile):
    values = np.random.default_rng(n).normal(size=n)
    low, high = t_interval(values.tolist())
    assert (low + high) / 2 == pytest.approx(values.mean())
    assert (high - low) / 2 == pytest.approx(quantile * values.std(ddof=1) / math.sqrt(n), rel=1e-4)


BAD = {
    "give one of them": lambda: Budget(),
    "give one of them.": lambda: Budget(minutes=1, tokens=5),
    "does not fit into a budget": lambda: Budget(tokens=100, run=200),
    "full runs or more": lambda: tuned(Budget(tokens=3200, run=320)),
    "counted in tokens": lambda: tuned(Budget(examples=9000)),
    "'momentum' is no setting": lambda: tuned(space={"momentum": [1]}),
    "'warmup_steps' is no setting": lambda: tuned(defaults={"warmup_steps": 5}),
    "must be a list of choices": lambda: tuned(space={"learning_rate": 0.1}),
    "no default range for 'dropout'": lambda: tuned(
        model=lambda seed, dropout=0.0: make(seed), space={"dropout": None}
    ),
    "numbers, texts": lambda: tuned(space={"learning_rate": [{"a": 1}]}),
    "is no axis of the space": lambda: tuned(scientific=["weight_decay"]),
    "3 or more": lambda: tuned(seeds=2),
    "learning_rate is -1": lambda: tuned(space={"learning_rate": [-1.0]}),
    "The parts of data are": lambda: tuned(data={"train": TOKENS}),
    "data must be token ids": lambda: tuned(data="text"),
    "must return a model": lambda: tuned(model=lambda seed: None),
    "with the mean loss as .loss": lambda: tuned(
        Budget(examples=24000), nn.Bilinear(2, 2, 2), (torch.ones(20, 2).cumsum(0),) * 2
    ),
    "to be split it must have 10": lambda: tuned(Budget(examples=24000), Head(), circle(5)),
    "must be a row of targets|a row of targets": lambda: tuned(
        Budget(examples=24000), Head(), dict.fromkeys(("train", "choose", "confirm"), (torch.ones(3, 2), torch.ones(2)))
    ),
    "go from 0 to 4": lambda: tuned(model=lambda seed: GPT(GPTConfig(4, 8, 8, 1, 2))),
    "must be the path of a file": lambda: tuned(storage="sqlite:///x"),
    "sequence_length is no axis": lambda: tuned(space={"sequence_length": [2, 4, 8]}),
    "batch_size is 0": lambda: tuned(defaults={"batch_size": 0}),
    "batch_size is '8'": lambda: tuned(defaults={"batch_size": "8"}),
    "beta2_half_life is 0": lambda: tuned(space={"beta2_half_life": [0, 100]}),
    "warmup_ratio is 2": lambda: tuned(space={"warmup_ratio": [0.1, 2.0]}),
    "lr_scheduler_type is 'cosin'": lambda: tuned(space={"lr_scheduler_type": ["cosine", "cosin", "linear"]}),
    'optim "muon" takes': lambda: tuned(
        Budget(examples=24000), Head(), circle(), space={"optim": ["adamw", "muon", "adamw"]}
    ),
    "two values or more": lambda: t_interval([1.0]),
}


@pytest.mark.parametrize("sentence, call", BAD.items())
def test_bad_arguments_are_refused_in_one_sentence(sentence, call, monkeypatch):
    monkeypatch.setattr(Trainer, "run", lambda *_, **__: pytest.fail("a run was begun"))
    with pytest.raises(ValueError, match=sentence):
        call()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"space": {}}, "The space is empty"),
        ({"space": {"batch_size": FloatDistribution(2, 8)}}, "batch_size is .*whole number"),
        ({"seed": 1.5}, "seed is 1.5, but it must be a whole number"),
        ({"seed": None}, "seed is None, but it must be a whole number"),
    ],
)
def test_what_would_fail_half_way_is_refused_before_the_first_run(options, says):
    with pytest.raises(ValueError, match=says):
        tuned(objective=lambda *_: pytest.fail("a run was made"), **options)


@pytest.mark.parametrize("axis", [[nn.GELU, nn.ReLU], (nn.GELU, nn.ReLU), CategoricalDistribution([nn.GELU, nn.ReLU])])
def test_choices_that_no_record_can_hold_are_refused_before_anything_is_run(axis):
    with pytest.raises(ValueError, match=r"^The choices of 'activation' must be numbers, texts"):
        tuned(model=lambda seed, activation=None: GPT(SHAPE), space=RATE | {"activation": axis})


def test_numbers_of_numpys_are_those_of_python():
    budget, defaults = Budget(tokens=np.int64(22 * 160), run=np.float32(160)), {"batch_size": np.int64(2)}
    assert budget == SMALL and type(budget.tokens) is int
    record = tuned(budget, defaults=defaults | {"learning_rate": 1e-4}, space={"batch_size": None, **RATE})
    assert type(record.defaults["batch_size"]) is int and json.loads(record.to_json())


def test_a_budget_for_more_seeds_says_how_long_a_run_may_be():
    with pytest.raises(ValueError, match=r"^The budget must be 34 full runs or more: give it a `run` of (\S+) or less"):
        tuned(Budget(tokens=3520), seeds=10)
    with pytest.raises(ValueError, match=r"^budget is 10, but it must be a Budget"):
        tuned(10)


def test_a_search_that_ends_before_its_budget_says_so(monkeypatch):
    monkeypatch.setattr(procedure, "MOST_TRIALS", 6)
    record = tuned(Budget(tokens=60 * 160, run=160))
    assert sum(trial["phase"] == "search" for trial in record.trials) == 6
    assert any("ended after 6 trials, with a part of its budget left" in note for note in record.notes)


def test_a_record_saved_over_another_one_leaves_none_of_it(tmp_path):
    record = tuned()
    record.save(tmp_path)
    picture = (tmp_path / "isolation.png").read_bytes()
    assert picture[1:4] == b"PNG"
    record.trials = [trial for trial in record.trials if trial["phase"] != "search"]
    record.axes, record.defaults = {}, {"activation": nn.GELU}
    record.save(tmp_path)
    assert not (tmp_path / "isolation.png").exists()
    assert "GELU" in json.loads((tmp_path / "decision.json").read_text())["defaults"]["activation"]


def test_fewer_steps_than_a_timing_takes_are_refused():
    def trainer(size):
        config = TrainingConfig(1, size, 1e-3)
        return Trainer(GPT(SHAPE), text_batches(TOKENS, config, 8, 1), config, device="cpu")

    with pytest.raises(ValueError, match=r"^To time a batch takes \d steps"):
        list(measure_throughput(trainer, [1]))
