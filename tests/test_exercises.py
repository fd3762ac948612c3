"""The exercises accept what is right, and meet everything else with one kind line."""

import ast
import contextlib
import copy
import functools
import inspect
import io
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import types
from collections import Counter, defaultdict
from datetime import date
from html import escape, unescape
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from wrong_answers import (
    WRONG_ANSWERS,
    attention,
    decoding,
    evaluation,
    fine_tuning,
    first_model,
    gpt_block,
    modern,
    own_data,
    preferences,
    scaling,
    start,
    training,
    tune_own,
    tuning,
)  # the imports fill the list
from wrong_answers.mutants import EQUIVALENT, mutants

import gptcourse.exercises
from gptcourse import preferences as package
from gptcourse.attention import rotary
from gptcourse.evaluation import bits_per_byte
from gptcourse.exercises import check, exercises, forget_progress, progress
from gptcourse.exercises.cards import card
from gptcourse.exercises.first_model import pair_counts
from gptcourse.exercises.records import FORMAT, Progress, Record, progress_file, read_records, remember
from gptcourse.exercises.time_limit import within
from gptcourse.exercises.tuning import looking_back
from gptcourse.finetuning import LoRALinear, add_lora, chat_prompt, encode_dialogue
from gptcourse.generation import apply_repetition_penalty, keep_top_p
from gptcourse.model import GPT, GPTConfig, GPTOutput
from gptcourse.modern import MixtureOfExperts, ModernConfig, num_parameters
from gptcourse.optimizers import learning_rate_at
from gptcourse.reasoning import pass_at_k
from gptcourse.tokenizers import BPETokenizer
from gptcourse.training import TrainingConfig, stops_early
from gptcourse.tuning import RangeTest, noise_scale_estimates, t_interval

NOTEBOOKS = {
    "start": "00_start_here.ipynb",
    "first_model": "01_first_language_model.ipynb",
    "attention": "02_attention.ipynb",
    "gpt_block": "03_gpt_block.ipynb",
    "training": "04_training_a_gpt.ipynb",
    "tuning": "05_learning_rate_and_batch_size.ipynb",
    "own_data": "06_tune_your_own_model.ipynb",
    "tune_own": "06_tune_your_own_model.ipynb",
    "decoding": "07_decoding_and_generation.ipynb",
    "fine_tuning": "08_fine_tuning.ipynb",
    "preferences": "09_preferences_and_reasoning.ipynb",
    "scaling": "10_scaling_up.ipynb",
    "evaluation": "11_evaluation_and_safety.ipynb",
    "modern": "12_from_gpt3_to_today.ipynb",
}
ALL_MISTAKES = [(name, m) for name, exercise in exercises().items() for m in exercise.mistakes]


@pytest.fixture(autouse=True)
def own_progress(tmp_path, monkeypatch):
    """Keep the tests away from anybody's own progress, and from each other's."""
    monkeypatch.setenv("GPTCOURSE_PROGRESS", str(tmp_path / "progress"))


@pytest.fixture
def verdict(capsys):
    """Check an answer; return whether it is right and the one line that was printed."""

    def give(name, answer):
        right = check(name, answer)
        printed = capsys.readouterr()
        assert printed.err == "" and printed.out.endswith("\n") and printed.out.count("\n") == 1
        assert right is printed.out.startswith("Right: ")
        return right, printed.out.strip()

    return give


@pytest.fixture
def verdict_on_results(verdict, monkeypatch):
    """Check an answer whose results are those of a function of the inputs, where a class is asked for, too."""

    def give(name, function):
        exercise = exercises()[name]
        if exercise.through is None:
            return verdict(name, function)
        own, calling = exercise.reference, exercise.calling
        answer = type("Answer", (own,), {}) if inspect.isclass(own) else functools.wraps(own)(lambda *_: None)
        with monkeypatch.context() as patch:
            patch.setattr(exercise, "calling", lambda other: function if other is answer else calling(other))
            return verdict(name, answer)

    return give


def reference(name):
    return exercises()[name].reference


# ---- each exercise: its reference, its mistakes, two further wrong answers, its mutants


@pytest.mark.parametrize("name", exercises())
def test_reference_is_accepted_and_each_mistake_gets_its_own_hint(name, verdict):
    assert verdict(name, reference(name)) == (True, f"Right: {name}.")
    for mistake in exercises()[name].mistakes:
        assert verdict(name, mistake.function) == (False, f"Not yet: {name}. {mistake.hint}"), mistake.function


@pytest.mark.parametrize("name", exercises())
def test_the_same_mistakes_written_otherwise_get_the_hint_too(name, verdict):
    further = [(answer, hint) for exercise, answer, hint in WRONG_ANSWERS if exercise == name]
    assert len({hint for _, hint in further}) >= 2
    for answer, hint in further:
        right, line = verdict(name, answer)
        assert not right and hint in line, answer


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("name", exercises())
def test_every_mutant_of_the_reference_is_refused(name, verdict_on_results):
    for mutation, mutant in mutants(exercises()[name]):
        right, line = verdict_on_results(name, mutant)
        assert right is ((name, mutation) in EQUIVALENT), f"{mutation}: {line}"
        assert right or line.startswith("Not yet: "), f"{mutation}: {line}"
        if mutation.endswith("of another type"):
            assert "The numbers are right, the type is not: " in line, line
        if " left " in mutation:
            assert f"Your function changes its input {mutation.split()[0]} in place." in line, line


def test_no_equivalent_mutant_is_listed_in_vain():
    made = {(name, mutation) for name in exercises() for mutation, _ in mutants(exercises()[name])}
    assert EQUIVALENT.keys() <= made


def test_enough_exercises_each_with_mistakes_of_its_own():
    hints = defaultdict(set)
    for name, mistake in ALL_MISTAKES:
        hints[name].add(mistake.hint)
    assert {name for name in exercises() if len(hints[name]) < 3} == set()
    tasks = Counter((name.split(".")[0], ".mend_" in name) for name in exercises())
    assert tasks["attention", False] >= 9 and tasks["attention", True] >= 3
    assert tasks["first_model", False] >= 12 and tasks["first_model", True] >= 2
    assert tasks["gpt_block", False] >= 8 and tasks["gpt_block", True] >= 2
    assert tasks["training", False] >= 5 and tasks["training", True] >= 3
    assert tasks["tuning", False] >= 6 and tasks["tuning", True] >= 4
    assert tasks["decoding", False] >= 9 and tasks["decoding", True] >= 2
    assert tasks["fine_tuning", False] >= 8 and tasks["fine_tuning", True] >= 5
    assert tasks["preferences", False] >= 9 and tasks["preferences", True] >= 6
    assert tasks["scaling", False] >= 11 and tasks["scaling", True] >= 2
    assert tasks["evaluation", False] >= 12 and tasks["evaluation", True] >= 2
    assert tasks["modern", False] >= 6 and tasks["modern", True] >= 2
    assert tasks["own_data", False] >= 3 and tasks["own_data", True] >= 1
    assert tasks["tune_own", False] >= 4 and tasks["tune_own", True] >= 1
    learning = start, first_model, attention, gpt_block, training, tuning, own_data, tune_own
    modules = *learning, decoding, fine_tuning, preferences, scaling, evaluation, modern
    assert {answer.__module__ for _, answer, _ in WRONG_ANSWERS} == {m.__name__ for m in modules}


def test_hints_hold_no_code():
    hints = [m.hint for _, m in ALL_MISTAKES] + [e.hint for e in exercises().values()]
    call_or_assignment = re.compile(r"\w\(|=|[a-z]\.\w|`|\[|←")
    assert [hint for hint in hints if call_or_assignment.search(hint)] == []
    names = [word for hint in hints for word in re.findall(r"\w+_\w+", hint) if word not in ("n_head", "no_grad")]
    assert names == []
    gives_away = {"transpose", "permute", "contiguous", "triu", "tril", "keepdim", "gather", "unsqueeze", "softmaxes"}
    assert [hint for hint in hints if gives_away & set(hint.lower().split())] == []


