"""Factors: mutable classes of dims while `name_dims` runs (union-find with products and sums).

A `Factor` is a leaf, a product of factors (outermost first) or a concatenation of dims; a *dim* is
a list of factors whose sizes multiply to the dim's size, `[]` for size 1. Sizes only decide *where*
in one fixed index range a boundary lies, never which dims are equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import sympy

from plancc.ir.graph import Size


class Conflict(Exception):
    """Two descriptions of one index range do not fit together; the dim must stay whole here."""


class Factor:
    """One class of dims: a leaf (`kids` None), a product (`is_sum` False) or a concatenation.

    `solid` leaves (dims of model inputs) are never cut into a concatenation.
    """

    __slots__ = ("is_sum", "kids", "size", "solid", "up")

    def __init__(self, size: Size, solid: bool = False) -> None:
        self.up: Factor | None = None
        self.size = size
        self.solid = solid
        self.is_sum = False
        self.kids: list[Any] | None = None

    def root(self) -> Factor:
        """The representative of this factor's class."""
        node = self
        while node.up is not None:
            if node.up.up is not None:
                node.up = node.up.up
            node = node.up
        return node


Dim = list[Factor]


def fresh(size: Size) -> Dim:
    """A dim of its own class (`[]` for size 1)."""
    return [] if size == 1 else [Factor(size)]


def sum_of(parts: Sequence[Dim]) -> Dim:
    """The concatenation of `parts`; parts that are one concatenation each are spliced in."""
    kids: list[Dim] = []
    for part in parts:
        one = atoms(part)
        if len(one) == 1 and one[0].is_sum:
            kids.extend(one[0].kids or ())
        else:
            kids.append(part)
    if len(kids) == 1:
        return kids[0]
    factor = Factor(add(size_of(kid) for kid in kids))
    factor.is_sum, factor.kids = True, kids
    return [factor]


def add(sizes: Iterable[Size]) -> Size:
    """The sum of sizes."""
    total: Size = 0
    for size in sizes:
        total = total + size
    return total


def size_of(dim: Dim) -> Size:
    """The size of a dim."""
    total: Size = 1
    for factor in dim:
        total = total * factor.root().size
    return total


def atoms(dim: Dim) -> Dim:
    """The dim's roots with products expanded: leaves and concatenations, outermost first."""
    if len(dim) == 1:
        root = dim[0].root()
        return [root] if root.kids is None or root.is_sum else atoms(root.kids)
    found: Dim = []
    for factor in dim:
        root = factor.root()
        if root.kids is None or root.is_sum:
            found.append(root)
        else:
            found.extend(atoms(root.kids))
    return found


def leaves(dim: Dim) -> Iterator[Factor]:
    """Every leaf occurrence of the dim, in index order."""
    for atom in atoms(dim):
        if atom.kids is None:
            yield atom
        else:
            for part in atom.kids:
                yield from leaves(part)


def divide(size: Size, by: Size) -> Size | None:
    """`size / by` if that is a size (an int, or an expression without a denominator), else None."""
    if isinstance(size, int) and isinstance(by, int):
        return size // by if by and size % by == 0 else None
    return _divide_symbolic(size, by)


@lru_cache(maxsize=4096)
def _divide_symbolic(size: Size, by: Size) -> Size | None:
    if by == 0:
        return None
    quotient = sympy.cancel(sympy.sympify(size) / by)
    if sympy.denom(quotient) != 1:
        return None
    return int(quotient) if quotient.is_Integer else quotient


def unify(left: Dim, right: Dim) -> None:
    """Make two dims of equal size one: merge and refine their factors, outermost first.

    Raises Conflict where the two do not fit; what was merged before that point holds anyway.
    """
    if left is right or (len(left) == len(right) == 1 and left[0].root() is right[0].root()):
        return
    a, b = atoms(left)[::-1], atoms(right)[::-1]
    while a and b:
        x, y = a.pop(), b.pop()
        x, y = x.root(), y.root()
        if x is y:
            continue
        if x.kids is not None and not x.is_sum:
            a.extend(atoms(x.kids)[::-1])
            b.append(y)
        elif y.kids is not None and not y.is_sum:
            b.extend(atoms(y.kids)[::-1])
            a.append(x)
        elif x.size == y.size:
            merge(x, y)
        elif (rest := divide(y.size, x.size)) is not None:
            b.append(split_product(y, x, rest))
        elif (rest := divide(x.size, y.size)) is not None:
            a.append(split_product(x, y, rest))
        else:
            raise Conflict(f"sizes {x.size} and {y.size} have no common boundary")
    if a or b:
        raise Conflict("sizes differ")


def split_product(whole: Factor, outer: Factor, rest: Size) -> Factor:
    """Refine the leaf `whole` into `outer * rest`; returns the factor of size `rest`."""
    if whole.kids is not None:
        raise Conflict(f"a concatenation of size {whole.size} has no outer factor {outer.size}")
    inner = Factor(rest)
    whole.kids = [outer, inner]
    return inner


def merge(x: Factor, y: Factor) -> None:
    """Make two roots of equal size (leaves or concatenations) one class."""
    if y.kids is None:
        x, y = y, x
    if x.kids is None:
        if any(leaf is x for leaf in leaves([y])):
            raise Conflict("a dim cannot be part of itself")
        x.up = y
        y.solid = y.solid or x.solid
        return
    _merge_sums(x, y)


