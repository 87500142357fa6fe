"""A rank that had not heard of the agreement on a step catches up with those that had."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from failover_runs import settings, spares

from plancc.dsl.errors import Bug
from plancc.runtime.epoch import Abandoned
from plancc.runtime.failover.state import Held
from plancc.runtime.failover.training import FailoverTraining
from plancc.runtime.local import run_local
from plancc.runtime.training.feed import Feed
from plancc.runtime.training.loop import NORM
from plancc.training import prepare, request_of


class Deaf(FailoverTraining):
    """Rank 1 gives its part of the third norm, and is abandoned before it hears the sum."""

    def sum_all(self, x: torch.Tensor, at: int = NORM) -> torch.Tensor:
        known = self.agreed
        found = super().sum_all(x, at)
        if at == NORM and self.transport.rank == 1 and self.step == 2 and self.told is None:
            self.agreed = known
            raise Abandoned
        return found


def test_who_had_not_heard_is_told() -> None:
    given = spares("dp2")
    full = settings(steps=3)
    job = prepare(given.full, request_of(full.pop("data"), full), None).job

    def one(transport: Any) -> tuple[FailoverTraining, dict[str, Any]]:
        training = Deaf(
            given.full, given.full, transport, job, Feed(job.batches()), None,
            on_row=lambda row: None, signalled=lambda: 0,
        )  # fmt: skip
        try:
            training.run()
        except Abandoned:
            assert transport.rank == 1
        return training, training.standing()

    (ahead, stands), (behind, late) = run_local(2, one, describe=None)
    assert stands["step"] == 3 and late["step"] == 2 and late["agreed"] != stands["agreed"]
    behind.catch_up(3, stands["agreed"])
    assert behind.step == 3 and behind.loss == ahead.loss and behind.tokens == ahead.tokens
    mine, theirs = behind.hold(-1, None), ahead.hold(-1, None)
    assert same(mine, theirs)
    behind.catch_up(3, stands["agreed"])
    assert same(behind.hold(-1, None), theirs)
    with pytest.raises(Bug, match="stands before step 3, others behind step 5"):
        behind.catch_up(5, stands["agreed"])


def same(one: Held, other: Held) -> bool:
    """Whether two ranks hold the same, bit by bit."""
    assert one.pieces.keys() == other.pieces.keys() and len(one.pieces) > 20
    return all(torch.equal(one.pieces[k].tensor, other.pieces[k].tensor) for k in one.pieces)
