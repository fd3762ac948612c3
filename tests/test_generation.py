"""Generation against independent truths: transformers' processors and `generate`, and slow rewrites of the rules."""

import itertools
import math
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MptConfig,
    MptForCausalLM,
)
from transformers.generation import logits_process

from gptcourse.generation import (
    Sampling,
    context_window,
    exponential_noise,
    generate,
    global_random,
    keep_top_n_sigma,
    next_token_distribution,
    only_tokens_of,
    sample,
    stream,
)
from gptcourse.model import GPT, GPTConfig
from gptcourse.tokenizers import CharTokenizer
from gptcourse.training import TrainingConfig, train

VOCAB = 23
WINDOW = 16
GREEDY = Sampling(temperature=0)
PROMPTS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5, 8, 9, 7, 9, 3]]


def tiny_gpt2(n_positions=64):
    torch.manual_seed(7)
    # A wide initialisation: with the usual one all logits are nearly equal and greedy text repeats one token.
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB,
            n_positions=n_positions,
            n_embd=32,
            n_layer=2,
            n_head=4,
            initializer_range=0.4,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
        )
    ).eval()


def tiny_llama(n_positions=64):
    torch.manual_seed(8)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            max_position_embeddings=n_positions,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.4,
            bos_token_id=None,
            eos_token_id=None,
        )
    ).eval()


def tiny_rotary(n_positions=64):
    torch.manual_seed(9)
    options = {"position_embedding": "rotary", "norm": "rmsnorm", "qk_norm": True, "initializer_range": 0.4}
    return GPT(GPTConfig(VOCAB, n_positions, 32, 2, 4, **options)).eval()


MODELS = {
    "ours": lambda n_positions=64: GPT.from_transformers(tiny_gpt2(n_positions)),
    "ours, rotary": tiny_rotary,
    "GPT-2": tiny_gpt2,
    "Llama": tiny_llama,
}


@pytest.fixture(params=MODELS)
def make_model(request):
    return MODELS[request.param]


def greedy_by_transformers(hf, prompt, max_new_tokens, eos_token_id=None):
    prompt = torch.tensor(prompt)
    return hf.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=eos_token_id,
        pad_token_id=eos_token_id,
    )


