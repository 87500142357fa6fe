"""The engine on hand-written scripts, whose times can be worked out on paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plancc.dsl.errors import Bug
from plancc.simulator.engine import Engine
from plancc.simulator.forms import Actor
from plancc.simulator.process import Call, Slots
from plancc.simulator.script import Item, Label, Message, Script


def work(seconds: float) -> Item:
    return Item("work", Label("matmul", "matmul", flops=int(seconds * 100)), seconds)


def meet(seconds: float, group: Sequence[int], kind: str = "meet", **rest: object) -> Item:
    label = Label("all_reduce", "all_reduce", bytes=8)
    return Item(kind, label, seconds, tuple(group), "tp", **rest)  # type: ignore[arg-type]


def message(kind: str, edge: int, peer: int, latency: float, busy: float, link: str) -> Item:
    there = (Message(peer, link, latency, busy, 16),)
    return Item(kind, Label("x", "exchange", bytes=16), edge=edge, messages=there)


def send(edge: int, peer: int, busy: float, link: str) -> Item:
    return message("send", edge, peer, 0.0, busy, link)


def receive(edge: int, peer: int, latency: float, busy: float, link: str) -> Item:
    return message("recv", edge, peer, latency, busy, link)


PAUSE = Item("pause", Label("", ""))


def engine(rounds: Sequence[Sequence[Slots]]) -> Engine:
    actors = [Actor(f"rank {n}", (n,)) for n in range(len(rounds))]
    return Engine(actors, rounds)


def once(items: Sequence[Item]) -> list[Slots]:
    """One call of one micro-batch."""
    return [[[Call("step", {"step": tuple(items)})]]]


def micro(items: Sequence[Item], count: int, **rest: object) -> list[Slots]:
    """The same call for every micro-batch."""
    script: Script = {"step": tuple(items)}
    return [[[Call("step", script, n, **rest)] for n in range(count)]]  # type: ignore[arg-type]


def test_a_collective_begins_when_the_last_has_come() -> None:
    """Ranks compute 3 and 5 seconds, meet for 2, compute 1: 8 seconds; the first waits for 2."""
    run = engine(
        [once([work(3), meet(2, (0, 1)), work(1)]), once([work(5), meet(2, (0, 1)), work(1)])]
    )
    assert run.run() == 8
    first, second = (process.tally for process in run.processes)
    assert (first.busy, first.exposed, second.busy, second.exposed) == (4, 2, 6, 2)
    waits = [(s.begin, s.end) for s in run.processes[0].spans if s.kind == "wait"]
    assert waits == [(3, 5)]


def test_a_pipeline_of_two_stages_and_two_micro_batches() -> None:
    """Stages of 4 s, messages of 1 s latency and 1 s on the link: 4, 4 behind 4 + 2, 4: 14 seconds."""
    front = [work(4), send(0, 1, 1, "a")]
    back = [receive(0, 0, 1, 1, "b"), work(4)]
    run = engine([micro(front, 2), micro(back, 2)])
    assert run.run() == 14
    assert [s.seconds for s in run.processes[1].spans if s.kind == "matmul"] == [4, 4]
    assert run.processes[1].tally.exposed == 2  # the first message; the second one is hidden


def test_messages_on_one_link_follow_each_other() -> None:
    """Two messages of 3 s over one link: the second one leaves after 6."""
    front = [send(0, 1, 3, "nic"), send(1, 1, 3, "nic")]
    back = [receive(0, 0, 0, 0, "in"), receive(1, 0, 0, 0, "in")]
    assert engine([once(front), once(back)]).run() == 6


def test_ranks_that_share_a_link_take_turns() -> None:
    """Two senders on one NIC: 3 s each, so the second receiver has its message after 6."""
    both = [once([send(0, 2, 3, "nic")]), once([send(1, 2, 3, "nic")])]
    taker = once([receive(0, 0, 0, 0, "x"), receive(1, 1, 0, 0, "y")])
    assert engine([*both, taker]).run() == 6


def test_ping_pong_keeps_both_busy() -> None:
    """Two micro-batches between two actors, 1 s each way of work, no cost of messages.

    Without pauses each waits while the other one works: 2 x 3 = 6 s. With them 4 s, of which 1 is lost.
    """
    front = [work(1), send(0, 1, 0, "a"), PAUSE, receive(1, 1, 0, 0, "a"), work(1)]
    back = [receive(0, 0, 0, 0, "b"), work(1), send(1, 0, 0, "b")]
    turns = engine([micro(front, 2), micro(back, 2)])
    assert turns.run() == 4
    assert turns.processes[0].tally.busy == 4
    plain = engine([micro([item for item in front if item is not PAUSE], 2), micro(back, 2)])
    assert plain.run() == 6


def test_a_move_beside_the_computation_is_hidden() -> None:
    """A collective of 3 s behind 2 s of work: 1 s of it is seen."""
    items = [
        meet(3, (0, 1), "start", handle="h"), work(2), Item("await", Label("h", "wait"), handle="h"),
    ]  # fmt: skip
    run = engine([once(items), once(items)])
    assert run.run() == 3
    assert run.processes[0].tally.exposed == 1
    assert run.processes[0].tally.moving == 3


def test_moves_on_the_stream_of_communication_follow_each_other() -> None:
    """Two moves of 3 s started at once: the second one ends after 6."""
    items = [meet(3, (0,), "start", handle="a"), meet(3, (0,), "start", handle="b")]
    ends = [Item("await", Label(h, "wait"), handle=h) for h in "ab"]
    assert engine([once([*items, *ends])]).run() == 6


def test_a_receive_waits_for_all_its_senders() -> None:
    """One message is there after 1 s, the other one after 5."""
    both = [once([work(t), send(0, 2, 0, f"out {t}")]) for t in (5, 1)]
    there = tuple(Message(peer, "in", 0, 0, 16) for peer in (0, 1))
    taker = [Item("recv", Label("x", "exchange"), edge=0, messages=there), work(1)]
    assert engine([*both, once(taker)]).run() == 6
    assert engine([both[1], both[0], once(taker)]).run() == 6


def test_who_waits_for_ever_is_named() -> None:
    """A receive without a send is a fault of plancc, not an endless run."""
    with pytest.raises(Bug, match="rank 1"):
        engine([once([work(1)]), once([receive(0, 0, 0, 0, "b")])]).run()


def test_memory_follows_what_is_taken_and_given_back() -> None:
    """8 bytes taken after the first second, 3 of them given back after the second; the rest at the end."""
    run = engine([once([replace(work(1), delta=8), replace(work(1), delta=-3)])])
    run.run()
    assert run.processes[0].memory == [(0, 0), (1, 8), (2, 5), (2, 0)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 5), min_size=4, max_size=4), min_size=2, max_size=5),
    st.integers(0, 3), st.integers(1, 4),
)  # fmt: skip
def test_time_is_conserved(seconds: list[list[int]], move: int, batches: int) -> None:
    """Busy + exposed + waiting of every actor = its end, and no spans of a stream overlap."""
    group = tuple(range(len(seconds)))
    rounds = []
    for number, row in enumerate(seconds):
        items = [meet(move, group, "start", handle="h"), work(row[0])]
        if number:
            items.append(receive(number, number - 1, 1, move, f"in {number}"))
        items += [work(row[1]), Item("await", Label("h", "wait"), handle="h"), work(row[2])]
        if number + 1 < len(seconds):
            items.append(send(number + 1, number + 1, move, f"out {number}"))
        rounds.append(micro([*items, work(row[3])], batches))
    run = engine(rounds)
    run.run()
    for process in run.processes:
        waiting = sum(s.seconds for s in process.spans if s.kind == "wait")
        done = process.tally.busy + process.tally.exposed + waiting
        assert done == pytest.approx(process.clock)
        for stream in ("compute", "communication"):
            row = sorted((s.begin, s.end) for s in process.spans if s.stream == stream)
            assert all(a[1] <= b[0] + 1e-9 for a, b in pairwise(row))
