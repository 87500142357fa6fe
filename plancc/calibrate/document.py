"""A cluster file out of what was measured: `plancc.cluster/1`, every constant with its source."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from plancc.calibrate.collectives import KINDS, MESSAGE, Exchange
from plancc.calibrate.machine import Machine
from plancc.calibrate.programs import Rows
from plancc.calibrate.samples import Runs
from plancc.calibrate.works import Timed
from plancc.dsl.errors import Bug
from plancc.simulator.parse_cluster import SCHEMA

STREAM = 48 << 20
"""Bytes from which on a memory-bound call is said to go through memory, not caches (less, if none does)."""
DEVICES = 64
"""Ranks that a file of a machine without GPUs is for at least: more processes only share its cores."""
Constant = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Findings:
    """All that was measured: `rows` of calls in programs (else those of `works` count), `host` by name.

    Rows and `host` are what has become of `runs`.
    """

    machine: Machine
    backend: str
    works: Sequence[Timed]
    exchanges: Sequence[Exchange]
    rows: Rows = field(default_factory=dict)
    host: Mapping[str, float] = field(default_factory=dict)
    gpus: int = 0
    runs: Runs = field(default_factory=Runs)

    @property
    def kind(self) -> str:
        """The name of the kind of device."""
        return "gpu" if self.gpus else "core"

    def source(self, what: str) -> str:
        """The source of a constant."""
        return f"{what}; {self.machine.about}"


def document(found: Findings) -> dict[str, Any]:
    """The cluster file as data. Raises Bug where no matrix product or memory-bound call was measured."""
    count = found.gpus or max([DEVICES, *(e.ranks for e in found.exchanges)])
    links = links_of(found)
    made: dict[str, Any] = {
        "schema": SCHEMA,
        "name": f"{found.backend}_here",
        "about": about(found),
        "devices": [{"kind": found.kind, "count": count}],
        "kinds": {found.kind: kind_of(found, count)},
        "links": {"node": links} if links else {},
        "collectives": [
            {
                "kind": e.kind,
                "ranks": e.ranks,
                "bytes": e.size,
                "seconds": rounded(e.seconds.median),
            }
            for e in found.exchanges
            if e.kind in KINDS
        ],
    }
    if not found.gpus:
        made["cores"] = cores_of(found)
    return made


def about(found: Findings) -> str:
    """What the file is of."""
    ranks = sorted({e.ranks for e in found.exchanges})
    groups = f"collectives of {', '.join(map(str, ranks))} ranks" if ranks else "no collectives"
    who = {
        "local": "all ranks as threads of one process, one at a time",
        "gloo": "a process a rank on this host",
        "nccl": "a GPU a rank on this host",
    }[found.backend]
    return f"{found.backend}: {who}; {groups}; {found.machine.about}, load {found.machine.load:.1f} before"


def cores_of(found: Findings) -> Constant:
    """How many ranks can compute at a time: of the ranks of one process a single one."""
    if found.backend == "local":
        return constant(1, "ranks of one process take turns (plancc.runtime.local)")
    return constant(found.machine.cores, found.source("cores that this process may use"))


def kind_of(found: Findings, count: int) -> dict[str, Any]:
    """The constants of one device, and the tables of what was measured."""
    peaks = {
        dtype: max(one.flops / one.seconds.median for one in rows)
        for dtype, rows in by_dtype(found.works, "matmul").items()
    }
    streams = [one for one in found.works if one.kind == "memory"]
    if not peaks or not streams:
        raise Bug("a cluster file needs matrix products and memory-bound calls")
    wide = [one for one in streams if one.bytes >= STREAM] or streams
    bandwidth = max(one.bytes / one.seconds.median for one in wide)
    quickest = min(found.works, key=lambda one: one.seconds.median)
    kind: dict[str, Any] = {
        "per_node": constant(count, "ranks that one host is taken to hold"),
        "memory": constant(found.machine.memory, found.source(
            "of the device" if found.gpus else "of the host, which its ranks share")),
        "flops": {
            dtype: constant(peak, found.source("the best matrix product, whatever its shape"))
            for dtype, peak in peaks.items()
        },
        "efficiency": {
            name: constant(efficiency(found.works, name, peaks, bandwidth), found.source(
                f"median of {name} calls that FLOPs bound, over the best matrix product"))
            for name in ("matmul", "attention")
        },
        "bandwidth": constant(bandwidth, found.source("the best memory-bound call")),
        "streaming": {
            name: constant(streaming(found.works, name, peaks, bandwidth), found.source(
                f"median of {name} calls that bytes bound, over the best memory-bound call"))
            for name in ("matmul", "attention", "memory")
        },
        "launch": constant(quickest.seconds.median, found.source(f"the quickest call, {quickest.name}")),
        "calls": rounded_rows(found.rows or calls(found.works)),
    }  # fmt: skip
    if found.host:
        kind["host"] = {
            name: constant(s, found.source(HOST[name])) for name, s in found.host.items()
        }
    return kind


HOST = {
    "instruction": "an instruction without a kernel, median over programs of decoders",
    "recorded": "what a call that autograd records takes beyond one that it does not, mean",
    "backward": "what a kernel of a backward takes beyond one of a forward, mean",
    "step": "a decode step outside of its program: sizes, inputs, handing out the next token",
    "parameter": "what training takes for a parameter behind its programs, of tiny decoders",
    "train_step": "what training takes behind its programs: data, agreement on the loss, optimizer",
}
"""What the seconds of Python are of."""


def by_dtype(works: Sequence[Timed], kind: str) -> dict[str, list[Timed]]:
    """The measured calls of one kind of work by dtype."""
    found: dict[str, list[Timed]] = {}
    for one in works:
        if one.kind == kind:
            found.setdefault(one.dtype, []).append(one)
    return found


def efficiency(
    works: Sequence[Timed], kind: str, peaks: Mapping[str, float], bandwidth: float
) -> float:
    """The median share of the peak of calls that FLOPs bound (of all, if none is)."""
    mine = [one for one in works if one.kind == kind]
    heavy = [one for one in mine if heavier(one, peaks, bandwidth)]
    return share(one.flops / one.seconds.median / peaks[one.dtype] for one in heavy or mine)


def streaming(
    works: Sequence[Timed], kind: str, peaks: Mapping[str, float], bandwidth: float
) -> float:
    """The median share of the bandwidth of calls that bytes bound (of all, if none is)."""
    mine = [one for one in works if one.kind == kind]
    light = [one for one in mine if not heavier(one, peaks, bandwidth)]
    return share(one.bytes / one.seconds.median / bandwidth for one in light or mine)


def heavier(one: Timed, peaks: Mapping[str, float], bandwidth: float) -> bool:
    """Whether FLOPs rather than bytes bound a call."""
    return one.kind != "memory" and one.flops / peaks[one.dtype] > one.bytes / bandwidth


def share(rates: Any) -> float:
    """A median as a share: more than 0, at most 1."""
    found = list(rates)
    return min(1.0, statistics.median(found)) if found else 1.0


def rounded_rows(rows: Rows) -> Rows:
    """Rows as a file has them."""
    return {
        name: {
            dtype: [[flops, size, rounded(seconds)] for flops, size, seconds in found]
            for dtype, found in by_type.items()
        }
        for name, by_type in rows.items()
    }


def calls(works: Sequence[Timed]) -> Rows:
    """Rows [FLOPs, bytes, seconds] of products, of attention, and of memory-bound operators by name.

    "memory" has the medians over operators, for those that were not measured.
    """
    found: Rows = {}
    for one in works:
        name = one.operator if one.kind == "memory" else one.kind
        found.setdefault(name, {}).setdefault(one.dtype, []).append(row(one))
    for dtype, streams in by_dtype(works, "memory").items():
        sizes: dict[int, list[Timed]] = {}
        for one in streams:
            sizes.setdefault(round(math.log2(one.bytes)), []).append(one)
        found.setdefault("memory", {})[dtype] = [
            [0, round(statistics.fmean(one.bytes for one in rows)),
             statistics.median(one.seconds.median for one in rows)]
            for _, rows in sorted(sizes.items())
        ]  # fmt: skip
    return found


def row(one: Timed) -> list[float]:
    """A row of a table."""
    return [one.flops, one.bytes, one.seconds.median]


def links_of(found: Findings) -> dict[str, Any]:
    """The link of a node's ranks; empty where no two ranks were measured."""
    pairs = [e for e in found.exchanges if e.kind == MESSAGE]
    sums = [e for e in found.exchanges if e.kind == "all_reduce"]
    if not pairs or not sums:
        return {}
    latency, bandwidth = line(pairs)
    overhead = min(latency, min(pairs, key=lambda e: e.size).given)
    two, most = min(e.ranks for e in sums), max(e.ranks for e in sums)
    small = smallest(found.exchanges, "all_reduce", two)
    large = max((e for e in sums if e.ranks == two), key=lambda e: e.size)
    others = [smallest(found.exchanges, k, two) for k in KINDS if k != "all_reduce"]
    steps = 2 * (most - two)
    step = (smallest(found.exchanges, "all_reduce", most) - small) / steps if steps else 0.0
    bus = 2 * (two - 1) / two * large.size / large.seconds.median
    say = found.source
    return {
        "bandwidth": constant(bus, say(f"all-reduce of {large.size} B among {two}: bus bandwidth")),
        "message_bandwidth": constant(bandwidth, say("a line through messages there and back")),
        "latency": constant(small, say(f"the smallest all-reduce among {two}")),
        "one_way": constant(
            share(s / small for s in others), say("the smallest of the other verbs over all-reduce")
        ),
        "step": constant(max(0.0, step), say(f"the smallest all-reduce among {two} and {most}")),
        "message_latency": constant(
            latency - overhead, say("a line through messages there and back, less the overhead")
        ),
        "message_overhead": constant(overhead, say("what the smallest message keeps its sender")),
    }


