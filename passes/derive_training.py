"""Derive the training graph from the forward graph: the model with its loss as the only output.

A language model's loss is the cross-entropy of `logits` with `targets`, summed and multiplied by `scale`
(one over the valid tokens of the whole step), so that micro-batches and ranks simply add up.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from plancc.ir.graph import Graph, Node, Ref, Value

LOSS, TARGETS, SCALE = "loss", "targets", "scale"
CROSS_ENTROPY = "plancc.cross_entropy.default"


class NotTrainable(Exception):
    """A graph has no loss that training could lower; the text says why."""


def loss_kind(graph: Graph) -> str:
    """How the loss of a model comes about: "own" (a scalar output), "cross_entropy" or "mean_square"."""
    values = {v.name: v for v in graph.values()}
    outs = [values[name] for name in graph.outputs.values()]
    scalars = [v for v in outs if not v.shape and v.dtype.is_floating_point]
    if len(scalars) == 1:
        return "own"
    return "cross_entropy" if logits_of(graph) is not None else "mean_square"


def logits_of(graph: Graph) -> Value | None:
    """The output [B, T, vocabulary] of a language model over ids [B, T]; None if it is none."""
    values = {v.name: v for v in graph.values()}
    ids = [v for v in graph.inputs if len(v.shape) == 2 and not v.dtype.is_floating_point]
    name = graph.outputs.get("logits")
    if name is None or not ids:
        return None
    found = values[name]
    return found if len(found.shape) == 3 and found.shape[:2] == ids[0].shape else None


def derive_training(graph: Graph) -> Graph:
    """The graph of phase "train": its inputs and `targets`, `scale` -> loss [].

    Without logits and without a loss of its own the loss is the sum of squares of all floating outputs
    times `scale`, which verification uses for encoders. Raises NotTrainable where nothing is differentiable.
    """
    weights = [param for param in graph.params.values() if param.kind == "param"]
    if weights and all(param.frozen for param in weights):
        raise NotTrainable("every parameter of the model is frozen (requires_grad = False)")
    kind = loss_kind(graph)
    work = _Loss(graph)
    if kind == "own":
        values = {v.name: v for v in graph.values()}
        name = next(n for n in graph.outputs.values() if not values[n].shape)
        return work.graph_with(name, ())
    scale = Value(work.fresh(SCALE), (), torch.float32)
    if kind == "mean_square":
        return work.graph_with(work.squares(scale), (scale,))
    logits = logits_of(graph)
    assert logits is not None
    targets = Value(work.fresh(TARGETS), logits.shape[:2], torch.int64)
    wide = torch.promote_types(logits.dtype, torch.float32)
    rows = Value(work.fresh("nll"), logits.shape[:2], wide)
    work.add(CROSS_ENTROPY, (Ref(logits.name), Ref(targets.name)), rows, logits.name)
    return work.graph_with(work.scaled_sum(rows, scale), (targets, scale))


class _Loss:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.names = {v.name for v in graph.values()}
        self.maker = {out.name: node for node in graph.nodes for out in node.outs}
        self.nodes = list(graph.nodes)

    def fresh(self, name: str) -> str:
        """`name`, or with a number where the model has a value of that name."""
        if name in self.names:
            raise NotTrainable(f"the model has a value called `{name}` already")
        self.names.add(name)
        return name

    def add(self, target: str, args: tuple, out: Value, beside: str) -> Value:
        """Append a node at the place of the node that makes `beside`."""
        maker = self.maker.get(beside)
        path, line = (maker.path, maker.line) if maker else ("", "")
        node = Node(out.name, target, args, {}, (out,), path, line, "loss")
        self.nodes.append(node)
        self.maker[out.name] = node
        return out

    def scaled_sum(self, value: Value, scale: Value, name: str = LOSS) -> Value:
        """The sum of a value, times `scale`."""
        total = Value(self.fresh(f"{name}_sum"), (), value.dtype)
        self.add("aten.sum.default", (Ref(value.name),), total, value.name)
        out = Value(self.fresh(name), (), value.dtype)
        return self.add("aten.mul.Tensor", (Ref(total.name), Ref(scale.name)), out, total.name)

    def squares(self, scale: Value) -> Value:
        """The sum over all floating outputs of their squares."""
        values = {v.name: v for v in self.graph.values()}
        outs = [values[n] for n in dict.fromkeys(self.graph.outputs.values())]
        outs = [v for v in outs if v.dtype.is_floating_point and v.name in self.maker]
        if not outs:
            raise NotTrainable("the model has no floating output that could have a gradient")
        found: Value | None = None
        for index, value in enumerate(outs):
            square = Value(self.fresh(f"square_{index}"), value.shape, value.dtype)
            self.add("aten.mul.Tensor", (Ref(value.name), Ref(value.name)), square, value.name)
            last = len(outs) == 1
            term = self.scaled_sum(square, scale, LOSS if last else f"term_{index}")
            if found is None:
                found = term
            else:
                total = LOSS if index == len(outs) - 1 else f"terms_{index}"
                out = Value(self.fresh(total), (), term.dtype)
                found = self.add(
                    "aten.add.Tensor", (Ref(found.name), Ref(term.name)), out, term.name
                )
        assert found is not None
        return found

    def graph_with(self, loss: str | Value, inputs: tuple[Value, ...]) -> Graph:
        """The training graph; nodes that the loss does not need are left out."""
        name = loss if isinstance(loss, str) else loss.name
        needed, kept = {name}, []
        for node in reversed(self.nodes):
            if any(out.name in needed for out in node.outs):
                kept.append(node)
                needed.update(node.refs())
        return replace(
            self.graph, nodes=tuple(reversed(kept)), inputs=(*self.graph.inputs, *inputs),
            outputs={LOSS: name}, phase="train", results=self.graph.outputs,
        )  # fmt: skip
