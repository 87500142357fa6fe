"""A queue of requests, served by a base group and a pool that follows the lengths of what runs.

A step at a time: admit requests, have as many pool devices as the guards ask for, run one step of
one batch. Works the same on threads and on processes (see `crew.py`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from plancc.runtime.artifact import Artifact, ArtifactError
from plancc.runtime.crew import Crew, WorkersLost
from plancc.runtime.failure import RankFailure
from plancc.runtime.leases import Leases
from plancc.runtime.pools import Choice, Guards, Load, PoolManager


@dataclass(frozen=True, slots=True)
class Event:
    """What happened before or at a step: the pool's size after it, and words."""

    step: int
    what: str
    size: int
    detail: str = ""

    def json(self) -> dict[str, object]:
        """Plain data."""
        return {"step": self.step, "what": self.what, "pool": self.size, "detail": self.detail}

    def __str__(self) -> str:
        text = f"step {self.step}: {self.what} {self.detail}".rstrip()
        return f"{text} (pool {self.size})"


@dataclass(slots=True)
class Request:
    """A prompt, how many tokens to add, and those that came so far with the times they took."""

    number: int
    ids: tuple[int, ...]
    new_tokens: int
    tokens: list[int] = field(default_factory=list)
    variants: list[int] = field(default_factory=list)
    asked: float = 0.0
    first: float = 0.0
    last: float = 0.0


@dataclass(slots=True)
class Batch:
    """Requests of one length that run together; `rows` has their prompts and all tokens so far."""

    number: int
    requests: tuple[Request, ...]
    rows: list[list[int]]
    end: int
    cached: bool = False
    holds: int = 0
    choice: Choice | None = None

    @property
    def load(self) -> Load:
        """The step that it takes next."""
        phase = "decode" if self.cached else "prefill"
        return Load(phase, len(self.rows), len(self.rows[0]), self.holds)


@dataclass(frozen=True, slots=True)
class Limits:
    """Batches at once, lost ranks until devices are given up, seconds to wait for devices."""

    at_once: int = 4
    restarts: int = 3
    patience: float = 2.0


