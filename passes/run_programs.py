"""Run the communication of all programs on paper: what each class of ranks sends, awaits and meets at.

A training program is expanded over its schedule: each action is a call of one of its functions, whose
communication is a fixed list. Every class is one process here, so the cost does not grow with ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeGuard

from plancc.ir.layout import Stage
from plancc.ir.program import (
    Bucket,
    Collective,
    Edge,
    Instruction,
    Launch,
    Merge,
    ProgramSet,
    RankProgram,
    Recv,
    Send,
    Transfer,
)
from plancc.ir.schedule import Action, merged_order

LOCAL = ("shard", "once")
SECTIONS = {"F": "forward", "B": "backward", "I": "backward"}
MAX_WAITS = 8

Step = Collective | Merge | Bucket | Launch | Send | Recv | Transfer
Message = tuple[int, int]
"""(edge, micro-batch)."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a function of a class: its name, the micro-batch, and what it communicates."""

    name: str
    batch: int
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        if self.name.startswith(("forward", "backward")):
            return f"{self.name} of micro-batch {self.batch}"
        return self.name


Runs = Mapping[str, Sequence[Call]]
"""Class -> the calls that its ranks make in one step, in order."""


def together(step: Instruction) -> TypeGuard[Collective | Merge | Bucket | Launch]:
    """Whether the ranks of a group must meet at an instruction (started ones: in the order of starting)."""
    if isinstance(step, Collective):
        return step.kind not in LOCAL
    return isinstance(step, (Merge, Bucket, Launch))


def parts_of(program: RankProgram) -> list[tuple[str, tuple[Instruction, ...]]]:
    """(name, instructions) of each function of a class; one, "step", where nothing is trained."""
    if not program.sections:
        return [("step", program.instructions)]
    return [(section.name, program.section(at)) for at, section in enumerate(program.sections)]


def expand(programs: ProgramSet) -> Runs:
    """The calls of every class in the order in which its ranks make them."""
    order = None if programs.schedule is None else merged_order(programs.schedule)
    found: dict[str, Sequence[Call]] = {}
    for program in programs.programs:
        parts = {
            name: tuple(s for s in steps if together(s) or isinstance(s, (Send, Recv, Transfer)))
            for name, steps in parts_of(program)
        }
        if not program.sections:
            found[program.name] = [Call("step", 0, parts["step"])]
            continue
        rows = actions(program, order, programs.microbatches)
        calls = [(f"{SECTIONS[a.kind]}_{a.chunk}", a.batch) for a in rows if a.kind in SECTIONS]
        calls += [(section.name, 0) for section in program.sections if section.name in LAST]
        found[program.name] = [Call(name, batch, parts[name]) for name, batch in calls]
    return found


LAST = ("reduce", "refresh")


def actions(program: RankProgram, order: Sequence[Action] | None, batches: int) -> Sequence[Action]:
    """What a class runs: the schedule's actions on its chunks, or micro-batch after micro-batch."""
    chunks = [section.chunk for section in program.sections if section.kind == "forward"]
    if order is not None:
        mine = frozenset(chunks)
        return [action for action in order if action.chunk in mine]
    return [
        Action(kind, chunk, batch)
        for batch in range(batches)
        for kind, row in (("F", chunks), ("B", chunks[::-1]))
        for chunk in row
    ]


def unequal_calls(programs: ProgramSet, runs: Runs) -> Iterator[str]:
    """Stages whose classes do not come to their collectives in the same order of calls."""
    first: dict[Stage, tuple[str, list[Call]]] = {}
    for program in programs.programs:
        for stage in program.stages:
            meeting = frozenset(
                name
                for name, steps in parts_of(program)
                if any(together(s) and s.out.stage == stage for s in steps)
            )
            mine = [call for call in runs[program.name] if call.name in meeting]
            name, theirs = first.setdefault(stage, (program.name, mine))
            for at in range(max(len(mine), len(theirs))):
                a, b = (str(row[at]) if at < len(row) else "nothing" for row in (theirs, mine))
                if a != b:
                    yield f"collectives of {stage}: {name} runs {a} where {program.name} runs {b}"
                    break


