"""Saves that fail on some rank, at some moment: the last good checkpoint stays, all ranks know."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from ckpt_entries import (
    as_piece,
    check_holds,
    listing,
    pieces_of,
    save_alone,
    save_local,
    tensors,
)

from plancc.dsl.errors import Bug
from plancc.runtime.checkpoint import Checkpoint, CheckpointError, Piece, save_checkpoint
from plancc.runtime.failure import RankFailure
from plancc.runtime.launch import launch
from plancc.runtime.local import run_local

HERE = Path(__file__).parent
GOOD = tensors(1)


@pytest.fixture
def folder(tmp_path):
    """A folder with one good checkpoint, of step 1."""
    save_local(tmp_path, 1, lambda rank: pieces_of(GOOD, rank, 4))
    yield tmp_path
    assert listing(tmp_path) == ["latest", "step-00000001"]
    assert (tmp_path / "latest").read_text() == "step-00000001\n"
    check_holds(Checkpoint.open(tmp_path), GOOD)


def all_errors(folder, step, make, world=4):
    """Save on local ranks and return what each rank raised."""
    group = tuple(range(world))

    def rank_main(transport):
        with pytest.raises((CheckpointError, Bug)) as caught:
            save_checkpoint(
                folder, step, make(transport.rank), {}, rank=transport.rank, world=world,
                barrier=lambda: transport.barrier(group, 1),
            )  # fmt: skip
        return caught.value

    return run_local(world, rank_main)


def test_every_rank_raises_what_befell_one(folder, monkeypatch):
    from plancc.runtime.checkpoint import save

    write = save.write_safetensors

    def full(path, *given):
        if path.name == "rank-00002.safetensors":
            path.write_bytes(b"some")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, *given)

    monkeypatch.setattr(save, "write_safetensors", full)
    for error in all_errors(folder, 2, lambda rank: pieces_of(tensors(2), rank, 4)):
        assert isinstance(error, CheckpointError)
        assert "rank 2 could not save step 2: [Errno 28] No space left on device" in str(error)


def test_a_piece_that_cannot_be_brought_is_told(folder):
    def make(rank):
        yield from pieces_of(tensors(2), rank, 4)
        if rank == 3:
            raise RuntimeError("the device is gone")

    errors = all_errors(folder, 2, make)
    assert {str(e) for e in errors} == {
        "rank 3 could not save step 2: RuntimeError: the device is gone"
    }


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda rank: pieces_of(GOOD, rank, 5), "no rank saves `model/block.0.qkv` of shape "
         "[18, 5] at [14:18, 0:5]"),
        (lambda rank: pieces_of(GOOD, rank + 1, 5), "no rank saves"),
        (lambda rank: pieces_of(tensors(1, torch.float64 if rank == 2 else torch.float32), rank, 4),
         "is F32 [12, 6] on rank 0 and F64 [12, 6] on rank 2"),
        (lambda rank: [Piece("x", (4,), (((0, 5),),), torch.zeros(5))], "`x` of shape [4] has no"),
        (lambda rank: [Piece("x", (4,), (((0, 4),),), torch.zeros(3))], "needs shape [4], not [3]"),
        (lambda rank: [Piece("x", (4,), (((0, 2), (1, 3)),), torch.zeros(4))], "has no piece"),
        (lambda rank: [Piece("x", (4,), (), torch.zeros(4))], "has no piece"),
        (lambda rank: [Piece("", (), (), torch.zeros(()))], "cannot be the name"),
        (lambda rank: [Piece("x", (1,), (((0, 1),),), torch.zeros(1, dtype=torch.complex128))],
         "which a checkpoint cannot hold"),
    ],
)  # fmt: skip
def test_pieces_that_do_not_make_up_their_tensors_are_a_bug(folder, make, text):
    for error in all_errors(folder, 2, make):
        assert isinstance(error, Bug) and text in str(error)


def test_a_hole_without_dims_or_pieces(tmp_path):
    with pytest.raises(Bug, match="no rank saves `x` of shape"):
        save_alone(tmp_path, 1, [Piece("x", (4,), (((2, 2),),), torch.zeros(0))])


@pytest.mark.parametrize("rows", [((0, 6), (0, 6)), ((0, 4), (2, 6)), ((2, 6), (0, 6))])
def test_replicas_that_differ_are_told(folder, rows):
    x = torch.arange(6.0)

    def make(rank):
        found = [as_piece("x", x, ((row,),)) for row in rows[rank : rank + 1]]
        if rank == 1:
            found[0].tensor[3 if len(found[0].tensor) > 4 else 1] += 1
        return found

    for error in all_errors(folder, 2, make, world=2):
        assert isinstance(error, CheckpointError) and "`x` in `rank-0000" in str(error)


def test_overlapping_pieces_that_agree_are_fine(tmp_path):
    x = torch.arange(6.0)
    rows = [((0, 4),), ((2, 6),), ((0, 6),)]
    save_local(tmp_path, 1, lambda rank: [as_piece("x", x, (rows[rank],))], world=3)
    check_holds(Checkpoint.open(tmp_path), {"x": x})


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    errors = all_errors(tmp_path / "file" / "run", 2, lambda rank: pieces_of(GOOD, rank, 4))
    assert "rank 0 could not save step 2: [Errno 20] Not a directory" in str(errors[0])
    for rank in (1, 2, 3):
        assert f"rank {rank} does not see" in str(errors[rank])
        assert "rank 0 could not begin the save" in str(errors[rank])
    assert listing(tmp_path) == ["file"]


def test_a_folder_without_permission(folder):
    folder.chmod(0o500)
    try:
        if os.access(folder, os.W_OK):
            pytest.skip("this user may write everywhere")
        errors = all_errors(folder, 2, lambda rank: pieces_of(GOOD, rank, 4))
    finally:
        folder.chmod(0o700)
    assert "Permission denied" in str(errors[0])


@pytest.mark.parametrize("call", ["rename", "replace"])
@pytest.mark.parametrize("step", [1, 2])
def test_a_commit_that_fails_is_taken_back(folder, monkeypatch, call, step):
    """`rename` fails from the second on for step 1, which has to move the old one away first."""
    original, count = getattr(os, call), 0

    def fail(source, target, **options):
        nonlocal count
        count += 1
        if count == (step == 1 and call == "rename") + 1:
            raise OSError(errno.EIO, "Input/output error", str(source))
        return original(source, target, **options)

    monkeypatch.setattr(os, call, fail)
    for error in all_errors(folder, step, lambda rank: pieces_of(tensors(2), rank, 4)):
        assert "rank 0 could not save step" in str(error) and "Input/output" in str(error)


def test_a_rank_that_does_not_come_is_the_transport_s_to_tell(folder):
    def rank_main(transport):
        if transport.rank == 1:
            raise ValueError("not today")
        save_checkpoint(
            folder, 2, pieces_of(GOOD, 0, 1), {}, rank=0, world=2,
            barrier=lambda: transport.barrier((0, 1), 1),
        )  # fmt: skip

    with pytest.raises(RankFailure, match="not today"):
        run_local(2, rank_main)
    shutil.rmtree(folder / "step-00000002.partial")


def test_a_rank_as_a_process_with_a_full_disk(folder, monkeypatch):
    """A real limit: the kernel refuses rank 2 any file of more than 600 bytes."""
    monkeypatch.syspath_prepend(str(HERE))
    payload = {"folder": str(folder), "step": 2, "salt": 2, "full": 2}
    for kind, text in launch(4, "ckpt_entries:save", payload):
        assert kind == "CheckpointError"
        assert text.startswith("rank 2 could not save step 2: [Errno 27] File too large")


def test_a_rank_as_a_process_that_is_killed(folder, monkeypatch):
    """Rank 1 dies after the first barrier; the next save clears what it left."""
    monkeypatch.syspath_prepend(str(HERE))
    payload = {"folder": str(folder), "step": 2, "salt": 2, "killed": 1}
    with pytest.raises(RankFailure, match="rank 1 was killed by SIGKILL"):
        launch(4, "ckpt_entries:save", payload)
    check_holds(Checkpoint.open(folder), GOOD)
    assert "step-00000002.partial" in listing(folder)
    save_local(folder, 1, lambda rank: pieces_of(GOOD, rank, 4))


TMPFS = """
mount -t tmpfs -o size=400k none "$1" || exit 77
exec "$2" "$3" "$1"
"""


def test_a_file_system_that_is_full(tmp_path):
    """Four ranks on a real file system of 400 KiB: some of them get no room."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare here")
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", TMPFS, "sh", str(tmp_path), sys.executable,
         str(HERE / "small_disk.py")], capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode == 77 or "unshare:" in done.stderr:
        pytest.skip("no file system can be mounted here")
    assert done.returncode == 0, done.stderr
    assert "No space left on device" in done.stdout


