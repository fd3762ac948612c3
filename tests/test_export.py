"""The learner's answers, joined into one program that runs."""

import ast
import json
import subprocess
import sys

import pytest

from gptcourse.exercises import answers, check, export, mine
from gptcourse.exercises.answers import answers_file
from gptcourse.exercises.export import PARTS, write_program
from gptcourse.exercises.records import RENAMED
from tests.test_learner import PATH, pasted, solutions

USED = {*PARTS, "gpt_block.block", "gpt_block.mlp", "gpt_block.initialise", "attention.multi_head"}


@pytest.fixture(autouse=True)
def own_progress(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTCOURSE_PROGRESS", str(tmp_path / "progress"))
    monkeypatch.setattr(answers, "right", {})


def printed_by(program, tmp_path, text="The king loves the queen, and the queen loves the king.\n" * 60):
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    command = [sys.executable, str(program), str(tmp_path / "text.txt"), "--minutes", "0.05"]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8")


def test_the_learners_answers_become_a_program_that_trains_and_writes(tmp_path, capsys):
    for path in PATH[2:]:
        for name, source, called in solutions(path):
            if name in USED:
                assert check(name, getattr(pasted(tmp_path, name, source), called)), name
    program = write_program(tmp_path / "my_gpt.py")
    source = program.read_text(encoding="utf-8")
    assert all(f"# ---- my answer to {name}\n" in source for name in USED)
    assert "mine(" not in source and "solution" not in source
    done = printed_by(program, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the best table" in done.stdout and "steps: training" in done.stdout and len(done.stdout) > 400


def test_where_there_is_no_answer_the_courses_solution_stands_in(tmp_path):
    program = write_program(tmp_path / "my_gpt.py")
    source = program.read_text(encoding="utf-8")
    assert source.count("# the course's solution") == len(PARTS)
    imports = [n for n in ast.parse(source).body if isinstance(n, ast.Import | ast.ImportFrom)]
    assert answers.COMMON.keys() <= {alias.asname or alias.name for n in imports for alias in n.names}
    done = printed_by(program, tmp_path)
    assert done.returncode == 0 and "steps: training" in done.stdout, done.stderr
    assert "1,000 are needed" in printed_by(program, tmp_path, "short").stderr
    missing = subprocess.run([sys.executable, str(program), "none.txt"], capture_output=True, text=True, cwd=tmp_path)
    assert missing.returncode == 2 and "error: none.txt cannot be read" in missing.stderr


def test_two_answers_of_one_name_are_not_joined(tmp_path, monkeypatch):
    for name in ("training.loop", "training.held_out_loss"):
        (source, called) = next((s, c) for n, s, c in solutions(PATH[4]) if n == name)
        assert check(name, pasted(tmp_path, name, source.replace(called, "answer")).answer)
    assert {entry["calls"] for entry in json.loads(answers_file().read_text()).values()} == {"answer"}
    assert mine("training.loop").__name__ == "answer"
    with pytest.raises(ValueError, match=r"Two answers define answer: .* training\.held_out_loss"):
        write_program(tmp_path / "my_gpt.py")


def test_answers_may_share_a_helper_but_not_a_name_for_two_things(tmp_path, monkeypatch):
    shared, sources = "HALF = {}\n\n\ndef same(x):\n    return x * HALF * 2\n\n\n", {}
    for name, half in (("training.loop", 0.5), ("training.held_out_loss", 0.5)):
        source, called = next((s, c) for n, s, c in solutions(PATH[4]) if n == name)
        sources[name] = {"calls": called, "source": shared.format(half) + source}
    answers_file().parent.mkdir(parents=True)
    answers_file().write_text(json.dumps(sources))
    assert write_program(tmp_path / "my_gpt.py").read_text().count("def same") == 2
    sources["training.loop"]["source"] = sources["training.loop"]["source"].replace("0.5", "0.25")
    answers_file().write_text(json.dumps(sources))
    with pytest.raises(ValueError, match="Two answers define HALF"):
        write_program(tmp_path / "my_gpt.py")


def test_an_answer_of_an_older_version_finds_what_it_calls_under_its_new_name(tmp_path):
    old, new = next(iter(RENAMED.items()))
    source = f'part = mine("{old}")\n\n\ndef answer():\n    return part\n'
    sections = {}
    called = export._add(old, sections)
    assert called == new.replace(".", "_") and new in sections
    assert export.CALLED.findall(source) == [("part", old)]


def test_the_program_may_lie_in_the_home_directory_and_keeps_its_own_run(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert write_program("~/my_gpt.py") == tmp_path / "my_gpt.py"
    (source, called) = next((s, c) for n, s, c in solutions(PATH[4]) if n == "training.loop")
    assert check("training.loop", pasted(tmp_path, "training.loop", source.replace(called, "run")).run)
    with pytest.raises(ValueError, match=r"^Two answers define run"):
        write_program(tmp_path / "other.py")
