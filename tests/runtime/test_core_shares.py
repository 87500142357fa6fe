"""The cores of gloo ranks: equal shares, batch scheduling, and the switch that leaves it to the system."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plancc.runtime import distributed
from plancc.runtime.cores import FREE, SWITCH, settle, share, usable
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
        assert shares == [tuple(cores)] * world  # the system moves them about
        return
    assert [core for mine in shares for core in mine] == cores
    sizes = [len(mine) for mine in shares]
    assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1


def permitted() -> bool:
    """Whether the system lets processes choose batch scheduling; some sandboxes do not."""
    asked = "import os; os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))"
    return subprocess.run([sys.executable, "-c", asked], capture_output=True).returncode == 0


linux = pytest.mark.skipif(not LINUX, reason="binding and batch scheduling are Linux's")


@pytest.fixture(autouse=True)
def as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have set the switch."""
    monkeypatch.delenv(SWITCH, raising=False)


@linux
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_ranks_run_on_their_share_and_let_each_other_finish(more: int) -> None:
    cores = usable()
    world = len(cores) + more
    if not 1 <= world <= 9:
        pytest.skip(f"no test for {world} ranks on {len(cores)} cores")
    found = launch(world, f"{__name__}:look", {}, time_limit=60.0)
    assert [tuple(mine) for mine, _ in found] == [share(r, world, cores) for r in range(world)]
    chosen = os.sched_getscheduler(0)
    expected = os.SCHED_BATCH if chosen == os.SCHED_OTHER and permitted() else chosen
    assert all(set(policies) == {expected} for _, policies in found)
    assert all(len(policies) > 1 for _, policies in found)


@linux
def test_ranks_share_what_the_launcher_may_use_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """The forkserver began, at the latest in the first launch, with more."""
    before = usable()
    if len(before) < 2:
        pytest.skip("one core is no choice")
    launch(1, f"{__name__}:look", {}, time_limit=60.0)
    os.sched_setaffinity(0, before[1:2])
    try:
        found = launch(2, f"{__name__}:look", {}, time_limit=60.0)
    finally:
        os.sched_setaffinity(0, before)
    assert [tuple(mine) for mine, _ in found] == [before[1:2]] * 2


@linux
def test_cores_can_be_left_to_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, FREE)
    found = launch(2, f"{__name__}:look", {}, time_limit=60.0)
    assert [tuple(mine) for mine, _ in found] == [usable()] * 2
    assert all(set(policies) == {os.sched_getscheduler(0)} for _, policies in found)


@linux
def test_a_refusal_of_one_setting_does_not_drop_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_getscheduler", lambda thread: os.SCHED_OTHER)
    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    monkeypatch.setattr(os, "sched_setaffinity", lambda thread, cores: asked.append(cores))
    settle((3,))
    assert asked and set(asked) == {(3,)}


@linux
def test_chosen_scheduling_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getscheduler", lambda thread: os.SCHED_IDLE)
    changed = []
    monkeypatch.setattr(os, "sched_setscheduler", lambda *args: changed.append(args))
    settle(())
    assert not changed


@linux
def test_ranks_of_torchrun_let_each_other_finish(monkeypatch: pytest.MonkeyPatch) -> None:
    settled = []
    monkeypatch.setattr(distributed, "settle", settled.append)
    monkeypatch.setattr(distributed, "open_transport", lambda *args, **rest: args[0])
    monkeypatch.setattr(distributed.dist, "rendezvous", lambda *a, **k: iter([("store", 0, 1)]))
    monkeypatch.setattr(distributed.dist, "PrefixStore", lambda *a: None)
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1")):
        monkeypatch.setenv(name, value)
    assert distributed.transport_from_env("gloo") == "gloo" and settled == [()]
    assert distributed.transport_from_env("nccl") == "nccl" and settled == [()]
