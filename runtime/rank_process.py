"""The process of a rank that takes part in epochs: commanded over a pipe, it abandons an epoch when told.

Elastic pools and failover run their ranks so; what a command does is theirs. Commands and answers are JSON.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch

from plancc.runtime.beacon import Beacons
from plancc.runtime.cores import settle
from plancc.runtime.epoch import EpochTransport, cut_connections
from plancc.runtime.processes import die_with_launcher, report_of

Told = dict[str, Any]


class Start(Protocol):
    """What every rank's process is told."""

    @property
    def rank(self) -> int:
        """Its number."""

    @property
    def scratch(self) -> str:
        """The folder of the run."""

    @property
    def folder(self) -> str:
        """The folder to work in."""

    @property
    def environment(self) -> dict[str, str]:
        """Variables to set."""


def serve(start: Start, work: Callable[[], None]) -> None:
    """Be the process of a rank while `work` runs; never returns."""
    code = 1
    try:
        die_with_launcher(Path(start.scratch))
        os.environ.update(start.environment)
        os.chdir(start.folder)
        torch.set_num_threads(1)
        settle(())  # ranks come and go: where each runs is left to the system
        work()
        code = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class RankProcess:
    """Reads commands in a thread of its own, and does them in order in the main one.

    `BEGINS` is the command that begins an epoch; a method `do_<command>` does each.
    """

    BEGINS: ClassVar[str]

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self.transport: EpochTransport | None = None
        self.beacons: Beacons | None = None
        self.over: dict[int, threading.Event] = {}  # the latest epoch: set once it is abandoned
        self.left = threading.Event()  # set once the main thread is out of an abandoned epoch
        self.commands: queue.SimpleQueue[Told] = queue.SimpleQueue()

    def listen(self) -> None:
        """Begin to read commands."""
        threading.Thread(target=self._read, name="commands", daemon=True).start()

    def work(self) -> None:
        """Do what is commanded, and answer, until told to end."""
        while (told := self.commands.get())["do"] != "end":
            answer = self.answer(told)
            try:
                answer["value"] = getattr(self, "do_" + told["do"])(told)
            except Exception as error:
                answer["failed"] = report_of(error)
            if told["number"]:
                self.pipe.send_bytes(json.dumps(answer).encode())

    def answer(self, told: Told) -> Told:
        """What every answer to a command says."""
        return {"number": told["number"]}

    def at_once(self, told: Told) -> bool:
        """Do what the reading thread does itself; whether this was such a command."""
        return False

    def leave(self) -> None:
        """Be out of the epoch."""
        if self.transport is not None:
            self.transport.leave()
        if self.beacons is not None:
            self.beacons.close()
        self.transport = self.beacons = None

    def _read(self) -> None:
        try:
            while True:
                told = json.loads(self.pipe.recv_bytes())
                if self.at_once(told):
                    continue
                if told["do"] == self.BEGINS:
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
