"""Likelihoods, perplexity and labels against loops and transformers, and replies judged by the grammar."""

import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from gptcourse.evaluation import (
    ReplyReport,
    bits_per_byte,
    bootstrap_interval,
    calibration_error,
    classification_report,
    classify,
    distinct_n,
    exact_interval,
    examples_needed,
    few_shot,
    fit_temperature,
    holm,
    kappa,
    log_likelihoods,
    model_card,
    naive_bayes,
    overlap,
    perplexity,
    reply_report,
    share_interval,
    unique_n,
    wilson_interval,
)
from gptcourse.model import GPT, GPTConfig
from gptcourse.support import support
from gptcourse.tokenizers import BPETokenizer, CharTokenizer
from gptcourse.training import evaluate

TEXT = "the cat sat on the mat. is it good? yes or no: good, bad!"
TOKENIZER = CharTokenizer(TEXT + "\n")
WINDOW = 24


def gpt():
    torch.manual_seed(0)
    model = GPT(GPTConfig(TOKENIZER.vocab_size, n_positions=WINDOW, n_embd=16, n_layer=2, n_head=2))
    with torch.no_grad():
        model.wte.weight.mul_(12)  # as it starts, a model finds every token equally likely; this one has an opinion
    return model


def gpt2():
    return gpt().to_transformers()


every_kind = pytest.mark.parametrize("new_model", [gpt, gpt2])


@torch.no_grad()
def by_hand(model, context, continuation):
    """Return the log-probability of each token of the continuation, one forward pass for each."""
    ids, found = list(context), []
    for token in continuation:
        found.append(model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[token].item())
        ids.append(token)
    return found


@every_kind
@pytest.mark.parametrize("continuations", [[[3], [4]], [[3, 5, 7], [4], [3, 5], [1] * 6]])
def test_a_shared_context_is_read_once_and_gives_the_same(new_model, continuations, monkeypatch):
    model, context = new_model(), [2, 7, 1, 8, 2, 8]
    pairs = [(context, continuation) for continuation in continuations] + [([5, 5], [6, 2])]
    expected = [by_hand(model, *pair) for pair in pairs]
    read, forward = [], type(model).forward

    def count(self, ids, *inputs, **options):
        read.append(ids.numel())
        return forward(self, ids, *inputs, **options)

    monkeypatch.setattr(type(model), "forward", count)
    for row, wanted in zip(log_likelihoods(model, pairs), expected, strict=True):
        assert row.tolist() == pytest.approx(wanted, abs=1e-5)
    longest = max(map(len, continuations))
    assert sum(read) == 3 + len(context) + len(continuations) * (longest - 1)


@every_kind
def test_log_likelihoods_are_those_of_one_token_after_the_other_whatever_the_batches(new_model):
    model = new_model().eval()
    pairs = [([1, 2, 3], [4, 5]), ([7], [8, 9, 1, 2]), ([3] * 20, [6] * 5), ([2, 2], [0])]
    pairs += [([1, 2, 3], [token]) for token in range(4)]  # with the first five of one context
    for batch_size in (1, 3, 16):
        found = log_likelihoods(model, pairs, batch_size)
        assert [row.tolist() for row in found] == [pytest.approx(by_hand(model, *pair), abs=1e-5) for pair in pairs]


@pytest.mark.parametrize("pair", [([], [1]), ([1], []), ([1] * 20, [1] * 6)])
def test_a_pair_that_is_empty_or_too_long_is_refused_in_one_sentence(pair):
    with pytest.raises(ValueError, match=r"^(A context and a|Context and) continuation (need|have) [^\n]*\.$"):
        log_likelihoods(gpt(), [([1], [2]), pair])


