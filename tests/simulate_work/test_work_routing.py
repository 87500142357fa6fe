"""What routers do: the formulas against counting all cases, ranks that add up, and real routers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import comb, isclose

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from work_cases import compiled, of_ranks, products, programs, total

from plancc.runtime.routes import listeners
from plancc.runtime.view import Members
from plancc.simulator.errors import SimulateError
from plancc.simulator.expert_layers import ExpertLayers, members
from plancc.simulator.place import Place, Sizes
from plancc.simulator.routing import EVEN, Observed, Shares, Skewed, Visit, observed, reach

EXPERTS = (("experts", 6), ("heads", 4))
ROUTED = """mesh attn[dp = {dp}] on local[0:{dp}]
mesh moe[{axes}] on local[{dp}:{end}]
place ** on attn {{ split batch over dp }}
place layers.*.moe.experts on moe {{ split experts over ep (block = balanced); {more} route = top(2) }}
"""


def routed(dp: int, ep: int, rep: int = 1, tp: int = 1) -> str:
    """Attention on `dp` ranks, experts on `rep` copies of `ep` x `tp` others."""
    axes = f"rep = {rep}, ep = {ep}, tp = {tp}"
    more = "split ffn over tp;" if tp > 1 else ""
    return ROUTED.format(dp=dp, axes=axes, end=dp + rep * ep * tp, more=more)


def visits(experts: int, k: int, tokens: int, widths: Sequence[int]) -> list[Visit]:
    """One source's visits to ranks that hold so many experts each."""
    found, low, first = [], 0, None
    for rank, width in enumerate(widths):
        held: Shares = tuple((e, 1.0) for e in range(low, low + width))
        low += width
        first = first or (held, rank)
        found.append(
            Visit("layer", 9, rank, tokens, k, experts, held, first[1] == rank, first[0])
        )  # fmt: skip
    assert low == experts
    return found


@pytest.mark.parametrize(
    ("experts", "k", "held"), [(6, 2, 3), (6, 2, 1), (5, 3, 4), (4, 4, 1), (7, 1, 2)]
)
def test_the_chance_to_reach_a_rank_by_counting(experts: int, k: int, held: int) -> None:
    """Of all sets of k experts, those with one of the rank's."""
    sets = list(combinations(range(experts), k))
    hits = sum(1 for one in sets if min(one) < held)
    assert isclose(reach(experts, k, tuple((e, 1.0) for e in range(held))), hits / len(sets))


def test_a_copy_gets_its_share() -> None:
    """2 of 3 experts, expert 0 on this rank and on another: by hand 1 - (1/3 + 2/3 / 2)."""
    assert isclose(reach(3, 2, ((0, 0.5),)), 1 / 3)
    both = Visit("", 0, 0, 12, 2, 3, ((0, 0.5), (1, 1.0)), True, ((0, 0.5), (1, 1.0)))
    assert EVEN.picks(both) == 12 * 2 * 1.5 / 3
    assert isclose(EVEN.rows(both), 12 * (1 - (1 / 3) * (1 / 2)))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(lambda w: sum(w) > 0),
    st.integers(1, 6), st.integers(0, 50), st.floats(1, 4),
)  # fmt: skip
def test_all_choices_are_made_somewhere(
    widths: list[int], k: int, tokens: int, factor: float
) -> None:
    """Every router makes t k choices, sends rows at most once to a rank, and never fewer than needed."""
    experts = sum(widths)
    k = min(k, experts)
    for routing in (EVEN, Skewed(factor)):
        found = visits(experts, k, tokens, widths)
        assert isclose(sum(map(routing.picks, found)), tokens * k, abs_tol=1e-9)
        for one in found:
            rows, picks = routing.rows(one), routing.picks(one)
            assert -1e-9 <= rows <= min(tokens, picks) + 1e-6 * tokens
            assert 0 <= routing.used([one]) <= len(one.held)


def test_the_busiest_rank_gets_the_factor() -> None:
    """1.5 times the mean: 3 of 4 ranks share the rest."""
    found = visits(8, 2, 100, [2, 2, 2, 2])
    assert [Skewed(1.5).picks(one) for one in found] == pytest.approx(
        [75, 125 / 3, 125 / 3, 125 / 3]
    )
    assert [Skewed(9).picks(one) for one in found] == pytest.approx([200, 0, 0, 0])
    assert Skewed(9).rows(found[0]) == 100
    assert [Skewed(1).rows(one) for one in found] == [EVEN.rows(one) for one in found]
    with pytest.raises(SimulateError, match="a factor from 1"):
        Skewed(0.5)


