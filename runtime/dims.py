"""Dims at run time: an int (this rank's size) that knows what it is made of and where each rank's part lies.

`heads * head_dim` is a flattened product, `q + k + v` a concatenation; both stay Dims.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from plancc.ir.layout import Part

Ranges = tuple[tuple[int, int], ...]
Coord = Callable[[Part], "int | None"]
"""The index of a rank along a part; None where the part is not to be cut."""


def part_range(size: int, part: Part, index: int) -> tuple[int, int]:
    """The (lo, hi) of one part of `size` elements: balanced, or blocks of ceil(size / count)."""
    if part.rule == "block":
        block = -(-size // part.count)
        return min(index * block, size), min((index + 1) * block, size)
    return size * index // part.count, size * (index + 1) // part.count


class Dim(int):
    """This rank's size of a dim. `total` is the global size; `key` tells Dims apart by structure."""

    total: int
    op: str
    kids: tuple[Dim, ...]
    parts: tuple[Part, ...]
    lo: int
    table: tuple[Ranges, ...] | None
    key: tuple[Any, ...]
    room = 0  # the seats of a rank, where a table places the elements

    @staticmethod
    def owned(total: int, part: Part, table: tuple[Ranges, ...], coord: Coord) -> Dim:
        """A leaf of `total` elements of which each rank along `part` has the ranges in `table`."""
        index = coord(part)
        mine = ((0, total),) if index is None else table[index]
        dim = Dim(length(mine))
        dim.total, dim.op, dim.kids, dim.parts = total, "leaf", (), (part,)
        dim.lo = mine[0][0] if mine else 0
        dim.table, dim.key = table, (total, part, table)
        return dim

    @staticmethod
    def loaded(
        total: int, parts: tuple[Part, ...], table: tuple[Ranges, ...], coord: Coord
    ) -> Dim:  # fmt: skip
        """A leaf of which each rank along the first part has one range in `table`, cut by the others."""
        first = coord(parts[0])
        mine = ((0, total),) if first is None else cut_inside(table[first], parts[1:], coord)
        dim = Dim(length(mine))
        dim.total, dim.op, dim.kids, dim.parts = total, "leaf", (), parts
        dim.lo = mine[0][0] if mine else 0
        dim.table, dim.key = table, (total, parts, table)
        return dim

    @staticmethod
    def placed(
        total: int, part: Part, table: tuple[Ranges, ...], room: int, coord: Coord
    ) -> Dim:  # fmt: skip
        """A leaf as `owned`, of which a rank along `part` has the seats from its index times `room`."""
        dim = Dim.owned(total, part, table, coord)
        dim.lo, dim.room = (coord(part) or 0) * room, room
        return dim

    @staticmethod
    def leaf(total: int, parts: tuple[Part, ...], coord: Coord) -> Dim:
        """A leaf of `total` elements cut by `parts`, major to minor."""
        lo, hi = nested(total, parts, coord)
        dim = Dim(hi - lo)
        dim.total, dim.op, dim.kids, dim.parts, dim.lo = total, "leaf", (), parts, lo
        dim.table, dim.key = None, (total, parts)
        return dim

    @staticmethod
    def join(op: str, kids: tuple[Dim, ...]) -> Dim:
        """The product ("mul") or concatenation ("add") of `kids`."""
        size = total = 1 if op == "mul" else 0
        for kid in kids:
            if op == "mul":
                size, total = size * int(kid), total * kid.total
            else:
                size, total = size + int(kid), total + kid.total
        dim = Dim(size)
        dim.total, dim.op, dim.kids, dim.parts, dim.lo = total, op, kids, (), 0
        dim.table, dim.key = None, (op, *(kid.key for kid in kids))
        return dim

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, Dim):
            return Dim.join("mul", (self, other))
        return int(self) * other

    def __add__(self, other: Any) -> Any:
        if isinstance(other, Dim):
            return Dim.join("add", (self, other))
        return int(self) + other

    def seats(self, coord: Coord) -> Ranges:
        """The numbers by which the elements of a rank at `coord` are chosen: their indices, or seats."""
        index = coord(self.parts[0]) if self.room else None
        if index is None:
            return self.ranges(coord)
        return ((index * self.room, index * self.room + int(self.room)),)

    def ranges(self, coord: Coord) -> Ranges:
        """The global index ranges, ascending, that a rank at `coord` holds."""
        if self.table is not None:
            index = coord(self.parts[0])
            if index is None:
                return ((0, self.total),)
            return cut_inside(self.table[index], self.parts[1:], coord)
        if self.op == "leaf":
            lo, hi = nested(self.total, self.parts, coord)
            return ((lo, hi),) if hi > lo else ()
        if self.op == "add":
            out: list[tuple[int, int]] = []
            base = 0
            for kid in self.kids:
                out += [(base + lo, base + hi) for lo, hi in kid.ranges(coord)]
                base += kid.total
            return merged(out)
        found: Ranges = ((0, 1),)
        for kid in self.kids:
            inner = kid.ranges(coord)
            if inner == ((0, kid.total),):
                found = tuple((lo * kid.total, hi * kid.total) for lo, hi in found)
            else:
                found = merged(
                    [
                        (i * kid.total + lo, i * kid.total + hi)
                        for start, stop in found
                        for i in range(start, stop)
                        for lo, hi in inner
                    ]
                )
        return found


def cut_inside(ranges: Ranges, parts: tuple[Part, ...], coord: Coord) -> Ranges:
    """One range cut further by nested parts; several stay as they are."""
    if not parts or len(ranges) != 1:
        return ranges
    base, end = ranges[0]
    lo, hi = nested(end - base, parts, coord)
    return ((base + lo, base + hi),) if hi > lo else ()


def nested(total: int, parts: tuple[Part, ...], coord: Coord) -> tuple[int, int]:
    """The range of a leaf under nested parts; a part whose coordinate is None ends the nesting."""
    lo, hi = 0, total
    for part in parts:
        index = coord(part)
        if index is None:
            break
        a, b = part_range(hi - lo, part, index)
        lo, hi = lo + a, lo + b
    return lo, hi


def merged(ranges: list[tuple[int, int]]) -> Ranges:
    """Ascending ranges with neighbours joined and empty ones dropped."""
    out: list[tuple[int, int]] = []
    for lo, hi in ranges:
        if hi <= lo:
            continue
        if out and out[-1][1] == lo:
            out[-1] = (out[-1][0], hi)
        else:
            out.append((lo, hi))
    return tuple(out)


def length(ranges: Ranges) -> int:
    """How many indices the ranges hold."""
    return sum(hi - lo for lo, hi in ranges)


def intersect(a: Ranges, b: Ranges) -> Ranges:
    """The indices in both, as ranges."""
    out: list[tuple[int, int]] = []
    i = j = 0
    while i < len(a) and j < len(b):
        lo, hi = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
        if lo < hi:
            out.append((lo, hi))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return merged(out)


def within(frame: Ranges, wanted: Ranges) -> Ranges:
    """`wanted` (a subset of `frame`) as positions in the concatenation of `frame`."""
    out: list[tuple[int, int]] = []
    base = 0
    for lo, hi in frame:
        for a, b in intersect(((lo, hi),), wanted):
            out.append((base + a - lo, base + b - lo))
        base += hi - lo
    return merged(out)
