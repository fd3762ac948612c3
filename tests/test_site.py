"""The page without a kernel, built and opened in a browser: equal to the package, in every scene, on bad input too."""

import copy
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import torch

from gptcourse.config import GPTConfig
from gptcourse.generation import Sampling, generate, next_token_distribution
from gptcourse.model import GPT
from gptcourse.pretrained import load_pretrained
from gptcourse.quantisation import quantised
from gptcourse.tokenizers import BPETokenizer, CharTokenizer
from tests.browser import FLAGS, find_chromium
from tools import site as site_tool

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "site"
SCENES = ("write", "inside", "learn", "tune")
MEGABYTE = 2**20
TOLERANCE = 2e-3  # logits: sums of 256 and 1,024 products, in another order and another precision

pytestmark = pytest.mark.skipif(
    not (site_tool.node_is_new_enough() and find_chromium()), reason="needs npm with Node.js 20.19, and Chromium"
)


@pytest.fixture(scope="module")
def dist():
    """Return the folder of the page, built anew."""
    subprocess.run([sys.executable, ROOT / "tools" / "site.py"], check=True)
    return SITE / "dist"


@pytest.fixture(scope="module")
def browser(dist):
    """Return a Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser, dist):
    """Return a function that opens a scene from the folder; at the end no page may have told of an error."""
    said, contexts = [], []

    def open_scene(address="", *, wait=True, size=(1280, 900), scheme="light", block=None):
        context = browser.new_context(viewport=dict(zip(("width", "height"), size, strict=True)), color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        if block:
            page.route(block, lambda route: route.abort())
        page.goto(f"{(dist / 'index.html').as_uri()}#{address}")
        if wait:
            page.wait_for_function("window.gptcourse.session.config")
        return page

    yield open_scene
    for context in contexts:
        context.close()
    assert [text for text in said if "ERR_FAILED" not in text] == []  # those that a test has blocked


@pytest.fixture(scope="module")
def model():
    """Return the bundled model in the 8 bits of the page, and its tokenizer."""
    model, tokenizer = load_pretrained("shakespeare-5m")
    return quantised(model, 8), tokenizer


# ---- What is built


def test_types_lint_and_format(dist):
    """`dist` has installed what this needs."""
    done = subprocess.run([shutil.which("npm"), "run", "check"], cwd=SITE, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_sizes(dist):
    sizes = site_tool.sizes()
    assert 0 < sizes["first"] <= 2 * MEGABYTE < sizes["all"] <= 12 * MEGABYTE


def test_nothing_is_asked_of_another_address(dist, browser):
    page, asked = browser.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((dist / "index.html").as_uri())
    page.wait_for_function("window.gptcourse.session.config")
    assert {url.partition(":")[0] for url in asked} <= {"file", "data", "blob"}
    page.close()


def test_it_opens_from_a_static_server(dist, browser):
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=dist)
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/#write")
        page.wait_for_function("window.gptcourse.session.config")
        page.close()
        server.shutdown()


def test_every_string_stands_in_the_file_of_its_language():
    """Text between tags is `{t(…)}`; but for the names of the rules, which are the same in every language."""
    strings = json.loads((SITE / "src" / "strings" / "en.json").read_text(encoding="utf-8"))
    sources = {path: path.read_text(encoding="utf-8") for path in (SITE / "src").rglob("*.svelte")}
    for path, source in sources.items():
        markup = re.sub(r"<(script|style).*?</\1>", "", source, flags=re.S)
        markup = re.sub(r"\{[^{}]*(\{[^{}]*(\{[^{}]*\}[^{}]*)*\}[^{}]*)*\}", "", markup)
        words = re.findall(r">\s*([A-Za-z][^<>{}=]*?)\s*<", markup)
        assert not words, f"{path.name}: {words}"
    code = "\n".join([*sources.values(), *(path.read_text(encoding="utf-8") for path in (SITE / "src").rglob("*.ts"))])
    named = set(re.findall(r'"([a-z]+(?:\.[\w-]+)*)"', code))
    templates = [re.split(r"\$\{[^}]*\}", text) for text in re.findall(r"`([^`\n]*\$\{[^`\n]*)`", code)]
    made = [re.compile(".+".join(map(re.escape, parts))) for parts in templates if "." in "".join(parts)]
    unused = {key for key in strings if key not in named and not any(pattern.fullmatch(key) for pattern in made)}
    assert unused == set()


# ---- Equal to the package

HARD = [
    "ROMEO:\nWhat's in a name? that which we call a rose",
    "don't we'll they're I'd 'tis 'S  's ' s",
    "  leading, trailing   \n\n\ttabs \r\n and\u00a0no-break\u2003em\u3000ideographic \u0085 next line",
    "\ufeffa mark of byte order \u200b zero width \u180e",
    "naïve café Ångström ﬁ ½ ² ٣ Ⅷ 10,000.5e-3",
    "日本語の文章と中文，한국어 ไทย עברית العربية हिन्दी",
    "👩‍👩‍👧‍👦 🇯🇵 e\u0301 \U0001f600\U0001f3fd \U00010348",
    "<|user|>hello<|assistant|>hi<|end|> <script>alert(1)</script> &amp;",
    "a" * 3_000,
    "\x00\x01\x7f\u2028\u2029",
]


def test_the_tokenizer_is_the_packages_on_hard_text(opened, model):
    tokenizer = model[1]
    rng = np.random.default_rng(0)
    codes = [np.concatenate([rng.integers(0, 0xD7FF, 20), rng.integers(0, 0x300, 30)]) for _ in range(200)]
    texts = [*HARD, *("".join(map(chr, rng.permutation(some))) for some in codes)]
    ids, back = opened().evaluate(
        """texts => {
            const { tokenizer } = window.gptcourse.session;
            const ids = texts.map(text => tokenizer.encode(text));
            return [ids, ids.map(some => tokenizer.decode(some))];
        }""",
        texts,
    )
    assert ids == [tokenizer.encode(text) for text in texts]
    assert back == texts


def test_pieces_of_characters_decode_alike(opened, model):
    rng = np.random.default_rng(1)
    rows = rng.integers(0, model[1].vocab_size, (200, 6)).tolist()
    texts = opened().evaluate("rows => rows.map(ids => window.gptcourse.session.tokenizer.decode(ids))", rows)
    assert texts == [model[1].decode(row) for row in rows]


LOGITS = """async ids => {
    const traces = await window.gptcourse.session.remote.trace(ids);
    return traces.map(({ logits }) => [...logits]);
}"""


def test_the_logits_are_the_packages(opened, model):
    page = opened()
    for text, length in [("What is", 3), (HARD[0], 40), (HARD[5], 256)]:
        ids = (model[1].encode(text) * 20)[:length]
        with torch.inference_mode():
            expected = model[0](torch.tensor([ids])).logits[0].numpy()
        np.testing.assert_allclose(np.array(page.evaluate(LOGITS, ids)), expected, atol=TOLERANCE, rtol=0)


def test_a_head_switched_off_brings_nothing(opened, model):
    """Its columns of the output projection are set to zero in the package's model."""
    ids, off = model[1].encode(HARD[0]), ["2.1", "5.3"]
    page = opened()
    found = page.evaluate(
        "async ([ids, off]) => [...(await window.gptcourse.session.remote.trace(ids, off)).at(-1).logits]", [ids, off]
    )
    changed = copy.deepcopy(model[0])
    size = changed.config.head_size
    with torch.no_grad():
        for layer, head in ((2, 1), (5, 3)):
            changed.h[layer].attn.c_proj.weight[:, head * size : (head + 1) * size] = 0
        expected = changed(torch.tensor([ids])).logits[0, -1].numpy()
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


