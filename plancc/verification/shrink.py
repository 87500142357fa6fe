"""Shrink a model's dims by name, so that any model is verified in seconds with the same topology."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod

import sympy
import torch
from torch import Tensor

from plancc.ir.graph import Graph, Node, Param, Size, Value
from plancc.ir.layout import CutLeaf, LocalTree, cuts
from plancc.ir.leaf_names import name_leaves
from plancc.ir.program import Compute, LocalDim, produced
from plancc.ir.shape import Leaf, NamedGraph, Prod, Tree, leaves
from plancc.passes.base import Unit
from plancc.passes.rows.localise import localise_args
from plancc.passes.rows.localise import tree_size as global_size

SMALL = 16
"""Dims up to this size stay as they are (heads, experts, top-k ...)."""
TABLE = 64
"""Tables that are indexed keep at least this many rows."""
INDEXING = frozenset(
    ["embedding", "slice", "select", "index", "index_select", "gather", "narrow", "slice_scatter"]
)


def shrunk_sizes(forward: NamedGraph, units: Sequence[Unit], small: int = SMALL) -> dict[str, int]:
    """Leaf name -> smaller size: even dims stay even over the parts that cut them, uneven ones uneven.

    A name that has another size in the forward graph (heads, where a phase cuts them into chunks) keeps it.
    """
    own = leaf_sizes(forward)
    found: dict[str, tuple[int, int]] = {}
    indexed: set[str] = set()
    for unit in units:
        assert unit.programs is not None and unit.named is not None
        indexed |= indexed_names(unit.named)
        for program in unit.programs.programs:
            for leaf in program_leaves(program):
                if isinstance(leaf.size, int):
                    name = program.leaf_names[leaf.id]
                    parts = max(found.get(name, (0, 1))[1], prod(p.count for p in leaf.parts))
                    found[name] = (leaf.size, parts)
    out = {}
    for name, (size, parts) in found.items():
        goal = smaller(size, parts)
        if name in indexed:
            goal *= -(-TABLE // goal)
        if size > small and goal < size and own.get(name, size) == size:
            out[name] = goal
    return out


def leaf_sizes(named: NamedGraph) -> dict[str, Size]:
    """Leaf name -> size."""
    names = name_leaves(named)
    return {
        names[leaf.id]: leaf.size
        for dims in named.shapes.values()
        for dim in dims
        for leaf in leaves(dim)
    }


def indexed_names(named: NamedGraph) -> set[str]:
    """Leaves that positions or token ids index (tables, slices up to T): they must stay long enough."""
    names = name_leaves(named)
    out = set()
    for node in named.graph.nodes:
        if node.target.split(".")[1] in INDEXING:
            first = named.bindings[node.name].operands[0]
            for tree in named.shapes[first.value]:
                out.update(names[leaf.id] for leaf in leaves(tree))
    return out


def smaller(size: int, parts: int) -> int:
    """A small size with the same remainder pattern over `parts`."""
    if parts == 1:
        return 8 if size % 2 == 0 else 7
    return 2 * parts if size % parts == 0 else 2 * parts + max(1, size % parts)


def program_leaves(program) -> Iterator[CutLeaf]:
    """Every cut leaf that occurs in a program: layouts and arguments."""
    for weight in program.weights:
        for dim in weight.held.layout.dims:
            yield from cuts(dim)
    for step in program.instructions:
        for held in produced(step):
            for dim in held.layout.dims:
                yield from cuts(dim)
        if isinstance(step, Compute):
            yield from argument_leaves((step.args, tuple(step.kwargs.values())))


def argument_leaves(arg: object) -> Iterator[CutLeaf]:
    """The cut leaves inside arguments."""
    if isinstance(arg, LocalDim):
        yield from cuts(arg.tree)
    elif isinstance(arg, (tuple, list)):
        for item in arg:
            yield from argument_leaves(item)


def tree_size(tree: Tree | LocalTree, names: Mapping[int, str], sizes: Mapping[str, int]) -> Size:
    """The size of a dim with leaves of the names in `sizes` shrunk."""
    if isinstance(tree, (Leaf, CutLeaf)):
        return sizes.get(names[tree.id], tree.size)
    total: Size = 1 if isinstance(tree, Prod) else 0
    for kid in tree.kids:
        inner = tree_size(kid, names, sizes)
        total = total * inner if isinstance(tree, Prod) else total + inner
    return total


def shrink_graph(named: NamedGraph, sizes: Mapping[str, int]) -> Graph:
    """The same graph with every shape and size argument shrunk."""
    names = name_leaves(named)

    def size(tree: Tree, operand: object = None, dim: int = 0) -> Size:
        return tree_size(tree, names, sizes)

    def value(old: Value) -> Value:
        return Value(old.name, tuple(size(t) for t in named.shapes[old.name]), old.dtype)

    def node(old: Node) -> Node:
        binding = named.bindings[old.name]
        target, args, kwargs = localise_args(old, binding, named.shapes, size, lambda *a: 0)
        outs = tuple(value(o) for o in old.outs)
        return replace(old, target=target, args=args, kwargs=kwargs, outs=outs)

    def param(old: Param) -> Param:
        trees = named.shapes[old.value.name]
        data = None if old.data is None else shrink_tensor(old.data, trees, names, sizes)
        return replace(old, value=value(old.value), data=data)

    graph = named.graph
    return replace(
        graph,
        nodes=tuple(node(n) for n in graph.nodes),
        params={name: param(p) for name, p in graph.params.items()},
        inputs=tuple(value(v) for v in graph.inputs),
    )


def shrink_tensor(
    data: Tensor, trees: Sequence[Tree], names: Mapping[int, str], sizes: Mapping[str, int]
) -> Tensor:
    """The first elements of every leaf of a buffer's dims."""
    for dim, tree in enumerate(trees):
        keep = kept_indices(tree, names, sizes)
        if len(keep) != data.shape[dim]:
            data = data.index_select(dim, torch.tensor(keep, dtype=torch.long))
    return data.contiguous()


def kept_indices(tree: Tree, names: Mapping[int, str], sizes: Mapping[str, int]) -> list[int]:
    """Which indices of a dim survive."""
    if isinstance(tree, Leaf):
        assert not isinstance(tree.size, sympy.Expr)
        return list(range(sizes.get(names[tree.id], tree.size)))
    if isinstance(tree, Prod):
        found = [0]
        for kid in tree.kids:
            inner, total = kept_indices(kid, names, sizes), int(global_size(kid))
            found = [i * total + j for i in found for j in inner]
        return found
    found, base = [], 0
    for kid in tree.kids:
        found += [base + j for j in kept_indices(kid, names, sizes)]
        base += int(global_size(kid))
    return found
