"""The cores of gloo ranks: equal shares, batch scheduling, and the switch that leaves it to the system."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plancc.runtime.cores import FREE, SWITCH, cores_of, share
from plancc.runtime.launch import launch
from plancc.runtime.transport import Transport

LINUX = hasattr(os, "sched_getaffinity")


def look(transport: Transport, payload: dict[str, Any]) -> list[Any]:
    """Entry of a rank: its cores, and the scheduling of each of its threads."""
    everyone = tuple(range(transport.world))
    transport.barrier(everyone, 0)  # gloo's threads are there
    threads = [int(name) for name in os.listdir("/proc/self/task")]
    return [sorted(os.sched_getaffinity(0)), [os.sched_getscheduler(one) for one in threads]]


@given(st.integers(1, 9), st.lists(st.integers(0, 63), min_size=1, max_size=12, unique=True))
def test_shares_are_even_and_take_all_cores(world: int, cores: list[int]) -> None:
    shares = [share(rank, world, cores) for rank in range(world)]
    if world > len(cores):
        assert shares == [()] * world
        return
    assert [core for mine in shares for core in mine] == cores
    sizes = [len(mine) for mine in shares]
    assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1


def test_only_gloo_ranks_are_bound() -> None:
    assert cores_of(0, 1, "nccl") == ()
    if LINUX:
        assert cores_of(0, 1, "gloo") == tuple(sorted(os.sched_getaffinity(0)))


@pytest.mark.skipif(not LINUX, reason="binding and batch scheduling are Linux's")
def test_ranks_run_on_their_share_and_let_each_other_finish() -> None:
    cores = sorted(os.sched_getaffinity(0))
    for world in {1, min(2, len(cores))}:
        found = launch(world, f"{__name__}:look", {}, time_limit=60.0)
        assert [tuple(mine) for mine, _ in found] == [share(r, world, cores) for r in range(world)]
        assert all(set(policies) == {os.SCHED_BATCH} for _, policies in found)
        assert all(len(policies) > 2 for _, policies in found) or world == 1


@pytest.mark.skipif(not LINUX, reason="binding and batch scheduling are Linux's")
def test_more_ranks_than_cores_are_not_bound() -> None:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 8:
        pytest.skip("too many cores for a test of more ranks")
    found = launch(len(cores) + 1, f"{__name__}:look", {}, time_limit=60.0)
    assert all(mine == cores for mine, _ in found)
    assert all(set(policies) == {os.SCHED_BATCH} for _, policies in found)


@pytest.mark.skipif(not LINUX, reason="binding and batch scheduling are Linux's")
def test_cores_can_be_left_to_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, FREE)
    ((mine, policies),) = launch(1, f"{__name__}:look", {}, time_limit=60.0)
    assert mine == sorted(os.sched_getaffinity(0))
    assert set(policies) == {os.SCHED_OTHER}
