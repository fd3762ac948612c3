"""The support dialogues: exact probabilities, one derivation per text, held-out phrasings."""

import itertools
import json
import math
import random
import re
import statistics
from collections import Counter
from importlib.resources import files

import pytest

from gptcourse.support import (
    SPLITS,
    Grammar,
    default_grammar,
    parse,
    parse_message,
    parse_reply,
    phrasing,
    reply_entropy,
    support,
)

DATA = json.loads(files("gptcourse").joinpath("assets", "support_grammar.json").read_text(encoding="utf-8"))

SMALL = {
    "slots": {"name": ["Ana", "Bo"], "order": ["7#"]},
    "rules": {
        "message": [{"given": [], "options": {"[request]": 0.5, "{name} here. [request]": 0.5}}],
        "hello": [
            {"given": ["name"], "options": {"Hi {name}!": 0.75, "Dear {name},": 0.25}},
            {"given": [], "options": {"Hi!": 1.0}},
        ],
        "days": [{"given": [], "options": {"one": 0.2, "two": 0.8}}],
    },
    "intents": {
        "status": {
            "requests": {"train": ["Where is {order}?", "Where is it?"], "test": ["Is {order} sent?"]},
            "reply": [
                {
                    "given": ["order"],
                    "options": {"[hello] {order} needs [days] days.": 0.9, "{order} is here.": 0.1},
                },
                {"given": [], "options": {"[hello] Which number?": 1.0}},
            ],
        }
    },
}


@pytest.fixture(scope="module")
def dialogues():
    return support(20_000, seed=1)


def derivations(rules, template, given):
    """Enumerate (text, probability) of each derivation: the tests' own account of the grammar."""
    columns = []
    for piece in re.findall(r"\[\w+\]|[^\[]+", template):
        if not piece.startswith("["):
            columns.append([(piece, 1.0)])
            continue
        options = next(c["options"] for c in rules[piece[1:-1]] if set(c["given"]) <= given)
        columns.append([(t, p * q) for o, p in options.items() for t, q in derivations(rules, o, given)])
    for row in itertools.product(*columns):
        yield "".join(text for text, _ in row), math.prod(p for _, p in row)


def replies_to(data, intent, slots):
    rules = {**data["rules"], "reply": data["intents"][intent]["reply"]}
    return [(fill(text, slots), p) for text, p in derivations(rules, "[reply]", set(slots))]


def messages_of(data, intent, split):
    """Enumerate (template, probability) of an intent's messages; its requests are equally likely."""
    requests = data["intents"][intent]["requests"][split]
    for frame, p in data["rules"]["message"][0]["options"].items():
        for request in requests:
            yield frame.replace("[request]", request), p / len(requests)


def fill(template, slots):
    for name, value in slots.items():
        template = template.replace("{" + name + "}", value)
    return template


def slot_names(template):
    return re.findall(r"\{(\w+)\}", template)


def random_slots(names, rng):
    values = {name: rng.choice(DATA["slots"][name]) for name in names}
    return {name: re.sub("#", lambda _: rng.choice("0123456789"), value) for name, value in values.items()}


def strict_pattern(template):
    """Compile a template whose slots match the listed values and nothing else."""
    parts = re.split(r"\{(\w+)\}", template)
    values = ["(?:" + "|".join(DATA["slots"][name]).replace("#", "[0-9]") + ")" for name in parts[1::2]]
    literals = [re.escape(part) for part in parts[::2]]
    return re.compile("".join(a + b for a, b in itertools.zip_longest(literals, values, fillvalue="")))


def requests_of(split):
    return [request for entry in DATA["intents"].values() for request in entry["requests"][split]]


