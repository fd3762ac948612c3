"""The notebooks and every explorer in a real JupyterLab, with a real Chromium to look and press keys."""

import nbformat
import pytest

from tests.browser import ROOT, Lab, find_chromium

pytestmark = pytest.mark.skipif(
    find_chromium() is None, reason="no Chromium or Chrome on the PATH (apt install chromium)"
)

EXPLORERS = [
    """
import torch
from gptcourse.explorers import TrainingMonitor, attention_explorer, attention_scale_explorer, decoding_explorer
from gptcourse.drawings import svg
from gptcourse.explorers import dpo_explorer, frontier_explorer, predict, rotary_explorer, size_explorer
from gptcourse.explorers import thinking_explorer, window_explorer
from gptcourse.model import GPT, GPTConfig
from gptcourse.tokenizers import CharTokenizer
from gptcourse.training import TrainingConfig, train

tokenizer = CharTokenizer("to be or not <script>")
torch.manual_seed(0)
model = GPT(GPTConfig(tokenizer.vocab_size, n_positions=64, n_embd=16, n_layer=2, n_head=2))
""",
    "decoding_explorer(model, tokenizer, 'to be')",
    "attention_scale_explorer()",
    "size_explorer()",
    "predict('Which?', ['this one', 'that one'], 'that one', 'It was hidden $x^2$ <b>well</b>.')",
    """
import ipywidgets
nothing = ipywidgets.IntSlider(description="nothing")
bars = svg.bars([("a", 0.5, 0.5)], description="", headings=("", ""))
ipywidgets.VBox([nothing, ipywidgets.HTML(bars)])
""",
    "attention_explorer(model, tokenizer, 'to be or not to be', held_out=30 * 'not to be or ')",
    "window_explorer()",
    "rotary_explorer()",
    "frontier_explorer(24 * [([0.05 * i for i in range(20)], 20 * [0.05])])",  # as many messages as in the notebook
    "dpo_explorer()",
    "thinking_explorer([{'thoughts': n, 'by_length': {'2': 0.5, '9': n / 10}} for n in range(11)])",
]
TRAINING = """
config = TrainingConfig(steps=100_000, batch_size=1, learning_rate=1e-3, sequence_length=8)
monitor = TrainingMonitor(model, config)
display(monitor)
history = train(model, torch.arange(1000) % 9, config, callback=monitor, progress=False)
print("ended by", history.stopped)
"""


def write_notebook(path, cells):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell.strip()) for cell in cells])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)
    return path


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebooks")
    ours = [
        write_notebook(folder / "explorers.ipynb", EXPLORERS),
        write_notebook(folder / "training.ipynb", [EXPLORERS[0], TRAINING]),
        write_notebook(folder / "reopened.ipynb", REOPENED),
        write_notebook(folder / "waiting.ipynb", WAITING),
    ]
    with Lab([*ours, *(ROOT / "notebooks").glob("*.ipynb")]) as lab:
        yield lab


@pytest.fixture(scope="module")
def explorers(lab):
    with lab.open("explorers.ipynb") as notebook:
        assert notebook.run() == []
        yield notebook


@pytest.mark.parametrize(
    "label",
    [
        "temperature",
        "top-k (0: off)",
        "repetition penalty",
        "seed",
        "head size d",
        "width",
        "layers",
        "context",
        "batch",
        "layer",
        "head",
        "window",
        "place of the query",
        "place of the key",
        "β",
        "chosen, nats",
        "thinking tokens",
    ],
)
def test_a_key_press_changes_the_picture(explorers, label):
    before = explorers.pictures(label)
    explorers.press(label)
    assert explorers.pictures(label) != before
    explorers.press(label, "ArrowLeft")
    assert explorers.pictures(label) == before
    assert explorers.console == []


def test_a_slider_wired_to_nothing_changes_no_pixel(explorers):
    before = explorers.pictures("nothing")
    explorers.press("nothing", times=3)
    assert len(before) == 1 and explorers.pictures("nothing") == before


def test_moving_sliders_adds_no_output(explorers):
    count = "() => document.querySelector('.jp-Notebook').querySelectorAll('*:not(svg *)').length"
    before = explorers.page.evaluate(count)
    explorers.press("temperature", times=20)
    explorers.press("temperature", "ArrowLeft", times=20)
    assert explorers.page.evaluate(count) == before


def test_a_typed_tag_appears_as_text(explorers):
    box = explorers.page.locator(".widget-textarea").filter(has_text="prompt").get_by_role("textbox")
    box.fill("to <script>")
    box.blur()
    explorers.settle()
    assert explorers.page.locator(".widget-html script").count() == 0
    assert explorers.page.get_by_text("to <script>", exact=True).count() == 1


