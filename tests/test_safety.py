"""Banned text never leaks, personal data is found and order numbers are left, exposure follows its formula."""

import math
import re
from typing import ClassVar

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LogitsProcessorList, NoBadWordsLogitsProcessor

from gptcourse.generation import Sampling, generate, stream
from gptcourse.model import GPT, GPTConfig
from gptcourse.safety import (
    NOISES,
    PERSONAL,
    BannedText,
    canary_exposures,
    canonical,
    deduplicated,
    exposure,
    insert_canaries,
    is_refusal,
    leaks,
    perturb,
    redact,
    risky_requests,
    token_bytes,
)
from gptcourse.support import support
from gptcourse.tokenizers import BPETokenizer, CharTokenizer

TEXT = "the secret is here. a secretary keeps secrets, Größe und Straße, 订单 🙂. " * 3
BPE = BPETokenizer.train(TEXT, 290)


class Writes(torch.nn.Module):
    """A model that wants to write one text, whatever has been said before."""

    device = torch.device("cpu")

    def __init__(self, ids, n_prompt, vocab_size, second_best=None):
        super().__init__()
        self.ids, self.n_prompt, self.second_best = ids, n_prompt, second_best
        self.config = GPTConfig(vocab_size, n_positions=200, n_embd=2, n_layer=1, n_head=1)

    def new_cache(self, _n):
        self.n_read = 0
        return self

    def forward(self, ids, cache=None, logits_to_keep=0):
        self.n_read += ids.shape[1]
        logits = torch.zeros(len(ids), ids.shape[1], self.config.vocab_size)
        place = self.n_read - self.n_prompt
        if 0 <= place < len(self.ids):
            logits[:, -1, self.ids[place]] = 50.0
        if self.second_best is not None:
            logits[:, -1, self.second_best] += 20.0
        return type("Output", (), {"logits": logits})


def written(wish, banned, tokenizer=BPE, prompt="the ", cut=None):
    """Return what a model writes that wants to write `wish`, cut into tokens in one way or another."""
    ids = tokenizer.encode(wish) if cut is None else [i for part in cut for i in tokenizer.encode(part)]
    model = Writes(
        ids, len(tokenizer.encode(prompt)), tokenizer.vocab_size, tokenizer.encode("x" if tokenizer is BPE else ".")[0]
    )
    options = {"logits_processor": BannedText(tokenizer, banned)} if banned else {}
    new = generate(model, tokenizer.encode(prompt), len(ids), Sampling(temperature=0), **options)
    return tokenizer.decode(new)


@pytest.mark.parametrize("cut", [["secret"], list("secret"), ["sec", "ret"], ["s", "ecre", "t"], ["Sec", "RET"]])
def test_a_banned_phrase_is_not_completed_however_it_is_cut_into_tokens(cut):
    wish = "".join(cut)
    assert written(wish, [], cut=cut) == "the " + wish
    assert "secret" not in written(wish, ["secret"], cut=cut).lower()


@pytest.mark.parametrize("phrase", ["Größe", "订单", "🙂", "is he"])
def test_letters_of_several_bytes_and_spaces_are_banned_too(phrase):
    for cut in ([phrase], list(phrase)):
        assert phrase in written(phrase, [], cut=cut)
        assert phrase not in written(phrase, [re.escape(phrase)], cut=cut)
    half = phrase.encode()[:1]
    assert any(piece == half for piece in token_bytes(BPE))  # one byte of it may be written, but not the last


def test_what_only_looks_like_it_is_written_and_a_phrase_begun_in_the_prompt_is_not_finished():
    assert written("secre", ["secret"]) == "the secre"
    assert written("t and more", ["secret"], prompt="the secre") == "the secrex and more"
    assert written(" is out", ["secret"], prompt="the secret") == "the secret is out"  # was said before


