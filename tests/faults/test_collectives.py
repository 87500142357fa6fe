"""Every forgotten collective and every wrong group is caught by check or verification."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
from lowered import Lowered, captured, lower
from plans import HEAD, LLAMA, chain, dp_tp, experts, grid, sequence, three, tp, written
from planting import caught, checked, collectives, holders, missing, planted, swapped

from plancc.ir.layout import Part

PLANS = {
    "tp": (tp(2), "gpt2"),
    "sequence": (sequence(3), "dense"),
    "dp_tp": (dp_tp(2, 2), "llama"),
    "stages": (three(LLAMA, 1, 2, 2, 1), "dense"),
    "chain": (chain(2, 3), "gpt2"),
    "experts": (experts(4, "moe"), "moe"),
    "exchange": (
        HEAD + grid(("a", 3)) + "place ** on base { split batch over a }\n"
        "place layers.* { split seq over a }\nplace layers.*.self_attn { split heads over a }\n",
        "dense",
    ),
}  # fmt: skip


@cache
def forward(plan: str) -> Lowered:
    """One of PLANS, the forward phase alone; sound before anything is planted."""
    text, model = PLANS[plan]
    lowered = lower(written(text, model), captured(model), phases=("forward",))
    assert not caught(lowered)
    return lowered


@pytest.mark.parametrize("plan", PLANS)
def test_every_forgotten_collective_is_caught(plan: str) -> None:
    """Each in turn: its operand passes as its result, on all ranks."""
    lowered = forward(plan)
    steps = list(collectives(lowered))
    assert len(steps) > 4
    assert [s for s in steps if not caught(planted(lowered, swapped(s, missing(s))))] == []


@pytest.mark.parametrize("plan", ["dp_tp", "stages", "chain", "experts"])
def test_a_collective_that_one_class_lacks_is_caught(plan: str) -> None:
    """Where only some programs forget it; without running anything if the stage has several."""
    lowered = forward(plan)
    for step in collectives(lowered, "all_reduce", "all_gather", "reduce_scatter", "all_to_all"):
        places = holders(lowered, step)
        faulty = planted(lowered, swapped(step, None), places[:1])
        assert caught(faulty)
        assert not len(places) > 1 or checked(faulty)


def test_all_kinds_are_among_them() -> None:
    """The plans above have every kind of collective."""
    kinds = {step.kind for plan in PLANS for step in collectives(forward(plan))}
    assert kinds == {"all_reduce", "all_gather", "reduce_scatter", "all_to_all", "shard", "once"}


def other_axis(part: Part) -> Part:
    """The same part on the other axis of a 2 x 2 mesh."""
    return replace(part, axis={"dp": "tp", "tp": "dp"}[part.axis])


def test_every_wrong_group_is_caught() -> None:
    """A sum over dp instead of tp: the same shapes, other ranks."""
    lowered = forward("dp_tp")
    for step in collectives(lowered, "all_reduce"):
        wrong = replace(step, parts=tuple(map(other_axis, step.parts)))
        assert caught(planted(lowered, swapped(step, wrong)))


def test_collectives_in_another_order_are_caught() -> None:
    """One class of a shared stage runs two of them the other way round."""
    text = HEAD + grid(("tp", 2), name="x") + grid(("tp", 3), name="y") + (
        "place ** on x\nplace layers.0.mlp on y\nplace $attn { split heads over tp }\n"
        "place $mlp { split ffn over tp }\n"
    )  # fmt: skip
    lowered = lower(written(text, "dense"), captured("dense"), phases=("forward",))
    assert not caught(lowered)
    first, second = [s for s in collectives(lowered, "all_reduce") if s.out.stage.mesh == "x"][:2]
    whole = holders(lowered, first)

    def reverse(program):
        steps = [
            second if s == first else first if s == second else s for s in program.instructions
        ]
        return replace(program, instructions=tuple(steps))

    assert checked(planted(lowered, reverse, whole[:1])) or len(whole) == 1
    assert caught(planted(lowered, reverse))
