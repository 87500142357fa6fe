"""Simplify a functional graph: no-op nodes vanish, families of operators take one canonical form.

Views of every kind become reshape, permute, expand or slice with explicit arguments, splits become
split_with_sizes, casts become to.dtype; unused nodes and parameters are dropped.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from plancc.ir.graph import Node, Param, Ref, Size, Value

_COPIES = {
    "aten.clone.default",
    "aten.contiguous.default",
    "aten.lift_fresh_copy.default",
    "aten.lift_fresh.default",
    "aten.alias.default",
    "aten.dropout.default",
    "aten.feature_dropout.default",
    "aten.alpha_dropout.default",
    "aten.to.device",
}
_CASTS = {
    "aten.to.dtype",
    "aten.to.dtype_layout",
    "aten.to.other",
    "aten._to_copy.default",
    "aten.type_as.default",
    "aten.to.device",
}
_RESHAPES = {
    "aten.view.default",
    "aten.reshape.default",
    "aten._unsafe_view.default",
    "aten.flatten.using_ints",
    "aten.unflatten.int",
    "aten.view_as.default",
    "aten.reshape_as.default",
}
_EXPANDS = {"aten.expand.default", "aten.expand_as.default", "aten.broadcast_to.default"}
_PERMUTES = {
    "aten.t.default",
    "aten.numpy_T.default",
    "aten.mT.default",
    "aten.transpose.int",
    "aten.swapaxes.default",
    "aten.swapdims.default",
    "aten.movedim.int",
    "aten.permute.default",
}
_SPLITS = {
    "aten.chunk.default",
    "aten.split.Tensor",
    "aten.split.sizes",
    "aten.unsafe_split.Tensor",
    "aten.unsafe_chunk.default",
    "aten.split_with_sizes.default",
    "aten.tensor_split.sections",
}
_SAME_FORM = {
    "aten.concat.default": "aten.cat.default",
    "aten.concatenate.default": "aten.cat.default",
    "aten.multiply.Tensor": "aten.mul.Tensor",
    "aten.divide.Tensor": "aten.div.Tensor",
    "aten.subtract.Tensor": "aten.sub.Tensor",
    "aten.__and__.Tensor": "aten.bitwise_and.Tensor",
    "aten.__or__.Tensor": "aten.bitwise_or.Tensor",
}
_NEUTRAL = {"aten.add.Tensor": 0, "aten.sub.Tensor": 0, "aten.mul.Tensor": 1, "aten.div.Tensor": 1}
_END = 2**63 - 1


class Simplifier:
    """One pass over the nodes; `same` maps a value that disappeared to the one it equals."""

    def __init__(self, values: Sequence[Value], weights: Collection[str]) -> None:
        self.values = {value.name: value for value in values}
        self.weights = weights
        self.transposed: dict[str, Ref] = {}  # value -> the weight that it is the transpose of
        self.same: dict[str, str] = {}
        self.nodes: list[Node] = []

    def add(self, node: Node) -> None:
        """Take the next node: drop it, put it in canonical form, or keep it."""
        node = replace(
            node,
            args=rename(node.args, self.same),
            kwargs={key: rename(arg, self.same) for key, arg in node.kwargs.items()},
        )
        for value in node.outs:
            self.values[value.name] = value
        source = self.source(node)
        if source is not None and self.is_noop(node, source):
            self.same[node.outs[0].name] = source.name
        else:
            self.nodes.append(self.canonical(node, source))

    def source(self, node: Node) -> Value | None:
        """Return the value of the first argument if it is one."""
        first = node.args[0] if node.args else None
        return self.values[first.name] if isinstance(first, Ref) else None

    def is_noop(self, node: Node, source: Value) -> bool:
        """Tell whether the only output equals `source`."""
        if len(node.outs) != 1 or (source.shape, source.dtype) != (
            node.outs[0].shape,
            node.outs[0].dtype,
        ):
            return False
        target = node.target
        if target == "aten.slice.Tensor":
            return argument(node, 4, 1) == 1
        if target in _PERMUTES:
            return permutation(node, source) == tuple(range(len(source.shape)))
        if target == "aten.repeat.default":
            return all(count == 1 for count in node.args[1])
        if "dropout" in target and target in _COPIES:
            return not node.args[2] or node.args[1] == 0
        if target in _NEUTRAL and not node.kwargs:
            return not isinstance(node.args[1], Ref) and node.args[1] == _NEUTRAL[target]
        return target in _COPIES | _CASTS | _RESHAPES | _EXPANDS

    def canonical(self, node: Node, source: Value | None) -> Node:
        """Return the node in the one form of its family."""
        if node.target in _SAME_FORM:
            return replace(node, target=_SAME_FORM[node.target])
        if source is None or not node.outs:
            return node
        first, out, rank = node.args[0], node.outs[0], len(source.shape)
        if node.target == "aten.matmul.default":
            weight = self.transposed.get(node.args[1].name)
            linear = replace(node, target="aten.linear.default", args=(first, weight))
            return node if weight is None else linear
        if node.target in _CASTS:
            return replace(node, target="aten.to.dtype", args=(first, out.dtype), kwargs={})
        if node.target in _RESHAPES:
            return replace(node, target="aten.reshape.default", args=(first, out.shape), kwargs={})
        if node.target in _EXPANDS:
            return replace(node, target="aten.expand.default", args=(first, out.shape), kwargs={})
        if node.target in _PERMUTES:
            order = permutation(node, source)
            if order == (1, 0) and node.args[0].name in self.weights:
                self.transposed[out.name] = first
            return replace(node, target="aten.permute.default", args=(first, order), kwargs={})
        if node.target in _SPLITS:
            dim = positive(argument(node, 2, 0, "dim"), rank)
            sizes = tuple(value.shape[dim] for value in node.outs)
            target = "aten.split_with_sizes.default"
            return replace(node, target=target, args=(first, sizes, dim), kwargs={})
        if node.target == "aten.slice.Tensor":
            return replace(node, args=(first, *slice_bounds(node, source)), kwargs={})
        if node.target == "aten.narrow.default":
            dim = positive(node.args[1], rank)
            start = bounded(node.args[2], source.shape[dim])
            bounds = (dim, start, start + node.args[3], 1)
            return replace(node, target="aten.slice.Tensor", args=(first, *bounds))
        return node


def simplify(
    nodes: Sequence[Node],
    params: Mapping[str, Param],
    inputs: Sequence[Value],
    outputs: Mapping[str, str],
) -> tuple[list[Node], dict[str, Param], dict[str, str]]:
    """Return simplified nodes, the parameters still used, and the renamed outputs."""
    work = Simplifier([*inputs, *(param.value for param in params.values())], params)
    for node in nodes:
        work.add(node)
    renamed = {name: work.same.get(value, value) for name, value in outputs.items()}
    return *drop_unused(work.nodes, params, renamed), renamed


def drop_unused(
    nodes: Sequence[Node], params: Mapping[str, Param], outputs: Mapping[str, str]
) -> tuple[list[Node], dict[str, Param]]:
    """Drop nodes, parameters and constants that no output needs."""
    used = set(outputs.values())
    kept: list[Node] = []
    for node in reversed(nodes):
        if any(value.name in used for value in node.outs):
            kept.append(node)
            used.update(node.refs())
    remaining = {name: param for name, param in params.items() if name in used}
    return kept[::-1], remaining


def rename(arg: Any, names: Mapping[str, str]) -> Any:
    """Replace references by `names`, at any depth."""
    if isinstance(arg, Ref):
        return Ref(names[arg.name]) if arg.name in names else arg
    if isinstance(arg, tuple):
        return tuple(rename(item, names) for item in arg)
    return arg


def argument(node: Node, position: int, default: Any, keyword: str = "") -> Any:
    """Return a node's argument by position or keyword, or the default."""
    if keyword in node.kwargs:
        return node.kwargs[keyword]
    return node.args[position] if len(node.args) > position else default