def _merge_sums(x: Factor, y: Factor) -> None:
    """Cut two concatenations at each other's boundaries and unify them part by part."""
    for one, other in ((x, y), (y, x)):
        position: Size = 0
        for size in [size_of(part) for part in other.kids or ()]:
            _refine(one, position)
            position = position + size
    mine, theirs = list(x.kids or ()), list(y.kids or ())
    if len(mine) != len(theirs):
        raise Conflict("concatenations with different boundaries")
    x.up = y
    for a, b in zip(mine, theirs, strict=True):
        unify(a, b)


def _refine(total: Factor, at: Size) -> None:
    """Make `at` a boundary between two parts of the concatenation."""
    position: Size = 0
    for index, part in enumerate(total.kids or ()):
        if position == at:
            return
        size = size_of(part)
        if _is_inside(at, position, size):
            pieces = partition(part, [at - position, position + size - at])
            total.kids[index : index + 1] = pieces  # type: ignore[index]
            return
        position = position + size
    if position != at:
        raise Conflict(f"no boundary at {at}")


def _is_inside(at: Size, start: Size, size: Size) -> bool:
    inner = at - start
    return isinstance(inner, int) and isinstance(size, int) and 0 < inner < size


def partition(dim: Dim, sizes: Sequence[Size], cut_leaves: bool = True) -> list[Dim]:
    """Cut a dim into consecutive pieces of the given sizes, refining it; empty pieces are kept.

    Raises Conflict if a boundary lies inside something that cannot be cut there; without
    `cut_leaves` that is every outermost leaf.
    """
    if len(sizes) == 1:
        return [dim]
    parts = atoms(dim)
    if not parts:
        return [[] if size == 1 else fresh(size) for size in sizes]
    outer, inner = parts[0], parts[1:]
    if outer.kids is None and not cut_leaves:
        raise Conflict("an index into a dim that is no concatenation")
    inner_size = size_of(inner)
    counts: list[Size] = []
    for size in sizes:
        count = divide(size, inner_size)
        if count is None:
            raise Conflict(f"a cut of {size} inside an inner factor of {inner_size}")
        counts.append(count)
    return [[*piece, *inner] for piece in _partition_factor(outer, counts)]


def _partition_factor(factor: Factor, sizes: Sequence[Size]) -> list[Dim]:
    if factor.kids is None:
        if factor.solid or not all(isinstance(size, int) for size in sizes):
            raise Conflict("a dim of a model input or of unknown size is not cut into parts")
        if any(size == factor.size for size in sizes):
            return [[factor] if size == factor.size else fresh(0) for size in sizes]
        pieces = [fresh(size) for size in sizes]
        factor.kids = [p for p, size in zip(pieces, sizes, strict=True) if size != 0]
        factor.is_sum = True
        return pieces
    return _partition_sum(factor, sizes)


def _partition_sum(total: Factor, sizes: Sequence[Size]) -> list[Dim]:
    position: Size = 0
    for size in sizes:
        _refine(total, position)
        position = position + size
    pieces: list[Dim] = []
    rest = list(total.kids or ())
    for size in sizes:
        taken: list[Dim] = []
        have: Size = 0
        while have != size:
            if not rest:
                raise Conflict("sizes differ")
            taken.append(rest.pop(0))
            have = have + size_of(taken[-1])
        pieces.append(sum_of(taken) if taken else fresh(0))
    return pieces


def regroup(dims: Sequence[Dim], sizes: Sequence[Size]) -> tuple[list[Dim], int, int]:
    """View: the factors of `dims` in order, grouped into dims of the given sizes.

    Returns the new dims and how many of them matched from the front and from the back; those
    between (if any) are fresh: their boundaries do not fit the factors.
    """
    queue = [atom for dim in dims for atom in atoms(dim)][::-1]
    found: list[Dim] = []
    for size in sizes:
        taken = _take(queue, size)
        if taken is None:
            break
        found.append(taken)
    front = len(found)
    if front == len(sizes):
        return found, front, 0
    back: list[Dim] = []
    queue.reverse()
    for size in reversed(sizes[front:]):
        taken = _take_back(queue, size)
        if taken is None:
            break
        back.append(taken)
    middle = [fresh(size) for size in sizes[front : len(sizes) - len(back)]]
    return found + middle + back[::-1], front, len(back)


def _take(queue: Dim, size: Size) -> Dim | None:
    """Pop factors that multiply to `size` off the end of `queue` (outermost last)."""
    taken: Dim = []
    while size != 1:
        if not queue:
            queue.extend(taken[::-1])
            return None
        atom = queue.pop()
        rest = 1 if atom.size == size else divide(size, atom.size)
        if rest is not None:
            taken.append(atom)
            size = rest
            continue
        inner = divide(atom.size, size)
        if inner is None or atom.kids is not None:
            queue.append(atom)
            queue.extend(taken[::-1])
            return None
        outer = Factor(size)
        queue.append(split_product(atom, outer, inner))
        taken.append(outer)
        size = 1
    return taken


def _take_back(queue: Dim, size: Size) -> Dim | None:
    """Pop whole factors that multiply to `size` off the end of `queue` (innermost last)."""
    taken: Dim = []
    while size != 1:
        rest = divide(size, queue[-1].size) if queue else None
        if rest is None:
            queue.extend(taken[::-1])
            return None
        taken.append(queue.pop())
        size = rest
    return taken[::-1]