@every_kind
@pytest.mark.parametrize("context", [1, 10, WINDOW])
def test_perplexity_is_the_exponential_of_the_mean_loss_each_token_with_its_context(new_model, context):
    model, tokens = (
        new_model().eval(),
        torch.randint(TOKENIZER.vocab_size, (61,), generator=torch.Generator().manual_seed(1)),
    )
    losses, end = [], 1
    while end < len(tokens):
        begin = max(0, end - context)
        for place in range(end, min(begin + WINDOW + 1, len(tokens))):
            losses += by_hand(model, tokens[begin:place].tolist(), [tokens[place].item()])
            end = place + 1
    assert len(losses) == 60
    assert perplexity(model, tokens, context) == pytest.approx(math.exp(-sum(losses) / 60), rel=1e-5)
    assert perplexity(model, tokens.tolist(), context) == perplexity(model, tokens, context)
    if context == 1 and isinstance(model, GPT):
        assert perplexity(model, tokens) == pytest.approx(math.exp(evaluate(model, tokens)), rel=1e-5)


def test_a_model_that_knows_nothing_has_the_size_of_its_vocabulary_as_perplexity():
    model = gpt()
    with torch.no_grad():
        model.wte.weight.zero_()
    assert perplexity(model, list(range(10))) == pytest.approx(TOKENIZER.vocab_size)


@pytest.mark.parametrize("tokens, context", [([1], 1), ([1, 2], 0), ([1, 2], WINDOW + 1)])
def test_perplexity_refuses_too_few_tokens_and_a_context_that_does_not_fit(tokens, context):
    with pytest.raises(ValueError, match=r"^(The tokens are|context is) [^\n]*\.$"):
        perplexity(gpt(), tokens, context)


def test_bits_per_byte_do_not_depend_on_the_pieces():
    assert bits_per_byte(math.log(2), 8, 8) == pytest.approx(1)
    assert bits_per_byte(3.0, 100, 400) == pytest.approx(bits_per_byte(1.0, 300, 400))


@every_kind
@pytest.mark.parametrize("normalise", ["token", "none", "prior"])
def test_the_label_with_the_best_score_is_chosen(new_model, normalise, monkeypatch):
    monkeypatch.setattr("gptcourse.evaluation.PRIOR_PROMPT", "on ")
    model, prompts, labels = new_model().eval(), ["is it ", "the cat: ", "no"], ["good", "bad", "yes or no"]
    result = classify(model, TOKENIZER, prompts, labels, normalise)
    for i, prompt in enumerate(prompts):
        rows = [by_hand(model, TOKENIZER.encode(prompt), TOKENIZER.encode(label)) for label in labels]
        scores = [sum(row) / (len(row) if normalise == "token" else 1) for row in rows]
        if normalise == "prior":
            priors = [sum(by_hand(model, TOKENIZER.encode("on "), TOKENIZER.encode(label))) for label in labels]
            scores = [score - prior for score, prior in zip(scores, priors, strict=True)]
        assert result.scores[i].tolist() == pytest.approx(scores, abs=1e-5)
        assert result.labels[i] == labels[scores.index(max(scores))]


def test_the_normalisation_matters():
    labels = ["good", "bad", "yes or no"]
    chosen = [
        classify(gpt(), TOKENIZER, ["is it "], labels, way).scores.argsort().tolist() for way in ("token", "none")
    ]
    assert chosen[0] != chosen[1]


def test_labels_get_no_mark_of_the_beginning():
    tokenizer = SimpleNamespace(all_special_ids=[0], eos_token_id=None, sep_token_id=None)
    tokenizer.encode = lambda text, add_special_tokens=True, **_: [0] * add_special_tokens + TOKENIZER.encode(text)
    model = gpt()
    rows = [by_hand(model, [0, *TOKENIZER.encode("it")], TOKENIZER.encode(label)) for label in ("a", "on")]
    scores = classify(model, tokenizer, ["it"], ["a", "on"], "none").scores
    assert scores[0].tolist() == pytest.approx([sum(row) for row in rows], abs=1e-5)


@pytest.mark.parametrize("labels", [[], ["a"], ["a", "a"]])
def test_fewer_than_two_labels_or_equal_ones_are_refused(labels):
    with pytest.raises(ValueError, match=r"^Give two or more different labels"):
        classify(gpt(), TOKENIZER, ["is"], labels)
    with pytest.raises(ValueError, match=r"^There are 0 prompts"):
        classify(gpt(), TOKENIZER, [], ["a", "b"])
    with pytest.raises(ValueError, match=r"^normalise is .*, but it must be one of"):
        classify(gpt(), TOKENIZER, ["is"], ["a", "b"], "bits")


