"""The compiler: PIPELINE, in order, and the loop that runs it for every phase and variant."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from plancc.dsl.diagnostics import Report
from plancc.dsl.errors import PlanError
from plancc.dsl.plan import ResolvedPlan, Variant
from plancc.dsl.support import report_unsupported
from plancc.ir.graph import Graph
from plancc.ir.mesh import World, build_world
from plancc.ir.program import ProgramSet
from plancc.ir.shape import NamedGraph
from plancc.passes.assign_places import AssignPlaces
from plancc.passes.assign_routes import AssignRoutes
from plancc.passes.assign_states import AssignStates
from plancc.passes.base import Pass, Unit
from plancc.passes.check_facts import check_facts, check_length, check_operators, named_hints
from plancc.passes.check_programs import CheckPrograms
from plancc.passes.check_rules import CheckRules
from plancc.passes.chunk_attention import chunk_attention, chunk_depths
from plancc.passes.collection import without_collection
from plancc.passes.derive_backward import DeriveBackward
from plancc.passes.derive_phases import NotCausal, derive_phase
from plancc.passes.derive_training import derive_training
from plancc.passes.estimate_memory import EstimateMemory
from plancc.passes.find_static import FindStatic
from plancc.passes.insert_moves import InsertMoves
from plancc.passes.match_targets import Modules
from plancc.passes.name_dims import name_dims
from plancc.passes.order_transfers import OrderTransfers
from plancc.passes.overlap_transfers import OverlapTransfers, active_comms, overlapped
from plancc.passes.partition_ranks import PartitionRanks
from plancc.passes.plan_layouts import PlanLayouts
from plancc.passes.plan_schedule import check_schedules
from plancc.passes.rows import RowError, UnknownOperator

PIPELINE: tuple[Pass, ...] = (
    FindStatic(),
    AssignPlaces(),
    AssignStates(),
    AssignRoutes(),
    PlanLayouts(),
    CheckRules(),
    InsertMoves(),
    DeriveBackward(),
    OrderTransfers(),
    PartitionRanks(),
    OverlapTransfers(),
    CheckPrograms(),
    EstimateMemory(),
)

Watch = Callable[[str, Unit, float], None]
"""Called after each pass with its name, the unit, and the seconds it took."""


@dataclass(frozen=True)
class Compiled:
    """All programs of a plan: one unit a (phase, variant)."""

    plan: ResolvedPlan
    world: World
    named: NamedGraph
    units: tuple[Unit, ...]
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def graph(self) -> Graph:
        """The captured forward graph."""
        return self.named.graph

    @property
    def sets(self) -> tuple[tuple[Variant, ProgramSet], ...]:
        """(variant, programs) of every unit."""
        return tuple((u.variant, u.programs) for u in self.units if u.programs is not None)

    def unit(self, phase: str, variant: int = 0) -> Unit:
        """The unit of one phase and variant (KeyError if it was not compiled)."""
        for unit in self.units:
            if unit.graph.phase == phase and unit.variant.index == variant:
                return unit
        raise KeyError((phase, variant))


def lower(unit: Unit, report: Report, watch: Watch | None = None) -> Unit:
    """Run every pass of the pipeline over one unit; stop at the first pass that reports an error."""
    for step in PIPELINE:
        begin = time.perf_counter()
        unit = step.run(unit, report)
        if watch is not None:
            watch(step.name, unit, time.perf_counter() - begin)
        report.raise_errors()
    return unit


def name_model(plan: ResolvedPlan, graph: Graph, report: Report) -> NamedGraph:
    """The forward graph with its dims named; what the plan cannot mean for this model is reported."""
    report_unsupported(plan, report)
    check_schedules(plan, report)
    try:
        named = name_dims(graph, named_hints(plan, Modules(graph)))
    except UnknownOperator as problem:
        for one in (problem, *problem.others):
            report_unknown(one, report)
        report.raise_errors()
        raise
    except RowError as problem:
        report.error("P315", str(problem), None, help=["mend the row, or register another"])
        report.raise_errors()
        raise
    check_facts(plan, named, report)
    check_length(plan, graph, report)
    check_operators(plan, graph, report)
    report.raise_errors()
    return named


def report_unknown(problem: UnknownOperator, report: Report) -> None:
    """P314: an operator that has no row, with its module and model line."""
    name = "::".join(problem.op.split(".")[:2])
    report.error(
        "P314",
        f"operator `{problem.op}` has no row",
        None,
        notes=[f"at {problem.path or 'the root module'} ({problem.line})"],
        help=[f'name its dims in one line: plancc.register_op("{name}", "... d -> ... d")'],
    )


def named_phases(
    plan: ResolvedPlan, forward: NamedGraph, phases: Sequence[str] | None
) -> tuple[list[NamedGraph], list[str]]:
    """The named graph of each phase; without `phases`, all that the model has, and why others are not."""
    wanted = phases if phases is not None else ("forward", "prefill", "decode")
    found, notes = [], []
    for phase in wanted:
        if phase == "forward":
            found.append(forward)
            continue
        if phase == "train":
            graph = derive_training(forward.graph)
            found.append(name_dims(graph, named_hints(plan, Modules(graph))))
            continue
        try:
            found.append(name_dims(derive_phase(forward, phase)))
        except NotCausal as problem:
            if phases is not None:
                raise
            notes.append(f"no {phase}: {problem}")
    return found, notes


def compile_graph(
    plan: ResolvedPlan,
    graph: Graph,
    report: Report,
    *,
    phases: Sequence[str] | None = None,
    watch: Watch | None = None,
) -> Compiled:
    """Lower a captured model under a plan. Raises PlanError when the report has errors."""
    seconds: dict[str, float] = {}
    begin = time.perf_counter()
    forward = name_model(plan, graph, report)
    stated = plan.facts.get("phase")
    wanted = phases if phases is not None or stated is None else (str(stated),)
    try:
        named, notes = named_phases(plan, forward, wanted)
    except NotCausal as problem:
        report.error(
            "P311", f"the model has no phase to match: {problem}", plan.fact_spans.get("phase")
        )
        report.raise_errors()
        raise
    seconds["name-dims"] = time.perf_counter() - begin

    def timed(name: str, unit: Unit, took: float) -> None:
        seconds[name] = seconds.get(name, 0.0) + took
        if watch is not None:
            watch(name, unit, took)

    world = build_world(plan)
    units = []
    with without_collection():
        for plain in named:
            one = chunked(plan, world, plain, report)
            for variant in plan.variants:
                if variant.phase in (None, one.graph.phase):
                    unit = Unit(plan, variant, world, one.graph, one)
                    units.append(lower(unit, report, timed))
            if phases is not None and all(u.graph.phase != one.graph.phase for u in units):
                report.error(
                    "P311", f"no variant of the plan is one for {one.graph.phase}", None,
                    help=["state `mode` or `phase` in its model block, or widen its guards on `phase`"],
                )  # fmt: skip
                report.raise_errors()
    return Compiled(plan, world, forward, tuple(units), tuple(notes), seconds)


def chunked(plan: ResolvedPlan, world: World, one: NamedGraph, report: Report) -> NamedGraph:
    """One phase with attention cut into chunks where the plan overlaps its edge (`async(depth = n)`).

    The same graph for every variant: weights and caches then lie alike, and are held once.
    """
    depth: dict[str, int] = {}
    for variant in plan.variants:
        wanted = overlapped(plan, variant, "depth")
        if wanted and variant.phase in (None, one.graph.phase):
            unit = Unit(plan, variant, world, one.graph, one)
            placed = AssignPlaces().run(FindStatic().run(unit, Report()), Report())
            found = chunk_depths(one, placed.places, wanted)
            if found and min(found.values()) < max(wanted.values()):
                warn_depth(plan, variant, min(found.values()), max(wanted.values()), report)
            depth = {**depth, **{k: max(n, depth.get(k, 1)) for k, n in found.items()}}
    if max(depth.values(), default=1) < 2:
        return one
    graph = chunk_attention(one.graph, depth)
    return name_dims(graph, named_hints(plan, Modules(graph)))


def warn_depth(
    plan: ResolvedPlan, variant: Variant, depth: int, wanted: int, report: Report
) -> None:
    """P507: fewer chunks than the plan asks for."""
    report.warning(
        "P507", f"attention travels in {depth} chunks, not {wanted}",
        next(active_comms(plan, variant)).span, label="a device has too few kv heads for more",
        help=["split heads over fewer devices, or lower the depth"],
    )  # fmt: skip


def check_model(
    plan: ResolvedPlan, report: Report, model: str, model_args: Mapping[str, str]
) -> None:
    """The checks of `plancc check --model`: everything that compiling would find, caches included."""
    from plancc.models import load_model
    from plancc.passes.capture import capture

    try:
        compile_graph(plan, capture(load_model(model, model_args).module), report)
    except PlanError:
        return


__all__: list[Any] = [
    "PIPELINE",
    "Compiled",
    "check_model",
    "compile_graph",
    "lower",
    "named_phases",
]
