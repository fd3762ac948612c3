"""What every notebook keeps to. That each one runs is nbval's part: plain pytest executes them all."""

import ast
import json
import re

import nbformat
import pytest

from gptcourse import explorers
from gptcourse.corpora import support
from gptcourse.exercises import check, exercises
from tools import notebooks

PATHS = notebooks.all_notebooks()
TAGS = re.compile(r"nbval-check-output|nbval-skip|(exercise|mistake|solution):[a-z_]+\.[a-z_0-9]+")
by_name = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def source_of_code(notebook):
    """Return all Python of `notebook`; lines that only IPython knows are left out."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code" and cell.id != "install"]
    return re.sub(r"^\s*[%!].*$", "", "\n".join(cells), flags=re.MULTILINE)


def tagged(notebook, *kinds):
    """Return a list of (kind, exercise name, cell) for the cells with a tag `kind:name`."""
    tags = [(tag.partition(":"), cell) for cell in notebook.cells for tag in cell.metadata.get("tags", [])]
    return [(kind, name, cell) for (kind, _, name), cell in tags if kind in kinds]


def all_exercises():
    return [
        pytest.param(path, name, id=f"{path.stem[:2]}-{name}")
        for path in PATHS
        for _, name, _ in tagged(read(path), "exercise", "mistake")
    ]


def test_the_notebooks_of_this_course_are_here():
    names = ["00_start_here", "01_first_language_model", "02_attention", "03_gpt_block", "04_training_a_gpt"]
    names += ["05_learning_rate_and_batch_size", "06_tune_your_own_model", "07_decoding_and_generation"]
    names += ["08_fine_tuning", "09_preferences_and_reasoning", "10_scaling_up", "11_evaluation_and_safety"]
    names += ["12_from_gpt3_to_today"]
    assert [path.stem for path in PATHS] == names


@by_name
def test_committed_as_one_fresh_run_in_order_leaves_it(path):
    assert notebooks.problems(path) == []


@by_name
def test_valid_with_telling_and_unique_ids(path):
    notebook = read(path)
    nbformat.validate(notebook)
    ids = [cell.id for cell in notebook.cells]
    assert ids[:2] == ["header", "install"]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z0-9-]*[a-z]{2}[a-z0-9-]*", name) for name in ids), ids
    assert not any(re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4,12})*", name) for name in ids), ids  # made by a program


@by_name
def test_only_the_install_cell_is_skipped(path):
    notebook = read(path)
    tags = {(cell.id, tag) for cell in notebook.cells for tag in cell.metadata.get("tags", [])}
    assert all(TAGS.fullmatch(tag) for _, tag in tags), tags
    assert {cell for cell, tag in tags if tag == "nbval-skip"} == {"install"}
    assert not re.search(r"NBVAL_|%%capture|PYTEST_", "".join(cell.source for cell in notebook.cells))


@by_name
def test_a_cell_whose_output_is_compared_downloads_nothing(path):
    """A download shows a progress bar, the first time only: an earlier cell, not compared, asks for the same text."""
    cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
    asks = [cell for cell in cells if re.search(r"\bshakespeare\(\)|load_pretrained\(\"smollm2", cell.source)]
    assert not asks or "nbval-check-output" not in asks[0].metadata.get("tags", []), asks[0].id


@by_name
def test_a_cell_whose_output_is_compared_shows_no_widget(path):
    """What is committed holds no widgets: a cell that ends with one would have an output more when it is run."""
    compared = [cell for cell in read(path).cells if "nbval-check-output" in cell.metadata.get("tags", [])]
    assert [cell.id for cell in compared if re.search(r"^(predict|\w+_explorer)\(", cell.source, re.M)] == []


@by_name
def test_every_notebook_imports_from_the_package(path):
    nodes = ast.walk(ast.parse(source_of_code(read(path))))
    modules = [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    assert any(module.startswith("gptcourse.") for module in modules)


@by_name
def test_links_to_files_resolve(path):
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    for target in re.findall(r"\]\(([^()\s]+)\)", text):
        file = target.partition("#")[0]
        assert "://" in target or not file or (path.parent / file).exists(), target


@pytest.mark.parametrize("path", PATHS[1:], ids=lambda path: path.stem)
def test_at_least_four_exercises_and_two_mistakes_to_find(path):
    kinds = [kind for kind, _, _ in tagged(read(path), "exercise", "mistake")]
    assert kinds.count("exercise") >= 4
    assert kinds.count("mistake") >= 2


def test_every_explorer_stands_in_a_notebook():
    code = "\n".join(source_of_code(read(path)) for path in PATHS)
    names = [name for name, found in vars(explorers).items() if callable(found)]
    assert "decoding_explorer" in names and [name for name in names if not re.search(rf"\b{name}\(", code)] == []


@by_name
def test_running_all_cells_gives_no_answer_away(path):
    """A prediction computes its proof after the click; no cell below it shows the same."""
    cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
    asked = [cell for cell in cells if "predict(" in cell.source]
    assert 3 <= len(asked) <= 8
    assert all("reveal=" in cell.source and cell.metadata.jupyter.source_hidden for cell in asked)


@by_name
def test_short_cells_and_few_of_them(path):
    notebook = read(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(notebook.cells) <= 90
    assert max(len(cell.source.splitlines()) for cell in code) <= 25
    assert "★" in notebook.cells[0].source  # which parts are the core


def checked_function(cell, name):
    """Return the name of the function that the one call of `check` in `cell` gets."""
    calls = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Call)]
    calls = [node for node in calls if isinstance(node.func, ast.Name) and node.func.id == "check"]
    assert len(calls) == 1
    assert calls[0].args[0].value == name
    return calls[0].args[1].id


@pytest.mark.parametrize(("path", "name"), all_exercises())
def test_solution_is_accepted_and_what_stands_there_is_not(path, name):
    notebook = read(path)
    (stub,) = [cell for _, found, cell in tagged(notebook, "exercise", "mistake") if found == name]
    (solution,) = [cell for _, found, cell in tagged(notebook, "solution") if found == name]
    assert stub.outputs[-1].data["text/plain"].startswith(("To do: ", "Not yet: "))
    minutes = [re.search(r"· (\d+) minutes", cell.source) for cell in notebook.cells[: notebook.cells.index(stub)]]
    assert int([found for found in minutes if found][-1][1]) == exercises()[name].minutes
    (program,) = re.findall(r"\n\n```python\n(.*?)```\n\n", solution.source, flags=re.DOTALL)
    assert solution.source.startswith("<details><summary>") and solution.source.rstrip().endswith("</details>")
    namespace = {"__name__": "solution"}
    exec(compile(program, f"solution of {name}", "exec"), namespace)
    assert check(name, namespace[checked_function(stub, name)]) is True


@by_name
def test_every_solution_belongs_to_an_exercise(path):
    notebook = read(path)
    asked = sorted(name for _, name, _ in tagged(notebook, "exercise", "mistake"))
    assert sorted(name for _, name, _ in tagged(notebook, "solution")) == asked
    assert len(set(asked)) == len(asked)


OWN = ["setup", "data-own", "data-shown", "format-shown", "unseen-code", "finetune-code", "own-tune"]


def test_a_file_of_ones_own_is_fine_tuned_from_path_to_reply(tmp_path, capsys):
    """Of notebook 08: what a reader gets who writes a path into PATH and runs the cells that use it."""
    notebook = read(next(path for path in PATHS if path.stem == "08_fine_tuning"))
    cells = {cell.id: cell.source for cell in notebook.cells}
    rows = [{"prompt": dialogue.message, "response": "Please ask at the desk."} for dialogue in support(60, seed=5)]
    path = tmp_path / "tickets.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    for given, ours in (
        ("PATH = ", f"PATH = {str(path)!r}"),
        ("STEPS, BATCH, RATE = ", "STEPS, BATCH, RATE = 40, 2, 1e-3"),
    ):
        ((cell, line),) = [(i, line) for i in OWN for line in cells[i].splitlines() if line.startswith(given)]
        cells[cell] = cells[cell].replace(line, ours)
    names = {}
    for cell in OWN:
        exec(compile(cells[cell], cell, "exec"), names)
    printed = capsys.readouterr().out
    before, after = map(float, re.search(r"your confirm part: (\S+) before, (\S+) after", printed).groups())
    assert after < before - 1
    asked = {row.pairs[0][0] for row in names["own"].confirm}
    customers, replies = (re.findall(rf"^{who} +(.+)$", printed, re.MULTILINE)[-2:] for who in ("customer", "model"))
    assert set(customers) <= asked and replies == ["Please ask at the desk."] * 2
