"""The instructions of rank programs, and the values that they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from plancc.dsl.source import Span
from plancc.ir.layout import Layout, LocalTree, Move, Part, Stage


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
    `way` is that of routed rows: "counts" (how many come), "scatter" (tokens to the ranks of their experts),
    "gather" (results back, summed); `routes` names what each side knows of it: (source's, target's).
    `wire` is the type in which values travel, if not their own.
    """

    index: int
    source: Stage
    target: Stage
    value: str
    before: Layout
    after: Layout
    dtype: torch.dtype
    channel: int = 0
    way: str = ""
    routes: tuple[str, str] = ("", "")
    parts: tuple[Part, ...] = ()
    wire: str = ""

    @property
    def lossy(self) -> str:
        """The wire type in which it travels: numbers that are no floats keep their own, ""."""
        return self.wire if self.dtype.is_floating_point else ""


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
