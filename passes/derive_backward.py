"""Derive the backward of a training unit, instruction by instruction, with all its communication.

Reverse mode over the rank programs themselves: layouts of gradients are tracked statically, and every sum
over ranks that a gradient owes stands where it is made.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from plancc.dsl.diagnostics import Report
from plancc.ir.layout import Layout, cut_tree
from plancc.ir.program import Held, Origin, Transfer, produced
from plancc.passes.base import Training, Unit
from plancc.passes.derive_training import LOSS
from plancc.passes.gradients.activity import active_names
from plancc.passes.gradients.reduce import Buckets, Reduction
from plancc.passes.gradients.reverse import Reverse
from plancc.passes.gradients.segments import Forward, Names
from plancc.passes.gradients.states import gradient_states

__all__ = ["DeriveBackward"]


@dataclass(frozen=True)
class DeriveBackward:
    """Fill `training` of a unit of phase "train", and cut its forward into recorded segments."""

    name: ClassVar[str] = "derive-backward"

    def run(self, unit: Unit, report: Report) -> Unit:
        """Return other units as they are."""
        if unit.graph.phase != "train":
            return unit
        weights = trainable(unit)
        helds = all_helds(unit)
        loss = helds[unit.outputs[LOSS][0]]
        active = active_names(unit.instructions, weights.values(), loss.name)
        weights = {name: held for name, held in weights.items() if name in active}
        states = gradient_states(unit.instructions, helds, weights, active, loss.name)
        names = Names(set(helds))
        forward = Forward(unit.instructions, helds, weights, active, states, names)
        edges = 1 + max(
            (s.edge.index for _, s in unit.instructions if isinstance(s, Transfer)), default=-1
        )
        reverse = Reverse(helds, weights, states, names, edges)
        reverse.seed(loss, Origin("", "", None))
        reverse.run(forward.events)
        pending = {n: one[0] if len(one := list(states.of[n])) == 1 else () for n in weights}
        owned = {name: Layout(held.layout.dims) for name, held in weights.items()}
        reduction = Reduction(names, owned, Buckets(names), reverse.edges)
        reduction.run(weights, pending)
        training = Training(
            tuple(reverse.out), tuple(reduction.out), (), reduction.gradients, owned
        )
        return replace(unit, instructions=tuple(forward.out), training=training)


def trainable(unit: Unit) -> dict[str, Held]:
    """The floating parameters of all stages, by local name."""
    return {
        weight.held.name: weight.held
        for weights in unit.weights.values()
        for weight in weights
        if weight.kind == "param" and weight.held.dtype.is_floating_point
    }


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
