"""The model against transformers, GPT-3's table, and what the papers say about it."""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from gptcourse.model import GPT, GPT3_TABLE, GPTConfig

SMALL = GPTConfig(vocab_size=61, n_positions=24, n_embd=20, n_layer=2, n_head=2)
OPTIONS = [
    {"position_embedding": "rotary"},
    {"norm": "rmsnorm"},
    {"activation_function": "relu2"},
    {"qk_norm": True},
    {"position_embedding": "rotary", "norm": "rmsnorm", "qk_norm": True, "tie_word_embeddings": False},
]
MUP = {"tie_word_embeddings": False, "mup_base_width": 30}  # SMALL is 2/3 as wide: no power of two
ODD_SHAPES = [
    {"vocab_size": 67, "n_positions": 19, "n_embd": 30, "n_layer": 3, "n_head": 5},
    {"vocab_size": 13, "n_positions": 7, "n_embd": 9, "n_layer": 1, "n_head": 9},
    {"vocab_size": 101, "n_positions": 33, "n_embd": 14, "n_layer": 5, "n_head": 1, "tie_word_embeddings": False},
]


def random_gpt2(seed=0, **settings):
    """A GPT-2 whose every parameter is random, biases and norms too, so that a wrong copy shows."""
    torch.manual_seed(seed)
    hf = GPT2LMHeadModel(GPT2Config(**{"bos_token_id": None, "eos_token_id": None} | settings)).eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return hf


def random_ids(config, batch=3, seed=1):
    shape = (batch, config.n_positions)
    return torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", ODD_SHAPES)
def test_from_transformers_and_back_give_the_same_logits(shape):
    hf = random_gpt2(**shape)
    ids = random_ids(hf.config)
    gpt = GPT.from_transformers(hf)
    expected = hf(ids).logits
    assert_close(gpt(ids).logits, expected)
    back = gpt.to_transformers()
    assert torch.equal(back(ids).logits, expected)
    assert not back.training
    assert set(back.state_dict()) == set(hf.state_dict())


def test_loss_and_gradients_equal_transformers():
    hf = random_gpt2(**ODD_SHAPES[0])
    gpt = GPT.from_transformers(hf)
    ids = random_ids(hf.config)
    # transformers shifts the labels itself: position t is scored on the label at t + 1.
    labels = ids.clone()
    labels[0, 5:9] = -100
    loss = gpt(ids[:, :-1], targets=labels[:, 1:]).loss
    theirs = hf(ids, labels=labels).loss
    assert_close(loss, theirs)
    loss.backward(), theirs.backward()
    assert_close(gpt.wte.weight.grad, hf.transformer.wte.weight.grad)
    assert_close(gpt.h[1].mlp.c_fc.weight.grad, hf.transformer.h[1].mlp.c_fc.weight.grad.t())


def test_from_transformers_names_a_model_that_computes_something_else():
    for setting in ({"activation_function": "relu"}, {"scale_attn_by_inverse_layer_idx": True}, {"n_inner": 10}):
        with pytest.raises(ValueError, match=next(iter(setting))):
            GPT.from_transformers(random_gpt2(**ODD_SHAPES[1], **setting))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_to_transformers_refuses_other_shapes_in_one_sentence(options):
    with pytest.raises(ValueError, match="save and load"):
        GPT(replace(SMALL, **options)).to_transformers()


