"""Run the scripts of all actors against each other, event by event, and note when everything happened.

An actor computes, meets others at collectives (all must be there), sends without waiting for who receives,
and waits for messages and for moves that run beside its computation, in order, on a stream of their own. The
actor whose clock is furthest behind goes on first, so that links are given away in the order of time.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import replace

from plancc.dsl.errors import Bug
from plancc.simulator.cores import Cores, stints_of
from plancc.simulator.forms import COMMUNICATION, COMPUTE, Actor, Span
from plancc.simulator.process import Call, Fact, Meeting, Process, Slots, Wait
from plancc.simulator.script import Item, by_link
from plancc.simulator.stretches import Stretch


class Engine:
    """All actors, and the facts that they have told each other."""

    def __init__(
        self, actors: Sequence[Actor], rounds: Sequence[Sequence[Slots]], *,
        resting: Sequence[int] = (), spans: bool = True, feedback: float = 0.0,
        cores: Cores | None = None,
    ) -> None:  # fmt: skip
        self.actors, self.keep, self.feedback, self.cores = actors, spans, feedback, cores
        self.resting = resting or [0] * len(actors)
        self.processes = [Process(*pair) for pair in zip(rounds, self.resting, strict=True)]
        self.facts: dict[Fact, float] = {}
        self.posted: dict[Fact, float] = {}
        self.meetings: dict[Fact, Meeting] = {}
        self.told: dict[Fact, int] = {}
        self.free: dict[tuple[str, str], float] = {}
        self.parked: dict[Fact, list[tuple[int, tuple[Fact, ...]]]] = {}
        self.fresh: list[Fact] = []

    def run(self) -> float:
        """Run to the end; the seconds from the start to the last event. Bug if all wait for ever."""
        count = len(self.processes)
        walkers = [self.walk(n) for n in range(count)] + [self.beside(n) for n in range(count)]
        heap = [(0.0, n) for n in range(2 * count)]
        left = count
        while heap:
            _, number = heapq.heappop(heap)
            wanted = next(walkers[number], None)
            if wanted is None:
                left -= 1
            else:
                self.park(heap, number, wanted)
            while self.fresh:
                for parked, needs in self.parked.pop(self.fresh.pop(), ()):
                    self.park(heap, parked, needs)
        if left:
            waits = {n: fact for fact, row in self.parked.items() for n, _ in row if n < count}
            names = [f"{self.actors[n].name} for {fact}" for n, fact in sorted(waits.items())]
            raise Bug(f"the simulation stands still: {'; '.join(names[:4])}")
        return max((max(p.clock, p.side) for p in self.processes), default=0.0)

    def park(self, heap: list[tuple[float, int]], number: int, wanted: tuple[Fact, ...]) -> None:
        """Let a walker go on when its turn comes, or once the first fact that it lacks is there."""
        for fact in wanted:
            if fact not in self.facts:
                self.parked.setdefault(fact, []).append((number, wanted))
                return
        heapq.heappush(heap, (self.time_of(number), number))

    def time_of(self, number: int) -> float:
        """The clock of a walker: those of the second half are the streams beside the computation."""
        count = len(self.processes)
        return (
            self.processes[number].clock if number < count else self.processes[number - count].side
        )

    def tell(self, fact: Fact, time: float) -> None:
        """Let a fact be there, from `time` on."""
        self.facts[fact] = time
        self.fresh.append(fact)

    def walk(self, number: int) -> Iterator[tuple[Fact, ...]]:
        """An actor's rounds: in each, its slots take turns."""
        process = self.processes[number]
        for slots in process.rounds:
            turns = [self.slot(number, calls) for calls in slots]
            while turns:
                left = []
                for turn in turns:
                    for wanted in turn:
                        if wanted is None:
                            left.append(turn)
                            break
                        yield wanted
                turns = left

    def slot(self, number: int, calls: Sequence[Call]) -> Iterator[Wait]:
        """The calls of one slot; None at their pauses, and between them where there are no pauses.

        A micro-batch with pauses goes on with its next step at once: the others have had their turn.
        """
        for place, call in enumerate(calls):
            if place and not any(item.kind == "pause" for item in call.script.get(call.name, ())):
                yield None
            yield from self.call(number, call)

    def call(self, number: int, call: Call) -> Iterator[Wait]:
        """One call from begin to end."""
        process = self.processes[number]
        if call.needs:
            yield call.needs
            self.wait(
                number,
                max(self.facts[fact] for fact in call.needs),
                call,
                None,
                "wait for the token",
            )
        before = process.live
        items = call.script.get(call.name, ())
        stints = stints_of(items) if self.cores is not None else [0.0] * len(items)
        for item, stint in zip(items, stints, strict=True):
            if self.cores is not None and (stint or item.kind == "meet"):
                yield ()  # cores are given away in the order of time
            if self.cores is not None and stint:
                start = self.cores.take(number, process.clock, stint)
                self.wait(number, start, call, item, "wait for a core")
            yield from self.item(number, item, call)
            if item.delta:
                process.live += item.delta
                process.memory.append((process.clock, process.live))
        if call.name in ("step", "reduce"):
            process.live = process.resting if call.name == "reduce" else before
            process.memory.append((process.clock, process.live))
        process.tally.ends.append((call.name, call.step, call.batch, process.clock))
        if call.tells is not None:
            fact, wanted = call.tells
            self.told[fact] = self.told.get(fact, 0) + 1
            latest = max(self.posted.get(fact, 0.0), process.clock)
            self.posted[fact] = latest
            if self.told[fact] == wanted:
                self.tell(fact, latest + self.feedback)

    def item(self, number: int, item: Item, call: Call) -> Iterator[Wait]:
        """One thing that an actor does."""
        process = self.processes[number]
        if item.kind == "work":
            self.work(number, item, call)
        elif item.kind == "alone":
            self.alone(number, item)
        elif item.kind == "meet":
            fact = self.arrive(number, item, process.clock, "")
            yield (fact,)
            meeting = self.meetings[fact]
            self.wait(number, meeting.begin, call, item, self.waiting_for(meeting.latest))
            self.move(number, item, call, meeting.seconds)
        elif item.kind == "start":
            if call.last or not item.last:
                fact = ("moved", number, len(process.queue))
                process.started[item.handle] = fact
                process.queue.append((item, call, process.clock, fact))
                self.tell(("queued", number, len(process.queue) - 1), process.clock)
        elif item.kind == "await":
            moved = process.started.pop(item.handle, None)
            if moved is not None:
                yield (moved,)
                step = process.queue[int(moved[2])][0]  # type: ignore[call-overload]
                name = f"wait for {step.label.name}"
                self.finish(number, step, call, self.facts[moved], self.posted[moved], name)
        elif item.kind == "send":
            self.give(number, item, call)
            yield ()  # links are given away in the order of time
            self.send(number, item, call)
        elif item.kind == "recv":
            facts = tuple(("sent", item.edge, call.step, call.batch, m.peer) for m in item.messages)
            if facts:
                yield facts
                self.receive(number, item, call, facts)
        elif item.kind == "pause":
            yield None

    def work(self, number: int, item: Item, call: Call) -> None:
        """Compute."""
        process, tally = self.processes[number], self.processes[number].tally
        begin, process.clock = process.clock, process.clock + item.seconds
        tally.busy += item.seconds
        tally.flops += item.label.flops
        kind = item.label.kind
        tally.kinds[kind] = tally.kinds.get(kind, 0.0) + item.seconds
        self.note(number, COMPUTE, item, call, begin, process.clock)

    def alone(self, number: int, item: Item) -> None:
        """Compute, and communicate within the actor."""
        process, tally, made = self.processes[number], self.processes[number].tally, item.parts
        assert isinstance(made, Stretch)
        process.clock += item.seconds
        tally.busy += made.busy
        tally.moving += made.moving
        tally.exposed += made.moving
        tally.sent += item.label.bytes
        tally.flops += item.label.flops
        for kind, seconds in made.kinds:
            tally.kinds[kind] = tally.kinds.get(kind, 0.0) + seconds

    def arrive(self, number: int, item: Item, clock: float, stream: str) -> Fact:
        """Come to a collective; the fact that is told once all have."""
        process = self.processes[number]
        key = (stream, item.parts, item.group)
        process.counts[key] = process.counts.get(key, 0) + 1
        fact: Fact = ("met", *key, process.counts[key])
        meeting = self.meetings.setdefault(fact, Meeting())
        meeting.came += 1
        if clock >= meeting.begin:
            meeting.begin, meeting.latest = clock, number
        meeting.seconds = max(meeting.seconds, item.seconds)
        if meeting.came == len(item.group):
            if self.cores is not None:
                seconds, ranks = meeting.seconds, len(item.group)
                meeting.begin = self.cores.take(number, meeting.begin, seconds, ranks)
            self.tell(fact, meeting.begin)
        return fact

    def move(self, number: int, item: Item, call: Call, seconds: float) -> None:
        """Communicate while nothing else is done."""
        process, tally = self.processes[number], self.processes[number].tally
        begin, process.clock = process.clock, process.clock + seconds
        tally.moving += seconds
        tally.exposed += seconds
        tally.sent += item.label.bytes
        self.note(number, COMPUTE, item, call, begin, process.clock)

    def beside(self, number: int) -> Iterator[tuple[Fact, ...]]:
        """The moves that run beside an actor's computation, in the order of their start."""
        process, at = self.processes[number], 0
        while True:
            yield (("queued", number, at),)
            item, call, issued, moved = process.queue[at]
            process.side = max(process.side, issued)
            fact = self.arrive(number, item, process.side, COMMUNICATION)
            yield (fact,)
            meeting = self.meetings[fact]
            begin = max(process.side, meeting.begin)
            process.side = begin + meeting.seconds
            process.tally.moving += meeting.seconds
            process.tally.sent += item.label.bytes
            self.note(number, COMMUNICATION, item, call, begin, process.side)
            self.posted[moved] = meeting.seconds
            self.tell(moved, process.side)
            at += 1

    def waiting_for(self, number: int) -> str:
        """What a wait is called."""
        return f"wait for {self.actors[number].name}"

    def finish(
        self, number: int, item: Item, call: Call, end: float, seconds: float, name: str
    ) -> None:
        """Wait for a move under way that ends at `end` and takes `seconds`."""
        process = self.processes[number]
        exposed = min(max(0.0, end - process.clock), seconds)
        self.wait(number, end - exposed, call, item, name)
        begin, process.clock = process.clock, process.clock + exposed
        process.tally.exposed += exposed
        if exposed:
            self.note(number, COMPUTE, item, call, begin, process.clock)

    def send(self, number: int, item: Item, call: Call) -> None:
        """Give messages to their links, one after the other; the actor goes on at once."""
        process = self.processes[number]
        leave = process.clock
        for link, busy in by_link(item.messages).items():
            end = max(process.clock, self.free.get((link, "out"), 0.0)) + busy
            self.free[link, "out"] = end
            leave = max(leave, end)
        fact: Fact = ("sent", item.edge, call.step, call.batch, number)
        self.posted[fact] = process.clock
        self.tell(fact, leave)
        process.tally.sent += item.label.bytes
        if item.messages:
            self.note(number, COMMUNICATION, item, call, process.clock, leave)

    def give(self, number: int, item: Item, call: Call) -> None:
        """Let the sender do what it has to do with messages before it goes on."""
        if item.seconds:
            self.move(number, replace(item, label=replace(item.label, bytes=0)), call, item.seconds)

    def receive(self, number: int, item: Item, call: Call, facts: tuple[Fact, ...]) -> None:
        """Wait for messages: the last to leave its sender, or what this rank's own link can take."""
        process = self.processes[number]
        pairs = list(zip(facts, item.messages, strict=True))
        end = max(self.facts[fact] + message.latency for fact, message in pairs)
        first = min(self.posted[fact] for fact in facts)
        for link, busy in by_link(item.messages).items():
            taken = max(first, self.free.get((link, "in"), 0.0)) + busy
            self.free[link, "in"] = taken
            end = max(end, taken)
        seconds = max(m.latency for m in item.messages) + sum(m.busy for m in item.messages)
        if self.cores is not None:
            seconds = self.cores.handling(item.messages, seconds)
            end = max(end, seconds + self.cores.take(number, end - seconds, seconds))
        process.tally.moving += seconds
        last = max(pairs, key=lambda pair: self.facts[pair[0]] + pair[1].latency)[1]
        self.finish(number, item, call, end, seconds, self.waiting_for(last.peer))

    def wait(self, number: int, until: float, call: Call, item: Item | None, name: str) -> None:
        """Stand still until somebody else is there."""
        process = self.processes[number]
        if until > process.clock:
            begin, process.clock = process.clock, until
            if self.keep:
                label = item.label if item is not None else None
                self.spans_of(number).append(
                    Span(
                        number, COMPUTE, name, "wait", begin, until,
                        label.path if label else "", label.line if label else "", call.batch,
                    )
                )  # fmt: skip

    def note(
        self, number: int, stream: str, item: Item, call: Call, begin: float, end: float
    ) -> None:
        """Keep a span; of what goes on beside the computation, the part behind what is shown there."""
        process = self.processes[number]
        if stream == COMMUNICATION:
            begin, process.shown = max(begin, process.shown), max(end, process.shown)
        if self.keep and end > begin:
            label = item.label
            self.spans_of(number).append(
                Span(
                    number, stream, label.name, label.kind, begin, end, label.path, label.line,
                    call.batch, label.flops, label.bytes,
                )
            )  # fmt: skip

    def spans_of(self, number: int) -> list[Span]:
        """What an actor did so far."""
        return self.processes[number].spans