def slow_greedy(model, prompt, max_new_tokens, window=math.inf):
    """Feed the text token by token; when one more does not fit the window, go on with its last half-window."""
    text, context = list(prompt), []
    for position in range(len(prompt) + max_new_tokens):
        if position == len(text):
            with torch.no_grad():
                text.append(model(torch.tensor([context])).logits[0, -1].argmax().item())
        context.append(text[position])
        if len(context) > window:
            context = context[-(int(window) // 2) :]
    return text


# ---- distributions


def by_transformers(logits, sampling, previous_ids):
    """Run transformers' own chain, each processor where transformers accepts the setting."""
    processors = [logits_process.RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty))]
    processors.append(logits_process.TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k:
        processors.append(logits_process.TopKLogitsWarper(sampling.top_k))
    processors.append(logits_process.TopPLogitsWarper(sampling.top_p))
    processors.append(logits_process.MinPLogitsWarper(sampling.min_p))
    if 0 < sampling.typical_p < 1:
        processors.append(logits_process.TypicalLogitsWarper(sampling.typical_p))
    scores = logits.clone()
    for processor in processors:
        scores = processor(previous_ids, scores)
    return scores.softmax(-1)


def grid_of_logits():
    torch.manual_seed(0)
    random = torch.randn(3, VOCAB) * 3
    masked = random.clone()
    masked[:, ::3] = -math.inf
    single = torch.full((3, VOCAB), -math.inf)
    single[:, 5] = -2.0
    quarters = torch.full((3, VOCAB), -math.inf)
    quarters[:, 3:7] = 1.0
    return {
        "random": random,
        "ties": random.round(),
        "all equal": torch.zeros(3, VOCAB),
        "-inf": masked,
        "-inf and ties": masked.round(),
        "one possible": single,
        "four equal": quarters,  # top_p = 0.5 then falls exactly on a step
        "float64": random.double(),
        "very sharp": random * 100,
    }


@pytest.mark.parametrize("kind", grid_of_logits())
def test_distribution_equals_transformers_chain(kind):
    logits = grid_of_logits()[kind]
    previous = torch.tensor([[0, 5, 5, 22], [1, 2, 3, 4], [7, 7, 7, 7]])
    grid = itertools.product([0.3, 1.7], [0, 4, 100], [0, 0.5, 0.9, 1], [0, 0.05, 1], [1, 1.3, 0.7])
    for knobs in grid:
        sampling = Sampling(*knobs)
        expected = by_transformers(logits, sampling, previous)
        given_logits = logits.clone()
        torch.testing.assert_close(
            next_token_distribution(given_logits, sampling, previous), expected, msg=lambda m, s=sampling: f"{s}: {m}"
        )
        assert torch.equal(given_logits, logits), "the logits passed in were changed"
        one = next_token_distribution(logits[1], sampling, previous[1].tolist())
        assert one.shape == (VOCAB,)
        torch.testing.assert_close(one, expected[1])


@pytest.mark.parametrize("kind", grid_of_logits())
def test_locally_typical_equals_transformers_after_the_other_rules(kind):
    logits, previous = grid_of_logits()[kind], torch.tensor([[0, 5, 5, 22], [1, 2, 3, 4], [7, 7, 7, 7]])
    for knobs in itertools.product([0.3, 1.7], [0, 4], [0.9, 1], [0, 0.05], [1, 1.3], [None], [0.05, 0.5, 0.9, 0.999]):
        sampling = Sampling(*knobs)
        expected = by_transformers(logits, sampling, previous)
        torch.testing.assert_close(next_token_distribution(logits, sampling, previous), expected)
        assert next_token_distribution(logits[1], sampling, previous[1]).shape == (VOCAB,)


def test_typical_may_drop_the_best_token_and_keeps_one_even_at_zero():
    probabilities = torch.tensor([0.5, *[0.05] * 10])  # entropy 1.84 nats; the surprises are 0.69 and 3.00
    assert (next_token_distribution(probabilities.log(), Sampling(typical_p=0.2)) > 0).tolist() == [True] + [False] * 10
    many = torch.tensor([0.3, *[0.01] * 70])  # 3.58 nats; 1.20 and 4.61: the many are nearer
    kept = next_token_distribution(many.log(), Sampling(typical_p=0.5)) > 0
    assert not kept[0] and kept[1:].all()
    assert (next_token_distribution(torch.tensor([0.0, 1.0, 5.0]), Sampling(typical_p=0)) > 0).sum() == 1


@pytest.mark.parametrize("n", [0.5, 1.0, 3.0])
def test_top_n_sigma_is_a_threshold_in_standard_deviations_whatever_the_temperature(n):
    for logits in grid_of_logits().values():
        kept = keep_top_n_sigma(logits, n) > -math.inf
        for row, keeps in zip(logits.tolist(), kept, strict=True):
            deviation = np.std([x for x in row if x > -math.inf])
            wanted = [x > -math.inf and x >= max(row) - n * deviation - 1e-6 for x in row]
            assert keeps.tolist() == wanted
        assert torch.equal(keep_top_n_sigma(logits / 2, n) > -math.inf, kept)
        hot = next_token_distribution(logits, Sampling(temperature=2.0, top_n_sigma=n))
        assert torch.equal(hot, keep_top_n_sigma(logits / 2, n).softmax(-1))


def test_zero_temperature_is_arg_max_after_the_penalty():
    logits = torch.tensor([2.0, 1.9, -1.0])
    assert next_token_distribution(logits, GREEDY).tolist() == [1, 0, 0]
    penalised = Sampling(temperature=0, repetition_penalty=1.5)
    assert next_token_distribution(logits, penalised, [0]).tolist() == [0, 1, 0]
    assert next_token_distribution(-logits, penalised, [2, 2]).tolist() == [0, 0, 1]


def test_tiny_temperatures_approach_the_arg_max_without_overflow():
    logits = torch.tensor([[3.0, 80.0, -5.0, 80.0], [1.0, 2.0, 2.5, -math.inf]])
    expected = torch.tensor([[0, 0.5, 0, 0.5], [0, 0, 1, 0]])
    for temperature in (1e-3, 1e-7, 1e-38, 5e-324):
        torch.testing.assert_close(next_token_distribution(logits, Sampling(temperature=temperature)), expected)


def test_half_precision_logits_are_computed_in_float32():
    logits = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(1)).bfloat16()
    sampling = Sampling(0.7, top_p=0.8)
    assert torch.equal(next_token_distribution(logits, sampling), next_token_distribution(logits.float(), sampling))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(), Sampling(top_k=2), Sampling(top_p=0.5)])
def test_logits_that_are_no_numbers_are_refused(bad, sampling):
    with pytest.raises(ValueError, match="NaN or infinity"):
        next_token_distribution(torch.tensor([[0.0, 1.0, 2.0], [0.0, bad, 1.0]]), sampling)


def test_logits_that_leave_no_token_are_refused():
    with pytest.raises(ValueError, match="infinity"):
        next_token_distribution(torch.full((4,), -math.inf), Sampling())
    with pytest.raises(ValueError, match="floating-point"):
        next_token_distribution(torch.tensor([1, 2, 3]), Sampling())


@pytest.mark.parametrize("previous", [[5], [-1], [[0, 1]], [[0], [1]]])
def test_previous_ids_that_do_not_fit_are_refused(previous):
    with pytest.raises(ValueError, match="previous_ids"):
        next_token_distribution(torch.zeros(5), Sampling(repetition_penalty=2.0), previous)


