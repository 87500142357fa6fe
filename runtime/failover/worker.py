"""What the process of a rank with replicas does: it takes commands from a pipe until it is told to end.

It works in epochs, each with ranks and programs of its own; one thread reads commands, and ends an
epoch at once, wherever its rank waits.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist

from plancc.runtime.artifact import load_artifact
from plancc.runtime.beacon import Beacon, Beacons
from plancc.runtime.failover.replicas import Replicas, Spares
from plancc.runtime.failover.transport import FailoverTransport
from plancc.runtime.processes import resolve
from plancc.runtime.rank_process import RankProcess, Told, serve
from plancc.runtime.transport import FINISHED

LONGEST = 3600.0  # seconds; the coordinator measures time, and ends the wait of who is left behind
SETUP = "setup.json"

Tell = Callable[[str, Any], None]
"""Sends the coordinator something besides answers: what it is, and plain data."""


class Seat(Protocol):
    """What a rank works on. Made once a process, from (spares, rank, facts of the run, tell)."""

    signal: int

    def settle(self, told: Told) -> None:
        """Get ready for an epoch by oneself: bring what was abandoned to the state that counts."""

    def work(self, transport: FailoverTransport, told: Told) -> Any:
        """Work until the end, or until a pause; plain data."""

    def standing(self) -> dict[str, Any]:
        """Where it stands, after it was abandoned; {} if it holds nothing."""

    def rest(self) -> None:
        """Forget all; the rank takes no part until it is told to."""


@dataclass(frozen=True, slots=True)
class WorkerStart:
    """What a worker's process is told; plain values only."""

    rank: int
    scratch: str
    folder: str
    environment: dict[str, str]


def main(start: WorkerStart, pipe: Connection) -> None:
    """Run one rank; never returns."""
    serve(start, lambda: _Worker(start, pipe).work())


def setup_of(spares: Spares, seat: str, run: Any) -> dict[str, Any]:
    """What all workers are told, as plain data; `seat` is "module:class"."""
    found = spares.replicas
    levels = {count: str(one.folder.resolve()) for count, one in spares.levels.items()}
    return {
        "mesh": found.mesh, "axis": found.axis, "ranks": found.ranks, "levels": levels,
        "seat": seat, "run": run,
    }  # fmt: skip


class _Worker(RankProcess):
    """One rank's process."""

    BEGINS = "work"

    def __init__(self, start: WorkerStart, pipe: Connection) -> None:
        super().__init__(pipe)
        self.start = start
        setup = json.loads((Path(start.scratch) / SETUP).read_text())
        replicas = Replicas(setup["mesh"], setup["axis"], tuple(map(tuple, setup["ranks"])))
        levels = {int(n): load_artifact(folder) for n, folder in setup["levels"].items()}
        self.seat: Seat = resolve(setup["seat"])(
            Spares(replicas, levels), start.rank, setup["run"], self.tell
        )
        self.listen()
        self.tell("ready", True)

    def tell(self, what: str, value: Any) -> None:
        """Send the coordinator something that is no answer."""
        self.pipe.send_bytes(json.dumps({what: value, "number": 0}).encode())

    def at_once(self, told: Told) -> bool:
        """A signal reaches the seat while it works; those of an epoch do not outlive it."""
        if told["do"] == self.BEGINS:  # here, lest one that follows be forgotten
            self.seat.signal = 0
        if told["do"] != "signal":
            return False
        self.seat.signal = max(self.seat.signal, told["signal"])
        return True

    def do_work(self, told: Told) -> Any:
        """Leave the old epoch, connect with the ranks of the new one, and work in it."""
        self.seat.settle(told)
        self.leave()
        seats, scratch = told["seats"], Path(self.start.scratch)
        rank, world = seats.index(self.start.rank), len(seats)
        self.beacons = Beacons(scratch / f"beacons-{told['epoch']}", world)
        beacon = Beacon(self.beacons, rank)
        beacon.wait(None, set(range(world)) - {rank})
        store = dist.FileStore(str(scratch / f"store-{told['epoch']}"), world)
        self.transport = FailoverTransport(
            rank, world, store, self.over[told["epoch"]], beacon=beacon, time_limit=LONGEST
        )
        found = self.seat.work(self.transport, told)
        beacon.stand(beacon.instruction, FINISHED)
        return found

    def do_abandon(self, told: Told) -> dict[str, Any]:
        """Be done with an epoch that the reading thread has ended; say where the rank stands."""
        self.leave()
        self.left.set()
        return self.seat.standing()

    def do_rest(self, told: Told) -> None:
        """Take no part for now."""
        self.leave()
        self.seat.rest()
