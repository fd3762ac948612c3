"""Whoever reads a model gets, and leaves, what would be there alone: views, wrappers, training in another thread."""

import threading
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from gptcourse.evaluation import log_likelihoods, perplexity
from gptcourse.finetuning import reply_loss
from gptcourse.generation import Sampling, generate
from gptcourse.model import GPT, GPTConfig
from gptcourse.training import TrainingConfig, evaluate, train
from gptcourse.tuning import gradient_noise_scale, sharpness
from gptcourse.views import context_window, device_of, eval_view, set_dropout, train_mode, unwrap, vocab_size_of

TOKENS = torch.arange(400) ** 2 % 17
IDS = TOKENS[None, :8]


def gpt(dropout=0.5):
    torch.manual_seed(0)
    return GPT(GPTConfig(17, 8, 16, 2, 2, dropout=dropout))


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=17, n_positions=8, n_embd=16, n_layer=2, n_head=2))


@pytest.mark.parametrize("new_model", [gpt, gpt2, lambda: torch.compile(gpt(), backend="eager")])
def test_a_view_evaluates_while_the_model_stays_in_training(new_model):
    model = new_model().train()
    view = eval_view(model)
    found = view(IDS).logits
    assert all(module.training for module in model.modules()) and not any(m.training for m in view.modules())
    assert torch.equal(found, unwrap(model).eval()(IDS).logits)
    assert all(ours is theirs for ours, theirs in zip(view.parameters(), unwrap(model).parameters(), strict=True))


def test_a_hook_on_a_view_is_on_the_view_alone_and_those_of_the_model_are_on_both():
    model, seen = gpt().eval(), []
    model.ln_f.register_forward_hook(lambda *_: seen.append("model"))
    view = eval_view(model)
    view.ln_f.register_forward_hook(lambda *_: seen.append("view"))
    model(IDS)
    assert seen == ["model"]
    view(IDS)
    assert seen == ["model", "model", "view"]


class Odd(torch.nn.Module):
    """A model with a child named `module`, an empty container, a missing child, and notes in a dict."""

    def __init__(self):
        super().__init__()
        self.module, self.extra = torch.nn.Linear(2, 2), torch.nn.ModuleList()
        self.register_module("missing", None)
        self.norm, self.drop, self.notes = torch.nn.BatchNorm1d(2), torch.nn.Dropout(0.5), {}

    def forward(self, x):
        self.notes["seen"] = len(x)
        return self.drop(self.norm(self.module(x)))


def test_a_view_of_an_odd_model_is_whole_and_leaves_every_part_of_it_alone():
    model, x = Odd().train(), torch.randn(4, 2)
    view = eval_view(model)
    assert unwrap(model) is model and type(view) is Odd and type(view.module) is torch.nn.Linear
    assert view.extra is not model.extra and not view.extra.training and view.missing is None
    found = view(x)
    view.norm.running_mean = torch.ones(2)
    view.register_full_backward_hook(lambda *_: None)
    assert model.notes == {} and model.norm.num_batches_tracked == 0 and not model._backward_hooks
    assert model.norm.running_mean.tolist() == [0, 0]
    assert torch.equal(found, model.eval()(x))


