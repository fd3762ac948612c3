"""Measure every explorer's sliders in a real JupyterLab: from the key press to the new picture on the screen.

    python -m benchmarks sliders [presses]

The clock starts with the browser's own time stamp of the key press and stops when the frame with the new picture has
been drawn. A model's forward pass is not part of it: bars are redrawn from logits computed once a prompt. The first row
is what JupyterLab and this machine take for one word; run it on a quiet machine.
"""

import statistics
import sys
import tempfile
from pathlib import Path

from tests.browser import Lab, find_chromium
from tests.test_browser import EXPLORERS, write_notebook

SLIDERS = {
    "(one word of HTML)": ["word"],  # what this machine and JupyterLab take themselves, as things are now
    "decoding_explorer": ["temperature", "top-k (0: off)", "top-p (1: off)"],
    "attention_scale_explorer": ["head size d"],
    "size_explorer": ["width", "layers", "context"],
    "attention_explorer": ["layer", "head"],
    "window_explorer": ["window"],
    "rotary_explorer": ["place of the query"],
    "frontier_explorer": ["β"],
    "dpo_explorer": ["chosen, nats"],
    "thinking_explorer": ["thinking tokens"],
}
MUST, AIM = 60, 30  # milliseconds at the 95th percentile, from the design
PAUSE = 300  # milliseconds between two presses
# A realistic vocabulary and width, so that the bars are made of as many numbers as in the notebooks.
MODEL = """
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
WATCH = """handle => {
    const output = handle.closest(".jp-OutputArea-output");
    const picture = output.querySelector("svg[role=img]") ?? output.querySelector(".widget-html-content > *");
    const holder = picture.closest(".widget-html-content");
    window.times = []; let pressed = null;
    handle.addEventListener("keydown", event => { pressed = event.timeStamp; }, true);
    new MutationObserver(() => {
        if (pressed === null) return;
        const start = pressed; pressed = null;
        requestAnimationFrame(() => setTimeout(() => window.times.push(performance.now() - start)));
    }).observe(holder, {subtree: true, childList: true, characterData: true});
}"""


def measure(notebook, label, presses):
    """Return the milliseconds of each key press that changed the picture, on one slider, back and forth."""
    handle = notebook.slider(label)
    handle.scroll_into_view_if_needed()
    handle.focus()
    handle.evaluate(WATCH)
    for n in range(presses - presses % 8):  # whole rounds, which end where they began
        forth = n % 8 < 4 if "top-p" not in label else n % 8 >= 4
        handle.press("ArrowRight" if forth else "ArrowLeft")
        notebook.page.wait_for_timeout(PAUSE)
    times = notebook.page.evaluate("() => window.times")[2:]  # the first two warm the caches
    if len(times) < presses // 2:
        sys.exit(f"Only {len(times)} of {presses} presses on {label!r} changed the picture: too few to measure.")
    return times


def main(presses):
    """Print a table: the median and the 95th percentile for every slider."""
    if find_chromium() is None:
        sys.exit("No Chromium or Chrome on the PATH; this benchmark needs one.")
    print(f"{'explorer':<26}{'slider':<22}{'median':>8}{'95th percentile':>18}   (ms; must {MUST}, aim {AIM})")
    with tempfile.TemporaryDirectory() as folder:
        cells = [EXPLORERS[0], WORD, MODEL, *EXPLORERS[2:4], ATTENTION, *EXPLORERS[-5:]]
        path = write_notebook(Path(folder) / "sliders.ipynb", cells)
        with Lab([path]) as lab, lab.open(path.name) as notebook:
            errors = notebook.run()
            if errors:
                sys.exit("\n".join(errors))
            for explorer, labels in SLIDERS.items():
                for label in labels:
                    times = measure(notebook, label, presses)
                    high = statistics.quantiles(times, n=20)[-1]
                    print(f"{explorer:<26}{label:<22}{statistics.median(times):>8.0f}{high:>18.0f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
