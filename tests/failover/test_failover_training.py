"""Ranks of a training run are killed, each at another point of a step: nothing else changes."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from failover_runs import Killer, Told, largest_difference, resume, train, undisturbed

from plancc.runtime.failure import RankFailure


@pytest.fixture
def told() -> Told:
    return Told(Killer())


def same_as_undisturbed(name: str, told: Told, steps: int, folder: Path, **wanted: object) -> None:
    """Losses of every step, and weights and optimizer state at the end, are those of a run in peace."""
    found = undisturbed(name, steps=steps, checkpoint=folder / "peace", **wanted)
    assert [row["step"] for row in told.rows] == list(range(1, steps + 1))
    assert max(abs(a - b) for a, b in zip(found.losses, told.losses, strict=True)) < 1e-9
    assert largest_difference(found.outcome.checkpoint, folder / "run") < 1e-9


def test_kills_at_every_point_of_a_step(told: Told, tmp_path: Path) -> None:
    """One after the other, in forward, backward, reduction, norm and a save; each rank comes back."""
    killer, told.patience = told.killer, 1
    told.steps[2] = lambda: killer.at(0, "dispatch(softmax", "comm.dispatch(")
    told.acts = [
        lambda: killer.at(1, "dispatch(g_", "combine(r.f32, (hidden,), s."),
        lambda: killer.at(0, "all_reduce"),
        lambda: killer.at(1, "summing the gradient's norm"),
        lambda: killer.at(0, "saving a checkpoint"),
        lambda: killer.course.caught(signal.SIGTERM),
    ]
    log = tmp_path / "log.jsonl"
    done = train(
        "small", told, steps=400, checkpoint=tmp_path / "run", every=3, keep=2, log=log
    )  # fmt: skip
    assert done.status == "stopped" and done.signal == signal.SIGTERM
    lost = told.said("lost")
    assert [event.ranks for event in lost] == [(0,), (1,), (0,), (1,), (0,)]
    for event, word in zip(lost, ("comm.", "comm.", "all_reduce", "norm", "saving"), strict=True):
        assert word in event.detail and "was killed by SIGKILL" in event.detail
        assert f"lost: the unfinished step {event.step + 1}" in event.detail
    assert len(told.said("back")) == 5 and len(told.said("done again")) == 5
    assert max(event.seconds for event in told.said("done again")) < 20
    same_as_undisturbed("small", told, done.steps, tmp_path)
    logged = [json.loads(line) for line in log.read_text().splitlines()]
    assert [r["step"] for r in logged if "loss" in r] == list(range(1, done.steps + 1))
    assert [r["event"] for r in logged if "event" in r] == [e.what for e in told.events]


def test_without_rejoining_it_ends_on_one_replica(told: Told, tmp_path: Path) -> None:
    told.steps[1] = lambda: told.killer.kill(1)
    done = train("dp2", told, rejoin=False, steps=8, checkpoint=tmp_path / "run")
    assert done.status == "done" and not told.said("back")
    assert "replica 0 goes on alone" in told.said("lost")[0].detail
    same_as_undisturbed("dp2", told, 8, tmp_path)


@pytest.mark.slow
def test_resumed_run_survives(told: Told, tmp_path: Path) -> None:
    """Killed and resumed without failover, then a rank is killed: the steps of one run in peace."""
    undisturbed("small", steps=3, checkpoint=tmp_path / "run")
    told.steps[4] = lambda: told.killer.kill(0)
    done = resume("small", told, checkpoint=tmp_path / "run", steps=7)
    assert done.steps == 7 and done.ran == 4 and len(told.said("lost")) == 1
    found = undisturbed("small", steps=7, checkpoint=tmp_path / "peace")
    assert largest_difference(found.outcome.checkpoint, tmp_path / "run") < 1e-9


def test_an_expert_rank_has_no_replica(told: Told, tmp_path: Path) -> None:
    told.steps[2] = lambda: told.killer.kill(2)
    with pytest.raises(RankFailure) as failure:
        train("small", told, steps=50, checkpoint=tmp_path / "run", every=1)
    assert failure.value.rank == 2 and "is in no replica of attn.rep" in str(failure.value)
    assert (tmp_path / "run" / "latest").exists()


def test_both_replicas_dead(told: Told, tmp_path: Path) -> None:
    told.steps[2] = lambda: [told.killer.kill(rank) for rank in (0, 1)]
    with pytest.raises(RankFailure, match=r"no replica of attn\.rep is whole any more"):
        train("small", told, steps=50, checkpoint=tmp_path / "run", every=1)


@pytest.mark.slow
def test_the_second_replica_dies_later(told: Told) -> None:
    told.steps = {2: lambda: told.killer.kill(0), 5: lambda: told.killer.kill(1)}
    with pytest.raises(RankFailure, match="rank 1 was killed by SIGKILL at instruction"):
        train("small", told, rejoin=False, steps=50)
    assert len(told.rows) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_killed_while_the_state_is_handed_over(told: Told, rank: int, tmp_path: Path) -> None:
    """The one that comes back: the other goes on. The one that gives: a clear end, or it was in time."""
    told.steps[2] = lambda: told.killer.kill(0)
    told.acts = [
        lambda: told.killer.kill(rank),
        lambda: told.killer.course.caught(signal.SIGTERM),
    ]
    try:
        done = train("small", told, steps=400, checkpoint=tmp_path / "run")
    except RankFailure as failure:
        assert rank == 1 and "no replica of attn.rep is whole any more" in str(failure)
        return
    same_as_undisturbed("small", told, done.steps, tmp_path)


@pytest.mark.slow
def test_a_waiting_rank_dies(told: Told, tmp_path: Path) -> None:
    """Of a broken replica another rank dies, too: the run does not notice, and all come back."""
    told.steps = {2: lambda: told.killer.kill(0), 3: lambda: told.killer.kill(1)}
    told.acts = [lambda: told.killer.course.caught(signal.SIGTERM)]
    done = train("sp", told, steps=400, checkpoint=tmp_path / "run")
    assert len(told.said("lost")) in (1, 2)
    same_as_undisturbed("sp", told, done.steps, tmp_path)


@pytest.mark.slow
def test_a_rank_that_hangs_is_given_up(told: Told, tmp_path: Path) -> None:
    import os

    def stop() -> None:
        os.kill(told.killer.course.crew.pids[1], signal.SIGSTOP)

    told.steps[2] = stop
    done = train("dp2", told, rejoin=False, time_limit=3.0, steps=6, checkpoint=tmp_path / "run")
    assert done.steps == 6 and told.said("lost")[0].ranks == (1,)
    same_as_undisturbed("dp2", told, 6, tmp_path)
