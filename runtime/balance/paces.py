"""How fast the replicas of a mesh are, and how many rows of a batch each takes.

Shares are contiguous ranges in proportion to measured speed, so that all finish together.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from plancc.balance import Estimate, token_shares
from plancc.ir.layout import Part

LEVEL = 0.1
"""Paces that differ by less are taken as equal: measurements are no better."""
Ranges = tuple[tuple[int, int], ...]
PartKey = tuple[str, str, int, int]
PacesUsed = dict[PartKey, tuple[float, ...]]


def is_loaded(part: Part) -> bool:
    """Whether rows are shared out along a part by pace."""
    return part.rule == "loaded"


def part_key(part: Part) -> PartKey:
    """What the paces along a part are known by."""
    return (part.mesh, part.axis, part.stride, part.count)


@dataclass
class Paces:
    """Seconds a token by index along a part: `newest` as measured, `used` for the batch that runs.

    A batch keeps the paces that it began with, since its cached rows stay where they are.
    """

    newest: PacesUsed = field(default_factory=dict)
    used: PacesUsed = field(default_factory=dict)
    estimates: dict[PartKey, Estimate] = field(default_factory=dict)
    _shares: dict[tuple[PartKey, tuple[float, ...], int], tuple[Ranges, ...]] = field(
        default_factory=dict
    )

    def shares(self, part: Part, rows: int) -> tuple[Ranges, ...]:
        """The rows of each index along a part, of `rows` in all; even ones for fewer than two each."""
        key = part_key(part)
        used = self.used.get(key, ())
        known = self._shares.get((key, used, rows))
        if known is None:
            counts = share_rows(used or (1.0,) * part.count, rows)
            known = tuple(
                ((sum(counts[:i]), sum(counts[: i + 1])),) if counts[i] else ()
                for i in range(part.count)
            )
            self._shares[key, used, rows] = known
        return known

    def note(self, part: Part, seconds: list[float], tokens: list[float]) -> None:
        """Take in what each index along a part took for its tokens; nothing where one was not measured."""
        if not all(s > 0 and t > 0 for s, t in zip(seconds, tokens, strict=True)):
            return
        estimate = self.estimates.setdefault(part_key(part), Estimate())
        estimate.update([[s / t for s, t in zip(seconds, tokens, strict=True)]])
        found = tuple(estimate.predict()[0])
        level = max(found) <= (1 + LEVEL) * min(found)
        self.newest[part_key(part)] = (1.0,) * part.count if level else found


def share_rows(paces: tuple[float, ...], rows: int) -> tuple[int, ...]:
    """Return the rows of each: in proportion to speed, at least one, and evenly below two for each."""
    if rows < 2 * len(paces):
        count = len(paces)
        return tuple(rows * (i + 1) // count - rows * i // count for i in range(count))
    found = list(token_shares(paces, rows))
    while 0 in found:
        found[found.index(max(found))] -= 1
        found[found.index(0)] += 1
    return tuple(found)
