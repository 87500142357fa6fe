"""Random attention pools.

Any sizes, heads, axes, merges, depth and batches give what one device gives.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from lowered import explain_failure, lower, prompt, tokens_of_one
from pools import PoolPlan, counted_runs, overlap, pool_model

from plancc.ir.graph import Graph

FIXED = settings(
    derandomize=True, database=None, deadline=None, max_examples=60,
    suppress_health_check=list(HealthCheck), phases=(Phase.explicit, Phase.generate),
)  # fmt: skip
MANY = settings(
    FIXED, derandomize=False, max_examples=int(os.environ.get("POOLS", "2000")),
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
)  # fmt: skip
HEADS = ((4, 4), (6, 3), (6, 2), (6, 1), (8, 2), (5, 5), (4, 1))
"""(heads, kv heads) of the models: multi-head, grouped, multi-query, and a prime."""
DTYPES = (torch.float64, torch.float64, torch.float32)


@dataclass(frozen=True)
class Pool:
    """One drawn case."""

    plan: PoolPlan
    heads: tuple[int, int]
    batch: int
    tokens: int
    new: int
    dtype: torch.dtype


@cache
def model(heads: tuple[int, int]) -> Graph:
    """One layer, heads of 4."""
    count, kv = heads
    return pool_model(
        "dense", layers=1, hidden=4 * count, heads=count, kv_heads=kv, ffn=10, vocab=40
    )


@st.composite
def pools(draw: st.DrawFn) -> Pool:
    """Two steps of a pool of one axis, or of two with heads first.

    Keys in blocks, evenly or in a zigzag.
    """
    layout = draw(st.sampled_from((" (block = ceil(seq_len / sp))", "", " (layout = zigzag)")))
    small, large = sorted(draw(st.lists(st.integers(1, 7), min_size=2, max_size=2, unique=True)))
    hp = draw(st.sampled_from((1, 1, 2, 3)))
    first = draw(st.integers(1, 8))
    second = first + draw(st.integers(1, 6))
    tree = draw(st.sampled_from(("", " (tree = [node, pod])", None)))
    depth, batches = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    plan = PoolPlan(
        base=draw(st.integers(1, 3)), devices=hp * large, per_node=draw(st.integers(1, 4)),
        axes=(f"hp = {hp}, " if hp > 1 else "") + f"sp = 0..{large}",
        jobs=(*(["split heads over hp"] if hp > 1 else []), f"split kv_seq over sp{layout}"),
        steps=((str(small), f"seq_len > {first}"), (str(large), f"seq_len > {second}")),
        guard=f"seq_len > {first}",
        combine="" if tree is None else f"combine out by logsumexp over sp{tree}",
        share=draw(st.sampled_from(("", "", "share kv from base"))),
        comm=overlap(depth=depth, batches=batches) if depth * batches > 1 else "",
    )  # fmt: skip
    return Pool(
        plan, draw(st.sampled_from(HEADS)), draw(st.integers(1, 4)), draw(st.integers(1, 16)),
        draw(st.integers(2, 8)), draw(st.sampled_from(DTYPES)),
    )  # fmt: skip


def check(case: Pool) -> None:
    """Every variant is right in its type; in float64 all ranks generate one device's tokens."""
    graph = model(case.heads)
    lowered = lower(case.plan.text(), graph, phases=("prefill", "decode"))
    result = lowered.verify(dtype=case.dtype)
    assert result.ok, explain_failure(result)
    ids = prompt(graph, case.batch, case.tokens) % 40
    expected = tokens_of_one(graph, ids, case.new).tolist()
    found = counted_runs(lowered, [(ids, case.new)])
    assert all(rank[0].generated.tokens.tolist() == expected for rank in found)


def test_random_pools() -> None:
    """Sixty pools, always the same."""
    FIXED(given(pools())(check))()


@pytest.mark.slow
def test_many_random_pools() -> None:
    """Two thousand others each time (POOLS=n for another number)."""
    MANY(given(pools())(check))()
