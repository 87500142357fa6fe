"""Share one mesh axis among the leaves of a named dim, outermost first (heads = kv_heads x group)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from plancc.ir.layout import Part
from plancc.ir.shape import Leaf


def allot(
    leaves: Sequence[Leaf],
    mesh: str,
    axis: str,
    count: int,
    rule: str,
    taken: Mapping[int, tuple[tuple[Part, ...], str | None]],
) -> list[tuple[Leaf, Part]]:
    """The parts of `axis` (of `count` ranks) for each leaf of a dim; leaves that stay whole are left out.

    One leaf takes the whole axis when it is long enough (uneven sizes are fine). Otherwise the axis is
    factored: over K kv heads of G heads each, `a` ranks along K and `count / a` along G, where even splits
    are preferred and then the larger `a` (K=4, G=2, 8 ranks: 4 x 2; K=2, G=3, 3 ranks: 1 x 3).
    """
    if count == 1:
        return []
    out: list[tuple[Leaf, Part]] = []
    rest = count
    for position, leaf in enumerate(leaves):
        later = leaves[position + 1 :]
        take = _share(rest, _room(leaf, taken), prod(_room(x, taken) for x in later), bool(later))
        rest //= take
        if take > 1:
            out.append((leaf, Part(mesh, axis, rest, take, count, rule)))
    return out


def _room(leaf: Leaf, taken: Mapping[int, tuple[tuple[Part, ...], str | None]]) -> int:
    if not isinstance(leaf.size, int):
        return 1 << 40
    used = prod(part.count for part in taken.get(leaf.id, ((), None))[0])
    return max(leaf.size // used, 1)


def _share(count: int, room: int, room_later: int, more: bool) -> int:
    if count <= room or not more:
        return count
    fits = [a for a in range(1, count + 1) if count % a == 0 and a <= room]
    held = [a for a in fits if count // a <= room_later] or fits
    return max(held, key=lambda a: ((room % a == 0) + (room_later % (count // a) == 0), a))
