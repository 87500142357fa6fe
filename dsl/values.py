"""Values and expressions: quantities, folding operators, evaluating trees of run-time inputs.

An expression folds to a plain value, or to a `Dynamic` tree where it needs inputs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

LIMIT = 2**63 - 1
MAX_TREE = 200

_UNITS: dict[str, tuple[str, Fraction]] = {
    "ns": ("seconds", Fraction(1, 10**9)),
    "us": ("seconds", Fraction(1, 10**6)),
    "ms": ("seconds", Fraction(1, 10**3)),
    "s": ("seconds", Fraction(1)),
    "min": ("seconds", Fraction(60)),
    "h": ("seconds", Fraction(3600)),
    "%": ("ratio", Fraction(1, 100)),
    "B": ("bytes", Fraction(1)),
    **{f"{k}B": ("bytes", Fraction(1000**n)) for n, k in enumerate("KMGT", 1)},
    **{f"{k}iB": ("bytes", Fraction(1024**n)) for n, k in enumerate("KMGT", 1)},
}
_QUANTITY = re.compile(r"([0-9][0-9_]*(?:\.[0-9]+)?)([A-Za-z%]+)(/s)?")


class ExprError(Exception):
    """An expression that cannot be computed; `code` is P110 (kind) or P111 (value)."""

    def __init__(self, message: str, code: str = "P111") -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Quantity:
    """An exact amount with its unit: bytes, bytes/s, seconds or ratio."""

    amount: Fraction
    unit: str

    def fold(self) -> int | float:
        """Bytes as int, all else as float."""
        return round(self.amount) if self.unit == "bytes" else float(self.amount)


@dataclass(frozen=True, slots=True)
class Dynamic:
    """An expression tree that needs inputs (see Expr in plan.py), of `size` nodes."""

    tree: tuple[Any, ...]
    size: int = 1


@dataclass(frozen=True, slots=True)
class Range:
    """`lo..hi step n`, both ends included."""

    lo: int
    hi: int
    step: int

    def __contains__(self, value: object) -> bool:
        inside = isinstance(value, int) and self.lo <= value <= self.hi
        return inside and (value - self.lo) % self.step == 0  # type: ignore[operator]

    def __str__(self) -> str:
        return f"{self.lo}..{self.hi}" + (f" step {self.step}" if self.step != 1 else "")


def read_int(text: str) -> int:
    """An integer literal; ExprError beyond 64 bits."""
    digits = text.replace("_", "")
    if len(digits.lstrip("0")) > 19 or int(digits) > LIMIT:
        raise ExprError("this number is too large")
    return int(digits)


def read_float(text: str) -> Fraction:
    """A decimal literal, exactly; ExprError if it is out of range."""
    digits = text.replace("_", "")
    mantissa, _, exponent = digits.lower().partition("e")
    if len(mantissa) > 40 or len(exponent) > 4 or abs(int(exponent or 0)) > 60:
        raise ExprError("this number is too large")
    return Fraction(digits)


def read_quantity(text: str) -> Quantity:
    """`80GB`, `450GB/s`, `30s`, `10%`; ExprError if it is none of these or too large."""
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2] not in _UNITS:
        raise ExprError(f"`{text}` is not a quantity", "P110")
    unit, factor = _UNITS[match[2]]
    if match[3] and unit != "bytes":
        raise ExprError(f"`{text}` is not a quantity", "P110")
    amount = read_float(match[1]) * factor
    return _limited_quantity(Quantity(amount, unit + (match[3] or "")))


def kind_of(value: Any) -> str:
    """The unit of a folded value as Kind.units names it."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int"
    if isinstance(value, Fraction):
        return "number"
    if isinstance(value, Quantity):
        return value.unit
    if isinstance(value, str):
        return "text"
    if isinstance(value, Range):
        return "range"
    return "list" if isinstance(value, tuple) else type(value).__name__.lower()


_NAMED = {
    "bool": "a truth", "int": "a number", "number": "a number", "text": "text",
    "bytes": "a size", "bytes/s": "a rate", "seconds": "a time", "ratio": "a share",
    "range": "a range", "list": "a list", "dynamic": "an input",
}  # fmt: skip


def named(value: Any) -> str:
    """The kind of a value in a message."""
    return _NAMED.get(kind_of(value), "this")


def size_text(size: int) -> str:
    """Bytes as a plan would write them."""
    for power, unit in ((4, "TB"), (3, "GB"), (2, "MB"), (1, "KB")):
        if size >= 1000**power:
            return f"{size / 1000**power:g}{unit}"
    return f"{size}B"


