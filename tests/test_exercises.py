"""The exercises accept what is right, and meet everything else with one kind line."""

import ast
import contextlib
import copy
import inspect
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter, defaultdict
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from wrong_answers import (
    WRONG_ANSWERS,
    attention,
    evaluation,
    fine_tuning,
    gpt_block,
    scaling,
    start,
    tuning,
)  # the imports fill the list

import gptcourse.exercises
from gptcourse.exercises import check, exercises, forget_progress, progress
from gptcourse.exercises.records import FORMAT, Progress, Record, progress_file, remember
from gptcourse.exercises.time_limit import within
from gptcourse.finetuning import _stop_early, chat_prompt, encode_dialogue
from gptcourse.model import GPT, GPTConfig
from gptcourse.optimizers import learning_rate_at
from gptcourse.tokenizers import BPETokenizer
from gptcourse.training import TrainingConfig

NOTEBOOKS = {
    "start": "00_start_here.ipynb",
    "attention": "01_attention.ipynb",
    "gpt_block": "02_gpt_block.ipynb",
    "tuning": "03_learning_rate_and_batch_size.ipynb",
    "fine_tuning": "04_fine_tuning_and_generation.ipynb",
    "scaling": "05_scaling_up.ipynb",
    "evaluation": "06_evaluation_and_safety.ipynb",
}
ALL_MISTAKES = [(name, m) for name, exercise in exercises().items() for m in exercise.mistakes]


@pytest.fixture(autouse=True)
def own_progress(tmp_path, monkeypatch):
    """Keep the tests away from anybody's own progress, and from each other's."""
    monkeypatch.setenv("GPTCOURSE_PROGRESS", str(tmp_path / "progress"))


@pytest.fixture
def verdict(capsys):
    """Check an answer; return whether it is right and the one line that was printed."""

    def give(name, answer):
        right = check(name, answer)
        printed = capsys.readouterr()
        assert printed.err == "" and printed.out.endswith("\n") and printed.out.count("\n") == 1
        assert right is printed.out.startswith("Right: ")
        return right, printed.out.strip()

    return give


@pytest.mark.parametrize("name", exercises())
def test_reference_is_accepted(name, verdict):
    assert verdict(name, exercises()[name].reference) == (True, f"Right: {name}.")


@pytest.mark.parametrize(("name", "answer", "hint"), [pytest.param(*w, id=w[1].__name__) for w in WRONG_ANSWERS])
def test_wrong_answer_gets_its_own_hint(name, answer, hint, verdict):
    right, line = verdict(name, answer)
    assert not right
    assert hint in line


@pytest.mark.parametrize(("name", "mistake"), ALL_MISTAKES)
def test_no_mistake_is_taken_for_another(name, mistake, verdict):
    assert verdict(name, mistake.formula) == (False, f"Not yet: {name}. {mistake.hint}")


def test_every_exercise_has_three_wrong_answers_with_hints_of_their_own_and_enough_exercises_are_there():
    hints = defaultdict(set)
    for name, _, hint in WRONG_ANSWERS:
        hints[name].add(hint)
    assert {name for name in exercises() if len(hints[name]) < 3} == set()
    assert len(exercises()) >= 15
    tasks = Counter((name.split(".")[0], ".mend_" in name) for name in exercises())
    assert tasks["attention", False] >= 6 and tasks["attention", True] >= 4
    assert tasks["gpt_block", False] >= 6 and tasks["gpt_block", True] >= 6
    assert tasks["tuning", False] >= 7 and tasks["tuning", True] >= 4
    assert tasks["fine_tuning", False] >= 7 and tasks["fine_tuning", True] >= 7
    assert tasks["scaling", False] >= 5 and tasks["scaling", True] >= 2
    assert tasks["evaluation", False] >= 4 and tasks["evaluation", True] >= 3
    modules = start, attention, gpt_block, tuning, fine_tuning, scaling, evaluation
    assert {answer.__module__ for _, answer, _ in WRONG_ANSWERS} == {m.__name__ for m in modules}


