"""Predicted calls of the transport are those that ranks make, for every example plan."""

from __future__ import annotations

import pytest
import torch
from lowered import captured, lower
from noted import Steps, check_inference, moved_caches
from plans import written
from pools import PoolPlan, overlap, pool_model
from test_example_plans import CASES
from test_switches import PLANS as SWITCHES
from torch import Tensor

from plancc.ir.graph import Graph

POOLS = {
    "flat": PoolPlan(combine=""),
    "zigzag": PoolPlan(jobs=("split kv_seq over sp (layout = zigzag)",)),
    "chunks": PoolPlan(comm=overlap(depth=2, batches=2)),
    "heads_first": PoolPlan(
        devices=8, per_node=4, axes="hp = 2, sp = 0..4",
        jobs=("split heads over hp", "split kv_seq over sp (block = ceil(seq_len / sp))"),
    ),
}  # fmt: skip
MOVING = ("another_mesh", "shared_ranks", "three_regions")


def generation(graph: Graph, batch: int, tokens: int, new: int) -> Steps:
    """A prompt and further tokens, one by one."""
    name = graph.inputs[0].name
    ids = torch.randint(60, (batch, tokens + new), generator=torch.Generator().manual_seed(3))

    def given(lo: int, hi: int) -> dict[str, Tensor]:
        return {name: ids[:, lo:hi]}

    later = [("decode", given(at, at + 1)) for at in range(tokens, tokens + new)]
    return [("prefill", given(0, tokens)), *later]


@pytest.mark.parametrize("case", CASES)
def test_an_example(case: str) -> None:
    """Every phase of each example plan, to the byte."""
    plan, sets, model, sizes = CASES[case]
    lowered = lower(plan, captured(model, tuple(sizes.items())), sets)
    for unit in lowered.compiled.units:
        check_inference(lowered, unit)


def test_the_encoder_example() -> None:
    """Two inputs, heads that do not divide."""
    lowered = lower("encoder.plan", captured("bert"), dict(tp=5))
    check_inference(lowered, lowered.compiled.units[0])


def test_ma_separation() -> None:
    """Routed experts on devices of their own; micro-batches take turns."""
    from moe_plans import graph_of

    lowered = lower("ma_separation.plan", graph_of("moe"), phases=("forward", "prefill", "decode"))
    for unit in lowered.compiled.units:
        check_inference(lowered, unit)


@pytest.mark.parametrize(
    ("batch", "tokens", "new"), [(3, 3, 3), (1, 15, 3), (2, 64, 2), (2, 3, 20)]
)
def test_the_fa_pool_example(batch: int, tokens: int, new: int) -> None:
    """Across the thresholds of the pool: caches move, merges over 8 to 32 ranks."""
    graph = pool_model("llama8")
    lowered = lower("fa_pool.plan", graph, {"long": 4})
    found = check_inference(lowered, None, generation(graph, batch, tokens, new))
    assert moved_caches(found)


@pytest.mark.parametrize("case", POOLS)
def test_a_pool(case: str) -> None:
    """Merges by levels and flat, zigzag, chunks of heads in turns, heads first."""
    graph = pool_model("llama8")
    check_inference(lower(POOLS[case].text(), graph), None, generation(graph, 3, 5, 10))


@pytest.mark.parametrize("plan", SWITCHES)
def test_a_generation_that_crosses_variants(plan: str) -> None:
    """Caches go to another cut, axis or mesh; slices of what is whole need no messages."""
    graph = captured("dense")
    lowered = lower(written(SWITCHES[plan], "dense"), graph)
    found = check_inference(lowered, None, generation(graph, 3, 7, 15))
    assert bool(moved_caches(found)) == (plan in MOVING)
