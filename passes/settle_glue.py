"""Settle nodes that a plan puts on a whole mesh although others fix a stage axis of it (pipeline glue).

Such a node (a residual add of the root module, a dropout before the first layer) would run on every
stage; it is settled on the one stage that uses it, else on the stage of its operands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from plancc.ir.graph import Node
from plancc.ir.layout import Stage
from plancc.ir.mesh import mesh_of
from plancc.ir.shape import leaves
from plancc.passes.base import Placed, Unit
from plancc.passes.plan_schedule import virtual_stages


def settle_glue(
    unit: Unit, places: Mapping[str, Placed], rules: Mapping[str, Placed]
) -> Mapping[str, Placed]:
    """`places` with every node of a staged mesh on one coordinate of each stage axis."""
    axes: dict[str, set[str]] = {}
    for placed in places.values():
        axes.setdefault(placed.stage.mesh, set()).update(axis for axis, _ in placed.stage.coords)
    if not any(axes.values()):
        return places
    work = _Settling(unit, dict(places), rules, axes)
    for node in reversed(unit.graph.nodes):
        work.settle(node, work.users.get(node.name, ()), earliest=True)
    for node in unit.graph.nodes:
        work.settle(node, work.producers.get(node.name, ()), earliest=False, last_resort=True)
    return work.places


class _Settling:
    def __init__(
        self, unit: Unit, places: dict[str, Placed], rules: Mapping[str, Placed],
        axes: Mapping[str, set[str]],
    ) -> None:  # fmt: skip
        assert unit.named is not None
        self.named = unit.named
        self.places = places
        self.rules = rules
        self.axes = axes
        self.users: dict[str, list[str]] = {}
        self.producers: dict[str, list[str]] = {}
        self.virtual = {mesh: (axis,) for mesh, axis in virtual_stages(unit.plan)}
        maker = {out.name: node.name for node in unit.graph.nodes for out in node.outs}
        for node in unit.graph.nodes:
            for ref in node.refs():
                if ref in maker:
                    self.users.setdefault(maker[ref], []).append(node.name)
                    self.producers.setdefault(node.name, []).append(maker[ref])

    def settle(self, node: Node, near, *, earliest: bool, last_resort: bool = False) -> None:
        placed = self.places.get(node.name)
        if placed is None:
            return
        coords, chunk = dict(placed.stage.coords), placed.stage.chunk
        for axis in sorted(self.axes[placed.stage.mesh] - set(coords)):
            if self.is_cut(node, placed, axis):
                continue
            virtual = axis in self.virtual.get(mesh_of(placed.stage.mesh), ())
            seen = {
                (self.places[n].stage.chunk * virtual, dict(self.places[n].stage.coords)[axis])
                for n in near
                if n in self.places
                and self.places[n].stage.mesh == placed.stage.mesh
                and axis in dict(self.places[n].stage.coords)
            }
            if seen:
                at, coords[axis] = min(seen) if earliest else max(seen)
                chunk = at if virtual else chunk
            elif last_resort:
                coords[axis] = 0
        stage = Stage(placed.stage.mesh, tuple(sorted(coords.items())), chunk)
        self.places[node.name] = replace(placed, stage=stage)

    def is_cut(self, node: Node, placed: Placed, axis: str) -> bool:
        """Whether the plan cuts a dim or a parameter of this node over `axis`."""
        binding = self.named.bindings[node.name]
        return any(
            part.axis == axis
            for operand in (*binding.operands, *binding.outs)
            for tree in self.named.shapes[operand.value]
            for leaf in leaves(tree)
            for source in (placed, self.rules.get(operand.value, placed))
            for part in source.cuts.get(leaf.id, ((), None))[0]
        )
