"""The time machine: the recorded run is what its record says, and the explorer shows what the checkpoints do."""

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
import torch
from torch.testing import assert_close

from gptcourse.corpora import shakespeare
from gptcourse.drawings import svg
from gptcourse.explorers import time_machine as module
from gptcourse.explorers import time_machine_explorer
from gptcourse.generation import generate
from gptcourse.interpretability import attention_patterns, induction_scores
from gptcourse.model import GPT
from gptcourse.recordings import Recording, recorded, time_machine
from gptcourse.tokenizers import CharTokenizer
from recipes import time_machine as recipe

ATTACK = "<b>&amp;</b>"


@pytest.fixture(scope="module")
def recording():
    return time_machine()


@pytest.fixture(scope="module")
def texts(recording):
    """Return the tokens of the plays to train on and of those held out."""
    plays = shakespeare()
    return [torch.tensor(recording.tokenizer.encode(text)) for text in (plays.train, plays.validation)]


# --- the recording


def test_the_recording_is_small_and_has_a_dozen_steps_or_more(recording):
    files = [path for path in recording.folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 6_000_000
    assert len(recording.steps) >= 12 and recording.steps == sorted(set(recording.steps))
    assert recording.steps[0] == 0 and recording.steps[-1] == recording.settings["steps"]
    assert {path.name for path in recording.folder.glob("step-*")} == {f"step-{step:05d}" for step in recording.steps}


def test_a_table_is_read_by_its_name_and_another_name_is_refused_with_those_there_are():
    assert recorded("decoding", "rules")["control"] == "temperature"
    with pytest.raises(ValueError, match=r"recorded as decoding/beams: .*decoding/rules"):
        recorded("decoding", "beams")


def test_a_step_that_was_not_kept_is_refused(recording):
    with pytest.raises(ValueError, match=r"Step 7 was not kept: choose one of 0, "):
        recording.model(7)


def test_every_checkpoint_has_the_same_shape_and_other_weights(recording):
    models = [recording.model(step) for step in recording.steps]
    assert {model.config for model in models} == {models[0].config}
    assert all(not torch.equal(a.wte.weight, b.wte.weight) for a, b in pairwise(models))
    assert models[0].config.vocab_size == recording.tokenizer.vocab_size


@pytest.mark.parametrize("place", [0, -1])
def test_what_was_measured_is_measured_again(recording, texts, place):
    step = recording.steps[place]
    found, expected = recipe.measure(recording.model(step), *texts), dict(recording.records[step])
    assert expected.pop("step") == step and found.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(torch.tensor(found[name]), torch.tensor(value), atol=2e-3, rtol=0, msg=f"{name} at step {step}")


def test_the_induction_scores_of_every_step_are_measured_again(recording):
    for step in recording.steps:
        scores = torch.tensor(recording.records[step]["induction"])
        assert_close(induction_scores(recording.model(step)), scores, atol=2e-3, rtol=0)


def test_the_first_model_knows_nothing_and_the_last_has_an_induction_head_that_helps(recording):
    first, last = recording.records[0], recording.records[recording.steps[-1]]
    assert first["held_out_loss"] == pytest.approx(math.log(recording.tokenizer.vocab_size), abs=0.3)
    layer, head = recording.best_head()
    assert layer > 0  # it needs another head before it
    assert first["induction"][layer][head] < 0.05 < 0.3 < last["induction"][layer][head]
    assert last["second_copy_loss"] < last["first_copy_loss"] - 1


# --- the explorer


@pytest.fixture(scope="module")
def explorer(recording):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "NEW_TOKENS", 20)  # by sixteen models, for each prompt
        yield time_machine_explorer("Sing, sing, s")


@pytest.fixture(autouse=True)
def at_the_beginning(request):
    """Put a shared explorer back to where it starts, whatever the test before has done with it."""
    if "explorer" in request.fixturenames:
        explorer = request.getfixturevalue("explorer")
        layer, head = time_machine().best_head()
        for name, value in {"prompt": "Sing, sing, s", "step": 0, "layer": layer, "head": head}.items():
            explorer.controls[name].value = value


def drawings(explorer):
    """Return the pictures, parsed: what is not escaped or not closed fails here."""
    return [ElementTree.fromstring(found) for found in re.findall(r"<svg.*?</svg>", explorer.picture.value, re.DOTALL)]


def words(element):
    return ["".join(text.itertext()) for text in element.iter("text")]


def written(explorer):
    """Return what the model has written, without the prompt."""
    return re.search(r"<span>(.*?)</span>", explorer.picture.value, re.DOTALL)[1]


