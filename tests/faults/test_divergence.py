"""What verification says of a fault: the first wrong value with its module, plan line and rank."""

from __future__ import annotations

from functools import cache

import pytest
from lowered import Lowered, captured, lower
from plans import LLAMA, chain, sequence, three, tp, written
from planting import collectives, missing, planted, swapped, verified_with_shift

from plancc.ir.program import Collective

PLANS = {
    "tp": (tp(2), "gpt2"),
    "sequence": (sequence(2), "llama"),
    "stages": (three(LLAMA, 1, 2, 2, 1), "llama"),
    "micro": (three(LLAMA, 1, 2, 2, 2), "llama"),
    "chain": (chain(2, 3), "llama"),
}
# plan, kind, module, its stage's first rank
FORGOTTEN = {
    "embedding": ("tp", "all_reduce", "transformer.wte", 0),
    "attention": ("tp", "all_reduce", "transformer.h.1.attn.c_proj", 0),
    "mlp": ("tp", "all_reduce", "transformer.h.0.mlp.c_proj", 0),
    "bias": ("tp", "once", "transformer.h.1.mlp.c_proj", 0),
    "scatter": ("sequence", "reduce_scatter", "model.layers.1.mlp.down_proj", 0),
    "gather": ("sequence", "all_gather", "model.layers.1.self_attn.q_proj", 0),
    "second_stage": ("stages", "all_reduce", "model.layers.1.mlp.down_proj", 2),
    "micro_batches": ("micro", "all_reduce", "model.layers.1.self_attn.o_proj", 2),
    "second_mesh": ("chain", "all_reduce", "model.layers.1.self_attn.o_proj", 2),
}


@cache
def lowered(plan: str, phase: str = "forward") -> Lowered:
    """One of PLANS, one phase."""
    text, model = PLANS[plan]
    phases = ("prefill", "decode") if phase == "decode" else (phase,)
    return lower(written(text, model), captured(model), phases=phases)


def forgotten(plan: str, kind: str, module: str) -> Collective:
    """The first collective of a kind in a module."""
    return next(s for s in collectives(lowered(plan), kind) if s.origin.path == module)


@pytest.mark.parametrize("case", FORGOTTEN)
def test_the_first_wrong_value_is_named(case: str) -> None:
    """A forgotten collective: its own result, the plan line behind it, a rank of its stage.

    A bias has no value on one device: there it is the sum that it spoils.
    """
    plan, kind, module, rank = FORGOTTEN[case]
    step = forgotten(plan, kind, module)
    result = planted(lowered(plan), swapped(step, missing(step))).verify()
    found = result.first_divergence
    assert not result.ok and found is not None
    assert found.path == module
    assert found.value == step.out.name or kind == "once"
    assert found.rank == rank or (kind == "all_gather" and found.rank == rank + 1)
    assert step.origin.span is not None
    assert found.plan_line == str(step.origin.span) and "inline.plan:" in found.plan_line
    assert found.line == step.origin.line
    assert found.error > 1e-3
    text = str(found)
    assert module in text and found.plan_line in text and f"on rank {found.rank}" in text


@pytest.mark.parametrize("plan", ["tp", "stages", "chain"])
def test_a_fault_in_decode_is_named(plan: str) -> None:
    """The cached step is wrong, prefill is right; values of one new position are compared."""
    base = lowered(plan, "decode")
    steps = [s for s in collectives(base, "all_reduce") if s.origin.path.endswith("_proj")]
    step = steps[-1]
    result = planted(base, swapped(step, missing(step))).verify()
    assert [v.ok for v in result.variants] == [True, False]
    found = result.first_divergence
    assert found is not None
    assert (found.value, found.path) == (step.out.name, step.origin.path)


def test_the_plan_line_is_the_one_that_splits() -> None:
    """`split ffn` for a sum behind the mlp, `split heads` for one behind attention."""
    text = written(*PLANS["tp"]).splitlines()
    for module, words in (("h.1.mlp.c_proj", "split ffn"), ("h.1.attn.c_proj", "split heads")):
        step = forgotten("tp", "all_reduce", f"transformer.{module}")
        assert step.origin.span is not None
        assert words in text[step.origin.span.line - 1]


def test_a_wrong_weight_on_one_rank_names_the_rank() -> None:
    """Rank 1 reads a column-parallel weight one row further on."""
    found = verified_with_shift(lowered("stages"), "model.layers.0.mlp.up_proj.weight", 0, 1)
    assert found.first_divergence is not None
    assert found.first_divergence.path == "model.layers.0.mlp.up_proj"
    assert found.first_divergence.rank == 1


def test_right_programs_have_no_divergence() -> None:
    """Nothing is named where nothing is wrong."""
    for plan in PLANS:
        result = lowered(plan).verify()
        assert result.ok and result.first_divergence is None
