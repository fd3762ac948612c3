"""Attention heads and mean-field theory: patterns, scores, ablations and spreads against truths of their own."""

import copy
import math

import pytest
import torch
from handmade import SHARP, handmade_model
from torch.nn import functional as F
from torch.testing import assert_close

from gptcourse import interpretability as heads
from gptcourse.model import GPT, GPTConfig
from gptcourse.tokenizers import CharTokenizer

transformers = pytest.importorskip("transformers")

TEXT = "To be, or not to be: that is the question.\n<script>alert('&amp;')</script>"


@pytest.fixture(scope="module")
def tokenizer():
    return CharTokenizer(TEXT)


def opinionated(model):
    """Make the queries, keys and values of a fresh model larger, so that its heads differ from one another."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "attn" in name and parameter.dim() == 2:
                parameter.mul_(12)
    return model


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    return opinionated(GPT(GPTConfig(tokenizer.vocab_size, n_positions=40, n_embd=24, n_layer=2, n_head=3)))


def gpt2(seed=0, **changes):
    """Return a transformers GPT-2 with random weights and sizes that nobody would choose."""
    settings = {"vocab_size": 37, "n_positions": 29, "n_embd": 35, "n_layer": 3, "n_head": 5}
    torch.manual_seed(seed)
    config = transformers.GPT2Config(**settings | {"bos_token_id": None, "eos_token_id": None} | changes)
    return opinionated(transformers.GPT2LMHeadModel(config))


def ids_for(model, n=20, seed=1):
    return torch.randint(model.config.vocab_size, (n,), generator=torch.Generator().manual_seed(seed))


# --- patterns


@pytest.mark.parametrize("settings", [{}, {"n_embd": 12, "n_head": 1, "n_layer": 1}, {"n_inner": 17}])
def test_patterns_of_a_transformers_model_are_those_that_it_gives_itself(settings):
    model = gpt2(**settings).train()  # with dropout, which must not be on while we look
    ids = ids_for(model)
    patterns = heads.attention_patterns(model, ids)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        theirs = torch.cat(model.eval()(ids[None], output_attentions=True).attentions)
    assert_close(patterns, theirs)
    assert patterns.shape == (model.config.n_layer, model.config.n_head, 20, 20)


def test_patterns_of_our_model_are_those_of_its_transformers_twin(model):
    ids = ids_for(model)
    assert_close(heads.attention_patterns(model, ids), heads.attention_patterns(model.to_transformers(), ids))


def test_patterns_know_rotary_positions():
    torch.manual_seed(0)
    config = GPTConfig(9, n_positions=16, n_embd=8, n_layer=1, n_head=2, position_embedding="rotary", qk_norm=True)
    model, ids = opinionated(GPT(config)), torch.arange(9)
    with torch.no_grad():
        (expected,) = model(ids[None], output_attentions=True).attentions
    assert_close(heads.attention_patterns(model, ids.tolist()), expected)


@pytest.mark.parametrize(
    "ids, sentence",
    [
        ([3], "at least 2"),
        ([], "at least 2"),
        ([[1, 2]], "one row"),
        ([0.5, 1.5], "whole numbers"),
        ([0, -1], "ids from 0 to"),
        ([0, 10_000], "ids from 0 to"),
        ([0] * 41, "41 tokens and the model reads 40"),
    ],
)
def test_ids_that_cannot_be_read_are_refused(model, ids, sentence):
    with pytest.raises(ValueError, match=sentence):
        heads.attention_patterns(model, ids)


def test_the_last_id_of_the_vocabulary_can_be_read_and_no_more(model):
    last = model.config.vocab_size - 1
    assert heads.attention_patterns(model, [0, last]).shape == (2, 3, 2, 2)
    with pytest.raises(ValueError, match=f"ids from 0 to {last}:"):
        heads.attention_patterns(model, [0, last + 1])


@pytest.mark.parametrize("function", [heads.attention_patterns, heads.head_scores, heads.text_loss])
def test_other_architectures_are_refused_with_one_sentence(function):
    config = transformers.LlamaConfig(
        vocab_size=37, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    llama = transformers.LlamaForCausalLM(config)
    with pytest.raises(ValueError, match="LlamaForCausalLM is not shaped like GPT-2"):
        function(llama, [1, 2, 3])


@pytest.mark.parametrize("setting", [{"scale_attn_weights": False}, {"scale_attn_by_inverse_layer_idx": True}])
def test_scores_that_are_scaled_otherwise_are_refused(setting):
    with pytest.raises(ValueError, match="√D"):
        heads.attention_patterns(gpt2(**setting), [1, 2, 3])


def test_a_gpt2_without_a_read_out_is_refused():
    with pytest.raises(ValueError, match="GPT2Model is not shaped"):
        heads.text_loss(gpt2().transformer, [1, 2, 3])


# --- scores


def test_scores_of_weights_that_are_known():
    previous = torch.eye(10)[[0, *range(9)]]  # row i looks at i - 1, and the first at itself
    first = torch.zeros(10, 10)
    first[:, 0] = 1
    half = (previous + first) / 2
    weights = torch.stack([previous, first, half])
    # Row 1's previous token is the first one: one row of nine.
    assert_close(heads.previous_token_score(weights), torch.tensor([1.0, 1 / 9, 5 / 9]))
    # Rows 4 to 9 count, and none of them has the first token just before it.
    assert_close(heads.first_token_score(weights), torch.tensor([0.0, 1.0, 0.5]))


def test_the_first_few_queries_do_not_count_for_the_first_token():
    weights = torch.eye(8)
    weights[:4] = torch.eye(8)[0]  # the first four look at the first token, which says nothing about the head
    assert heads.first_token_score(weights).item() == 0
    assert heads.first_token_score(torch.tensor([[1.0, 0.0], [0.25, 0.75]])).item() == 0.25  # all there is


@pytest.mark.parametrize("twin", [False, True], ids=["ours", "transformers"])
def test_the_handmade_heads_are_found_for_what_they_are(twin):
    model = handmade_model(40)
    model = model.to_transformers() if twin else model
    ids = ids_for(model, 30)
    patterns = heads.attention_patterns(model, ids)
    before = torch.eye(30)[[0, *range(29)]]
    assert_close(patterns[0, 0], before, atol=1e-5, rtol=0)
    assert_close(patterns[0, 1], torch.eye(30)[[0] * 30], atol=1e-5, rtol=0)
    alike = torch.ones(30, 30).tril()
    assert_close(patterns[1, 1], alike / alike.sum(-1, keepdim=True))
    scores = heads.head_scores(model, ids)
    assert_close(scores.previous_token[0, 0], torch.tensor(1.0), atol=1e-5, rtol=0)
    assert_close(scores.first_token[0, 1], torch.tensor(1.0), atol=1e-5, rtol=0)
    assert_close(scores.induction[1, 0], torch.tensor(1.0), atol=1e-5, rtol=0)
    for score in scores:
        assert score.shape == (2, 2) and score.flatten().sort().values[-2] < 0.2


def test_the_induction_head_copies_and_needs_the_previous_token_head():
    model = handmade_model(30)
    once = torch.randperm(30, generator=torch.Generator().manual_seed(0))[:26]
    ids = torch.cat((once, once[1:]))
    with torch.no_grad():
        assert torch.equal(model(ids[None, :-1]).logits[0, 26:].argmax(-1), ids[27:])
    assert heads.induction_scores(heads.ablate_head(model, 0, 0))[1, 0] < 0.1
    without = heads.head_ablation(model, ids) - heads.text_loss(model, ids)
    assert (without[0, 0] > 1) and (without[1, 0] > 1)
    assert_close(without[:, 1], torch.zeros(2), atol=1e-5, rtol=0)


def always_so_far_back(distance, vocab_size=64):
    """Return a model whose head looks `distance` places back, whatever stands there."""
    model = handmade_model(vocab_size)
    layer, n = model.h[0].attn, 2 * vocab_size
    with torch.no_grad():
        queries, keys, _ = (part[: layer.head_size] for part in layer.c_attn.weight.chunk(3))
        queries.zero_()[range(n), range(n)] = SHARP
        keys.zero_()[range(distance, n), range(n - distance)] = SHARP
    return model


def test_a_head_that_counts_places_does_not_pass_for_an_induction_head():
    model = always_so_far_back(49)
    pattern = heads.attention_patterns(model, torch.arange(60))[0, 0]
    assert_close(pattern.diagonal(-49), torch.ones(11), atol=1e-5, rtol=0)
    # It looks one sequence back, to what followed, in the longest sequences alone: one of four.
    assert heads.induction_scores(model)[0, 0] == pytest.approx(0.25, abs=0.02)


def test_a_head_that_looks_at_everything_alike_scores_what_we_say():
    model = handmade_model(40)
    even, scores = heads.even_scores(model, 30), heads.head_scores(model, ids_for(model, 30))
    for alike, found in zip(even, scores, strict=True):
        assert_close(alike, found[1, 1])
    assert even.previous_token.item() == pytest.approx(sum(1 / n for n in range(2, 31)) / 29)  # row i has i + 1 keys


def test_induction_scores_are_the_same_again_and_change_with_the_seed(model):
    assert torch.equal(heads.induction_scores(model), heads.induction_scores(model))
    assert not torch.equal(heads.induction_scores(model), heads.induction_scores(model, seed=1))


def test_a_context_too_short_to_repeat_anything_is_refused():
    with pytest.raises(ValueError, match="so short"):
        heads.induction_scores(GPT(GPTConfig(9, n_positions=4, n_embd=4, n_layer=1, n_head=1)))


def test_a_long_text_is_read_in_pieces(model):
    ids = ids_for(model, 100)
    rows = [heads.attention_patterns(model, ids[start : start + 40]) for start in (0, 40)]
    expected = sum(heads.previous_token_score(row) for row in rows) / 2
    assert_close(heads.head_scores(model, ids).previous_token, expected)


# --- ablation


def without_rows(model, layer, head):
    """Return a copy of a model in which c_proj reads nothing from one head, by its weights."""
    ours = isinstance(model, GPT)
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    size = model.config.n_embd // model.config.n_head
    weight = (copy if ours else copy.transformer).h[layer].attn.c_proj.weight
    with torch.no_grad():
        (weight.T if ours else weight)[head * size : (head + 1) * size] = 0  # transformers stores (in, out)
    return copy.eval()


@pytest.mark.parametrize("twin", [False, True], ids=["ours", "transformers"])
def test_a_head_switched_off_is_a_head_whose_output_is_read_by_nobody(model, twin):
    model = gpt2(7) if twin else model
    ids = ids_for(model)
    model.eval()
    with torch.no_grad():
        everything = model(ids[None]).logits
        for layer in range(model.config.n_layer):
            for head in range(model.config.n_head):
                logits = heads.ablate_head(model, layer, head)(ids[None]).logits
                assert_close(logits, without_rows(model, layer, head)(ids[None]).logits)
                assert not torch.allclose(logits, everything, atol=1e-3)
        assert torch.equal(model(ids[None]).logits, everything)


@pytest.mark.parametrize("twin", [False, True], ids=["ours", "transformers"])
def test_looking_at_a_model_leaves_its_hooks_and_its_mode_alone(model, twin):
    model = (gpt2() if twin else copy.deepcopy(model)).train()
    block = (model.transformer if twin else model).h[1].attn
    heads.attention_patterns(model, ids_for(model))
    heads.head_ablation(model, ids_for(model))
    view = heads.ablate_head(model, 1, 2)
    assert not block.c_proj._forward_pre_hooks and not block.c_attn._forward_hooks
    assert model.training and block.training and not view.training
    assert view.lm_head.weight is model.lm_head.weight


def test_a_view_with_a_head_off_learns_into_the_model_without_that_head(model):
    ids = ids_for(model)[None]
    heads.ablate_head(model, 1, 2)(ids, ids).loss.backward()
    gradient = model.h[1].attn.c_proj.weight.grad  # (out, in): the head's inputs are the last 8 of 24
    model.zero_grad(set_to_none=True)
    assert (gradient[:, 16:] == 0).all() and (gradient[:, :16] != 0).all()


def test_two_heads_are_off_where_the_calls_are_nested(model):
    ids = ids_for(model)
    both = heads.text_loss(heads.ablate_head(heads.ablate_head(model, 0, 1), 0, 2), ids)
    assert both == pytest.approx(heads.text_loss(without_rows(without_rows(model, 0, 1), 0, 2), ids))


@pytest.mark.parametrize("layer, head", [(2, 0), (0, 3), (-1, 0), (0, -1)])
def test_a_head_that_is_not_there_cannot_be_switched_off(model, layer, head):
    with pytest.raises(ValueError, match="layers go from 0 to 1, heads to 2"):
        heads.ablate_head(model, layer, head)


def test_the_loss_is_the_models_own_in_nats_per_token(model):
    ids = ids_for(model, 100)
    windows = ids[:80].view(2, 40)
    with torch.no_grad():
        logits = model(windows).logits
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), windows[:, 1:].flatten())
    assert heads.text_loss(model, ids) == pytest.approx(expected.item())
    alike = GPT(GPTConfig(50, n_positions=64, n_embd=4, n_layer=1, n_head=1))
    with torch.no_grad():
        alike.wte.weight.zero_()
    assert heads.text_loss(alike, ids_for(alike)) == pytest.approx(math.log(50))


def test_losses_without_each_head_are_found_one_by_one(model):
    ids = ids_for(model, 30)
    losses = heads.head_ablation(model, ids)
    assert losses.shape == (2, 3)
    assert losses[1, 2].item() == pytest.approx(heads.text_loss(without_rows(model, 1, 2), ids))
    assert losses.unique().numel() == 6


def test_a_long_text_is_read_a_few_pieces_at_a_time_with_the_same_result(model, tokenizer, monkeypatch):
    ids = tokenizer.encode(TEXT * 8)
    before, scores = heads.text_loss(model, ids), heads.head_scores(model, ids)
    monkeypatch.setattr(heads, "BATCH", 2)
    assert heads.text_loss(model, ids) == pytest.approx(before, rel=1e-5)
    for one, other in zip(heads.head_scores(model, ids), scores, strict=True):
        assert_close(one, other)