def test_hints_hold_no_code():
    hints = [m.hint for _, m in ALL_MISTAKES] + [e.hint for e in exercises().values()]
    call_or_assignment = re.compile(r"\w\(|=|[a-z]\.\w|`|\[")
    assert [hint for hint in hints if call_or_assignment.search(hint)] == []
    names = [word for hint in hints for word in re.findall(r"\w+_\w+", hint) if word != "n_head"]
    assert names == []
    gives_away = {"transpose", "permute", "contiguous", "triu", "tril", "keepdim", "gather", "unsqueeze", "softmaxes"}
    assert [hint for hint in hints if gives_away & set(hint.lower().split())] == []


def test_references_agree_with_published_and_measured_numbers():
    assert exercises()["gpt_block.parameters"].reference(50257, 1024, 768, 12) == 124_439_808
    assert exercises()["gpt_block.first_loss"].reference(50257) == pytest.approx(10.8249, abs=1e-4)
    torch.manual_seed(0)
    written = GPT(GPTConfig(10, 8, 64, 6, 2)).h[0].mlp.c_proj.weight.std().item()
    assert exercises()["gpt_block.init_std"].reference(6) == pytest.approx(written, rel=0.03)
    inputs, targets = exercises()["gpt_block.shift"].reference(torch.tensor([[3, 1, 4, 1, 5]]))
    assert (inputs.tolist(), targets.tolist()) == ([[3, 1, 4, 1]], [[1, 4, 1, 5]])
    split = exercises()["attention.heads"].reference(torch.arange(8.0).view(1, 2, 4), 2)
    assert split.tolist() == [[[[0, 1], [4, 5]], [[2, 3], [6, 7]]]]


def test_residual_reference_is_the_block_of_transformers():
    from transformers import GPT2Config
    from transformers.models.gpt2.modeling_gpt2 import GPT2Block

    config = GPT2Config(n_embd=8, n_head=2, attn_pdrop=0.0, resid_pdrop=0.0, attn_implementation="eager")
    block = GPT2Block(config, layer_idx=0).eval()
    x = torch.randn(1, 3, 8)
    ours = exercises()["gpt_block.residual"].reference(x, block.ln_1, lambda x: block.attn(x)[0], block.ln_2, block.mlp)
    theirs = block(x)
    torch.testing.assert_close(ours, theirs if isinstance(theirs, torch.Tensor) else theirs[0])


def test_references_of_tuning_agree_with_closed_forms():
    def reference(name, *inputs):
        return exercises()[f"tuning.{name}"].reference(*inputs)

    halfway = reference("schedule", 55, 2.0, 10, 100)
    assert halfway == pytest.approx(2.0 * (1 + 0.1) / 2)
    norm_squared, trace = 3.0, 50.0
    small, big = (torch.tensor([norm_squared + trace / size], dtype=torch.float64) for size in (4, 64))
    assert reference("noise_scale", small, big, 4, 64) == pytest.approx(trace / norm_squared)
    steps, tokens = reference("trade_off", 700, 300.0, 6e5)
    assert tokens == pytest.approx(700 * steps) and (steps / 300 - 1) * (tokens / 6e5 - 1) == pytest.approx(1)
    assert reference("batch_rate", 1e-3, 32, 128) == pytest.approx((4e-3, 2e-3))
    assert reference("rate_at_width", 0.02, 64, 128) == pytest.approx((0.01, 0.02, 0.02, 0.5))
    broken = torch.tensor([[3.0, 3.1, 3.2], [2.9, 2.8, 9.0], [1.0, math.inf, math.inf]])
    assert reference("mend_seeds", torch.tensor([1.0, 2.0, 4.0]), broken) == pytest.approx((2.0, 2.9))


