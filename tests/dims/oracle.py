"""The row oracle: run a node on parts of its dims and compare with the node on the whole.

Every label of a row that may be cut is a claim; `check_node` tests each, leaf by leaf, unevenly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import sympy
import torch
from torch import Tensor

from plancc.ir.graph import BATCH, PAST, TOKENS, Graph, Node, Ref, Size
from plancc.ir.interpret import bind_symbols, parameter
from plancc.ir.shape import Binding, Leaf, NamedGraph, Operand, Sum, Tree, leaves
from plancc.ops import resolve
from plancc.passes.rows.localise import localise_args

Key = tuple[str, int]
"""(label, leaf id): what one cut of a node cuts."""


@dataclass(frozen=True)
class Run:
    """A named graph with every value of one concrete run."""

    named: NamedGraph
    env: Mapping[str, Tensor]
    symbols: Mapping[sympy.Symbol, int]

    def size(self, size: Size) -> int:
        return size if isinstance(size, int) else int(size.subs(self.symbols))


def record(named: NamedGraph, inputs: Mapping[str, Tensor], params: Mapping[str, Tensor]) -> Run:
    """Run the graph once and keep every value."""
    from plancc.ir.interpret import run_graph

    env: dict[str, Tensor] = dict(inputs)
    env |= {name: parameter(param, params) for name, param in named.graph.params.items()}
    run_graph(named.graph, params, inputs, record=env.__setitem__)
    return Run(named, env, bind_symbols(named.graph, inputs))


def cuttable(run: Run, binding: Binding) -> list[Key]:
    """Every (label, leaf) of a node that its row says may be cut."""
    keys: dict[Key, None] = {}
    for operand in (*binding.operands, *binding.outs):
        for tree, labels in zip(run.named.shapes[operand.value], operand.labels, strict=True):
            for leaf, label in zip(leaves(tree), labels, strict=True):
                if label not in binding.whole and run.size(leaf.size) > 1:
                    keys[label, leaf.id] = None
    return list(keys)


@dataclass(frozen=True)
class Part:
    """One part of one leaf under one label: the range lo .. hi."""

    run: Run
    key: Key
    lo: int
    hi: int

    def indices(self, tree: Tree, labels: Iterator[str]) -> list[int]:
        """The global indices of a dim that the part keeps."""
        if isinstance(tree, Leaf):
            mine = next(labels) == self.key[0] and tree.id == self.key[1]
            return list(range(self.lo, self.hi) if mine else range(self.run.size(tree.size)))
        if isinstance(tree, Sum):
            found, base = [], 0
            for kid in tree.kids:
                found += [base + i for i in self.indices(kid, labels)]
                base += full_size(self.run, kid)
            return found
        found = [0]
        for kid in tree.kids:
            size, inner = full_size(self.run, kid), self.indices(kid, labels)
            found = [outer * size + i for outer in found for i in inner]
        return found

    def cut(self, operand: Operand, tensor: Tensor) -> Tensor:
        """The part's piece of a full tensor."""
        trees = self.run.named.shapes[operand.value]
        for dim, (tree, labels) in enumerate(zip(trees, operand.labels, strict=True)):
            if self.holds(operand, dim):
                kept = torch.tensor(self.indices(tree, iter(labels)), dtype=torch.long)
                tensor = tensor.index_select(dim, kept)
        return tensor

    def holds(self, operand: Operand, dim: int) -> bool:
        """Whether the cut leaf occurs under the cut label in this dim."""
        tree = self.run.named.shapes[operand.value][dim]
        return self.key in [
            (label, leaf.id) for leaf, label in zip(leaves(tree), operand.labels[dim], strict=True)
        ]

    def anywhere(self, operand: Operand) -> bool:
        return any(self.holds(operand, dim) for dim in range(len(operand.labels)))

    def size_of(self, tree: Tree, operand: Operand, dim: int) -> int:
        """The local size of a tree that stands in this dim."""
        if isinstance(tree, Leaf):
            cut = self.holds(operand, dim) and tree.id == self.key[1]
            return self.hi - self.lo if cut else self.run.size(tree.size)
        sizes = [self.size_of(kid, operand, dim) for kid in tree.kids]
        total = 0 if isinstance(tree, Sum) else 1
        for size in sizes:
            total = total + size if isinstance(tree, Sum) else total * size
        return total

    def start_of(self, tree: Tree, operand: Operand, dim: int) -> int:
        """The first global index of the part."""
        return self.indices(tree, iter(operand.labels[dim]))[0]


def full_size(run: Run, tree: Tree) -> int:
    if isinstance(tree, Leaf):
        return run.size(tree.size)
    total = 0 if isinstance(tree, Sum) else 1
    for kid in tree.kids:
        size = full_size(run, kid)
        total = total + size if isinstance(tree, Sum) else total * size
    return total


def call(
    run: Run, target: str, args: Any, kwargs: Any, tensors: Mapping[str, Tensor]
) -> list[Tensor]:
    """Run an operator with concrete tensors and sizes."""

    def concrete(arg: Any) -> Any:
        if isinstance(arg, Ref):
            return tensors[arg.name]
        if isinstance(arg, (tuple, list)):
            return [concrete(item) for item in arg]
        return run.size(arg) if isinstance(arg, sympy.Expr) else arg

    out = resolve(target)(*concrete(args), **{key: concrete(arg) for key, arg in kwargs.items()})
    return [out] if isinstance(out, Tensor) else list(out)


