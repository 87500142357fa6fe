"""Rows as text for people."""

from __future__ import annotations

from collections.abc import Sequence

from plancc.simulator.rows import Row

COLUMNS = (
    "plan", "phase", "batch", "seq_len", "devices", "micro", "time", "tokens/s", "per device",
    "busy", "MFU", "comm", "exposed", "waiting", "memory",
)  # fmt: skip
NAMES = {"prefill": "TTFT", "decode": "TPOT", "train": "step", "forward": "step"}


def table(rows: Sequence[Row]) -> str:
    """Columns side by side; what does not fit says so."""
    lines = [list(COLUMNS), *(cells(row) for row in rows)]
    width = [max(len(line[i]) for line in lines if i < len(line)) for i in range(len(COLUMNS))]
    out = []
    for line in lines:
        left = [line[0].ljust(width[0]), line[1].ljust(width[1])]
        rest = [cell.rjust(width[i]) for i, cell in enumerate(line[2:], 2) if i < len(COLUMNS)]
        out.append("  ".join([*left, *rest, *line[len(COLUMNS) :]]).rstrip())
    return "\n".join(out)


def cells(row: Row) -> list[str]:
    """One row."""
    head = [row.plan, row.phase, *map(str, (row.batch, row.seq_len, row.devices, row.microbatches))]
    memory = max(row.memory_gb.values(), default=0.0)
    if not row.fits or row.seconds is None or row.utilisation is None:
        blanks = ["-"] * (len(COLUMNS) - len(head) - 1)
        return [*head, *blanks, f"{memory:.1f} GB", row.reason]
    mfu = row.utilisation["mfu"]
    return [
        *head, f"{NAMES[row.phase]} {duration(row.seconds)}", number(row.tps or 0.0),
        number(row.tps_per_device or 0.0), share(row.utilisation["busy"]), share(mfu),
        share(row.comm_share), share(row.exposed_comm_share), share(row.bubble_share),
        f"{memory:.1f} GB",
    ]  # fmt: skip


def duration(seconds: float) -> str:
    """`3.42 ms`, with three digits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size or unit == "us":
            return (
                f"{seconds / size:.3g} {unit}"
                if seconds / size < 1000
                else f"{seconds / size:.0f} {unit}"
            )
    raise AssertionError


def number(value: float) -> str:
    """`12,345` or `3.21`."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def share(value: float | None) -> str:
    """A percentage; `-` where there is none."""
    return "-" if value is None else f"{100 * value:.0f} %"
