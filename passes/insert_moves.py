"""Turn layouts into instructions: each node computes on its stage, and where the layout that is there
differs from the layout that is wanted, the cheapest move or a transfer between stages is inserted.

Every move is cached per (value, stage, layout); static nodes are recomputed on each stage that uses them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import ClassVar

import torch

from plancc.dsl.diagnostics import Report
from plancc.dsl.errors import Bug
from plancc.ir.graph import Node, Ref, Value
from plancc.ir.layout import CutLeaf, Layout, Move, Stage, cut_tree, plan_moves
from plancc.ir.leaf_names import PAIR
from plancc.ir.program import (
    Collective,
    Compute,
    Edge,
    Held,
    Instruction,
    Merge,
    Origin,
    Transfer,
    Weight,
)
from plancc.ir.shape import Binding
from plancc.passes.base import NodeLayout, Unit
from plancc.passes.cut_keys import rows_layout
from plancc.passes.localise_node import localise_keys, localise_node
from plancc.passes.route_experts import route_experts
from plancc.passes.store_params import store_params

COST: Mapping[str, int] = {
    "shard": 0, "all_gather": 2, "all_to_all": 2, "reduce_scatter": 2, "all_reduce": 4
}  # fmt: skip


@dataclass(frozen=True)
class InsertMoves:
    """Build the instruction list of all stages, in one global order."""

    name: ClassVar[str] = "insert-moves"

    def run(self, unit: Unit, report: Report) -> Unit:
        """Fill `instructions`, `weights` and `outputs`."""
        work = _Builder(unit)
        for node in unit.graph.nodes:
            if node.name in unit.layouts:
                work.compute(node)
        outputs = {name: work.output(value) for name, value in unit.graph.outputs.items()}
        return replace(
            unit,
            instructions=tuple(work.instructions),
            weights={stage: tuple(found) for stage, found in work.weights.items()},
            outputs=outputs,
        )


class _Builder:
    def __init__(self, unit: Unit) -> None:
        assert unit.named is not None
        self.unit = unit
        self.named = unit.named
        self.instructions: list[tuple[tuple[Stage, ...], Instruction]] = []
        self.held: dict[tuple[str, Stage], dict[Layout, Held]] = {}
        self.home: dict[str, Stage] = {}
        self.origins: dict[str, Origin] = {}
        self.values: dict[str, Value] = {v.name: v for v in unit.graph.values()}
        self.maker = {out.name: node for node in unit.graph.nodes for out in node.outs}
        self.names = {v.name for v in unit.graph.inputs}
        self.edges = 0
        self.weights: dict[Stage, list[Weight]] = {}
        self.stored = store_params(unit)
        self.inputs = {v.name for v in unit.graph.inputs}

    def fresh(self, wanted: str) -> str:
        """A local name not used before."""
        name, count = wanted, 1
        while name in self.names:
            count += 1
            name = f"{wanted}_{count}"
        self.names.add(name)
        return name

    def hold(self, value: str, stage: Stage, layout: Layout, name: str) -> Held:
        held = Held(self.fresh(name), value, layout, self.values[value].dtype, stage)
        self.held.setdefault((value, stage), {})[layout] = held
        return held

    def compute(self, node: Node) -> None:
        """Fetch the operands as the node wants them and emit its local call."""
        plan = self.unit.layouts[node.name]
        binding = self.named.bindings[node.name]
        origin = Origin(node.path, node.line, plan.span)
        home = plan.stage
        if node.name in self.unit.routes:
            home = route_experts(self, node, binding, plan, origin)
        else:
            self.emit(node, binding, plan, origin)
        for out in node.outs:
            self.home[out.name] = home
            self.origins[out.name] = origin

    def emit(self, node: Node, binding: Binding, plan: NodeLayout, origin: Origin) -> None:
        stage = plan.stage
        local = self.local_operands(binding, plan, origin)
        if plan.merges:
            self.attend(node, binding, plan, local, origin)
            return
        if plan.joins:
            self.join(node, binding, plan, local, origin)
            return
        outs = tuple(
            self.hold(out.value, stage, layout, out.value)
            for out, layout in zip(binding.outs, plan.outs, strict=True)
        )
        target, args, kwargs = localise_node(node, binding, self.named.shapes, plan, local)
        compute = Compute(target, args, kwargs, outs, origin, node.name)
        self.instructions.append(((stage,), compute))

    def local_operands(
        self, binding: Binding, plan: NodeLayout, origin: Origin,
        given: Mapping[tuple[str | int, ...], Ref] = MappingProxyType({}),
    ) -> dict[tuple[str | int, ...], Ref]:  # fmt: skip
        """Argument -> local name, as the node wants its operands; `given` are there already."""
        stage = plan.stage
        local: dict[tuple[str | int, ...], Ref] = dict(given)
        for operand, layout, once in zip(binding.operands, plan.operands, plan.once, strict=True):
            if operand.arg in local:
                continue
            held = self.fetch(operand.value, stage, layout, origin)
            if once:
                masked = Held(
                    self.fresh(f"{held.name}_once"), held.source,
                    Layout(held.layout.dims, once), held.dtype, stage,
                )  # fmt: skip
                move = Collective("once", held.name, masked, None, once, origin)
                self.instructions.append(((stage,), move))
                held = masked
            local[operand.arg] = Ref(held.name)
        return local

    def join(
        self, node: Node, binding: Binding, plan: NodeLayout,
        local: dict[tuple[str | int, ...], Ref], origin: Origin,
    ) -> None:  # fmt: skip
        """Cross-entropy over this rank's columns, then the rows of all ranks joined."""
        value, stage = node.outs[0], plan.stage
        pair = Layout((*plan.outs[0].dims, CutLeaf(PAIR, 2)))
        target, args, kwargs = localise_node(node, binding, self.named.shapes, plan, local)
        mine = Held(self.fresh(f"{value.name}_rows"), "", pair, value.dtype, stage)
        both = Held(self.fresh(f"{value.name}_joined"), "", pair, value.dtype, stage)
        out = self.hold(value.name, stage, plan.outs[0], value.name)
        steps: tuple[Instruction, ...] = (
            Compute(target, args, kwargs, (mine,), origin, node.name),
            Collective("join_rows", mine.name, both, None, plan.joins, origin),
            Compute("plancc.joined_nll.default", (Ref(both.name), args[1]), {}, (out,), origin),
        )
        self.instructions += [((stage,), step) for step in steps]

    def attend(
        self, node: Node, binding: Binding, plan: NodeLayout,
        local: dict[tuple[str | int, ...], Ref], origin: Origin,
    ) -> None:  # fmt: skip
        """Attention over this rank's keys, then the merges of the partial results."""
        assert plan.partial is not None
        value = node.outs[0]
        partial = replace(plan, outs=(plan.partial,))
        target, args, kwargs = localise_keys(node, binding, self.named.shapes, partial, local)
        held = self.rows_beside(value, plan.partial, plan.stage)
        self.instructions.append(
            ((plan.stage,), Compute(target, args, kwargs, held, origin, node.name))
        )
        for step in plan.merges:
            last = step is plan.merges[-1]
            after = self.rows_beside(value, step.after, plan.stage, final=last)
            merge = Merge(held[0].name, held[1].name, *after, step.part, step.spread, origin)
            self.instructions.append(((plan.stage,), merge))
            held = after

    def rows_beside(
        self, value: Value, layout: Layout, stage: Stage, *, final: bool = False
    ) -> tuple[Held, Held]:
        """An attention output and its logsumexp; only the merged one counts as the graph's value."""
        wide = value.dtype if value.dtype == torch.float64 else torch.float32
        rows = Held(self.fresh(f"{value.name}_rows"), "", rows_layout(layout), wide, stage)
        if final:
            return self.hold(value.name, stage, layout, value.name), rows
        name = self.fresh(f"{value.name}_keys")
        return Held(name, "", layout, value.dtype, stage), rows

    def fetch(self, value: str, stage: Stage, layout: Layout, origin: Origin) -> Held:
        """`value` on `stage` in `layout`: what is there already, or by the cheapest moves."""
        there = self.held.get((value, stage)) or self.bring(value, stage, layout, origin)
        if layout in there:
            return there[layout]
        options = []
        for have in there:
            if not set(layout.partial) - set(have.partial):
                moves = plan_moves(have, layout)
                options.append((sum(COST[m.kind] for m in moves), len(options), have, moves))
        if not options:
            raise Bug(f"{value} on {stage} cannot become {layout}")
        _, _, have, moves = min(options, key=lambda o: o[:2])
        return self.apply(value, stage, there[have], moves, origin)

    def apply(
        self, value: str, stage: Stage, held: Held, moves: tuple[Move, ...], origin: Origin
    ) -> Held:
        """Emit `moves` one after the other, each cached for later users.

        A sum belongs to the node that left it pending, other moves to the node that wants them.
        """
        for move in moves:
            owes = move.kind in ("all_reduce", "reduce_scatter")
            cause = self.origins.get(value, origin) if owes else origin
            known = self.held[(value, stage)].get(move.after)
            if known is None:
                suffix = {"all_reduce": "sum", "reduce_scatter": "part", "all_gather": "full"}
                known = self.hold(
                    value, stage, move.after, f"{value}_{suffix.get(move.kind, 'cut')}"
                )
                step = Collective(move.kind, held.name, known, move, move.parts, cause)
                self.instructions.append(((stage,), step))
            held = known
        return held

    def bring(self, value: str, stage: Stage, layout: Layout, origin: Origin) -> dict[Layout, Held]:
        """Make `value` present on a stage that does not hold it yet."""
        whole = self.whole(value)
        if value in self.unit.graph.params:
            self.load(value, stage)
        elif value in self.inputs:
            held = Held(value, value, whole, self.values[value].dtype, stage)
            self.held[(value, stage)] = {whole: held}
        elif self.maker[value].name in self.unit.static:
            self.recompute(self.maker[value], stage)
        else:
            self.transfer(value, self.home[value], stage, layout, origin)
        return self.held[(value, stage)]

    def whole(self, value: str) -> Layout:
        return Layout(tuple(cut_tree(t, lambda p, leaf: ()) for t in self.named.shapes[value]))

    def load(self, value: str, stage: Stage) -> None:
        param = self.unit.graph.params[value]
        layout = self.stored.get((value, stage)) or self.whole(value)
        held = self.hold(value, stage, layout, value)
        weight = Weight(held, param.fqns, param.kind, param.frozen)
        self.weights.setdefault(stage, []).append(weight)

    def recompute(self, node: Node, stage: Stage) -> None:
        """Compute a static node on `stage`, whole, and what it depends on."""
        binding = self.named.bindings[node.name]
        plan = NodeLayout(
            stage,
            tuple(self.whole(o.value) for o in binding.operands),
            tuple(self.whole(o.value) for o in binding.outs),
            ((),) * len(binding.operands),
            None,
        )
        self.emit(node, binding, plan, Origin(node.path, node.line, None))

    def transfer(
        self, value: str, home: Stage, stage: Stage, layout: Layout, origin: Origin
    ) -> None:
        """Send `value` from its home stage; a pending sum is reduced before it leaves."""
        produced = next(iter(self.held[(value, home)]))
        source = self.fetch(value, home, Layout(produced.dims), origin)
        target = Layout(layout.dims)
        if self.same_ranks(home, stage) and source.layout.whole and target.whole:
            alias = Held(source.name, value, target, source.dtype, stage)
            self.held.setdefault((value, stage), {})[target] = alias
            return
        dtype = self.values[value].dtype
        edge = Edge(self.next_edge(), home, stage, value, source.layout, target, dtype)
        held = self.hold(value, stage, target, f"{value}_in")
        self.instructions.append(((home, stage), Transfer(source.name, held, edge, origin)))

    def next_edge(self) -> int:
        """A number for a new transfer."""
        self.edges += 1
        return self.edges - 1

    def same_ranks(self, a: Stage, b: Stage) -> bool:
        """Whether two stages are the same ranks under other mesh names."""
        grids = self.unit.world.grids
        return grids[a.mesh].members(dict(a.coords)) == grids[b.mesh].members(dict(b.coords))

    def output(self, value: str) -> tuple[str, Stage]:
        """An output stays as it is produced; only a pending sum is reduced."""
        origin = Origin("", "", None)
        if value not in self.home:
            stage = next(iter(self.home.values()))
            return self.fetch(value, stage, self.whole(value), origin).name, stage
        stage = self.home[value]
        produced = next(iter(self.held[(value, stage)]))
        return self.fetch(value, stage, Layout(produced.dims), origin).name, stage
