"""Convert an exported program into a Graph: sizes become expressions, bookkeeping disappears."""

from __future__ import annotations

import operator
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from plancc.dsl.errors import Bug
from plancc.ir.graph import Node, Param, Ref, Value
from plancc.models import ModelError
from plancc.passes.capture.gradients import DETACH, Liveness
from plancc.passes.capture.lines import model_line, module_path
from plancc.passes.capture.sizes import Sizes

_DROPPED = {
    "aten._assert_tensor_metadata.default",
    "aten._assert_scalar.default",
    "aten.sym_constrain_range.default",
    "aten.sym_constrain_range_for_size.default",
    "aten._functional_assert_async.msg",
    "aten._assert_async.msg",
    "profiler._record_function_enter.default",
    "profiler._record_function_enter_new.default",
    "profiler._record_function_exit._RecordFunction",
}
_ALIASES = {"aten.lift_fresh.default"}
_DETACHES = (DETACH, "aten.detach_.default")
_REGIONS = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4}
_PLACEMENT = ("device", "pin_memory", "layout", "memory_format")


class Converter:
    """The state of one conversion: values seen so far by fx node, nodes made."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.env: dict[fx.Node, Any] = {}
        self.nodes: list[Node] = []
        self.lines: dict[str, str] = {}
        self.storage: dict[str, int] = {}
        self.values: dict[str, Value] = {}
        self.grads = Liveness(self.storage)

    def run(self, graph: fx.Graph, root: torch.nn.Module) -> list[Any]:
        """Convert the nodes of `graph`; return its outputs as references."""
        outputs: list[Any] = []
        for node in graph.nodes:
            if node.op == "call_function":
                self.call(node, root)
            elif node.op == "output":
                outputs = [self.argument(arg) for arg in node.args[0]]
            elif node.op == "get_attr":
                self.env[node] = node.target
        return outputs

    def call(self, node: fx.Node, root: torch.nn.Module) -> None:
        """Convert one call; bookkeeping leaves only an entry in the environment."""
        target = target_name(node.target)
        if node.target is operator.getitem:
            self.env[node] = self.env[node.args[0]][node.args[1]]
        elif target in _DROPPED:
            return
        elif getattr(node.target, "__name__", target) in _REGIONS:
            self.inline(node, root)
        elif is_size(node.meta.get("val")):
            self.env[node] = self.sizes.of(node.meta["val"])
        elif target in _ALIASES:
            self.env[node] = self.argument(node.args[0])
        elif target in _DETACHES:
            self.detach(node, target)
        else:
            self.emit(node, target)

    def detach(self, node: fx.Node, target: str) -> None:
        """Keep a detach of what a parameter leads to; in place, it holds for every later use."""
        source = self.argument(node.args[0])
        self.env[node] = self.cut(source, node)
        if target != DETACH:
            self.env |= {key: self.env[node] for key, held in self.env.items() if held == source}

    def cut(self, source: Any, node: fx.Node) -> Any:
        """Return a detached reference to a value, or the same one if it carries no gradient."""
        if not isinstance(source, Ref) or source.name not in self.grads.live:
            return source
        old = self.values[source.name]
        value = replace(old, name=f"{node.name}_cut_{source.name}")
        self.values[value.name] = value
        self.storage[value.name] = self.storage[source.name]
        path, line = module_path(node), self.line(node)
        self.nodes.append(Node(value.name, DETACH, (source,), {}, (value,), path, line))
        return Ref(value.name)

    def inline(self, node: fx.Node, root: torch.nn.Module) -> None:
        """Inline a region: autocast is already in the nodes' dtypes, no_grad detaches what leaves."""
        skip = _REGIONS[node.target.__name__]
        body = getattr(root, node.args[skip].target)
        if node.target.__name__ == "wrap_with_autocast" and node.args[2]:
            raise self.refuse(node, "an enabled autocast region is not supported")
        places = [inner for inner in body.graph.nodes if inner.op == "placeholder"]
        for place, arg in zip(places, node.args[skip + 1 :], strict=True):
            self.env[place] = self.argument(arg)
        stops = node.target.__name__ == "wrap_with_set_grad_enabled" and not node.args[0]
        if not stops:
            self.env[node] = self.run(body.graph, body)
            return
        before = set(self.values)
        self.grads.enter()
        outputs = self.run(body.graph, body)
        self.grads.leave()
        made = body.graph.output_node().args[0]
        self.env[node] = [
            out if isinstance(out, Ref) and out.name in before else self.cut(out, inner)
            for out, inner in zip(outputs, made, strict=True)
        ]

    def emit(self, node: fx.Node, target: str) -> None:
        """Add a node to the graph."""
        if not isinstance(node.target, torch._ops.OpOverload):
            raise self.refuse(node, f"operator `{target}` is not supported")
        val = node.meta.get("val")
        many = isinstance(val, (tuple, list))
        tensors = list(val) if many else [val]
        if not tensors or not all(isinstance(item, Tensor) for item in tensors):
            raise self.refuse(node, f"operator `{target}` does not give tensors")
        names = [f"{node.name}_o{i}" for i in range(len(tensors))] if many else [node.name]
        outs = tuple(self.value(name, item) for name, item in zip(names, tensors, strict=True))
        kwargs = {
            key: self.argument(arg) for key, arg in node.kwargs.items() if key not in _PLACEMENT
        }
        args = tuple(self.argument(arg) for arg in node.args)
        made = Node(node.name, target, args, kwargs, outs, module_path(node), self.line(node))
        self.nodes.append(made)
        if not self.grads.add(made):
            raise self.refuse(
                node, f"`{target}` writes under no_grad into a value that gradients pass through"
            )
        refs = [Ref(name) for name in names]
        self.env[node] = refs if many else refs[0]

    def value(self, name: str, tensor: Tensor) -> Value:
        """Describe a fake tensor, and note its storage."""
        self.storage[name] = tensor.untyped_storage()._cdata
        shape = tuple(self.sizes.of(size) for size in tensor.shape)
        self.values[name] = Value(name, shape, tensor.dtype)
        return self.values[name]

    def argument(self, arg: Any) -> Any:
        """Convert a node's argument: Ref, size, constant or tuple."""
        if isinstance(arg, fx.Node):
            if arg in self.env:
                return self.env[arg]
            raise Bug(f"capture: `{arg}` is used before it is known")
        if isinstance(arg, (tuple, list)):
            return tuple(self.argument(item) for item in arg)
        if isinstance(arg, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            return self.sizes.of(arg)
        return arg

    def line(self, node: fx.Node) -> str:
        """Return "file.py:161" of the innermost frame in the model's own code."""
        trace = node.meta.get("stack_trace") or ""
        if trace not in self.lines:
            self.lines[trace] = model_line(trace)
        return self.lines[trace]

    def refuse(self, node: fx.Node, message: str) -> ModelError:
        """Make the error for a node that cannot be captured."""
        return ModelError(message, (f"module `{module_path(node)}`", f"at {self.line(node)}"))


@dataclass(frozen=True, slots=True)
class Converted:
    """A graph as it was traced: in-place operators and no-ops still in it."""

    nodes: list[Node]
    params: dict[str, Param]
    inputs: list[Value]
    outputs: dict[str, str]  # output name -> value name
    storage: Mapping[str, Hashable]  # value name -> what it shares memory with others by
    limits: dict[str, int]


def convert(
    program: ExportedProgram,
    sizes: Sizes,
    names: Mapping[str, tuple[str, ...]],
    tensors: Mapping[str, Tensor],
) -> Converted:
    """Convert an exported program.

    `names` maps every state-dict name to all names of the same tensor; `tensors` holds buffers.
    """
    converter = Converter(sizes)
    params: dict[str, Param] = {}
    inputs: list[Value] = []
    firsts: dict[str, str] = {}
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
        if spec.kind is InputKind.USER_INPUT:
            if isinstance(node.meta.get("val"), Tensor):
                inputs.append(converter.value(node.name, node.meta["val"]))
                converter.env[node] = Ref(node.name)
            continue
        fqns = names.get(spec.target, (spec.target,))
        name = firsts.setdefault(fqns[0], node.name)
        converter.env[node] = Ref(name)
        if name == node.name:
            value = converter.value(name, node.meta["val"])
            data = program.constants.get(spec.target, tensors.get(spec.target))
            params[name] = parameter(spec, value, fqns, data)
            if params[name].kind == "param":
                converter.grads.start(value)
    outputs = converter.run(program.graph, program.graph_module)
    tree = pytree.tree_unflatten(outputs, program.call_spec.out_spec)
    named = {name: leaf.name for name, leaf in flat_outputs(tree) if isinstance(leaf, Ref)}
    return Converted(converter.nodes, params, inputs, named, converter.storage, sizes.limits)


def parameter(spec: Any, value: Value, fqns: tuple[str, ...], data: Tensor | None) -> Param:
    """Make the Param of one lifted tensor of the export signature."""
    data = None if data is None else data.detach().cpu()
    if spec.kind is InputKind.PARAMETER:
        return Param(value, fqns, "param")
    if spec.kind is InputKind.BUFFER:
        return Param(value, fqns, "buffer", data, bool(spec.persistent))
    if spec.kind is InputKind.CONSTANT_TENSOR:
        return Param(value, fqns, "const", data, False)
    raise ModelError(f"input `{spec.target}` of kind {spec.kind} is not supported")


def target_name(target: Any) -> str:
    """Return "aten.linear.default" for an operator, a readable name for anything else."""
    return (
        str(target)
        if isinstance(target, torch._ops.OpOverload)
        else getattr(target, "__name__", str(target))
    )


def is_size(val: Any) -> bool:
    """Tell whether a node's value is a number known at capture, not a tensor."""
    return isinstance(val, (torch.SymInt, torch.SymBool, torch.SymFloat, int, float, bool))


def flat_outputs(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Give (name, leaf) of an output tree: keys of mappings, indices of sequences."""
    if isinstance(tree, Mapping):
        for key, item in tree.items():
            yield from flat_outputs(item, f"{prefix}_{key}" if prefix else str(key))
    elif isinstance(tree, (tuple, list)):
        for index, item in enumerate(tree):
            yield from flat_outputs(
                item, f"{prefix or 'output'}_{index}" if prefix or index else "output"
            )
    elif tree is not None:
        yield prefix or "output", tree
