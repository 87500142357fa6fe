"""Ranks as processes: the transport on torch's gloo and nccl backends.

Backends are made directly, one for each group, named by its ranks: `new_group` with local
synchronization hashes how many groups a process has, so that ranks with different sets of groups
would wait for each other forever.
"""

from __future__ import annotations

import os
import zlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from plancc.runtime.beacon import GROUP, MESSAGE, PART, Beacon, Channel, Entry
from plancc.runtime.cores import settle
from plancc.runtime.failure import LostPeer, Mismatch
from plancc.runtime.lane import Lane
from plancc.runtime.transport import (
    COMPUTE,
    FINISHED,
    Counters,
    Group,
    Shape,
    check_group,
    check_own,
    check_parts,
    check_peer,
    one_dtype,
    signature_text,
)

T = TypeVar("T")


class DistributedTransport(ABC):
    """What gloo and nccl have in common: groups, beacon, mismatches, and the verbs' contracts."""

    def __init__(
        self,
        rank: int,
        world: int,
        store: dist.Store,
        *,
        beacon: Beacon | None = None,
        time_limit: float = 300.0,
        device: torch.device | None = None,
    ) -> None:
        self.rank = rank
        self.world = world
        self.store = store
        self.device = device or torch.device("cpu")
        self.counters = Counters()
        self.program = ""
        self._beacon = beacon
        self._limit = timedelta(seconds=time_limit)
        self._groups: dict[Group, Any] = {}
        self._lane: Lane | None = None
        self._messages: dict[Channel, int] = {}
        self._own_mail: dict[int, deque[Tensor]] = {}

    def __enter__(self) -> DistributedTransport:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()

    def lane(self) -> Lane:
        """A lane for collectives beside this transport's, made at its first use; it counts here too."""
        if self._lane is None:
            beside = self._beside()
            beside.counters = self.counters
            self._lane = Lane(beside, True)
        return self._lane

    @abstractmethod
    def _beside(self) -> DistributedTransport:
        """Make a transport of the same rank with communicators of its own, for collectives only."""

    def close(self) -> None:
        """Wait until all that was sent has left, and all ranks have come this far."""
        if self._lane is not None:
            self._lane.close()
        at = self._beacon.instruction if self._beacon is not None else None
        self._guard(at, lambda: self._flush(lambda target: self._show(at, {target})))
        if self._beacon is not None:
            self._beacon.stand(at, FINISHED)
        self._count_in("finished", wait=True)
        self._count_in("left", wait=self.rank == 0)  # rank 0 may host the store

    def _count_in(self, event: str, *, wait: bool) -> None:
        if self.store.add(event, 1) == self.world:
            self.store.set(f"all {event}", "1")
        elif wait:
            self.store.wait([f"all {event}"], self._limit)

    def set_position(self, at: int, state: int = COMPUTE) -> None:
        """Tell the beacon at which instruction the rank stands."""
        if self._beacon is not None:
            self._beacon.stand(at, state)

    def all_reduce(self, x: Tensor, group: Group, at: int) -> Tensor:
        """Return the sum of x over the group (logical or, for bool)."""
        return self._all_reduce(x.detach(), group, at, self._sum)

    def all_reduce_given(self, x: Tensor, group: Group, at: int) -> Tensor:
        """`all_reduce` of a tensor that the caller gives away: it may become the result."""
        return self._all_reduce(x.detach(), group, at, self._sum_given)

    def _all_reduce(
        self, x: Tensor, group: Group, at: int, work: Callable[[Tensor, Group], Tensor]
    ) -> Tensor:
        if self._alone(group, at):
            return _fresh(x)
        self.counters.add("all_reduce", x.nbytes)
        text = signature_text("all_reduce", x.dtype, [tuple(x.shape)])
        return self._meet(group, at, text, lambda: work(x, group) if x.numel() else _fresh(x))

    def all_gather(self, x: Tensor, group: Group, shapes: Sequence[Shape], at: int) -> list[Tensor]:
        """Return everybody's x in group order; shapes[i] is that of group[i]."""
        x = x.detach()
        check_parts("all_gather", shapes, group)
        if self._alone(group, at):
            return [_fresh(x)]
        check_own("all_gather", x, shapes[group.index(self.rank)])
        sizes = _sizes(shapes, x.dtype)
        self.counters.add("all_gather", sum(sizes))
        text = signature_text("all_gather", x.dtype, shapes)

        def work() -> list[Tensor]:
            flat = self._gather(_bytes(x), group, sizes) if sum(sizes) else _bytes(x)
            return _unpack(flat, x.dtype, shapes)

        return self._meet(group, at, text, work)

    def reduce_scatter(self, parts: Sequence[Tensor], group: Group, at: int) -> Tensor:
        """Send parts[i] to group[i]; return the sum of what is meant for this rank."""
        parts = [part.detach() for part in parts]
        check_parts("reduce_scatter", parts, group)
        dtype = one_dtype("reduce_scatter", parts)
        if self._alone(group, at):
            return _fresh(parts[0])
        size = sum(part.nbytes for part in parts)
        self.counters.add("reduce_scatter", size)
        text = signature_text("reduce_scatter", dtype, [tuple(part.shape) for part in parts])
        mine = parts[group.index(self.rank)]
        work = (lambda: self._sum_parts(parts, group)) if size else (lambda: _fresh(mine))
        return self._meet(group, at, text, work)

    def all_to_all(
        self, parts: Sequence[Tensor], group: Group, shapes: Sequence[Shape], at: int
    ) -> list[Tensor]:
        """Send parts[i] to group[i]; return what comes from group[i], of shape shapes[i]."""
        parts = [part.detach() for part in parts]
        check_parts("all_to_all", parts, group)
        check_parts("all_to_all", shapes, group)
        dtype = one_dtype("all_to_all", parts)
        if self._alone(group, at):
            return [_fresh(parts[0])]
        mine = group.index(self.rank)
        check_own("all_to_all", parts[mine], shapes[mine])
        self.counters.add("all_to_all", sum(part.nbytes for part in parts))
        for peer, part, shape in zip(group, parts, shapes, strict=True):
            if peer == self.rank:
                continue
            sending = signature_text("all_to_all part", dtype, [tuple(part.shape)])
            receiving = signature_text("all_to_all part", dtype, [tuple(shape)])
            self._agree((PART, self.rank, peer), (peer,), at, sending)
            self._agree((PART, peer, self.rank), (peer,), at, receiving)

        def work() -> list[Tensor]:
            flat = torch.cat([_bytes(part) for part in parts])
            sizes = [part.nbytes for part in parts]
            return _unpack(self._swap(flat, sizes, group, _sizes(shapes, dtype)), dtype, shapes)

        return self._meet(group, at, signature_text("all_to_all", dtype, ()), work)

    def exchange(
        self,
        sends: Sequence[tuple[int, Tensor]],
        recvs: Sequence[tuple[int, Shape, torch.dtype]],
        at: int,
        channel: int = 0,
    ) -> list[Tensor]:
        """Send (rank, tensor) pairs and return what the (rank, shape, dtype) receives bring."""
        self.set_position(at)
        sent = 0
        for target, tensor in sends:
            check_peer(target, self.world)
            if tensor.numel():
                sent += tensor.nbytes if target != self.rank else 0
                self._post(target, _fresh(tensor.detach()), at, channel)
        self.counters.add("exchange", sent)
        found = [torch.empty(shape, dtype=dtype, device=self.device) for _, shape, dtype in recvs]
        pending = []
        for (source, _, _), tensor in zip(recvs, found, strict=True):
            check_peer(source, self.world)
            if tensor.numel():
                pending.append((source, self._expect(source, tensor, at, channel)))
        while pending:
            self._show(at, {source for source, _ in pending})
            _, finish = pending.pop(0)
            self._guard(at, finish)
        self.set_position(at)
        return found

    def barrier(self, group: Group, at: int) -> None:
        """Return when every member of the group has arrived."""
        if not self._alone(group, at):
            self.counters.add("barrier", 0)
            self._meet(group, at, "barrier", lambda: self._backend(group).barrier().wait())

    @abstractmethod
    def prepare(self, groups: Sequence[Group], pairs: Sequence[tuple[int, int]]) -> None:
        """Make the communicators of these groups and (source, target) pairs beforehand.

        Every rank passes all groups and pairs of the program that it is in. Needed only where a
        first contact blocks (nccl); the order is the same on all ranks.
        """

    @abstractmethod
    def _connect(self, name: str, group: Group) -> Any:
        """Make torch's backend for a group."""

    @abstractmethod
    def _sum(self, x: Tensor, group: Group) -> Tensor:
        """Return the sum of x, which has elements, over the group."""

    def _sum_given(self, x: Tensor, group: Group) -> Tensor:
        """`_sum` that may overwrite x."""
        return self._sum(x, group)

    @abstractmethod
    def _gather(self, x: Tensor, group: Group, sizes: Sequence[int]) -> Tensor:
        """Join everybody's bytes, as many as `sizes` says."""

    @abstractmethod
    def _sum_parts(self, parts: Sequence[Tensor], group: Group) -> Tensor:
        """Return the sum of what the group has for this rank; some part has elements."""

    @abstractmethod
    def _swap(
        self, flat: Tensor, sizes: Sequence[int], group: Group, found: Sequence[int]
    ) -> Tensor:
        """Send sizes[i] of the bytes to group[i]; join found[i] bytes from each group[i]."""

    @abstractmethod
    def _send(self, tensor: Tensor, target: int, tag: int, channel: int) -> None:
        """Send without waiting; the tensor is not used for anything else."""

    @abstractmethod
    def _receive(self, tensor: Tensor, source: int, tag: int, channel: int) -> Callable[[], object]:
        """Begin to receive into the tensor; the result waits for the end."""

    @abstractmethod
    def _flush(self, show: Callable[[int], None]) -> None:
        """Return when all that was sent has left; tell `show` which rank is waited for."""

    def _alone(self, group: Group, at: int) -> bool:
        self.set_position(at)
        if group not in self._groups:
            check_group(group, self.rank, self.world)
        return len(group) == 1

    def _backend(self, group: Group) -> Any:
        if group not in self._groups:
            name = "group " + ",".join(map(str, group))
            self._groups[group] = self._connect(name, group)
        return self._groups[group]

    def _meet(self, group: Group, at: int, text: str, work: Callable[[], T]) -> T:
        """Do the work of a collective, unless a peer is seen to intend something else."""
        peers = [peer for peer in group if peer != self.rank]
        meeting = self._agree((GROUP, *group), peers, at, text)
        self._show(at, peers, meeting)
        result = self._guard(at, work)
        self.set_position(at)
        return result

    def _agree(self, channel: Channel, peers: Sequence[int], at: int, text: str) -> int:
        """Post what this rank brings to the next meeting; raise if a peer brought another thing."""
        if self._beacon is None:
            return 0
        meeting, clash = self._beacon.arrive(channel, peers, at, self.program, text)
        if clash is not None:
            raise self._mismatch(at, text, *clash)
        return meeting

    def _mismatch(self, at: int, mine: str, peer: int, entry: Entry) -> Mismatch:
        if mine == entry.text:
            mine = f"{mine} of program {self.program}"
            return Mismatch(None, self.rank, at, mine, peer, entry.instruction, mine)
        return Mismatch(None, self.rank, at, mine, peer, entry.instruction, entry.text)

    def _show(self, at: int | None, peers: Sequence[int] | set[int], meeting: int = 0) -> None:
        if self._beacon is not None:
            self._beacon.wait(at, peers, meeting)

    def _guard(self, at: int | None, work: Callable[[], T]) -> T:
        """Turn what a backend raises into a failure of this rank that points elsewhere."""
        try:
            with torch.inference_mode(False), torch.no_grad():
                return work()
        except RuntimeError as error:
            reason = "lost a peer or waited too long"
            raise LostPeer(self.rank, at, None, reason, str(error)) from error

    def _post(self, target: int, tensor: Tensor, at: int, channel: int) -> None:
        if target == self.rank:
            self._own_mail.setdefault(channel, deque()).append(tensor)
            return
        tag = self._tag((MESSAGE, self.rank, target, channel), target, tensor, at)
        self._guard(at, lambda: self._send(tensor, target, tag, channel))

    def _expect(self, source: int, tensor: Tensor, at: int, channel: int) -> Callable[[], object]:
        """Begin to receive into the tensor; the result waits for it."""
        if source == self.rank:
            return lambda: tensor.copy_(self._own_mail[channel].popleft())
        tag = self._tag((MESSAGE, source, self.rank, channel), source, tensor, at)
        return self._guard(at, lambda: self._receive(tensor, source, tag, channel))

    def _tag(self, stream: Channel, peer: int, tensor: Tensor, at: int) -> int:
        """Number a message, and hash in what it is: only its like can be received for it."""
        text = signature_text("message", tensor.dtype, [tuple(tensor.shape)])
        self._agree(stream, (peer,), at, text)
        count = self._messages[stream] = self._messages.get(stream, 0) + 1
        return zlib.crc32(f"{stream[3]} {count} {text}".encode()) & 0x7FFFFFFF


