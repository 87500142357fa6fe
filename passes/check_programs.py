"""Prove the programs of all ranks fit together: every send has its receive, collectives come in one
order on all members, and nobody waits in a circle. Works on classes, so its cost does not grow with ranks.

Training programs are checked as their schedule runs them (run_programs).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from plancc.dsl.diagnostics import Report
from plancc.dsl.errors import Bug
from plancc.ir.layout import Stage
from plancc.ir.program import (
    Merge,
    ProgramSet,
    RankProgram,
    Recv,
    Send,
    Transfer,
    produced,
)
from plancc.ir.schedule import schedule_problems
from plancc.passes.base import Unit
from plancc.passes.run_programs import (
    LOCAL,
    deadlocks,
    disordered_messages,
    expand,
    parts_of,
    together,
    unequal_calls,
)

__all__ = ["LOCAL", "CheckPrograms", "program_problems"]


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
    if not found and programs.schedule is not None:
        found = schedule_problems(programs.schedule)
    if found:
        return found
    runs = expand(programs)
    found = list(unequal_calls(programs, runs)) + list(disordered_messages(programs, runs))
    return found or list(deadlocks(programs, runs))


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
    found = [
        (name, step)
        for name, steps in parts_of(program)
        for step in steps
        if together(step) and step.out.stage == stage
    ]
    return [
        (
            name, "merge" if isinstance(step, Merge) else step.kind,
            tuple(held.source for held in produced(step)),
            (step.part, *step.spread) if isinstance(step, Merge) else step.parts,
            step.out.layout, step.out.dtype,
        )
        for name, step in found
    ]  # fmt: skip


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
