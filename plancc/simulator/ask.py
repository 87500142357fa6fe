"""Simulate from Python: a plan or what was compiled from it, on a cluster, at some points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from plancc.simulator.cluster import Cluster, read_cluster
from plancc.simulator.compare import best_row
from plancc.simulator.forms import Timeline
from plancc.simulator.routing import EVEN, Routing
from plancc.simulator.rows import Row, make_row
from plancc.simulator.subject import Subject, open_subject

if TYPE_CHECKING:
    from plancc.api import Built


@dataclass(frozen=True)
class Simulated:
    """Predicted rows, one a phase, batch and length; their timelines; what they stand on."""

    rows: tuple[Row, ...]
    timelines: tuple[Timeline, ...]
    assumptions: tuple[str, ...]


def simulate(
    plan: str | Path | Built, model: nn.Module | str | None = None, *, cluster: str | Path | Cluster,
    batch: int | Sequence[int] = 1, seq_len: int | Sequence[int] = 1024,
    phases: Sequence[str] | None = None, microbatches: int | str | None = None,
    lockstep: bool = False, routing: Routing = EVEN, sets: Mapping[str, str] | None = None,
    model_args: Mapping[str, str] | None = None, dtype: Any = None, timelines: bool = True,
) -> Simulated:  # fmt: skip
    """Predict time, memory and traffic of a plan file with a model, or of what `compile` gave.

    `cluster` is a file, a name in `clusters/` beside the plan, or a Cluster; `microbatches` a number, "best"
    or None (the plan's). Raises SimulateError (ClusterError, NoCost among them), PlanError, ModelError.
    """
    subject = subject_of(plan, model, cluster, sets, model_args, phases, dtype, routing)
    chosen = phases or [p for p in subject.phases if p != "forward"] or subject.phases
    found = [
        best_row(subject, phase, b, n, spans=timelines) if microbatches == "best"
        else make_row(
            subject, phase, b, n, microbatches=int(microbatches) if microbatches else None,
            lockstep=lockstep, spans=timelines,
        )
        for phase in chosen for b in several(batch) for n in several(seq_len)
    ]  # fmt: skip
    shown = tuple(one.timeline for _, one in found if one is not None) if timelines else ()
    return Simulated(tuple(row for row, _ in found), shown, subject.assumptions)


def subject_of(
    plan: str | Path | Built, model: nn.Module | str | None, cluster: str | Path | Cluster,
    sets: Mapping[str, str] | None, model_args: Mapping[str, str] | None,
    phases: Sequence[str] | None, dtype: Any, routing: Routing,
) -> Subject:  # fmt: skip
    """What is simulated: compiled here, or before."""
    if not isinstance(plan, (str, Path)):
        near = Path(plan.compiled.plan.source_name).parent
        hardware = cluster if isinstance(cluster, Cluster) else read_cluster(cluster, near)
        return Subject(plan.compiled, hardware, routing)
    if model is None:
        raise TypeError("simulate(plan, model, ...): a plan file needs a model")
    return open_subject(
        plan, model, cluster, sets=sets, model_args=model_args, phases=phases, dtype=dtype,
        routing=routing,
    )  # fmt: skip


def several(value: int | Sequence[int]) -> Sequence[int]:
    """One number or several."""
    return (value,) if isinstance(value, int) else value