def open_transport(
    backend: str, rank: int, world: int, store: dist.Store, *, local_rank: int = 0,
    loopback: bool = True, beacon: Beacon | None = None, time_limit: float = 300.0,
) -> DistributedTransport:  # fmt: skip
    """Make the transport of a rank; `loopback` keeps gloo on 127.0.0.1."""
    if backend == "gloo":
        from plancc.runtime.gloo import GlooTransport

        return GlooTransport(
            rank, world, store, beacon=beacon, time_limit=time_limit, loopback=loopback
        )
    if backend == "nccl":
        from plancc.runtime.nccl import NcclTransport

        device = torch.device("cuda", local_rank)
        return NcclTransport(
            rank, world, store, beacon=beacon, time_limit=time_limit, device=device
        )
    raise ValueError(f"no backend `{backend}`: there are gloo and nccl")


def transport_from_env(
    backend: str | None = None, *, time_limit: float = 300.0
) -> DistributedTransport:
    """Make the transport of a rank that torchrun (or a scheduler) started.

    Reads RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT. nccl where
    there is CUDA, else gloo. Use it as a context manager, or call `close` at the end.
    """
    missing = [name for name in ("RANK", "WORLD_SIZE") if name not in os.environ]
    if missing:
        raise RuntimeError(f"not started by torchrun: {' and '.join(missing)} not set")
    limit = timedelta(seconds=time_limit)
    store, rank, world = next(iter(dist.rendezvous("env://", timeout=limit)))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    backend = backend or ("nccl" if torch.cuda.is_available() else "gloo")
    if backend == "gloo":
        settle(())  # torchrun's --numa-binding, or a scheduler, says where its processes run
    return open_transport(
        backend, rank, world, dist.PrefixStore(f"plancc/{attempt}", store),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        loopback=os.environ.get("LOCAL_WORLD_SIZE") == str(world), time_limit=time_limit,
    )  # fmt: skip


def _fresh(x: Tensor) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return x.clone(memory_format=torch.contiguous_format)


def _bytes(x: Tensor) -> Tensor:
    """See a tensor as its bytes: what is not summed travels as such, whatever its dtype."""
    return x.contiguous().view(-1).view(torch.uint8)


def _sizes(shapes: Sequence[Shape], dtype: torch.dtype) -> list[int]:
    return [torch.Size(shape).numel() * dtype.itemsize for shape in shapes]


def _unpack(flat: Tensor, dtype: torch.dtype, shapes: Sequence[Shape]) -> list[Tensor]:
    pieces = flat.split(_sizes(shapes, dtype))
    return [piece.view(dtype).view(shape) for piece, shape in zip(pieces, shapes, strict=True)]