def test_a_prediction_is_answered_only_after_a_guess(explorers):
    assert explorers.page.locator(".widget-htmlmath").get_by_text("hidden").count() == 0
    explorers.page.get_by_role("button", name="a", exact=True).click()
    explorers.settle()
    answer = explorers.page.locator(".widget-htmlmath").get_by_text("You guessed a; it is b.")
    assert answer.count() == 1
    assert "<b>well</b>" in explorers.page.locator(".widget-htmlmath").inner_text()


REOPENED = [EXPLORERS[0], "decoding_explorer(model, tokenizer, 'to be')", EXPLORERS[4]]
WAITING = [EXPLORERS[0], "attention_scale_explorer()", "import time\nfor _ in range(600):\n    time.sleep(0.1)"]


def test_a_notebook_without_its_kernel_shows_the_last_picture_of_each_panel(lab):
    alive, dead = ".widget-slider:visible, .widget-button:visible", ".gptcourse-still:visible"
    with lab.open("reopened.ipynb") as notebook:
        page = notebook.page
        assert notebook.run() == []
        notebook.press("temperature", times=10)
        page.get_by_role("button", name="a", exact=True).click()
        page.wait_for_timeout(2_000)  # the still pictures are renewed when nothing has moved for a second
        assert page.locator(dead).count() == 0 and page.locator(alive).count() > 5
        page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
        page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.restartKernel()")
        page.locator(dead).first.wait_for()
        assert page.locator(dead).count() == 2 and page.locator(alive).count() == 0
    with lab.open("reopened.ipynb") as notebook:  # the next day
        page = notebook.page
        page.locator(dead).first.wait_for()
        notebook.settle()
        assert page.locator(dead).count() == 2 and page.locator("text=model not found >> visible=true").count() == 0
        assert page.locator(f"{dead} img").count() == 1 and page.get_by_text("You guessed a").count() == 1
        assert "temperature 1.5 " in page.locator(dead).first.inner_text()


def test_a_panel_answers_while_a_cell_runs(lab):
    with lab.open("waiting.ipynb") as notebook:
        notebook.start()
        notebook.slider("head size d").wait_for(timeout=120_000)
        notebook.settle()
        before = notebook.pictures("head size d")
        notebook.press("head size d")
        assert notebook.pictures("head size d") != before and notebook.page.evaluate("() => window.running")
        notebook.page.evaluate("() => window.jupyterapp.commands.execute('notebook:interrupt-kernel')")
        assert notebook.finish() == ["KeyboardInterrupt: "] and notebook.console == []


def test_a_notebook_that_is_not_trusted_shows_its_drawings_and_panels(lab):
    with lab.open("02_attention.ipynb") as notebook:
        drawn = notebook.page.locator(".jp-OutputArea-output img").all()
        assert len(drawn) > 10 and all(image.evaluate("element => element.naturalWidth > 100") for image in drawn)


def test_the_stop_button_stops_a_running_training(lab):
    with lab.open("training.ipynb") as notebook:
        notebook.start()
        notebook.page.get_by_role("button", name="Stop training").click(timeout=120_000)
        assert notebook.finish() == []
        assert "ended by callback" in notebook.outputs()
        assert notebook.console == []


def moves_its_picture(notebook, label):
    """Press a few times to the right, then to the left; when the picture has changed, put the slider back."""
    before = notebook.pictures(label)
    for key, back in (("ArrowRight", "ArrowLeft"), ("ArrowLeft", "ArrowRight")):
        for pressed in range(1, 5):
            notebook.press(label, key)
            if notebook.pictures(label) != before:
                notebook.press(label, back, times=pressed)
                return True
    return False


@pytest.mark.parametrize(
    "name",
    [
        "00_start_here.ipynb",
        pytest.param("01_first_language_model.ipynb", marks=pytest.mark.long),
        pytest.param("02_attention.ipynb", marks=pytest.mark.long),
        pytest.param("03_gpt_block.ipynb", marks=pytest.mark.long),
        pytest.param("04_training_a_gpt.ipynb", marks=pytest.mark.long),
        pytest.param("05_learning_rate_and_batch_size.ipynb", marks=pytest.mark.long),
        pytest.param("06_tune_your_own_model.ipynb", marks=pytest.mark.long),
        pytest.param("07_decoding_and_generation.ipynb", marks=pytest.mark.long),
        pytest.param("08_fine_tuning.ipynb", marks=pytest.mark.long),
        pytest.param("10_scaling_up.ipynb", marks=pytest.mark.long),
        pytest.param("11_evaluation_and_safety.ipynb", marks=pytest.mark.long),
    ],
)
def test_a_notebook_runs_and_its_sliders_move_its_pictures(lab, name):
    with lab.open(name) as notebook:
        assert notebook.run() == []
        labels = notebook.slider_labels()
        assert labels
        assert [label for label in labels if not moves_its_picture(notebook, label)] == []
        assert notebook.console == []
