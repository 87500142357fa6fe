"""What ranks do in the tests of this folder: entries that take (transport, payload)."""

from __future__ import annotations

import ctypes
import os
import signal
import time

import torch

from plancc.runtime.processes import RankResult

DTYPES = ("float64", "float32", "bfloat16", "float16", "int64", "int32", "bool")
EXACT = 1e-12


def value(rank, shape, dtype=torch.float64, salt=0):
    """The tensor that a rank brings: small whole numbers, so that every sum is exact."""
    generator = torch.Generator().manual_seed(1000 * salt + rank)
    return torch.randint(-3, 4, shape, generator=generator).to(dtype)


def plain_sum(tensors):
    total = tensors[0].clone()
    for tensor in tensors[1:]:
        total = total + tensor
    return total


def uneven(group, rank):
    """A shape that differs by rank; without elements for every third rank."""
    return (group.index(rank) % 3, 4)


def hello(transport, payload):
    group = tuple(range(transport.world))
    x = torch.full((4,), float(transport.rank + 1))
    return [transport.all_reduce(x, group, 0)[0].item(), payload]


def all_verbs(transport, payload):
    """Every verb over the group, for every dtype, against plain sums."""
    group = tuple(payload.get("group", range(transport.world)))
    if transport.rank in group:
        for dtype in payload.get("dtypes", DTYPES):
            check_all_reduce(transport, group, getattr(torch, dtype))
            check_all_gather(transport, group, getattr(torch, dtype))
            check_reduce_scatter(transport, group, getattr(torch, dtype))
            check_all_to_all(transport, group, getattr(torch, dtype))
            check_ring(transport, group, getattr(torch, dtype))
        transport.barrier(group, 99)
    return [transport.counters.calls, transport.counters.bytes]


def check_all_reduce(transport, group, dtype):
    for shape in ((3, 5), (), (0, 2), (300, 310)):
        x = value(transport.rank, shape, dtype)
        before = x.clone()
        total = transport.all_reduce(x, group, 1)
        expected = plain_sum([value(r, shape, dtype) for r in group])
        assert total.dtype == dtype
        assert torch.equal(total, expected)
        assert torch.equal(x, before)
        total.zero_()
        assert torch.equal(x, before)
    turned = value(transport.rank, (4, 6), dtype).t()[::2]
    expected = plain_sum([value(r, (4, 6), dtype).t()[::2] for r in group])
    assert torch.equal(transport.all_reduce(turned, group, 2), expected)


def check_all_gather(transport, group, dtype):
    for shapes in ([uneven(group, r) for r in group], [(2, 2)] * len(group), [()] * len(group)):
        x = value(transport.rank, shapes[group.index(transport.rank)], dtype)
        found = transport.all_gather(x, group, shapes, 3)
        for rank, shape, tensor in zip(group, shapes, found, strict=True):
            assert torch.equal(tensor, value(rank, shape, dtype))
        assert found[group.index(transport.rank)].data_ptr() != x.data_ptr() or not x.numel()


def check_reduce_scatter(transport, group, dtype):
    shapes = [uneven(group, r) for r in group]
    parts = [value(transport.rank, shape, dtype, salt=i) for i, shape in enumerate(shapes)]
    mine = group.index(transport.rank)
    found = transport.reduce_scatter(parts, group, 4)
    expected = plain_sum([value(r, shapes[mine], dtype, salt=mine) for r in group])
    assert torch.equal(found, expected)


def check_all_to_all(transport, group, dtype):
    me = group.index(transport.rank)
    parts = [value(transport.rank, (i % 2 + me % 2, 3), dtype, salt=i) for i in range(len(group))]
    shapes = [(me % 2 + i % 2, 3) for i in range(len(group))]
    found = transport.all_to_all(parts, group, shapes, 5)
    for rank, shape, tensor in zip(group, shapes, found, strict=True):
        assert torch.equal(tensor, value(rank, shape, dtype, salt=me))


def check_ring(transport, group, dtype):
    """Everybody sends two messages to its right, one of them empty, and one to itself."""
    me = group.index(transport.rank)
    right, left = group[(me + 1) % len(group)], group[me - 1]
    mine = value(transport.rank, (2, 3), dtype)
    empty, own = torch.empty(0, 3, dtype=dtype), value(transport.rank, (7,), dtype)
    sends = [(right, mine.t()), (right, empty), (transport.rank, own)]
    recvs = [(left, (3, 2), dtype), (left, (0, 3), dtype), (transport.rank, (7,), dtype)]
    if len(group) > 1:
        found = transport.exchange(sends, recvs, 6)
        assert torch.equal(found[0], value(left, (2, 3), dtype).t())
        assert found[1].shape == (0, 3)
        assert torch.equal(found[2], own)


