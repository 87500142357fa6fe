"""Taking turns keeps both groups busy: idle shares from the order of instructions, with and without."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
from idle import Costs, idle_shares, without_pauses
from lowered import captured, lower
from moe_cases import LAYOUTS, MA, ratio
from moe_plans import Plan, overlap

from plancc.ir.program import ProgramSet, Recv

SIZES = dict(hidden=32, heads=4, kv_heads=2, experts=16, ffn=8)
PHASES = ("forward", "prefill", "decode", "train")


@cache
def programs(plan: str, layers: int, phase: str, depth: int) -> ProgramSet:
    """The programs of one phase; depth 1: without turns."""
    chosen = {"ma": MA, "3+2": ratio(3, 2), "2+4": ratio(2, 4)}[plan]
    text = replace(chosen, tail=overlap(depth) if depth > 1 else "").text
    graph = captured("moe", tuple(sorted({**SIZES, "layers": layers}.items())))
    unit = lower(text, graph, phases=(phase,)).compiled.units[0]
    assert unit.programs is not None
    return unit.programs


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("plan", ["ma", "2+4"])
def test_without_turns_a_group_waits_while_the_other_works(plan: str, phase: str) -> None:
    """Layers of equal cost: each group is idle half of the time."""
    shares = idle_shares(programs(plan, 2, phase, 1))
    assert shares == pytest.approx({"attn": 0.5, "moe": 0.5})


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("layers", [2, 4])
def test_turns_keep_both_groups_busy(layers: int, phase: str) -> None:
    """Two micro-batches: each group waits for one layer of one micro-batch at the ends only."""
    shares = idle_shares(programs("ma", layers, phase, 2))
    print(f"{phase}, {layers} layers, 2 micro-batches: {shares}")
    assert shares == pytest.approx(dict.fromkeys(("attn", "moe"), 1 / (2 * layers + 1)))


@pytest.mark.parametrize("depth", [3, 4])
def test_more_micro_batches_wait_less(depth: int) -> None:
    """The ends are one micro-batch's layer, of `depth` times the layers."""
    shares = idle_shares(programs("3+2", 2, "forward", depth))
    assert shares == pytest.approx(dict.fromkeys(("attn", "moe"), 1 / (2 * depth + 1)))


@pytest.mark.parametrize("phase", PHASES)
def test_the_slower_group_is_busy(phase: str) -> None:
    """Experts that take twice as long: they wait for the first layer only; attention for them."""
    found = programs("ma", 4, phase, 2)
    shares = idle_shares(found, Costs(1.0, 2.0))
    plain = idle_shares(programs("ma", 4, phase, 1), Costs(1.0, 2.0))
    print(f"{phase}, experts twice as slow: {plain} without turns, {shares} with")
    assert plain == pytest.approx({"attn": 2 / 3, "moe": 1 / 3})
    assert shares["moe"] < 0.12 and shares["attn"] == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("phase", PHASES)
def test_removed_pauses_are_seen(phase: str) -> None:
    """A planted fault: the same programs without their pauses wait as much as without turns."""
    found = programs("ma", 4, phase, 2)
    pauses = [s for p in found.programs for s in p.instructions if isinstance(s, Recv) and s.pause]
    assert pauses
    bare = without_pauses(found)
    assert idle_shares(found)["moe"] < 0.15
    assert idle_shares(bare)["moe"] > 0.3


def test_one_pause_removed_is_seen() -> None:
    """A single missing pause raises both shares."""
    found = programs("ma", 4, "forward", 2)
    first = found.programs[0]
    at = next(i for i, s in enumerate(first.instructions) if isinstance(s, Recv) and s.pause)
    steps = list(first.instructions)
    steps[at] = replace(steps[at], pause=False)  # type: ignore[type-var]
    bad = replace(found, programs=(replace(first, instructions=tuple(steps)), *found.programs[1:]))
    good = idle_shares(found)
    assert all(share > good[mesh] for mesh, share in idle_shares(bad).items())


def test_two_groups_of_experts() -> None:
    """Layers whose experts lie on different meshes: attention is as busy, each group half as much."""
    plan: Plan = LAYOUTS["two groups of experts in turns"]
    graph = captured("moe", tuple(sorted({**SIZES, "layers": 2}.items())))
    unit = lower(plan.text, graph, phases=("forward",)).compiled.units[0]
    assert unit.programs is not None
    shares = idle_shares(unit.programs)
    assert shares["attn"] < 0.34 and shares["moe"] == pytest.approx(shares["moe2"])
