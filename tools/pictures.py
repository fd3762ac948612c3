"""Make the pictures of the README: docs/NOTEBOOK.png, a panel or drawing of each notebook as JupyterLab shows it.

    python tools/pictures.py                                 all, in about ten minutes
    python tools/pictures.py notebooks/02_attention.ipynb    only these

Each notebook is run from its first cell to its last.

Needs Playwright and a Chromium, as the browser tests do.
"""

import io
import sys
from pathlib import Path

from PIL import Image, ImageChops  # matplotlib brings it
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from tests.browser import Lab  # noqa: E402
from tools.notebooks import all_notebooks  # noqa: E402

DOCS, COLORS, MARGIN = ROOT / "docs", 128, 16
WINDOW, PAGE = {"width": 1100, "height": 820}, {"width": 860, "height": 1600}
CELLS = {  # what is shown, by the id of its cell
    "00_start_here": "sliders-explorer",
    "01_first_language_model": "bpe-explorer",
    "02_attention": "heads-example",
    "03_gpt_block": "block-drawn",
    "04_training_a_gpt": "heads-explorer",
    "05_learning_rate_and_batch_size": "schedule-explorer",
    "06_tune_your_own_model": "clinic-explorer",
    "07_decoding_and_generation": "microscope-explorer",
    "08_fine_tuning": "writing-code",
    "09_preferences_and_reasoning": "frontier-explorer",
    "10_scaling_up": "ring-picture",
    "11_evaluation_and_safety": "threshold-explorer",
    "12_from_gpt3_to_today": "memory-explorer",
}
PLACE = """id => window.jupyterapp.shell.currentWidget.content.model.sharedModel.toJSON().cells
    .findIndex(cell => cell.id === id)"""
WHOLE = "00_start_here"  # shown with the window around it; of all others, what stands below the code
PRESSES = {  # arrow keys on a slider, to the left if negative: so that there is something to see
    "00_start_here": {"temperature": -8},
    "01_first_language_model": {"vocabulary": 4},
    "06_tune_your_own_model": {"patient": 4},
    "07_decoding_and_generation": {"top-p (1: off)": -20},
    "10_scaling_up": {"steps done": 2},
}


def shot(notebook, name):
    """Return the picture of a notebook that has been run, as bytes of a PNG."""
    page = notebook.page
    for label, times in PRESSES.get(name, {}).items():
        notebook.press(label, "ArrowRight" if times > 0 else "ArrowLeft", abs(times))
    cell = page.locator(".jp-Notebook-cell").nth(page.evaluate(PLACE, CELLS[name]))
    cell.evaluate("cell => cell.scrollIntoView({block: 'center'})")
    notebook.settle()
    return page.screenshot() if name == WHOLE else cell.locator(".jp-OutputArea-child:visible").last.screenshot()


def trimmed(picture):
    """Return a picture without the empty page around it."""
    left, top, right, bottom = ImageChops.difference(picture, Image.new("RGB", picture.size, "white")).getbbox()
    edges = max(left - MARGIN, 0), max(top - MARGIN, 0), right + MARGIN, bottom + MARGIN
    return picture.crop((*edges[:2], min(edges[2], picture.width), min(edges[3], picture.height)))


def main(paths):
    """Write the pictures."""
    for path in tqdm([Path(path) for path in paths] or all_notebooks()):
        with Lab([path]) as lab, lab.open(path.name) as notebook:
            notebook.page.set_viewport_size(WINDOW if path.stem == WHOLE else PAGE)
            if errors := notebook.run(600):
                raise SystemExit("\n".join(errors))
            picture = Image.open(io.BytesIO(shot(notebook, path.stem))).convert("RGB")
        picture = picture if path.stem == WHOLE else trimmed(picture)
        picture.quantize(COLORS, dither=Image.Dither.NONE).save(DOCS / f"{path.stem}.png", optimize=True)


if __name__ == "__main__":
    main(sys.argv[1:])