class Server:
    """Serves requests with one base group. `leases` may be shared with other servers (`name`)."""

    def __init__(
        self,
        artifact: Artifact,
        crew: Crew,
        *,
        name: str = "base",
        leases: Leases | None = None,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.artifact = artifact
        self.guards = Guards(artifact)
        self.crew = crew
        self.name = name
        self.leases = leases if leases is not None else Leases(self.guards.pool, clock=clock)
        self.limits = limits or Limits()
        self.manager = PoolManager(self.guards, clock)
        self.events: list[Event] = []
        self.requests: list[Request] = []
        self._queue: deque[Request] = deque()
        self._running: deque[Batch] = deque()
        self._clock = clock
        self._steps = self._batches = self._losses = self._size = 0
        self._stale = True  # whether the ranks that take part are not (or no longer) these

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    @property
    def available(self) -> int:
        """How many pool devices this server can hope for."""
        return min(self.leases.total, len(self.guards.pool))

    def submit(self, ids: Sequence[int], new_tokens: int) -> Request:
        """Put a request into the queue. Raises ArtifactError if the plan's ranges refuse it."""
        problem = self.artifact.refuses(self._batch_range()[0], len(ids), new_tokens)
        if problem or not ids or new_tokens < 1:
            raise ArtifactError(problem or "a request has at least one token, and asks for one")
        request = Request(len(self.requests), tuple(ids), new_tokens, asked=self._clock())
        self.requests.append(request)
        self._queue.append(request)
        return request

    def serve(self) -> list[list[int]]:
        """Work until all requests are done; the new tokens of each, in the order of `submit`."""
        while self._queue or self._running:
            if not self.step():
                self.leases.wait(0.02)
        return [request.tokens for request in self.requests]

    def step(self) -> bool:
        """Admit requests and take one step of one batch; False if all have to wait for devices."""
        self._admit()
        for _ in range(len(self._running)):
            batch = self._running[0]
            self._running.rotate(-1)
            choice = self._choose(batch)
            if choice is None:
                continue
            try:
                self._advance(batch, choice)
            except WorkersLost as loss:
                self._recover(loss, batch)
            return True
        self.tick()
        return False

    def tick(self) -> None:
        """Give back what has lingered; call it from time to time while nothing runs."""
        if self._stale and not self._running and not self._size:
            return
        try:
            self._settle()
        except WorkersLost as loss:
            self._recover(loss, None)

    def close(self) -> None:
        """Give everything back and end the ranks."""
        self.leases.withdraw(self.name)
        self.leases.give_back(self.name)
        self.crew.close()

    def _admit(self) -> None:
        """Start batches from the head of the queue, each with others of its length."""
        while self._queue and len(self._running) < self.limits.at_once:
            first = self._queue[0]
            alike = [r for r in self._queue if len(r.ids) == len(first.ids)]
            alike = alike[: self._room(len(first.ids) + max(r.new_tokens for r in alike))]
            rows = [list(request.ids) for request in alike]
            while len(rows) < self._batch_range()[0]:
                rows.append(list(first.ids))
            end = len(first.ids) + max(request.new_tokens for request in alike) - 1
            batch = Batch(self._batches, tuple(alike), rows, end)
            if not self._may_begin(batch):
                return
            self._batches += 1
            self._queue = deque(request for request in self._queue if request not in alike)
            self._running.append(batch)
            numbers = ", ".join(str(request.number) for request in alike)
            self._tell("admitted", f"request {numbers} of {len(first.ids)} tokens")

    def _may_begin(self, batch: Batch) -> bool:
        """Whether the leases admit a batch beside those that hold devices already."""
        held = len(self.leases.held(self.name))
        if self.leases.waited(self.name) is not None:
            return False
        if held and self.leases.wanted(self.name, self.leases.patience):
            return False
        claim = self._claim([*self._running, batch])
        if not held or claim <= max(held, self._claim(self._running)):
            return True
        if self.leases.ask(self.name, held, claim):
            return True
        self.leases.withdraw(self.name)
        return False

    def _claim(self, batches: Sequence[Batch] | deque[Batch]) -> int:
        """How many devices these batches may come to hold, at most."""
        most = (self.guards.most(len(b.rows), len(b.rows[0]), b.end) for b in batches)
        return min(max(most, default=0), self.available)

    def _choose(self, batch: Batch) -> Choice | None:
        """The variant for a batch's next step, once its devices are held; None while it waits."""
        choice = self.guards.choose(batch.load, self.available)
        if choice is None:
            raise self._failure(batch)
        need = max(choice.size, *(other.holds for other in self._running))
        held = len(self.leases.held(self.name))
        claim = max(need, self._claim(self._running))
        if need <= held or self.leases.ask(self.name, need, claim):
            return choice
        if (self.leases.waited(self.name) or 0.0) < self.limits.patience:
            return None
        # It goes on waiting: once the ask is granted, the variant is the guards' again.
        return self.guards.choose(batch.load, held)

    def _failure(self, batch: Batch) -> Exception:
        load = batch.load
        if self.guards.choose(load) is None:
            sizes = ", ".join(f"{name} = {value}" for name, value in load.env.items())
            return ArtifactError(f"{sizes} is outside the range that the plan declares")
        reason = f"has no devices for {load.phase} at seq_len = {load.seq_len}"
        left = f"{self.available} are left of pool {self.guards.name}"
        detail = f"{left}, and no variant does with so few"
        return RankFailure(self.guards.base[0], None, None, reason, detail)

    def _advance(self, batch: Batch, choice: Choice) -> None:
        """Take one step of a batch."""
        self._settle()
        load = batch.load
        if not choice.guarded and choice != batch.choice:
            self._tell("fell back", f"to variant {choice.variant} at seq_len = {load.seq_len}")
        given = [row[-1:] if batch.cached else row for row in batch.rows]
        tokens = self.crew.step(batch.number, load.phase, given, choice.variant)
        self._steps += 1
        now = self._clock()
        batch.cached, batch.holds, batch.choice = True, choice.size, choice
        for row, token in zip(batch.rows, tokens, strict=True):
            row.append(token)
        for request, token in zip(batch.requests, tokens, strict=False):
            if len(request.tokens) < request.new_tokens:
                request.tokens.append(token)
                request.variants.append(choice.variant)
                request.first, request.last = request.first or now, now
        if len(batch.rows[0]) > batch.end:
            self._finish(batch)

    def _finish(self, batch: Batch) -> None:
        self._running.remove(batch)
        self.crew.drop(batch.number)
        held = len(self.leases.held(self.name))
        if not self._running:
            self.leases.withdraw(self.name)
        self.leases.give_back(self.name, held, self._claim(self._running))
        self._tell("finished", "request " + ", ".join(str(r.number) for r in batch.requests))

    def _settle(self) -> None:
        """Have as many pool ranks take part as the manager says, within what is leased."""
        held = len(self.leases.held(self.name))
        hurry = self.leases.wanted(self.name)
        loads = [other.load for other in self._running]
        size = self.manager.decide(loads, held, hurry=hurry)
        if size < held:
            self.leases.give_back(self.name, size, self._claim(self._running))
        if size == self._size and not self._stale:
            return
        before, self._size, self._stale = self._size, size, True
        if size > before:
            self._tell("grew", f"from {before} to {size}")
        elif size < before:
            self._tell("released", f"{before - size}")
        elif self._losses:
            self._tell("regrouped")
        cached = [other.number for other in self._running if other.cached]
        self.crew.resize(size, cached)
        self._stale = False

    def _recover(self, loss: WorkersLost, batch: Batch | None) -> None:
        """Give up what the lost ranks held: those batches prefill again from their tokens."""
        places = [self.guards.pool.index(rank) for rank in loss.lost]
        for rank, why in loss.lost.items():
            self._tell("lost", f"rank {rank}, which {why}")
            self._losses += 1
            held = self.leases.held(self.name)
            if self._losses > self.limits.restarts and held:
                self.leases.retire(self.name, held[-1])
                self.manager.limit(len(held) - 1)
        for other in self._running:
            harmed = other.holds > min(places) or (loss.midway and other is batch)
            if other.cached and harmed:
                self._tell("recomputes", f"{len(other.rows[0])} positions")
            if harmed:
                self.crew.drop(other.number)
                other.number, self._batches = self._batches, self._batches + 1
                other.cached, other.holds = False, 0
        self._stale = True

    def _room(self, length: int) -> int:
        """How many requests of this length one batch takes."""
        tokens = self.artifact.manifest["inputs"].get("tokens")
        most = self._batch_range()[1]
        return max(1, min(most, tokens[1] // length) if tokens else most)

    def _batch_range(self) -> tuple[int, int]:
        low, high = self.artifact.manifest["inputs"].get("batch", (1, 1))
        return int(low), int(high)

    def _tell(self, what: str, detail: str = "") -> None:
        self.events.append(Event(self._steps, what, self._size, detail))
