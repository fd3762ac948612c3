"""The chat panel and the writing panel without a browser: what they write is what generate writes."""

import re
from html import unescape

import pytest
import torch

from gptcourse.explorers import chat_panel, compare_settings, writing_panel
from gptcourse.explorers.text_panel import pieces
from gptcourse.finetuning import chat_prompt, eos_id, generate_replies
from gptcourse.generation import Sampling, generate
from gptcourse.images import UNWRITABLE
from gptcourse.model import GPT, GPTConfig
from gptcourse.rewriting import alternatives, fit, split_marked, variations
from gptcourse.tokenizers import BPETokenizer

ATTACK = "<script>alert('&amp;')</script>"
SETTINGS = {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2, "seed": 3}


@pytest.fixture(scope="module")
def tokenizer():
    return BPETokenizer.train([f"Where is my order? The weather is fair today. {ATTACK}"], 280)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    model = GPT(GPTConfig(tokenizer.vocab_size, n_positions=160, n_embd=16, n_layer=2, n_head=2))
    with torch.no_grad():
        model.wte.weight.mul_(12)  # as it starts, a model finds every token equally likely; this one has an opinion
        model.wte.weight[eos_id(tokenizer)] *= 3  # and it ends some of its replies
    return model


@pytest.fixture
def chat(model, tokenizer):
    panel = chat_panel(model, tokenizer, "Where is it?", Sampling(), max_new_tokens=20)
    panel.seconds_to_stand_still = 0.0
    return panel


@pytest.fixture
def writing(model, tokenizer):
    panel = writing_panel(model, tokenizer, "The weather", max_new_tokens=6)
    panel.seconds_to_stand_still = 0.0
    return panel


@pytest.fixture
def comparison(model, tokenizer):
    panel = compare_settings(model, tokenizer, "The", Sampling(), Sampling(temperature=0.3), max_new_tokens=12)
    panel.seconds_to_stand_still = 0.0
    return panel


def send(panel, message):
    panel.message.value = message
    panel.wait()


def written(text):
    """Return a text as a page shows it: � stands for what no document may hold."""
    return UNWRITABLE.sub("\ufffd", text)


def bubbles(panel):
    return [unescape(text) for text in re.findall(r'<div style="white-space[^>]*>(.*?)</div>', panel.picture.value)]


# ---- The chat panel


def test_a_message_is_answered_as_by_write_replies_and_the_box_is_emptied(chat, model, tokenizer):
    first = generate_replies(model, tokenizer, ["Where is it?"], Sampling(seed=0), max_new_tokens=20)[0]
    assert chat.exchanges == [["Where is it?", first]]
    send(chat, "And my order?")
    second = generate_replies(model, tokenizer, ["And my order?"], Sampling(seed=0), max_new_tokens=20)[0]
    assert chat.exchanges == [["Where is it?", first], ["And my order?", second]]
    assert bubbles(chat) == ["Where is it?", written(first), "And my order?", written(second)]
    assert chat.message.value == "" and first != second


def test_a_slider_answers_the_last_message_again_and_leaves_the_others(chat, model, tokenizer):
    send(chat, "The weather?")
    earlier = chat.exchanges[0][1]
    for name, value in SETTINGS.items():
        chat.controls[name].value = value
    chat.wait()
    again = generate_replies(model, tokenizer, ["The weather?"], Sampling(**SETTINGS), max_new_tokens=20)[0]
    assert chat.exchanges == [["Where is it?", earlier], ["The weather?", again]]


def test_a_reply_ends_at_its_end_token_which_is_not_shown(model, tokenizer):
    lengths = set()
    for seed in range(8):
        panel = chat_panel(model, tokenizer, "Where?", Sampling(), max_new_tokens=20)
        panel.seconds_to_stand_still = 0.0
        panel.controls["seed"].value = seed
        panel.wait()
        ids = generate(model, chat_prompt(tokenizer, "Where?"), 20, Sampling(seed=seed), eos_id(tokenizer))
        new = ids[len(chat_prompt(tokenizer, "Where?")) :]
        lengths.add(len(new))
        assert panel.exchanges[0][1] == tokenizer.decode([token for token in new if token != eos_id(tokenizer)])
    assert min(lengths) < 20


def test_what_is_typed_and_what_is_written_is_shown_as_text(chat, monkeypatch):
    monkeypatch.setattr("gptcourse.explorers.text_panel.stream", lambda *_: iter(chat.tokenizer.encode(ATTACK)))
    send(chat, ATTACK)
    assert "<script" not in chat.picture.value and bubbles(chat)[-2:] == [ATTACK, ATTACK]
    assert "<|user|>" not in ATTACK and chat_prompt(chat.tokenizer, "<|end|>").count(eos_id(chat.tokenizer)) == 0


