"""Derive prefill and decode from the forward graph of a causal language model: a KV cache nobody wrote.

Attention is the one place where positions may meet: keys and values go through the cache there. Values
that depend on positions only (rope tables, masks) are computed for positions P..P+T.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import sympy
import torch

from plancc.ir.graph import BATCH, PAST, TOKENS, Graph, Node, Ref, Value
from plancc.ir.shape import Binding, Leaf, NamedGraph, leaves

ATTENTION = "plancc.attention.default"


@dataclass(frozen=True)
class NotCausal(Exception):
    """A graph has no prefill and decode phases; `reason` says which node stands in the way."""

    reason: str
    node: Node | None = None

    def __str__(self) -> str:
        if self.node is None:
            return self.reason
        where = ", ".join(x for x in (self.node.path or "(root)", self.node.line) if x)
        return f"{self.reason}: {self.node.target} at {where}"


def derive_phase(named: NamedGraph, phase: str) -> Graph:
    """The graph of `phase` ("prefill" or "decode"): ids [B, T] -> logits and next_token [B].

    Raises NotCausal for a model whose positions meet outside causal self-attention.
    """
    past = sympy.Integer(0) if phase == "prefill" else PAST
    work = _Derivation(named, past)
    work.check()
    for node in named.graph.nodes:
        work.node(node)
    logits = named.graph.outputs.get("logits") or next(iter(named.graph.outputs.values()))
    outputs = dict(named.graph.outputs)
    outputs["next_token"] = work.sample(logits)
    return replace(named.graph, nodes=tuple(work.nodes), outputs=outputs, phase=phase)


@dataclass
class _Derivation:
    named: NamedGraph
    past: sympy.Expr
    nodes: list[Node] = field(default_factory=list)
    done: dict[tuple[str, frozenset[int] | None], str] = field(default_factory=dict)
    slots: int = 0

    def __post_init__(self) -> None:
        graph = self.named.graph
        live = {value.name for value in graph.inputs}
        self.positional: set[str] = set()
        for node in graph.nodes:
            if any(ref in live for ref in node.refs()):
                live.update(out.name for out in node.outs)
            else:
                self.positional.update(out.name for out in node.outs)
        self.maker = {out.name: node for node in graph.nodes for out in node.outs}
        self.values: dict[str, Value] = {v.name: v for v in graph.values()}
        self.total = self.past + TOKENS

    def check(self) -> None:
        """Refuse graphs that are not a causal language model over ids [B, T]."""
        inputs = self.named.graph.inputs
        if len(inputs) != 1 or inputs[0].shape != (BATCH, TOKENS):
            names = ", ".join(v.name for v in inputs)
            raise NotCausal(f"the model takes ({names}) instead of token ids alone")
        found = [n for n in self.named.graph.nodes if n.target == ATTENTION]
        if not found:
            raise NotCausal("the model has no attention")
        for node in found:
            if not node.kwargs.get("causal") and len(node.args) < 4:
                raise NotCausal("attention is not causal", node)

    def node(self, node: Node) -> None:
        """Copy one node into the phase: positional ones wait until they are used."""
        if node.outs[0].name in self.positional:
            return
        binding = self.named.bindings[node.name]
        if node.target != ATTENTION:
            self.check_mixing(node, binding)
        args, kwargs = self.arguments(node, binding)
        if node.target == ATTENTION:
            args = self.cache(node, args)
        self.nodes.append(replace(node, args=args, kwargs=kwargs))

    def check_mixing(self, node: Node, binding: Binding) -> None:
        """No operator but attention may look across positions."""
        kept = {label for out in binding.outs for dim in out.labels for label in dim}
        for operand in binding.operands:
            if operand.value in self.positional:
                continue
            for leaf, label in self.occurrences(operand):
                bad = label in binding.whole or label not in kept
                if leaf.size == TOKENS and bad and node.target != "aten.select.int":
                    raise NotCausal("positions meet outside attention", node)

    def occurrences(self, operand) -> list[tuple[Leaf, str]]:
        shapes = self.named.shapes[operand.value]
        return [
            pair
            for tree, labels in zip(shapes, operand.labels, strict=True)
            for pair in zip(leaves(tree), labels, strict=True)
        ]

    def arguments(self, node: Node, binding: Binding) -> tuple[tuple, Mapping[str, Any]]:
        """A data node's arguments with positional operands cut to the new positions."""
        change: dict[tuple, str] = {}
        keys = self.key_labels(node, binding)
        for operand in binding.operands:
            if operand.value in self.positional:
                dims = frozenset(
                    d
                    for d, labels in enumerate(operand.labels)
                    if self.values[operand.value].shape[d] == TOKENS and not keys & set(labels)
                )
                change[operand.arg] = self.positions(operand.value, dims)
        args = _replaced(node.args, ("args",), change)
        kwargs = {k: _replaced(v, ("kwargs", k), change) for k, v in node.kwargs.items()}
        return args, kwargs

    def key_labels(self, node: Node, binding: Binding) -> set[str]:
        """The labels of the key positions of an attention node."""
        if node.target != ATTENTION:
            return set()
        key = next(o for o in binding.operands if o.arg == ("args", 1))
        return set(key.labels[2])

    def positions(self, value: str, dims: frozenset[int]) -> str:
        """A positional value for all P+T positions, with `dims` cut to the last T."""
        if self.past == 0:
            return self.full(value)
        key = (value, dims)
        if key not in self.done:
            every = {d for d, s in enumerate(self.values[value].shape) if s == TOKENS}
            short = self.shifted(value) if dims and dims == every else None
            self.done[key] = short or self.sliced(value, dims)
        return self.done[key]

    def full(self, value: str) -> str:
        """The value computed for all P+T positions."""
        if value in self.named.graph.params or (value, None) in self.done:
            return self.done.get((value, None), value)
        node = self.maker[value]
        change = {TOKENS: self.total}
        refs = {ref: self.full(ref) for ref in node.refs()}
        plain = self.past == 0 or not _mentions(node)
        same = plain and all(old == new for old, new in refs.items())
        copy = node if same else self.copy(node, refs, change, "_all")
        self.nodes.append(copy)
        for old, new in zip(node.outs, copy.outs, strict=True):
            self.done[(old.name, None)] = new.name
        return self.done[(value, None)]

    def shifted(self, value: str) -> str | None:
        """The value computed for the new positions only, where every operator on the way allows it."""
        node = self.maker.get(value)
        if node is None or len(node.outs) != 1:
            return None
        if node.target.startswith("aten.arange"):
            return self.shifted_arange(node)
        if node.target == "aten.slice.Tensor":
            return self.shifted_slice(node)
        binding = self.named.bindings[node.name]
        labels = {x for o in binding.outs for leaf, x in self.occurrences(o) if leaf.size == TOKENS}
        if len(labels) != 1 or labels & binding.whole:
            return None
        refs: dict[str, str] = {}
        for operand in binding.operands:
            here = [x for leaf, x in self.occurrences(operand) if leaf.size == TOKENS]
            if not here:
                refs[operand.value] = self.full(operand.value)
                continue
            short = self.shifted(operand.value) if set(here) == labels else None
            if short is None:
                return None
            refs[operand.value] = short
        copy = self.copy(node, refs, {}, "_new")
        self.nodes.append(copy)
        return copy.outs[0].name

    def shifted_arange(self, node: Node) -> str | None:
        args = node.args
        if args and args[-1] == TOKENS and (len(args) == 1 or args == (0, TOKENS)):
            return self.add("aten.arange.start", (PAST, self.total), node, node.outs[0], "_new")
        return None

    def shifted_slice(self, node: Node) -> str | None:
        source, dim, start, end, *step = (*node.args, *(0, 0, None)[len(node.args) - 1 :])
        whole = start in (0, None) and end == TOKENS and (not step or step == [1])
        if not whole or not isinstance(source, Ref) or source.name not in self.named.graph.params:
            return None
        args = (source, dim, PAST, self.total)
        return self.add("aten.slice.Tensor", args, node, node.outs[0], "_new")

    def sliced(self, value: str, dims: frozenset[int]) -> str:
        """The full value, then the last T positions of `dims`."""
        name, node = self.full(value), self.maker[value]
        shape = [self.total if s == TOKENS else s for s in self.values[value].shape]
        for dim in sorted(dims):
            shape[dim] = TOKENS
            out = Value(name, tuple(shape), self.values[value].dtype)
            name = self.add(
                "aten.slice.Tensor", (Ref(name), dim, PAST, self.total), node, out, f"_{dim}"
            )
        return name

    def copy(self, node: Node, refs: Mapping[str, str], change: Mapping, suffix: str) -> Node:
        """A node with other operands, its sizes under `change`, and new output names."""

        def fix(arg: Any) -> Any:
            if isinstance(arg, Ref):
                return Ref(refs.get(arg.name, arg.name))
            if isinstance(arg, (tuple, list)):
                return tuple(fix(a) for a in arg)
            return _plain(arg.subs(change)) if isinstance(arg, sympy.Expr) else arg

        outs = tuple(
            Value(o.name + suffix, tuple(fix(s) for s in o.shape), o.dtype) for o in node.outs
        )
        return replace(
            node, name=node.name + suffix, args=fix(node.args), outs=outs,
            kwargs={k: fix(v) for k, v in node.kwargs.items()},
        )  # fmt: skip

    def add(self, target: str, args: tuple, like: Node, out: Value, suffix: str) -> str:
        """Append a new node beside `like`; returns the name of its value."""
        name = out.name + suffix
        keep = {"dtype", "device", "pin_memory", "layout"}
        kwargs = {k: v for k, v in like.kwargs.items() if k in keep and "arange" in target}
        value = Value(name, out.shape, out.dtype)
        self.nodes.append(Node(name, target, args, kwargs, (value,), like.path, like.line))
        return name

    def cache(self, node: Node, args: tuple) -> tuple:
        """Send the keys and values of one attention through the cache."""
        outs = []
        for position in (1, 2):
            value = self.values[args[position].name]
            batch, heads, tokens, depth = value.shape
            if tokens != TOKENS or value.name in self.positional:
                raise NotCausal("attention does not read its own tokens", node)
            shape = (batch, heads, _plain(self.total), depth)
            outs.append(Value(f"{'kv'[position - 1]}_cache_{self.slots}", shape, value.dtype))
        append = Node(
            f"cache_{self.slots}", "plancc.cache_append.default",
            (args[1], args[2], self.slots), {}, tuple(outs), node.path, node.line,
        )  # fmt: skip
        self.nodes.append(append)
        self.slots += 1
        return (args[0], Ref(outs[0].name), Ref(outs[1].name), *args[3:])

    def sample(self, logits: str) -> str:
        """Append greedy sampling: the arg-max over the vocabulary at the last position."""
        value = self.values[logits]
        path = self.maker[logits].path
        last = Value("last_logits", (value.shape[0], value.shape[2]), value.dtype)
        token = Value("next_token", (value.shape[0],), torch.int64)
        self.nodes.append(
            Node("last_logits", "aten.select.int", (Ref(logits), 1, -1), {}, (last,), path, "")
        )
        self.nodes.append(
            Node(
                "next_token",
                "aten.argmax.default",
                (Ref("last_logits"), -1),
                {},
                (token,),
                path,
                "",
            )
        )
        return "next_token"


def _plain(size: sympy.Expr) -> Any:
    return int(size) if size.is_Integer else size


def _mentions(node: Node) -> bool:
    """Whether T occurs in the node's sizes."""

    def walk(arg: Any) -> bool:
        if isinstance(arg, sympy.Expr):
            return TOKENS in arg.free_symbols
        return isinstance(arg, (tuple, list)) and any(walk(a) for a in arg)

    return walk((node.args, tuple(node.kwargs.values()), tuple(o.shape for o in node.outs)))


def _replaced(arg: Any, at: tuple, change: Mapping[tuple, str]) -> Any:
    if isinstance(arg, Ref):
        return Ref(change.get(at, arg.name))
    if isinstance(arg, (tuple, list)):
        return tuple(_replaced(a, (*at, i), change) for i, a in enumerate(arg))
    return arg
