"""The constants of hardware as data: kinds of devices, links, measured curves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import exp, hypot, log

from plancc.simulator.errors import SimulateError

POWER = 3
"""How fast a measured point loses weight with its distance."""
NEAR = 1e-9
"""Points this close (in log space) are the same."""
HOST = ("instruction", "recorded", "backward", "step", "parameter", "train_step")
"""Of what the seconds of Python are: an instruction without a kernel (that of the others is in their measured
calls); what autograd adds to a call that it records, and to each kernel of a backward; what a step takes
beside its program; in training a parameter of the optimizer, and all else behind the programs."""
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


def isotone(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (size, seconds) nearest to some points in log space that never fall (pool adjacent violators)."""
    blocks: list[tuple[list[float], float]] = []
    for size, seconds in sorted(points):
        sizes, mean = [size], log(seconds)
        while blocks and blocks[-1][1] > mean:
            before, other = blocks.pop()
            mean = (mean * len(sizes) + other * len(before)) / (len(sizes) + len(before))
            sizes = before + sizes
        blocks.append((sizes, mean))
    return [(size, exp(mean)) for sizes, mean in blocks for size in sizes]


@dataclass(frozen=True, slots=True)
class MeasuredCalls:
    """Calls of one operator in one dtype: (FLOPs, bytes, seconds) each, all positive but FLOPs.

    Without FLOPs a curve over bytes that never falls. With them each point tells by how much it is slower
    than a roofline without overlap says; between points these ratios are averaged, the near ones counting
    most (inverse distance weighting, Shepard 1968, in log space), so that every point is met.
    """

    points: tuple[tuple[float, float, float], ...]
    curve: Curve | None

    @classmethod
    def of_points(cls, points: Sequence[tuple[float, float, float]]) -> MeasuredCalls:
        """Measured calls; they are by bytes if no point has FLOPs. Not for no points."""
        plain = all(not flops for flops, _, _ in points)
        curve = Curve.of_points(isotone((b, s) for _, b, s in points)) if plain else None
        kept = points if plain else [point for point in points if point[0]]
        return cls(tuple(kept), curve)

    def at(self, flops: float, size: float, roofline: Callable[[float, float], float]) -> float:
        """Seconds of a call; `roofline` gives the seconds that constants say of (FLOPs, bytes)."""
        flops, size = max(flops, 1.0), max(size, 1.0)
        if self.curve is not None:
            return self.curve.at(size)
        total = weights = 0.0
        for f, b, seconds in self.points:
            distance = hypot(log(flops / f), log(size / b))
            if distance < NEAR:
                return seconds
            weight = distance**-POWER
            weights += weight
            total += weight * log(seconds / roofline(f, b))
        return roofline(flops, size) * exp(total / weights)

    def outside(self, flops: float, size: float) -> str:
        """Where a call lies outside of all that was measured; empty if it does not."""
        ranges = [("bytes", size, [b for _, b, _ in self.points])]
        if self.curve is None:
            ranges.append(("FLOPs", flops, [f for f, _, _ in self.points]))
        for name, value, known in ranges:
            if not min(known) <= value <= max(known):
                return f"{name}: outside the measured {min(known):g} to {max(known):g}"
        return ""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of device. `flops` is the peak in FLOP/s by short dtype, `bandwidth` bytes/s of its memory.

    `efficiency` and `streaming` are the shares of them that "matmul", "attention" and "memory" reach,
    `launch` the seconds that a kernel takes beside its work, `power` watts (busy, idle). `node` and `network`
    name its links. `tables` maps (kind of work, dtype or "any") to what was measured, which then counts,
    `calls` (operator or kind of work, dtype), which counts before it. `host` are seconds of Python around
    calls by name (HOST) where they add up with the device's: where the device is the host.
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
    calls: Mapping[tuple[str, str], MeasuredCalls] = field(default_factory=dict)
    host: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Link:
    """How devices of a node, or nodes, are joined. `bandwidth` is bytes/s of a device's port, or of a NIC.

    It is what collectives reach ("bus bandwidth"), `message_bandwidth` what a message does, `peak` what the
    data sheet says. `latency` is the seconds
    of a small all-reduce, `one_way` the share of it that the other verbs take, `step` the seconds of a
    further step of a ring or tree, `message_latency` that of a message, `message_overhead` those of its
    sender before it goes on (the o of LogP, Culler et al. 1993). `nics` counts the NICs of a node
    (0: it does not join nodes).
    """

    name: str
    bandwidth: float
    latency: float
    one_way: float
    step: float
    message_latency: float
    message_bandwidth: float
    message_overhead: float = 0.0
    peak: float | None = None
    nics: int = 0


@dataclass(frozen=True, slots=True)
class Measured:
    """Measured collectives: (verb, nodes) -> ranks -> seconds over the bytes of a rank's operand."""

    curves: Mapping[tuple[str, int], Mapping[int, Curve]] = field(default_factory=dict)
