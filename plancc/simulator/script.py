"""What one actor does in each function of its program: instructions with their seconds, links and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Protocol

from plancc.ir.program import (
    Accumulate,
    Await,
    Backward,
    Compute,
    Free,
    Held,
    Instruction,
    Launch,
    Leaf,
    Origin,
    RankProgram,
    Recv,
    Send,
    TakeGrad,
    Transfer,
    produced,
)
from plancc.passes.estimate_memory import CACHE
from plancc.passes.run_programs import parts_of as functions_of
from plancc.simulator.actors import Cast, parts_of
from plancc.simulator.forms import Verb, Work
from plancc.simulator.place import Place

PYTHON = (Compute, Leaf, Accumulate, TakeGrad)
"""Instructions that are a call of Python each."""
Calls = Sequence[tuple[Verb, ...]]
Works = Sequence[tuple[Work, ...]]
Sends = Sequence[tuple[int, int]]
"""(the other rank, bytes) of messages."""


class Hardware(Protocol):
    """What the engine asks of a cluster; see `plancc.simulator.cluster`."""

    cores: int

    def seconds(self, rank: int, work: Work, operator: str = "") -> float:
        """How long a local call takes."""
        ...

    def host(self, rank: int, name: str) -> float:
        """Seconds of Python that add up with those of calls."""
        ...

    def measured(self, rank: int, work: Work, operator: str) -> bool:
        """Whether whole calls of an operator were measured."""
        ...

    def verb_seconds(self, kind: str, group: tuple[int, ...], size: int) -> float:
        """How long a collective takes once all are there."""
        ...

    def message(self, source: int, target: int, size: int) -> tuple[float, float]:
        """(latency, seconds for which the links of both ends are busy)."""
        ...

    def overhead(self, source: int, target: int) -> float:
        """Seconds of the sender of a message before it goes on."""
        ...

    def links(self, rank: int) -> tuple[str, ...]:
        """The names of the links of a rank: ranks may share them."""
        ...

    def route(self, source: int, target: int) -> tuple[str, str]:
        """The links of a message: the one that it leaves by, and the one that it comes in by."""
        ...

    def node(self, rank: int) -> int:
        """The node that a rank is on."""
        ...


@dataclass(frozen=True, slots=True)
class Label:
    """What a span will say of an item."""

    name: str
    kind: str
    path: str = ""
    line: str = ""
    flops: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Message:
    """Bytes between this actor's rank and another: `peer` is the other's actor."""

    peer: int
    link: str
    latency: float
    busy: float
    size: int


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that an actor does.

    `kind`: "work" (takes `seconds`), "meet" (a collective with the actors `group`), "start" (the same on the
    stream for communication; `last`: only for the last micro-batch), "await" (of the move `handle`), "send"
    (keeps the actor for `seconds`), "recv" (of transfer `edge`), "pause" (the other micro-batches have their
    turn), "mark" (nothing but memory), "alone" (see `stretches`: `parts` are a Stretch). `delta` are bytes
    that it takes or gives back.
    """

    kind: str
    label: Label
    seconds: float = 0.0
    group: tuple[int, ...] = ()
    parts: object = None
    edge: int = -1
    messages: tuple[Message, ...] = ()
    handle: str = ""
    last: bool = False
    delta: int = 0


Script = Mapping[str, tuple[Item, ...]]
"""Function ("step", "forward_0" ...) -> what the actor does in it."""


