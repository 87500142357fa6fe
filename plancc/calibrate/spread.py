"""Repeated measurements of one thing, and how far they lie apart."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Spread:
    """Seconds of `count` repeats: the least, the lower quartile, the median, the upper quartile."""

    least: float
    low: float
    median: float
    high: float
    count: int

    @property
    def noise(self) -> float:
        """How far the quartiles lie apart, over the median; 0 where all are alike."""
        return (self.high - self.low) / self.median if self.median > 0 else 0.0

    def json(self) -> dict[str, float]:
        """Plain data, in seconds."""
        return {
            "least": self.least, "low": self.low, "median": self.median, "high": self.high,
            "count": self.count,
        }  # fmt: skip

    @staticmethod
    def from_json(found: Mapping[str, Any]) -> Spread:
        """Take what `json` gave."""
        return Spread(
            float(found["least"]), float(found["low"]), float(found["median"]),
            float(found["high"]), int(found["count"]),
        )  # fmt: skip


def spread_of(samples: Sequence[float]) -> Spread:
    """The spread of one or more samples."""
    ordered = sorted(samples)
    count = len(ordered)
    return Spread(
        ordered[0], ordered[(count - 1) // 4], statistics.median(ordered),
        ordered[count - 1 - (count - 1) // 4], count,
    )  # fmt: skip