# ---- references against the package, transformers and published numbers


def test_references_agree_with_published_and_measured_numbers():
    assert reference("gpt_block.parameters")(50257, 1024, 768, 12) == 124_439_808
    assert reference("first_model.first_loss")(50257) == pytest.approx(10.8249, abs=1e-4)
    initialise, leave = exercises()["gpt_block.initialise"], lambda model, n_layer: None
    torch.manual_seed(0)
    with patch("torch.nn.Linear.reset_parameters"), patch("torch.nn.Embedding.reset_parameters"):
        as_the_package_does = initialise.through(leave, 6)
    assert torch.equal(as_the_package_does, initialise.through(initialise.reference, 6))
    inputs, targets = reference("first_model.shift")(torch.tensor([[3, 1, 4, 1, 5]]))
    assert (inputs.tolist(), targets.tolist()) == ([[3, 1, 4, 1]], [[1, 4, 1, 5]])
    split = reference("attention.heads")(torch.arange(8.0).view(1, 2, 4), 2)
    assert split.tolist() == [[[[0, 1], [4, 5]], [[2, 3], [6, 7]]]]
    assert reference("evaluation.bits_per_byte")(torch.tensor([1.0, 3.0]), 5) == pytest.approx(bits_per_byte(2.0, 2, 5))


def test_what_is_learned_by_pairs_has_no_ties():
    for words, n_merges in exercises()["first_model.train_bpe"].inputs():
        known = Counter(words)
        parts = [list(word) for word in known]
        for token in reference("first_model.train_bpe")(words, n_merges):
            (pair, most), (_, next_most) = pair_counts(parts, list(known.values())).most_common(2)
            assert "".join(pair) == token and most > next_most
            parts = [list(reference("first_model.merge")(symbols, pair)) for symbols in parts]
    for case in exercises()["first_model.most_frequent_pair"].inputs():
        counts = [times for _, times in pair_counts(*case).most_common(2)]
        assert counts[0] > counts[1]


def test_one_pass_over_the_merges_and_a_search_for_the_first_learned_are_both_right(verdict):
    def searching(word, merges):
        symbols = list(word)
        while known := set(itertools.pairwise(symbols)) & set(merges):
            symbols = list(reference("first_model.merge")(symbols, min(known, key=merges.index)))
        return symbols

    assert verdict("first_model.encode", searching)[0]
    for _, merges in exercises()["first_model.encode"].inputs():
        assert len({"".join(pair) for pair in merges}) == len(merges)  # with a token made twice the two may differ


def test_the_reference_of_a_block_is_the_block_of_transformers():
    from transformers import GPT2Config
    from transformers.models.gpt2.modeling_gpt2 import GPT2Block

    config = GPT2Config(n_embd=8, n_head=2, attn_pdrop=0.0, resid_pdrop=0.0, attn_implementation="sdpa")
    theirs = GPT2Block(config, layer_idx=0).eval()
    for weight in theirs.parameters():
        nn.init.normal_(weight, std=0.5)
    ours = reference("gpt_block.block")(8, 2).eval()
    ours.load_state_dict(reference("gpt_block.from_gpt2")(theirs.state_dict()))
    x = torch.randn(1, 3, 8)
    output = theirs(x)
    torch.testing.assert_close(ours(x), output if isinstance(output, torch.Tensor) else output[0])


def test_references_of_tuning_agree_with_the_package_and_closed_forms():
    config = TrainingConfig(100, 1, 2.0, warmup_steps=10)
    for step in (0, 9, 10, 55, 99, 130):
        assert reference("tuning.schedule")(step, 2.0, 10, 100) == pytest.approx(learning_rate_at(step, config))
    for rates, losses, window in exercises()["tuning.range_test"].inputs():
        of_the_package = RangeTest(rates, losses, looking_back(losses, window), broke=True)
        assert reference("tuning.range_test")(rates, losses, window) == of_the_package.suggestion
    small, big = (torch.tensor([length], dtype=torch.float64) for length in (3 + 50 / 4, 3 + 50 / 64))
    norm_squared, trace = noise_scale_estimates(small.item(), big.item(), 4, 64)
    assert reference("tuning.noise_scale")(small, big, 4, 64) == pytest.approx(trace / norm_squared)
    assert trace / norm_squared == pytest.approx(50 / 3)
    assert reference("tuning.rate_at_width")(0.02, 64, 128) == pytest.approx((0.01, 0.02, 0.02, 0.5))
    broken = torch.tensor([[3.0, 3.1, 3.2], [2.9, 2.8, 9.0], [1.0, math.inf, math.inf]])
    assert reference("tuning.mend_seeds")(torch.tensor([1.0, 2.0, 4.0]), broken) == pytest.approx((2.0, 2.9))


def test_the_decision_on_a_candidate_agrees_with_the_interval_of_the_package():
    for baseline, candidate, t in exercises()["tune_own.adopt"].inputs():
        gains = [old - new for old, new in zip(baseline, candidate, strict=True)]
        low, high = t_interval(gains)
        assert exercises()["tune_own.adopt"].paired(baseline, candidate, t) == pytest.approx((high - low) / 2, rel=1e-3)
        decision = "adopt" if low > 0 else "keep" if high < 0 else "more seeds"
        assert reference("tune_own.adopt")(baseline, candidate, t) == decision
        assert min(abs(low), abs(high)) > 1e-3  # no rounding of t decides


def test_references_of_own_data_agree_with_the_package():
    from gptcourse.duplicates import near_duplicates

    for messages, every in exercises()["own_data.mend_leak"].inputs():
        held_out = reference("own_data.mend_leak")(messages, every).tolist()
        groups = near_duplicates(messages)
        trained = {groups[i] for i in range(len(groups)) if i not in held_out}
        assert not trained & {groups[i] for i in held_out}
    epochs, worth = reference("own_data.epochs")(8, 100, 200, 15.4)
    assert epochs == 4 and 0.9 < worth / 800 < 1  # four readings are nearly as good as new text


def test_rates_asked_for_are_those_of_the_package(verdict):
    def written_by_hand(model, batches, epochs, peak):
        config = TrainingConfig(epochs * len(batches), 1, peak)
        return torch.tensor([learning_rate_at(step, config) for step in range(config.steps)])

    assert verdict("tuning.mend_schedule", written_by_hand)[0]


def test_no_tie_decides_a_range_test():
    for rates, losses, window in exercises()["tuning.range_test"].inputs():
        smoothed = looking_back(losses, window)
        assert min(abs(loss - 1.03 * min(smoothed)) for loss in smoothed) > 1e-3 and len(rates) == len(losses)


def test_references_of_fine_tuning_agree_with_the_package():
    seven = [torch.full((n,), 1 / 7).log() for n in (1, 20, 3)]
    assert reference("decoding.perplexity")(seven) == pytest.approx(7)
    tokenizer = BPETokenizer.train(["Where is it?"], 265)
    _, targets = encode_dialogue(tokenizer, "Where?", "Here.")
    prompt, reply = chat_prompt(tokenizer, "Where?"), [t for t in targets if t != -100]
    assert reference("fine_tuning.mend_prompt_loss")(torch.tensor(prompt), torch.tensor(reply)).tolist() == targets
    for logits, p in exercises()["decoding.top_p"].inputs():
        torch.testing.assert_close(reference("decoding.top_p")(logits, p), keep_top_p(logits, p).softmax(-1))
    for logits, ids, penalty in exercises()["decoding.repetition_penalty"].inputs():
        ours = reference("decoding.repetition_penalty")(logits, ids, penalty)
        torch.testing.assert_close(ours, apply_repetition_penalty(logits, ids, penalty))
    for losses, patience in exercises()["fine_tuning.stop_rule"].inputs():
        for n in range(1, len(losses) + 1):
            if stops_early(losses[:n], patience):
                break
        assert reference("fine_tuning.stop_rule")(losses, patience) == (n - 1, losses.index(min(losses[:n])))


