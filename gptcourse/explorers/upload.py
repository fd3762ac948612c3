"""A file of the learner's own, brought to where the notebook runs: by a button, without the path being typed."""

import re
from pathlib import Path

import ipywidgets as widgets

from gptcourse.drawings import svg
from gptcourse.files import expand, write_file

LONGEST_NAME = 180  # bytes, without the suffix; file systems stop at 255, and an unfinished file has a longer name


def upload_text(folder):
    """Return a button that puts a text or a table into `folder`; its ``.path`` is that file, and None before.

    Whatever is chosen is only stored, under its own name as far as a file system takes it, without any folders;
    `corpora.text_file` or `own_data` says later whether it can be read.
    """
    folder = expand(folder)
    kinds = ".txt,.md,.csv,.tsv,.jsonl,text/plain"
    button = widgets.FileUpload(accept=kinds, multiple=False, description="Choose a file")
    said = widgets.HTML(svg.paragraph("No file yet: the stand-in is used."))
    box = widgets.HBox([button, said])
    box.button, box.said, box.path = button, said, None

    def keep(change):
        """Write the file that was chosen last."""
        name, content = _newest(change["new"])
        if name is None:
            return
        path = folder / _file_name(name)
        try:
            write_file(path, content)
        except OSError as fault:
            said.value = svg.paragraph(f"{path.name} could not be written: {fault.strerror}.")
            return
        box.path = path
        said.value = svg.paragraph(f"{path.name}, {len(content):,} bytes, is here. Now run the cells below.")

    button.observe(keep, "value")
    return box


def _newest(value):
    """Return the name and the bytes of a FileUpload's last file; its value differs between ipywidgets 7 and 8."""
    files = [{"name": name} | file for name, file in value.items()] if isinstance(value, dict) else list(value)
    return (files[-1]["name"], bytes(files[-1]["content"])) if files else (None, b"")


def _file_name(name):
    """Return a name that every file system takes: without folders, not too long, and never empty or ``..``."""
    name = re.sub(r'[\x00-\x1f\ud800-\udfff<>:"|?*]', "_", re.split(r"[/\\]", name)[-1]).strip(" .")
    path = Path(name or "upload.txt")
    return _cut(path.stem, LONGEST_NAME) + _cut(path.suffix, 20)


def _cut(text, n_bytes):
    return text.encode()[:n_bytes].decode(errors="ignore")