def many_groups(transport, payload):
    """Groups that overlap, used in another number and order by different ranks."""
    for at, group in enumerate(payload["groups"]):
        group = tuple(group)
        if transport.rank in group:
            total = transport.all_reduce(torch.tensor([float(transport.rank)]), group, at)
            assert total.item() == sum(group)
    return True


def far_ahead(transport, payload):
    """Rank 0 sends everything before rank 1 receives anything, and overwrites what it sent."""
    count, x = payload["count"], torch.zeros(payload["size"])
    if transport.rank == 0:
        for i in range(count):
            x.fill_(i)
            transport.exchange([(1, x)], [], i)
        transport.barrier((0, 1), count)
    else:
        transport.barrier((0, 1), 0)
        for i in range(count):
            found = transport.exchange([], [(0, (payload["size"],), torch.float32)], i + 1)
            assert torch.equal(found[0], torch.full((payload["size"],), float(i)))
    return True


def tensors(transport, payload):
    table = torch.arange(6.0).view(2, 3).t() + transport.rank
    return RankResult({"rank": transport.rank}, {"x": table, "half": table.to(torch.bfloat16)})


def misbehave(transport, payload):
    """Work in step with the others, until rank `who` does what `how` says at instruction 5."""
    group, x = tuple(range(transport.world)), torch.ones(8)
    for at in range(5):
        transport.set_position(at)
        x = transport.all_reduce(x, group, at) / transport.world
    transport.set_position(5)
    os.write(1, b"standing\n")
    if transport.rank == payload["who"]:
        _misbehave(transport, payload["how"])
    return transport.all_reduce(x, group, 6).tolist()


def _misbehave(transport, how):
    if how == "raise":
        raise ValueError("no such thing")
    if how == "exit":
        os._exit(0)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "segfault":
        ctypes.string_at(0)
    if how == "hang":
        time.sleep(1000)
    if how == "hang in C":  # holds the interpreter lock, so that no other thread runs
        ctypes.PyDLL(None).pause()
    if how == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if how == "wait":
        transport.exchange([], [((transport.rank + 1) % transport.world, (1,), torch.float32)], 5)


def mismatch(transport, payload):
    """Rank 0 does another thing than rank 1 at the same meeting."""
    group, rank = (0, 1), transport.rank
    transport.program = "class-0"
    x = torch.ones(4, 2)
    how = payload["how"]
    if how == "kind" and rank:
        return transport.all_gather(x, group, [(4, 2)] * 2, 3)
    if how == "shape" and rank:
        return transport.all_reduce(x[:3], group, 3)
    if how == "dtype" and rank:
        return transport.all_reduce(x.half(), group, 3)
    if how == "skipped":
        return transport.all_reduce(x, group, 3 + rank)
    if how == "part":
        return transport.all_to_all([x, x], group, [(4 - rank, 2), (4, 2)], 3)
    if how == "message":
        sends, recvs = [(1, x)] * (1 - rank), [(0, (8,), torch.float32)] * rank
        return transport.exchange(sends, recvs, 3)
    return transport.all_reduce(x, group, 3)


def deadlock(transport, payload):
    """Everybody waits for a message from its right, or from rank 0 after it has finished."""
    if payload["how"] == "cycle":
        transport.exchange([], [((transport.rank + 1) % transport.world, (1,), torch.float32)], 7)
    elif payload["how"] == "finished" and transport.rank:
        transport.barrier((0, 1), 7)
    elif payload["how"] == "unreceived" and not transport.rank:
        transport.exchange([(1, torch.ones(4))], [], 7)


def slow_chain(transport, payload):
    """Rank 0 waits longer than the limit for rank 1, which goes on in smaller steps."""
    if transport.rank == 0:
        transport.exchange([], [(1, (1,), torch.float32)], 0)
    else:
        for at in range(5):
            transport.set_position(at)
            time.sleep(payload["step"])
        transport.exchange([(0, torch.ones(1))], [], 5)
    return True