def test_no_previous_ids_means_no_penalty():
    logits = torch.tensor([1.0, 2.0, 3.0])
    for previous in (None, []):
        penalised = next_token_distribution(logits, Sampling(repetition_penalty=2.0), previous)
        assert torch.equal(penalised, logits.softmax(-1))


some_logits = st.lists(
    st.one_of(st.integers(-5, 5).map(float), st.floats(-30, 30, width=32)), min_size=1, max_size=12
).map(torch.tensor)
shares = st.floats(0, 1)


@settings(deadline=None, derandomize=True)
@given(some_logits, st.floats(0, 5), st.integers(0, 15), shares, shares, st.floats(0.5, 2))
def test_distribution_sums_to_one_and_keeps_a_best_token(logits, temperature, top_k, top_p, min_p, penalty):
    sampling = Sampling(temperature, top_k, top_p, min_p, penalty)
    probabilities = next_token_distribution(logits, sampling)
    assert probabilities.shape == logits.shape
    torch.testing.assert_close(probabilities.sum(), torch.tensor(1.0))
    assert logits[probabilities.argmax()] >= logits.max() - 1e-5
    if top_k:
        kth = logits.sort(descending=True).values[min(top_k, len(logits)) - 1]
        assert (probabilities[logits < kth] == 0).all()


@settings(deadline=None, derandomize=True)
@given(some_logits, shares, shares)
def test_a_larger_top_p_keeps_more_tokens(logits, a, b):
    small, large = (next_token_distribution(logits, Sampling(top_p=p)) > 0 for p in sorted((a, b)))
    assert (small <= large).all()


@settings(deadline=None, derandomize=True)
@given(some_logits, shares)
def test_top_p_keeps_the_smallest_set_that_holds_p(logits, p):
    probabilities = logits.double().softmax(-1)
    kept = next_token_distribution(logits.double(), Sampling(top_p=p)) > 0
    mass = probabilities[kept].sum()
    assert mass >= p - 1e-9
    assert kept.sum() == 1 or mass - probabilities[kept].min() <= p + 1e-9, "one token fewer would have been enough"


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": v} for v in (-0.1, math.nan, math.inf, "1", None, True)]
    + [{"top_k": v} for v in (-1, 2.5, None)]
    + [{name: v} for name in ("top_p", "min_p") for v in (-0.1, 1.1, math.nan, None)]
    + [{"typical_p": v} for v in (-0.1, 1.1, math.nan, None)]
    + [{"top_n_sigma": v} for v in (-0.1, math.inf, math.nan, None)]
    + [{"repetition_penalty": v} for v in (0, -1, math.inf, math.nan)]
    + [{"seed": v} for v in (0.5, "a", -1, 2**64, True, np.int64(-1), np.float64(3.5))],
)
def test_sampling_refuses_values_out_of_range(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"^{name} is .*must be .*\\.$"):
        Sampling(**wrong)


@pytest.mark.parametrize("seed", [0, 5, 2**63, 2**64 - 1])
def test_every_seed_that_torch_takes_is_allowed_from_numpy_too(seed):
    model = MODELS["ours"]()
    sampling = Sampling(seed=np.uint64(seed))
    assert type(sampling.seed) is int and sampling == Sampling(seed=seed)
    assert generate(model, [1], 20, sampling) == generate(model, [1], 20, Sampling(seed=seed))
    assert generate(model, [1], 20, sampling) != generate(model, [1], 20, Sampling(seed=seed ^ 1))


# ---- drawing


def test_draw_follows_the_probabilities():
    n = 200_000
    probabilities = torch.tensor([0.5, 0.25, 0.0, 0.2, 0.049, 0.001])
    noise = exponential_noise((n, 6), torch.Generator().manual_seed(3))
    counts = torch.bincount(sample(probabilities.expand(n, -1), noise), minlength=6).double()
    assert counts[2] == 0
    expected = (probabilities.double() * n)[[0, 1, 3, 4, 5]]
    chi_square = ((counts[[0, 1, 3, 4, 5]] - expected) ** 2 / expected).sum()
    assert chi_square < 18.47  # the 0.999 quantile for 4 degrees of freedom


def test_the_same_noise_gives_comparable_draws():
    """A cut that leaves the drawn token in never changes the draw: the others only became less likely."""
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(500, VOCAB, generator=generator)
    noise = exponential_noise((500, VOCAB), generator)
    before = sample(next_token_distribution(logits, Sampling()), noise)
    cut = next_token_distribution(logits, Sampling(top_p=0.8))
    after = sample(cut, noise)
    stays = cut.gather(1, before[:, None])[:, 0] > 0
    assert 0 < stays.sum() < 500
    assert torch.equal(after == before, stays)