def test_rates_asked_for_are_those_of_the_package(verdict):
    def written_by_hand(model, batches, epochs, peak):
        config = TrainingConfig(epochs * len(batches), 1, peak)
        return torch.tensor([learning_rate_at(step, config) for step in range(config.steps)])

    assert verdict("tuning.mend_schedule", written_by_hand)[0]


def test_no_tie_decides_a_range_test():
    for rates, losses, window in exercises()["tuning.range_test"].inputs():
        smoothed = sorted(tuning.medians(losses, window))
        assert smoothed[1] - smoothed[0] > 0.01 and len(rates) == len(losses)


def test_references_of_fine_tuning_agree_with_the_package():
    def reference(name, *inputs):
        return exercises()[f"fine_tuning.{name}"].reference(*inputs)

    seven = [torch.full((n,), 1 / 7).log() for n in (1, 20, 3)]
    assert reference("perplexity", seven) == pytest.approx(7)
    tokenizer = BPETokenizer.train(["Where is it?"], 265)
    _, targets = encode_dialogue(tokenizer, "Where?", "Here.")
    prompt, reply = chat_prompt(tokenizer, "Where?"), [t for t in targets if t != -100]
    assert reference("mend_prompt_loss", torch.tensor(prompt), torch.tensor(reply)).tolist() == targets
    for losses, patience in exercises()["fine_tuning.stop_rule"].inputs():
        for n in range(1, len(losses) + 1):
            history = SimpleNamespace(eval_loss=losses[:n], stopped=None)
            _stop_early(history, patience)
            if history.stopped:
                break
        assert reference("stop_rule", losses, patience) == (n - 1, losses.index(min(losses[:n])))


def test_no_rounding_decides_a_nucleus():
    torch.manual_seed(0)
    for logits, p in exercises()["fine_tuning.top_p"].inputs():
        held = logits.softmax(-1).sort(descending=True).values.cumsum(-1)
        assert (held - p).abs().min() > 1e-3


def test_file_of_an_answer_is_never_written_over():
    first, again = (copy.deepcopy(exercises()["fine_tuning.mend_pickle"].inputs()[0][2]) for _ in range(2))
    assert first != again and not Path(first).exists()


def test_unknown_name_is_refused_with_the_near_ones():
    with pytest.raises(ValueError, match=r'no exercise "attention.casual".*attention\.causal'):
        check("attention.casual", None)
    with pytest.raises(ValueError, match=r"start\.greedy.*attention\.scores.*gpt_block\.first_loss"):
        check("42", None)


def raises_to_do(q, k):
    raise NotImplementedError("write me")


def returns_nothing(q, k):
    q @ k.mT


def returns_dots(q, k): ...


@pytest.mark.parametrize("stub", [raises_to_do, returns_nothing, returns_dots, lambda q, k: ..., None, ...])
def test_stub_is_still_to_do_and_no_try(stub, verdict):
    right, line = verdict("attention.scores", stub)
    assert not right
    assert line.startswith("To do: attention.scores. Return the dot product of each query with each key")
    assert not progress_file().exists()


def right_scores(q, k):
    return q @ k.mT / math.sqrt(q.shape[-1])


def with_exit(q, k):
    sys.exit(3)


def with_two_line_error(q, k):
    raise KeyError("first line\nsecond line")


def with_endless_recursion(q, k):
    return with_endless_recursion(q, k)


