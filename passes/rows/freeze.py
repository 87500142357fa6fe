"""Freeze: factors to trees, bound rows to bindings with a label for every leaf occurrence."""

from __future__ import annotations

from collections.abc import Mapping

from plancc.dsl.errors import Bug
from plancc.ir.factors import Dim, Factor, atoms
from plancc.ir.shape import Binding, Leaf, Operand, Prod, Sum, Tree, leaves
from plancc.passes.rows.bind import Bound
from plancc.passes.rows.notation import Side, Slot, label_of

WHOLE = "whole"
"""The label of view dims whose boundaries do not fit: nothing in them may be cut."""


class Freezer:
    """Turns factors into trees, the same class always into the same leaf."""

    def __init__(self, dims: Mapping[str, list[Dim]]) -> None:
        self.dims = dims
        self.trees: dict[Factor, tuple[Tree, int]] = {}
        self.cache: dict[int, tuple[Dim, Tree, int]] = {}

    def shape(self, value: str) -> tuple[Tree, ...]:
        """One tree for each dim of a value."""
        return tuple([self.tree(dim)[1] for dim in self.dims[value]])

    def tree(self, dim: Dim) -> tuple[Dim, Tree, int]:
        """The dim, its tree, and how many leaf occurrences it has."""
        found = self.cache.get(id(dim))
        if found is not None:
            return found
        pairs = [self._atom(atom) for atom in atoms(dim)]
        tree = pairs[0][0] if len(pairs) == 1 else Prod(tuple([tree for tree, _ in pairs]))
        self.cache[id(dim)] = (dim, tree, sum([count for _, count in pairs]))
        return self.cache[id(dim)]

    def _atom(self, atom: Factor) -> tuple[Tree, int]:
        found = self.trees.get(atom)
        if found is None:
            found = (Leaf(len(self.trees), atom.size), 1) if atom.kids is None else self._sum(atom)
            self.trees[atom] = found
        return found

    def _sum(self, atom: Factor) -> tuple[Tree, int]:
        kids: list[Tree] = []
        count = 0
        for part in atom.kids or ():
            _, tree, leaves = self.tree(part)
            kids.extend(tree.kids if isinstance(tree, Sum) else (tree,))
            count += leaves
        return Sum(tuple(kids)), count

    def binding(self, bound: Bound) -> Binding:
        """The frozen binding of a node."""
        if bound.pattern is None:
            return self._view(bound)
        form, pattern = bound.form, bound.pattern
        whole = set(pattern.whole)
        operands = tuple([
            Operand(value, location, self._side(bound, index, side, value, whole), side.addend)
            for index, ((location, value), side)
            in enumerate(zip(bound.operands, bound.sides, strict=True))
        ])
        outs = tuple([
            Operand(out.name, ("out", index), self._side(bound, -1 - index, side, out.name, whole))
            for index, (out, side) in enumerate(zip(bound.node.outs, pattern.outs, strict=True))
        ])
        return Binding(
            bound.node.name, form.text, operands, outs, frozenset(whole), bool(form.linear),
            rules_of(bound), frozenset(form.dropped),
        )

    def _side(
        self, bound: Bound, index: int, side: Side, value: str, whole: set[str]
    ) -> tuple[tuple[str, ...], ...]:
        return tuple([
            self._labels(bound, (index, at), slot, dim, whole)
            for at, (slot, dim) in enumerate(zip(side.slots, self.dims[value], strict=True))
        ])

    def _labels(
        self, bound: Bound, place: tuple[int, int], slot: Slot, dim: Dim, whole: set[str]
    ) -> tuple[str, ...]:
        """The label of every leaf occurrence of one dim of an operand or output."""
        if not dim:
            return ()
        _, tree, count = self.tree(dim)
        names = slot.names or tuple([n for part in slot.parts for n in part.names])
        if len(names) == 1 or place in bound.broken:
            label = label_of(names[0])
            if place in bound.broken:
                whole.update(label_of(name) for name in names)
            labels = (label,) * count
        else:
            labels = tuple([
                label for name in names if bound.form.sizes.get(name) != 0
                for label in (label_of(name),) * self.tree(bound.env[name])[2]
            ])
        if len(labels) != count:
            raise Bug(f"{bound.node.name}: {len(labels)} labels for {count} leaves of dim {place}")
        return labels if count == 1 else _apart(tree, labels, whole)

    def _view(self, bound: Bound) -> Binding:
        """A view: one label for each factor, the same on both sides; unmatched ones are whole."""
        value, out = bound.operands[0][1], bound.node.outs[0].name
        left = [self._atom(atom)[1] for dim in self.dims[value] for atom in atoms(dim)]
        sides = [[self._atom(atom)[1] for atom in atoms(dim)] for dim in self.dims[out]]
        total = sum(map(len, sides))
        if bound.front == len(sides):
            front, back = total, 0
        else:
            front = sum(map(len, sides[: bound.front]))
            back = sum(map(len, sides[len(sides) - bound.back :]))
        ins = _numbered(left, front, back)
        outs = _numbered([count for side in sides for count in side], front, back)
        operands = [
            Operand(value, bound.operands[0][0], self._grouped(self.dims[value], ins)),
            *(Operand(name, location, tuple(
                [("other",) * self.tree(dim)[2] for dim in self.dims[name]]
            )) for location, name in bound.operands[1:]),
        ]
        return Binding(
            bound.node.name, bound.form.text, tuple(operands),
            (Operand(out, ("out", 0), self._grouped(self.dims[out], outs)),),
            frozenset({WHOLE}), bool(bound.form.linear), rules_of(bound), frozenset({"other"}),
        )

    def _grouped(self, dims: list[Dim], labels: list[tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
        """Labels a factor, put together by dim."""
        found, at = [], 0
        for dim in dims:
            count = len(atoms(dim))
            found.append(tuple([label for atom in labels[at : at + count] for label in atom]))
            at += count
        return tuple(found)


def _numbered(counts: list[int], front: int, back: int) -> list[tuple[str, ...]]:
    """One label a factor, repeated for each of its leaves, numbered from the matched ends."""
    last = len(counts) - back
    return [
        ((f"a{i}" if i < front else f"b{len(counts) - i}" if i >= last else WHOLE),) * count
        for i, count in enumerate(counts)
    ]


def _apart(tree: Tree, labels: tuple[str, ...], whole: set[str]) -> tuple[str, ...]:
    """Mark repeats of one leaf in a product under one label: only the first may be cut."""
    if not isinstance(tree, Prod):
        return labels
    found, seen, at = list(labels), set(), 0
    for kid in tree.kids:
        if isinstance(kid, Leaf):
            key = (labels[at], kid.id)
            if key in seen:
                found[at] = f"{labels[at]}'"
                whole.add(found[at])
            seen.add(key)
            at += 1
        else:
            at += sum(1 for _ in leaves(kid))
    return tuple(found)


def rules_of(bound: Bound) -> tuple[str, ...]:
    """The rules of a bound row, with how partial operands pass."""
    linear = bound.form.linear
    return (*bound.form.rules, f"linear:{linear}") if linear else bound.form.rules
