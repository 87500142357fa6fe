"""Cores that the ranks of a node share: a rank that computes has one, and waits while there is none."""

from __future__ import annotations

from collections.abc import Sequence

from plancc.simulator.script import Item, Message

SLICE = 4e-3
"""Seconds on a core after which another may have it: a tick of the scheduler (Linux, CONFIG_HZ=250)."""
OWN = ("work", "send", "start", "mark")
"""Items that wait for nobody."""


class Cores:
    """When each core of each node is free; `homes` has the node of each actor.

    Nobody is interrupted: a call keeps its core to its end, and cores are given in the order of time.
    """

    def __init__(self, count: int, homes: Sequence[int]) -> None:
        self.homes = homes
        self.free = {node: [0.0] * count for node in dict.fromkeys(homes)}

    def handling(self, messages: Sequence[Message], seconds: float) -> float:
        """Seconds on a core that messages take, of which links say `seconds`.

        Where ranks take turns on one core, nothing of a message passes beside the others.
        """
        turns = all(len(free) == 1 for free in self.free.values())
        return sum(m.latency + m.busy for m in messages) if turns else seconds

    def take(self, actor: int, begin: float, seconds: float, wanted: int = 1) -> float:
        """Keep `wanted` cores (at most all) busy for `seconds`, from `begin` on or later: when it begins.

        Of the free cores those are taken that became free last.
        """
        free = self.free[self.homes[actor]]
        count = min(wanted, len(free))
        free.sort()
        ready = [at for at, time in enumerate(free) if time <= begin]
        chosen = ready[-count:] if len(ready) >= count else list(range(count))
        start = max(begin, free[chosen[-1]])
        for at in chosen:
            free[at] = start + seconds
        return start


def stints_of(items: Sequence[Item]) -> list[float]:
    """For each item the seconds for which an actor takes a core when it comes to it.

    An actor that computes keeps its core until it comes to something that may wait, or has had it for a
    SLICE, but not in the middle of a call: what the first of such items takes is for all of them, the others
    have 0.
    """
    found = [0.0] * len(items)
    first: int | None = None
    for at, item in enumerate(items):
        if item.kind not in OWN or (first is not None and found[first] >= SLICE):
            first = None
        if item.kind in OWN and item.seconds:
            first = at if first is None else first
            found[first] += item.seconds
    return found
