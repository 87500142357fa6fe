"""Save until the disk is full, then a bigger model than fits; run as a program in a small disk.

python small_disk.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from ckpt_entries import check_holds, listing, pieces_of, save_local

from plancc.runtime.checkpoint import Checkpoint, CheckpointError
from plancc.runtime.failure import RankFailure


def main(folder):
    small = {"x": torch.arange(16384.0).view(128, 128)}  # 64 KiB of 400
    large = {"x": torch.zeros(1024, 128)}  # 512 KiB
    for step in (1, 2):
        save_local(folder, step, lambda rank: pieces_of(small, rank, 4), keep=2)
    for step, whole in ((3, large), (4, large), (2, large)):
        try:
            save_local(folder, step, lambda rank, whole=whole: pieces_of(whole, rank, 4))
        except RankFailure as failure:
            assert isinstance(failure.__cause__, CheckpointError)
            print(failure)
        else:
            raise AssertionError("it fitted")
        assert Checkpoint.open(folder).step == 2
        check_holds(Checkpoint.open(folder), small)
    save_local(folder, 5, lambda rank: pieces_of(small, rank, 4), keep=1)
    assert listing(folder) == ["latest", "step-00000005"]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
