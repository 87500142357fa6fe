"""RankProgram: the straight list of instructions that one class of ranks runs.

Ranks that differ only in coordinates share a program. One form feeds emit, check, verify, simulate, draw.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from plancc.dsl.source import Span
from plancc.ir.graph import Ref
from plancc.ir.layout import Layout, LocalTree, Move, Part, Stage
from plancc.ir.schedule import Schedule


@dataclass(frozen=True, slots=True)
class LocalDim:
    """A size inside arguments: the local size of a tree on the rank that runs the instruction."""

    tree: LocalTree


@dataclass(frozen=True, slots=True)
class LocalStart:
    """The global index at which this rank's range of a leaf begins (embedding rows, experts, query rows)."""

    tree: LocalTree


@dataclass(frozen=True, slots=True)
class LocalRanges:
    """The global positions that this rank holds of a dim, as (lo, hi) ranges (its cached keys)."""

    tree: LocalTree


@dataclass(frozen=True, slots=True)
class Held:
    """A value as a stage holds it: global identity, layout, dtype. `source` is the graph's value name."""

    name: str
    source: str
    layout: Layout
    dtype: torch.dtype
    stage: Stage


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an instruction comes from: module path, model line, plan line."""

    path: str
    line: str
    span: Span | None


@dataclass(frozen=True, slots=True)
class Compute:
    """Call `target` with local operands: Refs (local names), LocalDim, LocalStart, constants."""

    target: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outs: tuple[Held, ...]
    origin: Origin
    node: str = ""


@dataclass(frozen=True, slots=True)
class Collective:
    """A move on one stage that communicates (or, for `shard` and `once`, only slices or masks locally)."""

    kind: str
    operand: str
    out: Held
    move: Move | None
    parts: tuple[Part, ...]
    origin: Origin


@dataclass(frozen=True, slots=True)
class Edge:
    """A transfer of one value between two stages: M x N slices that intersect.

    `channel` keeps streams of messages apart: 1 for gradients, others for values that skip pipeline stages.
    """

    index: int
    source: Stage
    target: Stage
    value: str
    before: Layout
    after: Layout
    dtype: torch.dtype
    channel: int = 0


@dataclass(frozen=True, slots=True)
class Send:
    """Give this rank's part of `operand` to the ranks of `edge.target` that need it; never blocks."""

    operand: str
    edge: Edge
    origin: Origin


@dataclass(frozen=True, slots=True)
class Recv:
    """Take this rank's part of a value from the ranks of `edge.source`.

    `pause`: another micro-batch has its turn first.
    """

    out: Held
    edge: Edge
    origin: Origin
    pause: bool = False


@dataclass(frozen=True, slots=True)
class Transfer:
    """Send and receive in one: the rank belongs to both sides of the edge."""

    operand: str
    out: Held
    edge: Edge
    origin: Origin
    pause: bool = False


@dataclass(frozen=True, slots=True)
class Merge:
    """Merge partial attention results (out [B, H, T, D] with logsumexp [B, H, T]) over a part of the key
    axis; each rank keeps a share of the heads, cut by `spread`."""

    operand: str
    rows: str
    out: Held
    out_rows: Held
    part: Part
    spread: tuple[Part, ...]
    origin: Origin