def test_sampled_frequencies_follow_the_distribution_of_the_model():
    model = MODELS["ours"]()
    sampling = Sampling(1.3, top_k=12, top_p=0.95, min_p=0.01, repetition_penalty=1.2, seed=11)
    prompt = [3, 1, 4]
    n = 6_000
    with torch.no_grad():
        expected = n * next_token_distribution(model(torch.tensor([prompt])).logits[0, -1], sampling, prompt).double()
    drawn = generate(model, torch.tensor([prompt]).expand(n, -1), 1, sampling)[:, -1]
    counts = torch.bincount(drawn, minlength=VOCAB).double()
    possible = expected > 0
    assert possible.sum() >= 3 and counts[~possible].sum() == 0
    chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    degrees = possible.sum().item() - 1
    assert chi_square < degrees + 4.5 * math.sqrt(2 * degrees)


# ---- generate


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("kind", ["ours", "GPT-2", "Llama"])
def test_greedy_equals_transformers_token_for_token(kind, use_cache):
    model = MODELS[kind]()
    hf = tiny_gpt2() if kind == "ours" else model
    for prompts in ([PROMPTS[0]], [[7]], [PROMPTS[0], PROMPTS[0][::-1]]):
        expected = greedy_by_transformers(hf, prompts, 30)
        assert expected.unique().numel() > 4, "the text is too dull to tell anything"
        assert torch.equal(generate(model, torch.tensor(prompts), 30, GREEDY, use_cache=use_cache), expected)


def test_greedy_with_a_repetition_penalty_equals_transformers():
    hf, prompt = tiny_gpt2(), torch.tensor([PROMPTS[0]])
    expected = hf.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=30,
        do_sample=False,
        repetition_penalty=1.5,
        pad_token_id=0,
    )
    ours = generate(GPT.from_transformers(hf), prompt, 30, Sampling(temperature=0, repetition_penalty=1.5))
    assert torch.equal(ours, expected)
    assert not torch.equal(ours, greedy_by_transformers(hf, prompt.tolist(), 30))


@pytest.mark.parametrize("use_cache", [True, False])
def test_prompts_of_unequal_length_are_continued_as_if_alone(make_model, use_cache):
    model = make_model()
    together = generate(model, PROMPTS, 12, GREEDY, use_cache=use_cache)
    assert together == [slow_greedy(model, prompt, 12) for prompt in PROMPTS]


