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
from plancc.ir.layout import Layout, Part, Stage, cut_tree, cuts, pending_parts
from plancc.ir.mesh import World
from plancc.ir.shape import Binding, NamedGraph, Operand, leaves
from plancc.passes.base import MergeStep, NodeLayout, Placed, Unit
from plancc.passes.cut_keys import cut_positions, key_label, merge_steps
from plancc.passes.cut_together import cut_together
from plancc.passes.cut_twice import may_clash, report_stored, report_twice

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
        report_stored(unit.named, unit.param_rules, report)
        work = _Planner(unit.named, users, unit.world, unit.routes, report)
        for node in unit.graph.nodes:
            placed = unit.places.get(node.name)
            if placed is not None:
                work.plan(unit.named.bindings[node.name], placed)
        return replace(unit, layouts=work.layouts)


class _Planner:
    def __init__(
        self, named: NamedGraph, users: Counter[str], world: World, routes: frozenset[str],
        report: Report,
    ) -> None:  # fmt: skip
        self.routes = routes
        self.report = report
        self.named = named
        self.world = world
        self.users = users
        self.layouts: dict[str, NodeLayout] = {}
        self.produced: dict[str, tuple[Layout, Stage]] = {}

    def plan(self, binding: Binding, placed: Placed) -> None:
        """Choose the layouts of one node."""
        active = {
            **active_labels(binding, placed, self.named),
            **cut_together(binding, placed, self.named),
        }
        keys = cut_positions(binding, placed, self.named)
        if may_clash(active):
            values = (*binding.operands, *binding.outs)
            wanted = {one.value: self.layout(one, active) for one in values}
            report_twice(wanted, placed, self.named, self.report)
        contracted = contracted_parts(binding, active)
        joins: tuple[Part, ...] = ()
        if any(rule.startswith("joined:") for rule in binding.rules):
            joins, contracted = contracted, ()
        active = {**active, **keys}
        through = self.passed(binding, placed, active, contracted)
        partial = contracted or (self.partial_of(binding.operands[through[0]]) if through else ())
        operands, once = [], []
        for index, operand in enumerate(binding.operands):
            layout = self.layout(operand, active)
            operands.append(Layout(layout.dims, partial if index in through else ()))
            mine = {part for dim in layout.dims for leaf in cuts(dim) for part in leaf.parts}
            owed = tuple(p for p in partial if not any(p.meets(x) for x in mine))
            once.append(owed if operand.addend and index not in through else ())
        # routed results are summed where their tokens are
        left = () if binding.node in self.routes else partial
        outs = [Layout(self.layout(out, active).dims, left) for out in binding.outs]
        merges, pending = self.merges(binding, placed, outs[0], keys)
        if merges:
            outs[0] = merges[-1].after
        for out, layout in zip(binding.outs, outs, strict=True):
            self.produced[out.value] = (layout, placed.stage)
        self.layouts[binding.node] = NodeLayout(
            placed.stage, tuple(operands), tuple(outs), tuple(once), placed.span, merges, pending,
            joins,
        )  # fmt: skip

    def merges(
        self, binding: Binding, placed: Placed, out: Layout, keys: Active
    ) -> tuple[tuple[MergeStep, ...], Layout | None]:
        """How attention over cut keys is merged, and the layout of its partial result."""
        label = key_label(binding)
        parts = next((found for (mine, _), found in keys.items() if mine == label), ())
        if not parts or len(binding.outs) != 1:
            return (), None
        heads = self.named.shapes[binding.outs[0].value][1]
        return merge_steps(out, parts[0], placed.combine, self.world, heads), out

    def layout(self, operand: Operand, active: Active) -> Layout:
        """The layout of one operand or output under the active labels."""
        dims = []
        for tree, labels in zip(self.named.shapes[operand.value], operand.labels, strict=True):
            dims.append(cut_tree(tree, lambda p, leaf, at=labels: active.get((at[p], leaf.id), ())))
        return Layout(tuple(dims))

    def passed(
        self, binding: Binding, placed: Placed, active: Active, contracted: tuple[Part, ...]
    ) -> tuple[int, ...]:
        """The operands whose pending sum flows through: a linear row, and nobody else uses them."""
        mode = next((r[7:] for r in binding.rules if r.startswith("linear:")), "")
        if not mode or contracted or not binding.operands:
            return ()
        pending = [i for i, o in enumerate(binding.operands) if self.partial_of(o)]
        every = tuple(range(len(binding.operands)))
        allowed = {"0": pending == [0], "one": len(pending) == 1, "all": tuple(pending) == every}
        if not allowed[mode]:
            return ()
        sums = {self.partial_of(binding.operands[i]) for i in pending}
        cut = {part for parts in active.values() for part in parts}
        for index in pending:
            operand = binding.operands[index]
            elsewhere = self.produced[operand.value][1] != placed.stage
            if elsewhere or self.users[operand.value] != 1 or len(sums) > 1:
                return ()
        summed = next(iter(sums))
        return () if any(a.meets(b) for a in cut for b in summed) else tuple(pending)

    def partial_of(self, operand: Operand) -> tuple[Part, ...]:
        """The pending sum of an operand as it is produced."""
        had = self.produced.get(operand.value)
        return had[0].partial if had is not None else ()


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
        if wanted == "s" and is_new(leaf_id, named):
            continue  # keys that are queries too: cut_positions
        out[(wanted if wanted in labels else labels[0], leaf_id)] = parts
    return out


def is_new(leaf_id: int, named: NamedGraph) -> bool:
    """Whether a leaf is the new positions themselves (a graph without a cache), not cached ones."""
    return any(leaf.id == leaf_id for a in named.lookup("", "seq") for leaf in a.leaves)


def contracted_parts(binding: Binding, active: Active) -> tuple[Part, ...]:
    """The parts of active labels that no output keeps: a sum over them is left pending."""
    kept = {label for out in binding.outs for dim in out.labels for label in dim}
    return pending_parts(
        part
        for (label, _), parts in active.items()
        if label not in kept and label not in binding.dropped
        for part in parts
    )