class Writer:
    """Writes the script of one actor: `place` is that of its first rank."""

    def __init__(self, actor: int, cast: Cast, hardware: Hardware, place: Place) -> None:
        self.actor, self.cast, self.hardware, self.place = actor, cast, hardware, place
        self.rank = place.rank
        self.program: RankProgram = cast.program_of[actor]
        self.held: dict[str, Held] = {}

    def script(self, works: Works, calls: Calls) -> Script:
        """The items of every function; `works` and `calls` are by instruction."""
        found: dict[str, tuple[Item, ...]] = {}
        self.held = values_with_room(self.program, works)
        at = 0
        for name, steps in functions_of(self.program):
            items: list[Item] = []
            for step in steps:
                items += self.items(step, works[at], calls[at])
                at += 1
            found[name] = tuple(gathered(items))
        return found

    def items(
        self, step: Instruction, works: tuple[Work, ...], calls: tuple[Verb, ...]
    ) -> list[Item]:
        """What one instruction does."""
        path, line = where(step)
        delta = self.delta(step)
        found = []
        moves = isinstance(step, (Send, Recv, Transfer))
        if calls and not moves:
            found.append(self.meeting(step, calls, path, line))
        if isinstance(step, (Recv, Transfer)) and step.pause:
            found.append(Item("pause", Label("", "", path, line)))
        if isinstance(step, (Send, Transfer)):
            found.append(self.outgoing(step, calls, path, line))
        if isinstance(step, (Recv, Transfer)):
            found.append(self.incoming(step, calls, path, line))
        if isinstance(step, Await):
            found.append(Item("await", Label(step.handle, "wait", path, line), handle=step.handle))
        found += self.computing(step, works, path, line)
        if delta:
            if found:
                found[-1] = replace(found[-1], delta=delta)
            else:
                found.append(Item("mark", Label("", "", path, line), delta=delta))
        return found

    def computing(
        self, step: Instruction, works: tuple[Work, ...], path: str, line: str
    ) -> list[Item]:
        """The kernels of an instruction, and the Python around them."""
        host = self.python(step, works)
        works = as_measured(self.hardware, self.rank, step, works)
        found = []
        for work in works:
            if work.kind != "view":
                seconds = self.hardware.seconds(self.rank, work, operator(step)) + host
                label = Label(called(step), work.kind, path, line, work.flops, work.moved)
                found.append(Item("work", label, seconds))
                host = 0.0
        if host:
            found.append(Item("work", Label(called(step), "compute", path, line), host))
        return found

    def python(self, step: Instruction, works: Sequence[Work]) -> float:
        """The seconds of Python of an instruction that are not in those of its kernels."""
        calls = python_calls(step, works)
        if not calls:
            return 0.0
        seconds = 0.0 if works else self.hardware.host(self.rank, "instruction")
        if self.program.sections:
            name = "backward" if isinstance(step, Backward) else "recorded"
            seconds += calls * self.hardware.host(self.rank, name)
        return seconds

    def meeting(self, step: Instruction, calls: tuple[Verb, ...], path: str, line: str) -> Item:
        """A collective, now or beside the computation."""
        parts = parts_of(step)
        seconds = sum(self.call_seconds(call) for call in calls)
        kind = calls[0].kind if len(calls) == 1 else getattr(step, "kind", "all_reduce")
        label = Label(kind, kind, path, line, 0, sum(call.given for call in calls))
        group = self.cast.meets(self.actor, parts)
        key = tuple(part.group for part in parts)
        if isinstance(step, Launch):
            return Item(
                "start", label, seconds, group, key, handle=step.handle, last=bool(step.takes)
            )
        return Item("meet", label, seconds, group, key)

    def call_seconds(self, call: Verb) -> float:
        """How long one call of the transport takes once all are there."""
        if call.kind != "exchange":
            return self.hardware.verb_seconds(call.kind, call.group, call.size)
        return messages_seconds(self.hardware, self.rank, call.sends, call.takes)

    def outgoing(
        self, step: Send | Transfer, calls: tuple[Verb, ...], path: str, line: str
    ) -> Item:
        """What the rank sends of a transfer."""
        sends = tuple(self.message(self.rank, to, to, n) for call in calls for to, n in call.sends)
        size = sum(message.size for message in sends)
        label = Label(f"send {step.edge.value}", "exchange", path, line, 0, size)
        seconds = sum(giving_seconds(self.hardware, self.rank, call.sends) for call in calls)
        return Item("send", label, seconds, edge=step.edge.index, messages=sends)

    def incoming(
        self, step: Recv | Transfer, calls: tuple[Verb, ...], path: str, line: str
    ) -> Item:
        """What the rank takes of a transfer."""
        takes = tuple(self.message(of, self.rank, of, n) for call in calls for of, n in call.takes)
        label = Label(f"receive {step.edge.value}", "exchange", path, line)
        return Item("recv", label, edge=step.edge.index, messages=takes)

    def message(self, source: int, target: int, other: int, size: int) -> Message:
        """One message; ranks of this actor that share a link use it at the same time."""
        latency, busy = self.hardware.message(source, target, size)
        link = self.hardware.route(source, target)[0 if other == target else 1]
        ranks, house = self.cast.actors[self.actor].ranks, self.hardware.node(self.rank)
        sharing = 1
        if len(ranks) > 1:
            sharing = sum(
                self.hardware.node(rank) == house and link in self.hardware.links(rank)
                for rank in ranks
            )
        return Message(self.cast.actor_of[other], link, latency, busy * max(1, sharing), size)

    def delta(self, step: Instruction) -> int:
        """Bytes that an instruction takes, less those that it gives back; views and caches take none."""
        if isinstance(step, Free):
            return -sum(self.size(name) for name in step.names)
        return sum(self.size(held.name) for held in produced(step))

    def size(self, name: str) -> int:
        """The bytes of a value that takes room."""
        found = self.held.get(name)
        return self.place.nbytes(found) if found is not None else 0


