"""Models as files: tied or not, wrapped, damaged; the same logits after every way, or one sentence."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from gptcourse.checkpoints import CheckpointError
from gptcourse.finetuning import add_lora, finetune, merge_lora, reinit_embeddings
from gptcourse.model import GPT, GPTConfig
from gptcourse.training import TrainingConfig, evaluate, train
from gptcourse.views import eval_view, unwrap

TOKENS = torch.arange(400) ** 2 % 17
IDS = TOKENS[None, :8]
EXAMPLES = [([1, 2, 3], [-100, 3, 4]), ([4, 5], [5, 6])]
CONFIG = TrainingConfig(4, 2, 1e-2, save_steps=2)


def untied(**shape):
    """A GPT whose LM head was untied by hand: its config still says tied."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(17, 8, 16, 2, 2, **shape)).eval()
    model.lm_head.weight = nn.Parameter(torch.randn(17, 16))
    return model


def saved(model, folder):
    model.save(folder)
    return GPT.load(folder)


def transformers_and_back(model, folder):
    return GPT.from_transformers(model.to_transformers())


def saved_by_transformers(model, folder):
    model.to_transformers().save_pretrained(folder)
    return GPT.load(folder)


def opened_by_transformers(model, folder):
    model.save(folder)
    return AutoModelForCausalLM.from_pretrained(folder)


def resumed(model, folder):
    options = {"device": "cpu", "progress": False, "checkpoint_dir": folder}
    train(model, TOKENS, CONFIG, **options)
    other = untied()
    train(other, TOKENS, CONFIG, resume=True, **options)
    assert_close(other(IDS).logits, GPT.load(folder / "step-00000004")(IDS).logits, rtol=0, atol=0)
    return other


def merged(model, folder):
    add_lora(model, targets=("c_attn", "lm_head"))
    model.lm_head.lora_B.data.normal_()
    before = model(IDS).logits
    merge_lora(model)
    assert_close(model(IDS).logits, before)
    return saved(model, folder)


WAYS = [saved, transformers_and_back, saved_by_transformers, opened_by_transformers, resumed, merged]


