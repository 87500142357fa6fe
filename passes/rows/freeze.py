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
        work = _Labels(self, bound, set(pattern.whole))
        operands = tuple(
            [
                Operand(value, location, work.side(index, side, value), side.addend)
                for index, ((location, value), side) in enumerate(
                    zip(bound.operands, bound.sides, strict=True)
                )
            ]
        )
        outs = tuple(
            [
                Operand(out.name, ("out", index), work.side(-1 - index, side, out.name))
                for index, (out, side) in enumerate(zip(bound.node.outs, pattern.outs, strict=True))
            ]
        )
        return Binding(
            bound.node.name,
            form.text,
            operands,
            outs,
            frozenset(work.whole),
            bool(form.linear),
            rules_of(bound),
            frozenset(form.dropped),
        )

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
            *(
                Operand(
                    name,
                    location,
                    tuple([("other",) * self.tree(dim)[2] for dim in self.dims[name]]),
                )
                for location, name in bound.operands[1:]
            ),
        ]
        return Binding(
            bound.node.name,
            bound.form.text,
            tuple(operands),
            (Operand(out, ("out", 0), self._grouped(self.dims[out], outs)),),
            frozenset({WHOLE}),
            bool(bound.form.linear),
            rules_of(bound),
            frozenset({"other"}),
        )

    def _grouped(
        self, dims: list[Dim], labels: list[tuple[str, ...]]
    ) -> tuple[tuple[str, ...], ...]:
        """Labels a factor, put together by dim."""
        found, at = [], 0
        for dim in dims:
            count = len(atoms(dim))
            found.append(tuple([label for atom in labels[at : at + count] for label in atom]))
            at += count
        return tuple(found)


class _Labels:
    """Reads the labels of one bound row off its slots; collects those that must be whole."""

    def __init__(self, freezer: Freezer, bound: Bound, whole: set[str]) -> None:
        assert bound.pattern is not None
        self.freezer, self.bound, self.whole = freezer, bound, whole
        self.kept = {label_of(name) for name in bound.pattern.out_names} | set(bound.form.dropped)

    def side(self, index: int, side: Side, value: str) -> tuple[tuple[str, ...], ...]:
        """The labels of one operand (or output -1 - index), dim by dim."""
        return tuple(
            [
                self.dim((index, at), slot, dim)
                for at, (slot, dim) in enumerate(
                    zip(side.slots, self.freezer.dims[value], strict=True)
                )
            ]
        )

    def dim(self, place: tuple[int, int], slot: Slot, dim: Dim) -> tuple[str, ...]:
        """The label of every leaf occurrence of one dim of an operand or output."""
        if not dim:
            return ()
        bound = self.bound
        _, tree, count = self.freezer.tree(dim)
        names = slot.names or tuple([n for part in slot.parts for n in part.names])
        if len(names) == 1 or place in bound.broken:
            if place in bound.broken:
                self.whole.update(label_of(name) for name in names)
            labels = (label_of(names[0]),) * count
        else:
            labels = tuple(
                [
                    label
                    for name in names
                    if bound.form.sizes.get(name) != 0
                    for label in (label_of(name),) * self.freezer.tree(bound.env[name])[2]
                ]
            )
        if len(labels) != count:
            raise Bug(f"{bound.node.name}: {len(labels)} labels for {count} leaves of dim {place}")
        return labels if count == 1 else self.apart(tree, labels)

    def apart(self, tree: Tree, labels: tuple[str, ...]) -> tuple[str, ...]:
        """Make whole what a label may not cut: a leaf's repeats in a product, and, of a label
        that is summed over, leaves that only some parts of a concatenation have."""
        found, seen, at = list(labels), set(), 0
        for kid in tree.kids if isinstance(tree, Prod) else (tree,):
            if isinstance(kid, Leaf):
                key = (labels[at], kid.id)
                if key in seen:
                    found[at] = self.marked(labels[at])
                seen.add(key)
                at += 1
                continue
            covering = cover(kid)
            for leaf in leaves(kid):
                if labels[at] not in self.kept and leaf.id not in covering:
                    found[at] = self.marked(labels[at])
                at += 1
        return tuple(found)

    def marked(self, label: str) -> str:
        """A twin of a label that is whole."""
        self.whole.add(f"{label}'")
        return f"{label}'"


def cover(tree: Tree) -> frozenset[int]:
    """The leaves that every element of the dim has: those in all parts of a concatenation."""
    if isinstance(tree, Leaf):
        return frozenset({tree.id})
    sets = [cover(kid) for kid in tree.kids]
    if isinstance(tree, Sum):
        return frozenset.intersection(*sets) if sets else frozenset()
    return frozenset().union(*sets)


def _numbered(counts: list[int], front: int, back: int) -> list[tuple[str, ...]]:
    """One label a factor, repeated for each of its leaves, numbered from the matched ends."""
    last = len(counts) - back
    return [
        ((f"a{i}" if i < front else f"b{len(counts) - i}" if i >= last else WHOLE),) * count
        for i, count in enumerate(counts)
    ]


def rules_of(bound: Bound) -> tuple[str, ...]:
    """The rules of a bound row, with how partial operands pass."""
    linear = bound.form.linear
    return (*bound.form.rules, f"linear:{linear}") if linear else bound.form.rules