RULES = [
    {"temperature": 0.0},
    {"temperature": 0.3},
    {"temperature": 1.7, "top_k": 7},
    {"top_p": 0.0},
    {"top_p": 0.6, "temperature": 1.2},
    {"min_p": 0.2},
    {"typical_p": 0.3},
    {"top_n_sigma": 1.5, "temperature": 2.0},
    {"repetition_penalty": 1.6},
    {"repetition_penalty": 0.6, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.9, "temperature": 0.7},
]


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_the_rules_give_the_packages_distribution(opened, rules):
    logits = np.random.default_rng(2).normal(0, 3, 300).astype(np.float32)
    previous = list(range(0, 300, 7))
    found = opened(wait=False).evaluate(
        "([x, rules, seen]) => [...window.gptcourse.distribution(new Float32Array(x), rules, seen)]",
        [logits.tolist(), {**vars(Sampling(seed=1)), **rules}, previous],
    )
    expected = next_token_distribution(torch.tensor(logits).double(), Sampling(**rules), previous)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-9)


WRITE = """async request => {
    const ids = [];
    await window.gptcourse.session.remote.write(request, some => ids.push(...some.map(({ id }) => id)));
    return ids;
}"""
GREEDY = {**vars(Sampling(seed=1)), "temperature": 0}