def test_small_grammar_by_hand():
    grammar = Grammar(SMALL)
    by_hand = {
        ("Where is 71?", "Hi! 71 needs one days."): 0.9 * 0.2,
        ("Where is 71?", "Hi! 71 needs two days."): 0.9 * 0.8,
        ("Is 71 sent?", "71 is here."): 0.1,
        ("Bo here. Where is 70?", "Dear Bo, 70 needs two days."): 0.9 * 0.25 * 0.8,
        ("Bo here. Where is it?", "Hi Bo! Which number?"): 0.75,
        ("Where is it?", "Hi! Which number?"): 1.0,
    }
    for (message, reply), probability in by_hand.items():
        log_prob = parse(message, reply, grammar=grammar).log_prob
        assert log_prob == pytest.approx(math.log(probability), abs=1e-12)


def test_entropy_of_the_small_grammar_by_hand():
    def entropy(*probabilities):
        return -sum(p * math.log(p) for p in probabilities)

    # By the chain rule: which reply, then the number of days and, when a name is given, the greeting.
    with_order, hello = entropy(0.9, 0.1) + 0.9 * entropy(0.2, 0.8), entropy(0.75, 0.25)
    grammar = Grammar(SMALL)
    assert reply_entropy("test", grammar=grammar) == pytest.approx(with_order + 0.5 * 0.9 * hello, abs=1e-12)
    train = 0.5 * (with_order + 0.5 * 0.9 * hello) + 0.5 * (0.5 * hello)
    assert reply_entropy("train", grammar=grammar) == pytest.approx(train, abs=1e-12)


@pytest.mark.parametrize("data", [SMALL, DATA], ids=["small", "course"])
def test_reply_probabilities_equal_enumeration_and_sum_to_one(data):
    grammar = Grammar(data)
    for dialogue in support(5, seed=5, grammar=grammar):
        total = 0.0
        for reply, probability in replies_to(data, dialogue.intent, dialogue.slots):
            log_prob = parse(dialogue.message, reply, grammar=grammar).log_prob
            assert log_prob == pytest.approx(math.log(probability), abs=1e-12)
            total += math.exp(log_prob)
        assert total == pytest.approx(1.0, abs=1e-12)


def test_sampled_replies_have_the_stated_frequencies():
    grammar = Grammar({**SMALL, "slots": {"name": ["Ana"], "order": ["70"]}})
    message = "Ana here. Is 70 sent?"
    replies = [d.reply for d in support(8_000, grammar=grammar, split="test") if d.message == message]
    exact = replies_to(SMALL, "status", {"name": "Ana", "order": "70"})
    expected = {reply: p * len(replies) for reply, p in exact}
    assert len(expected) == 5  # two greetings times two numbers of days, and the short reply
    counts = Counter(replies)
    assert set(counts) == set(expected)
    chi_square = sum((counts[reply] - e) ** 2 / e for reply, e in expected.items())
    assert chi_square < 18.5  # 4 degrees of freedom: exceeded once in a thousand


def test_sampled_reply_choices_have_the_stated_frequencies(dialogues):
    chosen = [d for d in dialogues if d.intent == "speak_to_person" and set(d.slots) == {"name", "date"}]
    for part, p in (("have booked", 0.3), ("I understand", 0.2), ("around noon", 0.8 * 0.2), ("Hi ", 0.2)):
        share = sum(part in d.reply for d in chosen) / len(chosen)
        assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / len(chosen))


def test_intents_and_requests_are_drawn_uniformly(dialogues):
    counts = Counter(d.intent for d in dialogues)
    expected = len(dialogues) / len(DATA["intents"])
    assert sum((counts[i] - expected) ** 2 / expected for i in DATA["intents"]) < 37.7  # 15 degrees, 0.1 %
    requests = DATA["intents"]["cancel_order"]["requests"]["train"]
    patterns = [strict_pattern(request) for request in requests]
    texts = [d.message for d in dialogues if d.intent == "cancel_order"]
    hits = [sum(pattern.search(text) is not None for text in texts) for pattern in patterns]
    p = 1 / len(requests)
    assert all(abs(n - p * len(texts)) < 4.5 * math.sqrt(p * (1 - p) * len(texts)) for n in hits)


