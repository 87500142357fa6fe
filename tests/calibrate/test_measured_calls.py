"""Measured calls: their points are met, and what lies between and beside them is reasonable."""

from __future__ import annotations

from copy import deepcopy
from itertools import pairwise
from math import log
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import findings

from plancc.calibrate.document import document
from plancc.simulator.cluster import parse_cluster
from plancc.simulator.forms import Work
from plancc.simulator.hardware_forms import ClusterError, MeasuredCalls, isotone

SIZE, SECONDS = st.floats(1, 1e12), st.floats(1e-7, 1e3)
PRODUCTS = st.lists(
    st.tuples(SIZE, SIZE, SECONDS), min_size=1, max_size=9, unique_by=lambda p: (p[0], p[1])
)


def roofline(flops: float, size: float) -> float:
    """What constants say."""
    return 1e-6 + flops / 1e11 + size / 1e10


@settings(max_examples=100, deadline=None)
@given(PRODUCTS, SIZE, SIZE)
def test_products_meet_their_points_and_stay_between_the_ratios(
    points: list[tuple[float, float, float]], flops: float, size: float
) -> None:
    calls = MeasuredCalls.of_points(points)
    for f, b, seconds in points:
        near = [p for p in points if abs(log(p[0] / f)) + abs(log(p[1] / b)) < 1e-6]
        if len(near) == 1:
            assert calls.at(f, b, roofline) == pytest.approx(seconds, rel=1e-6)
    ratios = [seconds / roofline(f, b) for f, b, seconds in points]
    found = calls.at(flops, size, roofline) / roofline(flops, size)
    assert min(ratios) * (1 - 1e-9) <= found <= max(ratios) * (1 + 1e-9)


def test_halfway_between_two_products_their_ratios_count_alike() -> None:
    points = [(1e6, 1e6, 2 * roofline(1e6, 1e6)), (1e8, 1e6, 8 * roofline(1e8, 1e6))]
    calls = MeasuredCalls.of_points(points)
    assert calls.at(1e7, 1e6, roofline) == pytest.approx(4 * roofline(1e7, 1e6))
    assert calls.outside(1e7, 1e6) == ""
    assert "FLOPs: outside the measured 1e+06 to 1e+08" in calls.outside(1e9, 1e6)
    assert "bytes: outside" in calls.outside(1e7, 1e7)


def test_what_falls_is_levelled() -> None:
    """1, 4, 1, 9: the middle two become their geometric mean."""
    found = isotone([(1, 1.0), (2, 4.0), (4, 1.0), (8, 9.0)])
    assert [size for size, _ in found] == [1, 2, 4, 8]
    assert [seconds for _, seconds in found] == pytest.approx([1, 2, 2, 9])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(SIZE, SECONDS), min_size=1, max_size=9, unique_by=lambda p: p[0]))
def test_levelled_points_never_fall_and_keep_their_mean(points: list[tuple[float, float]]) -> None:
    found = isotone(points)
    assert all(a[1] <= b[1] * (1 + 1e-9) for a, b in pairwise(found))
    assert sum(log(s) for _, s in found) == pytest.approx(sum(log(s) for _, s in points), abs=1e-6)
    rising = sorted(points)
    if all(a[1] <= b[1] for a, b in pairwise(rising)):
        assert [s for _, s in found] == pytest.approx([s for _, s in rising])


def changed(**calls: Any) -> dict[str, Any]:
    """The file of a known machine with other calls."""
    raw = deepcopy(document(findings()))
    raw["kinds"]["core"]["calls"] = calls
    return raw


def test_an_operator_counts_before_its_kind_of_work() -> None:
    rows = {"add": {"f32": [[0, 1000, 1e-3]]}, "memory": {"f32": [[0, 1000, 5e-3]]}}
    hardware = parse_cluster(changed(**rows)).place([0])
    work = Work("memory", 0, 1000, 0, "f32")
    assert hardware.seconds(0, work, "add") == pytest.approx(1e-3)
    assert hardware.seconds(0, work, "erf") == pytest.approx(5e-3)
    # bytes are bytes: another type takes the rows that there are
    assert hardware.seconds(0, Work("memory", 0, 1000, 0, "i64"), "add") == pytest.approx(1e-3)
    # products without rows go by the constants
    assert hardware.seconds(0, Work("matmul", 10**6, 1000, 0, "f32")) > 0
    assert not hardware.assumptions
    hardware.seconds(0, Work("memory", 0, 10**6, 0, "f32"), "add")
    assert "add of f32, bytes: outside the measured 1000 to 1000" in hardware.assumptions[0]


@pytest.mark.parametrize(
    "calls, told",
    [
        ({"memory": {"f32": [[5, 1000, 1e-3]]}}, "calls.memory.f32: rows of memory have no FLOPs"),
        ({"matmul": {"f32": [[0, 1000, 1e-3]]}}, "calls.matmul.f32: rows of matmul have FLOPs"),
        ({"matmul": {"f32": [[5, 9, 1e-3], [0, 9, 1e-3]]}}, "calls.matmul.f32: some rows have"),
        ({"add": {"f32": [[0, 1000]]}}, "calls.add.f32.0"),
        ({"add": {"int8": [[0, 1000, 1e-3]]}}, "calls.add.int8: unknown"),
        ({"add": {"f32": []}}, "calls.add.f32"),
    ],
)
def test_wrong_rows_are_named(calls: Any, told: str) -> None:
    with pytest.raises(ClusterError, match=r"kinds\.core") as caught:
        parse_cluster(changed(**calls))
    assert told in str(caught.value)


def test_seconds_of_python_have_known_names() -> None:
    raw = deepcopy(document(findings()))
    raw["kinds"]["core"]["host"] = {"steps": {"value": 1e-4, "source": "x"}}
    with pytest.raises(ClusterError, match="did you mean `step`"):
        parse_cluster(raw)


def test_an_ideal_machine_has_no_python_and_nothing_measured() -> None:
    raw = deepcopy(document(findings()))
    raw["kinds"]["core"]["host"] = {"step": {"value": 1e-4, "source": "x"}}
    hardware = parse_cluster(raw).preset("ideal").place([0])
    assert hardware.host(0, "step") == 0
    assert not hardware.measured(0, Work("memory", 0, 8, 0, "f32"), "add")
