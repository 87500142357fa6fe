"""Predicted calls of a training step are those that ranks make, for every example plan."""

from __future__ import annotations

import pytest
from lowered import captured, lower
from noted import check_training
from pools import pool_model
from test_example_plans import CASES as EXAMPLES

CASES = {
    **EXAMPLES,
    "fsdp": ("fsdp.plan", {}, "dense", {}),
    "fsdp3": ("fsdp.plan", dict(replicas=2, shards=3), "llama", {}),
    "megatron": ("megatron_1f1b.plan", {}, "dense", dict(layers=4)),
    "megatron-uneven": (
        "megatron_1f1b.plan", dict(dp=3, pp=2, tp=3), "dense", dict(layers=3, heads=6, hidden=24)
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_step_of_an_example(case: str) -> None:
    """Forward, backward, reduction and refresh of uneven micro-batches, to the byte."""
    plan, sets, model, sizes = CASES[case]
    lowered = lower(plan, captured(model, tuple(sizes.items())), sets, phases=("train",))
    check_training(lowered, 9, 10)


def test_ma_separation() -> None:
    """Routed experts in turns, gradients in eight bits with error feedback."""
    from moe_plans import graph_of

    check_training(lower("ma_separation.plan", graph_of("moe"), phases=("train",)), 5, 7)


def test_fa_pool() -> None:
    """Four variants, merges over a pool of up to 32 ranks."""
    lowered = lower("fa_pool.plan", pool_model("llama8"), {"long": 4}, phases=("train",))
    check_training(lowered, 2, 9)
