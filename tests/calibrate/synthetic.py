"""Measurements of a machine that never was: its laws are known, so what comes of them can be worked out."""

from __future__ import annotations

from plancc.calibrate.collectives import KINDS, MESSAGE, Exchange
from plancc.calibrate.document import Findings
from plancc.calibrate.machine import Machine
from plancc.calibrate.spread import Spread
from plancc.calibrate.works import Timed

PEAK, BANDWIDTH, LAUNCH = 1e11, 1e10, 2e-6
LATENCY, WIRE = 1e-4, 1e9
MACHINE = Machine(
    "Some CPU",
    2,
    8_000_000_000,
    "",
    "Linux",
    "2.13.0",
    "3.11.7",
    1,
    0.1,
    "2026-01-31T12:00:00+00:00",
)


def certain(seconds: float) -> Spread:
    """A measurement whose repeats are all alike."""
    return Spread(seconds, seconds, seconds, seconds, 7)


def call_seconds(flops: float, size: float) -> float:
    """What a call takes there."""
    return LAUNCH + flops / PEAK + size / BANDWIDTH


def timed(kind: str, operator: str, flops: int, size: int) -> Timed:
    """A measured call."""
    seconds = certain(call_seconds(flops, size))
    return Timed(f"{operator} {flops} {size}", kind, operator, flops, size, "f32", seconds)


def exchange(kind: str, ranks: int, size: int) -> Exchange:
    """A measured verb: twice the latency for an all-reduce of two, and as many bytes as ranks."""
    seconds = LATENCY + size / WIRE
    if kind == "all_reduce":
        seconds = LATENCY * ranks + ranks * size / WIRE
    return Exchange(kind, ranks, size, certain(seconds))


def findings(backend: str = "gloo") -> Findings:
    """All that was measured there."""
    works = [timed("matmul", "linear", 10**power, 10**6) for power in (6, 8, 10)]
    works += [timed("attention", "attention", 10**power, 10**5) for power in (6, 8)]
    works += [timed("memory", name, 0, 10**p) for name in ("add", "silu") for p in (3, 6, 8)]
    sizes = (8, 4096, 1 << 20)
    exchanges = [
        exchange(kind, ranks, size) for kind in KINDS for ranks in (2, 4) for size in sizes
    ]
    exchanges += [exchange(MESSAGE, 2, size) for size in sizes]
    return Findings(MACHINE, backend, works, exchanges)
