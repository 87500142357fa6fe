"""Sizes written as text over B, T and P ("P + T", "B*T"), read without eval; Dims from JSON trees."""

from __future__ import annotations

import ast
import operator
from collections.abc import Mapping
from typing import Any

from plancc.runtime.dims import Dim
from plancc.runtime.view import View

OPERATORS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv
}  # fmt: skip


def size_value(size: int | str, env: Mapping[str, int]) -> int:
    """The value of a size under `env`; ValueError for text that is not plain integer arithmetic."""
    return size if isinstance(size, int) else _value(ast.parse(size, mode="eval").body, env)


def _value(node: ast.expr, env: Mapping[str, int]) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.Name) and node.id in env:
        return env[node.id]
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_value(node.left, env), _value(node.right, env))
    raise ValueError(f"not a size: {ast.unparse(node)}")


def build_dim(view: View, tree: list[Any], env: Mapping[str, int]) -> Dim:
    """A Dim from its JSON tree, with sizes under `env`."""
    if tree[0] == "leaf":
        _, name, size, parts = tree
        return view.dim(name, size_value(size, env), tuple(parts))
    return Dim.join(tree[0], tuple(build_dim(view, kid, env) for kid in tree[1:]))
