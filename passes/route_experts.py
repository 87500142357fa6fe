"""Expert layers with routed tokens: each token goes once to every rank that has one of its experts.

Tokens are spread over all ranks of the stage that has them; counts, rows and choices go to the experts'
stage, and the results come back and are summed where the tokens are. No capacity, nothing is dropped.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import torch

from plancc.dsl.errors import Bug
from plancc.ir.graph import BATCH, TOKENS, Node, Ref
from plancc.ir.layout import CutLeaf, Layout, LocalTree, Part, Stage, cuts, map_cuts
from plancc.ir.leaf_names import ROWS
from plancc.ir.program import Compute, Edge, Held, LocalDim, LocalStart, Origin, Transfer
from plancc.ir.shape import Binding
from plancc.passes.base import NodeLayout
from plancc.passes.gradients.states import without
from plancc.passes.localise_node import localise_node

if TYPE_CHECKING:
    from plancc.passes.insert_moves import _Builder

TOKEN_ARGS = (("args", 0), ("args", 1), ("args", 2))
"""Where x [t, h], the chosen experts [t, k] and their weights [t, k] stand."""
ROUTE = "plancc.route.default"


def route_experts(
    work: _Builder, node: Node, binding: Binding, plan: NodeLayout, origin: Origin
) -> Stage:
    """Emit the routed call; returns the stage on which the result lies, that of the tokens."""
    target = plan.stage
    by_arg = {operand.arg: operand for operand in binding.operands}
    x = by_arg[TOKEN_ARGS[0]]
    home = work.home.get(x.value, target)
    spread = spread_tokens(work, x.value, home)
    given = [
        work.fetch(by_arg[arg].value, home, spread_like(work, by_arg[arg].value, home, spread), origin)
        for arg in TOKEN_ARGS
    ]  # fmt: skip
    weights = [
        (o, layout) for o, layout in zip(binding.operands, plan.operands, strict=True)
        if o.arg not in TOKEN_ARGS
    ]  # fmt: skip
    parts = without([p for _, layout in weights for p in parts_of(layout)], ())
    experts = weights[0][1].dims[0]
    route = Held(work.fresh(f"{node.name}_route"), "", Layout(()), torch.int64, home)
    args = (Ref(given[1].name), Ref(given[2].name), LocalStart(experts))
    how = {"home": home, "target": target, "parts": parts}
    work.instructions.append(((home,), Compute(ROUTE, args, how, (route,), origin, node.name)))
    arrivals = Held(work.fresh(f"{node.name}_arrivals"), "", Layout(()), torch.int64, target)
    counts = Edge(
        work.next_edge(), home, target, f"{node.name} counts", Layout(()), Layout(()), torch.int64,
        way="counts", parts=parts,
    )  # fmt: skip
    work.instructions.append(((home, target), Transfer(route.name, arrivals, counts, origin)))
    leaf = rows_leaf(work, target, given[1].source)
    rows = []
    if is_placed(experts):
        given[1] = seats_of(work, route, given[1], origin)
    for held in given:
        layout = Layout((leaf, *held.layout.dims[1:]))
        out = Held(
            work.fresh(f"{held.source or held.name}_sent"), held.source, layout, held.dtype, target
        )
        edge = Edge(
            work.next_edge(), home, target, held.source, held.layout, layout, held.dtype,
            way="scatter", routes=(route.name, arrivals.name), parts=parts,
        )  # fmt: skip
        work.instructions.append(((home, target), Transfer(held.name, out, edge, origin)))
        rows.append(out)
    made = call_experts(work, node, binding, plan, origin, rows)
    value = node.outs[0]
    found = Layout((given[0].layout.dims[0], *made.layout.dims[1:]))
    back = Edge(
        work.next_edge(), target, home, value.name, made.layout, found, value.dtype,
        way="gather", routes=(arrivals.name, route.name), parts=parts,
    )  # fmt: skip
    out = work.hold(value.name, home, found, value.name)
    work.instructions.append(((target, home), Transfer(made.name, out, back, origin)))
    return home


def call_experts(
    work: _Builder, node: Node, binding: Binding, plan: NodeLayout, origin: Origin,
    rows: list[Held],
) -> Held:  # fmt: skip
    """Emit the call on the rows that arrived; returns their results."""
    known = {arg: Ref(held.name) for arg, held in zip(TOKEN_ARGS, rows, strict=True)}
    local = work.local_operands(binding, plan, origin, known)
    call, args, kwargs = localise_node(node, binding, work.named.shapes, plan, local)
    kwargs = {
        name: arg for name, arg in kwargs.items() if name != "total"
    }  # checked where they chose
    weight = next(
        layout for o, layout in zip(binding.operands, plan.operands, strict=True)
        if o.arg not in TOKEN_ARGS
    )  # fmt: skip
    if is_placed(weight.dims[0]):
        call, kwargs = "plancc.placed_experts.default", {
            **kwargs, "layer": LocalDim(weight.dims[0])
        }  # fmt: skip
    value, target = node.outs[0], plan.stage
    name = work.fresh(f"{value.name}_rows")
    layout = Layout((rows[0].layout.dims[0], *work.whole(value.name).dims[1:]))
    made = Held(name, "", layout, value.dtype, target)
    compute = Compute(call, args, kwargs, (made,), origin, node.name)
    work.instructions.append(((target,), compute))
    return made


def is_placed(experts: LocalTree) -> bool:
    """Whether a table says which rank has which experts: tokens are then sent to seats."""
    return any(part.rule.startswith("placed") for leaf in cuts(experts) for part in leaf.parts)


def seats_of(work: _Builder, route: Held, index: Held, origin: Origin) -> Held:
    """The seats of the choices `index`, which a route over a table chose."""
    name = work.fresh(f"{index.name}_seats")
    seats = Held(name, "", index.layout, index.dtype, index.stage)
    call = Compute("plancc.seats.default", (Ref(route.name),), {}, (seats,), origin)
    work.instructions.append(((index.stage,), call))
    return seats


def parts_of(layout: Layout) -> list[Part]:
    """The parts that cut a weight."""
    return [part for dim in layout.dims for leaf in cuts(dim) for part in leaf.parts]


def spread_tokens(work: _Builder, value: str, home: Stage) -> dict[int, tuple[Part, ...]]:
    """Leaf position in the tokens' dim -> parts: as the value is made, and cut over all other axes."""
    there = work.held.get((value, home))
    produced = next(iter(there)) if there else work.whole(value)
    grid = work.unit.world.grids[home.mesh]
    every = [
        Part(home.mesh, axis, 1, size, size)
        for axis, size in grid.axes
        if axis not in dict(home.coords) and size > 1
    ]
    taken = [p.group for dim in produced.dims for leaf in cuts(dim) for p in leaf.parts]
    inner = [p.group for dim in produced.dims[1:] for leaf in cuts(dim) for p in leaf.parts]
    here = [p for p in taken if p not in inner]
    free = without(every, here)
    leaves = list(cuts(produced.dims[0]))
    chosen = chosen_leaf(leaves, work.unit.graph.phase)
    found = {at: leaf.parts for at, leaf in enumerate(leaves)}
    found[chosen] = (*found[chosen], *sorted(free, key=lambda p: -p.stride))
    return found


