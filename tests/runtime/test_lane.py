"""Moves beside the computation: results and errors come with `wait`, in the order of starting."""

from __future__ import annotations

import pytest
import torch

from plancc.runtime.lane import Lane, unrecorded


class Nothing:
    """A transport that lanes only hold."""

    device = torch.device("cpu")


@pytest.mark.parametrize("threaded", [True, False])
def test_in_order(threaded: bool) -> None:
    """One after the other, and every handle has its own result."""
    lane, seen = Lane(Nothing(), threaded), []
    handles = [lane.submit(lambda i=i: seen.append(i) or i) for i in range(20)]
    assert [handle.wait() for handle in handles] == seen == list(range(20))
    lane.close()


def test_an_error_comes_with_wait() -> None:
    """Starting does not fail; later moves still run."""
    lane = Lane(Nothing(), True)
    bad, good = lane.submit(lambda: 1 // 0), lane.submit(lambda: 2)
    with pytest.raises(ZeroDivisionError):
        bad.wait()
    assert good.wait() == 2
    lane.close()


def test_nothing_is_recorded() -> None:
    """A thread of its own begins with recording on: lanes switch it off."""
    weight = torch.ones(2, requires_grad=True)
    lane = Lane(Nothing(), True)
    assert not lane.submit(lambda: weight * 2).wait().requires_grad
    assert not unrecorded(lambda: weight * 2).requires_grad
    lane.close()
