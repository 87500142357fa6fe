"""The schedule of a plan's pipeline, and what can be said of it without a model (P503, P508).

In: a resolved plan. Out: a checked `Schedule` for the passes that emit training programs. Loads no torch.
"""

from __future__ import annotations

from collections.abc import Mapping

from plancc.dsl.diagnostics import Report
from plancc.dsl.plan import Pipeline, ResolvedPlan
from plancc.dsl.schedules import word_spans
from plancc.dsl.source import Span
from plancc.ir.schedule import Action, Schedule, bubble_share, find_problems
from plancc.passes.schedule_orders import build_schedule


def pipeline_schedule(plan: ResolvedPlan) -> Schedule | None:
    """The schedule of the plan's pipeline, None without one (check_schedules tells if it is right)."""
    return schedule_of(plan, plan.pipelines[0]) if plan.pipelines else None


def schedule_of(plan: ResolvedPlan, pipeline: Pipeline) -> Schedule:
    """The schedule of one pipeline."""
    stages = pipeline_stages(plan, pipeline)
    return build_schedule(
        pipeline.schedule, stages, pipeline.microbatches, pipeline.virtual, pipeline.table or None
    )


def pipeline_stages(plan: ResolvedPlan, pipeline: Pipeline) -> int:
    """How many ranks follow each other in a pipeline: the size of its axis, or its meshes."""
    if pipeline.mesh is None or pipeline.axis is None:
        return len(pipeline.chain)
    return plan.meshes[pipeline.mesh].axis(pipeline.axis).size


def virtual_stages(plan: ResolvedPlan) -> Mapping[tuple[str, str], int]:
    """(mesh, axis) -> stages a rank, for the pipelines that have more than one."""
    return {
        (pipeline.mesh, pipeline.axis): pipeline.virtual
        for pipeline in plan.pipelines
        if pipeline.virtual > 1 and pipeline.mesh is not None and pipeline.axis is not None
    }


def check_schedules(plan: ResolvedPlan, report: Report) -> None:
    """P508 for tables that do not run, P503 for few micro-batches, P901 for training two pipelines."""
    training = plan.facts.get("mode") == "train"
    for pipeline in plan.pipelines[1:] if training else ():
        report.error(
            "P901", "training with two pipelines is not supported yet", pipeline.span,
            labels=[(plan.pipelines[0].span, "the first")],
        )  # fmt: skip
    for pipeline in plan.pipelines:
        good = not pipeline.table or _check_table(plan, pipeline, report)
        stages = pipeline_stages(plan, pipeline)
        if good and pipeline.microbatches < stages:
            _warn_few(plan, pipeline, stages, training, report)


def setting_span(pipeline: Pipeline, *names: str) -> Span:
    """Where the first of some settings stands, else the whole line."""
    found = {setting.name: setting.span for setting in pipeline.settings}
    return next((found[name] for name in names if name in found), pipeline.span)


def _check_table(plan: ResolvedPlan, pipeline: Pipeline, report: Report) -> bool:
    """P508 for each problem of a table, at its word."""
    problems = find_problems(schedule_of(plan, pipeline))
    for problem in problems:
        span = setting_span(pipeline, "schedule")
        if problem.rank is not None:
            span = pipeline.rows[problem.rank]
            words = list(word_spans(span, pipeline.table[problem.rank]))
            if problem.step is not None:
                span = words[problem.step][1]
        report.error("P508", problem.text, span, help=_help(problem.text))
    return not problems


def _help(text: str) -> str:
    """What helps against a problem of a table."""
    if text.startswith("deadlock"):
        return "let a rank first run what the others wait for"
    if "order of sending" in text:
        return "run the micro-batches in one order on both sides"
    return "every micro-batch runs once on every stage: F, then B, or I and later W"


def _warn_few(
    plan: ResolvedPlan, pipeline: Pipeline, stages: int, training: bool, report: Report
) -> None:
    """P503 with the share of time that the ranks wait."""
    schedule = schedule_of(plan, pipeline)
    share = bubble_share(schedule if training else forward_only(schedule))
    count, plural = pipeline.microbatches, "es" if pipeline.microbatches > 1 else ""
    report.warning(
        "P503", f"{count} micro-batch{plural} cannot fill {stages} stages",
        setting_span(pipeline, "microbatches", "schedule"),
        label=f"the ranks wait {share:.0%} of the time",
        help=f"at least {stages}, better {4 * stages}",
    )  # fmt: skip


def forward_only(schedule: Schedule) -> Schedule:
    """What inference runs of a schedule: micro-batch after micro-batch through the rank's chunks."""
    rows = tuple(
        tuple(
            Action("F", chunk, batch)
            for batch in range(schedule.batches)
            for chunk in range(rank, schedule.chunks, schedule.stages)
        )
        for rank in range(schedule.stages)
    )
    return Schedule(rows, schedule.stages, schedule.virtual, schedule.batches, schedule.name)
