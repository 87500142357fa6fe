"""One collective for many tensors: they travel as one flat buffer, and come back in their shapes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plancc.runtime import hierarchy
from plancc.runtime.dims import Ranges, length
from plancc.runtime.pieces import join, resized, take
from plancc.runtime.transport import Group, Transport
from plancc.runtime.view import Peers


def all_reduce(
    transport: Transport, xs: Sequence[Tensor], group: Group, at: int, nodes: Sequence[int] = ()
) -> tuple[Tensor, ...]:
    """The sums of `xs` over the group, node by node where that pays."""
    flat = torch.cat([x.reshape(-1) for x in xs])
    sends = getattr(transport, "messages", True)  # a lane has no messages
    if sends and hierarchy.pays(group, nodes, flat.nbytes):
        total = hierarchy.all_reduce(transport, flat, group, nodes, at)
        return unpacked(total, [tuple(x.shape) for x in xs])
    work = getattr(transport, "all_reduce_given", transport.all_reduce)
    return unpacked(work(flat, group, at), [tuple(x.shape) for x in xs])


def reduce_scatter(
    transport: Transport, xs: Sequence[Tensor], spots: Sequence[Sequence[tuple[int, Ranges]]],
    peers: Peers, at: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The sums of `xs` over the peers, of which each keeps its spots: spots[i][peer] = (dim, ranges)."""
    rows = pieces_of(xs, spots, peers)
    shapes = [tuple(x.shape) for x in rows[peers.group.index(transport.rank)]]
    flat = [torch.cat([x.reshape(-1) for x in row]) for row in rows]
    return unpacked(transport.reduce_scatter(flat, peers.group, at), shapes)


def pieces_of(
    xs: Sequence[Tensor], spots: Sequence[Sequence[tuple[int, Ranges]]], peers: Peers
) -> list[list[Tensor]]:
    """What each member of the group keeps of `xs`."""
    order = [peers.ranks.index(rank) for rank in peers.group]
    return [[take(x, *rows[peer]) for x, rows in zip(xs, spots, strict=True)] for peer in order]


def all_gather(
    transport: Transport, xs: Sequence[Tensor],
    cuts: Sequence[tuple[int, Ranges, Sequence[Ranges]]], peers: Peers, at: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Every tensor whole along its dim: cuts[i] = (dim, all indices, those of each peer)."""
    flat = torch.cat([x.reshape(-1) for x in xs])
    shapes = [
        [
            resized(x, dim, length(pieces[peer]))
            for x, (dim, _, pieces) in zip(xs, cuts, strict=True)
        ]
        for peer in range(len(peers.ranks))
    ]
    sizes = [(sum(torch.Size(s).numel() for s in row),) for row in shapes]
    order = [peers.ranks.index(rank) for rank in peers.group]
    found = transport.all_gather(flat, peers.group, [sizes[peer] for peer in order], at)
    by_peer = {
        peer: unpacked(buffer, shapes[peer]) for peer, buffer in zip(order, found, strict=True)
    }
    return tuple(
        join([by_peer[peer][index] for peer in range(len(order))], dim, frame, pieces)
        for index, (dim, frame, pieces) in enumerate(cuts)
    )


def unpacked(flat: Tensor, shapes: Sequence[tuple[int, ...]]) -> tuple[Tensor, ...]:
    """The tensors that lie one after the other in a flat buffer."""
    pieces = flat.split([torch.Size(shape).numel() for shape in shapes])
    return tuple(piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True))
