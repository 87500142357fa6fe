"""Ranks read the rows that their programs use, and no others; the curve does not change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import TEXT, artifact, tensors, train

from plancc.runtime.artifact import load_artifact
from plancc.runtime.checkpoint import Checkpoint
from plancc.runtime.local import run_local
from plancc.runtime.optimizer import OptimizerSpec
from plancc.runtime.training.feed import Feed, feed_of_rank, rows_of
from plancc.runtime.training.job import Job
from plancc.runtime.training.loop import Training


def job_of(name: str, **more: Any) -> Job:
    spec = OptimizerSpec(lr=3e-3)
    usual = {"batch": 8, "seq_len": 16, "steps": 5, "precision": "fp64"}
    return Job(str(artifact(name)), (TEXT,), spec=spec, **{**usual, **more})


EVERY = list(range(8))
ROWS = [
    ("alone", {}, [EVERY]),
    ("tp2", {}, [EVERY, EVERY]),
    ("dp2", {}, [[0, 1, 2, 3], [4, 5, 6, 7]]),
    ("dp3", {}, [[0, 1], [2, 3, 4], [5, 6, 7]]),
    ("dp3", {"batch": 2}, [[0], [0], [1]]),
    ("dp2_tp2", {}, [[0, 1, 2, 3]] * 2 + [[4, 5, 6, 7]] * 2),
    ("pp3", {}, [EVERY, [0], EVERY]),
    ("dp2_pp2", {}, [[0, 1, 4, 5]] * 2 + [[2, 3, 6, 7]] * 2),
]


@pytest.mark.parametrize(("name", "more", "rows"), ROWS, ids=lambda x: str(x)[:30])
def test_rows_of_ranks(name: str, more: dict[str, Any], rows: list[list[int]]) -> None:
    """By rank; with micro-batches each one's share."""
    found = load_artifact(artifact(name))
    job = job_of(name, **more)
    assert [rows_of(found, job, rank) for rank in range(found.world)] == rows


@pytest.mark.parametrize("name", ["dp2", "dp3", "dp2_tp2", "pp3", "dp2_pp2"])
def test_other_rows_do_not_matter(name: str) -> None:
    """A rank's program gives the same when all other rows are zeros, bit by bit."""
    found, job = load_artifact(artifact(name)), job_of(name)
    shared, curves = Feed(job.batches()), []
    for feed in (lambda rank: shared, lambda rank: feed_of_rank(found, job, rank, None)):
        rows: list[float] = []
        run_local(
            found.world,
            lambda t, feed=feed, rows=rows: Training(
                found, t, job, feed(t.rank), on_row=lambda row: rows.append(row["loss"])
            ).run(),
        )
        curves.append(rows)
    assert len(curves[0]) == 5 and curves[0] == curves[1]


def test_zeros_stand_for_the_others() -> None:
    found, job = load_artifact(artifact("dp2")), job_of("dp2")
    whole, part = Feed(job.batches()), feed_of_rank(found, job, 1, None)
    for a, b in zip(whole.at(0), part.at(0), strict=True):
        assert torch.equal(a[4:], b[4:]) and not b[:4].any()


def test_processes_save_and_resume_all_rows(tmp_path: Path) -> None:
    """The data's state in a checkpoint is of all rows, whoever read them."""
    whole = train("dp2", steps=8)
    train("dp2", steps=4, backend="gloo", checkpoint=tmp_path)
    assert sorted(Checkpoint.open(tmp_path).state["data"]["rows"]) == [str(i) for i in range(8)]
    again = train("dp2", resume=tmp_path, steps=8, backend="gloo")
    assert again.losses == whole.losses[4:]
    assert tensors(tmp_path)["model/norm.weight"].dtype is torch.float64


def test_processes_end_an_epoch_together(tmp_path: Path) -> None:
    """Ranks whose rows end at different steps stop at the first of them, as threads do."""
    text = tmp_path / "small.txt"
    text.write_text("\n\n".join(f"line {i} of a small text" for i in range(60)))
    same = [
        train("dp3", data=text, epochs=1, batch=3, seq_len=16, backend=backend).losses
        for backend in ("local", "gloo")
    ]
    assert same[0] == same[1] and len(same[0]) > 3