@pytest.mark.parametrize(
    "phrase, wish", [("Größe", "GRÖSSE"), ("is here", "is  here"), ("is here", "IS HERE"), ("café", "cafe\u0301")]
)
def test_a_banned_phrase_is_seen_in_other_signs_for_the_same(phrase, wish):
    tokenizer = BPETokenizer.train(TEXT + wish * 3, 300)
    assert canonical(phrase) in canonical(written(wish, [], tokenizer))
    assert canonical(phrase) not in canonical(written(wish, [re.escape(phrase)], tokenizer))


def test_a_phrase_that_overlaps_with_itself_is_not_written_again():
    assert written("a", ["aa"], prompt="aa") == "aax"


def test_one_form_is_made_of_what_looks_nearly_the_same():
    assert canonical("Ｍy  CAF\u00c9\n\ufb01ne\u200b") == canonical("my cafe\u0301 fine") == "my cafe fine"
    assert canonical("\u0430") != canonical("a")  # a Cyrillic letter: not promised
    for text in ("Straße ΌΣΟΣ", "plain", "İ"):
        assert canonical(canonical(text)) == canonical(text)


def test_a_secret_leaks_whatever_stands_between_its_letters():
    assert leaks("It is m-A g\nnolia!", "MAGNOLIA") and leaks("ＭＡＧＮＯＬＩＡ", "magnolia")
    assert not leaks("MAGNOLINA", "MAGNOLIA") and not leaks("", "MAGNOLIA")


@pytest.mark.parametrize("secret", ["", " -!", "\u200b"])
def test_a_secret_without_letters_is_refused(secret):
    with pytest.raises(ValueError, match=r"^The secret '.*' has no letters and no digits: .*\.$"):
        leaks("any text", secret)


def test_a_pattern_is_banned_as_soon_as_it_is_complete():
    assert re.search(r"\d{3}", written("call 12345", [])) is not None
    assert re.search(r"\d{3}", written("call 12345", [r"\d{3}"])) is None


def test_a_batch_is_guarded_row_by_row_and_a_drawn_text_never_leaks():
    torch.manual_seed(0)
    model = GPT(GPTConfig(BPE.vocab_size, n_positions=64, n_embd=16, n_layer=1, n_head=2))
    banned = ["e", r"[a-d]s"]
    guard = BannedText(BPE, banned)
    prompts = [BPE.encode("the "), BPE.encode("a secret of ")]
    free = generate(model, prompts, 60, Sampling(seed=1))
    rows = generate(model, prompts, 60, Sampling(seed=1), logits_processor=guard)
    for row, without, prompt in zip(rows, free, prompts, strict=True):
        new = BPE.decode(row)[len(BPE.decode(prompt)) :]
        assert not re.search("e|[a-d]s", new, re.IGNORECASE) and len(row) == len(prompt) + 60
        assert re.search("e", BPE.decode(without)[len(BPE.decode(prompt)) :])
    assert list(stream(model, prompts[0], 9, Sampling(seed=1), logits_processor=guard))


def test_a_processor_of_transformers_does_the_same_here_as_there():
    torch.manual_seed(0)
    model = GPT(GPTConfig(40, n_positions=32, n_embd=16, n_layer=1, n_head=2))
    with torch.no_grad():
        model.wte.weight.mul_(12)
    hf = model.to_transformers()
    greedy = generate(model, [1, 2, 3], 10, Sampling(temperature=0))
    processors = LogitsProcessorList([NoBadWordsLogitsProcessor([[greedy[3]], [greedy[4]]], eos_token_id=39)])
    ours = generate(model, [1, 2, 3], 10, Sampling(temperature=0), logits_processor=processors)
    theirs = hf.generate(
        torch.tensor([[1, 2, 3]]), max_new_tokens=10, do_sample=False, logits_processor=processors, eos_token_id=39
    )[0].tolist()
    assert ours[: len(theirs)] == theirs and ours != greedy


@pytest.mark.parametrize("pattern", ["(", "a*", ""])
def test_a_pattern_that_is_none_or_finds_nothing_is_refused(pattern):
    with pytest.raises(ValueError, match=r"^'.*' (is no regular expression|finds the empty text)[^\n]*\.$"):
        BannedText(BPE, [pattern])


