"""How quick this machine is at the moment: others on the same hardware slow it down for a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import torch

SLOW = 0.08
"""So much slower than at its best a machine is slow."""
TRIES = 3
"""How often something is measured in the hope of a quick machine."""
PAUSE = 3.0
"""Seconds between two tries."""
LAPS = 7
PYTHON = 20_000
T = TypeVar("T")


class Pace:
    """Times a loop of products, memory and Python, some milliseconds, against its quickest time so far.

    With GPUs nobody else's work is taken to run on them, and every machine is quick.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.best, self.slowest = float("inf"), 0.0
        self.left, self.right = torch.ones(64, 512), torch.ones(512, 1408)
        self.stream = torch.ones(1 << 20)

    @property
    def worst(self) -> float:
        """How much slower than at its best the machine was at most, in what was kept."""
        return max(0.0, self.slowest / self.best - 1) if self.slowest else 0.0

    def seconds(self) -> float:
        """The seconds of the loop now."""
        found = min(self.lap() for _ in range(LAPS))
        self.best = min(self.best, found)
        return found

    def lap(self) -> float:
        """Seconds of one run of the loop."""
        begin = time.perf_counter()
        for _ in range(4):
            self.left @ self.right
            self.stream.sum()
        count = 0
        for number in range(PYTHON):
            count += number
        return time.perf_counter() - begin

    def steadily(
        self,
        measure: Callable[[], T],
        tries: int = TRIES,
        again: Callable[[], object] = lambda: None,
    ) -> T:
        """What `measure` finds while the machine is quick before and after, or at the last of `tries`.

        `again` is told before another try.
        """
        if self.device.type == "cuda":
            return measure()
        for attempt in range(tries):
            before = self.seconds()
            found = measure()
            slow = max(before, self.seconds())
            if slow <= self.best * (1 + SLOW) or attempt == tries - 1:
                break
            again()
            time.sleep(PAUSE)
        self.slowest = max(self.slowest, slow)
        return found
