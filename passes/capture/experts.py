"""Recognise experts that are written as products over all of them: they become plancc.experts.

`scatter` of the chosen weights into zeros, a product of every token with every expert's weights, and the sum
over experts: the tokens' choices are in it, so each expert need only compute the tokens that chose it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch

from plancc.ir.graph import Graph, Node, Ref, Size, Value
from plancc.passes.capture.simplify import drop_unused

EINSUM, MUL, UNSQUEEZE = "aten.einsum.default", "aten.mul.Tensor", "aten.unsqueeze.default"
SCATTER = "aten.scatter.src"
ZEROS = ("aten.zeros_like.default", "aten.zeros.default", "aten.new_zeros.default")
TOPK = "aten.topk.default"
ONE_TO_ONE = ("aten.add.Tensor", "aten.sub.Tensor", "aten.mul.Tensor")
SPLITS = ("aten.split_with_sizes.default", "aten.chunk.default", "aten.split.Tensor")
ACTIVATIONS = {
    "aten.silu.default": "silu", "aten.relu.default": "relu", "aten.tanh.default": "tanh",
    "aten.sigmoid.default": "sigmoid",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Match:
    """The parts of one expert layer: tokens, choices and their weights, matrices, activation."""

    x: str
    index: str
    weight: str
    gate_up: str
    down: str
    act: str
    gated: bool


class _Recogniser:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.makers = {out.name: node for node in graph.nodes for out in node.outs}
        self.values = {value.name: value for value in graph.values()}
        self.taken = set(self.values)

    def maker(self, arg: Any, *targets: str) -> Node | None:
        """The node that makes an argument, if it is one of `targets`."""
        node = self.makers.get(arg.name) if isinstance(arg, Ref) else None
        return node if node is not None and node.target in targets else None

    def match(self, node: Node) -> Match | None:
        """The expert layer whose last product is `node`, if it is one."""
        down = product(node)
        if down is None or down[0] != "down":
            return None
        scaled = self.maker(node.args[1][0], MUL)
        for first, second in ((0, 1), (1, 0)) if scaled is not None else ():
            assert scaled is not None
            share = self.maker(scaled.args[second], UNSQUEEZE)
            if share is None or share.args[1] not in (-1, len(share.outs[0].shape) - 1):
                continue
            chosen = self.choices(share.args[0])
            inner = self.inner(scaled.args[first])
            if chosen is not None and inner is not None:
                x, gate_up, act, gated = inner
                weights = node.args[1][1].name
                return Match(x, *chosen, gate_up, weights, act, gated)
        return None

    def choices(self, share: Any) -> tuple[str, str] | None:
        """(index, weight) of weights that are scattered into zeros along the experts."""
        found = self.maker(share, SCATTER)
        if found is None or self.maker(found.args[0], *ZEROS) is None:
            return None
        last = len(found.outs[0].shape) - 1
        if found.args[1] not in (-1, last) or not self.distinct(found.args[2]):
            return None
        return found.args[2].name, found.args[3].name

    def distinct(self, index: Any) -> bool:
        """Whether a token never chooses an expert twice, where a scatter would keep one weight only."""
        if self.values[index.name].shape[-1] == 1:
            return True
        step = self.makers.get(index.name)
        while (
            step is not None
            and step.target in ONE_TO_ONE
            and step.args[1] != 0
            and not isinstance(step.args[1], Ref)
        ):
            step = self.makers.get(step.args[0].name)
        if step is None or step.target != TOPK:
            return False
        dim = step.args[2] if len(step.args) > 2 else step.kwargs.get("dim", -1)
        return dim in (-1, len(step.outs[0].shape) - 1)

    def inner(self, arg: Any) -> tuple[str, str, str, bool] | None:
        """(tokens, matrix, activation, gated) of what every expert computes before the last product."""
        gated = self.maker(arg, MUL)
        if gated is None:
            act = self.maker(arg, *ACTIVATIONS)
            up = None if act is None else self.maker(act.args[0], EINSUM)
            return None if act is None or up is None else self.upward(up, act, False)
        for first, second in ((0, 1), (1, 0)):
            act = self.maker(gated.args[first], *ACTIVATIONS)
            split = None if act is None else self.maker(act.args[0], *SPLITS)
            if act is None or split is None or self.maker(gated.args[second], *SPLITS) is not split:
                continue
            halves = [out.name for out in split.outs]
            dim = split.args[2] if len(split.args) > 2 else split.kwargs.get("dim", 0)
            last = len(split.outs[0].shape) - 1
            right = act.args[0].name == halves[0] and gated.args[second].name == halves[1]
            up = self.maker(split.args[0], EINSUM)
            if len(halves) == 2 and right and dim in (-1, last) and up is not None:
                return self.upward(up, act, True)
        return None

    def upward(self, up: Node, act: Node, gated: bool) -> tuple[str, str, str, bool] | None:
        found = product(up)
        if found is None or found[0] != "up":
            return None
        x, weight = up.args[1]
        return (x.name, weight.name, ACTIVATIONS[act.target], gated)

    def rewrite(self, node: Node, found: Match) -> Iterator[Node]:
        """The canonical form, tokens flattened."""
        x = self.values[found.x]
        tokens: Size = prod(x.shape[:-1])
        flat = []
        for name in (found.x, found.index, found.weight):
            value = self.values[name]
            flat.append(self.fresh(f"{name}_flat", (tokens, value.shape[-1]), value.dtype))
            view = (Ref(name), (tokens, value.shape[-1]))
            yield self.node(node, "aten.reshape.default", view, flat[-1])
        out = self.fresh(f"{node.outs[0].name}_flat", (tokens, x.shape[-1]), x.dtype)
        weights = (Ref(found.gate_up), Ref(found.down))
        args = (*(Ref(value.name) for value in flat), *weights)
        options = {"act": found.act} if found.gated else {"act": found.act, "gated": False}
        yield self.node(node, "plancc.experts.default", args, out, options)
        whole = node.outs[0]
        yield self.node(node, "aten.reshape.default", (Ref(out.name), whole.shape), whole)

    def fresh(self, name: str, shape: tuple[Size, ...], dtype: torch.dtype) -> Value:
        count, chosen = 1, name
        while chosen in self.taken:
            count += 1
            chosen = f"{name}_{count}"
        self.taken.add(chosen)
        return Value(chosen, shape, dtype)

    def node(
        self,
        like: Node,
        target: str,
        args: tuple,
        out: Value,
        options: dict[str, Any] | None = None,
    ) -> Node:
        return replace(
            like, name=out.name, target=target, args=args, kwargs=options or {}, outs=(out,)
        )


def product(node: Node) -> tuple[str, str] | None:
    """("up", tokens' letters) for x [..., h] by [e, i, h]; ("down", ...) for [..., e, i] by [e, h, i]."""
    if node.target != EINSUM or len(node.args[1]) != 2:
        return None
    sides, _, out = node.args[0].replace(" ", "").partition("->")
    left, _, right = sides.partition(",")
    if len(right) != 3 or len(set(left)) != len(left):
        return None
    e, a, b = right
    tokens = out[:-1] if left == out[:-1] + e + b else ""
    if tokens and out == tokens + a and e not in tokens:
        return "down", tokens
    tokens = left[:-1]
    return ("up", tokens) if left == tokens + b and out == tokens + e + a else None


def recognise_experts(graph: Graph) -> Graph:
    """The graph with every such layer in its canonical form; others stay as they are."""
    work = _Recogniser(graph)
    nodes: list[Node] = []
    for node in graph.nodes:
        found = work.match(node)
        nodes += [node] if found is None else work.rewrite(node, found)
    if len(nodes) == len(graph.nodes):
        return graph
    kept, params = drop_unused(nodes, graph.params, graph.outputs)
    return replace(graph, nodes=tuple(kept), params=params)
