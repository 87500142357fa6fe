"""Diagnostics as text, JSON and GitHub annotations."""

from __future__ import annotations

import json
import re

import pytest

from plancc.dsl import Bug, PlanError, Report, Source, Span, render_github, render_json, render_text


def span(source: Source, line: int, column: int, end: int) -> Span:
    """A span on one line."""
    return Span(source, line, column, line, end)


def test_text_columns() -> None:
    """Marks stand below the text they mean, with tabs, wide and odd characters before it."""
    source = Source("a.plan", "\tplace 漢字\x07 on base\n")
    report = Report()
    report.error("P101", "cannot find it", span(source, 1, 15, 19), label="here")
    lines = render_text(report.diagnostics).split("\n")
    shown, marks = lines[3], lines[4]
    assert shown == "1 |     place 漢字\ufffd on base"
    # Two of the characters are two cells wide.
    assert marks.index("^") == shown.index("base") + 2 and "^^^^ here" in marks


def test_color() -> None:
    """Colour adds escapes and nothing else."""
    source = Source("a.plan", "place ** on bse\n")
    report = Report()
    report.warning("P109", "unused", span(source, 1, 13, 16), help="remove it", notes="why")
    plain, painted = (render_text(report.diagnostics, color) for color in (False, True))
    assert "\033[" in painted and "\033[" not in plain
    assert re.sub(r"\033\[[0-9;]*m", "", painted) == plain


def test_json() -> None:
    """JSON has the documented keys, also for a diagnostic without a place."""
    report = Report()
    report.error("P307", "3 modules have no mesh", None, notes=["a, b, c"])
    (record,) = json.loads(render_json(report.diagnostics))
    assert record == {
        "code": "P307", "level": "error", "message": "3 modules have no mesh", "span": None,
        "label": "", "labels": [], "notes": ["a, b, c"], "helps": [], "fix": None,
    }  # fmt: skip


def test_github() -> None:
    """Annotations escape what would end them."""
    source = Source("a,b:c.plan", "x\n")
    report = Report()
    report.error("P001", "100%\nwrong", span(source, 1, 1, 2))
    text = render_github(report.diagnostics)
    place = "file=a%2Cb%3Ac.plan,line=1,endLine=1,col=1,endColumn=1"
    assert text == f"::error {place},title=P001::100%25%0Awrong\n"


def test_report() -> None:
    """Equal diagnostics count once; warnings do not fail; errors raise PlanError."""
    source = Source("a.plan", "x\n")
    report = Report()
    report.warning("P109", "unused", span(source, 1, 1, 2))
    report.warning("P109", "unused", span(source, 1, 1, 2))
    report.raise_errors()
    assert report.ok and len(report.diagnostics) == 1
    report.error("P101", "cannot find it", None)
    with pytest.raises(PlanError, match="P101") as caught:
        report.raise_errors()
    assert [d.code for d in caught.value.diagnostics] == ["P101", "P109"]


def test_unregistered_code() -> None:
    """A code that is not registered is a bug of plancc."""
    with pytest.raises(Bug):
        Report().error("P999", "what", None)
