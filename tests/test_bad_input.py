"""Whatever a person types for an argument: a right result, or one clear sentence of ours.

Each public function of plain values is called with right arguments of which some are altered: by what may stand there
as well, and by what anyone can type in its place. No error of another library may come out, and none of its warnings.
"""

import copy
import importlib
import inspect
import math
import re
import traceback
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

import gptcourse
from gptcourse import scaling
from gptcourse.config import CHOICES, GPTConfig, TrainingConfig
from gptcourse.data import IGNORED
from gptcourse.generation import Sampling
from gptcourse.ngrams import NGrams
from gptcourse.preferences import GRPOConfig
from gptcourse.procedure import Budget
from gptcourse.reasoning import STYLES, TASKS, Puzzle
from gptcourse.safety import NOISES
from gptcourse.scaling import CHINCHILLA, SHARDED, ScalingLaw
from gptcourse.support import support
from gptcourse.tuning import BatchTradeOff

PACKAGE = Path(gptcourse.__file__).parent
# fmt: off
MODULES = [
    "collectives", "config", "data", "duplicates", "evaluation", "generation", "ngrams", "optimizers",
    "preferences", "procedure", "quantisation", "reasoning", "safety", "scaling", "throughput", "tuning",
]
# What takes a model, a tokenizer, a file, a device, a function, a process or an axis of Optuna; and inner helpers.
LEFT_OUT = [
    "between_processes", "in_threads", "counted_dropout", "log_likelihoods", "perplexity", "classify", "few_shot",
    "generate", "stream", "only_tokens_of", "decay_groups", "mup_groups", "muon_groups", "build_optimizer",
    "token_log_probs", "price_and_worth", "reward_model", "rewards_of", "train_reward_model", "dpo", "roll_out",
    "grpo", "tune", "quantised", "stored_bytes", "solve", "canary_exposures", "available_memory",
    "measure_throughput", "lr_range_test", "coordinate_check", "stability_limit", "adam_preconditioner",
    "sharpness", "gradient_noise_scale", "check_settings", "value_at", "place_of", "beyond", "look_up",
    "check_prompts", "alone_with_random", "rng_of",
]
# fmt: on
SHAPE = {"vocab_size": 11, "n_positions": 8, "n_embd": 12, "n_layer": 2, "n_head": 3}
RUN = {"steps": 10, "batch_size": 4, "learning_rate": 1e-3}
CONFIG, RUNS = GPTConfig(**SHAPE), TrainingConfig(**RUN, warmup_steps=2, batch_ramp_steps=3)
EXAMPLE = ([1, 2, 3], [IGNORED, 3, 4])
PUZZLE = Puzzle((3, 5), (3, 8))
TALK = support(1)[0]
SIZES = {
    "n_parameters": [1e5, 2e5, 4e5, 8e5, 2e5],
    "n_tokens": [1e6, 2e6, 3e6, 4e6, 5e6],
    "losses": [5.0, 4.5, 4.2, 4.0, 4.4],
}


def numbers(*shape):
    return torch.linspace(-2.0, 1.0, math.prod(shape)).view(shape)


def shares(n):
    return numbers(n).softmax(-1)


