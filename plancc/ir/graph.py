"""Graph: a model as a straight list of operator nodes, one device, symbolic batch and sequence.

Made by capture from a torch.fx graph, never mutated; passes return a new one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch

Size = int | sympy.Expr
"""A dim's size: an int, or an expression in the input symbols (B batch, T new tokens, P cached tokens)."""

BATCH = sympy.Symbol("B", integer=True, positive=True)
TOKENS = sympy.Symbol("T", integer=True, positive=True)
PAST = sympy.Symbol("P", integer=True, nonnegative=True)


@dataclass(frozen=True, slots=True)
class Ref:
    """A use of a value in a node's arguments."""

    name: str


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor that a node (or input, or parameter) gives: name, shape, dtype."""

    name: str
    shape: tuple[Size, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Node:
    """One operator call.

    `target` is "aten.linear.default" or "plancc.attention.default". Arguments hold Ref, Size, plain
    constants (float, bool, str, None, torch.dtype ...) and tuples of those; sizes are never Refs.
    A multi-output operator has several `outs`; the others have one.
    `role` names the operator that a derived node belongs to ("attention": a slice of its cache; "loss").
    `path` is the module ("model.layers.0.self_attn.q_proj", "" for the root), `line` "modeling_llama.py:161".
    """

    name: str
    target: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outs: tuple[Value, ...]
    path: str
    line: str
    role: str = ""

    def refs(self) -> Iterator[str]:
        """Names of the values used, in argument order, with repeats."""
        yield from _refs((self.args, tuple(self.kwargs.values())))


def _refs(arg: Any) -> Iterator[str]:
    if isinstance(arg, Ref):
        yield arg.name
    elif isinstance(arg, (tuple, list)):
        for item in arg:
            yield from _refs(item)


@dataclass(frozen=True, slots=True)
class Param:
    """A parameter, buffer or constant of the model.

    `fqns` holds every name it has in the state dict (tied weights have several). `data` holds the value of
    buffers and constants (they are not in every checkpoint); parameters have None.
    """

    value: Value
    fqns: tuple[str, ...]
    kind: str  # "param" | "buffer" | "const"
    data: torch.Tensor | None = None
    persistent: bool = True
    frozen: bool = False  # a parameter with requires_grad = False: training leaves it as it is


@dataclass(frozen=True, slots=True)
class Graph:
    """A model for one phase. Values are named uniquely; `nodes` is in execution order."""

    nodes: tuple[Node, ...]
    params: Mapping[str, Param]  # by value name
    inputs: tuple[Value, ...]
    outputs: Mapping[str, str]  # output name ("logits") -> value name
    modules: Mapping[str, str] = field(default_factory=dict)  # every module path -> class name
    phase: str = "forward"
    limits: Mapping[str, int] = field(default_factory=dict)  # largest value of a size symbol: "T"
    results: Mapping[str, str] = field(
        default_factory=dict
    )  # of a training graph: the model's outputs

    def values(self) -> Iterator[Value]:
        """Every value: inputs, parameters, then node outputs in order."""
        yield from self.inputs
        for param in self.params.values():
            yield param.value
        for node in self.nodes:
            yield from node.outs
