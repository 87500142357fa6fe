"""What ranks do in the tests of epochs: entries that take (transport, payload)."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from plancc.runtime.epoch import Abandoned, EpochTransport, cut_connections
from plancc.runtime.failure import LostPeer

SIZE = 1 << 25  # bytes: more than the buffers of a connection hold


def part_of_a_message(transport: Any, payload: dict[str, Any]) -> str | None:
    """Rank 0 sends a large message to rank 1, which stands still; then rank 0's epoch is abandoned.

    Returns how rank 0's wait ended. Part of the message has left by then, the rest never will.
    """
    over, store = threading.Event(), dist.FileStore(payload["store"], 2)
    epoch = EpochTransport(transport.rank, 2, store, over)
    store.set(f"pid {transport.rank}", str(os.getpid()))
    epoch.barrier((0, 1), 0)  # connects them
    if transport.rank == 1:
        threading.Thread(target=gather, args=(epoch, torch.ones(0)), daemon=True).start()
        time.sleep(0.3)  # until it waits for the message
        os.kill(os.getpid(), signal.SIGSTOP)
        return None
    other = int(store.get("pid 1"))
    try:
        wait_until_stopped(other)
        threading.Thread(target=abandon, args=(over,), daemon=True).start()
        ended = gather(epoch, torch.ones(SIZE))
        epoch.leave()
        return ended
    finally:
        os.kill(other, signal.SIGCONT)


def gather(epoch: EpochTransport, x: torch.Tensor) -> str:
    """How an all-gather ends to which rank 1 brings nothing."""
    try:
        epoch.all_gather(x.to(torch.uint8), (0, 1), [(SIZE,), (0,)], 1)
    except (Abandoned, LostPeer) as error:
        return type(error).__name__
    return "done"


def wait_until_stopped(pid: int) -> None:
    """Wait for a process to stand still."""
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.01)


def abandon(over: threading.Event) -> None:
    """What the reading thread of a rank's process does, a while later."""
    time.sleep(0.5)
    over.set()
    while True:
        cut_connections()
        time.sleep(0.05)
