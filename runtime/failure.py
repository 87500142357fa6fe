"""The third kind of error: the run went wrong.

A `RankFailure` names the rank, the instruction at which it stood, and what that instruction is
in the plan's own words, as far as the caller can describe it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

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


class Mismatch(RankFailure):
    """Two ranks meet with different intentions; keeps the parts so that they can be retold."""

    def __init__(
        self,
        describe: Describe,
        rank: int,
        instruction: int | None,
        mine: str,
        other: int,
        other_instruction: int | None,
        theirs: str,
    ) -> None:
        self.parts = (rank, instruction, mine, other, other_instruction, theirs)
        there = standing(describe, other, other_instruction)
        super().__init__(
            rank,
            instruction,
            look_up(describe, rank, instruction),
            f"does not match rank {other}",
            f"rank {rank} does {mine}; rank {other}, {there}, does {theirs}",
        )


class LostPeer(RankFailure):
    """A backend gave up inside an operation: most likely because of what befell another rank."""


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


def in_vain(
    describe: Describe,
    positions: Sequence[int | None],
    waits: Mapping[int, Collection[int]],
    ended: Sequence[bool],
    prefix: str = "",
) -> RankFailure:
    """Name the cycle of ranks that wait for each other, or one that waits for a finished one."""
    cycle = shortest_cycle(waits)
    if cycle:
        pairs = list(zip(cycle, cycle[1:] + cycle[:1], strict=True))
    else:
        pairs = [next((r, s) for r in sorted(waits) for s in waits[r] if ended[s])]
    parts = []
    for rank, target in pairs:
        where = standing(describe, rank, positions[rank])
        end = ", which has finished" if ended[target] else ""
        parts.append(f"rank {rank} waits {where} for rank {target}{end}")
    first = pairs[0][0]
    reason = "is in a deadlock" if cycle else "waits in vain"
    return fail(describe, first, positions[first], prefix + reason, "; ".join(parts))


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