def test_greedy_text_is_the_packages_past_the_window_too(opened, model):
    prompt = (model[1].encode(HARD[0]) * 20)[:220]
    new = opened("inside").evaluate(WRITE, {"prompt": prompt, "count": 60, "sampling": GREEDY, "forced": {}})
    assert new == generate(model[0], prompt, 60, Sampling(temperature=0))[220:]


def test_draws_follow_the_distribution(opened):
    """Of 4,000 places, each token comes as often as it should: a chi-square test with 4 degrees of freedom."""
    page = opened("inside")
    request = {"prompt": [50], "count": 1, "sampling": {**vars(Sampling(seed=1)), "top_k": 5}, "forced": {}}
    counts = page.evaluate(
        """async request => {
            const { session, distribution } = window.gptcourse;
            const counts = {};
            let logits;
            for (let seed = 1; seed <= 1000; seed++) {
                const sampling = { ...request.sampling, seed };
                await session.remote.write({ ...request, sampling }, some => some.forEach(written => {
                    counts[written.id] = (counts[written.id] ?? 0) + 1;
                    logits = written.logits;
                }));
            }
            return [counts, [...distribution(logits, request.sampling, [])]];
        }""",
        request,
    )
    found, probabilities = counts
    expected = {i: 1000 * p for i, p in enumerate(probabilities) if p > 0}
    assert len(expected) == 5 and set(map(int, found)) <= set(expected)
    assert sum((found.get(str(i), 0) - n) ** 2 / n for i, n in expected.items()) < 18.5  # p = 0.001


# ---- The scene that writes

TEXT = "[data-testid=text]"


def written(page):
    """Return the text of the scene that writes, once all of its tokens stand there."""
    page.wait_for_function("document.querySelectorAll('[data-testid=text] button').length === 90")
    return settled(page)


def settled(page):
    """Return the text that a model writes, once the page says that it is whole."""
    return page.inner_text(f"{TEXT}[aria-busy=false]")


def percentages(page):
    return [float(text.removesuffix(" %")) for text in page.locator("ol .number").all_inner_texts()]


def test_the_temperature_moves_text_and_bars_by_keyboard(opened, model):
    page = opened("write")
    before, bars = written(page), percentages(page)
    slider = page.get_by_role("slider", name="temperature")
    slider.focus()
    for _ in range(8):
        page.keyboard.press("ArrowRight")
    assert slider.input_value() == "1.2"
    after = written(page)
    assert after != before and percentages(page) != bars
    ids = model[1].encode("ROMEO:\nWhat is your name")
    logits = model[0](torch.tensor([ids])).logits[0, -1].detach()
    expected = next_token_distribution(logits, Sampling(temperature=1.2)).sort(descending=True).values[:8]
    np.testing.assert_allclose(percentages(page), 100 * expected.numpy(), atol=0.51)
    page.get_by_role("button", name="Reset").click()
    assert written(page) == before  # the same draws
    page.wait_for_function("!location.hash.includes('temperature')")


def test_the_first_slider_needs_no_model(opened):
    page = opened("write", wait=False, block="**/shakespeare-5m.js")
    page.get_by_role("status").filter(has_text="could not be loaded").wait_for()
    bars = percentages(page)
    page.get_by_role("slider", name="temperature").fill("0.2")
    assert len(bars) == 8 and percentages(page)[0] > bars[0]


def test_another_token_is_chosen_and_the_text_goes_on_from_there(opened):
    page = opened("write")
    before = written(page)
    tokens = page.locator(f"{TEXT} button")
    tokens.nth(4).click()
    bar = page.locator("ol button:not(.chosen)").first
    token = bar.locator(".token").inner_text()
    bar.click()
    page.wait_for_function("document.querySelectorAll('[data-testid=text] button.forced').length === 1")
    after = written(page)
    assert after != before
    assert tokens.nth(4).inner_text().replace(" ", "·") == token.replace("⏎", "⏎")


def test_an_address_says_the_whole_state(opened):
    page = opened("write?prompt=JULIET%3A&temperature=0.3&top_k=4&seed=7")
    first = written(page)
    assert first.startswith("JULIET:")
    assert page.get_by_role("slider", name="top-k").input_value() == "4"
    hash_now = page.evaluate("location.hash")
    assert written(opened(hash_now.removeprefix("#"))) == first


