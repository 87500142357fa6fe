"""What a rank program asks of a backend: verbs over groups of ranks, and a beacon.

Local threads, gloo and nccl implement it. Every verb takes tensors and never changes them,
returns fresh ones outside autograd, and carries `at`, the instruction number in the rank's own
program, which feeds the beacon and the errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

STARTING, COMPUTE, IN_OP, FINISHED = range(4)
"""States of a rank; `set_position` takes COMPUTE or IN_OP."""

Group = tuple[int, ...]
Shape = tuple[int, ...]


class Counters:
    """Calls and bytes of each verb on one rank; groups of one are not counted.

    Bytes are those of the whole message: the input of all_reduce, reduce_scatter and all_to_all,
    the result of all_gather, what leaves in exchange. They do not depend on the backend.
    """

    __slots__ = ("bytes", "calls")

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}
        self.bytes: dict[str, int] = {}

    def add(self, kind: str, count: int) -> None:
        """Count one call of `kind` that moves `count` bytes."""
        self.calls[kind] = self.calls.get(kind, 0) + 1
        self.bytes[kind] = self.bytes.get(kind, 0) + count

    def reset(self) -> None:
        """Start again from nothing."""
        self.calls.clear()
        self.bytes.clear()


class Transport(Protocol):
    """One rank's end of the communication; all verbs block, but a send is buffered.

    `group` is a sorted tuple of world ranks that contains `rank`; a group of one returns at once.
    `program` names the rank's program: ranks of a group with the same non-empty name must meet at
    the same instruction number.
    """

    rank: int
    world: int
    device: torch.device
    counters: Counters
    program: str

    def all_reduce(self, x: Tensor, group: Group, at: int) -> Tensor:
        """Return the sum of x over the group (logical or, for bool)."""

    def all_gather(self, x: Tensor, group: Group, shapes: Sequence[Shape], at: int) -> list[Tensor]:
        """Return everybody's x in group order; shapes[i] is that of group[i]."""

    def reduce_scatter(self, parts: Sequence[Tensor], group: Group, at: int) -> Tensor:
        """Send parts[i] to group[i]; return the sum of what is meant for this rank."""

    def all_to_all(
        self, parts: Sequence[Tensor], group: Group, shapes: Sequence[Shape], at: int
    ) -> list[Tensor]:
        """Send parts[i] to group[i]; return what comes from group[i], of shape shapes[i]."""

    def exchange(
        self,
        sends: Sequence[tuple[int, Tensor]],
        recvs: Sequence[tuple[int, Shape, torch.dtype]],
        at: int,
        channel: int = 0,
    ) -> list[Tensor]:
        """Send (rank, tensor) pairs and return what the (rank, shape, dtype) receives bring.

        Messages of one channel between two ranks arrive in order; those without elements are not sent
        at all.
        """

    def barrier(self, group: Group, at: int) -> None:
        """Return when every member of the group has arrived."""

    def set_position(self, at: int, state: int = COMPUTE) -> None:
        """Tell the beacon at which instruction the rank stands."""


def check_group(group: Group, rank: int, world: int) -> None:
    """Raise ValueError unless the group is a sorted tuple of world ranks that contains rank."""
    if not isinstance(group, tuple) or rank not in group:
        raise ValueError(f"group {group!r} is not a tuple that contains rank {rank}")
    if any(a >= b for a, b in pairwise(group)):
        raise ValueError(f"group {group} is not sorted, or names a rank twice")
    if group[0] < 0 or group[-1] >= world:
        raise ValueError(f"group {group} leaves the world of {world} ranks")


def check_peer(peer: int, world: int) -> None:
    """Raise ValueError unless peer is a rank of the world."""
    if not 0 <= peer < world:
        raise ValueError(f"rank {peer} leaves the world of {world} ranks")


def check_parts(kind: str, parts: Sequence[object], group: Group) -> None:
    """Raise ValueError unless there is one part (tensor or shape) for each member."""
    if len(parts) != len(group):
        raise ValueError(f"{kind} over {len(group)} ranks was given {len(parts)} parts or shapes")


def check_own(kind: str, x: Tensor, shape: Shape) -> None:
    """Raise ValueError unless what a rank brings for itself has the shape that it expects."""
    if tuple(x.shape) != tuple(shape):
        raise ValueError(f"{kind} of {list(x.shape)}, but shapes say {list(shape)}")


def one_dtype(kind: str, parts: Sequence[Tensor]) -> torch.dtype:
    """Return the one dtype of all parts; ValueError if there are several."""
    dtypes = {part.dtype for part in parts}
    if len(dtypes) != 1:
        raise ValueError(f"{kind} of parts of several dtypes: {sorted(map(str, dtypes))}")
    return dtypes.pop()


def signature_text(kind: str, dtype: torch.dtype | None, shapes: Sequence[Shape]) -> str:
    """Write what members of a collective must agree on: "all_reduce float32[4, 8]"."""
    name = "" if dtype is None else " " + str(dtype).removeprefix("torch.")
    return f"{kind}{name}" + " ".join(str(list(shape)) for shape in shapes)
