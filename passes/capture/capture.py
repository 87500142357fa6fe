"""The capture pass: choose example inputs, trace, convert, normalise."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from plancc.ir.graph import Graph, Param, Ref, Value
from plancc.models import ModelError
from plancc.passes.capture.convert import convert, flat_outputs
from plancc.passes.capture.export import trace
from plancc.passes.capture.sizes import Sizes

BATCH_EXAMPLE, TOKENS_EXAMPLE = 3, 13
TOKEN_NAMES = ("input_ids", "ids", "tokens", "idx", "x")


def capture(
    model: nn.Module, example: Mapping[str, Tensor] | None = None, *, inputs: tuple[str, ...] | None = None
) -> Graph:
    """Capture `model` for batch B and T tokens; raise ModelError where it cannot be.

    `example` gives example inputs by argument name (default: token ids, and an attention mask for
    encoders); `inputs` keeps only some of them.
    """
    chosen = dict(example) if example is not None else example_inputs(model)
    if inputs is not None:
        chosen = {name: chosen[name] for name in inputs}
    names, tensors = state_names(model)
    program = trace(model, chosen, {})
    sizes = Sizes()
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in chosen:
            sizes.bind(node.meta["val"])
    nodes, params, values, outputs = convert(program, sizes, names, tensors)
    tree = pytree.tree_unflatten(outputs, program.call_spec.out_spec)
    named = {name: leaf.name for name, leaf in flat_outputs(tree) if isinstance(leaf, Ref)}
    modules = {path: type(part).__name__ for path, part in model.named_modules()}
    return Graph(tuple(nodes), params, tuple(values), named, modules)


def example_inputs(model: nn.Module) -> dict[str, Tensor]:
    """Return token ids under the name of the forward's first argument."""
    arguments = inspect.signature(model.forward).parameters
    first = next((name for name in TOKEN_NAMES if name in arguments), None) or next(iter(arguments), None)
    if first is None:
        raise ModelError(f"the forward of `{type(model).__name__}` takes no argument")
    return {first: torch.zeros(BATCH_EXAMPLE, TOKENS_EXAMPLE, dtype=torch.long)}


def state_names(model: nn.Module) -> tuple[dict[str, tuple[str, ...]], dict[str, Tensor]]:
    """Return all names of the tensor behind each name, and the buffers by name."""
    groups: dict[int, list[str]] = {}
    for tensors in (model.named_parameters, model.named_buffers):
        for name, tensor in tensors(remove_duplicate=False):
            groups.setdefault(id(tensor), []).append(name)
    names = {name: tuple(group) for group in groups.values() for name in group}
    return names, dict(model.named_buffers(remove_duplicate=False))
