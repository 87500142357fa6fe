"""Run a failed case once more with a probe behind every instruction, to name the first wrong value."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from plancc.codegen.python import emit_program
from plancc.passes.base import Unit
from plancc.runtime.artifact import load_step
from plancc.runtime.failure import RankFailure
from plancc.runtime.local import run_local
from plancc.runtime.runner import Sequence as Running
from plancc.runtime.runner import split_batch
from plancc.runtime.view import View
from plancc.verification.divergence import Divergence, first_divergence

if TYPE_CHECKING:
    from plancc.verification.cases import Case
    from plancc.verification.check import Verification


def locate_divergence(work: Verification, unit: Unit, case: Case) -> Divergence | None:
    """The first value that differs from the reference; None if the probed run does not differ."""
    assert unit.programs is not None
    world = work.artifact.world
    recorded: list[dict[str, list[Tensor]]] = [{} for _ in range(world)]
    steps = probed_steps(work, unit)
    state = Running()

    def on_rank(transport: Any) -> None:
        runner = work.runner(transport)
        running = state if transport.rank == 0 else Running()
        with torch.no_grad():
            for phase, inputs in case.steps[:-1]:
                runner.run(phase, inputs, running)
            phase, inputs = case.steps[-1]
            mine = recorded[transport.rank]
            runner.run(
                phase, inputs, running, variant=unit.variant.index,
                probe=lambda file: probing(steps[file], mine),
            )  # fmt: skip

    with suppress(RankFailure):  # what was recorded before the failure shows where it began
        run_local(world, on_rank, describe=None)
    views = [View(rank, work.artifact.grids, "", sizes=work.sizes) for rank in range(world)]
    for view in views:
        view.owners = state.owners
    batch = next(iter(case.inputs.values())).shape[0]
    for index, (lo, hi) in enumerate(split_batch(batch, unit.programs.microbatches)):
        work.reference.run({name: x[lo:hi] for name, x in case.inputs.items()}, record=True)
        mine = [{k: v[index] for k, v in one.items() if index < len(v)} for one in recorded]
        env = {"B": hi - lo, "T": case.tokens, "P": case.past}
        found = first_divergence(unit, mine, views, work.reference.recorded, 1e-6, env)
        if found is not None:
            return found
    return None


def probed_steps(work: Verification, unit: Unit) -> dict[str, Any]:
    """File name -> compiled `step` that records; the same emitter, one probe line per value."""
    rows = [
        row
        for row in work.artifact.manifest["programs"]
        if row["phase"] == unit.graph.phase and row["variant"] == unit.variant.index
    ]
    out = {}
    assert unit.programs is not None
    with tempfile.TemporaryDirectory() as folder:
        for row, program in zip(rows[0]["classes"], unit.programs.programs, strict=True):
            path = Path(folder) / row["file"]
            path.write_text(emit_program(program, work.compiled.plan.name, probes=True))
            out[row["file"]] = load_step(path)
    return out


def probing(step: Callable[..., Any], found: dict[str, list[Tensor]]) -> Callable[..., Any]:
    """`step` with a view that records into `found`: a list per name, one entry a micro-batch."""

    def run(view: View, *rest: Any) -> Any:
        view.probe = lambda name, value: found.setdefault(name, []).append(value.clone())
        return step(view, *rest)

    return run
