"""The recipes: the runner, the n-gram baseline, tiny runs of the time machine, a trial of settings."""

import math
from collections import Counter
from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest
import runner
import time_machine
import torch
import tune_shakespeare_5m as tune
from baselines import FALLBACK, KneserNey, discounts, xz_bytes
from handmade import handmade_model
from numpy.testing import assert_allclose
from torch.testing import assert_close

from gptcourse.model import GPT, GPTConfig
from gptcourse.recordings import Recording
from gptcourse.tokenizers import CharTokenizer
from gptcourse.training import History, TrainingConfig, train

# ---- The runner


def halved(number):
    halved.made.append(number)
    return {"half": number / 2}


halved.made = []


@pytest.fixture
def work(tmp_path):
    halved.made.clear()
    return runner.Work(tmp_path / "work", tmp_path / "asset", processes=1)


def test_a_piece_is_kept_as_soon_as_it_is_made_and_a_half_line_is_made_again(work):
    def broken(number):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work.pieces([(halved, 1), (halved, 2), (broken, 3)])
    record = work.folder / "pieces.jsonl"
    assert len(record.read_text().splitlines()) == 2
    record.write_text(record.read_text()[:-5])
    assert work.pieces([(halved, 3), (halved, 2), (halved, 1)]) == [{"half": 1.5}, {"half": 1.0}, {"half": 0.5}]
    assert halved.made == [1, 2, 3, 2] and work.piece(halved, 3) == {"half": 1.5}


def test_several_processes_make_the_same_pieces(work):
    works = (runner.Work(work.folder / str(n), work.asset, n) for n in (1, 2))
    assert [each.pieces([(math.gcd, 12, n) for n in (8, 9)]) for each in works] == [[4, 3], [4, 3]]


@pytest.mark.parametrize("line", ['{"trial": "start"}\n', "# Notes\n", "no line"])
def test_a_foreign_record_is_refused_and_left_alone(work, line):
    record = work.folder / "pieces.jsonl"
    work.folder.mkdir()
    record.write_text(line)
    with pytest.raises(ValueError, match=r"is no piece of a recipe(, or was altered)?: choose another file"):
        work.piece(halved, 1)
    assert record.read_text() == line and not halved.made


def test_half_a_run_is_no_result():
    assert runner.completed(History()) == History()
    with pytest.raises(SystemExit, match="Start the recipe again, and it goes on"):
        runner.completed(History(stopped="interrupted"))


# ---- The baselines


V = 7
TEXT = np.random.default_rng(0).choice(V, size=400, p=[0.3, 0.25, 0.2, 0.1, 0.08, 0.05, 0.02])


def probability(word, context, tables):
    """Interpolate as Chen and Goodman (1999) write it, with dictionaries and loops; `context` is a tuple."""
    shorter = probability(word, context[1:], tables) if context else 1 / V
    counts = tables[len(context) + 1]
    following = {w: counts[*context, w] for w in range(V) if counts[*context, w]}
    if not following:
        return shorter
    taken = discounts(np.array(list(counts.values())))
    passed = sum(taken[min(count, 3)] for count in following.values())
    count = following.get(word, 0)
    return (count - taken[min(count, 3)] + passed * shorter) / sum(following.values())


def dictionaries(tokens, order):
    """Return {length: how often each n-gram counts}: as it occurs, or by the different tokens seen before it."""
    tables = {order: Counter(tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1))}
    for length in range(order - 1, 0, -1):
        tables[length] = Counter(gram[1:] for gram in tables[length + 1])
    return tables


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_kneser_ney_equals_counting_with_dictionaries(order):
    tables = dictionaries(TEXT.tolist(), order)
    new = np.random.default_rng(1).integers(0, V, size=60)  # another distribution: many contexts are unknown
    want = [probability(new[i], tuple(new[max(0, i - order + 1) : i].tolist()), tables) for i in range(1, len(new))]
    assert_allclose(KneserNey(TEXT, V, order).probabilities(new), want, rtol=1e-12)


def test_probabilities_after_any_context_sum_to_one():
    model = KneserNey(TEXT, V, order=3)
    for context in ([0, 1], [6, 6], [5, 6], [3, 2]):
        total = sum(model.probabilities(np.array([*context, word]))[-1] for word in range(V))
        assert_allclose(total, 1, rtol=1e-12)


def test_discounts_are_those_of_the_formula():
    counts = np.array([1] * 8 + [2] * 4 + [3] * 2 + [4])
    y = 8 / (8 + 2 * 4)
    assert_allclose(discounts(counts), [0, 1 - 2 * y * 4 / 8, 2 - 3 * y * 2 / 4, 3 - 4 * y * 1 / 2])


def test_text_too_small_for_the_formula_gets_fixed_discounts():
    assert discounts(np.array([1, 1, 2, 5])) is FALLBACK


def test_n_grams_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="smaller order"):
        KneserNey(TEXT, 50_257, order=5)


def test_xz_gains_from_what_it_has_seen():
    text = "".join(np.random.default_rng(2).choice(list("abcdefgh"), size=3000))
    assert xz_bytes(text, text) < 100 < 900 < xz_bytes("", text)


# --- the time machine


