"""What a rank of a training run with replicas does in each epoch: hand state over, then train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from plancc.runtime.checkpoint import Checkpoint
from plancc.runtime.failover.replicas import Spares
from plancc.runtime.failover.state import Held, receive, send
from plancc.runtime.failover.training import FailoverTraining
from plancc.runtime.failover.worker import Tell, Told
from plancc.runtime.optimizer.state import pattern
from plancc.runtime.training import state as saved_state
from plancc.runtime.training.feed import Feed
from plancc.runtime.training.job import Job
from plancc.runtime.transport import Transport


class TrainSeat:
    """One rank of a run; every rank reads whole batches, so that any can take over any rows."""

    def __init__(self, spares: Spares, rank: int, run: dict[str, Any], tell: Tell) -> None:
        self.spares, self.rank, self.tell = spares, rank, tell
        self.job = Job.from_json(run)
        self.training: FailoverTraining | None = None
        self.held: Held | None = None
        self.feed: Feed | None = None
        self.signal = 0
        self.warm_up()

    def warm_up(self) -> None:
        """Load what the first step needs, so that nobody waits for a rank that comes back."""
        pattern(self.job.spec, torch.zeros(2))
        for row in self.spares.full.manifest["programs"]:
            for cls in row["classes"]:
                if self.rank in cls["ranks"]:
                    self.spares.full.module(cls["file"])

    def settle(self, told: Told) -> None:
        """Finish the step that others have finished; or forget what is too old to go on from."""
        if self.rank not in told["fresh"]:
            self.rest()
        elif self.training is not None:
            self.training.catch_up(told["step"], told["agreed"])
            self.held = self.training.hold(told["saved_at"], told["good"])
            report = self.training.report
            if told["seats"][0] == self.rank and report is not None:
                rate = self.training.tokens / max(self.training.seconds(), 1e-9)
                self.tell("row", self.training.row_of(report, rate))

    def work(self, transport: Transport, told: Told) -> dict[str, Any]:
        """Train until the end, or until ranks come back."""
        artifact = self.spares.levels[told["level"]]
        begin: Any = self.held
        if told["step"] is not None:
            begin = self.hand_over(transport, told)
        elif self.job.resume:
            begin = Checkpoint.open(self.job.resume, verify=False)
        if self.feed is None:
            data = begin.state["data"] if begin is not None else None
            self.feed = Feed(self.job.batches(data))
        self.training = FailoverTraining(
            self.spares.full, artifact, transport, self.job, self.feed, begin,
            on_row=lambda row: self.tell("row", row), signalled=lambda: self.signal,
        )  # fmt: skip
        self.held = begin = None
        return self.training.run().json()

    def hand_over(self, transport: Transport, told: Told) -> Held:
        """Give state to ranks that come back, or take it from the lowest twin that has it."""
        seats, fresh = told["seats"], told["fresh"]
        for place, seat in enumerate(seats):
            if seat in fresh:
                continue
            giver = next(one for one in self.spares.replicas.twins(seat) if one in fresh)
            if giver == self.rank:
                assert self.held is not None
                send(transport, place, self.held)
            if seat == self.rank:
                source = self.unchanged(told["good"])
                self.held = receive(transport, seats.index(giver), source)
        assert self.held is not None
        return self.held

    def unchanged(self, good: str | None) -> Any:
        """Where the parameters come from that nobody trains: any checkpoint that is there has them."""
        for path in (good, self.job.resume):
            if path and Path(path).is_dir():
                return Checkpoint.open(path, verify=False).under(saved_state.MODEL)
        return saved_state.first_weights(self.spares.full, self.job.seed)

    def standing(self) -> dict[str, Any]:
        """Where it stands; {} if it holds nothing. What was handed over completely counts."""
        if self.training is not None:
            return self.training.standing()
        if self.held is None:
            return {}
        facts = self.held.facts
        return {
            "step": facts["step"], "agreed": None, "saved_at": facts["saved_at"],
            "good": self.held.good,
        }  # fmt: skip

    def rest(self) -> None:
        """Forget weights, optimizer state and the place in the data."""
        self.training = self.held = self.feed = None
