"""Which cores the process of a rank runs on, and how its threads take turns there.

Gloo's thread passes over a connection that another thread is using, and looks again at once
(gloo, transport/tcp/pair.cc: handleEvents takes the lock only if it is free). Where both share a
core, a message thus wakes a thread which then keeps the core from the one that it waits for, for as
long as the system lets it: several milliseconds a message, when they take microseconds. Batch
scheduling (sched(7), SCHED_BATCH) lets a woken thread wait until the core is free, and that ends it.

`PLANCC_CORES=free` leaves both, cores and scheduling, as the system has them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

SWITCH, FREE = "PLANCC_CORES", "free"
THREADS = Path("/proc/self/task")


def cores_of(rank: int, world: int, backend: str) -> tuple[int, ...]:
    """The cores that the process of a rank on this host is bound to; () where the system chooses.

    Ranks on gloo have equal shares, those of neighbours side by side. Where there are more ranks than
    cores the system moves them about, and with nccl the host has little to compute.
    """
    if backend != "gloo" or not hasattr(os, "sched_getaffinity"):
        return ()
    return share(rank, world, sorted(os.sched_getaffinity(0)))


def share(rank: int, world: int, cores: Sequence[int]) -> tuple[int, ...]:
    """A rank's part of the cores; () if there is not one for each."""
    count = len(cores)
    if world > count:
        return ()
    return tuple(cores[count * rank // world : count * (rank + 1) // world])


def settle(cores: Sequence[int], backend: str) -> None:
    """Have this process run on `cores` (if any), and its threads let each other finish (on gloo).

    Threads made later inherit it. A system that does not permit it runs the ranks as it likes.
    """
    if os.environ.get(SWITCH) == FREE:
        return
    for thread in threads():
        with suppress(OSError):
            if backend == "gloo":
                os.sched_setscheduler(thread, os.SCHED_BATCH, os.sched_param(0))
            if cores:
                os.sched_setaffinity(thread, cores)


def threads() -> list[int]:
    """The threads of this process as Linux numbers them; none elsewhere."""
    return [int(one.name) for one in THREADS.iterdir()] if THREADS.is_dir() else []