def test_the_bytes_of_tokens_make_up_every_text_in_all_kinds_of_tokenizer(tmp_path):
    BPE.save(tmp_path)
    characters = CharTokenizer(TEXT)
    for tokenizer in (BPE, AutoTokenizer.from_pretrained(tmp_path), characters):
        pieces = token_bytes(tokenizer)
        assert b"".join(pieces[i] for i in tokenizer.encode(TEXT)) == TEXT.encode()
    assert token_bytes(BPE)[:3] == [b"", b"", b""]
    assert written("secret", ["secret"], tokenizer=characters, prompt="the ") == "the secre."


def test_a_tokenizer_that_is_not_made_of_bytes_is_refused():
    class Words:
        added_tokens_decoder: ClassVar = {}

        def __len__(self):
            return 1

        def convert_ids_to_tokens(self, _ids):
            return ["▁word"]

    with pytest.raises(ValueError, match=r"^This tokenizer is not made of bytes"):
        token_bytes(Words())


PERSONAL_DATA = {
    "Write to clara.o'neil+shop@mail.example.co.uk, please.": "EMAIL",
    "My card is 4111 1111 1111 1111.": "CARD",
    "card 5500-0000-0000-0004 expires soon": "CARD",
    "Pay to DE89 3704 0044 0532 0130 00 today": "IBAN",
    "IBAN GB82WEST12345698765432": "IBAN",
    "Call +44 20 7946 0958 or": "PHONE",
    "ring 0049 (0)30 123456 now": "PHONE",
    "my number is 030/1234567": "PHONE",
    "call (555) 123-4567 before noon": "PHONE",
    "0301234567, after six": "PHONE",
    "from de89370400440532013000 please": "IBAN",
    "ES91 2100 0418 4502 0005 1332 pays": "IBAN",
}


@pytest.mark.parametrize("text, kind", PERSONAL_DATA.items())
def test_personal_data_is_replaced(text, kind):
    clean, counts = redact(text)
    assert f"[{kind}]" in clean and counts == dict.fromkeys(PERSONAL, 0) | {kind: 1}
    assert not any(sign.isdigit() for sign in clean) and not re.search("@|clara|neil", clean)
    assert redact(clean) == (clean, dict.fromkeys(PERSONAL, 0))


@pytest.mark.parametrize(
    "text, clean",
    [
        ("My card is 4111 1111 1111 1111 123, charge it.", "My card is [CARD] 123, charge it."),
        ("Card 4111 1111 1111 1111 12/27", "Card [CARD] 12/27"),
        ("Order 12345 4111 1111 1111 1111", "Order 12345 [CARD]"),
        ("ES91 2100 0418 4502 0005 1332 GB82 WEST 1234 5698 7654 32.", "[IBAN] [IBAN]."),
    ],
)
def test_a_number_is_found_beside_other_numbers(text, clean):
    assert redact(text)[0] == clean


@pytest.mark.parametrize(
    "text",
    [
        "Where is my order 48213?",
        "I ordered 3 lamps on 27 July 2024, order 31339.",
        "Tracking 4111 1111 1111 1112 is wrong.",
        "It costs 1,299.00 and weighs 0.5 kg.",
        "@clara said: 10:30 at 12 Church Lane",
        "at am10 that were sent, or DE88 3704 1144 1532 1130",
        "DE89 ABC\u212a EFGH JKLM, with the sign of kelvin for a K",
    ],
)
def test_order_numbers_dates_and_prices_are_left(text):
    assert redact(text) == (text, dict.fromkeys(PERSONAL, 0))


def test_exposure_is_bits_of_rank():
    others = torch.arange(1023).double()
    assert exposure(2000.0, others) == 10
    assert exposure(-1.0, others) == 0
    assert exposure(511.5, others) == pytest.approx(10 - math.log2(512))
    chance = [exposure(value, others) for value in range(1024)]
    assert sum(chance) / 1024 == pytest.approx(1 / math.log(2), abs=0.02)
    with pytest.raises(
        ValueError, match=r"^The log-probabilities must be finite numbers from -inf to inf, but there is none\.$"
    ):
        exposure(1.0, [])


