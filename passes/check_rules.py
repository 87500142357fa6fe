"""Rules that found nothing to do are errors: a `combine` without partial results, a `share` of a cache that
lives elsewhere (P316).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from plancc.dsl.diagnostics import Report
from plancc.dsl.plan import Combine, Place, Share
from plancc.ir.mesh import mesh_of
from plancc.passes.base import Unit
from plancc.passes.match_targets import CACHE


@dataclass(frozen=True)
class CheckRules:
    """Report rules of this variant that have no effect."""

    name: ClassVar[str] = "check-rules"

    def run(self, unit: Unit, report: Report) -> Unit:
        """Compare the plan's `combine` and `share` rules with what the layouts use."""
        used = {id(unit.places[name].combine) for name, plan in unit.layouts.items() if plan.merges}
        caches = {
            mesh_of(unit.places[node.name].stage.mesh)
            for node in unit.graph.nodes
            if node.target == CACHE and node.name in unit.places
        }
        for place, rule in active_rules(unit):
            if isinstance(rule, Combine) and rule.by != "logsumexp":
                report.error(
                    "P316", f"attention is combined by logsumexp, not by {rule.by}", rule.span
                )
            elif (
                isinstance(rule, Combine) and id(rule) not in used and not alone(unit, place, rule)
            ):
                report.error(
                    "P316", "there is nothing to combine here", rule.span,
                    label="no attention of this target has its keys cut over an axis",
                    help=["split kv_seq over an axis, or remove the line"],
                )  # fmt: skip
            elif isinstance(rule, Share) and caches and rule.mesh not in caches:
                report.error(
                    "P316", f"`{rule.mesh}` has no cache to share", rule.span,
                    notes=[f"the cache lives on {', '.join(sorted(caches))}"],
                )  # fmt: skip
        return unit


def alone(unit: Unit, place: Place, rule: Combine) -> bool:
    """Whether the axes of a combine have one rank each in this variant (a pool that has yet to grow)."""
    chosen = unit.variant.index
    names = [
        n for (mesh, v), n in unit.world.names.items() if v == chosen and place.mesh in (mesh, None)
    ]
    sizes = [
        unit.world.grids[n].sizes[a]
        for n in names
        for a in rule.axes
        if a in unit.world.grids[n].sizes
    ]
    return bool(sizes) and set(sizes) == {1}


def active_rules(unit: Unit) -> Iterator[tuple[Place, Combine | Share]]:
    """The combine and share rules that hold in the unit's variant, with their places."""
    for place in unit.plan.places:
        if place.guard is None or unit.variant.guards.get(place.guard.text, True):
            for rule in place.rules:
                if isinstance(rule, (Combine, Share)):
                    yield place, rule
