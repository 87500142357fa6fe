"""How many bytes a value takes on the rank with the largest share of it."""

from __future__ import annotations

from collections.abc import Mapping

import sympy

from plancc.ir.graph import Size
from plancc.ir.layout import APPEND_BLOCK, CutLeaf, Layout, LocalTree, Part, Prod
from plancc.ir.program import Held


def held_bytes(held: Held, env: Mapping[sympy.Symbol, int]) -> int:
    """Bytes of a value on the rank with the largest share."""
    return layout_elements(held.layout, env) * held.dtype.itemsize


def layout_elements(layout: Layout, env: Mapping[sympy.Symbol, int]) -> int:
    """Elements on the rank with the largest share."""
    total = 1
    for dim in layout.dims:
        total *= tree_size(dim, env)
    return total


def tree_size(tree: LocalTree, env: Mapping[sympy.Symbol, int]) -> int:
    """The largest local size of one dim."""
    if isinstance(tree, CutLeaf):
        size = size_of(tree.size, env)
        for part in tree.parts:
            size = share_of(size, part)
        return size
    total = 1 if isinstance(tree, Prod) else 0
    for kid in tree.kids:
        inner = tree_size(kid, env)  # type: ignore[arg-type]
        total = total * inner if isinstance(tree, Prod) else total + inner
    return total


def share_of(size: int, part: Part) -> int:
    """The largest share of one rank; owners of cached positions also take turns at blocks of new ones."""
    rule, _, first = part.rule.partition("+")
    fine = 2 if first == "zigzag" else 1
    most = fine * -(-size // (fine * part.count))
    return min(size, most + APPEND_BLOCK - 1) if rule == "owned" else most


def size_of(size: Size, env: Mapping[sympy.Symbol, int]) -> int:
    """A global size with numbers for its symbols."""
    if isinstance(size, int):
        return size
    return env[size] if size in env else int(size.subs(env))