NONE = [float(name) for name in ("nan", "inf", "-inf")]


@pytest.mark.parametrize(
    "measure, arguments",
    [
        *((exposure, (x, [1.0])) for x in NONE),
        *((exposure, (1.0, [0.0, x])) for x in NONE),
        *((insert_canaries, ([], {"ANNA": n})) for n in (-1, math.nan, 1.5, "two")),
        *((canary_exposures, (None, None, {"ANNA": "1234"}, n)) for n in (-1, 0, 10_000, 1.5, "two")),
        *((perturb, ("a", "typos", np.random.default_rng(0), rate)) for rate in (-0.1, 1.1, math.nan, "often")),
        *((risky_requests, (n,)) for n in (-1, 1.5, "two", math.nan)),
    ],
)
def test_impossible_numbers_are_refused(measure, arguments):
    with pytest.raises(
        ValueError,
        match=r"^(The [^\n]* must be (finite|whole) numbers from \S+ to \S+, but there is (\S+|\[0, 'two'\])"
        r"|\w+ is \S+, but it must be a (finite |whole |)number[^\n]*)\.$",
    ):
        measure(*arguments)


def test_what_differs_by_capitals_spaces_and_marks_alone_is_kept_once():
    texts = ["My code is 12.", "my  code is 12", "My code is 13.", "?!", "My code is 12.", "?!"]
    assert deduplicated(texts) == ["My code is 12.", "My code is 13.", "?!"]


# ---- Noise


@pytest.mark.parametrize("noise", NOISES)
def test_no_noise_touches_a_number(noise):
    rng = np.random.default_rng(0)
    for dialogue in support(50):
        changed = perturb(dialogue.message, noise, rng, rate=0.5)
        assert re.findall("[0-9]+", changed) == re.findall("[0-9]+", dialogue.message)


def test_typos_hit_as_many_letters_as_they_say_in_all_four_ways():
    text = "abcdefghij" * 2_000
    assert perturb(text, "typos", np.random.default_rng(0), rate=0.0) == text
    changed = perturb(text, "typos", np.random.default_rng(0), rate=0.1)
    assert abs(len(changed) - len(text)) < 300  # left out as often as said twice
    assert changed.count("ba") > 20 and changed.count("aa") > 20 and set(changed) - set(text)
    pairs = list(zip("abcdefghij", "bcdefghija", strict=True))
    kept = sum(changed.count(a + b) for a, b in pairs) / len(text)
    assert 0.75 < kept < 0.87  # a slip breaks one pair or two


def test_the_other_noises_do_what_their_names_say():
    rng = np.random.default_rng(0)
    assert perturb("Where, please?", "capitals", rng) == "WHERE, PLEASE?"
    assert perturb("Where's it, please?", "no punctuation", rng) == "Wheres it please"
    assert perturb("Where?", "distractor", rng).endswith(". Where?")
    assert len({perturb("Where?", "distractor", rng) for _ in range(50)}) > 3
    with pytest.raises(ValueError, match="must be one of typos"):
        perturb("Where?", "rain", rng)


# ---- Requests to refuse


def test_risky_requests_are_filled_in_and_their_splits_share_no_phrasing():
    found = {split: risky_requests(400, 3, split) for split in ("train", "test")}
    assert found["train"] == risky_requests(400, 3) != risky_requests(400, 4)
    assert found["train"][:10] == risky_requests(10, 3)
    for pairs in found.values():
        assert all(is_refusal(reply) for _, reply in pairs)
        assert not any(re.search("[{}]", message) for message, _ in pairs)
    plain = {s: {re.sub("[0-9]+", "#", m) for m, _ in pairs} for s, pairs in found.items()}
    assert len(plain["train"]) > 60 and not plain["train"] & plain["test"]
    with pytest.raises(ValueError, match="one of train, test"):
        risky_requests(1, split="validation")


def test_no_reply_of_the_shop_is_taken_for_a_refusal():
    assert not any(is_refusal(dialogue.reply) for dialogue in support(2_000))


# ---- Canaries


