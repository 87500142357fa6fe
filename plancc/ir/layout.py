"""Layouts: how a value lies on the ranks of one stage, and the moves between two layouts.

A leaf occurrence is cut by zero or more `Part`s, from major to minor; what no part cuts is replicated.
`partial` parts hold a pending sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from plancc.dsl.errors import Bug
from plancc.ir.graph import Size
from plancc.ir.mesh import stage_name
from plancc.ir.shape import Leaf, Prod, Sum, Tree

APPEND_BLOCK = 16
"""New cached positions that one owner takes while decoding, before the next one's turn."""


@dataclass(frozen=True, slots=True)
class Part:
    """One mesh axis, or a factor of it: a rank's index is `coord(axis) // stride % count`.

    `size` is the axis's. `rule` gives the ranges of n elements: "balanced" (sizes differ by at most one) or
    "block" (ceil(n / count) each; the last ones may be short or empty).
    """

    mesh: str
    axis: str
    stride: int
    count: int
    size: int
    rule: str = "balanced"

    @property
    def whole_axis(self) -> bool:
        """The part is the whole axis, not a factor of it."""
        return self.stride == 1 and self.count == self.size

    @property
    def group(self) -> Part:
        """The part without its rule: which ranks it tells apart."""
        return self if self.rule == "balanced" else replace(self, rule="balanced")

    def meets(self, other: Part) -> bool:
        """Whether both use one coordinate of the ranks, so that one tensor cannot have both."""
        same = self.mesh == other.mesh and self.axis == other.axis
        low, high = max(self.stride, other.stride), self.stride * self.count
        return same and low < min(high, other.stride * other.count)


def pending_parts(parts: Iterable[Part]) -> tuple[Part, ...]:
    """The groups of a pending sum: without rules, factors of one axis joined, in a fixed order."""
    found: list[Part] = []
    groups = {part.group for part in parts}
    for part in sorted(groups, key=lambda p: (p.mesh, p.axis, -p.stride)):
        last = found[-1] if found else None
        same = last is not None and (last.mesh, last.axis) == (part.mesh, part.axis)
        if last is not None and same and last.stride == part.stride * part.count:
            found[-1] = replace(part, count=part.count * last.count)
        else:
            found.append(part)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class CutLeaf:
    """A leaf occurrence as it lies on a rank: its class, global size, and the parts that cut it."""

    id: int
    size: Size
    parts: tuple[Part, ...] = ()


LocalTree = CutLeaf | Prod | Sum
"""A factor tree whose leaves are CutLeafs (Prod and Sum are shared with plancc.ir.shape)."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Where a value lives: a mesh, with the coordinates of its stage axes fixed.

    `chunk` tells the virtual stages of one coordinate apart: they are the same ranks.
    """

    mesh: str
    coords: tuple[tuple[str, int], ...] = ()
    chunk: int = 0

    def __str__(self) -> str:
        name = stage_name(self.mesh, self.coords)
        return f"{name}#{self.chunk}" if self.chunk else name


@dataclass(frozen=True, slots=True)
class Layout:
    """One local tree a dim, and the parts over which a sum is pending."""

    dims: tuple[LocalTree, ...]
    partial: tuple[Part, ...] = ()

    @property
    def whole(self) -> bool:
        """Nothing cut, nothing pending."""
        return not self.partial and not any(leaf.parts for d in self.dims for leaf in cuts(d))


def cuts(tree: LocalTree) -> Iterator[CutLeaf]:
    """The leaf occurrences of a local tree, in index order."""
    if isinstance(tree, CutLeaf):
        yield tree
    else:
        for kid in tree.kids:
            yield from cuts(kid)  # type: ignore[arg-type]


def cut_tree(tree: Tree, parts_at: Callable[[int, Leaf], tuple[Part, ...]]) -> LocalTree:
    """The local form of `tree`; `parts_at(position, leaf)` gives the parts of each occurrence."""
    position = -1

    def walk(node: Any) -> Any:
        nonlocal position
        if isinstance(node, Leaf):
            position += 1
            return CutLeaf(node.id, node.size, parts_at(position, node))
        return type(node)(tuple(walk(kid) for kid in node.kids))

    return walk(tree)


def map_cuts(tree: LocalTree, change: Mapping[int, tuple[Part, ...]]) -> LocalTree:
    """`tree` with the parts at the given leaf positions replaced."""
    position = -1

    def walk(node: Any) -> Any:
        nonlocal position
        if isinstance(node, CutLeaf):
            position += 1
            return CutLeaf(node.id, node.size, change.get(position, node.parts))
        return type(node)(tuple(walk(kid) for kid in node.kids))

    return walk(tree)


@dataclass(frozen=True, slots=True)
class Move:
    """One step from a layout to another on the same stage.

    kind: all_reduce | reduce_scatter | all_gather | all_to_all | shard. `dim` is the dim that is gathered,
    scattered or sharded (for all_to_all: the dim that becomes whole, `to_dim` the one that is cut).
    """

    kind: str
    parts: tuple[Part, ...]
    before: Layout
    after: Layout
    dim: int = -1
    to_dim: int = -1


