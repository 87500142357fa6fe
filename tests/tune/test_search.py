"""The search on made-up costs, whose best is known by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plancc.simulator.rows import Row
from plancc.tune.forms import METRICS, Attempt, Cell, Sets, at_case, attempt_of, joint
from plancc.tune.front import pareto
from plancc.tune.search import Limits, Trail, search
from plancc.tune.space import Knob, Space

TIME = METRICS["time"]


def row(seconds: float, memory: float = 1.0, fits: bool = True) -> Row:
    """A row of a decode of eight tokens."""
    common = {"memory_gb": {"m": memory}, "budget_gb": {"m": 2.0}}
    if not fits:
        return Row("p", "decode", 8, 64, 1, "always", 1, False, **common, reason="does not fit")  # type: ignore[arg-type]
    return Row(
        "p", "decode", 8, 64, 1, "always", 1, True, **common, tpot_s=seconds, tps=8 / seconds,  # type: ignore[arg-type]
        tps_per_device=8 / seconds,
    )  # fmt: skip


class Bowl:
    """Costs by a table; settings that it lacks are refused; remembers what it was asked."""

    def __init__(self, costs: dict[tuple[str, ...], float]) -> None:
        self.costs = costs
        self.asked: list[Sets] = []

    def __call__(self, wanted: Sequence[Sets]) -> Iterator[Attempt]:
        for sets in wanted:
            self.asked.append(sets)
            cost = self.costs.get(tuple(text for _, text in sets))
            if cost is None:
                yield Attempt(sets, code="P201", reason="needs 3 devices")
            else:
                yield Attempt(sets, (Cell(row(cost)),), meshes={"m": 1})


def grid(*sizes: int) -> Space:
    """Knobs a, b ... with values 1 .. size."""
    return Space(tuple(
        Knob(name, tuple(str(n + 1) for n in range(size)), "1")
        for name, size in zip("abc", sizes, strict=False)
    ))  # fmt: skip


def bowl(space: Space, *bottom: int) -> Bowl:
    """Costs that grow with the distance from `bottom`."""
    return Bowl({
        tuple(t for _, t in sets):
            1.0 + sum((int(t) - at) ** 2 for (_, t), at in zip(sets, bottom, strict=True))
        for sets in space.all()
    })  # fmt: skip


def test_a_small_space_is_tried_as_a_whole_and_once() -> None:
    space = grid(4, 5)
    costs = bowl(space, 3, 2)
    trail = search(space, costs, joint(TIME), Limits())
    best = trail.best(joint(TIME))
    assert best is not None and best.sets == (("a", "3"), ("b", "2"))
    assert trail.complete and not trail.stopped and trail.left_out == 0
    assert len(costs.asked) == len(set(costs.asked)) == 20


def test_a_large_space_is_descended_and_says_what_was_left_out() -> None:
    space = grid(40, 40)
    costs = bowl(space, 17, 31)
    trail = search(space, costs, joint(TIME), Limits())
    best = trail.best(joint(TIME))
    assert best is not None and best.sets == (("a", "17"), ("b", "31"))
    assert not trail.complete and not trail.stopped
    assert trail.left_out == 1600 - len(costs.asked) > 0
    assert trail.descents == 3  # the defaults are the low corner


def test_exchanges_find_what_no_single_knob_reaches() -> None:
    # Only settings with a * b = 8 are taken, so changing one knob alone is always refused.
    space = Space((Knob("a", ("1", "2", "4", "8"), "1"), Knob("b", ("1", "2", "4", "8"), "8")))
    costs = Bowl({("1", "8"): 9.0, ("2", "4"): 5.0, ("4", "2"): 3.0, ("8", "1"): 7.0})
    trail = search(space, costs, joint(TIME), Limits(exhaustive=0))
    best = trail.best(joint(TIME))
    assert best is not None and best.sets == (("a", "4"), ("b", "2"))
    assert trail.refused == {"P201": len(costs.asked) - 4}


def test_a_start_that_is_refused_goes_towards_the_defaults() -> None:
    # Only a + b <= 12 is taken, and the best lies on that edge, behind a ridge from the low corner.
    space = Space(tuple(Knob(name, tuple(map(str, range(1, 11))), "1") for name in "ab"))
    costs = Bowl({
        tuple(t for _, t in sets): 1.0 if a == b == 6 else 5.0 - (a >= 5) * (b >= 5) + (a + b) / 100
        for sets in space.all()
        for a, b in [(int(sets[0][1]), int(sets[1][1]))]
        if a + b <= 12
    })  # fmt: skip
    trail = search(space, costs, joint(TIME), Limits(exhaustive=0))
    best = trail.best(joint(TIME))
    assert best is not None and best.sets == (("a", "6"), ("b", "6")) and not trail.complete


def test_the_limit_of_points_counts_what_was_simulated_and_is_said() -> None:
    space = Space((Knob("a", tuple("12345678"), "1"),))
    costs = Bowl({("1",): 3.0, ("4",): 2.0, ("6",): 1.0, ("8",): 9.0})
    trail = search(space, costs, joint(TIME), Limits(points=2))
    assert trail.stopped == "--points 2" and trail.simulated == 2
    assert [sets[0][1] for sets in trail.tried] == ["1", "2", "3", "4"] and trail.left_out == 4
    best = trail.best(joint(TIME))
    assert best is not None and best.sets == (("a", "4"),)
    assert (
        search(space, costs, joint(TIME), Limits(points=4)).stopped == ""
    )  # no limit was in the way


def test_the_limit_of_seconds_ends_the_search_and_is_said() -> None:
    space = grid(9)
    ticks = count()
    trail = search(
        space, bowl(space, 9), joint(TIME), Limits(seconds=3.0), clock=lambda: float(next(ticks))
    )
    assert trail.stopped == "--limit 3 s" and 0 < len(trail.tried) < 9
    assert trail.left_out == 9 - len(trail.tried)


def test_nothing_fits() -> None:
    trail = search(grid(3), Bowl({}), joint(TIME), Limits())
    assert trail.best(joint(TIME)) is None and trail.best(at_case(TIME, 0)) is None
    assert trail.refused == {"P201": 3} and trail.example("P201").reason == "needs 3 devices"


def test_cases_are_weighed_by_their_geometric_mean() -> None:
    # Twice as fast in one case, and 1.5 times as slow in the other: worth it.
    even = Attempt((("a", "1"),), (Cell(row(2.0)), Cell(row(2.0))))
    uneven = Attempt((("a", "2"),), (Cell(row(1.0)), Cell(row(3.0))))
    partly = Attempt((("a", "3"),), (Cell(row(0.1)), Cell(row(0.1, fits=False))))
    trail = Trail(grid(3), {a.sets: a for a in (even, uneven, partly)})
    assert trail.best(joint(TIME)) == uneven
    assert trail.best(at_case(TIME, 0)) == partly and trail.best(at_case(TIME, 1)) == even


def test_metrics() -> None:
    attempt = Attempt((), (Cell(row(2.0, memory=3.0)),))
    assert METRICS["tpot"].of(attempt.cells[0]) == 2.0
    assert METRICS["tps"].of(attempt.cells[0]) == pytest.approx(1 / 4.0)  # eight tokens in 2 s
    assert METRICS["memory"].of(attempt.cells[0]) == 3e9
    assert joint(TIME)(Attempt(())) == joint(TIME)(Attempt((), (Cell(None, "no"),))) == float("inf")


def test_attempts_travel_as_json() -> None:
    for attempt in (
        Attempt((("a", "1"),), (Cell(row(2.0)), Cell(None, "seq_len is outside")), meshes={"m": 4}),
        Attempt((("a", "2"),), code="P201", reason="x", same_as=(("a", "1"),)),
    ):
        assert attempt_of(attempt.json()) == attempt


COSTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12)


@given(COSTS)
@settings(max_examples=300, deadline=None)
def test_the_front_is_a_true_front(costs: list[tuple[int, int]]) -> None:
    items = list(enumerate(costs))
    front = pareto(items, lambda item: item[1])

    def beats(a: tuple[int, int], b: tuple[int, int]) -> bool:
        return a != b and a[0] <= b[0] and a[1] <= b[1]

    held = [cost for _, cost in front]
    assert not any(beats(a, b) for a in costs for b in held)
    assert all(any(beats(a, b) or a == b for a in held) for b in costs)
    assert len(set(held)) == len(held) and held == sorted(held)
    assert all(number == costs.index(cost) for number, cost in front)


SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))


@given(SHAPES, st.data())
@settings(max_examples=100, deadline=None)
def test_an_exhaustive_search_finds_the_least(shape: tuple[int, ...], data: st.DataObject) -> None:
    space = grid(*shape)
    values = st.one_of(st.none(), st.floats(0.1, 9.0))
    costs = {tuple(t for _, t in sets): data.draw(values) for sets in space.all()}
    table = Bowl({key: cost for key, cost in costs.items() if cost is not None})
    trail = search(space, table, joint(TIME), Limits())
    best = trail.best(joint(TIME))
    assert trail.complete and sum(trail.refused.values()) == len(costs) - len(table.costs)
    assert (best is None) == (not table.costs)
    if best is not None:
        assert table.costs[tuple(t for _, t in best.sets)] == min(table.costs.values())
