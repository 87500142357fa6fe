"""Verification on shrunk dims: right programs stay right, wrong ones are caught as at full size."""

from __future__ import annotations

import pytest
from lowered import Lowered, captured, explain_failure, lower
from plans import LLAMA, chain, dp_tp, experts, sequence, three, tp, written
from planting import collectives, missing, planted, swapped

from plancc.verification import check

WIDE = dict(hidden=128, ffn=150, vocab=310)
PLANS = {
    "uneven": (tp(3), "dense", WIDE),
    "dp_tp": (dp_tp(2, 3), "dense", WIDE),
    "sequence": (sequence(4), "dense", WIDE),
    "stages": (three(LLAMA, 1, 2, 3, 2), "dense", WIDE),
    "chain": (chain(2, 3), "dense", WIDE),
    "experts": (experts(4, "moe"), "moe", {**WIDE, "experts": 20}),
    "many_heads": (tp(6), "dense", {**WIDE, "heads": 32}),
}


@pytest.fixture(autouse=True)
def every_model_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verify on shrunk dims whatever the model's size."""
    monkeypatch.setattr(check, "SMALL_MODEL", 0)


def wide(plan: str, *phases: str) -> Lowered:
    """One of PLANS on a model with dims that shrink."""
    text, model, sizes = PLANS[plan]
    return lower(written(text, model), captured(model, tuple(sizes.items())), phases=phases or None)


@pytest.mark.parametrize("plan", PLANS)
def test_shrunk_programs_are_right(plan: str) -> None:
    """Every phase, with hidden, ffn and vocab a fraction of what they are."""
    result = wide(plan).verify()
    assert result.ok, explain_failure(result)
    assert {"ffn", "hidden"} <= set(result.shrunk) and result.shrunk["ffn"] < 30


@pytest.mark.parametrize("plan", ["uneven", "sequence", "stages"])
def test_shrunk_programs_that_are_wrong_are_caught(plan: str) -> None:
    """Every forgotten collective, one by one, with its name."""
    lowered = wide(plan, "forward")
    for step in collectives(lowered):
        result = planted(lowered, swapped(step, missing(step))).verify()
        assert not result.ok and result.shrunk and result.first_divergence is not None