def with_nan(q, k):
    scores = right_scores(q, k)
    scores[..., 0, 1] = torch.nan
    return scores


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (torch.ones(3, 5), "Pass the function itself"),
        (lambda q: q, "should take 2 inputs: q, k"),
        (lambda *, q, k: q, "should take 2 inputs: q, k"),
        (lambda q, k: right_scores(q, k).tolist(), "it should return a tensor, and it returns something of type list"),
        (lambda q, k: right_scores(q, k).numpy(), "it returns something of type ndarray"),
        (lambda q, k: (right_scores(q, k), q), "it returns 2 things"),
        (lambda q, k: right_scores(q, k).mT, "is (5, 3), and it should be (3, 5)"),
        (lambda q, k: right_scores(q, k).double(), "torch.float64, and it should be torch.float32"),
        (lambda q, k: right_scores(q, k).to("meta"), "cannot be compared"),
        (with_nan, "at position (0, 1) it gives NaN"),
        (lambda q, k: right_scores(q, k) + 1, "at position (0, 0) it gives"),
        (lambda q, k: 1 / 0, "it stops with ZeroDivisionError: division by zero"),
        (with_exit, "it stops with SystemExit: 3"),
        (with_two_line_error, "it stops with KeyError"),
        (with_endless_recursion, "it stops with RecursionError"),
        (torch.relu, "it stops with TypeError"),
    ],
)
def test_odd_answers_are_met_kindly(answer, words, verdict):
    right, line = verdict("attention.scores", answer)
    assert not right
    assert line.startswith("Not yet: attention.scores. ") and words in line


def test_first_difference_is_shown_with_both_values(verdict):
    def one_off(vocab_size):
        return math.log(vocab_size) + (vocab_size == 65)

    _, line = verdict("gpt_block.first_loss", one_off)
    assert "For vocab_size = 65: it gives 5.17438727 instead of 4.17438" in line


# ---- what no exercise knows as its own mistake, tried on every one of them


def first_part(change):
    """Return what gives the reference's result with its tensor, or the first of its tensors, changed."""

    def change_result(result):
        return (change(result[0]), *result[1:]) if isinstance(result, tuple) else change(result)

    return change_result


def as_text(result):
    return "the answer is 42"


def of_another_shape(result):
    return torch.as_tensor(result).unsqueeze(0).expand(2, *torch.as_tensor(result).shape)


def of_another_dtype(result):
    if isinstance(result, int):
        return float(result)
    if isinstance(result, float):
        return complex(result)
    return result.to(torch.float64 if result.is_floating_point() else torch.int32)


def not_a_number(result):
    return result * torch.nan if not isinstance(result, torch.Tensor) else torch.full_like(result.float(), torch.nan)


def stops(result):
    raise KeyError("what a pity")


@pytest.mark.parametrize("name", exercises())
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (as_text, r"it should return .* it returns something of type str\b"),
        (first_part(as_text), r"(it should return .* )?it returns something of type str\b"),
        (first_part(of_another_shape), r"the shape of what it returns is \(2|it returns something of type Tensor"),
        (
            first_part(of_another_dtype),
            r"the dtype of what it returns is torch\.\w+, and it should be|a number, .* of type complex|\(int\)",
        ),
        (
            first_part(not_a_number),
            r"it gives NaN|should be torch\.(int64|bool)|a whole number \(int\), .* of type float",
        ),
        (stops, r"it stops with KeyError: 'what a pity'"),
        (lambda result: sys.exit(3), r"it stops with SystemExit: 3\b"),
    ],
    ids=["type", "part_of_another_type", "shape", "dtype", "nan", "exception", "exit"],
)
def test_odd_results_are_met_kindly_everywhere(name, change, words, verdict):
    reference = exercises()[name].reference
    right, line = verdict(name, lambda *inputs: change(reference(*inputs)))
    assert not right and line.startswith(f"Not yet: {name}. For ")
    assert re.search(words, line)
    assert line.endswith(f"Hint: {exercises()[name].hint}")


@pytest.mark.parametrize("name", exercises())
def test_prints_are_left_out_everywhere(name, verdict):
    reference = exercises()[name].reference

    def talkative(*inputs):
        print("my inputs are", inputs)
        print("a warning", file=sys.stderr)
        return reference(*inputs)

    right, line = verdict(name, talkative)
    assert right and line == f"Right: {name}. (What your function prints is left out here; call it yourself to see it.)"


@pytest.mark.parametrize("name", exercises())
def test_slow_answers_are_given_up_everywhere(name, monkeypatch, verdict):
    monkeypatch.setattr(gptcourse.exercises, "TIME_LIMIT", 0.05)

    def never_ends(*inputs):
        while True:
            with contextlib.suppress(Exception):
                inputs = inputs[::-1]

    right, line = verdict(name, never_ends)
    assert not right and line.startswith(f"Not yet: {name}. ") and "no answer after 0.05 seconds" in line


