"""Factors: unify, cut, merge and regroup keep sizes and earlier facts, and know conflicts."""

from __future__ import annotations

from itertools import pairwise
from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plancc.ir.factors import (
    Conflict,
    Dim,
    Factor,
    atoms,
    divide,
    fresh,
    leaves,
    partition,
    regroup,
    size_of,
    sum_of,
    unify,
)
from plancc.ir.graph import BATCH, PAST, TOKENS


def text(dim: Dim) -> str:
    found = []
    for atom in atoms(dim):
        parts = [] if atom.kids is None else [text(part) for part in atom.kids]
        found.append(f"({' + '.join(parts)})" if parts else str(atom.size))
    return " ".join(found)


def product(*sizes: int) -> Dim:
    return [factor for size in sizes for factor in fresh(size)]


def test_unify_refines_both_sides() -> None:
    a, b = product(12, 5), product(3, 20)
    unify(a, b)
    assert text(a) == text(b) == "3 4 5"
    assert [x.root() for x in leaves(a)] == [x.root() for x in leaves(b)]


def test_unify_of_a_product_reaches_every_holder_of_the_leaf() -> None:
    leaf = fresh(48)
    elsewhere = [*leaf, *fresh(7)]
    unify(leaf, product(6, 8))
    assert text(elsewhere) == "6 8 7"


def test_sizes_without_common_boundary_conflict() -> None:
    with pytest.raises(Conflict):
        unify(product(6, 4), product(4, 6))


def test_a_concatenation_has_no_outer_factor() -> None:
    total = fresh(24)
    partition(total, [8, 16])
    with pytest.raises(Conflict):
        unify(total, product(3, 8))


def test_a_dim_is_no_part_of_itself() -> None:
    leaf, empty = fresh(8), fresh(0)
    total = Factor(8)
    total.is_sum, total.kids = True, [leaf, empty]
    with pytest.raises(Conflict):
        unify(leaf, [total])


def test_cut_inside_a_product_cuts_the_outer_factor() -> None:
    dim = product(6, 8)
    low, high = partition(dim, [16, 32])
    assert (text(low), text(high), text(dim)) == ("2 8", "4 8", "(2 + 4) 8")
    with pytest.raises(Conflict):
        partition(dim, [4, 44])


def test_cuts_of_one_dim_refine_each_other() -> None:
    dim = fresh(10)
    first = partition(dim, [4, 6])
    second = partition(dim, [4, 3, 3])
    assert text(dim) == "(4 + 3 + 3)" and text(first[1]) == "(3 + 3)"
    assert first[0][0].root() is second[0][0].root()


def test_merging_concatenations_finds_common_cuts() -> None:
    a, b = fresh(12), fresh(12)
    partition(a, [4, 8])
    partition(b, [6, 6])
    unify(a, b)
    assert text(a) == text(b) == "(4 + 2 + 6)"


def test_empty_and_single_pieces() -> None:
    dim = fresh(5)
    none, one, rest = partition(dim, [0, 1, 4])
    assert size_of(none) == 0 and one == [] and text(rest) == "4"


def test_inputs_are_not_cut() -> None:
    with pytest.raises(Conflict):
        partition([Factor(8, solid=True)], [4, 4])
    with pytest.raises(Conflict):
        partition(fresh(TOKENS), [1, TOKENS - 1])
    with pytest.raises(Conflict):
        partition(fresh(64), [TOKENS, 64 - TOKENS])


def test_symbolic_products() -> None:
    dims, front, _ = regroup([fresh(BATCH), fresh(TOKENS), product(6, 8)], [BATCH * TOKENS, 48])
    assert front == 2 and [size_of(dim) for dim in dims] == [BATCH * TOKENS, 48]
    back, front, _ = regroup(dims, [BATCH, TOKENS, 6, 8])
    assert front == 4 and text(back[1]) == "T"


def test_symbolic_concatenation() -> None:
    total = sum_of([fresh(PAST), fresh(TOKENS)])
    assert size_of(total) == PAST + TOKENS
    assert [size_of(p) for p in partition(total, [PAST, TOKENS])] == [PAST, TOKENS]


def test_divide() -> None:
    assert divide(BATCH * TOKENS, BATCH) == TOKENS
    assert divide(8, 3) is None and divide(8, 0) is None and divide(TOKENS, 2) is None
    assert divide(3 * TOKENS, TOKENS) == 3


def test_a_view_across_boundaries_keeps_what_fits_from_both_ends() -> None:
    dims, front, back = regroup([fresh(2), fresh(6), fresh(4), fresh(5)], [2, 4, 6, 5])
    assert (front, back) == (1, 1) and [text(dim) for dim in dims] == ["2", "4", "6", "5"]


SIZES = st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=5)


@settings(max_examples=300, deadline=None)
@given(SIZES, st.data())
def test_views_of_views(sizes: list[int], data: st.DataObject) -> None:
    """Any chain of views keeps order and product of factors; going back gives the same classes."""
    start = [fresh(size) for size in sizes]
    dims = start
    for _ in range(3):
        cuts = sorted(data.draw(st.sets(st.sampled_from(divisor_chain(dims)), max_size=3)))
        shape = [b // a for a, b in zip([1, *cuts], [*cuts, prod(sizes)], strict=True)]
        dims, front, _ = regroup(dims, shape)
        if front < len(shape):
            return
        assert [size_of(dim) for dim in dims] == shape
    again, front, _ = regroup(dims, sizes)
    assert front == len(sizes)
    roots = [x.root() for dim in start for x in leaves(dim)]
    assert [x.root() for dim in again for x in leaves(dim)] == roots


def divisor_chain(dims: list[Dim]) -> list[int]:
    """Prefix products of the factors: boundaries where a view may cut."""
    found, total = [1], 1
    for dim in dims:
        for atom in atoms(dim):
            total *= atom.size
            found.append(total)
    return found


@settings(max_examples=300, deadline=None)
@given(st.integers(2, 24), st.lists(st.lists(st.integers(0, 24), max_size=3), max_size=4))
def test_any_cuts_keep_the_size(size: int, rounds: list[list[int]]) -> None:
    dim = fresh(size)
    pieces: list[tuple[int, Dim]] = []
    for points in rounds:
        edges = [0, *sorted(p for p in points if p <= size), size]
        wanted = [b - a for a, b in pairwise(edges)]
        pieces += zip(wanted, partition(dim, wanted), strict=True)
        assert size_of(dim) == size == sum(leaf_sizes(dim))
    assert all(size_of(piece) == wanted for wanted, piece in pieces)


def leaf_sizes(dim: Dim) -> list[int]:
    """Sizes of the parts of a concatenation, size-1 parts included."""
    (atom,) = atoms(dim)
    return [atom.size] if atom.kids is None else [size_of(part) for part in atom.kids]