@pytest.mark.parametrize("place", [0, 6, -1])
def test_the_picture_shows_what_the_model_of_the_step_does(explorer, recording, place):
    step, tokenizer = recording.steps[place], recording.tokenizer
    explorer.controls["step"].value, explorer.controls["layer"].value, explorer.controls["head"].value = step, 0, 1
    pattern, next_tokens = drawings(explorer)[2:]
    model, ids = recording.model(step), tokenizer.encode("Sing, sing, s")
    weights = attention_patterns(model, ids)[0, 1].flatten().tolist()
    numbers = [word for word in words(pattern) if re.fullmatch(r"[\d.]*\.\d+", word)]
    assert numbers == [f"{weight:.1f}".removeprefix("0") for weight in weights if weight >= 0.1]
    with torch.inference_mode():
        best = model(torch.tensor([ids])).logits[0, -1].softmax(-1).topk(module.ROWS)
    now = [percent.text for percent in next_tokens.iter("text") if percent.get("font-weight")][1:]  # after the heading
    assert now == [svg.percent(p) for p in best.values.tolist()]
    assert svg.visible(tokenizer.decode(best.indices[:1])) in words(next_tokens)
    new = generate(model, ids, module.NEW_TOKENS, module.SAMPLING)[len(ids) :]
    assert written(explorer) == svg.escape(tokenizer.decode(new))
    assert f"step {step:,}  ·" in explorer.picture.value
    assert f"held-out {recording.records[step]['held_out_loss']:.2f}" in explorer.picture.value


def dot(drawing):
    (circle,) = drawing.iter("circle")
    return float(circle.get("cx")), float(circle.get("cy"))


def test_the_dots_move_along_the_curves(explorer, recording):
    layer, head = recording.best_head()
    curves = recording.series("held_out_loss"), [table[layer][head] for table in recording.series("induction")]
    dots = []
    for step in recording.steps:
        explorer.controls["step"].value = step
        dots.append([dot(drawing) for drawing in drawings(explorer)[:2]])
    for values, places in zip(curves, zip(*dots, strict=True), strict=True):
        across, down = zip(*places, strict=True)
        assert all(a < b for a, b in pairwise(across))
        top, bottom = values.index(max(values)), values.index(min(values))
        scale = (down[bottom] - down[top]) / (values[top] - values[bottom])  # the y axis goes down the page
        assert scale > 0
        assert list(down) == pytest.approx([down[top] + scale * (values[top] - value) for value in values], abs=0.2)


def test_a_slider_needs_no_forward_pass(explorer, recording, monkeypatch):
    monkeypatch.setattr(GPT, "forward", lambda *_, **__: pytest.fail("a forward pass"))
    for step in recording.steps:
        explorer.controls["step"].value = step
        assert f"step {step:,}  ·" in explorer.picture.value


def test_the_same_prompt_gives_the_same_samples_again(explorer, recording):
    explorer.controls["step"].value = recording.steps[-1]
    before = explorer.picture.value
    explorer.controls["prompt"].value = "Sing"
    assert explorer.picture.value != before
    explorer.controls["prompt"].value = "Sing, sing, s"
    assert explorer.picture.value == before


def test_what_is_typed_is_shown_as_text(explorer, recording, monkeypatch):
    explorer.controls["prompt"].value = "<b>"  # the plays have no such characters, and the answer names the first
    assert "&lt;" in explorer.picture.value and "<b>" not in explorer.picture.value
    explorer.controls["step"].value = recording.steps[-1]
    monkeypatch.setattr(recording, "tokenizer", CharTokenizer("".join(map(chr, range(38, 38 + 76)))))  # has them
    explorer.controls["prompt"].value = ATTACK
    assert svg.escape(ATTACK) in explorer.picture.value and ATTACK not in explorer.picture.value
    assert len(drawings(explorer)) == 4


@pytest.mark.parametrize("prompt, answer", [("", "The prompt is empty"), ("naïve", "was not in the text")])
def test_a_bad_prompt_is_answered_and_sliders_do_nothing_until_a_good_one(explorer, recording, prompt, answer):
    explorer.controls["prompt"].value = prompt
    assert answer in explorer.picture.value and "<svg" not in explorer.picture.value
    explorer.controls["step"].value = recording.steps[-1]
    assert answer in explorer.picture.value
    explorer.controls["prompt"].value = "S"  # one token has itself to look at
    assert len(drawings(explorer)) == 4


def test_of_a_long_prompt_the_beginning_is_read_and_that_is_said(explorer, recording):
    explorer.controls["prompt"].value = "no " * 40
    n_tokens = len(recording.tokenizer.encode("no " * 40))
    assert f"The first 24 of your {n_tokens} tokens are read and shown." in explorer.picture.value
    explorer.controls["prompt"].value = "no"
    assert "The first 24" not in explorer.picture.value


@pytest.mark.parametrize("content", [None, b"[]", b"null", b"{}", b"[" * 100_000])
def test_damaged_recordings_are_one_sentence(tmp_path, content):
    if content is not None:
        (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(ValueError, match="holds no whole"):
        Recording(tmp_path)
