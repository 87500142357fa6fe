"""The checker against an executor of its own: ranks with real queues, sends that never block."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plancc.dsl import Bug
from plancc.ir.schedule import Action, Schedule, makespan, schedule_problems
from plancc.passes.schedule_orders import BUILDERS, PLAIN, build_schedule


def table(*rows: str, batches: int = 2, virtual: int = 1) -> Schedule:
    """A schedule from its words."""
    return build_schedule("table", len(rows), batches, virtual, rows)


def runs(schedule: Schedule) -> bool:
    """Whether the ranks come to their ends, each taking from its queues what it wants, in order."""
    queues: dict[tuple[int, int, int], deque] = {}
    at = [0] * schedule.stages
    local: set[tuple[str, int, int]] = set()
    moved = True
    while moved:
        moved = False
        for rank, row in enumerate(schedule.rows):
            while at[rank] < len(row) and able(schedule, row[at[rank]], rank, queues, local):
                at[rank] += 1
                moved = True
    return all(at[rank] == len(row) for rank, row in enumerate(schedule.rows))


def able(schedule: Schedule, action: Action, rank: int, queues: dict, local: set) -> bool:
    """Run one action if its message is the next in its queue; wrong order never runs."""
    kind, chunk, batch = action.kind, action.chunk, action.batch
    own = {"B": "F", "I": "F", "W": "I"}.get(kind)
    if own is not None and (own, chunk, batch) not in local:
        return False
    if kind != "W":
        channel, way = (0, 1) if kind == "F" else (1, -1)
        source, target = chunk - way, chunk + way
        if 0 <= source < schedule.chunks:
            other = source % schedule.stages
            queue = queues.setdefault((other, rank, channel, *((chunk,) if other == rank else ())),
                                      deque())  # fmt: skip
            if not queue or queue[0] != (chunk, batch):
                return False
            queue.popleft()
        if 0 <= target < schedule.chunks:
            other = target % schedule.stages
            key = (rank, other, channel, *((target,) if other == rank else ()))
            queues.setdefault(key, deque()).append((target, batch))
    local.add((kind, chunk, batch))
    return True


@st.composite
def shuffled(draw: st.DrawFn) -> Schedule:
    """A named schedule with a few actions moved inside their rows."""
    name = draw(st.sampled_from(sorted(BUILDERS)))
    stages, batches = draw(st.integers(2, 4)), draw(st.integers(1, 4))
    virtual = 1 if name in PLAIN else draw(st.integers(1, 2))
    schedule = build_schedule(name, stages, batches, virtual)
    rows = [list(row) for row in schedule.rows]
    for _ in range(draw(st.integers(0, 4))):
        row = rows[draw(st.integers(0, stages - 1))]
        action = row.pop(draw(st.integers(0, len(row) - 1)))
        row.insert(draw(st.integers(0, len(row))), action)
    return Schedule(tuple(map(tuple, rows)), stages, virtual, batches, name)


@settings(max_examples=400, deadline=None)
@given(shuffled())
def test_right_exactly_if_it_runs(schedule: Schedule) -> None:
    """No problem means that queues in order of sending suffice; a problem, that they do not."""
    assert (schedule_problems(schedule) == []) == runs(schedule)


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (["F0 B0 F1 B1", "F0 F1 B0 B1"], "rank 0 waits at `B0` for `B0` of rank 1; rank 1 waits at `F1`"),
        (["F0 F1 B0 B1", "F1 F0 B1 B0"], "activations from pipeline rank 0 to 1 arrive in the order"),
        (["F0 F1 B1 B0", "F0 B0 F1 B1"], "gradients from pipeline rank 1 to 0 arrive in the order"),
        (["F0 B0 F1 B1", "F0 B0 F1"], "pipeline rank 1 never runs `B1`"),
        (["F0 B0 F1 I1", "F0 B0 F1 B1"], "pipeline rank 0 never runs `W1`"),
        (["F0 B0 F1 W1", "F0 B0 F1 B1"], "pipeline rank 0 never runs `I1`"),
        (["F0 B0 F1 B1 W1", "F0 B0 F1 B1"], "pipeline rank 0 runs `B1` and `W1`: a backward twice"),
        (["F0 F0 B0 F1 B1", "F0 B0 F1 B1"], "pipeline rank 0 runs `F0` twice"),
        (["F0 B0 F1 B1 F2", "F0 B0 F1 B1"], "`F2` is beyond the 2 micro-batches"),
        (["B0 F0 F1 B1", "F0 B0 F1 B1"], "on pipeline rank 0, `B0` comes before `F0`"),
        (["F0 B0 F1 W1 I1", "F0 B0 F1 B1"], "on pipeline rank 0, `W1` comes before `I1`"),
        (["F0 B0 F1 B1", "F0 B0 F1 B1", "F0 B0 F1"], "pipeline rank 2 never runs `B1`"),
    ],
)  # fmt: skip
def test_what_is_said(rows: list[str], text: str) -> None:
    """Each kind of mistake, in words."""
    problems = schedule_problems(table(*rows))
    assert any(text in problem for problem in problems), problems


def test_actions_of_other_ranks() -> None:
    """A chunk lives on one rank, and rows are as many as ranks."""
    row = (Action("F", 0, 0), Action("B", 0, 0))
    assert schedule_problems(Schedule((row, row), 2, 1, 1, "wrong"))[0] == (
        "chunk 0 lives on pipeline rank 0, not 1"
    )
    assert schedule_problems(Schedule((row,), 2, 1, 1, "wrong")) == ["1 rows for 2 pipeline ranks"]
    strange = Schedule(((Action("X", 0, 0), Action("F", 9, 0)),), 1, 1, 1, "wrong")
    assert len(schedule_problems(strange)) == 2


def test_huge_numbers_do_not_hang() -> None:
    """A table that promises a million micro-batches has a few problems, at once."""
    assert len(schedule_problems(table("F0 B0", "F0 B0", batches=10**9))) == 8


def test_a_deadlock_has_no_time() -> None:
    """Timing a wrong schedule is a bug."""
    with pytest.raises(Bug, match="deadlocks"):
        makespan(table("F0 B0 F1 B1", "F0 F1 B0 B1"))


def test_values_that_skip_stages() -> None:
    """With one stage a rank every skip is in order; with more, a skip overtakes its neighbours."""
    for name in PLAIN:
        plain = build_schedule(name, 4, 6)
        assert schedule_problems(plain, [(0, 2), (0, 3), (1, 3)]) == []
    problems = schedule_problems(build_schedule("interleaved", 2, 4, 2), [(0, 3)])
    assert "those for `F0.1` come where `F1.0` waits for its own" in problems[0]
