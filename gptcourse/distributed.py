"""Several processes that train one model together, started by `torchrun` or `accelerate launch`.

Both strategies are data parallel: every process computes the gradients of its share of each batch.

* "ddp": each process holds the whole model; gradients are averaged (Li et al. 2020, "PyTorch Distributed: Experiences
  on Accelerating Data Parallel Training", section 3).
* "fsdp": each process holds one part of every weight, gradient and moment, and gathers the weights of a block just
  before it computes with them (Rajbhandari et al. 2020, "ZeRO"; Zhao et al. 2023, "PyTorch FSDP").

Started in the usual way there is one process, and nothing here does anything. PyTorch's modules for sharding take two
seconds to import, so they are imported where they are used.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from gptcourse.views import is_sharded, unwrap

STRATEGIES = ("ddp", "fsdp")
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # a platform may set some of these


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """Return the given device, or the best there is: this process's own CUDA GPU, Apple's GPU, or the CPU.

    Raises ValueError for a device that is not there.
    """
    advice = "leave `device` out"
    if device is None:
        advice = 'give device="cpu"'
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        if chosen.type == "cuda" and chosen.index is None:
            chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.empty(0, device=chosen)  # on this one alone: a process that touches another GPU takes memory there
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"PyTorch finds no device {str(device)!r} here: {advice}.") from error
    return chosen


def init(device: str | torch.device | None = None) -> None:
    """Join the other processes, if a launcher has started several: over NCCL on CUDA devices, else over gloo."""
    device = choose_device(device)
    launched = all(name in os.environ for name in LAUNCHER) and int(os.environ["WORLD_SIZE"]) > 1
    if not launched or dist.is_initialized():
        return
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_cuda else "gloo", device_id=device if on_cuda else None)


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process; process 0 writes files and shows progress."""
    return dist.get_rank() if dist.is_initialized() else 0


def wrap(model: nn.Module, device: torch.device, strategy: str = "ddp", bf16: bool = False) -> nn.Module:
    """Return the module to call in training, on `device`; with one process it is the model itself.

    All processes begin with the weights of process 0. "fsdp" changes the model in place and for good: its parameters
    become DTensors, and only calls that all processes make can read it, as `full_state` does. With `bf16` the blocks'
    weights are then gathered in bfloat16, half the bytes, for evaluation too; gradients are averaged in float32.

    Raises ValueError for another strategy, and for a model that is sharded already.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f'strategy is {strategy!r}, but it must be "ddp" (data parallel) or "fsdp" (fully sharded).')
    if is_sharded(model):
        raise ValueError("This model is sharded already: load its distributed.full_state into a new one.")
    if world_size() == 1:
        return model.to(device)
    if strategy == "fsdp":
        _shard(unwrap(model), device, bf16)
        return model
    own = [device] if device.type == "cuda" else None
    # A view: gradients kept once.
    return DistributedDataParallel(model.to(device), device_ids=own, gradient_as_bucket_view=True)


def _shard(model: nn.Module, device: torch.device, bf16: bool) -> None:
    """Leave each process its part of every block's weights, then of all others: no device ever holds all of them."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (world_size(),))  # of the device in use: there may be an unused GPU
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, torch.float32) if bf16 else MixedPrecisionPolicy()
    blocks = next((module for module in model.modules() if isinstance(module, nn.ModuleList)), ())
    for block in blocks:
        send_from_first(block.to(device).parameters())
        fully_shard(block, mesh=mesh, mp_policy=policy)
    send_from_first(chain(model.to(device).parameters(), model.buffers()))
    fully_shard(model, mesh=mesh)


def send_from_first(tensors: Iterable[Tensor]) -> None:
    """Give all processes the values that process 0 has in these tensors, but for those whose parts are spread."""
    for tensor in tensors:
        if world_size() > 1 and not is_spread(tensor):
            dist.broadcast(tensor.detach(), 0)