def prompts_of(monkeypatch, *args, **options):
    seen = []
    monkeypatch.setattr("gptcourse.evaluation.classify", lambda *args: seen.extend(args[2]))
    few_shot(None, None, *args, **options)
    return seen


def test_a_few_shot_prompt_holds_k_examples_drawn_anew_for_each_text(monkeypatch):
    examples = [(f"q{i}", f"a{i}") for i in range(6)]
    texts = [f"t{i}" for i in range(40)]
    prompts = prompts_of(monkeypatch, examples, texts, ["x", "y"], 2, "Q: {text}\nA: {label}")
    shown = set()
    for text, prompt in zip(texts, prompts, strict=True):
        *before, last = prompt.split("\n\n")
        assert last == f"Q: {text}\nA: "
        assert len(before) == 2 == len(set(before)) and set(before) <= {f"Q: q{i}\nA: a{i}" for i in range(6)}
        shown.add(tuple(before))
    assert len(shown) > 15
    assert prompts == prompts_of(monkeypatch, examples, texts, ["x", "y"], 2, "Q: {text}\nA: {label}")
    assert prompts != prompts_of(monkeypatch, examples, texts, ["x", "y"], 2, "Q: {text}\nA: {label}", seed=1)
    assert prompts_of(monkeypatch, [], ["t"], ["x", "y"], 0) == ["t\n"]


@pytest.mark.parametrize(
    "k, template",
    [(-1, "{text}{label}"), (3, "{text}{label}"), (1, "{label}"), (1, "{label}{text}"), (1, "{label}{text}{label}")],
)
def test_few_shot_refuses_a_template_without_places_and_more_examples_than_there_are(k, template):
    with pytest.raises(ValueError, match=r"^(k is -?\d, but it|The template) must"):
        few_shot(gpt(), TOKENIZER, [("a", "b")] * 2, ["a"], ["a", "b"], k, template)


