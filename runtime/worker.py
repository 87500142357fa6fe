"""What the process of an elastic rank does when commanded: join an epoch, take steps, tell states, leave."""

from __future__ import annotations

from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch.distributed as dist

from plancc.runtime.artifact import load_artifact
from plancc.runtime.beacon import Beacon, Beacons
from plancc.runtime.epoch import EpochTransport
from plancc.runtime.loading import open_weights
from plancc.runtime.rank_process import RankProcess, Told, serve
from plancc.runtime.seat import Seat
from plancc.runtime.transport import FINISHED

LONGEST = 3600.0  # seconds; the coordinator measures time, and ends the wait of who is left behind


@dataclass(frozen=True, slots=True)
class WorkerStart:
    """What a worker's process is told; plain values only."""

    rank: int
    scratch: str
    artifact: str
    folder: str
    environment: dict[str, str]


def main(start: WorkerStart, pipe: Connection) -> None:
    """Run one rank; never returns."""
    serve(start, lambda: _Worker(start, pipe).work())


class _Worker(RankProcess):
    """One rank's process."""

    BEGINS = "join"

    def __init__(self, start: WorkerStart, pipe: Connection) -> None:
        super().__init__(pipe)
        self.start = start
        self.seat: Seat | None = None
        self.beacon: Beacon | None = None
        self.listen()

    def answer(self, told: Told) -> Told:
        """What every answer to a command says."""
        return {"number": told["number"], "rank": self.start.rank}

    def do_join(self, told: Told) -> None:
        """Leave the old epoch, and connect with the members of the new one."""
        self.leave()
        if self.seat is None:
            artifact = load_artifact(self.start.artifact)
            self.seat = Seat(artifact, open_weights(artifact), self.start.rank)
        world, scratch = self.seat.artifact.world, Path(self.start.scratch)
        self.beacons = Beacons(scratch / f"beacons-{told['epoch']}", world)
        self.beacon = Beacon(self.beacons, self.start.rank)
        self.beacon.wait(None, set(told["members"]) - {self.start.rank})
        store = dist.FileStore(str(scratch / f"store-{told['epoch']}"), len(told["members"]))
        self.transport = EpochTransport(
            self.start.rank, world, store, self.over[told["epoch"]],
            members=tuple(told["members"]), beacon=self.beacon,
            time_limit=LONGEST,
        )  # fmt: skip
        self.seat.join(self.transport)
        if "states" in told:
            self.seat.adopt(told["states"])
        self._idle()

    def do_step(self, told: Told) -> list[int] | None:
        """Take one step of a sequence; the first member tells the new tokens."""
        assert self.seat is not None and self.transport is not None
        tokens = self.seat.step(told["sequence"], told["phase"], told["tokens"], told["variant"])
        self._idle()
        return tokens if self.transport.members[0] == self.start.rank else None

    def do_states(self, told: Told) -> dict[str, Any]:
        """Tell what newcomers must know of running sequences."""
        assert self.seat is not None
        return self.seat.states(told["sequences"])

    def do_drop(self, told: Told) -> None:
        """Forget a sequence."""
        if self.seat is not None:
            self.seat.drop(told["sequence"])

    def do_abandon(self, told: Told) -> None:
        """Be done with an epoch that the reading thread has ended."""
        self.leave()
        self.left.set()

    def _idle(self) -> None:
        """Show that this rank has arrived at the end of a command."""
        assert self.beacon is not None
        self.beacon.stand(self.beacon.instruction, FINISHED)
