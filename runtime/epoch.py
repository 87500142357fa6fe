"""The transport of one epoch: the ranks that take part until some join or leave, on gloo.

An epoch can be abandoned from another thread, wherever its rank waits: what the process has
connected is cut, so that gloo gives up, and who still waits to be connected is let go.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from plancc.runtime.gloo import GlooTransport
from plancc.runtime.transport import COMPUTE, Group


class Abandoned(Exception):
    """The epoch is over: a rank of it was lost."""


class EpochTransport(GlooTransport):
    """One rank's end; `over` is set, from any thread, when the epoch is abandoned."""

    def __init__(
        self, rank: int, world: int, store: dist.Store, over: threading.Event, **rest: Any
    ) -> None:
        self._over = over
        super().__init__(rank, world, store, **rest)

    def set_position(self, at: int, state: int = COMPUTE) -> None:
        """Tell the beacon at which instruction the rank stands. Raises Abandoned."""
        self._check()
        super().set_position(at, state)

    def _connect(self, name: str, group: Group, *, lazy: bool = True) -> Any:
        """Connect a group at once, in a thread that can be left behind.

        A lazy group would connect inside its first operation, where nothing can interrupt it.
        """
        found: list[Any] = []
        done = threading.Event()

        def work() -> None:
            try:
                found.append(super(EpochTransport, self)._connect(name, group, lazy=False))
            except RuntimeError as error:
                found.append(error)
            finally:
                done.set()

        threading.Thread(target=work, name=f"connect {name}", daemon=True).start()
        while not done.wait(0.02):
            self._check()
        if isinstance(found[0], RuntimeError):
            return self._guard(None, _raises(found[0]))
        return found[0]

    def _check(self) -> None:
        if self._over.is_set():
            raise Abandoned


def _raises(error: RuntimeError) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


def cut_connections() -> None:
    """Shut down every TCP connection of this process: in a rank's process they are all gloo's."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                with socket.socket(fileno=os.dup(int(name))) as found:
                    listens = found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                    if found.family in (socket.AF_INET, socket.AF_INET6) and not listens:
                        found.shutdown(socket.SHUT_RDWR)
        except OSError:
            continue  # closed meanwhile, or never connected