def test_references_of_modern_agree_with_the_package():
    close = torch.testing.assert_close
    torch.manual_seed(0)
    config = ModernConfig(50, 8, 12, 1, 6, intermediate_size=10, num_experts=4)
    x, layer = torch.randn(1, 5, 12), MixtureOfExperts(config)
    scores = layer.gate(x[0])
    weights = reference("modern.route")(scores, 2)
    parts = torch.stack([expert(x[0]) for expert in layer.experts], -1)  # (5, 12, 4)
    close(layer(x)[0], (parts * weights[:, None]).sum(-1))
    close(layer.balance, reference("modern.balance")(scores.softmax(-1), scores.topk(2).indices))
    mlp = layer.experts[0]
    matrices = mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight
    close(mlp(x), reference("modern.swiglu")(x, *matrices))
    q, k, v = torch.randn(1, 6, 5, 4), torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 4)
    shared = [reference("modern.share_keys")(part, 6) for part in (k, v)]
    close(F.scaled_dot_product_attention(q, *shared), F.scaled_dot_product_attention(q, k, v, enable_gqa=True))
    for (fields,) in exercises()["modern.parameters"].inputs():
        config = ModernConfig(max_position_embeddings=8, **fields)
        assert reference("modern.parameters")(fields) == num_parameters(config)


def test_references_of_preferences_agree_with_the_package():
    close = torch.testing.assert_close
    for chosen, rejected in exercises()["preferences.bradley_terry"].inputs():
        close(reference("preferences.bradley_terry")(chosen, rejected), package.reward_loss(chosen, rejected))
    for policy, ref, mask, beta in exercises()["preferences.dpo_loss"].inputs():
        whole = [(log_probs * mask).sum(-1) for log_probs in (policy, ref)]
        ours = package.dpo_loss(*(part[i::2] for part in whole for i in (0, 1)), beta)
        close(reference("preferences.dpo_loss")(policy, ref, mask, beta), ours)
    for case in exercises()["preferences.best_policy"].inputs():
        close(reference("preferences.best_policy")(*case), package.optimal_policy(*case))
    for case in exercises()["preferences.clipped"].inputs():
        close(reference("preferences.clipped")(*case), package.policy_loss(*case))
    for policy, ref, mask in exercises()["preferences.kl_estimate"].inputs():
        summed = package.kl_loss(policy, ref, mask, "dr_grpo", max_length=1)
        close(reference("preferences.kl_estimate")(policy, ref, mask), summed)
    for case in exercises()["preferences.pass_at_k"].inputs():
        assert reference("preferences.pass_at_k")(*case) == pytest.approx(pass_at_k(*case))


@torch.no_grad()
def test_references_of_lora_are_the_layer_of_the_package():
    x, W, A, B, alpha = exercises()["fine_tuning.lora"].inputs()[0]
    layer = LoRALinear(nn.Linear(W.shape[1], W.shape[0], bias=False), len(A), alpha)
    for parameter, value in ((layer.base_layer.weight, W), (layer.lora_A, A), (layer.lora_B, B)):
        parameter.copy_(value)
    torch.testing.assert_close(reference("fine_tuning.lora")(x, W, A, B, alpha), layer(x))


def test_the_count_of_lora_is_what_the_package_trains():
    for n_layer, n_embd, rank, targets in exercises()["fine_tuning.lora_parameters"].inputs():
        with torch.device("meta"):
            model = GPT(GPTConfig(10, 8, n_embd, n_layer, 2))
            add_lora(model, rank, targets=targets)
        trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        assert reference("fine_tuning.lora_parameters")(n_layer, n_embd, rank, targets) == trained


def test_the_messages_needed_are_the_first_at_which_the_interval_leaves_zero_out():
    for p, q, differ in exercises()["fine_tuning.messages_needed"].inputs():
        n = reference("fine_tuning.messages_needed")(p, q, differ)
        better, worse = (differ + abs(p - q)) / 2, (differ - abs(p - q)) / 2  # shares of messages with +1 and -1
        spread = np.sqrt(np.average([1, 1, 0], weights=[better, worse, 1 - differ]) - (better - worse) ** 2)
        assert abs(p - q) - 1.96 * spread / n**0.5 >= 0 > abs(p - q) - 1.96 * spread / (n - 1) ** 0.5


def test_the_sign_test_agrees_with_all_throws_of_a_coin():
    left, votes = torch.tensor([1, 1, 0, 0, 1, 0, 1]), torch.tensor([0, 0, 1, 2, 0, 0, 0])  # the tuned model: 5 of 6
    uneven = [abs(2 * sum(throw) - 6) >= 4 for throw in itertools.product((0, 1), repeat=6)]
    assert reference("fine_tuning.blind_pairs")(left, votes) == (5, 1, pytest.approx(sum(uneven) / len(uneven)))


def test_the_packed_mask_attends_as_each_dialogue_alone_would():
    lengths, total = [4, 1, 3], 10
    q, k, v = torch.randn(3, 1, total, 5)
    packed = F.scaled_dot_product_attention(q, k, v, reference("fine_tuning.packed_mask")(lengths, total))
    parts = [part.split([*lengths, 1, 1], dim=1) for part in (q, k, v)]
    alone = [F.scaled_dot_product_attention(*part, is_causal=True) for part in zip(*parts, strict=True)]
    torch.testing.assert_close(packed, torch.cat(alone, dim=1))


def test_no_rounding_decides_a_nucleus():
    torch.manual_seed(0)
    for logits, p in exercises()["decoding.top_p"].inputs():
        held = logits.softmax(-1).sort(descending=True).values.cumsum(-1)
        assert (held[..., :-1] - p).abs().min() > 1e-3


def test_file_of_an_answer_is_never_written_over():
    first, again = (copy.deepcopy(exercises()["fine_tuning.mend_pickle"].inputs()[0][2]) for _ in range(2))
    assert first != again and not Path(first).exists()


# ---- wrong answers that were once accepted


def trained_in(groups, model, gradients, rate, steps):
    optimizer = torch.optim.AdamW(groups, lr=rate)
    for _ in range(steps):
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
    return list(model.parameters())


def decay_without_embeddings(model, gradients, rate, weight_decay, steps):
    tables = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    decays = [p.ndim > 1 and id(p) not in tables for p in model.parameters()]
    groups = [
        {"params": [p], "weight_decay": weight_decay * d} for p, d in zip(model.parameters(), decays, strict=True)
    ]
    return trained_in(groups, model, gradients, rate, steps)


def smaller_of_both(validation, test):
    best = validation.index(max(validation))
    return best, min(validation[best], test[best])


def stop_with_a_least_gain(losses, patience):
    best = bad = 0
    for i in range(1, len(losses)):
        best, bad = (i, 0) if losses[i] < losses[best] - 1e-3 else (best, bad + 1)
        if bad >= patience:
            return i, best
    return len(losses) - 1, best


def top_p_of_less_than_all(logits, p):
    ordered, order = logits.softmax(-1).sort(descending=True)
    held = ordered.cumsum(-1)
    kept = ordered * ((held - ordered < p) & (held < 1 - 1e-6) | (torch.arange(held.shape[-1]) == 0))
    return torch.zeros_like(kept).scatter(-1, order, kept / kept.sum(-1, keepdim=True))


def norm_by_a_difference_of_squares(x, weight, bias, eps):
    mean = x.mean(-1, keepdim=True)
    variance = (x * x).mean(-1, keepdim=True) - mean * mean
    return (x - mean) / torch.sqrt(variance + eps) * weight + bias


def loss_left_in_eval_mode(model, batches):
    model.eval()
    with torch.no_grad():
        losses = [F.cross_entropy(model(x), y, reduction="none") for x, y in batches]
    return torch.cat(losses).mean().item()


def loss_with_gradients_left(model, batches):
    was_training = model.training
    model.eval()
    loss = torch.cat([F.cross_entropy(model(x), y, reduction="none") for x, y in batches]).mean()
    loss.backward()
    model.train(was_training)
    return loss.item()


