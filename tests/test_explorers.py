"""The explorers without a browser: a slider's new value fires its observers, and the pictures are strings to read.

First what holds for every explorer, then the explorers of decoding, attention's scale, sizes and training.
"""

import copy
import importlib
import re
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from html import unescape
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch

from gptcourse import explorers, interpretability
from gptcourse.drawings import svg
from gptcourse.explorers import (
    TrainingMonitor,
    attention_explorer,
    attention_scale_explorer,
    bpe_explorer,
    chat_panel,
    compare_settings,
    decoding_explorer,
    forecast_explorer,
    frontier_explorer,
    law_explorer,
    memory_explorer,
    predict,
    router_explorer,
    size_explorer,
    thinking_explorer,
    threshold_explorer,
    time_machine_explorer,
    writing_panel,
)
from gptcourse.explorers.attention import gradient_size
from gptcourse.explorers.decoding import LEGEND
from gptcourse.explorers.explorer import text_box
from gptcourse.generation import Sampling, first_kept, generate, next_token_distribution
from gptcourse.model import GPT, GPT3_TABLE, GPTConfig
from gptcourse.modern import ModernConfig
from gptcourse.scaling import ScalingLaw, flops_per_token, training_memory
from gptcourse.tokenizers import BPETokenizer, CharTokenizer
from gptcourse.training import TrainingConfig, train

predict_module = importlib.import_module("gptcourse.explorers.predict")  # the package has a function of that name
TEXT = "To be, or not to be: that is the question.\n<script>alert('&amp;')</script>"
ATTACK = "<script>alert('&amp;')</script>"
LAWS = {"a": ScalingLaw(E=1.69, A=406.4, alpha=0.34, B=410.7, beta=0.28), "b": ScalingLaw(1.0, 20.0, 0.4, 50.0, 0.4)}
SIMPLE = ["attention_scale", "bend", "initialisation", "size", "window", "rotary", "schedule", "device", "dpo"]
SIMPLE += ["collective", "pipeline"]
RUNS = [
    {
        "shape": f"{n} × 16",
        "parameters": 1e4 * n,
        "tokens": d,
        "flops_per_token": 6e4 * n,
        "loss": 1.5 + 1 / n + 1e4 / d,
    }
    for n in (1, 2)
    for d in (1e5, 2e5)
]
LARGER = RUNS[-1] | {"shape": "9 × 16", "parameters": 1e6, "tokens": 4e6, "flops_per_token": 6e6, "loss": 1.5}
WITH_A_MODEL = {
    "attention": lambda model, tokenizer: attention_explorer(model, tokenizer, TEXT[:30], held_out=TEXT),
    "decoding": lambda model, tokenizer: decoding_explorer(model, tokenizer, "To be", max_new_tokens=12),
    "compare": lambda model, tokenizer: compare_settings(model, tokenizer, "To be", max_new_tokens=12),
    "writing": lambda model, tokenizer: writing_panel(model, tokenizer, "To be", max_new_tokens=12),
}
EVERY = {name: lambda *_, name=name: getattr(explorers, f"{name}_explorer")() for name in SIMPLE} | {
    "law": lambda *_: law_explorer(LAWS),
    "forecast": lambda *_: forecast_explorer(RUNS, LARGER),
    "threshold": lambda *_: threshold_explorer([1.0, 2.0, 4.0], [0.0, 1.5]),
    "frontier": lambda *_: frontier_explorer([([0.0, 0.5, 1.0], [0.5, 0.3, 0.2])]),
    "thinking": lambda *_: thinking_explorer([{"thoughts": n, "by_length": {"2": n / 9, "3": 0.1}} for n in (0, 9)]),
    "memory": lambda *_: memory_explorer(
        {"a": ModernConfig(50, 64, 32, 2, 4, 24), "b": ModernConfig(9, 8, 4, 1, 2, 3)}
    ),
    "router": lambda *_: router_explorer(list(TEXT[:24]), torch.arange(192.0).sin().reshape(24, 8)),
    "bpe": lambda *_: bpe_explorer(BPETokenizer.train(TEXT * 4, 270), "that is"),
    "time machine": lambda *_: time_machine_explorer(),
    **WITH_A_MODEL,
}
TYPED = {"bpe": "text", "time machine": "prompt", "attention": "text", "decoding": "prompt", "compare": "prompt"}


def small_model():
    """Return a model with an opinion (as it starts, a model finds every token equally likely) and its tokenizer."""
    tokenizer = CharTokenizer(TEXT)
    torch.manual_seed(0)
    model = GPT(GPTConfig(tokenizer.vocab_size, n_positions=48, n_embd=16, n_layer=2, n_head=2))
    with torch.no_grad():
        model.wte.weight.mul_(25)
    return model, tokenizer


@pytest.fixture(scope="module")
def model():
    return small_model()[0]


@pytest.fixture(scope="module")
def tokenizer():
    return small_model()[1]


@pytest.fixture
def decoding(model, tokenizer):
    explorer = decoding_explorer(model, tokenizer, "To be, or", max_new_tokens=12)
    explorer.seconds_to_stand_still = 0.0
    return explorer


