"""All-reduce over groups that span nodes: inside the nodes first, then across, then back inside.

A node scatters the sum over its own ranks, so each of its links to other nodes carries only a share; shares
of nodes with different numbers of ranks meet where they overlap. Nodes are added in order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plancc.runtime.transport import Group, Transport

SMALL = 1 << 16
"""Bytes below which one flat all-reduce is quicker: it waits once."""


def by_node(group: Group, nodes: Sequence[int]) -> list[Group]:
    """The ranks of a group, node by node."""
    found: dict[int, list[int]] = {}
    for rank in group:
        found.setdefault(nodes[rank], []).append(rank)
    return [tuple(found[node]) for node in sorted(found)]


def pays(group: Group, nodes: Sequence[int], size: int) -> bool:
    """Whether a sum of `size` bytes goes node by node: over several nodes with neighbours inside."""
    if not nodes or size < SMALL:
        return False
    houses = by_node(group, nodes)
    return len(houses) > 1 and max(len(house) for house in houses) > 1


def spans(size: int, count: int) -> list[tuple[int, int]]:
    """Balanced shares of `size` elements."""
    return [(size * i // count, size * (i + 1) // count) for i in range(count)]


def crossings(
    size: int, houses: Sequence[Group], mine: Group, own: tuple[int, int]
) -> list[tuple[int, int, int]]:
    """What a rank with the share `own` of `size` elements swaps with other nodes: (rank, start, stop)."""
    low, high = own
    return [
        (rank, max(a, low), min(b, high))
        for house in houses
        if house is not mine
        for rank, (a, b) in zip(house, spans(size, len(house)), strict=True)
        if max(a, low) < min(b, high)
    ]


def all_reduce(
    transport: Transport, x: Tensor, group: Group, nodes: Sequence[int], at: int
) -> Tensor:
    """The sum of `x` over the group, the same bits on all its ranks."""
    houses = by_node(group, nodes)
    mine = next(house for house in houses if transport.rank in house)
    flat = x.reshape(-1)
    cuts = spans(flat.numel(), len(mine))
    part = transport.reduce_scatter([flat[a:b] for a, b in cuts], mine, at)
    low, high = cuts[mine.index(transport.rank)]
    sends: list[tuple[int, Tensor]] = []
    recvs: list[tuple[int, tuple[int, ...], torch.dtype]] = []
    places: list[tuple[int, int]] = []
    for rank, start, stop in crossings(flat.numel(), houses, mine, (low, high)):
        sends.append((rank, part[start - low : stop - low]))
        recvs.append((rank, (stop - start,), x.dtype))
        places.append((start - low, stop - low))
    found = transport.exchange(sends, recvs, at)
    total = in_order(part, houses.index(mine), houses, recvs, places, found)
    shapes = [(b - a,) for a, b in cuts]
    return torch.cat(transport.all_gather(total, mine, shapes, at)).view(x.shape)


def in_order(
    part: Tensor, own: int, houses: Sequence[Group], recvs: Sequence[tuple[int, tuple, torch.dtype]],
    places: Sequence[tuple[int, int]], found: Sequence[Tensor],
) -> Tensor:  # fmt: skip
    """The sum of the nodes' parts, added in order of the nodes on every rank."""
    total: Tensor | None = None
    for number, house in enumerate(houses):
        mine = part
        if number != own:
            mine = torch.empty_like(part)
            for (rank, _, _), (a, b), piece in zip(recvs, places, found, strict=True):
                if rank in house:
                    mine[a:b] = piece
        total = mine.clone() if total is None else total.add_(mine)
    assert total is not None
    return total
