"""Find hanging ranks: who has stood still for too long, and who is to blame."""

from __future__ import annotations

import time

from plancc.runtime.beacon import Beacons, Standing
from plancc.runtime.failure import Describe, RankFailure, fail, in_vain
from plancc.runtime.transport import COMPUTE, FINISHED, IN_OP, STARTING


class Watch:
    """Looks at all beacons from time to time; raises when a limit has passed."""

    def __init__(
        self, beacons: Beacons, time_limit: float, start_limit: float, describe: Describe
    ) -> None:
        self._beacons = beacons
        self._limits = {STARTING: start_limit, COMPUTE: time_limit, IN_OP: time_limit}
        self._describe = describe
        self._changes = [-1] * beacons.world
        self._since = [0.0] * beacons.world

    def look(self) -> None:
        """Raise `RankFailure` if a rank has stood still for longer than it may."""
        now = time.monotonic()
        ranks = [self._beacons.read(rank) for rank in range(self._beacons.world)]
        for rank, stands in enumerate(ranks):
            if stands.changes != self._changes[rank]:
                self._changes[rank], self._since[rank] = stands.changes, now
        waiting = []
        for rank, stands in enumerate(ranks):
            limit = self._limits.get(stands.state)
            if limit is None or now - self._since[rank] <= limit:
                continue
            if stands.state == STARTING:
                raise self._fail(rank, stands, f"has not started within {limit:g} s")
            if stands.state == COMPUTE:
                raise self._fail(rank, stands, f"computed for more than {limit:g} s")
            waiting.append(rank)
        for rank in waiting:
            self._blame(rank, ranks, now)

    def _blame(self, waiting: int, ranks: list[Standing], now: float) -> None:
        """Raise for a rank that waited too long, unless one of those it waits for goes on."""
        limit = self._limits[IN_OP]
        waits = {r: self._missing(s) for r, s in enumerate(ranks) if s.state == IN_OP}
        reached = self._reached(waiting, waits)
        for rank in reached:
            if ranks[rank].state == STARTING or now - self._since[rank] <= limit:
                return
        among = {rank: waits[rank] for rank in (waiting, *reached) if rank in waits}
        idle = [rank for rank, missing in among.items() if not missing]
        if idle:
            detail = "all whom it waits for have arrived, and yet it does not go on"
            raise self._fail(idle[0], ranks[idle[0]], f"waited {limit:g} s", detail)
        positions = [stands.instruction for stands in ranks]
        ended = [stands.state == FINISHED for stands in ranks]
        raise in_vain(self._describe, positions, among, ended, f"waited {limit:g} s and ")

    def _missing(self, stands: Standing) -> list[int]:
        """List the ranks that one in an operation still waits for."""
        if not stands.meeting:
            return list(stands.peers)
        return [p for p in stands.peers if self._beacons.look(p, stands.meeting) is None]

    def _reached(self, start: int, waits: dict[int, list[int]]) -> list[int]:
        """List whom a rank waits for, directly or by others, the nearest first."""
        reached = list(waits[start])
        for rank in reached:
            reached.extend(other for other in waits.get(rank, ()) if other not in reached)
        return reached

    def _fail(self, rank: int, stands: Standing, reason: str, detail: str = "") -> RankFailure:
        return fail(self._describe, rank, stands.instruction, reason, detail)
