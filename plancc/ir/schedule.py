"""Pipeline schedules as data: which rank runs which part of which micro-batch, in which order.

A schedule is checked here (completeness, order, deadlock, order of messages), timed and drawn as text.
Sends never block, receives block; a receive happens at the beginning of the action that needs it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from plancc.dsl.errors import Bug

KINDS = ("F", "B", "I", "W")
GRADIENTS = ("B", "I")
"""The kinds that give the gradient of a chunk's inputs."""
COSTS: Mapping[str, int] = {"F": 1, "B": 2, "I": 1, "W": 1}
"""Unit costs: a backward is twice a forward, and splits into equal halves."""
MAX_PROBLEMS = 8
CHANNELS = ("activations", "gradients")


@dataclass(frozen=True, slots=True)
class Action:
    """One step of a rank: F forward, B full backward, I gradient of the inputs, W of the weights later.

    `chunk` is the stage in depth order, 0 .. stages * virtual - 1.
    """

    kind: str
    chunk: int
    batch: int


@dataclass(frozen=True, slots=True)
class Schedule:
    """The actions of each pipeline rank in order; chunk c lives on rank c % stages."""

    rows: tuple[tuple[Action, ...], ...]
    stages: int
    virtual: int
    batches: int
    name: str

    def __hash__(self) -> int:
        """That of its sizes: rows are long, and few schedules have the same."""
        return hash((self.stages, self.virtual, self.batches, self.name))

    @property
    def chunks(self) -> int:
        """How many stages there are in depth order."""
        return self.stages * self.virtual

    @property
    def splits(self) -> bool:
        """Whether backwards are split: the weights' part comes later."""
        return any(action.kind == "W" for row in self.rows for action in row)

    def label(self, action: Action) -> str:
        """An action as plans write it: `F3`, with virtual stages `F3.1`."""
        plain = f"{action.kind}{action.batch}"
        return f"{plain}.{action.chunk // self.stages}" if self.virtual > 1 else plain


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a schedule, and at which step of which rank if at one."""

    text: str
    rank: int | None = None
    step: int | None = None


Links = Iterable[tuple[int, int]]
"""(source chunk, target chunk) of values that skip stages; each chunk sends to the next one anyway."""


def schedule_problems(schedule: Schedule, links: Links = ()) -> list[str]:
    """Everything that is wrong with a schedule, in words; empty for a right one."""
    return [problem.text for problem in find_problems(schedule, links)]


def find_problems(schedule: Schedule, links: Links = ()) -> list[Problem]:
    """Everything that is wrong with a schedule (at most MAX_PROBLEMS), with its place."""
    if len(schedule.rows) != schedule.stages:
        text = f"{len(schedule.rows)} rows for {schedule.stages} pipeline ranks"
        return [Problem(text)]
    for check in (_strangers, _incomplete, _disorder):
        found = [p for p, _ in zip(check(schedule), range(MAX_PROBLEMS), strict=False)]
        if found:
            return found
    return [*_deadlock(schedule), *_overtaken(schedule, links)]


def _strangers(schedule: Schedule) -> Iterator[Problem]:
    """Actions that do not exist on their rank, or stand there twice."""
    for rank, row in enumerate(schedule.rows):
        seen: set[Action] = set()
        for step, action in enumerate(row):
            name = schedule.label(action)
            if action.kind not in KINDS or not 0 <= action.chunk < schedule.chunks:
                yield Problem(f"pipeline rank {rank} has no `{name}`", rank, step)
            elif action.chunk % schedule.stages != rank:
                home = action.chunk % schedule.stages
                text = f"chunk {action.chunk} lives on pipeline rank {home}, not {rank}"
                yield Problem(text, rank, step)
            elif not 0 <= action.batch < schedule.batches:
                text = f"`{name}` is beyond the {schedule.batches} micro-batches"
                yield Problem(text, rank, step)
            elif action in seen:
                yield Problem(f"pipeline rank {rank} runs `{name}` twice", rank, step)
            seen.add(action)


def _incomplete(schedule: Schedule) -> Iterator[Problem]:
    """Micro-batches whose forward or backward is missing, or whose backward is there twice."""
    for rank, row in enumerate(schedule.rows):
        there = set(row)
        at = {action: step for step, action in enumerate(row)}
        for chunk in range(rank, schedule.chunks, schedule.stages):
            for batch in range(schedule.batches):
                f, b, i, w = (Action(kind, chunk, batch) for kind in KINDS)
                if f not in there:
                    yield Problem(f"pipeline rank {rank} never runs `{schedule.label(f)}`", rank)
                if b in there:
                    for other in (x for x in (i, w) if x in there):
                        names = f"`{schedule.label(b)}` and `{schedule.label(other)}`"
                        text = f"pipeline rank {rank} runs {names}: a backward twice"
                        yield Problem(text, rank, at[other])
                elif i not in there and w not in there:
                    yield Problem(f"pipeline rank {rank} never runs `{schedule.label(b)}`", rank)
                else:
                    for lost in (x for x in (i, w) if x not in there):
                        text = f"pipeline rank {rank} never runs `{schedule.label(lost)}`"
                        yield Problem(text, rank)


def _disorder(schedule: Schedule) -> Iterator[Problem]:
    """F comes before B and I, I before W."""
    for rank, row in enumerate(schedule.rows):
        seen: set[Action] = set()
        for step, action in enumerate(row):
            before = {"B": "F", "I": "F", "W": "I"}.get(action.kind)
            needed = Action(before, action.chunk, action.batch) if before else None
            if needed is not None and needed not in seen:
                text = f"`{schedule.label(action)}` comes before `{schedule.label(needed)}`"
                yield Problem(f"on pipeline rank {rank}, {text}", rank, step)
            seen.add(action)


def needs(action: Action, chunks: int) -> tuple[str, int, int] | None:
    """What an action waits for, as ("F" or "B", chunk, batch): a result, mostly of another rank."""
    if action.kind == "F":
        return ("F", action.chunk - 1, action.batch) if action.chunk else None
    if action.kind == "W" or action.chunk == chunks - 1:
        return None
    return "B", action.chunk + 1, action.batch


@dataclass
class _Clock:
    """A run of a schedule: who is where, and when results are there."""

    schedule: Schedule
    costs: Mapping[str, int]
    at: list[int] = field(init=False)
    ends: list[list[int]] = field(init=False)
    there: dict[tuple[str, int, int], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Put every rank before its first action."""
        self.at = [0] * len(self.schedule.rows)
        self.ends = [[] for _ in self.schedule.rows]

    def run(self) -> bool:
        """Run until all have ended (true) or all wait (false)."""
        rows = self.schedule.rows
        awake = deque(range(len(rows)))
        while awake:
            rank = awake.popleft()
            begin = self.at[rank]
            while self.step(rank):
                pass
            if self.at[rank] > begin:
                awake.extend({(rank + 1) % len(rows), (rank - 1) % len(rows)} - {rank})
        return all(at == len(row) for at, row in zip(self.at, rows, strict=True))

    def step(self, rank: int) -> bool:
        """Run the next action of a rank if what it needs is there."""
        row = self.schedule.rows[rank]
        if self.at[rank] == len(row):
            return False
        action = row[self.at[rank]]
        need = needs(action, self.schedule.chunks)
        if need is not None and need not in self.there:
            return False
        free = self.ends[rank][-1] if self.ends[rank] else 0
        begin = max(free, self.there[need]) if need is not None else free
        end = begin + self.costs[action.kind]
        self.ends[rank].append(end)
        self.at[rank] += 1
        if action.kind != "W":
            phase = "B" if action.kind in GRADIENTS else "F"
            self.there[phase, action.chunk, action.batch] = end
        return True


