"""Pipelines in plans: what they resolve to, and what is told of them with and without a model."""

from __future__ import annotations

import subprocess
import sys

import pytest

from plancc.dsl import Report, ResolvedPlan, Source, load_plan
from plancc.dsl.support import unsupported
from plancc.passes.plan_schedule import check_schedules, pipeline_schedule, virtual_stages

HEAD = "plan text, edition 1\nmodel m { mode = train; layers = 8; seq_len in 1..64 }\n"
STAGED = "mesh m[pp = 2] on local\nplace ** on m\nplace layers.* { split layers over pp }\n"


def load(line: str, head: str = HEAD + STAGED) -> tuple[ResolvedPlan | None, Report]:
    """A plan with one pipeline line, and all that is told of it."""
    plan, report = load_plan(Source("text.plan", f"{head}{line}\n"))
    if plan is not None:
        check_schedules(plan, report)
    return plan, report


def codes(line: str, head: str = HEAD + STAGED) -> list[str]:
    """The codes of what is told."""
    return [d.code for d in load(line, head)[1].diagnostics]


def test_virtual_stages() -> None:
    """An interleaved pipeline, with its numbers."""
    plan, _ = load('pipeline over m.pp { schedule = "interleaved"; virtual = 2; microbatches = 8 }')
    assert plan is not None and virtual_stages(plan) == {("m", "pp"): 2}
    schedule = pipeline_schedule(plan)
    assert schedule is not None
    assert (schedule.name, schedule.stages, schedule.virtual, schedule.batches) == (
        "interleaved", 2, 2, 8,
    )  # fmt: skip
    assert not [text for text, _ in unsupported(plan) if text != "training"]


def test_tables() -> None:
    """The micro-batches of a table are counted; a list may have a name, and break its lines."""
    for text in (
        'pipeline over m.pp { schedule = ["F0 F1 F2 B0 B1 B2", "F0 B0 F1 B1 F2 B2"] }',
        'pipeline over m.pp {\n  schedule = [\n    "F0 F1 F2 B0 B1 B2",\n'
        '    "F0 B0 F1 B1 F2 B2",\n  ]\n  microbatches = 3\n}',
        'let rows = ["F0 F1 F2 B0 B1 B2", "F0 B0 F1 B1 F2 B2"]\n'
        "pipeline over m.pp { schedule = rows }",
    ):
        plan, report = load(text)
        assert plan is not None and not report.diagnostics, report.diagnostics
        (pipeline,) = plan.pipelines
        assert (pipeline.schedule, pipeline.microbatches) == ("table", 3)
        schedule = pipeline_schedule(plan)
        assert schedule is not None and schedule.batches == 3


def test_chains() -> None:
    """The stages of a chain are its meshes."""
    head = (
        "plan text, edition 1\nmesh a[x = 1] on local[0:1]\nmesh b[x = 1] on local[1:2]\n"
        "place ** on a\nplace lm_head on b\n"
    )
    plan, report = load('pipeline a -> b { schedule = ["F0 F1 B0 B1", "F0 I0 W0 F1 B1"] }', head)
    assert plan is not None and not report.diagnostics
    schedule = pipeline_schedule(plan)
    assert schedule is not None and schedule.stages == 2
    assert codes('pipeline a -> b { schedule = ["F0.1 B0", "F0 B0"] }', head) == ["P508"]
    assert pipeline_schedule(load("", head)[0]) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ("microbatches = 4", []),
        ("microbatches = 1", ["P503"]),
        ("virtual = 1", []),
        ("virtual = 2", ["P509"]),
        ('schedule = "GPipe"; virtual = 2', ["P509"]),
        ('schedule = "zero_bubble"; virtual = 2; microbatches = 3', []),
        ("schedule = interleaved", ["P509"]),
        ("schedule = interleaved; virtual = 4; microbatches = 2", []),
        ("schedule = interleaved; virtual = 5", ["P509"]),
        ("schedule = interleaved; virtual = 0", ["P110"]),
        ("schedule = interlaced; virtual = 2", ["P504"]),
        ("schedule = interleaved; virtual = 2 when seq_len > 8", ["P401"]),
        ('schedule = "1F1B" when seq_len > 8', ["P401"]),
        ("schedule = []", ["P504"]),
        ("schedule = [F0, B0]", ["P101", "P101"]),
        ('schedule = ["F0 B0"]', ["P508"]),
        ('schedule = ["F0 B0", ""]', ["P508", "P508"]),
        ('schedule = ["", ""]', ["P508"] * 4),
        ('schedule = ["F0 B0", "F0 B0"]; microbatches = 2', ["P508"] * 4),
        ('schedule = ["F0 B0", "F0 B0"]', ["P503"]),
        ('schedule = ["F99999999999 B0", "F0 B0"]', ["P508"]),
        ('schedule = ["F0 B0", "F0 B0"]; virtual = 2', ["P508"] * 4),
    ],
)
def test_what_is_told(settings: str, wanted: list[str]) -> None:
    """Each misfit has its code, and nothing follows from it."""
    assert codes(f"pipeline over m.pp {{ {settings} }}") == wanted


def test_the_place_of_a_word() -> None:
    """A wrong word is marked itself, wherever its row stands."""
    _, report = load('pipeline over m.pp { schedule = ["F0 F1 B0 B1", "F1  F0 B0 B1"] }')
    found = report.errors[0]
    assert found.span is not None
    line = found.span.source.line(found.span.line)
    assert line[found.span.column - 1 : found.span.end_column - 1] == "F1"
    assert found.span.column > line.index('", "')


def test_no_torch() -> None:
    """Schedules are checked and drawn without torch."""
    code = (
        "import sys\nfrom plancc.passes.plan_schedule import check_schedules\n"
        "from plancc.ir.schedule import draw_schedule\n"
        "from plancc.passes.schedule_orders import build_schedule\n"
        "draw_schedule(build_schedule('1F1B', 4, 8))\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
