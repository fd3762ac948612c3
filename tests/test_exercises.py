"""The exercises accept what is right, and meet everything else with one kind line."""

import ast
import contextlib
import json
import math
import re
import signal
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn
from wrong_answers import WRONG_ANSWERS, attention, gpt_block, start  # the imports fill the list

import gptcourse.exercises
from gptcourse.exercises import check, exercises
from gptcourse.model import GPT, GPTConfig

NOTEBOOKS = {"start": "00_start_here.ipynb", "attention": "01_attention.ipynb", "gpt_block": "02_gpt_block.ipynb"}
ALL_MISTAKES = [(name, m) for name, exercise in exercises().items() for m in exercise.mistakes]


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


def test_every_exercise_has_three_wrong_answers_and_enough_exercises_are_there():
    count = Counter(name for name, _, _ in WRONG_ANSWERS)
    assert {name for name in exercises() if count[name] < 3} == set()
    tasks = Counter((name.split(".")[0], ".mend_" in name) for name in exercises())
    assert tasks["attention", False] >= 6 and tasks["attention", True] >= 4
    assert tasks["gpt_block", False] >= 6 and tasks["gpt_block", True] >= 6
    assert {answer.__module__ for _, answer, _ in WRONG_ANSWERS} == {m.__name__ for m in (start, attention, gpt_block)}


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
def test_stub_is_still_to_do(stub, verdict):
    right, line = verdict("attention.scores", stub)
    assert not right
    assert line.startswith("To do: attention.scores. Return the dot product of each query with each key")


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


def test_changed_input_is_named_even_when_the_result_is_right(verdict):
    def in_place(q, k):
        return q.div_(math.sqrt(q.shape[-1])) @ k.mT

    right, line = verdict("attention.scores", in_place)
    assert not right and "changes its input q in place" in line


def test_numbers_may_come_as_tensors(verdict):
    assert verdict("gpt_block.first_loss", lambda vocab_size: torch.tensor(float(vocab_size)).log())[0]
    assert not verdict("gpt_block.first_loss", lambda vocab_size: vocab_size > 1)[0]


def test_counts_must_be_exact(verdict):
    count = exercises()["gpt_block.parameters"].reference
    right, line = verdict("gpt_block.parameters", lambda *sizes: count(*sizes) + 1)
    assert not right and "124439809 instead of 124439808" in line


def test_prints_of_the_answer_are_left_out(verdict):
    def talkative(q, k):
        print("q is", q)
        print("a warning", file=sys.stderr)
        return right_scores(q, k)

    right, line = verdict("attention.scores", talkative)
    assert right and "q is" not in line and "left out here" in line


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
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check("attention.scores", interrupted)


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
    assert not verdict(name, namespace[function_name])[0]
