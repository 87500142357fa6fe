"""Ranks as processes that come and go: base ranks start once, pool ranks as the server asks.

An *epoch* is a set of ranks that take part, under the numbers that the artifact gives them. At a
step boundary the coordinator has all members join the next one, each with weights and caches as
they are. When a process ends, all members abandon the epoch, and the server opens another.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from torch import Tensor

from plancc.runtime.artifact import Artifact
from plancc.runtime.beacon import Beacons
from plancc.runtime.crew import Rows, WorkersLost
from plancc.runtime.failure import Mismatch, RankFailure, fail
from plancc.runtime.launch import GRACE, TICK, RankTraceback, ending, forking
from plancc.runtime.leases import Leases
from plancc.runtime.pools import Guards
from plancc.runtime.server import Limits, Server
from plancc.runtime.transport import COMPUTE, FINISHED
from plancc.runtime.watch import Watch
from plancc.runtime.worker import WorkerStart, main

LEAVE = 10.0  # seconds in which a rank has to abandon an epoch


@dataclass(frozen=True, slots=True)
class _Worker:
    process: Any
    pipe: Connection


class GlooCrew:
    """The ranks of one artifact as processes of this host (see `Crew`).

    No instruction may take longer than `time_limit` seconds, and no start than `start_limit`.
    """

    def __init__(
        self, artifact: Artifact, guards: Guards, *, time_limit: float = 60.0,
        start_limit: float = 120.0,
    ) -> None:  # fmt: skip
        self._artifact = artifact
        self._guards = guards
        self._limits = (time_limit, start_limit)
        self._workers: dict[int, _Worker] = {}
        self._seated: set[int] = set()
        self._epoch = self._number = 0
        self.members: tuple[int, ...] = ()
        self.beacons: Beacons | None = None
        self.scratch = Path(tempfile.mkdtemp(prefix="plancc-"))
        try:
            self._start(guards.base)
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> dict[int, int]:
        """The process of each rank that is there."""
        return {rank: worker.process.pid for rank, worker in self._workers.items()}

    def resize(self, size: int, sequences: Sequence[int]) -> None:
        """Open an epoch of the base and `size` pool ranks; newcomers learn of `sequences`."""
        wanted = tuple(sorted((*self._guards.base, *self._guards.pool[:size])))
        self._look_after(tuple(self._workers))
        for rank in set(self._workers) - set(wanted):
            self._end(rank)
        self._start([rank for rank in wanted if rank not in self._workers])
        states: dict[str, Any] = {}
        if sequences:
            teller = self._guards.base[0]
            states = self._ask((teller,), "states", sequences=list(sequences))[teller]
        self._open(wanted)
        told = {"epoch": self._epoch, "members": wanted}
        newcomers = {rank: {"states": states} for rank in set(wanted) - self._seated}
        self._ask(wanted, "join", newcomers, **told)
        self._seated = set(wanted)
        for path in (self._beacon_path(self._epoch - 1), self._store_path(self._epoch - 1)):
            path.unlink(missing_ok=True)

    def step(self, number: int, phase: str, tokens: Rows, variant: int) -> list[int]:
        """One step of a sequence, on all members."""
        assert self.beacons is not None
        for rank in self.members:  # who does not even begin is to be found too
            at = self.beacons.read(rank).instruction
            self.beacons.write(rank, -self._number - 2, at, COMPUTE)
        found = self._ask(
            self.members, "step", sequence=number, phase=phase, tokens=tokens, variant=variant
        )
        result: list[int] = found[self.members[0]]
        return result

    def drop(self, number: int) -> None:
        """Forget a sequence; an answer is not waited for."""
        for rank in self._workers:
            self._send(rank, {"do": "drop", "sequence": number, "number": 0})

    def close(self) -> None:
        """Kill what still runs, wait until it is gone, and remove the scratch folder."""
        for worker in self._workers.values():
            worker.process.kill()
        for rank in list(self._workers):
            self._forget(rank)
        if self.beacons is not None:
            self.beacons.close()
            self.beacons = None
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _start(self, ranks: Sequence[int]) -> None:
        """Start the processes of these ranks."""
        folder = str(self._artifact.folder.resolve())
        for rank in ranks:
            told = WorkerStart(rank, str(self.scratch), folder, os.getcwd(), dict(os.environ))
            with forking() as context:
                mine, theirs = context.Pipe()
                process = context.Process(
                    target=main, args=(told, theirs), name=f"rank {rank}", daemon=True
                )
                process.start()
            theirs.close()
            self._workers[rank] = _Worker(process, mine)

    def _end(self, rank: int) -> None:
        """Let an idle rank's process end."""
        self._send(rank, {"do": "end"})
        worker = self._workers[rank]
        worker.process.join(1.0)
        worker.process.kill()
        self._forget(rank)

    def _forget(self, rank: int) -> None:
        worker = self._workers.pop(rank)
        worker.process.join()
        worker.process.close()
        worker.pipe.close()
        self._seated.discard(rank)

    def _open(self, members: tuple[int, ...]) -> None:
        """Make the beacons of the next epoch; ranks that are no members count as finished."""
        if self.beacons is not None:
            self.beacons.close()
        self._epoch += 1
        self.members = members
        world = self._artifact.world
        self.beacons = Beacons(self._beacon_path(self._epoch), world, create=True)
        for rank in set(range(world)) - set(members):
            self.beacons.write(rank, 0, None, FINISHED)

    def _beacon_path(self, epoch: int) -> Path:
        return self.scratch / f"beacons-{epoch}"

    def _store_path(self, epoch: int) -> Path:
        return self.scratch / f"store-{epoch}"

    def _send(self, rank: int, told: Mapping[str, Any]) -> None:
        try:
            self._workers[rank].pipe.send_bytes(json.dumps(told).encode())
        except OSError:
            return  # it is gone: its sentinel tells

    def _ask(
        self, ranks: Sequence[int], do: str, more: Mapping[int, Any] | None = None, **told: Any
    ) -> dict[int, Any]:
        """Give ranks a command and return their answers. Raises WorkersLost, RankFailure."""
        self._look_after(ranks)
        self._number += 1
        for rank in ranks:
            own = (more or {}).get(rank, {})
            self._send(rank, {"do": do, "number": self._number, **told, **own})
        return self._collect(set(ranks), midway=do == "step")

    def _collect(self, waiting: set[int], midway: bool) -> dict[int, Any]:
        found: dict[int, Any] = {}
        watch = self._watch()
        suspect: RankFailure | None = None
        deadline = 0.0
        while waiting:
            for answer in self._answers(waiting, midway):
                rank = answer["rank"]
                if "failed" not in answer:
                    found[rank] = answer["value"]
                elif answer["failed"]["kind"] != "lost":
                    raise self._failure(rank, answer["failed"])
                elif suspect is None:
                    suspect = self._failure(rank, answer["failed"])
                    deadline = time.monotonic() + GRACE
                waiting.discard(rank)
            if suspect is not None and (not waiting or time.monotonic() > deadline):
                self._look_after(tuple(self._workers), midway, GRACE)
                raise suspect
            if suspect is None and watch is not None:
                self._stand_guard(watch, midway)
        return found

    def _answers(self, waiting: set[int], midway: bool) -> list[dict[str, Any]]:
        """Wait a tick for answers to the present command. Raises for a process that has ended."""
        pipes: dict[Any, int] = {self._workers[rank].pipe: rank for rank in waiting}
        sentinels: dict[Any, int] = {w.process.sentinel: r for r, w in self._workers.items()}
        found, gone = [], []
        for ready in wait([*pipes, *sentinels], TICK):
            if ready in sentinels:
                gone.append(sentinels[ready])
                continue
            answer = self._read(pipes[ready])
            if answer is None:
                gone.append(pipes[ready])
            elif answer["number"] == self._number:
                found.append(answer)
        if gone:
            self._lose(gone, midway)
        return found

    def _read(self, rank: int) -> dict[str, Any] | None:
        """Return what a rank has sent; None if it is gone."""
        worker = self._workers[rank]
        try:
            answer: dict[str, Any] = json.loads(worker.pipe.recv_bytes())
            return answer
        except (EOFError, OSError):
            worker.process.join(LEAVE)
            worker.process.kill()
            return None

    def _watch(self) -> Watch | None:
        if self.beacons is None:
            return None
        return Watch(self.beacons, *self._limits, self._artifact.describe)

    def _stand_guard(self, watch: Watch, midway: bool) -> None:
        """Look for ranks that hang: one of the pool is killed, and lost."""
        try:
            watch.look()
        except RankFailure as failure:
            if failure.rank not in self._guards.pool or failure.rank not in self._workers:
                raise
            self._workers[failure.rank].process.kill()
            self._lose([failure.rank], midway, {failure.rank: failure.reason})

    def _look_after(self, ranks: Sequence[int], midway: bool = False, limit: float = 0.0) -> None:
        """Raise if one of these processes has ended; wait for it for `limit` seconds."""
        sentinels = {self._workers[rank].process.sentinel: rank for rank in ranks}
        gone = [sentinels[ready] for ready in wait(list(sentinels), limit)]
        if gone:
            self._lose(gone, midway)

    def _lose(
        self, ranks: Sequence[int], midway: bool, reasons: Mapping[int, str] | None = None
    ) -> None:
        """Bury processes, have the others abandon the epoch; raises WorkersLost, RankFailure."""
        lost: dict[int, str] = {}
        for rank in dict.fromkeys(ranks):
            lost[rank] = self._bury(rank, (reasons or {}).get(rank))
        self._number += 1
        waiting = set(self._workers)
        for rank in waiting:
            self._send(rank, {"do": "abandon", "number": self._number})
        deadline = time.monotonic() + LEAVE
        while waiting:
            late = time.monotonic() > deadline
            for rank in sorted(waiting):
                worker = self._workers[rank]
                over = wait([worker.process.sentinel, worker.pipe], 0 if late else TICK)
                answer = self._read(rank) if worker.pipe in over else None
                if answer is not None:
                    if answer["number"] == self._number:
                        waiting.discard(rank)
                elif over or late:
                    worker.process.kill()
                    waiting.discard(rank)
                    lost[rank] = self._bury(rank, "did not leave the epoch" if late else None)
        raise WorkersLost(lost, midway)

    def _bury(self, rank: int, reason: str | None) -> str:
        """Forget a process that has ended, and say how. Raises RankFailure for one of the base."""
        self._workers[rank].process.join()
        reason = reason or ending(self._workers[rank].process.exitcode)
        self._forget(rank)
        if rank in self._guards.base:
            at = self.beacons.read(rank).instruction if self.beacons is not None else None
            raise fail(self._artifact.describe, rank, at, reason)
        return reason

    def _failure(self, rank: int, report: Mapping[str, Any]) -> RankFailure:
        describe = self._artifact.describe
        if report["kind"] == "mismatch":
            return Mismatch(describe, *report["parts"])
        at = self.beacons.read(rank).instruction if self.beacons is not None else None
        failure = fail(describe, rank, at, report["reason"], report["detail"])
        failure.__cause__ = RankTraceback(report["traceback"])
        return failure


def open_server(
    artifact: Artifact, *, time_limit: float = 60.0, leases: Leases | None = None,
    name: str = "base", limits: Limits | None = None, start_limit: float = 120.0,
    clock: Callable[[], float] = time.monotonic,
) -> Server:  # fmt: skip
    """A server on processes of this host; close it, or use it as a context manager."""
    crew = GlooCrew(artifact, Guards(artifact), time_limit=time_limit, start_limit=start_limit)
    return Server(artifact, crew, name=name, leases=leases, limits=limits, clock=clock)


def generate(
    artifact: Artifact, ids: Tensor, new_tokens: int, time_limit: float = 60.0
) -> dict[str, Any]:
    """Continue `ids` [B, T] by `new_tokens` greedy tokens: tokens, times, variants and events."""
    with open_server(artifact, time_limit=time_limit) as server:
        requests = [server.submit(row, new_tokens) for row in ids.tolist()]
        tokens = server.serve()
        first = requests[0]
        later = (first.last - first.first) / (new_tokens - 1) if new_tokens > 1 else 0.0
        return {
            "tokens": tokens, "ttft_s": first.first - first.asked, "tpot_s": later,
            "variants": first.variants, "events": [event.json() for event in server.events],
        }  # fmt: skip
