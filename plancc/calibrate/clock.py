"""Seconds of a call: warmed up, in laps of many calls, the laps repeated."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from plancc.calibrate.spread import Spread, spread_of

Call = Callable[[], Any]
GROWTH = 4
"""How much longer each trial lap is than the one before, until laps are long enough."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How long a lap is to be at least (seconds), how many laps there are, and calls to warm up with."""

    lap: float = 0.01
    laps: int = 7
    warm: int = 3


THOROUGH, QUICK = Effort(), Effort(0.002, 3, 1)


class Clock:
    """Times calls on a device.

    On a CPU with one thread it counts the seconds that the thread spends on a core: what it takes on a
    quiet machine, and others can hardly disturb it. With several threads it counts time as it passes. On a
    GPU events on the stream give the device's seconds, and calls are queued ahead: the time of a call is its
    kernels' or its launch, whichever is longer.
    """

    def __init__(self, device: torch.device, threads: int, effort: Effort = THOROUGH) -> None:
        self.device, self.effort = device, effort
        alone = device.type == "cpu" and threads == 1
        self._now = time.thread_time if alone else time.perf_counter

    def seconds(self, call: Call) -> Spread:
        """The spread of a call's seconds over the laps."""
        for _ in range(self.effort.warm):
            call()
        count, passed = 1, self._lap(call, 1)
        while passed < self.effort.lap / GROWTH:
            count *= GROWTH
            passed = self._lap(call, count)
        count = max(1, round(count * self.effort.lap / passed))
        return spread_of([self._lap(call, count) / count for _ in range(self.effort.laps)])

    def _lap(self, call: Call, count: int) -> float:
        """Seconds of `count` calls."""
        if self.device.type == "cuda":
            return self._device_lap(call, count)
        begin = self._now()
        for _ in range(count):
            call()
        return self._now() - begin

    def _device_lap(self, call: Call, count: int) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        begin.record()
        for _ in range(count):
            call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3
