"""Transfers between meshes: dropped, doubled, swapped, misdirected ones are caught."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
from lowered import Lowered, captured, lower
from plans import HEAD, grid
from planting import caught, checked, planted, programs_of, swapped

from plancc.ir.program import RankProgram, Recv, Send

PLAN = (
    HEAD + grid(("tp", 2), name="x") + grid(("tp", 3), name="y", first=2)
    + "place ** on x\nplace layers.*.mlp on y { split ffn over tp }\n"
    "place layers.*.self_attn { split heads over tp }\n"
)  # fmt: skip


@cache
def forward() -> Lowered:
    """Attention on two ranks, mlps on three others: two transfers a layer."""
    lowered = lower(PLAN, captured("dense"), phases=("forward",))
    assert not caught(lowered)
    return lowered


def sides(kind: type) -> list[tuple[int, Send | Recv]]:
    """(place of the program, instruction) of every send or receive."""
    programs = programs_of(forward()).programs
    return [
        (i, step)
        for i, p in enumerate(programs)
        for step in p.instructions
        if isinstance(step, kind)
    ]


@pytest.mark.parametrize("kind", [Send, Recv])
def test_a_dropped_side_is_seen_without_running(kind: type) -> None:
    """Each send and each receive in turn."""
    found = sides(kind)
    assert len(found) == 4
    for _, step in found:
        problems = checked(planted(forward(), swapped(step, None)))
        assert problems and f"transfer {step.edge.index} of {step.edge.value}" in problems[0]


@pytest.mark.parametrize("kind", [Send, Recv])
def test_a_doubled_side_is_seen_without_running(kind: type) -> None:
    """Each send and each receive twice."""
    for place, step in sides(kind):

        def twice(program: RankProgram, step: Send | Recv = step) -> RankProgram:
            at = program.instructions.index(step)
            steps = (*program.instructions[: at + 1], step, *program.instructions[at + 1 :])
            return replace(program, instructions=steps)

        assert checked(planted(forward(), twice, [place]))


def exchanged(a: object, b: object):
    """Programs with two instructions in each other's place."""

    def change(program: RankProgram) -> RankProgram:
        steps = (b if s == a else a if s == b else s for s in program.instructions)
        return replace(program, instructions=tuple(steps))

    return change


def test_swapped_sends_are_caught() -> None:
    """Every pair of sends of a class that carries two values of one shape."""
    found = sides(Send)
    pairs = [(a, b) for i, (p, a) in enumerate(found) for q, b in found[:i] if p == q]
    assert pairs
    for a, b in pairs:
        wrong = replace(a, operand=b.operand), replace(b, operand=a.operand)
        faulty = planted(forward(), swapped(a, wrong[0]))
        assert caught(faulty)
        assert caught(planted(faulty, swapped(b, wrong[1])))
        assert caught(planted(forward(), exchanged(a, b)))


def test_an_edge_to_other_ranks_is_seen_without_running() -> None:
    """Both sides must see one edge alike."""
    _, step = sides(Send)[0]
    wrong = replace(step, edge=replace(step.edge, target=step.edge.source))
    assert checked(planted(forward(), swapped(step, wrong)))


def test_a_circle_of_waits_is_seen_without_running() -> None:
    """Both meshes receive before they send."""

    def late(program: RankProgram) -> RankProgram:
        wait = next(s for s in program.instructions if isinstance(s, Recv))
        rest = (s for s in program.instructions if s != wait)
        return replace(program, instructions=(wait, *rest))

    problems = checked(planted(forward(), late))
    assert problems and problems[0].startswith("deadlock: ")
