"""Random plans in training: the loss and every gradient equal one device's, or the plan is refused."""

from __future__ import annotations

import os
from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from lowered import explain_failure, lower
from plan_strategy import KINDS, plans
from small_models import graph_of

from plancc.dsl import PlanError

FIXED = settings(
    derandomize=True, database=None, deadline=None, max_examples=25,
    suppress_health_check=list(HealthCheck), phases=(Phase.explicit, Phase.generate),
)  # fmt: skip
MANY = settings(
    FIXED, derandomize=False, max_examples=int(os.environ.get("PLANS", "1000")),
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
)  # fmt: skip
SHARE = 0.5
"""At least this share of the random plans must train, or the test says little."""


def outcome(model: str, text: str) -> str:
    """ "right", or the code of the first error; fails for anything else."""
    text = text.replace("1..64 }", "1..64; mode = train }").replace("== decode", "== train")
    try:
        lowered = lower(text, graph_of(model), phases=("train",))
    except PlanError as problem:
        return next(d.code for d in problem.diagnostics if d.level == "error")
    result = lowered.verify()
    assert result.ok, explain_failure(result)
    assert max(v.max_rel_error for v in result.variants) < 1e-9
    return "right"


@pytest.mark.parametrize("kind", KINDS)
def test_random_plans_train(kind: str) -> None:
    """Twenty-five plans of each kind, always the same."""
    run(kind, FIXED)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_random_plans_train(kind: str) -> None:
    """A thousand others each time (PLANS=n for another number)."""
    run(kind, MANY)


def run(kind: str, how: settings) -> None:
    """Draw plans of one kind; most of them must train."""
    found: Counter[str] = Counter()

    @how
    @given(plans(kind), st.just(kind))
    def check(pair: tuple[str, str], _: str) -> None:
        found[outcome(*pair)] += 1

    check()
    assert found["right"] >= SHARE * found.total(), found
