"""Write every badge, every previous/next line and every install cell from the address in pyproject.toml.

    python tools/badges.py            write them
    python tools/badges.py --check    say what is out of date, change nothing

`[project.urls]` in pyproject.toml is the one place for the repository's address. In each notebook this writes the two
lines under the title (cell `header`) and the install cell (cell `install`); in README.md and CITATION.cff the address
itself, and in README.md the badges and the links to the page without a kernel too.
"""

import argparse
import re
import sys
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import nbformat

ROOT = Path(__file__).resolve().parents[1]
BRANCH = "main"
BADGES = "[![Open in Colab]"
# The scene of the page without a kernel (site/) that shows what a notebook explains.
SCENES = {
    "00_start_here.ipynb": "write",
    "02_attention.ipynb": "inside",
    "03_gpt_block.ipynb": "inside",
    "04_training_a_gpt.ipynb": "learn",
    "05_learning_rate_and_batch_size.ipynb": "tune",
    "07_decoding_and_generation.ipynb": "write",
}
INSTALL = """\
# Does nothing where the course is installed. On Colab it fetches the course alone: torch and numpy stay as they are.
import importlib.util

if importlib.util.find_spec("gptcourse") is None:
    %pip install --quiet --no-deps "git+{address}"
    importlib.invalidate_caches()"""


def repository(root=ROOT):
    """Return the repository's address, `https://host/owner/name`, out of pyproject.toml."""
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]


def badges(address, name):
    """Return the line of badges that opens `notebooks/<name>` on Colab and on Binder."""
    slug = urlsplit(address).path.strip("/")
    colab = f"https://colab.research.google.com/github/{slug}/blob/{BRANCH}/notebooks/{name}"
    binder = f"https://mybinder.org/v2/gh/{slug}/{BRANCH}?urlpath=lab/tree/notebooks/{name}"
    return (
        f"{BADGES}(https://colab.research.google.com/assets/colab-badge.svg)]({colab})"
        f" [![Open in Binder](https://mybinder.org/badge_logo.svg)]({binder})"
    )


def page(address):
    """Return the address of the page without a kernel: GitHub Pages of the repository."""
    owner, name = urlsplit(address).path.strip("/").split("/")
    return f"https://{owner}.github.io/{name}/"


def title(notebook):
    """Return the first line of the header cell without its `#`."""
    return notebook.cells[0].source.split("\n", 1)[0].lstrip("# ").strip()


def neighbours(paths, titles, i, address):
    """Return the line that links to the notebook before number `i`, the one after it, and its scene of the page."""
    links = []
    if i > 0:
        links.append(f"Previous: [{titles[i - 1]}]({paths[i - 1].name})")
    if i + 1 < len(paths):
        links.append(f"Next: [{titles[i + 1]}]({paths[i + 1].name})")
    if scene := SCENES.get(paths[i].name):
        links.append(f"[The same in your browser, without a kernel]({page(address)}#{scene})")
    return " · ".join(links)


def header(source, badge_line, neighbour_line):
    """Return the header cell's text with the generated lines under its title, whatever stood there before."""
    first, *rest = source.split("\n")
    rest = [line for line in rest if not line.startswith((BADGES, "Previous: ", "Next: "))]
    body = re.sub(r"\n{3,}", "\n\n", "\n".join(rest)).strip()
    return "\n\n".join(part for part in (first, badge_line, neighbour_line, body) if part)


def write_generated_cells(notebook, address, name, neighbour_line):
    """Fill the cells `header` and `install` of `notebook` in place.

    Raises ValueError when the notebook does not begin with these two.
    """
    if [cell.id for cell in notebook.cells[:2]] != ["header", "install"]:
        raise ValueError(f"{name}: the first two cells must have the ids 'header' (Markdown) and 'install' (code).")
    first, install = notebook.cells[:2]
    first.source = header(first.source, badges(address, name), neighbour_line)
    install.source = INSTALL.format(address=address)
    install.metadata = {"tags": ["nbval-skip"]}


def readme(text, address):
    """Return README.md's text with the repository's address and all badges made anew."""
    text = re.sub(r"(?<=git clone )\S+", address, text)
    text = re.sub(r"https://[\w-]+\.github\.io/[\w.-]+/", page(address), text)
    pattern = re.escape(BADGES) + r"[^|\n]*?/notebooks/(\w+\.ipynb)\)(?: \[!\[Open in Binder\][^|\n]*?\.ipynb\))?"
    return re.sub(pattern, lambda match: badges(address, match[1]), text)


def generated(root=ROOT):
    """Return a dict from each file that holds generated text to the text it must have."""
    address = repository(root)
    paths = sorted((root / "notebooks").glob("*.ipynb"))
    notebooks = [nbformat.read(path, as_version=4) for path in paths]
    titles = [title(notebook) for notebook in notebooks]
    document, citation = root / "README.md", root / "CITATION.cff"
    texts = {document: readme(document.read_text(encoding="utf-8"), address)}
    texts[citation] = re.sub(r'(?<=repository-code: ")[^"]+', address, citation.read_text(encoding="utf-8"))
    for i, (path, notebook) in enumerate(zip(paths, notebooks, strict=True)):
        write_generated_cells(notebook, address, path.name, neighbours(paths, titles, i, address))
        texts[path] = nbformat.writes(notebook) + "\n"
    return texts


def main(arguments=None):
    """Write what is out of date, or with `--check` list it. Return the number of such files under `--check`, else 0."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail when something is out of date")
    check = parser.parse_args(arguments).check
    stale = {path: text for path, text in generated().items() if path.read_text(encoding="utf-8") != text}
    for path, text in stale.items():
        print(f"{path.relative_to(ROOT)}: {'out of date, run python tools/badges.py' if check else 'written'}")
        if not check:
            path.write_text(text, encoding="utf-8", newline="\n")
    return len(stale) if check else 0


if __name__ == "__main__":
    sys.exit(main())
