"""The same transport under torchrun, really started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from plancc.runtime.distributed import transport_from_env

HERE = Path(__file__).parent
SCRIPT = """
import os, sys
sys.path.insert(0, {here!r})
import rank_entries
from plancc.runtime.distributed import transport_from_env
with transport_from_env() as transport:
    rank_entries.all_verbs(transport, {{"dtypes": ["float32", "bfloat16"]}})
    if len(sys.argv) > 1 and transport.rank == 1:
        raise ValueError("on purpose")
    os.write(1, f"rank {{transport.rank}} of {{transport.world}} is done\\n".encode())
"""


def torchrun(tmp_path, *arguments):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.format(here=str(HERE)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*command, "--nproc-per-node", "4", path, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_four_ranks_under_torchrun(tmp_path):
    ended = torchrun(tmp_path)
    assert ended.returncode == 0, ended.stderr
    done = sorted(line for line in ended.stdout.splitlines() if line)
    assert done == [f"rank {rank} of 4 is done" for rank in range(4)]


def test_a_raising_rank_ends_the_run(tmp_path):
    ended = torchrun(tmp_path, "raise")
    assert ended.returncode != 0
    assert "ValueError: on purpose" in ended.stderr


def test_without_torchrun_it_says_what_is_missing(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(RuntimeError, match="RANK and WORLD_SIZE not set"):
        transport_from_env()
