"""The course of a run with replicas: who takes part, what a loss costs, and who comes back when."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from plancc.runtime.failover.crew import Crew, End, Lost
from plancc.runtime.failover.replicas import Spares
from plancc.runtime.failover.training import PAUSE, PAUSED
from plancc.runtime.failover.worker import setup_of
from plancc.runtime.failure import RankFailure, place
from plancc.runtime.training.job import Job
from plancc.runtime.training.loop import Outcome, Row

RESTARTS = 3
"""How often the process of one rank is started again."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that befell the run after `step` steps.

    `what` is "lost" (ranks are gone), "done again" (the first step after a loss is done, `seconds` after
    it was noticed) or "back" (ranks take part again). `detail` is a sentence.
    """

    step: int
    what: str
    ranks: tuple[int, ...]
    detail: str
    seconds: float = 0.0

    def json(self) -> dict[str, Any]:
        """Plain data, as the log has it."""
        found = asdict(self)
        return {"step": self.step, "event": found.pop("what"), **found}


OnEvent = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Do nothing about an event."""


class Course:
    """One run: opens epochs until the ranks say that it is over."""

    def __init__(
        self, spares: Spares, seat: str, run: Any, *, on_row: Callable[[Row], None],
        on_event: OnEvent, rejoin: bool, time_limit: float, first: int = 0,
    ) -> None:  # fmt: skip
        self.spares, self.on_row, self.on_event, self.rejoin = spares, on_row, on_event, rejoin
        self.active = list(range(len(spares.replicas.ranks)))
        self.first = self.step = first
        self.ready: set[int] = set()
        self.starts = dict.fromkeys(range(spares.full.world), 0)
        self.told: dict[str, Any] = {"step": None, "fresh": [], "saved_at": -1, "good": None}
        self.signal = self.sent = 0
        self.lost_at: float | None = None
        self.crew = Crew(
            spares, setup_of(spares, seat, run), self.hear, time_limit=time_limit,
            start_limit=max(120.0, time_limit),
        )  # fmt: skip

    def run(self) -> dict[str, Any]:
        """Work to the end: what rank 0 answers. Raises RankFailure where nothing can take over."""
        self.start(range(self.spares.full.world))
        while True:
            found = self.epoch()
            if isinstance(found, Lost):
                self.lose(found)
            elif found["status"] == PAUSED:
                self.bring_back(found)
            else:
                return found

    def epoch(self) -> dict[str, Any] | Lost:
        """Work with the ranks of the active replicas: what rank 0 answers, or who was lost."""
        seats = self.spares.seats(self.active)
        self.sent = 0
        told = {"agreed": None, **self.told, **self.facts()}
        try:
            found: dict[str, Any] = self.crew.work(seats, len(self.active), self.look, **told)[
                seats[0]
            ]
        except Lost as lost:
            return lost
        return found

    def facts(self) -> dict[str, Any]:
        """What an epoch is told besides."""
        return {}

    def start(self, ranks: Iterable[int]) -> None:
        """Start processes."""
        chosen = list(ranks)
        self.ready -= set(chosen)
        self.crew.spawn(chosen)

    def hear(self, rank: int, message: dict[str, Any]) -> None:
        """Take what a worker tells: that it is ready, or the row of a step, once each."""
        if "ready" in message:
            self.ready.add(rank)
        elif "gone" in message:
            self.ready.discard(rank)
            self.again([rank])
        elif "row" in message and message["row"]["step"] > self.step:
            self.step = message["row"]["step"]
            if self.lost_at is not None:
                seconds = round(time.monotonic() - self.lost_at, 3)
                self.lost_at = None
                detail = f"step {self.step} is done, {seconds:.2f} s after the loss"
                self.on_event(Event(self.step, "done again", (), detail, seconds))
            self.on_row(message["row"])

    def caught(self, number: int) -> None:
        """Have the run end after its step: a signal's number, from a handler."""
        self.signal = number

    def look(self) -> None:
        """Hand signals on; have the ranks pause where a replica can come back."""
        wanted = self.signal or (PAUSE if self.returning() else 0)
        if wanted > self.sent:
            self.sent = wanted
            for rank in self.crew.seats:
                self.crew.send(rank, "signal", signal=wanted)

    def returning(self) -> list[int]:
        """The replicas whose ranks are all there again."""
        ranks = self.spares.replicas.ranks
        gone = [k for k in range(len(ranks)) if k not in self.active]
        return [k for k in gone if self.rejoin and set(ranks[k]) <= self.ready]

    def bring_back(self, answer: dict[str, Any]) -> None:
        """Let replicas take part again, after a pause."""
        fresh = list(self.crew.seats)
        back = self.returning()
        good = answer["checkpoint"]
        self.told = {
            "step": answer["steps"], "fresh": fresh, "good": good,
            "saved_at": self.saved(good, answer["steps"]),
        }  # fmt: skip
        for k in back:
            ranks = self.spares.replicas.ranks[k]
            detail = (
                f"replica {k} of {self.spares.replicas.name} ({named(ranks)}) takes part again after "
                f"step {answer['steps']}, with the state of replica {self.active[0]}"
            )
            self.on_event(Event(answer["steps"], "back", tuple(ranks), detail))
        self.active = sorted({*self.active, *back})

    @staticmethod
    def saved(good: str | None, step: int) -> int:
        """The step that is saved already, if it is the present one."""
        return step if good and Path(good).name == f"step-{step:08d}" else -1

    def lose(self, lost: Lost) -> None:
        """Go over to the replicas that are whole. Raises RankFailure if there is none, or no other."""
        began = time.monotonic()
        standing, more = self.crew.abandon(lost.suspect)
        gone = {**lost.ranks, **more.ranks}
        self.ready -= gone.keys()
        self.told = counted(self.told, standing, self.crew.seats, set(gone))
        missing = [k for k in self.active if not self.whole(k)]
        alone = [rank for rank in gone if self.spares.replicas.of(rank) is None]
        if alone or len(missing) == len(self.active):
            raise self.hopeless(gone, alone)
        self.active = [k for k in self.active if k not in missing]
        if self.lost_at is None:
            self.lost_at = began
        for rank, end in gone.items():
            self.on_event(Event(self.done, "lost", (rank,), self.obituary(rank, end, missing)))
        for rank in set(standing) - set(self.spares.seats(self.active)):
            self.crew.send(rank, "rest")
        self.again(gone)

    @property
    def done(self) -> int:
        """The steps that all ranks have done."""
        return self.first if self.told["step"] is None else int(self.told["step"])

    def whole(self, k: int) -> bool:
        """Whether all ranks of a replica are there, with the run's state."""
        ranks = set(self.spares.replicas.ranks[k])
        known = self.crew.workers if self.told["step"] is None else self.told["fresh"]
        return ranks <= set(known)

    def hopeless(self, gone: Mapping[int, End], alone: Sequence[int]) -> RankFailure:
        """The failure of a run that nothing can go on from."""
        name = self.spares.replicas.name
        rank = alone[0] if alone else next(iter(gone))
        end = gone[rank]
        if alone:
            detail = f"it is in no replica of {name}, so that nothing holds what it held"
        else:
            detail = f"no replica of {name} is whole any more"
            others = [
                f"rank {r} {e.reason} {place(e.at, e.span)}" for r, e in gone.items() if r != rank
            ]
            stale = sorted(set(self.crew.seats) - set(gone) - set(self.told["fresh"]))
            if stale and self.told["step"] is not None:
                others.append(f"{named(stale)} had not got the state of the others yet")
            detail = "; ".join([detail, *others])
        return RankFailure(rank, end.at, end.span, end.reason, detail)

    def obituary(self, rank: int, end: End, missing: Sequence[int]) -> str:
        """Who is gone, where it stood, what that cost, and who goes on."""
        found = self.spares.replicas
        mine = found.of(rank)
        where = f" ({end.span})" if end.span else ""
        left = f"replicas {', '.join(map(str, self.active))} go on"
        if len(self.active) == 1:
            left = f"replica {self.active[0]} goes on alone"
        text = (
            f"rank {rank}, of replica {mine} of {found.name}, {end.reason} in step {self.done + 1}"
            f"{where}: {left}"
        )
        others = [r for k in missing for r in found.ranks[k] if r in self.crew.workers]
        if others:
            text += f", {named(others)} wait{'s' if len(others) == 1 else ''}"
        return f"{text}; lost: {self.cost()}"

    def cost(self) -> str:
        """What a loss costs."""
        return f"the unfinished step {self.done + 1}, which is run again"

    def again(self, ranks: Iterable[int]) -> None:
        """Start processes in the place of those that are gone, as often as that is allowed."""
        for rank in ranks:
            if self.rejoin and self.starts[rank] < RESTARTS:
                self.starts[rank] += 1
                self.start([rank])


