"""Who holds what of a value: the parts of peers, and which rank gives which block to which.

Programs that run and programs that are only counted ask the same questions.
"""

from __future__ import annotations

from collections.abc import Sequence

from plancc.ir.layout import Part
from plancc.runtime.dims import Dim, Ranges, intersect, length, within
from plancc.runtime.transport import Group
from plancc.runtime.view import Members, Peers, View


def pieces_of(view: View, d: Dim, peers: Peers) -> tuple[Ranges, list[Ranges]]:
    """The indices of a dim that the peers hold together, and those of each, in order of the peers."""
    own = view.coord_of(view.rank)
    along = set(peers.parts)
    frame = d.ranges(lambda p: None if p in along else own(p))
    return frame, [d.ranges(lambda p, at=at: at.get(p, own(p))) for at in peers.coords]


def kept_heads(
    view: View, group: Group, local: int, heads: Dim, spread: tuple[Part, ...]
) -> dict[int, Ranges]:
    """Rank -> the heads, of the `local` ones, that it merges and keeps; without `spread` all of them."""
    if not spread:
        return dict.fromkeys(group, ((0, local),))
    keepers = view.peers(spread)
    frame, pieces = pieces_of(view, heads, keepers)
    return {rank: within(frame, p) for rank, p in zip(keepers.ranks, pieces, strict=True)}


class Routes:
    """What this rank sends and receives of one transfer: (rank, positions per dim) pairs."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.sends: list[tuple[int, tuple[Ranges, ...]]] = []
        self.recvs: list[tuple[int, tuple[Ranges, ...]]] = []
        self.local: tuple[tuple[Ranges, ...], tuple[Ranges, ...]] | None = None


def find_routes(
    view: View, source: Members, has: Sequence[Dim], target: Members, wants: Sequence[Dim]
) -> Routes:
    """Match the parts that `source` ranks hold with those that `target` ranks want.

    Among replicas of a part the target's own rank is preferred, then they take turns.
    """
    held: dict[tuple[Ranges, ...], list[int]] = {}
    mine = None
    for rank in source.ranks:
        shard = ranges_on(view, rank, has)
        held.setdefault(shard, []).append(rank)
        mine = shard if rank == view.rank else mine
    routes = Routes(tuple(length(spots) for spots in ranges_on(view, view.rank, wants)))
    for turn, rank in enumerate(target.ranks):
        shards = tuple(held) if rank == view.rank else () if mine is None else (mine,)
        goal = ranges_on(view, rank, wants) if shards else ()
        for shard in shards:
            both = tuple(intersect(a, b) for a, b in zip(shard, goal, strict=True))
            if not all(both):
                continue
            replicas = held[shard]
            giver = rank if rank in replicas else replicas[turn % len(replicas)]
            given = tuple(within(a, b) for a, b in zip(shard, both, strict=True))
            taken = tuple(within(a, b) for a, b in zip(goal, both, strict=True))
            if giver == rank:
                if rank == view.rank:
                    routes.local = (given, taken)
            elif giver == view.rank:
                routes.sends.append((rank, given))
            elif rank == view.rank:
                routes.recvs.append((giver, taken))
    return routes


def ranges_on(view: View, rank: int, dims: Sequence[Dim]) -> tuple[Ranges, ...]:
    """The index ranges of each dim that a rank holds."""
    return tuple(d.ranges(view.coord_of(rank)) for d in dims)
