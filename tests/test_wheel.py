"""The built wheel, away from the checkout: an editable install hides what is missing from it."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell

ROOT = Path(__file__).resolve().parents[1]
RUN = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
print(notebook.cells[-1].outputs[0].text)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """An interpreter that has the wheel and, after it on the path, the libraries that the tests themselves use."""
    folder = tmp_path_factory.mktemp("away")
    venv.create(folder / "venv", with_pip=False)
    place = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
    installed = Path(sysconfig.get_path("purelib", vars=place))
    python = Path(sysconfig.get_path("scripts", vars=place)) / Path(sys.executable).name
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(command, check=True)
    # A folder named in a .pth file is searched, but the .pth files in it, the editable install's too, are not read.
    libraries = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (installed / "libraries.pth").write_text("\n".join(sorted(libraries)), encoding="utf-8")
    return python


def test_wheel_holds_every_file_of_the_package_and_nothing_else(wheel):
    there = {path for path in (ROOT / "gptcourse").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    names = set(zipfile.ZipFile(wheel).namelist())
    held = {name for name in names if ".dist-info/" not in name}
    assert held == {path.relative_to(ROOT).as_posix() for path in there}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_wheel_runs_a_notebook_without_the_checkout(python, tmp_path):
    notebook = nbformat.read(ROOT / "notebooks" / "00_start_here.ipynb", as_version=4)
    notebook.cells.append(new_code_cell("import gptcourse\nprint(gptcourse.__file__)"))
    nbformat.write(notebook, tmp_path / "copy.ipynb")
    # No kernel of another environment, and nothing of the checkout on the path.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"JUPYTER_DATA_DIR": str(tmp_path / "data"), "JUPYTER_PATH": "", "JUPYTER_PREFER_ENV_PATH": "1"}
    command = [python, "-c", RUN, "copy.ipynb"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()).is_relative_to(python.parents[1])