REPLIES = {"log_probs": -numbers(2, 3).exp(), "mask": torch.ones(2, 3, dtype=torch.bool)}
POLICY = REPLIES | {"old": -numbers(2, 3).exp() - 0.1, "advantages": numbers(2), "epsilon": 0.2}
LOGITS = {"logits": numbers(2, 5)}
AXES = {
    "log": FloatDistribution(1e-4, 1.0, log=True),
    "whole": IntDistribution(1, 9),
    "choices": CategoricalDistribution([1, 2]),
}
CALLS = {  # right arguments of all others
    "get_batch": {"tokens": torch.arange(20), "batch_size": 2, "sequence_length": 4, "seed": 0, "step": 1},
    "batch_size_at": {"step": 1, "config": RUNS},
    "text_batches": {"tokens": torch.arange(20), "config": RUNS, "sequence_length": 4, "n_processes": 1},
    "example_batches": {"examples": [EXAMPLE], "config": RUNS, "n_processes": 1},
    "pad": {"examples": [EXAMPLE, ([5], [6])]},
    "count_targets": {"examples": [EXAMPLE]},
    "fingerprint": {"tokens": torch.arange(20)},
    "fingerprint_examples": {"examples": [EXAMPLE]},
    "near_duplicates": {"texts": ["One text.", "One text!", "Another."]},
    "normal": {"text": "It is 5 o'clock."},
    "bits_per_byte": {"nats_per_token": 1.5, "n_tokens": 10, "n_bytes": 40},
    "overlap": {"text": "one two three", "seen": "one two four", "n": 2},
    "distinct_n": {"texts": ["one two", "one"], "n": 1},
    "unique_n": {"texts": ["one two", "one"], "n": 1},
    "naive_bayes": {"examples": [("where is it", "a"), ("who", "b")], "texts": ["where"]},
    "word_scores": {"examples": [("where is it", "a"), ("who", "b")], "texts": ["where"]},
    "classification_report": {"truth": ["a", "b"], "predicted": ["a", "a"], "labels": ["a", "b"]},
    "wilson_interval": {"right": 3, "n": 5, "level": 0.9},
    "exact_interval": {"right": 3, "n": 5, "level": 0.9},
    "share_interval": {"right": [True, False, True], "groups": ["a", "a", "b"], "level": 0.9},
    "holm": {"p_values": [0.01, 0.5, 0.02]},
    "examples_needed": {"first": 0.5, "second": 0.7, "power": 0.8, "level": 0.9},
    "kappa": {"first": ["a", "b", "a"], "second": ["a", "b", "b"]},
    "bootstrap_interval": {"values": [1.0, 2.0, 4.0], "level": 0.9, "n": 20, "seed": 1, "groups": [1, 2, 2]},
    "calibration_error": {"confidence": [0.5, 0.9], "correct": [True, False], "n_bins": 3},
    "fit_temperature": {"logits": numbers(3, 4), "targets": torch.tensor([0, 3, 1])},
    "model_card": {
        "name": "M",
        "description": "d",
        "intended_use": "u",
        "not_intended": "n",
        "training_data": "t",
        "conditions": ["plain"],
        "measurements": [("right", [1, 0, 1], "plain"), ("loss", [1.5, 0.2, 0.1], "plain", ["a", "b", "b"])],
        "limits": ["l"],
    },
    "reply_report": {"dialogues": [TALK], "replies": [TALK.reply]},
    "first_kept": {"length": 9, "window": 4},
    "apply_repetition_penalty": LOGITS | {"previous_ids": [[1, 2], [0, 0]], "penalty": 1.5},
    "apply_temperature": LOGITS | {"temperature": 0.7},
    "keep_top_k": LOGITS | {"k": 2},
    "keep_top_p": LOGITS | {"p": 0.8},
    "keep_min_p": LOGITS | {"min_p": 0.1},
    "keep_top_n_sigma": LOGITS | {"n": 1.0},
    "keep_typical_p": LOGITS | {"p": 0.8},
    "next_token_distribution": LOGITS
    | {"sampling": Sampling(0.8, 3, 0.9, 0.01, 1.2, None, 0.9, 2.0), "previous_ids": torch.tensor([[1, 2], [0, 0]])},
    "exponential_noise": {"shape": (2, 3), "generator": torch.Generator()},
    "sample": {"probabilities": shares(5), "noise": torch.ones(5)},
    "reward_loss": {"chosen": numbers(3), "rejected": -numbers(3)},
    "dpo_loss": {
        "chosen": -shares(3),
        "rejected": -shares(3),
        "ref_chosen": -shares(3),
        "ref_rejected": -shares(3),
        "beta": 0.3,
    },
    "group_advantages": {"rewards": numbers(2, 3), "scale": True},
    "policy_loss": POLICY | {"loss_type": "grpo", "max_length": 5},
    "clipped_share": POLICY,
    "kl_loss": REPLIES | {"reference": -numbers(2, 3).exp(), "loss_type": "dr_grpo", "max_length": 5},
    "optimal_policy": {"reference": shares(4), "rewards": numbers(4), "beta": 0.5},
    "best_of_n": {"reference": shares(4), "rewards": numbers(4), "n": 3},
    "t_interval": {"values": [1.0, 2.0, 4.0], "level": 0.9},
    "quantise": {"weight": numbers(2, 8), "bits": 4, "group": 4},
    "dequantise": {"codes": torch.ones(2, 2, 4, dtype=torch.int8), "scales": torch.ones(2, 2, 1)},
    "puzzles": {"n": 3, "seed": 1, "task": "largest", "shortest": 2},
    "puzzle_examples": {"made": [PUZZLE], "style": "some", "seed": 1},
    "read_answer": {"reply": [12, 5, 14]},
    "right_answer": {"made": [PUZZLE]},
    "pass_at_k": {"n": 5, "right": 2, "k": 3},
    "majority_right": {"votes": [3, 1, 0], "truth": 0, "k": 3, "n_trials": 20, "seed": 1},
    "fill_template": {"template": "{text}\n{label}", "text": "a word"},
    "canonical": {"text": "Ｍöre  ﬁles"},
    "leaks": {"text": "the s-e-c-r-e-t", "secret": "secret"},
    "redact": {"text": "a@b.de 4111 1111 1111 1111 DE89 3704 0044 0532 0130 00"},
    "exposure": {"canary": 1.0, "others": [0.5, 2.0]},
    "insert_canaries": {"lines": ["a", "b"], "repetitions": {"ANNA": 2}, "seed": 1},
    "deduplicated": {"texts": ["A b.", "a b"]},
    "perturb": {"text": "Where is my order 7?", "noise": "typos", "rng": np.random.default_rng(0), "rate": 0.5},
    "risky_requests": {"n": 2, "seed": 1, "split": "test"},
    "is_refusal": {"reply": "I'm sorry, but I can't"},
    "flops_per_token": {"config": CONFIG},
    "training_memory": {"config": CONFIG, "batch_size": 2, "gradient_checkpointing": True},
    "peak_memory": {"config": CONFIG, "batch_size": 2, "gradient_checkpointing": True},
    "device_memory": {
        "config": CONFIG,
        "batch_size": 2,
        "n_devices": 2,
        "strategy": "ZeRO-1",
        "gradient_checkpointing": True,
    },
    "extend": {"x0": 1.0, "loss0": 3.0, "x1": 2.0, "loss1": 2.5, "x": 4.0},
    "ruler": {"runs": [(1e5, 1e6, 4.0), (2e5, 1e6, 3.8), (2e5, 5e5, 4.1)], "n_parameters": 4e5, "n_tokens": 2e6},
    "interval_score": {"low": 1.0, "high": 2.0, "value": 2.5, "level": 0.9},
    "fit_scaling_law": SIZES,
    "bootstrap_laws": SIZES | {"n": 1, "seed": 1},
    "learning_rate_at": {"step": 5, "config": RUNS},
    "newton_schulz": {"matrix": numbers(2, 3), "steps": 2},
    "gpt3_learning_rate": {"n_parameters": 3e8},
    "gpt3_batch_size": {"n_parameters": 3e8},
    "transfer": {"config": RUNS, "tokens": 2.0, "depth": 2.0, "batch_exponent": 0.4},
    "for_horizon": {"config": RUNS, "tokens": 2.0},
    "for_batch_size": {"config": RUNS, "batch_size": 8},
    "for_depth": {"config": RUNS, "depth": 2.0},
    "beta2_of": {"half_life": 1000.0, "tokens_per_step": 64.0},
    "half_life_of": {"beta2": 0.95, "tokens_per_step": 64.0},
    "timescale": {"config": RUNS},
    "noise_scale_estimates": {"small_norm": 2.0, "big_norm": 1.0, "small": 4, "big": 16},
}
TEXT = NGrams([0, 1, 2, 1, 0, 1], 3, 2)
MORE = {  # classes, and methods
    "GPTConfig": (GPTConfig, SHAPE),
    "GPTConfig.gpt3": (GPTConfig.gpt3, {"name": "125M"}),
    "TrainingConfig": (TrainingConfig, {**vars(RUNS)}),
    "Sampling": (Sampling, {**vars(Sampling(seed=1))}),
    "GRPOConfig": (GRPOConfig, {name: value for name, value in vars(GRPOConfig()).items() if name != "advantages"}),
    "Budget": (Budget, {"minutes": None, "tokens": 1000, "examples": None, "run": 10}),
    "ScalingLaw": (ScalingLaw, {**vars(CHINCHILLA)}),
    "ScalingLaw.loss": (CHINCHILLA.loss, {"n_parameters": 1e6, "n_tokens": 1e7}),
    "ScalingLaw.compute_optimal": (CHINCHILLA.compute_optimal, {"flops": 1e15}),
    "BatchTradeOff": (BatchTradeOff, {"min_steps": 10.0, "critical_batch": 64.0}),
    "BatchTradeOff.steps": (BatchTradeOff(10.0, 64.0).steps, {"batch": 32.0}),
    "BatchTradeOff.tokens": (BatchTradeOff(10.0, 64.0).tokens, {"batch": 32.0}),
    "BatchTradeOff.fit": (BatchTradeOff.fit, {"batches": [1.0, 2.0, 4.0], "steps": [9.0, 5.0, 3.0]}),
    "NGrams": (NGrams, {"ids": [0, 1, 2, 1], "vocab_size": 3, "n": 2}),
    "NGrams.losses": (TEXT.losses, {"ids": [0, 1, 2]}),
    "NGrams.token_losses": (TEXT.token_losses, {"ids": [0, 1, 2]}),
    "NGrams.next_token_distribution": (TEXT.next_token_distribution, {"context": [0, 1]}),
}


