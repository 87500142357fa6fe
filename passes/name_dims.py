"""name_dims: find which dims of a graph are the same, and name heads, ffn, vocab ... among them.

A graph goes in; factor trees of all values, the bound row of every node, and named dims come out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plancc.ir.graph import Graph
from plancc.ir.shape import NamedGraph, Note
from plancc.passes.anchors import find_anchors
from plancc.passes.collection import without_collection
from plancc.passes.rows.bind import Binder, Bound
from plancc.passes.rows.freeze import Freezer


@dataclass(frozen=True, slots=True)
class Hint:
    """A name that the plan gives to a dim: dim `dim` of a value (or parameter fqn) at `path`."""

    path: str
    name: str
    value: str
    dim: int


def name_dims(graph: Graph, hints: Sequence[Hint] = ()) -> NamedGraph:
    """Name the dims of a graph.

    Raises UnknownOperator if an operator has no row (its `others` are the further ones), RowError
    if a row does not fit its call, and KeyError or IndexError for a hint that points nowhere.
    """
    with without_collection():
        binder = Binder(graph)
        binder.walk(graph)
        freezer = Freezer(binder.dims)
        shapes = {name: freezer.shape(name) for name in binder.dims}
        bindings = {bound.node.name: freezer.binding(bound) for bound in binder.bound}
        notes = [note for bound in binder.bound for note in _notes(bound)]
        anchors, more = find_anchors(graph, shapes, bindings, hints)
    return NamedGraph(graph, shapes, bindings, anchors, (*notes, *more))


def _notes(bound: Bound) -> list[Note]:
    """What of a node's dims did not fit, and is left whole."""
    node = bound.node
    found = [
        Note(
            node.path,
            node.line,
            f"dim {dim} of operand {operand} of `{node.target}` is whole: {why}",
        )
        for (operand, dim), why in bound.broken.items()
        if why and bound.form.cut_leaves and not bound.form.dropped
    ]
    if bound.pattern is None and bound.front + bound.back < len(node.outs[0].shape):
        found.append(
            Note(
                node.path, node.line, f"a `{node.target}` does not keep the boundaries of its dims"
            )
        )
    return found


__all__ = ["Hint", "name_dims"]
