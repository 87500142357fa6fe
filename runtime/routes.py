"""Routed rows at run time: which tokens a rank sends to which ranks of experts, and what arrives there.

A token goes once to each rank that has one of its experts (a copy of the experts where they are replicated:
sources take turns at the copies). Results come back the same way and are summed in order of the ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plancc.ir.layout import Part
from plancc.runtime.dims import Dim
from plancc.runtime.view import Members, View


@dataclass(frozen=True, slots=True)
class Route:
    """What a source sends: for each target rank the rows (positions of its tokens, ascending)."""

    tokens: int
    rows: tuple[tuple[int, Tensor], ...]


@dataclass(frozen=True, slots=True)
class Arrivals:
    """What a target receives: for each source rank how many rows, in the order in which they are joined."""

    counts: tuple[tuple[int, int], ...]


def find_route(
    view: View, index: Tensor, source: Members, target: Members, experts: Dim,
    parts: Sequence[Part],
) -> Route:  # fmt: skip
    """The rows of this source for every target that listens to it; `index` [t, k] are chosen experts."""
    place = source.ranks.index(view.rank)
    rows: dict[tuple, Tensor] = {}
    found = []
    for rank in listeners(view, target, parts, place):
        spans = experts.ranges(view.coord_of(rank))
        if spans not in rows:
            rows[spans] = choosing(index, spans)
        found.append((rank, rows[spans]))
    return Route(index.shape[0], tuple(found))


def choosing(index: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
    """The tokens that chose at least one expert within `spans`, ascending."""
    mine = torch.zeros(index.shape[0], dtype=torch.bool, device=index.device)
    for low, high in spans:
        mine |= ((index >= low) & (index < high)).any(-1)
    return mine.nonzero()[:, 0]


def listeners(
    view: View, target: Members, parts: Sequence[Part], place: int
) -> tuple[int, ...]:  # fmt: skip
    """The ranks to which source number `place` sends: one copy of every shard of the experts."""
    copies: dict[tuple, list[int]] = {}
    for rank in target.ranks:
        copies.setdefault(tuple(view.index(rank, part) for part in parts), []).append(rank)
    return tuple(ranks[place % len(ranks)] for ranks in copies.values())


def senders(
    view: View, source: Members, target: Members, parts: Sequence[Part]
) -> tuple[int, ...]:  # fmt: skip
    """The source ranks that send to this target."""
    return tuple(
        rank
        for place, rank in enumerate(source.ranks)
        if view.rank in listeners(view, target, parts, place)
    )


def added(total: int, tail: Sequence[int], found: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Sum rows back into [total, ...]: (positions, values) in order of the ranks they come from."""
    first = found[0][1]
    wide = torch.promote_types(first.dtype, torch.float32)
    out = torch.zeros((total, *tail), dtype=wide, device=first.device)
    for rows, values in found:
        out.index_add_(0, rows, values.to(wide))
    return out.to(first.dtype)
