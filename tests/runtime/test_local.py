"""Ranks as threads: every verb against plain sums, determinism, and how runs end badly."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time

import pytest
import rank_entries
import torch

from plancc.runtime.failure import RankFailure, shortest_cycle
from plancc.runtime.local import run_local

pytestmark = pytest.mark.usefixtures("no_thread_left")


@pytest.fixture
def no_thread_left():
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def run(world, entry, payload=None, describe=None):
    return run_local(world, lambda t: entry(t, payload or {}), describe=describe)


def plan_line(rank, instruction):
    return f"step {instruction}, some.plan:{instruction + 10}"


@pytest.mark.parametrize("size", range(1, 25))
def test_every_verb_over_every_group_size(size):
    dtypes = rank_entries.DTYPES if size in (2, 3, 6) else ("float64", "bfloat16")
    run(size, rank_entries.all_verbs, {"dtypes": dtypes})


def test_a_group_inside_a_larger_world():
    run(9, rank_entries.all_verbs, {"group": [1, 2, 5, 8]})


def test_counters_count_whole_messages_and_no_groups_of_one():
    def body(t):
        x = torch.ones(6, 4, dtype=torch.float64)
        t.all_reduce(x, (t.rank,), 0)
        t.all_reduce(x, (0, 1, 2), 1)
        t.all_gather(x, (0, 1, 2), [(6, 4)] * 3, 2)
        t.reduce_scatter([x[:1], x[1:3], x[3:]], (0, 1, 2), 3)
        t.exchange([((t.rank + 1) % 3, x[:2])], [((t.rank - 1) % 3, (2, 4), x.dtype)], 4)
        return t.counters.calls, t.counters.bytes

    calls, sizes = run_local(3, body)[0]
    assert calls == dict.fromkeys(("all_reduce", "all_gather", "reduce_scatter", "exchange"), 1)
    assert sizes == {"all_reduce": 192, "all_gather": 576, "reduce_scatter": 192, "exchange": 64}


def test_sums_are_bitwise_repeatable():
    def body(t):
        x = torch.randn(1000, generator=torch.Generator().manual_seed(t.rank))
        for at in range(3):
            x = t.all_reduce(x / 3, tuple(range(12)), at)
        return x

    first, second = run_local(12, body), run_local(12, body)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(first[0], other) for other in first)


def test_far_ahead_sender():
    run(2, rank_entries.far_ahead, {"count": 50, "size": 100})


def test_overlapping_groups():
    groups = [[0, 1], [1, 2], [0, 1, 2, 3], [2, 3], [0, 3], [0, 1]]
    run(4, rank_entries.many_groups, {"groups": groups})


def test_grad_mode_is_each_ranks_own():
    def body(t):
        if t.rank % 2:
            torch.set_grad_enabled(False)
        t.barrier((0, 1, 2, 3), 0)
        t.all_reduce(torch.ones(1, requires_grad=True), (0, 1, 2, 3), 1)
        return torch.is_grad_enabled()

    assert run_local(4, body) == [True, False, True, False]
    with torch.no_grad():
        assert run_local(2, lambda t: torch.is_grad_enabled()) == [False, False]
    with torch.inference_mode():
        assert run_local(2, lambda t: torch.is_inference_mode_enabled()) == [True, True]
        total = run_local(2, lambda t: t.all_reduce(torch.ones(1), (0, 1), 0))[0]
    assert not total.is_inference()


def test_collectives_inside_backward():
    class Sum(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, t):
            ctx.t = t
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return ctx.t.all_reduce(grad, (0, 1, 2), 1), None

    def body(t):
        x = torch.ones(2, requires_grad=True)
        (Sum.apply(x, t) * (t.rank + 1)).sum().backward()
        return x.grad.tolist()

    assert run_local(3, body) == [[6.0, 6.0]] * 3


def test_many_ranks_and_cost_of_a_call():
    def body(t):
        x, group = torch.ones(4), tuple(range(t.world))
        for at in range(50):
            t.all_reduce(x, group, at)

    run_local(40, body)
    start = time.perf_counter()
    run_local(128, body)
    cost = (time.perf_counter() - start) / 50 / 128
    print(f"one call of one rank: {cost * 1e6:.1f} us")
    assert cost < 1e-3


def test_deadlock_is_reported_as_a_cycle():
    with pytest.raises(RankFailure) as caught:
        run(3, rank_entries.deadlock, {"how": "cycle"}, plan_line)
    assert str(caught.value) == (
        "rank 0 is in a deadlock at instruction 7 (step 7, some.plan:17): "
        "rank 0 waits at instruction 7 (step 7, some.plan:17) for rank 1; "
        "rank 1 waits at instruction 7 (step 7, some.plan:17) for rank 2; "
        "rank 2 waits at instruction 7 (step 7, some.plan:17) for rank 0"
    )


def test_collectives_in_another_order_are_a_cycle():
    def body(t):
        if t.rank == 0:
            t.barrier((0, 1), 3)
        else:
            t.barrier((0, 1, 2), 4)

    with pytest.raises(RankFailure, match="rank 0 waits at instruction 3 for rank 1; rank 1 waits"):
        run_local(3, body)


def test_waiting_for_a_rank_that_has_finished():
    with pytest.raises(RankFailure) as caught:
        run(2, rank_entries.deadlock, {"how": "finished"})
    assert "rank 1 waits at instruction 7 for rank 0, which has finished" in str(caught.value)
    assert (caught.value.rank, caught.value.instruction) == (1, 7)


def test_a_message_that_nobody_receives():
    with pytest.raises(RankFailure, match=r"rank 0 sent rank 1 what it never received at instr"):
        run(2, rank_entries.deadlock, {"how": "unreceived"})


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("kind", ["all_reduce float32[4, 2]", "all_gather float32[4, 2] [4, 2]"]),
        ("shape", ["all_reduce float32[4, 2]", "all_reduce float32[3, 2]"]),
        ("dtype", ["all_reduce float32[4, 2]", "all_reduce float16[4, 2]"]),
        ("skipped", ["at instruction 3", "at instruction 4", "of program class-0"]),
        ("part", ["float32[4, 2]", "float32[3, 2]"]),
        ("message", ["send float32[4, 2]", "receive float32[8]"]),
    ],
)
def test_mismatch_names_both_ranks(how, words):
    with pytest.raises(RankFailure, match="does not match") as caught:
        run(2, rank_entries.mismatch, {"how": how})
    for word in ["rank 0", "rank 1", *words]:
        assert word in str(caught.value)


def test_an_exception_stops_all_ranks():
    unwound = []

    def body(t):
        try:
            t.set_position(4)
            if t.rank == 5:
                raise KeyError("x")
            t.barrier(tuple(range(8)), 5)
        finally:
            unwound.append(t.rank)

    with pytest.raises(RankFailure, match="rank 5 raised KeyError at instruction 4") as caught:
        run_local(8, body)
    assert isinstance(caught.value.__cause__, KeyError)
    assert len(unwound) == 6  # ranks 6 and 7 had not begun


def test_interrupt_stops_all_ranks():
    def body(t):
        if t.rank == 1:
            os.kill(os.getpid(), signal.SIGINT)
        while True:
            t.barrier((0, 1, 2), 1)

    gc.disable()  # an interrupt that comes inside of a callback of the collector is lost
    try:
        with pytest.raises(KeyboardInterrupt):
            run_local(3, body)
    finally:
        gc.enable()


def test_describe_may_be_a_table():
    with pytest.raises(RankFailure) as caught:
        run(2, rank_entries.deadlock, {"how": "finished"}, {(1, 7): "barrier over dp, a.plan:9"})
    assert caught.value.span == "barrier over dp, a.plan:9"


@pytest.mark.parametrize("group", [(1, 0), (1, 2), (0, 0, 1), (0, 7)])
def test_wrong_groups_are_refused(group):
    with pytest.raises(RankFailure, match="group"):
        run_local(2, lambda t: t.rank or t.barrier(group, 0))


def test_shortest_cycle():
    assert shortest_cycle({0: [1], 1: [2], 2: [0, 3], 3: [2]}) == (2, 3)
    assert shortest_cycle({0: [1, 2], 1: [2], 2: []}) == ()
