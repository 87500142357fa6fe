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


def usable() -> tuple[int, ...]:
    """The cores that this process may use; () where the system does not say."""
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()


def share(rank: int, world: int, cores: Sequence[int]) -> tuple[int, ...]:
    """The cores of a rank on gloo out of those that the launcher may use; all, if there is not one for each.

    Shares are equal to within one core, those of neighbours side by side. More ranks than cores are moved
    about by the system.
    """
    count = len(cores)
    if world > count:
        return tuple(cores)
    return tuple(cores[count * rank // world : count * (rank + 1) // world])


def settle(cores: Sequence[int]) -> None:
    """Have this process run on `cores` (if any), and its threads let each other finish.

    Threads made later inherit it. Scheduling that somebody chose is left as it is, and a system that permits
    neither runs the ranks as it likes.
    """
    if os.environ.get(SWITCH) == FREE:
        return
    for thread in threads():
        with suppress(OSError):
            if os.sched_getscheduler(thread) == os.SCHED_OTHER:
                os.sched_setscheduler(thread, os.SCHED_BATCH, os.sched_param(0))
        with suppress(OSError):
            if cores:
                os.sched_setaffinity(thread, cores)


def threads() -> list[int]:
    """The threads of this process as Linux numbers them; none elsewhere."""
    return [int(one.name) for one in THREADS.iterdir()] if THREADS.is_dir() else []
