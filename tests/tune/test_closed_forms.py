"""Closed forms against figures worked out by hand, and against those of the two papers' models."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest

from plancc.tune.closed_forms import (
    attention_seconds,
    balance,
    expert_seconds,
    pool_hop,
    pool_tokens,
)
from plancc.tune.figures import Figures, Rates

HIDDEN = 4096
# Four layers, hidden 4096, 32 heads, 16 experts of ffn 16384 (two matrices), top-2, bf16.
MOE = Figures(4, HIDDEN, 32, 32, 128, 4 * HIDDEN**2, 2 * HIDDEN * 16384, 16, 2, 2, "bf16")
FLOPS_ONLY = Rates(1e12, 1e12, inf, inf)


def test_the_pool_pays_from_where_reading_costs_as_much_as_the_hop() -> None:
    # c = 2 x 32 x 128 x 2 = 16384 bytes; 1 / 8 - 1 / 32 = 3 / 32; M hop = 1.6e12 x 96 us = 153.6 MB.
    assert MOE.cached == 16384
    assert pool_tokens(MOE, 1.6e12, 96e-6, 8, 32) == pytest.approx(153.6e6 / 16384 * 32 / 3)
    # Seconds per layer at that number of tokens are equal with and without the pool.
    tokens = pool_tokens(MOE, 1.6e12, 96e-6, 8, 32)
    alone, pooled = tokens * 16384 / (8 * 1.6e12), tokens * 16384 / (32 * 1.6e12) + 96e-6
    assert alone == pytest.approx(pooled)


@pytest.mark.parametrize("pool", [1, 4, 8])
def test_a_pool_no_larger_than_the_base_never_pays(pool: int) -> None:
    assert pool_tokens(MOE, 1.6e12, 96e-6, 8, pool) == inf


class Wires:
    """Two nodes of two ranks; 1 GB/s between any two, 1 ms; collectives cost 1 ns a byte."""

    def node(self, rank: int) -> int:
        return rank // 2

    def message(self, source: int, target: int, size: int) -> tuple[float, float]:
        return 0.75e-3, size / 1e9

    def overhead(self, source: int, target: int) -> float:
        return 0.25e-3

    def verb_seconds(self, kind: str, group: tuple[int, ...], size: int) -> float:
        return 1e-9 * size * len(group) if len(group) > 1 else 0.0


def test_the_hop_adds_up_its_four_parts() -> None:
    tiny = Figures(1, 8, 2, 2, 4, 1.0, 1.0, 1, 1, 2, "bf16")
    # Base 0, 1; pool 2, 3 (one node). Queries: 3 x 8 x 2 = 48 bytes, 24 from each base rank.
    there = 1e-3 + 24e-9 + 1e-9 * 24 * 2
    # Partials: 3 x 8 x 4 = 96 bytes, and 3 x 2 x 4 = 24 of log-sum-exps.
    back = 1e-9 * 120 * 2 + 1e-3 + 48e-9
    assert pool_hop(tiny, Wires(), (0, 1), (2, 3), 3) == pytest.approx(there + back)  # type: ignore[arg-type]


def test_the_separation_of_the_paper_balances_at_3_5_to_12_5() -> None:
    # Prefill at n = 2048: attention 2 x 4 h^2 + 2 n h = 151 MFLOP a token, experts 2 x 2 x 2 h f = 537.
    found = balance(MOE, FLOPS_ONLY, "prefill", 1024, 2048, 16)
    assert found.attention == pytest.approx(16 * 151 / (151 + 537), rel=1e-2)
    assert (round(found.attention, 1), round(found.experts, 1)) == (3.5, 12.5)
    # Eight to fifteen devices have two of sixteen experts on the fullest: the eight others attend.
    assert found.whole == (8, 8)
    tokens = 1024 * 2048
    assert found.seconds == pytest.approx((tokens * 151e6 / 8e12, tokens * 537e6 / 8e12), rel=1e-2)


def test_experts_that_can_be_cut_finely_balance_in_whole_devices_too() -> None:
    many = replace(MOE, experts=16 * 13 * 4)
    found = balance(many, FLOPS_ONLY, "prefill", 1024, 2048, 16)
    assert found.whole == (4, 12)
    assert max(found.seconds) == pytest.approx(min(
        max(attention_seconds(many, FLOPS_ONLY, "prefill", 1024, 2048, a),
            expert_seconds(many, FLOPS_ONLY, "prefill", 1024, 2048, 16 - a))
        for a in range(1, 16)
    ), rel=2e-2)  # fmt: skip


def test_three_to_one_balances_an_expert_ffn_of_about_1536() -> None:
    small = replace(MOE, ffn=2 * HIDDEN * 1536)
    found = balance(small, FLOPS_ONLY, "prefill", 1024, 2048, 16)
    assert found.whole == (12, 4) and found.attention == pytest.approx(12.0, abs=0.1)


def test_training_balances_where_prefill_does() -> None:
    forward = balance(MOE, FLOPS_ONLY, "prefill", 8, 2048, 16)
    training = balance(MOE, FLOPS_ONLY, "train", 8, 2048, 16)
    assert training.attention == pytest.approx(forward.attention)
    assert training.seconds == pytest.approx([3 * s for s in forward.seconds])


def test_micro_batches_read_the_weights_again() -> None:
    # Bound by reading weights (keys cost nothing): two micro-batches take twice as long.
    rates = Rates(inf, inf, 1e12, 1e18)
    once, twice = (balance(MOE, rates, "decode", 1024, 2048, 16, turns) for turns in (1, 2))
    assert twice.whole == once.whole
    assert twice.seconds == pytest.approx([2 * s for s in once.seconds], rel=1e-3)
    # Where the cache decides, attention does not take longer, so the experts need more devices.
    slow = Rates(inf, inf, 1e12, 1e12)
    once, twice = (balance(MOE, slow, "decode", 1024, 2048, 16, turns) for turns in (1, 2))
    assert twice.experts > once.experts


def test_decode_reads_the_cache_and_the_experts_that_are_used() -> None:
    rates = Rates(inf, inf, 1e12, 2e12)
    # 1 sequence of 1000 tokens: 16.384 MB of cache at 2 TB/s over 2 devices, 134 MB of projections.
    wanted = 1000 * 16384 / (2 * 2e12) + 4 * HIDDEN**2 * 2 / 1e12
    assert attention_seconds(MOE, rates, "decode", 1, 1000, 2) == pytest.approx(wanted)
    # One token uses top_k = 2 experts of 134,217,728 parameters; many tokens use all sixteen.
    one = expert_seconds(MOE, rates, "decode", 1, 1000, 4)
    assert one == pytest.approx(2 * MOE.ffn * 2 / 4 / 1e12)
    assert expert_seconds(MOE, rates, "decode", 10_000, 1, 4) == pytest.approx(8 * one)
