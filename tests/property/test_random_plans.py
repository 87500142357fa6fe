"""Any plan either compiles to right programs, or is refused with diagnostics."""

from __future__ import annotations

import os
from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from lowered import explain_failure, lower
from plan_strategy import KINDS, plans
from predicted import predicted_bytes
from small_models import graph_of

from plancc.dsl import PlanError
from plancc.ir.layout import Layout, cuts
from plancc.ir.program import ProgramSet, produced

FIXED = settings(
    derandomize=True, database=None, deadline=None, max_examples=40,
    suppress_health_check=list(HealthCheck), phases=(Phase.explicit, Phase.generate, Phase.shrink),
)  # fmt: skip
MANY = settings(FIXED, derandomize=False, max_examples=int(os.environ.get("PLANS", "1000")))
SHARE = 0.4
"""At least this share of the random plans must compile, or the test says little."""


def check_layouts(programs: ProgramSet) -> None:
    """No value is cut twice, or cut and pending, by one coordinate of the ranks."""
    for program in programs.programs:
        held = [w.held for w in program.weights]
        held += [h for step in program.instructions for h in produced(step)]
        for one in held:
            assert not clashes(one.layout), (one.name, one.layout)


def clashes(layout: Layout) -> bool:
    """Whether two dims, or a dim and the pending sum, are cut by one coordinate."""
    groups = [{part for leaf in cuts(dim) for part in leaf.parts} for dim in layout.dims]
    groups.append(set(layout.partial))
    pairs = [(a, b) for i, a in enumerate(groups) for b in groups[:i]]
    return any(x.meets(y) for a, b in pairs for x in a for y in b)


def outcome(model: str, text: str) -> str:
    """ "right", or the code of the first error; fails for anything else."""
    try:
        lowered = lower(text, graph_of(model))
    except PlanError as problem:
        return next(d.code for d in problem.diagnostics if d.level == "error")
    for unit in lowered.compiled.units:
        assert unit.programs is not None
        check_layouts(unit.programs)
    result = lowered.verify()
    assert result.ok, explain_failure(result)
    if len(lowered.compiled.plan.variants) > 1:
        return "right"  # caches may move in the step that is counted
    for unit, variant in zip(lowered.compiled.units, result.variants, strict=True):
        assert dict(variant.bytes) == predicted_bytes(lowered, unit)
    return "right"


@pytest.mark.parametrize("kind", KINDS)
def test_random_plans(kind: str) -> None:
    """Forty plans of each kind, always the same."""
    run(kind, FIXED)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_random_plans(kind: str) -> None:
    """A thousand others each time (PLANS=n for another number)."""
    run(kind, MANY)


def run(kind: str, how: settings) -> None:
    """Draw plans of one kind; most of them must be right."""
    found: Counter[str] = Counter()

    @how
    @given(plans(kind), st.just(kind))
    def check(pair: tuple[str, str], _: str) -> None:
        found[outcome(*pair)] += 1

    check()
    assert found["right"] >= SHARE * found.total(), found
