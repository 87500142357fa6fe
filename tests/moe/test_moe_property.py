"""Random ratios, axes, splits, top-k and skewed routers against one device: values, loss, gradients."""

from __future__ import annotations

import os
from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from lowered import explain_failure, lower
from moe_strategy import Drawn, cases, model_of
from routings import biased

from plancc.dsl import PlanError
from plancc.verification import Verification

FIXED = settings(
    derandomize=True, database=None, deadline=None, max_examples=20,
    suppress_health_check=list(HealthCheck), phases=(Phase.explicit, Phase.generate),
)  # fmt: skip
MANY = settings(
    FIXED, derandomize=False, max_examples=int(os.environ.get("ROUTES", "500")),
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
)  # fmt: skip
INFERENCE = ("forward", "prefill", "decode")
SHARE = 0.6
"""At least this share of the random plans must compile, or the test says little."""


def outcome(case: Drawn, phase: str) -> str:
    """ "right", or the code of the first error; fails for anything else."""
    graph = model_of(case.sizes)
    phases = ("train",) if phase == "train" else INFERENCE
    try:
        lowered = lower(case.text, graph, phases=phases)
    except PlanError as problem:
        errors = [d for d in problem.diagnostics if d.level == "error"]
        assert errors and all(d.span is not None for d in errors)
        return errors[0].code
    params = biased(graph, "moe", case.bias, case.noise)
    result = Verification(lowered.compiled, lowered.artifact, params=params).run()
    assert result.ok, explain_failure(result)
    assert max(v.max_rel_error for v in result.variants) < 1e-9
    return "right"


@pytest.mark.parametrize("phase", ["infer", "train"])
def test_random_routes(phase: str) -> None:
    """Twenty cases, always the same."""
    run(phase, FIXED)


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["infer", "train"])
def test_many_random_routes(phase: str) -> None:
    """Five hundred others each time (ROUTES=n for another number)."""
    run(phase, MANY)


def run(phase: str, how: settings) -> None:
    """Draw cases; most of them must be right."""
    found: Counter[str] = Counter()

    @how
    @given(cases(phase))
    def check(case: Drawn) -> None:
        found[outcome(case, phase)] += 1

    check()
    print(phase, dict(found))
    assert found["right"] >= SHARE * found.total(), found
