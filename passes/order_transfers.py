"""Send each value as soon as it is there, and receive in the order of sending.

Sends never block, so an early one overlaps with what its rank computes next. Messages between two stages
arrive in order, so a receive waits for no later one and none is overtaken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from plancc.dsl.diagnostics import Report
from plancc.ir.layout import Stage
from plancc.ir.program import Instruction, Send, Transfer, produced
from plancc.passes.base import Unit
from plancc.passes.overlap_transfers import edge_comms
from plancc.passes.wires import edge_wire

Entry = tuple[tuple[Stage, ...], Instruction]


@dataclass(frozen=True)
class OrderTransfers:
    """Split each transfer into a send behind its producer and a receive before its first use."""

    name: ClassVar[str] = "order-transfers"

    def run(self, unit: Unit, report: Report) -> Unit:
        """Reorder `instructions`: a Send entry belongs to the source, a Transfer entry to the target."""
        unit = with_wires(unit)
        unit = replace(unit, instructions=tuple(ordered(unit.instructions)))
        if unit.training is None:
            return unit
        backward, reduce = ordered(unit.training.backward), ordered(unit.training.reduce)
        training = replace(unit.training, backward=tuple(backward), reduce=tuple(reduce))
        return replace(unit, training=training)


def with_wires(unit: Unit) -> Unit:
    """The unit with the wire types that the plan's comm lines give to its transfers."""
    comms = [
        comm
        for comm in edge_comms(unit.plan, unit.variant)
        if any(s.name in ("dtype", "grad_dtype") for s in comm.settings)
    ]
    if not comms:
        return unit

    def typed(entries: Sequence[Entry], gradient: bool) -> tuple[Entry, ...]:
        out = []
        for stages, step in entries:
            if isinstance(step, Transfer):
                edge = step.edge
                wire = edge_wire(comms, edge.source, edge.target, gradient)
                step = replace(step, edge=replace(edge, wire=wire))
            out.append((stages, step))
        return tuple(out)

    unit = replace(unit, instructions=typed(unit.instructions, False))
    if unit.training is None:
        return unit
    training = replace(unit.training, backward=typed(unit.training.backward, True))
    return replace(unit, training=training)


def ordered(entries: Sequence[Entry]) -> list[Entry]:
    """The entries with sends and receives at their places."""
    if not any(isinstance(step, Transfer) for _, step in entries):
        return list(entries)
    made = {held.name: at for at, (_, step) in enumerate(entries) for held in produced(step)}
    transfers = [
        (max((made[n] for n in sender_reads(step) if n in made), default=at), at, step)
        for at, (_, step) in enumerate(entries)
        if isinstance(step, Transfer)
    ]
    transfers.sort(key=lambda t: t[:2])
    after: dict[int, list[Entry]] = {}
    for begin, _, step in transfers:
        edge = step.edge
        after.setdefault(begin, []).append(((edge.source,), Send(step.operand, edge, step.origin)))
    before: dict[int, list[Entry]] = {}
    for _, receives in sorted(by_pair(transfers).items(), key=lambda kv: str(kv[0])):
        wanted = len(entries)
        for at, step in reversed(receives):
            wanted = min(wanted, at)
            before.setdefault(wanted, []).insert(0, ((step.edge.target, step.edge.source), step))
    out: list[Entry] = []
    for at, (stages, step) in enumerate(entries):
        out += before.get(at, [])
        if not isinstance(step, Transfer):
            out.append((stages, step))
        out += after.get(at, [])
    return out


def sender_reads(step: Transfer) -> tuple[str, ...]:
    """What must be there before a transfer is sent."""
    return (step.operand, step.edge.routes[0])


def by_pair(transfers: list[tuple[int, int, Transfer]]) -> dict[tuple[Stage, Stage], list]:
    """(position wanted, transfer) in order of sending, for each pair of ranks' stages.

    Virtual stages of one coordinate are the same ranks: their messages come in one order.
    """
    found: dict[tuple[Stage, Stage], list] = {}
    for _, at, step in transfers:
        pair = replace(step.edge.source, chunk=0), replace(step.edge.target, chunk=0)
        found.setdefault(pair, []).append((at, step))
    return found
