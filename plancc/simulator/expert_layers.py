"""The expert layers of a program whose tokens are routed: who visits whom, from the layouts alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from plancc.dsl.errors import Bug
from plancc.ir.instruction import Compute, Edge, Held, Recv, Transfer
from plancc.ir.layout import LocalTree, Part, Stage, cuts
from plancc.ir.program import RankProgram, produced
from plancc.passes.route_experts import ROUTE
from plancc.runtime.dims import Coord, Dim, length
from plancc.simulator.place import Place
from plancc.simulator.routing import Shares, Visit

EXPERTS = frozenset({"plancc.experts.default", "plancc.placed_experts.default"})
GATE_UP, INDEX = 3, 1
"""Where the first weight [E, ...] and the chosen experts [t, k] stand among the arguments of `experts`."""


@dataclass(frozen=True, slots=True)
class ExpertLayer:
    """A routed expert layer: the ranks of `home` have the tokens [t, ...], those of `target` the experts."""

    path: str
    home: Stage
    target: Stage
    parts: tuple[Part, ...]
    tokens: LocalTree
    experts: LocalTree
    k: int


@dataclass(frozen=True, slots=True)
class Copies:
    """The ranks of a layer: `home` those with tokens, `shards` the copies of each shard of the experts.

    Source number n sends to copy n % count of every shard (`plancc.runtime.routes.listeners`). `places`
    has the shard of each rank with experts, and which copy it is.
    """

    home: tuple[int, ...]
    shards: tuple[tuple[int, ...], ...]
    numbers: Mapping[int, int]
    places: Mapping[int, tuple[int, int]]

    @staticmethod
    def of(place: Place, layer: ExpertLayer) -> Copies:
        """Those of a layer, for the meshes of a place."""
        found: dict[tuple[int | None, ...], list[int]] = {}
        for rank in members(place, layer.target):
            found.setdefault(tuple(place.view.index(rank, p) for p in layer.parts), []).append(rank)
        shards = tuple(map(tuple, found.values()))
        home = members(place, layer.home)
        return Copies(
            home, shards, {rank: n for n, rank in enumerate(home)},
            {rank: (n, at) for n, ranks in enumerate(shards) for at, rank in enumerate(ranks)},
        )  # fmt: skip

    def targets(self, source: int) -> tuple[int, ...]:
        """The ranks to which a source sends."""
        number = self.numbers.get(source)
        if number is None:
            return ()
        return tuple(ranks[number % len(ranks)] for ranks in self.shards)

    def sources(self, target: int) -> tuple[int, ...]:
        """The ranks that send to a target, in order."""
        if target not in self.places:
            return ()
        shard, at = self.places[target]
        return self.home[at :: len(self.shards[shard])]


class ExpertLayers:
    """The routed layers of a program, by the local names of routes, arrivals, and choices that arrived."""

    def __init__(self, program: RankProgram) -> None:
        helds = {held.name: held for held in all_values(program)}
        self.by_name: dict[str, ExpertLayer] = dict(find_layers(program, helds))
        self._copies: dict[tuple[Stage, Stage, tuple[Part, ...]], Copies] = {}
        self._tokens: dict[tuple[Any, ...], dict[int, int]] = {}
        self._held: dict[tuple[Any, ...], tuple[Shares, ...]] = {}

    def of(self, edge: Edge) -> ExpertLayer:
        """The layer whose rows or counts travel along an edge; Bug for an edge of none."""
        for name in edge.routes:
            if name in self.by_name:
                return self.by_name[name]
        raise Bug(f"transfer {edge.index} of {edge.value} belongs to no expert layer")

    def given(self, place: Place, layer: ExpertLayer) -> tuple[Visit, ...]:
        """The visits that the tokens of this rank make, one for each target that it sends to."""
        found = self.copies(place, layer).targets(place.rank)
        return tuple(self.visit(place, layer, place.rank, target) for target in found)

    def taken(self, place: Place, layer: ExpertLayer) -> tuple[Visit, ...]:
        """The visits to this rank, one for each source that sends to it, in order of the sources."""
        found = self.copies(place, layer).sources(place.rank)
        return tuple(self.visit(place, layer, source, place.rank) for source in found)

    def copies(self, place: Place, layer: ExpertLayer) -> Copies:
        """Who sends to whom."""
        key = (layer.home, layer.target, layer.parts)
        if key not in self._copies:
            self._copies[key] = Copies.of(place, layer)
        return self._copies[key]

    def visit(self, place: Place, layer: ExpertLayer, source: int, target: int) -> Visit:
        """What the tokens of `source` do at `target`."""
        view, copies = place.view, self.copies(place, layer)
        tokens, experts = place.dim(layer.tokens), place.dim(layer.experts)
        counts = self._tokens.setdefault(tokens.key, {})
        if source not in counts:
            counts[source] = length(tokens.ranges(view.coord_of(source)))
        key = (layer.home, layer.target, layer.parts, experts.key)
        held = self._held.get(key)
        if held is None:
            held = self._held[key] = tuple(
                shares(experts, view.coord_of(ranks[0])) for ranks in copies.shards
            )
        first = next((n for n, found in enumerate(held) if found), 0)
        along = [part for leaf in cuts(layer.experts) for part in leaf.parts]
        busiest = copies.shards[first][0]
        return Visit(
            layer.path, source, target, counts[source], layer.k, experts.total,
            held[copies.places[target][0]],
            all(view.index(target, part) == view.index(busiest, part) for part in along), held[first],
        )  # fmt: skip


def first_shard(experts: Dim, parts: tuple[Part, ...]) -> tuple[tuple[int, ...], Shares]:
    """The indices along `parts` of the first shard that has any experts, and what it has."""
    for at in product(*(range(part.count) for part in parts)):
        found = shares(experts, dict(zip(parts, at, strict=True)).get)
        if found:
            return at, found
    return (), ()


def local_visit(place: Place, path: str, tokens: int, k: int, experts: LocalTree) -> Visit:
    """The visit of a rank's tokens to its own experts, where nothing is routed."""
    dim = place.dim(experts)
    mine = shares(dim, place.view.coord_of(place.rank))
    parts = tuple(part for leaf in cuts(experts) for part in leaf.parts)
    at, first = first_shard(dim, parts)
    busy = tuple(place.view.index(place.rank, part) for part in parts) == at
    return Visit(path, place.rank, place.rank, tokens, k, dim.total, mine, busy, first)


