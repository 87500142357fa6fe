"""Sizes of pools as if guards gave them, and from where a pool pays: on a plan whose answer is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest
from toy_cluster import toy

from plancc.dsl import load_plan
from plancc.dsl.declared import declared_params
from plancc.ir.graph import Graph
from plancc.simulator.cluster import Cluster
from plancc.simulator.rows import make_row
from plancc.tune.bench import Bench
from plancc.tune.forms import Case, TuneError
from plancc.tune.pools import pool_sizes, regimes, setting_for, sizes_at, value_for
from plancc.tune.report import threshold_facts
from plancc.tune.space import Knob, space_of
from plancc.tune.text import threshold_text
from plancc.tune.threshold import Threshold, find_thresholds, threshold_knob

PLAN = """plan pooled, edition 1
param long = 64 in 8..256
param idle = 1 in 1..2
model m { batch in 1..64; seq_len in 1..512 }
mesh base[tp = 1 * idle / idle] on local[0:1]
pool fa[sp = 0..2] on local[1:3] { sp = 2 when seq_len > long }
place ** on base
when seq_len > long {
  place op attention in layers.*.self_attn on fa {
    split kv_seq over sp (block = ceil(seq_len / sp))
    combine out by logsumexp over sp
  }
}
"""
NONE, ONE, TWO = (("fa.sp", 0),), (("fa.sp", 1),), (("fa.sp", 2),)
LONG = Knob("long", ("8", "16", "32", "64", "128", "256"), "64")
Write = Callable[..., Path]


def bench(plan: Path, graph: Graph, cluster: Cluster, *cases: Case) -> Bench:
    return Bench(plan, graph, cluster, cases or (Case("decode", 1, 512),))


def threshold(plan: Path, graph: Graph, latency: float, batch: int = 1) -> Threshold:
    """On devices that read 1 GB/s and compute at once."""
    one = bench(plan, graph, toy(3, latency=latency, flops=1e15))
    (found,) = find_thresholds(one, LONG, "decode", (batch,), 16, 512)
    return found


def test_every_size_of_the_pool_is_simulated_wherever_guards_put_it(
    written: Write, graph: Graph
) -> None:
    case = Case("decode", 1, 100)
    one = bench(written(PLAN), graph, toy(3), case)
    found = regimes(one, (("long", "64"),), case)
    assert list(found) == [NONE, ONE, TWO]  # one device of the pool is no step of the plan
    for long, sizes in (("256", NONE), ("8", TWO)):
        plan, report = load_plan(one.plan, {"long": long})
        assert plan is not None and sizes_at(plan, case) == sizes
        subject = one.subject(one.compiled(plan, report))
        row, _ = make_row(subject, "decode", 1, 100)
        assert one.cell(found[sizes], case).row == replace(
            row, variant=found[sizes].unit("decode", 1, 100).variant.text
        )


def test_pool_sizes_tell_which_setting_gives_them(written: Write, graph: Graph) -> None:
    case = Case("decode", 1, 100)
    one = bench(written(PLAN), graph, toy(3, latency=1.0), case)
    found = pool_sizes(one, (("long", "64"),), case, (LONG,))
    assert [(p.sizes, p.taken, p.sets) for p in found] == [
        (NONE, False, (("long", "128"),)), (ONE, False, None), (TWO, True, (("long", "64"),)),
    ]  # fmt: skip
    assert all(p.cell.fits for p in found)
    times = [p.cell.row.seconds for p in found if p.cell.row is not None]
    assert times[0] == min(times)  # each message takes a second


def test_a_value_between_two_that_are_looked_at_is_found(written: Write, graph: Graph) -> None:
    case = Case("decode", 1, 100)
    text = PLAN.replace(
        "sp = 2 when seq_len > long }",
        "sp = 1 when seq_len > long; sp = 2 when seq_len > long + 10 }",
    )
    one = bench(written(text), graph, toy(3), case)
    # With one device only from 90 to 99: none of the values that are looked at.
    assert setting_for(one, (("long", "64"),), case, ONE, (LONG,)) == (("long", "96"),)


def test_halving_ends_where_no_value_gives_the_sizes() -> None:
    def taken(text: str) -> tuple[tuple[str, int], ...]:
        return NONE if int(text) > 50 else TWO

    assert value_for(("1", "100"), ONE, taken) is None
    assert value_for(("1", "100"), NONE, taken) == "100"
    assert value_for((), NONE, taken) is None


def test_a_pool_pays_at_once_where_messages_cost_nothing(written: Write, graph: Graph) -> None:
    found = threshold(written(PLAN), graph, 0.0)
    one, two = found.crossovers
    # One device of a pool reads as fast as the base alone; two read twice as fast.
    assert (one.sizes, one.closed, one.searched) == (ONE, inf, inf)
    assert (two.sizes, two.searched, two.lost) == (TWO, 0.0, False) and two.closed < 16
    assert found.best == "15" and found.seconds < found.own_seconds < found.base_seconds
    assert found.steps == ((16, TWO),)


def test_a_pool_never_pays_where_a_message_takes_a_second(written: Write, graph: Graph) -> None:
    found = threshold(written(PLAN), graph, 1.0)
    assert [c.searched for c in found.crossovers] == [inf, inf]
    # Twice a message, a gather and a reduction of a second: 4 s x 1 GB/s / (256 bytes x (1 - 1 / 2)).
    assert found.crossovers[1].hop == pytest.approx(4.0, rel=1e-5)
    assert found.crossovers[1].closed == pytest.approx(4e9 / 256 / 0.5, rel=1e-5)
    assert found.best == "256" and found.steps == ((16, NONE),)
    assert found.base_seconds < found.seconds < found.own_seconds  # 256 still borrows above it


def test_between_them_the_crossover_is_where_the_two_variants_are_equal(
    written: Write, graph: Graph
) -> None:
    plan = written(PLAN)
    found = threshold(plan, graph, 3e-6)
    at = int(found.crossovers[1].searched)
    assert 16 < at < 256 and found.crossovers[1].closed == pytest.approx(at, rel=0.3)
    one = bench(plan, graph, toy(3, latency=3e-6, flops=1e15))

    def seconds(long: str, seq_len: int) -> float:
        resolved, report = load_plan(plan, {"long": long})
        assert resolved is not None
        row, _ = make_row(one.subject(one.compiled(resolved, report)), "decode", 1, seq_len)
        assert row.seconds is not None
        return row.seconds

    assert seconds("8", at) < seconds("256", at)  # the pool is taken with 8, not with 256
    assert seconds("8", at - 2) > seconds("256", at - 2)
    assert found.best == str(at - 1) and found.steps[0] == (16, NONE) and found.steps[1][1] == TWO
    assert found.seconds <= min(found.own_seconds, found.base_seconds)


def test_what_decides_is_tokens_not_length(written: Write, graph: Graph) -> None:
    one, four = (threshold(written(PLAN), graph, 3e-6, batch) for batch in (1, 4))
    lengths = [t.crossovers[1].searched for t in (one, four)]
    assert lengths[0] > 3 * lengths[1]  # four sequences need about a quarter of the length
    closed = [t.crossovers[1].closed for t in (one, four)]
    assert closed[1] == pytest.approx(closed[0], rel=0.15)  # but for the bytes of the hop


def test_lengths_at_which_nothing_fits_are_left_out_and_said(written: Write, graph: Graph) -> None:
    # 64 sequences of 512 tokens hold 8.4 MB of cache, half of it on each device of the pool.
    plan = written(PLAN)
    one = bench(plan, graph, toy(3, memory=3e6, flops=1e15))
    (found,) = find_thresholds(one, LONG, "decode", (64,), 16, 512)
    assert found.left_out and min(found.left_out) > 100
    assert 16 < found.full < 512 and found.base_seconds == inf
    text = threshold_text(threshold_facts(one, (found,)))
    assert "nothing fits at" in text and "on the base alone does not fit in memory" in text


def test_the_parameter_that_moves_the_pool_is_found(written: Write, graph: Graph) -> None:
    one = bench(written(PLAN), graph, toy(3))
    params, _ = declared_params(one.plan)
    assert threshold_knob(one, space_of(params, 3, {}, {}).knobs, "decode").name == "long"
    with pytest.raises(TuneError, match="no parameter moves"):
        threshold_knob(one, space_of(params, 3, {"long": "64"}, {}).knobs, "decode")
    two = bench(
        written(PLAN.replace("seq_len > long", "seq_len > long * idle"), "q.plan"), graph, toy(3)
    )
    with pytest.raises(TuneError, match="several parameters move the pool: long, idle"):
        threshold_knob(two, space_of(declared_params(two.plan)[0], 3, {}, {}).knobs, "decode")


def test_a_plan_without_a_pool_has_no_threshold(written: Write, graph: Graph) -> None:
    text = "plan p, edition 1\nparam long = 1 in 1..2\nmesh base[tp = long] on local\nplace ** on base\n"
    one = bench(written(text), graph, toy(3))
    with pytest.raises(TuneError, match="a threshold needs a pool"):
        find_thresholds(one, Knob("long", ("1", "2"), "1"), "decode", (1,), 16, 512)


def test_a_batch_that_leaves_no_lengths_is_refused(written: Write, graph: Graph) -> None:
    text = PLAN.replace("seq_len in 1..512", "seq_len in 1..512; tokens in 1..1024")
    one = bench(written(text), graph, toy(3))
    with pytest.raises(
        TuneError, match="with batch 64 the plan and the model admit no length beyond 16"
    ):
        find_thresholds(one, LONG, "decode", (64,), 16, 512)
