"""Who gives how much to whom in one step: a matrix of bytes between ranks, of small worlds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from plancc.ir.mesh import Grid
from plancc.ir.program import Launch, ProgramSet, RankProgram
from plancc.simulator.errors import SimulateError
from plancc.simulator.forms import Verb
from plancc.simulator.phases import micro_batches
from plancc.simulator.place import Place, Sizes, owned_parts
from plancc.simulator.routing import EVEN, Routing
from plancc.simulator.verbs import ProgramVerbs

MOST = 128
"""The ranks of the largest world of which a matrix is made."""
ONCE = ("reduce", "refresh")
"""Functions that run once in a training step, whatever the micro-batches."""


def traffic(
    programs: ProgramSet, grids: Mapping[str, Grid], sizes: Sizes, nodes: Sequence[int] = (),
    base_routing: Routing = EVEN, microbatches: int | None = None,
) -> dict[tuple[int, int], int]:  # fmt: skip
    """(source rank, target rank) -> bytes of one step on `sizes` (those of the whole batch).

    Rings give all to the next rank of their group; other calls what they send to each. SimulateError for
    a world of more than 128 ranks.
    """
    ranks = sum(len(program.ranks) for program in programs.programs)
    if ranks > MOST:
        raise SimulateError(f"a matrix of traffic of {ranks} ranks: at most {MOST} are shown")
    batches = micro_batches(
        sizes.batch, sizes.tokens, sizes.past, microbatches or programs.microbatches
    )
    found: dict[tuple[int, int], int] = {}
    for program in programs.programs:
        verbs = ProgramVerbs(program, grids, nodes, base_routing)
        for rank in program.ranks:
            for call in step_calls(verbs, rank, batches):
                for target, count in given_to(rank, call):
                    found[rank, target] = found.get((rank, target), 0) + count
    return found


def step_calls(verbs: ProgramVerbs, rank: int, batches: Sequence[Sizes]) -> Iterator[Verb]:
    """The calls that a rank makes in one step of these micro-batches."""
    program = verbs.program
    last = last_only(program)
    made: dict[Sizes, list[tuple[Verb, ...]]] = {}
    for number, sizes in enumerate(batches):
        if sizes not in made:
            place = Place(rank, verbs.grids, sizes, owned_parts(program))
            made[sizes] = verbs.verbs(place)
        for calls, late in zip(made[sizes], last, strict=True):
            if not late or number == len(batches) - 1:
                yield from calls


def last_only(program: RankProgram) -> tuple[bool, ...]:
    """Whether each instruction runs once a step: in the reduction, or when gradients are complete."""
    starts = [section.start for section in program.sections if section.kind in ONCE]
    first = min(starts, default=len(program.instructions))
    return tuple(
        at >= first or (isinstance(step, Launch) and bool(step.takes))
        for at, step in enumerate(program.instructions)
    )


def given_to(rank: int, call: Verb) -> Sequence[tuple[int, int]]:
    """(target, bytes) of one call: of a ring, all to the next rank."""
    if call.kind in ("all_to_all", "exchange"):
        return call.sends
    place = call.group.index(rank)
    return ((call.group[(place + 1) % len(call.group)], call.given),) if call.given else ()
