"""Pools that cannot work are refused with diagnostics, before anything runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from lowered import EXAMPLES, lower
from pools import PoolPlan, overlap, pool_model

from plancc.compiler import Compiled
from plancc.dsl import PlanError
from plancc.passes.estimate_memory import largest_inputs, program_memory

PLAN = PoolPlan()


def refused(text: str, model: str = "dense") -> list[tuple[str, str]]:
    """(code, message) of the errors for a plan."""
    with pytest.raises(PlanError) as caught:
        lower(text, pool_model(model))
    return [(d.code, d.message) for d in caught.value.diagnostics if d.level == "error"]


def example(old: str, new: str) -> str:
    """The text of the example with one part changed."""
    text = (EXAMPLES / "fa_pool.plan").read_text()
    assert old in text
    return text.replace(old, new)


def test_a_gap_between_the_guards_is_refused() -> None:
    """Attention goes to the pool before the pool has devices."""
    found = refused(example("when seq_len > long {", "when seq_len > long / 2 {"))
    assert [code for code, _ in found] == ["P406"]
    assert "may be empty" in found[0][1]


def test_a_pool_larger_than_the_cluster_is_refused() -> None:
    """64 ranks on 32 devices."""
    found = refused(example("sp = 0..32 step 8", "sp = 0..64 step 8"))
    assert found == [("P201", "pool `fa` needs 64 devices but is given 32")]


def test_a_step_that_the_pool_cannot_take_is_refused() -> None:
    """12 is no multiple of 8."""
    assert [code for code, _ in refused(example("sp = 16 when", "sp = 12 when"))] == ["P403"]


def test_a_step_that_never_holds_is_refused() -> None:
    """Beyond the declared lengths; and without it the pool is empty where it is used."""
    text = example("sp = 8  when seq_len > long", "sp = 8 when seq_len > 32 * long")
    assert [code for code, _ in refused(text)] == ["P402", "P406"]


def test_a_budget_that_cannot_hold_the_cache_is_refused() -> None:
    """The note says what the cache takes, and in which phase."""
    found = refused(example("budget = 45GB", "budget = 20MB"))
    assert found and all(code == "P602" for code, _ in found)
    assert any("`fa` needs" in title for _, title in found)


def test_a_budget_of_the_base_is_refused() -> None:
    """Short sequences keep their cache on the base."""
    found = refused(example("budget = 65GB", "budget = 20MB"))
    assert any(code == "P602" and "`base` needs" in title for code, title in found)


def test_an_axis_that_the_pool_lacks_is_refused() -> None:
    """tp is an axis of the base."""
    found = refused(replace(PLAN, jobs=("split kv_seq over tp",)).text())
    assert [code for code, _ in found] == ["P301"]


def test_more_chunks_than_heads_compiles() -> None:
    """A base device with four heads sends four chunks at most."""
    lowered = lower(replace(PLAN, comm=overlap(depth=8)).text(), pool_model("dense"))
    assert lowered.verify().ok


def test_queries_in_a_zigzag_are_not_supported_yet() -> None:
    """Keys can lie in a zigzag, queries cannot."""
    plan = replace(PLAN, jobs=("split q_seq over sp (layout = zigzag)",), combine="")
    assert [code for code, _ in refused(plan.text())] == ["P901"]


def cache_of(compiled: Compiled, variant: int) -> int:
    """Bytes of cache on the fullest pool rank in decode."""
    unit = next(
        u for u in compiled.units if (u.graph.phase, u.variant.index) == ("decode", variant)
    )
    assert unit.programs is not None
    program = next(p for p in unit.programs.programs if p.name.startswith("fa"))
    return program_memory(program, unit.programs, largest_inputs(unit)[0]).cache


@pytest.mark.parametrize("layout", ["", " (block = ceil(seq_len / sp))", " (layout = zigzag)"])
def test_the_cache_of_a_pool_rank_is_its_share_of_the_positions(layout: str) -> None:
    """n / p positions of the longest input and a block of new ones: 2 layers, k and v of 32."""
    plan = replace(
        PLAN, jobs=(f"split kv_seq over sp{layout}",), steps=(("4", "seq_len > 6"),),
        inputs={"batch": "1..2", "seq_len": "1..150"},
    )  # fmt: skip
    compiled = lower(plan.text(), pool_model("dense")).compiled
    position = 2 * 2 * 32 * 4 * 2
    assert cache_of(compiled, 1) == (38 + 15) * position


def test_the_bound_on_tokens_limits_batch_and_length_together() -> None:
    """The longest input has few sequences, the widest is short."""
    inputs = {"batch": "1..64", "seq_len": "1..128", "tokens": "1..1024"}
    plan = replace(PLAN, inputs=inputs)
    found = {
        largest_inputs(unit) for unit in lower(plan.text(), pool_model("dense")).compiled.units
    }
    assert found == {((64, 6),), ((64, 12),), ((8, 128), (64, 16))}
