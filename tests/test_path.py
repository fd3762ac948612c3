"""What a learner carries from notebook to notebook: right answers that later cells call, and the chart of losses."""

import importlib.util
import json
import os

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from pictures import svg_of

from gptcourse.drawings.board import ladder
from gptcourse.exercises import LossBoard, answers, check, exercises, forget_progress, mine
from gptcourse.exercises.answers import answers_file
from gptcourse.exercises.records import FORMAT, RENAMED, Record, progress_file, read_records, remember, under_new_names

RIGHT = """
def my_scores(q, k):
    return torch.einsum("...td,...sd->...ts", q, k) / math.sqrt(q.shape[-1])
"""


@pytest.fixture(autouse=True)
def own_progress(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTCOURSE_PROGRESS", str(tmp_path / "progress"))
    monkeypatch.setattr(answers, "right", {})


def written(tmp_path, source, name):
    """Return a function as a cell would define it: with its source in a file, and torch imported elsewhere."""
    path = tmp_path / "cell.py"
    path.write_text(f"import torch\nfrom torch import nn\nimport math\n{source}")
    spec = importlib.util.spec_from_file_location("cell", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def as_in_a_new_kernel(monkeypatch):
    monkeypatch.setattr(answers, "right", {})


def test_what_was_right_is_called_in_this_notebook_and_in_the_next(tmp_path, monkeypatch, capsys):
    answer = written(tmp_path, RIGHT, "my_scores")
    assert check("attention.scores", answer)
    assert mine("attention.scores") is answer
    as_in_a_new_kernel(monkeypatch)
    capsys.readouterr()
    again = mine("attention.scores")
    q, k = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    assert again is not answer and torch.equal(again(q, k), answer(q, k)) and capsys.readouterr().out == ""


CELLS = [
    """
import torch
from torch import nn
from gptcourse.exercises import check, mine

class Projections(nn.Module):
    pass

class MyHead(nn.Module):
    def __init__(self, n_embd, head_size):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(n_embd, head_size, bias=False) for _ in range(3))

    def forward(self, x):
        q, k, v = self.query(x), self.key(x), self.value(x)
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

check("attention.head", MyHead)
print(mine("attention.head") is MyHead)
""",
    """
from gptcourse.exercises import answers
answers.right.clear()  # as in the next notebook
again = mine("attention.head")
print(again is not MyHead, again(4, 2)(torch.ones(1, 3, 4)).shape)
""",
]


def test_a_class_of_a_cell_is_kept_for_the_next_notebook(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    NotebookClient(notebook).execute(env=os.environ | {"GPTCOURSE_PROGRESS": str(tmp_path / "progress")})
    checked, *rest = [output for cell in notebook.cells for output in cell.outputs]
    assert checked.data["text/plain"] == "Right: attention.head."
    assert "".join(output.text for output in rest) == "True\nTrue torch.Size([1, 3, 2])\n"


def test_before_that_the_solution_stands_in_and_says_so(capsys):
    assert not check("attention.scores", lambda q, k: q)
    capsys.readouterr()
    assert mine("attention.scores") is exercises()["attention.scores"].reference
    assert capsys.readouterr().out == "attention.scores is not solved yet: the course's solution stands in for yours.\n"


@pytest.mark.parametrize(
    "source",
    ["def my_scores(q, k):\n    return helper_of_its_notebook(q, k)", "def my_scores(q, k):\n    return q", "def my_"],
)
def test_a_kept_answer_that_fails_here_is_replaced_by_the_solution(source, capsys):
    answers_file().parent.mkdir(parents=True)
    answers_file().write_text(json.dumps({"attention.scores": {"calls": "my_scores", "source": source}}))
    assert mine("attention.scores") is exercises()["attention.scores"].reference
    assert "does not run in this notebook" in capsys.readouterr().out


HELPED = """
from collections import OrderedDict as Ordered

SCALE = 0.5


def half(x):
    return Ordered(x=x * SCALE)["x"]


@torch.no_grad()
def my_scores(q, k):
    return half(2 * (q @ k.mT)) / math.sqrt(q.shape[-1])
"""


def test_an_answer_is_kept_with_what_it_uses_of_its_own_cells(tmp_path, monkeypatch, capsys):
    assert check("attention.scores", written(tmp_path, HELPED, "my_scores"))
    as_in_a_new_kernel(monkeypatch)
    q, k = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    torch.testing.assert_close(mine("attention.scores")(q, k), q @ k.mT / 2)
    assert "stands in" not in capsys.readouterr().out


USES = {
    "C": "from math import sqrt\n\n\ndef my_scores(q, k):\n    return q @ k.mT / sqrt(q.shape[-1])",
    "torch's": "from torch import sqrt\n\n\ndef my_scores(q, k):\n"
    "    return q @ k.mT / sqrt(torch.tensor(q.shape[-1]))",
    "infinity": "NONE = float('-inf')\n\n\ndef my_scores(q, k):\n"
    "    return (q @ k.mT / q.shape[-1] ** 0.5).clamp(min=NONE)",
}


@pytest.mark.parametrize("source", USES.values(), ids=USES)
def test_functions_of_c_and_infinity_are_kept_too(source, tmp_path, monkeypatch, capsys):
    assert check("attention.scores", written(tmp_path, source, "my_scores"))
    as_in_a_new_kernel(monkeypatch)
    q, k = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    torch.testing.assert_close(mine("attention.scores")(q, k), q @ k.mT / 2)
    assert "stands in" not in capsys.readouterr().out


def test_a_lambda_is_right_and_kept_while_the_kernel_runs(tmp_path, capsys):
    line = 'check("attention.scores",\n      lambda q, k: q @ k.mT / q.shape[-1] ** 0.5)\ndone = True'
    assert written(tmp_path, f"from gptcourse.exercises import check\n{line}", "done")
    assert "Right: attention.scores" in capsys.readouterr().out and not answers_file().exists()


def test_a_local_variable_is_no_other_cells_function(tmp_path):
    source = "def scores(q, k):\n    return 1\n\n\ndef my_scores(q, k):\n"
    source += "    scores = q @ k.mT\n    return scores / q.shape[-1] ** 0.5"
    assert check("attention.scores", written(tmp_path, source, "my_scores"))
    assert "def scores" not in answers.kept_sources()["attention.scores"]["source"]


def test_a_file_that_cannot_be_read_is_not_overwritten(tmp_path, monkeypatch):
    assert check("attention.scores", written(tmp_path, RIGHT, "my_scores"))
    LossBoard().add("a model", 2.0)

    def unreadable(*_):
        raise PermissionError(13, "Permission denied")

    before = {path: path.read_bytes() for path in answers_file().parent.iterdir() if path.is_file()}
    monkeypatch.setattr("gptcourse.exercises.answers.read_entries", unreadable)
    monkeypatch.setattr("gptcourse.exercises.losses.read_entries", unreadable)
    as_in_a_new_kernel(monkeypatch)
    answers.keep_answer("attention.scores", written(tmp_path, RIGHT.replace("torch.", "1 * torch."), "my_scores"), {})
    assert answers.kept_sources() == {}
    changed = {path.name for path, content in before.items() if path.read_bytes() != content}
    assert not changed


@pytest.mark.parametrize("damage", ["{", "[1]", '{"attention.scores": 3}', '{"attention.scores": {"calls": 1}}'])
def test_a_damaged_file_of_answers_counts_as_none(damage, capsys):
    answers_file().parent.mkdir(parents=True)
    answers_file().write_text(damage)
    assert mine("attention.scores") is exercises()["attention.scores"].reference


def test_what_has_no_source_is_kept_while_the_kernel_runs():
    namespace = {}
    exec("def scores(q, k):\n    return q @ k.mT / q.shape[-1] ** 0.5", namespace)
    assert check("attention.scores", namespace["scores"])
    assert mine("attention.scores") is namespace["scores"] and not answers_file().exists()


def test_forgetting_forgets_the_answers(tmp_path):
    assert check("attention.scores", written(tmp_path, RIGHT, "my_scores"))
    forget_progress()
    assert not answers_file().exists() and mine("attention.scores") is exercises()["attention.scores"].reference


@pytest.mark.parametrize("old, new", RENAMED.items())
def test_what_was_solved_under_an_earlier_name_is_still_known(old, new, capsys):
    progress_file().parent.mkdir(parents=True)
    entry = {"tries": 2, "solved": "2026-01-31"}
    progress_file().write_text(json.dumps({"version": FORMAT, "exercises": {old: entry}}))
    assert read_records()[0] == {new: Record(**entry)} and new in exercises() and old not in exercises()
    assert remember("attention.scores", False) == "" and read_records()[0][new] == Record(**entry)
    assert mine(old) is exercises()[new].reference
    assert check(old, exercises()[new].reference) and capsys.readouterr().out.endswith(f"Right: {new}.\n")


def test_what_was_solved_under_todays_name_goes_before():
    records = {"gpt_block.shift": 1, "first_model.shift": 2, "start.greedy": 3}
    assert under_new_names(records) == {"first_model.shift": 2, "start.greedy": 3}


def test_an_answer_kept_under_an_earlier_name_is_still_called():
    source = "def my_shift(tokens):\n    return tokens[:, :-1], tokens[:, 1:]"
    answers_file().parent.mkdir(parents=True)
    answers_file().write_text(json.dumps({"gpt_block.shift": {"calls": "my_shift", "source": source}}))
    assert mine("first_model.shift").__name__ == "my_shift"


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"attention\.scores"):
        mine("attention.score")


def test_the_board_grows_from_notebook_to_notebook():
    board = LossBoard()
    board.add("bigram", 2.5, kind="counting")
    board.add("trigram", 2.1, kind="counting")
    board.add("bigram, trained", 2.51)
    later = LossBoard()
    later.add("your GPT", 1.6)
    assert list(later.losses) == ["bigram", "trigram", "bigram, trained", "your GPT"]
    assert later.new == {"your GPT"} and later.best_count == 2.1
    html = svg_of(later._repr_mimebundle_()["text/html"])
    assert html.index("bigram") < html.index("trigram") < html.index("your GPT")
    assert "best table of characters: 2.100" in html


def test_a_board_that_cannot_be_kept_works(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("GPTCOURSE_PROGRESS", str(tmp_path / "file" / "folder"))
    board = LossBoard()
    with pytest.raises(ValueError, match="No table of counts"):
        _ = board.best_count
    board.add("unigram", 3.3, kind="counting")
    assert board.best_count == 3.3 and LossBoard().losses == {}


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -0.1])
def test_an_impossible_loss_is_refused(loss):
    with pytest.raises(ValueError, match="finite number"):
        LossBoard().add("a model", loss)


def test_the_chart_gives_bits_and_says_everything_in_words():
    drawing = ladder({"coin <2>": (0.6931, "counting")}, set())
    assert ladder({"perfect": (0.0, "trained")}, set()).svg()
    assert "0.693 (1.00)" in drawing.svg() and "coin &lt;2&gt;" in drawing.svg() and "<2>" not in drawing.svg()
    assert drawing.description == "Held-out loss in nats per character: coin <2> 0.693."
