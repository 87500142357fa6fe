"""An epoch that is abandoned while a rank waits: for gloo, which may never give up, and for what blocks."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from plancc.runtime.epoch import Abandoned, Beside
from plancc.runtime.launch import launch


def test_a_message_is_cut_in_two(tmp_path: Path) -> None:
    """The rest of a message cannot leave any more: gloo waits on, the rank leaves all the same."""
    payload = {"store": str(tmp_path / "store")}
    ended = launch(2, "epoch_entries:part_of_a_message", payload, time_limit=20.0, start_limit=20.0)
    assert ended[0] in ("Abandoned", "LostPeer") and ended[1] is None


def test_what_a_call_returns_and_raises() -> None:
    """As if it had been called here; the epoch being over changes nothing for what ends in time."""
    over = threading.Event()
    beside = Beside("test", over)
    assert beside.do(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        beside.do(lambda: 1 // 0)
    over.set()
    assert beside.do(lambda: 4) == 4
    beside.end()


def test_a_call_that_blocks_is_left_behind() -> None:
    """Once the epoch is over, and not before."""
    over, never = threading.Event(), threading.Event()
    beside = Beside("test", over)
    timer = threading.Timer(0.1, over.set)
    timer.start()
    with pytest.raises(Abandoned):
        beside.do(never.wait, 0.1)
    assert over.is_set()
    never.set()
