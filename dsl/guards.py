"""Checks of guards and pools, and the variants that the guards make: P402, P404 to P407."""

from __future__ import annotations

from collections.abc import Iterator

from plancc.dsl.diagnostics import Report
from plancc.dsl.plan import Axis, Expr, Mesh, Place, Setting, Variant
from plancc.dsl.scope import World
from plancc.dsl.source import Span
from plancc.dsl.values import refs
from plancc.dsl.variants import (
    UNBOUNDED,
    Cell,
    Domain,
    GuardError,
    cells_of,
    check_guard,
    merge,
    range_text,
    truth,
    variants_of,
)
from plancc.dsl.vocabulary import PHASES
from plancc.dsl.walk import GuardUse, Walk

MANY = 16


def check_guards(walk: Walk, mode: str, phase: str | None) -> tuple[Variant, ...]:
    """Check all guards and pools; give the variants (none after an error)."""
    report = walk.world.report
    good = [_guard_ok(use, walk.world) for use in walk.guards]
    if not all(good):
        return ()
    guards = tuple({expr.text: expr for expr in _all_guards(walk)}.values())
    domain = _domain(guards, walk.world, mode, phase)
    try:
        cells = cells_of([use.own for use in walk.guards], domain)
    except GuardError as error:
        report.error("P405", str(error), walk.guards[0].span)
        return ()
    if not cells:
        ranges = ", ".join(f"{name} in {lo}..{hi}" for name, (lo, hi) in domain.ranges.items())
        block = walk.world.model[0] if walk.world.model is not None else None
        report.error(
            "P110", "the ranges of the inputs exclude each other", block.name.span if block else None,
            notes=f"no batch times seq_len gives such tokens: {ranges}",
        )  # fmt: skip
        return ()
    for use in walk.guards:
        _check_decides(use, cells, report)
    merged = merge(cells, guards)
    whole = [cell for cell, _ in merged]
    for mesh in walk.world.meshes.values():
        for axis in mesh.axes:
            if axis.steps:
                _check_pool(mesh, axis, whole, domain, walk)
    variants = variants_of(merged, guards, domain)
    if len(variants) > MANY:
        report.warning(
            "P405", f"the guards make {len(variants)} variants", walk.guards[-1].span,
            notes="each is compiled and verified on its own",
        )  # fmt: skip
    return variants


def _guard_ok(use: GuardUse, world: World) -> bool:
    """P407 and P101: a guard compares declared inputs with constants."""
    problem = check_guard(use.own)
    if problem is not None:
        world.report.error("P407", problem, use.span, help="for example: seq_len > 4096")
        return False
    for name in sorted(refs(use.own.tree) - {"phase"}):
        parts = ("batch", "seq_len") if name == "tokens" else (name,)
        missing = [part for part in parts if part not in world.inputs]
        if name not in world.inputs and missing:
            world.report.error(
                "P101", f"the range of `{missing[0]}` is not declared", use.span,
                help=f"declare it: model NAME {{ {missing[0]} in 1..8192 }}",
            )  # fmt: skip
            return False
    return True


def _domain(guards: tuple[Expr, ...], world: World, mode: str, phase: str | None) -> Domain:
    ranges = dict(world.inputs)
    uses_tokens = any("tokens" in refs(g.tree) or _multiplies(g.tree) for g in guards)
    if uses_tokens and "tokens" not in ranges:
        (b_lo, b_hi), (s_lo, s_hi) = ranges["batch"], ranges["seq_len"]
        ranges["tokens"] = (b_lo * s_lo, min(b_hi * s_hi, UNBOUNDED))
    return Domain(ranges, (phase,) if phase is not None else PHASES.get(mode, PHASES["infer"]))


def _multiplies(tree: tuple[object, ...]) -> bool:
    """Whether a guard multiplies batch by seq_len, which counts as tokens."""
    if tree[0] == "binary" and tree[1] == "*":
        sides = [refs(side) for side in tree[2:] if isinstance(side, tuple)]
        if all(sides):
            return True
    return any(_multiplies(kid) for kid in tree[1:] if isinstance(kid, tuple))


