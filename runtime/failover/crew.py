"""The processes of a run with replicas: started, commanded, watched, and buried when they end."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from plancc.runtime.artifact import Artifact
from plancc.runtime.beacon import Beacons
from plancc.runtime.failover.replicas import Spares
from plancc.runtime.failover.state import HAND_OVER
from plancc.runtime.failover.worker import SETUP, WorkerStart, main
from plancc.runtime.failure import Mismatch, RankFailure, fail
from plancc.runtime.launch import GRACE, TICK, RankTraceback, ending, forking
from plancc.runtime.training.loop import WHERE
from plancc.runtime.transport import COMPUTE, IN_OP, STARTING
from plancc.runtime.watch import Watch

LEAVE = 30.0  # seconds in which a rank that neither starts nor computes has to abandon an epoch


@dataclass(frozen=True, slots=True)
class End:
    """How a process ended ("was killed by SIGKILL"), and at which instruction, in the plan's words."""

    reason: str
    at: int | None
    span: str | None


class Lost(Exception):
    """Processes of the running epoch have ended or were given up.

    Of ranks that wait for each other `suspect` names one, under the plan's own number: it is not known yet
    who of them hangs.
    """

    def __init__(self, ranks: Mapping[int, End], suspect: RankFailure | None = None) -> None:
        self.ranks, self.suspect = dict(ranks), suspect
        super().__init__("; ".join(f"rank {rank} {end.reason}" for rank, end in ranks.items()))


@dataclass(frozen=True, slots=True)
class _Worker:
    process: Any
    pipe: Connection


class Leaving:
    """Since when ranks stand as they do while they leave an epoch; `after` is why they have to."""

    def __init__(self, crew: Crew, after: str = "") -> None:
        self.crew, self.after = crew, after
        self.stood: dict[int, tuple[int, float]] = {}

    def late(self, rank: int, now: float) -> str:
        """Why a rank is given up; "" for one that has time left: it may still start, or compute, as ever."""
        crew = self.crew
        assert crew.beacons is not None
        stands = crew.beacons.read(crew.seats.index(rank))
        changes, since = self.stood.setdefault(rank, (stands.changes, now))
        if changes != stands.changes:
            self.stood[rank] = (stands.changes, now)
            return ""
        time_limit, start_limit = crew.limits
        limit = max(LEAVE, {COMPUTE: time_limit, STARTING: start_limit}.get(stands.state, 0.0))
        return (
            f"did not leave the epoch within {limit:g} s{self.after}" if now - since > limit else ""
        )


