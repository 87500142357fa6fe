"""REFERENCE.md: its tables are in step with the code, its example is a plan."""

from __future__ import annotations

import re

from plancc.dsl import Source, load_plan
from plancc.dsl.tables import REFERENCE, filled


def test_tables_in_step() -> None:
    """The tables are what `python -m plancc.dsl` would write."""
    text = REFERENCE.read_text("utf-8")
    assert filled(text) == text


def test_example() -> None:
    """The example checks clean."""
    (text,) = re.findall(r"```plan\n(.*?)```", REFERENCE.read_text("utf-8"), re.DOTALL)
    plan, report = load_plan(Source("example.plan", text))
    assert plan is not None and not report.diagnostics