def gradient_sync(model: nn.Module, wanted: bool) -> AbstractContextManager:
    """Return the context of a backward pass that exchanges gradients, or only adds them up in each process.

    One exchange, after the last of a step's parts, gives the same sum as one after each.
    """
    if is_sharded(model):
        unwrap(model).set_requires_gradient_sync(wanted)
    elif not wanted and world_size() > 1:
        return model.no_sync()
    return nullcontext()


# ---- Tensors of which each process holds a part


def is_spread(tensor: Tensor) -> bool:
    """Return whether this is a DTensor, whose parts lie in several processes."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with all its parts, which all processes must ask for; any other as it is."""
    return tensor.full_tensor() if is_spread(tensor) else tensor


def own_part(tensor: Tensor, like: Tensor) -> Tensor:
    """Return this process's part of a whole tensor that all processes have, divided as `like` is."""
    if not is_spread(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)  # None: sends nothing


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds; of one that is not spread, all of it."""
    return tensor.to_local() if is_spread(tensor) else tensor


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether all numbers are finite, in the parts of all processes."""
    return all(gather(all(bool(local(tensor).isfinite().all()) for tensor in tensors)))


def full_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's whole state_dict in process 0, on the CPU; in the others {}. All processes must call it."""
    state = {}
    for name, tensor in unwrap(model).state_dict().items():
        tensor = whole(tensor)  # one at a time: a device need not hold all of them
        if rank() == 0:
            state[name] = tensor.cpu()
    return state


# ---- What processes tell each other


def all_reduce(value: float, device: torch.device, op: dist.ReduceOp = dist.ReduceOp.SUM) -> float:
    """Return the sum (or with `op` another reduction) of a number over all processes."""
    if world_size() == 1:
        return value
    total = torch.tensor(float(value), dtype=torch.float64, device=device)
    dist.all_reduce(total, op)
    return total.item()


def gather(value) -> list:
    """Return the values that the processes give, of process 0 first."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def together(action: Callable, error: type[Exception], everywhere: bool = True) -> list:
    """Call `action` in all processes, or in process 0 alone; return the results, of process 0 first.

    If it fails in one, all raise the first one's sentence as an `error`: none is left waiting for the others.
    """
    result, fault = None, None
    if everywhere or rank() == 0:
        try:
            result = action()
        except Exception as raised:
            fault = raised
    results = gather((result, fault and (str(fault) or repr(fault))))
    if sentences := [sentence for _, sentence in results if sentence]:
        raise error(sentences[0]) from fault
    return [result for result, _ in results]


# ---- Checkpoints of which each process writes its part


@contextmanager
def _first_error() -> Iterator[None]:
    """Raise OSError with the first process's error: PyTorch's own, of all of them, is a page long and no Exception."""
    from torch.distributed.checkpoint import CheckpointException

    try:
        with warnings.catch_warnings(action="ignore"):  # of what is meant: one process alone
            yield
    except CheckpointException as error:
        first, _ = next(iter(error.failures.values()))
        raise OSError(str(first)) from error


def save_parts(tensors: dict[str, Tensor], folder: Path) -> None:
    """Write tensors to safetensors files, by torch.distributed.checkpoint: each process what it alone holds."""
    from torch.distributed import checkpoint

    writer = checkpoint.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    with _first_error():
        checkpoint.save(tensors, storage_writer=writer)


def load_parts(tensors: dict[str, Tensor], folder: Path, everywhere: bool) -> None:
    """Fill tensors from such files, whoever wrote them: in all processes, or whole ones in this one alone."""
    from torch.distributed import checkpoint

    reader = checkpoint.HuggingFaceStorageReader(str(folder))
    with _first_error():
        checkpoint.load(tensors, storage_reader=reader, no_dist=not everywhere)


def kinds_of_parts(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Return shape and dtype of every tensor in such files."""
    from torch.distributed import checkpoint

    found = checkpoint.HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: (tensor.size, tensor.properties.dtype) for name, tensor in found.items()}
