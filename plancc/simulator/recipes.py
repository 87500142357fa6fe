"""Recipes: the different calls of a program, each worked out once for all layers that make it.

A recipe is a call with the numbers of sizes in place of the sizes themselves (`Sizes`), and the form of each
operand in memory: row by row, or as an earlier recipe left it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sympy
import torch

from plancc.ir.graph import Ref
from plancc.ir.instruction import Held, LocalDim, LocalRanges, LocalStart
from plancc.ir.layout import CutLeaf, Layout, LocalTree, Part
from plancc.simulator.expert_layers import ExpertLayer, ExpertLayers, local_visit
from plancc.simulator.local_call import ExpertRows
from plancc.simulator.place import Place
from plancc.simulator.routing import Routing

Form = tuple[str, int, int] | None
"""How a value lies in memory: row by row (None), as result n of a recipe ("view", recipe, n), or with its
dims in that order ("dense", recipe, n)."""


@dataclass(frozen=True, slots=True)
class Number:
    """Size number `at` of the program, in the arguments of a call."""

    at: int


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor in the arguments of a call: the numbers of its sizes, its type, its form in memory."""

    dims: tuple[int, ...]
    dtype: torch.dtype
    form: Form = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """A call; or, with `gradient_of`, the gradients of the operands that `needs` tells of another recipe.

    `late`: only what a W action computes. `routed` is the number of the rows that experts get.
    """

    target: str
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()
    outs: tuple[Operand, ...] = ()
    extra: tuple[tuple[str, Any], ...] = ()
    routed: Number | None = None
    gradient_of: int | None = None
    needs: tuple[bool, ...] = ()
    late: bool = False


@dataclass(frozen=True, slots=True)
class OwnExperts:
    """The experts of a layer that is not routed: every rank has the tokens, and some of the experts."""

    path: str
    tokens: LocalTree
    k: int
    experts: LocalTree


@dataclass(frozen=True, slots=True)
class First:
    """Whether the rank is the first one along some parts."""

    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Pieces:
    """Of how many ranges a rank's share of a dim is made."""

    tree: LocalTree


Source = Any
"""What a number is worked out from: one of the types of VALUES, or a size of the step."""


class Sizes:
    """The numbers that the work of a program depends on, each once; a place has a value for each."""

    def __init__(self, layers: ExpertLayers, routing: Routing) -> None:
        self.layers, self.routing = layers, routing
        self.sources: list[Source] = []
        self._places: dict[Source, int] = {}
        self._plain: dict[LocalTree, LocalTree] = {}

    def number(self, source: Source) -> int:
        """The place of a source among the numbers."""
        if source not in self._places:
            self._places[source] = len(self.sources)
            self.sources.append(source)
        return self._places[source]

    def plain(self, tree: LocalTree) -> LocalTree:
        """A tree without the names of its leaves: what its size depends on."""
        found = self._plain.get(tree)
        if found is None:
            if isinstance(tree, CutLeaf):
                found = CutLeaf(0, tree.size, tree.parts)
            else:
                found = type(tree)(tuple(map(self.plain, tree.kids)))  # type: ignore[arg-type]
            self._plain[tree] = found
        return found

    def dims(self, layout: Layout) -> tuple[int, ...]:
        """The numbers of a value's sizes."""
        return tuple(self.number(LocalDim(self.plain(tree))) for tree in layout.dims)

    def routed(self, layer: ExpertLayer | OwnExperts) -> Number:
        """The number of the rows that a layer's experts get."""
        same = replace(layer, experts=self.plain(layer.experts), tokens=self.plain(layer.tokens))
        if not self.routing.by_path:
            same = replace(same, path="")
        return Number(self.number(same))

    def values(self, place: Place) -> tuple[Any, ...]:
        """The values of all numbers."""
        return tuple(
            VALUES[type(one)](self, one, place) if type(one) in VALUES else place.sizes.value(one)
            for one in self.sources
        )

    def rows(self, layer: ExpertLayer, place: Place) -> ExpertRows:
        """What the experts of this rank get from all sources."""
        visits, routing = self.layers.taken(place, layer), self.routing
        return ExpertRows(
            sum(map(routing.rows, visits)), sum(map(routing.picks, visits)), routing.used(visits)
        )

    def own_rows(self, layer: OwnExperts, place: Place) -> ExpertRows:
        """What they get of the rank's own tokens."""
        tokens = int(place.dim(layer.tokens))
        visit = local_visit(place, layer.path, tokens, layer.k, layer.experts)
        return ExpertRows(tokens, self.routing.picks(visit), self.routing.used((visit,)))


def _is_first(sizes: Sizes, one: First, place: Place) -> bool:
    return all(place.view.index(place.rank, part) == 0 for part in one.parts)


VALUES: Mapping[type, Callable[[Sizes, Any, Place], Any]] = {
    LocalDim: lambda sizes, one, place: int(place.dim(one.tree)),
    LocalStart: lambda sizes, one, place: place.view.start(place.dim(one.tree)),
    LocalRanges: lambda sizes, one, place: place.view.ranges(place.dim(one.tree)),
    Pieces: lambda sizes, one, place: len(place.view.ranges(place.dim(one.tree))),
    First: _is_first,
    ExpertLayer: Sizes.rows,
    OwnExperts: Sizes.own_rows,
}  # fmt: skip
"""How the value of a source is found; all other sources are sizes of the step."""


@dataclass
class Recipes:
    """The recipes of a program so far, and how its values lie in memory."""

    sizes: Sizes
    helds: Mapping[str, Held]
    found: list[Recipe] = field(default_factory=list)
    forms: dict[str, Form] = field(default_factory=dict)
    _places: dict[Recipe, int] = field(default_factory=dict)

    def add(self, recipe: Recipe) -> int:
        """The number of a recipe; equal ones are one."""
        if recipe not in self._places:
            self._places[recipe] = len(self.found)
            self.found.append(recipe)
        return self._places[recipe]

    def operand(self, name: str) -> Operand:
        """A value by its local name."""
        return self.of(self.helds[name], self.forms.get(name))

    def of(self, held: Held, form: Form = None) -> Operand:
        """A value, which lies row by row unless told."""
        return Operand(self.sizes.dims(held.layout), held.dtype, form)

    def step(
        self, target: str, ins: Sequence[Operand], outs: Sequence[Operand], **extra: Any
    ) -> int:
        """The recipe of an instruction that is no call of an operator."""
        return self.add(Recipe(target, tuple(ins), (), tuple(outs), tuple(extra.items())))

    def argument(self, arg: Any, starts: bool) -> Any:
        """An argument with numbers for sizes; where a range begins is of interest if `starts`."""
        if isinstance(arg, Ref):
            return self.operand(arg.name)
        if isinstance(arg, (tuple, list)):
            return tuple(self.argument(item, starts) for item in arg)
        if isinstance(arg, LocalStart) and not starts:
            return 0
        if isinstance(arg, (LocalDim, LocalStart, LocalRanges)):
            return Number(self.sizes.number(type(arg)(self.sizes.plain(arg.tree))))
        if isinstance(arg, sympy.Expr):
            return Number(self.sizes.number(arg))
        return arg
