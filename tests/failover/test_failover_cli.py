"""`plancc train --failover`: the line that it prints, the log, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from failover_runs import TEXT, Killer, folder

from plancc.cli.main import main
from plancc.runtime.failover.drive import Course


@pytest.fixture
def kills(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """Step -> the rank to kill behind it."""
    todo: dict[int, int] = {}
    run = Course.run

    def disturbed(course: Course) -> Any:
        killer = Killer()
        killer.opened(course)
        keep = course.on_row

        def row(found: dict[str, Any]) -> None:
            keep(found)
            if found["step"] in todo:
                killer.kill(todo.pop(found["step"]))

        course.on_row = row
        return run(course)

    monkeypatch.setattr(Course, "run", disturbed)
    return todo


WORDS = (
    "--data", TEXT, "--batch", "8", "--seq-len", "32", "--precision", "fp64", "--backend", "gloo",
    "--no-verify",
)  # fmt: skip


def test_one_line_and_the_log(
    kills: dict[int, int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    kills[2] = 1
    log = tmp_path / "log.jsonl"
    code = main([
        "train", str(folder("small")), *WORDS, "--steps", "5", "--failover", "--no-rejoin",
        "--log", str(log), "--json",
    ])  # fmt: skip
    out, err = capsys.readouterr()
    assert code == 0 and json.loads(out)["steps"] == 5
    (line,) = [text for text in err.splitlines() if "was killed" in text]
    assert line.startswith(
        "step 2: rank 1, of replica 1 of attn.rep, was killed by SIGKILL in step 3"
    )
    assert line.endswith("replica 0 goes on alone; lost: the unfinished step 3, which is run again")
    rows = [json.loads(text) for text in log.read_text().splitlines()]
    assert [row.get("event") for row in rows] == [
        None,
        None,
        "lost",
        "done again",
        None,
        None,
        None,
    ]


def test_a_dead_expert_names_the_checkpoint(
    kills: dict[int, int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    kills[3] = 2
    run = tmp_path / "run"
    code = main([
        "train", str(folder("small")), *WORDS, "--steps", "50", "--failover", "rep",
        "--checkpoint", str(run), "--checkpoint-every", "1",
    ])  # fmt: skip
    err = capsys.readouterr().err
    assert code == 3 and "rank 2 was killed by SIGKILL" in err
    assert f"the last good checkpoint is {run / 'step-0000000'}" in err


@pytest.mark.slow
def test_a_killed_launcher_leaves_nobody(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    words = (
        "train",
        str(folder("small")),
        *WORDS,
        "--steps",
        "9999",
        "--failover",
        "--log",
        str(log),
    )
    with subprocess.Popen(
        [sys.executable, "-m", "plancc", *words], stderr=subprocess.DEVNULL
    ) as run:
        end = time.monotonic() + 60
        while not (log.exists() and log.stat().st_size) and time.monotonic() < end:
            time.sleep(0.1)
        ranks = descendants(run.pid)
        run.kill()
    assert len(ranks) >= 4
    end = time.monotonic() + 10
    while any(alive(pid) for pid in ranks) and time.monotonic() < end:
        time.sleep(0.1)
    assert not [pid for pid in ranks if alive(pid)]


def descendants(pid: int) -> list[int]:
    """The processes that a process started, and those that they started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            child = int(path.parent.name)
            found += [child, *descendants(child)]
    return found


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be buried does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_wrong_words(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("train", str(folder("small")), "--data", TEXT, "--seq-len", "32", "--steps", "2")
    assert main([*words, "--failover"]) == 1
    assert "--backend gloo" in capsys.readouterr().err
    assert main([*words, "--backend", "gloo", "--failover", "ep"]) == 1
    assert "`ep` does not replicate: ranks 2 and 3" in capsys.readouterr().err