@pytest.mark.parametrize("options", [{}, {"tie_word_embeddings": False}, MUP, *OPTIONS], ids=str)
def test_save_and_load_give_the_same_model(options, tmp_path):
    model = GPT(replace(SMALL, dropout=0.1, **options)).eval()
    model.save(tmp_path)
    loaded = GPT.load(tmp_path)
    assert loaded.config == model.config
    assert not loaded.training
    for (name, before), (other, after) in zip(model.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert name == other and torch.equal(before, after)
    assert (loaded.lm_head.weight is loaded.wte.weight) == model.config.tie_word_embeddings


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_opens_what_save_writes_and_load_opens_what_transformers_writes(tied, tmp_path):
    model = GPT(replace(SMALL, tie_word_embeddings=tied)).eval()
    model.save(tmp_path / "ours")
    hf = AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    ids = random_ids(SMALL)
    assert hf.dtype == torch.float32
    assert_close(hf(ids).logits, model(ids).logits)
    hf.save_pretrained(tmp_path / "theirs")
    assert_close(GPT.load(tmp_path / "theirs")(ids).logits, model(ids).logits)


def test_half_precision_files_open_in_float32(tmp_path):
    GPT(SMALL).save(tmp_path)
    half = {name: tensor.half() for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    save_file(half, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert {parameter.dtype for parameter in GPT.load(tmp_path).parameters()} == {torch.float32}
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.float32


def test_the_tied_matrix_is_stored_once(tmp_path):
    GPT(SMALL).save(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = file.keys()
        assert sum(math.prod(file.get_slice(name).get_shape()) for name in names) == SMALL.num_parameters


def test_load_says_what_is_missing_or_foreign(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json"):
        GPT.load(tmp_path)
    GPT(SMALL).save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match="'llama' model"):
        GPT.load(tmp_path)


def test_the_table_keeps_the_printed_values():
    assert GPT3_TABLE["1.3B"].n_heads == 24 and GPT3_TABLE["13B"].d_model == 5140
    assert [row.learning_rate for row in GPT3_TABLE.values()] == [
        6e-4, 3e-4, 2.5e-4, 2e-4, 1.6e-4, 1.2e-4, 1e-4, 0.6e-4,
    ]  # fmt: skip
    assert [row.batch_size for row in GPT3_TABLE.values()] == [
        500_000, 500_000, 500_000, 1_000_000, 1_000_000, 2_000_000, 2_000_000, 3_200_000,
    ]  # fmt: skip


@pytest.mark.parametrize("name", GPT3_TABLE)
def test_gpt3_sizes_build_and_hold_the_parameters_that_are_counted(name):
    config = GPTConfig.gpt3(name)
    row = GPT3_TABLE[name]
    assert config.head_size == row.d_head and config.n_layer == row.n_layers
    with torch.device("meta"):
        model = GPT(config)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert counted == config.num_parameters
    printed = float(row.n_params[:-1]) * {"M": 1e6, "B": 1e9}[row.n_params[-1]]
    assert abs(counted / printed - 1) < 0.02


def test_gpt3_repairs_only_the_two_lines_that_do_not_divide():
    repaired = {}
    for name, row in GPT3_TABLE.items():
        config = GPTConfig.gpt3(name)
        if (config.n_embd, config.n_head) != (row.d_model, row.n_heads):
            repaired[name] = (config.n_embd, config.n_head)
    assert repaired == {"1.3B": (2048, 16), "13B": (5120, 40)}


def test_parameter_count_equals_transformers_for_gpt2():
    with torch.device("meta"):
        hf = GPT2LMHeadModel(GPT2Config())
    assert GPTConfig(50257, 1024, 768, 12, 12).num_parameters == hf.num_parameters() == 124_439_808


@pytest.mark.parametrize("options", [{}, *OPTIONS], ids=str)
def test_parameter_count_is_exact_for_every_option(options):
    config = replace(SMALL, **options)
    assert sum(parameter.numel() for parameter in GPT(config).parameters()) == config.num_parameters


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_head": 3}, "multiple of n_head"),
        ({"n_layer": 0}, "n_layer is 0"),
        ({"vocab_size": 10.5}, "whole number"),
        ({"n_embd": True}, "whole number"),
        ({"dropout": 1.0}, "less than 1"),
        ({"dropout": -0.1}, "at least 0"),
        ({"norm": "batchnorm"}, "one of layernorm, rmsnorm"),
        ({"activation_function": "tanh"}, "one of gelu_new, relu2"),
        ({"position_embedding": "rotary", "n_head": 4}, "n_embd / n_head even"),
        ({"n_layer": np.int64(0)}, "n_layer is .*0"),
        ({"vocab_size": np.float64(10.5)}, "whole number"),
        ({"mup_base_width": 10}, "tie_word_embeddings=False"),
        (MUP | {"mup_base_width": 15}, "15 is no multiple of the head size 10"),
        (MUP | {"mup_base_width": 0}, "mup_base_width is 0"),
        (MUP | {"mup_base_width": 10.5}, "mup_base_width is 10.5"),
    ]
    + [({"dropout": value}, "dropout is .* at least 0") for value in ("a", None, math.nan, math.inf, True)]
    + [
        ({name: value}, f"{name} is .* finite number greater than 0")
        for name in ("layer_norm_epsilon", "initializer_range")
        for value in (0.0, -0.02, math.inf, math.nan, "a", None)
    ],
    ids=str,
)
def test_a_config_that_makes_no_sense_is_refused_in_one_sentence(changes, words):
    with pytest.raises(ValueError, match=words) as refused:
        GPTConfig(**asdict(SMALL) | changes)
    assert "\n" not in str(refused.value)


def test_numbers_from_numpy_become_pythons_own_and_can_be_written(tmp_path):
    exact = {"dropout": 0.25, "initializer_range": 0.5, "layer_norm_epsilon": 0.125}  # the same in float32
    plain = replace(SMALL, **exact)
    wrapped = {name: np.int32(value) for name, value in asdict(SMALL).items() if type(value) is int}
    config = replace(plain, **wrapped, **{name: np.float32(value) for name, value in exact.items()})
    assert len(wrapped) == 5 and config == plain
    assert type(replace(SMALL, **MUP | {"mup_base_width": np.int64(30)}).mup_base_width) is int
    assert [type(value) for value in asdict(config).values()] == [type(value) for value in asdict(plain).values()]
    for options in ({}, {"norm": "rmsnorm"}):
        GPT(replace(config, **options)).save(tmp_path)
        assert GPT.load(tmp_path).config == replace(plain, **options)


def test_unknown_gpt3_size_lists_the_sizes():
    with pytest.raises(ValueError, match="125M, 350M"):
        GPTConfig.gpt3("1T")


def test_initialisation_is_gpt2s():
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=997, n_positions=64, n_embd=192, n_layer=8, n_head=4)
    model = GPT(config)
    for block in model.h:
        assert_close(block.attn.c_attn.weight.std().item(), 0.02, rtol=0.03, atol=0)
        for projection in (block.attn.c_proj, block.mlp.c_proj):
            assert_close(projection.weight.std().item(), 0.02 / math.sqrt(16), rtol=0.03, atol=0)
            assert not projection.bias.any()
    assert_close(model.wte.weight.std().item(), 0.02, rtol=0.03, atol=0)


def test_at_the_base_width_mup_is_the_standard_parametrisation_bit_for_bit():
    models = []
    for base in (None, SMALL.n_embd):
        torch.manual_seed(0)
        models.append(GPT(replace(SMALL, tie_word_embeddings=False, mup_base_width=base)))
    standard, mup = models
    assert all(torch.equal(a, b) for a, b in zip(standard.parameters(), mup.parameters(), strict=True))
    assert torch.equal(standard(random_ids(SMALL)).logits, mup(random_ids(SMALL)).logits)


def test_under_mup_only_hidden_matrices_start_smaller():
    torch.manual_seed(0)
    config = GPTConfig(997, 64, 192, 8, 12, tie_word_embeddings=False, mup_base_width=48)
    model = GPT(config)
    assert config.width_multiplier == 4
    for block in model.h:
        for matrix in (block.attn.c_attn.weight, block.mlp.c_fc.weight):
            assert_close(matrix.std().item(), 0.02 / 2, rtol=0.03, atol=0)
        for projection in (block.attn.c_proj, block.mlp.c_proj):
            assert_close(projection.weight.std().item(), 0.02 / 2 / math.sqrt(16), rtol=0.03, atol=0)
    for matrix in (model.wte.weight, model.wpe.weight, model.lm_head.weight):
        assert_close(matrix.std().item(), 0.02, rtol=0.03, atol=0)


def test_mup_divides_the_logits_by_the_width_multiplier():
    mup, standard = GPT(replace(SMALL, **MUP)), GPT(replace(SMALL, tie_word_embeddings=False))
    standard.load_state_dict(mup.state_dict())
    ids = random_ids(SMALL)
    assert_close(mup(ids).logits * (20 / 30), standard(ids).logits)


def test_transformers_gets_a_mup_model_only_with_the_factor_of_its_logits(tmp_path):
    model = GPT(replace(SMALL, initializer_range=0.2, **MUP)).eval()
    ids = random_ids(SMALL)
    hf = model.to_transformers()
    assert_close(hf(ids).logits, model(ids).logits)
    assert_close(GPT.from_transformers(hf)(ids).logits, model(ids).logits)
    model.save(tmp_path)
    with pytest.raises(ValueError, match="gptcourse"):  # not opened as a GPT-2 whose logits are wrong
        AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("options", [{}, *OPTIONS], ids=str)
def test_the_first_loss_is_that_of_a_uniform_guess(options):
    torch.manual_seed(0)
    model = GPT(replace(SMALL, **options))
    ids = random_ids(SMALL, batch=16)
    assert_close(model(ids, targets=ids.roll(-1, 1)).loss.item(), math.log(SMALL.vocab_size), rtol=0.02, atol=0)


@pytest.mark.parametrize("options", [{}, *OPTIONS], ids=str)
def test_no_token_sees_the_future_and_every_token_sees_the_past(options):
    torch.manual_seed(0)
    model = GPT(replace(SMALL, initializer_range=0.2, **options)).eval()
    ids = random_ids(SMALL, batch=1)
    changed = ids.clone()
    changed[0, 10] = (changed[0, 10] + 1) % SMALL.vocab_size
    difference = (model(ids).logits - model(changed).logits).abs().amax(-1)[0]
    assert difference[:10].max() == 0
    assert difference[10:].min() > 1e-5


@pytest.mark.parametrize("options", [{}, *OPTIONS], ids=str)
def test_cached_logits_equal_those_of_the_whole_sequence(options):
    torch.manual_seed(0)
    model = GPT(replace(SMALL, initializer_range=0.2, **options)).eval()
    ids = random_ids(SMALL)
    cache = model.new_cache(3)
    pieces = [model(piece, cache=cache).logits for piece in ids.split((9, 1, 1, 13), dim=1)]
    assert_close(torch.cat(pieces, dim=1), model(ids).logits)


def test_attentions_are_one_table_a_layer_and_head():
    model = GPT(SMALL)
    attentions = model(random_ids(SMALL), output_attentions=True).attentions
    assert [tuple(weights.shape) for weights in attentions] == [(3, 2, 24, 24)] * 2
    assert model(random_ids(SMALL)).attentions is None


def test_ids_of_the_wrong_shape_or_length_are_refused():
    with pytest.raises(ValueError, match="try ids"):
        GPT(SMALL)(torch.zeros(5, dtype=torch.long))
    with pytest.raises(ValueError, match="25 tokens do not fit"):
        GPT(SMALL)(torch.zeros(1, 25, dtype=torch.long))
    with pytest.raises(ValueError, match=f"from 0 to 99, but this model knows 0 to {SMALL.vocab_size - 1}"):
        GPT(SMALL)(torch.tensor([[0, 99]]))


@pytest.mark.parametrize("options", [{}, *OPTIONS], ids=str)
def test_the_kept_logits_are_the_last_ones(options):
    torch.manual_seed(0)
    model = GPT(replace(SMALL, initializer_range=0.2, **options)).eval()
    ids = random_ids(SMALL)
    everything = model(ids).logits
    for keep, kept in ((0, 24), (1, 1), (7, 7), (24, 24), (99, 24)):
        assert_close(model(ids, logits_to_keep=keep).logits, everything[:, -kept:])
    cache = model.new_cache(3)
    model(ids[:, :9], cache=cache, logits_to_keep=1)
    assert_close(model(ids[:, 9:], cache=cache, logits_to_keep=2).logits, everything[:, -2:])


def test_logits_to_keep_equals_transformers():
    hf = random_gpt2(**ODD_SHAPES[0])
    ids = random_ids(hf.config)
    for keep in (0, 1, 5):
        assert_close(GPT.from_transformers(hf)(ids, logits_to_keep=keep).logits, hf(ids, logits_to_keep=keep).logits)


def test_logits_to_keep_is_refused_where_it_makes_no_sense():
    model, ids = GPT(SMALL), random_ids(SMALL)
    with pytest.raises(ValueError, match="leave out either targets or logits_to_keep"):
        model(ids, targets=ids, logits_to_keep=1)
    with pytest.raises(ValueError, match="logits_to_keep is -1"):
        model(ids, logits_to_keep=-1)
    assert model(ids, targets=ids, logits_to_keep=0).loss > 0


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_checkpointed_training_gives_the_same_loss_and_gradients_dropout_included(options):
    found, ids = [], random_ids(SMALL)
    for enable in (False, True):
        torch.manual_seed(0)
        model = GPT(replace(SMALL, dropout=0.2, **options))
        if enable:
            model.gradient_checkpointing_enable()
        torch.manual_seed(1)
        loss = model(ids, ids).loss
        loss.backward()
        found.append([loss, *(parameter.grad for parameter in model.parameters())])
    assert_close(found[0], found[1], rtol=0, atol=0)


def test_checkpointing_keeps_only_what_enters_each_block_and_only_in_training():
    model = GPT(SMALL)
    model.gradient_checkpointing_enable()
    calls, ids = [], random_ids(SMALL)
    for block in model.h:
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    model(ids, ids).loss.backward()
    assert len(calls) == 2 * SMALL.n_layer  # once more in the backward pass
    for forward in (model.eval(), torch.no_grad()(model.train())):
        calls.clear()
        forward(ids)
        assert len(calls) == SMALL.n_layer
