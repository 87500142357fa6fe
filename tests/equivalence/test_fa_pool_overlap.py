"""Overlap with a pool, by the order of instructions and of recorded events.

Chunks of heads, and micro-batches by turns.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from lowered import Lowered, lower, prompt
from pools import PoolPlan, Watched, counted_runs, overlap, pool_model

from plancc.ir.program import Compute, Recv, Send
from plancc.runtime.artifact import STRIDE

SIZES = dict(heads=16, hidden=64)
SENDS, RECVS, SUMS = "send", "recv", "all_reduce"


@cache
def example(depth: int = 2, batches: int = 2) -> Lowered:
    """The example; 8 base ranks have two heads each."""
    return lower(
        "fa_pool.plan",
        pool_model("dense", **SIZES),
        {"long": 4, "depth": depth, "batches": batches},
    )


def steps(lowered: Lowered, phase: str, mesh: str, variant: int = 2) -> list[Any]:
    """The instructions of the class on one mesh."""
    unit = next(
        u for u in lowered.compiled.units if u.graph.phase == phase and u.variant.index == variant
    )
    assert unit.programs is not None
    for program in unit.programs.programs:
        if any(stage.mesh == mesh for stage in program.stages):
            return list(program.instructions)
    raise AssertionError(mesh)


def places(found: list[Any], kind: type, layer: str = "layers.0.") -> list[int]:
    """Where the instructions of a kind stand that belong to one layer's attention."""
    return [
        i for i, s in enumerate(found)
        if isinstance(s, kind) and layer in f"{s.origin.path}." and "self_attn" in s.origin.path
    ]  # fmt: skip


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_chunks_are_sent_before_the_first_result_is_awaited(phase: str) -> None:
    """Base: q of both chunks, k and v leave before the first receive; two receives, one a chunk."""
    found = steps(example(), phase, "base")
    sends, recvs = places(found, Send), places(found, Recv)
    assert len(sends) == 4 and len(recvs) == 2
    assert max(sends) < min(recvs)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_the_pool_answers_the_first_chunk_before_it_attends_to_the_second(phase: str) -> None:
    """Pool: attention 1, its result leaves, attention 2, its result leaves."""
    found = steps(example(), phase, "fa@16")
    attends = [
        i for i in places(found, Compute)
        if found[i].target == "plancc.attention_over_keys.default"
    ]  # fmt: skip
    sends = places(found, Send)
    assert attends[0] < sends[0] < attends[1] < sends[1]


def test_three_chunks_are_answered_one_by_one() -> None:
    """Any depth: the results leave between the attentions."""
    plan = PoolPlan(comm=overlap(depth=3))
    lowered = lower(plan.text(), pool_model("dense", heads=8, hidden=32))
    found = steps(lowered, "decode", "fa@4")
    order = [
        "send" if isinstance(s, Send) else "attend"
        for s in found
        if isinstance(s, Send)
        or (isinstance(s, Compute) and s.target == "plancc.attention_over_keys.default")
    ]
    assert order == ["attend", "send"] * 6


def test_pauses_stand_before_the_first_result_only() -> None:
    """One pause a layer on the base, where it would wait; none without micro-batches."""
    found = steps(example(), "decode", "base")
    paused = [i for i, s in enumerate(found) if isinstance(s, Recv) and s.pause]
    assert paused == [places(found, Recv, f"layers.{n}.")[0] for n in range(2)]
    assert not any(isinstance(s, Recv) and s.pause for s in steps(example(2, 1), "decode", "base"))


class Tracing(Watched):
    """Notes what a rank does, in order.

    (verb, instruction, how often it did so before in this step).
    """

    record = list

    def event(self, verb: str, at: int) -> None:
        """Micro-batches run the same instructions: the n-th time is the n-th micro-batch's."""
        events = self.steps[-1]
        events.append((verb, at % STRIDE, sum(e[:2] == (verb, at % STRIDE) for e in events)))

    def exchange(self, sends: Any, recvs: Any, at: int, channel: int = 0) -> Any:
        """A send, a receive or both."""
        if sends:
            self.event(SENDS, at)
        if recvs:
            self.event(RECVS, at)
        return self.inner.exchange(sends, recvs, at, channel)

    def all_reduce(self, x: Any, group: Any, at: int) -> Any:
        """A sum."""
        self.event(SUMS, at)
        return self.inner.all_reduce(x, group, at)


def trace(batches: int, batch: int = 2) -> tuple[tuple[str, int, int], ...]:
    """The events of base rank 0 in one decode step through the pool."""
    lowered = example(1, batches)
    ids = prompt(lowered.compiled.graph, batch, 17)
    return counted_runs(lowered, [(ids, 3)], counting=Tracing)[0][0].sent[1]


def waits(events) -> list[list[tuple[str, int, int]]]:
    """For each result that micro-batch 0 takes: what happened since it last sent something."""
    found = []
    for end, (verb, _, turn) in enumerate(events):
        if (verb, turn) == (RECVS, 0):
            start = max(i for i in range(end) if (events[i][0], events[i][2]) == (SENDS, 0))
            found.append(list(events[start + 1 : end]))
    return found


def test_a_base_rank_computes_one_micro_batch_while_the_other_is_with_the_pool() -> None:
    """Between sending q of micro-batch 0 and taking its result, the rank runs micro-batch 1, in
    every layer.
    """
    found = waits(trace(2))
    assert len(found) == 2
    for meanwhile in found:
        assert {turn for _, _, turn in meanwhile} == {1}
        assert [verb for verb, _, _ in meanwhile].count(SUMS) >= 1
        assert [verb for verb, _, _ in meanwhile][-3:] == [SENDS] * 3


def test_without_micro_batches_the_base_waits() -> None:
    """Between sending q and taking the result nothing else happens."""
    assert waits(trace(1)) == [[], []]
