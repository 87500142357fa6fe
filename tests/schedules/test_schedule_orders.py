"""Every named schedule is right for any numbers, holds what its paper says, and waits no longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from plancc.dsl import Bug
from plancc.ir.schedule import (
    Action,
    bubble_share,
    draw_schedule,
    makespan,
    peak_activations,
    schedule_problems,
)
from plancc.passes.schedule_orders import BUILDERS, PLAIN, build_schedule

STAGES, BATCHES, VIRTUAL = range(1, 9), range(1, 18), range(1, 5)
DRAWINGS = Path(__file__).parent / "drawings"


@pytest.mark.parametrize("name", BUILDERS)
def test_right_for_any_numbers(name: str) -> None:
    """8 stages, 17 micro-batches, 4 virtual stages, and all that is less."""
    for stages in STAGES:
        for batches in BATCHES:
            for virtual in VIRTUAL if name not in PLAIN else (1,):
                schedule = build_schedule(name, stages, batches, virtual)
                assert schedule_problems(schedule) == [], (stages, batches, virtual)


def test_what_is_held() -> None:
    """Activations held at most, by rank."""
    for stages in range(2, 9):
        for batches in BATCHES:
            ranks = range(stages)
            held = {
                name: peak_activations(build_schedule(name, stages, batches)) for name in BUILDERS
            }
            assert held["GPipe"] == (batches,) * stages
            assert held["1F1B"] == tuple(min(stages - rank, batches) for rank in ranks)
            assert held["zero_bubble"] == (min(stages, batches),) * stages
            for virtual in (2, 3):
                first = batches // max(1, batches // stages)
                first += batches % max(1, batches // stages) > 0
                warm = [(virtual - 1) * first + 2 * (stages - 1 - rank) + 1 for rank in ranks]
                found = peak_activations(build_schedule("interleaved", stages, batches, virtual))
                assert found == tuple(min(count, virtual * batches) for count in warm)


def test_how_long_it_takes() -> None:
    """The closed forms of the papers under unit costs."""
    for stages in range(2, 9):
        for batches in BATCHES:
            plain = 3 * (batches + stages - 1)
            assert makespan(build_schedule("GPipe", stages, batches)) == plain
            assert makespan(build_schedule("1F1B", stages, batches)) == plain
            split = makespan(build_schedule("zero_bubble", stages, batches))
            assert split < plain
            if batches >= stages:
                assert split == 3 * batches + stages - 1
            for virtual in (2, 3, 4):
                schedule = build_schedule("interleaved", stages, batches, virtual)
                if batches % stages == 0:
                    assert makespan(schedule) == 3 * (virtual * batches + stages - 1)
                assert bubble_share(schedule) <= (stages - 1) / (batches + stages - 1) + 1e-12


@pytest.mark.parametrize("name", BUILDERS)
def test_one_stage_accumulates(name: str) -> None:
    """One rank runs each micro-batch forward and back, and holds one at a time."""
    schedule = build_schedule(name, 1, 3)
    assert schedule.rows == (
        tuple(Action(kind, 0, batch) for batch in range(3) for kind in ("F", "B")),
    )
    assert bubble_share(schedule) == 0


def test_order_of_one_f_one_b() -> None:
    """The textbook order, word by word."""
    schedule = build_schedule("1F1B", 3, 4)
    rows = [" ".join(map(schedule.label, row)) for row in schedule.rows]
    assert rows == [
        "F0 F1 F2 B0 F3 B1 B2 B3",
        "F0 F1 B0 F2 B1 F3 B2 B3",
        "F0 B0 F1 B1 F2 B2 F3 B3",
    ]
    assert build_schedule("table", 3, 4, table=rows).rows == schedule.rows


def test_a_table_of_virtual_stages() -> None:
    """`F1.2` is micro-batch 1 on the third chunk of its rank."""
    schedule = build_schedule("table", 2, 2, 3, ["F1.2", "I0.1 W0.1"])
    assert schedule.rows == (
        (Action("F", 4, 1),),
        (Action("I", 3, 0), Action("W", 3, 0)),
    )


@pytest.mark.parametrize(
    ("name", "counts"),
    [("GPipe", (2, 2, 2)), ("1F1B", (2, 2, 2)), ("other", (2, 2, 1)), ("GPipe", (0, 2, 1))],
)
def test_what_the_language_refuses(name: str, counts: tuple[int, int, int]) -> None:
    """Numbers that no checked plan has are a bug of plancc."""
    with pytest.raises(Bug):
        build_schedule(name, *counts)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("GPipe", (4, 4, 1)),
        ("1F1B", (4, 6, 1)),
        ("1F1B", (4, 2, 1)),
        ("interleaved", (2, 4, 2)),
        ("interleaved", (3, 5, 2)),
        ("zero_bubble", (4, 6, 1)),
    ],
)
def test_drawings(name: str, counts: tuple[int, int, int], golden) -> None:
    """The pictures, with their shares of bubbles."""
    text = draw_schedule(build_schedule(name, *counts))
    golden(DRAWINGS / f"{name}_{'_'.join(map(str, counts))}.txt", text)


def test_drawing_with_other_costs() -> None:
    """Columns are units of the costs that are given."""
    text = draw_schedule(build_schedule("1F1B", 1, 1), {"F": 2, "B": 3, "I": 1, "W": 1})
    assert text.splitlines()[1:3] == [
        "rank 0  F0--- B0------",
        "time 5 (F = 2, B = 3, I = 1, W = 1); bubbles 0%",
    ]
