"""All ranks in one process: threads under a baton, of which one runs at a time.

Deterministic and bitwise repeatable: ranks run in a fixed order, and switch only where one has to
wait. Nobody can wait in vain: when the last runnable rank waits, the run stops with a
`RankFailure` that says who waits for whom.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from plancc.runtime.baton import Baton, Message, Stopped, outside_autograd
from plancc.runtime.failure import Describe
from plancc.runtime.transport import (
    COMPUTE,
    Counters,
    Group,
    Shape,
    Transport,
    check_group,
    check_own,
    check_parts,
    check_peer,
    one_dtype,
    signature_text,
)

T = TypeVar("T")


def run_local(world: int, fn: Callable[[Transport], T], *, describe: Describe = None) -> list[T]:
    """Run fn once a rank, all in this process, and return the results by rank.

    Ranks take over the grad mode and inference mode of the caller. Raises `RankFailure` for a
    rank that raised (the cause is chained), a mismatch, a deadlock or a message never received.
    """
    baton = Baton(world, describe)
    modes = (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    threads = [
        threading.Thread(
            target=baton.body, args=(rank, partial(_run, baton, rank, fn, modes)), daemon=True
        )
        for rank in range(world)
    ]
    try:
        for thread in threads:
            thread.start()
        baton.pass_on()
        for thread in threads:
            thread.join()
    except BaseException as interrupt:
        baton.stop(interrupt)
        baton.release_all()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
        raise
    if baton.stopped is not None:
        raise baton.stopped
    baton.check_mail()
    return baton.results


def _run(baton: Baton, rank: int, fn: Callable[[Transport], T], modes: tuple[bool, bool]) -> T:
    with torch.inference_mode(modes[1]), torch.set_grad_enabled(modes[0]):
        return fn(LocalTransport(baton, rank))


class LocalTransport:
    """The transport of one rank among threads."""

    def __init__(self, baton: Baton, rank: int) -> None:
        self._baton = baton
        self.rank = rank
        self.world = baton.world
        self.device = torch.device("cpu")
        self.counters = Counters()
        self.members: Group | None = None  # the ranks that take part, if not all

    @property
    def program(self) -> str:
        """Name of the rank's program (see `Transport`)."""
        return self._baton.programs[self.rank]

    @program.setter
    def program(self, name: str) -> None:
        self._baton.programs[self.rank] = name

    def set_position(self, at: int, state: int = COMPUTE) -> None:
        """Note at which instruction the rank stands."""
        if self._baton.stopped is not None:
            raise Stopped
        self._baton.positions[self.rank] = at

    def _enter(self, group: Group, at: int) -> None:
        baton = self._baton
        self.set_position(at)
        if (group, self.rank) not in baton.groups:
            check_group(group, self.rank, self.world)
            baton.groups.add((group, self.rank))

    def all_reduce(self, x: Tensor, group: Group, at: int) -> Tensor:
        """Return the sum of x over the group (logical or, for bool)."""
        self._enter(group, at)
        if len(group) == 1:
            return _fresh(x)
        self.counters.add("all_reduce", x.nbytes)
        signature = ("all_reduce", x.dtype, (tuple(x.shape),))
        return self._baton.meet(self.rank, group, signature, x.detach(), _sum_for_all)

    def all_gather(self, x: Tensor, group: Group, shapes: Sequence[Shape], at: int) -> list[Tensor]:
        """Return everybody's x in group order; shapes[i] is that of group[i]."""
        self._enter(group, at)
        check_parts("all_gather", shapes, group)
        check_own("all_gather", x, shapes[group.index(self.rank)])
        if len(group) == 1:
            return [_fresh(x)]
        shapes = tuple(tuple(shape) for shape in shapes)
        self.counters.add("all_gather", _count(shapes) * x.element_size())
        signature = ("all_gather", x.dtype, shapes)
        return self._baton.meet(self.rank, group, signature, x.detach(), _gather_for_all)

    def reduce_scatter(self, parts: Sequence[Tensor], group: Group, at: int) -> Tensor:
        """Send parts[i] to group[i]; return the sum of what is meant for this rank."""
        self._enter(group, at)
        check_parts("reduce_scatter", parts, group)
        dtype = one_dtype("reduce_scatter", parts)
        if len(group) == 1:
            return _fresh(parts[0])
        self.counters.add("reduce_scatter", sum(part.nbytes for part in parts))
        signature = ("reduce_scatter", dtype, tuple(tuple(part.shape) for part in parts))
        given = [part.detach() for part in parts]
        return self._baton.meet(self.rank, group, signature, given, _sum_for_each)

    def all_to_all(
        self, parts: Sequence[Tensor], group: Group, shapes: Sequence[Shape], at: int
    ) -> list[Tensor]:
        """Send parts[i] to group[i]; return what comes from group[i], of shape shapes[i]."""
        self._enter(group, at)
        check_parts("all_to_all", parts, group)
        check_parts("all_to_all", shapes, group)
        mine = group.index(self.rank)
        check_own("all_to_all", parts[mine], shapes[mine])
        dtype = one_dtype("all_to_all", parts)
        if len(group) > 1:
            self.counters.add("all_to_all", sum(part.nbytes for part in parts))
        given = ([part.detach() for part in parts], shapes)
        signature = ("all_to_all", dtype, ())
        return self._baton.meet(self.rank, group, signature, given, self._swap)

    def _swap(self, group: Group, inputs: dict[int, Any]) -> dict[int, list[Tensor]]:
        """Give everybody its parts, unless some rank expects another shape than it gets."""
        received = {}
        for i, rank in enumerate(group):
            received[rank] = [_copy(inputs[other][0][i]) for other in group]
            for other, part, shape in zip(group, received[rank], inputs[rank][1], strict=True):
                if tuple(part.shape) != tuple(shape):
                    mine = signature_text("all_to_all receiving", part.dtype, [tuple(shape)])
                    theirs = signature_text("all_to_all sending", part.dtype, [part.shape])
                    at = self._baton.positions[other]
                    raise self._baton.mismatch(rank, mine, other, theirs, at)
        return received

    def exchange(
        self,
        sends: Sequence[tuple[int, Tensor]],
        recvs: Sequence[tuple[int, Shape, torch.dtype]],
        at: int,
        channel: int = 0,
    ) -> list[Tensor]:
        """Send (rank, tensor) pairs and return what the (rank, shape, dtype) receives bring."""
        self.set_position(at)
        baton, sent = self._baton, 0
        for target, tensor in sends:
            check_peer(target, self.world)
            if tensor.numel():
                sent += tensor.nbytes if target != self.rank else 0
                baton.post(self.rank, target, Message(_fresh(tensor), at, channel))
        self.counters.add("exchange", sent)
        for source, _, _ in recvs:
            check_peer(source, self.world)
        baton.await_mail(self.rank, [recv for recv in recvs if 0 not in recv[1]], channel)
        return [self._open(*recv, channel) for recv in recvs]

    def _open(self, source: int, shape: Shape, dtype: torch.dtype, channel: int) -> Tensor:
        if 0 in shape:
            return torch.empty(shape, dtype=dtype)
        message = self._baton.mail[source, self.rank, channel].popleft()
        tensor = message.tensor
        if tuple(tensor.shape) != tuple(shape) or tensor.dtype != dtype:
            mine = signature_text("receive", dtype, [tuple(shape)])
            theirs = signature_text("send", tensor.dtype, [tuple(tensor.shape)])
            raise self._baton.mismatch(self.rank, mine, source, theirs, message.at)
        return tensor

    def barrier(self, group: Group, at: int) -> None:
        """Return when every member of the group has arrived."""
        self._enter(group, at)
        if len(group) > 1:
            self.counters.add("barrier", 0)
            self._baton.meet(self.rank, group, ("barrier", None, ()), None, _nothing)


def _fresh(x: Tensor) -> Tensor:
    with outside_autograd():
        return x.detach().clone(memory_format=torch.contiguous_format)


def _count(shapes: Sequence[Shape]) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes)


def _copy(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def _total(tensors: Sequence[Tensor]) -> Tensor:
    """Add in group order, in the tensors' own dtype."""
    total = _copy(tensors[0])
    for tensor in tensors[1:]:
        total.add_(tensor)
    return total


def _sum_for_all(group: Group, inputs: dict[int, Tensor]) -> dict[int, Tensor]:
    total = _total([inputs[rank] for rank in group])
    return {group[0]: total} | {rank: total.clone() for rank in group[1:]}


def _sum_for_each(group: Group, inputs: dict[int, list[Tensor]]) -> dict[int, Tensor]:
    return {rank: _total([inputs[other][i] for other in group]) for i, rank in enumerate(group)}


def _gather_for_all(group: Group, inputs: dict[int, Tensor]) -> dict[int, list[Tensor]]:
    return {rank: [_copy(inputs[other]) for other in group] for rank in group}


def _nothing(group: Group, inputs: dict[int, None]) -> dict[int, None]:
    return dict.fromkeys(group)
