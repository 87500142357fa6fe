"""Rows of expert weights on their way: to other ranks when a table changes, and sums over copies."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plancc.balance import Placement, moves
from plancc.ir.layout import Part
from plancc.runtime.balance.tables import Table
from plancc.runtime.transport import Transport
from plancc.runtime.view import View

Travel = tuple[int, int, int]
"""An expert, the rank along the part that gives it, and the one that gets it."""


def travels(old: Table, new: Table, nodes: int) -> list[Travel]:
    """What must travel from the ranks of one table to those of the next, each once."""
    before, after = (
        Placement(
            (tuple(e for mine in table.held for e in mine),), table.experts, table.ranks, nodes, ()
        )
        for table in (old, new)
    )
    return [(m.expert, m.source, m.target) for m in moves(before, after) if not m.local]


def spots(held: Sequence[int], experts: Sequence[int], like: Tensor) -> Tensor:
    """The rows of experts among those held, as an index on the device of `like`."""
    at = {expert: row for row, expert in enumerate(held)}
    return torch.tensor([at[e] for e in experts], dtype=torch.long, device=like.device)


def move_rows(
    transport: Transport, view: View, part: Part, pair: tuple[Table, Table],
    way: Sequence[Travel], tensors: Sequence[Tensor], at: int,
) -> None:  # fmt: skip
    """Change the rows of `tensors` (in place) from those of the first table of `pair` to the second's.

    All ranks along the part call this alike; ranks that are not on it do not.
    """
    old, new = pair
    peers = view.peers((part,))
    mine = peers.own
    sends, recvs, taken = [], [], []
    for index, rank in enumerate(peers.ranks):
        given = [e for e, source, target in way if source == mine and target == index]
        wanted = [e for e, source, target in way if target == mine and source == index]
        for which, x in enumerate(tensors):
            if given:
                rows = x.detach().index_select(0, spots(old.held[mine], given, x))
                sends.append((rank, rows))
            if wanted:
                recvs.append((rank, (len(wanted), *x.shape[1:]), x.dtype))
                taken.append((which, wanted))
    found = transport.exchange(sends, recvs, at)
    kept = [e for e in new.held[mine] if e in old.held[mine]]
    with torch.no_grad():
        fresh = [torch.empty_like(x) for x in tensors]
        for x, out in zip(tensors, fresh, strict=True):
            rows = x.detach().index_select(0, spots(old.held[mine], kept, x))
            out.index_copy_(0, spots(new.held[mine], kept, x), rows)
        for (which, experts), rows in zip(taken, found, strict=True):
            out = fresh[which]
            out.index_copy_(0, spots(new.held[mine], experts, out), rows)
        for x, out in zip(tensors, fresh, strict=True):
            x.detach().copy_(out)


def sum_copies(
    transport: Transport, view: View, part: Part, table: Table, grads: Sequence[Tensor], at: int
) -> list[Tensor]:
    """Add the rows of each expert up over the ranks that hold it, in order of these: equal on all."""
    if not table.copied:
        return list(grads)
    peers = view.peers((part,))
    mine = table.held[peers.own]
    shared = [[e for e in held if e in mine] for held in table.held]
    others = [i for i, both in enumerate(shared) if both and i != peers.own]
    sends = [
        (peers.ranks[i], x.index_select(0, spots(mine, shared[i], x)))
        for i in others
        for x in grads
    ]
    recvs = [
        (peers.ranks[i], (len(shared[i]), *x.shape[1:]), x.dtype) for i in others for x in grads
    ]
    found = iter(transport.exchange(sends, recvs, at))
    pieces = {i: [next(found) for _ in grads] for i in others}
    pieces[peers.own] = list(grads)
    out = []
    for which, x in enumerate(grads):
        total = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
        for i in sorted(pieces):
            total.index_add_(0, spots(mine, shared[i], x), pieces[i][which].to(total.dtype))
        out.append(total.to(x.dtype))
    return out
