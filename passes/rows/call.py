"""Call: one node's arguments in the order and by the names of its operator's schema.

What row builders read; also the errors that naming raises about operators.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from plancc.ir.graph import Node, Param, Ref, Size

Location = tuple[str | int, ...]
"""Where an operand stands: ("args", 0), ("kwargs", "mask"), ("args", 0, 2) inside a list."""


@dataclass(frozen=True, slots=True)
class Field:
    """One parameter of an operator's schema."""

    name: str
    is_tensor: bool
    default: Any
    optional: bool


class UnknownOperator(Exception):
    """An operator has no row (diagnostic P314); `others` holds further ones of the same graph."""

    code = "P314"

    def __init__(self, op: str, path: str, line: str) -> None:
        self.op, self.path, self.line = op, path, line
        self.others: tuple[UnknownOperator, ...] = ()
        name = ".".join(op.split(".")[:2]).replace(".", "::")
        super().__init__(
            f"the operator `{op}` has no row (module `{path or 'the root'}`, {line}); register "
            f'one, for example `plancc.register_op("{name}", "... d, d -> ... d")`'
        )


class RowError(Exception):
    """A row does not fit a node: the number or ranks of its operands differ from the notation."""

    code = "P315"

    def __init__(self, node: Node, reason: str) -> None:
        self.op, self.path, self.line = node.target, node.path, node.line
        super().__init__(
            f"the row of `{node.target}` does not fit its call "
            f"(module `{node.path or 'the root'}`, {node.line}): {reason}"
        )


@cache
def schema(target: str) -> tuple[Field, ...] | None:
    """The parameters of an operator, or None if torch does not know it."""
    namespace, name, overload = target.split(".")
    try:
        op = getattr(getattr(getattr(torch.ops, namespace), name), overload)
    except AttributeError:
        return None
    return tuple(
        Field(
            arg.name,
            "Tensor" in str(arg.type),
            arg.default_value if arg.has_default_value() else None,
            arg.has_default_value(),
        )
        for arg in op._schema.arguments
    )


@dataclass(frozen=True, slots=True)
class Call:
    """A node, the global shape of every value, the maker of each, and the model's parameters."""

    node: Node
    shapes: Mapping[str, tuple[Size, ...]]
    makers: Mapping[str, Node]
    params: Mapping[str, Param]

    def arg(self, name: str, default: Any = None) -> Any:
        """The argument called `name` in the schema, or its default."""
        location = locate(self.node, name)
        if location is not None:
            value = fetch(self.node, location)
            return default if value is None else value
        for field in schema(self.node.target) or ():
            if field.name == name and field.default is not None:
                return field.default
        return default

    def operands(self) -> list[tuple[Location, str | None]]:
        """Location and value name of every tensor operand in schema order, lists flattened.

        An operand that is absent, None or a number has no name.
        """
        found: list[tuple[Location, str | None]] = []
        node = self.node
        fields = schema(node.target)
        if fields is None:
            for index, arg in enumerate(node.args):
                found.extend(_tensors(("args", index), arg))
            return found
        for index, field in enumerate(fields):
            if not field.is_tensor:
                continue
            if index < len(node.args):
                found.extend(_tensors(("args", index), node.args[index]))
            else:
                found.extend(_tensors(("kwargs", field.name), node.kwargs.get(field.name)))
        return found

    def shape(self, index: int) -> tuple[Size, ...]:
        """The global shape of the tensor operand number `index`."""
        names = [name for _, name in self.operands() if name is not None]
        return self.shapes[names[index]]

    @property
    def out(self) -> tuple[Size, ...]:
        """The global shape of the (first) output."""
        return self.node.outs[0].shape

    def dim(self, name: str = "dim", default: int = -1, rank: int | None = None) -> int:
        """The dim argument `name`, made non-negative for the first operand."""
        rank = len(self.shape(0)) if rank is None else rank
        return int(self.arg(name, default)) % max(rank, 1)

    def dims(self, name: str = "dim") -> tuple[int, ...]:
        """The dims argument `name` (an int or a list; nothing: every dim), non-negative."""
        rank = len(self.shape(0))
        value = self.arg(name)
        if value is None or value == ():
            return tuple(range(rank))
        values = value if isinstance(value, (tuple, list)) else (value,)
        return tuple(v % max(rank, 1) for v in values)


def locate(node: Node, name: str) -> Location | None:
    """Where the schema's argument `name` stands in the node's arguments, if it is given."""
    for index, field in enumerate(schema(node.target) or ()):
        if field.name == name:
            if index < len(node.args):
                return ("args", index)
            break
    return ("kwargs", name) if name in node.kwargs else None


def fetch(node: Node, location: Location) -> Any:
    """The argument at a location."""
    value: Any = node.args if location[0] == "args" else node.kwargs
    for step in location[1:]:
        value = value[step]
    return value


def _tensors(location: Location, arg: Any) -> list[tuple[Location, str | None]]:
    if isinstance(arg, Ref):
        return [(location, arg.name)]
    if isinstance(arg, (tuple, list)):
        return [
            pair
            for index, item in enumerate(arg)
            if item is not None
            for pair in _tensors((*location, index), item)
        ]
    return [(location, None)]