def test_short_continuations_of_very_unequal_prompts(make_model):
    """The short row has ended long before the long one begins."""
    model = make_model()
    prompts = [[4, 2], list(range(20)), [5]]
    together = generate(model, prompts, 2, GREEDY)
    assert together == [slow_greedy(model, prompt, 2) for prompt in prompts]


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("length", [1, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW])
def test_past_the_window_its_last_half_is_kept(make_model, length, use_cache):
    model = make_model(WINDOW)
    prompt = torch.randint(VOCAB, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    expected = slow_greedy(model, prompt, 2 * WINDOW, WINDOW)
    assert generate(model, prompt, 2 * WINDOW, GREEDY, use_cache=use_cache) == expected


@pytest.mark.parametrize("window", [2, 3, 7])
def test_odd_and_very_small_windows(window):
    model = MODELS["ours"](window)
    assert generate(model, [1, 2], 20, GREEDY) == slow_greedy(model, [1, 2], 20, window)


def test_a_window_of_one_token_sees_only_the_last():
    model = MODELS["ours"](1)
    text = generate(model, [1, 2, 3], 5, GREEDY)
    with torch.no_grad():
        best = [model(torch.tensor([[token]])).logits.argmax().item() for token in text[2:-1]]
    assert text[3:] == best


def test_a_batch_past_the_window_is_continued_as_if_alone(make_model):
    model = make_model(WINDOW)
    prompts = [list(range(20)), [5, 3], list(range(WINDOW)), [7] * 40]
    together = generate(model, prompts, WINDOW + 5, GREEDY)
    assert together == [slow_greedy(model, prompt, WINDOW + 5, WINDOW) for prompt in prompts]


def test_writing_in_two_goes_equals_writing_in_one(make_model):
    model = make_model(WINDOW)
    for first in (3, 31):
        assert generate(model, generate(model, [1, 2], first, GREEDY), 40 - first, GREEDY) == generate(
            model, [1, 2], 40, GREEDY
        )


def test_sampling_does_not_depend_on_the_cache(make_model):
    model = make_model(WINDOW)
    sampling = Sampling(1.2, top_p=0.95, seed=5)
    cached = generate(model, PROMPTS, 25, sampling)
    assert cached == generate(model, PROMPTS, 25, sampling, use_cache=False)
    assert cached != generate(model, PROMPTS, 25, Sampling(1.2, top_p=0.95, seed=6))


def test_rows_of_a_batch_are_drawn_independently():
    rows = generate(MODELS["ours"](), [[3, 1]] * 8, 20, Sampling(seed=0))
    assert len(set(map(tuple, rows))) == 8


# ---- end tokens


def a_greedy_end_token(model, prompt):
    """Return a token that greedy text contains for the first time after a few others."""
    written = slow_greedy(model, prompt, 12)[len(prompt) :]
    return next(token for token in written[3:] if token not in written[:3])


def test_a_row_ends_with_the_end_token_it_draws(make_model):
    model = make_model()
    end = a_greedy_end_token(model, PROMPTS[0])
    for row, prompt in zip(generate(model, PROMPTS, 12, GREEDY, eos_token_id=end), PROMPTS, strict=True):
        written = slow_greedy(model, prompt, 12)[len(prompt) :]
        stop = written.index(end) + 1 if end in written else 12
        assert row == prompt + written[:stop]


def test_ended_rows_of_a_tensor_are_filled_as_transformers_fills_them():
    hf = tiny_gpt2()
    prompts = [PROMPTS[0], PROMPTS[0][::-1], [2, 2, 2, 2, 2]]
    end = a_greedy_end_token(hf, prompts[0])
    expected = greedy_by_transformers(hf, prompts, 12, eos_token_id=end)
    for model in (hf, GPT.from_transformers(hf)):
        assert torch.equal(generate(model, torch.tensor(prompts), 12, GREEDY, eos_token_id=end), expected)
    alone = generate(hf, torch.tensor(prompts[0]), 12, GREEDY, eos_token_id=end)
    assert alone[-1] == end and len(alone) < len(prompts[0]) + 12


def test_an_end_token_in_the_prompt_ends_nothing(make_model):
    model = make_model()
    end = a_greedy_end_token(model, PROMPTS[0])
    prompts = [[end], [1, end, end], [end, 2, 3, end, 5]]
    rows = generate(model, prompts, 4, GREEDY, eos_token_id=end)
    for row, prompt in zip(rows, prompts, strict=True):
        assert row[: len(prompt)] == prompt and len(row) > len(prompt)
        assert row == slow_greedy(model, prompt, 4)[: len(row)]


def test_writing_stops_when_every_row_has_ended():
    model = MODELS["ours"]()
    end = a_greedy_end_token(model, PROMPTS[0])
    row = generate(model, PROMPTS[0], 10**6, GREEDY, eos_token_id=end)
    assert row[-1] == end and row == slow_greedy(model, PROMPTS[0], 12)[: len(row)]


# ---- stream, kinds of input, modes


def test_stream_yields_what_generate_appends(make_model):
    model = make_model(WINDOW)
    sampling = Sampling(seed=3)
    end = generate(model, PROMPTS[0], 20, sampling)[-1]
    for prompt, options in itertools.product((PROMPTS[0], torch.tensor([PROMPTS[0]])), ({}, {"eos_token_id": end})):
        expected = generate(model, PROMPTS[0], 20, sampling, **options)
        assert PROMPTS[0] + list(stream(model, prompt, 20, sampling, **options)) == expected


def test_stream_computes_only_the_tokens_that_are_asked_for():
    model = MODELS["ours"]()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    tokens = stream(model, [1, 2, 3], 10**6, GREEDY)
    assert not calls
    next(tokens), next(tokens)
    assert len(calls) == 2


def test_with_the_cache_each_token_is_read_once():
    model = MODELS["ours"]()
    read = []
    model.register_forward_pre_hook(lambda _, arguments: read.append(arguments[0].shape[1]))
    generate(model, PROMPTS[0], 6, GREEDY)
    assert read == [5, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("use_cache", [True, False])
def test_only_the_last_position_is_read_out(make_model, use_cache):
    model = make_model(WINDOW)
    read_out = []
    model.lm_head.register_forward_hook(lambda _, __, logits: read_out.append(logits.shape[1]))
    generate(model, PROMPTS[0], 2 * WINDOW, GREEDY, use_cache=use_cache)
    assert read_out == [1] * 2 * WINDOW


SHAPES = [
    {},
    {"activation_function": "relu2"},
    {"position_embedding": "rotary"},
    {"norm": "rmsnorm"},
    {"qk_norm": True},
    {"tie_word_embeddings": False},
    {"activation_function": "relu2", "position_embedding": "rotary", "norm": "rmsnorm", "qk_norm": True},
]


@pytest.mark.parametrize("options", SHAPES, ids=str)
def test_a_token_at_a_time_equals_all_at_once_for_every_shape_of_model(options):
    torch.manual_seed(10)
    # In float64, as float32 rounds one row at a time and many at once differently.
    model = GPT(GPTConfig(VOCAB, WINDOW, 32, 2, 4, initializer_range=0.4, **options)).double().eval()
    ids = torch.randint(VOCAB, (3, WINDOW))
    cache = model.new_cache(3)
    with torch.no_grad():
        steps = [model(ids[:, t : t + 1], cache=cache, logits_to_keep=1).logits for t in range(WINDOW)]
        torch.testing.assert_close(torch.cat(steps, dim=1), model(ids).logits)
    prompts = ids[:, :5].tolist()
    written = generate(model, prompts, 2 * WINDOW, GREEDY)  # past the window, too
    assert written == [slow_greedy(model, prompt, 2 * WINDOW, WINDOW) for prompt in prompts]


@pytest.mark.parametrize("use_cache", [True, False])
def test_hooks_change_what_is_written(use_cache):
    """A head that a hook switches off stays off while writing, with the cache and without."""

    def silence(_module, inputs):
        heads = inputs[0].unflatten(-1, (4, 8)).clone()
        heads[..., 1, :] = 0
        return (heads.flatten(-2),)

    model, plain = MODELS["ours"](), MODELS["ours"]()
    for block in model.h:
        block.attn.c_proj.register_forward_pre_hook(silence)
    with torch.no_grad():
        for block in plain.h:
            block.attn.c_proj.weight[:, 8:16] = 0  # the same, without hooks: what the head says is read by nobody
    written = generate(model, PROMPTS, 20, GREEDY, use_cache=use_cache)
    assert written == [slow_greedy(plain, prompt, 20) for prompt in PROMPTS]
    assert written != generate(MODELS["ours"](), PROMPTS, 20, GREEDY)


def test_result_is_of_the_kind_of_the_prompt():
    model = MODELS["ours"]()
    expected = slow_greedy(model, [3, 1], 4)
    assert generate(model, [3, 1], 4, GREEDY) == expected
    assert generate(model, [[3, 1]], 4, GREEDY) == [expected]
    for dtype in (torch.int64, torch.int32):
        for shape in ((2,), (1, 2)):
            result = generate(model, torch.tensor([3, 1], dtype=dtype).reshape(shape), 4, GREEDY)
            assert result.dtype == dtype and result.shape == (*shape[:-1], 6)
            assert result.flatten().tolist() == expected


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint16])
@pytest.mark.parametrize("shape", [(2,), (1, 2)])
def test_an_array_is_answered_by_an_array(dtype, shape):
    model = MODELS["ours"]()
    prompt = np.array([3, 1], dtype=dtype).reshape(shape)
    result = generate(model, prompt, np.int64(4), GREEDY)
    assert result.dtype == dtype and result.shape == (*shape[:-1], 6)
    assert result.flatten().tolist() == slow_greedy(model, [3, 1], 4)
    assert list(stream(model, prompt, 4, GREEDY)) == result.flatten().tolist()[2:]


