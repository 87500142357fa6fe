"""Seconds of collectives by the topology of their group: rings and trees over nodes, links and NICs.

Latency and bandwidth terms as in NCCL's own choice of algorithm (NCCL, src/graph/tuning.cc): a ring of g
ranks takes g - 1 steps, a tree the depth of a chain within a node and of a binary tree over the nodes; an
all-reduce goes twice through either. The constants are those of the links.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plancc.simulator.hardware_forms import Link


@dataclass(frozen=True, slots=True)
class Topology:
    """A group of ranks over nodes: `counts` are its ranks on each node.

    `inside` is the slowest link within a node, None if no two ranks share one; `outside` that between nodes,
    None within one node. `rate` is what the group may send out of a node at once, on the node with the least
    for each of its ranks, in bytes/s; `share` the same of a single rank.
    """

    counts: tuple[int, ...]
    inside: Link | None
    outside: Link | None
    rate: float = 0.0
    share: float = 0.0

    @property
    def ranks(self) -> int:
        """How many ranks meet."""
        return sum(self.counts)


def seconds_of(kind: str, topology: Topology, size: int) -> float:
    """The seconds of a verb in which each rank's operand has `size` bytes; 0 for a single rank."""
    if topology.ranks == 1:
        return 0.0
    if kind == "all_to_all":
        return all_to_all(topology, size)
    if kind == "all_reduce":
        return min(ring(topology, size, 2), tree(topology, size))
    whole = size * topology.ranks if kind == "all_gather" else size
    return ring(topology, whole, 1)


def ring(topology: Topology, whole: float, ways: int) -> float:
    """A ring: `ways` (2 of an all-reduce) times (g - 1) / g of the whole value pass each rank and node."""
    g, nodes = topology.ranks, len(topology.counts)
    between = nodes - 1
    steps = latency(topology, ways, g - 1 - between, between)
    return steps + ways * (g - 1) / g * whole / bandwidth(topology)


def tree(topology: Topology, whole: float) -> float:
    """A double binary tree over the nodes, chains within: the whole value goes up and down once."""
    depth = (len(topology.counts) - 1).bit_length()
    return latency(topology, 2, max(topology.counts) - 1, depth) + 2 * whole / bandwidth(topology)


def all_to_all(topology: Topology, size: float) -> float:
    """Every rank gives an equal part of its operand to every rank: all at once, over all links together."""
    g, most = topology.ranks, max(topology.counts)
    seconds = 0.0
    if topology.inside is not None:
        seconds = size * (most - 1) / g / topology.inside.bandwidth
    if topology.outside is not None:
        least = min(topology.counts)
        seconds = max(seconds, size * (g - least) / g / topology.share)
    return latency(topology, 1, 0, 1) + seconds


def bandwidth(topology: Topology) -> float:
    """Bytes/s that a ring keeps up: its slowest part."""
    inside, outside = topology.inside, topology.outside
    found = [
        link
        for link in (inside.bandwidth if inside else 0.0, topology.rate if outside else 0.0)
        if link
    ]
    return min(found)


def latency(topology: Topology, ways: int, inside: int, outside: int) -> float:
    """The seconds of a verb without bytes; `inside` and `outside` count the steps one way."""
    links = [
        (link, steps)
        for link, steps in ((topology.inside, inside), (topology.outside, outside))
        if link
    ]
    base = max(link.latency * (1.0 if ways == 2 else link.one_way) for link, _ in links)
    return base + ways * sum(link.step * steps for link, steps in links)


def slowest(links: Sequence[Link]) -> Link:
    """The link that has of each constant the worst; of one link, that link. Not for none."""
    first = links[0]
    if all(link == first for link in links):
        return first
    return Link(
        "/".join(dict.fromkeys(link.name for link in links)),
        min(link.bandwidth for link in links),
        max(link.latency for link in links),
        max(link.one_way for link in links),
        max(link.step for link in links),
        max(link.message_latency for link in links),
        min(link.message_bandwidth for link in links),
        max(link.message_overhead for link in links),
        None,
        min(link.nics for link in links),
    )
