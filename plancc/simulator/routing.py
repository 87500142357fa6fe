"""How many rows routed experts get: what a simulation assumes of a router, whose choices no layout tells.

A token goes once to each rank that has one of its `k` experts. Seats (experts that a table places, with
copies) are told by shares: what part of an expert's choices comes to a rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import comb
from typing import ClassVar, Protocol

from plancc.simulator.errors import SimulateError

Shares = tuple[tuple[int, float], ...]
"""The experts of a rank, ascending: (expert, the share of its choices that comes to this rank)."""


@dataclass(frozen=True, slots=True)
class Visit:
    """The tokens of rank `source` choose `k` of `experts` each, some of which rank `target` has.

    `path` is the module of the expert layer. `held` is what the target has, `first` what the first rank
    with any experts has, and `is_first` says that the target has the same place. Where experts are not
    routed, but cut over ranks that all have the tokens, source and target are the same rank.
    """

    path: str
    source: int
    target: int
    tokens: int
    k: int
    experts: int
    held: Shares
    is_first: bool
    first: Shares

    def even(self, held: Shares) -> float:
        """The choices of one token at a rank that has `held`, if all experts are alike."""
        return self.k * sum(share for _, share in held) / self.experts


class Routing(Protocol):
    """What a router does; `by_path` says whether layers differ."""

    by_path: ClassVar[bool]

    def rows(self, visit: Visit) -> float:
        """Tokens of the source that have at least one choice at the target: the rows that travel."""
        ...

    def picks(self, visit: Visit) -> float:
        """Choices of the source's tokens at the target: the rows of its grouped matrix products."""
        ...

    def used(self, visits: Sequence[Visit]) -> float:
        """How many of one target's experts get any row from all the sources that visit it."""
        ...


@dataclass(frozen=True, slots=True)
class Even:
    """Every token chooses k different experts, all sets of k alike: expected numbers."""

    by_path: ClassVar[bool] = False

    def rows(self, visit: Visit) -> float:
        """t (1 - C(E - e, k) / C(E, k)) for a rank that holds e of E experts."""
        return visit.tokens * reach(visit.experts, visit.k, visit.held)

    def picks(self, visit: Visit) -> float:
        """t k e / E."""
        return visit.tokens * visit.even(visit.held)

    def used(self, visits: Sequence[Visit]) -> float:
        """Each of the e experts is missed by all t tokens with probability (1 - share k / E) ^ t."""
        if not visits:
            return 0.0
        one, tokens = visits[0], sum(visit.tokens for visit in visits)
        return sum(1 - (1 - share * one.k / one.experts) ** tokens for _, share in one.held)


@dataclass(frozen=True, slots=True)
class Skewed:
    """The first shard of the experts is the busiest: it gets `factor` times the mean load.

    It gets `factor` times the rows and choices that an even router gives it, but no more than it can
    take (one row a token, min(k, e) choices a token); the others get theirs scaled down alike, so that
    all choices are made. Raises SimulateError for a factor below 1.
    """

    by_path: ClassVar[bool] = False
    factor: float

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise SimulateError(f"a skew of {self.factor}: a factor from 1")

    def rows(self, visit: Visit) -> float:
        """Those of `Even`, times the load of this target; a token sends one row at most."""
        return min(float(visit.tokens), EVEN.rows(visit) * load(visit, self.factor))

    def picks(self, visit: Visit) -> float:
        """Those of `Even`, times the load of this target."""
        return EVEN.picks(visit) * load(visit, self.factor)

    def used(self, visits: Sequence[Visit]) -> float:
        """As of `Even`, where the chance of each expert is multiplied by the load of its rank."""
        if not visits:
            return 0.0
        one, tokens = visits[0], sum(visit.tokens for visit in visits)
        chance = load(one, self.factor) * one.k / one.experts
        return sum(1 - max(0.0, 1 - share * chance) ** tokens for _, share in one.held)


def load(visit: Visit, factor: float) -> float:
    """The load of a target over that of an even router, where the first shard gets `factor` times its own."""
    even = visit.even(visit.first)
    if even in (0, visit.k):
        return 1.0
    busiest = min(factor, min(visit.k, len(visit.first)) / even)
    return busiest if visit.is_first else (visit.k - busiest * even) / (visit.k - even)


@dataclass(frozen=True, slots=True)
class Observed:
    """What a real router chose: numbers by (path, source, target), experts in use by (path, target).

    SimulateError for a visit of which nothing is known.
    """

    by_path: ClassVar[bool] = True
    given: Mapping[tuple[str, int, int], int]
    chosen: Mapping[tuple[str, int, int], int] = field(default_factory=dict)
    active: Mapping[tuple[str, int], int] = field(default_factory=dict)

    def rows(self, visit: Visit) -> float:
        """The rows that went from source to target."""
        return self._look(self.given, visit, "rows")

    def picks(self, visit: Visit) -> float:
        """The choices that were made there."""
        return self._look(self.chosen, visit, "choices")

    def used(self, visits: Sequence[Visit]) -> float:
        """The experts that got a row."""
        if not visits:
            return 0.0
        one = visits[0]
        found = self.active.get((one.path, one.target))
        if found is None:
            raise SimulateError(
                f"no experts in use were observed on rank {one.target} for `{one.path}`"
            )
        return float(found)

    def _look(self, table: Mapping[tuple[str, int, int], int], visit: Visit, what: str) -> float:
        found = table.get((visit.path, visit.source, visit.target))
        if found is None:
            where = f"from rank {visit.source} to rank {visit.target} for `{visit.path}`"
            raise SimulateError(f"no {what} were observed {where}")
        return float(found)


EVEN = Even()


@lru_cache(maxsize=4096)
def reach(experts: int, k: int, held: Shares) -> float:
    """The probability that k different experts out of `experts`, all sets alike, reach a rank.

    Without copies 1 - C(E - e, k) / C(E, k). With copies an expert j is sent elsewhere with probability
    q_j = 1 - share_j, and the sum over all sets of the product of the q_j is the k-th elementary
    symmetric polynomial of all q: 1 - e_k(q) / C(E, k).
    """
    if all(share == 1 for _, share in held):
        return 1 - comb(experts - len(held), k) / comb(experts, k)
    sums = [float(comb(experts - len(held), i)) for i in range(k + 1)]
    for _, share in held:
        for i in range(k, 0, -1):
            sums[i] += sums[i - 1] * (1 - share)
    return 1 - sums[k] / comb(experts, k)


def observed(
    choices: Mapping[str, Mapping[int, Sequence[Sequence[int]]]],
    holders: Mapping[int, Sequence[int]],
) -> Observed:
    """`Observed` of router outputs: path -> source rank -> the experts of each token [t][k].

    `holders` has the experts of each target rank, none of them twice.
    """
    given: dict[tuple[str, int, int], int] = {}
    chosen: dict[tuple[str, int, int], int] = {}
    active: dict[tuple[str, int], int] = {}
    for path, sources in choices.items():
        for target, held in holders.items():
            mine = set(held)
            seen: set[int] = set()
            for source, tokens in sources.items():
                found = [mine.intersection(token) for token in tokens]
                given[path, source, target] = sum(1 for one in found if one)
                chosen[path, source, target] = sum(map(len, found))
                seen.update(*found)
            active[path, target] = len(seen)
    return Observed(given, chosen, active)