def places_moved_a_little(draw, seed, step, rank, n_processes, batch_size):
    return draw(seed, step, n_processes * batch_size)[rank * batch_size :][:batch_size] + 1


@pytest.mark.parametrize(
    ("name", "answer", "words"),
    [
        ("tune_own.mend_decay", decay_without_embeddings, "it gives"),
        ("evaluation.mend_choice", smaller_of_both, "it gives 0.6 instead of 0.7"),
        ("fine_tuning.stop_rule", stop_with_a_least_gain, "it gives 2 instead of 4"),
        ("decoding.top_p", top_p_of_less_than_all, "p = 1: it gives"),
        ("gpt_block.layer_norm", norm_by_a_difference_of_squares, "difference of two large squares"),
        ("training.mend_twice", loss_left_in_eval_mode, "input model in place. Leave its weights"),
        ("training.mend_twice", loss_with_gradients_left, "input model in place. Leave its weights"),
        ("scaling.mend_shards", places_moved_a_little, "it gives"),
        ("first_model.loss", lambda x, y: F.cross_entropy(x.detach().mT, y), "no gradient can go back"),
    ],
)
def test_answers_that_differ_in_one_point_only_are_refused(name, answer, words, verdict):
    right, line = verdict(name, answer)
    assert not right and words in line


def rate_by(smoothed_by, back=1):
    """Return a reading of a range test with another smoothing, or from another place."""

    def reading(rates, losses, window):
        smoothed = smoothed_by(losses, window)
        first = next(i for i, loss in enumerate(smoothed) if loss <= 1.03 * min(smoothed))
        return rates[max(first - back, 0)]

    return reading


def exponential_mean(losses, window):
    smoothed = losses[:1]
    for loss in losses[1:]:
        smoothed.append(smoothed[-1] + (loss - smoothed[-1]) / window)
    return smoothed


GENERIC = "Hint: Do it in three moves"


@pytest.mark.parametrize(
    ("name", "answer", "hint"),
    [
        ("tuning.range_test", rate_by(lambda losses, window: looking_back(losses, 5)), GENERIC),
        ("tuning.range_test", rate_by(lambda losses, window: looking_back(losses, window + 1)), GENERIC),
        ("tuning.range_test", rate_by(exponential_mean), GENERIC),
        ("tuning.range_test", rate_by(looking_back, back=2), GENERIC),
        (
            "scaling.flops",
            lambda L, C, V, T, n: float(n * (72 * L * C**2 + 6 * V * C + 6 * L * C * T)),
            "the mask hides",
        ),
        ("decoding.mend_temperature", lambda x, T: (x - T).softmax(-1), "You subtract the temperature"),
        (
            "scaling.mend_shards",
            lambda draw, seed, step, rank, n, size: draw(seed, step, size) + rank,
            "by very little",
        ),
    ],
)
def test_hints_do_not_misdiagnose(name, answer, hint, verdict):
    right, line = verdict(name, answer)
    assert not right and hint in line


def swing_cleared_after_each_step(model, optimizer, batches):
    losses = []
    for x, y in batches:
        loss = ((model(x) - y) ** 2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return torch.tensor(losses)


def twice_with_a_copy(model, batches):
    model = copy.deepcopy(model).eval()
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return F.cross_entropy(model(x), y).item()


def accumulated_without_a_trace(model, micro_batches):
    x, y = (torch.cat(parts) for parts in zip(*micro_batches, strict=True))
    return torch.autograd.grad(F.cross_entropy(model(x), y), model.weight)[0]


def decay_in_many_groups(model, gradients, rate, weight_decay, steps):
    groups = [{"params": [p], "weight_decay": weight_decay if p.ndim > 1 else 0} for p in model.parameters()]
    return trained_in(groups, model, gradients, rate, steps)


def decided_by_the_package(baseline, candidate, t):
    low, high = t_interval(np.subtract(baseline, candidate).tolist())
    return "adopt" if low > 0 else "keep" if high < 0 else "more seeds"


def pairs_one_by_one(ids, vocab_size):
    counts = torch.zeros((vocab_size, vocab_size), dtype=torch.long)
    for i in range(len(ids) - 1):
        counts[ids[i], ids[i + 1]] += 1
    return counts


def row_shares(row):
    return row / row.sum() if row.any() else torch.full((len(row),), 1 / len(row))


def mixed_token_by_token(times, shorter):
    n, kinds = times.sum().item(), len(times.nonzero())
    share = kinds / (n + kinds) if n else 1.0
    mixed = [(1 - share) * (t / n if n else 0) + share * p for t, p in zip(times.tolist(), shorter, strict=True)]
    return torch.stack([torch.as_tensor(p) for p in mixed])


def train_with_functions_of_torch(table, optimizer, batches):
    losses = []
    for ids, targets in batches:
        loss = -table(ids).log_softmax(-1).gather(-1, targets[..., None]).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return torch.tensor(losses)


def most_frequent_of_a_sorted_list(words, times):
    pairs = [pair for word, n in zip(words, times, strict=True) for pair in [*itertools.pairwise(word)] * n]
    return max(sorted(set(pairs)), key=pairs.count)


def merge_by_popping(symbols, pair):
    left, merged = list(symbols), []
    while left:
        merged.append(left.pop(0))
        if left and (merged[-1], left[0]) == tuple(pair):
            merged[-1] += left.pop(0)
    return merged


class EinsumHeads(nn.Module):
    """Right, and in another style: float64 inside, a loop over the tokens, a list of heads, no kernel of torch's."""

    def __init__(self, width, heads, dropout=0.0):
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)
        self.register_buffer("unused", torch.ones(2))

    def forward(self, x, cache=None):
        B, T, C = x.shape
        queries, keys, values = self.c_attn(x).reshape(B, T, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
        if cache is not None:
            keys, values = cache.append(keys, values)
        rows = []
        for t in range(T):
            seen = keys.shape[2] - T + t + 1
            scores = torch.einsum("bhd,bhsd->bhs", queries[:, :, t].double(), keys[:, :, :seen].double())
            weights = torch.softmax(scores / self.size**0.5, -1)
            rows.append(torch.einsum("bhs,bhsd->bhd", weights, values[:, :, :seen].double()).reshape(B, C))
        return self.c_proj(torch.stack(rows, dim=1).float())


class HeadByLoops(nn.Module):
    def __init__(self, n_embd, head_size):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(n_embd, head_size, bias=False) for _ in "qkv")

    def forward(self, x):
        return torch.stack([self.sentence(one) for one in x])

    def sentence(self, x):
        rows = []
        for t in range(len(x)):
            powers = torch.stack([torch.dot(self.query(x[t]), self.key(x[s])) for s in range(t + 1)])
            shares = (powers / self.query.out_features**0.5).softmax(0)
            rows.append(sum(share * self.value(x[s]) for s, share in enumerate(shares)))
        return torch.stack(rows)


