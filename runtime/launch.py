"""Start ranks as processes on this host, watch them, and bring back results or a `RankFailure`.

The launcher looks at two things: process sentinels, which tell of an end at once, and beacons,
which tell where every rank stands and whom it waits for.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from types import ModuleType
from typing import Any

from plancc.runtime import processes
from plancc.runtime.beacon import Beacons
from plancc.runtime.cores import usable
from plancc.runtime.failure import Describe, Mismatch, RankFailure, fail
from plancc.runtime.processes import RankResult, Start
from plancc.runtime.watch import Watch

TICK = 0.05  # seconds between looks at the beacons
GRACE = 0.5  # seconds that a rank which lost a peer waits for the peer to be named
PRELOAD = ("plancc.runtime.processes", "plancc.runtime.worker")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_starting = threading.Lock()


def launch(
    world: int,
    entry: str,
    payload: dict[str, Any],
    *,
    backend: str = "gloo",
    time_limit: float = 30.0,
    start_limit: float = 120.0,
    describe: Describe = None,
) -> list[Any]:
    """Run `entry` ("module:function") as `function(transport, payload)` in `world` processes.

    The function returns a JSON value or a `RankResult`; the list has one for each rank. No
    instruction may take longer than `time_limit` seconds, and nothing before a rank's first one
    longer than `start_limit`. Raises `RankFailure`; whatever happens, all processes are gone and
    the scratch folder is removed.
    """
    scratch = Path(tempfile.mkdtemp(prefix="plancc-"))
    run = None
    try:
        processes.write_json(scratch / "payload.json", payload)
        run = _Run(world, scratch, describe)
        run.start(entry, backend)
        run.watch(time_limit, start_limit)
        return [_result(scratch, rank) for rank in range(world)]
    finally:
        if run is not None:
            run.stop()
        shutil.rmtree(scratch, ignore_errors=True)


class _Run:
    """The processes of one launch."""

    def __init__(self, world: int, scratch: Path, describe: Describe) -> None:
        self.world = world
        self.scratch = scratch
        self.describe = describe
        self.beacons = Beacons(scratch / "beacons", world, create=True)
        self.ranks: dict[int, Any] = {}  # sentinel -> (rank, process), those not known to be over
        self.started: list[Any] = []

    def start(self, entry: str, backend: str) -> None:
        """Fork all ranks from the forkserver."""
        told = Start(
            self.world, str(self.scratch), entry, backend, os.getcwd(), dict(os.environ), usable()
        )
        with forking() as context:
            for rank in range(self.world):
                process = context.Process(
                    target=processes.main, args=(rank, told), name=f"rank {rank}", daemon=True
                )
                process.start()
                self.started.append(process)
                self.ranks[process.sentinel] = (rank, process)

    def watch(self, time_limit: float, start_limit: float) -> None:
        """Return when all ranks have ended well; raise for the first one that did not."""
        watch = Watch(self.beacons, time_limit, start_limit, self.describe)
        lost: RankFailure | None = None
        deadline = 0.0
        while self.ranks:
            ended = [self.ranks.pop(sentinel) for sentinel in wait(list(self.ranks), TICK)]
            failures = [f for f in (self.failure(*one) for one in sorted_by_rank(ended)) if f]
            for failure, points_elsewhere in failures:
                if not points_elsewhere:
                    raise failure
                if lost is None:
                    lost, deadline = failure, time.monotonic() + GRACE
            if lost is not None and (time.monotonic() > deadline or not self.ranks):
                raise lost
            if lost is None:
                watch.look()

    def failure(self, rank: int, process: Any) -> tuple[RankFailure, bool] | None:
        """Say how a rank that ended has failed, and whether that points to another rank."""
        process.join()
        code = process.exitcode
        if code == 0 and processes.result_path(self.scratch, rank).exists():
            return None
        path = processes.report_path(self.scratch, rank)
        at = self.beacons.read(rank).instruction
        if not path.exists():
            return fail(self.describe, rank, at, ending(code)), False
        report = json.loads(path.read_text())
        if report["kind"] == "mismatch":
            return Mismatch(self.describe, *report["parts"]), False
        failure = fail(self.describe, rank, at, report["reason"], report["detail"])
        failure.__cause__ = RankTraceback(report["traceback"])
        return failure, report["kind"] == "lost"

    def stop(self) -> None:
        """Kill what still runs, and wait until it is gone."""
        for process in self.started:
            if process.exitcode is None:
                process.kill()
        for process in self.started:
            process.join()
            process.close()
        self.beacons.close()


class RankTraceback(Exception):
    """The traceback of a rank's process, as text."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def sorted_by_rank(ended: list[tuple[int, Any]]) -> list[tuple[int, Any]]:
    """Sort (rank, process) pairs by rank."""
    return sorted(ended, key=lambda pair: pair[0])


def ending(code: int) -> str:
    """Say how a process ended that should not have, as the predicate of a sentence."""
    if code >= 0:
        return f"ended without a result, with exit code {code},"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _result(scratch: Path, rank: int) -> Any:
    value = json.loads(processes.result_path(scratch, rank).read_text())
    tensors = processes.tensors_path(scratch, rank)
    if not tensors.exists():
        return value
    from safetensors.torch import load

    return RankResult(value, load(tensors.read_bytes()))


@contextmanager
def forking() -> Iterator[Any]:
    """Give the multiprocessing context in which rank processes are made and started."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.distributed", *PRELOAD])
    with _starting, _plain_main(), _one_thread(), _short_paths():
        yield context


@contextmanager
def _short_paths() -> Iterator[None]:
    """Keep the forkserver's socket out of a folder whose path is too long for one (108 bytes)."""
    before = tempfile.tempdir
    if len(tempfile.gettempdir()) > 60:
        tempfile.tempdir = "/tmp"
    try:
        yield
    finally:
        tempfile.tempdir = before


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let the forkserver, should it start now, give each rank one thread to compute with."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _plain_main() -> Iterator[None]:
    """Hide the main module, so that ranks do not import a script (and launch again) as theirs."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
