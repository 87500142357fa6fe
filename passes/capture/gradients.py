"""Where gradients stop: `detach` and regions without gradients, as nodes of the captured graph.

A value is live if a parameter leads to it. A live value that leaves a `torch.no_grad()` region gets
an `aten.detach.default` node; detach nodes of what is not live are dropped by the converter.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from plancc.ir.graph import Node, Value
from plancc.passes.capture.functionalize import written_argument

DETACH = "aten.detach.default"


class Liveness:
    """Which values carry a gradient to a parameter, over nodes in order; `storage` as converted."""

    def __init__(self, storage: Mapping[str, Hashable]) -> None:
        self.storage = storage
        self.live: set[str] = set()
        self.outside: set[Hashable] | None = None  # storages made before the region without grad

    def start(self, value: Value) -> None:
        """Take a parameter."""
        if differentiable(value):
            self.live.add(value.name)

    def add(self, node: Node) -> bool:
        """Take the next node; False if it writes outside of a region without grad what is live."""
        fed = any(name in self.live for name in node.refs()) or node.target.startswith(_STAMPS)
        if node.target == DETACH:
            return True
        written = written_argument(node.target)
        if fed:
            self.live.update(value.name for value in node.outs if differentiable(value))
        if not (fed and written):
            return True
        home = self.storage.get(next(node.refs()))
        self.live.update(name for name, own in self.storage.items() if own == home)
        return self.outside is None or home not in self.outside

    def enter(self) -> None:
        """Begin a region without gradients."""
        self.outside = set(self.storage.values())

    def leave(self) -> None:
        """End a region without gradients."""
        self.outside = None


_STAMPS = "plancc.stamp."


def differentiable(value: Value) -> bool:
    """Tell whether a value's dtype can carry a gradient."""
    return value.dtype.is_floating_point or value.dtype.is_complex