class _Path:
    """A layout on its way to a target, and the moves made so far."""

    def __init__(self, source: Layout, target: Layout) -> None:
        self.at = source
        self.target = target
        self.moves: list[Move] = []

    def step(self, kind: str, parts: Parts, after: Layout, dim: int = -1, to: int = -1) -> None:
        self.moves.append(Move(kind, parts, self.at, after, dim, to))
        self.at = after

    def positions(self, d: int) -> Iterator[tuple[int, Parts, Parts]]:
        """The positions of a dim that are not as wanted: (position, parts there, parts wanted)."""
        pairs = zip(cuts(self.at.dims[d]), cuts(self.target.dims[d]), strict=True)
        for p, (have, need) in enumerate(pairs):
            if have.parts != need.parts:
                yield p, have.parts, need.parts

    def gains(self, d: int) -> tuple[Changes, Parts]:
        """The positions of a dim that lack only further cuts, and the parts of those."""
        changes = {p: need for p, have, need in self.positions(d) if need[: len(have)] == have}
        return changes, union(n[len(h) :] for p, h, n in self.positions(d) if p in changes)

    def losses(self, d: int) -> tuple[Changes, Parts]:
        """What is left at the positions of a dim that are cut as not wanted, and the parts to drop.

        A part is dropped at all positions of the dim, also where it is wanted: a dim is gathered
        as one.
        """
        kept = {p: len(shared_prefix(have, need)) for p, have, need in self.positions(d)}
        found = [leaf.parts for leaf in cuts(self.at.dims[d])]
        gone: Parts = ()
        while True:
            after = {p: parts[: kept.get(p, len(parts))] for p, parts in enumerate(found)}
            left = {
                p: next((i for i, part in enumerate(parts) if part in gone), len(parts))
                for p, parts in after.items()
            }
            lost = union(parts[left[p] :] for p, parts in enumerate(found))
            if lost == gone:
                return {p: found[p][:n] for p, n in left.items() if n < len(found[p])}, gone
            kept, gone = left, lost

    def changed(self, changes: Mapping[int, Changes], partial: Parts) -> Layout:
        dims = tuple(
            map_cuts(dim, changes[d]) if d in changes else dim for d, dim in enumerate(self.at.dims)
        )
        return Layout(dims, partial)

    def reduce(self) -> None:
        for d in range(len(self.at.dims)):
            pending = set(self.at.partial) - set(self.target.partial)
            changes, added = self.gains(d)
            summed = pending_parts(added)
            if summed and set(summed) <= pending:
                rest = tuple(x for x in self.at.partial if x not in summed)
                self.step("reduce_scatter", added, self.changed({d: changes}, rest), d)
        owed = tuple(p for p in self.at.partial if p not in self.target.partial)
        if owed:
            rest = tuple(p for p in self.at.partial if p in self.target.partial)
            self.step("all_reduce", owed, Layout(self.at.dims, rest))

    def shard(self) -> None:
        for d in range(len(self.at.dims)):
            changes, added = self.gains(d)
            if added and not any(new.meets(old) for new in added for old in self.in_use()):
                self.step("shard", added, self.changed({d: changes}, self.at.partial), d)

    def in_use(self) -> list[Part]:
        return [part for dim in self.at.dims for leaf in cuts(dim) for part in leaf.parts]

    def exchange(self) -> None:
        dims = range(len(self.at.dims))
        for d, to in ((d, to) for d in dims for to in dims if d != to):
            lost, moved = self.losses(d)
            gained, added = self.gains(to)
            if moved and set(moved) == set(added):
                after = self.changed({d: lost, to: gained}, self.at.partial)
                self.step("all_to_all", moved, after, d, to)

    def gather(self, *, whole: bool = False) -> None:
        """Drop the cuts that are not wanted; with `whole`, all cuts of dims that are not as wanted."""
        for d in range(len(self.at.dims)):
            changes, gone = self.losses(d)
            if whole and any(True for _ in self.positions(d)):
                found = list(cuts(self.at.dims[d]))
                changes, gone = dict.fromkeys(range(len(found)), ()), union(x.parts for x in found)
            if gone:
                self.step("all_gather", gone, self.changed({d: changes}, self.at.partial), d)


Parts = tuple[Part, ...]
Changes = Mapping[int, Parts]
"""Position in a dim -> the parts that cut it after a move."""


def union(found: Iterable[Parts]) -> Parts:
    """Every part once, in order of appearance."""
    return tuple(dict.fromkeys(part for parts in found for part in parts))


def shared_prefix(a: Parts, b: Parts) -> Parts:
    """The parts that both begin with."""
    pairs = enumerate(zip(a, b, strict=False))
    return a[: next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))]


def plan_moves(source: Layout, target: Layout) -> tuple[Move, ...]:
    """The steps that turn `source` into `target` on one stage: each at most one native collective.

    Partial -> whole is an all-reduce, partial -> cut a reduce-scatter, cut -> whole an all-gather,
    cut -> cut elsewhere an all-to-all, whole -> cut a local slice. Whole -> partial never happens.
    """
    if set(target.partial) - set(source.partial):
        raise Bug(f"a layout cannot become partial: {source} -> {target}")
    path = _Path(source, target)
    path.reduce()
    path.shard()
    path.exchange()
    path.gather()
    path.shard()
    if path.at.dims != target.dims:
        path.gather(whole=True)
        path.shard()
    if path.at.dims != target.dims:
        raise Bug(f"no path from layout {source} to {target}: stuck at {path.at}")
    return tuple(path.moves)