def ends_of(control):
    """Return two values of a control that are not the one it has, if there are so many."""
    if hasattr(control, "options"):
        values = [option[1] if isinstance(option, tuple) else option for option in control.options]
    elif hasattr(control, "min"):
        values = [control.min, control.max]
    else:
        values = [not control.value] if isinstance(control.value, bool) else ["that", "is"]
    return [value for value in (values[0], values[-1]) if value != control.value]


def wait_for(explorer):
    """Wait for what a panel writes, and return all that it shows."""
    getattr(explorer, "wait", lambda: None)()
    return "".join(getattr(explorer, name).value for name in SHOWN if hasattr(explorer, name))


SHOWN = ("picture", "continuation", "alternatives")


@pytest.fixture(params=EVERY)
def every(request, model, tokenizer, monkeypatch):
    monkeypatch.setattr("gptcourse.explorers.text_panel.Writer.seconds_to_stand_still", 0.0)
    monkeypatch.setattr("gptcourse.explorers.time_machine.NEW_TOKENS", 4)
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.wte.weight.mul_(0.4)  # less sure of itself, so that every slider makes it write something else
    return EVERY[request.param](model, tokenizer)


def test_every_control_of_every_explorer_changes_what_is_shown_and_back_again(every):
    children, first = every.children, wait_for(every)
    for name, control in every.controls.items():
        before = control.value
        shown = {first}
        for value in ends_of(control):
            control.value = value
            shown.add(wait_for(every))
            pictures = re.findall(r"<svg.*?</svg>", every.picture.value, re.DOTALL)
            assert all(ElementTree.fromstring(found).tag == "svg" for found in pictures)
            assert not re.search(r'[="( ](nan|inf)[", )]', every.picture.value)
        # The highest values of two sliders cut nothing here: 100 tokens are all, none is 5 deviations below the best.
        assert len(shown) > 1 or name.endswith(("top_k", "top_n_sigma")), name
        control.value = before
        if isinstance(every, explorers.scaling.SizeExplorer) and name == "preset":
            return  # "yours" is where the sliders stand
        assert wait_for(every) == first, name
    assert every.children == children


@pytest.mark.parametrize("name", TYPED)
def test_what_is_typed_into_any_explorer_is_shown_as_text(name, model, tokenizer, monkeypatch):
    monkeypatch.setattr("gptcourse.explorers.time_machine.NEW_TOKENS", 4)
    explorer = EVERY[name](model, tokenizer)
    for typed in (ATTACK, "", "\x00", "é😀你好", "half a letter: \ud83d", "x" * 1_000):
        explorer.controls[TYPED[name]].value = typed
        shown = wait_for(explorer)
        assert "<script" not in shown and shown


def test_an_error_of_value_is_shown_as_its_sentence_in_the_place_of_the_picture():
    slider = explorers.explorer.slider("n", 1, 0, 9)

    def picture(n):
        if n == 3:
            raise ValueError("Not <3>.")
        return f"<b>{n}</b>"

    explorer = explorers.explorer.Explorer({"n": slider}, picture)
    slider.value = 3
    assert explorer.picture.value == svg.paragraph("Not <3>.")
    explorer.move(n=4)
    assert explorer.picture.value == "<b>4</b>" and explorer.values == {"n": 4}


# ---- Start values: what is asked for, or one sentence


ASKED = Sampling(5.0, 500, 0.999_99, 0.75, repetition_penalty=0.5, seed=42_000, typical_p=0.001, top_n_sigma=9.0)


@pytest.mark.parametrize(
    "new",
    [
        lambda model, tokenizer: chat_panel(model, BPETokenizer.train(TEXT * 4, 270), "To", ASKED, max_new_tokens=1),
        lambda model, tokenizer: writing_panel(model, tokenizer, "To", ASKED, max_new_tokens=1),
        lambda model, tokenizer: compare_settings(model, tokenizer, "To", ASKED, ASKED, max_new_tokens=1),
    ],
)
def test_a_panel_stands_where_it_was_asked_to(new, model, tokenizer):
    panel = new(model, tokenizer)
    for prefix in ("first ", "second ") if "first top_p" in panel.controls else ("",):
        assert explorers.text_panel.sampling_of(panel.values, prefix) == ASKED


@pytest.mark.parametrize("width", [1000, 8, 20_480])
def test_a_size_that_the_slider_does_not_have_joins_it(width):
    explorer = size_explorer(width=width, heads=4)
    assert explorer.controls["width"].value == width
    assert f"{GPTConfig(50257, 2048, width, 24, 4).num_parameters:,} parameters" in explorer.picture.value


def test_a_ruler_reaches_as_far_as_its_dot():
    explorer = size_explorer(width=40_960, layers=96, heads=320, context=2**20)  # 2 trillion parameters
    xs = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', explorer.picture.value)]
    assert len(xs) == 3 and all(24 < x < svg.WIDTH - 24 for x in xs)


