"""What ships inside the package is what its card says."""

import math
import re
from importlib.resources import files
from pathlib import Path

import decoding_experiments
import evaluation_experiments
import finetuning_experiments
import modern_experiments
import preference_experiments
import pytest
import runner
import scaling_experiments
import shakespeare_5m
import speedrun
import time_machine
import torch
import tuning_experiments
import your_gpt
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from gptcourse.corpora import shakespeare
from gptcourse.pretrained import load_pretrained
from gptcourse.recordings import time_machine as open_time_machine
from gptcourse.tokenizers import CHAT_TOKENS
from gptcourse.training import evaluate

FOLDER = Path(str(files("gptcourse") / "assets" / "shakespeare-5m"))
CARD = (FOLDER / "README.md").read_text(encoding="utf-8")


RECORDED = {
    "tuning": tuning_experiments,
    "your-gpt": your_gpt,
    "scaling": scaling_experiments,
    "speedrun": speedrun,
    "finetuning": finetuning_experiments,
    "evaluation": evaluation_experiments,
    "preferences": preference_experiments,
    "decoding": decoding_experiments,
    "modern": modern_experiments,
}


def committed(asset):
    return (runner.ASSETS / asset / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("asset", RECORDED)
def test_the_card_is_made_from_the_files_beside_it(asset):
    assert RECORDED[asset].card(runner.recorded(runner.ASSETS / asset)) == committed(asset)


def number(pattern, card):
    return float(re.search(pattern.replace(" ", r"\s+"), card)[1])


def test_the_cards_of_what_was_trained_are_made_from_it_and_the_numbers_that_are_kept_nowhere_else(plays):
    card = committed("time-machine")
    alone = {"induction": [[number(r"score of ([\d.]+),", card)]]}
    alone["held_out_loss"] = number(r"with a held-out loss of ([\d.]+),", card)
    assert time_machine.card(runner.ASSETS / "time-machine", alone) == card


def test_the_card_of_the_bundled_model_is_made_from_its_file_and_the_records(plays, monkeypatch):
    curve = dict(re.findall(r"^\| (\d000) \| ([\d.]+) \|$", CARD, re.MULTILINE))
    loss, bits = map(float, re.search(r"([\d.]+) nats per token, ([\d.]+) bits per byte", CARD).groups())
    table, samples = CARD.split("| --- | ---: | ---: |\n")[1].split("\n\n")[0], CARD.split("seed 1:\n\n")[1][:-1]
    numbers = shakespeare_5m.sizes(FOLDER) | {"loss": loss, "bits_per_byte": bits, "table": table, "samples": samples}
    assert shakespeare_5m.card(numbers, {int(step): float(loss) for step, loss in curve.items()}) == CARD


@pytest.fixture(scope="module")
def bundled():
    return load_pretrained("shakespeare-5m")


def test_transformers_opens_the_bundled_model_in_float32_with_the_same_logits(bundled):
    model, tokenizer = bundled
    hf, hf_tokenizer = AutoModelForCausalLM.from_pretrained(FOLDER), AutoTokenizer.from_pretrained(FOLDER)
    ids = hf_tokenizer("ROMEO:\nBut, soft! what light", return_tensors="pt").input_ids
    assert ids[0].tolist() == tokenizer.encode("ROMEO:\nBut, soft! what light")
    assert {parameter.dtype for parameter in hf.parameters()} == {torch.float32}
    with torch.inference_mode():
        assert_close(hf(ids).logits, model(ids).logits)


def test_the_chat_tokens_are_reserved_and_the_file_is_small(bundled):
    _, tokenizer = bundled
    assert sorted(tokenizer.token_id(token) for token in CHAT_TOKENS) == [0, 1, 2]
    assert (FOLDER / "model.safetensors").stat().st_size <= 12_000_000


def test_the_card_states_the_size_and_the_held_out_loss(bundled):
    model, tokenizer = bundled
    assert f"{model.config.num_parameters:,} parameters" in CARD
    nats, bits = map(float, re.search(r"([\d.]+) nats per token, ([\d.]+) bits per byte", CARD).groups())
    text = shakespeare().validation
    tokens = torch.tensor(tokenizer.encode(text))
    assert_close(nats * len(tokens) / len(text.encode()) / math.log(2), bits, rtol=1e-3, atol=0)
    # A part of the held-out plays is enough to see that the number belongs to these weights.
    part = evaluate(model, torch.cat([tokens[:6_000], tokens[-6_000:]]))
    assert abs(part - nats) < 0.15


def test_the_card_of_the_time_machine_states_what_was_recorded():
    recording = open_time_machine()
    card = (recording.folder / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| [\d.]+ \| ([\d.]+) \|.* ([\d.]+) \|$", card, re.MULTILINE)
    expected = [recording.steps, recording.series("held_out_loss"), recording.series("second_copy_loss")]
    assert [tuple(map(float, row)) for row in rows] == [
        pytest.approx(row, abs=6e-4) for row in zip(*expected, strict=True)
    ]
    model = recording.model(recording.steps[-1])
    assert f"{model.config.num_parameters:,} parameters" in card
    stated = float(re.search(r"over every held-out character: ([\d.]+) nats", card)[1])
    part = torch.tensor(recording.tokenizer.encode(shakespeare().validation[:20_000]))
    assert abs(evaluate(model, part) - stated) < 0.1