def test_a_model_is_shown_as_many_exchanges_as_it_remembers_and_as_fit(model, tokenizer):
    panel = chat_panel(model, tokenizer, "Where?", remember=2, max_new_tokens=4)
    for message in ("Why?", "Who?", "When?"):
        send(panel, message)
    pairs = panel.exchanges
    expected = chat_prompt(tokenizer, "When?", pairs[1:3])
    assert panel.prompt_ids() == expected
    assert generate(model, expected, 4, Sampling(temperature=0), eos_id(tokenizer))[len(expected) :]
    send(panel, "is fair today " * 12)
    assert len(panel.prompt_ids()) <= 156 and panel.prompt_ids()[-1] == tokenizer.token_id("<|assistant|>")
    assert panel.prompt_ids() != chat_prompt(tokenizer, panel.exchanges[-1][0], panel.exchanges[-3:-1])


def test_why_there_was_no_reply_is_shown_and_not_remembered(model, tokenizer):
    panel = chat_panel(model, tokenizer, "Where?", remember=2, max_new_tokens=4)
    send(panel, "x" * 200)
    send(panel, "Who?")
    assert "shorten it" in bubbles(panel)[3]
    assert panel.prompt_ids() == chat_prompt(tokenizer, "Who?", panel.exchanges[:1])


@pytest.mark.parametrize("message", ["你好，订单在哪里？", "🙂 ¿dónde?", "a\x00b\x07c", "   x"])
def test_any_message_is_answered(chat, message):
    send(chat, message)
    assert chat.exchanges[-1][0] == message and not chat.exchanges[-1][1].startswith("[")


def test_a_message_that_is_too_long_or_empty_does_no_harm(chat):
    send(chat, "x" * 200)
    assert chat.exchanges[-1][1] == "[The prompt has 202 tokens and the model reads 160 at once: shorten it.]"
    send(chat, "  ")
    assert len(chat.exchanges) == 2
    send(chat, "Where?")
    assert not chat.exchanges[-1][1].startswith("[")


def test_start_again_empties_the_panel_and_the_sliders_do_no_harm_then(chat):
    chat.clear.click()
    chat.controls["seed"].value = 5
    chat.wait()
    assert chat.exchanges == [] and bubbles(chat) == []
    send(chat, "Where?")
    assert len(chat.exchanges) == 1


def test_the_panel_does_not_grow_without_end(chat):
    for number in range(30):
        send(chat, f"{number}?")
    assert bubbles(chat)[-2] == "29?" and len(bubbles(chat)) == 24


def test_earlier_exchanges_stand_before_the_message_in_the_format_of_training(tokenizer):
    user, assistant, end = map(tokenizer.token_id, ("<|user|>", "<|assistant|>", "<|end|>"))
    a, b, c, d, e = map(tokenizer.encode, "abcde")
    prompt = chat_prompt(tokenizer, "e", [("a", "b"), ("c", "d")])
    assert prompt == [user, *a, assistant, *b, end, user, *c, assistant, *d, end, user, *e, assistant]


# ---- The writing panel


def three(model, tokenizer, text, **settings):
    ids = tokenizer.encode(text)
    seed = settings.pop("seed", 0)
    texts = [generate(model, ids, 6, Sampling(**settings, seed=3 * seed + i)) for i in range(3)]
    return [tokenizer.decode(new[len(ids) :]) for new in texts]


def test_three_continuations_are_written_with_seeds_of_their_own(writing, model, tokenizer):
    assert writing.proposals == three(model, tokenizer, "The weather", temperature=0.8, top_p=0.95)
    assert len(set(writing.proposals)) > 1
    writing.controls["temperature"].value, writing.controls["seed"].value = 1.5, 2
    writing.wait()
    assert writing.proposals == three(model, tokenizer, "The weather", temperature=1.5, top_p=0.95, seed=2)
    shown = re.findall("</span><span>(.*?)</span>", writing.picture.value, re.DOTALL)
    assert list(map(unescape, shown)) == writing.proposals


def test_the_chosen_one_is_appended_and_back_takes_it_away(writing, model, tokenizer):
    before = writing.controls["text"].value
    assert writing.back.disabled
    chosen = writing.proposals[1]
    writing.choices[1].click()
    writing.wait()
    assert writing.controls["text"].value == before + chosen
    assert writing.proposals == three(model, tokenizer, before + chosen, temperature=0.8, top_p=0.95)
    writing.back.click()
    writing.wait()
    assert writing.controls["text"].value == before and writing.back.disabled


def test_a_text_longer_than_the_window_is_continued_from_its_end(writing, model, tokenizer):
    writing.controls["text"].value = "The weather is fair today. " * 60
    writing.wait()
    ids = tokenizer.encode(writing.controls["text"].value)[-154:]
    new = generate(model, ids, 6, Sampling(temperature=0.8, top_p=0.95, seed=0))[154:]
    assert writing.proposals[0] == tokenizer.decode(new)
    writing.controls["text"].value = ""
    writing.wait()
    assert "There is no text to go on with" in writing.picture.value and "<b>A</b>" not in writing.picture.value