def public_functions():
    modules = [importlib.import_module(f"gptcourse.{name}") for name in MODULES]
    own = [pair for m in modules for pair in vars(m).items() if getattr(pair[1], "__module__", "") == m.__name__]
    return {name: member for name, member in own if inspect.isfunction(member) and not name.startswith("_")}


FUNCTIONS = public_functions()
MORE |= {
    "check_tokens": (lambda tokens: FUNCTIONS["check_tokens"](tokens, 5, 2, "tokens"), {"tokens": [1, 2, 3]}),
    "check_examples": (lambda examples: FUNCTIONS["check_examples"](examples, 9, 4), {"examples": [EXAMPLE]}),
    "counted_rng": (lambda seed, step: FUNCTIONS["counted_rng"](seed, step), {"seed": 0, "step": 3}),
    "repeated_pieces": (
        lambda train, held_out: FUNCTIONS["repeated_pieces"](train, held_out),
        {"train": "abcd" * 30, "held_out": "abcd" * 15},
    ),
}
CASES = {label: (FUNCTIONS[label.split()[0]], right) for label, right in CALLS.items()} | MORE


# ---- What is typed

NUMBERS = [None, True, 0, 1, -1, 2, 2.0, 2.5, 7, math.nan, math.inf, -math.inf, 1e308, -1e308, 1e-320, 2**63, 10**400]
NUMBERS += [-(10**400), 10**5000, 1j, np.float32(0.5), np.int64(3), Fraction(1, 3), torch.tensor(2.0), torch.tensor(2)]
TENSORS = [torch.zeros(0), torch.arange(3), torch.zeros(2, 3, dtype=torch.bool), torch.full((2, 3), math.nan)]
TENSORS += [torch.zeros(2, 0), torch.zeros(3, dtype=torch.complex64), torch.ones(2, 3).half(), torch.ones(1, 1, 2)]
LISTS = [[], (), [1, 2], [1.5, math.nan], [[1], [2, 3]], ["a"], [None], [[]], {}, {"a": 1}, {1, 2}, range(3), [10**400]]
LISTS += [
    np.array([]),
    np.array([1.5, 2.0]),
    np.array(["a"]),
    np.array([[1, 2]]),
    np.array(3),
    [("a", "b")],
    [[1, 2]] * 3,
]
WORDS = ["", "5", "abc", "1e3", " ", "175B", "nan", b"abc", *(word for group in CHOICES.values() for word in group)]
WORDS += [*SHARDED, *NOISES, *STYLES, *TASKS, "train", "test"]
OBJECTS = [object(), len, CONFIG, RUNS, Sampling(temperature=0), PUZZLE, TALK, *AXES.values()]
OBJECTS += [GPTConfig(**dict.fromkeys(SHAPE, 2**62)), TrainingConfig(2**62, 2**62, 1e308, weight_decay=1e-320)]
OBJECTS += [TrainingConfig(10, 1, 1e-320, adam_beta2=0.0, weight_decay=0.0, lr_scheduler_type="constant")]
TYPED = NUMBERS + TENSORS + LISTS + WORDS + OBJECTS