def smallest(exchanges: Sequence[Exchange], kind: str, ranks: int) -> float:
    """Seconds of the smallest operand of a verb."""
    mine = [e for e in exchanges if e.kind == kind and e.ranks == ranks]
    return min(mine, key=lambda e: e.size).seconds.median


def line(pairs: Sequence[Exchange]) -> tuple[float, float]:
    """(latency, bytes/s) of the line with the least relative errors; neither is negative."""
    seconds = np.array([e.seconds.median for e in pairs])
    sizes = np.array([float(e.size) for e in pairs])
    both, *_ = np.linalg.lstsq(
        np.stack([1 / seconds, sizes / seconds], 1), np.ones(len(pairs)), rcond=None
    )
    latency, slope = (float(x) for x in both)
    if latency <= 0 or slope <= 0:  # noise: the quickest, and what the largest takes beyond it
        latency, largest = float(seconds.min()), float(seconds[np.argmax(sizes)])
        slope = (largest - latency or latency) / float(sizes.max())
    return latency, 1 / slope


def constant(value: float, source: str) -> Constant:
    """A constant of a cluster file."""
    return {"value": rounded(value), "source": source}


def rounded(value: float) -> float:
    """Four digits: no measurement has more."""
    return value if isinstance(value, int) else float(f"{value:.4g}")
