"""The decoder gives the model's own logits, for every model that it takes; the others it leaves alone."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from gptcourse import generation
from gptcourse.fast_decoder import Decoder, can_decode
from gptcourse.finetuning import add_lora
from gptcourse.generation import Sampling, generate
from gptcourse.model import GPT, GPTConfig

SHAPE = {"vocab_size": 31, "n_positions": 12, "n_embd": 24, "n_layer": 3, "n_head": 4}
IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]


def read(decoder, token, cache):
    """Return the logits (V,) after one more token."""
    return decoder(torch.tensor([[token]]), cache=cache).logits[0, 0]


def model_of(**changes):
    """Return a model in which every weight matters: nothing is zero or one."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SHAPE | changes)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * (0.3 if weight.ndim > 1 else 0.5) + 0.1)
    return model


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": False},
        {"n_head": 1, "n_layer": 1},
        {"n_head": 24, "dropout": 0.3, "layer_norm_epsilon": 0.1},
    ],
)
def test_the_logits_and_the_cache_are_the_models_own(changes):
    model = model_of(**changes)
    assert can_decode(model)
    with torch.inference_mode():
        truth, cache, other = model(torch.tensor([IDS])).logits[0], model.new_cache(), model.new_cache()
        decoder = Decoder(model)
        logits = np.stack([read(decoder, token, cache) for token in IDS])
        model(torch.tensor([IDS]), cache=other)
    np.testing.assert_allclose(logits, truth, rtol=1e-4, atol=1e-4)
    for layer, layer_of_model in zip(cache, other, strict=True):
        assert layer.length == layer_of_model.length == len(IDS)
        torch.testing.assert_close(layer.keys, layer_of_model.keys, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(layer.values, layer_of_model.values, rtol=1e-4, atol=1e-4)


def test_model_and_decoder_take_turns_on_one_cache_and_one_decoder_serves_several():
    model = model_of()
    decoder = Decoder(model)
    with torch.inference_mode():
        truth = model(torch.tensor([IDS])).logits[0]
        for _ in range(2):
            cache = model.new_cache()
            model(torch.tensor([IDS[:4]]), cache=cache)
            np.testing.assert_allclose(read(decoder, IDS[4], cache), truth[4], rtol=1e-4, atol=1e-4)
            again = model(torch.tensor([IDS[5:7]]), cache=cache).logits[0]
            torch.testing.assert_close(again, truth[5:7], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(read(decoder, IDS[7], cache), truth[7], rtol=1e-4, atol=1e-4)


def test_a_full_cache_is_named():
    model = model_of()
    with torch.inference_mode():
        decoder, cache = Decoder(model), model.new_cache()
        for token in range(SHAPE["n_positions"]):
            read(decoder, token, cache)
        with pytest.raises(ValueError, match="13 tokens do not fit"):
            read(decoder, 0, cache)


def test_the_model_itself_stays_as_it_was():
    model = model_of()
    before = copy.deepcopy(model.state_dict())
    generate(model, IDS[:3], 20)
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


def hooked(model, register):
    getattr(model.h[1].mlp, register)(lambda *_: None)
    return model


def changed(model, change):
    change(model)
    return model


NOT_TAKEN = {
    "rotary positions": lambda: model_of(position_embedding="rotary"),
    "RMSNorm": lambda: model_of(norm="rmsnorm"),
    "squared ReLU": lambda: model_of(activation_function="relu2"),
    "query/key norm": lambda: model_of(qk_norm=True),
    "muP": lambda: model_of(mup_base_width=12, tie_word_embeddings=False),
    "bfloat16": lambda: model_of().bfloat16(),
    "float64": lambda: model_of().double(),
    "another device": lambda: model_of().to("meta"),
    "LoRA": lambda: changed(model_of(), lambda model: add_lora(model, rank=2)),
    "a hook": lambda: hooked(model_of(), "register_forward_hook"),
    "a hook before": lambda: hooked(model_of(), "register_forward_pre_hook"),
    "a forward of its own": lambda: changed(model_of(), lambda model: setattr(model.h[0], "forward", lambda x: x)),
    "a part put in": lambda: changed(model_of(), lambda model: setattr(model.h[0], "mlp", nn.Identity())),
    "another GELU": lambda: changed(model_of(), lambda model: setattr(model.h[0].mlp, "activation", nn.GELU())),
    "a map without bias": lambda: changed(
        model_of(), lambda model: setattr(model.h[0].mlp, "c_proj", nn.Linear(96, 24, bias=False))
    ),
    "a block less": lambda: changed(model_of(), lambda model: setattr(model, "h", model.h[:2])),
    "a subclass": lambda: type("Mine", (GPT,), {})(GPTConfig(**SHAPE)),
    "transformers": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=31, n_embd=24, n_layer=1, n_head=2)),
}


@pytest.mark.parametrize("kind", NOT_TAKEN)
def test_what_computes_something_else_is_left_to_the_model(kind):
    assert not can_decode(NOT_TAKEN[kind]())


def test_a_hook_still_has_its_say_while_a_text_is_written():
    model = model_of()
    plain = generate(model, IDS[:3], 20, Sampling(temperature=0))
    model.lm_head.register_forward_hook(lambda module, inputs, output: -output)
    assert generate(model, IDS[:3], 20, Sampling(temperature=0)) != plain


@pytest.fixture
def counted(monkeypatch):
    """Count the tokens that the decoder reads alone."""
    tokens = []

    class Counted(Decoder):
        def __call__(self, ids, cache=None, logits_to_keep=0):
            tokens.extend(ids[0].tolist() if cache is not None and ids.shape == (1, 1) else [])
            return super().__call__(ids, cache, logits_to_keep)

    monkeypatch.setattr(generation, "Decoder", Counted)
    return tokens


def test_a_single_text_is_written_by_the_decoder_past_the_window_too(counted):
    model = model_of()
    fast = generate(model, IDS[:3], 20, Sampling(temperature=0))
    # The prompt is read at once, the last token not at all; when the cache is built anew, several are read at once.
    assert 3 + len(counted) < 22 and set(counted) <= set(fast) and len(counted) > 12
    counted.clear()
    assert generate(model, IDS[:3], 20, Sampling(temperature=0), use_cache=False) == fast
    assert generate(model, [IDS[:3]] * 2, 20, Sampling(temperature=0)) == [fast] * 2
    assert counted == []


def test_weights_that_changed_count_at_once():
    model = model_of()
    before = generate(model, IDS[:3], 20, Sampling(temperature=0))
    with torch.no_grad():
        model.lm_head.weight.neg_()
    after = generate(model, IDS[:3], 20, Sampling(temperature=0))
    assert after != before and after == generate(model, IDS[:3], 20, Sampling(temperature=0), use_cache=False)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_diverged_is_named(value):
    model = model_of()
    with torch.no_grad():
        model.h[2].mlp.c_proj.weight[3] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        generate(model, [1], 20)
