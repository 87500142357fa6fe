"""The transport of one epoch: the ranks that take part until some join or leave, on gloo.

An epoch can be abandoned from another thread, wherever its rank waits: what the process has
connected is cut, so that gloo gives up, and who still waits to be connected is let go.

gloo does not always give up: where a message has come, or gone, in part when its connection ends,
who waits for the rest of it is told nothing (gloo/transport/tcp/pair.cc, `signalException` goes through
what is pending, but not through what is under way). So whatever can block is done by a thread beside
the rank's own, which leaves it behind when the epoch is over.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from plancc.runtime.gloo import GlooTransport
from plancc.runtime.transport import COMPUTE, Group

T = TypeVar("T")
LOOK = 0.02  # seconds between looks at whether the epoch is over
PATIENCE = 1.0  # seconds that gloo has to give up what was cut


class Abandoned(Exception):
    """The epoch is over: a rank of it was lost."""


class Beside:
    """A thread that does what may block, one call after the other; left behind once `over` is set."""

    def __init__(self, name: str, over: threading.Event) -> None:
        self._over = over
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def do(self, call: Callable[[], T], patience: float = PATIENCE) -> T:
        """Return or raise what the call does.

        Raises Abandoned where the call still blocks `patience` seconds after `over` was set.
        """
        answers: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

        def answered() -> None:
            try:
                answers.put((True, call()))
            except BaseException as error:
                answers.put((False, error))

        self._calls.put(answered)
        seen: float | None = None
        while True:
            try:
                good, found = answers.get(timeout=LOOK)
            except queue.Empty:
                if self._over.is_set():
                    seen = seen or time.monotonic()
                    if time.monotonic() - seen >= patience:
                        raise Abandoned from None
                continue
            if good:
                return found  # type: ignore[no-any-return]
            try:
                raise found
            finally:
                del found  # it holds this frame

    def end(self) -> None:
        """Let the thread end once it has come this far."""
        self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()


class EpochTransport(GlooTransport):
    """One rank's end; `over` is set, from any thread, when the epoch is abandoned."""

    def __init__(
        self, rank: int, world: int, store: dist.Store, over: threading.Event, **rest: Any
    ) -> None:
        self._over = over
        self._stuck = False
        self._beside_thread = Beside(f"operations of rank {rank}", over)
        super().__init__(rank, world, store, **rest)

    def set_position(self, at: int, state: int = COMPUTE) -> None:
        """Tell the beacon at which instruction the rank stands. Raises Abandoned."""
        self._check()
        super().set_position(at, state)

    def leave(self) -> None:
        """Let go of all connections; of those that something still waits for, in a thread of its own."""
        self._beside_thread.end()
        rest = threading.Thread(target=super().leave, name="leaving", daemon=True)
        rest.start()
        # who is stuck in gloo has been waited for before
        rest.join(LOOK if self._stuck else PATIENCE)

    def _guard(self, at: int | None, work: Callable[[], T]) -> T:
        """As ever, but another thread waits for gloo. Raises Abandoned, LostPeer."""
        guarded = super()._guard
        try:
            return self._beside_thread.do(lambda: guarded(at, work))
        except Abandoned:
            self._stuck = True
            raise

    def _connect(self, name: str, group: Group, *, lazy: bool = True) -> Any:
        """Connect a group at once, in a thread that can be left behind.

        A lazy group would connect inside its first operation, where nothing can interrupt it.
        """
        make = super()._connect
        connecting = Beside(f"connect {name}", self._over)
        try:
            return super()._guard(
                None, lambda: connecting.do(lambda: make(name, group, lazy=False), 0.0)
            )
        finally:
            connecting.end()

    def _check(self) -> None:
        if self._over.is_set():
            raise Abandoned


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
