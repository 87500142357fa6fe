"""What passes share: the unit that flows through the pipeline, and the shape of a pass.

A pass is a frozen dataclass with a `name` and `run(unit, report) -> unit`; it never changes its input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from plancc.dsl.diagnostics import Report
from plancc.dsl.plan import Combine, ResolvedPlan, Variant
from plancc.dsl.source import Span
from plancc.ir.graph import Graph
from plancc.ir.layout import Layout, Part, Stage
from plancc.ir.mesh import World
from plancc.ir.program import Balanced, Held, Instruction, ProgramSet, Weight
from plancc.ir.shape import NamedGraph


@dataclass(frozen=True, slots=True)
class Placed:
    """What the plan says of one node: its stage, and the parts that cut each leaf there.

    `order` maps a leaf id to (parts, preferred row label or None). `span` is the plan line that says so.
    """

    stage: Stage
    cuts: Mapping[int, tuple[tuple[Part, ...], str | None]]
    span: Span | None
    combine: Combine | None = None


@dataclass(frozen=True, slots=True)
class StateCut:
    """One axis over which the state of a parameter is cut: which of `params`, `grads`, `optim`."""

    dims: frozenset[str]
    part: Part
    options: Mapping[str, Any]
    span: Span | None


@dataclass(frozen=True, slots=True)
class MergeStep:
    """One merge of partial attention results: over which part of the key axis, how the heads of the
    result are scattered over its ranks, and the layout after it."""

    part: Part
    spread: tuple[Part, ...]
    after: Layout


@dataclass(frozen=True, slots=True)
class NodeLayout:
    """The layout that a node wants of each operand, and the layouts that it gives."""

    stage: Stage
    operands: tuple[Layout, ...]
    outs: tuple[Layout, ...]
    once: tuple[tuple[Part, ...], ...]  # per operand: parts of which only rank 0 may add it
    span: Span | None
    merges: tuple[MergeStep, ...] = ()  # attention over cut keys: `outs` is what the merges give
    partial: Layout | None = None  # and this the layout of the partial result
    joins: tuple[Part, ...] = ()  # cross-entropy over cut columns: its rows are joined over these


Entries = tuple[tuple[tuple[Stage, ...], Instruction], ...]


@dataclass(frozen=True, slots=True)
class Training:
    """What follows the forward of a training unit: entries of backward, reduce and refresh.

    `gradients` maps a weight's local name to its reduced gradient, `owned` to the layout in which a rank
    keeps its gradient and optimizer state.
    """

    backward: Entries
    reduce: Entries
    refresh: Entries
    gradients: Mapping[str, Held]
    owned: Mapping[str, Layout]


@dataclass(frozen=True)
class Unit:
    """One variant and phase on its way from graph to programs; later fields are filled by later passes."""

    plan: ResolvedPlan
    variant: Variant
    world: World
    graph: Graph
    named: NamedGraph | None = None
    static: frozenset[str] = frozenset()
    places: Mapping[str, Placed] = field(default_factory=dict)
    param_rules: Mapping[str, Placed] = field(default_factory=dict)
    routes: frozenset[str] = frozenset()  # expert nodes whose tokens go to their experts only
    balance: Mapping[str, Balanced] = field(default_factory=dict)  # those that a table places
    states: Mapping[str, tuple[StateCut, ...]] = field(default_factory=dict)
    recompute: Mapping[str, str] = field(default_factory=dict)  # node -> region computed again
    layouts: Mapping[str, NodeLayout] = field(default_factory=dict)
    instructions: Entries = ()
    weights: Mapping[Stage, tuple[Weight, ...]] = field(default_factory=dict)
    outputs: Mapping[str, tuple[str, Stage]] = field(default_factory=dict)
    training: Training | None = None
    programs: ProgramSet | None = None


class Pass(Protocol):
    """One step of the pipeline. A valid unit in, a valid unit out."""

    name: ClassVar[str]

    def run(self, unit: Unit, report: Report) -> Unit:
        """Return the unit with this pass's part filled in; problems of the plan go to `report`."""
        ...
