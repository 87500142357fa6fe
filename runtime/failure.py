"""The third kind of error: the run went wrong.

A `RankFailure` names the rank, the instruction at which it stood, and what that instruction is
in the plan's own words, as far as the caller can describe it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

Describe = Callable[[int, int], "str | None"] | Mapping[tuple[int, int], str] | None
"""What instruction `i` of rank `r` is: a callable of (r, i), or a table keyed by (r, i)."""


class RankFailure(Exception):
    """A run failed: which rank, at which instruction, where in the plan, why.

    `span` describes the instruction ("all_reduce over tp, fa_pool.plan:36"); `reason` is the
    predicate of the sentence ("waited 30 s"); `detail` is further text, possibly empty.
    """

    def __init__(
        self, rank: int, instruction: int | None, span: str | None, reason: str, detail: str = ""
    ) -> None:
        self.rank = rank
        self.instruction = instruction
        self.span = span
        self.reason = reason
        self.detail = detail
        super().__init__(rank, instruction, span, reason, detail)

    def __str__(self) -> str:
        text = f"rank {self.rank} {self.reason} {place(self.instruction, self.span)}"
        return f"{text}: {self.detail}" if self.detail else text


def place(instruction: int | None, span: str | None) -> str:
    """Say where a rank stands: "at instruction 36 (all_reduce over tp, fa_pool.plan:36)"."""
    if instruction is None:
        return "before its first instruction"
    return f"at instruction {instruction} ({span})" if span else f"at instruction {instruction}"


def look_up(describe: Describe, rank: int, instruction: int | None) -> str | None:
    """Return the caller's text for an instruction, or None where it has none."""
    if describe is None or instruction is None:
        return None
    if isinstance(describe, Mapping):
        return describe.get((rank, instruction))
    return describe(rank, instruction)


def fail(
    describe: Describe, rank: int, instruction: int | None, reason: str, detail: str = ""
) -> RankFailure:
    """Make the failure of a rank, with its instruction described."""
    return RankFailure(rank, instruction, look_up(describe, rank, instruction), reason, detail)


def standing(describe: Describe, rank: int, instruction: int | None) -> str:
    """Say where a rank stands, with its instruction described."""
    return place(instruction, look_up(describe, rank, instruction))


def shortest_cycle(waits: Mapping[int, Collection[int]]) -> tuple[int, ...]:
    """Return a shortest cycle of who waits for whom, or () if there is none.

    Of several equally short ones, the one that starts at the lowest rank.
    """
    best: tuple[int, ...] = ()
    for start in sorted(waits):
        found = _cycle_from(start, waits, len(best))
        if found:
            best = found
        if len(best) == 2:
            break
    return best


def _cycle_from(
    start: int, waits: Mapping[int, Collection[int]], limit: int
) -> tuple[int, ...] | None:
    """Search breadth first for a cycle through `start` shorter than `limit` (0: any length)."""
    came: dict[int, int] = {}
    level, depth = [start], 0
    while level:
        depth += 1
        if limit and depth >= limit:
            return None
        reached = []
        for node in level:
            for target in sorted(waits.get(node, ())):
                if target == start:
                    path = [node]
                    while path[-1] != start:
                        path.append(came[path[-1]])
                    return tuple(reversed(path))
                if target not in came:
                    came[target] = node
                    reached.append(target)
        level = reached
    return None