def chosen_leaf(leaves: list[CutLeaf], phase: str) -> int:
    """The leaf of the tokens' dim that is cut further: sequences while decoding, else positions."""
    wanted = BATCH if phase == "decode" else TOKENS
    sizes = [leaf.size for leaf in leaves]
    for size in (wanted, TOKENS, BATCH):
        if size in sizes:
            return sizes.index(size)
    return max(
        range(len(sizes)), key=lambda at: sizes[at] if isinstance(sizes[at], int) else 1 << 62
    )


def spread_like(
    work: _Builder, value: str, home: Stage, spread: dict[int, tuple[Part, ...]]
) -> Layout:
    """A layout of [t, ...] with the tokens spread, all else whole."""
    whole = work.whole(value)
    leaves = list(cuts(whole.dims[0]))
    if len(leaves) != len(spread):
        raise Bug(f"the tokens of {value} are not those of the expert layer")
    return Layout((map_cuts(whole.dims[0], spread), *whole.dims[1:]))


def rows_leaf(work: _Builder, stage: Stage, index: str) -> CutLeaf:
    """The dim of the rows on the experts' ranks, different on each: at most one a choice and token."""
    grid = work.unit.world.grids[stage.mesh]
    parts = tuple(
        Part(stage.mesh, axis, 1, size, size)
        for axis, size in grid.axes
        if axis not in dict(stage.coords)
    )
    count = prod(part.count for part in parts)
    chosen = work.values[index].shape[-1]
    copies = min(count, chosen) if isinstance(chosen, int) else count
    return CutLeaf(ROWS, BATCH * TOKENS * copies, parts)


__all__ = ["ROUTE", "route_experts"]
