"""Ranks that share cores: who computes waits while there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plancc.simulator.cores import Cores
from plancc.simulator.engine import Engine
from plancc.simulator.forms import Actor
from plancc.simulator.process import Call, Slots
from plancc.simulator.script import Item, Label, Message


def work(seconds: float) -> Item:
    return Item("work", Label("matmul", "matmul"), seconds)


def meet(seconds: float, group: Sequence[int], parts: str = "tp") -> Item:
    return Item("meet", Label("all_reduce", "all_reduce"), seconds, tuple(group), parts)


def engine(items: Sequence[Sequence[Item]], cores: int, homes: Sequence[int] = ()) -> Engine:
    actors = [Actor(f"rank {n}", (n,)) for n in range(len(items))]
    rounds: list[list[Slots]] = [[[[Call("step", {"step": tuple(row)})]]] for row in items]
    shared = Cores(cores, homes or [0] * len(items)) if cores else None
    return Engine(actors, rounds, cores=shared)


def test_a_core_is_given_to_who_comes_first() -> None:
    cores = Cores(2, [0, 0, 0, 1])
    assert cores.take(0, 1.0, 4.0) == 1.0
    assert cores.take(1, 0.0, 2.0) == 0.0
    assert cores.take(2, 1.5, 1.0) == 2.0  # the second core, when it is free
    assert cores.take(3, 0.0, 1.0) == 0.0  # on a node of its own
    assert cores.take(0, 0.0, 1.0, wanted=5) == 5.0  # all there are


def test_what_became_free_last_is_taken() -> None:
    """The core that is free at 0 stays for who comes at 0."""
    cores = Cores(2, [0, 0])
    cores.take(0, 0.0, 3.0)
    assert cores.take(0, 3.0, 1.0) == 3.0
    assert cores.take(1, 0.0, 2.0) == 0.0


def test_ranks_by_turns_take_the_sum() -> None:
    """Three ranks of 2, 3 and 4 seconds on one core, then a collective of one second: 10."""
    rows = [[work(seconds), meet(1, (0, 1, 2))] for seconds in (2, 3, 4)]
    assert engine(rows, 1).run() == 10
    assert engine(rows, 3).run() == 5
    assert engine(rows, 0).run() == 5


def test_four_ranks_on_two_cores_take_twice_as_long() -> None:
    rows = [[work(3)] for _ in range(4)]
    run = engine(rows, 2)
    assert run.run() == 6
    assert [process.tally.busy for process in run.processes] == [3, 3, 3, 3]
    waits = sorted(s.end - s.begin for p in run.processes for s in p.spans if s.kind == "wait")
    assert waits == [3, 3]


def test_collectives_of_two_pairs_share_the_cores() -> None:
    """Each pair keeps both cores busy for 2 seconds: the second pair waits for the first."""
    rows = [[meet(2, pair)] for pair in ((0, 1), (0, 1), (2, 3), (2, 3))]
    assert engine(rows, 2).run() == 4
    assert engine(rows, 4).run() == 2


def test_who_computes_keeps_its_core_until_it_waits() -> None:
    """Three ranks of five calls each on two cores, then a meeting: the third rank comes behind a first.

    2.5 ms for two of them, as much for the third, 1 ms of the meeting: not 1.5 times 2.5.
    """
    rows = [[*[work(5e-4)] * 5, meet(1e-3, (0, 1, 2))] for _ in range(3)]
    assert engine(rows, 2).run() == pytest.approx(6e-3)


def test_a_core_is_shared_after_a_slice() -> None:
    """Two ranks of 9 ms on one core, by turns of 4.5 ms: the second begins before the first has ended."""
    run = engine([[work(1.5e-3)] * 6, [work(1.5e-3)] * 6], 1)
    assert run.run() == pytest.approx(18e-3)
    first, second = (
        [(s.begin, s.end) for s in p.spans if s.kind == "matmul"] for p in run.processes
    )
    assert first[0][0] == 0 and second[0][0] == pytest.approx(4.5e-3)
    assert first[3][0] == pytest.approx(9e-3)


@pytest.mark.parametrize("cores", [0, 1, 2])
def test_a_sender_goes_on_once_its_messages_are_given(cores: int) -> None:
    """A send keeps its rank for 2 ms, then 1 ms of work; the message takes 0.5 ms from when it was given.

    By hand: the sender is done at 3, the receiver at 2 + 0.5 with a core of its own, else at 3 + 0.5.
    """
    link = [(Message(peer, name, 5e-4, 0, 8),) for peer, name in ((1, "a"), (0, "b"))]
    send = Item("send", Label("x", "exchange"), 2e-3, edge=0, messages=link[0])
    take = Item("recv", Label("x", "exchange"), edge=0, messages=link[1])
    run = engine([[send, work(1e-3)], [take]], cores)
    run.run()
    sender, receiver = run.processes
    assert sender.clock == pytest.approx(3e-3) and sender.tally.busy == 1e-3
    assert sender.tally.moving == sender.tally.exposed == 2e-3
    assert receiver.clock == pytest.approx(3.5e-3 if cores == 1 else 2.5e-3)


def test_messages_take_a_core_too() -> None:
    """One second on the link, one of latency, all on the only core, which a third rank wants for 5."""
    send = Item("send", Label("x", "exchange"), edge=0, messages=(Message(1, "a", 1, 1, 8),))
    take = Item("recv", Label("x", "exchange"), edge=0, messages=(Message(0, "b", 1, 1, 8),))
    assert engine([[send], [take], [work(5)]], 1).run() == 7
    assert engine([[send], [take], [work(5)]], 2).run() == 5


def test_by_turns_the_messages_of_a_receive_add_up() -> None:
    """Two messages of two seconds each: beside each other on two cores, one after the other on one."""
    sends = [
        [Item("send", Label("x", "exchange"), edge=0, messages=(Message(2, f"a{n}", 2, 0, 8),))]
        for n in range(2)
    ]
    both = tuple(Message(n, "b", 2, 0, 8) for n in range(2))
    rows = [*sends, [Item("recv", Label("x", "exchange"), edge=0, messages=both)]]
    assert engine(rows, 1).run() == 4
    assert engine(rows, 2).run() == 2


def test_a_link_serves_who_comes_first_whatever_senders_do_before() -> None:
    """Two senders on one NIC: one is kept for 6 s, the other sends at 1.5 for 1 s, on an idle link."""

    def send(edge: int, kept: float) -> Item:
        label = Label("x", "exchange")
        return Item("send", label, kept, edge=edge, messages=(Message(2, "nic", 0, 1, 8),))

    def take(edge: int, peer: int) -> Item:
        label, messages = Label("x", "exchange"), (Message(peer, f"in {edge}", 0, 1, 8),)
        return Item("recv", label, edge=edge, messages=messages)

    rows = [[send(0, 6.0)], [work(1.5), send(1, 0.0)], [take(1, 1)], [take(0, 0)]]
    rows[0][0] = replace(rows[0][0], messages=(Message(3, "nic", 0, 1, 8),))
    run = engine(rows, 0)
    run.run()
    assert [process.clock for process in run.processes] == [6.0, 1.5, 2.5, 7.0]


def test_a_receivers_link_takes_bytes_once_they_are_given() -> None:
    """Two senders, each kept for 2 s, and 4 s each on the receiver's link: 10, not 8."""
    sends = [
        [Item("send", Label("x", "exchange"), 2, edge=0, messages=(Message(2, f"a{n}", 0, 4, 8),))]
        for n in range(2)
    ]
    both = tuple(Message(n, "b", 0, 4, 8) for n in range(2))
    rows = [*sends, [Item("recv", Label("x", "exchange"), edge=0, messages=both)]]
    assert engine(rows, 0).run() == 10


