"""How many devices of a pool a run holds: what the plan's guards say, and `linger` seconds longer.

Plain policy: no processes, no torch, and the clock is given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from plancc.runtime.artifact import Artifact, ArtifactError

LENGTHS = ("seq_len", "tokens")
"""What a variant is chosen by, but does not depend on: its programs are right for any length."""


@dataclass(frozen=True, slots=True)
class Load:
    """One running batch: the step it takes next, and how many pool ranks hold its cache now."""

    phase: str
    batch: int
    seq_len: int
    holds: int = 0

    @property
    def env(self) -> dict[str, int]:
        """The inputs that guards compare."""
        return {
            "batch": self.batch, "seq_len": self.seq_len, "tokens": self.batch * self.seq_len
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Choice:
    """The variant for a step and its pool ranks; `guarded` if it is the one the guards ask for."""

    variant: int
    size: int
    guarded: bool = True


class Guards:
    """What the variants of an artifact say about its one pool.

    `base` are the ranks that are always there, `pool` the others in the order in which they are
    taken. Raises ArtifactError for an artifact with no pool, or with several.
    """

    def __init__(self, artifact: Artifact) -> None:
        pools = artifact.manifest.get("pools", {})
        if len(pools) != 1:
            names = ", ".join(pools) or "none"
            raise ArtifactError(f"an elastic run needs a plan with one pool, this has {names}")
        self.name, found = next(iter(pools.items()))
        self.linger = float(found["linger"])
        pooled = set(found["grids"].values())
        fixed = {r for name, g in artifact.grids.items() if name not in pooled for r in g.ranks}
        self.pool = tuple(rank for rank in found["ranks"] if rank not in fixed)
        self.base = tuple(rank for rank in range(artifact.world) if rank not in self.pool)
        place = {rank: index + 1 for index, rank in enumerate(self.pool)}
        self.sizes = {
            int(variant): max(place.get(rank, 0) for rank in artifact.grids[grid].ranks)
            for variant, grid in found["grids"].items()
        }
        self.rows = [
            row for row in artifact.manifest["programs"] if row["phase"] in ("prefill", "decode")
        ]

    def choose(self, load: Load, available: int | None = None) -> Choice | None:
        """The variant for a step; if too few ranks are `available`, the largest that fits.

        None if the plan's ranges do not admit the step, or no variant can do with so few.
        """
        asked = next((row for row in self._of(load) if _holds(row, load.env)), None)
        if asked is None:
            return None
        size = self.size_of(asked["variant"])
        if available is None or size <= available:
            return Choice(asked["variant"], size)
        fitting = [
            Choice(row["variant"], self.size_of(row["variant"]), guarded=False)
            for row in self._of(load)
            if self.size_of(row["variant"]) <= available and _holds(row, load.env, LENGTHS)
        ]
        return max(fitting, key=lambda choice: (choice.size, choice.variant), default=None)

    def size_of(self, variant: int) -> int:
        """How many pool ranks a variant uses."""
        return self.sizes.get(variant, 0)

    def most(self, batch: int, first: int, last: int) -> int:
        """The largest pool that a batch needs as it grows from `first` to `last` positions."""
        spans = {
            "batch": (batch, batch), "seq_len": (first, last),
            "tokens": (batch * first, batch * last),
        }  # fmt: skip
        return max((self.size_of(r["variant"]) for r in self.rows if _meets(r, spans)), default=0)

    def _of(self, load: Load) -> list[Mapping[str, Any]]:
        return [row for row in self.rows if row["phase"] == load.phase]


class PoolManager:
    """Decides how many devices to hold: grows at once, gives back what was idle for `linger` s."""

    def __init__(self, guards: Guards, clock: Callable[[], float] = time.monotonic) -> None:
        self._guards = guards
        self._clock = clock
        self._needed: list[float] = []  # when each held device was last needed

    @property
    def size(self) -> int:
        """How many devices it was last decided to hold."""
        return len(self._needed)

    def need(self, loads: Iterable[Load], available: int | None = None) -> int:
        """How many devices these batches need together: the guards' sizes, and where caches lie."""
        needed = 0
        for load in loads:
            choice = self._guards.choose(load, available)
            needed = max(needed, load.holds, choice.size if choice else 0)
        return needed

    def decide(
        self, loads: Iterable[Load], available: int | None = None, *, hurry: bool = False
    ) -> int:
        """How many devices to hold now; `hurry` gives back at once, for others to have them."""
        now, needed = self._clock(), self.need(loads, available)
        self._needed[:needed] = [now] * needed
        while len(self._needed) > needed and (
            hurry or now - self._needed[-1] >= self._guards.linger
        ):
            self._needed.pop()
        return len(self._needed)

    def limit(self, size: int) -> None:
        """Forget devices beyond `size`: they are lost, or were never granted."""
        del self._needed[size:]


def _holds(row: Mapping[str, Any], env: Mapping[str, int], free: tuple[str, ...] = ()) -> bool:
    """Whether the inputs lie within a row's bounds, but for the `free` ones."""
    bounds = {name: box for name, box in row["bounds"].items() if name not in free}
    return all(lo <= env[name] <= hi for name, (lo, hi) in bounds.items() if name in env)


def _meets(row: Mapping[str, Any], spans: Mapping[str, tuple[int, int]]) -> bool:
    """Whether a row's bounds and the spans have inputs in common."""
    pairs = [(box, spans[name]) for name, box in row["bounds"].items() if name in spans]
    return all(lo <= high and low <= hi for (lo, hi), (low, high) in pairs)
