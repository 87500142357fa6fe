"""A plan with its model, compiled, on a cluster: which programs run for given inputs, and what they hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plancc.codegen.python import SHORT
from plancc.compiler import Compiled, compile_graph
from plancc.dsl import load_plan
from plancc.dsl.errors import PlanError
from plancc.dsl.plan import ResolvedPlan
from plancc.ir.mesh import mesh_of
from plancc.passes.base import Unit
from plancc.passes.estimate_memory import Memory, budget_of, gigabytes, program_memory
from plancc.simulator.actors import FEW
from plancc.simulator.cluster import Cluster, read_cluster
from plancc.simulator.errors import SimulateError
from plancc.simulator.hardware import Hardware
from plancc.simulator.routing import EVEN, Routing
from plancc.simulator.step import Simulation


@dataclass(frozen=True, slots=True)
class Room:
    """What one mesh needs on its fullest device, and what there is: bytes."""

    mesh: str
    memory: Memory
    budget: int | None
    device: float

    @property
    def limit(self) -> float:
        """The least that holds it."""
        return min(self.device, self.budget) if self.budget is not None else self.device

    @property
    def fits(self) -> bool:
        """Whether it fits."""
        return self.memory.total <= self.limit


@dataclass
class Subject:
    """One plan on one cluster. Programs are costed once and simulated for as many inputs as wanted.

    Up to `few` ranks are told apart; in more, those that do the same at the same time are one actor.
    """

    compiled: Compiled
    cluster: Cluster
    routing: Routing = EVEN
    few: int = FEW

    def __post_init__(self) -> None:
        """Place the ranks on the cluster; ClusterError if it has too few devices."""
        self.hardware: Hardware = self.cluster.place(self.compiled.world.devices)
        self._simulations: dict[tuple[str, int, bool], Simulation] = {}

    @property
    def plan(self) -> ResolvedPlan:
        """The plan."""
        return self.compiled.plan

    @property
    def devices(self) -> int:
        """How many devices the plan uses."""
        return self.compiled.world.size

    @property
    def assumptions(self) -> tuple[str, ...]:
        """The sentences that predictions are printed with, as far as something was simulated."""
        found = list(self.hardware.assumptions)
        stated = {group.kind for group in self.plan.cluster.groups} if self.plan.cluster else set()
        kinds = {kind.name for kind in self.hardware.kinds}
        if stated and stated != kinds:
            found.append(
                f"{self.plan.name} is written for {', '.join(sorted(stated))}, predicted for "
                f"{', '.join(sorted(kinds))}"
            )
        if "decode" in self.phases:
            found.append(
                "decode: TPOT of steps that follow each other, each micro-batch on its own; "
                "--lockstep waits for all of them, as `plancc run` does"
            )
        if "train" in self.phases:
            found.append("training: Adam with float32 state; data loading and logging take no time")
        return tuple(found)

    @property
    def dtype(self) -> str:
        """The short name of the type that most parameters have."""
        counts = Counter(
            p.value.dtype
            for p in self.compiled.graph.params.values()
            if p.value.dtype.is_floating_point
        )
        return SHORT[counts.most_common(1)[0][0]] if counts else "f32"

    @property
    def phases(self) -> tuple[str, ...]:
        """The phases that were compiled."""
        return tuple(dict.fromkeys(unit.graph.phase for unit in self.compiled.units))

    def unit(self, phase: str, batch: int, seq_len: int) -> Unit:
        """The programs for some inputs. SimulateError where the plan or the model does not admit them."""
        units = [unit for unit in self.compiled.units if unit.graph.phase == phase]
        if not units:
            raise SimulateError(
                f"{self.plan.name} has no {phase}: it was compiled for {', '.join(self.phases)}"
            )
        env = {"batch": batch, "seq_len": seq_len, "tokens": batch * seq_len}
        for name, value in env.items():
            low, high = self.plan.inputs.get(name, (value, value))
            if not low <= value <= high:
                raise SimulateError(f"{name} = {value} is outside {low}..{high}, the plan's range")
        longest = units[0].graph.limits.get("T")
        if longest is not None and seq_len > longest:
            raise SimulateError(f"seq_len = {seq_len} is more than the model's {longest} positions")
        for unit in units:
            bounds = unit.variant.bounds
            if all(lo <= env[name] <= hi for name, (lo, hi) in bounds.items() if name in env):
                return unit
        text = ", ".join(f"{name} = {value}" for name, value in env.items())
        raise SimulateError(f"no variant of {self.plan.name} covers {text}")

    def simulation(self, unit: Unit, *, spans: bool) -> Simulation:
        """The simulation of a unit's programs, made once."""
        assert unit.programs is not None
        key = (unit.graph.phase, unit.variant.index, spans)
        if key not in self._simulations:
            self._simulations[key] = Simulation(
                unit.programs,
                self.compiled.world,
                self.hardware,
                self.routing,
                few=self.few,
                spans=spans,
            )
        return self._simulations[key]

    def memories(self, unit: Unit, batch: int, seq_len: int) -> dict[str, Memory]:
        """What the fullest rank of every program needs for some inputs, by the program's name."""
        assert unit.programs is not None
        return {
            program.name: program_memory(program, unit.programs, (batch, seq_len))
            for program in unit.programs.programs
        }

    def rooms(self, unit: Unit, memories: Mapping[str, Memory]) -> tuple[Room, ...]:
        """What every mesh needs on its fullest device, where its programs need `memories`."""
        assert unit.programs is not None
        found: dict[str, Room] = {}
        for program in unit.programs.programs:
            if not program.stages:
                continue
            memory = memories[program.name]
            device = min(self.hardware.memory(rank) for rank in program.ranks)
            mesh = mesh_of(program.stages[0].mesh)
            room = Room(mesh, memory, budget_of(self.plan, program), device)
            last = found.get(mesh)
            if last is None or room.memory.total - room.limit > last.memory.total - last.limit:
                found[mesh] = room
        return tuple(found.values())


def resting_bytes(memory: Memory) -> int:
    """The bytes that stay: weights, caches, the optimizer's state and gradients."""
    return memory.weights + memory.cache + memory.gradients + memory.optimizer


def too_full(rooms: Sequence[Room]) -> str:
    """Which meshes do not fit, in words; empty if all do."""
    return "; ".join(
        f"{room.mesh} needs {gigabytes(room.memory.total)}, has {gigabytes(room.limit)}"
        for room in rooms
        if not room.fits
    )


def open_subject(
    plan: str | Path, model: Any, cluster: str | Path | Cluster, *,
    sets: Mapping[str, str] | None = None, model_args: Mapping[str, str] | None = None,
    phases: Sequence[str] | None = None, dtype: Any = None, routing: Routing = EVEN,
) -> Subject:  # fmt: skip
    """Load and compile a plan and a model for a cluster (a file, or a name in `clusters/` beside the plan).

    Raises PlanError, ModelError, ClusterError (a SimulateError), NoCost.
    """
    from plancc.models import load_model
    from plancc.passes.capture import capture

    folder = Path(plan).parent
    hardware = cluster if isinstance(cluster, Cluster) else read_cluster(cluster, folder)
    resolved, report = load_plan(plan, dict(sets or {}))
    if resolved is None:
        raise PlanError(report.diagnostics)
    module = load_model(model, dict(model_args or {}), dtype).module
    compiled = compile_graph(resolved, capture(module), report, phases=phases)
    return Subject(compiled, hardware, routing)
