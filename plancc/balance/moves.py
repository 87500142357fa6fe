"""From one placement to the next: the fewest weights that must travel between ranks.

Ranks of a node, and nodes, are alike, so `settle` first gives each new set of experts to the rank
that already holds most of it; `moves` then lists the slots that change and where they come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plancc.balance.placement import Placement


@dataclass(frozen=True, slots=True)
class Move:
    """Slot `slot` of rank `target` gets an expert that rank `source` held before.

    All sources are read before any slot is written: a slot may be both.
    """

    layer: int
    expert: int
    source: int
    target: int
    slot: int

    @property
    def local(self) -> bool:
        """True when nothing travels: the rank holds the expert in another slot."""
        return self.source == self.target


def moves(old: Placement, new: Placement) -> tuple[Move, ...]:
    """Return the moves from `old` to `new`, by layer and slot; a rank receives an expert once.

    Sources are in the same node where they can be, and of these the one that sends least so far.
    Raises ValueError for placements of other sizes.
    """
    _check(old, new)
    found: list[Move] = []
    for layer, (before, after) in enumerate(zip(old.physical, new.physical, strict=True)):
        sent = [0] * old.ranks
        arrived: set[tuple[int, int]] = set()
        hosts = _hosts(old, layer)
        for slot, expert in enumerate(after):
            if before[slot] == expert:
                continue
            target = new.rank_of(slot)
            source = target
            if target not in hosts[expert] and (target, expert) not in arrived:
                source = min(
                    hosts[expert],
                    key=lambda rank: (old.node_of(rank) != old.node_of(target), sent[rank], rank),
                )
                sent[source] += 1
                arrived.add((target, expert))
            found.append(Move(layer, expert, source, target, slot))
    return tuple(found)


def settle(old: Placement, new: Placement) -> Placement:
    """Return `new` with ranks and slots renumbered so that the fewest experts travel from `old`.

    Ranks change places within a node and whole nodes with each other, each layer by itself; what
    a rank keeps stays in its slot. Loads go along. Raises ValueError for placements of other sizes.
    """
    _check(old, new)
    physical, loads = [], []
    for layer in range(len(new.physical)):
        seats = _seats(old, new, layer)
        rows = [
            _kept(old.hosted(layer, rank), new.hosted(layer, seats[rank]))
            for rank in range(old.ranks)
        ]
        physical.append(tuple(expert for row in rows for expert in row))
        loads.append(tuple(new.loads[layer][seats[rank]] for rank in range(old.ranks)))
    return Placement(tuple(physical), new.experts, new.ranks, new.nodes, tuple(loads))


def _check(old: Placement, new: Placement) -> None:
    sizes = [
        (p.experts, p.ranks, p.nodes, len(p.physical), p.slots if p.physical else 0)
        for p in (old, new)
    ]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"placements of other experts, ranks, nodes, layers or slots: {sizes[0]} and {sizes[1]}"
        )


def _hosts(placement: Placement, layer: int) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in range(placement.experts)]
    for rank in range(placement.ranks):
        for expert in set(placement.hosted(layer, rank)):
            found[expert].append(rank)
    return found


def _seats(old: Placement, new: Placement, layer: int) -> list[int]:
    """Return, for each rank, the rank of `new` whose experts it takes over."""
    size = old.ranks // old.nodes
    before = [set(old.hosted(layer, rank)) for rank in range(old.ranks)]
    after = [set(new.hosted(layer, rank)) for rank in range(old.ranks)]

    def ranks_of(node: int) -> range:
        return range(node * size, (node + 1) * size)

    def match(seat: int, node: int) -> tuple[int, list[int]]:
        costs = [[len(after[r] - before[s]) for r in ranks_of(node)] for s in ranks_of(seat)]
        chosen = assign(costs)
        return sum(costs[row][column] for row, column in enumerate(chosen)), chosen

    nodes = range(old.nodes)
    within = [[match(seat, node) for node in nodes] for seat in nodes]
    across = assign([[cost for cost, _ in row] for row in within])
    return [across[seat] * size + rank for seat in nodes for rank in within[seat][across[seat]][1]]


def _kept(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Return `after` in an order in which experts that were there keep their slots."""
    left, row = sorted(after), [-1] * len(before)
    for slot, expert in enumerate(before):
        if expert in left:
            left.remove(expert)
            row[slot] = expert
    return [left.pop(0) if expert < 0 else expert for expert in row]


def assign(costs: Sequence[Sequence[float]]) -> list[int]:
    """Return the column of each row of a square matrix for the least sum (Hungarian method)."""
    size = len(costs)
    of_row, of_column = [0.0] * (size + 1), [0.0] * (size + 1)
    owner, back = [size] * (size + 1), [size] * (size + 1)  # `size` stands for none
    for row in range(size):
        owner[size], column = row, size
        slack, seen = [float("inf")] * size, [False] * (size + 1)
        while owner[column] != size:
            seen[column], here = True, owner[column]
            free = [j for j in range(size) if not seen[j]]
            for j in free:
                cost = costs[here][j] - of_row[here] - of_column[j]
                if cost < slack[j]:
                    slack[j], back[j] = cost, column
            following = min(free, key=lambda j: (slack[j], j))
            step = slack[following]
            for j in range(size + 1):
                if seen[j]:
                    of_row[owner[j]] += step
                    of_column[j] -= step
                elif j < size:
                    slack[j] -= step
            column = following
        while column != size:
            owner[column], column = owner[back[column]], back[column]
    found = [0] * size
    for column in range(size):
        found[owner[column]] = column
    return found
