"""Tell the virtual stages of one rank apart: every node of a staged mesh gets its chunk.

In: places with coordinates on the pipeline's axis. A layer's chunk is that of its run of layers; what comes
before all layers is in the first chunk of its coordinate, what comes after one in the last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from plancc.ir.graph import Graph
from plancc.ir.layout import Stage
from plancc.ir.mesh import mesh_of
from plancc.passes.base import Placed, Unit
from plancc.passes.match_targets import Modules
from plancc.passes.plan_schedule import virtual_stages


def give_chunks(unit: Unit, places: Mapping[str, Placed]) -> Mapping[str, Placed]:
    """`places` with the chunks of plans that have virtual stages; others as they are."""
    virtual = virtual_stages(unit.plan)
    if not virtual:
        return places
    modules = Modules(unit.graph)
    after = behind_layers(unit.graph, modules)
    out = dict(places)
    for node in unit.graph.nodes:
        placed = places.get(node.name)
        found = virtual_axis(virtual, placed.stage) if placed is not None else None
        if placed is None or found is None:
            continue
        axis, count = found
        stages = unit.world.grids[placed.stage.mesh].sizes[axis]
        layer = modules.layer_index(node.path)
        if layer is None:
            chunk = count - 1 if node.name in after else 0
        else:
            chunk = layer_run(layer, modules.layer_count, stages * count) // stages
        out[node.name] = replace(placed, stage=replace(placed.stage, chunk=chunk))
    return out


def virtual_axis(virtual: Mapping[tuple[str, str], int], stage: Stage) -> tuple[str, int] | None:
    """The axis on which a stage has a coordinate and virtual stages, and how many."""
    for axis, _ in stage.coords:
        if (mesh_of(stage.mesh), axis) in virtual:
            return axis, virtual[mesh_of(stage.mesh), axis]
    return None


def layer_run(index: int, layers: int, runs: int) -> int:
    """Which of `runs` consecutive runs of layers, as equal as can be, holds a layer."""
    bounds = [layers * run // runs for run in range(runs + 1)]
    return next(run for run in range(runs) if bounds[run] <= index < bounds[run + 1])


def behind_layers(graph: Graph, modules: Modules) -> frozenset[str]:
    """The nodes that depend on a node of a layer."""
    maker = {out.name: node.name for node in graph.nodes for out in node.outs}
    found: set[str] = set()
    for node in graph.nodes:
        inside = modules.layer_index(node.path) is not None
        if inside or any(maker.get(ref) in found for ref in node.refs()):
            found.add(node.name)
    return frozenset(found)
