"""The search: every setting where there are few, else coordinate descent; and how far it went."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import inf

from plancc.tune.forms import Attempt, Cost, Sets
from plancc.tune.space import Space

EXHAUSTIVE = 512
"""No more settings than this are all tried."""

Tries = Callable[[Sequence[Sets]], Iterable[Attempt]]
"""Tries settings, one after the other as they are asked for."""


@dataclass(frozen=True, slots=True)
class Limits:
    """When to stop: seconds, settings that were simulated (None: no limit); from where on to descend."""

    seconds: float | None = None
    points: int | None = None
    exhaustive: int = EXHAUSTIVE


class Over(Exception):
    """A limit was hit: which one, in words."""


@dataclass
class Trail:
    """What was tried, in order. `stopped` says which limit ended it; "" if none did.

    `complete`: every setting of the space was tried. `descents` counts the starts that were followed to
    their end.
    """

    space: Space
    tried: dict[Sets, Attempt] = field(default_factory=dict)
    descents: int = 0
    stopped: str = ""

    @property
    def complete(self) -> bool:
        """Whether nothing was left out."""
        return len(self.tried) == self.space.size

    @property
    def left_out(self) -> int:
        """Settings that were not tried."""
        return self.space.size - len(self.tried)

    @property
    def simulated(self) -> int:
        """Settings of which the programs were made."""
        return sum(bool(a.meshes) and a.same_as is None for a in self.tried.values())

    @property
    def same(self) -> int:
        """Settings that make the plan of an earlier one."""
        return sum(a.same_as is not None for a in self.tried.values())

    @property
    def refused(self) -> dict[str, int]:
        """Code of a diagnostic -> settings that the plan refused with it, the most frequent first."""
        return dict(Counter(a.code for a in self.tried.values() if a.code).most_common())

    def example(self, code: str) -> Attempt:
        """The first setting that was refused with a code."""
        return next(a for a in self.tried.values() if a.code == code)

    def best(self, cost: Cost) -> Attempt | None:
        """The setting that costs least; of equals the nearest to the defaults. None if all cost infinity."""
        found = min(self.nearest(), key=cost, default=None)
        return found if found is not None and cost(found) < inf else None

    def nearest(self) -> list[Attempt]:
        """All that was tried, those near the plan's defaults first."""
        return sorted(self.tried.values(), key=lambda a: self.space.distance(a.sets))


def search(
    space: Space, tries: Tries, cost: Cost, limits: Limits,
    clock: Callable[[], float] = time.monotonic,
) -> Trail:  # fmt: skip
    """Descend from every start, then try what is left of a small space. The same every time.

    With a limit in seconds, how far it comes depends on the machine; the trail then says so.
    """
    walk = Walk(Trail(space), tries, cost, limits, clock)
    try:
        for start in space.starts():
            walk.descend(start)
            walk.trail.descents += 1
        if space.size <= limits.exhaustive:
            walk.ask(list(space.all()))
    except Over as limit:
        if not walk.trail.complete:
            walk.trail.stopped = str(limit)
    return walk.trail


def confirm(
    trail: Trail, picked: Callable[[Trail], Iterable[Attempt]],
    whole: Callable[[Sets], Attempt | None],
) -> None:  # fmt: skip
    """Hold what is picked of a trail against all phases; what one of them refuses counts as refused."""
    held: set[Sets] = set()
    while True:
        new = [one.sets for one in picked(trail) if one.sets not in held]
        if not new:
            return
        for sets in dict.fromkeys(new):
            held.add(sets)
            refusal = whole(sets)
            if refusal is not None:
                refuse(trail, sets, refusal)


def refuse(trail: Trail, sets: Sets, refusal: Attempt) -> None:
    """Count a setting, and all that make the same plan, as refused."""
    first = trail.tried[sets].same_as or sets
    for other, attempt in trail.tried.items():
        if other == first or attempt.same_as == first:
            trail.tried[other] = replace(
                attempt, cells=(), code=refusal.code, reason=refusal.reason
            )


@dataclass
class Walk:
    """A search under way."""

    trail: Trail
    tries: Tries
    cost: Cost
    limits: Limits
    clock: Callable[[], float]

    def __post_init__(self) -> None:
        """Start the clock."""
        self.begin = self.clock()

    def ask(self, wanted: Sequence[Sets]) -> None:
        """Try settings that were not tried; Over once a limit is hit."""
        new = [one for one in dict.fromkeys(wanted) if one not in self.trail.tried]
        if not new:
            return
        self.check()
        for attempt in self.tries(new):
            self.trail.tried[attempt.sets] = attempt
            if len(self.trail.tried) < self.trail.space.size:
                self.check()

    def check(self) -> None:
        """Over if a limit is reached."""
        seconds, points = self.limits.seconds, self.limits.points
        if points is not None and self.trail.simulated >= points:
            raise Over(f"--points {points}")
        if seconds is not None and self.clock() - self.begin >= seconds:
            raise Over(f"--limit {seconds:g} s")

    def descend(self, start: Sets) -> None:
        """Coordinate descent: the best of each knob in turn until nothing is better, exchanges included.

        From a start that does not fit it first goes towards the defaults until one does.
        """
        at = start
        self.ask([at])
        while self.cost(self.trail.tried[at]) == inf and self.trail.space.nearer(at) != at:
            at = self.trail.space.nearer(at)
            self.ask([at])
        while True:
            last = at
            for place in range(len(self.trail.space.knobs)):
                at = self.step(at, list(self.trail.space.lines(at))[place])
            if at == last:
                at = self.step(at, self.trail.space.exchanges(at))
            if at == last:
                return

    def step(self, at: Sets, others: Sequence[Sets]) -> Sets:
        """The best of some settings, or `at` if none is better."""
        self.ask(others)
        return min((at, *others), key=lambda sets: self.cost(self.trail.tried[sets]))
