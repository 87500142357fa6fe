"""The training loop of a rank that may lose peers in the middle of a step.

A step counts once the optimizers of all ranks have agreed on the gradient's norm: from then on each
has all it needs. Who had not heard of the agreement when a peer was lost is told, and catches up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from plancc.dsl.errors import Bug
from plancc.runtime.artifact import Artifact
from plancc.runtime.checkpoint import CheckpointError, Piece
from plancc.runtime.failover.state import Held, Part, pieces_of
from plancc.runtime.optimizer import NonFinite
from plancc.runtime.training.feed import Feed
from plancc.runtime.training.job import Job
from plancc.runtime.training.loop import DONE, FAILED, NORM, STOPPED, Outcome, Row, Training
from plancc.runtime.training.slices import slice_ranges, slice_shape
from plancc.runtime.training.state import MODEL
from plancc.runtime.transport import Transport

PAUSE = 1
"""The signal to stop at the end of a step for ranks that come back; weaker than those of users."""
PAUSED = "paused"


class FailoverTraining(Training):
    """One rank's part of a run, for as long as the same ranks take part.

    `whole` are the plan's own programs. It may be abandoned wherever it communicates.
    """

    def __init__(
        self, whole: Artifact, artifact: Artifact, transport: Transport, job: Job, feed: Feed,
        held: Any, *, on_row: Callable[[Row], None], signalled: Callable[[], int],
    ) -> None:  # fmt: skip
        self.whole = whole
        self.pending: tuple[dict[str, Tensor], float, int] | None = None
        self.agreed: list[float] | None = None
        self.told: list[float] | None = None
        super().__init__(artifact, transport, job, feed, held, on_row=on_row, signalled=signalled)
        if isinstance(held, Held):
            self.good, self.saved_at = held.good, int(held.facts["saved_at"])

    @property
    def plan_hash(self) -> str:
        """That of the plan itself, whichever programs run."""
        return str(self.whole.manifest["files"]["resolved-plan.json"])

    def run(self) -> Outcome:
        """Step until the run ends, or until ranks come back; a save that broke off is done again."""
        every, signal = self.job.every, 0
        try:
            if every and self.step and self.step % every == 0:
                self.save()
            while not signal and self.goes_on():
                signal = self.train_step()
                if every and self.step % every == 0:
                    self.save()
            if signal == PAUSE:
                if self.goes_on():
                    return self.outcome(PAUSED)
                signal = 0
            self.save()
        except NonFinite as problem:
            return self.outcome(FAILED, 0, self.explained(problem))
        except CheckpointError as problem:
            return self.outcome(FAILED, 0, str(problem))
        return self.outcome(STOPPED if signal else DONE, signal)

    def update(self, gradients: Mapping[str, Tensor], loss: float, tokens: int) -> None:
        """Keep what the step needs until it is done."""
        self.agreed = None
        self.pending = (dict(gradients), loss, tokens)
        super().update(gradients, loss, tokens)
        self.pending = None

    def sum_all(self, x: Tensor, at: int = NORM) -> Tensor:
        """Add a small tensor up over all ranks; what the optimizers agree on is remembered."""
        if at != NORM:
            return super().sum_all(x, at)
        if self.told is not None:
            return torch.tensor(self.told, dtype=x.dtype)
        found = super().sum_all(x, at)
        self.agreed = found.tolist()
        return found

    def standing(self) -> dict[str, Any]:
        """Where this rank stands after it was abandoned; `agreed` belongs to the last step done."""
        return {
            "step": self.step, "agreed": self.agreed, "saved_at": self.saved_at, "good": self.good
        }  # fmt: skip

    def catch_up(self, step: int, agreed: list[float]) -> None:
        """Do what others did of a step when a peer was lost. Raises NonFinite as they did."""
        if self.step == step:
            return
        if self.step != step - 1 or self.pending is None:
            raise Bug(f"a rank stands before step {self.step}, others behind step {step}")
        gradients, loss, tokens = self.pending
        self.told = agreed
        self.update(gradients, loss, tokens)

    def hold(self, saved_at: int, good: str | None) -> Held:
        """What this rank has after the steps so far, for what comes next; nothing is copied."""
        facts = {
            "step": self.step, "tokens": self.tokens, "seconds": self.seconds(),
            "loss": self.loss, "saved_at": saved_at, "data": self.feed.batches.state(),
        }  # fmt: skip
        first = self.source.held.source if isinstance(self.source, Part) else self.source
        return Held(facts, pieces_of(self), first, good)

    def computed_with(self) -> list[Piece]:
        """The weights that programs compute with; where the optimizer has others, these follow."""
        _, cls = self.runner.program_for(self.job.batch, self.job.seq_len)
        _, _, weights = self.runner.ready(cls)
        trained = {item.key: item.name for item in self.slices}
        found = []
        for row in cls["weights"]:
            if row["key"] in trained:
                view = self.runner.view_on(row["stage"]["mesh"])
                ranges = slice_ranges(view, row, view.rank)
                name = f"{MODEL}{trained[row['key']]}"
                tensor = weights[row["key"]].detach()
                found.append(Piece(name, slice_shape(view, row), ranges, tensor))
        return found