def test_a_pattern_in_the_prompt_is_gone_on_with():
    """A model that was trained to repeat a label chooses, with examples, the label that they all have."""
    tokenizer = BPETokenizer.train(["good bad it is"], 262)
    torch.manual_seed(0)
    model = GPT(GPTConfig(tokenizer.vocab_size, n_positions=64, n_embd=32, n_layer=2, n_head=4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    labels = ["good", "bad"]
    rows = [tokenizer.encode("\n\n".join([f"it is {label}"] * 4)) for label in labels]
    for _ in range(60):
        for row in rows:
            ids = torch.tensor([row])
            loss = F.cross_entropy(model(ids[:, :-1]).logits[0], ids[0, 1:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for label in labels:
        result = few_shot(model, tokenizer, [("it is", label)] * 3, ["it is"], labels, 2, "{text} {label}")
        assert result.labels == [label]


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


def test_unique_n_counts_for_each_text_what_stands_once_in_all_of_them():
    assert unique_n(["a b a b", "a b c", "d"], 2) == [1 / 3, 1 / 2, 1.0]  # (b a) and (b c); (a b) stands three times
    assert unique_n(["a a", "b"], 1) == [0.0, 1.0]


@pytest.mark.parametrize("n", [0, 299])
def test_one_reply_to_each_message_is_needed(n):
    with pytest.raises(ValueError, match=rf"^There are 300 dialogues and {n} replies: give one for each\.$"):
        reply_report(DIALOGUES, REPLIES[:n])


# ---- How good, and how sure


def test_the_label_report_counts_as_a_loop_does():
    rng = np.random.default_rng(1)
    labels = ["a", "b", "c", "never"]
    truth, predicted = ([labels[i] for i in rng.choice(3, 97, p=[0.7, 0.2, 0.1])] for _ in range(2))
    report = classification_report(truth, predicted, labels)
    pairs = list(zip(truth, predicted, strict=True))
    f1 = []
    for label in labels:
        hits = sum(t == p == label for t, p in pairs)
        precision = hits / max(predicted.count(label), 1)
        recall = hits / max(truth.count(label), 1)
        f1.append(2 * precision * recall / (precision + recall) if hits else 0.0)
    assert report.accuracy == sum(t == p for t, p in pairs) / 97
    assert report.macro_f1 == pytest.approx(sum(f1) / 4)
    assert [[pairs.count((t, p)) for p in labels] for t in labels] == report.confusion.tolist()


def test_accuracy_flatters_who_always_says_the_frequent_label_and_macro_f1_does_not():
    report = classification_report(["no"] * 9 + ["yes"], ["no"] * 10, ["no", "yes"])
    assert report.accuracy == 0.9 and report.macro_f1 == pytest.approx((18 / 19) / 2)


@pytest.mark.parametrize("truth, predicted", [([], []), (["a"], []), (["a"], ["z"]), (["z"], ["a"]), (["c"], ["c"])])
def test_labels_that_do_not_match_are_refused(truth, predicted):
    with pytest.raises(ValueError, match=r"^(There are|\['c'(, 'z')?\] are not among the labels)"):
        classification_report(truth, predicted, ["a", "b", "c", "c"])


def test_the_bootstrap_interval_is_that_of_the_normal_law_for_many_values_and_holds_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(2)
    values = rng.normal(3, 2, 400)
    low, high = bootstrap_interval(values, n=4_000)
    error = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.03)
    intervals = [bootstrap_interval(rng.random(60) < 0.3, level=0.8, n=300, seed=i) for i in range(200)]
    assert 0.7 < sum(low <= 0.3 <= high for low, high in intervals) / 200 < 0.9
    assert (
        bootstrap_interval(values, n=50) == bootstrap_interval(values, n=50) != bootstrap_interval(values, n=50, seed=1)
    )
    with pytest.raises(ValueError, match="two or more examples"):
        bootstrap_interval([1.0])


@pytest.mark.parametrize(("right", "n"), [(0, 10), (3, 10), (10, 10), (264, 400)])
def test_wilsons_interval_holds_the_shares_from_which_the_count_is_not_too_far(right, n):
    for level, z in ((0.95, 1.959964), (0.8, 1.281552)):
        for end in (ends := wilson_interval(right, n, level)):
            assert abs(right / n - end) == pytest.approx(z * math.sqrt(end * (1 - end) / n), abs=1e-6)
        assert 0 <= ends[0] <= right / n + 1e-9 and right / n - 1e-9 <= ends[1] <= 1
    assert wilson_interval(right, n) == pytest.approx([1 - end for end in reversed(wilson_interval(n - right, n))])


@pytest.mark.parametrize(("right", "n"), [(-1, 5), (6, 5), (0, 0), (1.5, 5)])
def test_wilsons_interval_refuses_counts_that_cannot_be(right, n):
    with pytest.raises(ValueError, match=r"must be a whole number (from 0 to|of 1 or more)"):
        wilson_interval(right, n)


@pytest.mark.parametrize("right, n", [(0, 10), (1, 10), (7, 64), (40, 64), (10, 10), (1, 1), (499, 500)])
def test_the_exact_interval_ends_where_the_tails_hold_a_fortieth(right, n):
    low, high = exact_interval(right, n)
    tails = [sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in counts) for p, counts in (
        (low, range(right, n + 1)), (high, range(right + 1)))]  # fmt: skip
    assert low == 0 if right == 0 else tails[0] == pytest.approx(0.025, rel=1e-6)
    assert high == 1 if right == n else tails[1] == pytest.approx(0.025, rel=1e-6)
    wilson = wilson_interval(right, n)
    assert low - 0.06 < wilson[0] and wilson[1] < high + 0.06


def test_the_exact_interval_of_ten_out_of_ten_has_a_width_and_holds_the_truth_as_often_as_it_says():
    assert exact_interval(10, 10) == pytest.approx((0.025**0.1, 1.0))
    assert exact_interval(0, 10) == pytest.approx((0.0, 1 - 0.025**0.1))
    ends = [exact_interval(k, 20) for k in range(21)]
    for p in (0.02, 0.3, 0.5, 0.97):
        held = (math.comb(20, k) * p**k * (1 - p) ** (20 - k) for k, (a, b) in enumerate(ends) if a <= p <= b)
        assert sum(held) >= 0.95


def test_a_share_has_the_exact_interval_or_that_of_its_groups():
    assert share_interval([True] * 3 + [False]) == exact_interval(3, 4)
    mixed, groups = [1, 1, 0, 0, 1, 1], list("aabbcc")
    assert share_interval(mixed, groups) == bootstrap_interval(mixed, groups=groups)
    assert share_interval([1] * 6, groups) == exact_interval(3, 3)  # drawing groups would give [1, 1]
    assert share_interval([0] * 6, groups) == exact_interval(0, 3)
    with pytest.raises(ValueError, match=r"^The answers must be whole numbers from 0 to 1"):
        share_interval([0.5, 1])


def test_several_p_values_are_adjusted_as_holm_does():
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.6, 0.9]) == [1.0, 1.0] and holm([0.03]) == [0.03]
    rng = np.random.default_rng(0)
    alarms = [min(holm(rng.random(10))) <= 0.05 for _ in range(2_000)]
    assert np.mean(alarms) < 0.065  # without: 0.4