def tensors_in(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for part in value for tensor in tensors_in(part)] if isinstance(value, list | tuple) else []


DAMAGEABLE = [
    (name, parameter)
    for name, exercise in exercises().items()
    for parameter, value in zip(inspect.signature(exercise.reference).parameters, exercise.inputs()[0], strict=True)
    if tensors_in(value)
]


def test_every_exercise_with_tensors_is_watched_for_damage():
    without = {"gpt_block.init_std", "gpt_block.parameters", "gpt_block.first_loss"}  # numbers go in
    without |= {f"tuning.{name}" for name in ("schedule", "trade_off", "batch_rate", "rate_at_width")}
    without |= {"tuning.range_test", "tuning.decay_groups"}  # lists of numbers, and a model that may be trained
    without |= {f"fine_tuning.{name}" for name in ("stop_rule", "mend_split", "mend_pickle")}
    without |= {f"scaling.{name}" for name in ("flops", "days", "state_bytes", "compute_optimal")}
    without |= {f"scaling.{name}" for name in ("mend_shards", "mend_weights")}
    without |= {f"evaluation.{name}" for name in ("mend_choice", "mend_filter")}
    assert {name for name, _ in DAMAGEABLE} == exercises().keys() - without


@pytest.mark.parametrize(("name", "parameter"), DAMAGEABLE)
def test_changed_input_is_named_even_when_the_result_is_right(name, parameter, verdict):
    reference = exercises()[name].reference
    place = list(inspect.signature(reference).parameters).index(parameter)

    def in_place(*inputs):
        result = reference(*copy.deepcopy(inputs))
        with torch.no_grad():
            tensors_in(inputs[place])[-1].add_(1)
        return result

    right, line = verdict(name, in_place)
    assert not right and f"changes its input {parameter} in place" in line


@pytest.mark.parametrize(
    "damage", [lambda b: b.pop(), lambda b: b.clear(), lambda b: setattr(b[0][1], "data", b[0][1].data.double())]
)
def test_list_of_batches_is_watched_too(damage, verdict):
    def in_place(model, batches):
        result = exercises()["gpt_block.mend_percent"].reference(model, batches)
        damage(batches)
        return result

    right, line = verdict("gpt_block.mend_percent", in_place)
    assert not right and "changes its input batches in place" in line


def test_numbers_may_come_as_tensors(verdict):
    assert verdict("gpt_block.first_loss", lambda vocab_size: torch.tensor(float(vocab_size)).log())[0]
    assert not verdict("gpt_block.first_loss", lambda vocab_size: vocab_size > 1)[0]


def test_counts_must_be_exact(verdict):
    count = exercises()["gpt_block.parameters"].reference
    right, line = verdict("gpt_block.parameters", lambda *sizes: count(*sizes) + 1)
    assert not right and "124439809 instead of 124439808" in line


def never_ends(q, k):
    while True:
        with contextlib.suppress(Exception):
            q = q + 1


def test_slow_answer_is_given_up_and_the_alarm_is_as_before(monkeypatch, verdict):
    monkeypatch.setattr(gptcourse.exercises, "TIME_LIMIT", 0.1)
    before = signal.getsignal(signal.SIGALRM) if hasattr(signal, "SIGALRM") else None
    right, line = verdict("attention.scores", never_ends)
    assert not right and "no answer after 0.1 seconds" in line
    if before is not None:
        assert signal.getsignal(signal.SIGALRM) is before
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_slow_answer_is_given_up_outside_the_main_thread(monkeypatch, capsys):
    monkeypatch.setattr(gptcourse.exercises, "TIME_LIMIT", 0.1)
    release, results = threading.Event(), []

    def waits(q, k):
        release.wait()
        return q

    thread = threading.Thread(target=lambda: results.append(check("attention.scores", waits)))
    thread.start()
    thread.join()
    release.set()
    assert results == [False]
    assert "no answer after 0.1 seconds" in capsys.readouterr().out


