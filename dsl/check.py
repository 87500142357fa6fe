"""Checks of the plan as a whole that need no model: P109, P309, P501, P506."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from plancc.dsl.plan import Combine, Comm, Expr, Job, Pipeline, Place, Setting, Share, Target
from plancc.dsl.scope import FileScope, World
from plancc.dsl.vocabulary import DIMS
from plancc.dsl.walk import Walk

_DECLARED = ("param", "let", "mesh", "pool", "template", "import")


def check_whole(walk: Walk, mode: str) -> None:
    """Run every check that needs all statements."""
    check_overridden(walk)
    for comm in walk.comms:
        _check_comm(comm, walk, mode)
    for pipeline in walk.pipelines:
        _check_pipeline(pipeline, walk)
    check_unused(walk.world, walk.world.scopes[0])


def check_unused(world: World, root: FileScope) -> None:
    """P109: what the plan itself declares and never uses."""
    for name, entry in root.entries.items():
        if entry.scope is root and entry.kind in _DECLARED and not entry.used:
            if entry.kind == "import" and not entry.value.entries:
                continue
            world.report.warning(
                "P109", f"{entry.kind} `{name}` is never used", entry.name.span,
                label="declared here", help="remove it",
            )  # fmt: skip


def check_overridden(walk: Walk) -> None:
    """P309: a line whose every effect on the same target is replaced by later lines."""
    lines: dict[_Key, list[tuple[int, Place]]] = {}
    for index, place in enumerate(walk.places):
        for target in place.targets:
            lines.setdefault(_key(target), []).append((index, place))
    for index, place in enumerate(walk.places):
        effects = _effects(place)
        if not effects:
            walk.world.report.warning(
                "P309", "this line says nothing", place.span, help="add `on MESH` or rules"
            )
            continue
        by: list[Place] = []
        gone = all(
            _replaced(place, effects, [p for i, p in lines[_key(target)] if i > index], by)
            for target in place.targets
        )
        if gone:
            walk.world.report.warning(
                "P309", "this rule is wholly overridden", place.span,
                labels=[(by[0].span, "by this")], help="remove it, or put it after the other",
            )  # fmt: skip


_Key = tuple[str, str, str | None]


def _key(target: Target) -> _Key:
    return target.kind, target.pattern, target.within


def _replaced(place: Place, effects: set[Any], later: Iterable[Place], by: list[Place]) -> bool:
    """Whether later lines, on the very same target, replace all effects of `place`."""
    left = set(effects)
    for other in later:
        if other.guard is not None and not _same_guard(other.guard, place.guard):
            continue
        if other.mesh is not None and place.mesh is not None and other.mesh != place.mesh:
            by.append(other)
            return True
        if left & _effects(other):
            by.append(other)
            left -= _effects(other)
        if not left:
            return True
    return False


def _same_guard(a: Expr, b: Expr | None) -> bool:
    return b is not None and a.text == b.text


def _effects(place: Place) -> set[Any]:
    """What a line decides for each of its targets."""
    effects: set[Any] = {("on",)} if place.mesh is not None else set()
    for rule in place.rules:
        if isinstance(rule, Job):
            for dim in rule.dims:
                kind = DIMS.get(dim, "flow")
                effects |= {(axis, dim if kind == "state" else kind) for axis in rule.axes}
        elif isinstance(rule, Setting):
            effects.add(("setting", rule.name))
        elif isinstance(rule, Combine):
            effects.add(("combine", rule.value))
        else:
            assert isinstance(rule, Share)
            effects |= {("share", value) for value in rule.values}
    return effects


def _check_comm(comm: Comm, walk: Walk, mode: str) -> None:
    """P501, as far as it can be known without a model."""
    homes = {place.mesh for place in walk.places if place.mesh is not None}
    report = walk.world.report
    if comm.kind in ("edge", "both"):
        for end in (comm.source, comm.target):
            if end not in homes:
                report.error(
                    "P501", f"no traffic from `{comm.source}` to `{comm.target}`", comm.span,
                    label=f"nothing is placed on `{end}`",
                )  # fmt: skip
                return
        if comm.source == comm.target:
            report.error(
                "P501", f"`{comm.source}` sends nothing to itself", comm.span,
                help=f"for traffic within it: comm over {comm.source}.AXIS",
            )  # fmt: skip
    elif comm.kind == "tensors" and "grads" in comm.tensors and mode == "infer":
        report.error("P501", "there are no gradients while inferring", comm.span)
    elif not _axis_has_jobs(comm, walk):
        report.error(
            "P501", f"no traffic over `{comm.mesh}.{comm.axis}`", comm.span,
            label="no rule splits or replicates over this axis",
        )  # fmt: skip


def _axis_has_jobs(comm: Comm, walk: Walk) -> bool:
    piped = any(p.mesh == comm.mesh and p.axis == comm.axis for p in walk.pipelines)
    return piped or any(
        comm.axis in rule.axes
        for place in walk.places
        if place.mesh in (None, comm.mesh)
        for rule in place.rules
        if isinstance(rule, Job | Combine)
    )


def _check_pipeline(pipeline: Pipeline, walk: Walk) -> None:
    """P506: stages come from `split layers over` the axis, or from coordinates on it."""
    report = walk.world.report
    if pipeline.axis is None:
        homes = {place.mesh for place in walk.places}
        for name in pipeline.chain:
            if name not in homes:
                report.warning(
                    "P506", f"stage `{name}` is empty", pipeline.span,
                    label=f"nothing is placed on `{name}`",
                )  # fmt: skip
        return
    staged = any(
        pipeline.axis in place.coords
        or any(
            isinstance(rule, Job) and "layers" in rule.dims and pipeline.axis in rule.axes
            for rule in place.rules
        )
        for place in walk.places
    )
    if not staged:
        report.warning(
            "P506", f"axis `{pipeline.axis}` carries no stages", pipeline.span,
            help=f"place layers.* {{ split layers over {pipeline.axis} }}",
        )  # fmt: skip
