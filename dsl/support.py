"""What edition 1 says but this plancc cannot execute yet: one row a feature.

`plancc check` accepts all of it; `compile` turns each use into P901 at its line.
Making a feature work removes its row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from plancc.dsl.diagnostics import Report
from plancc.dsl.plan import Call, Combine, Comm, Job, ResolvedPlan, Setting, Share
from plancc.dsl.source import Span

# (where it stands, its name) -> what to call it in the message.
UNSUPPORTED: dict[tuple[str, str], str] = {
    ("comm", "tensors"): "a comm line for tensors",
    ("comm", "axis"): "a comm line for an axis",
    ("comm", "op"): "a choice of collective",
    ("comm", "dtype"): "this wire type",
    ("comm", "grad_dtype"): "this wire type of gradients",
    ("comm", "feedback"): "error feedback on messages",
    ("comm", "stream"): "the stream of the computation",
    ("comm", "sync"): "synchronisation by anything but events",
    ("route", "groups"): "routing within groups of experts",
    ("phase", "decode"): "a plan for decode alone",
    ("option", "layout"): "a layout other than contiguous (keys: or zigzag)",
    ("option", "assign"): "assignment of requests",
    ("option", "exchange"): "a choice of exchange",
    ("option", "free"): "parameters that are never freed",
}


FREED = (("free", "after_forward"), ("free", "after_backward"))
WIRES = ("bf16", "fp16", "fp32", "fp64", "int8", "fp8", "fp8_e4m3", "fp8_e5m2")


def unsupported(plan: ResolvedPlan) -> list[tuple[str, Span]]:
    """What the plan uses that cannot be executed yet, as (text, where)."""
    found: dict[tuple[str, Span], None] = {}
    for place, name, span in _features(plan):
        text = UNSUPPORTED.get((place, name))
        if text is not None:
            found[text, span] = None
    return list(found)


def report_unsupported(plan: ResolvedPlan, report: Report) -> None:
    """Report each of them as P901."""
    for text, span in unsupported(plan):
        report.error(
            "P901", f"{text} is not supported yet", span,
            notes="the plan is right; this plancc cannot compile it",
        )  # fmt: skip


def _features(plan: ResolvedPlan) -> Iterator[tuple[str, str, Span]]:
    """Every feature of the table that the plan uses, with where."""
    if "mode" in plan.facts:
        yield "mode", str(plan.facts["mode"]), plan.fact_spans["mode"]
    if "phase" in plan.facts:
        yield "phase", str(plan.facts["phase"]), plan.fact_spans["phase"]
    for rule in plan.dims:
        yield "model", "dim", rule.span
    for mesh in plan.meshes.values():
        if mesh.is_pool:
            yield "statement", "pool", mesh.span
    for place in plan.places:
        for line in place.rules:
            yield from _rule_features(line)
    for comm in plan.comms:
        state = comm.kind == "tensors" and set(comm.tensors) <= {"grads", "params"}
        edge = comm.kind in ("edge", "both")
        if not state:
            yield "comm", comm.kind, comm.span
        for setting in comm.settings:
            if not ((state or edge) and _traffic_setting(comm, setting)):
                yield from _setting_features("comm", (setting,))
            elif edge and isinstance(setting.value, Call) and _feedback(setting.value):
                yield "comm", "feedback", setting.span
    for pipeline in plan.pipelines:
        yield from _setting_features("pipeline", pipeline.settings)


def _rule_features(rule: Job | Combine | Share | Setting) -> Iterator[tuple[str, str, Span]]:
    if isinstance(rule, Setting):
        yield from _setting_features("place", (rule,))
    elif isinstance(rule, Job):
        for dim, span in zip(rule.dims, rule.dim_spans, strict=True):
            yield "dim", dim, span
        for name, value in rule.options.items():
            runs = name == "layout" and _layout_runs(rule, str(value))
            runs = runs or (name == "assign" and _assign_runs(rule, str(value)))
            if not runs and (name, value) not in FREED:
                yield "option", name, rule.span
    else:
        yield "rule", "combine" if isinstance(rule, Combine) else "share", rule.span


def _traffic_setting(comm: Comm, setting: Setting) -> bool:
    """Whether a setting of an edge, or of the traffic of gradients or parameters, is executed."""
    value = setting.value.name if isinstance(setting.value, Call) else setting.value
    if setting.name == "op":
        return True  # held against what is there: P501
    if setting.name == "stream":
        return value == "dedicated"  # messages have communicators, and so streams, of their own
    if setting.name == "grad_dtype":
        return comm.kind != "tensors" and value in WIRES
    return setting.name == "dtype" and comm.tensors in ((), ("grads",)) and value in WIRES


def _feedback(wire: Call) -> bool:
    return bool(wire.options.get("error_feedback"))


def _layout_runs(rule: Job, layout: str) -> bool:
    """Whether positions can be laid out so: in one piece, or keys in a zigzag."""
    return layout == "contiguous" or (layout == "zigzag" and rule.dims == ("kv_seq",))


def _assign_runs(rule: Job, assign: str) -> bool:
    """Whether rows can be shared out so: whole sequences, by the measured pace of the ranks."""
    return assign == "least_loaded" and rule.dims == ("batch",)


def _setting_features(place: str, settings: Iterable[Setting]) -> Iterator[tuple[str, str, Span]]:
    plain = (("recompute", False), ("sync", "event"))
    for setting in settings:
        if setting.name == "route":
            if isinstance(setting.value, Call) and setting.value.options:
                yield "route", "groups", setting.span
        elif (setting.name, setting.value) not in plain:
            yield place, setting.name, setting.span