@pytest.mark.parametrize(
    "new, sentence",
    [
        (lambda m, t: size_explorer(width="wide"), "cannot stand at 'wide'"),
        (lambda m, t: chat_panel(m, t, "To", Sampling(seed=2**60)), "cannot stand at 1152921504606846976"),
        (lambda m, t: chat_panel(m, t, "To", remember=-1), "remember is -1"),
        (lambda m, t: compare_settings(m, t, "To", Sampling(seed=1), Sampling(seed=2)), "one seed, but they ask for 1"),
        (lambda m, t: TrainingMonitor(TrainingConfig(1, 1, 1e-3), sample_steps=0), "sample_steps is 0"),
    ],
)
def test_a_start_value_that_cannot_be_is_refused_with_one_sentence(new, sentence, model, tokenizer):
    with pytest.raises(ValueError, match=sentence):
        new(model, tokenizer)


@pytest.mark.parametrize("size", [-8, 0, 1.5])
def test_a_shape_that_cannot_be_is_answered_in_the_picture(size):
    assert "This model cannot be built" in size_explorer(width=size).picture.value


# ---- Reading a model that another thread trains


def train_losses(meanwhile=lambda model: None):
    """Train a model with dropout, with something else in a second thread all the while; return model and losses."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(len(set(TEXT)), n_positions=48, n_embd=16, n_layer=2, n_head=2, dropout=0.3))
    tokens, over = torch.tensor(CharTokenizer(TEXT).encode(TEXT * 4)), threading.Event()
    config = TrainingConfig(steps=60, batch_size=4, learning_rate=1e-2, sequence_length=32)

    def read():
        while not over.is_set():
            meanwhile(model)

    reader = threading.Thread(target=read)
    reader.start()
    history = train(model, tokens, config, callback=lambda _: time.sleep(0.005), device="cpu", progress=False)
    over.set()
    reader.join()
    return list(history.loss)


@pytest.fixture(scope="module")
def losses_alone():
    return train_losses()


def move_panel(name):
    """Return a function that makes an explorer once, then moves its controls whenever it is called."""
    panels = {}

    def move(model):
        if not panels:
            panels["it"] = WITH_A_MODEL[name](model, CharTokenizer(TEXT))
        control = panels["it"].controls
        for key in ("prompt", "text"):
            if key in control:
                control[key].value = "To be" if control[key].value == "or not" else "or not"
        if "off" in control:
            control["off"].value = not control["off"].value
        getattr(panels["it"], "wait", lambda: None)()

    return move


@pytest.mark.parametrize("name", WITH_A_MODEL)
def test_a_panel_on_a_model_in_training_leaves_its_losses_alone(name, losses_alone, monkeypatch):
    monkeypatch.setattr("gptcourse.explorers.text_panel.Writer.seconds_to_stand_still", 0.0)
    assert train_losses(move_panel(name)) == losses_alone


@pytest.mark.parametrize("name", WITH_A_MODEL)
def test_a_compiled_model_is_read_as_the_model_in_it(name, model, tokenizer):
    compiled = WITH_A_MODEL[name](torch.compile(model), tokenizer)
    assert wait_for(compiled) == wait_for(WITH_A_MODEL[name](model, tokenizer))


def test_measuring_the_heads_of_a_model_in_training_leaves_its_losses_alone(losses_alone):
    ids = torch.arange(30)
    assert train_losses(lambda model: interpretability.head_ablation(model, ids)) == losses_alone
    assert len(set(losses_alone)) == 60


# ---- Decoding


def drawing(html):
    """Return the first SVG in a piece of HTML."""
    return re.search(r"<svg.*?</svg>", html, re.DOTALL)[0]


def written(explorer):
    """Return the text whose tokens are coloured."""
    spans = re.findall(r'<span style="background:rgba[^>]*>(.*?)</span>', explorer.continuation.value, re.DOTALL)
    return unescape("".join(spans[: -len(LEGEND)]))


def texts(picture):
    """Return every text in an SVG, which is parsed as XML: what is not escaped fails here."""
    return ["".join(element.itertext()) for element in ElementTree.fromstring(drawing(picture)).iter("text")]


def shown_percentages(explorer, rows=12):
    """Return {token: (before, after)} as the bars' labels say."""
    found = re.findall(r"<text.*?</text>", explorer.picture.value)
    labels = [("monospace" in label, texts(f"<svg>{label}</svg>")[0]) for label in found]
    start = [n for n, (token, _) in enumerate(labels) if token][:rows]
    return {labels[n][1]: (labels[n + 1][1], labels[n + 2][1]) for n in start}


def expected_percentages(model, tokenizer, prompt, sampling, rows=12):
    ids = torch.tensor([tokenizer.encode(prompt)])
    with torch.no_grad():
        logits = model(ids).logits[:, -1]
    before, after = logits.softmax(-1)[0], next_token_distribution(logits, sampling, ids)[0]
    return {
        svg.visible(tokenizer.decode([i])): (svg.percent(before[i].item()), svg.percent(after[i].item()))
        for i in before.topk(rows).indices.tolist()
    }


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"temperature": 0.0},
        {"temperature": 2.0},
        {"top_k": 3},
        {"top_p": 0.6},
        {"min_p": 0.2},
        {"typical_p": 0.4},
        {"top_n_sigma": 1.0},
        {"temperature": 1.5, "top_k": 9, "top_p": 0.9, "repetition_penalty": 1.7},
    ],
)
def test_bars_show_the_model_and_what_the_sliders_make_of_it(decoding, model, tokenizer, knobs):
    for name, value in knobs.items():
        decoding.controls[name].value = value
    expected = expected_percentages(model, tokenizer, "To be, or", Sampling(**knobs))
    assert shown_percentages(decoding) == expected
    assert len({after for _, after in expected.values()}) > 1


