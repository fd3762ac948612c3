"""The tools that keep notebooks clean and their links right, tried on small notebooks made here."""

import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from gptcourse.explorers.panel import STILL
from tools import badges, notebooks

PROJECT = '[project.urls]\nRepository = "https://github.com/someone/fork"\n'
README = (
    "git clone https://old.example/old\n"
    "| [![Open in Colab](x)](https://old/notebooks/01_two.ipynb) [![Open in Binder](y)](https://old/01_two.ipynb) |\n"
    "| [![Open in Colab](x)](https://old/notebooks/00_one.ipynb) | tail\n"
)


@pytest.fixture
def course(tmp_path):
    """A checkout with two notebooks whose generated parts are not written yet."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "pyproject.toml").write_text(PROJECT, encoding="utf-8")
    (tmp_path / "README.md").write_text(README, encoding="utf-8")
    (tmp_path / "CITATION.cff").write_text('repository-code: "https://old"\n', encoding="utf-8")
    for name in ("00_one", "01_two"):
        cells = [new_markdown_cell(f"# Title of {name}\n\nBody.", id="header"), new_code_cell("", id="install")]
        nbformat.write(new_notebook(cells=cells), tmp_path / "notebooks" / f"{name}.ipynb")
    return tmp_path


def write_all(course):
    texts = badges.generated(course)
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    return {path.name: text for path, text in texts.items()}


def test_badges_derive_from_the_address(course):
    texts = write_all(course)
    assert "old" not in texts["README.md"] + texts["CITATION.cff"]
    assert (
        texts["README.md"].count("colab.research.google.com/github/someone/fork/blob/main/notebooks/00_one.ipynb") == 1
    )
    assert texts["README.md"].count("mybinder.org/v2/gh/someone/fork/main?urlpath=lab/tree/notebooks/01_two.ipynb") == 1
    assert texts["README.md"].endswith(" | tail\n")
    assert texts["CITATION.cff"] == 'repository-code: "https://github.com/someone/fork"\n'
    install = nbformat.reads(texts["01_two.ipynb"], as_version=4).cells[1]
    assert '--no-deps "git+https://github.com/someone/fork"' in install.source
    assert install.metadata.tags == ["nbval-skip"]


def test_writing_the_generated_parts_twice_changes_nothing(course):
    assert write_all(course) == write_all(course)


def test_neighbours_are_linked_by_their_titles(course):
    texts = write_all(course)
    first, second = (
        nbformat.reads(texts[f"{name}.ipynb"], as_version=4).cells[0].source for name in ("00_one", "01_two")
    )
    assert first.split("\n\n")[2:] == ["Next: [Title of 01_two](01_two.ipynb)", "Body."]
    assert second.split("\n\n")[2:] == ["Previous: [Title of 00_one](00_one.ipynb)", "Body."]


def test_a_notebook_links_to_its_scene_of_the_page_and_the_scene_back(course, monkeypatch):
    monkeypatch.setattr(badges, "SCENES", {"01_two.ipynb": "write"})
    (course / "README.md").write_text("[page](https://old.github.io/course/) [other](https://other.example/x/)")
    texts = write_all(course)
    assert "(https://someone.github.io/fork/#write)" in texts["01_two.ipynb"]
    assert "github.io" not in texts["00_one.ipynb"]
    assert texts["README.md"] == "[page](https://someone.github.io/fork/) [other](https://other.example/x/)"


def test_scenes_and_notebooks_that_link_to_each_other_exist():
    app = (badges.ROOT / "site" / "src" / "App.svelte").read_text(encoding="utf-8")
    notebook_of = dict(re.findall(r'(\w+): \{ scene: \w+, notebook: "(\w+)" \}', app))
    names = {path.name for path in (badges.ROOT / "notebooks").glob("*.ipynb")}
    assert len(notebook_of) == 4 and set(badges.SCENES.values()) == set(notebook_of)
    assert {f"{name}.ipynb" for name in notebook_of.values()} <= set(badges.SCENES) <= names


def test_notebook_without_the_first_two_cells_is_refused(course):
    path = course / "notebooks" / "00_one.ipynb"
    nbformat.write(new_notebook(cells=[new_markdown_cell("# T", id="top")]), path)
    with pytest.raises(ValueError, match=r"00_one\.ipynb: the first two cells"):
        badges.generated(course)


def saved(path, *outputs, count=1, **metadata):
    """Write a notebook of one cell with `outputs` and return its path."""
    notebook = new_notebook(cells=[new_code_cell("1", id="one", execution_count=count, outputs=list(outputs))])
    notebook.metadata = nbformat.from_dict(notebooks.METADATA | metadata)
    nbformat.write(notebook, path)
    return path


WIDGET = new_output("display_data", data={notebooks.WIDGET_VIEW: {}, "text/plain": "IntSlider()"})
BAR = new_output("stream", name="stderr", text=" 50%|#####     | 1/2 [00:01<00:01,  1.2s/it]")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({}, None),
        ({"outputs": [WIDGET]}, "widget"),
        ({"outputs": [BAR]}, "progress"),
        ({"widgets": {"state": {}}}, "widget"),
        ({"count": 2}, "fresh run"),
        ({"count": None}, "fresh run"),
        ({"outputs": [new_output("error", ename="E", evalue="", traceback=[])]}, "error"),
        ({"outputs": [new_output("stream", name="stderr", text="UserWarning: x")]}, "warning"),
        ({"outputs": [new_output("stream", name="stdout", text="x" * 1_000_001)]}, "larger"),
    ],
)
def test_check_says_what_is_not_as_a_fresh_run_leaves_it(tmp_path, arguments, complaint):
    arguments = dict(arguments)
    path = saved(tmp_path / "one.ipynb", *arguments.pop("outputs", ()), **arguments)
    found = notebooks.problems(path)
    assert not found if complaint is None else any(complaint in problem for problem in found)


def test_running_cleans_and_a_second_run_changes_nothing(tmp_path):
    source = """
