"""Choose how each stage stores each parameter: as all its users want it, else whole (users slice).

A place that names the parameter itself decides; then users redistribute from that layout.
"""

from __future__ import annotations

from collections.abc import Mapping

from plancc.ir.layout import Layout, Part, Stage, cut_tree
from plancc.passes.base import Unit
from plancc.passes.gradients.zero import cut_state


def store_params(unit: Unit) -> Mapping[tuple[str, Stage], Layout]:
    """(value name, stage) -> stored layout, for every parameter that a placed node uses."""
    assert unit.named is not None
    wanted: dict[tuple[str, Stage], set[Layout]] = {}
    for name, plan in unit.layouts.items():
        operands = unit.named.bindings[name].operands
        for operand, layout in zip(operands, plan.operands, strict=True):
            if operand.value in unit.graph.params:
                key = (operand.value, plan.stage)
                wanted.setdefault(key, set()).add(Layout(layout.dims))
    out: dict[tuple[str, Stage], Layout] = {}
    for (value, stage), layouts in wanted.items():
        rule = unit.param_rules.get(value)
        shapes = unit.named.shapes[value]
        if rule is not None and rule.stage.mesh == stage.mesh:
            cuts = {leaf: parts for leaf, (parts, _) in rule.cuts.items()}
            out[(value, stage)] = Layout(
                tuple(cut_tree(t, lambda p, leaf, by=cuts: by.get(leaf.id, ())) for t in shapes)
            )
        elif len(layouts) == 1:
            out[(value, stage)] = next(iter(layouts))
        parts = state_parts(unit, value, stage, "params")
        if parts:
            whole = Layout(tuple(cut_tree(t, lambda p, leaf: ()) for t in shapes))
            out[(value, stage)] = cut_state(out.get((value, stage), whole), parts)
    return out


def state_parts(unit: Unit, value: str, stage: Stage, dim: str) -> tuple[Part, ...]:
    """The parts over which `dim` (params, grads or optim) of a parameter is cut on a stage."""
    return tuple(
        cut.part
        for cut in unit.states.get(value, ())
        if dim in cut.dims and cut.part.mesh == stage.mesh
    )
