"""A GGUF file of ours, opened by transformers and read by gguf's own reader."""

from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gptcourse.finetuning import add_lora, chat_prompt
from gptcourse.gguf_file import to_gguf
from gptcourse.model import GPT, GPTConfig
from gptcourse.tokenizers import BPETokenizer, CharTokenizer

TEXT = "Where is my order 48213? It is on its way, Zoë! <|end|>\n"
CONFIG = GPTConfig(280, n_positions=48, n_embd=32, n_layer=2, n_head=2)
ROUNDING = {"F32": 0.0, "F16": 2.0**-11, "Q8_0": 0.5 / 127 + 2.0**-11}  # of a size of 1


@pytest.fixture(scope="module")
def tokenizer():
    return BPETokenizer.train([TEXT * 3], CONFIG.vocab_size)


def model_of(**changes):
    torch.manual_seed(0)
    model = GPT(replace(CONFIG, **changes)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return model


def stored(path):
    """Return what the file holds by name, as numbers."""
    tensors = gguf.GGUFReader(path).tensors
    return {t.name: gguf.dequantize(t.data, t.tensor_type).reshape(t.shape[::-1].tolist()) for t in tensors}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("storage", ROUNDING)
def test_transformers_opens_it_with_the_logits_of_the_weights_that_are_stored(tmp_path, tokenizer, storage, tied):
    model = model_of(tie_word_embeddings=tied)
    to_gguf(model, tokenizer, tmp_path / "model.gguf", storage)
    where = {"gguf_file": "model.gguf", "n_positions": CONFIG.n_positions}
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, **where)
    rounded = GPT.from_transformers(theirs).state_dict()
    for name, weight in model.state_dict().items():
        largest = weight.abs().max().item()
        torch.testing.assert_close(rounded[name], weight, rtol=0, atol=1.01 * ROUNDING[storage] * largest)
    model.load_state_dict(rounded)
    ids = torch.tensor([tokenizer.encode(TEXT)])
    torch.testing.assert_close(theirs(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)


def test_a_matrix_is_rounded_where_it_is_asked_for_and_vectors_and_positions_are_not(tmp_path, tokenizer):
    model = model_of()
    to_gguf(model, tokenizer, tmp_path / "model.gguf", "Q8_0")
    found = stored(tmp_path / "model.gguf")
    exact = {"position_embd.weight": model.wpe.weight, "blk.1.attn_norm.bias": model.h[1].ln_1.bias}
    for name, weight in exact.items():
        assert np.array_equal(found[name], weight.detach().numpy())
    up = model.h[0].mlp.c_fc.weight.detach()
    groups = up.unflatten(1, (-1, 32))
    steps = groups.abs().amax(-1, keepdim=True) / 127
    error = (torch.tensor(found["blk.0.ffn_up.weight"]) - up).abs().unflatten(1, (-1, 32))
    assert error.max() > 0 and (error <= 0.51 * steps + 1e-3 * groups.abs()).all()
    assert "output.weight" not in found


def test_its_tokenizer_reads_and_marks_a_chat_as_ours(tmp_path, tokenizer):
    to_gguf(model_of(), tokenizer, tmp_path / "model.gguf")
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    plain = theirs(TEXT, split_special_tokens=True, add_special_tokens=False).input_ids
    assert plain == tokenizer.encode(TEXT) and theirs.decode(plain) == TEXT
    chat = [{"role": "user", "content": "Where is it?"}]
    found = theirs.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert found == chat_prompt(tokenizer, "Where is it?")
    assert theirs.eos_token_id == tokenizer.token_id("<|end|>")


@pytest.mark.parametrize(
    ("changes", "options", "reason"),
    [
        ({"norm": "rmsnorm"}, {}, "Only a GPT-2-shaped GPT"),
        ({"vocab_size": 300}, {}, "as many tokens as its model has"),
        ({}, {"storage": "Q4_0"}, "must be one of F32, F16, Q8_0"),
        ({"n_embd": 48}, {"storage": "Q8_0"}, "which groups of 32 do not fill"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_file_is_begun(tmp_path, tokenizer, changes, options, reason):
    with pytest.raises(ValueError, match=reason):
        to_gguf(GPT(replace(CONFIG, **changes)), tokenizer, tmp_path / "model.gguf", **options)
    assert list(tmp_path.iterdir()) == []


def test_another_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds a BPETokenizer"):
        to_gguf(model_of(), CharTokenizer(TEXT), tmp_path / "model.gguf")


def test_a_file_that_is_there_stays_until_the_new_one_is_whole(tmp_path, tokenizer, monkeypatch):
    path = tmp_path / "model.gguf"
    to_gguf(model_of(), tokenizer, path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
    with pytest.raises(ValueError, match="cannot be written"):
        to_gguf(model_of(n_layer=1), tokenizer, path)
    assert path.read_bytes() == before and [*tmp_path.iterdir()] == [path]
    with pytest.raises(ValueError, match="cannot be written"):
        to_gguf(model_of(), tokenizer, tmp_path / "none" / "model.gguf")
    lora = model_of()
    add_lora(lora)
    with pytest.raises(ValueError, match="merge_lora"):
        to_gguf(lora, tokenizer, path)


def test_an_lm_head_that_was_untied_by_hand_is_stored(tmp_path, tokenizer):
    model = model_of()
    model.lm_head.weight = torch.nn.Parameter(model.wte.weight.detach() + 1)
    to_gguf(model, tokenizer, tmp_path / "own.gguf", "F32")
    np.testing.assert_array_equal(stored(tmp_path / "own.gguf")["output.weight"], model.lm_head.weight.detach().numpy())
