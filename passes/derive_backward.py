"""Derive the backward of a training unit, instruction by instruction, with all its communication.

Reverse mode over the rank programs themselves: layouts of gradients are tracked statically, and every sum
over ranks that a gradient owes stands where it is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from plancc.dsl.diagnostics import Report
from plancc.ir.layout import Layout, Part, Stage, cut_tree
from plancc.ir.mesh import mesh_of
from plancc.ir.program import Held, Origin, Transfer, produced
from plancc.passes.base import Training, Unit
from plancc.passes.derive_training import LOSS
from plancc.passes.gradients.activity import active_names
from plancc.passes.gradients.fuse import fuse_moves
from plancc.passes.gradients.gathered import released_weights
from plancc.passes.gradients.overlap import (
    Wish,
    delay_scatters,
    early_buckets,
    prefetch,
    wishes,
)
from plancc.passes.gradients.pieces import split_mixed
from plancc.passes.gradients.reduce import Buckets, Reduction, bucket_limits
from plancc.passes.gradients.reverse import Reverse
from plancc.passes.gradients.segments import Forward, Names, find_regions
from plancc.passes.gradients.states import State, States, gradient_states
from plancc.passes.gradients.traffic import check_state_traffic
from plancc.passes.gradients.zero import cut_state
from plancc.passes.match_targets import Modules
from plancc.passes.plan_schedule import pipeline_schedule
from plancc.passes.store_params import state_parts
from plancc.passes.wires import state_wires

__all__ = ["DeriveBackward"]


@dataclass(frozen=True)
class DeriveBackward:
    """Fill `training` of a unit of phase "train", and cut its forward into recorded segments."""

    name: ClassVar[str] = "derive-backward"

    def run(self, unit: Unit, report: Report) -> Unit:
        """Return other units as they are."""
        if unit.graph.phase != "train":
            return unit
        entries = unit.instructions
        weights = trainable(unit)
        helds = all_helds(unit)
        loss = helds[unit.outputs[LOSS][0]]
        active = active_names(entries, weights.values(), loss.name)
        names = Names(set(helds))
        entries = tuple(split_mixed(entries, helds, active, names))
        active = active_names(entries, weights.values(), loss.name)
        weights = {name: held for name, held in weights.items() if name in active}
        states = gradient_states(entries, helds, weights, active, loss.name)
        regions = find_regions(entries, unit.recompute)
        modules = Modules(unit.graph)
        layers = {node.name: modules.layer_index(node.path) for node in unit.graph.nodes}
        forward = Forward(entries, helds, weights, active, states, names, regions, layers)
        units = {name: unit_name(unit, modules, held) for name, held in weights.items()}
        kept = {name for name, held in weights.items() if not freed(unit, held, units[name])}
        out, released = released_weights(forward.out, weights, kept)
        edges = 1 + max((s.edge.index for _, s in entries if isinstance(s, Transfer)), default=-1)
        reverse = Reverse(helds, weights, states, names, edges, forward.again, released)
        reverse.seed(loss, Origin("", "", None))
        reverse.run(forward.events)
        reduction = self.reduce(unit, weights, states, names, reverse)
        types = state_wires(unit.plan)
        out = fuse_moves(out, weights, units.__getitem__, types)
        back = fuse_moves(reverse.out, weights, units.__getitem__, types)
        ahead = wished(unit, "params", prefetching(unit))
        later = wished(unit, "grads", {})
        out = prefetch(out, weights, ahead, names)
        back = delay_scatters(prefetch(back, weights, ahead, names), later, names)
        reduce = reduction.out
        if not splits_backward(unit):
            back, reduce = early_buckets(back, reduce, later, names)
        training = Training(
            (*back, *reduction.early), tuple(reduce), tuple(reduction.refresh),
            reduction.gradients, reduction.owned,
        )  # fmt: skip
        check_state_traffic(unit, out, training, report)
        return replace(unit, instructions=tuple(out), training=training)

    def reduce(
        self, unit: Unit, weights: dict[str, Held], states: States, names: Names, reverse: Reverse
    ) -> Reduction:
        """The reduce and refresh sections; sharded gradients are scattered after each micro-batch."""
        pending: dict[str, State] = {}
        for name in weights:
            found = list(states.of[name])
            pending[name] = found[0] if len(found) == 1 else ()
        owned = {n: owned_layout(unit, held) for n, held in weights.items()}
        early = {n for n, held in weights.items() if sharded_gradient(unit, held)}
        reduction = Reduction(
            names,
            owned,
            Buckets(names, bucket_limits(unit.plan), state_wires(unit.plan)),
            reverse.edges,
        )
        reduction.run(weights, pending, early)
        return reduction


def wished(unit: Unit, tensors: str, more: Mapping[tuple[str, str], int]) -> Wish:
    """How far ahead the plan starts the collectives of `params` or `grads`."""
    stated = {**more, **wishes(unit.plan, tensors)}

    def depth(stage: Stage, parts: tuple[Part, ...]) -> int:
        return max((stated.get((mesh_of(p.mesh), p.axis), 0) for p in parts), default=0)

    return depth


def prefetching(unit: Unit) -> dict[tuple[str, str], int]:
    """(mesh, axis) -> layers to gather ahead, as `prefetch = n` of state rules says."""
    return {
        (mesh_of(cut.part.mesh), cut.part.axis): int(cut.options["prefetch"])
        for cuts in unit.states.values()
        for cut in cuts
        if "prefetch" in cut.options
    }


def splits_backward(unit: Unit) -> bool:
    """Whether the schedule leaves gradients of weights for later (zero bubble)."""
    schedule = pipeline_schedule(unit.plan)
    return schedule is not None and any(a.kind == "W" for row in schedule.rows for a in row)


def trainable(unit: Unit) -> dict[str, Held]:
    """The floating parameters of all stages, by local name."""
    return {
        weight.held.name: weight.held
        for weights in unit.weights.values()
        for weight in weights
        if weight.kind == "param" and not weight.frozen and weight.held.dtype.is_floating_point
    }


def owned_layout(unit: Unit, held: Held) -> Layout:
    """How a rank keeps a weight's gradient and optimizer state: as the weight, or cut further."""
    stored = Layout(held.layout.dims)
    if state_parts(unit, held.source, held.stage, "params"):
        return stored
    return cut_state(stored, state_parts(unit, held.source, held.stage, "optim"))