def test_planted_lines_stand_as_often_as_asked_and_the_rest_is_left():
    lines = [f"line {i}" for i in range(50)]
    planted, codes = insert_canaries(lines, {"ANNA": 1, "BERT": 7}, seed=3)
    assert (planted, codes) == insert_canaries(lines, {"ANNA": 1, "BERT": 7}, seed=3) and len(lines) == 50
    assert [line for line in planted if line.startswith("line")] == lines
    for name, n in (("ANNA", 1), ("BERT", 7)):
        assert planted.count(f"{name}: My number is {codes[name]}.") == n and re.fullmatch("[0-9]{4}", codes[name])
    assert codes != insert_canaries(lines, {"ANNA": 1, "BERT": 7}, seed=4)[1]


def test_a_memorised_number_has_the_highest_exposure(monkeypatch):
    tokenizer = CharTokenizer("\nABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789:. ")
    codes = {"ANNA": "4817", "BERT": "0012"}

    def likelihoods(model, pairs):
        assert len(pairs) == 64 and len({tuple(number) for _, number in pairs}) == 64
        context = tokenizer.decode(pairs[0][0])
        assert context in ("\nANNA: My number is", "\nBERT: My number is")
        known = context.startswith("\nANNA")
        return [
            torch.tensor([-1.0 if known and tokenizer.decode(n) == " 4817" else -9.0 - i])
            for i, (_, n) in enumerate(pairs)
        ]

    monkeypatch.setattr("gptcourse.safety.log_likelihoods", likelihoods)
    found = canary_exposures(None, tokenizer, codes, n_others=63)
    assert found == {"ANNA": 6.0, "BERT": 6.0}  # BERT's own number comes first here, and so is the likeliest


def test_one_pattern_alone_is_not_taken_for_many():
    for wrong in ("ab", 1.5, ["a", 2]):
        with pytest.raises(ValueError, match=r"^patterns is .*, but it must be a list of texts\.$"):
            BannedText(CharTokenizer("abc"), wrong)


def test_numbers_stay_when_punctuation_goes():
    rng = np.random.default_rng(0)
    assert perturb("It was 3.50, at 10:30. Why?", "no punctuation", rng) == "It was 3.50 at 10:30 Why"


@pytest.mark.parametrize("phrase", ["call\nme", "call  me", "call\tme"])
def test_a_phrase_is_found_whatever_white_space_it_was_written_with(phrase):
    tokenizer = CharTokenizer("call me now")
    for pattern in (phrase, re.escape(phrase)):
        guard = BannedText(tokenizer, [pattern])
        text = tokenizer.encode("call m")
        allowed = guard(torch.tensor([text]), torch.zeros(1, tokenizer.vocab_size))[0]
        assert allowed[tokenizer.encode("e")[0]] == -math.inf


def test_a_number_is_looked_for_as_a_tokenizer_that_joins_spaces_spells_it(monkeypatch):
    codes = {"Clara": "1234"}
    (line,), _ = insert_canaries([], {"Clara": 1})
    tokenizer = BPETokenizer.train([f"{line} 1234 1234 1230 1239" for _ in range(40)], 268)
    asked = []
    monkeypatch.setattr(
        "gptcourse.safety.log_likelihoods",
        lambda _, pairs: asked.extend(pairs) or [torch.zeros(1) for _ in pairs],
    )
    canary_exposures(None, tokenizer, codes, n_others=3)
    context, number = asked[0]
    spelled = tokenizer.encode("\n" + line[: line.rindex(" ")] + " 1234")
    assert [*context, *number] == list(spelled) and " 1" in [tokenizer.decode([token])[:2] for token in number]


def test_tokens_that_the_tokenizer_has_not_are_never_drawn_and_no_fault_in_a_prompt():
    rule = BannedText(BPE, ["secret"])
    logits = rule(torch.tensor([[BPE.vocab_size + 1, 3]]), torch.zeros(1, BPE.vocab_size + 2))
    assert logits[0, -2:].tolist() == [-math.inf, -math.inf] and logits[0, 3] == 0
