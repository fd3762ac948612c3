"""Replies judged by the grammar: what is right is called right, and each way of being wrong is seen."""

import pytest

from gptcourse.evaluation import ReplyReport, distinct_n, reply_report
from gptcourse.support import support

DIALOGUES = support(300, seed=7, split="test")
REPLIES = [dialogue.reply for dialogue in DIALOGUES]
WITH_ORDER = [dialogue for dialogue in DIALOGUES if "order" in dialogue.slots]


def test_the_grammars_own_replies_are_all_right():
    report = reply_report(DIALOGUES, REPLIES)
    assert report[:4] == (1.0, 1.0, 1.0, 0.0)
    assert report.distinct_2 == distinct_n(REPLIES, 2)


def test_a_wrong_digit_is_a_wrong_slot_but_the_right_intent():
    for change in (lambda order: order[:-1], lambda order: order + "0", lambda order: order[::-1][1:] + "9"):
        replies = [d.reply.replace(d.slots["order"], change(d.slots["order"])) for d in WITH_ORDER]
        report = reply_report(WITH_ORDER, replies)
        n_slots = sum(len(dialogue.slots) for dialogue in WITH_ORDER)
        assert report.intents == 1.0
        assert report.slots == pytest.approx(1 - len(WITH_ORDER) / n_slots)
        assert report.allowed == 0.0


def test_a_reply_to_another_message_is_counted_where_it_fits_by_chance_alone():
    others = REPLIES[1:] + REPLIES[:1]
    report = reply_report(DIALOGUES, others)
    same = sum(a.intent == b.intent for a, b in zip(DIALOGUES, DIALOGUES[1:] + DIALOGUES[:1], strict=True))
    assert report.intents == pytest.approx(same / len(DIALOGUES))
    assert report.slots < 0.2 and report.allowed < report.intents


def test_text_that_is_no_reply_is_nothing_right():
    assert reply_report(DIALOGUES, [""] * 300) == ReplyReport(0.0, 0.0, 0.0, 0.0, 1.0)
    cut = [reply[:-1] for reply in REPLIES]
    assert reply_report(DIALOGUES, cut).allowed == 0.0


def test_a_reply_that_goes_round_in_circles_loops():
    replies = [reply + " " + reply for reply in REPLIES[:150]] + REPLIES[150:]
    assert reply_report(DIALOGUES, replies).loops == 0.5


def test_distinct_n_counts_runs_of_words_over_all_texts():
    assert distinct_n(["a b a b", "a b"], 2) == 2 / 4
    assert distinct_n(["a b a b", "a b"], 1) == 2 / 6
    assert distinct_n(["a b c"], 4) == distinct_n([], 1) == 1.0


@pytest.mark.parametrize("n", [0, 299])
def test_one_reply_to_each_message_is_needed(n):
    with pytest.raises(ValueError, match=rf"^There are 300 dialogues and {n} replies: give one reply to each\.$"):
        reply_report(DIALOGUES, REPLIES[:n])
