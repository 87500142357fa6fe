"""Numbers out of timelines: shares of time, waits, peaks, traffic between meshes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hand_timelines import MS, pipeline, pool
from hypothesis import given
from hypothesis import strategies as st

from plancc.dsl.errors import Bug
from plancc.show.facts import (
    any_layer,
    by_actor,
    by_family,
    by_title,
    longest_waits,
    mean_by_kind,
    peaks,
    time_by_kind,
    totals,
    traffic_by_mesh,
    who_waits,
)
from plancc.show.kinds import COMMUNICATION, COMPUTE, IDLE, KINDS, WAIT, kernel_name, kind_of
from plancc.simulator.forms import COMMUNICATION as BESIDE
from plancc.simulator.forms import COMPUTE as MAIN
from plancc.simulator.forms import Actor, Span, Timeline


def span(
    begin: float, end: float, kind: str = "matmul", stream: str = MAIN, **facts: object
) -> Span:
    """A span of actor 0."""
    return Span(0, stream, str(facts.pop("name", kind)), kind, begin, end, **facts)  # type: ignore[arg-type]


def test_what_computes_hides_what_communicates() -> None:
    """Of a sum from 2 to 6 under products until 4, two seconds are exposed; then 1 s wait, 3 s nothing."""
    spans = [
        span(0, 4), span(2, 6, "all_reduce", BESIDE), span(6, 7, "wait"),
    ]  # fmt: skip
    assert time_by_kind(spans, 10.0) == {"matmul": 4, "all_reduce": 2, "wait": 1, IDLE: 3}
    assert by_family(time_by_kind(spans, 10.0)) == {COMPUTE: 4, COMMUNICATION: 2, WAIT: 1, IDLE: 3}


@st.composite
def streams(draw: st.DrawFn) -> list[Span]:
    """Spans with whole seconds, in two streams that do not overlap themselves."""
    found = []
    for stream in (MAIN, BESIDE):
        at = 0
        for _ in range(draw(st.integers(0, 6))):
            at += draw(st.integers(0, 3))
            wide = draw(st.integers(0, 4))
            found.append(span(at, at + wide, draw(st.sampled_from(sorted(KINDS))), stream))
            at += wide
    return found


@given(streams())
def test_times_are_those_counted_second_by_second(spans: list[Span]) -> None:
    whole = max((s.end for s in spans), default=0) + 2
    expected: dict[str, float] = {}
    order = {COMPUTE: 0, COMMUNICATION: 1, WAIT: 2}
    for second in range(int(whole)):
        here = [s.kind for s in spans if s.begin <= second < s.end]
        families = sorted(here, key=lambda kind: order[kind_of(kind).family])
        family = kind_of(families[0]).family if families else IDLE
        expected[family] = expected.get(family, 0) + 1
    found = by_family(time_by_kind(spans, whole))
    assert {k: v for k, v in found.items() if v} == pytest.approx(expected)
    assert sum(found.values()) == pytest.approx(whole)


@pytest.mark.parametrize("timeline", [pipeline(), pool()], ids=["pipeline", "pool"])
def test_means_add_up_to_the_step(timeline: Timeline) -> None:
    assert sum(mean_by_kind(timeline).values()) == pytest.approx(timeline.seconds)


def test_a_row_that_stands_for_many_ranks_counts_as_many() -> None:
    """Three ranks of one actor compute 4 of 10 s, a fourth one all the time: a mean of 5.5 s."""
    actors = (Actor("a", (0, 1, 2)), Actor("b", (3,)))
    spans = (
        Span(0, MAIN, "x", "matmul", 0, 4, flops=10), Span(1, MAIN, "y", "matmul", 0, 10, flops=1)
    )  # fmt: skip
    found = totals(Timeline("t", True, actors, spans, {}, {(0, 3): 7, (3, 0): 5}))
    assert found[COMPUTE] == 5.5 and found[IDLE] == 4.5 and found["ranks"] == 4
    assert found["flops"] == 31 and found["sent"] == 12 and found["memory"] == 0


def test_waits_of_all_layers_and_of_ranks_alike_are_one() -> None:
    """Ranks 0 and 1 wait 2 s in each of two layers, rank 2 once for 3 s."""
    spans = [
        Span(rank, MAIN, "wait for c", "wait", at, at + 2, f"layers.{layer}.mlp", "p.plan:4")
        for rank in (0, 1)
        for layer, at in ((0, 0.0), (1, 5.0))
    ]
    spans.append(Span(2, MAIN, "wait for c", "wait", 0, 3, "layers.0.mlp", "p.plan:4"))
    actors = tuple(Actor(name, (rank,)) for rank, name in enumerate("abc"))
    timeline = Timeline("t", True, actors, tuple(spans))
    first, second = longest_waits(timeline)
    assert (first.seconds, first.count, first.actors) == (4, 2, (0, 1))
    assert (first.path, first.line, who_waits(timeline, first)) == (
        "layers.*.mlp", "p.plan:4", "a and 1 other",
    )  # fmt: skip
    assert (second.seconds, second.path, who_waits(timeline, second)) == (3, "layers.0.mlp", "c")
    assert longest_waits(timeline, 1) == [first]


def test_the_first_stage_waits_for_the_second() -> None:
    """Of the pipeline made by hand: from its last forward to the first gradient."""
    found = longest_waits(pipeline())[0]
    assert found.name == "wait for base rank 1" and found.seconds == pytest.approx(
        39.6 * MS, abs=MS
    )


def test_layers_are_numbers_between_dots() -> None:
    assert any_layer("layers.12.mlp.experts.3") == "layers.*.mlp.experts.*"
    assert (
        any_layer("receive add_l3_0of2") == "receive add_l*_0of2"
        and any_layer("add_l12") == "add_l*"
    )
    assert any_layer("block2.conv_last2") == "block2.conv_last2" and any_layer("") == ""


def test_peaks_know_their_budgets() -> None:
    timeline = Timeline(
        "t", True, (Actor("a", (0,), "m"), Actor("b", (1,), "n")), (), {0: ((0, 3), (1, 9), (2, 4))}
    )
    (found,) = peaks(timeline, {"m": 8})
    assert (found.bytes, found.at, found.budget) == (9, 1, 8)


def test_traffic_between_meshes() -> None:
    found = traffic_by_mesh(pool(2, 3, 1))
    assert found["base", "fa"] == 2 * 3 * 2**20 and found["base", "base"] == 2 * 2**22
    assert found["fa", "fa"] == 3 * 2 * 2**19


def test_predicted_stands_before_measured() -> None:
    one, other = pipeline(predicted=False), pipeline()
    assert by_title([one, other]) == {one.title: [other, one]}


def test_unknown_kinds_are_bugs() -> None:
    with pytest.raises(Bug, match="no span is of kind 'sleep'"):
        kind_of("sleep")
    assert (
        kernel_name("all_to_all", "x") == "ncclDevKernel_SendRecv"
        and kernel_name("matmul", "x") == "x"
    )


def test_spans_stand_by_actor() -> None:
    found = by_actor(pipeline(2, 2))
    assert {span.actor for span in found[1]} == {1} and sum(map(len, found)) == len(
        pipeline(2, 2).spans
    )
    assert all(a.begin <= b.begin for spans in found for a, b in pairwise(spans))