def disordered_messages(programs: ProgramSet, runs: Runs) -> Iterator[str]:
    """Streams between two classes whose messages are not received in the order of sending."""
    homes = classes_of(programs)
    sent: dict[tuple[str, str, int], list[tuple[Message, Call, Edge]]] = {}
    got: dict[tuple[str, str, int], list[tuple[Message, Call, Edge]]] = {}
    for name, calls in runs.items():
        for call in calls:
            for step in call.steps:
                if not isinstance(step, (Send, Recv, Transfer)):
                    continue
                edge = step.edge
                one = ((edge.index, call.batch), call, edge)
                if not isinstance(step, Recv):
                    for target in homes[edge.target]:
                        sent.setdefault((name, target, edge.channel), []).append(one)
                if not isinstance(step, Send):
                    for source in homes[edge.source]:
                        got.setdefault((source, name, edge.channel), []).append(one)
    for way in dict.fromkeys([*sent, *got]):
        a, b = sent.get(way, []), got.get(way, [])
        if [one[0] for one in a] != [one[0] for one in b]:
            yield first_difference(way, a, b)


def first_difference(
    way: tuple[str, str, int],
    sent: Sequence[tuple[Message, Call, Edge]], got: Sequence[tuple[Message, Call, Edge]],
) -> str:  # fmt: skip
    """The first message of a stream that is not the one that its receiver waits for."""
    source, target, channel = way
    for at in range(max(len(sent), len(got))):
        if at < len(sent) and at < len(got) and sent[at][0] == got[at][0]:
            continue
        comes, waits = (
            f"transfer {row[at][2].index} of {row[at][2].value} in {row[at][1]}"
            if at < len(row) else "nothing"
            for row in (sent, got)
        )  # fmt: skip
        return f"channel {channel}, {source} -> {target}: {comes} comes where {waits} waits"
    return ""


def classes_of(programs: ProgramSet) -> dict[Stage, list[str]]:
    """Stage -> the classes that live on it."""
    found: dict[Stage, list[str]] = {}
    for program in programs.programs:
        for stage in program.stages:
            found.setdefault(stage, []).append(program.name)
    return found


def deadlocks(programs: ProgramSet, runs: Runs) -> Iterator[str]:
    """Who waits for what for ever, if not all classes come to their end."""
    world = _World(classes_of(programs))
    walkers = [_Walker(name, calls, world) for name, calls in runs.items()]
    moved = True
    while moved:
        moved = any([walker.walk() for walker in walkers])
    waits = [walker.reason() for walker in walkers if not walker.done]
    if waits:
        more = f"; {len(waits) - MAX_WAITS} more wait" if len(waits) > MAX_WAITS else ""
        yield "deadlock: " + "; ".join(waits[:MAX_WAITS]) + more


@dataclass
class _World:
    """What has been sent, and how often each class came to a collective of a stage."""

    homes: Mapping[Stage, Sequence[str]]
    posted: set[tuple[int, int, str]] = field(default_factory=set)
    met: dict[tuple[Stage, str], int] = field(default_factory=dict)


@dataclass
class _Walker:
    """One class on its way through its calls."""

    name: str
    calls: Sequence[Call]
    world: _World
    call: int = 0
    at: int = 0
    passed: dict[Stage, int] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether nothing is left."""
        return self.call == len(self.calls)

    def walk(self) -> bool:
        """Go as far as can be; whether that was anywhere."""
        begin = (self.call, self.at)
        while not self.done:
            call = self.calls[self.call]
            while self.at < len(call.steps):
                if self.waits(call.steps[self.at], call.batch):
                    return (self.call, self.at) != begin
                self.at += 1
            self.call, self.at = self.call + 1, 0
        return (self.call, self.at) != begin

    def waits(self, step: Step, batch: int) -> bool:
        """Take one step, unless it must wait."""
        world = self.world
        if not isinstance(step, (Send, Recv, Transfer)):
            return self.alone(step.out.stage)
        if not isinstance(step, Recv):
            world.posted.add((step.edge.index, batch, self.name))
        if isinstance(step, Send):
            return False
        index = step.edge.index
        return any((index, batch, name) not in world.posted for name in self.sources(step))

    def sources(self, step: Recv | Transfer) -> list[str]:
        """The classes that give a value to this one."""
        return [name for name in self.world.homes[step.edge.source] if name != self.name]

    def alone(self, stage: Stage) -> bool:
        """Come to the next collective of a stage; whether some class is not there yet."""
        number = self.passed.get(stage, 0) + 1
        self.world.met[stage, self.name] = number
        if any(self.world.met.get((stage, name), 0) < number for name in self.world.homes[stage]):
            return True
        self.passed[stage] = number
        return False

    def reason(self) -> str:
        """What the class waits for, and where."""
        call = self.calls[self.call]
        step = call.steps[self.at]
        if isinstance(step, (Recv, Transfer)):
            edge, given = step.edge, ", ".join(self.sources(step))
            return f"{self.name} waits in {call} for transfer {edge.index} of {edge.value} from {given}"
        number = self.passed.get(step.out.stage, 0) + 1
        return f"{self.name} waits in {call} at collective {number} of {step.out.stage}"