def influence_by_gradients(layer, x):
    outputs_by_tokens = torch.autograd.functional.jacobian(layer, x)  # (T, C, T, C)
    return outputs_by_tokens.abs().sum((1, 3)) > 0


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("start.greedy", lambda logits: logits.topk(1).indices),
        ("start.greedy", lambda logits: np.argmax(logits.numpy())),
        ("attention.causal", lambda s: (s + torch.full(s.shape[-2:], -math.inf).triu(1)).softmax(-1)),
        ("first_model.count_pairs", pairs_one_by_one),
        ("first_model.count_pairs", lambda ids, V: F.one_hot(ids[:-1], V).T @ F.one_hot(ids[1:], V)),
        ("first_model.bigram_probabilities", lambda n: torch.stack([row_shares(row) for row in n])),
        ("first_model.witten_bell", mixed_token_by_token),
        ("first_model.ngram_loss", first_model.right_ngram_loss),
        ("first_model.train", train_with_functions_of_torch),
        ("first_model.most_frequent_pair", lambda words, times: list(most_frequent_of_a_sorted_list(words, times))),
        ("first_model.merge", merge_by_popping),
        ("first_model.train_bpe", lambda words, n: first_model.bpe_of(Counter(words), n)),
        ("first_model.shift", lambda tokens: [tokens[:, :-1].clone(), tokens[:, 1:]]),
        ("first_model.loss", lambda x, y: -(x.log_softmax(-1) * F.one_hot(y, x.shape[-1])).sum() / y.numel()),
        ("training.mend_swing", swing_cleared_after_each_step),
        ("training.mend_twice", twice_with_a_copy),
        ("tuning.accumulate", accumulated_without_a_trace),
        ("tune_own.mend_decay", decay_in_many_groups),
        ("tune_own.adopt", decided_by_the_package),
        ("decoding.perplexity", lambda p: math.exp(-sum(map(sum, p)) / sum(map(len, p)))),
        ("fine_tuning.lora", lambda x, W, A, B, alpha: x @ (W + alpha / len(A) * B @ A).T),
        ("scaling.flops", lambda L, C, V, T, n: 3 * n * (2 * (12 * L * C**2 + V * C) + 4 * L * T * C)),
        ("evaluation.paired", lambda a, b, d: np.quantile([(a - b)[row].mean() for row in d], [0.025, 0.975]).tolist()),
    ],
)
def test_right_answers_in_other_styles_are_accepted(name, answer, verdict):
    assert verdict(name, answer) == (True, f"Right: {name}.")


class WithABias(HeadByLoops):
    def __init__(self, n_embd, head_size):
        super().__init__(n_embd, head_size)
        self.query = nn.Linear(n_embd, head_size)


class WithoutAKey(HeadByLoops):
    def __init__(self, n_embd, head_size):
        super().__init__(n_embd, head_size)
        del self.key


class OfOtherShapes(HeadByLoops):
    def __init__(self, n_embd, head_size):
        super().__init__(head_size, n_embd)


class NotWrittenYet(nn.Module):
    def __init__(self, n_embd, head_size):
        super().__init__()
        raise NotImplementedError


class WithoutASize(nn.Module):
    def __init__(self, n_embd):
        super().__init__()


class ChangesItsInput(HeadByLoops):
    def forward(self, x):
        outputs = super().forward(x)
        x += 1
        return outputs


class WithoutGradients(HeadByLoops):
    def forward(self, x):
        return super().forward(x).detach()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (WithABias, "ValueError: query.bias should not be there, and its shape is (2,)"),
        (WithoutAKey, "ValueError: key.weight should be of shape (2, 2), and it is missing"),
        (
            OfOtherShapes,
            "For weights as given, x of shape (2, 5, 6): it stops with ValueError: key.weight should be of",
        ),
        (WithoutASize, "The __init__ of your class should take 2 inputs: n_embd, head_size."),
        (ChangesItsInput, "Your function changes its input x in place."),
        (WithoutGradients, "The numbers are right, but no gradient can go back"),
        (lambda n_embd, head_size: None, "Not yet: attention.head. "),
    ],
)
def test_a_class_that_is_asked_for_is_judged_in_its_use(answer, words, verdict):
    right, line = verdict("attention.head", answer)
    assert not right and words in line


def test_a_class_without_its_body_is_to_do(verdict):
    assert verdict("attention.head", NotWrittenYet)[1].startswith("To do: attention.head. Write a whole head")


# ---- what another cell has done, and what an answer does to torch


@pytest.fixture
def torch_as_it_was():
    yield
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    try:
        torch.get_default_device()
    except AttributeError:  # PyTorch 2.5 does not know what None is
        torch.set_default_device("cpu")


@pytest.mark.parametrize(
    "prepare",
    [
        lambda: torch.set_grad_enabled(False),
        lambda: torch.set_default_dtype(torch.float64),
        lambda: torch.set_default_device("meta"),
    ],
    ids=["grad", "dtype", "device"],
)
def test_what_another_cell_has_set_decides_nothing(prepare, torch_as_it_was, verdict):
    prepare()
    before = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device()
    for name in ("attention.scores", "training.mend_swing", "training.loop", "tuning.accumulate"):
        assert verdict(name, reference(name)) == (True, f"Right: {name}.")
        first = exercises()[name].mistakes[0]
        assert verdict(name, first.function) == (False, f"Not yet: {name}. {first.hint}")
    assert before == (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device())


def test_gradients_are_recorded_outside_the_main_thread_too(torch_as_it_was, capsys):
    def work():
        torch.set_grad_enabled(False)
        check("training.mend_swing", reference("training.mend_swing"))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert capsys.readouterr().out == "Right: training.mend_swing.\n"


def test_an_answer_leaves_torch_as_it_was(torch_as_it_was, verdict):
    before = torch.softmax, torch.Tensor.softmax, F.cross_entropy, nn.Linear.forward

    def patches(scores):
        torch.softmax = F.cross_entropy = torch.Tensor.softmax = lambda *_, **__: torch.zeros(())
        nn.Linear.forward = lambda self, x: x
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        return scores

    assert not verdict("attention.weights", patches)[0]
    assert before == (torch.softmax, torch.Tensor.softmax, F.cross_entropy, nn.Linear.forward)
    assert torch.is_grad_enabled() and torch.get_default_dtype() is torch.float32
    assert torch.get_default_device() == torch.device("cpu")


def test_no_answer_is_right_by_a_patch_of_what_compares(verdict):
    def patches(scores):
        torch.isclose = torch.Tensor.__invert__ = lambda x, *_, **__: torch.ones(x.shape, dtype=torch.bool)
        torch.Tensor.any = lambda x, *_: False
        return scores

    assert not verdict("attention.weights", patches)[0]


def test_a_patch_of_another_cell_does_not_reach_the_reference(monkeypatch, verdict):
    wrong = lambda logits, targets, **_: logits.sum()  # noqa: E731
    monkeypatch.setattr(F, "cross_entropy", wrong)
    monkeypatch.setattr(nn.Linear, "of_another_library", "kept", raising=False)
    assert not verdict("first_model.loss", lambda logits, targets: logits.sum())[0]
    assert F.cross_entropy is wrong and nn.Linear.of_another_library == "kept"


def test_an_exception_is_never_right(monkeypatch, verdict):
    def stops(q, k):
        raise ValueError("the same")

    monkeypatch.setattr(exercises()["attention.scores"], "reference", stops)
    right, line = verdict("attention.scores", stops)
    assert not right and "the exercise itself is broken" in line


def test_unknown_name_is_refused_with_the_near_ones():
    with pytest.raises(ValueError, match=r'no exercise "attention.casual".*attention\.causal'):
        check("attention.casual", None)
    with pytest.raises(ValueError, match=r"start\.greedy.*first_model\.first_loss.*attention\.scores"):
        check("42", None)


def raises_to_do(q, k):
    raise NotImplementedError("write me")


def returns_nothing(q, k):
    q @ k.mT


def returns_dots(q, k): ...


@pytest.mark.parametrize("stub", [raises_to_do, returns_nothing, returns_dots, lambda q, k: ..., None, ...])
def test_stub_is_still_to_do_and_no_try(stub, verdict):
    right, line = verdict("attention.scores", stub)
    assert not right
    assert line.startswith("To do: attention.scores. Return the dot product of each query with each key")
    assert not progress_file().exists()


def right_scores(q, k):
    return q @ k.mT / math.sqrt(q.shape[-1])


def with_exit(q, k):
    sys.exit(3)


def with_two_line_error(q, k):
    raise KeyError("first line\nsecond line")


def with_endless_recursion(q, k):
    return with_endless_recursion(q, k)


def with_nan(q, k):
    scores = right_scores(q, k)
    scores[..., 0, 1] = torch.nan
    return scores


