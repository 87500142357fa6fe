"""What the tests of training units share: one step of a plan held against one device, in float64."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lowered import Lowered, explain_failure, lower

from plancc.ir.graph import Graph
from plancc.verification.check import VariantResult


def train(
    plan: str | Path, graph: Graph, sets: Mapping[str, object] | None = None
) -> tuple[Lowered, tuple[VariantResult, ...]]:
    """Compile phase "train"; the loss and every gradient of every variant equal one device's."""
    lowered = lower(plan, graph, sets, phases=("train",))
    result = lowered.verify()
    assert result.ok, explain_failure(result)
    assert [v.phase for v in result.variants] == ["train"] * len(lowered.compiled.plan.variants)
    for one in result.variants:
        assert one.max_rel_error < 1e-9
        assert one.max_grad_error is not None and one.max_grad_error < 1e-9
    return lowered, result.variants


def moves(plan: str | Path, graph: Graph) -> Mapping[str, int]:
    """How many collectives and transfers a micro-batch and the reduction have, by kind."""
    return train(plan, graph)[1][0].collectives
