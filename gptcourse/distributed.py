"""Several processes as one: what `train` shares out and adds up when `torchrun` or `accelerate launch` starts it.

Every process holds the whole model and takes its share of each batch; the gradients are added up, so that all make the
same update (data parallelism; Li et al. 2020, "PyTorch Distributed: Experiences on Accelerating Data Parallel
Training", section 2). Started in the usual way there is one process, and nothing here does anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
from torch import Tensor
from torch import distributed as dist


def init() -> None:
    """Meet the other processes, if the launcher's environment variables say that there are any."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def world_size() -> int:
    """Return how many processes work together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process; 0 is the one that writes files and shows progress."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_device() -> int:
    """Return the number of the GPU that is this process's own on its machine."""
    return int(os.environ.get("LOCAL_RANK", 0))


@torch.no_grad()
def all_reduce(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its sum over all processes; all in one message, as each message has its price."""
    if world_size() == 1:
        return
    tensors = list(tensors)
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


@torch.no_grad()
def broadcast(tensors: Iterable[Tensor]) -> None:
    """Give all processes the values of process 0."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def anywhere(flag: bool, device: torch.device) -> bool:
    """Say whether the flag is set in any process: only together can they stop."""
    if world_size() == 1:
        return flag
    flags = torch.tensor(float(flag), device=device)
    dist.all_reduce(flags)
    return flags.item() > 0


def barrier() -> None:
    """Return when all processes have come here."""
    if world_size() > 1:
        dist.barrier()
