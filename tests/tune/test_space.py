"""Which values of a plan's parameters are looked at, and in which order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plancc.dsl import Source
from plancc.dsl.declared import Declared, declared_params
from plancc.tune.forms import TuneError
from plancc.tune.space import Knob, Space, read_values, space_of

TEXT = """plan p, edition 1
param tp = 6 in 1..64
param depth = 2 in 1..8
param step = 8 in 0..32 step 8
param kind = "GPipe" in ["GPipe", "1F1B"]
param fast = false
param free = 3
param some = [1, 2]
"""


def params() -> tuple[Declared, ...]:
    found, report = declared_params(Source("p.plan", TEXT))
    assert report.ok
    return found


def test_values_that_fit_the_devices_come_first() -> None:
    space = space_of(params(), 12, {}, {})
    knobs = {knob.name: knob for knob in space.knobs}
    # Divisors of 12, powers of two up to 12, then what is beyond; the default 6 is a divisor.
    assert knobs["tp"].values == ("1", "2", "3", "4", "6", "12", "8", "16", "32", "64")
    assert knobs["tp"].left_out == 54 and knobs["tp"].start == "6"
    assert knobs["depth"].values == tuple("12345678") and knobs["depth"].left_out == 0
    assert knobs["step"].values == ("0", "8", "16", "24", "32")
    assert knobs["kind"].values == ("GPipe", "1F1B") and knobs["fast"].values == ("true", "false")
    assert space.skipped == ("free", "some")
    assert space.size == 10 * 8 * 5 * 2 * 2 == len(set(space.all()))


def test_what_is_fixed_is_no_knob_and_what_is_named_has_those_values() -> None:
    space = space_of(
        params(), 8, {"tp": "4", "kind": "GPipe"}, {"free": ["1", "2"], "depth": ["3", "1", "3"]}
    )
    knobs = {knob.name: knob for knob in space.knobs}
    assert "tp" not in knobs and "kind" not in knobs
    assert knobs["free"] == Knob("free", ("1", "2"), "1")
    assert knobs["depth"] == Knob("depth", ("3", "1"), "3")


@pytest.mark.parametrize(
    ("fixed", "searched", "told"),
    [
        ({}, {"deph": ["1"]}, "cannot find parameter `deph`; did you mean `depth`?"),
        ({"nothing_like_it": "1"}, {}, "cannot find parameter `nothing_like_it`; the plan has tp, depth"),
        ({"tp": "1"}, {"tp": ["1"]}, "`tp` is both fixed by --set and searched"),
        ({}, {"tp": ["2", "65"]}, "`tp = 65` is outside its domain, 1..64"),
        ({}, {"step": ["4"]}, "`step = 4` is outside its domain, 0..32 step 8"),
        ({}, {"kind": ["gpipe"]}, "`kind = gpipe` is outside its domain, GPipe, 1F1B"),
        ({}, {"some": ["1"]}, "`some` is a list"),
    ],
)  # fmt: skip
def test_wrong_names_and_values(
    fixed: dict[str, str], searched: dict[str, list[str]], told: str
) -> None:
    with pytest.raises(TuneError) as problem:
        space_of(params(), 8, fixed, searched)
    assert told in str(problem.value)


def test_starts_lines_and_exchanges() -> None:
    space = Space((Knob("a", ("4", "1", "2"), "2"), Knob("b", ("x", "y"), "x")))
    assert space.starts() == [
        (("a", "2"), ("b", "x")), (("a", "1"), ("b", "x")), (("a", "4"), ("b", "y")),
    ]  # fmt: skip
    at = (("a", "2"), ("b", "x"))
    assert [[sets[0][1] + sets[1][1] for sets in line] for line in space.lines(at)] == [
        ["4x", "1x", "2x"], ["2x", "2y"],
    ]  # fmt: skip
    # a up to 4 would need b below x; a down to 1 goes with b up to y.
    assert space.exchanges(at) == [(("a", "1"), ("b", "y"))]
    assert space.nearer(at) == at
    assert space.nearer((("a", "4"), ("b", "y"))) == at
    assert space.distance(at) == (0, 0) and space.distance((("a", "1"), ("b", "y"))) == (2, 2)


def test_values_of_a_search_option() -> None:
    assert read_values("1,2, 4") == ("1", "2", "4")
    assert read_values("1..4") == ("1", "2", "3", "4")
    assert read_values("0..32 step 8,5") == ("0", "8", "16", "24", "32", "5")
    assert read_values("64MB,1F1B") == ("64MB", "1F1B")
    for wrong in ("", "1,,2", "a..b", "4..1", "1..9 step 0", "1..", "1..99999999999999999999"):
        with pytest.raises(TuneError):
            read_values(wrong)


@given(st.integers(1, 200), st.integers(0, 300), st.integers(1, 9), st.integers(1, 128), st.data())
def test_every_value_is_in_the_domain_and_the_default_among_them(
    lo: int, more: int, step: int, devices: int, data: st.DataObject
) -> None:
    whole = range(lo, lo + more + 1, step)
    start = str(data.draw(st.sampled_from(whole)))
    param = Declared("n", "int", start, (lo, lo + more, step))
    (knob,) = space_of((param,), devices, {}, {}).knobs
    assert all(text in param for text in knob.values) and start in knob.values
    assert len(set(knob.values)) == len(knob.values) == len(whole) - knob.left_out
    assert all(str(n) in knob.values for n in whole if devices % n == 0 or n & (n - 1) == 0)
