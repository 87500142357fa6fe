"""Where the state of a parameter is cut when it is sharded over data-parallel ranks (ZeRO).

One dim is cut further by the axes of the rule: the first one whose rows divide, so that gathering is a plain
concatenation; else the one with the most rows, unevenly.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from plancc.ir.layout import CutLeaf, Layout, LocalTree, Part, cuts, map_cuts
from plancc.ir.shape import Prod


def cut_state(layout: Layout, parts: Sequence[Part]) -> Layout:
    """`layout` with one dim cut further by `parts`; a value without dims stays whole.

    An axis that cuts the value already (experts over dp) has nothing left to cut.
    """
    mine = [part for dim in layout.dims for leaf in cuts(dim) for part in leaf.parts]
    parts = [part for part in parts if not any(part.meets(own) for own in mine)]
    if not layout.dims or not parts:
        return layout
    count = prod(part.count for part in parts)
    rows = [min(local_rows(leaf) for leaf in outer_leaves(dim).values()) for dim in layout.dims]
    tables = {d for d, dim in enumerate(layout.dims) if placed(dim)}
    even = [
        d
        for d, dim in enumerate(layout.dims)
        if d not in tables and all(divides(leaf, count) for leaf in outer_leaves(dim).values())
    ]
    others = [d for d in range(len(rows)) if d not in tables]
    if not others:
        return layout
    chosen = even[0] if even else max(others, key=lambda d: (rows[d], -d))
    dims = list(layout.dims)
    change = {at: (*leaf.parts, *parts) for at, leaf in outer_leaves(layout.dims[chosen]).items()}
    dims[chosen] = map_cuts(layout.dims[chosen], change)
    return Layout(tuple(dims), layout.partial)


def placed(dim: LocalTree) -> bool:
    """Whether a table says which rows of a dim a rank has: these are not cut further."""
    return any(part.rule.startswith("placed") for leaf in cuts(dim) for part in leaf.parts)


def outer_leaves(dim: LocalTree) -> dict[int, CutLeaf]:
    """Position -> leaf of the outermost factor of a dim, one for each part of a concatenation."""
    every = list(cuts(dim))

    def walk(tree: LocalTree, start: int) -> tuple[list[int], int]:
        if isinstance(tree, CutLeaf):
            return [start], start + 1
        found: list[int] = []
        at = start
        for index, kid in enumerate(tree.kids):
            inner, at = walk(kid, at)  # type: ignore[arg-type]
            if not isinstance(tree, Prod) or index == 0:
                found += inner
        return found, at

    positions, _ = walk(dim, 0)
    return {at: every[at] for at in positions}


def local_rows(leaf: CutLeaf) -> int:
    """The rows of a leaf on the rank that has fewest."""
    size = leaf.size if isinstance(leaf.size, int) else 0
    return size // prod(part.count for part in leaf.parts)


def divides(leaf: CutLeaf, count: int) -> bool:
    """Whether `count` more ranks get equal shares of a leaf."""
    had = prod(part.count for part in leaf.parts)
    return isinstance(leaf.size, int) and leaf.size % (had * count) == 0
