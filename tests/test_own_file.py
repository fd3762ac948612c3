"""Somebody's own JSON Lines, from the file to a right answer: read, split, encoded, fine-tuned, asked."""

import json

import pytest
import torch

from gptcourse.finetuning import finetune, generate_replies, reply_loss
from gptcourse.model import GPT, GPTConfig
from gptcourse.own_data import own_data
from gptcourse.tokenizers import BPETokenizer
from gptcourse.training import TrainingConfig

REPLIES = {
    "opening hours": "We open at nine and close at six.",
    "a lost card": "Please come to the desk; a new card is free.",
    "a late book": "The fee is ten cents for each day.",
    "a room": "You can book it for two hours a day.",
}
FRAMES = [
    "Hello, I have a question about {}.",
    "Could you tell me about {}?",
    "What should I know about {}?",
    "I am writing to you because of {}.",
    "Please help me with {}.",
    "Good morning! It is about {}.",
    "Do you have information on {}?",
    "My friend asked me about {}.",
    "Can somebody explain {} to me?",
    "I would like to hear more on {}.",
    "Sorry to bother you with {}.",
    "There is one thing: {}.",
    "We need help with {} today.",
    "Just a short question on {}, please.",
    "Who can I ask about {}?",
]
HELD_OUT = "Dear library, this message is about {}, thank you."


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    rows = [{"prompt": f.format(topic), "response": reply} for topic, reply in REPLIES.items() for f in FRAMES]
    path = tmp_path_factory.mktemp("own") / "library.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_from_sixty_lines_to_a_right_answer_in_other_words(path):
    own = own_data(path, held_out=0.1)
    assert own.kind == "dialogues" and sum(map(len, own.rows)) == 60
    text = path.read_text(encoding="utf-8") + HELD_OUT
    tokenizer = BPETokenizer.train([text], 400)
    torch.manual_seed(0)
    model = GPT(GPTConfig(tokenizer.vocab_size, n_positions=64, n_embd=48, n_layer=2, n_head=4))
    parts = own.encode(tokenizer, window=64)
    assert sum(map(len, parts.values())) == 60
    messages = [HELD_OUT.format(topic) for topic in REPLIES]
    before = reply_loss(model, parts["confirm"])
    assert generate_replies(model, tokenizer, messages, max_new_tokens=30) != list(REPLIES.values())
    config = TrainingConfig(120, 8, 5e-3, warmup_steps=10, eval_steps=40)
    finetune(model, parts["train"], config, validation=parts["choose"], device="cpu", progress=False)
    assert reply_loss(model, parts["confirm"]) < before / 10
    assert generate_replies(model, tokenizer, messages, max_new_tokens=30) == list(REPLIES.values())
