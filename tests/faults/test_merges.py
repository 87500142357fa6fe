"""Every merge of partial attention that is forgotten, wrongly grouped or wrongly spread is caught,
and keys misplaced.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest
from lowered import Lowered, captured, lower
from planting import checked, planted, programs_of, swapped
from pools import PoolPlan, overlap

from plancc.ir.graph import Ref
from plancc.ir.layout import CutLeaf, Part
from plancc.ir.program import Compute, LocalRanges, Merge, RankProgram
from plancc.passes.check_programs import program_problems
from plancc.verification import Verification

PLANS = {
    "tree": PoolPlan(),
    "flat": PoolPlan(combine=""),
    "chunks": PoolPlan(comm=overlap(depth=2, batches=2)),
    "heads_first": PoolPlan(
        devices=8, per_node=4, axes="hp = 2, sp = 0..4",
        jobs=("split heads over hp", "split kv_seq over sp (block = ceil(seq_len / sp))"),
    ),
}  # fmt: skip
PHASES = ("forward", "prefill", "decode")


@cache
def pool(plan: str, phase: str) -> Lowered:
    """One phase of one of PLANS; sound before anything is planted."""
    phases = (phase,) if phase != "decode" else ("prefill", "decode")
    lowered = lower(PLANS[plan].text(), captured("dense"), phases=phases)
    assert not seen(lowered)
    return lowered


def merges(lowered: Lowered) -> Iterator[Merge]:
    """The merges of the last variant."""
    for program in programs_of(lowered).programs:
        yield from (step for step in program.instructions if isinstance(step, Merge))


def seen(lowered: Lowered) -> bool:
    """Whether the check, or the verification of the last unit, sees that the programs are wrong."""
    work = Verification(lowered.compiled, lowered.artifact)
    return bool(checked(lowered)) or not work.verify_unit(lowered.compiled.units[-1])[0].ok


def uncaught(lowered: Lowered, faults) -> list:
    """The (old, new) instructions that nobody notices."""
    return [old for old, new in faults if not seen(planted(lowered, swapped(old, new)))]


def forgotten(step: Merge) -> Compute:
    """The partial result passes as the merged one."""
    return Compute("aten.clone.default", (Ref(step.operand),), {}, (step.out,), step.origin)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("plan", PLANS)
def test_every_forgotten_merge_is_caught(plan: str, phase: str) -> None:
    """Each in turn, and the last one of a tree: nodes would not see each other's keys."""
    lowered = pool(plan, phase)
    found = list(merges(lowered))
    assert found
    assert uncaught(lowered, [(step, forgotten(step)) for step in found]) == []


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("plan", ["tree", "chunks", "heads_first"])
def test_every_wrong_group_is_caught(plan: str, phase: str) -> None:
    """A merge inside nodes where one across was meant, and the other way; or over another axis."""
    lowered = pool(plan, phase)
    faults = []
    for step in merges(lowered):
        for part in other_parts(step.part):
            faults.append((step, replace(step, part=part)))
            faults.append((step, replace(step, part=part, spread=(part,))))
    assert faults
    assert uncaught(lowered, faults) == []


def other_parts(part: Part) -> list[Part]:
    """Other groups of as many ranks."""
    if part.size == 4 and part.count == 2:
        return [replace(part, stride=3 - part.stride)]
    return [replace(part, stride=2, count=2), replace(part, stride=1, count=2)]


@pytest.mark.parametrize("phase", PHASES)
def test_heads_spread_in_another_order_are_caught(phase: str) -> None:
    """Each rank keeps the heads that another one should keep."""
    lowered = pool("flat", phase)
    faults = []
    for step in merges(lowered):
        inner, outer = (replace(step.part, stride=s, count=2) for s in (1, 2))
        faults.append((step, replace(step, spread=(inner, outer))))
    assert uncaught(lowered, faults) == []


@pytest.mark.parametrize("phase", PHASES)
def test_rows_of_another_chunk_are_caught(phase: str) -> None:
    """The logsumexp of one chunk of heads beside the result of the other."""
    lowered = pool("chunks", phase)
    first, second = [s for s in merges(lowered) if s.part.stride == 1][:2]
    faults = [
        (second, replace(second, rows=first.rows)),
        (first, replace(first, operand=second.operand)),
    ]
    assert uncaught(lowered, faults) == []


@pytest.mark.parametrize("phase", ["forward", "prefill"])
@pytest.mark.parametrize("wrong", ["others", "later"])
def test_misplaced_keys_are_caught(wrong: str, phase: str) -> None:
    """Keys that are taken to stand where other ranks have theirs, or queries to come later."""
    lowered = pool("tree", phase)
    found = [s for p in programs_of(lowered).programs for s in p.instructions if is_over_keys(s)]
    assert found
    assert seen(planted(lowered, lambda program: with_keys(program, wrong)))


def is_over_keys(step: object) -> bool:
    """Attention over this rank's keys."""
    return isinstance(step, Compute) and step.target == "plancc.attention_over_keys.default"


def with_keys(program: RankProgram, wrong: str) -> RankProgram:
    """The program with other positions for its keys, or later queries."""
    steps = []
    for step in program.instructions:
        if is_over_keys(step) and wrong == "others":
            tree = step.kwargs["keys"].tree
            parts = tuple(replace(part, rule="balanced", stride=2, count=2) for part in tree.parts)
            keys = LocalRanges(CutLeaf(tree.id, tree.size, parts))
            step = replace(step, kwargs={**step.kwargs, "keys": keys})
        elif is_over_keys(step):
            step = replace(step, kwargs={**step.kwargs, "q_start": 2})
        steps.append(step)
    return replace(program, instructions=tuple(steps))


def test_a_merge_that_one_class_lacks_is_caught_before_anything_runs() -> None:
    """Where pool ranks are base ranks too, two classes share the pool's stage."""
    lowered = pool("tree", "forward")
    programs = programs_of(lowered)
    place = next(
        i
        for i, p in enumerate(programs.programs)
        if any(isinstance(s, Merge) for s in p.instructions)
    )
    half = programs.programs[place]
    step = next(merges(lowered))
    ranks = half.ranks[:2], half.ranks[2:]
    split = (
        replace(half, ranks=ranks[0]),
        replace(swapped(step, None)(half), name="other", ranks=ranks[1]),
    )
    others = tuple(p for i, p in enumerate(programs.programs) if i != place)
    assert not program_problems(replace(programs, programs=(*others, half)))
    assert program_problems(replace(programs, programs=(*others, *split)))
    assert checked(lowered) == []
