"""Today's block: each part against transformers' own models, and GPT-3's choices against `GPT`."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from gptcourse.config import GPTConfig, TrainingConfig
from gptcourse.data import IGNORED
from gptcourse.generation import Sampling, generate
from gptcourse.model import GPT
from gptcourse.modern import MixtureOfExperts, ModernConfig, ModernGPT, gpt3_like, modern_config, num_parameters
from gptcourse.training import evaluate, train

SMALL = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32, "initializer_range": 0.3}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
THEIRS = {
    "Llama": (LlamaForCausalLM, LlamaConfig(**SMALL, tie_word_embeddings=True)),
    "Llama, rotary positions changed": (LlamaForCausalLM, LlamaConfig(**SMALL, rope_parameters=LINEAR)),
    "Mistral with a window": (MistralForCausalLM, MistralConfig(**SMALL, sliding_window=3, head_dim=6)),
    "Qwen3": (Qwen3ForCausalLM, Qwen3Config(**SMALL, head_dim=8)),
    "Qwen3 with a window": (
        Qwen3ForCausalLM,
        Qwen3Config(**SMALL, head_dim=8, use_sliding_window=True, sliding_window=3, max_window_layers=0),
    ),
    "Mixtral": (MixtralForCausalLM, MixtralConfig(**SMALL, **EXPERTS)),
    "Qwen3-MoE": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig(**SMALL, **EXPERTS, moe_intermediate_size=12, head_dim=4, norm_topk_prob=True),
    ),
}
CONFIG = ModernConfig(**{**SMALL, "initializer_range": 0.02})
QUIET = {"progress": False, "device": "cpu"}


def opened(name):
    kind, config = THEIRS[name]
    torch.manual_seed(0)
    model = kind(config).eval()
    for parameter_name, parameter in model.named_parameters():  # scales other than 1, or a missing one goes unseen
        if "norm" in parameter_name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model, ModernGPT.from_transformers(model)


def some_ids(n_tokens=20, rows=2):
    return torch.randint(50, (rows, n_tokens), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", THEIRS)
@torch.inference_mode()
def test_the_weights_of_a_current_model_give_its_logits(name):
    theirs, ours = opened(name)
    ids = some_ids()
    assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", THEIRS)
@torch.inference_mode()
def test_with_its_cache_a_model_reads_the_same(name):
    _, ours = opened(name)
    ids, cache = some_ids(), ours.new_cache(2)
    parts = [ours(part, cache=cache).logits for part in ids.split([7, 1, 5, 7], dim=1)]
    assert_close(torch.cat(parts, 1), ours(ids).logits, atol=1e-5, rtol=1e-5)


def test_it_writes_what_transformers_writes():
    theirs, ours = opened("Qwen3")
    ids = some_ids(rows=1)
    expected = theirs.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert generate(ours, ids, 8, Sampling(temperature=0)).tolist() == expected.tolist()


@torch.inference_mode()
def test_with_gpt3s_choices_it_is_the_gpt_of_this_course():
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(50, 32, 16, 2, 4, initializer_range=0.3)).eval()
    for parameter in gpt.parameters():
        if parameter.dim() == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    modern = ModernGPT(gpt3_like(50, 32, 16, 2, 4)).eval()
    pairs = [(modern.embed_tokens, gpt.wte), (modern.embed_positions, gpt.wpe), (modern.norm, gpt.ln_f)]
    for ours, block in zip(modern.layers, gpt.h, strict=True):
        pairs += [(ours.input_layernorm, block.ln_1), (ours.post_attention_layernorm, block.ln_2)]
        pairs += [(ours.self_attn.o_proj, block.attn.c_proj)]
        pairs += [(ours.mlp.up_proj, block.mlp.c_fc), (ours.mlp.down_proj, block.mlp.c_proj)]
        for name, weight, bias in zip(
            ("q_proj", "k_proj", "v_proj"),
            block.attn.c_attn.weight.chunk(3),
            block.attn.c_attn.bias.chunk(3),
            strict=True,
        ):
            ours.self_attn.get_submodule(name).load_state_dict({"weight": weight, "bias": bias})
    for ours, theirs in pairs:
        ours.load_state_dict(theirs.state_dict())
    assert_close(modern(some_ids()).logits, gpt(some_ids()).logits, atol=1e-5, rtol=1e-5)
    assert num_parameters(modern.config) == gpt.config.num_parameters


def test_every_change_alone_trains_and_starts_near_an_even_guess():
    start = gpt3_like(50, 16, 16, 2, 4)
    changes = [{"norm": "rmsnorm"}, {"bias": False}, {"position_embedding": "rotary"}, {"hidden_act": "silu"}]
    changes += [{"num_key_value_heads": 1}, {"qk_norm": True}, {"sliding_window": 4}, {"num_experts": 4}]
    changes += [{"num_nextn_predict_layers": 1}, {"tie_word_embeddings": False}]
    tokens = torch.arange(2_000) % 10
    for change in changes:
        torch.manual_seed(0)
        model = ModernGPT(replace(start, **change))
        before = evaluate(model, tokens)
        train(model, tokens, TrainingConfig(30, 8, 1e-2, sequence_length=16), **QUIET)
        assert before == pytest.approx(torch.tensor(50.0).log().item(), abs=0.1), change
        assert evaluate(model, tokens) < 1.5, change


def test_a_token_goes_through_its_best_experts_alone():
    torch.manual_seed(0)
    layer, x = MixtureOfExperts(replace(CONFIG, num_experts=4)), torch.randn(2, 5, 16)
    found = layer(x)
    for row, token in zip(found.flatten(0, 1), x.flatten(0, 1), strict=True):
        best = layer.gate(token).topk(2)
        parts = [layer.experts[e](token) for e in best.indices]
        assert_close(row, sum(w * part for w, part in zip(best.values.softmax(0), parts, strict=True)))


@pytest.mark.parametrize("k", [1, 2])
def test_the_balance_is_1_for_equal_shares_and_e_over_k_where_the_same_get_everything(k):
    layer = MixtureOfExperts(replace(CONFIG, num_experts=4, num_experts_per_tok=k))
    layer.gate.weight.data = torch.eye(16)[:4] * 100
    pairs = torch.eye(16)[:4] + 0.5 * torch.eye(16)[[1, 2, 3, 0]]  # each expert is some token's first, and its second
    layer(pairs[None])
    assert_close(layer.balance, torch.tensor(1.0))
    layer(pairs[None, :1])
    assert_close(layer.balance, torch.tensor(4.0 / k))


def test_what_training_adds_to_the_loss_is_not_in_what_is_measured():
    config = replace(CONFIG, num_experts=4, num_nextn_predict_layers=1)
    torch.manual_seed(0)
    model, ids = ModernGPT(config), some_ids()
    inputs, targets = ids[:, :-1], ids[:, 1:].clone()
    targets[0, 4] = IGNORED
    training, measured = model(inputs, targets).loss, model.eval()(inputs, targets).loss
    balance = torch.stack([block.mlp.balance for block in model.layers]).mean()
    states = model.embed_tokens(inputs)
    for block in model.layers:
        states = block(states)
    further = model.next(states[:, :-1], model.embed_tokens(inputs[:, 1:]))
    second = torch.nn.functional.cross_entropy(model.lm_head(further).flatten(0, 1), targets[:, 1:].flatten())
    assert_close(training, measured + 0.01 * balance + 0.3 * second)


def test_where_no_target_is_left_nothing_is_predicted_further():
    model, ids = ModernGPT(replace(CONFIG, num_nextn_predict_layers=1)), some_ids()
    first = ids.new_full(ids.shape, IGNORED)
    first[:, 0] = ids[:, 1]
    assert_close(model(ids, first).loss, model.eval()(ids, first).loss)


def test_the_second_head_sees_nothing_of_what_it_predicts():
    model = ModernGPT(replace(CONFIG, num_nextn_predict_layers=1))
    states, ids = torch.randn(1, 6, 16), some_ids(6, 1)
    other = ids.clone()
    other[0, 4] = (ids[0, 4] + 1) % 50
    one, two = (model.next(states, model.embed_tokens(given)) for given in (ids, other))
    assert_close(one[:, :4], two[:, :4])
    assert not torch.allclose(one[:, 4], two[:, 4])


def test_parameters_that_a_token_meets():
    config = replace(CONFIG, num_experts=8, num_experts_per_tok=2)
    expert = 3 * 16 * 24
    assert num_parameters(config) - num_parameters(config, active=True) == 2 * 6 * expert
    assert num_parameters(CONFIG, active=True) == num_parameters(CONFIG)


def test_the_memory_of_a_cache():
    model = ModernGPT(CONFIG)
    cache = model.new_cache()
    stored = sum(part.numel() * part.element_size() for layer in cache for part in (layer.keys, layer.values))
    assert CONFIG.cache_bytes(32, bytes_per_number=4) == stored
    assert replace(CONFIG, sliding_window=8).cache_bytes(32, 4) == stored // 4


PUBLISHED = SMALL | {"hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 5e5, "tie_word_embeddings": False}
PUBLISHED |= {"router_aux_loss_coef": 0.02}


@pytest.mark.parametrize(
    ("theirs", "fields"),
    [
        (LlamaConfig, {"model_type": "llama", "rope_scaling": None}),
        (LlamaConfig, {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 4.0}}),
        (MistralConfig, {"model_type": "mistral", "sliding_window": 16}),
        (Qwen3Config, {"model_type": "qwen3", "head_dim": 8, "sliding_window": 16, "use_sliding_window": False}),
        (MixtralConfig, {"model_type": "mixtral", "sliding_window": None, **EXPERTS}),
        (
            Qwen3MoeConfig,
            {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
            | {"norm_topk_prob": True, "mlp_only_layers": [], "decoder_sparse_step": 1, "head_dim": 8},
        ),
    ],
)
def test_a_config_as_published_means_what_transformers_makes_of_it(theirs, fields):
    """A config.json from before transformers 5 has other names for the base, the stretching and the experts."""
    fields = PUBLISHED | fields
    config = modern_config(fields)
    assert config == modern_config(theirs(**fields).to_dict())
    assert config.rope_theta == 5e5 and config.rms_norm_eps == 1e-6


def test_parameters_are_counted_as_they_are():
    for changes in ({}, {"num_hidden_layers": 1}, {"tie_word_embeddings": True}, {"num_nextn_predict_layers": 1}):
        config = replace(CONFIG, num_experts=3, qk_norm=True, **changes)
        assert num_parameters(config) == sum(parameter.numel() for parameter in ModernGPT(config).parameters())


def test_opened_weights_are_shared_not_copied():
    theirs, ours = opened("Llama")
    assert ours.embed_tokens.weight.data_ptr() == theirs.model.embed_tokens.weight.data_ptr()
    assert ours.lm_head.weight is ours.embed_tokens.weight
    assert all(parameter.requires_grad for parameter in ours.parameters())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_key_value_heads": 3}, "4 heads do not divide among num_key_value_heads = 3"),
        ({"hidden_size": 18}, "does not divide among 4 heads"),
        ({"head_dim": 3}, "must be even"),
        ({"num_experts": 1}, "2 of 1 experts"),
        ({"norm": "batchnorm"}, "norm is 'batchnorm'"),
        ({"rope_theta": 0}, "rope_theta is 0"),
        ({"num_nextn_predict_layers": 2}, "from 0 to 1"),
    ],
)
def test_a_shape_that_makes_no_sense_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        ModernConfig(**{**SMALL, **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "gpt2"}, "This is a gpt2 model"),
        ({"attention_bias": True}, "without biases"),
        ({"hidden_act": "gelu"}, "without biases"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "stretched by 'yarn'"),
        ({"model_type": "qwen3_moe", "mlp_only_layers": [0]}, "Some of its layers"),
        ({"model_type": "qwen3_moe", "norm_topk_prob": False}, "do not sum to 1"),
        ({"model_type": "qwen3", "layer_types": ["full_attention", "sliding_attention"]}, "have a sliding window"),
        ({"model_type": "qwen3", "sliding_window": 3, "max_window_layers": 1}, "have a sliding window"),
    ],
)
def test_a_model_that_is_not_built_here_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        modern_config(LlamaConfig(**SMALL).to_dict() | changes)


def test_too_many_tokens_are_refused():
    with pytest.raises(ValueError, match="33 tokens do not fit into 32"):
        ModernGPT(CONFIG)(torch.zeros(1, 33, dtype=torch.int64))


@pytest.mark.parametrize("name", ["Mixtral", "Qwen3-MoE"])
def test_experts_work_in_half_precision_and_in_mixed_precision(name):
    theirs, ids = opened(name)[0], some_ids()
    with torch.inference_mode():
        exact, half = theirs(ids).logits, ModernGPT.from_transformers(theirs.to(torch.bfloat16))(ids).logits
    near = (half.float() - exact).abs() < 0.1  # a token whose scores are nearly equal may go through another expert
    assert half.dtype == torch.bfloat16 and near.float().mean() > 0.9
    model = ModernGPT(replace(CONFIG, num_experts=4))
    history = train(model, torch.arange(200) % 50, TrainingConfig(2, 2, 1e-3, bf16=True), **QUIET)
    assert all(map(math.isfinite, history.loss))


def test_a_mixture_that_has_been_trained_is_copied():
    torch.manual_seed(0)
    model = ModernGPT(replace(CONFIG, num_experts=4))
    model(some_ids(), some_ids()).loss.backward()
    twin = copy.deepcopy(model)
    assert_close(twin(some_ids()).logits, model(some_ids()).logits)


def test_ids_outside_the_vocabulary_are_refused():
    with pytest.raises(ValueError, match=r"ids go from 0 to 50, but this model knows 0 to 49"):
        ModernGPT(CONFIG)(torch.tensor([[0, 50]]))


def test_a_cache_takes_as_much_memory_as_the_text_needs():
    model = ModernGPT(CONFIG)
    assert model.new_cache(2, 5)[0].keys.shape[2] == 5 and model.new_cache(2, 99)[0].keys.shape[2] == 32
