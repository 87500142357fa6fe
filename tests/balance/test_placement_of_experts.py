"""Placement of experts: valid, no worse than the published greedy, and never worse for a copy."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plancc.balance import POLICIES, Placement, place_experts
from plancc.balance.placement import rank_loads

RANDOM = settings(max_examples=200, deadline=None, derandomize=True)

# The example of the README of EPLB (DeepSeek): two layers of 12 experts, 16 replicas, 4 groups,
# 2 nodes, 8 GPUs, with the placement printed there.
PUBLISHED_LOAD = [
    [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
]
PUBLISHED = [
    [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
]
PUBLISHED_MAXIMA = (156.0, 179.5)


def test_no_worse_than_the_published_greedy_on_its_example() -> None:
    published = [
        max(rank_loads(row, load, 8)) for row, load in zip(PUBLISHED, PUBLISHED_LOAD, strict=True)
    ]
    assert tuple(published) == PUBLISHED_MAXIMA
    grouped = place_experts(PUBLISHED_LOAD, 16, 4, 2, 8, "hierarchical")
    flat = place_experts(PUBLISHED_LOAD, 16, 4, 2, 8, "flat")
    assert [grouped.max_load(layer) for layer in (0, 1)] == [156.0, 179.5]
    assert [flat.max_load(layer) for layer in (0, 1)] == [138.5, 172.0]


def test_groups_stay_in_a_node() -> None:
    placement = place_experts(PUBLISHED_LOAD, 16, 4, 2, 8)
    for layer in (0, 1):
        for first in range(0, 12, 3):
            nodes = {
                placement.node_of(rank)
                for expert in range(first, first + 3)
                for rank in placement.hosts(layer, expert)
            }
            assert len(nodes) == 1


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[list[float]], dict[str, object]]:
    """Loads [layers][E] (even, skewed, with zeros or ties) and sizes that divide."""
    nodes, per_node = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    ranks = nodes * per_node
    groups = nodes * draw(st.integers(1, 3))
    experts = groups * draw(st.integers(1, 4))
    slots = -(-experts // ranks) * ranks + ranks * draw(st.integers(0, 3))
    policy = draw(st.sampled_from(POLICIES))
    kind = draw(st.sampled_from(["any", "ties", "skewed", "zero"]))
    source = random.Random(draw(st.integers(0, 10_000)))
    pick = {
        "any": lambda: source.uniform(0, 10),
        "ties": lambda: float(source.randint(0, 3)),
        "skewed": lambda: source.paretovariate(0.8),
        "zero": lambda: 0.0,
    }[kind]
    load = [[pick() for _ in range(experts)] for _ in range(draw(st.integers(1, 2)))]
    return load, {
        "slots": slots, "groups": groups, "nodes": nodes, "ranks": ranks, "policy": policy,
    }  # fmt: skip


def valid(placement: Placement, load: list[list[float]], slots: int) -> None:
    """Every expert is placed, slots are even, and loads add up to the whole."""
    experts = len(load[0])
    for layer, row in enumerate(placement.physical):
        assert len(row) == slots and placement.slots * placement.ranks == slots
        assert set(row) == set(range(experts))
        logical = placement.logical[layer]
        assert all(row[slot] == expert for expert in range(experts) for slot in logical[expert])
        assert sum(map(len, logical)) == slots
        assert sum(placement.loads[layer]) == pytest.approx(sum(load[layer]))
        assert placement.max_load(layer) >= sum(load[layer]) / placement.ranks - 1e-9
        assert 0 < placement.balance(layer) <= 1 + 1e-9
        for expert in range(experts):
            hosts = {placement.rank_of(slot) for slot in logical[expert]}
            assert placement.hosts(layer, expert) == tuple(sorted(hosts))


@RANDOM
@given(case=cases())
def test_every_placement_is_valid_and_the_same_again(
    case: tuple[list[list[float]], dict[str, object]],
) -> None:
    load, sizes = case
    placement = place_experts(load, **sizes)
    valid(placement, load, sizes["slots"])
    assert placement == place_experts(load, **sizes)
    assert placement == placement.reload(load)


@RANDOM
@given(case=cases())
def test_spare_copies_never_make_the_slowest_rank_slower(
    case: tuple[list[list[float]], dict[str, object]],
) -> None:
    load, sizes = case
    experts, ranks = len(load[0]), sizes["ranks"]
    if experts % ranks:
        return
    bare = place_experts(load, **sizes | {"slots": experts})
    spare = place_experts(load, **sizes)
    for layer in range(len(load)):
        assert spare.max_load(layer) <= bare.max_load(layer) * (1 + 1e-12)


@RANDOM
@given(case=cases(), seed=st.integers(0, 1000))
def test_the_numbering_of_experts_decides_nothing(
    case: tuple[list[list[float]], dict[str, object]], seed: int
) -> None:
    load, sizes = case
    experts, source = len(load[0]), random.Random(seed)
    size = experts // sizes["groups"]
    groups = [list(range(g * size, (g + 1) * size)) for g in range(sizes["groups"])]
    source.shuffle(groups)
    for members in groups:
        source.shuffle(members)
    order = [expert for members in groups for expert in members]
    if sizes["policy"] == "flat":
        source.shuffle(order)
    renamed = [[row[expert] for expert in order] for row in load]
    assert place_experts(renamed, **sizes).loads == place_experts(load, **sizes).loads


@RANDOM
@given(case=cases(), factor=st.sampled_from([0.25, 2.0, 1024.0]))
def test_the_unit_of_the_loads_decides_nothing(
    case: tuple[list[list[float]], dict[str, object]], factor: float
) -> None:
    load, sizes = case
    scaled = [[value * factor for value in row] for row in load]
    assert place_experts(scaled, **sizes).physical == place_experts(load, **sizes).physical


def test_one_heavy_expert_gets_the_spare_copies() -> None:
    load = [[100.0] + [1.0] * 7]
    placement = place_experts(load, 12, ranks=4, policy="flat")
    assert len(placement.logical[0][0]) == 5
    assert placement.hosts(0, 0) == (0, 1, 2, 3)
    assert placement.max_load(0) < 45


def test_uneven_experts_and_ranks_fit_with_spare_slots() -> None:
    placement = place_experts([[1.0, 2.0, 3.0, 4.0, 5.0]], 6, ranks=3, policy="flat")
    assert sorted(set(placement.physical[0])) == [0, 1, 2, 3, 4]
    assert placement.loads == ((5.0, 5.0, 5.0),)


def test_exchanges_repair_what_the_greedy_packed_badly() -> None:
    placement = place_experts([[3.0, 3.0, 2.0, 2.0, 2.0, 0.0]], 6, ranks=2, policy="flat")
    assert placement.loads == ((6.0, 6.0),)  # the greedy gives 7 and 5


def test_a_large_model_is_placed_quickly() -> None:
    source = random.Random(0)
    load = [[source.paretovariate(1.5) for _ in range(256)] for _ in range(2)]
    placement = place_experts(load, 288, 8, 4, 32)
    valid(placement, load, 288)


@pytest.mark.parametrize(
    ("load", "sizes", "text"),
    [
        ([[1.0] * 4], {"slots": 3}, "4 experts do not fit 3 slots"),
        ([[1.0] * 4], {"slots": 5, "ranks": 2}, "5 slots are no multiple of 2 ranks"),
        ([[1.0] * 4], {"slots": 6, "ranks": 3, "nodes": 2}, "3 ranks are no multiple of 2 nodes"),
        ([[1.0] * 4], {"slots": 4, "groups": 3}, "4 experts are no multiple of 3 groups"),
        ([[1.0] * 4], {"slots": 4, "groups": 1, "nodes": 2, "ranks": 2},
         "1 groups are no multiple of 2 nodes"),
        ([[1.0, float("nan")]], {"slots": 2}, "expert 1 of layer 0 has a load of nan"),
        ([[1.0], [-1.0]], {"slots": 2}, "expert 0 of layer 1 has a load of -1"),
        ([[1.0], [1.0, 2.0]], {"slots": 2}, "as many experts in every layer"),
        ([], {"slots": 2}, "loads are"),
        ([[1.0]], {"slots": 1, "ranks": 0}, "0 ranks: from 1"),
        ([[1.0]], {"slots": 1, "policy": "global"}, "no policy `global`: hierarchical, flat"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(load: list, sizes: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        place_experts(load, **sizes)
