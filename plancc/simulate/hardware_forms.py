"""The constants of hardware as data: kinds of devices, links, measured curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import exp, log

from plancc.simulate.errors import SimulateError

VERBS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
"""The verbs in which a whole group meets."""


class ClusterError(SimulateError):
    """A cluster file is wrong, or lacks what the simulation needs of it."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Measured seconds over a size, both positive: straight lines between the points in log space.

    Sizes below the first point take its seconds, sizes beyond the last its rate. `of_points` makes one that
    never falls: a point that is faster than a smaller one gets that one's seconds.
    """

    sizes: tuple[float, ...]
    seconds: tuple[float, ...]

    @classmethod
    def of_points(cls, points: Sequence[tuple[float, float]]) -> Curve:
        """The curve through (size, seconds); points of one size count with their mean. Not for no points."""
        grouped: dict[float, list[float]] = {}
        for size, seconds in sorted(points):
            grouped.setdefault(size, []).append(seconds)
        means = (sum(found) / len(found) for found in grouped.values())
        return cls(tuple(grouped), tuple(accumulate(means, max)))

    def at(self, size: float) -> float:
        """The seconds of a size."""
        if size <= self.sizes[0]:
            return self.seconds[0]
        if size >= self.sizes[-1]:
            return self.seconds[-1] * size / self.sizes[-1]
        above = next(i for i, x in enumerate(self.sizes) if x > size)
        return between(
            (self.sizes[above - 1], self.seconds[above - 1]),
            (self.sizes[above], self.seconds[above]),
            size,
        )

    def covers(self, size: float) -> bool:
        """Whether a size lies in the measured range."""
        return self.sizes[0] <= size <= self.sizes[-1]


def between(low: tuple[float, float], high: tuple[float, float], x: float) -> float:
    """The y of `x` on the line through two positive points (x, y) in log space."""
    (x0, y0), (x1, y1) = low, high
    share = (log(x) - log(x0)) / (log(x1) - log(x0))
    return exp(log(y0) + share * (log(y1) - log(y0)))


@dataclass(frozen=True, slots=True)
class Table:
    """Measured seconds of one kind of work: by FLOPs where FLOPs decide, by bytes where they do.

    None where no such point was measured.
    """

    by_flops: Curve | None
    by_bytes: Curve | None


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of device. `flops` is the peak in FLOP/s by short dtype, `bandwidth` bytes/s of its memory.

    `efficiency` and `streaming` are the shares of them that "matmul", "attention" and "memory" reach,
    `launch` the seconds that a kernel takes beside its work, `power` watts (busy, idle). `node` and `network`
    name its links. `tables` maps (kind of work, dtype or "any") to what was measured, which then counts.
    """

    name: str
    per_node: int
    memory: float
    flops: Mapping[str, float]
    efficiency: Mapping[str, float]
    bandwidth: float
    streaming: Mapping[str, float]
    launch: float
    power: tuple[float, float] | None = None
    node: str = "node"
    network: str = "network"
    tables: Mapping[tuple[str, str], Table] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Link:
    """How devices of a node, or nodes, are joined. `bandwidth` is bytes/s of a device's port, or of a NIC.

    It is what collectives reach ("bus bandwidth"), `message_bandwidth` what a message does, `peak` what the
    data sheet says. `latency` is the seconds
    of a small all-reduce, `one_way` the share of it that the other verbs take, `step` the seconds of a
    further step of a ring or tree, `message_latency` that of a message. `nics` counts the NICs of a node
    (0: it does not join nodes).
    """

    name: str
    bandwidth: float
    latency: float
    one_way: float
    step: float
    message_latency: float
    message_bandwidth: float
    peak: float | None = None
    nics: int = 0


@dataclass(frozen=True, slots=True)
class Measured:
    """Measured collectives: (verb, nodes) -> ranks -> seconds over the bytes of a rank's operand."""

    curves: Mapping[tuple[str, int], Mapping[int, Curve]] = field(default_factory=dict)
