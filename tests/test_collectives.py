"""Collectives on a ring of threads and of real processes: what arrives, and how much is sent."""

import threading

import pytest
import torch
from test_distributed import torchrun
from torch.testing import assert_close

from gptcourse.collectives import in_threads

PROGRAM = """
import time
import torch
from torch import distributed as dist
from gptcourse.collectives import between_processes

dist.init_process_group("gloo")
ring = between_processes()
values = torch.arange(24.0).view(12, 2) * (ring.rank + 1)
total = ring.all_reduce(values)
own, joined = ring.reduce_scatter(values), ring.all_gather(values[:1])
dist.all_reduce(theirs := values.clone())
assert torch.equal(total, theirs)
assert torch.equal(own, theirs.chunk(ring.size)[ring.rank])
assert torch.equal(joined, torch.cat([values[:1] / (ring.rank + 1) * (r + 1) for r in range(ring.size)]))
for dtype in (torch.bfloat16, torch.int64):
    assert ring.all_reduce(values.to(dtype)).equal(theirs.to(dtype))
ring.sent -= 48
ring.send(torch.tensor(float(ring.rank)))  # a number without any dimension travels, too
assert ring.receive().item() == (ring.rank - 1) % ring.size
print(f"sent {ring.sent}", flush=True)
if ring.rank:
    time.sleep(1)  # the other has come to its end when this one reads its last message
ring.all_gather(values)
"""


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_every_thread_ends_with_the_sum_and_sends_no_more_than_a_ring_must(n):
    vectors = torch.randn(n, 4 * n)
    results, sent = in_threads(lambda values, group: group.all_reduce(values), [(row,) for row in vectors])
    for result in results:
        assert_close(result, vectors.sum(0))
    assert sent == 2 * (n - 1) * 4
    parts, sent = in_threads(lambda values, group: group.reduce_scatter(values), [(row,) for row in vectors])
    assert_close(torch.cat(parts), vectors.sum(0))
    assert sent == (n - 1) * 4
    joined, sent = in_threads(lambda values, group: group.all_gather(values), [(row[:3],) for row in vectors])
    assert all(torch.equal(one, vectors[:, :3].flatten()) for one in joined) and sent == (n - 1) * 3


def test_what_was_sent_does_not_change_with_the_sender():
    def function(values, group):
        group.send(values)
        values.zero_()
        return group.receive()

    results, _ = in_threads(function, [(torch.ones(2),), (torch.full((2,), 2.0),)])
    assert [result.tolist() for result in results] == [[2.0, 2.0], [1.0, 1.0]]


def test_a_message_that_nobody_sends_or_reads_is_said(monkeypatch):
    monkeypatch.setattr("gptcourse.collectives.PATIENCE", 0.1)
    with pytest.raises(RuntimeError, match=r"Process . waits for a message that process . has not sent"):
        in_threads(lambda group: group.receive(), [(), ()])
    with pytest.raises(RuntimeError, match="nobody has received"):
        in_threads(lambda group: group.send(torch.ones(1)), [(), ()])


def test_what_one_thread_raises_is_raised_and_the_others_do_not_wait_for_it():
    def function(group):
        if group.rank == 1:
            raise ValueError("one fails")
        return group.receive()

    before = threading.active_count()
    with pytest.raises(ValueError, match="one fails"):
        in_threads(function, [(), (), ()])
    assert threading.active_count() == before


def test_two_real_processes_agree_with_pytorch(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    done = torchrun(2, tmp_path / "program.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["sent", "39", "sent", "39"]  # 24 for the sum, 12 for a half of it, 2 and 1
