"""What an attention mask means: proved by evaluating it at a few sizes, if it depends on no input.

A mask is taken apart into atoms (sums, ands, fills); an atom that is exactly causal, a sliding
window or all visible becomes an option of plancc::attention, the rest stays an operand.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plancc.ir.graph import BATCH, TOKENS, Graph, Node, Ref
from plancc.ir.interpret import run_node
from plancc.ops.attention import visible

HIDDEN = -1e4
"""An additive mask value at or below this hides a key."""
_LARGEST = 8192 + 64


@dataclass(frozen=True, slots=True)
class Atom:
    """A part of a mask: a bool value (`negated`: True hides), or a value added times `factor`."""

    value: str
    boolean: bool
    negated: bool = False
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a set of atoms says: options of plancc::attention, and the atoms that are left."""

    causal: bool
    window: int
    rest: tuple[Atom, ...]


class Masks:
    """Reads the masks of one graph; results are cached by value."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.makers = {value.name: node for node in graph.nodes for value in node.outs}
        self.values = {value.name: value for value in graph.values()}
        self.proved: dict[tuple[str, bool, bool], tuple[bool, int] | None] = {}

    def read(self, atoms: tuple[Atom, ...]) -> Meaning:
        """Tell causal, window and what is left of the atoms of one attention."""
        causal, window, rest = False, 0, []
        for atom in atoms:
            found = self.prove(atom)
            parts = (atom,) if found is not None else tuple(self.split(atom))
            kept = [part for part in parts if self.prove(part) is None]
            for part in parts:
                seen = self.prove(part)
                if seen is not None:
                    causal = causal or seen[0]
                    window = min(window, seen[1]) if window and seen[1] else window or seen[1]
            rest += kept if len(kept) < len(parts) else [atom]
        return Meaning(causal, window, tuple(rest))

    def split(self, atom: Atom) -> Iterator[Atom]:
        """Take an atom apart as far as it goes; yields the atom itself where it does not."""
        node = self.makers.get(atom.value)
        parts = list(self.parts(node, atom)) if node is not None else []
        if not parts:
            yield atom
        for part in parts:
            yield from self.split(part)

    def parts(self, node: Node, atom: Atom) -> Iterator[Atom]:
        """Yield the operands that a mask node combines, if it does."""
        target, args = node.target, node.args
        if atom.boolean:
            if (
                target in ("aten.bitwise_and.Tensor", "aten.logical_and.default")
                and not atom.negated
            ):
                yield from (Atom(arg.name, True) for arg in args[:2])
            if target in ("aten.bitwise_or.Tensor", "aten.logical_or.default") and atom.negated:
                yield from (Atom(arg.name, True, True) for arg in args[:2])
            if target in ("aten.bitwise_not.default", "aten.logical_not.default"):
                yield Atom(args[0].name, True, not atom.negated)
            return
        if target == "aten.add.Tensor" and isinstance(args[1], Ref) and not node.kwargs:
            yield from (Atom(arg.name, False, factor=atom.factor) for arg in args[:2])
        if target == "aten.masked_fill.Scalar" and args[2] <= HIDDEN:
            yield Atom(args[0].name, False, factor=atom.factor)
            yield Atom(args[1].name, True, True)
        if target == "aten.where.ScalarOther" and args[2] <= HIDDEN:
            yield Atom(args[0].name, True)
            yield Atom(args[1].name, False, factor=atom.factor)

    def prove(self, atom: Atom) -> tuple[bool, int] | None:
        """Return (causal, window) if the atom is exactly that mask at every size that matters."""
        key = (atom.value, atom.boolean, atom.negated)
        if key not in self.proved:
            self.proved[key] = self.evaluate(atom)
        return self.proved[key]

    def evaluate(self, atom: Atom) -> tuple[bool, int] | None:
        """Evaluate an atom at a few sizes, past every constant in its making, and compare."""
        nodes = self.ancestors(atom.value)
        if nodes is None:
            return None
        constants = self.constants(nodes, atom.value)
        if any(constant + 3 > _LARGEST for constant in constants):
            return None
        sizes = sorted({3, 13} | {constant + 3 for constant in constants if constant > 4})
        found: set[tuple[bool, int] | None] = set()
        masks = [mask for size in sizes if (mask := self.at(nodes, atom, size)) is not None]
        if len(masks) < 2:
            return None
        largest = meaning(masks[-1])
        for mask in masks:
            found.add(largest if largest and matches(mask, *largest) else None)
        return largest if found == {largest} else None

    def ancestors(self, value: str) -> list[Node] | None:
        """Return the nodes that make a value, in order; None if it depends on inputs or weights."""
        needed, wanted = set(), [value]
        inputs = {item.name for item in self.graph.inputs}
        while wanted:
            name = wanted.pop()
            param = self.graph.params.get(name)
            if name in inputs or (param is not None and param.data is None):
                return None
            node = self.makers.get(name)
            if node is not None and node.name not in needed:
                needed.add(node.name)
                wanted.extend(node.refs())
        return [node for node in self.graph.nodes if node.name in needed]

    def constants(self, nodes: list[Node], value: str) -> set[int]:
        """Return the sizes of tables and the integers that take part in making a mask."""
        used = {value}.union(*(set(node.refs()) for node in nodes))
        tables = [self.graph.params[name] for name in used if name in self.graph.params]
        numbers = {size for table in tables for size in table.value.shape if isinstance(size, int)}
        numbers = {max(number - 3, 0) for number in numbers}
        return numbers.union(
            *(set(_integers((node.args, *node.kwargs.values()))) for node in nodes)
        )

    def at(self, nodes: list[Node], atom: Atom, size: int) -> Tensor | None:
        """Evaluate at T = size, B = 2 (1 when large): bool [..., T, T], None if that fails."""
        batch = 2 if size < 64 else 1
        env: dict[str, Tensor] = {
            name: param.data for name, param in self.graph.params.items() if param.data is not None
        }
        symbols, known = {BATCH: batch, TOKENS: size}, {}
        try:
            for node in nodes:
                for out, result in zip(node.outs, run_node(node, env, symbols, known), strict=True):
                    env[out.name] = result
        except (RuntimeError, IndexError, ValueError):
            return None
        mask = env[atom.value]
        if atom.boolean:
            if mask.dtype != torch.bool:
                return None
            seen = ~mask if atom.negated else mask
        else:
            seen = mask == 0
            if not bool((seen | (mask <= HIDDEN)).all()):
                return None
        if mask.dim() > 4 or any(dim not in (1, size) for dim in mask.shape[-2:]):
            return None
        return seen.expand(*mask.shape[:-2], size, size)


def meaning(seen: Tensor) -> tuple[bool, int] | None:
    """Guess (causal, window) from the first and the last row of a mask [..., T, T]."""
    size = seen.shape[-1]
    first, last = seen.reshape(-1, size, size)[0, [0, -1]]
    keys = last.nonzero().flatten().tolist()
    if not keys:
        return None
    return not bool(first[1:].any()), size - keys[0] if keys[0] else 0


def matches(seen: Tensor, causal: bool, window: int) -> bool:
    """Tell whether a mask [..., T, T] is exactly (causal, window)."""
    size = seen.shape[-1]
    exact = visible(size, size, 0, causal, window, seen.device)
    return bool((seen == exact).all())


def _integers(arg: Any) -> Iterator[int]:
    if isinstance(arg, (tuple, list)):
        for item in arg:
            yield from _integers(item)
    elif isinstance(arg, int) and not isinstance(arg, bool):
        yield abs(arg)