def tensors_like(tensor):
    """Return what a tensor becomes by another type, another shape or other values."""
    types = [tensor.long(), tensor.bool(), tensor.half(), tensor.double(), tensor.to(torch.complex64), tensor.tolist()]
    shapes = [tensor[:0], tensor[:1], tensor[..., :1], tensor.flatten(), tensor[None], torch.cat([tensor, tensor])]
    return [*types, *shapes, tensor * math.nan, tensor * 1e38, 1 - tensor.float(), tensor * 0, tensor.numpy()]


def lists_like(values):
    """Return a strategy for lists with other entries, or with more or fewer of them."""
    entries = [*values]
    ways = [[], entries[1:], entries * 2, [entries], iter(entries), tuple(entries), set(map(str, entries))]
    return st.sampled_from(ways) | st.tuples(st.integers(0, len(entries) - 1), typed(entries[0])).map(
        lambda changed: [changed[1] if place == changed[0] else entry for place, entry in enumerate(entries)]
    )


def varied(value):
    """Return a strategy for what could stand in place of a right value: other right ones, and nearly right ones."""
    if isinstance(value, bool | int | float):
        return st.integers(-3, 12) | st.floats(-2, 12)
    if isinstance(value, str):
        return st.text(max_size=9) | st.sampled_from([*WORDS, value * 2])
    if isinstance(value, torch.Tensor):
        return st.sampled_from(tensors_like(value))
    return lists_like(value) if isinstance(value, list | tuple) else st.sampled_from(OBJECTS)