def test_as_many_examples_as_it_says_show_the_difference_in_four_of_five_tests():
    n = examples_needed(0.8, 0.9)
    assert n == examples_needed(0.9, 0.8) == 199  # Fleiss et al. 2003, table A.4, without the correction
    rng, seen = np.random.default_rng(1), 0
    for _ in range(2_000):
        a, b = rng.binomial(n, [0.8, 0.9]) / n
        seen += abs(a - b) > 1.96 * math.sqrt(2 * (a + b) / 2 * (1 - (a + b) / 2) / n)
    assert seen / 2_000 == pytest.approx(0.8, abs=0.03)
    with pytest.raises(ValueError, match="no number of examples"):
        examples_needed(0.5, 0.5)


def test_kappa_is_agreement_beyond_chance():
    assert kappa(list("AABB"), list("AABB")) == 1 and kappa(list("AABB"), list("ABAB")) == 0
    yes_no = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    assert kappa(*zip(*yes_no, strict=True)) == pytest.approx(0.4)
    with pytest.raises(ValueError, match="their agreement shows nothing"):
        kappa(["a", "a"], ["a", "a"])


def test_the_temperature_that_was_hidden_is_found_and_nothing_is_better():
    torch.manual_seed(0)
    logits = 2 * torch.randn(20_000, 6)
    targets = torch.multinomial((logits / 1.7).softmax(-1), 1)[:, 0]
    found = fit_temperature(logits, targets)
    assert found == pytest.approx(1.7, rel=0.03)
    losses = [F.cross_entropy(logits / t, targets).item() for t in (found, 0.98 * found, 1.02 * found)]
    assert losses[0] == min(losses)
    confidence = [(logits / t).softmax(-1).amax(-1).tolist() for t in (1.0, found)]
    right = (logits.argmax(-1) == targets).tolist()
    assert calibration_error(confidence[1], right) < 0.3 * calibration_error(confidence[0], right)


def test_examples_of_one_group_are_drawn_together():
    rng = np.random.default_rng(4)
    values = rng.random(80)
    repeated, groups = np.repeat(values, 5), np.repeat(np.arange(80), 5)
    alone = bootstrap_interval(values, n=4_000)
    assert bootstrap_interval(repeated, n=4_000, groups=groups) == pytest.approx(alone, abs=0.01)
    narrow = bootstrap_interval(repeated, n=4_000)
    assert narrow[1] - narrow[0] < 0.6 * (alone[1] - alone[0])
    two = bootstrap_interval([0, 0, 0, 1], n=4_000, level=0.9, groups=["a", "a", "a", "b"])  # means 0, 1/4 and 1
    assert two == (0, 1)
    with pytest.raises(ValueError, match="two or more groups"):
        bootstrap_interval([1.0, 2.0], groups=["a", "a"])


