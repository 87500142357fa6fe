"""The gloo backend: one host or several, CPU only.

Everything but a large sum travels by one all-to-all over the group: on gloo that is five to ten
times as fast as its rings for small tensors, takes uneven and empty parts, and lets each rank add
in group order, as local ranks do. Large parts go straight from memory to memory instead.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from plancc.runtime.distributed import DistributedTransport
from plancc.runtime.transport import Group

SMALL = 1 << 18  # bytes up to which all_reduce gathers and adds, instead of going round a ring
LARGE = 1 << 21  # bytes of a part from which the copies of an all-to-all cost more than it saves
RING_DTYPES = {
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int8, torch.uint8,
}  # fmt: skip


class GlooTransport(DistributedTransport):
    """One rank on gloo; `loopback` keeps it on 127.0.0.1, else gloo chooses the interface.

    `members` are the ranks of the world that take part: all of them, unless it is told.
    """

    def __init__(
        self, rank: int, world: int, store: dist.Store, *, loopback: bool = True,
        members: Group | None = None, messages: bool = True, **rest: Any,
    ) -> None:  # fmt: skip
        super().__init__(rank, world, store, **rest)
        self._loopback = loopback
        self._sent: _Sent | None = None
        self._traded: dict[Group, int] = {}
        self.members = members or tuple(range(world))
        self._place = {member: place for place, member in enumerate(self.members)}
        self.messages = messages
        alone = len(self.members) == 1 or not messages
        self._pairs = None if alone else self._connect("pairs", self.members, lazy=False)

    def _beside(self) -> GlooTransport:
        return GlooTransport(
            self.rank, self.world, dist.PrefixStore("lane", self.store), loopback=self._loopback,
            members=self.members, messages=False, time_limit=self._limit.total_seconds(),
        )  # fmt: skip

    def close(self) -> None:
        """Wait for all ranks, then let go of the connections.

        Their threads end here: one that still drops a tensor while the interpreter shuts down would
        abort the process ("terminate called without an active exception").
        """
        super().close()
        self.leave()

    def leave(self) -> None:
        """Let go of all connections, the lane's too; nothing may be under way but what was abandoned."""
        if self._lane is not None:
            self._lane.transport.leave()
            self._lane = None
        if self._sent is not None:
            self._sent.stop()
            self._sent = None
        self._groups.clear()
        self._pairs = None

    def prepare(self, groups: Sequence[Group], pairs: Sequence[tuple[int, int]]) -> None:
        """Do nothing: a first contact on gloo blocks nobody."""

    def _connect(self, name: str, group: Group, *, lazy: bool = True) -> Any:
        """Make the backend of a group; a lazy one connects only the pairs that talk.

        A lazy connection can block its first sender until the receiver comes, so what carries
        messages is connected at once. Lazy backends cannot share a device.
        """
        kind = dist.ProcessGroupGloo
        options = kind._Options()
        make = kind.create_device if self._loopback else kind.create_default_device
        where = {"hostname": "127.0.0.1"} if self._loopback else {}
        options._devices = [make(**where, lazy_init=lazy)]
        options._threads = 1
        options._timeout = self._limit
        store = dist.PrefixStore(name, self.store)
        return kind(store, group.index(self.rank), len(group), options)

    def _sum(self, x: Tensor, group: Group) -> Tensor:
        if self._rings(x):
            x = x.clone(memory_format=torch.contiguous_format)
        return self._sum_given(x, group)

    def _sum_given(self, x: Tensor, group: Group) -> Tensor:
        if not self._rings(x):
            return self._sum_by_swap(x, group, x.nbytes <= SMALL)
        total = x.contiguous()
        self._backend(group).allreduce([total]).wait()
        return total

    def _rings(self, x: Tensor) -> bool:
        return x.nbytes > SMALL and x.dtype in RING_DTYPES

    def _sum_by_swap(self, x: Tensor, group: Group, small: bool) -> Tensor:
        if small:
            return self._sum_parts([x] * len(group), group)
        parts = list(x.contiguous().view(-1).tensor_split(len(group)))
        mine = self._sum_parts(parts, group).view(torch.uint8)
        sizes = [part.nbytes for part in parts]
        return self._gather(mine, group, sizes).view(x.dtype).view(x.shape)

    def _gather(self, x: Tensor, group: Group, sizes: Sequence[int]) -> Tensor:
        if max(sizes) < LARGE:
            return self._swap(x.repeat(len(group)), [x.numel()] * len(group), group, sizes)
        out = torch.empty(sum(sizes), dtype=torch.uint8)
        rows = out.split(list(sizes))
        own = group.index(self.rank)
        self._trade([x] * len(group), rows, group, lambda: rows[own].copy_(x))
        return out

    def _sum_parts(self, parts: Sequence[Tensor], group: Group) -> Tensor:
        own = group.index(self.rank)
        mine = parts[own]
        if max(part.nbytes for part in parts) >= LARGE:
            terms = [torch.empty(mine.shape, dtype=mine.dtype) for _ in group]
            given = [part.contiguous() for part in parts]
            self._trade(given, terms, group, lambda: terms[own].copy_(mine))
        else:
            flat = torch.cat([part.contiguous().view(-1) for part in parts]).view(torch.uint8)
            sizes = [part.nbytes for part in parts]
            found = self._swap(flat, sizes, group, [mine.nbytes] * len(group)).view(mine.dtype)
            terms = list(found.view(len(group), *mine.shape).unbind())
            terms[0] = terms[0].clone()
        total, *others = terms
        for other in others:
            total.add_(other)
        return total

    def _trade(
        self, sends: Sequence[Tensor], found: Sequence[Tensor], group: Group,
        meanwhile: Callable[[], object],
    ) -> None:  # fmt: skip
        """Send sends[i] to group[i], receive found[i] from it; this rank's own pair is left alone."""
        backend, own, count = self._backend(group), group.index(self.rank), len(group)
        tag = self._traded[group] = self._traded.get(group, 0) + 1 & 0x7FFFFFFF
        works = []
        for step in range(1, count):
            source, target = (own - step) % count, (own + step) % count
            if found[source].numel():
                works.append(backend.recv([found[source]], source, tag))
            if sends[target].numel():
                works.append(backend.send([sends[target]], target, tag))
        meanwhile()
        for work in works:
            work.wait()

    def _swap(
        self, flat: Tensor, sizes: Sequence[int], group: Group, found: Sequence[int]
    ) -> Tensor:
        out = torch.empty(sum(found), dtype=torch.uint8)
        self._backend(group).alltoall_base(out, flat, list(found), list(sizes)).wait()
        return out

    def _send(self, tensor: Tensor, target: int, tag: int, channel: int) -> None:
        if self._sent is None:
            self._sent = _Sent()
        self._sent.keep(self._pairs.send([tensor], self._place[target], tag), tensor, target)

    def _receive(self, tensor: Tensor, source: int, tag: int, channel: int) -> Callable[[], object]:
        return self._pairs.recv([tensor], self._place[source], tag).wait

    def _flush(self, show: Callable[[int], None]) -> None:
        if self._sent is not None:
            self._sent.flush(show)


class _Sent:
    """Keeps what is being sent until it has left: gloo completes a send only for who waits."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._target: int | None = None
        self._error: RuntimeError | None = None
        threading.Thread(target=self._work, name="sent messages", daemon=True).start()

    def keep(self, work: Any, tensor: Tensor, target: int) -> None:
        """Hold the tensor until the work is done."""

        def leave(_held: Tensor = tensor) -> None:
            self._target = target
            work.wait()

        self._queue.put(leave)

    def flush(self, show: Callable[[int], None]) -> None:
        """Return when all has left; `show` is told which rank is being waited for."""
        done = threading.Event()
        self._queue.put(done.set)
        shown = None
        while not done.wait(0.02):
            if self._error is not None:
                raise self._error
            if self._target != shown:
                shown = self._target
                show(shown)

    def stop(self) -> None:
        """Let the thread end once it has come this far."""
        self._queue.put(None)

    def _work(self) -> None:
        try:
            while (leave := self._queue.get()) is not None:
                leave()
        except RuntimeError as error:
            self._error = error
