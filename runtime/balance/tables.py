"""The tables of one rank: for each expert layer the experts of every rank, and the seats of choices.

A seat is a row of a rank's weights, numbered over all ranks of the part: rank r has r * room .. + room - 1.
Copies of an expert take turns by its choices in order, so that they get equal shares of every source.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from plancc.dsl.errors import Bug
from plancc.ir.layout import Part
from plancc.runtime.balance.paces import Paces

Key = tuple[str, str, str, int, int]
"""Number of the layer and spare copies, mesh, axis, stride and count of the part."""
PLACED = "placed"


def is_placed(part: Part) -> bool:
    """Whether a table says which elements the ranks along a part have."""
    return part.rule.startswith(PLACED)


def key_of(part: Part) -> Key:
    """What a table is known by."""
    return (part.rule.partition("+")[2], part.mesh, part.axis, part.stride, part.count)


@dataclass(frozen=True)
class Table:
    """The experts of one layer on the ranks along a part.

    `slots` are the experts that get tokens, rank after rank, as many on each (one that a rank has twice
    gets twice the share there); `held` the experts whose weights each rank has, ascending: as many on
    each where there is balance. Ranks hold all that is in their slots, and perhaps more.
    """

    experts: int
    slots: tuple[int, ...]
    held: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        """Raise Bug for a table that leaves an expert without a slot, or a slot without weights."""
        if set(self.slots) != set(range(self.experts)) or len(self.slots) % self.ranks:
            raise Bug(f"slots {self.slots} for {self.experts} experts on {self.ranks} ranks")
        for rank, mine in enumerate(self.held):
            if list(mine) != sorted(set(mine)) or not set(self.hosted(rank)) <= set(mine):
                raise Bug(f"rank {rank} has slots {self.hosted(rank)} but holds {mine}")

    @property
    def ranks(self) -> int:
        """The ranks along the part."""
        return len(self.held)

    @cached_property
    def room(self) -> int:
        """The seats of a rank."""
        return max(map(len, self.held))

    @cached_property
    def ranges(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """The experts that each rank holds, as ranges."""
        return tuple(joined(mine) for mine in self.held)

    @cached_property
    def seats(self) -> tuple[tuple[int, ...], ...]:
        """The seats of each expert, in order of the slots."""
        found: list[list[int]] = [[] for _ in range(self.experts)]
        each = len(self.slots) // self.ranks
        for slot, expert in enumerate(self.slots):
            rank = slot // each
            found[expert].append(rank * self.room + self.held[rank].index(expert))
        return tuple(map(tuple, found))

    @cached_property
    def copied(self) -> bool:
        """Whether several ranks hold one expert."""
        return sum(map(len, self.held)) > self.experts

    def hosted(self, rank: int) -> tuple[int, ...]:
        """The experts in the slots of a rank."""
        each = len(self.slots) // self.ranks
        return self.slots[rank * each : (rank + 1) * each]

    def firsts(self, rank: int) -> tuple[int, ...]:
        """The experts of a rank that no lower rank holds."""
        lower = {expert for mine in self.held[:rank] for expert in mine}
        return tuple(expert for expert in self.held[rank] if expert not in lower)


def joined(experts: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Ascending experts as ranges."""
    out: list[tuple[int, int]] = []
    for expert in experts:
        if out and out[-1][1] == expert:
            out[-1] = (out[-1][0], expert + 1)
        else:
            out.append((expert, expert + 1))
    return tuple(out)