def typed(value):
    """Return a strategy for what a person may type where `value` is right."""
    return varied(value) | st.sampled_from(TYPED)


def arguments(right):
    """Return a strategy for right arguments of which none, one or two are another thing that a person may type."""
    others = {name: typed(value) for name, value in right.items()}
    names = st.lists(st.sampled_from(sorted(right)), max_size=2, unique=True)
    return names.flatmap(lambda names: st.fixed_dictionaries({name: others[name] for name in names}))


# ---- What comes out


def judge(function, given):
    """Call a function. AssertionError if what it raises is not one sentence that a line of ours raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            function(**given)
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            ours = PACKAGE in Path(last.filename).parents and last.line.startswith("raise ")
            says = f"{type(error).__name__}: {error}"
            assert isinstance(error, ValueError) and ours, f"{last.filename}:{last.lineno}: {says}"
            assert re.fullmatch(r"[^\n]{20,400}[.]", str(error)), f"This is no sentence: {says}"


def search(function, right, n):
    """Judge n calls of a function with right and wrong arguments, always the same ones."""

    @settings(max_examples=n, deadline=None, derandomize=True, database=None, report_multiple_bugs=False)
    @given(arguments(right))
    def calls(changed):
        judge(function, copy.deepcopy(right | changed))

    calls()


@pytest.fixture(autouse=True)
def quick_fits(monkeypatch):
    """Let a law be what the fit begins with: here what comes out need not be near any runs."""
    monkeypatch.setattr(scaling, "_fit", lambda log_n, log_d, log_loss, start: (0.0, [*start]))


@pytest.mark.parametrize("label", sorted(CASES))
def test_right_arguments_are_taken(label):
    function, right = CASES[label]
    function(**copy.deepcopy(right))


@pytest.mark.parametrize("label", sorted(CASES))
def test_bad_input_gives_a_result_or_one_sentence(label):
    search(*CASES[label], 20)


@pytest.mark.long
@pytest.mark.parametrize("label", sorted(CASES))
def test_much_bad_input_gives_a_result_or_one_sentence(label):
    search(*CASES[label], 500)


def test_every_public_function_of_these_modules_is_called_or_left_out_by_name():
    called = {label.split()[0] for label in CASES}
    assert FUNCTIONS.keys() == {name for name in called if name in FUNCTIONS} | {*LEFT_OUT}
    assert not called & {*LEFT_OUT}


@pytest.mark.parametrize(
    ("function", "right"),
    [
        (lambda values: sum(values) / len(values), {"values": [1.0, 2.0]}),
        (lambda tensor: tensor.mean().item(), {"tensor": numbers(3)}),
        (lambda number: math.sqrt(number), {"number": 4.0}),  # "math domain error" is a ValueError, but not ours
        (lambda text: text.upper(), {"text": "word"}),
    ],
)
def test_a_function_without_checks_is_found_out(function, right):
    judge(function, right)
    with pytest.raises(AssertionError):
        search(function, right, 20)


def refused(sentence):
    raise ValueError(sentence)


def test_warnings_errors_of_others_and_words_that_are_no_sentence_are_found_out(monkeypatch):
    for fault in (
        lambda: np.log(np.zeros(1)),
        lambda: np.zeros(3).reshape(2),
        lambda: refused("n is 2, but must be 1."),
    ):
        with pytest.raises(AssertionError):
            judge(fault, {})
    monkeypatch.setitem(globals(), "PACKAGE", Path(__file__).parent)
    judge(lambda: refused("The number of parts is 2, but it must be 1."), {})
    for words in ("bad", "The number of parts is 2, but it must be 1", "The parts\nare 2, but they must be 1."):
        with pytest.raises(AssertionError):
            judge(lambda words=words: refused(words), {})