def test_ended_rows_of_an_array_are_filled_like_those_of_a_tensor():
    model = MODELS["ours"]()
    prompts = [PROMPTS[0], [2, 2, 2, 2, 2]]
    end = a_greedy_end_token(model, prompts[0])
    expected = generate(model, torch.tensor(prompts), 12, GREEDY, eos_token_id=end)
    assert generate(model, np.array(prompts), 12, GREEDY, eos_token_id=np.int64(end)).tolist() == expected.tolist()


@pytest.mark.parametrize(
    "batch",
    [
        ((3, 1), (9,)),
        [(3, 1), [9]],
        ([np.int64(3), np.int32(1)], [np.uint8(9)]),
        [np.array([3, 1]), torch.tensor([9])],
    ],
    ids=str,
)
def test_tuples_and_rows_of_any_kind_are_answered_by_lists_of_ints(batch):
    model = MODELS["ours"]()
    together = generate(model, batch, 4, GREEDY)
    assert together == [slow_greedy(model, [3, 1], 4), slow_greedy(model, [9], 4)]
    assert {type(token) for row in together for token in row} == {int}
    assert generate(model, batch[0] if isinstance(batch[0], tuple) else (3, 1), 4, GREEDY) == together[0]


@pytest.mark.parametrize("ids", [torch.tensor([1], dtype=torch.uint8), np.array([1], dtype=np.int8)], ids=str)
def test_ids_of_a_type_too_small_for_the_vocabulary_are_refused_before_writing(ids):
    model = GPT(GPTConfig(300, 8, 4, 1, 1))
    model.register_forward_hook(lambda *_: pytest.fail("it wrote"))
    with pytest.raises(ValueError, match="cannot hold token 299"):
        generate(model, ids, 3)


def test_no_new_tokens_gives_a_copy_of_the_prompt():
    model = MODELS["ours"]()
    prompt = [[1, 2], [3]]
    result = generate(model, prompt, 0)
    assert result == prompt and result[0] is not prompt[0]
    assert list(stream(model, [1, 2], 0)) == []