def first_table(experts: int, ranks: int, spare: int) -> Table:
    """The table before anything is measured: balanced ranges, and behind each its share of copies."""
    room = min(experts, max(-(-(experts + spare) // ranks), -(-experts // ranks)))
    held = []
    for rank in range(ranks):
        low, high = experts * rank // ranks, experts * (rank + 1) // ranks
        count = room if spare else high - low
        held.append(tuple(sorted((low + at) % experts for at in range(count))))
    if len(set(map(len, held))) == 1:
        return Table(experts, tuple(e for mine in held for e in mine), tuple(held))
    raise Bug(f"{experts} experts and {spare} copies do not divide over {ranks} ranks")


@dataclass
class Seating:
    """A table on a device: `first` [E] and `many` [E] say where in `seats` an expert's seats are."""

    table: Table
    seats: Tensor
    first: Tensor
    many: Tensor

    @staticmethod
    def of(table: Table, device: torch.device) -> Seating:
        """Put a table on a device."""
        many = torch.tensor([len(found) for found in table.seats])
        seats = torch.tensor([seat for found in table.seats for seat in found])
        return Seating(table, seats.to(device), (many.cumsum(0) - many).to(device), many.to(device))

    def choose(self, index: Tensor, place: int) -> Tensor:
        """The seat of each choice in `index` [t, k]; source number `place` begins at that copy."""
        if not self.table.copied:
            return self.seats[index.long()].to(index.dtype)
        flat = index.reshape(-1).long()
        order = flat.argsort(stable=True)
        found = flat[order]
        begins = torch.searchsorted(found, torch.arange(len(self.many), device=flat.device))
        turn = torch.empty_like(flat)
        turn[order] = torch.arange(len(flat), device=flat.device) - begins[found]
        seats = self.seats[self.first[flat] + (turn + place) % self.many[flat]]
        return seats.reshape(index.shape).to(index.dtype)


@dataclass
class Tables:
    """All tables of a rank, what their experts were given since the last change, and their weights.

    `given` [seats] counts the choices of this rank's tokens, `seconds` the time in this rank's experts;
    `weights` are this rank's rows by layer and name: what moves when a table changes.
    """

    found: dict[Key, Table] = field(default_factory=dict)
    given: dict[Key, Tensor] = field(default_factory=dict)
    seconds: dict[Key, float] = field(default_factory=dict)
    measures: bool = True
    paces: Paces = field(default_factory=Paces)
    weights: dict[Key, dict[str, Tensor]] = field(default_factory=dict)
    _seatings: dict[tuple[Key, torch.device], Seating] = field(default_factory=dict)
    _events: dict[Key, list[tuple[Any, Any]]] = field(default_factory=dict)

    def of(self, part: Part, experts: int) -> Table:
        """The table of a layer of `experts` experts."""
        key = key_of(part)
        known = self.found.get(key)
        if known is None or known.experts != experts:
            known = first_table(experts, part.count, int(key[0].partition("+")[2]))
            self.found[key] = known
        return known

    def seat(self, part: Part, experts: int, index: Tensor, place: int) -> Tensor:
        """The seats of the choices `index` [t, k] of source number `place`; they are counted."""
        key, table = key_of(part), self.of(part, experts)
        seating = self._seatings.get((key, index.device))
        if seating is None or seating.table is not table:
            seating = self._seatings[key, index.device] = Seating.of(table, index.device)
        found = seating.choose(index, place)
        total = table.ranks * table.room
        known = self.given.get(key)
        if known is None:
            known = self.given[key] = torch.zeros(total, dtype=torch.float64, device=index.device)
        flat = found.reshape(-1).long()
        known.index_add_(0, flat, torch.ones_like(flat, dtype=known.dtype))
        return found

    @contextmanager
    def timed(self, part: Part, device: torch.device) -> Iterator[None]:
        """Add the time of what runs inside to that of a layer's experts on this rank.

        On CUDA events are recorded, and read when the time is asked for; elsewhere it is the thread's own.
        """
        if not self.measures:
            yield
        elif device.type == "cuda":
            pair = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            pair[0].record()
            yield
            pair[1].record()
            self._events.setdefault(key_of(part), []).append((pair[0], pair[1]))
        else:
            begin = time.thread_time()
            yield
            key = key_of(part)
            self.seconds[key] = self.seconds.get(key, 0.0) + time.thread_time() - begin

    def spent(self, key: Key) -> float:
        """Seconds in a layer's experts on this rank since its table changed; waits for CUDA."""
        events = self._events.get(key, [])
        if events:
            events[-1][1].synchronize()
        return self.seconds.get(key, 0.0) + sum(a.elapsed_time(b) / 1e3 for a, b in events)

    def keep(self, part: Part, name: str, rows: Tensor) -> None:
        """Note the rows of a weight: they follow the table of the part."""
        self.weights.setdefault(key_of(part), {})[name] = rows

    def change(self, key: Key, table: Table) -> None:
        """Have another table from here on; what was counted begins again."""
        self.found[key] = table
        self.forget(key)

    def forget(self, key: Key) -> None:
        """Begin to count again."""
        self.given.pop(key, None)
        self.seconds.pop(key, None)
        self._events.pop(key, None)
