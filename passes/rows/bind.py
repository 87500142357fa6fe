"""Bind: one forward walk that unifies the dims of every operand with the slots of its row.

Labels are read off only after the walk (`freeze.py`), for factors are refined by later nodes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from plancc.ir.factors import (
    Conflict,
    Dim,
    divide,
    fresh,
    partition,
    regroup,
    size_of,
    sum_of,
    unify,
)
from plancc.ir.graph import Graph, Node, Size
from plancc.passes.rows.call import Call, Location, RowError, UnknownOperator
from plancc.passes.rows.form import VIEW, Form
from plancc.passes.rows.notation import NotationError, Pattern, Side, Slot, expand, label_of
from plancc.passes.rows.table import row_of


@dataclass(slots=True)
class Bound:
    """A row bound to one node, before the walk's end.

    `broken` holds (operand, dim) pairs that did not fit their slot (operand -1 - i: output i);
    `front` and `back` are the numbers of view dims matched from either end. A `static` node depends
    on sizes, buffers and constants only: every rank computes it, so it cuts nothing into parts.
    """

    node: Node
    form: Form
    static: bool
    pattern: Pattern | None = None
    operands: list[tuple[Location, str]] = field(default_factory=list)
    sides: list[Side] = field(default_factory=list)
    env: dict[str, Dim] = field(default_factory=dict)
    broken: dict[tuple[int, int], str] = field(default_factory=dict)
    front: int = 0
    back: int = 0


class Binder:
    """Dims of every value, and the bound rows, while the walk goes on."""

    def __init__(self, graph: Graph) -> None:
        self.dims: dict[str, list[Dim]] = {}
        self.shapes: dict[str, tuple[Size, ...]] = {v.name: v.shape for v in graph.values()}
        self.makers: dict[str, Node] = {out.name: n for n in graph.nodes for out in n.outs}
        self.params = graph.params
        self.bound: list[Bound] = []
        self.live = {value.name for value in graph.inputs}
        self.live |= {name for name, param in graph.params.items() if param.kind == "param"}
        for value in graph.inputs:
            self.dims[value.name] = _input_dims(value.shape, value.dtype.is_floating_point)
        for name, param in graph.params.items():
            self.dims[name] = [fresh(size) for size in param.value.shape]

    def walk(self, graph: Graph) -> None:
        """Bind every node in order; raises UnknownOperator (for all of them at once), RowError."""
        unknown = [
            UnknownOperator(n.target, n.path, n.line)
            for n in graph.nodes
            if row_of(n.target) is None
        ]
        if unknown:
            unknown[0].others = tuple(unknown[1:])
            raise unknown[0]
        for node in graph.nodes:
            self.bound.append(self._bind(node))

    def _bind(self, node: Node) -> Bound:
        row = row_of(node.target)
        assert row is not None
        call = Call(node, self.shapes, self.makers, self.params)
        static = not any(name in self.live for name in node.refs())
        if not static:
            self.live.update(out.name for out in node.outs)
        try:
            bound = Bound(node, row.form(call), static)
            if bound.form.text == VIEW:
                self._bind_view(call, bound)
            else:
                self._bind_pattern(call, bound)
            return bound
        except (NotationError, IndexError, AssertionError) as wrong:
            raise RowError(node, str(wrong)) from wrong

    def _bind_view(self, call: Call, bound: Bound) -> None:
        out = call.node.outs[0]
        bound.operands = [(loc, name) for loc, name in call.operands() if name is not None]
        dims, bound.front, bound.back = regroup(self.dims[bound.operands[0][1]], out.shape)
        self.dims[out.name] = dims

    def _bind_pattern(self, call: Call, bound: Bound) -> None:
        node, shapes, form = call.node, self.shapes, bound.form
        found = call.operands()
        ranks = tuple(None if name is None else len(shapes[name]) for _, name in found)
        if None in ranks and "[" not in form.text:
            found = [pair for pair in found if pair[1] is not None]
            ranks = tuple(rank for rank in ranks if rank is not None)
        bound.pattern = pattern = expand(form.text, ranks, tuple(len(o.shape) for o in node.outs))
        later: list[tuple[int, int, Slot, Dim]] = []
        for (location, name), side in zip(found, pattern.ins, strict=False):
            if name is None:
                continue
            index = len(bound.operands)
            bound.operands.append((location, name))
            bound.sides.append(side)
            for at, (dim, slot) in enumerate(zip(self.dims[name], side.slots, strict=True)):
                if len(slot.names) == 1 and not slot.parts:
                    _bind_name(bound, index, at, slot.names[0], dim)
                elif slot.names or slot.parts:
                    later.append((index, at, slot, dim))
        _bind_groups(bound, later)
        for index, (out, side) in enumerate(zip(node.outs, pattern.outs, strict=True)):
            self.dims[out.name] = [
                _out_dim(bound, (-1 - index, at), slot, size)
                for at, (slot, size) in enumerate(zip(side.slots, out.shape, strict=True))
            ]


def _input_dims(shape: tuple[Size, ...], is_float: bool) -> list[Dim]:
    dims = [fresh(size) for size in shape]
    solid = dims[: max(len(dims) - 1, 1)] if is_float else dims
    for dim in solid:
        for factor in dim:
            factor.solid = True
    return dims


def _bind_name(bound: Bound, index: int, at: int, name: str, dim: Dim) -> None:
    """Bind a variable to a dim; a size-1 dim says nothing if another operand has more."""
    known = bound.env.get(name)
    if not known:
        if known is None or dim:
            bound.env[name] = dim
        return
    if not dim or known is dim:
        return
    try:
        unify(dim, known)
    except Conflict as conflict:
        bound.broken[index, at] = str(conflict)


def _bind_groups(bound: Bound, later: list[tuple[int, int, Slot, Dim]]) -> None:
    """Bind products and concatenations, those with fewest unknown variables first."""
    later.sort(key=lambda item: _unknown(bound, item[2]))
    while later:
        index, at, slot, dim = later.pop(0)
        if dim:
            try:
                if slot.parts and bound.static:
                    bound.broken[index, at] = ""
                elif slot.parts:
                    _bind_sum(bound, slot, dim)
                else:
                    _bind_product(bound, slot.names, dim)
            except Conflict as conflict:
                bound.broken[index, at] = str(conflict)
        later.sort(key=lambda item: _unknown(bound, item[2]))


def _unknown(bound: Bound, slot: Slot) -> int:
    return sum(_size(bound, name) is None for name in _variables(slot))


def _variables(slot: Slot) -> list[str]:
    return [*slot.names, *(name for part in slot.parts for name in part.names)]


def _size(bound: Bound, name: str) -> Size | None:
    """The size of a variable if it is known: bound, given by the form, or a number."""
    if name in bound.env:
        return size_of(bound.env[name])
    if name in bound.form.sizes:
        return bound.form.sizes[name]
    return int(label_of(name)) if name[0].isdigit() else None


def _known(bound: Bound, name: str, size: Size) -> Dim:
    """The dim of a variable, made fresh with `size` if it has none yet."""
    if name not in bound.env:
        bound.env[name] = fresh(size)
    return bound.env[name]


def _bind_product(bound: Bound, names: tuple[str, ...], dim: Dim) -> None:
    rest: Size | None = size_of(dim)
    unknown = [name for name in names if _size(bound, name) is None]
    for name in names:
        size = _size(bound, name)
        if size is not None and rest is not None:
            rest = divide(rest, size)
    if rest is None or len(unknown) > 1 or (not unknown and rest != 1):
        raise Conflict(f"{size_of(dim)} is not the product ({' '.join(names)})")
    sizes = [_size(bound, name) for name in names]
    whole = [
        factor
        for name, size in zip(names, sizes, strict=True)
        for factor in _known(bound, name, rest if size is None else size)
    ]
    unify(dim, whole)


def _bind_sum(bound: Bound, slot: Slot, dim: Dim) -> None:
    sizes: list[Size | None] = []
    for part in slot.parts:
        known = [_size(bound, name) for name in part.names]
        size: Size | None = 1
        for one in known:
            size = None if one is None or size is None else size * one
        sizes.append(size)
    missing = [i for i, size in enumerate(sizes) if size is None]
    if missing:
        rest = size_of(dim)
        for size in sizes:
            rest = rest - (size or 0)
        share = divide(rest, len(missing))
        if share is None:
            raise Conflict(f"{size_of(dim)} has no {len(missing)} equal parts")
        sizes = [share if size is None else size for size in sizes]
    pieces = partition(dim, [s for s in sizes if s is not None], bound.form.cut_leaves)
    for part, piece in zip(slot.parts, pieces, strict=True):
        if len(part.names) == 1 and part.names[0] not in bound.env:
            bound.env[part.names[0]] = piece
        elif piece or part.names:
            unify(piece, [f for n in part.names for f in _known(bound, n, size_of(piece))])


def _out_dim(bound: Bound, place: tuple[int, int], slot: Slot, size: Size) -> Dim:
    """The dim of an output slot; variables that no operand bound are fresh."""
    if size == 1:
        return []
    if slot.parts and bound.static:
        bound.broken[place] = ""
        return fresh(size)
    if slot.parts:
        return sum_of([[f for n in part.names for f in _part(bound, n)] for part in slot.parts])
    if len(slot.names) == 1:
        name = slot.names[0]
        if not bound.env.get(name):
            bound.env[name] = fresh(size)
        return bound.env[name]
    return [factor for name in slot.names for factor in _part(bound, name)]


def _part(bound: Bound, name: str) -> Dim:
    size = _size(bound, name)
    if size is None:
        raise NotationError(f"nothing determines the size of `{name}`")
    return _known(bound, name, size)