def sharded_gradient(unit: Unit, held: Held) -> bool:
    """Whether only a slice of a weight's gradient is kept between micro-batches (ZeRO-2)."""
    grads = state_parts(unit, held.source, held.stage, "grads")
    return bool(grads) and not state_parts(unit, held.source, held.stage, "params")


def unit_name(unit: Unit, modules: Modules, held: Held) -> str:
    """The layer of a weight; "" for those outside the layer list, which are one unit."""
    path = unit.graph.params[held.source].fqns[0]
    layer = modules.layer_index(path)
    return "" if layer is None else str(layer)


def freed(unit: Unit, held: Held, layer: str) -> bool:
    """Whether a gathered weight is given back after the forward.

    Those outside the layers are not, unless the plan says so: their backward comes at once.
    """
    wishes = {cut.options.get("free") for cut in unit.states.get(held.source, ())}
    if "after_forward" in wishes:
        return True
    return "after_backward" not in wishes and bool(layer)


def all_helds(unit: Unit) -> dict[str, Held]:
    """Every value by its local name: inputs, weights, and what instructions make."""
    assert unit.named is not None
    found = {}
    for value in unit.graph.inputs:
        dims = tuple(cut_tree(t, lambda p, leaf: ()) for t in unit.named.shapes[value.name])
        stage = next(iter(unit.weights), None) or unit.instructions[0][0][0]
        found[value.name] = Held(value.name, value.name, Layout(dims), value.dtype, stage)
    found.update({w.held.name: w.held for ws in unit.weights.values() for w in ws})
    found.update({h.name: h for _, step in unit.instructions for h in produced(step)})
    return found
