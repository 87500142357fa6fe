"""Grids of world ranks: which coordinates a rank has, which ranks form a group.

A world rank is the place of a device in the sorted list of all devices that the plan's meshes use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from plancc.dsl.plan import ResolvedPlan


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
    """All grids of a plan and the number of ranks they use together."""

    grids: Mapping[str, Grid]
    size: int
    devices: tuple[int, ...]


def build_world(plan: ResolvedPlan) -> World:
    """Number the devices that the plan's meshes use, and lay the meshes over them."""
    used = sorted({d for mesh in plan.meshes.values() for d in mesh.devices})
    rank_of = {device: rank for rank, device in enumerate(used)}
    grids = {
        name: Grid(
            name,
            tuple((axis.name, axis.size) for axis in mesh.axes),
            tuple(rank_of[d] for d in mesh.devices),
        )
        for name, mesh in plan.meshes.items()
    }
    return World(grids, len(used), tuple(used))


def stage_name(mesh: str, coords: Sequence[tuple[str, int]]) -> str:
    """`base[pp=0]`: how a stage is written in messages and files."""
    inside = ", ".join(f"{axis}={index}" for axis, index in coords)
    return f"{mesh}[{inside}]" if inside else mesh
