"""Measure the local calls on every rank at the same time, as ranks of a plan compute at the same time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from plancc.calibrate.clock import QUICK, THOROUGH, Clock
from plancc.calibrate.operators import FEW, FULL, SMALL, Case, cases
from plancc.calibrate.spread import Spread
from plancc.runtime.transport import Transport
from plancc.runtime.view import dtype_named

AT = 23
"""Instruction number of the barrier before each case."""

Row = tuple[str, str, str, int, int, dict[str, float]]
"""Name of a case, kind of its work, operator, FLOPs, bytes, spread."""


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds of a case: `kind` of work, `operator`, FLOPs, bytes through memory, dtype."""

    name: str
    kind: str
    operator: str
    flops: int
    bytes: int
    dtype: str
    seconds: Spread


def run_rank(transport: Transport, payload: Mapping[str, Any]) -> list[Row]:
    """Entry of a rank: all cases of the dtype and the kind of work that `payload` names."""
    threads = int(payload["threads"])
    torch.set_num_threads(threads)
    everyone = tuple(range(transport.world))
    return rows_of(
        payload["dtype"], payload["kind"], bool(payload["quick"]), transport.device, threads,
        lambda: transport.barrier(everyone, AT),
    )  # fmt: skip


def rows_of(
    dtype: str, kind: str, quick: bool, device: torch.device, threads: int,
    ready: Callable[[], object] = lambda: None,
) -> list[Row]:  # fmt: skip
    """Measure the cases of one kind of work; `ready` returns when all ranks are about to begin one."""
    clock = Clock(device, threads, QUICK if quick else THOROUGH)
    sizes = SMALL if quick else FULL if device.type == "cuda" else FEW
    found: list[Row] = []
    with torch.no_grad():
        for case in cases(kind, sizes, dtype_named(dtype), dtype, device):
            ready()
            found.append(row_of(case, clock.seconds(case.call)))
    return found


def row_of(case: Case, seconds: Spread) -> Row:
    """A case as plain data."""
    work = case.work
    return case.name, work.kind, case.operator, work.flops, work.moved, seconds.json()


def joined(ranks: Sequence[Sequence[Row]], dtype: str) -> list[Timed]:
    """The mean over the ranks of what each of them measured."""
    found = []
    for rows in zip(*ranks, strict=True):
        name, kind, operator, flops, size, _ = rows[0]
        spreads = [Spread.from_json(row[5]) for row in rows]
        found.append(Timed(name, kind, operator, flops, size, dtype, mean(spreads)))
    return found


def mean(spreads: Sequence[Spread]) -> Spread:
    """Each of the numbers averaged."""
    count = len(spreads)
    return Spread(
        sum(s.least for s in spreads) / count, sum(s.low for s in spreads) / count,
        sum(s.median for s in spreads) / count, sum(s.high for s in spreads) / count,
        min(s.count for s in spreads),
    )  # fmt: skip
