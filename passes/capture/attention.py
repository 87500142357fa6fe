"""Recognise attention: sdpa nodes and matmul-softmax-matmul become plancc.attention.

Scales, additive and bool masks, soft caps and casts between the two products are understood; key
and value heads repeated for grouped queries are folded back; masks go through `masks`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from plancc.ir.graph import Graph, Node, Ref, Size, Value
from plancc.passes.capture.masks import HIDDEN, Atom, Masks
from plancc.passes.capture.simplify import argument, drop_unused

SDPA = "aten.scaled_dot_product_attention.default"
ATTENTION = "plancc.attention.default"
_PRODUCTS = ("aten.matmul.default", "aten.bmm.default")
_SOFTMAX = ("aten.softmax.int", "aten._softmax.default")
_FLOORS = ("aten.max.other", "aten.maximum.default", "aten.clamp_min.default")
_CASTS = ("aten.to.dtype",)


@dataclass(slots=True)
class Scores:
    """What stands between q @ k^T and the softmax."""

    q: str
    k: str  # [B, H, Tk, D]
    scale: float
    softcap: float = 0.0
    atoms: tuple[Atom, ...] = ()
    transposed: bool = False  # k is [B, H, D, Tk] still


class Recogniser:
    """Rewrites the attentions of one graph; new nodes stand where the old result was made."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.masks = Masks(graph)
        self.makers, self.values = self.masks.makers, self.masks.values
        self.users: dict[str, list[Node]] = {}
        for node in graph.nodes:
            for name in set(node.refs()):
                self.users.setdefault(name, []).append(node)
        self.new: list[Node] = []
        self.count = 0
        self.outer: tuple[Size, ...] = ()  # batch and heads of the attention at hand

    def run(self) -> Graph:
        """Return the graph with every attention that is understood in its canonical form."""
        found = dict(self.eager())
        nodes: list[Node] = []
        for node in self.graph.nodes:
            self.new = []
            if (node.target == SDPA and self.sdpa(node)) or node.target == ATTENTION:
                if node.target == ATTENTION:
                    self.canonical(node)
                nodes += self.new
            elif node.name in found:
                scores, v = found[node.name]
                self.attention(node, scores, v)
                nodes += self.new
            else:
                nodes.append(node)
        kept, params = drop_unused(nodes, self.graph.params, self.graph.outputs)
        return replace(self.graph, nodes=tuple(kept), params=params)

    def emit(
        self,
        like: Node,
        target: str,
        args: tuple[Any, ...],
        shape: tuple[Size, ...],
        dtype: torch.dtype,
    ) -> str:
        """Add a node near `like`; return its value's name."""
        self.count += 1
        value = Value(f"{like.name}_a{self.count}", shape, dtype)
        self.values[value.name] = value
        self.new.append(Node(value.name, target, args, {}, (value,), like.path, like.line))
        return value.name

    def sdpa(self, node: Node) -> bool:
        """Turn torch's sdpa into ours; False where its operands are not four-dimensional."""
        q, k, v = (arg.name for arg in node.args[:3])
        if any(len(self.values[name].shape) != 4 for name in (q, k, v)):
            return False
        mask, causal = argument(node, 3, None, "attn_mask"), argument(node, 5, False, "is_causal")
        scale = argument(node, 6, None, "scale")
        width = self.values[q].shape[3]
        options = {"scale": float(scale if scale is not None else width**-0.5), "causal": causal}
        if causal and self.values[q].shape[2] != self.values[k].shape[2]:
            options["q_start"] = 0
        plain = replace(node, target=ATTENTION, args=(Ref(q), Ref(k), Ref(v), mask), kwargs=options)
        self.canonical(plain)
        return True

    def canonical(self, node: Node) -> None:
        """Read the mask of a plancc.attention and fold its key and value heads."""
        q, k, v = (arg.name for arg in node.args[:3])
        mask = argument(node, 3, None)
        k, v = self.fold_groups(q, k, v)
        args: tuple[Any, ...] = (Ref(q), Ref(k), Ref(v), *node.args[3:])
        options = dict(node.kwargs)
        if mask is not None:
            atom = Atom(mask.name, self.values[mask.name].dtype == torch.bool)
            read = self.masks.read((atom,))
            if (read.causal or read.window) and self.square(q, k):
                options["causal"] = options.get("causal", False) or read.causal
                windows = [size for size in (options.get("window", 0), read.window) if size]
                options["window"] = min(windows, default=0)
            if read.rest != (atom,) and (self.square(q, k) or not (read.causal or read.window)):
                joined = self.join(node, read.rest, self.values[q])
                args = (*args[:3], joined, *args[4:])
        while len(args) > 3 and args[-1] is None:
            args = args[:-1]
        kept = {key: option for key, option in options.items() if option or key == "scale"}
        if options.get("q_start") == 0:
            kept["q_start"] = 0
        self.new.append(replace(node, args=args, kwargs=kept))

    def square(self, q: str, k: str) -> bool:
        """Tell whether there are as many queries as keys."""
        return self.values[q].shape[2] == self.values[k].shape[2]

    def attention(self, node: Node, scores: Scores, v: str) -> None:
        """Replace the second product of an eager attention."""
        q, k = scores.q, scores.k
        if scores.transposed:
            b, h, d, t = self.values[k].shape
            k = self.emit(
                node,
                "aten.permute.default",
                (Ref(k), (0, 1, 3, 2)),
                (b, h, t, d),
                self.values[k].dtype,
            )
        k, v = self.fold_groups(q, k, v)
        read = self.masks.read(scores.atoms)
        if (read.causal or read.window) and not self.square(q, k):
            raise AssertionError("a causal mask is square")
        mask = self.join(node, read.rest, self.values[q])
        options: dict[str, Any] = {"scale": scores.scale}
        options |= {"causal": True} if read.causal else {}
        options |= {"window": read.window} if read.window else {}
        options |= {"softcap": scores.softcap} if scores.softcap else {}
        operands = (Ref(q), Ref(k), Ref(v)) + ((mask,) if mask is not None else ())
        out, shape = node.outs[0], (*self.values[q].shape[:3], self.values[v].shape[3])
        if out.shape == shape:
            self.new.append(replace(node, target=ATTENTION, args=operands, kwargs=options))
            return
        whole = self.emit(node, ATTENTION, operands, shape, out.dtype)
        self.new[-1] = replace(self.new[-1], kwargs=options)
        self.new.append(
            replace(node, target="aten.reshape.default", args=(Ref(whole), out.shape), kwargs={})
        )

    def join(self, node: Node, atoms: tuple[Atom, ...], q: Value) -> Ref | None:
        """Combine atoms into one mask operand of four dims, or none."""
        self.outer = q.shape[:2]
        added = [self.additive(node, atom) for atom in atoms if not atom.boolean]
        hidden = [self.boolean(node, atom) for atom in atoms if atom.boolean]
        total = self.fold(node, "aten.add.Tensor", added)
        seen = self.fold(node, "aten.bitwise_and.Tensor", hidden)
        if total is None or seen is None:
            return Ref(total or seen) if total or seen else None
        veil = self.values[seen]
        off = self.emit(node, "aten.bitwise_not.default", (Ref(seen),), veil.shape, veil.dtype)
        shape = broadcast(self.values[total].shape, veil.shape)
        args = (Ref(total), Ref(off), float("-inf"))
        return Ref(
            self.emit(node, "aten.masked_fill.Scalar", args, shape, self.values[total].dtype)
        )

    def fold(self, node: Node, target: str, names: list[str]) -> str | None:
        """Combine values by a binary operator."""
        if not names:
            return None
        total = names[0]
        for name in names[1:]:
            one, two = self.values[total], self.values[name]
            dtype = torch.promote_types(one.dtype, two.dtype)
            shape = broadcast(one.shape, two.shape)
            total = self.emit(node, target, (Ref(total), Ref(name)), shape, dtype)
        return total

    def additive(self, node: Node, atom: Atom) -> str:
        """Return an additive atom with four dims, times its factor."""
        name = self.four(node, atom.value)
        if atom.factor == 1.0:
            return name
        value = self.values[name]
        return self.emit(
            node, "aten.mul.Tensor", (Ref(name), atom.factor), value.shape, value.dtype
        )

    def boolean(self, node: Node, atom: Atom) -> str:
        """Return a bool atom with four dims, True where keys are seen."""
        name = self.four(node, atom.value)
        if not atom.negated:
            return name
        value = self.values[name]
        return self.emit(node, "aten.bitwise_not.default", (Ref(name),), value.shape, value.dtype)

    def four(self, node: Node, name: str) -> str:
        """Return a value with leading dims of size one up to four."""
        value = self.values[name]
        if len(value.shape) == 4:
            return name
        batch, heads = self.outer
        shape = (1,) * (4 - len(value.shape)) + value.shape
        if len(value.shape) == 3 and value.shape[0] == batch * heads:
            shape = (batch, heads, *value.shape[1:])
        return self.emit(node, "aten.reshape.default", (Ref(name), shape), shape, value.dtype)

    def fold_groups(self, q: str, k: str, v: str) -> tuple[str, str]:
        """Return k and v with the heads that were not repeated for the queries, where both were."""
        few = self.unrepeated(k), self.unrepeated(v)
        if few[0] and few[1] and self.values[few[0]].shape[1] == self.values[few[1]].shape[1]:
            return few
        return k, v

    def unrepeated(self, name: str) -> str | None:
        """Return the [B, K, T, D] value whose heads were repeated in groups to make `name`."""
        node = self.makers.get(name)
        if node is None:
            return None
        shape = self.values[name].shape
        if node.target == "aten.repeat_interleave.self_int" and node.args[2:3] in ((1,), (-3,)):
            return node.args[0].name
        if node.target == "aten.expand.default" and self.single(node.args[0].name, shape, 1):
            return node.args[0].name
        if node.target != "aten.reshape.default":
            return None
        grown = self.makers.get(node.args[0].name)
        if grown is None or grown.target != "aten.expand.default" or len(grown.outs[0].shape) != 5:
            return None
        inner = self.makers.get(grown.args[0].name)
        five = grown.outs[0].shape
        if inner is None or inner.target not in ("aten.unsqueeze.default", "aten.reshape.default"):
            return None
        source = inner.args[0].name
        few = (five[0], five[1], five[3], five[4])
        alike = self.values[source].shape == few and five[3:] == shape[2:] and five[0] == shape[0]
        return source if alike and self.single(inner.outs[0].name, five, 2) else None

    def single(self, name: str, shape: tuple[Size, ...], dim: int) -> bool:
        """Tell whether a value has `shape` but for size one at `dim`."""
        return self.values[name].shape == (*shape[:dim], 1, *shape[dim + 1 :])

    def eager(self) -> Iterator[tuple[str, tuple[Scores, str]]]:
        """Yield each second product of an eager attention, with what leads to it."""
        for node in self.graph.nodes:
            if node.target not in _SOFTMAX or argument(node, 1, -1) not in (
                -1,
                len(node.outs[0].shape) - 1,
            ):
                continue
            product = self.second_product(node.outs[0].name)
            scores = self.scores(node.args[0].name, 1.0) if product else None
            v = self.heads(product.args[1].name) if product else None
            if product and scores and v and len(self.values[scores.q].shape) == 4:
                yield product.name, (scores, v)

    def second_product(self, weights: str) -> Node | None:
        """Return the product of the softmax's result with v."""
        for user in self.users.get(weights, ()):
            if user.target in _PRODUCTS and user.args[0] == Ref(weights):
                return user
            if user.target in (*_CASTS, "aten.reshape.default"):
                found = self.second_product(user.outs[0].name)
                if found is not None:
                    return found
        return None

    def scores(self, name: str, factor: float) -> Scores | None:
        """Read the way from the softmax back to the first product; `factor` multiplies it all."""
        node = self.makers.get(name)
        if node is None:
            return None
        target, args = node.target, node.args
        if target in (*_CASTS, "aten.reshape.default"):
            return self.scores(args[0].name, factor)
        if target in ("aten.mul.Tensor", "aten.div.Tensor"):
            return self.scaled(node, factor)
        if target == "aten.add.Tensor" and isinstance(args[1], Ref) and not node.kwargs:
            return self.added(node, factor)
        if target == "aten.masked_fill.Scalar" and args[2] <= HIDDEN:
            return self.hidden(args[0], Atom(args[1].name, True, True), factor)
        if target == "aten.where.ScalarOther" and args[2] <= HIDDEN:
            return self.hidden(args[1], Atom(args[0].name, True), factor)
        if target == "aten.where.self" and (self.number(args[2]) or 0.0) <= HIDDEN:
            return self.hidden(args[1], Atom(args[0].name, True), factor)
        if target in _FLOORS and (self.number(args[1]) or 0.0) <= HIDDEN:
            return self.scores(args[0].name, factor)
        if target in _PRODUCTS:
            return self.product(args[0].name, args[1].name, factor)
        if target == "aten.baddbmm.default":
            found = self.product(args[1].name, args[2].name, factor * node.kwargs.get("alpha", 1.0))
            if found is None:
                return None
            atom = Atom(args[0].name, False, factor=factor * node.kwargs.get("beta", 1.0))
            return replace(found, atoms=(*found.atoms, atom))
        return None

    def hidden(self, inner: Ref, atom: Atom, factor: float) -> Scores | None:
        """Read on behind a fill of hidden keys."""
        found = self.scores(inner.name, factor)
        return None if found is None else replace(found, atoms=(*found.atoms, atom))

    def added(self, node: Node, factor: float) -> Scores | None:
        """Read a sum of scores and a mask, in either order."""
        for inner, other in (node.args[:2], node.args[1::-1]):
            found = self.scores(inner.name, factor)
            if found is not None:
                atom = Atom(other.name, False, factor=factor)
                return replace(found, atoms=(*found.atoms, atom))
        return None

    def scaled(self, node: Node, factor: float) -> Scores | None:
        """Read a scale, or the outer half of a soft cap."""
        number = self.number(node.args[1])
        if number is None:
            return None
        inner = self.makers.get(node.args[0].name)
        if inner is not None and inner.target == "aten.tanh.default":
            capped = self.makers.get(inner.args[0].name)
            is_cap = capped is not None and capped.target == "aten.div.Tensor" and factor == 1.0
            if not is_cap or self.number(capped.args[1]) != number or "mul" not in node.target:
                return None
            found = self.scores(capped.args[0].name, 1.0)
            return None if found is None or found.atoms else replace(found, softcap=number)
        times = factor * number if node.target == "aten.mul.Tensor" else factor / number
        return self.scores(node.args[0].name, times)

    def number(self, arg: Any) -> float | None:
        """Return the number that an argument is: a constant or a constant tensor of one element."""
        if isinstance(arg, (int, float)):
            return float(arg)
        node = self.makers.get(arg.name) if isinstance(arg, Ref) else None
        if node is not None and node.target == "aten.full.default" and node.args[0] == ():
            return float(node.args[1])
        param = self.graph.params.get(arg.name) if isinstance(arg, Ref) else None
        if param is not None and param.kind == "const" and param.data.numel() == 1:
            return float(param.data)
        return None

    def product(self, q: str, k: str, factor: float) -> Scores | None:
        """Read the first product: q [B, H, Tq, D] and the transposed k."""
        queries = self.heads(q)
        maker = self.makers.get(k)
        if queries is None or maker is None:
            return None
        rank = len(self.values[k].shape)
        swapped = (*range(rank - 2), rank - 1, rank - 2)
        if maker.target == "aten.permute.default" and maker.args[1] == swapped:
            keys = self.heads(maker.args[0].name)
            return None if keys is None else Scores(queries, keys, factor)
        keys = self.heads(k)
        return None if keys is None else Scores(queries, keys, factor, transposed=True)

    def heads(self, name: str) -> str | None:
        """Return a value as [B, H, ., .]: itself, or what was flattened to [B * H, ., .]."""
        if len(self.values[name].shape) == 4:
            return name
        node = self.makers.get(name)
        if node is None or node.target != "aten.reshape.default":
            return None
        source = node.args[0].name
        shape = self.values[source].shape
        return source if len(shape) == 4 and shape[2:] == self.values[name].shape[1:] else None


def broadcast(one: tuple[Size, ...], two: tuple[Size, ...]) -> tuple[Size, ...]:
    """Return the shape of an elementwise combination of two shapes of equal rank."""
    return tuple(b if a == 1 else a for a, b in zip(one, two, strict=True))


def recognise_attention(graph: Graph) -> Graph:
    """Return the graph with its attentions as plancc.attention."""
    return Recogniser(graph).run()