def binary(op: str, a: Any, b: Any) -> Any:
    """Fold `a op b` for op in + - * / // %."""
    if isinstance(a, Dynamic) or isinstance(b, Dynamic):
        return _grown(("binary", op, tree_of(a), tree_of(b)), a, b)
    if isinstance(a, Quantity) or isinstance(b, Quantity):
        return _binary_quantity(op, a, b)
    if kind_of(a) not in ("int", "number") or kind_of(b) not in ("int", "number"):
        raise ExprError(f"cannot compute {named(a)} {op} {named(b)}", "P110")
    return _limited(_arithmetic(op, Fraction(a), Fraction(b)))


def negative(a: Any) -> Any:
    """Fold `-a`."""
    if isinstance(a, Dynamic):
        return _grown(("negative", a.tree), a)
    if kind_of(a) not in ("int", "number"):
        raise ExprError(f"cannot negate {named(a)}", "P110")
    return -a


def compare(op: str, a: Any, b: Any) -> Any:
    """Fold a comparison."""
    if isinstance(a, Dynamic) or isinstance(b, Dynamic):
        return _grown(("compare", op, tree_of(a), tree_of(b)), a, b)
    kinds = {"number" if k == "int" else k for k in (kind_of(a), kind_of(b))}
    if len(kinds) > 1:
        raise ExprError(f"cannot compare {named(a)} with {named(b)}", "P110")
    if isinstance(a, Quantity):
        a, b = a.amount, b.amount
    if op in ("==", "!="):
        return (a == b) is (op == "==")
    if kinds != {"number"} and kinds.isdisjoint(("bytes", "bytes/s", "seconds", "ratio")):
        raise ExprError(f"cannot order {named(a)}", "P110")
    return {"<": a < b, "<=": a <= b, ">": a > b, ">=": a >= b}[op]


def logic(op: str, args: tuple[Any, ...]) -> Any:
    """Fold `and`, `or`, `not`."""
    for arg in args:
        if not is_truth(arg):
            raise ExprError(f"`{op}` needs comparisons, not {named(arg)}", "P110")
    if op == "not":
        only = args[0]
        return _grown(("not", only.tree), only) if isinstance(only, Dynamic) else not only
    decides = op == "or"
    if any(arg is decides for arg in args):
        return decides
    open_args = [arg for arg in args if isinstance(arg, Dynamic)]
    if not open_args:
        return not decides
    a, b = open_args[0], open_args[-1]
    return a if a is b else _grown((op, a.tree, b.tree), a, b)


def call(name: str, args: tuple[Any, ...]) -> Any:
    """Fold ceil, floor, abs (one argument), min, max (one or more)."""
    if not args or (name in ("ceil", "floor", "abs") and len(args) != 1):
        raise ExprError(f"`{name}` takes {'a value' if not args else 'one value'}", "P110")
    if any(isinstance(arg, Dynamic) for arg in args):
        return _grown(("call", name, tuple(tree_of(arg) for arg in args)), *args)
    if any(kind_of(arg) not in ("int", "number") for arg in args):
        raise ExprError(f"`{name}` needs numbers", "P110")
    return _apply(name, args)


def tree_of(value: Any) -> tuple[Any, ...]:
    """The tree of a folded value, for use inside a Dynamic."""
    if isinstance(value, Dynamic):
        return value.tree
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, int):
        return ("int", value)
    if isinstance(value, Fraction):
        return ("binary", "/", ("int", value.numerator), ("int", value.denominator))
    if isinstance(value, str):
        return ("string", value)
    raise ExprError(f"{named(value)} cannot be mixed with inputs", "P110")


def evaluate_tree(tree: tuple[Any, ...], env: Mapping[str, Any]) -> Any:
    """The value of an expression tree; KeyError names an input that `env` lacks."""
    value = _evaluate(tree, env)
    return float(value) if isinstance(value, Fraction) else value


def _evaluate(tree: tuple[Any, ...], env: Mapping[str, Any]) -> Any:
    kind = tree[0]
    if kind in ("int", "bool", "string", "float"):
        return tree[1]
    if kind == "ref":
        return _input(tree[1], env)
    if kind == "negative":
        return -_evaluate(tree[1], env)
    if kind == "not":
        return not _evaluate(tree[1], env)
    if kind == "and":
        return bool(_evaluate(tree[1], env) and _evaluate(tree[2], env))
    if kind == "or":
        return bool(_evaluate(tree[1], env) or _evaluate(tree[2], env))
    if kind == "binary":
        a, b = _evaluate(tree[2], env), _evaluate(tree[3], env)
        return whole(_arithmetic(tree[1], Fraction(a), Fraction(b)))
    if kind == "compare":
        return compare(tree[1], _evaluate(tree[2], env), _evaluate(tree[3], env))
    return _apply(tree[1], tuple(_evaluate(arg, env) for arg in tree[2]))


