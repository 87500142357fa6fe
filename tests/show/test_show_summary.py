"""The summary in a terminal: bars that add up, who waits for whom, memory against budgets."""

from __future__ import annotations

import io

import pytest
from hand_timelines import ping_pong, pipeline, pool, with_title

from plancc.show.summary import speaks_unicode, summary
from plancc.simulator.forms import COMPUTE, Actor, Span, Timeline


def test_a_bar_is_as_long_as_its_times() -> None:
    """Two halves of a second and a quarter of nothing, on 40 columns."""
    spans = (
        Span(0, COMPUTE, "a", "matmul", 0, 0.5), Span(0, COMPUTE, "wait for b", "wait", 0.5, 0.75),
        Span(1, COMPUTE, "b", "all_reduce", 0, 1.0, "layers.3.mlp", "tp.plan:7"),
    )  # fmt: skip
    timeline = Timeline("t", True, (Actor("a", (0,), "m"), Actor("b", (1,), "m")), spans)
    found = summary(timeline, width=60, unicode=False).splitlines()
    rows = [line for line in found if "|" in line]
    bars = [line.split("|")[1] for line in rows]
    room = len(bars[0])
    assert bars[0].count("M") == round(room / 2) and bars[0].count(" ") == pytest.approx(
        room / 4, abs=1
    )
    assert bars[1] == "=" * room
    assert found[0] == "t: 1.00 s predicted, 2 ranks"
    assert rows[0].endswith("50% busy") and rows[1].endswith("100% busy")
    assert "   250 ms  a: wait for b" in found


@pytest.mark.parametrize("width", [60, 61, 80, 133, 160, 400, 10])
@pytest.mark.parametrize("timeline", [pipeline(), pool(), ping_pong()], ids=lambda t: t.title)
def test_no_line_is_wider_than_asked_for(timeline: Timeline, width: int) -> None:
    most = min(max(width, 60), 160)
    found = summary(timeline, width=width, unicode=True, budgets={"base": 10**9}).splitlines()
    assert max(map(len, found)) <= most
    bars = {len(line.partition("|")[2].partition("|")[0]) for line in found if "|" in line}
    assert len(bars) == 1


def test_plain_terminals_get_ascii() -> None:
    found = summary(with_title(pipeline(), "größer — µ"), unicode=False, width=100)
    assert found.isascii() and found.startswith("gr??er ? ?: 142 ms predicted, 4 ranks\n")
    assert "39.6 ms" in found and "M matrix product" in found


def test_many_ranks_are_folded_into_their_meshes() -> None:
    found = summary(pool(), width=100, unicode=True)
    assert "base (8 ranks)" in found and "fa (32 ranks)" in found and "base rank 3 " not in found
    assert "fa rank 8 and 31 others: wait for base rank 7" in found
    assert "in 16" in found and "layers.*.self_attn, fa_pool.plan:38" in found


def test_memory_against_the_budget() -> None:
    found = summary(pipeline(), width=120, unicode=True, budgets={"base": 28 * 10**9})
    assert "base: 14.0 GB at 34.1 ms on base rank 0, 50.0 % of the budget of 28.0 GB\n" in found
    over = summary(pipeline(), width=120, unicode=True, budgets={"base": 7 * 10**9})
    assert "200.0 % of the budget of 7.00 GB OVER BUDGET" in over
    assert "budget" not in summary(pipeline(), width=120)


def test_what_a_terminal_can_write() -> None:
    assert speaks_unicode(io.TextIOWrapper(io.BytesIO(), "utf-8"))
    assert not speaks_unicode(io.TextIOWrapper(io.BytesIO(), "ascii"))
    assert not speaks_unicode(io.TextIOWrapper(io.BytesIO(), "latin-1"))


def test_nothing_happened() -> None:
    found = summary(Timeline("empty", False, (Actor("a", (0,)),), ()), width=60, unicode=False)
    assert found.startswith("empty: 0 s measured, 1 rank\n") and "waits" not in found
