"""Types in which traffic travels, as the plan's comm lines say: `dtype`, `grad_dtype`."""

from __future__ import annotations

from collections.abc import Mapping

from plancc.dsl.plan import Call, Comm, ResolvedPlan
from plancc.ir.layout import Stage
from plancc.ir.mesh import mesh_of
from plancc.ops.wire import BLOCK


def wire_text(value: object) -> str:
    """A wire type as programs write it: `bf16`, `int8/128`, `int8/128/feedback`."""
    if not isinstance(value, Call):
        text = str(value)
        return f"{text}/{BLOCK}" if text.startswith(("int8", "fp8")) else text
    tail = "/feedback" if value.options.get("error_feedback") else ""
    return f"{value.name}/{value.options.get('block', BLOCK)}{tail}"


def state_wires(plan: ResolvedPlan) -> Mapping[tuple[str, str], str]:
    """(mesh, axis) -> wire type of gradients, where the plan gives one."""
    return {
        (str(comm.mesh), str(comm.axis)): wire_text(setting.value)
        for comm in plan.comms
        if comm.kind == "tensors" and "grads" in comm.tensors
        for setting in comm.settings
        if setting.name == "dtype"
    }


def edge_wire(comms: list[Comm], source: Stage, target: Stage, gradient: bool) -> str:
    """The wire type of a transfer, "" for the value's own.

    A gradient goes against the edge that the plan names: those of `a -> b` travel from b to a.
    """
    ends = (mesh_of(source.mesh), mesh_of(target.mesh))
    found = ""
    for comm in comms:
        named = (comm.source, comm.target)
        way = ends[::-1] if gradient else ends
        if comm.kind == "both" and set(named) == set(ends):
            way = named
        if comm.kind not in ("edge", "both") or way != named:
            continue
        for setting in comm.settings:
            if setting.name == ("grad_dtype" if gradient else "dtype"):
                found = wire_text(setting.value)
    return found