def positive(dim: int, rank: int) -> int:
    """Return a dim counted from the front."""
    return dim + rank if dim < 0 else dim


def permutation(node: Node, source: Value) -> tuple[int, ...]:
    """Return the dims of the source in the order that a transposing node gives them."""
    rank = len(source.shape)
    order = list(range(rank))
    if node.target == "aten.permute.default":
        return tuple(positive(dim, rank) for dim in node.args[1])
    if node.target == "aten.numpy_T.default":
        return tuple(reversed(order))
    if node.target == "aten.movedim.int":
        moved = order.pop(positive(node.args[1], rank))
        order.insert(positive(node.args[2], rank), moved)
        return tuple(order)
    if rank < 2:
        return tuple(order)
    pair = node.args[1:3] if len(node.args) == 3 else (-2, -1)
    first, second = (positive(dim, rank) for dim in pair)
    order[first], order[second] = order[second], order[first]
    return tuple(order)


def slice_bounds(node: Node, source: Value) -> tuple[int, Size, Size, int]:
    """Return (dim, start, end, step) of a slice with 0 <= start <= end <= size where known."""
    dim = positive(argument(node, 1, 0), len(source.shape))
    size, step = source.shape[dim], argument(node, 4, 1)
    start, end = argument(node, 2, None), argument(node, 3, None)
    start = 0 if start is None else bounded(start, size)
    end = size if end is None or end == _END else bounded(end, size)
    if step == 1:
        end = start + node.outs[0].shape[dim]
    return dim, start, end, step


def bounded(bound: Size, size: Size) -> Size:
    """Count a bound from the front and keep it within the dim where that is known."""
    if (isinstance(bound, int) and bound < 0) or getattr(bound, "is_negative", False):
        bound = size + bound
    if isinstance(bound, int) and isinstance(size, int):
        return min(bound, size)
    return bound
