"""Grids of world ranks: which coordinates a rank has, which ranks form a group.

A world rank is the place of a device in the sorted list of all devices that the plan's meshes use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod

from plancc.dsl.guards import pool_size
from plancc.dsl.plan import Axis, Mesh, ResolvedPlan, Variant


@dataclass(frozen=True)
class Grid:
    """A mesh as ranks: `axes` from major to minor, `ranks` row-major."""

    name: str
    axes: tuple[tuple[str, int], ...]
    ranks: tuple[int, ...]

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """Axis name -> size."""
        return dict(self.axes)

    @cached_property
    def coords(self) -> Mapping[int, Mapping[str, int]]:
        """World rank -> coordinate on every axis."""
        names = [name for name, _ in self.axes]
        points = product(*(range(size) for _, size in self.axes))
        return {
            rank: dict(zip(names, point, strict=True))
            for rank, point in zip(self.ranks, points, strict=True)
        }

    def members(self, fixed: Mapping[str, int]) -> tuple[int, ...]:
        """Ranks whose coordinates agree with `fixed`, in row-major order."""
        return tuple(
            rank for rank, at in self.coords.items() if all(at[a] == i for a, i in fixed.items())
        )


@dataclass(frozen=True)
class World:
    """All grids of a plan and the number of ranks they use together.

    A pool has one grid for each size that a variant gives it, called `fa@8`; `names` maps (mesh, variant)
    to the grid. A pool that is empty in a variant has none there.
    """

    grids: Mapping[str, Grid]
    size: int
    devices: tuple[int, ...]
    names: Mapping[tuple[str, int], str]
    per_node: int = 0


def build_world(plan: ResolvedPlan) -> World:
    """Number the devices that the plan's meshes use, and lay the meshes over them."""
    used = sorted({d for mesh in plan.meshes.values() for d in mesh.devices})
    rank_of = {device: rank for rank, device in enumerate(used)}
    grids: dict[str, Grid] = {}
    names: dict[tuple[str, int], str] = {}
    for mesh in plan.meshes.values():
        for variant in plan.variants:
            axes = tuple((axis.name, axis_size(mesh, axis, variant)) for axis in mesh.axes)
            count = prod(size for _, size in axes)
            if count == 0:
                continue
            steps = "x".join(str(n) for (_, n), a in zip(axes, mesh.axes, strict=True) if a.steps)
            name = f"{mesh.name}@{steps}" if steps else mesh.name
            ranks = tuple(rank_of[d] for d in mesh.devices[:count])
            grids.setdefault(name, Grid(name, axes, ranks))
            names[(mesh.name, variant.index)] = name
    nodes = {g.facts.get("per_node", 0) for g in plan.cluster.groups} if plan.cluster else {0}
    return World(grids, len(used), tuple(used), names, nodes.pop() if len(nodes) == 1 else 0)


def axis_size(mesh: Mesh, axis: Axis, variant: Variant) -> int:
    """The size of an axis in a variant: of a pool's axis, the last guarded step that holds there."""
    if not axis.steps:
        return axis.size
    point = {name: lo for name, (lo, _) in variant.bounds.items()}
    return pool_size(mesh, axis, {**point, "phase": variant.phase or "forward"})


def mesh_of(grid: str) -> str:
    """The plan's name of a grid: `fa` for `fa@8`."""
    return grid.partition("@")[0]


def stage_name(mesh: str, coords: Sequence[tuple[str, int]]) -> str:
    """`base[pp=0]`: how a stage is written in messages and files."""
    inside = ", ".join(f"{axis}={index}" for axis, index in coords)
    return f"{mesh}[{inside}]" if inside else mesh
