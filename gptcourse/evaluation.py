"""How good is what a model writes? Replies judged by the grammar that wrote the dialogues, and how varied a text is.

Sources: Li et al. (2016), "A Diversity-Promoting Objective Function for Neural Conversation Models" (distinct-n);
Holtzman et al. (2020), "The Curious Case of Neural Text Degeneration" (loops).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from gptcourse.support import Dialogue, parse_reply


class ReplyReport(NamedTuple):
    """Shares from 0 to 1 over many replies; `slots` counts the values in the messages, all else the replies.

    intents: the reply answers what was asked. slots: the customer's order number, name, … stands in the reply, exact.
    allowed: the grammar can give this very reply to the message. loops: the reply says the same four words twice.
    distinct_2: how many of all pairs of neighbouring words are different ones.
    """

    intents: float
    slots: float
    allowed: float
    loops: float
    distinct_2: float


def reply_report(dialogues: Sequence[Dialogue], replies: Sequence[str]) -> ReplyReport:
    """Judge a model's replies to the messages of dialogues from the course's grammar.

    Raises ValueError if their numbers differ, or there are none.
    """
    if len(dialogues) != len(replies) or not replies:
        raise ValueError(f"There are {len(dialogues)} dialogues and {len(replies)} replies: give one reply to each.")
    readings = [parse_reply(reply) or (None, {}) for reply in replies]
    intents = [intent == d.intent for d, (intent, _) in zip(dialogues, readings, strict=True)]
    allowed = [reading == (d.intent, d.slots) for d, reading in zip(dialogues, readings, strict=True)]
    copied = [_holds(reply, value) for d, reply in zip(dialogues, replies, strict=True) for value in d.slots.values()]
    looping = [distinct_n([reply], 4) < 1 for reply in replies]
    return ReplyReport(*map(_share, (intents, copied, allowed, looping)), distinct_n(replies, 2))


def _holds(text, value):
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text) is not None


def _share(judgements):
    return sum(judgements) / len(judgements) if judgements else 1.0


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Return how many of all runs of n words are different, a share (Li et al. 2016); 1 if there are none."""
    words = [text.split() for text in texts]
    runs = [tuple(row[i : i + n]) for row in words for i in range(len(row) - n + 1)]
    return len(set(runs)) / len(runs) if runs else 1.0