RIGHT_NUMBERS = "The numbers are right, the type is not: "


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (torch.ones(3, 5), "Pass the function itself"),
        (lambda q: q, "should take 2 inputs: q, k"),
        (lambda *, q, k: q, "should take 2 inputs: q, k"),
        (
            lambda q, k: right_scores(q, k).tolist(),
            f"{RIGHT_NUMBERS}it should return a tensor, and it returns a list of",
        ),
        (lambda q, k: right_scores(q, k).numpy(), f"{RIGHT_NUMBERS}it should return a tensor, and it returns some"),
        (lambda q, k: right_scores(q, k).double(), f"{RIGHT_NUMBERS}the dtype of what it returns is torch.float64"),
        (lambda q, k: (q @ k.mT).double(), "their spread grows with the head size"),
        (lambda q, k: "the answer is 42", "it should return a tensor, and it returns something of type str"),
        (lambda q, k: (right_scores(q, k), q), "it returns 2 things"),
        (lambda q, k: right_scores(q, k).mT, "is (2, 1), and it should be (1, 2)"),
        (lambda q, k: right_scores(q, k).to("meta"), "cannot be compared"),
        (with_nan, "at position (0, 1) it gives NaN"),
        (lambda q, k: right_scores(q, k) + 1, "it gives [["),
        (lambda q, k: 1 / 0, "it stops with ZeroDivisionError: division by zero"),
        (with_exit, "it stops with SystemExit: 3"),
        (with_two_line_error, "it stops with KeyError: 'first line"),
        (with_endless_recursion, "it stops with RecursionError"),
        (torch.relu, "it stops with TypeError"),
    ],
)
def test_odd_answers_are_met_kindly(answer, words, verdict):
    right, line = verdict("attention.scores", answer)
    assert not right
    assert line.startswith("Not yet: attention.scores. ") and words in line


@pytest.mark.parametrize("name", exercises())
def test_text_nan_and_exceptions_are_met_kindly_everywhere(name, verdict_on_results):
    calling = exercises()[name].calling(reference(name))

    def spoilt(result, change):
        return (change(result[0]), *result[1:]) if isinstance(result, tuple) else change(result)

    def stops(result):
        raise KeyError("what a pity")

    def not_a_number(result):
        return torch.full_like(result.float(), torch.nan) if isinstance(result, torch.Tensor) else math.nan

    odd = {
        r"it should return .* it returns something of type str\b|instead of '": lambda result: "the answer is 42",
        r"it stops with KeyError: 'what a pity'": stops,
        r"it gives NaN|with a number of another|it should return|it gives nan instead of '": not_a_number,
    }
    for words, change in odd.items():
        right, line = verdict_on_results(name, lambda *inputs, change=change: spoilt(calling(*inputs), change))
        assert not right and line.startswith(f"Not yet: {name}. For ") and re.search(words, line), line
        assert line.endswith(f"Hint: {exercises()[name].hint}")


def test_the_smallest_counterexample_is_shown_with_its_numbers(verdict):
    def one_off(vocab_size):
        return math.log(vocab_size) + (vocab_size == 65)

    _, line = verdict("first_model.first_loss", one_off)
    assert "For vocab_size = 65: it gives 5.17438727 instead of 4.17438" in line
    _, line = verdict("first_model.shift", lambda tokens: (tokens[:, :-1], tokens[:, 1:] * 2))
    small = "For tokens = [[1, 2, 3, 4]]: in number 2 of what it returns, it gives [[4, 6, 8]] instead of [[2, 3, 4]]."
    assert small in line
    _, line = verdict("fine_tuning.stop_rule", lambda losses, patience: (0, 0))
    assert "For losses = [2, 2.1, 1], patience = 1: in number 1 of what it returns, it gives 0 instead of 1." in line


def test_prints_are_left_out(verdict):
    def talkative(q, k):
        print("my inputs are", q, k)
        print("a warning", file=sys.stderr)
        return right_scores(q, k)

    right, line = verdict("attention.scores", talkative)
    assert right
    assert line.endswith("scores. (What your function prints is left out here; call it yourself to see it.)")


def test_lists_and_dicts_are_watched_all_the_way_down(verdict):
    def with_a_dtype_changed(model, batches):
        result = reference("training.mend_percent")(model, batches)
        batches[0][1].data = batches[0][1].data.double()
        return result

    def with_a_weight_more(weights, hidden):
        result = reference("fine_tuning.mend_new_head")(weights, hidden)
        weights["lm_head.weight"] = weights["wte.weight"]
        return result

    def with_a_batch_replaced(model, batches):
        result = reference("training.mend_percent")(model, batches)
        batches[0] = 3
        return result

    for damage in (with_a_dtype_changed, with_a_batch_replaced):
        assert "changes its input batches in place" in verdict("training.mend_percent", damage)[1]
    assert "changes its input weights in place" in verdict("fine_tuning.mend_new_head", with_a_weight_more)[1]


def test_numbers_may_come_as_tensors_arrays_and_of_another_precision(verdict):
    for number in (torch.tensor, np.float32, np.float64, lambda x: torch.tensor([x]), lambda x: np.array([x])):
        assert verdict("first_model.first_loss", lambda size, number=number: number(math.log(size)))[0]
    assert not verdict("first_model.first_loss", lambda vocab_size: vocab_size > 1)[0]
    of_one = verdict("first_model.loss", lambda x, y: F.cross_entropy(x.mT, y)[None])[1]
    assert f"{RIGHT_NUMBERS}the shape of what it returns is (1,), and it should be ()" in of_one


def test_counts_must_be_exact(verdict):
    count = reference("gpt_block.parameters")
    right, line = verdict("gpt_block.parameters", lambda *sizes: count(*sizes) + (sizes[0] == 50257))
    assert not right and "124439809 instead of 124439808" in line
    operations = reference("scaling.flops")
    right, line = verdict("scaling.flops", lambda *sizes: operations(*sizes) + (sizes[0] == 12))
    assert not right and f"instead of {operations(12, 768, 50_257, 1_024, 300):.9g}" in line
    assert RIGHT_NUMBERS in verdict("gpt_block.parameters", lambda *sizes: float(count(*sizes)))[1]


def never_ends(q, k):
    while True:
        with contextlib.suppress(Exception):
            q = q + 1


def test_slow_answer_is_given_up_and_the_alarm_is_as_before(monkeypatch, verdict):
    monkeypatch.setattr(gptcourse.exercises, "TIME_LIMIT", 0.1)
    before = signal.getsignal(signal.SIGALRM) if hasattr(signal, "SIGALRM") else None
    right, line = verdict("attention.scores", never_ends)
    assert not right and "no answer after 0.1 seconds" in line
    if before is not None:
        assert signal.getsignal(signal.SIGALRM) is before
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_slow_answer_is_given_up_outside_the_main_thread(monkeypatch, capsys):
    monkeypatch.setattr(gptcourse.exercises, "TIME_LIMIT", 0.1)
    release, results = threading.Event(), []

    def waits(q, k):
        release.wait()
        return q

    thread = threading.Thread(target=lambda: results.append(check("attention.scores", waits)))
    thread.start()
    thread.join()
    release.set()
    assert results == [False]
    assert "no answer after 0.1 seconds" in capsys.readouterr().out


def test_check_works_outside_the_main_thread(capsys):
    results = []
    thread = threading.Thread(target=lambda: results.append(check("attention.scores", right_scores)))
    thread.start()
    thread.join()
    assert results == [True]
    assert capsys.readouterr().out == "Right: attention.scores.\n"


def test_interrupting_the_kernel_goes_through():
    def interrupted(q, k):
        signal.raise_signal(signal.SIGINT)  # as the ■ button does
        while True:
            pass

    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            check("attention.scores", interrupted)
    finally:
        signal.signal(signal.SIGINT, before)
    if hasattr(signal, "setitimer"):
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert not progress_file().exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_what_work_raises_goes_through_outside_the_main_thread(error, capfd):
    def work():
        raise error("raised by the work")

    caught = []

    def outside():
        try:
            within(60, work)
        except BaseException as raised:
            caught.append(raised)

    thread = threading.Thread(target=outside)
    thread.start()
    thread.join()
    assert [(type(raised), str(raised)) for raised in caught] == [(error, "raised by the work")]
    assert capfd.readouterr().err == ""


