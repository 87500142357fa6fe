"""What a program must communicate, by plain arithmetic on its layouts: bytes by verb."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from math import prod

from lowered import Lowered

from plancc.ir.graph import BATCH, PAST, TOKENS
from plancc.ir.layout import CutLeaf, Layout, LocalTree, Part, Prod
from plancc.ir.mesh import Grid
from plancc.ir.program import Collective, Merge, Recv, Send, Transfer
from plancc.passes.base import Unit
from plancc.verification.cases import choose_case

LOCAL = ("shard", "once")


def predicted_bytes(lowered: Lowered, unit: Unit) -> dict[str, int]:
    """The bytes that verification counts in the last step of a phase (in float64)."""
    import torch

    case = choose_case(unit, lowered.compiled.graph, torch.float64)
    batch = next(iter(case.inputs.values())).shape[0]
    assert unit.programs is not None
    count = max(1, min(unit.programs.microbatches, batch))
    found: dict[str, int] = {}
    for i in range(count):
        size = batch * (i + 1) // count - batch * i // count
        work = _Counting(unit, {BATCH: size, TOKENS: case.tokens, PAST: case.past})
        for verb, number in work.all():
            found[verb] = found.get(verb, 0) + number
    return found


class _Counting:
    def __init__(self, unit: Unit, env: Mapping) -> None:
        self.unit = unit
        self.env = env
        self.grids: Mapping[str, Grid] = unit.world.grids

    def all(self) -> Iterator[tuple[str, int]]:
        """(verb, bytes) of every call of every rank."""
        assert self.unit.programs is not None
        edges = {}
        for program in self.unit.programs.programs:
            for step in program.instructions:
                if isinstance(step, Collective) and step.kind not in LOCAL:
                    for rank in program.ranks:
                        yield from self.collective(step, rank)
                elif isinstance(step, Merge):
                    for rank in program.ranks:
                        yield from self.merge(step, rank)
                elif isinstance(step, (Send, Recv, Transfer)):
                    edges[step.edge.index] = step.edge
                    for _ in program.ranks:
                        yield "exchange", 0
        for edge in edges.values():
            yield "exchange", self.edge(edge) * bytes_of(edge.dtype)

    def collective(self, step: Collective, rank: int) -> Iterator[tuple[str, int]]:
        """Input of a reduction or exchange, result of a gathering; nothing in a group of one."""
        peers = list(self.peers(rank, step.parts))
        move = step.move
        if len(peers) == 1 or move is None:
            return
        if step.kind == "all_reduce":
            number = self.elements(move.before, rank)
        elif step.kind == "all_gather":
            number = sum(self.elements(move.before, peer) for peer in peers)
        elif step.kind == "reduce_scatter":
            number = sum(self.elements(move.after, peer) for peer in peers)
        else:
            dims = [len(self.indices(d, rank)) for d in move.before.dims]
            dims[move.to_dim] = 1
            shares = [len(self.indices(move.after.dims[move.to_dim], peer)) for peer in peers]
            number = prod(dims) * sum(shares)
        yield step.kind, number * bytes_of(step.out.dtype)

    def merge(self, step: Merge, rank: int) -> Iterator[tuple[str, int]]:
        """To every rank of the group its heads, with one more column for the logsumexp."""
        batch, heads, queries, depth = step.out.layout.dims
        peers = list(self.peers(rank, (step.part,)))
        if len(peers) > 1:
            rows = prod(len(self.indices(d, rank)) for d in (batch, queries))
            shares = sum(len(self.indices(heads, peer)) for peer in peers)
            width = len(self.indices(depth, rank)) + 1
            yield "all_to_all", rows * shares * width * bytes_of(step.out.dtype)

    def edge(self, edge) -> int:
        """What the ranks of the target want and do not hold themselves."""
        source = self.grids[edge.source.mesh].members(dict(edge.source.coords))
        total = 0
        for rank in self.grids[edge.target.mesh].members(dict(edge.target.coords)):
            wanted = [self.indices(d, rank) for d in edge.after.dims]
            total += prod(len(w) for w in wanted)
            if rank in source:
                own = [self.indices(d, rank) for d in edge.before.dims]
                total -= prod(len(set(a) & set(b)) for a, b in zip(wanted, own, strict=True))
        return total

    def elements(self, layout: Layout, rank: int) -> int:
        return prod(len(self.indices(d, rank)) for d in layout.dims)

    def peers(self, rank: int, parts: tuple[Part, ...]) -> Iterator[int]:
        """The ranks that differ from `rank` along `parts` only."""
        grid = self.grids[parts[0].mesh]
        for other in grid.ranks:
            at, here = dict(grid.coords[other]), grid.coords[rank]
            for indices in product(*(range(p.count) for p in parts)):
                point = dict(here)
                for part, index in zip(parts, indices, strict=True):
                    digit = point[part.axis] // part.stride % part.count
                    point[part.axis] += (index - digit) * part.stride
                if point == at:
                    yield other

    def indices(self, tree: LocalTree, rank: int) -> list[int]:
        """The global indices of a dim that a rank holds."""
        if isinstance(tree, CutLeaf):
            held = list(range(self.size(tree)))
            for part in tree.parts:
                at = self.grids[part.mesh].coords[rank][part.axis] // part.stride % part.count
                block = -(-len(held) // part.count)
                lo, hi = len(held) * at // part.count, len(held) * (at + 1) // part.count
                held = held[at * block : (at + 1) * block] if part.rule == "block" else held[lo:hi]
            return held
        if isinstance(tree, Prod):
            found = [0]
            for kid in tree.kids:
                inner, whole = self.indices(kid, rank), self.whole(kid)
                found = [i * whole + j for i in found for j in inner]
            return found
        found, base = [], 0
        for kid in tree.kids:
            found += [base + i for i in self.indices(kid, rank)]
            base += self.whole(kid)
        return found

    def whole(self, tree: LocalTree) -> int:
        if isinstance(tree, CutLeaf):
            return self.size(tree)
        sizes = [self.whole(kid) for kid in tree.kids]
        return prod(sizes) if isinstance(tree, Prod) else sum(sizes)

    def size(self, leaf: CutLeaf) -> int:
        return leaf.size if isinstance(leaf.size, int) else int(leaf.size.subs(self.env))


def bytes_of(dtype) -> int:
    """Bytes of an element, floats in float64."""
    return 8 if dtype.is_floating_point else dtype.itemsize
