"""Expert layers whose experts a table places: `spare` copies, and `balance = dynamic(...)`.

The part that cuts such experts gets the rule `placed+NUMBER+SPARE`: which rank has which of them is for
the runtime to say, and may change from step to step without another program.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from plancc.dsl.diagnostics import Report
from plancc.dsl.plan import Call, Job, Setting
from plancc.dsl.source import Span
from plancc.ir.graph import Node
from plancc.ir.layout import Part
from plancc.ir.mesh import World
from plancc.ir.program import Balanced
from plancc.ir.shape import Leaf, leaves
from plancc.passes.base import Placed, Unit
from plancc.passes.match_targets import Matcher

EXPERTS = "plancc.experts.default"
GATE_UP = ("args", 3)
EVERY, TOLERANCE, POLICY = 100, 0.1, "hierarchical"


@dataclass(frozen=True, slots=True)
class Asked:
    """What the plan says of one expert layer; a table places its experts if there is a `span`."""

    spare: int = 0
    dynamic: Mapping[str, Any] | None = None
    span: Span | None = None
    rules: tuple[Span, ...] = ()


def place_experts(
    unit: Unit, matcher: Matcher, routes: frozenset[str], report: Report
) -> Unit:  # fmt: skip
    """Fill `balance`, and give the parts of these experts their rule; `routes` are the routed nodes."""
    nodes = [node for node in unit.graph.nodes if node.target == EXPERTS]
    asked = {node.name: asked_of(matcher, node) for node in nodes}
    used = {span for one in asked.values() for span in one.rules}
    for span in settings(matcher):
        if span not in used:
            report.error(
                "P316", "there are no experts to balance here", span,
                help=["place it on the experts of a layer: layers.*.mlp.experts"],
            )  # fmt: skip
    places, balance = dict(unit.places), {}
    for number, node in enumerate(nodes):
        one = asked[node.name]
        if one.span is None:
            continue
        if node.name not in routes:
            report.error(
                "P901", "balancing experts without a route for tokens is not supported yet",
                one.span, help=["let tokens travel to their experts: route = top(k)"],
            )  # fmt: skip
            continue
        found = balanced(unit, node, one, number, report)
        if found is not None:
            places[node.name] = with_rule(unit.places[node.name], found.part)
            balance[node.name] = found
    return replace(unit, routes=routes, places=places, balance=balance)


def settings(matcher: Matcher) -> list[Span]:
    """Where the plan asks for balance."""
    return [
        rule.span
        for place in matcher.places
        for rule in place.rules
        if isinstance(rule, Setting) and rule.name == "balance"
    ]


def asked_of(matcher: Matcher, node: Node) -> Asked:
    """What the places of a node say, the last one of each kind."""
    spare, split, dynamic, setting, rules = 0, None, None, None, []
    for cover in matcher.covers(node):
        for rule in cover.place.rules:
            if isinstance(rule, Job) and "experts" in rule.dims:
                copies = rule.options.get("spare", 0) if rule.verb == "split" else 0
                spare, split = int(copies), rule.span
            elif isinstance(rule, Setting) and rule.name == "balance":
                rules.append(rule.span)
                dynamic, setting = dynamic_of(rule.value), rule.span
    span = setting if dynamic is not None else split if spare else None
    return Asked(spare, dynamic, span, tuple(rules))


def dynamic_of(value: Any) -> Mapping[str, Any] | None:
    """The options of `dynamic`; None for `static`."""
    if isinstance(value, Call):
        return value.options
    return {} if value == "dynamic" else None


def balanced(
    unit: Unit, node: Node, asked: Asked, number: int, report: Report
) -> Balanced | None:  # fmt: skip
    """The balanced layer; None where it cannot be (reported)."""
    leaf = experts_leaf(unit, node)
    parts = unit.places[node.name].cuts.get(leaf.id, ((), None))[0]
    experts = leaf.size
    if len(parts) != 1 or not isinstance(experts, int):
        report.error(
            "P901", f"balancing experts that {len(parts)} axes cut is not supported yet", asked.span,
            help=["split the experts over one axis of two or more ranks"],
        )  # fmt: skip
        return None
    part = parts[0]
    if any(mesh.is_pool for mesh in unit.plan.meshes.values()):
        report.error(
            "P901", "balancing experts beside a pool is not supported yet", asked.span,
            help=["declare the pool as a mesh"],
        )  # fmt: skip
        return None
    if (experts + asked.spare) % part.count or asked.spare > experts * (part.count - 1):
        most = experts * (part.count - 1)
        fits = asked.spare + -(experts + asked.spare) % part.count
        copies = f" and {asked.spare} copies" if asked.spare else ""
        report.error(
            "P318", f"{experts} experts{copies} do not divide over {part.count} ranks", asked.span,
            help=[f"write (spare = {min(fits, most)})"],
        )  # fmt: skip
        return None
    placed = replace(part, rule=f"placed+{number}+{asked.spare}")
    options = asked.dynamic or {}
    every = int(options.get("every", EVERY)) if asked.dynamic is not None else 0
    return Balanced(
        node.path, placed, experts, every, float(options.get("tolerance", TOLERANCE)),
        str(options.get("policy", POLICY)), group_count(unit, experts), node_count(unit.world, part),
    )  # fmt: skip


def experts_leaf(unit: Unit, node: Node) -> Leaf:
    """The leaf of the experts in their weights."""
    assert unit.named is not None
    binding = unit.named.bindings[node.name]
    weight = next(operand for operand in binding.operands if operand.arg == GATE_UP)
    return next(leaves(unit.named.shapes[weight.value][0]))


def with_rule(placed: Placed, part: Part) -> Placed:
    """A place whose cut by the ranks of `part` has that rule."""
    cuts = {
        leaf: (tuple(part if p.group == part.group else p for p in parts), label)
        for leaf, (parts, label) in placed.cuts.items()
    }
    return replace(placed, cuts=cuts)


def group_count(unit: Unit, experts: int) -> int:
    """The groups of experts that routing keeps together, as the model block says; else 1."""
    stated = unit.plan.facts.get("groups", 1)
    return stated if isinstance(stated, int) and experts % stated == 0 else 1


def node_count(world: World, part: Part) -> int:
    """The nodes over which the ranks along a part are spread evenly, one after the other; else 1."""
    if not world.per_node:
        return 1
    grid = world.grids[part.mesh]
    ranks = [
        rank for rank in grid.ranks
        if all(at == 0 for axis, at in grid.coords[rank].items() if axis != part.axis)
    ]  # fmt: skip
    nodes = [world.devices[rank] // world.per_node for rank in ranks]
    each = [nodes.count(node) for node in dict.fromkeys(nodes)]
    tidy = nodes == sorted(nodes) and len(set(each)) == 1 and len(ranks) == part.count
    return len(each) if tidy else 1
