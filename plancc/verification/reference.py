"""The one-device model that programs are compared with: parameters, inputs, and recorded values."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from plancc.ir.graph import BATCH, TOKENS, Graph, Value
from plancc.ir.interpret import run_graph


@dataclass
class Reference:
    """A graph with real parameters on one device, all in `dtype`."""

    graph: Graph
    params: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    dtype: torch.dtype
    recorded: dict[str, Tensor] = field(default_factory=dict)

    def run(self, inputs: Mapping[str, Tensor], *, record: bool = False) -> dict[str, Tensor]:
        """Outputs by name for whole inputs; with `record`, every value is kept."""
        self.recorded.clear()
        keep = self.recorded.__setitem__ if record else None
        with torch.no_grad():
            return run_graph(self.graph, self.params, inputs, record=keep)


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Floating tensors in `dtype`, others as they are."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def random_params(graph: Graph, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    """Parameters by every name, drawn per name from a seed: matrices N(0, 1/fan_in), norms near one."""
    out: dict[str, Tensor] = {}
    for param in graph.params.values():
        if param.kind != "param":
            continue
        shape = [int(s) for s in param.value.shape]
        tensor = draw(param.fqns[0], shape, seed)
        for fqn in param.fqns:
            out[fqn] = cast(tensor, dtype) if param.value.dtype.is_floating_point else tensor
    return out


def draw(name: str, shape: Sequence[int], seed: int) -> Tensor:
    """A float64 tensor that depends on name, shape and seed only."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    if len(shape) < 2:
        return noise * 0.1 + (1.0 if name.endswith("weight") else 0.0)
    return noise * shape[-1] ** -0.5


def buffers_of(graph: Graph, dtype: torch.dtype) -> dict[str, Tensor]:
    """Buffers and constants by value name."""
    return {
        name: cast(param.data, dtype)
        for name, param in graph.params.items()
        if param.data is not None
    }


def in_dtype(graph: Graph, dtype: torch.dtype) -> Graph:
    """The graph with every floating type replaced by `dtype`, casts included."""

    def fix(arg: Any) -> Any:
        if isinstance(arg, torch.dtype):
            return dtype if arg.is_floating_point else arg
        return tuple(fix(a) for a in arg) if isinstance(arg, (tuple, list)) else arg

    nodes = tuple(
        replace(n, args=fix(n.args), kwargs={k: fix(v) for k, v in n.kwargs.items()})
        for n in graph.nodes
    )
    return replace(graph, nodes=nodes)


def with_buffers(graph: Graph, buffers: Mapping[str, Tensor]) -> Graph:
    """The graph with other buffer data."""
    params = {
        name: replace(p, data=buffers[name]) if name in buffers else p
        for name, p in graph.params.items()
    }
    return replace(graph, params=params)


def random_inputs(
    graph: Graph, batch: int, tokens: int, dtype: torch.dtype, seed: int = 0
) -> dict[str, Tensor]:
    """Inputs by name: ids below the vocabulary, masks with one short sequence, images of noise."""
    generator = torch.Generator().manual_seed(seed)
    limit = vocabulary(graph)
    out = {}
    for value in graph.inputs:
        shape = [concrete(s, batch, tokens) for s in value.shape]
        if value.dtype.is_floating_point:
            out[value.name] = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        elif "mask" in value.name:
            mask = torch.ones(shape, dtype=value.dtype)
            if shape[1] > 2:
                mask[-1, shape[1] - 2 :] = 0
            out[value.name] = mask
        elif "type" in value.name:
            out[value.name] = torch.zeros(shape, dtype=value.dtype)
        else:
            out[value.name] = torch.randint(limit, shape, generator=generator, dtype=value.dtype)
    return out


def concrete(size: object, batch: int, tokens: int) -> int:
    """A size with numbers for B and T."""
    if isinstance(size, int):
        return size
    return int(size.subs({BATCH: batch, TOKENS: tokens}))  # type: ignore[attr-defined]


def vocabulary(graph: Graph) -> int:
    """Rows of the smallest embedding table that an input indexes."""
    inputs = {v.name for v in graph.inputs}
    values: dict[str, Value] = {v.name: v for v in graph.values()}
    rows = [
        int(values[node.args[0].name].shape[0])
        for node in graph.nodes
        if node.target == "aten.embedding.default" and node.args[1].name in inputs
    ]
    return min(rows, default=2)
