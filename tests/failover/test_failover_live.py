"""A rank that lives is not counted as lost, however late it is; and an end says by what evidence one was."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from failover_runs import Killer, Told, spares, train

from plancc.runtime.failover import crew as crew_module
from plancc.runtime.failover.crew import Crew, End, Leaving, Lost
from plancc.runtime.failover.drive import Course
from plancc.runtime.failover.seat import TrainSeat
from plancc.runtime.failover.training import PAUSE
from plancc.runtime.failover.worker import _Worker
from plancc.runtime.failure import RankFailure
from plancc.runtime.transport import COMPUTE, FINISHED, IN_OP, STARTING


def soon(course: Course, act: Callable[[], bool]) -> None:
    """Do something as soon as it says that it is done."""

    def lurk() -> None:
        end = time.monotonic() + 30
        while time.monotonic() < end and not act():
            time.sleep(0.0005)

    threading.Thread(target=lurk, daemon=True).start()


@pytest.fixture
def crew() -> Iterator[Crew]:
    """That of two replicas, without processes; an instruction has 40 s, a start 120."""
    found = Crew(spares("dp2"), {}, lambda rank, message: None, time_limit=40.0, start_limit=120.0)
    found.open((0, 1), 2)
    yield found
    found.close()


def test_a_rank_that_starts_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 dies while rank 1, which is slow, is not there yet: that one goes on alone."""
    monkeypatch.setattr(crew_module, "LEAVE", 2.0)
    told = Told(Killer())

    def opened(course: Course) -> None:
        def kill() -> bool:
            if len(course.crew.workers) < 2:
                return False
            os.kill(course.crew.pids[1], signal.SIGSTOP)
            os.kill(course.crew.pids[0], signal.SIGKILL)
            time.sleep(3.0)
            os.kill(course.crew.pids[1], signal.SIGCONT)
            return True

        Killer.opened(told.killer, course)
        soon(course, kill)

    monkeypatch.setattr(told.killer, "opened", opened)
    done = train("dp2", told, rejoin=False, steps=3)
    assert done.steps == 3 and [event.ranks for event in told.said("lost")] == [(0,)]


def test_who_hangs_in_a_collective_is_lost_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have arrived, and neither goes on: rank 1 stands still, rank 0 can leave."""
    monkeypatch.setattr(crew_module, "LEAVE", 2.0)
    told = Told(Killer())

    def stop() -> bool:
        assert told.killer.course is not None
        found = told.killer.course.crew
        pid = found.pids[1]
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.02)
        stands = found.beacons.read(1) if found.beacons is not None else None
        there = stands is not None and stands.state == IN_OP and stands.meeting != 0
        if not there:
            os.kill(pid, signal.SIGCONT)
        return there

    told.steps[2] = lambda: soon(told.killer.course, stop)
    done = train("dp2", told, rejoin=False, time_limit=2.0, steps=40)
    assert done.steps == 40 and [event.ranks for event in told.said("lost")] == [(1,)]
    assert "did not leave the epoch within 2 s, after rank" in told.said("lost")[0].detail


@pytest.mark.parametrize(
    ("state", "seconds"), [(STARTING, 120.0), (COMPUTE, 40.0), (IN_OP, 30.0), (FINISHED, 30.0)]
)
def test_how_long_a_rank_may_take_to_leave(crew: Crew, state: int, seconds: float) -> None:
    """As long as what it does may take, from when it began to do that."""
    assert crew.beacons is not None
    leaving = Leaving(crew, ", after all")
    crew.beacons.write(1, 7, 3, STARTING)
    assert not leaving.late(1, 0.0) and not leaving.late(1, 119.0)
    crew.beacons.write(1, 8, 3, state)
    assert not leaving.late(1, 500.0) and not leaving.late(1, 500.0 + seconds)
    why = f"did not leave the epoch within {seconds:g} s, after all"
    assert leaving.late(1, 501.0 + seconds) == why


def test_what_has_come_counts_however_late_it_is_read(
    crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator stood still for longer than ranks have: their answers are behind older messages."""
    assert crew.beacons is not None
    for rank in (0, 1):
        crew.beacons.write(rank, 1, None, IN_OP)
    monkeypatch.setattr(crew_module, "LEAVE", -1.0)
    heard: list[dict[str, Any]] = []
    crew.hear = lambda rank, message: heard.append(message)
    pipes = plug_in(crew)
    for theirs in pipes:
        for message in ('{"number": 0, "row": {}}', '{"number": 0, "row": {}}', '{"number": 1}'):
            theirs.send_bytes(message.encode())
    found, lost = crew.abandon()
    assert sorted(found) == [0, 1] and not lost.ranks and len(heard) == 4


def plug_in(crew: Crew) -> list[Any]:
    """Give a crew two ranks that are pipes only; their other ends."""
    import multiprocessing

    ends = []
    for rank in (0, 1):
        mine, theirs = multiprocessing.Pipe()
        never, kept = multiprocessing.Pipe(duplex=False)
        nothing = {name: lambda *_: None for name in ("kill", "join", "close")}
        process = SimpleNamespace(sentinel=never, exitcode=-9, kept=kept, **nothing)
        crew.workers[rank] = crew_module._Worker(process, mine)
        ends.append(theirs)
    return ends


def test_all_can_leave_so_the_suspect_is_lost(crew: Crew) -> None:
    """Nobody stands still, and yet they waited: who was named is given up."""
    for theirs in plug_in(crew):
        theirs.send_bytes(b'{"number": 1, "value": {"step": 4}}')
    found, lost = crew.abandon(RankFailure(1, None, None, "waited 40 s"))
    assert found == {0: {"step": 4}} and lost.ranks[1].reason == "waited 40 s"


def test_an_end_tells_of_every_rank() -> None:
    """How each was found to be lost, and where it stood."""
    course = Course(
        spares("dp2"), "", {}, on_row=lambda row: None, on_event=lambda event: None, rejoin=False,
        time_limit=1.0,
    )  # fmt: skip
    lost = Lost({0: End("was killed by SIGKILL", 3, "here"), 1: End("did not leave", 5, "there")})
    try:
        text = str(course.hopeless(lost.ranks, []))
    finally:
        course.crew.close()
    assert "rank 0 was killed by SIGKILL at instruction 3 (here)" in text
    assert "no replica of base.dp is whole any more; rank 1 did not leave" in text
    assert text.endswith("rank 1 did not leave at instruction 5 (there)")


def test_a_pause_that_comes_early_is_kept() -> None:
    """It is told between the command to work and the work: it belongs to the epoch that begins."""
    seat = object.__new__(TrainSeat)
    seat.rank, seat.signal = 0, PAUSE
    worker = object.__new__(_Worker)
    worker.seat = seat
    assert not worker.at_once({"do": "work", "fresh": []}) and seat.signal == 0
    assert worker.at_once({"do": "signal", "signal": PAUSE})
    seat.settle({"fresh": [], "step": None})
    assert seat.signal == PAUSE
