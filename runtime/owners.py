"""Who owns which positions of a KV cache that is cut along the sequence.

Prefill gives each rank blocks (b = ceil(n / p), as the FA Pool paper, section 3; or balanced, or zigzag);
decoding appends blocks of new positions to the rank that holds least, so nothing ever moves.
"""

from __future__ import annotations

from collections.abc import Iterable

from plancc.ir.layout import APPEND_BLOCK, Part
from plancc.runtime.dims import Ranges, length, merged, part_range

Key = tuple[str, str, int, int]


class Table:
    """The positions of every rank along one part, as ranges."""

    def __init__(self, part: Part, past: int) -> None:
        self.part = part
        self.rule = part.rule.partition("+")[2]
        self.owned: list[Ranges] = [()] * part.count
        self.fresh: tuple[Ranges, ...] = ((),) * part.count
        self.total = 0
        self.turn, self.left = 0, 0
        self.extend(past)

    def extend(self, tokens: int) -> None:
        """Share out `tokens` new positions; `fresh` then holds them, counted from 0."""
        if tokens == 1 and self.total:
            added = self.append_one()
        else:
            added = tuple(blocks(tokens, self.part, i, self.rule) for i in range(self.part.count))
        self.fresh = added
        for index, ranges in enumerate(added):
            moved = [(self.total + lo, self.total + hi) for lo, hi in ranges]
            self.owned[index] = merged([*self.owned[index], *moved])
        self.total += tokens

    def append_one(self) -> tuple[Ranges, ...]:
        """One new position: for the rank whose turn it is."""
        if self.left == 0:
            self.turn = min(range(self.part.count), key=lambda i: (length(self.owned[i]), i))
            self.left = APPEND_BLOCK
        self.left -= 1
        return tuple(((0, 1),) if i == self.turn else () for i in range(self.part.count))


def blocks(size: int, part: Part, index: int, rule: str) -> Ranges:
    """The share of one rank in `size` new positions."""
    if rule == "zigzag":
        fine = Part(part.mesh, part.axis, part.stride, 2 * part.count, 2 * part.size)
        pair = [part_range(size, fine, i) for i in (index, 2 * part.count - 1 - index)]
        return merged(sorted(pair))
    plain = Part(part.mesh, part.axis, part.stride, part.count, part.size, rule)
    lo, hi = part_range(size, plain, index)
    return ((lo, hi),) if hi > lo else ()


class Owners:
    """The tables of one running batch; every rank keeps the same ones."""

    def __init__(self, other: Owners | None = None) -> None:
        self.tables: dict[Key, Table] = dict(other.tables) if other is not None else {}

    def keep(self, parts: Iterable[Part], past: int) -> None:
        """Have tables for just these parts; a new one shares out the `past` positions afresh."""
        wanted = {key_of(part): part for part in parts}
        self.tables = {
            key: self.tables.get(key) or Table(part, past) for key, part in wanted.items()
        }

    def extend(self, tokens: int) -> None:
        """Share out the new positions of a step."""
        for table in self.tables.values():
            table.extend(tokens)

    def ranges(self, part: Part) -> tuple[Ranges, ...]:
        """Per rank of a part: all its positions (`owned`), or those of this step (`fresh`)."""
        table = self.tables[key_of(part)]
        return tuple(table.owned) if part.rule.startswith("owned") else table.fresh


def key_of(part: Part) -> Key:
    """What a table is known by."""
    return (part.mesh, part.axis, part.stride, part.count)


def is_owned(part: Part) -> bool:
    """Whether a part's ranges come from a table."""
    return part.rule.startswith(("owned", "fresh"))