def test_status_says_how_much_is_kept_and_the_entropies(decoding, model, tokenizer):
    decoding.controls["top_k"].value = 3
    ids = torch.tensor([tokenizer.encode("To be, or")])
    with torch.no_grad():
        before = model(ids).logits[0, -1].softmax(-1)
    kept = before.topk(3).values
    entropies = [torch.distributions.Categorical(p).entropy().item() / 0.6931471805599453 for p in (before, kept)]
    assert f"3 of {tokenizer.vocab_size} tokens kept, with {svg.percent(kept.sum().item())}" in decoding.picture.value
    assert f"entropy {entropies[0]:.2f} → {entropies[1]:.2f} bits" in decoding.picture.value


def test_continuation_is_what_generate_writes_with_that_seed(decoding, model, tokenizer):
    for seed in (0, 7):
        decoding.controls["seed"].value = seed
        decoding.controls["temperature"].value = 0.9
        decoding.wait()
        ids = generate(model, tokenizer.encode("To be, or"), 12, Sampling(temperature=0.9, seed=seed))
        new = tokenizer.decode(ids[9:])
        assert written(decoding) == new


def test_each_token_is_coloured_by_its_probability_though_the_text_outgrows_the_window(decoding, model, tokenizer):
    decoding.controls["prompt"].value = prompt = "To be, or not to be: that is the question."  # 42 + 12 tokens, of 48
    decoding.wait()
    ids = generate(model, tokenizer.encode(prompt), 12, Sampling(seed=0))
    expected = []
    for end in range(42, 54):
        with torch.no_grad():
            logits = model(torch.tensor([ids[first_kept(end, 48) : end]])).logits[0, -1]
        expected.append(svg.percent(logits.softmax(-1)[ids[end]].item()))
    assert re.findall(r'title="(.*?)"', decoding.continuation.value)[:12] == expected and len(set(expected)) > 6
    depths = re.findall(r"rgba\(217,115,13,(.*?)\)", decoding.continuation.value)[12:]
    assert len(depths) == 4 and depths == sorted(depths)  # the legend, from likely to unlikely


def test_the_token_slider_shows_the_alternatives_before_and_after_the_sliders(decoding, model, tokenizer):
    assert decoding.alternatives.value == ""
    decoding.controls["top_k"].value = 4
    decoding.wait()
    decoding.controls["token"].value = 5
    ids = generate(model, tokenizer.encode("To be, or"), 12, Sampling(top_k=4, seed=0))
    with torch.no_grad():
        before = model(torch.tensor([ids[:13]])).logits[0, -1].softmax(-1)
    after = next_token_distribution(before.log(), Sampling(top_k=4))
    shown = texts(decoding.alternatives.value)
    rows = [text for text in shown if text != "◀"][2 + 6 :]  # after the headings and the axis
    rows = [rows[i : i + 3] for i in range(0, 15, 3)]
    best = before.topk(5).indices
    assert [row[0] for row in rows] == [svg.visible(tokenizer.decode([i])) for i in best.tolist()]
    assert [row[1:] for row in rows] == [[svg.percent(p[i].item()) for p in (before, after)] for i in best]
    assert shown[shown.index("◀") - 3] == svg.visible(tokenizer.decode([ids[13]]))
    assert f"number {1 + int((before > before[ids[13]]).sum())} in the model" in decoding.alternatives.value
    decoding.controls["prompt"].value = ""
    assert decoding.alternatives.value == ""


def test_a_slider_needs_no_forward_pass_for_the_bars(decoding, monkeypatch):
    monkeypatch.setattr(decoding, "seconds_to_stand_still", 1000.0)
    monkeypatch.setattr(GPT, "forward", lambda *_: pytest.fail("a forward pass"))
    old = decoding.picture.value
    decoding.controls["temperature"].value = 0.5
    assert decoding.picture.value != old
    decoding.timer.cancel()


def test_the_marked_token_is_the_first_of_the_continuation(decoding, model, tokenizer):
    marked = set()
    decoding.controls["temperature"].value = 3.0
    for seed in range(8):
        decoding.controls["seed"].value = seed
        first = generate(model, tokenizer.encode("To be, or"), 1, Sampling(temperature=3.0, seed=seed))[-1]
        labels = texts(decoding.picture.value)
        row = labels[labels.index("◀") - 3]
        others = re.fullmatch(r"\d+ others", row)
        assert others or row == svg.visible(tokenizer.decode([first]))
        marked.add(row)
    assert len(marked) > 1


