"""RankProgram: the straight list of instructions that one class of ranks runs.

Ranks that differ only in coordinates share a program. One form feeds emit, check, verify, simulate, draw.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from plancc.ir.graph import Ref
from plancc.ir.instruction import (
    Collective,
    Compute,
    Edge,
    Free,
    Held,
    LocalDim,
    LocalRanges,
    LocalStart,
    Merge,
    Origin,
    Recv,
    Send,
    Transfer,
)
from plancc.ir.layout import Part, Stage
from plancc.ir.recorded import (
    Accumulate,
    Await,
    Backward,
    Bucket,
    Launch,
    Leaf,
    Recording,
    Release,
    Restore,
    Section,
    Store,
    TakeGrad,
    TakeSlice,
)
from plancc.ir.schedule import Schedule

__all__ = [
    "Accumulate",
    "Await",
    "Backward",
    "Balanced",
    "Bucket",
    "Collective",
    "Compute",
    "Edge",
    "Free",
    "Held",
    "Instruction",
    "Launch",
    "Leaf",
    "LocalDim",
    "LocalRanges",
    "LocalStart",
    "Merge",
    "Origin",
    "ProgramSet",
    "RankProgram",
    "Recording",
    "Recv",
    "Release",
    "Restore",
    "Section",
    "Send",
    "Store",
    "TakeGrad",
    "TakeSlice",
    "Transfer",
    "Weight",
    "operands",
    "produced",
    "refs",
]

Instruction = (
    Compute | Collective | Send | Recv | Transfer | Merge | Free
    | Leaf | Backward | Accumulate | TakeGrad | Bucket | Recording
    | TakeSlice | Store | Release | Restore | Launch | Await
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Weight:
    """A parameter or buffer as a class of ranks holds it, and the checkpoint names it is read by."""

    held: Held
    fqns: tuple[str, ...]
    kind: str
    frozen: bool = False


@dataclass(frozen=True, slots=True)
class Balanced:
    """An expert layer whose experts a table places: `part` cuts them, its rule names the table.

    The table is looked at every `every` steps (0: never) and changed where the greatest load is more than
    1 + `tolerance` times the mean.
    """

    path: str
    part: Part
    experts: int
    every: int
    tolerance: float
    policy: str
    groups: int
    nodes: int


@dataclass(frozen=True, slots=True)
class RankProgram:
    """What the ranks of one class run, in order. `outputs` maps output name -> value."""

    name: str
    stages: tuple[Stage, ...]
    ranks: tuple[int, ...]
    phase: str
    variant: int
    inputs: tuple[Held, ...]
    weights: tuple[Weight, ...]
    instructions: tuple[Instruction, ...]
    outputs: Mapping[str, Held]
    slots: int = 0
    leaf_names: Mapping[int, str] = field(default_factory=dict)
    sections: tuple[Section, ...] = ()  # of training only: the functions, in order
    gradients: Mapping[str, Held] = field(default_factory=dict)  # weight -> its reduced gradient

    def section(self, index: int) -> tuple[Instruction, ...]:
        """The instructions of one section."""
        stops = [*(s.start for s in self.sections[1:]), len(self.instructions)]
        return self.instructions[self.sections[index].start : stops[index]]


@dataclass(frozen=True, slots=True)
class ProgramSet:
    """All classes of one variant and phase: every rank of the world is in exactly one."""

    phase: str
    variant: int
    guard: str
    programs: tuple[RankProgram, ...]
    microbatches: int = 1
    schedule: Schedule | None = None  # of training with a pipeline
    balance: tuple[Balanced, ...] = ()
    turns: int = 1  # of training: micro-batches that take turns at the pauses of their functions


def produced(instruction: Instruction) -> tuple[Held, ...]:
    """The values that an instruction gives."""
    if isinstance(instruction, Compute):
        return instruction.outs
    if isinstance(instruction, (Collective, Recv, Transfer, Leaf, TakeGrad, TakeSlice)):
        return (instruction.out,)
    if isinstance(instruction, Backward):
        return instruction.grads
    if isinstance(instruction, (Bucket, Await)):
        return instruction.outs
    if isinstance(instruction, Merge):
        return (instruction.out, instruction.out_rows)
    return ()


def operands(instruction: Instruction) -> tuple[str, ...]:
    """The local names that an instruction reads."""
    if isinstance(instruction, Compute):
        return tuple(refs((instruction.args, tuple(instruction.kwargs.values()))))
    if isinstance(instruction, Send):
        return tuple(n for n in (instruction.operand, instruction.edge.routes[0]) if n)
    if isinstance(instruction, Recv):
        return tuple(n for n in instruction.edge.routes[1:] if n)
    if isinstance(instruction, Transfer):
        return tuple(n for n in (instruction.operand, *instruction.edge.routes) if n)
    if isinstance(instruction, Collective):
        return (instruction.operand,)
    if isinstance(instruction, Merge):
        return (instruction.operand, instruction.rows)
    if isinstance(instruction, (Leaf, Accumulate, Store, Release)):
        return (instruction.operand,)
    if isinstance(instruction, Launch):
        return () if instruction.takes else operands(instruction.step)
    if isinstance(instruction, Restore):
        return (instruction.operand, instruction.source)
    if isinstance(instruction, Backward):
        return (*instruction.outs, *instruction.given, *instruction.leaves)
    return instruction.operands if isinstance(instruction, Bucket) else ()


def refs(arg: Any) -> Iterator[str]:
    """Names of the Refs inside nested arguments."""
    if isinstance(arg, Ref):
        yield arg.name
    elif isinstance(arg, (tuple, list)):
        for item in arg:
            yield from refs(item)
