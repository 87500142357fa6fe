"""Settings and options: a value against the Kind that the vocabulary gives for its name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

from plancc.dsl import values as v
from plancc.dsl.diagnostics import did_you_mean
from plancc.dsl.expressions import describe, evaluate, guard, needs_inputs
from plancc.dsl.plan import Call, Expr, Setting
from plancc.dsl.scope import POISON, Env, lookup
from plancc.dsl.source import Span
from plancc.dsl.tree import Attr, Term, Word
from plancc.dsl.vocabulary import INPUTS, PHASE_WORDS, SETTINGS, SIZED_DIMS, Kind

_PLURAL = {"devices": "`devices`", "model": "a model block", "cluster": "a cluster"}


def read_settings(
    attrs: Iterable[Attr], owner: str, env: Env, extra: Mapping[str, Kind] | None = None
) -> tuple[Setting, ...]:
    """The settings of a statement of kind `owner`; wrong ones are reported and left out.

    `extra` adds names that only this statement knows (the ranged axes of a pool).
    """
    known = {**SETTINGS[owner], **(extra or {})}
    seen: dict[str, Attr] = {}
    result = []
    for attr in attrs:
        name = attr.name.text
        earlier = seen.setdefault(name, attr)
        if earlier is not attr and earlier.guard is None and attr.guard is None:
            env.world.report.error(
                "P102", f"`{name}` is set twice", attr.name.span,
                labels=[(earlier.name.span, "first set here")],
            )  # fmt: skip
            continue
        setting = read_setting(attr, known, owner, env)
        if setting is not None:
            result.append(setting)
    return tuple(result)


def read_setting(attr: Attr, known: Mapping[str, Kind], owner: str, env: Env) -> Setting | None:
    """One setting; None if it is wrong or its guard is known not to hold."""
    kind = find_kind(attr, known, owner, env)
    if kind is None:
        return None
    value = setting_value(attr.value, kind, attr.name.text, env)
    holds: Any = guard(attr.guard, env) if attr.guard is not None else None
    if value is POISON or holds is POISON:
        return None
    if isinstance(holds, bool):
        assert attr.guard is not None
        if needs_inputs(attr.guard):
            truth = "always" if holds else "never"
            env.world.report.error("P402", f"this guard {truth} holds", attr.guard.span)
        if not holds:
            return None
        holds = None
    return Setting(attr.name.text, value, holds, attr.span)


def read_options(attrs: Iterable[Attr], verb: str, env: Env) -> dict[str, Any]:
    """The options of a rule."""
    return {s.name: s.value for s in read_settings(attrs, verb, env)}


def read_facts(attrs: Iterable[Attr], owner: str, env: Env) -> dict[str, Any]:
    """Settings of a block that is fixed: a guard is an error (P401)."""
    fixed = []
    for attr in attrs:
        if attr.guard is not None:
            env.world.report.error(
                "P401", f"`{attr.name.text}` cannot depend on a guard", attr.guard.span,
                label="this block states facts",
            )  # fmt: skip
        else:
            fixed.append(attr)
    return {s.name: s.value for s in read_settings(fixed, owner, env)}


def find_kind(attr: Attr, known: Mapping[str, Kind], owner: str, env: Env) -> Kind | None:
    """What `attr` may hold; P104 if it does not exist here."""
    name = attr.name.text
    if name in known:
        return known[name]
    near = did_you_mean(name, known)
    here = _PLURAL.get(owner, f"`{owner}`")
    if near:
        help = f"did you mean `{near}`?"
    else:
        help = f"{here} knows: {', '.join(known)}" if known else f"{here} has no settings"
    env.world.report.error(
        "P104", f"{here} has no setting `{name}`", attr.name.span, help=help, fix=near
    )
    return None


def setting_value(term: Term, kind: Kind, name: str, env: Env) -> Any:
    """The folded value of one setting; POISON after an error."""
    if term.kind == "ref" and term.text in kind.words:
        return term.text
    if term.kind == "call" and term.text in kind.calls:
        return _call(term, kind, env)
    if kind.table and (term.kind == "list" or _is_list(term, env)):
        return _texts(term, kind, name, env)
    if kind.each:
        return _word_list(term, kind, name, env)
    if term.kind == "string" and term.text in kind.words:
        return term.text
    word = _param_word(term, kind, env)
    if word is not None:
        return word
    if term.kind in ("ref", "call", "string") and (not kind.units or _is_unknown(term, env)):
        return _wrong(term, kind, name, f"`{term.text}`", env)
    value = evaluate(term, env)
    if value is POISON:
        return POISON
    return _checked(term, value, kind, name, env)


def fold(value: Any) -> Any:
    """A folded value as ResolvedPlan holds it: int, float, str, bool, tuple or Expr."""
    if isinstance(value, v.Quantity):
        return value.fold()
    if isinstance(value, Fraction):
        return float(value)
    if isinstance(value, v.Dynamic):
        return Expr(v.show(value.tree), value.tree)
    if isinstance(value, v.Range):
        return ("range", value.lo, value.hi, value.step)
    return tuple(fold(item) for item in value) if isinstance(value, tuple) else value


def _checked(term: Term, value: Any, kind: Kind, name: str, env: Env) -> Any:
    if isinstance(value, v.Dynamic):
        if not kind.dynamic or v.is_truth(value):
            return _wrong(term, kind, name, describe(value), env)
        return fold(value)
    unit = v.kind_of(value)
    if unit not in kind.units:
        return _wrong(term, kind, name, describe(value), env)
    amount = value.amount if isinstance(value, v.Quantity) else value
    if unit not in ("bool", "text") and amount < (kind.minimum or 0):
        return _wrong(term, kind, name, describe(value), env)
    return fold(value)


def _param_word(term: Term, kind: Kind, env: Env) -> str | None:
    """A word given by a text parameter (`dtype = wire`)."""
    if term.kind != "ref" or lookup(env, term.text) is None:
        return None
    value = evaluate(term, env)
    return value if isinstance(value, str) and value in kind.words else None


def _is_list(term: Term, env: Env) -> bool:
    """Whether a term is the name of a list."""
    known = term.kind == "ref" and lookup(env, term.text) is not None
    return known and isinstance(evaluate(term, env), tuple)


def _is_unknown(term: Term, env: Env) -> bool:
    """Whether a plain name means nothing here, so that it can only be a wrong word."""
    known = {*env.axes, *env.world.facts, *INPUTS, "phase", *PHASE_WORDS, *SIZED_DIMS}
    plain = term.kind == "ref" and "." not in term.text
    return plain and term.text not in known and lookup(env, term.text) is None


def _call(term: Term, kind: Kind, env: Env) -> Any:
    """A setting written as a call: `async(depth = 2)`."""
    known, args = kind.calls[term.text], []
    named: dict[str, Any] = {}
    for arg in term.args:
        if arg.kind != "option":
            args.append(evaluate(arg, env))
            continue
        attr = Attr(_word(arg), arg.args[0], None, arg.span)
        setting = read_setting(attr, known, term.text, env)
        if setting is None:
            return POISON
        named[setting.name] = setting.value
    if any(arg is POISON for arg in args):
        return POISON
    if len(args) != kind.args or any(v.kind_of(arg) != "int" or arg < 1 for arg in args):
        wanted = "no plain argument" if kind.args == 0 else "one number from 1"
        env.world.report.error(
            "P110", f"`{term.text}` takes {wanted}", term.span, help=f"expected {kind.text}"
        )
        return POISON
    return Call(term.text, tuple(args), named)


def _word_list(term: Term, kind: Kind, name: str, env: Env) -> Any:
    items = term.args if term.kind == "list" else ()
    words = tuple(item.text for item in items if item.kind in ("ref", "string"))
    if not items or len(words) < len(items) or not set(words) <= set(kind.words):
        return _wrong(term, kind, name, "something else", env)
    return words


def _texts(term: Term, kind: Kind, name: str, env: Env) -> Any:
    """A list of texts, one at least."""
    value = evaluate(term, env)
    if value is POISON:
        return POISON
    if not value or not all(isinstance(item, str) for item in value):
        return _wrong(term, kind, name, "a list of other things", env)
    return value


def _wrong(term: Term, kind: Kind, name: str, found: str, env: Env) -> Any:
    """Report a value of the wrong kind under the kind's code."""
    near = None
    if term.kind in ("ref", "call", "string"):
        near = did_you_mean(term.text, (*kind.words, *kind.calls))
    helps = [f"did you mean `{near}`?"] if near else []
    if len(kind.words) > 3:
        helps.append("known: " + ", ".join(kind.words))
    env.world.report.error(
        kind.code, f"`{name}` cannot be {found}", term.span,
        label=f"expected {kind.text}", help=helps, fix=near,
    )  # fmt: skip
    return POISON


def _word(term: Term) -> Word:
    span = term.span
    width = span.column + len(term.text)
    return Word(term.text, Span(span.source, span.line, span.column, span.line, width))
