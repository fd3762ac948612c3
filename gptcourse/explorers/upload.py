"""A file of the learner's own, brought to where the notebook runs: by a button, without the path being typed."""

from pathlib import Path

import ipywidgets as widgets

from gptcourse.explorers import svg


def upload_text(folder):
    """Return a button that puts a text file into `folder`; its ``.path`` is that file, and None before.

    Whatever is chosen is only stored, under its own name without any folders; `corpora.text_file` says later whether it
    can be read.
    """
    button = widgets.FileUpload(accept=".txt,.md,text/plain", multiple=False, description="Choose a file")
    said = widgets.HTML(svg.paragraph("No file yet: the stand-in is used."))
    box = widgets.HBox([button, said])
    box.button, box.said, box.path = button, said, None

    def keep(change):
        """Write the file that was chosen last."""
        name, content = _newest(change["new"])
        if name is None:
            return
        box.path = Path(folder, name)
        box.path.write_bytes(content)
        said.value = svg.paragraph(f"{name}, {len(content):,} bytes, is here. Now run the cells below.")

    button.observe(keep, "value")
    return box


def _newest(value):
    """Return the name and the bytes of a FileUpload's last file; its value differs between ipywidgets 7 and 8."""
    files = [{"name": name} | file for name, file in value.items()] if isinstance(value, dict) else list(value)
    if not files:
        return None, b""
    return Path(files[-1]["name"].replace("\\", "/")).name or "upload.txt", bytes(files[-1]["content"])