def test_prompts_are_left_as_they_were():
    model = MODELS["ours"]()
    prompts, tensor = [[1, 2], [3]], torch.tensor([1, 2])
    generate(model, prompts, 5, GREEDY)
    generate(model, tensor, 5, GREEDY)
    assert prompts == [[1, 2], [3]] and tensor.tolist() == [1, 2]


def with_dropout():
    torch.manual_seed(0)
    return GPT(GPTConfig(VOCAB, 64, 32, 2, 4, dropout=0.5, initializer_range=0.4))


@pytest.mark.parametrize("max_new_tokens", [10, 30])  # by torch, by the decoder
def test_writing_is_without_dropout_and_never_changes_the_model(max_new_tokens):
    model = with_dropout().eval()
    expected = generate(model, [1, 2], max_new_tokens, GREEDY)
    model.train()
    model.h[0].eval()
    modes = [module.training for module in model.modules()]
    assert generate(model, [1, 2], max_new_tokens, GREEDY) == expected
    suspended = stream(model, [1, 2], max_new_tokens, GREEDY)
    assert [1, 2, next(suspended), next(suspended)] == expected[:4]
    assert [module.training for module in model.modules()] == modes, "changed while a stream is suspended"
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_two_streams_on_one_model_taken_by_turns_are_what_each_is_alone():
    model = with_dropout().train()
    settings = Sampling(seed=1), Sampling(0.8, top_p=0.9, seed=2)
    alone = [list(stream(model, [3, 1], 30, sampling)) for sampling in settings]
    by_turns = zip(*(stream(model, [3, 1], 30, sampling) for sampling in settings), strict=True)
    assert [list(tokens) for tokens in zip(*by_turns, strict=True)] == alone


def test_writing_in_another_thread_leaves_training_with_dropout_as_it_is():
    def weights_after_training(model):
        train(model, torch.arange(200) % VOCAB, TrainingConfig(30, 4, 1e-2, sequence_length=16), progress=False)
        return model.state_dict()

    alone, model, stop = weights_after_training(with_dropout()), with_dropout(), threading.Event()

    def write():
        while not stop.is_set():
            generate(model, [1, 2], 25, Sampling(seed=0))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        together = weights_after_training(model)
    finally:
        stop.set()
        thread.join()
    assert all(torch.equal(alone[name], together[name]) for name in alone)


def test_a_call_without_a_seed_does_not_depend_on_what_else_draws_meanwhile():
    model = MODELS["ours"]()
    torch.manual_seed(1)
    expected = list(stream(model, [1], 20))
    torch.manual_seed(1)
    tokens = stream(model, [1], 20)
    torch.rand(5)  # before the first token
    first = next(tokens)
    torch.rand(5)
    assert [first, *tokens] == expected
    torch.manual_seed(1)
    assert generate(model, [1], 20) == [1, *expected]


def test_a_call_without_a_seed_waits_while_training_holds_the_global_generator():
    model, written = MODELS["ours"](), []
    thread = threading.Thread(target=lambda: written.append(generate(model, [1], 5)))
    with global_random:
        torch.manual_seed(3)
        thread.start()
        thread.join(0.2)
        drawn = torch.rand(4)
    thread.join()
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(4)) and len(written[0]) == 6