@pytest.mark.parametrize(
    "prompt, sentence",
    [("", "The prompt is empty"), ("Zebra", "&#x27;Z&#x27;"), ("to " * 20, "60 tokens and the model reads 48")],
)
def test_a_prompt_that_cannot_be_read_is_answered_with_the_reason(decoding, prompt, sentence):
    decoding.controls["prompt"].value = prompt
    assert sentence in decoding.picture.value
    assert "<svg" not in decoding.picture.value and decoding.continuation.value == ""
    decoding.controls["temperature"].value = 0.5  # and the sliders still move
    for readable in ("To be, or", "To be"):  # the one that was there before, and another
        decoding.controls["prompt"].value = readable
        decoding.wait()
        assert "tokens kept" in decoding.picture.value and len(written(decoding)) == 12


def test_an_error_while_writing_is_shown_as_text(decoding, monkeypatch):
    monkeypatch.setattr("gptcourse.explorers.text_panel.stream", lambda *_: map(int, ["<b>"]))
    decoding.controls["seed"].value = 3
    decoding.wait()
    assert "[invalid literal" in decoding.continuation.value
    assert "<b>" not in decoding.continuation.value


def test_the_decoding_explorer_reads_a_transformers_model():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=40, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    torch.manual_seed(0)
    tokenizer = CharTokenizer("".join(map(chr, range(65, 105))))
    explorer = decoding_explorer(transformers.GPT2LMHeadModel(config), tokenizer, "ABC", max_new_tokens=4)
    assert "of 40 tokens kept" in explorer.picture.value
    assert "Error" not in explorer.continuation.value


def test_dividing_by_root_d_keeps_the_variance_at_one_and_the_gradient_alive():
    explorer = attention_scale_explorer()
    explorer.controls["d"].value = 256

    def numbers():
        return [float(n) for n in re.findall(r"scores ([\d.]+).*?gradient ([\d.]+)", explorer.picture.value)[0]]

    variance, gradient = numbers()
    explorer.controls["scale"].value = "1/√d"
    scaled_variance, scaled_gradient = numbers()
    assert variance == pytest.approx(256, rel=0.1)
    assert scaled_variance == pytest.approx(1, rel=0.1)
    assert scaled_gradient > 3 * gradient


def test_gradient_size_is_the_norm_of_torchs_jacobian():
    scores = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    jacobians = torch.stack([torch.autograd.functional.jacobian(lambda s: s.softmax(-1), row) for row in scores])
    torch.testing.assert_close(gradient_size(scores.softmax(-1)), jacobians.flatten(1).norm(dim=1))


@pytest.mark.parametrize("name", GPT3_TABLE)
def test_the_size_menu_shows_gpt3s_own_numbers(name):
    explorer = size_explorer()
    explorer.controls["preset"].value = name
    config = GPTConfig.gpt3(name)
    assert f"{config.num_parameters:,} parameters" in explorer.picture.value
    metric = (" k", " M", " G", " T", " P")
    assert f"{svg.short(sum(training_memory(config, 1).values()), metric)}B of memory" in explorer.picture.value
    assert f"{svg.short(flops_per_token(config), metric)}FLOP" in explorer.picture.value
    assert explorer.controls["width"].value == config.n_embd
    assert explorer.controls["preset"].value == name


def test_the_size_menu_draws_once_though_it_moves_four_sliders():
    explorer, pictures = size_explorer(), []
    explorer.picture.observe(pictures.append, "value")
    explorer.controls["preset"].value = "175B"
    assert len(pictures) == 1


def test_a_moved_slider_is_no_longer_gpt3s_size():
    explorer = size_explorer()
    explorer.controls["preset"].value = "1.3B"
    explorer.controls["layers"].value = 12
    assert explorer.controls["preset"].value == "yours"
    assert explorer.controls["width"].value == 2048


def test_a_shape_that_cannot_be_built_is_refused_with_a_sentence():
    explorer = size_explorer()
    explorer.controls["heads"].value = 40
    assert "cannot be built" in explorer.picture.value and "40" in explorer.picture.value
    explorer.controls["heads"].value = 8
    assert "parameters" in explorer.picture.value


def test_a_prediction_hides_its_answer_until_a_guess(capsys):
    quiz = predict("How does it *grow*?", ["not at all", "like √d"], "like √d", "Because <b> of the spread.")
    printed = capsys.readouterr().out
    assert "How does it" in printed and "(b) like √d" in printed

    def state(widget):
        return str([child.get_state() for child in (widget.reply, *widget.buttons)])

    assert quiz.reply.value == "" and "spread" not in state(quiz) + printed
    quiz.buttons[0].click()
    assert "You guessed a; it is b." in quiz.reply.value
    assert "Because &lt;b&gt; of the spread." in quiz.reply.value
    assert [button.button_style for button in quiz.buttons] == ["danger", "success"]
    quiz.buttons[1].click()  # too late
    assert "You guessed a; it is b." in quiz.reply.value


def test_after_a_guess_the_button_that_has_the_focus_stays_enabled():
    quiz = predict("Which?", ["this", "that", "neither"], "that", "")
    quiz.buttons[0].click()
    assert [button.disabled for button in quiz.buttons] == [False, False, True]


