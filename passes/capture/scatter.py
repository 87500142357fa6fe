"""Writes into slices as concatenations: what functionalisation leaves as slice_scatter becomes cat.

`y = empty; y[..., :8] = a; y[..., 8:] = b` ends as cat(a, b); what was not overwritten is sliced
out of the old value. Select_scatter goes the same way, through a slice of size one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from plancc.ir.graph import Node, Ref, Value
from plancc.passes.capture.simplify import argument, positive

_SCATTERS = ("aten.slice_scatter.default", "aten.select_scatter.default")


@dataclass(frozen=True, slots=True)
class Piece:
    """Positions start .. end - 1 along a dim come from `value`, from its `offset` on."""

    start: int
    end: int
    value: str
    offset: int


class Concatenator:
    """One pass over the nodes; `pieces` holds what each scattered value consists of."""

    def __init__(self, values: Sequence[Value]) -> None:
        self.values = {value.name: value for value in values}
        self.pieces: dict[str, tuple[int, list[Piece]]] = {}
        self.nodes: list[Node] = []
        self.count = 0

    def add(self, node: Node) -> None:
        """Take the next node."""
        for value in node.outs:
            self.values[value.name] = value
        bounds = self.bounds(node) if node.target in _SCATTERS else None
        if bounds is None:
            self.nodes.append(node)
            return
        dim, start, end = bounds
        base, source = node.args[0].name, node.args[1].name
        if node.target == "aten.select_scatter.default":
            source = self.lift(node, source, dim)
        size = self.values[base].shape[dim]
        known = self.pieces.get(base)
        pieces = known[1] if known and known[0] == dim else [Piece(0, size, base, 0)]
        pieces = overwrite(pieces, Piece(start, end, source, 0))
        self.pieces[node.outs[0].name] = (dim, pieces)
        parts = tuple(Ref(self.part(node, piece, dim)) for piece in pieces)
        self.nodes.append(replace(node, target="aten.cat.default", args=(parts, dim), kwargs={}))

    def bounds(self, node: Node) -> tuple[int, int, int] | None:
        """Return (dim, start, end) of a write with known bounds and step one, else None."""
        shape = self.values[node.args[0].name].shape
        dim = positive(argument(node, 2, 0), len(shape))
        size = shape[dim]
        start, end = argument(node, 3, None), argument(node, 4, None)
        if node.target == "aten.select_scatter.default":
            end = start + 1 if isinstance(start, int) and start != -1 else None
        if not all(isinstance(bound, int | None) for bound in (size, start, end)):
            return None
        if argument(node, 5, 1) != 1:
            return None
        first, last, _ = slice(start, end).indices(size)
        return dim, first, max(first, last)

    def part(self, node: Node, piece: Piece, dim: int) -> str:
        """Return the value of one piece, slicing it out of its source where it is not all of it."""
        source = self.values[piece.value]
        length = piece.end - piece.start
        if source.shape[dim] == length:
            return piece.value
        shape = (*source.shape[:dim], length, *source.shape[dim + 1 :])
        args = (Ref(piece.value), dim, piece.offset, piece.offset + length, 1)
        return self.emit(node, "aten.slice.Tensor", args, Value("", shape, source.dtype))

    def lift(self, node: Node, name: str, dim: int) -> str:
        """Return a value with a dim of size one put in."""
        source = self.values[name]
        shape = (*source.shape[:dim], 1, *source.shape[dim:])
        args = (Ref(name), dim)
        return self.emit(node, "aten.unsqueeze.default", args, Value("", shape, source.dtype))

    def emit(self, node: Node, target: str, args: tuple[Any, ...], value: Value) -> str:
        """Add a node near `node`; return its value's name."""
        self.count += 1
        out = replace(value, name=f"{node.name}_s{self.count}")
        self.values[out.name] = out
        self.nodes.append(Node(out.name, target, args, {}, (out,), node.path, node.line))
        return out.name


def overwrite(pieces: Sequence[Piece], new: Piece) -> list[Piece]:
    """Return the pieces with the range of `new` replaced by it, in order."""
    kept: list[Piece] = []
    for piece in pieces:
        if piece.start < new.start:
            kept.append(replace(piece, end=min(piece.end, new.start)))
        if piece.end > new.end:
            start = max(piece.start, new.end)
            kept.append(replace(piece, start=start, offset=piece.offset + start - piece.start))
    return sorted((*kept, new), key=lambda piece: piece.start)


def concatenate_scatters(nodes: Sequence[Node], values: Sequence[Value]) -> list[Node]:
    """Return the nodes with slice and select scatters as concatenations."""
    if not any(node.target in _SCATTERS for node in nodes):
        return list(nodes)
    work = Concatenator(values)
    for node in nodes:
        work.add(node)
    return work.nodes
