"""A rank's place in a step: its exact local sizes, as the programs work them out when they run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import sympy

from plancc.ir.graph import BATCH, PAST, TOKENS, Size
from plancc.ir.layout import CutLeaf, Layout, LocalTree, Part, cuts
from plancc.ir.mesh import Grid
from plancc.ir.program import Held, RankProgram, Recv, Send, Transfer, produced
from plancc.ir.shape import Prod
from plancc.runtime.dims import Dim
from plancc.runtime.owners import Owners, is_owned
from plancc.runtime.view import View


@dataclass(frozen=True, slots=True)
class Sizes:
    """The global sizes of one micro-batch in a step: sequences, new tokens and cached tokens of each."""

    batch: int
    tokens: int
    past: int = 0

    def value(self, size: Size) -> int:
        """A size with these numbers for its symbols."""
        if isinstance(size, int):
            return size
        return int(_function(size)(self.batch, self.tokens, self.past))


@lru_cache(maxsize=65536)
def _function(size: sympy.Expr) -> Any:
    return sympy.lambdify((BATCH, TOKENS, PAST), size, modules="math")


class Place:
    """One rank in a step of `sizes`. Owners of cached positions are those of a prompt of `past` tokens."""

    def __init__(
        self, rank: int, grids: Mapping[str, Grid], sizes: Sizes, owned: tuple[Part, ...] = ()
    ) -> None:
        main = next((name for name, grid in grids.items() if rank in grid.coords), "")
        self.view = View(rank, grids, main)
        self.rank, self.sizes = rank, sizes
        self.view.batch, self.view.tokens, self.view.past = sizes.batch, sizes.tokens, sizes.past
        self.view.owners = Owners()
        self.view.owners.keep(owned, sizes.past)
        self.view.owners.extend(sizes.tokens)
        self._dims: dict[LocalTree, Dim] = {}

    def dim(self, tree: LocalTree) -> Dim:
        """The rank's share of a dim, which knows its ranges on other ranks too."""
        found = self._dims.get(tree)
        if found is None:
            found = self._dims[tree] = self._build(tree)
        return found

    def _build(self, tree: LocalTree) -> Dim:
        if isinstance(tree, CutLeaf):
            return self.view.share(self.sizes.value(tree.size), tree.parts)
        op = "mul" if isinstance(tree, Prod) else "add"
        return Dim.join(op, tuple(self.dim(kid) for kid in tree.kids))  # type: ignore[arg-type]

    def shape(self, layout: Layout) -> tuple[int, ...]:
        """The rank's local shape of a value."""
        return tuple(int(self.dim(tree)) for tree in layout.dims)

    def elements(self, layout: Layout) -> int:
        """How many elements the rank holds of a value."""
        return prod(self.shape(layout))

    def nbytes(self, held: Held) -> int:
        """How many bytes the rank holds of a value."""
        return self.elements(held.layout) * held.dtype.itemsize


def owned_parts(program: RankProgram) -> tuple[Part, ...]:
    """The parts of a program along which cached positions have owners."""
    found = {part: None for leaf in cut_leaves(program) for part in leaf.parts if is_owned(part)}
    return tuple(found)


def cut_leaves(program: RankProgram) -> Iterator[CutLeaf]:
    """Every leaf that is cut somewhere in a program, or on the other side of its transfers."""
    layouts = [held.layout for held in program.inputs]
    layouts += [weight.held.layout for weight in program.weights]
    for step in program.instructions:
        layouts += [held.layout for held in produced(step)]
        if isinstance(step, (Send, Recv, Transfer)):
            layouts += [step.edge.before, step.edge.after]
    for layout in dict.fromkeys(layouts):
        for tree in layout.dims:
            yield from (leaf for leaf in cuts(tree) if leaf.parts)
