"""Charts as SVG: values stand where the scales say, axes are round, texts are escaped."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plancc.show.plot import (
    COLOURS,
    LEFT,
    MARKS,
    TOP,
    Axis,
    Bars,
    Chart,
    Key,
    Line,
    Scale,
    ends,
    picture,
    round_step,
    ticks,
)

SVG = "{http://www.w3.org/2000/svg}"


def parsed(text: str) -> ElementTree.Element:
    """The picture as XML."""
    return ElementTree.fromstring(text)


def words(text: str) -> list[str]:
    """All texts of a picture."""
    return [node.text or "" for node in parsed(text).iter(f"{SVG}text")]


def points(text: str) -> list[list[tuple[float, float]]]:
    """The corners of its curves."""
    return [
        [tuple(map(float, pair.split(","))) for pair in node.attrib["points"].split()]  # type: ignore[misc]
        for node in parsed(text).iter(f"{SVG}polyline")
    ]


def test_values_stand_where_the_scales_say() -> None:
    """From 0 to 10 over 250 pixels: 5 is in the middle, and x from 1 to 3 spans the width."""
    text = picture([Chart("t", [Line("a", [(1, 0), (2, 5), (3, 10)])])], width=960)
    ((a, b, c),) = points(text)
    assert a == (LEFT, TOP + 250) and c[1] == TOP and b[1] == TOP + 125
    assert b[0] == pytest.approx((a[0] + c[0]) / 2)


def test_a_logarithmic_axis() -> None:
    """Of 1e-2, 1, 1e4 the second is a third up."""
    chart = Chart("t", [Line("a", [(0, 1e-2), (1, 1.0), (2, 1e4)])], y=Axis(log=True))
    ((a, b, c),) = points(picture([chart]))
    assert (a[1] - b[1]) / (a[1] - c[1]) == pytest.approx(1 / 3, abs=0.01)
    assert [text for _, text in ticks(chart.y, Scale(1e-2, 1e4, 0, 1, True), 6)] == [
        "0.01", "0.1", "1", "10", "100", "1000", "10000"
    ]  # fmt: skip
    far = [text for _, text in ticks(Axis(log=True), Scale(1e-16, 1, 0, 1, True), 6)]
    assert far[0] == "1e-16" and far[-1] == "1e0" and len(far) <= 9
    near = ticks(Axis(log=True), Scale(2, 5, 0, 1, True), 6)
    assert near == [(2, "2"), (5, "5")]


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="a logarithmic axis cannot show 0"):
        picture([Chart("t", [Line("a", [(0, 0.0), (1, 1)])], y=Axis(log=True))])
    with pytest.raises(ValueError, match="a chart without values"):
        picture([Chart("t")])


def test_bars_begin_at_nothing() -> None:
    """Two sets over three labels: six bars, as high as their values, from 0."""
    chart = Chart("t", bars=[Bars("p", [1, 2, 4]), Bars("m", [2, 2, 3])], labels=["x", "y", "z"])
    text = picture([chart])
    bars = [node.attrib for node in list(parsed(text).iter(f"{SVG}rect"))[1:]]
    heights = [float(bar["height"]) for bar in bars]
    assert len(bars) == 6 and heights[2] == pytest.approx(4 * heights[0], abs=0.2)
    assert {bar["fill"] for bar in bars} == set(COLOURS[:2])
    lefts = sorted((float(bar["x"]), float(bar["width"])) for bar in bars)
    assert all(x + w <= y + 0.2 for (x, w), (y, _) in pairwise(lefts))
    assert {"x", "y", "z", "p", "m", "4"} <= set(words(text))


def test_legend_names_each_once_and_not_by_colour_alone() -> None:
    lines = [Line(name, [(0, n), (1, n + 1)]) for n, name in enumerate("abcde")]
    text = picture([Chart("one", lines), Chart("two", lines)])
    assert [words(text).count(name) for name in "abcde"] == [1] * 5
    for at in range(4):
        assert COLOURS[at] in text
    assert text.count("<circle") == 2 * 2 * 2 + 2 and len(MARKS) == 4
    keys = picture([Chart("one", lines)], [Key("other", "#123456")])
    assert "other" in words(keys) and "a" not in words(keys)


def test_limits_and_texts() -> None:
    chart = Chart(
        "<b>&", [Line("<i>", [(0, 1), (1, 2)])], x=Axis("steps <x>"), y=Axis("s", low=0, high=4),
        limits=[(3, "most")],
    )  # fmt: skip
    text = picture([chart])
    assert {"<b>&", "<i>", "steps <x>", "s", "most"} <= set(words(text))
    across = re.search(r'y1="([\d.]+)"[^>]*stroke="#cc0000"', text)
    assert across is not None and float(across[1]) == TOP + 250 * (1 - 3 / 4)


def test_values_outside_the_ends_stand_at_them() -> None:
    chart = Chart("t", [Line("a", [(0, -5), (1, 50)])], y=Axis(low=0, high=10))
    ((a, b),) = points(picture([chart]))
    assert (a[1], b[1]) == (TOP + 250, TOP)


numbers = st.floats(-1e12, 1e12, allow_nan=False).filter(lambda v: v == 0 or abs(v) > 1e-9)


@given(st.lists(numbers, min_size=1, max_size=20))
def test_ends_hold_all_values_and_few_round_ticks(values: list[float]) -> None:
    low, high = ends(Axis(), values, True)
    assert low <= min(values) and max(values) <= high and low < high
    found = ticks(Axis(), Scale(low, high, 0, 1), 6)
    assert 1 <= len(found) <= 9


@given(st.floats(1e-9, 1e12), st.integers(1, 12))
def test_steps_are_round(room: float, count: int) -> None:
    step = round_step(room, count)
    assert step * count >= room * 0.99
    assert float(f"{step:.6e}"[0]) in (1, 2, 5)


def test_the_same_data_are_the_same_text() -> None:
    chart = Chart("t", [Line("a", [(n / 7, n * n / 3) for n in range(50)])])
    assert picture([chart]) == picture([chart]) and picture([chart]).endswith("</svg>\n")
