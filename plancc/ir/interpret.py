"""One-device evaluation of a Graph: the oracle that lowered programs are compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import sympy
from torch import Tensor

from plancc.dsl.errors import Bug
from plancc.ir.graph import Graph, Node, Param, Ref
from plancc.ops import resolve


def run_graph(
    graph: Graph,
    params: Mapping[str, Tensor],
    inputs: Mapping[str, Tensor],
    *,
    record: Callable[[str, Tensor], None] | None = None,
) -> dict[str, Tensor]:
    """Evaluate `graph` and return its outputs by name.

    `params` holds tensors by any fully qualified name; a buffer or constant that it lacks takes its
    stored data. `inputs` go by input name. `record` is called with every value, in order.
    """
    symbols = bind_symbols(graph, inputs)
    env: dict[str, Tensor] = {}
    for value in graph.inputs:
        env[value.name] = inputs[value.name]
    for name, param in graph.params.items():
        env[name] = parameter(param, params)
    sizes: dict[sympy.Expr, int] = {}
    for node in graph.nodes:
        results = run_node(node, env, symbols, sizes)
        for value, result in zip(node.outs, results, strict=True):
            env[value.name] = result
            if record is not None:
                record(value.name, result)
    return {name: env[value] for name, value in graph.outputs.items()}


def bind_symbols(graph: Graph, inputs: Mapping[str, Tensor]) -> dict[sympy.Symbol, int]:
    """Return the value of each size symbol, from the shapes of the inputs; Bug if they disagree."""
    symbols: dict[sympy.Symbol, int] = {}
    for value in graph.inputs:
        for size, actual in zip(value.shape, inputs[value.name].shape, strict=True):
            if isinstance(size, sympy.Symbol):
                if symbols.setdefault(size, actual) != actual:
                    raise Bug(f"input `{value.name}`: {size} is both {symbols[size]} and {actual}")
            elif isinstance(size, int) and size != actual:
                raise Bug(f"input `{value.name}` has shape {tuple(inputs[value.name].shape)}")
    return symbols


def parameter(param: Param, params: Mapping[str, Tensor]) -> Tensor:
    """Return the tensor of `param` by any of its names, or its stored data, or raise Bug."""
    for fqn in param.fqns:
        if fqn in params:
            return params[fqn]
    if param.data is None:
        raise Bug(f"no value for parameter `{param.fqns[0]}`")
    return param.data


def run_node(
    node: Node,
    env: Mapping[str, Tensor],
    symbols: Mapping[sympy.Symbol, int],
    sizes: dict[sympy.Expr, int] | None = None,
) -> tuple[Tensor, ...]:
    """Evaluate one node; `sizes` caches evaluated size expressions."""
    known = {} if sizes is None else sizes

    def concrete(arg: Any) -> Any:
        if isinstance(arg, Ref):
            return env[arg.name]
        if isinstance(arg, (tuple, list)):
            return [concrete(item) for item in arg]
        if isinstance(arg, sympy.Expr):
            if arg not in known:
                known[arg] = int(arg.subs(symbols))
            return known[arg]
        return arg

    kwargs = {key: concrete(arg) for key, arg in node.kwargs.items()}
    result = resolve(node.target)(*(concrete(arg) for arg in node.args), **kwargs)
    return (result,) if isinstance(result, Tensor) else tuple(result)