def test_check_works_outside_the_main_thread(capsys):
    results = []
    thread = threading.Thread(target=lambda: results.append(check("attention.scores", right_scores)))
    thread.start()
    thread.join()
    assert results == [True]
    assert capsys.readouterr().out == "Right: attention.scores.\n"


def test_interrupting_the_kernel_goes_through():
    def interrupted(q, k):
        signal.raise_signal(signal.SIGINT)  # as the ■ button does
        while True:
            pass

    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            check("attention.scores", interrupted)
    finally:
        signal.signal(signal.SIGINT, before)
    if hasattr(signal, "setitimer"):
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert not progress_file().exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_what_work_raises_goes_through_outside_the_main_thread(error, capfd):
    def work():
        raise error("raised by the work")

    caught = []

    def outside():
        try:
            within(60, work)
        except BaseException as raised:
            caught.append(raised)

    thread = threading.Thread(target=outside)
    thread.start()
    thread.join()
    assert [(type(raised), str(raised)) for raised in caught] == [(error, "raised by the work")]
    assert capfd.readouterr().err == ""


def test_random_numbers_of_the_notebook_are_left_alone(capsys):
    torch.manual_seed(0)
    expected = torch.rand(4)
    torch.manual_seed(0)
    check("gpt_block.mend_twice", gpt_block.twice_as_it_stands)
    assert torch.equal(torch.rand(4), expected)


def test_answers_may_train_a_model_of_their_own(verdict):
    def with_own_step(model, optimizer, batches):
        losses = []
        for x, y in batches:
            model.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss)
        return torch.stack(losses)

    assert verdict("gpt_block.mend_swing", with_own_step)[0]


def cells_of(module):
    path = Path(__file__).parents[1] / "notebooks" / NOTEBOOKS[module]
    if not path.exists():
        pytest.skip(f"{path.name} is not written yet")
    cells = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        for tag in cell["metadata"].get("tags", []):
            kind, _, name = tag.partition(":")
            if kind in ("exercise", "mistake", "solution"):
                assert ("task" if kind != "solution" else kind, name) not in cells, f"{tag} stands twice"
                cells["task" if kind != "solution" else kind, name] = (kind, "".join(cell["source"]))
    return cells


@pytest.mark.parametrize("module", NOTEBOOKS)
def test_notebook_holds_exactly_the_registered_exercises(module):
    cells = cells_of(module)
    registered = {name for name in exercises() if name.startswith(f"{module}.")}
    assert {name for part, name in cells if part == "task"} == registered
    assert {name for part, name in cells if part == "solution"} == registered
    for (part, name), (kind, source) in cells.items():
        if part == "task":
            assert (kind == "mistake") is (".mend_" in name)
            assert f'check("{name}", ' in source


@pytest.mark.parametrize("name", exercises())
def test_solution_in_the_notebook_is_accepted_and_its_task_is_not(name, verdict):
    cells = cells_of(name.split(".")[0])
    (function_name,) = re.findall(rf'check\("{name}", (\w+)\)', cells["task", name][1])
    (fence,) = re.findall(r"```python\n(.*?)```", cells["solution", name][1], re.DOTALL)
    namespace = {}
    exec(fence, namespace)
    assert verdict(name, namespace[function_name])[0]

    # The task as it stands: its function alone, without the call of check and the prints of a mistake.
    namespace = {"math": math, "torch": torch, "nn": nn, "F": nn.functional}
    (task,) = [
        node
        for node in ast.parse(cells["task", name][1]).body
        if isinstance(node, ast.FunctionDef) and node.name == function_name
    ]
    exec(compile(ast.Module([task], []), name, "exec"), namespace)
    forget_progress()
    assert not verdict(name, namespace[function_name])[0]
    assert not progress_file().exists(), "what nobody has touched is not a try"