class Crew:
    """The ranks of a plan as processes of this host. Ranks are known by the plan's own numbers.

    No instruction may take longer than `time_limit` seconds, and no start than `start_limit`.
    `hear` gets what workers send besides answers: (rank, message), and {"gone": reason} for one that ends
    while it takes no part.
    """

    def __init__(
        self, spares: Spares, setup: Mapping[str, Any], hear: Callable[[int, dict[str, Any]], None],
        *, time_limit: float, start_limit: float,
    ) -> None:  # fmt: skip
        self.spares, self.hear = spares, hear
        self.limits = (time_limit, start_limit)
        self.workers: dict[int, _Worker] = {}
        self.seats: tuple[int, ...] = ()
        self.artifact: Artifact = spares.full
        self.beacons: Beacons | None = None
        self.epoch = self.number = 0
        self.scratch = Path(tempfile.mkdtemp(prefix="plancc-"))
        (self.scratch / SETUP).write_text(json.dumps(setup))

    @property
    def pids(self) -> dict[int, int]:
        """The process of each rank that is there."""
        return {rank: worker.process.pid for rank, worker in self.workers.items()}

    def spawn(self, ranks: Iterable[int]) -> None:
        """Start the processes of these ranks."""
        for rank in ranks:
            told = WorkerStart(rank, str(self.scratch), os.getcwd(), dict(os.environ))
            with forking() as context:
                mine, theirs = context.Pipe()
                process = context.Process(
                    target=main, args=(told, theirs), name=f"rank {rank}", daemon=True
                )
                process.start()
            theirs.close()
            self.workers[rank] = _Worker(process, mine)

    def send(self, rank: int, do: str, **told: Any) -> None:
        """Give a rank a command; one that has ended is found by its sentinel."""
        if rank in self.workers:
            try:
                self.workers[rank].pipe.send_bytes(
                    json.dumps({"do": do, "number": 0, **told}).encode()
                )
            except OSError:
                return

    def work(
        self, seats: Sequence[int], level: int, look: Callable[[], None], **told: Any
    ) -> dict[int, Any]:
        """Open an epoch in which `seats[i]` is rank i of the programs; the answers, by rank.

        `look` is called from time to time. Raises Lost, RankFailure.
        """
        self.open(seats, level)
        self.number += 1
        for rank in seats:
            self.send(
                rank, "work", number=self.number, epoch=self.epoch, seats=list(seats),
                level=level, **told,
            )  # fmt: skip
        return self.collect(set(seats), look)

    def open(self, seats: Sequence[int], level: int) -> None:
        """Make the beacons of the next epoch, and remove what the last one left."""
        if self.beacons is not None:
            self.beacons.close()
        for path in (self.scratch / f"beacons-{self.epoch}", self.scratch / f"store-{self.epoch}"):
            path.unlink(missing_ok=True)
        self.epoch += 1
        self.seats, self.artifact = tuple(seats), self.spares.levels[level]
        path = self.scratch / f"beacons-{self.epoch}"
        self.beacons = Beacons(path, len(seats), create=True)

    def collect(self, waiting: set[int], look: Callable[[], None]) -> dict[int, Any]:
        """The answers to the present command."""
        assert self.beacons is not None
        found: dict[int, Any] = {}
        watch = Watch(self.beacons, *self.limits, self.describe)
        suspect: RankFailure | None = None
        deadline = 0.0
        while waiting:
            for rank, answer in self.answers():
                waiting.discard(rank)
                if "failed" not in answer:
                    found[rank] = answer["value"]
                    continue
                failure = self.failure(rank, answer["failed"])
                if answer["failed"]["kind"] != "lost":
                    raise failure
                if suspect is None:
                    suspect, deadline = failure, time.monotonic() + GRACE
            if suspect is not None and (not waiting or time.monotonic() > deadline):
                self.look_after(GRACE)
                raise suspect
            if suspect is None:
                self.stand_guard(watch)
                look()
        return found

    def answers(self) -> list[tuple[int, dict[str, Any]]]:
        """Wait a tick for answers to the present command. Raises Lost."""
        pipes: dict[Any, int] = {worker.pipe: rank for rank, worker in self.workers.items()}
        ends: dict[Any, int] = {w.process.sentinel: rank for rank, w in self.workers.items()}
        found, gone = [], set()
        for ready in wait([*pipes, *ends], TICK):
            if ready in ends:
                gone.add(ends[ready])
                continue
            for message in self.messages(pipes[ready]):
                if message is None:
                    gone.add(pipes[ready])
                elif not message["number"]:
                    self.hear(pipes[ready], message)
                elif message["number"] == self.number:
                    found.append((pipes[ready], message))
        if not found:  # what was read is not to be lost with an exception: ends are found again
            self.lose(gone)
        return found

    def lose(self, gone: Iterable[int]) -> None:
        """Bury processes; raises Lost for those that take part."""
        ends = {rank: self.bury(rank) for rank in sorted(gone)}
        seated = {rank: end for rank, end in ends.items() if rank in self.seats}
        for rank in ends.keys() - seated.keys():
            self.hear(rank, {"gone": ends[rank].reason})
        if seated:
            raise Lost(seated)

    def messages(self, rank: int) -> list[dict[str, Any] | None]:
        """All that a rank has sent so far; None at the end if it is gone."""
        found = [self.read(rank)]
        while found[-1] is not None and self.workers[rank].pipe.poll():
            found.append(self.read(rank))
        return found

    def read(self, rank: int) -> dict[str, Any] | None:
        """What a rank has sent; None if it is gone."""
        worker = self.workers[rank]
        try:
            message: dict[str, Any] = json.loads(worker.pipe.recv_bytes())
            return message
        except (EOFError, OSError):
            worker.process.join(LEAVE)
            worker.process.kill()
            return None

    def look_after(self, limit: float) -> None:
        """Raise Lost if a process has ended; wait for that for `limit` seconds."""
        ends: dict[Any, int] = {w.process.sentinel: rank for rank, w in self.workers.items()}
        self.lose({ends[ready] for ready in wait(list(ends), limit)})

    def stand_guard(self, watch: Watch) -> None:
        """Look for ranks that hang: one of a replica is given up, and lost. Raises Lost, RankFailure."""
        try:
            watch.look()
        except RankFailure as failure:
            assert self.beacons is not None
            rank, waits = self.seats[failure.rank], self.beacons.read(failure.rank).state == IN_OP
            found = RankFailure(
                rank, failure.instruction, failure.span, failure.reason, failure.detail
            )
            if waits:
                raise Lost({}, found) from None
            raise Lost({rank: self.give_up(found)}) from None

    def give_up(self, failure: RankFailure) -> End:
        """End a rank that hangs. Raises RankFailure for one that is in no replica."""
        if self.spares.replicas.of(failure.rank) is None:
            raise failure
        return self.end(failure.rank, failure.reason)

    def abandon(self, suspect: RankFailure | None = None) -> tuple[dict[int, Any], Lost]:
        """Have all seated ranks leave the epoch: where they stand, and who is lost on the way.

        Who hangs does not leave; if all leave, the suspect is lost. Raises RankFailure for one of no replica.
        """
        self.number += 1
        waiting = {rank for rank in self.seats if rank in self.workers}
        for rank in waiting:
            self.send(rank, "abandon", number=self.number)
        found: dict[int, Any] = {}
        lost: dict[int, End] = {}
        leaving = Leaving(self, f", after rank {suspect.rank} {suspect.reason}" if suspect else "")
        while waiting:
            answers: list[tuple[int, dict[str, Any]]] = []
            now = time.monotonic()  # before reading: what has come by then counts
            try:
                answers = self.answers()
            except Lost as more:
                lost |= more.ranks
                waiting -= more.ranks.keys()
            for rank, answer in answers:
                waiting.discard(rank)
                found[rank] = answer.get("value") or {}
                if "failed" in answer:
                    report = answer["failed"]
                    why = f"{report['reason']} leaving the epoch: {report['detail']}"
                    lost[rank] = self.end(rank, why)
            if not answers:
                late = {rank: leaving.late(rank, now) for rank in sorted(waiting)}
                lost |= {rank: self.end(rank, why) for rank, why in late.items() if why}
                waiting -= lost.keys()
        if suspect is not None and not lost:
            lost[suspect.rank] = self.give_up(suspect)
        return {rank: value for rank, value in found.items() if rank not in lost}, Lost(lost)

    def end(self, rank: int, reason: str) -> End:
        """Kill and bury a rank, for a reason."""
        self.workers[rank].process.kill()
        return self.bury(rank, reason)

    def bury(self, rank: int, reason: str | None = None) -> End:
        """Forget a process that has ended; how it ended, and where it stood."""
        worker = self.workers.pop(rank)
        worker.process.join()
        reason = reason or ending(worker.process.exitcode)
        worker.process.close()
        worker.pipe.close()
        if rank not in self.seats or self.beacons is None:
            return End(reason, None, None)
        place = self.seats.index(rank)
        at = self.beacons.read(place).instruction
        return End(reason, at, self.describe(place, at) if at is not None else None)

    def describe(self, place: int, at: int) -> str:
        """What an instruction of a rank of the running programs is."""
        known = {**WHERE, HAND_OVER: "handing the state over"}
        return known.get(at) or self.artifact.describe(place, at)

    def failure(self, rank: int, report: Mapping[str, Any]) -> RankFailure:
        """The failure that a rank reports, under the plan's number of it."""
        if report["kind"] == "mismatch":
            return Mismatch(self.describe, *report["parts"])
        place = self.seats.index(rank)
        at = self.beacons.read(place).instruction if self.beacons is not None else None
        failure = fail(
            lambda _, number: self.describe(place, number), rank, at,
            report["reason"], report["detail"],
        )  # fmt: skip
        failure.__cause__ = RankTraceback(report["traceback"])
        return failure

    def close(self) -> None:
        """Kill what still runs, wait until it is gone, and remove the scratch folder."""
        for worker in self.workers.values():
            worker.process.kill()
        for worker in self.workers.values():
            worker.process.join()
            worker.process.close()
            worker.pipe.close()
        self.workers = {}
        if self.beacons is not None:
            self.beacons.close()
            self.beacons = None
        shutil.rmtree(self.scratch, ignore_errors=True)
