"""Rows of results: one plan, phase, batch and length each, under the rules that make rows comparable.

Every row tells its devices and its micro-batches; shares are means over all devices of the plan, idle ones
included; what does not fit in memory has no times; prefill, decode and training are never mixed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from plancc.passes.base import Unit
from plancc.passes.estimate_memory import Memory
from plancc.simulator.errors import SimulateError
from plancc.simulator.hardware_forms import ClusterError
from plancc.simulator.step import STEPS, Inputs, Outcome
from plancc.simulator.subject import Subject, resting_bytes, too_full

UTILISATION = {
    "busy": "share of time that devices compute, mean over all devices of the plan",
    "mfu": "FLOPs of the programs over time x the peak of all devices (model FLOPs utilisation)",
}
"""The two definitions of utilisation, as printed."""


@dataclass(frozen=True)
class Row:
    """One result. Times in seconds, memory in GB (1e9 bytes), shares 0 .. 1 of the step; predicted.

    `tps` are tokens/s: new tokens of a decode, prompt tokens of a prefill, trained tokens.
    `comm_share` is all communication, `exposed_comm_share` what no computation hides, `bubble_share` waiting
    and idling. None where the plan does not fit (`reason`), or the cluster says no power.
    """

    plan: str
    phase: str
    batch: int
    seq_len: int
    devices: int
    variant: str
    microbatches: int
    fits: bool
    memory_gb: dict[str, float]
    budget_gb: dict[str, float]
    ttft_s: float | None = None
    tpot_s: float | None = None
    step_s: float | None = None
    tps: float | None = None
    tps_per_device: float | None = None
    utilisation: dict[str, float | None] | None = None
    comm_share: float | None = None
    exposed_comm_share: float | None = None
    bubble_share: float | None = None
    bytes_sent: int | None = None
    energy_j_per_token: float | None = None
    busy_by_mesh: dict[str, float] | None = None
    reason: str = ""

    @property
    def seconds(self) -> float | None:
        """The time of the row, whichever phase it is."""
        return next((t for t in (self.tpot_s, self.ttft_s, self.step_s) if t is not None), None)

    def json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


TIMES = {"prefill": "ttft_s", "decode": "tpot_s", "train": "step_s", "forward": "step_s"}


def make_row(
    subject: Subject, phase: str, batch: int, seq_len: int, *,
    microbatches: int | None = None, lockstep: bool = False, spans: bool = False,
) -> tuple[Row, Outcome | None]:  # fmt: skip
    """Simulate one point. The outcome is None where it does not fit in memory.

    Raises SimulateError for inputs that the plan does not admit, and for constants that the cluster lacks.
    """
    if phase not in TIMES:
        raise SimulateError(f"there is no phase `{phase}`: {', '.join(TIMES)}")
    unit = subject.unit(phase, batch, seq_len)
    memories = subject.memories(unit, batch, seq_len)
    rooms = subject.rooms(unit, memories)
    assert unit.programs is not None
    if phase == "train" and batch < unit.programs.microbatches:
        raise SimulateError(
            f"a batch of {batch} has fewer sequences than {unit.programs.microbatches} micro-batches"
        )
    count = min(batch, microbatches or unit.programs.microbatches)
    common: dict[str, Any] = {
        "plan": subject.plan.name, "phase": phase, "batch": batch, "seq_len": seq_len,
        "devices": subject.devices, "variant": unit.variant.text, "microbatches": count,
        "memory_gb": {room.mesh: room.memory.total / 1e9 for room in rooms},
        "budget_gb": {room.mesh: room.limit / 1e9 for room in rooms},
    }  # fmt: skip
    problem = too_full(rooms)
    if problem:
        return Row(fits=False, reason=f"does not fit: {problem}", **common), None
    outcome = simulate_point(subject, unit, memories, Inputs(
        batch, 1 if phase == "decode" else seq_len, seq_len - 1 if phase == "decode" else 0,
        count, lockstep, STEPS if phase == "decode" else 1,
    ), spans, seq_len)  # fmt: skip
    return Row(fits=True, **common, **figures(subject, phase, batch, seq_len, outcome)), outcome


def simulate_point(
    subject: Subject, unit: Unit, memories: Mapping[str, Memory], inputs: Inputs, spans: bool,
    seq_len: int,
) -> Outcome:  # fmt: skip
    """Run the engine for one point."""
    title = f"{subject.plan.name}, {unit.graph.phase}, batch {inputs.batch} x {seq_len}"
    if inputs.steps > 1:
        title += f", {inputs.steps} steps"
    resting = {name: resting_bytes(memory) for name, memory in memories.items()}
    return subject.simulation(unit, spans=spans).run(inputs, title, resting)


def figures(
    subject: Subject, phase: str, batch: int, seq_len: int, outcome: Outcome
) -> dict[str, Any]:
    """The figures of a step that was simulated."""
    seconds = outcome.seconds
    tokens = batch * (1 if phase == "decode" else seq_len)
    room = seconds * outcome.steps * subject.devices
    pairs = list(zip(outcome.actors, outcome.tallies, strict=True))
    busy = sum(t.busy * len(a.ranks) for a, t in pairs) / room
    moving = sum(t.moving * len(a.ranks) for a, t in pairs) / room
    exposed = sum(t.exposed * len(a.ranks) for a, t in pairs) / room
    meshes: dict[str, list[float]] = {}
    for actor, tally in pairs:
        share = tally.busy / (seconds * outcome.steps)
        meshes.setdefault(actor.mesh or "idle", []).extend([share] * len(actor.ranks))
    return {
        TIMES[phase]: seconds,
        "tps": tokens / seconds,
        "tps_per_device": tokens / seconds / subject.devices,
        "utilisation": {"busy": min(1.0, busy), "mfu": flops_share(subject, outcome, room)},
        "comm_share": moving,
        "exposed_comm_share": exposed,
        "bubble_share": max(0.0, 1 - busy - exposed),
        "bytes_sent": sum(t.sent * len(a.ranks) for a, t in pairs) // outcome.steps,
        "energy_j_per_token": energy(subject, outcome, seconds, tokens),
        "busy_by_mesh": {mesh: sum(rows) / len(rows) for mesh, rows in meshes.items()},
    }


def flops_share(subject: Subject, outcome: Outcome, room: float) -> float | None:
    """FLOPs over what all devices could do; None where the programs' dtypes have no stated peak."""
    peaks = []
    for rank in range(subject.devices):
        flops = subject.hardware.kinds[rank].flops
        if not flops:
            return None
        peaks.append(flops.get(subject.dtype) or 0.0)
    if not all(peaks):
        return None
    done = sum(t.flops * len(a.ranks) for a, t in zip(outcome.actors, outcome.tallies, strict=True))
    return done / (room * sum(peaks) / len(peaks))


def energy(subject: Subject, outcome: Outcome, seconds: float, tokens: int) -> float | None:
    """Joules per token: busy watts while a device computes or communicates, idle watts else."""
    total = 0.0
    try:
        for actor, tally in zip(outcome.actors, outcome.tallies, strict=True):
            active = min(seconds, (tally.busy + tally.exposed) / outcome.steps)
            for rank in actor.ranks:
                busy, idle = subject.hardware.power(rank)
                total += active * busy + (seconds - active) * idle
    except ClusterError:
        return None
    return total / tokens
