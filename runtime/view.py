"""A rank's view of the plan's meshes: its coordinates, its local sizes, its peers along an axis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from plancc.dsl.errors import Bug
from plancc.ir.layout import Part
from plancc.ir.mesh import Grid
from plancc.runtime.balance import Tables, is_loaded, is_placed
from plancc.runtime.dims import Coord, Dim, Ranges
from plancc.runtime.owners import Owners, is_owned

DTYPES = {
    "f64": torch.float64, "f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16,
    "i64": torch.int64, "i32": torch.int32, "bool": torch.bool,
}  # fmt: skip


def dtype_named(text: str) -> torch.dtype:
    """The dtype that a manifest writes as text."""
    return DTYPES[text]


@dataclass(frozen=True, slots=True)
class Members:
    """The ranks of one stage, row-major, and the name shown for it."""

    name: str
    mesh: str
    ranks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Peers:
    """The ranks that differ from this one along some parts only, in row-major order of those parts."""

    parts: tuple[Part, ...]
    ranks: tuple[int, ...]
    coords: tuple[Mapping[Part, int], ...]
    group: tuple[int, ...]  # the same ranks, sorted: what transports take
    own: int = 0  # this rank's place in `ranks`


class View:
    """What an emitted program calls `r`.

    `batch`, `tokens` and `past` are the global sizes of the running step (of one micro-batch).
    `sizes` overrides dims by name and `dtype` every floating type: verification runs the same program
    on shrunk dims in float64. Programs write their types as `r.f32`, `r.bf16`.
    """

    def __init__(
        self,
        rank: int,
        grids: Mapping[str, Grid],
        main: str,
        *,
        device: torch.device | None = None,
        sizes: Mapping[str, int] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.rank = rank
        self.grids = grids
        self.main = main
        self.device = device or torch.device("cpu")
        self.sizes = dict(sizes or {})
        self.f64 = dtype or torch.float64
        self.f32 = dtype or torch.float32
        self.bf16 = dtype or torch.bfloat16
        self.f16 = dtype or torch.float16
        self.batch = self.tokens = 1
        self.past = 0
        self.one = Dim.join("mul", ())
        self.dtype = dtype
        self.owners = Owners()
        self.tables = Tables()
        self.nodes: tuple[
            int, ...
        ] = ()  # the node of each rank, where the plan's cluster has nodes
        self.exact = False  # whether wire types are left out, so that results can be compared
        self._others: dict[str, View] = {}
        self._parts: dict[str, Part] = {}
        self._peers: dict[tuple[Part, ...], Peers] = {}
        self._members: dict[Any, Members] = {}

    def on(self, mesh: str) -> View:
        """This rank's view with `mesh` as the one whose axes need no prefix."""
        if mesh == self.main:
            return self
        if mesh not in self._others:
            self._others[mesh] = View(
                self.rank, self.grids, mesh, device=self.device, sizes=self.sizes, dtype=self.dtype
            )
        self._others[mesh].owners, self._others[mesh].tables = self.owners, self.tables
        return self._others[mesh]

    def dtype_of(self, text: str) -> torch.dtype:
        """The dtype that a manifest writes as text ("f32", "i64"), as this view has it."""
        dtype = dtype_named(text)
        return self.dtype if self.dtype is not None and dtype.is_floating_point else dtype

    def part(self, text: str) -> Part:
        """Read a part: "tp", "moe.ep", "tp/2%4" (a factor of the axis), "sp:block"."""
        known = self._parts.get(text)
        if known is None:
            head, _, rule = text.partition(":")
            head, _, factor = head.partition("/")
            mesh, _, axis = head.rpartition(".")
            size = self.grids[mesh or self.main].sizes[axis]
            stride, count = (int(x) for x in factor.split("%")) if factor else (1, size)
            known = Part(mesh or self.main, axis, stride, count, size, rule or "balanced")
            self._parts[text] = known
        return known

    def parts(self, text: str | tuple[str, ...]) -> tuple[Part, ...]:
        """Read one part or several."""
        if isinstance(text, str):
            return (self.part(text),)
        return tuple(self.part(t) for t in text)

    def index(self, rank: int, part: Part) -> int | None:
        """The index of `rank` along `part`; None if it is not on the part's mesh."""
        at = self.grids[part.mesh].coords.get(rank)
        return None if at is None else at[part.axis] // part.stride % part.count

    def coord_of(self, rank: int) -> Coord:
        """The function from parts to indices of `rank`."""
        return lambda part: self.index(rank, part)

    def dim(self, name: str, size: int, parts: str | tuple[str, ...] = ()) -> Dim:
        """This rank's share of a dim of `size` elements, cut by `parts` from major to minor."""
        return self.share(self.sizes.get(name, size), self.parts(parts))

    def share(self, total: int, parts: tuple[Part, ...]) -> Dim:
        """This rank's share of `total` elements, cut by `parts` from major to minor."""
        if parts and is_owned(parts[0]):
            table = self.owners.ranges(parts[0])
            return Dim.owned(total, parts[0], table, self.coord_of(self.rank))
        if parts and is_loaded(parts[0]):
            shares = self.tables.paces.shares(parts[0], total)
            return Dim.loaded(total, parts, shares, self.coord_of(self.rank))
        if parts and is_placed(parts[0]):
            held = self.tables.of(parts[0], total)
            coord = self.coord_of(self.rank)
            return Dim.placed(total, parts[0], held.ranges, held.room, coord)
        return Dim.leaf(total, parts, self.coord_of(self.rank))

    def experts(self, *args: Any, layer: Dim, **options: Any) -> Tensor:
        """`ops.experts` over choices of seats; `layer` is the dim of the experts, whose time is kept."""
        from plancc.ops import experts

        with self.tables.timed(layer.parts[0], self.device):
            return experts(*args, **options)

    def ranges(self, dim: Dim) -> Ranges:
        """The global index ranges of a dim that this rank holds."""
        return dim.ranges(self.coord_of(self.rank))

    def start(self, dim: Dim) -> int:
        """The global index at which this rank's range of a leaf dim begins."""
        if dim.op != "leaf":
            raise Bug("start of a dim that is not one leaf")
        return dim.lo

    def stage(self, mesh: str, **fixed: int) -> Members:
        """The ranks of a mesh at fixed coordinates."""
        key = (mesh, *fixed.items())
        if key not in self._members:
            inside = ", ".join(f"{a}={i}" for a, i in fixed.items())
            name = f"{mesh}[{inside}]" if inside else mesh
            self._members[key] = Members(name, mesh, self.grids[mesh].members(fixed))
        return self._members[key]

    def peers(self, parts: tuple[Part, ...]) -> Peers:
        """The group of this rank along `parts` (all of one mesh)."""
        if parts not in self._peers:
            self._peers[parts] = self._find_peers(parts)
        return self._peers[parts]

    def _find_peers(self, parts: tuple[Part, ...]) -> Peers:
        grid = self.grids[parts[0].mesh]
        at = grid.coords[self.rank]
        by_point = {tuple(point.values()): rank for rank, point in grid.coords.items()}
        ranks, coords = [], []
        for indices in product(*(range(part.count) for part in parts)):
            point = dict(at)
            for part, index in zip(parts, indices, strict=True):
                mine = point[part.axis] // part.stride % part.count
                point[part.axis] += (index - mine) * part.stride
            ranks.append(by_point[tuple(point.values())])
            coords.append(dict(zip(parts, indices, strict=True)))
        own = ranks.index(self.rank)
        return Peers(parts, tuple(ranks), tuple(coords), tuple(sorted(ranks)), own)
