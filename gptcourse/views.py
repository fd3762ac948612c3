"""What works on any model, of this course, of transformers or your own: views of it, its mode, dropout and window."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from gptcourse.checks import BELOW_ONE
from gptcourse.config import GPTConfig


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside the wrappers of torch.compile, DistributedDataParallel and DataParallel."""
    if isinstance(model, DistributedDataParallel | DataParallel):
        return unwrap(model.module)
    compiled = getattr(model, "_orig_mod", None)
    return model if compiled is None else unwrap(compiled)


def is_sharded(model: nn.Module) -> bool:
    """Return whether each process holds only its part of the weights, see `distributed.wrap`."""
    return hasattr(unwrap(model), "set_requires_gradient_sync")  # FSDPModule's; importing that takes two seconds


def plain_name(name: str) -> str:
    """Return the name of a parameter without the prefixes of such wrappers."""
    return name.replace("_orig_mod.", "").removeprefix("module.")


def eval_view(model: nn.Module) -> nn.Module:
    """Return a view of a model in evaluation mode: new module objects around the same parameters and buffers.

    Reading through a view leaves the model as it is: another thread may be training it, with dropout. A hook that is
    registered on the view is on the view alone. The way of torch.nn.parallel.replicate, without its copies.

    The weights of a sharded model are gathered into its own modules, so that it has no such view: what is returned puts
    the model itself into evaluation mode for each call, in which all processes must take part.
    """
    if is_sharded(model):
        return _InEvaluationMode(unwrap(model))
    views: dict[nn.Module, nn.Module] = {}

    def view_of(module: nn.Module) -> nn.Module:
        module = unwrap(module)
        if module not in views:
            views[module] = view = module.__new__(type(module))
            # Hooks, parameters and buffers lie in dicts: with its own, the view can take others.
            own = {name: value.copy() for name, value in vars(module).items() if isinstance(value, dict)}
            own |= {"training": False, "_compiled_call_impl": None}  # what model.compile() makes calls the model itself
            view.__dict__ = vars(module) | own
            for name, child in module._modules.items():
                view._modules[name] = None if child is None else view_of(child)
        return views[module]

    return view_of(model)


class _InEvaluationMode(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self._orig_mod = model  # the name by which `unwrap` finds it

    def forward(self, *arguments, **options):
        with train_mode(self._orig_mod, False):
            output = self._orig_mod(*arguments, **options)
        self._orig_mod.reshard()  # it would keep gathered weights for a backward pass, and soon they would be old
        return output


@contextmanager
def train_mode(model: nn.Module, mode: bool = True) -> Iterator[None]:
    """Put a model into training mode, or evaluation mode, and each of its modules back into its own mode afterwards."""
    before = [(module, module.training) for module in model.modules()]
    model.train(mode)
    try:
        yield
    finally:
        for module, was_training in before:
            module.training = was_training


def set_dropout(model: nn.Module, p: float) -> None:
    """Set the probability of all dropout in a model, in place.

    Dropout delays memorisation. In a short fine-tuning hardly an example is seen twice: there it delays learning only.
    """
    p = BELOW_ONE("dropout", p)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = p
        for name, value in vars(module).items():  # numbers in the layers of Llama, OPT and others
            if name.endswith("dropout") and type(value) in (int, float):
                vars(module)[name] = p
    config = getattr(unwrap(model), "config", None)
    if isinstance(config, GPTConfig):  # what is saved says what the model does
        unwrap(model).config = replace(config, dropout=p)


def only_last(model: nn.Module, n: int) -> dict[str, int]:
    """Return the option with which a model computes the logits of the last n places alone; none if it has no such."""
    return {"logits_to_keep": n} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}


def new_cache(model, batch_size: int, length: int) -> list:
    """Return an empty cache of a model for texts of up to `length` tokens, or of its window, if it takes no length."""
    takes_length = "length" in inspect.signature(model.new_cache).parameters
    return model.new_cache(batch_size, length) if takes_length else model.new_cache(batch_size)


def is_transformers(model: nn.Module) -> bool:
    """Return whether this is a model of transformers."""
    return hasattr(getattr(unwrap(model), "config", None), "model_type")


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter or buffer."""
    return next(chain(model.parameters(), model.buffers())).device


def text_config(model: nn.Module):
    """Return the config of a model; of a transformers model that reads images too, that of its language model."""
    config = getattr(unwrap(model), "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def vocab_size_of(model: nn.Module) -> int:
    """Return the number of tokens that a model knows. Raises ValueError if its config does not say it."""
    if (size := getattr(text_config(model), "vocab_size", None)) is None:
        raise ValueError(f"The config of this {type(unwrap(model)).__name__} names no vocab_size: set it.")
    return size


def context_window(model: nn.Module) -> int:
    """Return the maximum sequence length of a model. Raises ValueError if its config does not say it."""
    config = text_config(model)
    for name in ("n_positions", "max_position_embeddings", "max_seq_len", "n_ctx", "context_length", "seq_length"):
        if getattr(config, name, None):
            return getattr(config, name)
    raise ValueError(
        f"The config of this {type(unwrap(model)).__name__} names no context window: set "
        "model.config.max_position_embeddings to the number of tokens that it shall look at."
    )
