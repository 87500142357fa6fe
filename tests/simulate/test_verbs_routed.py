"""Routed experts: with the rows that routers sent, every message is predicted to the byte."""

from __future__ import annotations

import pytest
from lowered import captured, lower
from moe_cases import LAYOUTS, RATIOS, STATE
from moe_plans import Plan, graph_of
from noted import check_inference, check_training

ALL = RATIOS | LAYOUTS | STATE
INFERRED = ("3+2 in turns", "uneven experts", "one mesh", "same devices", "experts x ffn",
            "copies x experts x ffn in turns", "tokens on every rank")  # fmt: skip
TRAINED = ("one mesh, experts over two axes", "some devices shared", "copies x experts",
           "gradients in 8 bits", "two groups of experts in turns", "zero 3 over copies",
           "recompute, zero 3, in turns", "1F1B, stages of experts", "chain, GPipe")  # fmt: skip
BALANCED = """plan balanced, edition 1
mesh attn[rep = 2, hp = 2] on local[0:4]
mesh moe[ep = 4] on local[4:8]
place ** on attn
place layers.* { split batch over rep }
place layers.*.self_attn { split heads over hp }
place layers.*.moe.experts on moe { split experts over ep (spare = 4); route = top(2) }
"""


def infer(plan: Plan) -> None:
    """All phases."""
    lowered = lower(plan.text, graph_of(plan.model))
    for unit in lowered.compiled.units:
        check_inference(lowered, unit)


def train(plan: Plan) -> None:
    """One step."""
    check_training(lower(plan.text, graph_of(plan.model), phases=("train",)), 7, 6)


@pytest.mark.parametrize("case", INFERRED)
def test_a_layout(case: str) -> None:
    """Experts on devices of their own, on the same, in copies, cut further, in turns."""
    infer(ALL[case])


@pytest.mark.parametrize("case", TRAINED)
def test_a_step(case: str) -> None:
    """Rows and gradients of rows; state sharded; stages; eight bits."""
    train(ALL[case])


@pytest.mark.slow
@pytest.mark.parametrize("case", ALL)
def test_every_layout(case: str) -> None:
    """All of the matrix of routed experts."""
    if not ALL[case].head:
        infer(ALL[case])
    train(ALL[case])


def test_experts_that_a_table_places() -> None:
    """Copies of experts take turns."""
    sizes = (("experts", 8), ("ffn", 8), ("heads", 4), ("kv_heads", 2), ("layers", 2))
    lowered = lower(BALANCED, captured("moe", sizes))
    for unit in lowered.compiled.units:
        check_inference(lowered, unit)
