"""`place` lines to Place: targets, mesh, coordinates and rules, with the checks of one line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from plancc.dsl import tree as t
from plancc.dsl import values as v
from plancc.dsl.diagnostics import did_you_mean
from plancc.dsl.expressions import describe, evaluate, report_unknown_axis, value_of
from plancc.dsl.hardware import axis_values
from plancc.dsl.pattern import Pattern, PatternError, fill_slices
from plancc.dsl.plan import Combine, Job, Mesh, Place, Setting, Share, Target
from plancc.dsl.scope import POISON, Env, report_unknown
from plancc.dsl.settings import read_options, read_setting
from plancc.dsl.sizes import check_splits
from plancc.dsl.vocabulary import COMBINE_BY, DIMS, OPERATORS, OPTION_DIMS, SETTINGS, TENSOR_CLASSES
from plancc.dsl.walk import Context, Walk, find_mesh, note_guards

Rules = tuple[Job | Combine | Share | Setting, ...]


def resolve_place(node: t.PlaceLine, context: Context, walk: Walk) -> Place | None:
    """One place line; None if its targets or mesh are wrong (reported)."""
    env = context.env
    targets = tuple(resolve_target(ref, env) for ref in node.targets)
    mesh = find_mesh(node.mesh, env) if node.mesh is not None else None
    if node.mesh is not None and mesh is None:
        return None
    good = tuple(target for target in targets if target is not None)
    coords = _coords(node, mesh, env) if mesh is not None else {}
    meshes = [mesh] if mesh is not None else tenants(good, walk)
    rules = _rules(node, meshes, env.with_axes(_axis_env(meshes)))
    note_guards(walk, node.rules, rules, context.guard)
    _check_jobs(rules, coords, node, walk)
    if len(good) < len(targets):
        return None
    span = node.mesh.span if node.mesh is not None else None
    name = mesh.name if mesh is not None else None
    place = Place(good, name, coords, rules, context.guard, node.span, span)
    check_splits(place, meshes, env, walk)
    return place


def resolve_target(ref: t.TargetRef, env: Env) -> Target | None:
    """A target with its slices filled in; None after an error."""
    if ref.kind == "module":
        text = resolve_pattern(ref.pattern, env)
        return None if text is None else Target("module", text, None, ref.span)
    name = ref.pattern.text
    within = resolve_pattern(ref.within, env) if ref.within is not None else None
    if name not in OPERATORS and not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)+", name):
        report_unknown(env, "operator", name, ref.pattern.span, others=OPERATORS)
        return None
    if ref.within is not None and within is None:
        return None
    return Target("op", name, within, ref.span)


def resolve_pattern(word: t.Word, env: Env) -> str | None:
    """The pattern with names and negative numbers in slices replaced; None after an error."""
    text = fill_slices(word.text, lambda end: _slice_end(end, word, env))
    if text is None:
        return None
    try:
        Pattern.parse(text)
    except PatternError as error:
        env.world.report.error("P110", str(error), word.span)
        return None
    return text


def _slice_end(text: str, word: t.Word, env: Env) -> int | None:
    report = env.world.report
    negative, plain = text.startswith("-"), text.removeprefix("-")
    if plain.isdecimal():
        value: Any = int(plain[:10])
    else:
        value = evaluate(t.Term("ref", plain, (), word.span), env)
    if value is POISON:
        return None
    if v.kind_of(value) != "int" or value < 0:
        report.error("P110", f"`{plain}` is not a layer number", word.span)
        return None
    if not negative:
        return int(value)
    layers = env.world.facts.get("layers")
    count = value_of(layers, env) if layers is not None else None
    if count is None:
        report.error(
            "P110", "counting layers from the end needs their number", word.span,
            help="state it in the model block: layers = ...",
        )  # fmt: skip
    return max(count - value, 0) if isinstance(count, int) else None


def _coords(node: t.PlaceLine, mesh: Mesh, env: Env) -> dict[str, int]:
    coords: dict[str, int] = {}
    for attr in node.coords:
        name = env.rename(attr.name.text)[0]
        axis = next((found for found in mesh.axes if found.name == name), None)
        if axis is None:
            report_unknown_axis(env, mesh, name, attr.name.span)
            continue
        value = evaluate(attr.value, env)
        if value is POISON:
            continue
        if v.kind_of(value) != "int" or not -axis.size <= value < axis.size:
            env.world.report.error(
                "P313", f"`{name} = {describe(value)}` lies beyond the axis", attr.value.span,
                label=f"{name} runs from 0 to {axis.size - 1}",
                labels=[(axis.span, "declared here")],
            )  # fmt: skip
            continue
        coords[name] = value % axis.size
    return coords


def tenants(targets: Iterable[Target], walk: Walk) -> list[Mesh]:
    """The meshes that earlier lines may have put these targets on."""
    found: dict[str, Mesh] = {}
    for target in targets:
        for place in reversed(walk.homes):
            covers = [_relation(earlier, target) for earlier in place.targets]
            if set(covers) == {"none"}:
                continue
            if place.mesh in walk.world.meshes:
                found[place.mesh] = walk.world.meshes[place.mesh]
            if "whole" in covers and place.guard is None:
                break
    return list(found.values())


def _relation(earlier: Target, later: Target) -> str:
    """Whether `earlier` holds `later` as a whole, in part, or none of it."""
    if earlier.kind == "op" and (later.kind != "op" or later.pattern != earlier.pattern):
        return "part" if later.kind == "module" else "none"
    a = Pattern.parse(_modules(earlier))
    b = Pattern.parse(_modules(later))
    return "whole" if a.includes(b) else "part" if a.overlaps(b) else "none"


def _modules(target: Target) -> str:
    return target.pattern if target.kind == "module" else target.within or "**"


def _axis_env(meshes: list[Mesh]) -> dict[str, Any]:
    """What axis names mean in rules; open where the meshes differ."""
    axes: dict[str, Any] = {}
    for mesh in meshes:
        for name, value in axis_values(mesh).items():
            same = axes.setdefault(name, value) == value
            axes[name] = value if same else v.Dynamic(("ref", name))
    return axes


def _rules(node: t.PlaceLine, meshes: list[Mesh], env: Env) -> Rules:
    rules: list[Job | Combine | Share | Setting] = []
    for rule in node.rules:
        if isinstance(rule, t.Attr):
            setting = read_setting(rule, SETTINGS["place"], "place", env)
            if setting is not None:
                rules.append(setting)
        elif rule.verb == "combine":
            rules.append(_combine(rule, meshes, env))
        elif rule.verb == "share":
            rules += _share(rule, env)
        else:
            rules.append(_job(rule, meshes, env))
    return tuple(rules)


def _job(rule: t.Rule, meshes: list[Mesh], env: Env) -> Job:
    dims = [t.Word(env.rename(word.text)[0], word.span) for word in rule.names]
    known = [dim for dim in dims if _known_dim(dim, env)]
    axes = _axes(rule, meshes, env)
    options = read_options(rule.options, rule.verb, env)
    _check_options(rule, {dim.text for dim in known}, env)
    return Job(
        rule.verb, tuple(dim.text for dim in known), tuple(axis.text for axis in axes), options,
        rule.span, tuple(dim.span for dim in known), tuple(axis.span for axis in axes),
    )  # fmt: skip


def _check_options(rule: t.Rule, dims: set[str], env: Env) -> None:
    """P104: some options of `split` belong to some dims only."""
    for option in rule.options:
        allowed = OPTION_DIMS.get(option.name.text, ())
        if allowed and dims and not dims & set(allowed):
            env.world.report.error(
                "P104", f"`split {rule.names[0].text}` has no option `{option.name.text}`",
                option.name.span, help=f"it belongs to {', '.join(allowed)}",
            )  # fmt: skip


def _known_dim(dim: t.Word, env: Env) -> bool:
    """Check a dim: P302 if there is none of this name, P305 if it is state of a training."""
    report, known = env.world.report, (*DIMS, *env.world.dims)
    if dim.text not in known:
        near = did_you_mean(dim.text, known)
        report.error(
            "P302", f"cannot find dim `{dim.text}`", dim.span, label="not a dim", fix=near,
            help=f"did you mean `{near}`?" if near else f"dims: {', '.join(known)}",
        )  # fmt: skip
        return False
    if DIMS.get(dim.text) == "state" and mode(env) == "infer":
        report.error(
            "P305", f"`{dim.text}` can be placed only while training", dim.span,
            help="state `mode = train` in the model block, or remove the rule",
        )  # fmt: skip
    return True


def mode(env: Env) -> str:
    """`infer` or `train`, as the model block says (infer if it does not)."""
    entry = env.world.facts.get("mode")
    value = value_of(entry, env) if entry is not None else "infer"
    return value if isinstance(value, str) else "unknown"


def _axes(rule: t.Rule, meshes: list[Mesh], env: Env) -> list[t.Word]:
    """The axes of a rule that exist on some mesh its targets may be on."""
    candidates = meshes or list(env.world.meshes.values())
    axes = [t.Word(env.rename(word.text)[0], word.span) for word in rule.over]
    if env.world.broken:
        return axes
    good = []
    for axis in axes:
        if any(axis.text == found.name for mesh in candidates for found in mesh.axes):
            good.append(axis)
        elif len(candidates) == 1:
            report_unknown_axis(env, candidates[0], axis.text, axis.span)
        elif candidates:
            names = sorted({found.name for mesh in candidates for found in mesh.axes})
            near = did_you_mean(axis.text, names)
            env.world.report.error(
                "P301", f"no mesh of these targets has an axis `{axis.text}`", axis.span,
                help=f"did you mean `{near}`?" if near else f"axes: {', '.join(names)}", fix=near,
            )  # fmt: skip
    return good


def _combine(rule: t.Rule, meshes: list[Mesh], env: Env) -> Combine:
    name, by = rule.names[0], rule.by
    assert by is not None
    _known_tensor(name, env)
    if by.text not in COMBINE_BY:
        near = did_you_mean(by.text, COMBINE_BY)
        env.world.report.error(
            "P110", f"cannot combine by `{by.text}`", by.span, fix=near,
            help=f"did you mean `{near}`?" if near else f"known: {', '.join(COMBINE_BY)}",
        )  # fmt: skip
    axes = tuple(axis.text for axis in _axes(rule, meshes, env))
    options = read_options(rule.options, "combine", env)
    return Combine(name.text, by.text, axes, options, rule.span)


def _share(rule: t.Rule, env: Env) -> list[Share]:
    assert rule.by is not None
    for name in rule.names:
        _known_tensor(name, env)
    mesh = find_mesh(rule.by, env)
    options = read_options(rule.options, "share", env)
    names = tuple(name.text for name in rule.names)
    return [] if mesh is None else [Share(names, mesh.name, options, rule.span)]


def _known_tensor(name: t.Word, env: Env) -> None:
    if name.text not in TENSOR_CLASSES:
        report_unknown(env, "tensor", name.text, name.span, others=TENSOR_CLASSES)


def _check_jobs(rules: Rules, coords: Mapping[str, int], node: t.PlaceLine, walk: Walk) -> None:
    """P304: within one line, an axis has one job for each class (for each state dim)."""
    first: dict[tuple[str, str], tuple[str, Any]] = {}
    for job in rules:
        if not isinstance(job, Job):
            continue
        for dim, dim_span in zip(job.dims, job.dim_spans, strict=True):
            kind = DIMS.get(dim, "flow")
            group = dim if kind == "state" else kind
            for axis, span in zip(job.axes, job.axis_spans, strict=True):
                earlier = first.setdefault((axis, group), (dim, span))
                same = earlier == (dim, span)
                if axis in coords:
                    _report_fixed(axis, span, node, walk)
                elif not same and job.axes:
                    where = dim_span if earlier[1] == span else span
                    _report_twice(axis, where, earlier[1], walk)


def _report_twice(axis: str, span: Any, earlier: Any, walk: Walk) -> None:
    walk.world.report.error(
        "P304", f"axis `{axis}` has two jobs on the same tensor", span,
        label=f"second use of `{axis}`", labels=[(earlier, "first use")],
        help="one axis has one job for each tensor: split one dim, or split over another axis",
    )  # fmt: skip


def _report_fixed(axis: str, span: Any, node: t.PlaceLine, walk: Walk) -> None:
    fixed = [attr for attr in node.coords if attr.name.text == axis]
    walk.world.report.error(
        "P304", f"axis `{axis}` is fixed and split at once", span,
        labels=[(attr.span, "fixed here") for attr in fixed],
    )  # fmt: skip
