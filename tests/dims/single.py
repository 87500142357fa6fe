"""Graphs of a few operator calls, made by hand: the tests of single rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from oracle import Run, check_node, record
from torch import Tensor

from plancc.ir.graph import Graph, Node, Param, Ref, Value
from plancc.ops import resolve
from plancc.passes.name_dims import name_dims


class Calls:
    """Records operator calls on real tensors as a Graph; tensors given are its parameters."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.params: dict[str, Param] = {}
        self.env: dict[str, Tensor] = {}

    def tensor(self, data: Tensor, kind: str = "param") -> Ref:
        """Make a parameter (or constant) of the graph."""
        name = f"p{len(self.params)}"
        self.params[name] = Param(
            Value(name, tuple(data.shape), data.dtype),
            (name,),
            kind,
            data if kind != "param" else None,
        )
        self.env[name] = data
        return Ref(name)

    def __call__(self, target: str, *args: Any, **kwargs: Any) -> Any:
        """Call an operator; returns a Ref, or a tuple of them."""
        args, kwargs = self._lifted(args), {key: self._lifted(arg) for key, arg in kwargs.items()}
        result = resolve(target)(*self._real(args), **{k: self._real(v) for k, v in kwargs.items()})
        results = [result] if isinstance(result, Tensor) else list(result)
        name = f"n{len(self.nodes)}"
        outs = tuple(
            Value(f"{name}_{i}", tuple(out.shape), out.dtype) for i, out in enumerate(results)
        )
        self.env |= {value.name: out for value, out in zip(outs, results, strict=True)}
        self.nodes.append(Node(name, target, args, kwargs, outs, "block", "model.py:1"))
        refs = tuple(Ref(value.name) for value in outs)
        return refs[0] if isinstance(result, Tensor) else refs

    def _lifted(self, arg: Any) -> Any:
        if isinstance(arg, Tensor):
            return self.tensor(arg)
        return tuple(map(self._lifted, arg)) if isinstance(arg, (tuple, list)) else arg

    def _real(self, arg: Any) -> Any:
        if isinstance(arg, Ref):
            return self.env[arg.name]
        return [self._real(item) for item in arg] if isinstance(arg, (tuple, list)) else arg

    def graph(self) -> Graph:
        """The calls so far as a graph; the last value is its output."""
        last = self.nodes[-1].outs[0].name
        return Graph(tuple(self.nodes), self.params, (), {"out": last})

    def run(self) -> Run:
        """The named graph with the values of one run."""
        params: Mapping[str, Tensor] = {n: self.env[n] for n in self.params}
        with torch.no_grad():
            return record(name_dims(self.graph()), {}, params)

    def check(self) -> int:
        """Check all claims of all rows; returns how many there were."""
        run = self.run()
        count = 0
        for node in self.nodes:
            checks, wrong = check_node(run, node)
            assert not wrong, wrong
            count += checks
        return count


def show(tree: Any) -> str:
    """A tree as text: sizes, products in brackets, concatenations with `+`."""
    if hasattr(tree, "id"):
        return str(tree.size)
    joined = (" + " if type(tree).__name__ == "Sum" else " ").join(map(show, tree.kids))
    return f"({joined})"