def counted(
    told: Mapping[str, Any], standing: Mapping[int, Mapping[str, Any]], seats: Sequence[int],
    gone: Collection[int],
) -> dict[str, Any]:  # fmt: skip
    """What the next epoch begins from: the step that counts, and who has the state after it.

    Where an epoch broke off before all of its ranks had begun for the first time, all begin again.
    """
    found = {rank: at for rank, at in standing.items() if at}
    if not found or (told["step"] is None and set(seats) - set(gone) - found.keys()):
        return {**told, "agreed": None}
    step = max(at["step"] for at in found.values())
    ahead = next(at for at in found.values() if at["step"] == step)
    saved = max(found.values(), key=lambda at: int(at["saved_at"]))
    return {
        "step": step, "agreed": ahead["agreed"], "fresh": sorted(found),
        "saved_at": saved["saved_at"], "good": saved["good"],
    }  # fmt: skip


def named(ranks: Sequence[int]) -> str:
    """`rank 3`, `ranks 0-2, 5`."""
    rows: list[list[int]] = []
    for rank in sorted(ranks):
        if rows and rows[-1][-1] == rank - 1:
            rows[-1].append(rank)
        else:
            rows.append([rank])
    shown = ", ".join(f"{row[0]}-{row[-1]}" if len(row) > 1 else f"{row[0]}" for row in rows)
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"


