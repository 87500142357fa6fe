"""Find the expert layers whose tokens travel only to the devices of their experts (`route = top(k)`).

In: a placed unit. Out: `routes` by node, `balance` for those whose experts a table places. Reports P311
where the plan's k is not the model's, P316, P318, P901.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from plancc.dsl.diagnostics import Report
from plancc.dsl.plan import Call, Job, Setting
from plancc.dsl.vocabulary import DIMS
from plancc.ir.graph import Node, Ref
from plancc.passes.balance_experts import place_experts
from plancc.passes.base import Unit
from plancc.passes.match_targets import Matcher, routes

EXPERTS = "plancc.experts.default"
CUTS = ("experts", "ffn")


@dataclass(frozen=True)
class AssignRoutes:
    """Apply the plan's `route` settings top to bottom."""

    name: ClassVar[str] = "assign-routes"

    def run(self, unit: Unit, report: Report) -> Unit:
        """Fill `routes`."""
        matcher = Matcher(unit.plan, unit.graph, unit.variant)
        rules = {
            id(rule)
            for place in matcher.places
            for rule in place.rules
            if isinstance(rule, Setting) and rule.name == "route"
        }
        if not rules:
            return place_experts(unit, matcher, frozenset(), report)
        values = {value.name: value for value in unit.graph.values()}
        found: dict[str, Setting] = {}
        for node in unit.graph.nodes:
            if node.target != EXPERTS:
                continue
            for cover in matcher.covers(node):
                for rule in cover.place.rules:
                    if isinstance(rule, Setting) and rule.name == "route":
                        found[node.name] = rule
            if node.name in found:
                check_k(node, found[node.name], values, report)
        check_dims(matcher, report)
        unit = place_experts(unit, matcher, frozenset(found), report)
        unused = rules - {id(rule) for rule in found.values()}
        for place in matcher.places:
            for rule in place.rules:
                if id(rule) in unused and isinstance(rule, Setting):
                    report.error(
                        "P316", "there are no experts to route to here", rule.span,
                        help=["place it on the experts of a layer: layers.*.mlp.experts"],
                    )  # fmt: skip
        return replace(unit, routes=frozenset(found))


def check_dims(matcher: Matcher, report: Report) -> None:
    """P310: routed experts are cut by expert or inside; where tokens go, their choice says."""
    for place in matcher.places:
        for rule in place.rules if routes(place) else ():
            if not isinstance(rule, Job) or rule.verb != "split":
                continue
            for dim, span in zip(rule.dims, rule.dim_spans, strict=True):
                if DIMS.get(dim) == "flow" and dim not in CUTS:
                    report.error(
                        "P310", f"routed experts have no `{dim}` to split", span,
                        label="tokens go to the ranks of their experts",
                        help=[f"experts are split by {' or '.join(CUTS)}"],
                    )  # fmt: skip


def check_k(node: Node, rule: Setting, values: dict, report: Report) -> None:
    """P311: `top(k)` restates how many experts the model's router chooses."""
    index = node.args[1]
    assert isinstance(index, Ref) and isinstance(rule.value, Call)
    chosen = values[index.name].shape[-1]
    if isinstance(chosen, int) and rule.value.args and rule.value.args[0] != chosen:
        report.error(
            "P311", f"`{node.path}` sends a token to {chosen} experts, not {rule.value.args[0]}",
            rule.span, help=[f"write top({chosen})"],
        )  # fmt: skip
