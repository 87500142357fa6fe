"""Predicted calls of a training step are those that ranks make, for every example plan."""

from __future__ import annotations

import pytest
from lowered import captured, lower
from noted import check_training
from plans import HEAD, grid
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


def wired(kinds: str) -> str:
    """Three replicas whose gradients travel in eight bits, with sharded state of some kinds."""
    return (
        HEAD + "model m { mode = train }\n" + grid(("dp", 3))
        + f"place ** on base {{ split batch over dp; split {kinds} over dp }}\n"
        "comm grads over base.dp { dtype = int8(block = 48, error_feedback = true) }\n"
    )  # fmt: skip


@pytest.mark.parametrize("kinds", ["optim", "grads, optim", "params, grads, optim"])
def test_sharded_state_in_eight_bits(kinds: str) -> None:
    """Scattered sums in blocks that do not divide what ranks keep."""
    lowered = lower(wired(kinds), captured("dense", (("ffn", 50),)), phases=("train",))
    found = check_training(lowered, 7, 5)
    assert "all_to_all" in found


def test_edges_in_another_type() -> None:
    """Activations of a pipeline in bf16, their gradients in eight bits."""
    text = (
        HEAD + "model m { mode = train }\n" + grid(("tp", 2), name="front")
        + grid(("tp", 3), name="back", first=2) + "place ** on front\n"
        "place layers.1, norm, lm_head on back\n"
        "place layers.*.self_attn { split heads over tp (block = balanced) }\n"
        "comm front -> back { dtype = bf16; grad_dtype = int8(block = 32) }\n"
        "pipeline front -> back { microbatches = 2 }\n"
    )  # fmt: skip
    check_training(lower(text, captured("dense"), phases=("train",)), 5, 7)


def test_sequences_become_heads() -> None:
    """Positions are cut outside attention, heads inside: an all_to_all each way."""
    text = (
        HEAD + "model m { mode = train }\n" + grid(("sp", 3)) + "place ** on base\n"
        "place layers.* { split seq over sp (block = balanced) }\n"
        "place layers.*.self_attn.{q_proj,k_proj,v_proj,o_proj} { split seq over sp (block = balanced) }\n"
        "place op attention in layers.*.self_attn { split heads over sp (block = balanced) }\n"
    )  # fmt: skip
    found = check_training(lower(text, captured("dense"), phases=("train",)), 2, 7)
    assert "all_to_all" in found
