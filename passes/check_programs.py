"""Prove the programs of all ranks fit together: every send has its receive, collectives come in one
order on all members, and nobody waits in a circle. Works on classes, so its cost does not grow with ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, TypeGuard

from plancc.dsl.diagnostics import Report
from plancc.dsl.errors import Bug
from plancc.ir.layout import Stage
from plancc.ir.program import (
    Bucket,
    Collective,
    Instruction,
    Merge,
    ProgramSet,
    RankProgram,
    Recv,
    Send,
    Transfer,
    produced,
)
from plancc.passes.base import Unit

LOCAL = ("shard", "once")


@dataclass(frozen=True)
class CheckPrograms:
    """Raise Bug if the programs of a unit do not match."""

    name: ClassVar[str] = "check-programs"

    def run(self, unit: Unit, report: Report) -> Unit:
        """Check `programs`."""
        assert unit.programs is not None
        problems = program_problems(unit.programs)
        if problems:
            raise Bug("the rank programs do not match:\n" + "\n".join(problems))
        return unit


def program_problems(programs: ProgramSet) -> list[str]:
    """Everything that keeps the programs from running together; empty if they are sound."""
    found = list(unmatched_edges(programs)) + list(unequal_collectives(programs))
    return found or list(circles(programs))


def unmatched_edges(programs: ProgramSet) -> Iterator[str]:
    """Transfers that a class on either side lacks, has twice, or sees differently."""
    edges: dict[int, Any] = {}
    sides: dict[tuple[str, int, str], int] = {}
    for program in programs.programs:
        for step in program.instructions:
            if isinstance(step, (Send, Recv, Transfer)):
                edge = edges.setdefault(step.edge.index, step.edge)
                if edge != step.edge:
                    yield f"transfer {edge.index} of {edge.value}: {program.name} has another form"
                for side in sides_of(step):
                    key = (program.name, edge.index, side)
                    sides[key] = sides.get(key, 0) + 1
    for edge in edges.values():
        for side, stage in (("send", edge.source), ("receive", edge.target)):
            for program in programs.programs:
                count = sides.get((program.name, edge.index, side), 0)
                wanted = 1 if stage in program.stages else 0
                if count != wanted:
                    yield (
                        f"transfer {edge.index} of {edge.value} ({edge.source} -> {edge.target}): "
                        f"{program.name} has {count} x {side} instead of {wanted}"
                    )


def sides_of(step: Send | Recv | Transfer) -> tuple[str, ...]:
    """Which sides of its edge an instruction is."""
    if isinstance(step, Transfer):
        return ("send", "receive")
    return ("send",) if isinstance(step, Send) else ("receive",)


def collectives(program: RankProgram, stage: Stage) -> list[tuple[Any, ...]]:
    """What the members of a stage must agree on, in order."""
    found = [step for step in program.instructions if together(step) and step.out.stage == stage]
    return [
        (
            "merge" if isinstance(step, Merge) else step.kind,
            tuple(held.source for held in produced(step)),
            (step.part, *step.spread) if isinstance(step, Merge) else step.parts,
            step.out.layout, step.out.dtype,
        )
        for step in found
    ]  # fmt: skip


def together(step: Instruction) -> TypeGuard[Collective | Merge | Bucket]:
    """Whether the ranks of a group must meet at an instruction."""
    if isinstance(step, Collective):
        return step.kind not in LOCAL
    return isinstance(step, (Merge, Bucket))


def unequal_collectives(programs: ProgramSet) -> Iterator[str]:
    """Stages whose classes do not run the same collectives in the same order."""
    by_stage: dict[Stage, RankProgram] = {}
    for program in programs.programs:
        for stage in program.stages:
            first = by_stage.setdefault(stage, program)
            if first is program:
                continue
            a, b = collectives(first, stage), collectives(program, stage)
            if a != b:
                at = next(
                    (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y),
                    min(len(a), len(b)),
                )
                yield f"collective {at} of {stage} differs between {first.name} and {program.name}"


def circles(programs: ProgramSet) -> Iterator[str]:
    """Cycles in who must come before whom: a deadlock."""
    import networkx as nx

    order = nx.DiGraph()
    for program in programs.programs:
        last = None
        counts: dict[Stage, int] = {}
        for step in program.instructions:
            node: tuple[Any, ...]
            if together(step):
                number = counts[step.out.stage] = counts.get(step.out.stage, 0) + 1
                node = ("collective", str(step.out.stage), number)
            elif isinstance(step, Send):
                node = ("send", step.edge.index, program.name)
                for receiver in receivers(programs, step.edge.target):
                    order.add_edge(node, ("receive", step.edge.index, receiver))
            elif isinstance(step, (Recv, Transfer)):
                node = ("receive", step.edge.index, program.name)
            else:
                continue
            if last is not None and last != node:
                order.add_edge(last, node)
            last = node
    try:
        cycle = nx.find_cycle(order)
    except nx.NetworkXNoCycle:
        return
    yield "deadlock: " + " -> ".join(" ".join(map(str, a)) for a, _ in cycle)


def receivers(programs: ProgramSet, stage: Stage) -> list[str]:
    """The classes that live on a stage."""
    return [p.name for p in programs.programs if stage in p.stages]
