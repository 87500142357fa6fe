"""Routed rows at run time: which tokens a rank sends to which ranks of experts, and what arrives there.

A token goes once to each rank that has one of its experts (a copy of the experts where they are replicated:
sources take turns at the copies). Results come back the same way and are summed in order of the ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from plancc.dsl.errors import Bug
from plancc.ir.layout import Part
from plancc.ops.routing import check_routing, combine, permute
from plancc.runtime.dims import Dim, Ranges
from plancc.runtime.view import Members, View


@dataclass(frozen=True, slots=True)
class Route:
    """What a source sends: for each target rank the rows (positions of its tokens, ascending)."""

    tokens: int
    rows: tuple[tuple[int, Tensor], ...]
    seats: Tensor | None = None  # [t, k]: what the targets get to know as the choices


@dataclass(frozen=True, slots=True)
class Arrivals:
    """What a target receives: for each source rank how many rows, in the order in which they are joined."""

    counts: tuple[tuple[int, int], ...]


def find_route(
    view: View, index: Tensor, weight: Tensor, source: Members, target: Members, experts: Dim,
    parts: Sequence[Part],
) -> Route:  # fmt: skip
    """The rows of this source for every target that listens to it.

    `index` and `weight` [t, k] are the chosen experts; RoutingError if they are not sound.
    """
    check_routing(index, weight, experts.total)
    place = source.ranks.index(view.rank)
    there = {
        rank: experts.seats(view.coord_of(rank)) for rank in listeners(view, target, parts, place)
    }
    total = experts.total
    if experts.room:
        index = view.tables.seat(experts.parts[0], total, index, place)
        total = experts.room * experts.parts[0].count
    shards = tuple(dict.fromkeys(there.values()))
    owners = hosts(shards, total, index.device)[index]
    found, counts = permute(owners, len(shards))
    rows = dict(zip(shards, found.split(counts.tolist()), strict=True))
    pairs = tuple((rank, rows[shard]) for rank, shard in there.items())
    return Route(index.shape[0], pairs, index)


@lru_cache(maxsize=64)
def hosts(shards: tuple[Ranges, ...], experts: int, device: torch.device) -> Tensor:
    """The shard that has each expert [experts] int64, -1 for none; Bug if two have one."""
    table = torch.full((experts,), -1, dtype=torch.int64)
    for at, shard in enumerate(shards):
        for low, high in shard:
            if bool((table[low:high] >= 0).any()):
                raise Bug(f"two shards hold one of the experts {low}..{high - 1}")
            table[low:high] = at
    return table.to(device)


def copies(view: View, target: Members, parts: Sequence[Part]) -> tuple[tuple[int, ...], ...]:
    """The ranks that hold each shard of the experts."""
    found: dict[tuple, list[int]] = {}
    for rank in target.ranks:
        found.setdefault(tuple(view.index(rank, part) for part in parts), []).append(rank)
    return tuple(map(tuple, found.values()))


def listeners(
    view: View, target: Members, parts: Sequence[Part], place: int
) -> tuple[int, ...]:  # fmt: skip
    """The ranks to which source number `place` sends: one copy of every shard of the experts."""
    return tuple(ranks[place % len(ranks)] for ranks in copies(view, target, parts))


def senders(
    view: View, source: Members, target: Members, parts: Sequence[Part]
) -> tuple[int, ...]:  # fmt: skip
    """The source ranks that send to this target."""
    mine = next(ranks for ranks in copies(view, target, parts) if view.rank in ranks)
    turn = mine.index(view.rank)
    return tuple(rank for place, rank in enumerate(source.ranks) if place % len(mine) == turn)


def added(total: int, tail: Sequence[int], found: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Sum rows back into [total, ...]: (positions, values) in order of the ranks they come from."""
    rows, values = (torch.cat(pieces) for pieces in zip(*found, strict=True))
    return combine(rows, values.flatten(1), total).reshape(total, *tail)