def test_the_proof_of_a_prediction_is_computed_after_the_guess(capsys, monkeypatch):
    monkeypatch.delenv("GPTCOURSE_REVEAL", raising=False)
    computed = []
    quiz = predict("?", ["a thing", "another"], "another", "So it is.", reveal=lambda: computed.append(1))
    assert computed == []
    quiz.buttons[0].click()
    assert computed == [1]


def test_where_nobody_clicks_the_proof_is_computed_at_once_and_stands_in_a_fold(monkeypatch):
    monkeypatch.setenv("GPTCOURSE_REVEAL", "1")
    shown = []
    monkeypatch.setattr(predict_module, "display", lambda data, raw=False: shown.append(data))
    quiz = predict("?", ["a thing", "another"], "another", "So <it> is.", reveal=lambda: print("2 < 3"))
    assert "another" in shown[0]["text/markdown"]
    assert shown[1]["text/plain"] == "2 < 3\n"
    assert shown[1]["text/html"].startswith("<details><summary>After your guess</summary><p>(b) So &lt;it&gt; is.</p>")
    assert "<pre>2 &lt; 3\n</pre>" in shown[1]["text/html"]
    quiz.buttons[1].click()
    assert len(shown) == 2  # not computed again


def test_a_proof_that_is_a_figure_is_an_image_in_the_fold(monkeypatch):
    monkeypatch.setenv("GPTCOURSE_REVEAL", "1")
    shown = []
    monkeypatch.setattr(predict_module, "display", lambda data, raw=False: shown.append(data))
    figure = SimpleNamespace(data={"text/html": "<img alt='It rises'>", "text/plain": "It rises"})
    captured = SimpleNamespace(stdout="", outputs=[figure, SimpleNamespace(data={"text/plain": "1 < 2"})])
    monkeypatch.setattr(predict_module, "capture_output", lambda: nullcontext(captured))
    predict("?", ["a thing", "another"], "another", "So it is.", reveal=lambda: None)
    assert shown[1]["text/html"].endswith("<img alt='It rises'><pre>1 &lt; 2</pre></details>")


def test_a_right_prediction_is_greeted():
    quiz = predict("?", ["a thing", "another"], "another", "So it is.")
    quiz.buttons[1].click()
    assert "✓ b it is." in quiz.reply.value
    assert [button.button_style for button in quiz.buttons] == ["", "success"]


@pytest.mark.parametrize("options, answer", [(["one"], "one"), (["one", "one"], "one"), (["one", "two"], "three")])
def test_a_question_without_an_answer_is_refused(options, answer):
    with pytest.raises(ValueError, match="predict"):
        predict("?", options, answer, "")


@dataclass
class FakeHistory:
    loss: list = field(default_factory=list)
    eval_step: list = field(default_factory=list)
    eval_loss: list = field(default_factory=list)
    stopped: str | None = None

    @property
    def step(self):
        return list(range(1, len(self.loss) + 1))

    @property
    def tokens(self):
        return [8 * step**2 for step in self.step]  # more each step, as under a batch ramp


def test_the_monitor_follows_a_real_training(model, tokenizer):
    config = TrainingConfig(steps=6, batch_size=2, learning_rate=1e-3, sequence_length=8, eval_steps=3)
    samples = []
    monitor = TrainingMonitor(
        config, floor=(1.25, "a floor"), sample=lambda: samples.append(0) or "<i>so</i>", sample_steps=2
    )
    tokens = torch.tensor(tokenizer.encode(TEXT * 3))
    history = train(
        model, tokens, config, validation_tokens=tokens[:30], callback=monitor, device="cpu", progress=False
    )
    assert history.stopped is None
    assert f"loss {history.loss[-1]:.3f}" in monitor.status.value and "step 6 of 6" in monitor.status.value
    assert f"validation {history.eval_loss[-1]:.3f}" in monitor.status.value
    assert {"training", "validation", "a floor"} <= set(texts(monitor.picture.value))
    assert len(samples) == 3 and monitor.texts.value.count("&lt;i&gt;so") == 3


def test_the_stop_button_stops_the_training_and_keeps_what_was_learned(model, tokenizer):
    config = TrainingConfig(steps=50, batch_size=2, learning_rate=1e-3, sequence_length=8)
    monitor = TrainingMonitor(config)

    def press_at_step_three(history):
        if len(history.loss) == 3:
            monitor.stop.click()
        return monitor(history)

    history = train(
        model,
        torch.tensor(tokenizer.encode(TEXT * 3)),
        config,
        callback=press_at_step_three,
        device="cpu",
        progress=False,
    )
    assert history.stopped == "callback" and len(history.loss) == 3
    assert "stopped" in monitor.status.value


def test_a_stop_ends_one_run_and_the_next_goes_its_way(model, tokenizer):
    config = TrainingConfig(steps=8, batch_size=2, learning_rate=1e-3, sequence_length=8)
    monitor, tokens = TrainingMonitor(config), torch.tensor(tokenizer.encode(TEXT * 3))

    def press_at_step_three(history):
        if len(history.loss) == 3:
            monitor.stop.click()
        return monitor(history)

    options = {"device": "cpu", "progress": False}
    assert len(train(model, tokens, config, callback=press_at_step_three, **options).loss) == 3
    again = train(model, tokens, config, callback=monitor, **options)
    assert again.stopped is None and len(again.loss) == 8
    assert not monitor.stop.disabled and monitor.stop.description == "Stop training"
    monitor.stop.click()  # a click that came after the last step stops nothing either
    assert monitor(FakeHistory(loss=[3.0])) is False