def _all_guards(walk: Walk) -> Iterator[Expr]:
    for place in walk.places:
        if place.guard is not None:
            yield place.guard
        yield from _setting_guards(place.rules)
    for comm in walk.comms:
        if comm.guard is not None:
            yield comm.guard
        yield from _setting_guards(comm.settings)
    for pipeline in walk.pipelines:
        yield from _setting_guards(pipeline.settings)
    for mesh in walk.world.meshes.values():
        yield from _setting_guards(mesh.settings)


def _setting_guards(settings: tuple[object, ...]) -> Iterator[Expr]:
    for setting in settings:
        if isinstance(setting, Setting) and setting.guard is not None:
            yield setting.guard


def _check_decides(use: GuardUse, cells: list[Cell], report: Report) -> None:
    """P402: where a guard stands, it must be able to hold and not to hold."""
    points = [cell.point() for cell in cells]
    reached = [p for p in points if use.under is None or truth(use.under.tree, p)]
    held = [truth(use.own.tree, point) for point in reached]
    if reached and (all(held) or not any(held)):
        always = "always" if held[0] else "never"
        report.error(
            "P402", f"this guard {always} holds", use.span,
            help="remove it" if held[0] else "widen the range of the input, or remove this",
        )  # fmt: skip


def pool_size(mesh: Mesh, axis: Axis, point: dict[str, object]) -> int:
    """The size of a pool axis at a point: the last guarded setting that holds, or the low end."""
    size = axis.steps[0]
    for setting in mesh.settings:
        holds = setting.guard is None or truth(setting.guard.tree, point)
        if setting.name == axis.name and holds:
            size = setting.value
    return size


def _check_pool(mesh: Mesh, axis: Axis, cells: list[Cell], domain: Domain, walk: Walk) -> None:
    _check_shadowed(mesh, axis, cells, walk)
    for place in walk.places:
        if place.mesh != mesh.name:
            continue
        empty = [
            cell for cell in cells
            if (place.guard is None or truth(place.guard.tree, cell.point()))
            and pool_size(mesh, axis, cell.point()) == 0
        ]  # fmt: skip
        if empty:
            _report_empty(mesh, axis, place, empty, domain, walk)


def _check_shadowed(mesh: Mesh, axis: Axis, cells: list[Cell], walk: Walk) -> None:
    """P404: each step must be the last that holds somewhere."""
    steps = [setting for setting in mesh.settings if setting.name == axis.name]
    for place, step in enumerate(steps):
        points = [cell.point() for cell in cells]
        holding = [p for p in points if step.guard is None or truth(step.guard.tree, p)]
        later = steps[place + 1 :]
        wins = [p for p in holding if not any(_holds(other, p) for other in later)]
        if holding and not wins:
            over = next(other for other in later if _holds(other, holding[0]))
            walk.world.report.error(
                "P404", f"`{axis.name} = {step.value}` never takes effect", step.span,
                labels=[(over.span, "a later step holds wherever this one does")],
                help="order the steps from short to long: the last that holds wins",
            )  # fmt: skip


def _holds(step: Setting, point: dict[str, object]) -> bool:
    return step.guard is None or truth(step.guard.tree, point)


def _report_empty(
    mesh: Mesh, axis: Axis, place: Place, empty: list[Cell], domain: Domain, walk: Walk
) -> None:
    """P406, with the guard of the use and the first step that brings devices."""
    where = empty[0]
    parts = [
        range_text(name, box, domain.ranges[name])
        for name, box in where.ranges
        if box != domain.ranges[name]
    ]
    labels = []
    use = _guard_span(place.guard, walk)
    if use is not None:
        labels.append((use, "used from here on"))
    first = next((s for s in mesh.settings if s.name == axis.name and s.value), None)
    if first is not None:
        labels.append((_guard_span(first.guard, walk) or first.span, "first devices arrive"))
    guard = f" when {place.guard.text}" if place.guard is not None else ""
    walk.world.report.error(
        "P406", f"pool `{mesh.name}` may be empty here", place.mesh_span,
        label=f"no devices for {', '.join(parts) or 'any input'}", labels=labels,
        help=f"start the pool at the same inputs: {axis.name} = {next(s for s in axis.steps if s)}"
             f"{guard}",
    )  # fmt: skip


def _guard_span(guard: Expr | None, walk: Walk) -> Span | None:
    """Where the innermost condition of a guard is written."""
    if guard is None:
        return None
    for use in walk.guards:
        if use.own.text == guard.text or guard.text.endswith(f" and {use.own.text}"):
            return use.span
    return None