@pytest.mark.parametrize("split", SPLITS)
def test_entropy_equals_enumeration(split):
    total = 0.0
    for intent in DATA["intents"]:
        entropy = {}
        for message, p in messages_of(DATA, intent, split):
            slots = {name: "{" + name + "}" for name in slot_names(message)}
            key = frozenset(slots)
            if key not in entropy:
                entropy[key] = -sum(q * math.log(q) for _, q in replies_to(DATA, intent, slots))
            total += p * entropy[key]
    assert reply_entropy(split) == pytest.approx(total / len(DATA["intents"]), abs=1e-10)


def test_mean_negative_log_prob_is_the_entropy(dialogues):
    losses = [-d.log_prob for d in dialogues]
    standard_error = statistics.stdev(losses) / math.sqrt(len(losses))
    assert abs(statistics.mean(losses) - reply_entropy()) < 4 * standard_error


def test_each_message_has_exactly_one_derivation():
    rng = random.Random(0)
    frames = DATA["rules"]["message"][0]["options"]
    requests = {request: strict_pattern(request) for split in SPLITS for request in requests_of(split)}
    openings = {frame: strict_pattern(frame).pattern.replace(r"\[request\]", "(.+)") for frame in frames}
    for intent, frame, split in itertools.product(DATA["intents"], frames, SPLITS):
        for request in DATA["intents"][intent]["requests"][split]:
            template = frame.replace("[request]", request)
            slots = random_slots(slot_names(template), rng)
            text = fill(template, slots)
            inner = [m[1] for pattern in openings.values() if (m := re.fullmatch(pattern, text))]
            readings = [r for core in inner for r, pattern in requests.items() if pattern.fullmatch(core)]
            assert readings == [request]
            if rng.random() < 0.2:
                assert parse_message(text) == (intent, slots)


def test_each_reply_has_exactly_one_derivation_even_without_its_message():
    rng = random.Random(0)
    seen = {}
    for intent in DATA["intents"]:
        for names in {tuple(sorted(slot_names(m))) for m, _ in messages_of(DATA, intent, "train")}:
            slots = random_slots(names, rng)
            replies = [reply for reply, _ in replies_to(DATA, intent, slots)]
            assert len(set(replies)) == len(replies)
            for reply in replies:
                if rng.random() < 0.05:
                    assert parse_reply(reply) == (intent, slots)
                assert seen.setdefault(reply, (intent, slots)) == (intent, slots)
    assert len(seen) > 8_000


@pytest.mark.parametrize("split", SPLITS)
def test_a_dialogue_is_recovered_from_its_text(split):
    for dialogue in support(200, seed=2, split=split):
        assert parse(dialogue.message, dialogue.reply) == dialogue


def test_every_slot_of_the_message_stands_in_message_and_reply(dialogues):
    for d in dialogues:
        assert all(value in d.message and value in d.reply for value in d.slots.values())


def test_a_missing_slot_is_asked_for(dialogues):
    asked = {"opening_hours": ("city", "city"), "delivery_area": ("city", "city")}
    asked |= {"product_question": ("colour", "colour"), "speak_to_person": ("date", "day")}
    missing = 0
    for d in dialogues:
        slot, word = asked.get(d.intent, ("order", "number"))
        if slot not in d.slots:
            missing += 1
            assert word in d.reply
    assert 0.1 < missing / len(dialogues) < 0.4


def test_dialogue_i_depends_on_seed_split_and_i_alone():
    twenty = support(20, seed=3)
    assert support(10, seed=3) == twenty[:10]
    assert support(20, seed=3) == twenty
    assert support(20, seed=4)[:3] != twenty[:3]
    assert [d.intent for d in support(20, seed=3, split="test")] != [d.intent for d in twenty]
    assert len({d.message for d in twenty}) == 20
    assert support(0) == []


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(SPLITS, 2)))
def test_no_phrasing_is_in_two_splits(first, second):
    mine, others = set(requests_of(first)), set(requests_of(second))
    assert not mine & others
    patterns = [strict_pattern(request) for request in others]
    assert not any(p.search(d.message) for d in support(1_000, split=first) for p in patterns)
    grammar = default_grammar()
    for intent in DATA["intents"]:
        assert not grammar.messages[first][intent].keys() & grammar.messages[second][intent].keys()


