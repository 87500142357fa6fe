"""Give a node's call its local form: local operand names, local sizes, shard kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from plancc.ir.graph import Node, Ref
from plancc.ir.layout import Layout, Part, cut_tree, cuts
from plancc.ir.program import LocalDim, LocalRanges, LocalStart
from plancc.ir.shape import Binding, Operand, Tree
from plancc.passes.base import NodeLayout
from plancc.passes.rows.form import plain
from plancc.passes.rows.localise import localise_args, tree_size


def localise_node(
    node: Node,
    binding: Binding,
    shapes: Mapping[str, tuple[Tree, ...]],
    plan: NodeLayout,
    local: Mapping[tuple[str | int, ...], Ref],
) -> tuple[str, tuple[Any, ...], Mapping[str, Any]]:
    """The target, arguments and keywords to run on one rank; sizes are LocalDim and LocalStart."""
    layouts: dict[int, Layout] = {}
    for seen, layout in zip(
        (*binding.operands, *binding.outs), (*plan.operands, *plan.outs), strict=True
    ):
        layouts[id(seen)] = layout

    def size_of(tree: Tree, operand: Operand, dim: int) -> LocalDim:
        parts: dict[int, tuple[Part, ...]] = {
            leaf.id: leaf.parts for leaf in cuts(layouts[id(operand)].dims[dim])
        }
        return LocalDim(cut_tree(tree, lambda p, leaf: parts.get(leaf.id, ())))

    def start_of(tree: Tree, operand: Operand, dim: int) -> LocalStart:
        return LocalStart(size_of(tree, operand, dim).tree)

    def is_cut(operand: Operand, dim: int) -> bool:
        return any(leaf.parts for leaf in cuts(layouts[id(operand)].dims[dim]))

    def is_sized(operand: Operand, dim: int) -> bool:
        return any(
            leaf.parts or isinstance(leaf.size, int)
            for leaf in cuts(layouts[id(operand)].dims[dim])
        )

    renamed = replace(
        node,
        args=_rename(node.args, ("args",), local),
        kwargs={k: _rename(v, ("kwargs", k), local) for k, v in node.kwargs.items()},
    )
    return localise_args(
        renamed, binding, shapes, size_of, start_of, is_cut, is_sized,
        lambda tree: LocalDim(cut_tree(tree, lambda p, leaf: ())),
    )  # fmt: skip


def localise_keys(
    node: Node,
    binding: Binding,
    shapes: Mapping[str, tuple[Tree, ...]],
    plan: NodeLayout,
    local: Mapping[tuple[str | int, ...], Ref],
) -> tuple[str, tuple[Any, ...], Mapping[str, Any]]:
    """The call of attention over this rank's own keys: (out, logsumexp)."""
    _, args, kwargs = localise_node(node, binding, shapes, plan, local)
    query, key = binding.operands[:2]
    total, new = tree_size(shapes[key.value][2]), tree_size(shapes[query.value][2])
    wanted = {k: v for k, v in kwargs.items() if k != "q_start"}
    wanted["q_start"] = kwargs.get("q_start", plain(total - new))
    wanted["keys"] = LocalRanges(plan.operands[1].dims[2])
    return "plancc.attention_over_keys.default", args, wanted


def _rename(arg: Any, at: tuple[str | int, ...], local: Mapping[tuple[str | int, ...], Ref]) -> Any:
    if isinstance(arg, Ref):
        return local[at]
    if isinstance(arg, (tuple, list)):
        return tuple(_rename(item, (*at, i), local) for i, item in enumerate(arg))
    return arg
