"""Let micro-batches take turns while one of them waits for another mesh (ping-pong).

`comm a <-> b { overlap = async(batches = 2) }`: where a rank would wait for the other mesh, it goes on with
its next micro-batch. A pause stands before the first receive of a burst; both sides then see one order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

from plancc.dsl.diagnostics import Report
from plancc.dsl.errors import Bug
from plancc.dsl.plan import Call, Comm, ResolvedPlan, Variant
from plancc.ir.layout import Stage
from plancc.ir.mesh import mesh_of
from plancc.ir.program import (
    Collective,
    Instruction,
    Merge,
    ProgramSet,
    RankProgram,
    Recv,
    Send,
    Transfer,
)
from plancc.passes.base import Unit
from plancc.passes.plan_schedule import virtual_stages

Pair = frozenset[str]


@dataclass(frozen=True)
class OverlapTransfers:
    """Mark where programs pause, for the edges that the plan overlaps; P501 for edges that do not exist."""

    name: ClassVar[str] = "overlap-transfers"

    def run(self, unit: Unit, report: Report) -> Unit:
        """Fill `pause` of receives in `programs`."""
        assert unit.programs is not None
        check_traffic(unit, report)
        pairs = in_turns(unit.plan, unit.variant)
        if not pairs or unit.programs.microbatches < 2:
            return unit
        if unit.training is not None:
            # a pipeline keeps its ranks busy by its schedule
            if unit.plan.pipelines:
                return unit
            programs, problem = training_turns(unit.programs, set(pairs))
            check_order(unit, pairs, problem, report)
            return replace(unit, programs=programs)
        bursts = sending_bursts(unit.programs)
        # virtual stages come back to their ranks, which would else wait for themselves
        turning = {*pairs, *(frozenset({mesh}) for mesh, _ in virtual_stages(unit.plan))}
        programs = tuple(paused(p, turning, bursts) for p in unit.programs.programs)
        check_order(unit, pairs, disorder(programs, unit.programs.microbatches), report)
        return replace(unit, programs=replace(unit.programs, programs=programs))


def check_order(
    unit: Unit, pairs: Mapping[Pair, int], problem: str | None, report: Report
) -> None:  # fmt: skip
    """P501 where turns mix up messages between meshes that share some devices; else that is a Bug."""
    if problem is None:
        return
    assert unit.programs is not None
    homes = [{mesh_of(stage.mesh) for stage in p.stages} for p in unit.programs.programs]
    shared = [pair for pair in pairs if any(pair <= meshes for meshes in homes)]
    for comm in active_comms(unit.plan, unit.variant):
        a, b = str(comm.source), str(comm.target)
        if comm.kind in ("edge", "both") and frozenset({a, b}) in shared:
            report.error(
                "P501", f"micro-batches cannot take turns between `{a}` and `{b}`", comm.span,
                label="some devices are in both meshes, others in one",
                help=["place the meshes on devices of their own, or remove `overlap`"],
            )  # fmt: skip
    if not shared:
        raise Bug(f"micro-batches taking turns would mix up messages: {problem}")


def in_turns(plan: ResolvedPlan, variant: Variant | None) -> dict[Pair, int]:
    """Pairs of meshes whose traffic overlaps with other micro-batches (`batches`, `chunks`): how many."""
    return {**overlapped(plan, variant, "chunks"), **overlapped(plan, variant, "batches")}


def training_turns(programs: ProgramSet, pairs: set[Pair]) -> tuple[ProgramSet, str | None]:
    """Training programs whose forwards take turns, and then their backwards; what that mixes up."""
    problem = None
    for kind in ("forward", "backward"):
        parts = [part_of(program, kind) for program in programs.programs]
        bursts = sending_bursts(replace(programs, programs=tuple(parts)))
        done = tuple(paused(part, pairs, bursts) for part in parts)
        problem = problem or disorder(done, programs.microbatches)
        programs = replace(
            programs,
            programs=tuple(
                with_part(program, kind, part)
                for program, part in zip(programs.programs, done, strict=True)
            ),
        )
    return replace(programs, turns=programs.microbatches), problem


def part_of(program: RankProgram, kind: str) -> RankProgram:
    """A class with the instructions of one kind of section only."""
    found: list[Instruction] = []
    for index, section in enumerate(program.sections):
        if section.kind == kind:
            found += program.section(index)
    return replace(program, instructions=tuple(found))


def with_part(program: RankProgram, kind: str, part: RankProgram) -> RankProgram:
    """A class with other instructions (as many) in one kind of section."""
    fresh = iter(part.instructions)
    steps: list[Instruction] = []
    for index, section in enumerate(program.sections):
        mine = program.section(index)
        steps += [next(fresh) for _ in mine] if section.kind == kind else mine
    return replace(program, instructions=tuple(steps))


def active_comms(plan: ResolvedPlan, variant: Variant | None) -> Iterator[Comm]:
    """The comm lines that hold in a variant (in any, for None)."""
    for comm in plan.comms:
        if comm.guard is None or variant is None or variant.guards.get(comm.guard.text, True):
            yield comm


def edge_comms(plan: ResolvedPlan, variant: Variant | None) -> Iterator[Comm]:
    """Those of edges between meshes."""
    return (comm for comm in active_comms(plan, variant) if comm.kind in ("edge", "both"))


def overlapped(plan: ResolvedPlan, variant: Variant | None, option: str) -> dict[Pair, int]:
    """Pairs of meshes whose traffic overlaps by `option` (depth or batches) of async, and how much."""
    found = {}
    for comm in edge_comms(plan, variant):
        for setting in comm.settings:
            value = setting.value
            if setting.name == "overlap" and isinstance(value, Call) and option in value.options:
                found[frozenset({str(comm.source), str(comm.target)})] = int(value.options[option])
    return found


def check_traffic(unit: Unit, report: Report) -> None:
    """P501: a comm line for an edge along which nothing is sent."""
    used = set()
    for _, step in unit.instructions:
        if isinstance(step, Transfer):
            used.add((mesh_of(step.edge.source.mesh), mesh_of(step.edge.target.mesh)))
    for pipeline in unit.plan.pipelines:
        for source, target in pairwise(pipeline.chain):
            if (source, target) not in used:
                report.error(
                    "P501", f"nothing flows from `{source}` to `{target}` in this pipeline", pipeline.span,
                    help=["name the meshes in the order in which the layers are placed"],
                )  # fmt: skip
    for comm in active_comms(unit.plan, unit.variant):
        ways = {(comm.source, comm.target)} | (
            {(comm.target, comm.source)} if comm.kind == "both" else set()
        )
        if comm.kind in ("edge", "both") and ways & used:
            check_op(unit, comm, ways, report)
        elif comm.kind in ("edge", "both"):
            edges = ", ".join(f"{a} -> {b}" for a, b in sorted(used)) or "none"
            report.error(
                "P501", f"no traffic from `{comm.source}` to `{comm.target}`", comm.span,
                label="nothing is sent along this edge", notes=[f"edges of this plan: {edges}"],
            )  # fmt: skip


def check_op(unit: Unit, comm: Comm, ways: set, report: Report) -> None:
    """P501 for a collective that an edge does not use: routed rows are an all-to-all, the rest is sent."""
    stated = next((s for s in comm.settings if s.name == "op"), None)
    if stated is None:
        return
    routed = any(
        step.edge.way
        for _, step in unit.instructions
        if isinstance(step, Transfer)
        and (mesh_of(step.edge.source.mesh), mesh_of(step.edge.target.mesh)) in ways
    )
    found = "all_to_all" if routed else "send"
    if stated.value != found:
        report.error(
            "P501", f"values travel along this edge by {found}, not by {stated.value}", stated.span,
            help=["tokens are routed by `route = top(k)`" if not routed else "remove `op`"],
        )  # fmt: skip


def pair_of(step: Send | Recv | Transfer) -> Pair:
    """The meshes that an edge joins, by their names in the plan."""
    return frozenset({mesh_of(step.edge.source.mesh), mesh_of(step.edge.target.mesh)})


def sending_bursts(programs: ProgramSet) -> frozenset[int]:
    """Edges that a sender gives first after it received or began."""
    found = set()
    for program in programs.programs:
        fresh = True
        for step in program.instructions:
            if isinstance(step, (Recv, Transfer)):
                fresh = True
            if isinstance(step, Send):
                if fresh:
                    found.add(step.edge.index)
                fresh = False
    return frozenset(found)


def paused(program: RankProgram, pairs: set[Pair], bursts: frozenset[int]) -> RankProgram:
    """The program with a pause before the first receive of each burst, on both sides a burst."""
    out: list[Instruction] = []
    fresh = True
    for step in program.instructions:
        if isinstance(step, (Recv, Transfer)) and pair_of(step) in pairs:
            if fresh and step.edge.index in bursts:
                step = replace(step, pause=True)
            fresh = False
        elif isinstance(step, Send):
            fresh = True
        out.append(step)
    return replace(program, instructions=tuple(out))


def disorder(programs: tuple[RankProgram, ...], batches: int) -> str | None:
    """What two sides would see in another order when micro-batches take turns; None if nothing."""
    sent: dict[tuple[Stage, Stage], dict[str, list]] = {}
    got: dict[tuple[Stage, Stage], dict[str, list]] = {}
    together: dict[Stage, dict[str, list]] = {}
    for program in programs:
        for batch, step in turns(program, batches):
            if isinstance(step, (Send, Recv, Transfer)):
                pair = (step.edge.source, step.edge.target)
                if not isinstance(step, Recv):
                    sent.setdefault(pair, {}).setdefault(program.name, []).append(
                        (batch, step.edge.index)
                    )
                if not isinstance(step, Send):
                    got.setdefault(pair, {}).setdefault(program.name, []).append(
                        (batch, step.edge.index)
                    )
            elif isinstance(step, (Collective, Merge)):
                row = together.setdefault(step.out.stage, {}).setdefault(program.name, [])
                row.append((batch, step.out.name))
    for pair, rows in sent.items():
        orders = [*rows.values(), *got.get(pair, {}).values()]
        if any(order != orders[0] for order in orders):
            return f"{pair[0]} -> {pair[1]}"
    for stage, rows in together.items():
        orders = list(rows.values())
        if any(order != orders[0] for order in orders):
            return f"collectives of {stage}"
    return None


def turns(program: RankProgram, batches: int) -> Iterator[tuple[int, Instruction]]:
    """(micro-batch, instruction) in the order in which a rank runs them."""
    segments: list[list[Instruction]] = [[]]
    for step in program.instructions:
        if isinstance(step, (Recv, Transfer)) and step.pause:
            segments.append([])
        segments[-1].append(step)
    for segment in segments:
        for batch in range(batches):
            for step in segment:
                yield batch, step
