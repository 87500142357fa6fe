"""The data of a simulation: what instructions do (`Work`, `Verb`), and when all ranks did it (`Timeline`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

COMPUTE, COMMUNICATION = "compute", "communication"
"""The streams of a rank: computation and what it waits for; moves and messages that go on beside it."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a local call does on one rank.

    `kind` is "matmul", "attention", "memory" (bound by its bytes) or "view" (no work at all). `flops` counts
    a multiplication and an addition as two; `read` and `written` are bytes of its operands and results.
    `dtype` is the short name of what it computes in ("bf16"). `shape` is what its efficiency depends on:
    (batch, m, n, k) of a matrix product [batch, m, k] x [batch, k, n], (batch, heads, queries, keys,
    head_dim) of attention, () else.
    """

    kind: str
    flops: int = 0
    read: int = 0
    written: int = 0
    dtype: str = ""
    shape: tuple[int, ...] = ()

    @property
    def moved(self) -> int:
        """Bytes that go through the device's memory."""
        return self.read + self.written


@dataclass(frozen=True, slots=True)
class Verb:
    """One call of the transport as one rank makes it.

    `kind` is all_reduce, all_gather, reduce_scatter, all_to_all or exchange. `group` are all ranks that
    meet, this one among them (of an exchange: those that this rank gives to or takes from, and itself).
    `size` is this rank's operand in bytes. `given` counts the bytes that leave this rank as rings send
    them: all_reduce 2 (g - 1) / g of its operand (rounded down), all_gather (g - 1) times it, the others
    just what goes to other ranks. `sends` and `takes` are (rank, bytes) of all_to_all and exchange, other
    ranks only.
    """

    kind: str
    group: tuple[int, ...]
    size: int
    given: int
    sends: tuple[tuple[int, int], ...] = ()
    takes: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Actor:
    """Ranks that do the same at the same time: one row of a timeline. `mesh` is where they live."""

    name: str
    ranks: tuple[int, ...]
    mesh: str = ""


@dataclass(frozen=True, slots=True)
class Span:
    """Something that an actor did from `begin` to `end` (seconds from the start of the step).

    `kind` is "matmul", "attention", "memory", "compute" (measured, of any kind), the name of a verb,
    "barrier", or "wait" (for another rank, whom `name` tells).
    `path` is the module, `line` the line of the plan ("tp.plan:7"), `batch` the micro-batch.
    """

    actor: int
    stream: str
    name: str
    kind: str
    begin: float
    end: float
    path: str = ""
    line: str = ""
    batch: int = 0
    flops: int = 0
    bytes: int = 0

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class Timeline:
    """One step of all ranks, predicted or measured. Spans of one actor and stream do not overlap.

    `memory` has for each actor (seconds, bytes in use) in order; `traffic` the bytes given by a rank to
    another (of rings: all to the next rank of the group).
    """

    title: str
    predicted: bool
    actors: tuple[Actor, ...]
    spans: tuple[Span, ...]
    memory: Mapping[int, tuple[tuple[float, int], ...]] = field(default_factory=dict)
    traffic: Mapping[tuple[int, int], int] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """From the start to the last end."""
        return max((span.end for span in self.spans), default=0.0)
