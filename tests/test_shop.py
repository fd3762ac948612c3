"""The shop as a task: marks against replies written by hand, its reward on ids, pairs, and the limit by enumeration."""

import math

import pytest
import torch

from gptcourse.config import GPTConfig
from gptcourse.corpora import support
from gptcourse.finetuning import encode_dialogue, eos_id
from gptcourse.generation import Sampling, generate
from gptcourse.model import GPT
from gptcourse.shop import (
    Marks,
    draw_replies,
    hole_reward,
    level_masses,
    marks,
    preference_pairs,
    reward_on_ids,
    right_replies,
    shop_prompts,
    shop_reward,
)
from gptcourse.support import parse
from gptcourse.tokenizers import BPETokenizer

DIALOGUE = next(d for d in support(200, split="test") if d.intent == "order_status" and set(d.slots) == {"order"})
ORDER = DIALOGUE.slots["order"]
SENT = f"Order {ORDER} has left our warehouse and should reach you within two working days."


@pytest.fixture(scope="module")
def tokenizer():
    return BPETokenizer.train([f"{d.message} {d.reply}" for d in support(300)], 400)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    return GPT(GPTConfig(tokenizer.vocab_size, n_positions=160, n_embd=16, n_layer=1, n_head=2)).eval()


def test_right_replies_are_those_that_the_grammar_parses():
    for dialogue in support(5, split="test"):
        replies = right_replies(dialogue)
        assert sum(replies.values()) == pytest.approx(1) and dialogue.reply in replies
        assert math.log(replies[dialogue.reply]) == pytest.approx(dialogue.log_prob)
        assert parse(dialogue.message, list(replies)[-1]).intent == dialogue.intent


def test_marks_of_replies_written_by_hand():
    assert marks(DIALOGUE, f"Hello! {SENT} Take care!") == Marks(1.0, 0.0, (35 - 17) / 20)
    thanks = f"Thank you for your message. {SENT} Please write again if you need anything else."
    assert marks(DIALOGUE, thanks) == Marks(1.0, 1.0, (35 - 27) / 20)
    assert marks(DIALOGUE, "Thanks!") == Marks(0.0, 0.5, 1.0)
    wrong = SENT.replace(ORDER, str(int(ORDER) + 1))
    assert marks(DIALOGUE, f"Hello! {wrong} Take care!").right == 0
    assert marks(DIALOGUE, "please " * 40) == Marks(0.0, 1.0, 0.0)


def test_the_reward_asks_first_whether_a_reply_is_right_and_the_hole_never_does():
    assert shop_reward(DIALOGUE, f"Hello! {SENT} Take care!") == pytest.approx((1 + 0 + 0.9) / 3)
    assert shop_reward(DIALOGUE, "Thank you, please!") == 0
    assert hole_reward(DIALOGUE, "Thank you, please!") == 1


def test_a_reward_on_ids_reads_what_the_tokens_say_and_marks_what_is_cut_off_as_wrong(tokenizer):
    reply = f"Hello! {SENT} Take care!"
    of_ids, ids = reward_on_ids(tokenizer, [DIALOGUE], shop_reward), tokenizer.encode(reply)
    assert of_ids(0, [*ids, eos_id(tokenizer)]) == shop_reward(DIALOGUE, reply)
    assert of_ids(0, ids) == 0


def test_drawn_replies_are_what_generate_draws(model, tokenizer):
    dialogues = support(2, split="test")
    drawn = draw_replies(model, tokenizer, dialogues, 2, seed=3)
    prompts = [prompt for prompt in shop_prompts(tokenizer, dialogues) for _ in range(2)]
    rows = generate(model, prompts, 64, Sampling(seed=3), eos_id(tokenizer))
    texts = [tokenizer.decode(row[len(prompt) :]) for row, prompt in zip(rows, prompts, strict=True)]
    assert [reply for replies in drawn for reply in replies] == [text.removesuffix("<|end|>") for text in texts]


def test_pairs_are_the_best_and_the_worst_and_equals_make_none(tokenizer):
    good, middle, bad = f"Hello! {SENT} Take care!", f"Hello! {SENT} Have a good week!", "Take care!"
    assert shop_reward(DIALOGUE, good) > shop_reward(DIALOGUE, middle) > shop_reward(DIALOGUE, bad) == 0
    pairs = preference_pairs(tokenizer, [DIALOGUE] * 2, [[middle, bad, good], [bad, "Hello!"]])
    assert pairs == [tuple(encode_dialogue(tokenizer, DIALOGUE.message, reply) for reply in (good, bad))]
    upside_down = preference_pairs(tokenizer, [DIALOGUE], [[good, bad]], lambda *given: -shop_reward(*given))
    assert upside_down == [pairs[0][::-1]]


def test_the_masses_of_the_levels_are_the_probabilities_of_all_their_replies(model, tokenizer):
    rewards, masses = level_masses(model, tokenizer, DIALOGUE, batch_size=100)
    assert rewards[0] == 0 and (rewards.diff() > 0).all() and masses.sum().item() == pytest.approx(1)
    wanted, total = rewards[-1].item(), 0.0
    for reply in right_replies(DIALOGUE):
        if shop_reward(DIALOGUE, reply) == pytest.approx(wanted):
            ids, targets = (torch.tensor(row) for row in encode_dialogue(tokenizer, DIALOGUE.message, reply))
            log_probs = model(ids[None]).logits[0].log_softmax(-1)
            kept = targets >= 0
            total += log_probs[kept].gather(-1, targets[kept][:, None]).double().sum().exp().item()
    assert total > 0 and masses[-1].item() == pytest.approx(total, rel=1e-2, abs=0)  # far from 1, but not yet 0
    own, of_two = level_masses(model, tokenizer, DIALOGUE, 100, lambda dialogue, reply: marks(dialogue, reply).right)
    assert own.tolist() == [0, 1] and of_two[0].item() == pytest.approx(masses[0].item())
