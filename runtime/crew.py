"""The ranks that a server drives: the base, and as many pool ranks as it asks for.

`LocalCrew` has them as threads of this process, `plancc.runtime.elastic` as processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from plancc.runtime.artifact import Artifact
from plancc.runtime.loading import open_weights
from plancc.runtime.local import LocalTransport, run_local
from plancc.runtime.pools import Guards
from plancc.runtime.seat import Seat

Rows = Sequence[Sequence[int]]


class WorkersLost(Exception):
    """Pool ranks are gone, each with a reason; `midway` if a step was running.

    Steps of the other sequences, and sequences with no cache on the lost ranks, are not harmed.
    """

    def __init__(self, lost: Mapping[int, str], midway: bool) -> None:
        self.lost = dict(lost)
        self.midway = midway
        super().__init__("; ".join(f"rank {rank} {why}" for rank, why in self.lost.items()))


class Crew(Protocol):
    """The ranks of one artifact. Sequences are known by numbers that the server chooses."""

    def resize(self, size: int, sequences: Sequence[int]) -> None:
        """Have the base and the first `size` pool ranks take part; newcomers learn of `sequences`.

        Returns once all can take a step. Raises WorkersLost, RankFailure.
        """

    def step(self, number: int, phase: str, tokens: Rows, variant: int) -> list[int]:
        """One step of a sequence, on all ranks that take part. Raises WorkersLost, RankFailure."""

    def drop(self, number: int) -> None:
        """Forget a sequence."""

    def close(self) -> None:
        """End all ranks."""


class LocalCrew:
    """All ranks in this process."""

    def __init__(self, artifact: Artifact, guards: Guards, weights: Any = None) -> None:
        self._artifact = artifact
        self._guards = guards
        self._weights = weights if weights is not None else open_weights(artifact)
        self._seats: dict[int, Seat] = {}

    @property
    def members(self) -> tuple[int, ...]:
        """The ranks that take part."""
        return tuple(sorted(self._seats))

    def resize(self, size: int, sequences: Sequence[int]) -> None:
        """Have the base and the first `size` pool ranks take part."""
        wanted = (*self._guards.base, *self._guards.pool[:size])
        states = next((s.states(sequences) for s in self._seats.values()), {})
        seats = {}
        for rank in wanted:
            seats[rank] = self._seats.get(rank) or Seat(self._artifact, self._weights, rank)
            if rank not in self._seats:
                seats[rank].adopt(states)
        self._seats = seats

    def step(self, number: int, phase: str, tokens: Rows, variant: int) -> list[int]:
        """One step of a sequence, on all ranks that take part."""
        members = self.members

        def one(transport: LocalTransport) -> list[int]:
            if transport.rank not in self._seats:
                return []
            seat = self._seats[transport.rank]
            transport.members = members
            seat.join(transport)
            return seat.step(number, phase, tokens, variant)

        return run_local(self._artifact.world, one, describe=self._artifact.describe)[members[0]]

    def drop(self, number: int) -> None:
        """Forget a sequence."""
        for seat in self._seats.values():
            seat.drop(number)

    def close(self) -> None:
        """Forget all ranks."""
        self._seats = {}