STEPS = st.lists(
    st.tuples(st.sampled_from(["work", "send", "meet", "start"]), st.floats(1e-4, 6e-3)), max_size=8
)


@settings(max_examples=80, deadline=None)
@given(STEPS, st.integers(2, 4), st.integers(0, 4))
def test_time_is_computing_moving_or_waiting(
    steps: list[tuple[str, float]], ranks: int, cores: int
) -> None:
    """Ranks that all do the same, and send to a last one: every moment of a clock is accounted for."""
    everyone = tuple(range(ranks))
    rows: list[list[Item]] = [[] for _ in range(ranks + 1)]
    for at, (kind, seconds) in enumerate(steps):
        for rank in everyone:
            if kind == "work":
                item = work(seconds)
            elif kind == "meet":
                item = meet(seconds, everyone, f"meeting {at}")
            elif kind == "start":
                label = Label("all_reduce", "all_reduce")
                item = Item("start", label, seconds, everyone, f"beside {at}", handle=f"h{at}")
            else:
                message = Message(ranks, f"out {rank}", 1e-5, seconds / 9, 8)
                item = Item(
                    "send", Label("x", "exchange"), seconds / 3, edge=at, messages=(message,)
                )
            rows[rank].append(item)
        if kind == "send":
            takes = tuple(Message(rank, "in", 1e-5, seconds / 9, 8) for rank in everyone)
            rows[ranks].append(Item("recv", Label("x", "exchange"), edge=at, messages=takes))
    run = engine(rows, cores)
    whole = run.run()
    for process in run.processes:
        waits = sum(s.end - s.begin for s in process.spans if s.kind == "wait")
        told = process.tally.busy + process.tally.exposed + waits
        assert told == pytest.approx(process.clock, abs=1e-9)
    assert engine(rows, 0).run() <= whole + 1e-9


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.floats(1e-4, 6e-3), max_size=9), min_size=1, max_size=6), st.integers(1, 4)
)
def test_no_more_compute_at_a_time_than_there_are_cores(
    rows: list[list[float]], cores: int
) -> None:
    run = engine([[work(s) for s in row] for row in rows], cores)
    whole = run.run()
    spans = [s for process in run.processes for s in process.spans if s.kind == "matmul"]
    for at in [s.begin for s in spans]:
        assert sum(s.begin <= at < s.end - 1e-12 for s in spans) <= cores
    total, longest = sum(map(sum, rows)), max(map(sum, rows))
    assert whole >= max(longest, total / cores) - 1e-9
    assert whole <= total + 1e-9
    if len(rows) <= cores:
        assert whole == pytest.approx(longest)
