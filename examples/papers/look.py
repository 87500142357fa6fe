"""Rows by what they are rows of, and what sentences and tables are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, log
from typing import Any

from papers.cases import CASES
from plancc.simulator.table import duration, number, share

Record = dict[str, Any]
TIMES = ("tpot_s", "ttft_s", "step_s")


@dataclass(frozen=True)
class Results:
    """The content of results.json."""

    facts: Record
    rows: Sequence[Record]

    def all(self, case: str, phase: str, batch: int, seq_len: int) -> list[Record]:
        """The rows of a point, one for each number of micro-batches."""
        key = (case, phase, batch, seq_len)
        return [r for r in self.rows if (r["case"], r["phase"], r["batch"], r["seq_len"]) == key]

    def best(self, case: str, phase: str, batch: int, seq_len: int) -> Record:
        """The fastest of them that fits, or the first if none does; LookupError if there is none."""
        found = self.all(case, phase, batch, seq_len)
        if not found:
            raise LookupError(f"no row of {case}, {phase}, {batch} x {seq_len}")
        return min(found, key=lambda r: seconds(r) or float("inf"))

    def one(self, case: str, phase: str, batch: int, seq_len: int) -> Record:
        """The row of one micro-batch; LookupError if there is none."""
        for row in self.all(case, phase, batch, seq_len):
            if row["asked"] == 1:
                return row
        raise LookupError(f"no row of {case} with one micro-batch")

    def fastest(self, cases: Sequence[str], phase: str, batch: int, seq_len: int) -> Record:
        """The fastest of several plans."""
        found = [self.best(case, phase, batch, seq_len) for case in cases]
        return min(found, key=lambda r: seconds(r) or float("inf"))


def seconds(row: Record) -> float | None:
    """The time of a row; None where it does not fit."""
    return next((row[name] for name in TIMES if row[name] is not None), None)


def gain(slow: Record, fast: Record) -> float | None:
    """How many times as fast one row is as another; None where one does not fit."""
    a, b = seconds(slow), seconds(fast)
    return a / b if a is not None and b is not None else None


def times(value: float | None) -> str:
    """`2.31x`; a dash where there is none."""
    return "–" if value is None else f"{value:.2f}x"


def change(value: float) -> str:
    """`-34 %`."""
    return f"{100 * (value - 1):+.0f} %".replace("-", "−")


def lasts(row: Record) -> str:
    """The time of a row in words."""
    found = seconds(row)
    return "does not fit" if found is None else duration(found)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table whose first `left` columns are text."""
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *rows))


FULL = (
    "plan", "devices", "micro-batches", "time", "tokens/s", "per device", "busy", "busy by mesh",
    "MFU", "communication", "not hidden", "waiting", "memory",
)  # fmt: skip


def full(row: Record, label: str = "") -> list[str]:
    """Everything about a row, in the order of FULL."""
    name = label or CASES[row["case"]].label
    memory = ", ".join(f"{mesh.split('@')[0]} {gb:.1f}" for mesh, gb in row["memory_gb"].items())
    head = [name, str(row["devices"]), str(row["microbatches"])]
    if not row["fits"]:
        return [*head, "does not fit", *["–"] * 8, f"{memory} GB"]
    busy = row["busy_by_mesh"]
    parts = ", ".join(f"{mesh.split('@')[0]} {share(one)}" for mesh, one in busy.items())
    return [
        *head, lasts(row), number(row["tps"]), number(row["tps_per_device"]),
        share(row["utilisation"]["busy"]), parts, share(row["utilisation"]["mfu"]),
        share(row["comm_share"]), share(row["exposed_comm_share"]), share(row["bubble_share"]),
        f"{memory} GB",
    ]  # fmt: skip


def crossing(points: Sequence[tuple[int, float | None]]) -> int | None:
    """The length from which on a ratio stays above 1, on lines in log space; None if it never does.

    The first length if it always is. A length without a ratio is left out.
    """
    known = [(n, ratio) for n, ratio in points if ratio is not None]
    if not known or known[-1][1] <= 1:
        return None
    last = known[0][0]
    for (low, before), (high, after) in pairwise(known):
        if before <= 1 < after:
            part = -log(before) / (log(after) - log(before))
            last = round(exp(log(low) + part * (log(high) - log(low))))
    return last


def tokens(count: int) -> str:
    """`82K tokens` (of 1000)."""
    return f"{count / 1e6:.1f}M" if count >= 1e6 else f"{count / 1e3:.0f}K"


def lengths(results: Results, case: str, phase: str, batch: int) -> Iterator[int]:
    """The lengths at which a case was simulated."""
    yield from sorted({
        r["seq_len"] for r in results.rows
        if (r["case"], r["phase"], r["batch"]) == (case, phase, batch)
    })  # fmt: skip
