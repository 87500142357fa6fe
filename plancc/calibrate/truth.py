"""Run steps of an artifact for real on this machine, and say how long they took."""

from __future__ import annotations

import random
import statistics
import string
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plancc.calibrate.machine import load
from plancc.calibrate.point import TRAIN, WARM, Point, Truth
from plancc.calibrate.spread import Spread, spread_of
from plancc.calibrate.steps import Mark, run_marks, train_marks
from plancc.runtime.artifact import Artifact, ArtifactError
from plancc.runtime.local import run_local
from plancc.runtime.optimizer import OptimizerSpec
from plancc.runtime.training.feed import Feed
from plancc.runtime.training.job import (
    Job,
    check_data,
    check_programs,
    check_sizes,
    precision_of,
)

TIME_LIMIT = 120.0
"""Seconds that one instruction of a measured run may take."""


def measure(artifact: Artifact, point: Point, threads: int = 1) -> Truth:
    """Run the point's steps; `threads` are those that a process of a rank computes with.

    Local ranks are threads of this process and compute with as many threads as it does. Raises
    ArtifactError, TrainError or DataError for what the artifact does not admit, RankFailure.
    """
    before = load()
    with tempfile.TemporaryDirectory(prefix="plancc-truth-") as scratch:
        job = job_of(artifact, point, Path(scratch)) if point.phase == TRAIN else None
        if job is None:
            check_generation(artifact, point)
        if point.backend == "local":
            marks = in_threads(artifact, point, job)
        else:
            marks = launched(artifact, point, job, threads)
    return summary(point, marks, before)


def check_generation(artifact: Artifact, point: Point) -> None:
    """ArtifactError unless the artifact can make these steps."""
    if point.phase not in artifact.phases:
        raise ArtifactError(
            f"the artifact has no {point.phase} programs, only {', '.join(artifact.phases)}"
        )
    made = point.past + point.steps if point.past else point.tokens
    artifact.admit(point.batch, made, 0)


def job_of(artifact: Artifact, point: Point, scratch: Path) -> Job:
    """A training run of just these steps on random text; AdamW as `plancc train` has it by default."""
    check_programs(artifact)
    data = scratch / "random.txt"
    letters = random.Random(0).choices(string.ascii_letters, k=64 * 1024)
    data.write_text("".join(letters))
    job = Job(
        folder=str(artifact.folder.resolve()), data=(str(data),), batch=point.batch,
        seq_len=point.tokens, spec=OptimizerSpec(), steps=WARM + point.steps + 1,
        precision=precision_of(artifact),
    )  # fmt: skip
    check_sizes(artifact, job)
    check_data(artifact, job, None)
    return job


def in_threads(artifact: Artifact, point: Point, job: Job | None) -> list[list[Mark]]:
    """All ranks as threads of this process, by turns."""
    from plancc.runtime.loading import open_weights

    if job is not None:
        feed = Feed(job.batches())
        return run_local(
            artifact.world, lambda t: train_marks(artifact, t, point, job, feed),
            describe=artifact.describe,
        )  # fmt: skip
    weights = open_weights(artifact)
    return run_local(
        artifact.world, lambda t: run_marks(artifact, t, point, weights),
        describe=artifact.describe,
    )  # fmt: skip


def launched(artifact: Artifact, point: Point, job: Job | None, threads: int) -> list[list[Mark]]:
    """A process a rank, on this host."""
    from plancc.runtime.launch import launch

    payload: dict[str, Any] = {
        "folder": str(artifact.folder.resolve()), "point": point.json(), "threads": threads,
        "job": job.json() if job is not None else None,
    }  # fmt: skip
    return launch(
        artifact.world, "plancc.calibrate.steps:run_rank", payload, backend=point.backend,
        time_limit=TIME_LIMIT, describe=artifact.describe,
    )  # fmt: skip


def summary(point: Point, marks: Sequence[Sequence[Mark]], before: float) -> Truth:
    """Join the ranks' marks: a step lasts from the first begin to the last end."""
    seconds, programs = span_of(marks, 2), span_of(marks, 1)
    return Truth(
        point, len(marks), seconds, programs, on_core(marks, 2), on_core(marks, 1), before
    )  # fmt: skip


def span_of(marks: Sequence[Sequence[Mark]], end: int) -> Spread:
    """From the first rank's begin to the last rank's stamp number `end`, over all steps."""
    steps = zip(*marks, strict=True)
    return spread_of([max(m[end][0] for m in step) - min(m[0][0] for m in step) for step in steps])


def on_core(marks: Sequence[Sequence[Mark]], end: int) -> tuple[float, ...]:
    """By rank the median seconds on a core from the begin to stamp number `end`."""
    return tuple(statistics.median(mark[end][1] - mark[0][1] for mark in mine) for mine in marks)