def test_random_numbers_of_the_notebook_are_left_alone(capsys):
    torch.manual_seed(0)
    expected = torch.rand(4)
    torch.manual_seed(0)
    check("training.mend_twice", exercises()["training.mend_twice"].mistakes[0].function)
    assert torch.equal(torch.rand(4), expected)


def test_answers_may_train_a_model_of_their_own(verdict):
    def with_own_step(model, optimizer, batches):
        losses = []
        for x, y in batches:
            model.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss)
        return torch.stack(losses)

    assert verdict("training.mend_swing", with_own_step)[0]


def cells_of(module):
    path = Path(__file__).parents[1] / "notebooks" / NOTEBOOKS[module]
    if not path.exists():
        pytest.skip(f"{path.name} is not written yet")
    cells = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        for tag in cell["metadata"].get("tags", []):
            kind, _, name = tag.partition(":")
            if kind in ("exercise", "mistake", "solution"):
                assert ("task" if kind != "solution" else kind, name) not in cells, f"{tag} stands twice"
                cells["task" if kind != "solution" else kind, name] = (kind, "".join(cell["source"]))
    return cells


@pytest.mark.parametrize("module", NOTEBOOKS)
def test_notebook_holds_exactly_the_registered_exercises(module):
    cells = cells_of(module)
    registered = {name for name in exercises() if NOTEBOOKS[name.split(".")[0]] == NOTEBOOKS[module]}
    assert {name for part, name in cells if part == "task"} == registered
    assert {name for part, name in cells if part == "solution"} == registered
    for (part, name), (kind, source) in cells.items():
        if part == "task":
            assert (kind == "mistake") is (".mend_" in name)
            assert f'check("{name}", ' in source


@pytest.mark.parametrize("name", exercises())
def test_solution_in_the_notebook_is_accepted_and_its_task_is_not(name, verdict):
    cells = cells_of(name.split(".")[0])
    (function_name,) = re.findall(rf'check\("{name}", (\w+)\)', cells["task", name][1])
    (fence,) = re.findall(r"```python\n(.*?)```", cells["solution", name][1], re.DOTALL)
    namespace = {}
    with contextlib.redirect_stdout(io.StringIO()):  # what a solution says of the parts that it takes over
        exec(fence, namespace)
    assert verdict(name, namespace[function_name])[0]

    # The task as it stands: its function alone, without the call of check and the prints of a mistake.
    namespace = {"math": math, "re": re, "torch": torch, "nn": nn, "F": nn.functional}
    namespace |= {"GPTConfig": GPTConfig, "GPTOutput": GPTOutput, "rotary": rotary}
    (task,) = [
        node
        for node in ast.parse(cells["task", name][1]).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == function_name
    ]
    exec(compile(ast.Module([task], []), name, "exec"), namespace)
    forget_progress()
    assert not verdict(name, namespace[function_name])[0]
    assert not progress_file().exists(), "what nobody has touched is not a try"


# ---- progress


def test_progress_counts_tries_up_to_the_first_right_answer(verdict):
    wrong, right = (lambda q, k: q @ k.mT), reference("attention.scores")
    assert progress().parts["02 · Attention"]["attention.scores"] == Record(0, None)
    for answer in (wrong, torch.ones(1), lambda q: q, lambda q, k: 1 / 0):
        check("attention.scores", answer)
    assert progress().parts["02 · Attention"]["attention.scores"] == Record(4, None)
    for answer in (right, wrong, right):
        check("attention.scores", answer)
    assert progress().parts["02 · Attention"]["attention.scores"] == Record(5, date.today().isoformat())
    others = {name for part in progress().parts.values() for name, record in part.items() if record == Record()}
    assert others == exercises().keys() - {"attention.scores"}


def test_a_slow_answer_is_a_try(monkeypatch, verdict):
    monkeypatch.setattr(gptcourse.exercises, "TIME_LIMIT", 0.05)
    verdict("attention.scores", never_ends)
    assert progress().parts["02 · Attention"]["attention.scores"].tries == 1


def test_progress_has_a_part_for_each_notebook_under_its_title():
    folder = Path(__file__).parents[1] / "notebooks"
    files = dict.fromkeys(NOTEBOOKS.values())
    for (title, records), file in zip(progress().parts.items(), files, strict=True):
        if (folder / file).exists():  # 06 is not written yet
            first_line = "".join(json.loads((folder / file).read_text(encoding="utf-8"))["cells"][0]["source"])
            assert first_line.startswith(f"# {title}\n")
        assert list(records) == [name for name in exercises() if NOTEBOOKS[name.split(".")[0]] == file]


RECORDS = {"a": Record(2, "2026-01-31"), "long_name": Record(1), "b": Record()}
SHOWN = Progress({"00 · Start": RECORDS, "01 · Next": {"c": Record()}}, "A note.", {"long_name": 5, "b": 3, "c": 4})


def test_progress_says_what_is_solved_what_is_next_and_how_long_the_rest_may_take():
    assert repr(SHOWN).splitlines() == [
        "00 · Start  1 of 3  8 minutes left",
        "01 · Next   0 of 1  4 minutes left",
        "Next: long_name, in 00 · Start.",
        "A note.",
    ]
    assert repr(Progress({})) == ""
    assert "Next" not in repr(Progress({"00 · Start": {"a": Record(1, "2026-01-31")}}))


def test_progress_as_html_says_the_same_with_a_bar_for_each_notebook():
    html = SHOWN._repr_html_()
    words = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html)).strip()
    assert words == " ".join(repr(SHOWN).split())
    assert re.findall(r"width:(\d+)%", html) == ["33", "0"]


def test_progress_as_html_shows_every_text_as_text():
    bad = "<img src=x onerror=alert(1)>&"
    html = Progress({bad: {bad: Record(1)}}, bad)._repr_html_()
    assert "<img" not in html and html.count("&lt;img src=x onerror=alert(1)&gt;&amp;") == 4
    assert html.count("<tr>") == html.count("</tr>") == 1


@pytest.fixture
def cards(monkeypatch):
    """Pretend to run in a notebook's kernel; return what is shown there."""
    shown = []
    monkeypatch.setattr("IPython.get_ipython", lambda: types.SimpleNamespace(kernel=True))
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: shown.append(bundle))
    return shown


def test_in_a_notebook_a_verdict_is_a_card_with_the_same_words(cards, capsys):
    name, known = "attention.scores", exercises()["attention.scores"]
    check(name, None)
    check(name, lambda q, k: q @ k.transpose(-2, -1) * 7)
    check(name, known.mistakes[0].function)
    check(name, known.reference)
    assert capsys.readouterr().out == ""
    html, plain = zip(*((shown["text/html"], shown["text/plain"]) for shown in cards), strict=True)
    assert [text.split(":")[0] for text in plain] == ["To do", "Not yet", "Not yet", "Right"]
    assert [re.search(r">(.)</span>", shown)[1] for shown in html] == ["○", "✗", "✗", "✓"]
    assert ["<details>" in shown for shown in html] == [False, True, True, False]
    for shown, text in zip(html, plain, strict=True):
        assert unescape(re.search(r"pre-wrap\">(.*?)</div>", shown, re.DOTALL)[1]) in text


@pytest.mark.parametrize("name", [name for name, e in exercises().items() if any(m.untouched for m in e.mistakes)])
def test_a_mistake_that_stands_as_it_came_is_not_named_in_the_open(cards, name):
    (known,) = (mistake for mistake in exercises()[name].mistakes if mistake.untouched)
    begins, rest = known.hint.split(": ", 1)
    check(name, known.function)
    first, fold = cards[-1]["text/html"].split("<details>")
    assert begins == "The mistake is still there" and escape(rest) in fold and escape(rest) not in first


def test_the_hint_waits_in_a_fold_unless_it_has_been_said():
    hint, said = "Which <numbers> are added?", "Not yet: a.b. For x 1: it gives 2."
    first, fold = card(False, f"{said} Hint: {hint}", hint).split("<details>")
    assert "For x 1: it gives 2." in first and "Which" not in first
    assert "Which &lt;numbers&gt; are added?" in fold and "folded in the cell below" in fold
    assert card(False, f"Not yet: a.b. {hint}", hint).count("Which &lt;numbers&gt;") == 1