import sys
import ipywidgets as widgets

print("kept", flush=True)
print("  0%|          | 0/2 [00:00<?, ?it/s]\\r100%|#| 2/2 [00:00<00:00, 9.9it/s]", file=sys.stderr, flush=True)
display(widgets.IntSlider())
2 + 2
"""
    path = tmp_path / "one.ipynb"
    cell = new_code_cell(source.strip(), id="one", metadata={"tags": ["nbval-check-output"], "scrolled": True})
    nbformat.write(
        new_notebook(cells=[cell], metadata={"language_info": {"name": "python", "version": "3.11.7"}}), path
    )
    assert notebooks.main([str(path)]) == 0
    once = path.read_bytes()
    (cell,) = nbformat.read(path, as_version=4).cells
    assert [output.output_type for output in cell.outputs] == ["stream", "execute_result"]
    assert cell.outputs[0].text == "kept\n"
    assert cell.metadata == {"tags": ["nbval-check-output"]}
    assert b"3.11.7" not in once
    assert notebooks.main([str(path)]) == 0
    assert path.read_bytes() == once
    assert notebooks.main(["--check", str(path)]) == 0


def test_a_cell_with_a_panel_or_a_prediction_is_not_deleted_by_a_key(tmp_path):
    still = new_output("display_data", data={"text/html": f'<div class="{STILL[1:]}">a picture</div>'})
    plain = new_output("display_data", data={"text/html": "<b>a table</b>"})
    cells = [new_code_cell(source, outputs=[shown]) for source, shown in (("1", still), ("1", plain))]
    cells.append(new_code_cell('predict("?", ["a", "b"], "a", "So.")'))
    cleaned = notebooks.clean(new_notebook(cells=cells)).cells
    assert [cell.metadata.get("deletable", True) for cell in cleaned] == [False, True, False]


def test_failing_notebook_is_left_as_it_was(tmp_path, capsys):
    path = saved(tmp_path / "one.ipynb")
    before = path.read_text(encoding="utf-8").replace('"1"', '"1 / 0"')
    path.write_text(before, encoding="utf-8")
    assert notebooks.main([str(path)]) == 1
    assert path.read_text(encoding="utf-8") == before
    assert "ZeroDivisionError" in capsys.readouterr().out


def test_memory_of_child_processes_is_watched(tmp_path):
    cell = new_code_cell("block = bytearray(b'x') * 300_000_000\nimport time\ntime.sleep(0.5)", id="one")
    measured = notebooks.execute(new_notebook(cells=[cell]), tmp_path)
    assert 300e6 < measured.peak_memory < 600e6
    assert measured.seconds > 0.5


def test_a_notebook_runs_without_anybodys_progress(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTCOURSE_PROGRESS", str(tmp_path / "mine"))
    cell = new_code_cell("from gptcourse.exercises import check\ncheck('start.greedy', lambda logits: 0)")
    notebooks.execute(new_notebook(cells=[cell]), tmp_path)
    assert not (tmp_path / "mine").exists()
