"""Parameters: defaults, `--set` texts typed by the default, domains."""

from __future__ import annotations

import re
from typing import Any

from plancc.dsl import values as v
from plancc.dsl.diagnostics import did_you_mean
from plancc.dsl.expressions import describe, evaluate
from plancc.dsl.scope import POISON, Entry, Env, World
from plancc.dsl.source import Source, Span
from plancc.dsl.tree import Param

_SCALARS = ("int", "number", "bool", "text", "bytes", "bytes/s", "seconds", "ratio")


def resolve_param(entry: Entry, env: Env) -> Any:
    """The value of a parameter: from `--set` if it is there, else its default."""
    node: Param = entry.node
    default = evaluate(node.default, env)
    if default is POISON:
        return POISON
    kind = v.kind_of(default)
    if kind not in _SCALARS and not (kind == "list" and default):
        env.world.report.error(
            "P110", f"`{node.name.text}` must have a fixed value", node.default.span,
            label=f"this is {describe(default)}",
        )  # fmt: skip
        return POISON
    name = entry.scope.prefix + node.name.text
    text = env.world.sets.get(name)
    env.world.sets_used.add(name)
    if text is None:
        return _in_domain(node, default, None, env)
    span = set_span(name, text)
    try:
        value = read_text(text, default)
    except v.ExprError:
        env.world.report.error(
            "P105", f"`{name}` cannot be set to `{text}`", span,
            labels=[(node.default.span, f"the default is {describe(default)}")],
        )  # fmt: skip
        return POISON
    return _in_domain(node, value, span, env)


def set_span(name: str, text: str) -> Span:
    """Where a `--set` stands in messages."""
    source = Source("--set", f"{name}={text}".split("\n")[0])
    return Span(source, 1, 1, 1, len(source.text) + 1)


def report_unused_sets(world: World) -> None:
    """P101 for each `--set` that names no parameter."""
    known = [s.prefix + n for s in world.scopes for n, e in s.entries.items() if e.kind == "param"]
    for name, text in world.sets.items():
        if name in world.sets_used or name in known:
            continue
        near = did_you_mean(name, known)
        help = f"did you mean `{near}`?" if near else f"parameters: {', '.join(known) or 'none'}"
        world.report.error(
            "P101", f"cannot find parameter `{name}`", set_span(name, text), help=help
        )


def read_text(text: str, like: Any) -> Any:
    """Read a `--set` text as the kind of `like`; ExprError if it is none."""
    text = text.strip()
    kind = v.kind_of(like)
    if kind == "list":
        parts = [part for part in text.strip("[]").split(",") if part.strip()]
        return tuple(read_text(part, like[0]) for part in parts)
    if kind == "text":
        return text.strip('"')
    if kind == "bool" and text in ("true", "false"):
        return text == "true"
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text)
    if kind in ("int", "number") and re.fullmatch(r"[0-9][0-9_]*", digits):
        return sign * v.read_int(digits)
    if kind == "number" and re.fullmatch(r"[0-9][0-9_]*\.?[0-9]*([eE][+-]?[0-9]+)?", digits):
        return v.whole(sign * v.read_float(digits))
    if kind in ("bytes", "bytes/s", "seconds", "ratio") and sign == 1:
        value = v.read_quantity(digits)
        if value.unit == kind:
            return value
    raise v.ExprError(f"`{text}` is not {kind}", "P105")


def _in_domain(node: Param, value: Any, span: Span | None, env: Env) -> Any:
    if node.domain is None:
        return value
    domain = evaluate(node.domain, env)
    if domain is POISON:
        return POISON
    if not isinstance(domain, v.Range | tuple):
        env.world.report.error(
            "P110", "a domain is a range or a list", node.domain.span,
            help="write `in 1..8` or `in [1, 2, 4, 8]`",
        )  # fmt: skip
        return POISON
    if value in domain:
        return value
    shown = str(domain) if isinstance(domain, v.Range) else ", ".join(map(describe, domain))
    env.world.report.error(
        "P105", f"`{node.name.text} = {describe(value)}` is outside its domain",
        span or node.default.span, labels=[(node.domain.span, f"the domain is {shown}")],
    )  # fmt: skip
    return POISON