# ---- progress


def test_progress_counts_tries_up_to_the_first_right_answer(verdict):
    wrong, right = (lambda q, k: q @ k.mT), exercises()["attention.scores"].reference
    assert progress().parts["01 · Attention"]["attention.scores"] == Record(0, None)
    for answer in (wrong, torch.ones(1), lambda q: q, lambda q, k: 1 / 0):
        check("attention.scores", answer)
    assert progress().parts["01 · Attention"]["attention.scores"] == Record(4, None)
    for answer in (right, wrong, right):
        check("attention.scores", answer)
    assert progress().parts["01 · Attention"]["attention.scores"] == Record(5, date.today().isoformat())
    others = {name for part in progress().parts.values() for name, record in part.items() if record == Record()}
    assert others == exercises().keys() - {"attention.scores"}


def test_a_slow_answer_is_a_try(monkeypatch, verdict):
    monkeypatch.setattr(gptcourse.exercises, "TIME_LIMIT", 0.05)
    verdict("attention.scores", never_ends)
    assert progress().parts["01 · Attention"]["attention.scores"].tries == 1


def test_progress_has_a_part_for_each_notebook_under_its_title():
    folder = Path(__file__).parents[1] / "notebooks"
    for (title, records), (module, file) in zip(progress().parts.items(), NOTEBOOKS.items(), strict=True):
        first_line = "".join(json.loads((folder / file).read_text(encoding="utf-8"))["cells"][0]["source"])
        assert first_line.startswith(f"# {title}\n")
        assert list(records) == [name for name in exercises() if name.startswith(f"{module}.")]


def test_progress_as_text():
    shown = Progress({"00 · Start": {"a": Record(2, "2026-01-31"), "long_name": Record(1), "b": Record()}}, "A note.")
    assert repr(shown).splitlines() == [
        "00 · Start: 1 of 3 solved",
        "  a          ✓ solved 2026-01-31  tries: 2",
        "  long_name  tried                tries: 1",
        "  b          to do                tries: 0",
        "A note.",
    ]
    assert repr(Progress({})) == ""


def test_progress_as_html_shows_every_text_as_text():
    bad = "<img src=x onerror=alert(1)>&"
    html = Progress({bad: {bad: Record(1, bad)}}, bad)._repr_html_()
    assert "<img" not in html
    assert html.count("&lt;img src=x onerror=alert(1)&gt;&amp;") == 4
    assert html.count("<tr>") == html.count("</tr>") == 3
    assert "1 of 1 solved" in html


def test_forgetting_starts_again():
    check("attention.scores", exercises()["attention.scores"].reference)
    assert "1 of" in repr(progress())
    forget_progress()
    forget_progress()
    assert progress() == Progress(progress().parts, "")
    assert {record for part in progress().parts.values() for record in part.values()} == {Record()}


def test_progress_lies_with_the_user_and_not_in_the_shared_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("GPTCOURSE_CACHE", str(tmp_path / "shared"))
    monkeypatch.delenv("GPTCOURSE_PROGRESS")
    assert not progress_file().is_relative_to(tmp_path)
    assert "gptcourse" in progress_file().parts
    monkeypatch.setenv("GPTCOURSE_PROGRESS", "~/course")
    assert progress_file() == Path("~/course/progress.json").expanduser()


GOOD = {"tries": 2, "solved": "2026-01-31"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[1, 2]",
        b"\xff\xfe\xfd",
        b"\x00" * 100,
        b"[" * 100_000,
        b'{"version": 1}',
        b'{"version": "new", "exercises": {}}',
        b'{"version": 1, "exercises": [["attention.scores", 3]]}',
        b'{"version": 1, "exercises": {"attention.scores": {"tries": ' + b"9" * 5000 + b"}}}",
    ],
)
def test_damaged_file_is_begun_anew(content, verdict):
    progress_file().parent.mkdir()
    progress_file().write_bytes(content)
    assert repr(progress()).count("to do") == len(exercises())
    assert verdict("attention.scores", right_scores) == (True, "Right: attention.scores.")
    assert progress().parts["01 · Attention"]["attention.scores"].tries == 1


