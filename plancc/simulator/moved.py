"""What the runner itself moves around a step: outputs to all ranks, and caches between two variants.

The same moves as `Runner.everywhere` and `plancc.runtime.migrate.move_caches` make.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from plancc.ir.layout import Layout
from plancc.ir.mesh import Grid
from plancc.ir.program import Compute, Held, ProgramSet
from plancc.passes.estimate_memory import CACHE
from plancc.runtime.dims import Dim
from plancc.runtime.matching import find_routes
from plancc.runtime.owners import Owners
from plancc.runtime.view import Members
from plancc.simulator import calls
from plancc.simulator.calls import Verbs
from plancc.simulator.place import Place, Sizes, owned_parts
from plancc.simulator.verbs import members, sized

Tables = tuple[Owners, Owners]
"""Who owns which cached positions before a switch and after it."""


def outputs_of(programs: ProgramSet) -> dict[str, Held]:
    """The outputs of a step by name, as the stages that make them hold them."""
    return {name: held for program in programs.programs for name, held in program.outputs.items()}


def output_verbs(held: Held, place: Place, ranks: Sequence[int]) -> Verbs:
    """The calls of one rank that bring an output of one micro-batch, whole, to all `ranks`.

    `place` has the sizes of the micro-batch; the rank need not have any of the output.
    """
    has = [place.dim(tree) for tree in held.layout.dims]
    wants = [Dim.leaf(dim.total, (), lambda part: None) for dim in has]
    source = members(place.view, held.stage.mesh, held.stage.coords)
    return moved(place, source, has, Members("world", "", tuple(ranks)), wants, held)


def cache_verbs(
    old: ProgramSet, new: ProgramSet, rank: int, grids: Mapping[str, Grid], sizes: Sizes,
    owners: Tables | None = None,
) -> Verbs:  # fmt: skip
    """The calls of one rank that give the caches of a micro-batch to their owners under other programs.

    `sizes` are those of the next step: its `past` positions move. Without `owners` the tables are those
    of a prompt of that length.
    """
    tables = owners or default_tables(old, new, sizes.past)
    cached = Sizes(sizes.batch, sizes.past)  # as after a prefill
    before, after = (place_of(rank, grids, cached, own) for own in tables)
    single = [place_of(rank, grids, Sizes(1, sizes.past), own) for own in tables]
    found: Verbs = ()
    there = cache_helds(new)
    for slot, pair in cache_helds(old).items():
        ends = list(zip(pair, there[slot], strict=True))
        if all(same_place(single, a, b) for a, b in ends):
            continue
        for a, b in ends:
            found += moved(
                before, members(before.view, a.stage.mesh, a.stage.coords), dims_of(before, a.layout),
                members(after.view, b.stage.mesh, b.stage.coords), dims_of(after, b.layout), a,
            )  # fmt: skip
    return found


def moved(
    place: Place, source: Members, has: Sequence[Dim], target: Members, wants: Sequence[Dim],
    held: Held,
) -> Verbs:  # fmt: skip
    """A rank's messages of one value between two sets of ranks."""
    routes = find_routes(place.view, source, has, target, wants)
    item = held.dtype.itemsize
    return calls.exchange(place.rank, sized(routes.sends, item, ""), sized(routes.recvs, item, ""))


def dims_of(place: Place, layout: Layout) -> list[Dim]:
    """The dims of a value as a rank has them."""
    return [place.dim(tree) for tree in layout.dims]


def place_of(rank: int, grids: Mapping[str, Grid], sizes: Sizes, owners: Owners) -> Place:
    """A rank's place under tables that are known."""
    place = Place(rank, grids, sizes)
    place.view.owners = owners
    return place


def default_tables(old: ProgramSet, new: ProgramSet, past: int) -> Tables:
    """The tables where a prompt of `past` tokens ran under the old programs, and the new ones begin."""
    before = Owners()
    before.keep(parts_of(old), past)
    after = Owners(before)
    after.keep(parts_of(new), past)
    return before, after


def parts_of(programs: ProgramSet) -> tuple[Any, ...]:
    """The parts along which cached positions have owners, over all classes."""
    return tuple(dict.fromkeys(p for program in programs.programs for p in owned_parts(program)))


def same_place(places: Sequence[Place], a: Held, b: Held) -> bool:
    """Whether two values lie on the same stage in the same layout, each under its own tables."""
    one, other = (dims_of(place, held.layout) for place, held in zip(places, (a, b), strict=True))
    stages = [(held.stage.mesh, held.stage.coords) for held in (a, b)]
    return stages[0] == stages[1] and [d.key for d in one] == [d.key for d in other]


def cache_helds(programs: ProgramSet) -> dict[int, tuple[Held, ...]]:
    """Slot -> how the keys and values of one attention are held, over all classes."""
    return {
        step.args[2]: step.outs
        for program in programs.programs
        for step in program.instructions
        if isinstance(step, Compute) and step.target == CACHE
    }
