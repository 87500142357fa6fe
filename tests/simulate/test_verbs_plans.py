"""Predicted calls of the transport are those that ranks make, for every example plan."""

from __future__ import annotations

import pytest
from lowered import captured, lower
from noted import differences, inference
from test_example_plans import CASES


@pytest.mark.parametrize("case", CASES)
def test_an_example(case: str) -> None:
    """Every phase of each example plan, to the byte."""
    plan, sets, model, sizes = CASES[case]
    lowered = lower(plan, captured(model, tuple(sizes.items())), sets)
    for unit in lowered.compiled.units:
        found = inference(lowered, unit)
        wrong = differences(lowered, unit.programs, [steps[-1] for steps in found])
        assert not wrong, wrong[0]
        assert any(one[-1].calls for one in found)
