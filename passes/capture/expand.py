"""Expand stamps: a copy of the recorded layer stands where each of the others was skipped."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

from plancc.ir.graph import Node, Param
from plancc.passes.capture.convert import Converted
from plancc.passes.capture.functionalize import written_argument
from plancc.passes.capture.simplify import rename
from plancc.passes.capture.stamp import Group, Refused

MARK, STAMP = "plancc.mark.default", "plancc.stamp.default"


class Expander:
    """One pass over the nodes; `same` maps marks and stamped outputs to what they stand for."""

    def __init__(self, traced: Converted, groups: Sequence[Group]) -> None:
        self.groups = groups
        self.params = dict(traced.params)
        self.by_fqn = {fqn: name for name, param in self.params.items() for fqn in param.fqns}
        self.storage: dict[str, Hashable] = dict(traced.storage)
        self.same: dict[str, str] = {}
        self.nodes: list[Node] = []
        self.ins: list[dict[int, str]] = [{} for _ in groups]
        self.outs: list[dict[int, str]] = [{} for _ in groups]
        self.bodies = [body(traced.nodes, number) for number in range(len(groups))]

    def add(self, node: Node) -> None:
        """Take the next node."""
        if node.target not in (MARK, STAMP):
            self.nodes.append(self.renamed(node, self.same))
        elif node.target == MARK:
            source, number, slot, out = node.args
            if out:
                self.outs[number][slot] = source.name
            else:
                self.ins[number][slot] = node.outs[0].name
            self.same[node.outs[0].name] = self.same.get(source.name, source.name)
        else:
            self.copy(node)

    def copy(self, stamp: Node) -> None:
        """Add a copy of a recorded layer."""
        inputs, number, position = stamp.args
        group = self.groups[number]
        old, new = group.paths[0], group.paths[position]
        names = dict(self.same)
        for slot, marked in self.ins[number].items():
            names[marked] = self.same.get(inputs[slot].name, inputs[slot].name)
        for node in self.bodies[number]:
            for ref in node.refs():
                if ref not in names and ref in self.params:
                    names[ref] = self.parameter(ref, old, new)
            outs = []
            for value in node.outs:
                names[value.name] = f"{value.name}_l{position}"
                self.storage[names[value.name]] = (self.storage[value.name], position)
                outs.append(replace(value, name=names[value.name]))
            made = self.renamed(node, names)
            path = new + node.path[len(old) :] if within(node.path, old) else node.path
            name = f"{node.name}_l{position}"
            self.nodes.append(replace(made, name=name, outs=tuple(outs), path=path))
        for slot, value in enumerate(stamp.outs):
            source = self.outs[number][slot]
            self.same[value.name] = names.get(source, source)

    def parameter(self, name: str, old: str, new: str) -> str:
        """Return the parameter that takes the place of `name` in another layer."""
        param = self.params[name]
        for fqn in param.fqns:
            if within(fqn, old):
                other = self.by_fqn.get(new + fqn[len(old) :])
                if other is not None:
                    return other
                if param.kind != "const":
                    raise Refused(f"a layer has no `{fqn}`")
                return self.constant(param, new + fqn[len(old) :])
        return name

    def constant(self, param: Param, fqn: str) -> str:
        """Add another layer's copy of a constant that was met in the recorded layer."""
        name = f"{param.value.name}_{len(self.params)}"
        self.params[name] = replace(param, value=replace(param.value, name=name), fqns=(fqn,))
        self.by_fqn[fqn] = name
        return name

    def check_leaks(self, nodes: Sequence[Node], outputs: Mapping[str, str]) -> None:
        """Refuse if a value from inside a recorded layer is used outside but not returned by it."""
        inside = {node.name for body in self.bodies for node in body}
        made = {value.name for body in self.bodies for node in body for value in node.outs}
        users = [node for node in nodes if node.name not in inside and node.target != MARK]
        if any(made.intersection(node.refs()) for node in users) or made & set(outputs.values()):
            raise Refused("a layer gives away a value that it does not return")

    def renamed(self, node: Node, names: Mapping[str, str]) -> Node:
        """Return a node with its references renamed."""
        kwargs = {key: rename(arg, names) for key, arg in node.kwargs.items()}
        return replace(node, args=rename(node.args, names), kwargs=kwargs)


def body(nodes: Sequence[Node], number: int) -> list[Node]:
    """Return the nodes between the marks of a group's first layer."""
    marks = [
        place for place, node in enumerate(nodes) if node.target == MARK and node.args[1] == number
    ]
    inside = nodes[marks[0] : marks[-1] + 1]
    if any(node.target == STAMP for node in inside):
        raise Refused("a layer has a stamped layer inside")
    return [node for node in inside if node.target != MARK]


def within(path: str, layer: str) -> bool:
    """Tell whether a path is a layer's or below it."""
    return path == layer or path.startswith(f"{layer}.")


def expand(traced: Converted, groups: Sequence[Group]) -> Converted:
    """Return a graph without marks and stamps; raise Refused where that is not safe."""
    nodes = traced.nodes
    check_writes(traced)
    work = Expander(traced, groups)
    for node in nodes:
        work.add(node)
    outputs = {name: work.same.get(value, value) for name, value in traced.outputs.items()}
    work.check_leaks(nodes, traced.outputs)
    return replace(
        traced, nodes=work.nodes, params=work.params, outputs=outputs, storage=work.storage
    )


def check_writes(traced: Converted) -> None:
    """Refuse if an in-place operator writes what goes into or comes out of a layer."""
    shared = {
        traced.storage[value.name]
        for node in traced.nodes
        if node.target in (MARK, STAMP)
        for value in node.outs
    }
    for node in traced.nodes:
        if written_argument(node.target) and traced.storage[node.args[0].name] in shared:
            raise Refused("a layer shares memory with another")