def members(place: Place, stage: Stage) -> tuple[int, ...]:
    """The ranks of a stage."""
    return place.view.stage(stage.mesh, **dict(stage.coords)).ranks


def shares(experts: Dim, coord: Coord) -> Shares:
    """The experts of the rank at `coord`, and which share of their choices it gets."""
    held = [expert for lo, hi in experts.ranges(coord) for expert in range(lo, hi)]
    if not experts.room or experts.table is None:
        return tuple((expert, 1.0) for expert in held)
    hosts = [0] * experts.total
    for ranges in experts.table:
        for lo, hi in ranges:
            for expert in range(lo, hi):
                hosts[expert] += 1
    return tuple((expert, 1 / hosts[expert]) for expert in held)


def find_layers(
    program: RankProgram, helds: Mapping[str, Held]
) -> Iterator[tuple[str, ExpertLayer]]:
    """(name of a route, of arrivals or of the choices that arrived; its layer)."""
    edges: dict[str, Edge] = {}
    for step in program.instructions:
        if isinstance(step, (Recv, Transfer)) and step.edge.way == "scatter":
            edges[step.out.name] = step.edge
        if not isinstance(step, Compute):
            continue
        if step.target == ROUTE:
            index, experts, how = helds[step.args[0].name], step.args[2], step.kwargs
            yield step.outs[0].name, ExpertLayer(
                step.origin.path, how["home"], how["target"], how["parts"],
                index.layout.dims[0], experts.tree, chosen(index),
            )  # fmt: skip
        elif step.target in EXPERTS and step.args[INDEX].name in edges:
            index, weight = helds[step.args[INDEX].name], helds[step.args[GATE_UP].name]
            edge = edges[index.name]
            layer = ExpertLayer(
                step.origin.path, edge.source, edge.target, edge.parts, edge.before.dims[0],
                weight.layout.dims[0], chosen(index),
            )  # fmt: skip
            yield edge.routes[1], layer
            yield index.name, layer


def chosen(index: Held) -> int:
    """How many experts a token chooses, from the layout of the choices [t, k]."""
    found = 1
    for leaf in cuts(index.layout.dims[1]):
        if not isinstance(leaf.size, int):
            raise Bug(f"the number of experts of a token in {index.name} is {leaf.size}")
        found *= leaf.size
    return found


def all_values(program: RankProgram) -> Iterator[Held]:
    """Every value that a program has: inputs, weights, results."""
    yield from program.inputs
    for weight in program.weights:
        yield weight.held
    for step in program.instructions:
        yield from produced(step)
