"""A plan file to a ResolvedPlan: names, parameters, templates and imports opened up, checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from plancc.dsl import tree as t
from plancc.dsl.check import check_whole
from plancc.dsl.diagnostics import Report
from plancc.dsl.expressions import evaluate, value_of
from plancc.dsl.guards import check_guards
from plancc.dsl.hardware import check_budgets, resolve_cluster
from plancc.dsl.imports import collect
from plancc.dsl.model import declare_facts, resolve_dims, resolve_inputs
from plancc.dsl.parameters import report_unused_sets
from plancc.dsl.parser import read_source
from plancc.dsl.placing import mode, resolve_place
from plancc.dsl.plan import DimRule, ResolvedPlan, Variant
from plancc.dsl.scope import POISON, Env, FileScope, World
from plancc.dsl.settings import fold
from plancc.dsl.source import Source, Span
from plancc.dsl.traffic import resolve_comm, resolve_pipeline
from plancc.dsl.values import Dynamic, evaluate_tree, refs
from plancc.dsl.vocabulary import IN_TEMPLATE, IN_WHEN, PHASES
from plancc.dsl.walk import (
    MAX_STATEMENTS,
    Context,
    Walk,
    keyword,
    note_guards,
    open_use,
    open_when,
)


def load_plan(
    plan: str | Path | Source, sets: Mapping[str, str] | None = None
) -> tuple[ResolvedPlan | None, Report]:
    """Read, resolve and check a plan without a model; None in place of a plan with errors.

    `plan` is a path, or a Source with the text itself; `sets` are `--set` texts by name.
    """
    report = Report()
    world = World(report, dict(sets or {}))
    source = plan if isinstance(plan, Source) else read_source(Path(plan), str(plan), report)
    if source is None:
        return None, report
    try:
        resolved = _resolve(source, world)
    except RecursionError:
        report.error("P001", "this is nested too deeply", Span(source, 1, 1, 1, 2))
        resolved = None
    return (resolved if report.ok else None), report


def _resolve(source: Source, world: World) -> ResolvedPlan | None:
    collected = collect(source, world)
    if collected is None:
        return None
    plan, root = collected
    env = Env(world, root)
    declare_facts(world)
    for entry in [*root.entries.values(), *world.facts.values()]:
        if entry.kind in ("param", "let", "fact"):
            value_of(entry, env)
    resolve_inputs(world)
    dims = resolve_dims(world)
    world.cluster = resolve_cluster(world)
    walk = Walk(world)
    for entry in root.entries.values():
        if entry.kind not in ("mesh", "pool"):
            continue
        if value_of(entry, env) is POISON:
            world.broken = True
        else:
            world.meshes[entry.name.text] = entry.value
            note_guards(walk, entry.node.attrs, entry.value.settings, None)
    for scope in world.scopes:
        if not scope.is_root:
            _walk_requires(scope, world)
    _statements(plan.statements, Context(env), walk)
    report_unused_sets(world)
    check_budgets(world)
    return _finish(plan, walk, dims, env)


def _finish(
    plan: t.PlanFile, walk: Walk, dims: tuple[DimRule, ...], env: Env
) -> ResolvedPlan | None:
    """The checks that need everything, and the plan itself."""
    world = walk.world
    plan_mode = mode(env)
    phase = _phase(world, plan_mode)
    variants: tuple[Variant, ...] = ()
    if world.report.ok:
        variants = check_guards(walk, plan_mode, phase)
        check_whole(walk, plan_mode)
    if not world.report.ok:
        return None
    model = world.model[0].name.text if world.model is not None else None
    facts = {name: entry.value for name, entry in world.facts.items()}
    spans = {name: entry.node.span for name, entry in world.facts.items()}
    return ResolvedPlan(
        plan.name.text, int(plan.edition.text), plan.source.name, _params(world), world.cluster,
        model, facts, spans, dict(world.inputs), dict(world.meshes), tuple(walk.places),
        tuple(walk.comms), tuple(walk.pipelines), variants, dict(world.files), dims,
    )  # fmt: skip


def _phase(world: World, plan_mode: str) -> str | None:
    """The one phase that the model block restricts the plan to; P110 if it is not of the mode."""
    entry = world.facts.get("phase")
    if entry is None or not isinstance(entry.value, str):
        return None
    if entry.value not in PHASES.get(plan_mode, (entry.value,)):
        world.report.error(
            "P110", f"`phase = {entry.value}` is not a phase of `mode = {plan_mode}`",
            entry.node.span, help=f"its phases: {', '.join(PHASES[plan_mode])}",
        )  # fmt: skip
    return entry.value


def _params(world: World) -> dict[str, Any]:
    """The values of all parameters, by the name that `--set` knows."""
    return {
        scope.prefix + name: fold(entry.value)
        for scope in world.scopes
        for name, entry in scope.entries.items()
        if entry.kind == "param" and entry.scope is scope and entry.value is not POISON
    }


def _statements(statements: Iterable[t.Statement], context: Context, walk: Walk) -> None:
    """Walk over statements at the top, in a `when` or in a template."""
    for node in statements:
        walk.opened += 1
        if walk.opened > MAX_STATEMENTS:
            _report_too_many(node, walk)
            return
        if not _may_stand(node, context, walk):
            continue
        if isinstance(node, t.PlaceLine):
            place = resolve_place(node, context, walk)
            if place is not None:
                walk.places.append(place)
                walk.homes += [place] if place.mesh is not None else []
            walk.world.broken |= place is None
        elif isinstance(node, t.CommLine):
            comm = resolve_comm(node, context, walk)
            if comm is not None:
                walk.comms.append(comm)
        elif isinstance(node, t.PipelineLine):
            pipeline = resolve_pipeline(node, context, walk)
            if pipeline is not None:
                walk.pipelines.append(pipeline)
        elif isinstance(node, t.WhenBlock):
            inner = open_when(node, context, walk)
            if inner is not None:
                _statements(node.body, inner, walk)
        elif isinstance(node, t.Use):
            _use(node, context, walk)
        elif isinstance(node, t.Require):
            _require(node, context.env)


def _use(node: t.Use, context: Context, walk: Walk) -> None:
    opened = open_use(node, context, walk)
    if opened is not None:
        template, inner = opened
        with walk.world.report.within(f"used at {node.span}"):
            _statements(template.body, inner, walk)


def _may_stand(node: t.Statement, context: Context, walk: Walk) -> bool:
    """P401: only some statements may stand in a `when` or a template."""
    word = keyword(node)
    in_template = bool(context.templates)
    if context.depth == 0 and not in_template:
        return True
    allowed = IN_WHEN if context.depth else IN_TEMPLATE
    if word in allowed:
        return True
    where = "under `when`" if context.depth else "in a template"
    listed = ", ".join(f"`{name}`" for name in allowed)
    walk.world.report.error(
        "P401", f"`{word}` cannot stand {where}", node.span, help=f"only {listed} may"
    )
    return False


def _report_too_many(node: t.Statement, walk: Walk) -> None:
    if walk.opened == MAX_STATEMENTS + 1:
        walk.world.report.error(
            "P111", f"the templates open up to more than {MAX_STATEMENTS} statements", node.span
        )


def _walk_requires(scope: FileScope, world: World) -> None:
    for node in scope.statements:
        if isinstance(node, t.Require):
            _require(node, Env(world, scope))


def _require(node: t.Require, env: Env) -> None:
    """P106: a requirement must hold, for every input if it names one."""
    value = evaluate(node.condition, env)
    if value is POISON:
        return
    if isinstance(value, Dynamic):
        value = _settled(value, env)
    if value is True:
        return
    report = env.world.report
    if value is False:
        report.error(
            "P106", node.message or "this requirement does not hold", node.condition.span,
            label="this is false", notes=dict.fromkeys(_values_in(node.condition, env)),
        )  # fmt: skip
    else:
        report.error(
            "P110", "a requirement must be a comparison of known values", node.condition.span,
            help="inputs that vary belong in a `when`",
        )  # fmt: skip


def _settled(value: Dynamic, env: Env) -> Any:
    """The value where every input it needs is fixed by the plan."""
    fixed = {name: lo for name, (lo, hi) in env.world.inputs.items() if lo == hi}
    if refs(value.tree) <= {*fixed, "tokens"} and refs(value.tree):
        try:
            return evaluate_tree(value.tree, fixed)
        except (KeyError, ArithmeticError, ValueError):
            return value
    return value


def _values_in(term: t.Term, env: Env) -> list[str]:
    """`name = value` for the names in a requirement that failed."""
    if term.kind == "ref":
        return [f"{term.text} = {evaluate(term, env)}"]
    return [line for arg in term.args for line in _values_in(arg, env)]
