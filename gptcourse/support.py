"""Customer-service dialogues from a small probabilistic grammar, with exact probabilities.

The grammar, `assets/support_grammar.json`, says for each rule what may be written in its place, and how often. A
template such as "[hello] Order {order} is on its way." holds `[rules]` and `{slots}`, values that the customer gives.
Without recursion it is a finite list of templates, and each probability is a product. A text determines its derivation
(tested), so log p(reply | message) is exact; no model can reach a lower loss on the replies than the mean of its
negative. See Jurafsky and Martin, *Speech and Language Processing*, the appendix on statistical constituency parsing.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Set
from dataclasses import dataclass
from functools import cache

import numpy as np

from gptcourse.checks import COUNT_OR_ZERO, SEED, Choice, checked
from gptcourse.files import ASSETS, read_json

SPLITS = ("train", "test", "validation")


@dataclass(frozen=True)
class Dialogue:
    """One message with its reply; `log_prob` is log p(reply | message) in nats."""

    message: str
    reply: str
    intent: str
    slots: dict[str, str]
    log_prob: float


class Grammar:
    """A grammar given as data, with every template it can write and how probable each is.

    `messages[split][intent]` and `replies[intent, slot names]` are dictionaries {template: probability}.
    """

    def __init__(self, data: dict):
        self.values = data["slots"]
        self.value_patterns = {
            name: re.compile("|".join(values).replace("#", "[0-9]")) for name, values in self.values.items()
        }
        self.messages, self.replies = {split: {} for split in SPLITS}, {}
        for intent, entry in data["intents"].items():
            for split, requests in entry["requests"].items():
                request = [{"given": [], "options": dict.fromkeys(requests, 1 / len(requests))}]
                rules = {**data["rules"], "request": request, "reply": entry["reply"]}
                self.messages[split][intent] = expand(rules, "[message]", set())
                for given in dict.fromkeys(map(_slot_names, self.messages[split][intent])):
                    self.replies[intent, given] = expand(rules, "[reply]", given)


def expand(rules: dict, template: str, given: Set[str]) -> dict[str, float]:
    """Return {text: probability} for all that a template can become, its slots left open.

    Of a rule's cases the first one applies whose slots are all in `given`, the names the message has filled.
    """
    rule = re.search(r"\[(\w+)\]", template)
    if rule is None:
        return {template: 1.0}
    texts = {}
    options = next(case["options"] for case in rules[rule[1]] if given.issuperset(case["given"]))
    for option, p in options.items():
        rewritten = template[: rule.start()] + option + template[rule.end() :]
        for text, q in expand(rules, rewritten, given).items():
            texts[text] = texts.get(text, 0.0) + p * q
    return texts


def _slot_names(template: str) -> frozenset[str]:
    return frozenset(re.findall(r"\{(\w+)\}", template))


@cache
def default_grammar() -> Grammar:
    """Return the course's own grammar, read once."""
    return Grammar(read_json(ASSETS / "support_grammar.json"))


@checked(n=COUNT_OR_ZERO, seed=SEED, split=Choice(SPLITS))
def support(n: int, seed: int = 0, split: str = "train", *, grammar: Grammar | None = None) -> list[Dialogue]:
    """Return n customer-service dialogues; dialogue i depends on (seed, split, i) alone.

    The splits "train", "validation" and "test" share intents, replies and slot values; no phrasing of a message is in
    two of them. Raises ValueError if n or seed is not a whole number of 0 or more, or the split is unknown.
    """
    return [_dialogue(grammar or default_grammar(), seed, split, i) for i in range(n)]


def _dialogue(grammar, seed, split, i):
    # Draws count up the lowest word of Philox's counter; i in the next one gives each dialogue its own draws.
    key = np.array([seed, SPLITS.index(split)], dtype=np.uint64)
    rng = np.random.Generator(np.random.Philox(key=key, counter=[0, i, 0, 0]))
    messages = grammar.messages[split]
    intent = list(messages)[rng.integers(len(messages))]
    message = _choose(messages[intent], rng)
    slots = {name: _draw_value(grammar.values[name], rng) for name in sorted(_slot_names(message))}
    replies = grammar.replies[intent, frozenset(slots)]
    reply = _choose(replies, rng)
    log_prob = math.log(replies[reply])
    return Dialogue(message.format_map(slots), reply.format_map(slots), intent, slots, log_prob)