def test_a_paired_comparison_is_surer_than_two_intervals():
    rng = np.random.default_rng(3)
    hard = rng.normal(0, 1, 200)  # what makes an example hard for both models
    first, second = hard + rng.normal(0, 0.1, 200), hard + 0.1 + rng.normal(0, 0.1, 200)
    low, high = bootstrap_interval(second - first, n=2_000)
    assert 0 < low < 0.1 < high
    assert bootstrap_interval(first, n=2_000)[1] > bootstrap_interval(second, n=2_000)[0]


def test_calibration_error_is_zero_for_the_honest_and_the_gap_for_the_boastful():
    rng = np.random.default_rng(4)
    confidence = rng.random(20_000)
    assert calibration_error(confidence, rng.random(20_000) < confidence) < 0.02
    assert calibration_error([0.95] * 100, [True] * 60 + [False] * 40) == pytest.approx(0.35)
    assert calibration_error([1.0, 0.0], [True, False]) == 0
    assert calibration_error([0.15, 0.95], [True, True]) == pytest.approx((0.85 + 0.05) / 2)


NONE = ("nan", "inf", "-inf")
IMPOSSIBLE = [
    *((calibration_error, ([float(x), 0.5], [1, 0])) for x in (*NONE, -0.1, 1.1)),
    (calibration_error, ([None, 0.5], [1, 0])),
    *((calibration_error, ([0.5, 0.5], [1, float(x)])) for x in (*NONE, -1, 2)),
    *((calibration_error, ([0.5], [1], n)) for n in (0, -1, math.nan)),
    *((bootstrap_interval, ([1.0, float(x)],)) for x in NONE),
    *((bootstrap_interval, ([1.0, 2.0], level)) for level in (-0.1, 95, math.nan)),
    *((bootstrap_interval, ([1.0, 2.0], 0.95, n)) for n in (0, -5)),
    *((bits_per_byte, (float(x), 1, 1)) for x in (*NONE, -1)),
    *((bits_per_byte, (1.0, *counts)) for counts in ((-1, 1), (1, 0), (1, -1), (math.nan, 1))),
    *((overlap, ("a b", "a b", n)) for n in (0, -1)),
    *((count, (["a b"], n)) for count in (distinct_n, unique_n) for n in (0, -1)),
]


IMPOSSIBLE += [
    (calibration_error, ([0.5], [1], 2.5)),
    *((bootstrap_interval, ([1.0, 2.0], 0.95, n)) for n in (2.5, "ten", None)),
    *((overlap, ("a b", "a b", n)) for n in (1.5, "two")),
    (distinct_n, (["a b"], 1.5)),
    (bits_per_byte, ("1.0", 10, 20)),
    (bits_per_byte, (1.0, 10.5, 20)),
    *((lambda k: few_shot(None, None, [("a", "b")] * 3, ["a"], ["a", "b"], k), (k,)) for k in (1.5, "one", None)),
    (lambda context: perplexity(gpt(), [1, 2, 3], context), (1.5,)),
]


@pytest.mark.parametrize("measure, numbers", IMPOSSIBLE)
def test_impossible_numbers_are_refused_by_every_measure(measure, numbers):
    several = r"The [^\n]* must be (finite|whole) numbers from \S+ to \S+, but there is \S+\."
    one = r"\w+ is [^\n]*, but it must be a (finite |whole |)number [^\n]*\."
    with pytest.raises(ValueError, match=f"^({several}|{one})$"):
        measure(*numbers)


@pytest.mark.parametrize(
    "measure", [lambda: calibration_error([], []), lambda: calibration_error([0.5], [True, True])], ids=["none", "two"]
)
def test_lengths_that_differ_are_refused(measure):
    with pytest.raises(ValueError, match=r"^There are \d confidences and \d answers: give one for each\.$"):
        measure()


