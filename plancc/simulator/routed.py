"""The messages of routed experts: how many rows come, the rows to their experts, and the results back.

Which tokens choose which experts no layout tells: a `Routing` says how many rows travel. Expected numbers of
rows may be fractions; bytes are rounded to the next whole number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from plancc.ir.layout import LocalTree
from plancc.ir.program import RankProgram, Recv, Send, Transfer
from plancc.runtime.wires import message_bytes
from plancc.simulator import calls
from plancc.simulator.calls import Verbs
from plancc.simulator.expert_layers import ExpertLayer, ExpertLayers
from plancc.simulator.place import Place
from plancc.simulator.routing import Routing, Visit

Tail = tuple[LocalTree, ...]
"""The dims of a value [t, ...] behind its rows."""


class RoutedVerbs:
    """The calls of a program's routed transfers; who visits whom is worked out once for each place."""

    def __init__(self, program: RankProgram, routing: Routing) -> None:
        self.layers, self.routing = ExpertLayers(program), routing
        self._place: Place | None = None
        self._visits: dict[tuple[ExpertLayer, bool], tuple[tuple[Visit, float], ...]] = {}

    def ask(self, step: Send | Recv | Transfer) -> tuple[Callable[..., Verbs], tuple[object, ...]]:
        """The function of a place that answers for a transfer, and its further arguments."""
        edge = step.edge
        if edge.way == "counts":
            name = step.out.name if isinstance(step, Recv) else step.operand
            layer = self.layers.by_name[name]
            tails: tuple[Tail, Tail] = ((), ())
        else:
            layer = self.layers.of(edge)
            tails = (edge.before.dims[1:], edge.after.dims[1:])
        gives, takes = not isinstance(step, Recv), not isinstance(step, Send)
        return self.moved, (layer, edge.way, tails, edge.dtype.itemsize, edge.lossy, gives, takes)

    def moved(
        self, place: Place, layer: ExpertLayer, way: str, tails: tuple[Tail, Tail], item: int,
        wire: str, gives: bool, takes: bool,
    ) -> Verbs:  # fmt: skip
        """A transfer's calls: the source's side first, then the target's."""
        back = way == "gather"
        found: Verbs = ()
        if gives:
            sends = self.messages(place, layer, way, back, tails[0], item, wire)
            found = calls.exchange(place.rank, sends, ())
        if takes:
            comes = self.messages(place, layer, way, not back, tails[1], item, wire)
            found += calls.exchange(place.rank, (), comes)
        return found

    def messages(
        self, place: Place, layer: ExpertLayer, way: str, hosts: bool, tail: Tail, item: int,
        wire: str,
    ) -> list[tuple[int, int]]:  # fmt: skip
        """(other rank, bytes) of a rank that has tokens, or that `hosts` experts."""
        width = prod(int(place.dim(tree)) for tree in tail)
        found = []
        for visit, rows in self.visits(place, layer, hosts):
            other = visit.source if hosts else visit.target
            size = item if way == "counts" else row_bytes(rows, width, item, wire)
            found.append((other, size))
        return found

    def visits(
        self, place: Place, layer: ExpertLayer, hosts: bool
    ) -> Sequence[tuple[Visit, float]]:
        """The visits that this rank makes, or gets as one that `hosts` experts, with their rows."""
        if place is not self._place:
            self._place, self._visits = place, {}
        key = (layer, hosts)
        if key not in self._visits:
            visits = (self.layers.taken if hosts else self.layers.given)(place, layer)
            self._visits[key] = tuple((visit, self.routing.rows(visit)) for visit in visits)
        return self._visits[key]


def row_bytes(rows: float, width: int, item: int, wire: str) -> int:
    """The bytes of `rows` rows of `width` elements in their own type or in a wire type."""
    if wire:
        return message_bytes(wire, (round(rows * width),))
    return round(rows * width * item)
