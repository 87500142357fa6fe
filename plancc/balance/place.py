"""Placement of experts with spare copies, after DeepSeek's EPLB: copy the heavy, pack greedily.

`hierarchical` packs whole groups of experts to nodes first, so that group-limited routing stays
in a node; `flat` ignores groups and nodes. Exchanges between ranks then only lower the maximum.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

from plancc.balance.placement import Placement, placed, rank_loads

POLICIES = ("hierarchical", "flat")
_LEAST = 1e-12  # of the loads: an exchange that gains less is rounding


def place_experts(
    load: Sequence[Sequence[float]],
    slots: int,
    groups: int = 1,
    nodes: int = 1,
    ranks: int = 1,
    policy: str = "hierarchical",
) -> Placement:
    """Return where the experts of load [layers][E] (times or tokens) go on `slots` slots a layer.

    Every expert has a slot, every rank as many slots, and with spare slots the slowest rank is
    never slower than without. Raises ValueError for numbers that do not divide and for loads
    that are negative or not finite.
    """
    _check(load, slots, groups, nodes, ranks, policy)
    grouped, teams = (groups, nodes) if policy == "hierarchical" else (1, 1)
    physical = []
    for row in load:
        layer: list[int] = []
        for members in _pack_groups(row, grouped, teams):
            own = [float(row[expert]) for expert in members]
            layer += [members[e] for e in _place(own, slots // teams, ranks // teams)]
        physical.append(layer)
    return placed(physical, load, ranks, nodes)


def _check(
    load: Sequence[Sequence[float]], slots: int, groups: int, nodes: int, ranks: int, policy: str
) -> None:
    if policy not in POLICIES:
        raise ValueError(f"no policy `{policy}`: {', '.join(POLICIES)}")
    if not load or not load[0] or len({len(row) for row in load}) != 1:
        raise ValueError("loads are [layers][experts], as many experts in every layer")
    if min(slots, groups, nodes, ranks) < 1:
        raise ValueError(f"{slots} slots, {groups} groups, {nodes} nodes, {ranks} ranks: from 1")
    experts = len(load[0])
    if slots < experts:
        raise ValueError(f"{experts} experts do not fit {slots} slots")
    for layer, row in enumerate(load):
        for expert, value in enumerate(row):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"expert {expert} of layer {layer} has a load of {value}")
    pairs = [("slots", slots, "ranks", ranks), ("ranks", ranks, "nodes", nodes)]
    if policy == "hierarchical":
        pairs += [("experts", experts, "groups", groups), ("groups", groups, "nodes", nodes)]
    for what, many, over, few in pairs:
        if many % few:
            raise ValueError(f"{many} {what} are no multiple of {few} {over}")


def _pack_groups(row: Sequence[float], groups: int, nodes: int) -> list[list[int]]:
    """Return the experts of each node: whole groups, heavy ones first to the lightest node."""
    size = len(row) // groups
    members = [list(range(group * size, (group + 1) * size)) for group in range(groups)]
    sums = [math.fsum(row[expert] for expert in one) for one in members]
    # among equal sums by what they hold, so that the numbering of groups decides nothing
    order = sorted(range(groups), key=lambda g: (-sums[g], sorted(-row[e] for e in members[g]), g))
    packs = _pack([sums[group] for group in order], order, nodes)
    return [[expert for group in pack for expert in members[order[group]]] for pack in packs]


def _place(load: Sequence[float], slots: int, ranks: int) -> list[int]:
    """Return the expert of each slot: the best of copies placed afresh and copies added."""
    fresh = _exchanged(_greedy(load, slots, ranks), load, ranks)
    if slots == len(load) or len(load) % ranks:
        return fresh
    bare = _exchanged(_greedy(load, len(load), ranks), load, ranks)
    added = _exchanged(_doubled(bare, load, slots, ranks), load, ranks)
    return min((fresh, added), key=lambda row: max(rank_loads(row, load, ranks)))


def _greedy(load: Sequence[float], slots: int, ranks: int) -> list[int]:
    copies = _replicate(load, slots)
    items = sorted(
        (expert for expert, many in enumerate(copies) for _ in range(many)),
        key=lambda expert: (-load[expert] / copies[expert], -load[expert], expert),
    )
    packs = _pack([load[expert] / copies[expert] for expert in items], items, ranks)
    return [items[item] for pack in packs for item in pack]


def _replicate(load: Sequence[float], slots: int) -> list[int]:
    """Return how many copies each expert gets: each spare slot to the greatest load of a copy."""
    copies = [1] * len(load)
    heap = [(-value, -value, expert) for expert, value in enumerate(load)]
    heapq.heapify(heap)
    for _ in range(slots - len(load)):
        _, whole, expert = heap[0]
        copies[expert] += 1
        heapq.heapreplace(heap, (whole / copies[expert], whole, expert))
    return copies


def _pack(weights: Sequence[float], names: Sequence[int], packs: int) -> list[list[int]]:
    """Return items 0.. in packs of one size: each, heavy first, to the lightest with room.

    Among equals the pack that does not hold an item of the same name, then the first.
    """
    room = len(weights) // packs
    found: list[list[int]] = [[] for _ in range(packs)]
    sums = [0.0] * packs
    for item, weight in enumerate(weights):
        pack = min(
            (p for p in range(packs) if len(found[p]) < room),
            key=lambda p: (sums[p], names[item] in [names[i] for i in found[p]], p),
        )
        found[pack].append(item)
        sums[pack] += weight
    return found


def _doubled(bare: list[int], load: Sequence[float], slots: int, ranks: int) -> list[int]:
    """Return `bare` with the spare slots of each rank filled by copies of its heaviest experts.

    All copies of an expert are then on one rank, so that no load has changed yet.
    """
    size, spare = len(bare) // ranks, (slots - len(bare)) // ranks
    row: list[int] = []
    for rank in range(ranks):
        own = bare[rank * size : (rank + 1) * size]
        extra = [count - 1 for count in _replicate([load[e] for e in own], size + spare)]
        row += own + [expert for expert, many in zip(own, extra, strict=True) for _ in range(many)]
    return row


def _exchanged(row: list[int], load: Sequence[float], ranks: int) -> list[int]:
    """Return `row` after exchanges of slots between the slowest rank and others, while they help.

    Each lowers the larger of two loads, the sum of squares falls, so it ends.
    """
    row, size = list(row), len(row) // ranks
    copies = [row.count(expert) for expert in range(len(load))]
    share = [value / copies[expert] for expert, value in enumerate(load)]
    least = _LEAST * math.fsum(load)
    for _ in range(len(row) * 4):
        loads = rank_loads(row, load, ranks)
        order = sorted(range(ranks), key=lambda rank: (loads[rank], rank))
        slow = order[-1]
        for rank in order[:-1]:
            gap = loads[slow] - loads[rank]
            best = _best_exchange(row, share, slow * size, rank * size, size, gap, least)
            if best is not None:
                a, b = best
                row[a], row[b] = row[b], row[a]
                break
        else:
            return row
    return row


def _best_exchange(
    row: Sequence[int], share: Sequence[float], slow: int, fast: int, size: int, gap: float,
    least: float,
) -> tuple[int, int] | None:  # fmt: skip
    """Return the slots whose exchange brings two ranks `gap` apart closest together, or None."""
    best, found = gap - least, None
    for a in range(slow, slow + size):
        for b in range(fast, fast + size):
            moved = share[row[a]] - share[row[b]]
            if least < moved and max(gap - moved, moved) < best:
                best, found = max(gap - moved, moved), (a, b)
    return found