def test_experts_in_use() -> None:
    """Each of 2 experts is missed by one token with probability 1 - 2/8, by 3 tokens (3/4) ^ 3."""
    one, *_ = visits(8, 2, 3, [2, 2, 2, 2])
    assert EVEN.used([one]) == pytest.approx(2 * (1 - 0.75**3))
    assert EVEN.used([]) == 0.0


def test_what_was_observed_is_given_back() -> None:
    """Rows, choices and experts in use of a router's output; what nobody saw is an error."""
    found = observed({"layer": {9: [[0, 1], [1, 4], [5, 1]]}}, {0: [0, 1, 2], 1: [3, 4, 5]})
    first, second = visits(6, 2, 3, [3, 3])
    assert (found.rows(first), found.picks(first), found.used([first])) == (3, 4, 2)
    assert (found.rows(second), found.picks(second), found.used([second])) == (2, 2, 2)
    for ask in (found.rows, found.picks, lambda one: found.used([one])):
        with pytest.raises(SimulateError, match="observed"):
            ask(Visit("other", 9, 0, 3, 2, 6, first.held, True, first.held))


@pytest.mark.parametrize(
    ("dp", "ep", "rep", "tp"), [(3, 2, 1, 1), (2, 4, 1, 1), (5, 2, 2, 1), (3, 3, 1, 2)]
)
def test_who_visits_whom_is_what_the_runtime_does(dp: int, ep: int, rep: int, tp: int) -> None:
    """The same listeners, and every visit is seen from both sides."""
    found = compiled(routed(dp, ep, rep, tp), "moe", EXPERTS)
    sizes, given_all, taken_all = Sizes(7, 5), [], []
    for program in programs(found):
        layers = ExpertLayers(program)
        assert layers.by_name
        layer = next(iter(layers.by_name.values()))
        for rank in program.ranks:
            place = Place(rank, found.world.grids, sizes)
            target = Members("", "moe", members(place, layer.target))
            home = members(place, layer.home)
            if rank in home:
                wanted = listeners(place.view, target, layer.parts, home.index(rank))
                assert tuple(v.target for v in layers.given(place, layer)) == wanted
            given_all += layers.given(place, layer)
            taken_all += layers.taken(place, layer)
    assert sorted(given_all, key=str) == sorted(taken_all, key=str) != []
    assert {v.source: v.tokens for v in given_all} == {
        rank: 5 * (7 * (rank + 1) // dp - 7 * rank // dp) for rank in range(dp)
    }


@pytest.mark.parametrize("plan", [routed(3, 2), routed(2, 4), routed(5, 2, 2), routed(2, 3, 1, 2)])
@pytest.mark.parametrize("phase", ["forward", "train"])
def test_routed_experts_do_the_work_of_one_device(plan: str, phase: str) -> None:
    """Nothing but experts and dense layers, and both once: sums are equal up to rounding."""
    one = "mesh base[dp = 1] on local\nplace ** on base\n"
    sizes = Sizes(7, 5)
    for routing in (EVEN, Skewed(1.7)):
        whole = total(compiled(plan, "moe", EXPERTS, phase), sizes, products, routing=routing)
        alone = total(compiled(one, "moe", EXPERTS, phase), sizes, products)
        assert abs(whole - alone) < 200  # a rounding of each product


def test_a_busy_rank_works_more() -> None:
    """The first rank of experts does `factor` times the work, and layers can differ as observed."""
    found = compiled(routed(2, 3), "moe", EXPERTS)
    even, skewed = (of_ranks(found, Sizes(6, 4), routing) for routing in (EVEN, Skewed(1.5)))
    works = [[sum(map(products, each[rank])) for rank in (2, 3, 4)] for each in (even, skewed)]
    assert works[0][0] == works[0][1] == works[0][2]
    assert works[1][0] / works[0][0] == pytest.approx(1.5, rel=1e-3)
    assert works[1][1] == works[1][2] < works[0][1]
    assert comb(6, 2) == 15


def test_observed_layers_differ() -> None:
    """Layer 0 sends every token to both experts of rank 2, layer 1 none: the work says so."""
    found = compiled(routed(2, 3), "moe", EXPERTS)
    paths = [f"layers.{at}.moe.experts" for at in range(2)]
    one, two = [[0, 1]] * 12, [[4, 5]] * 12
    seen = observed(
        {paths[0]: {0: one, 1: one}, paths[1]: {0: two, 1: two}},
        {2: [0, 1], 3: [2, 3], 4: [4, 5]},
    )
    assert isinstance(seen, Observed)
    each = of_ranks(found, Sizes(6, 4), seen)
    assert sum(map(products, each[2])) == sum(map(products, each[4])) == 2 * 48 * 3 * 32 * 24
    assert sum(map(products, each[3])) == 0