def test_the_stop_button_goes_when_the_cell_ends_however_it_ended(monkeypatch):
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell()
    monkeypatch.setattr("gptcourse.explorers.monitor.get_ipython", lambda: shell)
    monkeypatch.setattr("gptcourse.explorers.monitor.clicks_arrive_while_a_cell_runs", lambda: True)
    monitor = TrainingMonitor(TrainingConfig(steps=9, batch_size=1, learning_rate=1e-3))
    monitor(FakeHistory(loss=[3.0]))
    assert monitor.stop.layout.display == ""
    shell.events.trigger("post_run_cell", None)  # the kernel was interrupted
    assert monitor.stop.layout.display == "none"
    assert monitor._cell_ended not in shell.events.callbacks["post_run_cell"]


def test_the_stop_button_is_hidden_where_no_click_can_arrive():
    monitor = TrainingMonitor(TrainingConfig(steps=9, batch_size=1, learning_rate=1e-3))
    monitor(FakeHistory(loss=[3.0]))
    assert monitor.stop.layout.display == "none"  # pytest has no kernel


def test_the_stop_button_is_shown_while_clicks_arrive(monkeypatch):
    monkeypatch.setattr("gptcourse.explorers.monitor.clicks_arrive_while_a_cell_runs", lambda: True)
    monitor = TrainingMonitor(TrainingConfig(steps=2, batch_size=1, learning_rate=1e-3))
    monitor(FakeHistory(loss=[3.0]))
    assert monitor.stop.layout.display != "none"
    monitor(FakeHistory(loss=[3.0, 2.0]))
    assert monitor.stop.layout.display == "none"  # the last step is done


def test_the_monitor_draws_at_most_five_times_a_second(monkeypatch):
    clock = iter(n * 0.05 for n in range(1000))
    monkeypatch.setattr("gptcourse.explorers.monitor.time.monotonic", lambda: next(clock))
    monitor = TrainingMonitor(TrainingConfig(steps=1000, batch_size=1, learning_rate=1e-3))
    pictures = []
    monitor.picture.observe(lambda change: pictures.append(change["new"]), "value")
    for steps in range(1, 101):  # 5 seconds by the clock above
        monitor(FakeHistory(loss=[10.0 / n for n in range(1, steps + 1)]))
    assert 20 <= len(pictures) <= 26


def test_the_monitors_speed_counts_the_tokens_that_were_read(monkeypatch):
    clock = iter(range(1000))  # one second a step
    monkeypatch.setattr("gptcourse.explorers.monitor.time.monotonic", lambda: next(clock))
    monitor = TrainingMonitor(TrainingConfig(steps=1000, batch_size=1, learning_rate=1e-3))
    for steps in (1, 2, 3):
        monitor(FakeHistory(loss=[3.0] * steps))
    assert "32 tokens/s" in monitor.status.value  # 8 · (3² − 1²) tokens in two seconds


def test_the_monitors_picture_does_not_grow():
    monitor = TrainingMonitor(
        TrainingConfig(steps=10**6, batch_size=1, learning_rate=1e-3), sample=lambda: "so it goes"
    )
    sizes = []
    for steps in (600, 60_000):
        monitor(FakeHistory(loss=[float(n % 7) for n in range(steps)]))
        monitor.progress.clear()
        sizes.append(len(monitor.picture.value))
    assert sizes[1] < 1.3 * sizes[0]
    for steps in range(100, 1000, 100):
        monitor(FakeHistory(loss=[1.0] * steps))
    assert monitor.texts.value.count("so it goes") == 3


def test_the_monitor_survives_a_loss_that_is_not_a_number():
    monitor = TrainingMonitor(TrainingConfig(steps=3, batch_size=1, learning_rate=1e-3))
    monitor(FakeHistory(loss=[3.0, float("inf"), float("nan")]))
    ElementTree.fromstring(monitor.picture.value)
    assert not re.search(r'points="[^"]*(nan|inf)', monitor.picture.value)


@pytest.mark.parametrize(
    "draw",
    [
        lambda label: svg.bars([(label, 0.5, 0.2)], description=label, headings=(label, label), cut_after=1),
        lambda label: svg.heat_map([[0.5, -0.2]], [label], ["a", label], description=label, title=label),
        lambda label: svg.line_chart({label: ([0, 1], [2, 3])}, labels=(label, label), floor=(2, label)),
    ],
)
def test_every_label_of_every_picture_is_escaped(draw):
    picture = draw(ATTACK)
    assert "<script" not in picture
    assert ATTACK in texts(picture)
    assert ElementTree.fromstring(picture).get("aria-label").startswith(ATTACK)


