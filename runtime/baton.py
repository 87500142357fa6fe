"""The baton of local ranks: who runs, who is ready, who waits for whom.

One rank runs at a time, and only the rank that runs touches the baton. When the last runnable
rank has to wait there is a deadlock, which is known at once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from plancc.runtime.failure import Describe, Mismatch, RankFailure, fail, in_vain
from plancc.runtime.transport import Group, Shape, signature_text

Signature = tuple[str, "torch.dtype | None", tuple[Shape, ...]]


class Stopped(BaseException):
    """Unwinds a rank because another one failed."""


@dataclass(slots=True)
class Meeting:
    """A collective that waits for its last member."""

    signature: Signature
    group: Group
    inputs: dict[int, Any] = field(default_factory=dict)
    outputs: dict[int, Any] = field(default_factory=dict)

    def missing(self) -> list[int]:
        return [rank for rank in self.group if rank not in self.inputs]


@dataclass(slots=True)
class Receive:
    """An exchange that waits for messages: how many from which rank."""

    counts: dict[int, int]
    channel: int = 0

    def missing(self) -> list[int]:
        return sorted(self.counts)


@dataclass(slots=True)
class Message:
    """One tensor on its way, with the instruction that sent it."""

    tensor: Tensor
    at: int
    channel: int = 0


@contextmanager
def outside_autograd() -> Iterator[None]:
    """Run a function without recording gradients: transports return fresh tensors."""
    with torch.inference_mode(False), torch.no_grad():
        yield


class Baton:
    """Who runs, who is ready, who waits for what; only the rank that runs touches it."""

    def __init__(self, world: int, describe: Describe) -> None:
        self.world = world
        self.describe = describe
        self.gates = [threading.Lock() for _ in range(world)]
        for gate in self.gates:
            gate.acquire()
        self.ready = deque(range(world))
        self.waits: list[Meeting | Receive | None] = [None] * world
        self.positions: list[int | None] = [None] * world
        self.ended = [False] * world
        self.meetings: dict[Group, Meeting] = {}
        self.mail: dict[tuple[int, int, int], deque[Message]] = {}
        self.groups: set[tuple[Group, int]] = set()
        self.programs = [""] * world
        self.results: list[Any] = [None] * world
        self.stopped: BaseException | None = None

    def body(self, rank: int, fn: Callable[[], Any]) -> None:
        """Be the thread of one rank."""
        self.gates[rank].acquire()
        try:
            if self.stopped is None:
                self.results[rank] = fn()
        except Stopped:
            pass
        except RankFailure as failure:
            self.stop(failure)
        except BaseException as error:
            reason = f"raised {type(error).__name__}"
            wrapped = fail(self.describe, rank, self.positions[rank], reason, str(error))
            wrapped.__cause__ = error
            self.stop(wrapped)
        finally:
            self.leave(rank)

    def stop(self, failure: BaseException) -> None:
        """Let the run end with this failure, unless it already ends with another."""
        if self.stopped is None:
            self.stopped = failure

    def leave(self, rank: int) -> None:
        """Take the rank out, and hand the baton on."""
        self.ended[rank] = True
        if self.stopped is None and not self.pass_on() and not all(self.ended):
            self.stop(self.deadlock())
        if self.stopped is not None:
            self.release_all()

    def release_all(self) -> None:
        """Wake every rank that still waits, so that it unwinds."""
        for rank in range(self.world):
            if not self.ended[rank]:
                self.open(rank)

    def open(self, rank: int) -> None:
        """Open the gate of a rank; a stopping run may have opened it already."""
        try:
            self.gates[rank].release()
        except RuntimeError:
            if self.stopped is None:
                raise

    def pass_on(self) -> bool:
        """Let the next ready rank run; False if there is none."""
        if not self.ready:
            return False
        self.open(self.ready.popleft())
        return True

    def wait(self, rank: int, what: Meeting | Receive) -> None:
        """Give the baton away until somebody puts this rank among the ready ones."""
        self.waits[rank] = what
        if not self.pass_on():
            raise self.deadlock()
        self.gates[rank].acquire()
        if self.stopped is not None:
            raise Stopped
        self.waits[rank] = None

    def meet(
        self,
        rank: int,
        group: Group,
        signature: Signature,
        given: Any,
        combine: Callable[[Group, dict[int, Any]], dict[int, Any]],
    ) -> Any:
        """Bring `given` to the meeting of the group; the last member combines for all."""
        meeting = self.meetings.get(group)
        if meeting is None:
            meeting = self.meetings[group] = Meeting(signature, group)
        else:
            self.check_match(rank, signature, meeting)
        meeting.inputs[rank] = given
        if len(meeting.inputs) < len(group):
            self.wait(rank, meeting)
        else:
            del self.meetings[group]
            with outside_autograd():
                meeting.outputs = combine(group, meeting.inputs)
            self.ready.extend(other for other in group if other != rank)
        return meeting.outputs.pop(rank)

    def check_match(self, rank: int, signature: Signature, meeting: Meeting) -> None:
        """Raise unless this rank does what the first one at the meeting does."""
        other = next(iter(meeting.inputs))
        if signature != meeting.signature:
            mine, theirs = signature_text(*signature), signature_text(*meeting.signature)
        elif (
            self.programs[rank]
            and self.programs[rank] == self.programs[other]
            and self.positions[rank] != self.positions[other]
        ):
            mine = theirs = f"{signature_text(*signature)} of program {self.programs[rank]}"
        else:
            return
        raise self.mismatch(rank, mine, other, theirs, self.positions[other])

    def mismatch(
        self, rank: int, mine: str, other: int, theirs: str, at: int | None
    ) -> RankFailure:
        """Name two ranks that meet with different intentions."""
        return Mismatch(self.describe, rank, self.positions[rank], mine, other, at, theirs)

    def deadlock(self) -> RankFailure:
        """Name the cycle of ranks that wait for each other, or the rank that left too early."""
        waits = {r: wait.missing() for r, wait in enumerate(self.waits) if wait is not None}
        return in_vain(self.describe, self.positions, waits, self.ended)

    def post(self, source: int, target: int, message: Message) -> None:
        """Put a message into a mailbox, and wake the receiver if it was the last one missing."""
        self.mail.setdefault((source, target, message.channel), deque()).append(message)
        wait = self.waits[target]
        if not isinstance(wait, Receive) or wait.channel != message.channel:
            return
        if source not in wait.counts:
            return
        wait.counts[source] -= 1
        if not wait.counts[source]:
            del wait.counts[source]
            if not wait.counts:
                self.ready.append(target)

    def await_mail(
        self, rank: int, recvs: Sequence[tuple[int, Shape, torch.dtype]], channel: int = 0
    ) -> None:
        """Return when every message that `recvs` needs is in its mailbox."""
        needed: dict[int, int] = {}
        for source, _, _ in recvs:
            needed[source] = needed.get(source, 0) + 1
        missing = {s: n - len(self.mail.get((s, rank, channel), ())) for s, n in needed.items()}
        missing = {source: count for source, count in missing.items() if count > 0}
        if missing:
            self.wait(rank, Receive(missing, channel))

    def check_mail(self) -> None:
        """Raise for a message that nobody received."""
        for (source, target, _), box in sorted(self.mail.items()):
            if box:
                text = signature_text("send", box[0].tensor.dtype, [tuple(box[0].tensor.shape)])
                raise fail(
                    self.describe,
                    source,
                    box[0].at,
                    f"sent rank {target} what it never received",
                    text,
                )
