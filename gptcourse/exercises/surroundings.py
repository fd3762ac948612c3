"""Judge every answer in the same surroundings, whatever another cell has done to torch, and leave none of its own."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F

CLASSES = [value for module in (nn, torch.optim) for value in vars(module).values() if inspect.isclass(value)]
OWNERS = dict.fromkeys((torch, nn, F, torch.optim, torch.linalg, torch.Tensor, *CLASSES))  # their functions get patched


def _functions() -> list[tuple]:
    """Return every owner with what it holds."""
    return [(owner, dict(vars(owner))) for owner in OWNERS]


PRISTINE = _functions()  # of the moment at which the exercises are first imported


def restore_functions(functions: list[tuple] = PRISTINE) -> None:
    """Undo every replaced or added function of torch."""
    for owner, held in functions:
        now = vars(owner)
        for name, value in held.items():
            # torch itself wraps the step of an optimizer, "hooked" from then on.
            if now.get(name) is not value and callable(value) and not hasattr(now.get(name), "hooked"):
                setattr(owner, name, value)
        if inspect.isclass(owner) and len(now) > len(held):  # a module may have imported more of itself meanwhile
            for name in filter(lambda name: callable(now[name]), now.keys() - held.keys()):
                delattr(owner, name)


@contextlib.contextmanager
def own_surroundings() -> Iterator[None]:
    """Use torch as it was imported, with a generator of our own; put everything back, also what an answer has set."""
    dtype, device, functions = torch.get_default_dtype(), torch.get_default_device(), _functions()
    with torch.random.fork_rng(devices=[]):
        try:
            restore_functions()
            yield
        finally:
            restore_functions(functions)
            torch.set_default_dtype(dtype)
            if torch.get_default_device() != device:
                torch.set_default_device(device)


@contextlib.contextmanager
def own_modes() -> Iterator[None]:
    """Record gradients, and compute on the CPU in float32. Modes belong to a thread: enter this in the worker."""
    torch.set_default_dtype(torch.float32)
    elsewhere = torch.get_default_device().type != "cpu"  # the mode costs time in every call
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.device("cpu") if elsewhere else contextlib.nullcontext(),
    ):
        yield
