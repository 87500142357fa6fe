"""The oracle: the tables of torch.distributed.pipelining, computed without processes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from torch.distributed.pipelining import schedules as torch_schedules

from plancc.dsl import Source, load_plan
from plancc.dsl.diagnostics import Report
from plancc.ir.schedule import (
    Action,
    Schedule,
    bubble_share,
    makespan,
    peak_activations,
    schedule_problems,
)
from plancc.passes.plan_schedule import check_schedules, pipeline_schedule
from plancc.passes.schedule_orders import build_schedule

KINDS = {"FORWARD": "F", "FULL_BACKWARD": "B", "BACKWARD_INPUT": "I", "BACKWARD_WEIGHT": "W"}
COUNTS = [(stages, batches) for stages in range(2, 7) for batches in range(1, 14)]


def fakes(stages: int, virtual: int) -> list[SimpleNamespace]:
    """What torch wants to know of the stages of rank 0."""
    return [
        SimpleNamespace(
            group_size=stages, group_rank=0, num_stages=stages * virtual, stage_index=v * stages,
            is_last=False, is_first=not v, submod=None,
        )
        for v in range(virtual)
    ]  # fmt: skip


def of_torch(name: str, stages: int, batches: int, virtual: int = 1) -> Schedule:
    """A table of torch as ours; ValueError where torch does not take the numbers."""
    kind = getattr(torch_schedules, name)
    found = fakes(stages, virtual)
    single = issubclass(kind, torch_schedules.PipelineScheduleSingle)
    order = kind(found[0] if single else found, batches).pipeline_order
    rows = tuple(
        tuple(
            Action(KINDS[a.computation_type.name], a.stage_index, a.microbatch_index)
            for a in order[rank]
            if a is not None and a.computation_type.name in KINDS
        )
        for rank in range(stages)
    )
    return Schedule(rows, stages, virtual, batches, name)


class Recorder(SimpleNamespace):
    """A stage that computes and sends nothing, and remembers what it was asked to run."""

    def __getattr__(self, name: str):
        """Every `get_..._ops` gives no operations; anything else does nothing."""
        return lambda *args, **options: [] if name.startswith("get_") else None

    def forward_one_chunk(self, batch: int, *args: object, **options: object) -> None:
        """Remember a forward."""
        self.seen.append(Action("F", self.stage_index, batch))

    def backward_one_chunk(self, batch: int, *args: object, **options: object) -> None:
        """Remember a backward."""
        self.seen.append(Action("B", self.stage_index, batch))


def recorded(name: str, rank: int, stages: int, batches: int) -> tuple[Action, ...]:
    """What a rank of torch runs in one step."""
    stage = Recorder(num_stages=stages, stage_index=rank, is_last=False, submod=None, seen=[])
    schedule = getattr(torch_schedules, name)(stage, batches)
    schedule._initialize_stage = lambda *args: None
    schedule._step_microbatches()
    return tuple(stage.seen)


@pytest.mark.parametrize(("ours", "theirs"), [("GPipe", "ScheduleGPipe"), ("1F1B", "Schedule1F1B")])
def test_one_stage_a_rank(ours: str, theirs: str) -> None:
    """GPipe and 1F1B, action by action; torch's 1F1B wants as many micro-batches as stages."""
    for stages, batches in COUNTS:
        if ours == "GPipe" or batches >= stages:
            mine = build_schedule(ours, stages, batches)
            for rank in range(stages):
                assert mine.rows[rank] == recorded(theirs, rank, stages, batches)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("interleaved", "ScheduleInterleaved1F1B"), ("zero_bubble", "ScheduleInterleavedZeroBubble")],
)
@pytest.mark.parametrize("virtual", [1, 2, 3])
def test_several_stages_a_rank(ours: str, theirs: str, virtual: int) -> None:
    """The same order wherever torch has one; never slower, never holding more."""
    same = 0
    for stages, batches in COUNTS:
        mine = build_schedule(ours, stages, batches, virtual)
        try:
            other = of_torch(theirs, stages, batches, virtual)
        except ValueError:
            continue
        same += 1
        if ours == "zero_bubble" or virtual > 1:
            assert mine.rows == other.rows
        assert schedule_problems(other) == []
        assert makespan(mine) <= makespan(other)
        assert bubble_share(mine) <= bubble_share(other)
        assert max(peak_activations(mine)) <= max(peak_activations(other))
    assert same > 30


@pytest.mark.parametrize(
    ("name", "virtual"),
    [
        ("ScheduleGPipe", 1),
        ("ScheduleLoopedBFS", 2),
        ("ScheduleInterleaved1F1B", 2),
        ("ScheduleInterleavedZeroBubble", 2),
    ],
)
@pytest.mark.parametrize(("stages", "batches"), [(2, 4), (4, 8), (3, 3)])
def test_their_tables_in_our_plans(name: str, virtual: int, stages: int, batches: int) -> None:
    """A table of torch, written into a plan, is the schedule of the plan."""
    theirs = of_torch(name, stages, batches, virtual)
    rows = ", ".join(f'"{" ".join(map(theirs.label, row))}"' for row in theirs.rows)
    text = (
        "plan tables, edition 1\nmodel m { mode = train; layers = 12 }\n"
        f"mesh base[pp = {stages}] on local\nplace ** on base\n"
        "place layers.* { split layers over pp }\n"
        f"pipeline over base.pp {{ virtual = {virtual}; schedule = [{rows}] }}\n"
    )
    plan, report = load_plan(Source("tables.plan", text))
    assert plan is not None, report.diagnostics
    found = pipeline_schedule(plan)
    assert found is not None and found.rows == theirs.rows and found.batches == batches
    told = Report()
    check_schedules(plan, told)
    assert not told.diagnostics


def test_a_v_is_another_layout() -> None:
    """Where rank 0 holds the first and the last stage, the check says which chunk is elsewhere."""
    problems = schedule_problems(of_torch("ScheduleZBVZeroBubble", 2, 4, 2))
    assert "chunk 3 lives on pipeline rank 1, not 0" in problems
