"""A small shop's replies as a task for preference learning: a model, a reward that a program computes, and its limit.

The grammar of `support.py` gives finitely many right replies to a message. So the reward of a reply is known exactly,
and so is the policy that is best for it, at any strength of a penalty.

Sources: Ouyang et al. (2022), InstructGPT; Stiennon et al. (2020), "Learning to summarize from human feedback", and Gao
et al. (2023), arXiv:2210.10760 (what becomes of the true reward when another one is optimised).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gptcourse.data import pad
from gptcourse.files import ASSETS
from gptcourse.finetuning import chat_prompt, encode_dialogue, eos_id, generate_replies
from gptcourse.generation import Sampling
from gptcourse.model import GPT
from gptcourse.preferences import Pair, Reward, token_log_probs
from gptcourse.pretrained import load_pretrained
from gptcourse.support import Dialogue, default_grammar
from gptcourse.tokenizers import BPETokenizer
from gptcourse.views import device_of, eval_view

MAX_REPLY = 64  # tokens
POLITE = {"please", "thank", "thanks", "sorry", "apologies", "happy", "glad", "gladly", "lovely", "welcome"}
ENOUGH = 2  # polite words
FEW, MANY = 15, 35  # words of a reply that is short, and of one that is not


def load_shop() -> tuple[GPT, BPETokenizer]:
    """Open the shop model and its tokenizer.

    recipes/preference_experiments.py trained it to copy random tokens, then on the shop's dialogues.
    """
    return load_pretrained(ASSETS / "preferences" / "shop")


# ---- What a reply is worth


class Marks(NamedTuple):
    """What a program sees in a reply, each from 0 to 1."""

    right: float
    polite: float
    short: float


def right_replies(dialogue: Dialogue) -> dict[str, float]:
    """Return every right reply to the message, all of its values copied exactly: {reply: the grammar's probability}."""
    templates = default_grammar().replies[dialogue.intent, frozenset(dialogue.slots)]
    return {template.format_map(dialogue.slots): p for template, p in templates.items()}


def marks(dialogue: Dialogue, reply: str) -> Marks:
    """Mark a reply to the dialogue's message.

    Right is 1 or 0: whether the grammar can give this reply. Polite words count up to ENOUGH. Short falls from 1 to 0
    in a straight line between FEW and MANY words.
    """
    words = re.findall(r"[a-z']+|\d+", reply.lower())
    polite = sum(word in POLITE for word in words) / ENOUGH
    short = (MANY - len(words)) / (MANY - FEW)
    return Marks(float(reply in right_replies(dialogue)), min(polite, 1.0), min(max(short, 0.0), 1.0))


def shop_reward(dialogue: Dialogue, reply: str) -> float:
    """Return right · (1 + polite + short) / 3, from 0 to 1: a wrong reply is worth nothing, however polite."""
    right, polite, short = marks(dialogue, reply)
    return right * (1 + polite + short) / 3


def hole_reward(dialogue: Dialogue, reply: str) -> float:
    """Return (polite + short) / 2: a reward with a hole, as it never asks whether the reply is right."""
    _, polite, short = marks(dialogue, reply)
    return (polite + short) / 2


def reward_on_ids(tokenizer, dialogues: Sequence[Dialogue], reward: Callable[[Dialogue, str], float]) -> Reward:
    """Return the reward of token ids that `grpo` takes, its prompts being the dialogues' messages, in their order.

    A reply without its end token is cut off: it is marked as it stands, with a sign that makes it wrong.
    """
    end = eos_id(tokenizer)

    def of_ids(i: int, ids: list[int]) -> float:
        whole = ids[-1] == end
        return reward(dialogues[i], tokenizer.decode(ids[:-1]) if whole else tokenizer.decode(ids) + " …")

    return of_ids


# ---- Replies drawn, and pairs of them


def draw_replies(model: nn.Module, tokenizer, dialogues: Sequence[Dialogue], n: int, seed: int = 0) -> list[list[str]]:
    """Return n replies to each message, drawn from the model's own distribution."""
    messages = [dialogue.message for dialogue in dialogues for _ in range(n)]
    drawn = generate_replies(model, tokenizer, messages, Sampling(seed=seed), MAX_REPLY)
    return [drawn[i : i + n] for i in range(0, len(drawn), n)]


def preference_pairs(
    tokenizer,
    dialogues: Sequence[Dialogue],
    replies: Sequence[Sequence[str]],
    reward: Callable[[Dialogue, str], float] = shop_reward,
) -> list[Pair]:
    """Return (the best, the worst) of the replies to each message, as examples; none where all are worth the same."""
    pairs = []
    for dialogue, drawn in zip(dialogues, replies, strict=True):
        ranked = sorted(drawn, key=lambda reply: reward(dialogue, reply))
        if reward(dialogue, ranked[0]) < reward(dialogue, ranked[-1]):
            pairs.append(tuple(encode_dialogue(tokenizer, dialogue.message, ranked[i]) for i in (-1, 0)))
    return pairs


# ---- The limit


@torch.inference_mode()
def level_masses(
    model: nn.Module,
    tokenizer,
    dialogue: Dialogue,
    batch_size: int = 64,
    reward: Callable[[Dialogue, str], float] = shop_reward,
) -> tuple[Tensor, Tensor]:
    """Return the levels of a reward for a message (N,), and the model's probability of each (N,); 0 comes first.

    Each right reply's probability is computed, as its usual tokens. What is left belongs to wrong replies, whose reward
    must be 0, and to right ones spelled in other tokens, which a trained model hardly writes.
    """
    replies = list(right_replies(dialogue))
    examples = [encode_dialogue(tokenizer, dialogue.message, reply) for reply in replies]
    view, p = eval_view(model), []
    for i in range(0, len(examples), batch_size):
        ids, targets = (part.to(device_of(model)) for part in pad(examples[i : i + batch_size]))
        p.append(token_log_probs(view, ids, targets).cpu().double().sum(-1).exp())
    rewards = torch.tensor([reward(dialogue, reply) for reply in replies], dtype=torch.float64)
    levels, places = rewards.unique(return_inverse=True)
    masses = torch.zeros(len(levels), dtype=torch.float64).index_add(0, places, torch.cat(p))
    wrong = (1 - masses.sum(0, keepdim=True)).clamp(min=0)  # rounding can make it negative
    return torch.cat([torch.zeros(1), levels]), torch.cat([wrong, masses])


def shop_prompts(tokenizer, dialogues: Sequence[Dialogue]) -> list[list[int]]:
    """Return the ids that stand before the reply to each message."""
    return [chat_prompt(tokenizer, dialogue.message) for dialogue in dialogues]
