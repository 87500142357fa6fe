"""Generation that goes on when a rank of a replica dies: caches are lost, and computed again.

Every epoch begins with a prefill of prompt and tokens so far, under the programs of the ranks that
take part; so whatever a rank held of the caches, the tokens are those of a run without a loss.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from plancc.runtime.failover.crew import Lost
from plancc.runtime.failover.drive import Course, Event, OnEvent, ignore, named
from plancc.runtime.failover.replicas import Spares
from plancc.runtime.failover.worker import Tell, Told
from plancc.runtime.loading import open_weights
from plancc.runtime.runner import Runner
from plancc.runtime.runner import Sequence as Running
from plancc.runtime.transport import Transport

DONE = "done"


class GenerateSeat:
    """One rank of a run; its weights stay loaded from epoch to epoch."""

    def __init__(self, spares: Spares, rank: int, run: dict[str, Any], tell: Tell) -> None:
        self.spares, self.rank, self.tell = spares, rank, tell
        self.ids = torch.tensor(run["ids"], dtype=torch.long)
        self.new_tokens = int(run["new_tokens"])
        self.weights = open_weights(spares.full)
        self.slices: dict[str, Tensor] = {}
        self.step: int | None = None
        self.signal = 0

    def settle(self, told: Told) -> None:
        """Have nothing to bring along: the coordinator knows the tokens."""

    def work(self, transport: Transport, told: Told) -> dict[str, Any]:
        """Continue what the sequences are so far, up to the last token."""
        runner = Runner(self.spares.levels[told["level"]], transport, self.weights)
        runner._shared = self.slices
        so_far = [torch.tensor(row, dtype=torch.long) for row in told["tokens"]]
        ids, phase, state = (
            torch.cat([self.ids, *(r.unsqueeze(1) for r in so_far)], 1),
            "prefill",
            Running(),
        )
        self.step = len(so_far)
        with torch.no_grad():
            while self.step < self.new_tokens:
                placed = runner.run(phase, {runner.input_name(phase): ids}, state)
                token = runner.everywhere(placed["next_token"])
                self.step += 1
                if transport.rank == 0:
                    variant = int(state.row["variant"]) if state.row else 0
                    row = {"step": self.step, "tokens": token.tolist(), "variant": variant}
                    self.tell("row", row)
                ids, phase = token.unsqueeze(1), "decode"
        return {"status": DONE}

    def standing(self) -> dict[str, Any]:
        """How many tokens it knows; {} before it took part."""
        if self.step is None:
            return {}
        return {"step": self.step, "agreed": None, "saved_at": -1, "good": None}

    def rest(self) -> None:
        """Keep the weights: they do not change."""


class GenerateCourse(Course):
    """A run of generation: replicas come back at once, for no state is handed over."""

    def __init__(self, spares: Spares, ids: Tensor, new_tokens: int, **rest: Any) -> None:
        run = {"ids": ids.tolist(), "new_tokens": new_tokens}
        self.rows: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.length = ids.shape[1]
        seat = "plancc.runtime.failover.generation:GenerateSeat"
        super().__init__(spares, seat, run, on_row=self.keep, **rest)

    def keep(self, row: dict[str, Any]) -> None:
        """Keep the tokens of a step."""
        self.rows.append(row)
        self.times.append(time.monotonic())

    def facts(self) -> dict[str, Any]:
        """What an epoch is told besides: the tokens so far."""
        return {"tokens": [row["tokens"] for row in self.rows]}

    @property
    def done(self) -> int:
        """The tokens that are known."""
        return len(self.rows)

    def look(self) -> None:
        """Break the epoch off where a replica can come back."""
        if self.returning() and self.rows:
            raise Lost({})

    def lose(self, lost: Lost) -> None:
        """Go over to the replicas that are whole; or have some back, where none was lost."""
        if lost.ranks or lost.suspect is not None:
            super().lose(lost)
            return
        standing, more = self.crew.abandon()
        back = self.returning()
        if more.ranks:
            super().lose(more)
            return
        self.active = sorted({*self.active, *back})
        self.told = {**self.told, "step": self.done, "fresh": sorted({*standing, *self.ready})}
        for k in back:
            ranks = self.spares.replicas.ranks[k]
            detail = (
                f"replica {k} of {self.spares.replicas.name} ({named(ranks)}) takes part again "
                f"after token {self.done}; {self.caches()}"
            )
            self.on_event(Event(self.done, "back", tuple(ranks), detail))

    def caches(self) -> str:
        """What is done about the caches."""
        size = self.length + self.done
        return f"the caches of all sequences are computed again, {size} positions each"

    def cost(self) -> str:
        """What a loss costs."""
        return f"the unfinished step and the caches: {self.caches()}"


def generate_with_failover(
    spares: Spares, ids: Tensor, new_tokens: int, on_event: OnEvent = ignore, *,
    rejoin: bool = True, time_limit: float = 60.0, opened: Any = lambda course: None,
) -> dict[str, Any]:  # fmt: skip
    """Continue `ids` [B, T] by greedy tokens with a process a rank: tokens, times, variants, events.

    Raises RankFailure where no replica is whole any more, or a rank of none died.
    """
    events: list[Event] = []

    def happened(event: Event) -> None:
        events.append(event)
        on_event(event)

    course = GenerateCourse(
        spares, ids, new_tokens, on_event=happened, rejoin=rejoin, time_limit=time_limit
    )
    begun = time.monotonic()
    try:
        opened(course)
        course.run()
    finally:
        course.crew.close()
    rows, times = course.rows, course.times
    later = (times[-1] - times[0]) / (new_tokens - 1) if new_tokens > 1 else 0.0
    return {
        "tokens": transposed([row["tokens"] for row in rows]), "ttft_s": times[0] - begun,
        "tpot_s": later, "variants": [row["variant"] for row in rows],
        "failover": [event.json() for event in events],
    }  # fmt: skip


def transposed(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Tokens by sequence, from tokens by step."""
    return [list(row) for row in zip(*rows, strict=True)]