def test_a_save_killed_at_each_of_its_steps(tmp_path):
    done = subprocess.run(
        [sys.executable, str(HERE / "crashes.py"), str(tmp_path / "run")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [[int(n) for n in line.split()] for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == [2, 3]
    assert all(before > 10 and total > before for _, total, before in rows), rows


SAVER = """
import sys, torch
from ckpt_entries import as_piece, save_alone
from plancc.runtime.weights import whole
step = 2
while True:
    x = torch.full((1 << 22,), float(step))
    save_alone(sys.argv[1], step, [as_piece("x", x, whole(x.shape))], keep=2)
    step += 1
"""


def test_saves_killed_at_random_moments(tmp_path):
    """A process saves 16 MiB again and again until it is killed, somewhere in a save."""
    env = {**os.environ, "PYTHONPATH": str(HERE)}
    for delay in (0, 0.02, 0.05):
        folder = tmp_path / str(delay)
        process = subprocess.Popen([sys.executable, "-c", SAVER, str(folder)], env=env)
        try:
            deadline = time.monotonic() + 60
            while not list(folder.glob("step-00000003.partial/rank-*")):
                assert time.monotonic() < deadline
                time.sleep(0.002)
            time.sleep(delay)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        checkpoint = Checkpoint.open(folder)
        assert checkpoint.step >= 2
        assert (checkpoint.read("x", (((0, 1 << 22),),)) == checkpoint.step).all()
        x = torch.ones(4)
        save_alone(folder, 1, [as_piece("x", x, (((0, 4),),))], keep=1)
        assert listing(folder) == ["latest", "step-00000001"]


def test_small_files_may_be_refused_too(folder):
    """Not even a note of the failure can be written; the save still ends as a failure."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, old[1]))
    try:
        errors = all_errors(folder, 2, lambda rank: pieces_of(tensors(2), rank, 4))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert all("could not save step 2" in str(e) or "does not" in str(e) for e in errors)
