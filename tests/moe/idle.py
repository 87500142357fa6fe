"""Idle shares on paper: the programs' own order with a cost for each attention and each expert layer.

Messages take no time; a receive waits for all senders, a collective for all classes of its stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from plancc.ir.mesh import mesh_of
from plancc.ir.program import (
    Backward,
    Compute,
    Instruction,
    ProgramSet,
    RankProgram,
    Recv,
    Send,
    Transfer,
)
from plancc.passes.overlap_transfers import part_of, turns
from plancc.passes.run_programs import classes_of, together

Timed = tuple[str, int, Instruction]
"""(section, micro-batch, instruction)."""
FORWARD = {"plancc.attention.default": "attention", "plancc.experts.default": "experts"}
BACKWARD = {"_q_proj": "attention", "experts_": "experts"}


@dataclass
class Costs:
    """Units of time of one micro-batch's layer: forward; the backward takes twice as long."""

    attention: float = 1.0
    experts: float = 1.0

    def of(self, step: Instruction) -> float:
        """The time of one instruction."""
        if isinstance(step, Compute):
            return float(getattr(self, FORWARD.get(step.target, ""), 0.0))
        if isinstance(step, Backward):
            kinds = {k for part, k in BACKWARD.items() if any(part in w for w in step.weights)}
            return sum(2.0 * getattr(self, kind) for kind in kinds)
        return 0.0


def order_of(program: RankProgram, programs: ProgramSet) -> Iterator[Timed]:
    """What a class runs in one step, in order, without the reduction of gradients."""
    count = programs.microbatches
    if not program.sections:
        yield from (("step", batch, step) for batch, step in turns(program, count))
        return
    size = programs.turns
    for first in range(0, count, size):
        for kind in ("forward", "backward"):
            for batch, step in turns(part_of(program, kind), size):
                yield kind, first + batch, step


@dataclass
class Clock:
    """One class on its way."""

    name: str
    steps: Sequence[Timed]
    at: int = 0
    now: float = 0.0
    busy: float = 0.0
    met: dict = field(default_factory=dict)


def idle_shares(programs: ProgramSet, costs: Costs | None = None) -> Mapping[str, float]:
    """Mesh -> the share of the step in which its ranks compute nothing."""
    costs = costs or Costs()
    clocks = [Clock(p.name, list(order_of(p, programs))) for p in programs.programs]
    homes = classes_of(programs)
    posted: dict[tuple, float] = {}
    meetings: dict[tuple, dict[str, float]] = {}
    moved = True
    while moved:
        moved = False
        for clock in clocks:
            while clock.at < len(clock.steps) and advance(clock, homes, posted, meetings, costs):
                moved = True
    assert all(clock.at == len(clock.steps) for clock in clocks), "the programs wait for ever"
    end = max(clock.now for clock in clocks)
    found: dict[str, list[float]] = {}
    for clock, program in zip(clocks, programs.programs, strict=True):
        mesh = mesh_of(program.stages[0].mesh)
        found.setdefault(mesh, []).extend([1 - clock.busy / end] * len(program.ranks))
    return {mesh: sum(shares) / len(shares) for mesh, shares in found.items()}


def advance(
    clock: Clock, homes: Mapping, posted: dict[tuple, float], meetings: dict, costs: Costs
) -> bool:  # fmt: skip
    """Take the next instruction of a class; False if it must wait."""
    section, batch, step = clock.steps[clock.at]
    if isinstance(step, (Send, Recv, Transfer)):
        edge = step.edge
        if not isinstance(step, Recv):
            posted.setdefault((section, edge.index, batch, clock.name), clock.now)
        if not isinstance(step, Send):
            givers = [name for name in homes[edge.source] if name != clock.name]
            times = [posted.get((section, edge.index, batch, name)) for name in givers]
            if any(time is None for time in times):
                return False
            clock.now = max([clock.now, *(t for t in times if t is not None)])
    elif together(step):
        stage = step.out.stage
        number = clock.met.get(stage, 0)
        arrived = meetings.setdefault((stage, number), {})
        arrived.setdefault(clock.name, clock.now)
        if len(arrived) < len(homes[stage]):
            return False
        clock.met[stage] = number + 1
        clock.now = max(arrived.values())
    else:
        cost = costs.of(step)
        clock.now, clock.busy = clock.now + cost, clock.busy + cost
    clock.at += 1
    return True


def without_pauses(programs: ProgramSet) -> ProgramSet:
    """The same programs with every pause removed: micro-batches one after the other."""
    return replace(
        programs,
        programs=tuple(
            replace(p, instructions=tuple(
                replace(s, pause=False) if isinstance(s, (Recv, Transfer)) else s
                for s in p.instructions
            ))
            for p in programs.programs
        ),
    )  # fmt: skip