def test_forgetting_starts_again():
    check("attention.scores", reference("attention.scores"))
    assert "1 of" in repr(progress())
    forget_progress()
    forget_progress()
    assert progress() == Progress(progress().parts, "", progress().minutes)
    assert {record for part in progress().parts.values() for record in part.values()} == {Record()}


def test_progress_lies_with_the_user_and_not_in_the_shared_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("GPTCOURSE_CACHE", str(tmp_path / "shared"))
    monkeypatch.delenv("GPTCOURSE_PROGRESS")
    assert not progress_file().is_relative_to(tmp_path)
    assert "gptcourse" in progress_file().parts
    monkeypatch.setenv("GPTCOURSE_PROGRESS", "~/course")
    assert progress_file() == Path("~/course/progress.json").expanduser()


def test_without_a_home_directory_a_sentence_says_so(monkeypatch, tmp_path, verdict):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as without HOME and without an entry in passwd
    for variable in ("XDG_DATA_HOME", "GPTCOURSE_PROGRESS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("platformdirs.user_data_dir", lambda *_, **__: "~/.local/share/gptcourse")
    right, line = verdict("attention.scores", right_scores)
    assert right and "(Your progress cannot be kept: there is no home directory" in line
    assert "set GPTCOURSE_PROGRESS to the path of a folder" in repr(progress())
    with pytest.raises(OSError, match="no home directory"):
        forget_progress()
    assert list(tmp_path.iterdir()) == []


def test_a_console_in_cp1252_can_show_every_line(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", stream)
    assert check("scaling.orthogonalise", reference("scaling.orthogonalise"))
    assert not check("scaling.orthogonalise", lambda matrix: torch.linalg.svd(matrix, full_matrices=False)[0])
    exactly = next(m for m in exercises()["scaling.orthogonalise"].mistakes if "U Vᵀ" in m.hint)
    assert not check("scaling.orthogonalise", exactly.function)
    print(progress())
    forget_progress()
    stream.flush()
    shown = stream.buffer.getvalue().decode("cp1252")
    assert "That is U V? exactly" in shown and re.search(r"10 · Scaling up +1 of 13", shown)


GOOD = {"tries": 2, "solved": "2026-01-31"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[1, 2]",
        b"\xff\xfe\xfd",
        b"\x00" * 100,
        b"[" * 100_000,
        b'{"version": 1}',
        b'{"version": "new", "exercises": {}}',
        b'{"version": 1, "exercises": [["attention.scores", 3]]}',
        b'{"version": 1, "exercises": {"attention.scores": {"tries": ' + b"9" * 5000 + b"}}}",
    ],
)
def test_damaged_file_is_begun_anew(content, verdict):
    progress_file().parent.mkdir()
    progress_file().write_bytes(content)
    assert not any(record.solved for part in progress().parts.values() for record in part.values())
    assert verdict("attention.scores", right_scores) == (True, "Right: attention.scores.")
    assert progress().parts["02 · Attention"]["attention.scores"].tries == 1


@pytest.mark.parametrize(
    "entry",
    [
        None,
        7,
        "solved",
        [1, None],
        {},
        {"tries": -1, "solved": None},
        {"tries": True, "solved": None},
        {"tries": 1.5, "solved": None},
        {"tries": math.nan, "solved": None},
        {"tries": 1, "solved": "<b>today</b>"},
        {"tries": 1, "solved": 20260131},
        {"tries": 1, "solved": None, "more": 1},
    ],
)
def test_damaged_entry_is_dropped_and_the_others_are_kept(entry):
    progress_file().parent.mkdir()
    entries = {"attention.scores": entry, "attention.heads": GOOD, "in.a_later_notebook": GOOD}
    progress_file().write_text(json.dumps({"version": FORMAT, "exercises": entries}))
    assert progress().parts["02 · Attention"]["attention.scores"] == Record()
    remember("attention.scores", False)
    kept = json.loads(progress_file().read_text())["exercises"]
    assert kept == entries | {"attention.scores": {"tries": 1, "solved": None}}


def test_file_of_a_newer_course_is_left_alone_and_told_once_it_matters(verdict):
    progress_file().parent.mkdir()
    text = json.dumps({"version": FORMAT + 1, "solved": ["everything"]})
    progress_file().write_text(text)
    assert verdict("attention.scores", lambda q, k: q @ k.mT)[1].endswith("back to one.")
    right, line = verdict("attention.scores", right_scores)
    assert right and line.startswith("Right: attention.scores. (Your progress cannot be kept: a newer version")
    assert progress_file().read_text() == text
    assert "a newer version of this course" in repr(progress()) and "a newer version" in progress()._repr_html_()


@pytest.mark.parametrize("obstacle", ["a file where the folder should be", "a folder where the file should be"])
def test_file_that_cannot_be_used_never_stops_check(obstacle, verdict):
    if obstacle.startswith("a file"):
        progress_file().parent.write_text("in the way")
    else:
        progress_file().mkdir(parents=True)
    for answer, right in ((right_scores, True), (lambda q, k: q, False), (raises_to_do, False)):
        found, line = verdict("attention.scores", answer)
        assert found is right
        assert ("Your progress cannot be kept: " in line) is right
    assert not any(record.solved for part in progress().parts.values() for record in part.values())


@pytest.mark.parametrize("function", ["write_bytes", "replace"])
def test_full_or_locked_disk_leaves_the_old_file_whole(function, monkeypatch, verdict):
    remember("start.greedy", True)
    before = progress_file().read_bytes()

    def fail(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, function, fail)
    right, line = verdict("attention.scores", right_scores)
    assert right and "No space left on device" in line
    assert progress_file().read_bytes() == before
    assert {path.name for path in progress_file().parent.iterdir()} <= {"progress.json", "answers.json"}


def test_kernels_that_write_at_once_leave_a_whole_file():
    program = (
        "import sys; from gptcourse.exercises.records import remember\n"
        "for i in range(100): remember(f'kernel_{sys.argv[1]}.number_{i}', True)"
    )
    command = [sys.executable, "-c", program]
    kernels = [subprocess.Popen([*command, str(i)], stderr=subprocess.PIPE, text=True) for i in range(3)]
    reads = []
    while any(kernel.poll() is None for kernel in kernels):
        with contextlib.suppress(OSError):  # not there yet; on Windows also while it is being replaced
            reads.append(json.loads(progress_file().read_text())["exercises"])
    assert [kernel.communicate()[1] for kernel in kernels] == ["", "", ""]
    last = json.loads(progress_file().read_text())["exercises"]
    assert reads and all(Record(**entry).solved for entry in last.values())
    assert list(progress_file().parent.iterdir()) == [progress_file()]


def test_without_any_home_directory_checking_works(monkeypatch):
    def nobody(*_, **__):
        raise RuntimeError("could not determine the home directory")

    monkeypatch.delenv("GPTCOURSE_PROGRESS", raising=False)
    monkeypatch.setattr("platformdirs.user_data_dir", nobody)
    records, problem = read_records()
    assert not records and "there is no home directory" in problem
    assert "there is no home directory" in remember("attention.causal", True)


def test_a_right_initialisation_is_right_whatever_is_drawn_and_a_wrong_mean_is_not():
    def drawn_with(seed, mean=0.0):
        def initialise(model, n_layer):
            torch.manual_seed(seed)
            reference("gpt_block.initialise")(model, n_layer)
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.data += mean

        return initialise

    for seed in (3, 52):
        assert check("gpt_block.initialise", drawn_with(seed))
    assert not check("gpt_block.initialise", drawn_with(3, mean=1.0))


def test_zero_may_be_a_rounding_error():
    def pass_at_k(n, c, k):
        if n - c < k:
            return 1.0
        logs = [math.lgamma(x + 1) for x in (n - c, n - c - k, n, n - k)]
        return 1 - math.exp(logs[0] - logs[1] - logs[2] + logs[3])

    assert check("preferences.pass_at_k", pass_at_k)
