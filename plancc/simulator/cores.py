"""Cores that the ranks of a node share: a rank that computes has one, and waits while there is none."""

from __future__ import annotations

from collections.abc import Sequence

from plancc.simulator.script import Message


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
