"""The hardware under a plan's ranks: seconds of works, verbs and messages; memory and power."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache

from plancc.dsl.errors import Bug
from plancc.simulator.collective_cost import Topology, seconds_of, slowest
from plancc.simulator.forms import Work
from plancc.simulator.hardware_forms import (
    VERBS,
    ClusterError,
    Curve,
    Kind,
    Link,
    Measured,
    MeasuredCalls,
    between,
)
from plancc.simulator.parse_cluster import ANY


class Hardware:
    """The devices of a cluster by rank: what the engine asks for times.

    `nodes` has the node of each rank. `assumptions` grows with what was asked: the changes to the file, and
    each measured range that was left. Every time is monotone: more bytes are never faster, more bandwidth
    never slower.
    """

    def __init__(
        self, kinds: tuple[Kind, ...], nodes: tuple[int, ...], slots: tuple[int, ...],
        links: Mapping[str, Link], measured: Measured, cores: int, changed: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.kinds, self.nodes, self.cores = kinds, nodes, cores
        self._slots, self._links, self._measured = slots, links, measured
        self._placed = Counter(nodes)
        self._notes: dict[str, None] = dict.fromkeys(changed)
        self._known: dict[tuple[str, int, int, int], float] = {}
        self._topology = lru_cache(maxsize=None)(self._find_topology)

    @property
    def assumptions(self) -> tuple[str, ...]:
        """The sentences that a prediction must be printed with, as far as it was asked for."""
        return tuple(self._notes)

    def node(self, rank: int) -> int:
        """The node of a rank."""
        return self.nodes[rank]

    def memory(self, rank: int) -> float:
        """Bytes of memory of a rank's device."""
        return self.kinds[rank].memory

    def power(self, rank: int) -> tuple[float, float]:
        """Watts of a rank's device (busy, idle)."""
        kind = self.kinds[rank]
        if kind.power is None:
            raise ClusterError(
                f"kinds.{kind.name}.power: missing; energy needs {{busy, idle}} in watts"
            )
        return kind.power

    def seconds(self, rank: int, work: Work, operator: str = "") -> float:
        """Seconds of a local call: what its FLOPs or its bytes take, whichever is longer, and the launch.

        Roofline (Williams et al. 2009) with the shares of the peaks that the kind of work reaches; where the
        kind of device has a table of it, measured seconds, in which the launch is; before that calls that
        were measured of the operator, or of its kind of work.
        """
        if work.kind == "view":
            return 0.0
        kind = self.kinds[rank]
        calls = find_calls(kind, work, operator)
        if calls is not None:
            return self._measured_call(kind, calls, work, operator or work.kind)
        table = kind.tables.get((work.kind, work.dtype)) or kind.tables.get((work.kind, ANY))
        by_flops, by_bytes = (table.by_flops, table.by_bytes) if table else (None, None)
        where = f"{kind.name}: {work.kind} of {work.dtype}"
        seconds = []
        if work.kind != "memory" and work.flops:
            seconds.append(
                self._at(by_flops, work.flops, f"{where}, FLOPs") if by_flops
                else work.flops / (needed(kind, "flops", work.dtype) * needed(kind, "efficiency", work.kind))
                + kind.launch
            )  # fmt: skip
        if work.moved:
            seconds.append(
                self._at(by_bytes, work.moved, f"{where}, bytes") if by_bytes
                else work.moved / (kind.bandwidth * needed(kind, "streaming", work.kind)) + kind.launch
            )  # fmt: skip
        return max(seconds, default=kind.launch)

    def host(self, rank: int, name: str) -> float:
        """Seconds of Python on the device that a rank computes on; 0 where it is not the host."""
        return self.kinds[rank].host.get(name, 0.0)

    def measured(self, rank: int, work: Work, operator: str) -> bool:
        """Whether whole calls of an operator were measured, however many kernels they are.

        Those that memory bounds are alike in all dtypes.
        """
        calls = self.kinds[rank].calls
        if work.kind == "memory":
            return any(name == operator for name, _ in calls)
        return (operator, work.dtype) in calls

    def _measured_call(self, kind: Kind, calls: MeasuredCalls, work: Work, name: str) -> float:
        key = (kind.name, id(calls), work.flops, work.moved)
        if key not in self._known:
            outside = calls.outside(work.flops, work.moved)
            if outside:
                self._note(f"{kind.name}: {name} of {work.dtype}, {outside}")
            peak = kind.flops.get(work.dtype) or max(kind.flops.values())
            self._known[key] = calls.at(
                work.flops, work.moved, lambda f, b: kind.launch + f / peak + b / kind.bandwidth
            )
        return self._known[key]

    def verb_seconds(self, kind: str, group: tuple[int, ...], size: int) -> float:
        """Seconds of a verb over `group` from when all have come; `size` is the largest operand, in bytes.

        Measured where the file measured the verb over as many nodes, else by the links: the cheaper of a ring
        and a tree (see collective_cost). 0 for a single rank.
        """
        if kind not in VERBS:
            raise Bug(f"no seconds of the verb {kind!r}")
        if len(group) == 1:
            return 0.0
        nodes = len({self.nodes[rank] for rank in group})
        curves = self._measured.curves.get((kind, nodes))
        if curves:
            return self._measured_seconds(curves, kind, len(group), size)
        return seconds_of(kind, self._topology(group), size)

    def message(self, source: int, target: int, size: int) -> tuple[float, float]:
        """(latency, seconds that its links are busy) of `size` bytes from one rank to another."""
        link = self._between(source, target)
        return link.message_latency, size / link.message_bandwidth

    def overhead(self, source: int, target: int) -> float:
        """Seconds of the sender of a message before it goes on."""
        return self._between(source, target).message_overhead

    def links(self, rank: int) -> tuple[str, str]:
        """The names of what a rank sends by: its port within the node, and its NIC. Both are full duplex."""
        kind = self.kinds[rank]
        network = self._links.get(kind.network)
        nics = network.nics if network else 0
        nic = (
            self._slots[rank] * nics // kind.per_node if nics < kind.per_node else self._slots[rank]
        )
        return f"port {self.nodes[rank]}.{self._slots[rank]}", f"nic {self.nodes[rank]}.{nic}"

    def route(self, source: int, target: int) -> tuple[str, str]:
        """The links of a message: the one that it leaves by, and the one that it comes in by."""
        which = 0 if self.nodes[source] == self.nodes[target] else 1
        return self.links(source)[which], self.links(target)[which]

    def _between(self, source: int, target: int) -> Link:
        if source == target:
            raise Bug(f"rank {source} sends a message to itself")
        same = self.nodes[source] == self.nodes[target]
        return slowest(
            [self._link(rank, "node" if same else "network") for rank in (source, target)]
        )

    def _link(self, rank: int, end: str) -> Link:
        kind = self.kinds[rank]
        name = kind.node if end == "node" else kind.network
        found = self._links.get(name)
        if found is None:
            whose = "of a node" if end == "node" else "of several nodes"
            raise ClusterError(f"links.{name}: missing; ranks {whose} meet over it")
        return found

    def _find_topology(self, group: tuple[int, ...]) -> Topology:
        counts = Counter(self.nodes[rank] for rank in group)
        inside = [self._link(r, "node") for r in group if counts[self.nodes[r]] > 1]
        if len(counts) == 1:
            return Topology(tuple(counts.values()), slowest(inside), None)
        outside = [self._link(rank, "network") for rank in group]
        shares = [self._share(rank, link) for rank, link in zip(group, outside, strict=True)]
        rate = min(shares[i] * counts[self.nodes[rank]] for i, rank in enumerate(group))
        if len(group) > len(counts) or any(self._placed[node] > 1 for node in counts):
            self._note(
                "ranks of a node send to other nodes at the same time: each has its share of the NICs"
            )
        return Topology(
            tuple(counts.values()),
            slowest(inside) if inside else None,
            slowest(outside),
            rate,
            min(shares),
        )

    def _share(self, rank: int, link: Link) -> float:
        """Bytes/s of one rank to other nodes while all ranks of its node send: of the NICs near it."""
        near = max(1.0, link.nics / self.kinds[rank].per_node)
        return link.bandwidth * min(near, link.nics / self._placed[self.nodes[rank]])

    def _measured_seconds(
        self, curves: Mapping[int, Curve], kind: str, ranks: int, size: int
    ) -> float:
        """Measured seconds; between measured numbers of ranks a line in log space, beyond in proportion."""
        known = sorted(curves)
        where = f"{kind} of {ranks} ranks"
        if ranks in curves:
            return self._at(curves[ranks], size, f"{where}, bytes")
        if ranks < known[0]:
            self._note(f"{where}: as of {known[0]} ranks, the fewest measured")
            return self._at(curves[known[0]], size, f"{kind} of {known[0]} ranks, bytes")
        if ranks > known[-1]:
            self._note(f"{where}: in proportion to {known[-1]} ranks, the most measured")
            return (
                self._at(curves[known[-1]], size, f"{kind} of {known[-1]} ranks, bytes")
                * ranks
                / known[-1]
            )
        low = max(n for n in known if n < ranks)
        high = min(n for n in known if n > ranks)
        ends = [(n, self._at(curves[n], size, f"{kind} of {n} ranks, bytes")) for n in (low, high)]
        return between(ends[0], ends[1], ranks)

    def _at(self, curve: Curve, size: float, where: str) -> float:
        if not curve.covers(size):
            low, high = curve.sizes[0], curve.sizes[-1]
            held = "at the seconds of the smallest" if size < low else "at the rate of the largest"
            self._note(f"{where}: outside the measured {low:g} to {high:g}, {held}")
        return curve.at(size)

    def _note(self, text: str) -> None:
        self._notes[text] = None


def find_calls(kind: Kind, work: Work, operator: str) -> MeasuredCalls | None:
    """The measured calls that are most like a work: its operator's, or those of its kind of work.

    What is bound by its bytes is alike in all dtypes.
    """
    for name in (operator, work.kind):
        found = kind.calls.get((name, work.dtype))
        if found is None and work.kind == "memory":
            found = next((calls for (one, _), calls in kind.calls.items() if one == name), None)
        if found is not None:
            return found
    return None


def needed(kind: Kind, table: str, name: str) -> float:
    """A constant of a kind of device; ClusterError with its path if it is missing."""
    found: Mapping[str, float] = getattr(kind, table)
    if name not in found:
        known = ", ".join(found) or "none"
        raise ClusterError(
            f"kinds.{kind.name}.{table}.{name or '(no dtype)'}: missing; there are {known}"
        )
    return found[name]
