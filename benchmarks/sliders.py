"""Every explorer's sliders in a real JupyterLab: from a key press, and from a mouse that drags, to the new picture.

The clock starts with the browser's own time stamp of the key press or of the move of the mouse that changed the
slider's value, and stops when the frame with the next new picture has been drawn. While the mouse goes on, that is the
first move which the last picture had not answered. The first row is what JupyterLab and this machine take for one word;
run it on a quiet machine. Explorers that compute a model's forward pass for a new value take longer for it. Two are not
here: "compare" and "writing" write when their sliders have stood still for a quarter of a second.
"""

import re
import statistics
import tempfile
from pathlib import Path

from tqdm import tqdm

from tests.browser import Lab, find_chromium
from tests.test_browser import EXPLORERS, FIRST, SETUP, write_notebook
from tests.test_explorers import EVERY

PRESSES, DRAGS = 40, 2  # DRAGS: there and back, as often
PAUSE, MOVE = 300, 16  # milliseconds between two presses, and between two moves of the mouse
# A realistic vocabulary and width, so that the bars are made of as many numbers as in the notebooks.
MODEL = """
from gptcourse.explorers import attention_explorer, decoding_explorer
from gptcourse.model import GPT, GPTConfig
from gptcourse.tokenizers import CharTokenizer
tokenizer = CharTokenizer("".join(chr(n) for n in range(32, 8192) if chr(n).isprintable()))
model = GPT(GPTConfig(tokenizer.vocab_size, n_positions=64, n_embd=64, n_layer=1, n_head=2))
with torch.no_grad():
    model.wte.weight.mul_(8)  # an opinion, so that every move of a slider changes the bars
decoding_explorer(model, tokenizer, "to be", max_new_tokens=1)
"""
# As many heads as the model that ships, and as many tokens as the picture shows.
ATTENTION = """
model = GPT(GPTConfig(tokenizer.vocab_size, n_positions=256, n_embd=64, n_layer=6, n_head=4))
attention_explorer(model, tokenizer, "to be, or not to be, that", held_out=40 * "not to be, or ")
"""
WORD = """
import ipywidgets
slider, word = ipywidgets.IntSlider(description="word"), ipywidgets.HTML("<b>0</b>")
slider.observe(lambda change: setattr(word, "value", f"<b>{change['new']}</b>"), "value")
ipywidgets.VBox([slider, word])
"""
# The last two make models of their own, where the others have the small one of SETUP.
LARGER = {"decoding": MODEL, "attention": ATTENTION}
WRITERS = ("compare", "writing")
OTHERS = {name: cell for name, cell in zip(EVERY, EXPLORERS[FIRST:], strict=True) if name not in (*LARGER, *WRITERS)}
CELLS = {"(setup)": SETUP, "(one word of HTML)": WORD} | OTHERS | LARGER
WATCH = """handle => {
    const output = handle.closest(".jp-OutputArea-output");
    window.times = []; window.waiting = null; let moved = null;
    for (const kind of ["keydown", "mousemove", "pointermove"])
        document.addEventListener(kind, event => { moved = event.timeStamp; }, true);
    new MutationObserver(() => { window.waiting ??= moved; })
        .observe(handle, {attributes: true, attributeFilter: ["aria-valuenow", "aria-valuetext"]});
    const answered = new MutationObserver(() => {
        if (window.waiting === null) return;
        const start = window.waiting; window.waiting = null;
        requestAnimationFrame(() => setTimeout(() => window.times.push(performance.now() - start)));
    });
    for (const html of output.querySelectorAll(".widget-html-content"))
        answered.observe(html, {subtree: true, childList: true, characterData: true});
}"""


def press(page, handle, presses):
    """Press arrow keys, four one way and four the other, from the end of the slider at which it stands, if at one."""
    place = handle.evaluate("h => [h.ariaValueNow, h.ariaValueMax].map(Number)")
    keys = ["ArrowRight", "ArrowLeft"] if place[0] < place[1] else ["ArrowLeft", "ArrowRight"]
    handle.focus()
    for n in range(presses):
        page.evaluate("() => { window.waiting = null; }")  # the press before has changed no picture: it has no answer
        handle.press(keys[n // 4 % 2])
        page.wait_for_timeout(PAUSE)


def drag(page, handle, times):
    """Drag the handle to the right end of its slider and to the left one, a move of the mouse every frame."""
    box = handle.bounding_box()
    track = handle.locator("xpath=ancestor::*[contains(@class, 'noUi-base')][1]").bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, y)
    page.mouse.down()
    for n in range(2 * times):
        for step in range(40):
            share = step / 40 if n % 2 == 0 else 1 - step / 40
            page.mouse.move(track["x"] + share * track["width"], y)
            page.wait_for_timeout(MOVE)
    page.mouse.up()
    page.wait_for_timeout(PAUSE)


def answers(page, handle, act, n):
    """Return the median and the 95th percentile, in ms, of how soon pictures come while `act(page, handle, n)` runs."""
    handle.evaluate("() => { window.times = []; }")
    act(page, handle, n)
    times = page.evaluate("() => window.times")[2:]  # the first two warm the caches
    if len(times) < 3:
        return None, None  # a slider for what is written next moves nothing by itself
    return round(statistics.median(times)), round(statistics.quantiles(times, n=20, method="inclusive")[-1])


def measure_slider(notebook, cell, label, options):
    """Return the row of one slider of a cell, all others standing where they stood at first."""
    if (reset := cell.get_by_role("button", name="reset")).count():
        reset.first.click()
        notebook.settle()
    exactly = notebook.page.locator(".widget-label").filter(has_text=re.compile(f"^{re.escape(label)}$"))
    handle = cell.locator(".widget-slider").filter(has=exactly).first.get_by_role("slider").first
    handle.evaluate("h => h.scrollIntoView({block: 'center'})")
    handle.evaluate(WATCH)
    keys = answers(notebook.page, handle, press, 8 if options.quick else PRESSES)
    mouse = answers(notebook.page, handle, drag, 1 if options.quick else DRAGS)
    columns = ("key: median, ms", "key: 95th percentile", "drag: median, ms", "drag: 95th percentile")
    return {"slider": label} | dict(zip(columns, keys + mouse, strict=True))


def measure(options):
    """Return how it was measured, and a row for every slider."""
    if find_chromium() is None:
        raise SystemExit("No Chromium or Chrome on the PATH; this benchmark needs one.")
    names = ["(setup)", "(one word of HTML)", *LARGER] if options.quick else list(CELLS)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = write_notebook(Path(folder) / "sliders.ipynb", [CELLS[name] for name in names])
        with Lab([path]) as lab, lab.open(path.name) as notebook:
            if errors := notebook.run():
                raise SystemExit("\n".join(errors))
            for number, name in enumerate(tqdm(names, desc="explorers", leave=False)):
                cell = notebook.page.locator(".jp-CodeCell").nth(number)
                for label in dict.fromkeys(cell.locator(".widget-slider:visible .widget-label").all_inner_texts()):
                    rows.append({"explorer": name} | measure_slider(notebook, cell, label, options))
    how = f"{PRESSES} presses of a key and {DRAGS} drags there and back of each slider, in Chromium and JupyterLab; "
    how += "a dash: this slider alone changes no picture. Dragged over values that all have the same picture (top-nσ, "
    return how + "steps done), the clock runs on until another comes: that is where seconds stand.", {"": rows}
