"""Hold the plan's `comm grads` and `comm params` lines against the collectives that are there (P501)."""

from __future__ import annotations

from collections.abc import Iterator

from plancc.dsl.diagnostics import Report
from plancc.dsl.plan import Comm
from plancc.ir.mesh import mesh_of
from plancc.ir.program import Accumulate, Bucket, Collective, Launch, TakeGrad, operands, produced
from plancc.passes.base import Training, Unit
from plancc.passes.gradients.activity import Entry
from plancc.passes.overlap_transfers import active_comms


def check_state_traffic(
    unit: Unit, entries: list[Entry], training: Training, report: Report
) -> None:
    """P501 for a line whose traffic does not exist, or is made by another collective."""
    grads = list(gradient_moves([*training.backward, *training.reduce]))
    params = [
        step
        for step in moves([*entries, *training.backward, *training.refresh])
        if step.kind == "all_gather" and step not in grads
    ]
    for comm in active_comms(unit.plan, unit.variant):
        if comm.kind == "tensors":
            found = [
                step
                for tensors in comm.tensors
                for step in {"grads": grads, "params": params}.get(tensors, [])
                if any((mesh_of(p.mesh), p.axis) == (comm.mesh, comm.axis) for p in step.parts)
            ]
            check_line(comm, found, report)


def check_line(comm: Comm, found: list[Bucket | Collective], report: Report) -> None:
    """One line against the moves that it selects."""
    names = ", ".join(comm.tensors)
    if not found:
        report.error(
            "P501", f"no {names} are moved over `{comm.mesh}.{comm.axis}`", comm.span,
            help=["nothing here replicates or cuts them over this axis: remove the line"],
        )  # fmt: skip
        return
    kinds = sorted({step.kind for step in found})
    for setting in comm.settings:
        if setting.name == "op" and setting.value not in kinds:
            report.error(
                "P501", f"{names} over `{comm.axis}` are moved by {' and '.join(kinds)}, "
                f"not {setting.value}", setting.span,
                help=["the collective follows from how the state is cut: remove `op`"],
            )  # fmt: skip


def moves(entries: list[Entry]) -> Iterator[Bucket | Collective]:
    """Every collective, started early or not."""
    for _, step in entries:
        move = step.step if isinstance(step, Launch) else step
        if isinstance(move, (Bucket, Collective)):
            yield move


def gradient_moves(entries: list[Entry]) -> Iterator[Bucket | Collective]:
    """The collectives that sum gradients of weights."""
    taken = {
        held.name for _, step in entries if isinstance(step, TakeGrad) for held in produced(step)
    }
    for _, step in entries:
        if isinstance(step, Launch):
            taken.update(take.out.name for take in step.takes)
    summed = {
        name for _, step in entries if isinstance(step, Accumulate) for name in operands(step)
    }
    for move in moves(entries):
        outs = {held.name for held in produced(move)}
        if outs & summed or set(operands(move)) & taken:
            taken |= outs
            yield move
