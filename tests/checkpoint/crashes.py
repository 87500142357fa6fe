"""A save killed at every single step of its way; run as a program, prints what was left.

    python crashes.py FOLDER

For k = 1, 2, ... a forked child saves step 2 over an existing step 1 and 2, and is killed at its
k-th call of the file system. After each kill the folder must hold a good checkpoint, and the next
save must work.
"""

from __future__ import annotations

import builtins
import os
import shutil
import signal
import sys
from pathlib import Path

import torch
from ckpt_entries import check_holds, listing, pieces_of, save_alone, tensors

from plancc.runtime.checkpoint import Checkpoint

CALLS = ("rename", "replace", "fsync", "mkdir", "unlink", "rmdir")


def kill_at(number):
    """Let this process be killed by its `number`-th call that changes files."""
    count = 0

    def step(call):
        def counted(*given, **options):
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*given, **options)

        return counted

    for name in CALLS:
        setattr(os, name, step(getattr(os, name)))
    builtins.open = step(open)


def prepare(folder):
    shutil.rmtree(folder, ignore_errors=True)
    for number in (1, 2):
        save_alone(folder, number, pieces_of(tensors(number), 0, 1), {"salt": number}, keep=2)


def killed(folder, step, number):
    """Save other values in a child that is killed at call `number`; False if it got through."""
    child = os.fork()
    if child == 0:
        kill_at(number)
        save_alone(folder, step, pieces_of(tensors(9), 0, 1), {"salt": 9}, keep=2)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def main(folder):
    torch.set_num_threads(1)
    for step in (2, 3):
        number, salts = 1, []
        while True:
            prepare(folder)
            dead = killed(folder, step, number)
            checkpoint = Checkpoint.open(folder)
            salts.append(checkpoint.state["salt"])
            assert salts[-1] == 9 if not dead else salts[-1] in (2, 9), (number, salts)
            check_holds(checkpoint, tensors(salts[-1]))
            save_alone(folder, 4, pieces_of(tensors(4), 0, 1), {"salt": 4}, keep=2)
            check_holds(Checkpoint.open(folder), tensors(4))
            names = listing(folder)
            assert len(names) == 3 and "latest" in names and "step-00000004" in names, names
            if not dead:
                break
            number += 1
        assert salts == sorted(salts), salts
        print(step, number - 1, salts.count(2))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