@pytest.mark.parametrize("tokens", [[1, 2.5, 3], torch.tensor([1.0, 2.5]), [1, "2"]])
def test_tokens_that_are_not_whole_are_refused_by_perplexity(tokens):
    with pytest.raises(ValueError, match=r"^The tokens must be whole numbers, not [^\n]*\.$"):
        perplexity(gpt(), tokens)


NO_LISTS = [
    *(lambda values=values: bootstrap_interval(values) for values in (1.5, "abc")),
    *(lambda part=part: calibration_error(part, [1, 0]) for part in (0.5, "ab")),
    *(lambda part=part: naive_bayes(part, ["where?"]) for part in ([1.5], ["where is it?"], "abc", 2.5, [("a", 1)])),
    *(lambda part=part: few_shot(gpt(), TOKENIZER, part, ["it"], ["a", "b"], 0) for part in ([1.5], "abc", 2.5)),
    *(lambda part=part: classify(gpt(), TOKENIZER, part, ["a", "b"]) for part in ("it", [1.5], 2.5)),
    *(lambda part=part: classify(gpt(), TOKENIZER, ["it"], part) for part in ("ab", [1.5, 2.5])),
    *(lambda part=part: distinct_n(part, 2) for part in ("a b c", [1.5])),
    lambda: overlap(1.5, "a b"),
    lambda: reply_report(DIALOGUES[:1], [1.5]),
]


@pytest.mark.parametrize("measure", NO_LISTS)
def test_numbers_and_texts_for_lists_of_examples_are_refused_in_one_sentence(measure):
    with pytest.raises(
        ValueError, match=r"^(The [^\n]* must be a list|\w+ is [^\n]*, but it must be a (list|text))[^\n]*\.$"
    ):
        measure()


def test_a_model_that_gives_nan_has_no_perplexity_and_chooses_no_label():
    model = gpt()
    with torch.no_grad():
        model.ln_f.weight[0] = math.nan
    for measure in (lambda: perplexity(model, [1, 2, 3]), lambda: classify(model, TOKENIZER, ["is"], ["a", "b"])):
        with pytest.raises(ValueError, match=r"^The model gives NaN"):
            measure()


@pytest.mark.parametrize("token", [-1, TOKENIZER.vocab_size])
def test_a_token_outside_the_vocabulary_is_one_sentence(token):
    with pytest.raises(
        ValueError, match=r"^The tokens go from [^\n]*: use the tokenizer that the model was made for\.$"
    ):
        perplexity(gpt(), [1, 2, token])


def test_measuring_leaves_a_model_in_training_as_it_is_for_another_thread():
    torch.manual_seed(0)
    model = GPT(GPTConfig(TOKENIZER.vocab_size, n_positions=WINDOW, n_embd=16, n_layer=1, n_head=2, dropout=0.5))
    modes = []
    model.lm_head.register_forward_hook(lambda *_: modes.append({module.training for module in model.modules()}))
    first = perplexity(model.train(), list(range(10)))
    assert first == perplexity(model, list(range(10))) and modes == [{True}] * 2


# ---- Contamination, a baseline, a card


def test_overlap_is_the_share_of_runs_of_words_that_were_seen():
    seen = "The quick brown fox jumps over the lazy dog."
    assert overlap("a QUICK, brown fox!", seen, n=3) == 0.5
    assert overlap("the quick brown fox jumps", seen, n=3) == 1.0
    assert overlap("quick fox brown the", seen, n=3) == 0.0
    assert overlap("too short", seen) == 0.0


def naive_bayes_by_hand(examples, text):
    """Multiply plain fractions, word by word."""
    words_of = {label: " ".join(t for t, other in examples if other == label).split() for _, label in examples}
    vocabulary = {word for words in words_of.values() for word in words}
    best = {}
    for label, words in words_of.items():
        p = sum(other == label for _, other in examples) / len(examples)
        for word in (word for word in text.split() if word in vocabulary):
            p *= (words.count(word) + 1) / (len(words) + len(vocabulary))
        best[label] = p
    return max(best, key=best.get)


