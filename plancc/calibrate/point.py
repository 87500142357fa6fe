"""A step to run for real, and what was measured of it: the ground truth of the simulator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from plancc.calibrate.spread import Spread

PREFILL, DECODE, TRAIN = "prefill", "decode", "train"
PHASES = (PREFILL, DECODE, TRAIN)
BACKENDS = ("local", "gloo", "nccl")
WARM = 3
"""Steps before time is taken: first calls load weights, connect ranks and fill caches."""


@dataclass(frozen=True, slots=True)
class Point:
    """A kind of step: its phase and global sizes, and the backend. `steps` of them are measured.

    `tokens` are new ones of each sequence (1 in a decode step), `past` those that the middle measured
    decode step finds cached. Raises ValueError for what cannot be run.
    """

    phase: str
    batch: int
    tokens: int
    past: int = 0
    backend: str = "local"
    steps: int = 9

    def __post_init__(self) -> None:
        if self.phase not in PHASES or self.backend not in BACKENDS:
            raise ValueError(f"no phase `{self.phase}` or no backend `{self.backend}`")
        if min(self.batch, self.tokens, self.steps) < 1:
            raise ValueError("batch, tokens and steps are at least 1")
        if self.phase == DECODE and (self.tokens != 1 or self.prompt < 1):
            least = WARM + self.steps // 2 + 1
            raise ValueError(f"a decode step has 1 new token, and {least} cached ones at least")
        if self.phase != DECODE and self.past:
            raise ValueError(f"nothing is cached before a {self.phase} step")

    @property
    def prompt(self) -> int:
        """Tokens of the prompt behind which the decode steps are made."""
        return self.past - WARM - self.steps // 2

    def json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "phase": self.phase, "batch": self.batch, "tokens": self.tokens, "past": self.past,
            "backend": self.backend, "steps": self.steps,
        }  # fmt: skip

    @staticmethod
    def from_json(found: Mapping[str, Any]) -> Point:
        """Take what `json` gave."""
        return Point(
            str(found["phase"]), int(found["batch"]), int(found["tokens"]), int(found["past"]),
            str(found["backend"]), int(found["steps"]),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Truth:
    """What a step took: from the first rank's begin to the last one's end.

    `programs` leaves out what follows the emitted programs: handing out the next token; agreeing on the
    loss, and the optimizer. `busy` are the median seconds that each rank spent on a core in a step,
    `computing` those in its programs. `load` is the 1-minute load average before it began.
    """

    point: Point
    ranks: int
    seconds: Spread
    programs: Spread
    busy: tuple[float, ...]
    computing: tuple[float, ...]
    load: float

    def json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "point": self.point.json(), "ranks": self.ranks, "seconds": self.seconds.json(),
            "programs": self.programs.json(), "busy": list(self.busy),
            "computing": list(self.computing), "load": self.load,
        }  # fmt: skip

    @staticmethod
    def from_json(found: Mapping[str, Any]) -> Truth:
        """Take what `json` gave."""
        return Truth(
            Point.from_json(found["point"]), int(found["ranks"]), Spread.from_json(found["seconds"]),
            Spread.from_json(found["programs"]), tuple(map(float, found["busy"])),
            tuple(map(float, found["computing"])), float(found["load"]),
        )  # fmt: skip
