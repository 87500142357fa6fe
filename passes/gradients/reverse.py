"""The backward instructions: events of the forward in reverse, each communication by its conjugate.

The conjugate of a move is the cheapest way between the gradients' layouts: all-gather and reduce-scatter,
all-reduce and nothing, a transfer and the transfer back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from plancc.dsl.errors import Bug
from plancc.ir.graph import Ref
from plancc.ir.layout import Layout, Stage, cuts, pending_parts, plan_moves
from plancc.ir.program import (
    Accumulate,
    Backward,
    Collective,
    Compute,
    Edge,
    Held,
    Instruction,
    Leaf,
    Origin,
    Restore,
    Transfer,
    operands,
)
from plancc.passes.gradients.activity import Entry
from plancc.passes.gradients.segments import (
    Crossing,
    Names,
    Region,
    Segment,
    gradient_of,
    rename,
)
from plancc.passes.gradients.states import State, States, own_parts, varying_parts, without

SEED = "plancc.seed.default"
BACK = {"": "", "scatter": "gather", "gather": "scatter"}


class Reverse:
    """Builds the backward of a list of events; `out` are its entries."""

    def __init__(
        self, helds: Mapping[str, Held], weights: Mapping[str, Held], states: States, names: Names,
        edges: int, again: Mapping[Region, Sequence[Entry]], released: Mapping[str, Sequence[Entry]],
    ) -> None:  # fmt: skip
        self.helds, self.weights, self.states, self.names = helds, weights, states, names
        self.edges = edges
        self.again, self.released = again, dict(released)
        self.copies: dict[str, str] = {}
        self.done: set[Region] = set()
        self.out: list[Entry] = []
        self.pending: dict[str, dict[State, list[Held]]] = {}

    def add(self, stage: Stage, step: Instruction) -> None:
        self.out.append(((stage,), step))

    def seed(self, loss: Held, origin: Origin) -> None:
        """The gradient of the loss with regard to itself: one, or the loss scale."""
        held = gradient_of(loss, self.names.fresh(f"g_{loss.name}"), (), loss.stage)
        self.add(loss.stage, Compute(SEED, (Ref(loss.name),), {}, (held,), origin))
        self.give(loss.name, (), held)

    def give(self, name: str, state: State, held: Held) -> None:
        """Note a contribution to the gradient of `name`."""
        self.pending.setdefault(name, {}).setdefault(state, []).append(held)

    def run(self, events: list[Segment | Crossing]) -> None:
        """Reverse all events, then settle the weights that are used in several ways."""
        for event in sorted(events, key=lambda e: e.last, reverse=True):
            if event.region is not None:
                self.repeat(event.region)
            if isinstance(event, Segment):
                self.segment(event)
            elif event.merges:
                self.keyed(event)
            elif isinstance(event.step, Transfer):
                self.transfer(event.step)
            elif isinstance(event.step, Collective):
                self.collective(event.step, event.last)
        for name in [n for n in self.pending if n in self.weights]:
            self.accumulate(name, (), self.total(name, (), Origin("", "", None)))

    def repeat(self, region: Region) -> None:
        """Compute a region again, recorded this time, under new names."""
        if region in self.done:
            return
        self.done.add(region)
        for stages, step in self.again[region]:
            copy = renamed(step, self.copies, self.names)
            self.out.append((stages, copy))

    def restore(self, name: str) -> None:
        """Gather a released weight again."""
        copies: dict[str, str] = {}
        for stages, step in self.released.pop(name):
            copy = renamed(step, copies, self.names)
            self.out.append((stages, copy))
        self.add(self.helds[name].stage, Restore(name, copies[name], self.helds[name].stage))

    def now(self, name: str) -> str:
        """The local name of a forward value: that of its copy where it was computed again."""
        return self.copies.get(name, name)

    def segment(self, segment: Segment) -> None:
        """One call that runs a recorded segment backwards."""
        origin = segment.first.origin
        outs = [name for name in segment.outs if self.pending.get(name)]
        if not outs:
            return
        given = [self.total(n, self.states.carried.get(n, ()), origin).name for n in outs]
        leaves = list(segment.leaves.items())
        for (name, _), _ in leaves:
            if name in self.released:
                self.restore(name)
        grads = tuple(
            gradient_of(self.helds[name], self.names.fresh(f"g_{leaf.name}"), state, segment.stage)
            for (name, state), leaf in leaves
        )
        step = Backward(
            tuple(map(self.now, outs)), tuple(given),
            tuple(self.now(leaf.name) for _, leaf in leaves), grads, segment.stage, origin,
            tuple(segment.weights),
        )  # fmt: skip
        self.add(segment.stage, step)
        for ((name, state), _), held in zip(leaves, grads, strict=True):
            self.give(name, state, held)

    def total(self, name: str, target: State, origin: Origin) -> Held:
        """The gradient of a value from all its uses, pending over `target` only."""
        layout = Layout(self.helds[name].layout.dims, target)
        found = []
        for state, helds in self.pending.pop(name).items():
            held = self.sum(name, helds, origin)
            found.append(held if state == target else self.moved(held, layout, origin))
        return self.sum(name, found, origin)

    def sum(self, name: str, helds: list[Held], origin: Origin) -> Held:
        """Add gradients that lie alike."""
        total = helds[0]
        for held in helds[1:]:
            out = replace(total, name=self.names.fresh(f"g_{name}"))
            args = (Ref(total.name), Ref(held.name))
            self.add(out.stage, Compute("aten.add.Tensor", args, {}, (out,), origin))
            total = out
        return total

    def moved(self, held: Held, layout: Layout, origin: Origin) -> Held:
        """A gradient in another layout, by the cheapest moves."""
        start = Layout(held.layout.dims, split_pending(held.layout, layout))
        base = held.name
        for move in plan_moves(start, layout):
            if len({part.mesh for part in move.parts}) > 1:
                raise Bug(f"a gradient of {held.source} is pending over two meshes")
            out = replace(held, name=self.names.fresh(f"{base}_sum"), layout=move.after)
            self.add(out.stage, Collective(move.kind, held.name, out, move, move.parts, origin))
            held = out
        return held

    def collective(self, step: Collective, at: int) -> None:
        """The conjugate of a move on one stage."""
        if step.out.name not in self.pending:
            return
        operand = self.helds[step.operand]
        lazy = self.states.given[(at, step.operand)]
        if step.kind == "join_rows":
            given = self.total(step.out.name, (), step.origin)
            held = gradient_of(operand, self.names.fresh(f"g_{operand.name}"), (), operand.stage)
            args = (Ref(given.name), Ref(self.now(step.operand)), Ref(self.now(step.out.name)))
            target = "plancc.joined_rows_backward.default"
            self.add(held.stage, Compute(target, args, {}, (held,), step.origin))
            self.give(step.operand, (), held)
            return
        if step.kind == "once":
            held = self.total(step.out.name, lazy, step.origin)
        else:
            held = self.reversed_move(step, operand, lazy)
        if step.operand in self.weights and len(self.states.of[step.operand]) == 1:
            self.accumulate(step.operand, lazy, held)
        else:
            self.give(step.operand, lazy, held)

    def reversed_move(self, step: Collective, operand: Held, lazy: State) -> Held:
        """The gradient of a move's result, laid out as its operand."""
        target = Layout(operand.layout.dims, lazy)
        found = []
        for helds in self.pending.pop(step.out.name).values():
            held = self.sum(step.out.name, helds, step.origin)
            moved = self.moved(held, target, step.origin)
            found.append(replace(moved, source=f"grad {operand.source}"))
        return self.sum(step.operand, found, step.origin)

    def transfer(self, step: Transfer) -> None:
        """Send a gradient back to where the value came from."""
        if step.out.name not in self.pending:
            return
        edge = step.edge
        given = self.total(step.out.name, (), step.origin)
        operand = self.helds[step.operand]
        before, after = Layout(step.out.layout.dims), Layout(operand.layout.dims)
        back = Edge(
            self.edges, edge.target, edge.source, f"grad {edge.value}", before, after, edge.dtype,
            1, BACK[edge.way], edge.routes[::-1], edge.parts,
        )  # fmt: skip
        self.edges += 1
        held = gradient_of(operand, self.names.fresh(f"g_{operand.name}"), (), edge.source)
        move = Transfer(given.name, held, back, step.origin)
        self.out.append(((edge.target, edge.source), move))
        self.give(step.operand, (), held)

    def keyed(self, event: Crossing) -> None:
        """The backward of attention over cut keys, from the merged result on every rank."""
        step, merge = event.step, event.merges[-1]
        assert isinstance(step, Compute)
        if merge.out.name not in self.pending:
            return
        given = self.total(merge.out.name, (), step.origin)
        wide, rows = step.outs
        whole = [
            self.moved(held, Layout(layout.dims), step.origin)
            for held, layout in (
                (given, wide.layout), (merge.out, wide.layout), (merge.out_rows, rows.layout)
            )
        ]  # fmt: skip
        names = list(dict.fromkeys(operands(step)))
        grads = tuple(
            gradient_of(
                self.helds[n], self.names.fresh(f"g_{n}"), self.keyed_state(step, n), wide.stage
            )
            for n in self.differentiated(step)
        )
        given_now = rename(step, {n: self.now(n) for n in names})
        args = (*(Ref(held.name) for held in whole), *given_now.args)
        target = "plancc.attention_over_keys_backward.default"
        call = Compute(target, args, given_now.kwargs, grads, step.origin, step.node)
        self.add(wide.stage, call)
        for name, held in zip(self.differentiated(step), grads, strict=True):
            if name not in names:
                raise Bug(f"{name} is no operand of {step.node}")
            if name in self.weights and len(self.states.of[name]) == 1:
                self.accumulate(name, held.layout.partial, held)
            else:
                self.give(name, held.layout.partial, held)

    def keyed_state(self, step: Compute, name: str) -> State:
        """How the gradient of an operand of attention over cut keys is pending."""
        involved = [self.helds[n].layout for n in operands(step)] + [h.layout for h in step.outs]
        return pending_parts(without(varying_parts(involved), own_parts(self.helds[name].layout)))

    def differentiated(self, step: Compute) -> tuple[str, ...]:
        """The operands that attention over cut keys gives gradients to: q, k, v and the sinks."""
        found = [arg.name for arg in step.args[:3]]
        if len(step.args) > 4 and isinstance(step.args[4], Ref):
            found.append(step.args[4].name)
        return tuple(found)

    def accumulate(self, name: str, state: State, held: Held) -> None:
        """Add to a weight's gradient."""
        weight = self.weights[name]
        self.add(
            weight.stage, Accumulate(name, held.name, weight.stage, Origin(weight.source, "", None))
        )


def renamed(step: Instruction, copies: dict[str, str], names: Names) -> Instruction:
    """A forward instruction under new names for what it makes; `copies` maps old names to new."""

    def fresh(held: Held) -> Held:
        copies[held.name] = names.fresh(f"{held.name}_again")
        return replace(held, name=copies[held.name])

    if isinstance(step, Compute):
        step = rename(step, copies)
        return replace(step, outs=tuple(fresh(held) for held in step.outs))
    if isinstance(step, (Collective, Leaf)):
        operand = copies.get(step.operand, step.operand)
        return replace(step, operand=operand, out=fresh(step.out))
    raise Bug(f"a {type(step).__name__} is not computed again")


def split_pending(before: Layout, after: Layout) -> State:
    """The pending parts of `before`, cut where the parts that `after` adds or keeps begin and end."""
    had = {part for dim in before.dims for leaf in cuts(dim) for part in leaf.parts}
    new = [p for dim in after.dims for leaf in cuts(dim) for p in leaf.parts if p not in had]
    added = pending_parts(new)
    covered = not without(added, before.partial)
    first = added if covered else ()
    rest = without(without(before.partial, first), after.partial)
    return (*first, *rest, *after.partial)
