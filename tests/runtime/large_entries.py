"""What ranks do with tensors so large that their parts travel straight from memory to memory."""

from __future__ import annotations

import torch

SIZE = 9 << 20  # bytes


def values(rank, dtype, count):
    """Numbers small enough to be added exactly in any dtype."""
    return ((torch.arange(count) * (rank + 3)) % 7).to(dtype)


def large_verbs(transport, payload):
    """Gather and reduce uneven parts, one of them empty; sums of the whole; the rest goes on as ever."""
    group, own = tuple(payload["group"]), transport.rank
    if own not in group:
        return True
    for dtype in (torch.float32, torch.bfloat16, torch.bool):
        count = SIZE // dtype.itemsize
        everyone = [values(rank, dtype, count) for rank in group]
        mine = everyone[group.index(own)]
        sizes = [0 if i == 1 else count - i for i in range(len(group))]
        shapes = [(size,) for size in sizes]
        gathered = transport.all_gather(mine[: shapes[group.index(own)][0]], group, shapes, 0)
        for found, whole, size in zip(gathered, everyone, sizes, strict=True):
            assert torch.equal(found, whole[:size])
        total = everyone[0].clone()
        for other in everyone[1:]:
            total += other
        assert torch.equal(transport.all_reduce(mine, group, 1), total)
        assert torch.equal(mine, values(own, dtype, count))
        cuts = [count // 2 * (i + 1) for i in range(len(group) - 1)]
        share = transport.reduce_scatter(mine.tensor_split(cuts), group, 2)
        assert torch.equal(share, total.tensor_split(cuts)[group.index(own)])
        grid = mine[: count // 4 * 4].view(-1, 4)
        columns = [grid[:, 2 * (i % 2) : 2 * (i % 2) + 2] for i in range(len(group))]
        share = transport.reduce_scatter(columns, group, 3)
        at = 2 * (group.index(own) % 2)
        assert torch.equal(share, total[: count // 4 * 4].view(-1, 4)[:, at : at + 2])
        given = transport.all_reduce_given(mine.clone(), group, 4)
        assert torch.equal(given, total)
        small = transport.all_reduce(torch.ones(3), group, 5)
        assert torch.equal(small, torch.full((3,), float(len(group))))
    return True


def dies_before_large(transport, payload):
    """Rank 1 ends while the others wait for its part."""
    if transport.rank == 1:
        raise ValueError("gone")
    group = tuple(range(transport.world))
    transport.all_gather(torch.ones(SIZE), group, [(SIZE,)] * transport.world, 7)
