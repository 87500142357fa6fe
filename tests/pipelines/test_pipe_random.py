"""Random pipelines: schedules, axes, tables, neighbours and shared state together, against one device."""

from __future__ import annotations

import random

import pytest
from lowered import explain_failure
from pipe_cases import HEAD, trained

from plancc.ir.schedule import Action, Schedule, schedule_problems
from plancc.passes.schedule_orders import build_schedule

LAYERS = 6
NAMED = ("GPipe", "1F1B", "interleaved", "zero_bubble")


def random_line(pick: random.Random, pp: int, virtual: int, batches: int) -> str:
    """A schedule by name, or one whose rows were shuffled as far as it stays right."""
    names = [n for n in NAMED if (virtual > 1) == (n == "interleaved") or n == "zero_bubble"]
    name = pick.choice(names)
    if pick.random() < 0.5:
        return (
            f'pipeline over base.pp {{ schedule = "{name}"; virtual = {virtual}; '
            f"microbatches = {batches} }}\n"
        )
    found = shuffled(pick, build_schedule(name, pp, batches, virtual))
    rows = ", ".join(f'"{" ".join(map(found.label, row))}"' for row in found.rows)
    return f"pipeline over base.pp {{ schedule = [{rows}]; virtual = {virtual} }}\n"


def shuffled(pick: random.Random, schedule: Schedule) -> Schedule:
    """Some backwards split, some neighbours in a row swapped; still without a problem."""
    rows = [list(row) for row in schedule.rows]
    for row in rows:
        for at, action in enumerate(list(row)):
            if action.kind == "B" and pick.random() < 0.3:
                row[row.index(action)] = Action("I", action.chunk, action.batch)
                later = pick.randint(at, len(row))
                row.insert(max(later, row.index(Action("I", action.chunk, action.batch)) + 1),
                           Action("W", action.chunk, action.batch))  # fmt: skip
    best = Schedule(
        tuple(map(tuple, rows)), schedule.stages, schedule.virtual, schedule.batches, "t"
    )
    assert not schedule_problems(best), schedule_problems(best)
    for _ in range(20):
        rank = pick.randrange(schedule.stages)
        tried = [list(row) for row in best.rows]
        at = pick.randrange(max(1, len(tried[rank]) - 1))
        tried[rank][at : at + 2] = reversed(tried[rank][at : at + 2])
        other = Schedule(tuple(map(tuple, tried)), best.stages, best.virtual, best.batches, "t")
        best = best if schedule_problems(other) else other
    return best


def random_plan(seed: int) -> tuple[str, str]:
    """(plan, model) with a pipeline of up to 8 ranks and maybe a mesh beside it."""
    pick = random.Random(seed)
    dp, pp, tp = pick.choice(
        [(1, 2, 1), (2, 2, 1), (1, 3, 1), (1, 2, 2), (2, 2, 2), (1, 1, 2), (1, 4, 2)]
    )
    virtual = pick.choice([v for v in (1, 2, 3) if pp * v <= LAYERS])
    batches = pick.choice([1, 2, 3, 4, 5])
    size = dp * pp * tp
    model = pick.choice(["dense", "dense", "moe"])
    rules = ["split batch over dp"] if dp > 1 else []
    if dp > 1 and pick.random() < 0.7:
        state = pick.choice(["optim", "grads, optim", "params, grads, optim"])
        rules.append(f"split {state} over dp")
    if pick.random() < 0.4:
        rules.append(pick.choice(["recompute = selective", "recompute = true"]))
    lines = [
        f"mesh base[dp = {dp}, pp = {pp}, tp = {tp}] on local[0:{size}]",
        f"place ** on base {{ {'; '.join(rules)} }}" if rules else "place ** on base",
        "place layers.* { split layers over pp }",
    ]
    lines += [f"place {n} on base[pp = {c}]" for n, c in (("embed_tokens", 0), ("norm, lm_head", -1))
              if pick.random() < 0.8]  # fmt: skip
    if tp > 1:
        if pick.random() < 0.4:
            lines.append("place layers.*, norm { split seq over tp }")
        lines.append("place layers.*.self_attn { split heads over tp }")
        if pick.random() < 0.5:
            lines.append("place embed_tokens, lm_head { split vocab over tp }")
    other = pick.choice(["", "", "attention", "head", "experts" if model == "moe" else "attention"])
    first = pick.choice([size, 0])
    if other:
        lines.append(f"mesh far[fp = 2] on local[{first}:{first + 2}]")
    if other == "attention":
        cut = pick.choice(["heads", "kv_seq", "seq"])
        lines.append(f"place op attention in layers.*.self_attn on far {{ split {cut} over fp }}")
    if other == "head":
        lines.append("place norm, lm_head on far { split vocab over fp }")
    if other == "experts":
        lines.append("place layers.*.moe.experts on far { split experts over fp }")
    line = random_line(pick, pp, virtual, batches)
    return HEAD + "model m { mode = train }\n" + "\n".join(lines) + "\n" + line, model


@pytest.mark.parametrize("seed", range(24))
def test_random_pipelines(seed: int) -> None:
    """Loss and every gradient."""
    text, model = random_plan(seed)
    result = trained(text, LAYERS, model).verify()
    assert result.ok, f"{text}\n{explain_failure(result)}"
