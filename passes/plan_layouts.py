"""Decide, for every placed node, the layout it wants of each operand and the layouts it gives.

Each node computes its own share: labels whose leaves the plan cuts stay cut, contracted ones give partial
sums, and a partial operand passes through a linear row when nobody else uses it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from plancc.dsl.diagnostics import Report
from plancc.ir.layout import Layout, Part, cut_tree, cuts
from plancc.ir.shape import Binding, NamedGraph, Operand, leaves
from plancc.passes.base import NodeLayout, Placed, Unit

Active = Mapping[tuple[str, int], tuple[Part, ...]]
"""(row label, leaf id) -> the parts that cut it at this node."""


@dataclass(frozen=True)
class PlanLayouts:
    """Owner computes: the plan decides the layout of each node, edges redistribute."""

    name: ClassVar[str] = "plan-layouts"

    def run(self, unit: Unit, report: Report) -> Unit:
        """Fill `layouts`."""
        assert unit.named is not None
        users = Counter(ref for node in unit.graph.nodes for ref in node.refs())
        users.update(unit.graph.outputs.values())
        work = _Planner(unit.named, users)
        for node in unit.graph.nodes:
            placed = unit.places.get(node.name)
            if placed is not None:
                work.plan(unit.named.bindings[node.name], placed)
        return replace(unit, layouts=work.layouts)


class _Planner:
    def __init__(self, named: NamedGraph, users: Counter[str]) -> None:
        self.named = named
        self.users = users
        self.layouts: dict[str, NodeLayout] = {}
        self.produced: dict[str, tuple[Layout, object]] = {}

    def plan(self, binding: Binding, placed: Placed) -> None:
        """Choose the layouts of one node."""
        active = active_labels(binding, placed, self.named)
        kept, contracted = split_contracted(binding, active)
        partial = contracted + self.passed(binding, placed, active, contracted)
        operands, once = [], []
        for operand in binding.operands:
            layout = self.layout(operand, active)
            had = self.produced.get(operand.value)
            through = had is not None and partial and not contracted and had[0].partial == partial
            operands.append(Layout(layout.dims, partial if through else ()))
            mine = {part for dim in layout.dims for leaf in cuts(dim) for part in leaf.parts}
            owed = tuple(p for p in partial if p not in mine)
            once.append(owed if operand.addend and not through else ())
        outs = []
        for out in binding.outs:
            layout = Layout(self.layout(out, active).dims, partial)
            outs.append(layout)
            self.produced[out.value] = (layout, placed.stage)
        self.layouts[binding.node] = NodeLayout(
            placed.stage, tuple(operands), tuple(outs), tuple(once), placed.span
        )

    def layout(self, operand: Operand, active: Active) -> Layout:
        """The layout of one operand or output under the active labels."""
        dims = []
        for tree, labels in zip(self.named.shapes[operand.value], operand.labels, strict=True):
            dims.append(
                cut_tree(tree, lambda p, leaf, at=labels: active.get((at[p], leaf.id), ()))
            )
        return Layout(tuple(dims))

    def passed(
        self, binding: Binding, placed: Placed, active: Active, contracted: tuple[Part, ...]
    ) -> tuple[Part, ...]:
        """Pending sums that may flow through: linear row, every operand pending alike, one user each."""
        if not binding.linear or contracted or not binding.operands:
            return ()
        found = set()
        for operand in binding.operands:
            had = self.produced.get(operand.value)
            if had is None or had[1] != placed.stage or self.users[operand.value] != 1:
                return ()
            found.add(had[0].partial)
        pending = found.pop()
        if found or not pending:
            return ()
        cut = {part for parts in active.values() for part in parts}
        return pending if not cut & set(pending) else ()


def active_labels(binding: Binding, placed: Placed, named: NamedGraph) -> Active:
    """Which labels of the row are cut here, and by which parts.

    A leaf that occurs under two labels that may both be cut (rows and columns of a mask) is cut under the
    one the plan names, else the first; one tensor is never cut twice by one axis.
    """
    if not placed.cuts:
        return {}
    choices: dict[int, list[str]] = {}
    for operand in (*binding.outs, *binding.operands):
        for tree, labels in zip(named.shapes[operand.value], operand.labels, strict=True):
            for leaf, label in zip(leaves(tree), labels, strict=True):
                if leaf.id in placed.cuts and label not in binding.whole:
                    seen = choices.setdefault(leaf.id, [])
                    if label not in seen:
                        seen.append(label)
    out: dict[tuple[str, int], tuple[Part, ...]] = {}
    for leaf_id, labels in choices.items():
        parts, wanted = placed.cuts[leaf_id]
        out[(wanted if wanted in labels else labels[0], leaf_id)] = parts
    return out


def split_contracted(binding: Binding, active: Active) -> tuple[Active, tuple[Part, ...]]:
    """The active labels that outputs keep, and the parts left pending by the contracted ones."""
    kept_labels = {label for out in binding.outs for dim in out.labels for label in dim}
    kept = {key: parts for key, parts in active.items() if key[0] in kept_labels}
    gone: list[Part] = []
    for key, parts in active.items():
        if key[0] not in kept_labels:
            gone.extend(p for p in parts if p not in gone)
    order = sorted(gone, key=lambda p: (p.mesh, p.axis, -p.stride))
    return kept, tuple(order)