def _input(name: str, env: Mapping[str, Any]) -> Any:
    if name == "tokens" and "tokens" not in env:
        return env["batch"] * env["seq_len"]
    return env[name]


def show(tree: tuple[Any, ...]) -> str:
    """The text of a tree, with parentheses only where they matter."""
    return _show(tree)[0]


_LEVEL = {"or": 1, "and": 2, "not": 3, "compare": 4, "+": 5, "-": 5}


def _show(tree: tuple[Any, ...]) -> tuple[str, int]:
    kind = tree[0]
    if kind in ("int", "float", "string", "ref"):
        return str(tree[1]), 9
    if kind == "bool":
        return str(tree[1]).lower(), 9
    if kind == "call":
        return f"{tree[1]}({', '.join(show(arg) for arg in tree[2])})", 9
    if kind in ("negative", "not"):
        level = 7 if kind == "negative" else 3
        return ("-" if kind == "negative" else "not ") + _inner(tree[1], level), level
    if kind in ("and", "or"):
        level = _LEVEL[kind]
        return f"{_inner(tree[1], level)} {kind} {_inner(tree[2], level + 1)}", level
    level = _LEVEL.get(tree[1], 6) if kind == "binary" else 4
    left = level if kind == "binary" else level + 1
    return f"{_inner(tree[2], left)} {tree[1]} {_inner(tree[3], level + 1)}", level


def _inner(tree: tuple[Any, ...], level: int) -> str:
    text, own = _show(tree)
    return text if own >= level else f"({text})"


def refs(tree: tuple[Any, ...]) -> set[str]:
    """The inputs and pool axes that a tree needs."""
    if tree[0] == "ref":
        return {tree[1]}
    if tree[0] == "call":
        return set().union(*(refs(arg) for arg in tree[2]))
    return set().union(*(refs(kid) for kid in tree[1:] if isinstance(kid, tuple)))


def _grown(tree: tuple[Any, ...], *parts: Any) -> Dynamic:
    size = 1 + sum(part.size if isinstance(part, Dynamic) else 1 for part in parts)
    if size > MAX_TREE:
        raise ExprError("this expression is too large")
    return Dynamic(tree, size)


def _arithmetic(op: str, a: Fraction, b: Fraction) -> Fraction:
    if op == "+":
        return a + b
    if op == "-":
        return a - b
    if op == "*":
        return a * b
    if b == 0:
        raise ExprError("division by zero")
    if op == "/":
        return a / b
    return Fraction(a // b) if op == "//" else a % b


def _binary_quantity(op: str, a: Any, b: Any) -> Any:
    if isinstance(a, Quantity) and isinstance(b, Quantity):
        if a.unit != b.unit or op not in ("+", "-", "/"):
            raise ExprError(f"cannot compute {named(a)} {op} {named(b)}", "P110")
        amount = _arithmetic(op, a.amount, b.amount)
        return _limited(amount) if op == "/" else _limited_quantity(Quantity(amount, a.unit))
    one, other = (a, b) if isinstance(a, Quantity) else (b, a)
    allowed = ("*", "/") if one is a else ("*",)
    if kind_of(other) not in ("int", "number") or op not in allowed:
        raise ExprError(f"cannot compute {named(a)} {op} {named(b)}", "P110")
    return _limited_quantity(Quantity(_arithmetic(op, one.amount, Fraction(other)), one.unit))


def _apply(name: str, args: tuple[Any, ...]) -> Any:
    numbers = [Fraction(arg) for arg in args]
    if name in ("ceil", "floor"):
        return math.ceil(numbers[0]) if name == "ceil" else math.floor(numbers[0])
    if name == "abs":
        return whole(abs(numbers[0]))
    return whole(max(numbers) if name == "max" else min(numbers))


def is_truth(value: Any) -> bool:
    """Whether a folded value is a truth, known or not."""
    if isinstance(value, Dynamic):
        return value.tree[0] in ("compare", "and", "or", "not", "bool")
    return isinstance(value, bool)


def whole(value: Fraction) -> int | Fraction:
    """The same number, as int if it is one."""
    return value.numerator if value.denominator == 1 else value


def _limited(value: Fraction) -> int | Fraction:
    if abs(value) > LIMIT or value.denominator > LIMIT:
        raise ExprError("this number is too large")
    return whole(value)


def _limited_quantity(value: Quantity) -> Quantity:
    if abs(value.amount) > LIMIT or value.amount.denominator > LIMIT:
        raise ExprError("this number is too large")
    return value
