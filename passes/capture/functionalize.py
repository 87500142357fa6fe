"""Make a graph functional: in-place operators become new values, later reads of aliases see them.

Each alias remembers the views that lead to it from its base. A write makes a new base through the
views' inverses; an alias that is read afterwards is viewed again. What cannot be undone is refused.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from plancc.ir.graph import Node, Param, Ref, Value
from plancc.models import ModelError
from plancc.ops import resolve
from plancc.passes.capture.simplify import argument, permutation, positive

_INVERTED_BY_SHAPE = {
    "aten.view.default",
    "aten.reshape.default",
    "aten._unsafe_view.default",
    "aten.unsqueeze.default",
    "aten.squeeze.default",
    "aten.squeeze.dim",
    "aten.squeeze.dims",
    "aten.flatten.using_ints",
    "aten.unflatten.int",
    "aten.view_as.default",
    "aten.reshape_as.default",
}
_TRANSPOSING = {
    "aten.t.default",
    "aten.transpose.int",
    "aten.permute.default",
    "aten.numpy_T.default",
    "aten.mT.default",
    "aten.swapaxes.default",
    "aten.movedim.int",
}
_ARITHMETIC = ("aten.add.", "aten.sub.", "aten.mul.", "aten.div.", "aten.pow.", "aten.addcmul.")
_SPLITTING = {
    "aten.split.Tensor",
    "aten.split.sizes",
    "aten.split_with_sizes.default",
    "aten.chunk.default",
}
_IDENTITY = {
    "aten.alias.default",
    "aten.contiguous.default",
    "aten.to.dtype",
    "aten.to.dtype_layout",
    "aten.to.other",
    "aten.to.device",
    "aten.dropout.default",
    "aten.expand.default",
}


@dataclass(slots=True)
class Base:
    """A storage: the value that holds it now, and how often it was written."""

    origin: Value
    current: str
    version: int = 0
    fixed: str = ""  # why it cannot be written, "" if it can


@dataclass(slots=True)
class Alias:
    """A name for a part of a base: the view nodes that lead to it, and its state."""

    base: Base
    views: tuple[tuple[Node, int], ...]
    current: str
    version: int


class Functionalizer:
    """One pass over the nodes in order; `storage` tells which values share memory."""

    def __init__(self, storage: Mapping[str, Hashable], fixed: Sequence[tuple[Value, str]]) -> None:
        self.storage = storage
        self.aliases: dict[str, Alias] = {}
        self.values: dict[str, Value] = {}
        self.nodes: list[Node] = []
        self.count = 0
        for value, why in fixed:
            self.start(value, why)

    def start(self, value: Value, why: str = "") -> None:
        """Begin a storage of its own for a value."""
        self.values[value.name] = value
        self.aliases[value.name] = Alias(Base(value, value.name, 0, why), (), value.name, 0)

    def add(self, node: Node) -> None:
        """Take the next node."""
        written = written_argument(node.target)
        if written is None:
            self.read_only(node)
        else:
            self.write(node, written)

    def read_only(self, node: Node) -> None:
        """Add a node that writes nothing; its outputs may be views of its first argument."""
        now = self.renamed(node)
        self.nodes.append(now)
        source = node.args[0] if node.args else None
        for index, value in enumerate(node.outs):
            home = self.storage.get(value.name)
            if (
                isinstance(source, Ref)
                and home is not None
                and home == self.storage.get(source.name)
            ):
                self.values[value.name] = value
                parent = self.aliases[source.name]
                views = (*parent.views, (node, index))
                self.aliases[value.name] = Alias(
                    parent.base, views, value.name, parent.base.version
                )
            else:
                self.start(value)

    def write(self, node: Node, written: str) -> None:
        """Turn an in-place node into a new value, and make that the content of the storage."""
        target = node.args[0]
        if written != "self" or not isinstance(target, Ref):
            raise refuse(node, f"in-place operator `{node.target}` is not supported")
        alias = self.aliases[target.name]
        if alias.base.fixed:
            raise refuse(node, f"in-place operator `{node.target}` writes {alias.base.fixed}")
        new = self.functional(self.renamed(node), self.values[target.name])
        for depth in range(len(alias.views) - 1, -1, -1):
            view, index = alias.views[depth]
            new = self.undo(node, view, index, alias, depth, new)
        alias.base.version += 1
        alias.base.current = new
        if not alias.views:
            alias.current, alias.version = new, alias.base.version
        for value in node.outs:
            self.aliases[value.name] = alias
            self.values[value.name] = value

    def read(self, name: str) -> str:
        """Return the value that holds `name` now, viewing its base again if it was written."""
        alias = self.aliases[name]
        if alias.version != alias.base.version:
            current = alias.base.current
            for view, index in alias.views:
                current = self.again(view, index, current)
            alias.current, alias.version = current, alias.base.version
        return alias.current

    def again(self, view: Node, index: int, source: str) -> str:
        """Repeat a view on another source; return its value."""
        self.count += 1
        outs = tuple(replace(out, name=f"{out.name}_v{self.count}") for out in view.outs)
        args = (Ref(source), *self.arguments(view.args[1:]))
        self.values.update((out.name, out) for out in outs)
        self.nodes.append(replace(view, name=f"{view.name}_v{self.count}", args=args, outs=outs))
        return outs[index].name

    def renamed(self, node: Node) -> Node:
        """Return the node reading current values."""
        kwargs = {key: self.arguments(arg) for key, arg in node.kwargs.items()}
        return replace(node, args=self.arguments(node.args), kwargs=kwargs)

    def arguments(self, arg: Any) -> Any:
        """Replace references by the current values, at any depth."""
        if isinstance(arg, Ref):
            return Ref(self.read(arg.name))
        return tuple(self.arguments(item) for item in arg) if isinstance(arg, tuple) else arg

    def emit(self, like: Node, target: str, args: tuple[Any, ...], out: Value) -> str:
        """Add a node made for `like`, with a fresh name; return its value."""
        self.count += 1
        name = f"{like.name}_w{self.count}"
        value = Value(name, out.shape, out.dtype)
        self.values[name] = value
        self.nodes.append(Node(name, target, args, {}, (value,), like.path, like.line))
        return name

    def functional(self, node: Node, old: Value) -> str:
        """Emit the functional form of an in-place node; return the new content of its target."""
        target, args = node.target, node.args
        if target in ("aten.copy_.default", "aten.fill_.Tensor"):
            wide = replace(old, dtype=self.values[node.args[1].name].dtype)
            shaped = self.emit(node, "aten.expand.default", (args[1], old.shape), wide)
            return self.emit(node, "aten.to.dtype", (Ref(shaped), old.dtype), old)
        if target == "aten.zero_.default":
            return self.emit(node, "aten.zeros_like.default", args[:1], old)
        if target == "aten.fill_.Scalar":
            return self.emit(node, "aten.full_like.default", args[:2], old)
        base, _, overload = target.partition("_.")
        plain = f"{base}.{overload}"
        try:
            resolve(plain)
        except KeyError:
            raise refuse(node, f"in-place operator `{target}` is not supported") from None
        return self.computed(node, plain, old)

    def computed(self, node: Node, plain: str, old: Value) -> str:
        """Emit the functional operator, cast to what it is written into."""
        others = [self.values[arg.name].dtype for arg in node.args[1:] if isinstance(arg, Ref)]
        dtype = old.dtype
        if plain.startswith(_ARITHMETIC):
            for other in others:
                dtype = torch.promote_types(dtype, other)
        name = self.emit(node, plain, node.args, replace(old, dtype=dtype))
        self.nodes[-1] = replace(self.nodes[-1], kwargs=node.kwargs)
        if dtype == old.dtype:
            return name
        return self.emit(node, "aten.to.dtype", (Ref(name), old.dtype), old)

    def undo(self, node: Node, view: Node, index: int, alias: Alias, depth: int, new: str) -> str:
        """Put `new` back where view number `depth` of an alias took it from; return the whole."""
        source, target = self.values[view.args[0].name], view.target
        if target in _IDENTITY and view.outs[0].shape == source.shape:
            return new
        if target in _INVERTED_BY_SHAPE:
            return self.emit(node, "aten.reshape.default", (Ref(new), source.shape), source)
        if target in _TRANSPOSING:
            order = permutation(view, source)
            inverse = tuple(order.index(dim) for dim in range(len(order)))
            return self.emit(node, "aten.permute.default", (Ref(new), inverse), source)
        scatter, bounds = self.scatter(node, view, index, len(source.shape))
        whole = alias.base.current
        for earlier, which in alias.views[:depth]:
            whole = self.again(earlier, which, whole)
        return self.emit(node, scatter, (Ref(whole), Ref(new), *bounds), source)

    def scatter(self, node: Node, view: Node, index: int, rank: int) -> tuple[str, tuple[Any, ...]]:
        """Return the scatter that undoes a partial view, and its arguments after the source."""
        if view.target == "aten.slice.Tensor":
            return "aten.slice_scatter.default", self.arguments(view.args[1:])
        if view.target == "aten.select.int":
            return "aten.select_scatter.default", view.args[1:3]
        if view.target == "aten.unbind.int":
            return "aten.select_scatter.default", (argument(view, 1, 0, "dim"), index)
        if view.target in _SPLITTING:
            dim = positive(argument(view, 2, 0, "dim"), rank)
            first = sum(out.shape[dim] for out in view.outs[:index])
            return "aten.slice_scatter.default", (dim, first, first + view.outs[index].shape[dim])
        raise refuse(
            node, f"in-place operator `{node.target}` through `{view.target}` is not supported"
        )


def functionalize(
    nodes: Sequence[Node],
    params: Mapping[str, Param],
    inputs: Sequence[Value],
    outputs: Mapping[str, str],
    storage: Mapping[str, Hashable],
) -> tuple[list[Node], dict[str, str]]:
    """Return nodes without in-place operators and the renamed outputs, or raise ModelError."""
    if all(written_argument(node.target) is None for node in nodes):
        return list(nodes), dict(outputs)
    fixed = [(value, f"to the input `{value.name}`") for value in inputs]
    fixed += [
        (
            param.value,
            f"to the {'parameter' if param.kind == 'param' else 'buffer'} `{param.fqns[0]}`",
        )
        for param in params.values()
    ]
    work = Functionalizer(storage, fixed)
    for node in nodes:
        work.add(node)
    renamed = {name: work.read(value) for name, value in outputs.items()}
    return work.nodes, renamed


@cache
def written_argument(target: str) -> str | None:
    """Return the name of the argument that an operator writes, or None."""
    if target.startswith("plancc."):
        return None
    for arg in resolve(target)._schema.arguments:
        if arg.alias_info is not None and arg.alias_info.is_write:
            return str(arg.name)
    return None


def refuse(node: Node, message: str) -> ModelError:
    """Make the error for a node that cannot be made functional."""
    return ModelError(message, (f"module `{node.path}`", f"at {node.line}"))
