"""A placement: which expert each physical slot of each layer holds, and what that loads on ranks.

Slots are numbered over all ranks: rank r of a placement with s slots a rank has r*s .. r*s + s - 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Table = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Placement:
    """`physical`[layer][slot] is an expert; every rank has as many slots, every node as many ranks.

    `loads`[layer][rank] is the predicted load, where each copy of an expert takes an equal share.
    """

    physical: Table
    experts: int
    ranks: int
    nodes: int
    loads: tuple[tuple[float, ...], ...]

    @property
    def slots(self) -> int:
        """Return the slots of a rank."""
        return len(self.physical[0]) // self.ranks if self.physical else 0

    @property
    def logical(self) -> tuple[Table, ...]:
        """Return, [layer][expert], the slots that hold the expert, ascending."""
        found = []
        for row in self.physical:
            slots: list[list[int]] = [[] for _ in range(self.experts)]
            for slot, expert in enumerate(row):
                slots[expert].append(slot)
            found.append(tuple(map(tuple, slots)))
        return tuple(found)

    def rank_of(self, slot: int) -> int:
        """Return the rank that has a slot."""
        return slot // self.slots

    def node_of(self, rank: int) -> int:
        """Return the node of a rank."""
        return rank // (self.ranks // self.nodes)

    def hosted(self, layer: int, rank: int) -> tuple[int, ...]:
        """Return the experts in the slots of a rank, in the order of the slots."""
        return self.physical[layer][rank * self.slots : (rank + 1) * self.slots]

    def hosts(self, layer: int, expert: int) -> tuple[int, ...]:
        """Return the ranks with a copy of an expert, ascending, each once."""
        return tuple(r for r in range(self.ranks) if expert in self.hosted(layer, r))

    def max_load(self, layer: int) -> float:
        """Return the load of the slowest rank of a layer."""
        return max(self.loads[layer])

    def balance(self, layer: int) -> float:
        """Return mean load / greatest load of a layer: 1 when all finish together."""
        most = self.max_load(layer)
        return math.fsum(self.loads[layer]) / (self.ranks * most) if most else 1.0

    def reload(self, load: Sequence[Sequence[float]]) -> Placement:
        """Return the same placement under another load [layers][experts]."""
        return placed(self.physical, load, self.ranks, self.nodes)


def placed(
    physical: Sequence[Sequence[int]], load: Sequence[Sequence[float]], ranks: int, nodes: int
) -> Placement:
    """Return the placement of `physical` [layers][slots] with its loads under load [layers][E]."""
    rows = tuple(map(tuple, physical))
    loads = tuple(rank_loads(row, one, ranks) for row, one in zip(rows, load, strict=True))
    return Placement(rows, len(load[0]) if load else 0, ranks, nodes, loads)


def rank_loads(row: Sequence[int], load: Sequence[float], ranks: int) -> tuple[float, ...]:
    """Return the load of each rank: equal shares of the copies, in whatever slots of the rank."""
    copies = [0] * len(load)
    for expert in row:
        copies[expert] += 1
    size = len(row) // ranks
    return tuple(
        math.fsum(load[expert] / copies[expert] for expert in row[rank * size : (rank + 1) * size])
        for rank in range(ranks)
    )