def train_with_failover(
    spares: Spares, job: Job, on_row: Callable[[Row], None],
    on_event: OnEvent = ignore, *, rejoin: bool = True,
    time_limit: float = 600.0, opened: Callable[[Course], None] = lambda course: None,
) -> Outcome:  # fmt: skip
    """Train with a process a rank on this host; replicas stand in for each other.

    With `rejoin` processes that end are started again and take part again at the end of a step. Events
    go into the job's log, too; `opened` sees the running course. Raises RankFailure.
    """
    from plancc.runtime.training.backends import caught_signals, journal_of, resumed

    checkpoint = resumed(job)
    first = checkpoint.step if checkpoint is not None else 0
    with journal_of(job, checkpoint) as write:

        def told(row: Row) -> None:
            write(row)
            on_row(row)

        def happened(event: Event) -> None:
            write(event.json())
            on_event(event)

        course = Course(
            spares, "plancc.runtime.failover.seat:TrainSeat", job.json(), on_row=told,
            on_event=happened, rejoin=rejoin, time_limit=time_limit, first=first,
        )  # fmt: skip
        try:
            with caught_signals(course.caught):
                opened(course)
                found = Outcome(**course.run())
        finally:
            course.crew.close()
    before = float(checkpoint.state["seconds"]) if checkpoint is not None else 0.0
    ran = found.steps - first
    rate = ran * job.batch * job.seq_len / max(found.seconds - before, 1e-9)
    return replace(found, ran=ran, tokens_per_s=round(rate, 1))
