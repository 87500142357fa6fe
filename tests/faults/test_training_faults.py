"""Every fault planted in the backward or the reduction of a training program is caught.

Verification names a parameter, the static check whatever does not match.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
from lowered import Lowered, captured, lower
from plans import HEAD, LLAMA, chain, dp_tp, experts, grid, sequence, three, tp, written
from planting import checked, programs_of
from training_faults import Edit, backward_lines, calls, named, operand, replaced, result_of

from plancc.ir.program import Bucket, Collective, Recv, Send
from plancc.passes.check_programs import program_problems

PLANS = {
    "tp": (tp(2), "gpt2"),
    "sequence": (sequence(2), "qwen3"),
    "stages": (three(LLAMA, 2, 2, 2, 2), "dense"),
    "chain": (chain(2, 3), "gpt2"),
    "experts": (experts(2, "moe"), "moe"),
    "dp_tp": (dp_tp(2, 2), "qwen3"),
    "exchange": (
        HEAD + grid(("a", 3)) + "place ** on base { split batch over a }\n"
        "place layers.* { split seq over a }\nplace layers.*.self_attn { split heads over a }\n",
        "dense",
    ),
}  # fmt: skip
SOME = ("tp", "stages", "chain")
OTHERS = [pytest.param(p, marks=pytest.mark.slow) for p in PLANS if p not in SOME]
ALL = [*SOME, *OTHERS]


@cache
def training(plan: str) -> Lowered:
    """One of PLANS, phase "train"; sound before anything is planted."""
    text, model = PLANS[plan]
    lowered = lower(written(text, model), captured(model), phases=("train",))
    assert not checked(lowered) and lowered.verify().ok
    return lowered


def unnoticed(plan: str, edits: list[Edit]) -> list[str]:
    """The faults of which verification says nothing, or names no parameter."""
    assert edits
    found = []
    for edit in edits:
        result = result_of(training(plan), edit)
        if result.ok or named(result) is None:
            found.append(f"{edit[1].strip()}: {result.variants[0].message}")
    return found


@pytest.mark.parametrize("plan", ALL)
def test_every_forgotten_sum_is_caught(plan: str) -> None:
    """The operand passes as the result: conjugates in the backward, buckets, `once`."""
    lines = backward_lines(training(plan))
    sums = calls(lines, "all_reduce", "all_reduce_bucket", "once")
    assert unnoticed(plan, [replaced(line, m, operand(m)) for line, m in sums]) == []


@pytest.mark.parametrize("factor", ["2", "0"])
@pytest.mark.parametrize("plan", ALL)
def test_every_wrong_gradient_that_was_communicated_is_caught(plan: str, factor: str) -> None:
    """Twice what it should be (a sum made twice, a wrong scale), or lost on its way."""
    verbs = (
        "all_reduce",
        "all_gather",
        "reduce_scatter",
        "all_to_all",
        "shard",
        "recv",
        "transfer",
    )
    found = calls(backward_lines(training(plan)), *verbs)
    edits = [replaced(line, m, f"{factor} * {m['call']}") for line, m in found]
    assert unnoticed(plan, edits) == []


@pytest.mark.parametrize("plan", ALL)
def test_every_lost_contribution_is_caught(plan: str) -> None:
    """Where two gradients of one value meet, one of them is dropped."""
    lines = backward_lines(training(plan))
    edits = []
    for line in lines:
        if " = aten.add.Tensor(" in line:
            first = line.partition("aten.add.Tensor(")[2].partition(",")[0]
            edits.append((line, f"{line.partition(' = ')[0]} = {first}"))
        if "r.accumulate(" in line:
            edits.append((line, "    pass"))
    assert unnoticed(plan, edits) == []


@pytest.mark.parametrize("plan", ALL)
def test_every_segment_without_its_gradients_is_caught(plan: str) -> None:
    """Each `r.backward` in turn gets twice what is owed, so weights and leaves are wrong."""
    edits = []
    for line in backward_lines(training(plan)):
        head, _, rest = line.partition("r.backward(")
        if rest:
            outs, _, tail = rest.partition("), (")
            given, _, leaves = tail.partition("), (")
            doubled = "".join(f"2 * {name.strip()}, " for name in given.split(",") if name.strip())
            edits.append((line, f"{head}r.backward({outs}), ({doubled}), ({leaves}"))
    assert unnoticed(plan, edits) == []


@pytest.mark.parametrize("plan", ALL)
def test_swapped_gradients_are_caught(plan: str) -> None:
    """Two weights of one shape get each other's gradient."""
    lines = backward_lines(training(plan))
    edits = []
    for line in lines:
        pairs = line.strip().removeprefix("return {").removesuffix("}").split(", ")
        if not line.strip().startswith("return {") or len(pairs) < 4:
            continue
        layers = [p.split(": ") for p in pairs if "norm" in p or ".ln_" in p]
        (a, x), (b, y) = next(
            (p, q) for p in layers for q in layers if p[0] < q[0] and kind(p[0]) == kind(q[0])
        )
        new = line.replace(f"{a}: {x}", f"{a}: {y}").replace(f"{b}: {y}", f"{b}: {x}")
        edits.append((line, new))
    assert unnoticed(plan, edits) == []


def kind(key: str) -> str:
    """weight or bias."""
    return key.strip('"').rpartition(".")[2]


@pytest.mark.parametrize("plan", SOME)
def test_a_wrong_loss_gradient_is_caught(plan: str) -> None:
    """The seed is twice the loss's own gradient."""
    lines = [line for line in backward_lines(training(plan)) if "r.seed(" in line]
    assert unnoticed(plan, [(line, line.replace("r.seed(", "2 * r.seed(")) for line in lines]) == []


@pytest.mark.parametrize("plan", ["stages", "chain"])
def test_what_one_class_lacks_is_found_without_running(plan: str) -> None:
    """A send, a receive or a shared sum of the backward that one class leaves out."""
    programs = programs_of(training(plan))
    tried = 0
    for place, program in enumerate(programs.programs):
        start = next(s.start for s in program.sections if s.kind == "backward")
        for at in range(start, len(program.instructions)):
            step = program.instructions[at]
            shared = isinstance(step, (Collective, Bucket)) and any(
                step in other.instructions for other in programs.programs if other is not program
            )
            if not isinstance(step, (Send, Recv)) and not shared:
                continue
            if isinstance(step, Collective) and step.kind in ("shard", "once"):
                continue
            left = (*program.instructions[:at], *program.instructions[at + 1 :])
            classes = list(programs.programs)
            classes[place] = replace(program, instructions=left)
            assert program_problems(replace(programs, programs=tuple(classes))), step
            tried += 1
    assert tried