def test_a_continuation_is_shown_as_text(writing, monkeypatch):
    monkeypatch.setattr("gptcourse.explorers.text_panel.stream", lambda *_: iter(writing.tokenizer.encode(ATTACK)))
    writing.controls["seed"].value = 9
    writing.wait()
    assert "<script" not in writing.picture.value and writing.picture.value.count("&lt;script") == 3


def test_a_marked_place_is_rewritten_and_the_choice_put_into_its_place(writing, model, tokenizer):
    writing.controls["text"].value = "The {weather} is fair today"
    assert "{" not in "".join(writing.proposals)
    writing.controls["mode"].value = "rewrite"
    writing.wait()
    marked, sampling = split_marked("The {weather} is fair today"), Sampling(temperature=0.8, top_p=0.95, seed=0)
    found = alternatives(model, tokenizer, marked, sampling=sampling)
    assert writing.proposals == [one.text for one in found[:3]]
    assert f"{found[0].fit:.2f} nats" in writing.picture.value
    assert f"have {fit(model, tokenizer, marked):.2f}" in writing.picture.value
    writing.choices[0].click()
    assert writing.controls["text"].value == f"The{{{found[0].text}}} is fair today"
    writing.back.click()
    assert writing.controls["text"].value == "The {weather} is fair today"


def test_a_marked_place_is_varied_and_a_text_without_marks_is_answered_with_the_reason(writing, model, tokenizer):
    writing.controls["text"].value = "The {weather} is fair today"
    marked = split_marked("The {weather} is fair today")
    for mode, nearness in {"vary a little": 6.0, "vary much": 4.0}.items():
        writing.controls["mode"].value = mode
        writing.wait()
        sampling = Sampling(temperature=0.8, top_p=0.95, seed=0)
        assert writing.proposals == variations(model, tokenizer, marked, nearness, sampling=sampling)
    writing.controls["text"].value = "The weather"
    writing.wait()
    assert "Mark one place" in writing.picture.value


# ---- Two settings


def compared(panel):
    texts = re.findall("<span>(.*?)</span><span[^>]*>(.*?)</span>", panel.picture.value, re.DOTALL)
    return [(unescape(same), unescape(other)) for same, other in texts]


def test_both_settings_write_with_the_same_seed_and_the_place_where_they_part_is_marked(comparison, model, tokenizer):
    counts = set()
    for seed in range(6):
        comparison.controls["seed"].value = seed
        comparison.wait()
        ids = tokenizer.encode("The")
        new = [generate(model, ids, 12, Sampling(temperature=t, seed=seed))[len(ids) :] for t in (1.0, 0.3)]
        same = next((i for i in range(12) if new[0][i] != new[1][i]), 12)
        counts.add(same)
        assert compared(comparison) == [
            (written(tokenizer.decode(ids[:same])), written(tokenizer.decode(ids[same:]))) for ids in new
        ]
        assert f"the same {same} tokens; then they {'part' if same < 12 else 'end'}." in comparison.picture.value
    assert len(counts) > 1


def test_equal_settings_write_equal_texts(comparison):
    comparison.controls["second temperature"].value = 1.0
    comparison.wait()
    first, second = compared(comparison)
    assert first == second and first[1] == "" and "the same 12 tokens; then they end" in comparison.picture.value


def test_a_prompt_that_cannot_be_read_is_answered_with_the_reason_in_a_comparison(comparison):
    comparison.controls["prompt"].value = ""
    comparison.wait()
    assert "The prompt is empty" in comparison.picture.value and "the same" not in comparison.picture.value
    comparison.controls["prompt"].value = ATTACK
    comparison.wait()
    assert "<script" not in comparison.picture.value and "the same" in comparison.picture.value


def test_pieces_add_up_to_the_text_though_a_letter_takes_several_tokens(tokenizer):
    ids = tokenizer.encode("Where 订单 🙂?")
    assert "".join(pieces(tokenizer, ids)) == "Where 订单 🙂?" and "" in pieces(tokenizer, ids)
    assert "".join(pieces(tokenizer, ids[:-2])) == tokenizer.decode(ids[:-2])


def test_an_empty_reply_is_said_and_not_remembered(model, tokenizer, monkeypatch):
    panel = chat_panel(model, tokenizer, "Where?", remember=2, max_new_tokens=4)
    monkeypatch.setattr("gptcourse.explorers.text_panel.stream", lambda *_: iter([eos_id(tokenizer)]))
    send(panel, "Why?")
    assert bubbles(panel)[-1] == "[an empty reply]"
    monkeypatch.undo()
    send(panel, "Who?")
    assert panel.prompt_ids() == chat_prompt(tokenizer, "Who?", panel.exchanges[:1])
