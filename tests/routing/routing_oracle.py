"""Routing in plain Python, one token after the other: what every kernel is measured against."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st


def rows_of(owners: Sequence[Sequence[int]], n: int) -> list[list[int]]:
    """The tokens that each of n ranks is sent, each once, ascending."""
    return [[t for t, row in enumerate(owners) if rank in row] for rank in range(n)]


def summed(
    rows: Sequence[int], values: Sequence[float], tokens: int, weights: Sequence[float] | None
) -> list[float]:
    """The sums by token of one column, in the order of the rows."""
    out = [0.0] * tokens
    for at, row in enumerate(rows):
        out[row] += values[at] * (1.0 if weights is None else weights[at])
    return out


@st.composite
def routings(draw: st.DrawFn) -> tuple[list[list[int]], int]:
    """Owners [t][k] (k 1..8) and n ranks (1..16): any, skewed, all to one rank, or to nobody."""
    n, k = draw(st.integers(1, 16)), draw(st.integers(1, 8))
    t = draw(st.integers(0, 12))
    kind = draw(st.sampled_from(["any", "any", "skewed", "one", "nobody", "repeated"]))
    rank = draw(st.integers(0, n - 1))
    choice = {
        "any": st.integers(-1, n - 1),
        "skewed": st.sampled_from([rank, rank, rank, n - 1, -1]),
        "one": st.just(rank),
        "nobody": st.just(-1),
        "repeated": st.integers(0, n - 1),
    }[kind]
    if kind == "repeated":
        return [[draw(choice)] * k for _ in range(t)], n
    return [draw(st.lists(choice, min_size=k, max_size=k)) for _ in range(t)], n
