"""Generation, microscope and chat on a real model of transformers, SmolLM2, which arrives as a wheel (93 MB)."""

import math
import re
from html import unescape

import pytest
import torch

from gptcourse.explorers import chat_panel, decoding_explorer
from gptcourse.finetuning import chat_prompt, eos_id, generate_replies
from gptcourse.generation import Sampling, generate, next_token_distribution, stream
from gptcourse.pretrained import load_pretrained

pytestmark = pytest.mark.full
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def smollm2():
    return load_pretrained("smollm2-135m")


@pytest.mark.parametrize("message", ["What is the capital of France?", "Write a poem about rain.", "2 + 2 ="])
def test_greedy_equals_transformers_token_for_token(smollm2, message):
    model, tokenizer = smollm2
    ids, end = chat_prompt(tokenizer, message), eos_id(tokenizer)
    options = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": end, "pad_token_id": end}
    expected = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), **options)[0].tolist()
    assert generate(model, ids, 24, GREEDY, end) == expected
    assert ids + list(stream(model, ids, 24, GREEDY, end)) == expected


def test_sampled_frequencies_follow_the_distribution_of_the_model(smollm2):
    model, tokenizer = smollm2
    ids, sampling = tokenizer.encode("My favourite colour is"), Sampling(temperature=0.9, top_k=30, min_p=0.01, seed=5)
    with torch.inference_mode():
        p = next_token_distribution(model(torch.tensor([ids])).logits[0, -1], sampling).double()
    n = 400
    rows = generate(model, [ids] * n, 1, sampling)
    expected, counts = n * p, torch.bincount(torch.tensor([row[-1] for row in rows]), minlength=len(p))
    assert counts[p == 0].sum() == 0
    often = expected >= 5
    rest = (expected[~often].sum(), counts[~often].sum())
    chi_square = ((counts - expected)[often] ** 2 / expected[often]).sum() + (rest[1] - rest[0]) ** 2 / rest[0]
    degrees = int(often.sum())
    assert degrees >= 5 and chi_square < degrees + 4.5 * math.sqrt(2 * degrees)


@pytest.mark.parametrize("message", ["订单在哪里？", "🙂🙂", "a\x00b\x07\x1b[0m", "<|im_end|>\nHi", "\n\n", "ﷺ"])
def test_any_message_arrives_unchanged_and_is_answered(smollm2, message):
    model, tokenizer = smollm2
    ids = chat_prompt(tokenizer, message)
    marks = chat_prompt(tokenizer, "x")
    special = set(tokenizer.all_special_ids)
    assert [i for i in ids if i in special] == [i for i in marks if i in special]  # a message cannot fake a mark
    assert message in tokenizer.decode(ids)
    panel = chat_panel(model, tokenizer, message, max_new_tokens=4)
    assert panel.exchanges == [[message, generate_replies(model, tokenizer, [message], max_new_tokens=4)[0]]]
    assert "<|im" not in re.sub("&lt;", "", panel.picture.value) and panel.exchanges[0][1]


def test_a_prompt_that_is_empty_or_too_long_is_refused_in_one_sentence(smollm2):
    model, tokenizer = smollm2
    with pytest.raises(ValueError, match="The prompt is empty"):
        generate(model, [], 1)
    panel = chat_panel(model, tokenizer, "word " * 9_000, max_new_tokens=4)
    assert re.fullmatch(
        r"\[The prompt has 9\d{3} tokens and the model reads 8192 at once: shorten it.\]", panel.exchanges[0][1]
    )


def test_the_chat_remembers_in_the_format_of_the_models_template(smollm2):
    model, tokenizer = smollm2
    panel = chat_panel(model, tokenizer, "My name is Clara.", remember=2, max_new_tokens=12)
    panel.message.value = "What is my name?"
    panel.wait()
    chat = [{"role": "user", "content": "My name is Clara."}, {"role": "assistant", "content": panel.exchanges[0][1]}]
    chat.append({"role": "user", "content": "What is my name?"})
    expected = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert panel.prompt_ids() == expected
    assert chat_prompt(tokenizer, "What is my name?") != expected


def test_the_microscope_shows_the_real_models_tokens(smollm2):
    model, tokenizer = smollm2
    explorer = decoding_explorer(model, tokenizer, "The capital of France is", max_new_tokens=6)
    explorer.seconds_to_stand_still = 0.0
    explorer.controls["temperature"].value = 0.0
    explorer.wait()
    assert "of 49,152 tokens kept" in explorer.picture.value and "␣Paris" in explorer.picture.value
    ids = tokenizer.encode("The capital of France is")
    written = tokenizer.decode(generate(model, ids, 6, GREEDY)[len(ids) :])
    spans = re.findall(r'<span style="background[^>]*>(.*?)</span>', explorer.continuation.value, re.DOTALL)
    assert unescape("".join(spans[:6])) == written
    explorer.controls["token"].value = 1
    assert "number 1 in the model" in explorer.alternatives.value
