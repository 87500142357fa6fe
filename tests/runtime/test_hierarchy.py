"""Sums node by node: the same on all ranks, equal to the flat sum, and little between the nodes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plancc.runtime import hierarchy
from plancc.runtime.local import run_local

GROUPS = [
    (8, 4),  # MA separation's twelve attention ranks on nodes of eight
    (2, 2, 2),
    (3, 1),
    (1, 4, 2),
    (5, 3, 4),
]


def summed(houses: tuple[int, ...], size: int, dtype: torch.dtype = torch.float64):
    """What every rank gets, what it should get, and the ranks' counters."""
    nodes = [n for n, count in enumerate(houses) for _ in range(count)]
    group = tuple(range(len(nodes)))
    given = [torch.randn(size, generator=torch.Generator().manual_seed(r)).to(dtype) for r in group]

    def on_rank(transport):
        out = hierarchy.all_reduce(transport, given[transport.rank], group, nodes, 1)
        return out, dict(transport.counters.bytes)

    found = run_local(len(group), on_rank)
    return [out for out, _ in found], sum(given), [counted for _, counted in found]


@pytest.mark.parametrize("houses", GROUPS)
@pytest.mark.parametrize("size", [0, 1, 7, 1000])
def test_equal_to_the_flat_sum(houses: tuple[int, ...], size: int) -> None:
    found, wanted, _ = summed(houses, size)
    assert all(torch.equal(out, found[0]) for out in found)
    assert torch.allclose(found[0], wanted, rtol=1e-13, atol=1e-13)


@given(st.lists(st.integers(1, 5), min_size=2, max_size=4), st.integers(0, 50))
@settings(max_examples=30, deadline=None)
def test_any_nodes(houses: list[int], size: int) -> None:
    found, wanted, _ = summed(tuple(houses), size)
    assert all(torch.equal(out, found[0]) for out in found)
    assert torch.allclose(found[0], wanted, rtol=1e-13, atol=1e-13)


def test_between_nodes_travels_each_nodes_sum_once() -> None:
    """8 + 4 ranks: both nodes give the other their sum once, in shares, not once a rank."""
    size = 960
    _, _, counted = summed((8, 4), size)
    assert sum(c.get("exchange", 0) for c in counted) == 2 * size * 8


def test_where_it_pays() -> None:
    nodes = [0] * 8 + [1] * 4
    big = hierarchy.SMALL
    assert hierarchy.pays(tuple(range(12)), nodes, big)
    assert not hierarchy.pays(tuple(range(8)), nodes, big)
    assert not hierarchy.pays((0, 8), nodes, big)
    assert not hierarchy.pays(tuple(range(12)), nodes, big - 1)
    assert not hierarchy.pays(tuple(range(12)), [], big)
