"""Predicted calls of a training step are those that ranks make, for every example plan."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from lowered import Lowered, captured, lower
from noted import differences, training
from pools import pool_model
from test_example_plans import CASES as EXAMPLES
from torch import Tensor

CASES = {
    **EXAMPLES,
    "fsdp": ("fsdp.plan", {}, "dense", {}),
    "fsdp3": ("fsdp.plan", dict(replicas=2, shards=3), "llama", {}),
    "megatron": ("megatron_1f1b.plan", {}, "dense", dict(layers=4)),
    "megatron-uneven": ("megatron_1f1b.plan", dict(dp=3, pp=2, tp=3), "dense", dict(layers=3, heads=6, hidden=24)),
}  # fmt: skip


def step_inputs(lowered: Lowered, batch: int, tokens: int) -> Mapping[str, Tensor]:
    """Random ids and targets."""
    ids = next(v.name for v in lowered.compiled.graph.inputs)
    generator = torch.Generator().manual_seed(2)
    numbers = torch.randint(60, (2, batch, tokens), generator=generator)
    return {ids: numbers[0], "targets": numbers[1], "scale": torch.tensor(1.0 / (batch * tokens))}


@pytest.mark.parametrize("case", CASES)
def test_a_step_of_an_example(case: str) -> None:
    """Forward, backward, reduction and refresh of uneven micro-batches, to the byte."""
    plan, sets, model, sizes = CASES[case]
    lowered = lower(plan, captured(model, tuple(sizes.items())), sets, phases=("train",))
    check(lowered, 9, 10)


def check(lowered: Lowered, batch: int, tokens: int) -> None:
    """One step of every variant."""
    for unit in lowered.compiled.units:
        found = training(lowered, step_inputs(lowered, batch, tokens), unit.variant.index)
        wrong = differences(lowered, unit.programs, found)
        assert not wrong, wrong[0]
        assert any(one.calls for one in found)


def test_ma_separation() -> None:
    """Routed experts in turns, gradients in eight bits with error feedback."""
    from moe_plans import graph_of

    check(lower("ma_separation.plan", graph_of("moe"), phases=("train",)), 5, 7)


def test_fa_pool() -> None:
    """Four variants, merges over a pool of up to 32 ranks."""
    lowered = lower("fa_pool.plan", pool_model("llama8"), {"long": 4}, phases=("train",))
    check(lowered, 2, 9)
