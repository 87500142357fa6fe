"""Ranks as processes on gloo: every verb, and every way in which a rank can end badly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch
from rank_entries import DTYPES

from plancc.runtime.failure import RankFailure
from plancc.runtime.launch import launch

HERE = Path(__file__).parent


def plan_line(rank, instruction):
    return f"step {instruction}, some.plan:{instruction + 10}"


def run(world, entry, payload=None, **options):
    return launch(world, f"rank_entries:{entry}", payload or {}, **options)


def ranks_alive():
    """Processes of this machine that a plancc launch made: ranks and forkservers."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if "forkserver" in line:
            found[int(folder.name)] = (state, parent)
    return found


def children(pid):
    """All descendants of a process."""
    alive = ranks_alive()
    direct = {child for child, (_, parent) in alive.items() if parent == pid}
    return direct.union(*(children(child) for child in direct)) if direct else set()


def await_end(family):
    """Wait until all of these processes are gone; zombies are for whom inherited them to reap."""
    start = time.monotonic()
    while left := {p for p, (state, _) in ranks_alive().items() if p in family and state != "Z"}:
        assert time.monotonic() < start + 5, left
        time.sleep(0.02)
    print(f"gone after {time.monotonic() - start:.2f} s")


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch, tmp_path):
    """After each test: no rank lives or is a zombie, no scratch folder lies about."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    yield
    servers = children(os.getpid())
    assert not set().union(*(children(server) for server in servers))
    assert not list(scratch.glob("plancc-*"))


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_every_verb_over_real_groups(size):
    dtypes = DTYPES if size == 3 else ("float32", "bfloat16", "bool")
    counts = run(size, "all_verbs", {"dtypes": dtypes})
    assert all(count[0] == counts[0][0] for count in counts)


def test_twelve_ranks():
    run(12, "all_verbs", {"dtypes": ["float32", "bfloat16"]})


@pytest.mark.parametrize("size", [10, 14, 18, 20, 24])
def test_every_verb_over_more_group_sizes(size):
    run(size, "all_verbs", {"dtypes": ["float64"]})


def test_groups_inside_the_world():
    groups = [[0, 1], [1, 2], [0, 1, 2, 3], [2, 3], [0, 3], [0, 1], [1, 3], [1, 2, 3]]
    run(4, "many_groups", {"groups": groups})


def test_sends_do_not_block():
    run(2, "far_ahead", {"count": 20, "size": 300_000})


def test_results_and_tensors_come_back():
    results = run(3, "tensors")
    assert [result.value["rank"] for result in results] == [0, 1, 2]
    for rank, result in enumerate(results):
        assert torch.equal(result.tensors["x"], torch.arange(6.0).view(2, 3).t() + rank)
        assert result.tensors["half"].dtype == torch.bfloat16


def test_start_of_sixteen_ranks():
    start = time.perf_counter()
    results = run(16, "hello", {"a": [1, "b"]})
    print(f"16 ranks past their first all-reduce, and gone: {time.perf_counter() - start:.2f} s")
    assert results == [[136.0, {"a": [1, "b"]}]] * 16


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("raise", "raised ValueError"),
        ("exit", "ended without a result, with exit code 0,"),
        ("kill", "was killed by SIGKILL"),
        ("segfault", "was killed by SIGSEGV"),
        ("hang", "computed for more than 1 s"),
        ("hang in C", "computed for more than 1 s"),
        ("stop", "computed for more than 1 s"),
    ],
)
def test_a_rank_that_fails_is_named_within_a_second(how, reason):
    start = time.perf_counter()
    with pytest.raises(RankFailure) as caught:
        payload = {"who": 2, "how": how}
        run(4, "misbehave", payload, time_limit=1.0, describe=plan_line)
    took = time.perf_counter() - start
    failure = caught.value
    assert (failure.rank, failure.instruction, failure.reason) == (2, 5, reason)
    assert "at instruction 5 (step 5, some.plan:15)" in str(failure)
    print(f"{how}: {took:.2f} s with the start")
    assert took < 4
    if how == "raise":
        assert failure.detail == "no such thing"
        assert "_misbehave" in str(failure.__cause__)


def test_a_rank_killed_inside_an_operation():
    """Rank 1 waits for a message when it is killed from outside."""
    pids = set()

    def kill():
        while not pids:
            for server in children(os.getpid()):
                pids.update(children(server))
            time.sleep(0.05)
        time.sleep(1.0)
        victims = {pid for pid in pids if Path(f"/proc/{pid}").exists()}
        os.kill(max(victims), signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    start = time.perf_counter()
    with pytest.raises(RankFailure, match="was killed by SIGKILL") as caught:
        run(3, "deadlock", {"how": "cycle"}, time_limit=20.0)
    thread.join()
    assert time.perf_counter() - start < 5
    assert caught.value.instruction == 7


def test_a_cycle_is_named_at_the_limit():
    with pytest.raises(RankFailure) as caught:
        run(3, "deadlock", {"how": "cycle"}, time_limit=0.5, describe=plan_line)
    assert str(caught.value) == (
        "rank 0 waited 0.5 s and is in a deadlock at instruction 7 (step 7, some.plan:17): "
        "rank 0 waits at instruction 7 (step 7, some.plan:17) for rank 1; "
        "rank 1 waits at instruction 7 (step 7, some.plan:17) for rank 2; "
        "rank 2 waits at instruction 7 (step 7, some.plan:17) for rank 0"
    )


def test_a_rank_that_never_arrives_because_it_has_finished():
    with pytest.raises(RankFailure) as caught:
        run(2, "deadlock", {"how": "finished"}, time_limit=0.5)
    assert caught.value.rank == 1
    assert "rank 1 waits at instruction 7 for rank 0, which has finished" in str(caught.value)


def test_a_message_that_nobody_receives():
    with pytest.raises(RankFailure, match="for rank 1, which has finished") as caught:
        run(2, "deadlock", {"how": "unreceived"}, time_limit=0.5)
    assert caught.value.rank == 0


def test_a_wait_may_last_while_others_go_on():
    assert run(2, "slow_chain", {"step": 0.3}, time_limit=0.6) == [True, True]


@pytest.mark.parametrize("how", ["kind", "shape", "dtype", "skipped", "part", "message"])
def test_mismatch_is_a_clean_failure(how):
    start = time.perf_counter()
    with pytest.raises(RankFailure, match="does not match") as caught:
        run(2, "mismatch", {"how": how}, describe=plan_line)
    assert time.perf_counter() - start < 3
    assert {"rank 0", "rank 1"} <= {f"rank {r}" for r in "01" if f"rank {r}" in str(caught.value)}
    assert "some.plan:13" in str(caught.value)


def test_entry_that_does_not_exist():
    with pytest.raises(RankFailure, match="raised AttributeError before its first instruction"):
        run(2, "nobody")


SCRIPT = """
import sys
sys.path.insert(0, {here!r})
from plancc.runtime.launch import launch
print(launch(3, "rank_entries:{entry}", {payload!r}, time_limit=60.0), flush=True)
"""


def script(tmp_path, entry, payload):
    """A launcher of its own; no main guard, which a script should not need."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.format(here=str(HERE), entry=entry, payload=payload))
    scratch = tmp_path / "other"
    scratch.mkdir()
    environment = os.environ | {"TMPDIR": str(scratch)}
    return subprocess.Popen(
        [sys.executable, path], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip


@pytest.mark.parametrize("how", ["hang", "hang in C", "wait"])
def test_killing_the_launcher_leaves_nothing(tmp_path, how):
    launcher = script(tmp_path, "misbehave", {"who": 1, "how": how})
    for _ in range(3):
        assert launcher.stdout.readline() == "standing\n"
    time.sleep(0.2)
    family = children(launcher.pid)
    assert len(family) >= 4
    launcher.kill()
    launcher.wait()
    await_end(family)
    assert not list((tmp_path / "other").iterdir())


def test_interrupting_the_launcher_leaves_nothing(tmp_path):
    launcher = script(tmp_path, "misbehave", {"who": 1, "how": "hang"})
    for _ in range(3):
        launcher.stdout.readline()
    family = children(launcher.pid)
    os.killpg(launcher.pid, signal.SIGINT)
    _, errors = launcher.communicate(timeout=10)
    assert launcher.returncode == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert errors.count("Traceback") == 1
    await_end(family)
    assert not list((tmp_path / "other").iterdir())


def test_a_script_without_main_guard_launches_once(tmp_path):
    output, errors = script(tmp_path, "hello", {}).communicate(timeout=60)
    assert (output, errors) == ("[[6.0, {}], [6.0, {}], [6.0, {}]]\n", "")
