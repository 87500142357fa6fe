"""What to measure, and how the processes of ranks are started for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

RANKS = (2, 3, 4, 8)
TIME_LIMIT = 300.0
"""Seconds that the longest of measurements may take between two looks."""


class CalibrationError(Exception):
    """What was asked for cannot be measured here; the user's side, exit code 1."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to measure: the backend, group sizes of collectives, dtypes (short names), few sizes or all."""

    backend: str = "local"
    ranks: tuple[int, ...] = RANKS
    dtypes: tuple[str, ...] = ("f32",)
    quick: bool = False


def started(backend: str, world: int, entry: str, payload: Mapping[str, Any]) -> list[Any]:
    """What the processes of all ranks return."""
    from plancc.runtime.launch import launch

    return launch(world, entry, dict(payload), backend=backend, time_limit=TIME_LIMIT)
