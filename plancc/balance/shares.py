"""Uneven shares of tokens: fast attention ranks take more, so that all finish together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction


def token_shares(times: Sequence[float], tokens: int) -> tuple[int, ...]:
    """Return how many of `tokens` each rank takes: proportional to its speed, exactly all of them.

    times are seconds per token of each rank. What rounding down leaves goes to the largest
    remainders, of equal ones to the first rank. Raises ValueError for no ranks, negative tokens
    or a time that is not positive and finite.
    """
    if not times or tokens < 0:
        raise ValueError(f"{tokens} tokens for {len(times)} ranks")
    for rank, time in enumerate(times):
        if not (math.isfinite(time) and time > 0):
            raise ValueError(f"rank {rank} takes {time} seconds per token")
    speeds = [1 / Fraction(time) for time in times]  # exact: every rank computes the same
    whole = sum(speeds)
    wanted = [speed * tokens / whole for speed in speeds]
    shares = [int(share) for share in wanted]
    by_rest = sorted(range(len(times)), key=lambda rank: (shares[rank] - wanted[rank], rank))
    for rank in by_rest[: tokens - sum(shares)]:
        shares[rank] += 1
    return tuple(shares)