@pytest.mark.parametrize("way", [*WAYS, lambda model, _: copy.deepcopy(model), lambda model, _: eval_view(model)])
def test_an_untied_lm_head_stays_untied(way, tmp_path):
    model = untied()
    assert_close(way(model, tmp_path)(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("kind", ["ours", "transformers"])
def test_lora_on_a_tied_lm_head_leaves_the_embeddings_alone(kind, tmp_path):
    torch.manual_seed(0)
    model = GPT(GPTConfig(17, 8, 16, 2, 2)).eval()
    model = model.to_transformers().eval() if kind == "transformers" else model
    add_lora(model, targets=["lm_head"])
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    before = model(IDS).logits
    merge_lora(model)
    assert_close(model(IDS).logits, before)
    getattr(model, "save_pretrained" if kind == "transformers" else "save")(tmp_path)
    assert_close(GPT.load(tmp_path)(IDS).logits, before)
    assert_close(AutoModelForCausalLM.from_pretrained(tmp_path)(IDS).logits, before)


def test_other_changes_by_hand_are_refused_before_anything_is_written(tmp_path):
    model = untied()
    model.lm_head = nn.Linear(16, 17)
    for save in (lambda: model.save(tmp_path), model.to_transformers):
        with pytest.raises(ValueError, match=r"^GPT\(config\) has other weights .*lm_head\.bias.*\.$"):
            save()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrap", [lambda m: torch.compile(m, backend="eager"), lambda m: m], ids=["compiled", "plain"])
def test_a_compiled_model_is_tuned_saved_and_resumed_as_the_plain_one(wrap, tmp_path):
    model = untied()
    wrapped = wrap(model)
    options = {"device": "cpu", "progress": False}
    reinit_embeddings(wrapped, [3])
    add_lora(wrapped)
    finetune(wrapped, EXAMPLES, CONFIG, checkpoint_dir=tmp_path / "run", **options)
    assert not any("_orig_mod" in name for name in load_file(tmp_path / "run/step-00000004/model.safetensors"))
    plain = untied()
    reinit_embeddings(plain, [3])
    add_lora(plain)
    finetune(plain, EXAMPLES, CONFIG, checkpoint_dir=tmp_path / "run", resume=True, **options)
    assert_close(plain(IDS).logits, model(IDS).logits, rtol=0, atol=0)
    merge_lora(wrapped)
    wrapped.save(tmp_path / "saved")
    assert not any("_orig_mod" in name for name in load_file(tmp_path / "saved/model.safetensors"))
    again = GPT(GPT.load(tmp_path / "saved").config)
    again.load_state_dict(wrapped.state_dict())
    assert_close(again.eval()(IDS).logits, unwrap(wrapped)(IDS).logits)


class Learners(GPT):
    """A subclass, as a learner writes one."""


def test_a_subclass_is_saved_and_loaded_as_itself(tmp_path):
    torch.manual_seed(0)
    model = Learners(GPTConfig(17, 8, 16, 2, 2)).eval()
    model.save(tmp_path)
    again = Learners.load(tmp_path)
    assert type(again) is Learners
    assert_close(again(IDS).logits, model(IDS).logits)


def damaged(folder, how):
    config, weights = folder / "config.json", folder / "model.safetensors"
    settings = json.loads(config.read_text())
    if how == "config nested too deep":
        config.write_text("[" * 100_000)
    elif how == "config a list":
        config.write_text("[1]")
    elif how == "config of nothing":
        config.write_text('{"model_type": "gpt2"}')
    elif how == "config of another size":
        config.write_text(json.dumps(settings | {"n_layer": 1}))
    elif how == "weights without a token table":
        save_file({n: t for n, t in load_file(weights).items() if "wte" not in n and "lm_head" not in n}, weights)
    elif how == "an enormous model":  # refused before it is built: that would take days
        config.write_text(json.dumps(settings | {"n_layer": 10**9}))
    elif how == "whole numbers":
        save_file({n: t.int() for n, t in load_file(weights).items()}, weights)
    elif how == "an unknown setting":
        config.write_text(json.dumps(settings | {"model_type": "gptcourse"}))


HOWS = {
    "config nested too deep": "config.json is missing or damaged",
    "config a list": "holds a None model",
    "config of nothing": "does not say vocab_size, n_positions",
    "config of another size": "says n_layer 1, and its weights have 2 layers",
    "an unknown setting": "has a setting '[a-z_]+', which this version does not know",
    "an enormous model": "says n_layer 1000000000, and",
    "weights without a token table": "of wte.weight, and its weights say nothing",
    "whole numbers": "are torch.int32, and must be floating",
}


@pytest.mark.parametrize("how", HOWS)
def test_a_damaged_model_is_one_sentence(how, tmp_path):
    untied().save(tmp_path)
    damaged(tmp_path, how)
    with pytest.raises(ValueError, match=f"^[^\n]*{tmp_path.name}[^\n]*{HOWS[how]}[^\n]*$"):
        GPT.load(tmp_path)


def test_a_tilde_is_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    untied().save("~/model")
    assert (tmp_path / "model" / "config.json").is_file()
    assert_close(GPT.load("~/model")(IDS).logits, untied()(IDS).logits)
    for call in (untied().save, GPT.load):
        with pytest.raises(ValueError, match=r"^~nosuchuser/model lies in no home directory"):
            call("~nosuchuser/model")
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        GPT.load("a" * 5000)


@pytest.mark.parametrize("directory", ["~nosuchuser/run", "a" * 5000])
def test_a_checkpoint_dir_that_cannot_be_is_one_sentence(directory):
    with pytest.raises(ValueError, match=r"^[^\n]*(lies in no home directory|cannot be written)[^\n]*\.$"):
        train(untied(), TOKENS, CONFIG, checkpoint_dir=directory, device="cpu", progress=False)


def test_a_file_may_be_overwritten_by_the_model_that_was_loaded_from_it(tmp_path):
    model = untied()
    model.save(tmp_path)
    loaded = GPT.load(tmp_path)
    loaded.save(tmp_path)
    assert_close(GPT.load(tmp_path)(IDS).logits, model(IDS).logits)


def test_loading_leaves_the_callers_random_numbers_alone(tmp_path):
    untied().save(tmp_path)
    before = torch.get_rng_state()
    assert GPT.load(tmp_path).wte.weight.requires_grad
    assert torch.equal(torch.get_rng_state(), before)


class Unsavable(nn.Module):
    """Two parameters on one piece of memory: safetensors refuses them."""

    def __init__(self):
        super().__init__()
        self.config = GPTConfig(17, 8, 16, 2, 2)
        table = torch.zeros(17, 17)
        self.one, self.two = nn.Parameter(table), nn.Parameter(table)

    def forward(self, ids, targets):
        logits = self.one[ids] + self.two[ids]
        return type("Output", (), {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())})


def test_what_cannot_be_saved_is_found_out_before_the_first_step(tmp_path):
    steps, options = [], {"device": "cpu", "progress": False, "callback": lambda h: steps.append(h.step[-1])}
    (tmp_path / "file").write_text("")
    for model, place in ((Unsavable(), tmp_path / "run"), (untied(), tmp_path / "file")):
        with pytest.raises(CheckpointError):
            train(model, TOKENS, CONFIG, checkpoint_dir=place, **options)
    assert steps == []
    train(Unsavable(), TOKENS, CONFIG, **options)
    assert steps == [1, 2, 3, 4]


def test_a_loaded_model_has_the_same_logits_bit_for_bit(tmp_path):
    """Its weights lie in memory as those of a new model do, so that the same kernels multiply them."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(17, 8, 64, 2, 2)).eval()
    assert torch.equal(saved(model, tmp_path)(IDS).logits, model(IDS).logits)
    assert all(parameter.is_contiguous() for parameter in GPT.load(tmp_path).parameters())


def test_weights_of_an_untied_head_are_not_taken_by_a_tied_one():
    torch.manual_seed(0)
    tied = GPT(GPTConfig(17, 8, 16, 2, 2))
    with pytest.raises(ValueError, match=r"have an LM head of their own, and this model's is tied"):
        tied.load_state_dict(untied().state_dict())
    tied.load_state_dict(GPT(GPTConfig(17, 8, 16, 2, 2)).state_dict())


def test_a_model_with_a_compiled_block_resumes_and_loads_as_the_plain_one(tmp_path):
    options = {"device": "cpu", "progress": False, "checkpoint_dir": tmp_path}
    compiled, plain = untied(), untied()
    compiled.h[0] = torch.compile(compiled.h[0], backend="eager")
    train(compiled, TOKENS, CONFIG, **options)
    assert not any("_orig_mod" in name for name in load_file(tmp_path / "step-00000004/model.safetensors"))
    train(plain, TOKENS, CONFIG, resume=True, **options)
    assert_close(plain(IDS).logits, compiled(IDS).logits, rtol=0, atol=0)
    other = untied()
    other.h[1] = torch.compile(other.h[1], backend="eager")
    other.load_state_dict(compiled.state_dict())
    assert_close(other(IDS).logits, compiled(IDS).logits, rtol=0, atol=0)


def test_a_wrapped_model_is_trained_tuned_and_measured_as_the_plain_one():
    options, plain = {"device": "cpu", "progress": False}, untied()
    wrapped = nn.DataParallel(untied())
    assert train(wrapped, TOKENS, CONFIG, **options) == train(plain, TOKENS, CONFIG, **options)
    assert evaluate(wrapped, TOKENS) == evaluate(plain, TOKENS)
    assert finetune(wrapped, EXAMPLES, CONFIG, **options) == finetune(plain, EXAMPLES, CONFIG, **options)


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), 0.0])
def test_an_impossible_alpha_and_tokens_that_are_none_are_refused(alpha):
    with pytest.raises(ValueError, match=r"^alpha is .*finite number greater than 0\.$"):
        add_lora(untied(), alpha=alpha)
    with pytest.raises(ValueError, match=r"^tokens must be ids"):
        reinit_embeddings(untied(), [1.5])
    model, before = untied(), untied()
    reinit_embeddings(model, (token for token in [3]))  # a generator is read once
    assert not torch.equal(model.wte.weight[3], before.wte.weight[3])


def test_a_model_whose_own_lm_head_is_missing_is_refused(tmp_path):
    transformers = pytest.importorskip("transformers")
    shape = {"vocab_size": 17, "n_positions": 8, "n_embd": 16, "n_layer": 1, "n_head": 2}
    body = transformers.GPT2Model(transformers.GPT2Config(tie_word_embeddings=False, **shape))
    body.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"its weights lack those of the LM head"):
        GPT.load(tmp_path)


def test_ctrl_c_between_two_renames_leaves_the_model_that_is_there(tmp_path, monkeypatch):
    old = untied()
    old.save(tmp_path)
    replace_, calls = Path.replace, []

    def interrupted(path, target):
        calls.append(path)
        if len(calls) == 3:  # both old files are out of the way
            raise KeyboardInterrupt
        return replace_(path, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        GPT(GPTConfig(17, 8, 16, 2, 2)).save(tmp_path)
    monkeypatch.undo()
    assert torch.equal(GPT.load(tmp_path).lm_head.weight, old.lm_head.weight)
