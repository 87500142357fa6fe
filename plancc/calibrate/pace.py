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
    """Times a loop of products, memory and Python, some ten milliseconds, against its quickest time so far.

    With GPUs nobody else's work is taken to run on them, and every machine is quick.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.best = float("inf")
        self.worst = 0.0
        self.left, self.right = torch.ones(64, 512), torch.ones(512, 1408)
        self.stream = torch.ones(1 << 20)

    def slower(self) -> float:
        """How much slower the machine is than at its best: 0.1 takes a tenth longer."""
        if self.device.type == "cuda":
            return 0.0
        seconds = min(self.lap() for _ in range(LAPS))
        self.best = min(self.best, seconds)
        return seconds / self.best - 1

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

    def steadily(self, measure: Callable[[], T]) -> T:
        """What `measure` finds while the machine is quick before and after, or at the last of TRIES.

        `worst` then is how much slower it was at most in what was kept.
        """
        for attempt in range(TRIES):
            before = self.slower()
            found = measure()
            slower = max(before, self.slower())
            if slower <= SLOW or attempt == TRIES - 1:
                break
            time.sleep(PAUSE)
        self.worst = max(self.worst, slower)
        return found