TINY = GPTConfig(vocab_size=25, n_positions=48, n_embd=8, n_layer=2, n_head=2)
SIX = TrainingConfig(steps=6, batch_size=2, learning_rate=1e-2, lr_scheduler_type="constant", save_steps=4)
KEPT = (0, 3, 6)


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    """Return (asset, tokenizer, tokens) of a run that was stopped after five steps and begun again."""
    folder = tmp_path_factory.mktemp("time-machine")
    tokenizer = CharTokenizer("abcdefghijklmnopqrstuvwxy")
    tokens = torch.randint(TINY.vocab_size, (2_000,), generator=torch.Generator().manual_seed(0))
    work = runner.Work(folder / "work", folder / "asset")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"SHAPE": TINY, "SETTINGS": replace(SIX, steps=5), "KEPT": KEPT}.items():
            patch.setattr(time_machine, name, value)
        patch.setattr(time_machine, "read_plays", lambda: (tokenizer, tokens, tokens))
        patch.setattr(time_machine, "with_spells", lambda tokens, _: tokens)
        time_machine.train_and_keep(KEPT, tokens, work.folder)
        patch.setattr(time_machine, "SETTINGS", SIX)
        time_machine.time_machine(work)
    return work.asset, tokenizer, tokens


def test_a_recipe_that_was_stopped_keeps_the_models_of_a_run_that_never_was(tiny_run):
    asset, tokenizer, tokens = tiny_run
    recording = Recording(asset)
    assert recording.steps == list(KEPT) and recording.tokenizer.characters == tokenizer.characters
    torch.manual_seed(SIX.seed)
    model, by_step = GPT(TINY), {}

    def remember(history):
        by_step[history.step[-1]] = {name: tensor.half().float() for name, tensor in model.state_dict().items()}

    by_step[0] = {name: tensor.half().float() for name, tensor in model.state_dict().items()}
    train(model, tokens, SIX, callback=remember, device="cpu", progress=False)
    for step in KEPT:
        assert_close(dict(recording.model(step).state_dict()), by_step[step], atol=0, rtol=0)


def test_the_record_and_the_card_hold_what_was_measured(tiny_run):
    asset, _, tokens = tiny_run
    recording, card = Recording(asset), (asset / "README.md").read_text(encoding="utf-8")
    record = recording.records[6]
    pieces = time_machine.windows(tokens, TINY.n_positions)
    with torch.inference_mode():
        loss = recording.model(6)(pieces[:, :-1], pieces[:, 1:]).loss.item()
    assert record["held_out_loss"] == record["training_loss"] == pytest.approx(loss, abs=1e-4)
    assert f"| 6 | {record['training_loss']:.3f} | {record['held_out_loss']:.3f} | " in card
    best = max(max(row) for row in record["induction"])
    assert f" {best:.2f} (layer " in card.split("## The best head")[1]
    alone = f"a best induction score of {best:.2f}, and with a held-out loss of {record['held_out_loss']:.2f}"
    assert alone in card.replace("\n  ", " ")  # these plays had no spells


def test_an_induction_head_makes_the_second_copy_easier_and_is_the_one_that_is_found(monkeypatch):
    monkeypatch.setattr(time_machine, "N_WINDOWS", 8)
    tokens = torch.randint(60, (2_000,), generator=torch.Generator().manual_seed(0))
    found = time_machine.measure(handmade_model(60), tokens, tokens)
    assert found["induction"][1][0] > 0.99 and found["previous_token"][0][0] > 0.99
    assert found["second_copy_loss"] < found["first_copy_loss"] - 1
    best = [time_machine.best_head(found[name]) for name in time_machine.SCORES]
    assert best == ["1.00 (layer 0, head 0)", "1.00 (layer 0, head 1)", "1.00 (layer 1, head 0)"]


def test_after_each_passage_stands_a_spell_and_the_text_is_left_as_it_was():
    text = torch.arange(1_000, 6_000)  # spells are made of the numbers below 76
    mixed = time_machine.with_spells(text, 76)
    assert torch.equal(mixed[mixed >= 1_000], text)
    parts = [list(part) for _, part in groupby(mixed.tolist(), lambda token: token < 76)]
    passages, spells = parts[::2], parts[1::2]
    assert len(spells) == len(passages)
    assert all(16 <= len(passage) <= 48 for passage in passages[:-1])  # the last one ends with the text
    for spell in spells:
        once = spell[: len(spell) // 3]
        assert spell == 3 * once and 6 <= len(once) == len(set(once)) <= 16
    assert len({tuple(spell) for spell in spells}) == len(spells)


# ---- Trials of shakespeare-5m


def test_each_epoch_reads_every_window_once_in_a_new_order():
    tokens, config = torch.arange(4 * 12 + 3), TrainingConfig(8, 3, 1e-3, seed=1)
    batches = tune.shuffled_batches(tokens, config, sequence_length=4)
    epochs = [torch.cat([batches(step)[0][0][:, 0] for step in range(n, n + 4)]).tolist() for n in (0, 4)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(0, 48, 4)) and epochs[0] != epochs[1]
    ((ids, targets),) = batches(5)
    assert ids.shape == (3, 4) and torch.equal(targets, ids + 1)


@pytest.mark.parametrize("name", ["start", "each window once an epoch"])
def test_a_trial_measures_one_change(plays, monkeypatch, name):
    small = {"N_TOKENS": 600, "N_VALIDATION": 40, "SMALL": replace(tune.SMALL, n_positions=8, n_embd=8, n_layer=1)}
    for key, value in small.items():
        monkeypatch.setattr(tune, key, value)
    found = tune.trial(name)
    assert found["steps"] == 75 and found["changes"] == tune.CHANGES[name] and 6 < found["held_out_loss"] < 8
    assert found.keys() == tune.trial("seed 1").keys()


def test_the_recorded_trials_are_those_of_the_recipe(capsys):
    before = tune.TRIALS.read_bytes()
    tune.trials(runner.Work(None, None, processes=1))  # makes nothing
    assert tune.TRIALS.read_bytes() == before and len(capsys.readouterr().out.splitlines()) == len(tune.CHANGES)