@dataclass(frozen=True, slots=True)
class Free:
    """Values that are not used any more."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Leaf:
    """Where a segment of recorded computation begins: `operand` without its history, with a gradient of
    its own. Uses whose gradients are pending over different axes get a leaf each."""

    operand: str
    out: Held
    origin: Origin


@dataclass(frozen=True, slots=True)
class Backward:
    """Run the recorded segment that made `outs` backwards from their gradients `given`.

    `grads` are the gradients of its `leaves`; those of weights accumulate beside them.
    """

    outs: tuple[str, ...]
    given: tuple[str, ...]
    leaves: tuple[str, ...]
    grads: tuple[Held, ...]
    stage: Stage
    origin: Origin


@dataclass(frozen=True, slots=True)
class Accumulate:
    """Add `operand` to the gradient of a weight (a gradient that no segment accumulated).

    `sliced`: to the slice that this rank keeps (ZeRO-2), not to the gradient of the weight itself.
    """

    weight: str
    operand: str
    stage: Stage
    origin: Origin
    sliced: bool = False


@dataclass(frozen=True, slots=True)
class TakeGrad:
    """Take what has accumulated as the gradient of a weight: it begins again from nothing.

    `sliced`: the slice that this rank keeps (ZeRO-2).
    """

    weight: str
    out: Held
    sliced: bool = False


@dataclass(frozen=True, slots=True)
class Bucket:
    """One move made for several values at once: all_reduce, reduce_scatter or all_gather.

    The values are of one dtype and lie on one stage.
    """

    kind: str
    operands: tuple[str, ...]
    outs: tuple[Held, ...]
    moves: tuple[Move, ...]
    parts: tuple[Part, ...]
    origin: Origin

    @property
    def out(self) -> Held:
        """The first result: what tells stage and dtype."""
        return self.outs[0]


@dataclass(frozen=True, slots=True)
class TakeSlice:
    """A rank's slice of a weight as its optimizer left it (ZeRO-1 and -2)."""

    weight: str
    out: Held


@dataclass(frozen=True, slots=True)
class Store:
    """Write `operand` into a weight that is computed with."""

    weight: str
    operand: str
    stage: Stage


@dataclass(frozen=True, slots=True)
class Release:
    """Give back the memory of a gathered weight, which recorded segments still refer to."""

    operand: str
    stage: Stage


@dataclass(frozen=True, slots=True)
class Restore:
    """Fill a released weight again from `source`, before the segments that use it run backwards."""

    operand: str
    source: str
    stage: Stage


@dataclass(frozen=True, slots=True)
class Recording:
    """Whether computation is recorded for a backward from here on."""

    on: bool
    stage: Stage


Instruction = (
    Compute | Collective | Send | Recv | Transfer | Merge | Free
    | Leaf | Backward | Accumulate | TakeGrad | Bucket | Recording
    | TakeSlice | Store | Release | Restore
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Section:
    """A function of a training program: its instructions begin at `start`.

    kind: forward | backward | reduce | refresh. `chunk` is the pipeline stage in depth order.
    """

    kind: str
    chunk: int
    start: int

    @property
    def name(self) -> str:
        """`forward_0`, `reduce`."""
        return f"{self.kind}_{self.chunk}" if self.kind in ("forward", "backward") else self.kind


@dataclass(frozen=True, slots=True)
class Weight:
    """A parameter or buffer as a class of ranks holds it, and the checkpoint names it is read by."""

    held: Held
    fqns: tuple[str, ...]
    kind: str


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


def produced(instruction: Instruction) -> tuple[Held, ...]:
    """The values that an instruction gives."""
    if isinstance(instruction, Compute):
        return instruction.outs
    if isinstance(instruction, (Collective, Recv, Transfer, Leaf, TakeGrad, TakeSlice)):
        return (instruction.out,)
    if isinstance(instruction, Backward):
        return instruction.grads
    if isinstance(instruction, Bucket):
        return instruction.outs
    if isinstance(instruction, Merge):
        return (instruction.out, instruction.out_rows)
    return ()


def operands(instruction: Instruction) -> tuple[str, ...]:
    """The local names that an instruction reads."""
    if isinstance(instruction, Compute):
        return tuple(refs((instruction.args, tuple(instruction.kwargs.values()))))
    if isinstance(instruction, (Collective, Send, Transfer)):
        return (instruction.operand,)
    if isinstance(instruction, Merge):
        return (instruction.operand, instruction.rows)
    if isinstance(instruction, (Leaf, Accumulate, Store, Release)):
        return (instruction.operand,)
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
