"""Files: reading a plan and what it imports, and collecting the names they declare."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from plancc.dsl import tree as t
from plancc.dsl.expressions import evaluate
from plancc.dsl.hardware import mesh_entry
from plancc.dsl.parameters import resolve_param
from plancc.dsl.parser import parse_source, read_source
from plancc.dsl.scope import POISON, Entry, Env, FileScope, World
from plancc.dsl.source import Source, Span
from plancc.dsl.vocabulary import IMPORTABLE, IN_TEMPLATE
from plancc.dsl.walk import keyword

MAX_IMPORTS = 100


def collect(source: Source, world: World) -> tuple[t.PlanFile, FileScope] | None:
    """Parse the root file and all imports; None if the root is no plan."""
    world.files[source.name] = source.text
    plan = parse_source(source, world.report)
    if plan is None:
        return None
    return plan, _declare(plan, world, "", (os.path.abspath(source.name),))


def _declare(plan: t.PlanFile, world: World, prefix: str, path: tuple[str, ...]) -> FileScope:
    scope = FileScope(plan.source, prefix, len(path) == 1, statements=plan.statements)
    world.scopes.append(scope)
    for node in plan.statements:
        if not scope.is_root and keyword(node) not in IMPORTABLE:
            world.report.error(
                "P112", f"`{keyword(node)}` cannot stand in an imported file", node.span,
                help="put it in a template, and `use` that" if keyword(node) in IN_TEMPLATE
                else "declare it in the plan itself",
            )  # fmt: skip
        elif isinstance(node, t.Import):
            _import(node, scope, world, path)
        elif isinstance(node, t.ClusterBlock):
            world.cluster_block = _only(node, world.cluster_block, scope, "cluster", world)
        elif isinstance(node, t.ModelBlock):
            world.model = _only(node, world.model, scope, "model", world)
        elif isinstance(node, t.Param):
            _add(Entry("param", node.name, node, scope, resolve_param), scope, world)
        elif isinstance(node, t.Let):
            _add(Entry("let", node.name, node, scope, _let_value), scope, world)
        elif isinstance(node, t.MeshBlock):
            _add(Entry(node.keyword, node.name, node, scope, mesh_entry), scope, world)
        elif isinstance(node, t.Template):
            _add(Entry("template", node.name, node, scope, _no_value), scope, world)
            _check_params(node, world)
    return scope


def _let_value(entry: Entry, env: Env) -> Any:
    return evaluate(entry.node.value, env)


def _no_value(entry: Entry, env: Env) -> Any:
    return POISON


def _add(entry: Entry, scope: FileScope, world: World) -> None:
    """Declare a name; P102 if it is taken."""
    name = entry.name
    earlier = scope.entries.setdefault(name.text, entry)
    if earlier is not entry:
        world.report.error(
            "P102", f"`{name.text}` is declared twice", name.span, label="second declaration",
            labels=[(earlier.name.span, "first declaration")],
        )  # fmt: skip


def _only(node: Any, earlier: Any, scope: FileScope, what: str, world: World) -> Any:
    """A block that may stand once in all files."""
    if earlier is None:
        return node, scope
    world.report.error(
        "P102", f"there is more than one {what} block", node.name.span,
        label="second declaration", labels=[(earlier[0].name.span, "first declaration")],
    )  # fmt: skip
    return earlier


def _check_params(node: t.Template, world: World) -> None:
    seen: dict[str, Span] = {}
    for param in node.params:
        first = seen.setdefault(param.text, param.span)
        if first is not param.span:
            world.report.error(
                "P102", f"`{param.text}` is declared twice", param.span,
                labels=[(first, "first declaration")],
            )  # fmt: skip


def _import(node: t.Import, scope: FileScope, world: World, path: tuple[str, ...]) -> None:
    """Read an imported file; its names come in under the alias, or as they are."""
    name = os.path.normpath(os.path.join(os.path.dirname(scope.source.name), node.path.text))
    alias = node.alias
    inner_scope: Any = POISON
    full = os.path.abspath(name)
    if "\0" in name:
        world.report.error("P103", "a path cannot hold a NUL character", node.path.span)
    elif full in path:
        world.report.error("P103", f"`{name}` imports itself", node.path.span)
    elif len(world.scopes) > MAX_IMPORTS:
        world.report.error("P103", f"more than {MAX_IMPORTS} imports", node.path.span)
    else:
        source = read_source(Path(name), name, world.report, node.path.span)
        plan = None
        if source is not None:
            world.files[source.name] = source.text
            plan = parse_source(source, world.report)
        if plan is not None:
            prefix = f"{scope.prefix}{alias.text}." if alias is not None else scope.prefix
            inner_scope = _declare(plan, world, prefix, (*path, full))
    if alias is not None:
        entry = Entry("import", alias, node, scope, _no_value, value=inner_scope)
        _add(entry, scope, world)
    elif isinstance(inner_scope, FileScope):
        for entry in inner_scope.entries.values():
            _add(entry, scope, world)
