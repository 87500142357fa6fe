"""What the process of an elastic rank does: it takes commands from a pipe until it is told to end.

Commands and answers are JSON. One thread reads: it ends an epoch at once, wherever the rank waits;
all else is done in order.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from plancc.runtime.artifact import load_artifact
from plancc.runtime.beacon import Beacon, Beacons
from plancc.runtime.epoch import EpochTransport, cut_connections
from plancc.runtime.loading import open_weights
from plancc.runtime.processes import die_with_launcher, report_of
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
    code = 1
    try:
        die_with_launcher(Path(start.scratch))
        os.environ.update(start.environment)
        os.chdir(start.folder)
        torch.set_num_threads(1)
        _Worker(start, pipe).work()
        code = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class _Worker:
    """One rank's process."""

    def __init__(self, start: WorkerStart, pipe: Connection) -> None:
        self.start = start
        self.pipe = pipe
        self.seat: Seat | None = None
        self.transport: EpochTransport | None = None
        self.beacons: Beacons | None = None
        self.beacon: Beacon | None = None
        self.over: dict[int, threading.Event] = {}  # the latest epoch: set once it is abandoned
        self.left = threading.Event()  # set once the main thread is out of an abandoned epoch
        self.commands: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="commands", daemon=True).start()

    def work(self) -> None:
        """Do what is commanded, and answer, until told to end."""
        while (told := self.commands.get())["do"] != "end":
            answer = {"number": told["number"], "rank": self.start.rank}
            try:
                answer["value"] = getattr(self, "do_" + told["do"])(told)
            except Exception as error:
                answer["failed"] = report_of(error)
            if told["number"]:
                self.pipe.send_bytes(json.dumps(answer).encode())

    def do_join(self, told: dict[str, Any]) -> None:
        """Leave the old epoch, and connect with the members of the new one."""
        self._leave()
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

    def do_step(self, told: dict[str, Any]) -> list[int] | None:
        """Take one step of a sequence; the first member tells the new tokens."""
        assert self.seat is not None and self.transport is not None
        tokens = self.seat.step(told["sequence"], told["phase"], told["tokens"], told["variant"])
        self._idle()
        return tokens if self.transport.members[0] == self.start.rank else None

    def do_states(self, told: dict[str, Any]) -> dict[str, Any]:
        """Tell what newcomers must know of running sequences."""
        assert self.seat is not None
        return self.seat.states(told["sequences"])

    def do_drop(self, told: dict[str, Any]) -> None:
        """Forget a sequence."""
        if self.seat is not None:
            self.seat.drop(told["sequence"])

    def do_abandon(self, told: dict[str, Any]) -> None:
        """Be done with an epoch that the reading thread has ended."""
        self._leave()
        self.left.set()

    def _leave(self) -> None:
        if self.transport is not None:
            self.transport.leave()
        if self.beacons is not None:
            self.beacons.close()
        self.transport = self.beacons = None

    def _idle(self) -> None:
        """Show that this rank has arrived at the end of a command."""
        assert self.beacon is not None
        self.beacon.stand(self.beacon.instruction, FINISHED)

    def _read(self) -> None:
        try:
            while True:
                told = json.loads(self.pipe.recv_bytes())
                if told["do"] == "join":
                    self.over = {told["epoch"]: threading.Event()}
                elif told["do"] == "abandon":
                    self.left.clear()
                    for over in self.over.values():
                        over.set()
                self.commands.put(told)
                while told["do"] == "abandon" and not self.left.is_set():
                    cut_connections()  # again and again: one may be made while others are cut
                    self.left.wait(0.05)
        except (EOFError, OSError):
            return  # the coordinator is gone: the watch on it ends this process, and cleans up
