"""Several processes that train one model together, started by `torchrun` or `accelerate launch`.

Data parallelism: every process holds the model and computes the gradients of its share of each batch; the gradients
are averaged over the processes (Li et al. 2020, "PyTorch Distributed: Experiences on Accelerating Data Parallel
Training", section 3). Started in the usual way there is one process, and nothing here does anything.
"""

from __future__ import annotations

import os

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # a platform may set some of these


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """Return the given device, or the best there is: this process's own CUDA GPU, Apple's GPU, or the CPU.

    Raises ValueError.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"PyTorch finds no device {str(device)!r} here: leave `device` out.") from error
    device = torch.device(device)
    own = device.type == "cuda" and device.index is None
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if own else device


def init(device: str | torch.device | None = None) -> None:
    """Join the other processes, if a launcher has started several: over NCCL on CUDA devices, else over gloo."""
    device = choose_device(device)
    launched = all(name in os.environ for name in LAUNCHER) and int(os.environ["WORLD_SIZE"]) > 1
    if not launched or dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    on_cuda = device.type == "cuda"
    dist.init_process_group("nccl" if on_cuda else "gloo", device_id=device if on_cuda else None)


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process; process 0 writes files and shows progress."""
    return dist.get_rank() if dist.is_initialized() else 0


def wrap(model: nn.Module, device: torch.device, strategy: str = "ddp") -> nn.Module:
    """Return the module to call in training: the model itself, or with several processes DistributedDataParallel.

    All processes begin with the weights of process 0. Raises ValueError for another strategy than "ddp".
    """
    if strategy != "ddp":
        raise ValueError(f'strategy is {strategy!r}, but it must be "ddp" (data parallelism).')
    if world_size() == 1:
        return model
    own = [device] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=own, gradient_as_bucket_view=True)  # a view: gradients kept once


def all_reduce(value: float, device: torch.device, op: dist.ReduceOp = dist.ReduceOp.SUM) -> float:
    """Return the sum (or with `op` another reduction) of a number over all processes."""
    if world_size() == 1:
        return value
    total = torch.tensor(float(value), dtype=torch.float64, device=device)
    dist.all_reduce(total, op)
    return total.item()


def barrier() -> None:
    """Return when all processes have come here."""
    if world_size() > 1:
        dist.barrier()
