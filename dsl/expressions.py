"""Expressions to values: names looked up, operators folded, what needs inputs kept as Dynamic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from plancc.dsl import values as v
from plancc.dsl.diagnostics import did_you_mean
from plancc.dsl.plan import Expr
from plancc.dsl.scope import POISON, UNSET, Entry, Env, Poison, lookup, report_unknown
from plancc.dsl.tree import Term
from plancc.dsl.vocabulary import FUNCTIONS, INPUTS, PHASE_WORDS, SIZED_DIMS


def evaluate(term: Term, env: Env) -> Any:
    """Fold an expression; POISON after an error, which is reported at its span."""
    try:
        return _fold(term, env)
    except v.ExprError as error:
        env.world.report.error(error.code, str(error), term.span)
        return POISON


def whole_number(term: Term, env: Env, what: str, minimum: int = 0) -> int | Poison:
    """An integer known now, at least `minimum`; P110 otherwise."""
    value = evaluate(term, env)
    if isinstance(value, Poison):
        return value
    if v.kind_of(value) != "int" or value < minimum:
        env.world.report.error(
            "P110", f"{what} must be a whole number of at least {minimum}", term.span,
            label=f"this is {describe(value)}",
        )  # fmt: skip
        return POISON
    return int(value)


def guard(term: Term, env: Env) -> Expr | bool | Poison:
    """A guard: an Expr over inputs, or a truth that is known now."""
    value = evaluate(term, env)
    if isinstance(value, bool | Poison):
        return value
    if isinstance(value, v.Dynamic) and v.is_truth(value):
        return Expr(v.show(value.tree), value.tree)
    env.world.report.error(
        "P110", f"a guard must be a comparison, not {describe(value)}", term.span
    )
    return POISON


def needs_inputs(term: Term) -> bool:
    """Whether an input is named in the text of an expression."""
    if term.kind == "ref":
        return term.text in (*INPUTS, "phase")
    return any(needs_inputs(arg) for arg in term.args)


def describe(value: Any) -> str:
    """A value in a message."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, v.Quantity):
        amount = value.amount
        if value.unit.startswith("bytes"):
            return v.size_text(round(amount)) + value.unit.removeprefix("bytes")
        if value.unit == "ratio":
            return f"{float(amount * 100):g}%"
        number = str(amount) if amount.denominator == 1 else f"{float(amount):g}"
        return f"{number} {value.unit}"
    if isinstance(value, v.Dynamic):
        return f"`{v.show(value.tree)}`, which depends on inputs"
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return "a list"
    return str(float(value)) if v.kind_of(value) == "number" else str(value)


def _fold(term: Term, env: Env) -> Any:
    if term.kind in _LITERALS:
        return _LITERALS[term.kind](term.text)
    if term.kind == "ref":
        return _reference(term, env)
    args = tuple(evaluate(arg, env) for arg in term.args)
    if any(arg is POISON for arg in args):
        return POISON
    if term.kind == "binary":
        return v.binary(term.text, *args)
    if term.kind == "negative":
        return v.negative(args[0])
    if term.kind == "compare":
        return v.compare(term.text, *args)
    if term.kind in ("and", "or", "not"):
        return v.logic(term.kind, args)
    if term.kind == "list":
        return args
    if term.kind == "range":
        return _range(args)
    if term.kind == "call" and term.text in FUNCTIONS:
        return v.call(term.text, args)
    if term.kind == "call":
        report_unknown(env, "function", term.text, term.span, others=FUNCTIONS)
        return POISON
    raise v.ExprError("a named argument cannot stand here", "P110")


_LITERALS: dict[str, Callable[[str], Any]] = {
    "int": v.read_int,
    "float": lambda text: v.whole(v.read_float(text)),
    "quantity": v.read_quantity,
    "string": str,
    "true": lambda _: True,
    "false": lambda _: False,
}


def _range(args: tuple[Any, ...]) -> v.Range:
    if any(v.kind_of(arg) != "int" for arg in args):
        raise v.ExprError("the ends of a range must be whole numbers", "P110")
    lo, hi, *step = args
    if lo > hi:
        raise v.ExprError(f"the range {lo}..{hi} is empty", "P110")
    if step and step[0] < 1:
        raise v.ExprError("the step of a range must be at least 1", "P110")
    return v.Range(lo, hi, step[0] if step else 1)


def _reference(term: Term, env: Env) -> Any:
    """The value of a name: axis, parameter or let, mesh.axis, model fact, input, phase."""
    parts = term.text.split(".")
    head, _ = env.rename(parts[0])
    if len(parts) == 1 and head in env.axes:
        return env.axes[head]
    entry = lookup(env, term.text)
    if entry is not None and entry.kind in ("param", "let"):
        return value_of(entry, env)
    if len(parts) == 2 and (owner := lookup(env, parts[0])) and owner.kind in ("mesh", "pool"):
        return _axis_size(owner, env.rename(parts[1])[0], term, env)
    if entry is not None:
        raise v.ExprError(f"`{term.text}` is a {entry.kind}, not a value", "P110")
    if len(parts) == 1:
        if head in env.world.facts:
            return value_of(env.world.facts[head], env)
        if head in INPUTS or head == "phase":
            return v.Dynamic(("ref", head))
        if head in PHASE_WORDS:
            return head
        if head in SIZED_DIMS or head in ("top_k", "groups", "expert_ffn"):
            env.world.report.error(
                "P101", f"cannot find `{head}`", term.span, label="not stated in the plan",
                help=f"state it: model NAME {{ {head} = ... }}",
            )  # fmt: skip
            return POISON
    others = (*env.axes, *env.world.facts, *INPUTS, "phase", *PHASE_WORDS)
    report_unknown(env, "value", term.text, term.span, "param", "let", others=others)
    return POISON


def _axis_size(owner: Entry, axis: str, term: Term, env: Env) -> Any:
    mesh = value_of(owner, env)
    if mesh is POISON:
        return POISON
    for found in mesh.axes:
        if found.name == axis:
            return v.Dynamic(("ref", axis)) if found.steps else found.size
    report_unknown_axis(env, mesh, axis, term.span)
    return POISON


def report_unknown_axis(env: Env, mesh: Any, axis: str, span: Any) -> None:
    """Report P301: `mesh` has no axis of this name."""
    names = [found.name for found in mesh.axes]
    near = did_you_mean(axis, names)
    env.world.report.error(
        "P301", f"{'pool' if mesh.is_pool else 'mesh'} `{mesh.name}` has no axis `{axis}`", span,
        labels=[(mesh.span, "declared here")], fix=near,
        help=f"did you mean `{near}`?" if near else f"its axes: {', '.join(names)}",
    )  # fmt: skip


def value_of(entry: Entry, env: Env) -> Any:
    """The value of a param, let, fact or mesh entry, computed once; P111 if it is circular."""
    if entry.value is not UNSET:
        return entry.value
    if entry.busy:
        env.world.report.error("P111", f"`{entry.name.text}` is defined by itself", entry.name.span)
        entry.value = POISON
        return POISON
    entry.busy = True
    value = entry.compute(entry, Env(env.world, entry.scope))
    entry.busy = False
    if entry.value is UNSET:
        entry.value = value
    return entry.value
