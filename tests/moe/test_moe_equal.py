"""Routed experts give the values, tokens, loss and gradients of one device, whatever the layout."""

from __future__ import annotations

from dataclasses import replace

import pytest
from lowered import explain_failure, lower
from moe_cases import LAYOUTS, MA, ONE_MESH, RATIOS, STATE, ratio
from moe_plans import Plan, graph_of, infer, overlap, same_tokens, train

OTHERS = ("mixtral", "qwen3_moe", "gpt_oss")
FEW = {"ma": MA, "6+2": ratio(6, 2, tail=overlap())}
MANY = {**{k: p for k, p in (RATIOS | LAYOUTS).items() if p.model == "moe" and not p.head}}


@pytest.mark.parametrize("case", RATIOS)
def test_ratios(case: str) -> None:
    """Any number of attention ranks beside any number of expert ranks."""
    right(RATIOS[case])


@pytest.mark.parametrize("case", LAYOUTS)
def test_layouts(case: str) -> None:
    """Experts on devices of their own, on the same, on some of the same, on the same mesh."""
    right(LAYOUTS[case])


@pytest.mark.parametrize("case", STATE)
def test_state_and_stages(case: str) -> None:
    """Sharded state, recomputed layers, and stages of attention in front of one group of experts."""
    right(STATE[case])


@pytest.mark.parametrize("model", OTHERS)
@pytest.mark.parametrize("case", FEW)
def test_models_of_transformers(model: str, case: str) -> None:
    """Mixtral, Qwen3-MoE, and gpt-oss, whose experts have biases; nothing of them is edited."""
    right(replace(FEW[case], model=model))


@pytest.mark.slow
@pytest.mark.parametrize("model", OTHERS)
@pytest.mark.parametrize("case", MANY)
def test_all_layouts_of_models_of_transformers(model: str, case: str) -> None:
    """Every layout of the matrix."""
    right(replace(MANY[case], model=model))


def test_the_example() -> None:
    """examples/ma_separation.plan: 12 + 4, in turns, gradients exact while they are compared."""
    for phases in (None, ("train",)):
        options = {"phases": phases} if phases else {}
        result = lower("ma_separation.plan", graph_of("moe"), **options).verify()
        assert result.ok, explain_failure(result)
        assert result.ranks == 16
        assert all(v.max_rel_error < 1e-9 for v in result.variants)


@pytest.mark.parametrize("kinds", ["optim", "grads, optim", "params, grads, optim"])
def test_state_sharded_over_the_axis_of_the_experts(kinds: str) -> None:
    """Nothing is left to shard of experts that this axis splits."""
    train(replace(
        ONE_MESH, head="model m { mode = train }",
        every=f"split batch over dp (block = balanced); split {kinds} over dp",
    ))  # fmt: skip


@pytest.mark.parametrize("kinds", ["optim", "grads, optim"])
def test_state_sharded_over_an_axis_without_data_of_its_own(kinds: str) -> None:
    """Every rank of the axis has the same tokens, and keeps the state of its share."""
    tail = f"place layers.*.self_attn {{ split {kinds} over dp }}"
    train(replace(ratio(2, 2), head="model m { mode = train }", every="", tail=tail))


def right(plan: Plan) -> None:
    """All phases, the tokens, and a step of training."""
    same_tokens(infer(plan))
    train(plan)