def numbered(node: Node, binding: Binding) -> Node:
    """The node with each operand's Ref renamed to its number: one value may be cut in two ways."""
    places = {operand.arg: Ref(str(i)) for i, operand in enumerate(binding.operands)}

    def rename(arg: Any, at: tuple[str | int, ...]) -> Any:
        if isinstance(arg, (tuple, list)):
            return tuple(rename(item, (*at, i)) for i, item in enumerate(arg))
        return places[at] if isinstance(arg, Ref) else arg

    return replace(
        node,
        args=rename(node.args, ("args",)),
        kwargs={key: rename(arg, ("kwargs", key)) for key, arg in node.kwargs.items()},
    )


def check_cut(run: Run, node: Node, binding: Binding, key: Key, at: int, size: int) -> str:
    """Cut one leaf under one label at `at`; return what is wrong, or ""."""
    parts = [Part(run, key, 0, at), Part(run, key, at, size)]
    outs: list[list[Tensor]] = []
    kept = {label for out in binding.outs for labels in out.labels for label in labels}
    contracted = key[0] not in kept and key[0] not in binding.dropped
    for rank, part in enumerate(parts):
        tensors = {}
        for index, operand in enumerate(binding.operands):
            local = part.cut(operand, run.env[operand.value])
            if contracted and operand.addend and rank and not part.anywhere(operand):
                local = torch.zeros_like(local)
            tensors[str(index)] = local
        target, args, kwargs = localise_args(
            numbered(node, binding),
            binding,
            run.named.shapes,
            part.size_of,
            part.start_of,
            part.holds,
        )
        outs.append(call(run, target, args, kwargs, tensors))
    for index, out in enumerate(binding.outs):
        full = run.env[out.value]
        if contracted:
            problem = differs(outs[0][index] + outs[1][index], full)
        else:
            problem = "".join(
                differs(local[index], part.cut(out, full))
                for part, local in zip(parts, outs, strict=True)
            )
        if problem:
            return f"{node.target} `{binding.row}` cut {key} at {at} of {size}: {problem}"
    return ""


def differs(found: Tensor, wanted: Tensor) -> str:
    """What is different between two tensors, or ""."""
    if found.shape != wanted.shape:
        return f"shape {tuple(found.shape)} instead of {tuple(wanted.shape)}"
    if found.dtype != wanted.dtype:
        return f"{found.dtype} instead of {wanted.dtype}"
    if wanted.is_complex():
        return differs(torch.view_as_real(found), torch.view_as_real(wanted))
    exact = 1e-4 if wanted.dtype not in (torch.bfloat16, torch.float16) else 5e-2
    if not wanted.numel() or torch.allclose(
        found.to(torch.float64), wanted.to(torch.float64), rtol=exact, atol=exact, equal_nan=True
    ):
        return ""
    return f"values differ by {(found.double() - wanted.double()).abs().max():.2g}"


def check_linear(run: Run, node: Node, binding: Binding) -> str:
    """Check the claim that partial operands pass: f(a) + f(b) = f(a + b)."""
    mode = next((rule[7:] for rule in binding.rules if rule.startswith("linear:")), "")
    full = [run.env[operand.value] for operand in binding.operands]
    if not mode:
        return ""
    groups = {"0": [[0]], "one": [[i] for i in range(len(full))], "all": [list(range(len(full)))]}
    numbers = numbered(node, binding)
    for group in groups[mode]:
        if not all(full[i].dtype in (torch.float32, torch.float64) for i in group):
            continue
        halves: list[list[Tensor]] = []
        shares = {i: torch.randn_like(full[i]) for i in group}
        for rank in range(2):
            tensors = {
                str(i): (shares[i] if rank else value - shares[i]) if i in shares else value
                for i, value in enumerate(full)
            }
            halves.append(call(run, node.target, numbers.args, numbers.kwargs, tensors))
        for index, out in enumerate(binding.outs):
            wanted = run.env[out.value]
            if not wanted.is_floating_point():
                return f"{node.target} is marked linear, but gives {wanted.dtype}"
            problem = differs(halves[0][index] + halves[1][index], wanted)
            if problem:
                return f"{node.target} linear:{mode} in {group}: {problem}"
    return ""


def check_node(run: Run, node: Node) -> tuple[int, list[str]]:
    """Check every claim of a node's row; return how many there were, and what failed."""
    binding = run.named.bindings[node.name]
    if node.target.split(".")[1] in ("new_empty", "empty", "empty_like"):
        return 0, []
    wrong = [problem] if (problem := check_linear(run, node, binding)) else []
    count = 0
    for key in cuttable(run, binding):
        size = next(
            run.size(leaf.size)
            for operand in (*binding.operands, *binding.outs)
            for tree in run.named.shapes[operand.value]
            for leaf in leaves(tree)
            if leaf.id == key[1]
        )
        for at in sorted({1, (size + 1) // 2}):
            count += 1
            try:
                problem = check_cut(run, node, binding, key, at, size)
            except Exception as failure:
                problem = f"{node.target} `{binding.row}` cut {key} at {at}: {failure!r}"[:400]
            if problem:
                wrong.append(problem)
    return count, wrong


def seeded_inputs(graph: Graph, batch: int, tokens: int, vocab: int) -> dict[str, Tensor]:
    """Inputs of a graph: token ids, or noise; a mask of ones."""
    generator = torch.Generator().manual_seed(1)
    sizes = {BATCH: batch, TOKENS: tokens, PAST: 3}
    found = {}
    for value in graph.inputs:
        shape = [s if isinstance(s, int) else int(s.subs(sizes)) for s in value.shape]
        if value.dtype.is_floating_point:
            found[value.name] = torch.randn(shape, generator=generator).to(value.dtype)
        elif "mask" in value.name:
            found[value.name] = torch.ones(shape, dtype=value.dtype)
        else:
            found[value.name] = torch.randint(3, vocab, shape, generator=generator).to(value.dtype)
    return found
