"""Compare plans: the best number of micro-batches of each, and the lengths at which one overtakes another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from plancc.passes.plan_schedule import pipeline_stages
from plancc.simulator.errors import SimulateError
from plancc.simulator.rows import Row, make_row
from plancc.simulator.step import Outcome
from plancc.simulator.subject import Subject

GRID = 13
"""Lengths that are looked at, evenly in log space, before a crossing is narrowed down."""


@dataclass(frozen=True, slots=True)
class Crossing:
    """Where the plan `faster` overtakes the other one: from `seq_len` on, `tokens` = batch x seq_len."""

    phase: str
    batch: int
    faster: str
    slower: str
    seq_len: int
    tokens: int


def stages(subject: Subject) -> int:
    """How many pipeline stages the plan has (1 without a pipeline)."""
    return max((pipeline_stages(subject.plan, p) for p in subject.plan.pipelines), default=1)


def best_row(
    subject: Subject, phase: str, batch: int, seq_len: int, *, spans: bool = False
) -> tuple[Row, Outcome | None]:
    """The row of the best number of micro-batches in 1 .. 2 x stages; training has the plan's own."""
    if phase == "train" or stages(subject) == 1:
        return make_row(subject, phase, batch, seq_len, spans=spans)
    counts = range(1, min(batch, 2 * stages(subject)) + 1)
    found = [make_row(subject, phase, batch, seq_len, microbatches=n) for n in counts]
    fitting = [row for row, _ in found if row.fits]
    if not fitting:
        return found[0]
    best = min(fitting, key=lambda row: row.seconds or 0.0)
    return make_row(subject, phase, batch, seq_len, microbatches=best.microbatches, spans=spans)


def crossings(
    a: Subject, b: Subject, phase: str, batch: int, low: int, high: int,
    row_of: Callable[[Subject, str, int, int], tuple[Row, Outcome | None]] = best_row,
) -> list[Crossing]:  # fmt: skip
    """The lengths in low..high from which on another one of two plans is faster.

    A plan that does not fit, or does not admit a length, is slower there than one that does. Crossings
    between two neighbouring lengths of the grid that cancel out are not seen.
    """

    def time(subject: Subject, seq_len: int) -> float:
        try:
            row, _ = row_of(subject, phase, batch, seq_len)
        except SimulateError:
            return float("inf")
        return row.seconds if row.fits and row.seconds is not None else float("inf")

    def leads(seq_len: int) -> int:
        first, second = time(a, seq_len), time(b, seq_len)
        return (first > second) - (first < second)

    ratio = (high / low) ** (1 / (GRID - 1))
    grid = sorted({min(high, round(low * ratio**i)) for i in range(GRID)})
    found, last = [], leads(grid[0])
    for left, right in pairwise(grid):
        lead = leads(right)
        if lead and last and lead != last:
            at = narrowed(left, right, leads, last)
            names = (a, b) if lead < 0 else (b, a)
            faster, slower = (s.plan.name for s in names)
            found.append(Crossing(phase, batch, faster, slower, at, batch * at))
        last = lead or last
    return found


def narrowed(low: int, high: int, leads: Callable[[int], int], before: int) -> int:
    """The first length in low..high, within 1 %, at which another one leads than at `low`."""
    while high - low > max(1, low // 100):
        middle = (low + high) // 2
        if leads(middle) == before:
            low = middle
        else:
            high = middle
    return high