@pytest.mark.parametrize(
    "entry",
    [
        None,
        7,
        "solved",
        [1, None],
        {},
        {"tries": -1, "solved": None},
        {"tries": True, "solved": None},
        {"tries": 1.5, "solved": None},
        {"tries": math.nan, "solved": None},
        {"tries": 1, "solved": "<b>today</b>"},
        {"tries": 1, "solved": 20260131},
        {"tries": 1, "solved": None, "more": 1},
    ],
)
def test_damaged_entry_is_dropped_and_the_others_are_kept(entry):
    progress_file().parent.mkdir()
    entries = {"attention.scores": entry, "attention.heads": GOOD, "in.a_later_notebook": GOOD}
    progress_file().write_text(json.dumps({"version": FORMAT, "exercises": entries}))
    assert progress().parts["01 · Attention"]["attention.scores"] == Record()
    remember("attention.scores", False)
    kept = json.loads(progress_file().read_text())["exercises"]
    assert kept == entries | {"attention.scores": {"tries": 1, "solved": None}}


def test_file_of_a_newer_course_is_left_alone_and_told_once_it_matters(verdict):
    progress_file().parent.mkdir()
    text = json.dumps({"version": FORMAT + 1, "solved": ["everything"]})
    progress_file().write_text(text)
    assert verdict("attention.scores", lambda q, k: q @ k.mT)[1].endswith("back to one.")
    right, line = verdict("attention.scores", right_scores)
    assert right and line.startswith("Right: attention.scores. (Your progress cannot be kept: a newer version")
    assert progress_file().read_text() == text
    assert "a newer version of this course" in repr(progress()) and "a newer version" in progress()._repr_html_()


@pytest.mark.parametrize("obstacle", ["a file where the folder should be", "a folder where the file should be"])
def test_file_that_cannot_be_used_never_stops_check(obstacle, verdict):
    if obstacle.startswith("a file"):
        progress_file().parent.write_text("in the way")
    else:
        progress_file().mkdir(parents=True)
    for answer, right in ((right_scores, True), (lambda q, k: q, False), (raises_to_do, False)):
        found, line = verdict("attention.scores", answer)
        assert found is right
        assert ("Your progress cannot be kept: " in line) is right
    assert repr(progress()).count("to do") == len(exercises())


@pytest.mark.parametrize("function", ["mkstemp", "replace"])
def test_full_or_locked_disk_leaves_the_old_file_whole(function, monkeypatch, verdict):
    remember("start.greedy", True)
    before = progress_file().read_bytes()

    def fail(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile if function == "mkstemp" else os, function, fail)
    right, line = verdict("attention.scores", right_scores)
    assert right and "No space left on device" in line
    assert [path.read_bytes() for path in progress_file().parent.iterdir()] == [before]


def test_kernels_that_write_at_once_leave_a_whole_file():
    program = (
        "import sys; from gptcourse.exercises.records import remember\n"
        "for i in range(100): remember(f'kernel_{sys.argv[1]}.number_{i}', True)"
    )
    command = [sys.executable, "-c", program]
    kernels = [subprocess.Popen([*command, str(i)], stderr=subprocess.PIPE, text=True) for i in range(3)]
    reads = []
    while any(kernel.poll() is None for kernel in kernels):
        with contextlib.suppress(OSError):  # not there yet; on Windows also while it is being replaced
            reads.append(json.loads(progress_file().read_text())["exercises"])
    assert [kernel.communicate()[1] for kernel in kernels] == ["", "", ""]
    last = json.loads(progress_file().read_text())["exercises"]
    assert reads and all(Record(**entry).solved for entry in last.values())
    assert list(progress_file().parent.iterdir()) == [progress_file()]
