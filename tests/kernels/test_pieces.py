"""The geometry of blocks: pieces hold each visible pair once, and what is hidden costs nothing."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plancc.ops.blocks import block_ranges, zigzag_ranges
from plancc.ops.kernels import pieces as geometry
from plancc.ops.kernels.pieces import pieces


def seen(query: int, key: int, causal: bool, window: int) -> bool:
    return (key <= query or not causal) and (not window or abs(query - key) < window)


def spans() -> st.SearchStrategy[list[range]]:
    span = st.tuples(st.integers(0, 20), st.integers(0, 9)).map(lambda s: range(s[0], sum(s)))
    return st.lists(span, min_size=1, max_size=3)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(spans(), spans(), st.booleans(), st.integers(0, 12), st.integers(1, 6))
def test_pieces_hold_each_visible_pair_once(
    q_spans: list[range], k_spans: list[range], causal: bool, window: int, chunk: int
) -> None:
    queries, keys = [i for s in q_spans for i in s], [j for s in k_spans for j in s]
    found: set[tuple[int, int]] = set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geometry, "WINDOW_ROWS", chunk)
        cut = pieces(q_spans, k_spans, causal, window)
    for piece in cut:
        assert piece.rows and piece.keys
        assert piece.form != "square" or len(piece.rows) == len(piece.keys)
        assert piece.ahead == queries[piece.rows.start] - keys[piece.keys.start]
        for i, row in enumerate(piece.rows):
            for j, column in enumerate(piece.keys):
                visible = seen(queries[row], keys[column], causal, window)
                if piece.form == "full":
                    assert visible
                elif piece.form == "square":
                    assert visible == (j <= i)
                if visible:
                    assert (row, column) not in found
                    found.add((row, column))
    assert found == {
        (row, column)
        for row, query in enumerate(queries)
        for column, key in enumerate(keys)
        if seen(query, key, causal, window)
    }


def test_future_blocks_cost_nothing_and_past_blocks_are_full() -> None:
    assert pieces([range(0, 4)], [range(4, 8)], True, 0) == ()
    (past,) = pieces([range(8, 12)], [range(0, 8)], True, 0)
    assert past.form == "full" and len(past.keys) == 8
    (diagonal,) = pieces([range(4, 8)], [range(4, 8)], True, 0)
    assert diagonal.form == "square"
    (decode,) = pieces([range(7, 8)], [range(4, 12)], True, 0)
    assert decode.form == "full" and decode.keys == range(0, 4)


def test_a_window_reads_only_the_keys_in_reach() -> None:
    cut = pieces([range(0, 8192)], [range(0, 8192)], True, 128)
    work = sum(len(piece.rows) * len(piece.keys) for piece in cut)
    assert work < 8192 * (geometry.WINDOW_ROWS + 128)


@pytest.mark.parametrize("layout", [block_ranges, zigzag_ranges])
@pytest.mark.parametrize("n", [0, 1, 3, 7, 8, 64, 101])
@pytest.mark.parametrize("p", [1, 2, 5, 8])
def test_layouts_hold_each_position_once(layout, n: int, p: int) -> None:
    positions = [i for rank in range(p) for span in layout(n, p, rank) for i in span]
    assert sorted(positions) == list(range(n))
    if layout is block_ranges:
        assert positions == list(range(n))
        assert all(len(layout(n, p, rank)[0]) <= -(-n // p) for rank in range(p))


def test_zigzag_makes_the_causal_triangle_even() -> None:
    def work(layout, rank: int) -> int:
        return sum(i + 1 for span in layout(1024, 8, rank) for i in span)

    assert len({work(zigzag_ranges, rank) for rank in range(8)}) == 1
    assert work(block_ranges, 7) > 10 * work(block_ranges, 0)
