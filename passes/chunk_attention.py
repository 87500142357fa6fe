"""Cut attention that runs elsewhere into chunks of heads, so that sending overlaps with computing.

`comm base <-> fa { overlap = async(depth = 2) }`: the second half of the heads travels while the pool
attends to the first. A rewrite of the graph; the layouts follow by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from math import prod
from typing import Any

from plancc.ir.graph import Graph, Node, Ref, Value
from plancc.ir.mesh import mesh_of
from plancc.ir.shape import NamedGraph, leaves
from plancc.passes.base import Placed
from plancc.passes.derive_phases import ATTENTION
from plancc.passes.match_targets import CACHE

SLICE = "aten.slice.Tensor"


def chunk_attention(graph: Graph, depth: Mapping[str, int]) -> Graph:
    """The graph with every attention node named in `depth` cut into that many chunks of kv heads."""
    work = _Chunks(graph, depth)
    for node in graph.nodes:
        work.node(node)
    return replace(graph, nodes=tuple(work.nodes))


def chunk_depths(
    named: NamedGraph, places: Mapping[str, Placed], wanted: Mapping[frozenset[str], int]
) -> dict[str, int]:
    """How many chunks each attention gets: those whose queries come from the other mesh of a pair.

    Never more than the kv heads that one device of the other mesh has (then heads would be missing on some).
    """
    graph = named.graph
    home = {name: mesh_of(placed.stage.mesh) for name, placed in places.items()}
    maker = {out.name: node.name for node in graph.nodes for out in node.outs}
    out = {}
    for node in graph.nodes:
        if node.target != ATTENTION or node.name not in home:
            continue
        source = home.get(maker.get(node.args[0].name, ""))
        for pair, count in wanted.items():
            if source is not None and {source, home[node.name]} == set(pair):
                most = heads_each(named, node, places[maker[node.args[0].name]])
                out[node.name] = max(1, min(count, most))
    return out


def heads_each(named: NamedGraph, node: Node, queries: Placed) -> int:
    """The kv heads of one attention that a device has where the queries come from."""
    tree = named.shapes[node.args[1].name][1]
    share = 1
    for leaf in leaves(tree):
        parts = queries.cuts.get(leaf.id, ((), None))[0]
        share *= int(leaf.size) // prod(part.count for part in parts)
    return share


class _Chunks:
    def __init__(self, graph: Graph, depth: Mapping[str, int]) -> None:
        self.depth = depth
        self.values: dict[str, Value] = {v.name: v for v in graph.values()}
        self.cached = {o.name for n in graph.nodes if n.target == CACHE for o in n.outs}
        self.nodes: list[Node] = []

    def node(self, node: Node) -> None:
        """Copy a node, or its chunks and their results side by side again."""
        count = self.depth.get(node.name, 1)
        heads = self.values[node.args[1].name].shape[1] if count > 1 else 1
        if not isinstance(heads, int) or min(count, heads) < 2:
            self.nodes.append(node)
            return
        count = min(count, heads)
        group = int(self.values[node.args[0].name].shape[1]) // heads
        bounds = [heads * i // count for i in range(count + 1)]
        spans = list(pairwise(bounds))
        pieces = [self.chunk(node, i, span, group) for i, span in enumerate(spans)]
        refs = tuple(Ref(piece) for piece in pieces)
        self.nodes.append(
            replace(
                node, name=f"{node.name}_cat", target="aten.cat.default", args=(refs, 1), kwargs={}
            )
        )

    def chunk(self, node: Node, index: int, span: tuple[int, int], group: int) -> str:
        """One chunk: its queries, keys and values, and its attention."""
        lo, hi = span
        q = self.cut(node, node.args[0], index, lo * group, hi * group)
        k, v = (self.cut(node, ref, index, lo, hi) for ref in node.args[1:3])
        rest = tuple(self.cut_heads(node, a, index, lo * group, hi * group) for a in node.args[3:])
        out = node.outs[0]
        name = f"{out.name}_part{index}"
        shape = (out.shape[0], (hi - lo) * group, *out.shape[2:])
        self.add(
            replace(
                node,
                name=f"{node.name}_part{index}",
                args=(Ref(q), Ref(k), Ref(v), *rest),
                outs=(Value(name, shape, out.dtype),),
            )
        )
        return name

    def cut_heads(self, node: Node, arg: Any, index: int, lo: int, hi: int) -> Any:
        """A mask or sink with a dim of heads, cut; others as they are."""
        if not isinstance(arg, Ref):
            return arg
        shape = self.values[arg.name].shape
        dim = 0 if len(shape) == 1 else 1
        whole = self.values[node.args[0].name].shape[1]
        return Ref(self.cut(node, arg, index, lo, hi, dim)) if shape[dim] == whole else arg

    def cut(self, node: Node, ref: Ref, index: int, lo: int, hi: int, dim: int = 1) -> str:
        """A slice of the heads of a value."""
        value = self.values[ref.name]
        name = f"{value.name}_{index}of{self.depth[node.name]}"
        shape = (*value.shape[:dim], hi - lo, *value.shape[dim + 1 :])
        out = Value(name, shape, value.dtype)
        role = "attention" if ref.name in self.cached else ""
        self.add(Node(name, SLICE, (ref, dim, lo, hi, 1), {}, (out,), node.path, node.line, role))
        return name

    def add(self, node: Node) -> None:
        self.nodes.append(node)
        self.values.update((o.name, o) for o in node.outs)
