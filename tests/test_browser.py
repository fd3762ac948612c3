"""The notebooks and every explorer in a real JupyterLab, with a real Chromium to look and press keys."""

import re
import time
from html import unescape

import nbformat
import pytest

from tests.browser import ROOT, Lab, find_chromium
from tests.test_explorers import EVERY, small_model

pytestmark = pytest.mark.skipif(
    find_chromium() is None, reason="no Chromium or Chrome on the PATH (apt install chromium)"
)

SETUP = """
from tests.test_explorers import EVERY, predict, small_model, svg, train, TrainingConfig, TrainingMonitor
import ipywidgets
import torch

model, tokenizer = small_model()
"""
PREDICTION = "predict('Which?', ['this one', 'that one'], 'that one', 'It was hidden $x^2$ <b>well</b>.')"
NOTHING = """
nothing = ipywidgets.IntSlider(description="nothing")
bars = svg.bars([("a", 0.5, 0.5)], description="one bar", headings=("", ""))
ipywidgets.VBox([nothing, ipywidgets.HTML(bars)])
"""
EXPLORERS = [SETUP, PREDICTION, NOTHING, *(f"EVERY[{name!r}](model, tokenizer)" for name in EVERY)]
FIRST = len(EXPLORERS) - len(EVERY)  # the cell of the first explorer
TRAINING = """
config = TrainingConfig(steps=100_000, batch_size=1, learning_rate=1e-3, sequence_length=8)
model, _ = small_model()
monitor = TrainingMonitor(config)
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
        write_notebook(folder / "training.ipynb", [SETUP, TRAINING]),
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


def words(html):
    """Return the letters that HTML shows, without white space."""
    return "".join(unescape(re.sub(r"<[^>]*>", "", html)).split())


def wait_for_words(notebook, cell, html, what):
    """Wait until one part of a panel shows the words of this HTML; a busy machine answers late."""
    end = time.monotonic() + 60
    while words(html) not in [words(part.inner_html()) for part in cell.locator(".widget-html-content").all()]:
        assert time.monotonic() < end, what
        notebook.settle()


def one_step_on(control):
    """Move a control as the right arrow key does, or the left one where it stands at its end; return the key."""
    if hasattr(control, "options"):
        last = len(control.options) - 1
        key, control.index = ("ArrowLeft", last - 1) if control.index == last else ("ArrowRight", control.index + 1)
        return key
    step = -control.step if control.value + control.step > control.max + 1e-9 else control.step
    control.value += step
    return "ArrowRight" if step > 0 else "ArrowLeft"


@pytest.mark.parametrize("number, name", list(enumerate(EVERY)), ids=list(EVERY))
def test_each_slider_shows_what_is_computed_directly(explorers, number, name):
    cell, own = explorers.page.locator(".jp-CodeCell").nth(FIRST + number), EVERY[name](*small_model())
    controls = {control.description: control for control in own.controls.values()}
    labels = cell.locator(".widget-slider .widget-label").all_inner_texts()
    assert labels and set(labels) <= set(controls)
    for label in labels:
        key, before = one_step_on(controls[label]), own.picture.value
        exactly = explorers.page.locator(".widget-label").filter(has_text=re.compile(f"^{re.escape(label)}$"))
        cell.locator(".widget-slider").filter(has=exactly).get_by_role("slider").press(key)
        explorers.settle()
        getattr(own, "wait", lambda: None)()
        wait_for_words(explorers, cell, own.picture.value, (label, before))
    assert explorers.console == []


HOSTILE = [
    "<script>window.hit = 1</script>",
    "<img src=x onerror='window.hit = 1'>",
    "\"'`${1}\\",
    "你好 🙂 שלום",
    5_000 * "ab",
]


@pytest.mark.parametrize("text", HOSTILE, ids=["script", "image", "quotes", "scripts of the world", "long"])
def test_whatever_is_typed_is_shown_as_text(explorers, text):
    page = explorers.page
    for box in page.locator(".widget-text input:visible, .widget-textarea textarea:visible").all():
        before = box.input_value()
        box.fill(text)
        box.blur()
        explorers.settle()
        assert page.locator(".widget-html script, .widget-html img[src=x]").count() == 0
        box.fill(before)
        box.blur()
    explorers.settle()
    assert page.evaluate("() => window.hit") is None and explorers.console == []


@pytest.mark.parametrize("label", ["temperature", "head size d"])
def test_a_key_press_changes_the_picture(explorers, label):
    before = explorers.pictures(label)
    explorers.press(label)
    explorers.wait_for_pictures(label, lambda pictures: pictures != before)
    explorers.press(label, "ArrowLeft")
    explorers.wait_for_pictures(label, lambda pictures: pictures == before)


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


def test_a_prediction_is_answered_only_after_a_guess(explorers):
    assert explorers.page.locator(".widget-htmlmath").get_by_text("hidden").count() == 0
    explorers.page.get_by_title("I guess a").press("Enter")
    explorers.settle()
    focused = explorers.page.evaluate("() => document.activeElement.title")
    assert focused == "I guess a"  # and not the page, from where the Tab key would begin anew
    answer = explorers.page.locator(".widget-htmlmath").get_by_text("You guessed a; it is b.")
    assert answer.count() == 1
    assert "<b>well</b>" in explorers.page.locator(".widget-htmlmath").inner_text()


# ---- How the panels look, in windows of several sizes

WINDOWS = {"laptop": (1280, 800), "narrow": (900, 800), "zoomed to 150 %": (853, 533), "half": (680, 800)}
TALLEST = 650  # pixels of a panel on a laptop, controls and result together
SMALLEST = 9  # pixels of letters in a drawing
LOOK = """() => [...document.querySelectorAll(".jp-CodeCell")].map(cell => {
    const panel = cell.querySelector(".jp-OutputArea-output .widget-vbox"), found = [];
    if (!panel) return null;
    const edge = panel.closest(".jp-OutputArea-output").getBoundingClientRect().right + 1;
    for (const element of [panel.parentElement, ...panel.querySelectorAll("*")]) {
        const box = element.getBoundingClientRect(), svg = element.ownerSVGElement;
        const name = `${element.className.baseVal ?? element.className} ${element.textContent.slice(0, 40)}`;
        const inside = element.matches("input, textarea, .slider-container, .slider-container *");
        if (svg && element.matches("text")) {
            const frame = svg.getBoundingClientRect(), scale = frame.width / svg.viewBox.baseVal.width;
            const size = parseFloat(getComputedStyle(element).fontSize) * scale;
            if (size < SMALLEST) found.push(`letters of ${size} pixels: ${name}`);
            if (box.left < frame.left - 3 || box.right > frame.right + 3) found.push(`cut off by its drawing: ${name}`);
        }
        if (svg || inside || !box.width) continue;
        if (box.right > edge) found.push(`beyond the edge: ${name}`);
        if (element.scrollWidth > element.clientWidth + 1 && getComputedStyle(element).display !== "inline")
            found.push(`wider than its box, ${element.scrollWidth} in ${element.clientWidth}: ${name}`);
    }
    return {height: panel.getBoundingClientRect().height, found};
})"""


@pytest.fixture
def panels(explorers):
    """Return a function that resizes the window and says of each panel how high it is and what is wrong with it."""

    def look(window):
        width, height = WINDOWS[window]
        explorers.page.set_viewport_size({"width": width, "height": height})
        explorers.settle()
        looks = explorers.page.evaluate(LOOK.replace("SMALLEST", str(SMALLEST)))
        return dict(zip(EVERY, looks[FIRST:], strict=True))

    yield look
    explorers.page.set_viewport_size({"width": 1000, "height": 900})
    explorers.settle()


def test_controls_and_result_of_a_panel_fit_into_the_window_of_a_laptop(panels):
    assert {name: look["height"] for name, look in panels("laptop").items() if look["height"] > TALLEST} == {}


@pytest.mark.parametrize("window", WINDOWS)
def test_nothing_of_a_panel_is_cut_off_or_too_small_to_read(panels, window):
    assert {name: look["found"] for name, look in panels(window).items() if look["found"]} == {}


AXE = ROOT / "site" / "node_modules" / "axe-core" / "axe.min.js"
AXE_RUN = "async () => (await axe.run({include: [['.jp-OutputArea-output']]})).violations"


def serious(notebook):
    """Return what axe-core finds in the outputs of a notebook that is serious or critical, as pairs (rule, element)."""
    notebook.page.add_script_tag(path=AXE)
    found = notebook.page.evaluate(AXE_RUN)
    pairs = [(rule["id"], node["html"]) for rule in found for node in rule["nodes"] if node["impact"] in SERIOUS]
    # noUiSlider's handle takes its name from an option that ipywidgets does not pass on; its description and tooltip
    # become a label beside the handle, which refers to nothing.
    return [(rule, html) for rule, html in pairs if (rule, "noUi-handle" in html) != ("aria-input-field-name", True)]


SERIOUS = ("serious", "critical")
with_axe = pytest.mark.skipif(not AXE.exists(), reason="axe-core comes with the page's packages: python tools/site.py")


@with_axe
@pytest.mark.parametrize("theme", ["JupyterLab Dark", "JupyterLab Light"])
def test_axe_finds_nothing_serious_in_the_panels(explorers, theme):
    change = "theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})"
    explorers.page.evaluate(change, theme)
    explorers.page.locator(f"body[data-jp-theme-name='{theme}']").wait_for(state="attached")
    explorers.settle()
    assert serious(explorers) == []


@pytest.mark.parametrize("name, option", [("attention_scale", "1/√d"), ("device", "175B")])
def test_a_category_is_chosen_by_keyboard_and_says_that_it_is_chosen(explorers, name, option):
    cell, own = explorers.page.locator(".jp-CodeCell").nth(FIRST + list(EVERY).index(name)), EVERY[name]()
    control = own.controls[{"1/√d": "scale", "175B": "size"}[option]]
    before, control.value = control.value, option
    cell.get_by_title("Put all controls back to where they stood at first").click()  # whatever other tests have moved
    cell.get_by_label(option, exact=True).press("Space")
    explorers.settle()
    assert cell.get_by_label(option, exact=True).is_checked() and not cell.get_by_label(before, exact=True).is_checked()
    wait_for_words(explorers, cell, own.picture.value, option)
    cell.get_by_label(before, exact=True).press("Space")
    explorers.settle()


REOPENED = [SETUP, "EVERY['decoding'](model, tokenizer)", PREDICTION]
WAITING = [SETUP, "EVERY['attention_scale']()", "import time\nfor _ in range(600):\n    time.sleep(0.1)"]


def test_a_notebook_without_its_kernel_shows_the_last_picture_of_each_panel(lab):
    alive, dead = ".widget-slider:visible, .widget-button:visible", ".gptcourse-still:visible"
    with lab.open("reopened.ipynb") as notebook:
        page = notebook.page
        assert notebook.run() == []
        notebook.press("temperature", times=10)
        page.get_by_title("I guess a").click()
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
            end = time.monotonic() + 3  # a busy machine answers late
            while (same := notebook.pictures(label) == before) and time.monotonic() < end:
                notebook.settle()
            if not same:
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
        pytest.param("09_preferences_and_reasoning.ipynb", marks=pytest.mark.long),
        pytest.param("10_scaling_up.ipynb", marks=pytest.mark.long),
        pytest.param("11_evaluation_and_safety.ipynb", marks=pytest.mark.long),
        pytest.param("12_from_gpt3_to_today.ipynb", marks=pytest.mark.long),
    ],
)
def test_a_notebook_runs_and_its_sliders_move_its_pictures(lab, name):
    """The panels that write have no drawing, and tests of their own."""
    with lab.open(name) as notebook:
        assert notebook.run() == []
        assert notebook.slider_labels()
        labels = [label for label in notebook.slider_labels() if notebook.pictures(label)]
        assert [label for label in labels if not moves_its_picture(notebook, label)] == []
        assert notebook.console == []