def test_an_address_with_nonsense_gives_the_defaults(opened):
    page = opened("write?temperature=hot&top_k=-3&seed=1e9&top_p=")
    values = [page.get_by_role("slider", name=name).input_value() for name in ("temperature", "top-k", "random draw")]
    assert values == ["0.8", "0", "1"]
    assert opened("nowhere").get_by_role("heading", level=2).inner_text().startswith("Write")


HOSTILE = [
    '<img src=x onerror="window.hit=1"><script>window.hit=1</script> & \' "',
    "{{7*7}} {t('x')} ${window.hit=1}",
    "\u202eright to left \u202c שלום",
    "👩‍👩‍👧‍👦 漢字",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_typed_is_shown_as_text(opened, text):
    page = opened("write")
    page.get_by_label("The text to continue").fill(text)
    page.wait_for_timeout(600)
    assert page.locator(f"{TEXT} .prompt").inner_text() == text
    assert page.evaluate("window.hit") is None


def test_ten_thousand_characters_are_read(opened):
    page = opened("write")
    page.get_by_label("The text to continue").fill("to be or not " * 770)
    page.wait_for_timeout(300)
    assert len(written(page)) > 10_000 and not page.get_by_role("alert").count()


# ---- The other scenes


def test_a_head_that_is_switched_off_changes_the_loss_as_in_the_package(opened, model):
    page = opened("inside?layer=6")
    page.get_by_text(re.compile(r"all heads on [\d.]+")).wait_for()
    ids = torch.tensor([model[1].encode("O Romeo, Romeo! wherefore art thou Romeo")])

    def loss(gpt):
        return gpt(ids[:, :-1], ids[:, 1:]).loss.item()

    changed, size = copy.deepcopy(model[0]), model[0].config.head_size
    with torch.no_grad():
        changed.h[5].attn.c_proj.weight[:, size : 2 * size] = 0
    assert f"all heads on {loss(model[0]):.3f}" in page.inner_text("main")
    page.get_by_role("button", name="Head 2 of layer 6", exact=False).locator("visible=true").last.click()
    page.get_by_text(f"now {loss(changed):.3f}").wait_for()
    page.wait_for_function("location.hash.includes('off=')")


def test_every_matrix_opens_and_closes_by_keyboard(opened):
    page = opened("inside")
    page.get_by_role("button", name=re.compile("its attention weights")).first.focus()
    page.keyboard.press("Enter")
    assert page.get_by_role("dialog").locator("td").count() >= 13 * 14 / 2  # the weights up to each token itself
    page.keyboard.press("Escape")
    assert page.get_by_role("dialog").count() == 0


def test_the_stages_are_explained_one_by_one(opened):
    page = opened("inside")
    slider = page.get_by_role("slider", name=re.compile("Step"))
    slider.focus()
    told = set()
    for _ in range(12):
        page.keyboard.press("ArrowRight")
        told.add(page.locator(".picture b, .picture strong").first.inner_text())
    assert len(told) == 12


def middles(page, *names):
    """Return where the buttons over the picture whose names begin like this stand: pairs of x and y."""
    boxes = [page.get_by_role("button", name=re.compile(f"^(Show the numbers: )?{name}")).first for name in names]
    return [(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2) for box in (b.bounding_box() for b in boxes)]


ALONG = ("Token embedding", "Open layer 2", "Query of", "Head 1 of layer 5", "Hidden units", "Logits")


@pytest.mark.parametrize("width", [360, 390, 430])
def test_on_a_phone_the_picture_stands_upright_within_the_width(opened, model, width):
    page = opened("inside", size=(width, 800))
    page.get_by_role("button", name="Open layer 2").wait_for()
    heights = [y for _, y in middles(page, *ALONG)]
    assert heights == sorted(heights) and heights[-1] - heights[0] > 800
    sizes = page.locator(".scroller").evaluate("box => [box.scrollWidth, box.clientWidth]")
    assert sizes[0] <= sizes[1]
    places = page.locator(".stage button").evaluate_all("all => all.map(one => one.getBoundingClientRect().toJSON())")
    assert len(places) > 20 and all(place["left"] >= 0 and place["right"] <= width for place in places)
    page.get_by_role("button", name="Head 3 of layer 5: its attention weights").click()
    assert page.get_by_role("dialog").locator("td").count() >= 13 * 14 / 2
    page.keyboard.press("Escape")
    page.get_by_role("button", name="head 3 of layer 5 on").click()
    page.get_by_text(re.compile(r"now \d")).wait_for()
    page.get_by_role("button", name="Open layer 2").click()
    page.get_by_role("button", name="Head 1 of layer 2: its attention weights").wait_for()


def test_on_a_phone_an_enlarged_head_of_24_tokens_is_seen_whole(opened):
    page = opened("inside?stage=5&prompt=" + quote("O Romeo, Romeo! wherefore art thou Romeo" * 2), size=(360, 800))
    page.get_by_text("shows the first 24").wait_for()
    box = page.locator(".zoom")
    box.filter(has_text="Head 1").wait_for()
    assert box.locator("text").count() == 2 * 24
    assert box.evaluate("box => box.scrollWidth <= box.clientWidth")


def test_a_next_token_is_written_by_a_click_also_after_an_earlier_one(opened, model):
    gpt, tokenizer = model
    page = opened("inside")
    prompt = page.get_by_role("textbox", name="Your sentence")

    def click(text, place):
        """Click the next token at a place of the list after a text, and return both together."""
        best = gpt(torch.tensor([tokenizer.encode(text)])).logits[0, -1].topk(8).indices
        token = tokenizer.decode([int(best[place])])
        shown = token.replace(" ", "·").replace("\n", "⏎")
        page.get_by_role("button", name=re.compile("and go on$")).nth(place).and_(
            page.get_by_role("button", name=f"Write “{shown}” and go on")
        ).click()
        assert prompt.input_value() == text + token
        return text + token

    click(click("O Romeo, Romeo! wherefore art thou Romeo", 1), 0)
    page.locator("label").filter(has_text="·where").click()
    click("O Romeo, Romeo! where", 2)


def test_pointing_at_a_strip_explains_it(opened):
    page = opened("inside?layer=2")
    hidden = page.get_by_role("button", name="Hidden units")
    hidden.hover()
    told = page.locator(".stage .card").filter(has_text="Hidden units of the MLP")
    told.filter(has_text="1024 numbers").filter(has_text="above 0").wait_for()
    page.mouse.move(5, 5)
    told.wait_for(state="detached")
    page.keyboard.press("Tab")  # from here on, the focus is shown
    hidden.focus()
    told.wait_for()


def test_dots_run_through_a_new_answer_once_unless_motion_is_reduced(opened):
    page = opened("inside")
    dots = page.locator(".dots")
    dots.first.wait_for(state="attached")
    dots.first.wait_for(state="detached")
    page.emulate_media(reduced_motion="reduce")
    page.get_by_role("button", name="Write “?” and go on").click()
    page.get_by_text("The tokens (14) come in").wait_for()
    page.wait_for_timeout(600)
    assert not dots.count()


def test_on_a_desk_the_picture_runs_from_left_to_right(opened):
    page = opened("inside")
    page.get_by_role("button", name="Open layer 2").wait_for()
    places = [x for x, _ in middles(page, *ALONG)]
    assert places == sorted(places) and places[-1] - places[0] > 900


def test_on_a_phone_the_stage_that_is_explained_comes_into_view(opened):
    page = opened("inside", size=(390, 844))
    slider = page.get_by_role("slider", name=re.compile("Step"))
    slider.focus()
    page.keyboard.press("End")
    page.wait_for_function("scrollY > 600")
    (_, logits), (_, token) = middles(page, "Logits", "Token embedding")
    assert 0 < logits < 844 and token < 0
    assert 0 <= slider.bounding_box()["y"] < 200  # it stays, to go on with


LAYER, HEAD, AT = 4, 2, 8  # of the walk, counted from 0


def one_head(gpt, ids):
    """Return the query of a token, and the keys and values of all tokens, in one head of the package's model."""
    found = []
    hook = gpt.h[LAYER].attn.c_attn.register_forward_hook(lambda *call: found.append(call[2][0]))
    with torch.inference_mode():
        gpt(torch.tensor([ids]))
    hook.remove()
    size = gpt.config.head_size
    query, keys, values = (part[:, HEAD * size : (HEAD + 1) * size].numpy() for part in found[0].chunk(3, dim=-1))
    return query[AT], keys, values


def walked(page):
    """Return the numbers of the rows that are shown."""
    texts = page.locator(".walk tbody .number").all_inner_texts()
    return [float(text.replace("−", "-").replace("∞", "inf")) for text in texts]


def test_one_head_is_walked_through_with_the_packages_numbers(opened, model):
    query, keys, values = one_head(model[0], model[1].encode("O Romeo, Romeo! wherefore art thou Romeo"))
    scores = keys @ query
    scaled = scores / np.sqrt(len(query))
    masked = np.where(np.arange(len(keys)) > AT, -np.inf, scaled)
    weights = np.exp(masked) / np.exp(masked).sum()
    page = opened(f"inside?layer={LAYER + 1}&token={AT + 1}&head={HEAD + 1}")
    page.get_by_role("button", name="Next", exact=True).focus()
    for expected, tolerance in [(scores, 0.02), (scaled, 0.01), (masked, 0.01), (weights, 0.001), (weights, 0.001)]:
        page.keyboard.press("ArrowRight")
        np.testing.assert_allclose(walked(page), expected, atol=tolerance)
    told = page.locator(".walk tfoot").inner_text()
    assert float(re.search(r"([\d.]+) long", told)[1]) == pytest.approx(np.linalg.norm(weights @ values), abs=0.02)
    page.keyboard.press("ArrowRight")  # at the end it stays
    page.wait_for_function("location.hash.includes('walk=6')")
    again = opened(page.evaluate("location.hash").removeprefix("#"))
    again.locator(".walk tfoot").filter(has_text="long").wait_for()
    assert walked(again) == walked(page)
    page.get_by_role("button", name="Back", exact=True).click()
    page.keyboard.press("ArrowLeft")
    np.testing.assert_allclose(walked(page), masked, atol=0.01)


def test_the_walk_says_that_nothing_is_hidden_from_the_last_token_and_takes_nonsense_for_the_start(opened):
    page = opened("inside?walk=4&head=77")
    page.get_by_text("nothing is hidden from it").wait_for()
    assert np.isfinite(walked(page)).all()
    page = opened("inside?walk=99&head=none")
    page.locator(".walk .told").filter(has_text="head 1 has made a query").wait_for()


def test_a_closed_model_answers_what_it_was_asked_and_the_scene_goes_on_with_the_next(opened, tmp_path):
    page = opened("inside")
    asked = """async () => {
        const { session } = window.gptcourse;
        const settled = promise => promise.then(() => "answered", error => error.message);
        const before = settled(session.remote.trace(Array(200).fill(5)));
        session.remote.close();
        const never = new Promise(resolve => setTimeout(resolve, 20_000, "hangs"));
        return [await Promise.race([before, never]), await Promise.race([settled(session.remote.trace([5])), never])];
    }"""
    assert page.evaluate(asked) == ["This model has been closed."] * 2
    save(tmp_path / "mine", BPETokenizer.train("wherefore art thou Romeo, O Romeo " * 9, 270))
    page.locator("input[type=file]").set_input_files(tmp_path / "mine")
    page.get_by_role("button", name="Head 3 of layer 2", exact=False).first.wait_for()
    assert not page.get_by_role("alert").count()


def test_the_time_machine_reads_the_readers_own_prompt_and_the_example_by_button(opened):
    page = opened("learn?step=1600")
    prompt = page.get_by_label("Your prompt")
    page.locator(TEXT).filter(has_text=re.compile("^I say: jWk")).wait_for()
    page.get_by_text("your own", exact=True).click()
    page.locator(TEXT).filter(has_text=re.compile("^To be, or not to be")).wait_for()
    prompt.fill("ROMEO: What is")
    page.get_by_text("an example", exact=True).click()
    page.locator(TEXT).filter(has_text=re.compile("^I say: jWk")).wait_for()
    page.get_by_text("your own", exact=True).click()
    assert prompt.input_value() == "ROMEO: What is"  # it was kept
    page.wait_for_function("location.hash.includes('prompt=ROMEO')")


def test_the_time_machine_shows_what_was_recorded_at_each_step(opened):
    run = json.loads((ROOT / "gptcourse" / "assets" / "time-machine" / "run.json").read_text(encoding="utf-8"))
    page = opened("learn")
    slider = page.get_by_role("slider", name="step")
    slider.focus()
    texts = set()
    for record in run["checkpoints"]:
        page.get_by_text(f"held-out plays {record['held_out_loss']:.2f}").first.wait_for()
        texts.add(settled(page))
        page.keyboard.press("ArrowRight")
    assert len(texts) >= 14  # another text at nearly every step: the models of the first steps may agree
    last = settled(page)
    page.keyboard.press("Home")
    page.keyboard.press("End")
    assert settled(page) == last


def test_the_time_machine_plays_and_pauses(opened):
    page = opened("learn")
    slider = page.get_by_role("slider", name="step")
    page.wait_for_timeout(1_500)
    assert slider.input_value() == "0"  # it never begins by itself
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("document.querySelector('input[type=range]').value >= 2")
    page.get_by_role("button", name="Pause").click()
    stopped = slider.input_value()
    page.wait_for_timeout(1_500)
    assert slider.input_value() == stopped


def test_the_map_hides_its_losses_until_a_guess_and_then_shows_the_recorded_ones(opened):
    rates = json.loads((ROOT / "gptcourse" / "assets" / "tuning" / "rates.json").read_text(encoding="utf-8"))
    medians = {}
    for run in rates["runs"]:
        medians.setdefault((run["batch_size"], run["rate"]), []).append(run["loss"])
    medians = {key: f"{np.median(losses):.3f}" for key, losses in medians.items()}
    page = opened("tune")
    page.get_by_role("button", name="Guess: batch 16, rate 0.004", exact=False).wait_for()
    assert not any(median in page.inner_text("main") for median in medians.values())
    page.get_by_role("button", name="Guess: batch 16, rate 0.004", exact=False).click()
    shown = page.inner_text("main")
    assert all((median in shown) == (batch == 16) for (batch, _), median in medians.items())
    page.get_by_role("button", name="Show me all").click()
    shown = page.inner_text("main")
    assert all(median in shown for median in medians.values())
    page.get_by_role("button", name=re.compile("batch 64, rate 0.008: median")).click()
    assert f"batch 64, rate 0.008, warm-up 25: {medians[64, 0.008]}" in page.inner_text("main")


# ---- The reader's own model


def save(folder, tokenizer, **settings):
    """Save a small GPT with random weights, and return it."""
    torch.manual_seed(3)
    model = GPT(GPTConfig(tokenizer.vocab_size, 32, 48, 2, 3, **settings)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    model.save(folder, tokenizer)
    return model


SHAPES = {
    "gpt2": {},
    "of its own": {"position_embedding": "rotary", "norm": "rmsnorm", "qk_norm": True, "activation_function": "relu2"},
    "muP, untied": {"mup_base_width": 16, "tie_word_embeddings": False},
}


@pytest.mark.parametrize("settings", SHAPES.values(), ids=SHAPES)
def test_a_folder_of_gpt_save_opens_and_gives_the_same_logits(opened, tmp_path, settings):
    tokenizer = CharTokenizer("to be, or not to be: that is the question.\n")
    folder = tmp_path / "my-model"
    model, ids = save(folder, tokenizer, **settings), tokenizer.encode("not to be, that is")
    page = opened("write")
    page.locator("input[type=file]").set_input_files(folder)
    page.get_by_text("This is your own model, my-model").wait_for()
    expected = model(torch.tensor([ids])).logits[0].detach().numpy()
    np.testing.assert_allclose(np.array(page.evaluate(LOGITS, ids)), expected, atol=1e-4)
    page.get_by_label("The text to continue").fill("to be Z")
    assert "does not know the character “Z”" in page.get_by_role("alert").inner_text()
    page.get_by_label("The text to continue").fill("to be")
    assert set(written(page)) <= set(tokenizer.characters) | {"⏎"}


def test_a_bpe_of_ones_own_opens_too(opened, tmp_path):
    tokenizer = BPETokenizer.train("the king loves the queen, and the queen loves the king. " * 9, 270)
    save(tmp_path / "bpe", tokenizer)
    page = opened("write")
    page.locator("input[type=file]").set_input_files(tmp_path / "bpe")
    page.get_by_text("This is your own model").wait_for()
    ids = page.evaluate("window.gptcourse.session.tokenizer.encode('the queen sings é')")
    assert ids == tokenizer.encode("the queen sings é")


def drop(page, path):
    """Drop a path onto the page, as a file manager does: the browser makes the DataTransfer."""
    client = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        client.send("Input.dispatchDragEvent", {"type": kind, "x": 300, "y": 300, "data": data})


def test_a_folder_that_is_dropped_opens_whatever_else_lies_in_it(opened, tmp_path):
    folder, tokenizer = tmp_path / "my-model", CharTokenizer("to be, or not to be: that is the question.\n")
    model, ids = save(folder, tokenizer), tokenizer.encode("not to be, that is")
    for n in range(150):  # a browser lists a hundred files at a time
        (folder / f"a{n}.txt").write_text("noise")
    page = opened("write")
    drop(page, folder)
    page.get_by_text("This is your own model, my-model").wait_for()
    expected = model(torch.tensor([ids])).logits[0].detach().numpy()
    np.testing.assert_allclose(np.array(page.evaluate(LOGITS, ids)), expected, atol=1e-4)


def test_a_wrong_folder_that_is_dropped_is_refused_in_one_sentence(opened, tmp_path):
    (tmp_path / "empty").mkdir()
    page = opened("write")
    drop(page, tmp_path / "empty")
    page.get_by_role("alert").filter(has_text="holds no config.json").wait_for()


def without(name):
    return lambda folder: (folder / name).unlink()


def rewritten(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def cut(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


FAULTS = {
    "no config": (without("config.json"), "holds no config.json"),
    "no weights": (without("model.safetensors"), "holds no model.safetensors"),
    "no tokenizer": (without("characters.json"), "holds no characters.json"),
    "half a config": (rewritten("config.json", b'{"model_type": "gpt'), "config.json is damaged"),
    "another kind": (rewritten("config.json", b'{"model_type": "llama"}'), "of the kind “llama”"),
    "no sizes": (rewritten("config.json", b'{"model_type": "gpt2"}'), "config.json is damaged"),
    "half the weights": (cut, "model.safetensors is damaged"),
    "no safetensors": (rewritten("model.safetensors", b"PK\x03\x04 zip"), "model.safetensors is damaged"),
    "characters of a list": (rewritten("characters.json", b"[1, 2]"), "characters.json is damaged"),
    "too many characters": (
        rewritten("characters.json", json.dumps("".join(map(chr, range(32, 300)))).encode()),
        "more tokens than the model",
    ),
}


@pytest.mark.parametrize(("harm", "sentence"), FAULTS.values(), ids=FAULTS)
def test_a_wrong_folder_is_refused_in_one_sentence(opened, tmp_path, harm, sentence):
    save(tmp_path / "harmed", CharTokenizer("to be, or not"))
    harm(tmp_path / "harmed")
    page = opened("write")
    page.locator("input[type=file]").set_input_files(tmp_path / "harmed")
    assert sentence in page.get_by_role("alert").inner_text()
    assert page.evaluate("window.gptcourse.session.name") == "shakespeare-5m"  # the old model is still there


# ---- For everybody


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("scene", SCENES)
def test_axe_finds_nothing_serious(opened, scene, scheme):
    page = opened(scene, scheme=scheme)
    page.wait_for_timeout(500)
    page.add_script_tag(path=SITE / "node_modules" / "axe-core" / "axe.min.js")
    found = page.evaluate("async () => (await axe.run()).violations")
    serious = [
        (violation["id"], violation["nodes"][0]["html"][:300])
        for violation in found
        if violation["impact"] in ("serious", "critical")
    ]
    assert serious == []


@pytest.mark.parametrize("width", [360, 3840])
@pytest.mark.parametrize("scene", SCENES)
def test_no_scene_is_wider_than_the_window(opened, scene, width):
    page = opened(scene, size=(width, 800))
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scene", SCENES)
def test_scenes_say_in_one_sentence_that_data_is_missing(opened, scene):
    page = opened(scene, wait=False, block=re.compile(r"data/(first|shakespeare-5m|time-machine|tuning)\.js"))
    page.get_by_text("could not be loaded").first.wait_for()


@pytest.mark.parametrize("scene", SCENES)
def test_every_control_has_a_name(opened, scene):
    page = opened(scene)
    page.wait_for_timeout(300)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, textarea, select, [role=slider], a")]
            .filter(element => !(element.ariaLabel || element.title || element.innerText?.trim()
                || element.labels?.length || element.ariaLabelledByElements?.length))
            .map(element => element.outerHTML.slice(0, 200))"""
    )
    assert nameless == []


# ---- The notebooks as pages


def test_notebooks_become_pages_with_their_mathematics_and_nothing_from_elsewhere(tmp_path, browser, dist):
    """`dist` has installed what this needs: MathJax."""
    site_tool.write_pages(tmp_path / "pages")
    names = [path.stem for path in (ROOT / "notebooks").glob("*.ipynb")]
    assert {path.stem for path in (tmp_path / "pages").glob("*.html")} >= set(names)
    page, asked = browser.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((tmp_path / "pages" / "02_attention.html").as_uri())
    page.locator("mjx-container").first.wait_for()
    assert page.locator(".cell_output").count() > 10
    assert {url.partition(":")[0] for url in asked} <= {"file", "data", "blob"}
    page.close()
