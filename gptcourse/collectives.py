"""What processes send each other, written out: a ring in which each sends to the next and receives from the last.

`Member` holds the collectives, made of sending and receiving alone; a subclass says how a tensor travels. `in_threads`
lets threads play the processes, so that many fit into a notebook; `between_processes` joins real ones, over gloo.

Source: Patarasuk and Yuan (2009), "Bandwidth optimal all-reduce algorithms for clusters of workstations".

Shapes: n is the number of processes; a tensor that is cut into blocks has n · k rows.
"""

from __future__ import annotations

import atexit
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

PATIENCE = 2.0  # seconds that a thread waits for a message
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8)
GLANCE = 0.02  # seconds between two looks whether another thread has failed


class Member:
    """One process of a ring: its `rank` of `size`, and `sent`, how many numbers it has sent so far."""

    def __init__(self, rank: int, size: int):
        self.rank, self.size, self.sent = rank, size, 0

    def send(self, tensor: Tensor) -> None:
        """Send a tensor to the next process; of the last one that is process 0."""
        self.sent += tensor.numel()
        self._send(tensor.detach().clone())

    def receive(self) -> Tensor:
        """Return the tensor that the process before has sent, and wait for it."""
        return self._receive()

    def reduce_scatter(self, tensor: Tensor) -> Tensor:
        """Return this process's block (k, …) of the sum of all processes' tensors (n · k, …)."""
        blocks = list(tensor.chunk(self.size))
        for step in range(1, self.size):
            self.send(blocks[(self.rank - step) % self.size])
            place = (self.rank - step - 1) % self.size
            blocks[place] = blocks[place] + self.receive()
        return blocks[self.rank]

    def all_gather(self, block: Tensor) -> Tensor:
        """Return the blocks (k, …) of all processes, joined: (n · k, …)."""
        blocks = [block] * self.size
        for step in range(self.size - 1):
            self.send(blocks[(self.rank - step) % self.size])
            blocks[(self.rank - step - 1) % self.size] = self.receive()
        return torch.cat(blocks)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Return the sum of all processes' tensors, of any shape whose size n divides."""
        return self.all_gather(self.reduce_scatter(tensor.flatten())).view(tensor.shape)


class _Thread(Member):
    """A thread that plays a process; `boxes` holds a queue of messages for each."""

    def __init__(self, rank: int, boxes: Sequence[queue.Queue], failed: threading.Event):
        super().__init__(rank, len(boxes))
        self.boxes, self.failed = boxes, failed

    def _send(self, tensor: Tensor) -> None:
        self.boxes[(self.rank + 1) % self.size].put(tensor)

    def _receive(self) -> Tensor:
        for _ in range(round(PATIENCE / GLANCE)):
            try:
                return self.boxes[self.rank].get(timeout=GLANCE)
            except queue.Empty:
                if self.failed.is_set():
                    break
        before = (self.rank - 1) % self.size
        raise RuntimeError(f"Process {self.rank} waits for a message that process {before} has not sent.")


def in_threads(function: Callable, parts: Sequence[tuple]) -> tuple[list[Any], int]:
    """Call function(*part, member) for each part in a thread that plays a process.

    Returns what each call returned, and the most numbers that one of them sent. Raises what a call has raised first,
    and RuntimeError where one waits for a message that nobody sends, or leaves one unread.
    """
    boxes, failed, errors = [queue.Queue() for _ in parts], threading.Event(), []
    members = [_Thread(rank, boxes, failed) for rank in range(len(parts))]
    results: list[Any] = [None] * len(parts)

    def play(rank: int) -> None:
        try:
            results[rank] = function(*parts[rank], members[rank])
        except BaseException as error:  # raised again below, in the thread that called
            errors.append(error)
            failed.set()

    threads = [threading.Thread(target=play, args=(rank,), daemon=True) for rank in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    if not all(box.empty() for box in boxes):
        raise RuntimeError("A message was sent that nobody has received.")
    return results, max(member.sent for member in members)


class _Process(Member):
    """A process among those that torch.distributed has joined; a tensor travels with its shape before it."""

    def __init__(self):
        super().__init__(dist.get_rank(), dist.get_world_size())
        self.under_way: list = []  # gloo still reads what was sent until it has arrived

    def _send(self, tensor: Tensor) -> None:
        head = torch.tensor([DTYPES.index(tensor.dtype), tensor.ndim, *tensor.shape, *[0] * (4 - tensor.ndim)])
        self.under_way = [entry for entry in self.under_way if not entry[0].is_completed()]
        for part in (head, tensor):
            self.under_way.append((dist.isend(part, (self.rank + 1) % self.size), part))

    def _receive(self) -> Tensor:
        head, before = torch.zeros(6, dtype=torch.int64), (self.rank - 1) % self.size
        dist.recv(head, before)
        tensor = torch.empty(head[2 : 2 + head[1]].tolist(), dtype=DTYPES[head[0]])
        dist.recv(tensor, before)
        return tensor


def between_processes() -> Member:
    """Return this process's place in the ring; torch.distributed must have joined the processes, over gloo."""
    member = _Process()
    atexit.register(lambda: [work.wait() for work, _ in member.under_way])
    return member
