"""Keys of plans and programs: equal where nothing that a simulation looks at differs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from plancc.dsl.plan import ResolvedPlan
from plancc.dsl.source import Span
from plancc.ir.instruction import Origin
from plancc.ir.mesh import World
from plancc.ir.program import ProgramSet

WORDS = {
    "ResolvedPlan": ("source_name", "params", "fact_spans", "files"),
    "ProgramSet": ("variant", "guard"),
    "RankProgram": ("variant",),
}
"""Fields that only name where a value comes from."""


def plan_key(plan: ResolvedPlan) -> str:
    """The key of a resolved plan: of all it says, without its words, lines and parameters."""
    return Digest().key(plan)


def program_key(programs: ProgramSet, world: World, plan: ResolvedPlan) -> str:
    """The key of what a variant runs: its programs, the ranks of its grids, their devices, the budgets."""
    names = sorted(name for (_, index), name in world.names.items() if index == programs.variant)
    grids = [world.grids[name] for name in dict.fromkeys(names)]
    budgets = {name: mesh.budget for name, mesh in plan.meshes.items()}
    return Digest().key((programs, grids, world.devices, world.per_node, budgets))


class Digest:
    """Writes a value as text, each distinct part once."""

    def __init__(self) -> None:
        self.parts: dict[str, int] = {}
        self.seen: dict[int, tuple[Any, str]] = {}

    def key(self, value: Any) -> str:
        """The SHA-256 of a value."""
        last = self.text(value)
        return hashlib.sha256("\n".join((*self.parts, last)).encode()).hexdigest()

    def text(self, value: Any) -> str:
        """A value as text; a number in place of a part that was written before."""
        if value is None or isinstance(value, (str, int, float)):
            return repr(value)
        if isinstance(value, (Span, Origin)):
            return "-"
        known = self.seen.get(id(value))
        if known is None:
            text = self.written(value)
            known = value, f"#{self.parts.setdefault(text, len(self.parts))}"
            self.seen[id(value)] = known
        return known[1]

    def written(self, value: Any) -> str:
        """A value that has parts."""
        if is_dataclass(value):
            kind = type(value).__name__
            dropped = WORDS.get(kind, ())
            names = [f.name for f in fields(value) if f.name not in dropped and f.compare]
            return f"{kind}({','.join(self.text(getattr(value, name)) for name in names)})"
        if isinstance(value, Mapping):
            return "{" + ",".join(f"{self.text(k)}:{self.text(v)}" for k, v in value.items()) + "}"
        if isinstance(value, (tuple, list, range)):
            return "[" + ",".join(map(self.text, value)) + "]"
        if isinstance(value, (set, frozenset)):
            return "<" + ",".join(sorted(map(self.text, value))) + ">"
        return repr(value)