def messages_seconds(hardware: Hardware, rank: int, sends: Sends, takes: Sends = ()) -> float:
    """How long a rank's messages to others and from others take when all begin at once."""
    given = [hardware.message(rank, to, size) for to, size in sends]
    taken = [hardware.message(of, rank, size) for of, size in takes]
    busy = max(sum(b for _, b in given), sum(b for _, b in taken))
    latency = max((latency for latency, _ in given + taken), default=0.0)
    return giving_seconds(hardware, rank, sends) + latency + busy


def giving_seconds(hardware: Hardware, rank: int, sends: Sends) -> float:
    """How long messages keep their sender."""
    return sum(hardware.overhead(rank, to) for to, _ in sends)


def values_with_room(program: RankProgram, works: Works) -> dict[str, Held]:
    """The values of a program that take room, by name: no views, no caches."""
    found: dict[str, Held] = {}
    for step, work in zip(program.instructions, works, strict=True):
        if not isinstance(step, Compute) or (work and step.target != CACHE):
            found.update((held.name, held) for held in produced(step))
    return found


def where(step: Instruction) -> tuple[str, str]:
    """(module path, plan line) of an instruction."""
    origin: Origin | None = getattr(step, "origin", None)
    if origin is None:
        return "", ""
    span = origin.span
    return origin.path, f"{PurePath(span.source.name).name}:{span.line}" if span else ""


def called(step: Instruction) -> str:
    """The short name of what an instruction calls."""
    if isinstance(step, Compute):
        return step.target.split(".")[1]
    return type(step).__name__.lower()


def operator(step: Instruction) -> str:
    """The operator whose kernels these are, as measured calls are named; "" where it is no operator."""
    if not isinstance(step, Compute):
        return ""
    return step.target.split(".")[1].strip("_")


def as_measured(
    hardware: Hardware, rank: int, step: Instruction, works: tuple[Work, ...]
) -> tuple[Work, ...]:
    """The kernels of an instruction, as one where calls of its operator were measured as a whole."""
    name = operator(step)
    if len(works) > 1 and name:
        one = whole(works)
        if hardware.measured(rank, one, name):
            return (one,)
    return works


def whole(works: Sequence[Work]) -> Work:
    """Kernels as one: of the kind of the one with most FLOPs."""
    return replace(
        max(works, key=lambda work: work.flops), flops=sum(work.flops for work in works),
        read=sum(work.read for work in works), written=sum(work.written for work in works), shape=(),
    )  # fmt: skip


def python_calls(step: Instruction, works: Sequence[Work]) -> int:
    """How many calls of Python an instruction is: those of autograd count, moves have their own seconds."""
    if isinstance(step, Backward):
        return max(1, len(works))
    return int(isinstance(step, PYTHON))


def gathered(items: Sequence[Item]) -> list[Item]:
    """Neighbouring works of one kind in one module as one item, and marks joined to what is before them."""
    found: list[Item] = []
    for item in items:
        last = found[-1] if found else None
        if item.kind == "mark" and last is not None:
            found[-1] = replace(last, delta=last.delta + item.delta)
        elif last is not None and item.kind == "work" == last.kind and like(last.label, item.label):
            found[-1] = replace(
                last, seconds=last.seconds + item.seconds, delta=last.delta + item.delta,
                label=replace(
                    last.label, flops=last.label.flops + item.label.flops,
                    bytes=last.label.bytes + item.label.bytes,
                ),
            )  # fmt: skip
        else:
            found.append(item)
    return found


def like(a: Label, b: Label) -> bool:
    """Whether two works may be shown as one."""
    return (a.path, a.kind, a.line) == (b.path, b.kind, b.line)


def by_link(messages: Sequence[Message]) -> Mapping[str, float]:
    """Link -> the seconds for which messages keep it busy."""
    found: dict[str, float] = {}
    for message in messages:
        found[message.link] = found.get(message.link, 0.0) + message.busy
    return found
