"""The parameters that a plan declares, with what each may be: for tools that choose values for `--set`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plancc.dsl import values as v
from plancc.dsl.diagnostics import Report
from plancc.dsl.expressions import evaluate, value_of
from plancc.dsl.imports import collect
from plancc.dsl.model import declare_facts
from plancc.dsl.parameters import read_text
from plancc.dsl.parser import read_source
from plancc.dsl.scope import POISON, Entry, Env, World
from plancc.dsl.source import Source

UNITS = ("TB", "GB", "MB", "KB", "B")


@dataclass(frozen=True, slots=True)
class Declared:
    """A parameter by the name that `--set` knows. Values are texts, as `--set` takes them.

    `kind` is its unit (int, number, bool, text, bytes, seconds ...). The domain is `bounds` (lo, hi, step)
    of whole numbers, or the `choices` of a list; neither if the plan gives none.
    """

    name: str
    kind: str
    default: str
    bounds: tuple[int, int, int] | None = None
    choices: tuple[str, ...] | None = None

    def __contains__(self, text: str) -> bool:
        """Whether the domain holds what a `--set` text says (anything, without a domain)."""
        if self.choices is not None:
            return text in self.choices
        if self.bounds is None:
            return True
        lo, hi, step = self.bounds
        return text.isdecimal() and int(text) in range(lo, hi + 1, step)


def declared_params(
    plan: str | Path | Source, sets: Mapping[str, str] | None = None
) -> tuple[tuple[Declared, ...], Report]:
    """All parameters of a plan and of its imports, in order; domains as they are under `sets`.

    A file that cannot be read or parsed, and parameters that are wrong, are in the report.
    """
    report = Report()
    world = World(report, dict(sets or {}))
    source = plan if isinstance(plan, Source) else read_source(Path(plan), str(plan), report)
    collected = collect(source, world) if source is not None else None
    if collected is None:
        return (), report
    declare_facts(world)
    found = []
    for scope in world.scopes:
        for entry in scope.entries.values():
            if entry.kind == "param" and entry.scope is scope:
                one = _declared(entry, Env(world, scope))
                found += [one] if one is not None else []
    return tuple(found), report


def _declared(entry: Entry, env: Env) -> Declared | None:
    """One parameter; None where it is wrong, which is reported."""
    value = value_of(entry, env)
    if value is POISON:
        return None
    name, kind = entry.scope.prefix + entry.name.text, v.kind_of(value)
    domain = evaluate(entry.node.domain, env) if entry.node.domain is not None else None
    if isinstance(domain, v.Range):
        return Declared(name, kind, set_text(value), (domain.lo, domain.hi, domain.step))
    if isinstance(domain, tuple):
        return Declared(name, kind, set_text(value), None, tuple(map(set_text, domain)))
    choices = ("true", "false") if kind == "bool" else None
    return Declared(name, kind, set_text(value), None, choices)


def set_text(value: Any) -> str:
    """A folded value as a `--set` text that reads back as itself, where any text does."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(set_text, value))
    if isinstance(value, v.Quantity):
        return _quantity_text(value)
    if v.kind_of(value) == "number":
        return str(float(value))
    return str(value)


def _quantity_text(value: v.Quantity) -> str:
    """The largest unit in which an amount is whole, else the first in which its decimals are exact."""
    rate = "/s" if value.unit == "bytes/s" else ""
    units = {
        "ratio": ("%",), "seconds": ("s", "ms", "us", "ns"),
    }.get(value.unit, UNITS)  # fmt: skip
    texts = []
    for unit in units:
        amount = value.amount / v.read_quantity(f"1{unit}").amount
        if amount.denominator == 1 and (amount or unit == units[-1]):
            return f"{amount.numerator}{unit}{rate}"
        decimals = f"{float(amount):f}".rstrip("0").rstrip(".")
        texts.append(f"{decimals}{unit}{rate}")
    return next((t for t in texts if read_text(t, value) == value), texts[-1])