def timeline(schedule: Schedule, costs: Mapping[str, int] = COSTS) -> tuple[tuple[int, ...], ...]:
    """When each action of each rank ends, if all begin as early as they can (Bug on a deadlock)."""
    clock = _Clock(schedule, costs)
    if not clock.run():
        raise Bug(f"schedule {schedule.name} deadlocks")
    return tuple(map(tuple, clock.ends))


@lru_cache(maxsize=8)
def merged_order(schedule: Schedule) -> tuple[Action, ...]:
    """All actions in one order that every rank and every wait agrees with: by the time of beginning.

    A rank that works for several chunks runs their actions in this order (Bug on a deadlock).
    """
    found = [
        (end - COSTS[action.kind], rank, step, action)
        for rank, (row, ends) in enumerate(zip(schedule.rows, timeline(schedule), strict=True))
        for step, (action, end) in enumerate(zip(row, ends, strict=True))
    ]
    return tuple(action for *_, action in sorted(found, key=lambda one: one[:3]))


def _deadlock(schedule: Schedule) -> Iterator[Problem]:
    """Who waits for what, if not all ranks come to their end."""
    clock = _Clock(schedule, COSTS)
    if clock.run():
        return
    stuck = [rank for rank, row in enumerate(schedule.rows) if clock.at[rank] < len(row)]
    lines = []
    for rank in stuck[:MAX_PROBLEMS]:
        action = schedule.rows[rank][clock.at[rank]]
        need = needs(action, schedule.chunks)
        assert need is not None
        wanted = schedule.label(Action(*need))
        lines.append(
            f"rank {rank} waits at `{schedule.label(action)}` for `{wanted}` of rank "
            f"{need[1] % schedule.stages}"
        )
    more = f"; {len(stuck) - len(lines)} more ranks wait" if len(stuck) > len(lines) else ""
    yield Problem(f"deadlock: {'; '.join(lines)}{more}", stuck[0], clock.at[stuck[0]])


