"""Moves between placements: they give the new one, and no smaller number would."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plancc.balance import Placement, moves, place_experts, settle
from plancc.balance.moves import assign
from plancc.balance.placement import placed

RANDOM = settings(max_examples=200, deadline=None, derandomize=True)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Placement, Placement]:
    """Two placements of the same experts under loads that differ, a little or wholly."""
    nodes, per_node = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    ranks, groups = nodes * per_node, nodes * draw(st.integers(1, 2))
    experts = groups * draw(st.integers(1, 3))
    slots = -(-experts // ranks) * ranks + ranks * draw(st.integers(0, 2))
    source = random.Random(draw(st.integers(0, 10_000)))
    spread = draw(st.sampled_from([0.0, 0.1, 5.0]))
    first = [[source.uniform(0, 5) for _ in range(experts)] for _ in range(2)]
    second = [[abs(value + source.uniform(-1, 1) * spread) for value in row] for row in first]
    old, new = (place_experts(load, slots, groups, nodes, ranks) for load in (first, second))
    return old, new


def travelling(old: Placement, new: Placement) -> int:
    return sum(not move.local for move in moves(old, new))


@RANDOM
@given(pair=pairs())
def test_moves_make_the_new_placement_of_the_old(pair: tuple[Placement, Placement]) -> None:
    old, new = pair
    rows = [list(row) for row in old.physical]
    arrived = set()
    for move in moves(old, new):
        assert new.rank_of(move.slot) == move.target
        held = move.expert in old.hosted(move.layer, move.source)
        assert held or (move.local and (move.layer, move.target, move.expert) in arrived)
        if not move.local:
            key = (move.layer, move.target, move.expert)
            assert key not in arrived and move.expert not in old.hosted(move.layer, move.target)
            arrived.add(key)
        rows[move.layer][move.slot] = move.expert
    assert tuple(map(tuple, rows)) == new.physical
    needed = {
        (layer, rank, expert)
        for layer in range(len(new.physical))
        for rank in range(new.ranks)
        for expert in set(new.hosted(layer, rank)) - set(old.hosted(layer, rank))
    }
    assert arrived == needed


@RANDOM
@given(pair=pairs())
def test_settled_is_the_same_placement_with_the_fewest_moves(
    pair: tuple[Placement, Placement],
) -> None:
    old, new = pair
    best = settle(old, new)
    size = new.ranks // new.nodes
    for layer in range(len(new.physical)):
        before = [sorted(new.hosted(layer, rank)) for rank in range(new.ranks)]
        after = [sorted(best.hosted(layer, rank)) for rank in range(new.ranks)]
        assert sorted(before) == sorted(after)
        whole = [
            sorted(map(tuple, x[n * size : (n + 1) * size])) for x in (before, after)
            for n in range(new.nodes)
        ]  # fmt: skip
        assert sorted(whole[: new.nodes]) == sorted(whole[new.nodes :])
        least = min(
            sum(
                len(set(new.hosted(layer, seat)) - set(old.hosted(layer, rank)))
                for rank, seat in enumerate(seats)
            )
            for seats in orders(new)
        )
        assert least == sum(not m.local for m in moves(old, best) if m.layer == layer)
        kept = set(range(len(old.physical[layer]))) - {
            m.slot for m in moves(old, best) if m.layer == layer
        }
        assert all(old.physical[layer][slot] == best.physical[layer][slot] for slot in kept)
    assert [sorted(row) for row in best.loads] == [sorted(row) for row in new.loads]
    assert travelling(old, best) <= travelling(old, new)


def orders(placement: Placement) -> list[list[int]]:
    """Every order of nodes, and of the ranks in each."""
    size = placement.ranks // placement.nodes
    return [
        [node * size + rank for node, inside in zip(outer, inner, strict=True) for rank in inside]
        for outer in itertools.permutations(range(placement.nodes))
        for inner in itertools.product(
            itertools.permutations(range(size)), repeat=placement.nodes
        )
    ]  # fmt: skip


@RANDOM
@given(pair=pairs())
def test_no_change_no_moves(pair: tuple[Placement, Placement]) -> None:
    old, _ = pair
    assert moves(old, old) == ()
    assert settle(old, old) == old


def test_a_swap_of_two_ranks_moves_nothing_once_settled() -> None:
    load = [[1.0, 2.0, 3.0, 4.0]]
    old = placed([[0, 1, 2, 3]], load, 2, 1)
    new = placed([[3, 2, 1, 0]], load, 2, 1)
    assert [(m.expert, m.source, m.target, m.slot) for m in moves(old, new)] == [
        (3, 1, 0, 0), (2, 1, 0, 1), (1, 0, 1, 2), (0, 0, 1, 3),
    ]  # fmt: skip
    assert settle(old, new) == old


def test_copies_come_from_the_same_node_and_from_who_sends_least() -> None:
    load = [[1.0, 1.0, 1.0, 1.0]]
    old = placed([[0, 1, 0, 1, 2, 3, 0, 3]], load, 4, 2)
    new = placed([[0, 1, 0, 1, 0, 3, 2, 3]], load, 4, 2)
    assert [(m.expert, m.source, m.target) for m in moves(old, new)] == [(0, 3, 2), (2, 2, 3)]
    new = placed([[2, 3, 2, 3, 0, 1, 0, 1]], load, 4, 2)
    sources = [m.source for m in moves(old, new) if m.expert == 1]
    assert sorted(sources) == [0, 1]


def test_a_second_copy_on_a_rank_is_made_there() -> None:
    load = [[1.0, 1.0]]
    old = placed([[0, 1, 0, 0]], load, 2, 1)
    new = placed([[0, 1, 1, 1]], load, 2, 1)
    found = moves(old, new)
    assert [(m.expert, m.source, m.target, m.slot, m.local) for m in found] == [
        (1, 0, 1, 2, False), (1, 1, 1, 3, True),
    ]  # fmt: skip


def test_placements_of_other_sizes_are_refused() -> None:
    old = placed([[0, 1]], [[1.0, 1.0]], 2, 1)
    new = placed([[0, 1, 1, 0]], [[1.0, 1.0]], 2, 1)
    for call in (moves, settle):
        with pytest.raises(ValueError, match="placements of other"):
            call(old, new)


@RANDOM
@given(size=st.integers(1, 5), seed=st.integers(0, 10_000), most=st.sampled_from([1, 3, 50]))
def test_assignments_are_the_best_there_are(size: int, seed: int, most: int) -> None:
    source = random.Random(seed)
    costs = [[source.randint(0, most) for _ in range(size)] for _ in range(size)]
    found = assign(costs)
    assert sorted(found) == list(range(size))
    least = min(
        sum(costs[row][column] for row, column in enumerate(order))
        for order in itertools.permutations(range(size))
    )
    assert sum(costs[row][column] for row, column in enumerate(found)) == least
