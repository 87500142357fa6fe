"""Collectives that run beside the others: a lane has groups of its own, and one thread that works in order.

Every rank of a group starts the same moves in the same order, as its program says; so a lane needs no other
agreement, and never mixes up with what the main thread does meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import torch

from plancc.runtime.comm import Comm
from plancc.runtime.view import View

T = TypeVar("T")


class Handle(Generic[T]):
    """A move that was started; `wait` gives its results or raises what it raised."""

    def __init__(self, future: Future[T], stream: SideStream | None = None) -> None:
        self._future = future
        self._stream = stream

    def wait(self) -> T:
        """Return the results once they are there; on CUDA the current stream waits, not the host."""
        found = self._future.result()
        return found if self._stream is None else self._stream.join(found)


class SideStream:
    """A CUDA stream beside the computation's: it begins after what was queued when a move was started."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)

    def after_now(self, call: Callable[[], T]) -> Callable[[], T]:
        """`call` on the side stream, behind all that the current stream has so far."""
        begin = torch.cuda.Event()
        begin.record()

        def beside() -> T:
            with torch.cuda.stream(self.stream):
                self.stream.wait_event(begin)
                return call()

        return beside

    def join(self, found: T) -> T:
        """Let the current stream go on behind the side stream, and keep results alive for it."""
        done = torch.cuda.Event()
        done.record(self.stream)
        current = torch.cuda.current_stream()
        current.wait_event(done)
        for x in found if isinstance(found, tuple) else (found,):
            if isinstance(x, torch.Tensor):
                x.record_stream(current)
        return found


class Lane:
    """Runs calls one after the other: at once, or in a thread over a transport of its own."""

    def __init__(self, transport: Any, threaded: bool) -> None:
        self.transport = transport
        self._pool = ThreadPoolExecutor(1, "plancc-lane") if threaded else None
        device = torch.device(getattr(transport, "device", "cpu"))
        self._stream = SideStream(device) if threaded and device.type == "cuda" else None

    def submit(self, call: Callable[[], T]) -> Handle[T]:
        """Start a call."""
        if self._pool is not None:
            work = call if self._stream is None else self._stream.after_now(call)
            return Handle(self._pool.submit(unrecorded, work), self._stream)
        done: Future[T] = Future()
        done.set_result(unrecorded(call))
        return Handle(done)

    def close(self) -> None:
        """Wait for what runs, and end the thread."""
        if self._pool is not None:
            self._pool.shutdown()


def unrecorded(call: Callable[[], T]) -> T:
    """Call without recording gradients: a thread of its own begins with recording on."""
    with torch.no_grad():
        return call()


class Starter:
    """The verbs of `comm.start`: as those of Comm, but each returns a Handle."""

    def __init__(self, lane: Lane, view: View) -> None:
        self.lane = lane
        self.comm = Comm(lane.transport, view)

    def all_reduce_bucket(self, *args: Any, **how: Any) -> Handle[Any]:
        """Start `Comm.all_reduce_bucket`."""
        return self.lane.submit(lambda: self.comm.all_reduce_bucket(*args, **how))

    def reduce_scatter_bucket(self, *args: Any, **how: Any) -> Handle[Any]:
        """Start `Comm.reduce_scatter_bucket`."""
        return self.lane.submit(lambda: self.comm.reduce_scatter_bucket(*args, **how))

    def all_gather_bucket(self, *args: Any, **how: Any) -> Handle[Any]:
        """Start `Comm.all_gather_bucket`."""
        return self.lane.submit(lambda: self.comm.all_gather_bucket(*args, **how))


def open_starter(transport: Any, view: View, base: int) -> Starter:
    """The starter over a transport's lane; a transport without one does everything at once."""
    make = getattr(transport, "lane", None)
    starter = Starter(make() if make is not None else Lane(transport, False), view)
    starter.comm.base = base
    return starter
