"""Try settings of a plan: the model captured once, distinct plans lowered and programs simulated once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

from plancc.compiler import Compiled, compile_graph
from plancc.dsl import Diagnostic, Report, load_plan
from plancc.dsl.errors import PlanError
from plancc.dsl.plan import ResolvedPlan
from plancc.ir.graph import Graph
from plancc.ir.program import ProgramSet
from plancc.passes.base import Unit
from plancc.simulator.cluster import Cluster
from plancc.simulator.errors import SimulateError
from plancc.simulator.routing import EVEN, Routing
from plancc.simulator.rows import Row, make_row
from plancc.simulator.subject import Subject
from plancc.tune.distinct import plan_key, program_key
from plancc.tune.forms import DEVICES, Attempt, Case, Cell, Sets


@dataclass(frozen=True, slots=True)
class Admitted:
    """A setting whose plan reads well and has room on the cluster."""

    sets: Sets
    key: str
    resolved: ResolvedPlan
    report: Report


@dataclass
class Bench:
    """A plan file and a captured model on a cluster, for some cases.

    `fixed` are the `--set` texts of every setting. The phases of the cases are lowered and simulated;
    `phases` are all that must compile for a setting to be of use (None: those of inference), see `whole`.
    """

    plan: Path
    graph: Graph
    cluster: Cluster
    cases: tuple[Case, ...]
    phases: tuple[str, ...] | None = None
    fixed: Mapping[str, str] = field(default_factory=dict)
    routing: Routing = EVEN
    lockstep: bool = False

    def __post_init__(self) -> None:
        """Nothing is known yet."""
        self.plans: dict[str, Attempt] = {}
        self.cells: dict[tuple[str, Case], Cell] = {}
        self.keys: dict[int, tuple[ProgramSet, str]] = {}
        self.notes: dict[str, None] = {}

    def tries(self, wanted: Sequence[Sets]) -> Iterator[Attempt]:
        """Try settings as they are asked for."""
        for sets in wanted:
            found = self.admitted(sets)
            yield self.kept(found) if isinstance(found, Admitted) else found

    def kept(self, one: Admitted) -> Attempt:
        """Measure a plan, and know it from now on."""
        self.plans[one.key] = self.measured(one)
        return self.plans[one.key]

    def admitted(self, sets: Sets) -> Admitted | Attempt:
        """Read the plan of a setting; the attempt where it is refused or was seen."""
        resolved, report = load_plan(self.plan, {**self.fixed, **dict(sets)})
        if resolved is None:
            return refused(sets, report.errors)
        short = beyond(resolved, self.cluster)
        if short:
            return Attempt(sets, code=DEVICES, reason=short)
        key = plan_key(resolved)
        earlier = self.plans.get(key)
        if earlier is not None:
            return (
                earlier
                if earlier.sets == sets
                else replace(earlier, sets=sets, same_as=earlier.sets)
            )
        return Admitted(sets, key, resolved, report)

    def measured(self, one: Admitted) -> Attempt:
        """Lower a plan and simulate all cases."""
        try:
            compiled = self.compiled(one.resolved, one.report)
        except PlanError as problem:
            return refused(one.sets, problem.diagnostics)
        subject = self.subject(compiled)
        cells = tuple(self.cell(subject, case) for case in self.cases)
        return Attempt(one.sets, cells, meshes=devices_of(one.resolved))

    def compiled(self, resolved: ResolvedPlan, report: Report) -> Compiled:
        """The programs of the phases of the cases; PlanError where a pass refuses the plan."""
        phases = tuple(dict.fromkeys(case.phase for case in self.cases))
        return compile_graph(resolved, self.graph, report, phases=phases)

    def whole(self, sets: Sets) -> Attempt | None:
        """The attempt of a setting that is refused in another phase than those of the cases; else None."""
        resolved, report = load_plan(self.plan, {**self.fixed, **dict(sets)})
        if resolved is None:
            return refused(sets, report.errors)
        try:
            compile_graph(resolved, self.graph, report, phases=self.phases)
        except PlanError as problem:
            return refused(sets, problem.diagnostics)
        return None

    def subject(self, compiled: Compiled) -> Subject:
        """Programs on the cluster."""
        return Subject(compiled, self.cluster, self.routing)

    def cell(self, subject: Subject, case: Case) -> Cell:
        """The row of one case; that of earlier programs where they are the same."""
        try:
            unit = subject.unit(case.phase, case.batch, case.seq_len)
            key = self.key_of(subject, unit), case
            if key not in self.cells:
                self.cells[key] = Cell(self.row(subject, case))
        except SimulateError as problem:
            return Cell(None, problem.problems[0])
        known = self.cells[key].row
        assert known is not None
        return Cell(replace(known, variant=unit.variant.text))

    def key_of(self, subject: Subject, unit: Unit) -> str:
        """The key of a unit's programs, written once."""
        programs = unit.programs
        assert programs is not None
        if id(programs) not in self.keys:
            key = program_key(programs, subject.compiled.world, subject.plan)
            self.keys[id(programs)] = programs, key
        return self.keys[id(programs)][1]

    def row(self, subject: Subject, case: Case) -> Row:
        """Simulate, and keep what the prediction stands on."""
        row, _ = make_row(subject, case.phase, case.batch, case.seq_len, lockstep=self.lockstep)
        self.notes.update(dict.fromkeys(subject.assumptions))
        return row


def refused(sets: Sets, diagnostics: Iterable[Diagnostic]) -> Attempt:
    """The attempt of a plan with errors: the code and the words of the first."""
    first = next(d for d in diagnostics if d.level == "error")
    return Attempt(sets, code=first.code, reason=first.message)


def beyond(plan: ResolvedPlan, cluster: Cluster) -> str:
    """Why a plan does not go on a cluster: more devices than there are; "" if it does."""
    need = 1 + max((d for mesh in plan.meshes.values() for d in mesh.devices), default=0)
    return f"needs {need} devices, {cluster.name} has {cluster.size}" if need > cluster.size else ""


def devices_of(plan: ResolvedPlan) -> dict[str, int]:
    """Mesh -> how many devices it has (of a pool: at its largest)."""
    return {name: prod(axis.size for axis in mesh.axes) for name, mesh in plan.meshes.items()}