def _overtaken(schedule: Schedule, links: Links) -> Iterator[Problem]:
    """Channels on which messages are not received in the order of sending."""
    near: dict[int, list[tuple[int, int]]] = {}
    for pair in sorted({*links, *((c, c + 1) for c in range(schedule.chunks - 1))}):
        for chunk in pair:
            near.setdefault(chunk, []).append(pair)
    sent: dict[tuple[int, int, int], list[tuple[int, int, int]]] = {}
    got: dict[tuple[int, int, int], list[tuple[tuple[int, int, int], int]]] = {}
    for row in schedule.rows:
        for step, action in enumerate(row):
            channel = 0 if action.kind == "F" else 1
            for source, target in near.get(action.chunk, ()) if action.kind != "W" else ():
                if channel:
                    source, target = target, source
                message = (source, target, action.batch)
                at, to = source % schedule.stages, target % schedule.stages
                if at != to and action.chunk == source:
                    sent.setdefault((at, to, channel), []).append(message)
                if at != to and action.chunk == target:
                    got.setdefault((at, to, channel), []).append((message, step))
    for way, messages in sorted(sent.items()):
        for message, (want, step) in zip(messages, got[way], strict=True):
            if message != want:
                yield _swapped(schedule, way, message, want, step)
                break


def _swapped(
    schedule: Schedule, way: tuple[int, int, int],
    message: tuple[int, int, int], want: tuple[int, int, int], step: int,
) -> Problem:  # fmt: skip
    """The first message on a channel that is not the one that its receiver waits for."""
    source, target, channel = way
    comes, wanted = (schedule.label(Action("FB"[channel], *m[1:])) for m in (message, want))
    text = (
        f"{CHANNELS[channel]} from pipeline rank {source} to {target} arrive in the order of "
        f"sending: those for `{comes}` come where `{wanted}` waits for its own"
    )
    return Problem(text, target, step)


def makespan(schedule: Schedule, costs: Mapping[str, int] = COSTS) -> int:
    """The time from the first action to the last, in units of `costs`."""
    return max((ends[-1] for ends in timeline(schedule, costs) if ends), default=0)


def bubble_share(schedule: Schedule, costs: Mapping[str, int] = COSTS) -> float:
    """The share of the ranks' time that they wait, 0 .. 1."""
    whole = makespan(schedule, costs) * schedule.stages
    busy = sum(costs[action.kind] for row in schedule.rows for action in row)
    return 1 - busy / whole if whole else 0.0


def peak_activations(schedule: Schedule) -> tuple[int, ...]:
    """How many (chunk, micro-batch) each rank holds at most: from its F to the end of its B or W."""
    return tuple(map(_peak, schedule.rows))


def _peak(row: Iterable[Action]) -> int:
    held = most = 0
    for action in row:
        held += {"F": 1, "B": -1, "W": -1}.get(action.kind, 0)
        most = max(most, held)
    return most


def draw_schedule(schedule: Schedule, durations: Mapping[str, int] = COSTS) -> str:
    """A picture of the schedule: a row a rank, a column a unit of time, dots where a rank waits."""
    ends = timeline(schedule, durations)
    width = max((len(schedule.label(a)) for row in schedule.rows for a in row), default=1)
    whole = makespan(schedule, durations)
    digits = len(str(schedule.stages - 1))
    lines = []
    for rank, row in enumerate(schedule.rows):
        cells, now = [], 0
        for action, end in zip(row, ends[rank], strict=True):
            size = durations[action.kind]
            cells += ["."] * (end - size - now)
            name = schedule.label(action)
            cells.append(name.ljust((width + 1) * size - 1, "-") if size > 1 else name)
            now = end
        cells += ["."] * (whole - now)
        text = " ".join(cell.ljust(width) for cell in cells).rstrip()
        lines.append(f"rank {rank:>{digits}}  {text}")
    held = " ".join(map(str, peak_activations(schedule)))
    units = ", ".join(f"{kind} = {size}" for kind, size in durations.items())
    plural = "es" if schedule.batches > 1 else ""
    parts = f"{schedule.stages} stages" + (f" x {schedule.virtual}" if schedule.virtual > 1 else "")
    return "\n".join([
        f"{schedule.name}: {parts}, {schedule.batches} micro-batch{plural}",
        *lines,
        f"time {whole} ({units}); bubbles {bubble_share(schedule, durations):.0%}",
        f"activations held at most, by rank: {held}",
    ]) + "\n"  # fmt: skip
