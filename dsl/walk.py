"""Statements in order to places, comms and pipelines: `when` and `use` are opened up here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from plancc.dsl import tree as t
from plancc.dsl.diagnostics import did_you_mean
from plancc.dsl.expressions import guard, needs_inputs, report_unknown_axis, value_of
from plancc.dsl.plan import Comm, Expr, Mesh, Pipeline, Place, Setting
from plancc.dsl.scope import POISON, Env, Poison, World, lookup, report_unknown
from plancc.dsl.source import Span
from plancc.dsl.values import show

MAX_STATEMENTS = 10_000

_KEYWORDS: dict[type, str] = {
    t.Import: "import", t.Param: "param", t.Let: "let", t.Require: "require",
    t.ClusterBlock: "cluster", t.ModelBlock: "model", t.PlaceLine: "place",
    t.WhenBlock: "when", t.CommLine: "comm", t.PipelineLine: "pipeline",
    t.Template: "template", t.Use: "use",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GuardUse:
    """A guard as written: its own condition, and the one it stands under."""

    own: Expr
    under: Expr | None
    span: Span


@dataclass(slots=True)
class Walk:
    """What walking over the statements has found."""

    world: World
    places: list[Place] = field(default_factory=list)
    homes: list[Place] = field(default_factory=list)  # those with `on`
    comms: list[Comm] = field(default_factory=list)
    pipelines: list[Pipeline] = field(default_factory=list)
    guards: list[GuardUse] = field(default_factory=list)
    opened: int = 0
    crossing: set[tuple[str, str]] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Context:
    """Where a statement stands: names, enclosing guard and `when`s, templates being opened."""

    env: Env
    guard: Expr | None = None
    templates: tuple[Span, ...] = ()
    depth: int = 0


def keyword(statement: t.Statement) -> str:
    """The word a statement begins with."""
    if isinstance(statement, t.MeshBlock):
        return statement.keyword
    return _KEYWORDS[type(statement)]


def both(a: Expr | None, b: Expr | None) -> Expr | None:
    """The conjunction of two guards."""
    if a is None or b is None:
        return a or b
    tree = ("and", a.tree, b.tree)
    return Expr(show(tree), tree)


def note_guards(
    walk: Walk, attrs: Iterable[Any], settings: Iterable[Any], under: Expr | None
) -> None:
    """Remember the guards of settings, with where they stand."""
    spans = {
        attr.span: attr.guard.span
        for attr in attrs
        if isinstance(attr, t.Attr) and attr.guard is not None
    }
    for setting in settings:
        if isinstance(setting, Setting) and setting.guard is not None:
            walk.guards.append(GuardUse(setting.guard, under, spans[setting.span]))


def open_when(statement: t.WhenBlock, context: Context, walk: Walk) -> Context | None:
    """The context of the body of a `when`; None if the body is dead or the guard wrong."""
    holds = guard(statement.guard, context.env)
    if isinstance(holds, Poison):
        return None
    if isinstance(holds, bool):
        if needs_inputs(statement.guard):
            truth = "always" if holds else "never"
            walk.world.report.error("P402", f"this guard {truth} holds", statement.guard.span)
        return replace(context, depth=context.depth + 1) if holds else None
    walk.guards.append(GuardUse(holds, context.guard, statement.guard.span))
    return replace(context, guard=both(context.guard, holds), depth=context.depth + 1)


def open_use(statement: t.Use, context: Context, walk: Walk) -> tuple[t.Template, Context] | None:
    """The template that a `use` names and the context of its body; None after an error."""
    env, report = context.env, walk.world.report
    entry = lookup(env, statement.template.text)
    if entry is None or entry.kind != "template":
        report_unknown(
            env, "template", statement.template.text, statement.template.span, "template"
        )
        return None
    template: t.Template = entry.node
    if template.span in context.templates:
        report.error(
            "P108", f"template `{template.name.text}` uses itself", statement.span,
            labels=[(template.name.span, "declared here")],
        )  # fmt: skip
        return None
    if not _arguments_fit(statement, template, walk):
        return None
    names = {
        param.text: env.rename(arg.text)
        for param, arg in zip(template.params, statement.args, strict=True)
    }
    inner = Env(walk.world, entry.scope, names)
    return template, replace(context, env=inner, templates=(*context.templates, template.span))


def _arguments_fit(statement: t.Use, template: t.Template, walk: Walk) -> bool:
    wanted, given = len(template.params), len(statement.args)
    report = walk.world.report
    if wanted != given:
        shown = ", ".join(param.text for param in template.params)
        names = "1 name" if wanted == 1 else f"{wanted} names"
        report.error(
            "P107", f"template `{template.name.text}` takes {names} but is given {given}",
            statement.span, labels=[(template.name.span, f"takes ({shown})")],
        )  # fmt: skip
        return False
    for arg in statement.args:
        if arg.kind != "ref" or "." in arg.text:
            report.error(
                "P107", "a template takes names", arg.span, label="not a name",
                help="give the name of a mesh, axis, dim or parameter",
            )  # fmt: skip
            return False
    return True


def find_mesh(name: t.Word, env: Env, what: str = "mesh") -> Mesh | None:
    """The mesh or pool of this name; None after an error (P101)."""
    text, scope = env.rename(name.text)
    entry = scope.entries.get(text)
    if entry is None or entry.kind not in ("mesh", "pool"):
        kinds = ("mesh", "pool")
        report_unknown(Env(env.world, scope), what, text, name.span, *kinds)
        return None
    entry.used = True
    mesh = value_of(entry, env)
    return None if mesh is POISON else mesh


def find_axis(over: t.Term, env: Env) -> tuple[Mesh, str] | None:
    """The mesh and axis that `mesh.axis`, or an axis of only one mesh, means."""
    parts = over.text.split(".")
    report = env.world.report
    if len(parts) == 2:
        mesh = find_mesh(t.Word(parts[0], over.span), env)
        axis = env.rename(parts[1])[0]
        if mesh is None:
            return None
        if all(found.name != axis for found in mesh.axes):
            report_unknown_axis(env, mesh, axis, over.span)
            return None
        return mesh, axis
    axis = env.rename(over.text)[0]
    owners = [m for m in env.world.meshes.values() if any(a.name == axis for a in m.axes)]
    if len(owners) == 1:
        lookup(Env(env.world, env.world.scopes[0]), owners[0].name)
        return owners[0], axis
    if owners:
        listed = ", ".join(f"`{mesh.name}.{axis}`" for mesh in owners)
        report.error("P101", f"axis `{axis}` is ambiguous", over.span, help=f"one of {listed}")
    elif len(parts) < 2:
        names = [f"{m.name}.{a.name}" for m in env.world.meshes.values() for a in m.axes]
        near = did_you_mean(axis, [name.split(".")[1] for name in names])
        help = f"did you mean `{near}`?" if near else f"axes: {', '.join(names) or 'none'}"
        report.error("P301", f"no mesh has an axis `{axis}`", over.span, help=help)
    else:
        report.error("P101", f"`{over.text}` is not an axis", over.span, help="write mesh.axis")
    return None