def test_greedy_text_and_seeded_text_leave_the_global_generator_alone():
    model, before = MODELS["ours"](), torch.get_rng_state()
    generate(model, [1], 30, GREEDY)
    generate(model, [1], 30, Sampling(seed=0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", ["ours", "GPT-2"])
def test_compiled_and_wrapped_models_write_what_the_model_writes(kind):
    model = MODELS[kind]()
    expected = generate(model, PROMPTS[0], 30, GREEDY)
    wrapped = nn.DataParallel(model)
    for other in (torch.compile(model), wrapped, torch.compile(wrapped)):
        assert generate(other, PROMPTS[0], 30, GREEDY) == expected
        assert PROMPTS[0] + list(stream(other, PROMPTS[0], 30, GREEDY)) == expected
        assert context_window(other) == 64


# ---- transformers' other models


def test_a_model_whose_config_names_no_window_is_told_apart_and_can_be_given_one():
    torch.manual_seed(0)
    hf = BloomForCausalLM(BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.4))
    with pytest.raises(ValueError, match=r"^The config of this BloomForCausalLM names no context window: set .*\.$"):
        generate(hf.eval(), [1], 3)
    hf.config.max_position_embeddings = 64
    assert (
        generate(hf, torch.tensor(PROMPTS[:1]), 12, GREEDY).tolist()
        == greedy_by_transformers(hf, PROMPTS[:1], 12).tolist()
    )


def test_a_window_is_found_under_the_other_names_that_models_give_it():
    assert context_window(MptForCausalLM(MptConfig(d_model=8, n_heads=2, n_layers=1, max_seq_len=77))) == 77


class Known:
    """A tokenizer of transformers, as far as is asked for: some ids are missing in the middle and at the end."""

    def get_vocab(self):
        return {str(n): n for n in range(VOCAB - 5) if n != 4}


@pytest.mark.parametrize("tokenizer", [Known(), CharTokenizer("abcdefghij")], ids=["transformers", "ours"])
def test_padded_ids_are_never_drawn(tokenizer):
    model = MODELS["ours"]()
    known = set(tokenizer.get_vocab().values()) if isinstance(tokenizer, Known) else set(range(tokenizer.vocab_size))
    rows = torch.ones(200, 1, dtype=torch.int64)
    hot = Sampling(temperature=5.0, seed=0)
    assert not set(generate(model, rows, 10, hot)[:, 1:].flatten().tolist()) <= known
    drawn = generate(model, rows, 10, hot, logits_processor=only_tokens_of(tokenizer))[:, 1:]
    assert set(drawn.flatten().tolist()) == known
    assert set(stream(model, [1], 40, GREEDY, logits_processor=only_tokens_of(tokenizer))) <= known


def test_no_gradients_are_recorded_while_writing():
    model = MODELS["ours"]()
    recording = []
    model.register_forward_hook(lambda _, __, output: recording.append(output.logits.requires_grad))
    generate(model, [1, 2], 2)
    list(stream(model, [1, 2], 2))
    assert recording == [False] * 4


def test_what_was_written_can_be_trained_on():
    model = MODELS["ours"]().train()
    ids = generate(model, torch.tensor([[1, 2]]), 5)
    model(ids[:, :-1], ids[:, 1:]).loss.backward()
    assert model.wte.weight.grad.abs().sum() > 0


# ---- what is refused


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        ([], "empty"),
        ([[]], "empty"),
        ([[1], []], "empty"),
        (torch.empty(0, dtype=torch.int64), "empty"),
        (torch.empty(2, 0, dtype=torch.int64), "empty"),
        ([1, VOCAB], "outside the vocabulary"),
        ([1, -1], "outside the vocabulary"),
        (torch.tensor([[VOCAB]]), "outside the vocabulary"),
        ([1.0], "whole number"),
        ([True], "whole number"),
        (["a"], "whole number"),
        ([1, [2]], "whole number"),
        ([[1], 2.5], "whole number"),
        ([[1], 2], "whole number"),
        (torch.tensor([1.0]), "whole number"),
        (torch.tensor([True]), "whole number"),
        (torch.ones(1, 1, 1, dtype=torch.int64), "whole number"),
        (torch.tensor(3), "list, tensor or array"),
        ((), "empty"),
        (np.zeros((2, 0), dtype=np.int64), "empty"),
        (np.array([1, VOCAB]), "outside the vocabulary"),
        (np.array([1.0, 2.0]), "whole number"),
        (np.array([True]), "whole number"),
        (np.ones((1, 1, 1), dtype=np.int64), "whole number"),
        (np.array(3), "list, tensor or array"),
        ((1, 2.0), "whole number"),
        ([np.array([1]), np.array([2.5])], "whole number"),
        ("To be", "encode text first"),
        (None, "list, tensor or array"),
    ],
    ids=str,
)
@pytest.mark.parametrize("write", [generate, stream])
def test_prompts_that_are_no_token_ids_are_refused_at_once(write, ids, says):
    with pytest.raises(ValueError, match=says):
        write(MODELS["ours"](), ids, 3)


@pytest.mark.parametrize("count", [-1, 2.0, None, True])
def test_a_count_that_is_none_is_refused(count):
    with pytest.raises(ValueError, match="max_new_tokens"):
        generate(MODELS["ours"](), [1], count)


@pytest.mark.parametrize("end", [-1, VOCAB, 1.5, "a"])
def test_an_end_token_the_model_does_not_know_is_refused(end):
    with pytest.raises(ValueError, match=r"vocabulary|whole number"):
        generate(MODELS["ours"](), [1], 3, eos_token_id=end)


def test_stream_refuses_a_batch():
    with pytest.raises(ValueError, match="use generate"):
        stream(MODELS["ours"](), [[1], [2]], 3)


class Plain(nn.Module):
    """A model as a learner writes it: a config, ids to logits, no cache and no device."""

    def __init__(self, gpt):
        super().__init__()
        self.inner, self.config = gpt, gpt.config

    def forward(self, ids, targets=None):
        return self.inner(ids, targets)


@pytest.mark.parametrize("length", [3, 2 * WINDOW])
def test_a_learners_own_module_writes_what_the_package_writes(length):
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(vocab_size=17, n_positions=WINDOW, n_embd=16, n_layer=2, n_head=2)).eval()
    sampling = Sampling(temperature=0.9, top_k=5, seed=3)
    assert generate(Plain(gpt), [1, 2, 3], length, sampling) == generate(gpt, [1, 2, 3], length, sampling)