def test_splits_share_intents_and_kinds_of_slots():
    kinds = {split: {(d.intent, frozenset(d.slots)) for d in support(3_000, seed=6, split=split)} for split in SPLITS}
    assert kinds["train"] == kinds["validation"] == kinds["test"]


def test_the_corpus_is_large_varied_and_short(dialogues):
    assert len({(d.message, d.reply) for d in dialogues}) > 19_500
    assert statistics.median(len(d.reply.split()) for d in dialogues) < 45
    assert len(DATA["intents"]) >= 12
    for entry in DATA["intents"].values():
        assert len(entry["requests"]["train"]) >= 35
        assert all(len(entry["requests"][split]) >= 4 for split in ("validation", "test"))
        assert all(len(case["options"]) >= 2 for case in entry["reply"])


def test_texts_are_plain_and_tidy(dialogues):
    for d in dialogues:
        for text in (d.message, d.reply):
            assert text.isascii()
            assert text.isprintable()
            assert not re.search(r"[\[\]{}#<>|]|  |^ | $", text)


def test_the_shipped_grammar_is_well_formed():
    rules = [*DATA["rules"].values(), *(entry["reply"] for entry in DATA["intents"].values())]
    for cases in rules:
        assert cases[-1]["given"] == [] or cases[-1] is cases[0]
        for case in cases:
            assert sum(case["options"].values()) == pytest.approx(1.0, abs=1e-12)
            assert all(p > 0 for p in case["options"].values())
    for intent in DATA["intents"]:
        for message, _ in messages_of(DATA, intent, "train"):
            assert len(slot_names(message)) == len(set(slot_names(message)))
    for name, values in DATA["slots"].items():
        assert len(set(values)) == len(values), name


def test_a_wrong_copy_still_shows_its_intent():
    reply = "Hello Zorg! The invoice for order 4821 is on its way to you by email. Take care!"
    assert parse_reply(reply) == ("invoice_copy", {"name": "Zorg", "order": "4821"})


@pytest.mark.parametrize("reply", ["", "Hello!", "Where is my order 12345?", "\x00", "我的订单"])
def test_text_that_is_no_reply_has_no_reading(reply):
    assert parse_reply(reply) is None


def test_text_outside_the_language_is_refused_in_one_sentence():
    message = "I need the invoice for order 12345."
    reply = "Hello! The invoice for order 12345 is on its way to you by email. Take care!"
    assert parse(message, reply).intent == "invoice_copy"
    for wrong in (message.replace("12345", "1234"), message[:-1], "Hi, this is Zorg. " + message):
        with pytest.raises(ValueError, match=r"cannot write this message.*\.$"):
            parse(wrong, reply)
    for wrong in (reply.replace("12345", "12346"), reply[:-1], ""):
        with pytest.raises(ValueError, match=r"never gives this reply.*\.$"):
            parse(message, wrong)


@pytest.mark.parametrize("n", [-1, 2.5, "3", None, True])
def test_n_must_be_a_whole_number(n):
    with pytest.raises(ValueError, match=r"^n is .*whole number of 0 or more\.$"):
        support(n)


@pytest.mark.parametrize("seed", [-1, 0.5, 2**64])
def test_seed_must_be_a_whole_number(seed):
    with pytest.raises(ValueError, match=r"^seed is .*whole number from 0 to 2\*\*64 - 1\.$"):
        support(1, seed=seed)


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match=r"^split is .*, but it must be one of train, test, validation\.$"):
        support(1, split="valid")
    with pytest.raises(ValueError, match=r"^split is .*, but it must be one of train, test, validation\.$"):
        reply_entropy("valid")


def test_a_phrasing_of_another_split_is_refused():
    with pytest.raises(ValueError, match="No phrasing of the split 'test' makes"):
        phrasing(support(1, split="train")[0], "test")