@checked(split=Choice(SPLITS))
def phrasing(dialogue: Dialogue, split: str) -> str:
    """Return the request that a dialogue's message was made from, with open slots: those of one are a cluster."""
    templates = default_grammar().messages[split][dialogue.intent]
    fitting = (t for t in templates if _slot_names(t) == set(dialogue.slots))
    template = next((t for t in fitting if t.format_map(dialogue.slots) == dialogue.message), None)
    if template is None:
        raise ValueError(f"No phrasing of the split {split!r} makes {dialogue.message!r}: name the split it is from.")
    return request_of(template, templates)


def request_of(template: str, templates: Iterable[str]) -> str:
    """Return the shortest of the templates within one of them: the greetings are gone."""
    return min((shorter for shorter in templates if shorter in template), key=len)


def _choose(options, rng):
    u = rng.random()
    for option, reached in zip(options, itertools.accumulate(options.values()), strict=True):
        if u < reached:
            return option
    return option  # rounding may leave the last sum just below one


def _draw_value(values, rng):
    return re.sub("#", lambda _: str(rng.integers(10)), values[rng.integers(len(values))])


def parse_message(message: str, *, grammar: Grammar | None = None) -> tuple[str, dict[str, str]] | None:
    """Return (intent, slots) of a message of either split, or None if the grammar cannot write it."""
    grammar = grammar or default_grammar()
    intents = itertools.chain(*(messages.items() for messages in grammar.messages.values()))
    return next(_readings(grammar, intents, message, any_words=False), None)


def parse_reply(reply: str, *, grammar: Grammar | None = None) -> tuple[str, dict[str, str]] | None:
    """Return (intent, slots) of a reply read without its message, or None if no template fits.

    A slot may hold any words: of a model that copied a number wrongly, one still sees the intent.
    """
    grammar = grammar or default_grammar()
    intents = ((intent, templates) for (intent, _), templates in grammar.replies.items())
    return next(_readings(grammar, intents, reply, any_words=True), None)


def _readings(grammar, intents, text, any_words):
    """Yield (intent, slots) for each way in which a template can become the text."""
    for intent, templates in intents:
        for pieces in map(_split_at_slots, templates):
            if text.startswith(pieces[0]) and text.endswith(pieces[-1]):  # for speed: few templates do both
                yield from ((intent, slots) for slots in _fillings(grammar, pieces, text, any_words))


@cache
def _split_at_slots(template):
    return tuple(re.split(r"\{(\w+)\}", template))  # text, slot name, text, slot name, ..., text


def _fillings(grammar, pieces, text, any_words):
    """Yield the slots of each way to make the text out of the pieces."""
    if len(pieces) == 1 and text == pieces[0]:
        yield {}
    if len(pieces) == 1 or not text.startswith(pieces[0]):
        return
    text, name = text.removeprefix(pieces[0]), pieces[1]
    for more in range(max(value.count(" ") for value in grammar.values[name]) + 1):
        words = re.match(rf"[\w'-]+(?: [\w'-]+){{{more}}}", text)
        if words and (any_words or grammar.value_patterns[name].fullmatch(words[0])):
            for slots in _fillings(grammar, pieces[2:], text[words.end() :], any_words):
                yield {name: words[0], **slots}


def parse(message: str, reply: str, *, grammar: Grammar | None = None) -> Dialogue:
    """Return the Dialogue recovered from its text alone, with log p(reply | message) in nats.

    Raises ValueError if the grammar cannot write the message, or never gives this reply to it.
    """
    grammar = grammar or default_grammar()
    found = parse_message(message, grammar=grammar)
    if found is None:
        raise ValueError(f"The grammar cannot write this message; use one that support() made: {message!r}.")
    intent, slots = found
    replies = {t.format_map(slots): p for t, p in grammar.replies[intent, frozenset(slots)].items()}
    if reply not in replies:
        raise ValueError(f"The grammar never gives this reply to the message; check its words: {reply!r}.")
    return Dialogue(message, reply, intent, slots, math.log(replies[reply]))


@checked(split=Choice(SPLITS))
def reply_entropy(split: str = "train", *, grammar: Grammar | None = None) -> float:
    """Return H(reply | message), the mean of -log_prob over a whole split, in nats per dialogue."""
    grammar = grammar or default_grammar()
    total = 0.0
    for intent, messages in grammar.messages[split].items():
        for message, p in messages.items():
            replies = grammar.replies[intent, _slot_names(message)].values()
            total -= p * sum(q * math.log(q) for q in replies)
    return total / len(grammar.messages[split])
