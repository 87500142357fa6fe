"""Which calls of the transport each instruction of a program makes on a rank, from layouts alone.

The sizes are those that `plancc.runtime.comm` works out when it runs; nothing is computed or sent here.
Instructions with equal layouts ask the same question, which is answered once for each rank and size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch

from plancc.codegen.sections import as_bucket
from plancc.dsl.errors import Bug
from plancc.ir.layout import Layout, LocalTree, Move, Part
from plancc.ir.mesh import Grid
from plancc.ir.program import (
    Bucket,
    Collective,
    Instruction,
    Launch,
    Merge,
    RankProgram,
    Recv,
    Send,
    Transfer,
    produced,
)
from plancc.passes.run_programs import LOCAL
from plancc.runtime.dims import Ranges, length
from plancc.runtime.matching import find_routes, kept_heads, pieces_of
from plancc.runtime.view import Members, Peers, View
from plancc.runtime.wires import message_bytes
from plancc.simulator import calls
from plancc.simulator.calls import Verbs
from plancc.simulator.place import Place
from plancc.simulator.routed import RoutedVerbs
from plancc.simulator.routing import EVEN, Routing

Ask = tuple[Callable[..., Verbs], tuple[Any, ...]]
"""A function of a place, and its further arguments, which tell questions apart."""


class ProgramVerbs:
    """The calls of one program's instructions on any of its ranks.

    `nodes` is the node of each rank, where the cluster has nodes: sums then go node by node.
    `base_routing` says how many rows of tokens go to which ranks of experts. Moves that run beside the
    computation are as on nccl, whose lanes have messages: on gloo they never go node by node.
    """

    def __init__(
        self, program: RankProgram, grids: Mapping[str, Grid], nodes: Sequence[int] = (),
        base_routing: Routing = EVEN,
    ) -> None:  # fmt: skip
        self.program, self.grids, self.nodes = program, grids, tuple(nodes)
        self.routed = RoutedVerbs(program, base_routing)
        made = [held for step in program.instructions for held in produced(step)]
        weights = [weight.held for weight in program.weights]
        self.helds = {held.name: held for held in (*program.inputs, *weights, *made)}
        known: dict[Ask, int] = {}
        self.places: list[int | None] = []
        for step in program.instructions:
            ask = self._ask(step)
            self.places.append(None if ask is None else known.setdefault(ask, len(known)))
        self.asks = tuple(known)

    def verbs(self, place: Place) -> list[Verbs]:
        """The calls of every instruction, in order; () for those that make none."""
        found = [work(place, *given) for work, given in self.asks]
        return [() if at is None else found[at] for at in self.places]

    def _ask(self, step: Instruction) -> Ask | None:
        """What to work out for an instruction; None for one that only computes."""
        if isinstance(step, Collective):
            return self._collective(step)
        if isinstance(step, Merge):
            return self._merge(step)
        if isinstance(step, Bucket):
            return self._bucket(step, self.nodes)
        if isinstance(step, Launch):
            return self._bucket(as_bucket(step.step), self.nodes)
        if isinstance(step, (Send, Recv, Transfer)):
            return self._edge(step)
        return None

    def _collective(self, step: Collective) -> Ask | None:
        item = step.out.dtype.itemsize
        if step.kind in LOCAL:
            return None
        if step.kind == "join_rows":
            return gathered, ((self.helds[step.operand].layout,), item, step.parts)
        assert step.move is not None
        if step.kind == "all_to_all":
            return swapped, (step.move, item, step.parts)
        return self._bucket(as_bucket(step), self.nodes)

    def _bucket(self, step: Bucket, nodes: Sequence[int]) -> Ask:
        item = step.out.dtype.itemsize
        before = tuple(move.before for move in step.moves)
        if step.kind == "all_reduce":
            return summed, (before, item, step.parts, step.wire, nodes)
        if step.kind == "all_gather":
            return gathered, (before, item, step.parts)
        if step.kind == "reduce_scatter":
            return scattered, (step.moves, item, step.parts, step.wire)
        raise Bug(f"no calls are known for a {step.kind}")

    def _merge(self, step: Merge) -> Ask:
        out, rows = self.helds[step.operand], self.helds[step.rows]
        wide = torch.promote_types(out.dtype, rows.dtype)
        return merged, (
            out.layout, wide.itemsize, step.out.layout.dims[1], step.part, step.spread
        )  # fmt: skip

    def _edge(self, step: Send | Recv | Transfer) -> Ask:
        edge = step.edge
        if edge.way:
            return self.routed.ask(step)
        ends = tuple((stage.mesh, stage.coords) for stage in (edge.source, edge.target))
        sizes = (edge.dtype.itemsize, edge.lossy)
        return transferred, (ends, edge.before.dims, edge.after.dims, *sizes)


def summed(
    place: Place, layouts: Sequence[Layout], item: int, parts: tuple[Part, ...], wire: str,
    nodes: Sequence[int],
) -> Verbs:  # fmt: skip
    """An all_reduce of one value or several at once."""
    group = place.view.peers(parts).group
    counts = [place.elements(layout) for layout in layouts]
    if wire and len(group) > 1:
        return calls.lossy_sum(place.rank, group, counts, wire)
    return calls.all_reduce(place.rank, group, sum(counts), item, nodes)


def gathered(place: Place, layouts: Sequence[Layout], item: int, parts: tuple[Part, ...]) -> Verbs:
    """An all_gather of one value or several at once, laid out as given."""
    group = place.view.peers(parts).group
    return calls.all_gather(group, item * sum(place.elements(layout) for layout in layouts))


def scattered(
    place: Place, moves: Sequence[Move], item: int, parts: tuple[Part, ...], wire: str
) -> Verbs:
    """A reduce_scatter of one value or several at once."""
    peers = place.view.peers(parts)
    rows = [
        shares(place, move.before, move.dim, move.after.dims[move.dim], peers) for move in moves
    ]
    counts = [list(column) for column in zip(*rows, strict=True)]
    if wire and len(peers.group) > 1:
        return calls.lossy_scatter(place.rank, peers.group, counts, wire)
    return calls.reduce_scatter(place.rank, peers.group, [item * sum(row) for row in counts])


def swapped(place: Place, move: Move, item: int, parts: tuple[Part, ...]) -> Verbs:
    """An all_to_all that makes one dim whole and cuts another."""
    peers = place.view.peers(parts)
    sends = shares(place, move.before, move.to_dim, move.after.dims[move.to_dim], peers)
    kept = list(place.shape(move.before))
    kept[move.to_dim] = int(place.dim(move.after.dims[move.to_dim]))
    takes = in_group(peers, pieces(place, move.before.dims[move.dim], peers))
    rest = prod(n for d, n in enumerate(kept) if d != move.dim)
    return calls.all_to_all(
        place.rank, peers.group, [item * n for n in sends], [item * rest * length(p) for p in takes]
    )


def shares(place: Place, layout: Layout, dim: int, tree: LocalTree, peers: Peers) -> list[int]:
    """The elements of a value in `layout` of which each rank of the group gets its part of `tree`."""
    rest = prod(n for d, n in enumerate(place.shape(layout)) if d != dim)
    return [rest * length(p) for p in in_group(peers, pieces(place, tree, peers))]


def pieces(place: Place, tree: LocalTree, peers: Peers) -> list[Ranges]:
    """The indices that each peer holds of a dim."""
    return pieces_of(place.view, place.dim(tree), peers)[1]


def in_group(peers: Peers, found: Sequence[Ranges]) -> list[Ranges]:
    """What belongs to the peers, in the order of their group."""
    by_rank = dict(zip(peers.ranks, found, strict=True))
    return [by_rank[rank] for rank in peers.group]


def merged(
    place: Place, layout: Layout, item: int, heads: LocalTree, part: Part, spread: tuple[Part, ...]
) -> Verbs:
    """The swap of partial attention [B, H, T, D], with a column for the logsumexp, by heads."""
    group = place.view.peers((part,)).group
    batch, local, queries, depth = place.shape(layout)
    kept = kept_heads(place.view, group, local, place.dim(heads), spread)
    row = batch * queries * (depth + 1) * item
    own = row * length(kept[place.rank])
    sends = [row * length(kept[rank]) for rank in group]
    return calls.all_to_all(place.rank, group, sends, [own] * len(group))


def transferred(
    place: Place, ends: tuple[tuple[str, Any], tuple[str, Any]], has: Sequence[LocalTree],
    wants: Sequence[LocalTree], item: int, wire: str,
) -> Verbs:  # fmt: skip
    """The messages of a value from one stage to another: every block from one of its holders."""
    source, target = (members(place.view, mesh, coords) for mesh, coords in ends)
    before, after = ([place.dim(tree) for tree in trees] for trees in (has, wants))
    routes = find_routes(place.view, source, before, target, after)
    sends, takes = (sized(blocks, item, wire) for blocks in (routes.sends, routes.recvs))
    return calls.exchange(place.rank, sends, takes)


def sized(
    blocks: Sequence[tuple[int, tuple[Ranges, ...]]], item: int, wire: str
) -> list[tuple[int, int]]:
    """(rank, bytes) of blocks that travel in their own type, or in a wire type."""
    shapes = [(rank, tuple(length(spots) for spots in block)) for rank, block in blocks]
    if wire:
        return [(rank, message_bytes(wire, shape)) for rank, shape in shapes]
    return [(rank, item * prod(shape)) for rank, shape in shapes]


def members(view: View, mesh: str, coords: Sequence[tuple[str, int]]) -> Members:
    """The ranks of a stage."""
    return view.stage(mesh, **dict(coords))
