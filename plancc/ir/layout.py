"""Layouts: how a value lies on the ranks of one stage, and the moves between two layouts.

A leaf occurrence is cut by zero or more `Part`s, from major to minor; what no part cuts is replicated.
`partial` parts hold a pending sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from plancc.dsl.errors import Bug
from plancc.ir.mesh import stage_name
from plancc.ir.graph import Size
from plancc.ir.shape import Leaf, Prod, Sum, Tree


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
        """Whether both tell ranks apart by the same coordinate, so that one tensor cannot have both."""
        same = self.mesh == other.mesh and self.axis == other.axis
        low, high = max(self.stride, other.stride), self.stride * self.count
        return same and low < min(high, other.stride * other.count)


def pending_parts(parts: Iterable[Part]) -> tuple[Part, ...]:
    """The groups of a pending sum: without rules, factors of one axis joined, in a fixed order."""
    found: list[Part] = []
    groups = {part.group for part in parts}
    for part in sorted(groups, key=lambda p: (p.mesh, p.axis, -p.stride)):
        last = found[-1] if found else None
        if last and (last.mesh, last.axis) == (part.mesh, part.axis):
            if last.stride == part.stride * part.count:
                found[-1] = replace(part, count=part.count * last.count)
                continue
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
    """Where a value lives: a mesh, with the coordinates of its stage axes fixed."""

    mesh: str
    coords: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        return stage_name(self.mesh, self.coords)


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

    def parts(self, layout: Layout) -> list[list[tuple[Part, ...]]]:
        return [[leaf.parts for leaf in cuts(dim)] for dim in layout.dims]

    def step(self, kind: str, parts: tuple[Part, ...], after: Layout, dim: int = -1, to: int = -1):
        self.moves.append(Move(kind, parts, self.at, after, dim, to))
        self.at = after

    def with_cuts(self, changes: Mapping[int, Mapping[int, tuple[Part, ...]]], partial) -> Layout:
        dims = tuple(
            map_cuts(dim, changes[d]) if d in changes else dim for d, dim in enumerate(self.at.dims)
        )
        return Layout(dims, partial)

    def positions(self) -> Iterator[tuple[int, int, tuple[Part, ...], tuple[Part, ...]]]:
        now, goal = self.parts(self.at), self.parts(self.target)
        for d, (row, want) in enumerate(zip(now, goal, strict=True)):
            for p, (have, need) in enumerate(zip(row, want, strict=True)):
                if have != need:
                    yield d, p, have, need

    def reduce(self) -> None:
        for d, p, have, need in list(self.positions()):
            added = need[len(have) :]
            pending, summed = set(self.at.partial) - set(self.target.partial), pending_parts(added)
            if need[: len(have)] == have and added and set(summed) <= pending:
                rest = tuple(x for x in self.at.partial if x not in summed)
                self.step("reduce_scatter", added, self.with_cuts({d: {p: need}}, rest), d)
        pending = tuple(p for p in self.at.partial if p not in self.target.partial)
        if pending:
            rest = tuple(p for p in self.at.partial if p in self.target.partial)
            self.step("all_reduce", pending, Layout(self.at.dims, rest))

    def shard(self) -> None:
        for d, p, have, need in list(self.positions()):
            added = need[len(have) :]
            in_use = [x for row in self.parts(self.at) for leaf in row for x in leaf]
            free = not any(new.meets(old) for new in added for old in in_use)
            if need[: len(have)] == have and added and free:
                self.step("shard", added, self.with_cuts({d: {p: need}}, self.at.partial), d)

    def exchange(self) -> None:
        for d, p, have, need in list(self.positions()):
            moved = have[len(need) :]
            if have[: len(need)] != need or not moved:
                continue
            for d2, p2, have2, need2 in list(self.positions()):
                fits = need2[: len(have2)] == have2 and need2[len(have2) :] == moved
                if fits and d2 != d:
                    after = self.with_cuts({d: {p: need}, d2: {p2: need2}}, self.at.partial)
                    self.step("all_to_all", moved, after, d, d2)
                    break

    def gather(self) -> None:
        by_dim: dict[int, dict[int, tuple[Part, ...]]] = {}
        gone: dict[int, list[Part]] = {}
        for d, p, have, need in self.positions():
            keep = 0
            while keep < min(len(have), len(need)) and have[keep] == need[keep]:
                keep += 1
            if len(have) > keep:
                by_dim.setdefault(d, {})[p] = have[:keep]
                gone.setdefault(d, []).extend(have[keep:])
        for d, change in by_dim.items():
            self.step("all_gather", tuple(gone[d]), self.with_cuts({d: change}, self.at.partial), d)


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
        raise Bug(f"no path from layout {source} to {target}: stuck at {path.at}")
    return tuple(path.moves)