READERS = {
    "evaluate": lambda model: evaluate(model, TOKENS[:50]),
    "perplexity": lambda model: perplexity(model, TOKENS[:50]),
    "log_likelihoods": lambda model: log_likelihoods(model, [([1, 2], [3, 4]), ([1, 2], [5])]),
    "reply_loss": lambda model: reply_loss(model, [([1, 2, 3], [-100, 3, 4])]),
    "generate": lambda model: generate(model, [1, 2], 4, Sampling(seed=1)),
    "generate unseeded": lambda model: len(generate(model, [1, 2], 4)),
    "sharpness": lambda model: sharpness(model, IDS[:, :-1], IDS[:, 1:], tolerance=0.1),
    "noise scale": lambda model: gradient_noise_scale(model, TOKENS, small=1, big=8, n_batches=4, progress=False).trace,
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_reading_in_another_thread_changes_no_step_of_training(read):
    """With the weights held still by a rate of almost 0, only dropout could differ, and the reader's result."""
    config = TrainingConfig(12, 4, 1e-30, weight_decay=0.0)
    alone, together = gpt(), gpt()
    expected, want = train(alone, TOKENS, config, device="cpu", progress=False), str(read(gpt()))
    found, errors, ready, go = [], [], threading.Event(), threading.Event()

    def reader():
        ready.wait(60)
        try:
            while not go.is_set():
                found.append(str(read(together)))
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=reader)
    thread.start()

    def wait_for_reader(history):
        ready.set()
        while len(found) < len(history.step) and not errors:
            pass

    history = train(together, TOKENS, config, device="cpu", progress=False, callback=wait_for_reader)
    go.set()
    thread.join()
    assert not errors
    assert history == expected
    assert set(found) == {want}


@pytest.mark.parametrize("new_model", [gpt, gpt2])
def test_dropout_is_set_everywhere(new_model):
    model = new_model().train()
    set_dropout(model, 0.0)
    assert torch.equal(model(IDS).logits, model(IDS).logits)
    set_dropout(model, 0.5)
    assert not torch.equal(model(IDS).logits, model(IDS).logits)


def test_modes_come_back_after_an_exception():
    model = gpt().eval()
    model.h[0].train()
    before = [module.training for module in model.modules()]
    with pytest.raises(RuntimeError), train_mode(model):
        assert all(module.training for module in model.modules())
        raise RuntimeError
    assert [module.training for module in model.modules()] == before


def test_the_window_and_the_device_of_any_model():
    assert context_window(gpt()) == context_window(torch.compile(gpt())) == context_window(gpt2()) == 8
    assert device_of(gpt2()) == torch.device("cpu")
    model = torch.nn.Linear(1, 1)
    model.config = SimpleNamespace(vocab_size=17)
    for silent in (model, torch.nn.Linear(1, 1)):
        with pytest.raises(ValueError, match=r"^The config of this Linear names no context window: .*\.$"):
            context_window(silent)
    counts = torch.nn.Module()
    counts.register_buffer("counts", torch.zeros(3))
    assert device_of(counts) == torch.device("cpu")


def test_a_view_of_a_model_compiled_in_place_evaluates():
    model = gpt().train()
    model.compile(backend="eager")
    assert torch.equal(eval_view(model)(IDS).logits, eval_view(model)(IDS).logits)


def test_dropout_that_is_a_number_of_the_module_is_set_too():
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=31, attention_dropout=0.5, **shape)).train()
    ids = torch.tensor([[1, 2, 3, 4, 5, 6]])
    assert not torch.equal(model(ids).logits, model(ids).logits)
    set_dropout(model, 0.0)
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_dropout_that_cannot_be_changes_nothing():
    model = gpt()
    before = [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    with pytest.raises(ValueError, match=r"^dropout is 1\.5, but"):
        set_dropout(model, 1.5)
    assert before == [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)]


def test_a_model_whose_config_names_no_vocabulary_is_told_so():
    silent = torch.nn.Linear(2, 2)
    for ask in (partial(generate, silent, [1], 2), partial(evaluate, silent, torch.arange(4), sequence_length=2)):
        with pytest.raises(ValueError, match=r"names no (vocab_size|context window)"):
            ask()
    with pytest.raises(ValueError, match=r"^The config of this Linear names no vocab_size: set it\.$"):
        vocab_size_of(silent)


def test_dropout_that_is_a_number_is_set_in_other_models_too():
    shape = {"hidden_size": 16, "ffn_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 31}
    model = OPTForCausalLM(OPTConfig(word_embed_proj_dim=16, dropout=0.5, attention_dropout=0.5, **shape)).train()
    ids = torch.tensor([[3, 4, 5, 6]])
    assert not torch.equal(model(ids).logits, model(ids).logits)
    set_dropout(model, 0.0)
    assert torch.equal(model(ids).logits, model(ids).logits)