def test_bars_are_as_long_as_the_numbers():
    picture = svg.bars([("a", 0.5, 0.25), ("b", 1.0, 0.0)], description="", headings=("", ""))
    widths = [float(r.get("width")) for r in ElementTree.fromstring(picture).iter("rect")]
    assert widths == pytest.approx([0.5 * widths[2], 0.25 * widths[2], widths[2], 0.0])


def test_heat_map_cells_are_as_strong_as_the_numbers():
    picture = svg.heat_map([[1.0, 0.25, -0.5]], ["r"], ["a", "b", "c"], description="")
    paths = ElementTree.fromstring(picture).iter("path")
    cells = {(path.get("fill"), float(path.get("fill-opacity"))) for path in paths}  # in steps of 0.02
    assert cells == {(svg.BLUE, 1.0), (svg.BLUE, 0.24), (svg.ORANGE, 0.5)}
    assert texts(picture)[-3:] == ["1.0", ".2", "−.5"]


def test_a_curve_passes_through_its_points():
    picture = svg.line_chart({"c": ([0, 1, 2], [0.0, 10.0, 5.0])}, labels=("", ""), y_range=(0, 10))
    points = [
        tuple(map(float, p.split(",")))
        for p in ElementTree.fromstring(picture).find(".//polyline").get("points").split()
    ]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1) and x0 < x1
    assert y0 - y2 == pytest.approx((y0 - y1) / 2) and y1 < y0  # up on the page is a smaller y


@pytest.mark.parametrize(
    "p, label", [(0, "0 %"), (5e-5, "< 0.01 %"), (0.00123, "0.12 %"), (0.1234, "12.3 %"), (1, "100.0 %")]
)
def test_percentages_are_readable(p, label):
    assert svg.percent(p) == label


@pytest.mark.parametrize(
    "number, label", [(0.5, "0.5"), (999, "999"), (1500, "1.5k"), (124439808, "124M"), (175e9, "175B"), (2e15, "2000T")]
)
def test_large_numbers_are_readable(number, label):
    assert svg.short(number) == label


def test_a_token_of_blanks_is_visible():
    assert svg.visible(" a\n\t") == "␣a↵⇥"
    assert svg.visible("\x00") == "\\x00"


@pytest.mark.parametrize(
    "modules", ["gptcourse, gptcourse.interpretability, gptcourse.recordings", "runner, time_machine"]
)
def test_what_needs_no_page_imports_no_widgets(modules):
    code = f"import sys; sys.path.append('recipes')\nimport {modules}\n"
    code += "sys.exit('ipywidgets' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_row_of_its_own_is_not_asked_for_by_a_column_which_the_page_clears():
    box = text_box("prompt", "To be")
    assert (box.layout.grid_area, box.layout.grid_column) == ("auto / 1 / auto / -1", None)


def test_only_a_proposal_for_the_text_that_stands_there_is_taken(model, tokenizer):
    panel = writing_panel(model, tokenizer, "To be", max_new_tokens=4)
    panel.seconds_to_stand_still = 0.0
    panel.wait()
    panel.controls["mode"].value = "rewrite"  # without a mark there is nothing to propose
    panel.wait()
    panel.choices[0].click()
    assert panel.controls["text"].value == "To be" and panel.back.disabled
    panel.controls["mode"].value = "go on"
    panel.wait()
    panel.choices[0].click()
    assert panel.controls["text"].value.startswith("To be") and len(panel.controls["text"].value) > 5


def test_ids_that_stand_for_no_text_are_in_no_bar(tokenizer):
    torch.manual_seed(0)
    padded = GPT(GPTConfig(tokenizer.vocab_size + 20, n_positions=48, n_embd=16, n_layer=1, n_head=2))
    explorer = decoding_explorer(padded, tokenizer, "To be", max_new_tokens=4)
    explorer.wait()
    assert "<svg" in explorer.picture.value and "There is no token" not in explorer.picture.value


def test_the_monitor_shows_the_end_of_a_run_that_stops_early(tokenizer):
    config = TrainingConfig(steps=40, batch_size=2, learning_rate=1e-3)
    monitor, history = TrainingMonitor(config, sample=lambda: "so it goes"), FakeHistory(loss=[3.0])
    monitor(history)
    history.loss.append(2.0)
    history.stopped = "early stopping"
    monitor(history)
    assert "step 2 of 40" in monitor.status.value and "stopped" in monitor.status.value
    assert "after 2 steps" in monitor.texts.value and not monitor.progress


def test_one_text_is_written_at_a_time(model, tokenizer, monkeypatch):
    panel = writing_panel(model, tokenizer, "To be", max_new_tokens=4)
    at_once, most = [], []

    def slow(turn, _sampling):
        at_once.append(turn)
        most.append(len(at_once))
        time.sleep(0.05)
        at_once.remove(turn)

    monkeypatch.setattr(panel, "_go_on", slow)
    for _ in range(4):
        panel.write_later(0)
        time.sleep(0.01)
    panel.wait()
    assert max(most) == 1


def test_a_microscope_without_a_token_to_write_is_refused(model, tokenizer):
    with pytest.raises(ValueError, match=r"^max_new_tokens is 0"):
        decoding_explorer(model, tokenizer, "To be", max_new_tokens=0)
