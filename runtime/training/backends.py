"""Start a training run: ranks as threads, as processes of this host, or this process as one of many."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from plancc.runtime.artifact import Artifact, load_artifact
from plancc.runtime.checkpoint import Checkpoint
from plancc.runtime.deploy import Deployment
from plancc.runtime.failure import Describe
from plancc.runtime.local import run_local
from plancc.runtime.training.feed import Feed, feed_of_rank
from plancc.runtime.training.job import Job
from plancc.runtime.training.journal import Journal, line
from plancc.runtime.training.loop import WHERE, Outcome, Row, Training
from plancc.runtime.transport import Transport

OnRow = Callable[[Row], None]
STOP, ROWS = "stop", "rows"
"""Files through which a launcher and rank 0 talk: a signal's number, and the rows of steps."""
POLL = 0.1
"""Seconds between looks at the rows."""


def train_local(artifact: Artifact, job: Job, on_row: OnRow) -> Outcome:
    """All ranks as threads of this process."""
    checkpoint = resumed(job)
    feed = Feed(job.batches(checkpoint.state["data"] if checkpoint else None))
    with caught_signals() as caught, journal_of(job, checkpoint) as write:

        def told(row: Row) -> None:
            write(row)
            on_row(row)

        def one(transport: Transport) -> Outcome:
            return Training(
                artifact, transport, job, feed, checkpoint, on_row=told,
                signalled=lambda: caught[0] if caught else 0,
            ).run()  # fmt: skip

        return run_local(artifact.world, one, describe=describing(artifact))[0]


def train_launched(
    artifact: Artifact, job: Job, on_row: OnRow, backend: str, time_limit: float
) -> Outcome:
    """A process a rank, on this host."""
    from plancc.runtime.launch import launch

    with tempfile.TemporaryDirectory(prefix="plancc-train-") as scratch:
        stop, rows = Path(scratch) / STOP, Path(scratch) / ROWS
        rows.touch()
        payload = {"job": job.json(), "stop": str(stop), "rows": str(rows)}
        with caught_signals(lambda number: note(stop, number)), followed(rows, on_row):
            found = launch(
                artifact.world, "plancc.runtime.training.backends:train_rank", payload,
                backend=backend, time_limit=time_limit, start_limit=max(120.0, time_limit),
                describe=describing(artifact),
            )  # fmt: skip
    return Outcome(**found[0])


def train_here(artifact: Artifact, job: Job, on_row: OnRow, backend: str) -> Outcome:
    """This process as one rank under torchrun; `on_row` sees the steps on rank 0 only."""
    with caught_signals() as caught, Deployment(artifact).this_rank(backend) as handle:
        transport = handle.transport
        assert transport is not None
        return one_rank(artifact, job, transport, on_row, lambda: caught[0] if caught else 0)


def train_rank(transport: Transport, payload: Mapping[str, Any]) -> dict[str, Any]:
    """Entry of a launched process; plain data both ways."""
    torch.set_num_threads(1)
    job = Job.from_json(payload["job"])
    stop = Path(payload["stop"])
    with open(payload["rows"], "a", encoding="utf-8") as rows:

        def told(row: Row) -> None:
            rows.write(line(row))
            rows.flush()

        def signalled() -> int:
            return int(stop.read_text()) if transport.rank == 0 and stop.exists() else 0

        return one_rank(load_artifact(job.folder), job, transport, told, signalled).json()


def one_rank(
    artifact: Artifact, job: Job, transport: Transport, on_row: OnRow, signalled: Callable[[], int]
) -> Outcome:
    """Run one rank of many processes; rank 0 writes the log."""
    checkpoint = resumed(job)
    feed = feed_of_rank(
        artifact, job, transport.rank, checkpoint.state["data"] if checkpoint else None
    )
    with journal_of(job, checkpoint, transport.rank == 0) as write:

        def told(row: Row) -> None:
            write(row)
            on_row(row)

        return Training(
            artifact, transport, job, feed, checkpoint, on_row=told, signalled=signalled
        ).run()


def resumed(job: Job) -> Checkpoint | None:
    """The checkpoint to go on from, whose files were checked when the run was asked for."""
    return Checkpoint.open(job.resume, verify=False) if job.resume else None


@contextmanager
def journal_of(job: Job, checkpoint: Checkpoint | None, mine: bool = True) -> Iterator[OnRow]:
    """What writes a row into the log, if there is one and it is this rank's."""
    if job.log is None or not mine:
        yield lambda row: None
        return
    journal = Journal(Path(job.log), checkpoint.step if checkpoint else 0)
    try:
        yield journal.write
    finally:
        journal.close()


@contextmanager
def caught_signals(act: Callable[[int], None] = lambda number: None) -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM end the running step, not the process; a second one does what it always does.

    Gives the list of signals so far. Outside the main thread signals stay as they are.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: Any) -> None:
        caught.append(number)
        act(number)
        for known, action in before.items():
            signal.signal(known, action)

    for number in before:
        signal.signal(number, handle)
    try:
        yield caught
    finally:
        for number, action in before.items():
            signal.signal(number, action)


def note(path: Path, number: int) -> None:
    """Write a signal's number for rank 0, whole or not at all."""
    aside = path.with_suffix(".partial")
    aside.write_text(str(number))
    os.replace(aside, path)


@contextmanager
def followed(path: Path, on_row: OnRow) -> Iterator[None]:
    """Hand the rows that rank 0 writes into a file on, until the end."""
    ended = threading.Event()

    def follow() -> None:
        with open(path, encoding="utf-8") as file:
            rest = ""
            while True:
                last = ended.wait(POLL)
                *lines, rest = (rest + file.read()).split("\n")
                for text in lines:
                    on_row(json.loads(text))
                if last:
                    return

    thread = threading.Thread(target=follow, name="rows of steps", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def describing(artifact: Artifact) -> Describe:
    """What an instruction of a rank is, the loop's own included."""
    return lambda rank, at: WHERE.get(at) or artifact.describe(rank, at)


def under_launcher() -> bool:
    """Whether a launcher such as torchrun made this process one rank of many."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def rank_here() -> int:
    """This process's rank under a launcher; 0 without one."""
    return int(os.environ["RANK"]) if under_launcher() else 0