def test_naive_bayes_multiplies_fractions():
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(12)]
    examples = [(" ".join(rng.choice(words[i % 3 :], 6)), f"label {i % 3}") for i in range(30)]
    texts = [" ".join([*rng.choice(words, 5), "unseen"]) for _ in range(40)]
    found = naive_bayes(examples, texts)
    assert found == [naive_bayes_by_hand(examples, text) for text in texts] and len(set(found)) == 3


def test_naive_bayes_hears_no_capitals_and_needs_examples():
    assert naive_bayes([("Where is it?", "status"), ("It broke!", "damage")], ["where?", "BROKE"]) == [
        "status",
        "damage",
    ]
    with pytest.raises(ValueError, match="give some pairs"):
        naive_bayes([], ["where?"])


CARD = {
    "description": "A small model.",
    "intended_use": "Lessons.",
    "not_intended": "Customers.",
    "training_data": "Made dialogues.",
    "conditions": ["test phrasings", "capitals"],
    "measurements": [
        ("accuracy", [1, 0, 1, 1, 0, 1, 1, 1], "test phrasings"),
        ("accuracy", [0, 0, 0, 0, 1, 0, 0, 0], "capitals", list("aabbccdd")),
    ],
    "limits": ["One language.", "One shop."],
}


def test_a_card_holds_every_part_and_every_number_with_its_interval():
    card = model_card("tiny", **CARD)
    assert card.startswith("# tiny\n\nA small model.\n")
    low, high = exact_interval(6, 8)
    assert low < 0.75 < high and f"| accuracy | test phrasings | 0.75 | {low:.3g} to {high:.3g} | 8 | 8 |" in card
    low, high = bootstrap_interval([0, 0, 0, 0, 1, 0, 0, 0], groups=list("aabbccdd"))
    assert f"| accuracy | capitals | 0.125 | {low:.3g} to {high:.3g} | 8 | 4 |" in card
    assert [line for line in card.splitlines() if line.startswith("## ")] == [
        "## Intended use",
        "## Training data",
        "## Measured",
        "## Limits",
    ]
    assert "**Not for:** Customers." in card and card.endswith("* One language.\n* One shop.\n")


def test_a_card_with_a_number_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"^The values must be finite"):
        model_card("tiny", **CARD | {"measurements": [("loss", [1.0, math.nan], "data")], "conditions": ["data"]})


def test_a_card_does_not_leave_out_what_was_measured():
    with pytest.raises(ValueError, match=r"^The card leaves out what was measured: capitals\. Show it"):
        model_card("tiny", **CARD | {"measurements": CARD["measurements"][:1]})


@pytest.mark.parametrize("part", CARD)
def test_a_card_that_leaves_something_out_is_refused(part):
    with pytest.raises(ValueError, match=f"nothing under {part}"):
        model_card("tiny", **CARD | {part: type(CARD[part])()})


def test_pairs_may_be_tensors_and_no_batch_is_empty():
    model, ids = gpt(), torch.arange(6)
    as_lists, as_tensors = (log_likelihoods(model, [(x[:3], x[3:])] * 2) for x in (ids.tolist(), ids))
    assert_close(as_tensors, as_lists)
    for measure in (partial(log_likelihoods, model, [([1], [2])]), partial(evaluate, model, ids)):
        with pytest.raises(ValueError, match=r"^batch_size is 0, but"):
            measure(batch_size=0)
    assert evaluate(model, ids, sequence_length=4.0) == evaluate(model, ids, sequence_length=4)


def test_a_long_text_is_read_a_few_windows_at_a_time_with_the_same_result(monkeypatch):
    torch.manual_seed(0)
    model, tokens = GPT(GPTConfig(7, 8, 8, 1, 2)), torch.arange(90) ** 2 % 7
    whole = perplexity(model, tokens, 3)
    monkeypatch.setattr("gptcourse.evaluation.AT_ONCE", 4)
    assert perplexity(model, tokens, 3) == pytest.approx(whole, rel=1e-6)
