"""Which rectangles of a block of attention are visible: the geometry, in integers alone.

Queries and keys stand at absolute positions, given as ranges in the order of their rows. A causal
block becomes rectangles without a mask and causal squares, never a causal call that is not square;
a window becomes chunks of rows with just the keys they reach. What is hidden is not computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

WINDOW_ROWS = 256  # fewest rows of a chunk under a window


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of q against rows of k: all of it visible, a causal square, or to be masked.

    `ahead` is the position of the first query minus that of the first key.
    """

    rows: range
    keys: range
    form: Literal["full", "square", "masked"]
    ahead: int = 0


def pieces(
    q_ranges: Sequence[range], k_ranges: Sequence[range], causal: bool, window: int
) -> tuple[Piece, ...]:
    """Return disjoint pieces that hold every visible pair (query, key) of the two sets of rows."""
    found: list[Piece] = []
    row = 0
    for queries in q_ranges:
        column = 0
        for keys in k_ranges:
            for piece_q, piece_k, form in _visible(queries, keys, causal, window):
                found.append(
                    Piece(
                        _shift(piece_q, row - queries.start),
                        _shift(piece_k, column - keys.start),
                        form,
                        piece_q.start - piece_k.start,
                    )
                )
            column += len(keys)
        row += len(queries)
    return tuple(found)


def _visible(queries: range, keys: range, causal: bool, window: int) -> Iterator[tuple]:
    """Give (queries, keys, form), in absolute positions."""
    if not queries or not keys:
        return
    reach = queries.stop - 1 - keys.start
    if not causal:
        reach = max(reach, keys.stop - 1 - queries.start)
    if 0 < window <= reach:
        yield from _windowed(queries, keys, causal, window)
    elif causal:
        yield from _causal(queries, keys)
    else:
        yield queries, keys, "full"


def _causal(queries: range, keys: range) -> Iterator[tuple]:
    if len(queries) == 1 or queries.start >= keys.stop - 1:
        seen = range(keys.start, min(keys.stop, queries.stop))
        if seen:
            yield queries, seen, "full"
        return
    first, stop = max(queries.start, keys.start), min(queries.stop, keys.stop)
    if first >= stop:
        return
    if keys.start < first:
        yield queries, range(keys.start, first), "full"
    yield range(first, stop), range(first, stop), "square"
    if stop < queries.stop:
        yield range(stop, queries.stop), range(first, stop), "full"


def _windowed(queries: range, keys: range, causal: bool, window: int) -> Iterator[tuple]:
    step = max(window, WINDOW_ROWS)
    for start in range(queries.start, queries.stop, step):
        chunk = range(start, min(start + step, queries.stop))
        after = chunk.stop + (0 if causal else window - 1)
        seen = range(max(keys.start, start - window + 1), min(keys.stop, after))
        if not seen:
            continue
        last = start if causal else start + window - 1
        whole = seen.stop - 1 <= last and seen.start > chunk.stop - 1 - window
        yield chunk, seen, "full" if whole else "masked"


def _shift(span: range, by: int) -> range:
    return range(span.start + by, span.stop + by)
